"""The record of a run and the list of one's own runs."""

import json
import os
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lsst.ctrl.bps.panda.errors import PandaBpsError, RunNotFoundError
from lsst.ctrl.bps.panda.files import write_text
from lsst.ctrl.bps.panda.plan.document import RunAttributes
from lsst.ctrl.bps.panda.plan.model import RunIdentity, WorkflowPlan
from lsst.ctrl.bps.panda.runs.files import RECORD_NAME
from lsst.ctrl.bps.panda.runs.record import RunIndex, RunRecord, read_record
from lsst.ctrl.bps.panda.settings.run import StagingSettings

SERVER = "http://here/server/panda"


def make_record(directory, *, request_id=None, name="u_me_x"):
    record = RunRecord(run={"name": name, "submit_path": str(directory)}, request_id=request_id)
    directory.mkdir(parents=True, exist_ok=True)
    record.write(directory)
    return record


def test_a_record_is_read_as_it_was_written(tmp_path):
    make_record(tmp_path / "a b", request_id=7)
    record = read_record(tmp_path / "a b")
    assert (record.request_id, record.name, record.submit_path) == (7, "u_me_x", str(tmp_path / "a b"))
    assert read_record(tmp_path / "a b" / "u_me_x_config.yaml").request_id == 7


def test_a_directory_without_a_record_is_not_a_run(tmp_path):
    with pytest.raises(RunNotFoundError, match="not the submit directory of a run"):
        read_record(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"run": 3}'])
def test_a_damaged_record_is_said_to_be_damaged(tmp_path, text):
    (tmp_path / RECORD_NAME).write_text(text)
    with pytest.raises(PandaBpsError, match="damaged"):
        read_record(tmp_path)


def test_a_failed_write_leaves_the_old_content(tmp_path):
    path = tmp_path / "f"
    write_text(path, ["old"])

    def pieces():
        yield "new"
        raise RuntimeError("in between")

    with pytest.raises(RuntimeError):
        write_text(path, pieces())
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


RECORDS = sorted((Path(__file__).parents[2] / "data" / "records").glob("*.json"))
"""Records written by the first code that had format 1, whose keys nobody checked."""


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_of_earlier_code_is_read_and_written_back_as_it_was(tmp_path, path):
    shutil.copy(path, tmp_path / RECORD_NAME)
    record = read_record(tmp_path)
    assert record.request_id in (41, 42, 43)
    written = record.write(tmp_path)
    assert json.loads(written.read_text()) == json.loads(path.read_text())


def stored(name):
    (path,) = (path for path in RECORDS if path.stem == name)
    return RunRecord.model_validate_json(path.read_text())


def test_what_a_record_of_earlier_code_says():
    run, restart, remote = map(stored, ("restarted", "restart", "remote"))
    assert (run.name, run.submit_path, run.staging_area) == ("run", "/submit/run", "/submit/run/area/")
    assert (run.server, run.request_bytes) == ("http://here/server/panda", 1234)
    assert run.submitted_at == datetime(2026, 11, 20, 12, 0, 5, tzinfo=UTC)
    assert run.outputs == (("log", "/submit/run/log.txt"),)
    assert (run.clusters, run.restarts, run.restarted_as) == (("coadd",), 1, 42)
    assert run.messages == {"pandaMessagesUrl": "stomp+ssl://mine"}
    assert run.staging_settings == StagingSettings("/submit/run/area/", 10, False)
    assert run.plan_summary().labels[:2] == (("isr", 3), ("coadd", 3))
    assert not run.waits_for_site
    assert (restart.origin_directory, restart.run.origin) == (Path("/submit/run"), 41)
    assert run.origin_directory == Path("/submit/run")
    assert remote.waits_for_site
    assert remote.remote.archive == "jobO.1.tar.gz"


def test_keys_of_a_newer_plugin_are_kept(tmp_path):
    content = {
        "format": 1, "run": {"name": "r", "colour": "red"}, "staging": {"max_workers": 3, "mirror": None},
        "future": {"a": [1, None]},
    }  # fmt: skip
    (tmp_path / RECORD_NAME).write_text(json.dumps(content))
    record = read_record(tmp_path).submitted(7, server=SERVER)
    found = json.loads(record.write(tmp_path).read_text())
    assert found.pop("submitted_at")
    assert found == content | {"request_id": 7, "server": SERVER}


def test_a_newer_format_is_refused(tmp_path):
    (tmp_path / RECORD_NAME).write_text('{"format": 2, "run": {"name": "r"}}')
    with pytest.raises(PandaBpsError, match=r"panda_run.json has format 2 and this version .* reads 1"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"run": {}}', "run.name: Field required"),
        ('{"run": {"name": "r"}, "request_id": "x"}', "request_id: Input should be a valid integer"),
        (
            '{"run": {"name": "r"}, "tasks": [["t", "l", "many"]]}',
            "tasks.0.2: Input should be a valid integer",
        ),
        ('{"run": {"name": "r"}, "submitted_at": "now"}', "submitted_at: Input should be a valid datetime"),
    ],
)
def test_a_damaged_record_is_named_with_file_and_key(tmp_path, content, words):
    (tmp_path / RECORD_NAME).write_text(content)
    with pytest.raises(PandaBpsError, match=f"{re.escape(str(tmp_path))}/panda_run.json is damaged: {words}"):
        read_record(tmp_path)


def test_the_record_of_a_restart_keeps_what_the_plan_does_not_say():
    run = stored("restarted")
    plan = WorkflowPlan(
        RunIdentity("run_r2", "op", "", "", "", "u/x", "S", "/submit/run/restart_2", "/a/", "1", "2", 41),
        (), (), (), (), (), (("isr", 1),),
    )  # fmt: skip
    new = run.for_restart(plan)
    assert (new.staging, new.clusters, new.messages, new.outputs) == (
        run.staging, run.clusters, run.messages, run.outputs,
    )  # fmt: skip
    assert (new.restarts, new.origin_path, new.run.origin, new.request_id) == (2, "/submit/run", 41, None)
    assert (new.restarted_as, new.server, new.submitted_at) == (None, "", None)
    assert (run.restarted(50).restarts, run.restarted(50).restarted_as) == (2, 50)


RUN = "u_ann_demo_20261120T120000Z"
CONTENT = {
    "run": {"name": RUN, "operator": "ann", "project": "P", "site": "SLAC", "submit_path": "/s", "origin": 4},
    "labels": [["isr", 2], ["finalJob", 1]],
    "tasks": [["t1", "isr", 2], {"name": "t2", "label": "finalJob", "jobs": 1}],
    "final_labels": ["finalJob"],
}


def test_a_plan_summary_of_a_run_record():
    plan = RunRecord.model_validate(CONTENT).plan_summary()
    assert plan.labels == (("isr", 2), ("finalJob", 1))
    assert plan.tasks == (("t1", "isr", 2), ("t2", "finalJob", 1))
    assert (plan.final_labels, plan.site, plan.path) == (("finalJob",), "SLAC", "/s")
    assert plan.attributes == RunAttributes(RUN, "ann", "P", "", "", jobs=3, tasks=2, origin=4)


def test_labels_are_found_in_tasks_where_the_record_has_none():
    content = {"run": {"name": ""}, "tasks": [["t1", "a", 2], ["t2", "b", 1], ["t3", "a", 2]]}
    plan = RunRecord.model_validate(content).plan_summary()
    assert plan.labels == (("a", 4), ("b", 1))
    assert plan.attributes is None


@pytest.mark.parametrize(
    "record",
    [{"labels": 3}, {"tasks": [["t1"]]}, {"tasks": [{"name": "t"}]}, {"labels": [["isr", "many"]]}, []],
)
def test_a_record_of_another_shape_is_refused(record):
    content = {"run": {"name": "r"}, **record} if isinstance(record, dict) else record
    with pytest.raises(ValueError, match="run record"):
        RunRecord.model_validate(content)


def test_the_list_knows_the_runs_of_one_server(tmp_path):
    index = RunIndex(str(tmp_path / "state"), SERVER)
    index.add(make_record(tmp_path / "one", request_id=1, name="n1"))
    index.add(make_record(tmp_path / "two", request_id=2, name="n2"))
    there = RunIndex(str(tmp_path / "state"), "http://there")
    there.add(make_record(tmp_path / "three", request_id=1, name="n3"))
    assert [entry.name for entry in index.entries()] == ["n1", "n2"]
    assert index.find(2).name == "n2"
    assert index.find("n1").request_id == 1
    assert there.find(1).name == "n3"
    assert index.find("5") is None
    assert index.find(str(tmp_path / "one")).name == "n1"


def test_a_damaged_line_or_a_removed_directory_does_not_matter(tmp_path):
    index = RunIndex(str(tmp_path / "state"), SERVER)
    index.add(make_record(tmp_path / "one", request_id=1, name="n1"))
    path = tmp_path / "state" / "runs.jsonl"
    gone = json.dumps({"server": SERVER, "request_id": 9, "submit_path": "/no"})
    path.write_text("{half\n" + path.read_text() + gone)
    assert [entry.request_id for entry in index.entries()] == [1, 9]
    assert index.find(9) is None


def test_a_list_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / "state").write_text("a file")
    RunIndex(str(tmp_path / "state"), SERVER).add(make_record(tmp_path / "one", request_id=1))
    assert "not in the list of own runs" in caplog.text
