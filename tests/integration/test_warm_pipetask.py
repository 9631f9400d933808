"""pipetask and butler answered by warm workers: their outputs are those of cold runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lsst.daf.butler import Butler
from panda_servers.warm import WarmJobs

from lsst.ctrl.bps.panda.demo.repository import SKYMAP, create_repo

pytestmark = pytest.mark.slow

_BIN = Path(sys.executable).parent
_RUN = "u/me/run"


class Outputs:
    """Two repositories in which the same graph was run, warm and cold."""

    def __init__(self, place: Path) -> None:
        self.jobs = WarmJobs(place, ["pipetask", "butler"], _BIN, {})
        self.repos = {way: place / way for way in ("warm", "cold")}
        create_repo(self.repos["warm"], visits_per_band=1, detectors=2, patches=1)
        self.graph = place / "run.qg"
        subprocess.run(
            [
                str(_BIN / "pipetask"), "qgraph", "-b", str(self.repos["warm"]), "-i", "StarCam/defaults",
                "-o", "u/me", "--output-run", _RUN, "-d", f"skymap='{SKYMAP}' AND tract=0",
                "-p", "resource://lsst.ctrl.bps.panda.demo/pipeline.yaml", "-q", str(self.graph),
                "--qgraph-datastore-records",
            ],
            check=True, capture_output=True, env={**os.environ, "PATH": f"{_BIN}:{os.environ['PATH']}"},
        )  # fmt: skip
        shutil.copytree(self.repos["warm"], self.repos["cold"])
        self.texts: dict[str, list[tuple[int, str, str]]] = {}
        for way, run in (("warm", self.jobs.warm), ("cold", self.jobs.cold)):
            self.texts[way] = [run(command) for command in self.commands(way)]

    def commands(self, way: str) -> list[str]:
        repo, graph = self.repos[way].as_uri(), shlex.quote(str(self.graph))
        return [
            f"pipetask --long-log --log-level=INFO pre-exec-init-qbb {repo} {graph}",
            f"pipetask --long-log --log-level=INFO run-qbb {repo} {graph}",
            f"butler aggregate-graph {graph} {repo} -j 1 --register-dataset-types",
            f"pipetask run-qbb {repo} {graph} 2>&1 | tail -1 | cut -c1-40; echo ${{PIPESTATUS[0]}}",
        ]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outputs]:
    made = Outputs(tmp_path_factory.mktemp("warm") / "it's a place")
    yield made
    made.jobs.stop()


def _steady(text: str) -> str:
    """Leave out what differs between any two runs."""
    text = re.sub(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?(\+00:00)?", "TIME", text)
    text = re.sub(r"≤ [\d.]+ MB", "MEMORY", text)
    text = re.sub(r"took \d+\.\d+ seconds|in [\d.]+ s\b|\d+\.\d+ ?s\b", "SECONDS", text)
    return re.sub(r"/(warm|cold)\b", "/WAY", re.sub(r"\bpid[= ]\d+", "PID", text))


def test_all_calls_were_answered(outputs: Outputs) -> None:
    assert outputs.jobs.hits == 4, outputs.jobs.pool.status()
    assert outputs.jobs.reasons in ("", "the template was not ready yet")


def test_exit_codes_and_logs_are_the_same(outputs: Outputs) -> None:
    for warm, cold in zip(outputs.texts["warm"], outputs.texts["cold"], strict=True):
        assert warm[0] == cold[0] == 0
        assert _steady(warm[1]) == _steady(cold[1])
        assert _steady(warm[2]).splitlines() == _steady(cold[2]).splitlines()


def _butler(outputs: Outputs, way: str) -> Any:
    return Butler.from_config(str(outputs.repos[way]), collections=_RUN)


def test_all_datasets_are_the_same(outputs: Outputs) -> None:
    names = []
    with _butler(outputs, "warm") as warm, _butler(outputs, "cold") as cold:
        found = {
            way: sorted(
                (ref.datasetType.name, str(dict(ref.dataId.required)), ref.id)
                for ref in butler.registry.queryDatasets(..., collections=_RUN)
            )
            for way, butler in (("warm", warm), ("cold", cold))
        }
        assert found["warm"] == found["cold"]
        names = sorted({name for name, _, _ in found["warm"]})
        table = "object_table"
        ours, theirs = (butler.get(table, skymap=SKYMAP, tract=0) for butler in (warm, cold))
    assert table in names
    assert ours.colnames == theirs.colnames
    assert len(ours) == len(theirs) > 10
    for name in ours.colnames:
        np.testing.assert_array_equal(np.asarray(ours[name]), np.asarray(theirs[name]), err_msg=name)


_CHANGING = re.compile(r"[Uu]tc|[Tt]ime|MaxResidentSetSize|PageFaults|Block(In|Out)puts|ContextSwitches")


def _plain(value: Any) -> Any:
    """Return metadata without figures that differ between any two runs."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if not _CHANGING.search(str(key))}
    if isinstance(value, list):
        # The order of the ids of outputs is that of a set.
        return sorted(value) if all(isinstance(item, str) for item in value) else [*map(_plain, value)]
    return value


@pytest.mark.parametrize("task", ["isr", "characterize", "makeWarp", "objectTable"])
def test_metadata_and_logs_of_quanta_are_the_same(outputs: Outputs, task: str) -> None:
    kinds = {}
    for way in ("warm", "cold"):
        with _butler(outputs, way) as butler:
            refs = sorted(butler.query_datasets(f"{task}_metadata", limit=None), key=str)
            kinds[way] = [_plain(butler.get(ref).model_dump()) for ref in refs]
            logs = sorted(butler.query_datasets(f"{task}_log", limit=None), key=str)
            kinds[way + " logs"] = [
                [(record.levelname, record.name, _steady(record.message)) for record in butler.get(ref)]
                for ref in logs
            ]
    assert kinds["warm"]
    assert kinds["warm"] == kinds["cold"]
    assert kinds["warm logs"] == kinds["cold logs"]


def test_a_warm_quantum_costs_little(outputs: Outputs) -> None:
    """CPU of a call that does nothing, when all is learnt: at most 0.2 s on a quiet machine."""
    jobs = outputs.jobs
    jobs.settle()
    root, _ = jobs.begin("pipetask run-qbb --help >/dev/null; pipetask run-qbb --help > /dev/null")
    assert root is not None
    end = root.wait()
    assert end is not None
    assert end.status == 0
    # Twice as long on a machine with other work.
    assert end.cpu / 2 < 0.4, jobs.pool.status()
