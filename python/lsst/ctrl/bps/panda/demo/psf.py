"""Point spread functions: sums of round Gaussians.

That is what the simulated atmosphere makes, and a weighted mean of images of
different seeing has exactly such a one, so nothing is approximated twice.
"""

from __future__ import annotations

__all__ = ["Psf"]

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .geometry import FloatArray

_FWHM = 2.0 * math.sqrt(2.0 * math.log(2.0))


@dataclass(frozen=True, slots=True)
class Psf:
    """A normalized sum of round Gaussians, sampled at the pixels' centres."""

    components: tuple[tuple[float, float], ...]
    """Weight (their sum is 1) and sigma in pixels of each."""

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
