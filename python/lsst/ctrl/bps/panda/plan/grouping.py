"""Which jobs share a task: those of one label whose command and needs agree, unless their tasks would wait
for each other.

A table says what becomes of each attribute of a BPS job; a new attribute gets a row there.  If PanDA is to be
told of it, `~.tasks` puts it into the task (`~.model`), and the folder ``idds`` into the request; what acts
on the worker goes into its command (`~.commands`).

Jobs never wait for each other in a circle, but with ``ordering``, or with dependencies within a label, all
jobs of one label may depend on some of another and vice versa.  iDDS starts no job of tasks that depend on
each other in a circle (seen with 2.6.21); a task that depends on itself is fine.
"""

from __future__ import annotations

__all__ = [
    "ATTRIBUTE_USES",
    "AttributeUse",
    "Family",
    "Numbering",
    "OWN_FILE",
    "attributes_with",
    "chunk_sizes",
    "group_jobs",
    "list_ignored",
    "number_jobs",
    "own_file_key",
    "yaml_key",
]

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import chain
from operator import attrgetter
from typing import Any

import networkx as nx

from lsst.ctrl.bps import GenericWorkflowJob

from ..errors import PlanError
from .graph import JobGraph


class AttributeUse(Enum):
    """What becomes of an attribute of a job."""

    TASK = "all jobs of a task have the same value"
    TASK_LIST = "the same, for an attribute that may hold several values"
    JOB = "each job has a value of its own"
    IGNORED = "PanDA has nothing like it"


_MAIL = "PanDA sends no mail for single jobs"
_ABORT = "neither PanDA nor iDDS ends a run because of one job's exit code"

ATTRIBUTE_USES: dict[str, tuple[AttributeUse, str]] = {
    "label": (AttributeUse.TASK, ""),
    "arguments": (AttributeUse.TASK, ""),
    "environment": (AttributeUse.TASK_LIST, ""),
    "retry_unless_exit": (AttributeUse.TASK_LIST, ""),
    "executable": (AttributeUse.TASK, ""),
    "memory_multiplier": (AttributeUse.TASK, ""),
    "request_memory": (AttributeUse.TASK, ""),
    "request_memory_max": (AttributeUse.TASK, ""),
    "request_cpus": (AttributeUse.TASK, ""),
    "request_disk": (AttributeUse.TASK, ""),
    "request_walltime": (AttributeUse.TASK, ""),
    "compute_site": (AttributeUse.TASK, ""),
    "compute_cloud": (AttributeUse.TASK, ""),
    "accounting_group": (AttributeUse.TASK, ""),
    "number_of_retries": (AttributeUse.TASK, ""),
    "priority": (AttributeUse.TASK, ""),
    "queue": (AttributeUse.TASK, ""),
    "pre_cmdline": (AttributeUse.TASK, ""),
    "post_cmdline": (AttributeUse.TASK, ""),
    "name": (AttributeUse.JOB, "it is the identity of the job"),
    "cmdvals": (AttributeUse.JOB, "they are the parameters of the job"),
    "quanta_counts": (AttributeUse.JOB, "BPS counts quanta with it"),
    "tags": (AttributeUse.JOB, "BPS orders jobs by it"),
    "accounting_user": (AttributeUse.IGNORED, "PanDA books a task on the user who is logged in"),
    "mail_to": (AttributeUse.IGNORED, _MAIL),
    "when_to_mail": (AttributeUse.IGNORED, _MAIL),
    "abort_on_value": (AttributeUse.IGNORED, _ABORT),
    "abort_return_value": (AttributeUse.IGNORED, _ABORT),
    "category": (AttributeUse.IGNORED, "PanDA has no categories of jobs"),
    "concurrency_limit": (AttributeUse.IGNORED, "PanDA has no limits across runs"),
    "preemptible": (AttributeUse.IGNORED, "PanDA may stop any job and run it again"),
    "profile": (AttributeUse.IGNORED, "profiles are meant for other workload management systems"),
    "attrs": (AttributeUse.IGNORED, "job attributes are meant for other workload management systems"),
}
"""Use of each attribute of `~lsst.ctrl.bps.GenericWorkflowJob`, and the reason
where jobs of one task may differ in it."""


def attributes_with(*uses: AttributeUse) -> tuple[str, ...]:
    """Return the names of the attributes that have one of some uses."""
    return tuple(name for name, (use, _) in ATTRIBUTE_USES.items() if use in uses)


def yaml_key(attribute: str) -> str:
    """Return the key in the YAML that sets an attribute of a job."""
    head, *rest = attribute.split("_")
    return head + "".join(word.capitalize() for word in rest)


_IGNORED = attributes_with(AttributeUse.IGNORED)
_ignored_values = attrgetter(*_IGNORED)


def list_ignored(jobs: Iterable[GenericWorkflowJob]) -> Iterator[str]:
    """Yield a warning for each attribute that is set but has no effect, with the labels that set it."""
    labels: dict[str, set[str]] = {}
    defaults = _ignored_values(GenericWorkflowJob("", ""))
    last: tuple[str, tuple[Any, ...]] = ("", defaults)
    for job in jobs:
        values = _ignored_values(job)
        # Equal neighbours, the usual case, are looked at once.
        if values != defaults and (job.label, values) != last:
            last = (job.label, values)
            for name, value in zip(_IGNORED, values, strict=True):
                if _asks_for_something(name, value):
                    labels.setdefault(name, set()).add(job.label)
    for key, name in sorted((yaml_key(name), name) for name in labels):
        yield f"{key} (labels {', '.join(sorted(labels[name]))}) has no effect: {ATTRIBUTE_USES[name][1]}."


def _asks_for_something(name: str, value: Any) -> bool:
    """Whether the value of an ignored attribute is a wish that is not met."""
    if name == "concurrency_limit" and value == "db_limit":  # BPS's default for every final job
        return False
    if name == "preemptible":  # PanDA preempts anyway, so that only a refusal is not honoured
        return value is False
    return value is not None and value != "" and value != {} and value != []


# --- families of jobs ------------------------------------------------------

_SHARED = attributes_with(AttributeUse.TASK, AttributeUse.TASK_LIST)
_shared_values = attrgetter(*_SHARED)


@dataclass(slots=True)
class Family:
    """Jobs of one label that differ in values only."""

    label: str
    group: str
    gates: frozenset[str]
    arguments: str
    """Arguments, with the name of a job's own file replaced by a placeholder."""

    members: list[int] = field(default_factory=list)
    """Indices in the graph, in the order in which they are numbered."""


_OWN_KEY = "qgraphFile_"
_OWN_MARK = f"<FILE:{_OWN_KEY}"

OWN_FILE = "jobQgraphFile"
"""Name of the value that stands for a job's own quantum graph file."""


def own_file_key(job: GenericWorkflowJob) -> str:
    """Return the key of the file that BPS makes for one job only (``whenSaveJobQgraph``)."""
    return f"{_OWN_KEY}{job.name}"


def group_jobs(graph: JobGraph) -> list[Family]:
    """Group the jobs of a graph into families of which none depends on itself through others.

    Families are in pipeline order of their labels; within a label those of earlier groups come first, then
    the name of the first job decides.  Their members are in no order yet, see `number_jobs`.
    """
    families: dict[tuple[Any, ...], Family] = {}
    # Last job of each label: most jobs are like the one before.
    last: dict[str, tuple[tuple[Any, ...], tuple[Any, ...], Family]] = {}
    make_key = _key_maker(graph)
    surroundings = zip(graph.inputs, graph.outputs, graph.groups, graph.gates, strict=True)
    for index, (job, around) in enumerate(zip(graph.jobs, surroundings, strict=True)):
        shared = _shared_values(job)
        label = shared[0]
        known = last.get(label)
        if known is not None and known[0] == shared and known[1] == around:
            known[2].members.append(index)
            continue
        key = make_key(index, job)
        try:
            family = families.get(key)
        except TypeError:
            raise _unusable(job) from None
        if family is None:
            family = Family(label, graph.groups[index], graph.gates[index], _general_arguments(job))
            families[key] = family
        family.members.append(index)
        last[label] = (shared, around, family)
    names = graph.names
    place = {label: number for number, label in enumerate(graph.labels)}
    turn = _turns(families.values())

    def order(family: Family) -> tuple[int, int, str, str]:
        first = min([names[index] for index in family.members])
        return place[family.label], turn[family.gates], family.group, first

    return _open_circles(graph, sorted(families.values(), key=order))


def _unusable(job: GenericWorkflowJob) -> PlanError:
    """Make the error that names an attribute with several values where a single one belongs."""
    for name in attributes_with(AttributeUse.TASK):
        value = getattr(job, name)
        if isinstance(value, list | Mapping):
            return PlanError(
                f"{name} of job {job.name!r} (label {job.label!r}) is {value!r}; it must be a single value."
            )
    return PlanError(f"Job {job.name!r} (label {job.label!r}) has attributes that cannot be compared.")


def _turns(families: Collection[Family]) -> dict[frozenset[str], int]:
    """Count, for the gates of each family, how many groups run before it, one after another."""
    behind: dict[str, set[frozenset[str]]] = {}
    for family in families:
        parts = family.group.split("/")
        for size in range(1, len(parts) + 1):
            behind.setdefault("/".join(parts[:size]), set()).add(family.gates)
    first: frozenset[str] = frozenset()
    order: nx.DiGraph[frozenset[str]] = nx.DiGraph()
    order.add_node(first)
    for gates in {family.gates for family in families if family.gates}:
        order.add_edge(first, gates)
        order.add_edges_from((above, gates) for group in gates for above in behind.get(group, ()))
    generations = enumerate(nx.topological_generations(order))
    return {gates: turn for turn, generation in generations for gates in generation}


def _general_arguments(job: GenericWorkflowJob) -> str:
    """Return the arguments, with a placeholder for the job's own file."""
    arguments = job.arguments or ""
    if _OWN_MARK not in arguments:
        return arguments
    return arguments.replace(f"<FILE:{own_file_key(job)}>", f"{{{OWN_FILE}}}")


def _key_maker(graph: JobGraph) -> Callable[[int, GenericWorkflowJob], tuple[Any, ...]]:
    """Return a function that makes the key of a job: all that the jobs of a task have in common."""
    names: dict[int, tuple[str, ...]] = {}
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}

    def names_of(files: tuple[Any, ...]) -> tuple[str, ...]:
        """Return the keys of files, one tuple for all that are equal."""
        known = names.get(id(files))
        if known is None:
            made = tuple(gwfile.name for gwfile in files)
            known = names[id(files)] = shared.setdefault(made, made)
        return known

    inputs, outputs, groups, gates = graph.inputs, graph.outputs, graph.groups, graph.gates
    lists = attrgetter(*attributes_with(AttributeUse.TASK_LIST))
    as_they_are = attrgetter(*(name for name in attributes_with(AttributeUse.TASK) if name not in _COMPARED))

    def key_of(index: int, job: GenericWorkflowJob) -> tuple[Any, ...]:
        input_names = names_of(inputs[index]) if inputs[index] else ()
        if job.arguments and _OWN_MARK in job.arguments:
            own = own_file_key(job)
            input_names = tuple(name for name in input_names if name != own)
        return (
            as_they_are(job),
            tuple([form_of(job) for form_of in _COMPARED.values()]),
            tuple(map(_frozen, lists(job))),
            input_names,
            names_of(outputs[index]) if outputs[index] else (),
            groups[index],
            gates[index],
        )

    return key_of


def _executable_key(job: GenericWorkflowJob) -> Any:
    """Return what makes a difference between executables."""
    executable = job.executable
    return (executable.src_uri or executable.name, executable.transfer_executable) if executable else None


_COMPARED: dict[str, Callable[[GenericWorkflowJob], Any]] = {
    "arguments": _general_arguments,
    "executable": _executable_key,
}
"""Attributes that are compared in another form."""


def _frozen(value: Any) -> Any:
    """Return a list or mapping in a form that can be compared and hashed; `None` for an empty one."""
    if isinstance(value, Mapping):
        value = sorted((str(k), str(v)) for k, v in value.items())
    return (tuple(value) if isinstance(value, list | tuple) else value) or None


def _open_circles(graph: JobGraph, families: list[Family]) -> list[Family]:
    """Split families such that none depends on itself through others.

    A family in a circle is split by stage: the number of times that the
    longest way to a job changes from family to family in its circle.
    """
    if graph.depths is None:
        return families
    family_of = [0] * len(graph.jobs)
    for number, family in enumerate(families):
        for index in family.members:
            family_of[index] = number
    circle_of = _circles(graph, family_of)
    if not circle_of:
        return families
    stages = [0] * len(graph.jobs)
    for index in sorted(range(len(graph.jobs)), key=graph.depths.__getitem__):
        number = family_of[index]
        circle = circle_of.get(number)
        if circle is not None:
            within = [p for p in graph.parents[index] if circle_of.get(family_of[p]) == circle]
            stages[index] = max([stages[p] + (family_of[p] != number) for p in within], default=0)
    opened: list[Family] = []
    for number, family in enumerate(families):
        opened += _by_stage(family, stages) if number in circle_of else [family]
    return opened


def _circles(graph: JobGraph, family_of: list[int]) -> dict[int, int]:
    """Return the number of the circle that each family is in, for those in one."""
    edges = {
        (family_of[parent], family_of[index])
        for index, parents in enumerate(graph.parents)
        for parent in parents
    }
    circles = [found for found in nx.strongly_connected_components(nx.DiGraph(edges)) if len(found) > 1]
    return {family: circle for circle, members in enumerate(circles) for family in members}


def _by_stage(family: Family, stages: list[int]) -> list[Family]:
    """Split one family."""
    parts: dict[int, Family] = {}
    for index in family.members:
        stage = stages[index]
        if stage not in parts:
            parts[stage] = replace(family, members=[])
        parts[stage].members.append(index)
    return [parts[stage] for stage in sorted(parts)]


@dataclass(frozen=True, slots=True)
class Numbering:
    """The numbers that the jobs of a graph have in the run, by index."""

    ordinals: list[int]
    parents: list[tuple[int, ...]]
    """Ordinals of each job's parents, sorted."""

    has_child: bytearray
    """Whether another job depends on each job, 1 or 0."""


def number_jobs(graph: JobGraph, families: list[Family], first: int) -> Numbering:
    """Put the members of each family in order and number all jobs from ``first``.

    Jobs that share their first parent come together, and jobs without parents are sorted by what follows the
    label in their names (BPS puts data IDs there, after a random number).  So neighbours have similar
    dependencies: these compress well, and children of early jobs come early.
    """
    ordinals = [-1] * len(graph.jobs)
    numbered: list[tuple[int, ...]] = [()] * len(graph.jobs)
    early: list[int] = []
    names, parents, depths = graph.names, graph.parents, graph.depths
    ordinal_of = ordinals.__getitem__
    for family in families:
        label = family.label
        keys = []
        # Parents within the family come first, such that no chunk depends on
        # a later one.
        for index in family.members:
            name = names[index]
            known = -1
            if parents[index]:
                numbers = numbered[index] = tuple(sorted(map(ordinal_of, parents[index])))
                known = numbers[0]
                if known < 0:
                    early.append(index)
            depth = 0 if depths is None else depths[index]
            keys.append((depth, known, name.partition(label)[2], name, index))
        keys.sort()
        family.members = [key[-1] for key in keys]
        for index in family.members:
            ordinals[index] = first
            first += 1
    for index in early:  # jobs with parents in their own family, or in a later one
        numbered[index] = tuple(sorted(map(ordinal_of, parents[index])))
    has_child = bytearray(len(graph.jobs))
    for parent in chain.from_iterable(parents):
        has_child[parent] = 1
    return Numbering(ordinals, numbered, has_child)


def chunk_sizes(count: int, most: int) -> list[int]:
    """Split a number of jobs into the fewest chunks of at most ``most``, equal but for one job."""
    chunks = -(-count // most)
    size, larger = divmod(count, chunks)
    return [size + 1] * larger + [size] * (chunks - larger)
