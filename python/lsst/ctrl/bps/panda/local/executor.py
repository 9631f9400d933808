"""The executor: takes jobs that are ready, runs each as a local process group
with a limit on the cores in use, watches memory and run time, and reports.
It does the part of the batch system and of the pilots.
"""

from __future__ import annotations

__all__ = ["Executor", "ExecutorSettings"]

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .faults import Faults
from .job_desk import JobDesk
from .orders import JobOrder, payload_commands
from .outcomes import (
    KILLED_BY_SERVER,
    OUT_OF_MEMORY,
    OUT_OF_TIME,
    SET_UP_FAILED,
    EventOutcome,
    Outcome,
    PilotError,
    cancelled_detail,
    outcome_of,
)
from .pace import Pace
from .payload import JobPlaces, Payload, job_environment
from .processes import measure_sessions

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
