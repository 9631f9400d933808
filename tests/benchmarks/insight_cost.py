"""Measure what it costs to look into a run of ten thousand jobs.

The rows are those that a real PanDA replied, with other numbers and names;
a server in another process gives them::

    python tests/benchmarks/insight_cost.py [--tasks 4] [--jobs 2500] [--json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SERVERS = Path(__file__).resolve().parents[1] / "servers"
BUDGET = 5.0
"""Processor seconds for ten thousand jobs, the import of BPS (about 2 s) included."""

COMMANDS = ("show", "errors", "resources", "html")


def serve(tasks: int, jobs: int, pipe) -> None:
    """Give the replies until told to end."""
    sys.path.insert(0, str(SERVERS))
    from recorded_panda import RecordedPanda, RecordedRun

    with RecordedPanda(RecordedRun(tasks=tasks, jobs=jobs)) as server:
        pipe.send(server.url)
        pipe.recv()


def measure(command: str, url: str) -> dict[str, float]:
    """Run a command in a process of its own."""
    words = [sys.executable, "-m", "lsst.ctrl.bps.panda.cli.panda_bps", command, "4711"]
    page = Path(tempfile.mkdtemp()) / "run.html"
    words += ["-o", str(page)] if command == "html" else ["--json"]
    env = {"PANDA_URL_SSL": url, "USER": "ann", "HOME": "/nonexistent", "PATH": "/usr/bin:/bin"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(words, env=env, capture_output=True, check=False)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stderr.decode())
    shutil.rmtree(page.parent)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall s": round(wall, 2), "cpu s": round(cpu, 2), "peak MB so far": round(after.ru_maxrss / 1024)}


def main() -> int:
    """Measure and print; 1 if a command is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=2500, help="jobs of a task; PanDA lists 5500 at most")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(
        target=serve, args=(options.tasks, options.jobs, theirs), daemon=True
    )
    server.start()
    url = ours.recv()
    for command in COMMANDS:
        measure(command, url)  # the server renders its replies once
    found = {command: measure(command, url) for command in COMMANDS}
    ours.send("end")
    server.join()
    found_text = {"jobs": options.tasks * options.jobs, "budget s": BUDGET, "commands": found}
    if options.json:
        sys.stdout.write(json.dumps(found_text) + "\n")
    else:
        sys.stdout.write(f"{found_text['jobs']} jobs; budget {BUDGET} s\n")
        for command, figures in found.items():
            sys.stdout.write(f"{command:10} " + "  ".join(f"{k} {v}" for k, v in figures.items()) + "\n")
    return int(any(figures["cpu s"] > BUDGET for figures in found.values()))


if __name__ == "__main__":
    sys.exit(main())
