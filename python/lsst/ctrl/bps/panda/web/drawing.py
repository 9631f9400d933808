"""Drawings of a run as SVG text: the graph of tasks, jobs over time, histograms.

They need no script.  What is computed here are positions; the shapes are in
the templates.
"""

from __future__ import annotations

__all__ = ["draw_graph", "draw_histogram", "draw_timeline"]

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from markupsafe import Markup

from ..insight.resources import SERIES_COLOURS, TimeSeries, count_over_time
from ..insight.task_graph import STATE_COLOURS, TaskGraph, TaskNode, colour_of, state_of
from ..status.records import JobRecord
from . import render

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
