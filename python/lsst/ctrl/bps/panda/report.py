"""What BPS prints about runs: a report of one run with notes below it, the list
of runs, and the state of one run, made of what iDDS and PanDA replied.

Nothing here asks a server, a clock or a file.  What could not be fetched is
said in the report; it never prevents it.
"""

from __future__ import annotations

__all__ = [
    "FILTER_KEYS",
    "LISTED_JOBS",
    "MonitorLinks",
    "describe_counts",
    "describe_successor",
    "fits_filters",
    "get_status_of",
    "list_notes",
    "make_run_list",
    "make_run_report",
    "parse_filters",
]

import dataclasses
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import islice
from operator import attrgetter
from typing import Protocol

from lsst.ctrl.bps.wms_service import WmsJobReport, WmsRunReport, WmsSpecificInfo, WmsStates

from .errors import SettingsError
from .plan.model import TaskPlan
from .plan.naming import BUILD_LABEL, printable, printable_label
from .status.bps_states import Counts, sum_counts, was_killed
from .status.evidence import RunEvidence, RunTally
from .status.failures import (
    EndReader,
    ErrorGroup,
    add_verdicts,
    exit_codes,
    find_remarks,
    group_errors,
    is_memory_error,
    name_examples,
)
from .status.job_errors import signal_name
from .status.records import ContentRecord, JobRecord, TransformRecord, describe_data
from .status.verdicts import PACKAGED_RULES
from .status.vocabulary import (
    CANCELLING_TASKS,
    CONTENT_STATUSES,
    MEMORY_ADVICE,
    TERMINAL_STATUSES,
    UNKNOWN_EXIT_CODE,
    ContentPhase,
    is_running,
)

FILTER_KEYS = {
    "name": "name of the run",
    "operator": "who submitted it",
    "project": "project (25 characters are kept)",
    "campaign": "campaign (50 characters are kept)",
    "payload": "name of the payload",
    "state": "state of the run, for instance RUNNING or FAILED",
    "site": "computing site",
}
"""Documented filters and what they look at."""

_ALIASES = {"run": "name", "user": "operator"}
# BPS has the field since 30.2026.4300.
_HAS_SITE = "site" in {field.name for field in dataclasses.fields(WmsRunReport)}


def parse_filters(text: str | None) -> dict[str, list[str]]:
    """Read the filters of ``--pass-thru``: ``key=value`` pairs with blanks between them.

    The result has the patterns of each key.  A value may be quoted and may hold ``*``, ``?`` and ``[...]``;
    values of the same key are alternatives.  What is not understood is a `SettingsError` that lists the keys.
    """
    patterns: dict[str, list[str]] = {}
    try:
        words = shlex.split(text or "")
    except ValueError as error:
        raise SettingsError(f"The filters {text!r} are not understood: {error}. {_usage()}") from None
    for word in words:
        key, equals, value = word.partition("=")
        key = _ALIASES.get(key.lower(), key.lower())
        if not equals:
            raise SettingsError(f"The filter {word!r} is not of the form key=value. {_usage()}")
        if key not in FILTER_KEYS:
            raise SettingsError(f"There is no filter {key!r}. {_usage()}")
        patterns.setdefault(key, []).append(_state_pattern(value) if key == "state" else value)
    return patterns


def fits_filters(fields: Mapping[str, str], filters: Mapping[str, Sequence[str]]) -> bool:
    """Whether a run with these values by filter key is wanted: all keys must match, one pattern of each."""
    return all(
        any(fnmatchcase(fields.get(key, ""), printable(pattern)) for pattern in patterns)
        for key, patterns in filters.items()
    )


def _state_pattern(value: str) -> str:
    """Check that a pattern for states matches at least one."""
    pattern = value.upper()
    states = [state.name for state in WmsStates]
    if not any(fnmatchcase(state, pattern) for state in states):
        raise SettingsError(f"No state matches {value!r}. States: {', '.join(states)}.")
    return pattern


def _usage() -> str:
    keys = "; ".join(f"{key} ({meaning})" for key, meaning in FILTER_KEYS.items())
    return f"Filters are key=value pairs, values may hold * and ?: {keys}."


LISTED_JOBS = 3000
"""Most jobs that a report lists: of a larger run the special, failed and held ones."""


class KnownJobs(Protocol):
    """What the files of a run know of its jobs."""

    def tasks(self, names: Collection[str]) -> Mapping[str, TaskPlan]:
        """Return tasks of the plan by their names, as far as they are known."""

    def identify(self, jobs: Sequence[JobRecord]) -> Sequence[JobRecord]:
        """Add names and data IDs to jobs, as far as they are known."""


class _UnknownJobs:
    """A run whose files are not at hand."""

    def tasks(self, names: Collection[str]) -> Mapping[str, TaskPlan]:
        return {}

    def identify(self, jobs: Sequence[JobRecord]) -> Sequence[JobRecord]:
        return jobs


def make_run_report(
    evidence: RunEvidence,
    *,
    monitor_url: str = "",
    return_exit_codes: bool = True,
    known: KnownJobs = _UnknownJobs(),  # noqa: B008, nothing is in it
    find_attempts: Callable[[Sequence[JobRecord]], Sequence[JobRecord]] = list,
    read_end: EndReader | None = None,
) -> WmsRunReport:
    """Make the report of one run: all 11 states for each label, labels in
    pipeline order, the jobs, and in ``specific_info`` errors, links and what to do next.

    Failed jobs whose exit code no server could tell have `UNKNOWN_EXIT_CODE`.  ``find_attempts`` replaces
    failed jobs by the attempts that tell why, and ``read_end`` reads the ends of their logs.
    """
    report = _bare_report(evidence)
    report.jobs = list(_list_jobs(evidence, known))
    report.job_summary = _job_summary(evidence.tally)
    if return_exit_codes:
        report.exit_code_summary = _exit_codes(evidence)
    info = WmsSpecificInfo()
    groups = group_errors(evidence, by_label=False)[:_ERROR_LIMIT] if _has_failed(evidence) else []
    groups = name_examples(groups, lambda examples: known.identify(find_attempts(examples)))
    groups = add_verdicts(groups, PACKAGED_RULES, read_tail=read_end)
    _add_notes(info, evidence, MonitorLinks(monitor_url), groups)
    report.specific_info = WmsSpecificInfo()
    context = {key: printable(v) if isinstance(v, str) else v for key, v in info.context.items()}
    for template in info.templates:
        report.specific_info.add_message(template, context)
    return report


_LIKELY: dict[ContentPhase, tuple[WmsStates, ...]] = {
    ContentPhase.DONE: (WmsStates.SUCCEEDED,),
    ContentPhase.FAILED: (WmsStates.FAILED,),
    ContentPhase.RETRIED: (WmsStates.PENDING, WmsStates.FAILED, WmsStates.RUNNING),
    ContentPhase.OTHER: (WmsStates.PRUNED, WmsStates.DELETED),
}
"""States of a job by what the status of its content says, the likeliest first."""

_OPEN = (WmsStates.RUNNING, WmsStates.PENDING, WmsStates.READY, WmsStates.UNREADY)
_LIKELY_OPEN: dict[str, tuple[WmsStates, ...]] = {"Processing": _OPEN, "New": _OPEN[::-1]}
"""The same for jobs that wait or run, by the status of the content."""


_LISTED_STATES = (WmsStates.FAILED, WmsStates.HELD)


def _list_jobs(evidence: RunEvidence, known: KnownJobs) -> Iterable[WmsJobReport]:
    """List the jobs of a run, each with a state such that there are as many in each state as are counted;
    of a large run the special ones, and the failed and held ones as far as contents tell them.
    """
    tasks = list(_count_tasks(evidence))
    special = {
        "pipetaskInit",
        "finalJob",
        BUILD_LABEL,
        *(evidence.plan.final_labels if evidence.plan else ()),
    }
    everything = evidence.tally.job_count <= LISTED_JOBS
    if not everything:
        tasks = [task for task in tasks if task.label in special or task.is_told(evidence)]
        tasks.sort(key=lambda task: task.label not in special)
    # In a large run nobody should wait for the plan because of jobs that are called like their labels.
    plans = known.tasks(
        {task.name for task in tasks if task.name and (everything or task.label not in special)}
    )
    running = {
        (job.task_id, job.name): str(job.panda_id) for job in evidence.jobs or () if is_running(job.status)
    }
    jobs = (
        job
        for task in tasks
        for job in _jobs_of(evidence, task, plans.get(task.name), running)
        if everything or task.label in special or job.state in _LISTED_STATES
    )
    return islice(jobs, LISTED_JOBS)


@dataclasses.dataclass(frozen=True, slots=True)
class _TaskCounts:
    """The jobs of a task, or those of a label that are in none."""

    label: str
    name: str
    counts: Counts
    transform: TransformRecord | None = None

    def is_told(self, evidence: RunEvidence) -> bool:
        """Whether it has failed or held jobs, and it is known which these are."""
        told = self.transform is not None and self.transform.transform_id in evidence.contents
        told |= sum(number > 0 for number in self.counts.values()) == 1
        return told and any(self.counts[state] for state in _LISTED_STATES)


def _count_tasks(evidence: RunEvidence) -> Iterator[_TaskCounts]:
    """Yield the counts of tasks, label by label, which add up to those of the run."""
    tally = evidence.tally
    transforms: dict[str, list[TransformRecord]] = {}
    for transform in evidence.transforms or ():
        transforms.setdefault(tally.labels[transform.transform_id], []).append(transform)
    planned: dict[str, list[tuple[str, int]]] = {}
    for name, label, jobs in evidence.plan.tasks if evidence.plan else ():
        planned.setdefault(label, []).append((name, jobs))
    for label, counts in tally.by_label.items():
        rest = dict(counts)
        made = set()
        for transform in transforms.get(label, ()):
            own = tally.by_transform[transform.transform_id]
            rest = {state: number - own[state] for state, number in rest.items()}
            made.add(transform.name)
            yield _TaskCounts(label, transform.name, own, transform)
        for name, jobs in planned.get(label, ()):
            if name not in made:
                own = _take(rest, jobs)
                yield _TaskCounts(label, name, own)
        yield _TaskCounts(label, "", rest)


def _take(counts: Counts, number: int) -> Counts:
    """Take so many jobs out of counts, in place; return them by their states."""
    taken = {}
    for state in counts:
        taken[state] = max(0, min(number, counts[state]))
        counts[state] -= taken[state]
        number -= taken[state]
    return taken


def _jobs_of(
    evidence: RunEvidence, task: _TaskCounts, plan: TaskPlan | None, running: Mapping[tuple[int, str], str]
) -> Iterator[WmsJobReport]:
    """List the jobs of a task: contents and PanDA say which is in which state, as far as counts allow."""
    transform = task.transform
    contents = {c.name: c for c in evidence.contents.get(transform.transform_id, ())} if transform else {}
    task_id = transform.workload_id if transform else 0
    names = {job.pseudo_input: job.name for job in plan.jobs} if plan else {name: name for name in contents}
    total = sum(task.counts.values())
    inputs = [*names][:total]
    left = dict(task.counts)
    states: dict[str, WmsStates] = {}
    for certain in (True, False):
        for name in inputs:
            runs = (task_id, name) in running
            likely = (WmsStates.RUNNING,) if runs else _likely_states(evidence, contents.get(name))
            for state in likely[:1] if certain else likely:
                if name not in states and left.get(state):
                    states[name] = state
                    left[state] -= 1
    others = (state for state, number in left.items() for _ in range(number))
    for name in inputs:
        content = contents.get(name)
        panda_id = running.get((task_id, name)) or (str(content.panda_id or "") if content else "")
        state = states.get(name) or next(others)
        yield WmsJobReport(panda_id, names[name], printable_label(task.label), state)
    for number, state in enumerate(others, len(inputs) + 1):
        # A job that only counts tell of; the special ones are called like their labels.
        name = task.label if total == 1 else f"{task.label} ({number})"
        yield WmsJobReport("", name, printable_label(task.label), state)


def _likely_states(evidence: RunEvidence, content: ContentRecord | None) -> tuple[WmsStates, ...]:
    """Return the states that a job may be in by its content, the likeliest first."""
    if content is None:
        return ()
    if evidence.aborted and was_killed(content):
        return (WmsStates.DELETED, WmsStates.FAILED)
    phase = CONTENT_STATUSES.get(content.status, ContentPhase.OTHER)
    return _LIKELY.get(phase) or _LIKELY_OPEN.get(content.status, (WmsStates.PENDING, *_OPEN))


def make_run_list(
    evidences: Iterable[RunEvidence], *, filters: Mapping[str, Sequence[str]] | None = None
) -> list[WmsRunReport]:
    """Make the list of runs, or of those that filters want, newest last."""
    reports = []
    for evidence in sorted(evidences, key=lambda item: item.request_id):
        # Of a copy, so that a long list does not keep what is worked out for each run.
        report = _bare_report(dataclasses.replace(evidence))
        if fits_filters(_filter_fields(evidence, report), filters or {}):
            reports.append(report)
    return reports


def list_notes(evidences: Sequence[RunEvidence], *, days: float, user: str | None = None) -> list[str]:
    """Say what the list of runs has no column for: which run completes which,
    what could not be found out, and where to look further if there are no runs.
    """
    if not evidences:
        whose = f" of {user}" if user else ""
        return [
            f"No runs{whose} in the last {days:g} days. Look further back with --hist DAYS, for one run with "
            "--id, for those of others with --user or --global."
        ]
    notes = []
    for evidence in sorted(evidences, key=lambda item: item.request_id):
        number = evidence.request_id
        if origin := evidence.attributes.origin:
            notes.append(f"Run {number} completes run {origin}.")
        notes += [f"Run {number}: {problem}" for problem in evidence.problems]
    return notes


def get_status_of(evidence: RunEvidence) -> tuple[WmsStates, str]:
    """Return the state of one run, the same as the report gives, and what is out of the ordinary or not
    known: empty where there is nothing to say, since BPS logs it as a warning.

    Contents and PanDA's jobs do not matter.
    """
    lines: list[str] = []
    if not evidence.ended and evidence.aborted:
        lines.append("It was cancelled and is not over yet.")
    elif not evidence.ended and evidence.request.status in TERMINAL_STATUSES:
        lines.append(f"The server calls it {evidence.request.status} already, but it is not over yet.")
    lines += filter(None, (describe_successor(evidence), *find_remarks(evidence), *evidence.problems))
    return evidence.tally.state, "\n".join(lines)


def describe_successor(evidence: RunEvidence) -> str:
    """Say which run completes a run that was restarted, and its state; empty for others."""
    new = evidence.successor
    if new is None:
        return ""
    state = new.tally.state.name
    old, number = evidence.request_id, new.request_id
    return f"Run {old} was restarted: run {number} ({new.name}) completes it, and is {state}."


def describe_counts(evidence: RunEvidence) -> str:
    """Say in one line how many jobs are in which state."""
    total = evidence.tally.total
    counts = ", ".join(f"{number} {state.name}" for state, number in total.items() if number)
    return f"Run {evidence.request_id}: {counts or 'no jobs known yet'}."


def _bare_report(evidence: RunEvidence) -> WmsRunReport:
    """Make a report as the list of runs needs it."""
    tally, attributes = evidence.tally, evidence.attributes
    request_id = str(evidence.request_id)
    report = WmsRunReport(
        wms_id=request_id,
        global_wms_id=request_id,
        path=evidence.path.encode("ascii", "backslashreplace").decode(),
        label=printable(attributes.payload),
        run=printable(attributes.name),
        project=printable(attributes.project),
        campaign=printable(attributes.campaign),
        payload=printable(attributes.payload),
        operator=printable(attributes.operator),
        run_summary=";".join(
            f"{label}:{sum(counts.values())}" for label, counts in _job_summary(tally).items()
        ),
        state=tally.state,
        jobs=[],
        total_number_jobs=tally.job_count,
        job_state_counts=dict(tally.total),
        job_summary={},
    )
    if _HAS_SITE:
        report.site = printable(evidence.site)
    return report


def _job_summary(tally: RunTally) -> dict[str, Counts]:
    """Give the counts by label as BPS can print it; labels that become the same are added up."""
    summary: dict[str, Counts] = {}
    for label, counts in tally.by_label.items():
        printed = printable_label(label)
        summary[printed] = sum_counts((summary.get(printed, {}), counts))
    return summary


def _exit_codes(evidence: RunEvidence) -> dict[str, list[int]]:
    """Give the exit codes by label as BPS can print it."""
    failed = {label: counts[WmsStates.FAILED] for label, counts in evidence.tally.by_label.items()}
    codes: dict[str, list[int]] = {}
    for label, found in exit_codes(failed, evidence.failures).items():
        codes[printable_label(label)] = sorted(codes.get(printable_label(label), []) + found)
    return codes


def _filter_fields(evidence: RunEvidence, report: WmsRunReport) -> Mapping[str, str]:
    return {
        "name": report.run or "",
        "operator": report.operator or "",
        "project": report.project or "",
        "campaign": report.campaign or "",
        "payload": report.payload or "",
        "state": report.state.name if report.state is not None else "",
        "site": printable(evidence.site),
    }


@dataclasses.dataclass(frozen=True, slots=True)
class MonitorLinks:
    """Pages of one PanDA monitor.

    Each method gives an address, or an empty text where no monitor is known.
    """

    base: str
    """Address of the monitor, for instance ``https://host:8443``; empty if there is none."""

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
_DIGEST = (
    "  {exception}",
    "    {count} x {labels} ({verdict}); for instance {title}, PanDA job {job}",
    "    {error} ({text}), {log}",
)


def _add_notes(
    info: WmsSpecificInfo, evidence: RunEvidence, links: MonitorLinks, groups: Sequence[ErrorGroup]
) -> None:
    """Add to a report what a user wants to know besides counts: lines, and their values in its context."""
    if origin := evidence.attributes.origin:
        info.add_message(
            "This run completes run {origin}: it holds only what was not done there.", origin=origin
        )
    if restarted := describe_successor(evidence):
        info.add_message("{successor}", successor=restarted)
    _add_server_state(info, evidence)
    for number, remark in enumerate(find_remarks(evidence), start=1):
        key = f"remark_{number}"
        info.add_message(f"{{{key}}}", {key: remark})
    for number, problem in enumerate(evidence.problems, start=1):
        key = f"problem_{number}"
        info.add_message(f"Not known: {{{key}}}", {key: problem})
    _add_errors(info, evidence, links, groups)
    _add_links(info, evidence, links)
    new_id = evidence.successor.request_id if evidence.successor else 0
    applies = [text for condition, text in _ADVICE if condition(evidence)]
    for number, text in enumerate(applies, start=1):
        key = f"advice_{number}"
        info.add_message(f"Next: {{{key}}}", {key: text.format(id=evidence.request_id, new_id=new_id)})


def _add_server_state(info: WmsSpecificInfo, evidence: RunEvidence) -> None:
    request = evidence.request
    if not evidence.ended and request.status in TERMINAL_STATUSES:
        info.add_message(
            "The server calls the run {request_status}, but {made} of {planned} tasks are there or not all of"
            " them have ended: it is not over yet.",
            request_status=request.status,
            made=len(evidence.transforms or ()),
            planned=evidence.planned_tasks or "an unknown number of",
        )
    if evidence.aborted:
        info.add_message("The run was cancelled.")
        if outliving := evidence.outliving_jobs:
            info.add_message(
                "{still_running} PanDA jobs still run (task {still_running_tasks}): a pilot hears of it at "
                "its next heartbeat, up to 30 minutes later.",
                still_running=sum(outliving.values()),
                still_running_tasks=", ".join(map(str, outliving)),
            )
        for task, label in evidence.task_labels.items():
            if label in evidence.final_labels and not evidence.ended:
                info.add_message(
                    f"The final job {{final_job_{task}}} runs although the run was cancelled: iDDS starts it "
                    "all the same.",
                    {f"final_job_{task}": f"{label} (PanDA task {task})"},
                )
        _add_tasks(info, evidence, "PanDA is still ending task", CANCELLING_TASKS)
    if request.errors:
        info.add_message("iDDS says: {idds_errors}", idds_errors=request.errors)


def _add_tasks(info: WmsSpecificInfo, evidence: RunEvidence, words: str, statuses: frozenset[str]) -> None:
    """Name the PanDA tasks that have one of the statuses."""
    found = [str(task.task_id) for task in evidence.tasks if task.status in statuses]
    if found:
        more = f" and {len(found) - _TASK_LIMIT} more" if len(found) > _TASK_LIMIT else ""
        key = f"{min(statuses)}_tasks"
        info.add_message(f"{words} {{{key}}}.", {key: ", ".join(found[:_TASK_LIMIT]) + more})


def _add_errors(
    info: WmsSpecificInfo, evidence: RunEvidence, links: MonitorLinks, groups: Sequence[ErrorGroup]
) -> None:
    failed = evidence.tally.total[WmsStates.FAILED]
    if not failed:
        return
    if evidence.failures:
        jobs = "job" if failed == 1 else "jobs"
        info.add_message(f"Why {{failed_jobs}} {jobs} failed, most frequent first:", failed_jobs=failed)
    for number, group in enumerate(groups, start=1):
        _add_group(info, number, group, links)
    untold = failed - sum(failure.errors[0].code != UNKNOWN_EXIT_CODE for failure in evidence.failures)
    by_transform = evidence.tally.by_transform
    untold -= sum(by_transform[item.transform_id][WmsStates.FAILED] for item in evidence.never_submitted)
    if untold > 0:
        info.add_message(
            "The exit codes of {untold} failed jobs are not known; they are given as {unknown_code}.",
            untold=untold,
            unknown_code=UNKNOWN_EXIT_CODE,
        )


def _add_group(info: WmsSpecificInfo, number: int, group: ErrorGroup, links: MonitorLinks) -> None:
    example, error = group.example, group.error
    assert example is not None
    log = example.log_url or (links.job(example.panda_id) if example.panda_id else "")
    values = {
        "exception": group.exception,
        "verdict": group.verdict.name,
        "count": group.attempts,
        "error": error.title,
        "source": error.source,
        "code": error.code,
        "text": group.text or "no text",
        "labels": printable_label(group.label),
        "name": example.name,
        "bps_name": example.bps_name,
        "data": describe_data(example.data),
        "title": example.title,
        "job": example.panda_id or "none",
        "log": log or "no log known",
    }
    context = {f"error_{number}_{key}": value for key, value in values.items()}
    for line in _DIGEST:
        info.add_message(line.replace("{", f"{{error_{number}_"), context)
    for count, other in enumerate(group.others, start=1):
        key = f"error_{number}_other_{count}"
        said = {
            key: other.exception,
            f"{key}_title": other.job.title,
            f"{key}_job": other.job.panda_id or "none",
        }
        info.add_message(f"  also {{{key}}}", said)
        info.add_message(f"    for instance {{{key}_title}}, PanDA job {{{key}_job}}", said)


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


def _can_restart(evidence: RunEvidence) -> bool:
    can = evidence.ended and evidence.tally.state is not WmsStates.SUCCEEDED
    return can and not (_is_dying(evidence) or _has_no_plan(evidence) or evidence.successor)


def _has_no_plan(evidence: RunEvidence) -> bool:
    """Whether the task that was to make the plan of the run at its site did not succeed."""
    build = evidence.tally.by_label.get(BUILD_LABEL)
    return evidence.ended and build is not None and not build[WmsStates.SUCCEEDED]


def _is_dying(evidence: RunEvidence) -> bool:
    """Whether killed jobs may still write their outputs."""
    if not evidence.ended or not evidence.aborted:
        return False
    return evidence.running_jobs > 0 or any(task.status in CANCELLING_TASKS for task in evidence.tasks)


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
    ours = ("payload", "unknown", "task")
    return any(failure.errors[0].source not in ours for failure in evidence.failures)


def _has_failed(evidence: RunEvidence) -> bool:
    return evidence.tally.total[WmsStates.FAILED] > 0


_ADVICE: tuple[tuple[Callable[[RunEvidence], bool], str], ...] = (
    (_lacks_memory, f"some jobs ran out of memory: {MEMORY_ADVICE}."),
    (_is_killed, "some payloads were ended by a signal: look at their logs."),
    (
        _is_infrastructure,
        "some errors are not the payload's: if they come again, ask those who run the site or PanDA.",
    ),
    (
        attrgetter("is_stuck"),
        "bps cancel --id {id} once more: the last task waits for jobs that were killed.",
    ),
    (lambda evidence: not evidence.ended, "panda_bps watch {id} shows the run live, until it has ended."),
    (_has_failed, "panda_bps errors {id} says why jobs failed, with the ends of their logs and what to do."),
    (
        lambda evidence: _has_failed(evidence) and not evidence.ended,
        "let the run end; then bps restart --id {id} runs again what failed.",
    ),
    (_is_dying, "wait until the last job has ended; then bps restart --id {id} runs again what was deleted."),
    (attrgetter("successor"), "bps report --id {new_id} shows the run that completes this one."),
    (
        _has_no_plan,
        "the task that makes the plan of the run did not succeed, so there is nothing to restart: if it was "
        "not cancelled, fix the cause, and submit the run once more.",
    ),
    (
        _can_restart,
        "bps restart --id {id} runs again what failed, was pruned or deleted, and then the final job.",
    ),
)
