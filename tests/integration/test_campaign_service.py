"""What a campaign service (such as ``lsst-dm/cm-service``) does with BPS: a script that submits, the lines
that are printed, and the service class in a process that lives on.  Runs are known by their directories.
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

from lsst.ctrl.bps.panda.demo.repository import create_repo
from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.local.endpoint import environment

pytestmark = pytest.mark.slow

LIMIT = 400.0
CLASS = "lsst.ctrl.bps.panda.PanDAService"

DAEMON = """\
import json, pickle, sys, threading
from lsst.ctrl.bps import WmsStates
from lsst.ctrl.bps.bps_reports import compile_job_summary
from lsst.utils import doImport

service_class = doImport(sys.argv[1])
# Both ways are in use: the configuration is empty, or holds something that is none.
services = [service_class(config={}), service_class({"config": {}})]

def ask(directory):
    state, words = services[0].get_status(directory)
    runs, message = services[1].report(wms_workflow_id=directory)
    (run,) = pickle.loads(pickle.dumps(runs))
    given, run.job_summary = run.job_summary, None
    compile_job_summary(run)
    assert run.job_summary == given
    counts = {state.name: count for state, count in run.job_state_counts.items()}
    ended = sum(counts[name] for name in ("SUCCEEDED", "FAILED", "PRUNED"))
    print(json.dumps({
        "status": state.name,
        "words": len(words) + len(message),
        "state": run.state.name,
        "id": run.wms_id,
        "total": run.total_number_jobs,
        "ended": ended / run.total_number_jobs,
        "held": [job.name for job in run.jobs if job.state is WmsStates.HELD],
        "special": {job.name: job.state.name for job in run.jobs if job.name in ("pipetaskInit", "finalJob")},
        "summary": {
            label: {state.name: count for state, count in states.items() if count}
            for label, states in run.job_summary.items()
        },
    }), flush=True)

for line in sys.stdin:
    # A server asks in a thread of its own.
    thread = threading.Thread(target=ask, args=[line.strip()])
    thread.start()
    thread.join()
"""


class Service:
    """The scripts and the daemon of a campaign service."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        create_repo(directory / "repo", visits_per_band=1, detectors=1, patches=1)
        endpoint = instance.start(directory / "panda", slots=4)
        self.env = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(directory),
            "USER": "lsstsvc1",
            "LC_ALL": "C.UTF-8",
            **{name: value for name, value in environment(endpoint).items() if value},
            # The scripts unset PANDA_CONFIG_ROOT, where a token would be.
            "PANDA_AUTH_ID_TOKEN": instance.make_token(endpoint, "lsstsvc1"),
        }
        self._daemon = subprocess.Popen(
            [sys.executable, "-c", DAEMON, CLASS],
            env=self.env,
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, name: str, command: str) -> dict[str, str]:
        """Write a script with a command of BPS and run it; what was printed, as name and value."""
        artifacts = self.directory / "artifacts"
        artifacts.mkdir(exist_ok=True)
        script = artifacts / f"{name}.sh"
        script.write_text(
            "#!/usr/bin/env bash\nset -e\n"
            f"export PANDA_SYS={sys.prefix}\n"
            "export IDDS_CONFIG=${PANDA_SYS}/etc/idds/idds.cfg.client.template\n"
            'export IDDS_MAX_NAME_LENGTH="30000"\n'
            f'export BPS_WMS_SERVICE_CLASS="{CLASS}"\nunset PANDA_CONFIG_ROOT\n'
            f"bps --log-file {artifacts}/{name}.json --no-log-tty {command} > {artifacts}/{name}.out\n"
        )
        script.chmod(0o755)
        done = subprocess.run(
            [script], env=self.env, cwd=artifacts, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        # The log is there for machines: one object a line.
        for line in (artifacts / f"{name}.json").read_text().splitlines():
            assert "message" in json.loads(line)
        printed = (artifacts / f"{name}.out").read_text()
        # A name may have blanks, and so line ends: a line without colon would become part of the next name.
        return dict(re.findall(r"^([\w\s]+):\s*(.*)$", printed, re.MULTILINE))

    def ask(self, directory: str) -> dict:
        """Ask the daemon for the run of a submit directory."""
        assert self._daemon.stdin is not None
        assert self._daemon.stdout is not None
        self._daemon.stdin.write(directory + "\n")
        self._daemon.stdin.flush()
        return json.loads(self._daemon.stdout.readline())

    def wait(self, directory: str) -> dict:
        """Wait for the end of a run, as the daemon sees it; until then it is always running, never held."""
        end = time.monotonic() + LIMIT
        while (seen := self.ask(directory))["status"] == "RUNNING":
            assert seen["held"] == []
            assert time.monotonic() < end, seen
            time.sleep(1)
        return seen

    def close(self) -> None:
        assert self._daemon.stdin
        self._daemon.stdin.close()
        self._daemon.wait(timeout=30)
        assert self._daemon.stdout is not None
        self._daemon.stdout.close()
        instance.stop(self.directory / "panda")


@pytest.fixture
def service(tmp_path):
    service = Service(tmp_path)
    yield service
    service.close()


@pytest.mark.newest
@pytest.mark.once
def test_a_group_of_a_campaign(service):
    """Submitted, looked at, failed, restarted and done, by the one directory that was printed first."""
    gate = service.directory / "gate"
    run_name = "u_lsstsvc1_w_2026_40_step1_group0"
    config = {
        "includeConfigs": ["resource://lsst.ctrl.bps.panda.demo/bps_demo.yaml"],
        "operator": "lsstsvc1",
        "submitPath": f"{service.directory}/artifacts/submit",
        "uniqProcName": run_name,
        "LSST_VERSION": "w_2026_40",
        "wmsServiceClass": CLASS,
        "computeSite": "local",
        "payload": {
            "payloadName": "group0",
            "butlerConfig": (service.directory / "repo").as_uri(),
            "output": "u/lsstsvc1/w_2026_40/step1",
            "outputRun": "u/lsstsvc1/w_2026_40/step1/group0",
            "inCollection": "StarCam/defaults",
            "dataQuery": "skymap='starcam_sky' AND tract=0",
        },
        "numberOfRetries": 0,
        "runQuantumCommand": "/bin/true {qgraphNodeId}",
        "pipetask": {"pipetaskInit": {"runQuantumCommand": "/bin/true init"}},
        "cluster": {"makeWarp": {"runQuantumCommand": f"test -e {gate}"}},
        "finalJob": {"command1": "/bin/true final"},
    }
    file = service.directory / "group0_bps_config.yaml"
    file.write_text(yaml.safe_dump(config))
    printed = service.run("group0", f"submit {file} ${{BPS_SUBMIT_OPTIONS}}")
    directory = printed["Submit dir"]
    assert set(printed) == {"Submit dir", "Run Id", "Run Name"}
    assert printed["Run Name"] == run_name
    assert directory == config["submitPath"]
    # What a service looks for before it restarts.
    assert Path(directory, run_name).with_suffix(".qg").is_file()
    # Whatever is not running is a failure to it.
    first = service.ask(directory)
    assert (first["status"], first["state"], first["id"]) == ("RUNNING", "RUNNING", printed["Run Id"])
    assert first["total"] > 5
    seen = service.wait(directory)
    assert (seen["status"], seen["state"], seen["ended"]) == ("FAILED", "FAILED", 1)
    assert seen["special"] == {"pipetaskInit": "SUCCEEDED", "finalJob": "SUCCEEDED"}
    assert seen["summary"]["makeWarp"] == {"FAILED": 2}
    assert seen["summary"]["isr"] == {"SUCCEEDED": 2}
    assert sum(sum(states.values()) for states in seen["summary"].values()) == seen["total"] == first["total"]
    gate.touch()
    again = service.run("group0_restart", f"restart --id {directory} ${{BPS_RESTART_OPTIONS}}")
    assert set(again) == {"Run Id", "Run Name"}
    assert again["Run Id"] != printed["Run Id"]
    # The directory is still the name of the run.
    assert service.ask(directory)["status"] == "RUNNING"
    seen = service.wait(directory)
    assert (seen["status"], seen["id"], seen["ended"]) == ("SUCCEEDED", again["Run Id"], 1)
    assert seen["summary"]["makeWarp"] == {"SUCCEEDED": 2}
    assert os.path.isdir(directory)
