"""Write the iDDS tasks that the installed plugin makes of a configuration.

Run by the Python of an environment, so that it sees that environment's
plugin and BPS: it may use nothing else::

    python previous_tasks.py CONFIGURATION SUBMIT_DIRECTORY RESULT
"""

import json
import os
import re
import sys

os.environ["IDDS_CLIENT_MODE"] = "1"

from lsst.ctrl.bps.transform import _get_job_values

from lsst.ctrl.bps import (
    BPS_DEFAULTS,
    BPS_SEARCH_ORDER,
    BpsConfig,
    GenericWorkflow,
    GenericWorkflowExec,
    GenericWorkflowJob,
)

# Differ from one run to the next, or are told by `describe` in other words.
LEFT_OUT = {"internal_id", "template_work_id", "dependency_map", "executable"}

HEXADECIMAL = re.compile(r"\b(?:[0-9a-f]{2}){8,}\b")


def make_job(config, name, label):
    """Make a job with what the configuration says about its label, as BPS does."""
    options = {"curvals": {"curr_cluster": label, "curr_pipetask": label}}
    if label == "finalJob":
        options["searchobj"] = config[label]
    for key, section in (("computeSite", "curr_site"), ("computeCloud", "curr_cloud")):
        found, value = config.search(key, opt=options)
        if found:
            options["curvals"][section] = value
    job = GenericWorkflowJob(name, label)
    for attribute, value in _get_job_values(config, options, "").items():
        if not getattr(job, attribute):
            setattr(job, attribute, value)
    job.executable = GenericWorkflowExec("true", "/bin/true", False)
    job.arguments = "--node {qgraphNodeId}"
    job.cmdvals = {"qgraphNodeId": f"0190a6b4-7d3e-7c4f-9a1b-{name:0>12}"[:36]}
    return job


def make_workflow(config):
    """Init, four isr, one coadd that needs them, and the final job."""
    workflow = GenericWorkflow(config["uniqProcName"])
    workflow.add_job(make_job(config, "pipetaskInit", "pipetaskInit"))
    coadd = make_job(config, "coadd_1", "coadd")
    workflow.add_job(coadd)
    for number in range(4):
        name = f"isr_{number}"
        workflow.add_job(
            make_job(config, name, "isr"), parent_names=["pipetaskInit"], child_names=["coadd_1"]
        )
    final = make_job(config, "finalJob", "finalJob")
    final.arguments = "done"
    final.cmdvals = {}
    workflow.add_final(final)
    return workflow


def type_of(value):
    """Stand for what JSON does not know: iDDS's own objects."""
    return f"a {type(value).__name__}"


def describe(work):
    """Write a work down: all its plain attributes, and what it runs when."""
    jobs = work.dependency_map
    fields = {name: getattr(work, name, None) for name in dir(work) if name[0] != "_"}
    plain = {
        name: value
        for name, value in fields.items()
        if name not in LEFT_OUT and isinstance(value, (int, float, str, list, tuple, type(None)))
    }
    command = max(HEXADECIMAL.findall(work.executable), key=len)
    return plain | {
        "command": bytes.fromhex(command).decode(),
        "jobs": len(jobs),
        "parents": sorted(len(job["dependencies"]) for job in jobs),
        "parent_tasks": sorted({parent["task"] for job in jobs for parent in job["dependencies"]}),
    }


def main(path, submit_path, result):
    try:
        from lsst.ctrl.bps.panda.workflow import PandaBpsWmsWorkflow
    except ImportError:
        from lsst.ctrl.bps.panda.panda_service import PandaBpsWmsWorkflow

    config = BpsConfig(
        path,
        search_order=BPS_SEARCH_ORDER,
        defaults=BPS_DEFAULTS,
        wms_service_class_fqn="lsst.ctrl.bps.panda.PanDAService",
    )
    config[".bps_defined.timestamp"] = "20260101T000000Z"
    config[".bps_defined.operator"] = "ann"
    config[".bps_defined.uniqProcName"] = "u_ann_run_20260101T000000Z"
    config[".bps_defined.submitPath"] = submit_path
    made = PandaBpsWmsWorkflow.from_generic_workflow(
        config, make_workflow(config), submit_path, "lsst.ctrl.bps.panda.PanDAService"
    )
    workflow = made.idds_client_workflow
    template = getattr(workflow, "template", workflow)
    tasks = [describe(work) for work in template.works.values()]
    conditions = [len(condition.conditions) for condition in template.conditions.values()]
    with open(result, "w") as stream:  # the previous plugin writes to standard output itself
        json.dump({"name": workflow.name, "tasks": tasks, "conditions": conditions}, stream, default=type_of)


if __name__ == "__main__":
    main(*sys.argv[1:])
