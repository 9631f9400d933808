"""Making the demo's repository."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from lsst.daf.butler import Butler

from lsst.ctrl.bps.panda.demo.repository import BASE_CONFIG, INPUTS, SKYMAP, create_repo, render_run_config
from lsst.ctrl.bps.panda.errors import SettingsError


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("a place") / "it's a repo"
    create_repo(path, visits_per_band=2, detectors=1, bands=("r", "z"), patches=1, seed=5)
    return path


def test_it_holds_what_was_asked_for(small: Path) -> None:
    with Butler.from_config(str(small), collections=INPUTS) as butler:
        assert len(butler.query_datasets("starcam_raw")) == 4
        records = butler.query_dimension_records("visit", instrument="StarCam")
        assert sorted(record.physical_filter for record in records) == ["star_r"] * 2 + ["star_z"] * 2
        assert len(butler.query_dimension_records("patch", skymap=SKYMAP)) == 1
        raw = butler.get("starcam_raw", instrument="StarCam", exposure=260315001, detector=0)
    assert raw.dtype == np.uint16
    assert 900 < np.median(raw) < 1500
    assert [path.name for path in small.parent.iterdir()] == [small.name]


def test_every_visit_joins_with_the_patch(small: Path) -> None:
    with Butler.from_config(str(small), collections=INPUTS) as butler:
        rows = butler.query_data_ids(
            ("visit", "detector", "patch"), where="instrument='StarCam' AND skymap='starcam_sky'"
        )
    assert len(rows) == 4


@pytest.mark.slow
@pytest.mark.newest
def test_same_seed_same_pixels(small: Path, tmp_path: Path) -> None:
    def first(repo: Path) -> np.ndarray:
        with Butler.from_config(str(repo), collections=INPUTS) as butler:
            return butler.get("starcam_raw", instrument="StarCam", exposure=260315002, detector=0)

    options = {"visits_per_band": 2, "detectors": 1, "bands": ("r", "z"), "patches": 1}
    create_repo(tmp_path / "again", **options, seed=5)
    create_repo(tmp_path / "other", **options, seed=6)
    assert (first(tmp_path / "again") == first(small)).all()
    assert (first(tmp_path / "other") != first(small)).any()


def test_it_does_not_write_over_anything(small: Path) -> None:
    with pytest.raises(FileExistsError, match="it's a repo"):
        create_repo(small)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"visits_per_band": 0}, "visits_per_band is 0"),
        ({"detectors": -1}, "detectors is -1"),
        ({"patches": 0}, "patches is 0"),
        ({"bands": ("g", "q")}, "g,q"),
        ({"bands": ()}, "choose from g,r,i,z"),
        ({"bands": ("g", "g")}, "each once"),
    ],
)
def test_nonsense_is_refused_before_anything_is_made(options: dict, text: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=text):
        create_repo(tmp_path / "repo", **options)
    assert list(tmp_path.iterdir()) == []


def test_run_configuration_names_the_repository_safely(small: Path) -> None:
    config = yaml.safe_load(render_run_config(small, settings={"campaign": "x"}))
    assert config["includeConfigs"] == [BASE_CONFIG]
    assert config["campaign"] == "x"
    assert not set(config["butlerConfig"]) & set(" '\"")
    with Butler.from_config(config["butlerConfig"]) as butler:
        assert INPUTS in butler.collections.query("*")
