"""Repairs of what iDDS does wrong: lost commands, tasks that cannot be found."""

from __future__ import annotations

__all__ = ["REPAIRS", "offer_task_lookup"]

import datetime
import sys
import time
import types
from collections.abc import Callable
from typing import Any

from ..pace import Pace
from .record import Repair, module

_CLERK = "idds.agents.clerk.clerk"
_TASK_LOOKUP = "pandaclient.queryPandaMonUtils"


def _rescue_commands(pace: Pace) -> None:
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
    """Let iDDS look a task up by its name before it submits it.

    Parameters
    ----------
    find : callable
        Tells the id of a task from its request's id and its name.
    """
    lookup = types.ModuleType(_TASK_LOOKUP)

    def query_tasks(reqid: int, taskname: str) -> tuple[float, str, list[dict[str, Any]]]:
        task_id = find(reqid, taskname)
        record = {"reqid": reqid, "taskname": taskname, "jeditaskid": task_id}
        return time.time(), "", [record] if task_id else []

    lookup.query_tasks = query_tasks  # type: ignore[attr-defined]
    sys.modules[_TASK_LOOKUP] = lookup
    module("pandaclient").queryPandaMonUtils = lookup


REPAIRS = (
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
