"""Field by field: what the previous plugin makes of a workflow, and what we
make of the same one.  Each difference is in the table, with its reason.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PREVIOUS = runpy.run_path(str(BENCHMARKS / "previous_plugin.py"))

PROGRAM = """
import json, re, sys, tempfile
sys.path.insert(0, sys.argv[1])
import planner_measure as measure
from lsst.ctrl.bps.panda import PandaBpsWmsWorkflow

workflow = measure.make_workflow(200)
for number, name in enumerate(workflow.nodes):
    job = workflow.get_job(name)
    job.request_memory_max = 16000
    job.accounting_group = "group"
    job.priority = "800"
    job.queue = "QUEUE" if job.label == "makeWarp" else None
    job.compute_cloud = "EU"
    job.request_walltime = 3600
    if job.label == "isr":
        job.number_of_retries = 0
    if job.label == "assembleCoadd":
        job.request_cpus = 8
with tempfile.TemporaryDirectory() as directory:
    config = measure.make_config(directory, {"maxJobsPerTask": 20, "taskType": "production", "vo": "lsst",
        "prodSourceLabel": "test", "processingType": "Rubin"})
    made = PandaBpsWmsWorkflow.from_generic_workflow(config, workflow, directory, "service")
jobs = {}
tasks = {}
works = list(made.idds_client_workflow.template.works.values())
for work in works:
    name = re.sub(".*Z_[0-9]+_", "", work.task_name)
    tasks[name] = {field: getattr(work, field) for field in json.loads(sys.argv[2])}
    tasks[name]["jobs"] = len(work.dependency_map)
# A job is known by its name: the previous plugin has it in the pseudo-input, we have it in the plan.
names = {}
if hasattr(made, "plan"):
    for task in (*made.plan.tasks, *made.plan.final):
        names.update({(task.name, job.pseudo_input): job.name for job in task.jobs})
def known(task, pseudo):
    return names.get((task, pseudo)) or pseudo.split("+")[0]
for work in works:
    for entry in work.dependency_map:
        ends = [known(d["task"], d["inputname"]) for d in entry["dependencies"]]
        jobs[known(work.task_name, entry["name"])] = sorted(ends)
print(json.dumps({"tasks": tasks, "jobs": jobs}))
"""

SAME = (
    "task_site", "task_cloud", "task_queue", "task_rss", "task_rss_retry_step",
    "task_rss_retry_offset", "core_count", "working_group", "task_type", "prodSourceLabel", "vo",
    "maxWalltime", "encode_command_line", "es", "jobs", "processingType",
)  # fmt: skip

# Field -> (what the previous plugin has, what we have, why), by label where it is not for all.
DIFFERENT = {
    ("isr", "maxAttempt"): (3, 1, "0 retries are one attempt; there they are taken for no value"),
    ("*", "maxAttempt"): (2, 3, "attempts are retries and one"),
    ("finalJob", "maxAttempt"): (3, 3, "not given: three in both"),
    ("*", "task_rss_max"): (16000, 16000, "as given"),
    ("finalJob", "task_rss_max"): (512000, 491520, "not given: BPS's memoryLimit"),
    ("*", "task_priority"): (800, 800, "as given"),
    ("finalJob", "task_priority"): (900, 500, "not given: ours comes from the packaged configuration"),
}
VARYING = ("maxAttempt", "task_rss_max", "task_priority")


def dump(python: str | Path, environment: dict[str, str]) -> dict:
    """Plan in one environment."""
    fields = [field for field in (*SAME, *VARYING) if field != "jobs"]
    command = [str(python), "-c", PROGRAM, str(BENCHMARKS), json.dumps(fields)]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, cwd="/"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def both() -> tuple[dict, dict]:
    python, _ = PREVIOUS["find_or_make"]()
    return dump(python, PREVIOUS["ENVIRONMENT"]), dump(sys.executable, {})


def test_tasks_are_the_same_but_for_what_is_explained(both) -> None:
    previous, ours = both
    assert sorted(previous["tasks"]) == sorted(ours["tasks"])
    for name, theirs in previous["tasks"].items():
        mine = ours["tasks"][name]
        assert {f: theirs[f] for f in SAME} == {f: mine[f] for f in SAME}, name
        label = name.rpartition("_")[0]
        for field in VARYING:
            before, now, _ = DIFFERENT.get((label, field)) or DIFFERENT["*", field]
            assert (theirs[field], mine[field]) == (before, now), (name, field)


def test_dependencies_of_jobs_are_the_same(both) -> None:
    previous, ours = both
    # The final job has a fixed pseudo-input there.
    theirs = {name: parents for name, parents in previous["jobs"].items() if name != "pure_pseudoinput"}
    mine = {name: parents for name, parents in ours["jobs"].items() if name != "finalJob"}
    assert theirs == mine
    assert len(mine) > 150
