"""Finding and measuring stars on an image, and fitting its place on the sky and its zero point.

Point spread functions are sums of round Gaussians: that is what the simulated atmosphere makes, and a
weighted mean of images of different seeing has exactly such a one.  Sums run in a fixed order over plain
arrays, not through a threaded linear algebra library, so that the same pixels give the same bits wherever a
quantum runs.
"""

from __future__ import annotations

__all__ = [
    "AB_ZERO_POINT",
    "Psf",
    "calibrate",
    "compare_with_galaxy",
    "depth",
    "find_cosmic_rays",
    "find_peaks",
    "fit_background",
    "fit_fluxes",
    "matched_filter",
    "measure_sigma",
]

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from astropy.stats import sigma_clipped_stats  # type: ignore[import-untyped]
from astropy.table import Table  # type: ignore[import-untyped]
from astropy.wcs import WCS  # type: ignore[import-untyped]
from numpy.lib.stride_tricks import sliding_window_view

from .geometry import PIXEL_SCALE, FloatArray, match

AB_ZERO_POINT = 31.4
"""AB magnitude of one nanojansky."""

_GALAXY_SIGMA = 1.5  # Of the Gaussian that extended objects are more like than a star, pixels.


@dataclass(frozen=True, slots=True)
class Psf:
    """A normalized sum of round Gaussians, sampled at the pixels' centres."""

    components: Sequence[Sequence[float]]  # Weight (their sum is 1) and sigma in pixels of each.

    @classmethod
    def gaussian(cls, sigma: float) -> Psf:
        """Make a single one."""
        return cls(((1.0, sigma),))

    @property
    def radius(self) -> int:
        """Pixels from the centre beyond which it counts as zero."""
        return max(3, math.ceil(5.0 * max(sigma for _, sigma in self.components)))

    def stamp(self) -> FloatArray:
        """Draw it in the middle of ``2 * radius + 1`` pixels on a side."""
        axis = np.arange(-self.radius, self.radius + 1, dtype=float)
        return self._values(axis, axis)

    def _values(self, x: FloatArray, y: FloatArray) -> FloatArray:
        """Give its values at columns and rows so many pixels from its centre."""
        weight, sigma = np.array(self.components).T[:, :, np.newaxis]
        across, along = np.exp(-0.5 * (x / sigma) ** 2), np.exp(-0.5 * (y / sigma) ** 2)
        along *= weight / (2.0 * math.pi * sigma**2)
        image: FloatArray = np.sum(along[:, :, np.newaxis] * across[:, np.newaxis], axis=0)
        return image

    def place(
        self, shape: tuple[int, ...], x: FloatArray, y: FloatArray, *, radius: int | None = None
    ) -> Iterator[tuple[tuple[slice, ...], FloatArray]]:
        """Give for each position the part of an image that it touches, which may be empty, and its values."""
        reach = self.radius if radius is None else radius
        for centre in zip(y.tolist(), x.tolist(), strict=True):
            low = [max(0, round(at) - reach) for at in centre]
            high = [max(0, min(size, round(at) + reach + 1)) for at, size in zip(centre, shape, strict=True)]
            rows, columns = (np.arange(*ends) - at for *ends, at in zip(low, high, centre, strict=True))
            yield tuple(map(slice, low, high)), self._values(columns, rows)

    def add_to(self, image: FloatArray, x: FloatArray, y: FloatArray, fluxes: FloatArray) -> None:
        """Add stars to an image, in place."""
        for (there, part), flux in zip(self.place(image.shape, x, y), fluxes, strict=True):
            image[there] += flux * part


def fit_background(image: FloatArray, *, cells: int = 4) -> FloatArray:
    """Fit a plane to the sky of an image, by the medians of its cells."""
    medians = np.full((cells, cells), np.nan)
    for row, rows in enumerate(np.array_split(image, cells)):
        for column, part in enumerate(np.array_split(rows, cells, axis=1)):
            if (known := part[np.isfinite(part)]).size:
                medians[row, column] = sigma_clipped_stats(known, stdfunc="mad_std", maxiters=5)[1]
    medians[np.isnan(medians)] = np.nanmedian(medians)
    place = (np.arange(cells) - (cells - 1) / 2.0) / cells
    norm = cells * float(np.sum(place**2))
    up = float(np.sum(medians * place[:, np.newaxis])) / norm
    across = float(np.sum(medians * place)) / norm
    y, x = ((np.arange(number) + 0.5) / number - 0.5 for number in image.shape)
    plane: FloatArray = float(np.mean(medians)) + up * y[:, np.newaxis] + across * x
    return plane


def find_cosmic_rays(
    image: FloatArray, variance: FloatArray, *, sharpest: float, threshold: float
) -> npt.NDArray[np.bool_]:
    """Find pixels that stand out from both neighbours on a line by ``threshold`` standard deviations (beside
    such a pixel, by half of it) more than in a star of ``sharpest`` pixels' sigma.
    """
    around = sliding_window_view(np.pad(image - np.nanmedian(image), 1, mode="edge"), (3, 3), axis=(0, 1))
    deviation = np.sqrt(variance)
    sharpness = np.full(image.shape, -np.inf)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        # In a Gaussian, the mean of the two is this part of the middle one at least.
        part = math.exp(-0.5 * (dx**2 + dy**2) / sharpest**2)
        both = around[:, :, 1 + dy, 1 + dx] + around[:, :, 1 - dy, 1 - dx]
        sharpness = np.maximum(sharpness, (part * around[:, :, 1, 1] - 0.5 * both) / deviation)
    hit = np.pad(sharpness > threshold, 1)
    beside = hit[2:, 1:-1] | hit[:-2, 1:-1] | hit[1:-1, 2:] | hit[1:-1, :-2]
    return hit[1:-1, 1:-1] | (beside & (sharpness > 0.5 * threshold))


def matched_filter(image: FloatArray, variance: FloatArray, psf: Psf) -> FloatArray:
    """Give the signal-to-noise ratio that a star at each pixel would have.

    Pixels have no background, and NaN, or no or infinite variance, where there is no data.  The ratio is zero
    where less than half of a star's light has data.
    """
    good = np.isfinite(image) & np.isfinite(variance) & (variance > 0)
    weight = np.where(good, 1.0 / np.where(good, variance, 1.0), 0.0)
    kernel = psf.stamp()
    signal = _convolve(np.where(good, image, 0.0) * weight, kernel)
    noise = np.sqrt(np.clip(_convolve(weight, kernel**2), 0.0, None))
    if not good.all():
        # A few pixels without data, at the centre of a star even, hide no star.
        good |= _convolve(good.astype(float), kernel**2) > 0.5 * float(np.sum(kernel**2))
    # The transforms leave rounding errors where there is no data at all.
    floor = 1e-6 * max(float(np.max(noise)), 1e-300)
    return np.where(good & (noise > floor), signal / np.maximum(noise, floor), 0.0)


def _convolve(image: FloatArray, kernel: FloatArray) -> FloatArray:
    """Convolve with a symmetric kernel, zeros beyond the edges."""
    # Transforms are fast for lengths of small factors.
    shape = [
        next(n for n in itertools.count(size + more - 1) if 2**20 * 3**9 * 5**6 % n == 0)
        for size, more in zip(image.shape, kernel.shape, strict=True)
    ]
    product = np.fft.rfft2(image, shape) * np.fft.rfft2(kernel, shape)
    full = np.fft.irfft2(product, shape)
    y, x = kernel.shape[0] // 2, kernel.shape[1] // 2
    return full[y : y + image.shape[0], x : x + image.shape[1]]


def find_peaks(significance: FloatArray, threshold: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Find local maxima of at least the threshold: their places and heights.

    The places are those of the vertex of the parabola through the logarithms of a maximum and its neighbours,
    which is exact for a Gaussian.
    """
    windows = sliding_window_view(significance, (3, 3))
    y, x = np.nonzero(windows[:, :, 1, 1] >= threshold)
    around = windows[y, x]
    is_peak = around[:, 1, 1] == np.max(around, axis=(1, 2))
    y, x, around = y[is_peak] + 1, x[is_peak] + 1, around[is_peak]
    logarithm = np.log(np.maximum(around, 0.05))
    return x + _vertex(logarithm[:, 1]), y + _vertex(logarithm[:, :, 1]), around[:, 1, 1]


def _vertex(values: FloatArray) -> FloatArray:
    left, middle, right = values.T
    curvature = np.minimum(left - 2.0 * middle + right, -1e-6)
    vertex: FloatArray = np.clip(0.5 * (left - right) / curvature, -0.5, 0.5)
    return vertex


def measure_sigma(image: FloatArray, x: FloatArray, y: FloatArray) -> float:
    """Measure the sigma of stars on an image without background, by the light that two Gaussians see."""
    narrow, wide = 1.0, 2.0
    light = [
        np.array([np.nansum(image[there] * part) for there, part in Psf.gaussian(w).place(image.shape, x, y)])
        for w in (narrow, wide)
    ]
    # A Gaussian of variance s seen through one of variance w gives its flux by 2 pi (s + w).
    ratio = float(np.median(light[0] / light[1]))
    square = (wide**2 - ratio * narrow**2) / (ratio - 1.0) if ratio > 1.0 else math.nan
    if not square > 0.0:
        raise ValueError(f"the width of {len(x)} stars cannot be measured")
    return min(max(math.sqrt(square), 0.5), 5.0)


def fit_fluxes(
    image: FloatArray, variance: FloatArray, psf: Psf, x: FloatArray, y: FloatArray, *, rounds: int = 40
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Fit the fluxes of all stars at once, at fixed positions; give them, their errors, and what of the image
    they leave.

    The least squares of the image as a sum of stars, solved by Gauss-Seidel iteration until no flux moves by
    a thousandth of its error; neighbours that overlap share their light.  Fluxes and errors are NaN for stars
    that have no data.
    """
    good = np.isfinite(image) & np.isfinite(variance) & (variance > 0)
    noise = np.where(good, variance, 1.0)
    # One weight for all: the stars' own noise as weight would bias fluxes.
    residual = np.where(good, image, 0.0)
    stars = [(there, good[there] * part) for there, part in psf.place(image.shape, x, y)]
    norms = np.array([float(np.sum(seen**2)) for _, seen in stars])
    enough = norms > 0.5 * float(np.sum(psf.stamp() ** 2))
    errors = np.full(len(stars), np.nan)
    for n in np.nonzero(enough)[0]:
        there, seen = stars[n]
        errors[n] = math.sqrt(float(np.sum(seen**2 * noise[there]))) / norms[n]
    fluxes = np.where(enough, 0.0, np.nan)
    for _ in range(rounds):
        largest = 0.0
        for n in np.nonzero(enough)[0]:
            there, seen = stars[n]
            step = float(np.sum(residual[there] * seen)) / norms[n]
            fluxes[n] += step
            residual[there] -= step * seen
            largest = max(largest, abs(step) / errors[n])
        if largest < 1e-3:
            break
    return fluxes, errors, residual


def compare_with_galaxy(
    residual: FloatArray, variance: FloatArray, psf: Psf, x: FloatArray, y: FloatArray, fluxes: FloatArray
) -> FloatArray:
    """Tell by how much the square of a star's signal-to-noise ratio grows if it is taken for a galaxy.

    ``residual`` and ``fluxes`` are those of `fit_fluxes`: a star is seen without its neighbours.
    """
    weight = np.where(np.isfinite(variance) & (variance > 0), 1.0 / variance, 0.0)
    wider = Psf([(share, math.hypot(sigma, _GALAXY_SIGMA)) for share, sigma in psf.components])
    growth = np.zeros(len(x))
    points, wides = (model.place(residual.shape, x, y, radius=wider.radius) for model in (psf, wider))
    for n, ((there, point), (_, wide)) in enumerate(zip(points, wides, strict=True)):
        if np.isfinite(fluxes[n]):
            known = weight[there]
            light = (residual[there] + fluxes[n] * point) * known
            squares = [np.sum(light * model) ** 2 / np.sum(model**2 * known) for model in (point, wide)]
            growth[n] = squares[1] - squares[0]
    return growth


def depth(variance: npt.NDArray[np.floating], psf: Psf) -> float:
    """Tell the magnitude of a star that has five times its error."""
    noise = math.sqrt(float(np.nanmedian(variance)) / float(np.sum(psf.stamp() ** 2)))
    return AB_ZERO_POINT - 2.5 * math.log10(5.0 * noise)


# --- calibration ---

_LARGEST_ERROR = 5.0 / PIXEL_SCALE  # Farthest that a header's pointing may be off, pixels.
_FEWEST = 4  # Matches needed.


@dataclass(frozen=True, slots=True)
class Calibration:
    """The fit of an image."""

    wcs: WCS
    zero_point: float  # Magnitude of one unit of flux.
    scatter: float  # Root mean square distance of the matches, arcseconds.
    matches: int  # Stars that took part.


def calibrate(
    x: FloatArray, y: FloatArray, flux: FloatArray, reference: Table, *, band: str, wcs: WCS
) -> Calibration:
    """Fit an image to a reference catalogue with columns ``ra``, ``dec`` and a magnitude named as each band.

    The header's WCS is right but for the pointing, so the stars are shifted.  A `ValueError` says that fewer
    of them match than a fit needs.
    """
    to_x, to_y = wcs.wcs_world2pix(reference["ra"], reference["dec"], 0)
    near = (to_x > np.min(x) - _LARGEST_ERROR) & (to_x < np.max(x) + _LARGEST_ERROR)
    near &= (to_y > np.min(y) - _LARGEST_ERROR) & (to_y < np.max(y) + _LARGEST_ERROR)
    to_x, to_y, magnitudes = to_x[near], to_y[near], np.asarray(reference[band][near], dtype=float)
    bright = np.argsort(-flux, kind="stable")[: 2 * len(to_x)]
    x, y, flux = x[bright], y[bright], flux[bright]
    shift = _common_shift(x, y, to_x, to_y)
    for radius in (3.0, 1.5, 1.0):
        own, other = match(x + shift[0], y + shift[1], to_x, to_y, radius=radius)
        if len(own) < _FEWEST:
            raise ValueError(f"{len(own)} stars match the reference catalogue, {_FEWEST} are needed")
        shifts = np.stack([to_x[other] - x[own], to_y[other] - y[own]])
        shift = np.median(shifts, axis=1)
    fitted = wcs.deepcopy()
    fitted.wcs.crpix -= shift
    return Calibration(
        wcs=fitted,
        zero_point=float(np.median(magnitudes[other] + 2.5 * np.log10(flux[own]))),
        scatter=PIXEL_SCALE * float(np.sqrt(np.mean(np.sum((shifts.T - shift) ** 2, axis=1)))),
        matches=len(own),
    )


def _common_shift(x: FloatArray, y: FloatArray, to_x: FloatArray, to_y: FloatArray) -> FloatArray:
    """Find the shift that most pairs of stars agree on."""
    shifts = np.stack([to_x - x[:, np.newaxis], to_y - y[:, np.newaxis]])
    shifts = shifts[:, np.all(np.abs(shifts) < _LARGEST_ERROR, axis=0)]
    if shifts.size == 0:
        return np.zeros(2)
    votes = np.sum(np.all(np.abs(shifts[:, :, np.newaxis] - shifts[:, np.newaxis]) < 1.0, axis=0), axis=0)
    best: FloatArray = shifts[:, int(np.argmax(votes))]
    return best
