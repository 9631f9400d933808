"""The machine-readable form of a registration's status: kind ``rucio`` of the
documents of `panda_bps`.
"""

from __future__ import annotations

__all__ = ["make_status_document", "plain_status"]

from collections.abc import Sequence
from typing import Any

from ..insight.documents import SCHEMA_VERSION, make_plain
from .status import RegistrationStatus


def make_status_document(
    status: RegistrationStatus, *, request_id: int, name: str, problems: Sequence[str] = ()
) -> dict[str, Any]:
    """Give a registration's status as JSON-ready data.

    Parameters
    ----------
    status : `RegistrationStatus`
        What became of the registration.
    request_id : `int`
        Number of the run; 0 if it was not submitted.
    name : `str`
        Name of the run.
    problems : sequence of `str`, optional
        What could not be found out.
    """
    head = {
        "schema": "panda_bps",
        "version": SCHEMA_VERSION,
        "kind": "rucio",
        "request_id": request_id,
        "run": name,
        "problems": list(problems),
    }
    return {**head, **plain_status(status)}


def plain_status(status: RegistrationStatus) -> dict[str, Any]:
    """Give the document's own keys.

    Parameters
    ----------
    status : `RegistrationStatus`
        What became of the registration.
    """
    by_type = {
        dataset_type: {"outputs": outputs, "registered": registered}
        for dataset_type, (outputs, registered) in status.by_type.items()
    }
    plain: dict[str, Any] = make_plain(status)
    return {**plain, "by_type": by_type, "complete": status.is_complete}
