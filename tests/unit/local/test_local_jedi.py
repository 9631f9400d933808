"""Tasks, inputs and jobs of the embedded PanDA, without processes and iDDS."""

import json
from contextlib import ExitStack
from dataclasses import replace

import pytest

from lsst.ctrl.bps.panda.local.database import Database, MessageQueue, files, jobs
from lsst.ctrl.bps.panda.local.executor import Dispatcher
from lsst.ctrl.bps.panda.local.jedi import Jedi
from lsst.ctrl.bps.panda.local.job_store import JobStore
from lsst.ctrl.bps.panda.local.pilot import OUT_OF_MEMORY, EventResult, make_result
from lsst.ctrl.bps.panda.local.settings import Queue, Queues, parse_timing
from lsst.ctrl.bps.panda.local.views import Views, list_runs

GOOD = make_result(0)
BAD = make_result(17)


class Panda:
    """All parts on an SQLite file, with a clock that is set by hand."""

    def __init__(self, path, pace="quick", queues=None):
        self.now = 1000.0
        self.database = Database(f"sqlite:///{path}")
        self.message_queue = MessageQueue(self.database, self.clock)
        self.wakes = 0
        store = JobStore(self.database, self.message_queue, clock=self.clock, wake=self.wake)
        self.jedi = Jedi(
            self.database,
            self.message_queue,
            store,
            timing=parse_timing(pace),
            clock=self.clock,
            wake=self.wake,
        )
        self.dispatcher = Dispatcher(self.database, self.jedi, queues=queues or Queues(), clock=self.clock)
        self.views = Views(self.database)

    def clock(self):
        return self.now

    def wake(self):
        self.wakes += 1

    def submit(self, names, **params):
        values = {
            "taskName": "run_00_label_01_1_1",
            "userName": "me",
            "reqID": 1,
            "pfnList": names,
            "maxAttempt": 2,
            "coreCount": 1,
            "ramCount": 1000,
            "jobParameters": [{"type": "constant", "value": "run ${IN/L}"}],
            **params,
        }
        return self.jedi.submit(values, "me")

    def take(self, free=100):
        return self.dispatcher.take(free, 100)

    def status(self, task_id):
        return self.views.task(task_id)["status"]

    def inputs(self, task_id):
        with self.database.reading() as connection:
            query = files.select().where(files.c.task_id == task_id).order_by(files.c.file_id)
            return [row.status for row in connection.execute(query)]

    def messages(self):
        return self.message_queue.take(timeout=0)


@pytest.fixture
def make_panda(tmp_path):
    """Make the parts on the same file each time; it is closed in the end."""
    with ExitStack() as stack:

        def make(*pace, **values):
            made = Panda(tmp_path / "panda.db", *pace, **values)
            stack.callback(made.database.close)
            return made

        yield make


@pytest.fixture
def panda(make_panda):
    return make_panda()


def test_task_without_dependencies_runs_at_once(panda):
    task = panda.submit(["a:0", "a:1"])
    assert panda.status(task) == "running"
    first, second = panda.take()
    assert (first.pseudo_input, second.pseudo_input) == ("a:0", "a:1")
    assert (first.attempt, first.memory, first.cores) == (1, 1000, 1)
    assert panda.dispatcher.report(first.panda_id, GOOD)
    assert panda.status(task) == "running"
    assert panda.dispatcher.report(second.panda_id, GOOD)
    assert panda.status(task) == "done"
    kinds = [(message["msg_type"], message["status"]) for message in panda.messages()]
    assert kinds[-1] == ("task_status", "done")
    assert kinds.count(("job_status", "finished")) == 2


def test_names_of_inputs_are_made_as_jedi_does(panda):
    task = panda.submit(["plain", "dir/last", "es:eventservice_0^3"], fineGrainedProc=True)
    (dataset,) = panda.views.datasets(task)
    assert [item["lfn"] for item in dataset["files"]] == [
        "000000:plain",
        "000001:last",
        "000002:es:eventservice_0",
    ]
    assert [order.event_count for order in panda.take()] == [1, 1, 3]


def test_second_submission_of_a_task_is_the_first(panda):
    first = panda.submit(["a"])
    assert panda.submit(["a"]) == first
    assert panda.submit(["a"], taskName="other") != first
    (order, _) = panda.take()
    panda.dispatcher.report(order.panda_id, GOOD)
    assert panda.submit(["a"]) == first


def test_release_by_id_by_name_and_giving_up(panda):
    task = panda.submit(["a", "b", "c", "d"], inputPreStaging=True)
    assert panda.status(task) == "pending"
    assert panda.take() == []
    (dataset,) = panda.views.datasets(task)
    released = [
        {"name": "a", "status": "Available", "external_content_id": dataset["files"][0]["id"]},
        {"name": "b", "status": "Available", "external_content_id": None},
        {"name": "c", "status": "Missing"},
        {"name": "nobody", "status": "Available"},
        {"name": "d", "status": "New"},
    ]
    assert panda.jedi.release(task, released) == 3
    assert panda.jedi.release(task, released) == 0, "a message that comes twice changes nothing"
    assert panda.inputs(task) == ["running", "running", "missing", "staging"]
    assert panda.status(task) == "running"
    for order in panda.take():
        panda.dispatcher.report(order.panda_id, GOOD)
    assert panda.status(task) == "running"
    panda.jedi.release(task, [{"name": "d", "status": "Missing"}])
    # Pruned inputs do not count: the task is done.
    assert panda.status(task) == "done"
    record = panda.views.detailed_task(task)
    assert (record["nFiles"], record["nFilesFinished"], record["nFilesMissing"]) == (2, 2, 2)


def test_all_pruned_task_fails(panda):
    task = panda.submit(["a"], inputPreStaging=True)
    panda.jedi.release(task, [{"name": "a", "status": "Missing"}])
    assert panda.status(task) == "failed"
    assert panda.views.task(task)["error_dialog"] == "failed due to no input"


def test_release_of_unknown_task_is_ignored(panda):
    assert panda.jedi.release(999, [{"name": "a", "status": "Available"}]) == 0


def test_failure_is_tried_again_under_a_new_id(panda):
    task = panda.submit(["a", "b"])
    first, other = panda.take()
    panda.dispatcher.report(first.panda_id, BAD)
    panda.dispatcher.report(other.panda_id, GOOD)
    (again,) = panda.take()
    assert (again.attempt, again.pseudo_input) == (2, "a")
    assert again.panda_id > first.panda_id
    panda.dispatcher.report(again.panda_id, BAD)
    assert panda.status(task) == "finished"
    assert panda.inputs(task) == ["failed", "finished"]
    attempts = panda.views.job_descriptions(task, unsuccessful_only=True)
    assert [(job["attemptNr"], job["maxAttempt"], job["transExitCode"]) for job in attempts] == [
        (1, 1, "17"),
        (2, 2, "17"),
    ]
    assert attempts[0]["jobName"] == attempts[1]["jobName"]
    # PanDA shows an input that used up its attempts as ready.
    assert panda.views.datasets(task)[0]["files"][0]["status"] == "ready"


REFUSING = {"maxAttempt": 3, "jobParameters": [{"value": "runner ${IN/L} --retry-unless-exit=1,2 --run=r"}]}


@pytest.mark.parametrize(
    ("pace", "result", "status"),
    [
        ("quick", make_result(1), "failed"),
        ("quick", BAD, "running"),
        ("quick", replace(make_result(1), forced=True), "running"),
        # As a real PanDA, which knows nothing of it.
        ("quick,refused_attempts=true", make_result(1), "running"),
    ],
)
def test_an_attempt_that_the_runner_would_refuse_is_not_made(make_panda, pace, result, status):
    panda = make_panda(pace)
    task = panda.submit(["a:0"], **REFUSING)
    (job,) = panda.take()
    panda.dispatcher.report(job.panda_id, result)
    assert panda.status(task) == status
    (record, *_) = panda.views.job_descriptions(task, unsuccessful_only=True)
    assert record["attemptNr"] == 1
    # iDDS calls a failure final, and not a job that was pruned, when the attempts are used up.
    (record,) = panda.views.jobs([record["PandaID"]], for_idds=True)
    assert record["attemptNr"] == (3 if status == "failed" else 1)
    panda.database.close()


def test_report_counts_once(panda):
    task = panda.submit(["a"])
    (order,) = panda.take()
    assert panda.dispatcher.report(order.panda_id, GOOD)
    assert not panda.dispatcher.report(order.panda_id, BAD)
    assert panda.status(task) == "done"
    assert not panda.dispatcher.report(12345, GOOD)


def test_memory_grows_after_running_out_of_it(panda):
    panda.submit(["a"], retryRamStep=2500, retryRamMax=2000, coreCount=1, maxAttempt=3)
    (order,) = panda.take()
    panda.dispatcher.report(order.panda_id, make_result(137, error=OUT_OF_MEMORY))
    (again,) = panda.take()
    assert again.memory == 2000
    panda.dispatcher.report(again.panda_id, BAD)
    (third,) = panda.take()
    assert third.memory == 2000


def test_retry_is_refused_for_done_and_accepted_once_for_finished(panda):
    task = panda.submit(["a", "b"], maxAttempt=1)
    first, second = panda.take()
    panda.dispatcher.report(first.panda_id, GOOD)
    panda.dispatcher.report(second.panda_id, BAD)
    assert panda.status(task) == "finished"
    assert panda.jedi.command(task, "retry", "me").code == 0
    assert panda.jedi.command(task, "retry", "me").code == 0, "sent repeatedly by iDDS"
    assert panda.take() == [], "not before its time"
    panda.now += 1
    panda.jedi.tick()
    (again,) = panda.take()
    assert (again.pseudo_input, again.attempt) == ("b", 2)
    panda.dispatcher.report(again.panda_id, GOOD)
    assert panda.status(task) == "done"
    refused = panda.jedi.command(task, "retry", "me")
    assert refused.code == 4
    assert "done status" in refused.message
    assert panda.jedi.command(999, "retry", "me").code == 2


def test_reload_of_input_brings_pruned_inputs_back(panda):
    task = panda.submit(["a", "b"], inputPreStaging=True)
    panda.jedi.release(task, [{"name": "a", "status": "Available"}, {"name": "b", "status": "Missing"}])
    (order,) = panda.take()
    panda.dispatcher.report(order.panda_id, GOOD)
    assert panda.status(task) == "done"
    assert panda.jedi.command(task, "incexec", "me").code == 0
    panda.now += 1
    panda.jedi.tick()
    (again,) = panda.take()
    assert again.pseudo_input == "b"


def test_retry_without_anything_to_do_fails_again(panda):
    task = panda.submit(["a"], inputPreStaging=True)
    panda.jedi.release(task, [{"name": "a", "status": "Missing"}])
    assert panda.jedi.command(task, "retry", "me").code == 0
    panda.now += 1
    panda.jedi.tick()
    assert panda.status(task) == "failed"
    assert panda.views.task(task)["error_dialog"] == "no retry since no new/unprocessed files available"


def test_kill_cancels_queued_jobs_and_waits_for_running_ones(panda):
    task = panda.submit(["a", "b", "c"])
    running = panda.dispatcher.take(1, 100)
    assert panda.jedi.command(task, "kill", "boss").code == 0
    assert panda.status(task) == "toabort"
    panda.now += 0.3
    panda.jedi.tick()
    assert panda.status(task) == "aborting"
    assert panda.take() == []
    assert panda.dispatcher.due_kills([running[0].panda_id]) == [], "the pilot has not heard of it"
    panda.now += 2.1
    assert panda.dispatcher.due_kills([running[0].panda_id]) == [running[0].panda_id]
    assert panda.dispatcher.killer(running[0].panda_id) == "kill by boss"
    panda.dispatcher.report(running[0].panda_id, BAD)
    assert panda.status(task) == "aborted"
    cancelled = panda.views.job_descriptions(task, unsuccessful_only=True)[1:]
    assert {(job["jobStatus"], job["taskBufferErrorCode"]) for job in cancelled} == {("cancelled", 100)}
    assert {job["taskBufferErrorDiag"] for job in cancelled} == {"kill by boss"}
    assert panda.jedi.command(task, "retry", "boss").code == 4
    assert panda.jedi.command(task, "kill", "boss").code == 4


def test_payload_that_ends_before_the_pilot_hears_of_the_kill_is_finished(panda):
    task = panda.submit(["a"])
    (order,) = panda.take()
    panda.jedi.command(task, "kill", "boss")
    panda.now += 0.3
    panda.jedi.tick()
    panda.dispatcher.report(order.panda_id, GOOD)
    assert panda.status(task) == "aborted"
    assert panda.views.jobs([order.panda_id])[0]["jobStatus"] == "finished"


def test_killed_single_jobs_are_tried_again(panda):
    task = panda.submit(["a", "b"])
    running = panda.dispatcher.take(1, 100)
    ids = panda.views.job_ids(task)
    assert panda.jedi.kill_jobs([*ids, 77], "boss") == [True, True, False]
    assert panda.views.job_states(ids) == [
        {"status": "running", "command": "tobekilled"},
        {"status": "cancelled", "command": "tobekilled"},
    ]
    (again,) = panda.take()
    assert (again.pseudo_input, again.attempt) == ("b", 2)
    assert running[0].pseudo_input == "a"


def test_a_forced_kill_does_not_wait_for_the_pilot(panda):
    panda.submit(["a", "b"])
    first, second = panda.take()
    panda.jedi.kill_jobs([first.panda_id], "boss", now=True)
    panda.jedi.kill_jobs([second.panda_id], "boss")
    assert panda.dispatcher.due_kills([first.panda_id, second.panda_id]) == [first.panda_id]
    assert panda.dispatcher.killer(first.panda_id) == "killed by boss"


@pytest.mark.parametrize(
    ("mode", "queues", "killed"),
    [("soft", {"a": "old", "b": "new"}, 0), ("nokill", {"a": "old", "b": "old"}, 0),
     ("", {"a": "old", "b": "new"}, 1)],
)  # fmt: skip
def test_a_task_is_moved_to_another_queue(panda, mode, queues, killed):
    task = panda.submit(["a", "b"], site="old")
    (running,) = panda.dispatcher.take(1, 100)
    assert panda.jedi.reassign(task, "new", mode).code == 0
    assert panda.status(task) == "toreassign"
    panda.now += 3
    panda.jedi.tick()
    assert panda.status(task) == "running"
    jobs = panda.views.job_descriptions(task, unsuccessful_only=False)
    assert {job["Files"][0]["lfn"][-1]: job["computingSite"] for job in jobs} == queues
    closed = [
        (job["jobSubStatus"], job["taskBufferErrorDiag"]) for job in jobs if job["jobStatus"] == "closed"
    ]
    assert closed == [("toreassign", "reassigned by JEDI")] * (mode != "nokill")
    panda.now += 3
    assert len(panda.dispatcher.due_kills([running.panda_id])) == killed
    assert panda.jedi.reassign(999, "new", "").code == 2


def test_a_task_that_no_queue_takes_goes_on_at_another(panda):
    task = panda.jedi.submit({"taskName": "t", "userName": "me", "pfnList": ["a"]}, "me", unbrokered=True)
    assert "no candidates" in panda.views.task(task)["error_dialog"]
    panda.jedi.reassign(task, "new", "soft")
    panda.now += 3
    panda.jedi.tick()
    assert [order.queue for order in panda.take()] == ["new"]


def test_a_move_of_a_last_attempt_fails_it(panda):
    task = panda.submit(["a"], maxAttempt=1)
    panda.jedi.reassign(task, "new", "soft")
    panda.now += 3
    panda.jedi.tick()
    assert panda.status(task) == "failed"


def test_memory_is_changed_for_jobs_that_are_made_later(panda):
    task = panda.submit(["a", "b"])
    assert panda.jedi.change_attribute(task, "ramCount", 1500)
    first, second = panda.take()
    assert (first.memory, second.memory) == (1000, 1000)
    panda.dispatcher.report(first.panda_id, BAD)
    (again,) = panda.take()
    assert again.memory == 1500
    assert panda.views.detailed_task(task)["ramCount"] == 1500
    assert panda.jedi.change_attribute(task, "walltime", 60)
    assert panda.views.detailed_task(task)["walltime"] == 60
    assert not panda.jedi.change_attribute(999, "ramCount", 1)


def test_no_job_of_a_paused_task_starts(panda):
    task = panda.submit(["a", "b"])
    panda.dispatcher.take(1, 100)
    assert panda.jedi.pause(task, resume=True).code == 4
    assert panda.jedi.pause(task, resume=False).code == 0
    assert panda.take() == []
    assert panda.status(task) == "paused"
    assert panda.jedi.pause(task, resume=False).code == 4
    assert panda.jedi.pause(task, resume=True).code == 0
    assert len(panda.take()) == 1
    assert panda.status(task) == "running"


def test_event_service_runs_only_what_is_missing(panda):
    task = panda.submit(["es:eventservice_0^3"], fineGrainedProc=True)
    (order,) = panda.take()
    events = (EventResult(1, 0), EventResult(2, 5), EventResult(3, 0))
    panda.messages()
    panda.dispatcher.report(order.panda_id, make_result(5, events=events))
    told = [message["status"] for message in panda.messages() if message["msg_type"] == "job_status"]
    assert "finished" not in told, "iDDS would take all payloads as finished"
    (again,) = panda.take()
    assert again.done_events == {1, 3}
    panda.dispatcher.report(again.panda_id, make_result(5, events=(EventResult(2, 5),)))
    assert panda.status(task) == "failed"
    states = panda.views.event_states([{"task_id": task, "panda_id": again.panda_id}])
    assert [state["status"] for _, state in sorted(states[str(again.panda_id)].items())] == [
        "finished",
        "fatal",
        "finished",
    ]
    job = panda.views.jobs([order.panda_id])[0]
    assert (job["jobStatus"], job["jobSubStatus"], job["eventService"]) == ("finished", "fg_partial", 6)


def test_delays_of_production(make_panda):
    panda = make_panda("production")
    task = panda.submit(["a"])
    assert panda.status(task) == "ready"
    assert panda.jedi.tick() == panda.now + 7
    panda.now += 7
    panda.jedi.tick()
    (order,) = panda.take()
    assert panda.status(task) == "running"
    panda.dispatcher.report(order.panda_id, GOOD)
    assert panda.status(task) == "prepared"
    panda.now += 60
    assert panda.jedi.tick() is None
    assert panda.status(task) == "done"


def test_lost_jobs_after_a_crash(make_panda):
    before = make_panda()
    twice = before.submit(["a"], taskName="twice")
    once = before.submit(["b"], taskName="once", maxAttempt=1)
    ended = before.submit(["c"], taskName="ended")
    orders = {order.pseudo_input: order for order in before.take()}
    before.dispatcher.report(orders["c"].panda_id, GOOD)
    after = make_panda()
    assert after.jedi.recover("just now") == 2
    again = {order.pseudo_input: order for order in after.take()}
    assert set(again) == {"a", "b"}
    assert (again["a"].attempt, again["b"].attempt) == (2, 1)
    assert again["a"].panda_id > orders["a"].panda_id
    assert again["b"].panda_id == orders["b"].panda_id
    lost = after.views.jobs([orders["a"].panda_id])[0]
    assert (lost["jobStatus"], lost["jobDispatcherErrorCode"]) == ("failed", 100)
    assert lost["jobDispatcherErrorDiag"] == "lost heartbeat : just now"
    assert [after.status(task) for task in (twice, once, ended)] == ["running", "running", "done"]


def test_messages_taken_before_a_crash_come_again(panda):
    panda.submit(["a"])
    first = panda.messages()
    assert first
    assert panda.messages() == []
    panda.message_queue.replay()
    assert panda.messages() == first


def test_state_and_message_are_one_transaction(panda):
    panda.messages()

    def interrupted():
        with panda.database.change():
            panda.submit(["a"])
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        interrupted()
    assert panda.messages() == []
    assert panda.views.task(1) is None


def test_jobs_are_taken_by_priority_and_fit_the_cores(panda):
    panda.submit(["low"], taskName="low", taskPriority=1)
    panda.submit(["wide"], taskName="wide", taskPriority=5, coreCount=4)
    panda.submit(["high"], taskName="high", taskPriority=9)
    # The wide job does not fit next to the high one, and is not overtaken.
    (high,) = panda.dispatcher.take(4, 4)
    assert high.pseudo_input == "high"
    assert panda.dispatcher.take(3, 4) == []
    panda.dispatcher.report(high.panda_id, GOOD)
    assert [order.pseudo_input for order in panda.dispatcher.take(4, 4)] == ["wide"]


def test_job_wider_than_the_machine_runs_alone(panda):
    panda.submit(["wide"], coreCount=64)
    (order,) = panda.dispatcher.take(2, 2)
    assert (order.cores, order.memory) == (2, 64000)


def test_queues_limit_cores_memory_and_time(make_panda):
    queues = Queues({"small": Queue(cores=1, memory=500, walltime=60), "big": Queue()})
    panda = make_panda(queues=queues)
    panda.submit(["a", "b"], taskName="small", site="small", maxWalltime=90000)
    panda.submit(["c"], taskName="big", site="big", maxWalltime=30)  # not read, as in JEDI 1.0.4
    first, other = panda.take()
    assert (first.pseudo_input, first.memory, first.walltime) == ("a", 500, 60)
    assert (other.pseudo_input, other.memory, other.walltime) == ("c", 1000, 0)
    panda.dispatcher.report(first.panda_id, GOOD)
    assert [order.pseudo_input for order in panda.take()] == ["b"]


def test_overview_of_runs(panda):
    panda.submit(["a", "b"], taskName="isr")
    panda.submit(["c"], taskName="coadd", inputPreStaging=True)
    panda.submit(["d"], taskName="other", reqID=2)
    for order in panda.take()[:1]:
        panda.dispatcher.report(order.panda_id, GOOD)
    other, run = list_runs(panda.database, lambda requests: {1: "run"} if requests == [2, 1] else {})
    assert (other.run, other.name, other.jobs) == (2, "", 1)
    assert (run.run, run.name, run.user) == (1, "run", "me")
    assert (run.tasks, run.ended, run.jobs, run.done, run.running) == (2, 0, 3, 1, 1)


def test_tasks_since_filters(panda):
    mine = panda.submit(["a"], taskName="mine")
    panda.submit(["b"], taskName="theirs", userName="they", reqID=2)
    views = panda.views

    def names(since=None, user="", **filters):
        return [item["taskName"] for item in views.tasks_since(since, filters, user=user, limit=10)]

    assert names() == ["mine", "theirs"]
    assert names(user="me") == ["mine"]
    # A real server keeps the user in its query, and applies the filters on top.
    assert names(user="me", userName="they") == names(user="they", userName="me") == []
    assert names(user="me", userName=".*|.*") == ["mine"]
    assert names(reqID="2") == ["theirs"]
    assert names(reqID="1|2") == ["mine", "theirs"]
    assert names(status="running", jediTaskID=str(mine)) == ["mine"]
    assert names(since="1970-01-01 00:16:39") == ["mine", "theirs"]
    assert names(since="1970-01-01 00:16:41") == []


def test_records_are_json_and_have_pandas_fields(panda):
    task = panda.submit(["a"])
    (order,) = panda.take()
    record = panda.views.jobs([order.panda_id, 5])
    assert record[1] is None
    job = json.loads(json.dumps(record[0]))
    assert job["creationTime"] == {"__datetime__": "1970-01-01T00:16:40"}
    assert (job["jobStatus"], job["reqID"], job["jediTaskID"], job["maxRSS"]) == ("running", 1, task, None)
    assert job["Files"][0]["lfn"] == "000000:a"
    assert job["jobParameters"] == "run a"


def test_job_ids_have_one_number_of_digits(panda):
    panda.submit([f"a:{i}" for i in range(12)])
    with panda.database.reading() as connection:
        ids = [row.panda_id for row in connection.execute(jobs.select())]
    assert len({len(str(panda_id)) for panda_id in ids}) == 1
