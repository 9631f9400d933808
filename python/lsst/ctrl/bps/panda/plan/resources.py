"""What a job asks for, in PanDA's terms, and what PanDA cannot honour."""

from __future__ import annotations

__all__ = ["MAX_MEMORY", "NotHonoured", "resources_of", "walltime_of"]

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from lsst.ctrl.bps import GenericWorkflowJob

from ..errors import PlanError
from .model import Resources

DEFAULT_ATTEMPTS = 3
"""Attempts of a job that does not say how often to retry."""

DEFAULT_MEMORY = 1024
"""Memory of a job that does not ask for any, MB."""

DEFAULT_WALLTIME = 90000
"""Longest run of a PanDA job that does not ask for any, seconds."""

MAX_MEMORY = 512000
"""Cap of the memory growth of a job that has none, MB."""


def _number(job: GenericWorkflowJob, attribute: str, default: float, *, least: float) -> float:
    """Read a number of a job.

    Raises
    ------
    PlanError
        Raised if the value is no number or less than ``least``.
    """
    value = getattr(job, attribute)
    if value is None or value == "":
        return default
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not least <= number < math.inf:
        raise PlanError(
            f"{_yaml_name(attribute)} of job {job.name!r} (label {job.label!r}) is {value!r}; "
            f"it must be a number of at least {least:g}."
        )
    return number


def _yaml_name(attribute: str) -> str:
    """Key in the YAML that sets an attribute of a job."""
    head, *rest = attribute.split("_")
    return head + "".join(word.capitalize() for word in rest)


def resources_of(job: GenericWorkflowJob, *, payloads_per_job: int = 1, max_walltime: int = 0) -> Resources:
    """Return what a job needs.

    Parameters
    ----------
    job : `~lsst.ctrl.bps.GenericWorkflowJob`
        The job; its memory is that of the whole job in MB, as BPS defines it.
    payloads_per_job : `int`, optional
        Payloads that run one after another in a PanDA job.
    max_walltime : `int`, optional
        Wall time of a PanDA job of several payloads whose own wall time is
        not known, seconds; 0 if there is none.

    Returns
    -------
    resources : `Resources`
        Memory is rounded up to a multiple of the cores: iDDS divides it by
        the cores for PanDA's ``ramCount``, which is MB a core.

    Raises
    ------
    PlanError
        Raised if a number of the job cannot be used.

    Notes
    -----
    Attempts are retries + 1, so 0 retries means one attempt.  BPS lets the
    memory of attempt n be min(m0 * M**n, max), which is what PanDA does with
    ``retryRamStep = m0 * M`` and ``retryRamMax``.
    """
    cores = math.ceil(_number(job, "request_cpus", 1, least=1))
    memory = math.ceil(_number(job, "request_memory", DEFAULT_MEMORY, least=1))
    memory = -(-memory // cores) * cores
    memory_max = int(_number(job, "request_memory_max", 0, least=0)) or MAX_MEMORY
    growth = _number(job, "memory_multiplier", 1.0, least=0)
    retries = job.number_of_retries
    attempts = DEFAULT_ATTEMPTS
    if retries is not None:
        attempts = math.ceil(_number(job, "number_of_retries", DEFAULT_ATTEMPTS - 1, least=0)) + 1
    return Resources(
        memory=memory,
        memory_max=max(memory, memory_max),
        memory_growth=growth if growth > 1 else 1.0,
        cores=cores,
        disk=math.ceil(_number(job, "request_disk", 0, least=0)),
        walltime=_walltime(job, payloads_per_job, max_walltime),
        attempts=attempts,
    )


def walltime_of(job: GenericWorkflowJob) -> int:
    """Longest run of a job as it was asked for, seconds; 0 if it was not.

    Parameters
    ----------
    job : `~lsst.ctrl.bps.GenericWorkflowJob`
        The job.
    """
    return math.ceil(_number(job, "request_walltime", 0, least=0))


def _walltime(job: GenericWorkflowJob, payloads_per_job: int, max_walltime: int) -> int:
    """Longest run of a PanDA job, seconds."""
    asked = walltime_of(job)
    if payloads_per_job > 1:
        return asked * payloads_per_job or max_walltime or DEFAULT_WALLTIME
    return asked or DEFAULT_WALLTIME


_REASONS: dict[str, str] = {
    "accounting_user": "PanDA books a task on the user who is logged in",
    "mail_to": "PanDA sends no mail for single jobs",
    "when_to_mail": "PanDA sends no mail for single jobs",
    "abort_on_value": "neither PanDA nor iDDS ends a run because of one job's exit code",
    "abort_return_value": "neither PanDA nor iDDS ends a run because of one job's exit code",
    "category": "PanDA has no categories of jobs",
    "concurrency_limit": "PanDA has no limits across runs",
    "profile": "profiles are meant for other workload management systems",
    "attrs": "job attributes are meant for other workload management systems",
}
"""Attributes of a job that have no counterpart, with the reason."""


_unusual = attrgetter("preemptible", *_REASONS)


@dataclass(slots=True)
class NotHonoured:
    """Attributes that are set but cannot be honoured, with the labels."""

    labels: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    """Labels by the attribute's name in the YAML and the reason."""

    @classmethod
    def of(cls, jobs: Iterable[GenericWorkflowJob]) -> NotHonoured:
        """Look through all jobs of a run.

        Parameters
        ----------
        jobs : iterable of `~lsst.ctrl.bps.GenericWorkflowJob`
            The jobs.
        """
        found = cls()
        ordinary = _unusual(GenericWorkflowJob("", ""))
        last: tuple[str, tuple[Any, ...]] = ("", ordinary)
        for job in jobs:
            values = _unusual(job)
            # Equal neighbours, the usual case, are looked at once.
            if values != ordinary and (job.label, values) != last:
                last = (job.label, values)
                found._add(job.label, values)
        return found

    def _add(self, label: str, values: tuple[Any, ...]) -> None:
        """Enter one job."""
        preemptible, *others = values
        if preemptible is False:
            why = "PanDA may stop any job and run it again"
            self.labels.setdefault(("preemptible", why), set()).add(label)
        for (name, why), value in zip(_REASONS.items(), others, strict=True):
            if _is_set(value):
                self.labels.setdefault((_yaml_name(name), why), set()).add(label)

    def texts(self) -> list[str]:
        """Return one sentence for each attribute."""
        return [
            f"{key} (labels {', '.join(sorted(where))}) has no effect: {why}."
            for (key, why), where in sorted(self.labels.items())
        ]


def _is_set(value: Any) -> bool:
    """Whether the user gave a value."""
    return value is not None and value != "" and value != {} and value != []
