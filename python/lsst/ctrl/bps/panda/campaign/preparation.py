"""The preparation of a campaign: the data divided, a configuration for each
site, and all of them checked.
"""

from __future__ import annotations

__all__ = ["Preparation", "prepare_campaign"]

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from lsst.daf.butler import Butler

from ..checks.configuration import check_configuration
from ..errors import SettingsError
from ..findings import Finding, Severity
from ..runs.files import write_text
from ..settings.campaign import Value
from ..settings.rucio import read_registration_settings
from .parts import (
    CampaignConfiguration,
    SitePart,
    ask_butler,
    divide_campaign,
    find_shared_places,
    make_parts,
    render_part,
)
from .record import CampaignRecord


@dataclass(frozen=True, slots=True)
class Preparation:
    """A campaign that is divided and checked, and not written yet."""

    configuration: CampaignConfiguration
    parts: tuple[SitePart, ...]
    record: CampaignRecord
    findings: tuple[Finding, ...]
    """Findings about the campaign, and about each site, whose name begins the
    text."""

    def write(self) -> CampaignRecord:
        """Write the user's configuration as it is now, the parts, and last
        the record.
        """
        record = self.record
        directory = Path(record.directory)
        base = _base_name(record)
        content: dict[str, Any] = dict(self.configuration.content)
        head = f"# {record.config} with all that it includes, as of {record.prepared_at}.\n"
        write_text(directory / base, [head, yaml.safe_dump(content, sort_keys=False, allow_unicode=True)])
        for part in self.parts:
            write_text(Path(part.record.file), [render_part(part, base=base, campaign=record.name)])
        record.write()
        return record


def prepare_campaign(configuration: CampaignConfiguration, environment: Mapping[str, str]) -> Preparation:
    """Divide a campaign, and check the configurations of all of its sites.

    Parameters
    ----------
    configuration : `CampaignConfiguration`
        The campaign.
    environment : mapping of `str` to `str`
        The environment, for the checks.

    Raises
    ------
    SettingsError
        Raised if the campaign cannot be divided.
    """
    directory = _directory(configuration)
    divided = divide_campaign(configuration, _count(configuration))
    parts = make_parts(configuration, divided, directory=directory)
    record = CampaignRecord(
        name=configuration.run.name,
        directory=directory,
        config=configuration.path,
        digest=configuration.digest,
        service_class=configuration.run.service_class,
        partition=configuration.section.partition,
        prepared_at=datetime.now(UTC).isoformat(timespec="seconds"),
        parts=[part.record for part in parts],
    )
    findings = (*_check_parts(configuration, parts, environment), *find_shared_places(configuration))
    return Preparation(configuration, parts, record, findings)


def _directory(configuration: CampaignConfiguration) -> str:
    """Return the campaign's submit directory, which must not exist yet."""
    directory = os.path.abspath(configuration.run.submit_path)
    if bad := sorted(set(directory) & set("${}")):
        raise SettingsError(
            f"submitPath is {directory!r}, with {' '.join(bad)}, which BPS takes for variables."
        )
    if os.path.exists(directory):
        raise SettingsError(
            f"submitPath is {directory!r}, which is there already. If it is this campaign, continue it: "
            f"panda_bps campaign submit {directory}. Else use another submitPath or outputRun."
        )
    return directory


def _count(configuration: CampaignConfiguration) -> dict[Value, float]:
    """Count the values in the Butler, unless the configuration lists them."""
    section = configuration.section
    if section.values:
        return {}
    where = configuration.run.butler
    if not where:
        raise SettingsError(
            f"Neither campaignSites.values nor butlerConfig is set, so it is not known which values of "
            f"{section.partition} there are. Set one of them; a site's own butlerConfig does not count here."
        )
    collections = configuration.run.input_collections
    try:
        with Butler.from_config(where, writeable=False) as butler:
            counted: Mapping[Value, float] = ask_butler(
                butler,
                section.partition,
                data_query=configuration.run.data_query,
                collections=collections,
                dataset_type=section.dataset_type,
            )
    except SettingsError:
        raise
    except Exception as error:
        # The Butler's errors have no common parent.
        raise SettingsError(
            f"The Butler {where} could not be asked for values of {section.partition}: {error}. Correct "
            "butlerConfig, inCollection or dataQuery, or give campaignSites.values."
        ) from error
    return dict(counted)


def _check_parts(
    configuration: CampaignConfiguration, parts: Sequence[SitePart], environment: Mapping[str, str]
) -> list[Finding]:
    """Check the configuration of every part."""
    findings = [
        replace(finding, text=f"Site {part.record.site}: {finding.text}")
        for part in parts
        for finding in check_configuration(configuration.with_settings(part.content), environment)
    ]
    return findings + _find_closed_too_early(configuration, parts, environment)


def _find_closed_too_early(
    configuration: CampaignConfiguration, parts: Sequence[SitePart], environment: Mapping[str, str]
) -> list[Finding]:
    """Find sites that register into a dataset which another one closes."""
    sites: dict[str, list[str]] = {}
    closing: dict[str, str] = {}
    for part in parts:
        try:
            settings = read_registration_settings(configuration.with_settings(part.content), environment)
        except SettingsError:
            continue  # found by the check of the site's configuration
        if settings is None:
            continue
        place = f"{settings.registration.scope}:{settings.registration.dataset}"
        sites.setdefault(place, []).append(part.record.site)
        if settings.registration.close:
            closing.setdefault(place, part.record.site)
    return [
        Finding(
            Severity.ERROR,
            f"Site {site} closes Rucio's dataset {place}, into which {' and '.join(sites[place])} register, "
            "so that whoever ends later registers nothing. Set rucio.close to no, or give each site a "
            "datasetName.",
            key="rucio.close",
        )
        for place, site in closing.items()
        if len(sites[place]) > 1
    ]


def _base_name(record: CampaignRecord) -> str:
    """Return the name of the file that all parts include, which no other
    campaign uses: BPS looks for relative includes in the current directory
    first.
    """
    return f"{record.name}_campaign.yaml"
