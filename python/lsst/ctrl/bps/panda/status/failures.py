"""Why jobs of a run failed: one group for each kind of error, with what is known of where and when it
happened.  How a single error is worded is in `~.job_errors`.
"""

from __future__ import annotations

__all__ = [
    "EndReader",
    "ErrorGroup",
    "OtherFailure",
    "add_verdicts",
    "exit_codes",
    "find_remarks",
    "group_errors",
    "is_memory_error",
    "name_examples",
    "signature_of",
]

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeAlias

from lsst.ctrl.bps.wms_service import WmsStates

from ..plan.naming import BUILD_TASK, split_server_name
from .bps_states import has_kill_code
from .evidence import RunEvidence
from .job_errors import JobError, choose_error
from .records import JobRecord, TaskRecord, render_count
from .verdicts import Rulebook, Verdict
from .vocabulary import (
    BROKERAGE_WORDS,
    NEVER_RAN,
    OUT_OF_MEMORY,
    PAUSED_TASKS,
    REQUESTED,
    RULES,
    TASK_STATUSES,
    UNKNOWN_EXIT_CODE,
    WAITS_FOR_PARENTS,
)

_TEXT_LIMIT = 300
_LINE_LIMIT = 160
_PLACES = 5
_SAMPLES = 4
"""Further logs of a kind of error that are read for other exceptions."""
_PATIENCE = 30.0
"""What PanDA says of a task that is so young, s, may pass."""
_LONG = 3600.0
"""So long, s, jobs wait in a queue before it is told that it takes none."""
# No run is so large; a counter that is must not eat the memory.
_CODE_LIMIT = 10_000_000
_RUNNER = re.compile(r"runner: \d")
_NUMBERS = re.compile(r"0x[0-9a-fA-F]+|\d+")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|\{[^}]*\}")
_IDENTIFIERS = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")
_MEMORY_RULES = tuple(rule for rule in RULES if rule.verdict == OUT_OF_MEMORY and rule.codes)


EndReader: TypeAlias = Callable[[JobRecord], tuple[str | None, tuple[str, ...]]]
"""Gives the exception and the last lines of a job's log, `None` for the exception if it could not be read."""


@dataclass(frozen=True, slots=True)
class OtherFailure:
    """A further attempt with the same error."""

    job: JobRecord
    exception: str = ""
    """Type and message, from its log."""


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Failed attempts with the same error."""

    label: str
    """Label of the jobs; several, separated by commas, where errors were put together over labels."""

    error: JobError
    """As the example has it."""

    signature: str
    """The error's text without numbers, which is what the attempts share."""

    attempts: int
    jobs: int
    unfinished: int
    """Jobs of these attempts that no other attempt has finished."""

    sites: tuple[tuple[str, int], ...] = ()
    """Queues and attempts there, most first, at most five."""

    nodes: tuple[tuple[str, int], ...] = ()
    """Worker nodes and attempts there, most first, at most five."""

    first: datetime | None = None
    """When an attempt ended so for the first time."""

    last: datetime | None = None
    example: JobRecord | None = None
    """Of the latest job with a log, if there is one, the first of these attempts: a later one may have been
    refused because of ``retryUnlessExit``."""

    errors: tuple[JobError, ...] = ()
    """All errors of the example."""

    others: tuple[OtherFailure, ...] = ()
    """A few attempts of other jobs; `add_verdicts` leaves those that ended by another exception, since many
    exceptions share an exit code.
    """

    one_node: bool = False
    """Whether all attempts were on one node, in a run that uses several."""

    exception: str = ""
    """Type and message of the exception that ended the example, from its log; in words how it ended where
    there is none.  `add_verdicts` finds it out."""

    log_tail: tuple[str, ...] = ()
    """Last lines of the example's log, if they were fetched."""

    verdict: Verdict = Verdict("unknown")

    @property
    def text(self) -> str:
        """The error's text as far as it fits a line."""
        return self.error.text[:_LINE_LIMIT]


def is_memory_error(errors: Iterable[JobError]) -> bool:
    """Whether a job ran out of memory, as far as the codes of its errors tell."""
    return any(rule.fits_code(error.source, error.code) for error in errors for rule in _MEMORY_RULES)


def signature_of(error: JobError) -> str:
    """Return an error's text without what differs from job to job: numbers,
    addresses and UUIDs are replaced by ``#``.
    """
    return _without_numbers(error.text)


def _without_numbers(text: str) -> str:
    return _NUMBERS.sub("#", _IDENTIFIERS.sub("#", " ".join(text[:_TEXT_LIMIT].split())))


def exit_codes(failed: Mapping[str, int], failures: Iterable[JobRecord]) -> dict[str, list[int]]:
    """List an exit code for each failed job, by label and sorted; at most ten million a label.

    ``failed`` counts the failed jobs of each label, ``failures`` is what is known of them; the others have
    `UNKNOWN_EXIT_CODE`.
    """
    found: dict[str, list[int]] = {label: [] for label in failed}
    for failure in failures:
        if failure.label in found:
            found[failure.label].append(_error_of(failure).code)
    for label, count in failed.items():
        number = min(count, _CODE_LIMIT)
        codes = found[label][:number]
        found[label] = sorted(codes + [UNKNOWN_EXIT_CODE] * (number - len(codes)))
    return found


def group_errors(evidence: RunEvidence, *, label: str = "", by_label: bool = True) -> list[ErrorGroup]:
    """Put the failed attempts of a run together by their errors; texts that
    differ only in what differs from job to job are the same.

    Groups with most unfinished jobs come first, then those with most attempts;
    what the cancel of the run ended comes last.

    Parameters
    ----------
    evidence : `~.evidence.RunEvidence`
        The run.  Failures that only iDDS knows are added to its attempts.
    label : `str`, optional
        Jobs of this label only.
    by_label : `bool`, optional
        Whether the same error of two labels makes two groups.
    """
    bad = [job for job in evidence.attempts if (job.failed or job.killed) and label in ("", job.label)]
    finished = {(job.task_id, job.name) for job in evidence.attempts if job.finished}
    finished |= _finished_in_idds(evidence)
    complete = {item.workload_id for item in evidence.transforms or () if item.complete}
    finished |= {(job.task_id, job.name) for job in bad if job.task_id in complete}
    known = {job.panda_id for job in bad} | evidence.refused
    bad += [
        failure
        for failure in evidence.failures
        if label in ("", failure.label) and (not failure.panda_id or failure.panda_id not in known)
    ]
    groups: dict[tuple[str, str, int, str], list[JobRecord]] = {}
    for job in bad:
        error = _error_of(job)
        key = (job.label if by_label else "", error.source, error.code, signature_of(error))
        groups.setdefault(key, []).append(job)
    several = len({job.node for job in evidence.attempts if job.node}) > 1
    found = [_group_of(key[3], jobs, finished, several) for key, jobs in groups.items()]
    order = {name: number for number, name in enumerate(evidence.tally.by_label)}

    def rank(group: ErrorGroup) -> tuple[bool, int, int, int]:
        return (
            evidence.aborted and has_kill_code(group.errors),
            -group.unfinished,
            -group.attempts,
            order.get(group.label, len(order)),
        )

    return sorted(found, key=rank)


def _error_of(job: JobRecord) -> JobError:
    return job.errors[0] if job.errors else choose_error(())


def _finished_in_idds(evidence: RunEvidence) -> set[tuple[int, str]]:
    """List jobs that iDDS calls available: an attempt that finished is not
    among the unsuccessful ones that PanDA was asked for.
    """
    tasks = {item.transform_id: item.workload_id for item in evidence.transforms or ()}
    return {
        (tasks.get(transform_id, 0), content.name)
        for transform_id, contents in evidence.contents.items()
        for content in contents
        if content.done
    }


def _group_of(
    signature: str, jobs: Sequence[JobRecord], finished: set[tuple[int, str]], several: bool
) -> ErrorGroup:
    latest = max(jobs, key=lambda job: (bool(job.log_url), job.panda_id))
    example = min(
        (job for job in jobs if (job.task_id, job.name) == (latest.task_id, latest.name)),
        key=lambda job: (not job.log_url, job.panda_id),
    )
    error = _error_of(example)
    # Who has no log yet can be asked for it together with the example.
    others = {(job.task_id, job.name): job for job in jobs if job.log_url or job.task_id == example.task_id}
    others.pop((example.task_id, example.name), None)
    names = {(job.task_id, job.name) for job in jobs}
    ends = sorted(job.ended for job in jobs if job.ended is not None)
    nodes = _places(job.node for job in jobs)
    return ErrorGroup(
        label=", ".join(dict.fromkeys(job.label for job in jobs)),
        error=JobError(error.source, error.code, " ".join(error.text.split())[:_TEXT_LIMIT]),
        signature=signature,
        attempts=len(jobs),
        jobs=len(names),
        unfinished=len(names - finished),
        sites=_places(job.site for job in jobs),
        nodes=nodes,
        first=ends[0] if ends else None,
        last=ends[-1] if ends else None,
        example=example,
        errors=example.errors,
        others=tuple(map(OtherFailure, list(others.values())[:: max(1, -(-len(others) // _SAMPLES))])),
        one_node=several and len(jobs) > 2 and len(nodes) == 1,
    )


def _places(names: Iterable[str]) -> tuple[tuple[str, int], ...]:
    return tuple(Counter(name for name in names if name).most_common(_PLACES))


def name_examples(
    groups: Sequence[ErrorGroup], identify: Callable[[Sequence[JobRecord]], Sequence[JobRecord]]
) -> list[ErrorGroup]:
    """Say of each example which job of the run it is: ``identify`` adds names and data IDs to jobs."""
    examples = [group.example for group in groups if group.example is not None]
    named = iter(identify([*examples, *(other.job for group in groups for other in group.others)]))
    groups = [replace(group, example=group.example and next(named)) for group in groups]
    return [
        replace(group, others=tuple(replace(other, job=next(named)) for other in group.others))
        for group in groups
    ]


def add_verdicts(
    groups: Iterable[ErrorGroup],
    rulebook: Rulebook,
    *,
    read_tail: EndReader | None = None,
) -> list[ErrorGroup]:
    """Add verdicts, and the exceptions and ends of the examples' logs.

    Parameters
    ----------
    groups : `~collections.abc.Iterable` [`ErrorGroup`]
        Groups as `group_errors` gives them.
    rulebook : `~.verdicts.Rulebook`
        Rules of the verdicts.
    read_tail : `EndReader`, optional
        Reads the end of a job's log; not called for jobs without one.
    """
    judged = []
    for group in groups:
        exception: str | None = None
        tail: tuple[str, ...] = ()
        if read_tail is not None and group.example is not None and group.example.log_url:
            exception, tail = read_tail(group.example)
        # The runner's first line repeats the command, which may hold any word.
        log = "\n".join([*(line for line in tail if not _RUNNER.match(line)), exception or ""])
        verdict = rulebook.find_verdict(group.errors or (group.error,), log=log, one_node=group.one_node)
        judged.append(
            replace(
                group,
                exception=exception or _describe_end(group, verdict, silent=exception is not None),
                others=tuple(_find_others(group, exception, read_tail)),
                log_tail=tail,
                verdict=verdict,
            )
        )
    return judged


def _find_others(
    group: ErrorGroup, exception: str | None, read_tail: EndReader | None
) -> Iterator[OtherFailure]:
    """Find attempts of a group whose exceptions differ by more than values from that of its example."""
    if read_tail is None or not exception:
        return
    known = {_form_of(exception)}
    for other in group.others:
        found = read_tail(other.job)[0] if other.job.log_url else None
        if found and (form := _form_of(found)) not in known:
            known.add(form)
            yield replace(other, exception=found)


def _form_of(exception: str) -> str:
    return _without_numbers(_QUOTED.sub("#", exception))


def _describe_end(group: ErrorGroup, verdict: Verdict, *, silent: bool) -> str:
    """Say how an attempt ended whose log has no exception, or is not at hand."""
    example, error = group.example, group.error
    what = f"{verdict.name}, without an exception" if silent else verdict.name
    used = ""
    if verdict.name == OUT_OF_MEMORY and example is not None and example.max_rss and example.memory:
        used = f", with {example.max_rss / 1024:.0f} of {example.memory} MB in use"
    return f"{what}: {error.title}{error.text and ', '}{group.text}{used}"


def find_remarks(evidence: RunEvidence) -> list[str]:
    """Say which tasks of a run do not run, or run twice, and what to do: a sentence or two each."""
    return [
        *_never_submitted(evidence),
        *_submitted_twice(evidence),
        *_killed(evidence),
        *_paused(evidence),
        *_waiting_in_vain(evidence),
        *_queued_long(evidence),
        *_lost_workers(evidence),
    ]


def _never_submitted(evidence: RunEvidence) -> Iterator[str]:
    when = "" if evidence.ended else "when the run has ended, "
    restart = f"{when}bps restart --id {evidence.request_id} runs it"
    for item in evidence.never_submitted:
        jobs = evidence.tally.by_transform[item.transform_id][WmsStates.FAILED]
        label = evidence.tally.labels[item.transform_id]
        which = f"{item.name} ({label}, {render_count(jobs, 'job')})" if jobs else f"{item.name} ({label})"
        yield f"{NEVER_RAN.format(which)}; {'submit it once more' if item.name == BUILD_TASK else restart}."


def _submitted_twice(evidence: RunEvidence) -> Iterator[str]:
    """Name tasks that PanDA has besides the one that iDDS knows."""
    known = {item.transform_id: item for item in evidence.transforms or ()}
    for task in evidence.tasks:
        item = known.get(split_server_name(task.name, evidence.request_id)[1])
        if item is not None and item.workload_id not in (0, task.task_id):
            yield (
                f"iDDS submitted task {item.name} more than once: PanDA task {item.workload_id} counts, and "
                f"nothing of the run depends on task {task.task_id} ({task.status})."
            )


def _tasks_with(evidence: RunEvidence, statuses: Collection[str]) -> Iterator[str]:
    """Name the tasks with some statuses in PanDA, by label and by what PanDA says of them."""
    found: dict[tuple[str, str], list[int]] = {}
    labels = evidence.task_labels
    for task in evidence.tasks:
        if task.status in statuses:
            which = labels.get(task.task_id, task.name), _words_of(task)
            found.setdefault(which, []).append(task.task_id)
    for (label, words), tasks in found.items():
        more = f" and {len(tasks) - _PLACES} more" if len(tasks) > _PLACES else ""
        yield f"{', '.join(map(str, tasks[:_PLACES]))}{more} ({label}{words and f'; PanDA: {words}'})"


def _killed(evidence: RunEvidence) -> Iterator[str]:
    """Name tasks that were killed, though the run was not cancelled."""
    when = "" if evidence.ended else "when the run has ended, "
    for which in () if evidence.aborted else _tasks_with(evidence, {"aborted"}):
        yield (
            f"Killed in PanDA: task {which}. What had not ended counts as PRUNED, with what needs it; {when}"
            f"bps restart --id {evidence.request_id} runs it."
        )


def _paused(evidence: RunEvidence) -> Iterator[str]:
    for which in _tasks_with(evidence, PAUSED_TASKS):
        yield (
            f"Paused in PanDA: task {which}. Who has PanDA's production role lets it go on: panda_bps act "
            f"{evidence.request_id} release."
        )


def _queued_long(evidence: RunEvidence) -> Iterator[str]:
    """Name queues that have not taken any job of a label for long; PanDA has no words for that."""
    waiting: dict[tuple[str, str], list[JobRecord]] = {}
    taken = set()
    for job in evidence.jobs or () if evidence.asked_at is not None else ():
        which = evidence.task_labels.get(job.task_id, ""), job.site
        if job.waiting and job.created is not None and job.started is None:
            waiting.setdefault(which, []).append(job)
        elif job.started is not None:
            taken.add(which)
    for (label, queue), jobs in waiting.items():
        first = min(job.created for job in jobs if job.created is not None)
        assert evidence.asked_at is not None
        if (label, queue) in taken or (evidence.asked_at - first).total_seconds() < _LONG:
            continue
        yield (
            f"Queue {queue} has started none of {render_count(len(jobs), 'job')} of {label} (PanDA: "
            f"{jobs[0].status}) since {first:%Y-%m-%d %H:%M} UTC. If it stays so, name another: panda_bps "
            f"act {evidence.request_id} move QUEUE --label {label}."
        )


def _lost_workers(evidence: RunEvidence) -> Iterator[str]:
    """Name labels whose jobs are tried again because their workers were not heard of any more."""
    lost: dict[str, list[JobRecord]] = {}
    jobs = sorted(evidence.jobs or (), key=lambda job: job.panda_id)
    last = {(job.task_id, job.name): job for job in jobs}
    for job in jobs:
        again = last[job.task_id, job.name]
        if again.panda_id > job.panda_id and again.open and _is_lost(job):
            lost.setdefault(evidence.task_labels.get(job.task_id, ""), []).append(job)
    for label, found in lost.items():
        example = found[-1]
        assert example.error is not None
        count = render_count(len({job.name for job in found}), "job")
        yield (
            f"PanDA lost the workers of {count} of {label} and tries again; the last one was "
            f"{example.node or 'of unknown name'} at {example.site} (PanDA: {example.error.text}). If that "
            f"goes on, move them: panda_bps act {evidence.request_id} move QUEUE --label {label}."
        )


def _is_lost(job: JobRecord) -> bool:
    return any(error.source == "dispatcher" for error in job.errors)


def _words_of(task: TaskRecord) -> str:
    return " ".join(task.dialog.split()).rstrip(".")


def _waiting_in_vain(evidence: RunEvidence) -> Iterator[str]:
    """Repeat why PanDA's brokerage has given tasks to no queue for a while."""
    going = {item.workload_id: item for item in evidence.transforms or () if not evidence.aborted}
    for task in evidence.tasks:
        item = going.get(task.task_id)
        if item is None or not _is_refused(task, evidence.asked_at):
            continue
        counts = evidence.tally.by_transform[item.transform_id]
        waiting = counts[WmsStates.READY] + counts[WmsStates.PENDING]
        if not waiting or counts[WmsStates.RUNNING]:
            continue
        jobs = f"{render_count(waiting, 'job')} of {evidence.tally.labels[item.transform_id]}"
        words = _words_of(task)
        if not re.search(BROKERAGE_WORDS, words, re.IGNORECASE):
            yield f"PanDA has not started {jobs} (PanDA task {task.task_id}): {words}."
            continue
        keys = [key for key, pattern in REQUESTED.items() if re.search(pattern, words, re.IGNORECASE)]
        asked = " or ".join(keys) or "what the label asks for (requestMemory, requestCpus, requestWalltime)"
        yield (
            f"No queue has taken {jobs} (PanDA task {task.task_id}) yet: {words}. If it stays so, name "
            f"another queue (panda_bps act {evidence.request_id} move QUEUE --label "
            f"{evidence.tally.labels[item.transform_id]}), or cancel the run and lower {asked}; panda_bps "
            "check compares a configuration with the queues."
        )


def _is_refused(task: TaskRecord, asked_at: datetime | None) -> bool:
    """Whether PanDA says for longer than a passing moment why a task that goes on does not."""
    if task.status in TASK_STATUSES or not task.dialog or WAITS_FOR_PARENTS in task.dialog:
        return False
    if asked_at is None or task.created_at is None:
        return True
    return (asked_at - task.created_at).total_seconds() > _PATIENCE
