"""A small WebDAV server in memory that fails as it is told: refuses, cuts,
is slow, has no space, loses what it was given.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from socketserver import ThreadingMixIn
from urllib.parse import unquote, urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from xml.sax.saxutils import escape

_MULTI_STATUS = """<?xml version="1.0" encoding="utf-8"?>
<D:multistatus xmlns:D="DAV:"><D:response><D:href>{path}</D:href><D:propstat><D:prop>
<D:resourcetype>{kind}</D:resourcetype>{length}<D:displayname>x</D:displayname>
<D:getlastmodified>Thu, 01 Jan 2026 00:00:00 GMT</D:getlastmodified>
</D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response></D:multistatus>
"""


@dataclass
class Fault:
    """How a request is to go wrong."""

    status: str = ""
    """Status line to answer with instead."""

    keep: int | None = None
    """Bytes of the body to keep, while saying that all is well."""

    wait: threading.Event | None = None
    """What to wait for before answering."""


@dataclass
class DavDouble:
    """The server; use it as a context.

    ``faults`` is called with the method and the path of each request.
    """

    faults: Callable[[str, str], Fault | None] = lambda method, path: None
    gives_adler32: bool = False
    is_webdav: bool = True
    token: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    folders: set[str] = field(default_factory=lambda: {"/"})
    requests: list[tuple[str, str]] = field(default_factory=list)

    def __enter__(self):
        self._server = make_server("127.0.0.1", 0, self._answer, _Server, _QuietHandler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def _answer(self, environment, start_response):
        # WSGI hands the path over as the bytes of its UTF-8 form.
        path = environment["PATH_INFO"].encode("latin-1").decode()
        method = environment["REQUEST_METHOD"]
        body = environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
        self.requests.append((method, path))
        status, headers, reply = self._result(method, path, body, environment)
        headers = {"Content-Length": str(len(reply)), **headers}
        start_response(status, list(headers.items()))
        return [b"" if method == "HEAD" else reply]

    def _result(self, method, path, body, environment):
        if self.token and environment.get("HTTP_AUTHORIZATION") != f"Bearer {self.token}":
            return "401 Unauthorized", {}, b""
        fault = self.faults(method, path) or Fault()
        if fault.wait:
            fault.wait.wait(60)
        if fault.status:
            return fault.status, {}, b""
        if fault.keep is not None:
            body = body[: fault.keep]
        handler = getattr(self, f"_{method.lower()}", None)
        if handler is None:
            return "405 Method Not Allowed", {}, b""
        return handler(path, body, environment)

    def _options(self, path, body, environment):
        return "200 OK", {"DAV": "1"} if self.is_webdav else {}, b""

    def _propfind(self, path, body, environment):
        if path in self.files:
            size = len(self.files[path])
            values = {"kind": "", "length": f"<D:getcontentlength>{size}</D:getcontentlength>"}
        elif path.rstrip("/") + "/" in self.folders:
            values = {"kind": "<D:collection/>", "length": ""}
        else:
            return "404 Not Found", {}, b""
        return "207 Multi-Status", {}, _MULTI_STATUS.format(path=escape(path), **values).encode()

    def _head(self, path, body, environment):
        if path not in self.files:
            return "404 Not Found", {}, b""
        headers = {}
        if self.gives_adler32 and "adler32" in environment.get("HTTP_WANT_DIGEST", ""):
            headers["Digest"] = f"adler32={zlib.adler32(self.files[path]):08x}"
        return "200 OK", headers, self.files[path]

    _get = _head

    def _put(self, path, body, environment):
        if self.is_webdav and path.rpartition("/")[0] + "/" not in self.folders:
            return "409 Conflict", {}, b""
        self.files[path] = body
        return "201 Created", {}, b""

    def _mkcol(self, path, body, environment):
        if path in self.folders:
            return "405 Method Not Allowed", {}, b""
        if path.rstrip("/").rpartition("/")[0] + "/" not in self.folders:
            return "409 Conflict", {}, b""
        self.folders.add(path)
        return "201 Created", {}, b""

    def _delete(self, path, body, environment):
        below = [
            name for name in self.files if name == path or (path.endswith("/") and name.startswith(path))
        ]
        for name in below:
            del self.files[name]
        self.folders -= {name for name in self.folders if path.endswith("/") and name.startswith(path)}
        return "204 No Content", {}, b""

    def _move(self, path, body, environment):
        target = unquote(urlsplit(environment["HTTP_DESTINATION"]).path)
        if path not in self.files:
            return "404 Not Found", {}, b""
        if target.rpartition("/")[0] + "/" not in self.folders:
            return "409 Conflict", {}, b""
        self.files[target] = self.files.pop(path)
        return "201 Created", {}, b""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, *_):
        pass
