"""A private PostgreSQL cluster, of Debian's package, for tests."""

import os
import shutil
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

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


@contextmanager
def run_cluster():
    """Run a cluster; give the URL of its database."""
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
