"""Lists of runs, as a real server answered bob: own ones, those of alice, everybody's; and with iDDS down."""

from __future__ import annotations

import time

import pytest
from panda_servers.recorded_panda import RecordedList, RecordedPanda

from lsst.ctrl.bps.panda import PanDAService
from lsst.ctrl.bps.panda.checks.configuration import check_service
from lsst.ctrl.bps.panda.settings.run import read_service_settings

OF_ALICE = set(map(str, range(1, 17)))
LONG_AGO = 10**5
"""Days; the runs are of the day when they were recorded."""


@pytest.fixture
def make_service(tmp_path):
    """Make the service of bob, or of another user, at a server."""

    def make(server, user="bob"):
        env = {"PANDA_URL": server.url, "USER": user, "XDG_STATE_HOME": str(tmp_path), "PANDA_AUTH": "none"}

        class Service(PanDAService):
            def settings(self):
                return read_service_settings(self.config, env)

        return Service({})

    return make


@pytest.fixture
def server():
    with RecordedPanda(RecordedList()) as running:
        yield running


def ids(answer):
    return {report.wms_id for report in answer[0]}


def test_everybodys_runs_are_listed(server, make_service):
    answer = make_service(server).report(hist=LONG_AGO, is_global=True)
    own = ids(make_service(server).report(hist=LONG_AGO))
    assert own
    assert not own & OF_ALICE
    assert ids(answer) == own | OF_ALICE
    assert {report.operator for report in answer[0] if report.wms_id in OF_ALICE} == {"alice"}


@pytest.mark.parametrize("user", ["alice", "ALICE", "Alice Example", "alice example", "Example"])
def test_runs_are_found_by_account_and_by_name(server, make_service, user):
    assert ids(make_service(server).report(hist=LONG_AGO, user=user)) == OF_ALICE


def test_nobodys_runs_are_none(server, make_service):
    runs, note = make_service(server).report(hist=LONG_AGO, user="alic")
    assert runs == []
    assert "No runs of alic in the last" in note


def test_old_runs_of_others_are_left_out(server, make_service):
    runs, note = make_service(server).report(hist=1e-6, user="alice")
    assert runs == []
    assert "No runs of alice" in note


def test_the_list_is_kept(server, make_service):
    first = make_service(server).report(hist=LONG_AGO, user="alice")
    server.asked.clear()
    runs, note = make_service(server).report(hist=LONG_AGO, user="alice")
    assert len(runs) == len(first[0])
    assert "The runs of others are those that there were at" in note
    assert server.asked.count("get_requests") == len(OF_ALICE)


def test_a_list_that_does_not_end_is_left(make_service):
    with RecordedPanda(RecordedList("endless")) as server:
        runs, note = make_service(server).report(hist=LONG_AGO, user="alice")
    assert runs == []
    assert "Runs of others cannot be listed" in note
    assert "bps report --id ID" in note


@pytest.fixture
def down():
    """A server whose iDDS is down, and says so only after a minute."""
    run = RecordedList("down")
    with RecordedPanda(run) as running:
        yield running
        run.tried.set()


def within(seconds, ask):
    begin = time.monotonic()
    answer = ask()
    assert time.monotonic() - begin < seconds
    return answer


def test_ping_names_the_tier_that_is_down(down, make_service):
    code, said = within(7, make_service(down).ping)
    assert code == 1
    assert said.startswith("PanDA at 127.0.0.1")
    assert "answers, but iDDS behind it is down" in said


def test_the_checks_of_a_submission_name_it_too(down, make_service):
    (finding,) = within(7, lambda: check_service(make_service(down).settings()))
    assert "answers, but iDDS behind it is down" in finding.text


def test_a_list_asks_a_dead_tier_once_and_shows_what_panda_tells(down, make_service):
    runs, note = within(7, lambda: make_service(down).report(hist=LONG_AGO))
    assert down.asked.count("get_requests") <= 1
    assert len(runs) > 1
    assert {run.state.name for run in runs} == {"UNKNOWN"}
    assert "PanDA answers, but iDDS behind it does not" in note
    assert "HTTPConnectionPool" not in note


def test_one_run_of_a_dead_tier(down, make_service):
    runs, note = within(7, lambda: make_service(down).report("7"))
    assert runs == []
    assert "PanDA answers, but iDDS behind it does not" in note


def test_the_servers_own_words_of_a_dead_tier(down, make_service):
    """The relay's reply, when it comes before ours."""
    down.run.tried.set()
    code, said = make_service(down).ping()
    assert code == 1
    assert said.endswith("iDDS behind it is down. [connection refused]")
