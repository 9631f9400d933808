"""Look at the runs of a campaign, cancel them, restart them."""

from __future__ import annotations

__all__ = ["Action", "cancel_campaign", "look", "restart_campaign"]

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from lsst.ctrl.bps.wms_service import WmsStates

from ..build_reply import complete_record
from ..inquiry import Connection, Inquiry
from ..runrecord import RunIndex
from .overview import CampaignOverview, SiteOverview, look_at_campaign
from .record import CampaignRecord


def look(record: CampaignRecord, connection: Connection) -> CampaignOverview:
    """Ask the server about all runs of a campaign: a question for each run.

    Parameters
    ----------
    record : `CampaignRecord`
        The campaign.
    connection : `Connection`
        The server.
    """
    inquiry = Inquiry(connection)
    index = RunIndex(connection.settings.state_directory)

    def successor(request_id: int) -> int | None:
        run = index.find(connection.settings.url, request_id=request_id)
        following = run.content.get("restarted_as") if run is not None else None
        return int(following) if following else None

    for part in record.parts:
        if part.request_id is not None:
            complete_record(connection, str(part.request_id))
    return look_at_campaign(record, ask=inquiry.status, successor=successor, moment=datetime.now(UTC))


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
