"""How the exit code of a failed job is shown, and which of its errors is the one that is reported."""

from __future__ import annotations

__all__ = ["JobError", "choose_error", "is_killed", "signal_name", "sort_errors"]

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from .vocabulary import SOURCES, UNKNOWN_EXIT_CODE


@dataclass(frozen=True, slots=True)
class JobError:
    """One error of a job, as one part of the system reported it."""

    source: str
    """Who says so: a key of `SOURCES`, ``task`` or ``unknown``."""

    code: int
    text: str = ""

    @property
    def title(self) -> str:
        """Source and code, as they are shown: ``pilot 1305``."""
        return f"{self.source} {self.code}"


def signal_name(code: int) -> str:
    """Return the name of the signal that a payload's exit code stands for, such
    as SIGKILL for 137; empty if it is not a signal.
    """
    try:
        return signal.Signals(code - 128).name if code > 128 else ""
    except ValueError:
        return ""


def is_killed(errors: Sequence[JobError]) -> bool:
    """Whether a signal ended the payload, so that it had no chance to say why."""
    return any(error.source == "payload" and signal_name(error.code) for error in errors)


def choose_error(errors: Sequence[JobError]) -> JobError:
    """Choose the error that is reported for a job: the first by `SOURCES`.

    If it has no text, it gets that of the next one that has; who killed the job is told in any case.
    Without errors it is ``unknown`` with `UNKNOWN_EXIT_CODE`.
    """
    order = {source: number for number, source in enumerate(SOURCES)}
    ranked = sorted(errors, key=lambda error: order.get(error.source, len(SOURCES)))
    if not ranked:
        return JobError("unknown", UNKNOWN_EXIT_CODE, "no server knows an error of this job")
    first = ranked[0]
    killer = (error.text for error in ranked if error.text.startswith(("killed by ", "kill by ")))
    text = next(killer, "") or next((error.text for error in ranked if error.text), "")
    name = signal_name(first.code) if first.source == "payload" else ""
    if name:
        text = f"ended by {name}" + (f"; {text}" if text else "")
    return JobError(first.source, first.code, text)


def sort_errors(errors: Sequence[JobError]) -> tuple[JobError, ...]:
    """Put the error that is reported for a job before its others."""
    first = choose_error(errors)
    return (first, *(error for error in errors if error.source != first.source))
