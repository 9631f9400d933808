"""A web server on the loopback interface that does what it should not.

What it does for a path is a function that gets the connection and the request's head, so it may send
anything, as slowly and as long as it wants.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

__all__ = ["BadWeb", "plain"]

Answer = Callable[[socket.socket, bytes], None]


def plain(body: bytes, *, status: str = "200 OK", headers: str = "", length: int | None = None) -> Answer:
    """Answer with a body; its announced length may be another."""

    def answer(connection: socket.socket, head: bytes) -> None:
        size = len(body) if length is None else length
        connection.sendall(
            f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n{headers}Connection: close\r\n\r\n".encode()
            + body
        )

    return answer


class BadWeb(socketserver.ThreadingTCPServer):
    """The server; ``answers`` holds what it does for each path, without the ``/`` at its begin.

    What has no answer is missing.  ``seen`` holds the heads of all requests, ``sent`` the bytes that `flood`
    sent.
    """

    daemon_threads = True

    def __init__(self, context: Any = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, Answer] = {}
        self.seen: list[bytes] = []
        self.sent = 0
        self.over = threading.Event()
        self.context = context
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{self.server_address[1]}/"

    def __enter__(self):
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request, client_address):
        """Say nothing: clients are meant to hang up."""

    def flood(self, head: bytes = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n") -> Answer:
        """Send a head, and then bytes until the client hangs up."""

        def answer(connection: socket.socket, _: bytes) -> None:
            connection.sendall(head)
            while not self.over.is_set():
                self.sent += connection.send(b"x" * 65536)

        return answer

    def trickle(self, head: bytes, byte: bytes = b"x") -> Answer:
        """Send a head, and then a byte now and then until the client hangs up."""

        def answer(connection: socket.socket, _: bytes) -> None:
            connection.sendall(head)
            while not self.over.wait(0.05):
                connection.sendall(byte)

        return answer


class _Handler(socketserver.BaseRequestHandler):
    server: BadWeb

    def handle(self) -> None:
        connection = self.request
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            if self.server.context:
                connection = stack.enter_context(
                    self.server.context.wrap_socket(connection, server_side=True)
                )
            head = b""
            while b"\r\n\r\n" not in head:
                piece = connection.recv(65536)
                if not piece:
                    return
                head += piece
            self.server.seen.append(head)
            name = unquote(head.split()[1].decode()).lstrip("/")
            self.server.answers.get(name, plain(b"", status="404 Not Found"))(connection, head)
            if self.server.context:
                connection.unwrap()
