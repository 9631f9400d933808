"""The command ``panda_bps watch``: runs, live, until they have ended."""

from __future__ import annotations

__all__ = ["follow_run", "screen_lines", "show_progress", "watch", "watch_options", "watch_runs"]

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import click
from lsst.ctrl.bps.wms_service import WmsStates

from ..campaign.runs import combine_state
from ..errors import SettingsError
from ..insight.documents import make_document
from ..insight.messages import Subscription, find_broker_settings
from ..insight.progress import LEAST_INTERVAL, Progress, describe_first_failure
from ..insight.progress import watch as watch_run
from ..runs.client import Connection, RunClient
from ..settings.run import is_loopback
from ..status.bps_states import Counts, sum_counts
from . import INTERRUPTED
from .output import (
    LEAST_BAR,
    STATE_COLUMNS,
    LiveDisplay,
    bar,
    count_columns,
    is_terminal,
    json_option,
    shows_errors,
    table,
    write_json,
)
from .panda_bps_show import find_run, local_option

_INTERVAL, _LOCAL_INTERVAL = 30.0, 1.0
"""Seconds between two queries; a server on this machine is asked more often."""

_RARE = ("pruned", "deleted", "unknown")
"""Columns that are shown only if they hold something."""

_LESS = ("waiting", "jobs", "running", "done")
"""Columns that are left out one after the other on a narrow terminal; those that show what went wrong never,
and the bar only below 60 columns."""

_NARROW = 59
_SHORT_LABEL = 12
_LONGEST_BAR = 40
_ERROR_LINES = 5
"""Lines of an error on the display at most."""


def watch_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of `watch_runs`."""
    for option in (
        json_option,
        click.option(
            "--then",
            default="",
            metavar="COMMAND",
            help="Shell command to run at the end, with PANDA_BPS_RUN and PANDA_BPS_STATE set.",
        ),
        click.option("--bell", is_flag=True, help="Ring the bell of the terminal at the end."),
        click.option(
            "--poll", is_flag=True, help="Ask the servers even where PanDA's messages could be followed."
        ),
        click.option(
            "--interval",
            type=click.FloatRange(_LOCAL_INTERVAL),
            help="Seconds between two queries  [default: 30, or 1 for a server on this machine].",
        ),
    ):
        function = option(function)
    return function


@click.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@local_option
@watch_options
@shows_errors()
def watch(runs: tuple[str, ...], local: bool, **options: Any) -> int:
    """Watch runs until they have ended.  The exit code is that of 'bps
    status'; of several runs the worst counts.

    On a terminal the display is updated in place; into a file goes a line for
    each change.  RUN is its id,
    a part of its name, or its submit directory; by default your last run.

    Where PanDA's message broker is known (PANDA_MESSAGES_URL), its messages
    are followed and the servers asked ten times less often.

    \b
    panda_bps watch 41
    panda_bps watch 41 42 --bell
    panda_bps watch 41 --then 'mail -s "$PANDA_BPS_STATE" ann < /dev/null'
    panda_bps watch 41 --interval 300 > watch.log &
    """  # noqa: D301 (click's mark)
    connections = {}
    for argument in [find_run(run, local=local) for run in runs or (None,)]:
        request_id, _ = RunClient(argument.connection).find(argument.run)
        connections[request_id] = argument.connection
    where = " --local" if local else ""
    return watch_runs(connections, lambda number: f"panda_bps errors {number}{where}", **options)


def watch_runs(
    connections: Mapping[int, Connection],
    why: Callable[[int], str],
    *,
    interval: float | None,
    poll: bool,
    bell: bool,
    then: str,
    as_json: bool,
    names: Mapping[int, str] | None = None,
) -> int:
    """Watch runs, each through a connection of its own, and return the exit code; ``why`` returns the command
    that shows why a run failed, ``names`` are for the display.
    """
    watches = {}
    for number, connection in connections.items():
        # A server that does not answer now is an error; later it is asked again.
        RunClient(connection).request(number)
        watches[number] = follow_run(connection, number, interval=interval, poll=poll)
    try:
        states = {n: last.state for n, last in show_progress(watches, as_json=as_json, names=names).items()}
    except KeyboardInterrupt:
        click.echo(f"Not watched any more; the run{'s go' if len(watches) > 1 else ' goes'} on.", err=True)
        return INTERRUPTED
    failed = [number for number, state in states.items() if state is WmsStates.FAILED]
    for command in dict.fromkeys(map(why, failed)):
        click.echo(f"Why it failed: {command}", err=True)
    state = combine_state(states.values())
    if bell and is_terminal(sys.stderr):
        click.echo("\a", nl=False, err=True)
    if then:
        facts = {"PANDA_BPS_RUN": " ".join(map(str, states)), "PANDA_BPS_STATE": state.name}
        if code := subprocess.run(then, shell=True, env={**os.environ, **facts}, check=False).returncode:
            click.echo(f"The command of --then ended with exit code {code}: {then}", err=True)
    return int(state.value)


def follow_run(
    connection: Connection,
    request_id: int,
    *,
    interval: float | None = None,
    poll: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Progress]:
    """Follow a run by queries and, unless ``poll`` is set, by PanDA's messages where they can be had."""
    url = connection.settings.url
    is_local = is_loopback(urlsplit(url).hostname or "")
    least, default = (_LOCAL_INTERVAL,) * 2 if is_local else (LEAST_INTERVAL, _INTERVAL)
    if interval is not None and interval < least:
        raise SettingsError(
            f"--interval {interval:g} is too short for {url}, which others use, too: give {least:g} or more."
        )
    client = RunClient(connection)
    broker = None if poll else find_broker_settings(connection.settings)
    return watch_run(
        partial(client.status, request_id),
        partial(client.detail, request_id),
        find_failure=partial(describe_first_failure, connection),
        subscribe=None if broker is None else partial(Subscription, broker),
        name="" if broker is None else broker.name,
        interval=interval or default,
        least=least,
        sleep=sleep,
    )


def show_progress(
    watches: Mapping[int, Iterable[Progress]],
    *,
    as_json: bool = False,
    names: Mapping[int, str] | None = None,
) -> dict[int, Progress]:
    """Show the progress of runs, given by their ids, as it comes, and return the last of each."""
    last: dict[int, Progress] = {}
    with _open_display(as_json, names or {}) as show:
        for progress in _merge([*watches.values()]):
            last[progress.request_id] = progress
            last = {number: last[number] for number in watches if number in last}
            show(progress, [*last.values()])
    return last


def _merge(watches: Sequence[Iterable[Progress]]) -> Iterator[Progress]:
    """Yield what several watches give as it comes; the first error ends all of them."""
    if len(watches) == 1:
        yield from watches[0]
        return
    found: SimpleQueue[Progress | Exception | None] = SimpleQueue()

    def follow(polls: Iterable[Progress]) -> None:
        try:
            for progress in polls:
                found.put(progress)
            found.put(None)
        except Exception as error:
            found.put(error)

    for polls in watches:
        Thread(target=follow, args=(polls,), daemon=True).start()
    left = len(watches)
    while left:
        item = found.get()
        if isinstance(item, Exception):
            raise item
        if item is None:
            left -= 1
        else:
            yield item


@contextmanager
def _open_display(
    as_json: bool, names: Mapping[int, str]
) -> Iterator[Callable[[Progress, Sequence[Progress]], None]]:
    """Choose how progress, the newest or that of all runs, is shown: as JSON, as lines, or on a terminal."""
    if as_json:
        yield _write_json
    elif not is_terminal(sys.stdout):
        logs: dict[int, _Log] = {}
        yield lambda progress, runs: logs.setdefault(progress.request_id, _Log())(progress)
    else:
        with closing(LiveDisplay()) as display:
            yield lambda progress, runs: display.show(
                lambda columns, height: screen_lines(runs, columns, height, datetime.now(UTC), names)
            )


def _write_json(progress: Progress, runs: Sequence[Progress]) -> None:
    write_json(make_document(progress, request_id=progress.request_id, name=progress.name), line=True)


def _estimate(rate: float, end: datetime | None) -> str:
    parts = []
    if rate:
        parts.append(f"{rate:.1f} jobs/min")
    if end is not None:
        parts.append(f"at this rate over at {end:%Y-%m-%d %H:%M} UTC")
    return ", ".join(parts)


class _Log:
    """Writes a line for each change of a run, for a file."""

    def __init__(self) -> None:
        self._last: Any = None
        self._messages = ""

    def __call__(self, progress: Progress) -> None:
        if progress.messages != self._messages:
            self._messages = progress.messages
            click.echo(f"panda_bps: {progress.messages}", err=True)
        now = (progress.state, progress.total, progress.ended, progress.errors, progress.first_failure)
        if now == self._last:
            return
        before = self._last or (None,) * len(now)
        self._last = now
        counts = ", ".join(f"{n} {name}" for name, n in count_columns(progress.total).items() if n)
        ended = "ended" if progress.ended else ""
        rest = ", ".join(filter(None, (_estimate(progress.rate or 0.0, progress.end), ended)))
        head = f"{progress.moment:%Y-%m-%dT%H:%M:%SZ} run {progress.request_id}"
        click.echo(f"{head} {progress.state.name}: {counts}{'; ' + rest if rest else ''}")
        if progress.first_failure and progress.first_failure != before[4]:
            click.echo(f"{head} first failure: {progress.first_failure}")
        for error in progress.errors if progress.errors != before[3] else ():
            click.echo(f"{head} error: {error}")
        sys.stdout.flush()


def screen_lines(
    runs: Sequence[Progress],
    columns: int,
    height: int,
    now: datetime,
    names: Mapping[int, str] | None = None,
) -> list[str]:
    """Return the display of runs for a terminal of that size: the labels of one run, or a line for each of
    several.

    A low one has no labels on which nothing happens, and a very narrow one no bars.
    """
    first, several = runs[0], len(runs) > 1
    head = [f"{len(runs)} runs" if several else f"Run {first.request_id}  {first.name}"]
    head += _wrap(_summary(runs, now), columns)
    foot = [line for run in runs for line in _messages(run, columns, several)]
    foot += _wrap(_clock(runs, now), columns)
    if several:
        names = names or {}
        width = max(len(run.state.name) for run in runs)
        counts = {
            f"{run.request_id} {run.state.name:<{width}} {names.get(run.request_id, run.name)}": run.total
            for run in runs
        }
    else:
        counts = first.labels
    return [*head, *_body(counts, columns, height - len(head) - len(foot) - 2), *foot][:height]


def _wrap(text: str, columns: int, lines: int | None = None) -> list[str]:
    return textwrap.wrap(text, columns, subsequent_indent="    ", max_lines=lines, placeholder="\u2026")


def _summary(runs: Sequence[Progress], now: datetime) -> str:
    """Say how far runs are together, for how long they have been there, and when they will be over."""
    ended = all(run.ended for run in runs)
    state = combine_state(run.state for run in runs).name
    parts = [f"{state}{' (over)' if ended else ''}"]
    times = [run.begun for run in runs if run.begun is not None]
    if times:
        until = max(run.over or now for run in runs) if ended else now
        seconds = max(0, int((until - min(times)).total_seconds()))
        parts.append(f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} since submission")
    going = [run for run in runs if not run.ended]
    ends = [run.end for run in going if run.end is not None]
    end = max(ends, default=None) if len(ends) == len(going) else None
    parts.append(_estimate(sum(run.rate or 0.0 for run in (going or runs)), end))
    return "  ".join(filter(None, parts))


def _clock(runs: Sequence[Progress], now: datetime) -> str:
    """Say how late it is, and when the servers are asked again."""
    queries = [run.next_query for run in runs if run.next_query is not None]
    if all(run.ended for run in runs):
        return f"looked at {max(run.moment for run in runs):%Y-%m-%d %H:%M:%S} UTC"
    rest = (min(queries) - now).total_seconds() if queries else 0.0
    oldest = min(run.moment for run in runs if not run.ended)
    age = max(0.0, (now - oldest).total_seconds())
    soon = f"next query in {rest:.0f} s" if rest >= 1 else f"looked at {age:.0f} s ago"
    goes = "the runs" if len(runs) > 1 else "the run"
    return f"{now:%H:%M:%S} UTC, {soon}; Ctrl-C stops watching, not {goes}"


def _messages(run: Progress, columns: int, several: bool) -> Iterator[str]:
    """Yield what there is to say of a run besides its figures."""
    which = f" of run {run.request_id}" if several else ""
    if run.first_failure:
        yield from _wrap(f"First failure{which}: {run.first_failure}", columns, _ERROR_LINES)
    if not several:
        for error in run.errors:
            yield from _wrap(f"  {error}", columns, _ERROR_LINES)
    for text in (*run.note.splitlines(), *run.messages.splitlines()):
        yield from _wrap(f"Run {run.request_id}: {text}" if several else text, columns)


def _body(counts: Mapping[str, Counts], columns: int, room: int) -> list[str]:
    """Return the table of counts; of the room that figures leave, labels may take two thirds."""
    shown, left_out = _rows_to_show(counts, room)
    total = sum_counts(counts.values())
    numbers = count_columns(total)
    titles = ("label", "", "jobs", *numbers)
    empty = [n for n, name in enumerate(titles) if name in _RARE and not numbers[name]]
    drop = ("", *_LESS) if columns < _NARROW else (*_LESS, "")

    def lines(longest: int, length: int) -> list[str]:
        rows = [_row(label, counts[label], longest, length) for label in shown]
        if left_out:
            rows.append((f"({left_out} more)", "", *([""] * (1 + len(STATE_COLUMNS)))))
        rows.append(_row("total", total, longest, length))
        return table(
            [title for n, title in enumerate(titles) if n not in empty],
            [[value for n, value in enumerate(row) if n not in empty] for row in rows],
            left=2, drop=drop, width=columns,
        )  # fmt: skip

    def room_beside(longest: int) -> int:
        return max(0, columns - len(lines(longest, LEAST_BAR)[-1]))

    longest = _SHORT_LABEL + room_beside(_SHORT_LABEL) * 2 // 3
    return lines(longest, min(_LONGEST_BAR, LEAST_BAR + room_beside(longest)))


def _row(label: str, counts: Counts, longest: int, length: int) -> tuple[object, ...]:
    label = label if len(label) <= longest else f"{label[: longest - 1]}\u2026"
    return (label, bar(counts, length), sum(counts.values()), *count_columns(counts).values())


def _rows_to_show(counts: Mapping[str, Counts], room: int) -> tuple[list[str], int]:
    """Choose rows for so many lines, in their order, and count the others.

    Those with failures come before those with running jobs, and these before all others.
    """
    if len(counts) <= room:
        return list(counts), 0
    numbers = {label: count_columns(found) for label, found in counts.items()}
    urgency = {label: (not found["failed"], not found["running"]) for label, found in numbers.items()}
    chosen = set(sorted(counts, key=urgency.__getitem__)[: max(1, room - 1)])
    return [label for label in counts if label in chosen], len(counts) - len(chosen)
