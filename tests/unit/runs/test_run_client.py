"""Finding runs and asking about them, with recorded replies of a real server."""

import json
from pathlib import Path

import pytest

from lsst.ctrl.bps.panda.errors import RefusedError, RunNotFoundError
from lsst.ctrl.bps.panda.rest.credentials import Anonymous
from lsst.ctrl.bps.panda.runs.client import Connection, RunClient
from lsst.ctrl.bps.panda.runs.record import RunIndex, RunRecord
from lsst.ctrl.bps.panda.settings.run import read_service_settings

CAPTURES = Path(__file__).parents[2] / "data" / "captures" / "real"
SERVER = "http://here/server/panda"


def reply(name):
    return json.loads((CAPTURES / f"{name}.json").read_text())[1][1]


class Server:
    """Answers with recorded replies; a real PanDA cannot be had in a test."""

    def __init__(self, detail, *, contents=None, tasks=()):
        self.detail = detail
        self.asked = []
        self._contents = contents or {}
        self._tasks = tasks

    def get_requests(self, request_id, *, with_detail=False, with_metadata=False):
        self.asked.append("detail" if with_detail else "request")
        return self.detail

    def get_contents(self, request_id, transform_id=None):
        self.asked.append(f"contents {transform_id}")
        if isinstance(self._contents, Exception):
            raise self._contents
        return {key: rows for key, rows in self._contents.items() if int(key) == transform_id}

    def get_request_ids_by_name(self, name):
        return {name: 7} if name == "known" else {}

    def tasks_since(self, since=None, *, filters=None, limit=500):
        return list(self._tasks)

    def job_descriptions(self, task_id, *, unsuccessful_only=False):
        return []


def make_client(server, tmp_path):
    env = {"PANDA_URL": SERVER, "USER": "ann", "XDG_STATE_HOME": str(tmp_path)}
    settings = read_service_settings({}, env)
    return RunClient(Connection(server, server, settings, Anonymous()))


def terminal(rows, status):
    """The rows, with a request whose status is terminal already."""
    changed = json.loads(json.dumps(rows))
    for row in changed:
        row["status"]["attributes"]["_name_"] = status
    return changed


@pytest.mark.parametrize("status", ["Finished", "SubFinished", "Failed"])
def test_a_terminal_status_that_comes_too_early_is_not_believed(tmp_path, status):
    rows = reply("run3_before_abort_get_requests_detail")
    evidence = make_client(Server(terminal(rows, status)), tmp_path).status(3)
    assert evidence.request.status == status
    assert not evidence.ended


def test_a_status_is_one_question(tmp_path):
    server = Server(reply("run1_success_get_requests_detail"))
    evidence = make_client(server, tmp_path).status("1")
    assert server.asked == ["detail"]
    assert len(evidence.transforms) == len(server.detail)


def test_before_transforms_exist(tmp_path):
    row = dict(reply("run1_success_get_requests_with_detail_False")[0], request_id=None, transform_id=None)
    evidence = make_client(Server(terminal([row], "New")), tmp_path).status(1)
    assert evidence.request.request_id == 1
    assert not evidence.ended


def test_contents_are_asked_for_where_there_are_failures(tmp_path):
    name = "run2_failed_before_end_get_"
    contents = reply(f"{name}contents_output_ext_all")
    server = Server(reply(f"{name}requests_detail"), contents=contents)
    evidence = make_client(server, tmp_path).detail(2)
    asked = [text for text in server.asked if text.startswith("contents")]
    assert 0 < len(asked) < len(evidence.transforms)
    assert evidence.problems == ()
    assert sum(len(rows) for rows in evidence.contents.values()) > 0


@pytest.mark.parametrize(("most", "mixed"), [(1000, True), (1, False), (0, False)])
def test_contents_tell_which_job_is_in_which_state_where_jobs_are_in_several(tmp_path, most, mixed):
    name = "run3_before_abort_get_requests_detail"
    server = Server(reply(name))
    evidence = make_client(server, tmp_path).detail(3, jobs_listed=most)
    asked = {text for text in server.asked if text.startswith("contents")}
    several = {f"contents {number}" for number in evidence.mixed_transforms(all_states=True)}
    assert several
    assert len(several) < len(evidence.transforms)
    assert asked == (several if mixed else set())


def test_contents_that_cannot_be_had_are_said_to_be_missing(tmp_path):
    server = Server(reply("run2_failed_before_end_get_requests_detail"), contents=RefusedError("no"))
    evidence = make_client(server, tmp_path).detail(2)
    assert evidence.contents == {}
    assert "could not be fetched" in evidence.problems[0]


def test_a_run_by_number_name_and_directory(tmp_path):
    client = make_client(Server([]), tmp_path)
    record = RunRecord(run={"name": "known", "submit_path": str(tmp_path / "sub")}, request_id=7)
    record.write(tmp_path / "sub")
    assert client.find("7") == (7, None)
    RunIndex(str(tmp_path / "panda_bps"), SERVER).add(record)
    for way in ("7", 7, "known", str(tmp_path / "sub")):
        request_id, found = client.find(way)
        assert request_id == 7
        assert found.name == "known"


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("", "No run was named"),
        ("nobody", "No run is named 'nobody'"),
        ("/no/such/place", "holds no panda_run.json"),
    ],
)
def test_unknown_runs(tmp_path, run, words):
    with pytest.raises(RunNotFoundError, match=words):
        make_client(Server([]), tmp_path).find(run)


def test_a_prepared_run_is_not_a_submitted_one(tmp_path):
    RunRecord(run={"name": "r", "submit_path": str(tmp_path)}, request_id=None).write()
    with pytest.raises(RunNotFoundError, match="prepared but not submitted"):
        make_client(Server([]), tmp_path).find(str(tmp_path))


def test_an_unknown_number_is_said_with_the_server(tmp_path):
    with pytest.raises(RunNotFoundError, match=f"no run 99 on {SERVER}"):
        make_client(Server([]), tmp_path).status(99)


def test_running_jobs_are_not_asked_for_when_nothing_goes_on(tmp_path):
    client = make_client(Server(reply("run1_success_get_requests_detail")), tmp_path)
    assert client.with_panda(client.status(1)).running_jobs == 0
