"""iDDS's records made of PanDA's tasks, for a list of runs that asks iDDS for
no more than the requests themselves.

One call to PanDA gives the tasks of many runs with their counts, where iDDS
would be asked for each run with 4 kB a task.
"""

from __future__ import annotations

__all__ = ["request_from_tasks", "tasks_by_request", "transforms_from_tasks"]

import re
from collections.abc import Iterable, Sequence

from .records import FileCounts, RequestRecord, TaskRecord, TransformRecord

# PanDA's task status as iDDS translates it (DomaPanDAWork); others go on.
_STATUSES = {
    "done": "Finished",
    "finished": "SubFinished",
    "failed": "Failed",
    "exhausted": "Failed",
    "broken": "Failed",
    "aborted": "Cancelled",
    "toabort": "Cancelling",
    "aborting": "Cancelling",
    "paused": "Suspended",
}
_RUNNING = frozenset({"running", "scouting", "prepared", "merging"})
_SUFFIX = re.compile(r"_(\d+)_(\d+)$")
_TASK = re.compile(r"_(\d{2,})_.+_\d{2,}$|_build_task$")


def tasks_by_request(tasks: Iterable[TaskRecord]) -> dict[int, tuple[TaskRecord, ...]]:
    """Sort tasks by run.

    Parameters
    ----------
    tasks : `~collections.abc.Iterable` [`TaskRecord`]
        PanDA's tasks, of any runs.

    Returns
    -------
    groups : `dict` [`int`, `tuple` [`TaskRecord`, ...]]
        Tasks by request id; those that belong to none are left out.
    """
    groups: dict[int, list[TaskRecord]] = {}
    for task in tasks:
        if task.request_id:
            groups.setdefault(task.request_id, []).append(task)
    return {request_id: tuple(group) for request_id, group in groups.items()}


def transforms_from_tasks(tasks: Iterable[TaskRecord]) -> tuple[TransformRecord, ...]:
    """Make transforms of the tasks of one run.

    Parameters
    ----------
    tasks : `~collections.abc.Iterable` [`TaskRecord`]
        Tasks whose names end in ``_<request>_<transform>``; others are left
        out.  Of several tasks with one name the first counts, which is the
        one iDDS knows.

    Returns
    -------
    transforms : `tuple` [`TransformRecord`, ...]
        One for each name.
    """
    found: dict[int, TransformRecord] = {}
    for task in sorted(tasks, key=lambda task: task.task_id):
        match = _SUFFIX.search(task.name)
        if match is not None and int(match[2]) not in found:
            found[int(match[2])] = _transform_from(task, int(match[2]), task.name[: match.start()])
    return tuple(found[transform_id] for transform_id in sorted(found))


def _transform_from(task: TaskRecord, transform_id: int, name: str) -> TransformRecord:
    running = task.status in _RUNNING
    rest = max(0, task.total - task.finished - task.failed - task.missing)
    return TransformRecord(
        request_id=task.request_id,
        transform_id=transform_id,
        name=name,
        status=_STATUSES.get(task.status, "Transforming"),
        processing_status="Running" if running else "Submitted",
        workload_id=task.task_id,
        outputs=FileCounts(
            total=task.total,
            processed=task.finished,
            failed=task.failed,
            missing=task.missing,
            new=0 if running else rest,
            activated=rest if running else 0,
        ),
        updated_at=task.modified_at,
    )


def request_from_tasks(tasks: Sequence[TaskRecord]) -> RequestRecord:
    """Make a request of the tasks of one run, where iDDS does not answer.

    Parameters
    ----------
    tasks : `~collections.abc.Sequence` [`TaskRecord`]
        The run's tasks, at least one.

    Returns
    -------
    request : `RequestRecord`
        Its name as far as task names tell; its status is empty, that is, not
        known.
    """
    first = tasks[0]
    name = _TASK.sub("", _SUFFIX.sub("", first.name))
    return RequestRecord(
        request_id=first.request_id,
        name=name,
        status="",
        username=first.username,
        site=first.site,
        created_at=min((task.created_at for task in tasks if task.created_at), default=None),
        updated_at=max((task.modified_at for task in tasks if task.modified_at), default=None),
    )
