"""Many runs at once on the embedded PanDA, whose server is killed at random
moments, while runs are submitted, while jobs run, and while the last of them
end: every run ends complete and right, no job that had finished runs again,
and none is lost.

Each execution of a job leaves a line in a file, so that what really ran is
compared with what the databases say.
"""

import collections
import http.client
import os
import random
import signal
import sqlite3
import threading
import time

import pytest

from lsst.ctrl.bps.panda.errors import LocalPandaError
from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.local.endpoint import EndpointClient, SampleRun, diamond, is_alive
from lsst.ctrl.bps.panda.local.guard import marked_processes

pytestmark = pytest.mark.slow

_TIMEOUT = 900
_STALL = 120
"""Seconds in which something has to move, be it slowly."""

_PROGRESS = """
SELECT 'requests', status, NULL, count(*) FROM requests GROUP BY 2 UNION ALL
SELECT 'transforms', status, NULL, count(*) FROM transforms GROUP BY 2 UNION ALL
SELECT 'contents', content_relation_type, substatus, count(*) FROM contents GROUP BY 2, 3
"""
_OPEN = """
SELECT r.request_id, r.status, r.locking, r.updated_at, t.transform_id, t.name, t.status, t.locking,
    p.processing_id, p.workload_id, p.status, p.substatus, p.locking, p.updated_at, p.errors
FROM requests r LEFT JOIN transforms t USING (request_id) LEFT JOIN processings p USING (transform_id)
WHERE r.status NOT IN (3, 4, 5) AND (t.status IS NULL OR t.status NOT IN (3, 4, 5))
"""


class _Soak:
    """A server that is killed, runs on it, and what their jobs have done."""

    def __init__(self, tmp_path, runs):
        self._runs = runs
        self.directory = tmp_path / "state"
        self._ran = tmp_path / "ran"
        self._ran.touch()
        self._end = time.monotonic() + _TIMEOUT
        self.endpoint = instance.start(self.directory, slots=4, parent=os.getpid())
        self.trials = []
        self._settled = {}

    def executions(self, word):
        """Count executions that have started or ended, by job."""
        lines = [line.split() for line in self._ran.read_text().splitlines()]
        return collections.Counter(line[1] for line in lines if line[0] == word)

    def submit_all(self):
        """Submit the runs, whatever happens to the server meanwhile."""
        job = '"$PanDA_TaskID/${IN/L}"'
        tasks = diamond(
            2, command=f"echo start {job} >> {self._ran}; sleep 0.1; echo end {job} >> {self._ran}"
        )
        tasks = [type(task)(task.label, task.jobs, task.command, attempts=2) for task in tasks]
        for number in range(self._runs):
            self.trials.append(self._submit(f"u_me_soak_{number:02d}", tasks))

    def _submit(self, name, tasks):
        while True:
            # The server may be another one by now, which the client of the first refuses.
            client = EndpointClient(self.endpoint)
            try:
                # As the plugin does: what came of a call that failed is looked up first.
                known = client.relay("get_request_id_by_name", name=name)
                if isinstance(known, dict) and known.get(name):
                    return SampleRun(int(known[name]), name, tuple(task.label for task in tasks))
                return client.submit(name, tasks)
            except (OSError, LocalPandaError, http.client.HTTPException, ValueError):
                assert time.monotonic() < self._end
                time.sleep(0.1)

    def wait_for(self, condition):
        """Wait for something, as long as anything moves."""
        moved, since = None, time.monotonic()
        while not condition():
            now = self._movement()
            if now != moved:
                moved, since = now, time.monotonic()
            assert time.monotonic() < self._end, f"too slow\n{self.describe()}"
            assert time.monotonic() < since + _STALL, f"nothing moves\n{self.describe()}"
            time.sleep(0.05)

    def _movement(self):
        return len(self.trials), self._ran.stat().st_size, self._rows("idds.db", _PROGRESS)

    def _rows(self, name, query):
        connection = sqlite3.connect(self.directory / name, timeout=30)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    def describe(self):
        """Tell where everything is: what does not move, and why."""
        try:
            server = instance.status(self.endpoint)
            server.pop("runs")
            # Its threads tell in server.out what they do.
            os.kill(self.endpoint.pid, signal.SIGUSR1)
            time.sleep(1)
        except (LocalPandaError, OSError) as error:
            server = error
        parts = {
            "submitted, ended jobs": [len(self.trials), len(self.executions("end"))],
            "server": [server],
            "iDDS, by state": self._rows("idds.db", _PROGRESS),
            "iDDS, what is open": self._rows("idds.db", _OPEN),
            "messages of iDDS": self._rows("idds.db", "SELECT status, count(*) FROM messages GROUP BY 1"),
            "commands": self._rows("idds.db", "SELECT request_id, status, locking FROM commands"),
            "tasks": self._rows("panda.db", "SELECT task_id, name, status FROM tasks WHERE ended IS NULL"),
            "inputs": self._rows("panda.db", "SELECT status, count(*) FROM files GROUP BY 1"),
            "jobs": self._rows("panda.db", "SELECT status, count(*), max(changed) FROM jobs GROUP BY 1"),
            "messages to iDDS": self._rows(
                "panda.db", "SELECT taken IS NULL, count(*) FROM messages GROUP BY 1"
            ),
            "end of server.log": (self.directory / "server.log").read_text().splitlines()[-30:],
            "threads": (self.directory / "server.out").read_text().splitlines()[-600:],
        }
        return "\n".join(f"{name}:\n" + "\n".join(f"  {row}" for row in rows) for name, rows in parts.items())

    def kill(self):
        """Kill the server, note what has finished, and start it again."""
        os.kill(self.endpoint.pid, signal.SIGKILL)
        while is_alive(self.endpoint.pid, self.endpoint.started):
            time.sleep(0.01)
        starts = self.executions("start")
        for job in self.finished():
            self._settled.setdefault(job, starts[job])
        again = instance.start(self.directory, parent=os.getpid())
        assert again.url == self.endpoint.url
        self.endpoint = again

    def ended(self):
        """Count the runs that have ended, with all their tasks."""
        query = "SELECT count(*) FROM requests WHERE status IN (3, 4, 5)"
        return self._rows("idds.db", query)[0][0]

    def finished(self):
        """List the jobs that have finished as PanDA's database says."""
        rows = self._rows("panda.db", "SELECT task_id, lfn FROM files WHERE status = 'finished'")
        return [f"{task_id}/{lfn.partition(':')[2]}" for task_id, lfn in rows]

    def check_executions(self):
        """Check that nothing is lost, and nothing that had finished ran
        again.
        """
        starts, ends = self.executions("start"), self.executions("end")
        assert len(ends) == 6 * self._runs
        assert {job: starts[job] for job in self._settled} == self._settled
        return len(self._settled)


@pytest.mark.parametrize("runs", [8, pytest.param(20, marks=pytest.mark.long)])
def test_runs_survive_random_kills(tmp_path, record_property, runs):
    jobs = 6 * runs
    seed = int(os.environ.get("PANDA_LOCAL_SOAK_SEED", random.SystemRandom().randrange(10**6)))
    record_property("PANDA_LOCAL_SOAK_SEED", seed)
    chance = random.Random(seed)
    few, some, most = (
        chance.randrange(2, runs // 2),
        chance.randrange(10, jobs // 2),
        jobs - chance.randrange(1, 10),
    )
    pauses = chance.uniform(0.0, 0.2), chance.uniform(0.0, 0.5), chance.uniform(0.0, 1.0)
    soak = _Soak(tmp_path, runs)
    try:
        submitting = threading.Thread(target=soak.submit_all, daemon=True)
        submitting.start()
        # While runs are submitted.
        soak.wait_for(lambda: len(soak.trials) >= few)
        time.sleep(pauses[0])
        soak.kill()
        soak.wait_for(lambda: not submitting.is_alive())
        assert len(soak.trials) == runs
        # While jobs of all levels run.
        soak.wait_for(lambda: len(soak.executions("end")) > some)
        time.sleep(pauses[1])
        soak.kill()
        # While the last ones end, and tasks and runs with them.
        soak.wait_for(lambda: len(soak.executions("end")) > most)
        time.sleep(pauses[2])
        soak.kill()
        client = EndpointClient(soak.endpoint)
        soak.wait_for(lambda: soak.ended() == runs)
        for sample in soak.trials:
            status, counts = client.fetch_status(sample)
            assert status == "Finished", (sample, counts)
            assert [item.finished for item in counts.values()] == [1, 2, 2, 1]
        assert soak.check_executions() > 10
    except AssertionError as error:
        error.add_note(f"PANDA_LOCAL_SOAK_SEED={seed}")
        raise
    finally:
        instance.stop(soak.directory)
    assert marked_processes(f"PANDA_LOCAL_INSTANCE={soak.directory}") == []
    connection = sqlite3.connect(soak.directory / "panda.db")
    # One task per label and run, and each input finished by exactly one job.
    assert connection.execute("SELECT count(*) FROM tasks").fetchone() == (4 * runs,)
    states = connection.execute("SELECT status, count(*) FROM files GROUP BY status").fetchall()
    assert states == [("finished", jobs)]
    finished = "SELECT file_id FROM jobs WHERE status = 'finished'"
    assert len(connection.execute(finished).fetchall()) == jobs
    assert len(set(connection.execute(finished).fetchall())) == jobs
    connection.close()
