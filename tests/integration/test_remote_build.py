"""A remote build on the embedded PanDA: ``bps submit`` sends the
configuration, a task makes quantum graph and plan, and the run goes on.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from panda_servers.commands import Commands
from panda_servers.runs import await_end

import lsst.ctrl.bps
from lsst.ctrl.bps.panda.demo.repository import create_repo
from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.local.endpoint import environment

# Some run in the second pass, too: the way to a build is in BPS's drivers.
pytestmark = pytest.mark.slow

LIMIT = 400.0
SERVICE = "lsst.ctrl.bps.panda.PanDAService"


class Place:
    """A submit host, and a site that shares nothing with it but PanDA and
    the Butler.
    """

    def __init__(self, directory: Path, commands: Commands) -> None:
        self.directory = directory
        self.commands = commands
        self.panda = directory / "panda"
        self.repo = directory / "repo"
        create_repo(self.repo, visits_per_band=2, detectors=4, patches=1)
        endpoint = instance.start(self.panda, slots=4, warm_workers=True)
        self.env = {
            "PATH": commands.path,
            "HOME": str(directory),
            "USER": "ann",
            "LC_ALL": "C.UTF-8",
            "PANDA_AUTH_ID_TOKEN_OF_MINE": "geheim",
            "BPS_WMS_SERVICE_CLASS": SERVICE,
            "PANDA_LOCAL_DIR": str(self.panda),
            **{name: value for name, value in environment(endpoint).items() if value},
        }

    def write(self, name: str, **values: object) -> str:
        config = {
            "includeConfigs": ["resource://lsst.ctrl.bps.panda.demo/bps_demo.yaml", "parts/more.yaml"],
            "wmsServiceClass": SERVICE,
            "computeSite": "local",
            "operator": "ann",
            "submitPath": f"{self.directory}/submit/{{outputRun}}",
            "butlerConfig": self.repo.as_uri(),
            "payload": {"payloadName": name},
            **values,
        }
        (self.directory / "parts").mkdir(exist_ok=True)
        (self.directory / "parts" / "more.yaml").write_text("campaign: included\n")
        path = self.directory / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        return str(path)

    def call(self, *command: str, code: int | None = 0) -> str:
        done = subprocess.run(
            [self.commands.folder / command[0], *command[1:]],
            cwd=self.directory,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def wait(self, run_id: str) -> str:
        """Wait until the run has ended; its state, as ``bps status`` has it."""
        await_end(self.panda, run_id, self.env, limit=LIMIT)
        said = self.call("bps", "status", "--id", run_id, code=None)
        return re.findall(r"status: (\w+)", said)[-1]

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in self.panda.glob("logs/*/payload.stdout"))


@pytest.fixture(scope="module")
def place(tmp_path_factory, commands):
    place = Place(tmp_path_factory.mktemp("remote"), commands)
    yield place
    instance.stop(place.panda)


def submit(place: Place, config: str, *options: str) -> tuple[str, Path]:
    """Submit; the run's id and submit directory."""
    said = place.call("bps", "submit", *options, config)
    assert "A task at the site makes the plan of run" in said
    found = dict(re.findall(r"^(Run Id|Submit dir|Run Name): (.+)$", said, re.MULTILINE))
    name = Path(found["Submit dir"]).relative_to(place.directory / "submit").as_posix()
    assert found["Run Name"] == name.replace("/", "_")
    return found["Run Id"], Path(found["Submit dir"])


def test_a_run_that_is_planned_at_the_site(place):
    """Up to its restart: warps fail as long as a file is not there."""
    (place.directory / "data.txt").write_text("goes along")
    gate = place.directory / "go"
    command = f"test -e {gate} || exit 3; python3 _runner_ _cmd_line_"
    config = place.write(
        "good",
        remoteBuild={"enabled": True, "files": [f"{place.directory}/data.txt"], "requestMemory": 1500},
        cluster={"makeWarp": {"payloadCommand": command, "numberOfRetries": 0}},
    )
    run_id, submit_path = submit(place, config, "--compute-site", "local")
    # From the first moment on, whatever of it is known.
    assert re.search(r"^buildTask( +\d+)+$", place.call("bps", "report", "--id", run_id), re.MULTILINE)
    said = place.call("bps", "restart", "--id", run_id, code=None)
    assert f"Run {run_id} is still going" in said
    assert place.wait(run_id) == "FAILED", place.logs()[-3000:]
    report = place.call("bps", "report", "--id", run_id)
    assert re.search(r"^buildTask( +0){8} +1 +0 +0 +1$", report, re.MULTILINE), report
    assert re.search(r"^isr( +0){8} +4 +0 +0 +4$", report, re.MULTILINE), report
    assert re.search(r"^makeWarp( +0){8} +0 +4 +0 +4$", report, re.MULTILINE), report
    # Its quantum graph and parameters are in the staging area only.
    assert re.search(r"makeWarp_\d+ \(makeWarp:\d; tract=0, patch=0, visit=\d+, band=[gr]\)", report), report
    said = place.call("panda_bps", "show", run_id, "--data", "visit=260315001, patch=0")
    assert re.search(r"^makeWarp +makeWarp:\d +makeWarp_260315001 ", said, re.MULTILINE), said
    # Both sides speak of the same run, and the submit host knows its plan.
    record = json.loads((submit_path / "panda_run.json").read_text())
    assert record["remote"]["complete"]
    assert ["isr", 4] in record["labels"]
    assert record["run"]["campaign"] == "included"
    assert all(name == "build_task" or name.startswith(record["run"]["name"]) for name, *_ in record["tasks"])
    gate.touch()
    found = dict(re.findall(r"^(Run Id|Run Name): (.+)$", place.call("bps", "restart", "--id", run_id), re.M))
    assert place.wait(found["Run Id"]) == "SUCCEEDED", place.logs()[-3000:]
    report = place.call("bps", "report", "--id", found["Run Id"])
    assert "buildTask" not in report
    assert not re.search("^isr ", report, re.MULTILINE)
    assert re.search(r"^makeWarp( +0){8} +4 +0 +0 +4$", report, re.MULTILINE), report
    assert re.search(r"^finalJob( +0){8} +1 +0 +0 +1$", report, re.MULTILINE), report
    collections = place.call("butler", "query-collections", str(place.repo))
    assert submit_path.relative_to(place.directory / "submit").as_posix() in collections
    for path in submit_path.rglob("*"):
        assert path.is_dir() or b"geheim" not in path.read_bytes(), path


def test_a_build_that_fails_says_why(place):
    # It is found by the command that makes the quantum graph, whose output goes with the task.
    pipeline = place.directory / "bad_pipeline.yaml"
    pipeline.write_text("description: bad\ntasks: {isr: no.such.Task}\n")
    config = place.write(
        "bad", pipelineYaml=str(pipeline), remoteBuild={"enabled": True, "numberOfRetries": 0}
    )
    run_id, _ = submit(place, config)
    assert place.wait(run_id) == "FAILED"
    assert "no.such" in place.logs()
    said = place.call("bps", "report", "--id", run_id)
    assert re.search(r"^buildTask .* 1 +0 +1$", said, re.MULTILINE)
    assert "bps restart" not in said
    assert "Next: the task that makes the plan of the run did not succeed" in said
    said = place.call("panda_bps", "errors", run_id)
    assert "buildTask: 1 attempt of 1 job" in said
    assert "=> build: " in said
    assert re.search(r"\| .*no\.such", said), said
    assert "submit the run once more" in " ".join(said.split())
    said = place.call("bps", "restart", "--id", run_id, code=None)
    assert "the task that makes the plan did not succeed, so there is nothing to restart" in said


def test_files_that_are_too_large_are_refused_before_anything_is_sent(place):
    (place.directory / "large.bin").write_bytes(os.urandom(11 * 1024**2))
    config = place.write("large", remoteBuild={"enabled": True, "files": [f"{place.directory}/large.bin"]})
    said = place.call("bps", "submit", config, code=1)
    assert re.search(r"have \d+ bytes when packed; PanDA's file cache takes 10485760", said)
    assert "Largest: large.bin" in said


def test_not_enabled_is_an_ordinary_run(place):
    config = place.write("off", remoteBuild={"enabled": False})
    said = place.call("bps", "submit", config)
    assert "A task at the site makes the plan" not in said
    found = dict(re.findall(r"^(Run Id|Submit dir): (.+)$", said, re.MULTILINE))
    assert list(Path(found["Submit dir"]).glob("*.qg"))
    assert place.call("bps", "cancel", "--id", found["Run Id"])


@pytest.mark.newest
@pytest.mark.once
def test_bps_knows_one_class_only(place):
    """With any other class, BPS trips over the section: its drivers compare
    the class with one name.  `panda_bps build` is the way for those.
    """
    config = place.write(
        "other", wmsServiceClass="lsst.ctrl.bps.panda.LocalPanDAService", remoteBuild={"enabled": True}
    )
    said = place.call("bps", "submit", config, code=1)
    # BPS 30.2026.300 trips, 30.2026.4300 hands over nothing.
    assert "UnboundLocalError" in said or "'panda_bps build CONFIG' works with any" in said
    said = place.call("panda_bps", "build", config)
    run_id = re.search(r"^Run Id: (\d+)$", said, re.MULTILINE)[1]
    assert re.search(r"^buildTask", place.call("bps", "report", "--id", run_id), re.MULTILINE)
    wait_for_plan(place, run_id)
    said = place.call("bps", "cancel", "--id", run_id)
    assert f"Run {run_id} is cancelled" in said
    assert place.wait(run_id) == "DELETED"


def wait_for_plan(place: Place, run_id: str) -> str:
    """Wait until the report shows the run behind its build; never less than
    the build.
    """
    end = time.monotonic() + LIMIT
    while True:
        report = place.call("bps", "report", "--id", run_id)
        assert re.search(r"^buildTask( +\d+){11} +1$", report, re.MULTILINE), report
        if re.search(r"^isr( +\d+){11} +4$", report, re.MULTILINE):
            return report
        assert time.monotonic() < end, report
        time.sleep(0.5)


@pytest.mark.newest
@pytest.mark.skipif(
    not hasattr(lsst.ctrl.bps, "GenericWorkflowLazyGroup"), reason="bpsBatchSubmission is of newer BPS"
)
def test_bps_batch_submission_is_a_build(place):
    """BPS makes jobs of the stages of a submission; here, one task does them,
    whatever the class.
    """
    config = place.write(
        "batch", wmsServiceClass="lsst.ctrl.bps.panda.LocalPanDAService", bpsBatchSubmission=True
    )
    run_id, submit_path = submit(place, config)
    report = wait_for_plan(place, run_id)
    assert re.search(r"^finalJob( +\d+){11} +1$", report, re.MULTILINE), report
    assert re.search(r"CAMPAIGN +SITE +PAYLOAD +RUN", report), report
    assert re.search(r" included +local +batch +", report), report
    assert not list(submit_path.glob("*.qg"))
    assert place.call("bps", "cancel", "--id", run_id)
