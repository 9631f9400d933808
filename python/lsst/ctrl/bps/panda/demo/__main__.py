"""The demo's command, ``python -m lsst.ctrl.bps.panda.demo``: make a repository, print a run's
configuration, print and draw its results.
"""

from __future__ import annotations

__all__ = ["main"]

import logging
from pathlib import Path
from typing import Any

import click

from ..errors import PandaBpsError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """A small camera and pipeline to try BPS and PanDA with."""


@main.command()
@click.argument("repo", type=click.Path(path_type=Path))
@click.option("--visits-per-band", default=3, show_default=True, help="Visits in each band.")
@click.option("--detectors", default=4, show_default=True, help="Detectors of the camera.")
@click.option("--bands", default="g,r", show_default=True, help="Bands, separated by commas.")
@click.option("--patches", default=2, show_default=True, help="Patches on a side of the tract.")
@click.option("--seed", default=1, show_default=True, help="Of the random numbers: same seed, same pixels.")
@click.option("--seeing", type=float, help="Seeing, arcseconds (default: 0.75 to 1.2, by visit).")
@click.option("--exposure-time", default=30.0, show_default=True, help="Seconds.")
@click.option("--galaxies", default=0.0, show_default=True, help="Galaxies per square arcsecond, say 0.01.")
@click.option(
    "--catalog",
    type=click.Path(path_type=Path),
    help="CSV, ECSV, Parquet or FITS table of stars and galaxies: ra, dec, a magnitude named as each band.",
)
@click.option(
    "--pointings",
    type=click.Path(path_type=Path),
    help="Table of the visits: ra, dec, band, and any of rotation, seeing, sky, transparency, exposure_time.",
)
def create(repo: Path, bands: str, **options: Any) -> None:
    """Make the Butler repository REPO, ready to simulate and process exposures in."""
    from .repository import RUN_CONFIG, create_repo

    chosen = tuple(band.strip() for band in bands.split(",") if band.strip())
    try:
        create_repo(repo, bands=chosen, **options)
    except (PandaBpsError, FileExistsError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{repo} is made; to simulate and process its exposures: bps submit {repo / RUN_CONFIG}")


@main.command()
@click.argument("repo", type=click.Path(path_type=Path, exists=True))
def config(repo: Path) -> None:
    """Print a BPS configuration for the repository REPO."""
    from .repository import render_run_config

    click.echo(render_run_config(repo), nl=False)


@main.command()
@click.argument("repo", type=click.Path(path_type=Path, exists=True))
@click.argument("collection")
@click.option("--png", type=click.Path(path_type=Path), help="Draw the sky with its objects to this file.")
def summary(repo: Path, collection: str, png: Path | None) -> None:
    """Say what came out of the run whose outputs are in COLLECTION."""
    # The Butler warns of each optional package that it does without.
    logging.getLogger("lsst.daf.butler").setLevel(logging.ERROR)
    from lsst.daf.butler import ButlerUserError

    from .summary import draw_run, read_summary, render_summary

    try:
        click.echo(render_summary(read_summary(repo, collection)))
        if png is not None:
            click.echo(str(draw_run(repo, collection, png)))
    except (PandaBpsError, ButlerUserError, OSError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
