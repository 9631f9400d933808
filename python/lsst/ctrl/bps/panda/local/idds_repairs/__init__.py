"""Repairs of iDDS's private parts without which it fails in one process or on SQLite, or goes wrong; those
of lost commands and builds are in `~.commands`, those that make it fast in `~.tuning` and `~.volume`.

Each has its reason and the symptom without it. `before_import` has to be
called before anything of ``idds.agents`` or ``idds.orm`` is imported.
"""

from __future__ import annotations

__all__ = [
    "DeepDiff",
    "Overlay",
    "REPAIRS",
    "Repair",
    "before_import",
    "idds_module",
    "newest_news",
    "offer_task_lookup",
    "send_event",
    "unlock_everything",
]

import base64
import enum
import functools
import hashlib
import importlib
import importlib.util
import inspect
import json
import logging
import logging.handlers
import sqlite3
import sys
import threading
import time
import types
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..settings import Timing


class Overlay:
    """A module or object some of whose attributes are replaced."""

    def __init__(self, real: Any, **replaced: Any) -> None:
        self.__dict__.update(replaced)
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def idds_module(name: str) -> Any:
    """Import a module of iDDS.

    None can be imported at the top, since iDDS reads its configuration when it
    is imported.
    """
    return importlib.import_module(name)


def send_event(name: str, **ids: int) -> None:
    """Tell iDDS's agents that something has happened."""
    event = getattr(idds_module("idds.common.event"), name)(publisher_id="embedded", **ids)
    idds_module("idds.agents.common.eventbus.eventbus").EventBus().send(event)


@dataclass(frozen=True, slots=True)
class Repair:
    """One repair of iDDS's private parts."""

    name: str
    reason: str
    symptom: str
    """What happens without the repair."""

    grips: tuple[str, ...]
    """Private parts that it needs, ``module:attribute.attribute``."""

    apply: Callable[[Timing], None] | None
    """`None` if it is done by `before_import`, `unlock_everything` or
    `offer_task_lookup`."""


# -- Imports ------------------------------------------------------------------


def _canonical(value: Any) -> Any:
    """Make a value comparable without regard to the order of its lists."""
    if isinstance(value, Mapping):
        return ("mapping", sorted(((repr(key), repr(_canonical(item))) for key, item in value.items())))
    if isinstance(value, list | tuple | set | frozenset):
        return (type(value).__name__, sorted(repr(_canonical(item)) for item in value))
    return value


class DeepDiff:
    """The part of ``deepdiff.DeepDiff`` that iDDS uses: whether the contents of two events differ."""

    def __init__(self, first: Any, second: Any, *, ignore_order: bool = False) -> None:
        same = first == second
        if not same and ignore_order:
            same = bool(_canonical(first) == _canonical(second))
        self._differ = not same

    def __bool__(self) -> bool:
        return self._differ


def _replace_module(name: str, **content: Any) -> None:
    """Put a small module in the place of a large one, for the life of the process."""
    small = types.ModuleType(name)
    # Code that checks whether the module exists finds a specification.
    small.__spec__ = importlib.util.spec_from_loader(name, loader=None)
    vars(small).update(content)
    sys.modules[name] = small


_IMPORTS = (
    Repair(
        "heavy imports",
        "to compare two small dictionaries iDDS imports deepdiff, which imports numpy and pydantic",
        "the start takes 0.95 s of CPU instead of 0.75 s, all of the second that it may take; 16 MB more",
        ("idds.common.event:DeepDiff",),
        None,
    ),
)


# -- Storage ------------------------------------------------------------------


class MemoryCache:
    """The part of ``redis.Redis`` that iDDS uses, in this process."""

    _values: dict[str, tuple[Any, float | None]] = {}
    _lock = threading.Lock()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Ignore host and port."""

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
        """Limit the lifetime of a value."""
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


def _prepare_sqlalchemy() -> None:
    """Prepare SQLAlchemy for iDDS on SQLite, and replace Redis."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine
    from sqlalchemy.ext.compiler import compiles
    from sqlalchemy.sql.elements import BinaryExpression

    event.listen(Engine, "connect", _set_up_connection)
    # The real one is not needed and takes a tenth of a second to import.
    _replace_module("redis", Redis=MemoryCache)
    compiles(BinaryExpression, "sqlite")(_compile_sum)


def _insert_or_ignore(timing: Timing) -> None:
    import sqlalchemy as sa

    contents = idds_module("idds.orm.contents")

    def insert(model: Any, parameters: list[Any], batch_size: int = 1000, session: Any = None) -> None:
        statement = sa.insert(model).prefix_with("OR IGNORE", dialect="sqlite")
        for start in range(0, len(parameters), batch_size):
            session.execute(statement, parameters[start : start + batch_size])

    stock = contents.custom_bulk_insert_mappings
    wrapped = idds_module("idds.orm.base.session").transactional_session(insert)

    def choose(model: Any, parameters: list[Any], batch_size: int = 1000, session: Any = None) -> Any:
        sqlite = session is None or session.get_bind().dialect.name == "sqlite"
        return (wrapped if sqlite else stock)(model, parameters, batch_size, session=session)

    contents.custom_bulk_insert_mappings = choose


def unlock_everything() -> None:
    """Release the locks of a killed process, and have its fetched messages sent again.

    Call it before the agents start.
    """
    models = idds_module("idds.orm.base.models")
    constants = idds_module("idds.common.constants")

    @idds_module("idds.orm.base.session").transactional_session  # type: ignore[untyped-decorator]
    def unlock(session: Any = None) -> None:
        for table in (models.Request, models.Transform, models.Processing, models.Command):
            held = session.query(table).filter(table.locking != 0)
            held.update({"locking": 0}, synchronize_session=False)
        session.query(models.Health).delete(synchronize_session=False)
        message = models.Message
        fetched = session.query(message).filter(message.status == constants.MessageStatus.Fetched)
        fetched.update({"status": constants.MessageStatus.New}, synchronize_session=False)

    unlock()


def before_import() -> None:
    """Prepare the process for iDDS: its imports, SQLAlchemy on SQLite, and no Redis."""
    if "deepdiff" not in sys.modules:
        _replace_module("deepdiff", DeepDiff=DeepDiff)
    _prepare_sqlalchemy()


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


# -- Logs ---------------------------------------------------------------------

_LARGEST_FILE = 5_000_000
_HARMLESS = ("Cannot find processing for event",)
"""Beginning of messages about an object that another thread is processing, or
that has ended; a timer finds what remains to be done."""


def _harmless(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_HARMLESS)


def _small_log_files(timing: Timing) -> None:
    codec = idds_module("idds.common.utils")
    codec.RotatingFileHandler = _SmallFile


class _SmallFile(logging.handlers.RotatingFileHandler):
    """A log file of bounded size, whatever size was asked for."""

    def __init__(self, filename: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(filename, maxBytes=_LARGEST_FILE, backupCount=1)


def _one_log_handler(timing: Timing) -> None:
    controller = idds_module("idds.rest.v1.controller")
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
        "each event about an object that another thread is processing is a warning or an error in the log",
        "the log is full of errors that need no action",
        ("idds.agents.carrier.trigger:Trigger.process_trigger_processing_real",),
        _no_harmless_warnings,
    ),
)


# -- Commands, locks and news of jobs ------------------------------------------

_TASK_LOOKUP = "pandaclient.queryPandaMonUtils"


def offer_task_lookup(find: Callable[[int, str], int | None]) -> None:
    """Let iDDS find a task by its request's id and its name, before it submits the task again."""
    lookup = types.ModuleType(_TASK_LOOKUP)

    def query_tasks(reqid: int, taskname: str) -> tuple[float, str, list[dict[str, Any]]]:
        task_id = find(reqid, taskname)
        record = {"reqid": reqid, "taskname": taskname, "jeditaskid": task_id}
        return time.time(), "", [record] if task_id else []

    lookup.query_tasks = query_tasks  # type: ignore[attr-defined]
    sys.modules[_TASK_LOOKUP] = lookup
    idds_module("pandaclient").queryPandaMonUtils = lookup


_BEHAVIOUR = (
    Repair(
        "tasks by name",
        "before it submits a task, iDDS asks PanDA's monitor for one of that name, through a module that "
        "panda-client 2.2.0 has no more",
        "a traceback per task in the log, and a task twice after a crash between its submission and storing "
        "its id",
        ("idds.doma.workflowv2.domapandawork:DomaPanDAWork.get_panda_task_id_from_name",),
        None,
    ),
)


_TAKING = {
    "idds.core.requests": ("get_request_by_id_status", "get_requests_by_status_type"),
    "idds.core.transforms": ("get_transform_by_id_status", "get_transforms_by_status"),
    "idds.core.processings": ("get_processing_by_id_status", "get_processings_by_status"),
}
"""Functions that look for rows that are not locked and lock them, by module."""

_CLEANING = ("idds.agents.clerk.clerk:Clerk", "idds.agents.transformer.transformer:Transformer")
_POLLER = "idds.agents.carrier.poller:Poller"

_UTILS = "idds.agents.carrier.utils"
_GUARDED = {
    "get_workload_id_transform_id_map": "workload_id_lock",
    "get_input_name_content_id_map": "content_id_lock",
    "whether_to_process_pending_workload_id": "pending_lock",
    "whether_to_update_processing": "update_processing_lock",
}
"""Functions that take a lock and keep it if they fail, with their locks."""


def _one_at_a_time(function: Callable[..., Any], lock: threading.Lock) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("locking"):
            return function(*args, **kwargs)
        with lock:
            return function(*args, **kwargs)

    return call


def _take_one_at_a_time(timing: Timing) -> None:
    for name, functions in _TAKING.items():
        core, lock = idds_module(name), threading.Lock()
        for function in functions:
            setattr(core, function, _one_at_a_time(getattr(core, function), lock))


def _keep_locks_at_start(timing: Timing) -> None:
    for name in (*_CLEANING, _POLLER):
        where, _, agent = name.partition(":")
        kind = getattr(idds_module(where), agent)
        kind.clean_locks = _only_stale(kind.clean_locks)


def _only_stale(stock: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(stock)
    def clean(self: Any, force: bool = False) -> None:
        # With force it is the agent's start: what a dead server had locked
        # is unlocked by then, and what is locked is used by another agent.
        if not force:
            stock(self)

    return clean


def _released(function: Callable[..., Any], lock: Any) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        finally:
            while lock._is_owned():
                lock.release()

    return call


def _release_locks(timing: Timing) -> None:
    utils = idds_module(_UTILS)
    for name, lock_name in _GUARDED.items():
        # A kind of lock that knows which thread holds it.
        lock = threading.RLock()
        setattr(utils, lock_name, lock)
        setattr(utils, name, _released(getattr(utils, name), lock))


_LOCKS = (
    Repair(
        "two agents on one row",
        "to find what is not locked and to lock it are two statements, between which another thread finds "
        "the same: timer and event path of an agent, or two agents, then work on one request, transform or "
        "processing at once",
        "a request is stored as ended while new transforms run; 'UNIQUE constraint failed: "
        "processings.request_id, processings.transform_id', and states that go back",
        tuple(f"{name}:{function}" for name, functions in _TAKING.items() for function in functions),
        _take_one_at_a_time,
    ),
    Repair(
        "locks broken at the start",
        "each agent unlocks everything when it starts, also what an agent that started before it has just "
        "locked",
        "as above, in the first seconds after a start with runs that are not complete",
        tuple(f"{name}.clean_locks" for name in (*_CLEANING, _POLLER)),
        _keep_locks_at_start,
    ),
    Repair(
        "locks that are not released",
        "functions that look up what a message from PanDA is about take a lock, and keep it if they fail",
        "after one error of the database, no message from PanDA is read any more",
        tuple(f"{_UTILS}:{name}" for pair in _GUARDED.items() for name in pair),
        _release_locks,
    ),
)


_CONTENTS = "idds.orm.contents"
_AT_ONCE = 500
"""Number of ids in a statement, which databases limit."""


def newest_news(
    news: Iterable[Mapping[str, Any]],
    *,
    waiting: Mapping[int, Mapping[str, Any]],
    available: Collection[int],
    good: object,
) -> list[dict[str, Any]]:
    """Choose which news about contents to store: at most one for each content.

    ``news`` is ordered from old to new, with ``content_id``, ``substatus`` and
    maybe ``content_metadata``. ``waiting`` holds, by content, news that are
    stored and not processed yet, which the chosen ones replace; ``available``
    are the contents in the state ``good``.
    """
    chosen: dict[int, dict[str, Any]] = {}
    for item in news:
        content_id = item["content_id"]
        before: Mapping[str, Any] = chosen.get(content_id) or waiting.get(content_id) or {}
        if item["substatus"] != good and (content_id in available or before.get("substatus") == good):
            # Late, or told again after a restart.
            continue
        chosen[content_id] = dict(item)
        # The job's id comes with the first news of it only.
        if metadata := item.get("content_metadata") or before.get("content_metadata"):
            chosen[content_id]["content_metadata"] = metadata
    return list(chosen.values())


def _keep_newest_news(timing: Timing) -> None:
    contents, models = idds_module(_CONTENTS), idds_module("idds.orm.base.models")
    good = idds_module("idds.common.constants").ContentStatus.Available
    stock, update, content = contents.add_contents_update, models.Content_update, models.Content

    def look(ids: list[int], session: Any) -> tuple[dict[int, dict[str, Any]], set[int]]:
        waiting: dict[int, dict[str, Any]] = {}
        available: set[int] = set()
        columns = (update.content_id, update.substatus, update.content_metadata)
        for start in range(0, len(ids), _AT_ONCE):
            some = ids[start : start + _AT_ONCE]
            for row in session.query(*columns).filter(update.content_id.in_(some)):
                waiting[row[0]] = {"substatus": row[1], "content_metadata": row[2]}
            done = session.query(content.content_id).filter(content.content_id.in_(some))
            available.update(row[0] for row in done.filter(content.substatus == good))
        return waiting, available

    def add(news: list[dict[str, Any]], bulk_size: int = 10000, session: Any = None) -> Any:
        waiting, available = look(sorted({item["content_id"] for item in news}), session)
        chosen = newest_news(news, waiting=waiting, available=available, good=good)
        replaced = [item["content_id"] for item in chosen if item["content_id"] in waiting]
        for start in range(0, len(replaced), _AT_ONCE):
            some = replaced[start : start + _AT_ONCE]
            session.query(update).filter(update.content_id.in_(some)).delete(synchronize_session=False)
        return stock(chosen, bulk_size=bulk_size, session=session)

    contents.add_contents_update = idds_module("idds.orm.base.session").transactional_session(add)


_NEWS = (
    Repair(
        "lost and late news of jobs",
        "of two news about a job the first is kept until it is taken up, and the second ignored; and news "
        "that a job is ready are taken for true when it has finished, as when messages come again after a "
        "restart",
        "a job that is ready and finished within a moment, or has finished before a restart, is taken for "
        "one that waits until it is polled, and if its task ends meanwhile, for ever: what depends on it "
        "never starts",
        (
            f"{_CONTENTS}:add_contents_update",
            "idds.orm.base.models:Content_update.content_metadata",
            "idds.orm.base.models:Content.substatus",
        ),
        _keep_newest_news,
    ),
)


# -- What a request may make ----------------------------------------------------

_OWN_MODULES = (
    "idds.common.constants", "idds.common.dict_class", "idds.doma.workflowv2.domapandawork",
    "idds.workflowv2.base", "idds.workflowv2.work", "idds.workflowv2.workflow",
)  # fmt: skip
"""Modules with the classes of which runs are made."""

_LARGEST_VALUE = 1024**3
_ANY_VALUE = 64 * 1024**2
_LARGEST_RATIO = 200
"""A packed value may have so many bytes; `_ANY_VALUE` always, else so many times what is packed."""


@functools.cache
def _loading_keywords(kind: Any) -> dict[str, bool]:
    """Return the arguments with which iDDS makes an object that it reads; finding them takes long."""
    known = inspect.signature(kind).parameters
    return {name: True for name in ("json_load", "loading") if name in known}


def _own_classes_only(timing: Timing) -> None:
    dict_class = idds_module("idds.common.dict_class").DictClass

    def load_instance(record: Any) -> Any:
        module, name = record["module"], record["class"]
        found = getattr(idds_module(module), str(name), None) if module in _OWN_MODULES else None
        if (
            not isinstance(found, type)
            or found.__module__ != module
            or not issubclass(found, (dict_class, enum.Enum))
        ):
            raise ValueError(f"{str(module)[:80]}.{str(name)[:80]} is not a class of which runs are made")
        if not isinstance(record["attributes"], dict):
            raise ValueError(f"the attributes of a {name} are not a mapping")
        if issubclass(found, enum.Enum):
            return found(record["attributes"]["_value_"])
        kind: Any = found
        instance = kind(**_loading_keywords(kind))
        instance._loading = False
        return instance

    def unzip_data(self: Any, data: Any) -> Any:
        if not isinstance(data, str) or not data.startswith("idds_zip:"):
            return data
        stream = zlib.decompressobj()
        packed = base64.b64decode(data[len("idds_zip:") :])
        largest = min(_LARGEST_VALUE, max(_ANY_VALUE, _LARGEST_RATIO * len(packed)))
        unpacked = stream.decompress(packed, largest)
        if stream.unconsumed_tail:
            raise ValueError(f"a packed value has more than {largest} bytes")
        return json.loads(unpacked)

    dict_class.load_instance = staticmethod(load_instance)
    dict_class.unzip_data = unzip_data


def _no_code_in_requests(timing: Timing) -> None:
    workflow = idds_module("idds.workflowv2.workflow")

    def refuse(self: Any) -> None:
        if getattr(self, "user_defined_conditions", None):
            raise ValueError("conditions that are code are not executed here")

    workflow.WorkflowBase.load_user_defined_condition = refuse


_CLASSES = (
    Repair(
        "foreign classes",
        "iDDS's decoder imports whatever module a request names, and calls what is named in it",
        "a request executes code in the server, and a small one takes all memory",
        ("idds.common.dict_class:DictClass.load_instance", "idds.common.dict_class:DictClass.unzip_data"),
        _own_classes_only,
    ),
    Repair(
        "code in requests",
        "a workflow may bring conditions as source code, which iDDS executes",
        "a request executes code in the server",
        ("idds.workflowv2.workflow:WorkflowBase.load_user_defined_condition",),
        _no_code_in_requests,
    ),
)


REPAIRS = (*_IMPORTS, *_STORAGE, *_LOGS, *_BEHAVIOUR, *_LOCKS, *_NEWS, *_CLASSES)
"""The repairs of this module."""
