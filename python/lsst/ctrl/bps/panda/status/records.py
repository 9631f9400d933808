"""Typed records of what iDDS and PanDA reply: plain, frozen values.

`~.records` makes them of replies.

One function for each reply turns decoded JSON into frozen records; after it
nobody indexes a nested dict.  A reply of another shape raises `ReplyError`
and is shown, cut; a field that decides nothing may be absent.
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
    "parse_contents",
    "parse_jobs",
    "parse_requests",
    "parse_tasks",
    "parse_transforms",
]

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..errors import ReplyError
from .fields import (
    CONTENT_STATUSES,
    PROCESSING_STATUSES,
    REQUEST_STATUSES,
    TRANSFORM_STATUSES,
    cut,
    date_of,
    integer_of,
    name_of,
    optional_integer,
    rows_of,
    text_of,
)


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


# Source, field of the code, field of the text: first as iDDS names them in
# contents_ext, then as PanDA does in a job.  The order decides which error of
# a job is told.
_CONTENT_SOURCES = (
    ("payload", "trans_exit_code", "exe_error_diag"),
    ("pilot", "pilot_error_code", "pilot_error_diag"),
    ("brokerage", "brokerage_error_code", "brokerage_error_diag"),
    ("data management", "ddm_error_code", "ddm_error_diag"),
    ("executor", "exe_error_code", "exe_error_diag"),
    ("dispatcher", "job_dispatcher_error_code", "job_dispatcher_error_diag"),
    ("supervisor", "sup_error_code", "sup_error_diag"),
    ("task buffer", "task_buffer_error_code", "task_buffer_error_diag"),
)
_JOB_SOURCES = (
    ("payload", "transExitCode", "exeErrorDiag"),
    ("pilot", "pilotErrorCode", "pilotErrorDiag"),
    ("brokerage", "brokerageErrorCode", "brokerageErrorDiag"),
    ("data management", "ddmErrorCode", "ddmErrorDiag"),
    ("executor", "exeErrorCode", "exeErrorDiag"),
    ("dispatcher", "jobDispatcherErrorCode", "jobDispatcherErrorDiag"),
    ("supervisor", "supErrorCode", "supErrorDiag"),
    ("task buffer", "taskBufferErrorCode", "taskBufferErrorDiag"),
)
_NO_COMMAND = frozenset({"", "NoneCommand"})


def parse_requests(value: Any) -> tuple[RequestRecord, ...]:
    """Read the reply of ``get_requests``, with or without detail.

    Parameters
    ----------
    value : any
        Decoded reply: a list with a row for each request, or for each
        transform of it.

    Returns
    -------
    requests : `tuple` [`RequestRecord`, ...]
        One for each request, in the order of the reply; empty if the server
        knows none.

    Raises
    ------
    ReplyError
        Raised if the reply has another shape.
    """
    requests: dict[int, RequestRecord] = {}
    for row in rows_of(value, "requests"):
        request_id = integer_of(row, "request_id")
        if request_id not in requests:
            requests[request_id] = _request_from(row, request_id)
    return tuple(requests.values())


def _request_from(row: Mapping[str, Any], request_id: int) -> RequestRecord:
    if row.get("status") is None:
        raise ReplyError(f"Request {request_id} has no status", reply=cut(row))
    command = name_of(row.get("command"))
    return RequestRecord(
        request_id=request_id,
        name=text_of(row.get("name")),
        status=name_of(row["status"], REQUEST_STATUSES),
        substatus=name_of(row.get("substatus"), REQUEST_STATUSES),
        username=text_of(row.get("username")),
        site=text_of(row.get("site")),
        cloud=text_of(row.get("cloud")),
        queue=text_of(row.get("queue")),
        campaign=text_of(row.get("campaign")),
        campaign_scope=text_of(row.get("campaign_scope")),
        campaign_group=text_of(row.get("campaign_group")),
        campaign_tag=text_of(row.get("campaign_tag")),
        errors=_errors_text(row.get("errors")),
        command="" if command in _NO_COMMAND else command,
        created_at=date_of(row.get("created_at")),
        updated_at=date_of(row.get("updated_at")),
        expired_at=date_of(row.get("expired_at")),
    )


def _errors_text(value: Any) -> str:
    """Give the text of iDDS's ``errors``, an object with several texts."""
    if isinstance(value, Mapping):
        return cut("; ".join(text for text in map(text_of, value.values()) if text))
    return text_of(value)


def parse_transforms(value: Any) -> tuple[TransformRecord, ...]:
    """Read the transforms in the reply of ``get_requests`` with detail.

    Parameters
    ----------
    value : any
        Decoded reply.  A request without transforms yet has one row whose
        ``transform_id`` is null.

    Returns
    -------
    transforms : `tuple` [`TransformRecord`, ...]
        One for each transform, by its id.  The server joins tables, so that
        a transform may have several rows: the last processing and the
        largest output collection are taken.

    Raises
    ------
    ReplyError
        Raised if the reply has another shape.
    """
    best: dict[int, tuple[int, int, Mapping[str, Any]]] = {}
    for row in rows_of(value, "transforms"):
        transform_id = optional_integer(row.get("transform_id"), "transform_id")
        if transform_id is None:
            continue
        processing = optional_integer(row.get("processing_id"), "processing_id") or 0
        files = optional_integer(row.get("output_total_files"), "output_total_files") or 0
        old = best.get(transform_id)
        if old is None or (processing, files) > old[:2]:
            best[transform_id] = (processing, files, row)
    return tuple(_transform_from(best[transform_id][2], transform_id) for transform_id in sorted(best))


def _transform_from(row: Mapping[str, Any], transform_id: int) -> TransformRecord:
    workload_id = optional_integer(row.get("transform_workload_id"), "transform_workload_id")
    if not workload_id:
        workload_id = optional_integer(row.get("processing_workload_id"), "processing_workload_id")
    return TransformRecord(
        request_id=integer_of(row, "request_id"),
        transform_id=transform_id,
        name=text_of(row.get("transform_name")),
        status=name_of(row.get("transform_status"), TRANSFORM_STATUSES),
        processing_status=name_of(row.get("processing_status"), PROCESSING_STATUSES),
        workload_id=workload_id or 0,
        outputs=_counts_from(row, "output"),
        inputs=_counts_from(row, "input"),
        updated_at=date_of(row.get("transform_updated_at")),
    )


def _counts_from(row: Mapping[str, Any], side: str) -> FileCounts | None:
    total = optional_integer(row.get(f"{side}_total_files"), f"{side}_total_files")
    if total is None:
        return None

    def count(kind: str) -> int:
        key = f"{side}_{kind}_files"
        return max(0, optional_integer(row.get(key), key) or 0)

    return FileCounts(
        total=max(0, total),
        processed=count("processed"),
        failed=count("failed"),
        missing=count("missing"),
        new=count("new"),
        activated=count("activated"),
        preprocessing=count("preprocessing"),
        processing=count("processing"),
    )


def parse_contents(value: Any) -> dict[int, tuple[ContentRecord, ...]]:
    """Read the reply of ``get_contents_output_ext``.

    Parameters
    ----------
    value : any
        Decoded reply: an object with a list of rows for each transform id,
        or a list of rows.

    Returns
    -------
    contents : `dict` [`int`, `tuple` [`ContentRecord`, ...]]
        Rows by transform id.

    Raises
    ------
    ReplyError
        Raised if the reply has another shape.
    """
    groups = value.values() if isinstance(value, Mapping) else (value,)
    found: dict[int, list[ContentRecord]] = {}
    for group in groups:
        for row in rows_of(group, "contents"):
            record = _content_from(row)
            found.setdefault(record.transform_id, []).append(record)
    return {transform_id: tuple(rows) for transform_id, rows in found.items()}


def _content_from(row: Mapping[str, Any]) -> ContentRecord:
    if row.get("status") is None:
        raise ReplyError("A content has no status", reply=cut(row))
    panda_id = row.get("panda_id")
    if panda_id is None and isinstance(metadata := row.get("content_metadata"), Mapping):
        panda_id = metadata.get("panda_id")
    return ContentRecord(
        transform_id=integer_of(row, "transform_id"),
        name=text_of(row.get("name")),
        status=name_of(row["status"], CONTENT_STATUSES),
        panda_id=optional_integer(panda_id, "panda_id") or 0,
        job_status=text_of(row.get("job_status")),
        errors=_errors_of(row, _CONTENT_SOURCES),
        pilot_id=text_of(row.get("pilot_id")),
        attempt=optional_integer(row.get("attempt_nr"), "attempt_nr") or 0,
        max_rss=optional_integer(row.get("max_rss"), "max_rss") or 0,
        site=text_of(row.get("computing_site")),
    )


def _errors_of(row: Mapping[str, Any], sources: tuple[tuple[str, str, str], ...]) -> tuple[JobError, ...]:
    errors = [
        _error_from(source, code, text_of(row.get(text_key)))
        for source, code_key, text_key in sources
        if (code := row.get(code_key)) and code != "0"
    ]
    return tuple(error for error in errors if error.code) if errors else ()


def _error_from(source: str, code: Any, text: str) -> JobError:
    """Make an error of a code that may be a text; one that is no number is
    told in the text, with code -1, since it says at least that there was one.
    """
    try:
        return JobError(source, optional_integer(code, "code") or 0, text)
    except ReplyError:
        return JobError(source, -1, f"{cut(code, 60)} {text}".strip())


def parse_tasks(value: Any) -> tuple[TaskRecord, ...]:
    """Read the reply of PanDA's ``task/get_tasks_detailed_info_since``.

    Parameters
    ----------
    value : any
        The reply's ``data``: a list of tasks.

    Returns
    -------
    tasks : `tuple` [`TaskRecord`, ...]
        Tasks in the order of the reply.

    Raises
    ------
    ReplyError
        Raised if the reply has another shape.
    """
    return tuple(_task_from(row) for row in rows_of(value, "tasks"))


def _task_from(row: Mapping[str, Any]) -> TaskRecord:
    def count(key: str) -> int:
        return max(0, optional_integer(row.get(key), key) or 0)

    return TaskRecord(
        task_id=integer_of(row, "jediTaskID"),
        name=text_of(row.get("taskName")),
        status=text_of(row.get("status")),
        request_id=count("reqID"),
        username=text_of(row.get("userName")),
        site=text_of(row.get("site")),
        files=count("nFiles"),
        finished=count("nFilesFinished"),
        failed=count("nFilesFailed"),
        missing=count("nFilesMissing"),
        dialog=text_of(row.get("errorDialog")),
        created_at=date_of(row.get("creationDate")),
        modified_at=date_of(row.get("modificationTime")),
    )


def parse_jobs(value: Any) -> tuple[JobRecord, ...]:
    """Read the reply of PanDA's ``task/get_job_descriptions`` or
    ``job/get_description``.

    Parameters
    ----------
    value : any
        The reply's ``data``: a list of jobs; null stands for an unknown one.

    Returns
    -------
    jobs : `tuple` [`JobRecord`, ...]
        Attempts in the order of the reply, unknown ones left out.

    Raises
    ------
    ReplyError
        Raised if the reply has another shape.
    """
    if isinstance(value, list):
        value = [row for row in value if row is not None]
    return tuple(_job_from(row) for row in rows_of(value, "jobs"))


def _job_from(row: Mapping[str, Any]) -> JobRecord:
    def number(key: str) -> int:
        return optional_integer(row.get(key), key) or 0

    files = row.get("Files") or ()
    return JobRecord(
        panda_id=integer_of(row, "PandaID"),
        task_id=number("jediTaskID"),
        status=text_of(row.get("jobStatus")),
        name=text_of(row.get("jobName")),
        attempt=number("attemptNr"),
        max_attempt=number("maxAttempt"),
        errors=_errors_of(row, _JOB_SOURCES),
        pilot_id=text_of(row.get("pilotID")),
        site=text_of(row.get("computingSite")),
        max_rss=number("maxRSS"),
        inputs=tuple(
            text_of(file.get("lfn"))
            for file in rows_of(files, "files")
            if file.get("type") in ("input", "pseudo_input")
        ),
    )
