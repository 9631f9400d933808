"""The parts of a campaign: an ordinary BPS configuration for each site, made from the campaign's own."""

from __future__ import annotations

__all__ = [
    "CampaignConfiguration",
    "Part",
    "divide_campaign",
    "find_shared_places",
    "make_configuration",
    "make_parts",
    "read_configuration",
    "render_part",
]

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lsst.daf.butler import Config

from lsst.ctrl.bps import BpsConfig

from ..errors import SettingsError
from ..findings import Finding, Severity
from ..settings.campaign import SECTION, CampaignSection, SiteShare, Value, divide, read_section
from ..settings.configuration import RunConfiguration, complete_configuration
from .values import check_values, fixed_in, render_condition


@dataclass(frozen=True, slots=True)
class CampaignConfiguration:
    """What a user wrote, with what BPS makes of it."""

    path: str
    """The user's file, absolute."""

    content: Mapping[str, Any]
    """Its content with all that it includes, nothing put in."""

    run: RunConfiguration
    """The same over BPS's defaults."""

    section: CampaignSection

    @property
    def digest(self) -> str:
        """Digest of the content, by which a change is noticed."""
        text = json.dumps(self.content, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def with_settings(self, settings: Mapping[str, Any]) -> BpsConfig:
        """Return the configuration with more settings over it.

        Parameters
        ----------
        settings : mapping
            Keys and sections.
        """
        merged = Config(dict(self.content))
        merged.update(Config(dict(settings)))
        return complete_configuration(merged, timestamp=self.run.timestamp, user=self.run.operator)


def read_configuration(
    path: str, *, timestamp: str, user: str, service_class: str | None = None
) -> CampaignConfiguration:
    """Read a file.

    Parameters
    ----------
    path : `str`
        YAML file.
    timestamp : `str`
        What stands for ``{timestamp}``, the same for all sites.
    user : `str`
        Operator if the file names none.
    service_class : `str`, optional
        Service class to use instead of the file's.

    Raises
    ------
    SettingsError
        Raised if it cannot be read, or its section ``campaignSites`` cannot
        be used.
    """
    try:
        content = Config(path)
    except Exception as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error
    if service_class:
        content["wmsServiceClass"] = service_class
    return make_configuration(_plain(content), path=path, timestamp=timestamp, user=user)


def make_configuration(
    content: Mapping[str, Any], *, path: str, timestamp: str, user: str
) -> CampaignConfiguration:
    """Make a configuration of what a file holds.

    Parameters
    ----------
    content : mapping
        Content of the file, includes resolved.
    path : `str`
        The file.
    timestamp, user : `str`
        As in `read_configuration`.

    Raises
    ------
    SettingsError
        Raised if it cannot be used.
    """
    section = read_section(content.get(SECTION), source=path)
    try:
        run = RunConfiguration(complete_configuration(Config(dict(content)), timestamp=timestamp, user=user))
    except SettingsError as error:
        raise SettingsError(f"{path} cannot be used: {error}") from error
    except ValueError as error:
        raise SettingsError(f"{path} cannot be used: {error.__cause__ or error}") from error
    configuration = CampaignConfiguration(str(Path(path).absolute()), content, run, section)
    if graph := run.graph_file:
        raise SettingsError(
            f"qgraphFile is {graph!r}: a quantum graph that is made already cannot be divided among sites. "
            "Take it out; each site gets a graph of its own."
        )
    return configuration


def _plain(content: Config) -> dict[str, Any]:
    plain: dict[str, Any] = content.toDict()
    return plain


MAX_QUERY = 100_000
"""Longest data query, characters: it is one argument of a command, and Linux
takes 131072 bytes."""

_PLACES = ("queue", "computeCloud", "fileDistributionEndPoint")


@dataclass(frozen=True, slots=True)
class Part:
    """One site's part."""

    site: str
    """Name of the part."""

    compute_site: str
    share: float
    values: tuple[Value, ...]
    output_run: str
    run: str
    """Name of the run."""

    butler: str
    submit_path: str
    content: Mapping[str, Any]
    """What its configuration says over the campaign's."""


def divide_campaign(
    configuration: CampaignConfiguration, counted: Mapping[Value, float]
) -> dict[str, tuple[Value, ...]]:
    """Divide a campaign's values among its sites.

    Parameters
    ----------
    configuration : `CampaignConfiguration`
        The campaign.
    counted : mapping
        Values that the Butler has, with the number of inputs of each; empty if
        the configuration lists the values.

    Raises
    ------
    SettingsError
        Raised if values or shares make no sense, the data query gives the
        dimension a value already, or a site would get nothing.
    """
    section = configuration.section
    name = section.partition
    query = configuration.run.written_data_query
    if condition := fixed_in(name, query):
        raise SettingsError(
            f"dataQuery is {query!r}: {condition!r} leaves one value of {name}, the dimension that is to be "
            f"divided ({SECTION}.partition). Take the condition out, or divide another dimension."
        )
    values = check_values(name, section.values or counted)
    weights = dict(counted) if section.count_datasets else _weights(configuration)
    parts = divide(
        values,
        {site.name: site.share for site in section.sites},
        pinned={site.name: check_values(name, site.values) for site in section.sites},
        weights=weights,
    )
    if idle := [site for site, some in parts.items() if not some]:
        raise SettingsError(
            f"Site {idle[0]} gets none of the {len(values)} values of {name} by its share. Take it out of "
            f"{SECTION}.sites, raise its share, or name values for it."
        )
    return parts


def _weights(configuration: CampaignConfiguration) -> dict[Value, float]:
    given = configuration.section.weights
    return dict(zip(check_values(configuration.section.partition, given), given.values(), strict=True))


def make_parts(
    configuration: CampaignConfiguration, parts: Mapping[str, Sequence[Value]], *, directory: str
) -> tuple[Part, ...]:
    """Make the parts.

    Parameters
    ----------
    configuration : `CampaignConfiguration`
        The campaign.
    parts : mapping of `str` to sequence
        Values of each site.
    directory : `str`
        Submit directory of the campaign.

    Raises
    ------
    SettingsError
        Raised if a part cannot be written as a configuration.
    """
    sites = {site.name: site for site in configuration.section.sites}
    made = tuple(
        _part(configuration, sites[name], tuple(values), directory) for name, values in parts.items()
    )
    for what in ("run", "submit_path"):
        names = [getattr(part, what) for part in made]
        if twice := {name for name in names if names.count(name) > 1}:
            raise SettingsError(f"Two sites of the campaign have the same {what}: {sorted(twice)[0]}.")
    return made


def _part(
    configuration: CampaignConfiguration, site: SiteShare, values: tuple[Value, ...], directory: str
) -> Part:
    settings = _settings_of(configuration, site)
    compute_site = str(settings.get("computeSite") or settings["payload"].get("computeSite"))
    payload = settings["payload"]
    base = str(payload.get("dataQuery") or configuration.run.written_data_query).strip()
    condition = render_condition(configuration.section.partition, values)
    payload["dataQuery"] = f"({base}) AND {condition}" if base else condition
    if len(payload["dataQuery"]) > MAX_QUERY:
        raise SettingsError(
            f"The data query of site {site.name} has {len(payload['dataQuery'])} characters, and a command "
            f"takes {MAX_QUERY}. Divide a dimension with fewer values than {configuration.section.partition}."
        )
    named = configuration.content.get("uniqProcName")
    if named and "uniqProcName" not in settings:
        settings["uniqProcName"] = f"{configuration.run.name}_{site.name}"
    merged = RunConfiguration(configuration.with_settings(settings))
    # What BPS would make of a time is fixed, so that a second try is the same run.
    suffix = "" if "outputRun" in payload else f"/{site.name}"
    payload["outputRun"] = output_run = merged.output_run + suffix
    run = merged.name if "uniqProcName" in settings else output_run.replace("/", "_")
    settings["submitPath"] = f"{directory}/{site.name}"
    settings["wmsServiceClass"] = configuration.run.service_class
    # Also keeps bps submit from taking the part for a campaign.
    settings[SECTION] = {"enabled": False, "site": site.name}
    return Part(
        site=site.name,
        compute_site=compute_site,
        share=site.share,
        values=values,
        output_run=output_run,
        run=run,
        butler=merged.butler,
        submit_path=settings["submitPath"],
        content=settings,
    )


def _settings_of(configuration: CampaignConfiguration, site: SiteShare) -> dict[str, Any]:
    """Return what a site sets over the campaign, in the sections in which BPS
    finds it first.
    """
    own = {"computeSite": site.name, **site.settings}
    payload = dict(own.pop("payload", None) or {})
    for key in sorted(configuration.run.payload_keys & set(own)):
        payload.setdefault(key, own.pop(key))
    return {**own, "payload": payload}


def render_part(part: Part, *, base: str, campaign: str) -> str:
    """Write the configuration of a part.

    Parameters
    ----------
    part : `Part`
        The part.
    base : `str`
        File that it includes, relative.
    campaign : `str`
        Name of the campaign, for the first line.
    """
    head = (
        f"# Part of campaign {campaign} for site {part.site}: {len(part.values)} values, share "
        f"{part.share:g}.\n"
        "# Written by panda_bps campaign; an ordinary BPS configuration.\n"
    )
    return head + yaml.safe_dump(
        {"includeConfigs": [base], **part.content}, sort_keys=False, allow_unicode=True, width=110
    )


def find_shared_places(configuration: CampaignConfiguration) -> list[Finding]:
    """Find settings of one place that hold for several sites."""
    findings = []
    for key in _PLACES:
        value = configuration.content.get(key)
        sites = [site.name for site in configuration.section.sites if key not in site.settings]
        if value and len(sites) > 1:
            text = (
                f"{key} is {value!r} for {', '.join(sites)} alike; what differs belongs below "
                f"{SECTION}.sites."
            )
            findings.append(Finding(Severity.WARNING, text, key=key))
    return findings
