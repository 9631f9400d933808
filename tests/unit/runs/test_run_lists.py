"""Lists of runs, as a real server answered bob: own ones, those of alice, everybody's; and with iDDS down."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

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
def dead_tier():
    """Make servers whose iDDS is down, and say so only after a minute."""
    with ExitStack() as stack:

        def make():
            run = RecordedList("down")
            server = stack.enter_context(RecordedPanda(run))
            stack.callback(run.tried.set)
            return server

        yield make


@pytest.mark.slow
@pytest.mark.newest
def test_a_dead_tier_is_found_out_within_seconds(dead_tier, make_service):
    """By each command; all are asked at the same time, as they wait."""
    servers = [dead_tier() for _ in range(4)]
    pinged, checked, listed, one = map(make_service, servers)
    begin = time.monotonic()
    with ThreadPoolExecutor() as pool:
        answers = [
            pool.submit(pinged.ping),
            pool.submit(check_service, checked.settings()),
            pool.submit(listed.report, hist=LONG_AGO),
            pool.submit(one.report, "7"),
        ]
        (code, said), (finding,), (runs, note), (found, note_of_one) = [each.result() for each in answers]
    assert time.monotonic() - begin < 9
    assert code == 1
    assert said.startswith("PanDA at 127.0.0.1")
    assert "answers, but iDDS behind it is down" in said
    assert "answers, but iDDS behind it is down" in finding.text
    # A list asks a dead tier once, and shows what PanDA tells.
    assert servers[2].asked.count("get_requests") <= 1
    assert len(runs) > 1
    assert {run.state.name for run in runs} == {"UNKNOWN"}
    assert "PanDA answers, but iDDS behind it does not" in note
    assert "HTTPConnectionPool" not in note
    assert found == []
    assert "PanDA answers, but iDDS behind it does not" in note_of_one


def test_the_servers_own_words_of_a_dead_tier(dead_tier, make_service):
    """The relay's reply, when it comes before ours."""
    server = dead_tier()
    server.run.tried.set()
    code, said = make_service(server).ping()
    assert code == 1
    assert said.endswith("iDDS behind it is down. [connection refused]")
