"""Repairs of how iDDS locks what its agents work on: two of them must never
have the same request, transform or processing in hand, and no lock may stay
behind.
"""

from __future__ import annotations

__all__ = ["REPAIRS"]

import functools
import threading
from collections.abc import Callable
from typing import Any

from ..pace import Pace
from .record import Repair, module

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


def _take_one_at_a_time(pace: Pace) -> None:
    for name, functions in _TAKING.items():
        core, lock = module(name), threading.Lock()
        for function in functions:
            setattr(core, function, _one_at_a_time(getattr(core, function), lock))


def _keep_locks_at_start(pace: Pace) -> None:
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


def _give_back_locks(pace: Pace) -> None:
    utils = module(_UTILS)
    for name, lock_name in _GUARDED.items():
        # One that knows who holds it.
        lock = threading.RLock()
        setattr(utils, lock_name, lock)
        setattr(utils, name, _given_back(getattr(utils, name), lock))


REPAIRS = (
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
