"""The lines below a report: what is not known, errors, addresses of PanDA's monitor, what to do."""

from __future__ import annotations

__all__ = ["MonitorLinks", "add_notes"]

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter

from lsst.ctrl.bps.wms_service import WmsSpecificInfo, WmsStates

from ..plan.naming import BUILD_LABEL, printable_label
from ..status.evidence import RunEvidence
from ..status.failures import ErrorGroup, digest_errors, is_memory_error
from ..status.records import JobError, signal_name
from ..status.vocabulary import DYING_TASKS, MEMORY_ADVICE, PAUSED_TASKS, TERMINAL, UNKNOWN_EXIT_CODE


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

    def graph_of_run(self, request_id: int) -> str:
        """Page with the graph of a run's tasks."""
        return self._page(f"idds/daggraph/?idds_request_id={request_id}")

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
_DIGEST_TEMPLATE = (
    "  {count} x {source} {code} ({text}) in {labels}; for instance {name}, PanDA job {job}, {log}"
)


def add_notes(info: WmsSpecificInfo, evidence: RunEvidence, links: MonitorLinks) -> None:
    """Add to a report what a user wants to know besides the counts: lines,
    and their values in its context.
    """
    if origin := evidence.attributes.origin:
        info.add_message(
            "This run completes run {origin}: it holds only what was not done there.", origin=origin
        )
    _add_server_state(info, evidence)
    for number, problem in enumerate(evidence.problems, start=1):
        key = f"problem_{number}"
        info.add_message(f"Not known: {{{key}}}", {key: problem})
    _add_errors(info, evidence, links)
    _add_links(info, evidence, links)
    _add_advice(info, evidence)


def _add_server_state(info: WmsSpecificInfo, evidence: RunEvidence) -> None:
    request = evidence.request
    if not evidence.ended and request.status in TERMINAL:
        info.add_message(
            "The server calls the run {request_status}, but {made} of {planned} tasks are there or not all of"
            " them have ended: it is not over yet.",
            request_status=request.status,
            made=len(evidence.transforms or ()),
            planned=evidence.planned_tasks or "an unknown number of",
        )
    if evidence.aborted:
        info.add_message("The run was cancelled.")
        if still := evidence.running_jobs:
            info.add_message(
                "{still_running} PanDA jobs still run: a pilot hears of it at its next heartbeat, up to 30"
                " minutes later.",
                still_running=still,
            )
        _add_tasks(info, evidence, "PanDA is still ending task", DYING_TASKS)
    if request.errors:
        info.add_message("iDDS says: {idds_errors}", idds_errors=request.errors)
    _add_tasks(info, evidence, "Paused in PanDA: task", PAUSED_TASKS)


def _add_tasks(info: WmsSpecificInfo, evidence: RunEvidence, words: str, statuses: frozenset[str]) -> None:
    """Name the PanDA tasks that have one of the statuses."""
    found = [str(task.task_id) for task in evidence.tasks if task.status in statuses]
    if found:
        more = f" and {len(found) - _TASK_LIMIT} more" if len(found) > _TASK_LIMIT else ""
        key = f"{min(statuses)}_tasks"
        info.add_message(f"{words} {{{key}}}.", {key: ", ".join(found[:_TASK_LIMIT]) + more})


def _add_errors(info: WmsSpecificInfo, evidence: RunEvidence, links: MonitorLinks) -> None:
    failed = evidence.tally.total[WmsStates.FAILED]
    if not failed:
        return
    if evidence.failures:
        info.add_message("Errors of {failed_jobs} failed jobs, most frequent first:", failed_jobs=failed)
    groups = digest_errors(evidence, by_label=False)
    for number, group in enumerate(groups[:_ERROR_LIMIT], start=1):
        _add_group(info, number, group, links)
    untold = failed - sum(error.code != UNKNOWN_EXIT_CODE for error in _told(evidence))
    if untold > 0:
        info.add_message(
            "The exit codes of {untold} failed jobs are not known; they are given as {unknown_code}.",
            untold=untold,
            unknown_code=UNKNOWN_EXIT_CODE,
        )


def _told(evidence: RunEvidence) -> Iterator[JobError]:
    """Yield the error that is told of each failed job."""
    return (failure.errors[0] for failure in evidence.failures)


def _add_group(info: WmsSpecificInfo, number: int, group: ErrorGroup, links: MonitorLinks) -> None:
    example, error = group.example, group.error
    assert example is not None
    log = example.log_url or (links.job(example.panda_id) if example.panda_id else "")
    values = {
        "count": group.attempts,
        "source": error.source,
        "code": error.code,
        "text": group.text or "no text",
        "labels": printable_label(group.label),
        "name": example.name,
        "job": example.panda_id or "none",
        "log": log or "no log known",
    }
    context = {f"error_{number}_{key}": value for key, value in values.items()}
    info.add_message(_DIGEST_TEMPLATE.replace("{", f"{{error_{number}_"), context)


def _add_links(info: WmsSpecificInfo, evidence: RunEvidence, links: MonitorLinks) -> None:
    if not links.base:
        return
    info.add_message("Monitor: {monitor_run}", monitor_run=links.tasks_of_run(evidence.request_id))
    by_transform = evidence.tally.by_transform
    failed = [
        (-by_transform[transform.transform_id][WmsStates.FAILED], transform.workload_id)
        for transform in evidence.transforms or ()
        if transform.workload_id and by_transform[transform.transform_id][WmsStates.FAILED]
    ]
    failed.sort(key=lambda item: item[0])
    for number, (_, task_id) in enumerate(failed[:_TASK_LIMIT], start=1):
        key = f"monitor_failed_{number}"
        info.add_message(f"Failed jobs: {{{key}}}", {key: links.failed_jobs(task_id)})


def _add_advice(info: WmsSpecificInfo, evidence: RunEvidence) -> None:
    applies = [text for condition, text in _ADVICE if condition(evidence)]
    for number, text in enumerate(applies, start=1):
        key = f"advice_{number}"
        info.add_message(f"Next: {{{key}}}", {key: text.format(id=evidence.request_id)})


def _can_restart(evidence: RunEvidence) -> bool:
    can = evidence.ended and evidence.tally.state is not WmsStates.SUCCEEDED
    return can and not (_is_dying(evidence) or _has_no_plan(evidence))


def _has_no_plan(evidence: RunEvidence) -> bool:
    """Whether the task that was to make the plan of the run at its site did
    not succeed.
    """
    build = evidence.tally.by_label.get(BUILD_LABEL)
    return evidence.ended and build is not None and not build[WmsStates.SUCCEEDED]


def _is_dying(evidence: RunEvidence) -> bool:
    """Whether killed jobs may still write their outputs."""
    if not evidence.ended or not evidence.aborted:
        return False
    return evidence.running_jobs > 0 or any(task.status in DYING_TASKS for task in evidence.tasks)


def _lacks_memory(evidence: RunEvidence) -> bool:
    return any(is_memory_error(failure.errors) for failure in evidence.failures)


def _is_killed(evidence: RunEvidence) -> bool:
    return any(
        failure.errors[0].source == "payload"
        and signal_name(failure.errors[0].code) != ""
        and not is_memory_error(failure.errors)
        for failure in evidence.failures
    )


def _is_infrastructure(evidence: RunEvidence) -> bool:
    return any(error.source not in ("payload", "unknown", "task") for error in _told(evidence))


def _has_failed(evidence: RunEvidence) -> bool:
    return evidence.tally.total[WmsStates.FAILED] > 0


_Condition = Callable[[RunEvidence], bool]
_ADVICE: tuple[tuple[_Condition, str], ...] = (
    (_lacks_memory, f"some jobs ran out of memory: {MEMORY_ADVICE}."),
    (_is_killed, "some payloads were ended by a signal: look at their logs."),
    (
        _is_infrastructure,
        "some errors are not the payload's: if they come again, ask those who run the site or PanDA.",
    ),
    (
        attrgetter("waits_in_vain"),
        "bps cancel --id {id} once more: the last task waits for jobs that were killed.",
    ),
    (lambda evidence: not evidence.ended, "panda_bps watch {id} shows the run live, until it has ended."),
    (_has_failed, "panda_bps errors {id} says why jobs failed, with the ends of their logs and what to do."),
    (
        lambda evidence: _has_failed(evidence) and not evidence.ended,
        "let the run end; then bps restart --id {id} runs again what failed.",
    ),
    (_is_dying, "wait until the last job has ended; then bps restart --id {id} runs again what was deleted."),
    (
        _has_no_plan,
        "the task that makes the plan of the run did not succeed, so there is nothing to restart: fix the "
        "cause, and submit the run once more.",
    ),
    (
        _can_restart,
        "bps restart --id {id} runs again what failed, was pruned or deleted, and then the final job.",
    ),
)
