"""The record of a run and the list of one's own runs."""

import json
import os

import pytest

from lsst.ctrl.bps.panda.errors import PandaBpsError, RunNotFoundError
from lsst.ctrl.bps.panda.runs.record import RECORD_NAME, RunIndex, RunRecord, read_record, write_text

SERVER = "http://here/server/panda"


def make_record(directory, *, request_id=None, name="u_me_x"):
    content = {"run": {"name": name, "submit_path": str(directory)}, "request_id": request_id}
    record = RunRecord(content)
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


def test_the_list_knows_the_runs_of_one_server(tmp_path):
    index = RunIndex(str(tmp_path / "state"))
    index.add(make_record(tmp_path / "one", request_id=1, name="n1"), server=SERVER)
    index.add(make_record(tmp_path / "two", request_id=2, name="n2"), server=SERVER)
    index.add(make_record(tmp_path / "three", request_id=1, name="n3"), server="http://there")
    assert [entry["name"] for entry in index.entries(SERVER)] == ["n1", "n2"]
    assert index.find(SERVER, request_id=2).name == "n2"
    assert index.find(SERVER, name="n1").request_id == 1
    assert index.find("http://there", request_id=1).name == "n3"
    assert index.find(SERVER, request_id=5) is None


def test_a_damaged_line_or_a_removed_directory_does_not_matter(tmp_path):
    index = RunIndex(str(tmp_path / "state"))
    index.add(make_record(tmp_path / "one", request_id=1, name="n1"), server=SERVER)
    path = tmp_path / "state" / "runs.jsonl"
    gone = json.dumps({"server": SERVER, "request_id": 9, "submit_path": "/no"})
    path.write_text("{half\n" + path.read_text() + gone)
    assert [entry["request_id"] for entry in index.entries(SERVER)] == [1, 9]
    assert index.find(SERVER, request_id=9) is None


def test_a_list_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / "state").write_text("a file")
    RunIndex(str(tmp_path / "state")).add(make_record(tmp_path / "one", request_id=1), server=SERVER)
    assert "not in the list of own runs" in caplog.text
