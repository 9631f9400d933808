"""What came out of a run: how many objects, how deep, how true; and a picture of it."""

from __future__ import annotations

__all__ = [
    "DemoSummary",
    "balance_bands",
    "colour_picture",
    "compare_with_truth",
    "draw_run",
    "read_coadds",
    "read_summary",
    "render_summary",
    "seen_by_all",
]

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.stats import mad_std  # type: ignore[import-untyped]
from astropy.table import Table  # type: ignore[import-untyped]
from lsst.daf.butler import Butler

from ..errors import SettingsError
from ..files import replacing
from .geometry import PIXEL_SCALE, FloatArray, SkyLayout, match
from .instrument import BANDS, StarCam
from .photometry import AB_ZERO_POINT
from .repository import SKYMAP
from .simulate import is_galaxy

_RADIUS = 0.6  # Farthest that an object may lie from its star, arcseconds.
_DETECTED = 5.0
_BRIGHT = 30.0  # Signal-to-noise ratio from which places and magnitudes are judged.


@dataclass(frozen=True, slots=True)
class DemoSummary:
    """A tract."""

    objects: int
    matched: int  # Objects that are a true star or galaxy.
    galaxies: int  # Objects that are a true galaxy.
    galaxies_extended: int  # Those of them that are marked as extended.
    stars_extended: int  # True stars that are.
    position_scatter: float  # Root mean square distance from the true places, bright stars, milliarcseconds.
    bands: Table
    """A row a band: objects of at least five times their error in it (``detected``); the ``depth``, which is
    the magnitude of five times the error; the fraction found of the true stars on its images that are half a
    magnitude or more brighter (``completeness``); median and standard deviation of measured less true
    magnitudes of bright stars (``magnitude_offset``, ``magnitude_scatter``)."""


def read_summary(
    repo: str | os.PathLike[str], collections: str | Sequence[str], *, tract: int = 0
) -> DemoSummary:
    """Read the objects of a run and compare them with the simulated sky.

    Parameters
    ----------
    repo : path-like
        Butler repository.
    collections : `str` or `~collections.abc.Sequence` [`str`]
        Where the run's outputs and its inputs are.
    tract : `int`, optional
        Which of the places that were observed.

    Raises
    ------
    lsst.daf.butler.DatasetNotFoundError
        Raised if there is no object table.
    """
    with Butler.from_config(str(repo), collections=collections) as butler:
        objects = butler.get("object_table", skymap=SKYMAP, tract=tract)
        truth = butler.get("starcam_catalog", instrument=StarCam.getName())
        layout = SkyLayout(**butler.get("sky_layout", skymap=SKYMAP, tract=tract))
        images = read_coadds(butler, layout, tract)
    return compare_with_truth(objects, truth, layout, images)


def read_coadds(butler: Butler, layout: SkyLayout, tract: int) -> dict[str, FloatArray]:
    """Read the image of the tract in each band, from the shortest wave on; NaN where there is no data."""
    images: dict[str, FloatArray] = {}
    for ref in butler.query_datasets("coadd", tract=tract, skymap=SKYMAP, explain=False, limit=None):
        image = images.setdefault(str(ref.dataId["band"]), np.full(layout.wcs.array_shape, np.nan))
        # Where patches overlap, they show the same.
        image[layout.image(int(ref.dataId["patch"]))] = butler.get(ref)[0]
    return {band: images[band] for band in BANDS if band in images}


def compare_with_truth(
    objects: Table, truth: Table, layout: SkyLayout, images: Mapping[str, FloatArray]
) -> DemoSummary:
    """Compare objects with the simulated sky, of which the images show a part."""
    true_x, true_y = layout.wcs.wcs_world2pix(truth["ra"], truth["dec"], 0)
    inside = layout.owner(true_x, true_y) >= 0
    truth, true_x, true_y = truth[inside], true_x[inside], true_y[inside]
    x, y = layout.wcs.wcs_world2pix(objects["ra"], objects["dec"], 0)
    own, other = match(x, y, true_x, true_y, radius=_RADIUS / PIXEL_SCALE)
    truth["found"] = np.isin(np.arange(len(truth)), other)
    found, true = objects[own], truth[other]
    galaxy, extended = is_galaxy(true), np.asarray(found["extended"], dtype=bool)
    bright = (found["snr"] > _BRIGHT) & ~galaxy
    square = np.square(x[own] - true_x[other])[bright] + np.square(y[own] - true_y[other])[bright]
    bands = []
    for band, image in images.items():
        if f"{band}_flux" in objects.colnames:
            seen = np.isfinite(image[np.rint(true_y).astype(int), np.rint(true_x).astype(int)])
            stars = truth[seen & ~is_galaxy(truth)]
            bands.append(_compare_band(band, objects, found[~galaxy], true[~galaxy], stars))
    return DemoSummary(
        objects=len(objects),
        matched=len(own),
        galaxies=int(np.count_nonzero(galaxy)),
        galaxies_extended=int(np.count_nonzero(galaxy & extended)),
        stars_extended=int(np.count_nonzero(~galaxy & extended)),
        position_scatter=1000.0 * PIXEL_SCALE * float(np.sqrt(np.mean(square))) if square.size else np.nan,
        bands=Table(rows=bands),
    )


def _compare_band(band: str, objects: Table, found: Table, true: Table, stars: Table) -> dict[str, Any]:
    """Judge a band by all objects, by the stars that are found with their true values, and by all stars."""
    error = np.asarray(objects[f"{band}_flux_err"])
    ratio = np.asarray(objects[f"{band}_flux"]) / error
    # The background sets the depth, not the light of the bright stars.
    depth = AB_ZERO_POINT - 2.5 * np.log10(5.0 * np.nanmedian(error[ratio < _BRIGHT]))
    complete = stars["found"][stars[band] < depth - 0.5]
    bright = found[f"{band}_flux"] > _BRIGHT * found[f"{band}_flux_err"]
    difference = np.asarray(found[f"{band}_mag"] - true[band])[bright]
    return {
        "band": band,
        "detected": np.count_nonzero(ratio >= _DETECTED),
        "depth": depth,
        "completeness": np.mean(complete) if complete.size else np.nan,
        "magnitude_offset": np.median(difference) if difference.size else np.nan,
        "magnitude_scatter": mad_std(difference),
    }


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
            f"{band['band']:<4}  {band['detected']:7d}  {band['depth']:10.2f} mag  "
            f"{100 * band['completeness']:11.1f}%"
            f"  {band['magnitude_offset']:+.3f} +- {band['magnitude_scatter']:.3f}"
        )
    return "\n".join(lines)


def draw_run(
    repo: str | os.PathLike[str],
    collections: str | Sequence[str],
    path: str | os.PathLike[str],
    *,
    tract: int = 0,
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
    tract : `int`, optional
        Which of the places that were observed.

    Raises
    ------
    .SettingsError
        Raised if there is no coadd.
    lsst.daf.butler.DatasetNotFoundError
        Raised if there is no object table.
    """
    with Butler.from_config(str(repo), collections=collections) as butler:
        layout = SkyLayout(**butler.get("sky_layout", skymap=SKYMAP, tract=tract))
        objects = butler.get("object_table", skymap=SKYMAP, tract=tract)
        images = read_coadds(butler, layout, tract)
    if not images:
        raise SettingsError(f"no coadd in {collections}")
    figure = _draw(images, objects, layout)
    with replacing(Path(path)) as partial:
        figure.savefig(partial, format="png", dpi=110)
    return Path(path)


def balance_bands(images: Mapping[str, FloatArray], objects: Table) -> list[FloatArray]:
    """Scale the images of bands so that an object of the usual colour is white."""
    bright = objects["snr"] > _BRIGHT
    return [image / float(np.nanmedian(objects[f"{band}_flux"][bright])) for band, image in images.items()]


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
    noise = mad_std(green)
    picture: npt.NDArray[np.uint8] = make_lupton_rgb(
        red, green, blue, minimum=-noise, stretch=12.0 * noise, Q=8
    )
    return picture


def seen_by_all(images: Sequence[FloatArray], border: int) -> tuple[slice, slice]:
    """Give the rows and columns inside the border that all images have seen."""
    seen = np.all(np.isfinite(images), axis=0)[border:-border, border:-border]
    shares = np.mean(seen, axis=1), np.mean(seen, axis=0)
    kept = [np.nonzero(share >= 0.9 * share.max())[0] + border for share in shares]
    return slice(kept[0][0], kept[0][-1] + 1), slice(kept[1][0], kept[1][-1] + 1)


def _draw(images: dict[str, FloatArray], objects: Table, layout: SkyLayout) -> Any:
    # Figures of our own, not pyplot's: no global state, no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = seen_by_all(list(images.values()), layout.border)
    scaled = balance_bands(images, objects)
    picture = colour_picture([image[rows, columns] for image in scaled])
    figure = Figure(figsize=(14.0, 8.8), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1, 2, width_ratios=(2.0, 1.0))
    sky = figure.add_subplot(grid[0], projection=layout.wcs[rows, columns])
    sky.imshow(picture, origin="lower", interpolation="nearest")
    area = min(60.0, 60.0 * (600.0 / max(picture.shape)) ** 2)
    for name, kind, style in _kinds(objects):
        x, y = objects["x"][kind] - columns.start, objects["y"][kind] - rows.start
        label = f"{np.count_nonzero(kind)} {name}"
        sky.scatter(x, y, s=area, linewidths=0.6, alpha=0.8, label=label, **style)
    sky.set(xlim=(-0.5, picture.shape[1] - 0.5), ylim=(-0.5, picture.shape[0] - 0.5))
    sky.set(xlabel="right ascension", ylabel="declination")
    sky.set_title(f"StarCam, bands {', '.join(images)}: {len(objects)} objects")
    sky.legend(loc="upper right", framealpha=0.7)
    _draw_diagram(figure.add_subplot(grid[1]), list(images), objects)
    return figure


def _kinds(objects: Table) -> Iterator[tuple[str, npt.NDArray[np.bool_], dict[str, str]]]:
    """Give which objects look like stars and which like galaxies, and how they are marked."""
    extended = np.asarray(objects["extended"], dtype=bool)
    kinds = ("point-like", ~extended, "o", "deepskyblue"), ("extended", extended, "s", "orange")
    for name, kind, marker, colour in kinds:
        if kind.any():
            yield name, kind, {"marker": marker, "facecolors": "none", "edgecolors": colour}


def _draw_diagram(axes: Any, bands: list[str], objects: Table) -> None:
    """Draw colours and magnitudes, or numbers by magnitude if there is but one band."""
    first, last = bands[0], bands[-1]
    magnitude = np.asarray(objects[f"{last}_mag"])
    if len(bands) == 1:
        axes.hist(magnitude[np.isfinite(magnitude)], bins=30, color="0.5")
        axes.set(xlabel=f"{last} [mag]", ylabel="objects", title="Numbers by magnitude")
        return
    colour = np.asarray(objects[f"{first}_mag"]) - magnitude
    good = (objects["snr"] > 10.0) & np.isfinite(colour)
    for name, kind, style in _kinds(objects):
        axes.scatter(colour[kind & good], magnitude[kind & good], s=14, label=name, **style)
    low, high = np.percentile(colour[good], (1, 99)) if good.any() else (0.0, 1.0)
    axes.set(xlim=(low - 0.5, high + 0.5), xlabel=f"{first} - {last} [mag]", ylabel=f"{last} [mag]")
    axes.set_title("Colours and magnitudes")
    axes.invert_yaxis()
    axes.legend(loc="upper left")
