"""Many transfers at a time: threads that cannot hold a program up, bounded retries with back-off, and why
a transfer failed, in words.
"""

from __future__ import annotations

__all__ = ["Outcome", "Retries", "VerificationError", "describe_cause", "is_permanent", "run_all"]

import errno
import logging
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

_LIMIT = 300

_ERRNO_ADVICE = {
    errno.ENOSPC: "no space left in the staging area",
    errno.EDQUOT: "disk quota of the staging area exceeded",
    errno.EFBIG: "larger than a file may be there (file size limit)",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the staging area is on a read-only file system",
    errno.ENAMETOOLONG: "the name is too long for the file system of the staging area",
    errno.ENOTDIR: "a file lies where a directory is needed",
    errno.EISDIR: "a directory lies where the file should go",
}

_STATUS_ADVICE = {
    400: "the store does not understand the request",
    401: (
        "not logged in, or the token has run out (LSST_HTTP_AUTH_BEARER_TOKEN is sent over https only, never"
        " over http)"
    ),
    403: "the store refuses this user or these credentials",
    405: "the store does not allow writing there (is it a WebDAV server, and this its writable path?)",
    409: "a directory above it is missing and could not be made",
    413: "larger than the store accepts",
    507: "no space left in the staging area",
}

_NO_ANSWER = "the store does not answer, or only with errors, although asked several times"

_PHRASES = (
    ("SignatureDoesNotMatch", "the store refuses the credentials: the secret access key is wrong"),
    ("InvalidAccessKeyId", "the store refuses the credentials: it does not know the access key id"),
    ("ExpiredToken", "the store refuses the credentials: they have run out"),
    (
        "NoCredentialsError",
        "no S3 credentials found (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the AWS credentials file)",
    ),
    (
        "ProfileNotFound",
        "the S3 profile in the URI (s3://profile@bucket/) has no credentials in the AWS credentials file",
    ),
    ("NoSuchBucket", "no such bucket"),
    ("AccessDenied", "the store refuses this user or these credentials"),
    ("QuotaExceeded", "quota of the staging area exceeded"),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "the store's certificate is not trusted (set LSST_HTTP_CACERT_BUNDLE)",
    ),
    ("gaierror", "the name of the store's host is not known"),
    ("ConnectionRefusedError", "nothing listens at the store's host and port"),
    ("EndpointConnectionError", _NO_ANSWER),
    ("Could not connect to the endpoint", _NO_ANSWER),
    ("Max retries exceeded", _NO_ANSWER),
    ("plain HTTP servers", "no WebDAV server answers there, or it hides behind a refused log-in"),
)

_PERMANENT_STATUS = frozenset({400, 401, 403, 404, 405, 409, 413, 507})

_STATUS = re.compile(r"status:?\s*(?:code:?\s*)?\(?(\d{3})\b|\((\d{3})\) when calling", re.IGNORECASE)


class VerificationError(OSError):
    """What lies in the staging area is not what was sent there."""


def _status(text: str) -> int:
    found = _STATUS.search(text)
    return int(found[1] or found[2]) if found else 0


def _text(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _LIMIT else text[: _LIMIT - 3] + "..."


def _advice(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}"
    for phrase, advice in _PHRASES:
        if phrase in text:
            return advice
    if status := _STATUS_ADVICE.get(_status(text)):
        return status
    if isinstance(error, OSError) and error.errno is not None:
        return _ERRNO_ADVICE.get(error.errno, "")
    return ""


def describe_cause(error: BaseException) -> str:
    """Say why a transfer failed.

    Parameters
    ----------
    error : `BaseException`
        What was raised.

    Returns
    -------
    cause : `str`
        One line: what it means if that is known, and the original text, cut.
    """
    if isinstance(error, VerificationError):
        return str(error)
    advice = _advice(error)
    return f"{advice} [{_text(error)}]" if advice else _text(error)


def is_permanent(error: BaseException) -> bool:
    """Tell whether trying again cannot help.

    Parameters
    ----------
    error : `BaseException`
        What was raised.

    Returns
    -------
    permanent : `bool`
        `True` for refused credentials, missing sources, full or read-only
        file systems and the like.
    """
    if isinstance(error, VerificationError):
        return False
    if isinstance(error, NotImplementedError | FileNotFoundError | PermissionError):
        return True
    if isinstance(error, OSError) and error.errno in _ERRNO_ADVICE:
        return True
    if isinstance(error, ConnectionRefusedError):
        # A server that is being restarted.
        return False
    # Libraries that have tried again for a minute need not be asked again.
    text = f"{type(error).__name__}: {error}"
    return _status(text) in _PERMANENT_STATUS or any(phrase in text for phrase, _ in _PHRASES)


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
