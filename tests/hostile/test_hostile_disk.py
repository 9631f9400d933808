"""A disk that is full or read-only: nothing is lost, everybody is told, all goes on when there is room."""

import contextlib
import http.client
import os
import subprocess
import urllib.error
import urllib.request

import pytest
from click.testing import CliRunner
from panda_servers.local import small_disk, wait_for

from lsst.ctrl.bps.panda.cli.panda_local import main
from lsst.ctrl.bps.panda.errors import LocalPandaError
from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.local.endpoint import EndpointClient, SampleTask, diamond

pytestmark = pytest.mark.slow

_TIMEOUT = 240


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", 64) as place:
        yield place
        instance.stop(place / "state")


def _fill(place):
    """Leave no byte free."""
    with (place / "filler").open("wb", buffering=0) as stream:
        for size in (1024 * 1024, 1024, 1):
            with contextlib.suppress(OSError):
                while stream.write(b"\0" * size):
                    pass
    assert os.statvfs(place).f_bavail == 0


def _free(place):
    (place / "filler").unlink()


def _secret(endpoint):
    return {"Authorization": f"Bearer {endpoint.token}"}


def _task(client, sample, label):
    path = f"task/get_tasks_detailed_info_since?filters=%7B%22reqID%22:%22{sample.request_id}%22%7D"
    (found,) = [record for record in client.api(path)["data"] if f"_{label}_01_" in record["taskName"]]
    return found


def test_jobs_that_end_on_a_full_disk_are_stored_when_there_is_room(disk, tmp_path):
    endpoint = instance.start(disk / "state", slots=2, parent=os.getpid())
    client = EndpointClient(endpoint)
    command = (
        f'echo "${{IN/L}}" >> {tmp_path}/ran; while ! test -e {tmp_path}/gate; do sleep 0.05; done; '
        f'echo "${{IN/L}}" >> {tmp_path}/ended; case "${{IN/L}}" in *:1) exit 3;; esac'
    )
    jobs = {f"job:{number}": () for number in range(6)}
    after = {"after:0": tuple(("job", name) for name in jobs if name != "job:1")}
    tasks = [SampleTask("job", jobs, command), SampleTask("after", after, command)]
    sample = client.submit("u_me_full", tasks)
    ran, ended = tmp_path / "ran", tmp_path / "ended"
    wait_for(lambda: ran.exists() and len(ran.read_text().split()) == 2, "running jobs")
    size = (disk / "state" / "server.log").stat().st_size
    _fill(disk)
    wait_for(lambda: instance.status(endpoint)["trouble"], "trouble")
    (tmp_path / "gate").touch()
    wait_for(lambda: ended.exists() and len(ended.read_text().split()) == 2, "ended jobs")
    wait_for(lambda: instance.status(endpoint)["slots_used"] == 0, "free slots")
    status = instance.status(endpoint)
    assert status["reports_waiting"] == 2
    assert "no room in" in status["trouble"]["text"]
    shown = CliRunner().invoke(main, ["status", "-d", str(disk / "state")]).stdout
    assert "in trouble since 20" in shown
    assert "jobs that have ended and are not stored yet: 2" in shown
    # Whoever looks at the run is told, too.
    assert "the embedded PanDA waits, since" in _task(client, sample, "job")["errorDialog"]
    with pytest.raises(LocalPandaError, match="takes no runs now: no room in .*, at least 20 MB are needed"):
        client.submit("u_me_late", diamond(1))
    # No other job was started, and the log has not grown by errors that come again and again.
    assert len(ran.read_text().split()) == 2
    assert (disk / "state" / "server.log").stat().st_size - size < 5000
    _free(disk)
    wait_for(lambda: instance.status(endpoint)["trouble"] is None, "end of the trouble")
    state, counts = client.wait(sample, timeout=_TIMEOUT)
    assert state == "SubFinished"
    assert (counts["job"].finished, counts["job"].failed, counts["after"].finished) == (5, 1, 1)
    # Each ran once, also those that ended on the full disk, and their logs are kept.
    assert sorted(ran.read_text().split()) == sorted([*jobs, "after:0"])
    records = client.api(f"task/get_job_descriptions?task_id={_task(client, sample, 'job')['jediTaskID']}")
    for record in records["data"]:
        url = record["pilotID"].partition("|")[0]
        with urllib.request.urlopen(urllib.request.Request(url, headers=_secret(endpoint))) as reply:
            assert f"job {record['PandaID']} of task".encode() in reply.read()
    assert instance.status(endpoint)["reports_waiting"] == 0


def test_disk_that_is_filled_again_and_again_by_the_jobs_themselves(disk, tmp_path):
    endpoint = instance.start(disk / "state", slots=2, keep_work="never", parent=os.getpid())
    client = EndpointClient(endpoint)
    # What a job writes is removed with its work directory.
    command = f'echo "${{IN/L}}" >> {tmp_path}/ran; head -c 100000000 /dev/zero > big; true'
    tasks = diamond(3, command=command, attempts=1)
    sample = client.submit("u_me_greedy", tasks)
    state, counts = client.wait(sample, timeout=_TIMEOUT)
    assert (state, sum(item.finished for item in counts.values())) == ("Finished", 8)
    ran = (tmp_path / "ran").read_text().split()
    assert sorted(ran) == sorted(name for task in tasks for name in task.jobs)


def test_payload_that_fails_for_want_of_room_says_so(disk):
    endpoint = instance.start(disk / "state", slots=1, keep_work="never", parent=os.getpid())
    client = EndpointClient(endpoint)
    sample = client.submit(
        "u_me_big", [SampleTask("big", {"big:0": ()}, "head -c 100000000 /dev/zero > big")]
    )
    assert client.wait(sample, timeout=_TIMEOUT)[0] == "Failed"
    records = client.api(f"task/get_job_descriptions?task_id={_task(client, sample, 'big')['jediTaskID']}")
    (record,) = records["data"]
    assert record["pilotErrorCode"] == 1098
    assert record["pilotErrorDiag"].startswith("Not enough local space: no room in ")
    # It was only the job's own work.
    assert instance.status(endpoint)["trouble"] is None


def test_upload_to_a_full_disk_is_answered_with_the_reason_and_leaves_nothing(disk):
    endpoint = instance.start(disk / "state", parent=os.getpid())
    _fill(disk)
    body = (
        '--b\r\nContent-Disposition: form-data; name="file"; filename="jobO.x.tar.gz"\r\n\r\n'
        + "x" * 200_000
        + "\r\n--b--\r\n"
    ).encode()
    url = endpoint.url.replace("/server/panda", "/api/v1/file_server/upload_cache_file")
    request = urllib.request.Request(
        url, data=body, headers={"Content-Type": "multipart/form-data; boundary=b", **_secret(endpoint)}
    )
    with pytest.raises((urllib.error.HTTPError, http.client.HTTPException)) as refused:
        urllib.request.urlopen(request, timeout=30)
    assert refused.value.code == 503
    assert b"No space left on device" in refused.value.read()
    assert list((disk / "state" / "cache").iterdir()) == []


def test_start_on_a_full_or_read_only_disk_says_so(disk):
    state = disk / "state"
    instance.start(state, parent=os.getpid())
    instance.stop(state)
    _fill(disk)
    with pytest.raises(LocalPandaError, match="cannot be used: .*No space left on device|no room in"):
        instance.start(state)
    _free(disk)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(LocalPandaError, match="cannot be used: .*Read-only file system"):
        instance.start(state)
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    endpoint = instance.start(state, parent=os.getpid())
    client = EndpointClient(endpoint)
    assert client.wait(client.submit("u_me_room", diamond(1)), timeout=_TIMEOUT)[0] == "Finished"


def test_job_waits_while_its_directories_cannot_be_made(tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    with small_disk(state / "work", 8) as work:
        try:
            (state / "server.out").touch()
            endpoint = instance.start(state, slots=1, parent=os.getpid())
            subprocess.run(["mount", "-o", "remount,ro", str(work)], check=True)
            client = EndpointClient(endpoint)
            sample = client.submit("u_me_waits", diamond(1))
            wait_for(lambda: instance.status(endpoint)["trouble"], "trouble")
            trouble = instance.status(endpoint)["trouble"]
            assert f"writing to {work} fails: " in trouble["text"]
            assert "Read-only file system" in trouble["text"]
            assert instance.status(endpoint)["jobs"] == {"running": 1}
            subprocess.run(["mount", "-o", "remount,rw", str(work)], check=True)
            assert client.wait(sample, timeout=_TIMEOUT)[0] == "Finished"
            assert instance.status(endpoint)["trouble"] is None
            assert instance.status(endpoint)["jobs"] == {"finished": 4}
        finally:
            instance.stop(state)
