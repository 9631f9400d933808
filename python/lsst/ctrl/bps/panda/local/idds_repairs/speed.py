"""Repairs of delays that are fixed in iDDS, for a pace that wants less."""

from __future__ import annotations

__all__ = ["REPAIRS", "settle_client", "tune"]

import threading
import time
from typing import Any

from ..pace import Pace
from .record import Repair, Stand, module

_STOCK_TIMER = 10
_STOCK_MESSAGE_AGE = 60


def _send_messages_at_once(pace: Pace) -> None:
    conductor = module("idds.agents.conductor.conductor")
    orm_messages = module("idds.orm.messages")
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

    conductor.core_messages = Stand(core, retrieve_messages=retrieve_messages)
    if pace.message_age < 1:
        orm_messages.add_message = add_message
        conductor.time = Stand(time, sleep=sleep)


def _start_poller_at_once(pace: Pace) -> None:
    poller = module("idds.agents.carrier.poller")
    poller.time = Stand(time, sleep=lambda seconds: None if seconds == 5 else time.sleep(seconds))


def _dependent_processings(request_id: int, transform_id: int) -> list[int]:
    """List the processings whose inputs wait for outputs of a transform."""
    import sqlalchemy as sa

    models = module("idds.orm.base.models")
    waiting, output = models.Content, sa.orm.aliased(models.Content)

    @module("idds.orm.base.session").read_session  # type: ignore[untyped-decorator]
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
    trigger = module("idds.agents.carrier.trigger")
    event_class = module("idds.agents.common.eventbus.event").TriggerProcessingEvent
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

    stock_get = trigger.Trigger.get_processing

    def get(self: Any, *args: Any, **kwargs: Any) -> Any:
        # A processing that is locked, by the poller say, is not found, and
        # the event about it would be lost.
        for attempt in range(10 if kwargs.get("locking") else 1):
            if attempt:
                time.sleep(0.05)
            if found := stock_get(self, *args, **kwargs):
                return found
        return None

    trigger.Trigger.handle_trigger_processing = handle
    trigger.Trigger.get_processing = get


def tune(agent: Any, pace: Pace) -> None:
    """Set what can be set on an agent but not in the configuration."""
    if pace.message_age < 1 and hasattr(agent, "bulk_message_delay"):
        # The configuration takes whole seconds only.
        agent.bulk_message_delay = 0.02


def settle_client(client: Any) -> None:
    """Have a client of iDDS that is set up stay as it is."""
    client.setup_client = lambda *args, **kwargs: None


REPAIRS = (
    Repair(
        "client's configuration",
        "the client that the relay uses reads its configuration files at each call",
        "each call through the relay takes ten milliseconds longer",
        ("idds.client.clientmanager:ClientManager.setup_client",),
        None,
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
        "parents have news; an event about a locked processing is lost",
        "a job starts a second or two later than it could",
        (
            "idds.agents.carrier.trigger:Trigger.handle_trigger_processing",
            "idds.agents.carrier.trigger:Trigger.get_processing",
            "idds.agents.common.eventbus.event:TriggerProcessingEvent",
            "idds.orm.base.models:Content.content_dep_id",
        ),
        _trigger_dependents,
    ),
    Repair(
        "poller's first sleep",
        "the poller sleeps for 5 s when it starts",
        "the first task of the first run is late",
        ("idds.agents.carrier.poller:time",),
        _start_poller_at_once,
    ),
)
