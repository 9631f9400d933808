"""How far a run is: a snapshot, the rate, an estimate of the end, and a watch until the run has ended.

A watch asks the servers again and again.  Where there is a message broker it listens to PanDA's messages as
well.  They can be lost, doubled, late, or about somebody else's run, so they only move jobs forward from one
poll at the servers to the next: the servers are asked once in a while all the same, and whenever something
happened that only they can tell about; they also decide when the run has ended.  While there is no broker,
they are asked as often as without one.
"""

from __future__ import annotations

__all__ = [
    "LEAST_INTERVAL",
    "Estimate",
    "LiveCounts",
    "Progress",
    "describe_first_failure",
    "error_lines",
    "make_progress",
    "watch",
]

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from time import monotonic
from time import sleep as sleep_for

from lsst.ctrl.bps.wms_service import WmsStates

from ..errors import PandaBpsError, RunNotFoundError
from ..report import get_status_of
from ..runs.client import Connection
from ..runs.jobs import RunJobs
from ..status.bps_states import BEFORE_RUNNING, ENDED_STATES, Counts, move_jobs, sum_counts
from ..status.evidence import RunEvidence
from ..status.failures import group_errors
from ..status.records import FileCounts
from ..status.vocabulary import ENDED_TASKS, JOB_STATUSES, JobPhase, is_running
from .logs import LogTransport, TailReader, find_first_attempts
from .messages import StatusMessage, Subscription, parse_message

_LOG = logging.getLogger(__name__)

LEAST_INTERVAL = 5.0
"""Seconds between two polls at a run, at least; a real PanDA's figures change every minute."""

_HISTORY = 60
_ERRORS = 5
_SLOWEST = 8.0
_PATIENCE = 10
_REST = 4.0
"""Between two polls is at least this multiple of what the last one took."""

_SAFETY = 10.0
_DISPLAY = 1.0
_FIRST_RETRY = 5.0
_LONGEST_RETRY = 300.0


@dataclass(frozen=True, slots=True)
class Progress:
    """A run at one moment."""

    moment: datetime
    request_id: int
    name: str
    state: WmsStates
    ended: bool
    """Whether the run is over; then nothing of it changes any more."""

    labels: dict[str, Counts]
    """Jobs by state, for each label in pipeline order."""

    total: Counts
    rate: float | None = None
    """Jobs a minute that ended, over the last polls; `None` before the second poll."""

    end: datetime | None = None
    """When it will be over if it goes on like this."""

    errors: tuple[str, ...] = ()
    """Most frequent errors, a line each."""

    first_failure: str = ""
    """Which job failed first, and its exception."""

    begun: datetime | None = None
    """When the run was submitted."""

    over: datetime | None = None
    """When it last changed, once it has ended."""

    next_query: datetime | None = None
    """When the servers are asked again; `None` when it has ended."""

    note: str = ""
    """What is out of the ordinary."""

    messages: str = ""
    """How PanDA's messages are followed; empty if no broker is known."""

    @property
    def jobs(self) -> int:
        """Number of jobs."""
        return sum(self.total.values())

    @property
    def done(self) -> int:
        """Jobs that ended, in whatever way."""
        return sum(self.total[state] for state in ENDED_STATES)


def make_progress(evidence: RunEvidence, moment: datetime) -> Progress:
    """Make a snapshot of a run at a moment."""
    state, note = get_status_of(evidence)
    return Progress(
        moment=moment,
        request_id=evidence.request_id,
        name=evidence.name,
        state=state,
        ended=evidence.ended,
        labels=evidence.tally.by_label,
        total=evidence.tally.total,
        note=note,
        begun=evidence.request.created_at,
        over=(evidence.request.updated_at or moment) if evidence.ended else None,
    )


def describe_first_failure(connection: Connection, evidence: RunEvidence) -> str:
    """Say which job failed first, and why: the exception of its first attempt, or PanDA's error."""
    if not evidence.failures:
        return ""
    first = min(evidence.failures, key=lambda job: (not job.panda_id, job.panda_id))
    (job,) = RunJobs(evidence).identify(find_first_attempts(connection, [first]))
    why = TailReader(LogTransport(connection), count=0)(job).exception
    if not why and job.error is not None:
        why = f"{job.error.title}{': ' if job.error.text else ''}{job.error.text}"
    number = f", PanDA job {job.panda_id}" if job.panda_id else ""
    return f"{job.label} {job.title}{number}: {why or 'no reason is known'}"


def error_lines(evidence: RunEvidence) -> list[str]:
    """Write the most frequent errors of a run, a line each."""
    lines = []
    for group in group_errors(evidence, by_label=False)[:_ERRORS]:
        text = f": {group.text}" if group.text else ""
        lines.append(f"{group.attempts} x {group.error.title} in {group.label}{text}")
    return lines


class Estimate:
    """How fast a run goes, and when it will be over, from its last snapshots."""

    def __init__(self) -> None:
        self._history: deque[tuple[datetime, int]] = deque(maxlen=_HISTORY)

    def add(self, progress: Progress) -> Progress:
        """Return a snapshot with rate and end, from the oldest one that is remembered."""
        history = self._history
        near = bool(history) and (progress.moment - history[-1][0]).total_seconds() < LEAST_INTERVAL
        if not near or progress.ended:
            history.append((progress.moment, progress.done))
        (first, before), last, after = history[0], progress.moment, progress.done
        minutes = (last - first).total_seconds() / 60
        if minutes <= 0:
            return progress
        rate = max(0.0, (after - before) / minutes)
        left = progress.jobs - progress.done
        end = last + timedelta(minutes=left / rate) if rate > 0 and left > 0 and not progress.ended else None
        return replace(progress, rate=rate, end=end)


class RunPoller:
    """Fetches the state of a run again and again, tolerates failures, and keeps rate and errors.

    It fetches details only when the number of failed jobs has changed.
    """

    def __init__(
        self,
        fetch: Callable[[], RunEvidence],
        fetch_details: Callable[[], RunEvidence] | None,
        now: Callable[[], datetime],
        find_failure: Callable[[RunEvidence], str] | None = None,
    ) -> None:
        self._fetch = fetch
        self._fetch_details = fetch_details
        self._find_failure = find_failure
        self._now = now
        self.estimate = Estimate()
        self._errors: tuple[str, ...] = ()
        self._first_failure = ""
        self._failed = 0
        self.failures = 0
        """Polls in a row that failed."""

        self.evidence: RunEvidence | None = None
        """What the last poll gave."""

        self.cost = 0.0
        """Seconds that the last poll took."""

    def poll(self, *, details: bool = False) -> Progress | None:
        """Fetch the state of the run; `None` if the servers did not answer this time.

        With ``details`` it fetches all that is known at once, for a state that messages are added to.  The
        tenth failure in a row is raised, and so is that there is no such run.
        """
        begun_at = self._now()
        try:
            asks = self._fetch_details if details and self._fetch_details is not None else self._fetch
            self.evidence = asks()
            progress = make_progress(self.evidence, self._now())
            failed = progress.total[WmsStates.FAILED]
            if self._fetch_details is not None and failed != self._failed:
                evidence = self.evidence if details else self._fetch_details()
                self._errors = tuple(error_lines(evidence))
                if self._find_failure is not None and not self._first_failure:
                    self._first_failure = self._find_failure(evidence)
                self._failed = failed
        except RunNotFoundError:
            raise
        except PandaBpsError as error:
            self.failures += 1
            if self.failures >= _PATIENCE:
                raise
            _LOG.warning("The run could not be looked at; looking again: %s", error)
            return None
        self.failures = 0
        self.cost = (self._now() - begun_at).total_seconds()
        progress = replace(progress, errors=self._errors, first_failure=self._first_failure)
        return self.estimate.add(progress)

    def delay(self, interval: float) -> float:
        """Return the seconds to the next poll: more after failed ones."""
        return min(interval * 2.0**self.failures, interval * _SLOWEST)


@dataclass(slots=True)
class _Task:
    """What messages say of a task."""

    label: str
    total: int
    counted: int
    """Finished jobs when messages began to be taken."""

    finished: dict[int, int] = field(default_factory=dict)
    """PanDA jobs that finished since then, and how many inputs each has."""

    running: set[int] = field(default_factory=set)
    over: set[int] = field(default_factory=set)
    """PanDA jobs that ended without success."""

    @property
    def done(self) -> int:
        """Finished jobs, as messages have it."""
        return min(self.total, self.counted + sum(self.finished.values()))

    def has_ended(self, job_id: int) -> bool:
        """Whether messages say that a job is over."""
        return job_id in self.finished or job_id in self.over


class LiveCounts:
    """Moves the counts of a run forward by messages."""

    def __init__(self) -> None:
        self._tasks: dict[int, _Task] = {}
        self._foreign: set[int] = set()
        self._open_tasks = False
        self.needs_poll = False
        """Whether something happened that only a poll of the servers can
        tell about: a job failed, a task ended, a task is new."""

    def rebase(self, evidence: RunEvidence) -> None:
        """Start again from a poll of the servers."""
        labels = evidence.tally.labels
        self.needs_poll = False
        self._open_tasks = evidence.transforms is None
        for item in evidence.transforms or ():
            if not item.workload_id:
                self._open_tasks = True
                continue
            outputs = item.outputs or FileCounts()
            label = labels.get(item.transform_id, "")
            task = self._tasks.setdefault(item.workload_id, _Task(label, outputs.total, outputs.processed))
            task.total = outputs.total
        if len(evidence.transforms or ()) < evidence.planned_tasks:
            self._open_tasks = True
        self._foreign -= set(self._tasks)
        if evidence.jobs is not None:
            self._know_running(evidence)

    def _know_running(self, evidence: RunEvidence) -> None:
        """Take PanDA's word for which jobs run, where it was asked."""
        for task in self._tasks.values():
            task.running.clear()
        for job in evidence.jobs or ():
            known = self._tasks.get(job.task_id)
            if known is not None and is_running(job.status) and not known.has_ended(job.panda_id):
                known.running.add(job.panda_id)

    def take(self, message: StatusMessage) -> bool:
        """Take a message, and tell whether it changes the counts; a repeated one does not."""
        task = self._tasks.get(message.task_id)
        if task is None:
            # A task that iDDS has made since the last poll, or somebody else's.
            if self._open_tasks and message.task_id not in self._foreign:
                self._foreign.add(message.task_id)
                self.needs_poll = True
            return False
        if not message.job_id:
            self.needs_poll |= message.status in ENDED_TASKS
            return False
        if task.has_ended(message.job_id):
            return False
        if is_running(message.status):
            before = len(task.running)
            task.running.add(message.job_id)
            return len(task.running) != before
        return self._end(task, message)

    def _end(self, task: _Task, message: StatusMessage) -> bool:
        phase = JOB_STATUSES.get(message.status)
        if phase is JobPhase.FINISHED:
            task.running.discard(message.job_id)
            task.finished[message.job_id] = max(1, message.inputs)
            return True
        if phase in (JobPhase.FAILED, JobPhase.KILLED):
            task.running.discard(message.job_id)
            task.over.add(message.job_id)
            # Whether there is another attempt, PanDA decides.
            self.needs_poll = True
            return True
        return False

    def apply(self, progress: Progress) -> Progress:
        """Move the counts of the last poll forward by jobs that messages call running or finished."""
        labels = {label: dict(counts) for label, counts in progress.labels.items()}
        for label, counts in labels.items():
            tasks = [task for task in self._tasks.values() if task.label == label]
            done = sum(task.done for task in tasks)
            more = done - counts[WmsStates.SUCCEEDED]
            move_jobs(counts, more, WmsStates.SUCCEEDED, WmsStates.RUNNING, *BEFORE_RUNNING)
            running = sum(len(task.running) for task in tasks)
            more = running - counts[WmsStates.RUNNING]
            move_jobs(counts, more, WmsStates.RUNNING, *BEFORE_RUNNING)
        return replace(progress, labels=labels, total=sum_counts(labels.values()))


@dataclass(slots=True)
class _Broker:
    """The broker, which may be away, or not known at all."""

    make: Callable[[], Subscription] | None
    name: str
    interval: float
    source: Subscription | None = None
    failures: int = 0
    retry_at: float = 0.0
    words: str = ""

    def connect(self, now: float) -> bool:
        """Try to subscribe if it is time, and tell whether that is new."""
        if self.make is None or self.source is not None or now < self.retry_at:
            return False
        source = self.make()
        try:
            source.open()
        except PandaBpsError as error:
            self._lost(error, now)
            return False
        self.source, self.failures = source, 0
        self.words = f"following PanDA's messages from {self.name}"
        return True

    def read(self, seconds: float, now: float) -> list[str]:
        """Wait for messages; nothing if the broker went away."""
        assert self.source is not None
        try:
            return self.source.read(seconds)
        except PandaBpsError as error:
            self.close()
            self._lost(error, now)
            return []

    def close(self) -> None:
        """Leave the broker."""
        source, self.source = self.source, None
        if source is not None:
            source.close()

    def _lost(self, error: PandaBpsError, now: float) -> None:
        text = str(getattr(error, "message", error)).rstrip(".")
        self.words = f"{text}; asking the servers every {self.interval:.0f} s instead"
        self.retry_at = now + min(_LONGEST_RETRY, _FIRST_RETRY * 2.0**self.failures)
        self.failures += 1


def watch(
    fetch: Callable[[], RunEvidence],
    fetch_details: Callable[[], RunEvidence] | None = None,
    *,
    find_failure: Callable[[RunEvidence], str] | None = None,
    subscribe: Callable[[], Subscription] | None = None,
    name: str = "the broker",
    interval: float = 30.0,
    least: float = LEAST_INTERVAL,
    sleep: Callable[[float], None] = sleep_for,
    clock: Callable[[], float] = monotonic,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Iterator[Progress]:
    """Watch a run until it has ended: a progress after each poll, the last one with ``ended`` set.

    ``fetch`` asks the servers for the run's state, ``fetch_details`` for errors and for running jobs, too;
    it is called when the number of failed jobs has changed, and for a state that messages are added to.
    ``find_failure`` says of such a reply which job failed first, until it has said something.
    Between two polls are ``interval`` seconds, at least ``least``, more after a failed poll.

    With ``subscribe`` PanDA's messages are followed: there is a progress, one a second at most, after those
    that change something, and a poll in ten times the interval, or sooner when a job failed or a task ended.
    """
    interval = max(least, interval)
    watcher = _Watcher(
        RunPoller(fetch, fetch_details, now, find_failure),
        _Broker(subscribe, name, interval, retry_at=math.inf if subscribe is None else 0.0),
        sleep=sleep,
        clock=clock,
        now=now,
    )
    try:
        yield from watcher.run()
    finally:
        watcher.broker.close()


@dataclass(slots=True)
class _Watcher:
    """The state of a watch."""

    poller: RunPoller
    broker: _Broker
    sleep: Callable[[float], None]
    clock: Callable[[], float]
    now: Callable[[], datetime]
    counts: LiveCounts = field(default_factory=LiveCounts)
    last: Progress | None = None
    looked_at: float = 0.0

    def run(self) -> Iterator[Progress]:
        """Watch."""
        while True:
            # Messages first, so that none is missed between the poll and them.
            self.broker.connect(self.clock())
            progress = self.poller.poll(details=self.broker.source is not None)
            self.looked_at = self.clock()
            if progress is not None:
                assert self.poller.evidence is not None
                self.counts.rebase(self.poller.evidence)
                self.last = progress
                yield self._told(progress)
                if progress.ended:
                    return
            yield from self._until_next_look()

    def _told(self, progress: Progress) -> Progress:
        progress = replace(progress, messages=self.broker.words)
        if progress.ended:
            return progress
        rest = timedelta(seconds=self._next_look() - self.clock())
        progress = replace(progress, next_query=self.now() + rest)
        if self.broker.source is None:
            return progress
        return self.poller.estimate.add(self.counts.apply(progress))

    def _until_next_look(self) -> Iterator[Progress]:
        """Take messages until it is time for a poll."""
        shown = self.clock()
        changed = False
        words = self.broker.words
        while (rest := self._next_look() - self.clock()) > 0:
            if self.broker.source is None:
                self.sleep(max(0.0, min(rest, self.broker.retry_at - self.clock())))
                if self.broker.connect(self.clock()):
                    return  # What happened meanwhile, no message tells.
            else:
                wait = min(rest, _DISPLAY) if changed else rest
                for body in self.broker.read(wait, self.clock()):
                    message = parse_message(body)
                    changed |= message is not None and self.counts.take(message)
            due = changed and self.clock() - shown >= _DISPLAY
            if self.last is not None and (due or self.broker.words != words):
                shown, changed, words = self.clock(), False, self.broker.words
                yield self._told(replace(self.last, moment=self.now()))

    def _next_look(self) -> float:
        """Return the time of the next poll of the servers."""
        # Whoever looks must not slow down what is looked at.
        interval = max(self.broker.interval, _REST * self.poller.cost)
        if self.poller.failures:
            return self.looked_at + self.poller.delay(interval)
        if self.broker.source is None or self.last is None:
            return self.looked_at + interval
        live = self.counts.apply(self.last)
        if self.counts.needs_poll or live.done >= live.jobs:
            return self.looked_at + interval
        return self.looked_at + _SAFETY * interval
