"""Workflows with a lazy group: what the build task runs of them, and what is planned behind it.

The lazy group is one of this file, so that older BPS, which has none, can be asked, too.
"""

import subprocess
from enum import IntEnum

import pytest

from lsst.ctrl.bps import (
    GenericWorkflow,
    GenericWorkflowExec,
    GenericWorkflowFile,
    GenericWorkflowGroup,
    GenericWorkflowJob,
)
from lsst.ctrl.bps.panda.errors import PlanError
from lsst.ctrl.bps.panda.plan.graph import flatten
from lsst.ctrl.bps.panda.plan.lazy import CONFIG_VARIABLE, GRAPH_VARIABLE, join, split
from lsst.ctrl.bps.panda.remote.request import split_for_task


class Kind(IntEnum):
    LAZY_GROUP = 4


class LazyGroup(GenericWorkflowJob):
    node_type = Kind.LAZY_GROUP


def make_job(name, arguments="", kind=GenericWorkflowJob, **attributes):
    executable = GenericWorkflowExec("echo", "echo", False)
    return kind(name, f"label_{name}", executable=executable, arguments=arguments, **attributes)


def make_workflow(*edges, lazy=("lazy",), final=""):
    """A workflow of jobs that print their names."""
    workflow = GenericWorkflow("run")
    for name in dict.fromkeys(name for edge in edges for name in edge):
        workflow.add_job(make_job(name, name, LazyGroup if name in lazy else GenericWorkflowJob))
    for edge in edges:
        for parent, child in zip(edge, edge[1:], strict=False):
            workflow.add_edge(parent, child)
    if final:
        workflow.add_final(make_job(final))
    return workflow


def test_an_ordinary_workflow_has_no_stages():
    assert split(make_workflow(("a", "b"))) is None


def test_what_is_before_the_group_runs_in_order_and_the_group_last():
    workflow = make_workflow(("a", "c", "lazy", "d"), ("b", "c"), ("b", "e"))
    stages = split(workflow)
    names = [name for name, _ in stages.commands]
    assert sorted(names[:2]) == ["a", "b"]
    assert names[2:] == ["c", "lazy"]
    assert [job.name for job in stages.jobs] == names
    assert stages.commands[-1][1].strip() == "echo lazy"
    # The workflow is the caller's.
    assert len(workflow) == 6
    assert split(make_workflow(("a", "lazy"))).rest == b""
    assert split(make_workflow(("a", "lazy"), final="f")).rest != b""


def run(command, directory, **variables):
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=directory,
        env={"PATH": "/usr/bin:/bin", **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_the_command_of_a_stage_in_a_shell(tmp_path):
    (tmp_path / "my tool.sh").write_text('#!/bin/sh\nprintf "%s\\n" "$A" "$@"\n')
    (tmp_path / "my tool.sh").chmod(0o755)
    job = make_job(
        "lazy",
        "{opts} <FILE:configFile> {fileDistributionEndPoint}<FILE:runQgraphFile> <FILE:table> <FILE:far> "
        "<ENV:HOME>/x {other}",
        LazyGroup,
        cmdvals={"opts": "-v --long", "fileDistributionEndPoint": "s3://away/"},
        environment={"A": "it's <WMS:attemptNum>"},
    )
    job.executable = GenericWorkflowExec("tool", "/here/my tool.sh", True)
    workflow = GenericWorkflow("run")
    workflow.add_job(job)
    files = [
        GenericWorkflowFile("configFile", "/submit/run.yaml", wms_transfer=True),
        GenericWorkflowFile("runQgraphFile", "/submit/run.qg", wms_transfer=True),
        GenericWorkflowFile("table", "/data/my table.txt", wms_transfer=True),
        GenericWorkflowFile("far", "/shared/far.txt"),
    ]
    workflow.add_job_inputs("lazy", files)
    stages = split(workflow)
    assert sorted(stages.files) == ["/data/my table.txt", "/here/my tool.sh"]
    variables = {CONFIG_VARIABLE: "/site/a b.yaml", GRAPH_VARIABLE: "/site/g.qg", "HOME": "/home/ann"}
    assert run(stages.commands[0][1], tmp_path, **variables) == [
        "it's 0", "-v", "--long", "/site/a b.yaml", "/site/g.qg", "my table.txt", "/shared/far.txt",
        "/home/ann/x", "{other}",
    ]  # fmt: skip


def test_what_cannot_be_run_is_refused_with_the_reason():
    twice = make_workflow(("a", "lazy", "b", "more"), lazy=("lazy", "more"))
    with pytest.raises(PlanError, match=r"has 2 lazy groups \('lazy', 'more'\).*Submit a run for each"):
        split(twice)
    inside = make_workflow(("a", "b"))
    group = GenericWorkflowGroup("group", "label")
    group.add_job(make_job("lazy", kind=LazyGroup))
    inside.add_job(group)
    with pytest.raises(PlanError, match="lazy group 'lazy' of workflow 'run' is in a group or in the final"):
        split(inside)
    last = make_workflow(("a", "b"))
    last.add_final(make_job("lazy", kind=LazyGroup))
    with pytest.raises(PlanError, match="is in a group or in the final job"):
        split(last)
    before = make_workflow(("a", "lazy"))
    group = GenericWorkflowGroup("group", "label")
    group.add_job(make_job("b"))
    before.add_job(group)
    before.add_edge("group", "lazy")
    with pytest.raises(PlanError, match="Group 'group' .* comes before the lazy group 'lazy'"):
        split(before)
    unknown = make_workflow(("lazy",))
    unknown.get_job("lazy").arguments = "<WMS:sandbox>"
    with pytest.raises(PlanError, match="command of job 'lazy' .* uses {wms...}"):
        split(unknown)
    nested = make_workflow(("a", "lazy"))
    assert split_for_task(nested, {}) is not None
    with pytest.raises(PlanError, match="has made another one, 'lazy'.*cannot be nested"):
        split_for_task(nested, {"IDDS_BUILD_REQUEST_ID": "5"})


def parents_of(workflow):
    graph = flatten(workflow, max_direct_edges=100)
    return {
        name: {graph.names[parent] for parent in parents}
        for name, parents in zip(graph.names, graph.parents, strict=True)
    }


def test_the_jobs_of_the_group_stand_where_it_stood(tmp_path):
    whole = make_workflow(("a", "lazy", "d"), ("a", "b", "e", "d"), final="end")
    table = GenericWorkflowFile("table", "/data/table.txt", wms_transfer=True)
    far = GenericWorkflowFile("far", "s3://bucket/far.txt", wms_transfer=True)
    whole.add_job_inputs("d", [table, far])
    stages = split(whole)
    # What comes later travels with the build task, too.
    assert stages.files == ("/data/table.txt",)
    payload = make_workflow(("x", "z"), ("y", "z"), ("w",))
    payload.run_attrs["bps_run"] = "run"
    joined = join(payload, stages.rest, str(tmp_path))
    assert (joined.name, joined.run_attrs["bps_run"]) == ("run", "run")
    assert parents_of(joined) == {
        "x": set(), "y": set(), "w": set(), "z": {"x", "y"}, "b": set(), "e": {"b"}, "d": {"e", "z", "w"},
    }  # fmt: skip
    assert joined.get_final().name == "end"
    inputs = {gwfile.name: gwfile.src_uri for gwfile in joined.get_job_inputs("d")}
    assert inputs == {"table": f"{tmp_path}/table.txt", "far": "s3://bucket/far.txt"}


def test_a_file_that_a_stage_makes_is_where_the_stage_ran(tmp_path):
    whole = make_workflow(("a", "lazy", "b"))
    made = GenericWorkflowFile("made", "/submit/made.txt", wms_transfer=True)
    whole.add_job_outputs("a", [made])
    whole.add_job_inputs("b", [made])
    whole.get_job("a").arguments = "<FILE:made>"
    stages = split(whole)
    assert stages.files == ()
    assert stages.commands[0][1].strip() == "echo made.txt"
    joined = join(make_workflow(("x",)), stages.rest, str(tmp_path))
    assert [gwfile.src_uri for gwfile in joined.get_job_inputs("b")] == [f"{tmp_path}/made.txt"]


def test_final_jobs(tmp_path):
    """That of the payload is the run's, unless the workflow has one itself."""
    payload = make_workflow(("x",), ("y",), final="own")
    graph = GenericWorkflowFile("runQgraphFile", "/site/g.qg", wms_transfer=True)
    payload.add_job_inputs("own", [graph])
    joined = join(payload, split(make_workflow(("lazy", "b"))).rest, str(tmp_path))
    assert joined.get_final().name == "own"
    assert [gwfile.name for gwfile in joined.get_job_inputs("own")] == ["runQgraphFile"]
    assert joined.get_file("runQgraphFile").src_uri == "/site/g.qg"
    joined = join(payload, split(make_workflow(("lazy", "b"), final="end")).rest, str(tmp_path))
    assert joined.get_final().name == "end"
    assert parents_of(joined) == {"x": set(), "y": set(), "own": {"x", "y"}, "b": {"own"}}
