"""The command ``panda_bps rucio``: what a run registers in Rucio, by hand if
need be, and what became of it.
"""

from __future__ import annotations

__all__ = ["rucio"]

import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from lsst.ctrl.bps.panda.campaign.registration import make_registration_document
from lsst.ctrl.bps.panda.errors import PandaBpsError, RucioError
from lsst.ctrl.bps.panda.inquiry import Inquiry
from lsst.ctrl.bps.panda.rucio.client import look_up_outputs, open_butler, open_client, rucio_errors
from lsst.ctrl.bps.panda.rucio.document import make_status_document
from lsst.ctrl.bps.panda.rucio.forecast import Forecast, make_forecast
from lsst.ctrl.bps.panda.rucio.program import Refused, Registration, graph_name
from lsst.ctrl.bps.panda.rucio.program import register as run_registration
from lsst.ctrl.bps.panda.rucio.runs import read_registration
from lsst.ctrl.bps.panda.rucio.status import RegistrationStatus, look_at_registration
from lsst.ctrl.bps.panda.runrecord import RunRecord, read_record

from .campaign_registration import campaign_lines, complete, is_campaign, look_at_campaign, rule_line
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
@click.option(
    "--quantum-graph",
    default="",
    metavar="FILE",
    help="Quantum graph to go along, if not the run's.",
)
@click.option("--local", is_flag=True, help="Ask the embedded PanDA of this machine.")
@_shown
def register(run: str, dry_run: bool, quantum_graph: str, local: bool) -> None:
    """Register what is missing of a run, as its step would.

    It works where the run's Butler does.
    """
    registration = read_registration(complete(_find(run, local=local), local=local))
    graph = quantum_graph or registration.quantum_graph
    with open_butler(registration.butler) as butler:
        if dry_run:
            _print_forecast(_forecast(butler, registration), graph)
            return
        if graph and "://" not in graph and not os.path.isfile(graph):
            raise PandaBpsError(f"The quantum graph {graph} is not there. Name it: --quantum-graph FILE.")
        client = open_client()
        with rucio_errors("register"):
            click.echo(_register(butler, client, registration, graph))


def _register(butler: Any, client: Any, registration: Registration, quantum_graph: str) -> str:
    try:
        return run_registration(butler, client, registration, quantum_graph=quantum_graph)
    except ImportError as error:
        raise RucioError(
            f"There is no module {error.name}: pip install 'lsst-ctrl-bps-panda[rucio]'."
        ) from error


def _forecast(butler: Any, registration: Registration) -> Forecast:
    """Find out what would be done, with or without Rucio."""
    found = look_up_outputs(butler, registration)
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
        click.echo(f"quantum graph: {registration.scope}:{graph_name(registration, quantum_graph)}")
    if not forecast.files:
        click.echo("There is nothing to register; the step refuses that.")


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

    RUN may also be a campaign, by its directory or its configuration: then it
    is shown for each site and in sum.  The exit code is 1 unless all outputs
    are registered and all rules are OK.
    """
    if is_campaign(run):
        found = look_at_campaign(run, local=local)
        if as_json:
            write_json(make_registration_document(found))
        else:
            for line in campaign_lines(found, list_missing=list_missing):
                click.echo(line)
            print_problems(found.problems)
        return 0 if found.is_complete else _INCOMPLETE
    record = complete(_find(run, local=local), local=local)
    registration = read_registration(record)
    state, problems = look_at_registration(open_client(), registration)
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
    yield from map(rule_line, state.rules)
    if state.rule_missing:
        yield f"no rule for {state.rule_missing}, which there should be"
    elif not state.rules:
        yield "no rule"
    if state.quantum_graph is not None:
        yield f"quantum graph: {'registered' if state.quantum_graph else 'missing'}"
    if state.outputs is None:
        return
    if state.by_type:
        rows = [(name, *numbers) for name, numbers in state.by_type.items()]
        yield from ("  " + line for line in table(("dataset type", "in the Butler", "registered"), rows))
    for name in state.absent:
        yield f"The run has no dataset of type {name}."
    yield f"missing: {len(state.missing)} of {state.outputs}"
    shown = state.missing if list_missing else state.missing[:5]
    yield from (f"  {name}" for name in shown)
    if len(shown) < len(state.missing):
        yield f"  and {len(state.missing) - len(shown)} more (--missing)"
    if state.foreign:
        yield f"not of these outputs: {state.foreign} files (of another run, or put there by hand)"
