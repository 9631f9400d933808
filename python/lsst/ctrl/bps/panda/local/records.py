"""Records of jobs and tasks as PanDA's API gives them (panda-server 1.0.4):
all fields, in JSON-ready form.
"""

from __future__ import annotations

__all__ = (
    "job_record",
    "moment",
    "task_record",
)

import datetime
import json
from collections.abc import Mapping
from typing import Any

# Fields of PanDA's JobSpec that the embedded PanDA does not fill otherwise.
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
"""PanDA's number of an event service job with fine-grained processing."""

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


def moment(seconds: float | None) -> dict[str, str] | None:
    """Render a time the way PanDA's API does: UTC without a zone."""
    if seconds is None:
        return None
    value = datetime.datetime.fromtimestamp(seconds, datetime.UTC).replace(tzinfo=None)
    return {"__datetime__": value.isoformat()}


def _command(params: Mapping[str, Any]) -> str:
    return "".join(str(part.get("value", "")) for part in params.get("jobParameters") or [])


def job_record(job: Mapping[str, Any], task: Mapping[str, Any], file: Mapping[str, Any]) -> dict[str, Any]:
    """Make the record of a job.

    Parameters
    ----------
    job, task, file : `~collections.abc.Mapping`
        Rows of the job, its task (parameters as a mapping) and its input.

    Notes
    -----
    As in PanDA, ``maxAttempt`` of a job follows its own attempt number.
    """
    params = task["params"]
    record: dict[str, Any] = dict.fromkeys(_JOB_NULLS)
    record.update(dict.fromkeys(_JOB_ZEROS, 0))
    changed = moment(job["changed"])
    duration = (job["ended"] or 0.0) - (job["started"] or 0.0) if job["ended"] and job["started"] else None
    record.update(
        PandaID=job["panda_id"],
        schedulerID="local",
        creationTime=moment(job["created"]),
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
        startTime=moment(job["started"]),
        endTime=moment(job["ended"]),
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
    record.update(json.loads(job["detail"]))
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

    Parameters
    ----------
    task : `~collections.abc.Mapping`
        Row of the task, its parameters as a mapping.
    counts : `~collections.abc.Mapping` [`str`, `int`]
        Inputs by state.

    Notes
    -----
    As in PanDA, pruned (missing) inputs are not part of ``nFiles``.
    """
    params = task["params"]
    total = sum(counts.values()) - counts.get("missing", 0)
    good = counts.get("finished", 0)
    bad = counts.get("failed", 0)
    record: dict[str, Any] = dict.fromkeys(_TASK_NULLS)
    record.update(dict.fromkeys(_TASK_ZEROS, 0))
    record.update({name: params.get(name) for name in _TASK_FROM_PARAMS})
    record.update(
        jediTaskID=task["task_id"],
        taskName=task["name"],
        status=task["status"],
        superStatus=task["status"],
        userName=task["user_name"],
        creationDate=moment(task["created"]),
        modificationTime=moment(task["modified"]),
        stateChangeTime=moment(task["modified"]),
        startTime=moment(task["started"]),
        endTime=moment(task["ended"]),
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
