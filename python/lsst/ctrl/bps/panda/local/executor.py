"""Take PanDA jobs as slots become free, run each with a pilot, and watch their limits: the dispatcher and
the executor.
"""

from __future__ import annotations

__all__ = ["Dispatcher", "Executor", "ExecutorSettings"]

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from .database import Database, events, files, jobs, tasks
from .faults import Faults
from .jedi import Jedi
from .pilot import (
    KILLED_BY_SERVER,
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

_LOG = logging.getLogger(__name__)

_NEXT = (
    sa.select(
        *(jobs.c[name] for name in ("panda_id", "task_id", "file_id", "attempt", "queue", "cores", "ram")),
        files.c.lfn,
        files.c.events,
    )
    .join(files, files.c.file_id == jobs.c.file_id)
    .where(jobs.c.status == "activated")
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

    def __init__(self, database: Database, jedi: Jedi, *, queues: Queues, clock: Callable[[], float]) -> None:
        self._database = database
        self._jedi = jedi
        self._queues = queues
        self._clock = clock

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
                queue = self._queues.get(job["queue"])
                cores = min(job["cores"], slots, queue.cores or slots)
                room = (queue.cores or slots) - busy.get(job["queue"], 0)
                if job["queue"] in blocked:
                    continue
                if cores > min(free, room):
                    blocked.add(job["queue"])
                    if cores > free:
                        break
                    continue
                taken.append(self._start(connection, job, cores))
                busy[job["queue"]] = busy.get(job["queue"], 0) + cores
                free -= cores
                if free <= 0:
                    break
        return taken

    def _cores_by_queue(self, connection: sa.Connection) -> dict[str, int]:
        return {queue: int(cores) for queue, cores in connection.execute(_CORES).all()}

    def _start(self, connection: sa.Connection, job: Any, cores: int) -> PilotJob:
        now = self._clock()
        connection.execute(_STARTS, {"_job": job["panda_id"], "_now": now})
        task = self._jedi.task(connection, job["task_id"])
        assert task is not None
        params = task["params"]
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
            template="".join(str(part.get("value", "")) for part in params.get("jobParameters") or []),
            pseudo_input=job["lfn"].partition(":")[2],
            event_count=job["events"],
            done_events=frozenset(connection.execute(done).scalars()) if job["events"] else frozenset(),
            queue=job["queue"],
            cores=cores,
            # The unit of the task is MBPerCoreFixed.
            memory=_lower(job["ram"] * task["cores"], queue.memory),
            walltime=_lower(int(params.get("maxWalltime") or 0), queue.walltime),
        )

    def report(self, panda_id: int, result: JobResult) -> bool:
        """Report the end of a job; see `Jedi.job_ended`."""
        return self._jedi.job_ended(panda_id, result)

    def report_lost(self, panda_id: int, last_seen: str) -> bool:
        """Report a job whose pilot sends no more heartbeats."""
        return self._jedi.job_ended(panda_id, JobResult("failed", detail=lost_detail(last_seen)))

    def due_kills(self, panda_ids: Collection[int]) -> list[int]:
        """List those of some running jobs whose pilots are now told to kill them."""
        query = sa.select(jobs.c.panda_id).where(jobs.c.status == "running", jobs.c.kill_at <= self._clock())
        with self._database.reading() as connection:
            return [panda_id for panda_id in connection.execute(query).scalars() if panda_id in panda_ids]

    def killer(self, panda_id: int) -> str:
        """Return the user who asked for a job to be killed."""
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


class Executor:
    """Runs PanDA jobs on this machine, each in a thread, and watches their limits."""

    def __init__(
        self, dispatcher: Dispatcher, settings: ExecutorSettings, *, timing: Timing, faults: Faults
    ) -> None:
        self._dispatcher = dispatcher
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

    # -- Dispatch -----------------------------------------------------------

    def _dispatch(self) -> None:
        while not self._stopping.is_set():
            self._changed.wait()
            self._changed.clear()
            try:
                self._take_jobs()
            except Exception:
                _LOG.exception("could not take jobs; trying again in a second")
                self._stopping.wait(1)
                self._changed.set()

    def _take_jobs(self) -> None:
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
            thread.start()

    def _run_job(self, job: PilotJob) -> None:
        try:
            self._run(job)
        except Exception:
            _LOG.exception("job %s could not be run", job.panda_id)
            self._dispatcher.report(job.panda_id, make_result(1, error=SET_UP_FAILED))
        finally:
            with self._lock:
                self._cores_used -= job.cores
                self._running.pop(job.panda_id, None)
            self.wake()

    def _run(self, job: PilotJob) -> None:
        directories = self._settings.directories
        work = directories.work_directory(job.panda_id)
        environment = job_environment(
            job,
            work,
            base=self._settings.environment,
            path=self._settings.path,
            extra=self._settings.extra,
        )
        payload = PayloadRun(job, directories, environment, umask=self._settings.umask)
        with self._lock:
            self._running[job.panda_id] = payload
        payload.prepare()
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
        result = self._result(job, payload, code, event_results)
        if result.status == "failed" and self._timing.failed_attempt > 0:
            self._stopping.wait(self._timing.failed_attempt)
        self._dispatcher.report(job.panda_id, result)
        keep = self._settings.keep_work
        if keep == "never" or (keep == "failed" and result.status == "finished"):
            payload.remove_work()

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
            code = payload.run(command) if forced is None else forced
            if number:
                results.append(EventResult(number, code))
            first_bad = first_bad or code
        return first_bad, tuple(result for result in results if result.number)

    def _result(
        self, job: PilotJob, payload: PayloadRun, code: int, event_results: tuple[EventResult, ...]
    ) -> JobResult:
        directories = self._settings.directories
        detail = payload.figures()
        log_url = directories.log_url(job.panda_id)
        detail["pilotID"] = f"{log_url}|local|{self._settings.version}"
        if payload.error is KILLED_BY_SERVER:
            detail.update(cancelled_detail(self._dispatcher.killer(job.panda_id)))
        result = make_result(code, error=payload.error, events=event_results, detail=detail)
        payload.keep_logs(
            f"job {job.panda_id} of task {job.task_id} ({job.task_name}), attempt {job.attempt}\n"
            f"input {job.pseudo_input}\nqueue {job.queue}\nstatus {result.status}\n"
            f"exit code {code}\npilot error {result.pilot_error_code}"
            f" {result.detail.get('pilotErrorDiag') or ''}\n"
            f"elapsed {payload.elapsed:.2f} s\nmaximum resident memory {detail['maxRSS']} kB\n"
        )
        return result

    def _lose(self, job: PilotJob, payload: PayloadRun) -> None:
        """Report a job as if its worker had vanished with it."""
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        self._stopping.wait(self._timing.heartbeat)
        if not self._stopping.is_set():
            self._dispatcher.report_lost(job.panda_id, when)
            payload.remove_work()

    # -- Watch --------------------------------------------------------------

    def _watch(self) -> None:
        while not self._stopping.wait(_WATCH_PERIOD):
            with self._lock:
                running = {payload.session: payload for payload in self._running.values() if payload.session}
                waiting = dict(self._running)
            if not waiting:
                # Nothing runs: look less often.
                self._stopping.wait(_WATCH_PERIOD)
                continue
            try:
                self._check(running, waiting)
            except Exception:
                _LOG.exception("could not watch the jobs")

    def _check(self, running: Mapping[int, PayloadRun], waiting: Mapping[int, PayloadRun]) -> None:
        for session, use in measure_sessions(running.keys()).items():
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
