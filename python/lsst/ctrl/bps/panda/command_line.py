"""What is known of the ``bps`` command that runs: BPS tells a plugin nothing
of it.
"""

from __future__ import annotations

__all__ = ["configuration_file", "is_dry_run"]

import click


def is_dry_run() -> bool:
    """Tell whether ``bps prepare`` or ``bps submitcmd --dry-run`` is running,
    which send nothing.

    BPS calls the checks of a submission in the same way for ``prepare`` and
    ``submit``; what tells them apart is the command that runs.
    """
    context = click.get_current_context(silent=True)
    return context is not None and (context.info_name == "prepare" or bool(context.params.get("dry_run")))


def configuration_file() -> str:
    """Return the YAML file that the command was given; empty if it was given
    none, or a program runs.
    """
    context = click.get_current_context(silent=True)
    if context is None:
        return ""
    given = (context.params.get(name) for name in ("config_file", "config"))
    return next((str(file) for file in given if file), "")
