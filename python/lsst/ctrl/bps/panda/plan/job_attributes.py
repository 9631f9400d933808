"""The table of what the planner does with each attribute of a BPS job; a new attribute gets a row here.

If PanDA is to be told of it, `~.tasks` puts it into the task (`~.model`), and
the folder ``idds`` into the request.
"""

from __future__ import annotations

__all__ = ["Use", "USES", "attributes_with", "list_ignored", "yaml_key"]

from collections.abc import Iterable, Iterator
from enum import Enum
from operator import attrgetter
from typing import Any

from lsst.ctrl.bps import GenericWorkflowJob


class Use(Enum):
    """What becomes of an attribute of a job."""

    TASK = "all jobs of a task have the same value"
    TASK_LIST = "the same, for an attribute that may hold several values"
    JOB = "each job has a value of its own"
    IGNORED = "PanDA has nothing like it"


_MAIL = "PanDA sends no mail for single jobs"
_ABORT = "neither PanDA nor iDDS ends a run because of one job's exit code"

USES: dict[str, tuple[Use, str]] = {
    "label": (Use.TASK, ""),
    "arguments": (Use.TASK, ""),
    "environment": (Use.TASK_LIST, ""),
    "retry_unless_exit": (Use.TASK_LIST, ""),
    "executable": (Use.TASK, ""),
    "memory_multiplier": (Use.TASK, ""),
    "request_memory": (Use.TASK, ""),
    "request_memory_max": (Use.TASK, ""),
    "request_cpus": (Use.TASK, ""),
    "request_disk": (Use.TASK, ""),
    "request_walltime": (Use.TASK, ""),
    "compute_site": (Use.TASK, ""),
    "compute_cloud": (Use.TASK, ""),
    "accounting_group": (Use.TASK, ""),
    "number_of_retries": (Use.TASK, ""),
    "priority": (Use.TASK, ""),
    "queue": (Use.TASK, ""),
    "pre_cmdline": (Use.TASK, ""),
    "post_cmdline": (Use.TASK, ""),
    "name": (Use.JOB, "it is the identity of the job"),
    "cmdvals": (Use.JOB, "they are the parameters of the job"),
    "quanta_counts": (Use.JOB, "BPS counts quanta with it"),
    "tags": (Use.JOB, "BPS orders jobs by it"),
    "accounting_user": (Use.IGNORED, "PanDA books a task on the user who is logged in"),
    "mail_to": (Use.IGNORED, _MAIL),
    "when_to_mail": (Use.IGNORED, _MAIL),
    "abort_on_value": (Use.IGNORED, _ABORT),
    "abort_return_value": (Use.IGNORED, _ABORT),
    "category": (Use.IGNORED, "PanDA has no categories of jobs"),
    "concurrency_limit": (Use.IGNORED, "PanDA has no limits across runs"),
    "preemptible": (Use.IGNORED, "PanDA may stop any job and run it again"),
    "profile": (Use.IGNORED, "profiles are meant for other workload management systems"),
    "attrs": (Use.IGNORED, "job attributes are meant for other workload management systems"),
}
"""Use of each attribute of `~lsst.ctrl.bps.GenericWorkflowJob`, and the reason
where jobs of one task may differ in it."""


def attributes_with(*uses: Use) -> tuple[str, ...]:
    """Return the names of the attributes that have one of some uses."""
    return tuple(name for name, (use, _) in USES.items() if use in uses)


def yaml_key(attribute: str) -> str:
    """Return the key in the YAML that sets an attribute of a job."""
    head, *rest = attribute.split("_")
    return head + "".join(word.capitalize() for word in rest)


_IGNORED = attributes_with(Use.IGNORED)
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
        yield f"{key} (labels {', '.join(sorted(labels[name]))}) has no effect: {USES[name][1]}."


def _asks_for_something(name: str, value: Any) -> bool:
    """Whether the value of an ignored attribute is a wish that is not met."""
    if name == "preemptible":  # PanDA preempts anyway, so that only a refusal is not honoured
        return value is False
    return value is not None and value != "" and value != {} and value != []
