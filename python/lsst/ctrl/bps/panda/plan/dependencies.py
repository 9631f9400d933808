"""From a generic workflow, with its groups and no-op jobs, to one flat graph
of jobs.

Every edge ends up exactly once, as a parent of a job or as a gate:

* job to job: a parent;
* through a no-op job, and out of a *blocking* group: parents, because one
  failure must prune what follows.  Where m parents meet n children and m * n
  would be large, a *barrier* job (``true``) stands between them, so that m + n
  edges remain;
* out of a *non-blocking* group: a gate.  What follows starts when everything
  in the group is terminated, failed or not (an iDDS condition).

A blocking border is not an iDDS condition over ``is_finished``: tasks behind
a condition that never comes true have no transform, so that the request would
end without them and a final job that waits for them would never start.
"""

from __future__ import annotations

__all__ = ["MAX_DIRECT_EDGES", "JobGraph", "flatten"]

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from lsst.ctrl.bps import (
    GenericWorkflow,
    GenericWorkflowExec,
    GenericWorkflowFile,
    GenericWorkflowJob,
    GenericWorkflowNodeType,
)

from ..errors import PlanError

MAX_DIRECT_EDGES = 1000
"""Most edges that a join is spelled out with; a larger one gets a barrier."""


@dataclass(slots=True)
class JobGraph:
    """The jobs of a workflow by index, and what each waits for.

    All lists have one entry a job.
    """

    jobs: list[GenericWorkflowJob] = field(default_factory=list)
    inputs: list[tuple[GenericWorkflowFile, ...]] = field(default_factory=list)
    outputs: list[tuple[GenericWorkflowFile, ...]] = field(default_factory=list)
    parents: list[list[int]] = field(default_factory=list)
    """Indices of the jobs that must succeed before."""
    groups: list[str] = field(default_factory=list)
    """Path of the ordering group that a job is in; empty for none."""
    gates: list[frozenset[str]] = field(default_factory=list)
    """Paths of the groups that must be terminated before."""

    def add(
        self,
        job: GenericWorkflowJob,
        *,
        inputs: Iterable[GenericWorkflowFile] = (),
        outputs: Iterable[GenericWorkflowFile] = (),
        group: str = "",
    ) -> int:
        """Add a job without parents and return its index."""
        self.jobs.append(job)
        self.inputs.append(tuple(inputs))
        self.outputs.append(tuple(outputs))
        self.parents.append([])
        self.groups.append(group)
        self.gates.append(frozenset())
        return len(self.jobs) - 1


@dataclass(slots=True)
class _Node:
    """A node of the generic workflow as an end of edges."""

    entries: list[int]
    """Jobs that an edge into the node leads to."""
    exits: list[int]
    """Jobs that must succeed before an edge out of the node is open."""
    members: list[int]
    """All its jobs."""
    gate: str = ""
    """Path, if the node is a non-blocking group."""


@dataclass(slots=True)
class _Hub:
    """A no-op job, or one side of a group, that joins many with many."""

    name: str
    label: str
    group: str


def flatten(workflow: GenericWorkflow) -> JobGraph:
    """Make the flat graph of a generic workflow, without its final job.

    Parameters
    ----------
    workflow : `~lsst.ctrl.bps.GenericWorkflow`
        What BPS made, of core 30.2026.300 or later.

    Returns
    -------
    graph : `JobGraph`
        Its jobs, and a barrier where a join is large.

    Raises
    ------
    PlanError
        Raised if jobs wait for each other in a circle, if a parent does not
        exist, or for a kind of node that PanDA cannot run.
    """
    graph = JobGraph()
    _flatten_into(graph, workflow, "")
    _check_no_circle(graph)
    _spread_gates(graph)
    return graph


def _flatten_into(graph: JobGraph, workflow: GenericWorkflow, path: str) -> tuple[list[int], list[int]]:
    """Add a (sub-)workflow; return the jobs without predecessors in it and
    those without successors.
    """
    first = len(graph.jobs)
    nodes: dict[str, _Node] = {}
    noops: dict[str, _Hub] = {}
    for name, node in workflow.nodes(data="job"):
        _add_node(graph, workflow, path, name, node, nodes, noops)
    plain = not noops and all(len(node.members) == 1 for node in nodes.values())
    if plain:
        _add_direct_edges(graph, workflow, nodes)
    else:
        _add_edges(graph, workflow, nodes, noops)
    if not path:
        return [], []
    members = range(first, len(graph.jobs))
    with_children = {parent for index in members for parent in graph.parents[index]}
    sources = [i for i in members if not any(p >= first for p in graph.parents[i]) and not graph.gates[i]]
    return sources, [i for i in members if i not in with_children]


def _add_node(
    graph: JobGraph,
    workflow: GenericWorkflow,
    path: str,
    name: str,
    node: object,
    nodes: dict[str, _Node],
    noops: dict[str, _Hub],
) -> None:
    """Enter one node of the generic workflow."""
    kind = getattr(node, "node_type", None)
    if kind == GenericWorkflowNodeType.PAYLOAD:
        assert isinstance(node, GenericWorkflowJob)
        index = graph.add(
            node,
            inputs=workflow.get_job_inputs(name),
            outputs=workflow.get_job_outputs(name),
            group=path,
        )
        nodes[name] = _Node([index], [index], [index])
    elif kind == GenericWorkflowNodeType.NOOP:
        noops[name] = _Hub(name, getattr(node, "label", "noop"), path)
    elif kind == GenericWorkflowNodeType.GROUP:
        assert isinstance(node, GenericWorkflow)
        first = len(graph.jobs)
        inner = f"{path}/{name}" if path else name
        sources, sinks = _flatten_into(graph, node, inner)
        members = list(range(first, len(graph.jobs)))
        gate = "" if getattr(node, "blocking", False) else inner
        nodes[name] = _Node(sources, sinks, members, gate)
    elif node is None:
        raise PlanError(
            f"Job {name!r} of workflow {workflow.name!r} is named in a dependency but does not exist."
        )
    else:
        kind_name = getattr(kind, "name", type(node).__name__)
        raise PlanError(
            f"Node {name!r} of workflow {workflow.name!r} is of kind {kind_name}, which PanDA cannot run. "
            "(For a lazy group: prepare the run without bpsBatchSubmission.)"
        )


def _add_direct_edges(graph: JobGraph, workflow: GenericWorkflow, nodes: dict[str, _Node]) -> None:
    """Add the edges of a workflow of jobs only; the usual case, kept fast."""
    index = {name: node.members[0] for name, node in nodes.items()}
    gated = {name for name, node in nodes.items() if node.gate}
    if gated:
        _add_edges(graph, workflow, nodes, {})
        return
    parents = graph.parents
    for name, children in workflow.adjacency():
        if children:
            parent = index[name]
            for child in children:
                parents[index[child]].append(parent)


def _add_edges(
    graph: JobGraph, workflow: GenericWorkflow, nodes: dict[str, _Node], noops: dict[str, _Hub]
) -> None:
    """Add the edges of a workflow with groups or no-op jobs."""
    opens: dict[str, tuple[list[int], frozenset[str]]] = {}
    for name in _in_order(workflow, noops):
        waits, gates = _predecessors(workflow, name, nodes, opens)
        if name in noops:
            if len(waits) * _fan_out(workflow, name, nodes) > MAX_DIRECT_EDGES:
                waits = [_add_barrier(graph, noops[name], waits, gates)]
            opens[name] = (waits, gates)
            continue
        node = nodes[name]
        if len(waits) > 1 and len(waits) * len(node.entries) > MAX_DIRECT_EDGES:
            hub = _Hub(f"{name}_entry", _label_of(workflow, name), graph.groups[node.members[0]])
            waits = [_add_barrier(graph, hub, waits, gates)]
        for entry in node.entries:
            known = set(graph.parents[entry])
            graph.parents[entry].extend(w for w in waits if w not in known)
        if gates:
            for member in node.members:
                graph.gates[member] |= gates
        exits = node.exits
        if not node.gate and len(exits) > 1:
            fan_out = _fan_out(workflow, name, nodes)
            if len(exits) * fan_out > MAX_DIRECT_EDGES:
                hub = _Hub(f"{name}_exit", _label_of(workflow, name), graph.groups[exits[0]])
                exits = [_add_barrier(graph, hub, exits, frozenset())]
        opens[name] = ([], frozenset({node.gate})) if node.gate else (exits, frozenset())


def _label_of(workflow: GenericWorkflow, name: str) -> str:
    """Label of a node."""
    return str(workflow.get_job(name).label)


def _predecessors(
    workflow: GenericWorkflow,
    name: str,
    nodes: dict[str, _Node],
    opens: dict[str, tuple[list[int], frozenset[str]]],
) -> tuple[list[int], frozenset[str]]:
    """Jobs that must succeed and groups that must be terminated before a
    node.
    """
    waits: dict[int, None] = {}
    gates: frozenset[str] = frozenset()
    for predecessor in sorted(workflow.predecessors(name)):
        jobs, groups = opens[predecessor]
        waits.update(dict.fromkeys(jobs))
        gates |= groups
    return list(waits), gates


def _fan_out(workflow: GenericWorkflow, name: str, nodes: dict[str, _Node]) -> int:
    """Number of jobs that the edges out of a node lead to."""
    return sum(
        len(nodes[child].entries) if child in nodes else 1 for child in workflow.successors(name)
    )


def _add_barrier(graph: JobGraph, hub: _Hub, waits: list[int], gates: frozenset[str]) -> int:
    """Add a job that does nothing, after the jobs of ``waits``."""
    job = GenericWorkflowJob(
        f"barrier_{hub.name}",
        f"{hub.label}Barrier",
        executable=GenericWorkflowExec("true", "true", False),
        arguments="",
    )
    # A barrier that fails prunes a whole group, so it may try more often.
    job.number_of_retries = 5
    index = graph.add(job, group=hub.group)
    graph.parents[index] = list(waits)
    graph.gates[index] = gates
    return index


def _in_order(workflow: GenericWorkflow, noops: dict[str, _Hub]) -> list[str]:
    """Names of the nodes, each after its predecessors, in an order that does
    not depend on how the workflow was built.
    """
    missing = {name: workflow.in_degree(name) for name in workflow.nodes}
    ready = deque(sorted(name for name, count in missing.items() if count == 0))
    order: list[str] = []
    while ready:
        name = ready.popleft()
        order.append(name)
        for child in sorted(workflow.successors(name)):
            missing[child] -= 1
            if missing[child] == 0:
                ready.append(child)
    if len(order) < len(missing):
        stuck = sorted(name for name, count in missing.items() if count > 0)
        raise PlanError(f"These jobs or groups wait for each other in a circle: {_some(stuck)}.")
    return order


def _check_no_circle(graph: JobGraph) -> None:
    """Raise if jobs wait for each other in a circle."""
    missing = [len(parents) for parents in graph.parents]
    children: list[list[int]] = [[] for _ in missing]
    for index, parents in enumerate(graph.parents):
        for parent in parents:
            children[parent].append(index)
    ready = [index for index, count in enumerate(missing) if count == 0]
    done = 0
    while ready:
        index = ready.pop()
        done += 1
        for child in children[index]:
            missing[child] -= 1
            if missing[child] == 0:
                ready.append(child)
    if done < len(missing):
        stuck = sorted(graph.jobs[i].name for i, count in enumerate(missing) if count > 0)
        raise PlanError(f"These jobs wait for each other in a circle: {_some(stuck)}.")


def _spread_gates(graph: JobGraph) -> None:
    """Give each job the gates of its parents, so that no task waits for
    inputs from a task that has not been released.
    """
    if not any(graph.gates):
        return
    pending = deque(index for index, gates in enumerate(graph.gates) if gates)
    children: list[list[int]] = [[] for _ in graph.jobs]
    for index, parents in enumerate(graph.parents):
        for parent in parents:
            children[parent].append(index)
    while pending:
        index = pending.popleft()
        for child in children[index]:
            union = graph.gates[child] | graph.gates[index]
            if union != graph.gates[child]:
                graph.gates[child] = union
                pending.append(child)


def _some(names: list[str], count: int = 8) -> str:
    """Render a few of many names."""
    shown = ", ".join(names[:count])
    return shown if len(names) <= count else f"{shown} and {len(names) - count} more"
