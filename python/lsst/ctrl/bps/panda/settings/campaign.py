"""The section ``campaignSites`` of a configuration: which dimension is divided, among which sites, by
what share.

Pure: the same values, shares and weights give the same parts, whatever their
order and whatever the seed of hashes.
"""

from __future__ import annotations

__all__ = [
    "CampaignSection",
    "SECTION",
    "SiteShare",
    "Value",
    "divide",
    "is_divided",
    "read_section",
    "sort_key",
]

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

from ..errors import SettingsError

Value = int | str
"""A value of a dimension."""

_Name = TypeVar("_Name", bound=int | str)


def divide(
    values: Iterable[Value],
    shares: Mapping[str, float],
    *,
    pinned: Mapping[str, Sequence[Value]] | None = None,
    weights: Mapping[Value, float] | None = None,
) -> dict[str, tuple[Value, ...]]:
    """Give each value to one site.

    Each site gets a stretch of the sorted values, since neighbours (tracts,
    visits) read the same inputs.  Without weights the stretches have the
    lengths of the method of largest remainders, so each differs from its share
    by less than one value.  With weights, the weight of a stretch differs from
    its share by at most the largest weight.

    Parameters
    ----------
    values : iterable of `int` or `str`
        All values.
    shares : mapping of `str` to `float`
        Share of each site, more than 0; they need not add up to 100.
    pinned : mapping of `str` to sequence, optional
        Values that go to a site in any case, as part of its share.
    weights : mapping, optional
        How much work a value is; 1 for those that are not named.

    Returns
    -------
    parts : `dict` [`str`, `tuple`]
        Values of each site, sorted; sites in the order of their names.

    Raises
    ------
    SettingsError
        Raised if a share or weight is not positive, or a value is pinned to
        two sites or is none of the values.
    """
    ordered = sorted(set(values), key=sort_key)
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
        parts[site] = tuple(sorted([*fixed.get(site, ()), *stretch], key=sort_key))
    return parts


def sort_key(value: Value) -> tuple[bool, int, str]:
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


SECTION = "campaignSites"

_KEYS = ("enabled", "partition", "values", "weights", "datasetType", "sites", "site")
_SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_MOST_VALUES = 1_000_000


@dataclass(frozen=True, slots=True)
class SiteShare:
    """A site of a campaign."""

    name: str
    """Name of the part; also ``computeSite`` unless ``settings`` has one."""

    share: float
    """Share of the values, in any unit."""

    values: tuple[Value, ...]
    """Values that this site gets in any case."""

    settings: Mapping[str, Any]
    """Keys of BPS and of this plugin that count for this site alone."""


@dataclass(frozen=True, slots=True)
class CampaignSection:
    """The section, checked."""

    partition: str
    """Name of the dimension."""

    values: tuple[Value, ...]
    """Its values; empty if the Butler is to be asked."""

    weights: Mapping[Value, float]
    """How much work values are; 1 for those that are not named."""

    count_datasets: bool
    """Whether a value weighs as many as there are datasets of it."""

    dataset_type: str
    """Input without which a value is none; empty if that does not matter."""

    sites: tuple[SiteShare, ...]
    """In the order of their names."""


def is_divided(section: Any) -> bool:
    """Tell whether a section says that the run is to be divided.

    Parameters
    ----------
    section : mapping or `None`
        Value of ``campaignSites``.
    """
    if not isinstance(section, Mapping) or not section:
        return False
    enabled = section.get("enabled", True)
    return str(enabled).strip().lower() not in ("false", "no", "off", "0", "none")


def read_section(section: Any, *, source: str) -> CampaignSection:
    """Read the section.

    Parameters
    ----------
    section : mapping
        Value of ``campaignSites``.
    source : `str`
        Where it is from, for errors.

    Raises
    ------
    SettingsError
        Raised if something is missing or not understood; names it.
    """
    if not isinstance(section, Mapping) or not section:
        raise SettingsError(
            f"{source} has no section {SECTION}. It says how the data are divided among sites, for instance "
            f"{SECTION}: {{partition: tract, sites: {{SLAC: {{share: 60}}, LANCS: {{share: 40}}}}}}."
        )
    if not is_divided(section):
        raise SettingsError(
            f"{SECTION}.enabled is {section['enabled']!r} ({source}), so this is a run for one site: submit "
            "it with bps submit."
        )
    if unknown := sorted(str(key) for key in section if key not in _KEYS):
        raise SettingsError(
            f"{SECTION} holds {unknown[0]!r} ({source}); known are {', '.join(_KEYS[:-1])}. What counts for "
            "one site only belongs below sites."
        )
    partition = section.get("partition", "")
    if not isinstance(partition, str) or not re.fullmatch(r"\w+", partition):
        raise SettingsError(
            f"{SECTION}.partition is {partition!r} ({source}); it must name one dimension, such as tract or "
            "visit."
        )
    values = _values(section.get("values"), f"{SECTION}.values", source)
    weights, count_datasets = _weights(section.get("weights"), source)
    dataset_type = str(section.get("datasetType") or "")
    if values and dataset_type or count_datasets and not dataset_type:
        raise SettingsError(
            f"{SECTION}.datasetType is {dataset_type!r} ({source}). It is for values that are asked of the "
            "Butler: give it without values; weights: datasets needs it."
        )
    return CampaignSection(
        partition=partition,
        values=values,
        weights=weights,
        count_datasets=count_datasets,
        dataset_type=dataset_type,
        sites=_sites(section.get("sites"), source),
    )


def _values(given: Any, name: str, source: str) -> tuple[Value, ...]:
    """Read values of a dimension; a text ``1..4`` stands for four numbers."""
    if given is None:
        return ()
    items = list(given) if isinstance(given, list | tuple) else [given]
    found: list[Value] = []
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int | str):
            raise SettingsError(
                f"{name} holds {item!r} ({source}); values are whole numbers, texts, or ranges such as 1..4."
            )
        match = _RANGE.fullmatch(item.strip()) if isinstance(item, str) else None
        found.extend(_range(match, name, source) if match else [item])
    if len(set(found)) < len(found):
        twice = next(value for value in found if found.count(value) > 1)
        raise SettingsError(f"{name} holds {twice!r} more than once ({source}).")
    return tuple(found)


def _range(match: re.Match[str], name: str, source: str) -> range:
    first, last = int(match[1]), int(match[2])
    if not first <= last < first + _MOST_VALUES:
        raise SettingsError(
            f"{name} holds the range {match[0]} ({source}); it must go upwards and hold fewer than "
            f"{_MOST_VALUES} values."
        )
    return range(first, last + 1)


def _weights(given: Any, source: str) -> tuple[dict[Value, float], bool]:
    """Read weights: by value, or the word that asks for a count."""
    if given is None:
        return {}, False
    if given == "datasets":
        return {}, True
    if not isinstance(given, Mapping):
        raise SettingsError(
            f"{SECTION}.weights is {given!r} ({source}); it must map values to numbers, or be the word "
            "datasets."
        )
    return {value: given[value] for value in given}, False


def _sites(given: Any, source: str) -> tuple[SiteShare, ...]:
    if not isinstance(given, Mapping) or not given:
        raise SettingsError(
            f"{SECTION}.sites is {given!r} ({source}); it must map names of sites to their shares, for "
            "instance sites: {SLAC: {share: 60}, LANCS: {share: 40}}."
        )
    return tuple(_site(str(name), given[name], source) for name in sorted(given, key=str))


def _site(name: str, given: Any, source: str) -> SiteShare:
    if not _SITE_NAME.fullmatch(name):
        raise SettingsError(
            f"{SECTION}.sites holds the name {name!r} ({source}); it becomes part of collections and files, "
            "so it may hold letters, digits, '_', '.' and '-' only."
        )
    settings = {"share": given} if isinstance(given, int | float) else given
    if not isinstance(settings, Mapping) or "share" not in settings:
        raise SettingsError(
            f"{SECTION}.sites.{name} is {given!r} ({source}); it needs a share, a number of more than 0."
        )
    share = settings["share"]
    if isinstance(share, bool) or not isinstance(share, int | float) or not share > 0:
        raise SettingsError(
            f"{SECTION}.sites.{name}.share is {share!r} ({source}); it must be a number of more than 0. "
            "Take a site out that is to get nothing."
        )
    return SiteShare(
        name=name,
        share=share,
        values=_values(settings.get("values"), f"{SECTION}.sites.{name}.values", source),
        settings={key: settings[key] for key in settings if key not in ("share", "values")},
    )
