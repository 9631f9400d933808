"""Submissions on disk: what is about to be sent is written down first, so that an interrupted
submission can be settled by asking the server for the name of the run.
"""

from __future__ import annotations

__all__ = ["describe_unsent", "lock_submission", "look_up", "record_submission", "settle"]

import logging
import os
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta

from ..errors import PandaBpsError, SubmissionUncertainError, TransportError
from ..rest.relay import Relay
from ..settings.run import ServiceSettings
from .files import RECORD_NAME, hold_lock
from .record import RequestPart, RunIndex, RunRecord, read_record

_LOG = logging.getLogger(__name__)

IN_FLIGHT = timedelta(minutes=10)
"""How long a request may be on its way after its sender has died: PanDA's relay waits so long for iDDS."""


def lock_submission(directory: str | os.PathLike[str]) -> AbstractContextManager[None]:
    """Keep other processes from submitting the run of a directory; `PandaBpsError` if one does."""
    return hold_lock(
        directory,
        RECORD_NAME,
        busy=f"Another process is submitting the run of {directory} now. Look when it has ended: "
        f"bps report --id {directory}",
    )


def record_submission(
    settings: ServiceSettings, record: RunRecord, request_id: int, *, request_bytes: int | None = None
) -> RunRecord:
    """Record a submission in the run's record and in the list of own runs, and return the record.

    A record that cannot be written is a warning: the run exists, and what was written before it was sent
    leads to it.
    """
    record = record.submitted(request_id, server=settings.url, request_bytes=request_bytes)
    try:
        record.write()
    except OSError as error:
        _LOG.warning(
            "Run %s is request %d, but its record in %s could not be written: %s",
            record.name, request_id, record.submit_path, error,
        )  # fmt: skip
    RunIndex(settings.state_directory, settings.url).add(record)
    _LOG.info("Submitted run %s as request %d to %s", record.name, request_id, settings.url)
    return record


def settle(relay: Relay, settings: ServiceSettings, record: RunRecord) -> RunRecord:
    """Find out what became of a submission that was interrupted, and mend the record.

    The record comes back with the number of its request, or without if the run was certainly not submitted.
    If that cannot be told, it is a `SubmissionUncertainError`; if another process is at it, a
    `PandaBpsError`.
    """
    if record.intention is None or record.request_id is not None:
        return record
    try:
        with lock_submission(record.submit_path):
            return look_up(relay, settings, read_record(record.submit_path))
    except OSError as error:
        if isinstance(error, PandaBpsError):
            raise
        # Somebody else's directory, where no lock and no record can be written.
        return look_up(relay, settings, record)


def look_up(relay: Relay, settings: ServiceSettings, record: RunRecord) -> RunRecord:
    """Do what `settle` does, with the lock held by the caller."""
    intention = record.intention
    if intention is None or record.request_id is not None or intention.part is RequestPart.STEPS:
        return record
    begin = (
        f"Run {record.name} was being sent to {intention.server} when its submission was interrupted "
        f"({intention.begun_at:%Y-%m-%d %H:%M:%S} UTC), and it is not known whether it was submitted: "
    )
    again = f"bps report --id {record.submit_path}"
    try:
        found = relay.get_request_ids_by_name(record.name)
    except TransportError as error:
        words = (
            f"{begin}{error.message} Ask again when the server answers, before you submit it again: {again}"
        )
        raise SubmissionUncertainError(words, endpoint=error.endpoint, fault=error.fault) from error
    if found:
        _LOG.info("The submission of run %s was interrupted; it was found by its name", record.name)
        return record_submission(settings, record, found[record.name])
    if intention.server != settings.url:
        raise SubmissionUncertainError(
            f"{begin}{settings.url}, which was asked, does not know the name. Set PANDA_URL and "
            f"PANDA_URL_SSL to the other server, and ask again: {again}"
        )
    until = intention.begun_at + IN_FLIGHT
    if datetime.now(UTC) < until:
        raise SubmissionUncertainError(
            f"{begin}the server does not know the name so far, but may still be at work on the request until "
            f"{until:%H:%M:%S} UTC. Ask again then, before you submit it again: {again}"
        )
    return record


def describe_unsent(record: RunRecord) -> str:
    """Say why a run that is not submitted is not."""
    intention = record.intention
    if intention is None:
        return f"The run of {record.submit_path} was prepared but not submitted."
    again = (
        f"restart again with bps restart --id {record.origin_path}"
        if record.origin_path
        else "submit again with bps submit and your configuration (a campaign: panda_bps campaign submit)"
    )
    what = (
        "before its request itself was sent"
        if intention.part is RequestPart.STEPS
        else f"while it was being sent; {intention.server} does not know its name"
    )
    return (
        f"The submission of run {record.name} was interrupted at {intention.begun_at:%Y-%m-%d %H:%M:%S} UTC "
        f"{what}, so it was not submitted: {again}."
    )
