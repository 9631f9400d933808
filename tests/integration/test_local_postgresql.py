"""The embedded PanDA on a private PostgreSQL cluster, which enforces lengths
and types that SQLite does not.
"""

import os
import signal
import time

import pytest

from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.local.endpoint import EndpointClient, SampleTask, diamond, is_alive

pytestmark = pytest.mark.slow


def test_run_with_failure_and_kill_on_postgresql(postgresql_url, tmp_path):
    directory = tmp_path / "state"
    endpoint = instance.start(directory, slots=2, database=postgresql_url)
    try:
        client = EndpointClient(endpoint)
        gate = tmp_path / "gate"
        command = (
            f'case "${{IN/L}}" in left:0) exit 3;; left:1) while ! test -e {gate}; do sleep 0.1; done;; esac'
        )
        sample = client.submit(
            "u_me_postgresql",
            diamond(3, command=command, attempts=2),
            final=SampleTask("final", {"final:0": ()}),
        )
        end = time.monotonic() + 200
        while instance.status(endpoint)["jobs"].get("failed") != 2:
            assert time.monotonic() < end
            time.sleep(0.1)
        os.kill(endpoint.pid, signal.SIGKILL)
        while is_alive(endpoint.pid, endpoint.started):
            time.sleep(0.01)
        gate.touch()
        # The database is remembered.
        again = instance.start(directory)
        assert instance.status(again)["database"] == "PostgreSQL"
        assert not (directory / "panda.db").exists()
        status, counts = EndpointClient(again).wait(sample, timeout=300)
        assert status == "SubFinished"
        assert (counts["left"].finished, counts["left"].failed) == (2, 1)
        assert (counts["right"].finished, counts["right"].missing) == (2, 1)
        assert counts["final"].finished == 1
    finally:
        instance.stop(directory)
