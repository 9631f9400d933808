"""A server that repeats recorded replies of a real PanDA, as often as a test
wants: a run of thousands of jobs without running one.
"""

from __future__ import annotations

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

CAPTURES = Path(__file__).resolve().parents[1] / "data" / "captures"
RUN = "u_tester_big_20261120T095125Z"
REQUEST_ID = 4711


def recorded(name, place="real"):
    """Return what a server replied, without its envelope."""
    content = json.loads((CAPTURES / place / f"{name}.json").read_text(encoding="utf-8"))
    return content["reply"]["data"] if isinstance(content, dict) else content[1][1]


class RecordedRun:
    """A run of ``tasks`` times ``jobs`` jobs; of each ten jobs one fails on
    both attempts and one on the first.

    Rows are those of PanDA for jobs that finished and failed with a real
    pilot, with other numbers and names.
    """

    def __init__(self, *, tasks=4, jobs=2500):
        self.tasks = tasks
        self.jobs = jobs
        self.count = 0
        self._good = recorded("run8_memory_v1_task29_get_job_descriptions")[0]
        failed = recorded("run2_failed_before_end_v1_task6_get_job_descriptions")
        self._bad = next(row for row in failed if row["jobStatus"] == "failed")
        self._texts = {}

    def label(self, task):
        return f"label_{task}"

    def detail(self):
        pattern = recorded("run2_failed_before_end_get_requests_detail")[0]
        failed = self.jobs // 10
        for task in range(1, self.tasks + 1):
            yield pattern | {
                "request_id": REQUEST_ID,
                "name": RUN,
                "transform_id": task,
                "processing_id": task,
                "transform_workload_id": 100 + task,
                "processing_workload_id": 100 + task,
                "transform_name": f"{RUN}_{task:02d}_{self.label(task)}_01",
                "transform_status": 4,
                "output_total_files": self.jobs,
                "output_processed_files": self.jobs - failed,
                "output_failed_files": failed,
                "input_total_files": self.jobs,
                "input_processed_files": self.jobs,
            }

    def contents(self, transform_id):
        pattern = recorded("run2_failed_before_end_get_contents_output_ext_all")
        rows = [row for group in pattern.values() for row in group]
        good = next(row for row in rows if row["status"] == "Available")
        bad = next(row for row in rows if row["status"] == "FinalFailed")
        return {
            str(transform_id): [
                (bad if number % 10 == 0 else good)
                | {
                    "transform_id": transform_id,
                    "request_id": REQUEST_ID,
                    "name": f"job:{number}",
                    "panda_id": self._panda_id(transform_id, number, 1 + (number % 10 == 0)),
                }
                for number in range(self.jobs)
            ]
        }

    def _panda_id(self, task, number, attempt):
        return task * 1_000_000 + number * 10 + attempt

    def job_rows(self, task_id, unsuccessful_only):
        task = task_id - 100
        for number in range(self.jobs):
            fails = number % 10
            attempts = [self._bad] * (2 if fails == 0 else 1 if fails == 1 else 0)
            if fails and not unsuccessful_only:
                attempts.append(self._good)
            for attempt, pattern in enumerate(attempts, 1):
                panda_id = self._panda_id(task, number, attempt)
                yield pattern | {
                    "PandaID": panda_id,
                    "jediTaskID": task_id,
                    "attemptNr": attempt,
                    "modificationHost": f"node{number % 37:03d}.example",
                    "maxRSS": 200_000 + number * 17 % 100_000,
                    "cpuConsumptionTime": 9,
                    "pilotID": "",
                    "Files": [{"type": "pseudo_input", "lfn": f"{number:06d}:job:{number}"}],
                }

    def command(self, name, keywords):
        if name == "get_requests":
            return list(self.detail())
        if name == "get_contents_output_ext":
            return self.contents(keywords["transform_id"])
        raise LookupError(name)

    def api(self, method, parameters):
        if method == "task/get_tasks_detailed_info_since":
            return []
        if method == "task/get_job_descriptions":
            unsuccessful = parameters["unsuccessful_only"][0].lower() == "true"
            return list(self.job_rows(int(parameters["task_id"][0]), unsuccessful))
        raise LookupError(method)


class RecordedList:
    """What bob gets of a server with 16 runs of alice and his own: iDDS lists everybody's requests, PanDA
    only his tasks, whatever the filter says.

    ``idds`` may be ``up``, ``down`` (its relay tries in vain until ``tried`` is set, and says so) or
    ``endless`` (its list does not end).
    """

    def __init__(self, idds="up"):
        self.idds = idds
        self.tried = threading.Event()
        self.requests = recorded("everybody_as_bob_get_requests", "whole")

    def command(self, name, keywords):
        if self.idds == "down":
            self.tried.wait(60)
            return recorded("idds_down_ping_reply", "whole")
        if name == "ping":
            return {"Status": "OK"}
        if name != "get_requests":
            raise LookupError(name)
        if "request_id" in keywords:
            return [row for row in self.requests if row["request_id"] == keywords["request_id"]]
        return " " * (65 * 1024**2) if self.idds == "endless" else self.requests

    def api(self, method, parameters):
        if method != "task/get_tasks_detailed_info_since":
            raise LookupError(method)
        return recorded("global_as_bob_v1_get_tasks_detailed_info_since", "whole")


class RecordedPanda:
    """Use as a context manager; ``url`` is for ``PANDA_URL_SSL``.

    Replies are rendered once and kept, so that a measurement is of the side
    that asks.
    """

    def __init__(self, run):
        self.run = run
        self.asked = []
        self._texts = {}
        self._names = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}/server/panda"

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def reply(self, path, body):
        """Return the bytes of a reply."""
        key = (path, body)
        if key not in self._texts:
            self._names[key], answer = self._answer(path, body)
            self._texts[key] = json.dumps(answer).encode()
        self.asked.append(self._names[key])
        return self._texts[key]

    def _answer(self, path, body):
        parts = urlsplit(path)
        if parts.path.endswith("relay_idds_command"):
            request = json.loads(gzip.decompress(body))
            keywords = json.loads(request.get("kwargs") or "{}")
            name = request["command_name"]
            return name, [True, self.run.command(name, keywords)]
        method = parts.path.removeprefix("/api/v1/")
        if method == "system/is_alive":
            return method, {"success": True, "message": "alive=yes", "data": None}
        return method, {"success": True, "message": "", "data": self.run.api(method, parse_qs(parts.query))}

    def _handler(self):
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *words):
                pass

            def do_GET(self):
                self._reply(b"")

            def do_POST(self):
                self._reply(self.rfile.read(int(self.headers["Content-Length"])))

            def _reply(self, body):
                content = server.reply(self.path, body)
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        return Handler
