"""``panda_bps act`` on runs of an embedded PanDA, whose iDDS then makes of it what a real one does: jobs that
are killed, tried again, moved, given memory, and released.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from lsst.ctrl.bps.wms_service import WmsStates
from panda_servers.commands import Commands
from panda_servers.local import wait_for
from panda_servers.runs import await_end, make_config, make_service_class, make_workflow

from lsst.ctrl.bps import (
    GenericWorkflowExec,
    GenericWorkflowJob,
)
from lsst.ctrl.bps.panda.insight.documents import read_schema
from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.local.endpoint import EndpointClient
from lsst.ctrl.bps.panda.report import make_run_report
from lsst.ctrl.bps.panda.runs.client import RunClient, connect
from lsst.ctrl.bps.panda.status.evidence import RunEvidence

pytestmark = pytest.mark.slow

QUEUES = {
    "LOCAL": {"cores": 4},
    "other": {"cores": 2},
    "moved": {"cores": 1},
    "grown": {"cores": 1},
    "held": {"cores": 1},
}
"""The last ones have room for one job, of one run."""

HELD = "_held_"
"""Part of the names of tasks that no queue takes."""

LOST = "_lost_.*_work_"
"""Tasks whose workers are lost once."""


class Site:
    """A user's place, and an embedded PanDA."""

    def __init__(self, directory: Path, commands: Commands) -> None:
        self.directory = directory
        self.commands = commands
        self.panda = directory / "panda"
        self.going = ""
        """A run that does not end."""

        self.users: dict[str, str] = {}
        """Who has submitted a run; the owner of the embedded PanDA has no name, and the production role."""

        self.environment = {
            "HOME": str(directory),
            "USER": "ann",
            "PATH": os.environ["PATH"],
            "PANDA_LOCAL_DIR": str(self.panda),
            "XDG_STATE_HOME": str(directory / "state"),
        }
        queues = directory / "queues.yaml"
        queues.write_text(json.dumps(QUEUES))
        self.endpoint = instance.start(self.panda, slots=6, queues=str(queues))
        instance.set_faults(
            self.endpoint,
            [
                {"action": "hold", "target": "task", "match": HELD},
                {"action": "lose", "match": LOST, "attempts": 1},
            ],
        )

    def submit(self, name: str, jobs: dict[str, str], *, queue: str = "LOCAL", user: str = "ann") -> str:
        """Submit a run of jobs of label ``work``, a job of label ``after`` behind each; return its id.

        Jobs are given as shell commands; ``wait`` stands for one that waits until `open` is called.
        """
        submit = self.directory / "submit" / name
        area = self.directory / "area" / name
        config = make_config(name, submit, area, queue=queue, requestMemory=100)
        workflow = make_workflow(name)
        shell = GenericWorkflowExec("bash", "/bin/bash", False)
        for job, command in jobs.items():
            text = f"until test -e {submit}/open; do sleep 0.1; done" if command == "wait" else command
            for word, label, parents in ((job, "work", []), (f"{job}_after", "after", [job])):
                made = GenericWorkflowJob(word, label, executable=shell)
                made.arguments = f"-c '{text if word == job else ':'}'"
                made.number_of_retries = 1
                made.request_memory = 100
                made.queue = queue
                workflow.add_job(made, parent_names=parents)
        service = make_service_class(self.environment, self.endpoint, user=user)(config)
        prepared = service.prepare(config, workflow, str(submit))
        service.submit(prepared)
        self.users[str(prepared.run_id)] = user
        return str(prepared.run_id)

    def open(self, name: str) -> None:
        """Let the waiting jobs of a run end."""
        (self.directory / "submit" / name / "open").touch()

    def call(self, *words: str, user: str = "ann", code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run ``panda_bps act`` as a user; an empty one is the owner, who has the production role."""
        environment = dict(self.environment)
        if user:
            environment |= make_service_class({}, self.endpoint, user=user).env
        done = self.commands.run(
            "panda_bps",
            "act",
            *words,
            directory=self.directory,
            environment=environment,
            limit=120,
            code=None,
        )
        assert done.returncode == code, (done.stdout, done.stderr)
        return done

    def outcomes(self, *words: str, user: str = "ann", code: int = 0) -> list[dict[str, object]]:
        """Run ``panda_bps act`` and return what it says was done."""
        document = json.loads(self.call(*words, "--json", user=user, code=code).stdout)
        jsonschema.validate(document, read_schema())
        found = document["outcomes"]
        assert isinstance(found, list)
        return found

    def evidence(self, run: str) -> RunEvidence:
        """Ask the servers about a run."""
        service = make_service_class(self.environment, self.endpoint, user=self.users[run])({})
        return RunClient(connect(service.settings())).detail(run)

    def report(self, run: str) -> str:
        """Return what is told about a run besides its counts."""
        return str(make_run_report(self.evidence(run)).specific_info)

    def await_jobs(self, run: str, *statuses: str) -> None:
        """Wait until PanDA has jobs with these statuses, and no others."""
        wait_for(
            lambda: sorted(job.status for job in self.evidence(run).jobs or ()) == sorted(statuses),
            f"{statuses}",
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, commands: Commands) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("acts")
    try:
        yield Site(directory, commands)
    finally:
        instance.stop(directory / "panda")


@pytest.fixture
def going(site: Site) -> str:
    """A run that goes on."""
    site.going = site.going or site.submit("u_ann_going", {"a": "wait"})
    wait_for(lambda: any(job.running for job in site.evidence(site.going).jobs or ()), "a job that runs")
    return site.going


def test_a_job_is_killed_for_good_and_restart_runs_it(site: Site) -> None:
    run = site.submit("u_ann_kill", {"a": "wait", "b": "wait"})
    site.await_jobs(run, "running", "running")
    assert site.call(run, "kill", "--job", "a", "--dry-run").stdout.count("would be: kill") == 1
    (outcome,) = site.outcomes(run, "kill", "--job", "a", "--now")
    assert outcome["done"]
    assert outcome["after"].endswith("attempt 2 of 2")
    assert "killed by ann" in outcome["note"]
    site.open("u_ann_kill")
    assert await_end(site.panda, run, site.environment, limit=120) is WmsStates.FAILED
    found = site.evidence(run)
    counts = found.tally.by_label
    assert (counts["work"][WmsStates.FAILED], counts["work"][WmsStates.SUCCEEDED]) == (1, 1)
    assert (counts["after"][WmsStates.PRUNED], counts["after"][WmsStates.SUCCEEDED]) == (1, 1)
    assert ["killed by ann" in failure.errors[0].text for failure in found.failures] == [True]
    done = site.call(run, "kill", "--job", "a", code=1)
    assert f"it has ended (FAILED). bps restart --id {run} runs again" in done.stderr
    service = make_service_class(site.environment, site.endpoint, user="ann")({})
    again, _, message = service.restart(run)
    assert again, message
    assert await_end(site.panda, again, site.environment, limit=120) is WmsStates.SUCCEEDED


def test_killing_a_label_prunes_what_needs_it(site: Site) -> None:
    run = site.submit("u_ann_label", {"a": "wait", "b": "true"})
    wait_for(
        lambda: site.evidence(run).tally.by_label["work"][WmsStates.SUCCEEDED] == 1,
        "a job that has succeeded",
    )
    site.await_jobs(run, "running")
    (outcome,) = site.outcomes(run, "kill", "--label", "work")
    assert (outcome["done"], outcome["after"]) == (True, "aborted at LOCAL, kill by ann")
    assert await_end(site.panda, run, site.environment, limit=120) is WmsStates.FAILED
    counts = site.evidence(run).tally.by_label
    assert (counts["work"][WmsStates.PRUNED], counts["after"][WmsStates.PRUNED]) == (1, 1)
    told = site.report(run)
    assert f"Killed in PanDA: task {outcome['task_id']} (work; PanDA: kill by ann)." in told
    assert f"bps restart --id {run} runs it." in told


def test_the_present_attempt_is_given_up(site: Site) -> None:
    run = site.submit("u_ann_retry", {"a": "wait"})
    site.await_jobs(run, "running")
    (outcome,) = site.outcomes(run, "retry", "--label", "work", "--now")
    assert (outcome["done"], outcome["note"]) == (True, "")
    assert outcome["after"].endswith("attempt 2 of 2")
    # Another time would fail it.
    wait_for(lambda: any(job.running for job in site.evidence(run).jobs or ()), "a second attempt that runs")
    (outcome,) = site.outcomes(run, "retry", "--job", "a", code=1)
    assert "last attempt" in outcome["note"]
    site.open("u_ann_retry")
    assert await_end(site.panda, run, site.environment, limit=120) is WmsStates.SUCCEEDED


def test_waiting_jobs_are_moved(site: Site) -> None:
    run = site.submit("u_ann_move", {"a": "wait", "b": "wait"}, queue="moved")
    site.await_jobs(run, "activated", "running")
    (outcome,) = site.outcomes(run, "move", "other", "--label", "work")
    assert (outcome["done"], outcome["after"]) == (True, "running at other")
    site.await_jobs(run, "closed", "running", "running")
    sites = {job.site for job in site.evidence(run).jobs or () if job.running}
    assert sites == {"moved", "other"}
    site.open("u_ann_move")
    assert await_end(site.panda, run, site.environment, limit=120) is WmsStates.SUCCEEDED


def test_held_tasks_are_named_and_moved(site: Site) -> None:
    run = site.submit("u_ann_held", {"a": "true"})
    wait_for(lambda: any(task.dialog.startswith("no cand") for task in site.evidence(run).tasks), "a remark")
    outcomes = site.outcomes(run, "move", "other")
    assert all(outcome["done"] for outcome in outcomes)
    assert any("no candidates" in outcome["before"] for outcome in outcomes)
    assert await_end(site.panda, run, site.environment, limit=120) is WmsStates.SUCCEEDED


def test_memory_and_time_are_changed_by_who_has_the_role(site: Site) -> None:
    run = site.submit("u_ann_memory", {"a": "wait", "b": "wait"}, queue="grown", user="")
    site.await_jobs(run, "activated", "running")
    (outcome,) = site.outcomes(run, "memory", "150", "--label", "work", user="")
    assert outcome["done"]
    assert "1 job that waits keeps what it has" in str(outcome["note"])
    assert all(outcome["done"] for outcome in site.outcomes(run, "time", "600", user=""))
    (waiting,) = [job for job in site.evidence(run).jobs or () if job.waiting]
    assert waiting.memory == 100
    (outcome,) = site.outcomes(run, "retry", "--job", waiting.name, user="")
    assert outcome["done"]
    assert {job.memory for job in site.evidence(run).jobs or () if job.waiting} == {150}


def test_a_paused_task_is_named_and_released(site: Site) -> None:
    run = site.submit("u_ann_pause", {"a": "wait", "b": "wait"}, queue="held", user="")
    site.await_jobs(run, "activated", "running")
    assert "No task of run" in site.call(run, "release", user="", code=1).stderr
    (waiting,) = [job for job in site.evidence(run).jobs or () if job.waiting]
    EndpointClient(site.endpoint, timeout=10).api("task/pause", {"task_id": waiting.task_id})
    site.open("u_ann_pause")
    wait_for(lambda: f"Paused in PanDA: task {waiting.task_id} (work)." in site.report(run), "a remark")
    (outcome,) = site.outcomes(run, "release", user="")
    assert outcome["done"]
    assert await_end(site.panda, run, site.environment, limit=120) is WmsStates.SUCCEEDED


def test_lost_workers_are_named(site: Site) -> None:
    run = site.submit("u_ann_lost_", {"a": "wait"})
    wait_for(
        lambda: "PanDA lost the workers of 1 job of work and tries again" in site.report(run), "a remark"
    )
    assert "(PanDA: lost heartbeat : " in site.report(run)
    site.open("u_ann_lost_")
    assert await_end(site.panda, run, site.environment, limit=120) is WmsStates.SUCCEEDED


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["kill", "--label", "wokr"], "The run has no label 'wokr'"),
        (["kill", "--job", "c"], "The run has no job 'c'"),
        (["kill"], "Say which jobs to kill"),
        (["move", "other", "--job", "a"], "PanDA can move only whole tasks"),
        (["move"], "move needs a value: the name of a queue."),
        (["memory", "2GB"], "'2GB' is no value for memory: give MB per core"),
        (["release", "5"], "release takes no value"),
        (["move", "nowhere", "--label", "work"], "queue 'nowhere' is not known"),
    ],
)
def test_what_cannot_be_done_is_told(site: Site, going: str, words: list[str], told: str) -> None:
    done = site.call(going, *words, code=1)
    assert told in done.stderr + done.stdout


def test_only_the_owner_may(site: Site, going: str) -> None:
    refused = site.call(going, "memory", "150", "--label", "work", code=1).stdout
    assert "refused: production or pilot role required. PanDA lets only people with its production" in refused
    for words in (["kill", "--label", "work"], ["move", "other"]):
        done = site.call(going, *words, user="bob", code=1)
        assert f"Only its owner can act on run {going}, which is that of ann" in done.stderr
    assert "There is no run 999" in site.call("999", "kill", "--label", "work", code=1).stderr
