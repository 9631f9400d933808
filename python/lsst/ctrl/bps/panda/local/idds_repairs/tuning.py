"""Repairs of iDDS's delays and of its polls."""

from __future__ import annotations

__all__ = ["LOOP_WAKER", "LoopWaker", "NEWS", "News", "StopEvent", "REPAIRS", "settle_client", "tune"]

import threading
import time
from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from ..settings import Timing
from . import Overlay, Repair, idds_module, send_event

_STOCK_TIMER = 10
_STOCK_MESSAGE_AGE = 60
_MESSAGE_AGE = 0.02
"""Seconds after which a message is sent, when runs are to go on at once."""


def _send_messages_at_once(timing: Timing) -> None:
    conductor = idds_module("idds.agents.conductor.conductor")
    orm_messages = idds_module("idds.orm.messages")
    core = conductor.core_messages
    added = threading.Event()
    stock_add = orm_messages.add_message

    def add_message(*args: Any, session: Any = None, **kwargs: Any) -> Any:
        answer = stock_add(*args, session=session, **kwargs)
        if session is None:
            added.set()
        else:
            # A scoped session is called for the session itself.
            sa.event.listen(session(), "after_commit", lambda _: added.set(), once=True)
        return answer

    def retrieve_messages(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("delay") == _STOCK_MESSAGE_AGE:
            kwargs["delay"] = timing.message_age
        return core.retrieve_messages(*args, **kwargs)

    looks = [0]

    def sleep(seconds: float) -> None:
        if added.wait(0.05 if looks[0] else seconds):
            added.clear()
            # One look for the message, which has to have its age, and one to note that it was sent.
            looks[0] = 2
            time.sleep(1.5 * _MESSAGE_AGE)
        else:
            looks[0] = max(looks[0] - 1, 0)

    conductor.core_messages = Overlay(core, retrieve_messages=retrieve_messages)
    if timing.message_age < 1:
        orm_messages.add_message = add_message
        conductor.time = Overlay(time, sleep=sleep)


def _start_poller_at_once(timing: Timing) -> None:
    poller = idds_module("idds.agents.carrier.poller")
    poller.time = Overlay(time, sleep=lambda seconds: None if seconds == 5 else time.sleep(seconds))


def _dependent_processings(request_id: int, transform_id: int) -> list[int]:
    """List the processings with inputs that wait for outputs of a transform which have come."""
    models = idds_module("idds.orm.base.models")
    status = idds_module("idds.common.constants").ContentStatus
    final = (status.Available, status.FakeAvailable, status.FinalFailed, status.Missing)
    waiting, output = models.Content, sa.orm.aliased(models.Content)

    @idds_module("idds.orm.base.session").read_session  # type: ignore[untyped-decorator]
    def look(session: Any = None) -> list[int]:
        transforms = (
            session.query(waiting.transform_id)
            .join(output, waiting.content_dep_id == output.content_id)
            .filter(output.request_id == request_id, output.transform_id == transform_id)
            .filter(waiting.request_id == request_id, waiting.transform_id != transform_id)
            .filter(output.substatus.in_(final), waiting.substatus != output.substatus)
            .distinct()
        )
        ids = [row[0] for row in transforms]
        found = session.query(models.Processing.processing_id).filter(
            models.Processing.transform_id.in_(ids), models.Processing.workload_id.isnot(None)
        )
        return [row[0] for row in found] if ids else []

    return list(look())


def _trigger_dependents(timing: Timing) -> None:
    if timing.timer >= _STOCK_TIMER:
        return
    trigger = idds_module("idds.agents.carrier.trigger")
    stock = trigger.Trigger.handle_trigger_processing

    def handle(self: Any, processing: Any, *args: Any, **kwargs: Any) -> Any:
        answer = stock(self, processing, *args, **kwargs)
        if answer.get("has_updates"):
            for each in _dependent_processings(processing["request_id"], processing["transform_id"]):
                send_event("TriggerProcessingEvent", processing_id=each)
        return answer

    trigger.Trigger.handle_trigger_processing = handle


def _start_requests_at_once(timing: Timing) -> None:
    if timing.timer >= _STOCK_TIMER:
        return
    requests = idds_module("idds.rest.v1.requests")
    stock = requests.add_request

    def add_request(*args: Any, **kwargs: Any) -> Any:
        request_id = stock(*args, **kwargs)
        send_event("NewRequestEvent", request_id=request_id)
        return request_id

    requests.add_request = add_request


def _gather_counts(timing: Timing) -> None:
    if timing.timer >= _STOCK_TIMER:
        return
    bus = idds_module("idds.agents.common.eventbus.eventbus").EventBus
    stock = bus.publish_event
    gathered: set[int] = set()

    def publish(self: Any, event: Any) -> Any:
        if type(event).__name__ != "SyncProcessingEvent":
            return stock(self, event)
        if event._processing_id not in gathered:
            timer = threading.Timer(_COUNT_PERIOD, pass_on, (self, event))
            timer.daemon = True
            timer.start()
            # Not before, since there may be no more threads.
            gathered.add(event._processing_id)
        return None

    def pass_on(self: Any, event: Any) -> None:
        gathered.discard(event._processing_id)
        stock(self, event)

    bus.publish_event = publish


_COUNT_PERIOD = 1.0
"""Seconds between two counts of the jobs of a task, at the least.  At its end
they are counted in any case."""


def _wait_for_locks(timing: Timing) -> None:
    if timing.timer >= _STOCK_TIMER:
        return
    for module, agent, name in _AGENTS:
        owner = getattr(idds_module(module), agent)
        setattr(owner, name, _patient(getattr(owner, name)))


def _patient(stock: Any) -> Any:
    def get(self: Any, *args: Any, **kwargs: Any) -> Any:
        # A row that is not in the status asked for is not found either, and waiting would not help.
        for attempt in range(10 if kwargs.get("locking") and not kwargs.get("status") else 1):
            if attempt:
                time.sleep(0.05)
            if found := stock(self, *args, **kwargs):
                return found
        return None

    return get


_AGENTS = (
    ("idds.agents.carrier.poller", "Poller", "get_processing"),
    ("idds.agents.transformer.transformer", "Transformer", "get_transform"),
    ("idds.agents.clerk.clerk", "Clerk", "get_request"),
)
"""Agents that poll, and with which method each reads the row that an event is
about.  Submitter, trigger and finisher inherit from the poller."""


def tune(agent: Any, timing: Timing) -> None:
    """Set the options of an agent that the configuration cannot set."""
    if timing.message_age < 1 and hasattr(agent, "bulk_message_delay"):
        # The configuration takes whole seconds only.
        agent.bulk_message_delay = _MESSAGE_AGE


def settle_client(client: Any) -> None:
    """Stop a client of iDDS that is set up from reading its configuration again."""
    client.setup_client = lambda *args, **kwargs: None


_SPEED = (
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
        "parents have news",
        "a job starts a second or two later than it could",
        (
            "idds.agents.carrier.trigger:Trigger.handle_trigger_processing",
            "idds.common.event:TriggerProcessingEvent",
            "idds.orm.base.models:Content.content_dep_id",
            "idds.orm.base.models:Content.substatus",
        ),
        _trigger_dependents,
    ),
    Repair(
        "new requests wait for the clerk",
        "a request that has come is found when the clerk looks for new ones",
        "a run starts a second later than it could",
        ("idds.rest.v1.requests:add_request", "idds.common.event:NewRequestEvent"),
        _start_requests_at_once,
    ),
    Repair(
        "counts after each message",
        "the jobs of a task are counted after each message about one of them",
        "a sixth of iDDS's CPU",
        (
            "idds.agents.common.eventbus.eventbus:EventBus.publish_event",
            "idds.common.event:SyncProcessingEvent",
        ),
        _gather_counts,
    ),
    Repair(
        "events about locked rows",
        "an event about a row that another agent has locked, for instance the poller, is lost",
        "what the event tells is found at the next poll only",
        tuple(f"{module}:{agent}.{name}" for module, agent, name in _AGENTS),
        _wait_for_locks,
    ),
    Repair(
        "poller's first sleep",
        "the poller sleeps for 5 s when it starts",
        "the first task of the first run is late",
        ("idds.agents.carrier.poller:time",),
        _start_poller_at_once,
    ),
)


_SCHEDULER = "idds.agents.common.timerscheduler:TimerScheduler"
_POOL = "idds.agents.common.timerscheduler:IDDSThreadPoolExecutor"

_SHORTEST = 0.02
"""Shortest wait of a loop, seconds."""

_LONGEST = 0.25
"""Longest wait of a loop, seconds: timers are exact to that, and no work depends
on the loops being woken."""


class LoopWaker:
    """Wakes the loops of all agents, when there is an event or a worker has become free."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._calls = 0
        self._seen = threading.local()

    def wake_all(self, *_: object) -> None:
        """Wake all loops."""
        with self._condition:
            self._calls += 1
            self._condition.notify_all()

    def wait(self, timeout: float) -> None:
        """Wait for a call of `wake_all` since this thread's last wait."""
        seen = getattr(self._seen, "calls", -1)
        with self._condition:
            if self._calls == seen:
                self._condition.wait(timeout)
            self._seen.calls = self._calls


LOOP_WAKER = LoopWaker()
"""The waker of all agents in this process."""


class StopEvent(threading.Event):
    """The event that ends a loop, whose `wait` also ends when the loops are woken."""

    def __init__(self, waker: LoopWaker) -> None:
        super().__init__()
        self._waker = waker

    def set(self) -> None:
        """End the loop now."""
        super().set()
        self._waker.wake_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait, for a moment at most."""
        if timeout is None or timeout > _LONGEST:
            return super().wait(timeout)
        if not self.is_set():
            time.sleep(_SHORTEST)
            self._waker.wait(_LONGEST - _SHORTEST)
        return self.is_set()


def _calm_loops(timing: Timing) -> None:
    scheduler = idds_module(_SCHEDULER.partition(":")[0])
    bus = idds_module("idds.agents.common.eventbus.eventbus").EventBus
    stock, stock_submit = scheduler.TimerScheduler.__init__, scheduler.IDDSThreadPoolExecutor.submit
    stock_publish = bus.publish_event

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        self.graceful_stop = StopEvent(LOOP_WAKER)

    def submit(self: Any, *args: Any, **kwargs: Any) -> Any:
        future = stock_submit(self, *args, **kwargs)
        if not self._thread_name_prefix.endswith("_Timer"):
            # An event may be waiting for the worker.
            future.add_done_callback(LOOP_WAKER.wake_all)
        return future

    def publish(self: Any, event: Any) -> Any:
        answer = stock_publish(self, event)
        LOOP_WAKER.wake_all()
        return answer

    scheduler.TimerScheduler.__init__ = init
    scheduler.IDDSThreadPoolExecutor.submit = submit
    bus.publish_event = publish


def _set_timers(timing: Timing) -> None:
    scheduler = idds_module(_SCHEDULER.partition(":")[0]).TimerScheduler
    stock = scheduler.create_task

    def create_task(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("delay_time", _STOCK_TIMER) == _STOCK_TIMER:
            kwargs["delay_time"] = timing.timer
        return stock(self, *args, **kwargs)

    scheduler.create_task = create_task


_LOOPS = (
    Repair(
        "busy loops",
        "main loops wait for 0.01 ms",
        "a whole core is used when nothing runs",
        (
            f"{_SCHEDULER}.__init__",
            f"{_POOL}.submit",
            "idds.agents.common.eventbus.eventbus:EventBus.publish_event",
        ),
        _calm_loops,
    ),
    Repair(
        "timers",
        "work is looked for every 10 s, which is not configurable",
        "each level of a workflow takes ten seconds longer",
        (f"{_SCHEDULER}.create_task",),
        _set_timers,
    ),
)


_LARGE_TASK = 300

_QUIET_POLL = 10
"""Longest time between two polls of what has no news, seconds; iDDS's own period."""

_NEWS_FOR = 1.5
"""Seconds for which a task and its request are polled often after a message about
them.  Events carry the change on; the polls find it if an event was lost."""


class News:
    """Has iDDS look at tasks that have news in PanDA at once, and remembers them and their requests, which
    are polled often; all others are polled seldom.
    """

    def __init__(self) -> None:
        self._tasks: dict[int, float] = {}
        self._requests: dict[int, float] = {}
        self._shortest = 0

    def begin(self, shortest: int) -> None:
        """Have what has news polled after so many seconds."""
        self._shortest = shortest

    def note(self, bodies: Collection[Mapping[str, Any]]) -> None:
        """Note messages, whether they reach iDDS or not, and have their tasks looked at.

        For a job that finishes, the message alone is enough for iDDS.
        """
        if not self._shortest:
            return
        told = [each for each in bodies if each["msg_type"] == "task_status" or each["status"] in _NOT_TOLD]
        now = time.monotonic()
        for seen in (self._tasks, self._requests):
            for key in [key for key, at in seen.items() if now - at > _NEWS_FOR]:
                del seen[key]
        new = {int(each["taskid"]) for each in told}
        self._tasks |= dict.fromkeys(new, now)
        found = _poll_soon(new, timedelta(seconds=self._shortest)) if new else {}
        self._requests |= dict.fromkeys(found.values(), now)
        for processing_id in found:
            send_event("UpdateProcessingEvent", processing_id=processing_id)

    def period(self, row: Mapping[str, Any]) -> int:
        """Return the seconds until a request, transform or processing is polled again."""
        now = time.monotonic()
        latest = max(
            self._tasks.get(row.get("workload_id") or 0, 0.0),
            0.0 if "transform_id" in row else self._requests.get(row["request_id"], 0.0),
        )
        before = row["update_poll_period"]
        if now - latest < _NEWS_FOR or row["status"].name not in _AT_WORK or not before:
            return self._shortest
        return max(self._shortest, min(2 * int(before.total_seconds()), _QUIET_POLL))


NEWS = News()
"""What has news in this process."""

_NOT_TOLD = ("failed", "closed", "cancelled")
"""States of jobs that iDDS finds out by a poll only."""

_AT_WORK = ("Transforming", "Submitted", "Running", "Triggering", "Synchronizing")
"""States of requests, transforms and processings that change by news only."""


def _poll_soon(task_ids: Collection[int], period: timedelta) -> dict[int, int]:
    """Shorten the polling periods of what belongs to tasks; returns their processings with the requests."""
    models = idds_module("idds.orm.base.models")

    @idds_module("idds.orm.base.session").transactional_session  # type: ignore[untyped-decorator]
    def change(session: Any = None) -> dict[int, int]:
        processing = models.Processing
        columns = (processing.processing_id, processing.request_id)
        found = {
            row[0]: row[1] for row in session.query(*columns).filter(processing.workload_id.in_(task_ids))
        }
        for model, key, ids in (
            (processing, processing.workload_id, task_ids),
            (models.Transform, models.Transform.workload_id, task_ids),
            (models.Request, models.Request.request_id, set(found.values())),
        ):
            slow = session.query(model).filter(key.in_(ids), model.update_poll_period > period)
            slow.update({"update_poll_period": period}, synchronize_session=False)
        return found

    return dict(change())


def _poll_by_news(timing: Timing) -> None:
    quick = timing.timer < _STOCK_TIMER
    if quick:
        NEWS.begin(timing.poll)
    for module, agent, _ in _AGENTS:
        owner = getattr(idds_module(module), agent)
        owner.load_poll_period = _make_period(owner.load_poll_period, timing.poll, quick)


def _make_period(stock: Any, poll: int, quick: bool) -> Any:
    def load(self: Any, row: Any, parameters: Any, *args: Any, **kwargs: Any) -> Any:
        answer = stock(self, row, parameters, *args, **kwargs)
        period = NEWS.period(row) if quick else poll
        inner = (row.get("processing_metadata") or {}).get("processing")
        size = getattr(getattr(inner, "work", None), "num_inputs", None) or 0
        if size > _LARGE_TASK:
            period = max(period, min(size // _LARGE_TASK, 30))
        if quick or period > poll:
            answer["update_poll_period"] = period
        return answer

    return load


_POLLS = (
    Repair(
        "polls of what has no news",
        "requests, transforms and processings are polled at a fixed period, with all jobs of a task; "
        "messages tell most of it before",
        "a request of ten tasks takes a quarter of a core and more for polls that find nothing, a task of "
        "thousands of jobs a whole one",
        (
            *(f"{module}:{agent}.load_poll_period" for module, agent, _ in _AGENTS),
            *(
                f"idds.orm.base.models:{name}.update_poll_period"
                for name in ("Request", "Transform", "Processing")
            ),
        ),
        _poll_by_news,
    ),
)

REPAIRS = (*_SPEED, *_LOOPS, *_POLLS)
