"""Restart a run: submit a new request for what is left of it."""

from __future__ import annotations

__all__ = ["restart_run"]

import contextlib
import filecmp
import logging
import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from lsst.ctrl.bps.wms_service import WmsStates

from ..errors import PandaBpsError, RunNotFoundError
from ..files import write_text
from ..idds.workflow import make_submission
from ..plan.document import render_plan
from ..plan.model import StagedFile, WorkflowPlan
from ..plan.naming import restart_name
from ..plan.planner import make_restart_plan
from ..staging import CANCELLED, remove_marker, stage
from ..status.evidence import RunEvidence
from .client import FoundRun, RunClient
from .files import PARAMETERS_DIRECTORY, PLAN_NAME, RECORD_NAME, prepare_environment_dump, read_plan
from .intention import lock_submission, settle
from .provenance import find_ingested
from .record import RunRecord, read_record
from .submit import submit_run

_LOG = logging.getLogger(__name__)

MAX_REQUEST_LENGTH = 400_000_000
"""Longest request that is sent at once, bytes."""


def restart_run(client: RunClient, run: str) -> tuple[str | None, str | None, str]:
    """Run again what did not succeed, and the final job after it.

    Return the id and name of the new run, or `None` if there is none, and a message:
    what was queued again, or why nothing was.
    """
    found = client.find(run, unique=True)
    request_id, record = found
    if record is None:
        client.request(request_id)  # an error if there is no such run at all
        raise PandaBpsError(
            f"Run {request_id} cannot be restarted from here: its plan lies in its submit directory, which "
            "is not known on this machine to this user. Give the submit directory instead of the id: "
            "bps restart --id DIRECTORY."
        )
    with lock_submission(record.submit_path):
        return _restart(client, found._replace(record=read_record(record.submit_path)))


def _restart(client: RunClient, found: FoundRun) -> tuple[str | None, str | None, str]:
    """Do what `restart_run` does; nobody else restarts the run meanwhile."""
    request_id, record = found
    assert record is not None
    number = record.restarts + 1
    directory = record.origin_directory / f"restart_{number}"
    if successor := record.restarted_as:
        return (
            None,
            None,
            f"Run {request_id} was restarted before, as run {successor}, which knows what is still to be "
            f"done: bps restart --id {successor}.",
        )
    if before := _find_interrupted(client, directory):
        _finish(record, before)
        message = (
            f"Run {request_id} was restarted before, as run {before.request_id}, but that was interrupted; "
            f"nothing was queued again. Submit directory: {directory}"
        )
        return str(before.request_id), before.name, message
    evidence = client.status(found)
    if refusal := _why_not(client, record, evidence):
        return None, None, refusal
    plan = read_plan(record.submit_path)
    done = _done_jobs(client, evidence, plan)
    restart = make_restart_plan(plan, done, name=restart_name(plan.run.name, number), origin=request_id)
    restart = replace(restart, run=replace(restart.run, submit_path=os.fspath(directory)))
    renewed = _copy_again(record)
    new, changed = _submit(client, restart, record)
    _finish(record, new)
    queued = ", ".join(f"{count} {label}" for label, count in restart.labels)
    message = (
        f"Run {new.request_id} ({restart.run.name}) completes run {request_id}: queued {queued}; "
        f"{len(done)} jobs are done already. Submit directory: {directory}"
    )
    if changed:
        message += f". Changed since the run was submitted, and used in their new form: {', '.join(changed)}"
    if renewed:
        message += f". Copied anew into the submit directory: {', '.join(renewed)}"
    if unused := _find_newer(record.sources, Path(record.origin_directory, PLAN_NAME)):
        message += (
            f". Changed since the quantum graph was made, and not used: {', '.join(unused)}; submit the run "
            "once more for that"
        )
    return str(new.request_id), restart.run.name, message


def _copy_again(record: RunRecord) -> list[str]:
    """Replace files of ``bps submitcmd`` in the submit directory by what they were copied from, where that is
    newer than the copy, and other; return where they are.
    """
    renewed = []
    for path in record.inputs:
        copy = record.origin_directory / os.path.basename(path)
        if _find_newer([path], copy) and not filecmp.cmp(path, copy, shallow=False):
            shutil.copy2(path, copy)
            renewed.append(path)
    return renewed


def _find_newer(paths: Iterable[str], other: Path) -> list[str]:
    """Find the files that were changed after another one was; what is gone is not."""
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            if os.stat(path).st_mtime_ns > other.stat().st_mtime_ns:
                found.append(path)
    return found


def _find_interrupted(client: RunClient, directory: Path) -> RunRecord | None:
    """Return the record of a restart that was submitted without a word of it in the record of the first
    run, because it was interrupted.
    """
    try:
        record = read_record(directory / RECORD_NAME)
    except RunNotFoundError:
        return None
    record = settle(client.connection.relay, client.connection.settings, record)
    return record if record.request_id is not None else None


def _finish(record: RunRecord, new: RunRecord) -> None:
    """Provide what BPS looks for, and say in the record of a run how it goes on."""
    assert new.request_id is not None
    _provide_configuration(record, new.name)
    prepare_environment_dump(record.submit_path, new.name)
    record.restarted(new.request_id).write()


def _why_not(client: RunClient, record: RunRecord, evidence: RunEvidence) -> str:
    """Explain why a run is not restarted now; empty if it can be."""
    request_id = evidence.request.request_id
    tally = evidence.tally
    if not evidence.ended:
        going = ", ".join(
            f"{n} {s.name}" for s, n in tally.total.items() if n and s is not WmsStates.SUCCEEDED
        )
        return f"Run {request_id} is still going ({going}); wait for its end or cancel it first."
    if tally.state is WmsStates.SUCCEEDED:
        return f"Run {request_id} has succeeded; there is nothing to run again."
    if find_ingested(record):
        return (
            f"Run {request_id} is closed: the provenance of {record.run.output_run} is in its Butler, and "
            "what runs now would be missing there. Submit the run once more with another outputRun."
        )
    if evidence.aborted and (living := client.with_panda(evidence).running_jobs):
        return (
            f"Run {request_id} was cancelled, but {living} of its jobs still run: pilots hear of it at "
            "their next heartbeat (up to 30 minutes). Restart it when they have ended, so that no job runs "
            "twice at the same time."
        )
    if record.remote is not None and not os.path.exists(os.path.join(record.submit_path, PLAN_NAME)):
        return _no_plan(request_id, complete=record.remote.complete)
    return ""


def _no_plan(request_id: int, *, complete: bool) -> str:
    """Explain why a run that was planned at its site cannot be restarted."""
    if complete:
        return (
            f"Run {request_id} was planned at its site (remote build), and the plan can be had neither from "
            "PanDA's file cache nor from the staging area, so it cannot be restarted. Submit it once more "
            "with another outputRun."
        )
    return (
        f"Run {request_id} was to be planned at its site (remote build), and the task that makes the plan "
        f"did not succeed, so there is nothing to restart. 'panda_bps logs {request_id}' says why, if "
        "it was not cancelled; fix that, and submit the run once more."
    )


def _provide_configuration(record: RunRecord, name: str) -> None:
    """Copy the configuration to the name of the new run: BPS opens
    ``DIRECTORY/NAME_config.yaml`` after a restart by directory.
    """
    directory = Path(record.submit_path)
    old = directory / f"{record.name}_config.yaml"
    if old.exists():
        write_text(directory / f"{name}_config.yaml", [old.read_text(encoding="utf-8")])


def _done_jobs(client: RunClient, evidence: RunEvidence, plan: WorkflowPlan) -> set[int]:
    """Return the ordinals of the jobs that succeeded.

    Counters are of whole tasks; where some jobs of a task failed, the contents show which succeeded.
    """
    by_name = {transform.name: transform for transform in evidence.transforms or ()}
    done: set[int] = set()
    for task in plan.tasks:
        transform = by_name.get(task.name)
        if transform is None or transform.outputs is None or not transform.outputs.processed:
            continue
        if transform.outputs.processed >= len(task.jobs):
            done.update(task.ordinals)
            continue
        contents = client.contents(evidence.request.request_id, transform.transform_id)
        available = {content.name for content in contents if content.done}
        done.update(n for n, job in enumerate(task.jobs, task.first) if job.pseudo_input in available)
    return done


def _submit(client: RunClient, plan: WorkflowPlan, record: RunRecord) -> tuple[RunRecord, tuple[str, ...]]:
    """Stage again what may be missing, submit the plan, and record that; return the record, and the files
    that have changed.
    """
    changed: list[str] = []
    write_text(Path(plan.run.submit_path) / PLAN_NAME, render_plan(plan))

    def stage_again() -> None:
        if record.remote is None:
            # Else only the site has the sources of the files, and has staged them.
            files = [*plan.files, *_parameters(record)]
            changed.extend(
                stage(files, record.staging_settings, owner=os.fspath(record.origin_directory)).changed
            )
        remove_marker(plan.run.staging_area, CANCELLED)

    submission = make_submission(plan, max_length=MAX_REQUEST_LENGTH)
    new = record.for_restart(plan)
    request_id = submit_run(client.connection, new, submission, stage=stage_again)
    return new.submitted(request_id, server=""), tuple(changed)


def _parameters(record: RunRecord) -> list[StagedFile]:
    """Return the files with the jobs' parameters."""
    base = record.origin_directory / PARAMETERS_DIRECTORY
    names = sorted(path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file())
    return [StagedFile(name, os.fspath(base / name), name) for name in names]
