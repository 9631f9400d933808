"""Families of jobs, split where their tasks would wait for each other.

Jobs never wait for each other in a circle, but with ``ordering``, or with
dependencies within a label, all jobs of one label may depend on some of
another and the other way round.  iDDS starts no job of tasks that depend on
each other in a circle (seen with 2.6.21); a task that depends on itself is
fine.
"""

from __future__ import annotations

__all__ = ["open_circles"]

import networkx as nx

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
    """Return the circle that each family is in, for those in one."""
    edges = {
        (family_of[parent], family_of[index])
        for index, parents in enumerate(graph.parents)
        for parent in parents
    }
    components = nx.strongly_connected_components(nx.DiGraph(edges))
    return {number: min(component) for component in components if len(component) > 1 for number in component}


def _by_stage(family: Family, stages: list[int]) -> list[Family]:
    """Split one family."""
    parts: dict[int, Family] = {}
    for index in family.members:
        stage = stages[index]
        if stage not in parts:
            parts[stage] = Family(family.label, family.group, family.gates, family.arguments)
        parts[stage].members.append(index)
    return [parts[stage] for stage in sorted(parts)]
