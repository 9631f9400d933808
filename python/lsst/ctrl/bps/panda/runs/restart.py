"""Restart: a new request for what is left of a run."""

from __future__ import annotations

__all__ = ["restart_run"]

import logging
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from lsst.ctrl.bps.wms_service import WmsStates

from ..errors import PandaBpsError
from ..idds.workflow import make_submission
from ..plan.document import render_plan
from ..plan.model import StagedFile, TaskPlan, WorkflowPlan
from ..plan.naming import restart_name
from ..plan.planner import make_restart_plan
from ..staging import StagingSettings, remove_marker, stage
from ..status.evidence import RunEvidence
from ..status.records import TransformRecord
from .cancel import CANCELLED_MARKER
from .environment_dump import reserve_dump
from .inquiry import Connection, Inquiry
from .record import PARAMETERS_DIRECTORY, PLAN_NAME, RunIndex, RunRecord, read_plan, write_text
from .submit import send

_LOG = logging.getLogger(__name__)

MAX_REQUEST_LENGTH = 400_000_000
"""Longest request that is sent at once, bytes."""

_KEPT = ("staging", "clusters", "messages")
"""What the record of the new run has of the old one's."""


def restart_run(connection: Connection, inquiry: Inquiry, run: str) -> tuple[str | None, str | None, str]:
    """Run again whatever did not succeed, and the final job after it.

    Parameters
    ----------
    connection : `Connection`
        The server.
    inquiry : `Inquiry`
        To find the run and its state.
    run : `str`
        Request id, name or submit directory.

    Returns
    -------
    run_id : `str` or `None`
        Request id of the new run; `None` if there is none.
    name : `str` or `None`
        Its name.
    message : `str`
        What was queued again, or why nothing was.

    Raises
    ------
    PandaBpsError
        Raised if it cannot be done.
    """
    request_id, record = inquiry.identify(run)
    if record is None:
        raise PandaBpsError(
            f"Run {request_id} cannot be restarted from here: its plan lies in its submit directory, "
            f"which is "
            "not known on this machine to this user. Give the submit directory instead of the id: "
            "bps restart --id DIRECTORY."
        )
    successor = record.content.get("restarted_as")
    if successor:
        return (
            None,
            None,
            (
                f"Run {request_id} was restarted before, as run {successor}, which knows what is still to "
                f"be done: "
                f"bps restart --id {successor}."
            ),
        )
    evidence = inquiry.status(str(request_id))
    tally = evidence.tally
    if not evidence.ended:
        going = ", ".join(
            f"{n} {s.name}" for s, n in tally.total.items() if n and s is not WmsStates.SUCCEEDED
        )
        return None, None, f"Run {request_id} is still going ({going}); wait for its end or cancel it first."
    if tally.state is WmsStates.SUCCEEDED:
        return None, None, f"Run {request_id} has succeeded; there is nothing to run again."
    if evidence.aborted and (living := inquiry.running(evidence)):
        text = (
            f"Run {request_id} was cancelled, but {living} of its jobs still run: pilots hear of it at "
            "their next heartbeat (up to 30 minutes). Restart it when they have ended, so that no job runs "
            "twice at the same time."
        )
        return None, None, text
    remote = record.content.get("remote")
    if remote and not os.path.exists(os.path.join(record.submit_path, PLAN_NAME)):
        return None, None, _no_plan(request_id, complete=bool(remote.get("complete")))
    plan = read_plan(record.submit_path)
    done = _done_jobs(inquiry, evidence, plan)
    number = int(record.content.get("restarts", 0)) + 1
    restart = make_restart_plan(plan, done, name=restart_name(plan.run.name, number), origin=request_id)
    directory = _restart_directory(record, number)
    restart = replace(restart, run=replace(restart.run, submit_path=os.fspath(directory)))
    new_id = _submit(connection, restart, record, directory)
    _provide_configuration(record, restart.run.name)
    reserve_dump(record.submit_path, restart.run.name)
    record.content["restarts"] = number
    record.content["restarted_as"] = new_id
    record.write(record.submit_path)
    queued = ", ".join(f"{count} {label}" for label, count in restart.labels)
    message = (
        f"Run {new_id} ({restart.run.name}) completes run {request_id}: queued {queued}; "
        f"{len(done)} jobs are done already. Submit directory: {directory}"
    )
    return str(new_id), restart.run.name, message


def _no_plan(request_id: int, *, complete: bool) -> str:
    """Say why a run that was planned at its site cannot be restarted."""
    if complete:
        return (
            f"Run {request_id} was planned at its site (remote build), and the plan can be had neither from "
            "PanDA's file cache nor from the staging area, so it cannot be restarted. Submit it once more "
            "with another outputRun."
        )
    return (
        f"Run {request_id} was to be planned at its site (remote build), and the task that makes the plan "
        f"did not succeed, so there is nothing to restart. 'panda_bps logs {request_id}' says why; mend "
        "that, and submit the run once more."
    )


def _provide_configuration(record: RunRecord, name: str) -> None:
    """Give the new run the configuration under its name: BPS opens
    ``DIRECTORY/NAME_config.yaml`` after a restart by directory.
    """
    directory = Path(record.submit_path)
    old = directory / f"{record.name}_config.yaml"
    if old.exists():
        write_text(directory / f"{name}_config.yaml", [old.read_text(encoding="utf-8")])


def _done_jobs(inquiry: Inquiry, evidence: RunEvidence, plan: WorkflowPlan) -> set[int]:
    """Return the ordinals of the jobs that succeeded.

    Counters tell of whole tasks; where they do not suffice, each job's
    content does.
    """
    by_name = {transform.name: transform for transform in evidence.transforms or ()}
    done: set[int] = set()
    for task in plan.tasks:
        transform = by_name.get(task.name)
        if transform is None or transform.outputs is None or not transform.outputs.processed:
            continue
        ordinals = range(task.first, task.first + len(task.jobs))
        if transform.outputs.processed >= len(task.jobs):
            done.update(ordinals)
        else:
            done.update(_done_in_task(inquiry, evidence.request.request_id, transform, task))
    return done


def _done_in_task(inquiry: Inquiry, request_id: int, transform: TransformRecord, task: TaskPlan) -> set[int]:
    """Return the ordinals of the jobs of one task that succeeded."""
    contents = inquiry.contents(request_id, transform.transform_id)
    available = {content.name for content in contents if content.status == "Available"}
    return {ordinal for ordinal, job in enumerate(task.jobs, task.first) if job.pseudo_input in available}


def _restart_directory(record: RunRecord, number: int) -> Path:
    """Directory for the plan and the record of the new run."""
    return Path(_origin_path(record)) / f"restart_{number}"


def _origin_path(record: RunRecord) -> str:
    """Submit directory of the run that BPS submitted."""
    return str(record.content.get("origin_path") or record.submit_path)


def _submit(connection: Connection, plan: WorkflowPlan, record: RunRecord, directory: Path) -> int:
    """Stage again what may be missing, submit, and write it down."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_text(directory / PLAN_NAME, render_plan(plan))
    new = RunRecord.from_plan(plan, prepared_at=now)
    new.content["origin_path"] = _origin_path(record)
    new.content["outputs"] = record.content.get("outputs", [])
    new.content.update({key: record.content[key] for key in _KEPT if key in record.content})
    new.content["restarts"] = int(record.content.get("restarts", 0)) + 1
    if remote := record.content.get("remote"):
        # Only the site has the sources of the files, and has staged them.
        new.content["remote"] = remote
    else:
        stage([*plan.files, *_parameters(record)], _staging_settings(record))
    remove_marker(plan.run.staging_area, CANCELLED_MARKER)
    submission = make_submission(plan, max_length=MAX_REQUEST_LENGTH)
    request_id = send(connection.relay, submission, plan.run.name)
    new.content.update(request_id=request_id, server=connection.settings.url, submitted_at=now)
    new.write(directory)
    RunIndex(connection.settings.state_directory).add(new, server=connection.settings.url)
    return request_id


def _staging_settings(record: RunRecord) -> StagingSettings:
    """How the run was staged."""
    staging = record.content.get("staging") or {}
    return StagingSettings(
        area=record.staging_area,
        max_workers=int(staging.get("max_workers", 10)),
        group_permissions=bool(staging.get("group_permissions", False)),
    )


def _parameters(record: RunRecord) -> list[StagedFile]:
    """Return the files with the jobs' parameters."""
    base = Path(_origin_path(record)) / PARAMETERS_DIRECTORY
    names = sorted(path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file())
    return [StagedFile(name, os.fspath(base / name), name) for name in names]
