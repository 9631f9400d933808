"""The routes of the embedded PanDA: only those of the table are served, and only to whom the table admits."""

import gzip
import json
import time

import pytest

from lsst.ctrl.bps.panda.local.api import Api, FileCache
from lsst.ctrl.bps.panda.local.database import Database, MessageQueue
from lsst.ctrl.bps.panda.local.faults import Faults
from lsst.ctrl.bps.panda.local.idds_host import IddsRelay
from lsst.ctrl.bps.panda.local.identity import Role, Tokens
from lsst.ctrl.bps.panda.local.jedi import Jedi
from lsst.ctrl.bps.panda.local.job_store import JobStore
from lsst.ctrl.bps.panda.local.pages import PageReply
from lsst.ctrl.bps.panda.local.settings import TIMINGS, Queues
from lsst.ctrl.bps.panda.local.views import Views
from lsst.ctrl.bps.panda.local.web import ROUTES, Caller, WebParts, make_application

_PORT = 4321
_BASE = f"http://127.0.0.1:{_PORT}"
_TOKENS = Tokens("me")


def _bearer(role, user=""):
    return {"Authorization": f"Bearer {_TOKENS.issue(role, user)}"}


_OWNER = _bearer(Role.OWNER)
_ALICE = _bearer(Role.USER, "alice")


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    made = Database(f"sqlite:///{tmp_path_factory.mktemp('web')}/panda.db")
    yield made
    made.close()


@pytest.fixture(scope="module")
def jedi(database):
    queue = MessageQueue(database, time.time)
    store = JobStore(database, queue, clock=time.time, wake=lambda: None)
    return Jedi(database, queue, store, timing=TIMINGS["quick"], clock=time.time, wake=lambda: None)


class Echo:
    """Stands for the process of the live pages: replies with what it was asked."""

    def forward(self, place, method, target, headers, body):
        return PageReply(404, {}, f"{method} {place} {target}".encode())


@pytest.fixture(scope="module")
def parts(database, jedi, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("web")
    faults = Faults()
    return WebParts(
        api=Api(jedi, Views(database), queues=Queues(), timing=TIMINGS["quick"], faults=Faults()),
        relay=IddsRelay(None, faults),
        cache=FileCache(tmp_path / "cache"),
        logs=tmp_path / "logs",
        tokens=_TOKENS,
        faults=faults,
        status=lambda: {"slots": 3},
        pages=Echo(),
        port=_PORT,
    )


class _Client:
    """A client that calls the server by its address."""

    def __init__(self, parts):
        self._client = make_application(parts).test_client()

    def open(self, path, **options):
        return self._client.open(path, base_url=options.pop("base", _BASE), **options)

    def get(self, path, **options):
        return self.open(path, method="GET", **options)

    def post(self, path, **options):
        if "data" in options:
            options.setdefault("content_type", "application/json")
        return self.open(path, method="POST", **options)

    def cookies(self, path):
        return self._client.get_cookie("panda_local", path=path)


@pytest.fixture(scope="module")
def client(parts):
    return _Client(parts)


_EACH = pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")


def _open(client, route, headers=None):
    path = route.path.replace("<path:name>", "x").replace("<name>", "x").replace("<job>", "PandaJob_1")
    path = path.replace("<path:path>", "x").replace("<view>", "v").replace("<code>", "c")
    kind = route.body.kinds[0] if route.body.kinds else None
    data = b"{}" if route.method == "POST" else None
    return client.open(path, method=route.method, headers=headers or {}, data=data, content_type=kind)


def test_application_has_the_routes_of_the_table_only(parts):
    rules = make_application(parts).url_map.iter_rules()
    served = {(method, rule.rule) for rule in rules for method in rule.methods - {"HEAD"}}
    assert served == {(route.method, route.path) for route in ROUTES}


def test_each_route_is_declared_once():
    keys = [(route.method, route.path) for route in ROUTES]
    assert sorted(set(keys)) == sorted(keys)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer bad"},
        {"Authorization": f"Bearer {Tokens('me').issue(Role.OWNER)}"},
        {"Authorization": f"Basic {_TOKENS.issue(Role.OWNER)}"},
        {"X-PanDA-User": "me"},
        {"Cookie": f"panda_local={_TOKENS.issue(Role.OWNER)}"},
        {"Cookie": f"panda_local={_TOKENS.issue(Role.READER, view='w')}"},
        {"Cookie": f"Authorization=Bearer {_TOKENS.issue(Role.OWNER)}"},
    ],
)
@_EACH
def test_no_route_answers_without_the_secret(client, route, headers):
    answer = _open(client, route, headers)
    assert answer.status_code == 401
    assert b"token" in answer.data or b"cookie" in answer.data or b"link" in answer.data


@_EACH
def test_who_has_the_secret_is_admitted(client, route):
    # A missing argument and the like is a reply of PanDA, with status 200.
    expected = {Caller.READER: (200, 404), Caller.LINK: (401,)}.get(route.caller, (200,))
    if "<" in route.path and route.caller is Caller.USER:
        expected = (404,)
    elif "relay" in route.path or route.path.endswith("/local/token"):
        expected = (400,)
    assert _open(client, route, _OWNER).status_code in expected


@_EACH
def test_pages_of_others_are_refused_even_with_the_secret(client, route):
    for origin in ("null", "http://evil.example", f"http://127.0.0.1:{_PORT + 1}", "https://127.0.0.1"):
        answer = _open(client, route, {**_OWNER, "Origin": origin})
        assert (answer.status_code, "Origin" in answer.text) == (403, True)


@pytest.mark.parametrize("host", ["evil.example", f"evil.example:{_PORT}", "127.0.0.1", f"[::1]:{_PORT}"])
def test_another_name_of_the_server_is_refused(client, host):
    answer = client.get("/api/v1/system/is_alive", headers=_OWNER, base=f"http://{host}")
    assert (answer.status_code, "Host" in answer.text) == (403, True)


def test_an_organisation_or_our_own_page_may_be_the_origin(client):
    for origin in ("local", "Rubin:production", _BASE, f"http://localhost:{_PORT}"):
        path = "/api/v1/system/is_alive"
        assert client.get(path, headers={**_OWNER, "Origin": origin}).status_code == 200
    assert client.get(path, headers=_OWNER, base=f"http://localhost:{_PORT}").status_code == 200


def test_a_user_with_a_token_controls_nothing(client):
    for route in ROUTES:
        if route.caller in (Caller.CONTROLLER, Caller.READER):
            assert _open(client, route, _ALICE).status_code == 403
    answer = client.get("/api/v1/system/get_attributes", headers=_ALICE).get_json()
    assert answer["data"] == {"user": "alice", "production": False}


def test_a_token_for_another_user_is_made_by_the_owner(client):
    answer = client.post("/api/v1/local/token", json={"user": "bob"}, headers=_OWNER).get_json()
    bob = {"Authorization": f"Bearer {answer['data']}"}
    assert client.get("/api/v1/system/get_attributes", headers=bob).get_json()["data"]["user"] == "bob"
    for bad in ({}, {"user": 7}, {"user": ""}, {"user": "x" * 21}, {"user": "a\nb"}):
        assert client.post("/api/v1/local/token", json=bad, headers=_OWNER).status_code == 400


@pytest.mark.parametrize("command", ["kill", "finish", "retry", "reload_input"])
def test_a_task_obeys_its_owner_only(client, jedi, command):
    mine, hers = (jedi.submit({"taskName": user, "userName": user}, user) for user in ("me", "alice"))
    good = _ALICE

    def send(task_id):
        answer = client.post(f"/api/v1/task/{command}", json={"task_id": task_id}, headers=good)
        return answer.get_json()

    assert send(mine) == {"success": False, "message": "permission denied", "data": 3}
    assert send(hers)["data"] != 3
    assert send(999)["data"] == 2
    assert send("x")["message"].startswith("bad argument")
    assert client.post(f"/api/v1/task/{command}", json={}, headers=good).get_json()["message"] == (
        "missing argument 'task_id'"
    )


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "task/no_such"), ("GET", "task/kill"), ("POST", "file_server/no_such")]
)
def test_an_unknown_call_is_forbidden_by_name(client, method, path):
    answer = client.open(f"/api/v1/{path}", method=method, headers=_OWNER)
    assert (answer.status_code, answer.text) == (403, f"{method} {path} is not a call of this PanDA")


@pytest.mark.parametrize("body", [b"[]", b"{", b"\x1f\x8bjunk"])
def test_a_body_that_cannot_be_read_is_said(client, body):
    answer = client.post("/api/v1/job/kill", data=body, headers=_OWNER).get_json()
    assert answer["success"] is False
    assert answer["message"].startswith("could not read the request: ")


_ODD_BODIES = (
    b"[]", b"{", b"\x1f\x8bjunk", b"\xff\xfe", b'{"job_ids": NaN}', b'{"job_ids": 1e999}',
    b'{"job_ids": -Infinity}', b'{"job_ids": 1' + b"0" * 400 + b"}", b'{"job_ids": [9223372036854775808]}',
    b'{"job_ids": -1}', b'{"job_ids": 0}', b'{"job_ids": true}', b'{"job_ids": 1.5}', b'{"job_ids": {}}',
    b'{"job_ids": "' + b"9" * 30 + b'"}', b'{"job_ids": ' + b"[" * 100 + b"]" * 100 + b"}",
    b'{"job_ids": ' + b"[" * 100_000 + b"}", b'{"a":' * 100_000, gzip.compress(b"{}", mtime=0) + b"x",
    gzip.compress(b"{}", mtime=0)[:-4], b'{"job_ids": "\\ud800"}', b'{"job_ids": null}',
)  # fmt: skip


@pytest.mark.parametrize("body", _ODD_BODIES, ids=lambda body: repr(body[:30]))
@pytest.mark.parametrize("path", ["job/kill", "job/get_description", "local/link", "local/token"])
def test_a_strange_body_is_refused(client, path, body):
    answer = client.post(f"/api/v1/{path}", data=body, headers=_OWNER)
    if path == "local/link" and answer.status_code == 200:
        assert b"job_ids" in body
        return
    assert answer.status_code == 400
    assert answer.get_json()["success"] is False
    assert len(answer.data) < 1000


@pytest.mark.parametrize(
    "value", ["-1", "0", "true", "1e3", "nan", "9" * 30, "9223372036854775808", "", "x", "1_0", " 1"]
)
@pytest.mark.parametrize(
    "call", ["task/get_status?task_id", "task/get_job_ids?task_id", "job/get_status?job_ids"]
)
def test_an_odd_id_is_refused(client, call, value):
    answer = client.get(f"/api/v1/{call}={value}", headers=_OWNER)
    assert (answer.status_code, "bad argument" in answer.get_json()["message"]) == (400, True)


@pytest.mark.parametrize(
    "query", ["filters=[]", "filters={", "filters=NaN", "filters=" + "[" * 5000, "since=x", "n_tasks=-1"]
)
def test_odd_filters_are_refused(client, query):
    answer = client.get(f"/api/v1/task/get_tasks_detailed_info_since?{query}", headers=_OWNER)
    assert (answer.status_code, answer.get_json()["success"]) == (400, False)


@pytest.mark.parametrize("text", ["(" * 300, "[" * 5000, "1 +", "lambda: 1", "\0", "{" * 200])
def test_odd_events_are_refused(client, text):
    answer = client.get(
        "/api/v1/event/get_event_range_statuses", query_string={"job_task_ids": text}, headers=_OWNER
    )
    assert (answer.status_code, answer.get_json()["success"]) == (400, False)


def test_a_body_grows_within_limits_only(client):
    bomb = gzip.compress(b" " * 400_000_000, 1)
    assert len(bomb) < 4_000_000
    for path in ("job/kill", "task/submit", "relay_idds_command"):
        assert client.post(f"/api/v1/{path}", data=bomb, headers=_OWNER).status_code == 413


@_EACH
def test_a_body_has_the_type_and_the_size_that_belong_to_the_route(client, route):
    if route.method == "GET":
        return
    path = route.path
    for kind in ("text/plain", "application/xml", None):
        if kind is None and "" in route.body.kinds:
            continue
        answer = client.open(path, method="POST", data=b"{}", content_type=kind, headers=_OWNER)
        assert answer.status_code == 415
    answer = client.open(
        path, method="POST", data=b"{}", content_type=route.body.kinds[0], headers=_OWNER,
        environ_overrides={"CONTENT_LENGTH": str(route.body.largest + 1)},
    )  # fmt: skip
    assert answer.status_code == 413


_OUTSIDE = (
    "/logs/PandaJob_1/../secret", "/logs/../secret", "/logs/PandaJob_1/..%2f..%2fsecret",
    "/logs/..%2fsecret", "/logs/%2e%2e/secret", "/logs/%2E%2E%2Fsecret",
    "/logs/PandaJob_1/%2e%2e/%2e%2e/secret", "/logs/.%2e/secret", "/logs/PandaJob_1/..%5c..%5csecret",
    "/logs/PandaJob_1/..\\..\\secret", "/logs/%252e%252e/secret", "/logs/PandaJob_1/x%00", "/logs//secret",
    "/logs/PandaJob_1//etc/passwd", "/logs/./secret", "//logs/secret", "/logs/PandaJob_1/link",
    "/logs/PandaJob_1/folder/secret", "/logs/PandaJob_2/secret", "/logs/secret/x",
    "/logs/PandaJob_1x/secret", "/logs/PandaJob_/secret", "/logs/PandaJob_1/%c0%ae%c0%ae/secret",
    "/cache/.hidden", "/cache/..%2fsecret", "/cache/%2e%2e", "/cache/..", "/cache/link",
)  # fmt: skip


@pytest.mark.parametrize("view", ["", "/view/v"])
@pytest.mark.parametrize("path", _OUTSIDE)
def test_no_path_leaves_its_area(client, parts, path, view):
    if not parts.logs.exists():
        (parts.logs / "PandaJob_1").mkdir(parents=True)
        (parts.logs / "PandaJob_1" / "pilotlog.txt").write_text("said")
        (parts.logs / "secret").write_text("s")
        (parts.logs / "PandaJob_1" / "link").symlink_to(parts.logs / "secret")
        (parts.logs / "PandaJob_1" / "folder").symlink_to(parts.logs)
        (parts.logs / "PandaJob_2").symlink_to(parts.logs)
        (parts.logs / "PandaJob_1x").mkdir()
        (parts.logs / "PandaJob_1x" / "secret").write_text("s")
        parts.cache.path("link").symlink_to(parts.logs / "secret")
    with client.get("/logs/PandaJob_1/pilotlog.txt", headers=_OWNER) as answer:
        assert answer.text == "said"
    with client.get(view + path, headers=_OWNER) as answer:
        assert answer.status_code in (400, 404)
        assert answer.text != "s"


def test_a_link_lets_a_browser_read_once(client, parts):
    (parts.logs / "PandaJob_7").mkdir(parents=True, exist_ok=True)
    (parts.logs / "PandaJob_7" / "payload<b>.txt").write_text("<b>said</b>")
    made = client.post("/api/v1/local/link", json={"job": 7}, headers=_OWNER).get_json()["data"]
    answer = client.get(made)
    place = answer.headers["Location"]
    cookie = answer.headers["Set-Cookie"]
    assert answer.status_code == 303
    assert place.endswith("/logs/PandaJob_7/")
    assert {"HttpOnly", "SameSite=Strict"} <= set(cookie.split("; "))
    assert "Domain" not in cookie
    root = place.removesuffix("logs/PandaJob_7/")
    assert f"Path={root}" in cookie
    page = client.get(place)
    assert "payload&lt;b&gt;.txt" in page.text
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    # Everything else below it are the live pages, a process of their own.
    assert client.get(f"{root}runs/7/label?name=a%2Fb").text == (f"GET {root[:-1]} /runs/7/label?name=a%2Fb")
    form = "application/x-www-form-urlencoded"
    assert client.post(f"{root}runs/7/cancel", data="token=x", content_type=form).text.startswith("POST")
    assert client.post(f"{root}runs/7/cancel", data="x" * 5000, content_type=form).status_code == 413
    with client.get(f"{place}payload%3Cb%3E.txt") as log:
        assert (log.text, log.mimetype) == ("<b>said</b>", "text/plain")
        assert log.headers["X-Content-Type-Options"] == "nosniff"
    assert client.get(made).status_code == 401
    # The cookie reads the pages of its view, and does nothing else.
    value = {"Cookie": cookie.partition(";")[0]}
    for route in ROUTES:
        if route.caller is not Caller.READER:
            assert _open(client, route, value).status_code == 401
    assert client.get("/view/other/", headers=value).status_code == 401
    assert client.post(root, headers=value).status_code == 401


@pytest.mark.parametrize("job", [True, -1, 0, 1.5, "7", [7], 10**18])
def test_a_link_leads_to_a_job(client, job):
    assert client.post("/api/v1/local/link", json={"job": job}, headers=_OWNER).status_code == 400


def test_jobs_are_killed_by_their_owner_only(client, jedi):
    answer = client.post("/api/v1/job/kill", json={"job_ids": [5, 6]}, headers=_ALICE).get_json()
    assert answer["data"] == [False, False]


@pytest.mark.parametrize("command", ["pause", "resume", "change_attribute", "release"])
def test_some_commands_take_the_production_role(client, command):
    body = {"task_id": 999, "attribute_name": "ramCount", "value": 5}
    refused = client.post(f"/api/v1/task/{command}", json=body, headers=_ALICE).get_json()
    assert refused["message"] == "production or pilot role required"
    found = client.post(f"/api/v1/task/{command}", json=body, headers=_OWNER).get_json()
    assert ("not found" in found["message"]) == (command != "release")


@pytest.mark.parametrize(
    "body",
    [{"attribute_name": "coreCount", "value": 1}, {"attribute_name": "ramCount", "value": -1},
     {"attribute_name": [], "value": 1}, {}],
)  # fmt: skip
def test_attributes_that_cannot_be_changed_are_refused(client, body):
    body = {"task_id": 999, **body}
    answer = client.post("/api/v1/task/change_attribute", json=body, headers=_OWNER).get_json()
    assert not answer["success"]


@pytest.mark.parametrize("body", [{}, {"site": ""}, {"site": "a:b"}, {"site": 5}, {"site": "a", "mode": "x"}])
def test_a_queue_to_move_to_is_checked(client, body):
    answer = client.post("/api/v1/task/reassign", json={"task_id": 999, **body}, headers=_OWNER).get_json()
    assert answer["message"].startswith(("bad argument", "missing argument"))


def test_faults_are_replaced_by_who_has_the_secret(client, parts):
    answer = client.post(
        "/api/v1/local/faults",
        data=json.dumps([{"action": "drop", "target": "command"}]),
        headers=_OWNER,
    )
    assert answer.get_json() == {"success": True, "message": "", "data": 1}
    assert parts.faults.flow("command", "abort", 1) == []
    refused = client.post("/api/v1/local/faults", data=b'[{"action": "burn"}]', headers=_OWNER)
    assert "burn" in refused.get_json()["message"]
