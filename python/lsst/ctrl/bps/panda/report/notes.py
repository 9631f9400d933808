"""The lines below a report: what is not known, errors, addresses of PanDA's monitor, what to do."""

from __future__ import annotations

__all__ = ["MonitorLinks", "add_notes"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lsst.ctrl.bps.wms_service import WmsSpecificInfo, WmsStates

from ..plan.naming import BUILD_LABEL
from ..status.evidence import RunEvidence, RunTally, waits_in_vain
from ..status.failures import (
    MEMORY_ADVICE,
    UNKNOWN_EXIT_CODE,
    ErrorDigest,
    Failure,
    digest_failures,
    is_memory_error,
    signal_name,
)
from ..status.states import TERMINAL, is_aborted, running_by_task


@dataclass(frozen=True, slots=True)
class MonitorLinks:
    """Pages of one PanDA monitor.

    Each method gives an address, or an empty text where no monitor is known.
    """

    base: str
    """Address of the monitor, for instance ``https://host:8443``; empty if
    there is none."""

    def tasks_of_run(self, request_id: int) -> str:
        """Page with the tasks of a run."""
        return self._page(f"tasks/?idds_request_id={request_id}")

    def progress_of_run(self, request_id: int) -> str:
        """Page with the progress of a run."""
        return self._page(f"idds/wfprogress/?requestid={request_id}")

    def task(self, task_id: int) -> str:
        """Page of a task."""
        return self._page(f"task/{task_id}/")

    def failed_jobs(self, task_id: int) -> str:
        """Page with the failed jobs of a task."""
        return self._page(f"jobs/?jeditaskid={task_id}&jobstatus=failed")

    def job(self, panda_id: int) -> str:
        """Page of a PanDA job."""
        return self._page(f"job/{panda_id}/")

    def _page(self, path: str) -> str:
        return f"{self.base.rstrip('/')}/{path}" if self.base else ""


_ERROR_LIMIT = 10
_TASK_LIMIT = 5
_DYING_TASKS = frozenset({"aborting", "toabort"})
_DIGEST_TEMPLATE = (
    "  {count} x {source} {code} ({text}) in {labels}; for instance {name}, PanDA job {job}, {log}"
)


def add_notes(
    info: WmsSpecificInfo,
    evidence: RunEvidence,
    tally: RunTally,
    failures: Sequence[Failure],
    links: MonitorLinks,
) -> None:
    """Add what a user wants to know besides the counts.

    Parameters
    ----------
    info : `lsst.ctrl.bps.WmsSpecificInfo`
        Lines are added to it; values are in its context too.
    evidence : `RunEvidence`
        What is known of the run.
    tally : `RunTally`
        Its counts.
    failures : `~collections.abc.Sequence` [`Failure`]
        Its failed jobs, as far as known.
    links : `MonitorLinks`
        Pages of the monitor.
    """
    _add_origin(info, evidence)
    _add_server_state(info, evidence, tally)
    _add_problems(info, evidence)
    _add_errors(info, tally, failures, links)
    _add_links(info, evidence, tally, links)
    _add_advice(info, evidence, tally, failures)


def _add_origin(info: WmsSpecificInfo, evidence: RunEvidence) -> None:
    if origin := evidence.attributes.origin:
        info.add_message(
            "This run completes run {origin}: it holds only what was not done there.", origin=origin
        )


def _add_server_state(info: WmsSpecificInfo, evidence: RunEvidence, tally: RunTally) -> None:
    request = evidence.request
    if not tally.ended and request.status in TERMINAL:
        info.add_message(
            "The server calls the run {request_status}, but {made} of {planned} tasks are there or not all of"
            " them have ended: it is not over yet.",
            request_status=request.status,
            made=len(evidence.transforms or ()),
            planned=evidence.planned_tasks or "an unknown number of",
        )
    if is_aborted(request):
        still = sum(running_by_task(evidence.jobs or ()).values())
        info.add_message("The run was cancelled.")
        if still:
            info.add_message(
                "{still_running} PanDA jobs still run: a pilot hears of it at its next heartbeat, up to 30"
                " minutes later.",
                still_running=still,
            )
        _add_tasks(info, evidence, "PanDA is still ending task", _DYING_TASKS)
    if request.errors:
        info.add_message("iDDS says: {idds_errors}", idds_errors=request.errors)
    _add_tasks(info, evidence, "Paused in PanDA: task", frozenset({"paused"}))


def _add_tasks(info: WmsSpecificInfo, evidence: RunEvidence, words: str, statuses: frozenset[str]) -> None:
    """Name the PanDA tasks that have one of the statuses."""
    found = [str(task.task_id) for task in evidence.tasks if task.status in statuses]
    if found:
        more = f" and {len(found) - _TASK_LIMIT} more" if len(found) > _TASK_LIMIT else ""
        key = f"{min(statuses)}_tasks"
        info.add_message(f"{words} {{{key}}}.", {key: ", ".join(found[:_TASK_LIMIT]) + more})


def _add_problems(info: WmsSpecificInfo, evidence: RunEvidence) -> None:
    for number, problem in enumerate(evidence.problems, start=1):
        key = f"problem_{number}"
        info.add_message(f"Not known: {{{key}}}", {key: problem})


def _add_errors(
    info: WmsSpecificInfo, tally: RunTally, failures: Sequence[Failure], links: MonitorLinks
) -> None:
    failed = tally.total[WmsStates.FAILED]
    if not failed:
        return
    if failures:
        info.add_message("Errors of {failed_jobs} failed jobs, most frequent first:", failed_jobs=failed)
    for number, digest in enumerate(digest_failures(failures, limit=_ERROR_LIMIT), start=1):
        _add_digest(info, number, digest, links)
    untold = failed - sum(failure.error.code != UNKNOWN_EXIT_CODE for failure in failures)
    if untold > 0:
        info.add_message(
            "The exit codes of {untold} failed jobs are not known; they are given as {unknown_code}.",
            untold=untold,
            unknown_code=UNKNOWN_EXIT_CODE,
        )


def _add_digest(info: WmsSpecificInfo, number: int, digest: ErrorDigest, links: MonitorLinks) -> None:
    example = digest.example
    log = example.log_url or (links.job(example.panda_id) if example.panda_id else "")
    values = {
        "count": digest.count,
        "source": digest.error.source,
        "code": digest.error.code,
        "text": digest.error.text or "no text",
        "labels": ", ".join(digest.labels),
        "name": example.name,
        "job": example.panda_id or "none",
        "log": log or "no log known",
    }
    context = {f"error_{number}_{key}": value for key, value in values.items()}
    info.add_message(_DIGEST_TEMPLATE.replace("{", f"{{error_{number}_"), context)


def _add_links(info: WmsSpecificInfo, evidence: RunEvidence, tally: RunTally, links: MonitorLinks) -> None:
    if not links.base:
        return
    info.add_message("Monitor: {monitor_run}", monitor_run=links.tasks_of_run(evidence.request.request_id))
    failed = [
        (-tally.by_transform[transform.transform_id][WmsStates.FAILED], transform.workload_id)
        for transform in evidence.transforms or ()
        if transform.workload_id and tally.by_transform[transform.transform_id][WmsStates.FAILED]
    ]
    failed.sort(key=lambda item: item[0])
    for number, (_, task_id) in enumerate(failed[:_TASK_LIMIT], start=1):
        key = f"monitor_failed_{number}"
        info.add_message(f"Failed jobs: {{{key}}}", {key: links.failed_jobs(task_id)})


def _add_advice(
    info: WmsSpecificInfo, evidence: RunEvidence, tally: RunTally, failures: Sequence[Failure]
) -> None:
    applies = [text for condition, text in _ADVICE if condition(evidence, tally, failures)]
    for number, text in enumerate(applies, start=1):
        key = f"advice_{number}"
        info.add_message(f"Next: {{{key}}}", {key: text.format(id=evidence.request.request_id)})


def _can_restart(evidence: RunEvidence, tally: RunTally, failures: Sequence[Failure]) -> bool:
    can = tally.ended and tally.state is not WmsStates.SUCCEEDED
    return can and not (_is_dying(evidence, tally, failures) or _has_no_plan(evidence, tally, failures))


def _has_no_plan(evidence: RunEvidence, tally: RunTally, failures: Sequence[Failure]) -> bool:
    """Tell whether the task that was to make the plan of the run at its site
    did not succeed.
    """
    build = tally.by_label.get(BUILD_LABEL)
    return tally.ended and build is not None and not build[WmsStates.SUCCEEDED]


def _is_dying(evidence: RunEvidence, tally: RunTally, failures: Sequence[Failure]) -> bool:
    """Tell whether killed jobs may still write their outputs."""
    if not tally.ended or not is_aborted(evidence.request):
        return False
    running = sum(running_by_task(evidence.jobs or ()).values())
    return running > 0 or any(task.status in _DYING_TASKS for task in evidence.tasks)


def _lacks_memory(evidence: RunEvidence, tally: RunTally, failures: Sequence[Failure]) -> bool:
    return any(is_memory_error(failure.error) for failure in failures)


def _is_killed(evidence: RunEvidence, tally: RunTally, failures: Sequence[Failure]) -> bool:
    return any(
        failure.error.source == "payload"
        and signal_name(failure.error.code) != ""
        and not is_memory_error(failure.error)
        for failure in failures
    )


def _is_infrastructure(evidence: RunEvidence, tally: RunTally, failures: Sequence[Failure]) -> bool:
    return any(failure.error.source not in ("payload", "unknown", "task") for failure in failures)


def _has_failed(evidence: RunEvidence, tally: RunTally, failures: Sequence[Failure]) -> bool:
    return tally.total[WmsStates.FAILED] > 0


def _goes_on(evidence: RunEvidence, tally: RunTally, failures: Sequence[Failure]) -> bool:
    return not tally.ended


def _waits_in_vain(evidence: RunEvidence, tally: RunTally, failures: Sequence[Failure]) -> bool:
    return waits_in_vain(evidence, tally)


def _still_fails(evidence: RunEvidence, tally: RunTally, failures: Sequence[Failure]) -> bool:
    return not tally.ended and tally.total[WmsStates.FAILED] > 0


_Condition = Callable[[RunEvidence, RunTally, Sequence[Failure]], bool]
_ADVICE: tuple[tuple[_Condition, str], ...] = (
    (_lacks_memory, f"some jobs ran out of memory: {MEMORY_ADVICE}."),
    (_is_killed, "some payloads were ended by a signal: look at their logs."),
    (
        _is_infrastructure,
        "some errors are not the payload's: if they come again, ask those who run the site or PanDA.",
    ),
    (_waits_in_vain, "bps cancel --id {id} once more: the last task waits for jobs that were killed."),
    (_goes_on, "panda_bps watch {id} shows the run live, until it has ended."),
    (_has_failed, "panda_bps errors {id} says why jobs failed, with the ends of their logs and what to do."),
    (_still_fails, "let the run end; then bps restart --id {id} runs again what failed."),
    (_is_dying, "wait until the last job has ended; then bps restart --id {id} runs again what was deleted."),
    (
        _has_no_plan,
        "the task that makes the plan of the run did not succeed, so there is nothing to restart: mend what "
        "it failed of, and submit the run once more.",
    ),
    (
        _can_restart,
        "bps restart --id {id} runs again what failed, was pruned or deleted, and then the final job.",
    ),
)
