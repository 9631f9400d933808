"""A remote build on the embedded PanDA: ``bps submit`` sends the
configuration, a task makes quantum graph and plan, and the run goes on.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
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


has_lazy_groups = pytest.mark.skipif(
    not hasattr(lsst.ctrl.bps, "GenericWorkflowLazyGroup"), reason="lazy groups are of newer BPS"
)

ACQUIRE = (
    "bps {bpsPreCommandOpts} batch-acquire {configFile} --save-qgraph {fileDistributionEndPoint}{qgraphFile}"
)
PREPARE = "bps {bpsPreCommandOpts} batch-prepare {configFile} -g {fileDistributionEndPoint}{qgraphFile}"

STAGE = """\
#!/bin/bash
# Tell that this stage began, wait for its gate, run out of memory once if wanted, go on.
cd "$(dirname "$0")"; name=$1; shift
echo "$name $FLAVOUR" >> begun.txt
until test -e "gate.$name"; do sleep 0.2; done
if rm "fail.$name" 2> /dev/null; then
    # More memory than its first attempt has, and less than the next.
    python3 -c 'import time; memory = b"x" * (900 << 20); time.sleep(60)'
fi
cd "$OLDPWD"; exec "$@"
"""


def write_stage(place: Place, name: str) -> Path:
    """A folder with the program of two stages, whose gates are shut."""
    folder = place.directory / f"stages_{name}"
    folder.mkdir()
    (folder / "stage.sh").write_text(STAGE)
    (folder / "stage.sh").chmod(0o755)
    return folder


def await_lines(file: Path, count: int) -> list[str]:
    """Wait until a file has so many lines."""
    end = time.monotonic() + LIMIT
    while not file.exists() or len(lines := file.read_text().splitlines()) < count:
        assert time.monotonic() < end
        time.sleep(0.2)
    return lines


def assert_build(place: Place, run_id: str, column: int) -> str:
    """The report has one job, of the build task, in this column (`UNKNOWN` is the first)."""
    report = place.call("bps", "report", "--id", run_id)
    numbers = re.search(r"^buildTask((?: +\d+)+)$", report, re.MULTILINE)[1].split()
    assert [index for index, number in enumerate(numbers[:-1]) if number == "1"] == [column], report
    return report


RUNNING, DELETED, SUCCEEDED, FAILED = 5, 6, 8, 9


@pytest.mark.newest
@pytest.mark.once
@has_lazy_groups
def test_the_stages_of_a_batch_submission(place):
    """Each stage has its own command, memory and attempts; all that works on a run works in each phase."""
    folder = write_stage(place, "good")
    config = place.write(
        "batch",
        wmsServiceClass="lsst.ctrl.bps.panda.LocalPanDAService",
        bpsBatchSubmission=True,
        environment={"FLAVOUR": "a 'b'"},
        buildQuantumGraph={
            "jobCommand": f"{folder}/stage.sh one {ACQUIRE}",
            "requestMemory": 600,
            "memoryMultiplier": 3,
            "numberOfRetries": 1,
        },
        preparePayloadWorkflow={
            "jobCommand": f"{folder}/stage.sh two {PREPARE}",
            "requestMemory": 800,
            "memoryMultiplier": 1,
            "numberOfRetries": 0,
        },
        cluster={"makeWarp": {"pipetasks": "makeWarp, assembleCoadd", "dimensions": "band"}},
        # What the jobs do is proved elsewhere.
        runQuantumCommand="/bin/true {qgraphNodeId}",
        pipetask={"pipetaskInit": {"runQuantumCommand": "/bin/true init"}},
        finalJob={"command1": "/bin/true final"},
    )
    (folder / "fail.two").touch()
    run_id, submit_path = submit(place, config)
    # During the first stage.
    assert await_lines(folder / "begun.txt", 1) == ["one a 'b'"]
    assert "buildTask" in assert_build(place, run_id, RUNNING)
    said = place.call("bps", "status", "--id", run_id, code=None)
    assert "status: RUNNING" in said
    assert f"Run {run_id} is still going" in place.call("bps", "restart", "--id", run_id, code=None)
    (folder / "gate.one").touch()
    (folder / "gate.two").touch()
    # The second stage runs out of memory once; the next attempt, with three times as much, does both.
    report = wait_for_plan(place, run_id)
    assert [line.split()[0] for line in await_lines(folder / "begun.txt", 4)] == ["one", "two"] * 2
    assert re.search(r"^finalJob( +\d+){11} +1$", report, re.MULTILINE), report
    assert re.search(r" included +local +batch +", report), report
    assert not list(submit_path.glob("*.qg"))
    assert place.wait(run_id) == "SUCCEEDED", place.logs()[-3000:]
    report = assert_build(place, run_id, SUCCEEDED)
    # Clusters as the site made them.
    assert re.search(r"^makeWarp( +0){8} +2 +0 +0 +2$", report, re.MULTILINE), report
    assert "assembleCoadd" not in report
    assert re.search(r"^finalJob( +0){8} +1 +0 +0 +1$", report, re.MULTILINE), report
    (build, *_) = json.loads(place.call("panda_bps", "resources", run_id, "--json"))["labels"]
    known = ("label", "attempts", "finished", "requested_memory", "largest_request", "out_of_memory")
    assert [build[key] for key in known] == ["buildTask", 2, 1, 800, 2400, 1]


@pytest.mark.newest
@pytest.mark.once
@has_lazy_groups
def test_stages_that_do_not_succeed(place):
    """An empty graph, a second stage that fails, and a cancelled one; none leaves jobs behind."""
    common = {"bpsBatchSubmission": True, "numberOfRetries": 0}
    here = "preparePayloadWorkflow"
    # BPS's own commands: the graph is empty, and written all the same.
    query = "skymap='starcam_sky' AND tract=0 AND visit=1"
    empty = place.write("empty", **common, payload={"payloadName": "empty", "dataQuery": query})
    broken = place.write(
        "broken",
        **common,
        buildQuantumGraph={"jobCommand": "/bin/echo {configFile} {qgraphFile}"},
        preparePayloadWorkflow={"jobCommand": "bash -c 'echo what is wrong; exit 7'"},
    )
    idle = place.write(
        "idle",
        **common,
        buildQuantumGraph={"jobCommand": "/bin/echo one"},
        preparePayloadWorkflow={"jobCommand": "/bin/echo two"},
    )
    folder = write_stage(place, "cancelled")
    (folder / "gate.one").touch()
    cancelled = place.write(
        "cancelled",
        **common,
        buildQuantumGraph={"jobCommand": f"{folder}/stage.sh one /bin/echo one"},
        preparePayloadWorkflow={"jobCommand": f"{folder}/stage.sh two {PREPARE}"},
    )
    runs = {Path(file).stem: submit(place, file)[0] for file in (empty, broken, idle, cancelled)}
    await_lines(folder / "begun.txt", 2)
    assert f"Run {runs['cancelled']} is cancelled" in place.call("bps", "cancel", "--id", runs["cancelled"])
    assert place.wait(runs["cancelled"]) == "DELETED"
    assert_build(place, runs["cancelled"], DELETED)
    words = {
        "empty": r"buildQuantumGraph ended with exit code 1(?s:.*)\| Error: QuantumGraph was empty",
        "broken": rf"{here} ended with exit code 7",
        "idle": rf"{here} succeeded without adding jobs to the run",
    }
    for name, reason in words.items():
        assert place.wait(runs[name]) == "FAILED"
        assert "submit the run once more" in " ".join(assert_build(place, runs[name], FAILED).split())
        said = place.call("panda_bps", "errors", runs[name])
        assert re.search(reason, said), said
    assert re.search(r"\| .*what is wrong", place.call("panda_bps", "errors", runs["broken"]))
    for run_id in runs.values():
        said = place.call("bps", "restart", "--id", run_id, code=None)
        assert "nothing to restart" in said, said


@pytest.mark.newest
@pytest.mark.long
@has_lazy_groups
def test_stages_that_are_cancelled_before_and_after(place):
    """Before the task begins nothing runs; after it, its jobs are deleted, and restart runs them."""
    folder = write_stage(place, "early")
    stage = {"jobCommand": f"{folder}/stage.sh one {ACQUIRE}"}
    early = submit(place, place.write("early", bpsBatchSubmission=True, buildQuantumGraph=stage))[0]
    assert f"Run {early} is cancelled" in place.call("bps", "cancel", "--id", early)
    assert place.wait(early) == "DELETED"
    report = place.call("bps", "report", "--id", early)
    assert "The run was cancelled." in report
    assert not re.search(r"^(isr|finalJob)", report, re.MULTILINE), report
    gate = place.directory / "late"
    command = f"test -e {gate} || sleep 300; python3 _runner_ _cmd_line_"
    late = place.write("late", bpsBatchSubmission=True, cluster={"isr": {"payloadCommand": command}})
    run_id = submit(place, late)[0]
    wait_for_plan(place, run_id)
    assert f"Run {run_id} is cancelled" in place.call("bps", "cancel", "--id", run_id)
    assert place.wait(run_id) == "DELETED"
    assert_build(place, run_id, SUCCEEDED)
    gate.touch()
    said = place.call("bps", "restart", "--id", run_id)
    restarted = re.search(r"^Run Id: (\d+)$", said, re.MULTILINE)[1]
    assert place.wait(restarted) == "SUCCEEDED", place.logs()[-3000:]
    assert "buildTask" not in place.call("bps", "report", "--id", restarted)


PROGRAM = """\
import sys
from pathlib import Path

from lsst.ctrl.bps import BPS_DEFAULTS, BPS_SEARCH_ORDER, BpsConfig, GenericWorkflow, GenericWorkflowExec
from lsst.ctrl.bps import GenericWorkflowFile, GenericWorkflowJob, GenericWorkflowLazyGroup
from lsst.ctrl.bps.panda import PanDAService

FOLDER = Path("{folder}")


def make_job(kind, name, command, label="", memory=100):
    return kind(
        name,
        label or name,
        executable=GenericWorkflowExec("sh", "/bin/sh", False),
        arguments="-c '" + command + "; echo " + name + " >> {folder}/done.txt'",
        request_memory=memory,
        number_of_retries=0,
    )


def submit(file):
    config = BpsConfig(
        file,
        search_order=BPS_SEARCH_ORDER,
        defaults=BPS_DEFAULTS,
        wms_service_class_fqn="lsst.ctrl.bps.panda.PanDAService",
    )
    config[".bps_defined.timestamp"] = "20260101T000000Z"
    workflow = GenericWorkflow(config["uniqProcName"])
    workflow.run_attrs.update(bps_run=workflow.name, bps_operator="ann")
    workflow.add_job(make_job(GenericWorkflowJob, "before", "cp table.txt made.txt"))
    table = GenericWorkflowFile("table", str(FOLDER / "table.txt"), wms_transfer=True)
    made = GenericWorkflowFile("made", str(FOLDER / "made.txt"), wms_transfer=True)
    workflow.add_job_inputs("before", [table])
    workflow.add_job_outputs("before", [made])
    command = "{python} {folder}/program.py make <FILE:configFile>"
    lazy = make_job(GenericWorkflowLazyGroup, "lazy", command, memory=900)
    workflow.add_job(lazy, ["before"])
    workflow.add_job_inputs("lazy", [GenericWorkflowFile("configFile", file, wms_transfer=True)])
    workflow.add_job(make_job(GenericWorkflowJob, "after", "cat <FILE:made>"), ["lazy"])
    workflow.add_job_inputs("after", [made])
    workflow.add_final(make_job(GenericWorkflowJob, "finalJob", "true"))
    service = PanDAService(config)
    made = service.prepare(config, workflow, config["submitPath"])
    service.submit(made)
    print("Run Id:", made.run_id)


def make(file):
    config = BpsConfig(file)
    workflow = GenericWorkflow(config["uniqProcName"])
    for number in range(3):
        gate = f"test -e {folder}/gate || exit 3" if number == 1 else "true"
        workflow.add_job(make_job(GenericWorkflowJob, f"part{{number}}", gate, "part"))
    made = PanDAService(config).prepare(config, workflow, config["submitPath"])
    made.add_to_parent_workflow(config)


globals()[sys.argv[1]](sys.argv[2])
"""


@pytest.mark.newest
@pytest.mark.once
@has_lazy_groups
def test_a_program_with_a_lazy_group_in_the_middle(place):
    """One id, in the order of the workflow; restart makes what the group made again where it failed."""
    folder = place.directory / "program"
    folder.mkdir()
    (folder / "table.txt").write_text("from here")
    (folder / "program.py").write_text(PROGRAM.format(folder=folder, python=sys.executable))
    config = place.write("middle", uniqProcName="middle", outputRun="u/ann/middle")
    python = [sys.executable, str(folder / "program.py"), "submit", config]
    done = subprocess.run(python, cwd=folder, env=place.env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run_id = re.search(r"^Run Id: (\d+)$", done.stdout, re.MULTILINE)[1]
    assert place.wait(run_id) == "FAILED"
    report = assert_build(place, run_id, SUCCEEDED)
    assert re.search(r"^part( +0){8} +2 +1 +0 +3$", report, re.MULTILINE), report
    assert re.search(r"^after( +0){8} +0 +0 +1 +1$", report, re.MULTILINE), report
    (folder / "gate").touch()
    said = place.call("bps", "restart", "--id", run_id)
    assert place.wait(re.search(r"^Run Id: (\d+)$", said, re.MULTILINE)[1]) == "SUCCEEDED"
    names = (folder / "done.txt").read_text().split()
    assert names[:2] == ["before", "lazy"]
    assert sorted(names[2:5]) == ["finalJob", "part0", "part2"]
    assert names[5:] == ["part1", "after", "finalJob"]
