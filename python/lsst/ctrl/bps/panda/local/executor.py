"""Run PanDA jobs on this machine: their directories, environments and processes, and what is measured of
them.  It does the part of a pilot.
"""

from __future__ import annotations

__all__ = ["Executor", "ExecutorSettings", "JobPlaces", "Payload", "job_environment", "read_memory_summary"]

import json
import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from .dispatcher import JobDesk
from .faults import Faults
from .pilot import (
    KILLED_BY_SERVER,
    OUT_OF_MEMORY,
    OUT_OF_TIME,
    SET_UP_FAILED,
    EventOutcome,
    JobOrder,
    Outcome,
    PilotError,
    cancelled_detail,
    outcome_of,
    payload_commands,
)
from .processes import JOB_MARKER, SessionUse, end_bearers, end_session, measure_sessions
from .settings import Pace

_SUMMARY = "memory_monitor_summary.json"
_KEPT_FILES = ("payload*", "memory_monitor*")
_PASSED = ("HOME", "USER", "LOGNAME", "LANG", "TZ")


@dataclass(frozen=True, slots=True)
class JobPlaces:
    """Directories of jobs and how they are reached.

    Parameters
    ----------
    logs : `~pathlib.Path`
        Parent of the log directories, which are kept.
    work : `~pathlib.Path`
        Parent of the work directories.
    url : `str`
        URL of ``logs``, without a slash at its end.
    """

    logs: Path
    work: Path
    url: str

    def log_directory(self, panda_id: int) -> Path:
        """Tell the log directory of a job."""
        return self.logs / f"PandaJob_{panda_id}"

    def work_directory(self, panda_id: int) -> Path:
        """Tell the work directory of a job."""
        return self.work / f"PandaJob_{panda_id}"

    def log_url(self, panda_id: int) -> str:
        """Tell the URL of a job's pilot log; the other logs lie next to it."""
        return f"{self.url}/PandaJob_{panda_id}/pilotlog.txt"


def job_environment(
    order: JobOrder,
    work: Path,
    *,
    base: Mapping[str, str],
    path: str,
    extra: Mapping[str, str],
) -> dict[str, str]:
    """Make the environment of a job: a clean one, with a pilot's variables.

    Parameters
    ----------
    order : `JobOrder`
        The job.
    work : `~pathlib.Path`
        Its work directory.
    base : `~collections.abc.Mapping`
        Environment of the server, of which only who the user is, language
        and time zone are passed on.
    path : `str`
        First directory of ``PATH``.
    extra : `~collections.abc.Mapping`
        Further variables, which win.
    """
    variables = {name: base[name] for name in _PASSED if name in base}
    variables.update(
        PATH=f"{path}:/usr/local/bin:/usr/bin:/bin",
        TMPDIR=str(work),
        PWD=str(work),
        PANDAID=str(order.panda_id),
        PanDA_TaskID=str(order.task_id),
        PANDA_ATTEMPTNR=str(order.attempt),
        PANDA_JSID="panda_local",
        PANDA_RESOURCE=order.queue,
        PILOT_SITENAME=order.queue,
        GTAG="unknown",
        ATHENA_PROC_NUMBER=str(order.cores),
        ATHENA_CORE_NUMBER=str(order.cores),
        CORE_COUNT=str(order.cores),
    )
    variables.update(extra)
    return variables


def read_memory_summary(directory: Path) -> dict[str, Any]:
    """Read what prmon left, as the pilot of Rubin does.

    Returns
    -------
    fields : `dict`
        ``maxRSS``, ``avgRSS`` and so on, kB; empty without a usable file.
    """
    try:
        summary = json.loads((directory / _SUMMARY).read_text())
        highest, average = summary["Max"], summary["Avg"]
        fields: dict[str, Any] = {}
        for name in ("rss", "vmem", "swap", "pss"):
            if name in highest:
                fields[f"max{name.upper()}"] = int(highest[name])
            if name in average:
                fields[f"avg{name.upper()}"] = int(average[name])
        names = (("rchar", "RCHAR"), ("wchar", "WCHAR"), ("read_bytes", "RBYTES"), ("write_bytes", "WBYTES"))
        for name, field in names:
            # PanDA stores these divided by 1024.
            if name in highest:
                fields[f"tot{field}"] = int(highest[name]) // 1024
            if name in average:
                fields[f"rate{field}"] = int(average[name]) // 1024
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return fields


class Payload:
    """The processes of a job that runs.

    Parameters
    ----------
    order : `JobOrder`
        The job.
    places : `JobPlaces`
        Where it runs.
    environment : `dict`
        Its variables.
    umask : `int`, optional
        Permissions that its files do not get.
    """

    def __init__(
        self, order: JobOrder, places: JobPlaces, environment: Mapping[str, str], *, umask: int = 0o022
    ) -> None:
        self.order = order
        self._umask = umask
        self.work = places.work_directory(order.panda_id)
        self.logs = places.log_directory(order.panda_id)
        self._mark = f"{JOB_MARKER}={self.work}"
        self._environment = {**environment, JOB_MARKER: str(self.work)}
        self._lock = threading.Lock()
        self._started = time.time()
        self._begun = time.monotonic()
        self._session = 0
        self._error: PilotError | None = None
        self._samples = 0
        self._rss_sum = 0
        self._max = SessionUse(0, 0, 0.0, 0)
        self._cpu = 0.0

    @property
    def session(self) -> int:
        """Session id of the process that runs now, 0 if none."""
        return self._session

    @property
    def error(self) -> PilotError | None:
        """Why the payload was ended from outside, if it was."""
        return self._error

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._begun

    def prepare(self) -> None:
        """Make fresh directories."""
        for directory in (self.work, self.logs):
            if directory.exists():
                shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True, mode=0o700)
        for name in ("payload.stdout", "payload.stderr"):
            (self.logs / name).touch()
            (self.work / name).symlink_to(self.logs / name)

    def run(self, command: str) -> int:
        """Run one command line to its end.

        Returns
        -------
        exit_code : `int`
            Exit code; 128 + n for signal n.
        """
        with (
            (self.logs / "payload.stdout").open("ab") as stdout,
            (self.logs / "payload.stderr").open("ab") as stderr,
        ):
            with self._lock:
                if self._error is not None:
                    return 143
                process = self._spawn(command, stdout, stderr)
                self._session = process.pid
            _, status, usage = os.wait4(process.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        process.returncode = code
        self._cpu += usage.ru_utime + usage.ru_stime
        self._sweep()
        return 128 - code if code < 0 else code

    def _spawn(self, command: str, stdout: BinaryIO, stderr: BinaryIO) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["bash", "-c", command],
            cwd=self.work,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            umask=self._umask,
        )

    def _sweep(self) -> None:
        """End what the command left running, in its session or not."""
        session, self._session = self._session, 0
        try:
            os.killpg(session, 0)
        except (ProcessLookupError, PermissionError):
            pass
        else:
            end_session(session, grace=0.0)
        end_bearers(self._mark)

    def sample(self, use: SessionUse) -> None:
        """Note a measurement of the running processes."""
        self._samples += 1
        self._rss_sum += use.rss
        before = self._max
        self._max = SessionUse(max(before.rss, use.rss), max(before.vmem, use.vmem), use.cpu, use.processes)

    def end(self, error: PilotError, *, grace: float) -> None:
        """End the payload from outside.

        Parameters
        ----------
        error : `PilotError`
            Why; the first reason stands.
        grace : `float`
            Seconds between SIGTERM and SIGKILL.
        """
        with self._lock:
            if self._error is not None:
                return
            self._error = error
            session = self._session
        if session:
            end_session(session, grace=grace)
        end_bearers(self._mark)

    def figures(self) -> dict[str, Any]:
        """Tell what was measured, in the fields of PanDA's job record (kB)."""
        # Not the kernel's ru_maxrss: after an exec it still holds the size of
        # the server that forked.
        peak = self._max.rss
        fields: dict[str, Any] = {
            "maxRSS": peak,
            "avgRSS": self._rss_sum // self._samples if self._samples else peak,
            "cpuConsumptionTime": round(self._cpu),
        }
        if self._max.vmem:
            fields["maxVMEM"] = self._max.vmem
        fields.update(read_memory_summary(self.work))
        return fields

    def keep_logs(self, text: str) -> None:
        """Copy the payload's own logs next to its output, and write a pilot
        log.
        """
        for pattern in _KEPT_FILES:
            for path in self.work.glob(pattern):
                if path.is_file() and not path.is_symlink():
                    shutil.copy2(path, self.logs / path.name)
        (self.logs / "pilotlog.txt").write_text(text)

    def remove_work(self) -> None:
        """Remove the work directory."""
        shutil.rmtree(self.work, ignore_errors=True)


_LOG = logging.getLogger(__name__)

_WATCH_PERIOD = 0.5


@dataclass(frozen=True, slots=True)
class ExecutorSettings:
    """What an executor needs to know."""

    slots: int
    """Cores that jobs may use together."""

    places: JobPlaces
    environment: Mapping[str, str]
    """Environment of the server."""

    path: str
    """First directory of a job's PATH."""

    extra: Mapping[str, str] = field(default_factory=dict)
    """Further variables of every job."""

    keep_work: str = "failed"
    """Work directories to keep: ``never``, ``failed`` or ``always``."""

    umask: int = 0o022
    """Permissions that files of jobs do not get."""

    version: str = ""


class Executor:
    """Runs jobs.

    Parameters
    ----------
    desk : `JobDesk`
        Where jobs are taken and reported.
    settings : `ExecutorSettings`
        What to run with.
    pace : `Pace`
        Delays.
    faults : `Faults`
        Faults to inject.
    """

    def __init__(self, desk: JobDesk, settings: ExecutorSettings, *, pace: Pace, faults: Faults) -> None:
        self._desk = desk
        self._settings = settings
        self._pace = pace
        self._faults = faults
        self._bell = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._running: dict[int, Payload] = {}
        self._cores_used = 0
        self._threads = [
            threading.Thread(target=self._dispatch, name="executor-dispatch", daemon=True),
            threading.Thread(target=self._watch, name="executor-watch", daemon=True),
        ]

    @property
    def slots(self) -> int:
        """Cores that jobs may use together."""
        return self._settings.slots

    @property
    def slots_used(self) -> int:
        """Cores in use."""
        return self._cores_used

    def wake(self) -> None:
        """Look for jobs now."""
        self._bell.set()

    def start(self) -> None:
        """Begin to run jobs."""
        for thread in self._threads:
            thread.start()
        self.wake()

    def stop(self) -> None:
        """End all payloads; nothing of what they do from now on counts."""
        self._stopping.set()
        self._bell.set()
        with self._lock:
            running = list(self._running.values())
        enders = [
            threading.Thread(target=payload.end, args=(KILLED_BY_SERVER,), kwargs={"grace": self._pace.grace})
            for payload in running
        ]
        for ender in enders:
            ender.start()
        for ender in enders:
            ender.join()

    # -- Dispatch -----------------------------------------------------------

    def _dispatch(self) -> None:
        while not self._stopping.is_set():
            self._bell.wait()
            self._bell.clear()
            try:
                self._take_jobs()
            except Exception:
                _LOG.exception("could not take jobs; trying again in a second")
                self._stopping.wait(1)
                self._bell.set()

    def _take_jobs(self) -> None:
        with self._lock:
            free = self.slots - self._cores_used
        for order in self._desk.take(free, self.slots):
            if self._stopping.is_set():
                return
            with self._lock:
                self._cores_used += order.cores
            thread = threading.Thread(
                target=self._run_job, args=(order,), name=f"job-{order.panda_id}", daemon=True
            )
            thread.start()

    def _run_job(self, order: JobOrder) -> None:
        try:
            self._run(order)
        except Exception:
            _LOG.exception("job %s could not be run", order.panda_id)
            self._desk.report(order.panda_id, outcome_of(1, error=SET_UP_FAILED))
        finally:
            with self._lock:
                self._cores_used -= order.cores
                self._running.pop(order.panda_id, None)
            self.wake()

    def _run(self, order: JobOrder) -> None:
        places = self._settings.places
        work = places.work_directory(order.panda_id)
        environment = job_environment(
            order,
            work,
            base=self._settings.environment,
            path=self._settings.path,
            extra=self._settings.extra,
        )
        payload = Payload(order, places, environment, umask=self._settings.umask)
        with self._lock:
            self._running[order.panda_id] = payload
        payload.prepare()
        fault = self._faults.for_job(order)
        if fault.delay:
            self._stopping.wait(fault.delay)
        if fault.lose:
            self._lose(order, payload)
            return
        code, results = self._run_commands(order, payload, forced=fault.exit_code)
        if self._stopping.is_set():
            # Ended by stop: the next start finds the job as lost.
            return
        outcome = self._outcome(order, payload, code, results)
        if outcome.status == "failed" and self._pace.failed_attempt > 0:
            self._stopping.wait(self._pace.failed_attempt)
        self._desk.report(order.panda_id, outcome)
        keep = self._settings.keep_work
        if keep == "never" or (keep == "failed" and outcome.status == "finished"):
            payload.remove_work()

    def _run_commands(
        self, order: JobOrder, payload: Payload, *, forced: int | None
    ) -> tuple[int, tuple[EventOutcome, ...]]:
        """Run the job's payload, or its payloads one after the other."""
        first_bad = 0
        results = []
        for number, command in payload_commands(order):
            if payload.error is not None or self._stopping.is_set():
                results.append(EventOutcome(number, 143))
                continue
            code = payload.run(command) if forced is None else forced
            if number:
                results.append(EventOutcome(number, code))
            first_bad = first_bad or code
        return first_bad, tuple(result for result in results if result.number)

    def _outcome(
        self, order: JobOrder, payload: Payload, code: int, results: tuple[EventOutcome, ...]
    ) -> Outcome:
        places = self._settings.places
        detail = payload.figures()
        log_url = places.log_url(order.panda_id)
        detail["pilotID"] = f"{log_url}|local|{self._settings.version}"
        if payload.error is KILLED_BY_SERVER:
            detail.update(cancelled_detail(self._desk.killer(order.panda_id)))
        outcome = outcome_of(code, error=payload.error, events=results, detail=detail)
        payload.keep_logs(
            f"job {order.panda_id} of task {order.task_id} ({order.task_name}), attempt {order.attempt}\n"
            f"input {order.pseudo_input}\nqueue {order.queue}\nstatus {outcome.status}\n"
            f"exit code {code}\npilot error {outcome.pilot_error_code}"
            f" {outcome.detail.get('pilotErrorDiag') or ''}\n"
            f"elapsed {payload.elapsed:.2f} s\nmaximum resident memory {detail['maxRSS']} kB\n"
        )
        return outcome

    def _lose(self, order: JobOrder, payload: Payload) -> None:
        """Do as if the worker had vanished with the job."""
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        self._stopping.wait(self._pace.heartbeat)
        if not self._stopping.is_set():
            self._desk.report_lost(order.panda_id, when)
            payload.remove_work()

    # -- Watch --------------------------------------------------------------

    def _watch(self) -> None:
        while not self._stopping.wait(_WATCH_PERIOD):
            with self._lock:
                running = {payload.session: payload for payload in self._running.values() if payload.session}
                waiting = dict(self._running)
            if not waiting:
                # Nothing runs: sleep until something does.
                self._stopping.wait(_WATCH_PERIOD)
                continue
            try:
                self._check(running, waiting)
            except Exception:
                _LOG.exception("could not watch the jobs")

    def _check(self, running: Mapping[int, Payload], waiting: Mapping[int, Payload]) -> None:
        for session, use in measure_sessions(running.keys()).items():
            payload = running[session]
            payload.sample(use)
            limit = payload.order.memory
            if limit and use.rss > limit * 1024:
                self._end(payload, OUT_OF_MEMORY)
        for payload in running.values():
            if payload.order.walltime and payload.elapsed > payload.order.walltime:
                self._end(payload, OUT_OF_TIME)
        for panda_id in self._desk.due_kills(waiting.keys()):
            self._end(waiting[panda_id], KILLED_BY_SERVER)

    def _end(self, payload: Payload, error: PilotError) -> None:
        if payload.error is not None:
            return
        ender: Callable[[], None] = lambda: payload.end(error, grace=self._pace.grace)  # noqa: E731
        threading.Thread(target=ender, daemon=True).start()
