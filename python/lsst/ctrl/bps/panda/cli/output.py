"""What the commands print: lines, tables, a live display, JSON documents, and errors as one message.

On a terminal rich colours states and renews displays.  Into a file or a pipe
goes the same text at its full width, without escape sequences.
"""

from __future__ import annotations

__all__ = [
    "LEAST_BAR",
    "STATE_COLUMNS",
    "LiveDisplay",
    "bar",
    "count_columns",
    "highlight",
    "is_terminal",
    "json_option",
    "print_lines",
    "print_problems",
    "shows_errors",
    "table",
    "terminal_width",
    "write_document",
    "write_json",
]

import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TextIO

import click
from lsst.ctrl.bps.wms_service import WmsStates
from rich.console import Console
from rich.live import Live
from rich.text import Text

from ..errors import PandaBpsError
from ..insight.documents import make_document
from ..status.bps_states import Counts
from ..status.evidence import RunEvidence
from ..status.failures import find_remarks

STATE_COLUMNS = {
    "done": (WmsStates.SUCCEEDED,),
    "running": (WmsStates.RUNNING,),
    "waiting": (WmsStates.UNREADY, WmsStates.READY, WmsStates.PENDING, WmsStates.HELD),
    "failed": (WmsStates.FAILED,),
    "pruned": (WmsStates.PRUNED,),
    "deleted": (WmsStates.DELETED,),
    "unknown": (WmsStates.UNKNOWN, WmsStates.MISFIT),
}
"""The columns of tables that count jobs: title and the states it holds."""

LEAST_BAR = 6
"""Characters of the shortest bar."""

_COLOURS = (
    rf"(?<= )(?=[#x>.]{{{LEAST_BAR},}}( |$))(?P<green>#*)(?P<red>x*)(?P<blue>>*)",
    r"(?m)^(?P<red>First failure.*(?:\n    .*)*)",
    r"\b(?:(?P<green>SUCCEEDED)|(?P<red>FAILED)|(?P<magenta>DELETED)|(?P<yellow>PRUNED)|(?P<blue>RUNNING))\b",
    r"(?m)(?<=  )(?:(?P<green>finished)|(?P<red>failed)|(?P<blue>running))(?=  |$)",
)
"""What is coloured on a terminal: bars and states.  The names of groups are colours."""


def count_columns(counts: Counts) -> dict[str, int]:
    """Count jobs for each of `STATE_COLUMNS`."""
    return {title: sum(counts[state] for state in states) for title, states in STATE_COLUMNS.items()}


def bar(counts: Counts, length: int) -> str:
    """Draw done jobs as ``#``, failed ones as ``x``, running ones as ``>``."""
    total = sum(counts.values())
    if not total:
        return "." * length
    numbers = count_columns(counts)
    bad = numbers["failed"] + numbers["pruned"] + numbers["deleted"]
    # A single failed job of thousands is seen as well.
    failed = max(1, round(length * bad / total)) if bad else 0
    done = min(round(length * numbers["done"] / total), length - failed)
    running = max(0, min(round(length * numbers["running"] / total), length - failed - done))
    return ("#" * done + "x" * failed + ">" * running).ljust(length, ".")


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    left: int = 1,
    drop: Sequence[str] = (),
    width: int = 0,
    indent: str = "",
) -> list[str]:
    """Return the lines of a table; `None` is shown as ``-``.

    The first columns, ``left`` of them, hold text, the others figures.  If the table is wider than ``width``
    (0: no limit), columns are left out, in the order of the titles in ``drop``, until it fits.

    rich's tables are not used: they take half a millisecond a row, a hundred times as long, and runs have
    tens of thousands of attempts.
    """
    texts = [list(head), *(["-" if value is None else str(value) for value in row] for row in rows)]
    flush = [number < left for number in range(len(head))]
    spare = [name for name in drop if name in head] if width else []
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    while spare and sum(widths) + 2 * (len(widths) - 1) > width:
        number = texts[0].index(spare.pop(0))
        for row in (*texts, flush, widths):
            del row[number]  # type: ignore[attr-defined]
    return [
        indent
        + "  ".join(
            text.ljust(size) if to_left else text.rjust(size)
            for text, size, to_left in zip(row, widths, flush, strict=True)
        ).rstrip()
        for row in texts
    ]


def is_terminal(stream: TextIO) -> bool:
    """Tell whether somebody looks at a terminal that knows colours and can be renewed."""
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def terminal_width() -> int:
    """Return the columns of the terminal; 0 if the output goes elsewhere."""
    return _console().width if is_terminal(sys.stdout) else 0


def print_lines(lines: Iterable[str | Text]) -> None:
    """Print lines as they come; on a terminal, states are coloured."""
    if not is_terminal(sys.stdout):
        for line in lines:
            click.echo(line)
        return
    console = _console()
    for line in lines:
        # The terminal wraps long lines, so that what is copied from it is whole.
        console.print(line, soft_wrap=True)


def print_problems(problems: Iterable[str]) -> None:
    """Say on the standard error what could not be found out."""
    for problem in problems:
        click.echo(f"Not known: {problem}", err=True)


def _console() -> Console:
    """Return a terminal; rich respects NO_COLOR, TERM, COLUMNS and LINES."""
    return Console(force_terminal=True, markup=False, emoji=False, highlighter=highlight)


def highlight(line: str | Text) -> Text:
    """Colour bars and states."""
    text = Text(line) if isinstance(line, str) else line
    for pattern in _COLOURS:
        text.highlight_regex(pattern)
    return text


class LiveDisplay:
    """Lines on a terminal that take the place of those shown before, and are made anew each second."""

    def __init__(self) -> None:
        self._console = _console()
        self._make: Callable[[int, int], Iterable[str]] = lambda columns, height: ()
        self._live = Live(console=self._console, get_renderable=self._draw, refresh_per_second=1)

    def _draw(self) -> Text:
        lines = self._make(self._console.width - 1, self._console.height - 1)
        return highlight(Text("\n".join(lines), no_wrap=True, overflow="crop"))

    def show(self, make: Callable[[int, int], Iterable[str]]) -> None:
        """Show the lines that a function makes for columns and lines of the terminal, cut where they are too
        long.
        """
        self._make = make
        if self._live.is_started:
            self._live.refresh()
            return
        self._live.start(refresh=True)
        # rich hides the cursor, and a process that is killed could not bring it back.
        self._console.show_cursor()

    def close(self) -> None:
        """Leave the last lines and go on below them."""
        self._live.stop()


json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON, as described in the manual.")


def write_document(found: Any, run: RunEvidence, kind: str = "", *, line: bool = False) -> None:
    """Write what was found out about a run as a document."""
    write_json(
        make_document(
            found,
            request_id=run.request_id,
            name=run.name,
            kind=kind,
            problems=run.problems,
            remarks=find_remarks(run),
        ),
        line=line,
    )


def write_json(document: Mapping[str, Any], *, line: bool = False) -> None:
    """Write a JSON-ready document to the standard output, on one line if that is asked for."""
    click.echo(json.dumps(document, indent=None if line else 1))


def shows_errors(*kinds: type[Exception]) -> Callable[[Callable[..., int | None]], Callable[..., None]]:
    """Make a command show errors of this package, and of other kinds, as one
    message, and exit with the code that its function returns.
    """
    shown: tuple[type[Exception], ...] = (PandaBpsError, *kinds)

    def decorate(function: Callable[..., int | None]) -> Callable[..., None]:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> None:
            try:
                code = function(*args, **options)
            except BrokenPipeError:
                # The reader, such as head, has enough.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                code = 0
            except shown as error:
                raise click.ClickException(str(error)) from error
            sys.exit(code or 0)

        return call

    return decorate
