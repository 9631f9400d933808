"""When to send a request again: a pure decision, apart from the loop that sleeps.

Only what is safe is sent again: a request that changes nothing, or one that
certainly had no effect.
"""

__all__ = ["LOGIN_RETRY", "LOG_RETRY", "PING_RETRY", "RetryPolicy", "plan_retry"]

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


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and for how long, a request is sent again."""

    attempts: int = 4
    """Most attempts, the first one included."""

    base: float = 1.0
    """Longest wait before the second attempt, in seconds; it doubles with each further one."""

    cap: float = 20.0
    """Longest wait between two attempts, in seconds."""

    budget: float = 900.0
    """Seconds after the start of the first attempt beyond which no further one is started."""


PING_RETRY = RetryPolicy(attempts=3, budget=15.0)
"""For a ping, which is answered at once."""

LOGIN_RETRY = RetryPolicy(attempts=3, base=1.0, cap=5.0, budget=60.0)
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
