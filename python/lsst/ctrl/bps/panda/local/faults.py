"""Faults on purpose, for tests: jobs that fail, get lost or are late, and
messages or commands that are dropped or come twice, by rules.
"""

from __future__ import annotations

__all__ = ["FaultRule", "Faults", "JobFault", "parse_faults", "read_faults"]

import random
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

if TYPE_CHECKING:
    # Not at run time: clients read rules without what the extra "local" installs.
    from .pilot import PilotJob

_T = TypeVar("_T")
_JOB_ACTIONS = ("fail", "lose", "delay")
_FLOW_ACTIONS = ("drop", "duplicate")
_TARGETS = ("job", "to_idds", "to_panda", "command")


@dataclass(frozen=True, slots=True)
class FaultRule:
    """One rule."""

    action: str
    """``fail``, ``lose`` or ``delay`` of a job; ``drop`` or ``duplicate`` of
    a message or command."""

    target: str = "job"
    """``job``; ``to_idds`` or ``to_panda`` (messages); ``command`` (abort,
    retry and the like through the relay)."""

    match: str = ".*"
    """Regular expression, found anywhere in ``<task name> <pseudo-input>`` of
    a job, the type of a message, the name of a command."""

    exit_code: int = 1
    """Of a job that is to fail."""

    seconds: float = 1.0
    """Delay of a job's start."""

    attempts: int = 0
    """Only the first so many attempts of a job; 0 means all."""

    times: int = 0
    """How often the rule applies at most; 0 means without limit."""

    probability: float = 1.0


@dataclass(frozen=True, slots=True)
class JobFault:
    """What happens to a job."""

    exit_code: int | None = None
    lose: bool = False
    delay: float = 0.0


class Faults:
    """The rules in force; they can be changed while the server runs."""

    def __init__(self, rules: Iterable[FaultRule] = (), *, chance: random.Random | None = None) -> None:
        self._lock = threading.Lock()
        self._chance = chance or random.Random()
        self._rules: list[FaultRule] = []
        self._used: dict[int, int] = {}
        self.set(rules)

    def set(self, rules: Iterable[FaultRule]) -> None:
        """Replace all rules."""
        with self._lock:
            self._rules = list(rules)
            self._used = {}

    def _applies(self, number: int, rule: FaultRule, target: str, text: str) -> bool:
        if rule.target != target or not re.search(rule.match, text):
            return False
        if rule.times and self._used.get(number, 0) >= rule.times:
            return False
        if self._chance.random() >= rule.probability:
            return False
        self._used[number] = self._used.get(number, 0) + 1
        return True

    def for_job(self, job: PilotJob) -> JobFault:
        """Tell what happens to a job."""
        exit_code, lose, delay = None, False, 0.0
        text = f"{job.task_name} {job.pseudo_input}"
        with self._lock:
            for number, rule in enumerate(self._rules):
                if rule.attempts and job.attempt > rule.attempts:
                    continue
                if not self._applies(number, rule, "job", text):
                    continue
                if rule.action == "fail":
                    exit_code = rule.exit_code
                elif rule.action == "lose":
                    lose = True
                else:
                    delay += rule.seconds
        return JobFault(exit_code, lose, delay)

    def flow(self, target: str, name: str, item: _T) -> list[_T]:
        """Pass a message or command on: not at all, once, or twice."""
        copies = 1
        with self._lock:
            for number, rule in enumerate(self._rules):
                if self._applies(number, rule, target, name):
                    copies = 0 if rule.action == "drop" else copies + 1
        return [item] * copies


def parse_faults(content: Any, *, origin: str = "faults") -> list[FaultRule]:
    """Make rules of a list of mappings."""
    if not isinstance(content, list):
        raise ValueError(f"{origin}: expected a list of rules")
    known = [item.name for item in fields(FaultRule)]
    rules = []
    for item in content:
        if not isinstance(item, Mapping) or "action" not in item:
            raise ValueError(f"{origin}: {item!r} is no rule; each needs at least an 'action'")
        for key in item:
            if key not in known:
                raise ValueError(f"{origin}: {key!r} is not known; known: {', '.join(known)}")
        rule = FaultRule(**item)
        _check_rule(rule, origin)
        rules.append(rule)
    return rules


def _check_rule(rule: FaultRule, origin: str) -> None:
    if rule.target not in _TARGETS:
        raise ValueError(f"{origin}: target {rule.target!r} is not known; known: {', '.join(_TARGETS)}")
    actions = _JOB_ACTIONS if rule.target == "job" else _FLOW_ACTIONS
    if rule.action not in actions:
        raise ValueError(
            f"{origin}: action {rule.action!r} does not go with target {rule.target}; "
            f"possible: {', '.join(actions)}"
        )
    try:
        re.compile(rule.match)
    except re.error as error:
        raise ValueError(f"{origin}: match {rule.match!r} is no regular expression: {error}") from None


def read_faults(path: str | Path) -> list[FaultRule]:
    """Read rules from YAML: a list of mappings with the keys of `FaultRule`."""
    with open(path) as stream:
        return parse_faults(yaml.safe_load(stream), origin=str(path))
