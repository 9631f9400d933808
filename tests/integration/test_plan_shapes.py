"""Workflows of several shapes, with failures, run to their end on the embedded
PanDA with the real iDDS: each job after its parents, the final job last.

The payloads write down when they start and end; what is expected follows from
the workflow and from which jobs are told to fail.
"""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from lsst.ctrl.bps.wms_service import WmsStates

from lsst.ctrl.bps import (
    BPS_DEFAULTS,
    BPS_SEARCH_ORDER,
    BpsConfig,
    GenericWorkflow,
    GenericWorkflowExec,
    GenericWorkflowJob,
)
from lsst.ctrl.bps.panda import PanDAService
from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.local.endpoint import environment
from lsst.ctrl.bps.panda.settings import read_service_settings

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
        merged = {**env, **environment(endpoint)}

        class Service(PanDAService):
            def settings(self):
                return read_service_settings(self.config, merged)

        self.service_class = Service

    def submit(self, shape: Shape):
        config = BpsConfig(
            {
                "submitPath": str(shape.directory / "submit"),
                "uniqProcName": shape.workflow.name,
                "outputRun": shape.workflow.name,
                "operator": "someone",
                "project": "proj",
                "campaign": "camp",
                "computeSite": "local",
                "fileDistributionEndPoint": f"{shape.directory}/area/",
                **shape.extra,
            },
            search_order=BPS_SEARCH_ORDER,
            defaults=BPS_DEFAULTS,
            wms_service_class_fqn="lsst.ctrl.bps.panda.PanDAService",
        )
        service = self.service_class(config)
        wms_workflow = service.prepare(config, shape.workflow, str(shape.directory / "submit"))
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

    def run(self, *shapes: Shape):
        """Run some shapes at once; return the reports and plans."""
        submitted = [self.submit(shape) for shape in shapes]
        reports = [self.wait(workflow.run_id) for workflow in submitted]
        for shape, report in zip(shapes, reports, strict=True):
            good, failed, pruned = shape.expected()
            assert report.job_state_counts[WmsStates.FAILED] == len(failed), shape.name
            assert report.job_state_counts[WmsStates.PRUNED] == len(pruned), shape.name
            barriers = sum(n for label, n in submitted[0].plan.labels if label.endswith("Barrier"))
            assert report.job_state_counts[WmsStates.SUCCEEDED] >= len(good) + 1 - barriers, shape.name
            assert all(code == 17 for codes in report.exit_code_summary.values() for code in codes)
        return reports, [workflow.plan for workflow in submitted]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    directory = tmp_path_factory.mktemp("shapes")
    yield Site(instance.start(directory / "panda", slots=4), directory)
    instance.stop(directory / "panda")


def test_chain_diamond_and_chunks_within_a_label(site, tmp_path) -> None:
    chain = Shape("chain", tmp_path / "chain", bad=frozenset({"c_3"}))
    for number in range(6):
        chain.add(f"c_{number}", f"step{number}", (f"c_{number - 1}",) if number else ())
    diamond = Shape("diamond", tmp_path / "diamond", bad=frozenset({"left_1"}))
    for number in range(3):
        top = diamond.add(f"top_{number}", "top")
        sides = tuple(diamond.add(f"{side}_{number}", side, (top,)) for side in ("left", "right"))
        diamond.add(f"join_{number}", "join", sides)
    chunks = Shape("chunks", tmp_path / "chunks", bad=frozenset({"same_4"}), extra={"maxJobsPerTask": 3})
    for number in range(8):  # a ladder: every other job depends on the one before the last
        chunks.add(f"same_{number}", "same", (f"same_{number - 2}",) if number > 1 else ())
    _, plans = site.run(chain, diamond, chunks)
    for shape in (chain, diamond, chunks):
        shape.check_order()
    assert [len(task.jobs) for task in plans[2].tasks] == [3, 3, 2]


def test_fan_of_a_thousand(site, tmp_path) -> None:
    fan = Shape("fan", tmp_path / "fan", bad=frozenset({"leaf_7", "leaf_500"}))
    fan.add("root", "root")
    leaves = [fan.add(f"leaf_{number}", "leaf", ("root",)) for number in range(1000)]
    fan.add("most", "gather", tuple(leaf for leaf in leaves if leaf not in fan.bad))
    fan.add("all", "gather", tuple(leaves))
    site.run(fan)
    fan.check_order()


def ordered(shape: Shape, size: int, **section: object) -> None:
    """Three visits of ``size`` jobs of two labels each, one after another."""
    for visit in range(3):
        for number in range(size):
            first = shape.add(f"isr_{number}_{visit}", "isr")
            shape.add(f"cal_{number}_{visit}", "cal", (first,))
    shape.workflow.add_special_job_ordering(
        {"visits": {"labels": "isr, cal", "dimensions": "visit", **section}}
    )


def test_groups_that_do_not_block_follow_each_other_whatever_fails(site, tmp_path) -> None:
    shape = Shape("loose", tmp_path / "loose", bad=frozenset({"isr_0_0", "cal_1_1"}))
    ordered(shape, 3, blocking=False)
    _, (plan,) = site.run(shape)
    shape.check_order()
    assert len(plan.conditions) == 2
    lines = shape.lines()
    for visit in (1, 2):
        mine = [n for n, line in enumerate(lines) if line.endswith(f"_{visit}")]
        before = [n for n, line in enumerate(lines) if line.endswith(f"_{visit - 1}")]
        assert max(before) < min(mine)


@pytest.mark.parametrize("section", [{"blocking": True}, {"implementation": "noop"}], ids=["group", "noop"])
def test_groups_that_block_prune_what_follows(site, tmp_path, section) -> None:
    """Joins of 33 with 33 go through barriers; jobs before and behind one are
    in different tasks, since iDDS starts nothing of tasks in a circle.
    """
    shape = Shape("strict", tmp_path / "strict", bad=frozenset({"cal_0_1"}))
    ordered(shape, 33, **section)
    for name in list(shape.parents):
        label, _, visit = name.split("_")
        if int(visit) and label == "isr":
            shape.parents[name] |= {n for n in shape.parents if n.endswith(f"_{int(visit) - 1}")}
    workflow = site.submit(shape)
    report = site.wait(workflow.run_id)
    shape.check_order()
    counts = report.job_state_counts
    assert counts[WmsStates.FAILED] == 1
    # The jobs of the last visit, and the barrier in front of it.
    assert counts[WmsStates.PRUNED] == 66 + 1
    labels = dict(workflow.plan.labels)
    assert labels["visitsBarrier"] == 2


def test_event_service_with_a_payload_that_fails(site, tmp_path) -> None:
    shape = Shape("packed", tmp_path / "packed", bad=frozenset({"pack_5"}))
    shape.extra["enableEventService"] = "pack:4"
    for number in range(8):
        shape.add(f"pack_{number}", "pack")
        shape.add(f"after_{number}", "after", (f"pack_{number}",))
    workflow = site.submit(shape)
    report = site.wait(workflow.run_id)
    lines = shape.lines()
    started = {line.split()[1] for line in lines if line.startswith("start")}
    packed = {f"pack_{number}" for number in range(8)}
    counts = report.job_state_counts
    # Where PanDA does not say which payload of a job failed, all four count as failed.
    assert counts[WmsStates.FAILED] in (1, 4)
    assert counts[WmsStates.PRUNED] == counts[WmsStates.FAILED]
    assert packed <= started
    assert "after_5" not in started
    assert {f"after_{number}" for number in range(4)} <= started
    assert lines[-1] == "over last"


def test_a_cluster_of_5000_quanta_runs(site, tmp_path) -> None:
    shape = Shape("cluster", tmp_path / "cluster")
    nodes = ",".join(str(uuid.UUID(int=number)) for number in range(5000))
    shape.add("big", "cluster", qgraphNodeId=nodes)
    _, (plan,) = site.run(shape)
    shape.check_order()
    assert len(plan.tasks[0].jobs[0].pseudo_input) < 64
    assert len(plan.tasks[0].command) < 10_000
    (read,) = [line.split()[2:] for line in shape.lines() if line.startswith("read big")]
    words, commas = map(int, read)
    parts = words // 2  # `--qgraphNodeId` and its part of the list
    assert parts > 1
    assert commas + parts == 5000
