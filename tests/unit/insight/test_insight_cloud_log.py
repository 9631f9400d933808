"""Google's own client against a server that answers ``entries:list``."""

import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from panda_servers.cloud_log import CloudLogServer, make_entry
from panda_servers.recorded_panda import REQUEST_ID, RecordedPanda, RecordedRun

from lsst.ctrl.bps.panda.cli.panda_bps import main
from lsst.ctrl.bps.panda.errors import SettingsError, TransportError
from lsst.ctrl.bps.panda.insight.cloud_log import (
    CloudLog,
    CloudLogSettings,
    CloudQuery,
    choose_log_start,
    console_url,
    find_cloud_settings,
    render_filter,
)
from lsst.ctrl.bps.panda.insight.documents import read_schema

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)  # longer ago than the client looks back by itself


def moment(seconds):
    return (START + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@pytest.fixture
def server():
    with CloudLogServer() as running:
        yield running


def log_of(server, **values):
    waits = []
    settings = CloudLogSettings("proj", endpoint=server.url)
    log = CloudLog(settings, sleep=waits.append, **values)
    log.waits = waits
    return log


def test_the_filter_always_has_a_time_and_quotes_what_it_is_given():
    query = CloudQuery(START, 7, task_ids=(5, 6), panda_ids=(12,), level="ERROR", pattern='say "a\\b"')
    text = render_filter(query, CloudLogSettings("proj", "a/b"))
    assert text.split(" AND ") == [
        'logName="projects/proj/logs/a%2Fb"',
        'jsonPayload.TaskID=("5" OR "6")',
        'jsonPayload.PandaJobID="12"',
        'jsonPayload.levelname=("ERROR" OR "CRITICAL")',
        'jsonPayload.message=~"say \\"a\\\\b\\""',
        'timestamp>="2026-01-02T03:04:05.000000Z"',
    ]
    assert "jsonPayload.RequestID=7 AND timestamp>=" in render_filter(
        CloudQuery(START, 7), CloudLogSettings("p")
    )
    assert re.search(r"query;query=logName%3D.*\?project=proj$", console_url(text, CloudLogSettings("proj")))


def test_entries_longer_ago_than_a_day_are_found(server):
    server.entries += [make_entry(n, moment=moment(n), message=f"step {n}") for n in range(3)]
    server.entries.append(make_entry(3, moment=moment(3), request=8))
    server.entries.append(make_entry(4, moment=moment(-3600)))
    lines = list(log_of(server).lines(CloudQuery(START, 7)))
    assert [line.message for line in lines] == ["step 0", "step 1", "step 2"]
    assert lines[0].panda_id == 12
    assert (lines[0].level, lines[0].logger, lines[0].time) == ("INFO", "lsst.ctrl.mpexec", moment(0))


def test_tasks_jobs_and_levels_are_told_apart(server):
    for n in range(12):
        level = ("INFO", "WARNING", "ERROR")[n % 3]
        server.entries.append(
            make_entry(n, moment=moment(n), task=str(n % 2), job=str(n), level=level, message=f"{n}")
        )

    def found(**values):
        return [int(line.message) for line in log_of(server).lines(CloudQuery(START, 7, **values))]

    assert found(task_ids=(1,)) == [1, 3, 5, 7, 9, 11]
    assert found(panda_ids=(3, 4)) == [3, 4]
    assert found(task_ids=(0, 1), level="WARNING") == [1, 2, 4, 5, 7, 8, 10, 11]


@pytest.mark.slow
def test_fifty_thousand_entries_come_once_each_whatever_the_quota(server):
    # Ten entries share each moment, so that going on behind one must not lose or double its others.
    server.entries += [make_entry(n, moment=moment(n // 10), message=f"{n}") for n in range(50_000)]
    server.quota_after = 7
    log = log_of(server)
    numbers = [int(line.message) for line in log.lines(CloudQuery(START, 7))]
    assert numbers == list(range(50_000))
    assert len(log.waits) >= 7
    assert all(body["pageSize"] == 1000 for body in server.requests)


def test_a_refusal_is_not_repeated(server):
    server.refuse = 403
    log = log_of(server)
    with pytest.raises(TransportError, match="could not be read"):
        list(log.lines(CloudQuery(START, 7)))
    assert len(server.requests) == 1


def test_a_quota_that_stays_used_up_ends_it(server):
    server.quota_after = 1
    log = log_of(server)
    with pytest.raises(TransportError, match="Quota"):
        list(log.lines(CloudQuery(START, 7)))
    assert log.waits == [2, 4, 8, 16, 32]


def test_following_goes_on_until_the_end_and_once_more(server):
    server.entries += [make_entry(n, moment=moment(n), message=f"{n}") for n in range(2)]
    rounds = []

    def ended():
        number = len(server.entries)
        server.entries.append(make_entry(number, moment=moment(number), message=f"{number}"))
        rounds.append(number)
        return len(rounds) == 3

    lines = log_of(server).follow(CloudQuery(START, 7), ended, interval=1)
    assert [int(line.message) for line in lines] == [0, 1, 2, 3, 4]


def test_settings():
    with pytest.raises(SettingsError, match="PANDA_LOG_PROJECT"):
        CloudLog(CloudLogSettings(""))
    found = find_cloud_settings({"PANDA_LOG_PROJECT": "p", "PANDA_LOG_NAME": "mine"})
    assert (found.project, found.log) == ("p", "mine")
    assert find_cloud_settings({}).log == "Panda-RubinLog"
    now = START + timedelta(days=400)
    assert choose_log_start(None, now) == choose_log_start(START, now) == now - timedelta(days=30)
    assert choose_log_start(START, START + timedelta(hours=1)) == START - timedelta(minutes=10)


def test_a_key_file_that_is_not_there(tmp_path):
    with pytest.raises(SettingsError, match="key file"):
        CloudLog(CloudLogSettings("p", credentials=str(tmp_path / "none.json")))


def test_the_command_reads_the_cloud_where_jobs_have_no_log_area(server, tmp_path):
    recent = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    for n, level in enumerate(("INFO", "ERROR", "CRITICAL")):
        for task in (101, 102):
            entry = make_entry(
                2 * n + task, moment=recent, task=str(task), job="7", request=REQUEST_ID, level=level,
                message=f"{level} in {task}",
            )  # fmt: skip
            server.entries.append(entry)
    with RecordedPanda(RecordedRun(tasks=2, jobs=20)) as panda:
        env = {"PANDA_URL_SSL": panda.url, "PANDA_LOG_ENDPOINT": server.url, "PANDA_LOG_PROJECT": "proj"}
        env |= {"XDG_STATE_HOME": str(tmp_path), "USER": "ann", "PANDA_AUTH": None}

        def lines(*words):
            result = CliRunner().invoke(main, ["logs", str(REQUEST_ID), *words], env=env)
            assert result.exit_code == 0, result.output
            assert 'logName="projects/proj/logs/Panda-RubinLog" AND jsonPayload.' in result.stderr
            return [line.partition(": ")[2] for line in result.stdout.splitlines()]

        assert lines("--level", "ERROR") == [
            "ERROR in 101", "ERROR in 102", "CRITICAL in 101", "CRITICAL in 102",
        ]  # fmt: skip
        assert lines("--label", "label_2", "--grep", "^(INFO|ERROR)") == ["INFO in 102", "ERROR in 102"]


@pytest.fixture
def command(server, tmp_path):
    """The command, on a run of two tasks whose logs are in the cloud; one
    entry in the name of each attempt that failed, and of one that finished.
    """
    recent = (datetime.now(UTC) - timedelta(hours=30)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    number = 0
    for task in (1, 2):
        for job, level in (
            (1_000_001, "ERROR"),
            (1_000_002, "CRITICAL"),
            (1_000_011, "INFO"),
            (1_000_021, "INFO"),
        ):
            panda_id = job + (task - 1) * 1_000_000
            number += 1
            server.entries.append(
                make_entry(
                    number, moment=recent, task=str(100 + task), job=str(panda_id), request=REQUEST_ID,
                    level=level, message=f"{level} of {panda_id}",
                )
            )  # fmt: skip
    run = RecordedRun(tasks=2, jobs=20)
    original = run.detail
    start = (datetime.now(UTC) - timedelta(hours=31)).strftime("%a, %d %b %Y %H:%M:%S UTC")
    run.detail = lambda: (row | {"created_at": start} for row in original())
    with RecordedPanda(run) as panda:
        env = {"PANDA_URL_SSL": panda.url, "PANDA_LOG_ENDPOINT": server.url, "PANDA_LOG_PROJECT": "proj"}
        env |= {"XDG_STATE_HOME": str(tmp_path), "USER": "ann", "PANDA_AUTH": None}

        def call(*words, code=0):
            result = CliRunner().invoke(main, ["logs", str(REQUEST_ID), *map(str, words)], env=env)
            assert result.exit_code == code, result.output
            return result

        yield call


def test_every_option_that_chooses_lines_works_on_the_cloud(command):
    def jobs(*words):
        return [int(line[1:8]) for line in command(*words).stdout.splitlines()]

    everything = [1_000_001, 1_000_002, 1_000_011, 1_000_021, 2_000_001, 2_000_002, 2_000_011, 2_000_021]
    # The entries are older than the day that Google's client looks back by itself.
    assert jobs("--source", "cloud") == everything
    assert jobs("--failed") == [n for n in everything if n % 100 != 21]
    assert jobs("--label", "label_2") == everything[4:]
    assert jobs("--label", "label_2", "--failed") == everything[4:7]
    assert jobs("--label", "label_2", "--failed", "--level", "ERROR") == everything[4:6]
    assert jobs("--job", 1_000_002) == [1_000_002]
    assert jobs("--job", "job:1", "--grep", "of 2") == [2_000_011]
    assert jobs("--grep", "of .*21$", "--label", "label_1") == [1_000_021]
    nothing = command("--grep", "there is no such text")
    assert (nothing.stdout, "No line was found" in nothing.stderr) == ("", True)


def test_the_query_says_what_the_options_say(command):
    def conditions(*words):
        return command(*words, "--query").stdout.splitlines()[0].split(" AND ")

    assert conditions()[1] == f"jsonPayload.RequestID={REQUEST_ID}"
    assert conditions("--label", "label_2")[1] == 'jsonPayload.TaskID="102"'
    assert conditions("--job", 1_000_002)[1] == 'jsonPayload.PandaJobID="1000002"'
    found = conditions("--level", "WARN", "--grep", 'say "no"')
    assert found[2] == 'jsonPayload.levelname=("WARNING" OR "ERROR" OR "CRITICAL")'
    assert found[3] == r'jsonPayload.message=~"say \"no\""'
    assert found[-1].startswith('timestamp>="20')
    assert "8 more jobs" in command("--failed", "--limit", "4", "--query").stderr
    document = json.loads(command("--query", "--json").stdout)
    Draft202012Validator(read_schema()).validate(document)
    assert document["kind"] == "query"
    assert document["address"].startswith("https://console.cloud.google.com/")


def test_lines_as_documents(command):
    document = json.loads(command("--job", 1_000_002, "--json").stdout)
    Draft202012Validator(read_schema()).validate(document)
    assert [line["message"] for line in document["lines"]] == ["CRITICAL of 1000002"]


@pytest.mark.slow
@pytest.mark.newest
def test_followed_each_line_is_a_document_of_its_own(command):
    """As it comes; the log is asked once more some seconds after the run has ended."""
    followed = [
        json.loads(text) for text in command("--follow", "--level", "ERROR", "--json").stdout.splitlines()
    ]
    assert [len(one["lines"]) for one in followed] == [1, 1, 1, 1]
    for one in followed:
        Draft202012Validator(read_schema()).validate(one)


def test_what_google_refuses_is_one_sentence(command, server):
    server.refuse = 403
    result = command(code=1)
    assert result.stdout == ""
    assert re.search(r"^Error: Google Cloud Logging could not be read: 403 .*$", result.stderr, re.MULTILINE)
