"""A Butler repository to simulate and process exposures in: making it, the BPS configuration of a run on it,
and whether all that a run should have made is in it.
"""

from __future__ import annotations

__all__ = [
    "BASE_CONFIG",
    "INPUTS",
    "PROMPT_CONFIG",
    "RUN_CONFIG",
    "SKYMAP",
    "check_inputs",
    "count_outputs",
    "count_quanta",
    "create_repo",
    "is_current",
    "is_demo",
    "make_pointing",
    "missing_outputs",
    "name_sky",
    "render_portal_config",
    "render_run_config",
    "visit_records",
]

import hashlib
import importlib.util
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from astropy.table import Table, vstack  # type: ignore[import-untyped]
from astropy.time import Time, TimeDelta  # type: ignore[import-untyped]
from lsst.daf.butler import (  # type: ignore[attr-defined]
    Butler,
    CollectionType,
    DatasetType,
    MissingCollectionError,
    Timespan,
)
from lsst.sphgeom import DISJOINT, ConvexPolygon

from ..errors import SettingsError
from .choices import FARTHEST, Choices, DemoRepo, parse_choices, render_options, render_values
from .geometry import FocalPlane, SkyLayout, offset, region
from .instrument import BANDS, StarCam, filter_name
from .simulate import NEEDS_GALSIM, Pointing, is_galaxy, make_catalog, make_detector, read_catalog, read_table

INPUTS = "StarCam/defaults"
"""Collection that holds all that the pipeline needs."""

SKYMAP = "starcam_sky"
"""Name of the sky map; it has a tract for each place, the first one is number 0."""

BASE_CONFIG = "resource://lsst.ctrl.bps.panda.demo/bps_demo.yaml"
PORTAL_CONFIG = "resource://lsst.ctrl.bps.panda.demo/bps_portal.yaml"
PROMPT_CONFIG = "resource://lsst.ctrl.bps.panda.demo/bps_prompt.yaml"
RUN_CONFIG = "demo.yaml"
"""File in the repository that `bps submit` takes."""

_CONTENT = "Inputs of the demo's pipeline, version 3"
"""What the repository says of `INPUTS`.  The version grows whenever the pipeline needs something else."""

_POINTING_RUN = "StarCam/pointing"
_CALIB = "StarCam/calib"
_CALIB_RUN = "StarCam/calib/run"
_SKY_RUN = "StarCam/sky"
_CENTRE = 62.0, -37.0
_DAY = 20260315
_START = Time("2026-03-15T23:30:00", scale="tai")
_MOST_VISITS = 999
"""Their numbers have three digits."""

_DITHER = 12.0
"""Arcseconds that visits wander, at least."""

_DATASET_TYPES = {
    "starcam_pointing": (("instrument", "exposure"), "StructuredDataDict", False),
    "starcam_bias": (("instrument", "detector"), "NumpyArray", True),
    "starcam_flat": (("instrument", "physical_filter", "detector"), "NumpyArray", True),
    "starcam_reference": (("instrument",), "ArrowAstropy", False),
    "starcam_catalog": (("instrument",), "ArrowAstropy", False),
    "sky_layout": (("skymap", "tract"), "StructuredDataDict", False),
}
"""Dimensions and storage class of the pipeline's inputs, and whether they are calibrations."""


_NUMBERS = ("ra", "dec", "rotation", "seeing", "sky", "transparency", "exposure_time")


class _Field:
    """The catalogue, the pointings and the sky map of a repository, read or made up."""

    def __init__(self, demo: DemoRepo) -> None:
        self.demo = demo
        self.camera = FocalPlane(demo.detectors)
        table = read_table(demo.pointings, ("ra", "dec", "band"), _NUMBERS) if demo.pointings else None
        self.bands = demo.bands if table is None else tuple(dict.fromkeys(map(str, table["band"])))
        if unknown := [band for band in self.bands if band not in BANDS]:
            raise SettingsError(
                f"{demo.pointings}: band {unknown[0]!r} is unknown; there are {','.join(BANDS)}"
            )
        self._given = [read_catalog(path, self.bands) for path in demo.catalog]
        self._made_up = demo.place or (() if self._given or table is not None else (_CENTRE,))
        places = [*self._made_up, *map(_middle, self._given)]
        centres = places if table is None else [_middle(table)]
        self.layouts = [SkyLayout(*centre, patches=demo.patches) for centre in centres]
        self.pointings = self._make_pointings(table)
        if table is not None and not self._given:
            self._made_up = tuple(centres)
        galaxies = demo.galaxies if self._made_up else any(is_galaxy(each).any() for each in self._given)
        if galaxies and importlib.util.find_spec("galsim") is None:
            raise SettingsError(f"there are galaxies in the catalogue; {NEEDS_GALSIM}", key="galaxies")

    def make_catalog(self) -> Table:
        """Put all that is in the sky together."""
        half_width = max(self.layouts[0].width, self.camera.width) / 2.0 + 2.0 * _DITHER + 10.0
        fields = [
            make_catalog(*centre, half_width, rng=self.demo.rng(3, *number), galaxies=self.demo.galaxies)
            # The first field of several is what it is alone.
            for centre, number in zip(self._made_up, ((), *((n,) for n in range(1, 99))), strict=False)
        ]
        return vstack([*fields, *self._given], join_type="inner")

    def _make_pointings(self, table: Table | None) -> tuple[Pointing, ...]:
        """Make up what the user does not say."""
        demo, rng = self.demo, self.demo.rng(1)
        visits = [{"band": band} for band in self.bands for _ in range(demo.visits_per_band)]
        rows = [(row, layout) for layout in self.layouts for row in visits]
        if table is not None:
            given = [dict(zip(table.colnames, row, strict=True)) for row in table]
            rows = [(row, self.layouts[0]) for row in given]
        if len(rows) > _MOST_VISITS:
            raise SettingsError(f"there are {len(rows)} visits; a night has {_MOST_VISITS} at most")
        return tuple(
            make_pointing(demo, number, row, layout, rng)
            for number, (row, layout) in enumerate(rows, start=1)
        )


def make_pointing(
    demo: DemoRepo, number: int, row: Mapping[str, Any], layout: SkyLayout, rng: np.random.Generator
) -> Pointing:
    """Make a pointing of what is known of it, its band at least, and make up the rest."""
    reach = max(0.0, (layout.width - FocalPlane(demo.detectors).width) / 2.0) + _DITHER
    place = offset(layout.ra, layout.dec, *rng.uniform(-reach, reach, 2))
    ra, dec = float(row.get("ra", place[0])), float(row.get("dec", place[1]))
    recorded = offset(ra, dec, *rng.normal(0.0, 0.8, 2))
    values = {
        "ra": ra,
        "dec": dec,
        "recorded_ra": recorded[0],
        "recorded_dec": recorded[1],
        "rotation": rng.uniform(-4.0, 4.0),
        "seeing": rng.uniform(0.75, 1.2),
        "sky": BANDS[row["band"]].sky + rng.uniform(-0.3, 0.1),
        "transparency": rng.uniform(0.85, 1.0),
        "exposure_time": demo.exposure_time,
    } | ({} if demo.seeing is None else {"seeing": demo.seeing})
    return Pointing(
        exposure=_DAY % 1_000_000 * 1000 + number,
        band=str(row["band"]),
        detectors=demo.detectors,
        seed=demo.seed,
        **{name: float(row.get(name, value)) for name, value in values.items()},
    )


def _middle(table: Table) -> tuple[float, float]:
    """Give the middle of places that are near each other, also across right ascension 0."""
    ra, dec = np.asarray(table["ra"]), np.asarray(table["dec"])
    off = (ra - ra[0] + 180.0) % 360.0 - 180.0
    middle = float(dec.min() + dec.max()) / 2.0
    if abs(middle) > FARTHEST:
        raise SettingsError(
            f"the middle of what is to be observed is at declination {middle:g}; it must be within "
            f"{FARTHEST:g} degrees of the equator",
            key="catalog",
        )
    return float(ra[0] + (off.min() + off.max()) / 2.0) % 360.0, middle


def create_repo(path: str | os.PathLike[str], **options: Any) -> DemoRepo:
    """Make a Butler repository in which the pipeline can simulate and process exposures.

    The repository appears at its place when it is complete, not before.

    Parameters
    ----------
    path : path-like
        Where; must not exist, or be an empty directory.
    **options : `object`
        Fields of `DemoRepo`.

    Returns
    -------
    demo : `DemoRepo`
        What will be simulated.

    Raises
    ------
    .SettingsError
        Raised if an option makes no sense, or a file cannot be used.
    FileExistsError
        Raised if there is something at the path.
    """
    demo = parse_choices(DemoRepo, options)
    field = _Field(demo)
    target = Path(path).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"there is something at {target}: name another path, or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    # No dot in the name: the Butler would take it for that of a file.
    growing = target.with_name(f"starcam-{uuid.uuid4().hex}")
    try:
        Butler.makeRepo(str(growing))
        with Butler.from_config(str(growing), writeable=True) as butler:
            _fill(butler, field)
        (growing / RUN_CONFIG).write_text(render_run_config(target), encoding="utf-8")
        os.replace(growing, target)
    finally:
        shutil.rmtree(growing, ignore_errors=True)
    return demo


def count_quanta(choices: Choices) -> dict[str, int]:
    """Count the quanta of each task that a run of these choices will have, as the quantum graph finds them:
    by the places of detectors and patches on the sky.
    """
    field = _Field(choices)
    images = len(field.pointings) * len(choices.chosen_detectors)
    counts = {"simulate": images}
    if choices.steps != "simulate":
        counts |= {"isr": images, "characterize": images}
    if choices.steps != "coadds":
        return counts
    patches = {
        (tract, patch): where
        for tract, layout in enumerate(field.layouts)
        for patch, where in enumerate(_patch_regions(layout))
    }
    warps = {
        (*patch, number)
        for number, pointing in enumerate(field.pointings)
        for detector in _detector_regions(pointing, choices.chosen_detectors)
        for patch, where in patches.items()
        if not where.relate(detector) & DISJOINT
    }
    counts |= {"visitSummary": len(field.pointings), "makeWarp": len(warps)}
    seen = {(tract, patch, field.pointings[number].band) for tract, patch, number in warps}
    counts["assembleCoadd"] = len(seen)
    counts["measureObjects"] = len({place[:2] for place in seen})
    counts["objectTable"] = len({tract for tract, *_ in seen})
    return counts


def is_demo(repo: str | os.PathLike[str]) -> bool:
    """Tell whether a directory is a repository of the demo."""
    return (Path(repo) / RUN_CONFIG).is_file()


def is_current(repo: str | os.PathLike[str]) -> bool:
    """Tell whether a repository holds what the pipeline of today needs, not that of an older version."""
    with Butler.from_config(str(repo)) as butler:
        return _has_inputs(butler)


def _fill(butler: Any, field: _Field) -> None:
    StarCam().register(butler.registry, detectors=field.demo.detectors)
    with butler.transaction():
        _insert_sky(butler.registry, field.layouts)
        _insert_visits(butler.registry, field)
    for name, (dimensions, storage_class, is_calibration) in _DATASET_TYPES.items():
        butler.registry.registerDatasetType(
            DatasetType(
                name, dimensions, storage_class, universe=butler.dimensions, isCalibration=is_calibration
            )
        )
    for run in (_POINTING_RUN, _CALIB_RUN, _SKY_RUN):
        butler.collections.register(run, CollectionType.RUN)
    _put_sky(butler, field)
    _put_calibrations(butler, field)
    for pointing in field.pointings:
        data_id = {"instrument": StarCam.getName(), "exposure": pointing.exposure}
        butler.put(asdict(pointing), "starcam_pointing", data_id, run=_POINTING_RUN)
    butler.collections.register(INPUTS, CollectionType.CHAINED, doc=_CONTENT)
    butler.collections.redefine_chain(INPUTS, [_POINTING_RUN, _CALIB, _SKY_RUN])


def _insert_sky(registry: Any, layouts: Sequence[SkyLayout]) -> None:
    size = layouts[0].patches
    skymap = {
        "name": SKYMAP,
        "hash": uuid.uuid5(uuid.NAMESPACE_URL, repr(layouts)).bytes,
        "tract_max": len(layouts),
        "patch_nx_max": size,
        "patch_ny_max": size,
    }
    registry.insertDimensionData("skymap", skymap)
    for number, layout in enumerate(layouts):
        tract = {"skymap": SKYMAP, "tract": number}
        around = region(layout.wcs, margin=-layout.border)
        registry.insertDimensionData("tract", {"skymap": SKYMAP, "id": number, "region": around})
        for patch, where in enumerate(_patch_regions(layout)):
            row, column = divmod(patch, size)
            record = {"id": patch, "cell_x": column, "cell_y": row, "region": where}
            registry.insertDimensionData("patch", tract | record)


def _patch_regions(layout: SkyLayout) -> list[ConvexPolygon]:
    return [region(layout.wcs[layout.image(patch)]) for patch in range(layout.patches**2)]


def _insert_visits(registry: Any, field: _Field) -> None:
    name = StarCam.getName()
    registry.insertDimensionData("visit_system", {"instrument": name, "id": 0, "name": "one-to-one"})
    night = Timespan(_START - TimeDelta(0.5, format="jd"), _START + TimeDelta(0.5, format="jd"))
    registry.insertDimensionData("day_obs", {"instrument": name, "id": _DAY, "timespan": night})
    for element, rows in visit_records(field.pointings).items():
        registry.insertDimensionData(element, *rows)


def visit_records(pointings: Sequence[Pointing], *, first: int = 1) -> dict[str, list[dict[str, Any]]]:
    """Make the dimension records of visits, in an order they can be inserted in; ``first`` is the number of
    the first one in its night, and tells when it begins.
    """
    records: dict[str, list[dict[str, Any]]] = {}
    begin = _START + TimeDelta(60.0 * (first - 1), format="sec")
    for sequence, pointing in enumerate(pointings, start=first):
        end = begin + TimeDelta(pointing.exposure_time, format="sec")
        for element, rows in _records_of(pointing, sequence, Timespan(begin, end)).items():
            records.setdefault(element, []).extend({"instrument": StarCam.getName()} | row for row in rows)
        begin = end + TimeDelta(30.0, format="sec")
    return records


def _records_of(pointing: Pointing, sequence: int, timespan: Timespan) -> dict[str, list[dict[str, Any]]]:
    number, text = pointing.exposure, f"SC_{pointing.exposure}"
    common: dict[str, Any] = {
        "id": number,
        "day_obs": _DAY,
        "physical_filter": filter_name(pointing.band),
        "exposure_time": pointing.exposure_time,
        "seq_num": sequence,
        "target_name": "star field",
        "timespan": timespan,
    }
    exposure = common | {
        "group": text,
        "obs_id": text,
        "observation_type": "science",
        "tracking_ra": pointing.ra,
        "tracking_dec": pointing.dec,
        "sky_angle": pointing.rotation,
    }
    regions = _detector_regions(pointing, range(pointing.detectors))
    hull = ConvexPolygon([vertex for part in regions for vertex in part.getVertices()])
    return {
        "group": [{"name": text}],
        "exposure": [exposure],
        "visit": [common | {"name": text, "region": hull}],
        "visit_definition": [{"exposure": number, "visit": number}],
        "visit_system_membership": [{"visit_system": 0, "visit": number}],
        "visit_detector_region": [
            {"visit": number, "detector": detector, "region": part} for detector, part in enumerate(regions)
        ],
    }


def _detector_regions(pointing: Pointing, detectors: Iterable[int]) -> list[ConvexPolygon]:
    # Regions reach over the edges, as the pointing in the headers is not exact.
    recorded = pointing.recorded_ra, pointing.recorded_dec, pointing.rotation
    camera = FocalPlane(pointing.detectors)
    return [region(camera.wcs(detector, *recorded), margin=10) for detector in detectors]


def _put_sky(butler: Any, field: _Field) -> None:
    name, truth = StarCam.getName(), field.make_catalog()
    for tract, layout in enumerate(field.layouts):
        butler.put(asdict(layout), "sky_layout", skymap=SKYMAP, tract=tract, run=_SKY_RUN)
    butler.put(truth, "starcam_catalog", instrument=name, run=_SKY_RUN)
    rng = field.demo.rng(4)
    bands = [band for band in BANDS if band in truth.colnames]
    reference = truth[(np.asarray(truth["r" if "r" in bands else bands[0]]) < 21.0) & ~is_galaxy(truth)]
    error = 0.02 / 3600.0
    reference["dec"] += rng.normal(0.0, error, len(reference))
    reference["ra"] += rng.normal(0.0, error, len(reference)) / np.cos(np.radians(reference["dec"]))
    for band in bands:
        reference[band] += rng.normal(0.0, 0.01, len(reference))
    butler.put(reference, "starcam_reference", instrument=name, run=_SKY_RUN)


def _put_calibrations(butler: Any, field: _Field) -> None:
    """Put bias and flats as calibrations that are valid always."""
    name, refs = StarCam.getName(), []
    for detector in range(field.camera.detectors):
        bias, flats = make_detector(field.camera.size, field.bands, field.demo.rng(2, detector))
        refs.append(butler.put(bias, "starcam_bias", instrument=name, detector=detector, run=_CALIB_RUN))
        for band, flat in flats.items():
            data_id = {"instrument": name, "detector": detector, "physical_filter": filter_name(band)}
            refs.append(butler.put(flat, "starcam_flat", data_id, run=_CALIB_RUN))
    butler.collections.register(_CALIB, CollectionType.CALIBRATION)
    butler.registry.certify(_CALIB, refs, Timespan(None, None))


def _has_inputs(butler: Butler) -> bool:
    try:
        return bool(butler.registry.getCollectionDocumentation(INPUTS) == _CONTENT)
    except MissingCollectionError:
        return False


def check_inputs(butler: Butler) -> None:
    """Refuse a repository that was made by another version of the demo.

    Raises
    ------
    .SettingsError
        Raised if the pipeline of today cannot use it.
    """
    if not _has_inputs(butler):
        raise SettingsError(
            "the Butler repository was made by another version of the demo, and the pipeline of this one "
            "cannot use it: make a new one with 'python -m lsst.ctrl.bps.panda.demo create', and submit its "
            "demo.yaml, or name it as butlerConfig"
        )


def render_run_config(
    repo: str | os.PathLike[str], *, settings: Mapping[str, object] | None = None, base: str = BASE_CONFIG
) -> str:
    """Give a BPS configuration as text: of a repository, and with more keys of BPS.

    ``base`` is the configuration that is included: `BASE_CONFIG`, or `PROMPT_CONFIG`.  The repository is
    named by a URI, which no blank or quote in its path can break.
    """
    keys = {"includeConfigs": [base], "butlerConfig": Path(repo).absolute().as_uri()}
    return yaml.safe_dump({**keys, **(settings or {})}, sort_keys=False, allow_unicode=True)


def name_sky(choices: Choices) -> str:
    """Return a name for the repository of these choices, which no other one has."""
    return hashlib.sha256(f"{_CONTENT} {render_options(choices)}".encode()).hexdigest()[:16]


def render_portal_config(choices: Choices, repo: str | os.PathLike[str], *, service: str) -> str:
    """Give a BPS configuration as text that makes a repository of these choices unless it is there, and
    simulates and processes what they say.
    """
    pipeline = "resource://lsst.ctrl.bps.panda.demo/pipeline.yaml"
    query = f"skymap='{SKYMAP}'" if choices.steps == "coadds" else "instrument='StarCam'"
    if choices.only:
        query += f" AND detector IN ({', '.join(map(str, choices.only))})"
    # Runs that are submitted in the same second have names of their own.
    digest = hashlib.sha256(repr([*render_values(choices)]).encode()).hexdigest()[:6]
    settings = {
        "wmsServiceClass": service,
        "skyOptions": render_options(choices),
        "pipelineYaml": pipeline if choices.steps == "coadds" else f"{pipeline}#{choices.steps}",
        "payload": {"payloadName": f"portal_{digest}", "dataQuery": query},
    }
    return render_run_config(repo, settings=settings, base=PORTAL_CONFIG)


def count_outputs(repo: str | os.PathLike[str], run: str) -> Counter[str]:
    """Count the datasets of a run, by dataset type; only those whose files exist count."""
    with Butler.from_config(str(repo)) as butler:
        try:
            refs = butler.query_all_datasets(run, limit=None)
        except MissingCollectionError:
            refs = []
        return Counter(ref.datasetType.name for ref, is_there in butler.stored_many(refs).items() if is_there)


def missing_outputs(repo: str | os.PathLike[str], run: str) -> tuple[str, ...]:
    """Tell what a run of the whole pipeline should have made and has not, a text a dataset type."""
    with Butler.from_config(str(repo), collections=INPUTS) as butler:
        elements = ("visit", "detector", "patch", "tract")
        visits, detectors, patches, tracts = (
            butler.query_dimension_records(name, limit=None) for name in elements
        )
    bands = {record.physical_filter for record in visits}
    images = ("starcam_raw", "post_isr_image", "calibrated_image", "source_table")
    least = dict.fromkeys(images, len(visits) * len(detectors)) | {
        "visit_summary": len(visits),
        "warp": len(visits),
        "coadd": len(patches) * len(bands),
        "patch_object_table": len(patches),
        "object_table": len(tracts),
    }
    counts = count_outputs(repo, run)
    return tuple(
        f"{counts[name]} of {number} {name}" for name, number in least.items() if counts[name] < number
    )
