"""The command ``panda_bps rucio``: registers the outputs of a run in Rucio, and shows what is registered."""

from __future__ import annotations

__all__ = ["campaign_lines", "is_campaign", "rucio"]

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import click

from ..campaign.record import RECORD_NAME, find_campaign
from ..campaign.runs import (
    CampaignRegistration,
    SiteRegistration,
    count_locks,
    count_rules,
    make_registration_document,
    make_registration_overview,
)
from ..edgenode.rucio_program import Registration, RegistrationError, graph_name
from ..edgenode.rucio_program import register as run_registration
from ..errors import PandaBpsError, RucioError
from ..insight.documents import make_document
from ..rucio.client import find_outputs_of_run, open_butler, open_client, rucio_errors
from ..rucio.status import (
    RegistrationStatus,
    ReplicaCount,
    Rule,
    fetch_registration_status,
    make_plain_status,
)
from ..rucio.step import Forecast, make_forecast, read_registration
from ..runs.client import FoundRun, RunClient
from ..runs.files import names_directory
from ..runs.record import RunRecord, read_record
from . import CommandGroup
from .output import json_option, print_lines, print_problems, shows_errors, table, write_json
from .panda_bps_campaign import campaign_index
from .panda_bps_show import find_run, local_option

_UNKNOWN = (None, None, None)
"""Outputs, registered and missing ones, where the Butler was not asked."""


def is_campaign(name: str) -> bool:
    """Tell whether a name is that of a campaign: its directory, its record, or
    the configuration it was made from.
    """
    return os.path.isfile(name) or os.path.isfile(os.path.join(name, RECORD_NAME))


def _look_up(run: str, *, local: bool) -> FoundRun:
    argument = find_run(run, local=local)
    return RunClient(argument.connection).find(argument.run)


def _find_record(run: str, *, local: bool) -> RunRecord:
    """Find the record of a run by its id, name or submit directory.

    For a directory no server is needed, unless the plan is made at the site and has not come back.
    """
    if names_directory(run):
        record = read_record(run)
        if record.waits_for_site:
            # Without the server, it is said that the site has not sent it.
            with contextlib.suppress(PandaBpsError):
                return _look_up(run, local=local).record or record
        return record
    request_id, found = _look_up(run, local=local)
    if found is None:
        raise PandaBpsError(
            f"What run {request_id} registers is written in its submit directory, which is not known on "
            "this machine to this user. Give the submit directory instead of the id."
        )
    return found


def _fetch_campaign_registration(name: str, *, local: bool) -> CampaignRegistration:
    """Find out what all runs of a campaign have registered."""
    record = find_campaign(name, campaign_index())
    client = open_client()

    def ask(submit_path: str) -> tuple[RegistrationStatus, tuple[str, ...]]:
        return fetch_registration_status(client, read_registration(_find_record(submit_path, local=local)))

    return make_registration_overview(record, ask)


def _rule_line(rule: Rule) -> str:
    ends = f", until {rule.expires_at}" if rule.expires_at else ""
    waiting = f", to come {rule.waiting}" if rule.waiting else ""
    return (
        f"rule {rule.rule_id}: {rule.state}, {rule.copies} of {rule.rse_expression}, account {rule.account}"
        f"{ends}; locks OK {rule.ok}, replicating {rule.replicating}, stuck {rule.stuck}{waiting}"
        + (f"; {rule.error}" if rule.error else "")
    )


def campaign_lines(found: CampaignRegistration, *, list_missing: bool) -> Iterator[str]:
    """Return the lines about the registration of a campaign, with all missing files if asked for."""
    share = f"{sum(site.is_complete for site in found.sites)} of {len(found.sites)}"
    yield f"Campaign {found.name}: registration complete at {share} sites, in {found.path}"
    rows = [(site.site, site.request_id, *_numbers(site)) for site in found.sites]
    asked = len(found.not_asked) < len(found.sites)
    figures = (found.outputs, found.outputs - found.missing, found.missing) if asked else _UNKNOWN
    rows.append(("total", None, *figures, found.files, *_rule_figures(found.rules)))
    head = ("site", "run", "in the Butler", "registered", "missing", "files")
    yield from table((*head, "locks OK", "replicating", "stuck", "to come", "rules"), rows)
    if found.not_asked and asked:
        yield f"in the Butler, registered, missing: without {', '.join(found.not_asked)}"
    if found.places:
        yield from _place_table(found.places)
    yield from _wanting(found, list_missing=list_missing)


def _numbers(site: SiteRegistration) -> tuple[object, ...]:
    """Return the figures of a site; `None` for what is not known."""
    status = site.status
    if status is None:
        return (None,) * 9
    outputs, missing = status.outputs, len(status.missing)
    figures = _UNKNOWN if outputs is None else (outputs, outputs - missing, missing)
    return (*figures, status.files, *_rule_figures(status.rules))


def _rule_figures(rules: tuple[Rule, ...]) -> tuple[object, ...]:
    """Return the number of locks in each state, and the states of the rules."""
    states = ", ".join(f"{number} {state}" for state, number in count_rules(rules).items()) or "none"
    return (*count_locks(rules).values(), states)


def _place_table(places: Sequence[ReplicaCount]) -> list[str]:
    rows = [(place.rse, place.available, place.others) for place in places]
    return table(("replicas at", "available", "other"), rows, indent="  ")


def _wanting(found: CampaignRegistration, *, list_missing: bool) -> Iterator[str]:
    """Return the lines about missing rules, graphs and, if asked for, files."""
    for site in found.sites:
        status = site.status
        if status is None:
            continue
        if status.rule_missing:
            yield f"{site.site}: no rule for {status.rule_missing}, which there should be"
        if status.quantum_graph is False:
            yield f"{site.site}: the quantum graph is missing"
        for name in status.absent:
            yield f"{site.site}: the run has no dataset of type {name}"
        for name in status.missing if list_missing else ():
            yield f"{site.site}: missing {name}"
    for rule in found.rules:
        if rule.error or rule.state not in ("OK", "REPLICATING"):
            yield _rule_line(rule)


@click.group(cls=CommandGroup, invoke_without_command=True)
@click.option("--dry-run", "dry_run", metavar="RUN", help='The same as "register --dry-run RUN".')
@local_option
@click.pass_context
def rucio(context: click.Context, dry_run: str | None, local: bool) -> None:
    """Look at what runs register in Rucio.  RUN is a run's id, name or submit directory.

    RUCIO_CONFIG, RUCIO_ACCOUNT and so on select the Rucio server and account.
    """
    if context.invoked_subcommand is None:
        if dry_run is None:
            click.echo(context.get_help())
            return
        context.invoke(register, run=dry_run, dry_run=True, quantum_graph="", local=local)


@rucio.command()
@click.argument("run")
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@click.option(
    "--quantum-graph", default="", metavar="FILE", help="Quantum graph to register, if not that of the run."
)
@local_option
@shows_errors(RegistrationError)
def register(run: str, dry_run: bool, quantum_graph: str, local: bool) -> None:
    """Register what is missing of a run, as its own step would have done.

    The run's Butler has to be accessible.
    """
    registration = read_registration(_find_record(run, local=local))
    graph = quantum_graph or registration.quantum_graph
    with open_butler(registration.butler) as butler:
        if dry_run:
            _print_forecast(_forecast(butler, registration), graph)
            return
        if graph and "://" not in graph and not os.path.isfile(graph):
            raise PandaBpsError(f"The quantum graph {graph} is not there. Name it: --quantum-graph FILE.")
        client = open_client()
        with rucio_errors("register"):
            try:
                click.echo(run_registration(butler, client, registration, quantum_graph=graph))
            except ImportError as error:
                raise RucioError(
                    f"There is no module {error.name}: pip install 'lsst-ctrl-bps-panda[rucio]'."
                ) from error


def _forecast(butler: Any, registration: Registration) -> Forecast:
    """Find out what would be done, with or without Rucio."""
    found = find_outputs_of_run(butler, registration)
    try:
        client = open_client()
    except PandaBpsError as error:
        print_problems([f"what Rucio has already. {error}"])
        client = None
    return make_forecast(client, registration, found)


def _print_forecast(forecast: Forecast, quantum_graph: str) -> None:
    registration = forecast.registration
    rows = []
    for file in forecast.files:
        what, did = "is there" if file.is_registered else "add", f"{registration.scope}:{file.name}"
        rows.append((what, file.dataset_type, did, file.pfn, file.size))
    print_lines(table(("", "dataset type", "did", "where", "bytes"), rows, left=4))
    for name in forecast.absent:
        click.echo(f"The run has no dataset of type {name}.")
    if forecast.without_file:
        click.echo(f"{forecast.without_file} datasets have no file and are left out.")
    print_lines(_plan_lines(forecast))
    if quantum_graph:
        click.echo(f"quantum graph: {registration.scope}:{graph_name(registration, quantum_graph)}")
    if not forecast.files:
        click.echo("There is nothing to register, which the step reports as a failure.")


def _plan_lines(forecast: Forecast) -> Iterator[str]:
    """Return the lines about everything but the files."""
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
    if forecast.registered is None:
        return "Rucio was not asked"
    if forecast.registered.dataset is None:
        return "new"
    if forecast.registered.dataset.is_open:
        return "exists, open"
    return "exists, closed" + (": nothing can be added" if forecast.new else "")


@rucio.command()
@click.argument("run")
@json_option
@click.option("--missing", "list_missing", is_flag=True, help="Name every file that is missing.")
@local_option
@shows_errors(RegistrationError)
def status(run: str, as_json: bool, list_missing: bool, local: bool) -> int:
    """Show what is registered of a run, where it is, and what is missing.

    RUN may also be a campaign, by its directory or its configuration: then it is shown for each site and in
    sum.  The exit code is 1 unless all outputs are registered and all rules are OK.
    """
    if is_campaign(run):
        found = _fetch_campaign_registration(run, local=local)
        if as_json:
            write_json(make_registration_document(found))
        else:
            print_lines(campaign_lines(found, list_missing=list_missing))
            print_problems(found.problems)
        return 0 if found.is_complete else 1
    record = _find_record(run, local=local)
    state, problems = fetch_registration_status(open_client(), read_registration(record))
    if as_json:
        plain, run_id = make_plain_status(state), record.request_id or 0  # 0 if it was not submitted
        write_json(make_document(plain, kind="rucio", request_id=run_id, name=record.name, problems=problems))
    else:
        print_lines(_status_lines(state, list_missing=list_missing))
        print_problems(problems)
    return 0 if state.is_complete else 1


def _status_lines(state: RegistrationStatus, *, list_missing: bool) -> Iterator[str]:
    kind = ("open" if state.is_open else "closed") if state.exists else "does not exist"
    yield f"dataset {state.scope}:{state.dataset}: {kind}, {state.files} files, {state.size} bytes"
    if state.places:
        yield from _place_table(state.places)
    yield from map(_rule_line, state.rules)
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
        yield from table(("dataset type", "in the Butler", "registered"), rows, indent="  ")
    for name in state.absent:
        yield f"The run has no dataset of type {name}."
    yield f"missing: {len(state.missing)} of {state.outputs}"
    shown = state.missing if list_missing else state.missing[:5]
    yield from (f"  {name}" for name in shown)
    if len(shown) < len(state.missing):
        yield f"  and {len(state.missing) - len(shown)} more (--missing)"
    if state.foreign:
        yield f"not of these outputs: {state.foreign} files (of another run, or put there by hand)"
