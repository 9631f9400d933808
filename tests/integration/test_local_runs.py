"""Runs on the embedded PanDA, with a real server process and real iDDS."""

import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.local.endpoint import EndpointClient, SampleTask, diamond, is_alive, start_ticks
from lsst.ctrl.bps.panda.local.guard import marked_processes

pytestmark = pytest.mark.slow

_TIMEOUT = 240.0


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("panda") / "state"
    # It ends with the tests, however these end.
    yield instance.start(directory, slots=4, parent=os.getpid(), pace="quick,task_walltime=true")
    instance.stop(directory)


@pytest.fixture
def own(tmp_path):
    """A state directory, and the certainty that nothing is left of it."""
    directory = tmp_path / "state"
    yield directory
    instance.stop(directory)
    assert marked_processes(f"PANDA_LOCAL_INSTANCE={directory}") == []


def _wait_for(condition, what, timeout=_TIMEOUT):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"no {what} within {timeout} s"
        time.sleep(0.05)


def _task_ids(client, sample):
    path = f'task/get_tasks_detailed_info_since?filters={{"reqID":"{sample.request_id}"}}'
    records = client.api(path.replace('"', "%22").replace("{", "%7B").replace("}", "%7D"))["data"]
    return {
        record["taskName"].removeprefix(f"{sample.name}_")[3:].split("_01_")[0]: record for record in records
    }


def _jobs(client, task_id):
    return client.api(f"task/get_job_descriptions?task_id={task_id}")["data"]


def test_diamond_with_final_task_finishes(shared):
    client = EndpointClient(shared)
    tasks = diamond(3, command='echo "in ${IN/L}"; echo trouble >&2')
    final = SampleTask("final", {"final:0": ()}, "echo the end")
    sample = client.submit("u_me_diamond", tasks, final=final)
    status, counts = client.wait(sample, timeout=_TIMEOUT)
    assert status == "Finished"
    assert {label: item.finished for label, item in counts.items()} == {
        "first": 1, "left": 3, "right": 3, "last": 1, "final": 1,
    }  # fmt: skip
    records = _task_ids(client, sample)
    assert {record["status"] for record in records.values()} == {"done"}
    job = _jobs(client, records["left"]["jediTaskID"])[1]
    log = job["pilotID"].split("|")[0]
    assert log.endswith(f"/PandaJob_{job['PandaID']}/pilotlog.txt")
    place = Path(shared.directory) / "logs" / f"PandaJob_{job['PandaID']}"
    assert (place / "payload.stdout").read_text() == "in left:1\n"
    assert (place / "payload.stderr").read_text() == "trouble\n"
    assert not (Path(shared.directory) / "work" / f"PandaJob_{job['PandaID']}").exists()


def test_failure_prunes_children_and_keeps_all_attempts(shared):
    client = EndpointClient(shared)
    command = 'case "${IN/L}" in left:1) exit 17;; esac'
    sample = client.submit(
        "u_me_failing", diamond(3, command=command, attempts=2), final=SampleTask("final", {"final:0": ()})
    )
    status, counts = client.wait(sample, timeout=_TIMEOUT)
    assert status == "SubFinished"
    assert (counts["left"].finished, counts["left"].failed) == (2, 1)
    assert (counts["right"].finished, counts["right"].missing) == (2, 1)
    assert (counts["last"].finished, counts["last"].missing) == (0, 1)
    assert counts["final"].finished == 1
    records = _task_ids(client, sample)
    # As a real PanDA counts: pruned inputs are not part of nFiles.
    assert (records["right"]["status"], records["right"]["nFiles"], records["right"]["nFilesMissing"]) == (
        "done", 2, 1,
    )  # fmt: skip
    assert (records["last"]["status"], records["last"]["errorDialog"]) == ("failed", "failed due to no input")
    assert records["left"]["status"] == "finished"
    bad = [job for job in _jobs(client, records["left"]["jediTaskID"]) if job["jobStatus"] == "failed"]
    assert [(job["attemptNr"], job["maxAttempt"]) for job in bad] == [(1, 1), (2, 2)]
    assert {job["transExitCode"] for job in bad} == {"17"}
    assert {job["pilotErrorCode"] for job in bad} == {1305}
    assert len({job["jobName"] for job in bad}) == 1
    contents = client.relay("get_contents_output_ext", request_id=sample.request_id)
    failed = [row for rows in contents.values() for row in rows if row["status"] == "FinalFailed"]
    assert [(row["trans_exit_code"], row["attempt_nr"]) for row in failed] == [(17, 2)]
    # A task that is done does not take a retry.
    reply = client.api("task/retry", {"task_id": records["right"]["jediTaskID"]})
    assert (reply["success"], reply["data"]) == (False, 4)


def test_retry_that_gets_lost_or_comes_twice(shared, tmp_path):
    client = EndpointClient(shared)
    command = f"echo ran >> {tmp_path}/ran; test -e {tmp_path}/gate"
    sample = client.submit("u_me_retried", [SampleTask("once", {"once:0": ()}, command)])
    assert client.wait(sample, timeout=_TIMEOUT)[0] == "Failed"
    (tmp_path / "gate").touch()
    instance.set_faults(shared, [{"action": "drop", "target": "command", "match": "^retry$", "times": 1}])
    registered = client.relay("retry", request_id=sample.request_id)
    assert registered == [[0, {"status": 0, "message": "Command registered successfully"}]]
    with sqlite3.connect(Path(shared.directory) / "idds.db") as connection:
        query = "SELECT count(*) FROM commands WHERE request_id = ?"
        assert connection.execute(query, (sample.request_id,)).fetchone() == (0,)
    connection.close()
    # The rule is used up: the second one takes, and comes twice.
    instance.set_faults(shared, [{"action": "duplicate", "target": "command", "match": "^retry$"}])
    try:
        assert client.relay("retry", request_id=sample.request_id)[0][0] == 0
    finally:
        instance.set_faults(shared, [])
    _wait_for(lambda: client.fetch_status(sample)[0] == "Finished", "finished run")
    assert (tmp_path / "ran").read_text() == "ran\nran\n"


def test_abort_reaches_running_payloads_late_and_queued_jobs_at_once(own, tmp_path):
    endpoint = instance.start(own, slots=1, pace="quick,heartbeat=1.5,grace=0.5")
    client = EndpointClient(endpoint)
    jobs = {f"long:{i}": () for i in range(3)}
    sample = client.submit(
        "u_me_abort", [SampleTask("long", jobs, f"echo ${{IN/L}} >> {tmp_path}/ran; sleep 600")]
    )
    _wait_for((tmp_path / "ran").exists, "running job")
    assert client.relay("abort", request_id=sample.request_id)[0][0] == 0
    client.wait(sample, timeout=_TIMEOUT)
    record = _task_ids(client, sample)["long"]
    _wait_for(lambda: _task_ids(client, sample)["long"]["status"] == "aborted", "aborted task")
    states = {job["jobStatus"]: job for job in _jobs(client, record["jediTaskID"])}
    assert set(states) == {"cancelled", "failed"}
    assert states["cancelled"]["taskBufferErrorCode"] == 100
    assert states["failed"]["pilotErrorCode"] == 1144
    assert states["failed"]["taskBufferErrorDiag"].startswith("kill by ")
    assert (tmp_path / "ran").read_text().count("\n") == 1


def test_memory_and_walltime_are_enforced_and_memory_grows(shared):
    client = EndpointClient(shared)
    hungry = SampleTask(
        "hungry",
        {"hungry:0": ()},
        # The second attempt has twice the memory and suffices.
        "python3 -c \"import time; x = b'x' * 150_000_000; time.sleep(3)\"",
        attempts=2,
        memory=120,
        options={"task_rss_retry_step": 240, "task_rss_max": 1000},
    )
    slow = SampleTask("slow", {"slow:0": ()}, "sleep 600", options={"maxwalltime": 1})
    sample = client.submit("u_me_limits", [hungry, slow])
    _, counts = client.wait(sample, timeout=_TIMEOUT)
    assert counts["hungry"].finished == 1
    assert counts["slow"].failed == 1
    records = _task_ids(client, sample)
    first, second = _jobs(client, records["hungry"]["jediTaskID"])
    assert (first["pilotErrorCode"], first["minRamCount"]) == (1212, 120)
    assert (second["jobStatus"], second["minRamCount"]) == ("finished", 240)
    assert second["maxRSS"] > 140_000
    (late,) = _jobs(client, records["slow"]["jediTaskID"])
    assert late["pilotErrorCode"] == 1213


def test_event_service_fails_payload_by_payload(shared, tmp_path):
    client = EndpointClient(shared)
    command = f'echo "${{IN/L}}" >> {tmp_path}/ran; case "${{IN/L}}" in *^2) exit 5;; esac'
    es = {"es": True, "es_label": "es", "max_events_per_job": 4}
    jobs = {f"es:{i}": () for i in range(4)}
    after = {f"after:{i}": (("es", f"es:{i}"),) for i in range(4)}
    sample = client.submit(
        "u_me_events", [SampleTask("es", jobs, command, options=es), SampleTask("after", after, "true")]
    )
    _, counts = client.wait(sample, timeout=_TIMEOUT)
    assert (counts["es"].finished, counts["es"].failed) == (3, 1)
    assert (counts["after"].finished, counts["after"].missing) == (3, 1)
    names = (tmp_path / "ran").read_text().split()
    assert names == [f"es:eventservice_0^{number}" for number in (1, 2, 3, 4)]
    (job,) = _jobs(client, _task_ids(client, sample)["es"]["jediTaskID"])
    assert (job["jobStatus"], job["jobSubStatus"], job["transExitCode"]) == ("finished", "fg_partial", "5")


def test_two_users_runs_are_two_users_runs(shared):
    alice, bob = (
        EndpointClient(shared, token=instance.make_token(shared, user)) for user in ("alice", "bob")
    )
    sample = alice.submit("u_alice_own", [SampleTask("own", {"own:0": ()}, "sleep 1")])
    code, detail = bob.relay("abort", request_id=sample.request_id)[0]
    assert code == -1, detail
    status, _ = alice.wait(sample, timeout=_TIMEOUT)
    assert status == "Finished"
    row = alice.relay("get_requests", request_id=sample.request_id)[0]
    assert row["username"] == "alice"
    assert [record["userName"] for record in _task_ids(alice, sample).values()] == ["alice"]
    assert _task_ids(bob, sample) == {}
    with_filter = bob.api(
        "task/get_tasks_detailed_info_since?filters=%7B%22userName%22:%22alice%22,"
        f"%22reqID%22:%22{sample.request_id}%22%7D"
    )
    assert with_filter["data"] == []


def test_kill_9_in_mid_run_loses_and_doubles_nothing(own, tmp_path):
    """Finished jobs are not run again, those that ran are, children follow."""
    endpoint = instance.start(own, slots=3)
    client = EndpointClient(endpoint)
    ran, gate = tmp_path / "ran", tmp_path / "gate"
    command = (
        f'echo "start ${{IN/L}} $$" >> {ran}; '
        f'case "${{IN/L}}" in left:[01]) while ! test -e {gate}; do sleep 0.1; done;; esac; '
        f'echo "end ${{IN/L}}" >> {ran}'
    )
    sample = client.submit("u_me_killed", diamond(4, command=command, attempts=2))

    def lines(word):
        return [line.split() for line in ran.read_text().splitlines() if line.startswith(word)]

    # Two jobs hang, the children of the two others are through.
    _wait_for(lambda: ran.exists() and len(lines("end")) == 5, "five ended jobs")
    # That the last job has ended is known to PanDA.
    _wait_for(lambda: instance.status(endpoint)["jobs"].get("finished") == 5, "five finished jobs")
    hanging = [int(line[2]) for line in lines("start") if line[1] in ("left:0", "left:1")]
    ticks = {pid: start_ticks(pid) for pid in hanging}
    assert all(ticks.values())
    os.kill(endpoint.pid, signal.SIGKILL)
    _wait_for(lambda: not is_alive(endpoint.pid, endpoint.started), "end of the server")
    again = instance.start(own)
    assert again.pid != endpoint.pid
    assert again.url == endpoint.url
    assert not any(is_alive(pid, started) for pid, started in ticks.items())
    gate.touch()
    status, counts = EndpointClient(again).wait(sample, timeout=_TIMEOUT)
    assert status == "Finished"
    assert [item.finished for item in counts.values()] == [1, 4, 4, 1]
    starts = [line[1] for line in lines("start")]
    assert sorted(name for name in set(starts) if starts.count(name) > 1) == ["left:0", "left:1"]
    ends = [line[1] for line in lines("end")]
    assert len(ends) == len(set(ends)) == 10
    lost = [
        job
        for job in _jobs(
            EndpointClient(again), _task_ids(EndpointClient(again), sample)["left"]["jediTaskID"]
        )
        if job["jobDispatcherErrorCode"] == 100
    ]
    assert len(lost) == 2
    assert all(job["jobDispatcherErrorDiag"].startswith("lost heartbeat") for job in lost)
    assert lost[0]["jobStatus"] == "failed"


def test_lost_last_attempt_is_run_again_under_its_id(own, tmp_path):
    endpoint = instance.start(own, slots=1)
    gate = tmp_path / "gate"
    client = EndpointClient(endpoint)
    command = f"echo start >> {tmp_path}/ran; while ! test -e {gate}; do sleep 0.1; done"
    sample = client.submit("u_me_last", [SampleTask("one", {"one:0": ()}, command)])
    _wait_for((tmp_path / "ran").exists, "running job")
    os.kill(endpoint.pid, signal.SIGKILL)
    _wait_for(lambda: not is_alive(endpoint.pid, endpoint.started), "end of the server")
    gate.touch()
    client = EndpointClient(instance.start(own))
    status, _ = client.wait(sample, timeout=_TIMEOUT)
    assert status == "Finished"
    assert len(_jobs(client, _task_ids(client, sample)["one"]["jediTaskID"])) == 1
    assert (tmp_path / "ran").read_text() == "start\nstart\n"


def test_faults_by_rule(own):
    endpoint = instance.start(own, slots=2, pace="quick,heartbeat=0.5")
    instance.set_faults(
        endpoint,
        [
            {"action": "fail", "match": "first", "exit_code": 9, "attempts": 1},
            {"action": "lose", "match": "left:0", "attempts": 1},
            {"action": "delay", "match": "left:1", "seconds": 1},
            {"action": "duplicate", "target": "to_idds", "match": "job_status"},
            {"action": "duplicate", "target": "to_panda", "match": "file_processing"},
            # The first ones are lost: iDDS learns of these jobs when it asks.
            {"action": "drop", "target": "to_idds", "match": "job_status", "times": 5},
            {"action": "drop", "target": "to_idds", "match": "task_status"},
        ],
    )
    client = EndpointClient(endpoint)
    sample = client.submit("u_me_faults", diamond(2, attempts=2))
    status, _ = client.wait(sample, timeout=_TIMEOUT)
    assert status == "Finished"
    records = _task_ids(client, sample)
    first = _jobs(client, records["first"]["jediTaskID"])
    assert [(job["jobStatus"], job["transExitCode"]) for job in first] == [("failed", "9"), ("finished", "0")]
    left = _jobs(client, records["left"]["jediTaskID"])
    assert [job["jobDispatcherErrorCode"] for job in left if job["jobStatus"] == "failed"] == [100]
    assert len(left) == 3
