"""A server that is killed, at any moment: its jobs end with it, and nothing is lost or doubled."""

import os
import signal
from pathlib import Path

import pytest
from panda_servers.local import guards, wait_for

from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.local.endpoint import EndpointClient, SampleTask
from lsst.ctrl.bps.panda.local.guard import marked_processes

pytestmark = pytest.mark.slow


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "state"
    yield path
    instance.stop(path)
    assert marked_processes(f"PANDA_LOCAL_INSTANCE={path}") == []


def _payloads(directory):
    return marked_processes(f"PANDA_LOCAL_INSTANCE={directory}")


def _submit_long(endpoint, tmp_path):
    # One leaves its session and ignores signals, one is a loop that forks.
    command = (
        f'case "${{IN/L}}" in *:0) trap "" TERM HUP INT; setsid sleep 600 & ;; esac; '
        f"echo $$ >> {tmp_path}/jobs; while true; do sleep 0.02; done"
    )
    client = EndpointClient(endpoint)
    client.submit("u_me_killed", [SampleTask("long", {"long:0": (), "long:1": ()}, command)])
    jobs = tmp_path / "jobs"
    wait_for(lambda: jobs.exists() and len(jobs.read_text().split()) == 2, "running jobs")
    assert len(_payloads(directory=endpoint.directory)) >= 3


def test_payloads_end_with_a_server_that_is_killed(directory, tmp_path):
    endpoint = instance.start(directory, slots=2, parent=os.getpid())
    _submit_long(endpoint, tmp_path)
    (guard,) = guards(endpoint.pid)
    os.kill(endpoint.pid, signal.SIGKILL)
    # Without a stop or another start.
    wait_for(lambda: not _payloads(directory), "end of the payloads", timeout=30)
    wait_for(lambda: not os.path.exists(f"/proc/{guard}"), "end of the guard", timeout=30)


def test_guard_that_is_killed_is_replaced_and_jobs_do_not_hold_its_pipe(directory, tmp_path):
    endpoint = instance.start(directory, slots=2, parent=os.getpid())
    (first,) = guards(endpoint.pid)
    # It ends after the server, whatever it is told.
    os.kill(first, signal.SIGTERM)
    _submit_long(endpoint, tmp_path)
    assert guards(endpoint.pid) == [first]
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: guards(endpoint.pid) not in ([], [first]), "another guard")
    (second,) = guards(endpoint.pid)
    pipe = os.readlink(f"/proc/{second}/fd/0")
    for pid in _payloads(directory):
        try:
            held = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
        except FileNotFoundError:
            continue
        assert pipe not in held
    os.kill(endpoint.pid, signal.SIGKILL)
    wait_for(lambda: not _payloads(directory), "end of the payloads", timeout=30)


def test_guard_of_a_dead_server_leaves_the_jobs_of_the_next_one_alone(directory, tmp_path):
    first = instance.start(directory, slots=2, parent=os.getpid())
    (guard,) = guards(first.pid)
    os.kill(guard, signal.SIGSTOP)
    os.kill(first.pid, signal.SIGKILL)
    wait_for(lambda: instance.find(directory) is None, "end of the first server")
    second = instance.start(directory, parent=os.getpid())
    _submit_long(second, tmp_path)
    before = set((tmp_path / "jobs").read_text().split())
    os.kill(guard, signal.SIGCONT)
    wait_for(lambda: not os.path.exists(f"/proc/{guard}"), "end of the guard", timeout=30)
    assert {pid for pid in before if os.path.exists(f"/proc/{pid}")} == before


def test_guard_is_small(directory):
    endpoint = instance.start(directory, parent=os.getpid())
    (guard,) = guards(endpoint.pid)
    with open(f"/proc/{guard}/status") as status:
        (memory,) = [int(line.split()[1]) for line in status if line.startswith("RssAnon")]
    assert memory < 8000, f"{memory} kB"
    fields = Path(f"/proc/{guard}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    assert ticks / os.sysconf("SC_CLK_TCK") < 1.0
    assert sorted(os.listdir(f"/proc/{guard}/fd")) == ["0", "1", "2"]
