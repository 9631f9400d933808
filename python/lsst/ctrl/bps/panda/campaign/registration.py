"""What the runs of a campaign have registered in Rucio: each site's part, and
all of them together.
"""

from __future__ import annotations

__all__ = [
    "CampaignRegistration",
    "SiteRegistration",
    "count_locks",
    "count_rules",
    "look_at_registrations",
    "make_registration_document",
]

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import PandaBpsError
from ..insight.documents import SCHEMA_VERSION, make_plain
from ..rucio.status import Place, RegistrationStatus, Rule, plain_status
from .record import CampaignRecord, PartRecord, PartState


@dataclass(frozen=True, slots=True)
class SiteRegistration:
    """What the run of one site has registered."""

    site: str
    run: str
    request_id: int | None
    """The run as it was submitted; `None` if it was not."""

    path: str
    """Submit directory."""

    status: RegistrationStatus | None
    """`None` if nothing is known."""

    problems: tuple[str, ...]
    """What could not be found out."""

    @property
    def is_complete(self) -> bool:
        """Whether all outputs are registered and all rules are satisfied."""
        return self.status is not None and self.status.is_complete


@dataclass(frozen=True, slots=True)
class CampaignRegistration:
    """What all runs of a campaign have registered."""

    name: str
    path: str
    sites: tuple[SiteRegistration, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """What could not be found out, each with its site."""
        return tuple(f"{site.site}: {text}" for site in self.sites for text in site.problems)

    @property
    def statuses(self) -> tuple[RegistrationStatus, ...]:
        """What is known, site by site."""
        return tuple(site.status for site in self.sites if site.status is not None)

    @property
    def datasets(self) -> tuple[RegistrationStatus, ...]:
        """The same, each dataset of Rucio once: sites may share one, and then
        each of them has all its files, places and rules.
        """
        return tuple({(status.scope, status.dataset): status for status in self.statuses}.values())

    @property
    def not_asked(self) -> tuple[str, ...]:
        """Sites whose Butler was not asked, so that `outputs` and `missing`
        are without theirs.
        """
        return tuple(site.site for site in self.sites if site.status is None or site.status.outputs is None)

    @property
    def outputs(self) -> int:
        """Outputs in the Butlers that were asked."""
        return sum(status.outputs or 0 for status in self.statuses)

    @property
    def missing(self) -> int:
        """Those of them that are not registered."""
        return sum(len(status.missing) for status in self.statuses)

    @property
    def files(self) -> int:
        """Files of all datasets."""
        return sum(status.files for status in self.datasets)

    @property
    def size(self) -> int:
        """Their bytes."""
        return sum(status.size for status in self.datasets)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """All rules."""
        return tuple(rule for status in self.datasets for rule in status.rules)

    @property
    def places(self) -> tuple[Place, ...]:
        """Replicas of all datasets by RSE."""
        available: Counter[str] = Counter()
        others: Counter[str] = Counter()
        for place in (place for status in self.datasets for place in status.places):
            available[place.rse] += place.available
            others[place.rse] += place.others
        return tuple(Place(rse, available[rse], others[rse]) for rse in sorted(available))

    @property
    def is_complete(self) -> bool:
        """Whether all outputs of all sites are registered and all rules are
        satisfied.
        """
        return all(site.is_complete for site in self.sites)


def look_at_registrations(
    record: CampaignRecord, ask: Callable[[str], tuple[RegistrationStatus, tuple[str, ...]]]
) -> CampaignRegistration:
    """Find out what all runs of a campaign have registered.

    Parameters
    ----------
    record : `CampaignRecord`
        The campaign.
    ask : callable
        Finds out what the run of a submit directory has registered, and says
        what it could not find out.
    """
    sites = tuple(_look_at_part(part, ask) for part in record.parts)
    return CampaignRegistration(record.name, record.directory, sites)


def _look_at_part(
    part: PartRecord, ask: Callable[[str], tuple[RegistrationStatus, tuple[str, ...]]]
) -> SiteRegistration:
    status: RegistrationStatus | None = None
    problems: tuple[str, ...] = ("all of it: its run is not submitted.",)
    if part.state is PartState.SUBMITTED:
        try:
            status, problems = ask(part.submit_path)
        except PandaBpsError as error:
            # One site must not hide the others.
            problems = (f"all of it. {error}",)
    return SiteRegistration(part.site, part.run, part.request_id, part.submit_path, status, problems)


def count_rules(rules: tuple[Rule, ...]) -> dict[str, int]:
    """Count rules by their state.

    Parameters
    ----------
    rules : `tuple` [`Rule`, ...]
        Rules.
    """
    return dict(sorted(Counter(rule.state for rule in rules).items()))


def count_locks(rules: tuple[Rule, ...]) -> dict[str, int]:
    """Count the locks of rules by their state.

    Parameters
    ----------
    rules : `tuple` [`Rule`, ...]
        Rules.
    """
    return {
        "ok": sum(rule.ok for rule in rules),
        "replicating": sum(rule.replicating for rule in rules),
        "stuck": sum(rule.stuck for rule in rules),
        "waiting": sum(rule.waiting for rule in rules),
    }


def make_registration_document(found: CampaignRegistration) -> dict[str, Any]:
    """Give it as JSON-ready data: kind ``campaign_rucio`` of the documents of
    `panda_bps`.

    Parameters
    ----------
    found : `CampaignRegistration`
        What was found out.
    """
    return {
        "schema": "panda_bps",
        "version": SCHEMA_VERSION,
        "kind": "campaign_rucio",
        "request_id": 0,
        "run": found.name,
        "problems": list(found.problems),
        "path": found.path,
        "complete": found.is_complete,
        "total": {
            "outputs": found.outputs,
            "registered": found.outputs - found.missing,
            "missing": found.missing,
            "files": found.files,
            "size": found.size,
            "rules": count_rules(found.rules),
            **count_locks(found.rules),
        },
        "places": make_plain(found.places),
        "not_asked": list(found.not_asked),
        "sites": [_site(site) for site in found.sites],
    }


def _site(site: SiteRegistration) -> dict[str, Any]:
    return {
        "site": site.site,
        "run": site.run,
        "request_id": site.request_id,
        "path": site.path,
        "complete": site.is_complete,
        "problems": list(site.problems),
        "rucio": None if site.status is None else plain_status(site.status),
    }
