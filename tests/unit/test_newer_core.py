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
from lsst.ctrl.bps.panda.plan.lazy import split
from lsst.ctrl.bps.panda.plan.model import PlanSettings, RunIdentity
from lsst.ctrl.bps.panda.plan.planner import make_plan
from lsst.ctrl.bps.panda.report import make_run_list

HAS_LAZY_GROUPS = hasattr(bps, "GenericWorkflowLazyGroup")
newer = pytest.mark.skipif(not HAS_LAZY_GROUPS, reason="BPS without lazy groups")


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
