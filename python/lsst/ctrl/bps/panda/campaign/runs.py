"""The runs of a campaign: submitted one after the other, each once; looked at, with what they have registered
in Rucio; cancelled and restarted.

A second call continues an interrupted submission: a part whose run exists is not submitted again, and where
that is not known the server is asked by the name of the run.
"""

from __future__ import annotations

__all__ = [
    "CampaignOverview",
    "CampaignRegistration",
    "SiteOverview",
    "SiteRegistration",
    "cancel_campaign",
    "combine_state",
    "count_locks",
    "count_rules",
    "fetch_campaign",
    "make_overview",
    "make_registration_overview",
    "make_campaign_document",
    "make_list_document",
    "make_registration_document",
    "merge_restarts",
    "restart_campaign",
    "submit_campaign",
]

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lsst.ctrl.bps.wms_service import WmsStates

from ..errors import PandaBpsError, SubmissionUncertainError
from ..insight.documents import make_document, make_plain
from ..report import get_status_of
from ..rucio.status import RegistrationStatus, ReplicaCount, Rule, make_plain_status
from ..runs.client import Connection, RunClient
from ..runs.intention import record_submission, settle
from ..runs.record import read_record
from ..status.bps_states import Counts, sum_counts, zero_counts
from ..status.evidence import RunEvidence, RunTally
from .record import CampaignLine, CampaignRecord, PartRecord, PartState, lock_campaign, read_campaign

_LOG = logging.getLogger(__name__)

_GOING = (WmsStates.RUNNING, WmsStates.PENDING, WmsStates.READY, WmsStates.HELD, WmsStates.UNREADY)
_NOT_SUBMITTED = {
    PartState.PREPARED: "not submitted yet",
    PartState.SUBMITTING: "its submission goes on, or was interrupted",
}
_OVER = (WmsStates.FAILED, WmsStates.DELETED, WmsStates.PRUNED, WmsStates.SUCCEEDED)


# --- submission -------------------------------------------------------------

Submit = Callable[[str], object]
"""Submits a configuration file as ``bps submit`` does."""


def submit_campaign(
    record: CampaignRecord,
    connection: Connection,
    *,
    submit: Submit,
    tell: Callable[[str], None] = lambda text: None,
) -> bool:
    """Submit the parts that are not submitted yet, and return whether all sites have their runs now; a
    failure at one site does not stop the others.

    The record is written after each step, and ``tell`` gets a line about each site.
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
    """Submit one part, keep the outcome in its record, and return whether it has its run now."""
    try:
        if not _adopt(part, connection):
            _clear(part)
            part.state, part.error = PartState.SUBMITTING, ""
            record.write()
            submit(part.file)
            request_id = read_record(part.submit_path).request_id
            if request_id is None:
                raise PandaBpsError(f"BPS ended without an error, but {part.submit_path} names no request.")
            _submitted(part, request_id)
    except SubmissionUncertainError as error:
        part.error = str(error)  # it stays SUBMITTING, so that the next call asks the server
    except (Exception, SystemExit) as error:
        # BPS's drivers let any exception through.
        _LOG.debug("Submission of %s failed", part.file, exc_info=True)
        part.state, part.error = PartState.FAILED, str(error) or type(error).__name__
    record.write()
    return part.request_id is not None


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
    interrupted = run is not None and run.intention is not None
    if run is not None:
        run = settle(connection.relay, connection.settings, run)
        if run.request_id is not None:
            _submitted(part, run.request_id)
        if run.request_id is not None or interrupted:
            return run.request_id is not None
    found = connection.relay.get_request_ids_by_name(part.run)
    if not found:
        return False
    request_id = found[part.run]
    _submitted(part, request_id)
    _LOG.info("Run %s was submitted before as request %d", part.run, request_id)
    if run is not None:
        record_submission(connection.settings, run, request_id)
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


# --- states -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SiteOverview:
    """The run of one site."""

    site: str
    share: float
    values: int
    """Number of values of the dimension."""

    run: str
    request_ids: tuple[int, ...]
    """The run, and its restarts."""

    state: WmsStates
    ended: bool
    labels: dict[str, Counts]
    path: str
    """Submit directory."""

    problem: str = ""
    """Why there is no run, or what could not be found out about it."""

    @property
    def request_id(self) -> int | None:
        """The run or its latest restart; `None` without a run."""
        return self.request_ids[-1] if self.request_ids else None

    @property
    def total(self) -> Counts:
        """Jobs by state."""
        return sum_counts(self.labels.values())


@dataclass(frozen=True, slots=True)
class CampaignOverview:
    """The runs of all sites."""

    name: str
    path: str
    partition: str
    moment: datetime = field(compare=False)
    sites: tuple[SiteOverview, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def state(self) -> WmsStates:
        """State of all runs together, see `combine_state`."""
        return combine_state(site.state for site in self.sites)

    @property
    def ended(self) -> bool:
        """Whether every site has its run and all runs have ended."""
        return all(site.ended for site in self.sites)

    @property
    def labels(self) -> dict[str, Counts]:
        """Jobs by state for each label, over all sites."""
        names = dict.fromkeys(label for site in self.sites for label in site.labels)
        return {name: sum_counts(site.labels.get(name, {}) for site in self.sites) for name in names}

    @property
    def total(self) -> Counts:
        """Jobs by state."""
        return sum_counts(site.total for site in self.sites)


def combine_state(states: Iterable[WmsStates]) -> WmsStates:
    """Return one state for several runs; a run that is not submitted counts as UNREADY.

    It is UNKNOWN if any state is not known.  While a run has not ended, it is RUNNING if one runs or has
    ended, otherwise the most advanced.  When all have ended, it is FAILED if one failed, otherwise DELETED if
    one was cancelled, otherwise SUCCEEDED.
    """
    found = set(states)
    if not found or found & {WmsStates.UNKNOWN, WmsStates.MISFIT}:
        return WmsStates.UNKNOWN
    going = [state for state in _GOING if state in found]
    if going and found & set(_OVER):
        return WmsStates.RUNNING
    return going[0] if going else next(state for state in _OVER if state in found)


def make_overview(
    record: CampaignRecord,
    *,
    ask: Callable[[int], RunEvidence],
    successor: Callable[[int], int | None],
    moment: datetime,
) -> CampaignOverview:
    """Find out the states of all runs of a campaign.

    ``ask`` returns the evidence of a run, and ``successor`` the number of its restart, or `None`.
    """
    sites = tuple(_make_site_overview(part, ask, successor) for part in record.parts)
    return CampaignOverview(
        name=record.name,
        path=record.directory,
        partition=record.partition,
        moment=moment,
        sites=sites,
        problems=tuple(f"{site.site}: {site.problem}" for site in sites if site.problem),
    )


def _make_site_overview(
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
    """Count the jobs of a run and its restarts, each job once.

    A restart has the jobs that the run before it had not done.  So a job counts in the last run that has it,
    and one that the latest restart does not have has succeeded.
    """
    merged = {label: dict(counts) for label, counts in tallies[0].by_label.items()}
    for tally in tallies[1:]:
        for label, counts in tally.by_label.items():
            before = sum(merged.get(label, zero_counts()).values())
            again = sum(counts.values())
            merged[label] = sum_counts([counts])
            merged[label][WmsStates.SUCCEEDED] += max(0, before - again)
        for label in set(merged) - set(tally.by_label):
            # None of its jobs was left to do.
            merged[label] = {**zero_counts(), WmsStates.SUCCEEDED: sum(merged[label].values())}
    return merged


def make_campaign_document(overview: CampaignOverview) -> dict[str, Any]:
    """Make the JSON document of kind ``campaign``."""
    content = {
        "path": overview.path,
        "partition": overview.partition,
        "moment": overview.moment,
        "state": overview.state,
        "ended": overview.ended,
        "jobs": sum(overview.total.values()),
        "labels": overview.labels,
        "total": overview.total,
        "sites": [_plain_site(site) for site in overview.sites],
    }
    return make_document(
        content, kind="campaign", request_id=0, name=overview.name, problems=overview.problems
    )


def make_list_document(lines: Iterable[CampaignLine]) -> dict[str, Any]:
    """Make the JSON document of kind ``campaigns``."""
    keys = ("prepared", "runs", "path", "config", "key")
    listed = [{key: getattr(line, key) for key in keys} for line in lines]
    return make_document({"campaigns": listed}, kind="campaigns", request_id=0)


def _plain_site(site: SiteOverview) -> dict[str, Any]:
    plain: dict[str, Any] = make_plain(site)
    jobs = sum(site.total.values())
    return {**plain, "request_id": site.request_id, "jobs": jobs, "total": make_plain(site.total)}


def fetch_campaign(record: CampaignRecord, connection: Connection) -> CampaignOverview:
    """Ask the server about all runs of a campaign."""
    client = RunClient(connection)

    def successor(request_id: int) -> int | None:
        run = client.find(request_id).record
        return run.restarted_as if run is not None else None

    return make_overview(record, ask=client.status, successor=successor, moment=datetime.now(UTC))


# --- cancelling and restarting ----------------------------------------------


@dataclass(frozen=True, slots=True)
class SiteAction:
    """What was done with the run of a site."""

    site: str
    done: bool
    """Whether it succeeded; true also if there was nothing to do."""

    text: str
    """What was done, or why nothing was done."""


def cancel_campaign(
    overview: CampaignOverview, cancel: Callable[[str], tuple[bool, str]]
) -> Iterator[SiteAction]:
    """Cancel all runs that have not ended, and yield what was done with each."""
    for site in overview.sites:
        if site.request_id is None:
            yield SiteAction(site.site, True, "has no run")
        elif site.ended:
            yield SiteAction(site.site, True, f"run {site.request_id} is over ({site.state.name})")
        else:
            done, text = cancel(str(site.request_id))
            yield SiteAction(site.site, done, text or f"run {site.request_id} is cancelled")


def restart_campaign(
    overview: CampaignOverview, restart: Callable[[str], tuple[str | None, str | None, str]]
) -> Iterator[SiteAction]:
    """Restart all runs that have ended without success, and yield what was done with each."""
    for site in overview.sites:
        if site.request_id is None:
            yield SiteAction(site.site, False, "has no run yet; panda_bps campaign submit goes on with it")
        elif site.state is WmsStates.SUCCEEDED:
            yield SiteAction(site.site, True, f"run {site.request_id} has succeeded")
        elif not site.ended and site.state is not WmsStates.UNKNOWN:
            yield SiteAction(site.site, True, f"run {site.request_id} still goes on")
        else:
            new_id, _, text = restart(str(site.request_id))
            yield SiteAction(site.site, new_id is not None, text)


# --- registrations in Rucio -------------------------------------------------


@dataclass(frozen=True, slots=True)
class SiteRegistration:
    """What the run of one site has registered in Rucio."""

    site: str
    run: str
    request_id: int | None
    """The run as it was submitted; `None` without one."""

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
    """What all runs of a campaign have registered in Rucio."""

    name: str
    path: str
    sites: tuple[SiteRegistration, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """What could not be found out, each with its site."""
        return tuple(f"{site.site}: {text}" for site in self.sites for text in site.problems)

    @property
    def statuses(self) -> tuple[RegistrationStatus, ...]:
        """The registrations that are known, site by site."""
        return tuple(site.status for site in self.sites if site.status is not None)

    @property
    def datasets(self) -> tuple[RegistrationStatus, ...]:
        """The same, with each dataset of Rucio once: sites that share one
        report all of its files, places and rules.
        """
        return tuple({(status.scope, status.dataset): status for status in self.statuses}.values())

    @property
    def not_asked(self) -> tuple[str, ...]:
        """Sites whose Butler was not asked, so that `outputs` and `missing` do not count theirs."""
        return tuple(site.site for site in self.sites if site.status is None or site.status.outputs is None)

    @property
    def outputs(self) -> int:
        """Outputs in the Butlers that were asked."""
        return sum(status.outputs or 0 for status in self.statuses)

    @property
    def missing(self) -> int:
        """Outputs that are not registered."""
        return sum(len(status.missing) for status in self.statuses)

    @property
    def files(self) -> int:
        """Files of all datasets."""
        return sum(status.files for status in self.datasets)

    @property
    def size(self) -> int:
        """Size of all datasets, bytes."""
        return sum(status.size for status in self.datasets)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Rules of all datasets."""
        return tuple(rule for status in self.datasets for rule in status.rules)

    @property
    def places(self) -> tuple[ReplicaCount, ...]:
        """Replicas of all datasets by RSE."""
        available: Counter[str] = Counter()
        others: Counter[str] = Counter()
        for place in (place for status in self.datasets for place in status.places):
            available[place.rse] += place.available
            others[place.rse] += place.others
        return tuple(ReplicaCount(rse, available[rse], others[rse]) for rse in sorted(available))

    @property
    def is_complete(self) -> bool:
        """Whether all outputs of all sites are registered and all rules are satisfied."""
        return all(site.is_complete for site in self.sites)


def make_registration_overview(
    record: CampaignRecord, ask: Callable[[str], tuple[RegistrationStatus, tuple[str, ...]]]
) -> CampaignRegistration:
    """Find out what all runs of a campaign have registered.

    ``ask`` takes a submit directory, and returns what its run has registered and what could not be found out.
    """
    sites = []
    for part in record.parts:
        status: RegistrationStatus | None = None
        problems: tuple[str, ...] = ("all of it: its run is not submitted.",)
        if part.state is PartState.SUBMITTED:
            try:
                status, problems = ask(part.submit_path)
            except PandaBpsError as error:
                # An error at one site must not hide the others.
                problems = (f"all of it. {error}",)
        sites.append(
            SiteRegistration(part.site, part.run, part.request_id, part.submit_path, status, problems)
        )
    return CampaignRegistration(record.name, record.directory, tuple(sites))


def count_rules(rules: tuple[Rule, ...]) -> dict[str, int]:
    """Count rules by their state."""
    return dict(sorted(Counter(rule.state for rule in rules).items()))


def count_locks(rules: tuple[Rule, ...]) -> dict[str, int]:
    """Count the locks of rules by their state."""
    return {
        "ok": sum(rule.ok for rule in rules),
        "replicating": sum(rule.replicating for rule in rules),
        "stuck": sum(rule.stuck for rule in rules),
        "waiting": sum(rule.waiting for rule in rules),
    }


def make_registration_document(found: CampaignRegistration) -> dict[str, Any]:
    """Make the JSON document of kind ``campaign_rucio``."""
    content = {
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
        "places": found.places,
        "not_asked": found.not_asked,
        "sites": [
            {
                "site": site.site,
                "run": site.run,
                "request_id": site.request_id,
                "path": site.path,
                "complete": site.is_complete,
                "problems": list(site.problems),
                "rucio": None if site.status is None else make_plain_status(site.status),
            }
            for site in found.sites
        ],
    }
    return make_document(
        content, kind="campaign_rucio", request_id=0, name=found.name, problems=found.problems
    )
