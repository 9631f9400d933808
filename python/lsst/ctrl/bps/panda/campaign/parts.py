"""The division of a campaign into parts: an ordinary BPS configuration for each site, checked and written."""

from __future__ import annotations

__all__ = [
    "count_in_butler",
    "convert_values",
    "divide_values",
    "divide_campaign",
    "find_shared_places",
    "find_fixed_condition",
    "make_configuration",
    "make_parts",
    "prepare_campaign",
    "read_configuration",
    "render_condition",
]

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import yaml
from lsst.daf.butler import Butler, Config, DimensionUniverse

from lsst.ctrl.bps import BpsConfig

from ..checks.configuration import check_configuration
from ..errors import SettingsError
from ..files import write_text
from ..findings import Finding, Severity
from ..settings.campaign import SECTION, CampaignSection, SiteShare, Value, read_section
from ..settings.configuration import RunConfiguration, complete_configuration
from ..settings.rucio import read_registration_settings
from .record import CampaignRecord, PartRecord

MAX_QUERY = 100_000
"""Longest data query, characters: it is one argument of a command, and Linux takes 131072 bytes."""

# Keys that name a place of one site, and are probably wrong for another.
_PLACES = ("queue", "computeCloud", "fileDistributionEndPoint")

_QUOTED = re.compile(r"'[^']*'")


@dataclass(frozen=True, slots=True)
class CampaignConfiguration:
    """The configuration of a campaign, as written and as BPS understands it."""

    path: str
    """Absolute path of the user's file."""

    content: Mapping[str, Any]
    """Content of the file, with includes resolved and variables as written."""

    run: RunConfiguration
    """The content over BPS's defaults."""

    section: CampaignSection

    @property
    def digest(self) -> str:
        """Digest of the content, to detect a change."""
        text = json.dumps(self.content, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def with_settings(self, settings: Mapping[str, Any]) -> BpsConfig:
        """Return the configuration with more keys and sections over it."""
        merged = Config(dict(self.content))
        merged.update(Config(dict(settings)))
        return complete_configuration(merged, timestamp=self.run.timestamp, user=self.run.operator)


def read_configuration(
    path: str, *, timestamp: str, user: str, service_class: str | None = None
) -> CampaignConfiguration:
    """Read the configuration of a campaign from a YAML file.

    ``timestamp`` stands for ``{timestamp}`` at all sites; ``user`` is the
    operator if the file names none; ``service_class`` overrides the file's.
    """
    try:
        content = Config(path)
    except Exception as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error
    if service_class:
        content["wmsServiceClass"] = service_class
    plain: dict[str, Any] = content.toDict()
    return make_configuration(plain, path=path, timestamp=timestamp, user=user)


def make_configuration(
    content: Mapping[str, Any], *, path: str, timestamp: str, user: str
) -> CampaignConfiguration:
    """Make the configuration from the content of its file, with includes resolved."""
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


@dataclass(frozen=True, slots=True)
class SitePart:
    """The part of a campaign that one site runs."""

    record: PartRecord
    content: Mapping[str, Any]
    """Its configuration: keys and sections over those of the campaign."""


def divide_campaign(
    configuration: CampaignConfiguration, counted: Mapping[Value, float]
) -> dict[str, tuple[Value, ...]]:
    """Divide the values among the sites.

    The values are those of the configuration, or those that were counted in
    the Butler, with the number of inputs of each.
    """
    section = configuration.section
    name = section.partition
    query = configuration.run.written_data_query
    if condition := find_fixed_condition(name, query):
        raise SettingsError(
            f"dataQuery is {query!r}: {condition!r} leaves one value of {name}, the dimension that is to be "
            f"divided ({SECTION}.partition). Take the condition out, or divide another dimension."
        )
    values = convert_values(name, section.values or counted)
    weights = dict(counted)
    if not section.count_datasets:
        given = section.weights
        weights = dict(zip(convert_values(name, given), given.values(), strict=True))
    parts = divide_values(
        values,
        {site.name: site.share for site in section.sites},
        pinned={site.name: convert_values(name, site.values) for site in section.sites},
        weights=weights,
    )
    if idle := [site for site, some in parts.items() if not some]:
        raise SettingsError(
            f"Site {idle[0]} gets none of the {len(values)} values of {name} by its share. Take it out of "
            f"{SECTION}.sites, raise its share, or name values for it."
        )
    return parts


def make_parts(
    configuration: CampaignConfiguration, parts: Mapping[str, Sequence[Value]], *, directory: str
) -> tuple[SitePart, ...]:
    """Make the part of each site from its values, with a submit directory below that of the campaign."""
    sites = {site.name: site for site in configuration.section.sites}
    made = tuple(
        _part(configuration, sites[name], tuple(values), directory) for name, values in parts.items()
    )
    for what in ("run", "submit_path"):
        names = [getattr(part.record, what) for part in made]
        if twice := {name for name in names if names.count(name) > 1}:
            raise SettingsError(f"Two sites of the campaign have the same {what}: {sorted(twice)[0]}.")
    return made


def _part(
    configuration: CampaignConfiguration, site: SiteShare, values: tuple[Value, ...], directory: str
) -> SitePart:
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
    # Variables such as the time are replaced, so that a second attempt is the same run.
    suffix = "" if "outputRun" in payload else f"/{site.name}"
    payload["outputRun"] = output_run = merged.output_run + suffix
    run = merged.name if "uniqProcName" in settings else output_run.replace("/", "_")
    settings["submitPath"] = f"{directory}/{site.name}"
    settings["wmsServiceClass"] = configuration.run.service_class
    # So that bps submit does not take the part for a campaign.
    settings[SECTION] = {"enabled": False, "site": site.name}
    record = PartRecord(
        site=site.name,
        compute_site=compute_site,
        share=site.share,
        values=list(values),
        file=f"{directory}/{site.name}.yaml",
        submit_path=settings["submitPath"],
        run=run,
        output_run=output_run,
        butler=merged.butler,
    )
    return SitePart(record, settings)


def _settings_of(configuration: CampaignConfiguration, site: SiteShare) -> dict[str, Any]:
    """Return what a site sets over the campaign, in the sections that BPS searches first."""
    own = {"computeSite": site.name, **site.settings}
    payload = dict(own.pop("payload", None) or {})
    for key in sorted(configuration.run.payload_keys & set(own)):
        payload.setdefault(key, own.pop(key))
    return {**own, "payload": payload}


def render_part(part: SitePart, *, base: str, campaign: str) -> str:
    """Return the configuration of a part as YAML.

    It includes the file ``base``, the campaign's own configuration.
    """
    record = part.record
    head = (
        f"# Part of campaign {campaign} for site {record.site}: {len(record.values)} values, share "
        f"{record.share:g}.\n"
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


def _kind(partition: str, universe: DimensionUniverse) -> type:
    """Return the type of a dimension's values: `int` or `str`."""
    if partition not in universe.dimensions.names:
        known = ", ".join(sorted(universe.dimensions.names))
        raise SettingsError(f"campaignSites.partition is {partition!r}; dimensions are {known}.")
    kind: type = universe.dimensions[partition].primaryKey.getPythonType()
    return kind


def convert_values(partition: str, values: Iterable[Value]) -> tuple[Value, ...]:
    """Return values with the type of their dimension, and refuse those that cannot have it."""
    kind = _kind(partition, DimensionUniverse())
    checked: list[Value] = []
    for value in values:
        if kind is not int:
            # YAML takes unquoted names such as 0123 or 2024 for numbers.
            checked.append(str(value))
            continue
        try:
            checked.append(int(value))
        except ValueError:
            raise SettingsError(
                f"campaignSites holds the value {value!r}, but {partition} has whole numbers."
            ) from None
    return tuple(checked)


def count_in_butler(
    butler: Butler,
    partition: str,
    *,
    data_query: str,
    collections: Sequence[str] = (),
    dataset_type: str = "",
) -> dict[Value, int]:
    """Ask a Butler for the values of a dimension that a data query leaves,
    sorted, with the number of inputs of each; 1 without a dataset type.
    """
    _kind(partition, butler.dimensions)
    dimensions = butler.dimensions.conform([partition])
    question = "dimension records"
    with butler.query() as query:
        if dataset_type:
            question = f"datasets {dataset_type} in {', '.join(collections)}"
            dimensions = dimensions.union(butler.get_dataset_type(dataset_type).dimensions)
            query = query.join_dataset_search(dataset_type, collections=list(collections))
        if data_query.strip():
            query = query.where(data_query)
        rows = [dict(row.required) for row in query.data_ids(dimensions)]
    others = [name for name in butler.dimensions.conform([partition]).required if name != partition]
    for name in others:
        found = sorted({str(row[name]) for row in rows})
        if len(found) > 1:
            raise SettingsError(
                f"Values of {partition} belong to {len(found)} different values of {name} "
                f"({', '.join(found[:3])}, ...), so {partition} alone does not identify data. Name one of "
                f"them in dataQuery, which is {data_query!r}."
            )
    counted = Counter(row[partition] for row in rows)
    if not counted:
        raise SettingsError(
            f"The Butler has no value of {partition} for dataQuery {data_query!r} ({question}). Correct the "
            "query, or give campaignSites.values."
        )
    return {value: counted[value] for value in sorted(counted, key=_sort_key)}


def find_fixed_condition(partition: str, data_query: str) -> str:
    """Return the condition of a data query that gives a dimension one value,
    such as ``tract = 9813``; empty if there is none.
    """
    # Quoted texts are blanked first: a name in quotes is not a dimension.
    bare = _QUOTED.sub(lambda match: "'" + "_" * (len(match[0]) - 2) + "'", data_query)
    match = re.search(rf"(?<![\w.]){re.escape(partition)}(?:\.id|\.name)?\s*=\s*(?:'[^']*'|-?\w+)", bare)
    return data_query[match.start() : match.end()] if match else ""


def render_condition(partition: str, values: Sequence[Value]) -> str:
    """Return the condition that a dimension has one of some sorted values, such as ``tract IN (4, 7..9)``."""
    terms: list[str] = []
    run: list[int] = []

    def close() -> None:
        # Three or more consecutive numbers are a range.
        terms.extend([f"{run[0]}..{run[-1]}"] if len(run) > 2 else map(str, run))
        run.clear()

    for value in values:
        if isinstance(value, str):
            terms.append(_quote(value))
            continue
        if run and value != run[-1] + 1:
            close()
        run.append(value)
    close()
    return f"{partition} IN ({', '.join(terms)})"


def _quote(value: str) -> str:
    """Render a text as a literal of the Butler's query language."""
    if not re.fullmatch(r"[^'\"{}$\\\x00-\x1f]+", value):
        raise SettingsError(
            f"campaignSites holds the value {value!r}, which cannot be written in a data query of BPS."
        )
    return f"'{value}'"


# --- which site gets which values ---------------------------------------------

_Name = TypeVar("_Name", bound=int | str)


def divide_values(
    values: Iterable[Value],
    shares: Mapping[str, float],
    *,
    pinned: Mapping[str, Sequence[Value]] | None = None,
    weights: Mapping[Value, float] | None = None,
) -> dict[str, tuple[Value, ...]]:
    """Give each value to one site.

    Each site gets a stretch of the sorted values, since neighbours (tracts, visits) read the same inputs.
    Without weights the stretches have the lengths of the method of largest remainders, so each differs from
    its share by less than one value.  With weights, the weight of a stretch differs from its share by at most
    the largest weight.

    The same values, shares and weights give the same parts, whatever their order.  ``pinned`` values go to a
    site in any case, as part of its share.
    """
    ordered = sorted(set(values), key=_sort_key)
    exact = _positive("share of site", shares)
    given = _positive("weight of", weights or {})
    loads = {value: given.get(value, Fraction(1)) for value in ordered}
    fixed = _pinned(pinned or {}, ordered)
    taken = {value for some in fixed.values() for value in some}
    rest = [value for value in ordered if value not in taken]
    quotas = _quotas(exact, fixed, loads)
    lengths = _cut(rest, quotas, loads) if given else _largest_remainders(len(rest), quotas)
    parts: dict[str, tuple[Value, ...]] = {}
    start = 0
    for site in quotas:
        stretch = rest[start : start + lengths[site]]
        start += lengths[site]
        parts[site] = tuple(sorted([*fixed.get(site, ()), *stretch], key=_sort_key))
    return parts


def _sort_key(value: Value) -> tuple[bool, int, str]:
    """Sort numbers by size, and texts by their characters."""
    return (True, 0, value) if isinstance(value, str) else (False, value, "")


def _positive(what: str, numbers: Mapping[_Name, float]) -> dict[_Name, Fraction]:
    """Return numbers exactly, refusing those that are not more than 0."""
    exact: dict[_Name, Fraction] = {}
    for name, number in numbers.items():
        try:
            value = Fraction(0) if isinstance(number, bool) else Fraction(str(number).strip())
        except (ValueError, ZeroDivisionError):
            value = Fraction(0)
        if value <= 0:
            raise SettingsError(f"The {what} {name} is {number!r}; it must be a number of more than 0.")
        exact[name] = value
    return exact


def _pinned(pinned: Mapping[str, Sequence[Value]], ordered: Sequence[Value]) -> dict[str, set[Value]]:
    """Check which values sites name themselves."""
    owners: dict[Value, str] = {}
    known = set(ordered)
    for site in sorted(pinned):
        for value in pinned[site]:
            if value not in known:
                raise SettingsError(
                    f"Site {site} names the value {value!r}, which is none of the campaign's "
                    f"{len(ordered)} values."
                )
            if owners.setdefault(value, site) != site:
                raise SettingsError(
                    f"Sites {owners[value]} and {site} both name the value {value!r}; each value goes to one."
                )
    return {site: set(some) for site, some in pinned.items()}


def _quotas(
    shares: Mapping[str, Fraction], fixed: Mapping[str, set[Value]], loads: Mapping[Value, Fraction]
) -> dict[str, Fraction]:
    """Return what each site is to get of the values that are not pinned.

    A site with more pinned values than its share gets nothing else; what it
    has too much is taken from the others in proportion.
    """
    sites = sorted(shares)
    pinned = {site: sum((loads[value] for value in fixed.get(site, ())), Fraction(0)) for site in sites}
    total = sum(loads.values(), Fraction(0))
    open_sites = sites
    while True:
        base = sum((shares[site] for site in open_sites), Fraction(0))
        left = total - sum((pinned[site] for site in sites if site not in open_sites), Fraction(0))
        wanted = {site: left * shares[site] / base for site in open_sites} if base else {}
        still_open = [site for site in open_sites if wanted[site] > pinned[site]]
        if len(still_open) == len(open_sites) or not still_open:
            break
        open_sites = still_open
    return {
        site: max(Fraction(0), wanted[site] - pinned[site]) if site in still_open else Fraction(0)
        for site in sites
    }


def _largest_remainders(count: int, quotas: Mapping[str, Fraction]) -> dict[str, int]:
    """Round quotas so that they add up; ties go by name."""
    lengths = {site: int(quota) for site, quota in quotas.items()}
    by_remainder = sorted(quotas, key=lambda site: (lengths[site] - quotas[site], site))
    for site in by_remainder[: count - sum(lengths.values())]:
        lengths[site] += 1
    return lengths


def _cut(
    rest: Sequence[Value], quotas: Mapping[str, Fraction], loads: Mapping[Value, Fraction]
) -> dict[str, int]:
    """Cut the values where their weight is nearest to what sites are to get."""
    lengths: dict[str, int] = {}
    wanted = reached = Fraction(0)
    position = 0
    for site, quota in quotas.items():
        wanted += quota
        start = position
        # A value belongs to the stretch that holds its middle.
        while position < len(rest) and reached + loads[rest[position]] / 2 <= wanted:
            reached += loads[rest[position]]
            position += 1
        lengths[site] = position - start
    return lengths


# --- the preparation ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Preparation:
    """A campaign that is divided and checked, and not written yet."""

    configuration: CampaignConfiguration
    parts: tuple[SitePart, ...]
    record: CampaignRecord
    findings: tuple[Finding, ...]
    """Findings about the campaign, and about each site, whose name begins the text."""

    def write(self) -> CampaignRecord:
        """Write the user's configuration as it is now, the parts, and last the record."""
        record = self.record
        directory = Path(record.directory)
        # BPS looks for relative includes in the current directory first: no other campaign has this name.
        base = f"{record.name}_campaign.yaml"
        content: dict[str, Any] = dict(self.configuration.content)
        head = f"# {record.config} with all that it includes, as of {record.prepared_at}.\n"
        write_text(directory / base, [head, yaml.safe_dump(content, sort_keys=False, allow_unicode=True)])
        for part in self.parts:
            write_text(Path(part.record.file), [render_part(part, base=base, campaign=record.name)])
        record.write()
        return record


def prepare_campaign(configuration: CampaignConfiguration, environment: Mapping[str, str]) -> Preparation:
    """Divide a campaign, and check the configurations of all of its sites;
    `SettingsError` if it cannot be divided.
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
    findings = [
        replace(finding, text=f"Site {part.record.site}: {finding.text}")
        for part in parts
        for finding in check_configuration(configuration.with_settings(part.content), environment)
    ]
    findings += _find_closed_too_early(configuration, parts, environment)
    findings += find_shared_places(configuration)
    return Preparation(configuration, parts, record, tuple(findings))


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
            counted: Mapping[Value, float] = count_in_butler(
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
