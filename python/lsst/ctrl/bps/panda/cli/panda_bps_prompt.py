"""The commands ``panda_bps prompt``: images are processed as they arrive."""

from __future__ import annotations

__all__ = ["prompt"]

import logging
import sys
import time
from pathlib import Path

import click

from ..insight.documents import make_document, make_plain
from ..prompt.catalog import Catalog, GroupState, ProcessingIndex
from ..prompt.process import (
    CATALOG_NAME,
    LOG_NAME,
    READY_NAME,
    find_process,
    make_processing,
    only_process,
    spawn,
    state_directory,
    stop_process,
)
from ..prompt.report import PromptReport, read_processing, write_plot
from ..settings.prompt import read_prompt_file
from ..settings.run import read_service_settings
from . import CommandGroup
from .output import json_option, print_lines, shows_errors, table, write_json
from .panda_local_server import noted_signals

_shows_errors = shows_errors(OSError)

_config = click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))


@click.group(cls=CommandGroup)
def prompt() -> None:
    """Process images as they arrive, from the file to its catalogue within seconds.

    CONFIG is the configuration of an ordinary run with a section prompt.  What has happened is kept in a
    directory beside it, CONFIG without its suffix and with .prompt.
    """


@prompt.command()
@_config
@click.option("--foreground", is_flag=True, help="Stay in the foreground; end with Ctrl-C.")
@_shows_errors
def start(config: Path, foreground: bool) -> None:
    """Start processing images as they arrive, and continue with groups that are not finished.

    Images that are there already count as arrived.  With source lines it stays in the foreground and reads
    the standard input.
    """
    directory = state_directory(config)
    ProcessingIndex(read_service_settings(None).state_directory).add(config)
    if not foreground and read_prompt_file(str(config)).source != "lines":
        if (pid := find_process(directory)) is not None:
            click.echo(f"process {pid} does it already")
            return
        click.echo(f"process {spawn(config, directory)} has started; its log is {directory / LOG_NAME}")
        return
    _process(config, directory)


def _process(config: Path, directory: Path) -> None:
    from ..prompt.steps import GroupSteps

    logging.basicConfig(
        format="%(asctime)s %(name)s %(levelname)s: %(message)s",
        level=logging.WARNING,
        stream=sys.stderr,
    )
    with noted_signals() as stopped, only_process(directory):
        catalog = Catalog(directory / CATALOG_NAME)
        steps = GroupSteps(config, directory, catalog)
        processing = make_processing(steps, catalog, stream=sys.stdin, tell=_say)
        (directory / READY_NAME).touch()
        _say(f"waiting for images; what happens is kept in {directory}")
        try:
            processing.run(lambda: bool(stopped))
        finally:
            (directory / READY_NAME).unlink(missing_ok=True)
            steps.close()
            catalog.close()


def _say(text: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')} {text}")
    sys.stdout.flush()


@prompt.command()
@_config
@_shows_errors
def stop(config: Path) -> None:
    """Stop processing images.

    Runs that go on are not cancelled; the next start registers their outputs.
    """
    click.echo("stopped" if stop_process(state_directory(config)) else "it was not running")


def _show_counts(found: PromptReport) -> None:
    click.echo(", ".join(f"{number} {state}" for state, number in found.counts.items()))


@prompt.command()
@_config
@_shows_errors
def status(config: Path) -> None:
    """Show whether it runs, and the groups that are not done."""
    state = read_processing(config)
    click.echo(f"process {state.process} runs" if state.process is not None else "it does not run")
    found = state.report
    _show_counts(found)
    now = time.time()
    going = [group for group in found.groups if group.state not in (GroupState.DONE, GroupState.FAILED)]
    rows = [
        (group.name, group.state, group.attempts, group.run_id, f"{now - group.arrived.timestamp():.1f}")
        for group in going
    ]
    if rows:
        print_lines(table(("group", "state", "attempt", "run", "age s"), rows, left=2))


@prompt.command()
@_config
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw into a file.")
@json_option
@_shows_errors
def report(config: Path, plot: Path | None, as_json: bool) -> None:
    """Show how long each stage took, and the groups that missed their deadline, with the cause."""
    found = read_processing(config).report
    if plot is not None:
        write_plot(found, plot)
    if as_json:
        write_json(make_document(make_plain(found), request_id=0, name=config.stem, kind="prompt"))
        return
    _show_counts(found)
    rows = [
        (each.stage, each.count, *(f"{x:.2f}" for x in (each.median, each.p95, each.p99, each.longest)))
        for each in found.stages
    ]
    print_lines(table(("stage, s", "groups", "median", "95 %", "99 %", "longest"), rows))
    if found.missed:
        click.echo(f"\n{len(found.missed)} groups failed or missed their deadline:")
        print_lines(
            f"{each.name}, {each.state} after {each.seconds:.1f} s: {each.cause}" for each in found.missed
        )
