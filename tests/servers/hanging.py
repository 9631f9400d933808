"""Servers that hang in each way there is, on real sockets.

Each accepts connections and misbehaves in a manner of `MANNERS`; what a test
waits for is the client's end, never the server's.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable

OK = b'[true, {"Status": "OK"}]'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


class HangingServer:
    """A server on the loopback interface; a context manager.

    ``manner`` may be changed between requests.
    """

    def __init__(self, manner: str, *, pause: float = 0.05) -> None:
        self.manner = manner
        self.pause = pause
        self.stopping = threading.Event()
        self.arrived = threading.Event()
        """Set when a connection is there, and a request if the manner reads one."""
        self.connections = 0
        self._threads: list[threading.Thread] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]

    @property
    def url(self) -> str:
        """What PANDA_URL is set to."""
        return f"http://127.0.0.1:{self.port}/server/panda"

    def __enter__(self) -> HangingServer:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for thread in self._threads:
            thread.join()
        self._socket.close()

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self.stopping.is_set():
            if select.select([self._socket], [], [], 0.02)[0]:
                connection, _ = self._socket.accept()
                self.connections += 1
                self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            if self.manner != "silent from the start":
                read_request(connection)
            self.arrived.set()
            getattr(self, "_" + self.manner.replace(" ", "_").replace(",", ""))(connection)

    def _wait(self, connection: socket.socket) -> None:
        """Hold the connection until the client closes it."""
        while not self.stopping.is_set():
            if select.select([connection], [], [], 0.02)[0] and not connection.recv(4096):
                return

    _silent_from_the_start = _wait
    _silent = _wait

    def _half_a_head(self, connection: socket.socket) -> None:
        connection.sendall(HEAD[:30])
        self._wait(connection)

    def _a_head_without_a_body(self, connection: socket.socket) -> None:
        connection.sendall(HEAD + b"Content-Length: 24\r\n\r\n")
        self._wait(connection)

    def _half_an_answer(self, connection: socket.socket) -> None:
        connection.sendall(HEAD + b"Content-Length: 24\r\n\r\n" + OK[:10])
        self._wait(connection)

    def _a_head_that_trickles(self, connection: socket.socket) -> None:
        connection.sendall(HEAD + b"X: ")
        self._trickle(connection)

    def _a_body_that_trickles(self, connection: socket.socket) -> None:
        connection.sendall(HEAD + b"Content-Length: 60000\r\n\r\n")
        self._trickle(connection)

    def _trickle(self, connection: socket.socket) -> None:
        while not self.stopping.wait(self.pause):
            connection.sendall(b" ")

    def _a_burst_then_silence(self, connection: socket.socket) -> None:
        connection.sendall(HEAD + b"Content-Length: 90000000\r\n\r\n" + b" " * 2_000_000)
        self._wait(connection)

    def _endless(self, connection: socket.socket) -> None:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        while not self.stopping.is_set():
            connection.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")

    def _steady(self, connection: socket.socket) -> None:
        """Thirty pieces, together longer than the patience of the test."""
        pieces = 30
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % (pieces * 20_000 + len(OK)))
        for _ in range(pieces):
            connection.sendall(b" " * 20_000)
            time.sleep(self.pause)
        connection.sendall(OK)

    def _well(self, connection: socket.socket) -> None:
        connection.sendall(HEAD + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(OK) + OK)


def read_request(connection: socket.socket) -> None:
    """Read a request as a whole."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length")
        ),
        0,
    )
    while len(body) < length:
        body += connection.recv(65536)


MANNERS = (
    "silent from the start",
    "silent",
    "half a head",
    "a head without a body",
    "half an answer",
    "a head that trickles",
    "a body that trickles",
    "a burst then silence",
)
"""All that hang."""


class FullBacklog:
    """A port that drops what wants to connect, as a firewall does."""

    def __enter__(self) -> FullBacklog:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen(0)
        self.port = self._socket.getsockname()[1]
        self._held = []
        # Until one is not let in any more.
        for _ in range(8):
            held = socket.socket()
            held.setblocking(False)
            held.connect_ex(("127.0.0.1", self.port))
            self._held.append(held)
            if not select.select([], [held], [], 0.3)[1]:
                break
        return self

    def __exit__(self, *_: object) -> None:
        for held in (*self._held, self._socket):
            held.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/server/panda"
