"""The book of tasks: reading and changing the state of one task."""

from __future__ import annotations

__all__ = ["FINAL_STATES", "TaskBook"]

import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from .database import Database, tasks
from .outbox import Outbox

FINAL_STATES = ("done", "finished", "failed", "aborted", "broken", "exhausted")
"""States in which a task stays until a command comes."""

_CACHED_TASKS = 200
_TOUCH = (
    tasks.update().where(tasks.c.task_id == sa.bindparam("_task_id")).values(modified=sa.bindparam("_now"))
)


class TaskBook:
    """Tasks in the database.

    Parameters
    ----------
    database : `Database`
        Where they are kept.
    outbox : `Outbox`
        For the messages about tasks.
    clock : callable
        Time, seconds since the epoch.
    wake : callable
        Called after something became due.
    """

    def __init__(
        self, database: Database, outbox: Outbox, *, clock: Callable[[], float], wake: Callable[[], None]
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._clock = clock
        self._wake = wake
        self._params: dict[int, Mapping[str, Any]] = {}
        columns = (column for column in tasks.c if column.name != "params")
        self._query = sa.select(*columns).where(tasks.c.task_id == sa.bindparam("_task_id"))
        self._ids = itertools.count(database.highest(tasks.c.task_id) + 1)

    def get(self, connection: sa.Connection, task_id: int) -> dict[str, Any] | None:
        """Read a task, with its parameters as a `dict`."""
        row = connection.execute(self._query, {"_task_id": task_id}).mappings().first()
        return None if row is None else {**row, "params": self._parameters(connection, task_id)}

    def _parameters(self, connection: sa.Connection, task_id: int) -> Mapping[str, Any]:
        """Read a task's parameters, which never change and may be large."""
        found = self._params.get(task_id)
        if found is None:
            query = sa.select(tasks.c.params).where(tasks.c.task_id == task_id)
            found = json.loads(connection.execute(query).scalar_one())
            if len(self._params) >= _CACHED_TASKS:
                self._params.pop(next(iter(self._params)))
            self._params[task_id] = found
        return found

    def add(
        self, connection: sa.Connection, name: str, params: Mapping[str, Any], user: str
    ) -> dict[str, Any]:
        """Add a new task; ``user`` has it if the parameters do not say."""
        now = self._clock()
        task_id = next(self._ids)
        task: dict[str, Any] = {
            "task_id": task_id,
            "name": name,
            "user_name": str(params.get("userName") or user),
            "req_id": params.get("reqID"),
            "status": "registered",
            "dataset_id": task_id * 2 + 1,
            "event_service": bool(params.get("fineGrainedProc")),
            "cores": max(int(params.get("coreCount") or 1), 1),
            "priority": int(params.get("taskPriority") or 0),
            "queue": str(params.get("site") or params.get("PandaSite") or "LOCAL"),
            "max_attempt": max(int(params.get("maxAttempt") or 3), 1),
            "created": now,
            "modified": now,
            "started": now,
        }
        connection.execute(tasks.insert().values(**task, params=json.dumps(params)))
        return {**task, "params": params, "command": None, "command_by": None}

    def submitted(self, req_id: int, name: str) -> int | None:
        """Find a task of an iDDS request by its name, unless it came to
        nothing.
        """
        query = sa.select(tasks.c.task_id).where(tasks.c.name == name, tasks.c.req_id == req_id)
        useless = ("aborted", "failed", "broken")
        with self._database.change() as connection:
            found = connection.execute(query.where(tasks.c.status.not_in(useless))).scalars().first()
        return None if found is None else int(found)

    def touch(self, connection: sa.Connection, task: Mapping[str, Any]) -> None:
        """Note that something of a task has changed."""
        connection.execute(_TOUCH, {"_task_id": task["task_id"], "_now": self._clock()})

    def set(self, connection: sa.Connection, task: dict[str, Any], status: str, **values: Any) -> None:
        """Change a task's status, and further values, and tell iDDS."""
        if status not in ("pending", *FINAL_STATES) and "error_dialog" not in values:
            values["error_dialog"] = None
        task.update(values, status=status)
        update = tasks.update().where(tasks.c.task_id == task["task_id"])
        connection.execute(update.values(status=status, modified=self._clock(), **values))
        self._outbox.put(connection, {"msg_type": "task_status", "taskid": task["task_id"], "status": status})

    def plan(
        self,
        connection: sa.Connection,
        task: dict[str, Any],
        status: str,
        *,
        command: str,
        delay: float,
        by: str = "",
    ) -> None:
        """Change a task's status and have a command executed after a delay."""
        self.set(connection, task, status)
        update = tasks.update().where(tasks.c.task_id == task["task_id"])
        connection.execute(update.values(command=command, command_by=by, due=self._clock() + delay))
        self._database.after_commit(self._wake)

    def unplan(self, connection: sa.Connection, task: Mapping[str, Any]) -> None:
        """Take the command of a task away: it is executed now."""
        update = tasks.update().where(tasks.c.task_id == task["task_id"])
        connection.execute(update.values(command=None, command_by=None, due=None))
