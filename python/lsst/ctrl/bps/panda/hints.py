"""One line each on what would make a run go faster or at all, where the plan
shows it.
"""

from __future__ import annotations

__all__ = ["MANY_JOBS", "LARGE_TASK", "find_hints"]

from collections.abc import Iterable

from .plan.model import TaskPlan, WorkflowPlan
from .plan.resources import DEFAULT_WALLTIME

MANY_JOBS = 10_000
"""Jobs of a label from which on the start of each PanDA job matters."""

SHORT_JOB = 1800
"""Wall time up to which a job is short, seconds."""

LARGE_TASK = 100_000
"""Jobs of a task from which on PanDA is slow to start it (technote RTN-041,
on the processing for DP0.2)."""


def find_hints(plan: WorkflowPlan, *, length: int = 0, most: int = 0) -> tuple[str, ...]:
    """List what could be better.

    Parameters
    ----------
    plan : `WorkflowPlan`
        The plan of a run.
    length : `int`, optional
        Length of the request, without what goes in steps before it, bytes.
    most : `int`, optional
        Length that it should not exceed, bytes.

    Returns
    -------
    hints : `tuple` [`str`]
        One line each.
    """
    return (
        *_short_jobs(plan.tasks),
        *_large_tasks(plan.tasks),
        *_final_job(plan),
        *_long_request(plan, length, most),
    )


def _short_jobs(tasks: Iterable[TaskPlan]) -> list[str]:
    jobs: dict[str, int] = {}
    for task in tasks:
        walltime = task.resources.walltime
        if not task.packing.event_service and (walltime <= SHORT_JOB or walltime == DEFAULT_WALLTIME):
            jobs[task.label] = jobs.get(task.label, 0) + len(task.jobs)
    return [
        f"Label {label} has {count} jobs, each a PanDA job of its own. If they take minutes, "
        f"'enableEventService: {label}:20' or clustering (clusterAlgorithm) saves most of their start-up."
        for label, count in jobs.items()
        if count > MANY_JOBS
    ]


def _large_tasks(tasks: Iterable[TaskPlan]) -> list[str]:
    large = {task.label: len(task.jobs) for task in tasks if len(task.jobs) > LARGE_TASK}
    return [
        f"Label {label} has tasks of {count} jobs; PanDA is slow to start tasks of more than {LARGE_TASK}. "
        "Set maxJobsPerTask lower, 10000 for instance."
        for label, count in large.items()
    ]


def _long_request(plan: WorkflowPlan, length: int, most: int) -> list[str]:
    if length <= most:
        return []
    return [
        f"The request has {length} bytes even without the dependencies, which go before it; maxRequestLength "
        f"is {most}. Its {len(plan.tasks)} tasks are the rest: a larger maxJobsPerTask makes fewer."
    ]


def _final_job(plan: WorkflowPlan) -> list[str]:
    lost = [task for task in plan.final if not task.placement.queue]
    if not lost:
        return []
    site = lost[0].placement.site or "SITE"
    return [
        "The final job names no queue. Queues for merging take only jobs that name them: set queue in "
        f"finalJob, {site}_Rubin_Merge for instance, if the site has one."
    ]
