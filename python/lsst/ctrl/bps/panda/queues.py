"""What the queues of a site take, as far as its profile or the run's
configuration says it, and which tasks fit none of them.
"""

from __future__ import annotations

__all__ = ["QueueLimits", "find_misfits", "find_unknown_queues", "read_queues"]

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import SettingsError
from .plan.model import TaskPlan


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What a queue takes; 0 means that no limit is known."""

    name: str
    memory: int = 0
    """Memory of a job, MB."""

    cores: int = 0
    """Cores of a job."""

    min_cores: int = 0
    """Cores that a job has at least."""

    walltime: int = 0
    """Longest run of a job, seconds."""

    brokered: bool = True
    """Whether PanDA sends it jobs that do not name it."""

    def misfit(self, task: TaskPlan) -> str:
        """Say what of a task is too much for the queue; empty if nothing."""
        needs = task.resources
        checks = (
            ("requestMemory", needs.memory, self.memory, "MB"),
            ("requestCpus", needs.cores, self.cores, "cores"),
            ("requestWalltime", needs.walltime, self.walltime, "seconds"),
        )
        reasons = [
            f"{key} {wanted} is more than {limit} {unit}"
            for key, wanted, limit, unit in checks
            if 0 < limit < wanted
        ]
        if needs.cores < self.min_cores:
            reasons.append(f"requestCpus {needs.cores} is less than {self.min_cores} cores")
        return " and ".join(reasons)


_KEYS = {
    "maxMemory": "memory",
    "cores": "cores",
    "minCores": "min_cores",
    "maxWalltime": "walltime",
    "brokered": "brokered",
}


def read_queues(section: Any, *, source: str) -> tuple[QueueLimits, ...]:
    """Read a section ``queues``.

    Parameters
    ----------
    section : mapping or `None`
        Limits by the queue's name: ``maxMemory`` (MB), ``cores`` and
        ``minCores`` (most and least), ``maxWalltime`` (seconds), ``brokered``
        (yes or no).
    source : `str`
        Where it is from, for the error.

    Raises
    ------
    SettingsError
        Raised if it is not understood.
    """
    if section is None or section == "":
        return ()
    if not isinstance(section, Mapping):
        raise SettingsError(f"queues is {section!r} ({source}); it must map names of queues to their limits.")
    return tuple(_read_queue(str(name), section[name], source) for name in section)


def _read_queue(name: str, limits: Any, source: str) -> QueueLimits:
    if limits is not None and not isinstance(limits, Mapping):
        raise SettingsError(
            f"queues.{name} is {limits!r} ({source}); it must hold limits: {', '.join(sorted(_KEYS))}."
        )
    values: dict[str, Any] = {}
    for key, value in dict(limits or {}).items():
        if key not in _KEYS:
            raise SettingsError(
                f"queues.{name} holds {key!r} ({source}); known are {', '.join(sorted(_KEYS))}."
            )
        if key != "brokered" and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise SettingsError(f"queues.{name}.{key} is {value!r} ({source}); it must be a whole number.")
        values[_KEYS[key]] = value if key != "brokered" else value not in (False, "no", "false", "off")
    return QueueLimits(name, **values)


def find_misfits(tasks: Iterable[TaskPlan], queues_of: Callable[[str], tuple[QueueLimits, ...]]) -> list[str]:
    """Find labels whose jobs fit no queue.

    Parameters
    ----------
    tasks : iterable of `TaskPlan`
        The tasks of a run.
    queues_of : callable
        Gives the known queues of a site, none if they are not known.

    Returns
    -------
    problems : `list` [`str`]
        One text for all labels with the same problem.
    """
    problems: dict[str, str] = {}
    for task in tasks:
        queues = queues_of(task.placement.site)
        if task.label not in problems and queues and (problem := _misfit(task, queues)):
            problems[task.label] = problem
    labels: dict[str, list[str]] = {}
    for label, problem in problems.items():
        labels.setdefault(problem, []).append(label)
    return [
        f"Label{'s' if len(some) > 1 else ''} {', '.join(some)}: {problem}"
        for problem, some in labels.items()
    ]


def find_unknown_queues(
    tasks: Iterable[TaskPlan], queues_of: Callable[[str], tuple[QueueLimits, ...]]
) -> list[str]:
    """Find queues that are named and that a site is not known to have.

    Parameters
    ----------
    tasks : iterable of `TaskPlan`
        The tasks of a run.
    queues_of : callable
        Gives the known queues of a site, none if they are not known.

    Returns
    -------
    doubts : `list` [`str`]
        One text a queue; it may be a new one, so this is no error.
    """
    labels: dict[tuple[str, str], list[str]] = {}
    for task in tasks:
        where = task.placement
        known = [queue.name for queue in queues_of(where.site)]
        if where.queue and known and where.queue not in known:
            labels.setdefault((where.site, where.queue), []).append(task.label)
    doubts = []
    for (site, name), named_by in labels.items():
        near = difflib.get_close_matches(name, [queue.name for queue in queues_of(site)], n=1)
        meant = f"did you mean {near[0]}?" if near else "jobs for a queue that does not exist never start."
        doubts.append(
            f"Queue {name} (labels {', '.join(dict.fromkeys(named_by))}) is not among those known of {site}; "
            f"{meant}"
        )
    return doubts


_CHANGED = "If that has changed, say so in the YAML: queues: {{{name}: {{maxMemory: {memory}}}}}."


def _misfit(task: TaskPlan, queues: tuple[QueueLimits, ...]) -> str:
    """Say why no queue takes a task; empty if one does."""
    where = task.placement
    if where.queue:
        named = [queue for queue in queues if queue.name == where.queue]
        misfit = named[0].misfit(task) if named else ""
        if not misfit:
            return ""
        hint = _CHANGED.format(name=where.queue, memory=task.resources.memory)
        return f"queue {where.queue} does not take its jobs: {misfit}. {hint}"
    brokered = [queue for queue in queues if queue.brokered]
    misfits = [queue.misfit(task) for queue in brokered]
    if not brokered or not all(misfits):
        return ""
    largest = max(brokered, key=lambda queue: (_takes_cores(queue, task), queue.memory, queue.cores))
    hint = _CHANGED.format(name=largest.name, memory=task.resources.memory)
    return (
        f"no queue of {where.site} takes its jobs; for the largest, {largest.name}, "
        f"{largest.misfit(task)}. {hint}"
    )


def _takes_cores(queue: QueueLimits, task: TaskPlan) -> bool:
    """Whether a queue is for jobs of as many cores."""
    return queue.min_cores <= task.resources.cores <= (queue.cores or task.resources.cores)
