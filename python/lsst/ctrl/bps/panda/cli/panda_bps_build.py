"""The command ``panda_bps build``: a remote build with any service class."""

from __future__ import annotations

__all__ = ["build"]

from typing import Any

import click

from .output import shows_errors


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@click.option("--compute-site", help="Site to use instead of the configuration's.")
@click.option("--wms-service-class", help="Service class to use instead of the configuration's.")
@shows_errors(KeyError, ValueError, OSError)
def build(config: str, compute_site: str | None, wms_service_class: str | None) -> None:
    """Submit CONFIG for a remote build: its quantum graph is made at the site.

    "bps submit" does the same for configurations with "remoteBuild: {enabled:
    true}", but only if the service class is lsst.ctrl.bps.panda.PanDAService.
    The section remoteBuild, if there is one, configures the build.
    """
    from lsst.ctrl.bps.initialize import (
        init_submission,
        out_collection_validator,
        output_run_validator,
        submit_path_validator,
    )
    from lsst.utils import doImport

    from ..settings.configuration import RunConfiguration

    options = {"compute_site": compute_site, "wms_service": wms_service_class}
    bps_config = init_submission(
        config,
        validators=[submit_path_validator, output_run_validator, out_collection_validator],
        **{key: value for key, value in options.items() if value},
    )
    run = RunConfiguration(bps_config)
    service_class: Any = doImport(run.service_class)
    service = service_class(bps_config)
    workflow = service.submit(
        None,
        config=bps_config,
        config_file=config,
        remote_build=run.remote_build,
        compute_site=compute_site,
    )
    # As bps submit prints it, for programs that read its output.
    click.echo(f"Submit dir: {run.submit_path}")
    click.echo(f"Run Id: {workflow.run_id}")
    click.echo(f"Run Name: {workflow.name}")
