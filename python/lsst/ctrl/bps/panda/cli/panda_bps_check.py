"""The commands that take a configuration: ``panda_bps check`` validates one, ``panda_bps build`` submits a
remote build, ``panda_bps schema`` prints the JSON schema for editors.
"""

from __future__ import annotations

__all__ = ["build", "check", "make_service", "schema", "service_class_option"]

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from lsst.utils import doImport

from ..checks.misspellings import check_names
from ..errors import PandaBpsError, SettingsError
from ..findings import Finding, describe_findings
from ..settings.configuration import RunConfiguration, complete_configuration, missing_service_class
from ..settings.run import read_service_settings
from ..settings.schema import make_schema
from ..settings.variables import generate_values
from .output import shows_errors

_NOT_CHECKED = (
    "Not checked, as that needs the Butler: its collections, dataQuery, and what quanta there are. "
    "'bps prepare' asks it."
)

service_class_option = click.option(
    "--wms-service-class", help="Service class to use instead of the configuration's."
)


def _configuration_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the argument CONFIG and what ``bps submit`` lets replace in it."""
    site = click.option("--compute-site", help="Site to use instead of the configuration's.")
    config = click.argument("config", type=click.Path(exists=True, dir_okay=False))
    return config(site(service_class_option(function)))


def make_service(name: str, config: Any = None) -> Any:
    """Make the service object that a configuration names; a `SettingsError` if there is
    no such class, or it is another plugin's.
    """
    try:
        service_class: Any = doImport(name)
    except ImportError as error:
        raise missing_service_class(error) from error
    service = service_class({} if config is None else config)
    if not hasattr(service, "check_submission"):
        raise SettingsError(
            f"wmsServiceClass is {name}, which is not a service class of this plugin. Set it to "
            "lsst.ctrl.bps.panda.PanDAService or lsst.ctrl.bps.panda.LocalPanDAService.",
            key="wmsServiceClass",
        )
    return service


@click.command()
@_configuration_options
def check(config: str, compute_site: str | None, wms_service_class: str | None) -> None:
    """Check CONFIG for what would keep its run from working.

    Nothing is submitted and no quantum graph is made: memory and cores of the jobs are checked by "bps
    prepare".  The exit code is 1 if there is a problem.
    """
    from lsst.pipe.base import Instrument

    settings = read_service_settings(None)
    given = {"computeSite": compute_site, "wmsServiceClass": wms_service_class}
    try:
        bps_config = complete_configuration(
            config,
            timestamp=Instrument.makeCollectionTimestamp(),
            user=settings.user,
            environment=settings.environment,
            service_class=wms_service_class,
            command_line={key: value for key, value in given.items() if value},
        )
        failed = []
        try:
            bps_config = generate_values(bps_config, settings.environment)
        except SettingsError as error:
            failed = [Finding.from_error(error)]
        service = make_service(RunConfiguration(bps_config).service_class, bps_config)
        found = [*service.check_submission(), *check_names(bps_config, settings.environment)]
        findings = [*failed, *(each for each in found if each.key not in [error.key for error in failed])]
    except (PandaBpsError, KeyError, ValueError, OSError, RuntimeError) as error:
        raise click.ClickException(f"{config} cannot be checked: {_reason(error)}") from error
    text, can_submit = describe_findings(findings, config)
    click.echo(text)
    if not RunConfiguration(bps_config).is_command:
        click.echo(_NOT_CHECKED)
    sys.exit(0 if can_submit else 1)


@click.command()
@_configuration_options
@shows_errors(KeyError, ValueError, OSError)
def build(config: str, compute_site: str | None, wms_service_class: str | None) -> None:
    """Submit CONFIG; its quantum graph is then made at the site.

    "bps submit" does the same for configurations with "remoteBuild: {enabled: true}", but only if the service
    class is lsst.ctrl.bps.panda.PanDAService. The section remoteBuild, if there is one, configures the build.
    """
    from lsst.ctrl.bps.initialize import (
        init_submission,
        out_collection_validator,
        output_run_validator,
        submit_path_validator,
    )

    options = {"compute_site": compute_site, "wms_service": wms_service_class}
    bps_config = init_submission(
        config,
        validators=[submit_path_validator, output_run_validator, out_collection_validator],
        **{key: value for key, value in options.items() if value},
    )
    run = RunConfiguration(bps_config)
    workflow = make_service(run.service_class, bps_config).submit(
        None, config=bps_config, config_file=config, remote_build=run.remote_build, compute_site=compute_site
    )
    # As bps submit prints it, for programs that read its output.
    click.echo(f"Submit dir: {run.submit_path}")
    click.echo(f"Run Id: {workflow.run_id}")
    click.echo(f"Run Name: {workflow.name}")


@click.command()
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="File to write instead of printing.",
)
def schema(output: str | None) -> None:
    """Write the JSON schema of BPS configurations, for editors.

    Editors use it to complete keys, to show what they mean and to mark wrong values.
    """
    text = json.dumps(make_schema(), indent=1)
    if output is None:
        click.echo(text)
        return
    try:
        Path(output).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{output} cannot be written: {error}") from error


def _reason(error: BaseException) -> str:
    """Return the text of an error; of BPS's own with that of its cause, which BPS leaves out."""
    if isinstance(error, PandaBpsError):
        return str(error)
    causes = []
    current: BaseException | None = error
    while current is not None:
        causes.append(str(current) or type(current).__name__)
        current = current.__cause__ or current.__context__
    return " ".join(": ".join(dict.fromkeys(causes)).split())
