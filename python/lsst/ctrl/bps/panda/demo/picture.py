"""A picture of a coadd with its objects marked."""

from __future__ import annotations

__all__ = ["draw_coadd"]

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table  # type: ignore[import-untyped]
from lsst.daf.butler import Butler

from ..errors import SettingsError
from .geometry import PIXEL_SCALE, FloatArray, SkyLayout
from .photometry import clipped_median
from .repository import SKYMAP


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
