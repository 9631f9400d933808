"""What a pilot does for one PanDA job: the job it is given, its environment and processes, and its report in
PanDA's codes and texts.

Pilot codes are those of pilot 3 (``pilot/common/errorcodes.py``), task buffer
and job dispatcher codes those of panda-server (``ErrorCode.py`` of
``taskbuffer`` and ``jobdispatcher``).
"""

from __future__ import annotations

__all__ = [
    "EventResult",
    "JobDirectories",
    "JobResult",
    "KILLED_BY_SERVER",
    "MEMORY_CODES",
    "NO_LOCAL_SPACE",
    "OUT_OF_MEMORY",
    "OUT_OF_TIME",
    "PAYLOAD_FAILED",
    "PayloadRun",
    "PilotError",
    "PilotJob",
    "SET_UP_FAILED",
    "broken_detail",
    "broken_text",
    "cancelled_detail",
    "job_environment",
    "lost_detail",
    "make_result",
    "payload_commands",
    "read_memory_summary",
]

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..warm.pool import JobEnd, Pool
from .endpoint import job_folder
from .guard import end_marked
from .processes import JOB_MARKER, SessionUse, end_job, end_session
from .storage import is_storage_error

_SUMMARY = "memory_monitor_summary.json"
_KEPT_FILES = ("payload*", "memory_monitor*")
_PASSED = ("HOME", "USER", "LOGNAME", "LANG", "TZ")


@dataclass(frozen=True, slots=True)
class PilotJob:
    """A PanDA job as a pilot is told to run it."""

    panda_id: int
    task_id: int
    task_name: str
    request_id: int | None
    attempt: int
    """Attempt number as PanDA counts, from 1."""

    template: str
    """Command with ``${IN/L}``."""

    pseudo_input: str
    """The job's input without JEDI's ``000012:``."""

    event_count: int
    """Payloads of an event service job, 0 for an ordinary job."""

    done_events: frozenset[int]
    """Payloads (from 1) that an earlier attempt has finished."""

    queue: str
    cores: int
    memory: int
    """Limit of resident memory of the whole job, MB; 0 means none."""

    walltime: int
    """Limit of the run time, seconds; 0 means none."""


def payload_commands(job: PilotJob) -> list[tuple[int, str]]:
    """List the command lines of a job, each with the number of its payload.

    The number is 0 for an ordinary job.  With event service the pilot runs
    the payload once for each event, from 1, with ``^`` and the event's number
    behind the name of the input.  PanDA inserts that name unquoted.
    """
    if not job.event_count:
        return [(0, job.template.replace("${IN/L}", job.pseudo_input))]
    return [
        (number, job.template.replace("${IN/L}", f"{job.pseudo_input}^{number}"))
        for number in range(1, job.event_count + 1)
        if number not in job.done_events
    ]


@dataclass(frozen=True, slots=True)
class PilotError:
    """Code and text that a pilot reports."""

    code: int
    text: str


PAYLOAD_FAILED = PilotError(1305, "Failed to execute payload")
_TRANSLATED = {
    2: PilotError(1378, "Lsetup command timed out during remote file open"),
    3: PilotError(1368, "Remote file open timed out"),
    251: PilotError(1315, "Unknown transform failure"),
}
"""What pilot 3 makes of some exit codes of payloads, whatever they mean."""

OUT_OF_MEMORY = PilotError(1212, "Payload ran out of memory")
OUT_OF_TIME = PilotError(1213, "Reached batch system time limit")
KILLED_BY_SERVER = PilotError(1144, "This job was killed by panda server")
SET_UP_FAILED = PilotError(1110, "Failed during payload setup")
NO_LOCAL_SPACE = PilotError(1098, "Not enough local space")

MEMORY_CODES = frozenset({1212, 1223, 1235})
"""Pilot codes after which PanDA raises the memory of the next attempt."""

_TASK_BUFFER_KILL = 100
_DISPATCHER_WATCHER = 100


@dataclass(frozen=True, slots=True)
class EventResult:
    """How one payload of an event service job ended."""

    number: int
    """From 1."""

    exit_code: int


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a PanDA job ended."""

    status: str
    """``finished``, ``failed``, ``cancelled`` or ``closed``."""

    sub_status: str | None = None
    """``fg_done`` or ``fg_partial`` of an event service job, ``toreassign`` of one that was moved."""

    detail: Mapping[str, Any] = field(default_factory=dict)
    """Fields of PanDA's job record."""

    events: tuple[EventResult, ...] = ()
    forced: bool = False
    """Whether a rule for faults gave the exit code, and no payload ran."""

    @property
    def exit_codes(self) -> set[int]:
        """Exit codes of the payloads that ran and failed."""
        codes = [event.exit_code for event in self.events] or [int(self.detail.get("transExitCode") or 0)]
        return set() if self.forced else {code for code in codes if code}

    @property
    def pilot_error_code(self) -> int:
        """Code that the pilot reported, 0 if none."""
        return int(self.detail.get("pilotErrorCode") or 0)


def make_result(
    exit_code: int,
    *,
    error: PilotError | None = None,
    events: tuple[EventResult, ...] = (),
    detail: Mapping[str, Any] | None = None,
) -> JobResult:
    """Make the report of a job whose payload has ended.

    ``exit_code`` of an event service job is that of the first payload that
    failed, ``error`` the reason why the pilot ended the payload, and
    ``detail`` further fields of the job record (memory, log).
    """
    fields = dict(detail or {})
    fields["transExitCode"] = str(exit_code)
    good = [event for event in events if event.exit_code == 0]
    if error is None and exit_code == 0:
        return JobResult("finished", "fg_done" if events else None, fields, events)
    reported = error or _TRANSLATED.get(exit_code, PAYLOAD_FAILED)
    fields["pilotErrorCode"] = reported.code
    fields["pilotErrorDiag"] = reported.text
    if good:
        # PanDA counts the job as finished when some of its events are.
        return JobResult("finished", "fg_partial", fields, events)
    return JobResult("failed", None, fields, events)


def lost_detail(last_seen: str) -> dict[str, Any]:
    """Make the fields of a job whose pilot sends no more heartbeats."""
    return {
        "jobDispatcherErrorCode": _DISPATCHER_WATCHER,
        "jobDispatcherErrorDiag": f"lost heartbeat : {last_seen}",
    }


def broken_text(error: BaseException) -> str:
    """Say that what the database holds of a task or job cannot be used."""
    return f"its rows in the database cannot be used: {type(error).__name__}: {error}"[:250]


def broken_detail(error: BaseException) -> dict[str, Any]:
    """Make the fields of a job of which the database holds nothing usable."""
    return {"pilotErrorCode": SET_UP_FAILED.code, "pilotErrorDiag": broken_text(error)}


def cancelled_detail(text: str) -> dict[str, Any]:
    """Make the fields of a job that was killed; the text says by whom."""
    return {"taskBufferErrorCode": _TASK_BUFFER_KILL, "taskBufferErrorDiag": text}


@dataclass(frozen=True, slots=True)
class JobDirectories:
    """Where the log and work directories of jobs are."""

    logs: Path
    """Parent of the log directories, which are kept."""

    work: Path
    """Parent of the work directories."""

    url: str
    """URL of ``logs``, without a slash at its end."""

    def log_directory(self, panda_id: int) -> Path:
        """Return the log directory of a job."""
        return self.logs / job_folder(panda_id)

    def work_directory(self, panda_id: int) -> Path:
        """Return the work directory of a job."""
        return self.work / job_folder(panda_id)

    def log_url(self, panda_id: int) -> str:
        """Return the URL of a job's pilot log; its other logs are next to it."""
        return f"{self.url}/{job_folder(panda_id)}/pilotlog.txt"


def job_environment(
    work: Path,
    *,
    panda_id: int,
    task_id: int,
    base: Mapping[str, str],
    path: str,
    extra: Mapping[str, str],
) -> dict[str, str]:
    """Make the environment of a job: a clean one, with the two variables that
    pilot 3 sets with its plugin for Rubin (``pilot/control/job.py``).

    Of ``base``, the server's environment, only user, language and time zone
    are passed on; ``path`` is the first directory of ``PATH``; ``extra`` has
    precedence.
    """
    variables = {name: base[name] for name in _PASSED if name in base}
    variables.update(
        PATH=f"{path}:/usr/local/bin:/usr/bin:/bin",
        TMPDIR=str(work),
        PWD=str(work),
        PANDAID=str(panda_id),
        PanDA_TaskID=str(task_id),
    )
    variables.update(extra)
    return variables


def read_memory_summary(directory: Path) -> dict[str, Any]:
    """Read the summary that prmon left, as Rubin's pilot does.

    The fields are ``maxRSS``, ``avgRSS`` and so on, in kB; there are none
    without a usable file.
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


def _remove(directory: Path) -> None:
    """Remove a directory as far as it can be done; `OSError` if the storage is in trouble."""
    try:
        shutil.rmtree(directory)
    except OSError as error:
        if is_storage_error(error):
            raise
        shutil.rmtree(directory, ignore_errors=True)


def _keep(path: Path, target: Path) -> None:
    """Keep a file under a second name, which needs no room, or a copy of it."""
    target.unlink(missing_ok=True)
    try:
        os.link(path, target)
    except OSError as error:
        if is_storage_error(error):
            raise
        shutil.copy2(path, target)


class PayloadRun:
    """A job that runs: its directories, its processes and their measurements."""

    def __init__(
        self,
        job: PilotJob,
        directories: JobDirectories,
        environment: Mapping[str, str],
        *,
        umask: int = 0o022,
        pool: Pool | None = None,
    ) -> None:
        self.job = job
        self._pool = pool
        self._umask = umask
        self.work = directories.work_directory(job.panda_id)
        self.logs = directories.log_directory(job.panda_id)
        self._mark = f"{JOB_MARKER}={self.work}"
        self._environment = {**environment, JOB_MARKER: str(self.work)}
        self._lock = threading.Lock()
        self._begun = time.monotonic()
        self._session = 0
        self._root = 0
        self._error: PilotError | None = None
        self._samples = 0
        self._rss_sum = 0
        self._max = SessionUse(0, 0, 0)
        self._cpu = 0.0

    @property
    def session(self) -> int:
        """Session id of the process that runs now, 0 if none."""
        return self._session

    @property
    def root(self) -> int:
        """Process that leads, or has led, the session and is no part of the payload, 0 if none.

        It may live a moment longer than the session is known.
        """
        return self._root

    @property
    def error(self) -> PilotError | None:
        """Why the payload was ended from outside, if it was."""
        return self._error

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._begun

    def prepare(self) -> None:
        """Make empty log and work directories; what an earlier try has made is made again."""
        for directory in (self.work, self.logs):
            if directory.exists():
                _remove(directory)
            directory.mkdir(parents=True, mode=0o700)
        for name in ("payload.stdout", "payload.stderr"):
            (self.logs / name).touch()
            (self.work / name).symlink_to(self.logs / name)

    def run(self, command: str) -> int:
        """Run one command line to its end; returns 128 + n after signal n."""
        with (
            (self.logs / "payload.stdout").open("ab") as stdout,
            (self.logs / "payload.stderr").open("ab") as stderr,
        ):
            end = self._run_warm(command, stdout, stderr) or self._run_cold(command, stdout, stderr)
        code = os.waitstatus_to_exitcode(end.status)
        self._cpu += end.cpu
        self._sweep()
        return 128 - code if code < 0 else code

    def _run_warm(self, command: str, stdout: BinaryIO, stderr: BinaryIO) -> JobEnd | None:
        """Run a command below a root that is forked from a template; `None` if that cannot be done."""
        task = str(self.job.task_id)
        run = self.job.request_id
        template = self._pool and self._pool.choose(task, command, self._environment, run=run)
        if not self._pool or not template:
            return None
        with self._lock:
            if self._error is not None:
                return JobEnd(signal.SIGTERM, 0.0)
            root = self._pool.start(
                template,
                task,
                ["bash", "-c", command],
                directory=self.work,
                environment=self._environment,
                umask=self._umask,
                stdout=stdout,
                stderr=stderr,
            )
            if root is None:
                return None
            # Before the session, so that whoever sees that one knows the root.
            self._root = root.pid
            self._session = root.pid
        return root.wait()

    def _run_cold(self, command: str, stdout: BinaryIO, stderr: BinaryIO) -> JobEnd:
        with self._lock:
            if self._error is not None:
                return JobEnd(signal.SIGTERM, 0.0)
            process = subprocess.Popen(
                ["bash", "-c", command],
                cwd=self.work,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                umask=self._umask,
            )
            self._session = process.pid
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return JobEnd(status, usage.ru_utime + usage.ru_stime)

    def _sweep(self) -> None:
        """End processes that the command left running, in its session or not."""
        session, self._session = self._session, 0
        try:
            if session:
                os.killpg(session, 0)
        except (ProcessLookupError, PermissionError):
            session = 0
        if session:
            end_session(session, grace=0.0)
        end_marked(self._mark)

    def sample(self, use: SessionUse) -> None:
        """Record a measurement of the running processes."""
        self._samples += 1
        self._rss_sum += use.rss
        before = self._max
        self._max = SessionUse(max(before.rss, use.rss), max(before.vmem, use.vmem), use.processes)

    def end(self, error: PilotError, *, grace: float) -> None:
        """End the payload: SIGTERM, after ``grace`` seconds SIGKILL.

        The first reason given is the one that is reported.
        """
        with self._lock:
            if self._error is not None:
                return
            self._error = error
            session = self._session
        end_job(session, self._mark, grace=grace)

    def figures(self) -> dict[str, Any]:
        """Return the measurements as fields of PanDA's job record, in kB and s."""
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

    def keep_files(self) -> None:
        """Keep the payload's own logs next to its output."""
        for pattern in _KEPT_FILES:
            for path in self.work.glob(pattern):
                if path.is_file() and not path.is_symlink():
                    _keep(path, self.logs / path.name)

    def write_log(self, text: str) -> None:
        """Write the pilot log."""
        (self.logs / "pilotlog.txt").write_text(text)

    def remove_work(self) -> None:
        """Remove the work directory."""
        shutil.rmtree(self.work, ignore_errors=True)
