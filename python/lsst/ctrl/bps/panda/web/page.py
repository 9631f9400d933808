"""The web page of a run: one file that needs nothing else, with tables, the graph of tasks, jobs over time,
memory, errors with verdicts, links.

What stands on it, in which order and in which words, is in ``templates/run.html``, its look in ``static``;
here are the values that the template shows, and the positions in
the drawings, which are SVG text and need no script.  Everything that is put into a template is escaped, and a
name that a template does not know is an error.
"""

from __future__ import annotations

__all__ = ["RunPage", "draw_graph", "draw_histogram", "draw_timeline", "render", "render_page"]

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

from ..insight.logs import fold_lines
from ..insight.overview import Overview
from ..insight.resources import (
    SERIES_COLOURS,
    LabelResources,
    TimeSeries,
    count_over_time,
    render_suggestions,
)
from ..insight.task_graph import STATE_COLOURS, TaskGraph, TaskNode, colour_of, state_of
from ..status.bps_states import Counts
from ..status.failures import ErrorGroup
from ..status.records import JobRecord, render_count

_COLUMNS = (
    WmsStates.SUCCEEDED, WmsStates.RUNNING, WmsStates.PENDING, WmsStates.READY, WmsStates.UNREADY,
    WmsStates.FAILED, WmsStates.PRUNED, WmsStates.DELETED,
)  # fmt: skip
"""States that have a column of their own in the table of jobs."""


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


def render_page(page: RunPage) -> str:
    """Write the page: one document that loads nothing and runs no script."""
    run = page.overview
    text = render(
        "run.html",
        page=page,
        run=run,
        colour=colour_of(run.state),
        columns=_COLUMNS,
        # The total first: below a hundred labels nobody would see it.
        total=_numbers(run.total),
        labels={label: _numbers(counts) for label, counts in run.labels.items()},
        graph=draw_graph(page.graph),
        state_colours={state.name: colour for state, colour in STATE_COLOURS.items()},
        timeline=draw_timeline(page.jobs, until=None if run.ended else page.made_at),
        series_colours=SERIES_COLOURS,
        suggestions=render_suggestions(page.labels),
        histograms=list(_histograms(page)),
    )
    return str(text)


def _numbers(counts: Counts) -> list[int]:
    """Return the number of all jobs, of those in each state with a column, and of the others."""
    total, numbers = sum(counts.values()), [counts[state] for state in _COLUMNS]
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
        "counts": counts, "shares": list(_shares(node, x)),
    }  # fmt: skip


def _shares(node: TaskNode, start: float) -> Iterator[tuple[float, float, str]]:
    """Yield start, length and colour of the jobs in each state, for the bar at the foot of the box."""
    total = max(1, node.jobs)
    for state, colour in STATE_COLOURS.items():
        length = _BOX[0] * node.counts[state] / total
        if length:
            yield start, length, colour
            start += length


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
    environment.filters.update(fold_lines=fold_lines, render_count=render_count, utc=_format_utc)
    environment.globals["static"] = _read_static
    environment.tests["web_address"] = _is_web_address
    return environment


def _read_static(name: str) -> Markup:
    """Return a file of ours, to be put into a page as it is."""
    return Markup((files(__package__) / "static" / name).read_text(encoding="utf-8"))


def _format_utc(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def _is_web_address(address: str) -> bool:
    """Tell whether an address may become a link: not if it runs a script."""
    return urlsplit(address).scheme in ("http", "https")
