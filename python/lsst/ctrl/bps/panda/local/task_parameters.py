"""The parameters of a task, parsed and checked once when it is submitted."""

from __future__ import annotations

__all__ = ["TaskInput", "TaskParameters", "parse_task"]

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LONGEST_NAME = 256
"""Letters of a task's name, as many as PanDA's database has."""

_LONGEST_USER = 128
_LONGEST_QUEUE = 128
_LONGEST_INPUT = 4000 - len("000000:")
# Linux starts no program with a longer argument (MAX_ARG_STRLEN), and the input's name is inserted.
_LONGEST_COMMAND = 128 * 1024 - 2 * 4000
_MOST_EVENTS = 1_000_000
_LARGEST = 2**31 - 1
_LARGEST_ID = 2**63 - 1
_RETRY_UNLESS_EXIT = re.compile(r" --retry-unless-exit=([0-9,]+)(?!\S)")


@dataclass(frozen=True, slots=True)
class TaskInput:
    """One input of a task: a pseudo-input with its number of events."""

    name: str
    events: int


@dataclass(frozen=True, slots=True)
class TaskParameters:
    """All that the embedded PanDA uses of a task's parameters."""

    name: str
    user: str
    """Owner, empty if the parameters name nobody."""

    request_id: int | None
    """Request of iDDS."""

    inputs: tuple[TaskInput, ...]
    command: str
    """Template of the command, with ``${IN/L}``."""

    ram: float
    """Memory, MB per core; 0 means not given, as for what follows."""

    retry_ram_step: float
    retry_ram_offset: float
    retry_ram_max: float
    max_attempt: int
    cores: int
    walltime: int
    """Limit of the run time, seconds; 0 means none."""

    priority: int
    queue: str
    event_service: bool
    staged: bool
    """Whether the inputs are ready at once, without a release by iDDS."""

    @property
    def final_codes(self) -> frozenset[int]:
        """Exit codes after which the runner in the command refuses another attempt."""
        found = _RETRY_UNLESS_EXIT.search(self.command)
        return frozenset(int(code) for code in found[1].split(",") if code) if found else frozenset()


def _wrong(key: str, value: object, expected: str) -> ValueError:
    return ValueError(f"task parameter {key} is {value!r:.100}; expected {expected}")


def _text(params: Mapping[str, Any], key: str, *, longest: int) -> str:
    value = params.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _wrong(key, value, "a text")
    return _checked_text(value, key, longest=longest)


def _checked_text(value: str, key: str, *, longest: int) -> str:
    if len(value) > longest:
        raise ValueError(f"task parameter {key} has {len(value)} letters, at most {longest} are possible")
    if "\0" in value or not value.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise _wrong(key, value, "a text without NUL and halves of surrogate pairs")
    return value


def _number(params: Mapping[str, Any], key: str, default: float, *, lowest: float, highest: float) -> float:
    """Read a number, which may be a text, as panda-client sends some; null and empty are the default."""
    value = params.get(key)
    if value is None or value == "":
        return default
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise _wrong(key, value, "a number") from None
    if not math.isfinite(number) or not lowest <= number <= highest:
        raise _wrong(key, value, f"a number from {lowest:g} to {highest:g}")
    return number


def _whole(params: Mapping[str, Any], key: str, default: int, *, lowest: int, highest: int) -> int:
    """Read a whole number; parts of it are cut off, as PanDA does."""
    value = params.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        if not lowest <= value <= highest:
            raise _wrong(key, value, f"a number from {lowest} to {highest}")
        return value
    return int(_number(params, key, default, lowest=lowest, highest=highest))


def _flag(params: Mapping[str, Any], key: str) -> bool:
    value = params.get(key)
    if value is not None and not isinstance(value, (bool, int, str)):
        raise _wrong(key, value, "true or false")
    return bool(value)


def _inputs(params: Mapping[str, Any], *, event_service: bool) -> tuple[TaskInput, ...]:
    names = params.get("pfnList")
    if names is None:
        names = []
    if not isinstance(names, (list, tuple)):
        raise _wrong("pfnList", names, "a list of texts")
    return tuple(_input(name, event_service=event_service) for name in names or ["pseudo_file"])


def _input(value: object, *, event_service: bool) -> TaskInput:
    """Parse a name: what is behind the last ``/``, up to ``^``, which separates the number of events."""
    if not isinstance(value, str):
        raise _wrong("pfnList", value, "a list of texts")
    stem, _, count = value.split("/")[-1].partition("^")
    _checked_text(stem, "pfnList", longest=_LONGEST_INPUT)
    if not event_service:
        return TaskInput(stem, 0)
    if count and (not count.isdecimal() or not 1 <= int(count[:10]) <= _MOST_EVENTS or len(count) > 10):
        raise _wrong("pfnList", value, f"a number of events from 1 to {_MOST_EVENTS} behind the ^")
    return TaskInput(stem, int(count or 1))


def _command(params: Mapping[str, Any]) -> str:
    parts = params.get("jobParameters")
    if parts is None:
        return ""
    if not isinstance(parts, (list, tuple)):
        raise _wrong("jobParameters", parts, "a list of mappings with a value")
    texts = []
    for part in parts:
        if not isinstance(part, Mapping):
            raise _wrong("jobParameters", parts, "a list of mappings with a value")
        value = part.get("value", "")
        if not isinstance(value, (str, int, float)):
            raise _wrong("jobParameters", parts, "a list of mappings whose value is a text")
        texts.append(str(value))
    return _checked_text("".join(texts), "jobParameters", longest=_LONGEST_COMMAND)


def parse_task(params: object) -> TaskParameters:
    """Parse the parameters of a task as panda-client sends them; `ValueError` names key and value."""
    if not isinstance(params, Mapping):
        raise ValueError(f"the task parameters are {params!r:.100}; expected a mapping")
    name = _text(params, "taskName", longest=LONGEST_NAME)
    if not name:
        raise _wrong("taskName", params.get("taskName"), "the name of the task")
    event_service = _flag(params, "fineGrainedProc")
    amount = {"lowest": 0, "highest": _LARGEST}
    request = params.get("reqID")
    return TaskParameters(
        name=name,
        user=_text(params, "userName", longest=_LONGEST_USER),
        request_id=(None if request is None else _whole(params, "reqID", 0, lowest=0, highest=_LARGEST_ID)),
        inputs=_inputs(params, event_service=event_service),
        command=_command(params),
        ram=_number(params, "ramCount", 0, **amount),
        retry_ram_step=_number(params, "retryRamStep", 0, **amount),
        retry_ram_offset=_number(params, "retryRamOffset", 0, **amount),
        retry_ram_max=_number(params, "retryRamMax", 0, **amount),
        max_attempt=max(_whole(params, "maxAttempt", 3, **amount) or 3, 1),
        cores=max(_whole(params, "coreCount", 1, **amount), 1),
        walltime=_whole(params, "maxWalltime", 0, **amount),
        priority=_whole(params, "taskPriority", 0, lowest=-_LARGEST, highest=_LARGEST),
        queue=(
            _text(params, "site", longest=_LONGEST_QUEUE)
            or _text(params, "PandaSite", longest=_LONGEST_QUEUE)
            or "LOCAL"
        ),
        event_service=event_service,
        staged=not _flag(params, "inputPreStaging"),
    )
