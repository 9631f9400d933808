"""Which jobs share a task: those of one label whose command and needs agree."""

from __future__ import annotations

__all__ = ["Family", "chunk_sizes", "group_jobs", "order_labels"]

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from lsst.ctrl.bps import GenericWorkflowFile, GenericWorkflowJob

from .dependencies import JobGraph

_SCALARS = attrgetter(
    "label",
    "arguments",
    "memory_multiplier",
    "request_memory",
    "request_memory_max",
    "request_cpus",
    "request_disk",
    "request_walltime",
    "compute_site",
    "compute_cloud",
    "accounting_group",
    "number_of_retries",
    "priority",
    "queue",
    "pre_cmdline",
    "post_cmdline",
)
"""Attributes of a job that make a difference to its task."""


@dataclass(slots=True)
class Family:
    """Jobs of one label that differ in values only."""

    label: str
    group: str
    gates: frozenset[str]
    arguments: str
    """Arguments, with the name of a file of the job's own made general."""

    members: list[int] = field(default_factory=list)
    """Indices in the graph, sorted by job name."""


def own_file_key(job: GenericWorkflowJob) -> str:
    """Key of the file that BPS makes for one job only
    (``whenSaveJobQgraph``).
    """
    return f"qgraphFile_{job.name}"


OWN_FILE = "jobQgraphFile"
"""Name of the value that stands for a job's own quantum graph file."""


def group_jobs(graph: JobGraph) -> list[Family]:
    """Group the jobs of a graph.

    Parameters
    ----------
    graph : `JobGraph`
        All jobs.

    Returns
    -------
    families : `list` [`Family`]
        In pipeline order of their labels; within a label by group, then by
        the name of the first job.
    """
    families: dict[tuple[Any, ...], Family] = {}
    for index, job in enumerate(graph.jobs):
        key = _key(graph, index, job)
        family = families.get(key)
        if family is None:
            arguments = _general_arguments(job)
            family = Family(job.label, graph.groups[index], graph.gates[index], arguments)
            families[key] = family
        family.members.append(index)
    jobs = graph.jobs
    for family in families.values():
        family.members.sort(key=lambda index: jobs[index].name)
    place = {label: number for number, label in enumerate(order_labels(graph))}
    return sorted(
        families.values(), key=lambda f: (place[f.label], f.group, jobs[f.members[0]].name)
    )


def _general_arguments(job: GenericWorkflowJob) -> str:
    """Arguments, with ``<FILE:qgraphFile_NAME>`` as a value."""
    arguments = job.arguments or ""
    key = f"<FILE:{own_file_key(job)}>"
    return arguments.replace(key, f"{{{OWN_FILE}}}") if key in arguments else arguments


def _key(graph: JobGraph, index: int, job: GenericWorkflowJob) -> tuple[Any, ...]:
    """All that must agree among the jobs of a task."""
    scalars = _SCALARS(job)
    own = own_file_key(job)
    if job.arguments and own in job.arguments:
        scalars = (job.label, _general_arguments(job), *scalars[2:])
    executable = job.executable
    return (
        scalars,
        (executable.src_uri, executable.transfer_executable) if executable else None,
        _frozen(job.environment),
        _frozen(job.retry_unless_exit),
        tuple([f.name for f in graph.inputs[index] if f.name != own]),
        _names(graph.outputs[index]),
        graph.groups[index],
        graph.gates[index],
    )


def _names(files: Sequence[GenericWorkflowFile]) -> tuple[str, ...]:
    """Keys of files."""
    return tuple(gwfile.name for gwfile in files)


def _frozen(value: Any) -> Any:
    """Make a list or mapping comparable and hashable."""
    if not value:
        return value if isinstance(value, int) else None
    if isinstance(value, dict):
        return tuple(sorted((str(k), str(v)) for k, v in value.items()))
    return tuple(value) if isinstance(value, list | tuple) else value


def chunk_sizes(count: int, most: int) -> list[int]:
    """Split a number of jobs into chunks that differ by at most one.

    Parameters
    ----------
    count : `int`
        Number of jobs, at least 1.
    most : `int`
        Largest chunk allowed, at least 1.
    """
    chunks = -(-count // most)
    size, larger = divmod(count, chunks)
    return [size + 1] * larger + [size] * (chunks - larger)


def order_labels(graph: JobGraph) -> list[str]:
    """Return the labels in pipeline order: each after those it depends on,
    and those of equal depth by name.
    """
    label_of = [job.label for job in graph.jobs]
    before: dict[str, set[str]] = {label: set() for label in label_of}
    for index, parents in enumerate(graph.parents):
        if parents:
            before[label_of[index]].update([label_of[p] for p in parents])
    depths: dict[str, int] = {}
    remaining = sorted(before)
    depth = 0
    while remaining:
        free = [label for label in remaining if before[label] <= depths.keys() | {label}]
        # Labels that depend on each other in a circle (jobs do not) come
        # together, by name.
        free = free or remaining
        depths.update(dict.fromkeys(free, depth))
        remaining = [label for label in remaining if label not in depths]
        depth += 1
    return sorted(depths, key=lambda label: (depths[label], label))
