"""The commands ``panda_bps campaign``: one configuration, a run at each of several sites."""

from __future__ import annotations

__all__ = ["campaign", "campaign_index"]

import contextlib
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from lsst.ctrl.bps.wms_service import WmsStates

from ..campaign.parts import prepare_campaign, read_configuration
from ..campaign.record import CampaignIndex, find_campaign, read_campaign
from ..campaign.runs import (
    CampaignOverview,
    SiteOverview,
    cancel_campaign,
    fetch_campaign,
    make_campaign_document,
    make_list_document,
    restart_campaign,
    submit_campaign,
)
from ..checks.configuration import check_service
from ..errors import PandaBpsError
from ..findings import report_findings
from ..insight.documents import make_document
from ..runs.client import connect
from ..settings.bps_command import end_log, is_dry_run
from ..settings.files import check_files
from ..settings.run import read_service_settings
from ..status.bps_states import Counts
from ..status.evidence import RunEvidence
from ..status.failures import find_remarks
from . import CommandGroup
from .output import STATE_COLUMNS, count_columns, json_option, print_lines, shows_errors, table, write_json
from .panda_bps_check import make_service, service_class_option
from .panda_bps_show import RunArgument, errors, fetch_errors, html, print_errors, write_page
from .panda_bps_watch import watch_options, watch_runs

_shows_errors = shows_errors(KeyError, ValueError, OSError)


@click.group(cls=CommandGroup)
def campaign() -> None:
    """Run one configuration at several sites.

    Each gets its part of the data.  The configuration says in its section campaignSites how the data are
    divided.  CAMPAIGN is the submit directory of a campaign, or the configuration it was made from.
    """


def _read(config: str, service_class: str | None) -> Any:
    from lsst.pipe.base import Instrument

    settings = read_service_settings(None)
    check_files(config, settings.environment)
    return read_configuration(
        config,
        timestamp=Instrument.makeCollectionTimestamp(),
        user=settings.user,
        service_class=service_class,
    )


def _prepare(configuration: Any) -> Any:
    """Divide and check a campaign, and write its files; nothing is sent."""
    settings = read_service_settings(None)
    prepared = prepare_campaign(configuration, settings.environment)
    service = make_service(prepared.record.service_class)
    findings = [*prepared.findings]
    if not is_dry_run():
        findings += check_service(service.settings())
    report_findings(findings, is_dry_run=is_dry_run())
    record = prepared.write()
    rows = [
        (part.site, part.compute_site, part.file, f"{part.share:g}", len(part.values))
        for part in record.parts
    ]
    click.echo(f"Campaign {record.name}, divided by {record.partition}, in {record.directory}")
    print_lines(table(("site", "computeSite", "configuration", "share", record.partition), rows, left=3))
    return record


def campaign_index() -> CampaignIndex:
    """Return the list of the user's campaigns, which does not depend on the server."""
    return CampaignIndex(read_service_settings(None).state_directory)


@campaign.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@service_class_option
@_shows_errors
def prepare(config: str, wms_service_class: str | None) -> None:
    """Divide the data of CONFIG and write each site's configuration.

    Nothing is submitted: look at the files, try one with "bps prepare", then submit the directory.
    """
    configuration = _read(config, wms_service_class)
    record = _prepare(configuration)
    campaign_index().add(record)
    click.echo(f"Submit it: panda_bps campaign submit {record.directory}")


@campaign.command()
@click.argument("campaign_or_config", metavar="CAMPAIGN", type=click.Path(exists=True))
@click.option("--new", is_flag=True, help="Begin another campaign of a configuration submitted before.")
@service_class_option
@_shows_errors
def submit(campaign_or_config: str, new: bool, wms_service_class: str | None) -> int:
    """Submit a run to each site.

    Repeat the command if it was interrupted: it continues, and no site gets
    its run twice.  The exit code is 1 if a site has no run.  What BPS logs is
    in bps.log of each site's submit directory.
    """
    # As bps submit does: a quantum graph may take hours.
    _log("INFO")
    record = _find_or_begin(campaign_or_config, new, wms_service_class)
    connection = connect(make_service(record.service_class).settings())
    complete = submit_campaign(record, connection, submit=_submit, tell=click.echo)
    if complete:
        click.echo(f"Next: panda_bps campaign watch {record.directory}")
    else:
        click.echo(f"Some sites have no run; try again: panda_bps campaign submit {record.directory}")
    return 0 if complete else 1


def _submit(file: str) -> None:
    """Submit as ``bps submit`` does, but without what BPS prints, and with a log of its own."""
    from lsst.ctrl.bps.drivers import submit_driver

    click.echo(f"Making a run from {file}")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            submit_driver(file)
    finally:
        end_log()


def _log(level: str) -> None:
    """Log from this level on, in the format of BPS's commands."""
    from lsst.daf.butler.cli.cliLog import CliLog

    CliLog.initLog(longlog=False)
    CliLog.setLogLevels([(None, "WARNING"), ("lsst.ctrl.bps", level)])


def _find_or_begin(name: str, new: bool, service_class: str | None) -> Any:
    """Return the campaign to continue: that of a directory, or the latest of a
    configuration unless a new one is wanted.
    """
    if os.path.isdir(name):
        return read_campaign(name)
    index = campaign_index()
    configuration = _read(name, service_class)
    latest = None if new else index.latest(configuration.path)
    if latest is not None and latest.digest != configuration.digest:
        if latest.begun and not latest.complete:
            raise PandaBpsError(
                f"{name} has changed since campaign {latest.directory} was prepared from it, which is not "
                f"submitted completely. Go on with that one: panda_bps campaign submit {latest.directory}; "
                "or begin another one with --new."
            )
        latest = None
    if latest is None:
        record = _prepare(configuration)
        index.add(record)
        return record
    click.echo(f"Campaign {latest.directory} was prepared from {name} at {latest.prepared_at}.")
    if latest.complete:
        click.echo("All of it is submitted; begin another one with --new.")
    return latest


def _look(name: str) -> tuple[Any, CampaignOverview]:
    """Find a campaign and ask about its runs."""
    record = find_campaign(name, campaign_index())
    service = make_service(record.service_class)
    return service, fetch_campaign(record, connect(service.settings()))


@campaign.command()
@click.argument("name", metavar="CAMPAIGN")
@json_option
@_shows_errors
def report(name: str, as_json: bool) -> None:
    """Show the jobs of all sites by state, for each site and each label."""
    _, found = _look(name)
    if as_json:
        write_json(make_campaign_document(found))
        return
    click.echo(f"Campaign {found.name} {found.state.name}{' (over)' if found.ended else ''}, in {found.path}")
    rows: list[tuple[object, ...]] = [
        (site.site, site.state.name, site.request_id, site.values, *_numbers(site.total))
        for site in found.sites
    ]
    values = sum(site.values for site in found.sites)
    rows.append(("total", found.state.name, "", values, *_numbers(found.total)))
    print_lines(table(("site", "state", "run", found.partition, "jobs", *STATE_COLUMNS), rows, left=2))
    click.echo()
    labels = [(label, *_numbers(counts)) for label, counts in found.labels.items()]
    print_lines(table(("label", "jobs", *STATE_COLUMNS), labels))
    for problem in found.problems:
        click.echo(problem, err=True)


def _numbers(counts: Counts) -> list[int]:
    return [sum(counts.values()), *count_columns(counts).values()]


@campaign.command()
@click.argument("name", metavar="CAMPAIGN")
@_shows_errors
def status(name: str) -> int:
    """Show the state of all runs together; the exit code is that of "bps
    status": 0 if all runs have succeeded.
    """
    _, found = _look(name)
    sites = ", ".join(f"{site.site} {site.state.name}" for site in found.sites)
    click.echo(f"{found.state.name}: {sites}")
    for problem in found.problems:
        click.echo(problem, err=True)
    return int(found.state.value)


@campaign.command("list")
@json_option
@_shows_errors
def list_campaigns(as_json: bool) -> None:
    """List your campaigns, the newest first, without asking a server."""
    lines = [*campaign_index().lines()]
    if as_json:
        write_json(make_list_document(lines))
    elif lines:
        shown = ((each.prepared, each.submitted, each.path, each.config) for each in lines)
        print_lines(table(("prepared", "runs", "directory", "configuration"), shown, left=4))
    else:
        click.echo("No campaign was prepared by this user on this machine: panda_bps campaign prepare.")


def _options(command: click.Command) -> list[click.Parameter]:
    """Return the options that a command about one run and its counterpart for a campaign share."""
    return [each for each in command.params if each.name not in ("run", "local", "output", "as_json")]


def _runs(name: str) -> tuple[CampaignOverview, list[tuple[SiteOverview, RunArgument]]]:
    """Find a campaign and its runs, and say which sites have none."""
    service, found = _look(name)
    for problem in found.problems:
        click.echo(problem, err=True)
    settings = service.settings()
    sites = [site for site in found.sites if site.request_id is not None]
    return found, [(site, RunArgument(str(site.request_id), connect(settings))) for site in sites]


def _write_sites(
    found: CampaignOverview, kind: str, sites: Iterable[tuple[SiteOverview, RunEvidence, Mapping[str, Any]]]
) -> None:
    """Write what was found out about the run of each site as a document."""
    content = [
        {
            "site": site.site,
            "request_id": run.request_id,
            "run": run.name,
            "problems": run.problems,
            "remarks": find_remarks(run),
            **own,
        }
        for site, run, own in sites
    ]
    document = make_document(
        {"path": found.path, "sites": content},
        kind=kind,
        request_id=0,
        name=found.name,
        problems=found.problems,
    )
    write_json(document)


@campaign.command("errors", params=_options(errors))
@click.argument("name", metavar="CAMPAIGN")
@json_option
@_shows_errors
def errors_of_runs(name: str, as_json: bool, **options: Any) -> None:
    """Show why jobs of the runs failed, site by site, as panda_bps errors does."""
    overview, runs = _runs(name)
    found = ((site, *fetch_errors(argument, **options)) for site, argument in runs)
    if as_json:
        _write_sites(
            overview, "campaign_errors", ((site, run, {"groups": groups}) for site, run, groups, _ in found)
        )
        return
    for site, run, groups, left_out in found:
        print_lines([f"== {site.site}"])
        print_errors(run, groups, left_out)


@campaign.command("html", params=_options(html))
@click.argument("name", metavar="CAMPAIGN")
@click.option(
    "-o",
    "--output",
    default=".",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory to write the pages to  [default: the current one].",
)
@json_option
@_shows_errors
def pages_of_runs(name: str, output: Path, as_json: bool, **options: Any) -> None:
    """Write the run of each site as one web page, run_<id>.html."""
    overview, runs = _runs(name)
    written = []
    for site, argument in runs:
        run, path = write_page(argument, output=output / f"run_{site.request_id}.html", **options)
        written.append((site, run, {"path": str(path.absolute())}))
        if not as_json:
            click.echo(f"Wrote {path}")
    if as_json:
        _write_sites(overview, "campaign_pages", written)


@campaign.command("watch")
@click.argument("name", metavar="CAMPAIGN")
@watch_options
@_shows_errors
def watch_of_runs(name: str, **options: Any) -> int:
    """Watch the runs of all sites until they have ended, as panda_bps watch does.

    The exit code is that of 'bps status', of several runs the worst; 15
    (RUNNING) if they have succeeded and a site has no run yet.
    """
    found, runs = _runs(name)
    if not runs:
        raise PandaBpsError(f"Campaign {name} has no run yet. Submit it: panda_bps campaign submit {name}.")
    names = {int(argument.run): site.site for site, argument in runs}
    connections = {int(argument.run): argument.connection for _, argument in runs}
    code = watch_runs(connections, lambda _: f"panda_bps campaign errors {name}", names=names, **options)
    return int(WmsStates.RUNNING.value) if not code and len(runs) < len(found.sites) else code


@campaign.command()
@click.argument("name", metavar="CAMPAIGN")
@_shows_errors
def cancel(name: str) -> int:
    """Cancel all runs that have not ended."""
    _log("WARNING")
    service, found = _look(name)
    return _print_actions(cancel_campaign(found, service.cancel))


@campaign.command()
@click.argument("name", metavar="CAMPAIGN")
@_shows_errors
def restart(name: str) -> int:
    """Restart all runs that have ended without success."""
    _log("WARNING")
    service, found = _look(name)
    return _print_actions(restart_campaign(found, service.restart))


def _print_actions(actions: Iterable[Any]) -> int:
    """Print what was done at each site, and return the exit code."""
    code = 0
    for action in actions:
        click.echo(f"{action.site}: {action.text}")
        code = code if action.done else 1
    return code
