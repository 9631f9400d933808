"""Parallel transfers in threads that never block the exit, with bounded retries, and the table of causes of
failed transfers, in words.
"""

from __future__ import annotations

__all__ = [
    "Retries",
    "TransferResult",
    "VerificationError",
    "describe_cause",
    "find_http_status",
    "is_permanent",
    "run_all",
]

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

_LOG = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_LIMIT = 300
"""Longest text of an exception in a message, characters."""

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_LONGEST_WAIT = 1.0


class VerificationError(OSError):
    """What lies in the staging area is not what was sent there."""


@dataclass(frozen=True, slots=True)
class _Cause:
    """A cause that trying again does not remove, and how an exception tells of it.

    The libraries below ``lsst.resources`` have exceptions of their own, which often hold the real one as text
    only; so texts are compared, and the table of faults of our own HTTP does not serve here.
    """

    meaning: str
    phrases: tuple[str, ...] = ()
    """Texts in the exception's name or words."""

    status: int = 0
    """HTTP status in its words."""

    errnos: tuple[int, ...] = ()
    """Numbers of an `OSError`."""


_REFUSED = "the store refuses this user or these credentials"
_NO_ANSWER = "the store does not answer, or only with errors, although asked several times"
_NO_SPACE = "no space left in the staging area"

_CAUSES = (
    _Cause("the store refuses the credentials: the secret access key is wrong", ("SignatureDoesNotMatch",)),
    _Cause("the store refuses the credentials: it does not know the access key id", ("InvalidAccessKeyId",)),
    _Cause("the store refuses the credentials: they have run out", ("ExpiredToken",)),
    _Cause(
        "no S3 credentials found (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the AWS credentials file)",
        ("NoCredentialsError",),
    ),
    _Cause(
        "the S3 profile in the URI (s3://profile@bucket/) has no credentials in the AWS credentials file",
        ("ProfileNotFound",),
    ),
    _Cause("no such bucket", ("NoSuchBucket",)),
    _Cause(_REFUSED, ("AccessDenied",)),
    _Cause("quota of the staging area exceeded", ("QuotaExceeded",)),
    _Cause(
        "the store's certificate is not trusted (set LSST_HTTP_CACERT_BUNDLE)", ("CERTIFICATE_VERIFY_FAILED",)
    ),
    _Cause("the name of the store's host is not known", ("gaierror",)),
    _Cause("nothing listens at the store's host and port", ("ConnectionRefusedError",)),
    _Cause(
        _NO_ANSWER,
        ("EndpointConnectionError", "Could not connect to the endpoint", "Max retries exceeded"),
    ),
    _Cause("no WebDAV server answers there, or it hides behind a refused log-in", ("plain HTTP servers",)),
    _Cause("the store does not understand the request", status=400),
    _Cause(
        "not logged in, or the token has run out (LSST_HTTP_AUTH_BEARER_TOKEN is sent over https only, never"
        " over http)",
        status=401,
    ),
    _Cause(_REFUSED, status=403),
    _Cause(
        "the store does not allow writing there (is it a WebDAV server, and this its writable path?)",
        status=405,
    ),
    _Cause("a directory above it is missing and could not be made", status=409),
    _Cause("larger than the store accepts", status=413),
    _Cause(_NO_SPACE, status=507),
    _Cause(_NO_SPACE, errnos=(errno.ENOSPC,)),
    _Cause("disk quota of the staging area exceeded", errnos=(errno.EDQUOT,)),
    _Cause("larger than a file may be there (file size limit)", errnos=(errno.EFBIG,)),
    _Cause("permission denied", errnos=(errno.EACCES, errno.EPERM)),
    _Cause("the staging area is on a read-only file system", errnos=(errno.EROFS,)),
    _Cause("the name is too long for the file system of the staging area", errnos=(errno.ENAMETOOLONG,)),
    _Cause("a file lies where a directory is needed", errnos=(errno.ENOTDIR,)),
    _Cause("a directory lies where the file should go", errnos=(errno.EISDIR,)),
    # What is missing, the text says.
    _Cause("", status=404),
)

_STATUS = re.compile(r"status:?\s*(?:code:?\s*)?\(?(\d{3})\b|\((\d{3})\) when calling", re.IGNORECASE)


def find_http_status(text: str) -> int:
    """Find the HTTP status in the words of an exception; 0 if there is none."""
    found = _STATUS.search(text)
    return int(found[1] or found[2]) if found else 0


def _find_cause(error: BaseException) -> _Cause | None:
    """Look an exception up in the table; the first row that fits is taken."""
    text = f"{type(error).__name__}: {error}"
    status = find_http_status(text)
    number = error.errno if isinstance(error, OSError) else None
    for cause in _CAUSES:
        by_text = any(phrase in text for phrase in cause.phrases)
        if by_text or (status and status == cause.status) or number in cause.errnos:
            return cause
    return None


def describe_cause(error: BaseException) -> str:
    """Describe in one line why a transfer failed: what it means, if known, and the original text, cut."""
    if isinstance(error, VerificationError):
        return str(error)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    text = text if len(text) <= _LIMIT else text[: _LIMIT - 3] + "..."
    cause = _find_cause(error)
    return f"{cause.meaning} [{text}]" if cause is not None and cause.meaning else text


def is_permanent(error: BaseException) -> bool:
    """Tell whether trying again cannot help, as with refused credentials, missing sources or a full disk."""
    if isinstance(error, VerificationError):
        return False
    if isinstance(error, NotImplementedError | FileNotFoundError | PermissionError):
        return True
    if isinstance(error, ConnectionRefusedError):
        # A server that is being restarted.
        return False
    # Libraries that have tried again for a minute need not be asked again.
    return _find_cause(error) is not None


@dataclass(frozen=True, slots=True)
class TransferResult(Generic[_Item, _Result]):
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
        cannot help; ``what`` says in the log what it does.
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
    """Threads that work on a list of items."""

    def __init__(
        self, items: Sequence[_Item], function: Callable[[_Item], _Result], clock: Callable[[], float]
    ) -> None:
        self._function = function
        self._clock = clock
        self._waiting: queue.SimpleQueue[tuple[int, _Item]] = queue.SimpleQueue()
        for entry in enumerate(items):
            self._waiting.put(entry)
        self.finished: queue.SimpleQueue[tuple[int, TransferResult[_Item, _Result]]] = queue.SimpleQueue()
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
                result: TransferResult[_Item, _Result] = TransferResult(item, result=self._function(item))
            except BaseException as error:
                result = TransferResult(item, error=error)
            del self.started[number]
            self.finished.put((number, result))

    def stop(self) -> None:
        """Start no further item."""
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
) -> Generator[TransferResult[_Item, _Result], None, None]:
    """Call a function for many items in threads, ``workers`` at a time, and yield results as the calls end.

    An item that takes longer than its allowance, in seconds, is given up, and its thread left behind.  If the
    caller stops asking, no further item is begun.
    """
    crew = _Crew[_Item, _Result](items, function, clock)
    pending = set(range(len(items)))
    for _ in range(min(workers, len(items))):
        crew.add_worker()
    try:
        while pending:
            for number, result in _next_results(crew, pending, items, allowance, clock):
                pending.discard(number)
                yield result
    finally:
        crew.stop()


def _next_results(
    crew: _Crew[_Item, _Result],
    pending: set[int],
    items: Sequence[_Item],
    allowance: Callable[[_Item], float],
    clock: Callable[[], float],
) -> list[tuple[int, TransferResult[_Item, _Result]]]:
    running = [(number, begun) for number, begun in list(crew.started.items()) if number in pending]
    soonest = min((begun + allowance(items[number]) for number, begun in running), default=float("inf"))
    # Workers may begin something while this waits, hence the limit.
    wait = min(max(soonest - clock(), 0.0), _LONGEST_WAIT)
    try:
        number, result = crew.finished.get(timeout=wait)
    except queue.Empty:
        return _give_up(crew, running, items, allowance, clock())
    # One that was given up before may end after all: nobody waits for it.
    return [(number, result)] if number in pending else []


def _give_up(
    crew: _Crew[_Item, _Result],
    running: Sequence[tuple[int, float]],
    items: Sequence[_Item],
    allowance: Callable[[_Item], float],
    now: float,
) -> list[tuple[int, TransferResult[_Item, _Result]]]:
    given_up: list[tuple[int, TransferResult[_Item, _Result]]] = []
    for number, begun in running:
        allowed = allowance(items[number])
        if now - begun >= allowed:
            error = TimeoutError(f"not done within {allowed:g} s; the store is slow or does not answer")
            given_up.append((number, TransferResult(items[number], error=error)))
            crew.add_worker()
    return given_up
