"""The processes of jobs: which belong to a job, how much memory they use, and how to end them.

psutil reads and signals single processes.  It knows no sessions, which are one
system call here; and looking for a variable in the environments of all
processes (`~.guard`), as is done at the end of each job, would take five times
as long with it.
"""

from __future__ import annotations

__all__ = [
    "JOB_MARKER",
    "MARKER",
    "SessionUse",
    "end_job",
    "end_leftovers",
    "end_session",
    "is_running",
    "measure_sessions",
]

import os
import signal
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from .endpoint import SERVER_MARKER
from .guard import end_marked, marked_processes

MARKER = "PANDA_LOCAL_INSTANCE"
"""Environment variable of all processes that the jobs of an instance have
started; its value is the state directory."""

JOB_MARKER = "PANDA_LOCAL_JOB"
"""Environment variable of all processes that one job has started, also of
those that have left its session; its value is the job's work directory."""

_ENDED = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


@dataclass(frozen=True, slots=True)
class SessionUse:
    """What all processes of a session use together."""

    rss: int
    """Resident memory, kB."""

    vmem: int
    """Virtual memory, kB."""

    processes: int
    """Number of processes."""


def is_running(process: psutil.Process) -> bool:
    """Whether a process lives; a zombie counts as ended."""
    try:
        return bool(process.is_running()) and process.status() not in _ENDED
    except psutil.Error:
        return False


def _session_members(sessions: Collection[int]) -> Iterator[tuple[int, psutil.Process]]:
    """Yield the living processes of some sessions, each with its session."""
    for pid in psutil.pids():
        try:
            session = os.getsid(pid)
            if session in sessions and (process := psutil.Process(pid)).status() not in _ENDED:
                yield session, process
        except (OSError, psutil.Error):
            continue


def _is_still_copy(process: psutil.Process, of: Collection[int]) -> bool:
    """Whether a process was forked by one of some others, whose memory it has until it executes a program or
    takes a name of its own.
    """
    parent = process.ppid() if of else 0
    return parent in of and process.name() == psutil.Process(parent).name()


def measure_sessions(sessions: Collection[int], *, apart: Collection[int] = ()) -> dict[int, SessionUse]:
    """Measure what the processes of some sessions use.

    The processes ``apart`` are left out, and what they have forked until it executes another program.

    Sessions, named by the pids of their leaders, are left out if they have no
    living process.
    """
    found: dict[int, SessionUse] = {}
    for session, process in _session_members(sessions):
        try:
            if process.pid in apart or _is_still_copy(process, apart):
                continue
            memory = process.memory_info()
        except psutil.Error:
            continue
        before = found.get(session, SessionUse(0, 0, 0))
        found[session] = SessionUse(
            rss=before.rss + memory.rss // 1024,
            vmem=before.vmem + memory.vms // 1024,
            processes=before.processes + 1,
        )
    return found


def _signal(processes: Collection[psutil.Process], number: int) -> None:
    for process in processes:
        try:
            # Not sent to a later process that has got the same pid.
            process.send_signal(number)
        except psutil.Error:
            continue


def end_session(
    session: int,
    *,
    grace: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """End all processes of a session: SIGTERM, after ``grace`` seconds SIGKILL."""

    def members() -> list[psutil.Process]:
        return [process for _, process in _session_members((session,))]

    living = members()
    _signal(living, signal.SIGTERM)
    end = clock() + grace
    # Not psutil.wait_procs: it would collect the exit code for which another thread waits.
    while living and clock() < end:
        sleep(0.02)
        living = members()
    # A process may fork while it is looked at: repeat until none is left.
    for _ in range(50):
        living = members()
        if not living:
            return
        _signal(living, signal.SIGKILL)
        sleep(0.02)


def end_job(session: int, mark: str, *, grace: float) -> None:
    """End all processes of a job: those of its session, those that carry its mark, and those below them."""
    # Found before their parents end: without them, what has cleared its environment is nobody's.
    strays = []
    for pid in marked_processes(mark):
        try:
            strays.append(psutil.Process(pid))
        except psutil.Error:
            continue
    if session:
        end_session(session, grace=grace)
    end_marked(mark)
    _signal(strays, signal.SIGKILL)


def end_leftovers(
    directory: str | Path, *, dead_server: str = "", sleep: Callable[[float], None] = time.sleep
) -> int:
    """Kill what the jobs of an instance have left running."""
    markers = [f"{MARKER}={directory}"]
    if dead_server:
        markers.append(f"{SERVER_MARKER}={dead_server}")
    # A process that ends while it is looked at may just have started another
    # one, which is in no list yet: two searches in a row have to find none.
    return end_marked(*markers, looks=2 if dead_server else 1, sleep=sleep)
