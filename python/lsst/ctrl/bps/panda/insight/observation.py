"""What is known of a run in detail: the evidence of `~..inquiry` and the
PanDA jobs of its tasks.
"""

from __future__ import annotations

__all__ = ["JOBS_A_TASK", "JobScope", "Observation", "observe"]

import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum

from ..build_reply import complete_record
from ..errors import RunNotFoundError, TransportError
from ..inquiry import Connection, Inquiry
from ..report_links import MonitorLinks
from ..rest.panda_api import PandaApi
from ..wire.records import TransformRecord
from ..wire.tally import RunEvidence, RunTally, tally_run
from .jobs import JobDetail, parse_job_details

JOBS_A_TASK = 5500
"""PanDA lists no more jobs of a task (panda-server 1.0.4)."""

_AT_ONCE = 4
# While one reply is read, the server makes the next ones; few, since each may be 30 MB.


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
    def clusters(self) -> tuple[str, ...]:
        """Labels that are clusters of the configuration, if that is known."""
        return self.evidence.plan.clusters if self.evidence.plan is not None else ()

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
    errors: bool = True,
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
    errors : `bool`, optional
        Ask iDDS for what it knows of failed jobs, too.

    Returns
    -------
    observation : `Observation`
        What could be found out; what could not is named in it.

    Raises
    ------
    RunNotFoundError
        Raised if there is no such run, or it has no such label.
    TransportError
        Raised if the run itself cannot be asked for.
    """
    complete_record(connection, str(run))
    inquiry = Inquiry(connection)
    if tasks or scope is not JobScope.NONE:
        evidence = inquiry.detail(run, errors=errors)
    else:
        evidence = inquiry.status(run)
    tally = tally_run(evidence)
    if label and label not in tally.by_label:
        known = ", ".join(tally.by_label) or "none yet"
        raise RunNotFoundError(f"The run has no label {label!r}. Labels of the run: {known}.")
    links = MonitorLinks(connection.settings.monitor_url)
    labels = _task_labels(evidence, tally)
    wanted = [
        task.workload_id
        for task in _tasks_to_ask(evidence, scope)
        if not label or labels[task.workload_id] == label
    ]
    jobs, problems = _ask_for_jobs(connection.api, wanted, labels, scope)
    return Observation(evidence, tally, jobs, links, (*evidence.problems, *problems))


def _ask_for_jobs(
    api: PandaApi, task_ids: Iterable[int], labels: Mapping[int, str], scope: JobScope
) -> tuple[tuple[JobDetail, ...], list[str]]:
    """Ask PanDA for the jobs of tasks, some tasks at a time."""
    own = threading.local()

    def ask(task_id: int) -> tuple[tuple[JobDetail, ...], str]:
        if not hasattr(own, "api"):
            own.api = api.again()
        try:
            rows = own.api.job_descriptions(task_id, unsuccessful_only=scope is not JobScope.ALL)
            found = parse_job_details(rows, labels)
        except TransportError as error:
            return (), f"The jobs of PanDA task {task_id} could not be had: {error.message}"
        if len(found) < JOBS_A_TASK:
            return found, ""
        return found, f"PanDA lists {JOBS_A_TASK} jobs of task {task_id} ({labels[task_id]}); it has more."

    jobs: list[JobDetail] = []
    problems = []
    with ThreadPoolExecutor(_AT_ONCE, "jobs") as pool:
        # In the order of the tasks, whoever answers first.
        for found, problem in pool.map(ask, task_ids):
            jobs += found
            problems += [problem] if problem else []
    return tuple(jobs), problems


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
