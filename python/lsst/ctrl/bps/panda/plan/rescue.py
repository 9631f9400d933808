"""The plan of what is left of a run: the jobs that are not done, and the final
job after them.

iDDS's own retry leaves pruned jobs behind on a real PanDA, does nothing after
an abort and never runs the final job again; a new request for the rest always
works.
"""

from __future__ import annotations

__all__ = ["make_rescue_plan", "rescue_name"]

import re
from collections.abc import Collection
from dataclasses import replace

from ..edgenode import cmd_line_decoder as runner
from .model import ConditionPlan, JobPlan, Packing, TaskPlan, WorkflowPlan
from .naming import task_name


def rescue_name(name: str, number: int) -> str:
    """Return the name of a run that completes another.

    Parameters
    ----------
    name : `str`
        Name of the other, which may itself complete one.
    number : `int`
        How many times there was a restart so far, from 1.
    """
    return f"{re.sub(r'_r[0-9]+$', '', name)}_r{number}"


def make_rescue_plan(plan: WorkflowPlan, done: Collection[int], *, name: str, origin: int) -> WorkflowPlan:
    """Make the plan of what is left.

    Parameters
    ----------
    plan : `WorkflowPlan`
        The plan of the run.
    done : collection of `int`
        Ordinals of the jobs that succeeded.
    name : `str`
        Name of the new run.
    origin : `int`
        Request id of the run.

    Returns
    -------
    rescue : `WorkflowPlan`
        Tasks with the jobs left, without dependencies on what is done, and
        all of the final tasks.  Commands, names of jobs and files are the
        same, since they refer to what is staged.
    """
    done = frozenset(done)
    old = plan.run.name
    numbers: dict[int, int] = {}
    for task in (*plan.tasks, *plan.final):
        is_final = task in plan.final
        for ordinal in range(task.first, task.first + len(task.jobs)):
            if is_final or ordinal not in done:
                numbers[ordinal] = len(numbers)
    has_child = {
        parent
        for task in plan.tasks
        for ordinal, job in enumerate(task.jobs, task.first)
        if ordinal in numbers
        for parent in job.parents
    }
    renamed: dict[str, str] = {}
    tasks: list[TaskPlan] = []
    final: list[TaskPlan] = []
    for task in (*plan.tasks, *plan.final):
        rest = _rest_of(task, numbers, has_child)
        if rest is None:
            continue
        number = len(renamed) + 1
        renamed[task.name] = task_name(name, number, task.label, task.chunk)
        rest = replace(rest, name=renamed[task.name], command=_with_run(task.command, old, name))
        (final if task in plan.final else tasks).append(rest)
    return replace(
        plan,
        run=replace(plan.run, name=name, origin=origin),
        tasks=tuple(tasks),
        final=tuple(final),
        conditions=_conditions(plan, renamed),
        labels=_labels(plan, [*tasks, *final]),
        warnings=(),
    )


def _rest_of(task: TaskPlan, numbers: dict[int, int], has_child: set[int]) -> TaskPlan | None:
    """Return a task with the jobs that are left of it."""
    jobs: list[JobPlan] = []
    first = -1
    is_sink = False
    for ordinal, job in enumerate(task.jobs, task.first):
        number = numbers.get(ordinal)
        if number is None:
            continue
        first = number if first < 0 else first
        is_sink = is_sink or ordinal not in has_child
        parents = tuple(numbers[parent] for parent in job.parents if parent in numbers)
        jobs.append(job._replace(parents=parents))
    if not jobs:
        return None
    contiguous = jobs[-1].order_id - jobs[0].order_id == len(jobs) - 1
    # iDDS packs wrongly what is not contiguous, so such jobs run singly.
    packing = task.packing if contiguous else Packing()
    return replace(task, first=first, jobs=tuple(jobs), is_sink=is_sink, packing=packing)


def _with_run(command: str, old: str, new: str) -> str:
    """Let the runner know the name of the new run."""
    return command.replace(f"--run={runner.quote(old)}", f"--run={runner.quote(new)}")


def _conditions(plan: WorkflowPlan, renamed: dict[str, str]) -> tuple[ConditionPlan, ...]:
    """Return the conditions among the tasks that are left."""
    conditions = []
    for condition in plan.conditions:
        waits = tuple(renamed[name] for name in condition.waits_for if name in renamed)
        starts = tuple(renamed[name] for name in condition.starts if name in renamed)
        if waits and starts:
            conditions.append(ConditionPlan(waits, starts))
    return tuple(conditions)


def _labels(plan: WorkflowPlan, tasks: list[TaskPlan]) -> tuple[tuple[str, int], ...]:
    """Count the jobs that are left by label."""
    counts = {label: 0 for label, _ in plan.labels}
    for task in tasks:
        counts[task.label] += len(task.jobs)
    return tuple((label, count) for label, count in counts.items() if count)
