"""What came out of a run: how many objects, how deep, how true; and a picture of a coadd with its objects."""

from __future__ import annotations

__all__ = ["BandSummary", "DemoSummary", "compare_with_truth", "draw_coadd", "read_summary", "render_summary"]

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.table import Table  # type: ignore[import-untyped]
from lsst.daf.butler import Butler

from ..errors import SettingsError
from .calibration import AB_ZERO_POINT, match
from .geometry import PIXEL_SCALE, FloatArray, SkyLayout
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
        truth = butler.get("starcam_catalog", instrument=StarCam.getName())
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


def draw_coadd(
    repo: str | os.PathLike[str],
    collections: str | Sequence[str],
    path: str | os.PathLike[str],
    *,
    band: str = "r",
) -> Path:
    """Draw the coadds of a tract, with a circle around each object.

    Parameters
    ----------
    repo : path-like
        Butler repository.
    collections : `str` or `~collections.abc.Sequence` [`str`]
        Where the run's outputs and its inputs are.
    path : path-like
        PNG file to write.
    band : `str`, optional
        Band to draw.

    Returns
    -------
    path : `~pathlib.Path`
        The file.

    Raises
    ------
    .SettingsError
        Raised if there is no coadd of the band.
    lsst.daf.butler.DatasetNotFoundError
        Raised if there is no object table.
    """
    with Butler.from_config(str(repo), collections=collections) as butler:
        layout = SkyLayout.from_dict(butler.get("sky_layout", skymap=SKYMAP))
        objects = butler.get("object_table", skymap=SKYMAP, tract=0)
        refs = butler.query_datasets("coadd", where=f"band='{band}'", explain=False)
        coadds = {int(ref.dataId["patch"]): butler.get(ref) for ref in refs}
    if not coadds:
        raise SettingsError(f"no coadd of band {band!r} in {collections}")
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    _draw(_mosaic(coadds, layout), objects, layout, title=f"StarCam coadd, band {band}", path=target)
    return target


def _mosaic(coadds: dict[int, Any], layout: SkyLayout) -> FloatArray:
    """Put the patches side by side, each with the pixels that are its own."""
    image = np.full(layout.tract_box().shape, np.nan)
    edge = layout.border
    for patch, planes in coadds.items():
        box = layout.inner_box(patch)
        image[box.y0 : box.y1, box.x0 : box.x1] = planes[0, edge:-edge, edge:-edge]
    return image


def _draw(image: FloatArray, objects: Table, layout: SkyLayout, *, title: str, path: Path) -> None:
    # Figures of our own, not pyplot's: no global state, no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 8.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _, noise = clipped_median(image)
    stretched = np.arcsinh(np.nan_to_num(image, nan=0.0) / (2.0 * noise))
    width = layout.width / 2.0
    extent = (-width, width, -width, width)
    axes.imshow(
        stretched, origin="lower", cmap="gray_r", extent=extent, vmin=-1.0, vmax=5.5, interpolation="nearest"
    )
    xi, eta = layout.centre.project(objects["ra"], objects["dec"])
    edges: Any = "tab:red"
    colours = _colours(objects)
    if colours is not None:
        name, values = colours
        scale = ScalarMappable(norm=Normalize(-0.2, 1.7), cmap="turbo")
        edges = scale.to_rgba(np.nan_to_num(values, nan=float(np.nanmedian(values))))
        figure.colorbar(scale, ax=axes, label=name, shrink=0.8)
    sizes = 35.0 + 90.0 * np.log10(np.maximum(np.asarray(objects["snr"]), 5.0) / 5.0)
    axes.scatter(xi, eta, s=sizes, facecolors="none", edgecolors=edges, linewidths=1.1)
    for line in range(1, layout.patches):
        place = -width + line * layout.inner * PIXEL_SCALE
        axes.axhline(place, color="0.6", linewidth=0.5)
        axes.axvline(place, color="0.6", linewidth=0.5)
    axes.set(xlim=extent[:2], ylim=extent[2:], xlabel="east [arcsec]", ylabel="north [arcsec]")
    axes.set_title(f"{title}: {len(objects)} objects")
    partial = path.with_name(f".{path.name}.part")
    figure.savefig(partial, format="png", dpi=110)
    partial.replace(path)


def _colours(objects: Table) -> tuple[str, FloatArray] | None:
    """Give the difference of the first two bands, if there are two."""
    bands = [name.removesuffix("_mag") for name in objects.colnames if name.endswith("_mag")]
    if len(bands) < 2:
        return None
    first, second = (np.asarray(objects[f"{band}_mag"], dtype=float) for band in bands[:2])
    return f"{bands[0]} - {bands[1]} [mag]", first - second
