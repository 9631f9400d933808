"""A submission that was interrupted: its record says so, and the server knows what became of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from panda_servers.hostile import HostileServer

from lsst.ctrl.bps.panda.errors import (
    ConnectionFailedError,
    PandaBpsError,
    RefusedError,
    RunNotFoundError,
    SubmissionUncertainError,
)
from lsst.ctrl.bps.panda.idds.workflow import Submission
from lsst.ctrl.bps.panda.rest.credentials import Anonymous
from lsst.ctrl.bps.panda.runs import intention
from lsst.ctrl.bps.panda.runs.cancel import cancel_run
from lsst.ctrl.bps.panda.runs.client import Connection, FoundRun, RunClient, connect
from lsst.ctrl.bps.panda.runs.record import RequestPart, RunIndex, RunRecord, read_record
from lsst.ctrl.bps.panda.runs.restart import restart_run
from lsst.ctrl.bps.panda.runs.submit import submit_run
from lsst.ctrl.bps.panda.settings.run import read_service_settings

NAME = "u_ann_run"
REQUEST = json.dumps([{"name": NAME}])


@pytest.fixture
def server():
    with HostileServer() as running:
        yield running


@pytest.fixture
def connection(server, tmp_path):
    return connection_to(server.url, tmp_path)


def connection_to(url, tmp_path):
    return connect(read_service_settings({}, environment(url, tmp_path)))


def environment(url, tmp_path):
    return {"PANDA_URL": url, "USER": "ann", "XDG_STATE_HOME": str(tmp_path / "state")}


@pytest.fixture
def record(tmp_path):
    """A run as ``bps prepare`` leaves it."""
    record = RunRecord(run={"name": NAME, "submit_path": str(tmp_path / "sub")}, request_id=None)
    record.write()
    return record


def submission(*steps):
    return Submission(steps, REQUEST, "{}")


def interrupted(record, url, *, part=RequestPart.REQUEST, minutes=20):
    """Write what a process leaves that is killed while it sends."""
    begun = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=minutes)
    left = record.intended(part, server=url)
    left = left._with(intention=left.intention.model_copy(update={"begun_at": begun}))
    left.write()
    return left


def find(connection, record):
    return RunClient(connection).find(record.submit_path)


def test_what_is_sent_is_on_disk_before(server, connection, record):
    """A relay that reads the record when it is asked to submit."""
    seen = []

    class Relay:
        endpoint = "here"

        def get_request_ids_by_name(self, name):
            return {}

        def get_requests(self, request_id):
            return []

        def submit_step(self, arguments, keywords):
            seen.append(read_record(record.submit_path).intention)

        submit = submit_build = lambda self, *rest, **more: (self.submit_step(*rest), 7)[1]

    settings = connection.settings
    assert submit_run(Connection(Relay(), None, settings, Anonymous()), record, submission("a")) == 7
    assert [(one.part.value, one.server) for one in seen] == [("steps", server.url), ("request", server.url)]
    after = read_record(record.submit_path)
    assert (after.request_id, after.intention) == (7, None)
    assert "intention" not in Path(record.submit_path, "panda_run.json").read_text()


def test_a_run_that_is_there_is_found_and_recorded(server, connection, record):
    left = interrupted(record, server.url, minutes=0)
    connection.relay.submit(REQUEST)
    assert find(connection, left).request_id == 1
    mended = read_record(record.submit_path)
    assert (mended.request_id, mended.intention, mended.server) == (1, None, server.url)
    assert [
        entry.request_id for entry in RunIndex(connection.settings.state_directory, server.url).entries()
    ] == [1]
    # From now on nobody has to ask.
    asked = len(server.seen)
    assert find(connection, left).record == mended
    assert len(server.seen) == asked


def test_a_run_that_is_not_there_was_not_submitted(server, connection, record):
    left = interrupted(record, server.url)
    with pytest.raises(
        RunNotFoundError, match=f"while it was being sent; {server.url} does not know its name, so"
    ):
        find(connection, left)
    # It is not forgotten, so that each look says the same.
    with pytest.raises(RunNotFoundError, match="so it was not submitted: submit again with bps submit"):
        find(connection, left)


def test_a_request_may_be_on_its_way_for_a_while(server, connection, record):
    left = interrupted(record, server.url, minutes=9)
    with pytest.raises(SubmissionUncertainError, match="may still be at work on the request until"):
        find(connection, left)
    assert read_record(record.submit_path).intention is not None


def test_steps_alone_run_nothing(connection, record):
    left = interrupted(record, "http://127.0.0.1:1/server/panda", part=RequestPart.STEPS, minutes=0)
    with pytest.raises(RunNotFoundError, match="before its request itself was sent, so it was not submitted"):
        find(connection, left)


def test_a_server_that_does_not_answer_leaves_it_open(server, connection, record):
    left = interrupted(record, server.url)
    server.inject("401")
    with pytest.raises(SubmissionUncertainError, match="Ask again when the server answers"):
        find(connection, left)


def test_another_server_cannot_tell(server, connection, record):
    left = interrupted(record, "https://elsewhere/server/panda")
    with pytest.raises(SubmissionUncertainError, match="was being sent to https://elsewhere.*Set PANDA_URL"):
        find(connection, left)
    connection.relay.submit(REQUEST)
    assert find(connection, left).request_id == 1


def test_a_second_submission_looks_first(server, connection, record):
    left = interrupted(record, server.url, minutes=0)
    with pytest.raises(SubmissionUncertainError):
        submit_run(connection, record, submission())
    connection.relay.submit(REQUEST)
    assert submit_run(connection, record, submission()) == 1
    assert len(server.named(NAME)) == 1
    assert read_record(left.submit_path).request_id == 1


def test_a_second_submission_after_none_is_the_first(server, connection, record):
    interrupted(record, server.url)
    assert submit_run(connection, record, submission()) == 1
    assert [seen.command for seen in server.seen].count("submit") == 1


def test_a_run_that_is_prepared_again_keeps_what_is_known(server, record):
    left = interrupted(record, server.url)
    record.prepared_again(record.submit_path).write()
    assert read_record(record.submit_path) == left
    other = RunRecord(run={"name": "other", "submit_path": record.submit_path}, request_id=None)
    assert other.prepared_again(record.submit_path) == other


@pytest.mark.parametrize("fault", ["reset after", "504 after", "cut reply", "idds lost"])
def test_a_lost_reply_is_found_by_name(server, connection, record, fault):
    server.inject("ok", fault)
    assert submit_run(connection, record, submission()) == 1
    assert read_record(record.submit_path).request_id == 1


@pytest.mark.parametrize("fault", ["403", "404", "413", "relay refuses"])
def test_what_certainly_had_no_effect_leaves_a_prepared_run(server, connection, record, fault):
    server.inject("ok", fault)
    with pytest.raises(PandaBpsError):
        submit_run(connection, record, submission())
    with pytest.raises(RunNotFoundError, match="prepared but not submitted"):
        find(connection, record)


def test_an_interrupt_while_it_is_sent_says_what_to_do(server, connection, record, caplog):
    class Relay:
        endpoint = "here"

        def get_request_ids_by_name(self, name):
            return {}

        def submit(self, *rest, **more):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        submit_run(Connection(Relay(), None, connection.settings, Anonymous()), record, submission())
    assert f"see what became of it: bps report --id {record.submit_path}" in caplog.text
    assert read_record(record.submit_path).intention.part is RequestPart.REQUEST


@pytest.mark.slow
@pytest.mark.newest
def test_two_processes_do_not_submit_at_once(server, connection, record):
    program = (
        "import sys; from lsst.ctrl.bps.panda.runs.intention import lock_submission\n"
        "with lock_submission(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, record.submit_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(PandaBpsError, match="Another process is submitting the run of"):
            submit_run(connection, record, submission())
        left = interrupted(record, server.url)
        with pytest.raises(PandaBpsError, match="Another process is submitting the run of"):
            find(connection, left)
        assert server.seen == []
    finally:
        holder.kill()
        holder.communicate()
    assert submit_run(connection, record, submission()) == 1


def test_a_name_of_an_earlier_run_is_refused_as_ever(server, connection, record):
    assert submit_run(connection, record, submission()) == 1
    with pytest.raises(RefusedError, match="exists already: request 1"):
        submit_run(connection, record, submission())
    assert read_record(record.submit_path).request_id == 1


def test_a_record_that_cannot_be_written_afterwards_is_mended_later(server, tmp_path, record, caplog):
    """A directory in the record's place stands for a full disk: the tests may run as root."""
    connection = connection_to(server.url, tmp_path)
    path = Path(record.submit_path, "panda_run.json")

    class Relay:
        endpoint = "here"
        get_request_ids_by_name = connection.relay.get_request_ids_by_name
        get_requests = connection.relay.get_requests

        def submit(self, *rest, **more):
            os.rename(path, path.with_suffix(".kept"))
            path.mkdir()
            return connection.relay.submit(*rest, **more)

    held = Connection(Relay(), None, connection.settings, Anonymous())
    assert submit_run(held, record, submission()) == 1
    assert "is request 1, but its record" in caplog.text
    path.rmdir()
    os.rename(path.with_suffix(".kept"), path)
    assert find(connection, record).request_id == 1


def test_an_unwritable_intention_sends_nothing(server, connection, record):
    path = Path(record.submit_path, "panda_run.json")
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match="panda_run.json"):
        submit_run(connection, record, submission())
    assert "submit" not in [seen.command for seen in server.seen]


@pytest.mark.parametrize("recorded", [False, True])
def test_a_restart_that_was_interrupted_is_continued(server, connection, tmp_path, record, recorded):
    """Killed between the reply and the restart's record, or between that and the first run's."""
    first = record.submitted(7, server=server.url)
    first.write()
    RunIndex(connection.settings.state_directory, server.url).add(first)
    Path(first.submit_path, f"{NAME}_config.yaml").write_text("a: 1\n")
    second = RunRecord(
        run={"name": f"{NAME}_r1", "submit_path": f"{first.submit_path}/restart_1"},
        request_id=None,
        origin_path=first.submit_path,
    )
    number = connection.relay.submit(json.dumps([{"name": f"{NAME}_r1"}]))
    if recorded:
        second.submitted(number, server=server.url).write()
    else:
        interrupted(second, server.url, minutes=0)
    assert restart_run(RunClient(connection), "7")[:2] == (str(number), f"{NAME}_r1")
    assert read_record(first.submit_path).restarted_as == number
    assert read_record(second.submit_path).request_id == number
    assert Path(first.submit_path, f"{NAME}_r1_config.yaml").exists()
    assert "was restarted before" in restart_run(RunClient(connection), first.submit_path)[2]


def test_a_restart_of_which_nobody_knows_is_not_sent_again(server, connection, record):
    first = record.submitted(7, server=server.url)
    first.write()
    second = RunRecord(
        run={"name": f"{NAME}_r1", "submit_path": f"{first.submit_path}/restart_1"},
        request_id=None,
        origin_path=first.submit_path,
    )
    left = interrupted(second, server.url, minutes=0)
    with pytest.raises(SubmissionUncertainError):
        restart_run(RunClient(connection), first.submit_path)
    assert f"restart again with bps restart --id {first.submit_path}" in intention.describe_unsent(left)


def test_a_cancellation_that_was_not_sent_lets_the_run_publish(server, tmp_path, record):
    """The marker stays only if the server may have the command."""
    area = tmp_path / "area"
    area.mkdir()
    run = record.run.model_copy(update={"staging_area": f"{area}/"})
    done = record.submitted(7, server=server.url)._with(run=run)

    class Client:
        relay = None

        def __init__(self, error):
            self.error = error
            self.connection = self
            self.relay = self

        def find(self, run, *, unique):
            return FoundRun(7, done)

        def summary(self, run):
            return type("Evidence", (), {"ended": False})()

        def abort(self, request_id):
            raise self.error

    for maybe in (False, True):
        with pytest.raises(ConnectionFailedError):
            cancel_run(Client(ConnectionFailedError("gone", maybe_sent=maybe)), "7")
        assert bool(list(area.iterdir())) is maybe


def test_a_server_that_is_lost_after_the_command_is_no_failed_command(server, connection):
    """The run may well be cancelled."""
    number = connection.relay.submit(REQUEST)

    class Client(RunClient):
        looks = 0

        def summary(self, run):
            self.looks += 1
            if self.looks > 1:
                raise ConnectionFailedError("gone")
            return SimpleNamespace(ended=False)

    accepted, message = cancel_run(Client(connection), str(number))
    assert not accepted
    assert message.startswith(
        f"The command to cancel run {number} was sent, but what came of it is not known"
    )
    assert server.runs[number].aborts == 1
