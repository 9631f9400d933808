"""The section ``campaignSites`` of a configuration: which dimension is divided, among which sites, by
what share.
"""

from __future__ import annotations

__all__ = ["CampaignSection", "SECTION", "SiteShare", "Value", "is_divided", "read_section"]

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

from ..errors import SettingsError
from .keys import Section, YesOrNo, is_no, key

Value = int | str
"""A value of a dimension."""

SECTION = "campaignSites"

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


def _refuse(info: ValidationInfo, what: str, advice: str = "") -> PydanticCustomError:
    """Make the error for a value; the path of its key goes before the text."""
    source = info.context["source"] if info.context else "BPS configuration"
    text = f"{what} ({source})" + (f"; {advice}" if advice else "")
    return PydanticCustomError("campaign", "{text}", {"text": text})


def _read_values(given: Any, info: ValidationInfo) -> tuple[Value, ...]:
    """Read values of a dimension; a text ``1..4`` stands for four numbers."""
    if given is None:
        return ()
    found: list[Value] = []
    for item in given if isinstance(given, list | tuple) else [given]:
        if isinstance(item, bool) or not isinstance(item, int | str):
            raise _refuse(info, f"holds {item!r}", "values are whole numbers, texts, or ranges such as 1..4")
        match = _RANGE.fullmatch(item.strip()) if isinstance(item, str) else None
        found.extend(_range(match, info) if match else [item])
    if len(set(found)) < len(found):
        twice = next(value for value in found if found.count(value) > 1)
        raise _refuse(info, f"holds {twice!r} more than once")
    return tuple(found)


def _range(match: re.Match[str], info: ValidationInfo) -> range:
    first, last = int(match[1]), int(match[2])
    if not first <= last < first + _MOST_VALUES:
        advice = f"it must go upwards and hold fewer than {_MOST_VALUES} values"
        raise _refuse(info, f"holds the range {match[0]}", advice)
    return range(first, last + 1)


_SHARE_SCHEMA = {"type": "number", "exclusiveMinimum": 0}
_VALUES_SCHEMA = {"type": ["array", "integer", "string", "null"], "items": {"type": ["integer", "string"]}}
Values = Annotated[tuple[Value, ...], BeforeValidator(_read_values), WithJsonSchema(_VALUES_SCHEMA)]


class SiteKeys(Section):
    """A site of a campaign; all other keys of BPS and of this plugin count for this site alone."""

    model_config = ConfigDict(extra="allow")

    share: Annotated[Any, WithJsonSchema(_SHARE_SCHEMA)] = Field(
        description="Share of the values, in any unit: shares need not add up to 100."
    )
    values: Values = Field((), description="Values that this site gets in any case, as part of its share.")

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [_SHARE_SCHEMA, handler(schema)]}

    @model_validator(mode="before")
    @classmethod
    def _has_share(cls, given: Any, info: ValidationInfo) -> Any:
        settings = {"share": given} if isinstance(given, int | float) else given
        if not isinstance(settings, Mapping) or "share" not in settings:
            raise _refuse(info, f"is {given!r}", "it needs a share, a number of more than 0")
        return dict(settings)

    @field_validator("share")
    @classmethod
    def _is_positive(cls, share: Any, info: ValidationInfo) -> Any:
        if isinstance(share, bool) or not isinstance(share, int | float) or not share > 0:
            advice = "it must be a number of more than 0. Take a site out that is to get nothing"
            raise _refuse(info, f"is {share!r}", advice)
        return share


class CampaignSection(Section):
    """How the data are divided among sites by panda_bps campaign."""

    model_config = ConfigDict(extra="forbid")

    enabled: YesOrNo = key(True, "Whether the run is divided; no for a run at one site.")
    partition: Annotated[Any, WithJsonSchema({"type": "string"})] = Field(
        "", description="Dimension that is divided, such as tract or visit.", validate_default=True
    )
    values: Values = Field(
        (), description="Values of the dimension, also ranges such as 1..4; without them the Butler is asked."
    )
    written_weights: Annotated[
        Any, WithJsonSchema({"anyOf": [{"const": "datasets"}, {"type": ["object", "null"]}]})
    ] = Field(
        None,
        alias="weights",
        description="How much work values are, by value, 1 for others; or datasets: as many as there are "
        "datasets of datasetType.",
    )
    dataset_type: Annotated[Any, WithJsonSchema({"type": ["string", "null"]})] = Field(
        "",
        description="Dataset type that a value must have inputs of, where the Butler is asked.",
        validate_default=True,
    )
    keys_of_sites: dict[str, SiteKeys] = Field(
        None, alias="sites", description="Share of each site, by its name.", validate_default=True
    )
    site: str = Field("", description="Written by panda_bps campaign into the configuration of a part.")

    @field_validator("partition")
    @classmethod
    def _is_dimension(cls, name: Any, info: ValidationInfo) -> Any:
        if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
            raise _refuse(info, f"is {name!r}", "it must name one dimension, such as tract or visit")
        return name

    @field_validator("written_weights")
    @classmethod
    def _is_weights(cls, given: Any, info: ValidationInfo) -> Any:
        if given not in (None, "datasets") and not isinstance(given, Mapping):
            raise _refuse(info, f"is {given!r}", "it must map values to numbers, or be the word datasets")
        return given

    @field_validator("dataset_type")
    @classmethod
    def _goes_with_the_rest(cls, given: Any, info: ValidationInfo) -> str:
        name = str(given or "")
        if info.data.get("values") and name or info.data.get("written_weights") == "datasets" and not name:
            advice = (
                "it is for values that are asked of the Butler: give it without values; weights: datasets "
                "needs it"
            )
            raise _refuse(info, f"is {name!r}", advice)
        return name

    @field_validator("keys_of_sites", mode="before")
    @classmethod
    def _has_sites(cls, given: Any, info: ValidationInfo) -> Any:
        if not isinstance(given, Mapping) or not given:
            advice = (
                "it must map names of sites to their shares, for instance "
                "sites: {SLAC: {share: 60}, LANCS: {share: 40}}"
            )
            raise _refuse(info, f"is {given!r}", advice)
        for name in map(str, given):
            if not _SITE_NAME.fullmatch(name):
                advice = (
                    "it becomes part of collections and files, so it may hold letters, digits, '_', '.' and "
                    "'-' only"
                )
                raise _refuse(info, f"holds the name {name!r}", advice)
        return {str(name): given[name] for name in given}

    @property
    def count_datasets(self) -> bool:
        """Whether a value weighs as much as there are datasets of it."""
        return bool(self.written_weights == "datasets")

    @property
    def weights(self) -> Mapping[Value, float]:
        """How much work values are; 1 for those that are not named."""
        return {} if self.count_datasets else dict(self.written_weights or {})

    @property
    def sites(self) -> tuple[SiteShare, ...]:
        """The sites, in the order of their names."""
        return tuple(
            SiteShare(name, site.share, site.values, dict(site.model_extra or {}))
            for name, site in sorted(self.keys_of_sites.items())
        )


def is_divided(section: Any) -> bool:
    """Tell whether a section ``campaignSites``, if there is one, says that the run is to be divided."""
    if not isinstance(section, Mapping) or not section:
        return False
    return not is_no(section.get("enabled", True))


def read_section(section: Any, *, source: str) -> CampaignSection:
    """Read the value of ``campaignSites``; ``source`` says in errors where it is from."""
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
    known = [str(field.alias) for field in CampaignSection.model_fields.values()]
    if unknown := sorted(str(name) for name in section if name not in known):
        raise SettingsError(
            f"{SECTION} holds {unknown[0]!r} ({source}); known are {', '.join(known[:-1])}. What counts for "
            "one site only belongs below sites."
        )
    try:
        return CampaignSection.model_validate(dict(section), context={"source": source})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, (SECTION, *first["loc"])))
        text = (
            first["msg"]
            if first["type"] == "campaign"
            else f"is {first['input']!r} ({source}); {first['msg']}"
        )
        raise SettingsError(f"{name} {text}.") from None
