"""The transport and the relay against a server that breaks on demand."""

import copy
import json
import logging
import pickle
import ssl
import subprocess
import threading
import traceback
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from panda_servers import hostile

from lsst.ctrl.bps.panda.errors import (
    AuthenticationError,
    ConnectionFailedError,
    RefusedError,
    ReplyError,
    ServerError,
    TransportError,
)
from lsst.ctrl.bps.panda.rest.credentials import Anonymous, BearerToken
from lsst.ctrl.bps.panda.rest.faults import diagnose
from lsst.ctrl.bps.panda.rest.relay import Relay, unwrap_relay
from lsst.ctrl.bps.panda.rest.retries import RetryPolicy, Timeouts
from lsst.ctrl.bps.panda.rest.transport import Transport

# Not a JSON web token: only known values can be hidden then.
SECRET = "Qm9ydW0tc2VjcmV0-0123456789"
RUN = json.dumps([{"name": "run_1"}])


@pytest.fixture
def server():
    with hostile.HostileServer() as running:
        yield running


class Sleeper:
    """Does not sleep, and remembers how long it should have."""

    def __init__(self):
        self.waits = []

    def __call__(self, seconds):
        self.waits.append(seconds)


def make_transport(sleeper=None, *, credentials=None, read=10.0, total=20.0, attempts=4, **more):
    return Transport(
        credentials or BearerToken("Rubin:production", lambda: SECRET),
        timeouts=Timeouts(connect=5.0, silence=read, total=total),
        retry=RetryPolicy(attempts=attempts),
        sleep=sleeper or Sleeper(),
        luck=lambda: 0.5,
        **more,
    )


def catch(action):
    with pytest.raises(TransportError) as caught:
        action()
    return caught.value


def test_a_command_travels_as_panda_client_sends_it(server):
    relay = Relay(make_transport(), server.url + "/", idds_server="https://idds.example.org:443/idds")
    assert relay.submit(RUN, '{"username": null}') == 1
    (seen,) = server.seen
    assert (seen.method, seen.path) == ("POST", "/server/panda/relay_idds_command")
    assert seen.content == {
        "command_name": "submit+https://idds.example.org:443/idds",
        "args": RUN,
        "kwargs": '{"username": null}',
        "manager": True,
    }
    assert seen.headers["Content-Type"] == "application/json"
    assert "Content-Encoding" not in seen.headers
    assert seen.headers["Authorization"] == f"Bearer {SECRET}"
    assert seen.headers["Origin"] == "Rubin:production"


def test_without_credentials_the_user_is_not_named(server):
    Relay(make_transport(credentials=Anonymous()), server.url).ping()
    assert not {"X-PanDA-User", "Authorization", "Origin"} & set(server.seen[0].headers)


def test_netrc_does_not_replace_the_token(server, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    Relay(make_transport(), server.url).ping()
    assert server.seen[0].headers["Authorization"] == f"Bearer {SECRET}"


# Fault -> error, stable name of the fault, may a submission have had its effect.
OUTCOMES = {
    "401": (AuthenticationError, "permission", False),
    "403": (AuthenticationError, "permission", False),
    "404": (ReplyError, "not-found", False),
    "413": (RefusedError, "too-large", False),
    "500 before": (ServerError, "server", True),
    "500 after": (ServerError, "server", True),
    "502": (ServerError, "gateway", True),
    "503": (ServerError, "gateway", True),
    "504 after": (ServerError, "gateway", True),
    "redirect": (ReplyError, "redirect", False),
    "web page": (ReplyError, "web-page", True),
    "not json": (ReplyError, "not-json", True),
    "empty": (ReplyError, "not-json", True),
    "other shape": (ReplyError, "shape", True),
    "truncated json": (ReplyError, "not-json", True),
    "cut reply": (ReplyError, "reply-cut", True),
    "reset before": (ConnectionFailedError, "connection-lost", True),
    "reset after": (ConnectionFailedError, "connection-lost", True),
    "relay refuses": (RefusedError, "relay", False),
    "idds refuses": (RefusedError, "idds", False),
    "idds lost": (ServerError, "idds-down", True),
    "command refused": (RefusedError, "permission", False),
    "echo": (ServerError, "server", True),
}


@pytest.mark.parametrize("fault", OUTCOMES)
def test_each_fault_of_a_submission_has_its_own_error(server, fault):
    kind, name, maybe_sent = OUTCOMES[fault]
    server.inject(fault)
    error = catch(lambda: Relay(make_transport(), server.url).submit(RUN))
    assert type(error) is kind
    assert error.fault == name
    assert error.maybe_sent is maybe_sent
    assert f"endpoint: {server.url}/relay_idds_command" in str(error)
    assert "request: submit" in str(error)
    # Sent once; and where it was created the error must not say otherwise.
    assert len(server.seen) == 1
    if server.runs:
        assert error.maybe_sent


@pytest.mark.parametrize("fault", sorted(OUTCOMES))
def test_no_error_shows_the_token(server, fault):
    server.inject(fault)
    error = catch(lambda: Relay(make_transport(), server.url).submit(RUN))
    shown = "".join(traceback.format_exception(error)) + repr(error.__dict__) + diagnose(error)
    assert SECRET not in shown
    # The library's exception, which holds the request's headers, is not chained.
    assert error.__cause__ is None
    assert error.__context__ is None
    assert SECRET.encode() not in pickle.dumps(error)


@pytest.mark.parametrize("fault", ["silent before", "silent after"])
def test_a_reply_that_does_not_come_ends_in_time(server, fault):
    server.inject(fault)
    error = catch(lambda: Relay(make_transport(read=0.2), server.url).submit(RUN))
    assert isinstance(error, ConnectionFailedError)
    assert (error.fault, error.maybe_sent) == ("read-timeout", True)
    assert len(server.seen) == 1


def test_a_reply_that_trickles_ends_in_time(server):
    server.inject("trickle")
    ticks = iter(range(1000))
    # Each look at the clock is a second.
    transport = make_transport(total=5.0, clock=lambda: float(next(ticks)))
    error = catch(lambda: Relay(transport, server.url).submit(RUN))
    assert (error.fault, error.maybe_sent) == ("read-timeout", True)


def test_what_changes_nothing_is_repeated_with_growing_waits(server):
    sleeper = Sleeper()
    server.inject("reset after", "503", "500 after")
    assert Relay(make_transport(sleeper), server.url).get_requests(7) == []
    assert len(server.seen) == 4
    assert sleeper.waits == [0.5, 1.0, 2.0]


def test_repeating_is_bounded(server):
    server.inject(*["503"] * 10)
    error = catch(lambda: Relay(make_transport(), server.url).get_requests(7))
    assert len(server.seen) == 4
    assert "after 4 attempts" in str(error)


def test_a_submission_is_repeated_only_where_nothing_was_done(server):
    sleeper = Sleeper()
    server.inject("429", "429")
    assert Relay(make_transport(sleeper), server.url).submit(RUN) == 1
    assert len(server.named("run_1")) == 1
    # The server's wish is added to the random wait.
    assert sleeper.waits == [1.5, 2.0]


def test_a_busy_server_followed_by_a_lost_reply_is_uncertain(server):
    server.inject("429", "reset after")
    error = catch(lambda: Relay(make_transport(), server.url).submit(RUN))
    assert error.maybe_sent
    assert len(server.named("run_1")) == 1


@pytest.mark.parametrize("fault", ["401", "403", "404", "web page", "truncated json", "idds refuses"])
def test_what_will_not_get_better_is_not_repeated(server, fault):
    server.inject(fault)
    catch(lambda: Relay(make_transport(), server.url).get_requests(7))
    assert len(server.seen) == 1


def test_credentials_are_asked_once_for_another_token(server):
    tokens = ["old-token-1", "new-token-2"]
    server.token = tokens[1]
    held = tokens[:1]
    renew = lambda: held.insert(0, tokens[1]) is None  # noqa: E731
    relay = Relay(make_transport(credentials=BearerToken("Rubin", lambda: held[0], renew=renew)), server.url)
    assert relay.submit(RUN) == 1
    assert [seen.headers["Authorization"] for seen in server.seen] == [f"Bearer {t}" for t in tokens]
    server.token = "another"
    assert catch(lambda: relay.submit(RUN)).fault == "permission"
    assert len(server.seen) == 4


def test_missing_token_says_what_to_type(server):
    error = catch(
        lambda: Relay(make_transport(credentials=BearerToken("Rubin", lambda: "")), server.url).ping()
    )
    assert isinstance(error, AuthenticationError)
    assert "panda_auth reset" in str(error)
    assert server.seen == []


def test_commands_and_lookups(server):
    relay = Relay(make_transport(), server.url)
    relay.ping()
    number = relay.submit(RUN)
    relay.submit(json.dumps([{"name": "runx1"}]))
    # "_" matches any character on the server.
    assert relay.get_request_ids_by_name("run_1") == {"run_1": number}
    assert relay.get_request_ids_by_name("run_2") == {}
    with pytest.raises(ValueError, match="cannot look such a name up"):
        relay.get_request_ids_by_name("u/me/run")
    (row,) = relay.get_requests(number, with_detail=True)
    assert (row["request_id"], row["name"]) == (number, "run_1")
    assert [item["name"] for item in relay.get_all_requests()] == ["run_1", "runx1"]
    assert relay.get_contents(number, 4) == {}
    assert server.seen[-1].keywords == {"request_id": number, "transform_id": 4}
    assert relay.abort(number) == "Command registered successfully"
    assert server.runs[number].aborts == 1
    error = catch(lambda: relay.abort(99))
    assert isinstance(error, RefusedError)
    assert (error.fault, error.maybe_sent) == ("no-match", False)


def test_an_unknown_command_is_refused(server):
    error = catch(lambda: Relay(make_transport(), server.url).call("no_such_command"))
    assert "no_such_command is not a command" in str(error)


def test_no_endpoint_name_or_port(server):
    closed = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    port = closed.server_port
    closed.server_close()
    expected = {
        f"http://127.0.0.1:{port}/server/panda": ("connection-refused", "refused: no PanDA server listens"),
        "http://no-such-host.invalid/server/panda": (
            "name-not-found",
            "no-such-host.invalid cannot be resolved",
        ),
        server.url.replace("http:", "https:"): ("tls", "TLS"),
        "ftp://127.0.0.1/server/panda": ("bad-url", "not a URL that can be used"),
        "127.0.0.1/server/panda": ("bad-url", "not a URL that can be used"),
    }
    for url, (fault, words) in expected.items():
        error = catch(lambda url=url: Relay(make_transport(), url).submit(RUN))
        assert isinstance(error, ConnectionFailedError)
        assert (error.fault, error.maybe_sent) == (fault, False), url
        assert words in diagnose(error)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("403", "gives no permission"),
        ("502", "relay behind it is down"),
        ("500 before", "relay at 127.0.0.1"),
        ("idds lost", "iDDS behind it is down"),
        ("relay refuses", "could not forward"),
        ("web page", "gives a web page"),
        ("redirect", "points elsewhere"),
        ("404", "has no PanDA relay"),
        ("not json", "does not speak PanDA's protocol"),
        ("reset before", "broke off"),
    ],
)
def test_diagnosis_names_the_part_that_fails(server, fault, words):
    server.inject(*[fault] * 4)
    error = catch(Relay(make_transport(), server.url).ping)
    assert words in diagnose(error)


def test_a_relay_without_idds_is_told_from_one_that_refuses(server):
    """In the class and the words of the error as in the diagnosis."""
    server.inject("gateway to idds")
    error = catch(lambda: Relay(make_transport(), server.url).submit(RUN))
    assert (type(error), error.fault, error.maybe_sent) == (ServerError, "idds-down", True)
    assert "iDDS behind it does not" in str(error)
    assert diagnose(error).startswith("PanDA at 127.0.0.1")
    with pytest.raises(ServerError) as caught:
        unwrap_relay([False, "HTTPConnectionPool: Max retries exceeded"], endpoint="http://h/p", what="ping")
    assert (caught.value.fault, caught.value.maybe_sent) == ("idds-down", True)
    assert diagnose(caught.value) == ("PanDA at h answers, but iDDS behind it is down. [no connection]")


def test_diagnosis_ends_with_the_cause_and_not_with_the_message(server):
    server.inject(*["reset before"] * 4)
    error = catch(Relay(make_transport(), server.url).ping)
    assert error.cause.endswith(", after 4 attempts")
    assert diagnose(error).endswith(f"the server may be restarting. [{error.cause}]")


def test_diagnosis_of_other_errors_is_their_text():
    assert diagnose(ValueError("a reason")) == "a reason"
    assert diagnose(KeyError()) == "KeyError"


def test_ping_does_not_believe_just_any_reply(server):
    server.inject("command lost")
    assert catch(Relay(make_transport(), server.url).ping).fault == "idds"


@pytest.mark.parametrize("secretive", [BearerToken("Rubin", lambda: SECRET), Anonymous()])
def test_credentials_stay_in_the_process(secretive):
    assert SECRET not in repr(secretive)
    assert SECRET not in repr(Transport(secretive))
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled"):
            leave(secretive)
    with pytest.raises(TypeError):
        pickle.dumps(Transport(secretive))


def test_nothing_is_logged_with_the_token(server, caplog):
    caplog.set_level(logging.DEBUG)
    server.inject("echo", "reset after", "429")
    Relay(make_transport(), server.url).get_requests(7)
    assert caplog.records
    assert SECRET not in caplog.text


@pytest.fixture
def tls_server(tmp_path):
    """An HTTPS server that nobody has a reason to trust."""
    files = (str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-out", files[0], "-keyout", files[1]],
        check=True, capture_output=True,
    )  # fmt: skip

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'[true, {"Status": "OK"}]')

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}/server/panda", files[0]
    server.shutdown()
    server.server_close()
    thread.join()


def test_certificates_are_checked_unless_told_not_to(tls_server, caplog):
    url, authority = tls_server
    error = catch(Relay(make_transport(), url).ping)
    assert (error.fault, error.maybe_sent) == ("tls", False)
    Relay(make_transport(verify=authority), url).ping()
    with warnings.catch_warnings(record=True) as caught:
        relay = Relay(make_transport(verify=False), url)
        relay.ping()
        relay.ping()
    assert caught == []
    said = [record for record in caplog.records if "PANDA_VERIFY_HOST=off" in record.message]
    assert len(said) == 1


def test_a_token_over_plain_http_is_warned_about_once(caplog):
    transport = make_transport()
    for _ in range(2):
        catch(lambda: transport.get("http://no-such-host.invalid/x"))
    assert len([record for record in caplog.records if "without encryption" in record.message]) == 1
