"""Workflows with a lazy group, a job that makes further jobs when it runs.

PanDA takes no tasks into a run that goes on, but iDDS has requests whose first task, the build task, brings
all the others.  So a workflow is cut: what comes before the lazy group and its own command are *stages*,
commands that the build task runs one after the other.  Everything else is put together with the jobs of the
group where these are made, and planned there.
"""

from __future__ import annotations

__all__ = ["CONFIG_VARIABLE", "GRAPH_VARIABLE", "Stages", "join", "split"]

import pickle
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from shlex import quote
from typing import Any

import networkx as nx

from lsst.ctrl.bps import (
    GenericWorkflow,
    GenericWorkflowExec,
    GenericWorkflowFile,
    GenericWorkflowGroup,
    GenericWorkflowJob,
    GenericWorkflowNodeType,
)

from ..edgenode import cmd_line_decoder as runner
from ..errors import PlanError
from .commands import (
    FILE_PLACEHOLDER,
    PATH_VALUES,
    VALUE_PLACEHOLDER,
    make_shell_safe,
    make_template,
    resolve_files,
    restore_variables,
)
from .graph import GRAPH_KEY, levels_of

CONFIG_VARIABLE, GRAPH_VARIABLE = "BPS_CONFIG_FILE", "BPS_QGRAPH_FILE"
"""Variables in the command of a stage: the site's configuration of the run, and its quantum graph."""

_VARIABLES = {"configFile": CONFIG_VARIABLE, GRAPH_KEY: GRAPH_VARIABLE}
"""Files that each site has of its own, by the key that BPS gives them."""


@dataclass(frozen=True, slots=True)
class Stages:
    """What a build task does before there is a plan."""

    jobs: tuple[GenericWorkflowJob, ...]
    """In the order in which they run; the last one is the lazy group."""

    commands: tuple[tuple[str, str], ...]
    """Name and shell command of each."""

    files: tuple[str, ...]
    """Paths here of the files that the site gets side by side."""

    rest: bytes
    """The whole workflow, pickled, for `join`; empty if there is nothing but stages."""


def split(workflow: GenericWorkflow) -> Stages | None:
    """Return the stages of a workflow; `None` if it has no lazy group.

    Raises `PlanError` if it has several, or one where it cannot be the end of stages.
    """
    name = _find_lazy_group(workflow)
    if not name:
        return None
    before = nx.ancestors(workflow, name)
    order = [*(node for node in nx.topological_sort(workflow) if node in before), name]
    # With files of its own, whose places change.
    own: GenericWorkflow = pickle.loads(pickle.dumps(workflow))
    jobs = [node for node in map(own.get_job, order) if node.node_type != GenericWorkflowNodeType.NOOP]
    for job in jobs:
        if not isinstance(job, GenericWorkflowJob):
            raise PlanError(
                f"Group {job.name!r} of workflow {workflow.name!r} comes before the lazy group {name!r}. The "
                "build task runs what comes before one after the other, and takes single jobs only."
            )
    made = {gwfile.name for job in jobs for gwfile in own.get_job_outputs(job.name, data=True)}
    files = dict.fromkeys(_move_files(own, made))
    commands = tuple((job.name, _render(job, own)) for job in jobs)
    has_rest = len(order) < len(workflow) or workflow.get_final() is not None
    return Stages(tuple(jobs), commands, tuple(files), pickle.dumps(own) if has_rest else b"")


def _find_lazy_group(workflow: GenericWorkflow) -> str:
    """Return the name of the lazy group of a workflow; empty without one."""
    found = [
        (level, node)
        for level, nodes in levels_of(workflow)
        for node in nodes
        if type(node) is not GenericWorkflowJob and _is_lazy(node)
    ]
    if not found:
        return ""
    names = ", ".join(repr(node.name) for _, node in found)
    if len(found) > 1:
        raise PlanError(
            f"Workflow {workflow.name!r} has {len(found)} lazy groups ({names}). iDDS takes the tasks of a "
            "run that its build task makes once, so there can be one. Submit a run for each."
        )
    ((level, node),) = found
    if level is not workflow or node.name not in workflow:
        raise PlanError(
            f"The lazy group {names} of workflow {workflow.name!r} is in a group or in the final job, where "
            "it would make its jobs after the run has its tasks. iDDS takes those once: put the lazy group "
            "into the workflow itself."
        )
    return str(node.name)


def _is_lazy(node: object) -> bool:
    # By name: older BPS has none.
    return getattr(getattr(node, "node_type", None), "name", "") == "LAZY_GROUP"


def _transferred(workflow: GenericWorkflow) -> Iterator[GenericWorkflowFile | GenericWorkflowExec]:
    """Yield the input files and executables of all jobs that a worker gets a copy of."""
    for level, nodes in levels_of(workflow):
        for node in nodes:
            executable = getattr(node, "executable", None)
            if executable is not None and executable.transfer_executable:
                yield executable
            if node is not None and hasattr(node, "name"):
                yield from level.get_job_inputs(node.name, data=True, transfer_only=True)


def _is_here(source: str | None) -> bool:
    return bool(source) and "://" not in str(source)


def _move_files(workflow: GenericWorkflow, made: set[str]) -> Iterator[str]:
    """Give files of this machine their places in the work directory of the build task; yield where those are
    that it has to be sent.
    """
    for item in list(_transferred(workflow)):
        if item.name in _VARIABLES or not _is_here(item.src_uri):
            continue
        source = str(item.src_uri)
        base = posixpath.basename(source.rstrip("/"))
        if source == base:
            continue  # seen before: jobs share it
        if item.name not in made:
            yield source
        item.src_uri = base
    for level, nodes in levels_of(workflow):
        for node in nodes:
            for gwfile in level.get_job_outputs(node.name, data=True) if node is not None else ():
                if gwfile.name in made and gwfile.name not in _VARIABLES and _is_here(gwfile.src_uri):
                    gwfile.src_uri = posixpath.basename(str(gwfile.src_uri))


def _render(job: GenericWorkflowJob, workflow: GenericWorkflow) -> str:
    """Render the shell command of a stage."""
    where = f"job {job.name!r} (label {job.label!r})"
    executable = None
    if job.executable is not None and job.executable.transfer_executable:
        executable = quote(f"./{job.executable.src_uri}")
    text = make_template(job, job.arguments or "", executable=executable).text
    values = {name: "" if value is None else str(value) for name, value in job.cmdvals.items()}
    # What the stages hand on lies in their work directory.
    values["fileDistributionEndPoint"] = ""
    text = VALUE_PLACEHOLDER.sub(lambda match: _in_command(match[1], values.get(match[1], match[0])), text)
    files = [
        *workflow.get_job_inputs(job.name, data=True),
        *workflow.get_job_outputs(job.name, data=True),
    ]
    own = {gwfile.name: gwfile for gwfile in files if gwfile.name in _VARIABLES or gwfile.wms_transfer}
    text = FILE_PLACEHOLDER.sub(lambda match: _file(own.get(match[1]), match[0]), text)
    text = resolve_files(restore_variables(text), files, where=where)
    # Which attempt it is, nobody tells a build task.
    text = text.replace(f"<WMS:{runner.ATTEMPT_NUMBER}>", "0")
    if "<WMS:" in text:
        raise PlanError(f"The command of {where} uses {{wms...}}, of which a build task knows none.")
    return re.sub(r"<ENV:(\w+)>", r"${\1}", text)


def _in_command(name: str, value: str) -> str:
    return make_shell_safe(value) if name in PATH_VALUES else value


def _file(gwfile: GenericWorkflowFile | None, placeholder: str) -> str:
    """Return how a command calls a file that the site has; the placeholder of any other."""
    if gwfile is None:
        return placeholder
    variable = _VARIABLES.get(gwfile.name)
    return f'"${{{variable}}}"' if variable else quote(str(gwfile.src_uri))


def join(payload: GenericWorkflow, rest: bytes, directory: str) -> GenericWorkflow:
    """Return the workflow with the jobs that its lazy group has made in the place of that group.

    ``rest`` is that of `Stages`, ``directory`` the work directory of the build task.  If both have a final
    job, that of the payload runs after the payload's jobs if all of them succeed.
    """
    whole: GenericWorkflow = pickle.loads(rest)
    for item in _transferred(whole):
        if _is_here(item.src_uri):
            item.src_uri = posixpath.join(directory, str(item.src_uri))
    name = _find_lazy_group(whole)
    gone = {*nx.ancestors(whole, name), name}
    group = GenericWorkflowGroup(name, whole.get_job(name).label, blocking=True)
    _copy(payload, group, payload)
    joined = GenericWorkflow(payload.name)
    joined.run_attrs.update(payload.run_attrs)
    joined.add_job(group)
    _copy(whole, joined, [node for node in whole if node not in gone])
    for child in whole.successors(name):
        joined.add_edge(name, child)
    for gwfile in payload.get_files(data=True, transfer_only=False):
        joined.add_file(gwfile)
    final, own_final = whole.get_final(), payload.get_final()
    if final is not None and own_final is not None:
        _append(payload, group, own_final)
    elif own_final is not None:
        _add_final(payload, joined, own_final)
    if final is not None:
        _add_final(whole, joined, final)
    return joined


def _copy(source: GenericWorkflow, target: GenericWorkflow, names: Iterable[str]) -> None:
    """Copy nodes with their files, and the edges among them."""
    names = list(names)
    for name in names:
        target.add_job(source.get_job(name))
        _copy_files(source, target, name)
    for parent, child in source.edges():
        if parent in target and child in target:
            target.add_edge(parent, child)


def _copy_files(source: GenericWorkflow, target: GenericWorkflow, name: str) -> None:
    target.add_job_inputs(name, source.get_job_inputs(name, data=True))
    target.add_job_outputs(name, source.get_job_outputs(name, data=True))


def _append(source: GenericWorkflow, target: GenericWorkflow, final: Any) -> None:
    """Add a final job or workflow as ordinary jobs behind all others."""
    ends = [name for name in target if target.out_degree(name) == 0]
    if isinstance(final, GenericWorkflow):
        starts = [name for name in final if final.in_degree(name) == 0]
        _copy(final, target, final)
    else:
        starts = [final.name]
        target.add_job(final)
        _copy_files(source, target, final.name)
    target.add_job_relationships(ends, starts)


def _add_final(source: GenericWorkflow, target: GenericWorkflow, final: Any) -> None:
    target.add_final(final)
    if isinstance(final, GenericWorkflowJob):
        _copy_files(source, target, final.name)
