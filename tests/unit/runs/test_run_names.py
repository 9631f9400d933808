"""One name and several requests: iDDS takes any number of a name, and tells one of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from panda_servers.hostile import HostileServer, Run

from lsst.ctrl.bps.panda import PanDAService
from lsst.ctrl.bps.panda.errors import PandaBpsError, RefusedError
from lsst.ctrl.bps.panda.idds.workflow import Submission
from lsst.ctrl.bps.panda.runs.cancel import cancel_run
from lsst.ctrl.bps.panda.runs.client import RunClient, connect
from lsst.ctrl.bps.panda.runs.record import RunIndex, RunRecord, read_record
from lsst.ctrl.bps.panda.runs.restart import restart_run
from lsst.ctrl.bps.panda.runs.submit import submit_run
from lsst.ctrl.bps.panda.settings.run import read_service_settings

NAME = "u_ann_race"
SUBMISSION = Submission((), '[{"name": "u_ann_race"}]', "{}")


@pytest.fixture
def server():
    with HostileServer() as running:
        yield running


@pytest.fixture
def place(server, tmp_path):
    """What ann has: her connection, and the record of a run that she has prepared."""
    env = {"PANDA_URL": server.url, "USER": "ann", "XDG_STATE_HOME": str(tmp_path), "PANDA_AUTH": "none"}
    settings = read_service_settings({}, env)
    record = RunRecord(run={"name": NAME, "submit_path": str(tmp_path / "sub")}, request_id=None)
    record.write()
    return SimpleNamespace(connection=connect(settings), record=record, settings=settings)


def add(server, user):
    """Let somebody submit a run of the name."""
    number = len(server.runs) + 1
    server.runs[number] = Run(number, NAME, user=user)
    return number


class Race(HostileServer):
    """A server at which somebody else submits the name at the same moment, before or after."""

    def __init__(self, earlier):
        super().__init__()
        self.earlier = earlier

    def _do_submit(self, arguments, keywords):
        if self.earlier:
            add(self, "bob")
        number = super()._do_submit(arguments, keywords)
        if not self.earlier:
            add(self, "bob")
        return number


def at(server, place):
    place.connection.relay.endpoint = f"{server.url}/relay_idds_command"
    return place.connection


def test_the_later_of_two_submissions_is_cancelled_and_refused(place):
    with Race(earlier=True) as server:
        with pytest.raises(RefusedError, match="The first is request 1 .bob.*request 2, was cancelled"):
            submit_run(at(server, place), place.record, SUBMISSION)
        assert (server.runs[1].aborts, server.runs[2].aborts) == (0, 1)
    record = read_record(place.record.submit_path)
    assert (record.request_id, record.intention) == (None, None)
    assert not list(RunIndex(place.settings.state_directory, place.settings.url).entries())


def test_the_later_one_that_cannot_be_cancelled_is_named_with_the_command(place):
    with Race(earlier=True) as server:
        server._do_abort = lambda arguments, keywords: [[-1, {"status": -1, "message": "not now"}]]
        with pytest.raises(RefusedError, match="could not be cancelled.*bps cancel --id 2"):
            submit_run(at(server, place), place.record, SUBMISSION)


def test_the_earlier_of_two_submissions_goes_on_and_names_the_other(place, caplog):
    with Race(earlier=False) as server:
        assert submit_run(at(server, place), place.record, SUBMISSION) == 1
        assert [run.aborts for run in server.runs.values()] == [0, 0]
    assert "yours is request 1, and goes on; the other is 2 (bob)" in caplog.text
    assert read_record(place.record.submit_path).request_id == 1


def test_one_submission_is_left_alone(server, place, caplog):
    assert submit_run(place.connection, place.record, SUBMISSION) == 1
    assert "twice" not in caplog.text


def test_a_refused_submission_changes_no_record(server, place):
    submit_run(place.connection, place.record, SUBMISSION)
    before = read_record(place.record.submit_path)
    for stage in (None, lambda: None):
        with pytest.raises(RefusedError, match="exists already: request 1"):
            submit_run(place.connection, place.record, SUBMISSION, stage=stage)
        assert read_record(place.record.submit_path) == before


def test_the_run_with_a_record_here_is_meant_first(server, place, caplog):
    mine = submit_run(place.connection, place.record, SUBMISSION)
    add(server, "bob")
    assert RunClient(place.connection).find(NAME).request_id == mine
    assert f"2 runs are named {NAME!r}: 1 (ann); 2 (bob). This is about run 1" in caplog.text


def test_an_own_run_is_meant_before_one_of_somebody_else(server, place, caplog):
    mine = add(server, "ann")
    add(server, "bob")
    assert RunClient(place.connection).find(NAME).request_id == mine
    assert "2 runs are named" in caplog.text


def test_a_name_of_one_run_is_said_of_nothing(server, place, caplog):
    only = add(server, "bob")
    assert RunClient(place.connection).find(NAME).request_id == only
    assert "runs are named" not in caplog.text


def test_what_changes_a_run_needs_to_know_which(server, place):
    submit_run(place.connection, place.record, SUBMISSION)
    add(server, "bob")
    client = RunClient(place.connection)
    for command in (cancel_run, restart_run):
        with pytest.raises(PandaBpsError, match="1 .ann.; 2 .bob.. Say which one is meant"):
            command(client, NAME)

    class Service(PanDAService):
        def settings(self):
            return place.settings

    with pytest.raises(PandaBpsError, match="Say which one is meant"):
        Service({}).list_submitted_jobs(NAME)
    assert [run.aborts for run in server.runs.values()] == [0, 0]
