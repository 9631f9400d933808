"""The connections of the web server: what `~.web.admit` does not let in is refused before its body is
read, and connections that have not shown a secret make room for those that have.
"""

from __future__ import annotations

__all__ = ["make_web_server"]

import socket
import time
from collections.abc import Callable
from typing import Any

from waitress.adjustments import Adjustments  # type: ignore[import-untyped]
from waitress.channel import HTTPChannel  # type: ignore[import-untyped]
from waitress.parser import HTTPRequestParser  # type: ignore[import-untyped]
from waitress.server import TcpWSGIServer  # type: ignore[import-untyped]
from waitress.task import ThreadedTaskDispatcher  # type: ignore[import-untyped]
from waitress.utilities import Error  # type: ignore[import-untyped]

from .web import ROUTES, AdmissionError, Request, WebParts, admit

_PATIENCE = 10.0
"""Time in which a connection has to show a secret, seconds; also all of its headers."""

_IDLE = 600
"""Time that a connection which has shown it may be idle, seconds."""

_STRANGERS = 50
"""Most connections that have not shown a secret: of more, the oldest are closed."""

_CONNECTIONS = 400
_THREADS = 12

_SWALLOWED = 64 * 1024 * 1024
"""Bytes of a refused body that are read and forgotten, so that the client gets to read the reply."""


class _ReplyError(Error):  # type: ignore[misc]
    """The reply to a request that is not let in."""

    def __init__(self, error: AdmissionError) -> None:
        super().__init__(str(error))
        self.code = error.status
        self.reason = {401: "Unauthorized", 403: "Forbidden", 413: "Request Entity Too Large"}.get(
            error.status, "Bad Request"
        )

    def to_response(self, ident: str | None = None) -> tuple[str, list[tuple[str, str]], bytes]:
        """Return status, headers and body."""
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("X-Content-Type-Options", "nosniff")]
        if self.code == 401:
            headers.append(("WWW-Authenticate", "Bearer"))
        return f"{self.code} {self.reason}", headers, self.body.encode()


class _Sink:
    """Receives the body of a refused request, and forgets it."""

    error = None

    def __init__(self, size: int) -> None:
        self._left = size

    @property
    def completed(self) -> bool:
        return self._left <= 0

    def received(self, data: bytes) -> int:
        taken = min(len(data), self._left)
        self._left -= taken
        return taken

    def getfile(self) -> Any:
        raise AssertionError("a refused body is not read")

    def getbuf(self) -> _Sink:
        return self

    def close(self) -> None:
        """Do nothing: nothing was kept."""


class _Parser(HTTPRequestParser):  # type: ignore[misc]
    """Reads a request, but no body before the request is let in."""

    chunked: bool
    expect_continue: bool
    content_length: int

    def __init__(self, adjustments: Any, parts: WebParts, shown: Callable[[], None]) -> None:
        super().__init__(adjustments)
        self._parts = parts
        self._shown = shown

    def received(self, data: bytes) -> int:
        consumed = int(super().received(data))
        # What follows a request that is not understood is none.
        return len(data) if self.error is not None and self.completed else consumed

    def parse_header(self, header_plus: bytes) -> None:
        super().parse_header(header_plus)
        try:
            if self.chunked:
                raise AdmissionError(411, "the length of the body is needed (Content-Length)")
            request = Request(self.command, self.request_uri, self.headers.get)
            admit(request, self._parts)
        except AdmissionError as error:
            self._refuse(error)
        else:
            self._shown()

    def _refuse(self, error: AdmissionError) -> None:
        self.error = _ReplyError(error)
        size = int(self.content_length)
        waits = self.expect_continue or self.chunked
        self.body_rcv = _Sink(size) if 0 < size <= _SWALLOWED and not waits else None
        self.content_length = 0
        self.chunked = self.expect_continue = False


class _Channel(HTTPChannel):  # type: ignore[misc]
    """A connection, which knows whether it has shown a secret."""

    def __init__(self, server: Any, *arguments: Any, **options: Any) -> None:
        self.opened = time.monotonic()
        self.shown = False
        super().__init__(server, *arguments, **options)

    def parser_class(self, adjustments: Any) -> _Parser:
        return _Parser(adjustments, self.server.parts, self._show)

    def _show(self) -> None:
        self.shown = True


class _Server(TcpWSGIServer):  # type: ignore[misc]
    """The web server."""

    channel_class = _Channel
    parts: WebParts
    patience: float

    def _strangers(self) -> list[_Channel]:
        """List the connections that have not shown a secret, the oldest first."""
        return [channel for channel in self.active_channels.values() if not channel.shown]

    def handle_accept(self) -> None:
        super().handle_accept()
        strangers = sorted(self._strangers(), key=lambda channel: channel.opened)
        for channel in strangers[: max(0, len(strangers) - _STRANGERS)]:
            channel.handle_close()

    def maintenance(self, now: float) -> None:
        super().maintenance(now)
        limit = time.monotonic() - self.patience
        for channel in self._strangers():
            if channel.opened < limit:
                channel.will_close = True


def make_web_server(
    application: Any, parts: WebParts, listener: socket.socket, *, patience: float = _PATIENCE
) -> Any:
    """Make the web server of an application; ``run`` is its loop."""
    adjustments = Adjustments(
        sockets=[listener],
        threads=_THREADS,
        # select() fails for file descriptors beyond 1023.
        asyncore_use_poll=True,
        max_request_body_size=max(route.body.largest for route in ROUTES) + 1,
        channel_timeout=_IDLE,
        cleanup_interval=1,
        connection_limit=_CONNECTIONS,
        ident="panda_local",
    )
    dispatcher = ThreadedTaskDispatcher()
    dispatcher.set_thread_count(_THREADS)
    information = (listener.family, listener.type, listener.proto, listener.getsockname())
    server = _Server(
        application,
        {},
        _sock=listener,
        dispatcher=dispatcher,
        adj=adjustments,
        sockinfo=information,
        bind_socket=False,
    )
    server.parts, server.patience = parts, patience
    return server
