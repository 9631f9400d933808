"""``panda_bps provenance``: the last step of runs that have succeeded after a restart, or not at all."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from lsst.ctrl.bps.wms_service import WmsStates
from lsst.daf.butler import Butler
from lsst.pipe.base.quantum_graph import ProvenanceQuantumGraph
from panda_servers.commands import Commands
from panda_servers.runs import await_end

from lsst.ctrl.bps.panda.demo.repository import INPUTS, create_repo
from lsst.ctrl.bps.panda.demo.workplace import Workplace
from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.runs.record import read_record

pytestmark = pytest.mark.slow

LIMIT = 600.0
EXPOSURE = 260315001


class Site:
    """A workplace with a small repository, of which one input is missing."""

    def __init__(self, directory: Path, commands: Commands) -> None:
        self.place = Workplace(directory)
        self.commands = commands
        create_repo(self.place.repo, visits_per_band=1, detectors=1, bands=("r",), patches=1)
        with Butler.from_config(str(self.place.repo), collections=INPUTS) as butler:
            lost = butler.getURI("starcam_pointing", instrument="StarCam", exposure=EXPOSURE)
        self.lost = Path(lost.ospath)
        self.away = directory / "away"
        self.lost.rename(self.away)
        self.place.write_files()
        self.environment = self.place.environment()

    def submit(self, name: str, **keys: object) -> str:
        """Submit a run of one quantum; its id."""
        config = yaml.safe_load(self.place.config.read_text()) | {
            "pipelineYaml": "resource://lsst.ctrl.bps.panda.demo/pipeline.yaml#simulate",
            "payload": {"payloadName": name, "dataQuery": f"instrument='StarCam' AND exposure={EXPOSURE}"},
            "numberOfRetries": 0,
            **keys,
        }
        path = self.place.directory / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        return self.id_of(self.call("bps", "submit", str(path)).stdout)

    def id_of(self, text: str) -> str:
        (run_id,) = re.findall(r"^Run Id: (\d+)$", text, re.MULTILINE)
        return str(run_id)

    def wait(self, run_id: str) -> WmsStates:
        return await_end(self.place.panda, run_id, self.environment, limit=LIMIT)

    def call(self, *command: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        return self.commands.run(
            *command, directory=self.place.directory, environment=self.environment, limit=LIMIT, code=code
        )

    def read_attempts(self, graph: str) -> list[int]:
        """Count the attempts of each quantum in a provenance graph."""
        with ProvenanceQuantumGraph.from_args(graph, datasets=()) as (found, _):
            nodes = found.quantum_only_xgraph.nodes
            return [len(nodes[quantum]["attempts"]) for quantum in nodes]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, commands: Commands) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("provenance"), commands)
    instance.start(site.place.panda, warm_workers=True)
    try:
        yield site
    finally:
        instance.stop(site.place.panda)


def find_paths(text: str) -> tuple[str, str]:
    """Find the paths of graph and report in what the command prints."""
    graph, report = re.findall(r"^(?:Graph|Report): (.*)$", text, re.MULTILINE)
    return graph, report


def test_one_graph_tells_all_attempts_and_closes_the_run(site: Site) -> None:
    closed, restarted = site.submit("closed"), site.submit("restarted")
    assert {site.wait(closed), site.wait(restarted)} == {WmsStates.FAILED}

    # A run that has failed is closed only if that is asked for.
    refused = site.call("panda_bps", "provenance", closed, code=1)
    assert "has not succeeded (it is FAILED)" in refused.stderr
    graph, report = find_paths(site.call("panda_bps", "provenance", closed, "--no-ingest").stdout)
    assert site.read_attempts(graph) == [1]
    (failure,) = json.loads(Path(report).read_text())["simulate"]["FAILED"]
    assert failure.endswith("FileNotFoundError")
    told = site.call("panda_bps", "provenance", closed, "--close").stdout
    assert f"Run {closed} is closed" in told
    # What is closed already is only completed.
    Path(report).unlink()
    assert f"Run {closed} is closed" in site.call("panda_bps", "provenance", closed).stdout
    assert json.loads(Path(report).read_text())["simulate"]["FAILED"]

    site.away.rename(site.lost)
    assert f"Run {closed} is closed" in site.call("bps", "restart", "--id", closed).stdout
    again = site.id_of(site.call("bps", "restart", "--id", restarted).stdout)
    assert site.wait(again) is WmsStates.SUCCEEDED
    # The first request is named, and the graph is that of both.
    done = site.call("panda_bps", "provenance", restarted)
    assert f"Run {again} is closed" in done.stdout
    graph, report = find_paths(done.stdout)
    assert site.read_attempts(graph) == [2]

    for words in (("bps", "report", "--id", again), ("panda_bps", "show", again)):
        assert report in site.call(*words).stdout
    site.call("panda_bps", "html", again, "-o", "run.html")
    assert report in (site.place.directory / "run.html").read_text()
    with Butler.from_config(str(site.place.repo)) as butler:
        runs = [name for name in butler.collections.query("u/*") if "closed" in name or "restarted" in name]
        every = {"collections": runs, "find_first": False}
        assert len({ref.run for ref in butler.query_datasets("run_provenance", **every)}) == 2
        logs = butler.query_datasets("simulate_log", **every)
        assert len(logs) == 2
        assert all(butler.get(log) for log in logs)


def test_a_run_puts_its_provenance_into_the_butler_by_itself(site: Site) -> None:
    if site.away.exists():
        site.away.rename(site.lost)
    run_id = site.submit("itself", ingestProvenance=True)
    assert site.wait(run_id) is WmsStates.SUCCEEDED
    assert re.search(r"^provenance +0 .* 1 ", site.call("bps", "report", "--id", run_id).stdout, re.MULTILINE)
    with Butler.from_config(str(site.place.repo)) as butler:
        (run,) = (name for name in butler.collections.query("u/*") if "/itself/" in name)
        assert len(butler.query_datasets("run_provenance", collections=run)) == 1
        (log,) = butler.query_datasets("simulate_log", collections=run)
        assert butler.get(log)
    done = site.call("panda_bps", "provenance", run_id)
    assert f"Run {run_id} is closed" in done.stdout


def test_a_run_that_failed_is_not_closed_by_itself_nor_cleaned_away(site: Site) -> None:
    if site.lost.exists():
        site.lost.rename(site.away)
    run_id = site.submit("open", ingestProvenance=True)
    assert site.wait(run_id) is WmsStates.FAILED
    refused = site.call("panda_bps", "clean", run_id, "--yes", code=1)
    assert "has not succeeded (it is FAILED)" in refused.stderr
    site.away.rename(site.lost)
    again = site.id_of(site.call("bps", "restart", "--id", run_id).stdout)
    assert site.wait(again) is WmsStates.SUCCEEDED
    with Butler.from_config(str(site.place.repo)) as butler:
        (run,) = (name for name in butler.collections.query("u/*") if "/open/" in name)
        assert len(butler.query_datasets("run_provenance", collections=run)) == 1

    record = read_record(site.place.directory / "submit" / run)
    area, directory = Path(record.staging_area), record.origin_directory
    told = site.call("panda_bps", "clean", run_id, "--submit-directory", "--dry-run").stdout
    assert re.search(rf"^Staging area {area}/?: [1-9]\d* files$", told, re.MULTILINE)
    assert area.is_dir()
    assert directory.is_dir()
    # Without an answer nothing is removed.
    assert "Removed" not in site.call("panda_bps", "clean", run_id, code=1).stdout
    assert area.is_dir()
    # The first request is named, and the last one counts.
    told = site.call("panda_bps", "clean", run_id, "--submit-directory", "--yes").stdout
    assert told.endswith("Removed.\n")
    assert not area.exists()
    assert not directory.exists()
    assert "SUCCEEDED" in site.call("bps", "report", "--id", again).stdout
