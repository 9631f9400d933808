"""Families of jobs cut into tasks: the values that differ from job to job, names and numbers, and what the
jobs need in PanDA's terms.
"""

from __future__ import annotations

__all__ = ["DEFAULT_WALLTIME", "FamilyPlan", "TaskMaker", "split_values"]

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, repeat
from operator import itemgetter
from typing import Any

from lsst.ctrl.bps import GenericWorkflowJob

from ..errors import PlanError
from .commands import (
    MAX_ARGUMENT,
    PATH_VALUES,
    TaskCommands,
    make_shell_safe,
    make_template,
    restore_variables,
    split_long_option,
)
from .graph import JobGraph
from .grouping import OWN_FILE, Family, Numbering, chunk_sizes, yaml_key
from .model import (
    Accounting,
    JobPlan,
    LabelSettings,
    NamingKind,
    Placement,
    PlanSettings,
    Resources,
    TaskPlan,
)
from .naming import NamedJobs, Row, task_name

MAX_SHARED_VALUE = 2000
"""Longest value that is written into the command of a task, characters; a
longer one is fetched by the job, even if all jobs share it."""

DEFAULT_ATTEMPTS = 3
"""Attempts of a job that does not say how often to retry."""

DEFAULT_MEMORY = 1024
"""Memory of a job that does not ask for any, MB."""

DEFAULT_WALLTIME = 90000
"""Longest run of a PanDA job that does not ask for any, seconds."""


@dataclass(slots=True)
class FamilyPlan:
    """A family with its values, order ids and pseudo-inputs."""

    family: Family
    names: tuple[str, ...]
    """Names of the values that differ from job to job."""

    rows: Sequence[Row]
    """These values of each member, in the order of ``names``."""

    statics: dict[str, str]
    """Values that all members share, as they are put into the command."""

    first_order_id: int = 0
    pseudo_inputs: Sequence[str] = ()


def split_values(
    graph: JobGraph, family: Family, settings: PlanSettings, commands: TaskCommands
) -> FamilyPlan:
    """Separate the values that all jobs of a family share from those that differ.

    Files of single jobs get their names in ``commands``.  Raises `PlanError`
    if a job has no value for what its command uses.
    """
    template = make_template(graph.jobs[family.members[0]], family.arguments)
    # Old runners find these in the pseudo-input whatever their values are.
    travelling = () if settings.naming is NamingKind.SHORT else settings.placeholder_params
    columns: dict[str, list[str]] = {}
    statics: dict[str, str] = {}
    for name, column in zip(template.names, _all_values(graph, family, template.names), strict=True):
        value = column[0]
        shared = name not in travelling and column[-1] == value and column.count(value) == len(column)
        if shared and len(_text(value)) <= MAX_SHARED_VALUE:
            statics[name] = _in_command(name, _text(value), settings)
        else:
            columns[name] = _rendered(column, template.text, name)
    if f"{{{OWN_FILE}}}" in template.text:
        columns[OWN_FILE] = [commands.own_file(graph, index) for index in family.members]
    rows: Sequence[Row] = list(zip(*columns.values(), strict=True))
    return FamilyPlan(family, tuple(columns), rows or [()] * len(family.members), statics)


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
    """Return a value as text; an empty one for `None`."""
    return "" if value is None else restore_variables(str(value))


def _rendered(column: Sequence[object], command: str, name: str) -> list[str]:
    """Return values as texts, very long ones in a form that a command line takes."""
    texts = [value if type(value) is str and "<ENV:" not in value else _text(value) for value in column]
    if len(max(texts, key=len)) <= MAX_ARGUMENT:
        return texts
    return list(map(split_long_option(command, name), texts))


def _in_command(name: str, value: str, settings: PlanSettings) -> str:
    """Return a value as it is put into a command; the staging area is that of the settings."""
    if name == "fileDistributionEndPoint" and value:
        return make_shell_safe(settings.run.staging_area)
    return make_shell_safe(value) if name in PATH_VALUES else value


@dataclass(slots=True)
class TaskMaker:
    """Cuts families into tasks, numbered through the run."""

    settings: PlanSettings
    commands: TaskCommands
    named: Mapping[str, NamedJobs]
    """All jobs of the run, by label."""

    gates: dict[str, frozenset[str]] = field(default_factory=dict)
    """Groups that a task waits for, by the task's name."""

    _number: int = 0
    _chunks: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def make(
        self, graph: JobGraph, families: Sequence[FamilyPlan], numbering: Numbering, *, final: bool
    ) -> tuple[TaskPlan, ...]:
        """Make the tasks of a graph, which is the main one or that of the final job."""
        tasks: list[TaskPlan] = []
        for plan in families:
            prototype = self._prototype(graph, plan, final=final)
            jobs = _make_jobs(graph, plan, numbering)
            position = 0
            for size in chunk_sizes(len(jobs), self.settings.max_jobs_per_task):
                members = plan.family.members[position : position + size]
                task = self._task(prototype, plan.family, jobs[position : position + size])
                is_sink = 0 in map(numbering.has_child.__getitem__, members)
                tasks.append(replace(task, first=numbering.ordinals[members[0]], is_sink=is_sink))
                position += size
        return tuple(tasks)

    def _prototype(self, graph: JobGraph, plan: FamilyPlan, *, final: bool) -> TaskPlan:
        """Return a task without jobs, as all chunks of a family share it."""
        family = plan.family
        job = graph.jobs[family.members[0]]
        settings = self.settings.for_label(family.label)
        max_walltime = self.settings.max_wms_job_walltime
        payloads = _payloads_per_job(job, settings, max_walltime)
        return TaskPlan(
            name="",
            label=family.label,
            chunk=0,
            first=0,
            command=self.commands.render(
                graph, family, statics=plan.statics, named=self.named[family.label], final=final
            ),
            placement=Placement(  # the job's own attributes take precedence over the settings
                cloud=str(job.compute_cloud or settings.cloud),
                site=str(job.compute_site or settings.site),
                queue=str(job.queue or settings.queue),
            ),
            resources=_resources(job, payloads, max_walltime, settings.memory_limit),
            accounting=_accounting(job, settings),
            payloads_per_job=payloads,
            jobs=(),
            parameter_names=plan.names,
            group=family.group,
        )

    def _task(self, prototype: TaskPlan, family: Family, jobs: tuple[JobPlan, ...]) -> TaskPlan:
        """Make one task, with its name."""
        label = prototype.label
        self._number += 1
        self._chunks[label] += 1
        name = task_name(self.settings.run.name, self._number, label, self._chunks[label])
        if family.gates:
            self.gates[name] = family.gates
        return replace(prototype, name=name, chunk=self._chunks[label], jobs=jobs)


def _make_jobs(graph: JobGraph, plan: FamilyPlan, numbering: Numbering) -> tuple[JobPlan, ...]:
    """Make the jobs of a family, in order."""
    members = plan.family.members
    fields = zip(
        [graph.names[index] for index in members],
        range(plan.first_order_id, plan.first_order_id + len(members)),
        plan.pseudo_inputs,
        [numbering.parents[index] for index in members],
        plan.rows,
        strict=True,
    )
    # A named tuple's own constructor is written in Python and takes three times as long.
    return tuple(map(tuple.__new__, repeat(JobPlan), fields))


def _payloads_per_job(job: GenericWorkflowJob, settings: LabelSettings, max_walltime: int) -> int:
    """Decide how many payloads share a PanDA job.

    With a wall time for the payload and one for the PanDA job, as many as
    fit; fewer than two means no event service.
    """
    if settings.payloads_per_job <= 1:
        return 1
    walltime = _walltime_asked(job)
    if walltime and max_walltime:
        return max(1, max_walltime // walltime)
    return settings.payloads_per_job


def _accounting(job: GenericWorkflowJob, settings: LabelSettings) -> Accounting:
    """Return the priority of the jobs and what they are booked on."""
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
    )


def _resources(
    job: GenericWorkflowJob, payloads_per_job: int, max_walltime: int, memory_limit: int
) -> Resources:
    """Return what a PanDA job needs.

    Memory is that of the whole job in MB, as BPS defines it, rounded up to a multiple of the cores: iDDS
    divides it by the cores for PanDA's ``ramCount``, which is MB a core.  BPS lets the memory of attempt n be
    min(m0 * M**n, max), which is what PanDA does with ``retryRamStep = m0 * M`` and ``retryRamMax``.
    Attempts are retries + 1.
    """
    cores = math.ceil(_number(job, "request_cpus", 1, least=1))
    memory = math.ceil(_number(job, "request_memory", DEFAULT_MEMORY, least=1))
    memory = -(-memory // cores) * cores
    memory_max = int(_number(job, "request_memory_max", 0, least=0)) or memory_limit
    walltime = _walltime_asked(job)
    if payloads_per_job > 1:
        walltime = walltime * payloads_per_job or max_walltime
    return Resources(
        memory=memory,
        memory_max=max(memory, memory_max),
        memory_growth=max(1.0, _number(job, "memory_multiplier", 1.0, least=0)),
        cores=cores,
        disk=math.ceil(_number(job, "request_disk", 0, least=0)),
        walltime=walltime or DEFAULT_WALLTIME,
        attempts=math.ceil(_number(job, "number_of_retries", DEFAULT_ATTEMPTS - 1, least=0)) + 1,
    )


def _walltime_asked(job: GenericWorkflowJob) -> int:
    """Return the wall time that a job asks for, seconds; 0 if it does not."""
    return math.ceil(_number(job, "request_walltime", 0, least=0))


def _number(job: GenericWorkflowJob, attribute: str, default: float, *, least: float) -> float:
    """Read a number of a job; raise `PlanError` if it is none or less than ``least``."""
    value = getattr(job, attribute)
    if value is None or value == "":
        return default
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not least <= number < math.inf:
        raise PlanError(
            f"{yaml_key(attribute)} of job {job.name!r} (label {job.label!r}) is {value!r}; "
            f"it must be a number of at least {least:g}."
        )
    return number
