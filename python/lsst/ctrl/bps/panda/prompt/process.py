"""The process that does the work: it looks for new groups, starts them by the rules of the section
``prompt``, and follows their runs; and how it is started, found and stopped.
"""

from __future__ import annotations

__all__ = [
    "CATALOG_NAME",
    "LOG_NAME",
    "READY_NAME",
    "Processing",
    "find_process",
    "make_processing",
    "only_process",
    "spawn",
    "state_directory",
    "stop_process",
]

import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TextIO

from ..errors import LocalPandaError, PandaBpsError, RefusedError, TransportError
from .arrivals import Arrivals, CollectionArrivals, DirectoryArrivals, ImageGroups, LineArrivals
from .catalog import Catalog, Group, GroupState
from .steps import GroupSteps

_LOG = logging.getLogger(__name__)

CATALOG_NAME = "catalog.db"
LOG_NAME = "prompt.log"
READY_NAME = "ready"
"""A file that is there while the process looks for images."""

_LOCK = "process.pid"

PAUSE = 0.05
"""Time between two looks for images, s."""

LEAST_WAIT = 0.15
"""Time between two questions about a run, s; it grows with the age of the run, to a twentieth of that."""

KNOWN_RUNS = 3
"""Runs that must have ended before the shortest of the last ones tells when the next is asked about first: a
question costs the server more CPU than a job.
"""

_GOING = (GroupState.WAITING, GroupState.PLANNING, GroupState.SUBMITTED)
_SERVER = (LocalPandaError, TransportError)
"""Errors that are no fault of a group."""

SERVER_PAUSE = 2.0
"""Time until a server that did not answer is asked again, s."""


def state_directory(config: Path) -> Path:
    """Return the directory of a configuration's processing: its catalogue, log and submit directories."""
    return config.absolute().with_suffix(".prompt")


class Processing:
    """Processes groups until it is told to stop.

    Parameters
    ----------
    steps : `~.steps.GroupSteps`
        What is done with a group.
    catalog : `~.catalog.Catalog`
        What is known of all groups; nothing else is kept.
    arrivals : `~.arrivals.Arrivals`
        Where groups come from.
    tell : callable
        Gets a line for each group that begins, ends or fails.
    """

    def __init__(
        self,
        steps: GroupSteps,
        catalog: Catalog,
        arrivals: Arrivals,
        *,
        tell: Callable[[str], object] = lambda text: None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._steps = steps
        self._section = steps.section
        self._catalog = catalog
        self._arrivals = arrivals
        self._tell = tell
        self._clock = clock
        self._sleep = sleep
        self._looks: dict[str, float] = {}
        self._begun: dict[str, float] = {}
        self._lengths: deque[float] = deque(maxlen=10)
        self._server_asked_again = 0.0

    def run(self, is_stopped: Callable[[], bool]) -> None:
        """Process groups until somebody stops it, or until nothing can arrive and all groups have ended."""
        while not is_stopped():
            moved = self._note_arrivals()
            if self._clock() >= self._server_asked_again:
                try:
                    # A new group first: what has ended is safe already.
                    moved |= self._begin_next() or self._follow_runs()
                except _SERVER as error:
                    self._server_asked_again = self._clock() + SERVER_PAUSE
                    self._steps.forget_client()
                    self._tell(f"the server does not answer, groups wait: {error}")
            if self._arrivals.is_over and not self._catalog.groups(*_GOING):
                return
            if not moved:
                self._sleep(PAUSE)

    def _note_arrivals(self) -> bool:
        arrived = self._arrivals.poll()
        for each in arrived:
            self._catalog.add(each.name, each.inputs, each.arrived)
        return bool(arrived)

    def _begin_next(self) -> bool:
        """Begin the group whose turn it is, or go on with one that a crash has interrupted."""
        interrupted = self._catalog.groups(GroupState.PLANNING)
        if interrupted:
            return self._try(interrupted[0], self._submit)
        if len(self._catalog.groups(GroupState.SUBMITTED)) >= self._section.groups_at_once:
            return False
        waiting = self._catalog.groups(GroupState.WAITING)
        if self._section.late == "drop":
            for group in [each for each in waiting if self._is_late(each) and not each.attempt]:
                self._end(group, "its deadline was over before it could begin")
                waiting.remove(group)
        if not waiting:
            return False
        group = min(waiting, key=lambda each: (each.attempt, self._is_late(each), each.arrived))
        number = group.attempt + 1
        group = self._catalog.update(group.name, state=GroupState.PLANNING, attempt=number)
        return self._try(group, self._submit)

    def _is_late(self, group: Group) -> bool:
        return self._clock() - group.arrived > self._section.deadline

    def _try(self, group: Group, step: Callable[[Group], None]) -> bool:
        """Do a step; a fault of the group ends this attempt, one of the server is raised."""
        try:
            step(group)
        except RefusedError as error:
            self._fail(group, str(error))
        except _SERVER:
            raise
        except Exception as error:  # of the Butler, the pipeline, the camera's function
            _LOG.exception("Group %s, attempt %d", group.name, group.attempt)
            self._fail(group, f"{type(error).__name__}: {error}")
        return True

    def _submit(self, group: Group) -> None:
        data_ids = self._steps.ingest(group)
        if not group.run:
            chain = f"{self._section.output}/{self._steps.night_of(group, data_ids)}"
            run = f"{chain}/{group.name}/{group.attempt}"
            group = self._catalog.update(group.name, run=run, chain=chain)
        graph = self._steps.make_graph(group, data_ids)
        run_id = self._steps.submit(group, graph)
        self._catalog.update(group.name, state=GroupState.SUBMITTED, run_id=run_id)
        self._begun[group.name] = now = self._clock()
        is_known = len(self._lengths) >= KNOWN_RUNS
        self._looks[group.name] = now + (min(self._lengths) if is_known else 0.0)
        self._tell(f"group {group.name}, attempt {group.attempt}: run {run_id}")

    def _follow_runs(self) -> bool:
        """Ask about the runs that go on, and register the outputs of one that has ended."""
        for group in self._catalog.groups(GroupState.SUBMITTED):
            now = self._clock()
            if now < self._looks.get(group.name, 0.0):
                continue
            error = self._steps.outcome(group)
            if error is not None:
                return self._try(group, partial(self._finish, error=error))
            age = now - group.arrived
            self._looks[group.name] = self._clock() + max(LEAST_WAIT, age / 20.0)
        return False

    def _finish(self, group: Group, *, error: str) -> None:
        """Register what a run has made; that of an attempt that failed, if there is no other."""
        begun = self._begun.pop(group.name, None)
        if not error or group.attempt >= self._section.attempts:
            over = self._steps.register(group, ended=self._clock())
            if begun is not None and over is not None:
                self._lengths.append(over - begun)
        if error:
            self._fail(group, error)
        else:
            self._end(group, "")

    def _fail(self, group: Group, error: str) -> None:
        if group.attempt >= self._section.attempts:
            self._end(group, error)
            return
        self._catalog.update(group.name, state=GroupState.WAITING, run="", run_id=None, error=error)
        self._tell(f"group {group.name}, attempt {group.attempt} failed and will be tried again: {error}")

    def _end(self, group: Group, error: str) -> None:
        now = self._clock()
        state = GroupState.FAILED if error else GroupState.DONE
        self._catalog.update(group.name, state=state, ended=now, error=error or group.error)
        self._looks.pop(group.name, None)
        text = f"group {group.name} {state} {now - group.arrived:.2f} s after its arrival"
        self._tell(f"{text}: {error}" if error else text)


def make_processing(
    steps: GroupSteps, catalog: Catalog, *, stream: TextIO, tell: Callable[[str], object]
) -> Processing:
    """Make the processing of a configuration, with what the catalogue knows already."""
    section, known = steps.section, catalog.groups()
    groups = ImageGroups(section.images, section.patience, {group.name for group in known})
    inputs = [path for group in known for path in group.inputs]
    arrivals: Arrivals
    if section.source == "lines":
        arrivals = LineArrivals(section, groups, stream)
    elif section.source == "collection":
        arrivals = CollectionArrivals(section, groups, inputs, steps.butler)
    else:
        arrivals = DirectoryArrivals(section, groups, inputs, opens=steps.opens)
    return Processing(steps, catalog, arrivals, tell=tell)


# --- one process a configuration ---


@contextmanager
def only_process(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory; `PandaBpsError` if another process does."""
    directory.mkdir(parents=True, exist_ok=True)
    # Not "w": the number of the process that has the lock stays.
    with open(directory / _LOCK, "a+", encoding="ascii") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PandaBpsError(
                f"Process {find_process(directory)} processes into {directory} already; stop it with: "
                "panda_bps prompt stop"
            ) from None
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def find_process(directory: Path) -> int | None:
    """Return the process that holds the lock of a directory."""
    try:
        with open(directory / _LOCK, encoding="ascii") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(stream.read() or 0) or None
    except OSError:
        pass
    return None


def spawn(config: Path, directory: Path, *, timeout: float = 120.0) -> int:
    """Start the processing in the background, and return its process once it looks for images."""
    directory.mkdir(parents=True, exist_ok=True)
    ready = directory / READY_NAME
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-P", "-m", "panda_commands.cli.panda_bps", "prompt", "start", "--foreground"]
    with open(directory / LOG_NAME, "ab") as output:
        begun = output.tell()
        process = subprocess.Popen(
            [*command, str(config.absolute())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    end = time.monotonic() + timeout
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            process.wait()
            said = (directory / LOG_NAME).read_bytes()[begun:].decode(errors="replace").strip()
            raise PandaBpsError(f"The processing did not start:\n{said[-3000:]}")
        time.sleep(0.05)
    return process.pid


def stop_process(directory: Path, *, timeout: float = 60.0) -> bool:
    """Stop the processing of a directory; tell whether there was one.  Its runs go on, and the next start
    goes on with them.
    """
    pid = find_process(directory)
    if pid is None:
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + timeout
    while find_process(directory) is not None:
        if time.monotonic() > end:
            raise PandaBpsError(f"Process {pid} does not end; see {directory / LOG_NAME}")
        time.sleep(0.05)
    return True
