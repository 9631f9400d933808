"""Looking into real runs: jobs on the embedded PanDA that succeed, fail in
three ways, run out of memory, are cancelled; with the commands as a user
types them.
"""

import json
import os
import re
import shlex
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from lsst.ctrl.bps.wms_service import WmsStates

from lsst.ctrl.bps import (
    BPS_DEFAULTS,
    BPS_SEARCH_ORDER,
    BpsConfig,
    GenericWorkflow,
    GenericWorkflowExec,
    GenericWorkflowJob,
)
from lsst.ctrl.bps.panda import PanDAService
from lsst.ctrl.bps.panda.cli.panda_bps import main
from lsst.ctrl.bps.panda.inquiry import connect
from lsst.ctrl.bps.panda.insight.documents import read_schema
from lsst.ctrl.bps.panda.insight.observation import observe
from lsst.ctrl.bps.panda.insight.verdicts import read_rulebook
from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.local.endpoint import environment
from lsst.ctrl.bps.panda.settings import read_service_settings

pytestmark = pytest.mark.slow

LIMIT = 300.0
ENDED = {WmsStates.SUCCEEDED, WmsStates.FAILED, WmsStates.DELETED}
SH = GenericWorkflowExec("sh", "/bin/sh", False)
HUNGRY = (
    "import time; block = bytearray(200 * 1024**2); block[::4096] = bytes(len(block[::4096])); time.sleep({})"
)


class Service(PanDAService):
    env: dict

    def settings(self):
        return read_service_settings(self.config, self.env)


class Place:
    """A user's place on an embedded PanDA."""

    def __init__(self, endpoint, directory):
        self.directory = directory
        home = {"USER": "ann", "PATH": os.environ["PATH"], "HOME": str(directory)}
        self.env = {**home, "XDG_STATE_HOME": str(directory / "state"), **environment(endpoint)}
        self.service_class = type("UserService", (Service,), {"env": self.env})

    def submit(self, name, build):
        submit_path = self.directory / f"submit {name}"
        config = BpsConfig(
            {
                "submitPath": str(submit_path),
                "uniqProcName": f"u_ann_{name}",
                "outputRun": f"u/ann/{name}",
                "operator": "ann",
                "project": "proj",
                "campaign": "camp",
                "computeSite": "local",
                "fileDistributionEndPoint": f"{self.directory}/area/{name}/",
                "payload": {"payloadName": "pay"},
            },
            search_order=BPS_SEARCH_ORDER,
            defaults=BPS_DEFAULTS,
            wms_service_class_fqn="lsst.ctrl.bps.panda.PanDAService",
        )
        workflow = GenericWorkflow(f"u_ann_{name}")
        workflow.run_attrs.update(bps_isjob="True", bps_operator="ann", bps_payload="pay")
        build(workflow)
        service = self.service_class(config)
        made = service.prepare(config, workflow, str(submit_path))
        service.submit(made)
        return made.run_id

    def wait(self, run_id, states=ENDED):
        service = self.service_class({})
        end = time.monotonic() + LIMIT
        while (state := service.get_status(run_id)[0]) not in states:
            assert time.monotonic() < end, state
            time.sleep(0.5)
        return state

    def call(self, *words, code=0):
        """Run a sub-command; give what it printed, and on standard error."""
        result = CliRunner().invoke(main, [*map(str, words)], env=self.env)
        assert result.exit_code == code, (result.output, result.exception)
        return result.stdout, result.stderr

    def json(self, *words, code=0):
        content = json.loads(self.call(*words, "--json", code=code)[0])
        Draft202012Validator(read_schema()).validate(content)
        return content


def add(workflow, name, label, script, parents=(), **attributes):
    attributes = {"number_of_retries": 0, "request_memory": 64, **attributes}
    arguments = "-c '" + script.replace("'", "'\\''") + "'"
    workflow.add_job(GenericWorkflowJob(name, label, executable=SH, arguments=arguments, **attributes))
    workflow.add_job_relationships(list(parents) or None, name)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("insight")
    yield Place(instance.start(directory / "a panda", slots=4), directory)
    instance.stop(directory / "a panda")


def good(workflow):
    for i in range(6):
        add(workflow, f"a{i}", "isr", "echo INFO hello from $PANDAID; echo WARNING beware >&2")
        add(workflow, f"b{i}", "calib_2", "echo done", [f"a{i}"])
    add(workflow, "c", "coadd", "sleep 1", [f"b{i}" for i in range(6)])


def bad(workflow):
    """Three ways to fail, and one to run out of memory."""
    trace = "echo Traceback; echo DatasetNotFoundError: no dataset of kind $0 >&2; exit 1"
    for i in range(4):
        add(workflow, f"a{i}", "isr", "true")
        add(workflow, f"m{i}", "missing", trace if i < 3 else "true", [f"a{i}"])
    add(workflow, "s", "crashes", "kill -SEGV $$")
    add(workflow, "n", "nocommand", "there_is_no_such_command", number_of_retries=1)
    add(workflow, "r", "again", "test <WMS:attemptNum> -eq 1 || exit 5", number_of_retries=1)
    add(workflow, "h", "hungry", f'python3 -c "{HUNGRY.format(60)}"')
    grows = {"request_memory": 150, "memory_multiplier": 2, "number_of_retries": 1}
    add(workflow, "g", "grows", f'python3 -c "{HUNGRY.format(4)}"', **grows)


@pytest.fixture(scope="module")
def good_run(place):
    run_id = place.submit("good", good)
    assert place.wait(run_id) is WmsStates.SUCCEEDED
    return run_id


@pytest.fixture(scope="module")
def bad_run(place):
    run_id = place.submit("bad", bad)
    assert place.wait(run_id) is WmsStates.FAILED
    return run_id


def test_show(place, good_run):
    text, _ = place.call("show", good_run)
    assert re.search(r"state: +SUCCEEDED \(iDDS: Finished\)", text)
    assert "panda_plan.json" in text
    found = place.json("show", good_run)
    assert (found["kind"], found["version"], found["request_id"]) == ("show", 1, int(good_run))
    assert [task["label"] for task in found["tasks"]] == ["isr", "calib_2", "coadd"]
    assert [task["finished"] for task in found["tasks"]] == [6, 6, 1]
    assert {task["panda_status"] for task in found["tasks"]} == {"done"}
    assert found["labels"]["calib_2"]["SUCCEEDED"] == 6
    for way in (found["submit_path"], "u_ann_good"):
        assert place.json("show", way)["request_id"] == int(good_run)


def test_jobs(place, bad_run):
    jobs = place.json("show", bad_run, "--jobs", "--label", "again")["jobs"]
    assert [(job["attempt"], job["status"]) for job in jobs] == [(1, "failed"), (2, "finished")]
    assert jobs[0]["errors"][0]["code"] == 5
    text, _ = place.call("show", bad_run, "--jobs")
    assert re.search(r"^crashes +crashes:0 +failed +LOCAL .* payload 139$", text, re.MULTILINE)


def test_errors_of_a_run_without_any(place, good_run):
    assert place.json("errors", good_run)["groups"] == []
    assert "No failed job" in place.call("errors", good_run)[0]


def test_errors_give_verdicts(place, bad_run):
    document = place.json("errors", bad_run)
    groups = {group["label"]: group for group in document["groups"]}
    verdicts = {label: group["verdict"]["name"] for label, group in groups.items()}
    assert verdicts == {
        "missing": "missing input",
        "crashes": "crash",
        "nocommand": "environment",
        "hungry": "out of memory",
    }
    missing = groups["missing"]
    assert (missing["attempts"], missing["jobs"], missing["unfinished"]) == (3, 3, 3)
    assert missing["error"]["source"] == "payload"
    assert missing["error"]["code"] == 1
    assert missing["log_tail"][-1] == "DatasetNotFoundError: no dataset of kind /bin/sh"
    assert missing["first"] <= missing["last"]
    assert (groups["nocommand"]["attempts"], groups["nocommand"]["jobs"]) == (2, 1)
    assert groups["crashes"]["error"]["code"] == 139
    assert document["groups"][0]["label"] == "missing"
    text, _ = place.call("errors", bad_run)
    assert "Raise requestMemory" in text
    everything = place.json("errors", bad_run, "--recovered")["groups"]
    assert [group["label"] for group in everything[-2:]] == ["again", "grows"]
    assert {(group["attempts"], group["unfinished"]) for group in everything[-2:]} == {(1, 0)}
    text, _ = place.call("errors", bad_run, "--recovered", "--label", "again")
    assert "1 of them finished in another attempt" in text


def test_own_rules_come_first(place, bad_run, tmp_path):
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "verdicts: {flats: Ask the calibration team.}\n"
        "rules: [{verdict: flats, log: 'no dataset of kind /bin'}]\n"
    )
    (group,) = place.json("errors", bad_run, "--label", "missing", "--rules", rules)["groups"]
    assert group["verdict"] == {"name": "flats", "advice": "Ask the calibration team."}


def test_logs(place, good_run, bad_run):
    text, told = place.call("logs", bad_run, "--label", "missing", "--grep", "of kind /")
    assert len(text.splitlines()) == 3
    assert "DatasetNotFoundError" in text
    assert "/logs/PandaJob_" in told
    lines = place.json("logs", good_run, "--label", "isr", "--level", "WARNING")["lines"]
    assert [line["message"] for line in lines] == ["WARNING beware"] * 6
    assert {line["file"] for line in lines} == {"payload.stderr"}
    panda_id = lines[0]["panda_id"]
    one = place.json("logs", good_run, "--job", panda_id, "--file", "payload.stdout")["lines"]
    assert [line["message"][:16] for line in one] == ["INFO hello from "]
    assert "exit code 0" in place.call("logs", good_run, "--job", panda_id, "--file", "pilotlog.txt")[0]
    failed = place.json("logs", bad_run, "--failed", "--grep", "not found")["lines"]
    assert failed
    # With --follow nothing is left out because something failed.
    everything = place.json("logs", bad_run, "--follow", "--grep", "^runner:")["lines"]
    assert len({line["panda_id"] for line in everything}) == 16
    assert "no job 'nobody'" in place.call("logs", good_run, "--job", "nobody", code=1)[1]
    assert "Labels of the run: isr" in place.call("logs", good_run, "--label", "nothing", code=1)[1]


def test_the_query_for_the_console(place, good_run):
    text, _ = place.call("logs", good_run, "--query", "--project", "proj-1", "--level", "ERROR")
    query, address = text.splitlines()
    assert 'logName="projects/proj-1/logs/Panda-RubinLog"' in query
    assert f"jsonPayload.RequestID={good_run}" in query
    assert 'timestamp>="20' in query
    assert address.startswith("https://console.cloud.google.com/logs/query;query=logName")


def test_resources(place, good_run, bad_run):
    labels = {found["label"]: found for found in place.json("resources", good_run)["labels"]}
    assert list(labels) == ["isr", "calib_2", "coadd"]
    assert (labels["isr"]["finished"], labels["isr"]["requested_memory"]) == (6, 64)
    assert labels["isr"]["memory"]["largest"] > 0
    assert labels["coadd"]["wall"]["largest"] >= 1
    bad_labels = {found["label"]: found for found in place.json("resources", bad_run)["labels"]}
    hungry = bad_labels["hungry"]
    assert hungry["out_of_memory"] == 1
    assert hungry["near_limit"][0]["max_rss"] > 64 * 1024
    assert hungry["suggestions"]["requestMemory"] >= 256
    # Ended for lack of memory once, then finished with more.
    grown = bad_labels["grows"]
    assert (grown["attempts"], grown["finished"], grown["out_of_memory"]) == (2, 1, 1)
    assert (grown["requested_memory"], grown["largest_request"], grown["retried_with_more"]) == (150, 300, 1)
    assert 240 <= grown["suggestions"]["requestMemory"] <= 512
    text, _ = place.call("resources", bad_run)
    assert re.search(r"^  hungry:\n    requestMemory: \d+", text, re.MULTILINE)


def test_watch_ends_with_the_run_and_its_state(place, bad_run):
    text, _ = place.call("watch", bad_run, "--interval", "5", code=WmsStates.FAILED.value)
    (line, *errors) = text.splitlines()
    assert line.endswith("; ended")
    assert "6 failed" in line
    assert any("payload 139 in crashes" in error for error in errors)
    assert place.json("watch", bad_run, "--interval", "5", code=WmsStates.FAILED.value)["ended"] is True


def test_a_running_and_a_cancelled_run(place):
    def build(workflow):
        for i in range(2):
            add(workflow, f"w{i}", "waits", "echo begun in $PANDAID; sleep 100")

    run_id = place.submit("slow", build)
    end = time.monotonic() + LIMIT
    while not place.json("logs", run_id, "--grep", r"begun in \d")["lines"]:
        assert time.monotonic() < end
        time.sleep(0.5)
    assert place.json("show", run_id)["ended"] is False
    # The log of a job that runs is followed; cancel ends it.
    service = place.service_class({})
    accepted, message = service.cancel(run_id)
    assert accepted, message
    followed, _ = place.call("logs", run_id, "--follow")
    assert len(re.findall(r"begun in \d", followed)) == 2
    text, _ = place.call("watch", run_id, "--interval", "5", code=WmsStates.DELETED.value)
    assert "2 deleted" in text.splitlines()[-1]
    # A pilot hears of it a little later.
    groups = []
    while sum(group["attempts"] for group in groups) < 2:
        assert time.monotonic() < end
        groups = place.json("errors", run_id)["groups"]
        time.sleep(0.5)
    assert {group["verdict"]["name"] for group in groups} == {"cancelled"}


def test_html(place, bad_run, tmp_path):
    path = tmp_path / "run.html"
    place.call("html", bad_run, "-o", path)
    text = path.read_text()
    assert "missing: missing input" in text
    assert "DatasetNotFoundError: no dataset of kind" in text
    assert text.count('<path class="edge"') == 2  # isr to both tasks of missing
    assert 'data-state="FAILED"' in text
    assert not re.search(r"<script|src=|@import|url\(", text)


def test_every_command_of_the_how_to(place, bad_run, tmp_path, monkeypatch):
    """Act out the page "Why did my job fail?", with this run for run 41."""
    monkeypatch.chdir(tmp_path)
    panda_id = place.json("errors", bad_run, "--label", "missing")["groups"][0]["example"]["panda_id"]
    page = (Path(__file__).resolve().parents[2] / "doc/lsst.ctrl.bps.panda/failures.rst").read_text()
    commands = re.findall(r"^   \$ panda_bps (.*)$", page, re.MULTILINE)
    assert len(commands) == 7
    said = {}
    for command in commands:
        words = [{"41": bad_run, "1000025": panda_id}.get(word, word) for word in shlex.split(command)]
        said[command] = place.call(*words)[0]
    assert "missing: missing input" in said["errors 41"]
    assert "hungry" in said["resources 41"]
    assert len(said['logs 41 --label missing --grep "no dataset"'].splitlines()) >= 3
    assert "no dataset of kind" in said["logs 41 --job 1000025"]
    assert (tmp_path / "run41.html").stat().st_size > 10_000
    # Each verdict that the rules give is explained there.
    for verdict in read_rulebook().verdicts:
        assert re.search(rf"^{verdict}  ", page, re.MULTILINE), verdict
    # Rules of one's own, as the page has them.
    (block,) = re.findall(r"^   format: 1\n(?:   .*\n)+", page, re.MULTILINE)
    Path("rules.yaml").write_text(re.sub("^   ", "", block, flags=re.MULTILINE).replace("kind flat", "kind"))
    groups = place.json("errors", bad_run, "--label", "missing", "--rules", "rules.yaml")["groups"]
    assert groups[0]["verdict"]["name"] == "flats"
    # And the last step: what failed is run again.
    assert "bps restart --id 41" in page


def test_from_python(place, bad_run):
    observation = observe(connect(read_service_settings(None, place.env)), bad_run)
    assert observation.tally.state is WmsStates.FAILED
    assert {job.label for job in observation.jobs if job.failed} == {
        "missing", "crashes", "nocommand", "again", "hungry", "grows",
    }  # fmt: skip


def test_no_such_run(place):
    assert "no run 98765" in place.call("show", 98765, code=1)[1]
