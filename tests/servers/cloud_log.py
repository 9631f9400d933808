"""A server that answers Google Cloud Logging's ``entries:list``.

Google offers no emulator.  This double knows as much of the filter language
as the plugin writes: conditions joined by AND, alternatives in parentheses,
``=``, ``:``, ``>=``, ``<=``.
"""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_CONDITION = re.compile(r'([\w.]+)(>=|<=|=|:)(\((?:[^)]*)\)|"(?:[^"\\]|\\.)*"|\S+)')


def value_of(entry, path):
    for key in path.split("."):
        entry = entry.get(key) if isinstance(entry, dict) else None
    return entry


class CloudLogServer:
    """Use as a context manager; ``entries`` may be filled before or later.

    ``quota_after`` lets every n-th request fail with 429, once each.
    """

    def __init__(self, entries=()):
        self.entries = list(entries)
        self.requests = []
        self.quota_after = 0
        self.refuse = 0
        self._found = ("", 0, [])
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def select(self, text):
        """Return the entries that a filter finds; the last answer is kept."""
        if self._found[:2] != (text, len(self.entries)):
            self._found = (text, len(self.entries), self._select(text))
        return self._found[2]

    def _select(self, text):
        conditions = []
        for path, operator, value in _CONDITION.findall(text):
            words = re.findall(r'"((?:[^"\\]|\\.)*)"', value) or [value]
            conditions.append(
                (path, operator, [word.replace('\\"', '"').replace("\\\\", "\\") for word in words])
            )
        assert re.sub(r"\s+", "", _CONDITION.sub("", text).replace("AND", "")) == "", text
        return [entry for entry in self.entries if all(self._holds(entry, *c) for c in conditions)]

    @staticmethod
    def _holds(entry, path, operator, words):
        value = value_of(entry, path)
        if value is None:
            return False
        value = str(value)
        # Moments are written with six digits here and there, so texts compare.
        tests = {
            "=": lambda word: value == word,
            ":": lambda word: word.lower() in value.lower(),
            ">=": lambda word: value >= word,
            "<=": lambda word: value <= word,
        }
        return any(tests[operator](word) for word in words)

    def answer(self, path, body):
        if path.partition("?")[0] != "/v2/entries:list":
            return 404, {"error": {"code": 404, "message": path, "status": "NOT_FOUND"}}
        self.requests.append(body)
        if self.refuse:
            return self.refuse, {
                "error": {"code": self.refuse, "message": "no", "status": "PERMISSION_DENIED"}
            }
        if self.quota_after and len(self.requests) % self.quota_after == 0:
            return 429, {"error": {"code": 429, "message": "Quota exceeded", "status": "RESOURCE_EXHAUSTED"}}
        found = self.select(body.get("filter", ""))
        start, size = int(body.get("pageToken") or 0), min(body.get("pageSize") or 50, 1000)
        reply = {"entries": found[start : start + size]}
        if start + size < len(found):
            reply["nextPageToken"] = str(start + size)
        return 200, reply

    def _handler(self):
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *words):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
                status, reply = server.answer(self.path, body)
                content = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        return Handler


def make_entry(
    number, *, moment, task="5", job="12", request=7, level="INFO", message="step", project="proj"
):
    """Make an entry as pilots write it."""
    return {
        "logName": f"projects/{project}/logs/Panda-RubinLog",
        "resource": {"type": "global", "labels": {"project_id": project}},
        "labels": {"python_logger": "realTimeLogger"},
        "insertId": f"i{number:06d}",
        "severity": "INFO",
        "timestamp": moment,
        "receiveTimestamp": moment,
        "jsonPayload": {
            "TaskID": task,
            "PandaJobID": job,
            "RequestID": request,
            "Harvester_WorkerID": "77",
            "PilotTimeStamp": 1795165846.52,
            "name": "lsst.ctrl.mpexec",
            "asctime": moment,
            "message": message,
            "levelno": 20,
            "levelname": level,
            "exc_info": None,
            "MDC": {"LABEL": "isr:1", "REPO": "/repo"},
        },
    }
