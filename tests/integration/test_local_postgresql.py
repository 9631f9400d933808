"""The embedded PanDA on a private PostgreSQL cluster, which enforces lengths
and types that SQLite does not.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.local.processes import is_alive
from lsst.ctrl.bps.panda.local.trial import TrialClient, TrialTask, diamond

pytestmark = pytest.mark.slow

_SETTINGS = """
listen_addresses = '127.0.0.1'
fsync = off
synchronous_commit = off
full_page_writes = off
max_connections = 200
timezone = 'UTC'
"""


def _binaries():
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    path = str(found[-1]) if found else shutil.which("initdb")
    assert path, "these tests need PostgreSQL: apt-get install postgresql"
    return Path(path).parent


def _as_user(command, directory):
    """PostgreSQL does not run as root; Debian's package brings a user."""
    if os.getuid() == 0:
        command = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command]
    subprocess.run(
        command, cwd=directory, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "HOME": "/tmp"}
    )


@pytest.fixture(scope="module")
def database():
    binaries = _binaries()
    # Not below pytest's own directories, which the user postgres cannot pass.
    directory = Path(tempfile.mkdtemp(prefix="panda_pg_", dir="/tmp"))
    directory.chmod(0o755)
    if os.getuid() == 0:
        shutil.chown(directory, "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = directory / "data"
    control = [str(binaries / "pg_ctl"), "-D", str(data), "-l", str(directory / "log")]
    init = [
        str(binaries / "initdb"),
        "-D",
        str(data),
        "-U",
        "panda",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--no-sync",
    ]
    try:
        _as_user([*init, "--locale=C.UTF-8"], directory)
        with (data / "postgresql.conf").open("a") as stream:
            stream.write(f"{_SETTINGS}port = {port}\nunix_socket_directories = '{directory}'\n")
        _as_user([*control, "-w", "-t", "60", "start"], directory)
        yield f"postgresql://panda@127.0.0.1:{port}/postgres"
    finally:
        if (data / "postmaster.pid").exists():
            _as_user([*control, "-m", "immediate", "-w", "stop"], directory)
        shutil.rmtree(directory)


def test_run_with_failure_and_kill_on_postgresql(database, tmp_path):
    directory = tmp_path / "state"
    endpoint = instance.start(directory, slots=2, database=database)
    try:
        client = TrialClient(endpoint)
        gate = tmp_path / "gate"
        command = (
            f'case "${{IN/L}}" in left:0) exit 3;; left:1) while ! test -e {gate}; do sleep 0.1; done;; esac'
        )
        trial = client.submit(
            "u_me_postgresql",
            diamond(3, command=command, attempts=2),
            final=TrialTask("final", {"final:0": ()}),
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
        status, counts = TrialClient(again).wait(trial, timeout=300)
        assert status == "SubFinished"
        assert (counts["left"].finished, counts["left"].failed) == (2, 1)
        assert (counts["right"].finished, counts["right"].missing) == (2, 1)
        assert counts["final"].finished == 1
    finally:
        instance.stop(directory)
