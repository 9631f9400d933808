"""The registration step in the plan of a run, and in the plan of what is left
of it.
"""

from __future__ import annotations

import pytest

from lsst.ctrl.bps import (
    BPS_SEARCH_ORDER,
    BpsConfig,
    GenericWorkflow,
    GenericWorkflowExec,
    GenericWorkflowFile,
    GenericWorkflowJob,
)
from lsst.ctrl.bps.panda.edgenode.rucio_program import Registration
from lsst.ctrl.bps.panda.idds.workflow import make_workflow
from lsst.ctrl.bps.panda.plan.document import parse_plan, render_plan, render_table
from lsst.ctrl.bps.panda.plan.planner import make_restart_plan
from lsst.ctrl.bps.panda.runs.files import read_plan
from lsst.ctrl.bps.panda.workflow import PandaBpsWmsWorkflow

SECTION = {
    "enabled": True, "datasetTypes": ["image"], "scope": "dp2", "rse": "DISK", "rseRoot": "/rse",
    "dtnUrl": "davs://host/rse", "queue": "TRANSFERS",
}  # fmt: skip


def make_job(name, label):
    executable = GenericWorkflowExec("echo", "echo", transfer_executable=False)
    return GenericWorkflowJob(name, label, executable=executable, arguments=name, request_memory=100)


def make_generic(final):
    workflow = GenericWorkflow("run")
    for number in range(3):
        workflow.add_job(make_job(f"isr_{number}", "isr"))
        workflow.add_job(make_job(f"coadd_{number}", "coadd"), parent_names=[f"isr_{number}"])
    graph = GenericWorkflowFile("runQgraphFile", src_uri="/submit/run.qg", wms_transfer=True, job_shared=True)
    workflow.add_job_inputs("isr_0", graph)
    if final == "job":
        job = make_job("finalJob", "finalJob")
        job.arguments = "<FILE:runQgraphFile>"
        workflow.add_final(job)
        workflow.add_job_inputs(job.name, graph)
    elif final == "workflow":
        inner = GenericWorkflow("inner")
        for name in ("merge", "check"):
            inner.add_job(make_job(name, name), parent_names=["merge"] if name == "check" else None)
        workflow.add_final(inner)
    return workflow


def make(tmp_path, final="job", *, attributes=None, **section):
    area = tmp_path / "area"
    config = BpsConfig(
        {
            "uniqProcName": "run", "outputRun": "u/me/run", "butlerConfig": "/repo", "computeSite": "SITE",
            "submitPath": str(tmp_path), "fileDistributionEndPoint": f"{area}/", "maxJobsPerTask": 2,
            "runnerCommand": "_runner_ _cmd_line_", "rucio": SECTION | section,
        },
        search_order=BPS_SEARCH_ORDER,
        defaults={},
    )  # fmt: skip
    generic = make_generic(final)
    generic.run_attrs.update(attributes or {})
    return PandaBpsWmsWorkflow.from_generic_workflow(config, generic, str(tmp_path), "service")


def parents_of(plan, label):
    jobs = [job for task in (*plan.tasks, *plan.final) for job in task.jobs]
    (wanted,) = (job for task in plan.final if task.label == label for job in task.jobs)
    return [jobs[ordinal].name for ordinal in wanted.parents]


@pytest.mark.parametrize(
    ("final", "labels", "before"),
    [
        ("none", ["rucioRegister"], []),
        ("job", ["finalJob", "rucioRegister"], ["finalJob"]),
        ("workflow", ["merge", "check", "rucioRegister"], ["check"]),
    ],
)
def test_the_step_comes_after_all_that_is_final(tmp_path, final, labels, before):
    plan = make(tmp_path, final, when="ALWAYS").plan
    assert [task.label for task in plan.final] == labels
    assert parents_of(plan, "rucioRegister") == before
    assert dict(plan.labels) == {"isr": 3, "coadd": 3} | dict.fromkeys(labels, 1)
    assert "rucioRegister" in render_table(plan)


def test_success_of_every_last_job_is_wanted(tmp_path):
    plan = make(tmp_path, when="SUCCESS").plan
    assert parents_of(plan, "rucioRegister") == ["coadd_0", "coadd_1", "coadd_2", "finalJob"]
    assert parents_of(plan, "finalJob") == []


def test_without_the_section_there_is_no_step(tmp_path):
    workflow = make(tmp_path, enabled=False)
    workflow.write(str(tmp_path))
    assert [task.label for task in workflow.plan.final] == ["finalJob"]
    assert not (tmp_path / "panda_rucio.json").exists()


def test_a_command_has_nothing_to_register(tmp_path):
    assert make(tmp_path, "none", attributes={"bps_iscustom": "True"}).plan.final == ()


def test_what_the_step_needs_is_staged_and_its_command_names_it(tmp_path):
    section = {"python": "/opt/rucio/bin/python", "account": "campaign", "quantumGraph": True}
    workflow = make(tmp_path, requestMemory=3000, numberOfRetries=4, **section)
    workflow.write(str(tmp_path))
    sources = {staged.key: staged.source for staged in workflow.plan.files}
    assert sources["rucioProgram"].endswith("/edgenode/rucio_program.py")
    text = (tmp_path / "panda_rucio.json").read_text()
    assert sources["rucioRegistration"] == str(tmp_path / "panda_rucio.json")
    assert Registration.from_json(text).collection == "u/me/run"
    assert Registration.from_json(text).graph_name == "u/me/run/run.qg"
    (task,) = (task for task in workflow.plan.final if task.label == "rucioRegister")
    assert (task.resources.memory, task.resources.attempts, task.placement.queue) == (3000, 5, "TRANSFERS")
    other = workflow.plan.tasks[0]
    assert other.placement.queue == ""
    command = bytes.fromhex(
        next(word for word in task.command.split() if len(word) > 40 and set(word) <= set("0123456789abcdef"))
    ).decode()
    assert "/opt/rucio/bin/python <FILE:rucioProgram> <FILE:rucioRegistration>" in command
    assert "--quantum-graph <FILE:rucioQuantumGraph>" in command
    assert "export RUCIO_ACCOUNT=campaign" in command
    assert "--retry-unless-exit=3,5" in task.command


def test_preparing_the_same_workflow_twice_adds_one_step(tmp_path):
    from lsst.ctrl.bps.panda.rucio.step import add_step
    from lsst.ctrl.bps.panda.settings.rucio import read_registration_settings

    generic = make_generic("job")
    settings = read_registration_settings(BpsConfig({"rucio": SECTION}, search_order=[], defaults={}), {})
    for _ in range(2):
        add_step(generic, settings, submit_path=tmp_path)
    assert list(generic.get_final()) == ["finalJob", "rucioRegister"]


@pytest.mark.parametrize("when", ["SUCCESS", "ALWAYS"])
def test_the_restart_plan_has_the_step_and_waits_for_what_is_left(tmp_path, when):
    workflow = make(tmp_path, when=when)
    workflow.write(str(tmp_path))
    assert Registration.from_json((tmp_path / "panda_rucio.json").read_text()).graph_name == ""
    plan = read_plan(tmp_path)
    done = {
        ordinal
        for task in plan.tasks
        for ordinal, job in enumerate(task.jobs, task.first)
        if job.name not in ("isr_1", "coadd_1")
    }
    restart = parse_plan(
        "".join(render_plan(make_restart_plan(plan, done, name="run_r1", origin=7))), source="x"
    )
    assert [task.label for task in restart.final] == ["finalJob", "rucioRegister"]
    wanted = ["coadd_1", "finalJob"] if when == "SUCCESS" else ["finalJob"]
    assert parents_of(restart, "rucioRegister") == wanted
    assert len(make_workflow(restart).template.works) == 4


def test_if_only_the_step_failed_it_is_what_is_left_after_the_final_job(tmp_path):
    plan = make(tmp_path).plan
    restart = make_restart_plan(plan, range(6), name="run_r1", origin=7)
    assert restart.tasks == ()
    assert [task.label for task in restart.final] == ["finalJob", "rucioRegister"]
    assert parents_of(restart, "rucioRegister") == ["finalJob"]
