"""Each status, source and code has one meaning, whoever asks."""

from __future__ import annotations

import ast
import dataclasses
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from lsst.ctrl.bps.wms_service import WmsStates

from lsst.ctrl.bps.panda.insight.documents import read_schema
from lsst.ctrl.bps.panda.insight.messages import StatusMessage
from lsst.ctrl.bps.panda.insight.progress import LiveCounts, error_lines, make_progress
from lsst.ctrl.bps.panda.report import get_status_of, make_run_list, make_run_report
from lsst.ctrl.bps.panda.status import vocabulary
from lsst.ctrl.bps.panda.status.evidence import RunEvidence
from lsst.ctrl.bps.panda.status.failures import add_verdicts, group_errors
from lsst.ctrl.bps.panda.status.job_errors import JobError, choose_error
from lsst.ctrl.bps.panda.status.records import (
    ContentRecord,
    FileCounts,
    JobRecord,
    RequestRecord,
    TransformRecord,
)
from lsst.ctrl.bps.panda.status.replies import parse_contents, parse_jobs
from lsst.ctrl.bps.panda.status.verdicts import PACKAGED_RULES, parse_rulebook
from lsst.ctrl.bps.panda.status.vocabulary import (
    JOB_STATUSES,
    KILL_CODES,
    MEMORY_ADVICE,
    REQUEST_STATUSES,
    RULES,
    SOURCES,
    TASK_STATUSES,
    TERMINAL_STATUSES,
    TRANSFORM_STATUSES,
    VERDICTS,
    JobPhase,
    is_running,
    panda_field,
)

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
PACKAGE = Path(vocabulary.__file__).parents[1]
PAGES = Path(__file__).resolve().parents[3] / "doc" / "lsst.ctrl.bps.panda"


def failed_run(*errors: tuple[JobError, ...]) -> RunEvidence:
    """Make a run whose jobs failed, each with some errors, as iDDS tells it."""
    outputs = FileCounts(total=len(errors), failed=len(errors))
    isr = TransformRecord(7, 1, "run_01_isr_01", "SubFinished", workload_id=10, outputs=outputs)
    contents = tuple(
        ContentRecord(
            1, f"isr:{number}", "FinalFailed", panda_id=20 + number, job_status="failed", errors=some
        )
        for number, some in enumerate(errors)
    )
    request = RequestRecord(7, "run", "SubFinished", updated_at=NOW)
    return RunEvidence(request, (isr,), contents={1: contents}, asked_at=NOW.replace(hour=13))


def report_text(evidence: RunEvidence) -> str:
    return str(make_run_report(evidence).specific_info)


@pytest.mark.parametrize("code", [1212, 1223, 1235])
@pytest.mark.parametrize("payload", [(), (JobError("payload", 143),)], ids=["alone", "behind the payload's"])
def test_report_and_errors_agree_on_memory(code, payload):
    """Of 1223 and 1235 `bps report` did not know it."""
    evidence = failed_run((*payload, JobError("pilot", code, "too much")))
    (group,) = add_verdicts(group_errors(evidence), PACKAGED_RULES)
    assert group.verdict.name == "out of memory"
    text = report_text(evidence)
    assert MEMORY_ADVICE in text
    assert "ended by a signal: look" not in text


def test_what_is_not_memory_is_not_called_so():
    for errors in ((JobError("payload", 1),), (JobError("pilot", 137),), (JobError("payload", 139),)):
        evidence = failed_run(errors)
        (group,) = add_verdicts(group_errors(evidence), PACKAGED_RULES)
        assert group.verdict.name != "out of memory"
        assert MEMORY_ADVICE not in report_text(evidence)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("no object at 0x7f3a5b", "no object at 0xdeadbeef"),
        ("file 12 of 100", "file 7 of 20"),
        ("job 8f14e45f-ceea-467f-a0e6-1234567890ab", "job 00000000-ceea-467f-a0e6-1234567890ab"),
    ],
)
def test_what_differs_from_job_to_job_is_one_error_for_everybody(one, other):
    evidence = failed_run((JobError("pilot", 1099, one),), (JobError("pilot", 1099, other),))
    assert [group.attempts for group in group_errors(evidence)] == [2]
    assert [line[:15] for line in error_lines(evidence)] == ["2 x pilot 1099 "]
    assert report_text(evidence).count("\n    pilot 1099 (") == 1
    assert "\n    2 x isr (storage)" in report_text(evidence)


def test_errors_that_differ_otherwise_are_two():
    evidence = failed_run((JobError("pilot", 1099, "no file a"),), (JobError("pilot", 1099, "no file b"),))
    assert len(group_errors(evidence)) == len(error_lines(evidence)) == 2
    assert report_text(evidence).count("\n    pilot 1099 (") == 2


@pytest.mark.parametrize("status", JOB_STATUSES)
def test_who_runs_is_the_same_for_report_watch_and_messages(status):
    """`report` counted a job that is held back as running, `watch` did not."""
    outputs = FileCounts(total=3, activated=3)
    isr = TransformRecord(7, 1, "run_01_isr_01", "Transforming", "Submitted", workload_id=10, outputs=outputs)
    job = JobRecord(21, 10, status)
    evidence = RunEvidence(RequestRecord(7, "run", "Transforming"), (isr,), jobs=(job,), asked_at=NOW)
    running = int(is_running(status))
    assert running == (status in ("running", "holding", "transferring", "merging"))
    assert evidence.running_jobs == running
    # The end of a failed attempt is booked until PanDA has counted it or made another.
    assert evidence.tally.total[WmsStates.RUNNING] == running + (status == "failed")

    seen = LiveCounts()
    seen.rebase(evidence)
    without = make_progress(dataclasses.replace(evidence, jobs=()), NOW)
    assert seen.apply(without).total[WmsStates.RUNNING] == running

    told = LiveCounts()
    told.rebase(dataclasses.replace(evidence, jobs=()))
    told.take(StatusMessage(10, status, 21))
    assert told.apply(without).total[WmsStates.RUNNING] == running
    assert told.needs_poll == (JOB_STATUSES[status] in (JobPhase.FAILED, JobPhase.KILLED))


def test_sources_have_one_precedence():
    names = list(SOURCES)
    contents = {"transform_id": 1, "status": "FinalFailed"}
    job = {"PandaID": 3, "jobStatus": "failed"}
    for number, (source, (code, text)) in reversed(list(enumerate(SOURCES.items(), start=1))):
        contents[code] = job[panda_field(code)] = number
        contents[text] = job[panda_field(text)] = source
        (content,) = parse_contents([contents])[1]
        (record,) = parse_jobs([job])
        assert [error.source for error in content.errors] == names[number - 1 :]
        assert [error.source for error in record.errors] == names[number - 1 :]
        assert choose_error(content.errors[::-1]).source == source
    assert names[:2] == ["payload", "pilot"]


def test_sources_are_those_of_the_schema_the_rules_and_the_page():
    known = {*SOURCES, "task", "unknown"}
    assert set(read_schema()["$defs"]["single_error"]["properties"]["source"]["enum"]) == known
    for source in known:
        book = parse_rulebook(f"rules: [{{verdict: mine, source: {source}}}]", "mine")
        assert book.find_verdict([JobError(source, 1)]).name == "mine"
    page = (PAGES / "failures.rst").read_text(encoding="utf-8")
    assert [source for source in SOURCES if f"``{source}``" not in page] == []


def test_statuses_that_several_tables_have_mean_the_same():
    assert {"Finished", "SubFinished", "Failed", "Cancelled", "Expired"} == TERMINAL_STATUSES
    assert set(TASK_STATUSES.values()) <= set(TRANSFORM_STATUSES)
    for status in set(REQUEST_STATUSES) & set(TRANSFORM_STATUSES):
        killed = TRANSFORM_STATUSES[status].name == "DELETING"
        assert killed == REQUEST_STATUSES[status].name.startswith("KILL"), status
        assert (TRANSFORM_STATUSES[status].name == "HELD") == (REQUEST_STATUSES[status].name == "HELD"), (
            status
        )
    assert {"done", "finished", "failed", "exhausted", "aborted", "broken"} == vocabulary.ENDED_TASKS
    assert {"toabort", "aborting"} == vocabulary.CANCELLING_TASKS
    assert {"paused"} == vocabulary.PAUSED_TASKS
    assert {
        "running",
        "scouting",
        "prepared",
        "merging",
        *vocabulary.CANCELLING_TASKS,
    } == vocabulary.ACTIVE_TASKS


def test_rules_and_verdicts_name_each_other():
    assert {rule.verdict for rule in RULES} | {"unknown"} == set(VERDICTS)
    assert all(source in (*SOURCES, "task") for rule in RULES for source in rule.sources)


@pytest.mark.parametrize(("source", "code"), sorted(KILL_CODES))
def test_who_was_told_to_end_is_judged_so(source, code):
    assert PACKAGED_RULES.find_verdict([JobError(source, code)]).name == "cancelled"


def test_what_follows_from_the_evidence_is_worked_out_once():
    evidence = failed_run((JobError("payload", 17),))
    tally, failures = evidence.tally, evidence.failures
    make_run_report(evidence)
    make_progress(evidence, NOW)
    get_status_of(evidence)
    assert evidence.tally is tally
    assert evidence.failures is failures
    # Everybody shows it.
    (listed,) = make_run_list([evidence])
    assert listed.job_state_counts == make_run_report(evidence).job_state_counts == tally.total
    assert make_progress(evidence, NOW).total == tally.total
    assert get_status_of(evidence)[0] is listed.state is tally.state
    more = evidence.with_attempts((JobRecord(5, 10, "failed"),), ["a task did not answer"])
    assert more.tally is tally
    assert more.failures is failures
    assert (len(more.attempts), more.problems) == (1, (*evidence.problems, "a task did not answer"))
    changed = dataclasses.replace(evidence, contents={})
    assert changed.failures == ()


def test_a_report_does_not_share_its_counts_with_the_evidence():
    evidence = failed_run((JobError("payload", 17),))
    report = make_run_report(evidence)
    report.job_state_counts[WmsStates.FAILED] += 5
    assert evidence.tally.total[WmsStates.FAILED] == 1


STATUSES = {
    *REQUEST_STATUSES,
    *TRANSFORM_STATUSES,
    *vocabulary.CONTENT_STATUSES,
    *JOB_STATUSES,
    *TASK_STATUSES,
}
FIELD = re.compile(r"\w+(ErrorCode|ErrorDiag|_error_code|_error_diag)|transExitCode|trans_exit_code")


@pytest.mark.parametrize(
    "path",
    [
        path
        for room in ("status", "report", "insight", "runs", "checks", "campaign", "cli", "web")
        for path in sorted((PACKAGE / room).glob("*.py"))
        if path.name not in ("vocabulary.py", "__init__.py")
    ],
    ids=lambda path: f"{path.parent.name}.{path.stem}",
)
def test_nobody_else_writes_a_table_of_statuses_or_sources(path):
    wrong = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Set):
            words = {item.value for item in node.elts if isinstance(item, ast.Constant)}
            if len(words & STATUSES) > 1:
                wrong.append(f"line {node.lineno}: {sorted(words & STATUSES)}")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and FIELD.fullmatch(node.value):
            wrong.append(f"line {node.lineno}: {node.value}")
    assert wrong == []
