"""The table of what the planner does with each attribute of a BPS job; a new attribute gets a row here.

If PanDA is to be told of it, `~.tasks` puts it into the task (`~.model`), and
the folder ``idds`` into the request.
"""

from __future__ import annotations

__all__ = ["AttributeUse", "ATTRIBUTE_USES", "attributes_with", "list_ignored", "yaml_key"]

from collections.abc import Iterable, Iterator
from enum import Enum
from operator import attrgetter
from typing import Any

from lsst.ctrl.bps import GenericWorkflowJob


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
    if name == "preemptible":  # PanDA preempts anyway, so that only a refusal is not honoured
        return value is False
    return value is not None and value != "" and value != {} and value != []
