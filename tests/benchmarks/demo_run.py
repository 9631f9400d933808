"""Measure the demo on the embedded PanDA, from submission to the final report, beside ``pipetask run``.

Run it by hand: ``python tests/benchmarks/demo_run.py [--once] [WAY...]``.  The ways are ``warm``, ``cold``,
``pipetask-1`` and ``pipetask-2``, all by default, one after the other on copies of one repository.  Each
embedded PanDA runs the demo twice, since warm workers learn in the first run, unless ``--once`` is given.
CPU is that of all processes, with start and stop of the embedded PanDA; on a machine with other work it says
more than the time on the clock.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lsst.ctrl.bps.panda import LocalPanDAService
from lsst.ctrl.bps.panda.demo.workplace import Workplace
from lsst.ctrl.bps.panda.local import instance

_WAYS = ("warm", "cold", "pipetask-1", "pipetask-2")


def _cpu() -> float:
    use = resource.getrusage(resource.RUSAGE_CHILDREN)
    return use.ru_utime + use.ru_stime


def _show(what: str, wall: float, cpu: float | None = None) -> None:
    shown = "" if cpu is None else f"{cpu:.1f} s of CPU, "
    sys.stdout.write(f"{what:<34} {wall:7.1f} s, {shown}load {os.getloadavg()[0]:.1f}\n")
    sys.stdout.flush()


def _call(place: Workplace, *command: str) -> str:
    done = subprocess.run(
        command, cwd=place.directory, env=place.environment(), capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{command} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def _run_demo(place: Workplace) -> str:
    """Submit the demo, wait for its end, and return what ``bps report`` says of its state."""
    said = _call(place, "bps", "submit", str(place.config))
    run_id = next(line.split(": ")[1] for line in said.splitlines() if line.startswith("Run Id"))
    while True:
        # A report costs the server more CPU than a job: none while tasks that exist have not ended.
        if _all_tasks_ended(place, run_id):
            reports, _ = LocalPanDAService({}).report(wms_workflow_id=run_id)
            if reports and reports[0].state.name in ("SUCCEEDED", "FAILED", "DELETED"):
                _call(place, "bps", "report", "--id", run_id)
                return str(reports[0].state.name)
        time.sleep(0.3)


def _all_tasks_ended(place: Workplace, run_id: str) -> bool:
    endpoint = instance.find(place.panda)
    if endpoint is None:
        sys.exit(f"the embedded PanDA has ended; see {place.panda / 'server.log'}")
    runs = [run for run in instance.status(endpoint)["runs"] if str(run["run"]) == run_id]
    return all(run["tasks"] == run["ended"] for run in runs)


def _measure_panda(place: Workplace, *, warm: bool, times: int) -> None:
    cpu = _cpu()
    endpoint = instance.start(place.panda, warm_workers=warm)
    for number in range(times):
        begun = time.monotonic()
        state = _run_demo(place)
        _show(f"{'warm' if warm else 'cold'}, run {number + 1}, {state}", time.monotonic() - begun)
    status = instance.status(endpoint)["warm"]
    times_of_server = Path(f"/proc/{endpoint.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    server = sum(map(int, times_of_server)) / os.sysconf("SC_CLK_TCK")
    instance.stop(place.panda)
    sys.stdout.write(
        f"  all {times} with start and stop: {_cpu() - cpu:.1f} s of CPU, the server itself {server:.1f} s\n"
    )
    if status:
        sys.stdout.write(f"  {status['hits']} calls answered, cold: {status['cold']}\n")


def _measure_pipetask(place: Workplace, processes: int) -> None:
    begun, cpu = time.monotonic(), _cpu()
    _call(
        place, "pipetask", "run", "-b", str(place.repo), "-i", "StarCam/defaults", "-o", f"u/me/{processes}",
        "-d", "skymap='starcam_sky' AND tract=0", "-p", "resource://lsst.ctrl.bps.panda.demo/pipeline.yaml",
        "-j", str(processes), "--register-dataset-types",
    )  # fmt: skip
    _show(f"pipetask run -j {processes}", time.monotonic() - begun, _cpu() - cpu)


def main(arguments: list[str]) -> None:
    """Measure the ways that are given."""
    times = 1 if "--once" in arguments else 2
    ways = [word for word in arguments if word != "--once"] or list(_WAYS)
    if unknown := set(ways) - set(_WAYS):
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; the ways are {', '.join(_WAYS)}")
    with tempfile.TemporaryDirectory() as directory:
        first = Workplace(Path(directory) / "first")
        first.directory.mkdir()
        first.ensure_repo()
        for way in ways:
            place = Workplace(Path(directory) / way)
            place.directory.mkdir()
            shutil.copytree(first.repo, place.repo)
            place.write_files()
            os.environ.update(place.environment())
            if way.startswith("pipetask"):
                _measure_pipetask(place, int(way[-1]))
            else:
                _measure_panda(place, warm=way == "warm", times=times)


if __name__ == "__main__":
    main(sys.argv[1:])
