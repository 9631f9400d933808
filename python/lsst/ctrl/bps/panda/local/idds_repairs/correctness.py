"""Repairs of what iDDS does wrong: its behaviour, its locks, and how it stores news of jobs."""

from __future__ import annotations

__all__ = ["REPAIRS", "newest_news", "offer_task_lookup"]

import datetime
import functools
import sys
import threading
import time
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from ..settings import Timing
from .repair import Repair, module

_CLERK = "idds.agents.clerk.clerk"
_TASK_LOOKUP = "pandaclient.queryPandaMonUtils"


def _rescue_commands(timing: Timing) -> None:
    clerk = module("idds.agents.clerk.clerk")
    models = module("idds.orm.base.models")
    constants = module("idds.common.constants")

    @module("idds.orm.base.session").transactional_session  # type: ignore[untyped-decorator]
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


def offer_task_lookup(find: Callable[[int, str], int | None]) -> None:
    """Let iDDS look a task up by its name before it submits it."""
    lookup = types.ModuleType(_TASK_LOOKUP)

    def query_tasks(reqid: int, taskname: str) -> tuple[float, str, list[dict[str, Any]]]:
        task_id = find(reqid, taskname)
        record = {"reqid": reqid, "taskname": taskname, "jeditaskid": task_id}
        return time.time(), "", [record] if task_id else []

    lookup.query_tasks = query_tasks  # type: ignore[attr-defined]
    sys.modules[_TASK_LOOKUP] = lookup
    module("pandaclient").queryPandaMonUtils = lookup


_BEHAVIOUR = (
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
"""What looks for rows that are not locked, and locks them, by module."""

_CLEANING = ("idds.agents.clerk.clerk:Clerk", "idds.agents.transformer.transformer:Transformer")
_POLLER = "idds.agents.carrier.poller:Poller"

_UTILS = "idds.agents.carrier.utils"
_GUARDED = {
    "get_workload_id_transform_id_map": "workload_id_lock",
    "get_input_name_content_id_map": "content_id_lock",
    "whether_to_process_pending_workload_id": "pending_lock",
    "whether_to_update_processing": "update_processing_lock",
}
"""Functions that take a lock and, if they fail, do not give it back."""


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
        core, lock = module(name), threading.Lock()
        for function in functions:
            setattr(core, function, _one_at_a_time(getattr(core, function), lock))


def _keep_locks_at_start(timing: Timing) -> None:
    for name in (*_CLEANING, _POLLER):
        where, _, agent = name.partition(":")
        kind = getattr(module(where), agent)
        kind.clean_locks = _only_stale(kind.clean_locks)


def _only_stale(stock: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(stock)
    def clean(self: Any, force: bool = False) -> None:
        # With force it is the agent's start: what a dead server had locked
        # is unlocked by then, and what is locked is in another agent's hand.
        if not force:
            stock(self)

    return clean


def _given_back(function: Callable[..., Any], lock: Any) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        finally:
            while lock._is_owned():
                lock.release()

    return call


def _give_back_locks(timing: Timing) -> None:
    utils = module(_UTILS)
    for name, lock_name in _GUARDED.items():
        # One that knows who holds it.
        lock = threading.RLock()
        setattr(utils, lock_name, lock)
        setattr(utils, name, _given_back(getattr(utils, name), lock))


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
        "locks that are not given back",
        "functions that look up what a message from PanDA is about take a lock, and keep it if they fail",
        "after one error of the database, no message from PanDA is read any more",
        tuple(f"{_UTILS}:{name}" for pair in _GUARDED.items() for name in pair),
        _give_back_locks,
    ),
)


_CONTENTS = "idds.orm.contents"
_AT_ONCE = 500
"""Ids in a statement; databases limit that."""


def newest_news(
    news: Iterable[Mapping[str, Any]],
    *,
    waiting: Mapping[int, Mapping[str, Any]],
    available: Collection[int],
    good: object,
) -> list[dict[str, Any]]:
    """Choose what of some news about contents is to be stored."""
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
    contents, models = module(_CONTENTS), module("idds.orm.base.models")
    good = module("idds.common.constants").ContentStatus.Available
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

    contents.add_contents_update = module("idds.orm.base.session").transactional_session(add)


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

REPAIRS = (*_BEHAVIOUR, *_LOCKS, *_NEWS)
