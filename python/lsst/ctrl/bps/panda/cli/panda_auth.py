"""The command ``panda_auth``: log in to PanDA, show and renew the token."""

from __future__ import annotations

__all__ = ["main"]

from importlib import import_module

import click

from . import CommandGroup

_HOMES = {"panda_auth_token": "clean refresh reset status"}


@click.group(
    "panda_auth", cls=CommandGroup, homes=_HOMES, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option(
    "--log-level",
    multiple=True,
    metavar="LEVEL|COMPONENT=LEVEL",
    help="Level of what is logged: CRITICAL, ERROR, WARNING, INFO, VERBOSE, DEBUG or TRACE.",
)
@click.option("--long-log", is_flag=True, help="Log in long format.")
@click.option(
    "--log-file", multiple=True, metavar="FILE", help="File to log to; if it ends with .json, JSON."
)
@click.option("--log-tty/--no-log-tty", default=True, help="Log to the terminal (default), or not.")
@click.option("--log-label", multiple=True, metavar="KEY=VALUE", help="Add this to the records of the log.")
def main(
    log_level: tuple[str, ...],
    long_log: bool,
    log_file: tuple[str, ...],
    log_tty: bool,
    log_label: tuple[str, ...],
) -> None:
    """Log in to PanDA and manage the token."""
    given = {"log-level": log_level, "log-file": log_file, "log-label": log_label}
    words = [f"--{name}={value}" for name, values in given.items() for value in values]
    words += ["--long-log"] * long_log + ["--no-log-tty"] * (not log_tty)
    import_module("lsst.ctrl.bps.panda.cli.panda_auth_token").begin_log(words)


if __name__ == "__main__":
    main()
