"""PanDA jobs in detail: when, where and with what they ran, and how they
ended.  One record for each attempt of each job.
"""

from __future__ import annotations

__all__ = ["JobDetail", "number_of", "parse_job_details", "parse_job_name"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .failures import choose_error, log_url
from .fields import date_of, optional_integer, rows_of, text_of
from .records import JobError, parse_jobs

_FAILED = frozenset({"failed"})
_KILLED = frozenset({"cancelled", "closed"})
_FINISHED = frozenset({"finished"})
_RUNNING = frozenset({"running", "starting", "holding", "transferring", "merging"})
# The pilot gives -1 for figures that it could not read.
_LEAST = 0


@dataclass(frozen=True, slots=True)
class JobDetail:
    """An attempt of a job."""

    panda_id: int
    task_id: int
    label: str
    name: str
    """The job's pseudo-input, without JEDI's ordinal."""

    status: str
    """As PanDA has it."""

    attempt: int = 0
    """From 1."""

    errors: tuple[JobError, ...] = ()
    """All errors, the one that is told of it first."""

    site: str = ""
    """PanDA queue."""

    node: str = ""
    """Worker node."""

    created: datetime | None = None
    started: datetime | None = None
    ended: datetime | None = None
    cores: int = 1
    cpu_seconds: int = 0
    """Processor time of all cores, s; 0 if not known."""

    memory: int = 0
    """Memory that was asked for, whole job, MB; 0 if not known."""

    max_rss: int = 0
    """Largest resident memory, kB; 0 if not known."""

    walltime_limit: int = 0
    """Run time that was asked for, s; 0 if not known."""

    log_url: str = ""
    """Where the payload's standard error is; empty before there is one."""

    pilot_id: str = ""
    """PanDA's field, ``<URL of the pilot's log>|<batch type>|<version>``."""

    job_name: str = ""
    """Name that PanDA gave it."""

    @property
    def error(self) -> JobError | None:
        """The error that is told of it; `None` if it has not failed."""
        return self.errors[0] if self.errors else None

    @property
    def failed(self) -> bool:
        """Whether the attempt failed."""
        return self.status in _FAILED

    @property
    def killed(self) -> bool:
        """Whether the attempt was cancelled."""
        return self.status in _KILLED

    @property
    def finished(self) -> bool:
        """Whether the attempt succeeded."""
        return self.status in _FINISHED

    @property
    def running(self) -> bool:
        """Whether the attempt is with a worker."""
        return self.status in _RUNNING

    @property
    def wall_seconds(self) -> float | None:
        """Run time, s; `None` unless it started and ended."""
        if self.started is None or self.ended is None:
            return None
        return max(0.0, (self.ended - self.started).total_seconds())

    @property
    def cpu_efficiency(self) -> float | None:
        """Processor time by cores and run time, 0 to about 1; `None` if not
        known.
        """
        wall = self.wall_seconds
        if not wall or not self.cpu_seconds:
            return None
        return self.cpu_seconds / wall / max(1, self.cores)


def number_of(count: int, noun: str) -> str:
    """Write a number of things, such as ``1 job`` or ``2 jobs``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def parse_job_name(inputs: Sequence[str], default: str) -> str:
    """Name a job by its pseudo-input.

    Parameters
    ----------
    inputs : `~collections.abc.Sequence` [`str`]
        As JEDI writes them, ``000012:<pseudo-input>``.
    default : `str`
        Name of a job without input.

    Returns
    -------
    name : `str`
        The pseudo-input; of a job with several the first one, and how many
        more there are.
    """
    if not inputs:
        return default
    ordinal, colon, rest = inputs[0].partition(":")
    name = rest if colon and ordinal.isdecimal() else inputs[0]
    return f"{name} and {len(inputs) - 1} more" if len(inputs) > 1 else name


def parse_job_details(value: Any, labels: Mapping[int, str] | None = None) -> tuple[JobDetail, ...]:
    """Read the reply of PanDA's ``task/get_job_descriptions``.

    Parameters
    ----------
    value : any
        The reply's ``data``: a list of jobs; null stands for an unknown one.
    labels : `~collections.abc.Mapping` [`int`, `str`], optional
        Label of each PanDA task.

    Returns
    -------
    jobs : `tuple` [`JobDetail`, ...]
        Attempts in the order of the reply.

    Raises
    ------
    ReplyError
        Raised if the reply has another shape.
    """
    if isinstance(value, list):
        value = [row for row in value if row is not None]
    return tuple(_detail_from(row, labels or {}) for row in rows_of(value, "jobs"))


def _detail_from(row: Mapping[str, Any], labels: Mapping[int, str]) -> JobDetail:
    (record,) = parse_jobs([row])

    def number(key: str) -> int:
        return max(_LEAST, optional_integer(row.get(key), key) or 0)

    errors = record.errors
    if record.status in _FAILED or (errors and record.status in _KILLED):
        first = choose_error(errors)
        errors = (first, *(error for error in errors if error.source != first.source))
    return JobDetail(
        panda_id=record.panda_id,
        task_id=record.task_id,
        label=labels.get(record.task_id, ""),
        name=parse_job_name(record.inputs, record.name),
        status=record.status,
        attempt=record.attempt,
        errors=errors if record.status in _FAILED | _KILLED else (),
        site=record.site,
        node=text_of(row.get("modificationHost")),
        created=date_of(row.get("creationTime")),
        started=date_of(row.get("startTime")),
        ended=date_of(row.get("endTime")),
        cores=number("actualCoreCount") or number("coreCount") or 1,
        cpu_seconds=number("cpuConsumptionTime"),
        memory=number("minRamCount"),
        max_rss=max(_LEAST, record.max_rss),
        walltime_limit=number("maxWalltime"),
        log_url=log_url(record.pilot_id),
        pilot_id=record.pilot_id,
        job_name=record.name,
    )
