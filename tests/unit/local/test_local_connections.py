"""What the web server of the embedded PanDA refuses before it reads a body, and whom it makes room for."""

import contextlib
import http.client
import socket
import threading
import time

import pytest

from lsst.ctrl.bps.panda.local.api import FileCache
from lsst.ctrl.bps.panda.local.connections import make_web_server
from lsst.ctrl.bps.panda.local.faults import Faults
from lsst.ctrl.bps.panda.local.idds_host import IddsRelay
from lsst.ctrl.bps.panda.local.identity import Role, Tokens
from lsst.ctrl.bps.panda.local.web import WebParts, make_application

_TOKENS = Tokens("me")
_SECRET = f"Authorization: Bearer {_TOKENS.issue(Role.OWNER)}"
_JSON = "Content-Type: application/json"
_STATUS = "/api/v1/local/status"
_FAULTS = "/api/v1/local/faults"


class Served:
    """A running web server: its port, and the connections that it holds."""

    def __init__(self, place, patience):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        faults = Faults()
        parts = WebParts(
            api=None, relay=IddsRelay(None, faults), cache=FileCache(place / "cache"), logs=place / "logs",
            tokens=_TOKENS, faults=faults, status=lambda: {"slots": 3}, port=self.port, pages=None,
        )  # fmt: skip
        self.server = make_web_server(make_application(parts), parts, self.listener, patience=patience)
        threading.Thread(target=self.server.run, daemon=True).start()

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def send(self, first, *headers, body=b"", length=None):
        """Send a request on a connection of its own and return the reply."""
        lines = [first + " HTTP/1.1", f"Host: 127.0.0.1:{self.port}", "Connection: close", *headers]
        if body or length is not None:
            lines.append(f"Content-Length: {len(body) if length is None else length}")
        with self.connect() as connection:
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
            return read(connection)


def read(connection):
    pieces = []
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            pieces.append(piece)
    return b"".join(pieces).decode()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return Served(tmp_path_factory.mktemp("door"), 60.0)


def test_who_shows_the_secret_is_served(served):
    assert '"slots": 3' in served.send(f"GET {_STATUS}", _SECRET)
    assert '"success": true' in served.send(f"POST {_FAULTS}", _SECRET, _JSON, body=b"[]")


@pytest.mark.parametrize(
    ("first", "headers", "status"),
    [
        (f"GET {_STATUS}", (), 401),
        (f"GET {_STATUS}", (_SECRET, "Host: evil.example"), 403),
        (f"GET {_STATUS}", (_SECRET, "Origin: null"), 403),
        (f"GET {_STATUS}", (_SECRET, _SECRET), 401),
        (f"GET {_STATUS}/../status", (_SECRET,), 400),
        ("GET /nothing", (), 401),
        ("GET /nothing", (_SECRET,), 404),
        (f"OPTIONS {_FAULTS}", ("Origin: http://evil.example",), 403),
        (f"OPTIONS {_FAULTS}", (), 401),
    ],
)
def test_what_is_refused(served, first, headers, status):
    assert served.send(first, *headers).startswith(f"HTTP/1.1 {status} ")


def test_a_refused_body_is_forgotten_and_the_reply_is_read(served):
    """A client that sends all of its body before it reads hears why it was refused."""
    for headers in ((_JSON,), (_SECRET, "Content-Type: text/plain")):
        text = served.send(f"POST {_FAULTS}", *headers, body=b"[" * 5_000_000)
        assert text.startswith("HTTP/1.1 4")
        assert text.count("HTTP/1.1") == 1
    assert not [channel for channel in list(served.server.active_channels.values()) if channel.requests]


def test_a_large_body_is_not_waited_for(served):
    for headers, status in (((_JSON,), 401), ((_SECRET, _JSON), 413)):
        assert served.send(f"POST {_FAULTS}", *headers, length=10**9).startswith(f"HTTP/1.1 {status} ")


def test_nobody_is_told_to_go_on_who_is_refused(served):
    text = served.send(f"POST {_FAULTS}", "Expect: 100-continue", _JSON, length=10)
    assert text.startswith("HTTP/1.1 401 ")


@pytest.mark.parametrize("secret", [(), (_SECRET,)])
def test_chunks_are_refused(served, secret):
    text = served.send(f"POST {_FAULTS}", *secret, _JSON, "Transfer-Encoding: chunked")
    assert text.startswith("HTTP/1.1 411 ")


def test_a_request_in_the_body_of_a_refused_one_is_none(served):
    hidden = f"GET {_STATUS} HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n{_SECRET}\r\n\r\n".encode()
    assert served.send(f"POST {_FAULTS}", body=hidden).count("HTTP/1.1") == 1
    # Also behind it.
    with served.connect() as connection:
        connection.sendall(
            f"GET {_STATUS} HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n\r\n".encode() + hidden
        )
        text = read(connection)
    assert text.startswith("HTTP/1.1 401 ")
    assert "slots" not in text


def test_the_oldest_strangers_make_room(served):
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(served.connect()) for _ in range(120)]
        assert '"slots": 3' in served.send(f"GET {_STATUS}", _SECRET)
        # The first ones were closed; a connection that has shown the secret stays.
        assert read(held[0]) == ""
        kept = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
        stack.callback(kept.close)
        for _ in range(2):
            name, _, value = _SECRET.partition(": ")
            kept.request("GET", _STATUS, headers={name: value})
            assert b'"slots": 3' in kept.getresponse().read()
            assert kept.sock is not None
            held += [stack.enter_context(served.connect()) for _ in range(60)]
            assert '"slots": 3' in served.send(f"GET {_STATUS}", _SECRET)
        assert len(served.server.active_channels) < 60


def test_who_does_not_show_the_secret_in_time_is_closed(tmp_path):
    served = Served(tmp_path, 0.5)
    with served.connect() as silent, served.connect() as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nX: ")
        stop = threading.Event()

        def trickle():
            with contextlib.suppress(OSError):
                while not stop.is_set():
                    slow.sendall(b"y")
                    time.sleep(0.05)

        thread = threading.Thread(target=trickle)
        thread.start()
        assert read(silent) == ""
        assert read(slow) == ""
        stop.set()
        thread.join()
