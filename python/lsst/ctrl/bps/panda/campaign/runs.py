"""The runs of a campaign: submitted one after the other, each once; looked
at, cancelled, restarted.

A second call continues an interrupted submission: a part whose run exists is
not submitted again, and where that is not known the server is asked by the
name of the run.
"""

from __future__ import annotations

__all__ = ["Action", "cancel_campaign", "look", "restart_campaign", "submit_campaign"]

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lsst.ctrl.bps.wms_service import WmsStates

from ..errors import PandaBpsError, SubmissionUncertainError
from ..runs.client import Connection, RunClient
from ..runs.record import read_record
from ..runs.submit import record_submission
from .overview import CampaignOverview, SiteOverview, look_at_campaign
from .record import CampaignRecord, PartRecord, PartState, lock_campaign, read_campaign

_LOG = logging.getLogger(__name__)

Submit = Callable[[str], object]
"""Submits a configuration file as ``bps submit`` does."""


def submit_campaign(
    record: CampaignRecord,
    connection: Connection,
    *,
    submit: Submit,
    tell: Callable[[str], None] = lambda text: None,
) -> bool:
    """Submit the parts that are not submitted yet; a failure at one site does
    not stop the others.

    Parameters
    ----------
    record : `CampaignRecord`
        The campaign; written after each step.
    connection : `Connection`
        The server.
    submit : callable
        Submits one configuration file.
    tell : callable, optional
        Gets a line about each site.

    Returns
    -------
    complete : `bool`
        Whether all sites have their runs now.
    """
    with lock_campaign(record.directory):
        # Another process may have submitted parts since the record was read.
        record.parts = read_campaign(record.directory).parts
        for part in record.parts:
            if part.state is PartState.SUBMITTED:
                tell(f"{part.site}: submitted before as run {part.request_id}")
                continue
            if _submit_part(part, record, connection, submit):
                tell(f"{part.site}: run {part.request_id} ({part.run})")
            else:
                tell(f"{part.site}: not submitted: {part.error}")
    return record.complete


def _submit_part(part: PartRecord, record: CampaignRecord, connection: Connection, submit: Submit) -> bool:
    """Submit one part, keep the outcome in its record, and return whether it
    has its run now.
    """
    try:
        if not _adopt(part, connection):
            _clear(part)
            part.state, part.error = PartState.SUBMITTING, ""
            record.write()
            submit(part.file)
            _submitted(part, _read_request_id(part))
    except SubmissionUncertainError as error:
        part.error = str(error)  # it stays SUBMITTING, so that the next call asks the server
    except (Exception, SystemExit) as error:
        # BPS's drivers let any exception through.
        _LOG.debug("Submission of %s failed", part.file, exc_info=True)
        part.state, part.error = PartState.FAILED, str(error) or type(error).__name__
    record.write()
    return part.request_id is not None


def _read_request_id(part: PartRecord) -> int:
    """Return the request that BPS has just submitted."""
    request_id = read_record(part.submit_path).request_id
    if request_id is None:
        raise PandaBpsError(f"BPS ended without an error, but {part.submit_path} names no request.")
    return request_id


def _submitted(part: PartRecord, request_id: int) -> None:
    part.state, part.request_id, part.error = PartState.SUBMITTED, request_id, ""
    part.submitted_at = datetime.now(UTC).isoformat(timespec="seconds")


def _adopt(part: PartRecord, connection: Connection) -> bool:
    """Take over the run that an earlier call has submitted, if there is one:
    by the run's own record or, if that was not completed, by the server.
    """
    if part.state is PartState.PREPARED:
        return False
    try:
        run = read_record(part.submit_path)
    except PandaBpsError:
        run = None
    if run is not None and run.request_id is not None:
        _submitted(part, run.request_id)
        return True
    found = connection.relay.get_request_ids_by_name(part.run)
    if not found:
        return False
    request_id = found[part.run]
    _submitted(part, request_id)
    _LOG.info("Run %s was submitted before as request %d", part.run, request_id)
    if run is not None:
        record_submission(connection, run, request_id)
    return True


def _clear(part: PartRecord) -> None:
    """Move away what an earlier attempt left: BPS creates the directory."""
    path = Path(part.submit_path)
    if not path.exists():
        return
    number = 1
    while (aside := path.with_name(f"{path.name}.try_{number}")).exists():
        number += 1
    os.rename(path, aside)
    _LOG.info("What an earlier attempt left is in %s", aside)


def look(record: CampaignRecord, connection: Connection) -> CampaignOverview:
    """Ask the server about all runs of a campaign.

    Parameters
    ----------
    record : `CampaignRecord`
        The campaign.
    connection : `Connection`
        The server.
    """
    client = RunClient(connection)

    def successor(request_id: int) -> int | None:
        run = client.find(request_id).record
        return run.restarted_as if run is not None else None

    return look_at_campaign(record, ask=client.status, successor=successor, moment=datetime.now(UTC))


@dataclass(frozen=True, slots=True)
class Action:
    """What was done with the run of a site."""

    site: str
    done: bool
    """Whether it succeeded; true also if there was nothing to do."""

    text: str
    """What was done, or why nothing was done."""


def cancel_campaign(
    overview: CampaignOverview, cancel: Callable[[str], tuple[bool, str]]
) -> Iterator[Action]:
    """Cancel all runs that have not ended, and yield what was done with each.

    Parameters
    ----------
    overview : `CampaignOverview`
        States of the runs.
    cancel : callable
        Cancels a run.
    """
    for site in overview.sites:
        if site.request_id is None:
            yield Action(site.site, True, "has no run")
        elif site.ended:
            yield Action(site.site, True, f"run {site.request_id} is over ({site.state.name})")
        else:
            done, text = cancel(str(site.request_id))
            yield Action(site.site, done, text or f"run {site.request_id} is cancelled")


def restart_campaign(
    overview: CampaignOverview, restart: Callable[[str], tuple[str | None, str | None, str]]
) -> Iterator[Action]:
    """Restart all runs that have ended without success, and yield what was
    done with each.

    Parameters
    ----------
    overview : `CampaignOverview`
        States of the runs.
    restart : callable
        Restarts a run.
    """
    for site in overview.sites:
        if (reason := _why_not(site)) is not None:
            yield reason
            continue
        new_id, _, text = restart(str(site.request_id))
        yield Action(site.site, new_id is not None, text)


def _why_not(site: SiteOverview) -> Action | None:
    """Return why a run is not restarted; `None` if it is to be."""
    if site.request_id is None:
        return Action(site.site, False, "has no run yet; panda_bps campaign submit goes on with it")
    if site.state is WmsStates.SUCCEEDED:
        return Action(site.site, True, f"run {site.request_id} has succeeded")
    if not site.ended and site.state is not WmsStates.UNKNOWN:
        return Action(site.site, True, f"run {site.request_id} still goes on")
    return None
