"""The command ``panda_bps check``: the checks of a run without the run."""

from __future__ import annotations

__all__ = ["check"]

import click


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
def check(config: str) -> None:
    """Look for everything that would keep a run of CONFIG from working."""
    raise click.ClickException(f"the check of {config} is not there yet")
