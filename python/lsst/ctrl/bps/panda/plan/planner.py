"""Make the plan of a run from its generic workflow, and the plan of what is left of a run for a restart.

`make_plan` is the table of contents of the folder: flatten, group, number, split values, name, command, cut
into tasks, conditions, files.

The final tasks start when every sink is terminated, failed or not.  A final task that wants success has the
jobs that nobody depends on as parents: if one of these did not succeed, the server does not run it.

A restart is a new request, because iDDS's own retry leaves pruned jobs behind on a real PanDA, does nothing
after an abort and never runs the final job again.
"""

from __future__ import annotations

__all__ = ["make_plan", "make_restart_plan", "require_success"]

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from lsst.ctrl.bps import GenericWorkflow, GenericWorkflowJob

from ..edgenode import cmd_line_decoder as runner
from ..errors import PlanError
from .commands import TaskCommands
from .graph import JobGraph, flatten, pause_garbage_collection
from .grouping import group_jobs, list_ignored, number_jobs
from .model import ConditionPlan, JobPlan, PlanSettings, TaskPlan, WorkflowPlan
from .naming import NamedJobs, Naming, make_naming, task_name
from .tasks import FamilyPlan, TaskMaker, split_values

MANY_CONDITIONS = 100
"""Number of conditions above which waiting from group to group takes hours."""

MINUTES_BETWEEN_GROUPS = 1.5
"""Time from the end of a group to the start of the next, minutes: JEDI
finalises tasks once a minute, 45 to 120 s after their last job."""


@pause_garbage_collection()
def make_plan(workflow: GenericWorkflow, settings: PlanSettings) -> WorkflowPlan:
    """Make the plan of a run from what BPS made; `PlanError` is raised if it cannot be run as it is.

    The plan is the same for the same input, whatever the order in which the workflow was built.
    """
    graph = flatten(workflow, max_direct_edges=settings.max_direct_edges)
    final_graph = _final_graph(workflow, settings)
    if not graph.jobs:
        raise PlanError(f"Workflow {workflow.name!r} has no jobs to run.")
    families, final_families = group_jobs(graph), group_jobs(final_graph)
    numbering = number_jobs(graph, families, 0)
    final_numbering = number_jobs(final_graph, final_families, len(graph.jobs))
    graph.parents.clear()  # the numbering has them too, and there may be millions
    event_service = any(settings.for_label(label).payloads_per_job > 1 for label in graph.labels)
    naming = make_naming(settings, event_service=event_service)
    commands = TaskCommands(settings, naming)
    plans = [split_values(graph, family, settings, commands) for family in families]
    final_plans = [split_values(final_graph, family, settings, commands) for family in final_families]
    named = _name_jobs([(graph, plans), (final_graph, final_plans)], naming)
    maker = TaskMaker(settings, commands, named)
    tasks = maker.make(graph, plans, numbering, final=False)
    final = maker.make(final_graph, final_plans, final_numbering, final=True)
    conditions = (*_conditions(tasks, maker.gates), *_conditions(final, maker.gates))
    counts = Counter(graph.label_of) + Counter(final_graph.label_of)
    return WorkflowPlan(
        run=settings.run,
        tasks=tasks,
        conditions=conditions,
        final=final,
        files=commands.staged_names.files(),
        shards=tuple(naming.files(list(named.values()))),
        labels=tuple((label, counts[label]) for label in dict.fromkeys(graph.labels + final_graph.labels)),
        warnings=tuple(_warnings([*graph.jobs, *final_graph.jobs], conditions)),
    )


def _final_graph(workflow: GenericWorkflow, settings: PlanSettings) -> JobGraph:
    """Return the graph of the final job or workflow; empty without one."""
    final = workflow.get_final()
    if final is None:
        return JobGraph()
    if isinstance(final, GenericWorkflow):
        return flatten(final, max_direct_edges=settings.max_direct_edges)
    graph = JobGraph()
    graph.add(final, workflow)
    graph.complete()
    return graph


def _name_jobs(graphs: Sequence[tuple[JobGraph, list[FamilyPlan]]], naming: Naming) -> dict[str, NamedJobs]:
    """Give each job its order id and its pseudo-input."""
    named: dict[str, NamedJobs] = {}
    by_label: dict[str, list[FamilyPlan]] = {}
    for graph, plans in graphs:
        for plan in plans:
            label = plan.family.label
            jobs = named.setdefault(label, NamedJobs(label))
            plan.first_order_id = len(jobs.names)
            jobs.extend([graph.names[index] for index in plan.family.members], plan.names, plan.rows)
            by_label.setdefault(label, []).append(plan)
    for label, jobs in named.items():
        pseudo_inputs = naming.pseudo_inputs(jobs)
        for plan in by_label[label]:
            end = plan.first_order_id + len(plan.family.members)
            plan.pseudo_inputs = pseudo_inputs[plan.first_order_id : end]
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
        # The tasks of these groups and of those inside them.
        waits = tuple(
            task.name for task in tasks if any(f"{task.group}/".startswith(f"{group}/") for group in groups)
        )
        conditions.append(ConditionPlan(waits, tuple(names)))
    return tuple(sorted(conditions, key=lambda c: c.starts))


def _warnings(jobs: Sequence[GenericWorkflowJob], conditions: Sequence[ConditionPlan]) -> Iterator[str]:
    """Yield what has no effect, and what will be slow."""
    yield from list_ignored(jobs)
    if len(conditions) > MANY_CONDITIONS:
        hours = len(conditions) * MINUTES_BETWEEN_GROUPS / 60
        yield (
            f"{len(conditions)} non-blocking groups wait for the end of others. PanDA and iDDS need one to "
            f"two minutes from the end of a group to the start of the next: one by one, {hours:.1f} h for "
            "that alone. Larger groups, or blocking: true, are faster."
        )


def require_success(plan: WorkflowPlan, label: str) -> WorkflowPlan:
    """Return a plan in which the final jobs of a label depend on the success of the run: they get the jobs
    that nobody depends on as parents.
    """
    has_child = {parent for task in plan.tasks for job in task.jobs for parent in job.parents}
    ends = tuple(
        ordinal
        for task in plan.tasks
        if task.is_sink
        for ordinal in task.ordinals
        if ordinal not in has_child
    )

    def after(job: JobPlan) -> JobPlan:
        return job._replace(parents=tuple(sorted({*job.parents, *ends})))

    final = tuple(
        replace(task, jobs=tuple(map(after, task.jobs))) if task.label == label else task
        for task in plan.final
    )
    return replace(plan, final=final)


def make_restart_plan(plan: WorkflowPlan, done: Collection[int], *, name: str, origin: int) -> WorkflowPlan:
    """Make the plan of what is left of a run, given the ordinals of the jobs that succeeded, the name of the
    new run, and the request id of the old one.

    It has the tasks with the jobs left, without dependencies on what is done, and all of the final tasks.
    Commands, names of jobs and files are the same, since they refer to what is staged.
    """
    done = frozenset(done)
    kept = [ordinal for task in plan.tasks for ordinal in task.ordinals if ordinal not in done]
    kept += [ordinal for task in plan.final for ordinal in task.ordinals]
    numbers = {ordinal: number for number, ordinal in enumerate(kept)}
    has_child = {
        parent
        for task in plan.tasks
        for ordinal, job in zip(task.ordinals, task.jobs, strict=True)
        if ordinal in numbers
        for parent in job.parents
    }
    rests = [_rest_of(task, numbers, has_child) for task in (*plan.tasks, *plan.final)]
    left = [task for task in rests if task.jobs]
    renamed = {task.name: task_name(name, n, task.label, task.chunk) for n, task in enumerate(left, 1)}
    # The command tells the runner the name of the run.
    old, new = (f"--run={runner.quote(run)}" for run in (plan.run.name, name))
    left = [replace(t, name=renamed[t.name], command=t.command.replace(old, new)) for t in left]
    counts = Counter({label: 0 for label, _ in plan.labels})
    for task in left:
        counts[task.label] += len(task.jobs)
    return replace(
        plan,
        run=replace(plan.run, name=name, origin=origin),
        tasks=tuple(left[: len(left) - len(plan.final)]),
        final=tuple(left[len(left) - len(plan.final) :]),
        conditions=_conditions_left(plan, renamed),
        labels=tuple((label, count) for label, count in counts.items() if count),
        warnings=(),
    )


def _rest_of(task: TaskPlan, numbers: Mapping[int, int], has_child: set[int]) -> TaskPlan:
    """Return a task with the jobs that are left of it, which may be none."""
    left = [ordinal for ordinal in task.ordinals if ordinal in numbers]
    jobs: list[JobPlan] = []
    for ordinal in left:
        job = task.jobs[ordinal - task.first]
        parents = tuple(numbers[parent] for parent in job.parents if parent in numbers)
        jobs.append(job._replace(parents=parents))
    # iDDS packs wrongly what is not contiguous, so such jobs run singly.
    contiguous = not jobs or jobs[-1].order_id - jobs[0].order_id == len(jobs) - 1
    return replace(
        task,
        first=numbers[left[0]] if left else 0,
        jobs=tuple(jobs),
        is_sink=not has_child.issuperset(left),
        payloads_per_job=task.payloads_per_job if contiguous else 1,
    )


def _conditions_left(plan: WorkflowPlan, renamed: dict[str, str]) -> tuple[ConditionPlan, ...]:
    """Return the conditions among the tasks that are left."""
    left = (
        [tuple(renamed[name] for name in names if name in renamed) for names in (each.waits_for, each.starts)]
        for each in plan.conditions
    )
    return tuple(ConditionPlan(waits, starts) for waits, starts in left if waits and starts)
