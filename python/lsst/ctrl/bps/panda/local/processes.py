"""What ``/proc`` says about processes: whether one lives, which belong to a
job, how much memory they use, and how to end them.
"""

from __future__ import annotations

__all__ = [
    "JOB_MARKER",
    "MARKER",
    "SERVER_MARKER",
    "SessionUse",
    "end_bearers",
    "end_marked",
    "end_session",
    "is_alive",
    "marked_processes",
    "measure_sessions",
    "start_ticks",
]

import os
import signal
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

MARKER = "PANDA_LOCAL_INSTANCE"
"""Environment variable by which all that an instance's jobs have started is
found; its value is the state directory."""

JOB_MARKER = "PANDA_LOCAL_JOB"
"""Environment variable by which all that one job has started is found, also
what has left its session; its value is the job's work directory."""

SERVER_MARKER = "PANDA_LOCAL_SERVER"
"""Environment variable of a server, with a mark of its own."""

_PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class SessionUse:
    """What all processes of a session use together."""

    rss: int
    """Resident memory, kB."""

    vmem: int
    """Virtual memory, kB."""

    cpu: float
    """CPU time of living processes and their ended children, seconds."""

    processes: int
    """Number of processes."""


def _stat_fields(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The command's name stands in parentheses and may hold anything.
    return text[text.rindex(")") + 2 :].split()


def start_ticks(pid: int) -> int:
    """Tell when a process was started, in ticks since boot; 0 if it is not
    there (or is a zombie, which is as good as gone).
    """
    fields = _stat_fields(pid)
    if fields is None or fields[0] in ("Z", "X"):
        return 0
    return int(fields[19])


def is_alive(pid: int, started: int) -> bool:
    """Tell whether this very process lives (not a later one of that number)."""
    return pid > 0 and started > 0 and start_ticks(pid) == started


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def measure_sessions(sessions: Collection[int]) -> dict[int, SessionUse]:
    """Measure what the processes of some sessions use.

    Parameters
    ----------
    sessions : `~collections.abc.Collection` [`int`]
        Session ids, that is, pids of their leaders.

    Returns
    -------
    use : `dict` [`int`, `SessionUse`]
        Sessions without a living process are left out.
    """
    found: dict[int, SessionUse] = {}
    for pid in _all_pids():
        fields = _stat_fields(pid)
        if fields is None or int(fields[3]) not in sessions or fields[0] in ("Z", "X"):
            continue
        session = int(fields[3])
        before = found.get(session, SessionUse(0, 0, 0.0, 0))
        ticks = sum(int(value) for value in fields[11:15])
        found[session] = SessionUse(
            rss=before.rss + int(fields[21]) * _PAGE_KB,
            vmem=before.vmem + int(fields[20]) // 1024,
            cpu=before.cpu + ticks / _TICKS,
            processes=before.processes + 1,
        )
    return found


def session_members(session: int) -> list[int]:
    """List the living processes of a session."""
    members = []
    for pid in _all_pids():
        fields = _stat_fields(pid)
        if fields is not None and int(fields[3]) == session and fields[0] not in ("Z", "X"):
            members.append(pid)
    return members


def _signal(pids: Collection[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def end_session(
    session: int,
    *,
    grace: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """End all processes of a session: SIGTERM, then SIGKILL.

    Parameters
    ----------
    session : `int`
        Session id.
    grace : `float`
        Seconds between the two signals, given up early when all are gone.
    sleep, clock : callable, optional
        Time, for tests.
    """
    members = session_members(session)
    _signal(members, signal.SIGTERM)
    end = clock() + grace
    while members and clock() < end:
        sleep(0.02)
        members = session_members(session)
    # A process may fork while it is looked at: repeat until none is left.
    for _ in range(50):
        members = session_members(session)
        if not members:
            return
        _signal(members, signal.SIGKILL)
        sleep(0.02)


def marked_processes(*markers: str) -> list[int]:
    """List processes of this user whose environment holds a marker.

    Parameters
    ----------
    *markers : `str`
        Assignments, ``NAME=value``.  One is given to the first process and
        inherited by all that come from it, whatever session they are in.
    """
    wanted = {marker.encode() for marker in markers}
    own = os.getpid()
    found = []
    for pid in _all_pids():
        if pid == own:
            continue
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if not wanted.isdisjoint(variables.split(b"\0")):
            found.append(pid)
    return found


def end_marked(
    directory: str | Path, *, dead_server: str = "", sleep: Callable[[float], None] = time.sleep
) -> int:
    """End what the jobs of an instance have left running.

    Parameters
    ----------
    directory : `str` or `~pathlib.Path`
        State directory of the instance.
    dead_server : `str`, optional
        Mark of a server that was killed, maybe in the middle of starting a
        job: such a child has the environment of the server until it becomes
        the job.
    sleep : callable, optional
        Time, for tests.

    Returns
    -------
    count : `int`
        Number of processes that were found at once.
    """
    markers = [f"{MARKER}={directory}"]
    if dead_server:
        markers.append(f"{SERVER_MARKER}={dead_server}")
    # A process that ends while it is looked at may just have started another
    # one, which is in no list yet: two looks in a row have to find none.
    return end_bearers(*markers, looks=2 if dead_server else 1, sleep=sleep)


def end_bearers(*markers: str, looks: int = 1, sleep: Callable[[float], None] = time.sleep) -> int:
    """Kill all processes whose environment holds a marker.

    Parameters
    ----------
    *markers : `str`
        See `marked_processes`.
    looks : `int`, optional
        How often in a row none has to be found.
    sleep : callable, optional
        Time, for tests.

    Returns
    -------
    count : `int`
        Number of processes that were found at once.
    """
    count, clear = 0, 0
    for _ in range(100):
        pids = marked_processes(*markers)
        clear = 0 if pids else clear + 1
        if clear == looks:
            break
        count = max(count, len(pids))
        _signal(pids, signal.SIGKILL)
        sleep(0.02)
    return count
