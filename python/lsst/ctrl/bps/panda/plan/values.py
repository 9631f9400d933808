"""Which values of jobs all of a family share, and which are each job's own."""

from __future__ import annotations

__all__ = ["Part", "placed_value", "split_values"]

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import PlanError
from .commands import PATH_VALUES, inert, split_long_option
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
    values = [graph.jobs[index].cmdvals for index in family.members]
    columns: dict[str, list[str]] = {}
    statics: dict[str, str] = {}
    for name in template.names:
        try:
            column = [row[name] for row in values]
        except KeyError:
            lacking = next(graph.jobs[i].name for i in family.members if name not in graph.jobs[i].cmdvals)
            raise PlanError(
                f"The command of label {family.label!r} uses {{{name}}}, but job {lacking!r} has no value "
                "for it while other jobs have."
            ) from None
        value = column[0]
        shared = name not in travelling and column.count(value) == len(column)
        if shared and len(_text(value)) <= MAX_SHARED_VALUE:
            statics[name] = placed_value(name, _text(value), settings)
        else:
            columns[name] = _rendered(column, template.text, name)
    if f"{{{OWN_FILE}}}" in template.text:
        columns[OWN_FILE] = [commands.own_file(graph, index) for index in family.members]
    rows: Sequence[Row] = list(zip(*columns.values(), strict=True)) if columns else [()] * len(values)
    return Part(family, tuple(columns), rows, statics)


def _text(value: object) -> str:
    """A value as text; nothing for none."""
    return "" if value is None else str(value)


def _rendered(column: list[object], command: str, name: str) -> list[str]:
    """Values as texts; very long ones in a form that a command line takes."""
    render = split_long_option(command, name)
    return [render(value if type(value) is str else _text(value)) for value in column]


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
