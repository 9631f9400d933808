"""Make the plan of a run from its generic workflow, and the plan of what is left of a run.

`make_plan` is the second table of contents: flatten, group, number, split
values, name, commands, tasks, conditions, files.

The final tasks start when every sink is terminated, failed or not.  One that
wants success has the jobs that nobody depends on as parents: if any of these
did not succeed, the server does not run it.

iDDS's own retry leaves pruned jobs behind on a real PanDA, does nothing after
an abort and never runs the final job again; a new request for the rest always
works.
"""

from __future__ import annotations

__all__ = ["make_plan", "make_rescue_plan", "rescue_name", "task_of", "want_success"]

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from lsst.ctrl.bps import GenericWorkflow, GenericWorkflowJob

from ..edgenode import cmd_line_decoder as runner
from ..errors import PlanError
from .commands import FileLedger, TaskCommands
from .graph import JobGraph, flatten, without_collection
from .grouping import group_jobs, number_jobs, open_circles
from .labels import PlanSettings
from .model import ConditionPlan, JobPlan, Packing, TaskPlan, WorkflowPlan
from .naming import NamedJobs, Naming, make_naming, task_name
from .resources import NotHonoured
from .tasks import Part, TaskMaker, split_values

MANY_CONDITIONS = 100
"""Number of groups behind conditions from which a run takes hours for its
borders alone."""

BORDER_MINUTES = 1.5
"""From the end of a group to the start of the next, minutes: JEDI finalises
tasks once a minute, 45 to 120 s after their last job."""

MANY_JOBS_PER_TASK = 100_000


def make_plan(workflow: GenericWorkflow, settings: PlanSettings) -> WorkflowPlan:
    """Make the plan of a run.

    Parameters
    ----------
    workflow : `~lsst.ctrl.bps.GenericWorkflow`
        What BPS made.
    settings : `PlanSettings`
        All settings that matter to the plan.

    Returns
    -------
    plan : `WorkflowPlan`
        The same for the same input, whatever the order in which the workflow
        was built.

    Raises
    ------
    PlanError
        Raised if the workflow cannot be run as it is.
    """
    with without_collection():
        return _make_plan(workflow, settings)


def _make_plan(workflow: GenericWorkflow, settings: PlanSettings) -> WorkflowPlan:
    """Make the plan of a run."""
    graph = flatten(workflow, max_direct_edges=settings.max_direct_edges)
    final_graph = _final_graph(workflow, settings)
    if not graph.jobs:
        raise PlanError(f"Workflow {workflow.name!r} has no jobs to run.")
    event_service = any(settings.of(label).payloads_per_job > 1 for label in graph.labels)
    naming = make_naming(settings, event_service=event_service)
    commands = TaskCommands(settings, naming, FileLedger(settings.directories))
    families = open_circles(graph, group_jobs(graph))
    final_families = open_circles(final_graph, group_jobs(final_graph))
    numbering = number_jobs(graph, families, 0)
    final_numbering = number_jobs(final_graph, final_families, len(graph.jobs))
    parts = [split_values(graph, family, settings, commands) for family in families]
    final_parts = [split_values(final_graph, family, settings, commands) for family in final_families]
    named = _name_jobs([(graph, parts), (final_graph, final_parts)], naming)
    maker = TaskMaker(settings, commands, named)
    tasks = maker.make(graph, parts, numbering, final=False)
    final = maker.make(final_graph, final_parts, final_numbering, final=True)
    conditions = (*_conditions(tasks, maker.gates), *_conditions(final, maker.gates))
    return WorkflowPlan(
        run=settings.run,
        tasks=tasks,
        conditions=conditions,
        final=final,
        files=commands.files(),
        shards=tuple(naming.files(list(named.values()))),
        labels=_label_counts([graph, final_graph]),
        warnings=tuple(_warnings([*graph.jobs, *final_graph.jobs], tasks, conditions)),
    )


def _final_graph(workflow: GenericWorkflow, settings: PlanSettings) -> JobGraph:
    """Return the graph of the final job or workflow; empty without one."""
    final = workflow.get_final()
    if final is None:
        return JobGraph()
    if isinstance(final, GenericWorkflow):
        return flatten(final, max_direct_edges=settings.max_direct_edges)
    if not isinstance(final, GenericWorkflowJob):
        raise PlanError(
            f"The final job of workflow {workflow.name!r} is a {type(final).__name__}; "
            "it must be a GenericWorkflowJob or a GenericWorkflow."
        )
    graph = JobGraph()
    graph.add(final, workflow)
    graph.complete()
    return graph


def _name_jobs(graphs: Sequence[tuple[JobGraph, list[Part]]], naming: Naming) -> dict[str, NamedJobs]:
    """Give each job its order id and its pseudo-input."""
    named: dict[str, NamedJobs] = {}
    by_label: dict[str, list[Part]] = {}
    for graph, parts in graphs:
        for part in parts:
            label = part.family.label
            jobs = named.setdefault(label, NamedJobs(label))
            part.first_order_id = len(jobs.names)
            jobs.extend([graph.names[index] for index in part.family.members], part.names, part.rows)
            by_label.setdefault(label, []).append(part)
    for label, jobs in named.items():
        pseudo_inputs = naming.pseudo_inputs(jobs)
        for part in by_label[label]:
            end = part.first_order_id + len(part.family.members)
            part.pseudo_inputs = pseudo_inputs[part.first_order_id : end]
    return named


def _conditions(
    tasks: tuple[TaskPlan, ...], gates: Mapping[str, frozenset[str]]
) -> tuple[ConditionPlan, ...]:
    """Return the conditions behind non-blocking groups."""
    starts: dict[frozenset[str], list[str]] = {}
    for task in tasks:
        if task.name in gates:
            starts.setdefault(gates[task.name], []).append(task.name)
    conditions = []
    for groups, names in starts.items():
        waits = tuple(task.name for task in tasks if _is_within(task.group, groups))
        conditions.append(ConditionPlan(waits, tuple(names)))
    return tuple(sorted(conditions, key=lambda c: c.starts))


def _is_within(path: str, groups: Iterable[str]) -> bool:
    """Whether a group is one of some groups or inside of one."""
    return any(path == group or path.startswith(f"{group}/") for group in groups)


def _label_counts(graphs: Sequence[JobGraph]) -> tuple[tuple[str, int], ...]:
    """Return the labels in pipeline order with their number of jobs."""
    counts: dict[str, int] = {}
    for graph in graphs:
        own = Counter(graph.label_of)
        for label in graph.labels:
            counts[label] = counts.get(label, 0) + own[label]
    return tuple(counts.items())


def _warnings(
    jobs: Sequence[GenericWorkflowJob], tasks: tuple[TaskPlan, ...], conditions: Sequence[ConditionPlan]
) -> Iterator[str]:
    """Say what is not honoured, and what will be slow."""
    yield from NotHonoured.of(jobs).texts()
    if len(conditions) > MANY_CONDITIONS:
        hours = len(conditions) * BORDER_MINUTES / 60
        yield (
            f"{len(conditions)} non-blocking groups wait for the end of others. PanDA and iDDS need one to "
            f"two minutes from the end of a group to the start of the next: one by one, {hours:.1f} h for "
            "that alone. Larger groups, or blocking: true, are faster."
        )
    largest = max((len(task.jobs) for task in tasks), default=0)
    if largest > MANY_JOBS_PER_TASK:
        yield (
            f"A task has {largest} jobs; PanDA starts tasks of more than {MANY_JOBS_PER_TASK} very slowly. "
            "Use a smaller maxJobsPerTask."
        )


def task_of(plan: WorkflowPlan, ordinal: int) -> TaskPlan:
    """Return the task that holds a job.

    Parameters
    ----------
    plan : `WorkflowPlan`
        The plan.
    ordinal : `int`
        Ordinal of the job.
    """
    tasks = plan.tasks if not plan.final or ordinal < plan.final[0].first else plan.final
    position = bisect_right(tasks, ordinal, key=lambda task: task.first) - 1
    return tasks[position]


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
        conditions=_rescue_conditions(plan, renamed),
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


def _rescue_conditions(plan: WorkflowPlan, renamed: dict[str, str]) -> tuple[ConditionPlan, ...]:
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
