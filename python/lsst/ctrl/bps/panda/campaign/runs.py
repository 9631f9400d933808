"""Submit the parts of a campaign in turn, each once; look at its runs, cancel them, restart them.

A second call continues what was interrupted: a part whose run exists is not
submitted again, and where that is not known the run is looked up by its name.
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
    """Submit what is not submitted yet.

    A site whose submission fails does not keep the others from theirs.

    Parameters
    ----------
    record : `CampaignRecord`
        The campaign; is written after each step.
    connection : `Connection`
        The server.
    submit : callable
        Submits one configuration file.
    tell : callable, optional
        Is told what happens, a line each.

    Returns
    -------
    complete : `bool`
        Whether all sites have their runs now.

    Raises
    ------
    PandaBpsError
        Raised if another process submits the same campaign.
    """
    with lock_campaign(record.directory):
        # What was read before the lock may be older than what another process has submitted since.
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
    """Submit one part; what happened is in its record.  Tell whether it has
    its run now.
    """
    try:
        if not _adopt(part, connection):
            _clear(part)
            part.state, part.error = PartState.SUBMITTING, ""
            record.write()
            submit(part.file)
            _submitted(part, _read_request_id(part))
    except SubmissionUncertainError as error:
        part.error = str(error)  # it stays SUBMITTING, so that it is looked up
    except (Exception, SystemExit) as error:
        # BPS's drivers raise whatever the parts they call raise.
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
    """Find out whether an earlier call has submitted the part.

    The run's own record knows if that call came so far; else the server does.
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
    """Move what an earlier try left away: BPS wants to make the directory."""
    path = Path(part.submit_path)
    if not path.exists():
        return
    number = 1
    while (aside := path.with_name(f"{path.name}.try_{number}")).exists():
        number += 1
    os.rename(path, aside)
    _LOG.info("What an earlier try left is in %s", aside)


def look(record: CampaignRecord, connection: Connection) -> CampaignOverview:
    """Ask the server about all runs of a campaign: a question for each run.

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
    """What was done about a site's run."""

    site: str
    done: bool
    """Also if there was nothing to do."""

    text: str
    """What was done, or why not."""


def cancel_campaign(
    overview: CampaignOverview, cancel: Callable[[str], tuple[bool, str]]
) -> Iterator[Action]:
    """Cancel all runs that are not over.

    Parameters
    ----------
    overview : `CampaignOverview`
        How the runs are.
    cancel : callable
        Cancels a run.

    Yields
    ------
    action : `Action`
        What was done, site by site.
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
    """Run again what did not succeed, at the sites whose runs are over.

    Parameters
    ----------
    overview : `CampaignOverview`
        How the runs are.
    restart : callable
        Restarts a run.

    Yields
    ------
    action : `Action`
        What was done, site by site.
    """
    for site in overview.sites:
        if (reason := _why_not(site)) is not None:
            yield reason
            continue
        new_id, _, text = restart(str(site.request_id))
        yield Action(site.site, new_id is not None, text)


def _why_not(site: SiteOverview) -> Action | None:
    """Say why a site's run is left as it is; `None` if it is not."""
    if site.request_id is None:
        return Action(site.site, False, "has no run yet; panda_bps campaign submit goes on with it")
    if site.state is WmsStates.SUCCEEDED:
        return Action(site.site, True, f"run {site.request_id} has succeeded")
    if not site.ended and site.state is not WmsStates.UNKNOWN:
        return Action(site.site, True, f"run {site.request_id} still goes on")
    return None
