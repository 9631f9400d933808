"""What real servers replied, and what must be told of it."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from lsst.ctrl.bps.bps_reports import compile_code_summary, compile_job_summary
from lsst.ctrl.bps.report import display_report
from lsst.ctrl.bps.wms_service import WmsStates

from lsst.ctrl.bps.panda.insight.overview import make_overview
from lsst.ctrl.bps.panda.plan.document import RunAttributes
from lsst.ctrl.bps.panda.plan.naming import collection_name, printable
from lsst.ctrl.bps.panda.report import get_status_of, make_run_list, make_run_report
from lsst.ctrl.bps.panda.status.evidence import (
    PlanSummary,
    RunEvidence,
    request_from_tasks,
    tasks_by_request,
    transforms_from_tasks,
)
from lsst.ctrl.bps.panda.status.failures import add_verdicts, find_remarks, group_errors
from lsst.ctrl.bps.panda.status.job_errors import JobError, sort_errors
from lsst.ctrl.bps.panda.status.records import JobRecord, TaskRecord
from lsst.ctrl.bps.panda.status.replies import (
    parse_contents,
    parse_jobs,
    parse_requests,
    parse_tasks,
    parse_transforms,
)
from lsst.ctrl.bps.panda.status.verdicts import PACKAGED_RULES

CAPTURES = Path(__file__).resolve().parents[1] / "data" / "captures"
LATER = datetime(2026, 11, 21, tzinfo=UTC)

DIAMOND = (("initTask", 1), ("isr", 4), ("calibrate", 4), ("gather", 1), ("finalJob", 1))
WIDE = (("initTask", 1), ("isr", 9), ("calibrate", 9), ("gather", 1), ("finalJob", 1))
SMALL = (("initTask", 1), ("isr", 2), ("calibrate", 2), ("gather", 1), ("finalJob", 1))
TENS = (("par", 10), ("chi", 10), ("finalJob", 1))
TWOS = (("par", 2), ("chi", 2), ("finalJob", 1))
ONES = (("par", 1), ("chi", 1), ("finalJob", 1))

ALL_DONE = {label: {"SUCCEEDED": count} for label, count in DIAMOND}
ISR_FAILED = {
    "initTask": {"SUCCEEDED": 1},
    "isr": {"SUCCEEDED": 3, "FAILED": 1},
    "calibrate": {"SUCCEEDED": 3, "PRUNED": 1},
    "gather": {"PRUNED": 1},
    "finalJob": {"SUCCEEDED": 1},
}
ABORTED = {
    "initTask": {"SUCCEEDED": 1},
    "isr": {"SUCCEEDED": 1, "DELETED": 3},
    "calibrate": {"SUCCEEDED": 1, "DELETED": 3},
    "gather": {"DELETED": 1},
    "finalJob": {"SUCCEEDED": 1},
}
QUEUED_ABORT = {label: {"DELETED": count} for label, count in SMALL[:-1]}

# Capture, labels that were submitted, state, counts by label other than 0.
TRUTH: tuple[tuple[str, tuple[tuple[str, int], ...], str, dict[str, dict[str, int]]], ...] = (
    ("embedded/done", WIDE, "SUCCEEDED", {label: {"SUCCEEDED": count} for label, count in WIDE}),
    ("embedded/fail", DIAMOND, "FAILED", ISR_FAILED),
    ("embedded/retried", DIAMOND, "SUCCEEDED", ALL_DONE),
    (
        "embedded/running",
        DIAMOND,
        "RUNNING",
        {
            "initTask": {"SUCCEEDED": 1},
            "isr": {"SUCCEEDED": 4},
            "calibrate": {"UNREADY": 4},
            "gather": {"UNREADY": 1},
            "finalJob": {"UNREADY": 1},
        },
    ),
    (
        "embedded/aborted",
        DIAMOND,
        "DELETED",
        {
            "initTask": {"SUCCEEDED": 1},
            "isr": {"SUCCEEDED": 4},
            "calibrate": {"DELETED": 4},
            "gather": {"DELETED": 1},
            "finalJob": {"SUCCEEDED": 1},
        },
    ),
    ("real/run1_success", DIAMOND, "SUCCEEDED", ALL_DONE),
    ("real/run2_failed_before_end", DIAMOND, "FAILED", ISR_FAILED),
    (
        "real/run2_retried_stuck",
        DIAMOND,
        "RUNNING",
        {
            "initTask": {"SUCCEEDED": 1},
            "isr": {"SUCCEEDED": 4},
            "calibrate": {"SUCCEEDED": 3, "READY": 1},
            "gather": {"UNREADY": 1},
            "finalJob": {"SUCCEEDED": 1},
        },
    ),
    ("real/run2_finished_after_retry_and_reload", DIAMOND, "SUCCEEDED", ALL_DONE),
    (
        "real/run3_before_abort",
        DIAMOND,
        "RUNNING",
        {
            "initTask": {"SUCCEEDED": 1},
            "isr": {"SUCCEEDED": 1, "RUNNING": 3},
            "calibrate": {"SUCCEEDED": 1, "UNREADY": 3},
            "gather": {"UNREADY": 1},
            "finalJob": {"UNREADY": 1},
        },
    ),
    ("real/run3_aborted_jobs_still_running", DIAMOND, "DELETED", ABORTED),
    ("real/run3_aborted_final", DIAMOND, "DELETED", ABORTED),
    (
        "real/run3_retried_after_abort",
        DIAMOND,
        "DELETED",
        ABORTED | {"isr": {"SUCCEEDED": 4}},
    ),
    ("real/run4_retry_lost", DIAMOND, "FAILED", ISR_FAILED),
    ("real/run5_names", TENS, "SUCCEEDED", {label: {"SUCCEEDED": count} for label, count in TENS}),
    (
        "real/run7_slash",
        TWOS,
        "RUNNING",
        {
            "par": {"SUCCEEDED": 1, "READY": 1},
            "chi": {"SUCCEEDED": 1, "UNREADY": 1},
            "finalJob": {"UNREADY": 1},
        },
    ),
    (
        "real/run8_memory",
        ONES,
        "RUNNING",
        {"par": {"SUCCEEDED": 1}, "chi": {"SUCCEEDED": 1}, "finalJob": {"RUNNING": 1}},
    ),
    ("real/run9_abort_queued", SMALL, "RUNNING", QUEUED_ABORT | {"finalJob": {"RUNNING": 1}}),
    ("real/run9_aborted_final", SMALL, "DELETED", QUEUED_ABORT | {"finalJob": {"SUCCEEDED": 1}}),
)
EACH = pytest.mark.parametrize(
    ("capture", "labels", "state", "expected"), TRUTH, ids=[row[0] for row in TRUTH]
)


def load(name: str) -> Any:
    """Give a reply as the relay client or the API client hands it on."""
    value = json.loads((CAPTURES / f"{name}.json").read_text(encoding="utf-8"))
    return value["reply"]["data"] if isinstance(value, dict) else value[1][1]


def plan_of(name: str, labels: tuple[tuple[str, int], ...]) -> PlanSummary:
    """Make the plan that the run was submitted with."""
    tasks = tuple(
        (f"{name}_{number:02d}_{label}_01", label, count) for number, (label, count) in enumerate(labels, 1)
    )
    return PlanSummary(labels=labels, tasks=tasks, final_labels=("finalJob",))


def evidence_of(capture: str) -> RunEvidence:
    """Give what is known of a run without its plan."""
    rows = load(f"{capture}_get_requests_detail")
    evidence = RunEvidence(parse_requests(rows)[0], parse_transforms(rows), asked_at=LATER)
    contents = parse_contents(load(f"{capture}_get_contents_output_ext_all"))
    wanted = {key: contents[key] for key in evidence.unexplained_transforms}
    return dataclasses.replace(evidence, contents=wanted)


def planned_evidence_of(capture: str, labels: tuple[tuple[str, int], ...]) -> RunEvidence:
    """Give what is known of a run with its plan, and no help of the time."""
    evidence = evidence_of(capture)
    plan = plan_of(evidence.request.name, labels)
    return dataclasses.replace(evidence, plan=plan, asked_at=evidence.request.updated_at)


def nonzero(summary: dict[str, dict[WmsStates, int]]) -> dict[str, dict[str, int]]:
    """Leave zeros out."""
    return {
        label: {state.name: number for state, number in counts.items() if number}
        for label, counts in summary.items()
    }


@EACH
def test_counts_with_the_plan(capture, labels, state, expected):
    report = make_run_report(planned_evidence_of(capture, labels))
    assert nonzero(report.job_summary) == expected
    assert report.state is WmsStates[state]
    assert report.total_number_jobs == sum(count for _, count in labels)
    assert report.run_summary == ";".join(f"{label}:{count}" for label, count in labels)


@EACH
def test_counts_without_the_plan(capture, labels, state, expected):
    """Tasks that do not exist yet are not known then; all else is."""
    evidence = evidence_of(capture)
    report = make_run_report(evidence)
    known = {transform.name.split("_")[-2] for transform in evidence.transforms}
    assert nonzero(report.job_summary) == {label: expected[label] for label in expected if label in known}
    assert report.state is WmsStates[state]


@EACH
def test_status_agrees_with_report(capture, labels, state, expected):
    evidence = planned_evidence_of(capture, labels)
    assert get_status_of(evidence)[0] is make_run_report(evidence).state
    bare = dataclasses.replace(evidence, contents={}, jobs=None)
    assert get_status_of(bare)[0] is make_run_report(evidence).state


@EACH
def test_bps_prints_the_report_without_warnings(capture, labels, state, expected, tmp_path):
    report = make_run_report(planned_evidence_of(capture, labels), monitor_url="https://monitor")
    warnings = compile_job_summary(report) + compile_code_summary(report)
    with open(tmp_path / "report.txt", "w+") as file:
        display_report([report], warnings, is_detailed=True, return_exit_codes=True, file=file)
        file.seek(0)
        text = file.read()
    assert warnings == []
    assert "WARNING" not in text
    assert report.run in text
    for label, _ in labels:
        assert f"\n{label} " in text


@EACH
def test_a_terminal_request_with_transforms_to_come_has_not_ended(capture, labels, state, expected):
    """The server can store a terminal status before the last tasks exist."""
    evidence = planned_evidence_of(capture, labels)
    request = dataclasses.replace(evidence.request, status="Finished")
    early = dataclasses.replace(
        evidence, request=request, transforms=evidence.transforms[:-1], asked_at=request.updated_at
    )
    assert not early.ended
    assert get_status_of(early)[0] is WmsStates.RUNNING


def test_exit_codes_and_digest_of_a_failed_run():
    report = make_run_report(planned_evidence_of("real/run2_failed_before_end", DIAMOND))
    assert report.exit_code_summary == {
        "initTask": [], "isr": [17], "calibrate": [], "gather": [], "finalJob": []
    }  # fmt: skip
    context = report.specific_info.context
    assert context["error_1_source"] == "payload"
    assert context["error_1_code"] == 17
    assert context["error_1_count"] == 1
    assert context["error_1_labels"] == "isr"
    assert context["error_1_job"] == 35
    assert context["error_1_log"].endswith("/PandaJob_35/payload.stderr")
    assert "bps restart --id 2" in str(report.specific_info)


def test_missing_contents_leave_the_code_open_and_say_so():
    evidence = planned_evidence_of("real/run2_failed_before_end", DIAMOND)
    evidence = dataclasses.replace(evidence, contents={}, problems=("contents of task isr: HTTP 500",))
    report = make_run_report(evidence)
    assert report.exit_code_summary["isr"] == [-1]
    text = str(report.specific_info)
    assert "contents of task isr: HTTP 500" in text
    assert "exit codes of 1 failed jobs are not known" in text
    assert nonzero(report.job_summary) == ISR_FAILED


def test_jobs_that_outlive_an_abort_are_named():
    evidence = planned_evidence_of("real/run3_aborted_jobs_still_running", DIAMOND)
    tasks = parse_tasks(load("real/run3_aborted_jobs_still_running_v1_get_tasks_detailed_info_since"))
    report = make_run_report(dataclasses.replace(evidence, tasks=tasks))
    text = str(report.specific_info)
    assert "PanDA is still ending task 10" in text
    assert "wait until the last job has ended" in text


def test_a_cancelled_run_names_the_payloads_that_go_on_and_the_final_job():
    """iDDS calls the jobs deleted at once, while PanDA has the task aborting and its jobs running."""
    rows = load("whole/cancel_running_get_requests_detail")
    tasks = parse_tasks(load("whole/cancel_running_v1_get_tasks_detailed_info_since"))
    contents = parse_contents(load("whole/cancel_running_get_contents_output_ext_all"))
    ids = [content.panda_id for content in contents[69]]
    jobs = tuple(JobRecord(number, 69, "running") for number in ids[:3])
    final = JobRecord(999, 76, "running")
    request = parse_requests(rows)[0]
    evidence = RunEvidence(request, parse_transforms(rows), tasks=tasks, jobs=(*jobs, final), asked_at=LATER)
    assert evidence.outliving_jobs == {69: 3}
    report = make_run_report(evidence)
    assert nonzero(report.job_summary)["isr"] == {"DELETED": 4}
    text = str(report.specific_info)
    assert "3 PanDA jobs still run (task 69)" in text
    assert "The final job finalJob (PanDA task 76) runs although the run was cancelled" in text
    assert "bps restart" not in text


def test_a_run_that_was_restarted_names_the_new_one_and_its_state():
    old = planned_evidence_of("real/run2_failed_before_end", DIAMOND)
    new = planned_evidence_of("real/run3_before_abort", DIAMOND)
    assert "bps restart --id 2" in str(make_run_report(old).specific_info)
    restarted = dataclasses.replace(old, successor=new)
    words = f"Run 2 was restarted: run 3 ({new.name}) completes it, and is RUNNING."
    text = str(make_run_report(restarted).specific_info)
    assert words in text
    assert "bps restart" not in text
    assert "bps report --id 3" in text
    assert words in get_status_of(restarted)[1]


def test_running_comes_from_panda_where_it_was_asked():
    jobs = parse_jobs(load("real/run8_memory_v1_task31_get_job_descriptions"))
    evidence = planned_evidence_of("real/run8_memory", ONES)
    running = make_run_report(dataclasses.replace(evidence, jobs=jobs))
    queued = make_run_report(
        dataclasses.replace(evidence, jobs=tuple(dataclasses.replace(job, status="sent") for job in jobs))
    )
    assert nonzero(running.job_summary)["finalJob"] == {"RUNNING": 1}
    assert nonzero(queued.job_summary)["finalJob"] == {"PENDING": 1}


def test_no_run_is_asked_for_contents_in_vain():
    assert evidence_of("real/run2_failed_before_end").unexplained_transforms == (6,)
    assert evidence_of("real/run1_success").unexplained_transforms == ()
    assert evidence_of("real/run3_aborted_final").unexplained_transforms == ()


@pytest.mark.parametrize(
    ("capture", "expected"),
    [
        ("run1_success", {"SUCCEEDED": 11}),
        ("run2_failed_before_end", {"SUCCEEDED": 8, "FAILED": 1, "PRUNED": 2}),
        # The retry reached PanDA's task but not those of the pruned children.
        ("run2_retried_stuck", {"SUCCEEDED": 9, "PRUNED": 2}),
        # Several tasks of one name: the first is the one iDDS knows.
        ("run2_finished_after_retry_and_reload", {"SUCCEEDED": 11}),
        # PanDA counts the jobs that ended well after the abort; iDDS never will.
        ("run3_aborted_final", {"SUCCEEDED": 7, "DELETED": 4}),
        ("run9_aborted_final", {"SUCCEEDED": 1, "DELETED": 6}),
    ],
)
def test_run_list_from_pandas_tasks(capture, expected):
    tasks = parse_tasks(load(f"real/{capture}_v1_get_tasks_detailed_info_since"))
    request = parse_requests(load(f"real/{capture}_get_requests_with_detail_False"))[0]
    group = tasks_by_request(tasks)[request.request_id]
    evidence = RunEvidence(request, transforms_from_tasks(group), tasks=group, asked_at=LATER)
    (report,) = make_run_list([evidence])
    assert nonzero({"run": report.job_state_counts})["run"] == expected
    assert report.operator == "Test User"
    assert report.run == request.name


def test_a_run_of_which_only_tasks_are_known_is_listed_by_name():
    tasks = parse_tasks(load("real/run1_success_v1_get_tasks_detailed_info_since"))
    request = request_from_tasks(tasks)
    assert (request.request_id, request.name) == (1, "u_tester_ok1_20261120T095125Z")
    (report,) = make_run_list([RunEvidence(request, transforms_from_tasks(tasks), asked_at=LATER)])
    assert report.state is WmsStates.UNKNOWN
    assert report.total_number_jobs == 11


def test_request_row_with_and_without_detail_is_the_same_request():
    brief = parse_requests(load("real/run3_aborted_final_get_requests_with_detail_False"))
    full = parse_requests(load("real/run3_aborted_final_get_requests_detail"))
    assert brief == full
    assert (brief[0].status, brief[0].substatus) == ("SubFinished", "ToCancel")
    assert parse_transforms(load("real/run3_aborted_final_get_requests_with_detail_False")) == ()


def test_a_run_whose_texts_are_not_ascii_is_printed():
    """Core's tables take ASCII only: one such run would end the list of all runs with a traceback."""
    rows = load("whole/unicode_operator_get_requests_detail")
    site = "Sternwarte Gro\u00df \u2603"
    plan = PlanSummary(
        labels=(("l\u00e4bel", 1), ("finalJob", 1)),
        tasks=(
            ("u_alice_nm_uni_01_l1_01", "l\u00e4bel", 1),
            ("u_alice_nm_uni_02_finalJob_01", "finalJob", 1),
        ),
        site=site,
        path="/home/j\u00fcrgen",
    )
    request = dataclasses.replace(parse_requests(rows)[0], errors="na\u00efve")
    evidence = RunEvidence(request, parse_transforms(rows), plan=plan, asked_at=LATER)
    (listed,) = make_run_list([evidence])
    report = make_run_report(evidence)
    shown = io.StringIO()
    display_report([listed], [], file=shown)
    display_report([report], [], is_detailed=True, return_exit_codes=True, file=shown)
    text = shown.getvalue()
    assert text.isascii()
    assert "Jurgen Muller \\u2603" in text
    assert "Projekt \\u2603 very long proje" in text
    assert "naive" in text
    assert "\nlabel " in text
    assert "/home/j\\xfcrgen" in text
    assert getattr(listed, "site", printable(site)) == printable(site) == "Sternwarte Gross \\u2603"
    wanted = {"operator": ["J\u00fcrgen*"]}
    assert [run.wms_id for run in make_run_list([evidence], filters=wanted)] == [report.wms_id]


def test_a_foreign_request_has_the_authenticated_user_as_operator():
    evidence = evidence_of("real/run1_success")
    assert evidence.attributes == RunAttributes("u_tester_ok1_20261120T095125Z", "Test User", "", "")


PARSERS: dict[str, Callable[[Any], Any]] = {
    "get_requests": parse_requests,
    "get_requests_detail": parse_requests,
    "get_requests_with_detail_False": parse_requests,
    "get_requests_unknown": parse_requests,
    "get_contents_output_ext_all": parse_contents,
    "get_tasks_detailed_info_since": parse_tasks,
    "get_job_descriptions": parse_jobs,
}
READ_BY_OTHERS = (
    "abort_reply", "abort_unknown", "bad_command", "get_datasets_and_files", "get_details", "get_status",
    "get_transforms", "ping", "protocol_samples", "reply", "retry_finished", "retry_unknown",
)  # fmt: skip


@pytest.mark.parametrize(
    "path", sorted(CAPTURES.glob("*/*.json")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_every_capture_is_understood(path):
    stem = path.stem
    kind = max((kind for kind in PARSERS if stem.endswith(kind)), key=len, default=None)
    if kind is None:
        assert stem.endswith(READ_BY_OTHERS)
        return
    records = PARSERS[kind](load(f"{path.parent.name}/{stem}"))
    source = load(f"{path.parent.name}/{stem}")
    if kind == "get_contents_output_ext_all":
        assert {str(key): len(rows) for key, rows in records.items()} == {
            key: len(rows) for key, rows in source.items()
        }
    elif kind.startswith("get_requests"):
        assert {record.request_id for record in records} == {row["request_id"] for row in source}
        assert all(record.created_at and record.name for record in records)
        transforms = parse_transforms(source)
        assert {record.name for record in transforms} == {
            row["transform_name"] for row in source if row.get("transform_name")
        }
    else:
        assert len(records) == len(source)


def test_sample_of_job_descriptions_is_understood():
    samples = json.loads((CAPTURES / "embedded" / "protocol_samples.json").read_text(encoding="utf-8"))
    jobs = samples["('POST', '/api/v1/job/get_description', 'application/json')"]["resp"]["data"]
    assert [job.panda_id for job in parse_jobs(jobs)] == [5001]
    assert parse_jobs(jobs)[0].name not in ("", parse_jobs(jobs)[0].job_name)


def test_memory_and_log_of_a_job():
    contents = parse_contents(load("real/run8_memory_get_contents_output_ext_all"))
    (content,) = contents[29]
    assert content.panda_id == 75
    (job,) = parse_jobs(load("real/run8_memory_v1_task29_get_job_descriptions"))
    assert (job.max_rss, job.panda_id, job.site) == (218372, 75, "TEST_QUEUE")


def test_quiet_time_ends_a_run_without_a_plan():
    evidence = evidence_of("real/run1_success")
    last = max(record.updated_at for record in (evidence.request, *evidence.transforms))
    soon = dataclasses.replace(evidence, asked_at=last + timedelta(seconds=5))
    late = dataclasses.replace(evidence, asked_at=last + timedelta(seconds=500))
    assert get_status_of(soon)[0] is WmsStates.RUNNING
    assert get_status_of(late)[0] is WmsStates.SUCCEEDED


# --- a whole PanDA with real pilots -----------------------------------------


def whole_evidence_of(capture: str, **changes: Any) -> RunEvidence:
    """Give what is known of a run of the whole PanDA without its plan."""
    rows = load(f"whole/{capture}_get_requests_detail")
    later = datetime(2026, 11, 30, tzinfo=UTC)
    evidence = RunEvidence(parse_requests(rows)[0], parse_transforms(rows), asked_at=later)
    return dataclasses.replace(evidence, **changes)


def test_an_exit_code_that_the_pilot_translates_is_the_payloads():
    jobs = parse_jobs(load("whole/payload_exits_v1_task97_get_job_descriptions"))
    jobs += parse_jobs(load("whole/payload_exit3_v1_task51_get_job_descriptions"))
    (contents,) = (
        rows
        for rows in parse_contents(load("whole/payload_exits_get_contents_output_ext_all")).values()
        if rows[0].name.startswith("exitl")
    )
    told = {job.errors[0].code: [error.title for error in job.errors] for job in jobs}
    assert told == {
        1: ["payload 1", "pilot 1305"],
        2: ["payload 2"],
        3: ["payload 3"],
        64: ["payload 64", "pilot 1305"],
        137: ["payload 137", "pilot 1305"],
    }
    texts = {job.errors[0].code: job.errors[0].text for job in jobs}
    assert texts[2] == "payload says no (2)"
    assert texts[3] == "PanDA shows it as pilot 1368"
    verdicts = {job.errors[0].code: PACKAGED_RULES.find_verdict(job.errors).name for job in jobs}
    assert verdicts == {1: "payload", 2: "payload", 3: "payload", 64: "payload", 137: "out of memory"}
    # iDDS has the same.
    assert {sort_errors(content.errors) for content in contents} == {job.errors for job in jobs[:4]}


NEVER = "iDDS could not hand task {} to PanDA: it never ran"


@pytest.mark.parametrize("planned", [True, False])
def test_a_task_that_idds_could_not_hand_to_panda_is_named(planned):
    evidence = whole_evidence_of(
        "task_never_submitted",
        contents=parse_contents(load("whole/task_never_submitted_get_contents_output_ext_all")),
        tasks=parse_tasks(load("whole/task_never_submitted_v1_get_tasks_detailed_info_since")),
        jobs=(),
    )
    assert evidence.unexplained_transforms == (74,)
    if planned:
        plan = plan_of("u_alice_mem3", (("meml", 1), ("finalJob", 1)))
        evidence = dataclasses.replace(evidence, plan=plan)
    report = make_run_report(evidence)
    assert nonzero(report.job_summary) == {"meml": {"FAILED": 1}, "finalJob": {"SUCCEEDED": 1}}
    assert report.state is WmsStates.FAILED
    text = str(report.specific_info)
    task = "u_alice_mem3_01_meml_01"
    assert NEVER.format(f"{task} (meml, 1 job)") + "; bps restart --id 19 runs it." in text
    assert "exit codes" not in text
    assert NEVER.format(f"{task} (meml, 1 job)") in get_status_of(evidence)[1]
    (group,) = add_verdicts(group_errors(evidence), PACKAGED_RULES)
    assert (group.jobs, group.error.text) == (1, NEVER.format(task))
    assert group.verdict.name == "not submitted"
    (line,) = [line for line in make_overview(evidence, server="").tasks if line.remark]
    assert (line.label, line.remark) == ("meml", NEVER.format(task))


def test_the_final_job_that_was_never_made_is_named():
    evidence = whole_evidence_of("final_never_made")
    report = make_run_report(evidence)
    assert NEVER.format("fl_2_02_finalJob_01 (finalJob)") in str(report.specific_info)
    planned = dataclasses.replace(evidence, plan=plan_of("fl_2", (("flat", 1), ("finalJob", 1))))
    report = make_run_report(planned)
    assert nonzero(report.job_summary) == {"flat": {"SUCCEEDED": 1}, "finalJob": {"FAILED": 1}}
    assert NEVER.format("fl_2_02_finalJob_01 (finalJob, 1 job)") in str(report.specific_info)


def test_a_task_that_was_submitted_again_is_the_same_task():
    tasks = parse_tasks(load("whole/task_never_submitted_v1_get_tasks_detailed_info_since"))
    (transform,) = transforms_from_tasks(tasks)
    assert (transform.transform_id, transform.name) == (75, "u_alice_mem3_02_finalJob_01")


def test_of_a_work_that_was_submitted_twice_one_task_counts_and_the_other_is_named():
    tasks = parse_tasks(load("whole/submitted_twice_v1_get_tasks_detailed_info_since"))
    transforms = transforms_from_tasks(tasks)
    assert {item.transform_id: item.workload_id for item in transforms}[198] == 198
    request = dataclasses.replace(request_from_tasks(tasks), status="Finished")
    evidence = RunEvidence(request, transforms, tasks=tasks, asked_at=LATER + timedelta(days=30))
    report = make_run_report(evidence)
    assert {state.name for state, number in report.job_state_counts.items() if number} == {"SUCCEEDED"}
    text = str(report.specific_info)
    assert "submitted task u_alice_ot1_06_char_02 more than once: PanDA task 198 counts" in text
    assert "task 196 (pending)" in text
    # It waits for inputs as many tasks do: nothing is said of queues.
    assert "No queue" not in text


@pytest.mark.parametrize(
    ("dialog", "status", "age", "lower"),
    [
        ("no candidates. brokerage failed for 1 input datasets when trying 1 datasets.", "ready", 90,
         "what the label asks for (requestMemory, requestCpus, requestWalltime)"),
        ("skip site=Q due to low memory 2000 < 9000 criteria=-lowmemory", "pending", 90, "requestMemory"),
        ("skip site=Q due to core count", "running", 90, "requestCpus"),
        ("throttled since transferring is large", "ready", 90, ""),
        ("no candidates.", "ready", 20, ""),
        ("insufficient inputs are ready. inputs are staging from a tape. 0 files", "pending", 999, ""),
        ("kill by Iddssv1 Robot", "toabort", 999, ""),
        ("", "ready", 999, ""),
    ],
)  # fmt: skip
def test_a_job_that_no_queue_takes_is_told_with_brokerages_words(dialog, status, age, lower):
    rows = load("real/run7_slash_get_requests_detail")
    evidence = RunEvidence(parse_requests(rows)[0], parse_transforms(rows), asked_at=LATER, jobs=())
    name, made = f"{evidence.transforms[0].name}_7_24", LATER - timedelta(seconds=age)
    task = TaskRecord(24, name, status, 7, files=2, finished=1, dialog=dialog, created_at=made)
    report = make_run_report(dataclasses.replace(evidence, tasks=(task,)))
    text = str(report.specific_info)
    assert ("No queue has taken 1 job of par (PanDA task 24) yet: " in text) == bool(lower)
    assert ("PanDA has not started 1 job of par (PanDA task 24): throttled" in text) == (
        "throttled" in dialog
    )
    assert f"move QUEUE --label par), or cancel the run and lower {lower};" in text if lower else True
    assert lower or "lower" not in text


def test_lost_workers_and_tasks_that_were_killed_are_told_with_pandas_words():
    rows = load("real/run7_slash_get_requests_detail")
    task = TaskRecord(24, "par", "running", 7)
    lost = JobRecord(
        1, 24, "failed", name="a", attempt=1, site="Q", node="n1.example",
        errors=(JobError("dispatcher", 100, "lost heartbeat : 2026-11-30 10:00:00"),),
    )  # fmt: skip
    again = JobRecord(2, 24, "activated", name="a", attempt=2, site="Q")
    given = (parse_requests(rows)[0], parse_transforms(rows))
    going = RunEvidence(*given, asked_at=LATER, tasks=(task,), jobs=(again, lost))
    assert (
        "lost the workers of 1 job of par and tries again; the last one was n1.example at Q (PanDA: lost "
        in (" ".join(find_remarks(going)))
    )
    assert not find_remarks(dataclasses.replace(going, jobs=(lost,)))
    old = dataclasses.replace(again, created=LATER - timedelta(hours=2), panda_id=3)
    (told,) = find_remarks(dataclasses.replace(going, jobs=(old,)))
    assert "Queue Q has started none of 1 job of par (PanDA: activated) since 20" in told
    for other in (
        dataclasses.replace(old, created=LATER),
        dataclasses.replace(old, started=LATER, status="finished"),
    ):
        assert not find_remarks(dataclasses.replace(going, jobs=(other,)))
    busy = dataclasses.replace(old, panda_id=4, name="b", started=LATER, status="running")
    assert not find_remarks(dataclasses.replace(going, jobs=(old, busy)))
    killed = dataclasses.replace(task, status="aborted", dialog="kill by Robot Panda")
    told = " ".join(find_remarks(dataclasses.replace(going, tasks=(killed,), jobs=())))
    assert "Killed in PanDA: task 24 (par; PanDA: kill by Robot Panda)." in told


def test_what_a_task_may_have_is_read():
    rows = load("whole/task_never_submitted_v1_get_tasks_detailed_info_since")
    # The server sends all parameters of the task; the capture was stored without them.
    rows[0]["raw_task_params"] = {"vo": "wlcg", "nFiles": 1, "maxFailure": 1, "maxAttempt": 1, "reqID": 19}
    (first, *_) = parse_tasks(rows)
    assert (first.max_attempts, first.memory, first.walltime) == (1, 500, 0)


def test_labels_and_runs_with_unusual_names_are_read_without_the_plan():
    evidence = whole_evidence_of("name_with_plus")
    assert list(evidence.tally.by_label) == ["l1", "finalJob"]
    rows = load("whole/labels_plus_umlaut_get_requests_detail")
    # A run of an earlier version shows the form that the tasks' names have.
    old = RunEvidence(parse_requests(rows)[0], parse_transforms(rows), asked_at=LATER)
    assert list(old.tally.by_label) == ["lab_el_d41bf4ac", "lab-el.x", "l_b_cc0d39cd", "finalJob"]
    labels = ("lab+el", "lab-el.x", "l\u00fcb", "finalJob")
    for row in rows:
        number = int(row["input_coll_name"].rpartition("#")[2])
        row["input_coll_name"] = collection_name(number, labels[number - 1])
    new = RunEvidence(parse_requests(rows)[0], parse_transforms(rows), asked_at=LATER)
    assert list(new.tally.by_label) == list(labels)
