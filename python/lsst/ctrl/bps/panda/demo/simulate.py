"""From a catalogue of the sky to raw images: reading or making up a catalogue and pointings, what sky and
camera make of them, and the task that does it.

Stars are drawn by numpy, galaxies by GalSim, which is only needed for them
(extra ``[galaxies]``).
"""

# pex_config is not typed.
# mypy: allow-untyped-calls

from __future__ import annotations

__all__ = [
    "EXPOSURE",
    "NEEDS_GALSIM",
    "CalibrationConnections",
    "Pointing",
    "SimulateTask",
    "is_galaxy",
    "make_catalog",
    "make_detector",
    "make_header",
    "read_catalog",
    "read_table",
    "simulate_raw",
]

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.table import Table, vstack  # type: ignore[import-untyped]
from lsst.daf.butler.formatters.parquet import arrow_to_astropy
from lsst.pex.config import Field
from lsst.pipe.base import PipelineTaskConnections, Struct
from lsst.pipe.base.connectionTypes import Input, Output, PrerequisiteInput
from pyarrow import parquet  # type: ignore[import-untyped]

from ..errors import SettingsError
from .geometry import PIXEL_SCALE, Affine, FloatArray, FocalPlane, TangentPoint
from .instrument import BANDS, StarCam
from .photometry import Psf
from .star_task import StarTask, StarTaskConfig

NEEDS_GALSIM = "galaxies need GalSim: pip install 'lsst-ctrl-bps-panda[galaxies]'"

_FAINTEST, _BRIGHTEST = 25.0, 16.0
_SLOPE = 0.22
"""Slope of the logarithm of the number of stars with magnitude."""
_SEQUENCE = (16.0, 17.6, 18.4, 19.2, 21.0, 23.0, 25.0), (1.15, 0.9, 0.75, 0.35, 0.5, 0.95, 1.5)
"""Magnitudes in r, and colours g - r, of the stars of a cluster."""


# --- what is in the sky, and where the camera looks ---


def make_catalog(
    centre: TangentPoint,
    half_width: float,
    *,
    rng: np.random.Generator,
    density: float = 0.03,
    galaxies: float = 0.0,
) -> Table:
    """Make up a field of stars and galaxies, as `read_catalog` reads one.

    ``half_width`` is half of its side in arcseconds; ``density`` and ``galaxies`` are the numbers of stars
    and of galaxies in a square arcsecond.
    """
    area = (2.0 * half_width) ** 2
    stars = _objects(int(density * area), centre, half_width, brightest=_BRIGHTEST, rng=rng, cluster=True)
    number = int(galaxies * area)
    if not number:
        return stars
    others = _objects(number, centre, half_width, brightest=19.0, rng=rng)
    # The fainter, the smaller.
    typical = np.exp(rng.normal(0.0, 0.3, number)) * 10.0 ** (-0.1 * (np.asarray(others["r"]) - 20.0))
    others["half_light_radius"] = np.clip(0.9 * typical, 0.2, 3.0)
    others["axis_ratio"] = rng.uniform(0.35, 1.0, number)
    others["position_angle"] = rng.uniform(0.0, 180.0, number)
    return vstack([stars, others]).filled(0.0)


def _objects(
    number: int,
    centre: TangentPoint,
    half_width: float,
    *,
    brightest: float,
    rng: np.random.Generator,
    cluster: bool = False,
) -> Table:
    xi = rng.uniform(-half_width, half_width, number)
    eta = rng.uniform(-half_width, half_width, number)
    ra, dec = centre.deproject(xi, eta)
    # Inverse of the cumulative distribution of 10**(slope * magnitude).
    low, high = 10.0 ** (_SLOPE * brightest), 10.0 ** (_SLOPE * _FAINTEST)
    r = np.log10(rng.uniform(low, high, number)) / _SLOPE
    colour = np.clip(rng.normal(0.75, 0.35, number), -0.3, 1.7)
    if cluster:
        # Two in three lie on the main sequence, or the giant branch, of a cluster.
        member = rng.uniform(size=number) < 0.67
        sequence = np.interp(r, _SEQUENCE[0], _SEQUENCE[1]) + rng.normal(0.0, 0.03, number)
        colour = np.where(member, sequence, colour)
    i = r - 0.4 * colour
    return Table({"ra": ra, "dec": dec, "g": r + colour, "r": r, "i": i, "z": i - 0.2 * colour})


def is_galaxy(catalog: Table) -> npt.NDArray[np.bool_]:
    """Mark what has a size."""
    if "half_light_radius" not in catalog.colnames:
        return np.zeros(len(catalog), dtype=bool)
    return np.asarray(catalog["half_light_radius"], dtype=float) > 0.0


def read_table(path: str | os.PathLike[str], needed: Iterable[str], numbers: Iterable[str]) -> Table:
    """Read a table of a user's: the needed columns, and those of the numbers that it has."""
    formats = {".csv": "ascii.csv", ".ecsv": "ascii.ecsv", ".fits": "fits"}
    ending = Path(path).suffix
    if ending not in (*formats, ".parquet"):
        raise SettingsError(f"{path}: its name must end in one of {', '.join(formats)}, .parquet")
    try:
        if ending == ".parquet":
            # astropy would want pandas.
            table = arrow_to_astropy(parquet.read_table(path))
        else:
            table = Table.read(path, format=formats[ending])
    except Exception as error:  # Each format has exceptions of its own.
        raise SettingsError(f"{path} cannot be read as {ending[1:].upper()}: {error}") from error
    if lacking := [name for name in needed if name not in table.colnames]:
        raise SettingsError(f"{path} has no column {lacking[0]!r}; it has {', '.join(table.colnames)}")
    if not len(table):
        raise SettingsError(f"{path} has no rows")
    table = table[[name for name in table.colnames if name in {*needed, *numbers}]]
    for name in (name for name in table.colnames if name in numbers):
        table[name] = [
            _number(value, name, f"{path}: row {n}") for n, value in enumerate(table[name], start=1)
        ]
    return table


def _number(value: object, name: str, where: str) -> float:
    try:
        number = float("nan") if value is np.ma.masked else float(str(value))
    except ValueError:
        raise SettingsError(f"{where}: {name} is {str(value)!r}, which is no number") from None
    if not np.isfinite(number) or (name in _POSITIVE and number <= 0.0):
        least = " greater than 0" if name in _POSITIVE else ""
        raise SettingsError(f"{where}: {name} is {value}; it must be a number{least}")
    return number


_POSITIVE = ("seeing", "transparency", "exposure_time", "axis_ratio")


def read_catalog(path: str | os.PathLike[str], bands: Sequence[str]) -> Table:
    """Read stars and galaxies of a user's.

    There are ``ra`` and ``dec`` in degrees, and an AB magnitude named as each band.  What has a
    ``half_light_radius`` (arcseconds) above 0 is a galaxy, of the given ``axis_ratio`` (1) and
    ``position_angle`` (0, degrees from north to east) if there are these columns.
    """
    needed = ("ra", "dec", *bands)
    return read_table(path, needed, {*needed, *BANDS, "half_light_radius", "axis_ratio", "position_angle"})


@dataclass(frozen=True, slots=True)
class Pointing:
    """One exposure: where the camera looks, and through what."""

    exposure: int
    band: str
    ra: float  # Where it looks, degrees.
    dec: float
    recorded_ra: float  # Where its headers say it looks: some tenths of arcseconds off.
    recorded_dec: float
    rotation: float  # Degrees from north to east.
    seeing: float  # Full width at half maximum of the point spread function, arcseconds.
    sky: float  # Magnitudes per square arcsecond.
    transparency: float  # Fraction of the light that comes through.
    exposure_time: float  # Seconds.
    detectors: int  # Number of them in the camera.
    seed: int  # Of all chance in the images.


# --- the camera ---


def make_detector(
    size: int, bands: Sequence[str], rng: np.random.Generator
) -> tuple[npt.NDArray[np.float32], dict[str, npt.NDArray[np.float32]]]:
    """Make up a detector of ``size`` pixels on a side: its bias, and the relative response by band."""
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
    return bias, flats


def simulate_raw(
    catalog: Table,
    pointing: Pointing,
    detector: int,
    *,
    bias: npt.NDArray[np.float32],
    flat: npt.NDArray[np.float32],
    gradient: float = 0.0,
    cosmic_rays: float = 0.0,
) -> npt.NDArray[np.uint16]:
    """Expose a detector, and give its counts.

    ``gradient`` is the largest change of the sky's brightness from side to side, as a fraction;
    ``cosmic_rays`` is their mean number in a second.
    """
    rng = np.random.default_rng([pointing.seed, 5, pointing.exposure, detector])
    band = BANDS[pointing.band]
    plane = FocalPlane(pointing.detectors)
    size = plane.size
    affine = plane.affine(detector, pointing.rotation)
    x, y = affine.inverse(*TangentPoint(pointing.ra, pointing.dec).project(catalog["ra"], catalog["dec"]))
    near = (x > -15) & (x < size + 15) & (y > -15) & (y < size + 15)
    scale = pointing.exposure_time * pointing.transparency
    fluxes = scale * 10.0 ** (0.4 * (band.zero_point - np.asarray(catalog[pointing.band], dtype=float)))
    sky = pointing.exposure_time * 10.0 ** (0.4 * (band.zero_point - pointing.sky)) * PIXEL_SCALE**2
    tilt = rng.uniform(-0.5, 0.5, 2) * gradient * np.linspace(-1.0, 1.0, size)[:, np.newaxis]
    light = sky * (1.0 + tilt[:, :1] + tilt[np.newaxis, :, 1])
    psf = Psf.from_fwhm(pointing.seeing / PIXEL_SCALE)
    extended = is_galaxy(catalog)
    stars = near & ~extended
    psf.add_to(light, x[stars], y[stars], fluxes[stars])
    if np.any(near & extended):
        _add_galaxies(light, catalog[near & extended], x, y, fluxes, near & extended, psf, affine)
    electrons = rng.poisson(light * flat) + rng.normal(0.0, StarCam.read_noise, light.shape)
    _add_cosmic_rays(electrons, rng.poisson(cosmic_rays * pointing.exposure_time), rng)
    counts = np.rint(np.minimum(electrons, StarCam.full_well) / StarCam.gain + bias)
    raw: npt.NDArray[np.uint16] = np.clip(counts, 0, 65535).astype(np.uint16)
    return raw


def make_header(pointing: Pointing, affine: Affine) -> dict[str, Any]:
    """Make the header of a raw image: its circumstances, as the camera knows them."""
    return {
        "ra": pointing.recorded_ra,
        "dec": pointing.recorded_dec,
        "affine": affine.to_dict(),
        "exposure_time": pointing.exposure_time,
        "gain": StarCam.gain,
        "read_noise": StarCam.read_noise,
        "full_well": StarCam.full_well,
        "band": pointing.band,
    }


def _add_galaxies(
    light: FloatArray,
    catalog: Table,
    x: FloatArray,
    y: FloatArray,
    fluxes: FloatArray,
    chosen: npt.NDArray[np.bool_],
    psf: Psf,
    affine: Affine,
) -> None:
    """Add discs with exponential profiles, as the point spread function shows them."""
    try:
        import galsim  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise ImportError(NEEDS_GALSIM) from error
    ones, zeros = np.ones(len(catalog)), np.zeros(len(catalog))
    ratios = catalog["axis_ratio"] if "axis_ratio" in catalog.colnames else ones
    angles = catalog["position_angle"] if "position_angle" in catalog.colnames else zeros
    turn = np.degrees(np.arctan2(affine.yx, affine.xx))
    image = galsim.Image(light, xmin=0, ymin=0)
    for row, px, py, flux, ratio, angle in zip(
        catalog, x[chosen], y[chosen], fluxes[chosen], ratios, angles, strict=True
    ):
        disc = galsim.Exponential(half_light_radius=float(row["half_light_radius"]) / PIXEL_SCALE, flux=flux)
        disc = disc.shear(q=float(ratio), beta=(90.0 - float(angle) - turn) * galsim.degrees)
        seen = galsim.Convolve(disc, galsim.Gaussian(sigma=psf.sigma))
        # The value at the pixels' centres, as for stars.
        stamp = seen.drawImage(scale=1.0, method="no_pixel", center=galsim.PositionD(px, py), dtype=float)
        both = stamp.bounds & image.bounds
        if both.isDefined():
            image[both] += stamp[both]


def _add_cosmic_rays(electrons: FloatArray, number: int, rng: np.random.Generator) -> None:
    """Add straight tracks, each with one charge in all of its pixels."""
    size = electrons.shape[0]
    for _ in range(number):
        x, y = rng.uniform(0, size, 2)
        angle, length = rng.uniform(0.0, 2.0 * np.pi), 1.0 + rng.exponential(6.0)
        steps = np.arange(0.0, length, 0.5)
        columns = np.rint(x + np.cos(angle) * steps).astype(int)
        rows = np.rint(y + np.sin(angle) * steps).astype(int)
        inside = (columns >= 0) & (columns < size) & (rows >= 0) & (rows < size)
        track = np.unique(rows[inside] * size + columns[inside])
        electrons.reshape(-1)[track] += rng.uniform(500.0, 4000.0)


# --- the task ---

EXPOSURE = ("instrument", "exposure", "detector")
DETECTOR = ("instrument", "detector")
FILTER = ("instrument", "physical_filter", "detector")


class CalibrationConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    """What is known of a detector."""

    bias = PrerequisiteInput(
        "starcam_bias", "NumpyArray", "Counts without light", dimensions=DETECTOR, isCalibration=True
    )
    flat = PrerequisiteInput(
        "starcam_flat", "NumpyArray", "Response of the pixels", dimensions=FILTER, isCalibration=True
    )


class SimulateConnections(CalibrationConnections, dimensions=EXPOSURE):
    """Data of `SimulateTask`."""

    catalog = PrerequisiteInput("starcam_catalog", "ArrowAstropy", "Truth", dimensions=("instrument",))
    pointing = Input(
        "starcam_pointing", "StructuredDataDict", "A `Pointing`", dimensions=("instrument", "exposure")
    )
    raw = Output("starcam_raw", "NumpyArray", "Counts", dimensions=EXPOSURE)
    header = Output(
        "starcam_header",
        "StructuredDataDict",
        "Its circumstances, as the camera knows them",
        dimensions=EXPOSURE,
    )


class SimulateConfig(StarTaskConfig, pipelineConnections=SimulateConnections):
    """Options of `SimulateTask`."""

    gradient: Field[float] = Field(
        dtype=float, default=0.05, doc="Largest change of the sky from side to side, as a fraction."
    )
    cosmicRays: Field[float] = Field(
        dtype=float, default=0.1, doc="Mean number of cosmic rays in a detector in a second."
    )


class SimulateTask(StarTask):
    """Simulate the raw image of a detector: the same pixels wherever it runs."""

    ConfigClass = SimulateConfig
    _DefaultName = "simulate"
    config: SimulateConfig
    run_dimensions = ("detector",)

    def run(
        self,
        *,
        catalog: Table,
        pointing: dict[str, Any],
        bias: npt.NDArray[np.float32],
        flat: npt.NDArray[np.float32],
        detector: int,
    ) -> Struct:
        """Process a detector of an exposure."""
        told = Pointing(**pointing)
        raw = simulate_raw(
            catalog,
            told,
            detector,
            bias=bias,
            flat=flat,
            gradient=self.config.gradient,
            cosmic_rays=self.config.cosmicRays,
        )
        affine = FocalPlane(told.detectors).affine(detector, told.rotation)
        return Struct(raw=raw, header=make_header(told, affine))
