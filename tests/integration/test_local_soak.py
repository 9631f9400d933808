"""Many runs at once on the embedded PanDA, whose server is killed at random
moments: every run ends complete and right.
"""

import os
import random
import signal
import sqlite3
import time

import pytest

from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.local.processes import is_alive, marked_processes
from lsst.ctrl.bps.panda.local.trial import TrialClient, diamond

pytestmark = pytest.mark.slow

_RUNS = 20
_KILLS = 3


def _kill(endpoint):
    os.kill(endpoint.pid, signal.SIGKILL)
    while is_alive(endpoint.pid, endpoint.started):
        time.sleep(0.01)


def test_twenty_runs_survive_random_kills(tmp_path, record_property):
    seed = int(os.environ.get("PANDA_LOCAL_SOAK_SEED", random.SystemRandom().randrange(10**6)))
    record_property("PANDA_LOCAL_SOAK_SEED", seed)
    chance = random.Random(seed)
    directory = tmp_path / "state"
    endpoint = instance.start(directory, slots=4)
    try:
        client = TrialClient(endpoint)
        trials = [client.submit(f"u_me_soak_{i}", diamond(2, attempts=2)) for i in range(_RUNS)]
        for _ in range(_KILLS):
            time.sleep(chance.uniform(0.5, 6.0))
            _kill(endpoint)
            endpoint = instance.start(directory)
        client = TrialClient(endpoint)
        for trial in trials:
            status, counts = client.wait(trial, timeout=300)
            assert status == "Finished", (seed, trial, counts)
            assert [item.finished for item in counts.values()] == [1, 2, 2, 1]
    finally:
        instance.stop(directory)
    assert marked_processes(f"PANDA_LOCAL_INSTANCE={directory}") == []
    connection = sqlite3.connect(directory / "panda.db")
    # One task per label and run, and each input finished by exactly one job.
    assert connection.execute("SELECT count(*) FROM tasks").fetchone() == (4 * _RUNS,)
    states = connection.execute("SELECT status, count(*) FROM files GROUP BY status").fetchall()
    assert states == [("finished", 6 * _RUNS)]
    finished = "SELECT file_id FROM jobs WHERE status = 'finished'"
    assert len(connection.execute(finished).fetchall()) == 6 * _RUNS
    assert len(set(connection.execute(finished).fetchall())) == 6 * _RUNS
    connection.close()
