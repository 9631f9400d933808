"""Repairs of commands and builds that iDDS loses, does twice or undoes."""

from __future__ import annotations

__all__ = ["REPAIRS"]

import datetime
import functools
import time
from collections.abc import Mapping
from typing import Any

from ..settings import Timing
from . import Overlay, Repair, idds_module, send_event

_CLERK = "idds.agents.clerk.clerk"


def _rescue_commands(timing: Timing) -> None:
    clerk = idds_module(_CLERK)
    models = idds_module("idds.orm.base.models")
    constants = idds_module("idds.common.constants")

    @idds_module("idds.orm.base.session").transactional_session  # type: ignore[untyped-decorator]
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


def _handle_commands_once(timing: Timing) -> None:
    clerk = idds_module(_CLERK)
    table = idds_module("idds.orm.base.models").Command
    status = idds_module("idds.common.constants").CommandStatus
    stock = clerk.core_commands

    @idds_module("idds.orm.base.session").transactional_session  # type: ignore[untyped-decorator]
    def update(commands: list[dict[str, Any]], session: Any = None) -> None:
        begun = [each for each in commands if each.get("status") == status.Processing]
        for each in begun:
            open_ = session.query(table).filter(
                table.cmd_id == each["cmd_id"], table.status.in_([status.New, status.Processing])
            )
            open_.update(each, synchronize_session=False)
        if others := [each for each in commands if each not in begun]:
            stock.update_commands(others, session=session)

    clerk.core_commands = Overlay(stock, update_commands=update)


def _abort_what_comes_later(timing: Timing) -> None:
    models = idds_module("idds.orm.base.models")
    constants = idds_module("idds.common.constants")
    kinds = constants.CommandType

    def aborted(request_id: int, session: Any) -> bool:
        command = models.Command
        commands = session.query(command.cmd_type).filter(command.request_id == request_id)
        latest = commands.order_by(command.cmd_id.desc()).first()
        return latest is not None and latest[0] == kinds.AbortRequest

    def wrap(stock: Any, abort: Any) -> Any:
        @idds_module("idds.orm.base.session").transactional_session  # type: ignore[untyped-decorator]
        def add(request_id: int, *args: Any, session: Any = None, **kwargs: Any) -> Any:
            command = {"command": abort} if aborted(request_id, session) else {}
            return stock(request_id, *args, session=session, **kwargs, **command)

        return add

    for name, abort in (("transform", kinds.AbortTransform), ("processing", kinds.AbortProcessing)):
        module = idds_module(f"idds.orm.{name}s")
        setattr(module, f"add_{name}", wrap(getattr(module, f"add_{name}"), abort))

    @idds_module("idds.orm.base.session").read_session  # type: ignore[untyped-decorator]
    def find_waiting(session: Any = None) -> list[int]:
        table = models.Processing
        waiting = session.query(table.processing_id).filter(
            table.status == constants.ProcessingStatus.New, table.command == kinds.AbortProcessing
        )
        return [row[0] for row in waiting]

    clerk = idds_module(_CLERK).Clerk
    stock_select = clerk.get_operation_requests

    def select(self: Any) -> Any:
        for processing_id in find_waiting():
            send_event("AbortProcessingEvent", processing_id=processing_id)
        return stock_select(self)

    clerk.get_operation_requests = select


def _keep_built(timing: Timing) -> None:
    requests = idds_module("idds.orm.requests")
    built = idds_module("idds.common.constants").RequestStatus.Built
    stock = requests.update_request

    class Changes(dict[str, Any]):
        """What is set in a row; a status that is set afterwards, as the row has another one, is that one."""

        def __setitem__(self, name: str, value: Any) -> None:
            super().__setitem__(name, built if name == "status" else value)

    @functools.wraps(stock)
    def update(request_id: int, parameters: Mapping[str, Any], *args: Any, **keywords: Any) -> Any:
        return stock(request_id, Changes(parameters), *args, **keywords)

    requests.update_request = update


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
        "commands done again",
        "the clerk notes that a command has begun after it was handed to a worker, and several of them at "
        "once; the worker may have noted its end before",
        "abort and retry are done again every few seconds: a run that was cancelled and then restarted is "
        "cancelled again",
        (f"{_CLERK}:core_commands.update_commands", "idds.orm.base.models:Command.status"),
        _handle_commands_once,
    ),
    Repair(
        "commands that come early",
        "a command to abort a request reaches the transforms that the clerk knows to have begun, and the "
        "processings that these know; what is made at that moment or afterwards only has the command noted, "
        "which is read when its task has been submitted: one that waits for other tasks never is",
        "a run that is cancelled just after its submission runs to its end, or stays RUNNING for ever",
        (
            "idds.orm.transforms:add_transform",
            "idds.orm.processings:add_processing",
            "idds.orm.base.models:Command.cmd_type",
            "idds.orm.base.models:Processing.command",
            "idds.common.constants:CommandType.AbortProcessing",
            "idds.common.event:AbortProcessingEvent",
            f"{_CLERK}:Clerk.get_operation_requests",
        ),
        _abort_what_comes_later,
    ),
    Repair(
        "builds that are done",
        "if a build task brings its workflow while the clerk works on the request, the clerk finds the "
        "status Built and sets it back to Building",
        "the request stays Building for ever, with a KeyError 'build_workflow' in the log at each look",
        ("idds.orm.requests:update_request",),
        _keep_built,
    ),
)
"""The repairs of this module."""
