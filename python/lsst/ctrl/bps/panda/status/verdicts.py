"""Judge why a job failed, by rules: who has to act, and what to do.

The rules are a packaged YAML file; a file of the same form can be put before
it.
"""

from __future__ import annotations

__all__ = ["Rulebook", "Verdict", "read_rulebook"]

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import yaml

from ..errors import SettingsError
from .failures import SOURCES
from .records import JobError

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
class _Rule:
    """Conditions that must all hold; an empty one always does."""

    verdict: str
    sources: frozenset[str]
    codes: tuple[range, ...]
    text: re.Pattern[str] | None
    log: re.Pattern[str] | None
    one_node: bool

    def holds(self, errors: Iterable[JobError], log: str, one_node: bool) -> bool:
        if self.one_node and not one_node:
            return False
        if self.log is not None and not self.log.search(log):
            return False
        if not (self.sources or self.codes or self.text):
            return True
        return any(self._fits(error) for error in errors)

    def _fits(self, error: JobError) -> bool:
        return (
            (not self.sources or error.source in self.sources)
            and (not self.codes or any(error.code in codes for codes in self.codes))
            and (self.text is None or self.text.search(error.text) is not None)
        )


@dataclass(frozen=True, slots=True)
class Rulebook:
    """Rules in order, and the verdicts that they give."""

    rules: tuple[_Rule, ...]
    verdicts: Mapping[str, Verdict]

    def judge(self, errors: Iterable[JobError], *, log: str = "", one_node: bool = False) -> Verdict:
        """Judge a failure.

        Parameters
        ----------
        errors : `~collections.abc.Iterable` [`JobError`]
            All errors of the job.
        log : `str`, optional
            End of its log, if it could be read.
        one_node : `bool`, optional
            Whether the error happens on one node only, in a run that uses
            several.

        Returns
        -------
        verdict : `Verdict`
            That of the first rule that holds, else ``unknown``.
        """
        errors = tuple(errors)
        for rule in self.rules:
            if rule.holds(errors, log, one_node):
                return self.verdicts.get(rule.verdict, Verdict(rule.verdict))
        return self.verdicts.get("unknown", Verdict("unknown"))


def read_rulebook(extra: str | os.PathLike[str] | None = None) -> Rulebook:
    """Read the rules.

    Parameters
    ----------
    extra : path, optional
        File with further rules, which come before the packaged ones, and
        further verdicts, which replace packaged ones of the same name.

    Raises
    ------
    SettingsError
        Raised if the file cannot be read or holds something that is not
        understood; the text says what.
    """
    packaged = package_files(__package__).joinpath("verdicts.yaml").read_text(encoding="utf-8")
    books = [_parse(packaged, "the packaged rules")]
    if extra:
        try:
            text = Path(extra).read_text(encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"The rules {extra} cannot be read: {error}.") from error
        books.insert(0, _parse(text, str(extra)))
    verdicts: dict[str, Verdict] = {}
    for _, known in reversed(books):
        verdicts.update(known)
    return Rulebook(tuple(rule for rules, _ in books for rule in rules), verdicts)


def _parse(text: str, source: str) -> tuple[list[_Rule], dict[str, Verdict]]:
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
    return [_rule_from(rule, f"{source}, rule {n}") for n, rule in enumerate(rules, 1)], verdicts


def _rule_from(value: Any, where: str) -> _Rule:
    if not isinstance(value, dict) or not value.get("verdict"):
        raise SettingsError(f"{where}: {value!r} is not a mapping with a 'verdict'.")
    if unknown := sorted(set(value) - _RULE_KEYS):
        raise SettingsError(f"{where}: {unknown[0]!r} is not known; use {', '.join(sorted(_RULE_KEYS))}.")
    sources = _as_list(value.get("source"))
    for source in sources:
        if source not in _SOURCES:
            raise SettingsError(f"{where}: there is no source {source!r}; use {', '.join(_SOURCES)}.")
    return _Rule(
        verdict=str(value["verdict"]),
        sources=frozenset(sources),
        codes=tuple(_codes(item, where) for item in _as_list(value.get("codes"))),
        text=_pattern(value.get("text"), where),
        log=_pattern(value.get("log"), where),
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


def _pattern(value: Any, where: str) -> re.Pattern[str] | None:
    if value is None:
        return None
    try:
        return re.compile(str(value), re.IGNORECASE)
    except re.error as error:
        raise SettingsError(f"{where}: {value!r} is not a regular expression: {error}.") from None
