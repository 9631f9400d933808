"""The simulated stars, and what the sky and the camera make of them."""

from __future__ import annotations

__all__ = ["DetectorEffects", "Observation", "StarCatalog", "make_stars", "simulate_raw"]

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .geometry import PIXEL_SCALE, Affine, FloatArray, FocalPlane, TangentPoint
from .instrument import BANDS, StarCam
from .psf import Psf

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
