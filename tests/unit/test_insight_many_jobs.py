"""Ten thousand jobs, with rows that a real PanDA replied."""

import json

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from panda_servers.recorded_panda import REQUEST_ID, RUN, RecordedPanda, RecordedRun

from lsst.ctrl.bps.panda.cli.panda_bps import main
from lsst.ctrl.bps.panda.insight.documents import read_schema

JOBS = 2500
TASKS = 4


@pytest.fixture(scope="module")
def server():
    with RecordedPanda(RecordedRun(tasks=TASKS, jobs=JOBS)) as running:
        yield running


@pytest.fixture
def call(server, tmp_path):
    def run(*words):
        env = {
            "PANDA_URL_SSL": server.url,
            "XDG_STATE_HOME": str(tmp_path),
            "USER": "ann",
            "PANDA_AUTH": None,
        }
        result = CliRunner().invoke(main, [*map(str, words)], env=env)
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout

    return run


def document(text):
    content = json.loads(text)
    Draft202012Validator(read_schema()).validate(content)
    return content


def test_errors(call):
    content = document(call("errors", REQUEST_ID, "--json"))
    assert (content["run"], content["problems"]) == (RUN, [])
    groups = content["groups"]
    assert [group["label"] for group in groups] == [f"label_{n}" for n in range(1, TASKS + 1)]
    for group in groups:
        # One job of ten failed twice, another once.
        assert (group["attempts"], group["jobs"], group["unfinished"]) == (750, 500, 250)
        assert group["error"]["source"] == "payload"
        assert group["error"]["code"] == 17
        assert group["verdict"]["name"] == "payload"
        assert len(group["nodes"]) == 5


def test_resources(call):
    labels = document(call("resources", REQUEST_ID, "--json"))["labels"]
    assert [(found["attempts"], found["finished"]) for found in labels] == [(3000, 2250)] * TASKS
    for found in labels:
        assert 195 < found["memory"]["least"] < found["memory"]["half"] < found["memory"]["largest"] < 293
        assert found["requested_memory"] == 1843
        assert found["wall"]["half"] == 11
        assert found["cpu"]["half"] == pytest.approx(9 / 11, abs=0.001)
        assert found["suggestions"]["requestMemory"] == 512


def test_show_asks_for_no_jobs(call, server):
    server.asked.clear()
    content = document(call("show", REQUEST_ID, "--json"))
    assert [task["failed"] for task in content["tasks"]] == [250] * TASKS
    assert "task/get_job_descriptions" not in server.asked


def test_page(call, tmp_path):
    path = tmp_path / "run.html"
    call("html", REQUEST_ID, "-o", path)
    text = path.read_text()
    assert text.count('class="error"') == TASKS
    assert len(text) < 300_000
