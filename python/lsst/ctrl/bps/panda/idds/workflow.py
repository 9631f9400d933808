"""From a plan to the iDDS ``Workflow`` of ``DomaPanDAWork`` that is sent, and the workflow of a remote
build's one task.

The only place with iDDS's classes: its server reads these objects back.  What
is set here follows iDDS 2.6.21 (``idds.doma.workflowv2.domapandawork``).
"""

from __future__ import annotations

__all__ = [
    "BuildTask",
    "DependencyMap",
    "Submission",
    "client_mode",
    "estimate_length",
    "list_dependencies",
    "make_build_submission",
    "make_submission",
    "make_workflow",
    "render_call",
    "render_dependency_maps",
    "render_update",
]

import base64
import json
import math
import os
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from types import SimpleNamespace
from typing import Any

from ..plan.graph import without_collection
from ..plan.model import ConditionPlan, Resources, TaskPlan, WorkflowPlan
from ..plan.naming import BUILD_TASK
from ..plan.run_attributes import RunAttributes, render_attributes

_COMPRESSION = 4
"""Level of zlib: level 6 takes a third longer for a tenth less."""

_JOBS_PER_PIECE = 2000
"""Jobs whose dependencies are compressed at a time."""


@dataclass(frozen=True, slots=True)
class DependencyMap:
    """What the jobs of a task depend on, as a work holds it."""

    text: str
    """Compressed as ``idds.common.dict_class.DictClass.zip_data`` does it:
    zlib, base64 and a mark in front."""

    tasks: tuple[str, ...]
    """Names of the tasks that the jobs depend on."""

    edges: int


def render_dependency_maps(plan: WorkflowPlan) -> dict[str, DependencyMap]:
    """Render each task's map of dependencies.

    Parameters
    ----------
    plan : `WorkflowPlan`
        The plan.

    Returns
    -------
    maps : `dict` [`str`, `DependencyMap`]
        By name of the task.  An event service task is left out: iDDS works
        out its files when the map is set.
    """
    tasks = [*plan.tasks, *plan.final]
    ends = [f'{task.name}","inputname":"{job.pseudo_input}' for task in tasks for job in task.jobs]
    owners = [task.name for task in tasks for _ in task.jobs]
    return {task.name: _pack(task, ends, owners) for task in tasks if not task.packing.event_service}


def _pack(task: TaskPlan, ends: Sequence[str], owners: Sequence[str]) -> DependencyMap:
    """Compress the map of one task piece by piece.

    Parameters
    ----------
    task : `TaskPlan`
        The task.
    ends : sequence of `str`
        Each job of the run as the end of an edge.
    owners : sequence of `str`
        Name of each job's task.
    """
    compressor = zlib.compressobj(_COMPRESSION)
    packed = bytearray(compressor.compress(b"["))
    parent_tasks: dict[str, int] = {}
    edges = 0
    for start in range(0, len(task.jobs), _JOBS_PER_PIECE):
        lines = []
        for job in task.jobs[start : start + _JOBS_PER_PIECE]:
            if not job.parents:
                lines.append(f'{{"name":"{job.pseudo_input}","dependencies":[]}}')
                continue
            parents = job.parents
            edges += len(parents)
            # Parents are sorted, and the jobs of a task follow each other.
            if owners[parents[0]] == owners[parents[-1]]:
                parent_tasks.setdefault(owners[parents[0]], parents[0])
            else:
                for parent in parents:
                    parent_tasks.setdefault(owners[parent], parent)
            listed = '"},{"task":"'.join([ends[parent] for parent in parents])
            lines.append(f'{{"name":"{job.pseudo_input}","dependencies":[{{"task":"{listed}"}}]}}')
        comma = "," if start else ""
        packed += compressor.compress((comma + ",".join(lines)).encode())
    packed += compressor.compress(b"]") + compressor.flush()
    text = "idds_zip:" + base64.b64encode(packed).decode("ascii")
    return DependencyMap(text, tuple(sorted(parent_tasks, key=parent_tasks.__getitem__)), edges)


def list_dependencies(task: TaskPlan, plan: WorkflowPlan) -> list[dict[str, Any]]:
    """Return the map of one task as objects.

    Parameters
    ----------
    task : `TaskPlan`
        The task.
    plan : `WorkflowPlan`
        Where its jobs' parents are.
    """
    tasks = [*plan.tasks, *plan.final]
    firsts = [other.first for other in tasks]

    def end(parent: int) -> dict[str, str]:
        owner = tasks[bisect_right(firsts, parent) - 1]
        return {"task": owner.name, "inputname": owner.jobs[parent - owner.first].pseudo_input}

    return [
        {"name": job.pseudo_input, "order_id": job.order_id, "dependencies": list(map(end, job.parents))}
        for job in task.jobs
    ]


STORAGE_NAME = "IDDS_WORKFLOW_ADDITIONAL_STORAGE"
"""What iDDS's REST server replaces by its own storage directory."""

BYTES_PER_TASK = 6500
"""Size of a work without jobs, bytes (6 kB measured, and the command)."""

_TASK_LOG = {
    "destination": "local",
    "value": "log.tgz",
    "dataset": "PandaJob_#{pandaid}/",
    "token": "local",
    "param_type": "log",
    "type": "template",
}


@contextmanager
def client_mode() -> Iterator[None]:
    """Set ``IDDS_CLIENT_MODE`` while iDDS is imported.

    Where ``idds-server`` is installed too, iDDS looks for a server's
    configuration file on import and fails without one, unless that is set.
    """
    variable = "IDDS_CLIENT_MODE"
    before = os.environ.get(variable)
    os.environ[variable] = before or "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


@lru_cache(maxsize=1)
def _idds() -> SimpleNamespace:
    """Import iDDS's client classes."""
    with client_mode():
        from idds.common.utils import json_dumps
        from idds.doma.workflowv2.domapandawork import DomaPanDAWork
        from idds.workflowv2.workflow import AndCondition, Workflow
    return SimpleNamespace(
        json_dumps=json_dumps, DomaPanDAWork=DomaPanDAWork, AndCondition=AndCondition, Workflow=Workflow
    )


@dataclass(frozen=True, slots=True)
class Submission:
    """What is sent for a run, as JSON texts of the relay's arguments."""

    steps: tuple[str, ...]
    """Parts that go before, if the request would be too long."""

    request: str
    keywords: str

    @property
    def length(self) -> int:
        """Length of all texts, bytes."""
        return len(self.request) + sum(map(len, self.steps))


def make_workflow(plan: WorkflowPlan) -> Any:
    """Make the iDDS workflow of a plan.

    Parameters
    ----------
    plan : `WorkflowPlan`
        The plan.

    Returns
    -------
    workflow : `idds.workflowv2.workflow.Workflow`
        All works, with the conditions that start groups and the final job.
    """
    with without_collection():
        return _make_workflow(plan, render_dependency_maps(plan))


def _make_workflow(plan: WorkflowPlan, maps: dict[str, DependencyMap]) -> Any:
    """Make the workflow, given each task's dependencies."""
    idds = _idds()
    workflow = idds.Workflow(name=plan.run.name)
    _set_attributes(workflow, plan)
    works = {
        task.name: _make_work(task, number, plan, maps.get(task.name))
        for number, task in enumerate(chain(plan.tasks, plan.final), 1)
    }
    for work in works.values():
        workflow.add_work(work)
    for condition in plan.conditions:
        _add_condition(workflow, works, condition)
    # A restart may have nothing left to do but the final job.
    if plan.final and plan.tasks:
        _add_condition(workflow, works, _final_condition(plan))
    return workflow


def _final_condition(plan: WorkflowPlan) -> ConditionPlan:
    """What starts the final job or workflow; tasks of a final workflow that
    wait for others of its tasks have conditions of their own.
    """
    waiting = {name for condition in plan.conditions for name in condition.starts}
    return ConditionPlan(
        waits_for=tuple(task.name for task in plan.tasks if task.is_sink),
        starts=tuple(task.name for task in plan.final if task.name not in waiting),
    )


def _add_condition(workflow: Any, works: dict[str, Any], condition: ConditionPlan) -> None:
    """Let some works start when some others are terminated."""
    workflow.add_condition(
        _idds().AndCondition(
            conditions=[works[name].is_terminated for name in condition.waits_for],
            true_works=[works[name] for name in condition.starts],
        )
    )


def _set_attributes(workflow: Any, plan: WorkflowPlan) -> None:
    """Let the run's attributes travel with the request."""
    run = plan.run
    attributes = RunAttributes(
        name=run.name,
        operator=run.operator,
        project=run.project,
        campaign=run.campaign,
        payload=run.payload,
        jobs=plan.job_count,
        tasks=len(plan.tasks) + len(plan.final),
        origin=run.origin,
    )
    for name, value in render_attributes(attributes).items():
        setattr(workflow, name, value)


def _make_work(task: TaskPlan, number: int, plan: WorkflowPlan, packed: DependencyMap | None) -> Any:
    """Make the work of a task."""
    needs, accounting, placement = task.resources, task.accounting, task.placement
    growth = _second_memory(needs)
    event_service = task.packing.event_service
    work = _idds().DomaPanDAWork(
        executable=task.command,
        task_name=task.name,
        primary_input_collection={"scope": "pseudo_dataset", "name": f"pseudo_input_collection#{number}"},
        output_collections=[{"scope": "pseudo_dataset", "name": f"pseudo_output_collection#{number}"}],
        log_collections=[],
        dependency_map=list_dependencies(task, plan) if packed is None else [],
        task_log=dict(_TASK_LOG),
        encode_command_line=True,
        task_queue=placement.queue or None,
        task_site=placement.site or None,
        task_cloud=placement.cloud or None,
        task_rss=needs.memory,
        task_rss_retry_offset=0 if growth else needs.memory,
        task_rss_retry_step=growth,
        task_rss_max=needs.memory_max,
        core_count=needs.cores,
        maxwalltime=needs.walltime,
        maxattempt=needs.attempts,
        task_priority=accounting.priority,
        working_group=accounting.working_group or None,
        processing_type=accounting.processing_type or None,
        task_type=accounting.task_type,
        prodSourceLabel=accounting.prod_source_label,
        vo=accounting.vo,
        es=event_service,
        es_label=_es_label(task) if event_service else None,
        max_events_per_job=task.packing.payloads_per_job,
    )
    if packed is not None:
        # Without iDDS's setter, which would go through all of it in Python.
        work._dependency_map = packed.text
        work.dependency_tasks = list(packed.tasks)
        work.num_inputs = len(task.jobs)
        work.num_dependencies = packed.edges
    if needs.disk:
        work.additional_task_parameters = {"workDiskCount": needs.disk, "workDiskUnit": "MB"}
    return work


def _second_memory(needs: Resources) -> int:
    """Memory of the second attempt, never less than BPS's, MB; 0 if memory
    does not grow.

    JEDI multiplies the memory of an attempt by the ratio of this to the
    first one's, and cuts it at the largest (panda-server 1.0.4).
    """
    return math.ceil(round(needs.memory * needs.memory_growth, 6)) if needs.memory_growth > 1 else 0


def _es_label(task: TaskPlan) -> str:
    """Form of the label in names of event service files, as in the task's
    pseudo-inputs.
    """
    return task.jobs[0].pseudo_input.partition(":")[0]


# --- what is sent ----------------------------------------------------------


def render_call(*arguments: Any) -> str:
    """Render positional arguments of a relay command, as JSON of iDDS."""
    text: str = _idds().json_dumps(list(arguments))
    return text


def estimate_length(plan: WorkflowPlan, maps: Iterable[str]) -> int:
    """Estimate the length of a request without building it.

    Parameters
    ----------
    plan : `WorkflowPlan`
        The plan.
    maps : iterable of `str`
        Its compressed maps of dependencies.

    Returns
    -------
    length : `int`
        Bytes, a little too many.
    """
    tasks = [*plan.tasks, *plan.final]
    return sum(map(len, maps)) + sum(BYTES_PER_TASK + len(task.command) for task in tasks)


def make_submission(plan: WorkflowPlan, *, max_length: int) -> Submission:
    """Make what is sent for a run, in steps if it is long.

    Parameters
    ----------
    plan : `WorkflowPlan`
        The plan.
    max_length : `int`
        Longest text to send at once, bytes.  A task is never split, so that
        ``maxJobsPerTask`` bounds a step from below.

    Returns
    -------
    submission : `Submission`
        Steps first, each with whole tasks.
    """
    with without_collection():
        maps = render_dependency_maps(plan)
        return _make_submission(plan, maps, max_length)


def _make_submission(plan: WorkflowPlan, maps: dict[str, DependencyMap], max_length: int) -> Submission:
    """Make what is sent, given each task's dependencies."""
    keywords: str = _idds().json_dumps({"username": None, "use_dataset_name": False})
    workflow = _make_workflow(plan, maps)
    texts = {name: packed.text for name, packed in maps.items()}
    if estimate_length(plan, texts.values()) <= max_length:
        return Submission((), render_call(workflow), keywords)
    batches = _batches(texts, max_length)
    steps = tuple(render_call(_make_step(workflow, batch)) for batch in batches)
    _leave_maps_to_steps(workflow, set(maps))
    return Submission(steps, render_call(workflow), keywords)


def _batches(maps: dict[str, str], max_length: int) -> list[dict[str, str]]:
    """Share maps out among steps that are not too long."""
    batches: list[dict[str, str]] = []
    # Base64 of text that is base64 already adds a third and zlib takes it
    # back; the step's own frame is small.
    room = max(1, max_length - BYTES_PER_TASK)
    size = room + 1
    for name, text in maps.items():
        if size + len(text) > room:
            batches.append({})
            size = 0
        batches[-1][name] = text
        size += len(text) + len(name) + 8
    return batches


def _make_step(workflow: Any, batch: dict[str, str]) -> Any:
    """Make a step: a workflow that carries maps only."""
    template = workflow.template
    step = _idds().Workflow(name=workflow.name)
    step.set_internal_id(template.get_internal_id())
    step.template.set_internal_id(template.get_internal_id())
    for name in ("campaign", "campaign_scope", "campaign_group", "campaign_tag"):
        setattr(step, name, getattr(workflow, name))
    step.is_workflow_step = True
    step.step_name = ",".join(batch)
    step.workflow_data = step.template.zip_data(batch)
    return step


def _leave_maps_to_steps(workflow: Any, names: set[str]) -> None:
    """Let the works read their maps from the server's storage."""
    template = workflow.template
    template.set_additional_data_storage(STORAGE_NAME)
    for work in template.works.values():
        if work.task_name in names:
            work._dependency_map = {"idds_dependency_map_file": f"{STORAGE_NAME}/{work.task_name}"}
            work.zip_items = [item for item in work.zip_items if item != "_dependency_map"]
    template.with_steps = True


@dataclass(frozen=True, slots=True)
class BuildTask:
    """What the build task runs, and where."""

    command: str
    site: str = ""
    cloud: str = ""
    queue: str = ""
    processing_type: str = ""
    priority: int = 0
    memory: int = 0
    """MB."""

    attempts: int = 1


def make_build_submission(task: BuildTask, attributes: RunAttributes) -> Submission:
    """Make what is sent for a remote build.

    Parameters
    ----------
    task : `BuildTask`
        The one task.
    attributes : `RunAttributes`
        Attributes of the run; the request keeps them when the plan comes.
    """
    idds = _idds()
    workflow = idds.Workflow(name=attributes.name)
    for name, value in render_attributes(attributes).items():
        setattr(workflow, name, value)
    workflow.add_work(
        idds.DomaPanDAWork(
            executable=task.command,
            task_type="lsst_build",
            primary_input_collection={"scope": "pseudo_dataset", "name": "pseudo_input_collection#1"},
            output_collections=[{"scope": "pseudo_dataset", "name": "pseudo_output_collection#1"}],
            log_collections=[],
            dependency_map=None,
            task_name=BUILD_TASK,
            task_queue=task.queue or None,
            task_site=task.site or None,
            task_cloud=task.cloud or None,
            task_priority=task.priority,
            processing_type=task.processing_type or None,
            prodSourceLabel="managed",
            encode_command_line=True,
            task_log=dict(_TASK_LOG),
            task_rss=task.memory,
            maxattempt=task.attempts,
        )
    )
    keywords: str = idds.json_dumps({"username": None, "use_dataset_name": False})
    return Submission((), render_call(workflow), keywords)


def render_update(submission: Submission, *, request_id: int, signature: str) -> str:
    """Render the arguments of ``update_build_request``.

    Parameters
    ----------
    submission : `Submission`
        The run, as it would be submitted.
    request_id : `int`
        Request of the build task.
    signature : `str`
        What iDDS gave the build task to prove itself.
    """
    workflow = submission.request.strip().removeprefix("[").removesuffix("]")
    return f"[{request_id}, {json.dumps(signature)}, {workflow}]"
