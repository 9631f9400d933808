"""The command ``panda_bps rucio``, started like a user starts it, about runs
whose submit directories are at hand.
"""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from jsonschema import Draft202012Validator

from lsst.ctrl.bps.panda.edgenode.rucio_program import RuleWanted
from lsst.ctrl.bps.panda.insight.documents import read_schema

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(rucio_server, tmp_path_factory, commands):
    from panda_servers.rucio_site import RucioSite

    made = RucioSite(rucio_server, tmp_path_factory.mktemp("rse"), scope="command", rse="COMMAND_DISK")
    made.commands = commands
    return made


def call(site, *arguments, code=0, **variables):
    """Run the command without any PanDA."""
    base = {n: v for n, v in os.environ.items() if not n.startswith(("RUCIO_", "PANDA", "BPS_"))}
    done = subprocess.run(
        [site.commands.folder / "panda_bps", "rucio", *map(str, arguments)],
        env={**base, **site.server.client_environment(), **variables},
        cwd=site.folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 or done.stdout else done.stderr


def make_directory(folder, registration=None):
    folder.mkdir()
    content = {"request_id": 7, "run": {"name": "u_me_run", "submit_path": str(folder)}}
    (folder / "panda_run.json").write_text(json.dumps(content))
    if registration is not None:
        (folder / "panda_rucio.json").write_text(registration.to_json())
    return folder


def test_a_run_is_registered_by_hand(site, tmp_path):
    (first, *_) = site.fill("u/me/byhand", "image", range(3))
    registration = site.registration("u/me/byhand", rule=RuleWanted("COMMAND_DISK"), close=True)
    directory = make_directory(tmp_path / "submit", registration)
    forecast = call(site, "register", "--dry-run", directory)
    assert f"command:{first.relative_to(site.repo)}" in forecast
    assert f"file://localhost:0{first}" in forecast
    assert str(first.stat().st_size) in forecast
    assert "The run has no dataset of type table." in forecast
    assert "dataset: command:u/me/byhand (new)" in forecast
    assert "rule: 1 of COMMAND_DISK\nclose: yes" in forecast

    said = call(site, "register", directory)
    assert "3 files registered in command:u/me/byhand at COMMAND_DISK" in said
    assert "dataset closed" in said
    document = json.loads(call(site, "status", directory, "--json"))
    Draft202012Validator(read_schema()).validate(document)
    assert (document["request_id"], document["run"], document["complete"]) == (7, "u_me_run", True)
    site.fill("u/me/byhand", "table", [5])
    assert "(exists, closed: nothing can be added)" in call(site, "--dry-run", directory)
    text = call(site, "status", directory, code=1)
    assert "missing: 1 of 4" in text
    assert "dataset command:u/me/byhand: closed, 3 files" in text
    assert "OK, 1 of COMMAND_DISK, account root" in text


def test_a_run_without_the_step_is_told_so(site, tmp_path):
    directory = make_directory(tmp_path / "plain")
    assert "the run has no registration step" in call(site, "status", directory, code=1)


def test_without_rucio_the_forecast_says_that_it_was_not_asked(site, tmp_path):
    site.fill("u/me/alone", "image", [0])
    directory = make_directory(tmp_path / "alone", site.registration("u/me/alone"))
    forecast = call(site, "--dry-run", directory, RUCIO_CONFIG="/not/there.cfg")
    assert "to add: 1" in forecast
    assert "(Rucio was not asked)" in forecast
    refusal = call(site, "register", directory, code=1, RUCIO_CONFIG="/not/there.cfg")
    assert "Set RUCIO_CONFIG to a rucio.cfg" in refusal


def test_a_campaign_is_shown_for_each_site_and_in_sum(site, tmp_path):
    parts = []
    for name, count in (("A", 2), ("B", 3)):
        paths = site.fill(f"u/me/campaign/{name}", "image", range(count))
        registration = site.registration(f"u/me/campaign/{name}", dataset_types=("image",))
        make_directory(tmp_path / name, registration)
        parts.append({
            "site": name, "compute_site": name, "share": 1, "values": [1], "file": "", "run": f"run_{name}",
            "submit_path": str(tmp_path / name), "output_run": "", "butler": "", "state": "submitted",
            "request_id": 7,
        })  # fmt: skip
    content = {
        "name": "camp", "directory": str(tmp_path), "config": "/run.yaml", "digest": "", "service_class": "x",
        "partition": "tract", "prepared_at": "", "parts": parts, "format": 1,
    }  # fmt: skip
    (tmp_path / "panda_campaign.json").write_text(json.dumps(content))
    call(site, "register", tmp_path / "A")
    text = call(site, "status", tmp_path, "--missing", code=1)
    assert "Campaign camp: registration complete at 1 of 2 sites" in text
    rows = {line.split()[0]: line.split()[1:6] for line in text.splitlines()[2:5]}
    assert rows == {
        "A": ["7", "2", "2", "0", "2"], "B": ["7", "3", "0", "3", "0"], "total": ["-", "5", "2", "3", "2"],
    }  # fmt: skip
    assert f"B: missing {paths[0].relative_to(site.repo)}" in text
