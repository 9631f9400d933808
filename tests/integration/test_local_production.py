"""The delays of a real PanDA, live: shorter than half an hour, long enough to
be told from none; and relay commands that get lost or come twice.
"""

import os
import time

import pytest

from lsst.ctrl.bps.panda.errors import LocalPandaError
from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.local.endpoint import EndpointClient, SampleTask

pytestmark = pytest.mark.slow

_TIMEOUT = 240.0

_PACE = (
    "production,activation=1,command=5,heartbeat=10,finalise=5,failed_attempt=1,poll=1,timer=1,message_age=0"
)
"""What a real PanDA does, its delays shortened: each long enough to be seen from here on a busy machine."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("production") / "state"
    yield instance.start(directory, slots=3, pace=_PACE, parent=os.getpid())
    instance.stop(directory)


@pytest.fixture
def client(server):
    yield EndpointClient(server)
    instance.set_faults(server, [])


def _wait_for(condition, what):
    end = time.monotonic() + _TIMEOUT
    while not condition():
        assert time.monotonic() < end, f"no {what} within {_TIMEOUT} s"
        time.sleep(0.05)


def _task(client, sample, label):
    path = f"task/get_tasks_detailed_info_since?filters=%7B%22reqID%22:%22{sample.request_id}%22%7D"
    for record in client.api(path)["data"]:
        if f"_{label}_01_" in record["taskName"]:
            return record
    return {"status": "", "jediTaskID": 0}


def _jobs(client, record):
    return client.api(f"task/get_job_descriptions?task_id={record['jediTaskID']}")["data"]


def _substatus(client, sample):
    row = client.relay("get_requests", request_id=sample.request_id)[0]
    return row["substatus"]["attributes"]["_name_"]


def test_tasks_are_finalised_late_and_done_tasks_refuse_a_retry(client, tmp_path):
    client_tasks = [
        SampleTask("good", {"good:0": ()}, f"date +%s.%N > {tmp_path}/good"),
        SampleTask("bad", {"bad:0": (), "bad:1": ()}, 'case "${IN/L}" in *1) exit 4;; esac'),
    ]
    final = SampleTask("final", {"final:0": ()}, f"date +%s.%N > {tmp_path}/final")
    sample = client.submit("u_me_late", client_tasks, final=final)
    # Between the end of its job and its final status a task is "prepared".
    _wait_for(lambda: _task(client, sample, "good")["status"] == "prepared", "prepared task")
    assert [job["jobStatus"] for job in _jobs(client, _task(client, sample, "good"))] == ["finished"]
    status, counts = client.wait(sample, timeout=_TIMEOUT)
    assert status == "SubFinished"
    assert (counts["bad"].finished, counts["bad"].failed) == (1, 1)
    # The final job waits for the tasks, not for the jobs.
    ends = {name: float((tmp_path / name).read_text()) for name in ("good", "final")}
    assert ends["final"] - ends["good"] > 5
    good, bad = _task(client, sample, "good"), _task(client, sample, "bad")
    assert (good["status"], bad["status"]) == ("done", "finished")
    refused = client.api("task/retry", {"task_id": good["jediTaskID"]})
    assert (refused["success"], refused["data"]) == (False, 4)
    assert "not accepted if the task is in done status" in refused["message"]
    # A retry is registered, and executed later; asked for twice it is done once.
    assert client.api("task/retry", {"task_id": bad["jediTaskID"]})["success"]
    assert client.api("task/retry", {"task_id": bad["jediTaskID"]})["success"]
    assert _task(client, sample, "bad")["status"] == "toretry"
    _wait_for(lambda: len(_jobs(client, bad)) == 3, "second attempt")
    _wait_for(lambda: _task(client, sample, "bad")["status"] == "finished", "end of the retry")
    assert sorted(job["attemptNr"] for job in _jobs(client, bad)) == [1, 1, 2]


def test_abort_reaches_running_payloads_with_the_heartbeat(client, tmp_path):
    command = f'echo $(date +%s.%N) >> {tmp_path}/"${{IN/L}}"; sleep 600'
    short = f"touch {tmp_path}/began; while ! test -e {tmp_path}/gate; do sleep 0.1; done"
    # The short one ends before its pilot hears of the abort.  Of the long ones one runs and one is
    # queued, since they wait until the short one has its slot.  The queued one does not fit into the
    # slot that the short one leaves: iDDS aborts the tasks one after the other, so the short one may
    # have ended before the other task hears of the abort.
    first = (("first", "first:0"),)
    wide = {"core_count": 2}
    sample = client.submit(
        "u_me_abort_late",
        [
            SampleTask("first", {"first:0": ()}, f"while ! test -e {tmp_path}/began; do sleep 0.1; done"),
            SampleTask("short", {"short:0": ()}, short),
            SampleTask("long", {"long:0": first, "long:1": first}, command, options=wide),
        ],
    )
    _wait_for(lambda: list(tmp_path.glob("long:*")), "running jobs")
    (running,) = (path.name for path in tmp_path.glob("long:*"))
    (queued,) = {"long:0", "long:1"} - {running}
    asked = time.time()
    assert client.relay("abort", request_id=sample.request_id)[0][0] == 0
    _wait_for(lambda: _task(client, sample, "short")["status"] == "aborting", "aborting task")
    (tmp_path / "gate").touch()
    client.wait(sample, timeout=_TIMEOUT)
    # For iDDS the run has ended; the payload knows nothing of it yet.
    _wait_for(lambda: _task(client, sample, "long")["status"] == "aborted", "aborted task")
    records = _jobs(client, _task(client, sample, "long"))
    jobs = {job["Files"][0]["lfn"].partition(":")[2]: job for job in records}
    assert (jobs[queued]["jobStatus"], jobs[queued]["taskBufferErrorCode"]) == ("cancelled", 100)
    assert not (tmp_path / queued).exists()
    assert jobs[running]["pilotErrorCode"] == 1144
    # Not before its pilot's next heartbeat.
    assert time.time() - asked > 10
    assert [job["jobStatus"] for job in _jobs(client, _task(client, sample, "short"))] == ["finished"]


def test_commands_that_get_lost_or_come_twice(server, client, tmp_path):
    task = SampleTask("long", {"long:0": ()}, f"touch {tmp_path}/on; sleep 600")
    sample = client.submit("u_me_dropped", [task])
    _wait_for((tmp_path / "on").exists, "running job")
    instance.set_faults(server, [{"action": "drop", "target": "command", "match": "^abort$", "times": 1}])
    lost = client.relay("abort", request_id=sample.request_id)
    assert lost == [[0, {"status": 0, "message": "Command registered successfully"}]]
    with pytest.raises(LocalPandaError, match="did not end"):
        client.wait(sample, timeout=4)
    assert _substatus(client, sample) == "New"
    # The rule is used up: the second one takes, and comes twice.
    instance.set_faults(server, [{"action": "duplicate", "target": "command", "match": "^abort$"}])
    assert client.relay("abort", request_id=sample.request_id)[0][0] == 0
    client.wait(sample, timeout=_TIMEOUT)
    _wait_for(lambda: _task(client, sample, "long")["status"] == "aborted", "aborted task")
    assert _substatus(client, sample) == "ToCancel"
    assert len(_jobs(client, _task(client, sample, "long"))) == 1
