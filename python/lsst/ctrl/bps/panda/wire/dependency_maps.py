"""What each job of a task depends on, as iDDS's works hold it."""

from __future__ import annotations

__all__ = ["DependencyMap", "list_dependencies", "render_dependency_maps"]

import base64
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..plan.model import TaskPlan, WorkflowPlan

_COMPRESSION = 4
"""Level of zlib: level 6 takes a third longer for a tenth less."""

_JOBS_PER_PIECE = 2000
"""Jobs whose dependencies are compressed at a time."""


@dataclass(frozen=True, slots=True)
class DependencyMap:
    """What the jobs of a task depend on, as a work holds it."""

    text: str
    """Compressed as ``idds.common.dict_class.DictClass.zip_data`` does it:
    zlib, base64 and a mark in front."""

    tasks: tuple[str, ...]
    """Names of the tasks that the jobs depend on."""

    edges: int


def render_dependency_maps(plan: WorkflowPlan) -> dict[str, DependencyMap]:
    """Render each task's map of dependencies.

    Parameters
    ----------
    plan : `WorkflowPlan`
        The plan.

    Returns
    -------
    maps : `dict` [`str`, `DependencyMap`]
        By name of the task.  An event service task is left out: iDDS works
        out its files when the map is set.
    """
    tasks = [*plan.tasks, *plan.final]
    ends = [f'{task.name}","inputname":"{job.pseudo_input}' for task in tasks for job in task.jobs]
    owners = [task.name for task in tasks for _ in task.jobs]
    return {task.name: _pack(task, ends, owners) for task in tasks if not task.packing.event_service}


def _pack(task: TaskPlan, ends: Sequence[str], owners: Sequence[str]) -> DependencyMap:
    """Compress the map of one task piece by piece.

    Parameters
    ----------
    task : `TaskPlan`
        The task.
    ends : sequence of `str`
        Each job of the run as the end of an edge.
    owners : sequence of `str`
        Name of each job's task.
    """
    compressor = zlib.compressobj(_COMPRESSION)
    packed = bytearray(compressor.compress(b"["))
    parent_tasks: dict[str, int] = {}
    edges = 0
    for start in range(0, len(task.jobs), _JOBS_PER_PIECE):
        lines = []
        for job in task.jobs[start : start + _JOBS_PER_PIECE]:
            if not job.parents:
                lines.append(f'{{"name":"{job.pseudo_input}","dependencies":[]}}')
                continue
            parents = job.parents
            edges += len(parents)
            # Parents are sorted, and the jobs of a task follow each other.
            if owners[parents[0]] == owners[parents[-1]]:
                parent_tasks.setdefault(owners[parents[0]], parents[0])
            else:
                for parent in parents:
                    parent_tasks.setdefault(owners[parent], parent)
            listed = '"},{"task":"'.join([ends[parent] for parent in parents])
            lines.append(f'{{"name":"{job.pseudo_input}","dependencies":[{{"task":"{listed}"}}]}}')
        comma = "," if start else ""
        packed += compressor.compress((comma + ",".join(lines)).encode())
    packed += compressor.compress(b"]") + compressor.flush()
    text = "idds_zip:" + base64.b64encode(packed).decode("ascii")
    return DependencyMap(text, tuple(sorted(parent_tasks, key=parent_tasks.__getitem__)), edges)


def list_dependencies(task: TaskPlan, plan: WorkflowPlan) -> list[dict[str, Any]]:
    """Return the map of one task as objects.

    Parameters
    ----------
    task : `TaskPlan`
        The task.
    plan : `WorkflowPlan`
        Where its jobs' parents are.
    """
    tasks = [*plan.tasks, *plan.final]
    firsts = [other.first for other in tasks]

    def end(parent: int) -> dict[str, str]:
        owner = tasks[bisect_right(firsts, parent) - 1]
        return {"task": owner.name, "inputname": owner.jobs[parent - owner.first].pseudo_input}

    return [
        {"name": job.pseudo_input, "order_id": job.order_id, "dependencies": list(map(end, job.parents))}
        for job in task.jobs
    ]
