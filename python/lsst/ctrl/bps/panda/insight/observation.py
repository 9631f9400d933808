"""What is known of a run in detail: the evidence of `~..inquiry` and the
PanDA jobs of its tasks.
"""

from __future__ import annotations

__all__ = ["JOBS_A_TASK", "JobScope", "Observation", "observe"]

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from ..build_reply import complete_record
from ..errors import TransportError
from ..inquiry import Connection, Inquiry
from ..report_links import MonitorLinks
from ..wire.records import TransformRecord
from ..wire.tally import RunEvidence, RunTally, tally_run
from .jobs import JobDetail, parse_job_details

JOBS_A_TASK = 5500
"""PanDA lists no more jobs of a task (panda-server 1.0.4)."""


class JobScope(Enum):
    """Of which jobs PanDA is asked."""

    NONE = "none"
    FAILED = "failed"
    """Attempts that have not finished, of tasks with jobs that failed."""

    UNSUCCESSFUL = "unsuccessful"
    """Attempts that have not finished, of all tasks: also those whose job
    finished in a later one."""

    ALL = "all"


@dataclass(frozen=True, slots=True)
class Observation:
    """A run in detail."""

    evidence: RunEvidence
    tally: RunTally
    jobs: tuple[JobDetail, ...] = ()
    """Attempts, by task and PanDA's number."""

    links: MonitorLinks = MonitorLinks("")
    problems: tuple[str, ...] = ()
    """What could not be found out, one text each."""

    @property
    def request_id(self) -> int:
        """Number of the run."""
        return self.evidence.request.request_id

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.tally.attributes.name or self.evidence.request.name

    @property
    def task_labels(self) -> Mapping[int, str]:
        """Label of each PanDA task."""
        return _task_labels(self.evidence, self.tally)


def observe(
    connection: Connection,
    run: str | int,
    *,
    scope: JobScope = JobScope.ALL,
    label: str = "",
    tasks: bool = False,
) -> Observation:
    """Find out about a run.

    Parameters
    ----------
    connection : `Connection`
        The server.
    run : `str` or `int`
        Request id, submit directory or name of the run.
    scope : `JobScope`, optional
        Of which jobs PanDA is asked; a task costs a request.
    label : `str`, optional
        Ask for the jobs of this label only.
    tasks : `bool`, optional
        Ask PanDA for its tasks even where no jobs are asked for.

    Returns
    -------
    observation : `Observation`
        What could be found out; what could not is named in it.

    Raises
    ------
    RunNotFoundError
        Raised if there is no such run.
    TransportError
        Raised if the run itself cannot be asked for.
    """
    complete_record(connection, str(run))
    inquiry = Inquiry(connection)
    evidence = inquiry.detail(run) if tasks or scope is not JobScope.NONE else inquiry.status(run)
    tally = tally_run(evidence)
    links = MonitorLinks(connection.settings.monitor_url)
    problems = list(evidence.problems)
    jobs: list[JobDetail] = []
    labels = _task_labels(evidence, tally)
    for transform in _tasks_to_ask(evidence, scope):
        task_id = transform.workload_id
        if label and labels[task_id] != label:
            continue
        try:
            rows = connection.api.job_descriptions(task_id, unsuccessful_only=scope is not JobScope.ALL)
            found = parse_job_details(rows, labels)
        except TransportError as error:
            problems.append(f"The jobs of PanDA task {task_id} could not be had: {error.message}")
            continue
        if len(found) >= JOBS_A_TASK:
            problems.append(
                f"PanDA lists {JOBS_A_TASK} jobs of task {task_id} ({labels[task_id]}); it has more."
            )
        jobs += found
    return Observation(evidence, tally, tuple(jobs), links, tuple(problems))


def _task_labels(evidence: RunEvidence, tally: RunTally) -> dict[int, str]:
    return {
        transform.workload_id: tally.labels.get(transform.transform_id, transform.name)
        for transform in evidence.transforms or ()
        if transform.workload_id
    }


def _tasks_to_ask(evidence: RunEvidence, scope: JobScope) -> list[TransformRecord]:
    """List the transforms whose jobs are of interest and known to PanDA."""
    if scope is JobScope.NONE:
        return []
    tasks = [transform for transform in evidence.transforms or () if transform.workload_id]
    if scope is not JobScope.FAILED:
        return tasks
    return [task for task in tasks if not _all_processed(task)]


def _all_processed(task: TransformRecord) -> bool:
    """Whether a task has finished without a failure that is still known.

    Attempts that failed before one that finished are not looked for: PanDA
    would have to be asked for each task.
    """
    return task.status == "Finished" and (task.outputs is None or task.outputs.failed == 0)
