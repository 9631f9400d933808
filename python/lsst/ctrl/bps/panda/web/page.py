"""The page of a run, with tables, the graph of tasks, jobs over time, memory, errors with verdicts, links: as
one file that needs nothing else, or as one of the live pages.

What stands on it, in which order and in which words, is in ``templates/run.html``, its look in ``static``;
here are the values that the template shows, and the positions in
the drawings, which are SVG text and need no script.  Everything that is put into a template is escaped, and a
name that a template does not know is an error.
"""

from __future__ import annotations

__all__ = [
    "COLUMNS",
    "MOST_ERRORS",
    "STEP",
    "JobWait",
    "RunPage",
    "compare_attempts",
    "count_states",
    "draw_graph",
    "draw_histogram",
    "draw_timeline",
    "find_shares",
    "find_wait",
    "read_task_graph",
    "render",
    "render_page",
    "share_ended",
    "style_sheet",
]

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from lsst.ctrl.bps.wms_service import WmsStates
from markupsafe import Markup

from ..errors import PandaBpsError
from ..insight.logs import fold_lines
from ..insight.overview import Overview
from ..insight.resources import (
    SERIES_COLOURS,
    LabelResources,
    TimeSeries,
    count_over_time,
    render_suggestions,
)
from ..insight.task_graph import STATE_COLOURS, TaskGraph, TaskNode, colour_of, make_task_graph, state_of
from ..runs.files import read_plan
from ..runs.jobs import RunJobs
from ..status.bps_states import ENDED_STATES, Counts, zero_counts
from ..status.evidence import RunEvidence
from ..status.failures import ErrorGroup
from ..status.records import JobRecord, describe_data, render_count
from ..status.vocabulary import CANCELLED

COLUMNS = (
    WmsStates.SUCCEEDED, WmsStates.RUNNING, WmsStates.PENDING, WmsStates.READY, WmsStates.UNREADY,
    WmsStates.FAILED, WmsStates.PRUNED, WmsStates.DELETED,
)  # fmt: skip
"""States that have a column of their own in the table of jobs."""


STEP = 200
"""Jobs or groups on a page."""

MOST_ERRORS = 30
"""Kinds of errors on a page."""


@dataclass(frozen=True, slots=True)
class RunPage:
    """What the page shows."""

    overview: Overview
    graph: TaskGraph
    groups: Sequence[ErrorGroup]
    labels: Sequence[LabelResources]
    jobs: Sequence[JobRecord]
    made_at: datetime
    version: str = ""
    left_out: int = 0
    """Kinds of errors that are not in ``groups``."""

    jobs_at: datetime | None = None
    """When the jobs were looked at: a live page is there before they are."""


def read_task_graph(run: RunEvidence) -> tuple[TaskGraph, tuple[str, ...]]:
    """Make the graph of a run's tasks, and say why it has no dependencies if its plan cannot be read."""
    plan = run.plan
    try:
        return make_task_graph(run, read_plan(plan.path) if plan is not None and plan.path else None), ()
    except PandaBpsError as error:
        return make_task_graph(run, None), (str(error),)


def render_page(page: RunPage, live: object = None) -> str:
    """Write the page: one document that loads nothing and runs no script, unless it is one of the ``live``
    pages, whose addresses that object knows.
    """
    run = page.overview
    failures = [group for group in page.groups if group.first and group.verdict.name != CANCELLED]
    text = render(
        "run.html",
        page=page,
        run=run,
        live=live,
        columns=COLUMNS,
        # The total first: below a hundred labels nobody would see it.
        total=count_states(run.total),
        total_bar=find_shares(run.total),
        ended=sum(run.total[state] for state in ENDED_STATES),
        labels={label: count_states(counts) for label, counts in run.labels.items()},
        bars={label: find_shares(counts) for label, counts in run.labels.items()},
        first_failure=min(failures, key=lambda group: (not group.unfinished, group.first), default=None),
        graph=draw_graph(page.graph),
        timeline=draw_timeline(page.jobs, until=None if run.ended else page.made_at),
        series_colours=SERIES_COLOURS,
        suggestions=render_suggestions(page.labels),
        histograms=list(_histograms(page)),
    )
    return str(text)


def count_states(counts: Counts) -> list[int]:
    """Return the number of all jobs, of those in each state with a column, and of the others."""
    total, numbers = sum(counts.values()), [counts[state] for state in COLUMNS]
    return [total, *numbers, total - sum(numbers)]


def _histograms(page: RunPage) -> Iterator[tuple[str, Markup]]:
    """Yield the label and the drawing of the memory of its jobs."""
    for found in page.labels:
        values = [job.max_rss / 1024 for job in page.jobs if job.label == found.label and job.max_rss]
        if values:
            yield found.label, draw_histogram(values, limit=found.requested_memory, unit="MB")


# In pixels.
_BOX = (190, 46)
_GAP = (60, 16)
_LEFT, _RIGHT, _TOP, _FOOT = 44, 8, 10, 21
"""Margins of a plot, for its figures."""

_BARS = 24
_NAME = 22
"""Characters of a label that fit a box."""


def draw_graph(graph: TaskGraph) -> Markup:
    """Draw the graph of tasks; empty without tasks."""
    if not graph.nodes:
        return Markup()
    return render(
        "graph.svg",
        width=(max(node.column for node in graph.nodes) + 1) * (_BOX[0] + _GAP[0]),
        height=(max(node.row for node in graph.nodes) + 1) * (_BOX[1] + _GAP[1]),
        edges=[_edge(graph.nodes[before], graph.nodes[after]) for before, after in graph.edges],
        boxes=[_box(node) for node in graph.nodes],
        box=_BOX,
    )


def _corner(node: TaskNode) -> tuple[int, int]:
    return node.column * (_BOX[0] + _GAP[0]) + 4, node.row * (_BOX[1] + _GAP[1]) + 4


def _edge(before: TaskNode, after: TaskNode) -> str:
    """Return the path of a curve between two boxes."""
    x1, y1 = _corner(before)
    x2, y2 = _corner(after)
    x1, y1, y2 = x1 + _BOX[0], y1 + _BOX[1] // 2, y2 + _BOX[1] // 2
    bend = _GAP[0] // 2
    return f"M{x1},{y1} C{x1 + bend},{y1} {x2 - bend},{y2} {x2},{y2}"


def _box(node: TaskNode) -> dict[str, Any]:
    x, y = _corner(node)
    state = state_of(node.counts)
    label = node.label if len(node.label) <= _NAME else node.label[: _NAME - 1] + "\u2026"
    counts = ", ".join(f"{number} {key.name}" for key, number in node.counts.items() if number)
    return {
        "node": node, "x": x, "y": y, "state": state.name, "colour": colour_of(state), "label": label,
        "counts": counts, "shares": find_shares(node.counts, start=x, whole=_BOX[0]),
    }  # fmt: skip


def find_shares(
    counts: Counts, *, start: float = 0.0, whole: float = 100.0
) -> list[tuple[float, float, str]]:
    """Return start, length and colour of the jobs in each state, for a bar."""
    total, found = max(1, sum(counts.values())), []
    for state, colour in STATE_COLOURS.items():
        if length := whole * counts[state] / total:
            found.append((start, length, colour))
            start += length
    return found


def share_ended(counts: Counts | None) -> tuple[int, int, list[tuple[float, float, str]]]:
    """Return how many jobs have ended and how many there are, and a bar of them."""
    found = counts or zero_counts()
    return sum(found[state] for state in ENDED_STATES), sum(found.values()), find_shares(found)


@dataclass(frozen=True, slots=True)
class _Frame:
    """The size of a plot, and where its axes are."""

    width: int
    height: int
    left: int = _LEFT

    @property
    def right(self) -> int:
        return self.width - _RIGHT

    @property
    def foot(self) -> int:
        return self.height - _FOOT

    def across(self, share: float) -> float:
        """Return the position of a share of the horizontal axis."""
        return self.left + (self.right - self.left) * share

    def up(self, share: float) -> float:
        """Return the length of a share of the vertical axis."""
        return (self.foot - _TOP) * share


def draw_timeline(
    jobs: Iterable[JobRecord], *, until: datetime | None = None, width: int = 1100, height: int = 160
) -> Markup:
    """Draw how many jobs were running, had finished and had failed; empty if
    no attempt has started.

    Without ``until`` the axis ends with the last change.
    """
    begun = [job for job in jobs if job.started is not None]
    if not begun:
        return Markup()
    series = count_over_time(begun, until=until)
    frame = _Frame(width, height)
    top = max(1, *(max(numbers) for numbers in series.bins.values()))
    return render(
        "plot.svg",
        kind="timeline",
        title="running, finished and failed jobs over time",
        frame=frame,
        top=top,
        lines=list(_lines(series, frame, top)),
        bars=[],
        limit=None,
        first=f"{series.start:%Y-%m-%d %H:%M:%S} UTC",
        last=f"{series.end:%Y-%m-%d %H:%M:%S}",
    )


def _lines(series: TimeSeries, frame: _Frame, top: int) -> Iterator[tuple[str, str, str]]:
    """Yield name, colour and points of each line, that of running jobs last, above the others."""
    for name in ("finished", "failed", "running"):
        numbers = series.bins[name]
        points = " ".join(
            f"{frame.across(n / (len(numbers) - 1)):.1f},{frame.foot - frame.up(value / top):.1f}"
            for n, value in enumerate(numbers)
        )
        yield name, SERIES_COLOURS[name], points


def draw_histogram(
    values: Sequence[float], *, limit: float = 0.0, unit: str = "", width: int = 300, height: int = 110
) -> Markup:
    """Draw how often values occur, and a line at the limit if there is one;
    empty without values.
    """
    if not values:
        return Markup()
    largest = max(*values, limit, 1e-9)
    counts = [0] * _BARS
    for value in values:
        counts[min(_BARS - 1, int(value / largest * _BARS))] += 1
    frame, top = _Frame(width, height), max(counts)
    return render(
        "plot.svg",
        kind="histogram",
        title="histogram",
        frame=frame,
        top=top,
        lines=[],
        bars=[(frame.across(n / _BARS), frame.up(count / top)) for n, count in enumerate(counts) if count],
        bar=((frame.right - frame.left) / _BARS - 1, SERIES_COLOURS["running"]),
        limit=frame.across(limit / largest) if limit else None,
        first="0",
        last=f"{largest:.0f} {unit}",
    )


def compare_attempts(attempts: Sequence[JobRecord]) -> dict[str, list[object]]:
    """Return what is known of attempts, side by side."""

    def times(name: str) -> list[object]:
        return [f"{at:%Y-%m-%d %H:%M:%S}" if (at := getattr(each, name)) else "-" for each in attempts]

    return {
        "PanDA job": [each.panda_id for each in attempts],
        "attempt": [each.attempt for each in attempts],
        "status": [each.status for each in attempts],
        "error": [each.error.title if each.error else "-" for each in attempts],
        "says": [each.error.text if each.error else "-" for each in attempts],
        "queue": [each.site or "-" for each in attempts],
        "node": [each.node or "-" for each in attempts],
        "started (UTC)": times("started"),
        "ended (UTC)": times("ended"),
        "wall s": ["-" if each.wall_seconds is None else f"{each.wall_seconds:.0f}" for each in attempts],
        "memory MB": [
            f"{each.max_rss / 1024:.0f} of {each.memory}" if each.max_rss else "-" for each in attempts
        ],
    }


@dataclass(frozen=True, slots=True)
class JobWait:
    """What a job waited for before it started."""

    parents: tuple[JobRecord, ...]
    """Last attempts of its parents, that which ended last first."""

    unknown: int
    """Parents that PanDA has no job of."""

    ready: datetime | None
    """When it could start: its last parent had ended, and PanDA had made a job of it."""

    slot: float | None
    """Seconds from then until it started; `None` while it waits."""


def find_wait(run: RunEvidence, attempts: Sequence[JobRecord]) -> JobWait | None:
    """Find out what a job waited for; `None` if its plan is not at hand.

    Parameters
    ----------
    run : `RunEvidence`
        The run, with all jobs that PanDA has.
    attempts : sequence of `JobRecord`
        The attempts of the job, named.
    """
    jobs, first = RunJobs(run), attempts[0]
    if not first.bps_name:
        return None
    planned = jobs.parents(*jobs.planned(first.bps_name))
    numbers = {item.name: item.workload_id for item in run.transforms or ()}
    wanted = {(numbers.get(task.name), job.pseudo_input) for task, job in planned}
    last = {
        (job.task_id, job.name): job
        for job in sorted(run.attempts, key=lambda job: job.panda_id)
        if (job.task_id, job.name) in wanted
    }
    parents = sorted(
        last.values(), key=lambda job: (job.ended is None, job.ended or job.panda_id), reverse=True
    )
    ends = [job.ended for job in parents]
    known = [moment for moment in (first.created, *ends) if moment is not None]
    ready = max(known) if known and len(parents) == len(wanted) and all(ends) else None
    slot = (first.started - ready).total_seconds() if ready and first.started else None
    return JobWait(jobs.identify(parents), len(wanted) - len(parents), ready, slot and max(0.0, slot))


def render(template: str, **values: Any) -> Markup:
    """Fill a template; the result can be put into another one as it is."""
    return Markup(_environment().get_template(template).render(values))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        describe_data=describe_data, fold_lines=fold_lines, render_count=render_count, utc=_format_utc
    )
    environment.globals["style_sheet"] = style_sheet
    environment.globals["state_colours"] = [state.name for state in STATE_COLOURS]
    environment.tests["web_address"] = _is_web_address
    return environment


@cache
def style_sheet() -> Markup:
    """Return the style sheet of all pages, with the colours of states, to be put into a page as it is."""
    text = (files(__package__) / "static" / "page.css").read_text(encoding="utf-8")
    colours = {state.name: colour_of(state) for state in WmsStates} | SERIES_COLOURS
    rules = [f".is-{name} {{ background: {colour}; }}\n" for name, colour in colours.items()]
    return Markup("".join([text, *rules]))


def _format_utc(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def _is_web_address(address: str) -> bool:
    """Tell whether an address may become a link: not if it runs a script."""
    return urlsplit(address).scheme in ("http", "https")
