"""Which values of jobs all of a family share, and which are each job's own."""

from __future__ import annotations

__all__ = ["Part", "placed_value", "split_values"]

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from typing import Any

from ..errors import PlanError
from .commands import MAX_ARGUMENT, PATH_VALUES, inert, split_long_option
from .grouping import OWN_FILE, Family
from .jobgraph import JobGraph
from .labels import NamingKind, PlanSettings
from .naming import Row
from .taskcommand import TaskCommands

MAX_SHARED_VALUE = 2000
"""Longest value that is written into the command of a task, characters; a
longer one is fetched by the job, even if all jobs share it."""


@dataclass(slots=True)
class Part:
    """A family with what has been worked out about it."""

    family: Family
    names: tuple[str, ...]
    """Names of the values that are each job's own."""

    rows: Sequence[Row]
    """Own values of each member, in the order of ``names``."""

    statics: dict[str, str]
    """Values that all members share, as they are put into the command."""

    first_order_id: int = 0
    pseudo_inputs: Sequence[str] = ()


def split_values(graph: JobGraph, family: Family, settings: PlanSettings, commands: TaskCommands) -> Part:
    """Tell the values that all jobs of a family share from the others.

    Parameters
    ----------
    graph : `JobGraph`
        All jobs.
    family : `Family`
        Some of them, in order.
    settings : `PlanSettings`
        Settings of the plan.
    commands : `TaskCommands`
        Where files of single jobs get their names.

    Raises
    ------
    PlanError
        Raised if a job has no value for what its command uses.
    """
    first = graph.jobs[family.members[0]]
    template = TaskCommands.template(first, family.arguments)
    # Old runners find these in the pseudo-input whatever their values are.
    travelling = () if settings.naming is NamingKind.SHORT else settings.placeholder_params
    columns: dict[str, list[str]] = {}
    statics: dict[str, str] = {}
    for name, column in zip(template.names, _all_values(graph, family, template.names), strict=True):
        value = column[0]
        shared = name not in travelling and column[-1] == value and column.count(value) == len(column)
        if shared and len(_text(value)) <= MAX_SHARED_VALUE:
            statics[name] = placed_value(name, _text(value), settings)
        else:
            columns[name] = _rendered(column, template.text, name)
    if f"{{{OWN_FILE}}}" in template.text:
        columns[OWN_FILE] = [commands.own_file(graph, index) for index in family.members]
    rows: Sequence[Row] = list(zip(*columns.values(), strict=True))
    return Part(family, tuple(columns), rows or [()] * len(family.members), statics)


def _all_values(graph: JobGraph, family: Family, names: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    """Yield the values of all members, name by name."""
    jobs = graph.jobs
    if not names:
        return iter(())
    # A getter of a single name returns the value and not a tuple with it.
    pick = itemgetter(*names, names[0])
    try:
        rows = [pick(jobs[index].cmdvals) for index in family.members]
    except KeyError as error:
        (lacking,) = error.args
        job = next(jobs[index].name for index in family.members if lacking not in jobs[index].cmdvals)
        raise PlanError(
            f"The command of label {family.label!r} uses {{{lacking}}}, but job {job!r} has no value "
            "for it while other jobs have."
        ) from None
    return islice(zip(*rows, strict=True), len(names))


def _text(value: object) -> str:
    """A value as text; nothing for none."""
    return "" if value is None else str(value)


def _rendered(column: Sequence[object], command: str, name: str) -> list[str]:
    """Values as texts; very long ones in a form that a command line takes."""
    texts = [value if type(value) is str else _text(value) for value in column]
    if len(max(texts, key=len)) <= MAX_ARGUMENT:
        return texts
    return list(map(split_long_option(command, name), texts))


def placed_value(name: str, value: str, settings: PlanSettings) -> str:
    """Return a value as it is put into a command.

    Parameters
    ----------
    name : `str`
        Name of the value.
    value : `str`
        The value; the staging area is that of the settings.
    settings : `PlanSettings`
        Settings of the plan.
    """
    if name == "fileDistributionEndPoint" and value:
        return inert(settings.run.staging_area)
    return inert(value) if name in PATH_VALUES else value
