"""Make the plan of a run from its generic workflow.

`make_plan` is the second table of contents: flatten, group, number, split
values, name, commands, tasks, conditions, files.
"""

from __future__ import annotations

__all__ = ["make_plan", "task_of"]

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from lsst.ctrl.bps import GenericWorkflow, GenericWorkflowJob

from ..errors import PlanError
from .circles import open_circles
from .collection import without_collection
from .dependencies import flatten
from .files import FileLedger
from .grouping import group_jobs, number_jobs
from .jobgraph import JobGraph
from .labels import PlanSettings
from .model import ConditionPlan, TaskPlan, WorkflowPlan
from .naming import NamedJobs, Naming, make_naming
from .resources import NotHonoured
from .taskcommand import TaskCommands
from .tasks import TaskMaker
from .values import Part, split_values

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
