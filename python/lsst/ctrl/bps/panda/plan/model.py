"""What goes into a plan and what comes out of it: frozen records, with tuples in a defined order.

A plan is pure data.  `~.planner.make_plan` makes it of a generic workflow and `PlanSettings`; it is written
to the submit directory, sent to iDDS, and read again by a restart.
"""

from __future__ import annotations

__all__ = [
    "Accounting",
    "ConditionPlan",
    "JobPlan",
    "LabelSettings",
    "NamingKind",
    "ParameterShard",
    "Placement",
    "PlanSettings",
    "Resources",
    "RunIdentity",
    "StagedFile",
    "TaskPlan",
    "WorkflowPlan",
]

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a task runs, from wide to narrow."""

    cloud: str
    """PanDA cloud, for instance ``US``."""

    site: str
    """Computing site, for instance ``SLAC``."""

    queue: str
    """PanDA queue; empty lets PanDA broker."""


MEMORY_LIMIT = 491520
"""BPS's own default of ``memoryLimit``, MB (``bps_defaults.yaml`` of ctrl_bps)."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What a job of the task needs."""

    memory: int
    """Memory of the first attempt of the whole job, MB."""

    memory_max: int
    """Memory that no attempt exceeds, whole job, MB."""

    memory_growth: float
    """Factor from one attempt to the next (BPS ``memoryMultiplier``); 1.0 means no growth."""

    cores: int
    """Cores of a job."""

    disk: int
    """Scratch space, MB; 0 if not asked for."""

    walltime: int
    """Longest run of a PanDA job, seconds (of all its payloads)."""

    attempts: int
    """Number of attempts, at least 1: BPS ``numberOfRetries`` + 1."""

    def memory_of(self, attempt: int) -> int:
        """Return the memory of an attempt, from 1, if all earlier ones ran out of memory, MB."""
        memory = float(self.memory)
        for _ in range(attempt - 1):
            if memory >= self.memory_max or self.memory_growth <= 1:
                break
            memory *= self.memory_growth
        return min(math.ceil(round(memory, 6)), self.memory_max)


@dataclass(frozen=True, slots=True)
class Accounting:
    """How a task is treated and booked."""

    working_group: str
    priority: int
    processing_type: str
    task_type: str
    prod_source_label: str
    vo: str


class JobPlan(NamedTuple):
    """One job of a task.

    A tuple, because a frozen dataclass takes four times as long to make, and there may be millions.
    """

    name: str
    """Name of the `~lsst.ctrl.bps.GenericWorkflowJob`."""

    order_id: int
    """Ordinal of the job within its label, contiguous within a task."""

    pseudo_input: str
    """Text that stands as the job's input file in PanDA; unique in its task, and in the run."""

    parents: tuple[int, ...] = ()
    """Ordinals (see `TaskPlan.first`) of the jobs it depends on, sorted."""

    values: tuple[str, ...] = ()
    """The job's own values of `TaskPlan.parameter_names`."""


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """One PanDA task: a chunk of the jobs of one label."""

    name: str
    """``<run>_<nn>_<label>_<chunk>``, at most 225 characters (``MAX_TASK_NAME`` of ``plan.naming``)."""

    label: str
    chunk: int
    """Ordinal of the chunk in its label, from 1."""

    first: int
    """Ordinal of the first job in the run; jobs of a task are numbered
    ``first``, ``first + 1``, ... and tasks follow each other."""

    command: str
    """Command line of the task on the worker, with ``${IN/L}``."""

    placement: Placement
    resources: Resources
    accounting: Accounting
    payloads_per_job: int
    """Payloads a PanDA job carries; 1 means no event service."""

    jobs: tuple[JobPlan, ...]
    parameter_names: tuple[str, ...] = ()
    """Names of the values that differ from job to job."""

    is_sink: bool = False
    """Whether it holds a job that nobody depends on."""

    group: str = ""
    """Path of the ordering group the jobs are in, if any."""

    @property
    def event_service(self) -> bool:
        """Whether payloads share PanDA jobs."""
        return self.payloads_per_job > 1

    @property
    def ordinals(self) -> range:
        """Ordinals of the jobs in the run."""
        return range(self.first, self.first + len(self.jobs))


@dataclass(frozen=True, slots=True)
class ConditionPlan:
    """Tasks that start when all of some other tasks are terminated."""

    waits_for: tuple[str, ...]
    """Names of tasks."""

    starts: tuple[str, ...]
    """Names of tasks."""


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A file or directory that the run needs on its workers."""

    key: str
    """Name by which commands refer to it (``<FILE:key>``)."""

    source: str
    """Path or URI on the submit side."""

    name: str
    """Relative path in the staging area, ``/`` between its parts, unique in the run, no ``..``."""

    is_directory: bool = False
    executable: bool = False


@dataclass(frozen=True, slots=True)
class ParameterShard:
    """Parameters of consecutive jobs of a label, staged as one file."""

    name: str
    """Relative path in the staging area."""

    text: str
    """Content, in the runner's grammar (`~lsst.ctrl.bps.panda.edgenode.cmd_line_decoder`)."""


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """What a run is called and whose it is."""

    name: str
    """Unique name (BPS ``uniqProcName``); also the iDDS request name."""

    operator: str
    project: str
    campaign: str
    payload: str
    output_run: str
    site: str
    submit_path: str
    staging_area: str
    """URI of the staging area of this run, ending in ``/``."""

    plugin_version: str
    bps_version: str
    origin: int = 0
    """Request id of the run that this one completes (restart), or 0."""


@dataclass(frozen=True, slots=True)
class WorkflowPlan:
    """The whole plan of a run."""

    run: RunIdentity
    tasks: tuple[TaskPlan, ...]
    """Tasks in order; a job's ordinal finds its task by `TaskPlan.first`."""

    conditions: tuple[ConditionPlan, ...]
    final: tuple[TaskPlan, ...]
    """Tasks of the final job or workflow; they start when every sink is
    terminated.  Their ordinals continue those of ``tasks``."""

    files: tuple[StagedFile, ...]
    shards: tuple[ParameterShard, ...]
    labels: tuple[tuple[str, int], ...]
    """Labels in pipeline order, with their number of jobs (final last)."""

    warnings: tuple[str, ...] = ()
    """Attributes and settings that could not be honoured, one text each."""

    @property
    def job_count(self) -> int:
        """Number of jobs, final ones included."""
        return sum(count for _, count in self.labels)


class NamingKind(Enum):
    """How a job gets a short name, and where its parameters are."""

    SHORT = "short"
    """Label and order id; parameters in shards."""

    PLAIN = "plain"
    """Job name and parameters in the name itself."""

    ORDER_ID_MAP = "orderIdMap"
    """Label and order id; parameters in one map for the run."""

    QNODE_MAP = "qnodeMap"
    """``PH:`` and the job's name; parameters in one map for the run."""


@dataclass(frozen=True, slots=True)
class LabelSettings:
    """Settings of the jobs of one label."""

    site: str
    cloud: str
    queue: str
    priority: int
    processing_type: str
    task_type: str
    prod_source_label: str
    vo: str
    runner_command: str
    """Command line of a task, with ``_cmd_line_`` and perhaps ``_runner_`` to be replaced."""

    payloads_per_job: int = 1
    """Payloads a PanDA job carries, as asked for."""

    prmon: bool = True
    """Whether the runner itself may start ``prmon``."""

    keep_tokens: bool = False
    """Whether the payload may see tokens."""

    memory_limit: int = MEMORY_LIMIT
    """Memory that no attempt of a job without a limit of its own exceeds, MB."""


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """All that the planner needs to know besides the generic workflow."""

    run: RunIdentity
    labels: Mapping[str, LabelSettings]
    """By label; ``""`` holds those of any other."""

    naming: NamingKind = NamingKind.SHORT
    max_jobs_per_task: int = 10000
    max_wms_job_walltime: int = 0
    """Wall time of an event service job, seconds; 0 if not given."""

    placeholder_params: tuple[str, ...] = ("qgraphNodeId", "qgraphId")
    """Values that travel with the job even if all jobs share them (plain
    names and maps, as old runners expect)."""

    submit_environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that are resolved on the submit side (``<ENV:USER>``)."""

    area_variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables in the staging area's setting, with the values they had on the submit side."""

    order_id_map_name: str = "panda_order_id_map.json"
    runner: StagedFile | None = None
    """The runner, if it is staged with the run."""

    directories: frozenset[str] = frozenset()
    """Sources that are directories."""

    attempt_codes: bool = True
    """Whether the runner may remember exit codes between attempts (``retryUnlessExit``)."""

    max_direct_edges: int = 1000
    """Most edges that a join of many jobs with many is spelled out with; a larger one gets a barrier."""

    def for_label(self, label: str) -> LabelSettings:
        """Return the settings of a label."""
        return self.labels.get(label) or self.labels[""]
