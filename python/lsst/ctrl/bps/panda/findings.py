"""Findings of the checks before a submission.

Every check returns a list of findings.  This module alone decides what they lead to: how they are sorted,
counted and shown, and which of them stop a submission or a dry run.
"""

from __future__ import annotations

__all__ = ["Finding", "Severity", "describe_findings", "did_you_mean", "report_findings", "select"]

import difflib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from .errors import PandaBpsError, SettingsError

_LOG = logging.getLogger(__name__)


class Severity(StrEnum):
    """How serious a finding is; the members stand from worst to mildest."""

    ERROR = "error"
    """The run cannot be submitted."""

    NEEDS_SERVER = "needs-server"
    """The run cannot be submitted, but it can be prepared: what is wrong is a
    server, the staging area or the log-in."""

    WARNING = "warning"
    """The run can be submitted, and something will not be as it was asked, or could not be checked."""

    HINT = "hint"
    """Something may be better another way, or may be a mistake."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a user should know about a configuration, a plan or the environment."""

    severity: Severity
    text: str
    """Whole sentences that name the thing, the value and the remedy."""

    key: str = ""
    """Dotted path of the configuration key that it is about, if any."""

    label: str = ""
    """Label that it is about, if any."""

    file: str = ""
    """File in which the value stands, if that is known."""

    line: int = 0
    """Line in that file, from 1; 0 if it is not known."""

    @classmethod
    def from_error(cls, error: PandaBpsError, severity: Severity = Severity.ERROR) -> Finding:
        """Turn an error that a check has caught into a finding."""
        if isinstance(error, SettingsError):
            return cls(severity, str(error), error.key, error.label, error.file, error.line)
        return cls(severity, str(error))

    def __str__(self) -> str:
        """Return the text, with file and line unless it names them."""
        if not self.file or self.file in self.text:
            return self.text
        return f"{self.text} ({self.file}, line {self.line})"


_BLOCKING = (Severity.ERROR, Severity.NEEDS_SERVER)

# Singular and plural of what is counted at the end of a list.
_COUNTED = {
    Severity.ERROR: ("error", "errors"),
    Severity.NEEDS_SERVER: (
        "problem of the server, the log-in or the staging area",
        "problems of the server, the log-in or the staging area",
    ),
    Severity.WARNING: ("warning", "warnings"),
    Severity.HINT: ("hint", "hints"),
}


def select(findings: Iterable[Finding], *severities: Severity) -> list[Finding]:
    """Return the findings of some severities, in the order of these, each text once."""
    by_text = {(finding.severity, finding.text): finding for finding in reversed([*findings])}
    unique = [*reversed(by_text.values())]
    return [finding for severity in severities for finding in unique if finding.severity is severity]


def report_findings(findings: Sequence[Finding], *, is_dry_run: bool) -> None:
    """Log warnings and hints, and raise one `PandaBpsError` that lists the rest.

    In a dry run nothing is sent, so findings about a server are only logged.
    """
    for finding in select(findings, Severity.WARNING, Severity.HINT):
        _LOG.warning("%s", finding)
    blocking = select(findings, *_BLOCKING)
    if is_dry_run and (waiting := select(findings, Severity.NEEDS_SERVER)):
        _LOG.warning(
            "A submission from here would fail; it goes on because nothing is sent now:\n%s", _list(waiting)
        )
        blocking = select(findings, Severity.ERROR)
    if blocking:
        raise PandaBpsError(f"This run cannot be submitted:\n{_list(blocking)}")


def did_you_mean(name: str, names: Iterable[str], *, likeness: float = 0.7) -> str:
    """Return the end of a sentence that asks for the name that is probably meant; empty if none is alike."""
    near = difflib.get_close_matches(name, [*names], n=1, cutoff=likeness)
    return f"; did you mean {near[0]}?" if near else ""


def describe_findings(findings: Sequence[Finding], subject: str) -> tuple[str, bool]:
    """Return all findings as text that ends in the number of each severity, and whether none stops a
    submission; ``subject`` is what was checked, a file for instance.
    """
    lines = [f"Hint: {finding}" for finding in select(findings, Severity.HINT)]
    lines += [f"Warning: {finding}" for finding in select(findings, Severity.WARNING)]
    blocking = select(findings, *_BLOCKING)
    if blocking:
        lines += [f"{len(blocking)} problem{'s' if len(blocking) > 1 else ''} in {subject}:", _list(blocking)]
    lines.append(_count(findings, subject))
    return "\n".join(lines), not blocking


def _count(findings: Sequence[Finding], subject: str) -> str:
    numbers = {severity: len(select(findings, severity)) for severity in Severity}
    parts = [f"{number} {_COUNTED[severity][number > 1]}" for severity, number in numbers.items() if number]
    return f"{', '.join(parts) or 'No problem found'} in {subject}."


def _list(findings: Iterable[Finding]) -> str:
    return "\n".join(f"- {finding}" for finding in findings)
