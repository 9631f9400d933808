"""A small PanDA relay that breaks on demand, for tests of what clients do then.

It keeps runs as iDDS does (created by ``submit``, found by name, aborted and
retried) and speaks the relay's protocol, so that a test can compare what a
client believes with what happened.  Faults are queued with `HostileServer.inject`
and used up one a request; some act before the command is executed and some
after, which is what makes an outcome uncertain.

It shares no code with the package.
"""

__all__ = ["FAULTS", "HostileServer", "Run", "Seen"]

import gzip
import json
import socket
import struct
import threading
import urllib.parse
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WEB_PAGE = b"<!DOCTYPE html>\n<html><head><title>Welcome</title></head><body>Single sign-on</body></html>"


@dataclass
class Run:
    """One request as the server knows it."""

    request_id: int
    name: str
    aborts: int = 0
    retries: int = 0
    user: str = "ann"


@dataclass(frozen=True)
class Seen:
    """One HTTP request that arrived whole."""

    method: str
    path: str
    command: str
    arguments: object
    keywords: dict
    headers: dict
    content: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """How one request goes wrong."""

    executes: bool
    """Whether the command has its effect all the same."""

    status: int = 200
    body: bytes | None = None
    """Instead of the honest reply."""

    headers: tuple = ()
    manner: str = "plain"
    """plain, reset, cut (less than the announced length), half (ends in the
    middle of the JSON), silent (no reply), trickle, echo (the request's
    headers in the reply).
    """


FAULTS = {
    "401": Fault(False, 401, b"Unauthorized"),
    "403": Fault(False, 403, b"Bad token"),
    "404": Fault(False, 404, b"Not Found"),
    "413": Fault(False, 413, b"too large"),
    "429": Fault(False, 429, b"slow down", (("Retry-After", "1"),)),
    "500 before": Fault(False, 500, b"Internal Server Error"),
    "500 after": Fault(True, 500, b"Internal Server Error"),
    "502": Fault(False, 502, WEB_PAGE, (("Content-Type", "text/html"),)),
    "503": Fault(False, 503, b"Service Unavailable"),
    "gateway to idds": Fault(False, 502, b"Bad Gateway: /idds/request"),
    "504 after": Fault(True, 504, b"Gateway Time-out"),
    "redirect": Fault(False, 302, b"", (("Location", "https://login.example.org/"),)),
    "web page": Fault(False, 200, WEB_PAGE, (("Content-Type", "text/html"),)),
    "not json": Fault(True, 200, b"OK, thank you"),
    "empty": Fault(True, 200, b""),
    "other shape": Fault(True, 200, b'{"data": 12}'),
    "truncated json": Fault(True, manner="half"),
    "cut reply": Fault(True, manner="cut"),
    "reset before": Fault(False, manner="reset"),
    "reset after": Fault(True, manner="reset"),
    "silent before": Fault(False, manner="silent"),
    "silent after": Fault(True, manner="silent"),
    "trickle": Fault(True, manner="trickle"),
    "relay refuses": Fault(False, 200, b'[false, "x is not a command of iDDS ClientManager"]'),
    "idds refuses": Fault(False, 200, b'[true, [false, "Cannot get local proxy"]]'),
    "idds lost": Fault(True, 200, b'[true, [false, "HTTPConnectionPool: Read timed out."]]'),
    "command refused": Fault(
        False, 200, b'[true, [[-1, {"status": -1, "message": "user has no permission for this request"}]]]'
    ),
    "command lost": Fault(
        False, 200, b'[true, [[0, {"status": 0, "message": "Command registered successfully"}]]]'
    ),
    "echo": Fault(False, 500, manner="echo"),
}
"""What can be injected, by name."""


class HostileServer:
    """The server; a context manager.

    Parameters
    ----------
    patience : float
        Seconds after which a silent connection is closed, should the client
        not give up before.
    """

    def __init__(self, *, patience: float = 20.0) -> None:
        self.patience = patience
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.seen: list[Seen] = []
        self.runs: dict[int, Run] = {}
        self.token: str | None = None
        """If set, requests without it get HTTP status 401."""
        self._queue: deque[str] = deque()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.owner = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> "HostileServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def root(self) -> str:
        """Scheme and host."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def url(self) -> str:
        """What PANDA_URL_SSL is set to."""
        return f"{self.root}/server/panda"

    def inject(self, *names: str) -> None:
        """Let the next requests go wrong, one fault each; "ok" lets one pass."""
        unknown = [name for name in names if name != "ok" and name not in FAULTS]
        assert not unknown, unknown
        with self.lock:
            self._queue.extend(names)

    def forget_faults(self) -> None:
        """Let all further requests pass."""
        with self.lock:
            self._queue.clear()

    def next_fault(self) -> Fault | None:
        """Take the next fault."""
        with self.lock:
            return FAULTS.get(self._queue.popleft()) if self._queue else None

    def named(self, name: str) -> list[Run]:
        """Give the runs of a name."""
        with self.lock:
            return [run for run in self.runs.values() if run.name == name]

    def execute(self, command: str, arguments: object, keywords: dict) -> object:
        """Do what an honest relay does, and give its reply."""
        with self.lock:
            action = getattr(self, f"_do_{command.partition('+')[0]}", None)
            if action is None:
                return [False, f"{command} is not a command of iDDS ClientManager"]
            return [True, action(arguments, keywords)]

    def _do_ping(self, arguments: object, keywords: dict) -> object:
        return {"Status": "OK"}

    def _do_submit(self, arguments: object, keywords: dict) -> object:
        run = Run(len(self.runs) + 1, find_name(arguments))
        self.runs[run.request_id] = run
        return run.request_id

    _do_submit_build = _do_submit

    def _do_get_request_id_by_name(self, arguments: object, keywords: dict) -> object:
        # As SQL LIKE does it, "_" stands for any character.
        wanted = keywords["name"]
        return {
            run.name: run.request_id
            for run in self.runs.values()
            if len(run.name) == len(wanted)
            and all(mine in (theirs, "_") for mine, theirs in zip(wanted, run.name, strict=True))
        }

    def _do_get_requests(self, arguments: object, keywords: dict) -> object:
        wanted = keywords.get("request_id")
        return [
            {"request_id": run.request_id, "name": run.name, "status": "New", "username": run.user}
            for run in self.runs.values()
            if wanted in (None, run.request_id)
        ]

    def _do_get_contents_output_ext(self, arguments: object, keywords: dict) -> object:
        return {}

    def _do_abort(self, arguments: object, keywords: dict) -> object:
        return self._register(keywords, "aborts")

    def _do_retry(self, arguments: object, keywords: dict) -> object:
        return self._register(keywords, "retries")

    def _register(self, keywords: dict, counter: str) -> object:
        run = self.runs.get(keywords["request_id"])
        if run is None:
            return [[-1, {"status": -1, "message": "No match requests"}]]
        setattr(run, counter, getattr(run, counter) + 1)
        return [[0, {"status": 0, "message": "Command registered successfully"}]]


def find_name(value: object) -> str:
    """Find the name of a workflow in iDDS's JSON, or in ``[{"name": ...}]``."""
    if isinstance(value, list):
        return next(filter(None, map(find_name, value)), "")
    if isinstance(value, dict):
        for key in ("_name", "name"):
            if isinstance(value.get(key), str):
                return value[key]
        return next(filter(None, map(find_name, value.values())), "")
    return ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    @property
    def owner(self) -> HostileServer:
        return self.server.owner  # type: ignore[attr-defined]

    def do_GET(self) -> None:
        self._serve("", None, {}, {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.path.endswith("/relay_idds_command"):
            self._serve("", None, {}, {"body": body.decode("latin-1")})
            return
        # The relay is told of no encoding, and finds gzip by its magic number.
        content = json.loads(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
        arguments = json.loads(content.get("args", "[]"))
        keywords = json.loads(content.get("kwargs", "{}"))
        self._serve(content["command_name"], arguments, keywords, content)

    def _serve(self, command: str, arguments: object, keywords: dict, content: dict) -> None:
        owner = self.owner
        with owner.lock:
            owner.seen.append(
                Seen(self.command, self.path, command, arguments, keywords, dict(self.headers), content)
            )
        fault = owner.next_fault()
        if owner.token is not None and self.headers.get("Authorization") != f"Bearer {owner.token}":
            fault = FAULTS["401"]
        if fault is None:
            self._reply(200, self._execute(command, arguments, keywords))
            return
        honest = self._execute(command, arguments, keywords) if fault.executes else b"[true, null]"
        try:
            getattr(self, f"_{fault.manner}")(fault, honest)
        except OSError:
            self.close_connection = True

    def _execute(self, command: str, arguments: object, keywords: dict) -> bytes:
        if command:
            return json.dumps(self.owner.execute(command, arguments, keywords)).encode()
        path = urllib.parse.urlsplit(self.path).path
        if path.endswith("/system/is_alive"):
            return b'{"success": true, "message": "alive=yes", "data": null}'
        return b'{"success": true, "message": "", "data": []}'

    def _reply(self, status: int, body: bytes, headers: tuple = (), *, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", "application/json"), *headers):
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def _plain(self, fault: Fault, honest: bytes) -> None:
        self._reply(fault.status, honest if fault.body is None else fault.body, fault.headers)

    def _half(self, fault: Fault, honest: bytes) -> None:
        self._reply(200, honest[: max(1, len(honest) // 2)])

    def _cut(self, fault: Fault, honest: bytes) -> None:
        self._reply(200, honest[:-1], length=len(honest))
        self.close_connection = True

    def _reset(self, fault: Fault, honest: bytes) -> None:
        # Lingering for no time turns the close into a reset.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _silent(self, fault: Fault, honest: bytes) -> None:
        self.owner.stopping.wait(self.owner.patience)
        self.close_connection = True

    def _trickle(self, fault: Fault, honest: bytes) -> None:
        self._reply(200, b"", length=1000)
        for _ in range(1000):
            self.wfile.write(b" ")
            if self.owner.stopping.wait(0.05):
                break
        self.close_connection = True

    def _echo(self, fault: Fault, honest: bytes) -> None:
        self._reply(fault.status, f"cannot handle {dict(self.headers)}".encode())
