"""The device flow step by step, against a provider of a few lines that says
what the real one says rarely.
"""

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import pytest

from lsst.ctrl.bps.panda.auth.login import (
    DeviceGrant,
    Provider,
    await_approval,
    find_login_settings,
    find_provider,
    refresh_tokens,
    start_device_login,
)
from lsst.ctrl.bps.panda.errors import (
    AuthenticationError,
    LoginError,
    RefreshRefusedError,
    ReplyError,
    SettingsError,
    TokenBrokenError,
    TransportError,
)
from lsst.ctrl.bps.panda.rest.credentials import Anonymous
from lsst.ctrl.bps.panda.rest.retries import RetryPolicy
from lsst.ctrl.bps.panda.rest.tokens import TokenSet
from lsst.ctrl.bps.panda.rest.transport import Transport

OPAQUE = "opaque-refresh-token-0123456789"


class Scripted:
    """Gives prepared replies in turn, and remembers what it was asked."""

    def __init__(self):
        self.replies = []
        self.asked = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                self.answer("")

            def do_POST(self):
                self.answer(self.rfile.read(int(self.headers["Content-Length"])).decode())

            def answer(self, body):
                outer.asked.append((self.path, parse_qs(body)))
                status, value = outer.replies.pop(0)
                text = value if isinstance(value, str) else json.dumps(value)
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.root = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server():
    made = Scripted()
    yield made
    made.close()
    assert made.replies == [], "fewer questions than expected"


@pytest.fixture
def provider(server):
    return Provider(
        issuer=server.root,
        client_id="panda",
        client_secret="",
        audience="everybody",
        device_endpoint=f"{server.root}/device",
        token_endpoint=f"{server.root}/token",
        jwks_uri=f"{server.root}/jwks",
    )


def make_transport():
    return Transport(Anonymous(), retry=RetryPolicy(attempts=1), sleep=lambda _: None)


GRANT = DeviceGrant("device-code-0123456789", "ABCD", "https://x/", "", expires_in=600, interval=5)


class Wait:
    def __init__(self):
        self.now = 0.0
        self.sleeps = []

    def sleep(self, seconds):
        self.sleeps.append(seconds)
        self.now += seconds

    def clock(self):
        return self.now


def wait_for_approval(provider, grant=GRANT):
    wait = Wait()
    with pytest.raises(TransportError) as caught:
        await_approval(make_transport(), provider, grant, sleep=wait.sleep, clock=wait.clock)
    return caught.value, wait.sleeps


PENDING = (400, {"error": "authorization_pending"})
DENIED = (400, {"error": "access_denied"})


def test_the_interval_grows_when_told_and_when_the_provider_is_in_trouble(server, provider):
    server.replies = [PENDING, (400, {"error": "slow_down"}), PENDING, (503, "down"), PENDING, DENIED]
    error, sleeps = wait_for_approval(provider)
    assert isinstance(error, LoginError)
    assert sleeps == [5, 5, 10, 10, 20, 20]
    path, form = server.asked[0]
    assert path == "/token"
    assert form == {
        "grant_type": ["urn:ietf:params:oauth:grant-type:device_code"],
        "device_code": ["device-code-0123456789"],
        "client_id": ["panda"],
    }


def test_no_question_is_asked_after_the_end(server, provider):
    server.replies = [PENDING, PENDING]
    error, sleeps = wait_for_approval(provider, replace(GRANT, expires_in=14))
    assert isinstance(error, LoginError)
    assert sleeps == [5, 5]


def test_a_confidential_client_gives_its_secret_everywhere(server, provider):
    confidential = replace(provider, client_secret="the-secret", scopes=("openid", "wlcg"))
    server.replies = [
        (200, {"device_code": "d" * 20, "user_code": "u", "verification_uri": "https://x", "expires_in": 9}),
        DENIED,
        (400, {"error": "invalid_grant", "error_description": f"token {OPAQUE} is used"}),
    ]
    grant = start_device_login(make_transport(), confidential)
    assert (grant.interval, grant.verification_uri_complete) == (5.0, "")
    with pytest.raises(LoginError):
        await_approval(make_transport(), confidential, grant, sleep=lambda _: None, clock=lambda: 0.0)
    with pytest.raises(RefreshRefusedError, match="any more"):
        refresh_tokens(
            make_transport(), confidential, TokenSet({"id_token": "a.b.c", "refresh_token": OPAQUE})
        )
    assert [form["client_secret"] for _, form in server.asked] == [["the-secret"]] * 3
    assert server.asked[0][1]["scope"] == ["openid wlcg"]
    assert server.asked[0][1]["audience"] == ["everybody"]


@pytest.mark.parametrize(
    ("status", "reply", "kind"),
    [
        (200, "<html>please sign in</html>", ReplyError),
        (200, '{"access_token": "secret-token-012345', ReplyError),
        (200, ["secret-token-012345"], ReplyError),
        (400, {"message": "secret-token-012345"}, ReplyError),
        (401, "secret-token-012345", AuthenticationError),
        (200, {"device_code": "secret-token-012345"}, ReplyError),
        (200, {"device_code": "secret-token-012345", "user_code": "u", "verification_uri": "v",
               "expires_in": "soon"}, ReplyError),
        (401, {"error": "invalid_client"}, LoginError),
        (400, {"error": "unauthorized_client"}, LoginError),
        (400, {"error": "something_new", "error_description": "id_token=secret-token-012345"}, LoginError),
    ],
)  # fmt: skip
def test_strange_replies_are_errors_that_do_not_show_them(server, provider, status, reply, kind):
    server.replies = [(status, reply)]
    with pytest.raises(TransportError) as caught:
        start_device_login(make_transport(), provider)
    assert type(caught.value) is kind
    assert "secret-token" not in str(caught.value)


@pytest.mark.parametrize(
    ("replies", "kind", "words"),
    [
        ([(200, {"access_token": "a", "token_type": "Bearer"})], RefreshRefusedError, "no ID token"),
        ([(400, {"error": "invalid_grant"})], RefreshRefusedError, "panda_auth reset"),
        ([(200, {"access_token": "a", "token_type": "B", "id_token": "x.y.z"}), (200, {"keys": []})],
         TokenBrokenError, "not accepted"),
        ([(200, {"access_token": "a", "token_type": "B", "id_token": "x.y.z"}), (200, [])],
         ReplyError, "set of keys"),
        ([(500, "trouble")], TransportError, "failed"),
    ],
)  # fmt: skip
def test_a_refresh_that_brings_nothing_good(server, provider, replies, kind, words):
    server.replies = list(replies)
    with pytest.raises(kind, match=words):
        refresh_tokens(make_transport(), provider, TokenSet({"id_token": "a.b.c", "refresh_token": OPAQUE}))
    # Sent once, whatever came back.
    assert [path for path, _ in server.asked].count("/token") == 1


def test_without_a_refresh_token_nobody_is_asked(server, provider):
    with pytest.raises(RefreshRefusedError, match="no refresh token"):
        refresh_tokens(make_transport(), provider, TokenSet({"id_token": "a.b.c"}))
    assert server.asked == []


def offer(server, *, config=None, discovery=None):
    """Prepare the two documents, with changes."""
    first = {"client_id": "panda", "oidc_config_url": f"{server.root}/.well-known/openid-configuration"}
    second = {
        "issuer": f"{server.root}/",
        "device_authorization_endpoint": f"{server.root}/device",
        "token_endpoint": f"{server.root}/token",
        "jwks_uri": f"{server.root}/jwks",
        "id_token_signing_alg_values_supported": ["none", "HS256", "ES256", "RS256"],
    }
    first.update(config or {})
    second.update(discovery or {})
    server.replies = [(200, first), (200, second)]


def test_the_provider_is_found(server):
    offer(server, config={"jwt_profile": "wlcg", "client_secret": "s", "audience": "a"})
    found = find_provider(make_transport(), f"{server.root}/server/panda", "Rubin")
    assert [path for path, _ in server.asked] == [
        "/auth/Rubin_auth_config.json",
        "/.well-known/openid-configuration",
    ]
    # Neither unsigned tokens nor those with a shared secret.
    assert found.algorithms == ("RS256", "ES256")
    assert found.scopes[-1] == "wlcg.groups"
    assert (found.client_secret, found.audience) == ("s", "a")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"discovery": {"issuer": "https://evil.example.org"}}, "not where it was found"),
        ({"discovery": {"token_endpoint": "http://iam.example.org/token"}}, "not sent without encryption"),
        ({"discovery": {"jwks_uri": ""}}, "no 'jwks_uri'"),
    ],
)
def test_a_provider_that_is_not_sound_is_not_used(server, changes, words):
    offer(server, **changes)
    with pytest.raises(ReplyError, match=words):
        find_provider(make_transport(), f"{server.root}/server/panda", "Rubin")


def test_a_configuration_that_is_not_sound_is_not_used(server):
    server.replies = [(200, {"client_secret": "the-secret-1"})]
    with pytest.raises(ReplyError, match="no 'oidc_config_url'"):
        find_provider(make_transport(), f"{server.root}/server/panda", "Rubin")
    server.replies = [(200, ["the-secret-1"])]
    with pytest.raises(ReplyError) as caught:
        find_provider(make_transport(), f"{server.root}/server/panda", "Rubin")
    assert "the-secret" not in str(caught.value)


def test_the_settings_of_a_login_name_all_that_is_missing():
    with pytest.raises(SettingsError, match="PANDA_URL_SSL and PANDA_AUTH_VO"):
        find_login_settings({})
    env = {"PANDA_URL": "http://h/server/panda", "OIDC_AUTH_VO": "Rubin", "PANDA_VERIFY_HOST": "OFF"}
    found = find_login_settings(env)
    assert (found.panda_url, found.vo, found.verify) == ("http://h/server/panda", "Rubin", False)
