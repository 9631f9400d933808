"""The graph of jobs of a generic workflow: jobs by index, with their dependencies resolved through groups and
no-op jobs.

Every edge ends up exactly once, as a parent of a job or as a gate:

* job to job: a parent;
* through a no-op job or a group without jobs, and into or out of a group:
  parents, because one failure must prune what follows.  Where m parents meet
  n children and m * n would be large, a *barrier* job (``true``) stands
  between them, so that m + n edges remain;
* from a *non-blocking* group to the next group of the same ``ordering``
  section: a gate.  What follows starts when everything in the group is
  terminated, failed or not (an iDDS condition).

A blocking border is not an iDDS condition over ``is_finished``: tasks behind
a condition that never comes true have no transform, so that the request would
end without them and a final job that waits for them would never start.
"""

from __future__ import annotations

__all__ = [
    "GRAPH_KEY",
    "JobGraph",
    "append_final",
    "find_quantum_graph",
    "flatten",
    "labels_of",
    "levels_of",
    "pause_garbage_collection",
]

import gc
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import networkx as nx

from lsst.ctrl.bps import (
    GenericWorkflow,
    GenericWorkflowExec,
    GenericWorkflowFile,
    GenericWorkflowJob,
    GenericWorkflowNodeType,
)

from ..errors import PlanError

GRAPH_KEY = "runQgraphFile"
"""How BPS calls the quantum graph among the files of a run."""


@contextmanager
def pause_garbage_collection() -> Iterator[None]:
    """Stop the garbage collector, and start it again if it ran before.

    Millions of small objects without cycles are made at once; the collector would look at all of them, and at
    the whole generic workflow, again and again.
    """
    ran = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if ran:
            gc.enable()


_WITHOUT_NODES = {GenericWorkflowJob, type(None)}
"""Nodes of nearly all workflows: none is a workflow itself."""


def labels_of(levels: Iterable[tuple[GenericWorkflow, list[Any]]]) -> list[str]:
    """Return all labels in the result of `levels_of`, sorted."""
    labels: set[str] = set()
    for _, nodes in levels:
        # There may be no final job, and a final workflow has no label.
        labels.update([getattr(node, "label", "") for node in nodes])
    return sorted(labels - {""})


def levels_of(workflow: GenericWorkflow) -> Iterator[tuple[GenericWorkflow, list[Any]]]:
    """Yield a workflow, its groups and its final workflow, each with its nodes and final job or workflow."""
    stack = [workflow]
    while stack:
        current = stack.pop()
        nodes = [node for _, node in current.nodes(data="job")]
        nodes.append(current.get_final())
        yield current, nodes
        if not set(map(type, nodes)) <= _WITHOUT_NODES:
            stack += [node for node in nodes if isinstance(node, GenericWorkflow)]


_NO_GATES: frozenset[str] = frozenset()


@dataclass(slots=True)
class JobGraph:
    """The jobs of a workflow by index, and what each waits for.

    The lists have one entry a job.
    """

    jobs: list[GenericWorkflowJob] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    label_of: list[str] = field(default_factory=list)
    inputs: list[tuple[GenericWorkflowFile, ...]] = field(default_factory=list)
    outputs: list[tuple[GenericWorkflowFile, ...]] = field(default_factory=list)
    parents: list[list[int]] = field(default_factory=list)
    """Indices of the jobs that must succeed before."""

    groups: list[str] = field(default_factory=list)
    """Path of the ordering group that a job is in; empty for none."""

    gates: list[frozenset[str]] = field(default_factory=list)
    """Paths of the groups that must be terminated before."""

    labels: tuple[str, ...] = ()
    """Labels in pipeline order, once the graph is complete."""

    depths: list[int] | None = None
    """Length of the longest way to each job from one without parents; left
    out where no label depends on itself, be it through others."""

    _files: dict[int | tuple[int, ...], tuple[GenericWorkflowFile, ...]] = field(default_factory=dict)

    def add(self, job: GenericWorkflowJob, workflow: GenericWorkflow | None, *, group: str = "") -> int:
        """Add a job without parents and return its index.

        ``workflow`` knows its files, if it has any; ``group`` is the path of its group.
        """
        self.extend([job], workflow, group=group)
        return len(self.jobs) - 1

    def extend(
        self, jobs: Sequence[GenericWorkflowJob], workflow: GenericWorkflow | None, *, group: str = ""
    ) -> None:
        """Add jobs without parents."""
        names = [job.name for job in jobs]
        self.jobs += jobs
        self.names += names
        self.label_of += [job.label for job in jobs]
        self.parents += [[] for _ in jobs]
        self.groups += [group] * len(jobs)
        self.gates += [_NO_GATES] * len(jobs)
        if workflow is None:
            self.inputs += [()] * len(jobs)
            self.outputs += [()] * len(jobs)
            return
        shared = self._shared
        self.inputs += [shared(files) if files else () for files in map(workflow.get_job_inputs, names)]
        self.outputs += [shared(files) if files else () for files in map(workflow.get_job_outputs, names)]

    def _shared(self, files: list[GenericWorkflowFile]) -> tuple[GenericWorkflowFile, ...]:
        """Return one tuple for all jobs with the same files.

        There are few different ones in a run of a million jobs.
        """
        key = id(files[0]) if len(files) == 1 else tuple(map(id, files))
        known = self._files.get(key)
        if known is None:
            known = self._files[key] = tuple(files)
        return known

    def complete(self) -> None:
        """Find the order of the labels, once all jobs and edges are there.

        Raises `PlanError` if two jobs have one name, if a job has no label,
        or if jobs wait for each other in a circle.
        """
        if len(set(self.names)) < len(self.names):
            twice = sorted(name for name, count in Counter(self.names).items() if count > 1)
            raise PlanError(f"These names are those of several jobs of the workflow: {_some_of(twice)}.")
        for label in set(self.label_of):
            if not isinstance(label, str) or not label:
                name = self.names[self.label_of.index(label)]
                raise PlanError(f"The label of job {name!r} is {label!r}; it must be a text.")
        order = self._order_of_labels()
        within = list(nx.selfloop_edges(order))
        order.remove_edges_from(within)
        if nx.is_directed_acyclic_graph(order):
            generations = nx.topological_generations(order)
            self.labels = tuple(label for generation in generations for label in sorted(generation))
            if not within:
                return
        self.depths = self._find_depths()
        if not self.labels:  # labels depend on each other in a circle, though jobs do not
            first: dict[str, int] = {}
            for label, depth in zip(self.label_of, self.depths, strict=True):
                first[label] = min(depth, first.get(label, depth))
            self.labels = tuple(sorted(first, key=lambda label: (first[label], label)))

    def _order_of_labels(self) -> nx.DiGraph[str]:
        """Return the graph of the labels, with an edge where a job of one depends on a job of another."""
        label_of = self.label_of.__getitem__
        before: dict[str, set[str]] = {label: set() for label in set(self.label_of)}
        for label, parents in zip(self.label_of, self.parents, strict=True):
            if parents:
                before[label].update(map(label_of, parents))
        order: nx.DiGraph[str] = nx.DiGraph()
        order.add_nodes_from(before)
        order.add_edges_from((parent, label) for label, parents in before.items() for parent in parents)
        return order

    def children(self) -> list[list[int]]:
        """Return the jobs that depend on each job."""
        children: list[list[int]] = [[] for _ in self.jobs]
        for index, parents in enumerate(self.parents):
            for parent in parents:
                children[parent].append(index)
        return children

    def _find_depths(self) -> list[int]:
        """Return the depth of each job; raise `PlanError` if jobs wait for each other in a circle."""
        missing = [len(parents) for parents in self.parents]
        depths = [0] * len(missing)
        children = self.children()
        ready = [index for index, count in enumerate(missing) if count == 0]
        done = 0
        while ready:
            index = ready.pop()
            done += 1
            for child in children[index]:
                depths[child] = max(depths[child], depths[index] + 1)
                missing[child] -= 1
                if missing[child] == 0:
                    ready.append(child)
        if done < len(missing):
            stuck = sorted(self.names[i] for i, count in enumerate(missing) if count > 0)
            raise PlanError(f"These jobs wait for each other in a circle: {_some_of(stuck)}.")
        return depths


def _some_of(names: Sequence[str]) -> str:
    """Render the first of many names."""
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


@dataclass(slots=True)
class _Group:
    """A group as the start or end of edges."""

    path: str
    label: str
    blocking: bool
    members: range
    entries: list[int]
    """Jobs that wait for what is before the group."""

    exits: list[int]
    """Jobs that must all succeed for the group to have succeeded."""


@dataclass(slots=True)
class _Level:
    """A workflow or group, with its nodes sorted by kind."""

    workflow: GenericWorkflow
    path: str
    jobs: dict[str, int] = field(default_factory=dict)
    """Index by name."""

    groups: dict[str, _Group] = field(default_factory=dict)
    noops: dict[str, str] = field(default_factory=dict)
    """Label by name."""

    def fan_out(self, name: str) -> int:
        """Count the jobs that the edges out of a node lead to."""
        children = self.workflow.successors(name)
        return sum(len(self.groups[child].entries) if child in self.groups else 1 for child in children)

    def in_order(self) -> list[str]:
        """Return the names of the nodes, each after its predecessors.

        The order does not depend on how the workflow was built.
        """
        try:
            return list(nx.lexicographical_topological_sort(self.workflow))
        except nx.NetworkXUnfeasible:
            stuck = sorted({name for edge in nx.find_cycle(self.workflow) for name in edge})
            raise PlanError(
                f"These jobs or groups wait for each other in a circle: {_some_of(stuck)}."
            ) from None


def flatten(workflow: GenericWorkflow, *, max_direct_edges: int) -> JobGraph:
    """Make the flat graph of a generic workflow (of BPS 30.2026.300 or later), without its final job.

    A join of many jobs with many that would have more than ``max_direct_edges`` edges gets a barrier.  Raises
    `PlanError` if jobs wait for each other in a circle, if a parent does not exist, if two jobs have one
    name, or for a kind of node that PanDA cannot run.
    """
    graph = JobGraph()
    _Flattener(graph, max_direct_edges).add_level(workflow, "")
    if any(graph.gates):
        _spread_gates(graph)
    _forget_idle_groups(graph)
    graph.complete()
    return graph


@dataclass(frozen=True, slots=True)
class _Flattener:
    """Adds nested workflows and groups to a graph."""

    graph: JobGraph
    max_direct_edges: int

    def add_level(self, workflow: GenericWorkflow, path: str) -> None:
        """Add a workflow or group with all that is in it."""
        level = _Level(workflow, path)
        nodes = [(name, attributes.get("job")) for name, attributes in workflow.nodes(data=True)]
        jobs = [node for _, node in nodes if type(node) is GenericWorkflowJob]
        first = len(self.graph.jobs)
        self.graph.extend(jobs, workflow, group=path)
        level.jobs = {name: index for index, name in enumerate(self.graph.names[first:], first)}
        if len(jobs) < len(nodes):
            for name, node in nodes:
                if type(node) is not GenericWorkflowJob:
                    self._add_special(level, name, node)
        _add_job_edges(self.graph, level)
        if level.noops or level.groups:
            _SpecialEdges(self.graph, level, self.max_direct_edges).add()

    def _add_special(self, level: _Level, name: str, node: object) -> None:
        """Add a node that is no plain job."""
        kind = getattr(node, "node_type", None)
        if node is None:
            raise PlanError(
                f"Job {name!r} of workflow {level.workflow.name!r} is named in a dependency but does not "
                "exist."
            )
        if kind == GenericWorkflowNodeType.NOOP:
            level.noops[name] = str(getattr(node, "label", "") or "noop")
        elif kind == GenericWorkflowNodeType.GROUP:
            assert isinstance(node, GenericWorkflow)
            level.groups[name] = self._add_group(node, _path(level.path, name))
        elif kind == GenericWorkflowNodeType.PAYLOAD and isinstance(node, GenericWorkflowJob):
            level.jobs[name] = self.graph.add(node, level.workflow, group=level.path)
        else:
            raise PlanError(
                f"Node {name!r} of workflow {level.workflow.name!r} is of kind "
                f"{getattr(kind, 'name', type(node).__name__)}, which PanDA cannot run: it takes no "
                "tasks into a run that goes on. (Of bpsBatchSubmission, the plugin makes a build task.)"
            )

    def _add_group(self, workflow: GenericWorkflow, path: str) -> _Group:
        """Add the jobs of a group and return it as the start or end of edges."""
        graph = self.graph
        first = len(graph.jobs)
        self.add_level(workflow, path)
        members = range(first, len(graph.jobs))
        with_children = {parent for index in members for parent in graph.parents[index]}
        return _Group(
            path=path,
            label=str(getattr(workflow, "label", "")),
            blocking=bool(getattr(workflow, "blocking", False)),
            members=members,
            entries=[index for index in members if not graph.parents[index]],
            exits=[index for index in members if index not in with_children],
        )


def _path(above: str, name: str) -> str:
    """Return the path of a group or barrier, unique in the run."""
    name = name.replace("%", "%25").replace("/", "%2F")
    return f"{above}/{name}" if above else name


def _add_job_edges(graph: JobGraph, level: _Level) -> None:
    """Add the edges from job to job; the usual case, kept fast."""
    index, parents = level.jobs, graph.parents
    if not (level.noops or level.groups):
        for name, children in level.workflow.adjacency():
            if children:
                parent = index[name]
                for child in map(index.__getitem__, children):
                    parents[child].append(parent)
        return
    for name, children in level.workflow.adjacency():
        if name in index:
            for child in children:
                if child in index:
                    parents[index[child]].append(index[name])


class _SpecialEdges:
    """Adds the edges of a level that begin or end at a group or no-op."""

    def __init__(self, graph: JobGraph, level: _Level, max_direct_edges: int) -> None:
        self._graph = graph
        self._max_direct_edges = max_direct_edges
        self._level = level
        self._opened_by: dict[str, list[int]] = {name: [index] for name, index in level.jobs.items()}
        """Jobs that must succeed before the edges out of a node are open."""

        self._passed_on: dict[str, frozenset[str]] = {}
        """Gates of no-ops and of groups without jobs."""

    def add(self) -> None:
        """Add all of them."""
        level = self._level
        for name in level.in_order():
            gates = self._gates_of(name)
            if name in level.jobs:
                self._lead_to(name, [level.jobs[name]])
                self._shut(gates, [level.jobs[name]])
            elif name in level.noops:
                self._pass_on(name, "", gates)
            elif level.groups[name].members:
                group = level.groups[name]
                self._lead_to(name, group.entries)
                self._shut(gates, group.members)
                self._opened_by[name] = self._joined(name, "_exit", group.exits, level.fan_out(name))
            else:
                self._pass_on(name, "_exit", gates)

    def _pass_on(self, name: str, suffix: str, gates: frozenset[str]) -> None:
        """Let what follows a no-op, or a group without jobs, wait for what is before it."""
        self._opened_by[name] = self._joined(name, suffix, self._waits(name), self._level.fan_out(name))
        self._passed_on[name] = gates

    def _waits(self, name: str) -> list[int]:
        """Return the jobs that must succeed before a node, each once."""
        waits: dict[int, None] = {}
        for predecessor in sorted(self._level.workflow.predecessors(name)):
            if not self._is_gate(predecessor, name):
                waits.update(dict.fromkeys(self._opened_by[predecessor]))
        return list(waits)

    def _is_gate(self, first: str, second: str) -> bool:
        """Whether an edge is a gate: it leads from a non-blocking group to the next of its ``ordering``."""
        one, other = self._level.groups.get(first), self._level.groups.get(second)
        if one is None or other is None or not one.members:
            return False
        return one.label == other.label and not one.blocking

    def _joined(self, name: str, suffix: str, waits: list[int], children: int) -> list[int]:
        """Return the jobs themselves, or a barrier behind them if there would be too many edges."""
        if min(len(waits), children) < 2 or len(waits) * children <= self._max_direct_edges:
            return waits
        label = self._level.noops.get(name) or self._level.groups[name].label
        return [self._add_barrier(name + suffix, label, waits)]

    def _lead_to(self, name: str, entries: list[int]) -> None:
        """Let the first jobs of a node wait for what is before it."""
        waits = self._waits(name)
        if name in self._level.groups:
            waits = self._joined(name, "_entry", waits, len(entries))
        if not waits:
            return
        for entry in entries:
            known = set(self._graph.parents[entry])
            self._graph.parents[entry].extend([wait for wait in waits if wait not in known])

    def _shut(self, gates: frozenset[str], jobs: Iterable[int]) -> None:
        """Let jobs wait for the groups before them."""
        if gates:
            for index in jobs:
                self._graph.gates[index] |= gates

    def _gates_of(self, name: str) -> frozenset[str]:
        """Return the paths of the groups that must be terminated before a node.

        Predecessors without jobs pass on what they wait for.
        """
        paths: set[str] = set()
        for before in self._level.workflow.predecessors(name):
            paths |= self._passed_on.get(before, frozenset())
            if self._is_gate(before, name):
                paths.add(self._level.groups[before].path)
        return frozenset(paths)

    def _add_barrier(self, name: str, label: str, waits: list[int]) -> int:
        """Add a job that does nothing, after some others."""
        job = GenericWorkflowJob(
            f"barrier_{_path(self._level.path, name)}",
            f"{label}Barrier",
            executable=GenericWorkflowExec("true", "true", False),
            arguments="",
        )
        # A barrier that fails prunes all that follows, so it may try often.
        job.number_of_retries = 5
        index = self._graph.add(job, None, group=self._level.path)
        self._graph.parents[index] = list(waits)
        return index


def _spread_gates(graph: JobGraph) -> None:
    """Give each job the gates of its parents too.

    So no task waits for inputs from a task that has not been released.
    """
    pending = deque(index for index, gates in enumerate(graph.gates) if gates)
    children = graph.children()
    while pending:
        index = pending.popleft()
        for child in children[index]:
            union = graph.gates[child] | graph.gates[index]
            if union != graph.gates[child]:
                graph.gates[child] = union
                pending.append(child)


def _forget_idle_groups(graph: JobGraph) -> None:
    """Reduce each job's group to the part that something waits for.

    Jobs of groups that nothing waits for may share a task.
    """
    if not any(graph.groups):
        return
    awaited = frozenset().union(*set(graph.gates))
    cut: dict[str, str] = {"": ""}
    for index, path in enumerate(graph.groups):
        if path not in cut:
            parts = path.split("/")
            prefixes = ("/".join(parts[:size]) for size in range(len(parts), 0, -1))
            cut[path] = next((prefix for prefix in prefixes if prefix in awaited), "")
        graph.groups[index] = cut[path]


def find_quantum_graph(workflow: GenericWorkflow) -> str:
    """Return the path of the quantum graph that a workflow was made of; empty if there is none."""
    try:
        return str(workflow.get_file(GRAPH_KEY).src_uri)
    except KeyError:
        return ""


def append_final(
    workflow: GenericWorkflow, job: GenericWorkflowJob, files: Sequence[GenericWorkflowFile]
) -> None:
    """Add a job with files after all final jobs of a workflow, or as its final job if there is none."""
    final = workflow.get_final()
    if final is None:
        workflow.add_final(job)
        workflow.add_job_inputs(job.name, list(files))
        return
    if isinstance(final, GenericWorkflowJob):
        final = _as_workflow(workflow, final)
        workflow.add_final(final)
    ends = [name for name in final if final.out_degree(name) == 0]
    final.add_job(job, parent_names=ends)
    final.add_job_inputs(job.name, list(files))


def _as_workflow(workflow: GenericWorkflow, job: GenericWorkflowJob) -> GenericWorkflow:
    """Turn a final job into a final workflow, with its files."""
    final = GenericWorkflow(f"{workflow.name}_final")
    final.add_job(job)
    final.add_job_inputs(job.name, workflow.get_job_inputs(job.name, data=True, transfer_only=False))
    final.add_job_outputs(job.name, workflow.get_job_outputs(job.name, data=True, transfer_only=False))
    return final
