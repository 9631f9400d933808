"""A Butler repository with simulated raw images: the stars, what the sky and the camera make of them, making
the repository, the BPS configuration of a run on it, and whether all that a run should have made is in it.
"""

from __future__ import annotations

__all__ = [
    "BASE_CONFIG",
    "BUTLER_CONFIG",
    "INPUTS",
    "RUN_CONFIG",
    "SKYMAP",
    "DemoRepo",
    "DetectorEffects",
    "Observation",
    "StarCatalog",
    "count_outputs",
    "create_repo",
    "make_stars",
    "missing_outputs",
    "render_run_config",
    "simulate_raw",
]

import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from astropy.table import Table  # type: ignore[import-untyped]
from astropy.time import Time, TimeDelta  # type: ignore[import-untyped]
from lsst.daf.butler import (  # type: ignore[attr-defined]
    Butler,
    CollectionType,
    DatasetType,
    MissingDatasetTypeError,
    Timespan,
)
from lsst.sphgeom import ConvexPolygon

from ..errors import SettingsError
from .geometry import PIXEL_SCALE, Affine, Box, FloatArray, FocalPlane, SkyLayout, TangentPoint, polygon
from .instrument import BANDS, StarCam, filter_name
from .photometry import Psf

_FAINTEST = 25.0
_BRIGHTEST = 16.0
_SLOPE = 0.22
"""Slope of the logarithm of the number of stars with magnitude."""


@dataclass(frozen=True, slots=True)
class StarCatalog:
    """Stars with their true positions and magnitudes."""

    ra: FloatArray
    dec: FloatArray
    magnitudes: dict[str, FloatArray]


@dataclass(frozen=True, slots=True)
class Observation:
    """One visit: where the camera really looked, and through what."""

    visit: int
    band: str
    pointing: TangentPoint
    """Where it looked."""

    recorded: TangentPoint
    """Where its headers say it looked: some tenths of arcseconds off."""

    rotation: float
    """Degrees from north to east."""

    seeing: float
    """Full width at half maximum of the point spread function, arcseconds."""

    sky: float
    """Brightness of the sky, magnitudes per square arcsecond."""

    transparency: float
    """Fraction of the light that comes through."""

    exposure_time: float = 30.0
    """Seconds."""


@dataclass(frozen=True, slots=True)
class DetectorEffects:
    """What a detector adds to and does with the light."""

    bias: npt.NDArray[np.float32]
    """Counts without light."""

    flats: dict[str, npt.NDArray[np.float32]]
    """Relative response of the pixels, by band."""

    @classmethod
    def simulate(cls, *, size: int, bands: tuple[str, ...], rng: np.random.Generator) -> DetectorEffects:
        """Make up a detector.

        Parameters
        ----------
        size : `int`
            Pixels on a side.
        bands : `tuple` [`str`, ...]
            Bands to make flats for.
        rng : `numpy.random.Generator`
            Source of chance.
        """
        columns = rng.normal(0.0, 2.0, size)[np.newaxis, :]
        level = rng.uniform(900.0, 1100.0)
        bias = (level + columns + rng.normal(0.0, 0.5, (size, size))).astype(np.float32)
        pixels = rng.normal(0.0, 0.01, (size, size))
        y, x = np.mgrid[-1.0 : 1.0 : size * 1j, -1.0 : 1.0 : size * 1j]
        flats = {}
        for band in bands:
            centre = rng.uniform(-0.3, 0.3, 2)
            vignetting = 0.08 * ((x - centre[0]) ** 2 + (y - centre[1]) ** 2)
            flat = (1.0 - vignetting) * (1.0 + pixels)
            flats[band] = (flat / np.mean(flat)).astype(np.float32)
        return cls(bias=bias, flats=flats)


def make_stars(
    centre: TangentPoint, half_width: float, *, rng: np.random.Generator, density: float = 0.03
) -> StarCatalog:
    """Make up a field of stars.

    Parameters
    ----------
    centre : `TangentPoint`
        Middle of the field.
    half_width : `float`
        Half the side of the field, arcseconds.
    rng : `numpy.random.Generator`
        Source of chance.
    density : `float`, optional
        Stars per square arcsecond.
    """
    number = int(density * (2.0 * half_width) ** 2)
    xi = rng.uniform(-half_width, half_width, number)
    eta = rng.uniform(-half_width, half_width, number)
    ra, dec = centre.deproject(xi, eta)
    # Inverse of the cumulative distribution of 10**(slope * magnitude).
    low, high = 10.0 ** (_SLOPE * _BRIGHTEST), 10.0 ** (_SLOPE * _FAINTEST)
    r = np.log10(rng.uniform(low, high, number)) / _SLOPE
    colour = np.clip(rng.normal(0.75, 0.35, number), -0.3, 1.7)
    i = r - 0.4 * colour
    return StarCatalog(ra=ra, dec=dec, magnitudes={"g": r + colour, "r": r, "i": i, "z": i - 0.2 * colour})


def simulate_raw(
    stars: StarCatalog,
    observation: Observation,
    detector: int,
    effects: DetectorEffects,
    *,
    focal_plane: FocalPlane,
    rng: np.random.Generator,
) -> npt.NDArray[np.uint16]:
    """Expose a detector.

    Parameters
    ----------
    stars : `StarCatalog`
        What is in the sky.
    observation : `Observation`
        Where and how it is looked at.
    detector : `int`
        Number of the detector.
    effects : `DetectorEffects`
        Its bias and flats.
    focal_plane : `FocalPlane`
        Where it sits.
    rng : `numpy.random.Generator`
        Source of chance.

    Returns
    -------
    raw : `numpy.ndarray`
        Counts of 16 bits.
    """
    band = BANDS[observation.band]
    size = focal_plane.size
    affine = focal_plane.affine(detector, observation.rotation)
    x, y = _positions(stars, observation.pointing, affine)
    near = (x > -15) & (x < size + 15) & (y > -15) & (y < size + 15)
    scale = observation.exposure_time * observation.transparency
    fluxes = scale * 10.0 ** (0.4 * (band.zero_point - stars.magnitudes[observation.band][near]))
    dark_sky = (
        observation.exposure_time * 10.0 ** (0.4 * (band.zero_point - observation.sky)) * PIXEL_SCALE**2
    )
    light = np.full((size, size), dark_sky)
    Psf.from_fwhm(observation.seeing / PIXEL_SCALE).add_to(light, x[near], y[near], fluxes)
    electrons = rng.poisson(light * effects.flats[observation.band]) + rng.normal(
        0.0, StarCam.read_noise, light.shape
    )
    counts = np.rint(electrons / StarCam.gain + effects.bias)
    return np.clip(counts, 0, 65535).astype(np.uint16)


def _positions(stars: StarCatalog, pointing: TangentPoint, affine: Affine) -> tuple[FloatArray, FloatArray]:
    return affine.inverse(*pointing.project(stars.ra, stars.dec))


INPUTS = "StarCam/defaults"
"""Collection that holds all that the pipeline needs."""

SKYMAP = "starcam_sky"
"""Name of the sky map; it has one tract, number 0."""

BUTLER_CONFIG = "butler.yaml"
BASE_CONFIG = "resource://lsst.ctrl.bps.panda.demo/bps_demo.yaml"
RUN_CONFIG = "demo.yaml"
"""File in the repository that `bps submit` takes."""

_RAW_RUN = "StarCam/raw"
_CALIB = "StarCam/calib"
_CALIB_RUN = "StarCam/calib/run"
_SKY_RUN = "StarCam/sky"
_CENTRE = TangentPoint(ra=62.0, dec=-37.0)
_DAY = 20260315
_START = Time("2026-03-15T23:30:00", scale="tai")
_DITHER = 12.0
"""Arcseconds that visits wander, at least."""

_DATASET_TYPES = {
    "starcam_raw": (("instrument", "exposure", "detector"), "NumpyArray", False),
    "starcam_header": (("instrument", "exposure", "detector"), "StructuredDataDict", False),
    "starcam_bias": (("instrument", "detector"), "NumpyArray", True),
    "starcam_flat": (("instrument", "physical_filter", "detector"), "NumpyArray", True),
    "starcam_reference": (("instrument",), "ArrowAstropy", False),
    "starcam_truth": (("instrument",), "ArrowAstropy", False),
    "sky_layout": (("skymap",), "StructuredDataDict", False),
}


@dataclass(frozen=True, slots=True)
class DemoRepo:
    """What is simulated."""

    visits_per_band: int = 3
    detectors: int = 4
    bands: tuple[str, ...] = ("g", "r")
    patches: int = 2
    """Patches on a side of the tract."""

    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("visits_per_band", "detectors", "patches"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}; it must be at least 1")
        unknown = [band for band in self.bands if band not in BANDS]
        if unknown or not self.bands or len(set(self.bands)) < len(self.bands):
            raise SettingsError(
                f"bands are {','.join(self.bands)!r}; choose from {','.join(BANDS)}, each once"
            )

    @property
    def focal_plane(self) -> FocalPlane:
        """Layout of the detectors."""
        return FocalPlane(self.detectors)

    @property
    def layout(self) -> SkyLayout:
        """Layout of the patches."""
        return SkyLayout(centre=_CENTRE, patches=self.patches)

    def rng(self, *path: int) -> np.random.Generator:
        """Give a source of chance of its own to each thing that is made up."""
        return np.random.default_rng([self.seed, *path])

    def observations(self) -> tuple[Observation, ...]:
        """Make up the visits."""
        rng = self.rng(1)
        reach = max(0.0, (self.layout.width - self.focal_plane.width) / 2.0) + _DITHER
        made: list[Observation] = []
        for band in self.bands:
            for _ in range(self.visits_per_band):
                pointing = TangentPoint(*map(float, _CENTRE.deproject(*rng.uniform(-reach, reach, 2))))
                recorded = TangentPoint(*map(float, pointing.deproject(*rng.normal(0.0, 0.8, 2))))
                made.append(
                    Observation(
                        visit=_DAY % 1_000_000 * 1000 + len(made) + 1,
                        band=band,
                        pointing=pointing,
                        recorded=recorded,
                        rotation=float(rng.uniform(-4.0, 4.0)),
                        seeing=float(rng.uniform(0.75, 1.2)),
                        sky=BANDS[band].sky + float(rng.uniform(-0.3, 0.1)),
                        transparency=float(rng.uniform(0.85, 1.0)),
                    )
                )
        return tuple(made)


def create_repo(
    path: str | os.PathLike[str],
    *,
    visits_per_band: int = 3,
    detectors: int = 4,
    bands: Sequence[str] = ("g", "r"),
    patches: int = 2,
    seed: int = 1,
) -> DemoRepo:
    """Make a Butler repository with simulated raw images.

    The same arguments make the same pixels.  The repository appears at its
    place when it is complete, not before.

    Parameters
    ----------
    path : path-like
        Where; must not exist, or be an empty directory.
    visits_per_band : `int`, optional
        Number of visits in each band.
    detectors : `int`, optional
        Number of detectors.
    bands : `~collections.abc.Sequence` [`str`], optional
        Bands, out of `.instrument.BANDS`.
    patches : `int`, optional
        Patches on a side of the tract.
    seed : `int`, optional
        Seed of all chance.

    Returns
    -------
    demo : `DemoRepo`
        What was simulated.

    Raises
    ------
    .SettingsError
        Raised if an argument makes no sense.
    FileExistsError
        Raised if there is something at the path.
    """
    demo = DemoRepo(visits_per_band, detectors, tuple(bands), patches, seed)
    target = Path(path).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"there is something at {target}: name another path, or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    # No dot in the name: the Butler would take it for that of a file.
    growing = target.with_name(f"starcam-{uuid.uuid4().hex}")
    try:
        Butler.makeRepo(str(growing))
        with Butler.from_config(str(growing), writeable=True) as butler:
            _fill(butler, demo)
        (growing / RUN_CONFIG).write_text(render_run_config(target), encoding="utf-8")
        os.replace(growing, target)
    finally:
        shutil.rmtree(growing, ignore_errors=True)
    return demo


def _fill(butler: Any, demo: DemoRepo) -> None:
    observations = demo.observations()
    StarCam().register(butler.registry, detectors=demo.detectors)
    with butler.transaction():
        _insert_sky(butler.registry, demo.layout)
        _insert_visits(butler.registry, demo.focal_plane, observations)
    for name, (dimensions, storage_class, is_calibration) in _DATASET_TYPES.items():
        butler.registry.registerDatasetType(
            DatasetType(
                name, dimensions, storage_class, universe=butler.dimensions, isCalibration=is_calibration
            )
        )
    for run in (_RAW_RUN, _CALIB_RUN, _SKY_RUN):
        butler.collections.register(run, CollectionType.RUN)
    effects = {
        detector: DetectorEffects.simulate(
            size=demo.focal_plane.size, bands=demo.bands, rng=demo.rng(2, detector)
        )
        for detector in range(demo.detectors)
    }
    half_width = max(demo.layout.width, demo.focal_plane.width) / 2.0 + 2.0 * _DITHER + 10.0
    stars = make_stars(_CENTRE, half_width, rng=demo.rng(3))
    _put_sky(butler, demo, stars)
    _put_calibrations(butler, effects)
    _put_raws(butler, demo, observations, stars, effects)
    butler.collections.register(INPUTS, CollectionType.CHAINED)
    butler.collections.redefine_chain(INPUTS, [_RAW_RUN, _CALIB, _SKY_RUN])


def _insert_sky(registry: Any, layout: SkyLayout) -> None:
    def region(box: Box) -> Any:
        return polygon(box.corners(), layout.affine(), layout.centre)

    number = layout.patches**2
    registry.insertDimensionData(
        "skymap",
        {
            "name": SKYMAP,
            "hash": uuid.uuid5(uuid.NAMESPACE_URL, repr(layout.to_dict())).bytes,
            "tract_max": 1,
            "patch_nx_max": layout.patches,
            "patch_ny_max": layout.patches,
        },
    )
    registry.insertDimensionData("tract", {"skymap": SKYMAP, "id": 0, "region": region(layout.tract_box())})
    registry.insertDimensionData(
        "patch",
        *(
            {
                "skymap": SKYMAP,
                "tract": 0,
                "id": patch,
                "cell_x": patch % layout.patches,
                "cell_y": patch // layout.patches,
                "region": region(layout.outer_box(patch)),
            }
            for patch in range(number)
        ),
    )


def _insert_visits(registry: Any, focal_plane: FocalPlane, observations: Sequence[Observation]) -> None:
    name = StarCam.getName()
    registry.insertDimensionData("visit_system", {"instrument": name, "id": 0, "name": "one-to-one"})
    night = Timespan(_START - TimeDelta(0.5, format="jd"), _START + TimeDelta(0.5, format="jd"))
    registry.insertDimensionData("day_obs", {"instrument": name, "id": _DAY, "timespan": night})
    records: dict[str, list[dict[str, Any]]] = {}
    for sequence, observation in enumerate(observations, start=1):
        for element, rows in _visit_records(focal_plane, observation, sequence).items():
            records.setdefault(element, []).extend(rows)
    for element, rows in records.items():
        registry.insertDimensionData(element, *({"instrument": name} | row for row in rows))


def _visit_records(
    focal_plane: FocalPlane, observation: Observation, sequence: int
) -> dict[str, list[dict[str, Any]]]:
    """Make the dimension records of a visit, in an order they can be inserted in."""
    begin = _START + TimeDelta(60.0 * sequence, format="sec")
    number, text = observation.visit, f"SC_{observation.visit}"
    common: dict[str, Any] = {
        "id": number,
        "day_obs": _DAY,
        "physical_filter": filter_name(observation.band),
        "exposure_time": observation.exposure_time,
        "seq_num": sequence,
        "target_name": "star field",
        "observation_reason": "demo",
        "science_program": "demo",
        "zenith_angle": 20.0,
        "azimuth": 180.0,
        "timespan": Timespan(begin, begin + TimeDelta(observation.exposure_time, format="sec")),
    }
    exposure = common | {
        "group": text,
        "obs_id": text,
        "dark_time": observation.exposure_time,
        "observation_type": "science",
        "seq_start": sequence,
        "seq_end": sequence,
        "tracking_ra": observation.pointing.ra,
        "tracking_dec": observation.pointing.dec,
        "sky_angle": observation.rotation,
        "has_simulated": True,
        "can_see_sky": True,
    }
    # Regions reach over the edges, as the pointing in the headers is not exact.
    regions = {
        detector: polygon(
            focal_plane.box().grow(10).corners(),
            focal_plane.affine(detector, observation.rotation),
            observation.recorded,
        )
        for detector in range(focal_plane.detectors)
    }
    return {
        "group": [{"name": text}],
        "exposure": [exposure],
        "visit": [common | {"name": text, "region": _hull(regions.values())}],
        "visit_definition": [{"exposure": number, "visit": number}],
        "visit_system_membership": [{"visit_system": 0, "visit": number}],
        "visit_detector_region": [
            {"visit": number, "detector": detector, "region": region} for detector, region in regions.items()
        ],
    }


def _hull(regions: Any) -> Any:
    return ConvexPolygon([vertex for region in regions for vertex in region.getVertices()])


def _put_sky(butler: Any, demo: DemoRepo, stars: StarCatalog) -> None:
    butler.put(demo.layout.to_dict(), "sky_layout", skymap=SKYMAP, run=_SKY_RUN)
    truth = Table({"ra": stars.ra, "dec": stars.dec, **stars.magnitudes})
    butler.put(truth, "starcam_truth", instrument=StarCam.getName(), run=_SKY_RUN)
    rng = demo.rng(4)
    reference = truth[truth["r"] < 21.0]
    error = 0.02 / 3600.0
    reference["dec"] += rng.normal(0.0, error, len(reference))
    reference["ra"] += rng.normal(0.0, error, len(reference)) / np.cos(np.radians(reference["dec"]))
    for band in BANDS:
        reference[band] += rng.normal(0.0, 0.01, len(reference))
    butler.put(reference, "starcam_reference", instrument=StarCam.getName(), run=_SKY_RUN)


def _put_calibrations(butler: Any, effects: dict[int, DetectorEffects]) -> None:
    """Put bias and flats as calibrations that are valid always."""
    name = StarCam.getName()
    refs = []
    for detector, effect in effects.items():
        refs.append(
            butler.put(effect.bias, "starcam_bias", instrument=name, detector=detector, run=_CALIB_RUN)
        )
        for band, flat in effect.flats.items():
            data_id = {"instrument": name, "detector": detector, "physical_filter": filter_name(band)}
            refs.append(butler.put(flat, "starcam_flat", data_id, run=_CALIB_RUN))
    butler.collections.register(_CALIB, CollectionType.CALIBRATION)
    butler.registry.certify(_CALIB, refs, Timespan(None, None))


def _put_raws(
    butler: Any,
    demo: DemoRepo,
    observations: Sequence[Observation],
    stars: StarCatalog,
    effects: dict[int, DetectorEffects],
) -> None:
    for observation in observations:
        for detector, effect in effects.items():
            raw = simulate_raw(
                stars,
                observation,
                detector,
                effect,
                focal_plane=demo.focal_plane,
                rng=demo.rng(5, observation.visit, detector),
            )
            header = {
                "ra": observation.recorded.ra,
                "dec": observation.recorded.dec,
                "affine": demo.focal_plane.affine(detector, observation.rotation).to_dict(),
                "exposure_time": observation.exposure_time,
                "gain": StarCam.gain,
                "read_noise": StarCam.read_noise,
                "band": observation.band,
            }
            data_id = {"instrument": StarCam.getName(), "exposure": observation.visit, "detector": detector}
            butler.put(raw, "starcam_raw", data_id, run=_RAW_RUN)
            butler.put(header, "starcam_header", data_id, run=_RAW_RUN)


def render_run_config(repo: str | os.PathLike[str], *, settings: Mapping[str, object] | None = None) -> str:
    """Give a BPS configuration as text.

    Parameters
    ----------
    repo : path-like
        Butler repository.
    settings : `~collections.abc.Mapping` [`str`, `object`], optional
        More keys of BPS, with their values.

    Returns
    -------
    text : `str`
        YAML.  The repository is named by a URI, which no blank or quote in
        its path can break.
    """
    keys = {
        "includeConfigs": [BASE_CONFIG],
        "butlerConfig": Path(repo).absolute().as_uri(),
        **(settings or {}),
    }
    return yaml.safe_dump(keys, sort_keys=False, allow_unicode=True)


_COUNTED = (
    "post_isr_image",
    "calibrated_image",
    "source_table",
    "visit_summary",
    "warp",
    "coadd",
    "patch_object_table",
    "object_table",
)


def count_outputs(repo: str | os.PathLike[str], run: str) -> dict[str, int]:
    """Count the datasets of a run.

    Parameters
    ----------
    repo : path-like
        Butler repository.
    run : `str`
        Collection of the run's outputs.

    Returns
    -------
    counts : `dict` [`str`, `int`]
        By dataset type, of the pipeline's main products; only datasets whose
        files exist count.
    """
    with Butler.from_config(str(repo)) as butler:
        if run not in set(butler.collections.query("*")):
            return dict.fromkeys(_COUNTED, 0)
        return {name: _count(butler, name, run) for name in _COUNTED}


def _count(butler: Butler, name: str, run: str) -> int:
    try:
        refs = butler.query_datasets(name, collections=run, explain=False, limit=None)
    except MissingDatasetTypeError:
        return 0
    return sum(butler.stored_many(refs).values())


def missing_outputs(repo: str | os.PathLike[str], run: str) -> tuple[str, ...]:
    """Tell what a run of the whole pipeline should have made and has not.

    Parameters
    ----------
    repo : path-like
        Butler repository.
    run : `str`
        Collection of the run's outputs.

    Returns
    -------
    problems : `tuple` [`str`, ...]
        One text a dataset type; empty if all is there.
    """
    with Butler.from_config(str(repo), collections=INPUTS) as butler:
        raws = butler.query_datasets("starcam_raw", limit=None)
        visits = {ref.dataId["exposure"] for ref in raws}
        bands = {record.physical_filter for record in butler.query_dimension_records("visit", limit=None)}
        patches = len(butler.query_dimension_records("patch", limit=None))
    least = {
        "post_isr_image": len(raws),
        "calibrated_image": len(raws),
        "source_table": len(raws),
        "visit_summary": len(visits),
        "warp": len(visits),
        "coadd": patches * len(bands),
        "patch_object_table": patches,
        "object_table": 1,
    }
    counts = count_outputs(repo, run)
    return tuple(
        f"{counts[name]} of {number} {name}" for name, number in least.items() if counts[name] < number
    )
