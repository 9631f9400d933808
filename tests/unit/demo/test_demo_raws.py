"""Raw images of the demo's camera as files, and their ingestion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lsst.daf.butler import Butler

from lsst.ctrl.bps.panda.demo.raws import expose, ingest_raws, read_raw
from lsst.ctrl.bps.panda.demo.repository import create_repo

RUN = "StarCam/raw/all"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raws")
    create_repo(path / "repo", visits_per_band=0, detectors=2, patches=1)
    return path


def test_images_are_whole_when_they_appear_and_are_ingested_once(place: Path) -> None:
    (files,) = expose(place / "repo", place / "images", 1, first=7)
    assert {path.name for path in (place / "images").iterdir()} == {path.name for path in files}
    paths = [*map(str, files)]
    with Butler.from_config(str(place / "repo"), writeable=True) as butler:
        ids = ingest_raws(butler, paths, run=RUN)
        assert ids == ingest_raws(butler, paths, run=RUN)
        refs = butler.query_datasets("starcam_raw", collections=RUN)
        assert len(refs) == len(ids) == 2
        pixels = butler.get("starcam_raw", ids[1], collections=RUN)
        assert np.array_equal(pixels, read_raw(paths[1])[0])
        (visit,) = butler.query_dimension_records("visit")
        assert visit.id == ids[0]["exposure"]


def test_a_cut_image_is_refused(place: Path) -> None:
    (files,) = expose(place / "repo", place / "others", 1, first=8)
    content = files[0].read_bytes()
    for length in (0, 100, 2880, len(content) // 2, len(content) - 2880):
        files[0].write_bytes(content[:length])
        with pytest.raises(OSError, match="whole image|Empty or corrupt"):
            read_raw(str(files[0]))
