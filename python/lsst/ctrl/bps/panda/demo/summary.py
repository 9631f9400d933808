"""What came out of a run: how many objects, how deep, how true; and a picture of it."""

from __future__ import annotations

__all__ = [
    "BandSummary",
    "DemoSummary",
    "colour_picture",
    "compare_with_truth",
    "draw_run",
    "read_summary",
    "render_summary",
    "seen_by_all",
]

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.table import Table  # type: ignore[import-untyped]
from lsst.daf.butler import Butler

from ..errors import SettingsError
from .calibration import AB_ZERO_POINT, match
from .geometry import Box, FloatArray, SkyLayout
from .instrument import BANDS, StarCam
from .photometry import clipped_median
from .repository import SKYMAP
from .simulate import is_galaxy

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
    detected: int  # Objects of at least five times their error in this band.
    depth: float  # Magnitude of a star of five times its error: the median over objects.
    completeness: float
    """Fraction found of the true stars that are half a magnitude or more
    brighter than the depth."""

    magnitude_offset: float  # Median of measured less true magnitude, bright stars.
    magnitude_scatter: float  # Standard deviation of that.


@dataclass(frozen=True, slots=True)
class DemoSummary:
    """A tract."""

    objects: int
    matched: int  # Objects that are a true star or galaxy.
    galaxies: int  # Objects that are a true galaxy.
    galaxies_extended: int  # Those of them that are marked as extended.
    stars_extended: int  # True stars that are.
    position_scatter: float
    """Root mean square distance from the true places, bright stars,
    milliarcseconds."""

    bands: tuple[BandSummary, ...]


def read_summary(repo: str | os.PathLike[str], collections: str | Sequence[str]) -> DemoSummary:
    """Read the objects of a run and compare them with the simulated sky.

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
    """Compare objects with the simulated sky."""
    star_x, star_y = layout.pixel(truth["ra"], truth["dec"])
    inside = layout.tract_box().contains(star_x, star_y)
    stars = truth[inside]
    xi, eta = layout.centre.project(objects["ra"], objects["dec"])
    star_xi, star_eta = layout.centre.project(stars["ra"], stars["dec"])
    own, other = match(xi, eta, star_xi, star_eta, radius=_RADIUS)
    galaxy = is_galaxy(stars)[other]
    extended = np.asarray(objects["extended"], dtype=bool)[own]
    bright = (np.asarray(objects["snr"])[own] > _BRIGHT) & ~galaxy
    square = (xi[own] - star_xi[other]) ** 2 + (eta[own] - star_eta[other]) ** 2
    scatter = float(np.sqrt(np.mean(square[bright]))) if bright.any() else float("nan")
    bands = [name.removesuffix("_flux") for name in objects.colnames if name.endswith("_flux")]
    return DemoSummary(
        objects=len(objects),
        matched=len(own),
        galaxies=int(np.count_nonzero(galaxy)),
        galaxies_extended=int(np.count_nonzero(galaxy & extended)),
        stars_extended=int(np.count_nonzero(~galaxy & extended)),
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
    galaxy = is_galaxy(stars)
    expected = (np.asarray(stars[band]) < depth - 0.5) & ~galaxy
    bright = (ratio[own] > _BRIGHT) & ~galaxy[other]
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
        f"{summary.objects} objects, {summary.matched} of them matched to the simulated sky; "
        f"positions true to {summary.position_scatter:.0f} mas",
        f"extended: {summary.galaxies_extended} of {summary.galaxies} galaxies, and "
        f"{summary.stars_extended} of {summary.matched - summary.galaxies} stars",
        "band  objects   depth (5 sigma)  completeness  magnitude - truth",
    ]
    for band in summary.bands:
        lines.append(
            f"{band.band:<4}  {band.detected:7d}  {band.depth:10.2f} mag  {100 * band.completeness:11.1f}%"
            f"  {band.magnitude_offset:+.3f} +- {band.magnitude_scatter:.3f}"
        )
    return "\n".join(lines)


def draw_run(
    repo: str | os.PathLike[str], collections: str | Sequence[str], path: str | os.PathLike[str]
) -> Path:
    """Draw the sky that a run has seen, its objects, and their colours and magnitudes.

    Parameters
    ----------
    repo : path-like
        Butler repository.
    collections : `str` or `~collections.abc.Sequence` [`str`]
        Where the run's outputs and its inputs are.
    path : path-like
        PNG file to write.

    Raises
    ------
    .SettingsError
        Raised if there is no coadd.
    lsst.daf.butler.DatasetNotFoundError
        Raised if there is no object table.
    """
    with Butler.from_config(str(repo), collections=collections) as butler:
        layout = SkyLayout.from_dict(butler.get("sky_layout", skymap=SKYMAP))
        objects = butler.get("object_table", skymap=SKYMAP, tract=0)
        refs = butler.query_datasets("coadd", explain=False, limit=None)
        coadds: dict[str, dict[int, Any]] = {}
        for ref in refs:
            coadds.setdefault(str(ref.dataId["band"]), {})[int(ref.dataId["patch"])] = butler.get(ref)
    if not coadds:
        raise SettingsError(f"no coadd in {collections}")
    images = {band: _mosaic(coadds[band], layout) for band in BANDS if band in coadds}
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    _draw(images, objects, layout, path=target)
    return target


def _mosaic(coadds: dict[int, Any], layout: SkyLayout) -> FloatArray:
    """Put the patches side by side, each with the pixels that are its own."""
    image = np.full(layout.tract_box().shape, np.nan)
    edge = layout.border
    for patch, planes in coadds.items():
        box = layout.inner_box(patch)
        image[box.y0 : box.y1, box.x0 : box.x1] = planes[0, edge:-edge, edge:-edge]
    return image


def seen_by_all(images: Iterable[FloatArray]) -> Box:
    """Give the part that all images have seen, without margins that some have not."""
    seen = np.sum([~np.isfinite(image) for image in images], axis=0) == 0
    box = Box(0, 0, seen.shape[1], seen.shape[0])
    while min(box.shape) > 1:
        part = seen[box.y0 : box.y1, box.x0 : box.x1]
        sides = [float(np.mean(side)) for side in (part[:, 0], part[0], part[:, -1], part[-1])]
        worst = int(np.argmin(sides))
        if sides[worst] >= 0.95:
            break
        edges = [box.x0, box.y0, box.x1, box.y1]
        edges[worst] += 1 if worst < 2 else -1
        box = Box(*edges)
    return box


def colour_picture(images: Sequence[FloatArray]) -> npt.NDArray[np.uint8]:
    """Make a picture in which the longest wave is red, from images in the order of their bands, as bright."""
    from astropy.visualization import make_lupton_rgb  # type: ignore[import-untyped]

    # What a band lacks, the others show in grey; what all lack is like its neighbours above and below.
    lacking = np.isnan(images)
    grey = np.nansum(images, axis=0) / np.maximum(np.sum(~lacking, axis=0), 1)
    gaps = np.sum(lacking, axis=0) == len(images)
    for column in np.nonzero(gaps.any(axis=0) & ~gaps.all(axis=0))[0]:
        gap = gaps[:, column]
        grey[gap, column] = np.interp(np.nonzero(gap)[0], np.nonzero(~gap)[0], grey[~gap, column])
    filled = np.where(lacking, grey, images)
    blue, red = filled[0], filled[-1]
    green = filled[len(filled) // 2] if len(filled) != 2 else (blue + red) / 2.0
    noise = clipped_median(green)[1]
    picture: npt.NDArray[np.uint8] = make_lupton_rgb(
        red, green, blue, minimum=-noise, stretch=12.0 * noise, Q=8
    )
    return picture


def _draw(images: dict[str, FloatArray], objects: Table, layout: SkyLayout, *, path: Path) -> None:
    # Figures of our own, not pyplot's: no global state, no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14.0, 8.8), layout="constrained")
    FigureCanvasAgg(figure)
    sky, diagram = figure.subplots(1, 2, width_ratios=(2.0, 1.0))
    box = seen_by_all(images.values())
    # An object of the usual colour is white.
    bright = np.asarray(objects["snr"]) > _BRIGHT
    levels = [clipped_median(np.asarray(objects[f"{band}_flux"], dtype=float)[bright])[0] for band in images]
    picture = colour_picture(
        [
            image[box.y0 : box.y1, box.x0 : box.x1] / (level if level > 0.0 else 1.0)
            for image, level in zip(images.values(), levels, strict=True)
        ]
    )
    corners_x, corners_y = (box.x0 - 0.5, box.x1 - 0.5), (box.y0 - 0.5, box.y1 - 0.5)
    (left, right), (bottom, top) = layout.affine().forward(corners_x, corners_y)
    sky.imshow(picture, origin="lower", extent=(left, right, bottom, top), interpolation="nearest")
    kinds = _kinds(objects)
    xi, eta = layout.centre.project(objects["ra"], objects["dec"])
    area = min(60.0, 60.0 * (600.0 / max(box.shape)) ** 2)
    for name, (chosen, marker, colour) in kinds.items():
        sky.scatter(
            xi[chosen], eta[chosen], s=area, marker=marker, facecolors="none", edgecolors=colour,
            linewidths=0.6, alpha=0.8, label=f"{np.count_nonzero(chosen)} {name}",
        )  # fmt: skip
    sky.set(xlim=(right, left), ylim=(bottom, top), xlabel="east [arcsec]", ylabel="north [arcsec]")
    sky.set_title(f"StarCam, bands {', '.join(images)}: {len(objects)} objects")
    sky.legend(loc="upper right", framealpha=0.7)
    _draw_diagram(diagram, list(images), objects, kinds)
    partial = path.with_name(f".{path.name}.part")
    figure.savefig(partial, format="png", dpi=110)
    partial.replace(path)


def _kinds(objects: Table) -> dict[str, tuple[npt.NDArray[np.bool_], str, str]]:
    """Give which objects look like stars and which like galaxies, and how they are marked."""
    extended = np.asarray(objects["extended"], dtype=bool)
    kinds = {"point-like": (~extended, "o", "deepskyblue"), "extended": (extended, "s", "orange")}
    return {name: kind for name, kind in kinds.items() if kind[0].any()}


def _draw_diagram(axes: Any, bands: list[str], objects: Table, kinds: dict[str, Any]) -> None:
    """Draw colours and magnitudes, or numbers by magnitude if there is but one band."""
    last = np.asarray(objects[f"{bands[-1]}_mag"], dtype=float)
    if len(bands) == 1:
        axes.hist(last[np.isfinite(last)], bins=30, color="0.5")
        axes.set(xlabel=f"{bands[0]} [mag]", ylabel="objects", title="Numbers by magnitude")
        return
    colour = np.asarray(objects[f"{bands[0]}_mag"], dtype=float) - last
    good = np.asarray(objects["snr"]) > 10.0
    for name, (chosen, marker, shade) in kinds.items():
        axes.scatter(
            colour[chosen & good], last[chosen & good], s=14, marker=marker, facecolors="none",
            edgecolors=shade, label=name,
        )  # fmt: skip
    low, high = np.nanpercentile(colour[good], (1, 99)) if np.isfinite(colour[good]).any() else (0.0, 1.0)
    axes.set(xlabel=f"{bands[0]} - {bands[-1]} [mag]", ylabel=f"{bands[-1]} [mag]")
    axes.set_xlim(low - 0.5, high + 0.5)
    axes.invert_yaxis()
    axes.set_title("Colours and magnitudes")
    axes.legend(loc="upper left")
