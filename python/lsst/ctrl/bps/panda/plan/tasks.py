"""Families of jobs cut into tasks, with names, numbers, needs, commands, and the values that differ from
job to job.
"""

from __future__ import annotations

__all__ = ["Part", "TaskMaker", "placed_value", "split_values"]

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice, repeat
from operator import itemgetter
from typing import Any

from lsst.ctrl.bps import GenericWorkflowJob

from ..errors import PlanError
from .commands import MAX_ARGUMENT, PATH_VALUES, TaskCommands, inert, split_long_option
from .graph import JobGraph
from .grouping import OWN_FILE, Family, Numbering, chunk_sizes
from .labels import LabelSettings, NamingKind, PlanSettings
from .model import Accounting, JobPlan, Packing, Placement, TaskPlan
from .naming import NamedJobs, Row, task_name
from .resources import resources_of, walltime_of

MAX_SHARED_VALUE = 2000
"""Longest value that is written into the command of a task, characters; a
longer one is fetched by the job, even if all jobs share it."""


@dataclass(slots=True)
class Part:
    """A family with what has been worked out about it."""

    family: Family
    names: tuple[str, ...]
    """Names of the values that are each job's own."""

    rows: Sequence[Row]
    """Own values of each member, in the order of ``names``."""

    statics: dict[str, str]
    """Values that all members share, as they are put into the command."""

    first_order_id: int = 0
    pseudo_inputs: Sequence[str] = ()


def split_values(graph: JobGraph, family: Family, settings: PlanSettings, commands: TaskCommands) -> Part:
    """Tell the values that all jobs of a family share from the others.

    Parameters
    ----------
    graph : `JobGraph`
        All jobs.
    family : `Family`
        Some of them, in order.
    settings : `PlanSettings`
        Settings of the plan.
    commands : `TaskCommands`
        Where files of single jobs get their names.

    Raises
    ------
    PlanError
        Raised if a job has no value for what its command uses.
    """
    first = graph.jobs[family.members[0]]
    template = TaskCommands.template(first, family.arguments)
    # Old runners find these in the pseudo-input whatever their values are.
    travelling = () if settings.naming is NamingKind.SHORT else settings.placeholder_params
    columns: dict[str, list[str]] = {}
    statics: dict[str, str] = {}
    for name, column in zip(template.names, _all_values(graph, family, template.names), strict=True):
        value = column[0]
        shared = name not in travelling and column[-1] == value and column.count(value) == len(column)
        if shared and len(_text(value)) <= MAX_SHARED_VALUE:
            statics[name] = placed_value(name, _text(value), settings)
        else:
            columns[name] = _rendered(column, template.text, name)
    if f"{{{OWN_FILE}}}" in template.text:
        columns[OWN_FILE] = [commands.own_file(graph, index) for index in family.members]
    rows: Sequence[Row] = list(zip(*columns.values(), strict=True))
    return Part(family, tuple(columns), rows or [()] * len(family.members), statics)


def _all_values(graph: JobGraph, family: Family, names: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    """Yield the values of all members, name by name."""
    jobs = graph.jobs
    if not names:
        return iter(())
    # A getter of a single name returns the value and not a tuple with it.
    pick = itemgetter(*names, names[0])
    try:
        rows = [pick(jobs[index].cmdvals) for index in family.members]
    except KeyError as error:
        (lacking,) = error.args
        job = next(jobs[index].name for index in family.members if lacking not in jobs[index].cmdvals)
        raise PlanError(
            f"The command of label {family.label!r} uses {{{lacking}}}, but job {job!r} has no value "
            "for it while other jobs have."
        ) from None
    return islice(zip(*rows, strict=True), len(names))


def _text(value: object) -> str:
    """A value as text; nothing for none."""
    return "" if value is None else str(value)


def _rendered(column: Sequence[object], command: str, name: str) -> list[str]:
    """Values as texts; very long ones in a form that a command line takes."""
    texts = [value if type(value) is str else _text(value) for value in column]
    if len(max(texts, key=len)) <= MAX_ARGUMENT:
        return texts
    return list(map(split_long_option(command, name), texts))


def placed_value(name: str, value: str, settings: PlanSettings) -> str:
    """Return a value as it is put into a command.

    Parameters
    ----------
    name : `str`
        Name of the value.
    value : `str`
        The value; the staging area is that of the settings.
    settings : `PlanSettings`
        Settings of the plan.
    """
    if name == "fileDistributionEndPoint" and value:
        return inert(settings.run.staging_area)
    return inert(value) if name in PATH_VALUES else value


@dataclass(slots=True)
class TaskMaker:
    """Cuts families into tasks."""

    settings: PlanSettings
    commands: TaskCommands
    named: Mapping[str, NamedJobs]
    """All jobs of the run, by label."""

    gates: dict[str, frozenset[str]] = field(default_factory=dict)
    """Groups that a task waits for, by the task's name."""

    _number: int = 0
    _chunks: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def make(
        self, graph: JobGraph, parts: Sequence[Part], numbering: Numbering, *, final: bool
    ) -> tuple[TaskPlan, ...]:
        """Make the tasks of a graph.

        Parameters
        ----------
        graph : `JobGraph`
            The jobs.
        parts : sequence of `Part`
            All of them by family.
        numbering : `Numbering`
            Number of each.
        final : `bool`
            Whether this is the final job or workflow.
        """
        with_children = set(chain.from_iterable(graph.parents))
        tasks: list[TaskPlan] = []
        for part in parts:
            prototype = self._prototype(graph, part, final=final)
            jobs = _make_jobs(graph, part, numbering)
            position = 0
            for size in chunk_sizes(len(jobs), self.settings.max_jobs_per_task):
                members = part.family.members[position : position + size]
                task = self._task(prototype, part, jobs[position : position + size])
                is_sink = not with_children.issuperset(members)
                tasks.append(replace(task, first=numbering.ordinals[members[0]], is_sink=is_sink))
                position += size
        return tuple(tasks)

    def _prototype(self, graph: JobGraph, part: Part, *, final: bool) -> TaskPlan:
        """Return a task without jobs, as all chunks of a family share it."""
        family = part.family
        job = graph.jobs[family.members[0]]
        settings = self.settings.of(family.label)
        packing = _packing(job, settings, self.settings.max_wms_job_walltime)
        return TaskPlan(
            name="",
            label=family.label,
            chunk=0,
            first=0,
            command=self.commands.render(
                graph,
                family.members,
                arguments=family.arguments,
                statics=part.statics,
                named=self.named[family.label],
                final=final,
                payloads_per_job=packing.payloads_per_job,
            ),
            placement=_placement(job, settings),
            resources=resources_of(
                job,
                payloads_per_job=packing.payloads_per_job,
                max_walltime=self.settings.max_wms_job_walltime,
            ),
            accounting=_accounting(job, settings),
            packing=packing,
            jobs=(),
            parameter_names=part.names,
            group=family.group,
        )

    def _task(self, prototype: TaskPlan, part: Part, jobs: tuple[JobPlan, ...]) -> TaskPlan:
        """Make one task, with its name."""
        label = prototype.label
        self._number += 1
        self._chunks[label] += 1
        name = task_name(self.settings.run.name, self._number, label, self._chunks[label])
        if part.family.gates:
            self.gates[name] = part.family.gates
        return replace(prototype, name=name, chunk=self._chunks[label], jobs=jobs)


def _make_jobs(graph: JobGraph, part: Part, numbering: Numbering) -> tuple[JobPlan, ...]:
    """Make the jobs of a family, in order."""
    members = part.family.members
    fields = zip(
        [graph.names[index] for index in members],
        range(part.first_order_id, part.first_order_id + len(members)),
        part.pseudo_inputs,
        [numbering.parents[index] for index in members],
        part.rows,
        strict=True,
    )
    # A named tuple's own constructor is written in Python and takes thrice as long.
    return tuple(map(tuple.__new__, repeat(JobPlan), fields))


def _packing(job: GenericWorkflowJob, settings: LabelSettings, max_walltime: int) -> Packing:
    """How many payloads share a PanDA job.

    With a wall time for the payload and one for the PanDA job, as many as
    fit; fewer than two means no event service.
    """
    if settings.payloads_per_job <= 1:
        return Packing()
    walltime = walltime_of(job)
    if walltime and max_walltime:
        return Packing(max(1, max_walltime // walltime))
    return Packing(settings.payloads_per_job)


def _placement(job: GenericWorkflowJob, settings: LabelSettings) -> Placement:
    """Where the jobs run; what the job says goes before the settings."""
    return Placement(
        cloud=str(job.compute_cloud or settings.cloud),
        site=str(job.compute_site or settings.site),
        queue=str(job.queue or settings.queue),
    )


def _accounting(job: GenericWorkflowJob, settings: LabelSettings) -> Accounting:
    """How the jobs are booked."""
    try:
        priority = int(job.priority) if job.priority else settings.priority
    except (TypeError, ValueError, OverflowError):
        raise PlanError(
            f"priority of label {job.label!r} is {job.priority!r}; it must be a whole number."
        ) from None
    return Accounting(
        working_group=str(job.accounting_group or ""),
        priority=priority,
        processing_type=settings.processing_type,
        task_type=settings.task_type,
        prod_source_label=settings.prod_source_label,
        vo=settings.vo,
        user=job.accounting_user or "",
    )
