"""Bringing the images of all visits to the pixels of a patch, and adding them
up.
"""

# pex_config is not typed.
# mypy: allow-untyped-calls

from __future__ import annotations

__all__ = ["AssembleCoaddTask", "MakeWarpTask", "resample"]

from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.table import Table  # type: ignore[import-untyped]
from astropy.wcs import WCS  # type: ignore[import-untyped]
from lsst.pex.config import Field
from lsst.pipe.base import NoWorkFound, PipelineTaskConnections, Struct
from lsst.pipe.base.connectionTypes import Input, Output

from .geometry import FloatArray, SkyLayout
from .photometry import Psf, depth
from .star_task import StarTask, StarTaskConfig

_VISIT = ("instrument", "visit", "detector")
_WARP = ("skymap", "tract", "patch", "instrument", "visit")
_COADD = ("skymap", "tract", "patch", "band")
_REACH = 3
"""Half width of the Lanczos kernel, pixels."""


class MakeWarpConnections(PipelineTaskConnections, dimensions=_WARP):
    """Data of `MakeWarpTask`."""

    images = Input(
        "calibrated_image", "NumpyArray", "Detectors that touch the patch", dimensions=_VISIT, multiple=True
    )
    infos = Input(
        "calibrated_image_info", "StructuredDataDict", "Where they lie", dimensions=_VISIT, multiple=True
    )
    summary = Input(
        "visit_summary", "ArrowAstropy", "Which of them are good", dimensions=("instrument", "visit")
    )
    layout = Input("sky_layout", "StructuredDataDict", "Where the patches lie", dimensions=("skymap",))
    warp = Output(
        "warp",
        "NumpyArray",
        "Two planes: nanojansky a pixel, and variance; NaN where there is no data",
        dimensions=_WARP,
    )
    info = Output("warp_info", "StructuredDataDict", "Seeing, coverage, weight", dimensions=_WARP)


class MakeWarpConfig(StarTaskConfig, pipelineConnections=MakeWarpConnections):
    """Options of `MakeWarpTask`."""

    worstSeeing: Field[float] = Field(
        dtype=float, default=2.5, doc="Sigma of the widest stars of an image that is used, pixels."
    )


class MakeWarpTask(StarTask):
    """Resample the detectors of a visit to the pixels of a patch."""

    ConfigClass = MakeWarpConfig
    _DefaultName = "makeWarp"
    config: MakeWarpConfig
    run_dimensions = ("patch",)

    def run(
        self,
        *,
        images: dict[int, npt.NDArray[np.float32]],
        infos: dict[int, dict[str, Any]],
        summary: Table,
        layout: dict[str, Any],
        patch: int,
    ) -> Struct:
        """Process a visit on a patch."""
        sky = SkyLayout(**layout)
        wcs = sky.wcs[sky.image(patch)]
        warp = np.full((2, *wcs.array_shape), np.nan)
        pixels: dict[int, int] = {}
        for detector in sorted(row["detector"] for row in summary if row["good"]):
            if detector in images and infos[detector]["psf_sigma"] <= self.config.worstSeeing:
                part = resample(images[detector], WCS(infos[detector]["wcs"]), wcs)
                fresh = np.isnan(warp[0]) & np.isfinite(part[0])
                warp = np.where(fresh, part, warp)
                pixels[detector] = int(np.count_nonzero(fresh))
        total = sum(pixels.values())
        if not total:
            raise NoWorkFound("no good image has a pixel on the patch")
        info = {
            "psf_sigma": sum(number * infos[key]["psf_sigma"] for key, number in pixels.items()) / total,
            "variance": float(np.nanmedian(warp[1])),
            "coverage": total / warp[0].size,
        }
        self.log.info("Of the pixels, %.0f%% have data", 100 * info["coverage"])
        return Struct(warp=warp.astype(np.float32), info=info)


def resample(planes: npt.NDArray[np.floating], wcs: WCS, to: WCS) -> FloatArray:
    """Interpolate image and variance at the pixels of another WCS, by the Lanczos kernel of order three.

    Both are NaN nearer to the image's edge than the kernel reaches.  The variance is that of each pixel; its
    neighbours are correlated.
    """
    rows, columns = planes.shape[1:]
    result = np.full((2, *to.array_shape), np.nan)
    corners = to.wcs_world2pix(wcs.calc_footprint(axes=(columns, rows)), 0)
    left, bottom = np.maximum(np.floor(corners.min(axis=0)), 0).astype(int)
    right, top = np.minimum(np.ceil(corners.max(axis=0)) + 1, result.shape[:0:-1]).astype(int)
    x, y = np.meshgrid(np.arange(left, right), np.arange(bottom, top))
    if x.size == 0:
        return result
    at_x, at_y = wcs.wcs_world2pix(*to.wcs_pix2world(x.ravel(), y.ravel(), 0), 0)
    low_x, low_y = np.floor(at_x).astype(int) - _REACH + 1, np.floor(at_y).astype(int) - _REACH + 1
    inside = (low_x >= 0) & (low_y >= 0) & (low_x + 2 * _REACH <= columns) & (low_y + 2 * _REACH <= rows)
    low_x, low_y = low_x[inside], low_y[inside]
    across, along = _lanczos(at_x[inside] - low_x), _lanczos(at_y[inside] - low_y)
    image, variance = planes.astype(float).reshape(2, -1)
    first = low_y * columns + low_x
    total, noise = np.zeros(first.shape), np.zeros(first.shape)
    for j in range(2 * _REACH):
        for i in range(2 * _REACH):
            weight, pixel = across[i] * along[j], first + (j * columns + i)
            total += weight * image.take(pixel)
            noise += weight**2 * variance.take(pixel)
    result[:, y.ravel()[inside], x.ravel()[inside]] = total, noise
    return result


def _lanczos(offset: FloatArray) -> list[FloatArray]:
    """Weights, of sum 1, of the pixels from the first on, ``offset`` away."""
    raw = [np.sinc(offset - n) * np.sinc((offset - n) / _REACH) for n in range(2 * _REACH)]
    total = np.sum(raw, axis=0)
    return [weight / total for weight in raw]


class AssembleCoaddConnections(PipelineTaskConnections, dimensions=_COADD):
    """Data of `AssembleCoaddTask`."""

    warps = Input("warp", "NumpyArray", "What to add", dimensions=_WARP, multiple=True)
    infos = Input("warp_info", "StructuredDataDict", "Their weights", dimensions=_WARP, multiple=True)
    coadd = Output(
        "coadd",
        "NumpyArray",
        "Two planes: nanojansky a pixel, and variance; NaN where there is no data",
        dimensions=_COADD,
    )
    info = Output("coadd_info", "StructuredDataDict", "Shape of stars, depth", dimensions=_COADD)


class AssembleCoaddConfig(StarTaskConfig, pipelineConnections=AssembleCoaddConnections):
    """Options of `AssembleCoaddTask`."""

    fewestWarps: Field[int] = Field(dtype=int, default=1, doc="Warps without which there is no coadd.")


class AssembleCoaddTask(StarTask):
    """Add the warps of a band up, each with one weight, so that the shape of
    stars is known.
    """

    ConfigClass = AssembleCoaddConfig
    _DefaultName = "assembleCoadd"
    config: AssembleCoaddConfig

    def run(self, *, warps: dict[int, npt.NDArray[np.float32]], infos: dict[int, dict[str, Any]]) -> Struct:
        """Process a band of a patch."""
        if len(warps) < self.config.fewestWarps:
            raise NoWorkFound(f"{len(warps)} warps, {self.config.fewestWarps} are asked for")
        shape = next(iter(warps.values())).shape[1:]
        image, variance, total = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        weights = {visit: 1.0 / infos[visit]["variance"] for visit in warps}
        for visit, warp in warps.items():
            good = np.isfinite(warp[0]) & np.isfinite(warp[1])
            image += np.where(good, weights[visit] * warp[0].astype(float), 0.0)
            variance += np.where(good, weights[visit] ** 2 * warp[1].astype(float), 0.0)
            total += np.where(good, weights[visit], 0.0)
        seen = total > 0.0
        planes = np.full((2, *shape), np.nan)
        planes[0, seen] = image[seen] / total[seen]
        planes[1, seen] = variance[seen] / total[seen] ** 2
        shares = {visit: weights[visit] * infos[visit]["coverage"] for visit in warps}
        whole = sum(shares.values())
        psf = Psf([[share / whole, infos[visit]["psf_sigma"]] for visit, share in shares.items()])
        info = {
            "psf": psf.components,
            "visits": sorted(warps),
            "coverage": float(np.mean(seen)),
            "depth": depth(planes[1], psf),
        }
        self.metadata["warps"] = len(warps)
        self.log.info("%d warps, depth %.2f mag", len(warps), info["depth"])
        return Struct(coadd=planes.astype(np.float32), info=info)
