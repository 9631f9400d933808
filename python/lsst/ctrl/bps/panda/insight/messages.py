"""PanDA's messages about jobs and tasks: what they say, and what they change
in the counts of a run.

A message is a JSON object with ``msg_type`` (``job_status`` or
``task_status``), ``taskid``, ``jobid``, ``status``, ``timestamp`` and, of
jobs, ``inputs`` (pandaserver/taskbuffer/db_proxy_mods/base_module.py and
pandajedi's forwarding processor, panda-server 9cc3603).  Messages can be
lost, doubled, late, or about somebody else's run, so they only move jobs
forward from one look at the servers to the next; the looks decide.
"""

from __future__ import annotations

__all__ = ["LiveCounts", "StatusMessage", "parse_message"]

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lsst.ctrl.bps.wms_service import WmsStates

from ..errors import ReplyError
from ..wire.fields import optional_integer, text_of
from ..wire.states import Counts
from ..wire.tally import RunEvidence, tally_run
from .progress import Progress

_JOB = "job_status"
_TASK = "task_status"
_RUNNING = frozenset({"running"})
_FINISHED = frozenset({"finished"})
_FAILED = frozenset({"failed", "cancelled", "closed"})
_TASK_ENDED = frozenset({"done", "finished", "failed", "exhausted", "aborted", "broken"})
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
        labels = tally_run(evidence).labels
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
            if known is None or job.status not in _RUNNING or self._has_ended(known, job.panda_id):
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
            self.wants_look |= message.status in _TASK_ENDED
            return False
        if self._has_ended(task, message.job_id):
            return False
        if message.status in _RUNNING:
            before = len(task.running)
            task.running.add(message.job_id)
            return len(task.running) != before
        return self._end(task, message)

    def _end(self, task: _Task, message: StatusMessage) -> bool:
        if message.status in _FINISHED:
            task.running.discard(message.job_id)
            task.finished[message.job_id] = max(1, message.inputs)
            return True
        if message.status in _FAILED:
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
