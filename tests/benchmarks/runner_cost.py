"""What a job pays before its payload starts: our runner and the previous
plugin's decoder side by side, each in its own environment.

Measured is the time from starting Python to the first instruction of the
payload, by the clock and on a processor, and the peak memory of the process
until then, all above those of a Python that starts the same payload and does
nothing else; and what a job reads from
the staging area for its parameters.  Prints a table and writes JSON::

    python tests/benchmarks/runner_cost.py [--repeat 10] [--jobs 100000] [--json build/runner_cost.json]
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import previous_plugin

from lsst.ctrl.bps.panda.edgenode import cmd_line_decoder as runner

__all__ = ["Cost", "Start", "main"]

PAYLOAD = "date +%s.%N; grep VmHWM /proc/$PPID/status; echo cpu $(cut -d' ' -f1 /proc/$PPID/schedstat)"
BARE = f"import os; os.system({PAYLOAD!r})"
SHARD = 1000
"""Jobs a shard, as plans have by default."""


@dataclass(frozen=True)
class Cost:
    """What one way of starting a job costs."""

    name: str
    median_ms: float
    """Median time from starting Python to the payload, milliseconds."""

    best_ms: float
    """The shortest of them; other programs disturb it least."""

    median_above_bare_ms: float
    best_above_bare_ms: float
    processor_above_bare_ms: float
    """Time on a processor; does not depend on what else the machine does."""

    above_bare_mb: float
    read_kb: float
    """Read from the staging area for the job's parameters."""


@dataclass(frozen=True)
class Start:
    """Several starts of one command: until the payload starts, milliseconds
    of the clock and (median) of the processor, and MB.
    """

    median: float
    best: float
    processor: float
    memory: float


def measure(command: list[str], work: Path, *, repeat: int) -> Start:
    """Start a job several times."""
    times, processor, memory = [], [], 0.0
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", **previous_plugin.ENVIRONMENT}
    for number in range(repeat + 1):
        folder = work / str(number)
        folder.mkdir(parents=True)
        before = time.time()
        process = subprocess.run(command, cwd=folder, env=environment, capture_output=True)
        output, errors = process.stdout, process.stderr
        if process.returncode:
            raise RuntimeError(f"{command}: exit code {process.returncode}: {errors.decode()[-2000:]}")
        if number:  # the first one fills the file system's cache
            # The previous decoder prints on standard output, too.
            (started,) = re.findall(rb"^\d+\.\d+$", output, re.M)
            (kilobytes,) = re.findall(rb"^VmHWM:\s+(\d+) kB$", output, re.M)
            (nanoseconds,) = re.findall(rb"^cpu (\d+)$", output, re.M)
            times.append((float(started) - before) * 1e3)
            processor.append(int(nanoseconds) / 1e6)
            memory = max(memory, int(kilobytes) / 1024)
    return Start(statistics.median(times), min(times), statistics.median(processor), memory)


def node_ids(jobs: int) -> list[str]:
    """Make as many ids as quantum graphs have."""
    return [f"0190a6b4-7d3e-7c4f-9a1b-{number:012d}" for number in range(jobs)]


def make_area(area: Path, jobs: int) -> None:
    """Stage what the jobs of a run need, in both plugins' ways."""
    area.mkdir()
    (area / "butler.yaml").write_text("datastore: {}\n")
    (area / "run.qg").write_bytes(bytes(1000))
    ids = node_ids(jobs)
    entries = {"butler.yaml": {"size": 14}, "run.qg": {"size": 1000}}
    for first in range(0, jobs, SHARD):
        name = runner.shard_name("isr", first // SHARD)
        text = runner.render_shard(["qgraphNodeId"], first, [(node,) for node in ids[first : first + SHARD]])
        (area / name).parent.mkdir(parents=True, exist_ok=True)
        (area / name).write_text(text)
        entries[name] = {"size": len(text), "adler32": f"{runner._adler32(text.encode()):08x}"}  # type: ignore[dict-item]
    (area / runner.MANIFEST).write_text(json.dumps({"format": 1, "files": entries}))
    names = {str(n): f"isr_{n}+qgraphNodeId:{node}+qgraphId:1700000000.5-42" for n, node in enumerate(ids)}
    (area / "panda_order_id_map.json").write_text(json.dumps({"isr": names}))


def arguments(area: Path, text: str, files: list[tuple[str, str]]) -> list[str]:
    """Arguments that both understand."""
    return [
        runner.encode_command(PAYLOAD),
        text,
        runner.encode_area(f"{area}/"),
        runner.encode_files([("butlerConfig", "butler.yaml"), ("runQgraphFile", "run.qg"), *files]),
        runner.encode_direct(["runQgraphFile"]),
    ]


def run_all(folder: Path, *, repeat: int, jobs: int) -> list[Cost]:
    """Measure each way."""
    area = folder / "area"
    make_area(area, jobs)
    python, decoder = map(str, previous_plugin.find_or_make())
    plain = f"isr_1+qgraphNodeId:{node_ids(1)[0]}+qgraphId:1700000000.5-42"
    order_map = [("orderIdMapFilename", "panda_order_id_map.json")]
    size_map = (area / "panda_order_id_map.json").stat().st_size / 1e3
    read = [area / runner.MANIFEST, area / runner.shard_name("isr", 0)]
    size_shard = sum(path.stat().st_size for path in read) / 1e3
    ours = [sys.executable, runner.__file__]
    short = [*arguments(area, "isr:7", []), runner.encode_option("parameters", f"isr@{SHARD}")]
    ways = [
        ("ours, plain names", [*ours, *arguments(area, plain, [])], 0.0),
        ("ours, parameters in shards", [*ours, *short], size_shard),
        ("ours, order id map", [*ours, *arguments(area, "isr:orderIdMap_7", order_map)], size_map),
        ("previous, plain names", [python, decoder, *arguments(area, plain, [])], 0.0),
        (
            "previous, order id map",
            [python, decoder, *arguments(area, "isr:orderIdMap_7", order_map)],
            size_map,
        ),
    ]
    bare: dict[str, Start] = {}
    costs = []
    for number, (name, command, size) in enumerate(ways):
        if command[0] not in bare:
            bare[command[0]] = measure([command[0], "-c", BARE], folder / f"bare{number}", repeat=repeat)
        start, base = measure(command, folder / f"way{number}", repeat=repeat), bare[command[0]]
        costs.append(
            Cost(
                name,
                start.median,
                start.best,
                start.median - base.median,
                start.best - base.best,
                start.processor - base.processor,
                start.memory - base.memory,
                size,
            )
        )
    return costs


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=100_000, help="jobs of the run whose maps are read")
    parser.add_argument("--json", type=Path, default=Path("build/runner_cost.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        costs = run_all(Path(folder), repeat=options.repeat, jobs=options.jobs)
    sys.stdout.write(
        f"Python {sys.version.split()[0]}, run of {options.jobs} jobs, {options.repeat} times each\n"
    )
    heads = (
        "median ms",
        "best ms",
        "above bare ms",
        "(best) ms",
        "processor ms",
        "above bare MB",
        "parameters kB",
    )
    sys.stdout.write(f"{'':28}" + "".join(f"{head:>15}" for head in heads) + "\n")
    for cost in costs:
        name, *numbers = astuple(cost)
        sys.stdout.write(f"{name:28}" + "".join(f"{number:15.1f}" for number in numbers) + "\n")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    result = {"python": sys.version, "jobs": options.jobs, "ways": [asdict(cost) for cost in costs]}
    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
