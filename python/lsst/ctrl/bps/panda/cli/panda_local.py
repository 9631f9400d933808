"""The command ``panda_local``: an embedded PanDA to try runs on this machine."""

from __future__ import annotations

__all__ = ["main"]

import click

from . import CommandGroup

_HOMES = {"panda_local_server": "check clean env logs open restore run start status stop"}


@click.group(
    "panda_local", cls=CommandGroup, homes=_HOMES, context_settings={"help_option_names": ["-h", "--help"]}
)
def main() -> None:
    """Run a PanDA on this machine, to try a BPS run before it uses a facility.

    It is the real iDDS with a small PanDA in front of it; jobs run here, as
    processes.  It listens on this machine only and keeps everything in one
    directory.

    \b
    Try it:
      panda_local start
      panda_local check
      eval "$(panda_local env)"
      bps submit my.yaml        # with wmsServiceClass: lsst.ctrl.bps.panda.PanDAService
      bps report --id 1
      panda_local stop

    \b
    Or all at once, leaving nothing behind:
      panda_local run -- bps submit my.yaml
    """  # noqa: D301


if __name__ == "__main__":
    main()
