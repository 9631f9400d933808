"""What a real server said of an aborted run, and what else iDDS may say of the
killed jobs: it depends on whether it asked PanDA before it closed their task.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
from lsst.ctrl.bps.wms_service import WmsStates

from lsst.ctrl.bps.panda.insight.overview import make_overview
from lsst.ctrl.bps.panda.insight.progress import error_lines, make_progress
from lsst.ctrl.bps.panda.insight.task_graph import make_task_graph, state_of
from lsst.ctrl.bps.panda.report import describe_counts, get_status_of, make_run_list, make_run_report
from lsst.ctrl.bps.panda.rest.credentials import Anonymous
from lsst.ctrl.bps.panda.runs.client import Connection, RunClient
from lsst.ctrl.bps.panda.settings.run import read_service_settings
from lsst.ctrl.bps.panda.status.failures import group_errors
from lsst.ctrl.bps.panda.status.replies import parse_jobs

CAPTURES = Path(__file__).parents[1] / "data" / "captures" / "real"
ISR, CALIBRATE = 10, 11
# Of four jobs of isr one finished before, one is made to have failed before, and two were killed.
FAILED_BEFORE = {
    "status": "FinalFailed", "job_status": "failed", "trans_exit_code": 17,
    "pilot_error_code": 1305, "pilot_error_diag": "Failed to execute payload",
    "attempt_nr": 1, "max_attempt": 1, "panda_id": 21,
}  # fmt: skip
KILLED_RUNNING = {
    "status": "FinalFailed", "job_status": "failed", "trans_exit_code": 143, "pilot_error_code": 1144,
    "pilot_error_diag": "This job was killed by panda server", "task_buffer_error_code": 100,
}  # fmt: skip
WAYS = {
    "iDDS did not ask again": {},
    "it saw pilots end them": KILLED_RUNNING,
    "it saw them end with an attempt left": {**KILLED_RUNNING, "status": "Failed"},
    "it saw PanDA cancel them": {
        "status": "FinalFailed", "job_status": "cancelled", "task_buffer_error_code": 100,
    },
    "it knows that they failed, not yet how": {"status": "FinalFailed"},
    "it saw the task aborted": {"status": "Missing"},
}  # fmt: skip
COUNTER = {"Failed": "failed", "FinalFailed": "failed", "Missing": "missing", "Activated": "activated"}


def load(name):
    return json.loads((CAPTURES / f"run3_aborted_final_get_{name}.json").read_text())[1][1]


class Server:
    """Answers as iDDS did, with the killed jobs in one of the ways."""

    def __init__(self, way, *, failed_before):
        self.rows, self.contents = load("requests_detail"), load("contents_output_ext_all")
        before, *killed = self.contents[str(ISR)][1:]
        if failed_before:
            self._change(before, FAILED_BEFORE)
            # What waited for it was pruned then, with its input.
            pruned = self.contents[str(CALIBRATE)][1]
            self._change(pruned, {"status": "Missing"})
            row = self._row(CALIBRATE)
            row["input_missing_files"] += 1
            row["input_new_files"] -= 1
        else:
            killed.append(before)
        for content in killed:
            self._change(content, way)

    def _row(self, transform_id):
        return next(row for row in self.rows if row["transform_id"] == transform_id)

    def _change(self, content, changes):
        row = self._row(content["transform_id"])
        changes = copy.deepcopy(changes)
        if status := changes.pop("status", None):
            row[f"output_{COUNTER.get(content['status'], 'new')}_files"] -= 1
            row[f"output_{COUNTER[status]}_files"] += 1
            assert (
                min(value for key, value in row.items() if key.startswith("output_") and "files" in key) >= 0
            )
            content["status"] = status
        content.update(changes)

    def get_requests(self, request_id, *, with_detail=False, with_metadata=False):
        return self.rows

    def get_contents(self, request_id, transform_id=None):
        return {str(transform_id): self.contents[str(transform_id)]}

    def tasks_since(self, since=None, *, filters=None, limit=500):
        return []


@pytest.fixture(params=[False, True], ids=["none failed before", "one failed before"])
def failed_before(request):
    return request.param


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def inquiry(request, failed_before, tmp_path):
    server = Server(request.param, failed_before=failed_before)
    env = {"PANDA_URL": "http://here/server/panda", "USER": "ann", "XDG_STATE_HOME": str(tmp_path)}
    return RunClient(Connection(server, server, read_service_settings({}, env), Anonymous()))


def named(counts):
    return {state.name: number for state, number in counts.items() if number}


def expected(failed_before):
    if failed_before:
        return {
            "isr": {"SUCCEEDED": 1, "FAILED": 1, "DELETED": 2},
            "calibrate": {"SUCCEEDED": 1, "PRUNED": 1, "DELETED": 2},
        }
    return {"isr": {"SUCCEEDED": 1, "DELETED": 3}, "calibrate": {"SUCCEEDED": 1, "DELETED": 3}}


def of_both(labels):
    return {label: named(counts) for label, counts in labels.items() if label in ("isr", "calibrate")}


def test_whoever_asks_reads_the_same(inquiry, failed_before):
    wanted = expected(failed_before)
    for evidence in (inquiry.status(3), inquiry.detail(3), inquiry.detail(3, errors=False)):
        report = make_run_report(evidence)
        assert of_both(report.job_summary) == wanted
        assert evidence.problems == ()
        assert report.state is get_status_of(evidence)[0] is WmsStates.DELETED
        assert report.exit_code_summary["isr"] == ([17] if failed_before else [])
        (listed,) = make_run_list([evidence])
        progress = make_progress(evidence, evidence.asked_at)
        assert progress.total == listed.job_state_counts == evidence.tally.total
        assert of_both(progress.labels) == wanted
        assert ("1 FAILED" in describe_counts(evidence)) is failed_before
        assert [line[:17] for line in error_lines(evidence)] == ["1 x payload 17 in"] * failed_before


def job_row(panda_id, name, **errors):
    return {
        "PandaID": panda_id, "jediTaskID": 10, "jobStatus": "failed", "attemptNr": 1,
        "Files": [{"type": "pseudo_input", "lfn": f"000000:{name}"}], **errors,
    }  # fmt: skip


def test_what_failed_by_itself_comes_before_what_the_cancel_ended(tmp_path):
    server = Server(KILLED_RUNNING, failed_before=True)
    env = {"PANDA_URL": "http://here/server/panda", "USER": "ann", "XDG_STATE_HOME": str(tmp_path)}
    inquiry = RunClient(Connection(server, server, read_service_settings({}, env), Anonymous()))
    evidence = inquiry.status(3)
    rows = [job_row(n, f"isr_{n}", transExitCode="143", pilotErrorCode=1144) for n in (22, 23)]
    rows.append(job_row(21, "isr_1", transExitCode="17", pilotErrorCode=1305))
    groups = group_errors(dataclasses.replace(evidence, attempts=parse_jobs(rows, {10: "isr"})))
    assert [(group.error.code, group.unfinished) for group in groups] == [(17, 1), (143, 2)]


def test_tasks_are_shown_alike(inquiry, failed_before):
    evidence = inquiry.status(3)
    lines = {line.label: line for line in make_overview(evidence, server="").tasks}
    assert (lines["isr"].finished, lines["isr"].failed, lines["isr"].deleted) == (
        (1, 1, 2) if failed_before else (1, 0, 3)
    )
    nodes = {node.label: node for node in make_task_graph(evidence, None).nodes}
    assert state_of(nodes["isr"].counts) is (WmsStates.FAILED if failed_before else WmsStates.DELETED)
    assert named(nodes["calibrate"].counts) == expected(failed_before)["calibrate"]
