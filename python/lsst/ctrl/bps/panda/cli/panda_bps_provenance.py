"""The command ``panda_bps provenance``: the last step of a run."""

from __future__ import annotations

__all__ = ["provenance"]

import logging

import click

from ..runs.client import RunClient
from ..runs.provenance import make_provenance
from .panda_bps_show import RunArgument, run_command


@click.command()
@run_command
@click.option("--no-ingest", is_flag=True, help="Make graph and report only; the run stays open.")
@click.option("--close", is_flag=True, help="Close the run although it has not succeeded.")
@click.option(
    "-j", "--processes", default=1, show_default=True, type=click.IntRange(1), help="Processes that read."
)
def provenance(argument: RunArgument, no_ingest: bool, close: bool, processes: int) -> None:
    """Put the provenance of a run into its Butler, which closes the run.  RUN is its id,
    a part of its name, or its submit directory; by default your last run.

    One graph tells what all requests of the run have done, each attempt with its exception and what it used.
    Metadata, logs and configurations are in it then instead of in thousands of files, and bps restart
    refuses the run. Graph and report (JSON) are also put into the submit directory.

    \b
    panda_bps provenance 41
    panda_bps provenance 41 --no-ingest    to look first
    """  # noqa: D301 (click's mark)
    logging.basicConfig(level=logging.WARNING)
    made = make_provenance(
        RunClient(argument.connection), argument.run, ingest=not no_ingest, close=close, processes=processes
    )
    click.echo(f"Graph: {made.graph}")
    click.echo(f"Report: {made.report}")
    if made.ingested:
        click.echo(f"Run {made.request_id} is closed: its provenance is in the Butler.")
