"""The graph of a run's tasks: which waits for which, how far each is, where it stands in a drawing
and in which colour.
"""

from __future__ import annotations

__all__ = ["STATE_COLOURS", "TaskGraph", "TaskNode", "colour_of", "make_task_graph", "state_of"]

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from lsst.ctrl.bps.wms_service import WmsStates

from ..plan.model import TaskPlan, WorkflowPlan
from ..plan.naming import label_of_task, ordinal_of_task
from ..status.bps_states import Counts, count_task, sum_counts
from ..status.evidence import RunEvidence
from ..status.records import TransformRecord

MAX_NODES = 150
"""With more tasks, those of a label are drawn as one."""

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
    """Whether it is known what waits for what: it is in the plan, in the submit directory."""


def make_task_graph(evidence: RunEvidence, plan: WorkflowPlan | None) -> TaskGraph:
    """Make the graph of a run, placed in columns from left to right; without a
    plan the tasks are drawn in their order.
    """
    transforms = {item.name: item for item in evidence.transforms or ()}
    if plan is None:
        return _without_plan(evidence, transforms)
    tasks = (*plan.tasks, *plan.final)
    nodes = [
        TaskNode(task.name, task.label, _counts(evidence, transforms.get(task.name), len(task.jobs)))
        for task in tasks
    ]
    edges = _edges_of(plan, tasks)
    if len(nodes) > MAX_NODES:
        nodes, edges = _by_label(nodes, edges)
    return _placed(nodes, edges, known=True)


def _counts(evidence: RunEvidence, transform: TransformRecord | None, planned: int) -> Counts:
    if transform is not None and (counts := evidence.tally.by_transform.get(transform.transform_id)):
        return counts
    return count_task(transform, planned, aborted=evidence.aborted, ended=evidence.ended)


def _without_plan(evidence: RunEvidence, transforms: Mapping[str, TransformRecord]) -> TaskGraph:
    run = evidence.name
    items = sorted(transforms.values(), key=lambda item: (ordinal_of_task(item.name, run), item.name))
    nodes = [TaskNode(item.name, label_of_task(item.name, run), _counts(evidence, item, 0)) for item in items]
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
        if old := merged.get(node.label):
            counts = sum_counts((old.counts, node.counts))
            merged[node.label] = replace(old, counts=counts, tasks=old.tasks + 1)
        else:
            merged[node.label] = replace(node, name=node.label)
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
    """Return the state that a task is drawn with: the worst that needs a look, else what is going on."""
    for state in (WmsStates.FAILED, WmsStates.DELETED, WmsStates.RUNNING, WmsStates.PENDING, WmsStates.READY):
        if counts[state]:
            return state
    total = sum(counts.values())
    if total and counts[WmsStates.SUCCEEDED] == total:
        return WmsStates.SUCCEEDED
    return WmsStates.PRUNED if counts[WmsStates.PRUNED] else WmsStates.UNREADY


def colour_of(state: WmsStates) -> str:
    """Return the colour of a state."""
    return STATE_COLOURS.get(state, _GREY)
