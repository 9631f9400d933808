"""Outputs of a command that come back over the staging area."""

from pathlib import Path

import pytest
from lsst.ctrl.bps.wms_service import WmsStates

from lsst.ctrl.bps import GenericWorkflow, GenericWorkflowExec, GenericWorkflowFile, GenericWorkflowJob
from lsst.ctrl.bps.panda.edgenode import cmd_line_decoder as runner
from lsst.ctrl.bps.panda.errors import PlanError
from lsst.ctrl.bps.panda.runs.client import FoundRun
from lsst.ctrl.bps.panda.runs.files import find_outputs
from lsst.ctrl.bps.panda.runs.record import RunRecord

ENDED = WmsStates.SUCCEEDED


def command(inputs, outputs, *, custom="True"):
    workflow = GenericWorkflow("run")
    workflow.run_attrs["bps_iscustom"] = custom
    executable = GenericWorkflowExec("go.sh", "/submit/go.sh", True)
    workflow.add_job(GenericWorkflowJob("go.sh", "customJob", executable=executable))
    for add, files in ((workflow.add_job_inputs, inputs), (workflow.add_job_outputs, outputs)):
        add("go.sh", [GenericWorkflowFile(key, path, wms_transfer=True) for key, path in files.items()])
    return workflow


def test_outputs_are_found():
    outputs = {"a": "/submit/out/a b.txt", "b": "/elsewhere/c"}
    assert find_outputs(command({"i": "/submit/i"}, outputs)) == tuple(outputs.items())
    assert find_outputs(command({}, outputs, custom="")) == ()


@pytest.mark.parametrize(
    ("inputs", "outputs", "named"),
    [
        ({"a": "/submit/x", "b": "/submit/x"}, {}, "a and b are both called 'x'"),
        ({"a": "/submit/go.sh"}, {}, "executable and a are both called 'go.sh'"),
        ({}, {"o1": "/submit/1/x", "o2": "/submit/2/x"}, "o1 and o2 are both called 'x'"),
    ],
)
def test_files_of_one_name(inputs, outputs, named):
    with pytest.raises(PlanError, match=named):
        find_outputs(command(inputs, outputs))


@pytest.fixture
def record(tmp_path):
    area = tmp_path / "area 100% #1?"
    area.mkdir()
    (tmp_path / "submit").mkdir()
    destination = str(tmp_path / "submit" / "o ut#%41.txt")
    run = {"name": "run", "submit_path": str(tmp_path / "submit"), "staging_area": f"{area}/"}
    return RunRecord(run=run, outputs=[["key/1", destination]])


@pytest.mark.parametrize("as_uri", [False, True])
def test_what_was_left_is_moved(record, tmp_path, as_uri):
    ((key, destination),) = record.outputs
    left = tmp_path / "area 100% #1?" / runner.left_output(key, destination)
    left.parent.mkdir(parents=True)
    left.write_text("result")
    if as_uri:
        area = (tmp_path / "area 100% #1?").as_uri() + "/"
        record = record.model_copy(update={"run": record.run.model_copy(update={"staging_area": area})})
    assert FoundRun(1, record).collect_outputs(ENDED) == ()
    assert not left.exists()
    assert [path.read_text() for path in (tmp_path / "submit").iterdir()] == ["result"]
    assert Path(destination).read_text() == "result"
    # Nothing is left, and what is there stays.
    assert FoundRun(1, record).collect_outputs(ENDED) == ()
    assert Path(destination).read_text() == "result"


def test_an_output_that_cannot_be_fetched_is_named(record, tmp_path):
    ((key, destination),) = record.outputs
    left = tmp_path / "area 100% #1?" / runner.left_output(key, destination)
    left.parent.mkdir(parents=True)
    left.write_text("result")
    Path(destination).mkdir()
    (problem,) = FoundRun(1, record).collect_outputs(ENDED)
    assert "Output key/1 of run run cannot be fetched" in problem
    assert left.exists()


def test_runs_without_outputs():
    assert FoundRun(1, None).collect_outputs(ENDED) == ()
    assert FoundRun(1, RunRecord(run={"name": "run"})).collect_outputs(ENDED) == ()


def test_outputs_of_a_run_that_goes_on_are_left_where_they_are(record, tmp_path):
    ((key, destination),) = record.outputs
    left = tmp_path / "area 100% #1?" / runner.left_output(key, destination)
    left.parent.mkdir(parents=True)
    left.write_text("half")
    assert FoundRun(1, record).collect_outputs(WmsStates.RUNNING) == ()
    assert left.exists()
