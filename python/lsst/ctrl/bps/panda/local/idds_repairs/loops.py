"""Repairs of the loops of iDDS's agents, which look for work all the time and
not when there is some.
"""

from __future__ import annotations

__all__ = ["BELL", "REPAIRS", "Bell", "BelledEvent"]

import threading
import time
from typing import Any

from ..pace import Pace
from .record import Repair, module

_SCHEDULER = "idds.agents.common.timerscheduler:TimerScheduler"
_POOL = "idds.agents.common.timerscheduler:IDDSThreadPoolExecutor"
_STOCK_TIMER = 10

_SHORTEST = 0.02
"""Seconds between two looks of a loop at least."""

_LONGEST = 0.25
"""Seconds between two looks of a loop without a reason: timers are exact to
that, and nothing depends on the bell being rung."""


class Bell:
    """Wakes all loops: there is an event, or a worker for one has become
    free.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._rings = 0
        self._heard = threading.local()

    def ring(self, *_: object) -> None:
        """Wake everybody."""
        with self._condition:
            self._rings += 1
            self._condition.notify_all()

    def wait(self, timeout: float) -> None:
        """Wait until the bell has been rung since this thread heard it
        last.
        """
        heard = getattr(self._heard, "rings", -1)
        with self._condition:
            if self._rings == heard:
                self._condition.wait(timeout)
            self._heard.rings = self._rings


BELL = Bell()
"""The bell of all agents in this process."""


class BelledEvent(threading.Event):
    """The event that ends a loop, whose `wait` ends with the bell too.

    Parameters
    ----------
    bell : `Bell`
        The bell.
    """

    def __init__(self, bell: Bell) -> None:
        super().__init__()
        self._bell = bell

    def set(self) -> None:
        """End the loop, now."""
        super().set()
        self._bell.ring()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait, at most for a moment."""
        if timeout is None or timeout > _LONGEST:
            return super().wait(timeout)
        if not self.is_set():
            time.sleep(_SHORTEST)
            self._bell.wait(_LONGEST - _SHORTEST)
        return self.is_set()


def _calm_loops(pace: Pace) -> None:
    scheduler = module(_SCHEDULER.partition(":")[0])
    bus = module("idds.agents.common.eventbus.eventbus").EventBus
    stock, stock_submit = scheduler.TimerScheduler.__init__, scheduler.IDDSThreadPoolExecutor.submit
    stock_publish = bus.publish_event

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        self.graceful_stop = BelledEvent(BELL)

    def submit(self: Any, *args: Any, **kwargs: Any) -> Any:
        future = stock_submit(self, *args, **kwargs)
        if not self._thread_name_prefix.endswith("_Timer"):
            # An event may be waiting for the worker.
            future.add_done_callback(BELL.ring)
        return future

    def publish(self: Any, event: Any) -> Any:
        answer = stock_publish(self, event)
        BELL.ring()
        return answer

    scheduler.TimerScheduler.__init__ = init
    scheduler.IDDSThreadPoolExecutor.submit = submit
    bus.publish_event = publish


def _set_timers(pace: Pace) -> None:
    scheduler = module(_SCHEDULER.partition(":")[0]).TimerScheduler
    stock = scheduler.create_task

    def create_task(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("delay_time", _STOCK_TIMER) == _STOCK_TIMER:
            kwargs["delay_time"] = pace.timer
        return stock(self, *args, **kwargs)

    scheduler.create_task = create_task


REPAIRS = (
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
