"""Measure what a report costs, from received bytes to what BPS prints.

Side by side with the previous plugin in its own environment (``--previous``
gives its Python; else it is found or made, ``--alone`` leaves it out)::

    python tests/benchmarks/report_cost.py [--tasks 1000] [--runs 5000] [--alone] [--json]

The replies are real rows of iDDS, repeated with other names and numbers.  Both
plugins get the same bytes; no server and no network is involved.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

__all__ = ["detail_reply", "list_replies", "main"]

CAPTURES = Path(__file__).resolve().parents[1] / "data" / "captures" / "real"
BUDGETS = {"report": 0.5, "run list": 1.0}
"""Seconds for 1,000 tasks and for 5,000 requests."""

REPEATS = 5
RUN = "u_someone_campaign_20261120T000000Z"


def _rows(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((CAPTURES / f"{name}.json").read_text(encoding="utf-8"))[1][1]
    return rows


def detail_reply(tasks: int) -> bytes:
    """Make the relay's reply for a run of many tasks, a third with failures.

    Parameters
    ----------
    tasks : `int`
        Number of tasks, of 1,000 jobs each.
    """
    pattern = _rows("run2_failed_before_end_get_requests_detail")
    rows = []
    for number in range(1, tasks + 1):
        row = dict(pattern[1 if number % 3 == 0 else 0])
        failed = 7 if number % 3 == 0 else 0
        row |= {"name": RUN, "transform_id": number, "processing_id": number, "transform_workload_id": number}
        row |= {"transform_name": f"{RUN}_{number:02d}_label_{number % 20}_{number // 20 + 1:02d}"}
        row |= {"output_total_files": 1000, "output_processed_files": 1000 - failed}
        row |= {"output_failed_files": failed, "input_total_files": 1000, "input_processed_files": 1000}
        rows.append(row)
    return json.dumps([True, rows]).encode()


def list_replies(runs: int) -> bytes:
    """Make one reply with a request of each of many runs, three tasks a run.

    Parameters
    ----------
    runs : `int`
        Number of requests.
    """
    brief = _rows("run1_success_get_requests_with_detail_False")[0]
    rows = []
    for number in range(1, runs + 1):
        group = f"v1;op=someone;payload=DRP;jobs=900;tasks=3;origin={number - 1}"
        changes = {"request_id": number, "name": f"{RUN}_{number}", "campaign_group": group}
        rows.append(brief | changes)
    return json.dumps([True, rows]).encode()


def _best(function: Callable[[], object]) -> dict[str, float]:
    """Measure a function: best wall and CPU times, and peak memory of another
    call.
    """
    seconds, cpu = [], []
    for _ in range(REPEATS):
        start, used = time.perf_counter(), time.process_time()
        function()
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    tracemalloc.start()
    function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"seconds": min(seconds), "cpu": min(cpu), "peak_mb": peak / 1e6}


def measure_ours(tasks: int, runs: int) -> dict[str, dict[str, float]]:
    """Measure this plugin.

    Parameters
    ----------
    tasks, runs : `int`
        Sizes of the replies.
    """
    from lsst.ctrl.bps.panda.report import make_run_list, make_run_report
    from lsst.ctrl.bps.panda.status.evidence import RunEvidence, tasks_by_request, transforms_from_tasks
    from lsst.ctrl.bps.panda.status.replies import parse_requests, parse_tasks, parse_transforms

    detail, brief = detail_reply(tasks), list_replies(runs)
    now = datetime.now(UTC)
    task_rows = [
        {
            "jediTaskID": 3 * number + n,
            "taskName": f"{RUN}_{number}_0{n}_isr_01_{number}_{n}",
            "status": "done",
        }
        | {"reqID": number, "nFiles": 300, "nFilesFinished": 300}
        for number in range(1, runs + 1)
        for n in (1, 2, 3)
    ]
    panda = json.dumps({"success": True, "data": task_rows}).encode()

    def report() -> object:
        rows = json.loads(detail)[1]
        evidence = RunEvidence(parse_requests(rows)[0], parse_transforms(rows), asked_at=now)
        made = make_run_report(evidence, monitor_url="https://monitor")
        assert made.total_number_jobs == 1000 * tasks
        return made

    def run_list() -> object:
        groups = tasks_by_request(parse_tasks(json.loads(panda)["data"]))
        evidences = [
            RunEvidence(request, transforms_from_tasks(groups[request.request_id]), asked_at=now)
            for request in parse_requests(json.loads(brief)[1])
        ]
        made = make_run_list(evidences)
        assert len(made) == runs
        return made

    return {"report": _best(report), "run list": _best(run_list)}


def measure_previous(tasks: int) -> dict[str, dict[str, float]]:
    """Measure the previous plugin's report; it has no run list.

    Its connection is replaced by one that decodes the same bytes.

    Parameters
    ----------
    tasks : `int`
        Size of the reply.
    """
    import lsst.ctrl.bps.panda.panda_service as previous

    detail = detail_reply(tasks)

    class Connection:
        def get_requests(self, **_: object) -> object:
            return 0, json.loads(detail)

    previous.get_idds_client = lambda _config: Connection()
    service = previous.PanDAService({})
    return {"report": _best(lambda: service.report("2"))}


def main() -> int:
    """Run as a command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--previous", help="Python of the previous plugin's environment")
    parser.add_argument("--alone", action="store_true", help="leave the previous plugin out")
    parser.add_argument("--json", action="store_true", help="print figures only")
    parser.add_argument("--inside-previous", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside_previous:
        sys.stdout.write(json.dumps(measure_previous(options.tasks)))
        return 0
    figures = {"ours": measure_ours(options.tasks, options.runs)}
    if not options.alone:
        figures["previous"] = _measure_in_other(options.previous, options.tasks)
    sys.stdout.write(json.dumps(figures) + "\n" if options.json else _table(figures, options))
    return 0


def _measure_in_other(python: str | None, tasks: int) -> dict[str, dict[str, float]]:
    from previous_plugin import ENVIRONMENT, find_or_make

    interpreter = python or str(find_or_make()[0])
    command = [interpreter, __file__, "--inside-previous", "--tasks", str(tasks)]
    result = subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, check=True, text=True)
    figures: dict[str, dict[str, float]] = json.loads(result.stdout.splitlines()[-1])
    return figures


def _table(figures: dict[str, dict[str, dict[str, float]]], options: argparse.Namespace) -> str:
    sizes = {"report": f"{options.tasks} tasks", "run list": f"{options.runs} runs"}
    lines = [f"{'what':10} {'size':12} {'plugin':9} {'seconds':>8} {'cpu s':>8} {'budget':>7} {'peak MB':>8}"]
    for what, size in sizes.items():
        for plugin, measured in figures.items():
            if what in measured:
                row = measured[what]
                numbers = (
                    f"{row['seconds']:8.3f} {row['cpu']:8.3f} {BUDGETS[what]:7.1f} {row['peak_mb']:8.1f}"
                )
                lines.append(f"{what:10} {size:12} {plugin:9} {numbers}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
