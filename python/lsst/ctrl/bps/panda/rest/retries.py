"""How long to wait for a server, and when to send a request again: pure decisions, apart from the loop that
waits.

*Waiting.*  Somebody sits before a command, so a server that hangs must not hold it.  What counts is silence,
not length: `Patience` is used up second for second, and each `BYTES_A_SECOND` that move, in either direction,
give one second back.  So a server that says nothing, or a byte now and then, is left when the patience is
used up; a reply of many megabytes that keeps coming never is.

* A question may wait for 45 s, so that a command ends within a minute with its start.  All questions of a
  command share a `WaitingBudget`: what failed attempts and pauses took is missing for the next, and when
  nothing is left, nothing is asked.  It comes back as time passes, for programs that go on for hours.
* What a submission sends may wait for 620 s, because PanDA's relay waits 600 s for iDDS, and giving up before
  leaves open whether the run is there.
* An hour, or 512 MiB, is the end of any reply, however fast it comes.  A report of two million jobs has some
  hundred megabytes.

*Repeating.*  Only what is safe is sent again: a request that changes nothing, or one that certainly had no
effect.
"""

__all__ = [
    "BYTES_A_SECOND",
    "LOGIN_RETRY",
    "LOG_RETRY",
    "MAX_REPLY",
    "PING_RETRY",
    "PING_TIMEOUTS",
    "SUBMISSION_TIMEOUTS",
    "Patience",
    "RetryPolicy",
    "Timeouts",
    "WaitingBudget",
    "plan_retry",
]

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from .faults import FailedAttempt, Fault

# Worth another attempt; everything else will be the same a moment later.
_TRANSIENT = frozenset(
    {
        Fault.NAME_NOT_FOUND,
        Fault.CONNECTION_REFUSED,
        Fault.UNREACHABLE,
        Fault.CONNECT_TIMEOUT,
        Fault.READ_TIMEOUT,
        Fault.CONNECTION_LOST,
        Fault.REPLY_CUT,
        Fault.BUSY,
        Fault.IDDS_DOWN,
        Fault.GATEWAY,
        Fault.SERVER,
    }
)


QUESTION_SILENCE = 45.0
"""Seconds that a command waits in vain for what it asks."""

BYTES_A_SECOND = 10_000.0
"""A server that is slower than this is taken for one that hangs."""

MAX_REPLY = 512 * 1024**2
"""Longest reply that is read, bytes."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Time limits of one attempt, in seconds."""

    connect: float = 10.0
    """To open the connection to an address of the host."""

    silence: float = QUESTION_SILENCE
    """In which nothing moves, or too little; see `Patience`."""

    total: float = 3600.0
    """From the beginning to the last byte."""


SUBMISSION_TIMEOUTS = Timeouts(silence=620.0)
"""For what changes something."""

PING_TIMEOUTS = Timeouts(connect=5.0, silence=5.0, total=5.0)
"""For a ping, which is answered at once: with `PING_RETRY` a server that hangs is found out within five
seconds."""


class Patience:
    """How much longer an attempt may go on; it begins with ``most`` seconds."""

    def __init__(self, most: float, now: float) -> None:
        self._most = most
        self._left = most
        self._at = now
        self._moved = 0

    def left(self, now: float, moved: int) -> float:
        """Return the seconds that are left, when so many bytes have moved since the beginning."""
        gained = (moved - self._moved) / BYTES_A_SECOND
        self._left = min(self._most, self._left - (now - self._at) + gained)
        self._at, self._moved = now, moved
        return self._left


class WaitingBudget:
    """The seconds that a command may still wait in vain; threads may share it.

    They come back second for second while nobody waits in vain.
    """

    def __init__(
        self, seconds: float = QUESTION_SILENCE, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = seconds
        self._left = seconds
        self._clock = clock
        self._at = clock()
        self._lock = threading.Lock()

    def left(self) -> float:
        """Return the seconds that are left; 0 if they are too few to ask anything."""
        with self._lock:
            left = min(self._most, self._left + self._clock() - self._at)
        return left if left >= self._most / 50 else 0.0

    def spend(self, seconds: float) -> None:
        """Take off the seconds up to now that were waited in vain."""
        with self._lock:
            now = self._clock()
            idle = max(0.0, now - self._at - seconds)
            self._left = max(0.0, min(self._most, self._left + idle) - seconds)
            self._at = now


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and for how long, a request is sent again."""

    attempts: int = 4
    """Most attempts, the first one included."""

    base: float = 1.0
    """Longest wait before the second attempt, in seconds; it doubles with each further one."""

    cap: float = 20.0
    """Longest wait between two attempts, in seconds."""

    budget: float = 120.0
    """Seconds after the start of the first attempt beyond which no further one is started."""


PING_RETRY = RetryPolicy(attempts=3, budget=4.0)
"""For a ping, which is answered at once."""

LOGIN_RETRY = RetryPolicy(attempts=3, base=1.0, cap=5.0, budget=15.0)
"""For an OpenID provider, which answers at once or not at all."""

LOG_RETRY = RetryPolicy(attempts=2, base=0.5, cap=5.0, budget=30.0)
"""For the log of a job, which may be gone: somebody waits for the others."""


def plan_retry(
    failure: FailedAttempt, policy: RetryPolicy, *, attempts: int, safe: bool, elapsed: float, luck: float
) -> float | None:
    """Decide how many seconds to wait before the next attempt; `None` to give up.

    So many attempts were made so far, since ``elapsed`` seconds.  It is safe if doing it twice is the same as
    doing it once.  ``luck`` is a random number in [0, 1): the wait is spread over its whole range ("full
    jitter"), so that clients do not come back in step.
    """
    if failure.fault not in _TRANSIENT or attempts >= policy.attempts:
        return None
    if not safe and not failure.fault.not_executed:
        return None
    ceiling = min(policy.cap, policy.base * 2.0 ** (attempts - 1))
    delay = luck * ceiling
    if failure.retry_after is not None:
        delay += min(failure.retry_after, policy.cap)
    if elapsed + delay > policy.budget:
        return None
    return delay
