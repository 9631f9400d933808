"""The iDDS ``Workflow`` of ``DomaPanDAWork`` that is sent for a plan, and the one of a remote build's only
task.

The only place with iDDS's classes: its server reads these objects back.  What
is set here follows iDDS 2.6.21 (``idds.doma.workflowv2.domapandawork``); the
requests of all clients in the range of ``setup.cfg`` are the same.
"""

from __future__ import annotations

__all__ = [
    "Submission",
    "client_mode",
    "make_build_submission",
    "make_submission",
    "make_workflow",
    "render_update",
]

import base64
import importlib.metadata
import json
import math
import os
import re
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from types import SimpleNamespace
from typing import Any

from ..errors import SettingsError
from ..plan.document import RunAttributes, render_attributes
from ..plan.graph import pause_garbage_collection
from ..plan.model import ConditionPlan, Resources, TaskPlan, WorkflowPlan
from ..plan.naming import BUILD_LABEL, BUILD_TASK, collection_name, label_of_input
from ..settings.remote import BuildSettings

_COMPRESSION = 4
"""Level of zlib: level 6 takes a third longer for a tenth less."""

_OLDEST, _BROKEN, _TOO_NEW = (2, 4, 0), (2, 5, 5), (2, 7)
"""Versions of iDDS's client: the first that can send a request in steps, one that lacks a package, and the
first that nobody has tried.  ``setup.cfg`` has the same range."""

_JOBS_PER_PIECE = 2000
"""Jobs whose dependencies are compressed at a time."""


@dataclass(frozen=True, slots=True)
class _DependencyMap:
    """What the jobs of a task depend on, as a work holds it."""

    text: str
    """Compressed as ``idds.common.dict_class.DictClass.zip_data`` does it:
    zlib, base64 and a mark in front."""

    tasks: tuple[str, ...]
    """Names of the tasks that the jobs depend on."""

    edges: int


def _render_dependency_maps(plan: WorkflowPlan) -> dict[str, _DependencyMap]:
    """Render each task's map of dependencies, by name of the task.

    Event service tasks have none: iDDS works out their files when it is set.
    """
    tasks = [*plan.tasks, *plan.final]
    ends = [f'{task.name}","inputname":"{job.pseudo_input}' for task in tasks for job in task.jobs]
    owners = [task.name for task in tasks for _ in task.jobs]
    return {task.name: _pack(task, ends, owners) for task in tasks if not task.event_service}


def _pack(task: TaskPlan, ends: Sequence[str], owners: Sequence[str]) -> _DependencyMap:
    """Compress the map of one task; ``ends`` and ``owners`` have each job's end of an edge and its task."""
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
    return _DependencyMap(text, tuple(sorted(parent_tasks, key=parent_tasks.__getitem__)), edges)


def _list_dependencies(task: TaskPlan, plan: WorkflowPlan) -> list[dict[str, Any]]:
    """Return the map of one task as objects; the plan has its jobs' parents."""
    tasks = [*plan.tasks, *plan.final]
    firsts = [other.first for other in tasks]

    def end(parent: int) -> dict[str, str]:
        owner = tasks[bisect_right(firsts, parent) - 1]
        return {"task": owner.name, "inputname": owner.jobs[parent - owner.first].pseudo_input}

    return [
        {"name": job.pseudo_input, "order_id": job.order_id, "dependencies": list(map(end, job.parents))}
        for job in task.jobs
    ]


_STORAGE_NAME = "IDDS_WORKFLOW_ADDITIONAL_STORAGE"
"""What iDDS's REST server replaces by its own storage directory."""

_BYTES_PER_TASK = 6500
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
    """Import iDDS's client classes; a `SettingsError` if they are not there, are not of a version whose
    requests are known to be right, or cannot read their configuration.
    """
    for name in ("idds-common", "idds-workflow", "idds-doma"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        numbers = tuple(map(int, re.findall(r"\d+", version)[:3]))
        if not _OLDEST <= numbers < _TOO_NEW or numbers == _BROKEN:
            raise SettingsError(
                f"{name} is {version}, and requests to iDDS can be made with versions 2.4.0 to 2.6, except "
                "2.5.5. Install one that fits: pip install "
                + " ".join(f"'idds-{part}>=2.4.0,!=2.5.5,<2.7'" for part in ("common", "workflow", "doma"))
            )
    try:
        with client_mode():
            from idds.common.utils import json_dumps
            from idds.doma.workflowv2.domapandawork import DomaPanDAWork
            from idds.workflowv2.workflow import AndCondition, Workflow
    except ImportError:
        raise
    except Exception as error:
        # It reads its configuration when it is imported, and raises what it meets.
        raise SettingsError(
            f"iDDS's client cannot read its own configuration: {' '.join(map(str, error.args))} Mend the "
            "file that the environment variable IDDS_CONFIG names, or unset it: a client needs no file."
        ) from error
    return SimpleNamespace(
        json_dumps=json_dumps, DomaPanDAWork=DomaPanDAWork, AndCondition=AndCondition, Workflow=Workflow
    )


@dataclass(frozen=True, slots=True)
class Submission:
    """What is sent for a run, as JSON texts of the relay's arguments."""

    steps: tuple[str, ...]
    """Parts that are sent first, if the request would be too long."""

    request: str
    keywords: str

    @property
    def length(self) -> int:
        """Length of all texts, bytes."""
        return len(self.request) + sum(map(len, self.steps))


@pause_garbage_collection()
def make_workflow(plan: WorkflowPlan, maps: dict[str, _DependencyMap] | None = None) -> Any:
    """Make the iDDS workflow of a plan: all works, with the conditions that start groups and the final job.

    The maps of dependencies are made, too, unless they are given.
    """
    if maps is None:
        maps = _render_dependency_maps(plan)
    run, tasks = plan.run, len(plan.tasks) + len(plan.final)
    workflow = _new_workflow(
        RunAttributes(
            run.name, run.operator, run.project, run.campaign, run.payload, plan.job_count, tasks, run.origin
        )
    )
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
    """Make the condition that starts the final job or workflow.

    Tasks of a final workflow that wait for others of its tasks have conditions of their own.
    """
    waiting = {name for condition in plan.conditions for name in condition.starts}
    return ConditionPlan(
        waits_for=tuple(task.name for task in plan.tasks if task.is_sink),
        starts=tuple(task.name for task in plan.final if task.name not in waiting),
    )


def _add_condition(workflow: Any, works: dict[str, Any], condition: ConditionPlan) -> None:
    """Start some works when some others are terminated."""
    workflow.add_condition(
        _idds().AndCondition(
            conditions=[works[name].is_terminated for name in condition.waits_for],
            true_works=[works[name] for name in condition.starts],
        )
    )


def _new_workflow(attributes: RunAttributes) -> Any:
    """Make a workflow without works that has the run's attributes."""
    workflow = _idds().Workflow(name=attributes.name)
    for name, value in render_attributes(attributes).items():
        setattr(workflow, name, value)
    return workflow


def _new_work(number: int, label: str, **settings: Any) -> Any:
    """Make the work of the task of this number, of a label, with what all works have in common."""
    return _idds().DomaPanDAWork(
        primary_input_collection={"scope": "pseudo_dataset", "name": collection_name(number, label)},
        output_collections=[{"scope": "pseudo_dataset", "name": f"pseudo_output_collection#{number}"}],
        log_collections=[],
        task_log=dict(_TASK_LOG),
        encode_command_line=True,
        **settings,
    )


def _make_work(task: TaskPlan, number: int, plan: WorkflowPlan, packed: _DependencyMap | None) -> Any:
    """Make the work of a task."""
    needs, accounting, placement = task.resources, task.accounting, task.placement
    event_service = task.event_service
    # In names of event service files, the label has the form that it has in
    # the task's pseudo-inputs.
    label = label_of_input(task.jobs[0].pseudo_input) if event_service else None
    work = _new_work(
        number,
        task.label,
        executable=task.command,
        task_name=task.name,
        dependency_map=_list_dependencies(task, plan) if packed is None else [],
        task_queue=placement.queue or None,
        task_site=placement.site or None,
        task_cloud=placement.cloud or None,
        **_memory_arguments(needs),
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
        es_label=label,
        max_events_per_job=task.payloads_per_job,
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


def _memory_arguments(needs: Resources) -> dict[str, int]:
    """Return what a work says about memory, MB.

    JEDI multiplies the memory of an attempt by the ratio of the step to the
    first one's, and cuts it at the largest (panda-server 1.0.4).
    """
    # Never less than BPS's.
    step = math.ceil(round(needs.memory * needs.memory_growth, 6)) if needs.memory_growth > 1 else 0
    return {
        "task_rss": needs.memory,
        "task_rss_retry_offset": 0 if step else needs.memory,
        "task_rss_retry_step": step,
        "task_rss_max": needs.memory_max,
    }


# --- what is sent ----------------------------------------------------------


def _render_submission(workflow: Any, steps: Iterable[Any] = ()) -> Submission:
    """Render a workflow and the steps before it as JSON of iDDS, which keeps its classes."""
    dumps = _idds().json_dumps
    keywords = {"username": None, "use_dataset_name": False}
    return Submission(tuple(dumps([step]) for step in steps), dumps([workflow]), dumps(keywords))


@pause_garbage_collection()
def make_submission(plan: WorkflowPlan, *, max_length: int) -> Submission:
    """Make what is sent for a run, in steps if it is longer than ``max_length`` bytes.

    A task is never split, so that ``maxJobsPerTask`` bounds a step from below.
    """
    maps = _render_dependency_maps(plan)
    workflow = make_workflow(plan, maps)
    texts = {name: packed.text for name, packed in maps.items()}
    # An estimate, a little too high.
    length = sum(_BYTES_PER_TASK + len(task.command) for task in chain(plan.tasks, plan.final))
    if length + sum(map(len, texts.values())) <= max_length:
        return _render_submission(workflow)
    steps = [_make_step(workflow, batch) for batch in _share_out(texts, max_length)]
    _leave_maps_to_steps(workflow, set(maps))
    return _render_submission(workflow, steps)


def _share_out(maps: dict[str, str], max_length: int) -> list[dict[str, str]]:
    """Share maps out among steps that are not too long."""
    batches: list[dict[str, str]] = []
    # Base64 of text that is base64 already adds a third and zlib takes it
    # back; the step's own frame is small.
    room = max(1, max_length - _BYTES_PER_TASK)
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
    """Make the works read their maps from the server's storage."""
    template = workflow.template
    template.set_additional_data_storage(_STORAGE_NAME)
    for work in template.works.values():
        if work.task_name in names:
            work._dependency_map = {"idds_dependency_map_file": f"{_STORAGE_NAME}/{work.task_name}"}
            work.zip_items = [item for item in work.zip_items if item != "_dependency_map"]
    template.with_steps = True


def make_build_submission(settings: BuildSettings, command: str, attributes: RunAttributes) -> Submission:
    """Make what is sent for a remote build, whose request keeps the run's attributes when the plan comes."""
    workflow = _new_workflow(attributes)
    workflow.add_work(
        _new_work(
            1,
            BUILD_LABEL,
            executable=command,
            task_type="lsst_build",
            dependency_map=None,
            task_name=BUILD_TASK,
            task_queue=settings.queue or None,
            task_site=settings.site or None,
            task_cloud=settings.cloud or None,
            task_priority=settings.priority,
            processing_type=settings.processing_type or None,
            prodSourceLabel="managed",
            **_memory_arguments(settings.resources),
            maxattempt=settings.resources.attempts,
        )
    )
    return _render_submission(workflow)


def render_update(submission: Submission, *, request_id: int, signature: str) -> str:
    """Render the arguments of ``update_build_request``, which puts a run into the request of its build task.

    With the signature, which iDDS gave it, the build task proves itself.
    """
    workflow = submission.request.strip().removeprefix("[").removesuffix("]")
    return f"[{request_id}, {json.dumps(signature)}, {workflow}]"
