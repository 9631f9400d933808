"""Make the plan of a run from its generic workflow.

`make_plan` is the second table of contents: flatten, group, name, resources,
command, dependencies, files.
"""

from __future__ import annotations

__all__ = ["make_plan"]

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lsst.ctrl.bps import GenericWorkflow, GenericWorkflowJob

from ..errors import PlanError
from .commands import PATH_VALUES, inert, split_long_option
from .dependencies import JobGraph, flatten
from .files import FileLedger
from .grouping import OWN_FILE, Family, chunk_sizes, group_jobs, order_labels, own_file_key
from .labels import LabelSettings, PlanSettings
from .model import (
    Accounting,
    ConditionPlan,
    JobPlan,
    Packing,
    Placement,
    TaskPlan,
    WorkflowPlan,
)
from .naming import NamedJobs, Naming, make_naming, task_name
from .resources import not_honoured, resources_of
from .taskcommand import TaskCommands

MANY_CONDITIONS = 100
"""Number of groups behind conditions from which the server gets slow."""

MANY_JOBS_PER_TASK = 100_000


@dataclass(slots=True)
class _Part:
    """A family with what has been worked out about it."""

    family: Family
    values: list[dict[str, str]]
    """Own values of each member."""

    parameter_names: tuple[str, ...]
    statics: dict[str, str]
    first_order_id: int = 0
    pseudo_inputs: list[str] = field(default_factory=list)


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
    graph = flatten(workflow)
    final_graph = _final_graph(workflow)
    parts = [_split_values(graph, family, settings) for family in group_jobs(graph)]
    final_parts = [_split_values(final_graph, family, settings) for family in group_jobs(final_graph)]
    if not parts:
        raise PlanError(f"Workflow {workflow.name!r} has no jobs to run.")
    event_service = any(settings.of(part.family.label).payloads_per_job > 1 for part in parts)
    naming = make_naming(settings, event_service=event_service)
    named = _name_jobs([(graph, parts), (final_graph, final_parts)], naming)
    commands = TaskCommands(settings, naming, FileLedger(settings.directories))
    maker = _TaskMaker(settings, naming, commands, named)
    tasks = maker.make(graph, parts, final=False)
    final = maker.make(final_graph, final_parts, final=True)
    return WorkflowPlan(
        run=settings.run,
        tasks=tasks,
        conditions=_conditions(tasks, maker.gates),
        final=final,
        files=commands.files(),
        shards=tuple(naming.files(list(named.values()))),
        labels=_label_counts([graph, final_graph]),
        warnings=_warnings(graph, final_graph, tasks, maker.gates),
    )


def _final_graph(workflow: GenericWorkflow) -> JobGraph:
    """Return the graph of the final job or workflow; empty without one."""
    final = workflow.get_final()
    if final is None:
        return JobGraph()
    if isinstance(final, GenericWorkflow):
        return flatten(final)
    if not isinstance(final, GenericWorkflowJob):
        raise PlanError(
            f"The final job of workflow {workflow.name!r} is a {type(final).__name__}; "
            "it must be a GenericWorkflowJob or a GenericWorkflow."
        )
    graph = JobGraph()
    graph.add(
        final,
        inputs=workflow.get_job_inputs(final.name),
        outputs=workflow.get_job_outputs(final.name),
    )
    return graph


def _split_values(graph: JobGraph, family: Family, settings: PlanSettings) -> _Part:
    """Tell the values that all jobs of a family share from the others."""
    first = graph.jobs[family.members[0]]
    template = TaskCommands.template(first, family.arguments)
    values: list[dict[str, str]] = [{} for _ in family.members]
    own: list[str] = []
    statics: dict[str, str] = {}
    for name in template.names:
        column = [graph.jobs[index].cmdvals.get(name) for index in family.members]
        value = column[0]
        if name not in settings.placeholder_params and all(v == value for v in column):
            text = "" if value is None else str(value)
            statics[name] = settings_value(name, text, settings)
            continue
        own.append(name)
        render = split_long_option(template.text, name)
        for row, item in zip(values, column, strict=True):
            row[name] = render("" if item is None else str(item))
    if f"{{{OWN_FILE}}}" in template.text:
        own.append(OWN_FILE)
    return _Part(family, values, tuple(own), statics)


def settings_value(name: str, value: str, settings: PlanSettings) -> str:
    """Return a value as it is put into a command."""
    if name == "fileDistributionEndPoint" and value:
        return inert(settings.run.staging_area)
    return inert(value) if name in PATH_VALUES else value


def _name_jobs(
    graphs: Sequence[tuple[JobGraph, list[_Part]]], naming: Naming
) -> dict[str, NamedJobs]:
    """Give each job its order id and its pseudo-input."""
    named: dict[str, NamedJobs] = {}
    for graph, parts in graphs:
        for part in parts:
            jobs = named.setdefault(part.family.label, NamedJobs(part.family.label))
            part.first_order_id = len(jobs.names)
            jobs.names += [graph.jobs[index].name for index in part.family.members]
            jobs.values += part.values
    for jobs in named.values():
        pseudo_inputs = naming.pseudo_inputs(jobs)
        for _, parts in graphs:
            for part in parts:
                if part.family.label == jobs.label:
                    end = part.first_order_id + len(part.family.members)
                    part.pseudo_inputs = pseudo_inputs[part.first_order_id : end]
    return named


@dataclass(slots=True)
class _TaskMaker:
    """Cuts families into tasks and numbers everything."""

    settings: PlanSettings
    naming: Naming
    commands: TaskCommands
    named: Mapping[str, NamedJobs]
    gates: dict[str, frozenset[str]] = field(default_factory=dict)
    """Groups that a task waits for, by the task's name."""

    _number: int = 0
    _ordinal: int = 0
    _chunks: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def make(self, graph: JobGraph, parts: list[_Part], *, final: bool) -> tuple[TaskPlan, ...]:
        """Make the tasks of a graph."""
        ordinals = self._number_jobs(graph, parts)
        has_child = bytearray(len(graph.jobs))
        for parents in graph.parents:
            for parent in parents:
                has_child[parent] = 1
        tasks: list[TaskPlan] = []
        for part in parts:
            prototype = self._prototype(graph, part, final=final)
            position = 0
            for size in chunk_sizes(len(part.family.members), self.settings.max_jobs_per_task):
                members = range(position, position + size)
                tasks.append(self._task(graph, part, prototype, members, ordinals, has_child))
                position += size
        return tuple(tasks)

    def _number_jobs(self, graph: JobGraph, parts: list[_Part]) -> list[int]:
        """Return the ordinal of each job of a graph."""
        ordinals = [0] * len(graph.jobs)
        for part in parts:
            for index in part.family.members:
                ordinals[index] = self._ordinal
                self._ordinal += 1
        return ordinals

    def _prototype(self, graph: JobGraph, part: _Part, *, final: bool) -> TaskPlan:
        """Return a task without jobs, as all chunks of a family share it."""
        job = graph.jobs[part.family.members[0]]
        settings = self.settings.of(part.family.label)
        packing = _packing(job, settings, self.settings.max_wms_job_walltime)
        command = self.commands.render(
            graph,
            part.family.members,
            arguments=part.family.arguments,
            statics=part.statics,
            rows=part.values,
            named=self.named[part.family.label],
            final=final,
            payloads_per_job=packing.payloads_per_job,
        )
        return TaskPlan(
            name="",
            label=part.family.label,
            chunk=0,
            first=0,
            command=command,
            placement=_placement(job, settings),
            resources=resources_of(
                job,
                payloads_per_job=packing.payloads_per_job,
                max_walltime=self.settings.max_wms_job_walltime,
            ),
            accounting=_accounting(job, settings),
            packing=packing,
            jobs=(),
            parameter_names=part.parameter_names,
            group=part.family.group,
        )

    def _task(
        self,
        graph: JobGraph,
        part: _Part,
        prototype: TaskPlan,
        members: range,
        ordinals: list[int],
        has_child: bytearray,
    ) -> TaskPlan:
        """Make one task."""
        self._number += 1
        self._chunks[prototype.label] += 1
        chunk = self._chunks[prototype.label]
        jobs = []
        names = part.parameter_names
        number = ordinals.__getitem__
        for position in members:
            index = part.family.members[position]
            parents = graph.parents[index]
            values = part.values[position]
            jobs.append(
                JobPlan(
                    graph.jobs[index].name,
                    part.first_order_id + position,
                    part.pseudo_inputs[position],
                    tuple(sorted(map(number, parents))) if parents else (),
                    tuple([values[name] for name in names]),
                )
            )
        indices = part.family.members[members.start : members.stop]
        name = task_name(self.settings.run.name, self._number, prototype.label, chunk)
        if part.family.gates:
            self.gates[name] = part.family.gates
        return replace(
            prototype,
            name=name,
            chunk=chunk,
            first=ordinals[indices[0]],
            jobs=tuple(jobs),
            is_sink=not all(has_child[index] for index in indices),
        )


def _packing(job: GenericWorkflowJob, settings: LabelSettings, max_walltime: int) -> Packing:
    """How many payloads share a PanDA job.

    With a wall time for the payload and one for the PanDA job, as many as
    fit; fewer than two means no event service.
    """
    if settings.payloads_per_job <= 1:
        return Packing()
    if job.request_walltime and max_walltime:
        return Packing(max(1, int(max_walltime // float(job.request_walltime))))
    return Packing(settings.payloads_per_job)


def _placement(job: GenericWorkflowJob, settings: LabelSettings) -> Placement:
    """Where the jobs run; what the job says goes before the settings."""
    return Placement(
        cloud=job.compute_cloud or settings.cloud,
        site=job.compute_site or settings.site,
        queue=job.queue or settings.queue,
    )


def _accounting(job: GenericWorkflowJob, settings: LabelSettings) -> Accounting:
    """How the jobs are booked."""
    try:
        priority = int(job.priority) if job.priority else settings.priority
    except (TypeError, ValueError):
        raise PlanError(
            f"priority of label {job.label!r} is {job.priority!r}; it must be a whole number."
        ) from None
    return Accounting(
        working_group=job.accounting_group or "",
        priority=priority,
        processing_type=settings.processing_type,
        task_type=settings.task_type,
        prod_source_label=settings.prod_source_label,
        vo=settings.vo,
        user=job.accounting_user or "",
    )


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
        for label in order_labels(graph):
            counts.setdefault(label, 0)
        for job in graph.jobs:
            counts[job.label] += 1
    return tuple(counts.items())


def _warnings(
    graph: JobGraph,
    final_graph: JobGraph,
    tasks: tuple[TaskPlan, ...],
    gates: Mapping[str, frozenset[str]],
) -> tuple[str, ...]:
    """Say what is not honoured, and what will be slow."""
    labels: dict[tuple[str, str], set[str]] = {}
    for job in [*graph.jobs, *final_graph.jobs]:
        for key, why in not_honoured(job).items():
            labels.setdefault((key, why), set()).add(job.label)
    warnings = [
        f"{key} (labels {', '.join(sorted(where))}) has no effect: {why}."
        for (key, why), where in sorted(labels.items())
    ]
    conditions = len(set(gates.values()))
    if conditions > MANY_CONDITIONS:
        warnings.append(
            f"{conditions} non-blocking groups wait for each other; iDDS looks at all of them each time one "
            f"ends, which gets slow beyond {MANY_CONDITIONS}. Use fewer, larger groups or blocking: true."
        )
    largest = max((len(task.jobs) for task in tasks), default=0)
    if largest > MANY_JOBS_PER_TASK:
        warnings.append(
            f"A task has {largest} jobs; PanDA starts tasks of more than {MANY_JOBS_PER_TASK} very slowly. "
            "Use a smaller maxJobsPerTask."
        )
    return tuple(warnings)


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


__all__ += ["own_file_key", "settings_value", "task_of"]
