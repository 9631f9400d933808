"""The demo's tasks: from a catalogue to raw images, from those to calibrated ones, to coadds, and to objects.

Here is what each reads and writes; what is done to pixels is in `.simulate`, `.photometry` and `.geometry`.
Images are arrays of two planes: the pixels, and their variance; NaN where there is no data.
"""

# pex_config is not typed.
# mypy: allow-untyped-calls

from __future__ import annotations

__all__ = [
    "EXPOSURE",
    "AssembleCoaddTask",
    "CharacterizeTask",
    "IsrTask",
    "MakeWarpTask",
    "MeasureObjectsTask",
    "ObjectTableTask",
    "SimulateTask",
    "VisitSummaryTask",
]

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.table import Table, vstack  # type: ignore[import-untyped]
from astropy.wcs import WCS  # type: ignore[import-untyped]
from lsst.pex.config import Field
from lsst.pipe.base import NoWorkFound, PipelineTaskConnections, Struct
from lsst.pipe.base.connections import QuantaAdjuster
from lsst.pipe.base.connectionTypes import InitOutput, Input, Output, PrerequisiteInput

from .geometry import FloatArray, Image, SkyLayout, match, resample
from .photometry import (
    AB_ZERO_POINT,
    Psf,
    calibrate,
    compare_with_galaxy,
    depth,
    find_cosmic_rays,
    find_peaks,
    fit_background,
    fit_fluxes,
    matched_filter,
    measure_sigma,
)
from .simulate import Pointing, make_header, simulate_raw
from .star_task import StarTask, StarTaskConfig

Info = dict[str, Any]

BIAS = ("instrument", "detector")
FLAT = ("instrument", "physical_filter", "detector")
EXPOSURE = ("instrument", "exposure", "detector")
DETECTOR = ("instrument", "visit", "detector")
VISIT = ("instrument", "visit")
WARP = ("skymap", "tract", "patch", "instrument", "visit")
COADD = ("skymap", "tract", "patch", "band")
PATCH = ("skymap", "tract", "patch")
TRACT = ("skymap", "tract")


class CalibrationConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    """What is known of a detector."""

    bias = PrerequisiteInput(
        "starcam_bias", "NumpyArray", "Counts without light", dimensions=BIAS, isCalibration=True
    )
    flat = PrerequisiteInput(
        "starcam_flat", "NumpyArray", "Response of the pixels", dimensions=FLAT, isCalibration=True
    )

    def adjust_all_quanta(self, adjuster: QuantaAdjuster) -> None:
        """Build no graph that could not run."""
        from .repository import check_inputs  # No quantum needs it.

        check_inputs(adjuster.butler)


class SimulateConnections(CalibrationConnections, dimensions=EXPOSURE):
    catalog = PrerequisiteInput("starcam_catalog", "ArrowAstropy", "Truth", dimensions=("instrument",))
    pointing = Input(
        "starcam_pointing", "StructuredDataDict", "A `Pointing`", dimensions=("instrument", "exposure")
    )
    raw = Output("starcam_raw", "NumpyArray", "Counts", dimensions=EXPOSURE)
    header = Output("starcam_header", "StructuredDataDict", "What the camera knows", dimensions=EXPOSURE)


class SimulateConfig(StarTaskConfig, pipelineConnections=SimulateConnections):
    gradient = Field[float]("Largest change of the sky from side to side, as a fraction.", default=0.05)
    cosmicRays = Field[float]("Mean number of cosmic rays in a detector in a second.", default=0.1)


class SimulateTask(StarTask):
    """Simulate the raw image of a detector: the same pixels wherever it runs."""

    ConfigClass = SimulateConfig
    _DefaultName = "simulate"
    config: SimulateConfig

    def run(self, *, catalog: Table, pointing: Info, bias: Image, flat: Image, detector: int) -> Struct:
        told = Pointing(**pointing)
        options = {"tilt": self.config.gradient, "rays": self.config.cosmicRays}
        raw = simulate_raw(catalog, told, detector, bias=bias, flat=flat, **options)
        return Struct(raw=raw, header=make_header(told, detector))


class IsrConnections(CalibrationConnections, dimensions=EXPOSURE):
    raw = Input("starcam_raw", "NumpyArray", "Counts", dimensions=EXPOSURE)
    header = Input("starcam_header", "StructuredDataDict", "What the camera knows", dimensions=EXPOSURE)
    image = Output("post_isr_image", "NumpyArray", "Electrons", dimensions=EXPOSURE)


class IsrConfig(StarTaskConfig, pipelineConnections=IsrConnections):
    cosmicRay = Field[float]("Standard deviations by which a cosmic ray is sharper than a star.", default=6.0)
    sharpest = Field[float]("Sigma of the sharpest stars that there are, pixels.", default=0.9)


class IsrTask(StarTask):
    """Turn counts into electrons, with their variance, without saturated pixels and cosmic rays."""

    ConfigClass = IsrConfig
    _DefaultName = "isr"
    config: IsrConfig

    def run(self, *, raw: npt.NDArray[np.uint16], header: Info, bias: Image, flat: Image) -> Struct:
        response = flat.astype(float)
        electrons = (raw.astype(float) - bias) * header["gain"]
        variance = np.clip(electrons, 0.0, None) + header["read_noise"] ** 2
        planes = np.stack([electrons / response, variance / response**2]).astype(np.float32)
        saturated = electrons >= 0.98 * header["full_well"]
        hit = find_cosmic_rays(*planes, sharpest=self.config.sharpest, threshold=self.config.cosmicRay)
        planes[:, saturated | hit] = np.nan
        found = {
            "median": float(np.nanmedian(planes[0])),
            "saturated": int(np.count_nonzero(saturated)),
            "cosmic_rays": int(np.count_nonzero(hit)),
        }
        for name, value in found.items():
            self.metadata[name] = value
        self.log.info("Level, pixels saturated and pixels hit by cosmic rays: %s", found)
        return Struct(image=planes)


class CharacterizeConnections(PipelineTaskConnections, dimensions=DETECTOR):
    images = Input("post_isr_image", "NumpyArray", "Snaps", dimensions=EXPOSURE, multiple=True)
    headers = Input(
        "starcam_header", "StructuredDataDict", "What the camera knows", dimensions=EXPOSURE, multiple=True
    )
    reference = PrerequisiteInput(
        "starcam_reference", "ArrowAstropy", "Stars of known place and brightness", dimensions=("instrument",)
    )
    schema = InitOutput("source_schema", "StructuredDataDict", "Columns of the sources, with their units")
    calibrated = Output(
        "calibrated_image", "NumpyArray", "Nanojansky, without background", dimensions=DETECTOR
    )
    info = Output(
        "calibrated_image_info", "StructuredDataDict", "Place, seeing, zero point, depth", dimensions=DETECTOR
    )
    sources = Output("source_table", "ArrowAstropy", "Stars found on the image", dimensions=DETECTOR)


class CharacterizeConfig(StarTaskConfig, pipelineConnections=CharacterizeConnections):
    threshold = Field[float]("Least signal-to-noise ratio of a star.", default=5.0)
    brightest = Field[int]("Number of the brightest stars that give the seeing.", default=60)


class CharacterizeTask(StarTask):
    """Find the stars of an image, and calibrate it with a reference catalogue."""

    ConfigClass = CharacterizeConfig
    _DefaultName = "characterize"
    config: CharacterizeConfig

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        units = {"x": "pixel", "y": "pixel", "ra": "deg", "dec": "deg", "flux": "nJy", "flux_err": "nJy"}
        self.schema = {"columns": units | {"snr": ""}}

    def run(
        self, *, images: dict[int, Image], headers: dict[int, Info], reference: Table, band: str
    ) -> Struct:
        image, variance = np.sum([images[key].astype(float) for key in images], axis=0)
        background = fit_background(image)
        image = image - background
        x, y, sigma = self._find(image, variance)
        psf = Psf.gaussian(sigma)
        flux, error, _ = fit_fluxes(image, variance, psf, x, y)
        known = flux > 0
        x, y, flux, error = x[known], y[known], flux[known], error[known]
        fit = calibrate(x, y, flux, reference, band=band, wcs=WCS(headers[min(headers)]["wcs"]))
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


class VisitSummaryConnections(PipelineTaskConnections, dimensions=VISIT):
    infos = Input(
        "calibrated_image_info", "StructuredDataDict", "Its detectors", dimensions=DETECTOR, multiple=True
    )
    summary = Output("visit_summary", "ArrowAstropy", "A row a detector", dimensions=VISIT)


class VisitSummaryConfig(StarTaskConfig, pipelineConnections=VisitSummaryConnections):
    worstZeroPoint = Field[float](
        "Magnitudes from the visit's median zero point at which a detector is not good.",
        default=0.3,
    )


class VisitSummaryTask(StarTask):
    """Put what is known of a visit's detectors in one table, and judge them."""

    ConfigClass = VisitSummaryConfig
    _DefaultName = "visitSummary"
    config: VisitSummaryConfig

    def run(self, *, infos: dict[int, Info]) -> Struct:
        table = Table(rows=[{"detector": key} | info | {"wcs": ""} for key, info in infos.items()])
        del table["wcs"]
        distance = np.abs(table["zero_point"] - np.median(table["zero_point"]))
        table["good"] = distance <= self.config.worstZeroPoint
        self.log.info("%d detectors, %d good", len(table), np.count_nonzero(table["good"]))
        return Struct(summary=table)


class MakeWarpConnections(PipelineTaskConnections, dimensions=WARP):
    images = Input(
        "calibrated_image", "NumpyArray", "Detectors that touch it", dimensions=DETECTOR, multiple=True
    )
    infos = Input(
        "calibrated_image_info", "StructuredDataDict", "Where they lie", dimensions=DETECTOR, multiple=True
    )
    summary = Input("visit_summary", "ArrowAstropy", "Which of them are good", dimensions=VISIT)
    layout = Input(
        "sky_layout", "StructuredDataDict", "Where the patches lie", dimensions=("skymap", "tract")
    )
    warp = Output("warp", "NumpyArray", "Nanojansky", dimensions=WARP)
    info = Output("warp_info", "StructuredDataDict", "Seeing, coverage, variance", dimensions=WARP)


class MakeWarpConfig(StarTaskConfig, pipelineConnections=MakeWarpConnections):
    worstSeeing = Field[float]("Sigma of the widest stars of an image that is used, pixels.", default=2.5)


class MakeWarpTask(StarTask):
    """Resample the detectors of a visit to the pixels of a patch."""

    ConfigClass = MakeWarpConfig
    _DefaultName = "makeWarp"
    config: MakeWarpConfig

    def run(
        self, *, images: dict[int, Image], infos: dict[int, Info], summary: Table, layout: Info, patch: int
    ) -> Struct:
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


class AssembleCoaddConnections(PipelineTaskConnections, dimensions=COADD):
    warps = Input("warp", "NumpyArray", "What to add", dimensions=WARP, multiple=True)
    infos = Input("warp_info", "StructuredDataDict", "Their weights", dimensions=WARP, multiple=True)
    coadd = Output("coadd", "NumpyArray", "Nanojansky", dimensions=COADD)
    info = Output("coadd_info", "StructuredDataDict", "Shape of stars, depth", dimensions=COADD)


class AssembleCoaddConfig(StarTaskConfig, pipelineConnections=AssembleCoaddConnections):
    fewestWarps = Field[int]("Warps without which there is no coadd.", default=1)


class AssembleCoaddTask(StarTask):
    """Add the warps of a band up, each with one weight, so that the shape of stars is known."""

    ConfigClass = AssembleCoaddConfig
    _DefaultName = "assembleCoadd"
    config: AssembleCoaddConfig

    def run(self, *, warps: dict[int, Image], infos: dict[int, Info]) -> Struct:
        if len(warps) < self.config.fewestWarps:
            raise NoWorkFound(f"{len(warps)} warps, {self.config.fewestWarps} are asked for")
        shape = next(iter(warps.values())).shape[1:]
        image, variance, total = np.zeros((3, *shape))
        weights = {visit: 1.0 / infos[visit]["variance"] for visit in warps}
        for visit, weight in weights.items():
            pixels, noise = warps[visit].astype(float)
            good = np.isfinite(pixels) & np.isfinite(noise)
            image += np.where(good, weight * pixels, 0.0)
            variance += np.where(good, weight**2 * noise, 0.0)
            total += np.where(good, weight, 0.0)
        weight_there = np.where(total > 0.0, total, np.nan)
        planes = np.stack([image / weight_there, variance / weight_there**2])
        shares = {visit: weights[visit] * infos[visit]["coverage"] for visit in warps}
        whole = sum(shares.values())
        psf = Psf([[share / whole, infos[visit]["psf_sigma"]] for visit, share in shares.items()])
        info = {
            "psf": psf.components,
            "visits": sorted(warps),
            "coverage": float(np.mean(total > 0.0)),
            "depth": depth(planes[1], psf),
        }
        self.metadata["warps"] = len(warps)
        self.log.info("%d warps, depth %.2f mag", len(warps), info["depth"])
        return Struct(coadd=planes.astype(np.float32), info=info)


class MeasureObjectsConnections(PipelineTaskConnections, dimensions=PATCH):
    coadds = Input("coadd", "NumpyArray", "The patch in all bands", dimensions=COADD, multiple=True)
    infos = Input("coadd_info", "StructuredDataDict", "Shape of stars", dimensions=COADD, multiple=True)
    layout = Input("sky_layout", "StructuredDataDict", "Where the patch lies", dimensions=("skymap", "tract"))
    objects = Output("patch_object_table", "ArrowAstropy", "Objects of the patch", dimensions=PATCH)


class MeasureObjectsConfig(StarTaskConfig, pipelineConnections=MeasureObjectsConnections):
    threshold = Field[float]("Least signal-to-noise ratio, all bands together.", default=5.0)


class MeasureObjectsTask(StarTask):
    """Find the objects of a patch on all bands together, and measure each band at the same places."""

    ConfigClass = MeasureObjectsConfig
    _DefaultName = "measureObjects"
    config: MeasureObjectsConfig

    def run(
        self, *, coadds: dict[str, Image], infos: dict[str, Info], layout: Info, tract: int, patch: int
    ) -> Struct:
        sky = SkyLayout(**layout)
        bands = {band: (*coadds[band].astype(float), Psf(infos[band]["psf"])) for band in coadds}
        significances = [matched_filter(*planes_and_psf) for planes_and_psf in bands.values()]
        # A star of the same ratio in n bands has sqrt(n) times it in all.
        seen = np.sum([values != 0.0 for values in significances], axis=0)
        together = np.sum(significances, axis=0) / np.sqrt(np.maximum(seen, 1))
        x, y, height = find_peaks(together, self.config.threshold)
        rows, columns = sky.image(patch)
        tract_x, tract_y = x + columns.start, y + rows.start
        own = sky.owner(tract_x, tract_y) == patch
        if not own.any():
            raise NoWorkFound("no object is found")
        ra, dec = sky.wcs.wcs_pix2world(tract_x, tract_y, 0)
        table = Table(
            {
                "object_id": (tract * 1000 + patch) * 1_000_000 + np.cumsum(own) - 1,
                "tract": np.full(own.shape, tract),
                "patch": np.full(own.shape, patch),
                "ra": ra,
                "dec": dec,
                "x": tract_x,
                "y": tract_y,
                "snr": height,
                "extended": np.zeros(own.shape),
            }
        )
        for band, (image, variance, psf) in bands.items():
            flux, error, residual = fit_fluxes(image, variance, psf, x, y)
            table["extended"] += compare_with_galaxy(residual, variance, psf, x, y, flux)
            table[f"{band}_flux"], table[f"{band}_flux_err"] = flux, error
            # What is not positive has no magnitude.
            table[f"{band}_mag"] = AB_ZERO_POINT - 2.5 * np.log10(np.where(flux > 0, flux, np.nan))
        # By three standard deviations more like a galaxy than a star.
        table["extended"] = table["extended"] > 9.0
        table = table[own]
        self.metadata["objects"] = len(table)
        self.log.info("%d objects in bands %s", len(table), ", ".join(bands))
        return Struct(objects=table)


class ObjectTableConnections(PipelineTaskConnections, dimensions=TRACT):
    patches = Input(
        "patch_object_table", "ArrowAstropy", "Objects of each patch", dimensions=PATCH, multiple=True
    )
    table = Output("object_table", "ArrowAstropy", "Objects of the tract", dimensions=TRACT)


class ObjectTableConfig(StarTaskConfig, pipelineConnections=ObjectTableConnections):
    sameRadius = Field[float]("Pixels within which objects of two patches are the same one.", default=1.0)


class ObjectTableTask(StarTask):
    """Join the objects of all patches of a tract."""

    ConfigClass = ObjectTableConfig
    _DefaultName = "objectTable"
    config: ObjectTableConfig

    def run(self, *, patches: dict[int, Table]) -> Struct:
        # Noise can put one star on either side of the line between two patches.
        for first, second in itertools.combinations(patches.values(), 2):
            radius = self.config.sameRadius
            _, repeated = match(first["x"], first["y"], second["x"], second["y"], radius=radius)
            second.remove_rows(repeated)
        table = vstack(list(patches.values()), join_type="outer")
        # A patch may lack a band: its images failed, or there are none.
        table = table.filled(np.nan) if table.has_masked_columns else table
        self.metadata["objects"] = len(table)
        self.log.info("%d objects of %d patches", len(table), len(patches))
        return Struct(table=table)
