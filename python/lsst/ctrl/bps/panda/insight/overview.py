"""A run at a glance: who, where, how far, its tasks, files and links."""

from __future__ import annotations

__all__ = ["Overview", "RunFile", "TaskLine", "make_overview"]

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from lsst.ctrl.bps.wms_service import WmsStates

from ..report_links import MonitorLinks
from ..wire.pipeline import ordinal_of_task
from ..wire.states import Counts
from .observation import Observation

_KNOWN_FILES = {
    "panda_run.json": "record of the run",
    "panda_plan.json": "plan: tasks, jobs, dependencies",
    "job_parameters": "parameters of jobs, as staged",
}
_KNOWN_SUFFIXES = {
    ".qgraph": "quantum graph",
    ".qg": "quantum graph",
    "_config.yaml": "BPS configuration as it was used",
    "_generic_workflow.pickle": "generic workflow",
}


_WAITING = "inputs are staging from a tape"


@dataclass(frozen=True, slots=True)
class TaskLine:
    """A task as iDDS and PanDA see it."""

    label: str
    name: str
    transform_id: int
    task_id: int
    """PanDA's number, 0 before there is one."""

    idds_status: str
    panda_status: str
    """Empty if PanDA was not asked or does not have it yet."""

    jobs: int = 0
    finished: int = 0
    failed: int = 0
    deleted: int = 0
    """Jobs that a cancel ended, or kept from running."""

    remark: str = ""
    """PanDA's, often the reason of a wait."""

    link: str = ""
    failed_link: str = ""


@dataclass(frozen=True, slots=True)
class RunFile:
    """A file of the submit directory."""

    path: str
    what: str
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Overview:
    """A run at a glance."""

    request_id: int
    name: str
    state: WmsStates
    ended: bool
    idds_status: str
    operator: str
    project: str
    campaign: str
    payload: str
    site: str
    origin: int
    """Run that this one completes, 0 if none."""

    created: datetime | None
    updated: datetime | None
    server: str
    submit_path: str
    staging_area: str
    labels: dict[str, Counts]
    total: Counts
    tasks: tuple[TaskLine, ...]
    files: tuple[RunFile, ...]
    links: tuple[tuple[str, str], ...]
    """What and where, in the PanDA monitor."""

    problems: tuple[str, ...] = ()


def make_overview(observation: Observation, *, server: str, staging_area: str = "") -> Overview:
    """Put together what is known of a run.

    Parameters
    ----------
    observation : `Observation`
        The run; jobs are not needed.
    server : `str`
        URL of PanDA.
    staging_area : `str`, optional
        From the run's record.

    Notes
    -----
    It looks which files are in the submit directory, if that is known and on
    this machine.
    """
    evidence, tally = observation.evidence, observation.tally
    attributes = tally.attributes
    submit_path = evidence.plan.path if evidence.plan is not None else ""
    planned_site = evidence.plan.site if evidence.plan is not None else ""
    return Overview(
        request_id=observation.request_id,
        name=observation.name,
        state=tally.state,
        ended=tally.ended,
        idds_status=evidence.request.status,
        operator=attributes.operator,
        project=attributes.project,
        campaign=attributes.campaign,
        payload=attributes.payload,
        site=planned_site or evidence.request.site or evidence.request.queue,
        origin=attributes.origin,
        created=evidence.request.created_at,
        updated=evidence.request.updated_at,
        server=server,
        submit_path=submit_path,
        staging_area=staging_area,
        labels=tally.by_label,
        total=tally.total,
        tasks=tuple(_task_lines(observation)),
        files=tuple(_files_of(submit_path)),
        links=tuple(_links_of(observation.request_id, observation.links)),
        problems=observation.problems,
    )


def _task_lines(observation: Observation) -> Iterator[TaskLine]:
    evidence, links = observation.evidence, observation.links
    panda = {task.task_id: task for task in evidence.tasks}
    run_name = observation.name
    for item in sorted(evidence.transforms or (), key=lambda t: (ordinal_of_task(t.name, run_name), t.name)):
        task = panda.get(item.workload_id)
        outputs = item.outputs
        counts = observation.tally.by_transform.get(item.transform_id, {})
        failed = counts.get(WmsStates.FAILED, 0)
        yield TaskLine(
            label=observation.tally.labels.get(item.transform_id, ""),
            name=item.name,
            transform_id=item.transform_id,
            task_id=item.workload_id,
            idds_status=item.status,
            panda_status=task.status if task is not None else "",
            jobs=outputs.total if outputs is not None else 0,
            finished=outputs.processed if outputs is not None else 0,
            failed=failed,
            deleted=counts.get(WmsStates.DELETED, 0),
            remark=_explained(task.dialog) if task is not None else "",
            link=links.task(item.workload_id) if item.workload_id else "",
            failed_link=links.failed_jobs(item.workload_id) if failed and item.workload_id else "",
        )


def _explained(dialog: str) -> str:
    """Say in our words what JEDI says of a task whose inputs other tasks are
    to make: to PanDA they look like files on tape.
    """
    if _WAITING in dialog:
        return f"waits for jobs of other tasks (PanDA: {dialog.strip()})"
    return dialog


def _files_of(submit_path: str) -> Iterator[RunFile]:
    if not submit_path:
        return
    try:
        entries = sorted(Path(submit_path).iterdir())
    except OSError:
        return
    for path in entries:
        what = _KNOWN_FILES.get(path.name) or next(
            (text for suffix, text in _KNOWN_SUFFIXES.items() if path.name.endswith(suffix)), ""
        )
        if what:
            yield RunFile(str(path), what, path.stat().st_size)


def _links_of(request_id: int, links: MonitorLinks) -> Iterator[tuple[str, str]]:
    if links.base:
        yield "tasks", links.tasks_of_run(request_id)
        yield "progress", links.progress_of_run(request_id)
        yield "graph of tasks", f"{links.base.rstrip('/')}/idds/daggraph/?idds_request_id={request_id}"
