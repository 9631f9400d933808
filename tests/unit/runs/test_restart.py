"""Restart: a new run of what is left, with the settings and the files of the first one."""

from __future__ import annotations

import dataclasses
import os
import re
import stat
from pathlib import Path

import pytest

from lsst.ctrl.bps import GenericWorkflow, GenericWorkflowExec, GenericWorkflowJob
from lsst.ctrl.bps.panda.errors import PandaBpsError, RunNotFoundError
from lsst.ctrl.bps.panda.plan.document import parse_plan, render_plan
from lsst.ctrl.bps.panda.plan.model import LabelSettings, PlanSettings, RunIdentity, StagedFile, WorkflowPlan
from lsst.ctrl.bps.panda.plan.planner import make_plan
from lsst.ctrl.bps.panda.rest.credentials import Anonymous
from lsst.ctrl.bps.panda.runs.client import Connection, FoundRun
from lsst.ctrl.bps.panda.runs.record import RemoteBuild, RunRecord, read_record
from lsst.ctrl.bps.panda.runs.restart import restart_run
from lsst.ctrl.bps.panda.settings.run import read_service_settings
from lsst.ctrl.bps.panda.staging import CANCELLED, StagingSettings, stage
from lsst.ctrl.bps.panda.status.evidence import RunEvidence
from lsst.ctrl.bps.panda.status.records import (
    ContentRecord,
    FileCounts,
    JobRecord,
    RequestRecord,
    TransformRecord,
)
from lsst.ctrl.bps.panda.status.vocabulary import CONTENT_STATUSES

NAME = "u_ann_pay_20261120T120000Z"
LABEL = LabelSettings("S", "", "", 1, "", "", "", "", "python3 runner.py _cmd_line_")


def plan_in(directory: Path) -> WorkflowPlan:
    """Plan three jobs of ``isr`` in two tasks, and a ``coadd`` after all of them."""
    workflow = GenericWorkflow(NAME)
    executable = GenericWorkflowExec("sh", "/bin/sh")
    for name, label in (("a", "isr"), ("b", "isr"), ("c", "isr"), ("d", "coadd"), ("e", "finalJob")):
        job = GenericWorkflowJob(name, label, executable=executable, arguments="{x}", cmdvals={"x": name})
        if label == "finalJob":
            workflow.add_final(job)
        else:
            workflow.add_job(job)
    workflow.add_job_relationships(["a", "b", "c"], "d")
    submit, area = directory / "submit", directory / "area"
    area.mkdir()
    run = RunIdentity(NAME, "ann", "", "", "pay", "", "S", str(submit), f"{area}/", "P", "B")
    return make_plan(workflow, PlanSettings(run=run, labels={"": LABEL}, max_jobs_per_task=2))


class Server:
    """Stands for the server and the client of it: what a run has come to cannot be had at will."""

    def __init__(
        self, directory: Path, *, record: RunRecord | None, counts=((2, 0), (0, 1), (0, 0)), available=()
    ):
        env = {"PANDA_URL": "http://here/server/panda", "USER": "ann", "XDG_STATE_HOME": str(directory)}
        self.connection = Connection(self, self, read_service_settings({}, env), Anonymous())
        self.record, self.counts, self.available = record, counts, available
        self.status_word, self.substatus, self.living = "SubFinished", "New", 0
        self.available_word = "Available"
        self.sent: list[str] = []
        self.asked: list[int] = []

    def find(self, run, *, unique):
        return FoundRun(7, self.record)

    def request(self, request_id):
        if self.status_word == "gone":
            raise RunNotFoundError(f"There is no run {request_id} on http://here.")
        return RequestRecord(request_id, NAME, self.status_word)

    def status(self, run):
        request = RequestRecord(7, NAME, self.status_word, self.substatus)
        transforms = []
        for number, (task, (done, failed)) in enumerate(zip(self.record.tasks, self.counts, strict=False), 1):
            total = task[2]
            counts = FileCounts(total=total, processed=done, failed=failed, missing=total - done - failed)
            word = "Finished" if done == total else "SubFinished"
            transforms.append(TransformRecord(7, number, task[0], word, "Finished", number, counts, None))
        final = self.record.tasks[-1][0]
        transforms.append(
            TransformRecord(7, 9, final, "Finished", "Finished", 9, FileCounts(total=1, processed=1))
        )
        return RunEvidence(request, tuple(transforms), plan=self.record.plan_summary())

    def with_panda(self, evidence):
        jobs = tuple(JobRecord(number, 1, "running") for number in range(self.living))
        return dataclasses.replace(evidence, jobs=jobs)

    def contents(self, request_id, transform_id):
        self.asked.append(transform_id)
        return [ContentRecord(transform_id, name, self.available_word) for name in self.available] + [
            ContentRecord(transform_id, "isr:9", "FinalFailed")
        ]

    # relay
    def get_request_ids_by_name(self, name):
        return {}

    def get_requests(self, request_id):
        return []

    def submit(self, arguments, keywords, *, build):
        assert not build
        self.sent.append(arguments)
        return 42


@pytest.fixture
def run(tmp_path):
    """A submitted run, with its files as ``bps prepare`` left them."""
    plan = plan_in(tmp_path)
    staging = StagingSettings(area=plan.run.staging_area, max_workers=3, group_permissions=True)
    record = RunRecord.from_plan(
        plan,
        staging=staging,
        clusters=("isr",),
        outputs=(("out", "/place/out"),),
        messages={"host": "broker"},
    ).submitted(7, server="http://here/server/panda")
    record.write()
    submit = Path(plan.run.submit_path)
    (submit / "panda_plan.json").write_text("".join(render_plan(plan)))
    for shard in plan.shards:
        path = submit / "panda_files" / shard.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(shard.text)
    (submit / f"{NAME}_config.yaml").write_text("a: 1\n")
    return plan, record


def plan_of(record: RunRecord) -> WorkflowPlan:
    text = Path(record.submit_path, "panda_plan.json").read_text()
    return parse_plan(text, source="x")


def names_in(plan: WorkflowPlan) -> list[str]:
    return [job.name for task in (*plan.tasks, *plan.final) for job in task.jobs]


def test_what_is_done_is_not_run_again(tmp_path, run):
    """A task whose counter is full is believed; of another each job is asked for."""
    plan, record = run
    server = Server(tmp_path, record=record)
    run_id, name, message = restart_run(server, "7")
    assert (run_id, name) == ("42", f"{NAME}_r1")
    assert "queued 1 isr, 1 coadd, 1 finalJob; 2 jobs are done already" in message
    new = read_record(Path(record.submit_path) / "restart_1")
    assert names_in(plan_of(new)) == ["c", "d", "e"]
    assert plan_of(new).run.origin == 7
    assert server.asked == [], "nothing is asked of tasks that are full or empty"
    assert len(server.sent) == 1
    assert (new.request_id, new.name, new.restarts) == (42, f"{NAME}_r1", 1)
    assert read_record(record.submit_path).restarted_as == 42


@pytest.mark.parametrize(("available", "left"), [(("isr:0",), ["b", "c"]), (("isr:1",), ["a", "c"])])
def test_of_a_task_that_is_not_full_each_job_is_asked_for(tmp_path, run, available, left):
    plan, record = run
    server = Server(tmp_path, record=record, counts=((1, 1), (0, 1), (0, 0)), available=available)
    restart_run(server, "7")
    assert names_in(plan_of(read_record(Path(record.submit_path) / "restart_1"))) == [*left, "d", "e"]
    assert server.asked == [1]


@pytest.mark.parametrize("status", CONTENT_STATUSES)
def test_a_restart_takes_as_done_what_the_vocabulary_does(tmp_path, run, status):
    """Of ``FakeAvailable`` it did not."""
    plan, record = run
    server = Server(tmp_path, record=record, counts=((1, 1), (0, 1), (0, 0)), available=("isr:0",))
    server.available_word = status
    restart_run(server, "7")
    left = ["b", "c"] if status in ("Available", "FakeAvailable") else ["a", "b", "c"]
    assert names_in(plan_of(read_record(Path(record.submit_path) / "restart_1"))) == [*left, "d", "e"]


def test_the_new_run_has_what_the_old_one_had(tmp_path, run):
    plan, record = run
    area = Path(plan.run.staging_area)
    (area / CANCELLED).write_text("cancelled")
    restart_run(Server(tmp_path, record=record), "7")
    new = read_record(Path(record.submit_path) / "restart_1")
    assert new.staging_settings == StagingSettings(area=f"{area}/", max_workers=3, group_permissions=True)
    assert new.clusters == ("isr",)
    assert [tuple(output) for output in new.outputs] == [("out", "/place/out")]
    assert new.messages == {"host": "broker"}
    assert Path(record.submit_path, f"{NAME}_r1_config.yaml").read_text() == "a: 1\n"
    staged = [path for path in area.rglob("*.json") if path.parent.name == "isr"]
    assert [path.read_text() for path in staged] == [s.text for s in plan.shards if "/isr/" in s.name]
    assert stat.S_IMODE(staged[0].stat().st_mode) & stat.S_IWGRP, "staged as the run was, for the group"
    assert not (area / CANCELLED).exists()


def test_a_restart_can_be_restarted(tmp_path, run):
    plan, record = run
    restart_run(Server(tmp_path, record=record), "7")
    first = read_record(Path(record.submit_path) / "restart_1")
    server = Server(tmp_path, record=first, counts=((0, 1), (0, 0)))
    run_id, name, message = restart_run(server, "42")
    assert name == f"{NAME}_r2"
    second = read_record(Path(record.submit_path) / "restart_2")
    assert second.restarts == 2
    assert str(second.origin_directory) == record.submit_path
    assert names_in(plan_of(second)) == ["c", "d", "e"]


@pytest.mark.parametrize(
    ("status", "substatus", "counts", "living", "words"),
    [
        (
            "Transforming",
            "New",
            ((2, 0), (0, 1), (0, 0)),
            0,
            r"is still going \(1 FAILED, 1 PRUNED\); wait for its end",
        ),
        ("Finished", "New", ((2, 0), (1, 0), (1, 0)), 0, "has succeeded; there is nothing to run again"),
        ("SubFinished", "ToCancel", ((2, 0), (0, 1), (0, 0)), 3, "but 3 of its jobs still run"),
    ],
)
def test_why_a_run_is_not_restarted(tmp_path, run, status, substatus, counts, living, words):
    server = Server(tmp_path, record=run[1], counts=counts)
    server.status_word, server.substatus, server.living = status, substatus, living
    run_id, name, message = restart_run(server, "7")
    assert (run_id, name) == (None, None)
    assert re.search(words, message)
    assert server.sent == []


def test_a_cancelled_run_whose_jobs_have_ended_is_restarted(tmp_path, run):
    server = Server(tmp_path, record=run[1])
    server.substatus = "ToCancel"
    assert restart_run(server, "7")[0] == "42"


def test_a_run_is_restarted_once(tmp_path, run):
    record = run[1]
    server = Server(tmp_path, record=record)
    restart_run(server, "7")
    server.record = read_record(record.submit_path)
    run_id, name, message = restart_run(server, "7")
    assert (run_id, name) == (None, None)
    assert "was restarted before, as run 42" in message
    assert len(server.sent) == 1


def test_a_run_whose_directory_is_not_known_cannot_be_restarted(tmp_path):
    with pytest.raises(PandaBpsError, match="its plan lies in its submit directory"):
        restart_run(Server(tmp_path, record=None), "7")
    server = Server(tmp_path, record=None)
    server.status_word = "gone"
    with pytest.raises(RunNotFoundError, match="There is no run 7 on"):
        restart_run(server, "7")


def test_files_that_have_changed_are_used_and_named(tmp_path, run):
    plan, record = run
    paths = {shard.name: Path(record.submit_path, "panda_files", shard.name) for shard in plan.shards}
    stage([StagedFile(name, str(path), name) for name, path in paths.items()], record.staging_settings)
    changed, *_ = sorted(paths)
    paths[changed].write_text(paths[changed].read_text() + "\n")
    _, _, message = restart_run(Server(tmp_path, record=record), "7")
    assert message.endswith(f". Changed since the run was submitted, and used in their new form: {changed}")


def test_a_pipeline_that_has_changed_is_named_since_it_is_not_used(tmp_path, run):
    plan, record = run
    paths = [tmp_path / name for name in ("changed.yaml", "old.yaml", "gone.yaml")]
    for path in paths[:2]:
        path.touch()
    planned = Path(record.submit_path, "panda_plan.json").stat().st_mtime
    for path, when in zip(paths, (planned + 1, planned - 1), strict=False):
        os.utime(path, (when, when))
    record = record.model_copy(update={"sources": tuple(map(str, paths))})
    record.write()
    _, _, message = restart_run(Server(tmp_path, record=record), "7")
    unused = f". Changed since the quantum graph was made, and not used: {paths[0]}; submit the run once more"
    assert message.endswith(f"{unused} for that")


@pytest.mark.parametrize("newer", ["original", "copy"])
def test_what_submitcmd_has_copied_is_copied_again_if_it_is_newer(tmp_path, run, newer):
    plan, record = run
    original, copy = tmp_path / "go.sh", Path(record.submit_path, "go.sh")
    for path, when in ((original, 10 + (newer == "original")), (copy, 10 + (newer == "copy"))):
        path.write_text(str(path))
        os.utime(path, (when, when))
    record = record.model_copy(update={"inputs": (str(original),)})
    record.write()
    _, _, message = restart_run(Server(tmp_path, record=record), "7")
    assert copy.read_text() == str(original if newer == "original" else copy)
    assert message.endswith(f". Copied anew into the submit directory: {original}") == (newer == "original")


@pytest.mark.parametrize(
    ("complete", "has_plan", "words"),
    [
        (True, True, None),
        (True, False, "the plan can be had neither from PanDA's file cache nor from the staging area"),
        (False, False, "the task that makes the plan did not succeed"),
    ],
)
def test_a_run_planned_at_its_site_is_restarted_if_its_plan_has_come_back(
    tmp_path, run, complete, has_plan, words
):
    plan, record = run
    record = record.model_copy(update={"remote": RemoteBuild(archive="jobO.x.tar.gz", complete=complete)})
    record.write()
    if not has_plan:
        Path(record.submit_path, "panda_plan.json").unlink()
    run_id, name, message = restart_run(Server(tmp_path, record=record), "7")
    assert (run_id, name) == ((None, None) if words else ("42", f"{NAME}_r1"))
    assert words is None or words in message


def test_a_run_without_its_plan_is_not_restarted(tmp_path, run):
    plan, record = run
    Path(record.submit_path, "panda_plan.json").unlink()
    with pytest.raises(RunNotFoundError, match="panda_plan.json"):
        restart_run(Server(tmp_path, record=record), "7")
