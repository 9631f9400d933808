"""Fitting an image's place on the sky and its zero point to stars of a reference catalogue."""

from __future__ import annotations

__all__ = ["Calibration", "calibrate"]

from dataclasses import dataclass

import numpy as np
from astropy.table import Table  # type: ignore[import-untyped]
from astropy.wcs import WCS  # type: ignore[import-untyped]

from .geometry import PIXEL_SCALE, FloatArray, match

_LARGEST_ERROR = 5.0 / PIXEL_SCALE
"""Farthest that a header's pointing may be off, pixels."""

_FEWEST = 4
"""Matches needed."""


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
