"""What was planned for a run, as far as a report needs it: labels in order,
tasks, and how many jobs each has.

It comes from the run record in the submit directory.  Where that cannot be
read, the request's own attributes give the totals, and labels are found in
the names of tasks.
"""

from __future__ import annotations

__all__ = ["PlanSummary"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..plan.run_attributes import RunAttributes


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """Labels and tasks of a plan."""

    labels: tuple[tuple[str, int], ...]
    """Labels in pipeline order with their number of jobs, final ones last."""

    tasks: tuple[tuple[str, str, int], ...]
    """Name, label and number of jobs of each task that is to appear as a
    transform, final ones included."""

    final_labels: tuple[str, ...] = ()
    attributes: RunAttributes | None = None
    """The run's attributes in full length, if the source has them."""

    site: str = ""
    path: str = ""
    """Submit directory, if known."""

    clusters: tuple[str, ...] = ()
    """Labels that BPS's configuration has in its section ``cluster``."""

    @property
    def job_count(self) -> int:
        """Number of planned jobs."""
        return sum(count for _, count in self.labels)

    @classmethod
    def from_run_record(cls, record: Mapping[str, Any]) -> PlanSummary:
        """Make a summary of a run record.

        Parameters
        ----------
        record : `~collections.abc.Mapping`
            Content of a run record: ``labels`` as pairs of label and number
            of jobs, ``tasks`` as triples of name, label and number of jobs
            (or as objects with those keys), ``final_labels``, and ``run`` (or
            the record itself) with ``name``, ``operator``, ``project``,
            ``campaign``, ``payload``, ``site``, ``submit_path``, ``origin``.

        Returns
        -------
        summary : `PlanSummary`
            The summary.

        Raises
        ------
        ValueError
            Raised if the record has another shape; the text says where.
        """
        try:
            tasks = tuple(_task_entry(entry) for entry in record.get("tasks", ()))
            labels = _label_entries(record.get("labels", ())) or _labels_of(tasks)
            final = tuple(str(label) for label in record.get("final_labels", ()))
            clusters = tuple(str(label) for label in record.get("clusters", ()))
        except (AttributeError, TypeError, ValueError, KeyError) as error:
            raise ValueError(f"The run record's labels or tasks are not understood: {error}") from error
        run = record.get("run", record)
        run = run if isinstance(run, Mapping) else record
        return cls(
            labels=labels,
            tasks=tasks,
            final_labels=final,
            attributes=_attributes_of(run, labels, tasks),
            site=str(run.get("site") or ""),
            path=str(run.get("submit_path") or ""),
            clusters=clusters,
        )


def _task_entry(entry: Any) -> tuple[str, str, int]:
    if isinstance(entry, Mapping):
        return str(entry["name"]), str(entry["label"]), _job_number(entry["jobs"])
    name, label, jobs = entry
    return str(name), str(label), _job_number(jobs)


def _job_number(value: Any) -> int:
    """Take a number of jobs, or the jobs themselves."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return len(value)
    return int(value)


def _label_entries(value: Any) -> tuple[tuple[str, int], ...]:
    pairs = value.items() if isinstance(value, Mapping) else value
    return tuple((str(label), int(count)) for label, count in pairs)


def _labels_of(tasks: Sequence[tuple[str, str, int]]) -> tuple[tuple[str, int], ...]:
    counts: dict[str, int] = {}
    for _, label, jobs in tasks:
        counts[label] = counts.get(label, 0) + jobs
    return tuple(counts.items())


def _attributes_of(
    run: Mapping[str, Any], labels: Sequence[tuple[str, int]], tasks: Sequence[object]
) -> RunAttributes | None:
    if not run.get("name"):
        return None
    return RunAttributes(
        name=str(run["name"]),
        operator=str(run.get("operator") or ""),
        project=str(run.get("project") or ""),
        campaign=str(run.get("campaign") or ""),
        payload=str(run.get("payload") or ""),
        jobs=sum(count for _, count in labels),
        tasks=len(tasks),
        origin=int(run.get("origin") or 0),
    )
