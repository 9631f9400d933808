"""Two plans as they were when somebody last looked at them.

``pytest tests/unit/plan/test_plan_snapshots.py --update-plans`` writes them anew;
look at the difference before you commit it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from panda_plans.settings import LABEL, RUN, SETTINGS

from lsst.ctrl.bps import GenericWorkflow, GenericWorkflowExec, GenericWorkflowFile, GenericWorkflowJob
from lsst.ctrl.bps.panda.edgenode import cmd_line_decoder as runner
from lsst.ctrl.bps.panda.plan.document import render_plan, render_table
from lsst.ctrl.bps.panda.plan.model import PlanSettings
from lsst.ctrl.bps.panda.plan.planner import make_plan

SNAPSHOTS = Path(__file__).parents[2] / "data" / "plans"
GRAPH = GenericWorkflowFile("runQgraphFile", "/submit/run 1.qg", wms_transfer=True, job_access_remote=True)
BUTLER = GenericWorkflowFile("butlerConfig", "/repo/butler.yaml", wms_transfer=False, job_access_remote=True)
LABEL = replace(LABEL, site="SLAC")


def make_settings(name: str, **values: object) -> PlanSettings:
    run = replace(RUN, name=name, site="SLAC", plugin_version="PLUGIN", bps_version="BPS")
    return replace(SETTINGS, run=run, labels={"": LABEL, **values.pop("labels", {})}, **values)


def add(workflow: GenericWorkflow, name: str, label: str, parents: tuple[str, ...] = (), **needs) -> str:
    job = GenericWorkflowJob(name, label)
    job.executable = GenericWorkflowExec("pipetask", "<ENV:CTRL_MPEXEC_DIR>/bin/pipetask", False)
    job.arguments = "run-qbb <FILE:butlerConfig> <FILE:runQgraphFile> --qgraph-node-id {qgraphNodeId} {extra}"
    job.cmdvals = {"qgraphNodeId": f"node-of-{name}", "extra": ""}
    job.environment = {"OMP_NUM_THREADS": "1", "WHERE": "<ENV:HOME>/a b"}
    for key, value in needs.items():
        setattr(job, key, value)
    workflow.add_job(job)
    workflow.add_job_inputs(name, [BUTLER, GRAPH])
    workflow.add_job_relationships(list(parents), name)
    return name


def pipeline():
    """Usual steps, two chunks, several needs, a final script."""
    workflow = GenericWorkflow("u_someone_pipeline_20260115T120000Z")
    init = add(workflow, "pipetaskInit", "pipetaskInit", number_of_retries=0)
    warps = []
    for visit in range(3):
        needs = {"request_memory": 2000, "number_of_retries": 2}
        isr = add(workflow, f"a{9 - visit}_isr_{visit}", "isr", (init,), **needs)
        needs = {"request_memory": 4001, "request_cpus": 2, "memory_multiplier": 2.0, "mail_to": "me"}
        warps.append(add(workflow, f"b_warp_{visit}", "warp", (isr,), **needs))
    add(workflow, "c_coadd", "coadd", tuple(warps), retry_unless_exit=[1, 2], accounting_group="g")
    final = GenericWorkflowJob("finalJob", "finalJob")
    final.executable = GenericWorkflowExec("finalJob.bash", "/submit/final_job.bash", True)
    final.arguments = "<FILE:runQgraphFile>"
    workflow.add_final(final)
    workflow.add_job_inputs("finalJob", [GRAPH])
    return workflow, make_settings(workflow.name, max_jobs_per_task=2)


def ordered():
    """Groups by visit that do not block, event service, a join of joins."""
    workflow = GenericWorkflow("u_someone_ordered_20260115T120000Z")
    for visit in range(3):
        for detector in range(4):
            name = add(workflow, f"isr_{visit}_{detector}", "isr", request_walltime=600)
            workflow.get_job(name).tags = {"visit": visit}
    add(workflow, "coadd", "coadd", tuple(name for name in list(workflow.nodes)))
    workflow.add_special_job_ordering(
        {"visits": {"labels": "isr", "dimensions": "visit", "implementation": "group", "blocking": False}}
    )
    labels = {"isr": replace(LABEL, payloads_per_job=2)}
    return workflow, make_settings(workflow.name, labels=labels, max_wms_job_walltime=1800)


@pytest.mark.parametrize("make", [pipeline, ordered], ids=lambda make: make.__name__)
def test_plan_is_as_it_was(make, request) -> None:
    workflow, settings = make()
    plan = make_plan(workflow, settings)
    tasks = (*plan.tasks, *plan.final)
    commands = [
        f"# {t.label}: {runner.decode_command(t.command.removeprefix('( ').split()[2])}\n" for t in tasks
    ]
    shards = [f"# {shard.name}\n{shard.text}" for shard in plan.shards]
    text = "".join([*render_plan(plan), *commands, *shards, render_table(plan), "\n"])
    path = SNAPSHOTS / f"{make.__name__}.txt"
    if request.config.getoption("--update-plans"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()
