"""The demo's command, ``python -m lsst.ctrl.bps.panda.demo``: make a repository, print a run's
configuration, print and draw its results.
"""

from __future__ import annotations

__all__ = ["main"]

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import click

from ..errors import PandaBpsError
from .choices import DemoRepo

_Command = TypeVar("_Command", bound=Callable[..., Any])


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """A small camera and pipeline to try BPS and PanDA with."""


def _with_choices(command: _Command) -> _Command:
    """Give a command an option for each field of `DemoRepo`, which checks what they say."""
    for name, field in reversed(DemoRepo.model_fields.items()):
        many = field.default == ()
        default = ",".join(field.default) if name == "bands" else field.default
        add = click.option(
            f"--{name.replace('_', '-')}",
            multiple=many,
            default=None if many or default is None else str(default),
            show_default=True,
            metavar="VALUE",
            help=field.description,
        )
        command = add(command)
    return command


def _make(repo: Path, options: Mapping[str, Any]) -> None:
    from .repository import create_repo

    try:
        create_repo(repo, **{name: value for name, value in options.items() if value not in ((), None)})
    except (PandaBpsError, FileExistsError) as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.argument("repo", type=click.Path(path_type=Path))
@_with_choices
def create(repo: Path, **options: Any) -> None:
    """Make the Butler repository REPO, ready to simulate and process exposures in."""
    from .repository import RUN_CONFIG

    _make(repo, options)
    click.echo(f"{repo} is made; to simulate and process its exposures: bps submit {repo / RUN_CONFIG}")


@main.command()
@click.argument("repo")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@_with_choices
def graph(repo: str, command: tuple[str, ...], **options: Any) -> None:
    """Make the Butler repository REPO unless it is there, and run COMMAND, which makes a quantum graph."""
    path = Path(unquote(urlsplit(repo).path))
    if not (path / "butler.yaml").is_file():
        click.echo(f"Making a Butler repository to simulate and process exposures in: {path}")
        try:
            _make(path, options)
        except (click.ClickException, OSError):
            # Somebody else may just have made it.
            if not (path / "butler.yaml").is_file():
                raise
    if command:
        sys.stdout.flush()
        os.execvp(command[0], command)


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
