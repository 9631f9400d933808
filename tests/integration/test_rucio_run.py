"""A run of the demo whose outputs are registered by the step of the run, on
the embedded PanDA, with a worker's Python that lacks this plugin.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from lsst.ctrl.bps.wms_service import WmsStates
from lsst.daf.butler import Butler

from lsst.ctrl.bps.panda import LocalPanDAService
from lsst.ctrl.bps.panda.demo.repository import create_repo
from lsst.ctrl.bps.panda.demo.workplace import Workplace
from lsst.ctrl.bps.panda.insight.documents import read_schema
from lsst.ctrl.bps.panda.local import instance

pytestmark = pytest.mark.slow

_BIN = Path(sys.executable).parent
_ENDED = (WmsStates.SUCCEEDED, WmsStates.FAILED, WmsStates.DELETED)
_TYPES = ("post_isr_image", "isr_metadata")


class Campaign:
    """A workplace whose repository is the folder of a scope below an RSE."""

    def __init__(self, directory: Path, server) -> None:
        self.server = server
        self.place = Workplace(directory)
        self.far = directory / "far"
        create_repo(self.place.repo, visits_per_band=1, detectors=2, patches=1)
        server.add_scope("repo")
        server.add_rse("DEMO_DISK", directory)
        server.add_rse("DEMO_FAR", self.far)
        self.place.write_files()
        config = yaml.safe_load(self.place.config.read_text())
        config["pipelineYaml"] = "resource://lsst.ctrl.bps.panda.demo/pipeline.yaml#simulate,isr"
        config["rucio"] = {
            "enabled": True,
            "datasetTypes": list(_TYPES),
            "scope": "repo",
            "rse": "DEMO_DISK",
            "rseRoot": str(directory),
            "dtnUrl": server.transfer_url(directory),
            "rule": {"rseExpression": "DEMO_FAR"},
            "quantumGraph": True,
            "python": str(server.worker_python),
            "environment": {"RUCIO_CONFIG": str(self.client_configuration)},
            "numberOfRetries": 0,
        }
        self.place.config.write_text(yaml.safe_dump(config))

    @property
    def client_configuration(self) -> Path:
        """What the worker's Rucio reads; not there at first."""
        return self.place.directory / "rucio.cfg"

    def call(self, *command: str, code: int = 0) -> str:
        done = subprocess.run(
            [str(_BIN / command[0]), *command[1:]],
            cwd=self.place.directory,
            env={**self.place.environment(), **self.server.client_environment()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == code, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        return done.stdout if "--json" in command else done.stdout + done.stderr

    def wait(self, run_id: str):
        end = time.monotonic() + 900
        reports = []
        while time.monotonic() < end:
            reports, message = LocalPanDAService({}).report(wms_workflow_id=run_id)
            if reports and reports[0].state in _ENDED:
                return reports[0]
            time.sleep(1.0)
        raise AssertionError(f"run {run_id} has not ended: {reports} {message}")

    def logs(self) -> str:
        return "\n".join(
            path.read_text(errors="replace")[-2000:]
            for path in sorted((self.place.panda / "logs").glob("*/payload.stderr"))[-2:]
        )


@pytest.fixture(scope="module")
def campaign(rucio_server, tmp_path_factory):
    campaign = Campaign(tmp_path_factory.mktemp("campaign"), rucio_server)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in campaign.place.environment().items():
            patch.setenv(name, value)
        try:
            yield campaign
        finally:
            instance.stop(campaign.place.panda)


def _line(text, name):
    (value,) = {line.split(": ", 1)[1] for line in text.splitlines() if line.startswith(f"{name}: ")}
    return value


def _states(report):
    return {
        label: {state.name: number for state, number in states.items() if number}
        for label, states in report.job_summary.items()
    }


def test_step_that_failed_is_done_by_a_restart(campaign, rucio_server):
    said = campaign.call("bps", "submit", str(campaign.place.config))
    assert "rucioRegister" in said
    run_id, directory = _line(said, "Run Id"), Path(_line(said, "Submit dir"))
    report = campaign.wait(run_id)
    # The worker's set-up of Rucio is not there yet.
    assert _states(report).pop("rucioRegister") == {"FAILED": 1}, campaign.logs()
    others = {label: states for label, states in _states(report).items() if label != "rucioRegister"}
    assert all(set(states) == {"SUCCEEDED"} for states in others.values()), campaign.logs()
    assert report.state == WmsStates.FAILED
    rucio = rucio_server.client()
    run = campaign.place.output_run(directory)
    assert "does not exist, 0 files" in campaign.call("panda_bps", "rucio", "status", run_id, code=1)
    forecast = campaign.call("panda_bps", "rucio", "--dry-run", run_id)
    assert forecast.count("add  ") == 8
    assert f"dataset: repo:{run} (new)" in forecast
    assert f"quantum graph: repo:{run}/" in forecast
    assert "rule: 1 of DEMO_FAR" in forecast
    assert run not in set(rucio.list_dids("repo", {}, did_type="dataset"))

    campaign.client_configuration.write_text(rucio_server.client_configuration().read_text())
    said = campaign.call("bps", "restart", "--id", run_id)
    report = campaign.wait(_line(said, "Run Id"))
    assert _states(report) == {"finalJob": {"SUCCEEDED": 1}, "rucioRegister": {"SUCCEEDED": 1}}, (
        campaign.logs()
    )

    with Butler.from_config(str(campaign.place.repo), collections=run) as butler:
        refs = [ref for name in _TYPES for ref in butler.query_datasets(name, limit=None)]
        paths = [Path(butler.getURI(ref).ospath) for ref in refs]
    assert len(paths) == 8
    files = {entry["name"]: entry for entry in rucio.list_files("repo", run)}
    (graph,) = directory.glob("*.qg")
    assert files.pop(f"{run}/{graph.name}")["bytes"] == graph.stat().st_size
    assert {name: (entry["bytes"], entry["adler32"]) for name, entry in files.items()} == {
        str(path.relative_to(campaign.place.repo)): (
            path.stat().st_size,
            f"{zlib.adler32(path.read_bytes()):08x}",
        )
        for path in paths
    }
    for replica in rucio.list_replicas([{"scope": "repo", "name": run}]):
        assert set(replica["rses"]) == {"DEMO_DISK"}
        assert (campaign.place.repo / replica["name"]).is_file()
    (rule,) = rucio.list_did_rules("repo", run)
    assert rule["state"] == "REPLICATING"
    before = json.loads(campaign.call("panda_bps", "rucio", "status", run_id, "--json", code=1))
    Draft202012Validator(read_schema()).validate(before)
    assert (before["kind"], before["outputs"], before["missing"], before["foreign"]) == ("rucio", 8, [], 0)
    assert before["quantum_graph"] is True
    assert before["by_type"] == {name: {"outputs": 4, "registered": 4} for name in _TYPES}
    assert [(r["state"], r["ok"], r["replicating"]) for r in before["rules"]] == [("REPLICATING", 0, 9)]
    assert len(rucio_server.transfer("repo", run, "DEMO_FAR", campaign.far)) == 9
    assert rucio.get_replication_rule(rule["id"])["state"] == "OK"
    after = json.loads(campaign.call("panda_bps", "rucio", "status", str(directory), "--json"))
    assert after["complete"] is True
    assert [(place["rse"], place["available"]) for place in after["places"]] == [
        ("DEMO_DISK", 9),
        ("DEMO_FAR", 9),
    ]
