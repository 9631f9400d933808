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
from astropy.wcs import WCS  # type: ignore[import-untyped]
from lsst.pex.config import Field
from lsst.pipe.base import NoWorkFound, PipelineTaskConnections, Struct
from lsst.pipe.base.connectionTypes import InitOutput, Input, Output, PrerequisiteInput

from .calibration import calibrate
from .geometry import FloatArray
from .photometry import (
    AB_ZERO_POINT,
    Psf,
    depth,
    find_cosmic_rays,
    find_peaks,
    fit_background,
    fit_fluxes,
    matched_filter,
    measure_sigma,
)
from .simulate import EXPOSURE, CalibrationConnections
from .star_task import StarTask, StarTaskConfig

_VISIT = ("instrument", "visit", "detector")


class IsrConnections(CalibrationConnections, dimensions=EXPOSURE):
    """Data of `IsrTask`."""

    raw = Input("starcam_raw", "NumpyArray", "Counts", dimensions=EXPOSURE)
    header = Input("starcam_header", "StructuredDataDict", "Its circumstances", dimensions=EXPOSURE)
    image = Output(
        "post_isr_image",
        "NumpyArray",
        "Two planes: electrons, and their variance; NaN where a pixel is no use",
        dimensions=EXPOSURE,
    )


class IsrConfig(StarTaskConfig, pipelineConnections=IsrConnections):
    """Options of `IsrTask`."""

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
        response = flat.astype(float)
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

    images = Input("post_isr_image", "NumpyArray", "Snaps", dimensions=EXPOSURE, multiple=True)
    headers = Input(
        "starcam_header", "StructuredDataDict", "Their circumstances", dimensions=EXPOSURE, multiple=True
    )
    reference = PrerequisiteInput(
        "starcam_reference", "ArrowAstropy", "Stars of known place and brightness", dimensions=("instrument",)
    )
    schema = InitOutput("source_schema", "StructuredDataDict", "Columns of the sources, with their units")
    calibrated = Output(
        "calibrated_image",
        "NumpyArray",
        "Two planes: nanojansky a pixel without background, and their variance",
        dimensions=_VISIT,
    )
    info = Output(
        "calibrated_image_info",
        "StructuredDataDict",
        "Place on the sky, seeing, zero point, depth",
        dimensions=_VISIT,
    )
    sources = Output("source_table", "ArrowAstropy", "Stars found on the image", dimensions=_VISIT)


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
    run_dimensions = ("band",)

    def __init__(self, *, initInputs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(initInputs=initInputs, **kwargs)
        units = {"x": "pixel", "y": "pixel", "ra": "deg", "dec": "deg", "flux": "nJy", "flux_err": "nJy"}
        self.schema = {"columns": units | {"snr": ""}}

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
        x, y, sigma = self._find(image, variance)
        psf = Psf.gaussian(sigma)
        flux, error, _ = fit_fluxes(image, variance, psf, x, y)
        known = flux > 0
        x, y, flux, error = x[known], y[known], flux[known], error[known]
        fit = calibrate(x, y, flux, reference, band=band, wcs=WCS(header["wcs"]))
        ra, dec = fit.wcs.wcs_pix2world(x, y, 0)
        scale = 10.0 ** (0.4 * (AB_ZERO_POINT - fit.zero_point))
        sources = Table(
            {"x": x, "y": y, "ra": ra, "dec": dec, "flux": flux * scale, "flux_err": error * scale}
        )
        sources["snr"] = sources["flux"] / sources["flux_err"]
        planes = np.stack([image * scale, variance * scale**2]).astype(np.float32)
        info = {
            "wcs": dict(fit.wcs.to_header()),
            "psf_sigma": sigma,
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

    def _find(self, image: FloatArray, variance: FloatArray) -> tuple[FloatArray, FloatArray, float]:
        """Find stars twice, with a guess of their sigma and then with theirs, and give both."""
        significance = matched_filter(image, variance, Psf.gaussian(1.5))
        x, y, height = find_peaks(significance, 2.0 * self.config.threshold)
        if len(x) == 0:
            raise NoWorkFound("no star stands out")
        bright = np.argsort(-height, kind="stable")[: self.config.brightest]
        sigma = measure_sigma(image, x[bright], y[bright])
        x, y, _ = find_peaks(matched_filter(image, variance, Psf.gaussian(sigma)), self.config.threshold)
        return x, y, sigma


class VisitSummaryConnections(PipelineTaskConnections, dimensions=("instrument", "visit")):
    """Data of `VisitSummaryTask`."""

    infos = Input(
        "calibrated_image_info",
        "StructuredDataDict",
        "What is known of each detector",
        dimensions=_VISIT,
        multiple=True,
    )
    summary = Output("visit_summary", "ArrowAstropy", "A row a detector", dimensions=("instrument", "visit"))


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
        table = Table(rows=[{"detector": key} | info | {"wcs": ""} for key, info in infos.items()])
        del table["wcs"]
        distance = np.abs(table["zero_point"] - np.median(table["zero_point"]))
        table["good"] = distance <= self.config.worstZeroPoint
        self.log.info("%d detectors, %d good", len(table), np.count_nonzero(table["good"]))
        return Struct(summary=table)
