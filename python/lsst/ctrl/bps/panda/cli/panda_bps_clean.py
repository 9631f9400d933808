"""The command ``panda_bps clean``: remove the files of a run that nobody needs any more."""

from __future__ import annotations

__all__ = ["clean"]

import os
import shutil
from pathlib import Path

import click
from lsst.ctrl.bps.wms_service import WmsStates

from ..errors import PandaBpsError
from ..runs.client import FoundRun, RunClient
from ..staging import list_area, remove_area
from ..status.records import render_count
from .panda_bps_show import RunArgument, run_command


@click.command()
@run_command
@click.option("--submit-directory", is_flag=True, help="Remove the submit directory, too.")
@click.option("--unfinished", is_flag=True, help="Also a run that has failed; it cannot be restarted then.")
@click.option("-n", "--dry-run", is_flag=True, help="Show only what would be removed.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def clean(argument: RunArgument, submit_directory: bool, unfinished: bool, dry_run: bool, yes: bool) -> None:
    """Remove the staging area of a run that has ended.  RUN is its id,
    a part of its name, or its submit directory; by default your last run.

    Outputs, logs in PanDA and what bps report shows stay. Of a run that was restarted the area is that of
    all its requests, of which the last counts.

    \b
    panda_bps clean 41 --dry-run            to look first
    panda_bps clean 41 --submit-directory   nothing of the run is left here
    """  # noqa: D301 (click's mark)
    client = RunClient(argument.connection)
    found, record = client.find_last(argument.run)
    _check_state(client, found, unfinished=unfinished)
    directory = record.origin_directory
    area = record.staging_area
    names = list_area(area, os.fspath(directory)) if area else []
    if names:
        click.echo(f"Staging area {area}: {render_count(len(names), 'file')}")
    if submit_directory:
        number = sum(len(files) for _, _, files in os.walk(directory))
        click.echo(f"Submit directory {directory}: {render_count(number, 'file')}")
    if not (names or submit_directory):
        click.echo(f"Run {found.request_id} has no files in a staging area.")
        return
    if dry_run:
        return
    if not yes:
        click.confirm(f"Remove this of run {found.request_id} {record.name}?", abort=True)
    if names:
        remove_area(area, names)
    if submit_directory:
        _remove(directory)
    click.echo("Removed.")


def _check_state(client: RunClient, found: FoundRun, *, unfinished: bool) -> None:
    """Refuse a run that goes on, and one that may be restarted unless that is given up; fetch outputs that it
    has left in the staging area.
    """
    evidence = client.status(found)
    state = evidence.tally.state
    if not evidence.ended or (evidence.aborted and client.with_panda(evidence).running_jobs):
        raise PandaBpsError(f"Run {found.request_id} is still going, and its jobs read these files.")
    if state is not WmsStates.SUCCEEDED and not unfinished:
        raise PandaBpsError(
            f"Run {found.request_id} has not succeeded (it is {state.name}), and without these files it "
            "cannot be restarted. Complete it with bps restart, or give --unfinished to give it up."
        )
    if problems := found.collect_outputs(state):
        raise PandaBpsError(" ".join(problems))


def _remove(directory: Path) -> None:
    try:
        shutil.rmtree(directory)
    except OSError as error:
        raise PandaBpsError(f"The submit directory {directory} cannot be removed: {error}.") from error
