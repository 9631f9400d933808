"""What the sub-commands of ``panda_bps`` that look into a run have in common:
the run they are about, where PanDA is, and how results are written.
"""

from __future__ import annotations

__all__ = [
    "STATE_COLUMNS",
    "Asked",
    "connect_for",
    "count_columns",
    "json_option",
    "print_problems",
    "run_command",
    "table",
    "terminal_width",
    "write_json",
]

import functools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
from lsst.ctrl.bps.wms_service import WmsStates

from lsst.ctrl.bps.panda.errors import PandaBpsError
from lsst.ctrl.bps.panda.local import endpoint as local_endpoint
from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.runs.inquiry import Connection, connect
from lsst.ctrl.bps.panda.runs.record import RunIndex, RunRecord, read_record
from lsst.ctrl.bps.panda.settings.messages import with_messages
from lsst.ctrl.bps.panda.settings.run import ServiceSettings, read_service_settings
from lsst.ctrl.bps.panda.status.states import Counts

_LOCAL_CLASS = "LocalPanDAService"

json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON, as described in the manual.")


STATE_COLUMNS = {
    "done": (WmsStates.SUCCEEDED,),
    "running": (WmsStates.RUNNING,),
    "waiting": (WmsStates.UNREADY, WmsStates.READY, WmsStates.PENDING, WmsStates.HELD),
    "failed": (WmsStates.FAILED,),
    "pruned": (WmsStates.PRUNED,),
    "deleted": (WmsStates.DELETED,),
    "unknown": (WmsStates.UNKNOWN, WmsStates.MISFIT),
}
"""The columns of tables that count jobs: title and the states it holds."""


@dataclass(frozen=True)
class Asked:
    """The run a command is about, and the server that has it."""

    run: str
    connection: Connection

    @property
    def settings(self) -> ServiceSettings:
        """Where PanDA is."""
        return self.connection.settings


def _settings(local: bool, run: str) -> ServiceSettings:
    """Find out where PanDA is: the embedded one if it is asked for, by option
    or as BPS's service class, or if it runs and no other is known.

    Monitor and message broker are those of the run's configuration or of
    the site that it was submitted for, where that is known.
    """
    environment: dict[str, str] = dict(os.environ)
    named = environment.get("BPS_WMS_SERVICE_CLASS", "").endswith(_LOCAL_CLASS)
    settings = read_service_settings(None, environment)
    if settings.url and not (local or named):
        return _as_submitted(run, settings)
    directory = local_endpoint.state_directory(environment)
    found = instance.find(directory)
    if found is None:
        if local or named:
            raise PandaBpsError(f"No embedded PanDA runs with {directory}. Start it: panda_local start.")
        return settings
    merged: Mapping[str, str] = {**environment, **local_endpoint.environment(found)}
    return _as_submitted(run, read_service_settings(None, merged), profile=False)


def _as_submitted(run: str, settings: ServiceSettings, *, profile: bool = True) -> ServiceSettings:
    """Add what the run's record says, if that is on this machine: its site,
    whose profile is used unless the server is another, and the message broker
    of its configuration.
    """
    record = _record_of(run, settings)
    if record is None:
        return settings
    site = str(record.content["run"].get("site") or "")
    if site and profile:
        settings = read_service_settings(None, settings.environment, site=site)
    return with_messages(settings, record.content.get("messages") or {})


def _record_of(run: str, settings: ServiceSettings) -> RunRecord | None:
    index = RunIndex(settings.state_directory)
    try:
        if run.isdecimal():
            return index.find(settings.url, request_id=int(run))
        if os.path.sep in run or os.path.isdir(run):
            return read_record(run)
        return index.find(settings.url, name=run)
    except (PandaBpsError, OSError):
        return None  # Whoever looks the run up will say what is wrong.


def connect_for(run: str, *, local: bool) -> Connection:
    """Reach the server that has a run.

    Parameters
    ----------
    run : `str`
        Id, name or submit directory of the run.
    local : `bool`
        Whether the embedded PanDA is asked for.
    """
    return connect(_settings(local, run))


def run_command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the argument RUN and the option ``--local``, and show
    our errors as one message.

    The function gets an `Asked` first.
    """

    @click.argument("run")
    @click.option("--local", is_flag=True, help="Ask the embedded PanDA of this machine.")
    @functools.wraps(function)
    def call(run: str, local: bool, **options: Any) -> None:
        try:
            code = function(Asked(run, connect_for(run, local=local)), **options)
        except PandaBpsError as error:
            raise click.ClickException(str(error)) from error
        except BrokenPipeError:
            # The reader, such as head, has enough.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 0
        sys.exit(code or 0)

    return call


def write_json(document: Mapping[str, Any], *, line: bool = False) -> None:
    """Write a document to the standard output.

    Parameters
    ----------
    document : `~collections.abc.Mapping`
        JSON-ready.
    line : `bool`, optional
        Whether to write it on one line.
    """
    click.echo(json.dumps(document, indent=None if line else 1))


def print_problems(problems: Iterable[str]) -> None:
    """Say on the standard error what could not be found out."""
    for problem in problems:
        click.echo(f"Not known: {problem}", err=True)


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    left: int = 1,
    drop: Sequence[str] = (),
    width: int = 0,
) -> list[str]:
    """Write a table in columns.

    Parameters
    ----------
    head : `~collections.abc.Sequence` [`str`]
        Titles.
    rows : `~collections.abc.Iterable`
        Values; `None` is shown as ``-``.
    left : `int`, optional
        How many columns are text, set to the left; the others are figures.
    drop : `~collections.abc.Sequence` [`str`], optional
        Titles of columns to leave out, one after the other, until the table
        fits.
    width : `int`, optional
        Columns of the terminal; 0 if everything fits.

    Returns
    -------
    lines : `list` [`str`]
        Without blanks at their ends.
    """
    texts = [list(head), *(["-" if value is None else str(value) for value in row] for row in rows)]
    flush = [number < left for number in range(len(head))]
    spare = [name for name in drop if name in head] if width else []
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    while spare and sum(widths) + 2 * (len(widths) - 1) > width:
        number = texts[0].index(spare.pop(0))
        for row in (*texts, flush, widths):
            del row[number]  # type: ignore[attr-defined]
    return [
        "  ".join(
            text.ljust(size) if to_left else text.rjust(size)
            for text, size, to_left in zip(row, widths, flush, strict=True)
        ).rstrip()
        for row in texts
    ]


def count_columns(counts: Counts) -> list[int]:
    """Count jobs for each of `STATE_COLUMNS`."""
    return [sum(counts[state] for state in states) for states in STATE_COLUMNS.values()]


def terminal_width() -> int:
    """Give the columns of the terminal; 0 if the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
