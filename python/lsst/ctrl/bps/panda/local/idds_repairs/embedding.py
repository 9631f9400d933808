"""Repairs that let iDDS run in one process: on SQLite, without Redis, with a bounded log, with few
imports.
"""

from __future__ import annotations

__all__ = [
    "Absent",
    "DeepDiff",
    "REPAIRS",
    "import_lightly",
    "prepare_sqlalchemy",
    "put_in_place",
    "taken_away",
    "unlock_everything",
]

import functools
import hashlib
import importlib.util
import logging
import logging.handlers
import sqlite3
import sys
import threading
import time
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..settings import Timing
from .repair import Repair, module

_NOT_NEEDED = (
    # The agents talk over an event bus inside the process; this is the one between processes.
    "zmq",
    "zmq.auth",
    "zmq.auth.thread",
    # For tokens at iDDS's REST service, which has no port here.
    "jwt",
    "cryptography",
    "cryptography.hazmat",
    "cryptography.hazmat.backends",
    "cryptography.hazmat.primitives",
    "cryptography.hazmat.primitives.asymmetric",
    "cryptography.hazmat.primitives.asymmetric.rsa",
    # Types of columns in databases that are not used.
    "sqlalchemy.dialects.mysql",
    "sqlalchemy.dialects.oracle",
)

_OPTIONAL = ("wcwidth",)
"""Can be absent: what imports them does without them."""


class Absent:
    """Something of a module that was not imported; says so when it is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self._name}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Fail: what is called is not there."""
        raise RuntimeError(f"the embedded PanDA's iDDS works without {self._name}, which something called")


class _AbsentModule(types.ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self.__name__}.{name}")


def _canonical(value: Any) -> Any:
    """Make a value comparable whatever the order in its lists."""
    if isinstance(value, Mapping):
        return ("mapping", sorted(((repr(key), repr(_canonical(item))) for key, item in value.items())))
    if isinstance(value, list | tuple | set | frozenset):
        return (type(value).__name__, sorted(repr(_canonical(item)) for item in value))
    return value


class DeepDiff:
    """The part of ``deepdiff.DeepDiff`` that iDDS uses: whether the contents
    of two events differ.
    """

    def __init__(self, first: Any, second: Any, *, ignore_order: bool = False) -> None:
        same = first == second
        if not same and ignore_order:
            same = bool(_canonical(first) == _canonical(second))
        self._differ = not same

    def __bool__(self) -> bool:
        return self._differ


def put_in_place(name: str, **content: Any) -> None:
    """Put a small module in the place of a large one, for good."""
    small = types.ModuleType(name)
    # Who looks whether there is such a module finds a specification.
    small.__spec__ = importlib.util.spec_from_loader(name, loader=None)
    vars(small).update(content)
    sys.modules[name] = small


@contextmanager
def taken_away(names: tuple[str, ...] = _NOT_NEEDED, optional: tuple[str, ...] = _OPTIONAL) -> Iterator[None]:
    """Do without some modules while others are imported.

    Those that are loaded already stay.  Afterwards they can be imported as
    ever: only what was imported meanwhile holds an `Absent` for them.
    """
    placed: list[tuple[str, types.ModuleType | None]] = []
    for name in (*names, *optional):
        if name not in sys.modules:
            # None has an import fail.
            absent = _AbsentModule(name) if name in names else None
            sys.modules[name] = absent  # type: ignore[assignment]
            placed.append((name, absent))
    try:
        yield
    finally:
        for name, placeholder in placed:
            if sys.modules.get(name) is placeholder:
                sys.modules.pop(name, None)


def import_lightly() -> None:
    """Import the parts of iDDS that want what is not needed."""
    if "deepdiff" not in sys.modules:
        put_in_place("deepdiff", DeepDiff=DeepDiff)
    with taken_away():
        for grip in _IMPORTS[0].grips:
            module(grip.partition(":")[0])


_IMPORTS = (
    Repair(
        "heavy imports",
        "to compare two small dictionaries iDDS imports numpy and pydantic (by deepdiff); for an event bus "
        "between processes, for tokens at its REST service and for other databases, none of which is used "
        "here, zmq, cryptography and SQLAlchemy's dialects",
        "the start takes half as long again, and the server 60 MB more",
        (
            "idds.common.event:DeepDiff",
            "idds.core.authentication:jwt",
            "idds.agents.common.eventbus.msgeventbusbackend:zmq",
            "idds.orm.base.types:BINARY",
            "idds.client.clientmanager:tabulate",
        ),
        None,
    ),
)


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


def _insert_or_ignore(timing: Timing) -> None:
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


_STORAGE = (
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


_LARGEST_FILE = 5_000_000
_HARMLESS = ("Cannot find processing for event",)
"""An event about something that another thread has in hand, or that has
ended; a timer finds what remains to be done."""


def _harmless(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_HARMLESS)


def _small_log_files(timing: Timing) -> None:
    codec = module("idds.common.utils")
    codec.RotatingFileHandler = _SmallFile


class _SmallFile(logging.handlers.RotatingFileHandler):
    """A log file of bounded size, whatever it was made with."""

    def __init__(self, filename: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(filename, maxBytes=_LARGEST_FILE, backupCount=1)


def _one_log_handler(timing: Timing) -> None:
    controller = module("idds.rest.v1.controller")
    controller.get_logger = functools.lru_cache(maxsize=None)(controller.get_logger)


def _no_harmless_warnings(timing: Timing) -> None:
    for handler in logging.getLogger().handlers:
        handler.addFilter(_harmless)


_LOGS = (
    Repair(
        "one log handler",
        "the REST service opens a log file per request",
        "no file descriptors left after about a thousand requests",
        ("idds.rest.v1.controller:get_logger",),
        _one_log_handler,
    ),
    Repair(
        "size of log files",
        "log files are rotated when they have two gigabytes",
        "eight gigabytes of logs",
        ("idds.common.utils:RotatingFileHandler",),
        _small_log_files,
    ),
    Repair(
        "harmless warnings",
        "each event about something that another thread has in hand is a warning or an error in the log",
        "the log is full of errors that are none",
        ("idds.agents.carrier.trigger:Trigger.process_trigger_processing_real",),
        _no_harmless_warnings,
    ),
)

REPAIRS = (*_IMPORTS, *_STORAGE, *_LOGS)
