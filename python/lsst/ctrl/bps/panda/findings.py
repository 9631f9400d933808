"""What a user should know before a run is submitted: a finding, and how
serious it is.
"""

from __future__ import annotations

__all__ = ["Finding", "Severity"]

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How serious a finding is; the members stand from worst to mildest."""

    ERROR = "error"
    """The run cannot be submitted."""

    NEEDS_SERVER = "needs-server"
    """The run cannot be submitted, but it can be prepared: what is wrong is a
    server, the staging area or the log-in."""

    WARNING = "warning"
    """The run can be submitted, and something will not be as it was asked."""

    HINT = "hint"
    """Something may be better another way, or may be a mistake."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a user should know about a configuration, a plan or the
    environment.
    """

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
