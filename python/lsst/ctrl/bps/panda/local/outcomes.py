"""What a pilot reports of a payload that has ended, and what PanDA notes of a
job that did not end by itself: codes and texts as PanDA has them.

Pilot codes are those of pilot 3 (``pilot/common/errorcodes.py``), task buffer
and job dispatcher codes those of panda-server (``ErrorCode.py`` of
``taskbuffer`` and ``jobdispatcher``).
"""

from __future__ import annotations

__all__ = [
    "KILLED_BY_SERVER",
    "MEMORY_CODES",
    "OUT_OF_MEMORY",
    "OUT_OF_TIME",
    "PAYLOAD_FAILED",
    "EventOutcome",
    "Outcome",
    "PilotError",
    "cancelled_detail",
    "lost_detail",
    "outcome_of",
]

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class PilotError:
    """Code and text that a pilot reports."""

    code: int
    text: str


PAYLOAD_FAILED = PilotError(1305, "Failed to execute payload")
OUT_OF_MEMORY = PilotError(1212, "Payload ran out of memory")
OUT_OF_TIME = PilotError(1213, "Reached batch system time limit")
KILLED_BY_SERVER = PilotError(1144, "This job was killed by panda server")
SET_UP_FAILED = PilotError(1110, "Failed during payload setup")

MEMORY_CODES = frozenset({1212, 1223, 1235})
"""Pilot codes after which PanDA raises the memory of the next attempt."""

_TASK_BUFFER_KILL = 100
_DISPATCHER_WATCHER = 100


@dataclass(frozen=True, slots=True)
class EventOutcome:
    """How one payload of an event service job ended."""

    number: int
    """From 1."""

    exit_code: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a PanDA job ended."""

    status: str
    """``finished``, ``failed`` or ``cancelled``."""

    sub_status: str | None = None
    """``fg_done`` or ``fg_partial`` of an event service job."""

    detail: Mapping[str, Any] = field(default_factory=dict)
    """Fields of PanDA's job record."""

    events: tuple[EventOutcome, ...] = ()

    @property
    def pilot_error_code(self) -> int:
        """Code that the pilot reported, 0 if none."""
        return int(self.detail.get("pilotErrorCode") or 0)


def outcome_of(
    exit_code: int,
    *,
    error: PilotError | None = None,
    events: tuple[EventOutcome, ...] = (),
    detail: Mapping[str, Any] | None = None,
) -> Outcome:
    """Make the report of a payload that has ended.

    Parameters
    ----------
    exit_code : `int`
        Of the payload; of an event service job that of the first payload
        that failed.
    error : `PilotError`, optional
        Why the pilot ended the payload, if it did.
    events : `tuple` [`EventOutcome`], optional
        Payloads of an event service job.
    detail : `~collections.abc.Mapping`, optional
        Further fields of the job record (memory, log).
    """
    fields = dict(detail or {})
    fields["transExitCode"] = str(exit_code)
    good = [event for event in events if event.exit_code == 0]
    if error is None and exit_code == 0:
        return Outcome("finished", "fg_done" if events else None, fields, events)
    reported = error or PAYLOAD_FAILED
    fields["pilotErrorCode"] = reported.code
    fields["pilotErrorDiag"] = reported.text
    if good:
        # PanDA counts the job as finished when some of its events are.
        return Outcome("finished", "fg_partial", fields, events)
    return Outcome("failed", None, fields, events)


def lost_detail(last_seen: str) -> dict[str, Any]:
    """Tell the fields of a job whose pilot was not heard of any more."""
    return {
        "jobDispatcherErrorCode": _DISPATCHER_WATCHER,
        "jobDispatcherErrorDiag": f"lost heartbeat : {last_seen}",
    }


def cancelled_detail(user: str) -> dict[str, Any]:
    """Tell the fields of a job that was killed."""
    return {"taskBufferErrorCode": _TASK_BUFFER_KILL, "taskBufferErrorDiag": f"kill by {user}"}
