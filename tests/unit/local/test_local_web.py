"""The routes of the embedded PanDA: only those of the table are served, and only to whom the table admits."""

import json
import time

import pytest

from lsst.ctrl.bps.panda.local.api import Api, FileCache
from lsst.ctrl.bps.panda.local.database import Database, MessageQueue
from lsst.ctrl.bps.panda.local.endpoint import TOKEN_HEADER
from lsst.ctrl.bps.panda.local.faults import Faults
from lsst.ctrl.bps.panda.local.idds_host import IddsRelay
from lsst.ctrl.bps.panda.local.identity import IdentityRules, NotAllowedError
from lsst.ctrl.bps.panda.local.jedi import Jedi
from lsst.ctrl.bps.panda.local.job_store import JobStore
from lsst.ctrl.bps.panda.local.settings import TIMINGS, Queues
from lsst.ctrl.bps.panda.local.views import Views
from lsst.ctrl.bps.panda.local.web import ROUTES, Caller, WebParts, make_application

_SECRET = "the secret of this instance"


def _verify(token):
    if token != "good":
        raise NotAllowedError("the bearer token is bad")
    return {"name": "alice"}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return Database(f"sqlite:///{tmp_path_factory.mktemp('web')}/panda.db")


@pytest.fixture(scope="module")
def jedi(database):
    queue = MessageQueue(database, time.time)
    store = JobStore(database, queue, clock=time.time, wake=lambda: None)
    return Jedi(database, queue, store, timing=TIMINGS["quick"], clock=time.time, wake=lambda: None)


@pytest.fixture(scope="module")
def parts(database, jedi, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("web")
    faults = Faults()
    return WebParts(
        api=Api(jedi, Views(database), queues=Queues(), timing=TIMINGS["quick"]),
        relay=IddsRelay(None, faults),
        cache=FileCache(tmp_path / "cache"),
        logs=tmp_path / "logs",
        rules=IdentityRules("me", _verify),
        faults=faults,
        status=lambda: {"slots": 3},
        token=_SECRET,
    )


@pytest.fixture(scope="module")
def client(parts):
    return make_application(parts).test_client()


def _open(client, route, headers=None):
    path = route.path.replace("<path:name>", "x").replace("<name>", "x").replace("<job>", "PandaJob_1")
    return client.open(
        path, method=route.method, headers=headers or {}, data=b"" if route.method == "GET" else b"{}"
    )


def test_application_has_the_routes_of_the_table_only(parts):
    rules = make_application(parts).url_map.iter_rules()
    served = {(method, rule.rule) for rule in rules for method in rule.methods - {"HEAD"}}
    assert served == {(route.method, route.path) for route in ROUTES}


def test_each_route_is_declared_once():
    keys = [(route.method, route.path) for route in ROUTES]
    assert sorted(set(keys)) == sorted(keys)


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer bad"}, {TOKEN_HEADER: "guessed"}])
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_who_is_not_admitted_is_refused(client, route, headers):
    answer = _open(client, route, headers)
    if route.caller is Caller.ANYONE:
        assert answer.status_code == 404
    else:
        assert answer.status_code == 403
        assert b"token" in answer.data or b"Token" in answer.data


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_who_has_the_secret_is_admitted(client, route):
    # A missing argument and the like is a reply of PanDA, with status 200.
    answer = _open(client, route, {TOKEN_HEADER: _SECRET})
    assert answer.status_code == (404 if route.caller is Caller.ANYONE else 200)


def test_a_user_with_a_token_controls_nothing(client):
    good = {"Authorization": "Bearer good"}
    for route in ROUTES:
        if route.caller is Caller.CONTROLLER:
            assert _open(client, route, good).status_code == 403
    assert client.get("/api/v1/system/get_attributes", headers=good).get_json()["data"]["user"] == "alice"


@pytest.mark.parametrize("command", ["kill", "finish", "retry", "reload_input"])
def test_a_task_obeys_its_owner_only(client, jedi, command):
    mine, hers = (jedi.submit({"taskName": user, "userName": user}, user) for user in ("me", "alice"))
    good = {"Authorization": "Bearer good"}

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
    answer = client.open(f"/api/v1/{path}", method=method, headers={TOKEN_HEADER: _SECRET})
    assert (answer.status_code, answer.text) == (403, f"{method} {path} is not a call of this PanDA")


@pytest.mark.parametrize("body", [b"[]", b"{", b"\x1f\x8bjunk"])
def test_a_body_that_cannot_be_read_is_said(client, body):
    answer = client.post("/api/v1/job/kill", data=body, headers={TOKEN_HEADER: _SECRET}).get_json()
    assert answer["success"] is False
    assert answer["message"].startswith("could not read the request: ")


def test_cache_and_logs_are_served_by_plain_names_only(client, parts):
    (parts.logs / "PandaJob_1").mkdir(parents=True)
    (parts.logs / "PandaJob_1" / "pilotlog.txt").write_text("said")
    (parts.logs / "secret").write_text("s")
    with client.get("/logs/PandaJob_1/pilotlog.txt") as answer:
        assert answer.text == "said"
    assert client.get("/logs/PandaJob_1/../secret").status_code == 404
    assert client.get("/logs/../secret").status_code == 404
    assert client.get("/cache/.hidden").status_code == 404


def test_faults_are_replaced_by_who_has_the_secret(client, parts):
    answer = client.post(
        "/api/v1/local/faults",
        data=json.dumps([{"action": "drop", "target": "command"}]),
        headers={TOKEN_HEADER: _SECRET},
    )
    assert answer.get_json() == {"success": True, "message": "", "data": 1}
    assert parts.faults.flow("command", "abort", 1) == []
    refused = client.post(
        "/api/v1/local/faults", data=b'[{"action": "burn"}]', headers={TOKEN_HEADER: _SECRET}
    )
    assert "burn" in refused.get_json()["message"]
