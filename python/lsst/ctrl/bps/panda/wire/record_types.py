"""Records of what iDDS and PanDA say about a run: plain, frozen values.

`~.records` makes them of replies.
"""

from __future__ import annotations

__all__ = [
    "ContentRecord",
    "FileCounts",
    "JobError",
    "JobRecord",
    "RequestRecord",
    "TaskRecord",
    "TransformRecord",
]

from dataclasses import dataclass
from datetime import datetime


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
    cloud: str = ""
    queue: str = ""
    campaign: str = ""
    campaign_scope: str = ""
    campaign_group: str = ""
    campaign_tag: str = ""
    errors: str = ""
    """What iDDS has to say, for instance why it refused a command."""

    command: str = ""
    """Last command that was refused, else empty."""

    created_at: datetime | None = None
    updated_at: datetime | None = None
    expired_at: datetime | None = None


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


@dataclass(frozen=True, slots=True)
class JobError:
    """One error of a job, as one part of the system reported it."""

    source: str
    """Who says so: payload, pilot, brokerage, data management, executor,
    dispatcher, supervisor or task buffer."""

    code: int
    text: str = ""


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
    """Those with a code other than 0, in the order of sources that decides
    which one is told."""

    pilot_id: str = ""
    """``<URL of the pilot's log>|<batch type>|<pilot version>``."""

    attempt: int = 0
    max_rss: int = 0
    """Largest resident memory, kB; 0 if not known."""

    site: str = ""


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

    created_at: datetime | None = None
    modified_at: datetime | None = None

    @property
    def total(self) -> int:
        """Jobs of the task: PanDA leaves pruned ones out of ``nFiles``."""
        return self.files + self.missing


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A PanDA job: one attempt."""

    panda_id: int
    task_id: int
    status: str
    name: str = ""
    attempt: int = 0
    max_attempt: int = 0
    errors: tuple[JobError, ...] = ()
    pilot_id: str = ""
    site: str = ""
    max_rss: int = 0
    """Largest resident memory, kB; 0 if not known."""

    inputs: tuple[str, ...] = ()
    """Pseudo-inputs, with JEDI's ordinal before the first ``:``."""
