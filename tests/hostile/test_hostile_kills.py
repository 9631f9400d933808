"""A server that is killed, at any moment: its jobs end with it, and nothing is lost or doubled."""

import collections
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from panda_servers.local import guards, servers, wait_for

from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.local.endpoint import EndpointClient, SampleTask, diamond, is_alive
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


_START = "import sys; from lsst.ctrl.bps.panda.local import instance; instance.start(sys.argv[1])"


class _Victim:
    """An instance whose server is killed again and again, and what its jobs have done."""

    def __init__(self, tmp_path, chance):
        self.directory = tmp_path / "state"
        self._ran = tmp_path / "ran"
        self._ran.touch()
        self._chance = chance
        self._settled = {}
        self.runs = []

    def start(self):
        self.endpoint = instance.start(self.directory, slots=4, parent=os.getpid())

    def submit(self):
        job = '"$PanDA_TaskID/${IN/L}"'
        command = f"echo start {job} >> {self._ran}; sleep 0.3; echo end {job} >> {self._ran}"
        client = EndpointClient(self.endpoint)
        self.runs.append(
            client.submit(f"u_me_kill_{len(self.runs):03d}", diamond(2, command=command, attempts=2))
        )

    def executions(self, word):
        lines = [line.split() for line in self._ran.read_text().splitlines()]
        return collections.Counter(line[1] for line in lines if line[0] == word)

    def rows(self, name, query):
        connection = sqlite3.connect(self.directory / name, timeout=30)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    def kill_while_it_runs(self):
        self.start()
        if self._chance.random() < 0.5:
            self.submit()
        time.sleep(self._chance.uniform(0, 1.5))
        os.kill(self.endpoint.pid, signal.SIGKILL)

    def kill_while_it_stops(self):
        self.start()
        time.sleep(self._chance.uniform(0, 0.5))
        os.kill(self.endpoint.pid, signal.SIGTERM)
        time.sleep(self._chance.uniform(0, 0.3))
        if is_alive(self.endpoint.pid, self.endpoint.started):
            os.kill(self.endpoint.pid, signal.SIGKILL)

    def kill_while_it_starts(self):
        starter = subprocess.Popen(
            [sys.executable, "-c", _START, str(self.directory)], stderr=subprocess.DEVNULL
        )
        wait_for(lambda: servers(self.directory) or starter.poll() is not None, "server process")
        time.sleep(self._chance.uniform(0, 2.0))
        for pid in servers(self.directory):
            os.kill(pid, signal.SIGKILL)
        starter.wait(timeout=100)

    def kill_once(self):
        self._chance.choice((self.kill_while_it_runs, self.kill_while_it_stops, self.kill_while_it_starts))()
        wait_for(lambda: not servers(self.directory), "end of the server")
        wait_for(lambda: not _payloads(self.directory), "end of the payloads", timeout=30)
        for name in ("panda.db", "idds.db"):
            assert self.rows(name, "PRAGMA quick_check") == [("ok",)]
        starts = self.executions("start")
        for job in self.finished():
            # What is stored as finished never runs again.
            assert self._settled.setdefault(job, starts[job]) == starts[job], job

    def finished(self):
        rows = self.rows("panda.db", "SELECT task_id, lfn FROM files WHERE status = 'finished'")
        return [f"{task_id}/{lfn.partition(':')[2]}" for task_id, lfn in rows]

    def check_end(self):
        self.start()
        client = EndpointClient(self.endpoint)
        for run in self.runs:
            status, counts = client.wait(run, timeout=300)
            assert status == "Finished", (run, counts)
            assert [item.finished for item in counts.values()] == [1, 2, 2, 1]
        instance.stop(self.directory)
        jobs = 6 * len(self.runs)
        assert len(self.executions("end")) == jobs
        starts = self.executions("start")
        assert {job: starts[job] for job in self._settled} == self._settled
        finished = self.rows("panda.db", "SELECT file_id FROM jobs WHERE status = 'finished'")
        assert (len(finished), len(set(finished))) == (jobs, jobs)
        assert self.rows("panda.db", "SELECT count(*) FROM tasks") == [(4 * len(self.runs),)]
        assert self.rows("idds.db", "SELECT count(*) FROM requests") == [(len(self.runs),)]


@pytest.mark.parametrize("kills", [6, pytest.param(100, marks=pytest.mark.long)])
def test_server_killed_at_any_moment_loses_and_doubles_nothing(tmp_path, record_property, kills):
    seed = int(os.environ.get("PANDA_LOCAL_SOAK_SEED", random.SystemRandom().randrange(10**6)))
    record_property("PANDA_LOCAL_SOAK_SEED", seed)
    victim = _Victim(tmp_path, random.Random(seed))
    try:
        victim.start()
        victim.submit()
        os.kill(victim.endpoint.pid, signal.SIGKILL)
        # Until it is gone, the next start would find it.
        wait_for(lambda: not servers(victim.directory), "end of the server")
        for _ in range(kills - 1):
            victim.kill_once()
        victim.check_end()
    except AssertionError as error:
        error.add_note(f"PANDA_LOCAL_SOAK_SEED={seed}")
        raise
    finally:
        instance.stop(victim.directory)
