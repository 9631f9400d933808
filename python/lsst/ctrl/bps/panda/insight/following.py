"""Watch a run by PanDA's messages, and ask the servers only now and then.

Messages may be lost, so the servers are asked once in a while all the same,
and whenever something happened that only they can tell about; they also
decide when the run has ended.  While there is no broker, they are asked as
often as without one.
"""

from __future__ import annotations

__all__ = ["MessageSource", "follow"]

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from time import monotonic
from time import sleep as sleep_for
from typing import Protocol

from ..errors import PandaBpsError
from ..wire.tally import RunEvidence
from .messages import LiveCounts, parse_message
from .progress import LEAST_INTERVAL, Looker, Progress

_SAFETY = 10.0
_DISPLAY = 1.0
_FIRST_RETRY = 5.0
_LONGEST_RETRY = 300.0


class MessageSource(Protocol):
    """Gives messages; `~.broker.Subscription` does."""

    def open(self) -> None:
        """Connect."""

    def read(self, seconds: float) -> list[str]:
        """Wait for messages; all that are there."""

    def close(self) -> None:
        """Leave."""


@dataclass(slots=True)
class _Broker:
    """The broker, which may be away."""

    make: Callable[[], MessageSource]
    name: str
    interval: float
    source: MessageSource | None = None
    failures: int = 0
    retry_at: float = 0.0
    words: str = ""

    def connect(self, now: float) -> bool:
        """Try to subscribe if it is time; tell whether that is new."""
        if self.source is not None or now < self.retry_at:
            return False
        source = self.make()
        try:
            source.open()
        except PandaBpsError as error:
            self._lost(error, now)
            return False
        self.source, self.failures = source, 0
        self.words = f"following PanDA's messages from {self.name}"
        return True

    def read(self, seconds: float, now: float) -> list[str]:
        """Wait for messages; nothing if the broker went away."""
        assert self.source is not None
        try:
            return self.source.read(seconds)
        except PandaBpsError as error:
            self.close()
            self._lost(error, now)
            return []

    def close(self) -> None:
        """Leave the broker."""
        source, self.source = self.source, None
        if source is not None:
            source.close()

    def _lost(self, error: PandaBpsError, now: float) -> None:
        text = str(getattr(error, "message", error)).rstrip(".")
        self.words = f"{text}; asking the servers every {self.interval:.0f} s instead"
        self.retry_at = now + min(_LONGEST_RETRY, _FIRST_RETRY * 2.0**self.failures)
        self.failures += 1


def follow(
    look: Callable[[], RunEvidence],
    subscribe: Callable[[], MessageSource],
    *,
    name: str = "the broker",
    look_closer: Callable[[], RunEvidence] | None = None,
    interval: float = 30.0,
    sleep: Callable[[float], None] = sleep_for,
    clock: Callable[[], float] = monotonic,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Iterator[Progress]:
    """Watch a run until it has ended.

    Parameters
    ----------
    look : `~collections.abc.Callable`
        Asks the servers for the run's state.
    subscribe : `~collections.abc.Callable`
        Makes what gives messages, not yet open.
    name : `str`, optional
        Name of the broker.
    look_closer : `~collections.abc.Callable`, optional
        Asks for errors and for running jobs, too.
    interval : `float`, optional
        Seconds between two looks while there are no messages, at least 5;
        with messages there is one in ten times that, and sooner when a job
        failed or a task ended.
    sleep, clock, now : `~collections.abc.Callable`, optional
        Wait for a number of seconds; give seconds; give the time.

    Yields
    ------
    progress : `Progress`
        One after each look, and one a second at most after messages that
        change something.

    Raises
    ------
    PandaBpsError
        Raised if ten looks in a row failed, or the run is not there.
    """
    watcher = _Follower(
        Looker(look, look_closer, now),
        _Broker(subscribe, name, max(LEAST_INTERVAL, interval)),
        sleep=sleep, clock=clock, now=now,
    )  # fmt: skip
    try:
        yield from watcher.run()
    finally:
        watcher.broker.close()


class _Follower:
    """The state of a watch by messages."""

    def __init__(
        self,
        looker: Looker,
        broker: _Broker,
        *,
        sleep: Callable[[float], None],
        clock: Callable[[], float],
        now: Callable[[], datetime],
    ) -> None:
        self._looker = looker
        self.broker = broker
        self._sleep = sleep
        self._clock = clock
        self._now = now
        self._counts = LiveCounts()
        self._last: Progress | None = None
        self._looked_at = 0.0

    def run(self) -> Iterator[Progress]:
        """Watch."""
        while True:
            # Messages first, so that none is missed between the look and them.
            self.broker.connect(self._clock())
            progress = self._looker.look(closer=self.broker.source is not None)
            self._looked_at = self._clock()
            if progress is not None:
                assert self._looker.evidence is not None
                self._counts.rebase(self._looker.evidence)
                self._last = progress
                yield self._told(progress)
                if progress.ended:
                    return
            yield from self._until_next_look()

    def _told(self, progress: Progress) -> Progress:
        progress = replace(progress, messages=self.broker.words)
        if progress.ended or self.broker.source is None:
            return progress
        return self._looker.with_estimate(self._counts.apply(progress))

    def _until_next_look(self) -> Iterator[Progress]:
        """Take messages until it is time for a look."""
        shown = self._clock()
        changed = False
        words = self.broker.words
        while (rest := self._next_look() - self._clock()) > 0:
            if self.broker.source is None:
                self._sleep(max(0.0, min(rest, self.broker.retry_at - self._clock())))
                if self.broker.connect(self._clock()):
                    return  # What happened meanwhile, no message tells.
            else:
                wait = min(rest, _DISPLAY) if changed else rest
                for body in self.broker.read(wait, self._clock()):
                    message = parse_message(body)
                    changed |= message is not None and self._counts.take(message)
            due = changed and self._clock() - shown >= _DISPLAY
            if self._last is not None and (due or self.broker.words != words):
                shown, changed, words = self._clock(), False, self.broker.words
                yield self._told(replace(self._last, moment=self._now()))

    def _next_look(self) -> float:
        """Tell when to look at the servers again."""
        interval = self.broker.interval
        if self._looker.failures:
            return self._looked_at + self._looker.delay(interval)
        if self.broker.source is None or self._last is None:
            return self._looked_at + interval
        live = self._counts.apply(self._last)
        if self._counts.wants_look or live.done >= live.jobs:
            return self._looked_at + interval
        return self._looked_at + _SAFETY * interval
