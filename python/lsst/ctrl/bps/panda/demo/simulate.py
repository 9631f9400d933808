"""From a catalogue of the sky, read or made up, to raw images: what sky and camera make of it.

Stars are drawn by numpy, galaxies by GalSim, which is only needed for them (extra ``[galaxies]``).
"""

from __future__ import annotations

__all__ = [
    "NEEDS_GALSIM",
    "Pointing",
    "TABLES",
    "is_galaxy",
    "make_catalog",
    "make_detector",
    "make_header",
    "read_catalog",
    "read_table",
    "simulate_raw",
]

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.stats import gaussian_fwhm_to_sigma  # type: ignore[import-untyped]
from astropy.table import Table, vstack  # type: ignore[import-untyped]
from astropy.wcs import WCS  # type: ignore[import-untyped]

from ..errors import SettingsError
from .geometry import PIXEL_SCALE, FloatArray, FocalPlane, Image, offset
from .instrument import BANDS, StarCam
from .photometry import Psf

Rng = np.random.Generator

NEEDS_GALSIM = "galaxies need GalSim: pip install 'lsst-ctrl-bps-panda[galaxies]'"

_FAINTEST, _BRIGHTEST = 25.0, 16.0
_SLOPE = 0.22  # Of the logarithm of the number of stars with magnitude.
# Magnitudes in r, and colours g - r, of the stars of a cluster.
_SEQUENCE = (16.0, 17.6, 18.4, 19.2, 21.0, 23.0, 25.0), (1.15, 0.9, 0.75, 0.35, 0.5, 0.95, 1.5)
# Columns that say what a galaxy looks like, and their values for a star.
_SHAPE = {"half_light_radius": 0.0, "axis_ratio": 1.0, "position_angle": 0.0}
TABLES = (".csv", ".ecsv", ".fits", ".parquet")
"""Endings of files that a catalogue, or pointings, can be in."""

_MOST_ROWS = 200_000
_POSITIVE = ("seeing", "transparency", "exposure_time", "axis_ratio")
_RANGES = {
    "ra": (-360.0, 360.0),
    "dec": (-90.0, 90.0),
    "axis_ratio": (0.0, 1.0),
    "half_light_radius": (-math.inf, 60.0),
}
"""Least and greatest values of columns; others may be any number."""

_GALAXY_REACH = 20.0  # Pixels beyond its edge from where a galaxy is seen on an image.


# --- what is in the sky, and where the camera looks ---


def make_catalog(
    ra: float, dec: float, half_width: float, *, rng: Rng, density: float = 0.03, galaxies: float = 0.0
) -> Table:
    """Make up a field of stars and galaxies, ``density`` and ``galaxies`` in a square arcsecond."""

    def scatter(number: int, brightest: float) -> Table:
        east, north = rng.uniform(-half_width, half_width, (2, number))
        there, up = offset(ra, dec, east, north)
        # Inverse of the cumulative distribution of 10**(slope * magnitude).
        low, high = 10.0 ** (_SLOPE * brightest), 10.0 ** (_SLOPE * _FAINTEST)
        r = np.log10(rng.uniform(low, high, number)) / _SLOPE
        colour = np.clip(rng.normal(0.75, 0.35, number), -0.3, 1.7)
        return Table({"ra": there, "dec": up, "r": r, "colour": colour})

    area = (2.0 * half_width) ** 2
    objects = scatter(int(density * area), _BRIGHTEST)
    # Two in three stars lie on the main sequence, or the giant branch, of a cluster.
    member = rng.uniform(size=len(objects)) < 0.67
    sequence = np.interp(objects["r"], *_SEQUENCE) + rng.normal(0.0, 0.03, len(objects))
    objects["colour"] = np.where(member, sequence, objects["colour"])
    _add_shape(objects)
    if number := int(galaxies * area):
        others = scatter(number, 19.0)
        # The fainter, the smaller.
        typical = np.exp(rng.normal(0.0, 0.3, number)) * 10.0 ** (-0.1 * (others["r"] - 20.0))
        others["half_light_radius"] = np.clip(0.9 * typical, 0.2, 3.0)
        others["axis_ratio"] = rng.uniform(0.35, 1.0, number)
        others["position_angle"] = rng.uniform(0.0, 180.0, number)
        objects = vstack([objects, others])
    objects["g"] = objects["r"] + objects["colour"]
    objects["i"] = objects["r"] - 0.4 * objects["colour"]
    objects["z"] = objects["i"] - 0.2 * objects["colour"]
    del objects["colour"]
    return objects


def _add_shape(catalog: Table) -> None:
    for name, value in _SHAPE.items():
        if name not in catalog.colnames:
            catalog[name] = value


def is_galaxy(catalog: Table) -> npt.NDArray[np.bool_]:
    """Mark what has a size."""
    return np.asarray(catalog["half_light_radius"]) > 0.0


def read_table(path: str | os.PathLike[str], needed: Iterable[str], numbers: Iterable[str]) -> Table:
    """Read a table of a user's: the needed columns, and those of the numbers that it has."""
    ending = Path(path).suffix
    if ending not in TABLES:
        raise SettingsError(f"{path}: its name must end in one of {', '.join(TABLES)}")
    try:
        table = _read_parquet(path) if ending == ".parquet" else Table.read(path)
    except SettingsError:
        raise
    except Exception as error:  # Each format has exceptions of its own.
        raise SettingsError(f"{path} cannot be read as {ending[1:].upper()}: {error}") from error
    if lacking := [name for name in needed if name not in table.colnames]:
        raise SettingsError(f"{path} has no column {lacking[0]!r}; it has {', '.join(table.colnames)}")
    if not len(table):
        raise SettingsError(f"{path} has no rows")
    _check_rows(path, len(table))
    table.keep_columns([name for name in table.colnames if name in {*needed, *numbers}])
    for name in (name for name in table.colnames if name in numbers):
        table[name] = [
            _number(cell, name, f"{path}: column {name}, row {row}")
            for row, cell in enumerate(table[name], start=1)
        ]
    return table


def _read_parquet(path: str | os.PathLike[str]) -> Table:
    # Quanta do without these imports; astropy would want pandas.
    from lsst.daf.butler.formatters.parquet import arrow_to_astropy
    from pyarrow import parquet  # type: ignore[import-untyped]

    # A small file may hold very many equal rows.
    _check_rows(path, parquet.read_metadata(path).num_rows)
    return arrow_to_astropy(parquet.read_table(path))


def _check_rows(path: str | os.PathLike[str], number: int) -> None:
    if number > _MOST_ROWS:
        raise SettingsError(f"{path} has {number} rows; there may be {_MOST_ROWS}")


def _number(cell: Any, column: str, where: str) -> float:
    try:
        value = math.nan if cell is np.ma.masked else float(cell)
    except (TypeError, ValueError):
        value = math.nan
    positive = column in _POSITIVE
    least, most = _RANGES.get(column, (-math.inf, math.inf))
    if not math.isfinite(value) or not least <= value <= most or (positive and value <= 0.0):
        limits = ["greater than 0"] if positive else [f"at least {least:g}"] * math.isfinite(least)
        limits += [f"at most {most:g}"] * math.isfinite(most)
        raise SettingsError(f"{where} is {cell}; it must be a number {' and '.join(limits)}".rstrip())
    return value


def read_catalog(path: str | os.PathLike[str], bands: Sequence[str]) -> Table:
    """Read stars and galaxies of a user's.

    There are ``ra`` and ``dec`` in degrees, and an AB magnitude named as each band.  What has a
    ``half_light_radius`` (arcseconds) above 0 is a galaxy, of the given ``axis_ratio`` (1) and
    ``position_angle`` (0, degrees from north to east) if there are these columns.
    """
    needed = ("ra", "dec", *bands)
    catalog = read_table(path, needed, {*needed, *BANDS, *_SHAPE})
    _add_shape(catalog)
    return catalog


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


def make_detector(size: int, bands: Sequence[str], rng: Rng) -> tuple[Image, dict[str, Image]]:
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
    catalog: Table, pointing: Pointing, detector: int, *, bias: Image, flat: Image, tilt: float, rays: float
) -> npt.NDArray[np.uint16]:
    """Expose a detector, and give its counts.

    ``tilt`` is the largest change of the sky's brightness from side to side, as a fraction; ``rays`` is
    the mean number of cosmic rays in a second.
    """
    plane = FocalPlane(pointing.detectors)
    rng = np.random.default_rng([pointing.seed, 5, pointing.exposure, detector])
    magnitude = BANDS[pointing.band].zero_point - pointing.sky
    sky = pointing.exposure_time * 10.0 ** (0.4 * magnitude) * PIXEL_SCALE**2
    along, across = rng.uniform(-0.5, 0.5, (2, 1)) * tilt * np.linspace(-1, 1, plane.size)
    light = sky * (1.0 + across + along[:, np.newaxis])
    _add_sources(light, catalog, pointing, plane.wcs(detector, pointing.ra, pointing.dec, pointing.rotation))
    electrons = rng.poisson(light * flat) + rng.normal(0.0, StarCam.read_noise, light.shape)
    _add_cosmic_rays(electrons, rng.poisson(rays * pointing.exposure_time), rng)
    counts = np.rint(np.minimum(electrons, StarCam.full_well) / StarCam.gain + bias)
    raw: npt.NDArray[np.uint16] = np.clip(counts, 0, 65535).astype(np.uint16)
    return raw


def _add_sources(light: FloatArray, catalog: Table, pointing: Pointing, wcs: WCS) -> None:
    """Add the stars and galaxies that an exposure shows."""
    psf = Psf.gaussian(pointing.seeing / PIXEL_SCALE * gaussian_fwhm_to_sigma)
    x, y = wcs.wcs_world2pix(catalog["ra"], catalog["dec"], 0)
    extended = is_galaxy(catalog)
    reach = np.where(extended, _GALAXY_REACH, psf.radius)
    near = (np.minimum(x, y) > -reach) & (np.maximum(x, y) < light.shape[0] - 1 + reach)
    scale = pointing.exposure_time * pointing.transparency
    magnitudes = np.asarray(catalog[pointing.band], dtype=float)
    fluxes = scale * 10.0 ** (0.4 * (BANDS[pointing.band].zero_point - magnitudes))
    stars, galaxies = near & ~extended, near & extended
    psf.add_to(light, x[stars], y[stars], fluxes[stars])
    if galaxies.any():
        _add_galaxies(light, catalog[galaxies], x[galaxies], y[galaxies], fluxes[galaxies], pointing)


def make_header(pointing: Pointing, detector: int) -> dict[str, Any]:
    """Make the header of a raw image: its circumstances, as the camera knows them."""
    recorded = pointing.recorded_ra, pointing.recorded_dec, pointing.rotation
    return {
        "wcs": dict(FocalPlane(pointing.detectors).wcs(detector, *recorded).to_header()),
        "exposure_time": pointing.exposure_time,
        "gain": StarCam.gain,
        "read_noise": StarCam.read_noise,
        "full_well": StarCam.full_well,
    }


def _add_galaxies(
    light: FloatArray, catalog: Table, x: FloatArray, y: FloatArray, fluxes: FloatArray, pointing: Pointing
) -> None:
    """Add discs with exponential profiles, as the point spread function shows them."""
    try:
        import galsim  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise ImportError(NEEDS_GALSIM) from error
    seeing = galsim.Gaussian(fwhm=pointing.seeing / PIXEL_SCALE)
    image = galsim.Image(light, xmin=0, ymin=0)
    for row, px, py, flux in zip(catalog, x, y, fluxes, strict=True):
        disc = galsim.Exponential(half_light_radius=float(row["half_light_radius"]) / PIXEL_SCALE, flux=flux)
        turn = 90.0 + float(row["position_angle"]) - pointing.rotation
        disc = disc.shear(q=float(row["axis_ratio"]), beta=turn * galsim.degrees)
        # The value at the pixels' centres, as for stars.
        seen = galsim.Convolve(disc, seeing)
        stamp = seen.drawImage(scale=1.0, method="no_pixel", center=galsim.PositionD(px, py), dtype=float)
        both = stamp.bounds & image.bounds
        if both.isDefined():
            image[both] += stamp[both]


def _add_cosmic_rays(electrons: FloatArray, number: int, rng: Rng) -> None:
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
