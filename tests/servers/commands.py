"""Commands of this environment that start at once.

A ``bps`` spends seconds of a core on imports, the same each time.  Here, one process has imported what
commands need, and each command is a fork of it: a process of its own, with the environment, the directory and
the standard streams that it is given.

Run as a file, it is that process (``serve ADDRESS``), or the client that stands for a command on ``PATH``
(``ask ADDRESS SCRIPT ARGUMENTS...``).
"""

from __future__ import annotations

__all__ = ["Commands"]

import json
import os
import signal
import socket
import sys

CLIENTS = ("bps", "butler", "panda_auth", "panda_bps", "pipetask")

IMPORTED = (
    "lsst.ctrl.bps.cli.bps",
    "lsst.ctrl.bps.cli.cmd",
    "lsst.ctrl.bps.drivers",
    "lsst.ctrl.bps.panda.cli.panda_auth_token",
    "lsst.ctrl.bps.panda.cli.panda_bps_check",
    "lsst.ctrl.bps.panda.service",
    "lsst.ctrl.mpexec.cli.cmd",
    "lsst.ctrl.mpexec.cli.pipetask",
    "lsst.ctrl.mpexec.cli.script",
    "lsst.daf.butler.cli.butler",
    "lsst.daf.butler.direct_butler",
    "lsst.daf.butler.registry.sql_registry",
    "lsst.pipe.base.all_dimensions_quantum_graph_builder",
)
"""What takes longest; a command itself imports what else it needs."""

_FAILED = 255


class Commands:
    """The process that forks, and a folder of clients for ``PATH``."""

    def __init__(self, folder) -> None:
        from pathlib import Path

        from panda_servers.process import ServerProcess

        from lsst.ctrl.bps.panda.warm.template import FORCED

        self.folder = folder / "bin"
        self.folder.mkdir()
        own = Path(sys.executable).parent
        self.path = f"{self.folder}{os.pathsep}{own}{os.pathsep}/usr/bin{os.pathsep}/bin"
        address = folder / "socket"
        for name in CLIENTS:
            client = self.folder / name
            words = f"{sys.executable} -IS {__file__} ask {address} {own / name}"
            client.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
            client.chmod(0o755)
        self._server = ServerProcess(
            [sys.executable, "-P", __file__, "serve", str(address)],
            ready=address.exists,
            log=folder / "commands.log",
            environment={**FORCED, "LC_ALL": "C.UTF-8"},
        )

    def first_on_path(self, environment):
        """Return an environment in which the clients are found before other commands."""
        return {**environment, "PATH": f"{self.folder}{os.pathsep}{environment['PATH']}"}

    def run(self, *command, directory, environment, limit, code=0):
        """Run a command to its end, and return it with what it printed.

        The test fails if the exit code is not ``code``, unless that is `None`.
        """
        import subprocess

        done = subprocess.run(
            [str(self.folder / command[0]), *command[1:]],
            cwd=directory,
            env=self.first_on_path(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit,
        )
        said = f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        assert code is None or done.returncode == code, said
        return done

    def __enter__(self):
        self._server.__enter__()
        return self

    def __exit__(self, *_):
        self._server.stop()


def ask(address: str, words: list[str]) -> int:
    """Have a command run with this process's environment and streams; its exit code."""
    place = os.open(".", os.O_PATH | os.O_DIRECTORY)
    request = json.dumps({"words": words, "environment": dict(os.environ), "mask": _mask()}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [len(request).to_bytes(4, "big")], [0, 1, 2, place])
        connection.sendall(request)
        return (connection.recv(1) or bytes([_FAILED]))[0]


def _mask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def serve(address: str) -> dict[str, object]:
    """Fork for each command, for ever; returns in the forks only, with what was asked."""
    import contextlib
    import gc
    import importlib

    for name in IMPORTED:
        # BPS and the Butler may have moved it.
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address + ".new")
        listener.listen(16)
        os.rename(address + ".new", address)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return _keep(connection)


def _keep(connection: socket.socket) -> dict[str, object]:
    """Fork once more: this process tells the client how the command ends, and ends it with the client."""
    import select

    size, streams, _, _ = socket.recv_fds(connection, 4, 4)
    text = b""
    while len(text) < int.from_bytes(size, "big"):
        text += connection.recv(1 << 20)
    ends = os.pidfd_open(child) if (child := os.fork()) else -1
    if child:
        for number in streams:
            os.close(number)
        ready, _, _ = select.select([ends, connection], [], [])
        if ends not in ready:
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if ends in ready:
            connection.send(bytes([code if code >= 0 else 128 - code]))
        os._exit(0)
    connection.close()
    for number, stream in enumerate(streams):
        if number < 3:
            os.dup2(stream, number)
        else:
            os.fchdir(stream)
        os.close(stream)
    return json.loads(text)


def become(words: list[str], environment: dict[str, str], mask: int) -> None:
    """Be the command that was asked for."""
    import runpy
    import time

    os.umask(mask)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    path = [part for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part]
    sys.path[:0] = [os.path.dirname(words[0]), *path]
    sys.argv[:] = words
    runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        sys.exit(ask(sys.argv[2], sys.argv[3:]))
    become(**serve(sys.argv[2]))
