"""Texts in which BPS cannot replace ``{variables}``, and values that it generates after the checks."""

from __future__ import annotations

__all__ = ["GENERATOR", "find_broken_texts", "find_generators", "generate_values"]

import re
import string
from collections.abc import Iterator, Mapping
from typing import Any

from lsst.daf.butler import Config

from lsst.ctrl.bps import BPS_DEFAULTS, BpsConfig

from ..errors import SettingsError
from .bps_command import configuration_file
from .files import find_origin
from .keys import CORE_KEYS, KEYS
from .sites import base_profile

GENERATOR = "bpsGenerateConfig"
"""Key whose function makes further keys; BPS calls it after the checks."""

# What BPS completes in ways of its own, and puts other values into.
_COMMANDS = frozenset({"runQuantumCommand", "arguments", GENERATOR})

# What BPS reads, though it is neither among its defaults nor a key of the models, nor named by either.
_READ = frozenset({"project", "campaign", "operator", "uniqProcName", "qgraphFile", "outCollection"})

_NAME = re.compile(r"[\w.-]*[^\W\d][\w.-]*")

Path = tuple[str, ...]


def find_broken_texts(config: BpsConfig, env: Mapping[str, str]) -> tuple[list[SettingsError], BpsConfig]:
    """Find texts in which BPS fails to replace variables, or replaces by nothing what is no variable.

    Such a text makes each look-up fail that comes upon it. The second value is the configuration without
    them, in which everything else can be looked up.
    """
    texts = dict(_texts(Config(config).toDict()))
    defaults = [*_texts(BPS_DEFAULTS), *_texts(base_profile())]
    used = {name for text in (*texts.values(), *(text for _, text in defaults)) for name in _fields(text)}
    known = {*KEYS, *CORE_KEYS, *_READ, *used, *(path[-1] for path, _ in defaults)}
    reasons: dict[Path, str] = {}
    for path, text in texts.items():
        is_read = path[-1] in known or path[0] == "payload" or "environment" in path
        if is_read and path[-1] not in _COMMANDS and (reason := _why_broken(config, path, text)):
            reasons[path] = reason
    by_name = {path[-1]: texts[path] for path in reasons}
    errors = []
    clean = BpsConfig(config) if reasons else config
    for path, reason in reasons.items():
        text, name = texts[path], ".".join(path)
        Config.__setitem__(clean, path, re.sub(r"[{}]|bpsEval", "", text))
        needed = _reach(text, by_name)
        if reason == _ENDLESS and path[-1] not in needed or reason != _ENDLESS and needed:
            continue  # one that it names is broken
        origin = find_origin(configuration_file(), name, text, env)
        place = f" ({origin.file}, line {origin.line})" if origin.file else ""
        text = f"{name} is {text!r}{place}; {reason}"
        errors.append(SettingsError(text, key=name, file=origin.file, line=origin.line))
    return errors, clean


def find_generators(config: BpsConfig) -> dict[str, str]:
    """Return all ``bpsGenerateConfig`` by their dotted paths."""
    texts = _texts(Config(config).toDict(), every=True)
    return {".".join(path): text for path, text in texts if path[-1] == GENERATOR}


def generate_values(config: BpsConfig, env: Mapping[str, str]) -> BpsConfig:
    """Return the configuration with what BPS generates after its checks; a `SettingsError` if that fails."""
    generators = find_generators(config)
    generated = BpsConfig(config) if generators else config
    try:
        generated.generate_config()
    except Exception as error:
        key, value = next(iter(generators.items()))
        origin = find_origin(configuration_file(), key, value, env)
        text = f"{key} is {value!r}, and it fails: {error}. Correct the function or its arguments."
        raise SettingsError(text, key=key, file=origin.file, line=origin.line) from error
    return generated


_ENDLESS = "it names itself, directly or by way of others, and BPS never ends. Take one of the variables out."
_BRACES = "Double braces that hold no variable: {{ and }}."


def _why_broken(config: BpsConfig, path: Path, text: str) -> str:
    """Return what BPS fails at in a text; empty if it does not fail."""
    try:
        fields = _fields(text, strict=True)
    except ValueError as error:
        return f"BPS cannot replace variables in it: {error}. {_BRACES}"
    if odd := [field for field in fields if not _NAME.fullmatch(field)]:
        return f"BPS replaces {{{odd[0]}}} by nothing, since that is no name of a key. {_BRACES}"
    current = {f"curr_{path[0]}": path[1]} if len(path) > 2 else {}
    try:
        config.replace_vars(text, {"curvals": current, "default": ""})
    except RecursionError:
        return _ENDLESS
    except Exception as error:
        what = str(error) or type(error).__name__
        if "bpsEval" in text:
            return f"its bpsEval fails: {what}. Correct it: bpsEval(FUNCTION, ARGUMENTS)."
        return f"BPS cannot replace variables in it: {what}. {_BRACES}"
    return ""


def _fields(text: str, *, strict: bool = False) -> list[str]:
    """Return what stands in single braces, apart from ``${NAME}``."""
    try:
        parsed = [*string.Formatter().parse(re.sub(r"\${[^}]+}", "", text))]
    except ValueError:
        if strict:
            raise
        return []
    return [field for _, field, _, _ in parsed if field is not None]


def _reach(text: str, texts: Mapping[str, str]) -> set[str]:
    """Return the names in ``texts`` that a text needs."""
    pending, seen = [text], set[str]()
    while pending:
        new = {name for name in _fields(pending.pop()) if name in texts} - seen
        seen |= new
        pending += [texts[name] for name in new]
    return seen


def _texts(
    section: Mapping[str, Any], above: Path = (), *, every: bool = False
) -> Iterator[tuple[Path, str]]:
    """Yield path and text of all texts in which BPS may replace something, or of all."""
    for key, value in section.items():
        path = (*above, str(key))
        if isinstance(value, Mapping):
            yield from _texts(value, path, every=every)
        elif isinstance(value, str) and (every or re.search(r"[{}]|bpsEval", value)):
            yield path, value
