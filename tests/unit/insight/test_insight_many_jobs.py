"""A thousand jobs and ten thousand, with rows that a real PanDA replied."""

import json
import os
import subprocess
import sys
import threading

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from panda_servers.recorded_panda import REQUEST_ID, RUN, RecordedPanda, RecordedRun

from lsst.ctrl.bps.panda.cli.panda_bps import main
from lsst.ctrl.bps.panda.insight.documents import read_schema

TASKS = 4
MOST_MEMORY = 700_000
"""kB; 260 MB are seen, of which BPS's own modules take 150."""


@pytest.fixture(scope="module", params=[250, pytest.param(2500, marks=pytest.mark.slow)])
def server(request):
    with RecordedPanda(RecordedRun(tasks=TASKS, jobs=request.param)) as running:
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


def test_errors(call, server):
    jobs = server.run.jobs
    content = document(call("errors", REQUEST_ID, "--json"))
    assert (content["run"], content["problems"]) == (RUN, [])
    groups = content["groups"]
    assert [group["label"] for group in groups] == [f"label_{n}" for n in range(1, TASKS + 1)]
    for group in groups:
        # One job of ten failed twice, another once.
        assert (group["attempts"], group["jobs"]) == (3 * jobs // 10, 2 * jobs // 10)
        assert group["unfinished"] == jobs // 10
        assert group["error"]["source"] == "payload"
        assert group["error"]["code"] == 17
        assert group["verdict"]["name"] == "payload"
        assert len(group["nodes"]) == 5


def test_resources(call, server):
    jobs = server.run.jobs
    labels = document(call("resources", REQUEST_ID, "--json"))["labels"]
    assert [(found["attempts"], found["finished"]) for found in labels] == [
        (jobs * 12 // 10, jobs * 9 // 10)
    ] * TASKS
    for found in labels:
        assert 195 < found["memory"]["least"] < found["memory"]["half"] < found["memory"]["largest"] < 293
        assert found["requested_memory"] == 1843
        assert found["wall"]["half"] == 11
        assert found["cpu"]["half"] == pytest.approx(9 / 11, abs=0.001)
        assert found["suggestions"]["requestMemory"] == 512


def test_show_asks_for_no_jobs(call, server):
    server.asked.clear()
    content = document(call("show", REQUEST_ID, "--json"))
    assert [task["failed"] for task in content["tasks"]] == [server.run.jobs // 10] * TASKS
    assert "task/get_job_descriptions" not in server.asked
    assert "get_contents_output_ext" not in server.asked


def test_resources_do_not_ask_for_errors(call, server):
    server.asked.clear()
    call("resources", REQUEST_ID, "--label", "label_2")
    assert server.asked.count("task/get_job_descriptions") == 1
    assert "get_contents_output_ext" not in server.asked


# What the system says of a child that has ended includes the memory of the parent before exec; the
# high-water mark of /proc is the program's own.
MEASURED = """
import sys
from lsst.ctrl.bps.panda.cli.panda_bps import main
sys.argv = sys.argv[1:]
try:
    main()
finally:
    words = open("/proc/self/status").read().split()
    sys.stderr.write("\\n" + words[words.index("VmHWM:") + 1])
"""


@pytest.mark.slow
def test_page(server, tmp_path):
    """In a process of its own, to see how much memory it takes."""
    path = tmp_path / "run.html"
    env = {"PANDA_URL_SSL": server.url, "HOME": str(tmp_path), "USER": "ann", "PATH": os.environ["PATH"]}
    command = [sys.executable, "-c", MEASURED, "panda_bps", "html", str(REQUEST_ID), "-o", str(path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert int(done.stderr.split()[-1]) < MOST_MEMORY
    text = path.read_text()
    assert text.count('class="error"') == TASKS
    assert len(text) < 300_000


class PatientPanda(RecordedPanda):
    """Answers about jobs when four questions are there at once."""

    def __init__(self, run):
        super().__init__(run)
        self.together = threading.Barrier(4, timeout=60)

    def reply(self, path, body):
        if "get_job_descriptions" in path:
            self.together.wait()
            if "task_id=103" in path:
                return b"no JSON"
        return super().reply(path, body)


def test_tasks_are_asked_for_together_and_told_in_their_order(tmp_path):
    with PatientPanda(RecordedRun(tasks=4, jobs=10)) as server:
        env = {
            "PANDA_URL_SSL": server.url,
            "XDG_STATE_HOME": str(tmp_path),
            "USER": "ann",
            "PANDA_AUTH": None,
        }
        result = CliRunner().invoke(main, ["show", str(REQUEST_ID), "--jobs", "--json"], env=env)
    assert result.exit_code == 0, result.output
    content = document(result.stdout)
    assert list(dict.fromkeys(job["label"] for job in content["jobs"])) == ["label_1", "label_2", "label_4"]
    (problem,) = content["problems"]
    assert problem.startswith("The jobs of PanDA task 103 could not be had")
