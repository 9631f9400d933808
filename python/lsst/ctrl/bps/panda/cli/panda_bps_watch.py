"""The command ``panda_bps watch``: a run, live, until it has ended."""

from __future__ import annotations

__all__ = ["screen_lines", "show_progress", "watch"]

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import click
from lsst.ctrl.bps.wms_service import WmsStates

from ..insight.documents import make_document
from ..insight.messages import Subscription, find_broker_settings
from ..insight.progress import LEAST_INTERVAL, Progress
from ..insight.progress import watch as watch_run
from ..runs.client import RunClient
from ..status.bps_states import Counts
from . import INTERRUPTED
from .output import (
    STATE_COLUMNS,
    LiveDisplay,
    bar,
    count_columns,
    is_terminal,
    json_option,
    table,
    write_json,
)
from .panda_bps_show import RunArgument, run_command

_RARE = ("pruned", "deleted", "unknown")
"""Columns that are shown only if they hold something."""

_LESS = ("", "waiting", "jobs", "running", "done")
"""Columns that are left out one after the other on a narrow terminal: the bar
first, those that show what went wrong never."""

_SHORT_LABEL = 12
_FIGURES = 50
"""Columns that the figures need at most, about."""


@click.command()
@run_command
@click.option(
    "--interval",
    default=30.0,
    show_default=True,
    type=click.FloatRange(LEAST_INTERVAL),
    help="Seconds between two queries.",
)
@click.option("--poll", is_flag=True, help="Ask the servers even where PanDA's messages could be followed.")
@json_option
def watch(argument: RunArgument, interval: float, poll: bool, as_json: bool) -> int:
    """Watch a run until it has ended.  The exit code is that of 'bps status'.

    On a terminal the display is updated in place; into a file goes a line for
    each change.  RUN is its id,
    a part of its name, or its submit directory; by default your last run.

    Where PanDA's message broker is known (PANDA_MESSAGES_URL), its messages
    are followed and the servers asked ten times less often.

    \b
    panda_bps watch 41
    panda_bps watch 41 --interval 300 > watch.log &
    """  # noqa: D301 (click's mark)
    client = RunClient(argument.connection)
    request_id, _ = client.find(argument.run)
    # A server that does not answer now is an error; later it is asked again.
    client.request(request_id)
    fetch, fetch_details = partial(client.status, request_id), partial(client.detail, request_id)
    broker = None if poll else find_broker_settings(argument.connection.settings)
    subscribe, name = (None, "") if broker is None else (partial(Subscription, broker), broker.name)
    state = WmsStates.UNKNOWN
    polls = watch_run(fetch, fetch_details, subscribe=subscribe, name=name, interval=interval)
    try:
        for progress in show_progress(polls, as_json=as_json):
            state = progress.state
    except KeyboardInterrupt:
        click.echo("Not watched any more; the run goes on.", err=True)
        return INTERRUPTED
    return int(state.value)


def show_progress(polls: Iterable[Progress], *, as_json: bool = False) -> Iterator[Progress]:
    """Show the progress of a run as it comes, and pass it on."""
    with _open_display(as_json) as show:
        for progress in polls:
            show(progress)
            yield progress


@contextmanager
def _open_display(as_json: bool) -> Iterator[Callable[[Progress], None]]:
    """Choose how progress is shown: as JSON, as lines for a file, or on a terminal."""
    if as_json or not is_terminal(sys.stdout):
        yield _write_json if as_json else _Log()
        return
    with closing(LiveDisplay()) as display:
        yield lambda progress: display.show(screen_lines(progress, *display.size))


def _write_json(progress: Progress) -> None:
    write_json(make_document(progress, request_id=progress.request_id, name=progress.name), line=True)


def _estimate(progress: Progress) -> str:
    parts = []
    if progress.rate:
        parts.append(f"{progress.rate:.1f} jobs/min")
    if progress.end is not None:
        parts.append(f"at this rate over at {progress.end.astimezone():%Y-%m-%d %H:%M}")
    return ", ".join(parts)


class _Log:
    """Writes a line for each change, for a file."""

    def __init__(self) -> None:
        self._last: Any = None
        self._messages = ""

    def __call__(self, progress: Progress) -> None:
        if progress.messages != self._messages:
            self._messages = progress.messages
            click.echo(f"panda_bps: {progress.messages}", err=True)
        now = (progress.state, progress.total, progress.ended, progress.errors)
        if now == self._last:
            return
        new_errors = progress.errors if self._last is None or self._last[3] != progress.errors else ()
        self._last = now
        counts = ", ".join(f"{n} {name}" for name, n in count_columns(progress.total).items() if n)
        rest = ", ".join(part for part in (_estimate(progress), "ended" if progress.ended else "") if part)
        moment = f"{progress.moment:%Y-%m-%dT%H:%M:%SZ}"
        click.echo(
            f"{moment} run {progress.request_id} {progress.state.name}: {counts}{'; ' + rest if rest else ''}"
        )
        for error in new_errors:
            click.echo(f"{moment} run {progress.request_id} error: {error}")
        sys.stdout.flush()


def screen_lines(progress: Progress, columns: int, height: int) -> list[str]:
    """Return the display of a run for a terminal of that size.

    A narrow one has no bars, a low one no labels on which nothing happens.
    """
    head = [f"Run {progress.request_id}  {progress.name}"]
    head.append(f"{progress.state.name}{' (over)' if progress.ended else ''}  {_estimate(progress)}".rstrip())
    foot = [f"  {error}" for error in progress.errors]
    foot += [*progress.note.splitlines(), *progress.messages.splitlines()]
    looked = f"looked at {progress.moment.astimezone():%H:%M:%S}"
    foot.append(looked if progress.ended else f"{looked}; Ctrl-C stops watching, not the run")
    longest = max(_SHORT_LABEL, columns - _FIGURES)
    shown, left_out = _labels_to_show(progress.labels, height - len(head) - len(foot) - 2)
    rows = [_row(label, progress.labels[label], longest) for label in shown]
    if left_out:
        rows.append((f"({left_out} more)", "", *([""] * (1 + len(STATE_COLUMNS)))))
    rows.append(_row("total", progress.total, longest))
    numbers = count_columns(progress.total)
    empty = [n for n, name in enumerate(numbers, 3) if name in _RARE and not numbers[name]]
    titles = ("label", "", "jobs", *numbers)
    body = table(
        [title for n, title in enumerate(titles) if n not in empty],
        [[value for n, value in enumerate(row) if n not in empty] for row in rows],
        left=2, drop=_LESS, width=columns,
    )  # fmt: skip
    return [*head, *body, *foot][:height]


def _row(label: str, counts: Counts, longest: int) -> tuple[object, ...]:
    label = label if len(label) <= longest else f"{label[: longest - 1]}\u2026"
    return (label, bar(counts), sum(counts.values()), *count_columns(counts).values())


def _labels_to_show(labels: dict[str, Counts], room: int) -> tuple[list[str], int]:
    """Choose labels for so many lines, in pipeline order, and count the others.

    Labels with failures come before labels with running jobs, and those before all others.
    """
    if len(labels) <= room:
        return list(labels), 0
    numbers = {label: count_columns(counts) for label, counts in labels.items()}
    urgency = {label: (not found["failed"], not found["running"]) for label, found in numbers.items()}
    chosen = set(sorted(labels, key=urgency.__getitem__)[: max(1, room - 1)])
    return [label for label in labels if label in chosen], len(labels) - len(chosen)
