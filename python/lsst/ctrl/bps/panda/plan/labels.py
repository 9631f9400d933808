"""What the settings say about each label; the planner's view of them."""

from __future__ import annotations

__all__ = ["LabelSettings", "NamingKind", "PlanSettings", "labels_of", "levels_of"]

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from lsst.ctrl.bps import GenericWorkflow, GenericWorkflowJob

from .model import RunIdentity, StagedFile

_WITHOUT_NODES = {GenericWorkflowJob, type(None)}
"""Nodes of nearly all workflows: none is a workflow itself."""


class NamingKind(Enum):
    """How a job gets a short name, and where its parameters are."""

    SHORT = "short"
    """Label and order id; parameters in shards."""

    PLAIN = "plain"
    """Job name and parameters in the name itself."""

    ORDER_ID_MAP = "orderIdMap"
    """Label and order id; parameters in one map for the run."""

    QNODE_MAP = "qnodeMap"
    """``PH:`` and the job's name; parameters in one map for the run."""


@dataclass(frozen=True, slots=True)
class LabelSettings:
    """Settings of the jobs of one label."""

    site: str
    cloud: str
    queue: str
    priority: int
    processing_type: str
    task_type: str
    prod_source_label: str
    vo: str
    runner_command: str
    """Command line of a task, with ``_cmd_line_`` and perhaps ``_runner_``
    to be replaced."""

    payloads_per_job: int = 1
    """Payloads a PanDA job carries, as asked for."""

    prmon: bool = True
    """Whether the runner itself may start ``prmon``."""

    keep_tokens: bool = False
    """Whether the payload may see tokens."""


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """All that the planner needs to know besides the generic workflow."""

    run: RunIdentity
    labels: Mapping[str, LabelSettings]
    """By label; ``""`` holds those of any other."""

    naming: NamingKind = NamingKind.SHORT
    max_jobs_per_task: int = 10000
    max_wms_job_walltime: int = 0
    """Wall time of an event service job, seconds; 0 if not given."""

    placeholder_params: tuple[str, ...] = ("qgraphNodeId", "qgraphId")
    """Values that travel with the job even if all jobs share them (plain
    names and maps, as old runners expect)."""

    submit_environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that are resolved on the submit side (``<ENV:USER>``)."""

    area_variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables in the staging area's setting, with the values
    they had on the submit side."""

    order_id_map_name: str = "panda_order_id_map.json"
    runner: StagedFile | None = None
    """The runner, if it is staged with the run."""

    directories: frozenset[str] = frozenset()
    """Sources that are directories."""

    attempt_codes: bool = True
    """Whether the runner may remember exit codes between attempts
    (``retryUnlessExit``)."""

    max_direct_edges: int = 1000
    """Most edges that a join of many jobs with many is spelled out with; a
    larger one gets a barrier."""

    def of(self, label: str) -> LabelSettings:
        """Return the settings of a label."""
        return self.labels.get(label) or self.labels[""]


def labels_of(levels: Iterable[tuple[GenericWorkflow, list[Any]]]) -> list[str]:
    """Return all labels of a workflow, its groups and its final job.

    Parameters
    ----------
    levels : iterable of (`~lsst.ctrl.bps.GenericWorkflow`, `list`)
        What `levels_of` yields for the workflow.
    """
    labels: set[str] = set()
    for _, nodes in levels:
        # There may be no final job, and a final workflow has no label.
        labels.update([getattr(node, "label", "") for node in nodes])
    return sorted(labels - {""})


def levels_of(workflow: GenericWorkflow) -> Iterator[tuple[GenericWorkflow, list[Any]]]:
    """Yield a workflow, its groups and its final workflow, each with its
    nodes.

    Parameters
    ----------
    workflow : `~lsst.ctrl.bps.GenericWorkflow`
        The workflow.

    Yields
    ------
    level : `~lsst.ctrl.bps.GenericWorkflow`
        The workflow, or one within it.
    nodes : `list`
        Its nodes, and its final job or workflow.
    """
    stack = [workflow]
    while stack:
        current = stack.pop()
        nodes = [node for _, node in current.nodes(data="job")]
        nodes.append(current.get_final())
        yield current, nodes
        if not set(map(type, nodes)) <= _WITHOUT_NODES:
            stack += [node for node in nodes if isinstance(node, GenericWorkflow)]
