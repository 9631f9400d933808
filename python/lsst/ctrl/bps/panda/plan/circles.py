"""Families of jobs, split where their tasks would wait for each other.

Jobs never wait for each other in a circle, but with ``ordering``, or with
dependencies within a label, all jobs of one label may depend on some of
another and the other way round.  iDDS starts no job of tasks that depend on
each other in a circle (seen with 2.6.21); a task that depends on itself is
fine.
"""

from __future__ import annotations

__all__ = ["open_circles"]

from collections.abc import Iterator

from .grouping import Family
from .jobgraph import JobGraph


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
