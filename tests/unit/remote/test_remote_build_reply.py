"""What a build sends back, and what the submit host makes of it."""

import gzip
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from lsst.ctrl.bps.panda.edgenode.rucio_program import Registration
from lsst.ctrl.bps.panda.errors import RunNotFoundError, SettingsError, TransportError
from lsst.ctrl.bps.panda.remote.site import send_reply
from lsst.ctrl.bps.panda.rucio.step import read_registration
from lsst.ctrl.bps.panda.runs.client import RunClient
from lsst.ctrl.bps.panda.runs.record import RunIndex, RunRecord, read_record

ARCHIVE = "jobO.1.tar.gz"
URL = "http://panda/server/panda"
CAPTURES = Path(__file__).parents[2] / "data" / "captures" / "real"


@dataclass
class Cache:
    """A file cache."""

    files: dict[str, bytes] = field(default_factory=dict)
    limit: int = 10**6

    def upload_cache_file(self, path: Path) -> str:
        data = Path(path).read_bytes()
        if len(data) > self.limit:
            raise SettingsError("too large")
        self.files[Path(path).name] = data
        return f"{URL}/{Path(path).name}"

    def download_cache_file(self, name: str, path: Path) -> None:
        if name not in self.files:
            raise TransportError("404")
        Path(path).write_bytes(self.files[name])


class Hosts:
    """A submit host and a site with a staging area."""

    def __init__(self, directory: Path) -> None:
        self.cache = Cache()
        self.submit_path = directory / "submit"
        self.site = directory / "site"
        self.area = directory / "a rea"
        for path in (self.submit_path, self.site, self.area):
            path.mkdir()
        settings = SimpleNamespace(state_directory=str(directory / "state"), url=URL, user="ann")
        self.connection = SimpleNamespace(settings=settings, api=self.cache, relay=None)
        run = {"name": "r", "submit_path": str(self.submit_path), "staging_area": ""}
        remote = {"archive": ARCHIVE, "complete": False}
        RunRecord(run=run, remote=remote, labels=[["buildTask", 1]], request_id=7).write()
        self.sent = {
            "run": {"name": "r", "staging_area": f"{self.area}/"},
            "labels": [["isr", 2]],
            "tasks": [["r_isr", "isr", 2]],
            "final_labels": [],
            "outputs": [],
            "staging": {"max_workers": 3},
        }
        (self.site / "panda_run.json").write_text(json.dumps(self.sent))
        (self.site / "panda_plan.json").write_text('{"plan": "é"}')

    def complete(self) -> RunRecord:
        found = RunClient(self.connection).find(str(self.submit_path)).record
        assert found == read_record(self.submit_path)
        return found

    @property
    def plan(self) -> Path:
        return self.submit_path / "panda_plan.json"


@pytest.fixture
def hosts(tmp_path):
    return Hosts(tmp_path)


def test_what_the_run_registers_comes_along(hosts):
    record = read_record(hosts.submit_path)
    with pytest.raises(RunNotFoundError, match="the site has not sent it yet"):
        read_registration(record)
    registration = Registration("/site/repo", "u/r", ("image",), "dp2", "u/r", "DISK", "/rse", "davs://h/rse")
    (hosts.site / "panda_rucio.json").write_text(registration.to_json())
    send_reply(hosts.cache, hosts.site, ARCHIVE)
    assert read_registration(hosts.complete()) == registration


def test_a_run_that_registers_nothing_has_nothing_to_send(hosts):
    send_reply(hosts.cache, hosts.site, ARCHIVE)
    with pytest.raises(RunNotFoundError, match="the run has no registration step"):
        read_registration(hosts.complete())


def test_nothing_is_there_yet(hosts):
    assert not hosts.complete().remote.complete
    assert not hosts.plan.exists()


def test_record_and_plan_arrive(hosts):
    send_reply(hosts.cache, hosts.site, ARCHIVE)
    record = hosts.complete()
    assert record.labels == (("buildTask", 1), ("isr", 2))
    assert record.tasks == (("build_task", "buildTask", 1), ("r_isr", "isr", 2))
    assert record.staging.max_workers == 3
    assert record.staging_area == f"{hosts.area}/"
    assert hosts.plan.read_text() == '{"plan": "é"}'
    # Once is enough.
    hosts.cache.files.clear()
    assert hosts.complete().remote.complete


def test_a_cache_that_unpacks(hosts):
    send_reply(hosts.cache, hosts.site, ARCHIVE)
    name = f"{ARCHIVE}.plan.json.gz"
    hosts.cache.files[name] = gzip.decompress(hosts.cache.files[name])
    hosts.complete()
    assert hosts.plan.read_text() == '{"plan": "é"}'


@pytest.mark.parametrize("form", ["path", "uri"])
def test_a_plan_too_large_for_the_cache_comes_from_the_staging_area(hosts, form):
    if form == "uri":
        hosts.sent["run"]["staging_area"] = hosts.area.as_uri() + "/"
    (hosts.site / "panda_run.json").write_text(json.dumps(hosts.sent))
    (hosts.area / "panda_plan.json").write_text("whole")
    (hosts.site / "panda_plan.json").write_bytes(os.urandom(1000))
    hosts.cache.limit = 300
    send_reply(hosts.cache, hosts.site, ARCHIVE)
    assert list(hosts.cache.files) == [f"{ARCHIVE}.record.json"]
    hosts.complete()
    assert hosts.plan.read_text() == "whole"


def test_a_plan_out_of_reach(hosts, caplog):
    send_reply(hosts.cache, hosts.site, ARCHIVE)
    del hosts.cache.files[f"{ARCHIVE}.plan.json.gz"]
    assert hosts.complete().remote.complete
    assert "Run r cannot be restarted: its plan is out of reach" in caplog.text
    assert not hosts.plan.exists()


def test_a_reply_that_is_not_understood(hosts):
    hosts.cache.files[f"{ARCHIVE}.record.json"] = b'{"labels": 1}'
    assert not hosts.complete().remote.complete


def test_runs_that_were_not_planned_elsewhere(hosts, tmp_path):
    client = RunClient(hosts.connection)
    assert client.find("77") == (77, None)
    with pytest.raises(RunNotFoundError, match="holds no panda_run.json"):
        client.find(str(tmp_path))


def test_the_list_of_runs_completes_what_it_finds(hosts):
    record = read_record(hosts.submit_path).submitted(7, server=URL)
    record.write()
    RunIndex(hosts.connection.settings.state_directory, URL).add(record)
    text = (CAPTURES / "run1_success_get_requests_detail.json").read_text()
    hosts.connection.relay = SimpleNamespace(
        get_requests=lambda request_id, **options: json.loads(text)[1][1]
    )
    hosts.cache.tasks_since = lambda *given, **options: []
    send_reply(hosts.cache, hosts.site, ARCHIVE)
    (run,), problems, _ = RunClient(hosts.connection).recent(days=1)
    assert problems == []
    assert run.plan.labels == (("buildTask", 1), ("isr", 2))
    assert hosts.plan.exists()


def test_what_cannot_be_written_down_is_still_known(hosts, caplog):
    """A submit directory that one may only read must not keep a report from its labels."""
    send_reply(hosts.cache, hosts.site, ARCHIVE)
    hosts.plan.mkdir()
    record = RunClient(hosts.connection).find(str(hosts.submit_path)).record
    assert record.labels == (("buildTask", 1), ("isr", 2))
    assert "What the site has sent of run r cannot be kept" in caplog.text
    assert read_record(hosts.submit_path).waits_for_site
