"""Measure what the embedded PanDA costs: start, idling, release of a job,
and the time a job takes beyond its payload.

Run it by hand: ``python tests/benchmarks/local_overhead.py [JOBS]``.
"""

import datetime
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.local.endpoint import EndpointClient, SampleTask, diamond


def _cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_mb(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def _show(what, value, limit=""):
    sys.stdout.write(f"{what:<58} {value:>12} {limit}\n")
    sys.stdout.flush()


def _seconds(value):
    moment = datetime.datetime.fromisoformat(value["__datetime__"])
    return moment.replace(tzinfo=datetime.UTC).timestamp()


def _tasks(client, sample):
    path = f"task/get_tasks_detailed_info_since?filters=%7B%22reqID%22:%22{sample.request_id}%22%7D"
    records = client.api(path)["data"]
    return {
        record["taskName"].removeprefix(f"{sample.name}_")[3:].split("_01_")[0]: record for record in records
    }


def _jobs(client, record):
    return client.api(f"task/get_job_descriptions?task_id={record['jediTaskID']}")["data"]


def _releases(client, width):
    """Tell the seconds from the end of a parent to the start of its child.

    With as many jobs side by side as there are slots, so that none waits for
    a slot.
    """
    sample = client.submit("u_bench_release", diamond(width, command="sleep 0.5"))
    client.wait(sample, timeout=600)
    records = _tasks(client, sample)
    ends, starts = {}, {}
    for label in ("left", "right"):
        for job in _jobs(client, records[label]):
            name = job["Files"][0]["lfn"].rpartition(":")[2]
            ends[label, name], starts[label, name] = _seconds(job["endTime"]), _seconds(job["startTime"])
    return sorted(starts["right", name] - ends["left", name] for label, name in ends if label == "left")


def _payload_alone(count=200):
    start = time.monotonic()
    for _ in range(count):
        subprocess.run(["bash", "-c", "true"], check=True)
    return (time.monotonic() - start) / count


def main(jobs):
    load = os.getloadavg()[0]
    cores = len(os.sched_getaffinity(0))
    sys.stdout.write(f"{cores} cores, load average {load:.1f} before we start\n")
    with tempfile.TemporaryDirectory() as directory:
        start = time.monotonic()
        endpoint = instance.start(f"{directory}/state", slots=cores)
        _show("start, first time", f"{time.monotonic() - start:.2f} s")
        instance.stop(f"{directory}/state")
        start = time.monotonic()
        endpoint = instance.start(f"{directory}/state")
        _show("start, again", f"{time.monotonic() - start:.2f} s", "(about 1 s)")
        _show("of which CPU", f"{_cpu_seconds(endpoint.pid):.2f} s")
        try:
            time.sleep(3)
            before = _cpu_seconds(endpoint.pid)
            time.sleep(10)
            _show("idle", f"{10 * (_cpu_seconds(endpoint.pid) - before):.1f} %", "(< 5 % of a core)")
            client = EndpointClient(endpoint)
            releases = _releases(client, cores)
            middle = releases[len(releases) // 2]
            _show("end of parent to start of child, median", f"{middle:.2f} s", "(< 1 s)")
            _show("end of parent to start of child, longest", f"{releases[-1]:.2f} s")
            _many(client, endpoint, jobs, cores)
            _show("memory", f"{_memory_mb(endpoint.pid):.0f} MB")
        finally:
            instance.stop(f"{directory}/state")


def _many(client, endpoint, jobs, cores):
    cpu, start = _cpu_seconds(endpoint.pid), time.monotonic()
    names = {f"many:{number}": () for number in range(jobs)}
    sample = client.submit("u_bench_many", [SampleTask("many", names, "true")])
    client.wait(sample, timeout=1800)
    wall = time.monotonic() - start
    records = _jobs(client, _tasks(client, sample)["many"])
    first = min(_seconds(job["startTime"]) for job in records)
    last = max(_seconds(job["endTime"]) for job in records)
    alone = _payload_alone()
    overhead = (last - first) * cores / len(records) - alone
    _show(f"{jobs} trivial jobs, submission to end of run", f"{wall:.1f} s")
    _show("first start to last end of these jobs", f"{last - first:.1f} s")
    _show("payload alone", f"{alone * 1000:.1f} ms")
    _show("a job's slot beyond its payload", f"{overhead * 1000:.1f} ms", "(< 200 ms)")
    _show("CPU of the server per job", f"{1000 * (_cpu_seconds(endpoint.pid) - cpu) / jobs:.1f} ms")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
