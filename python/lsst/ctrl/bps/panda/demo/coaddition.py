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
from lsst.pex.config import Field
from lsst.pipe.base import NoWorkFound, PipelineTaskConnections, Struct
from lsst.pipe.base.connectionTypes import Input, Output

from .calibration import depth
from .geometry import Affine, FloatArray, SkyLayout, TangentPoint
from .photometry import Psf, clipped_median
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

    worstSeeing: Field[float] = Field(dtype=float, default=6.0, doc="Widest seeing that is used, pixels.")


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
        sky = SkyLayout.from_dict(layout)
        good = {int(row["detector"]) for row in summary if row["good"]}
        box = sky.outer_box(patch)
        warp = np.full((2, *box.shape), np.nan)
        x, y = np.meshgrid(np.arange(box.x0, box.x1), np.arange(box.y0, box.y1))
        ra, dec = sky.sky(x, y)
        used = []
        pointing, plane = None, (ra, dec)
        for detector in sorted(good & set(images)):
            info = infos[detector]
            psf = Psf(((1.0, info["psf_sigma"]),))
            if psf.fwhm > self.config.worstSeeing:
                continue
            # All detectors of a visit have one pointing in their headers.
            if pointing != (pointing := TangentPoint(info["ra"], info["dec"])):
                plane = pointing.project(ra, dec)
            part = resample(images[detector], *Affine(**info["affine"]).inverse(*plane))
            fresh = np.isnan(warp[0]) & np.isfinite(part[0])
            if fresh.any():
                warp[:, fresh] = part[:, fresh]
                used.append((int(np.count_nonzero(fresh)), info["psf_sigma"]))
        if not used:
            raise NoWorkFound("no good image has a pixel on the patch")
        pixels = [count for count, _ in used]
        seeing = sum(count * sigma for count, sigma in used) / sum(pixels)
        variance, _ = clipped_median(warp[1])
        info = {
            "psf_sigma": seeing,
            "variance": variance,
            "coverage": sum(pixels) / warp[0].size,
            "detectors": len(used),
        }
        self.log.info("%d detectors cover %.0f%%", len(used), 100 * info["coverage"])
        return Struct(warp=warp.astype(np.float32), info=info)


def resample(planes: npt.NDArray[np.floating], x: FloatArray, y: FloatArray) -> FloatArray:
    """Interpolate image and variance by the Lanczos kernel of order three.

    Both are NaN nearer to the image's edge than the kernel reaches.  The variance is that of each pixel; its
    neighbours are correlated.
    """
    rows, columns = planes.shape[1:]
    result = np.full((2, *x.shape), np.nan)
    low_x, low_y = np.floor(x).astype(int) - _REACH + 1, np.floor(y).astype(int) - _REACH + 1
    inside = (low_x >= 0) & (low_y >= 0) & (low_x + 2 * _REACH <= columns) & (low_y + 2 * _REACH <= rows)
    if not inside.any():
        return result
    left, bottom = low_x[inside], low_y[inside]
    across = _lanczos(x[inside] - left)
    along = _lanczos(y[inside] - bottom)
    image, variance = planes.astype(float).reshape(2, -1)
    first = bottom * columns + left
    total, noise = np.zeros(left.shape), np.zeros(left.shape)
    for j in range(2 * _REACH):
        for i in range(2 * _REACH):
            weight, pixel = across[i] * along[j], first + (j * columns + i)
            total += weight * image.take(pixel)
            noise += weight**2 * variance.take(pixel)
    result[0, inside], result[1, inside] = total, noise
    return result


def _lanczos(offset: FloatArray) -> list[FloatArray]:
    """Weights, of sum 1, of the pixels from the first on, ``offset`` away."""
    offset = np.where(offset % 1.0 == 0.0, offset + 1e-9, offset)
    sine = np.sin(np.pi * offset)
    raw = []
    for n in range(2 * _REACH):
        # sinc(d) sinc(d/3) without the factors that all have.
        raw.append((-1) ** n * sine * np.sin(np.pi / _REACH * (offset - n)) / (offset - n) ** 2)
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
        psf = Psf.mean(
            [Psf(((1.0, infos[visit]["psf_sigma"]),)) for visit in warps],
            [weights[visit] * infos[visit]["coverage"] for visit in warps],
        )
        info = {
            "psf": [list(component) for component in psf.components],
            "visits": sorted(warps),
            "coverage": float(np.mean(seen)),
            "depth": depth(planes[1], psf),
        }
        self.metadata["warps"] = len(warps)
        self.log.info("%d warps, depth %.2f mag", len(warps), info["depth"])
        return Struct(coadd=planes.astype(np.float32), info=info)
