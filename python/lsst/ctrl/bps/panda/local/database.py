"""The database of the embedded PanDA's own side: tasks, inputs, jobs with all
their attempts, events, and messages on their way to iDDS.

It lies next to iDDS's database (SQLite), or in a schema of its own in the
same PostgreSQL database.  One process writes, under one lock; every change of
state is one transaction, so that a kill at any moment leaves either the old
state or the new one.
"""

from __future__ import annotations

__all__ = ["SCHEMA", "Database", "events", "files", "jobs", "messages", "sandboxes", "tasks"]

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

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
    # What is open of a task is looked for at the end of each job.
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

sandboxes = sa.Table(
    "sandboxes",
    _METADATA,
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("user_name", sa.String(128), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
)


class Database:
    """The engine, the lock and the transactions.

    Parameters
    ----------
    url : `str`
        SQLAlchemy URL.
    """

    def __init__(self, url: str) -> None:
        postgresql = url.startswith("postgresql")
        options: dict[str, Any] = {"pool_pre_ping": True} if postgresql else {}
        if postgresql:
            options["execution_options"] = {"schema_translate_map": {None: SCHEMA}}
        self.engine = sa.create_engine(url, **options)
        if not postgresql:
            sa.event.listen(self.engine, "connect", _set_up_sqlite)
        self._lock = threading.RLock()
        self._current: sa.Connection | None = None
        self._after: list[Callable[[], None]] = []
        if postgresql:
            with self.engine.begin() as connection:
                connection.execute(sa.schema.CreateSchema(SCHEMA, if_not_exists=True))
        _METADATA.create_all(self.engine)
        for table in _METADATA.tables.values():
            for index in table.indexes:
                # Of a table that an earlier version has made.
                index.create(self.engine, checkfirst=True)

    @contextmanager
    def change(self) -> Iterator[sa.Connection]:
        """Open a transaction, or join the one this thread is in."""
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
        """Have something called when the transaction this thread is in has
        been committed; once, however often it was asked for.
        """
        self._after.append(call)

    @contextmanager
    def look(self) -> Iterator[sa.Connection]:
        """Open a connection for reading only."""
        with self.engine.connect() as connection:
            yield connection

    def highest(self, column: sa.Column[Any]) -> int:
        """Tell the highest value of an id column, 0 if there is none."""
        with self.look() as connection:
            return int(connection.execute(sa.select(sa.func.max(column))).scalar() or 0)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _set_up_sqlite(connection: Any, record: object) -> None:
    cursor = connection.cursor()
    # WAL survives the end of the process at any moment, without a sync at
    # every commit.
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA busy_timeout=30000")
    cursor.close()
