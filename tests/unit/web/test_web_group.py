"""The pages of a group, without a browser and without a PanDA: who is let in, for how long, and whom others
cannot keep out; with an OpenID provider of a few lines.
"""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from werkzeug.test import Client

from lsst.ctrl.bps.panda.auth.login import LoginSettings
from lsst.ctrl.bps.panda.settings.run import read_service_settings
from lsst.ctrl.bps.panda.web.server import GroupServer, GroupSettings

ADDRESS = "https://runs.example"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


class Provider:
    """Lets in whoever is named in the code."""

    def __init__(self):
        self.asked = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                self.answer(outer.documents[self.path])

            def do_POST(self):
                body = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                self.answer(outer.make_tokens(**json.loads(body["code"][0])))

            def answer(self, value):
                outer.asked.append(self.path)
                text = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.root = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        key = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key()))
        places = ("authorization_endpoint", "device_authorization_endpoint", "token_endpoint", "jwks_uri")
        self.documents = {
            "/.well-known/openid-configuration": {"issuer": self.root}
            | {place: f"{self.root}/{place}" for place in places},
            "/jwks_uri": {"keys": [key]},
        }

    def make_tokens(self, name, nonce):
        now = int(time.time())
        claims = {"iss": self.root, "aud": "panda", "sub": name, "preferred_username": name, "nonce": nonce}
        token = jwt.encode(claims | {"iat": now - 60, "exp": now + 3600}, KEY, algorithm="RS256")
        return {"access_token": "x", "token_type": "Bearer", "id_token": token}

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def provider():
    made = Provider()
    yield made
    made.close()


@pytest.fixture
def server(provider, tmp_path):
    env = {"PANDA_URL_SSL": provider.root, "PANDA_AUTH_VO": "Rubin", "HOME": str(tmp_path), "USER": "x"}
    client = {
        "client_id": "panda",
        "oidc_config_url": f"{provider.root}/.well-known/openid-configuration",
    }
    login = LoginSettings(provider.root, "Rubin", client=client)
    clock = Clock()
    provider.asked.clear()
    made = GroupServer(GroupSettings(ADDRESS, read_service_settings(None, env), login, 1.0), 0, clock=clock)
    made.clock = clock
    yield made
    made.close()


class Visitor:
    """A browser, which the provider sends back at once."""

    def __init__(self, server):
        self.client = Client(server)

    def get(self, path):
        return self.client.get(path, base_url=ADDRESS)

    def begin(self, name, to="/", **error):
        """Begin a log-in; where the provider sends the browser to."""
        sent = parse_qs(urlsplit(self.get(f"/login?{urlencode({'to': to})}").headers["Location"]).query)
        code = json.dumps({"name": name, "nonce": sent["nonce"][0]})
        return "/callback?" + urlencode({"state": sent["state"][0]} | (error or {"code": code}))

    def log_in(self, name):
        reply = self.get(self.begin(name))
        assert reply.status_code == 303, reply.text
        return self

    def is_in(self):
        # A page that asks nobody: there is no portal for a group.
        code = self.get("/portal").status_code
        assert code in (401, 404)
        return code == 404


@pytest.fixture
def visit(server):
    return lambda: Visitor(server)


def test_a_flood_keeps_nobody_from_finishing(server, visit, provider):
    alice, other = visit(), visit()
    back = alice.begin("alice")
    assert 429 in {other.get("/login").status_code for _ in range(400)}
    assert {other.get(f"/callback?code=x&state={n}").status_code for n in range(400)} == {403}
    assert alice.get(back).status_code == 303
    assert alice.is_in()
    # The provider was found once for all of them, and is found again a while later.
    assert [path for path in provider.asked if "well-known" in path] == provider.asked[:1]
    provider.asked.clear()
    server.clock.now += 400
    visit().log_in("bob")
    visit().log_in("bob")
    assert len([path for path in provider.asked if "well-known" in path]) == 1


def test_a_log_in_replaces_the_session_of_the_browser(visit):
    browser, old = visit().log_in("alice"), visit()
    cookie = browser.client.get_cookie("__Host-panda_bps", domain="runs.example")
    old.client.set_cookie(
        "__Host-panda_bps", cookie.value, domain="runs.example", secure=True, origin_only=True
    )
    assert old.is_in()
    browser.log_in("bob")
    assert browser.is_in()
    assert not old.is_in()


def test_nobody_pushes_others_out(visit):
    bob = visit().log_in("bob")
    browsers = [visit().log_in("alice") for _ in range(5)]
    # The first one is used again, so the second one goes.
    assert browsers[0].is_in()
    browsers.append(visit().log_in("alice"))
    assert [each.is_in() for each in browsers] == [True, False, True, True, True, True]
    assert bob.is_in()


def test_sessions_that_are_over_are_forgotten_whoever_asks(server, visit):
    visit().log_in("alice")
    assert len(server._sessions) == 1
    server.clock.now += server.settings.idle + 1
    assert visit().get("/static/page.css").status_code == 200
    assert len(server._sessions) == 0


def test_a_name_is_one_short_line_wherever_it_stands(visit):
    browser = visit().log_in("ann\n2026-12-01 ERROR \x1b[31m" + "x" * 500)
    text = browser.get("/portal").text
    assert "ann2026-12-01 ERROR [31mxxx" in text
    assert "x" * 101 not in text


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("access_denied", "Try again"),
        ("invalid_client", "does not know the client &#39;panda&#39;: trying again does not help"),
        ("unauthorized_client", "tell the operators of these pages"),
    ],
)
def test_a_refusal_says_who_can_help(visit, code, words):
    browser = visit()
    reply = browser.get(browser.begin("ann", error=code))
    assert reply.status_code == 403
    assert f"The login was refused ({code})" in reply.text
    assert words in reply.text


def test_a_log_in_leads_back_to_a_page_of_this_server_only(visit):
    browser = visit()
    for to, lands in (("/runs/1/?a=b", "/runs/1/?a=b"), ("//evil.example", "/"), (f"/{'x' * 3000}", "/")):
        assert browser.get(browser.begin("ann", to)).headers["Location"] == ADDRESS + lands
