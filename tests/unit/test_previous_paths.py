"""Module paths of the previous plugin that scripts and configurations use: they work, and warn."""

import importlib
import subprocess
import sys

import pytest
from panda_servers.recorded_panda import REQUEST_ID, RecordedPanda, RecordedRun

from lsst.ctrl.bps import BPS_DEFAULTS, BpsConfig
from lsst.ctrl.bps.panda import PandaBpsWmsWorkflow, PanDAService
from lsst.ctrl.bps.panda.errors import SettingsError


@pytest.fixture
def client(monkeypatch):
    """The client that a script gets, and the server that it asks."""
    from lsst.ctrl.bps.panda.utils import get_idds_client

    with RecordedPanda(RecordedRun(tasks=2, jobs=10)) as server:
        monkeypatch.setenv("PANDA_URL_SSL", server.url)
        monkeypatch.setenv("PANDA_URL", server.url)
        with pytest.warns(DeprecationWarning, match="panda_bps show --json"):
            yield get_idds_client(BpsConfig(BPS_DEFAULTS)), server


def test_the_service_class_has_its_old_path():
    sys.modules.pop("lsst.ctrl.bps.panda.panda_service", None)
    with pytest.warns(DeprecationWarning, match="use lsst.ctrl.bps.panda.PanDAService"):
        module = importlib.import_module("lsst.ctrl.bps.panda.panda_service")
    assert module.PanDAService is PanDAService
    assert module.PandaBpsWmsWorkflow is PandaBpsWmsWorkflow


def test_a_script_gets_what_it_indexes(client):
    """The calls of the scripts that are published, and what they read."""
    idds, server = client
    replies = idds.get_requests(request_id=REQUEST_ID, with_detail=True)
    assert [row["transform_workload_id"] for row in replies[1][1]] == [101, 102]
    assert replies[0] == 0
    assert replies[1][1][0]["status"]["attributes"]["_name_"]
    contents = idds.get_contents_output_ext(request_id=REQUEST_ID, transform_id=2)
    assert len(contents[1][1]["2"]) == 10
    assert server.asked == ["get_requests", "get_contents_output_ext"]


def test_the_value_of_a_reply(client):
    from lsst.ctrl.bps.panda.utils import get_idds_result

    idds, _ = client
    reply = idds.get_requests(request_id=REQUEST_ID)
    with pytest.warns(DeprecationWarning, match="get_idds_result"):
        status, rows, error = get_idds_result(reply)
    assert (status, len(rows), error) == (True, 2, None)


def test_a_workflow_is_not_sent_as_plain_values(client):
    idds, server = client
    with pytest.raises(SettingsError, match="submit_driver or lsst.ctrl.bps.panda.PanDAService"):
        idds.submit(object())
    assert server.asked == []


@pytest.mark.parametrize("name", ["add_final_idds_work", "add_idds_work", "copy_files_for_distribution"])
def test_a_function_that_is_gone_can_be_imported_and_says_so_when_called(name):
    utils = importlib.import_module("lsst.ctrl.bps.panda.utils")
    with pytest.warns(DeprecationWarning, match=name):
        function = getattr(utils, name)
    with pytest.raises(NotImplementedError, match=f"{name} of the previous plugin is gone: lsst.ctrl.bps"):
        function({}, "area", 3)


def test_other_names_are_not_there():
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from lsst.ctrl.bps.panda.utils import nothing  # noqa: F401


@pytest.mark.slow
@pytest.mark.newest
def test_the_warning_names_the_line_of_the_script(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from lsst.ctrl.bps.panda.utils import add_idds_work\n")
    done = subprocess.run(
        [sys.executable, "-W", "default", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert "script.py:1: DeprecationWarning" in done.stderr
