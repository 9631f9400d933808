"""PanDA's messages, and watching a run by them, with a clock that passes only
when somebody waits.
"""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from lsst.ctrl.bps.wms_service import WmsStates
from panda_servers.activemq import job_message, task_message

from lsst.ctrl.bps import BpsConfig
from lsst.ctrl.bps.panda.cli.panda_bps_show import find_run
from lsst.ctrl.bps.panda.errors import ConnectionFailedError, RunNotFoundError, SettingsError, TransportError
from lsst.ctrl.bps.panda.insight.messages import StatusMessage, find_broker_settings, parse_message
from lsst.ctrl.bps.panda.insight.progress import LiveCounts, make_progress, watch
from lsst.ctrl.bps.panda.runs.record import RunIndex, RunRecord
from lsst.ctrl.bps.panda.settings.run import read_service_settings
from lsst.ctrl.bps.panda.status.evidence import RunEvidence
from lsst.ctrl.bps.panda.status.records import FileCounts, JobRecord, RequestRecord, TransformRecord

START = datetime(2026, 11, 21, tzinfo=UTC)


def evidence(*done, total=10, task_ids=(101, 102), status="Transforming", jobs=None):
    """A run of two labels, with so many jobs finished."""
    over = status != "Transforming"
    transforms = tuple(
        TransformRecord(
            9, number, f"run_{number:02d}_l{number}_01", "Finished" if over else "Transforming", "Running",
            task_id, FileCounts(total, processed=count), FileCounts(total, processed=total),
        )
        for number, (task_id, count) in enumerate(zip(task_ids, done, strict=True), 1)
    )  # fmt: skip
    request = RequestRecord(9, "run", status, created_at=START, updated_at=START)
    return RunEvidence(request, transforms, jobs=jobs, asked_at=START + timedelta(days=1))


@pytest.mark.parametrize(
    "text",
    ["", "no json", "[]", "3", '{"msg_type": "file_processing", "taskid": 1}', '{"msg_type": "job_status"}',
     '{"msg_type": "job_status", "taskid": 1, "status": "running"}',
     '{"msg_type": "job_status", "taskid": {}, "jobid": 1, "status": "running"}',
     '{"msg_type": "task_status", "taskid": "x", "status": "done"}'],
)  # fmt: skip
def test_what_is_no_status_is_left_alone(text):
    assert parse_message(text) is None


def test_messages_of_jobs_and_tasks():
    text = json.dumps(job_message(7, "12", "finished", inputs=["000000:a", "000001:b"]))
    assert parse_message(text) == StatusMessage(7, "finished", 12, 2)
    assert parse_message(json.dumps(task_message(7, "done"))) == StatusMessage(7, "done")


def counts_after(*messages, base=(4, 0)):
    live = LiveCounts()
    start = evidence(*base)
    live.rebase(start)
    for message in messages:
        live.take(StatusMessage(*message))
    progress = live.apply(make_progress(start, START))
    assert sum(progress.total.values()) == 20
    return live, {
        label: (counts[WmsStates.SUCCEEDED], counts[WmsStates.RUNNING])
        for label, counts in progress.labels.items()
    }


def test_jobs_move_forward_once():
    live, found = counts_after(
        (101, "running", 1), (101, "running", 1), (101, "finished", 1), (101, "finished", 1),
        # Late: it has finished already.
        (101, "running", 1),
        (102, "activated", 2), (102, "running", 3),
        # Several payloads in a job.
        (101, "finished", 4, 3),
    )  # fmt: skip
    assert found == {"l1": (8, 0), "l2": (0, 1)}
    assert not live.needs_poll


def test_never_more_jobs_than_there_are():
    _, found = counts_after(*((101, "finished", n) for n in range(50)), base=(8, 0))
    assert found["l1"] == (10, 0)


def test_messages_of_other_runs_change_nothing():
    live, found = counts_after((7, "finished", 1), (8, "running", 2), (9, "done"))
    assert found == {"l1": (4, 0), "l2": (0, 0)}
    # All tasks of the run are known, so an unknown one is not its own.
    assert not live.needs_poll


def test_a_failed_job_and_an_ended_task_want_a_look():
    assert counts_after((101, "failed", 1))[0].needs_poll
    assert counts_after((101, "finished"))[0].needs_poll
    assert not counts_after((101, "running"))[0].needs_poll


def test_a_new_task_is_looked_for_once():
    live = LiveCounts()
    live.rebase(evidence(4, 0, task_ids=(101, 0)))
    live.take(StatusMessage(500, "activated", 1))
    assert live.needs_poll
    live.rebase(evidence(4, 0, task_ids=(101, 0)))
    live.take(StatusMessage(500, "running", 1))
    assert not live.needs_poll, "it was not ours"
    live.take(StatusMessage(102, "running", 1))
    live.rebase(evidence(4, 0))
    assert live.take(StatusMessage(102, "running", 1))


def test_a_look_counts_what_messages_said_only_once():
    live = LiveCounts()
    live.rebase(evidence(4, 0))
    live.take(StatusMessage(101, "finished", 1))
    for counted in (4, 5, 6):  # iDDS hears of it later, and of others whose message was lost.
        now = evidence(counted, 0)
        live.rebase(now)
        done = live.apply(make_progress(now, START)).labels["l1"][WmsStates.SUCCEEDED]
        assert done == max(5, counted)


def test_pandas_word_on_running_jobs_replaces_what_messages_said():
    live = LiveCounts()
    live.rebase(evidence(4, 0))
    live.take(StatusMessage(101, "running", 1))
    live.take(StatusMessage(101, "finished", 2))
    jobs = tuple(JobRecord(n, 101, "running") for n in (2, 3, 4))
    now = evidence(5, 0, jobs=jobs)
    live.rebase(now)
    # Job 2 has finished since, 1 does not run any more.
    assert live.apply(make_progress(replace(now, jobs=None), START)).labels["l1"][WmsStates.RUNNING] == 2


# --- following --------------------------------------------------------------


class World:
    """A clock, servers and a broker, moved on by whoever waits.

    ``script`` gives what the broker sends at which second: messages, or an
    error that ends the connection.
    """

    def __init__(self, looks, script=(), *, away=()):
        self.time = 0.0
        self.looks = list(looks)
        self.looked = []
        self.script = sorted(script, key=lambda item: item[0])
        self.away = away
        self.opened = []
        self.closed = 0

    def clock(self):
        return self.time

    def now(self):
        return START + timedelta(seconds=self.time)

    def sleep(self, seconds):
        assert seconds >= 0
        self.time += seconds

    def look(self):
        self.looked.append(self.time)
        found = next(look for since, look in reversed(self.looks) if self.time >= since)
        if isinstance(found, Exception):
            raise found
        return found

    def open(self):
        self.opened.append(self.time)
        if any(start <= self.time < end for start, end in self.away):
            raise ConnectionFailedError("The broker cannot be reached")

    def close(self):
        self.closed += 1

    def read(self, seconds):
        if not self.script or self.script[0][0] > self.time + seconds:
            self.time += seconds
            return []
        self.time = max(self.time, self.script[0][0])
        found = []
        while self.script and self.script[0][0] <= self.time:
            _, item = self.script[0]
            if isinstance(item, Exception):
                if not found:
                    self.script.pop(0)
                    raise item
                break
            self.script.pop(0)
            found.append(item if isinstance(item, str) else json.dumps(item))
        return found

    def follow(self, interval=30.0):
        return [
            (self.time, progress)
            for progress in watch(
                self.look, subscribe=lambda: self, name="b:1", interval=interval, sleep=self.sleep,
                clock=self.clock, now=self.now,
            )
        ]  # fmt: skip


RUNNING, DONE = evidence(4, 0), evidence(10, 10, status="Finished")


def test_the_servers_are_asked_rarely_while_there_are_messages():
    messages = [(9 + n, job_message(101, n, "finished")) for n in range(1, 7)]
    world = World([(0, RUNNING), (900, DONE)], messages)
    found = world.follow()
    assert world.looked == [0, 300, 600, 900]
    assert found[0][1].messages == "following PanDA's messages from b:1"
    live = [(when, progress.done) for when, progress in found if 0 < when < 300]
    assert live[-1][1] == 10
    assert 10 < live[-1][0] < 20
    assert found[-1][1].ended
    assert world.closed == 1


def test_a_failure_is_looked_into_soon():
    world = World(
        [(0, RUNNING), (200, DONE)], [(5, job_message(101, 1, "failed")), (100, task_message(102, "done"))]
    )
    world.follow()
    # At once, as the last look is long enough ago; never more often than the interval says.
    assert world.looked[:3] == [0, 30, 100]


def test_when_all_jobs_are_done_the_end_is_looked_for():
    world = World([(0, evidence(9, 10)), (95, DONE)], [(40, job_message(101, 1, "finished"))])
    world.follow()
    assert world.looked == [0, 40, 70, 100]


def test_without_a_broker_it_asks_as_often_as_ever_and_tries_again():
    world = World([(0, RUNNING), (400, DONE)], away=[(0, 100)])
    found = world.follow()
    assert found[0][1].messages == "The broker cannot be reached; asking the servers every 30 s instead"
    assert world.opened[:5] == [0, 5, 15, 35, 75]
    assert [when for when in world.looked if when < 150] == [0, 30, 60, 90, 120, 150][:5]


def test_a_broker_that_goes_away_and_comes_back():
    lost = ConnectionFailedError("The broker closed the connection")
    world = World([(0, RUNNING), (60, evidence(7, 0)), (350, DONE)], [(20, lost)], away=[(20, 40)])
    found = world.follow()
    words = [progress.messages.split(";")[0] for _, progress in found]
    assert words[:2] == ["following PanDA's messages from b:1", "The broker closed the connection"]
    # It came back at the third try; what was missed is looked up at once.
    back = world.opened[-1]
    assert back in world.looked
    assert words[-1] == "following PanDA's messages from b:1"


def test_only_a_look_that_messages_follow_asks_for_everything():
    world = World([(0, RUNNING), (200, DONE)], [(20, ConnectionFailedError("gone"))], away=[(20, 900)])
    closer = []

    def look_closer():
        closer.append(world.time)
        return world.look()

    for _ in watch(
        world.look,
        look_closer,
        subscribe=lambda: world,
        sleep=world.sleep,
        clock=world.clock,
        now=world.now,
    ):
        pass
    assert closer == [0]
    assert world.looked == [0, 30, 60, 90, 120, 150, 180, 210]


def test_servers_that_do_not_answer():
    world = World([(0, TransportError("down")), (200, DONE)])
    assert [progress.ended for _, progress in world.follow()] == [True]
    assert world.looked == [0, 60, 180, 420]
    world = World([(0, RunNotFoundError("no such run"))])
    with pytest.raises(RunNotFoundError):
        world.follow()
    assert world.closed == 1


# --- settings ---------------------------------------------------------------


def broker(**variables):
    return find_broker_settings(read_service_settings(None, {"USER": "ann", "HOME": "/", **variables}))


def test_no_broker_unless_one_is_named():
    assert broker() is None


def test_settings_of_the_broker(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("pass word\n")
    found = broker(
        PANDA_MESSAGES_URL="stomp+ssl://a.example,b.example:1", PANDA_MESSAGES_USER="ann",
        PANDA_MESSAGES_PASSWORD_FILE=str(secret), PANDA_MESSAGES_VHOST="/",
    )  # fmt: skip
    assert found.hosts == (("a.example", 61614), ("b.example", 1))
    assert (found.tls, found.user, found.password, found.vhost) == (True, "ann", "pass word", "/")
    assert found.destination == "/topic/panda_idds"
    assert "pass word" not in repr(found)
    plain = broker(PANDA_MESSAGES_URL="h", PANDA_MESSAGES_PASSWORD="x", PANDA_VERIFY_HOST="off")
    assert (plain.hosts, plain.tls, plain.password, plain.verify) == ((("h", 61613),), False, "x", False)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"PANDA_MESSAGES_URL": "http://h"}, "not the address of a broker"),
        ({"PANDA_MESSAGES_URL": "stomp://ann:pass-word@h"}, "do not belong there"),
        ({"PANDA_MESSAGES_URL": "stomp://h:port"}, "not the address"),
        ({"PANDA_MESSAGES_URL": "h", "PANDA_MESSAGES_DESTINATION": "/queue/panda_idds"}, "away from iDDS"),
        ({"PANDA_MESSAGES_URL": "h", "PANDA_MESSAGES_PASSWORD_FILE": "/no/where"}, "cannot be read"),
    ],
)
def test_settings_that_cannot_be_used(variables, words):
    with pytest.raises(SettingsError, match=words) as caught:
        broker(**variables)
    assert "pass-word" not in str(caught.value)


def test_a_queue_of_ones_own_is_fine():
    name = "/queue/Consumer.ann.VirtualTopic.panda"
    assert broker(PANDA_MESSAGES_URL="h", PANDA_MESSAGES_DESTINATION=name).destination == name


def test_the_broker_of_a_configuration():
    config = BpsConfig({"pandaMessagesUrl": "stomp://mine", "pandaMessagesVhost": "v"})
    found = find_broker_settings(read_service_settings(config, {"USER": "ann", "HOME": "/"}))
    assert (found.hosts, found.vhost) == ((("mine", 61613),), "v")
    over = {"USER": "ann", "HOME": "/", "PANDA_MESSAGES_URL": "stomp://other"}
    assert find_broker_settings(read_service_settings(config, over)).hosts == (("other", 61613),)


def test_the_broker_of_the_runs_own_configuration(tmp_path, monkeypatch):
    server = "http://127.0.0.1:9/server/panda"
    state = tmp_path / "state"
    own = {"pandaMessagesUrl": "stomp+ssl://mine", "pandaMessagesVhost": "v", "other": "x"}
    for number, content in ((7, {"messages": own}), (8, {})):
        directory = tmp_path / str(number)
        run = {"name": f"r{number}", "submit_path": str(directory)}
        record = RunRecord(run=run, request_id=number, **content)
        directory.mkdir()
        record.write(directory)
        RunIndex(str(state / "panda_bps"), server).add(record)
    monkeypatch.setenv("PANDA_URL", server)
    monkeypatch.delenv("PANDA_URL_SSL", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    for run in ("7", "r7", str(tmp_path / "7")):
        found = find_broker_settings(find_run(run, local=False).connection.settings)
        assert (found.hosts, found.tls, found.vhost) == ((("mine", 61614),), True, "v")
        assert found.destination == "/topic/panda_idds"
    assert find_broker_settings(find_run("8", local=False).connection.settings) is None
    # One's own environment comes before what somebody else's run says.
    monkeypatch.setenv("PANDA_MESSAGES_URL", "stomp://environment")
    assert find_broker_settings(find_run("7", local=False).connection.settings).hosts == (
        ("environment", 61613),
    )
