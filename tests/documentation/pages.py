"""The pages of the documentation as tests read them: their text, their
blocks of code, and the commands that they show.
"""

from __future__ import annotations

__all__ = [
    "CHECKOUT",
    "DOC",
    "MARKDOWN",
    "PAGES",
    "PROGRAMS",
    "RST",
    "Shown",
    "all_commands",
    "blocks",
    "commands",
    "load_command",
    "problem",
    "read",
    "table",
]

import configparser
import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

CHECKOUT = Path(__file__).resolve().parents[2]
DOC = CHECKOUT / "doc"
PAGES = DOC / "lsst.ctrl.bps.panda"
RST = sorted(DOC.rglob("*.rst"))
MARKDOWN = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md"]


def console_scripts() -> dict[str, str]:
    """Return our commands and what they start, from the metadata."""
    parser = configparser.ConfigParser()
    parser.read(CHECKOUT / "setup.cfg")
    lines = parser["options.entry_points"]["console_scripts"].strip().splitlines()
    return {name.strip(): target.strip() for name, _, target in (line.partition("=") for line in lines)}


PROGRAMS = {
    "bps": "lsst.ctrl.bps.cli.bps:cli",
    "python -m lsst.ctrl.bps.panda.demo": "lsst.ctrl.bps.panda.demo.__main__:main",
    "bin/quickstart": "lsst.ctrl.bps.panda.cli.quickstart:main",
    **console_scripts(),
}


def read(page: str | Path) -> str:
    """Return the text of a page, given by its name or path."""
    path = PAGES / f"{page}.rst" if isinstance(page, str) else page
    return path.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """Return the blocks of code of a language in a page, indented ones too."""
    text = read(page)
    if page.suffix == ".md":
        return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)
    pattern = rf"^( *)\.\. code-block:: {language}\n(?:\1   :\w+:.*\n)*\n((?:\1   .*\n|\n)+)"
    found = re.findall(pattern, text + "\n", re.M)
    return [re.sub(rf"^{indent}   ", "", block, flags=re.M).rstrip() + "\n" for indent, block in found]


def table(page: str, head: str) -> list[list[str]]:
    """Return the rows of a simple table whose first line starts with a text;
    a row that has no first cell goes on with the one before.
    """
    lines = read(page).split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith(head))
    edges = [match.span() for match in re.finditer("=+", lines[start - 1])]
    rows: list[list[str]] = []
    for line in lines[start + 2 :]:
        if line.startswith("=="):
            return rows
        last = len(edges) - 1
        cells = [line[a : None if n == last else b].strip() for n, (a, b) in enumerate(edges)]
        if cells[0]:
            rows.append(["" if cells[0] == "\\" else cells[0], *cells[1:]])
        else:
            rows[-1] = [f"{old} {new}".strip() for old, new in zip(rows[-1], cells, strict=True)]
    raise AssertionError(f"the table {head!r} of {page} has no end")


@dataclass(frozen=True)
class Shown:
    """A command that a page shows."""

    page: Path
    program: str
    arguments: tuple[str, ...]


_ENDS = {"|", "&&", "||", ";", ">", "--", "&"}


def _lines(page: Path) -> list[str]:
    text = read(page)
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += [
        line.removeprefix("$ ")
        for block in blocks(page, "console")
        for line in block.splitlines()
        if line[:2] == "$ "
    ]
    if page.suffix == ".md":
        lines += re.findall(r"^    (.+)$", text, re.M) + re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    else:
        lines += [" ".join(literal.split()) for literal in re.findall(r"``((?:[^`]|`(?!`))+)``", text)]
    return [line.strip() for line in lines]


def commands(page: Path) -> Iterator[Shown]:
    """Yield each command of ours or of BPS that a page shows, in a block or
    in the text.
    """
    for line in _lines(page):
        for part in re.split(r"&&|\|\||;|\s--\s|-c '", line):
            yield from _command(page, part.strip().rstrip("'"))


def _command(page: Path, line: str) -> Iterator[Shown]:
    for program in PROGRAMS:
        if line.startswith(program + " ") and "..." not in line:
            plain = re.sub(r"\$\([^)]*\)", "VALUE", line[len(program) :])
            words = shlex.split(plain, comments=True)
            end = next((i for i, word in enumerate(words) if word in _ENDS), None)
            yield Shown(page, program, tuple(words[:end]))


def load_command(program: str) -> click.Command:
    """Import the click command behind a program."""
    name, _, attribute = PROGRAMS[program].partition(":")
    module = importlib.import_module(name)
    command = getattr(module, attribute)
    if isinstance(command, click.Command):
        return command
    # The entry point is a function that starts the module's only group.
    groups = [value for value in vars(module).values() if isinstance(value, click.Group)]
    assert len(groups) == 1, f"{PROGRAMS[program]} is no click command"
    return groups[0]


def all_commands(program: str) -> Iterator[tuple[str, click.Command]]:
    """Yield a program and its sub-commands at any depth, with full names."""
    yield from _below(load_command(program), click.Context(load_command(program), info_name=program))


def _below(command: click.Command, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    yield context.command_path, command
    for name in command.list_commands(context) if isinstance(command, click.Group) else ():
        inner = command.get_command(context, name)
        assert inner is not None
        yield from _below(inner, click.Context(inner, info_name=name, parent=context))


def problem(shown: Shown) -> str:
    """Say what of a shown command does not exist; empty if all does."""
    command = load_command(shown.program)
    context = click.Context(command, info_name=shown.program)
    for word in shown.arguments:
        if word.startswith("-") and len(word) > 1:
            options = {
                name for option in command.get_params(context) for name in option.opts + option.secondary_opts
            }
            if word.partition("=")[0] not in options | {"--version", "--help", "-h"}:
                return f"{context.command_path} has no option {word}"
        elif isinstance(command, click.Group) and word != word.upper():
            inner = command.get_command(context, word)
            if inner is None:
                return f"{context.command_path} has no command {word}"
            context = click.Context(inner, info_name=word, parent=context)
            command = inner
    return ""
