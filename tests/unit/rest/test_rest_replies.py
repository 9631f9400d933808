"""Faults, the decision to repeat, the envelopes of replies (on what real
servers sent), and PanDA's own API.
"""

import json
import socket
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
import urllib3.exceptions
from hypothesis import given
from hypothesis import strategies as st
from panda_servers import hostile

from lsst.ctrl.bps.panda.errors import RefusedError, ReplyError, SettingsError, TransportError
from lsst.ctrl.bps.panda.rest.credentials import Anonymous
from lsst.ctrl.bps.panda.rest.faults import (
    FailedAttempt,
    Fault,
    classify_exception,
    classify_status,
    looks_like_web_page,
)
from lsst.ctrl.bps.panda.rest.panda_api import PandaApi, api_base, unwrap_api
from lsst.ctrl.bps.panda.rest.relay import unwrap_relay
from lsst.ctrl.bps.panda.rest.retries import RetryPolicy, plan_retry
from lsst.ctrl.bps.panda.rest.transport import Reply, Transport, parse_json

CAPTURES = Path(__file__).parents[2] / "data" / "captures"

failures = st.builds(
    FailedAttempt, st.sampled_from(Fault), st.just(""), retry_after=st.none() | st.floats(0, 1e6)
)


def decide(failure, policy, luck, *, attempts=1, elapsed=0.0):
    return plan_retry(failure, policy, attempts=attempts, safe=True, elapsed=elapsed, luck=luck)


@given(failures, st.integers(1, 10), st.booleans(), st.floats(0, 2000), st.floats(0, 1, exclude_max=True))
def test_repeating_is_bounded_and_never_doubles(failure, number, safe, elapsed, luck):
    policy = RetryPolicy(attempts=4, base=1.0, cap=20.0, budget=900.0)
    delay = plan_retry(failure, policy, attempts=number, safe=safe, elapsed=elapsed, luck=luck)
    if delay is None:
        return
    assert number < policy.attempts
    assert 0 <= delay <= 2 * policy.cap
    assert elapsed + delay <= policy.budget
    assert safe or failure.fault.not_executed


def test_waits_grow_up_to_a_limit_and_spread():
    policy = RetryPolicy(attempts=10, base=1.0, cap=5.0)
    failure = FailedAttempt(Fault.GATEWAY, "")
    waits = [decide(failure, policy, 0.5, attempts=n) for n in range(1, 6)]
    assert waits == [0.5, 1.0, 2.0, 2.5, 2.5]
    assert decide(failure, policy, 0.0) == 0.0


@pytest.mark.parametrize(
    ("elapsed", "retry_after", "wait"),
    [(7.0, None, 2.0), (8.0, None, 2.0), (8.5, None, None), (5.0, 3.0, 5.0), (5.5, 3.0, None)],
)
def test_no_attempt_begins_after_the_time_for_all_of_them(elapsed, retry_after, wait):
    policy = RetryPolicy(attempts=4, base=4.0, budget=10.0)
    failure = FailedAttempt(Fault.GATEWAY, "", retry_after=retry_after)
    assert decide(failure, policy, 0.5, elapsed=elapsed) == wait


def test_exceptions_of_unknown_kind_count_as_sent():
    assert classify_exception(requests.ConnectionError("?")) is Fault.CONNECTION_LOST
    assert classify_exception(ValueError("?")) is Fault.CONNECTION_LOST
    looped = OSError("a")
    looped.__cause__ = looped
    assert classify_exception(looped) is Fault.CONNECTION_LOST


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (requests.ConnectTimeout(), Fault.CONNECT_TIMEOUT),
        (requests.ReadTimeout(), Fault.READ_TIMEOUT),
        (requests.exceptions.InvalidURL(), Fault.BAD_URL),
        (requests.exceptions.ProxyError(urllib3.exceptions.ProxyError("no", OSError())), Fault.UNREACHABLE),
        (requests.ConnectionError(socket.gaierror(-2, "no")), Fault.NAME_NOT_FOUND),
        (requests.exceptions.ContentDecodingError(), Fault.REPLY_CUT),
    ],
)
def test_exceptions_of_the_library(error, fault):
    assert classify_exception(error) is fault


@given(st.integers(100, 599))
def test_every_status_has_a_meaning(status):
    fault = classify_status(status)
    assert (fault is None) == (200 <= status < 300)
    # A server's failure may come after it did what was asked.
    assert status < 500 or not fault.not_executed


def test_web_pages_are_recognised():
    assert looks_like_web_page("", b"\xef\xbb\xbf \n<!DOCTYPE html>")
    assert looks_like_web_page("text/html; charset=utf-8", b"<p>Welcome</p>")
    # The real relay sends its JSON as text/html.
    assert not looks_like_web_page("text/html", b'[true, "<html>"]')


def read_captures(pattern):
    return [pytest.param(path, id=path.stem) for path in sorted(CAPTURES.rglob(pattern))]


def unwrap(value):
    return unwrap_relay(value, endpoint="http://h/server/panda", what="a test")


@pytest.mark.parametrize(
    "path",
    read_captures("*_get_requests*.json")
    + read_captures("*_get_contents*.json")
    + read_captures("*ping.json"),
)
def test_real_replies_are_unwrapped(path):
    code, reply = json.loads(path.read_text())
    assert code == 0
    value = unwrap(reply)
    assert value == reply[1]
    assert isinstance(value, list | dict)


@pytest.mark.parametrize("path", read_captures("*abort_reply.json") + read_captures("*retry*reply.json"))
def test_real_outcomes_of_commands(path):
    reply = json.loads(path.read_text())[1]
    if "No match" in path.read_text():
        with pytest.raises(RefusedError) as caught:
            unwrap(reply)
        assert (caught.value.fault, caught.value.maybe_sent) == (Fault.NO_MATCH, False)
    else:
        assert unwrap(reply) == [[0, {"status": 0, "message": "Command registered successfully"}]]


@pytest.mark.parametrize(
    ("name", "fault", "words"),
    [
        ("done_bad_command", Fault.RELAY, "no_such_command is not a command"),
        ("done_get_transforms", Fault.IDDS, "unexpected keyword argument"),
        ("abort_unknown", Fault.NO_MATCH, "No match requests"),
        ("retry_unknown", Fault.NO_MATCH, "No match requests"),
    ],
)
def test_real_refusals(name, fault, words):
    reply = json.loads((CAPTURES / "embedded" / f"{name}.json").read_text())[1]
    with pytest.raises(RefusedError, match=words) as caught:
        unwrap(reply)
    assert (caught.value.fault, caught.value.maybe_sent) == (fault, False)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def attempt(action):
    """Give the value of a function, and its error of ours if it raised one."""
    try:
        return action(), None
    except TransportError as error:
        return None, error


@given(json_values)
def test_any_value_is_unwrapped_or_an_error_of_ours(value):
    inner, error = attempt(lambda: unwrap(value))
    if error is None:
        assert value == [True, inner]
        assert not (isinstance(inner, list) and inner[:1] == [False] and len(inner) == 2)
    else:
        assert "a test" in str(error)
    data, error = attempt(lambda: unwrap_api(value, endpoint="", what=""))
    assert isinstance(error, RefusedError | ReplyError) or data == value.get("data")


@given(st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_json_or_an_error_of_ours(body):
    value, error = attempt(lambda: parse_json(Reply(200, {}, body, "http://h/x"), "a test"))
    if error is None:
        assert json.dumps(value) == json.dumps(json.loads(body))
    else:
        assert isinstance(error, ReplyError)
        assert error.maybe_sent


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b'[true, {"a": ', "ends in the middle"),
        (b'[true, "abc', "ends in the middle"),
        (b"OK", "not JSON"),
        (b"\xff\xfe\xfd", "not JSON"),
        (b"<html>", "web page"),
        (b"[" * 100_000, "JSON"),
    ],
)
def test_broken_json_has_its_own_words(body, words):
    with pytest.raises(ReplyError, match=words):
        parse_json(Reply(200, {}, body, "http://h/x"), "a test")


@pytest.fixture
def server():
    with hostile.HostileServer() as running:
        yield running


def make_api(server):
    retry = RetryPolicy(attempts=2)
    transport = Transport(Anonymous(), retry=retry, sleep=lambda _: None)
    return PandaApi(transport, api_base(server.url))


def test_the_api_lies_beside_the_relay(server):
    assert api_base("https://h:8443/server/panda") == "https://h:8443/api/v1"
    for wrong in ("", "h:8443", "ftp://h"):
        with pytest.raises(SettingsError):
            api_base(wrong)
    make_api(server).tasks_since()
    assert server.seen[0].path.startswith("/api/v1/task/get_tasks_detailed_info_since?")


def test_commands_of_the_api(server):
    api = make_api(server)
    assert api.kill_jobs([]) == []
    for wrong in ([5], [5, 6]):
        # The server answers with an empty list.
        with pytest.raises(ReplyError, match="an answer for each job"):
            api.kill_jobs(wrong, now=len(wrong) > 1)
    api.kill_task(7)
    api.move_task(7, "Q", waiting_too=True)
    api.move_task(7, "Q", waiting_too=False)
    api.change_task(7, "ramCount", 4000)
    api.resume_task(7)
    sent = [(seen.path.removeprefix("/api/v1/"), json.loads(seen.content["body"])) for seen in server.seen]
    assert sent == [
        ("job/kill", {"job_ids": []}),
        ("job/kill", {"job_ids": [5]}),
        ("job/kill", {"job_ids": [5, 6], "code": 9}),
        ("task/kill", {"task_id": 7}),
        ("task/reassign", {"task_id": 7, "site": "Q", "mode": "soft"}),
        ("task/reassign", {"task_id": 7, "site": "Q", "mode": "nokill"}),
        ("task/change_attribute", {"task_id": 7, "attribute_name": "ramCount", "value": 4000}),
        ("task/resume", {"task_id": 7}),
    ]


def test_questions_of_the_api(server):
    api = make_api(server)
    local = datetime(2026, 11, 20, 12, 0, tzinfo=timezone(timedelta(hours=2)))
    assert api.tasks_since(local, filters={"reqID": 7}, limit=9) == []
    assert api.tasks_since(datetime(2026, 11, 20)) == []
    assert api.tasks_since() == []
    assert api.job_descriptions(5, unsuccessful_only=True) == []
    queries = [parse_qs(urlsplit(seen.path).query) for seen in server.seen]
    # A number as a filter's value makes the real server fail.
    assert queries[0] == {"n_tasks": ["9"], "since": ["2026-11-20 10:00:00"], "filters": ['{"reqID": "7"}']}
    assert queries[1] == {"n_tasks": ["500"], "since": ["2026-11-20 00:00:00"]}
    assert queries[2] == {"n_tasks": ["500"]}
    assert queries[3] == {"task_id": ["5"], "unsuccessful_only": ["True"]}
    assert all(seen.headers["Accept"] == "application/json" for seen in server.seen)
    assert datetime.now(UTC) > local


def test_refusals_of_the_api():
    with pytest.raises(RefusedError, match="not the owner") as caught:
        unwrap_api({"success": False, "message": "permission denied: not the owner"}, endpoint="u", what="w")
    assert caught.value.fault == Fault.PERMISSION
    with pytest.raises(ReplyError):
        unwrap_api({"success": "yes"}, endpoint="u", what="w")


def test_the_file_cache(server, tmp_path):
    api = make_api(server)
    path = tmp_path / "jobO.1.tar.gz"
    path.write_bytes(b"\x1f\x8b content")
    assert api.upload_cache_file(path) == f"{server.root}/cache/jobO.1.tar.gz"
    (seen,) = server.seen
    assert seen.path == "/api/v1/file_server/upload_cache_file"
    assert 'name="file"; filename="jobO.1.tar.gz"' in seen.content["body"]
    assert "\x1f\x8b content" in seen.content["body"]
    api.download_cache_file("jobO.1.tar.gz", tmp_path / "got")
    assert json.loads((tmp_path / "got").read_text())["success"] is True
    server.inject("404")
    with pytest.raises(ReplyError):
        api.download_cache_file("none", tmp_path / "not")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["got", "jobO.1.tar.gz"]
    with (tmp_path / "big").open("wb") as stream:
        stream.truncate(10 * 1024**2 + 1)
    with pytest.raises(SettingsError, match="fileDistributionEndPoint"):
        api.upload_cache_file(tmp_path / "big")
