"""Measure a whole ``bps prepare``, and how much of it is this plugin.

Usage::

    python tests/benchmarks/prepare.py [--quanta N] [--json FILE]

Makes a predicted quantum graph of mock tasks (`lsst.pipe.base.tests.mocks`;
two tasks for each detector of each visit, one for each visit, one for all),
lets BPS prepare its run with this plugin in a process of its own, and prints
where the time goes: what BPS asked of this plugin (CPU time, with all
that the plugin calls), and by package and step.  Prepares once plainly for the
times and once under a profiler, which slows everything down, for the rest.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from lsst.ctrl.bps.panda import PanDAService

DETECTORS = 100
OURS = "lsst/ctrl/bps/panda/"
PACKAGES = {
    OURS: "this plugin",
    "lsst/ctrl/bps/": "lsst.ctrl.bps",
    "lsst/pipe/base/": "lsst.pipe.base",
    "lsst/daf/butler/": "lsst.daf.butler",
    "idds/": "iDDS client",
    "networkx/": "networkx",
    "pydantic": "pydantic",
    "yaml/": "yaml",
}
STEPS = {
    "init_submission": "initialize",
    "acquire_quantum_graph": "pre_transform",
    "single_quantum_clustering": "quantum_clustering_funcs",
    "transform": "transform",
    "prepare": "prepare",
}
"""Functions of BPS, with their modules."""

CONFIG = """\
pipelineYaml: none
project: benchmark
campaign: quick
operator: someone
payload:
  payloadName: mock
  butlerConfig: {directory}
  output: u/someone/mock
  outputRun: "{{output}}/{{timestamp}}"
  inCollection: mock
qgraphFile: {directory}/mock.qg
updateQuantumGraph: "true"
submitPath: {directory}/submit
computeSite: SITE
fileDistributionEndPoint: {directory}/area/
runWmsSubmissionChecks: false
wmsServiceClass: prepare.TimedService
"""


class TimedService(PanDAService):
    """The service class, which notes how long it takes."""

    times: ClassVar[Counter[str]] = Counter()
    """CPU time by what was asked, seconds."""

    @classmethod
    @contextmanager
    def timed(cls, what: str) -> Iterator[None]:
        """Note the time of what is inside."""
        begin = time.process_time()
        try:
            yield
        finally:
            cls.times[what] += time.process_time() - begin  # type: ignore[assignment]

    @property
    def defaults(self) -> Any:
        with self.timed("defaults"):
            return super().defaults

    def run_submission_checks(self) -> None:
        with self.timed("checks"):
            super().run_submission_checks()

    def prepare(self, *args: Any, **kwargs: Any) -> Any:
        with self.timed("prepare"):
            return super().prepare(*args, **kwargs)


def make_graph(path: Path, quanta: int) -> int:
    """Write a graph of about so many quanta; return the exact number."""
    from lsst.pipe.base.tests.mocks import DynamicConnectionConfig, InMemoryRepo
    from lsst.sphgeom import ConvexPolygon, LonLat, UnitVector3d

    visits = max(1, round(quanta / (2 * DETECTORS + 1)))
    corners = ((0, 0), (1, 0), (1, 1), (0, 1))
    region = ConvexPolygon([UnitVector3d(LonLat.fromDegrees(*corner)) for corner in corners])
    camera = {"instrument": "Mock"}
    records: dict[str, list[dict[str, Any]]] = {
        "instrument": [
            {
                "name": "Mock",
                "visit_max": 10**6,
                "exposure_max": 10**6,
                "detector_max": DETECTORS,
                "class_name": "lsst.pipe.base.Instrument",
                "visit_system": 0,
            }
        ],
        "physical_filter": [camera | {"name": "r", "band": "r"}],
        "day_obs": [camera | {"id": 20260115}],
        "detector": [
            camera | {"id": number, "full_name": f"d{number}", "purpose": "SCIENCE"}
            for number in range(DETECTORS)
        ],
        "visit": [
            camera | {"id": number, "name": f"v{number}", "physical_filter": "r", "day_obs": 20260115}
            for number in range(visits)
        ],
        "visit_detector_region": [
            camera | {"visit": visit, "detector": detector, "region": region}
            for visit in range(visits)
            for detector in range(DETECTORS)
        ],
    }
    everything, by_visit, each = ["instrument"], ["instrument", "visit"], ["instrument", "visit", "detector"]

    def dataset(name: str, dimensions: list[str], *, many: bool = False) -> DynamicConnectionConfig:
        return DynamicConnectionConfig(dataset_type_name=name, dimensions=dimensions, multiple=many)

    with InMemoryRepo() as repo:
        for element, rows in records.items():
            repo.butler.registry.insertDimensionData(element, *rows)
        for label, dimensions, used, made in (
            ("isr", each, dataset("raw", each), dataset("postISR", each)),
            ("calibrate", each, dataset("postISR", each), dataset("calexp", each)),
            ("summarize", by_visit, dataset("calexp", each, many=True), dataset("summary", by_visit)),
            ("fit", everything, dataset("summary", by_visit, many=True), dataset("model", everything)),
        ):
            repo.add_task(label, dimensions=dimensions, inputs={"used": used}, outputs={"made": made})
        # Inserted by the builder, they would end at the limit of Butler queries (20,000) without a word.
        repo.insert_datasets("raw", limit=None)
        builder = repo.make_quantum_graph_builder(output_run="u/someone/mock/run", insert_mocked_inputs=False)
        graph = builder.finish(output="u/someone/mock", attach_datastore_records=False)
        graph.write(str(path))
        count = int(graph.header.n_quanta)
    if count != visits * (2 * DETECTORS + 1) + 1:
        raise SystemExit(f"the mock graph has {count} quanta, which is not what was asked for")
    return count


def prepare(directory: Path, *, profiled: bool) -> dict[str, Any]:
    """Run ``bps prepare`` in this process and say what it took."""
    from lsst.ctrl.bps.cli.bps import cli

    profile = cProfile.Profile() if profiled else None
    begin = time.process_time()
    if profile:
        profile.enable()
    cli.main(["--log-level", "ERROR", "prepare", str(directory / "bps.yaml")], standalone_mode=False)
    if profile:
        profile.disable()
    figures: dict[str, Any] = {"cpu_s": time.process_time() - begin}
    if not (directory / "submit" / "panda_plan.json").exists():
        raise SystemExit("bps prepare failed, see above")
    from prepare import TimedService as Noted  # BPS has imported this file by its name

    figures["plugin"] = dict(Noted.times)
    if profile:
        figures |= shares(pstats.Stats(profile).stats)  # type: ignore[attr-defined]
    return figures


def shares(stats: Mapping[tuple[str, int, str], tuple[int, int, float, float, Any]]) -> dict[str, Any]:
    """Add a profile up: by package and by step."""
    packages: Counter[str] = Counter()
    steps: Counter[str] = Counter()
    for (file, _, function), (_, _, own, cumulative, _) in stats.items():
        package = next((name for part, name in PACKAGES.items() if part in file), "everything else")
        packages[package] += own  # type: ignore[assignment]
        if package == "lsst.ctrl.bps" and function in STEPS and file.endswith(f"/{STEPS[function]}.py"):
            steps[function] += cumulative  # type: ignore[assignment]
    total = sum(packages.values())
    return {
        "profiled_s": total,
        "packages": dict(packages.most_common()),
        "steps": dict(steps.most_common()),
    }


def run_child(directory: Path, *words: str) -> dict[str, Any]:
    """Prepare in a process of its own."""
    environment = os.environ | {"XDG_STATE_HOME": str(directory / "state")}
    command = [sys.executable, __file__, "--child", str(directory), *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def table(rows: Mapping[str, float], total: float) -> str:
    """Render times with their share."""
    return "\n".join(f"{seconds:9.2f} s {seconds / total:7.1%}  {name}" for name, seconds in rows.items())


def measure(quanta: int) -> dict[str, Any]:
    """Make the graph, prepare it twice and return all figures."""
    with tempfile.TemporaryDirectory(prefix="prepare-") as name:
        directory = Path(name)
        count = make_graph(directory / "mock.qg", quanta)
        (directory / "bps.yaml").write_text(CONFIG.format(directory=directory))
        plain = run_child(directory)
        shutil.rmtree(directory / "submit")
        profiled = run_child(directory, "--profiled")
    return {**profiled, **plain, "quanta": count}


def main() -> None:
    """Measure, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quanta", type=int, default=50_000, help="about how many")
    parser.add_argument("--json", type=Path, help="file that the figures are written to, too")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--profiled", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        sys.stdout.write(json.dumps(prepare(chosen.child, profiled=chosen.profiled)) + "\n")
        return
    figures = measure(chosen.quanta)
    total = figures["profiled_s"]
    own = sum(figures["plugin"].values())
    sys.stdout.write(
        f"bps prepare of {figures['quanta']:,} quanta: {figures['cpu_s']:.2f} s of CPU, of which "
        f"{own:.2f} s in this plugin ({own / figures['cpu_s']:.1%}):\n"
        f"{table(figures['plugin'], figures['cpu_s'])}\n"
        f"under the profiler, in code of each package ({total:.1f} s):\n{table(figures['packages'], total)}\n"
        f"steps of BPS, with all that they call:\n{table(figures['steps'], total)}\n"
    )
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
