"""What is simulated and how far it is processed, as a typed configuration: the one home of the options'
names, limits, defaults and words, from which the command line and the form of the portal are made.
"""

from __future__ import annotations

__all__ = [
    "Choices",
    "ChoicesError",
    "DemoRepo",
    "FARTHEST",
    "parse_choices",
    "render_options",
    "render_values",
]

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ..errors import SettingsError
from .instrument import BANDS

_MOST_IMAGES = 900
"""Raw images of a run that is started from the form: an hour's work of two cores."""

_MOST_REGIONS = 20_000
"""Detectors of all visits, observing or not; the repository has a region of the sky for each."""

_MOST_CALIBRATIONS = 1000
"""Images of 360 kB with which the camera is calibrated."""


def _split(value: object) -> object:
    """Take a text for a list, as the command line and addresses have it."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _parse_place(value: object) -> object:
    parts = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or len(parts) != 2:
        raise ValueError("write right ascension and declination in degrees, such as 62.0,-37.0")
    return parts


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, str | Path) else value


FARTHEST = 88.0
"""Degrees from the equator, up to which a camera can look."""

Place = Annotated[
    tuple[Annotated[float, Field(ge=0.0, lt=360.0)], Annotated[float, Field(ge=-FARTHEST, le=FARTHEST)]],
    BeforeValidator(_parse_place),
]


class DemoRepo(BaseModel):
    """What is simulated."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    place: Annotated[tuple[Place, ...], BeforeValidator(_one_or_more)] = Field(
        max_length=4,
        default=(),
        title="Places on the sky",
        description="Right ascension and declination, in degrees, of a field of random stars; 62.0,-37.0 by "
        "default.",
    )
    catalog: Annotated[tuple[Path, ...], BeforeValidator(_one_or_more)] = Field(
        max_length=4,
        default=(),
        title="Catalogues",
        description="CSV, ECSV, Parquet or FITS table of stars and galaxies, with columns ra, dec and a "
        "magnitude for each band; its middle is observed.",
    )
    bands: Annotated[tuple[str, ...], BeforeValidator(_split)] = Field(
        default=("g", "r"),
        title="Bands",
        description="Filters to observe through.",
        json_schema_extra={"choices": list(BANDS)},
    )
    visits_per_band: int = Field(
        default=3, ge=0, le=300, title="Visits", description="Visits per place and band."
    )
    exposure_time: float = Field(
        default=30.0, gt=0.0, le=3600.0, title="Exposure time", description="Seconds per visit."
    )
    seeing: float | None = Field(
        default=None,
        gt=0.0,
        le=5.0,
        title="Seeing",
        description="Full width at half maximum of a star, in arcseconds; by default 0.75 to 1.2, by visit.",
    )
    galaxies: float = Field(
        default=0.0,
        ge=0.0,
        le=0.1,
        title="Galaxies",
        description="Galaxies per square arcsecond of a random field, such as 0.01.",
    )
    patches: int = Field(
        default=2,
        ge=1,
        le=8,
        title="Patches",
        description="Patches along each side of a place's tract; each is 90 arcseconds wide.",
    )
    detectors: int = Field(
        default=4,
        ge=1,
        le=1000,
        title="Detectors of the camera",
        description="Number of detectors, 90 arcseconds on a side, in rafts of two by two.",
    )
    seed: int = Field(
        default=1,
        ge=0,
        lt=2**31,
        title="Seed",
        description="Of the random numbers: the same seed gives the same pixels.",
    )
    pointings: Path | None = Field(
        default=None,
        title="Pointings",
        description="Table of the visits: ra, dec, band, and any of rotation, seeing, sky, transparency, "
        "exposure_time.",
    )

    @field_validator("bands")
    @classmethod
    def _check_bands(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or set(value) - set(BANDS) or len(set(value)) < len(value):
            raise ValueError(f"choose from {','.join(BANDS)}, each once")
        return value

    @field_validator("pointings")
    @classmethod
    def _check_pointings(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("place"):
            raise ValueError("pointings say where the camera looks, so leave out the places")
        return value

    def rng(self, *path: int) -> np.random.Generator:
        """Give a source of chance of its own to each thing that is made up."""
        return np.random.default_rng([self.seed, *path])


class Choices(DemoRepo):
    """What is simulated, which part of the camera observes, and how far it is processed."""

    only: Annotated[tuple[int, ...], BeforeValidator(_split)] = Field(
        default=(),
        title="Detectors that observe",
        description="Their numbers, such as 0,1,5; by default all.",
    )
    steps: Literal["simulate", "singleFrame", "coadds"] = Field(
        default="coadds",
        title="Pipeline",
        description="How far the pipeline goes.",
        json_schema_extra={
            "choices": {
                "simulate": "raw images",
                "singleFrame": "raw and calibrated images",
                "coadds": "images, coadds and the table of objects",
            }
        },
    )

    @field_validator("only")
    @classmethod
    def _check_only(cls, value: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        number = info.data.get("detectors")  # None if that is wrong.
        if number and (wrong := [each for each in value if not 0 <= each < number]):
            raise ValueError(f"there is no detector {wrong[0]}: the camera has 0 to {number - 1}")
        return tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _check_size(self) -> Choices:
        fields = max(1, len(self.place) + len(self.catalog))
        images = fields * len(self.bands) * self.visits_per_band * len(self.chosen_detectors)
        if not 0 < images <= _MOST_IMAGES:
            raise ValueError(
                f"that is {images} raw images, places, bands, visits and detectors multiplied; "
                f"from here it must be 1 to {_MOST_IMAGES}"
            )
        regions = fields * len(self.bands) * self.visits_per_band * self.detectors
        calibrations = self.detectors * (len(self.bands) + 1)
        if regions > _MOST_REGIONS or calibrations > _MOST_CALIBRATIONS:
            raise ValueError(
                f"a camera of {self.detectors} detectors is too large for these visits and bands, even if "
                f"few of them observe: {regions} detectors of all visits, of at most {_MOST_REGIONS}, and "
                f"{calibrations} calibration images, of at most {_MOST_CALIBRATIONS}"
            )
        return self

    @property
    def chosen_detectors(self) -> tuple[int, ...]:
        """The detectors that observe."""
        return self.only or tuple(range(self.detectors))


class ChoicesError(SettingsError):
    """Choices that make no sense."""

    def __init__(self, faults: Mapping[str, str]) -> None:
        key, text = next(iter(faults.items()))
        super().__init__(text, key=key)
        self.faults = faults
        """What is wrong, by field; the empty name stands for all together."""


_Repo = TypeVar("_Repo", bound=DemoRepo)


def parse_choices(kind: type[_Repo], values: Mapping[str, Any]) -> _Repo:
    """Make choices of values or texts; `ChoicesError` says what is wrong with which."""
    try:
        return kind(**values)
    except ValidationError as error:
        faults: dict[str, str] = {}
        for fault in error.errors():
            name = str(fault["loc"][0]) if fault["loc"] else ""
            faults.setdefault(name, _explain(name, fault, values.get(name)))
        raise ChoicesError(faults) from None


_REASONS = {
    "greater_than": "it must be greater than {gt:g}",
    "greater_than_equal": "it must be at least {ge:g}",
    "less_than": "it must be less than {lt:g}",
    "less_than_equal": "it must be at most {le:g}",
    "too_long": "there may be {max_length} of them",
    "value_error": "{error}",
    "literal_error": "it must be one of {expected}",
    "extra_forbidden": "there is nothing of that name to choose",
}


def _explain(name: str, fault: Any, given: object) -> str:
    kind = fault["type"]
    reason = _REASONS.get(kind, "it must be a number").format_map(fault.get("ctx", {}))
    if kind.startswith("int_"):
        reason = "it must be a whole number"
    given = fault["input"] if len(fault["loc"]) > 1 else given
    text = ",".join(map(str, given)) if isinstance(given, list | tuple) else str(given)
    return f"{name} is {text[:80]}; {reason}" if name else reason


def render_values(choices: DemoRepo) -> Iterator[tuple[str, str]]:
    """Yield name and text of each choice that is not the default, for a command or an address."""
    for name, field in type(choices).model_fields.items():
        value = getattr(choices, name)
        if value == field.default:
            continue
        if name == "place":
            yield from ((name, f"{ra!r},{dec!r}") for ra, dec in value)
        elif name == "catalog":
            yield from ((name, str(path)) for path in value)
        else:
            yield name, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def render_options(choices: DemoRepo) -> str:
    """Give the options of the demo's command that make the repository of these choices."""
    words = [
        (f"--{name.replace('_', '-')}", value)
        for name, value in render_values(choices)
        if name in DemoRepo.model_fields
    ]
    return shlex.join(word for pair in words for word in pair)
