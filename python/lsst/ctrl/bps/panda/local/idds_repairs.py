"""Everything that touches private parts of iDDS, in one place: each repair
with its reason and the symptom without it, and the self-test that refuses an
iDDS whose private parts are not known.

This module must be imported, and `before_import` called, before anything of
``idds.agents`` or ``idds.orm``.
"""

from __future__ import annotations

__all__ = [
    "IDDS_VERSION",
    "REPAIRS",
    "Repair",
    "before_import",
    "missing_grips",
    "offer_task_lookup",
    "repair",
    "self_test",
    "tune",
    "unlock_everything",
    "wrong_versions",
]

import datetime
import functools
import hashlib
import importlib
import importlib.metadata
import sqlite3
import sys
import threading
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .pace import Pace

IDDS_VERSION = "2.6.21"
"""The version whose private parts are known."""

_DISTRIBUTIONS = ("idds-server", "idds-common", "idds-workflow", "idds-doma", "idds-client", "idds-prompt")
_BUSY_WAIT = 0.05
_STOCK_TIMER = 10
_STOCK_MESSAGE_AGE = 60
_TASK_LOOKUP = "pandaclient.queryPandaMonUtils"


class _Stand:
    """A module or object with some attributes replaced."""

    def __init__(self, real: Any, **replaced: Any) -> None:
        self.__dict__.update(replaced)
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


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


def _module(name: str) -> Any:
    return importlib.import_module(name)


# -- SQLite -----------------------------------------------------------------


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


def before_import() -> None:
    """Prepare SQLAlchemy for iDDS on SQLite, and do without Redis."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine
    from sqlalchemy.ext.compiler import compiles
    from sqlalchemy.sql.elements import BinaryExpression

    event.listen(Engine, "connect", _set_up_connection)
    # The real one is not needed and takes a tenth of a second to import.
    redis = types.ModuleType("redis")
    redis.Redis = MemoryCache  # type: ignore[attr-defined]
    sys.modules["redis"] = redis
    compiles(BinaryExpression, "sqlite")(_compile_sum)


def _insert_or_ignore(pace: Pace) -> None:
    import sqlalchemy as sa

    contents = _module("idds.orm.contents")

    def insert(model: Any, parameters: list[Any], batch_size: int = 1000, session: Any = None) -> None:
        statement = sa.insert(model).prefix_with("OR IGNORE", dialect="sqlite")
        for start in range(0, len(parameters), batch_size):
            session.execute(statement, parameters[start : start + batch_size])

    stock = contents.custom_bulk_insert_mappings
    wrapped = _module("idds.orm.base.session").transactional_session(insert)

    def choose(model: Any, parameters: list[Any], batch_size: int = 1000, session: Any = None) -> Any:
        sqlite = session is None or session.get_bind().dialect.name == "sqlite"
        return (wrapped if sqlite else stock)(model, parameters, batch_size, session=session)

    contents.custom_bulk_insert_mappings = choose


# -- Correctness ------------------------------------------------------------


def _rescue_commands(pace: Pace) -> None:
    clerk = _module("idds.agents.clerk.clerk")
    models = _module("idds.orm.base.models")
    constants = _module("idds.common.constants")

    @_module("idds.orm.base.session").transactional_session  # type: ignore[untyped-decorator]
    def unlock(session: Any = None) -> None:
        table = models.Command
        before = datetime.datetime.now(datetime.UTC).replace(tzinfo=None) - datetime.timedelta(seconds=1)
        stuck = session.query(table).filter(
            table.status.in_([constants.CommandStatus.New, constants.CommandStatus.Processing]),
            table.locking == constants.CommandLocking.Locking,
            table.updated_at < before,
        )
        # updated_at is set by the model unless it is given.
        changes = {"locking": constants.CommandLocking.Idle, "updated_at": table.updated_at}
        stuck.update(changes, synchronize_session=False)

    stock_select, stock_get = clerk.Clerk.get_operation_requests, clerk.Clerk.get_request

    def select(self: Any) -> Any:
        unlock()
        return stock_select(self)

    def get(self: Any, request_id: int, status: Any = None, locking: bool = False) -> Any:
        for attempt in range(30 if locking else 1):
            if attempt:
                time.sleep(0.1)
            if request := stock_get(self, request_id, status=status, locking=locking):
                return request
        return None

    clerk.Clerk.get_operation_requests, clerk.Clerk.get_request = select, get


def _serialise_request_locks(pace: Pace) -> None:
    clerk = _module("idds.agents.clerk.clerk")
    core = clerk.core_requests
    lock = threading.Lock()

    def locked(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with lock:
                return function(*args, **kwargs)

        return call

    clerk.core_requests = _Stand(
        core,
        get_request_by_id_status=locked(core.get_request_by_id_status),
        get_requests_by_status_type=locked(core.get_requests_by_status_type),
    )


def _one_log_handler(pace: Pace) -> None:
    controller = _module("idds.rest.v1.controller")
    controller.get_logger = functools.lru_cache(maxsize=None)(controller.get_logger)


def unlock_everything() -> None:
    """Unlock what a killed process had locked, and send messages again that
    it had fetched and not sent.  Call it before the agents start.
    """
    models = _module("idds.orm.base.models")
    constants = _module("idds.common.constants")

    @_module("idds.orm.base.session").transactional_session  # type: ignore[untyped-decorator]
    def unlock(session: Any = None) -> None:
        for table in (models.Request, models.Transform, models.Processing, models.Command):
            held = session.query(table).filter(table.locking != 0)
            held.update({"locking": 0}, synchronize_session=False)
        session.query(models.Health).delete(synchronize_session=False)
        message = models.Message
        fetched = session.query(message).filter(message.status == constants.MessageStatus.Fetched)
        fetched.update({"status": constants.MessageStatus.New}, synchronize_session=False)

    unlock()


# -- Speed ------------------------------------------------------------------


class _CalmEvent(threading.Event):
    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(None if timeout is None else max(timeout, _BUSY_WAIT))


def _calm_loops(pace: Pace) -> None:
    scheduler = _module("idds.agents.common.timerscheduler").TimerScheduler
    stock = scheduler.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        self.graceful_stop = _CalmEvent()

    scheduler.__init__ = init


def _set_timers(pace: Pace) -> None:
    scheduler = _module("idds.agents.common.timerscheduler").TimerScheduler
    stock = scheduler.create_task

    def create_task(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("delay_time", _STOCK_TIMER) == _STOCK_TIMER:
            kwargs["delay_time"] = pace.timer
        return stock(self, *args, **kwargs)

    scheduler.create_task = create_task


def _send_messages_at_once(pace: Pace) -> None:
    conductor = _module("idds.agents.conductor.conductor")
    orm_messages = _module("idds.orm.messages")
    core = conductor.core_messages
    bell = threading.Event()
    stock_add = orm_messages.add_message

    def add_message(*args: Any, **kwargs: Any) -> Any:
        bell.set()
        return stock_add(*args, **kwargs)

    def retrieve_messages(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("delay") == _STOCK_MESSAGE_AGE:
            kwargs["delay"] = pace.message_age
        return core.retrieve_messages(*args, **kwargs)

    looks = [0]

    def sleep(seconds: float) -> None:
        # The bell rings before the message is committed: look a few times.
        if bell.wait(0.05 if looks[0] else seconds):
            bell.clear()
            looks[0] = 6
            time.sleep(0.02)
        else:
            looks[0] = max(looks[0] - 1, 0)

    conductor.core_messages = _Stand(core, retrieve_messages=retrieve_messages)
    if pace.message_age < 1:
        orm_messages.add_message = add_message
        conductor.time = _Stand(time, sleep=sleep)


def _start_poller_at_once(pace: Pace) -> None:
    poller = _module("idds.agents.carrier.poller")
    poller.time = _Stand(time, sleep=lambda seconds: None if seconds == 5 else time.sleep(seconds))


def _dependent_processings(request_id: int, transform_id: int) -> list[int]:
    """List the processings whose inputs wait for outputs of a transform."""
    import sqlalchemy as sa

    models = _module("idds.orm.base.models")
    waiting, output = models.Content, sa.orm.aliased(models.Content)

    @_module("idds.orm.base.session").read_session  # type: ignore[untyped-decorator]
    def look(session: Any = None) -> list[int]:
        transforms = (
            session.query(waiting.transform_id)
            .join(output, waiting.content_dep_id == output.content_id)
            .filter(output.transform_id == transform_id, waiting.request_id == request_id)
            .filter(waiting.transform_id != transform_id)
            .distinct()
        )
        ids = [row[0] for row in transforms]
        found = session.query(models.Processing.processing_id).filter(
            models.Processing.transform_id.in_(ids), models.Processing.workload_id.isnot(None)
        )
        return [row[0] for row in found] if ids else []

    return list(look())


def _trigger_dependents(pace: Pace) -> None:
    if pace.timer >= _STOCK_TIMER:
        return
    trigger = _module("idds.agents.carrier.trigger")
    event_class = _module("idds.agents.common.eventbus.event").TriggerProcessingEvent
    stock = trigger.Trigger.handle_trigger_processing
    known: dict[int, tuple[float, list[int]]] = {}

    def handle(self: Any, processing: Any, *args: Any, **kwargs: Any) -> Any:
        answer = stock(self, processing, *args, **kwargs)
        if answer.get("has_updates"):
            transform_id = processing["transform_id"]
            until, ids = known.get(transform_id, (0.0, []))
            if until < time.monotonic():
                ids = _dependent_processings(processing["request_id"], transform_id)
                # Transforms of the request may still be mapped.
                known[transform_id] = (time.monotonic() + (2.0 if ids else 0.0), ids)
            for processing_id in ids:
                self.event_bus.send(event_class(publisher_id=self.id, processing_id=processing_id))
        return answer

    trigger.Trigger.handle_trigger_processing = handle


def offer_task_lookup(find: Callable[[int, str], int | None]) -> None:
    """Let iDDS look a task up by its name before it submits it.

    Parameters
    ----------
    find : callable
        Tells the id of a task from its request's id and its name.
    """
    module = types.ModuleType(_TASK_LOOKUP)

    def query_tasks(reqid: int, taskname: str) -> tuple[float, str, list[dict[str, Any]]]:
        task_id = find(reqid, taskname)
        record = {"reqid": reqid, "taskname": taskname, "jeditaskid": task_id}
        return time.time(), "", [record] if task_id else []

    module.query_tasks = query_tasks  # type: ignore[attr-defined]
    sys.modules[_TASK_LOOKUP] = module
    _module("pandaclient").queryPandaMonUtils = module


def tune(agent: Any, pace: Pace) -> None:
    """Set what can be set on an agent but not in the configuration."""
    if pace.message_age < 1 and hasattr(agent, "bulk_message_delay"):
        # The configuration takes whole seconds only.
        agent.bulk_message_delay = 0.1


@dataclass(frozen=True, slots=True)
class Repair:
    """One repair."""

    name: str
    reason: str
    symptom: str
    """What happens without it."""

    grips: tuple[str, ...]
    """Private parts it needs, ``module:attribute.attribute``."""

    apply: Callable[[Pace], None] | None
    """`None` if it is done by `before_import`, `unlock_everything` or
    `offer_task_lookup`."""


_CLERK = "idds.agents.clerk.clerk"
_SCHEDULER = "idds.agents.common.timerscheduler:TimerScheduler"

REPAIRS: tuple[Repair, ...] = (
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
        "lost commands",
        "the clerk locks a command, then fails to lock its request if a worker holds that, and never unlocks "
        "the command",
        "abort and retry are accepted and never done",
        (
            f"{_CLERK}:Clerk.get_operation_requests",
            f"{_CLERK}:Clerk.get_request",
            "idds.orm.base.models:Command",
        ),
        _rescue_commands,
    ),
    Repair(
        "two clerks on one request",
        "timer and event path of the clerk may take one request at once",
        "a request is stored as ended while new transforms run",
        (
            f"{_CLERK}:core_requests.get_request_by_id_status",
            f"{_CLERK}:core_requests.get_requests_by_status_type",
        ),
        _serialise_request_locks,
    ),
    Repair(
        "one log handler",
        "the REST service opens a log file per request",
        "no file descriptors left after about a thousand requests",
        ("idds.rest.v1.controller:get_logger",),
        _one_log_handler,
    ),
    Repair(
        "locks of a killed process",
        "locks are kept in the database, those of a killed process for half an hour",
        "after kill -9 and a new start nothing moves",
        ("idds.orm.base.models:Health", "idds.orm.base.models:Request.locking"),
        None,
    ),
    Repair(
        "busy loops",
        "main loops wait for 0.01 ms",
        "a whole core is used when nothing runs",
        (f"{_SCHEDULER}.__init__",),
        _calm_loops,
    ),
    Repair(
        "timers",
        "work is looked for every 10 s, which is not configurable",
        "each level of a workflow takes ten seconds longer",
        (f"{_SCHEDULER}.create_task",),
        _set_timers,
    ),
    Repair(
        "age of messages",
        "the conductor sends only messages that are older than 60 s, which is not configurable",
        "each level of a workflow takes a minute longer",
        (
            "idds.agents.conductor.conductor:core_messages.retrieve_messages",
            "idds.agents.conductor.conductor:time",
            "idds.orm.messages:add_message",
        ),
        _send_messages_at_once,
    ),
    Repair(
        "dependents wait for the poller",
        "a processing looks for released inputs when it is polled or has news of its own, not when its "
        "parents have news",
        "a job starts a second or two later than it could",
        (
            "idds.agents.carrier.trigger:Trigger.handle_trigger_processing",
            "idds.agents.common.eventbus.event:TriggerProcessingEvent",
            "idds.orm.base.models:Content.content_dep_id",
        ),
        _trigger_dependents,
    ),
    Repair(
        "tasks by name",
        "before it submits a task, iDDS asks PanDA's monitor for one of that name, through a module that "
        "panda-client 2.2.0 has no more",
        "a traceback per task in the log, and a task twice after a crash between its submission and storing "
        "its id",
        ("idds.doma.workflowv2.domapandawork:DomaPanDAWork.get_panda_task_id_from_name",),
        None,
    ),
    Repair(
        "poller's first sleep",
        "the poller sleeps for 5 s when it starts",
        "the first task of the first run is late",
        ("idds.agents.carrier.poller:time",),
        _start_poller_at_once,
    ),
)


def wrong_versions() -> list[str]:
    """List distributions of iDDS that are absent or of another version."""
    wrong = []
    for name in _DISTRIBUTIONS:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{name} is not installed")
            continue
        if version != IDDS_VERSION:
            wrong.append(f"{name} is {version}")
    return wrong


def missing_grips() -> list[str]:
    """List private parts that are not where the repairs expect them."""
    missing = []
    for item in REPAIRS:
        for grip in item.grips:
            module, _, path = grip.partition(":")
            try:
                functools.reduce(getattr, path.split("."), _module(module))
            except (ImportError, AttributeError):
                missing.append(f"{grip} ({item.name})")
    return missing


def self_test() -> str:
    """Check that this iDDS is the one that the repairs know.

    Returns
    -------
    problem : `str`
        A sentence that says what to install; empty if all is well.
    """
    problems = wrong_versions() or missing_grips()
    if not problems:
        return ""
    return (
        f"the embedded PanDA knows iDDS {IDDS_VERSION} only, but here {', '.join(problems)}; "
        f"install what it needs with: pip install 'lsst-ctrl-bps-panda[local]' 'idds-server=={IDDS_VERSION}'"
    )


def repair(pace: Pace) -> None:
    """Apply all repairs."""
    for item in REPAIRS:
        if item.apply is not None:
            item.apply(pace)
