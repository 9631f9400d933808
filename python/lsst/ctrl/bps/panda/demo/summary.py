"""What came out of a run: how many objects, how deep, how true."""

from __future__ import annotations

__all__ = ["BandSummary", "DemoSummary", "compare_with_truth", "read_summary", "render_summary"]

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from astropy.table import Table  # type: ignore[import-untyped]
from lsst.daf.butler import Butler

from .calibration import AB_ZERO_POINT, match
from .geometry import SkyLayout
from .instrument import StarCam
from .photometry import clipped_median
from .repository import SKYMAP

IndexArray = npt.NDArray[np.intp]

_RADIUS = 0.6
"""Farthest that an object may lie from its star, arcseconds."""

_DETECTED = 5.0
_BRIGHT = 30.0
"""Signal-to-noise ratio from which places and magnitudes are judged."""


@dataclass(frozen=True, slots=True)
class BandSummary:
    """One band of a tract."""

    band: str
    detected: int
    """Objects of at least five times their error in this band."""

    depth: float
    """Magnitude of a star of five times its error: the median over objects."""

    completeness: float
    """Fraction found of the true stars that are half a magnitude or more
    brighter than the depth."""

    magnitude_offset: float
    """Median of measured less true magnitude, bright stars."""

    magnitude_scatter: float
    """Standard deviation of that."""


@dataclass(frozen=True, slots=True)
class DemoSummary:
    """A tract."""

    objects: int
    matched: int
    """Objects that are a true star."""

    position_scatter: float
    """Root mean square distance from the true places, bright stars,
    milliarcseconds."""

    bands: tuple[BandSummary, ...]


def read_summary(repo: str | os.PathLike[str], collections: str | Sequence[str]) -> DemoSummary:
    """Read the objects of a run and compare them with the simulated stars.

    Parameters
    ----------
    repo : path-like
        Butler repository.
    collections : `str` or `~collections.abc.Sequence` [`str`]
        Where the run's outputs and its inputs are.

    Raises
    ------
    lsst.daf.butler.DatasetNotFoundError
        Raised if there is no object table.
    """
    with Butler.from_config(str(repo), collections=collections) as butler:
        objects = butler.get("object_table", skymap=SKYMAP, tract=0)
        truth = butler.get("starcam_truth", instrument=StarCam.getName())
        layout = SkyLayout.from_dict(butler.get("sky_layout", skymap=SKYMAP))
    return compare_with_truth(objects, truth, layout)


def compare_with_truth(objects: Table, truth: Table, layout: SkyLayout) -> DemoSummary:
    """Compare objects with the simulated stars.

    Parameters
    ----------
    objects : `astropy.table.Table`
        An ``object_table``.
    truth : `astropy.table.Table`
        All stars.
    layout : `.SkyLayout`
        Where the tract lies.
    """
    star_x, star_y = layout.pixel(truth["ra"], truth["dec"])
    inside = layout.tract_box().contains(star_x, star_y)
    stars = truth[inside]
    xi, eta = layout.centre.project(objects["ra"], objects["dec"])
    star_xi, star_eta = layout.centre.project(stars["ra"], stars["dec"])
    own, other = match(xi, eta, star_xi, star_eta, radius=_RADIUS)
    bright = np.asarray(objects["snr"])[own] > _BRIGHT
    square = (xi[own] - star_xi[other]) ** 2 + (eta[own] - star_eta[other]) ** 2
    scatter = float(np.sqrt(np.mean(square[bright]))) if bright.any() else float("nan")
    bands = [name.removesuffix("_flux") for name in objects.colnames if name.endswith("_flux")]
    return DemoSummary(
        objects=len(objects),
        matched=len(own),
        position_scatter=1000.0 * scatter,
        bands=tuple(_band(band, objects, stars, own, other) for band in bands),
    )


def _band(band: str, objects: Table, stars: Table, own: IndexArray, other: IndexArray) -> BandSummary:
    flux = np.asarray(objects[f"{band}_flux"], dtype=float)
    error = np.asarray(objects[f"{band}_flux_err"], dtype=float)
    ratio = np.where(error > 0, flux / error, 0.0)
    # The background sets the depth, not the light of the bright stars.
    depth = AB_ZERO_POINT - 2.5 * np.log10(5.0 * float(np.nanmedian(error[ratio < _BRIGHT])))
    found = np.zeros(len(stars), dtype=bool)
    found[other] = True
    expected = np.asarray(stars[band]) < depth - 0.5
    bright = ratio[own] > _BRIGHT
    difference = np.asarray(objects[f"{band}_mag"])[own][bright] - np.asarray(stars[band])[other][bright]
    offset, scatter = clipped_median(difference)
    return BandSummary(
        band=band,
        detected=int(np.count_nonzero(ratio >= _DETECTED)),
        depth=float(depth),
        completeness=float(np.mean(found[expected])) if expected.any() else float("nan"),
        magnitude_offset=offset,
        magnitude_scatter=scatter,
    )


def render_summary(summary: DemoSummary) -> str:
    """Give a summary as text of a few lines."""
    lines = [
        f"{summary.objects} objects, {summary.matched} of them matched to simulated stars; "
        f"positions true to {summary.position_scatter:.0f} mas",
        "band  objects   depth (5 sigma)  completeness  magnitude - truth",
    ]
    for band in summary.bands:
        lines.append(
            f"{band.band:<4}  {band.detected:7d}  {band.depth:10.2f} mag  {100 * band.completeness:11.1f}%"
            f"  {band.magnitude_offset:+.3f} +- {band.magnitude_scatter:.3f}"
        )
    return "\n".join(lines)
