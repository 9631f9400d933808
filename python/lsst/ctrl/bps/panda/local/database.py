"""The tables of PanDA's side, transactions on them, and the queue of messages to iDDS.

They are next to iDDS's database (SQLite), or in a schema of their own in the
same PostgreSQL database. One process writes, under one lock; every change of
state is one transaction, messages included, so that a kill at any moment
leaves either the old state or the new one.
"""

from __future__ import annotations

__all__ = [
    "Database",
    "MessageQueue",
    "SCHEMA",
    "events",
    "files",
    "jobs",
    "messages",
    "note_errors",
    "tasks",
]

import json
import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from .storage import Storage

_LOG = logging.getLogger(__name__)

SCHEMA = "panda_local"
"""Schema in a PostgreSQL database; SQLite has none."""

_METADATA = sa.MetaData()

tasks = sa.Table(
    "tasks",
    _METADATA,
    sa.Column("task_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("name", sa.String(256), nullable=False, index=True),
    sa.Column("user_name", sa.String(128), nullable=False),
    sa.Column("req_id", sa.BigInteger, index=True),
    sa.Column("status", sa.String(64), nullable=False, index=True),
    sa.Column("dataset_id", sa.BigInteger, nullable=False),
    sa.Column("event_service", sa.Boolean, nullable=False),
    sa.Column("cores", sa.Integer, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("queue", sa.String(128), nullable=False),
    sa.Column("max_attempt", sa.Integer, nullable=False),
    sa.Column("params", sa.Text, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("modified", sa.Float, nullable=False, index=True),
    sa.Column("started", sa.Float),
    sa.Column("ended", sa.Float),
    # A command that is registered and not executed yet, and when it is due.
    sa.Column("command", sa.String(16)),
    sa.Column("command_by", sa.String(128)),
    sa.Column("due", sa.Float, index=True),
    sa.Column("error_dialog", sa.String(510)),
)

files = sa.Table(
    "files",
    _METADATA,
    sa.Column("file_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("task_id", sa.BigInteger, nullable=False),
    sa.Column("lfn", sa.String(4000), nullable=False),
    sa.Column("events", sa.Integer, nullable=False),
    # staging, ready, waiting (for its activation), running, finished,
    # failed (no attempt left), missing, cancelled
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("max_attempt", sa.Integer, nullable=False),
    sa.Column("ram", sa.Integer, nullable=False),
    sa.Column("due", sa.Float, index=True),
    sa.Column("panda_id", sa.BigInteger),
    # For the search of a task's open inputs at the end of each job.
    sa.Index("ix_files_task_status", "task_id", "status"),
)

jobs = sa.Table(
    "jobs",
    _METADATA,
    sa.Column("panda_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("task_id", sa.BigInteger, nullable=False, index=True),
    sa.Column("file_id", sa.BigInteger, nullable=False, index=True),
    sa.Column("name", sa.String(300), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("sub_status", sa.String(16)),
    sa.Column("queue", sa.String(128), nullable=False),
    sa.Column("cores", sa.Integer, nullable=False),
    sa.Column("ram", sa.Integer, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("changed", sa.Float, nullable=False),
    sa.Column("started", sa.Float),
    sa.Column("ended", sa.Float),
    sa.Column("session", sa.BigInteger),
    # When the pilot hears that the job is to be killed, and who asked.
    sa.Column("kill_at", sa.Float, index=True),
    sa.Column("kill_by", sa.String(128)),
    # The remaining fields of PanDA's JobSpec that differ from their default.
    sa.Column("detail", sa.Text, nullable=False),
    # In the order in which jobs are taken.
    sa.Index("ix_jobs_taking", "status", sa.desc("priority"), "panda_id"),
)

events = sa.Table(
    "events",
    _METADATA,
    sa.Column("panda_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("file_id", sa.BigInteger, nullable=False, index=True),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("error", sa.Integer),
    sa.Column("dialog", sa.String(500)),
)

messages = sa.Table(
    "messages",
    _METADATA,
    sa.Column("message_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("created", sa.Float, nullable=False),
    # When it was handed to iDDS; what was handed over shortly before a
    # crash is handed over again, because iDDS may not have stored it.
    sa.Column("taken", sa.Float, index=True),
    sa.Column("body", sa.Text, nullable=False),
)


class Database:
    """The connections to the database, with its write lock."""

    def __init__(self, url: str, storage: Storage | None = None) -> None:
        self._storage = storage
        postgresql = url.startswith("postgresql")
        options: dict[str, Any] = {"pool_pre_ping": True} if postgresql else {}
        if postgresql:
            options["execution_options"] = {"schema_translate_map": {None: SCHEMA}}
        self.engine = sa.create_engine(url, **options)
        if not postgresql:
            sa.event.listen(self.engine, "connect", _set_up_sqlite)
        if storage is not None:
            note_errors(self.engine, storage)
        self._lock = threading.RLock()
        self._current: sa.Connection | None = None
        self._after: list[Callable[[], None]] = []
        if postgresql:
            with self.engine.begin() as connection:
                connection.execute(sa.schema.CreateSchema(SCHEMA, if_not_exists=True))
        _METADATA.create_all(self.engine)
        for table in _METADATA.tables.values():
            for index in table.indexes:
                # Also in tables that an earlier version has made.
                index.create(self.engine, checkfirst=True)

    @contextmanager
    def change(self) -> Iterator[sa.Connection]:
        """Open a transaction, or join the one that this thread is in."""
        with self._lock:
            if self._current is not None:
                yield self._current
                return
            self._after = []
            try:
                with self.engine.begin() as connection:
                    self._current = connection
                    yield connection
            finally:
                self._current = None
            calls = self._after
        for call in dict.fromkeys(calls):
            call()

    def after_commit(self, call: Callable[[], None]) -> None:
        """Have something called once after the transaction of this thread is committed."""
        self._after.append(call)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Open a connection for reading only."""
        with self.engine.connect() as connection:
            yield connection

    def require_room(self) -> None:
        """Raise a `StorageError` if nothing new should be stored now."""
        if self._storage is not None:
            self._storage.require()

    def highest(self, column: sa.Column[Any]) -> int:
        """Return the highest value of an id column, 0 if there is none."""
        with self.reading() as connection:
            return int(connection.execute(sa.select(sa.func.max(column))).scalar() or 0)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def note_errors(engine: sa.Engine, storage: Storage) -> None:
    """Have each error of an engine that comes from the storage recorded."""

    def note(context: sa.engine.ExceptionContext) -> None:
        storage.note(context.sqlalchemy_exception or context.original_exception)

    sa.event.listen(engine, "handle_error", note)


def _set_up_sqlite(connection: Any, record: object) -> None:
    cursor = connection.cursor()
    # WAL survives the end of the process at any moment, without a sync at
    # every commit.
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA busy_timeout=30000")
    cursor.close()


_REPLAY = 120.0
"""Seconds before the last message within which a message is handed over again
after a restart: iDDS may have been killed before it stored the effect."""

_KEEP = 600.0
_LONGEST_PAUSE = 1.5
_PAUSE_PER_INPUT = 0.001
_PAUSE_WHEN_BUSY = 0.5


def _decode(message_id: int, text: str) -> dict[str, Any] | None:
    """Decode a message; `None` for one that iDDS could not use, which must not stop those behind it."""
    try:
        body = json.loads(text)
        int(body["taskid"])
    except (ValueError, TypeError, KeyError):
        _LOG.error("message %s to iDDS is left out: it cannot be read: %.200r", message_id, text)
        return None
    return dict(body)


class MessageQueue:
    """Messages that wait for iDDS."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        self._added = threading.Event()
        self._cleaned = clock()

    def put(self, connection: sa.Connection, *bodies: Mapping[str, Any]) -> None:
        """Add messages, which are delivered when the transaction is committed."""
        if not bodies:
            return
        now = self._clock()
        rows = [
            {"created": now, "taken": None, "body": json.dumps({**body, "timestamp": int(now)})}
            for body in bodies
        ]
        connection.execute(messages.insert(), rows)
        self._database.after_commit(self._added.set)

    def take(self, timeout: float, limit: int = 500) -> list[dict[str, Any]]:
        """Wait for messages, ``timeout`` seconds at most, and take up to ``limit`` of them."""
        if not self._added.wait(timeout):
            return []
        self._added.clear()
        try:
            rows = self._take(limit)
        except BaseException:
            # They are still there.
            self._added.set()
            raise
        return [body for row in rows if (body := _decode(row.message_id, row.body)) is not None]

    def _take(self, limit: int) -> Sequence[Any]:
        now = self._clock()
        with self._database.change() as connection:
            query = sa.select(messages.c.message_id, messages.c.body).where(messages.c.taken.is_(None))
            rows = connection.execute(query.order_by(messages.c.message_id).limit(limit)).all()
            ids = [row.message_id for row in rows]
            if ids:
                update = messages.update().where(messages.c.message_id.in_(ids))
                connection.execute(update.values(taken=now))
            if len(rows) == limit:
                self._database.after_commit(self._added.set)
            if now - self._cleaned > _KEEP:
                self._cleaned = now
                connection.execute(messages.delete().where(messages.c.taken < now - _KEEP))
        return rows

    def replay(self) -> int:
        """Have the last messages delivered again, after a restart; returns their number."""
        with self._database.change() as connection:
            last = connection.execute(sa.select(sa.func.max(messages.c.taken))).scalar()
            count = 0
            if last is not None:
                update = messages.update().where(messages.c.taken > last - _REPLAY)
                count = connection.execute(update.values(taken=None)).rowcount
            self._database.after_commit(self._added.set)
        return count

    def pause(self, task_ids: Collection[int]) -> float:
        """Return how many seconds to wait before taking more messages, after some about these tasks.

        For each batch iDDS goes through all inputs of a task, and through many statements for each task: the
        larger the task, the larger the batches; and while each slot has its next job, nobody waits for what
        iDDS makes of a message.
        """
        if not task_ids:
            return 0.0
        of_task = sa.select(sa.func.count()).where(files.c.task_id.in_(task_ids)).group_by(files.c.task_id)
        states = sa.select(jobs.c.status, sa.func.count()).where(jobs.c.status.in_(("activated", "running")))
        with self._database.reading() as connection:
            largest = max(connection.execute(of_task).scalars(), default=0)
            count = {row[0]: row[1] for row in connection.execute(states.group_by(jobs.c.status))}
        busy = count.get("activated", 0) >= count.get("running", 0) > 0
        return min(_LONGEST_PAUSE, max(largest * _PAUSE_PER_INPUT, _PAUSE_WHEN_BUSY if busy else 0.0))
