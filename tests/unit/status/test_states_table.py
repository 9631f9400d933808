"""The table of states, case by case."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest
from lsst.ctrl.bps.wms_service import WmsStates

from lsst.ctrl.bps.panda.report import get_status_of, make_run_report
from lsst.ctrl.bps.panda.status.bps_states import (
    catch_up,
    count_task,
    is_aborted,
    is_ended,
    quiet_seconds,
    refine_by_contents,
    run_state,
    was_killed,
    zero_counts,
)
from lsst.ctrl.bps.panda.status.evidence import UNRELEASED_LABEL, PlanSummary, RunEvidence
from lsst.ctrl.bps.panda.status.job_errors import JobError
from lsst.ctrl.bps.panda.status.records import (
    ContentRecord,
    FileCounts,
    JobRecord,
    RequestRecord,
    TaskRecord,
    TransformRecord,
)
from lsst.ctrl.bps.panda.status.vocabulary import JobPhase

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
OPEN = FileCounts(total=12, processed=1, failed=1, missing=1, new=3, activated=4, processing=2)
INPUTS = FileCounts(total=12, new=1, missing=1)


def request(status: str = "Transforming", substatus: str = "New") -> RequestRecord:
    return RequestRecord(4, "run", status, substatus, updated_at=NOW)


def transform(
    status: str = "Transforming",
    outputs: FileCounts | None = OPEN,
    number: int = 1,
    processing: str = "Submitted",
) -> TransformRecord:
    name = f"run_{number:02d}_isr_01"
    return TransformRecord(4, number, name, status, processing, number, outputs, INPUTS, NOW)


def named(counts: dict[WmsStates, int]) -> dict[str, int]:
    return {state.name: count for state, count in counts.items() if count}


BASE = {"SUCCEEDED": 1, "FAILED": 1, "PRUNED": 1}


@pytest.mark.parametrize(
    ("status", "aborted", "expected"),
    [
        # 12 jobs: 3 done, 3 new of which 1 without its input, 6 with PanDA.
        ("Transforming", False, BASE | {"UNREADY": 1, "READY": 2, "PENDING": 4, "RUNNING": 2}),
        ("New", False, BASE | {"UNREADY": 1, "READY": 2, "PENDING": 4, "RUNNING": 2}),
        ("WaitForTrigger", True, BASE | {"UNREADY": 1, "READY": 2, "PENDING": 4, "RUNNING": 2}),
        ("Cancelling", False, BASE | {"DELETED": 9}),
        ("Cancelled", True, BASE | {"DELETED": 9}),
        ("Failed", True, BASE | {"DELETED": 9}),
        ("SubFinished", True, BASE | {"DELETED": 9}),
        ("Failed", False, {"SUCCEEDED": 1, "FAILED": 9, "PRUNED": 2}),
        ("SubFinished", False, {"SUCCEEDED": 1, "FAILED": 9, "PRUNED": 2}),
        ("Suspended", False, BASE | {"HELD": 9}),
        ("Finished", False, BASE | {"UNKNOWN": 9}),
        ("SomethingNew", False, BASE | {"UNKNOWN": 9}),
    ],
)
def test_jobs_not_done_follow_the_status_of_the_transform(status, aborted, expected):
    counts = count_task(transform(status), 12, aborted=aborted, ended=False)
    assert named(counts) == expected


def test_a_running_task_runs_its_released_jobs_unless_panda_knows_better():
    record = transform(processing="Running")
    assert named(count_task(record, 12, aborted=False, ended=False))["RUNNING"] == 6
    asked = count_task(record, 12, aborted=False, ended=False, running=3)
    assert (asked[WmsStates.RUNNING], asked[WmsStates.PENDING]) == (3, 3)


def test_before_counters_exist_the_plan_counts():
    assert named(count_task(transform(outputs=None), 5, aborted=False, ended=False)) == {"UNREADY": 5}
    assert named(count_task(transform("Failed", None), 5, aborted=False, ended=True)) == {"FAILED": 5}


@pytest.mark.parametrize(
    ("aborted", "ended", "expected"),
    [(False, False, "UNREADY"), (True, False, "UNREADY"), (False, True, "PRUNED"), (True, True, "DELETED")],
)
def test_jobs_of_a_task_that_was_never_released(aborted, ended, expected):
    assert named(count_task(None, 3, aborted=aborted, ended=ended)) == {expected: 3}


def test_all_states_are_always_there():
    assert set(zero_counts()) == set(WmsStates)
    assert set(count_task(None, 0, aborted=False, ended=False)) == set(WmsStates)


def content(status: str, job_status: str = "") -> ContentRecord:
    return ContentRecord(1, "x", status, job_status=job_status)


def test_contents_tell_killed_from_failed_and_retried_from_failed():
    counts = zero_counts() | {WmsStates.FAILED: 3}
    rows = [
        content("FinalFailed", "cancelled"),
        content("FinalFailed", "failed"),
        content("FinalFailed", "closed"),
    ]
    refine_by_contents(counts, transform("SubFinished"), rows, aborted=True)
    assert named(counts) == {"FAILED": 1, "DELETED": 2}
    counts = zero_counts() | {WmsStates.FAILED: 2}
    refine_by_contents(counts, transform(), [content("Failed", "failed")] * 5, aborted=False)
    assert named(counts) == {"PENDING": 2}


def test_a_retry_that_has_begun_since_the_counters_were_read_is_no_failure():
    counts = zero_counts() | {WmsStates.FAILED: 1}
    open_task = transform(outputs=FileCounts(total=1, failed=1))
    refine_by_contents(counts, open_task, [content("Activated", "running")], aborted=False)
    assert named(counts) == {"PENDING": 1}


@pytest.mark.parametrize(
    ("status", "contents", "expected"),
    [
        # While the task is open a failed attempt is tried again, a final failure is not.
        ("Transforming", ["Failed", "FinalFailed"], {"FAILED": 1, "PENDING": 1}),
        ("Transforming", ["FinalFailed", "FinalFailed"], {"FAILED": 2}),
        # Once it is over nothing is tried again.
        ("SubFinished", ["Failed", "Failed"], {"FAILED": 2}),
    ],
)
def test_only_a_failed_attempt_of_an_open_task_is_tried_again(status, contents, expected):
    counts = zero_counts() | {WmsStates.FAILED: 2}
    rows = [content(item, "failed") for item in contents]
    refine_by_contents(counts, transform(status), rows, aborted=False)
    assert named(counts) == expected


@pytest.mark.parametrize(
    ("status", "job_status", "errors", "killed"),
    [
        ("FinalFailed", "failed", [("payload", 143), ("pilot", 1144), ("task buffer", 100)], True),
        ("FinalFailed", "cancelled", [("task buffer", 100)], True),
        ("FinalFailed", "closed", [], True),
        # The runner did not start the final job.
        ("FinalFailed", "failed", [("payload", 76), ("pilot", 1305)], True),
        # The attempt failed by itself; the cancel took the next one.
        ("Failed", "failed", [("payload", 1), ("pilot", 1305)], True),
        # Known to have failed, not yet how.
        ("FinalFailed", "", [], True),
        ("FinalFailed", "failed", [("payload", 1), ("pilot", 1305)], False),
        ("FinalFailed", "failed", [("payload", 137), ("pilot", 1212)], False),
        ("FinalFailed", "failed", [("dispatcher", 100)], False),
        ("FinalFailed", "failed", [], False),
        ("FinalSubAvailable", "finished", [("payload", 1)], False),
        ("Available", "finished", [], False),
    ],
)
def test_which_jobs_of_a_cancelled_run_did_not_fail_by_themselves(status, job_status, errors, killed):
    record = ContentRecord(
        1, "x", status, job_status=job_status, errors=tuple(JobError(*error) for error in errors)
    )
    assert was_killed(record) is killed


def test_counters_older_than_contents_take_no_failure_away():
    # When the counters were read one job had failed; when the contents were, two more were killed.
    counts = zero_counts() | {WmsStates.FAILED: 1, WmsStates.DELETED: 2}
    rows = [content("FinalFailed", "failed"), *[content("FinalFailed", "cancelled")] * 2]
    refine_by_contents(counts, transform("SubFinished"), rows, aborted=True)
    assert named(counts) == {"FAILED": 1, "DELETED": 2}


def test_missing_jobs_of_a_cancelled_run_are_pruned_only_with_their_inputs():
    outputs = FileCounts(total=5, missing=5)
    inputs = FileCounts(total=5, missing=2, processed=3)
    record = dataclasses.replace(transform("Failed", outputs), inputs=inputs)
    assert named(count_task(record, 5, aborted=True, ended=True)) == {"PRUNED": 2, "DELETED": 3}
    assert named(count_task(record, 5, aborted=False, ended=True)) == {"PRUNED": 5}


@pytest.mark.parametrize(("failed", "state"), [(0, "DELETED"), (1, "PRUNED")])
def test_without_a_failure_nothing_of_a_cancelled_run_is_pruned(failed, state):
    first = transform("Failed", FileCounts(total=1, failed=failed, activated=1 - failed))
    missing = FileCounts(total=3, missing=3)
    second = dataclasses.replace(transform("Failed", missing, 2), inputs=missing)
    evidence = RunEvidence(request("Failed", "ToCancel"), (first, second), asked_at=NOW)
    tally = evidence.tally
    assert tally.total[WmsStates[state]] == 3 + (state == "DELETED")
    assert named(tally.by_transform[2]) == {state: 3}


def test_a_job_killed_by_others_than_an_abort_has_failed():
    counts = zero_counts() | {WmsStates.FAILED: 1}
    refine_by_contents(counts, transform("SubFinished"), [content("FinalFailed", "cancelled")], aborted=False)
    assert named(counts) == {"FAILED": 1}


def test_jobs_are_counted_by_task_and_latest_attempt():
    jobs = [JobRecord(number, task, status, name=name) for number, (task, status, name) in enumerate(
        [(1, "running", ""), (1, "holding", ""), (1, "activated", ""), (2, "finished", "a"),
         (2, "failed", "a"), (2, "failed", "b"), (2, "running", "b")]
    )]  # fmt: skip
    evidence = RunEvidence(request(), jobs=tuple(jobs))
    assert evidence.jobs_by_phase == {
        1: {JobPhase.RUNNING: 2, JobPhase.WAITING: 1},
        2: {JobPhase.FINISHED: 1, JobPhase.RUNNING: 1},
    }
    assert evidence.running_jobs == 3


def test_a_job_in_vain_is_pruned_before_idds_gives_its_output_up():
    inputs, outputs = FileCounts(total=3, processed=1, missing=2), FileCounts(total=3, new=2, missing=1)
    for status, expected in (
        ("Transforming", {"READY": 1, "PRUNED": 2}),
        ("SubFinished", {"FAILED": 1, "PRUNED": 2}),
    ):
        task = dataclasses.replace(transform(status, outputs), inputs=inputs)
        assert named(count_task(task, 3, aborted=False, ended=False)) == expected


def test_what_panda_has_not_given_up_is_tried_again_and_a_failure_is_booked_before_it_counts():
    outputs = FileCounts(total=3, activated=2, failed=1)
    isr = TransformRecord(4, 1, "run_01_isr_01", "Transforming", "Running", 9, outputs, FileCounts(total=3))
    task = TaskRecord(9, "run_01_isr_01_4_1", "running", 4, files=3)
    jobs = (JobRecord(1, 9, "failed", name="a"), JobRecord(2, 9, "activated", name="b"))
    evidence = RunEvidence(request(), (isr,), tasks=(task,), jobs=jobs)
    assert named(evidence.tally.total) == {"PENDING": 2, "RUNNING": 1}
    again = dataclasses.replace(evidence, jobs=(*jobs, JobRecord(3, 9, "activated", name="a")))
    assert named(again.tally.total) == {"PENDING": 3}
    given_up = dataclasses.replace(evidence, tasks=(dataclasses.replace(task, failed=1),))
    assert named(given_up.tally.total) == {"PENDING": 2, "FAILED": 1}
    # The contents of iDDS say which is which.
    final = ContentRecord(1, "a", "FinalFailed", 1)
    assert named(dataclasses.replace(evidence, contents={1: (final,)}).tally.total) == {
        "PENDING": 2,
        "FAILED": 1,
    }


def test_the_final_job_of_a_cancelled_run_does_not_go_back():
    # As recorded: PanDA ends it some seconds before iDDS, whose counters are empty until then.
    final = TransformRecord(
        4, 7, "run_07_finalJob_01", "Transforming", "Submitted", 9, FileCounts(), FileCounts()
    )
    task = TaskRecord(9, "run_07_finalJob_01_4_7", "running", 4, files=1)
    plan = PlanSummary((("finalJob", 1),), tasks=(("run_07_finalJob_01", "finalJob", 1),))
    job = JobRecord(1, 9, "running", name="final")
    running = RunEvidence(request(substatus="ToCancel"), (final,), plan=plan, tasks=(task,), jobs=(job,))
    assert named(running.tally.total) == {"RUNNING": 1}
    over = dataclasses.replace(task, status="failed", failed=1)
    assert named(dataclasses.replace(running, tasks=(over,), jobs=()).tally.total) == {"DELETED": 1}


def test_pandas_counts_are_ahead_of_those_of_idds():
    counts = zero_counts() | {WmsStates.RUNNING: 1, WmsStates.PENDING: 3, WmsStates.FAILED: 1}
    catch_up(counts, finished=2, failed=2)
    assert named(counts) == {"PENDING": 1, "SUCCEEDED": 2, "FAILED": 2}
    counts = zero_counts() | {WmsStates.READY: 2, WmsStates.PENDING: 1, WmsStates.RUNNING: 1}
    catch_up(counts, finished=0, failed=0, waiting=2)
    assert named(counts) == {"READY": 1, "PENDING": 2, "RUNNING": 1}
    # Those that run now have taken the place of those that have finished.
    counts = zero_counts() | {WmsStates.READY: 5, WmsStates.RUNNING: 4}
    catch_up(counts, finished=4, failed=0, waiting=1, running=4)
    assert named(counts) == {"SUCCEEDED": 4, "PENDING": 1, "RUNNING": 4}


DONE = FileCounts(total=1, processed=1)


@pytest.mark.parametrize(
    ("status", "transforms", "planned", "quiet", "expected"),
    [
        ("Transforming", ("Finished",), 1, 999, False),
        ("Finished", ("Finished",), 1, 0, True),
        ("Finished", ("Finished",), 2, 0, False),
        ("Finished", ("Finished",), 2, 999, True),
        ("Finished", ("Finished",), 0, 0, False),
        ("Finished", ("Finished",), 0, 119, False),
        ("Finished", ("Finished",), 0, 120, True),
        ("SubFinished", ("Finished", "Transforming"), 2, 999, False),
        ("SubFinished", ("Finished", "Suspended"), 2, 999, False),
        ("Suspended", ("Suspended",), 1, 999, False),
        ("Cancelled", ("Cancelled",), 1, 0, True),
        ("Failed", (), 0, 0, False),
        ("Failed", (), 0, 999, True),
        ("Finished", None, 1, 0, False),
        ("Finished", None, 1, 999, True),
    ],
)
def test_a_run_has_ended_only_if_everything_says_so(status, transforms, planned, quiet, expected):
    records = None
    if transforms is not None:
        records = [transform(item, DONE, number) for number, item in enumerate(transforms, 1)]
    assert is_ended(request(status), records, planned_tasks=planned, quiet=quiet) is expected


def test_counters_behind_a_finished_transform_are_waited_for():
    late = [transform("Finished", FileCounts(total=2, processed=1, activated=1))]
    assert not is_ended(request("Finished"), late, planned_tasks=1)
    assert not is_ended(request("Finished"), [transform("Finished", None)], planned_tasks=1)
    assert is_ended(request("Finished"), late, planned_tasks=1, quiet=300)


@pytest.mark.parametrize(("total", "ended"), [(4, True), (5, False)])
def test_failed_and_pruned_jobs_are_not_waited_for(total, ended):
    counts = FileCounts(total=total, processed=2, failed=1, missing=1)
    assert is_ended(request("Finished"), [transform("Finished", counts)], planned_tasks=1) is ended


def test_quiet_time_counts_from_the_last_change():
    younger = dataclasses.replace(transform(), updated_at=NOW + timedelta(seconds=40))
    assert quiet_seconds(request(), [younger], NOW + timedelta(seconds=100)) == 60
    assert quiet_seconds(request(), [], NOW - timedelta(seconds=5)) == 0
    assert quiet_seconds(request(), [], None) == 0


@pytest.mark.parametrize(
    ("record", "counts", "ended", "expected"),
    [
        (request("New"), {}, False, "PENDING"),
        (request("Throttling"), {"UNREADY": 3}, False, "PENDING"),
        (request("Ready"), {"UNREADY": 1, "READY": 2, "UNKNOWN": 4}, False, "PENDING"),
        (request("New"), {"RUNNING": 1}, False, "RUNNING"),
        (request("Transforming"), {"UNREADY": 3}, False, "RUNNING"),
        (request("Finished"), {"SUCCEEDED": 3}, False, "RUNNING"),
        (request("Suspended"), {"HELD": 3}, False, "HELD"),
        (request(""), {"UNREADY": 3}, False, "UNKNOWN"),
        (request("ToCancel", "ToCancel"), {"DELETED": 3}, False, "RUNNING"),
        (request("Finished"), {"SUCCEEDED": 3}, True, "SUCCEEDED"),
        (request("Finished", "ToCancel"), {"SUCCEEDED": 3}, True, "SUCCEEDED"),
        (request("SubFinished"), {"SUCCEEDED": 3}, True, "SUCCEEDED"),
        (request("SubFinished"), {"SUCCEEDED": 3, "FAILED": 1}, True, "FAILED"),
        (request("Finished"), {"SUCCEEDED": 3, "PRUNED": 1}, True, "FAILED"),
        (request("SubFinished", "ToCancel"), {"SUCCEEDED": 3, "FAILED": 1}, True, "DELETED"),
        (request("SubFinished"), {"SUCCEEDED": 3, "DELETED": 1}, True, "DELETED"),
        (request("Finished"), {"SUCCEEDED": 3, "UNKNOWN": 1}, True, "UNKNOWN"),
        (request("Finished"), {}, True, "SUCCEEDED"),
        (request("Failed"), {}, True, "FAILED"),
        (request("SubFinished"), {"UNKNOWN": 5}, True, "FAILED"),
    ],
)
def test_the_state_of_a_run(record, counts, ended, expected):
    full = zero_counts() | {WmsStates[name]: count for name, count in counts.items()}
    assert run_state(record, full, ended=ended) is WmsStates[expected]


@pytest.mark.parametrize(
    ("status", "substatus", "expected"),
    [
        ("SubFinished", "ToCancel", True),
        ("Cancelling", "New", True),
        ("Expired", "New", True),
        ("SubFinished", "New", False),
        ("Suspended", "New", False),
    ],
)
def test_an_abort_leaves_its_mark(status, substatus, expected):
    assert is_aborted(request(status, substatus)) is expected


def test_chunks_of_a_label_add_up():
    plan = PlanSummary(
        (("measure_2_stars", 5), ("finalJob", 1)),
        (
            ("run_01_measure_2_stars_01", "measure_2_stars", 3),
            ("run_02_measure_2_stars_02", "measure_2_stars", 2),
            ("run_03_finalJob_01", "finalJob", 1),
        ),
    )
    first = dataclasses.replace(
        transform(outputs=FileCounts(total=3, processed=3)),
        name="run_01_measure_2_stars_01",
        status="Finished",
    )
    tally = RunEvidence(request(), (first,), plan, asked_at=NOW).tally
    assert {label: named(counts) for label, counts in tally.by_label.items()} == {
        "measure_2_stars": {"SUCCEEDED": 3, "UNREADY": 2},
        "finalJob": {"UNREADY": 1},
    }
    assert tally.labels == {1: "measure_2_stars"}


def test_jobs_promised_by_the_request_are_counted_before_their_tasks_exist():
    record = dataclasses.replace(request("New"), campaign_group="v1;op=ann;payload=p;jobs=9;tasks=3;origin=0")
    tally = RunEvidence(record, ()).tally
    assert {label: named(counts) for label, counts in tally.by_label.items()} == {
        UNRELEASED_LABEL: {"UNREADY": 9}
    }
    assert tally.state is WmsStates.PENDING


@pytest.mark.parametrize("processed", [2, 3])
def test_a_task_with_as_many_jobs_as_planned_or_more_leaves_none_missing(processed):
    plan = PlanSummary((("isr", 2),), (("run_01_isr_01", "isr", 2),))
    done = transform("Finished", FileCounts(total=processed, processed=processed))
    tally = RunEvidence(request(), (done,), plan).tally
    assert {label: named(counts) for label, counts in tally.by_label.items()} == {
        "isr": {"SUCCEEDED": processed}
    }


def test_only_the_request_asked_for():
    record = dataclasses.replace(
        request("Finished"), campaign_group="v1;op=a;payload=p;jobs=9;tasks=3;origin=0"
    )
    evidence = RunEvidence(record, asked_at=NOW + timedelta(hours=1))
    assert get_status_of(evidence)[0] is WmsStates.SUCCEEDED
    assert named(make_run_report(evidence).job_state_counts) == {"SUCCEEDED": 9}
    going = dataclasses.replace(evidence, request=dataclasses.replace(record, status="Transforming"))
    assert get_status_of(going)[0] is WmsStates.RUNNING
    assert named(make_run_report(going).job_state_counts) == {"UNKNOWN": 9}


def test_a_transform_that_the_plan_does_not_name_is_counted():
    plan = PlanSummary((("isr", 1),), (("run_01_isr_01", "isr", 1),))
    extra = dataclasses.replace(transform("Finished", DONE, 2), name="run_02_isr_02")
    tally = RunEvidence(request(), (transform("Finished", DONE), extra), plan).tally
    assert named(tally.by_label["isr"]) == {"SUCCEEDED": 2}
