"""One configuration run at two sites that share no files, into one Butler.

Each site has a folder, a Butler with the pointings of its visits only, a
staging area and a queue of the embedded PanDA; its outputs are registered in
a real Rucio by the step of its run.  The south makes its quantum graph and
its plan itself, in a task (a remote build).  What it has made is copied to
the north as a transfer would, and entered there as Rubin's ingest daemon
does.  The north then makes the coadds from the outputs of both runs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from lsst.ctrl.bps.wms_service import WmsStates
from lsst.daf.butler import Butler
from panda_servers.commands import Commands
from panda_servers.ingest_daemon import IngestDaemon

from lsst.ctrl.bps.panda import demo
from lsst.ctrl.bps.panda.campaign.record import read_campaign
from lsst.ctrl.bps.panda.campaign.runs import fetch_campaign
from lsst.ctrl.bps.panda.cli.panda_bps import main
from lsst.ctrl.bps.panda.demo.repository import INPUTS, SKYMAP, create_repo
from lsst.ctrl.bps.panda.demo.workplace import Workplace
from lsst.ctrl.bps.panda.insight.documents import read_schema
from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.local.endpoint import environment
from lsst.ctrl.bps.panda.runs.client import connect
from lsst.ctrl.bps.panda.settings.run import read_service_settings

pytestmark = pytest.mark.slow

LIMIT = 900.0
SCOPE = "two_sites"
SERVICE = "lsst.ctrl.bps.panda.PanDAService"
VISITS = {"NORTH": [260315001, 260315002], "SOUTH": [260315003]}
QUEUES = {"NORTH_QUEUE": "NORTH", "SOUTH_QUEUE": "SOUTH", "EAST_QUEUE": "EAST", "EAST_INIT": "EAST"}
DEMO = Path(demo.__file__).parent / "bps_demo.yaml"
PIPELINE = "resource://lsst.ctrl.bps.panda.demo/pipeline.yaml"
TABLES = {"source_table": ("visit", "detector"), "visit_summary": ("visit",)}
IMAGES = {"calibrated_image": ("visit", "detector")}
_BIN = Path(sys.executable).parent


class Facilities:
    """Two sites, the host that submits, and a site that has all data."""

    def __init__(self, directory: Path, rucio, commands: Commands) -> None:
        self.commands = commands
        self.rucio = rucio
        self.host = Workplace(directory / "host")
        self.folders = {site: directory / site.lower() for site in VISITS}
        self.repos = {site: folder / SCOPE for site, folder in self.folders.items()}
        self.whole = directory / "whole"
        self.host.directory.mkdir()
        create_repo(self.whole, visits_per_band=3, bands=("g",), detectors=2, patches=1)
        rucio.add_scope(SCOPE)
        for site, folder in self.folders.items():
            shutil.copytree(self.whole, self.repos[site])
            self._keep(site)
            rucio.add_rse(f"{site}_DISK", folder)
        self.config = self.host.directory / "campaign.yaml"
        self.config.write_text(yaml.safe_dump(self._configuration(), sort_keys=False))
        queues = {name: {"cores": 2, "site": site, "cloud": "LOCAL"} for name, site in QUEUES.items()}
        self.queues = self.host.directory / "queues.yaml"
        self.queues.write_text(yaml.safe_dump(queues))

    def _keep(self, site: str) -> None:
        """Leave a site the pointings of its own visits only."""
        with Butler.from_config(str(self.repos[site]), writeable=True) as butler:
            refs = butler.query_datasets("starcam_pointing", collections=INPUTS, limit=None)
            others = [ref for ref in refs if ref.dataId["exposure"] not in VISITS[site]]
            butler.pruneDatasets(others, purge=True, unstore=True, disassociate=True)

    def _configuration(self) -> dict[str, object]:
        return {
            **yaml.safe_load(DEMO.read_text()),
            "cluster": {
                # A visit is one job.
                "visits": {
                    "pipetasks": "simulate, isr, characterize, visitSummary",
                    "dimensions": "visit",
                    "equalDimensions": "visit:exposure",
                },
            },
            "wmsServiceClass": SERVICE,
            "operator": "ann",
            "submitPath": f"{self.host.directory}/submit/{{outputRun}}",
            "pipelineYaml": f"{PIPELINE}#singleFrame,visits",
            "numberOfRetries": 0,
            "payload": {
                "payloadName": "both",
                "inCollection": INPUTS,
                "dataQuery": "instrument = 'StarCam'",
            },
            "rucio": {
                "enabled": True,
                "datasetTypes": ["calibrated_image*", *TABLES],
                "scope": SCOPE,
                "python": str(self.rucio.worker_python),
                "environment": self.rucio.client_environment(),
                "numberOfRetries": 0,
            },
            "campaignSites": {
                "partition": "visit",
                "values": ["260315001..260315003"],
                "sites": {site: self._site(site, share) for site, share in (("NORTH", 65), ("SOUTH", 35))},
            },
        }

    def _site(self, site: str, share: int) -> dict[str, object]:
        folder = self.folders[site]
        rucio = {
            "rse": f"{site}_DISK",
            "rseRoot": str(folder),
            "dtnUrl": self.rucio.transfer_url(folder),
        }
        # Some labels of the north's run go to the east, which sees the same files.
        labels: dict[str, object] = {
            "cluster": {"visits": {"computeSite": "EAST", "queue": "EAST_QUEUE"}},
            "pipetask": {"pipetaskInit": {"computeSite": "EAST", "queue": "EAST_INIT"}},
            "sitesShareFiles": True,
        }
        if site == "SOUTH":
            # The host that submits does not see the south's Butler.
            labels = {"remoteBuild": {"enabled": True, "requestMemory": 1500}}
            rucio["rule"] = {"rseExpression": "NORTH_DISK"}
        return {
            **labels,
            "share": share,
            "queue": f"{site}_QUEUE",
            "butlerConfig": str(self.repos[site]),
            "fileDistributionEndPoint": f"{folder}/staging/{{uniqProcName}}/",
            "rucio": rucio,
        }

    def environment(self) -> dict[str, str]:
        """That of commands: PanDA is a server like any other."""
        endpoint = instance.find(self.host.panda)
        assert endpoint is not None
        found = {name: value for name, value in environment(endpoint).items() if value}
        return {**self.host.environment(), **found, "BPS_WMS_SERVICE_CLASS": SERVICE}

    def call(self, *command: str, code: int = 0) -> str:
        environment = {**self.environment(), "RUCIO_CONFIG": "/nowhere"}
        done = self.commands.run(
            *command, directory=self.host.directory, environment=environment, limit=LIMIT, code=code
        )
        return str(done.stdout)

    def ask(self, *words: str) -> str:
        """Call ``panda_bps`` in this process, which is quicker."""
        done = CliRunner().invoke(main, words, env={**dict.fromkeys(os.environ), **self.environment()})
        assert done.exit_code == 0, (words, done.output, done.exception)
        return done.stdout

    def errors(self) -> str:
        """What jobs wrote, for a failed test to show."""
        logs = sorted((self.host.panda / "logs").glob("*/payload.stderr"))
        return "\n".join(f"--- {log.parent.name}\n{log.read_text(errors='replace')[-1500:]}" for log in logs)


@pytest.fixture(scope="module")
def facilities(rucio_server, tmp_path_factory, commands):
    made = Facilities(tmp_path_factory.mktemp("facilities"), rucio_server, commands)
    instance.start(made.host.panda, queues=str(made.queues), warm_workers=True)
    try:
        yield made
    finally:
        instance.stop(made.host.panda)


@pytest.fixture(scope="module")
def campaign(facilities):
    """A campaign whose runs are over, submitted by one command."""
    facilities.call("panda_bps", "campaign", "submit", str(facilities.config))
    (path,) = facilities.host.directory.glob("submit/u/ann/both/*/panda_campaign.json")
    record = read_campaign(path)
    settings = read_service_settings(None, facilities.environment())
    end = time.monotonic() + LIMIT
    while not (found := fetch_campaign(record, connect(settings))).ended:
        assert time.monotonic() < end, (found.state, found.total)
        time.sleep(1.0)
    assert found.state is WmsStates.SUCCEEDED, facilities.errors()
    return record


def test_each_site_ran_its_part(facilities, campaign):
    document = json.loads(facilities.ask("campaign", "report", campaign.directory, "--json"))
    Draft202012Validator(read_schema()).validate(document)
    assert (document["state"], document["ended"], document["problems"]) == ("SUCCEEDED", True, [])
    done = {label: counts["SUCCEEDED"] for label, counts in document["labels"].items()}
    assert done == {
        "buildTask": 1, "pipetaskInit": 2, "visits": 3, "finalJob": 2, "rucioRegister": 2,
    }  # fmt: skip
    assert [(site["site"], site["values"], site["jobs"]) for site in document["sites"]] == [
        ("NORTH", 2, 5), ("SOUTH", 1, 5),
    ]  # fmt: skip
    assert [part.values for part in campaign.parts] == list(VISITS.values())
    facilities.ask("campaign", "status", campaign.directory)
    # Each run is one of BPS's own.
    assert campaign.parts[1].run in facilities.call("bps", "report", "--id", campaign.parts[1].submit_path)


def test_what_both_sites_registered_is_shown_together(facilities, campaign):
    environment = {**facilities.environment(), **facilities.rucio.client_environment()}
    done = subprocess.run(
        [str(_BIN / "panda_bps"), "rucio", "status", str(facilities.config), "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    # The rule of the south waits for its transfer.
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    Draft202012Validator(read_schema()).validate(document)
    assert [site["complete"] for site in document["sites"]] == [True, False]
    total = document["total"]
    # Three files a detector, two detectors, and a summary a visit.
    assert (total["outputs"], total["missing"], total["files"]) == (21, 0, 21)
    assert (total["rules"], total["replicating"]) == ({"REPLICATING": 1}, 7)


def test_labels_went_to_the_sites_and_queues_they_name(facilities, campaign):
    shown = facilities.ask("show", campaign.parts[0].submit_path, "--jobs", "--json")
    places = {(job["label"], job["site"]) for job in json.loads(shown)["jobs"]}
    assert places == {
        ("pipetaskInit", "EAST_INIT"), ("visits", "EAST_QUEUE"), ("finalJob", "NORTH_QUEUE"),
        ("rucioRegister", "NORTH_QUEUE"),
    }  # fmt: skip
    plan = json.loads((Path(campaign.parts[0].submit_path) / "panda_plan.json").read_text())
    sites = {task["label"]: task["placement"]["site"] for task in [*plan["tasks"], *plan["final"]]}
    assert sites == {"pipetaskInit": "EAST", "visits": "EAST", "finalJob": "NORTH", "rucioRegister": "NORTH"}


def test_the_same_command_submits_nothing_again(facilities, campaign):
    said = facilities.call("panda_bps", "campaign", "submit", str(facilities.config))
    for part in campaign.parts:
        assert f"{part.site}: submitted before as run {part.request_id}" in said
    assert read_campaign(campaign.directory) == campaign
    assert len(list(facilities.host.directory.glob("submit/u/ann/both/*"))) == 1


def test_no_site_was_given_a_path_of_the_other(facilities, campaign):
    for part in campaign.parts:
        others = [str(folder) for site, folder in facilities.folders.items() if site != part.site]
        texts = list(Path(part.submit_path).rglob("*.json"))
        texts += [path for path in (facilities.folders[part.site] / "staging").rglob("*") if path.is_file()]
        assert texts
        for path in texts:
            assert not any(other.encode() in path.read_bytes() for other in others), path
        with Butler.from_config(str(facilities.repos[part.site])) as butler:
            made = butler.query_datasets("source_table", collections=part.output_run)
            assert sorted({ref.dataId["visit"] for ref in made}) == VISITS[part.site]


@pytest.fixture(scope="module")
def gathered(facilities, campaign):
    """The north's Butler with the outputs of both sites; their collections."""
    runs = {part.site: part.output_run for part in campaign.parts}
    rucio = facilities.rucio.client()
    (rule,) = rucio.list_did_rules(SCOPE, runs["SOUTH"])
    assert rule["state"] == "REPLICATING"
    north = facilities.folders["NORTH"]
    daemon = IngestDaemon(rucio, facilities.repos["NORTH"], rse="NORTH_DISK", folder=north)
    assert daemon.ingest(SCOPE, runs["SOUTH"]) == []
    copies = facilities.rucio.transfer(SCOPE, runs["SOUTH"], "NORTH_DISK", north)
    assert rucio.get_replication_rule(rule["id"])["state"] == "OK"
    entered = daemon.ingest(SCOPE, runs["SOUTH"])
    assert len(entered) == len(copies) == 2 * 3 + 1
    assert daemon.ingest(SCOPE, runs["SOUTH"]) == []
    # Nothing of the south is needed any more.
    os.rename(facilities.folders["SOUTH"], facilities.folders["SOUTH"].with_name("gone"))
    return [runs["SOUTH"], runs["NORTH"]]


@pytest.fixture(scope="module")
def single(facilities):
    """The collection of the same pipeline, run whole at one site."""
    repo = str(facilities.whole)
    facilities.call(
        "pipetask", "run", "-b", repo, "-i", INPUTS, "-o", "single", "-p", PIPELINE,
        "--register-dataset-types", "-d", f"instrument = 'StarCam' AND skymap = '{SKYMAP}'",
    )  # fmt: skip
    return ["single"]


def read_tables(repo, collections, name, keys):
    """Read all datasets of a type, by data id."""
    with Butler.from_config(str(repo), collections=collections) as butler:
        refs = butler.query_datasets(name, limit=None)
        return {tuple(ref.dataId[key] for key in keys): butler.get(ref) for ref in refs}


def assert_same_rows(ours, theirs):
    assert ours.colnames == theirs.colnames
    assert len(ours) == len(theirs) > 0
    for name in ours.colnames:
        assert ours[name].dtype == theirs[name].dtype
        np.testing.assert_array_equal(np.asarray(ours[name]), np.asarray(theirs[name]), err_msg=name)


@pytest.mark.parametrize("name", sorted({**TABLES, **IMAGES}))
def test_one_butler_holds_what_both_sites_made(facilities, gathered, single, name):
    keys = {**TABLES, **IMAGES}[name]
    ours = read_tables(facilities.repos["NORTH"], gathered, name, keys)
    theirs = read_tables(facilities.whole, single, name, keys)
    assert sorted(ours) == sorted(theirs)
    assert {key[0] for key in ours} == {visit for visits in VISITS.values() for visit in visits}
    for key, value in ours.items():
        if name in TABLES:
            assert_same_rows(value, theirs[key])
        else:
            np.testing.assert_array_equal(value, theirs[key])


def test_objects_made_of_both_sites_outputs_are_those_of_one_site(facilities, gathered, single):
    repo = facilities.repos["NORTH"]
    facilities.call(
        "pipetask", "run", "-b", str(repo), "-i", ",".join([*gathered, INPUTS]), "-o", "objects",
        "-p", f"{PIPELINE}#coadds", "--register-dataset-types", "-d", f"skymap = '{SKYMAP}' AND tract = 0",
    )  # fmt: skip
    (ours,) = read_tables(repo, ["objects"], "object_table", ()).values()
    (theirs,) = read_tables(facilities.whole, single, "object_table", ()).values()
    assert_same_rows(ours, theirs)
    assert len(ours) > 30
