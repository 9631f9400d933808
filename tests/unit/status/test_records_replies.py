"""Parsing of replies: shapes of enums, dates and numbers, and what is shown
when a reply is not understood."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from idds.common import constants

from lsst.ctrl.bps.panda.errors import ReplyError
from lsst.ctrl.bps.panda.status.job_errors import JobError
from lsst.ctrl.bps.panda.status.records import FileCounts
from lsst.ctrl.bps.panda.status.replies import (
    date_of,
    name_of,
    optional_integer,
    parse_contents,
    parse_jobs,
    parse_requests,
    parse_tasks,
    parse_transforms,
    render_short,
)
from lsst.ctrl.bps.panda.status.vocabulary import (
    CONTENT_STATUSES,
    PROCESSING_STATUSES,
    REQUEST_STATUSES,
    TRANSFORM_STATUSES,
)

AT = datetime(2026, 11, 20, 8, 49, 34, tzinfo=UTC)


def enum(name: str, number: int = 0) -> dict[str, object]:
    return {"class": "X", "module": "idds", "attributes": {"_value_": number, "_name_": name}}


def row(**changes: object) -> dict[str, object]:
    """Make a row of get_requests with detail."""
    base: dict[str, object] = {
        "request_id": 4,
        "name": "run",
        "status": enum("Transforming"),
        "transform_id": 7,
        "transform_name": "run_01_isr_01",
        "transform_status": enum("Transforming"),
        "processing_id": 1,
        "output_total_files": 2,
    }
    return base | changes


@pytest.mark.parametrize(
    ("value", "names", "expected"),
    [
        (enum("SubFinished", 4), REQUEST_STATUSES, "SubFinished"),
        ("SubFinished", REQUEST_STATUSES, "SubFinished"),
        ("RequestStatus.SubFinished", REQUEST_STATUSES, "SubFinished"),
        (4, REQUEST_STATUSES, "SubFinished"),
        (25, TRANSFORM_STATUSES, "WaitForTrigger"),
        (31, PROCESSING_STATUSES, "Prepared"),
        (0, REQUEST_STATUSES, "New"),
        (len(REQUEST_STATUSES), REQUEST_STATUSES, str(len(REQUEST_STATUSES))),
        (99, REQUEST_STATUSES, "99"),
        (-1, REQUEST_STATUSES, "-1"),
        (None, REQUEST_STATUSES, ""),
    ],
)
def test_enums_in_every_shape(value, names, expected):
    assert name_of(value, tuple(names)) == expected


@pytest.mark.parametrize("value", [[], {}, {"attributes": {}}, {"attributes": 3}, 1.5, True])
def test_an_enum_of_another_shape_is_shown(value):
    with pytest.raises(ReplyError, match="status is not understood"):
        name_of(value, tuple(REQUEST_STATUSES))


def test_numbers_of_statuses_are_those_of_idds():
    for names, enumeration in (
        (REQUEST_STATUSES, constants.RequestStatus),
        (TRANSFORM_STATUSES, constants.TransformStatus),
        (PROCESSING_STATUSES, constants.ProcessingStatus),
        (CONTENT_STATUSES, constants.ContentStatus),
    ):
        assert tuple(names) == tuple(item.name for item in sorted(enumeration, key=lambda item: item.value))


@pytest.mark.parametrize(
    "value",
    [
        "Fri, 20 Nov 2026 08:49:34 UTC",
        {"__datetime__": "2026-11-20T08:49:34"},
        "2026-11-20 08:49:34",
        "2026-11-20T08:49:34+00:00",
    ],
)
def test_dates_in_every_shape(value):
    assert date_of(value) == AT


@pytest.mark.parametrize("value", [None, "", "soon", 5, "Fri, 99 Nov 2026 08:49:34 UTC", {"__datetime__": 3}])
def test_a_date_that_is_none_is_none(value):
    assert date_of(value) is None


@pytest.mark.parametrize(("value", "expected"), [(3, 3), ("137", 137), ("", None), (None, None), (2.0, 2)])
def test_numbers_in_every_shape(value, expected):
    assert optional_integer(value, "x") == expected


@pytest.mark.parametrize("value", ["seven", [], {}, True, float("nan"), float("inf")])
def test_what_is_no_number_is_shown(value):
    with pytest.raises(ReplyError, match="field retries is not a number"):
        optional_integer(value, "retries")


def test_long_replies_are_cut():
    assert render_short("x" * 1000) == "x" * 300 + "..."
    assert render_short({"a": 1}) == '{"a": 1}'
    assert render_short("") == '""'


def test_an_unknown_request_is_no_request():
    assert parse_requests([]) == ()
    assert parse_transforms([]) == ()


@pytest.mark.parametrize("value", [None, "text", {"request_id": 1}, 7, [3], [None]])
def test_a_reply_that_is_no_list_of_objects_is_shown(value):
    with pytest.raises(ReplyError) as caught:
        parse_requests(value)
    assert caught.value.reply


def test_a_request_without_id_or_status_is_shown():
    with pytest.raises(ReplyError, match="request_id is missing"):
        parse_requests([{"name": "run", "status": 3}])
    with pytest.raises(ReplyError, match="Request 4 has no status"):
        parse_requests([{"request_id": 4, "name": "run"}])


def test_rows_of_one_request_make_one_record():
    records = parse_requests([row(), row(transform_id=8), row(request_id=5)])
    assert [record.request_id for record in records] == [4, 5]


def test_errors_are_kept():
    (record,) = parse_requests([row(errors={"extra_msg": "Request is already terminated"})])
    assert record.errors == "Request is already terminated"
    (quiet,) = parse_requests([row(errors=None)])
    assert quiet.errors == ""


def test_before_there_are_transforms_there_are_none():
    assert parse_transforms([row(transform_id=None, transform_name=None, transform_status=None)]) == ()


def test_counters_that_are_null_are_not_zero():
    (record,) = parse_transforms([row(output_total_files=None)])
    assert record.outputs is None
    (mapped,) = parse_transforms([row(output_total_files=2, output_new_files=None, output_failed_files=-1)])
    assert mapped.outputs == FileCounts(total=2)


def test_joined_rows_make_one_transform_of_the_last_processing():
    rows = [
        row(processing_id=3, output_processed_files=2),
        row(processing_id=1, output_processed_files=0),
        row(processing_id=3, output_total_files=1, output_processed_files=1),
    ]
    (record,) = parse_transforms(rows)
    assert record.outputs == FileCounts(total=2, processed=2)


def test_transforms_come_by_id():
    records = parse_transforms([row(transform_id=9), row(transform_id=7), row(transform_id="8")])
    assert [record.transform_id for record in records] == [7, 8, 9]


def test_errors_of_a_job_come_in_the_order_of_sources():
    contents = parse_contents(
        {
            "7": [
                {
                    "transform_id": 7,
                    "status": "FinalFailed",
                    "name": "isr:1",
                    "trans_exit_code": "17",
                    "pilot_error_code": 1305,
                    "pilot_error_diag": "Failed to execute payload",
                    "exe_error_code": 0,
                    "task_buffer_error_code": 300,
                }
            ]
        }
    )
    assert contents[7][0].errors == (
        JobError("payload", 17),
        JobError("pilot", 1305, "Failed to execute payload"),
        JobError("task buffer", 300),
    )


@pytest.mark.parametrize(
    ("fields", "panda_id"),
    [
        ({"panda_id": 75}, 75),
        ({"panda_id": None, "content_metadata": {"panda_id": "76"}}, 76),
        ({"panda_id": 75, "content_metadata": {"panda_id": 76}}, 75),
        ({"content_metadata": None}, 0),
    ],
)
def test_the_job_of_a_content_is_read_from_it_or_from_its_metadata(fields, panda_id):
    ((content,),) = parse_contents([{"transform_id": 1, "status": "Available", **fields}]).values()
    assert content.panda_id == panda_id


def test_an_exit_code_that_is_no_number_is_told_as_text():
    ((content,),) = parse_contents(
        [{"transform_id": 1, "status": "FinalFailed", "trans_exit_code": "SIGKILL"}]
    ).values()
    assert content.errors == (JobError("payload", -1, "SIGKILL"),)


def test_contents_are_grouped_by_their_own_transform():
    rows = [{"transform_id": number, "status": 2, "name": str(number)} for number in (1, 2, 1)]
    contents = parse_contents({"null": rows})
    assert {key: len(found) for key, found in contents.items()} == {1: 2, 2: 1}
    assert contents[1][0].status == "Available"
    assert parse_contents({}) == {}


def test_a_content_that_is_cut_short_is_shown():
    with pytest.raises(ReplyError, match="content has no status"):
        parse_contents({"1": [{"transform_id": 1, "name": "isr:1"}]})


def test_a_tasks_total_holds_pruned_jobs():
    (task,) = parse_tasks(
        [{"jediTaskID": 7, "taskName": "t", "status": "done", "nFiles": 3, "nFilesMissing": 1}]
    )
    assert (task.total, task.files, task.missing) == (4, 3, 1)


def test_unknown_jobs_are_left_out():
    (job,) = parse_jobs([None, {"PandaID": 5, "jobStatus": "running", "transExitCode": "0"}])
    assert (job.panda_id, job.status, job.errors, job.name) == (5, "running", (), "")


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        ("failed", "17", ["payload"]),
        ("failed", "0", ["unknown"]),
        ("cancelled", "143", ["payload"]),
        ("closed", "0", []),
        ("finished", "17", []),
        ("running", "17", []),
    ],
)
def test_an_attempt_that_failed_has_an_error_and_a_killed_one_may(status, code, told):
    (job,) = parse_jobs([{"PandaID": 5, "jobStatus": status, "transExitCode": code}])
    assert [error.source for error in job.errors] == told
    assert (job.failed, job.killed, job.finished) == (
        status == "failed",
        status in ("cancelled", "closed"),
        status == "finished",
    )


@pytest.mark.parametrize(
    ("transform", "processing", "expected"),
    [(5, 9, 5), (None, 9, 9), (0, 9, 9), (5, None, 5), (None, None, 0)],
)
def test_the_task_of_a_transform_is_its_own_or_that_of_its_processing(transform, processing, expected):
    (record,) = parse_transforms([row(transform_workload_id=transform, processing_workload_id=processing)])
    assert record.workload_id == expected


def test_a_job_has_a_run_time_once_it_has_started_and_ended():
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 0, 1, tzinfo=UTC)
    (job,) = parse_jobs([{"PandaID": 5, "jobStatus": "finished"}])
    assert replace(job, started=start, ended=end).wall_seconds == 60
    assert replace(job, started=start, ended=None).wall_seconds is None
    assert replace(job, started=None, ended=end).wall_seconds is None
