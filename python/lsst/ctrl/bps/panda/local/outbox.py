"""Messages from PanDA to iDDS, which a broker carries in production: written
in the transaction that changes a state, handed over by a thread afterwards,
and handed over again after a crash.
"""

from __future__ import annotations

__all__ = ["Outbox"]

import json
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any

import sqlalchemy as sa

from .database import Database, files, messages

_REPLAY = 120.0
"""Seconds before the last message within which a message is handed over again
after a restart: iDDS may have been killed before it stored the effect."""

_KEEP = 600.0


class Outbox:
    """Messages that wait for iDDS.

    Parameters
    ----------
    database : `Database`
        Where they are kept.
    clock : callable
        Time, seconds since the epoch.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        self._bell = threading.Event()
        self._cleaned = clock()

    def put(self, connection: sa.Connection, *bodies: Mapping[str, Any]) -> None:
        """Add messages; they leave when the transaction is committed."""
        if not bodies:
            return
        now = self._clock()
        rows = [
            {"created": now, "taken": None, "body": json.dumps({**body, "timestamp": int(now)})}
            for body in bodies
        ]
        connection.execute(messages.insert(), rows)
        self._database.after_commit(self._bell.set)

    def take(self, timeout: float, limit: int = 500) -> list[dict[str, Any]]:
        """Wait for messages and take them.

        Parameters
        ----------
        timeout : `float`
            Seconds to wait if there are none.
        limit : `int`, optional
            Number of messages to take at most.
        """
        if not self._bell.wait(timeout):
            return []
        self._bell.clear()
        now = self._clock()
        with self._database.change() as connection:
            query = sa.select(messages.c.message_id, messages.c.body).where(messages.c.taken.is_(None))
            rows = connection.execute(query.order_by(messages.c.message_id).limit(limit)).all()
            ids = [row.message_id for row in rows]
            if ids:
                update = messages.update().where(messages.c.message_id.in_(ids))
                connection.execute(update.values(taken=now))
            if len(rows) == limit:
                self._database.after_commit(self._bell.set)
            if now - self._cleaned > _KEEP:
                self._cleaned = now
                connection.execute(messages.delete().where(messages.c.taken < now - _KEEP))
        return [json.loads(row.body) for row in rows]

    def replay(self) -> int:
        """Have what was handed over last handed over again (after a restart).

        Returns
        -------
        count : `int`
            Number of messages.
        """
        with self._database.change() as connection:
            last = connection.execute(sa.select(sa.func.max(messages.c.taken))).scalar()
            count = 0
            if last is not None:
                update = messages.update().where(messages.c.taken > last - _REPLAY)
                count = connection.execute(update.values(taken=None)).rowcount
            self._database.after_commit(self._bell.set)
        return count

    def largest_task(self, task_ids: Collection[int]) -> int:
        """Tell the number of inputs of the largest of some tasks."""
        query = sa.select(sa.func.count()).where(files.c.task_id.in_(task_ids)).group_by(files.c.task_id)
        with self._database.look() as connection:
            return max(connection.execute(query).scalars(), default=0) if task_ids else 0
