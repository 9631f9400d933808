"""Malformed tasks, and rows in the database that hold what they should not: each stops only itself."""

import json
import os
import sqlite3
import urllib.error

import pytest
from panda_servers.local import wait_for

from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.local.database import Database, MessageQueue, messages
from lsst.ctrl.bps.panda.local.endpoint import EndpointClient, SampleTask, diamond
from lsst.ctrl.bps.panda.local.executor import Dispatcher
from lsst.ctrl.bps.panda.local.jedi import Jedi
from lsst.ctrl.bps.panda.local.job_store import JobStore
from lsst.ctrl.bps.panda.local.pilot import JobResult
from lsst.ctrl.bps.panda.local.settings import Queues, parse_timing
from lsst.ctrl.bps.panda.local.task_parameters import parse_task
from lsst.ctrl.bps.panda.local.views import Views, list_runs

_GOOD = {
    "taskName": "run_00_label_01_1_1",
    "userName": "me",
    "reqID": 1,
    "pfnList": ["a:0", "a:1"],
    "maxAttempt": 1,
    "coreCount": 1,
    "ramCount": 1000,
    "jobParameters": [{"type": "constant", "value": "true ${IN/L}"}],
}

_BAD = [
    ("taskName", None),
    ("taskName", ""),
    ("taskName", 7),
    ("taskName", "x" * 257),
    ("taskName", "a\0b"),
    ("taskName", "half \ud800 a letter"),
    ("userName", ["me"]),
    ("userName", "x" * 129),
    ("reqID", "seven"),
    ("reqID", -1),
    ("reqID", 2**63),
    ("reqID", True),
    ("pfnList", "a:0"),
    ("pfnList", {"a": 0}),
    ("pfnList", [5]),
    ("pfnList", ["x" * 4000]),
    ("pfnList", ["a\0b"]),
    ("jobParameters", [5]),
    ("jobParameters", "true"),
    ("jobParameters", [{"value": ["true"]}]),
    ("jobParameters", [{"value": "a\0b"}]),
    ("jobParameters", [{"value": "x" * 200_000}]),
    ("maxAttempt", "many"),
    ("maxAttempt", -2),
    ("maxAttempt", 2**40),
    ("coreCount", -1),
    ("coreCount", [1]),
    ("coreCount", float("nan")),
    ("coreCount", 1e300),
    ("ramCount", float("inf")),
    ("ramCount", {}),
    ("retryRamStep", "much"),
    ("retryRamOffset", -5),
    ("retryRamMax", False),
    ("maxWalltime", 10**30),
    ("taskPriority", "high"),
    ("taskPriority", 2**31),
    ("site", 4),
    ("site", "x" * 129),
    ("fineGrainedProc", []),
    ("inputPreStaging", {}),
]


@pytest.mark.parametrize(("key", "value"), _BAD, ids=[f"{key}-{value!r:.20}" for key, value in _BAD])
def test_bad_parameter_is_refused_by_name(key, value):
    with pytest.raises(ValueError, match=f"task parameter {key} "):
        parse_task({**_GOOD, key: value})


@pytest.mark.parametrize("value", [None, 5, "task", [], [("taskName", "x")]])
def test_parameters_that_are_no_mapping_are_refused(value):
    with pytest.raises(ValueError, match="task parameters are .* expected a mapping"):
        parse_task(value)


@pytest.mark.parametrize("count", ["0", "-1", "x", "1.5", "9" * 30, "²"])
def test_bad_number_of_events_is_refused_by_name(count):
    with pytest.raises(ValueError, match="task parameter pfnList is .*events"):
        parse_task({**_GOOD, "fineGrainedProc": True, "pfnList": [f"a:0^{count}"]})


def test_numbers_as_panda_takes_them():
    parsed = parse_task({**_GOOD, "coreCount": "4", "ramCount": 1500.5, "maxAttempt": None, "reqID": "12"})
    assert (parsed.cores, parsed.ram, parsed.max_attempt, parsed.request_id) == (4, 1500.5, 3, 12)
    assert parse_task({"taskName": "x"}).inputs[0].name == "pseudo_file"


class _Panda:
    """PanDA's side on an SQLite file whose rows are then changed from outside."""

    def __init__(self, path):
        self.path = path
        self.now = 1000.0
        self.database = Database(f"sqlite:///{path}")
        self.message_queue = MessageQueue(self.database, lambda: self.now)
        parts = {"clock": lambda: self.now, "wake": lambda: None}
        store = JobStore(self.database, self.message_queue, **parts)
        timing = parse_timing("quick,command=5,activation=5")
        self.jedi = Jedi(self.database, self.message_queue, store, timing=timing, **parts)
        self.dispatcher = Dispatcher(self.database, self.jedi, queues=Queues(), clock=lambda: self.now)
        self.views = Views(self.database)

    def submit(self, name, **params):
        return self.jedi.submit({**_GOOD, "taskName": name, "reqID": 1, **params}, "me")

    def execute(self, statement, *values):
        connection = sqlite3.connect(self.path)
        with connection:
            connection.execute(statement, values)
        connection.close()

    def tick(self, seconds):
        self.now += seconds
        self.jedi.tick()

    def restart(self):
        self.database.close()
        self.__init__(self.path)

    def states(self):
        rows = [self.views.job_descriptions(task, unsuccessful_only=False) for task in self.tasks()]
        return [[job["jobStatus"] for job in row] for row in rows]

    def tasks(self):
        return [task["jediTaskID"] for task in self.views.tasks_since(None, {}, user="", limit=100)]

    def task(self, task_id):
        return self.views.detailed_task(task_id)


@pytest.fixture
def panda(tmp_path):
    made = _Panda(tmp_path / "panda.db")
    yield made
    made.database.close()


_DAMAGES = [
    'UPDATE tasks SET params = \'{"taskName": "x", "jobParameters": [5]}\' WHERE task_id = ?',
    "UPDATE tasks SET params = '{\"taskName' WHERE task_id = ?",
    "UPDATE tasks SET params = '[]' WHERE task_id = ?",
    "UPDATE tasks SET params = x'ff00' WHERE task_id = ?",
    "UPDATE jobs SET cores = 'many' WHERE task_id = ?",
    "UPDATE jobs SET ram = 'much' WHERE task_id = ?",
    "UPDATE files SET events = 'some', lfn = 5 WHERE task_id = ?",
    "DELETE FROM tasks WHERE task_id = ?",
]


@pytest.mark.parametrize("damage", _DAMAGES)
def test_job_of_a_damaged_row_is_failed_alone_and_the_others_run(panda, damage):
    bad, good = panda.submit("bad"), panda.submit("good")
    panda.tick(6)
    panda.restart()
    panda.execute(damage, bad)
    taken = panda.dispatcher.take(10, 10)
    assert [job.task_id for job in taken] == [good, good]
    assert panda.dispatcher.counts() == {"failed": 2, "running": 2}
    for job in taken:
        assert panda.dispatcher.report(job.panda_id, JobResult("finished"))
    assert panda.task(good)["status"] == "done"
    records = panda.views.job_descriptions(bad, unsuccessful_only=False)
    assert [record["jobStatus"] for record in records] == ["failed", "failed"]
    assert all("its rows in the database cannot be used" in job["pilotErrorDiag"] for job in records)
    if "DELETE" not in damage:
        assert panda.task(bad)["status"] == "failed"
    panda.database.close()


def test_end_of_a_damaged_job_is_stored_as_a_failure(panda):
    bad, good = panda.submit("bad"), panda.submit("good")
    panda.tick(6)
    taken = panda.dispatcher.take(10, 10)
    panda.execute("UPDATE jobs SET detail = '{' WHERE task_id = ?", bad)
    assert [record["jobStatus"] for record in panda.views.jobs([job.panda_id for job in taken])] == [
        "running"
    ] * 4
    for job in taken:
        assert panda.dispatcher.report(job.panda_id, JobResult("finished"))
    assert panda.dispatcher.counts() == {"failed": 2, "finished": 2}
    assert [panda.task(task)["status"] for task in (bad, good)] == ["failed", "done"]


def test_damaged_rows_do_not_stop_a_start(panda):
    bad, good = panda.submit("bad"), panda.submit("good")
    panda.tick(6)
    panda.dispatcher.take(10, 10)
    panda.execute("UPDATE files SET attempt = 'first', max_attempt = 'last' WHERE task_id = ?", bad)
    panda.execute("UPDATE jobs SET attempt = 'first', detail = '' WHERE task_id = ?", bad)
    assert panda.jedi.recover("now") == 4
    assert panda.dispatcher.counts() == {"failed": 2, "activated": 2}
    assert [panda.task(task)["status"] for task in (bad, good)] == ["failed", "running"]


@pytest.mark.parametrize("damage", [
    "UPDATE tasks SET command = 'retry', max_attempt = 'x', params = '' WHERE task_id = ?",
    "UPDATE tasks SET command = 'what', params = '' WHERE task_id = ?",
])  # fmt: skip
def test_command_for_a_damaged_task_breaks_it_alone(panda, damage):
    bad, good = panda.submit("bad"), panda.submit("good")
    panda.restart()
    for task in (bad, good):
        assert panda.jedi.command(task, "kill", "me").code == 0
    panda.execute(damage, bad)
    panda.tick(6)
    assert [panda.task(task)["status"] for task in (bad, good)] == ["broken", "aborted"]
    assert "cannot be used" in panda.task(bad)["errorDialog"]
    assert panda.jedi.tick() is None
    panda.database.close()


def test_inputs_that_are_due_without_their_task_do_not_stop_others(panda):
    bad, good = panda.submit("bad"), panda.submit("good")
    panda.execute("DELETE FROM tasks WHERE task_id = ?", bad)
    panda.tick(6)
    assert [job.task_id for job in panda.dispatcher.take(10, 10)] == [good, good]
    assert panda.jedi.tick() is None


def test_lists_mark_a_row_that_cannot_be_read(panda):
    bad, good = panda.submit("bad"), panda.submit("good")
    panda.tick(6)
    panda.execute("UPDATE tasks SET created = 'yesterday' WHERE task_id = ?", bad)
    panda.execute("UPDATE jobs SET changed = 'soon', ended = 'x', started = 'y' WHERE task_id = ?", bad)
    records = {record["jediTaskID"]: record for record in panda.views.tasks_since(None, {}, user="", limit=9)}
    assert "cannot be used" in records[bad]["errorDialog"]
    assert records[good]["errorDialog"] is None
    assert records[bad].keys() >= {"taskName", "status", "reqID", "nFiles", "userName"}
    assert len(panda.views.job_descriptions(bad, unsuccessful_only=False)) == 2
    assert panda.views.details(bad)["status"] == "running"
    assert [run.tasks for run in list_runs(panda.database, lambda ids: {})] == [2]
    json.dumps([*records.values(), panda.views.job_descriptions(bad, unsuccessful_only=False)])


@pytest.mark.parametrize("body", ["", "{", "[]", "5", '{"msg_type": "job_status"}', '{"taskid": "x"}'])
def test_message_that_cannot_be_read_does_not_stop_those_behind_it(panda, body):
    panda.submit("first")
    with panda.database.change() as connection:
        connection.execute(messages.insert().values(created=1.0, taken=None, body=body))
    panda.submit("second")
    bodies = panda.message_queue.take(timeout=0)
    assert {message["taskid"] for message in bodies} == set(panda.tasks())
    assert panda.message_queue.take(timeout=0) == []


@pytest.mark.slow
def test_malformed_tasks_do_not_stop_a_server(tmp_path):
    directory = tmp_path / "state"
    endpoint = instance.start(directory, slots=2, parent=os.getpid())
    try:
        client = EndpointClient(endpoint)
        for key, value in [("jobParameters", [5]), ("coreCount", "many"), ("pfnList", 7), ("taskName", "")]:
            with pytest.raises(urllib.error.HTTPError) as refused:
                client.api("task/submit", {"task_parameters": {**_GOOD, key: value}})
            assert refused.value.code == 400
            answer = json.load(refused.value)
            assert answer["success"] is False
            assert f"task parameter {key} is {value!r}" in answer["message"]
        # Through iDDS, which asks for nothing of that kind.
        bad = client.submit("u_me_bad", [SampleTask("bad", {"bad:0": ()}, options={"task_priority": "high"})])
        good = client.submit("u_me_good", diamond(2))
        assert client.wait(good, timeout=120)[0] == "Finished"
        wait_for(lambda: client.fetch_status(bad)[0] == "Failed", "failed run")
        assert len(client.api("task/get_tasks_detailed_info_since")["data"]) == 4
    finally:
        instance.stop(directory)
