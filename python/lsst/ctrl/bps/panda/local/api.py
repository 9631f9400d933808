"""The calls of PanDA's API, and PanDA's file cache; `~.web` declares who may make which call."""

from __future__ import annotations

__all__ = ["Api", "ApiCall", "ApiError", "CacheError", "FileCache"]

import ast
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from .endpoint import make_private_folder
from .faults import Faults
from .identity import Identity
from .jedi import CommandReply, Jedi
from .request_bodies import parse_json
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
    """PanDA's file cache: one directory of files with plain names."""

    def __init__(self, directory: Path) -> None:
        self._directory = make_private_folder(directory)

    @staticmethod
    def limit(name: str) -> int:
        """Return the largest allowed size of a file, bytes, as panda-server has it."""
        if name.startswith("sources."):
            return _LARGE
        return _LOGS if name.endswith(".log.tgz") else _SMALL

    def path(self, name: str) -> Path:
        """Return where a file is; `CacheError` for a name that is no plain file name."""
        if not _NAME.fullmatch(name):
            raise CacheError(f"{name!r} is not a name of a file in the cache")
        return self._directory / name

    def put(self, name: str, stream: BinaryIO) -> int:
        """Store a file and return its size, bytes; `CacheError` if it is too large."""
        target = self.path(name)
        limit = self.limit(name)
        # A name for each upload: two of the same file may come at once.
        descriptor, temporary = tempfile.mkstemp(prefix=".", dir=self._directory)
        size = 0
        try:
            with os.fdopen(descriptor, "wb") as output:
                while chunk := stream.read(_CHUNK):
                    size += len(chunk)
                    if size > limit:
                        raise CacheError(f"cannot upload {name}: more than the limit of {limit} bytes")
                    output.write(chunk)
            os.replace(temporary, target)
        finally:
            Path(temporary).unlink(missing_ok=True)
        return size

    def touch(self, name: str) -> bool:
        """Renew a file's time; returns whether it exists."""
        path = self.path(name)
        if path.exists():
            os.utime(path)
        return path.exists()

    def exists(self, name: str) -> bool:
        """Whether a file is in the cache."""
        return self.path(name).exists()

    def delete(self, name: str) -> bool:
        """Remove a file, whether it exists or not."""
        self.path(name).unlink(missing_ok=True)
        return True


def _may_kill(job: Mapping[str, Any] | None, who: Identity) -> bool:
    return job is None or job["prodUserName"] == who.user


_Parameters = Mapping[str, Any]
_Reply = tuple[Any, str]
"""The ``data`` and the ``message`` of a reply."""

_REFUSED_CODE = 3
_FORCED_KILL = 9
_ATTRIBUTES = {"ramCount": "ramCount", "wallTime": "walltime"}
"""Attributes that can be changed here, and the parameters of tasks that hold them."""
_BAD = (
    TypeError, ValueError, AttributeError, LookupError, OverflowError, RecursionError, SyntaxError,
    MemoryError,
)  # fmt: skip
"""What handlers raise for arguments that are not what they look for."""


def _number(value: Any) -> int:
    """Take an id, a positive number or its text; `ValueError` for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**63:
        raise ValueError(f"{str(value)[:40]!r} is not an id")
    return value


class ApiError(Exception):
    """A call that PanDA answers with ``success: false``."""

    def __init__(self, message: str, data: Any = None, *, status: int = 200) -> None:
        super().__init__(message)
        self.data = data
        self.status = status
        """HTTP status of the reply."""


class Api:
    """PanDA's API: what changes is done by JEDI, what is read comes from the views.

    Each public method but `call` is one call; it takes the parameters and who
    asks, and returns data and message of the reply.
    """

    def __init__(self, jedi: Jedi, views: Views, *, queues: Queues, timing: Timing, faults: Faults) -> None:
        self._jedi = jedi
        self._views = views
        self._queues = queues
        self._timing = timing
        self._faults = faults

    def call(self, method: ApiCall, parameters: _Parameters, identity: Identity) -> _Reply:
        """Make a call; wrong parameters are an `ApiError`, too."""
        try:
            return method(self, parameters, identity)
        except KeyError as error:
            raise ApiError(f"missing argument {error}") from None
        except _BAD as error:
            raise ApiError(f"bad argument: {error}", status=400) from None

    def is_alive(self, parameters: _Parameters, who: Identity) -> _Reply:
        """Answer that the server lives."""
        return "alive=yes", ""

    def user_attributes(self, parameters: _Parameters, who: Identity) -> _Reply:
        """Return who asks."""
        return {"user": who.user, "production": who.production}, ""

    # -- Tasks --------------------------------------------------------------

    @staticmethod
    def _found(value: Any, task_id: Any) -> Any:
        if value is None:
            raise ApiError(f"Task {task_id} not found")
        return value

    def submit_task(self, parameters: _Parameters, who: Identity) -> _Reply:
        """Submit a task."""
        task = dict(parameters["task_parameters"])
        if not who.production:
            # What PanDA does to the tasks of ordinary users.
            task.update(userName=who.user, taskType="anal", taskPriority=1000)
        queue = str(task.get("site") or task.get("PandaSite") or "")
        if queue and not self._queues.accepts(queue):
            raise ApiError(f"queue {queue!r} is not known; known: {', '.join(self._queues.known)}", 4)
        actions = self._faults.for_task(str(task.get("taskName")))
        if "refuse" in actions:
            raise ApiError("the task is refused on purpose, by a rule for faults")
        if "duplicate" in actions:
            self._jedi.submit(task, who.user)
        task_id = self._jedi.submit(
            task, who.user, again="duplicate" in actions, unbrokered="hold" in actions
        )
        # iDDS reads the id from this text.
        return task_id, f"succeeded. new jediTaskID={task_id}"

    def task_details(self, parameters: _Parameters, who: Identity) -> _Reply:
        """Return a task's status and the current job of each input."""
        task_id = parameters["task_id"]
        return self._found(self._views.details(_number(task_id)), task_id), ""

    def task_status(self, parameters: _Parameters, who: Identity) -> _Reply:
        """Return a task's status."""
        task_id = parameters["task_id"]
        return self._found(self._views.task(_number(task_id)), task_id)["status"], ""

    def task_parameters(self, parameters: _Parameters, who: Identity) -> _Reply:
        """Return the parameters with which a task was submitted."""
        task_id = parameters["task_id"]
        return self._found(self._views.task(_number(task_id)), task_id)["params"], ""

    def task_job_ids(self, parameters: _Parameters, who: Identity) -> _Reply:
        """List the ids of all jobs of a task."""
        return self._views.job_ids(_number(parameters["task_id"])), ""

    def task_datasets(self, parameters: _Parameters, who: Identity) -> _Reply:
        """List a task's inputs with their states."""
        task_id = parameters["task_id"]
        return self._found(self._views.datasets(_number(task_id)), task_id), ""

    def task_job_descriptions(self, parameters: _Parameters, who: Identity) -> _Reply:
        """Return the records of all attempts of all jobs of a task."""
        bad_only = str(parameters.get("unsuccessful_only", False)).lower() == "true"
        return self._views.job_descriptions(_number(parameters["task_id"]), unsuccessful_only=bad_only), ""

    def task_record(self, parameters: _Parameters, who: Identity) -> _Reply:
        """Return the detailed record of a task."""
        task_id = parameters["task_id"]
        return self._found(self._views.detailed_task(_number(task_id)), task_id), ""

    def task_records_since(self, parameters: _Parameters, who: Identity) -> _Reply:
        """Return the detailed records of tasks that have changed since a time."""
        filters = parse_json(parameters.get("filters") or "{}")
        for value in filters.values():
            if not isinstance(value, str):
                # panda-server 1.0.4 fails like this.
                raise ApiError(f"argument of type '{type(value).__name__}' is not iterable")
        user = "" if who.inside else who.user
        limit = _number(parameters.get("n_tasks") or 500)
        return self._views.tasks_since(parameters.get("since"), filters, user=user, limit=limit), ""

    def check_owner(self, parameters: _Parameters, who: Identity) -> _Reply:
        """Raise an `ApiError` unless the user may change a task, or there is no such task."""
        task = self._views.task(_number(parameters["task_id"]))
        if task is not None and not who.production and task["user_name"] != who.user:
            raise ApiError("permission denied", _REFUSED_CODE)
        return None, ""

    def kill_task(self, parameters: _Parameters, who: Identity) -> _Reply:
        """Kill a task."""
        return self._command("kill", parameters, who)

    def finish_task(self, parameters: _Parameters, who: Identity) -> _Reply:
        """Finish a task with the jobs that it has."""
        return self._command("finish", parameters, who)

    def retry_task(self, parameters: _Parameters, who: Identity) -> _Reply:
        """Try the failed inputs of a task again."""
        return self._command("retry", parameters, who)

    def reload_task_input(self, parameters: _Parameters, who: Identity) -> _Reply:
        """Try the failed and the pruned inputs of a task again."""
        return self._command("incexec", parameters, who)

    def _command(self, command: str, parameters: _Parameters, who: Identity) -> _Reply:
        return self._answer(self._jedi.command(_number(parameters["task_id"]), command, who.user))

    @staticmethod
    def _answer(reply: CommandReply) -> _Reply:
        if reply.code:
            raise ApiError(reply.message, reply.code)
        return reply.code, reply.message

    def reassign_task(self, parameters: _Parameters, who: Identity) -> _Reply:
        """Send a task to another queue; as in panda-server, anybody may."""
        queue, mode = parameters["site"], parameters.get("mode") or ""
        if not (isinstance(queue, str) and queue and ":" not in queue and mode in ("", "soft", "nokill")):
            raise ValueError(f"site {str(queue)[:40]!r}, mode {str(mode)[:40]!r}")
        if not self._queues.accepts(queue):
            raise ApiError(f"queue {queue!r} is not known; known: {', '.join(self._queues.known)}", 4)
        return self._answer(self._jedi.reassign(_number(parameters["task_id"]), queue, mode))

    @staticmethod
    def _require_production(who: Identity) -> None:
        if not who.production:
            raise ApiError("production or pilot role required")

    def pause_task(self, parameters: _Parameters, who: Identity) -> _Reply:
        """Have no more jobs of a task start."""
        self._require_production(who)
        return self._answer(self._jedi.pause(_number(parameters["task_id"]), resume=False))

    def resume_task(self, parameters: _Parameters, who: Identity) -> _Reply:
        """Let a paused task go on."""
        self._require_production(who)
        return self._answer(self._jedi.pause(_number(parameters["task_id"]), resume=True))

    def change_attribute(self, parameters: _Parameters, who: Identity) -> _Reply:
        """Change what a task asks for."""
        self._require_production(who)
        name = parameters["attribute_name"]
        if name not in _ATTRIBUTES:
            raise ApiError(
                f"{str(name)[:40]} is not a valid attribute. Valid attributes are {[*_ATTRIBUTES]}"
            )
        value = _number(parameters["value"])
        if not self._jedi.change_attribute(_number(parameters["task_id"]), _ATTRIBUTES[name], value):
            raise ApiError("Task not found")
        return None, "1 tasks changed"

    def refuse(self, parameters: _Parameters, who: Identity) -> _Reply:
        """Refuse a call for which PanDA wants a role that nobody has here."""
        raise ApiError("production or pilot role required")

    # -- Jobs and events ----------------------------------------------------

    @staticmethod
    def _ids(parameters: _Parameters) -> list[int]:
        value = parameters["job_ids"]
        return [_number(item) for item in (value if isinstance(value, list) else [value])]

    def job_records(self, parameters: _Parameters, who: Identity) -> _Reply:
        """Return the records of jobs."""
        records = self._views.jobs(self._ids(parameters), for_idds=who.inside)
        if not who.inside:
            return records, ""
        # iDDS asks for all jobs of a task at every poll, and reads what is
        # absent as null.
        slim = [
            record and {key: item for key, item in record.items() if item is not None} for record in records
        ]
        return slim, ""

    def job_states(self, parameters: _Parameters, who: Identity) -> _Reply:
        """Return status and pending command of jobs."""
        return self._views.job_states(self._ids(parameters)), ""

    def kill_jobs(self, parameters: _Parameters, who: Identity) -> _Reply:
        """Kill single jobs."""
        wanted = self._ids(parameters)
        records = [None] * len(wanted) if who.production else self._views.jobs(wanted)
        foreign = {number for number, job in zip(wanted, records, strict=True) if not _may_kill(job, who)}
        own = [number for number in wanted if number not in foreign]
        done = iter(self._jedi.kill_jobs(own, who.user, now=parameters.get("code") == _FORCED_KILL))
        return [number not in foreign and next(done) for number in wanted], ""

    def event_states(self, parameters: _Parameters, who: Identity) -> _Reply:
        """Return how the payloads of event service jobs ended."""
        if not self._timing.event_states:
            raise ApiError("the JSON object must be str, bytes or bytearray, not list")
        value = parameters["job_task_ids"]
        items = value if isinstance(value, list) else [value]
        pairs: list[Any] = []
        for item in items:
            # panda-client sends the Python form of each pair.
            decoded = ast.literal_eval(item) if isinstance(item, str) else item
            pairs.extend(decoded if isinstance(decoded, list) else [decoded])
        return self._views.event_states(pairs), ""


ApiCall = Callable[[Api, _Parameters, Identity], _Reply]
"""A method of `Api`."""
