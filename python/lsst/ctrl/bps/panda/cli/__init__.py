"""The commands: the only part of the package that prints.

This module, `.panda_auth`, `.panda_bps` and `.panda_local` import neither BPS nor other parts of the package
that do: help, completion and suggestions have to be there at once.  They are also imported as
``panda_commands.cli``.
"""

from __future__ import annotations

__all__ = ["INTERRUPTED", "CommandGroup"]

import json
import os
import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from ..files import RECORD_NAME, user_directory

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C has ended: 128 and the number of the signal, as a shell has it."""

_MOST_RUNS = 50
"""Runs that completion offers at most."""


def _import_command(program: str, name: str) -> click.Command:
    """Import a command from ``cli/<program>.py``."""
    module = import_module(f"lsst.ctrl.bps.panda.cli.{program}")
    return next(
        found for found in vars(module).values() if isinstance(found, click.Command) and found.name == name
    )


class CommandGroup(click.Group):
    """Sub-commands that are imported when they run, and that end with 130 after Ctrl-C.

    What help and completion need of them is in ``commands.json``, which a test keeps as the commands are.

    Parameters
    ----------
    homes : `dict` [`str`, `str`], optional
        Modules of this folder, and the names of the commands in each.
    """

    def __init__(self, *args: Any, homes: Mapping[str, str] | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._homes = {name: home for home, names in (homes or {}).items() for name in names.split()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the sub-commands."""
        return sorted({*super().list_commands(ctx), *self._homes})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return a sub-command; while help or completion is made, what they need of it."""
        if name not in self._homes:
            return super().get_command(ctx, name)
        return self._outlines()[name] if ctx.resilient_parsing else _import_command(self._homes[name], name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of the sub-commands without importing them."""
        before, ctx.resilient_parsing = ctx.resilient_parsing, True
        super().format_commands(ctx, formatter)
        ctx.resilient_parsing = before

    def _outlines(self) -> dict[str, click.Command]:
        text = Path(__file__).with_name("commands.json").read_text(encoding="utf-8")
        return {name: _outline(name, parts) for name, parts in json.loads(text)[self.name].items()}

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the sub-command; a name that is misspelt is an error with the one that is probably meant."""
        name, known = args[0], self.list_commands(ctx)
        if name in known or name.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        findings = import_module("lsst.ctrl.bps.panda.findings")
        meant = findings.did_you_mean(name, known, likeness=0.6) or f"; there are {', '.join(known)}."
        ctx.fail(f"There is no command {name!r}{meant}")

    def invoke(self, ctx: click.Context) -> Any:
        """Run the sub-command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(INTERRUPTED)


# --- completion -------------------------------------------------------------


def _outline(name: str, parts: Mapping[str, Any]) -> click.Command:
    """Make a command, or a group of commands, that has help and completion only."""
    if "commands" in parts:
        commands = {name: _outline(name, part) for name, part in parts["commands"].items()}
        return click.Group(name, commands=commands, short_help=parts["help"])
    return click.Command(name, params=[*map(_parameter, parts["parameters"])], short_help=parts["help"])


def _parameter(text: str) -> click.Parameter:
    """Make an option of ``-l,--label=LABEL``, or an argument of ``RUN``."""
    flags, _, value = text.partition("=")
    kind: Any = click.Choice(value.split("|")) if "|" in value else {"FILE": click.File()}.get(value)
    if flags.startswith("-"):
        complete = _complete_label if value == "LABEL" else None
        return click.Option(flags.split(","), is_flag=not value, type=kind, shell_complete=complete)
    name = flags.strip("[].")
    complete = _complete_run if name == "RUN" else None
    kind = click.File() if name in ("CONFIG", "CAMPAIGN") else None
    nargs = -1 if flags.endswith("...") else 1
    return click.Argument([name.lower()], required=False, type=kind, shell_complete=complete, nargs=nargs)


def _own_runs() -> Iterable[dict[str, Any]]:
    """Yield the user's own runs, the newest first."""
    try:
        lines = Path(user_directory(os.environ), "runs.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in reversed(lines[-_MOST_RUNS:]):
        try:
            entry = json.loads(line)
            yield {"id": str(entry["request_id"]), "name": entry["name"], "directory": entry["submit_path"]}
        except (ValueError, KeyError, TypeError):
            continue


def _complete_run(ctx: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Offer ids with their names as explanation, names once one is begun, and directories."""
    runs = [*_own_runs()]
    found = [CompletionItem(run["id"], help=run["name"]) for run in runs if run["id"].startswith(begun)]
    if begun:
        names = dict.fromkeys(run["name"] for run in runs)
        found += [CompletionItem(name) for name in names if name.startswith(begun)]
    return found or [CompletionItem(begun, type="dir")]


def _complete_label(ctx: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Offer the labels of the run that is named, or of the last one."""
    named = str(ctx.params.get("run") or "")
    matching = (r["directory"] for r in _own_runs() if not named or named == r["id"] or named in r["name"])
    directory = named if os.path.isdir(named) else next(matching, "")
    try:
        record = json.loads(Path(directory, RECORD_NAME).read_text(encoding="utf-8"))
        return [CompletionItem(label) for label, _ in record["labels"] if label.startswith(begun)]
    except (OSError, ValueError, KeyError, TypeError):
        return []
