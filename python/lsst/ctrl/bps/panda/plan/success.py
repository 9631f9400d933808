"""A final task that is to run only if all of the run has succeeded.

The final tasks start when every sink is terminated, failed or not.  One that
wants success has the jobs that nobody depends on as parents: if any of these
did not succeed, the server does not run it.
"""

from __future__ import annotations

__all__ = ["want_success"]

from dataclasses import replace

from .model import TaskPlan, WorkflowPlan


def want_success(plan: WorkflowPlan, label: str) -> WorkflowPlan:
    """Let the final jobs of a label depend on the success of the run.

    Parameters
    ----------
    plan : `WorkflowPlan`
        The plan.
    label : `str`
        Label of final jobs.

    Returns
    -------
    plan : `WorkflowPlan`
        The same, with one more dependency for each job that nobody depends
        on.
    """
    has_child = {parent for task in plan.tasks for job in task.jobs for parent in job.parents}
    ends = tuple(
        ordinal
        for task in plan.tasks
        if task.is_sink
        for ordinal in range(task.first, task.first + len(task.jobs))
        if ordinal not in has_child
    )
    final = tuple(_after(task, ends) if task.label == label else task for task in plan.final)
    return replace(plan, final=final)


def _after(task: TaskPlan, ends: tuple[int, ...]) -> TaskPlan:
    """Return a task whose jobs depend on some jobs more."""
    jobs = tuple(job._replace(parents=tuple(sorted({*job.parents, *ends}))) for job in task.jobs)
    return replace(task, jobs=jobs)
