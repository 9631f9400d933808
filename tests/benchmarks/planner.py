"""Measure the planner beside the previous plugin, on the same workflows.

Usage::

    python tests/benchmarks/planner.py [--quick] [--turns N] [--python PATH] [--json FILE]

Runs ``planner_measure.py`` in this environment and in that of the previous
plugin (see ``previous_plugin.py``) by turns, each size in a process of its
own, and prints a table.  Figures are the best of several turns: other load on the machine can
only make them worse.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from previous_plugin import find_or_make

MEASURE = Path(__file__).with_name("planner_measure.py")
SIZES = (1_000, 10_000, 100_000)
OURS_ONLY = (1_000_000,)
COLUMNS = (
    ("plan_s", "plan and iDDS objects, CPU s", "{:.2f}"),
    ("total_s", "with the request's text, CPU s", "{:.2f}"),
    ("a_job_us", "a job, us", "{:.1f}"),
    ("peak_mb", "peak memory above the workflow, MB", "{:.0f}"),
    ("bytes_a_job", "request, bytes a job", "{:.1f}"),
    ("longest_name", "longest name", "{:d}"),
    ("worker_reads", "a worker reads, bytes", "{:d}"),
)


def measure(python: str, count: int, extra: dict[str, Any]) -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    command = [python, str(MEASURE), str(count), json.dumps(extra)]
    done = subprocess.run(command, capture_output=True, check=False, cwd="/")
    if done.returncode:
        sys.stderr.write(done.stderr.decode(errors="replace"))
        raise SystemExit(f"{python} could not measure {count} jobs")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    figures["total_s"] = figures["plan_s"] + figures["render_s"]
    figures["a_job_us"] = figures["total_s"] / figures["jobs"] * 1e6
    figures["peak_mb"] = figures["peak_kb"] / 1024
    return figures


def best(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the least of each figure."""
    return {key: min(turn[key] for turn in turns) for key in turns[0]}


def compare(sizes: tuple[int, ...], previous: str, turns: int) -> Iterator[dict[str, Any]]:
    """Measure all sizes, by turns in both environments."""
    plugins = {
        "ours": (sys.executable, {}),
        "previous": (previous, {}),
        "previous, name map": (previous, {"enableJobNameMap": True}),
    }
    for size in sizes:
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in plugins}
        for _ in range(turns):
            for name, (python, extra) in plugins.items():
                figures = measure(python, size, extra)
                results[name].append(figures)
                sys.stderr.write(f"{name}, {size:,} jobs: {figures['total_s']:.2f} s\n")
        for name, turns_of_it in results.items():
            yield {"plugin": name, "size": size, **best(turns_of_it)}


def table(rows: list[dict[str, Any]]) -> str:
    """Render the rows."""
    head = ["plugin", "jobs", *(title for _, title, _ in COLUMNS)]
    lines = [head]
    for row in rows:
        figures = [form.format(row[key]) for key, _, form in COLUMNS]
        lines.append([row["plugin"], f"{row['jobs']:,}", *figures])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in lines)


def verdicts(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Say how our figures compare with the budgets."""
    by_size = {(row["plugin"], row["size"]): row for row in rows}
    common = sorted({size for plugin, size in by_size if plugin == "previous"})
    for size in common:
        ours, previous = by_size["ours", size], by_size["previous", size]
        shares = [ours[key] / previous[key] for key in ("plan_s", "total_s", "peak_kb")]
        yield (
            f"{size:,} jobs: {shares[0]:.1%} of the previous plugin's time, {shares[1]:.1%} with the "
            f"request's text (budget 10%), {shares[2]:.1%} of its memory (budget 50%), "
            f"{ours['bytes_a_job']:.1f} bytes a job (budget 20)"
        )
    base = by_size["ours", common[-1]]
    largest = max((row for row in rows if row["plugin"] == "ours"), key=lambda row: row["size"])
    growth = largest["a_job_us"] / base["a_job_us"]
    yield f"time a job at {largest['size']:,} jobs is {growth:.2f} of that at {common[-1]:,}"


def main() -> None:
    """Measure, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only up to 10,000 jobs, one turn")
    parser.add_argument("--turns", type=int, default=3, help="how often each is measured")
    parser.add_argument("--python", help="Python of an environment with the previous plugin")
    parser.add_argument("--json", default="planner_benchmark.json", help="where the figures go")
    chosen = parser.parse_args()
    previous = chosen.python or str(find_or_make()[0])
    turns = 1 if chosen.quick else chosen.turns
    rows = list(compare(SIZES[:2] if chosen.quick else SIZES, previous, turns))
    for size in () if chosen.quick else OURS_ONLY:
        rows.append({"plugin": "ours", "size": size, **measure(sys.executable, size, {})})
    sys.stdout.write(table(rows) + "\n" + "\n".join(verdicts(rows)) + "\n")
    Path(chosen.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
