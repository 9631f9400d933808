"""Find what is to be registered of a run that was prepared here."""

from __future__ import annotations

__all__ = ["read_registration"]

from pathlib import Path

from ..errors import RunNotFoundError, SettingsError
from ..runrecord import RunRecord
from .program import Refused, Registration
from .step import REGISTRATION_NAME


def read_registration(record: RunRecord) -> Registration:
    """Read what is to be registered of a run.

    Parameters
    ----------
    record : `RunRecord`
        Record of the run, or of one that completes it.

    Raises
    ------
    RunNotFoundError
        Raised if the run has no registration step.
    SettingsError
        Raised if the file is damaged.
    """
    # A restart has its own directory below that of the run.
    directory = Path(str(record.content.get("origin_path") or record.submit_path))
    path = directory / REGISTRATION_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunNotFoundError(f"{directory} holds no {REGISTRATION_NAME}: {_why_not(record)}") from None
    try:
        return Registration.from_json(text).expanded()
    except Refused as error:
        raise SettingsError(f"{path}: {error}") from error


def _why_not(record: RunRecord) -> str:
    """Say why a run has no such file."""
    remote = record.content.get("remote")
    if remote and not remote.get("complete"):
        return (
            "the plan of the run is made at its site (remote build), and the site has not sent it yet. "
            "bps report with the run's id shows how far it is."
        )
    return "the run has no registration step. It gets one by a section rucio with enabled: yes."
