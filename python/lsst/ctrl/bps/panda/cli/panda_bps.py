"""The command ``panda_bps``: what BPS has no command for."""

from __future__ import annotations

__all__ = ["main"]

import click

from . import CommandGroup

_HOMES = {
    "panda_bps_act": "act",
    "panda_bps_campaign": "campaign",
    "panda_bps_check": "build check schema",
    "panda_bps_clean": "clean",
    "panda_bps_logs": "logs",
    "panda_bps_prompt": "prompt",
    "panda_bps_provenance": "provenance",
    "panda_bps_reproduce": "reproduce",
    "panda_bps_rucio": "rucio",
    "panda_bps_show": "errors html resources show",
    "panda_bps_watch": "watch",
    "panda_bps_web": "web",
}


@click.group(
    "panda_bps", cls=CommandGroup, homes=_HOMES, context_settings={"help_option_names": ["-h", "--help"]}
)
def main() -> None:
    """Look into runs on PanDA, and into configurations before they run.

    \b
    What is run 41 doing?        panda_bps watch 41
    The same in a browser?       panda_bps web
    Why did jobs of it fail?     panda_bps errors 41
    What did a job print?        panda_bps logs 41 --failed
    Does it fail here, too?      panda_bps reproduce 41 JOB
    Was it memory or time?       panda_bps resources 41
    Held, or bad luck?           panda_bps act 41 retry --label isr
    One file to send around?     panda_bps html 41
    What may be deleted of it?   panda_bps clean 41 --dry-run
    Process images on arrival?   panda_bps prompt start my.yaml

    Without an id they are about your last run: panda_bps errors.  Each command has a --help of its own.
    """  # noqa: D301 (click's mark)


if __name__ == "__main__":
    main()
