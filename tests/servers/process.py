"""A server program that a test starts, waits for and ends."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)

# What would lead a server's own client library astray.
_FOREIGN = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY")


def free_port() -> int:
    """Find a port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(url: str, *, method: str = "GET", statuses: Sequence[int] = (200,)) -> bool:
    """Whether a request is answered with one of some statuses.

    A port opens before many servers have finished starting, or failed, so
    only an answer counts.
    """
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=1) as reply:
            return reply.status in statuses
    except urllib.error.HTTPError as error:
        return error.code in statuses
    except (OSError, urllib.error.URLError):
        return False


class ServerProcess:
    """A program in a session of its own, with its output in a file.

    Parameters
    ----------
    command : sequence of `str`
        Program and arguments.
    ready : callable
        Tells whether it serves.
    log : `pathlib.Path`
        Where its output goes; shown if it does not start.
    environment : mapping, optional
        Variables to set, beyond those of this process.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        ready: Callable[[], bool],
        log: Path,
        environment: Mapping[str, str] | None = None,
        seconds: float = 60,
    ) -> None:
        self._command = list(command)
        self._ready = ready
        self._log = log
        self._seconds = seconds
        self._environment = {**os.environ, **(environment or {})}
        for name in _FOREIGN:
            self._environment.pop(name, None)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self):
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
                # It must not outlive a test run that is killed.
                preexec_fn=lambda: _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def _wait(self) -> None:
        end = time.monotonic() + self._seconds
        while not self._ready():
            state = self._process.poll()
            if state is not None or time.monotonic() > end:
                reason = "took too long to start" if state is None else f"ended with {state}"
                tail = self._log.read_text(errors="replace")[-3000:]
                raise RuntimeError(f"{self._command[0]} {reason}: {tail}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it, and everything of its session."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None
