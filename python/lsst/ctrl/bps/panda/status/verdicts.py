"""The diagnosis of a failed job by rules: why it failed, who has to act, and what to do.

The rules are `~.vocabulary.RULES`; users may put rules of their own before them, in YAML.
"""

from __future__ import annotations

__all__ = ["PACKAGED_RULES", "Rulebook", "Verdict", "parse_rulebook"]

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from ..errors import SettingsError
from .job_errors import JobError
from .vocabulary import RULES, SOURCES, VERDICTS, VerdictRule

_FORMAT = 1
_SOURCES = (*SOURCES, "unknown", "task")
_RULE_KEYS = frozenset({"verdict", "source", "codes", "text", "log", "one_node"})


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a failure is put down to."""

    name: str
    """For instance ``out of memory``."""

    advice: str = ""
    """What to do, a sentence or two."""


@dataclass(frozen=True, slots=True)
class Rulebook:
    """Rules in order, and the verdicts that they give."""

    rules: tuple[VerdictRule, ...]
    verdicts: Mapping[str, Verdict]

    def find_verdict(self, errors: Iterable[JobError], *, log: str = "", one_node: bool = False) -> Verdict:
        """Judge a failure by all errors of the job and the end of its log: the verdict of the first rule that
        holds, else ``unknown``.

        With ``one_node`` the error happens on one node only, in a run that uses several.
        """
        errors = tuple(errors)
        for rule in self.rules:
            if _holds(rule, errors, log, one_node):
                return self.verdicts.get(rule.verdict, Verdict(rule.verdict))
        return self.verdicts.get("unknown", Verdict("unknown"))


def _holds(rule: VerdictRule, errors: Sequence[JobError], log: str, one_node: bool) -> bool:
    if rule.one_node and not one_node:
        return False
    if rule.log and not _pattern(rule.log).search(log):
        return False
    if not (rule.sources or rule.codes or rule.text):
        return True
    return any(
        rule.fits_code(error.source, error.code)
        and (not rule.text or _pattern(rule.text).search(error.text) is not None)
        for error in errors
    )


@cache
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.IGNORECASE)


PACKAGED_RULES = Rulebook(RULES, {name: Verdict(name, advice) for name, advice in VERDICTS.items()})


def parse_rulebook(text: str, source: str) -> Rulebook:
    """Read rules, in YAML from a source that messages name, that come before the
    packaged ones; its ``verdicts`` replace packaged ones of the same name.

    What is not understood is a `SettingsError`.
    """
    try:
        content = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise SettingsError(f"{source} is not YAML: {error}") from error
    if not isinstance(content, dict) or content.get("format", _FORMAT) != _FORMAT:
        raise SettingsError(f"{source} is not a mapping with 'format: {_FORMAT}', 'verdicts' and 'rules'.")
    verdicts = {
        str(name): Verdict(str(name), " ".join(str(advice).split()))
        for name, advice in (content.get("verdicts") or {}).items()
    }
    rules = content.get("rules") or []
    if not isinstance(rules, list):
        raise SettingsError(f"{source}: 'rules' is not a list.")
    own = tuple(_rule_from(rule, f"{source}, rule {n}") for n, rule in enumerate(rules, 1))
    return Rulebook(own + PACKAGED_RULES.rules, {**PACKAGED_RULES.verdicts, **verdicts})


def _rule_from(value: Any, where: str) -> VerdictRule:
    if not isinstance(value, dict) or not value.get("verdict"):
        raise SettingsError(f"{where}: {value!r} is not a mapping with a 'verdict'.")
    if unknown := sorted(set(value) - _RULE_KEYS):
        raise SettingsError(f"{where}: {unknown[0]!r} is not known; use {', '.join(sorted(_RULE_KEYS))}.")
    sources = _as_list(value.get("source"))
    for source in sources:
        if source not in _SOURCES:
            raise SettingsError(f"{where}: there is no source {source!r}; use {', '.join(_SOURCES)}.")
    return VerdictRule(
        verdict=str(value["verdict"]),
        sources=tuple(sources),
        codes=tuple(_codes(item, where) for item in _as_list(value.get("codes"))),
        text=_checked(value.get("text"), where),
        log=_checked(value.get("log"), where),
        one_node=bool(value.get("one_node", False)),
    )


def _as_list(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    return value if isinstance(value, list) else (value,)


def _codes(value: Any, where: str) -> range:
    """Read a code, or a span of codes such as ``129-159``."""
    if isinstance(value, int):
        return range(value, value + 1)
    first, dash, last = str(value).partition("-")
    try:
        return range(int(first), int(last if dash else first) + 1)
    except ValueError:
        raise SettingsError(f"{where}: {value!r} is not a code such as 137 or 129-159.") from None


def _checked(value: Any, where: str) -> str:
    """Return a regular expression as text, after a check that it is one."""
    if value is None:
        return ""
    try:
        _pattern(str(value))
    except re.error as error:
        raise SettingsError(f"{where}: {value!r} is not a regular expression: {error}.") from None
    return str(value)
