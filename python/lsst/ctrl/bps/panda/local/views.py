"""Records of tasks, inputs, jobs and events as PanDA's API returns them, and the runs of ``panda_local
status``: reading only.
"""

from __future__ import annotations

__all__ = ["RunSummary", "Views", "job_record", "list_runs", "render_time", "task_record"]

import datetime
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from .database import Database, events, files, jobs, tasks
from .jedi import FINAL_STATES
from .pilot import broken_detail, broken_text
from .storage import Storage

# Fields of PanDA's JobSpec that are null unless they are set below.
_JOB_NULLS = (
    "creationHost",
    "AtlasRelease",
    "homepackage",
    "prodSeriesLabel",
    "maxCpuUnit",
    "commandToPilot",
    "transExitCode",
    "pilotErrorDiag",
    "exeErrorDiag",
    "supErrorDiag",
    "ddmErrorDiag",
    "brokerageErrorDiag",
    "jobDispatcherErrorDiag",
    "taskBufferErrorDiag",
    "computingElement",
    "metadata",
    "prodDBlock",
    "dispatchDBlock",
    "destinationSE",
    "grid",
    "cpuConversion",
    "sourceSite",
    "destinationSite",
    "transferType",
    "lockedby",
    "pilotTiming",
    "countryGroup",
    "batchID",
    "parentID",
    "specialHandling",
    "nInputFiles",
    "nInputDataFiles",
    "inputFileType",
    "inputFileProject",
    "inputFileBytes",
    "jobMetrics",
    "jobSubStatus",
    "maxRSS",
    "maxVMEM",
    "maxSWAP",
    "maxPSS",
    "avgRSS",
    "avgVMEM",
    "avgSWAP",
    "avgPSS",
    "nucleus",
    "eventService",
    "totRCHAR",
    "totWCHAR",
    "totRBYTES",
    "totWBYTES",
    "rateRCHAR",
    "rateWCHAR",
    "rateRBYTES",
    "rateWBYTES",
    "diskIO",
    "memory_leak",
    "memory_leak_x2",
    "container_name",
    "gco2_regional",
    "gco2_global",
    "cpu_architecture_level",
    "outputFileType",
    "pilotID",
    "startTime",
    "endTime",
)
_JOB_ZEROS = (
    "jobDefinitionID",
    "maxCpuCount",
    "pilotErrorCode",
    "exeErrorCode",
    "supErrorCode",
    "ddmErrorCode",
    "brokerageErrorCode",
    "jobDispatcherErrorCode",
    "taskBufferErrorCode",
    "nEvents",
    "jobExecutionID",
    "nOutputDataFiles",
    "outputFileBytes",
    "failedAttempt",
    "maxWalltime",
    "cpuConsumptionTime",
)
_FINE_GRAINED = 6
"""PanDA's code for an event service job with fine-grained processing."""

_TASK_NULLS = (
    "frozenTime",
    "countryGroup",
    "transHome",
    "lockedBy",
    "lockedTime",
    "termCondition",
    "walltimeUnit",
    "outDiskUnit",
    "workDiskUnit",
    "ioIntensity",
    "ioIntensityUnit",
    "progress",
    "failureRate",
    "oldStatus",
    "ticketID",
    "ticketSystemType",
    "campaign",
    "mergeRamCount",
    "mergeRamUnit",
    "mergeWalltime",
    "mergeWalltimeUnit",
    "throttledTime",
    "numThrottled",
    "mergeCoreCount",
    "goal",
    "assessmentTime",
    "cpuTime",
    "cpuTimeUnit",
    "nucleus",
    "ttcRequested",
    "ttcPredicted",
    "ttcPredictionDate",
    "rescueTime",
    "requestType",
    "useJumbo",
    "diskIO",
    "diskIOUnit",
    "memory_leak_core",
    "memory_leak_x2",
    "container_name",
    "framework",
    "activatedTime",
    "queuedTime",
    "actionTime",
    "task_creation_arguments",
)
_TASK_ZEROS = (
    "walltime",
    "outDiskCount",
    "workDiskCount",
    "attemptNr",
    "baseRamCount",
    "eventService",
)
_TASK_FROM_PARAMS = (
    "prodSourceLabel",
    "workingGroup",
    "vo",
    "taskType",
    "processingType",
    "architecture",
    "transUses",
    "transPath",
    "campaign",
    "ramCount",
    "ramUnit",
)


def render_time(seconds: float | None) -> dict[str, str] | None:
    """Render a time as PanDA's API does: UTC without a zone."""
    if seconds is None:
        return None
    value = datetime.datetime.fromtimestamp(seconds, datetime.UTC).replace(tzinfo=None)
    return {"__datetime__": value.isoformat()}


def _command(params: Mapping[str, Any]) -> str:
    """Put a command together; what a later version of PanDA may send otherwise is left out."""
    parts = params.get("jobParameters")
    if not isinstance(parts, list):
        return ""
    return "".join(str(part.get("value", "")) for part in parts if isinstance(part, Mapping))


def _decoded(text: object) -> dict[str, Any]:
    """Decode a column with a JSON object; `ValueError` if it holds none."""
    value = json.loads(str(text))
    if not isinstance(value, dict):
        raise ValueError(f"{str(text):.50} is no JSON object")
    return value


_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, OverflowError)
"""What is raised for a row that holds what it should not."""


def _marked_job(row: Mapping[str, Any], error: Exception) -> dict[str, Any]:
    """Make the record of a job whose rows cannot be read."""
    record: dict[str, Any] = {**dict.fromkeys(_JOB_NULLS), **dict.fromkeys(_JOB_ZEROS, 0)}
    record.update(PandaID=row["panda_id"], jediTaskID=row["task_id"], taskID=row["task_id"], Files=[])
    record.update(jobStatus=row["status"], attemptNr=row["attempt"], jobName=row["name"])
    record.update(broken_detail(error))
    return record


def _marked_task(row: Mapping[str, Any], error: Exception) -> dict[str, Any]:
    """Make the record of a task whose rows cannot be read."""
    record: dict[str, Any] = {**dict.fromkeys(_TASK_NULLS), **dict.fromkeys(_TASK_ZEROS, 0)}
    record.update(dict.fromkeys(("nFiles", "nFilesFinished", "nFilesFailed", "nFilesMissing"), 0))
    record.update(jediTaskID=row["task_id"], taskName=row["name"], status=row["status"], reqID=row["req_id"])
    record.update(userName=row["user_name"], superStatus=row["status"], errorDialog=broken_text(error))
    return record


def job_record(job: Mapping[str, Any], task: Mapping[str, Any], file: Mapping[str, Any]) -> dict[str, Any]:
    """Make the record of a job.

    As in PanDA, ``maxAttempt`` of a job follows its own attempt number.
    """
    params = task["params"]
    record: dict[str, Any] = dict.fromkeys(_JOB_NULLS)
    record.update(dict.fromkeys(_JOB_ZEROS, 0))
    changed = render_time(job["changed"])
    duration = (job["ended"] or 0.0) - (job["started"] or 0.0) if job["ended"] and job["started"] else None
    record.update(
        PandaID=job["panda_id"],
        schedulerID="local",
        creationTime=render_time(job["created"]),
        modificationTime=changed,
        modificationHost="localhost",
        transformation=params.get("transPath"),
        prodSourceLabel=params.get("prodSourceLabel"),
        prodUserID=task["user_name"],
        prodUserName=task["user_name"],
        assignedPriority=job["priority"],
        currentPriority=job["priority"],
        attemptNr=job["attempt"],
        maxAttempt=job["attempt"],
        jobStatus=job["status"],
        jobName=job["name"],
        maxDiskCount=300,
        maxDiskUnit="MB",
        ipConnectivity="yes",
        minRamCount=job["ram"] * task["cores"],
        minRamUnit="MB",
        startTime=render_time(job["started"]),
        endTime=render_time(job["ended"]),
        stateChangeTime=changed,
        prodDBUpdateTime=changed,
        cpuConsumptionUnit="s",
        computingSite=job["queue"],
        jobParameters=_command(params).replace("${IN/L}", file["lfn"].partition(":")[2]),
        destinationDBlock="PandaJob_#{pandaid}/",
        cloud=params.get("cloud"),
        taskID=task["task_id"],
        jediTaskID=task["task_id"],
        cmtConfig="",
        relocationFlag=1,
        VO=params.get("vo"),
        workingGroup=params.get("workingGroup"),
        processingType=params.get("processingType"),
        jobsetID=task["task_id"],
        coreCount=task["cores"],
        actualCoreCount=job["cores"],
        workQueue_ID=1,
        reqID=task["req_id"],
        hs06=1,
        hs06sec=None if duration is None else round(duration),
        gshare="root",
        resource_type="Undefined",
        job_label=params.get("prodSourceLabel"),
        jobDuration=duration,
        extendedProdSourceLabel=f"{params.get('prodSourceLabel')}_normal",
        jobSubStatus=job["sub_status"],
        commandToPilot="tobekilled" if job["kill_by"] else None,
        eventService=_FINE_GRAINED if task["event_service"] else None,
    )
    if job["status"] == "running":
        record["pilotID"] = "unknown|local|"
    record.update(_decoded(job["detail"]))
    record["Files"] = [_file_record(job, task, file)]
    return record


def _file_record(job: Mapping[str, Any], task: Mapping[str, Any], file: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "row_ID": job["panda_id"],
        "PandaID": job["panda_id"],
        "GUID": None,
        "lfn": file["lfn"],
        "type": "pseudo_input",
        "dataset": "pseudo_dataset",
        "status": "unknown",
        "prodDBlock": "pseudo_dataset",
        "prodDBlockToken": None,
        "dispatchDBlock": None,
        "dispatchDBlockToken": None,
        "destinationDBlock": None,
        "destinationDBlockToken": None,
        "destinationSE": None,
        "fsize": 0,
        "md5sum": None,
        "checksum": None,
        "scope": None,
        "jediTaskID": task["task_id"],
        "datasetID": task["dataset_id"],
        "fileID": file["file_id"],
        "attemptNr": 0,
    }


def task_record(task: Mapping[str, Any], counts: Mapping[str, int]) -> dict[str, Any]:
    """Make the detailed record of a task.

    As in PanDA, pruned (missing) inputs are not part of ``nFiles``.
    """
    params = task["params"]
    total = sum(counts.values()) - counts.get("missing", 0)
    good = counts.get("finished", 0)
    bad = counts.get("failed", 0)
    record: dict[str, Any] = dict.fromkeys(_TASK_NULLS)
    record.update(dict.fromkeys(_TASK_ZEROS, 0))
    record.update({name: params.get(name) for name in _TASK_FROM_PARAMS})
    record.update(walltime=params.get("walltime") or 0)
    record.update(
        jediTaskID=task["task_id"],
        taskName=task["name"],
        status=task["status"],
        superStatus=task["status"],
        userName=task["user_name"],
        creationDate=render_time(task["created"]),
        modificationTime=render_time(task["modified"]),
        stateChangeTime=render_time(task["modified"]),
        startTime=render_time(task["started"]),
        endTime=render_time(task["ended"]),
        coreCount=task["cores"],
        taskPriority=task["priority"],
        currentPriority=task["priority"],
        workQueue_ID=1,
        errorDialog=task["error_dialog"],
        reqID=task["req_id"],
        cloud=params.get("cloud"),
        site=task["queue"],
        parent_tid=task["task_id"],
        eventService=_FINE_GRAINED if task["event_service"] else 0,
        splitRule=_split_rule(params),
        gshare="root",
        resource_type="Undefined",
        job_execution_params=_command(params),
        raw_task_params=params,
        nFiles=total,
        nFilesFinished=good,
        nFilesFailed=bad,
        nFilesMissing=counts.get("missing", 0),
        pctFinished=100 * good // total if total else 0,
        pctFailed=100 * bad // total if total else 0,
    )
    return record


def _split_rule(params: Mapping[str, Any]) -> str:
    names = ("nFilesPerJob", "maxWalltime", "retryRamOffset", "retryRamStep", "retryRamMax")
    return ",".join(f"{name}={params[name]}" for name in names if params.get(name) is not None)


# States of inputs in PanDA's tables: an input that has used up its attempts is
# still "ready" there.
_FILE_STATES = {"waiting": "ready", "failed": "ready", "cancelled": "ready"}
_MAX_JOBS = 5500
"""PanDA cuts the list of a task's jobs at this length."""


class Views:
    """Reads records from the database."""

    def __init__(self, database: Database, storage: Storage | None = None) -> None:
        self._database = database
        self._storage = storage

    def _task(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Make a task of its row, one without parameters if they are damaged; while nothing can go on, its
        dialog says why.
        """
        try:
            task = {**row, "params": _decoded(row["params"])}
        except _UNREADABLE as error:
            task = {**row, "params": {}, "error_dialog": broken_text(error)}
        trouble = self._storage.trouble if self._storage else None
        if trouble is not None and row["status"] not in FINAL_STATES:
            task["error_dialog"] = (
                f"the embedded PanDA waits, since {_utc(trouble.since)} UTC: {trouble.text}"
            )
        return task

    def task(self, task_id: int) -> dict[str, Any] | None:
        """Read a task, `None` if there is none."""
        with self._database.reading() as connection:
            row = connection.execute(sa.select(tasks).where(tasks.c.task_id == task_id)).mappings().first()
        return None if row is None else self._task(dict(row))

    def details(self, task_id: int) -> dict[str, Any] | None:
        """Return a task's status and the current job of each input, `None` if there is no such task."""
        task = self.task(task_id)
        if task is None:
            return None
        query = sa.select(files.c.status, files.c.panda_id).where(files.c.task_id == task_id)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(files.c.file_id)).all()
        states = [_FILE_STATES.get(row.status, row.status) for row in rows]
        statistics = ",".join(f"{state}*{states.count(state)}" for state in sorted(set(states)))
        return {
            "inDS": "",
            "outDS": "",
            "statistics": statistics,
            "mergeStatus": None,
            "PandaID": [row.panda_id for row in rows if row.panda_id],
            "mergePandaID": [],
            "status": task["status"],
            "cliParams": "",
            "taskParams": json.dumps(task["params"]),
        }

    def datasets(self, task_id: int) -> list[dict[str, Any]] | None:
        """List a task's inputs with their states."""
        task = self.task(task_id)
        if task is None:
            return None
        query = sa.select(files).where(files.c.task_id == task_id).order_by(files.c.file_id)
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        inputs = [
            {
                "lfn": row.lfn,
                "scope": None,
                "id": row.file_id,
                "status": _FILE_STATES.get(row.status, row.status),
            }
            for row in rows
        ]
        return [{"dataset": {"name": "pseudo_dataset", "id": task["dataset_id"]}, "files": inputs}]

    def jobs(self, panda_ids: Iterable[int], *, for_idds: bool = False) -> list[dict[str, Any] | None]:
        """Make the records of jobs, in the given order.

        To iDDS, a failure is final when all attempts are used up: those that are not made count.
        """
        wanted = [int(value) for value in panda_ids]
        found: dict[int, dict[str, Any]] = {}
        for start in range(0, len(wanted), 500):
            condition = jobs.c.panda_id.in_(wanted[start : start + 500])
            found.update(self._records(condition, for_idds=for_idds))
        return [found.get(panda_id) for panda_id in wanted]

    def job_descriptions(self, task_id: int, *, unsuccessful_only: bool) -> list[dict[str, Any]]:
        """Make the records of all attempts of all jobs of a task."""
        condition = jobs.c.task_id == task_id
        if unsuccessful_only:
            condition = condition & (jobs.c.status != "finished")
        return list(self._records(condition, limit=_MAX_JOBS).values())

    def _records(
        self, condition: sa.ColumnElement[bool], limit: int | None = None, *, for_idds: bool = False
    ) -> dict[int, dict[str, Any]]:
        columns = [files.c.lfn, files.c.events, files.c.max_attempt, files.c.status.label("file_status")]
        query = sa.select(jobs, *columns).join(files, files.c.file_id == jobs.c.file_id).where(condition)
        cache: dict[int, dict[str, Any]] = {}
        records = {}
        with self._database.reading() as connection:
            for row in connection.execute(query.order_by(jobs.c.panda_id).limit(limit)).mappings():
                task_id = row["task_id"]
                if task_id not in cache:
                    found = connection.execute(sa.select(tasks).where(tasks.c.task_id == task_id))
                    task = found.mappings().first()
                    cache[task_id] = {} if task is None else self._task(dict(task))
                file = {"file_id": row["file_id"], "lfn": row["lfn"]}
                try:
                    record = job_record(dict(row), cache[task_id], file)
                    if for_idds and row["status"] == row["file_status"] == "failed":
                        record["attemptNr"] = int(row["max_attempt"])
                except _UNREADABLE as error:
                    record = _marked_job(dict(row), error)
                records[int(row["panda_id"])] = record
        return records

    def job_ids(self, task_id: int) -> list[int]:
        """List all jobs of a task, attempts included."""
        query = sa.select(jobs.c.panda_id).where(jobs.c.task_id == task_id).order_by(jobs.c.panda_id)
        with self._database.reading() as connection:
            return list(connection.execute(query).scalars())

    def job_states(self, panda_ids: Iterable[int]) -> list[dict[str, Any]]:
        """Return status and pending command of jobs."""
        return [
            {"status": record["jobStatus"], "command": record["commandToPilot"]}
            if record
            else {"status": "notfound", "command": None}
            for record in self.jobs(panda_ids)
        ]

    def event_states(self, pairs: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return the results of the payloads of event service jobs, each named by ``task_id`` and
        ``panda_id``.
        """
        answer: dict[str, dict[str, Any]] = {}
        with self._database.reading() as connection:
            for pair in pairs:
                task_id, panda_id = int(pair["task_id"]), int(pair["panda_id"])
                # Payloads that an earlier attempt finished are not run again.
                input_id = sa.select(jobs.c.file_id).where(jobs.c.panda_id == panda_id).scalar_subquery()
                query = sa.select(events).where(
                    (events.c.panda_id == panda_id)
                    | ((events.c.file_id == input_id) & (events.c.status == "finished"))
                )
                for row in connection.execute(query):
                    name = f"{task_id}-1-{panda_id}-{row.number}-1"
                    state = {"status": row.status, "error": row.error, "dialog": row.dialog}
                    answer.setdefault(str(panda_id), {})[name] = state
        return answer

    def tasks_since(
        self, since: str | None, filters: Mapping[str, str], *, user: str, limit: int
    ) -> list[dict[str, Any]]:
        """Make the detailed records of tasks that have changed since a time, UTC, ``%Y-%m-%d %H:%M:%S``.

        ``filters`` has fields and values; a value with ``|`` is a regular
        expression. Only tasks of ``user`` are returned, unless that is empty: a filter does not widen that.
        """
        query = sa.select(tasks).where(tasks.c.user_name == user) if user else sa.select(tasks)
        if since:
            start = datetime.datetime.fromisoformat(since).replace(tzinfo=datetime.UTC)
            query = query.where(tasks.c.modified >= start.timestamp())
        columns = {"reqID": tasks.c.req_id, "jediTaskID": tasks.c.task_id}
        for name, column in columns.items():
            if name in filters and filters[name].isdigit():
                query = query.where(column == int(filters[name]))
        answer: list[dict[str, Any]] = []
        with self._database.reading() as connection:
            for row in connection.execute(query.order_by(tasks.c.task_id)).mappings():
                count = sa.select(files.c.status, sa.func.count()).where(files.c.task_id == row["task_id"])
                counts = {
                    item[0]: int(item[1]) for item in connection.execute(count.group_by(files.c.status))
                }
                try:
                    record = task_record(self._task(dict(row)), counts)
                except _UNREADABLE as error:
                    record = _marked_task(dict(row), error)
                if all(_matches(record.get(name), value) for name, value in filters.items()):
                    answer.append(record)
                if len(answer) >= limit:
                    break
        return answer

    def detailed_task(self, task_id: int) -> dict[str, Any] | None:
        """Make the detailed record of one task."""
        found = self.tasks_since(None, {"jediTaskID": str(task_id)}, user="", limit=1)
        return found[0] if found else None


def _utc(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")


def _matches(value: object, pattern: str) -> bool:
    text = "" if value is None else str(value)
    return text == pattern or ("|" in pattern and re.fullmatch(pattern, text) is not None)


@dataclass(frozen=True, slots=True)
class RunSummary:
    """Tasks and jobs of one run, that is, of one iDDS request."""

    run: int
    """Id of the iDDS request."""

    name: str
    user: str
    tasks: int
    ended: int
    """Tasks that have ended."""

    jobs: int
    """Inputs of its tasks, that is, jobs without counting attempts."""

    done: int
    failed: int
    cancelled: int
    pruned: int
    running: int
    """PanDA jobs that run now."""


def list_runs(
    database: Database, run_names: Callable[[Sequence[int]], Mapping[int, str]], *, limit: int = 20
) -> list[RunSummary]:
    """List the newest runs, newest first; ``run_names`` finds the names of iDDS's requests."""
    newest = sa.select(tasks.c.req_id).where(tasks.c.req_id.isnot(None)).distinct()
    newest = newest.order_by(tasks.c.req_id.desc()).limit(limit)
    answer = []
    with database.reading() as connection:
        requests = connection.execute(newest).scalars().all()
        names = run_names(requests)
        for run in requests:
            rows = connection.execute(
                sa.select(tasks.c.task_id, tasks.c.user_name, tasks.c.status).where(tasks.c.req_id == run)
            ).all()
            ids = [row.task_id for row in rows]
            query = sa.select(files.c.status, sa.func.count()).where(files.c.task_id.in_(ids))
            counts = {item[0]: int(item[1]) for item in connection.execute(query.group_by(files.c.status))}
            running = sa.select(sa.func.count()).where(jobs.c.task_id.in_(ids), jobs.c.status == "running")
            answer.append(
                RunSummary(
                    run=int(run),
                    name=names.get(run, ""),
                    user=rows[0].user_name,
                    tasks=len(rows),
                    ended=sum(row.status in FINAL_STATES for row in rows),
                    jobs=sum(counts.values()),
                    done=counts.get("finished", 0),
                    failed=counts.get("failed", 0),
                    cancelled=counts.get("cancelled", 0),
                    pruned=counts.get("missing", 0),
                    running=int(connection.execute(running).scalar_one()),
                )
            )
    return answer
