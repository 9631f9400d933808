"""Workflows of several shapes, with failures, run to their end on the embedded
PanDA with the real iDDS: each job after its parents, the final job last.

All shapes run at the same time, so that the whole takes hardly longer than
the longest of them.  The payloads write down when they start and end; what is
expected follows from the workflow and from which jobs are told to fail.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from lsst.ctrl.bps.wms_service import WmsStates
from panda_servers.runs import make_config, make_service_class

from lsst.ctrl.bps import (
    GenericWorkflow,
    GenericWorkflowExec,
    GenericWorkflowJob,
)
from lsst.ctrl.bps.panda.errors import TransportError
from lsst.ctrl.bps.panda.local import instance

pytestmark = pytest.mark.slow

LIMIT = 600.0
ENDED = {WmsStates.SUCCEEDED, WmsStates.FAILED}
SH = GenericWorkflowExec("sh", "/bin/sh", False)
SCRIPT = """
name=$1 fate=$2 log=$3; shift 3
echo "start $name" >> "$log"
if [ "$fate" = bad ]; then echo "over $name" >> "$log"; exit 17; fi
words=0; commas=0
for word in "$@"; do
    words=$((words + 1))
    rest=$(printf %s "$word" | tr -dc , | wc -c)
    commas=$((commas + rest))
done
echo "read $name $words $commas" >> "$log"
echo "over $name" >> "$log"
"""


@dataclass
class Shape:
    """A workflow to run, and which of its jobs fail."""

    name: str
    directory: Path
    bad: frozenset[str] = frozenset()
    workflow: GenericWorkflow = field(init=False)
    extra: dict = field(default_factory=dict)
    """Further configuration."""

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True)
        self.workflow = GenericWorkflow(f"u_someone_{self.name}_{uuid.uuid4().hex[:6]}")
        self.workflow.run_attrs["bps_isjob"] = "True"
        self.script = self.directory / "payload.sh"
        self.script.write_text(SCRIPT)
        self.log = self.directory / "order.log"
        self.log.touch()
        self.parents: dict[str, set[str]] = {}
        final = self.make_job("last", "finalJob")
        self.workflow.add_final(final)

    def make_job(self, name: str, label: str, **values: str) -> GenericWorkflowJob:
        job = GenericWorkflowJob(name, label, executable=SH)
        job.arguments = f"{self.script} {{name}} {{fate}} {self.log}"
        job.arguments += "".join(f" --{key} {{{key}}}" for key in values)
        job.cmdvals = {"name": name, "fate": "bad" if name in self.bad else "good", **values}
        job.number_of_retries = 0
        job.tags = {"visit": int(name.rpartition("_")[2]) if name[-1].isdigit() else 0}
        return job

    def add(self, name: str, label: str, parents: tuple[str, ...] = (), **values: str) -> str:
        self.workflow.add_job(self.make_job(name, label, **values))
        for parent in parents:
            self.workflow.add_job_relationships(parent, name)
        self.parents[name] = set(parents)
        return name

    # -- what came out --

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def expected(self) -> tuple[set[str], set[str], set[str]]:
        """Jobs that succeed, fail and are pruned, by `parents`."""
        pruned: set[str] = set()
        changed = True
        while changed:
            more = {n for n, ps in self.parents.items() if ps & (self.bad | pruned)} - pruned
            pruned |= more
            changed = bool(more)
        failed = set(self.bad) - pruned
        return set(self.parents) - failed - pruned, failed, pruned

    def check_order(self) -> None:
        """Each job ran once, after its parents, and the final job last."""
        lines = self.lines()
        good, failed, _ = self.expected()
        started = [line.split()[1] for line in lines if line.startswith("start ")]
        assert sorted(started) == sorted([*good, *failed, "last"])
        place = {line: number for number, line in enumerate(lines)}
        for name in started[:-1]:
            for parent in self.parents[name]:
                assert place[f"over {parent}"] < place[f"start {name}"]
        assert started[-1] == "last"
        assert place["start last"] > max(place[f"over {name}"] for name in (good | failed))


class Site:
    """Submits shapes and waits for them."""

    def __init__(self, endpoint, directory: Path) -> None:
        env = {"USER": "someone", "PATH": os.environ["PATH"], "XDG_STATE_HOME": str(directory / "state")}
        self.service_class = make_service_class(env, endpoint)

    def prepare(self, shape: Shape):
        """Return the service and the workflow that it would submit."""
        submit, area = shape.directory / "submit", shape.directory / "area"
        config = make_config(shape.workflow.name, submit, area, user="someone", **shape.extra)
        service = self.service_class(config)
        return service, service.prepare(config, shape.workflow, str(submit))

    def submit(self, shape: Shape):
        service, wms_workflow = self.prepare(shape)
        service.submit(wms_workflow)
        return wms_workflow

    def wait(self, run_id: str):
        end = time.monotonic() + LIMIT
        while True:
            (report,), _ = self.service_class({}).report(str(run_id), return_exit_codes=True)
            if report.state in ENDED:
                return report
            assert time.monotonic() < end, (report.state, report.job_state_counts, report.job_summary)
            time.sleep(0.5)


class RefusingProxy(ThreadingHTTPServer):
    """Stands before PanDA and refuses requests of some number, as a web
    server does that takes no bodies of their size.
    """

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.target = target
        self.refused_from = 0
        """Number of the submission from which on all are refused; 0: none."""
        self.submissions = 0
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def refuses(self, body: bytes) -> bool:
        """Count submissions; whether this one is refused."""
        if not body.startswith(b"\x1f\x8b") or json.loads(gzip.decompress(body))["command_name"] != "submit":
            return False
        self.submissions += 1
        return 0 < self.refused_from <= self.submissions


class _Forward(BaseHTTPRequestHandler):
    server: RefusingProxy

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.refuses(body):
            self.answer(413, b"too large")
            return
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
        request = urllib.request.Request(
            self.server.target + self.path, data=body or None, headers=headers, method=self.command
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            self.answer(reply.status, reply.read())

    do_GET = do_POST

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


# --- the shapes ------------------------------------------------------------


def make_chain(directory: Path) -> Shape:
    chain = Shape("chain", directory, bad=frozenset({"c_3"}))
    for number in range(6):
        chain.add(f"c_{number}", f"step{number}", (f"c_{number - 1}",) if number else ())
    return chain


def make_diamond(directory: Path) -> Shape:
    diamond = Shape("diamond", directory, bad=frozenset({"left_1"}))
    for number in range(3):
        top = diamond.add(f"top_{number}", "top")
        sides = tuple(diamond.add(f"{side}_{number}", side, (top,)) for side in ("left", "right"))
        diamond.add(f"join_{number}", "join", sides)
    return diamond


def make_chunks(directory: Path) -> Shape:
    """A ladder: each job depends on the one before the last."""
    chunks = Shape("chunks", directory, bad=frozenset({"same_4"}), extra={"maxJobsPerTask": 3})
    for number in range(8):
        chunks.add(f"same_{number}", "same", (f"same_{number - 2}",) if number > 1 else ())
    return chunks


def make_fan(directory: Path) -> Shape:
    # The others need few jobs, one after another, and should not wait behind hundreds.
    fan = Shape("fan", directory, bad=frozenset({"leaf_7", "leaf_150"}), extra={"priority": 1})
    fan.add("root", "root")
    leaves = [fan.add(f"leaf_{number}", "leaf", ("root",)) for number in range(300)]
    fan.add("most", "gather", tuple(leaf for leaf in leaves if leaf not in fan.bad))
    fan.add("all", "gather", tuple(leaves))
    return fan


def ordered(shape: Shape, sizes: tuple[int, ...], **section: object) -> Shape:
    """Visits of some jobs of two labels each, one visit after another."""
    for visit, size in enumerate(sizes):
        for number in range(size):
            first = shape.add(f"isr_{number}_{visit}", "isr")
            shape.add(f"cal_{number}_{visit}", "cal", (first,))
    shape.workflow.add_special_job_ordering(
        {"visits": {"labels": "isr, cal", "dimensions": "visit", **section}}
    )
    return shape


def make_loose(directory: Path) -> Shape:
    shape = Shape("loose", directory, bad=frozenset({"isr_0_0", "cal_1_1"}))
    return ordered(shape, (3, 3, 3), blocking=False)


def make_strict(directory: Path, last: int, **section: object) -> Shape:
    """The border of 2 with 33 has all dependencies, that of 33 with 33 a
    barrier.
    """
    shape = ordered(Shape("strict", directory, bad=frozenset({"cal_0_1"})), (2, last, last), **section)
    for name in shape.parents:
        label, _, visit = name.split("_")
        if int(visit) and label == "isr":
            shape.parents[name] |= {n for n in shape.parents if n.endswith(f"_{int(visit) - 1}")}
    return shape


def make_packed(directory: Path) -> Shape:
    shape = Shape("packed", directory, bad=frozenset({"pack_5"}), extra={"enableEventService": "pack:4"})
    for number in range(8):
        shape.add(f"pack_{number}", "pack")
        shape.add(f"after_{number}", "after", (f"pack_{number}",))
    return shape


def make_cluster(directory: Path) -> Shape:
    shape = Shape("cluster", directory)
    shape.add("big", "cluster", qgraphNodeId=",".join(str(uuid.UUID(int=number)) for number in range(5000)))
    return shape


def make_steps(directory: Path) -> Shape:
    """Twenty tasks, whose dependencies are more than small steps hold: long
    labels that cannot be compressed are in the names of tasks.
    """
    shape = Shape("steps", directory, bad=frozenset({"first_3"}), extra={"maxRequestLength": 10_000})
    for number in range(10):
        noise = hashlib.sha512(b"%d" % number).hexdigest()[:90]
        first = shape.add(f"first_{number}", f"a{noise}")
        shape.add(f"second_{number}", f"b{noise}", (first,))
    return shape


SHAPES: dict[str, Callable[[Path], Shape]] = {
    "fan": make_fan,
    "chain": make_chain,
    "group": partial(make_strict, last=33, blocking=True),
    "noop": partial(make_strict, last=4, implementation="noop"),
    "loose": make_loose,
    "chunks": make_chunks,
    "packed": make_packed,
    "diamond": make_diamond,
    "cluster": make_cluster,
}


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("panda")
    yield instance.start(directory, slots=4)
    instance.stop(directory)


@pytest.fixture(scope="module")
def runs(endpoint, tmp_path_factory):
    """All shapes, submitted; gives one with its workflow, and its report
    when it has ended.
    """
    directory = tmp_path_factory.mktemp("shapes")
    site = Site(endpoint, directory)
    shapes = {name: make(directory / name) for name, make in SHAPES.items()}
    submitted = {name: site.submit(shape) for name, shape in shapes.items()}

    def ended(name: str):
        report = site.wait(submitted[name].run_id)
        assert all(code == 17 for codes in report.exit_code_summary.values() for code in codes)
        return shapes[name], submitted[name].plan, report

    return ended


def check_counts(shape: Shape, report, *, barriers: int = 0) -> None:
    """What the report counts is what the workflow's definition says."""
    good, failed, pruned = shape.expected()
    counts = report.job_state_counts
    assert counts[WmsStates.FAILED] == len(failed)
    assert counts[WmsStates.PRUNED] + counts[WmsStates.SUCCEEDED] == len(pruned) + len(good) + 1 + barriers
    assert counts[WmsStates.PRUNED] >= len(pruned)


# --- what becomes of them --------------------------------------------------


@pytest.mark.parametrize("name", ["chain", "diamond", "fan"])
def test_each_job_runs_once_after_its_parents(runs, name) -> None:
    shape, _, report = runs(name)
    check_counts(shape, report)
    shape.check_order()


def test_chunks_of_a_label_that_depends_on_itself(runs) -> None:
    shape, plan, report = runs("chunks")
    check_counts(shape, report)
    shape.check_order()
    assert [len(task.jobs) for task in plan.tasks] == [3, 3, 2]


def test_groups_that_do_not_block_follow_each_other_whatever_fails(runs) -> None:
    shape, plan, report = runs("loose")
    check_counts(shape, report)
    shape.check_order()
    assert len(plan.conditions) == 2
    lines = shape.lines()
    for visit in (1, 2):
        mine = [n for n, line in enumerate(lines) if line.endswith(f"_{visit}")]
        before = [n for n, line in enumerate(lines) if line.endswith(f"_{visit - 1}")]
        assert max(before) < min(mine)


@pytest.mark.parametrize(("name", "barriers"), [("group", 1), ("noop", 0)])
def test_groups_that_block_prune_what_follows(runs, name, barriers) -> None:
    """Jobs before and behind a barrier are in different tasks, since iDDS
    starts nothing of tasks in a circle.
    """
    shape, plan, report = runs(name)
    check_counts(shape, report, barriers=barriers)
    shape.check_order()
    # The jobs of the last visit, and the barrier in front of it.
    last = [job for job in shape.parents if job.endswith("_2")]
    assert report.job_state_counts[WmsStates.PRUNED] == len(last) + barriers
    assert dict(plan.labels).get("visitsBarrier", 0) == barriers


def test_event_service_with_a_payload_that_fails(runs) -> None:
    shape, _, report = runs("packed")
    lines = shape.lines()
    started = {line.split()[1] for line in lines if line.startswith("start")}
    counts = report.job_state_counts
    # Where PanDA does not say which payload of a job failed, all four count as failed.
    assert counts[WmsStates.FAILED] in (1, 4)
    assert counts[WmsStates.PRUNED] == counts[WmsStates.FAILED]
    assert {f"pack_{number}" for number in range(8)} <= started
    assert "after_5" not in started
    assert {f"after_{number}" for number in range(4)} <= started
    assert lines[-1] == "over last"


def test_a_cluster_of_5000_quanta_runs(runs) -> None:
    shape, plan, report = runs("cluster")
    check_counts(shape, report)
    shape.check_order()
    assert len(plan.tasks[0].jobs[0].pseudo_input) < 64
    assert len(plan.tasks[0].command) < 10_000
    (read,) = [line.split()[2:] for line in shape.lines() if line.startswith("read big")]
    words, commas = map(int, read)
    parts = words // 2  # `--qgraphNodeId` and its part of the list
    assert parts > 1
    assert commas + parts == 5000


def test_a_request_in_steps_goes_on_after_an_interruption(endpoint, tmp_path) -> None:
    shape = make_steps(tmp_path / "steps")
    with RefusingProxy(endpoint.url.removesuffix("/server/panda")) as proxy:
        proxy.refused_from = 2
        url = f"http://127.0.0.1:{proxy.server_address[1]}/server/panda"
        site = Site(endpoint, tmp_path)
        # The token of an embedded PanDA is not sent anywhere else, unless it is given by hand.
        site.service_class.env |= dict.fromkeys(("PANDA_URL", "PANDA_URL_SSL", "PANDACACHE_URL"), url)
        site.service_class.env |= {"PANDA_AUTH_ID_TOKEN": endpoint.token, "PANDA_CONFIG_ROOT": str(tmp_path)}
        service, workflow = site.prepare(shape)
        assert len(workflow.submission.steps) == 2
        with pytest.raises(TransportError, match=r"Step 2 of \d+ .* nothing runs"):
            service.submit(workflow)
        assert workflow.run_id is None
        assert service.report(workflow.name)[0] == []
        proxy.refused_from = 0
        service.submit(workflow)
        report = site.wait(workflow.run_id)
        proxy.shutdown()
    check_counts(shape, report)
    shape.check_order()
