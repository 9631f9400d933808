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
        raise RunNotFoundError(
            f"{directory} holds no {REGISTRATION_NAME}: the run has no registration step. It gets one by a "
            "section rucio with enabled: yes; a run that was planned at its site (remote build) has the file "
            "there."
        ) from None
    try:
        return Registration.from_json(text).expanded()
    except Refused as error:
        raise SettingsError(f"{path}: {error}") from error
