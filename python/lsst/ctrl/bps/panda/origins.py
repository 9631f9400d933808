"""Where in a user's YAML files a value stands: BPS merges them and forgets."""

from __future__ import annotations

__all__ = ["find_origin"]

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from lsst.resources import ResourcePath

_DEPTH = 20
"""How deep files may include each other before they are taken for a circle."""

_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")


def find_origin(path: str, key: str, value: Any, env: Mapping[str, str]) -> str:
    """Find where a value is from.

    Parameters
    ----------
    path : `str`
        The user's YAML file.
    key : `str`
        Key, whatever section it is in.
    value : `~typing.Any`
        Its value, to tell its places apart.
    env : mapping of `str` to `str`
        The environment, for variables in the names of included files.

    Returns
    -------
    origin : `str`
        ``FILE, line N``; empty if it is not found.
    """
    if not path:
        return ""
    found = [*_places(ResourcePath(path, forceDirectory=False), key, env, _DEPTH)]
    same = [place for place, text in found if text == str(value)]
    return next(iter([*same, *(place for place, _ in found)]), "")


def _places(uri: ResourcePath, key: str, env: Mapping[str, str], depth: int) -> Iterator[tuple[str, str]]:
    """Yield the places of a key and the texts there: a file's own before
    those of what it includes, the last of which wins.
    """
    try:
        root = yaml.compose(uri.read().decode(), Loader=yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError):
        return
    name = uri.ospath if uri.isLocal else str(uri)
    includes: list[str] = []
    for found, node in _entries(root):
        if found == "includeConfigs":
            includes += _texts(node)
        elif found == key:
            yield f"{name}, line {node.start_mark.line + 1}", ", ".join(_texts(node))
    for include in reversed(includes) if depth else ():
        inner = _VARIABLE.sub(lambda match: env.get(match[1] or match[2], match[0]), include)
        yield from _places(_resolve(uri, inner), key, env, depth - 1)


def _resolve(uri: ResourcePath, include: str) -> ResourcePath:
    if "://" in include or include.startswith("/"):
        return ResourcePath(include, forceDirectory=False)
    return uri.dirname().join(include)


def _entries(node: yaml.Node | None) -> Iterator[tuple[str, yaml.Node]]:
    """Yield all keys at all depths, with their values."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        yield str(key.value), value
        yield from _entries(value)


def _texts(node: yaml.Node) -> list[str]:
    """Return a text, or those of a list."""
    if isinstance(node, yaml.SequenceNode):
        return [str(entry.value) for entry in node.value]
    return [str(node.value)] if isinstance(node, yaml.ScalarNode) else []
