"""A campaign at one moment: each site's run, and all of them together; as values and as a document.

Pure, but for asking with the function it is given.
"""

from __future__ import annotations

__all__ = [
    "CampaignOverview",
    "SiteOverview",
    "combine_state",
    "look_at_campaign",
    "make_campaign_document",
    "merge_restarts",
]

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lsst.ctrl.bps.wms_service import WmsStates

from ..errors import PandaBpsError
from ..insight.documents import SCHEMA_VERSION, make_plain
from ..report.report import get_status_of
from ..status.evidence import RunEvidence, RunTally
from ..status.states import Counts, no_jobs
from .record import CampaignRecord, PartRecord, PartState

_GOING = (WmsStates.RUNNING, WmsStates.PENDING, WmsStates.READY, WmsStates.HELD, WmsStates.UNREADY)
_NOT_SUBMITTED = {
    PartState.PREPARED: "not submitted yet",
    PartState.SUBMITTING: "its submission goes on, or was interrupted",
}
_OVER = (WmsStates.FAILED, WmsStates.DELETED, WmsStates.PRUNED, WmsStates.SUCCEEDED)


@dataclass(frozen=True, slots=True)
class SiteOverview:
    """One site's part of a campaign."""

    site: str
    share: float
    values: int
    """Number of values of the dimension."""

    run: str
    request_ids: tuple[int, ...]
    """Its run, and the runs that complete it after a restart."""

    state: WmsStates
    ended: bool
    labels: dict[str, Counts]
    path: str
    """Submit directory."""

    problem: str = ""
    """Why it is not submitted, or what could not be found out."""

    @property
    def request_id(self) -> int | None:
        """The run that matters now."""
        return self.request_ids[-1] if self.request_ids else None

    @property
    def total(self) -> Counts:
        """Jobs by state."""
        return _add(self.labels.values())


@dataclass(frozen=True, slots=True)
class CampaignOverview:
    """All sites of a campaign."""

    name: str
    path: str
    partition: str
    moment: datetime
    sites: tuple[SiteOverview, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def state(self) -> WmsStates:
        """State of the whole, see `combine_state`."""
        return combine_state(site.state for site in self.sites)

    @property
    def ended(self) -> bool:
        """Whether every site has its run and all of them are over."""
        return all(site.ended for site in self.sites)

    @property
    def labels(self) -> dict[str, Counts]:
        """Jobs by state for each label, over all sites."""
        names = dict.fromkeys(label for site in self.sites for label in site.labels)
        return {name: _add(site.labels[name] for site in self.sites if name in site.labels) for name in names}

    @property
    def total(self) -> Counts:
        """Jobs by state."""
        return _add(site.total for site in self.sites)


def _add(counts: Iterable[Counts]) -> Counts:
    total = no_jobs()
    for some in counts:
        for state, number in some.items():
            total[state] += number
    return total


def combine_state(states: Iterable[WmsStates]) -> WmsStates:
    """Give one state to several runs.

    Parameters
    ----------
    states : iterable of `~lsst.ctrl.bps.WmsStates`
        State of each run; UNREADY for one that is not submitted.

    Returns
    -------
    state : `~lsst.ctrl.bps.WmsStates`
        UNKNOWN if a state is not known.  While some run is not over: RUNNING
        if one runs or is over, else the furthest.  When all are over: FAILED
        if one failed, else DELETED if one was cancelled, else SUCCEEDED.
    """
    found = set(states)
    if not found or found & {WmsStates.UNKNOWN, WmsStates.MISFIT}:
        return WmsStates.UNKNOWN
    going = [state for state in _GOING if state in found]
    if going and found & set(_OVER):
        return WmsStates.RUNNING
    return going[0] if going else next(state for state in _OVER if state in found)


def look_at_campaign(
    record: CampaignRecord,
    *,
    ask: Callable[[int], RunEvidence],
    successor: Callable[[int], int | None],
    moment: datetime,
) -> CampaignOverview:
    """Find out how all runs of a campaign are.

    Parameters
    ----------
    record : `CampaignRecord`
        The campaign.
    ask : callable
        Finds out what is known of a run.
    successor : callable
        Gives the run that completes a run after a restart, or `None`.
    moment : `~datetime.datetime`
        When the server is asked.
    """
    sites = tuple(_look_at_part(part, ask, successor) for part in record.parts)
    return CampaignOverview(
        name=record.name,
        path=record.directory,
        partition=record.partition,
        moment=moment,
        sites=sites,
        problems=tuple(f"{site.site}: {site.problem}" for site in sites if site.problem),
    )


def _look_at_part(
    part: PartRecord, ask: Callable[[int], RunEvidence], successor: Callable[[int], int | None]
) -> SiteOverview:
    numbers: list[int] = []
    state, ended, labels, problem = WmsStates.UNREADY, False, {}, part.error
    if part.state is PartState.SUBMITTED and part.request_id is not None:
        following: int | None = part.request_id
        while following is not None and following not in numbers:
            numbers.append(following)
            following = successor(following)
        try:
            evidences = [ask(number) for number in numbers]
        except PandaBpsError as error:
            state, problem = WmsStates.UNKNOWN, str(error)
        else:
            tallies = [evidence.tally for evidence in evidences]
            state, problem = get_status_of(evidences[-1])
            ended, labels = evidences[-1].ended, merge_restarts(tallies)
    elif not problem:
        problem = _NOT_SUBMITTED.get(part.state, "")
    return SiteOverview(
        site=part.site,
        share=part.share,
        values=len(part.values),
        run=part.run,
        request_ids=tuple(numbers),
        state=state,
        ended=ended,
        labels=labels,
        path=part.submit_path,
        problem=problem,
    )


def merge_restarts(tallies: Sequence[RunTally]) -> dict[str, Counts]:
    """Count the jobs of a run that was restarted.

    Each later run holds what the one before had not done, so a job counts
    where it was run last, and as done where no later run has it.

    Parameters
    ----------
    tallies : sequence of `RunTally`
        The run and those that complete it, in their order.
    """
    merged = {label: dict(counts) for label, counts in tallies[0].by_label.items()}
    for tally in tallies[1:]:
        for label, counts in tally.by_label.items():
            before = sum(merged.get(label, no_jobs()).values())
            again = sum(counts.values())
            merged[label] = _add([counts])
            merged[label][WmsStates.SUCCEEDED] += max(0, before - again)
        for label in set(merged) - set(tally.by_label):
            # None of it was left to do.
            merged[label] = {**no_jobs(), WmsStates.SUCCEEDED: sum(merged[label].values())}
    return merged


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
