"""Repairs for SQLite, for the absence of Redis, and for the locks of a process
that was killed.
"""

from __future__ import annotations

__all__ = ["REPAIRS", "prepare_sqlalchemy", "unlock_everything"]

import hashlib
import sqlite3
import threading
import time
from typing import Any

from ..pace import Pace
from .imports import put_in_place
from .record import Repair, module


class MemoryCache:
    """The part of ``redis.Redis`` that iDDS uses, in this process."""

    _values: dict[str, tuple[Any, float | None]] = {}
    _lock = threading.Lock()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Accept a host and a port, which do not matter."""

    def set(self, key: str, value: Any, ex: float | None = None) -> None:
        """Store a value, for ``ex`` seconds if given."""
        with self._lock:
            self._values[key] = (value, None if ex is None else time.monotonic() + ex)

    def get(self, key: str) -> Any:
        """Read a value, `None` if there is none."""
        with self._lock:
            value, until = self._values.get(key, (None, None))
            return None if until is not None and until < time.monotonic() else value

    def expire(self, key: str, seconds: float) -> None:
        """Limit the life of a value."""
        with self._lock:
            if key in self._values:
                self._values[key] = (self._values[key][0], time.monotonic() + seconds)

    hset = set
    hget = get


def _set_up_connection(connection: Any, record: object) -> None:
    if not isinstance(connection, sqlite3.Connection):
        return
    connection.create_function(
        "md5", 1, lambda text: hashlib.md5(str(text).encode()).hexdigest(), deterministic=True
    )
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA busy_timeout=60000")
    cursor.close()


def _compile_sum(element: Any, compiler: Any, **options: Any) -> str:
    import sqlalchemy as sa
    from sqlalchemy.sql import operators

    if element.operator is operators.add and isinstance(element.right.type, sa.Interval):
        left = compiler.process(element.left, **options)
        right = compiler.process(element.right, **options)
        return (
            f"strftime('%Y-%m-%d %H:%M:%f', "
            f"julianday({left}) + (julianday({right}) - julianday('1970-01-01')))"
        )
    return str(compiler.visit_binary(element, **options))


def prepare_sqlalchemy() -> None:
    """Prepare SQLAlchemy for iDDS on SQLite, and do without Redis."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine
    from sqlalchemy.ext.compiler import compiles
    from sqlalchemy.sql.elements import BinaryExpression

    event.listen(Engine, "connect", _set_up_connection)
    # The real one is not needed and takes a tenth of a second to import.
    put_in_place("redis", Redis=MemoryCache)
    compiles(BinaryExpression, "sqlite")(_compile_sum)


def _insert_or_ignore(pace: Pace) -> None:
    import sqlalchemy as sa

    contents = module("idds.orm.contents")

    def insert(model: Any, parameters: list[Any], batch_size: int = 1000, session: Any = None) -> None:
        statement = sa.insert(model).prefix_with("OR IGNORE", dialect="sqlite")
        for start in range(0, len(parameters), batch_size):
            session.execute(statement, parameters[start : start + batch_size])

    stock = contents.custom_bulk_insert_mappings
    wrapped = module("idds.orm.base.session").transactional_session(insert)

    def choose(model: Any, parameters: list[Any], batch_size: int = 1000, session: Any = None) -> Any:
        sqlite = session is None or session.get_bind().dialect.name == "sqlite"
        return (wrapped if sqlite else stock)(model, parameters, batch_size, session=session)

    contents.custom_bulk_insert_mappings = choose


def unlock_everything() -> None:
    """Unlock what a killed process had locked, and send messages again that
    it had fetched and not sent.  Call it before the agents start.
    """
    models = module("idds.orm.base.models")
    constants = module("idds.common.constants")

    @module("idds.orm.base.session").transactional_session  # type: ignore[untyped-decorator]
    def unlock(session: Any = None) -> None:
        for table in (models.Request, models.Transform, models.Processing, models.Command):
            held = session.query(table).filter(table.locking != 0)
            held.update({"locking": 0}, synchronize_session=False)
        session.query(models.Health).delete(synchronize_session=False)
        message = models.Message
        fetched = session.query(message).filter(message.status == constants.MessageStatus.Fetched)
        fetched.update({"status": constants.MessageStatus.New}, synchronize_session=False)

    unlock()


REPAIRS = (
    Repair(
        "sqlite functions and dates",
        "an index of iDDS uses md5(), which SQLite lacks; the sum of a date and an interval becomes a sum of "
        "texts there, which is always due",
        "'no such function: md5' when the tables are made; poll periods are ignored",
        ("idds.orm.base.models:Content.name", "idds.orm.base.models:Processing.update_poll_period"),
        None,
    ),
    Repair(
        "sqlite insert or ignore",
        "ON CONFLICT DO NOTHING is used with PostgreSQL only",
        "'UNIQUE constraint failed: contents_update.content_id', and the update is lost",
        ("idds.orm.contents:custom_bulk_insert_mappings",),
        _insert_or_ignore,
    ),
    Repair(
        "no redis",
        "the agents cache counts in a Redis server, whose place a dictionary takes: that suffices for one "
        "process",
        "connection refused by port 6379, in every agent",
        ("idds.agents.common.cache.redis:RedisCache", "idds.agents.common.cache.redis:redis"),
        None,
    ),
    Repair(
        "locks of a killed process",
        "locks are kept in the database, those of a killed process for half an hour",
        "after kill -9 and a new start nothing moves",
        ("idds.orm.base.models:Health", "idds.orm.base.models:Request.locking"),
        None,
    ),
)
