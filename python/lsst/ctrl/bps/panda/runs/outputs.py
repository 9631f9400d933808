"""Outputs of ``bps submitcmd`` that come back over the staging area: a worker
that does not have the submit host's directories leaves them there.
"""

from __future__ import annotations

__all__ = ["collect_outputs", "find_outputs"]

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from lsst.ctrl.bps.wms_service import WmsStates
from lsst.resources import ResourcePath

from lsst.ctrl.bps import GenericWorkflow

from ..edgenode import cmd_line_decoder as runner
from ..errors import PlanError
from .record import RunRecord

_LOG = logging.getLogger(__name__)


def find_outputs(workflow: GenericWorkflow) -> tuple[tuple[str, str], ...]:
    """List the outputs of the job of ``bps submitcmd``.

    Parameters
    ----------
    workflow : `~lsst.ctrl.bps.GenericWorkflow`
        Any workflow; others have outputs in a Butler only.

    Returns
    -------
    outputs : `tuple` [`tuple` [`str`, `str`]]
        Key, and destination on the submit side, of each.

    Raises
    ------
    PlanError
        Raised if two files cannot be told apart by their names.
    """
    if not workflow.run_attrs.get("bps_iscustom"):
        return ()
    inputs: list[tuple[str, str]] = []
    outputs: list[tuple[str, str]] = []
    for name in workflow:
        job = workflow.get_job(name)
        if job.executable is not None and job.executable.transfer_executable:
            inputs.append(("executable", str(job.executable.src_uri)))
        inputs += [(f.name, str(f.src_uri)) for f in workflow.get_job_inputs(name, transfer_only=True)]
        outputs += [(f.name, str(f.src_uri)) for f in workflow.get_job_outputs(name, transfer_only=True)]
    _refuse_twins(inputs, "executable and inputs (BPS copies them to one directory, over each other)")
    _refuse_twins(outputs, "outputs (the job writes them into its work directory)")
    return tuple(outputs)


def _refuse_twins(files: Sequence[tuple[str, str]], what: str) -> None:
    """Refuse two files that would have one name in one directory."""
    first: dict[str, str] = {}
    for key, path in files:
        name = runner.output_name(path)
        if name in first:
            raise PlanError(
                f"customJob: {first[name]} and {key} are both called {name!r}; {what} must have different "
                "file names. Rename one of them."
            )
        first[name] = key


def collect_outputs(record: RunRecord | None, state: WmsStates) -> tuple[str, ...]:
    """Move what workers left in the staging area to where it belongs on the
    submit side, if the run has ended.

    Parameters
    ----------
    record : `RunRecord` or `None`
        Record of the run, if it is at hand.
    state : `~lsst.ctrl.bps.WmsStates`
        State of the run.

    Returns
    -------
    problems : `tuple` [`str`]
        A sentence for each output that is there and cannot be fetched.
    """
    if record is None or state not in (WmsStates.SUCCEEDED, WmsStates.FAILED):
        return ()
    problems = []
    for key, destination in record.outputs:
        left = runner.left_output(key, destination)
        source = record.staging_area + (quote(left) if "://" in record.staging_area else left)
        try:
            if _fetch(source, Path(destination)):
                _LOG.info("Fetched output %s to %s", key, destination)
        except Exception as error:  # each store has errors of its own
            problems.append(f"Output {key} of run {record.name} cannot be fetched from {source}: {error}")
    return tuple(problems)


def _fetch(source: str, destination: Path) -> bool:
    """Move a file from the staging area; whether there was one."""
    # A path is no URI: it may hold '%', '#' and '?'.
    left = ResourcePath(source if "://" in source else Path(source).as_uri(), forceDirectory=False)
    if not left.exists():
        return False
    part = destination.with_name(f".{destination.name}.{os.getpid()}.part")
    try:
        ResourcePath(part.as_uri(), forceDirectory=False).transfer_from(left, "copy", overwrite=True)
        part.replace(destination)
    finally:
        part.unlink(missing_ok=True)
    left.remove()
    return True
