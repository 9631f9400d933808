"""The command ``panda_bps``: what BPS has no command for."""

from __future__ import annotations

__all__ = ["main"]

import click

from . import CommandGroup
from .panda_bps_campaign import campaign
from .panda_bps_check import build, check, schema
from .panda_bps_logs import logs
from .panda_bps_rucio import rucio
from .panda_bps_show import errors, html, resources, show
from .panda_bps_watch import watch


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Look into runs on PanDA, and into configurations before they run.

    \b
    What is run 41 doing?        panda_bps watch 41
    Why did jobs of it fail?     panda_bps errors 41
    What did a job print?        panda_bps logs 41 --failed
    Was it memory or time?       panda_bps resources 41
    One file to send around?     panda_bps html 41

    Each command has a --help of its own.
    """  # noqa: D301 (click's mark)


for _command in (build, campaign, check, errors, html, logs, resources, rucio, schema, show, watch):
    main.add_command(_command)


if __name__ == "__main__":
    main()
