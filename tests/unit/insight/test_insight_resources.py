"""What jobs used against what was asked for, and what is suggested."""

from datetime import UTC, datetime, timedelta

import pytest
import yaml

from lsst.ctrl.bps.panda.insight.resources import Quantiles, measure_resources, render_suggestions
from lsst.ctrl.bps.panda.plan.model import Resources
from lsst.ctrl.bps.panda.plan.naming import name_of_inputs
from lsst.ctrl.bps.panda.status.evidence import PlanSummary, RunEvidence
from lsst.ctrl.bps.panda.status.job_errors import JobError
from lsst.ctrl.bps.panda.status.records import JobRecord, RequestRecord
from lsst.ctrl.bps.panda.status.replies import parse_jobs

START = datetime(2026, 11, 20, tzinfo=UTC)


def job(number, *, status="finished", wall=100, cpu=90, mb=1000, asked=2048, attempt=1, errors=(), **values):
    return JobRecord(
        panda_id=number,
        task_id=1,
        label=values.pop("label", "isr"),
        name=f"isr:{number}",
        status=status,
        attempt=attempt,
        errors=tuple(JobError(*error) for error in errors),
        started=START,
        ended=START + timedelta(seconds=wall),
        cpu_seconds=cpu,
        max_rss=mb * 1024,
        memory=asked,
        **values,
    )


def evidence(jobs, **fields):
    return RunEvidence(RequestRecord(4, "run", "Transforming"), attempts=tuple(jobs), **fields)


def measure(jobs):
    return measure_resources(evidence(jobs))[0]


def suggested(jobs):
    return dict(measure(jobs).suggestions)


def test_quantiles():
    found = Quantiles.of(range(101))
    assert (found.least, found.quarter, found.half, found.three_quarters) == (0, 25, 50, 75)
    assert (found.most_of_all, found.largest, found.count) == (95, 100, 101)
    assert Quantiles.of([3]) == Quantiles(1, 3, 3, 3, 3, 3, 3)
    assert Quantiles.of([]) is None


def test_figures():
    found = measure([job(n, mb=1000 + n, cpu=50 + n) for n in range(11)])
    assert (found.attempts, found.finished, found.requested_memory) == (11, 11, 2048)
    assert (found.memory.half, found.memory.largest) == (1005, 1010)
    assert found.cpu.half == pytest.approx(0.55)
    assert found.wall.half == 100
    assert found.near_count == 0


def test_what_was_asked_for_is_what_the_plan_says():
    """PanDA stores 0.9 of the memory, and the wall time of the queue."""
    jobs = [job(1, asked=450, walltime_limit=864000), job(2, asked=900, walltime_limit=864000, attempt=2)]
    asked = Resources(500, 4000, 2.0, 2, 0, 1800, 3)
    (found,) = measure_resources(evidence(jobs, plan=PlanSummary((("isr", 1),), (), asked={"isr": asked})))
    assert (found.requested_memory, found.largest_request, found.retried_with_more) == (500, 1000, 1)
    assert (found.requested_walltime, found.cores) == (1800, 2)
    found = measure(jobs)
    assert (found.requested_memory, found.largest_request, found.requested_walltime) == (450, 900, 864000)


def test_cpu_efficiency_is_by_core():
    assert job(1, cores=4, cpu=200).cpu_efficiency == 0.5


def test_too_much_memory_was_asked_for():
    assert suggested([job(n, asked=8192) for n in range(5)])["requestMemory"] == 1280
    # Four jobs tell too little; what nearly fits is left alone.
    assert "requestMemory" not in suggested([job(n, asked=8192) for n in range(4)])
    assert "requestMemory" not in suggested([job(n, asked=1280) for n in range(5)])


def test_jobs_that_ran_out_of_memory_get_half_as_much_again():
    bad = job(1, status="failed", mb=2040, errors=[("payload", 137)])
    again = job(2, mb=3000, asked=4096, attempt=2)
    found = measure([bad, again, *(job(n) for n in range(3, 9))])
    assert (found.out_of_memory, found.retried_with_more, found.largest_request) == (1, 1, 4096)
    assert [item.panda_id for item in found.near_limit] == [1]
    assert dict(found.suggestions)["requestMemory"] == 4608
    assert "1 attempt ran out of memory" in found.reasons[0]


def test_idle_cores_and_time():
    found = suggested([job(n, cores=8, cpu=180, wall=100) for n in range(6)])
    assert found["requestCpus"] == 2
    assert found["requestWalltime"] == 1800
    slow = [job(n, status="failed", walltime_limit=3600, errors=[("pilot", 1213)]) for n in range(2)]
    assert suggested(slow)["requestWalltime"] == 7200


def test_lines_to_paste():
    lines = render_suggestions([measure([job(n, asked=8192, walltime_limit=1800) for n in range(5)])])
    assert lines[:2] == ["pipetask:", "  isr:"]
    assert lines[2].startswith("    requestMemory: 1280  # ")
    assert len(lines) == 3
    assert render_suggestions([]) == []


def test_each_label_has_its_section_of_the_configuration():
    labels = ("isr", "visit_cluster", "coadd", "finalJob", "customJob")
    jobs = [job(n, asked=8192, walltime_limit=1800, label=label) for label in labels for n in range(5)]
    plan = PlanSummary(tuple((label, 5) for label in labels), (), clusters=("visit_cluster",))
    found = measure_resources(evidence(jobs, plan=plan))
    text = "\n".join(render_suggestions(found))
    memory = {"requestMemory": 1280}
    assert yaml.safe_load(text) == {
        "pipetask": {"isr": memory, "coadd": memory},
        "cluster": {"visit_cluster": memory},
        "finalJob": memory,
        "customJob": memory,
    }
    assert [item.section for item in found] == ["pipetask", "cluster", "pipetask", "finalJob", "customJob"]


def test_values_that_a_pilot_could_not_read_are_not_figures():
    row = {"PandaID": 1, "jediTaskID": 2, "jobStatus": "finished", "maxRSS": -1, "cpuConsumptionTime": None}
    (found,) = parse_jobs([None, row], {2: "isr"})
    assert (found.max_rss, found.cpu_efficiency, found.label) == (0, None, "isr")


def test_names():
    assert name_of_inputs(["000012:isr:4"]) == "isr:4"
    assert name_of_inputs(["000000:000001:a", "b"]) == "000001:a and 1 more"
    assert name_of_inputs([]) == ""
