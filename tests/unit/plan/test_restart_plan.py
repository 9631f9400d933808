"""The plan of what is left of a run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsst.ctrl.bps.panda.plan.document import parse_plan, render_plan
from lsst.ctrl.bps.panda.plan.model import (
    Accounting,
    ConditionPlan,
    JobPlan,
    Placement,
    Resources,
    RunIdentity,
    TaskPlan,
    WorkflowPlan,
)
from lsst.ctrl.bps.panda.plan.naming import restart_name
from lsst.ctrl.bps.panda.plan.planner import make_restart_plan

RUN = RunIdentity("run", "op", "pr", "ca", "pa", "u/x", "site", "/submit", "/area/", "1", "2")


def make_task(label, first, parents, *, is_sink=False, number=1, payloads=1):
    jobs = tuple(JobPlan(f"{label}_{i}", i, f"{label}:{i}", tuple(ps)) for i, ps in enumerate(parents))
    return TaskPlan(
        name=f"run_{number:02d}_{label}_01",
        label=label,
        chunk=1,
        first=first,
        command="python3 r HEX ${IN/L} --run=run",
        placement=Placement("", "", ""),
        resources=Resources(1, 1, 1.0, 1, 0, 1, 1),
        accounting=Accounting("", 1, "", "", "", ""),
        payloads_per_job=payloads,
        jobs=jobs,
        is_sink=is_sink,
    )


def make_plan(payloads=1):
    isr = make_task("isr", 0, [(), (), ()], number=1, payloads=payloads)
    warp = make_task("warp", 3, [(0,), (1,), (2,)], number=2)
    coadd = make_task("coadd", 6, [(3, 4), (4, 5)], is_sink=True, number=3)
    final = make_task("finalJob", 8, [()], number=4)
    return WorkflowPlan(
        run=RUN,
        tasks=(isr, warp, coadd),
        conditions=(ConditionPlan((isr.name,), (coadd.name,)),),
        final=(final,),
        files=(),
        shards=(),
        labels=(("isr", 3), ("warp", 3), ("coadd", 2), ("finalJob", 1)),
    )


def names(plan):
    return [job.pseudo_input for task in plan.tasks for job in task.jobs]


def edges(plan):
    by_number = {
        number: job.pseudo_input
        for task in (*plan.tasks, *plan.final)
        for number, job in enumerate(task.jobs, task.first)
    }
    return {
        (by_number[parent], job.pseudo_input)
        for task in plan.tasks
        for job in task.jobs
        for parent in job.parents
    }


def test_what_is_left_after_a_failure():
    restart = make_restart_plan(make_plan(), {0, 2, 3, 5}, name="run_r1", origin=7)
    assert names(restart) == ["isr:1", "warp:1", "coadd:0", "coadd:1"]
    assert edges(restart) == {("isr:1", "warp:1"), ("warp:1", "coadd:0"), ("warp:1", "coadd:1")}
    assert [task.label for task in restart.final] == ["finalJob"]
    assert restart.labels == (("isr", 1), ("warp", 1), ("coadd", 2), ("finalJob", 1))
    assert (restart.run.origin, restart.run.name) == (7, "run_r1")
    assert [task.is_sink for task in restart.tasks] == [False, False, True]


def test_tasks_have_new_names_and_the_runner_knows_the_new_run():
    restart = make_restart_plan(make_plan(), {0}, name="run_r1", origin=7)
    assert [t.name for t in (*restart.tasks, *restart.final)] == [
        "run_r1_01_isr_01",
        "run_r1_02_warp_01",
        "run_r1_03_coadd_01",
        "run_r1_04_finalJob_01",
    ]
    assert all(task.command.endswith("--run=run_r1") for task in restart.tasks)
    assert restart.conditions == (ConditionPlan(("run_r1_01_isr_01",), ("run_r1_03_coadd_01",)),)


def test_a_condition_on_what_is_done_is_dropped():
    restart = make_restart_plan(make_plan(), {0, 1, 2}, name="run_r1", origin=7)
    assert restart.conditions == ()


def test_only_the_final_job_is_left():
    restart = make_restart_plan(make_plan(), range(8), name="run_r1", origin=7)
    assert restart.tasks == ()
    assert [task.first for task in restart.final] == [0]


@pytest.mark.parametrize(("done", "payloads"), [({1}, 1), ({0}, 5), (set(), 5)])
def test_event_service_needs_contiguous_jobs(done, payloads):
    restart = make_restart_plan(make_plan(payloads=5), done, name="run_r1", origin=7)
    assert restart.tasks[0].payloads_per_job == payloads


@given(st.sets(st.integers(0, 7)))
def test_every_edge_among_what_is_left_stays(done):
    plan = make_plan()
    restart = make_restart_plan(plan, done, name="run_r1", origin=7)
    left = set(names(restart))
    assert edges(restart) == {(a, b) for a, b in edges(plan) if a in left and b in left}
    assert sum(count for _, count in restart.labels) == restart.job_count == 9 - len(done)
    firsts = [task.first for task in (*restart.tasks, *restart.final)]
    sizes = [len(task.jobs) for task in (*restart.tasks, *restart.final)]
    assert firsts == [sum(sizes[:i]) for i in range(len(sizes))]


def test_names_of_restarts():
    assert restart_name("u_me_x", 1) == "u_me_x_r1"
    assert restart_name("u_me_x_r1", 2) == "u_me_x_r2"


@pytest.mark.parametrize("done", [set(), {0, 3}])
def test_a_plan_is_read_as_it_was_written(done):
    plan = make_restart_plan(make_plan(), done, name="run_r1", origin=7)
    assert parse_plan("".join(render_plan(plan)), source="x") == plan


def test_a_plan_with_a_user_as_earlier_versions_wrote_it_is_read():
    text = "".join(render_plan(make_plan()))
    old = text.replace('"vo": ""', '"vo": "", "user": "ann"')
    assert old != text
    assert parse_plan(old, source="x") == make_plan()
