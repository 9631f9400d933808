"""From raw images to calibrated ones: removing the detector's signature,
finding stars, fitting their width, place and brightness, and summing a visit
up.
"""

# pex_config is not typed.
# mypy: allow-untyped-calls

from __future__ import annotations

__all__ = ["CharacterizeTask", "IsrTask", "VisitSummaryTask"]

from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.table import Table  # type: ignore[import-untyped]
from lsst.pex.config import Field
from lsst.pipe.base import NoWorkFound, PipelineTaskConnections, Struct
from lsst.pipe.base.connectionTypes import InitOutput, Input, Output, PrerequisiteInput

from .calibration import AB_ZERO_POINT, calibrate, depth
from .geometry import Affine, TangentPoint
from .photometry import (
    Psf,
    find_cosmic_rays,
    find_peaks,
    fit_background,
    fit_fluxes,
    matched_filter,
    measure_sigma,
)
from .star_task import StarTask, StarTaskConfig

_EXPOSURE = ("instrument", "exposure", "detector")
_VISIT = ("instrument", "visit", "detector")


class IsrConnections(PipelineTaskConnections, dimensions=_EXPOSURE):
    """Data of `IsrTask`."""

    raw = Input(name="starcam_raw", storageClass="NumpyArray", dimensions=_EXPOSURE, doc="Counts")
    header = Input(
        name="starcam_header",
        storageClass="StructuredDataDict",
        dimensions=_EXPOSURE,
        doc="Its circumstances",
    )
    bias = PrerequisiteInput(
        name="starcam_bias",
        storageClass="NumpyArray",
        dimensions=("instrument", "detector"),
        isCalibration=True,
        doc="Counts without light",
    )
    flat = PrerequisiteInput(
        name="starcam_flat",
        storageClass="NumpyArray",
        dimensions=("instrument", "physical_filter", "detector"),
        isCalibration=True,
        doc="Relative response of the pixels",
    )
    image = Output(
        name="post_isr_image",
        storageClass="NumpyArray",
        dimensions=_EXPOSURE,
        doc="Two planes: electrons, and their variance; NaN where a pixel is no use",
    )


class IsrConfig(StarTaskConfig, pipelineConnections=IsrConnections):
    """Options of `IsrTask`."""

    doFlat: Field[bool] = Field(dtype=bool, default=True, doc="Whether to divide by the flat.")
    cosmicRay: Field[float] = Field(
        dtype=float, default=6.0, doc="Standard deviations by which a cosmic ray is sharper than a star."
    )
    sharpest: Field[float] = Field(
        dtype=float, default=0.9, doc="Sigma of the sharpest stars that there are, pixels."
    )


class IsrTask(StarTask):
    """Turn counts into electrons, with their variance, without saturated pixels and cosmic rays."""

    ConfigClass = IsrConfig
    _DefaultName = "isr"
    config: IsrConfig

    def run(
        self,
        *,
        raw: npt.NDArray[np.uint16],
        header: dict[str, Any],
        bias: npt.NDArray[np.float32],
        flat: npt.NDArray[np.float32],
    ) -> Struct:
        """Process a detector of an exposure."""
        response = flat.astype(float) if self.config.doFlat else np.ones(raw.shape)
        electrons = (raw.astype(float) - bias) * header["gain"]
        variance = np.clip(electrons, 0.0, None) + header["read_noise"] ** 2
        planes = np.stack([electrons / response, variance / response**2]).astype(np.float32)
        saturated = electrons >= 0.98 * header["full_well"]
        hit = find_cosmic_rays(*planes, sharpest=self.config.sharpest, threshold=self.config.cosmicRay)
        planes[:, saturated | hit] = np.nan
        self.metadata["median"] = float(np.nanmedian(planes[0]))
        self.metadata["saturated"] = int(np.count_nonzero(saturated))
        self.metadata["cosmic_rays"] = int(np.count_nonzero(hit))
        self.log.info(
            "Median level %.1f electrons; pixels saturated %d, hit by cosmic rays %d",
            *(self.metadata[name] for name in ("median", "saturated", "cosmic_rays")),
        )
        return Struct(image=planes)


class CharacterizeConnections(PipelineTaskConnections, dimensions=_VISIT):
    """Data of `CharacterizeTask`."""

    images = Input(
        name="post_isr_image", storageClass="NumpyArray", dimensions=_EXPOSURE, multiple=True, doc="Snaps"
    )
    headers = Input(
        name="starcam_header",
        storageClass="StructuredDataDict",
        dimensions=_EXPOSURE,
        multiple=True,
        doc="Their circumstances",
    )
    reference = PrerequisiteInput(
        name="starcam_reference",
        storageClass="ArrowAstropy",
        dimensions=("instrument",),
        doc="Stars of known place and brightness",
    )
    schema = InitOutput(
        name="source_schema",
        storageClass="StructuredDataDict",
        doc="Columns of the sources, with their units",
    )
    calibrated = Output(
        name="calibrated_image",
        storageClass="NumpyArray",
        dimensions=_VISIT,
        doc="Two planes: nanojansky a pixel without background, and their variance",
    )
    info = Output(
        name="calibrated_image_info",
        storageClass="StructuredDataDict",
        dimensions=_VISIT,
        doc="Place on the sky, seeing, zero point, depth",
    )
    sources = Output(
        name="source_table", storageClass="ArrowAstropy", dimensions=_VISIT, doc="Stars found on the image"
    )


class CharacterizeConfig(StarTaskConfig, pipelineConnections=CharacterizeConnections):
    """Options of `CharacterizeTask`."""

    threshold: Field[float] = Field(dtype=float, default=5.0, doc="Least signal-to-noise ratio of a star.")
    brightest: Field[int] = Field(
        dtype=int, default=60, doc="Number of the brightest stars that give the seeing."
    )


class CharacterizeTask(StarTask):
    """Find the stars of an image, and calibrate it with a reference catalogue."""

    ConfigClass = CharacterizeConfig
    _DefaultName = "characterize"
    config: CharacterizeConfig

    def __init__(self, *, initInputs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(initInputs=initInputs, **kwargs)
        self.schema = {
            "columns": {
                "x": "pixel",
                "y": "pixel",
                "ra": "deg",
                "dec": "deg",
                "flux": "nJy",
                "flux_err": "nJy",
                "snr": "",
            }
        }

    def identity(self, data_id: dict[str, int | str]) -> dict[str, Any]:  # noqa: D102
        return {"band": data_id["band"]}

    def run(
        self,
        *,
        images: dict[int, npt.NDArray[np.float32]],
        headers: dict[int, dict[str, Any]],
        reference: Table,
        band: str,
    ) -> Struct:
        """Process a detector of a visit."""
        header = headers[min(headers)]
        image, variance = np.sum([images[key].astype(float) for key in images], axis=0)
        background = fit_background(image)
        image = image - background
        x, y, psf = self._find(image, variance)
        flux, error = fit_fluxes(image, variance, psf, x, y)
        known = np.isfinite(flux) & (flux > 0)
        x, y, flux, error = x[known], y[known], flux[known], error[known]
        pointing = TangentPoint(header["ra"], header["dec"])
        fit = calibrate(x, y, flux, reference, band=band, pointing=pointing, guess=Affine(**header["affine"]))
        ra, dec = pointing.deproject(*fit.affine.forward(x, y))
        scale = 10.0 ** (0.4 * (AB_ZERO_POINT - fit.zero_point))
        sources = Table(
            {"x": x, "y": y, "ra": ra, "dec": dec, "flux": flux * scale, "flux_err": error * scale}
        )
        sources["snr"] = sources["flux"] / sources["flux_err"]
        planes = np.stack([image * scale, variance * scale**2]).astype(np.float32)
        info = {
            "ra": pointing.ra,
            "dec": pointing.dec,
            "affine": fit.affine.to_dict(),
            "psf_sigma": psf.sigma,
            "zero_point": fit.zero_point,
            "background": float(np.median(background)),
            "depth": depth(planes[1], psf),
            "sources": len(sources),
            "matches": fit.matches,
            "astrometric_scatter": fit.scatter,
        }
        self.metadata["sources"] = len(sources)
        self.log.info("%d stars, %d matched, zero point %.3f", len(sources), fit.matches, fit.zero_point)
        return Struct(calibrated=planes, info=info, sources=sources)

    def _find(self, image: Any, variance: Any) -> tuple[Any, Any, Psf]:
        """Find stars twice: with a guess of their width, then with theirs."""
        psf = Psf(((1.0, 1.5),))
        x, y, height = find_peaks(matched_filter(image, variance, psf), 2.0 * self.config.threshold)
        if len(x) == 0:
            raise NoWorkFound("no star stands out")
        order = np.argsort(-height, kind="stable")[: self.config.brightest]
        psf = Psf(((1.0, measure_sigma(image, x[order], y[order])),))
        x, y, _ = find_peaks(matched_filter(image, variance, psf), self.config.threshold)
        return x, y, psf


class VisitSummaryConnections(PipelineTaskConnections, dimensions=("instrument", "visit")):
    """Data of `VisitSummaryTask`."""

    infos = Input(
        name="calibrated_image_info",
        storageClass="StructuredDataDict",
        dimensions=_VISIT,
        multiple=True,
        doc="What is known of each detector",
    )
    summary = Output(
        name="visit_summary",
        storageClass="ArrowAstropy",
        dimensions=("instrument", "visit"),
        doc="A row a detector",
    )


class VisitSummaryConfig(StarTaskConfig, pipelineConnections=VisitSummaryConnections):
    """Options of `VisitSummaryTask`."""

    worstZeroPoint: Field[float] = Field(
        dtype=float,
        default=0.3,
        doc="Magnitudes from the visit's median zero point at which a detector is marked as not good.",
    )


class VisitSummaryTask(StarTask):
    """Put what is known of a visit's detectors in one table, and judge them."""

    ConfigClass = VisitSummaryConfig
    _DefaultName = "visitSummary"
    config: VisitSummaryConfig

    def run(self, *, infos: dict[int, dict[str, Any]]) -> Struct:
        """Process a visit."""
        columns = (
            "psf_sigma",
            "zero_point",
            "background",
            "depth",
            "sources",
            "matches",
            "astrometric_scatter",
        )
        rows = [{"detector": key} | {name: info[name] for name in columns} for key, info in infos.items()]
        table = Table(rows=rows)
        distance = np.abs(table["zero_point"] - np.median(table["zero_point"]))
        table["good"] = distance <= self.config.worstZeroPoint
        self.log.info("%d detectors, %d good", len(table), np.count_nonzero(table["good"]))
        return Struct(summary=table)
