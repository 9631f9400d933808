"""Looking into real runs: jobs on the embedded PanDA that succeed, fail in
three ways, run out of memory, are cancelled; with the commands as a user
types them.
"""

import json
import re
import shlex
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from lsst.ctrl.bps.wms_service import WmsStates
from panda_servers.place import LIMIT, Place, add

from lsst.ctrl.bps.panda.campaign.record import CampaignIndex, CampaignRecord, PartRecord, PartState
from lsst.ctrl.bps.panda.cli.panda_bps import main
from lsst.ctrl.bps.panda.insight.documents import make_document
from lsst.ctrl.bps.panda.insight.logs import LogTransport, TailReader
from lsst.ctrl.bps.panda.insight.overview import fetch_evidence
from lsst.ctrl.bps.panda.insight.resources import measure_resources
from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.runs.client import connect
from lsst.ctrl.bps.panda.runs.jobs import RunJobs
from lsst.ctrl.bps.panda.settings.run import read_service_settings
from lsst.ctrl.bps.panda.status.failures import add_verdicts, group_errors, name_examples
from lsst.ctrl.bps.panda.status.verdicts import PACKAGED_RULES

pytestmark = pytest.mark.slow

HUNGRY = (
    "import time; block = bytearray(200 * 1024**2); block[::4096] = bytes(len(block[::4096])); time.sleep({})"
)


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
    assert re.search(r"^crashes +crashes:0 +s +- +failed +LOCAL .* payload 139$", text, re.MULTILINE)


def test_errors_of_a_run_without_any(place, good_run):
    assert place.json("errors", good_run)["groups"] == []
    assert "No failed job" in place.call("errors", good_run)[0]


def test_exceptions_that_share_an_exit_code_are_all_named(place):
    said = ("KeyError: 1", "KeyError: 2", "RuntimeError: no stars")

    def build(workflow):
        for number, exception in enumerate(said):
            add(workflow, f"v{number}", "various", f"echo Traceback; echo {exception} >&2; exit 1")

    run = place.submit("various", build)
    assert place.wait(run) is WmsStates.FAILED
    (group,) = place.json("errors", run)["groups"]
    assert (group["attempts"], group["jobs"]) == (3, 3)
    named = [group["exception"], *(other["exception"] for other in group["others"])]
    # One of those that differ by a number only.
    assert sorted(re.sub(r"\d", "#", exception) for exception in named) == [
        "KeyError: #",
        "RuntimeError: no stars",
    ]
    (other,) = group["others"]
    assert other["job"]["panda_id"] != group["example"]["panda_id"]
    text, _ = place.call("errors", run)
    assert text.index(group["exception"]) < text.index(f"also: {other['exception']}") < text.index("=>")
    reported = str(place.service_class({}).report(wms_workflow_id=run)[0][0].specific_info)
    assert f"also {other['exception']}" in reported


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
    assert [groups[label]["exception"] for label in ("missing", "crashes", "nocommand")] == [
        "DatasetNotFoundError: no dataset of kind /bin/sh",
        "crash, without an exception: payload 139, ended by SIGSEGV; Failed to execute payload",
        "/bin/sh: 1: there_is_no_such_command: not found",
    ]
    hungry = r"out of memory, without an exception: .*; Payload ran out of memory, with \d+ of 64 MB in use"
    assert re.fullmatch(hungry, groups["hungry"]["exception"])
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


CAUSES = {
    "failing": (
        "raise RuntimeError(1)",
        "RuntimeError: deliberate failure of visit=1",
        "payload",
    ),
    "nodata": (
        "raise DatasetNotFoundError(1)",
        "lsst.daf.butler.DatasetNotFoundError: no flat",
        "missing input",
    ),
}
PIPETASK = """\
INFO 2026-11-20T18:12:47.040+00:00 lsst.ctrl.mpexec - start
ERROR 2026-11-20T18:12:47.040+00:00 lsst.pipe.base.single_quantum_executor (x)(y.py:1) - failed
Traceback (most recent call last):
  File "star_task.py", line 41, in runQuantum
    {line}
{cause}
Traceback (most recent call last):
  File "mp_graph_executor.py", line 750, in _execute_quanta_in_process
    raise MPGraphExecutorError("One or more tasks failed during execution.")
lsst.pipe.base.mp_graph_executor.MPGraphExecutorError: One or more tasks failed during execution.
"""


def test_the_cause_is_the_same_however_often_it_is_tried(tmp_path):
    """PanDA makes attempts that the runner refuses, as a real one does; nobody takes them for the failure."""
    state = tmp_path / "a panda"
    place = Place(instance.start(state, slots=4, pace="quick,refused_attempts=true"), tmp_path)

    def build(workflow):
        for retries in (0, 2):
            more = {"number_of_retries": retries, "retry_unless_exit": [1, 2]}
            for label, (line, cause, _) in CAUSES.items():
                text = PIPETASK.format(line=line, cause=cause)
                add(workflow, f"{label}{retries}", f"{label}{retries}", f"echo '{text}' >&2; exit 1", **more)
            usage = "echo Error: No such option: --nope >&2; exit 2"
            add(workflow, f"usage{retries}", f"usage{retries}", usage, **more)
            add(workflow, f"killed{retries}", f"killed{retries}", "echo INFO a >&2; kill -9 $$", **more)

    try:
        run_id = place.submit("causes", build)
        assert place.wait(run_id) is WmsStates.FAILED
        groups = {group["label"]: group for group in place.json("errors", run_id)["groups"]}
        for label, (_, cause, verdict) in CAUSES.items():
            for retries in (0, 2):
                group = groups[f"{label}{retries}"]
                assert (group["exception"], group["verdict"]["name"]) == (cause, verdict)
                assert (group["attempts"], group["jobs"]) == (1, 1)
                assert place.json("show", run_id, "--label", f"{label}{retries}")["jobs"][0]["attempt"] == 1
                assert "Traceback" in place.call("logs", run_id, "--label", f"{label}{retries}")[0]
        assert (
            groups["usage2"]["exception"] == groups["usage0"]["exception"] == "Error: No such option: --nope"
        )
        killed = (
            "out of memory, without an exception: payload 137, ended by SIGKILL; Failed to execute payload"
        )
        for label in ("killed0", "killed2"):
            # The memory in use comes last, if the job lived long enough to be looked at.
            assert groups[label]["exception"].startswith(killed)
        # That was tried again in earnest.
        assert (groups["killed0"]["attempts"], groups["killed2"]["attempts"]) == (1, 3)
        text, _ = place.call("errors", run_id, "--label", "nodata2")
        assert text.splitlines()[2] == f"1. {CAUSES['nodata'][1]}"
    finally:
        instance.stop(state)


def test_a_campaign_has_the_documents_of_its_runs(place, good_run, bad_run, tmp_path):
    (tmp_path / "pages").mkdir()
    parts = [
        PartRecord(
            site=site, compute_site="local", share=1, values=[1], file="", submit_path=str(tmp_path / site),
            run=f"u_ann_{site}", output_run="", butler="", request_id=run_id,
            state=PartState.PREPARED if run_id is None else PartState.SUBMITTED,
        )
        for site, run_id in (("A", int(good_run)), ("B", int(bad_run)), ("C", None))
    ]  # fmt: skip
    record = CampaignRecord(
        name="camp", directory=str(tmp_path), config="/run.yaml", digest="", partition="tract",
        service_class="lsst.ctrl.bps.panda.PanDAService", prepared_at="2026-11-20T12:00:00Z", parts=parts,
    )  # fmt: skip
    record.write()
    document = place.json("campaign", "errors", tmp_path)
    assert (document["kind"], document["run"]) == ("campaign_errors", "camp")
    assert document["problems"] == ["C: not submitted yet"]
    assert [site["site"] for site in document["sites"]] == ["A", "B"]
    assert document["sites"][0]["groups"] == []
    assert document["sites"][1]["groups"] == place.json("errors", bad_run)["groups"]
    text, told = place.call("campaign", "errors", tmp_path, "--label", "missing", code=1)
    assert "has no label 'missing'" in told
    written = place.json("campaign", "html", tmp_path, "-o", tmp_path / "pages")["sites"]
    assert [Path(site["path"]).is_file() for site in written] == [True, True]

    CampaignIndex(read_service_settings(None, place.env).state_directory).add(record)
    (listed,) = place.json("campaign", "list")["campaigns"]
    assert (listed["runs"], listed["path"]) == ([int(good_run), int(bad_run), None], str(tmp_path))
    assert "2 of 3" in place.call("campaign", "list")[0]
    (tmp_path / "panda_campaign.json").unlink()
    assert place.json("campaign", "list")["campaigns"][0]["runs"] is None


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
    by_name = place.json("logs", good_run, "--job", "b2", "--file", "payload.stdout")
    assert [line["message"] for line in by_name["lines"]] == ["done"]
    assert [(job["name"], job["bps_name"], job["data"]) for job in by_name["jobs"]] == [
        ("calib_2:2", "b2", [])
    ]
    assert "The run has no job 'b9'. Give" in place.call("logs", good_run, "--job", "b9", code=1)[1]
    assert (
        "names no quantum graph, so there are no data IDs"
        in place.call("logs", good_run, "--data", "a=1", code=1)[1]
    )
    failed = place.json("logs", bad_run, "--failed", "--grep", "not found")["lines"]
    assert failed
    # With --follow nothing is left out because something failed.
    followed, _ = place.call("logs", bad_run, "--follow", "--grep", "^runner:", "--json")
    everything = [line for text in followed.splitlines() for line in json.loads(text)["lines"]]
    assert len({line["panda_id"] for line in everything}) == 16


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
    # Memory is looked at twice a second: only what runs that long is sure to have been seen.
    assert labels["coadd"]["wall"]["largest"] >= 1
    assert labels["coadd"]["memory"]["largest"] > 0
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
    assert "failed" not in text
    (report,), _ = service.report(run_id)
    assert report.job_summary["waits"][WmsStates.DELETED] == 2
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
    assert "DatasetNotFoundError: no dataset of kind /bin/sh" in text
    assert "DatasetNotFoundError: no dataset of kind" in text
    assert text.count('<path class="edge"') == 2  # isr to both tasks of missing
    assert 'data-state="FAILED"' in text
    assert not re.search(r"<script|src=|@import|url\(", text)


PAGE = Path(__file__).resolve().parents[2] / "doc/lsst.ctrl.bps.panda/failures.rst"


def sections(text):
    """Split a page at its underlined titles."""
    parts = re.split(r"^(.+)\n={3,}\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def commands(text):
    return re.findall(r"^   \$ panda_bps (.*)$", text, re.MULTILINE)


@pytest.fixture
def act(place, bad_run, tmp_path, monkeypatch):
    """Type a command of the page, with this run for run 41."""
    monkeypatch.chdir(tmp_path)
    group = place.json("errors", bad_run, "--label", "missing")["groups"][0]
    names = {"41": bad_run, "1000025": group["example"]["panda_id"]}

    def type_in(command):
        return place.call(*(names.get(word, word) for word in shlex.split(command)))

    return type_in


def test_the_how_to_has_these_sections_and_commands():
    found = {title: commands(text) for title, text in sections(PAGE.read_text()).items()}
    assert {title: len(some) for title, some in found.items()} == {
        "1. What went wrong, and whose turn is it?": 1,
        "2. What does the log say?": 3,
        "3. Was it memory or time?": 1,
        "4. Does it fail here, too?": 1,
        "5. Fix it, and go on": 1,
        "Jobs that do not start, or have bad luck": 1,
        "Nothing is known of it at all?": 1,
        "Rules of your own": 0,
    }


def test_how_to_1_what_went_wrong(place, bad_run, act):
    text = sections(PAGE.read_text())["1. What went wrong, and whose turn is it?"]
    (command,) = commands(text)
    said = act(command)[0]
    # The example is what the command prints, line by line, but for numbers, times and places.
    (example,) = re.findall(r"^   1\. Dataset(?:.*\n)+?     +\| .*\n", text, re.MULTILINE)
    shown = said[said.index("1. Dataset") :]
    for line, wanted in zip(shown.splitlines(), _known(example).splitlines(), strict=False):
        if "| runner:" not in line:
            assert _without_numbers(line) == _without_numbers(wanted)
        else:
            shown = shown.replace(line + "\n", "")
    # Each verdict that the rules give is explained there.
    for verdict in PACKAGED_RULES.verdicts:
        assert re.search(rf"^{verdict}  ", text, re.MULTILINE), verdict
    # What the end of the section says of labels and of attempts whose job finished in a retry.
    assert "missing" not in place.call("errors", bad_run, "--label", "hungry")[0]
    assert "again:" not in said
    assert "again: 1 attempt" in place.call("errors", bad_run, "--recovered")[0]


def _known(example):
    """The example of the page, as it stands for this run."""
    example = re.sub("^   ", "", example, flags=re.MULTILINE)
    first, log, rest = re.split(r"^(     \| .*\n)", example, flags=re.MULTILINE)
    return f"{first}     | runner:\n{log}{rest}".replace("kind flat", "kind /bin/sh").replace(
        "missing_260315003 (missing:2; detector=4, visit=260315003, band=r)", "m2 (missing:2)"
    )


def _without_numbers(line):
    line = re.sub(r"\d+", "0", line)
    return re.sub(r"0-0-0 0:0:0( to 0-0-0 0:0:0)?", "MOMENT", line).rstrip()


def test_how_to_2_the_log(act):
    text = sections(PAGE.read_text())["2. What does the log say?"]
    level, grep, job = commands(text)
    said, told = act(level)
    assert re.search(r"^\[\d+\] DatasetNotFoundError: no dataset", said, re.MULTILINE)
    assert "Traceback" not in said, "not on the level of an error"
    # "The place that is read is said first, on the standard error."
    assert told.startswith("== ")
    assert "/logs/PandaJob_" in told.splitlines()[0]
    lines = act(grep)[0].splitlines()
    assert lines
    assert all("no dataset" in line for line in lines)
    assert len({line.split()[0] for line in act(job)[0].splitlines()}) == 1
    (file,) = re.findall(r"``(--file \S+)``", text)
    assert "pilot error 1305" in act(f"{job} {file}")[0]


def test_how_to_3_memory_or_time(act):
    text = sections(PAGE.read_text())["3. Was it memory or time?"]
    said = act(*commands(text))[0]
    (lines,) = re.findall(r"^   pipetask:\n(?:     .*\n)+", text, re.MULTILINE)
    for line in lines.splitlines():
        # In the page's example as in the command's output.
        assert _without_numbers(line[3:]) in [_without_numbers(other) for other in said.splitlines()]


def test_how_to_5_go_on(place, bad_run, act, tmp_path):
    text = sections(PAGE.read_text())["5. Fix it, and go on"]
    assert "bps restart --id 41" in text
    act(*commands(text))
    assert (tmp_path / "run41.html").stat().st_size > 10_000


def test_how_to_nothing_is_known(act):
    text = sections(PAGE.read_text())["Nothing is known of it at all?"]
    said = act(*commands(text))[0]
    assert re.search(r"^label +iDDS +PanDA ", said, re.MULTILINE)
    assert re.search(r"^hungry +Failed +failed ", said, re.MULTILINE)


def test_how_to_rules_of_your_own(place, bad_run, tmp_path):
    text = sections(PAGE.read_text())["Rules of your own"]
    (block,) = re.findall(r"^   format: 1\n(?:   .*\n)+", text, re.MULTILINE)
    rules = tmp_path / "rules.yaml"
    rules.write_text(re.sub("^   ", "", block, flags=re.MULTILINE).replace("kind flat", "kind"))
    groups = place.json("errors", bad_run, "--label", "missing", "--rules", rules)["groups"]
    assert groups[0]["verdict"]["name"] == "flats"
    place.env["PANDA_BPS_VERDICTS"] = str(rules)
    try:
        assert "Ask the calibration team" in place.call("errors", bad_run)[0]
    finally:
        del place.env["PANDA_BPS_VERDICTS"]


COMMANDS = ("show", "errors", "logs", "resources", "watch", "html")


@pytest.mark.parametrize("command", COMMANDS)
def test_runs_that_are_not_there(place, command):
    for run, words in (
        ("98765", "There is no run 98765"),
        ("u_nobody", "No run is named 'u_nobody'"),
        ("./nowhere/", "holds no panda_run.json"),
        ("", "No run was named"),
    ):
        assert_sentence(place, (command, run), words)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_server(place, command, tmp_path):
    nowhere = {"PANDA_URL_SSL": "http://127.0.0.1:1/server/panda", "PANDA_URL": None}
    # Not where the token of the embedded PanDA would go to another server.
    assert_sentence(place, (command, "1"), "set the variables anew", **nowhere)
    nowhere |= {"PANDA_AUTH": "none", "PANDA_LOCAL_DIR": None}
    assert_sentence(place, (command, "1"), "Nothing listens there", **nowhere)
    none = {"PANDA_URL_SSL": None, "PANDA_URL": None, "PANDA_LOCAL_DIR": str(tmp_path / "none")}
    assert_sentence(place, (command, "1"), "PANDA_URL_SSL and PANDA_URL are not set", **none)
    assert_sentence(place, (command, "1", "--local"), "No embedded PanDA runs", **none)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("logs RUN --label nix", "no label 'nix'. Labels of the run: again, crashes"),
        ("errors RUN --label nix", "no label 'nix'"),
        ("resources RUN --label nix", "no label 'nix'"),
        ("show RUN --label nix", "no label 'nix'"),
        ("logs RUN --job nix", "no job 'nix'"),
        ("logs RUN --label isr --job missing:1", "no job 'missing:1'"),
        ("logs RUN --grep (", "'(' is not a regular expression"),
        ("logs RUN --level LOUD", "no level 'LOUD'. Levels: TRACE"),
        ("logs RUN --source cloud", "PANDA_LOG_PROJECT"),
        ("logs RUN --query --failed --label isr", "No attempt has failed"),
        ("resources RUN --plots /dev/null/x", "cannot be written"),
    ],
)
def test_wrong_words(place, bad_run, words, sentence):
    assert_sentence(place, [bad_run if word == "RUN" else word for word in words.split()], sentence)


def assert_sentence(place, words, sentence, **env):
    """One sentence on the standard error, nothing else, and exit code 1."""
    result = CliRunner().invoke(main, [*map(str, words)], env=place.env | env)
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    assert result.stderr.startswith("Error: ")
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


def test_what_there_is_nothing_of_is_said(place, good_run, bad_run):
    assert "No attempt has failed" in place.call("logs", good_run, "--failed")[1]
    assert "1 more job:" in place.call("logs", good_run, "--limit", "12", "--grep", "hello")[1]
    assert "No line was found" in place.call("logs", bad_run, "--job", "missing:1", "--file", "none.txt")[1]
    text, told = place.call("logs", good_run, "--query")
    assert "projects/PROJECT/" in text
    assert "PROJECT stands for" in told


def test_every_document_follows_the_schema(place, good_run, bad_run, tmp_path):
    page = place.json("html", bad_run, "-o", tmp_path / "page.html")
    assert (page["kind"], Path(page["path"]).stat().st_size > 10_000) == ("page", True)
    kinds = [
        place.json(*words)["kind"]
        for run in (good_run, bad_run)
        for words in (
            ("show", run), ("show", run, "--jobs"), ("errors", run, "--recovered"), ("resources", run),
            ("logs", run), ("logs", run, "--query"),
        )
    ]  # fmt: skip
    assert kinds == ["show", "jobs", "errors", "resources", "logs", "query"] * 2


def test_from_python(place, bad_run):
    connection = connect(read_service_settings(None, place.env))
    evidence = fetch_evidence(connection, bad_run)
    assert evidence.tally.state is WmsStates.FAILED
    assert {job.label for job in evidence.attempts if job.failed} == {
        "missing", "crashes", "nocommand", "again", "hungry", "grows",
    }  # fmt: skip
    # The commands write the same records.
    head = {"request_id": evidence.request_id, "name": evidence.name}
    jobs = RunJobs(evidence)
    labels = [
        replace(found, near_limit=jobs.identify(found.near_limit)) for found in measure_resources(evidence)
    ]
    reader = TailReader(LogTransport(connection), count=0)
    groups = name_examples(group_errors(evidence), jobs.identify)
    groups = add_verdicts(groups, PACKAGED_RULES, read_tail=reader)
    for words, kind, records in (
        (("show", bad_run, "--jobs"), "jobs", jobs.identify(evidence.attempts)),
        (("resources", bad_run), "resources", labels),
        (("errors", bad_run, "--recovered", "--tail", "0"), "errors", groups),
    ):
        assert json.loads(json.dumps(make_document(records, kind=kind, **head))) == place.json(*words)
