"""Raw images of StarCam as files: FITS, one for each detector of an exposure, as a camera's computer would
write them, and their ingestion into a Butler.
"""

from __future__ import annotations

__all__ = ["expose", "ingest_raws", "read_raw"]

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from astropy.io import fits  # type: ignore[import-untyped]
from lsst.daf.butler import Butler, CollectionType, DatasetType  # type: ignore[attr-defined]

from .choices import DemoRepo
from .geometry import SkyLayout
from .instrument import BANDS, StarCam, filter_name
from .repository import INPUTS, SKYMAP, make_pointing, visit_records
from .simulate import Pointing, make_header
from .tasks import EXPOSURE, SimulateTask

_TYPES = {"starcam_raw": "NumpyArray", "starcam_header": "StructuredDataDict"}


def expose(repo: Path, directory: Path, count: int, *, first: int = 1) -> Iterator[list[Path]]:
    """Take exposures of the sky of a repository, and yield the files of each.

    The first one has the number ``first`` in its night.  Each file appears whole, by being renamed.
    """
    name, task = StarCam.getName(), SimulateTask()
    with Butler.from_config(str(repo), collections=INPUTS, instrument=name) as butler:
        catalog = butler.get("starcam_catalog")
        layout = SkyLayout(**butler.get("sky_layout", skymap=SKYMAP, tract=0))
        demo = DemoRepo(detectors=len(butler.query_dimension_records("detector")))
        filters = {
            ref.dataId["physical_filter"] for ref in butler.query_datasets("starcam_flat", find_first=False)
        }
        bands = sorted(band for band in BANDS if filter_name(band) in filters)
        known = {}
        for detector in range(demo.detectors):
            bias = butler.get("starcam_bias", detector=detector)
            for band in bands:
                flat = butler.get("starcam_flat", detector=detector, physical_filter=filter_name(band))
                known[band, detector] = {"bias": bias, "flat": flat, "detector": detector}
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        row = {"band": bands[number % len(bands)]}
        pointing = asdict(make_pointing(demo, number, row, layout, demo.rng(6, number)))
        files = []
        for detector in range(demo.detectors):
            raw = task.run(catalog=catalog, pointing=pointing, **known[row["band"], detector]).raw
            header = fits.Header({"DETECTOR": detector, "SEQNUM": number})
            header["POINTING"] = json.dumps(pointing)
            path = directory / f"SC_{pointing['exposure']}_{detector}.fits"
            partial = path.with_name(f".{path.name}.part")
            fits.PrimaryHDU(raw, header).writeto(partial, overwrite=True)
            files.append(partial.rename(path))
        yield files


def read_raw(path: str) -> tuple[Any, Pointing, int, int]:
    """Read pixels, pointing, detector and number in the night; any fault of the file is an `OSError`."""
    try:
        with warnings.catch_warnings(action="error"), open(path, "rb") as stream:
            image = fits.open(stream, memmap=False)[0]
            pointing = Pointing(**json.loads(image.header["POINTING"]))
            return image.data, pointing, int(image.header["DETECTOR"]), int(image.header["SEQNUM"])
    except (KeyError, TypeError, ValueError, Warning) as error:
        raise OSError(f"{path} is no whole image of StarCam: {error}") from error


def ingest_raws(butler: Butler, paths: Sequence[str], *, run: str) -> list[dict[str, Any]]:
    """Ingest images of an exposure into a collection; what is there already stays.

    Returns
    -------
    data_ids : `list` [`dict`]
        Data ID of each image.
    """
    images = [read_raw(path) for path in paths]
    butler.collections.register(run, CollectionType.RUN)
    for name, storage_class in _TYPES.items():
        butler.registry.registerDatasetType(
            DatasetType(name, EXPOSURE, storage_class, universe=butler.dimensions)
        )
    data_ids = []
    with butler.transaction():
        _, pointing, _, number = images[0]
        for element, rows in visit_records([pointing], first=number).items():
            butler.registry.insertDimensionData(element, *rows, skip_existing=True)
        visit = {"instrument": StarCam.getName(), "exposure": pointing.exposure}
        there = {
            (name, ref.dataId["detector"])
            for name in _TYPES
            for ref in butler.query_datasets(name, collections=run, data_id=visit, explain=False)
        }
        for pixels, pointing, detector, _ in images:
            data_ids.append(visit | {"detector": detector})
            header = make_header(pointing, detector)
            for name, value in (("starcam_raw", pixels), ("starcam_header", header)):
                if (name, detector) not in there:
                    butler.put(value, name, data_ids[-1], run=run)
    return data_ids
