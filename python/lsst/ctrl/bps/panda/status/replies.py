"""Read replies: one function for each turns the decoded JSON of iDDS or PanDA into records, and nobody
indexes a nested dict after that.

A reply of another shape raises `ReplyError` and is shown, cut; a field that decides nothing may be absent.
"""

from __future__ import annotations

__all__ = [
    "render_short",
    "date_of",
    "name_of",
    "optional_integer",
    "parse_contents",
    "parse_jobs",
    "parse_requests",
    "parse_tasks",
    "parse_transforms",
    "text_of",
]

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any

from ..errors import ReplyError
from ..plan.naming import label_of_collection, name_of_inputs
from .job_errors import JobError, sort_errors
from .records import (
    ContentRecord,
    FileCounts,
    JobRecord,
    RequestRecord,
    TaskRecord,
    TransformRecord,
    log_url,
)
from .vocabulary import (
    CONTENT_STATUSES,
    JOB_STATUSES,
    PROCESSING_STATUSES,
    REQUEST_STATUSES,
    SOURCES,
    TRANSFORM_STATUSES,
    TRANSLATED_CODES,
    JobPhase,
    panda_field,
)

# The position of a name is its number in iDDS.
_REQUEST_NAMES = tuple(REQUEST_STATUSES)
_TRANSFORM_NAMES = tuple(TRANSFORM_STATUSES)
_CONTENT_NAMES = tuple(CONTENT_STATUSES)
# Source, field of the code, field of the text.
_CONTENT_FIELDS = tuple((source, code, text) for source, (code, text) in SOURCES.items())
_JOB_FIELDS = tuple((source, panda_field(code), panda_field(text)) for source, code, text in _CONTENT_FIELDS)


def parse_requests(value: Any) -> tuple[RequestRecord, ...]:
    """Read the reply of ``get_requests``, with or without detail: a list with a
    row for each request, or for each transform of it.
    """
    requests: dict[int, RequestRecord] = {}
    for row in rows_of(value, "requests"):
        request_id = integer_of(row, "request_id")
        if request_id not in requests:
            requests[request_id] = _request_from(row, request_id)
    return tuple(requests.values())


def _request_from(row: Mapping[str, Any], request_id: int) -> RequestRecord:
    if row.get("status") is None:
        raise ReplyError(f"Request {request_id} has no status", reply=render_short(row))
    return RequestRecord(
        request_id=request_id,
        name=text_of(row.get("name")),
        status=name_of(row["status"], _REQUEST_NAMES),
        substatus=name_of(row.get("substatus"), _REQUEST_NAMES),
        username=text_of(row.get("username")),
        site=text_of(row.get("site")),
        queue=text_of(row.get("queue")),
        campaign=text_of(row.get("campaign")),
        campaign_scope=text_of(row.get("campaign_scope")),
        campaign_group=text_of(row.get("campaign_group")),
        errors=_errors_text(row.get("errors")),
        created_at=date_of(row.get("created_at")),
        updated_at=date_of(row.get("updated_at")),
    )


def _errors_text(value: Any) -> str:
    """Return the text of iDDS's ``errors``, an object with several texts."""
    if isinstance(value, Mapping):
        return render_short("; ".join(text for text in map(text_of, value.values()) if text))
    return text_of(value)


def parse_transforms(value: Any) -> tuple[TransformRecord, ...]:
    """Read the transforms in the reply of ``get_requests`` with detail, by id.

    A request without transforms yet has one row whose ``transform_id`` is null. The server joins tables, so
    that a transform may have several rows: the last processing and the largest output collection are taken.
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
        status=name_of(row.get("transform_status"), _TRANSFORM_NAMES),
        processing_status=name_of(row.get("processing_status"), PROCESSING_STATUSES),
        workload_id=workload_id or 0,
        outputs=_counts_from(row, "output"),
        inputs=_counts_from(row, "input"),
        updated_at=date_of(row.get("transform_updated_at")),
        label=label_of_collection(text_of(row.get("input_coll_name"))),
    )


def _counts_from(row: Mapping[str, Any], side: str) -> FileCounts | None:
    total = optional_integer(row.get(f"{side}_total_files"), f"{side}_total_files")
    if total is None:
        return None
    kinds = ("processed", "failed", "missing", "new", "activated", "preprocessing", "processing")
    return FileCounts(max(0, total), **{kind: _count(row, f"{side}_{kind}_files") for kind in kinds})


def parse_contents(value: Any) -> dict[int, tuple[ContentRecord, ...]]:
    """Read the reply of ``get_contents_output_ext``, by transform id: an object
    with a list of rows for each transform id, or a list of rows.
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
        raise ReplyError("A content has no status", reply=render_short(row))
    panda_id = row.get("panda_id")
    if panda_id is None and isinstance(metadata := row.get("content_metadata"), Mapping):
        panda_id = metadata.get("panda_id")
    return ContentRecord(
        transform_id=integer_of(row, "transform_id"),
        name=text_of(row.get("name")),
        status=name_of(row["status"], _CONTENT_NAMES),
        panda_id=optional_integer(panda_id, "panda_id") or 0,
        job_status=text_of(row.get("job_status")),
        errors=_errors_of(row, _CONTENT_FIELDS),
        pilot_id=text_of(row.get("pilot_id")),
    )


def _errors_of(row: Mapping[str, Any], sources: tuple[tuple[str, str, str], ...]) -> tuple[JobError, ...]:
    errors = [
        _error_from(source, code, text_of(row.get(text_key)))
        for source, code_key, text_key in sources
        if (code := row.get(code_key)) and code != "0"
    ]
    return _without_translation(tuple(error for error in errors if error.code)) if errors else ()


def _without_translation(errors: tuple[JobError, ...]) -> tuple[JobError, ...]:
    """Leave out a pilot's error that only stands for the payload's exit code; what the pilot quotes of the
    payload's own words, behind a colon, is the text of the payload's error.
    """
    if len(errors) < 2 or errors[0].source != "payload" or errors[1].source != "pilot":
        return errors
    payload, pilot, *others = errors
    if TRANSLATED_CODES.get(payload.code) != pilot.code:
        return errors
    words = payload.text or pilot.text.partition(":")[2].strip() or f"PanDA shows it as pilot {pilot.code}"
    return (JobError(payload.source, payload.code, words), *others)


def _error_from(source: str, code: Any, text: str) -> JobError:
    """Make an error of a code that may be a text; one that is no number is
    told in the text, with code -1, since it says at least that there was one.
    """
    try:
        return JobError(source, optional_integer(code, "code") or 0, text)
    except ReplyError:
        return JobError(source, -1, f"{render_short(code, 60)} {text}".strip())


def parse_tasks(value: Any) -> tuple[TaskRecord, ...]:
    """Read the reply of PanDA's ``task/get_tasks_detailed_info_since``."""
    return tuple(_task_from(row) for row in rows_of(value, "tasks"))


def _task_from(row: Mapping[str, Any]) -> TaskRecord:
    count = partial(_count, row)
    given = row.get("raw_task_params")
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
        max_attempts=_count(given, "maxAttempt") if isinstance(given, Mapping) else 0,
        memory=count("ramCount"),
        walltime=count("walltime"),
        created_at=date_of(row.get("creationDate")),
        modified_at=date_of(row.get("modificationTime")),
    )


def parse_jobs(value: Any, labels: Mapping[int, str] | None = None) -> tuple[JobRecord, ...]:
    """Read the reply of PanDA's ``task/get_job_descriptions`` or ``job/get_description``: attempts in the
    order of the reply, with the labels of their tasks.

    Null stands for a job that PanDA does not know, and is left out.
    """
    if isinstance(value, list):
        value = [row for row in value if row is not None]
    return tuple(_job_from(row, labels or {}) for row in rows_of(value, "jobs"))


def _job_from(row: Mapping[str, Any], labels: Mapping[int, str]) -> JobRecord:
    number = partial(_count, row)
    task_id = number("jediTaskID")
    status = text_of(row.get("jobStatus"))
    job_name = text_of(row.get("jobName"))
    inputs = [
        text_of(file.get("lfn"))
        for file in rows_of(row.get("Files") or (), "files")
        if file.get("type") in ("input", "pseudo_input")
    ]
    pilot_id = text_of(row.get("pilotID"))
    return JobRecord(
        panda_id=integer_of(row, "PandaID"),
        task_id=task_id,
        status=status,
        label=labels.get(task_id, ""),
        name=name_of_inputs(inputs) or job_name,
        attempt=number("attemptNr"),
        errors=_told_errors(row, status),
        site=text_of(row.get("computingSite")),
        node=text_of(row.get("modificationHost")),
        created=date_of(row.get("creationTime")),
        started=date_of(row.get("startTime")),
        ended=date_of(row.get("endTime")),
        cores=number("actualCoreCount") or number("coreCount") or 1,
        cpu_seconds=number("cpuConsumptionTime"),
        memory=number("minRamCount"),
        max_rss=number("maxRSS"),
        walltime_limit=number("maxWalltime"),
        log_url=log_url(pilot_id),
        pilot_id=pilot_id,
        job_name=job_name,
    )


def _told_errors(row: Mapping[str, Any], status: str) -> tuple[JobError, ...]:
    """Return the errors of an attempt that did not succeed, the one that is told of it first."""
    phase = JOB_STATUSES.get(status)
    if phase not in (JobPhase.FAILED, JobPhase.KILLED):
        return ()
    errors = _errors_of(row, _JOB_FIELDS)
    return sort_errors(errors) if errors or phase is JobPhase.FAILED else ()


def render_short(value: Any, limit: int = 300) -> str:
    """Render a value as one short line, for a message; three dots follow what was
    cut at ``limit`` characters.
    """
    if isinstance(value, str) and value.strip():
        text = value
    else:
        try:
            text = json.dumps(value, default=str)
        except (TypeError, ValueError, RecursionError):
            text = repr(value)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit] + "..."


def rows_of(value: Any, what: str) -> Iterator[Mapping[str, Any]]:
    """Go through a reply that must be a list of objects; ``what`` names them in the message if it is not."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ReplyError(f"The reply is not a list of {what}", reply=render_short(value))
    for row in value:
        if not isinstance(row, Mapping):
            raise ReplyError(
                f"The list of {what} holds something that is not an object", reply=render_short(row)
            )
        yield row


def name_of(value: Any, names: Sequence[str] = ()) -> str:
    """Read an enum: an object as iDDS writes it (``{"attributes": {"_name_":
    ...}}``), a name with or without its class, or a number.

    `None` gives an empty name; a number without a name its digits, so that it
    matches nothing and is still shown.
    """
    if isinstance(value, Mapping):
        attributes = value.get("attributes")
        name = attributes.get("_name_") if isinstance(attributes, Mapping) else None
        if isinstance(name, str):
            return name
    elif isinstance(value, str):
        return value.rpartition(".")[2]
    elif value is None:
        return ""
    elif isinstance(value, int) and not isinstance(value, bool):
        return names[value] if 0 <= value < len(names) else str(value)
    raise ReplyError("A status is not understood", reply=render_short(value))


def optional_integer(value: Any, what: str) -> int | None:
    """Read a number that may be absent (`None` or an empty text); PanDA writes exit codes as texts.

    Anything else is a `ReplyError` that names the field ``what``.
    """
    if type(value) is int:
        return value
    if value is None or value == "":
        return None
    if isinstance(value, float | str):
        try:
            return int(float(value))
        except (ValueError, OverflowError):
            pass
    raise ReplyError(f"The field {what} is not a number", reply=render_short(value))


def integer_of(row: Mapping[str, Any], key: str) -> int:
    """Read a number that must be there; the error shows the whole row."""
    number = optional_integer(row.get(key), key)
    if number is None:
        raise ReplyError(f"The field {key} is missing", reply=render_short(row))
    return number


def _count(row: Mapping[str, Any], key: str) -> int:
    """Read a number that may be absent; the pilot gives -1 for figures that it could not read."""
    return max(0, optional_integer(row.get(key), key) or 0)


def text_of(value: Any) -> str:
    """Read a text; `None` gives an empty one, and anything else is rendered."""
    if isinstance(value, str):
        return value
    return "" if value is None else render_short(value)


def date_of(value: Any) -> datetime | None:
    """Read a date as iDDS writes it (``Fri, 20 Nov 2026 08:49:34 UTC``), as
    PanDA does (``{"__datetime__": "..."}``), or in ISO format.

    The result has a time zone, UTC where none is given; it is `None` if the
    date is not understood, since nothing is decided by a date alone.
    """
    if isinstance(value, Mapping):
        value = value.get("__datetime__")
    if not isinstance(value, str):
        return None
    try:
        date = parsedate_to_datetime(value) if "," in value else datetime.fromisoformat(value)
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
