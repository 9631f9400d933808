"""Which jobs share a task: those of one label whose command and needs agree, unless their tasks would
wait for each other.

Jobs never wait for each other in a circle, but with ``ordering``, or with
dependencies within a label, all jobs of one label may depend on some of
another and the other way round.  iDDS starts no job of tasks that depend on
each other in a circle (seen with 2.6.21); a task that depends on itself is
fine.
"""

from __future__ import annotations

__all__ = [
    "Family",
    "Numbering",
    "OWN_FILE",
    "chunk_sizes",
    "group_jobs",
    "number_jobs",
    "open_circles",
    "own_file_key",
]

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from lsst.ctrl.bps import GenericWorkflowJob

from ..errors import PlanError
from .graph import JobGraph

_SCALAR_NAMES = (
    "label",
    "arguments",
    "environment",
    "retry_unless_exit",
    "executable",
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

_SCALARS = attrgetter(*_SCALAR_NAMES)

_COMPOUND = frozenset({"environment", "retry_unless_exit"})
"""Those of them that may hold several values."""


@dataclass(slots=True)
class Family:
    """Jobs of one label that differ in values only."""

    label: str
    group: str
    gates: frozenset[str]
    arguments: str
    """Arguments, with the name of a file of the job's own made general."""

    members: list[int] = field(default_factory=list)
    """Indices in the graph, in the order in which they are numbered."""


def own_file_key(job: GenericWorkflowJob) -> str:
    """Key of the file that BPS makes for one job only
    (``whenSaveJobQgraph``).
    """
    return f"qgraphFile_{job.name}"


_OWN_MARK = "<FILE:qgraphFile_"

OWN_FILE = "jobQgraphFile"
"""Name of the value that stands for a job's own quantum graph file."""


def group_jobs(graph: JobGraph) -> list[Family]:
    """Group the jobs of a graph.

    Parameters
    ----------
    graph : `JobGraph`
        All jobs, complete.

    Returns
    -------
    families : `list` [`Family`]
        In pipeline order of their labels; within a label those of earlier
        groups first, then by the name of the first job.  Members are in no order yet, see
        `number_jobs`; tasks made of them may depend on each other in circles,
        see `~.circles.open_circles`.
    """
    families: dict[tuple[Any, ...], Family] = {}
    # Last job of each label: most jobs are like the one before.
    last: dict[str, tuple[tuple[Any, ...], tuple[Any, ...], Family]] = {}
    make_key = _key_maker(graph)
    surroundings = zip(graph.inputs, graph.outputs, graph.groups, graph.gates, strict=True)
    for index, (job, around) in enumerate(zip(graph.jobs, surroundings, strict=True)):
        scalars = _SCALARS(job)
        label = scalars[0]
        known = last.get(label)
        if known is not None and known[0] == scalars and known[1] == around:
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
        last[label] = (scalars, around, family)
    names = graph.names
    place = {label: number for number, label in enumerate(graph.labels)}
    turn = _turns(families.values())

    def order(family: Family) -> tuple[int, int, str, str]:
        first = min([names[index] for index in family.members])
        return place[family.label], turn[family.gates], family.group, first

    return sorted(families.values(), key=order)


def _unusable(job: GenericWorkflowJob) -> PlanError:
    """Make the error that names an attribute with a list or a mapping where a
    single value belongs.
    """
    for name, value in zip(_SCALAR_NAMES, _SCALARS(job), strict=True):
        if isinstance(value, list | Mapping) and name not in _COMPOUND:
            return PlanError(
                f"{name} of job {job.name!r} (label {job.label!r}) is {value!r}; it must be a single value."
            )
    return PlanError(f"Job {job.name!r} (label {job.label!r}) has attributes that cannot be compared.")


def _turns(families: Iterable[Family]) -> dict[frozenset[str], int]:
    """Tell how many groups, one after another, are before a family, by its
    gates.
    """
    behind: dict[str, set[frozenset[str]]] = {}
    for family in families:
        parts = family.group.split("/")
        for size in range(1, len(parts) + 1):
            behind.setdefault("/".join(parts[:size]), set()).add(family.gates)
    turns: dict[frozenset[str], int] = {frozenset(): 0}
    pending = {family.gates for family in families if family.gates}
    while pending:
        # Gates never form a circle, so that some can always be told.
        ready = [gates for gates in pending if all(behind.get(g, set()) <= turns.keys() for g in gates)]
        for gates in ready or pending:
            before = [turns.get(above, 0) for group in gates for above in behind.get(group, ())]
            turns[gates] = 1 + max(before, default=0)
        pending -= turns.keys()
    return turns


@dataclass(frozen=True, slots=True)
class Numbering:
    """The numbers that the jobs of a graph have in the run, by index."""

    ordinals: list[int]
    parents: list[tuple[int, ...]]
    """Ordinals of each job's parents, sorted."""


def number_jobs(graph: JobGraph, families: list[Family], first: int) -> Numbering:
    """Put the members of each family in order and number all jobs.

    Jobs that share their first parent come together, and jobs without parents
    are sorted by what follows the label in their names (BPS puts data ids
    there; in front there is a random number).  So neighbours have similar
    dependencies: these compress well, and children of early jobs come early.

    Parameters
    ----------
    graph : `JobGraph`
        All jobs.
    families : `list` [`Family`]
        All of them; their ``members`` are sorted.
    first : `int`
        Ordinal of the first job.

    Returns
    -------
    numbering : `Numbering`
        Jobs of a family follow each other.
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
    return Numbering(ordinals, numbered)


def _general_arguments(job: GenericWorkflowJob) -> str:
    """Arguments, with ``<FILE:qgraphFile_NAME>`` as a value."""
    arguments = job.arguments or ""
    if _OWN_MARK not in arguments:
        return arguments
    return arguments.replace(f"<FILE:{own_file_key(job)}>", f"{{{OWN_FILE}}}")


def _key_maker(graph: JobGraph) -> Callable[[int, GenericWorkflowJob], tuple[Any, ...]]:
    """Return what makes, of a job and its index, the key with all that must
    agree among the jobs of a task.
    """
    names: dict[int, tuple[str, ...]] = {}
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}

    def names_of(files: tuple[Any, ...]) -> tuple[str, ...]:
        """Keys of files; one tuple for all that are equal."""
        known = names.get(id(files))
        if known is None:
            made = tuple(gwfile.name for gwfile in files)
            known = names[id(files)] = shared.setdefault(made, made)
        return known

    inputs, outputs, groups, gates = graph.inputs, graph.outputs, graph.groups, graph.gates

    def key_of(index: int, job: GenericWorkflowJob) -> tuple[Any, ...]:
        label, arguments, environment, codes, executable, *rest = _SCALARS(job)
        input_names = names_of(inputs[index]) if inputs[index] else ()
        if arguments and _OWN_MARK in arguments:
            arguments = _general_arguments(job)
            own = own_file_key(job)
            input_names = tuple(name for name in input_names if name != own)
        return (
            label,
            arguments,
            _frozen(environment) if environment else None,
            codes if codes is None else _frozen(codes),
            (executable.src_uri or executable.name, executable.transfer_executable) if executable else None,
            tuple(rest),
            input_names,
            names_of(outputs[index]) if outputs[index] else (),
            groups[index],
            gates[index],
        )

    return key_of


def _frozen(value: Any) -> Any:
    """Make a list or mapping comparable and hashable."""
    if not value:
        return value if isinstance(value, int) else None
    if isinstance(value, Mapping):
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


def open_circles(graph: JobGraph, families: list[Family]) -> list[Family]:
    """Split families such that none depends on itself through others.

    Parameters
    ----------
    graph : `JobGraph`
        All jobs, complete.
    families : `list` [`Family`]
        All of them.

    Returns
    -------
    families : `list` [`Family`]
        The same, those in circles in parts by stage: the number of times that
        the longest way to a job changes from family to family in its circle.
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
    """Return the circle that each family is in, for those in one.

    Two families are in a circle if each can be reached from the other; they
    are found by going through all families twice, once backwards (Kosaraju).
    """
    before: dict[int, set[int]] = {number: set() for number in family_of}
    after: dict[int, set[int]] = {number: set() for number in family_of}
    for index, parents in enumerate(graph.parents):
        for parent in parents:
            before[family_of[index]].add(family_of[parent])
            after[family_of[parent]].add(family_of[index])
    finished: list[int] = []
    seen: set[int] = set()
    for number in after:
        finished += _walk(number, after, seen)
    circles: dict[int, int] = {}
    seen = set()
    for number in reversed(finished):
        members = list(_walk(number, before, seen))
        if len(members) > 1:
            circles.update(dict.fromkeys(members, min(members)))
    return circles


def _walk(start: int, edges: dict[int, set[int]], seen: set[int]) -> Iterator[int]:
    """Yield what can be reached and was not seen, each after what is behind
    it.
    """
    if start in seen:
        return
    seen.add(start)
    stack = [(start, iter(edges[start]))]
    while stack:
        number, rest = stack[-1]
        found = next((other for other in rest if other not in seen), None)
        if found is None:
            stack.pop()
            yield number
        else:
            seen.add(found)
            stack.append((found, iter(edges[found])))


def _by_stage(family: Family, stages: list[int]) -> list[Family]:
    """Split one family."""
    parts: dict[int, Family] = {}
    for index in family.members:
        stage = stages[index]
        if stage not in parts:
            parts[stage] = Family(family.label, family.group, family.gates, family.arguments)
        parts[stage].members.append(index)
    return [parts[stage] for stage in sorted(parts)]
