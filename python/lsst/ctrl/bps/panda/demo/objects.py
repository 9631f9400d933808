"""From coadds to the table of objects: finding stars on all bands together,
measuring each band at the same places, and joining the patches of a tract.
"""

# pex_config is not typed.
# mypy: allow-untyped-calls

from __future__ import annotations

__all__ = ["MeasureObjectsTask", "ObjectTableTask"]

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.table import Table, vstack  # type: ignore[import-untyped]
from lsst.pex.config import Field
from lsst.pipe.base import NoWorkFound, PipelineTaskConnections, Struct
from lsst.pipe.base.connectionTypes import Input, Output

from .geometry import SkyLayout, match
from .photometry import AB_ZERO_POINT, Psf, compare_with_wider, find_peaks, fit_fluxes, matched_filter
from .star_task import StarTask, StarTaskConfig

_COADD = ("skymap", "tract", "patch", "band")
_PATCH = ("skymap", "tract", "patch")
_TRACT = ("skymap", "tract")
_WIDER = 1.5
"""Sigma, in pixels, of the Gaussian galaxy that an object is more like if it counts as extended."""

_MARGIN = 9.0
"""By how much the square of its signal-to-noise ratio must be greater for that: three standard deviations."""

_OBJECTS_PER_PATCH = 1_000_000


class MeasureObjectsConnections(PipelineTaskConnections, dimensions=_PATCH):
    """Data of `MeasureObjectsTask`."""

    coadds = Input("coadd", "NumpyArray", "The patch in all bands", dimensions=_COADD, multiple=True)
    infos = Input(
        "coadd_info", "StructuredDataDict", "Shape of their stars", dimensions=_COADD, multiple=True
    )
    layout = Input("sky_layout", "StructuredDataDict", "Where the patch lies", dimensions=("skymap",))
    objects = Output("patch_object_table", "ArrowAstropy", "Objects of the patch", dimensions=_PATCH)


class MeasureObjectsConfig(StarTaskConfig, pipelineConnections=MeasureObjectsConnections):
    """Options of `MeasureObjectsTask`."""

    threshold: Field[float] = Field(
        dtype=float, default=5.0, doc="Least signal-to-noise ratio, all bands together."
    )


class MeasureObjectsTask(StarTask):
    """Find and measure the objects of a patch."""

    ConfigClass = MeasureObjectsConfig
    _DefaultName = "measureObjects"
    config: MeasureObjectsConfig
    run_dimensions = ("tract", "patch")

    def run(
        self,
        *,
        coadds: dict[str, npt.NDArray[np.float32]],
        infos: dict[str, dict[str, Any]],
        layout: dict[str, Any],
        tract: int,
        patch: int,
    ) -> Struct:
        """Process a patch."""
        sky = SkyLayout(**layout)
        planes = {band: (coadd[0].astype(float), coadd[1].astype(float)) for band, coadd in coadds.items()}
        psfs = {band: Psf(infos[band]["psf"]) for band in coadds}
        significances = [matched_filter(*planes[band], psfs[band]) for band in planes]
        # A star of the same ratio in n bands has sqrt(n) times it in all.
        seen = np.sum([values != 0.0 for values in significances], axis=0)
        together = np.sum(significances, axis=0) / np.sqrt(np.maximum(seen, 1))
        x, y, height = find_peaks(together, self.config.threshold)
        columns: dict[str, Any] = {"snr": height, "extended": np.zeros(len(x))}
        for band, (image, variance) in planes.items():
            psf = psfs[band]
            flux, error, residual = fit_fluxes(image, variance, psf, x, y)
            wider = psf.widen(_WIDER)
            columns["extended"] += compare_with_wider(residual, variance, psf, wider, x, y, flux)
            columns[f"{band}_flux"], columns[f"{band}_flux_err"] = flux, error
            # What is not positive has no magnitude.
            columns[f"{band}_mag"] = AB_ZERO_POINT - 2.5 * np.log10(np.where(flux > 0, flux, np.nan))
        columns["extended"] = columns["extended"] > _MARGIN
        rows, across = sky.image(patch)
        tract_x, tract_y = x + across.start, y + rows.start
        own = sky.owner(tract_x, tract_y) == patch
        if not own.any():
            raise NoWorkFound("no object is found")
        ra, dec = sky.wcs.wcs_pix2world(tract_x, tract_y, 0)
        number = np.arange(np.count_nonzero(own), dtype=np.int64)
        table = Table(
            {
                "object_id": (tract * 1000 + patch) * _OBJECTS_PER_PATCH + number,
                "tract": np.full(number.size, tract, dtype=np.int64),
                "patch": np.full(number.size, patch, dtype=np.int64),
                "ra": ra[own],
                "dec": dec[own],
                "x": tract_x[own],
                "y": tract_y[own],
            }
            | {name: values[own] for name, values in columns.items()}
        )
        self.metadata["objects"] = len(table)
        self.log.info("%d objects in bands %s", len(table), ", ".join(planes))
        return Struct(objects=table)


class ObjectTableConnections(PipelineTaskConnections, dimensions=_TRACT):
    """Data of `ObjectTableTask`."""

    patches = Input(
        "patch_object_table", "ArrowAstropy", "Objects of each patch", dimensions=_PATCH, multiple=True
    )
    table = Output("object_table", "ArrowAstropy", "Objects of the tract", dimensions=_TRACT)


class ObjectTableConfig(StarTaskConfig, pipelineConnections=ObjectTableConnections):
    """Options of `ObjectTableTask`."""

    sameRadius: Field[float] = Field(
        dtype=float, default=1.0, doc="Pixels within which objects of two patches are the same one."
    )


class ObjectTableTask(StarTask):
    """Join the objects of all patches of a tract."""

    ConfigClass = ObjectTableConfig
    _DefaultName = "objectTable"
    config: ObjectTableConfig

    def run(self, *, patches: dict[int, Table]) -> Struct:
        """Process a tract."""
        tables = [patches[patch] for patch in patches]
        # Noise can put one star on either side of the line between two patches.
        for first, second in itertools.combinations(tables, 2):
            radius = self.config.sameRadius
            _, repeated = match(first["x"], first["y"], second["x"], second["y"], radius=radius)
            second.remove_rows(repeated)
        table = vstack(tables, join_type="outer")
        # A patch may lack a band: its images failed, or there are none.
        table = table.filled(np.nan) if table.has_masked_columns else table
        self.metadata["objects"] = len(table)
        self.log.info("%d objects of %d patches", len(table), len(patches))
        return Struct(table=table)
