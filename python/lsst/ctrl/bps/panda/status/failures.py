"""Why jobs failed: one exit code for each failed job, and a digest of the
most frequent errors.

A job that fails leaves codes of several parts of the system.  The payload's
is told before the pilot's, and so on, in the order of `SOURCES`: a pilot's
1305 says no more than that the payload failed.
"""

from __future__ import annotations

__all__ = [
    "MEMORY_ADVICE",
    "SOURCES",
    "UNKNOWN_EXIT_CODE",
    "ErrorDigest",
    "Failure",
    "choose_error",
    "digest_failures",
    "exit_codes",
    "failures_of",
    "is_memory_error",
    "log_url",
    "signal_name",
]

import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .records import ContentRecord, JobError, TransformRecord
from .states import Phase, phase_of, was_killed

SOURCES = (
    "payload",
    "pilot",
    "brokerage",
    "data management",
    "executor",
    "dispatcher",
    "supervisor",
    "task buffer",
)
"""Who reports errors, in the order in which they are believed."""

UNKNOWN_EXIT_CODE = -1
"""Stands for a failed job whose code no server could tell."""

MEMORY_ADVICE = "ask for more memory (requestMemory, memoryMultiplier)"

_FAILED_CONTENTS = frozenset({"FinalFailed", "SubAvailable", "FinalSubAvailable"})
_UNFINISHED_CONTENTS = frozenset({"New", "Activated", "PreProcessing", "Processing", "Cancelled"})
_TEXT_LIMIT = 160
# No run is so large; a counter that is must not eat the memory.
_CODE_LIMIT = 10_000_000
_NUMBERS = re.compile(r"\d+")
# Codes by which PanDA's own memory retry knows that a job needs more.
_MEMORY_ERRORS = frozenset({("payload", 137), ("pilot", 1212), ("executor", 137), ("task buffer", 300)})
_LOG_NAMES = (("pilotlog.txt", "payload.stderr"), (".out", ".err"))


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed job and the error that is told of it."""

    label: str
    name: str
    error: JobError
    panda_id: int = 0
    log_url: str = ""
    transform_id: int = 0


@dataclass(frozen=True, slots=True)
class ErrorDigest:
    """An error and how often it happened."""

    error: JobError
    count: int
    labels: tuple[str, ...]
    example: Failure


def signal_name(code: int) -> str:
    """Name the signal that an exit code stands for.

    Parameters
    ----------
    code : `int`
        Exit code of a payload, 128 + n when signal n ended it.

    Returns
    -------
    name : `str`
        For instance ``SIGKILL``; empty if it is not a signal.
    """
    try:
        return signal.Signals(code - 128).name if code > 128 else ""
    except ValueError:
        return ""


def choose_error(errors: Sequence[JobError]) -> JobError:
    """Choose which of a job's errors is told.

    Parameters
    ----------
    errors : `~collections.abc.Sequence` [`JobError`]
        Errors with a code other than 0.

    Returns
    -------
    error : `JobError`
        The first by `SOURCES`; its text is that of the next one that has a
        text if it has none itself.  ``unknown`` with `UNKNOWN_EXIT_CODE` if
        there are none.
    """
    order = {source: number for number, source in enumerate(SOURCES)}
    ranked = sorted(errors, key=lambda error: order.get(error.source, len(SOURCES)))
    if not ranked:
        return JobError("unknown", UNKNOWN_EXIT_CODE, "no server knows an error of this job")
    first = ranked[0]
    text = next((error.text for error in ranked if error.text), "")
    name = signal_name(first.code) if first.source == "payload" else ""
    if name:
        text = f"ended by {name}" + (f"; {text}" if text else "")
    return JobError(first.source, first.code, text)


def is_memory_error(error: JobError) -> bool:
    """Tell whether a job probably ran out of memory.

    Parameters
    ----------
    error : `JobError`
        The error that is told of it.

    Returns
    -------
    memory : `bool`
        Whether its code is one of those PanDA's memory retry looks for.
    """
    return (error.source, error.code) in _MEMORY_ERRORS


def log_url(pilot_id: str) -> str:
    """Find the address of a job's log.

    Parameters
    ----------
    pilot_id : `str`
        PanDA's field: ``<URL of the pilot's log>|<batch type>|<version>``.

    Returns
    -------
    url : `str`
        Address of the payload's standard error; empty before the pilot has
        uploaded anything.
    """
    url = pilot_id.partition("|")[0].strip()
    if "://" not in url and not url.startswith("/"):
        return ""
    for suffix, better in _LOG_NAMES:
        if url.endswith(suffix):
            return url[: -len(suffix)] + better
    return url


def failures_of(
    transform: TransformRecord, label: str, contents: Iterable[ContentRecord], *, aborted: bool
) -> list[Failure]:
    """Find the failed jobs of a task.

    Parameters
    ----------
    transform : `TransformRecord`
        The task's transform.
    label : `str`
        Its label.
    contents : `~collections.abc.Iterable` [`ContentRecord`]
        Its contents.
    aborted : `bool`
        Whether the run was aborted; jobs killed then have not failed.

    Returns
    -------
    failures : `list` [`Failure`]
        Jobs that failed for good first, then those that their ended task
        left undone.
    """
    over = phase_of(transform.status, aborted) is Phase.OVER
    failed, left = [], []
    for content in contents:
        if aborted and was_killed(content):
            continue
        if content.status in _FAILED_CONTENTS or (over and content.status == "Failed"):
            failed.append(_failure_from(content, label, choose_error(content.errors)))
        elif over and content.status in _UNFINISHED_CONTENTS:
            text = f"its task ended as {transform.status} before the job did"
            left.append(_failure_from(content, label, JobError("task", UNKNOWN_EXIT_CODE, text)))
    return failed + left


def _failure_from(content: ContentRecord, label: str, error: JobError) -> Failure:
    return Failure(
        label=label,
        name=content.name,
        error=error,
        panda_id=content.panda_id,
        log_url=log_url(content.pilot_id),
        transform_id=content.transform_id,
    )


def exit_codes(
    failed: Mapping[str, int], failures: Iterable[Failure], *, unknown: int = UNKNOWN_EXIT_CODE
) -> dict[str, list[int]]:
    """Give an exit code for each failed job.

    Parameters
    ----------
    failed : `~collections.abc.Mapping` [`str`, `int`]
        Number of failed jobs of each label.
    failures : `~collections.abc.Iterable` [`Failure`]
        What is known of them.
    unknown : `int`, optional
        Stands for a job of which nothing is known.

    Returns
    -------
    codes : `dict` [`str`, `list` [`int`]]
        As many codes for each label as it has failed jobs (but never more
        than ten million), sorted.
    """
    found: dict[str, list[int]] = {label: [] for label in failed}
    for failure in failures:
        if failure.label in found:
            found[failure.label].append(failure.error.code)
    for label, count in failed.items():
        number = min(count, _CODE_LIMIT)
        codes = found[label][:number]
        found[label] = sorted(codes + [unknown] * (number - len(codes)))
    return found


def digest_failures(failures: Iterable[Failure], *, limit: int = 10) -> list[ErrorDigest]:
    """Put equal errors together.

    Parameters
    ----------
    failures : `~collections.abc.Iterable` [`Failure`]
        Failed jobs.
    limit : `int`, optional
        Greatest number of different errors.

    Returns
    -------
    digests : `list` [`ErrorDigest`]
        Most frequent first.  Texts that differ in numbers only are the same
        error; the example is a job with a log, if there is one.
    """
    groups: dict[tuple[str, int, str], list[Failure]] = {}
    for failure in failures:
        error = failure.error
        text = _NUMBERS.sub("#", error.text[:_TEXT_LIMIT])
        groups.setdefault((error.source, error.code, text), []).append(failure)
    digests = [_digest_of(group) for group in groups.values()]
    return sorted(digests, key=lambda digest: -digest.count)[:limit]


def _digest_of(group: Sequence[Failure]) -> ErrorDigest:
    example = next((failure for failure in group if failure.log_url), group[0])
    error = example.error
    return ErrorDigest(
        error=JobError(error.source, error.code, " ".join(error.text.split())[:_TEXT_LIMIT]),
        count=len(group),
        labels=tuple(dict.fromkeys(failure.label for failure in group)),
        example=example,
    )
