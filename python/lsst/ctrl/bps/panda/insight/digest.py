"""The errors of a run at length: one group for each label and kind of error,
with what is known of where and when it happened, and a verdict.
"""

from __future__ import annotations

__all__ = ["ErrorGroup", "digest_errors", "judge_groups", "signature_of"]

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from ..status.failures import Failure, choose_error, failures_of
from ..status.jobs import JobDetail
from ..status.records import JobError
from ..status.states import has_kill_code, is_aborted
from ..status.verdicts import Rulebook, Verdict
from .overview import Observation

_TEXT_LIMIT = 300
_PLACES = 5
_RUNNER = re.compile(r"runner: \d")
_NUMBERS = re.compile(r"0x[0-9a-fA-F]+|\d+")
_IDENTIFIERS = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Failed attempts of one label with the same error."""

    label: str
    error: JobError
    """As the example has it."""

    signature: str
    """The error's text without numbers, which is what the attempts share."""

    attempts: int
    """Failed attempts."""

    jobs: int
    """Jobs that these attempts are of."""

    unfinished: int
    """Of these jobs, those that no other attempt has finished."""

    sites: tuple[tuple[str, int], ...] = ()
    """Queues and attempts there, most first, at most five."""

    nodes: tuple[tuple[str, int], ...] = ()
    """Worker nodes and attempts there, most first, at most five."""

    first: datetime | None = None
    """When an attempt ended so for the first time."""

    last: datetime | None = None
    example: JobDetail | None = None
    """The latest attempt that has a log, if there is one."""

    errors: tuple[JobError, ...] = ()
    """All errors of the example."""

    one_node: bool = False
    """Whether all attempts were on one node, in a run that uses several."""

    log_tail: tuple[str, ...] = ()
    """Last lines of the example's log, if they were fetched."""

    verdict: Verdict = Verdict("unknown")


def signature_of(error: JobError) -> str:
    """Give an error's text without what differs from job to job.

    Parameters
    ----------
    error : `JobError`
        The error.

    Returns
    -------
    text : `str`
        Numbers and UUIDs replaced by ``#``, cut to 300 characters.
    """
    text = " ".join(error.text[:_TEXT_LIMIT].split())
    return _NUMBERS.sub("#", _IDENTIFIERS.sub("#", text))


def digest_errors(observation: Observation, *, label: str = "") -> list[ErrorGroup]:
    """Put the failed attempts of a run together.

    Parameters
    ----------
    observation : `Observation`
        The run, with its unsuccessful or all jobs.
    label : `str`, optional
        Jobs of this label only.

    Returns
    -------
    groups : `list` [`ErrorGroup`]
        Those with most unfinished jobs first, then those with most
        attempts; what the cancel of the run ended, last.  Failures that only
        iDDS knows are among them.
    """
    bad = [job for job in observation.jobs if (job.failed or job.killed) and label in ("", job.label)]
    finished = {(job.task_id, job.name) for job in observation.jobs if job.finished}
    finished |= _finished_in_idds(observation)
    complete = _complete_tasks(observation)
    finished |= {(job.task_id, job.name) for job in bad if job.task_id in complete}
    known = {job.panda_id for job in bad}
    bad += [
        _job_from(failure, observation)
        for failure in _failures(observation)
        if label in ("", failure.label) and (not failure.panda_id or failure.panda_id not in known)
    ]
    groups: dict[tuple[str, str, int, str], list[JobDetail]] = {}
    for job in bad:
        error = job.errors[0] if job.errors else choose_error(())
        groups.setdefault((job.label, error.source, error.code, signature_of(error)), []).append(job)
    several = len({job.node for job in observation.jobs if job.node}) > 1
    found = [_group_of(key[3], jobs, finished, several) for key, jobs in groups.items()]
    order = {name: number for number, name in enumerate(observation.tally.by_label)}
    aborted = is_aborted(observation.evidence.request)

    def rank(group: ErrorGroup) -> tuple[bool, int, int, int]:
        return (
            aborted and has_kill_code(group.errors),
            -group.unfinished,
            -group.attempts,
            order.get(group.label, len(order)),
        )

    return sorted(found, key=rank)


def _failures(observation: Observation) -> Iterable[Failure]:
    """Yield what iDDS says of failed jobs."""
    evidence = observation.evidence
    for transform in evidence.transforms or ():
        contents = evidence.contents.get(transform.transform_id, ())
        name = observation.tally.labels.get(transform.transform_id, "")
        yield from failures_of(transform, name, contents, aborted=is_aborted(evidence.request))


def _finished_in_idds(observation: Observation) -> set[tuple[int, str]]:
    """List jobs that iDDS calls available: an attempt that finished is not
    among the unsuccessful ones that PanDA was asked for.
    """
    tasks = {item.transform_id: item.workload_id for item in observation.evidence.transforms or ()}
    return {
        (tasks.get(transform_id, 0), content.name)
        for transform_id, contents in observation.evidence.contents.items()
        for content in contents
        if content.status in ("Available", "FakeAvailable")
    }


def _complete_tasks(observation: Observation) -> set[int]:
    """List tasks of which every job finished, by PanDA's number."""
    return {
        item.workload_id
        for item in observation.evidence.transforms or ()
        if item.status == "Finished" and (item.outputs is None or not item.outputs.failed)
    }


def _job_from(failure: Failure, observation: Observation) -> JobDetail:
    """Make up an attempt of what iDDS knows of one."""
    tasks = {item.transform_id: item.workload_id for item in observation.evidence.transforms or ()}
    return JobDetail(
        panda_id=failure.panda_id,
        task_id=tasks.get(failure.transform_id, 0),
        label=failure.label,
        name=failure.name,
        status="failed",
        errors=(failure.error,),
        log_url=failure.log_url,
    )


def _group_of(
    signature: str, jobs: Sequence[JobDetail], finished: set[tuple[int, str]], several: bool
) -> ErrorGroup:
    example = max(jobs, key=lambda job: (bool(job.log_url), job.panda_id))
    error = example.errors[0] if example.errors else choose_error(())
    names = {(job.task_id, job.name) for job in jobs}
    ends = sorted(job.ended for job in jobs if job.ended is not None)
    nodes = _places(job.node for job in jobs)
    return ErrorGroup(
        label=example.label,
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
        one_node=several and len(jobs) > 2 and len(nodes) == 1,
    )


def _places(names: Iterable[str]) -> tuple[tuple[str, int], ...]:
    return tuple(Counter(name for name in names if name).most_common(_PLACES))


def judge_groups(
    groups: Iterable[ErrorGroup],
    rulebook: Rulebook,
    *,
    read_tail: Callable[[JobDetail], Sequence[str]] | None = None,
) -> list[ErrorGroup]:
    """Add verdicts, and the ends of the examples' logs.

    Parameters
    ----------
    groups : `~collections.abc.Iterable` [`ErrorGroup`]
        Groups as `digest_errors` gives them.
    rulebook : `Rulebook`
        Rules of the verdicts.
    read_tail : `~collections.abc.Callable`, optional
        Gives the last lines of a job's log; not called for jobs without one.

    Returns
    -------
    groups : `list` [`ErrorGroup`]
        The same groups with ``log_tail`` and ``verdict``.
    """
    judged = []
    for group in groups:
        tail: tuple[str, ...] = ()
        if read_tail is not None and group.example is not None and group.example.log_url:
            tail = tuple(read_tail(group.example))
        # The runner's first line repeats the command, which may hold any word.
        log = "\n".join(line for line in tail if not _RUNNER.match(line))
        verdict = rulebook.judge(group.errors or (group.error,), log=log, one_node=group.one_node)
        judged.append(replace(group, log_tail=tail, verdict=verdict))
    return judged
