"""The YAML files of a configuration: what keeps them from being read, and where in them a value stands."""

from __future__ import annotations

__all__ = ["LOADER", "check_files", "find_origin", "find_repeated_keys", "locate_in"]

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from lsst.resources import ResourcePath

from ..errors import SettingsError
from .bps_command import configuration_file
from .keys import Origin

_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""What the Butler's `Config` reads YAML with, the fast one if it is there; they differ in what they take."""


def find_origin(path: str, key: str, value: Any, env: Mapping[str, str]) -> Origin:
    """Find where a value of the user's YAML file stands.

    Of several places with the key, which may be a dotted path, the one with
    this value counts; the environment is for the names of included files.
    """
    leaf = key.rpartition(".")[2]
    found = [
        (_texts(node) != str(value), where != key, Origin(_name_of(uri), line))
        for uri, root in _files(path, env)
        for where, line, node in _entries(root)
        if where.rpartition(".")[2] == leaf
    ]
    return min(found, key=lambda place: place[:2], default=(True, True, Origin()))[2]


def locate_in(section: str, env: Mapping[str, str]) -> Callable[[str, Any], Origin]:
    """Return a function that finds where a value of a section stands, by key and value."""
    return lambda name, value: find_origin(configuration_file(), f"{section}.{name}", value, env)


def find_repeated_keys(path: str, env: Mapping[str, str]) -> list[tuple[str, int, Origin]]:
    """Find keys that a mapping has more than once, with the line of the one before; YAML keeps the last."""
    found = []
    for uri, root in _files(path, env):
        lines: dict[tuple[int, str], int] = {}
        for where, line, mapping in _entries(root, keys=True):
            before = lines.setdefault((id(mapping), where), line)
            if before != line:
                found.append((where, before, Origin(_name_of(uri), line)))
    return found


def check_files(path: str, env: Mapping[str, str]) -> None:
    """Check that a file and all that it includes can be read, and hold keys with values; the `SettingsError`
    says file, line and remedy.
    """
    _check_file(ResourcePath(path, forceDirectory=False), env, ())


def _check_file(uri: ResourcePath, env: Mapping[str, str], above: tuple[ResourcePath, ...]) -> None:
    name = _name_of(uri)
    if uri in above:
        circle = " -> ".join(map(_name_of, (*above[above.index(uri) :], uri)))
        raise SettingsError(f"{circle}: these files include each other. Take one of the includeConfigs out.")
    root = _parse(uri)
    if root is None and not above:
        raise SettingsError(f"{name} is empty. Write keys with values, at least wmsServiceClass.", file=name)
    if root is not None and not isinstance(root, yaml.MappingNode) and root.value not in ("", "~", "null"):
        kind = "a list" if isinstance(root, yaml.SequenceNode) else f"the text {str(root.value)[:40]!r}"
        raise SettingsError(
            f"{name}, line {root.start_mark.line + 1}: the file holds {kind}, and not keys with values. "
            "Write 'KEY: VALUE' in each line.",
            file=name,
        )
    for include, line in _includes(root):
        found = _find_include(uri, include, env)
        if found is None:
            raise SettingsError(
                f"includeConfigs names {include} ({name}, line {line}), {_why_missing(include, env)}",
                key="includeConfigs",
                file=name,
                line=line,
            )
        _check_file(found, env, (*above, uri))


def _why_missing(include: str, env: Mapping[str, str]) -> str:
    unset = [name for pair in _VARIABLE.findall(include) for name in pair if name and not env.get(name)]
    if not unset:
        return "which is not there. Correct the name; relative ones count from here and from that file."
    text = f"but {unset[0]} is not set"
    if unset[0].endswith("_DIR"):
        text += "; only an LSST stack sets it"
    if unset[0] == "CTRL_BPS_PANDA_DIR":
        _, _, rest = include.partition("/")
        return (
            f"{text}. Include resource://lsst.ctrl.bps.panda/{rest} instead, or nothing: computeSite selects "
            "what it held."
        )
    return f"{text}. Set it, or give a path."


def _parse(uri: ResourcePath) -> yaml.Node | None:
    """Parse a file."""
    name = _name_of(uri)
    try:
        if uri.isLocal and Path(uri.ospath).exists() and not Path(uri.ospath).is_file():
            raise SettingsError(
                f"{name} is a directory or a pipe, and BPS reads it several times. Give a file.", file=name
            )
        data = uri.read()
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        return yaml.compose(text, Loader=LOADER)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        what = f"byte 0x{error.object[error.start]:02x} is not UTF-8. Save the file as UTF-8."
    except yaml.reader.ReaderError as error:
        line = text.encode()[: error.position].count(b"\n") + 1
        what = f"the character {error.character!r} is not allowed. Save the file as text, in UTF-8."
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        what = _why_unparsable(error, text.splitlines()[line - 1 : line])
    except OSError as error:
        raise SettingsError(
            f"{name} cannot be read: {error}. Correct its name or its permissions."
        ) from error
    raise SettingsError(f"{name}, line {line}: {what}", file=name, line=line)


def _why_unparsable(error: yaml.MarkedYAMLError, lines: list[str]) -> str:
    if any("\t" in line[: len(line) - len(line.lstrip())] for line in lines):
        return "it is indented with a tab. YAML takes blanks only."
    text = " ".join(filter(None, (error.context, error.problem)))
    where = f" (from line {error.context_mark.line + 1} on)" if error.context_mark else ""
    return f"{text}{where}. Correct it; values that hold ': ' or begin with one of []{{}}*&!%@` want quotes."


def _files(path: str, env: Mapping[str, str]) -> Iterator[tuple[ResourcePath, yaml.Node | None]]:
    """Yield a file and all that it includes, as far as they can be read: a file before those that it
    includes, the last of which wins.
    """
    pending = [ResourcePath(path, forceDirectory=False)] if path else []
    seen = set()
    while pending:
        uri = pending.pop()
        if uri in seen:
            continue
        seen.add(uri)
        try:
            root = _parse(uri)
        except SettingsError:
            continue
        yield uri, root
        pending += filter(None, (_find_include(uri, include, env) for include, _ in _includes(root)))


def _includes(root: yaml.Node | None) -> Iterator[tuple[str, int]]:
    """Yield what a file includes, with lines."""
    for where, line, node in _entries(root):
        if where.rpartition(".")[2] == "includeConfigs":
            each = node.value if isinstance(node, yaml.SequenceNode) else [node]
            yield from ((_texts(entry) or "no text", line) for entry in each)


def _find_include(uri: ResourcePath, include: str, env: Mapping[str, str]) -> ResourcePath | None:
    """Return the file as BPS finds it: from here, or from the directory of the file that includes it."""
    name = _VARIABLE.sub(lambda match: env.get(match[1] or match[2], match[0]), include)
    try:
        given = ResourcePath(name, forceAbsolute=False, forceDirectory=False)
        if given.isabs():
            return given if given.scheme not in ("file", "resource", "eups") or given.exists() else None
        places = (ResourcePath(os.curdir, forceDirectory=True), uri.dirname())
        return next((each for place in places if (each := place.join(given.path)).exists()), None)
    except (OSError, ValueError, NotImplementedError):
        return None


def _entries(
    node: yaml.Node | None, above: str = "", *, keys: bool = False
) -> Iterator[tuple[str, int, yaml.Node]]:
    """Yield the dotted paths of all keys at all depths, with line and value, or the mapping that has it."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        yield f"{above}{key.value}", key.start_mark.line + 1, node if keys else value
        yield from _entries(value, f"{above}{key.value}.", keys=keys)


def _texts(node: yaml.Node) -> str:
    """Return a text, or those of a list."""
    if isinstance(node, yaml.SequenceNode):
        return ", ".join(str(entry.value) for entry in node.value)
    return str(node.value) if isinstance(node, yaml.ScalarNode) else ""


def _name_of(uri: ResourcePath) -> str:
    return uri.ospath if uri.isLocal else str(uri)
