"""Fitting an image's place on the sky and its zero point to stars of a
reference catalogue, and telling its depth.
"""

from __future__ import annotations

__all__ = ["AB_ZERO_POINT", "Calibration", "calibrate", "depth", "match"]

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from astropy.table import Table  # type: ignore[import-untyped]

from .geometry import Affine, FloatArray, TangentPoint
from .photometry import Psf, clipped_median

AB_ZERO_POINT = 31.4
"""AB magnitude of one nanojansky."""

_LARGEST_ERROR = 5.0
"""Farthest that a header's pointing may be off, arcseconds."""

_FEWEST = 6
"""Matches needed for a fit of six numbers."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The fit of an image."""

    affine: Affine  # Pixels to the tangent plane.
    zero_point: float  # Magnitude of one unit of flux.
    scatter: float  # Root mean square distance of the matches, arcseconds.
    matches: int  # Stars that took part.


def calibrate(
    x: FloatArray,
    y: FloatArray,
    flux: FloatArray,
    reference: Table,
    *,
    band: str,
    pointing: TangentPoint,
    guess: Affine,
) -> Calibration:
    """Fit an image to a reference catalogue with columns ``ra``, ``dec`` and a magnitude named as each band.

    ``pointing`` is where the header says that the camera looked, ``guess`` the map from pixels to the tangent
    plane as designed.  A `ValueError` says that fewer stars match than a fit needs.
    """
    xi, eta = pointing.project(reference["ra"], reference["dec"])
    bright = np.argsort(-flux, kind="stable")[: 2 * len(reference)]
    near_xi, near_eta = guess.forward(x[bright], y[bright])
    shift = _common_shift(near_xi, near_eta, xi, eta)
    affine = Affine(**{**guess.to_dict(), "x0": guess.x0 + shift[0], "y0": guess.y0 + shift[1]})
    own, other, scatter = np.array([], int), np.array([], int), 0.0
    for radius in (1.0, 0.5, 0.3):
        own, other = match(*affine.forward(x[bright], y[bright]), xi, eta, radius=radius)
        if len(own) < _FEWEST:
            raise ValueError(f"{len(own)} stars match the reference catalogue, {_FEWEST} are needed")
        own = bright[own]
        affine = _fit_affine(x[own], y[own], xi[other], eta[other])
        fit_xi, fit_eta = affine.forward(x[own], y[own])
        scatter = float(np.sqrt(np.mean((fit_xi - xi[other]) ** 2 + (fit_eta - eta[other]) ** 2)))
    magnitudes = np.asarray(reference[band], dtype=float)[other]
    zero_point, _ = clipped_median(magnitudes + 2.5 * np.log10(flux[own]))
    return Calibration(affine=affine, zero_point=zero_point, scatter=scatter, matches=len(own))


def _common_shift(
    xi: FloatArray, eta: FloatArray, to_xi: FloatArray, to_eta: FloatArray
) -> tuple[float, float]:
    """Find the shift that most pairs of stars agree on."""
    dx = (to_xi[np.newaxis, :] - xi[:, np.newaxis]).ravel()
    dy = (to_eta[np.newaxis, :] - eta[:, np.newaxis]).ravel()
    near = (np.abs(dx) < _LARGEST_ERROR) & (np.abs(dy) < _LARGEST_ERROR)
    dx, dy = dx[near], dy[near]
    edges = np.arange(-_LARGEST_ERROR, _LARGEST_ERROR + 0.25, 0.5)
    counts, _, _ = np.histogram2d(dx, dy, bins=(edges, edges))
    # Four neighbouring cells together, as the shift may lie on an edge.
    counts = counts[:-1, :-1] + counts[1:, :-1] + counts[:-1, 1:] + counts[1:, 1:]
    i, j = np.unravel_index(int(np.argmax(counts)), counts.shape)
    chosen = (np.abs(dx - edges[i + 1]) <= 0.5) & (np.abs(dy - edges[j + 1]) <= 0.5)
    if not chosen.any():
        return 0.0, 0.0
    return float(np.median(dx[chosen])), float(np.median(dy[chosen]))


def match(
    x: npt.ArrayLike, y: npt.ArrayLike, to_x: npt.ArrayLike, to_y: npt.ArrayLike, *, radius: float
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Pair points that are each other's nearest, and near."""
    ax, ay = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    bx, by = np.asarray(to_x, dtype=float), np.asarray(to_y, dtype=float)
    if ax.size == 0 or bx.size == 0:
        return np.array([], np.intp), np.array([], np.intp)
    square = (ax[:, np.newaxis] - bx[np.newaxis, :]) ** 2 + (ay[:, np.newaxis] - by[np.newaxis, :]) ** 2
    nearest, back = np.argmin(square, axis=1), np.argmin(square, axis=0)
    own = np.arange(ax.size)
    good = (back[nearest] == own) & (square[own, nearest] <= radius**2)
    return own[good], nearest[good]


def _fit_affine(x: FloatArray, y: FloatArray, xi: FloatArray, eta: FloatArray) -> Affine:
    """Least squares, about the points' mean, in numbers small enough to be exact."""
    mean_x, mean_y = float(np.mean(x)), float(np.mean(y))
    dx, dy = x - mean_x, y - mean_y
    xx, xy, yy = float(np.sum(dx * dx)), float(np.sum(dx * dy)), float(np.sum(dy * dy))
    determinant = xx * yy - xy * xy
    rows = []
    for target in (xi, eta):
        mean = float(np.mean(target))
        tx, ty = float(np.sum(dx * (target - mean))), float(np.sum(dy * (target - mean)))
        a, b = (yy * tx - xy * ty) / determinant, (xx * ty - xy * tx) / determinant
        rows.append((mean - a * mean_x - b * mean_y, a, b))
    return Affine(*rows[0], *rows[1])


def depth(variance: npt.NDArray[np.floating], psf: Psf) -> float:
    """Tell the magnitude of a star that has five times its error."""
    typical, _ = clipped_median(variance)
    if not typical > 0.0:
        return float("nan")
    noise = np.sqrt(typical / float(np.sum(psf.stamp(0.0, 0.0) ** 2)))
    return float(AB_ZERO_POINT - 2.5 * np.log10(5.0 * noise))
