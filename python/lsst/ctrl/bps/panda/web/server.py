"""Lets browsers of this machine in to the live pages: by a link that is good once, and a cookie for one
place, whose name nobody else knows.
"""

from __future__ import annotations

__all__ = ["PagesServer", "serve_behind"]

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import flask
from waitress import create_server  # type: ignore[import-untyped]
from werkzeug.exceptions import Forbidden, HTTPException, Unauthorized
from werkzeug.wrappers import Request, Response

from ..local.identity import VISIT_SECONDS, Links, NotAllowedError, Tokens

_COOKIE = "panda_bps"
_LIMITS = {
    "threads": 6, "connection_limit": 60, "max_request_body_size": 65_536, "channel_timeout": 60, "ident": "",
}  # fmt: skip
_AGAIN = "; for another link, look where panda_bps web runs"


class PagesServer:
    """The pages of one user, on the loopback address of this machine.

    Parameters
    ----------
    application : `flask.Flask`
        The pages.
    port : `int`
        Where to listen; 0 means anywhere.
    tell : callable
        Called with each link, the next one when one has been used.
    """

    def __init__(self, application: flask.Flask, port: int, tell: Callable[[str], None]) -> None:
        self._application = application
        self._tell = tell
        self._links, self._tokens = Links(seconds=VISIT_SECONDS), Tokens("")
        self._server = create_server(self, host="127.0.0.1", port=port, **_LIMITS)
        self._port = int(self._server.effective_port)
        self._hosts = (f"127.0.0.1:{self._port}", f"localhost:{self._port}")

    def run(self) -> None:
        """Serve until the process is interrupted."""
        self._tell(self._make_link())
        self._server.run()

    def _make_link(self) -> str:
        return f"http://127.0.0.1:{self._port}/open/{self._links.make('')}"

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Serve a request."""
        request = Request(environ)
        try:
            if request.host not in self._hosts:
                raise Forbidden(f"this server is {self._hosts[0]} (Host)")
            kind, _, rest = request.path.removeprefix("/").partition("/")
            if kind == "open" and request.method == "GET":
                return self._open(rest)(environ, start_response)
            if kind != "view":
                raise Unauthorized(f"these pages are opened by a link{_AGAIN}")
            view, _, rest = rest.partition("/")
            self._tokens.check_reader(request.cookies.get(_COOKIE, ""), view)
        except (HTTPException, NotAllowedError) as error:
            status = error.code if isinstance(error, HTTPException) else 401
            text = error.description if isinstance(error, HTTPException) else f"{error}{_AGAIN}"
            return Response(f"{text}\n", status or 400, mimetype="text/plain")(environ, start_response)
        environ["SCRIPT_NAME"], environ["PATH_INFO"] = f"/view/{view}", f"/{rest}"
        return self._application(environ, start_response)

    def _open(self, code: str) -> Response:
        """Let a browser in."""
        self._links.use(code)
        path, cookie = self._tokens.admit()
        reply = Response(status=303, headers={"Location": path})
        reply.set_cookie(_COOKIE, **cookie)
        self._tell(self._make_link())
        return reply


def serve_behind(application: flask.Flask, listener: socket.socket, *, idle: float) -> None:
    """Serve another server of this user, which has let the browser in and says below which path it is, and
    end when nobody has asked for so many seconds.
    """
    asked = time.monotonic()

    def call(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        nonlocal asked
        asked = time.monotonic()
        environ["SCRIPT_NAME"] = environ.pop("HTTP_X_SCRIPT_NAME", "")
        return application(environ, start_response)

    def watch() -> None:
        while (rest := asked + idle - time.monotonic()) > 0:
            time.sleep(rest)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    create_server(call, sockets=[listener], **_LIMITS).run()
