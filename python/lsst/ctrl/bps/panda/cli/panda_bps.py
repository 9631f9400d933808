"""The command ``panda_bps``: what BPS has no command for.

Each sub-command is imported when it is used, so that ``panda_bps --help`` is
quick.
"""

from __future__ import annotations

__all__ = ["COMMANDS", "main"]

from importlib import import_module

import click

from . import CommandGroup

COMMANDS: dict[str, tuple[str, str]] = {
    "build": ("panda_bps_check:build", "Submit a run whose quantum graph is made at the site."),
    "campaign": ("panda_bps_campaign:campaign", "Run one configuration at several sites."),
    "check": ("panda_bps_check:check", "Check a configuration before a run of it is submitted."),
    "errors": ("panda_bps_show:errors", "Show why jobs of a run failed, and what to do."),
    "html": ("panda_bps_show:html", "Write a run as one web page."),
    "logs": ("panda_bps_logs:logs", "Show the logs of a run's jobs."),
    "resources": ("panda_bps_show:resources", "Show what jobs used, and suggest what to ask for."),
    "rucio": ("panda_bps_rucio:rucio", "Look at what runs register in Rucio."),
    "schema": ("panda_bps_check:schema", "Write the JSON schema of configurations, for editors."),
    "show": ("panda_bps_show:show", "Show a run: its tasks, files, links."),
    "watch": ("panda_bps_watch:watch", "Watch a run until it has ended."),
}
"""Module in this folder and function of each sub-command, and its line in the
help.
"""


class _LazyGroup(CommandGroup):
    """Finds sub-commands in the table and imports them when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        # Docstring inherited.
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        # Docstring inherited.
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name][0].partition(":")
        command = getattr(import_module(f".{module}", __package__), function)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Docstring inherited.  The inherited method would import them all.
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
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


if __name__ == "__main__":
    main()
