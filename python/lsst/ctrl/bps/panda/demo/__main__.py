"""The demo's command, ``python -m lsst.ctrl.bps.panda.demo``: make a repository, print a run's
configuration, print and draw its results.
"""

from __future__ import annotations

__all__ = ["main"]

import logging
import time
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


@main.command("expose")
@click.argument("repo", type=click.Path(path_type=Path, exists=True))
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--count", type=click.IntRange(min=1), default=10, show_default=True, help="Exposures.")
@click.option("--every", type=float, default=2.0, show_default=True, help="Seconds from one to the next.")
@click.option("--first", default=1, show_default=True, help="Number of the first one in its night.")
def take(repo: Path, directory: Path, count: int, every: float, first: int) -> None:
    """Take exposures of the sky of REPO, and write their raw images into DIRECTORY.

    The repository is one without visits of its own: create REPO --visits-per-band 0.
    """
    from .raws import expose

    begun = time.monotonic()
    for number, files in enumerate(expose(repo, directory, count, first=first), start=1):
        click.echo(" ".join(map(str, files)))
        time.sleep(max(0.0, begun + every * number - time.monotonic()))


@main.command()
@click.argument("repo", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--images",
    type=click.Path(path_type=Path, file_okay=False),
    help="For panda_bps prompt: the directory in which raw images appear.",
)
def config(repo: Path, images: Path | None) -> None:
    """Print a BPS configuration for the repository REPO."""
    from .repository import PROMPT_CONFIG, render_run_config
    from .workplace import LOCAL_SERVICE

    if images is None:
        click.echo(render_run_config(repo), nl=False)
        return
    section = {"wmsServiceClass": LOCAL_SERVICE, "prompt": {"directory": str(images.absolute())}}
    click.echo(render_run_config(repo, settings=section, base=PROMPT_CONFIG), nl=False)


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
