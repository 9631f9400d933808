"""PanDA's messages about jobs and tasks: what they change in the counts of a run, and a watch that asks the
servers only now and then.

A message is a JSON object with ``msg_type`` (``job_status`` or
``task_status``), ``taskid``, ``jobid``, ``status``, ``timestamp`` and, of
jobs, ``inputs`` (pandaserver/taskbuffer/db_proxy_mods/base_module.py and
pandajedi's forwarding processor, panda-server 9cc3603).  Messages can be
lost, doubled, late, or about somebody else's run, so they only move jobs
forward from one look at the servers to the next; the looks decide.

Messages may be lost, so the servers are asked once in a while all the same,
and whenever something happened that only they can tell about; they also
decide when the run has ended.  While there is no broker, they are asked as
often as without one.
"""

from __future__ import annotations

__all__ = ["LiveCounts", "MessageSource", "StatusMessage", "follow", "parse_message"]

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from time import monotonic
from time import sleep as sleep_for
from typing import Any, Protocol

from lsst.ctrl.bps.wms_service import WmsStates

from ..errors import PandaBpsError, ReplyError
from ..status.evidence import RunEvidence
from ..status.replies import optional_integer, text_of
from ..status.states import Counts
from ..status.vocabulary import ENDED_TASKS, JOB_STATUSES, JobPhase, is_running
from .progress import LEAST_INTERVAL, Looker, Progress

_JOB = "job_status"
_TASK = "task_status"
# Where a job that moves on is taken from, most likely first.
_BEFORE_DONE = (WmsStates.RUNNING, WmsStates.PENDING, WmsStates.READY, WmsStates.UNREADY)
_BEFORE_RUNNING = (WmsStates.PENDING, WmsStates.READY, WmsStates.UNREADY)


@dataclass(frozen=True, slots=True)
class StatusMessage:
    """A change of the status of a job or a task."""

    task_id: int
    status: str
    job_id: int = 0
    """0 in a message about a task."""

    inputs: int = 0
    """Pseudo-inputs of the job, 0 if the message does not say."""

    moment: int = 0
    """When it happened, seconds since 1970; 0 if the message does not say."""


def parse_message(text: str) -> StatusMessage | None:
    """Read the body of a message.

    Parameters
    ----------
    text : `str`
        The body.

    Returns
    -------
    message : `StatusMessage` or `None`
        `None` if it is about something else, or not understood: whoever may
        write to the broker writes what they like.
    """
    try:
        content = json.loads(text)
        if not isinstance(content, Mapping) or content.get("msg_type") not in (_JOB, _TASK):
            return None
        task_id = optional_integer(content.get("taskid"), "taskid") or 0
        job_id = optional_integer(content.get("jobid"), "jobid") or 0
        moment = optional_integer(content.get("timestamp"), "timestamp") or 0
    except (ValueError, ReplyError):
        return None
    status = text_of(content.get("status"))
    if not task_id or not status or (content["msg_type"] == _JOB) != bool(job_id):
        return None
    return StatusMessage(task_id, status, job_id, _number_of(content.get("inputs")), moment)


def _number_of(inputs: Any) -> int:
    return len(inputs) if isinstance(inputs, list) else 0


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


class LiveCounts:
    """Moves the counts of a run forward by messages."""

    def __init__(self) -> None:
        self._tasks: dict[int, _Task] = {}
        self._foreign: set[int] = set()
        self._open_tasks = False
        self.wants_look = False
        """Whether something happened that only a look at the servers can
        tell about: a job failed, a task ended, a task is new."""

    def rebase(self, evidence: RunEvidence) -> None:
        """Start again from a look at the servers.

        Parameters
        ----------
        evidence : `RunEvidence`
            What the look gave.
        """
        labels = evidence.tally.labels
        self.wants_look = False
        self._open_tasks = evidence.transforms is None
        for item in evidence.transforms or ():
            if not item.workload_id:
                self._open_tasks = True
                continue
            total = item.outputs.total if item.outputs is not None else 0
            counted = item.outputs.processed if item.outputs is not None else 0
            label = labels.get(item.transform_id, "")
            task = self._tasks.setdefault(item.workload_id, _Task(label, total, counted))
            task.total = total
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
            if known is None or not is_running(job.status) or self._has_ended(known, job.panda_id):
                continue
            known.running.add(job.panda_id)

    @staticmethod
    def _has_ended(task: _Task, job_id: int) -> bool:
        return job_id in task.finished or job_id in task.over

    def take(self, message: StatusMessage) -> bool:
        """Take a message.

        Parameters
        ----------
        message : `StatusMessage`
            The message; a repeated one has no effect.

        Returns
        -------
        changed : `bool`
            Whether it changes the counts.
        """
        task = self._tasks.get(message.task_id)
        if task is None:
            # A task that iDDS has made since the last look, or somebody else's.
            if self._open_tasks and message.task_id not in self._foreign:
                self._foreign.add(message.task_id)
                self.wants_look = True
            return False
        if not message.job_id:
            self.wants_look |= message.status in ENDED_TASKS
            return False
        if self._has_ended(task, message.job_id):
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
            self.wants_look = True
            return True
        return False

    def apply(self, progress: Progress) -> Progress:
        """Move the counts of the last look forward.

        Parameters
        ----------
        progress : `Progress`
            That look.

        Returns
        -------
        progress : `Progress`
            With jobs that messages say run or have finished; sums stay.
        """
        labels = {label: dict(counts) for label, counts in progress.labels.items()}
        for label, counts in labels.items():
            tasks = [task for task in self._tasks.values() if task.label == label]
            done = sum(task.done for task in tasks)
            _move(counts, _BEFORE_DONE, WmsStates.SUCCEEDED, done - counts[WmsStates.SUCCEEDED])
            running = sum(len(task.running) for task in tasks)
            _move(counts, _BEFORE_RUNNING, WmsStates.RUNNING, running - counts[WmsStates.RUNNING])
        total: Counts = dict.fromkeys(WmsStates, 0)
        for counts in labels.values():
            for state, number in counts.items():
                total[state] += number
        return replace(progress, labels=labels, total=total)


def _move(counts: Counts, sources: tuple[WmsStates, ...], target: WmsStates, number: int) -> None:
    """Move at most so many jobs from states to another."""
    for source in sources:
        if number <= 0:
            return
        some = min(number, counts[source])
        counts[source] -= some
        counts[target] += some
        number -= some


_SAFETY = 10.0
_DISPLAY = 1.0
_FIRST_RETRY = 5.0
_LONGEST_RETRY = 300.0


class MessageSource(Protocol):
    """Gives messages; `~.broker.Subscription` does."""

    def open(self) -> None:
        """Connect."""

    def read(self, seconds: float) -> list[str]:
        """Wait for messages; all that are there."""

    def close(self) -> None:
        """Leave."""


@dataclass(slots=True)
class _Broker:
    """The broker, which may be away."""

    make: Callable[[], MessageSource]
    name: str
    interval: float
    source: MessageSource | None = None
    failures: int = 0
    retry_at: float = 0.0
    words: str = ""

    def connect(self, now: float) -> bool:
        """Try to subscribe if it is time; tell whether that is new."""
        if self.source is not None or now < self.retry_at:
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


def follow(
    look: Callable[[], RunEvidence],
    subscribe: Callable[[], MessageSource],
    *,
    name: str = "the broker",
    look_closer: Callable[[], RunEvidence] | None = None,
    interval: float = 30.0,
    sleep: Callable[[float], None] = sleep_for,
    clock: Callable[[], float] = monotonic,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Iterator[Progress]:
    """Watch a run until it has ended.

    Parameters
    ----------
    look : `~collections.abc.Callable`
        Asks the servers for the run's state.
    subscribe : `~collections.abc.Callable`
        Makes what gives messages, not yet open.
    name : `str`, optional
        Name of the broker.
    look_closer : `~collections.abc.Callable`, optional
        Asks for errors and for running jobs, too.
    interval : `float`, optional
        Seconds between two looks while there are no messages, at least 5;
        with messages there is one in ten times that, and sooner when a job
        failed or a task ended.
    sleep, clock, now : `~collections.abc.Callable`, optional
        Wait for a number of seconds; give seconds; give the time.

    Yields
    ------
    progress : `Progress`
        One after each look, and one a second at most after messages that
        change something.

    Raises
    ------
    PandaBpsError
        Raised if ten looks in a row failed, or the run is not there.
    """
    watcher = _Follower(
        Looker(look, look_closer, now),
        _Broker(subscribe, name, max(LEAST_INTERVAL, interval)),
        sleep=sleep, clock=clock, now=now,
    )  # fmt: skip
    try:
        yield from watcher.run()
    finally:
        watcher.broker.close()


class _Follower:
    """The state of a watch by messages."""

    def __init__(
        self,
        looker: Looker,
        broker: _Broker,
        *,
        sleep: Callable[[float], None],
        clock: Callable[[], float],
        now: Callable[[], datetime],
    ) -> None:
        self._looker = looker
        self.broker = broker
        self._sleep = sleep
        self._clock = clock
        self._now = now
        self._counts = LiveCounts()
        self._last: Progress | None = None
        self._looked_at = 0.0

    def run(self) -> Iterator[Progress]:
        """Watch."""
        while True:
            # Messages first, so that none is missed between the look and them.
            self.broker.connect(self._clock())
            progress = self._looker.look(closer=self.broker.source is not None)
            self._looked_at = self._clock()
            if progress is not None:
                assert self._looker.evidence is not None
                self._counts.rebase(self._looker.evidence)
                self._last = progress
                yield self._told(progress)
                if progress.ended:
                    return
            yield from self._until_next_look()

    def _told(self, progress: Progress) -> Progress:
        progress = replace(progress, messages=self.broker.words)
        if progress.ended or self.broker.source is None:
            return progress
        return self._looker.with_estimate(self._counts.apply(progress))

    def _until_next_look(self) -> Iterator[Progress]:
        """Take messages until it is time for a look."""
        shown = self._clock()
        changed = False
        words = self.broker.words
        while (rest := self._next_look() - self._clock()) > 0:
            if self.broker.source is None:
                self._sleep(max(0.0, min(rest, self.broker.retry_at - self._clock())))
                if self.broker.connect(self._clock()):
                    return  # What happened meanwhile, no message tells.
            else:
                wait = min(rest, _DISPLAY) if changed else rest
                for body in self.broker.read(wait, self._clock()):
                    message = parse_message(body)
                    changed |= message is not None and self._counts.take(message)
            due = changed and self._clock() - shown >= _DISPLAY
            if self._last is not None and (due or self.broker.words != words):
                shown, changed, words = self._clock(), False, self.broker.words
                yield self._told(replace(self._last, moment=self._now()))

    def _next_look(self) -> float:
        """Tell when to look at the servers again."""
        interval = self.broker.interval
        if self._looker.failures:
            return self._looked_at + self._looker.delay(interval)
        if self.broker.source is None or self._last is None:
            return self._looked_at + interval
        live = self._counts.apply(self._last)
        if self._counts.wants_look or live.done >= live.jobs:
            return self._looked_at + interval
        return self._looked_at + _SAFETY * interval
