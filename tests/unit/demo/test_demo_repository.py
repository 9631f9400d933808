"""Making the demo's repository."""

import sys
from pathlib import Path

import pytest
import yaml
from astropy.table import Table
from lsst.daf.butler import Butler
from lsst.daf.butler.formatters.parquet import astropy_to_arrow
from lsst.pipe.base import Pipeline
from lsst.pipe.base.all_dimensions_quantum_graph_builder import AllDimensionsQuantumGraphBuilder
from pyarrow import parquet

from lsst.ctrl.bps.panda.demo.repository import (
    BASE_CONFIG,
    INPUTS,
    SKYMAP,
    create_repo,
    is_current,
    render_run_config,
)
from lsst.ctrl.bps.panda.errors import SettingsError


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("a place") / "it's a repo"
    create_repo(path, visits_per_band=2, detectors=1, bands=("r", "z"), patches=1, seed=5)
    return path


def test_it_holds_what_was_asked_for(small: Path) -> None:
    with Butler.from_config(str(small), collections=INPUTS) as butler:
        assert len(butler.query_datasets("starcam_pointing")) == 4
        records = butler.query_dimension_records("visit", instrument="StarCam")
        assert sorted(record.physical_filter for record in records) == ["star_r"] * 2 + ["star_z"] * 2
        assert len(butler.query_dimension_records("patch", skymap=SKYMAP)) == 1
    assert [path.name for path in small.parent.iterdir()] == [small.name]


def test_every_visit_joins_with_the_patch(small: Path) -> None:
    with Butler.from_config(str(small), collections=INPUTS) as butler:
        rows = butler.query_data_ids(
            ("visit", "detector", "patch"), where="instrument='StarCam' AND skymap='starcam_sky'"
        )
    assert len(rows) == 4


def test_detectors_have_rafts_that_a_data_query_can_name(tmp_path: Path) -> None:
    create_repo(tmp_path / "repo", visits_per_band=1, detectors=16, bands=("r",), patches=1)
    with Butler.from_config(str(tmp_path / "repo"), collections=INPUTS) as butler:
        records = butler.query_dimension_records("detector", where="detector.raft = 'R01'")
        assert sorted((record.id, record.full_name) for record in records) == [
            (2, "R01_S00"), (3, "R01_S01"), (6, "R01_S10"), (7, "R01_S11")
        ]  # fmt: skip


@pytest.mark.parametrize("ending", ["csv", "ecsv", "parquet", "fits"])
def test_catalogue_and_pointings_of_a_users(ending: str, tmp_path: Path) -> None:
    catalog = Table({"ra": [359.999, 0.001], "dec": [10, 10], "r": [18, 19], "name": ["a", "b"]})
    pointings = Table({"ra": [359.9995, 0.0005], "dec": [10.0, 10.0], "band": ["r", "r"], "seeing": [0.8, 2]})
    for name, table in (("catalog", catalog), ("pointings", pointings)):
        path = tmp_path / f"{name}.{ending}"
        if ending == "parquet":
            parquet.write_table(astropy_to_arrow(table), path)
        else:
            table.write(path, format={"csv": "ascii.csv", "ecsv": "ascii.ecsv"}.get(ending, ending))
    create_repo(
        tmp_path / "repo", detectors=1, patches=1, exposure_time=45.0,
        catalog=tmp_path / f"catalog.{ending}", pointings=tmp_path / f"pointings.{ending}",
    )  # fmt: skip
    with Butler.from_config(str(tmp_path / "repo"), collections=INPUTS) as butler:
        read = butler.get("starcam_catalog", instrument="StarCam")
        assert read["r"].tolist() == [18.0, 19.0]
        told = butler.get("starcam_pointing", instrument="StarCam", exposure=260315002)
        assert (told["ra"], told["seeing"], told["exposure_time"]) == (0.0005, 2.0, 45.0)
        assert len(butler.query_data_ids(("visit", "detector", "patch"))) == 2


@pytest.mark.parametrize(
    ("which", "text", "words"),
    [
        ("catalog", "ra,dec,g\n1,2,3\n", "x.csv has no column 'r'; it has ra, dec, g"),
        ("catalog", "ra,dec,g,r\n1,2,3,bright\n", "x.csv: column r, row 1 is bright; it must be a number"),
        ("catalog", "ra,dec,g,r\n1,2,3,\n", "x.csv: column r, row 1 is --; it must be a number"),
        ("catalog", "ra,dec,g,r\n", "x.csv has no rows"),
        ("catalog", None, "x.csv cannot be read as CSV"),
        ("pointings", "ra,dec,band\n1,2,u\n", "band 'u' is unknown; there are g,r,i,z"),
        ("pointings", "ra,dec\n1,2\n", "no column 'band'"),
        (
            "pointings",
            "ra,dec,band,seeing\n1,2,r,1\n1,2,r,0\n",
            "x.csv: column seeing, row 2 is 0; it must be a number greater than 0",
        ),
    ],
)
def test_a_wrong_table_is_refused(which: str, text: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match=words):
        create_repo(tmp_path / "repo", **{which: path})
    with pytest.raises(SettingsError, match=r"must end in one of .csv, .ecsv, .fits, .parquet"):
        create_repo(tmp_path / "repo", **{which: tmp_path / "x.doc"})
    assert not (tmp_path / "repo").exists()


def _make_graph(repo: Path) -> object:
    pipeline = Pipeline.from_uri("resource://lsst.ctrl.bps.panda.demo/pipeline.yaml#simulate").to_graph()
    with Butler.from_config(str(repo), writeable=True) as butler:
        return AllDimensionsQuantumGraphBuilder(
            pipeline, butler, input_collections=[INPUTS], output_run="run"
        ).finish()


def test_a_repository_of_another_version_is_told_apart(small: Path, tmp_path: Path) -> None:
    assert is_current(small)
    create_repo(tmp_path / "repo", visits_per_band=1, bands=("r",), detectors=1, patches=1)
    assert _make_graph(tmp_path / "repo")
    with Butler.from_config(str(tmp_path / "repo"), writeable=True) as butler:
        # Older versions left no word at all.
        for content in ("Inputs of the demo's pipeline, version 1", None):
            butler.registry.setCollectionDocumentation(INPUTS, content)
            assert not is_current(tmp_path / "repo")
            with pytest.raises(SettingsError, match="made by another version of the demo.*demo create'"):
                _make_graph(tmp_path / "repo")
        butler.collections.x_remove(INPUTS)
    assert not is_current(tmp_path / "repo")


def test_galaxies_without_galsim_are_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "galsim", None)  # As if it were not installed.
    with pytest.raises(SettingsError, match=r"galaxies need GalSim: pip install .*\[galaxies\]"):
        create_repo(tmp_path / "repo", galaxies=0.01)
    assert list(tmp_path.iterdir()) == []


def test_it_does_not_write_over_anything(small: Path) -> None:
    with pytest.raises(FileExistsError, match="it's a repo"):
        create_repo(small)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"visits_per_band": -1}, "visits_per_band is -1"),
        ({"detectors": -1}, "detectors is -1"),
        ({"patches": 0}, "patches is 0"),
        ({"seeing": 0.0}, "seeing is 0.0; it must be greater than 0"),
        ({"exposure_time": -1.0}, "exposure_time is -1.0"),
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
