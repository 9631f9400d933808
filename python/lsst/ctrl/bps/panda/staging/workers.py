"""Many transfers at a time: threads that cannot hold a program up, an
allowance of time for each transfer, bounded retries with back-off.
"""

from __future__ import annotations

__all__ = ["Outcome", "Retries", "run_all"]

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from .causes import describe_cause, is_permanent

_LOG = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_LONGEST_WAIT = 1.0


@dataclass(frozen=True, slots=True)
class Outcome(Generic[_Item, _Result]):
    """What became of one item: ``result``, or ``error`` if that is set."""

    item: _Item
    result: _Result | None = None
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Retries:
    """How often, and how long, something is tried again.

    Pauses double from half a second to at most 30 s, with a jitter of up to
    a quarter, so that many clients of a failing store do not return at once.
    """

    count: int = 3
    """Further attempts after the first."""

    sleep: Callable[[float], None] = time.sleep

    def run(self, action: Callable[[], _Result], *, what: str) -> _Result:
        """Call until it succeeds, the attempts are used up, or trying again
        cannot help.

        Parameters
        ----------
        action : `~collections.abc.Callable`
            What to call.
        what : `str`
            What it does, for the log.

        Returns
        -------
        result
            What the call returned.

        Raises
        ------
        Exception
            Raised by the last attempt.
        """
        for attempt in range(self.count):
            try:
                return action()
            except Exception as error:
                if is_permanent(error):
                    raise
                pause = min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE) * random.uniform(1.0, 1.25)
                _LOG.info("%s failed, trying again in %.1f s: %s", what, pause, describe_cause(error))
                self.sleep(pause)
        return action()


class _Crew(Generic[_Item, _Result]):
    """Threads at work on a list of items."""

    def __init__(
        self, items: Sequence[_Item], function: Callable[[_Item], _Result], clock: Callable[[], float]
    ) -> None:
        self._function = function
        self._clock = clock
        self._waiting: queue.SimpleQueue[tuple[int, _Item]] = queue.SimpleQueue()
        for entry in enumerate(items):
            self._waiting.put(entry)
        self.finished: queue.SimpleQueue[tuple[int, Outcome[_Item, _Result]]] = queue.SimpleQueue()
        self.started: dict[int, float] = {}

    def add_worker(self) -> None:
        # Not an executor of the standard library: at the end of the program
        # it would wait for a transfer that hangs for ever.
        threading.Thread(target=self._work, name="staging", daemon=True).start()

    def _work(self) -> None:
        while True:
            try:
                number, item = self._waiting.get_nowait()
            except queue.Empty:
                return
            self.started[number] = self._clock()
            try:
                outcome: Outcome[_Item, _Result] = Outcome(item, result=self._function(item))
            except BaseException as error:
                outcome = Outcome(item, error=error)
            del self.started[number]
            self.finished.put((number, outcome))

    def stop(self) -> None:
        """Let nothing more begin."""
        while True:
            try:
                self._waiting.get_nowait()
            except queue.Empty:
                return


def run_all(
    items: Sequence[_Item],
    function: Callable[[_Item], _Result],
    *,
    workers: int,
    allowance: Callable[[_Item], float],
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Outcome[_Item, _Result], None, None]:
    """Call a function for many items, several at a time.

    Parameters
    ----------
    items : `~collections.abc.Sequence`
        What to work on.
    function : `~collections.abc.Callable`
        Called with each item, in a thread.
    workers : `int`
        Most items at a time.
    allowance : `~collections.abc.Callable`
        Seconds that an item may take; one that takes longer is given up, and
        its thread left behind.
    clock : `~collections.abc.Callable`, optional
        Gives the time in seconds.

    Yields
    ------
    outcome : `Outcome`
        One for each item, in the order in which they end.  If the caller
        stops asking, no further item is begun.
    """
    crew = _Crew[_Item, _Result](items, function, clock)
    pending = set(range(len(items)))
    for _ in range(min(workers, len(items))):
        crew.add_worker()
    try:
        while pending:
            for number, outcome in _next_outcomes(crew, pending, items, allowance, clock):
                pending.discard(number)
                yield outcome
    finally:
        crew.stop()


def _next_outcomes(
    crew: _Crew[_Item, _Result],
    pending: set[int],
    items: Sequence[_Item],
    allowance: Callable[[_Item], float],
    clock: Callable[[], float],
) -> list[tuple[int, Outcome[_Item, _Result]]]:
    running = [(number, begun) for number, begun in list(crew.started.items()) if number in pending]
    soonest = min((begun + allowance(items[number]) for number, begun in running), default=float("inf"))
    # Workers may begin something while this waits, hence the limit.
    wait = min(max(soonest - clock(), 0.0), _LONGEST_WAIT)
    try:
        number, outcome = crew.finished.get(timeout=wait)
    except queue.Empty:
        return _give_up(crew, running, items, allowance, clock())
    # One that was given up before may end after all: nobody waits for it.
    return [(number, outcome)] if number in pending else []


def _give_up(
    crew: _Crew[_Item, _Result],
    running: Sequence[tuple[int, float]],
    items: Sequence[_Item],
    allowance: Callable[[_Item], float],
    now: float,
) -> list[tuple[int, Outcome[_Item, _Result]]]:
    given_up: list[tuple[int, Outcome[_Item, _Result]]] = []
    for number, begun in running:
        allowed = allowance(items[number])
        if now - begun >= allowed:
            error = TimeoutError(f"not done within {allowed:g} s; the store is slow or does not answer")
            given_up.append((number, Outcome(items[number], error=error)))
            crew.add_worker()
    return given_up
