"""The command ``panda_bps rucio``: what a run registers in Rucio, by hand if
need be, and what became of it.
"""

from __future__ import annotations

__all__ = ["rucio"]

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import click

from lsst.ctrl.bps.panda.errors import PandaBpsError, RucioError
from lsst.ctrl.bps.panda.inquiry import Inquiry
from lsst.ctrl.bps.panda.rucio.client import open_butler, open_client, rucio_errors
from lsst.ctrl.bps.panda.rucio.document import make_status_document
from lsst.ctrl.bps.panda.rucio.forecast import Forecast, make_forecast
from lsst.ctrl.bps.panda.rucio.program import Refused, Registration, find_outputs
from lsst.ctrl.bps.panda.rucio.program import register as run_registration
from lsst.ctrl.bps.panda.rucio.runs import read_registration
from lsst.ctrl.bps.panda.rucio.status import RegistrationStatus, find_status
from lsst.ctrl.bps.panda.runrecord import RunRecord, read_record

from .panda_bps_run import connect_for, json_option, print_problems, table, write_json

_INCOMPLETE = 1


def _shown(function: Callable[..., int | None]) -> Callable[..., None]:
    """Show our errors as one message, and end with the function's code."""

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> None:
        try:
            code = function(*args, **options)
        except (PandaBpsError, Refused) as error:
            raise click.ClickException(str(error)) from error
        sys.exit(code or 0)

    return call


def _find(run: str, *, local: bool) -> RunRecord:
    """Find the record of a run; that of a directory without any server."""
    if os.path.isdir(run) or os.path.sep in run:
        return read_record(run)
    request_id, record = Inquiry(connect_for(run, local=local)).identify(run)
    if record is None:
        raise PandaBpsError(
            f"What run {request_id} registers is written in its submit directory, which is not known on "
            "this machine to this user. Give the submit directory instead of the id."
        )
    return record


@click.group(invoke_without_command=True)
@click.option("--dry-run", "dry_run", metavar="RUN", help='The same as "register --dry-run RUN".')
@click.option("--local", is_flag=True, help="Ask the embedded PanDA of this machine.")
@click.pass_context
def rucio(context: click.Context, dry_run: str | None, local: bool) -> None:
    """Look at what runs register in Rucio.  RUN is a run's id, name or submit
    directory.

    RUCIO_CONFIG, RUCIO_ACCOUNT and so on say which Rucio, and as whom.
    """
    if context.invoked_subcommand is None:
        if dry_run is None:
            click.echo(context.get_help())
            return
        context.invoke(register, run=dry_run, dry_run=True, quantum_graph="", local=local)


@rucio.command()
@click.argument("run")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--quantum-graph", default="", metavar="FILE", help="Register this file along with it.")
@click.option("--local", is_flag=True, help="Ask the embedded PanDA of this machine.")
@_shown
def register(run: str, dry_run: bool, quantum_graph: str, local: bool) -> None:
    """Register what is missing of a run, as its step would.

    It works where the run's Butler does.
    """
    registration = read_registration(_find(run, local=local))
    with open_butler(registration.butler) as butler:
        if dry_run:
            _print_forecast(_forecast(butler, registration), quantum_graph)
            return
        client = open_client()
        with rucio_errors("register"):
            click.echo(_register(butler, client, registration, quantum_graph))


def _register(butler: Any, client: Any, registration: Registration, quantum_graph: str) -> str:
    try:
        return run_registration(butler, client, registration, quantum_graph=quantum_graph)
    except ImportError as error:
        raise RucioError(
            f"There is no module {error.name}: pip install 'lsst-ctrl-bps-panda[rucio]'."
        ) from error


def _forecast(butler: Any, registration: Registration) -> Forecast:
    """Find out what would be done, with or without Rucio."""
    found = find_outputs(butler, registration)
    try:
        client = open_client()
    except PandaBpsError as error:
        print_problems([f"what Rucio has already. {error}"])
        client = None
    return make_forecast(client, registration, found)


def _print_forecast(forecast: Forecast, quantum_graph: str) -> None:
    registration = forecast.registration
    rows = [
        ("is there" if file.is_registered else "add", file.dataset_type, file.pfn, file.size)
        for file in forecast.files
    ]
    dids = [f"{registration.scope}:{file.name}" for file in forecast.files]
    lines = table(
        ("", "dataset type", "did", "where", "bytes"),
        [(row[0], row[1], did, row[2], row[3]) for row, did in zip(rows, dids, strict=True)],
        left=4,
    )
    for line in lines:
        click.echo(line)
    for name in forecast.absent:
        click.echo(f"The run has no dataset of type {name}.")
    if forecast.without_file:
        click.echo(f"{forecast.without_file} datasets have no file and are left out.")
    for line in _plan_lines(forecast):
        click.echo(line)
    if quantum_graph:
        click.echo(
            f"quantum graph: {registration.scope}:{registration.dataset}/{quantum_graph.split('/')[-1]}"
        )


def _plan_lines(forecast: Forecast) -> Iterator[str]:
    """Say what happens besides the files."""
    registration, new = forecast.registration, forecast.new
    total = sum(file.size for file in forecast.files)
    yield f"files: {len(forecast.files)}, {total} bytes"
    yield f"to add: {len(new)}, {sum(file.size for file in new)} bytes, at {registration.rse}"
    yield f"dataset: {registration.scope}:{registration.dataset} ({_dataset_words(forecast)})"
    rule = registration.rule
    if rule is None:
        yield "rule: none"
    else:
        ends = f", for {rule.lifetime} seconds" if rule.lifetime else ""
        there = " (is there)" if forecast.rule_exists else ""
        yield f"rule: {rule.copies} of {rule.rse_expression}{ends}{there}"
    yield f"close: {'yes' if registration.close else 'no'}"


def _dataset_words(forecast: Forecast) -> str:
    if forecast.held is None:
        return "Rucio was not asked"
    if forecast.held.dataset is None:
        return "new"
    if forecast.held.dataset.is_open:
        return "exists, open"
    return "exists, closed" + (": nothing can be added" if forecast.new else "")


@rucio.command()
@click.argument("run")
@json_option
@click.option("--missing", "list_missing", is_flag=True, help="Name every file that is missing.")
@click.option("--local", is_flag=True, help="Ask the embedded PanDA of this machine.")
@_shown
def status(run: str, as_json: bool, list_missing: bool, local: bool) -> int:
    """Show what is registered of a run, where it is, and what is missing.

    The exit code is 1 unless all outputs are registered and all rules are OK.
    """
    record = _find(run, local=local)
    registration = read_registration(record)
    client = open_client()
    problems: list[str] = []
    found = None
    try:
        opened = open_butler(registration.butler)
    except RucioError as error:
        problems.append(f"what is missing. {error}")
        opened = nullcontext()
    with opened as butler:
        if butler is not None:
            try:
                found = find_outputs(butler, registration)
            except Refused as error:
                problems.append(f"what is missing. {error}")
    state = find_status(client, registration, found)
    if as_json:
        write_json(
            make_status_document(
                state, request_id=record.request_id or 0, name=record.name, problems=problems
            )
        )
    else:
        for line in _status_lines(state, list_missing=list_missing):
            click.echo(line)
        print_problems(problems)
    return 0 if state.is_complete else _INCOMPLETE


def _status_lines(state: RegistrationStatus, *, list_missing: bool) -> Iterator[str]:
    kind = ("open" if state.is_open else "closed") if state.exists else "does not exist"
    yield f"dataset {state.scope}:{state.dataset}: {kind}, {state.files} files, {state.size} bytes"
    if state.places:
        rows = [(place.rse, place.available, place.others) for place in state.places]
        yield from ("  " + line for line in table(("replicas at", "available", "other"), rows))
    for rule in state.rules:
        ends = f", until {rule.expires_at}" if rule.expires_at else ""
        yield (
            f"rule {rule.rule_id}: {rule.state}, {rule.copies} of {rule.rse_expression}, account "
            f"{rule.account}{ends}; locks OK {rule.ok}, replicating {rule.replicating}, stuck {rule.stuck}"
            + (f"; {rule.error}" if rule.error else "")
        )
    if not state.rules:
        yield "no rule"
    if state.outputs is None:
        return
    if state.by_type:
        rows = [(name, *numbers) for name, numbers in state.by_type.items()]
        yield from ("  " + line for line in table(("dataset type", "in the Butler", "registered"), rows))
    yield f"missing: {len(state.missing)} of {state.outputs}"
    shown = state.missing if list_missing else state.missing[:5]
    yield from (f"  {name}" for name in shown)
    if len(shown) < len(state.missing):
        yield f"  and {len(state.missing) - len(shown)} more (--missing)"
    if state.foreign:
        yield f"not of these outputs: {state.foreign} files (a quantum graph, or of another run)"
