"""Measure how one installation turns a generic workflow into an iDDS request.

Run by ``planner.py`` in an environment with either plugin; both have
``lsst.ctrl.bps.panda.PandaBpsWmsWorkflow``, so the same code measures both.
"""

from __future__ import annotations

__all__ = ["main", "make_workflow"]

import contextlib
import gc
import json
import os
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

# Where iDDS's server is installed too, its modules want this on import.
os.environ.setdefault("IDDS_CLIENT_MODE", "1")
os.environ.setdefault("PANDA_AUTH", "oidc")
os.environ.setdefault("PANDA_AUTH_VO", "Rubin")
os.environ.setdefault("USER", "someone")
os.environ.setdefault("PANDA_URL", "http://127.0.0.1:9/server/panda")
os.environ.setdefault("PANDA_URL_SSL", "http://127.0.0.1:9/server/panda")
os.environ.setdefault("PANDA_VERIFY_HOST", "off")
os.environ.setdefault("PANDACACHE_URL", "http://127.0.0.1:9/server/panda")

from lsst.ctrl.bps import (
    BPS_SEARCH_ORDER,
    BpsConfig,
    GenericWorkflow,
    GenericWorkflowExec,
    GenericWorkflowFile,
    GenericWorkflowJob,
)

STEPS = ("isr", "characterizeImage", "calibrate", "writeSourceTable", "transformSourceTable")
WARP_PARENTS = 10
COADD_PARENTS = 20
JOBS_AN_IMAGE = len(STEPS) + 1.5 + 1.5 / COADD_PARENTS
"""There are 1.5 warps for each image, and a coadd for each 20 warps."""

EXECUTABLE = GenericWorkflowExec("pipetask", "<ENV:CTRL_MPEXEC_DIR>/bin/pipetask", False)
ARGUMENTS = (
    "--long-log --log-level=VERBOSE run-qbb {butlerConfig} {fileDistributionEndPoint}<FILE:runQgraphFile> "
    "--qgraph-node-id {qgraphNodeId}"
)


def make_workflow(count: int) -> GenericWorkflow:
    """Make a workflow like that of HSC, of about ``count`` jobs and three
    times as many dependencies.
    """
    workflow = GenericWorkflow("u_someone_HSC_RC2_20260115T120000Z")
    workflow.run_attrs.update({"bps_isjob": "True", "bps_project": "dev", "bps_operator": "someone"})
    graph_file = GenericWorkflowFile(
        "runQgraphFile",
        src_uri="/submit/run/run.qg",
        wms_transfer=True,
        job_access_remote=True,
        job_shared=True,
    )
    seed = uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8").int

    def add(label: str, name: str, parents: list[str]) -> str:
        nonlocal seed
        seed = (seed * 6364136223846793005 + 1442695040888963407) % (1 << 128)
        node = uuid.UUID(int=seed)
        job = GenericWorkflowJob(f"{node}_{label}_{name}", label)
        job.quanta_counts[label] = 1
        job.executable = EXECUTABLE
        job.arguments = ARGUMENTS
        job.cmdvals = {
            "butlerConfig": "/repo/main",
            "fileDistributionEndPoint": "file:///area/",
            "qgraphNodeId": str(node),
        }
        job.request_memory = 4096
        job.request_cpus = 1
        job.number_of_retries = 2
        job.memory_multiplier = 2.0
        job.compute_site = "SITE"
        workflow.add_job(job)
        workflow.add_job_inputs(job.name, [graph_file])
        for parent in parents:
            workflow.add_edge(parent, job.name)
        return job.name

    images = max(1, round(count / JOBS_AN_IMAGE))
    calibrated = []
    for image in range(images):
        last: list[str] = []
        for step in STEPS:
            last = [add(step, f"{903334 + image // 100}_{image % 100}", last)]
        calibrated += last
    warps = []
    for warp in range(images * 3 // 2):
        start = warp * 7919 % images
        parents = [calibrated[(start + k) % images] for k in range(min(WARP_PARENTS, images))]
        warps.append(add("makeWarp", f"9813_{warp % 81}_{warp // 81}", parents))
    for coadd in range(len(warps) // COADD_PARENTS):
        parents = [warps[coadd + k * (len(warps) // COADD_PARENTS)] for k in range(COADD_PARENTS)]
        add("assembleCoadd", f"9813_{coadd}", parents)
    final = GenericWorkflowJob("finalJob", "finalJob")
    final.executable = GenericWorkflowExec("finalJob.bash", "/bin/true", False)
    final.arguments = ""
    final.compute_site = "SITE"
    workflow.add_final(final)
    return workflow


def make_config(directory: str, extra: dict[str, Any]) -> BpsConfig:
    """Make a configuration that both plugins take."""
    content = {
        "wmsServiceClass": "lsst.ctrl.bps.panda.PanDAService",
        "computeSite": "SITE",
        "computeCloud": "US",
        "submitPath": directory,
        "fileDistributionEndPoint": "file:///area/",
        "maxJobsPerTask": 10000,
        "runnerCommand": "python3 decoder.py _cmd_line_",
        "requestMemory": 4096,
        "operator": "someone",
        "finalJob": {"processingType": "Rubin_Merge"},
        **extra,
    }
    return BpsConfig(content, search_order=BPS_SEARCH_ORDER)


def _memory(field: str) -> int:
    """Read a figure of this process's memory, kB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def _reset_peak() -> None:
    """Let ``VmHWM`` start again (proc(5))."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def measure(count: int, extra: dict[str, Any]) -> dict[str, Any]:
    """Plan, make the iDDS objects and the request, and say what it took."""
    # One plugin imports these at once, the other when it needs them; here it is not about imports.
    import idds.doma.workflowv2.domapandawork
    import idds.workflowv2.workflow  # noqa: F401
    from idds.common.utils import json_dumps

    from lsst.ctrl.bps.panda import PandaBpsWmsWorkflow

    workflow = make_workflow(count)
    jobs, edges = workflow.number_of_nodes(), workflow.number_of_edges()
    with tempfile.TemporaryDirectory() as directory:
        config = make_config(directory, extra)
        gc.collect()
        _reset_peak()
        before = _memory("VmRSS")
        start = time.process_time()
        made = PandaBpsWmsWorkflow.from_generic_workflow(
            config, workflow, directory, "lsst.ctrl.bps.panda.PanDAService"
        )
        idds_workflow = made.idds_client_workflow
        planned = time.process_time()
        text = json_dumps(idds_workflow)
        rendered = time.process_time()
        peak = _memory("VmHWM")
        made.write(directory)
        written = time.process_time()
        names, largest = _names(idds_workflow)
        result = {
            "jobs": jobs,
            "edges": edges,
            "plan_s": planned - start,
            "render_s": rendered - planned,
            "write_s": written - rendered,
            "peak_kb": max(0, peak - before),
            "request_bytes": len(text),
            "bytes_a_job": len(text) / jobs,
            "tasks": len(idds_workflow.template.works),
            "names": names,
            "longest_name": largest,
            "worker_reads": _worker_reads(made, directory),
        }
    return result


def _names(idds_workflow: Any) -> tuple[int, int]:
    """Number of jobs in the request, and the length of the longest name."""
    count, largest = 0, 0
    for work in idds_workflow.template.works.values():
        names = [entry["name"] for entry in work.dependency_map]
        count += len(names)
        largest = max(largest, *map(len, names))
    return count, largest


def _worker_reads(made: Any, directory: str) -> int:
    """Bytes that a worker fetches to know its job's parameters."""
    if hasattr(made, "plan"):
        return max((len(shard.text) for shard in made.plan.shards), default=0)
    return sum(
        os.path.getsize(path)
        for path in (Path(directory, "panda_order_id_map.json"), Path(directory, "qnode_map.json"))
        if path.exists()
    )


def main() -> None:
    """Measure and write the figures as JSON on one line."""
    extra = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    sys.stdout.write(json.dumps(measure(int(sys.argv[1]), extra)) + "\n")


if __name__ == "__main__":
    main()
