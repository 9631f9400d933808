"""PanDA's API and file cache."""

from __future__ import annotations

__all__ = ["Api", "ApiError", "CacheError", "FileCache"]

import ast
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from .database import jobs
from .identity import Identity
from .jedi import CommandReply, Jedi
from .settings import Queues, Timing
from .views import Views

_LARGE = 768 * 1024 * 1024
_LOGS = 100 * 1024 * 1024
_SMALL = 10 * 1024 * 1024
_CHUNK = 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


class CacheError(Exception):
    """A file that cannot be put into or got from the cache."""


class FileCache:
    """The cache."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def limit(name: str) -> int:
        """Tell the highest size of a file, bytes, as panda-server has it."""
        if name.startswith("sources."):
            return _LARGE
        return _LOGS if name.endswith(".log.tgz") else _SMALL

    def path(self, name: str) -> Path:
        """Tell where a file is."""
        if not _NAME.fullmatch(name):
            raise CacheError(f"{name!r} is not a name of a file in the cache")
        return self._directory / name

    def put(self, name: str, stream: BinaryIO) -> int:
        """Store a file."""
        target = self.path(name)
        limit = self.limit(name)
        temporary = target.with_name(f".{name}.{os.getpid()}")
        size = 0
        try:
            with temporary.open("wb") as output:
                while chunk := stream.read(_CHUNK):
                    size += len(chunk)
                    if size > limit:
                        raise CacheError(f"cannot upload {name}: more than the limit of {limit} bytes")
                    output.write(chunk)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return size

    def touch(self, name: str) -> bool:
        """Renew a file's time; tell whether it is there."""
        path = self.path(name)
        if path.exists():
            os.utime(path)
        return path.exists()

    def delete(self, name: str) -> bool:
        """Remove a file; it does not matter whether it was there."""
        self.path(name).unlink(missing_ok=True)
        return True


_Params = Mapping[str, Any]
_PRODUCTION_ONLY = (
    "pause",
    "resume",
    "release",
    "reactivate",
    "avalanche",
    "increase_attempts",
    "change_priority",
    "change_attribute",
    "change_split_rule",
)


class ApiError(Exception):
    """A call that PanDA answers with ``success: false``."""

    def __init__(self, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.data = data


class Api:
    """The calls."""

    def __init__(self, jedi: Jedi, views: Views, *, queues: Queues, timing: Timing) -> None:
        self._jedi = jedi
        self._views = views
        self._queues = queues
        self._timing = timing
        self._calls: dict[tuple[str, str], Callable[[_Params, Identity], tuple[Any, str]]] = {
            ("POST", "task/submit"): self._submit,
            ("GET", "task/get_details"): self._details,
            ("GET", "task/get_status"): self._status,
            ("GET", "task/get_task_parameters"): self._parameters,
            ("GET", "task/get_job_ids"): self._job_ids,
            ("GET", "task/get_datasets_and_files"): self._datasets,
            ("GET", "task/get_job_descriptions"): self._job_descriptions,
            ("GET", "task/get_detailed_info"): self._detailed_info,
            ("GET", "task/get_tasks_detailed_info_since"): self._tasks_since,
            ("POST", "task/kill"): self._command("kill"),
            ("POST", "task/finish"): self._command("finish"),
            ("POST", "task/retry"): self._command("retry"),
            ("POST", "task/reload_input"): self._command("incexec"),
            ("POST", "job/get_description"): self._jobs,
            ("POST", "job/get_description_incl_archive"): self._jobs,
            ("GET", "job/get_status"): self._job_states,
            ("POST", "job/kill"): self._kill_jobs,
            ("GET", "event/get_event_range_statuses"): self._events,
            ("GET", "system/is_alive"): lambda params, who: ("alive=yes", ""),
            ("GET", "system/get_attributes"): self._attributes,
            ("GET", "system/get_user_attributes"): self._attributes,
        }
        for name in _PRODUCTION_ONLY:
            self._calls["POST", f"task/{name}"] = self._refuse

    def call(self, method: str, path: str, params: _Params, identity: Identity) -> tuple[Any, str]:
        """Answer a call."""
        function = self._calls.get((method, path))
        if function is None:
            raise LookupError(f"{method} {path} is not a call of this PanDA")
        try:
            return function(params, identity)
        except KeyError as error:
            raise ApiError(f"missing argument {error}") from None
        except (TypeError, ValueError) as error:
            raise ApiError(f"bad argument: {error}") from None

    # -- Tasks --------------------------------------------------------------

    @staticmethod
    def _found(value: Any, task_id: Any) -> Any:
        if value is None:
            raise ApiError(f"Task {task_id} not found")
        return value

    def _submit(self, params: _Params, who: Identity) -> tuple[Any, str]:
        task = dict(params["task_parameters"])
        if not who.production:
            # What PanDA does to the tasks of ordinary users.
            task.update(userName=who.user, taskType="anal", taskPriority=1000)
        queue = str(task.get("site") or task.get("PandaSite") or "")
        if queue and not self._queues.accepts(queue):
            raise ApiError(f"queue {queue!r} is not known; known: {', '.join(self._queues.known)}", 4)
        task_id = self._jedi.submit(task, who.user)
        # iDDS reads the id from this text.
        return task_id, f"succeeded. new jediTaskID={task_id}"

    def _details(self, params: _Params, who: Identity) -> tuple[Any, str]:
        return self._found(self._views.details(int(params["task_id"])), params["task_id"]), ""

    def _status(self, params: _Params, who: Identity) -> tuple[Any, str]:
        return self._found(self._views.task(int(params["task_id"])), params["task_id"])["status"], ""

    def _parameters(self, params: _Params, who: Identity) -> tuple[Any, str]:
        return self._found(self._views.task(int(params["task_id"])), params["task_id"])["params"], ""

    def _job_ids(self, params: _Params, who: Identity) -> tuple[Any, str]:
        return self._views.job_ids(int(params["task_id"])), ""

    def _datasets(self, params: _Params, who: Identity) -> tuple[Any, str]:
        return self._found(self._views.datasets(int(params["task_id"])), params["task_id"]), ""

    def _job_descriptions(self, params: _Params, who: Identity) -> tuple[Any, str]:
        bad_only = str(params.get("unsuccessful_only", False)).lower() == "true"
        return self._views.job_descriptions(int(params["task_id"]), unsuccessful_only=bad_only), ""

    def _detailed_info(self, params: _Params, who: Identity) -> tuple[Any, str]:
        return self._found(self._views.detailed_task(int(params["task_id"])), params["task_id"]), ""

    def _tasks_since(self, params: _Params, who: Identity) -> tuple[Any, str]:
        filters = json.loads(params.get("filters") or "{}")
        for value in filters.values():
            if not isinstance(value, str):
                # panda-server 1.0.4 fails like this.
                raise ApiError(f"argument of type '{type(value).__name__}' is not iterable")
        user = "" if who.production else who.user
        limit = int(params.get("n_tasks") or 500)
        return self._views.tasks_since(params.get("since"), filters, user=user, limit=limit), ""

    def _command(self, command: str) -> Callable[[_Params, Identity], tuple[Any, str]]:
        def call(params: _Params, who: Identity) -> tuple[Any, str]:
            task_id = int(params["task_id"])
            task = self._views.task(task_id)
            reply = CommandReply(3, "permission denied")
            if task is None or who.production or task["user_name"] == who.user:
                reply = self._jedi.command(task_id, command, who.user)
            if reply.code:
                raise ApiError(reply.message, reply.code)
            return reply.code, reply.message

        return call

    def _refuse(self, params: _Params, who: Identity) -> tuple[Any, str]:
        raise ApiError("production or pilot role required")

    # -- Jobs and events ----------------------------------------------------

    @staticmethod
    def _ids(params: _Params) -> list[int]:
        value = params["job_ids"]
        return [int(item) for item in (value if isinstance(value, list) else [value])]

    def _jobs(self, params: _Params, who: Identity) -> tuple[Any, str]:
        records = self._views.jobs(self._ids(params))
        if not who.inside:
            return records, ""
        # iDDS asks for all jobs of a task at every poll, and takes what is
        # absent as null.
        slim = [
            record and {key: item for key, item in record.items() if item is not None} for record in records
        ]
        return slim, ""

    def _job_states(self, params: _Params, who: Identity) -> tuple[Any, str]:
        return self._views.job_states(self._ids(params)), ""

    def _kill_jobs(self, params: _Params, who: Identity) -> tuple[Any, str]:
        return self._jedi.kill_jobs(self._ids(params), who.user), ""

    def _events(self, params: _Params, who: Identity) -> tuple[Any, str]:
        if not self._timing.event_states:
            raise ApiError("the JSON object must be str, bytes or bytearray, not list")
        value = params["job_task_ids"]
        items = value if isinstance(value, list) else [value]
        pairs: list[Any] = []
        for item in items:
            # panda-client sends the Python form of each pair.
            decoded = ast.literal_eval(item) if isinstance(item, str) else item
            pairs.extend(decoded if isinstance(decoded, list) else [decoded])
        return self._views.event_states(pairs), ""

    def _attributes(self, params: _Params, who: Identity) -> tuple[Any, str]:
        return {"user": who.user, "production": who.production, "jobs": str(jobs.name)}, ""
