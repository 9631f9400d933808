"""The machine-readable form of a campaign: kind ``campaign`` of the documents
of `panda_bps`.
"""

from __future__ import annotations

__all__ = ["make_campaign_document"]

from typing import Any

from ..insight.documents import SCHEMA_VERSION, make_plain
from .overview import CampaignOverview, SiteOverview


def make_campaign_document(overview: CampaignOverview) -> dict[str, Any]:
    """Give a campaign as JSON-ready data.

    Parameters
    ----------
    overview : `CampaignOverview`
        The campaign.
    """
    return {
        "schema": "panda_bps",
        "version": SCHEMA_VERSION,
        "kind": "campaign",
        "request_id": 0,
        "run": overview.name,
        "problems": list(overview.problems),
        "path": overview.path,
        "partition": overview.partition,
        "moment": make_plain(overview.moment),
        "state": overview.state.name,
        "ended": overview.ended,
        "jobs": sum(overview.total.values()),
        "labels": make_plain(overview.labels),
        "total": make_plain(overview.total),
        "sites": [_site(site) for site in overview.sites],
    }


def _site(site: SiteOverview) -> dict[str, Any]:
    plain: dict[str, Any] = make_plain(site)
    jobs = sum(site.total.values())
    return {**plain, "request_id": site.request_id, "jobs": jobs, "total": make_plain(site.total)}
