"""What a pilot is told and what it reports: the order for one PanDA job, and how a payload ended, in PanDA's
codes and texts.

Pilot codes are those of pilot 3 (``pilot/common/errorcodes.py``), task buffer
and job dispatcher codes those of panda-server (``ErrorCode.py`` of
``taskbuffer`` and ``jobdispatcher``).
"""

from __future__ import annotations

__all__ = [
    "EventOutcome",
    "JobOrder",
    "KILLED_BY_SERVER",
    "MEMORY_CODES",
    "OUT_OF_MEMORY",
    "OUT_OF_TIME",
    "Outcome",
    "PAYLOAD_FAILED",
    "PilotError",
    "cancelled_detail",
    "lost_detail",
    "outcome_of",
    "payload_commands",
]

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class JobOrder:
    """A PanDA job to run."""

    panda_id: int
    task_id: int
    task_name: str
    request_id: int | None
    attempt: int
    """Attempt number as PanDA counts, from 1."""

    template: str
    """Command with ``${IN/L}``."""

    pseudo_input: str
    """The job's input without JEDI's ``000012:``."""

    event_count: int
    """Payloads of an event service job, 0 for an ordinary job."""

    done_events: frozenset[int]
    """Payloads (from 1) that an earlier attempt has finished."""

    queue: str
    cores: int
    memory: int
    """Limit of resident memory of the whole job, MB; 0 means none."""

    walltime: int
    """Limit of the run time, seconds; 0 means none."""


def payload_commands(order: JobOrder) -> list[tuple[int, str]]:
    """List the command lines of a job.

    Returns
    -------
    commands : `list` [`tuple` [`int`, `str`]]
        Number of the payload (0 for an ordinary job, from 1 for event
        service) and command line.

    Notes
    -----
    PanDA puts the text in place unquoted.  With event service the pilot runs
    the payload once an event, with ``^`` and the event's number behind the
    name of the input.
    """
    if not order.event_count:
        return [(0, order.template.replace("${IN/L}", order.pseudo_input))]
    return [
        (number, order.template.replace("${IN/L}", f"{order.pseudo_input}^{number}"))
        for number in range(1, order.event_count + 1)
        if number not in order.done_events
    ]


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
