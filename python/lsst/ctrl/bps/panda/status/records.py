"""Typed records of what iDDS and PanDA reply: requests, transforms, contents, tasks and jobs.

`~.replies` makes them of what the servers send.
"""

from __future__ import annotations

__all__ = [
    "ContentRecord",
    "DataId",
    "FileCounts",
    "JobRecord",
    "RequestRecord",
    "TaskRecord",
    "TransformRecord",
    "describe_data",
    "log_url",
    "render_count",
]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from .job_errors import JobError
from .vocabulary import CONTENT_STATUSES, JOB_STATUSES, ContentPhase, JobPhase

DataId = Mapping[str, str | int]
"""Values of the dimensions of a quantum, the required ones first."""

# Dimensions that tell nothing to people who know the others.
_IMPLIED = frozenset({"instrument", "skymap", "physical_filter", "day_obs", "group"})
_MOST_VALUES = 4

_LOG_NAMES = (("pilotlog.txt", "payload.stderr"), (".out", ".err"))


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A request of iDDS: one submitted run."""

    request_id: int
    name: str
    status: str
    """Name in iDDS's ``RequestStatus``; not to be believed alone when it is
    terminal, since the server can store one early."""

    substatus: str = ""
    """``ToCancel`` from an accepted abort on, for good."""

    username: str = ""
    """User as PanDA authenticated, at most 20 characters."""

    site: str = ""
    queue: str = ""
    campaign: str = ""
    campaign_scope: str = ""
    campaign_group: str = ""
    errors: str = ""
    """What iDDS has to say, for instance why it refused a command."""

    created_at: datetime | None = None
    updated_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class FileCounts:
    """How many files (one a job) of a task are in which state."""

    total: int = 0
    processed: int = 0
    failed: int = 0
    """Failed for good, and failed but to be tried again."""

    missing: int = 0
    new: int = 0
    activated: int = 0
    """In PanDA's hands; iDDS does not know whether they run."""

    preprocessing: int = 0
    processing: int = 0


@dataclass(frozen=True, slots=True)
class TransformRecord:
    """A transform of iDDS: one task after submission."""

    request_id: int
    transform_id: int
    name: str
    """Name of the work, ``<run>_<nn>_<label>_<chunk>``."""

    status: str
    processing_status: str = ""
    workload_id: int = 0
    """PanDA's task id, 0 before there is one."""

    outputs: FileCounts | None = None
    """Counts of the jobs' outputs; `None` until iDDS has mapped them."""

    inputs: FileCounts | None = None
    """Counts of the jobs' inputs: new as long as parents are not done."""

    updated_at: datetime | None = None
    label: str = ""
    """Label as the request carries it; empty where the name of the work holds it."""

    @property
    def complete(self) -> bool:
        """Whether the task has finished without a failure that is still known."""
        return self.status == "Finished" and (self.outputs is None or not self.outputs.failed)


@dataclass(frozen=True, slots=True)
class ContentRecord:
    """A job's output in iDDS, with what is known of its last PanDA job."""

    transform_id: int
    name: str
    """The job's pseudo-input."""

    status: str
    panda_id: int = 0
    """Last PanDA job, 0 if none is known."""

    job_status: str = ""
    errors: tuple[JobError, ...] = ()
    """Those with a code other than 0, by the precedence of their sources."""

    pilot_id: str = ""
    """``<URL of the pilot's log>|<batch type>|<pilot version>``."""

    @property
    def done(self) -> bool:
        """Whether the job succeeded."""
        return CONTENT_STATUSES.get(self.status) is ContentPhase.DONE


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """A task as PanDA describes it."""

    task_id: int
    name: str
    """Name of the work followed by ``_<request>_<transform>``."""

    status: str
    request_id: int = 0
    username: str = ""
    site: str = ""
    files: int = 0
    """Inputs, without the missing ones."""

    finished: int = 0
    failed: int = 0
    missing: int = 0
    dialog: str = ""
    """PanDA's remark, often an explanation of a wait."""

    max_attempts: int = 0
    """Attempts that a job may have, 0 if not known."""

    memory: int = 0
    """Memory that jobs ask for from now on, MB per core; 0 if not known."""

    walltime: int = 0
    """Run time by which a queue is chosen, s; 0 if none is asked for."""

    created_at: datetime | None = None
    modified_at: datetime | None = None

    @property
    def total(self) -> int:
        """Jobs of the task: PanDA leaves pruned ones out of ``nFiles``."""
        return self.files + self.missing


@dataclass(frozen=True, slots=True)
class JobRecord:
    """An attempt of a PanDA job: when, where and with what it ran, and how it ended."""

    panda_id: int
    task_id: int
    status: str
    """A key of `JOB_STATUSES`."""

    label: str = ""
    name: str = ""
    """The job's pseudo-input, without JEDI's ordinal."""

    attempt: int = 0
    """From 1."""

    errors: tuple[JobError, ...] = ()
    """All errors of an attempt that failed or was killed, the one that is told of it first."""

    site: str = ""
    """PanDA queue."""

    node: str = ""
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
    """``<URL of the pilot's log>|<batch type>|<pilot version>``."""

    job_name: str = ""
    """Name that PanDA gave it."""

    bps_name: str = ""
    """Name of the job in BPS; empty unless the plan of the run is at hand."""

    data: tuple[DataId, ...] = ()
    """Data IDs of its quanta; empty if they are not known."""

    @property
    def title(self) -> str:
        """The job for people: its name in BPS, pseudo-input and data IDs, as far as they are known."""
        more = "; ".join(filter(None, (self.name if self.bps_name else "", describe_data(self.data))))
        return f"{self.bps_name or self.name}{f' ({more})' if more else ''}"

    @property
    def error(self) -> JobError | None:
        """The error that is told of it; `None` if it has not failed."""
        return self.errors[0] if self.errors else None

    @property
    def open(self) -> bool:
        """Whether the attempt has not ended."""
        return self.waiting or self.running

    @property
    def waiting(self) -> bool:
        """Whether the attempt has not started."""
        return JOB_STATUSES.get(self.status) is JobPhase.WAITING

    @property
    def running(self) -> bool:
        """Whether the attempt runs, or its end is being booked."""
        return JOB_STATUSES.get(self.status) is JobPhase.RUNNING

    @property
    def failed(self) -> bool:
        """Whether the attempt failed."""
        return JOB_STATUSES.get(self.status) is JobPhase.FAILED

    @property
    def killed(self) -> bool:
        """Whether the attempt was cancelled."""
        return JOB_STATUSES.get(self.status) is JobPhase.KILLED

    @property
    def finished(self) -> bool:
        """Whether the attempt succeeded."""
        return JOB_STATUSES.get(self.status) is JobPhase.FINISHED

    @property
    def wall_seconds(self) -> float | None:
        """Run time, s; `None` unless it started and ended."""
        if self.started is None or self.ended is None:
            return None
        return max(0.0, (self.ended - self.started).total_seconds())

    @property
    def cpu_efficiency(self) -> float | None:
        """Processor time by cores and run time, 0 to about 1; `None` if not known."""
        wall = self.wall_seconds
        if not wall or not self.cpu_seconds:
            return None
        return self.cpu_seconds / wall / max(1, self.cores)


def describe_data(data: Sequence[DataId]) -> str:
    """Describe data IDs in one line, such as ``detector=0|1, visit=260315001, band=r``.

    Several values of a dimension have bars between them, of many the first and the last are given.
    Dimensions that tell little, such as the instrument, are left out unless there is no other.
    """
    values: dict[str, dict[str | int, None]] = {}
    for data_id in data:
        for dimension, value in data_id.items():
            values.setdefault(dimension, {})[value] = None
    told = [dimension for dimension in values if dimension not in _IMPLIED] or [*values]
    return ", ".join(f"{dimension}={_describe_values([*values[dimension]])}" for dimension in told)


def _describe_values(values: list[str | int]) -> str:
    values.sort(key=lambda value: (isinstance(value, str), value))
    if len(values) > _MOST_VALUES:
        return f"{values[0]} to {values[-1]} ({len(values)} values)"
    return "|".join(map(str, values))


def log_url(pilot_id: str) -> str:
    """Find the address of a payload's standard error in PanDA's pilot id,
    ``<URL of the pilot's log>|<batch type>|<version>``.

    It is empty before the pilot has uploaded anything.
    """
    url = pilot_id.partition("|")[0].strip()
    if "://" not in url and not url.startswith("/"):
        return ""
    for suffix, better in _LOG_NAMES:
        if url.endswith(suffix):
            return url[: -len(suffix)] + better
    return url


def render_count(count: int, noun: str) -> str:
    """Write a number of things, such as ``1 job`` or ``2 jobs``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
