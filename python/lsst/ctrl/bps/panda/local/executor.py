"""Take PanDA jobs as slots become free, run each with a pilot, and watch their limits: the dispatcher and
the executor.
"""

from __future__ import annotations

__all__ = ["Dispatcher", "Executor", "ExecutorSettings", "Reports"]

import collections
import functools
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import sqlalchemy as sa

from ..warm.pool import Pool
from .database import Database, events, files, jobs, tasks
from .faults import Faults
from .jedi import Jedi
from .pilot import (
    KILLED_BY_SERVER,
    NO_LOCAL_SPACE,
    OUT_OF_MEMORY,
    OUT_OF_TIME,
    SET_UP_FAILED,
    EventResult,
    JobDirectories,
    JobResult,
    PayloadRun,
    PilotError,
    PilotJob,
    cancelled_detail,
    job_environment,
    lost_detail,
    make_result,
    payload_commands,
)
from .processes import measure_sessions
from .settings import Queues, Timing
from .storage import Storage, is_storage_error

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

_NEXT = (
    sa.select(
        *(jobs.c[name] for name in ("panda_id", "task_id", "file_id", "attempt", "queue", "cores", "ram")),
        files.c.lfn,
        files.c.events,
    )
    .join(files, files.c.file_id == jobs.c.file_id)
    .where(jobs.c.status == "activated")
    .where(jobs.c.task_id.not_in(sa.select(tasks.c.task_id).where(tasks.c.status == "paused")))
    .order_by(jobs.c.priority.desc(), jobs.c.panda_id)
    .limit(sa.bindparam("_most"))
)
_CORES = (
    sa.select(jobs.c.queue, sa.func.sum(jobs.c.cores))
    .where(jobs.c.status == "running")
    .group_by(jobs.c.queue)
)
_STARTS = (
    jobs.update()
    .where(jobs.c.panda_id == sa.bindparam("_job"))
    .values(status="running", started=sa.bindparam("_now"), changed=sa.bindparam("_now"))
)


class Dispatcher:
    """PanDA's job dispatcher: gives out jobs that are ready, and takes reports of their ends."""

    def __init__(
        self,
        database: Database,
        jedi: Jedi,
        *,
        queues: Queues,
        clock: Callable[[], float],
        task_walltime: bool = False,
    ) -> None:
        self._database = database
        self._jedi = jedi
        self._queues = queues
        self._clock = clock
        self._task_walltime = task_walltime

    def take(self, free: int, slots: int) -> list[PilotJob]:
        """Take the jobs that may run now on ``free`` of all slots, by priority and age.

        A job that wants more than all slots runs alone.  A job that does not
        fit stops those behind it in its queue, so that jobs with many cores
        are not overtaken for ever.
        """
        taken: list[PilotJob] = []
        if free <= 0:
            return taken
        with self._database.change() as connection:
            busy = self._cores_by_queue(connection)
            blocked: set[str] = set()
            for job in connection.execute(_NEXT, {"_most": max(free * 4, 32)}).mappings().all():
                try:
                    order = self._order(connection, job, slots)
                except (ValueError, TypeError, LookupError, AttributeError) as error:
                    _LOG.exception("job %s cannot be made of its rows; it is failed alone", job["panda_id"])
                    self._jedi.break_job(job["panda_id"], error)
                    continue
                room = (self._queues.get(order.queue).cores or slots) - busy.get(order.queue, 0)
                if order.queue in blocked:
                    continue
                if order.cores > min(free, room):
                    blocked.add(order.queue)
                    if order.cores > free:
                        break
                    continue
                connection.execute(_STARTS, {"_job": order.panda_id, "_now": self._clock()})
                taken.append(order)
                busy[order.queue] = busy.get(order.queue, 0) + order.cores
                free -= order.cores
                if free <= 0:
                    break
        return taken

    def _cores_by_queue(self, connection: sa.Connection) -> dict[str, int]:
        return {queue: int(cores) for queue, cores in connection.execute(_CORES).all()}

    def _order(self, connection: sa.Connection, job: Any, slots: int) -> PilotJob:
        """Make what a pilot is told of a job; an error if its rows cannot be used."""
        task = self._jedi.task(connection, job["task_id"])
        if task is None:
            raise LookupError(f"there is no task {job['task_id']}")
        params = self._jedi.parameters(connection, job["task_id"])
        done = sa.select(events.c.number).where(
            events.c.file_id == job["file_id"], events.c.status == "finished"
        )
        queue = self._queues.get(job["queue"])
        return PilotJob(
            panda_id=job["panda_id"],
            task_id=job["task_id"],
            task_name=task["name"],
            request_id=task["req_id"],
            attempt=job["attempt"],
            template=params.command,
            pseudo_input=job["lfn"].partition(":")[2],
            event_count=int(job["events"]),
            done_events=frozenset(connection.execute(done).scalars()) if job["events"] else frozenset(),
            queue=job["queue"],
            cores=min(int(job["cores"]), slots, queue.cores or slots),
            # The unit of the task is MBPerCoreFixed.
            memory=_lower(int(job["ram"]) * int(task["cores"]), queue.memory),
            walltime=_lower(params.walltime if self._task_walltime else 0, queue.walltime),
        )

    def report(self, panda_id: int, result: JobResult) -> bool:
        """Report the end of a job; see `Jedi.job_ended`.  One whose rows cannot be used is failed alone."""
        try:
            return self._jedi.job_ended(panda_id, result)
        except Exception as error:
            if is_storage_error(error):
                raise
            _LOG.exception("the end of job %s cannot be stored; it is failed alone", panda_id)
            self._jedi.break_job(panda_id, error)
            return True

    def report_lost(self, panda_id: int, last_seen: str) -> bool:
        """Report a job whose pilot sends no more heartbeats."""
        return self.report(panda_id, JobResult("failed", detail=lost_detail(last_seen)))

    def due_kills(self, panda_ids: Collection[int]) -> list[int]:
        """List those of some running jobs whose pilots are now told to kill them."""
        query = sa.select(jobs.c.panda_id).where(jobs.c.status == "running", jobs.c.kill_at <= self._clock())
        with self._database.reading() as connection:
            return [panda_id for panda_id in connection.execute(query).scalars() if panda_id in panda_ids]

    def killer(self, panda_id: int) -> str:
        """Return PanDA's words on who asked for a job to be killed."""
        query = sa.select(jobs.c.kill_by).where(jobs.c.panda_id == panda_id)
        with self._database.reading() as connection:
            return str(connection.execute(query).scalar() or "")

    def counts(self) -> dict[str, int]:
        """Count all jobs by status."""
        query = sa.select(jobs.c.status, sa.func.count()).group_by(jobs.c.status)
        with self._database.reading() as connection:
            return {row[0]: int(row[1]) for row in connection.execute(query)}

    def open_tasks(self) -> int:
        """Count the tasks that have not ended."""
        query = sa.select(sa.func.count()).where(tasks.c.ended.is_(None))
        with self._database.reading() as connection:
            return int(connection.execute(query).scalar() or 0)


def _lower(first: int, second: int) -> int:
    """Return the lower of two limits, of which 0 means none."""
    return min(first, second) if first and second else first or second


_WATCH_PERIOD = 0.5
_PAUSES = (0.2, 0.5, 1.0, 2.0)
"""Seconds between tries while the storage is in trouble; the last one again and again."""


class Reports:
    """Reports of how jobs ended: stored in order, and kept in memory until they are."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._waiting: collections.deque[Callable[[], None]] = collections.deque()
        self._sending = threading.Lock()
        self._failed = threading.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, report: Callable[[], None]) -> None:
        """Store a report now, behind those that wait; one that cannot be stored is kept."""
        self._waiting.append(report)
        self.send()

    def send(self) -> bool:
        """Store what waits; false if the storage does not take it."""
        with self._sending:
            while self._waiting:
                try:
                    self._waiting[0]()
                except Exception as error:
                    if self._storage.note(error):
                        self._failed.set()
                        return False
                    _LOG.exception("the end of a job could not be reported")
                self._waiting.popleft()
        return True

    def send_for_ever(self, stopping: threading.Event, stored: Callable[[], None]) -> None:
        """Store what could not be stored at once, until ``stopping`` is set, and say so each time."""
        while not stopping.is_set():
            self._failed.wait()
            self._failed.clear()
            tries = 0
            while not stopping.wait(_PAUSES[min(tries, len(_PAUSES) - 1)]) and not self.send():
                tries += 1
            stored()

    def wake(self) -> None:
        """Have what waits sent again."""
        self._failed.set()


@dataclass(frozen=True, slots=True)
class ExecutorSettings:
    """What an executor is started with."""

    slots: int
    """Cores that jobs may use together."""

    directories: JobDirectories
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

    pool: Pool | None = None
    """Templates for scripts that jobs call, if there are to be any."""


class Executor:
    """Runs PanDA jobs on this machine, each in a thread, and watches their limits."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        settings: ExecutorSettings,
        *,
        timing: Timing,
        faults: Faults,
        storage: Storage,
    ) -> None:
        self._dispatcher = dispatcher
        self._storage = storage
        self._reports = Reports(storage)
        self._settings = settings
        self._timing = timing
        self._faults = faults
        self._changed = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._running: dict[int, PayloadRun] = {}
        self._cores_used = 0
        self._threads = [
            threading.Thread(target=self._dispatch, name="executor-dispatch", daemon=True),
            threading.Thread(target=self._watch, name="executor-watch", daemon=True),
            threading.Thread(target=self._report_again, name="executor-reports", daemon=True),
        ]

    @property
    def slots(self) -> int:
        """Cores that jobs may use together."""
        return self._settings.slots

    @property
    def slots_used(self) -> int:
        """Cores in use."""
        return self._cores_used

    @property
    def warm(self) -> dict[str, Any] | None:
        """Templates, hits and cold starts, if there are warm workers."""
        return None if self._settings.pool is None else self._settings.pool.status()

    @property
    def reports_waiting(self) -> int:
        """Jobs that have ended and whose end is not stored yet."""
        return len(self._reports)

    def wake(self) -> None:
        """Have the executor look for jobs now."""
        self._changed.set()

    def start(self) -> None:
        """Begin to run jobs."""
        for thread in self._threads:
            thread.start()
        self.wake()

    def stop(self) -> None:
        """End all payloads; how they end is not reported any more."""
        self._stopping.set()
        self._changed.set()
        with self._lock:
            running = list(self._running.values())
        enders = [
            threading.Thread(
                target=payload.end, args=(KILLED_BY_SERVER,), kwargs={"grace": self._timing.grace}
            )
            for payload in running
        ]
        for ender in enders:
            ender.start()
        for ender in enders:
            ender.join()
        if self._settings.pool is not None:
            self._settings.pool.stop()
        self._reports.wake()
        self._reports.send()

    def _report_again(self) -> None:
        # The queues of these jobs had no room for others until now.
        self._reports.send_for_ever(self._stopping, self.wake)

    # -- Dispatch -----------------------------------------------------------

    def _dispatch(self) -> None:
        while not self._stopping.is_set():
            self._changed.wait()
            self._changed.clear()
            try:
                self._take_jobs()
            except Exception as error:
                if not self._storage.note(error):
                    _LOG.exception("could not take jobs; trying again in a second")
                self._stopping.wait(1)
                self._changed.set()

    def _take_jobs(self) -> None:
        if self._storage.look() is not None:
            # It wakes us when it has ended.
            return
        with self._lock:
            free = self.slots - self._cores_used
        for job in self._dispatcher.take(free, self.slots):
            if self._stopping.is_set():
                return
            with self._lock:
                self._cores_used += job.cores
            thread = threading.Thread(
                target=self._run_job, args=(job,), name=f"job-{job.panda_id}", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:
                # No more threads.
                self._end_run(job, error)

    def _run_job(self, job: PilotJob) -> None:
        error = None
        try:
            self._run(job)
        except Exception as caught:
            _LOG.exception("job %s could not be run", job.panda_id)
            error = caught
        finally:
            self._end_run(job, error)

    def _end_run(self, job: PilotJob, error: Exception | None) -> None:
        """Free the slots of a job, which has failed if there is an error."""
        if error is not None:
            reason = PilotError(SET_UP_FAILED.code, f"{SET_UP_FAILED.text}: {error}")
            self._reports.put(lambda: self._report(job, make_result(1, error=reason)))
        with self._lock:
            self._cores_used -= job.cores
            self._running.pop(job.panda_id, None)
        self.wake()

    def _report(self, job: PilotJob, result: JobResult) -> None:
        self._dispatcher.report(job.panda_id, result)

    def _patiently(self, payload: PayloadRun, act: Callable[[], _T], instead: _T) -> _T:
        """Do something that writes, again and again while the storage does not take it; the other value if
        the job is ended meanwhile.
        """
        tries = 0
        while True:
            try:
                return act()
            except OSError as error:
                if not self._storage.note(error):
                    raise
            self._stopping.wait(_PAUSES[min(tries, len(_PAUSES) - 1)])
            if self._stopping.is_set() or payload.error is not None:
                return instead
            tries += 1

    def _run(self, job: PilotJob) -> None:
        directories = self._settings.directories
        work = directories.work_directory(job.panda_id)
        environment = job_environment(
            work,
            panda_id=job.panda_id,
            task_id=job.task_id,
            base=self._settings.environment,
            path=self._settings.path,
            extra=self._settings.extra,
        )
        settings = self._settings
        payload = PayloadRun(job, directories, environment, umask=settings.umask, pool=settings.pool)
        with self._lock:
            self._running[job.panda_id] = payload
        self._patiently(payload, payload.prepare, None)
        fault = self._faults.for_job(job)
        if fault.delay:
            self._stopping.wait(fault.delay)
        if fault.lose:
            self._lose(job, payload)
            return
        code, event_results = self._run_commands(job, payload, forced=fault.exit_code)
        if self._stopping.is_set():
            # Ended by `stop`: the next start treats the job as lost.
            return
        error = payload.error
        if code and error is None and (trouble := self._storage.look()):
            error = PilotError(NO_LOCAL_SPACE.code, f"{NO_LOCAL_SPACE.text}: {trouble.text}"[:250])
        result = make_result(code, error=error, events=event_results, detail=payload.figures())
        result = replace(result, forced=fault.exit_code is not None)
        if result.status == "failed" and self._timing.failed_attempt > 0:
            self._stopping.wait(self._timing.failed_attempt)
        self._reports.put(lambda: self._finish(job, payload, code, result))

    def _finish(self, job: PilotJob, payload: PayloadRun, code: int, result: JobResult) -> None:
        """Keep the logs of a job, store how it ended, and remove its work directory; all of it may be done
        again.
        """
        log_url = self._settings.directories.log_url(job.panda_id)
        detail = {**result.detail, "pilotID": f"{log_url}|local|{self._settings.version}"}
        if payload.error is KILLED_BY_SERVER:
            detail.update(cancelled_detail(self._dispatcher.killer(job.panda_id)))
        result = replace(result, detail=detail)
        keep = self._settings.keep_work
        try:
            payload.keep_files()
            if keep == "never" or (keep == "failed" and result.status == "finished"):
                # Before anything is written: this may be what fills the disk.
                payload.remove_work()
            self._write_log(job, payload, code, result)
        except OSError as error:
            if is_storage_error(error):
                raise
            _LOG.exception("the logs of job %s could not be kept", job.panda_id)
        self._report(job, result)

    def _run_commands(
        self, job: PilotJob, payload: PayloadRun, *, forced: int | None
    ) -> tuple[int, tuple[EventResult, ...]]:
        """Run the job's payload, or its payloads one after the other."""
        first_bad = 0
        results = []
        for number, command in payload_commands(job):
            if payload.error is not None or self._stopping.is_set():
                results.append(EventResult(number, 143))
                continue
            code = forced
            if code is None:
                code = self._patiently(payload, functools.partial(payload.run, command), 143)
            if number:
                results.append(EventResult(number, code))
            first_bad = first_bad or code
        return first_bad, tuple(result for result in results if result.number)

    @staticmethod
    def _write_log(job: PilotJob, payload: PayloadRun, code: int, result: JobResult) -> None:
        payload.write_log(
            f"job {job.panda_id} of task {job.task_id} ({job.task_name}), attempt {job.attempt}\n"
            f"input {job.pseudo_input}\nqueue {job.queue}\nstatus {result.status}\n"
            f"exit code {code}\npilot error {result.pilot_error_code}"
            f" {result.detail.get('pilotErrorDiag') or ''}\n"
            f"elapsed {payload.elapsed:.2f} s\nmaximum resident memory {result.detail['maxRSS']} kB\n"
        )

    def _lose(self, job: PilotJob, payload: PayloadRun) -> None:
        """Report a job as if its worker had vanished with it."""
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        self._stopping.wait(self._timing.heartbeat)
        if not self._stopping.is_set():
            self._reports.put(lambda: self._finish_lost(job, payload, when))

    def _finish_lost(self, job: PilotJob, payload: PayloadRun, when: str) -> None:
        self._dispatcher.report_lost(job.panda_id, when)
        payload.remove_work()

    # -- Watch --------------------------------------------------------------

    def _watch(self) -> None:
        while not self._stopping.wait(_WATCH_PERIOD):
            with self._lock:
                running = {payload.session: payload for payload in self._running.values() if payload.session}
                waiting = dict(self._running)
            if self._settings.pool is not None:
                self._settings.pool.keep()
            if not waiting:
                # Nothing runs: look less often.
                self._stopping.wait(_WATCH_PERIOD)
                continue
            try:
                self._check(running, waiting)
            except Exception as error:
                if not self._storage.note(error):
                    _LOG.exception("could not watch the jobs")

    def _check(self, running: Mapping[int, PayloadRun], waiting: Mapping[int, PayloadRun]) -> None:
        roots = {payload.root for payload in running.values()} - {0}
        for session, use in measure_sessions(running.keys(), apart=roots).items():
            payload = running[session]
            payload.sample(use)
            limit = payload.job.memory
            if limit and use.rss > limit * 1024:
                self._end(payload, OUT_OF_MEMORY)
        for payload in running.values():
            if payload.job.walltime and payload.elapsed > payload.job.walltime:
                self._end(payload, OUT_OF_TIME)
        for panda_id in self._dispatcher.due_kills(waiting.keys()):
            self._end(waiting[panda_id], KILLED_BY_SERVER)

    def _end(self, payload: PayloadRun, error: PilotError) -> None:
        if payload.error is not None:
            return
        ender: Callable[[], None] = lambda: payload.end(error, grace=self._timing.grace)  # noqa: E731
        threading.Thread(target=ender, daemon=True).start()
