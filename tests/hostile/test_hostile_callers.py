"""The embedded PanDA as others attack it: another user of the machine, somebody who has its port, whoever
sends strange bodies, paths and objects.
"""

import base64
import contextlib
import gzip
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import jwt
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from panda_servers.runs import make_service_class
from panda_servers.second_user import SecondUser

from lsst.ctrl.bps.panda.errors import LocalPandaError
from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.local.endpoint import EndpointClient, SampleTask, environment, is_alive
from lsst.ctrl.bps.panda.local.web import ROUTES

pytestmark = pytest.mark.slow

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become a second user")

_ISSUER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="module")
def issuer():
    """An OpenID issuer: its address."""
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(_ISSUER_KEY.public_key()))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            root = f"http://127.0.0.1:{self.server.server_port}"
            keys = {"keys": [{**public, "kid": "k1", "use": "sig"}]}
            body = json.dumps({"jwks_uri": f"{root}/keys"} if "well-known" in self.path else keys).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def endpoint(place, issuer):
    """A PanDA with an issuer, which imports modules from a folder of ours, too."""
    (place / "modules").mkdir()
    (place / "modules" / "evil_marker.py").write_text(
        f"import pathlib; pathlib.Path({str(place / 'imported')!r}).touch()\nclass Evil: pass\n"
    )
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(place / "modules"), before)))
    try:
        found = instance.start(place / "state", slots=2, issuer=issuer)
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    yield found
    instance.stop(place / "state")


@pytest.fixture(scope="module")
def port(endpoint):
    return int(endpoint.base.rpartition(":")[2])


@pytest.fixture(scope="module")
def job(endpoint):
    """The id of a job that has run and left its logs."""
    client = EndpointClient(endpoint)
    sample = client.submit("u_me_hostile", [SampleTask("env", {"env:0": ()}, "env; echo secret output")])
    assert client.wait(sample, timeout=200)[0] == "Finished"
    return 1000001


def raw(port, method, path, *, body="", headers=(), host=None):
    """A request as bytes, whatever it is."""
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {host or f'127.0.0.1:{port}'}",
        "Connection: close",
        *headers,
    ]
    if method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines) + "\r\n\r\n" + body


def own(endpoint):
    return f"Authorization: Bearer {endpoint.token}"


def send(port, request):
    """Send a request as this user; return status and reply."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request.encode("latin-1"))
        pieces = []
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                pieces.append(piece)
    text = b"".join(pieces).decode("latin-1")
    return int(text.split()[1]), text


def paths(job=1000001):
    for route in ROUTES:
        path = route.path.replace("<job>", f"PandaJob_{job}").replace("<path:name>", "payload.stdout")
        path = path.replace("<name>", "x").replace("<view>", "v").replace("<code>", "c")
        yield route.method, path, (route.body.kinds or ("",))[0]


def own_address():
    """An address of this machine that is not loopback, if it has one."""
    found = [item.address for items in psutil.net_if_addrs().values() for item in items]
    return next((name for name in found if name.count(".") == 3 and not name.startswith("127.")), "127.0.0.3")


# -- Another user ------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("source", ["127.0.0.1", "127.0.0.2", "::ffff:127.0.0.1", "::ffff:127.0.0.5", "own"])
def test_another_user_gets_nothing_from_any_route(endpoint, port, job, source):
    address = own_address() if source == "own" else source
    options = {"port": port, "source": address, "family": "6" if ":" in address else "4"}
    requests = []
    for method, path, kind in paths(job):
        for more in ((), ("X-PanDA-User: root",), ("Authorization: Bearer x",), ("X-PanDA-Local-Token: x",)):
            headers = (f"Content-Type: {kind}", *more)
            requests.append({**options, "request": raw(port, method, path, body="{}", headers=headers)})
    replies = SecondUser().exchange(requests)
    assert len(replies) > 150
    assert {reply.split()[1] for reply in replies} == {"401"}
    assert not [reply for reply in replies if "secret output" in reply or '"success": true' in reply]


@needs_root
def test_a_caller_who_is_gone_has_no_rights(endpoint, port):
    body = json.dumps({"task_parameters": {"taskName": "stolen", "userName": "root", "vo": "x"}})
    headers = ("Content-Type: application/json",)
    request = raw(port, "POST", "/api/v1/task/submit", body=body, headers=headers)
    SecondUser().exchange([{"port": port, "request": request, "read": False} for _ in range(40)])
    listed = EndpointClient(endpoint).api(
        "task/get_tasks_detailed_info_since?filters=%7B%22userName%22:%22.*|%22%7D"
    )
    assert listed["success"]
    assert "stolen" not in json.dumps(listed)


@needs_root
def test_other_addresses_of_the_machine_have_no_port(port):
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((own_address(), port), timeout=30)


@needs_root
def test_the_owner_gets_in_while_others_hold_connections(endpoint, port):
    with SecondUser().flood(port=port, idle=150, slow=50) as flood:
        assert json.loads(flood.stdout.readline()) == "open"
        for _ in range(20):
            assert instance.status(endpoint)["pid"] == endpoint.pid
        # All of them are closed in the end, also those that go on sending.
        assert json.loads(flood.stdout.readline()) == 200
    assert instance.status(endpoint)["pid"] == endpoint.pid


@needs_root
def test_bodies_of_strangers_are_not_kept(endpoint, port):
    before = psutil.Process(endpoint.pid).memory_info().rss
    size = 800_000_000
    head = raw(port, "POST", "/server/panda/relay_idds_command", headers=("Content-Type: application/json",))
    head = head.replace("Content-Length: 0", f"Content-Length: {size}")
    assert SecondUser().upload(port=port, head=head, size=size) < 100_000_000
    assert psutil.Process(endpoint.pid).memory_info().rss - before < 100_000_000


def test_a_short_body_of_a_stranger_is_answered(port):
    """A client with an old token learns why, however much it sends."""
    for size in (10, 5_000_000):
        body = "x" * size
        request = raw(port, "POST", "/server/panda/relay_idds_command", body=body)
        assert send(port, request)[0] == 401


def test_chunks_without_a_length_are_refused(endpoint, port):
    headers = (own(endpoint), "Transfer-Encoding: chunked", "Content-Type: application/json")
    request = raw(port, "POST", "/api/v1/job/kill", headers=headers).replace("Content-Length: 0\r\n", "")
    assert send(port, request + "2\r\n{}\r\n0\r\n\r\n")[0] == 411


def test_what_follows_a_refused_request_is_no_request(endpoint, port):
    """A page could hide a request in the body of another."""
    inner = raw(port, "GET", "/api/v1/system/is_alive", headers=(own(endpoint),))
    text = send(
        port, raw(port, "POST", "/api/v1/job/kill", body=inner, headers=("Content-Type: text/plain",))
    )[1]
    assert text.count("HTTP/1.1") == 1
    assert " 401 " in text


# -- The token ---------------------------------------------------------------------


def test_the_token_is_in_one_file_only(endpoint, port, job, place):
    token = endpoint.token
    file = place / "state" / "client" / ".token"
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    process = Path(f"/proc/{endpoint.pid}")
    assert token not in (process / "environ").read_text() + (process / "cmdline").read_text()
    assert token not in "".join(environment(endpoint).values())
    state = place / "state"
    assert [path for path in state.iterdir() if path.stat().st_mode & 0o077] == []
    files = [path for path in state.rglob("*") if path.is_file()]
    found = [path for path in files if token.encode() in path.read_bytes()]
    assert found == [file]
    output = send(port, raw(port, "GET", f"/logs/PandaJob_{job}/payload.stdout", headers=(own(endpoint),)))[1]
    assert "PANDA_CONFIG_ROOT=" in output
    assert token not in output


def test_a_token_of_an_earlier_start_is_worthless(tmp_path):
    first = instance.start(tmp_path / "state")
    try:
        old = first.token
        instance.stop(tmp_path / "state")
        assert not (tmp_path / "state" / "client" / ".token").exists()
        second = instance.start(tmp_path / "state")
        assert second.url == first.url
        with pytest.raises(LocalPandaError, match="401"):
            _status_with(second, old)
        assert instance.status(second)["pid"] == second.pid
    finally:
        instance.stop(tmp_path / "state")


def _status_with(endpoint, token):
    port = int(endpoint.base.rpartition(":")[2])
    status, text = send(
        port, raw(port, "GET", "/api/v1/local/status", headers=(f"Authorization: Bearer {token}",))
    )
    if status != 200:
        raise LocalPandaError(text)


def _take_port(port):
    """Listen on a port as soon as it is free."""
    end = time.monotonic() + 60
    while True:
        try:
            return socket.create_server(("127.0.0.1", port))
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.02)


def test_who_takes_the_port_of_a_dead_server_hears_nothing(tmp_path):
    endpoint = instance.start(tmp_path / "state")
    port = int(endpoint.base.rpartition(":")[2])
    env = {"USER": "ann", "PATH": os.environ["PATH"], "XDG_STATE_HOME": str(tmp_path / "xdg")}
    service = make_service_class(env, endpoint)({})
    assert service.ping()[0] == 0
    os.kill(endpoint.pid, signal.SIGKILL)
    while is_alive(endpoint.pid, endpoint.started):
        time.sleep(0.01)
    try:
        with _take_port(port) as thief:
            thief.settimeout(1)
            code, said = service.ping()
            assert code == 1
            assert "does not run any more" in said
            assert "panda_local start" in said
            for attempt in (
                lambda: instance.status(endpoint),
                lambda: EndpointClient(endpoint).relay("ping"),
            ):
                with pytest.raises(LocalPandaError, match="does not run any more"):
                    attempt()
            with pytest.raises(TimeoutError):
                thief.accept()
    finally:
        instance.stop(tmp_path / "state")


def test_a_folder_that_is_a_link_stops_the_start(tmp_path):
    state = tmp_path / "state"
    endpoint = instance.start(state)
    instance.stop(state)
    assert not is_alive(endpoint.pid, endpoint.started)
    (tmp_path / "theirs").mkdir()
    for name in ("cache", "client", "logs", "idds"):
        (state / name).rename(state / "aside")
        (state / name).symlink_to(tmp_path / "theirs")
        with pytest.raises(LocalPandaError, match=f"{name} is a link"):
            instance.start(state)
        (state / name).unlink()
        (state / "aside").rename(state / name)
    assert list((tmp_path / "theirs").iterdir()) == []


# -- Strange paths, bodies and objects ------------------------------------------------

_PATHS = (
    "/logs/..%2fendpoint.json", "/logs/%2e%2e/endpoint.json", "/logs/%2e%2e%2fendpoint.json",
    "/logs/../endpoint.json", "/logs/PandaJob_1000001/../../endpoint.json", "/logs/..%5cendpoint.json",
    "/logs/PandaJob_1000001/..%2f..%2fclient%2f.token", "/logs/..%252fendpoint.json",
    "/logs/..;/endpoint.json", "/logs/.%2e/client/.token", "/logs/%c0%ae%c0%ae/endpoint.json",
    "/logs/..%00/endpoint.json", "/logs/PandaJob_1000001/..%2f..%2fpanda.db", "/logs//endpoint.json",
    "/logs/..%ff/endpoint.json", "/cache/..%2fendpoint.json", "/cache/%2e%2e%2fsettings.json",
    "http://127.0.0.1/logs/../endpoint.json", "//127.0.0.1/endpoint.json", "/\\..\\endpoint.json",
    "/logs/%", "/logs/%zz", "/%", "*", "/" + "a/" * 5000,
)  # fmt: skip


@pytest.mark.parametrize("path", _PATHS, ids=lambda path: path[:40])
def test_no_path_leaves_the_logs(endpoint, port, job, path):
    for headers in ((), (own(endpoint),)):
        status, text = send(port, raw(port, "GET", path, headers=headers))
        assert status in (400, 401, 403, 404)
        assert endpoint.token not in text
        assert '"pid"' not in text
        assert "SQLite" not in text


def test_bombs_cost_nothing(endpoint, port):
    process = psutil.Process(endpoint.pid)
    before = process.memory_info().rss
    bomb = gzip.compress(b"[" + b"0," * 300_000_000 + b"0]", 9).decode("latin-1")
    deep = "[" * 2_000_000
    headers = (own(endpoint), "Content-Type: application/json")
    for path in ("/server/panda/relay_idds_command", "/api/v1/job/kill", "/api/v1/task/submit"):
        assert send(port, raw(port, "POST", path, body=bomb, headers=headers))[0] == 413
        for body in (deep, '{"job_ids": NaN}', '{"task_parameters": 1e999}', '{"a": ' * 100_000):
            assert send(port, raw(port, "POST", path, body=body, headers=headers))[0] == 400
    assert process.memory_info().rss - before < 200_000_000
    assert instance.status(endpoint)["pid"] == endpoint.pid


def _relay(endpoint, command, arguments, token=None):
    body = {"command_name": command, "args": json.dumps(arguments), "manager": True}
    client = EndpointClient(endpoint, token=token)
    return client.request(f"{endpoint.url}/relay_idds_command", json.dumps(body).encode())


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("evil_marker", "Evil"),
        ("subprocess", "Popen"),
        ("idds.common.utils", "DictClassEncoder"),
        ("idds.workflowv2.workflow", "logging"),
        ("idds.common.dict_class", "pickle"),
        ("idds.workflowv2.work.os", "path"),
        (["evil_marker"], "Evil"),
    ],
)
def test_the_relay_makes_classes_of_runs_only(endpoint, place, module, name):
    foreign = {"class": name, "module": module, "attributes": {}}
    for arguments in ([foreign], [{"a": [foreign]}]):
        success, said = _relay(endpoint, "submit", arguments)
        assert not success
        assert "is not a class of which runs are made" in said
    hidden = {"class": "Workflow", "module": "idds.workflowv2.workflow", "attributes": {"works": foreign}}
    assert not _relay(endpoint, "submit", [hidden])[0]
    assert not (place / "imported").exists()


def test_a_packed_value_grows_within_limits_only(endpoint):
    bomb = "idds_zip:" + base64.b64encode(zlib.compress(b"[" + b"0," * 200_000_000 + b"0]")).decode()
    attributes = {"_zip_items": ["_name"], "_name": bomb}
    before = psutil.Process(endpoint.pid).memory_info().rss
    workflow = {"class": "Workflow", "module": "idds.workflowv2.workflow", "attributes": attributes}
    success, said = _relay(endpoint, "submit", [workflow])
    assert not success
    assert "a packed value has more than" in said
    assert psutil.Process(endpoint.pid).memory_info().rss - before < 200_000_000


@pytest.mark.parametrize(
    "command",
    [
        "set_original_user", "setup_local_configuration", "upload_to_cacher", "download_logs",
        "clean_oidc_token", "__init__", "session.get", "setup_json_outputs",
    ],
)  # fmt: skip
def test_the_relay_forwards_commands_only(endpoint, command):
    alice = instance.make_token(endpoint, "alice")
    success, said = _relay(endpoint, command, [], alice)
    assert not success
    assert "is not a command" in said


# -- Users of an issuer --------------------------------------------------------------


def test_an_issuers_user_has_the_rights_of_a_user(endpoint, issuer, port, job):
    claims = {"iss": issuer, "name": "alice", "exp": time.time() + 1000, "role": "owner"}
    token = jwt.encode(claims, _ISSUER_KEY, "RS256", headers={"kid": "k1"})
    alice = EndpointClient(endpoint, token=token)
    assert alice.api("system/get_attributes")["data"] == {"user": "alice", "production": False}
    bearer = (f"Authorization: Bearer {token}",)
    log = f"/logs/PandaJob_{job}/payload.stdout"
    assert send(port, raw(port, "GET", log, headers=bearer))[0] == 200
    assert send(port, raw(port, "GET", log))[0] == 401
    assert send(port, raw(port, "GET", "/api/v1/local/status", headers=bearer))[0] == 403
    other = jwt.encode(claims, rsa.generate_private_key(65537, 2048), "RS256", headers={"kid": "k1"})
    assert send(port, raw(port, "GET", log, headers=(f"Authorization: Bearer {other}",)))[0] == 401


# -- An unchanged client ---------------------------------------------------------------


def test_an_unchanged_client_of_panda_finds_the_token(endpoint, job, tmp_path):
    code = (
        "from pandaclient import Client, idds_api; from idds.common.utils import json_dumps\n"
        f"print(Client.getFullJobStatus([{job}], verbose=False)[1][0].jobStatus)\n"
        "for packed in (True, False):\n"
        "    api = idds_api.get_api(json_dumps, idds_host=None, compress=packed, manager=True)\n"
        "    print(api.ping())\n"
        "open('sources.test.tar.gz', 'wb').write(b'content')\n"
        "print(Client.putFile('sources.test.tar.gz', verbose=False))\n"
    )
    variables = {name: value for name, value in environment(endpoint).items() if value}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), **variables},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.stdout.startswith("finished\n"), done
    assert done.stdout.count("(0, [True, {'Status': 'OK'}])") == 2, done
    assert "True" in done.stdout.splitlines()[-1], done
