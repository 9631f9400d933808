"""The commands: the only part of the package that prints."""

from __future__ import annotations

__all__ = ["INTERRUPTED", "CommandGroup"]

import sys
from typing import Any

import click

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C has ended: 128 and the number of the signal, as a shell has it."""


class CommandGroup(click.Group):
    """Sub-commands that end with 130 after Ctrl-C."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the sub-command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(INTERRUPTED)
