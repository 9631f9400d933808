"""When to repeat a request: a pure decision, apart from the loop that sleeps.

Only what is safe is repeated: a request that changes nothing, or one that
certainly had no effect.
"""

__all__ = ["Attempt", "RetryPolicy", "plan_retry"]

from dataclasses import dataclass

from .faults import Failure, Fault

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
        Fault.GATEWAY,
        Fault.SERVER,
    }
)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Bounds of repeating.

    Parameters
    ----------
    attempts : `int`, optional
        How often a request is sent at most, the first time included.
    base : `float`, optional
        Longest wait before the second attempt, in seconds; it doubles with
        each further one.
    cap : `float`, optional
        Longest wait between two attempts, in seconds.
    budget : `float`, optional
        Seconds after the first attempt's start beyond which no further one
        is started.
    """

    attempts: int = 4
    base: float = 1.0
    cap: float = 20.0
    budget: float = 900.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """What is known after one failed attempt.

    Parameters
    ----------
    number : `int`
        How many attempts were made so far.
    safe : `bool`
        Whether doing it twice is the same as doing it once.
    elapsed : `float`
        Seconds since the first attempt's start.
    failure : `Failure`
        How this one failed.
    """

    number: int
    safe: bool
    elapsed: float
    failure: Failure


def plan_retry(attempt: Attempt, policy: RetryPolicy, luck: float) -> float | None:
    """Decide whether and when to repeat a request.

    Parameters
    ----------
    attempt : `Attempt`
        What happened.
    policy : `RetryPolicy`
        Bounds.
    luck : `float`
        Random number in [0, 1): the wait is spread over its whole range
        ("full jitter"), so that clients do not come back in step.

    Returns
    -------
    delay : `float` or `None`
        Seconds to wait before the next attempt; `None` to give up.
    """
    failure = attempt.failure
    if failure.fault not in _TRANSIENT or attempt.number >= policy.attempts:
        return None
    if not attempt.safe and not failure.fault.not_executed:
        return None
    ceiling = min(policy.cap, policy.base * 2.0 ** (attempt.number - 1))
    delay = luck * ceiling
    if failure.retry_after is not None:
        delay += min(failure.retry_after, policy.cap)
    if attempt.elapsed + delay > policy.budget:
        return None
    return delay
