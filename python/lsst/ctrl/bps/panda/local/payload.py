"""One PanDA job on this machine: its directories, its environment, its
process, and what is measured of it.  It does the part of a pilot.
"""

from __future__ import annotations

__all__ = ["JobPlaces", "Payload", "job_environment", "read_memory_summary"]

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .orders import JobOrder
from .outcomes import PilotError
from .processes import JOB_MARKER, SessionUse, end_bearers, end_session

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
