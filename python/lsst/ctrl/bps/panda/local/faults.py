"""Faults on purpose, for tests: jobs that fail, get lost or start late, tasks that are refused, doubled or
not brokered, and messages or commands that are dropped or duplicated, by rules.
"""

from __future__ import annotations

__all__ = ["Faults", "JobFault"]

import random
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from .pilot import PilotJob
from .settings import FaultRule

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class JobFault:
    """The faults that are injected into one job."""

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
        """Choose the faults of a job, and count the rules as used."""
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

    def for_task(self, name: str) -> frozenset[str]:
        """Choose the actions for a task that is submitted, and count the rules as used."""
        with self._lock:
            return frozenset(
                rule.action
                for number, rule in enumerate(self._rules)
                if self._applies(number, rule, "task", name)
            )

    def flow(self, target: str, name: str, item: _T) -> list[_T]:
        """Pass a message or command on: not at all, once, or twice.

        ``target`` is ``to_idds``, ``to_panda`` or ``command``, ``name`` its type.
        """
        copies = 1
        with self._lock:
            for number, rule in enumerate(self._rules):
                if self._applies(number, rule, target, name):
                    copies = 0 if rule.action == "drop" else copies + 1
        return [item] * copies
