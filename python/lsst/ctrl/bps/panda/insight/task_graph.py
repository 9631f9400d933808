"""The graph of a run's tasks, and drawings as SVG text: that graph, jobs over time, histograms.

They need no library and no script; colours are those of `STATE_COLOURS`.
"""

from __future__ import annotations

__all__ = [
    "STATE_COLOURS",
    "TaskGraph",
    "TaskNode",
    "TimeSeries",
    "colour_of",
    "count_over_time",
    "draw_graph",
    "draw_histogram",
    "draw_timeline",
    "make_task_graph",
    "state_of",
]

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from html import escape

from lsst.ctrl.bps.wms_service import WmsStates

from ..plan.model import TaskPlan, WorkflowPlan
from ..plan.naming import label_of_task, ordinal_of_task
from ..status.jobs import JobDetail, number_of
from ..status.records import TransformRecord
from ..status.states import Counts, count_task, is_aborted
from .overview import Observation

MAX_NODES = 150
"""With more tasks, those of a label are drawn as one."""

_A_LINE = 4


@dataclass(frozen=True, slots=True)
class TaskNode:
    """A task, or all tasks of a label."""

    name: str
    label: str
    counts: Counts
    tasks: int = 1
    column: int = 0
    """Longest way from a task that waits for nothing."""

    row: int = 0

    @property
    def jobs(self) -> int:
        """Number of jobs."""
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True)
class TaskGraph:
    """Tasks and which waits for which."""

    nodes: tuple[TaskNode, ...]
    edges: tuple[tuple[int, int], ...]
    """Positions in ``nodes``: earlier and later task."""

    has_edges: bool = True
    """Whether it is known what waits for what: it is in the plan, in the
    submit directory."""


def make_task_graph(observation: Observation, plan: WorkflowPlan | None) -> TaskGraph:
    """Make the graph of a run.

    Parameters
    ----------
    observation : `Observation`
        How far its tasks are.
    plan : `WorkflowPlan`, optional
        Its plan; without it the tasks are drawn in their order.

    Returns
    -------
    graph : `TaskGraph`
        Placed in columns from left to right.
    """
    transforms = {item.name: item for item in observation.evidence.transforms or ()}
    if plan is None:
        return _without_plan(observation, transforms)
    tasks = (*plan.tasks, *plan.final)
    nodes = [
        TaskNode(task.name, task.label, _counts(observation, transforms.get(task.name), len(task.jobs)))
        for task in tasks
    ]
    edges = _edges_of(plan, tasks)
    if len(nodes) > MAX_NODES:
        nodes, edges = _by_label(nodes, edges)
    return _placed(nodes, edges, known=True)


def _counts(observation: Observation, transform: TransformRecord | None, planned: int) -> Counts:
    if transform is not None and (counts := observation.tally.by_transform.get(transform.transform_id)):
        return counts
    aborted = is_aborted(observation.evidence.request)
    return count_task(transform, planned, aborted=aborted, ended=observation.tally.ended)


def _without_plan(observation: Observation, transforms: Mapping[str, TransformRecord]) -> TaskGraph:
    run = observation.name
    items = sorted(transforms.values(), key=lambda item: (ordinal_of_task(item.name, run), item.name))
    nodes = [
        TaskNode(item.name, label_of_task(item.name, run), _counts(observation, item, 0)) for item in items
    ]
    nodes, _ = _by_label(nodes, set())
    # The order is that of the pipeline, in lines like text.
    placed = (replace(node, column=n % _A_LINE, row=n // _A_LINE) for n, node in enumerate(nodes))
    return TaskGraph(tuple(placed), (), has_edges=False)


def _edges_of(plan: WorkflowPlan, tasks: tuple[TaskPlan, ...]) -> set[tuple[int, int]]:
    """Find which task waits for which."""
    position = {task.name: number for number, task in enumerate(tasks)}
    order = sorted(range(len(tasks)), key=lambda number: tasks[number].first)
    firsts = [tasks[number].first for number in order]
    edges: set[tuple[int, int]] = set()
    for child, task in enumerate(tasks):
        parents = {parent for job in task.jobs for parent in job.parents}
        edges |= {(order[bisect_right(firsts, parent) - 1], child) for parent in parents}
    for condition in plan.conditions:
        edges |= {
            (position[before], position[after])
            for before in condition.waits_for
            for after in condition.starts
            if before in position and after in position
        }
    if plan.final:
        first_final = len(plan.tasks)
        sinks = [number for number, task in enumerate(plan.tasks) if task.is_sink]
        edges |= {(sink, first_final) for sink in sinks}
    return {(before, after) for before, after in edges if before != after}


def _by_label(
    nodes: Iterable[TaskNode], edges: Iterable[tuple[int, int]]
) -> tuple[list[TaskNode], set[tuple[int, int]]]:
    """Draw the tasks of a label as one."""
    merged: dict[str, TaskNode] = {}
    where: list[int] = []
    for node in nodes:
        old = merged.get(node.label)
        if old is None:
            merged[node.label] = replace(node, name=node.label)
        else:
            counts = {state: number + old.counts[state] for state, number in node.counts.items()}
            merged[node.label] = replace(old, counts=counts, tasks=old.tasks + 1)
        where.append(list(merged).index(node.label))
    between = {(where[before], where[after]) for before, after in edges}
    return list(merged.values()), {(before, after) for before, after in between if before != after}


def _placed(nodes: list[TaskNode], edges: set[tuple[int, int]], *, known: bool) -> TaskGraph:
    """Put each node behind all it waits for."""
    before: dict[int, list[int]] = {}
    for earlier, later in edges:
        before.setdefault(later, []).append(earlier)
    columns = [0] * len(nodes)
    # As often as the longest way is long; labels that wait for each other (tasks of two labels by
    # turns) would go on for ever.
    for _ in range(len(nodes)):
        longer = [
            1 + max((columns[n] for n in before.get(number, ())), default=-1) for number in range(len(nodes))
        ]
        if longer == columns or max(longer, default=0) > len(nodes):
            break
        columns = longer
    rows: dict[int, int] = {}
    placed = []
    for node, column in zip(nodes, columns, strict=True):
        row = rows.get(column, 0)
        rows[column] = row + 1
        placed.append(replace(node, column=column, row=row))
    return TaskGraph(tuple(placed), tuple(sorted(edges)), known)


def state_of(counts: Counts) -> WmsStates:
    """Give the state that a task is drawn with: the worst that needs a look,
    else what is going on.
    """
    for state in (WmsStates.FAILED, WmsStates.DELETED, WmsStates.RUNNING, WmsStates.PENDING, WmsStates.READY):
        if counts[state]:
            return state
    total = sum(counts.values())
    if total and counts[WmsStates.SUCCEEDED] == total:
        return WmsStates.SUCCEEDED
    return WmsStates.PRUNED if counts[WmsStates.PRUNED] else WmsStates.UNREADY


STATE_COLOURS = {
    WmsStates.SUCCEEDED: "#2a9d5c",
    WmsStates.FAILED: "#d1433f",
    WmsStates.DELETED: "#8a5aa8",
    WmsStates.PRUNED: "#c9a227",
    WmsStates.RUNNING: "#2f7fd1",
    WmsStates.PENDING: "#7fb2e5",
    WmsStates.READY: "#a9cbea",
    WmsStates.UNREADY: "#c3c7cc",
}
"""Colour of each state; others are grey."""

_GREY = "#9aa0a6"
_BOX = (190, 46)
_GAP = (60, 16)
_BINS = 200
_BARS = 24
_NAME = 26


def colour_of(state: WmsStates) -> str:
    """Give the colour of a state."""
    return STATE_COLOURS.get(state, _GREY)


def draw_graph(graph: TaskGraph) -> str:
    """Draw the graph of tasks.

    Parameters
    ----------
    graph : `TaskGraph`
        Tasks, placed.
    """
    if not graph.nodes:
        return ""
    width = (max(node.column for node in graph.nodes) + 1) * (_BOX[0] + _GAP[0])
    height = (max(node.row for node in graph.nodes) + 1) * (_BOX[1] + _GAP[1])
    edges = [_edge(graph.nodes[before], graph.nodes[after]) for before, after in graph.edges]
    boxes = [_box(node) for node in graph.nodes]
    return _svg(width, height, [*edges, *boxes], "graph of tasks", "graph")


def _corner(node: TaskNode) -> tuple[int, int]:
    return node.column * (_BOX[0] + _GAP[0]) + 4, node.row * (_BOX[1] + _GAP[1]) + 4


def _edge(before: TaskNode, after: TaskNode) -> str:
    x1, y1 = _corner(before)
    x2, y2 = _corner(after)
    x1, y1, y2 = x1 + _BOX[0], y1 + _BOX[1] // 2, y2 + _BOX[1] // 2
    bend = _GAP[0] // 2
    return f'<path class="edge" d="M{x1},{y1} C{x1 + bend},{y1} {x2 - bend},{y2} {x2},{y2}"/>'


def _box(node: TaskNode) -> str:
    x, y = _corner(node)
    state = state_of(node.counts)
    counts = ", ".join(f"{number} {key.name}" for key, number in node.counts.items() if number)
    tasks = f" in {node.tasks} tasks" if node.tasks > 1 else ""
    label = node.label if len(node.label) <= _NAME else node.label[: _NAME - 1] + "\u2026"
    return (
        f'<g class="task" data-state="{state.name}"><title>{escape(node.name)}: {escape(counts)}</title>'
        f'<rect class="box" x="{x}" y="{y}" width="{_BOX[0]}" height="{_BOX[1]}" rx="5" '
        f'stroke="{colour_of(state)}"/>'
        f"{_shares(node, x, y)}"
        f'<text x="{x + 8}" y="{y + 17}">{escape(label)}</text>'
        f'<text class="small" x="{x + 8}" y="{y + 31}">'
        f"{number_of(node.jobs, 'job')}{tasks}, {state.name.lower()}</text></g>"
    )


def _shares(node: TaskNode, x: int, y: int) -> str:
    """Draw how many jobs are in which state, as a bar at the box's foot."""
    total = max(1, node.jobs)
    parts = []
    start = float(x)
    for state in STATE_COLOURS:
        length = _BOX[0] * node.counts[state] / total
        if length:
            parts.append(
                f'<rect x="{start:.1f}" y="{y + _BOX[1] - 8}" width="{length:.1f}" height="8" '
                f'fill="{colour_of(state)}"/>'
            )
            start += length
    return "".join(parts)


def draw_timeline(
    jobs: Iterable[JobDetail], *, until: datetime | None = None, width: int = 1100, height: int = 160
) -> str:
    """Draw how many jobs were running, had finished and had failed.

    Parameters
    ----------
    jobs : `~collections.abc.Iterable` [`JobDetail`]
        Attempts.
    until : `~datetime.datetime`, optional
        End of the axis, for a run that goes on; the last change by default.
    width, height : `int`, optional
        Size, pixels.

    Returns
    -------
    svg : `str`
        Empty if no attempt has started.
    """
    begun = [job for job in jobs if job.started is not None]
    if not begun:
        return ""
    series = count_over_time(begun, until=until)
    start, end, bins = series.start, series.end, series.bins
    top = max(1, *(max(numbers) for numbers in bins.values()))
    left, foot = 44, height - 22
    step = (width - left - 8) / (_BINS - 1)
    shapes = [_axis(left, foot, width, top)]
    for name, colour in (("finished", "#2a9d5c"), ("failed", "#d1433f"), ("running", "#2f7fd1")):
        points = " ".join(
            f"{left + n * step:.1f},{foot - (foot - 10) * value / top:.1f}"
            for n, value in enumerate(bins[name])
        )
        shapes.append(f'<polyline class="line" data-series="{name}" points="{points}" stroke="{colour}"/>')
    shapes.append(f'<text class="small" x="{left}" y="{height - 6}">{start:%Y-%m-%d %H:%M:%S} UTC</text>')
    shapes.append(
        f'<text class="small" x="{width - 8}" y="{height - 6}" text-anchor="end">'
        f"{end:%Y-%m-%d %H:%M:%S}</text>"
    )
    return _svg(width, height, shapes, "running, finished and failed jobs over time", "timeline")


class TimeSeries:
    """Numbers of jobs at equal steps of time."""

    def __init__(self, start: datetime, end: datetime, bins: dict[str, list[int]]) -> None:
        self.start = start
        self.end = end
        self.bins = bins


def count_over_time(
    jobs: Sequence[JobDetail], steps: int = _BINS, *, until: datetime | None = None
) -> TimeSeries:
    """Count jobs over time.

    Parameters
    ----------
    jobs : `~collections.abc.Sequence` [`JobDetail`]
        Attempts that have started.
    steps : `int`, optional
        Number of moments.
    until : `~datetime.datetime`, optional
        The last moment; that of the last change by default.

    Returns
    -------
    series : `TimeSeries`
        ``running`` at each moment; ``finished`` and ``failed`` up to it.
    """
    starts = [job.started for job in jobs if job.started is not None]
    ends = [job.ended for job in jobs if job.ended is not None]
    start, end = min(starts), max([*starts, *ends, *([until] if until is not None else [])])
    length = max(1.0, (end - start).total_seconds())
    changes = {name: [0] * (steps + 1) for name in ("running", "finished", "failed")}

    def position(moment: datetime) -> int:
        return max(0, min(steps - 1, int((moment - start).total_seconds() / length * (steps - 1))))

    for job in jobs:
        assert job.started is not None
        changes["running"][position(job.started)] += 1
        if job.ended is not None:
            changes["running"][position(job.ended) + (job.ended < end)] -= 1
            kind = "finished" if job.finished else "failed" if job.failed else ""
            if kind:
                changes[kind][position(job.ended)] += 1
    return TimeSeries(start, end, {name: _running_sum(numbers[:steps]) for name, numbers in changes.items()})


def _running_sum(numbers: Sequence[int]) -> list[int]:
    sums, total = [], 0
    for number in numbers:
        total += number
        sums.append(max(0, total))
    return sums


def draw_histogram(
    values: Sequence[float], *, limit: float = 0.0, unit: str = "", width: int = 300, height: int = 110
) -> str:
    """Draw how often values occur.

    Parameters
    ----------
    values : `~collections.abc.Sequence` [`float`]
        The values.
    limit : `float`, optional
        What was asked for, drawn as a line; 0 if not known.
    unit : `str`, optional
        Unit of the values.
    width, height : `int`, optional
        Size, pixels.

    Returns
    -------
    svg : `str`
        Empty without values.
    """
    if not values:
        return ""
    largest = max(*values, limit, 1e-9) if len(values) > 1 else max(values[0], limit, 1e-9)
    counts = [0] * _BARS
    for value in values:
        counts[min(_BARS - 1, int(value / largest * _BARS))] += 1
    left, foot, top = 44, height - 20, max(counts)
    step = (width - left - 8) / _BARS
    shapes = [_axis(left, foot, width, top)]
    for number, count in enumerate(counts):
        if count:
            size = (foot - 10) * count / top
            shapes.append(
                f'<rect class="bar" x="{left + number * step:.1f}" y="{foot - size:.1f}" '
                f'width="{step - 1:.1f}" height="{size:.1f}" fill="#2f7fd1"/>'
            )
    if limit:
        x = left + (width - left - 8) * limit / largest
        shapes.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="6" y2="{foot}"/>')
    shapes.append(f'<text class="small" x="{left}" y="{height - 5}">0</text>')
    shapes.append(
        f'<text class="small" x="{width - 8}" y="{height - 5}" text-anchor="end">'
        f"{largest:.0f} {escape(unit)}</text>"
    )
    return _svg(width, height, shapes, "histogram", "histogram")


def _axis(left: int, foot: int, width: int, top: int) -> str:
    return (
        f'<path class="axis" d="M{left},6 V{foot} H{width - 8}"/>'
        f'<text class="small" x="{left - 5}" y="14" text-anchor="end">{top}</text>'
    )


def _svg(width: float, height: float, shapes: Iterable[str], title: str, kind: str) -> str:
    return (
        f'<svg class="{kind}" role="img" aria-label="{escape(title)}" '
        f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(shapes)}</svg>'
    )
