"""Images of the demo's camera, processed as they arrive on the embedded PanDA, as a user would have it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from jsonschema import Draft202012Validator
from lsst.daf.butler import Butler
from panda_servers.local import servers, wait_for

from lsst.ctrl.bps.panda.demo.raws import expose, ingest_raws
from lsst.ctrl.bps.panda.demo.repository import create_repo
from lsst.ctrl.bps.panda.demo.workplace import LOCAL_SERVICE, Workplace
from lsst.ctrl.bps.panda.insight.documents import read_schema
from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.local.guard import marked_processes
from lsst.ctrl.bps.panda.prompt.catalog import Catalog, GroupState
from lsst.ctrl.bps.panda.prompt.process import CATALOG_NAME, find_process, state_directory

pytestmark = pytest.mark.slow

_BIN = Path(sys.executable).parent
_NIGHT = "u/quick/prompt/20260315"
_TYPES = ("source_table", "visit_summary")


class Camera:
    """A repository, images to come, and the processing of a configuration."""

    def __init__(self, directory: Path, exposures: int, **section: object) -> None:
        self.place = Workplace(directory)
        self.variables: dict[str, str] = {}
        directory.mkdir()
        create_repo(self.place.repo, visits_per_band=0, detectors=2, patches=1)
        self.exposures = list(expose(self.place.repo, directory / "camera", exposures))
        self.incoming = directory / "incoming"
        self.incoming.mkdir()
        self.config = directory / "night.yaml"
        self.write(**section)

    def write(self, service: str = LOCAL_SERVICE, **section: object) -> None:
        content = {
            "includeConfigs": ["resource://lsst.ctrl.bps.panda.demo/bps_prompt.yaml"],
            "butlerConfig": self.place.repo.as_uri(),
            "wmsServiceClass": service,
            "operator": "quick",
            "computeSite": "local",
            "submitPath": f"{self.place.directory}/submit/{{outputRun}}",
            "prompt": {"directory": str(self.incoming), "images": 2, "patience": 1000, **section},
        }
        self.config.write_text(yaml.safe_dump(content))

    def call(self, *words: str, given: str | None = None) -> str:
        done = subprocess.run(
            [str(_BIN / words[0]), *words[1:]],
            env=self.place.environment() | self.variables,
            cwd=self.place.directory,
            input=given,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        return done.stdout

    def prompt(self, command: str, *options: str, given: str | None = None) -> str:
        return self.call("panda_bps", "prompt", command, str(self.config), *options, given=given)

    def arrive(self, number: int) -> None:
        for file in self.exposures[number]:
            partial = self.incoming / f"{file.name}.part"
            shutil.copy(file, partial)
            partial.rename(self.incoming / file.name)

    def report(self) -> dict[str, Any]:
        document = json.loads(self.prompt("report", "--json"))
        Draft202012Validator(read_schema()).validate(document)
        return dict(document)

    def wait(self, number: int, *, timeout: float = 300.0) -> dict[str, Any]:
        """Wait until so many groups have ended."""
        found: dict[str, Any] = {}

        def ended() -> bool:
            nonlocal found
            found = self.report()
            return bool(found["counts"]["done"] + found["counts"]["failed"] >= number)

        wait_for(ended, f"{number} groups, but {found}", timeout=timeout)
        return found

    def log(self) -> str:
        return (state_directory(self.config) / "prompt.log").read_text()

    def rows(self, collection: str) -> dict[str, dict[str, Any]]:
        """Read the outputs of a collection, each of which must be there once."""
        found: dict[str, dict[str, Any]] = {}
        with Butler.from_config(str(self.place.repo)) as butler:
            for name in _TYPES:
                refs = butler.query_datasets(name, collections=collection, find_first=False, limit=None)
                by_id = {str(ref.dataId): ref for ref in refs}
                assert len(by_id) == len(refs), f"{name} twice"
                found[name] = {key: butler.get(ref) for key, ref in by_id.items()}
        return found


@pytest.fixture
def camera(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Camera]:
    # A place with a blank; it has many exposures for many kills.
    camera = Camera(tmp_path / "a place", request.param, attempts=5)
    try:
        yield camera
    finally:
        camera.prompt("stop")
        instance.stop(camera.place.panda)
        assert marked_processes(f"PANDA_LOCAL_INSTANCE={camera.place.panda}") == []


@pytest.mark.parametrize("camera", [3], indirect=True)
def test_results_are_those_of_an_ordinary_run_and_a_half_written_image_waits(camera: Camera) -> None:
    camera.prompt("start")
    last = camera.exposures[2][1]
    half = camera.incoming / last.name
    half.write_bytes(last.read_bytes()[:100_000])
    shutil.copy(camera.exposures[2][0], camera.incoming)
    camera.arrive(0)
    camera.arrive(1)
    found = camera.wait(2)
    assert found["counts"] == {"waiting": 0, "planning": 0, "submitted": 0, "done": 2, "failed": 0}
    with half.open("ab") as stream:
        stream.write(last.read_bytes()[100_000:])
    found = camera.wait(3)
    assert found["missed"] == []
    assert {group["attempts"] for group in found["groups"]} == {1}
    stages = {stage["stage"] for stage in found["stages"]}
    assert stages >= {"ingest", "graph", "plan", "submit", "start", "isr", "characterize", "visitSummary"}
    assert "3 done" in camera.prompt("status")
    assert "to first instruction" in camera.prompt("report", "--plot", str(camera.incoming / "plot.png"))
    assert (camera.incoming / "plot.png").read_bytes().startswith(b"\x89PNG")
    camera.call(
        "pipetask", "run", "-b", str(camera.place.repo), "-i", "StarCam/raw/all,StarCam/defaults",
        "--output-run", "u/ordinary", "--register-dataset-types",
        "-p", "resource://lsst.ctrl.bps.panda.demo/pipeline.yaml#isr,characterize,visitSummary",
    )  # fmt: skip
    ours, ordinary = camera.rows(_NIGHT), camera.rows("u/ordinary")
    assert {name: len(each) for name, each in ours.items()} == {"source_table": 6, "visit_summary": 3}
    for name in _TYPES:
        assert ours[name].keys() == ordinary[name].keys()
    for key, table in ours["source_table"].items():
        assert len(table) > 0
        for column in table.colnames:
            assert np.array_equal(table[column], ordinary["source_table"][key][column], equal_nan=True)
    for key, summary in ours["visit_summary"].items():
        assert str(summary) == str(ordinary["visit_summary"][key])


@pytest.mark.parametrize("camera", [2], indirect=True)
def test_lines_are_processed_to_their_end_and_a_group_that_fails_says_why(camera: Camera) -> None:
    pipeline = camera.place.directory / "failing.yaml"
    failing = camera.exposures[1][0].name.split("_")[1]
    pipeline.write_text(
        yaml.safe_dump(
            {
                "description": "one visit fails",
                "imports": [
                    {
                        "location": "resource://lsst.ctrl.bps.panda.demo/pipeline.yaml",
                        "include": ["isr", "characterize", "visitSummary"],
                    }
                ],
                "tasks": {
                    "characterize": {
                        "class": "lsst.ctrl.bps.panda.demo.tasks.CharacterizeTask",
                        "config": {"failIf": f"visit IN ({failing})"},
                    }
                },
            }
        )
    )
    camera.write(source="lines", attempts=2)
    content = yaml.safe_load(camera.config.read_text())
    content |= {"pipelineYaml": str(pipeline), "numberOfRetries": 0}
    camera.config.write_text(yaml.safe_dump(content))
    said = camera.prompt("start", given="".join(f"{path}\n" for files in camera.exposures for path in files))
    assert "failed and will be tried again" in said
    found = camera.report()
    assert found["counts"]["done"] == found["counts"]["failed"] == 1, said
    (missed,) = found["missed"]
    assert missed["name"] == failing
    assert "TroubleError: deliberate failure" in missed["cause"]
    tables = camera.rows(_NIGHT)["source_table"]
    assert {key for key in tables if failing in key} == set()
    assert len(tables) == 2


@pytest.mark.parametrize("camera", [1], indirect=True)
def test_datasets_of_a_collection_are_processed_on_panda_in_the_ordinary_way(camera: Camera) -> None:
    endpoint = instance.start(camera.place.panda, warm_workers=True)
    camera.variables = instance.environment(endpoint)
    camera.write("lsst.ctrl.bps.panda.PanDAService", source="collection", datasetType="starcam_raw")
    camera.prompt("start")
    with Butler.from_config(str(camera.place.repo), writeable=True) as butler:
        (images,) = camera.exposures
        ingest_raws(butler, [*map(str, images)], run="StarCam/raw/all")
    catalog = Catalog(state_directory(camera.config) / CATALOG_NAME)
    wait_for(lambda: catalog.groups(GroupState.SUBMITTED), "run")
    catalog.close()
    # The next process has made no graph when it registers outputs.
    if (pid := find_process(state_directory(camera.config))) is not None:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: find_process(state_directory(camera.config)) is None, "end", timeout=30)
    camera.prompt("start")
    found = camera.wait(1)
    assert found["counts"]["done"] == 1, found["missed"]
    assert found["groups"][0]["attempts"] == 1, camera.log()
    assert len(camera.rows(_NIGHT)["source_table"]) == 2


def _kill_something(camera: Camera, chance: random.Random) -> str:
    """Kill one of the processes that take part, and start the processing again if it was that one."""
    candidates: dict[str, list[int]] = {"server": servers(camera.place.panda)}
    for pid in marked_processes(f"PANDA_LOCAL_INSTANCE={camera.place.panda}"):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        kind = "template" if b"template.py" in words else "worker"
        candidates.setdefault(kind, []).append(pid)
    if (pid := find_process(state_directory(camera.config))) is not None:
        candidates["prompt"] = [pid]
    if not (kinds := sorted(name for name, pids in candidates.items() if pids)):
        return ""
    kind = chance.choice(kinds)
    victim = chance.choice(candidates[kind])
    try:
        os.kill(victim, signal.SIGKILL)
    except ProcessLookupError:
        return ""
    if kind == "prompt":
        wait_for(lambda: find_process(state_directory(camera.config)) is None, "end", timeout=30)
        camera.prompt("start")
    return kind


def _survive(camera: Camera, kills: int, seed: int) -> None:
    """Let all exposures arrive while processes are killed."""
    chance = random.Random(seed)
    camera.prompt("start")
    killed: list[str] = []
    number = 0
    while len(killed) < kills or number < len(camera.exposures):
        if number < len(camera.exposures) and len(killed) * len(camera.exposures) >= number * kills:
            camera.arrive(number)
            number += 1
        time.sleep(chance.uniform(0.0, 3.0))
        if len(killed) < kills and (kind := _kill_something(camera, chance)):
            killed.append(kind)
    found = camera.wait(len(camera.exposures), timeout=600.0)
    assert len(set(killed)) > 1, killed
    expected = {files[0].name.split("_")[1] for files in camera.exposures}
    assert {group["name"] for group in found["groups"]} == expected
    assert found["counts"]["done"] == len(expected), (found["missed"], killed, camera.log()[-3000:])
    rows = camera.rows(_NIGHT)
    assert len(rows["visit_summary"]) == len(expected)
    assert len(rows["source_table"]) == 2 * len(expected)


@pytest.mark.parametrize("camera", [6], indirect=True)
def test_nothing_is_lost_whatever_is_killed(camera: Camera) -> None:
    _survive(camera, kills=8, seed=3)


@pytest.mark.long
@pytest.mark.parametrize("camera", [60], indirect=True)
def test_nothing_is_lost_in_two_hundred_kills(camera: Camera) -> None:
    _survive(camera, kills=200, seed=5)
