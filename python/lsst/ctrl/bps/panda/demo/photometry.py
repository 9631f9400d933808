"""Finding stars on an image and measuring them, with point spread functions that are sums of round Gaussians.

That is what the simulated atmosphere makes, and a weighted mean of images of
different seeing has exactly such a one, so nothing is approximated twice.

Sums run in a fixed order over plain arrays, not through a threaded linear
algebra library, so that the same pixels give the same bits wherever a quantum
runs: tables of two runs can be compared row by row.
"""

from __future__ import annotations

__all__ = [
    "Psf",
    "clipped_median",
    "find_cosmic_rays",
    "find_peaks",
    "fit_background",
    "fit_fluxes",
    "matched_filter",
    "measure_sigma",
]

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .geometry import FloatArray

_FWHM = 2.0 * math.sqrt(2.0 * math.log(2.0))


@dataclass(frozen=True, slots=True)
class Psf:
    """A normalized sum of round Gaussians, sampled at the pixels' centres."""

    components: tuple[tuple[float, float], ...]  # Weight (their sum is 1) and sigma in pixels of each.

    @classmethod
    def from_fwhm(cls, fwhm: float) -> Psf:
        """Make one Gaussian of the given full width at half maximum, pixels."""
        return cls(((1.0, fwhm / _FWHM),))

    @classmethod
    def mean(cls, psfs: Sequence[Psf], weights: Sequence[float]) -> Psf:
        """Make that of the weighted mean of images."""
        total = sum(weights)
        return cls(
            tuple(
                (weight / total * part, sigma)
                for psf, weight in zip(psfs, weights, strict=True)
                for part, sigma in psf.components
            )
        )

    def widen(self, sigma: float) -> Psf:
        """Make that of a Gaussian object of the given sigma, pixels."""
        return Psf(tuple((weight, math.hypot(own, sigma)) for weight, own in self.components))

    @property
    def sigma(self) -> float:
        """Root mean square width, pixels."""
        return math.sqrt(sum(weight * sigma**2 for weight, sigma in self.components))

    @property
    def fwhm(self) -> float:
        """Full width at half maximum of a Gaussian as wide, pixels."""
        return self.sigma * _FWHM

    @property
    def radius(self) -> int:
        """Pixels from the centre beyond which it counts as zero."""
        return max(3, math.ceil(5.0 * max(sigma for _, sigma in self.components)))

    def stamp(self, dx: float, dy: float) -> FloatArray:
        """Draw it, with its centre ``dx``, ``dy`` pixels off the middle of a
        square of ``2 * radius + 1`` pixels.
        """
        axis = np.arange(-self.radius, self.radius + 1, dtype=float)
        image = np.zeros((axis.size, axis.size))
        for weight, sigma in self.components:
            across = np.exp(-0.5 * ((axis - dx) / sigma) ** 2)
            along = np.exp(-0.5 * ((axis - dy) / sigma) ** 2)
            image += weight / (2.0 * math.pi * sigma**2) * along[:, np.newaxis] * across[np.newaxis, :]
        return image

    def place(
        self, shape: tuple[int, int], x: FloatArray, y: FloatArray
    ) -> Iterator[tuple[slice, slice, FloatArray]]:
        """Give for each position the rows and columns of an image that it
        touches, and its values there (empty where it is off the image).
        """
        rows, columns = shape
        radius = self.radius
        for px, py in zip(x, y, strict=True):
            ix, iy = round(float(px)), round(float(py))
            low_x, high_x = max(ix - radius, 0), max(min(ix + radius + 1, columns), 0)
            low_y, high_y = max(iy - radius, 0), max(min(iy + radius + 1, rows), 0)
            low_x, low_y = min(low_x, high_x), min(low_y, high_y)
            stamp = self.stamp(float(px) - ix, float(py) - iy)
            part = stamp[
                low_y - iy + radius : high_y - iy + radius, low_x - ix + radius : high_x - ix + radius
            ]
            yield slice(low_y, high_y), slice(low_x, high_x), part

    def add_to(self, image: FloatArray, x: FloatArray, y: FloatArray, fluxes: FloatArray) -> None:
        """Add stars to an image, in place."""
        for (rows, columns, part), flux in zip(
            self.place((image.shape[0], image.shape[1]), x, y), fluxes, strict=True
        ):
            image[rows, columns] += flux * part


def clipped_median(values: npt.NDArray[np.floating], *, clip: float = 3.0) -> tuple[float, float]:
    """Give median and standard deviation of the finite values without outliers; NaN if there are none.

    The deviation comes from the median absolute one, as of a normal distribution.
    """
    kept = np.asarray(values[np.isfinite(values)], dtype=float)
    if kept.size == 0:
        return float("nan"), float("nan")
    median, deviation = _median_and_deviation(kept)
    for _ in range(5):
        inside = kept[np.abs(kept - median) <= clip * deviation]
        if inside.size in (0, kept.size):
            break
        kept = inside
        median, deviation = _median_and_deviation(kept)
    return median, deviation


def _median_and_deviation(values: FloatArray) -> tuple[float, float]:
    median = float(np.median(values))
    return median, 1.4826 * float(np.median(np.abs(values - median)))


def fit_background(image: FloatArray, *, cells: int = 4) -> FloatArray:
    """Fit a plane to the sky of an image, by the medians of its cells."""
    place = (np.arange(cells) - (cells - 1) / 2.0) / cells
    rows = np.array_split(image, cells)
    medians = np.array(
        [[clipped_median(part)[0] for part in np.array_split(row, cells, axis=1)] for row in rows]
    )
    level = float(np.nanmedian(medians))
    medians = np.where(np.isfinite(medians), medians, level)
    norm = cells * float(np.sum(place**2))
    up = float(np.sum(medians * place[:, np.newaxis])) / norm
    across = float(np.sum(medians * place[np.newaxis, :])) / norm
    y, x = (np.arange(number) / number + 0.5 / number - 0.5 for number in image.shape)
    plane: FloatArray = float(np.mean(medians)) + up * y[:, np.newaxis] + across * x[np.newaxis, :]
    return plane


def find_cosmic_rays(
    image: FloatArray, variance: FloatArray, *, sharpest: float, threshold: float
) -> npt.NDArray[np.bool_]:
    """Find pixels that stand out from both neighbours on a line more than in any star.

    That is by ``threshold`` standard deviations (beside such a pixel, by half of it) more than in a star of
    ``sharpest`` pixels' sigma.
    """
    excess, deviation = np.pad(image - np.nanmedian(image), 1, mode="edge"), np.sqrt(variance)
    rows, columns = image.shape
    sharpness = np.full(image.shape, -np.inf)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        # In a Gaussian, the mean of the two is this part of the middle one at least.
        part = math.exp(-0.5 * (dx**2 + dy**2) / sharpest**2)
        first = excess[1 + dy : 1 + dy + rows, 1 + dx : 1 + dx + columns]
        second = excess[1 - dy : 1 - dy + rows, 1 - dx : 1 - dx + columns]
        middle = excess[1:-1, 1:-1]
        sharpness = np.maximum(sharpness, (part * middle - 0.5 * (first + second)) / deviation)
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
    kernel = psf.stamp(0.0, 0.0)
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
    shape = (image.shape[0] + kernel.shape[0] - 1, image.shape[1] + kernel.shape[1] - 1)
    product = np.fft.rfft2(image, shape) * np.fft.rfft2(kernel, shape)
    full = np.fft.irfft2(product, shape)
    y, x = kernel.shape[0] // 2, kernel.shape[1] // 2
    return full[y : y + image.shape[0], x : x + image.shape[1]]


def find_peaks(significance: FloatArray, threshold: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Find local maxima of at least the threshold: their places and heights.

    The places are those of the vertex of the parabola through the logarithms of a maximum and its neighbours,
    which is exact for a Gaussian.
    """
    core = significance[1:-1, 1:-1]
    rows, columns = significance.shape
    is_peak = core >= threshold
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            if dx or dy:
                neighbour = significance[1 + dy : rows - 1 + dy, 1 + dx : columns - 1 + dx]
                # Of equal neighbours the first one is the maximum.
                is_peak &= core > neighbour if (dy, dx) < (0, 0) else core >= neighbour
    y, x = np.nonzero(is_peak)
    y, x = y + 1, x + 1
    logarithm = np.log(np.maximum(significance, 0.05))
    return (
        x + _vertex(logarithm[y, x - 1], logarithm[y, x], logarithm[y, x + 1]),
        y + _vertex(logarithm[y - 1, x], logarithm[y, x], logarithm[y + 1, x]),
        significance[y, x],
    )


def _vertex(left: FloatArray, middle: FloatArray, right: FloatArray) -> FloatArray:
    curvature = np.minimum(left - 2.0 * middle + right, -1e-6)
    return np.clip(0.5 * (left - right) / curvature, -0.5, 0.5)


def measure_sigma(image: FloatArray, x: FloatArray, y: FloatArray, *, start: float = 1.5) -> float:
    """Measure the sigma of bright stars on an image without background, from a guess to start with."""
    reach = 12
    padded = np.pad(np.nan_to_num(image), reach)
    axis = np.arange(2 * reach + 1)
    left, bottom = np.rint(x).astype(int), np.rint(y).astype(int)
    stamps = padded[
        (bottom[:, np.newaxis] + axis)[:, :, np.newaxis], (left[:, np.newaxis] + axis)[:, np.newaxis]
    ]
    across, along = (left - x)[:, np.newaxis] + axis - reach, (bottom - y)[:, np.newaxis] + axis - reach
    square = along[:, :, np.newaxis] ** 2 + across[:, np.newaxis] ** 2
    sigma = start
    for _ in range(12):
        # The second moment along an axis under a Gaussian weight.
        weighted = stamps * np.exp(-0.5 * square / sigma**2)
        total, moment = np.sum(weighted, axis=(1, 2)), 0.5 * np.sum(weighted * square, axis=(1, 2))
        known = (total > 0.0) & (moment > 0.0)
        measured = float(np.median(moment[known] / total[known])) if known.any() else 0.0
        # A Gaussian of variance s seen through a Gaussian weight w has
        # variance 1 / (1/s + 1/w).
        inverse = 1.0 / measured - 1.0 / sigma**2 if measured else 0.0
        if inverse <= 0.0:
            raise ValueError(f"the width of {len(x)} stars cannot be measured")
        sigma = float(np.clip(inverse**-0.5, 0.5, 5.0))
    return sigma


def fit_fluxes(
    image: FloatArray, variance: FloatArray, psf: Psf, x: FloatArray, y: FloatArray, *, rounds: int = 40
) -> tuple[FloatArray, FloatArray]:
    """Fit the fluxes of all stars at once, at fixed positions.

    The weighted least squares of the image as a sum of stars, solved by Gauss-Seidel iteration until no flux
    moves by a thousandth of its error; neighbours that overlap share their light.  Fluxes and errors are NaN
    for stars that have no data.
    """
    good = np.isfinite(image) & np.isfinite(variance) & (variance > 0)
    noise = np.where(good, variance, 1.0)
    # One weight for all: the stars' own noise as weight would bias fluxes.
    residual = np.where(good, image, 0.0)
    mask = good.astype(float)
    places = list(psf.place((image.shape[0], image.shape[1]), x, y))
    norms = np.array([float(np.sum(mask[r, c] * p**2)) for r, c, p in places])
    enough = norms > 0.5 * float(np.sum(psf.stamp(0.0, 0.0) ** 2))
    errors = np.full(len(places), np.nan)
    for n in np.nonzero(enough)[0]:
        rows, columns, part = places[n]
        seen = mask[rows, columns] * part
        errors[n] = np.sqrt(float(np.sum(seen**2 * noise[rows, columns]))) / norms[n]
    fluxes = np.zeros(len(places))
    for _ in range(rounds):
        largest = 0.0
        for n in np.nonzero(enough)[0]:
            rows, columns, part = places[n]
            seen = mask[rows, columns] * part
            step = float(np.sum(residual[rows, columns] * seen)) / norms[n]
            fluxes[n] += step
            residual[rows, columns] -= step * seen
            largest = max(largest, abs(step) / errors[n])
        if largest < 1e-3:
            break
    return np.where(enough, fluxes, np.nan), errors
