"""The section ``campaignSites`` of a configuration: which dimension is
divided, among which sites, by what share.
"""

from __future__ import annotations

__all__ = ["SECTION", "CampaignSection", "SiteShare", "is_divided", "read_section"]

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import SettingsError
from .shares import Value

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
