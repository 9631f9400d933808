"""Measure prompt processing: exposures of the demo's camera arrive every two seconds.

Run it by hand: ``python tests/benchmarks/prompt_rate.py [--exposures 300] [--every 2]``.  The images are
simulated beforehand and renamed into place, each exposure with its four detectors at one moment.  It prints
what ``panda_bps prompt report`` does, without the first exposures, during which warm workers learn; whether
the queue grew; and the CPU of an exposure, by process.  On a machine with other work CPU says more than the
time on the clock.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from lsst.ctrl.bps.panda.demo.raws import expose
from lsst.ctrl.bps.panda.demo.repository import create_repo
from lsst.ctrl.bps.panda.demo.workplace import LOCAL_SERVICE, Workplace
from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.prompt.catalog import Catalog, GroupState
from lsst.ctrl.bps.panda.prompt.process import CATALOG_NAME, find_process, state_directory
from lsst.ctrl.bps.panda.prompt.report import make_prompt_report

_LEARNING = 10
"""Exposures at the beginning that do not count."""


_TICK = os.sysconf("SC_CLK_TCK")


def _cpu(prompt: int, server: int) -> dict[str, float]:
    """Return the CPU that each part has used, s; that of jobs is in none but the whole."""

    def fields(pid: int) -> list[int]:
        return [*map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15])]

    whole = Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    ticks = {
        "prompt": sum(fields(prompt)),
        "server, without jobs": sum(fields(server)[:2]),
        "whole machine": sum(int(whole[number]) for number in (0, 1, 2, 5, 6)),
    }
    return {name: number / _TICK for name, number in ticks.items()}


def _configure(place: Workplace, incoming: Path) -> Path:
    config = place.directory / "night.yaml"
    content = {
        "includeConfigs": ["resource://lsst.ctrl.bps.panda.demo/bps_prompt.yaml"],
        "butlerConfig": place.repo.as_uri(),
        "wmsServiceClass": LOCAL_SERVICE,
        "operator": "me",
        "submitPath": f"{place.directory}/submit/{{outputRun}}",
        "prompt": {"directory": str(incoming), "settle": 0},
    }
    config.write_text(yaml.safe_dump(content))
    return config


def _prompt(place: Workplace, command: str, config: Path) -> None:
    words = ("panda_bps", "prompt", command, str(config))
    done = subprocess.run(words, env=place.environment(), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{words} failed:\n{done.stderr[-3000:]}")


def _show(catalog: Catalog, every: float) -> None:
    groups = catalog.groups()
    counted = groups[_LEARNING:]
    report = make_prompt_report(counted, catalog.times(), deadline=60.0, now=time.time())
    sys.stdout.write(
        f"{dict(report.counts)}\n{'stage':<24}{'median':>8}{'95 %':>8}{'99 %':>8}{'longest':>9}\n"
    )
    for each in report.stages:
        sys.stdout.write(
            f"{each.stage:<24}{each.median:8.2f}{each.p95:8.2f}{each.p99:8.2f}{each.longest:9.2f}\n"
        )
    beyond = [
        group.stages["to outputs registered"] - group.stages["pipeline"]
        for group in report.groups
        if "to outputs registered" in group.stages
    ]
    cut = statistics.quantiles(beyond, n=20)[-1]
    sys.stdout.write(
        f"outputs beyond the pipeline's own time: {statistics.median(beyond):.2f}, 95 % {cut:.2f}\n"
    )
    third = len(counted) // 3
    for name, part in (("first", counted[:third]), ("last", counted[-third:])):
        took = statistics.median(group.ended - group.arrived for group in part if group.ended is not None)
        sys.stdout.write(
            f"{name} third of the exposures: {took:.2f} s to the outputs, one every {every:g} s\n"
        )


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exposures", type=int, default=300)
    parser.add_argument("--every", type=float, default=2.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place, incoming = Workplace(Path(folder)), Path(folder, "incoming")
        create_repo(place.repo, visits_per_band=0)
        exposures = list(expose(place.repo, Path(folder, "camera"), options.exposures))
        incoming.mkdir()
        os.environ.update(place.environment())
        config = _configure(place, incoming)
        endpoint = instance.start(place.panda, warm_workers=True)
        _prompt(place, "start", config)
        process = find_process(state_directory(config))
        assert process is not None
        catalog = Catalog(state_directory(config) / CATALOG_NAME)
        try:
            begun, before = time.monotonic(), _cpu(process, endpoint.pid)
            for number, files in enumerate(exposures):
                time.sleep(max(0.0, begun + number * options.every - time.monotonic()))
                for file in files:
                    file.rename(incoming / file.name)
            while len(catalog.groups(GroupState.DONE, GroupState.FAILED)) < len(exposures):
                time.sleep(1.0)
            after = _cpu(process, endpoint.pid)
            _show(catalog, options.every)
            for name, last in after.items():
                used = (last - before[name]) / len(exposures)
                sys.stdout.write(f"CPU of {name}: {used:.2f} s an exposure\n")
            sys.stdout.write(f"load {os.getloadavg()[0]:.1f}\n")
        finally:
            catalog.close()
            _prompt(place, "stop", config)
            instance.stop(place.panda)


if __name__ == "__main__":
    main()
