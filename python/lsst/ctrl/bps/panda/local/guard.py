"""Ends the jobs of a server that was killed.  Run as a file, ``python guard.py MARKER``, by the server.

The standard input is a pipe whose other end only the server holds: when it
ends, the server has ended, however that was, and all processes with the
marker in their environment are killed.  Imports the standard library only, so
that it is small, and can be started without the packages above it.
"""

from __future__ import annotations

__all__ = ["Guard", "end_marked", "marked_processes"]

import os
import signal
import sys
import time
from collections.abc import Callable


def marked_processes(*markers: str) -> list[int]:
    """List the pids of this user's processes whose environment holds a marker, and of what they have started.

    Markers are assignments, ``NAME=value``.  One is given to the first
    process and inherited by all that it starts, whatever their session; those
    that clear it, as containers do, are found below the one that started them.
    """
    wanted = {marker.encode() for marker in markers}
    own = os.getpid()
    found, parents = set(), {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == own:
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as stream:
                variables = stream.read()
            if not wanted.isdisjoint(variables.split(b"\0")):
                found.add(int(name))
                continue
            with open(f"/proc/{name}/stat", "rb") as stream:
                # The command's name stands in parentheses and may hold anything.
                state, parent = stream.read().rpartition(b")")[2].split()[:2]
        except OSError:
            continue
        if state not in (b"Z", b"X"):
            parents[int(name)] = int(parent)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


def end_marked(*markers: str, looks: int = 1, sleep: Callable[[float], None] = time.sleep) -> int:
    """Kill all processes whose environment holds a marker, until none is found in ``looks`` searches in a
    row, and return their number.
    """
    count, clear = 0, 0
    for _ in range(100):
        pids = marked_processes(*markers)
        clear = 0 if pids else clear + 1
        if clear == looks:
            break
        count = max(count, len(pids))
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        sleep(0.02)
    return count


class Guard:
    """The guard of this process: started, watched, and replaced when it was killed."""

    def __init__(self, marker: str) -> None:
        self._marker = marker
        self._process: object = None
        self._heard, self._held = os.pipe()

    @property
    def pid(self) -> int:
        """Process of the guard, 0 if there is none."""
        return int(getattr(self._process, "pid", 0))

    def keep(self) -> bool:
        """Start the guard unless it lives; returns whether it was started."""
        # Imported here: the guard itself needs none of it.
        import subprocess

        process = self._process
        if isinstance(process, subprocess.Popen) and process.poll() is None:
            return False
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", os.path.abspath(__file__), self._marker],
            cwd="/",
            env={},
            stdin=self._heard,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return True


def _watch(marker: str) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # The server is told to stop by these, the guard ends after it.
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 1):
        continue
    # A process that ends while it is looked at may just have started another one, which is in no list yet:
    # two searches in a row have to find none.
    end_marked(marker, looks=2)


if __name__ == "__main__":
    _watch(sys.argv[1])
