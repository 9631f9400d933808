"""What newer BPS has and older has not: each test is about both."""

import dataclasses
import importlib
import inspect

import pytest
from lsst.ctrl.bps.wms_service import WmsRunReport
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph

from lsst.ctrl import bps
from lsst.ctrl.bps import BPS_DEFAULTS, BPS_SEARCH_ORDER, BpsConfig, GenericWorkflowJob
from lsst.ctrl.bps.panda import PandaBpsWmsWorkflow, PanDAService
from lsst.ctrl.bps.panda.errors import PlanError, SettingsError
from lsst.ctrl.bps.panda.plan.graph import levels_of
from lsst.ctrl.bps.panda.plan.lazy import split
from lsst.ctrl.bps.panda.plan.model import LabelSettings, PlanSettings, RunIdentity
from lsst.ctrl.bps.panda.plan.planner import make_plan
from lsst.ctrl.bps.panda.report import make_run_list

HAS_LAZY_GROUPS = hasattr(bps, "GenericWorkflowLazyGroup")
newer = pytest.mark.skipif(not HAS_LAZY_GROUPS, reason="BPS without lazy groups")


def workflows_of_core():
    """The workflows that core tests itself with."""
    examples = importlib.import_module("lsst.ctrl.bps.tests.gw_test_utils")
    for name in sorted(vars(examples)):
        make = getattr(examples, name)
        if name.startswith("make_") and not name.startswith("make_lazy"):
            for options in [False, True] if "blocking" in inspect.signature(make).parameters else [None]:
                keywords = {} if options is None else {"blocking": options}
                yield pytest.param(make, keywords, id=f"{name}{'-blocking' * bool(options)}")


@pytest.mark.parametrize(("make", "keywords"), [*workflows_of_core()])
@pytest.mark.parametrize("final", [False, True])
def test_workflows_of_core_are_planned_job_by_job(make, keywords, final):
    """No job is lost or waits for fewer jobs than core says, and the final job waits for all."""
    workflow = make("run", final=final, **keywords)
    payloads = {
        node.name
        for level, nodes in levels_of(workflow)
        for node in nodes
        if isinstance(node, GenericWorkflowJob) and level.get_final() is not node
    }
    label = LabelSettings("S", "", "", 1, "", "", "", "", "python3 runner.py _cmd_line_")
    plan = make_plan(
        workflow,
        PlanSettings(run=RunIdentity("run", *[""] * 5, "S", "/submit", "/area/", "", ""), labels={"": label}),
    )
    jobs = [job for task in plan.tasks for job in task.jobs]
    assert {job.name for job in jobs} == payloads
    assert len(jobs) == len(payloads)
    assert [job.name for task in plan.final for job in task.jobs] == ["finalJob"] * final
    waits = {job.name: {jobs[parent].name for parent in job.parents} for job in jobs}
    edges = [edge for level, _ in levels_of(workflow) for edge in level.edges() if {*edge} <= payloads]
    assert edges
    assert [(parent, child) for parent, child in edges if parent not in waits[child]] == []


@newer
def test_a_lazy_group_of_core_has_stages_and_no_plan():
    examples = importlib.import_module("lsst.ctrl.bps.tests.gw_test_utils")
    workflow = examples.make_lazy_workflow("run", final=True)
    assert [name for name, _ in split(workflow).commands] == ["job1", "lazy2"]
    run = RunIdentity("run", "", "", "", "", "", "", "", "", "", "")
    with pytest.raises(PlanError, match="'lazy2' of workflow 'run' is of kind LAZY_GROUP, which"):
        make_plan(workflow, PlanSettings(run=run, labels={}))


def test_adding_to_a_run_that_goes_on_says_what_works():
    with pytest.raises(SettingsError, match="IDDS_BUILD_REQUEST_ID is not set.*use bpsBatchSubmission"):
        PandaBpsWmsWorkflow("run", BpsConfig({})).add_to_parent_workflow(BpsConfig({}))


def test_the_stages_of_a_batch_submission_become_no_plan(tmp_path):
    config = BpsConfig(
        {"uniqProcName": "run", "submitPath": str(tmp_path), "bpsBatchSubmission": True},
        search_order=BPS_SEARCH_ORDER,
        defaults=BPS_DEFAULTS,
        wms_service_class_fqn="lsst.ctrl.bps.panda.PanDAService",
    )
    if HAS_LAZY_GROUPS:
        config[".bps_defined.configFile"] = str(tmp_path / "run.yaml")
        config[".bps_defined.runQgraphFile"] = str(tmp_path / "run.qg")
        make = importlib.import_module("lsst.ctrl.bps.batch_submit").create_batch_stages
        workflow = PanDAService(config).prepare(config, make(config, str(tmp_path))[0], str(tmp_path))
        names = [name for name, _ in workflow.stages.commands]
        assert (workflow.name, names) == ("run", ["buildQuantumGraph", "preparePayloadWorkflow"])
        assert workflow.stages.rest == b""
    assert list(tmp_path.iterdir()) == []


def test_the_site_is_told_where_bps_can_show_it():
    assert make_run_list([]) == []
    fields = {field.name for field in dataclasses.fields(WmsRunReport)}
    assert ("site" in fields) == HAS_LAZY_GROUPS


@pytest.mark.parametrize("value", ["TRANSFORM", "PREPARE", "SUBMIT", "QGRAPH"])
def test_core_writes_no_quantum_graph_for_a_job(value):
    """Where this fails, core is mended, and ``whenSaveJobQgraph`` need not be refused any more."""
    core = {name: importlib.import_module(f"lsst.ctrl.bps.{name}") for name in ("prepare", "transform")}
    sources = {name: inspect.getsource(module) for name, module in core.items()}
    used = [name for name in sources if f"== WhenToSaveQuantumGraphs.{value}" in sources[name]]
    assert used == [name for name in sources if name == value.lower()]
    assert not hasattr(PredictedQuantumGraph, "saveUri")
    assert not hasattr(GenericWorkflowJob("a", "b"), "quantum_graph")
