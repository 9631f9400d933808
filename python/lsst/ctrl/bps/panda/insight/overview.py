"""Ask about a run in detail, and put together what it is at a glance: who,
where, how far, its tasks, files and links.
"""

from __future__ import annotations

__all__ = ["JobScope", "Overview", "explain_failures", "fetch_evidence", "fetch_overview", "make_overview"]

import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from pathlib import Path

from lsst.ctrl.bps.wms_service import WmsStates

from ..edgenode.cmd_line_decoder import SHARD_FOLDER
from ..errors import RunNotFoundError, TransportError
from ..plan.naming import ordinal_of_task
from ..report import MonitorLinks
from ..rest.panda_api import JOBS_A_TASK, PandaApi
from ..runs.client import Connection, FoundRun, RunClient
from ..runs.files import PLAN_NAME, PROVENANCE_GRAPH_NAME, PROVENANCE_REPORT_NAME, RECORD_NAME
from ..runs.jobs import JobQuery, RunJobs
from ..status.bps_states import Counts
from ..status.evidence import RunEvidence
from ..status.failures import (
    EndReader,
    ErrorGroup,
    add_verdicts,
    find_remarks,
    group_errors,
    name_examples,
)
from ..status.records import FileCounts, JobRecord, TransformRecord
from ..status.replies import parse_jobs
from ..status.verdicts import Rulebook
from ..status.vocabulary import NEVER_RAN, WAITS_FOR_PARENTS

_AT_ONCE = 4
# While one reply is read, the server makes the next ones; few, since each may be 30 MB.


class JobScope(Enum):
    """Which jobs PanDA is asked for."""

    NONE = "none"
    FAILED = "failed"
    """Attempts that have not finished, of tasks with jobs that failed."""

    UNSUCCESSFUL = "unsuccessful"
    """Attempts that have not finished, of all tasks: also those whose job finished in a later one."""

    ALL = "all"


def fetch_evidence(
    connection: Connection,
    run: str | int | FoundRun,
    *,
    scope: JobScope = JobScope.ALL,
    which: JobQuery = JobQuery(),  # noqa: B008, a tuple
    tasks: bool = False,
    errors: bool = True,
) -> RunEvidence:
    """Find out about a run; what could not be found out is named in the evidence.

    Parameters
    ----------
    connection : `Connection`
        The server.
    run : `str`, `int` or `FoundRun`
        Request id, submit directory or name of the run, or the run itself.
    scope : `JobScope`, optional
        Which jobs PanDA is asked for; a task costs a request.
    which : `JobQuery`, optional
        Ask for these jobs only.
    tasks : `bool`, optional
        Ask PanDA for its tasks even where no jobs are asked for.
    errors : `bool`, optional
        Ask iDDS for what it knows of failed jobs, too.

    Raises
    ------
    RunNotFoundError
        Raised if there is no such run, or it has no such label or job.
    SettingsError
        Raised if the data ID is not understood.
    """
    client = RunClient(connection)
    if tasks or scope is not JobScope.NONE:
        evidence = client.detail(run, errors=errors)
    else:
        evidence = client.status(run)
    label, any_job = which.label, not (which.job or which.data)
    if label and label not in evidence.tally.by_label:
        known = ", ".join(evidence.tally.by_label) or "none yet"
        raise RunNotFoundError(f"The run has no label {label!r}. Labels of the run: {known}.")
    labels = evidence.task_labels
    jobs = RunJobs(evidence)
    planned = {} if any_job else jobs.find(which)
    wanted = [
        task.workload_id
        for task in evidence.transforms or ()
        if task.workload_id
        and label in ("", labels[task.workload_id])
        and _is_asked(task, scope)
        # Without a plan, any task may have the job.
        and (not planned or task.name in planned)
    ]
    evidence = evidence.with_attempts(*_ask_for_jobs(connection.api, wanted, labels, scope))
    evidence = evidence if any_job else _choose_jobs(evidence, which, planned, scope)
    # Who asks for an attempt in which nothing ran gets it.
    return jobs.set_refused_aside(evidence, which.job)


def _choose_jobs(
    evidence: RunEvidence, which: JobQuery, planned: Mapping[str, frozenset[str]], scope: JobScope
) -> RunEvidence:
    """Keep the attempts and failures of the jobs that are asked for; an error if there is no such job."""
    label, job, data = which
    inputs = frozenset().union(*planned.values())
    attempts = tuple(
        attempt
        for attempt in evidence.attempts
        if attempt.name in inputs or (job and job in (str(attempt.panda_id), attempt.name, attempt.job_name))
    )
    failures = {each.name for each in evidence.failures if job in (str(each.panda_id), each.name)}
    chosen = inputs | failures | {attempt.name for attempt in attempts}
    if not chosen:
        raise RunNotFoundError(
            f"The run has no job {job!r}{label and f' of label {label!r}'}{data and f' with {data}'}"
            f"{'' if scope is JobScope.ALL else ' that failed'}"
            f"{RunJobs(evidence).suggest(job)} Give its name in BPS, its pseudo-input, or PanDA's number or "
            "name, as panda_bps show --jobs lists them."
        )
    return replace(evidence, attempts=attempts, chosen=chosen)


def _ask_for_jobs(
    api: PandaApi, task_ids: Iterable[int], labels: Mapping[int, str], scope: JobScope
) -> tuple[tuple[JobRecord, ...], list[str]]:
    """Ask PanDA for the jobs of tasks, some tasks at a time."""
    own = threading.local()

    def ask(task_id: int) -> tuple[tuple[JobRecord, ...], str]:
        if not hasattr(own, "api"):
            own.api = api.clone()
        try:
            rows = own.api.job_descriptions(task_id, unsuccessful_only=scope is not JobScope.ALL)
            found = parse_jobs(rows, labels)
        except TransportError as error:
            return (), f"The jobs of PanDA task {task_id} could not be had: {error.message}"
        if len(found) < JOBS_A_TASK:
            return found, ""
        return found, f"PanDA lists {JOBS_A_TASK} jobs of task {task_id} ({labels[task_id]}); it has more."

    jobs: list[JobRecord] = []
    problems = []
    with ThreadPoolExecutor(_AT_ONCE, "jobs") as pool:
        # In the order of the tasks, whoever answers first.
        for found, problem in pool.map(ask, task_ids):
            jobs += found
            problems += [problem] if problem else []
    return tuple(jobs), problems


def _is_asked(task: TransformRecord, scope: JobScope) -> bool:
    """Whether the jobs of a task are of interest."""
    if scope is JobScope.FAILED:
        # Attempts that failed before one that finished are not looked for: PanDA
        # would have to be asked for each task.
        return not task.complete
    return scope is not JobScope.NONE


def explain_failures(
    run: RunEvidence, rulebook: Rulebook, read_tail: EndReader, *, limit: int, label: str = ""
) -> tuple[list[ErrorGroup], int]:
    """Return so many kinds of errors with verdicts and logs, and how many there are besides."""
    groups = group_errors(run, label=label)
    left_out = max(0, len(groups) - limit)
    groups = name_examples(groups[:limit], RunJobs(run).identify)
    return add_verdicts(groups, rulebook, read_tail=read_tail), left_out


_KNOWN_FILES = {
    RECORD_NAME: "record of the run",
    PLAN_NAME: "plan: tasks, jobs, dependencies",
    PROVENANCE_GRAPH_NAME: "provenance: quantum graph of what was done",
    PROVENANCE_REPORT_NAME: "provenance: quanta that failed, with all attempts",
    SHARD_FOLDER: "parameters of jobs, as staged",
}
_KNOWN_SUFFIXES = {
    ".qgraph": "quantum graph",
    ".qg": "quantum graph",
    "_config.yaml": "BPS configuration as it was used",
    "_generic_workflow.pickle": "generic workflow",
}


@dataclass(frozen=True, slots=True)
class TaskLine:
    """A task as iDDS and PanDA see it."""

    label: str
    name: str
    transform_id: int
    task_id: int
    """PanDA's number, 0 before there is one."""

    idds_status: str
    panda_status: str
    """Empty if PanDA was not asked or does not have it yet."""

    jobs: int = 0
    finished: int = 0
    failed: int = 0
    deleted: int = 0
    """Jobs that a cancel ended, or kept from running."""

    remark: str = ""
    """PanDA's, often the reason of a wait."""

    link: str = ""
    failed_link: str = ""


@dataclass(frozen=True, slots=True)
class RunFile:
    """A file of the submit directory."""

    path: str
    what: str
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Overview:
    """A run at a glance."""

    request_id: int
    name: str
    state: WmsStates
    ended: bool
    idds_status: str
    operator: str
    project: str
    campaign: str
    payload: str
    site: str
    origin: int
    """Run that this one completes, 0 if none."""

    created: datetime | None
    updated: datetime | None
    server: str
    submit_path: str
    staging_area: str
    labels: dict[str, Counts]
    total: Counts
    tasks: tuple[TaskLine, ...]
    files: tuple[RunFile, ...]
    links: tuple[tuple[str, str], ...]
    """What and where, in the PanDA monitor."""

    remarks: tuple[str, ...] = ()
    """Which tasks do not run, or run twice, and what to do."""

    problems: tuple[str, ...] = ()

    @property
    def facts(self) -> dict[str, str]:
        """What is known of the run as a whole, by name."""
        facts = {
            "operator": self.operator,
            "project": self.project,
            "campaign": self.campaign,
            "payload": self.payload,
            "site": self.site,
            "completes": f"run {self.origin}" if self.origin else "",
            "submitted": f"{self.created:%Y-%m-%d %H:%M:%S} UTC" if self.created else "",
            "last change": f"{self.updated:%Y-%m-%d %H:%M:%S} UTC" if self.updated else "",
            "server": self.server,
            "submit directory": self.submit_path,
            "staging area": self.staging_area,
        }
        return {name: value for name, value in facts.items() if value}


def fetch_overview(
    connection: Connection,
    run: str | int | FoundRun,
    *,
    scope: JobScope = JobScope.ALL,
    tasks: bool = False,
    errors: bool = True,
) -> tuple[RunEvidence, Overview]:
    """Find out about a run as `fetch_evidence` does, and put together what is known of it."""
    found = RunClient(connection).find(run)
    evidence = fetch_evidence(connection, found, scope=scope, tasks=tasks, errors=errors)
    area = found.record.staging_area if found.record is not None else ""
    settings = connection.settings
    return evidence, make_overview(
        evidence, server=settings.url, monitor_url=settings.monitor_url, staging_area=area
    )


def make_overview(
    evidence: RunEvidence, *, server: str, monitor_url: str = "", staging_area: str = ""
) -> Overview:
    """Put together what is known of a run, and which of its files are in the
    submit directory, if that is known and on this machine.

    The run's attempts are not needed.
    """
    attributes, tally = evidence.attributes, evidence.tally
    links = MonitorLinks(monitor_url)
    return Overview(
        request_id=evidence.request_id,
        name=evidence.name,
        state=tally.state,
        ended=evidence.ended,
        idds_status=evidence.request.status,
        operator=attributes.operator,
        project=attributes.project,
        campaign=attributes.campaign,
        payload=attributes.payload,
        site=evidence.site,
        origin=attributes.origin,
        created=evidence.request.created_at,
        updated=evidence.request.updated_at,
        server=server,
        submit_path=evidence.path,
        staging_area=staging_area,
        labels=tally.by_label,
        total=tally.total,
        tasks=tuple(_task_lines(evidence, links)),
        files=tuple(_files_of(evidence.path)),
        links=tuple(_links_of(evidence.request_id, links)),
        remarks=tuple(find_remarks(evidence)),
        problems=evidence.problems,
    )


def _task_lines(evidence: RunEvidence, links: MonitorLinks) -> Iterator[TaskLine]:
    panda = evidence.tasks_by_id
    never = {item.transform_id: NEVER_RAN.format(item.name) for item in evidence.never_submitted}
    run_name = evidence.name
    for item in sorted(evidence.transforms or (), key=lambda t: (ordinal_of_task(t.name, run_name), t.name)):
        task = panda.get(item.workload_id)
        outputs = item.outputs or FileCounts()
        counts = evidence.tally.by_transform.get(item.transform_id, {})
        failed = counts.get(WmsStates.FAILED, 0)
        yield TaskLine(
            label=evidence.tally.labels.get(item.transform_id, ""),
            name=item.name,
            transform_id=item.transform_id,
            task_id=item.workload_id,
            idds_status=item.status,
            panda_status=task.status if task is not None else "",
            jobs=outputs.total,
            finished=outputs.processed,
            failed=failed,
            deleted=counts.get(WmsStates.DELETED, 0),
            remark=_explained(task.dialog) if task is not None else never.get(item.transform_id, ""),
            link=links.task(item.workload_id) if item.workload_id else "",
            failed_link=links.failed_jobs(item.workload_id) if failed and item.workload_id else "",
        )


def _explained(dialog: str) -> str:
    """Explain what JEDI says of a task whose inputs other tasks are to make: to
    PanDA they look like files on tape.
    """
    if WAITS_FOR_PARENTS in dialog:
        return f"waits for jobs of other tasks (PanDA: {dialog.strip()})"
    return dialog


def _files_of(submit_path: str) -> Iterator[RunFile]:
    if not submit_path:
        return
    try:
        entries = sorted(Path(submit_path).iterdir())
    except OSError:
        return
    for path in entries:
        what = _KNOWN_FILES.get(path.name) or next(
            (text for suffix, text in _KNOWN_SUFFIXES.items() if path.name.endswith(suffix)), ""
        )
        if what:
            yield RunFile(str(path), what, path.stat().st_size)


def _links_of(request_id: int, links: MonitorLinks) -> Iterator[tuple[str, str]]:
    if links.base:
        yield "tasks", links.tasks_of_run(request_id)
        yield "progress", links.progress_of_run(request_id)
        yield "graph of tasks", links.graph_of_run(request_id)
