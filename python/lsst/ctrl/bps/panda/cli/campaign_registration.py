"""What ``panda_bps rucio status`` shows of a campaign: each site's part of the
registration, and the sum.
"""

from __future__ import annotations

__all__ = ["campaign_lines", "complete", "is_campaign", "look_at_campaign", "rule_line"]

import contextlib
import os
from collections.abc import Iterator

from lsst.ctrl.bps.panda.build_reply import complete_record
from lsst.ctrl.bps.panda.campaign.record import RECORD_NAME, CampaignIndex, find_campaign
from lsst.ctrl.bps.panda.campaign.registration import (
    CampaignRegistration,
    SiteRegistration,
    count_locks,
    count_rules,
    look_at_registrations,
)
from lsst.ctrl.bps.panda.errors import PandaBpsError
from lsst.ctrl.bps.panda.rucio.client import open_client
from lsst.ctrl.bps.panda.rucio.runs import read_registration
from lsst.ctrl.bps.panda.rucio.status import RegistrationStatus, Rule, look_at_registration
from lsst.ctrl.bps.panda.runrecord import RunRecord, read_record
from lsst.ctrl.bps.panda.settings import read_service_settings

from .panda_bps_run import connect_for, table


def is_campaign(name: str) -> bool:
    """Tell whether a name is that of a campaign: its directory, its record, or
    the configuration it was made from.

    Parameters
    ----------
    name : `str`
        What the user wrote.
    """
    return os.path.isfile(name) or os.path.isfile(os.path.join(name, RECORD_NAME))


def complete(record: RunRecord, *, local: bool) -> RunRecord:
    """Complete the record of a remote build, if its site has sent something.

    Parameters
    ----------
    record : `RunRecord`
        Record of any run.
    local : `bool`
        Whether the embedded PanDA is asked for.
    """
    remote = record.content.get("remote")
    if not remote or remote.get("complete"):
        return record
    # Without the server, it is said that the site has not sent it.
    with contextlib.suppress(PandaBpsError):
        complete_record(connect_for(record.submit_path, local=local), record.submit_path)
    return read_record(record.submit_path)


def look_at_campaign(name: str, *, local: bool) -> CampaignRegistration:
    """Find out what all runs of a campaign have registered.

    Parameters
    ----------
    name : `str`
        Its directory, or the configuration it was made from.
    local : `bool`
        Whether the embedded PanDA is asked for.
    """
    record = find_campaign(name, CampaignIndex(read_service_settings(None).state_directory))
    client = open_client()

    def ask(submit_path: str) -> tuple[RegistrationStatus, tuple[str, ...]]:
        run = complete(read_record(submit_path), local=local)
        return look_at_registration(client, read_registration(run))

    return look_at_registrations(record, ask)


def rule_line(rule: Rule) -> str:
    """Write a rule.

    Parameters
    ----------
    rule : `Rule`
        The rule.
    """
    ends = f", until {rule.expires_at}" if rule.expires_at else ""
    waiting = f", to come {rule.waiting}" if rule.waiting else ""
    return (
        f"rule {rule.rule_id}: {rule.state}, {rule.copies} of {rule.rse_expression}, account {rule.account}"
        f"{ends}; locks OK {rule.ok}, replicating {rule.replicating}, stuck {rule.stuck}{waiting}"
        + (f"; {rule.error}" if rule.error else "")
    )


def campaign_lines(found: CampaignRegistration, *, list_missing: bool) -> Iterator[str]:
    """Write the registration of a campaign.

    Parameters
    ----------
    found : `CampaignRegistration`
        What was found out.
    list_missing : `bool`
        Whether every file that is missing is named.
    """
    done = sum(site.is_complete for site in found.sites)
    share = f"{done} of {len(found.sites)}"
    yield f"Campaign {found.name}: registration complete at {share} sites, in {found.path}"
    rows = [(site.site, site.request_id, *_numbers(site)) for site in found.sites]
    asked = len(found.not_asked) < len(found.sites)
    rows.append(
        (
            "total",
            None,
            found.outputs if asked else None,
            found.outputs - found.missing if asked else None,
            found.missing if asked else None,
            found.files,
            *count_locks(found.rules).values(),
            _states(found.rules),
        )
    )
    head = ("site", "run", "in the Butler", "registered", "missing", "files")
    yield from table((*head, "locks OK", "replicating", "stuck", "to come", "rules"), rows)
    if found.not_asked and asked:
        yield f"in the Butler, registered, missing: without {', '.join(found.not_asked)}"
    if found.places:
        places = [(place.rse, place.available, place.others) for place in found.places]
        yield from ("  " + line for line in table(("replicas at", "available", "other"), places))
    yield from _wanting(found, list_missing=list_missing)


def _numbers(site: SiteRegistration) -> tuple[object, ...]:
    """Give the figures of a site; `None` for what is not known."""
    status = site.status
    if status is None:
        return (None,) * 9
    missing = None if status.outputs is None else len(status.missing)
    registered = None if status.outputs is None or missing is None else status.outputs - missing
    return (
        status.outputs,
        registered,
        missing,
        status.files,
        *count_locks(status.rules).values(),
        _states(status.rules),
    )


def _states(rules: tuple[Rule, ...]) -> str:
    return ", ".join(f"{number} {state}" for state, number in count_rules(rules).items()) or "none"


def _wanting(found: CampaignRegistration, *, list_missing: bool) -> Iterator[str]:
    """Say what lacks besides figures: rules, graphs and, if asked for, the
    names of files.
    """
    for site in found.sites:
        status = site.status
        if status is None:
            continue
        if status.rule_missing:
            yield f"{site.site}: no rule for {status.rule_missing}, which there should be"
        if status.quantum_graph is False:
            yield f"{site.site}: the quantum graph is missing"
        for name in status.absent:
            yield f"{site.site}: the run has no dataset of type {name}"
        for name in status.missing if list_missing else ():
            yield f"{site.site}: missing {name}"
    for rule in found.rules:
        if rule.error or rule.state not in ("OK", "REPLICATING"):
            yield rule_line(rule)
