"""Watching runs of a server of recorded replies, alone and as a campaign, and what happens at the end."""

import json

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from lsst.ctrl.bps.wms_service import WmsStates
from panda_servers.recorded_panda import RecordedPanda, RecordedRun

from lsst.ctrl.bps.panda.campaign.record import CampaignIndex, CampaignRecord, PartRecord
from lsst.ctrl.bps.panda.cli.panda_bps import main
from lsst.ctrl.bps.panda.cli.panda_bps_watch import follow_run
from lsst.ctrl.bps.panda.errors import SettingsError
from lsst.ctrl.bps.panda.files import user_directory
from lsst.ctrl.bps.panda.insight.documents import read_schema
from lsst.ctrl.bps.panda.runs.client import connect
from lsst.ctrl.bps.panda.settings.run import read_service_settings

FAILED, SUCCEEDED = WmsStates.FAILED.value, WmsStates.SUCCEEDED.value
GOOD, BAD = 41, 42
LOG = """\
ERROR 2026-11-20T18:12:47.040+00:00 lsst.pipe.base.mp_graph_executor (isr:{detector: 3}) - failed
Traceback (most recent call last):
  File "star_task.py", line 41, in runQuantum
    raise NoStarsError(text)
lsst.meas.NoStarsError: only 3 stars
"""


class Runs(RecordedRun):
    """A run that succeeded, and one whose jobs failed; the second attempt of a job was refused."""

    def __init__(self, directory):
        super().__init__(tasks=2, jobs=10)
        for attempt, text in ((1, LOG), (2, "runner: an earlier attempt ended with exit code 1\n")):
            (directory / f"{attempt}").mkdir()
            (directory / f"{attempt}" / "payload.stderr").write_text(text)
        self.directory = directory

    def job_rows(self, task_id, unsuccessful_only):
        for row in super().job_rows(task_id, unsuccessful_only):
            yield row | {"pilotID": f"{self.directory}/{row['attemptNr']}/payload.stderr|BATCH|3"}

    def command(self, name, keywords):
        rows = super().command(name, keywords)
        number = keywords.get("request_id")
        if name != "get_requests":
            return rows
        over = {"status": 4, "transform_status": 3, "output_processed_files": 10, "output_failed_files": 0}
        own = {"request_id": number, "name": f"u_ann_{number}"} | (over if number == GOOD else {})
        return [row | own for row in rows]


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Run a command of somebody whose PanDA has both runs; give its result."""
    monkeypatch.chdir(tmp_path)
    for name in ("PANDA_URL", "XDG_STATE_HOME", "BPS_WMS_SERVICE_CLASS"):
        monkeypatch.delenv(name, raising=False)
    with RecordedPanda(Runs(tmp_path)) as server:
        monkeypatch.setenv("PANDA_URL_SSL", server.url)
        monkeypatch.setenv("HOME", str(tmp_path))

        def run(*words, code=0):
            result = CliRunner().invoke(main, [*map(str, words)])
            assert result.exit_code == code, (result.output, result.exception)
            return result

        yield run


def test_the_first_failure_has_the_exception_of_the_attempt_that_ran(call):
    done = call("watch", BAD, code=FAILED)
    assert (
        "run 42 first failure: label_1 job:0, PanDA job 1000001: lsst.meas.NoStarsError: only 3 stars\n"
        in (done.stdout)
    )
    assert done.stderr == "Why it failed: panda_bps errors 42\n"


def test_a_run_without_a_failure(call):
    done = call("watch", GOOD, code=SUCCEEDED)
    assert "failure" not in done.output
    document = json.loads(call("watch", GOOD, "--json").stdout)
    Draft202012Validator(read_schema()).validate(document)
    assert (document["first_failure"], document["next_query"]) == ("", None)
    assert document["begun"] <= document["over"]


def test_of_several_runs_the_worst_counts_and_a_command_hears_of_it(call, tmp_path):
    then = f'echo "$PANDA_BPS_RUN: $PANDA_BPS_STATE" > {tmp_path}/told; exit 3'
    done = call("watch", GOOD, BAD, "--then", then, code=FAILED)
    assert {line.split(" ")[2] for line in done.stdout.splitlines()} == {"41", "42"}
    assert (tmp_path / "told").read_text() == "41 42: FAILED\n"
    assert "The command of --then ended with exit code 3: " in done.stderr
    assert "\a" not in call("watch", GOOD, GOOD, "--bell").output


def test_only_a_server_of_this_machine_is_asked_each_second():
    env = {"PANDA_URL_SSL": "https://panda.example/server/panda", "PANDA_AUTH": "none", "HOME": "/none"}
    connection = connect(read_service_settings(None, env))
    with pytest.raises(SettingsError, match="--interval 2 is too short for https://panda.example"):
        follow_run(connection, 1, interval=2.0)


@pytest.fixture
def campaign(call, tmp_path, monkeypatch):
    """A campaign whose runs these are, and a site that has none yet."""
    parts = [
        PartRecord(
            site=site, compute_site=site, share=1, values=[1], file="x", submit_path=str(tmp_path / site),
            run=f"u_ann_{number}", output_run="x", butler="x", request_id=number,
            state="submitted" if number else "prepared",
        )
        for site, number in (("NORTH", GOOD), ("SOUTH", BAD), ("WEST", None))
    ]  # fmt: skip
    record = CampaignRecord(
        name="camp", directory=str(tmp_path), config=str(tmp_path / "camp.yaml"), digest="",
        service_class="lsst.ctrl.bps.panda.PanDAService", partition="visit",
        prepared_at="2026-11-20T12:00:00+00:00", parts=parts,
    )  # fmt: skip
    record.write()
    CampaignIndex(user_directory({"HOME": str(tmp_path)})).add(record)
    return str(tmp_path)


def test_a_campaign_is_listed(call, campaign, tmp_path):
    title, row = call("campaign", "list").stdout.splitlines()
    assert title.split() == ["prepared", "runs", "directory", "configuration"]
    assert row.split() == ["2026-11-20T12:00:00+00:00", "2", "of", "3", campaign, f"{campaign}/camp.yaml"]
    (tmp_path / "panda_campaign.json").unlink()
    assert "gone" in call("campaign", "list").stdout


def test_a_campaign_is_watched(call, campaign):
    done = call("campaign", "watch", campaign, code=FAILED)
    assert "run 41 SUCCEEDED: 20 done" in done.stdout
    assert "first failure: label_1 job:0" in done.stdout
    assert "WEST: not submitted yet" in done.stderr
    assert f"Why it failed: panda_bps campaign errors {campaign}" in done.stderr


def test_errors_and_pages_of_a_campaign(call, campaign, tmp_path):
    north, south = call("campaign", "errors", campaign, "--limit", 1).stdout.split("== SOUTH")
    assert "No failed job is known." in north
    assert "NoStarsError" in south
    (tmp_path / "pages").mkdir()
    call("campaign", "html", campaign, "-o", tmp_path / "pages")
    assert sorted(path.name for path in (tmp_path / "pages").iterdir()) == ["run_41.html", "run_42.html"]
