"""HTTP to PanDA: one object that adds credentials, bounds time, sends again what is safe to send again, and
turns every failure into one of this plugin's errors.

Each attempt is made in a thread, and the caller waits for it: so it can be left at any moment, whatever hangs
(the look-up of a name, a handshake, headers that trickle), Ctrl-C works at once, and what is waited for can
be said.

Clock, sleep and random numbers are parameters; nothing is read from the environment here, except what
``requests`` itself does about proxies and certificate bundles.
"""

__all__ = ["Reply", "Transport", "parse_json"]

import contextlib
import copy
import json
import logging
import math
import random
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, TextIO
from urllib.parse import urlsplit

import requests
import urllib3.exceptions

from ..errors import ReplyError, TransportError
from ..settings.run import is_loopback
from .credentials import Credentials, redact
from .faults import (
    FailedAttempt,
    Fault,
    classify_status,
    describe_exception,
    describe_reply,
    looks_like_web_page,
    make_error,
    shorten,
)
from .retries import (
    MAX_REPLY,
    SUBMISSION_TIMEOUTS,
    Patience,
    RetryPolicy,
    Timeouts,
    WaitingBudget,
    plan_retry,
)

_LOG = logging.getLogger(__name__)

_CHUNK = 1 << 16

FIRST_NOTICE = 5.0
"""Seconds after which a caller is told what is waited for."""

_TICK = 0.25


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered."""

    status: int
    """HTTP status, 2xx or one that the caller accepts."""

    headers: Mapping[str, str]
    """Headers, found without regard to case."""

    body: bytes
    """The body, with transfer and content encoding undone."""

    url: str
    """URL that was asked."""

    maybe_sent: bool = False
    """Whether an earlier attempt, whose reply was lost, may have had its effect."""

    def unwrap(self, unwrapper: Callable[..., Any], what: str) -> Any:
        """Parse the JSON and take the value out of its envelope.

        Errors have ``maybe_sent`` set also if an attempt before this reply may have had an effect: a refusal
        only says that this attempt had none.
        """
        try:
            return unwrapper(parse_json(self, what), endpoint=self.url, what=what)
        except TransportError as error:
            error.maybe_sent = error.maybe_sent or self.maybe_sent
            raise


def parse_json(reply: Reply, what: str) -> Any:
    """Parse the body of a reply as JSON; `ReplyError` is raised for a web page, and what is empty or cut."""
    if looks_like_web_page(reply.headers.get("Content-Type", ""), reply.body):
        raise _not_understood(Fault.WEB_PAGE.row.message, Fault.WEB_PAGE, reply, what)
    try:
        return json.loads(reply.body)
    except json.JSONDecodeError as error:
        if not reply.body.strip():
            words = "The reply is empty."
        elif error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated"):
            words = f"The reply ends in the middle: JSON cut after {len(reply.body)} bytes."
        else:
            words = f"The reply is not JSON ({error.msg} at character {error.pos})."
    except (UnicodeDecodeError, RecursionError) as error:
        words = f"The reply is not JSON ({type(error).__name__})."
    # Raised outside of the except clause: the library's exception holds the whole reply.
    raise _not_understood(words, Fault.NOT_JSON, reply, what)


def _not_understood(words: str, fault: Fault, reply: Reply, what: str) -> ReplyError:
    return ReplyError(
        words,
        endpoint=redact(reply.url),
        request=redact(what),
        reply=shorten(redact(reply.body[:4000].decode("utf-8", "replace"))),
        fault=fault,
        status=reply.status,
        maybe_sent=True,
    )


@dataclass(frozen=True, slots=True)
class _Request:
    """One request, as often as it is sent."""

    method: str
    url: str
    what: str
    params: Mapping[str, Any] | None
    body: bytes | None
    headers: Mapping[str, str]
    safe: bool
    patient: bool
    accept: Collection[int]
    watch: Callable[[float], object] | None = None
    longest: int | None = None


class _Attempt(threading.Thread):
    """One attempt, in a thread that is left behind if it takes too long."""

    def __init__(self, work: Callable[["_Attempt"], Reply | FailedAttempt]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self.moved = 0
        """Bytes sent and received."""

        self.sent: bool | None = None
        """Whether any of the request was sent; `None` if that is not known."""

        self.socket: Any = None
        self.outcome: Reply | FailedAttempt | None = None
        self.problem: BaseException | None = None
        self.done = threading.Event()

    def run(self) -> None:
        """Work, and keep what comes of it."""
        _CURRENT.attempt = self
        try:
            self.outcome = self._work(self)
        except BaseException as problem:  # raised again where it is waited for
            self.problem = problem
        finally:
            self.done.set()

    def abandon(self) -> None:
        """Have the thread end soon."""
        with contextlib.suppress(OSError, AttributeError):
            self.socket.shutdown(socket.SHUT_RDWR)


_CURRENT = threading.local()


class _Observed:
    """A connection that tells the attempt which uses it how far it is."""

    sock: Any
    _connecting = False

    def connect(self) -> None:
        self._connecting = True
        attempt: _Attempt = _CURRENT.attempt
        attempt.sent = False
        try:
            super().connect()  # type: ignore[misc]
        finally:
            self._connecting = False

    def send(self, data: Any) -> None:
        attempt: _Attempt = _CURRENT.attempt
        if self._connecting:  # the words to a proxy
            super().send(data)  # type: ignore[misc]
            return
        if self.sock is None:
            self.connect()
        attempt.socket, attempt.sent = self.sock, True
        # In pieces: the time limit of a socket is for all that it is given at once.
        pieces = range(0, len(data), _CHUNK) if isinstance(data, bytes) else ()
        for start in pieces:
            super().send(data[start : start + _CHUNK])  # type: ignore[misc]
            attempt.moved += len(data[start : start + _CHUNK])
        if not pieces:
            super().send(data)  # type: ignore[misc]


class _HttpConnection(_Observed, urllib3.connection.HTTPConnection):
    pass


class _HttpsConnection(_Observed, urllib3.connection.HTTPSConnection):
    pass


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


class _Adapter(requests.adapters.HTTPAdapter):
    """Makes observed connections, also through a proxy of HTTP."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self._observe(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        return self._observe(super().proxy_manager_for(*args, **kwargs))

    def _observe(self, manager: Any) -> Any:
        # Those of SOCKS have connections of their own.
        if type(manager) in (urllib3.PoolManager, urllib3.ProxyManager):
            manager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
        return manager


def _make_session() -> requests.Session:
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter())
    return session


class _Notice:
    """Says on standard error what is waited for: on a terminal in a line that goes again, elsewhere in lines
    that become rarer.
    """

    def __init__(self, request: "_Request", start: float, first: float, stream: TextIO | None) -> None:
        self._request = request
        self._start = start
        self._next = first
        self._stream = stream if stream is not None else sys.stderr
        self._shown = False

    def tell(self, now: float, attempt: _Attempt) -> None:
        """Say it, if it is time to."""
        seconds = now - self._start
        if seconds < self._next:
            return
        live = False
        with contextlib.suppress(ValueError):  # it is closed
            live = self._stream.isatty()
        self._next = seconds + 1.0 if live else min(2 * seconds, seconds + 60.0)
        host = urlsplit(self._request.url).netloc.rpartition("@")[2]
        doing = "Connecting to" if attempt.sent is False else "Waiting for"
        size = f", {attempt.moved / 1e6:.1f} MB" if attempt.moved > 100_000 else ""
        text = f"{doing} {host}: {shorten(redact(self._request.what), 60)}, {seconds:.0f} s so far{size}"
        self._write(f"\r{text}\033[K" if live else text + "\n")
        self._shown = live

    def clear(self) -> None:
        """Let the line go."""
        if self._shown:
            self._write("\r\033[K")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody listens any more
            self._stream.write(text)
            self._stream.flush()


class Transport:
    """Sends requests and returns replies.

    ``verify`` may be a path that names the authorities to trust; that certificates of servers are not checked
    is warned about once.  ``timeouts`` are for all requests; without them, those for questions and for
    submissions differ, as `.retries` says.  ``budget`` is what all questions of a command share.  ``notices``
    is where it is said what is waited for, standard error by default, after ``first_notice`` seconds.
    ``longest`` is the longest reply that is read, in bytes; ``luck`` returns a random number in [0, 1).
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        verify: bool | str = True,
        timeouts: Timeouts | None = None,
        retry: RetryPolicy | None = None,
        budget: WaitingBudget | None = None,
        notices: TextIO | None = None,
        first_notice: float = FIRST_NOTICE,
        longest: int = MAX_REPLY,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        luck: Callable[[], float] = random.random,
    ) -> None:
        self._credentials = credentials
        self._session = _make_session()
        self._verify = verify
        self._timeouts = timeouts or Timeouts()
        self._patient_timeouts = timeouts or SUBMISSION_TIMEOUTS
        self._retry = retry or RetryPolicy()
        self._budget = budget
        self._notices = notices
        self._first_notice = first_notice
        self._longest = longest
        self._sleep = sleep
        self._clock = clock
        self._luck = luck
        self._warned: set[str] = set()

    def __repr__(self) -> str:
        return f"Transport({self._credentials!r})"

    def clone(self, *, seconds: float | None = None) -> "Transport":
        """Make a copy with connections of its own, for another thread; one with a limit of so many seconds
        asks once and says nothing.
        """
        clone = copy.copy(self)
        clone._session = _make_session()
        if seconds is not None:
            clone._timeouts = Timeouts(connect=seconds, silence=seconds, total=seconds)
            clone._retry, clone._budget, clone._first_notice = RetryPolicy(attempts=1), None, math.inf
        return clone

    def get(
        self,
        url: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        what: str = "",
    ) -> Reply:
        """Send a GET request, which is sent again after failures that may pass.

        A sequence as value of the query becomes repeated keys.  ``what`` says in a few words for messages
        what is asked.  `TransportError` is raised, as one of its children, for other replies than 2xx.
        """
        return self._exchange(_Request("GET", url, what or url, params, None, headers or {}, True, False, ()))

    def post(
        self,
        url: str,
        *,
        body: bytes,
        content_type: str,
        headers: Mapping[str, str] | None = None,
        safe: bool,
        patient: bool = False,
        what: str = "",
        accept: Collection[int] = (),
        watch: Callable[[float], object] | None = None,
        longest: int | None = None,
    ) -> Reply:
        """Send a POST request, otherwise like `get`.

        It is safe if doing it twice is the same as doing it once.  What is not safe, or belongs to a
        submission (``patient``), is waited for longer.  Replies with the statuses in ``accept``
        are returned, too.  While a reply is waited for, ``watch`` is called with the seconds so far, and may
        raise to end that; ``longest`` is as of the class.  The attribute ``maybe_sent`` of an error tells
        whether the request may have had its effect all the same.
        """
        every = {"Content-Type": content_type, **(headers or {})}
        return self._exchange(
            _Request(
                "POST", url, what or url, None, body, every, safe, patient or not safe, accept, watch, longest
            )
        )

    def _exchange(self, request: _Request) -> Reply:
        """Send until there is a reply or no reason to send again."""
        start = self._clock()
        notice = _Notice(request, start, self._first_notice, self._notices)
        # A submission waits as long as it needs to.
        budget = None if request.patient else self._budget
        renewed = False
        maybe_sent = False
        number = 0
        while True:
            number += 1
            begin = self._clock()
            outcome = self._send(request, notice, budget)
            if isinstance(outcome, Reply):
                return replace(outcome, maybe_sent=maybe_sent)
            maybe_sent |= not outcome.fault.not_executed
            if outcome.status == 401 and not renewed and self._credentials.renew():
                renewed = True
                continue
            delay = plan_retry(
                outcome,
                self._retry,
                attempts=number,
                safe=request.safe,
                elapsed=self._clock() - start,
                luck=self._luck(),
            )
            if delay is not None:
                _LOG.debug("%s failed (%s); once more in %.1f s", request.what, outcome.text, delay)
                self._sleep(delay)
            if budget is not None:
                budget.spend(self._clock() - begin)
            if delay is None or (budget is not None and not budget.left()):
                break
        # Raised outside of any except clause: the library's exception, which
        # holds the headers, is not chained.
        raise make_error(
            outcome, endpoint=request.url, what=request.what, attempts=number, maybe_sent=maybe_sent
        )

    def _send(
        self, request: _Request, notice: _Notice, budget: WaitingBudget | None
    ) -> Reply | FailedAttempt:
        """Send once, and wait for what comes of it as long as `.retries` allows."""
        timeouts = self._patient_timeouts if request.patient else self._timeouts
        if budget is not None:
            if not (left := budget.left()):
                return FailedAttempt(Fault.NOT_ASKED, "nothing is asked of it for a while")
            timeouts = replace(timeouts, silence=min(timeouts.silence, left))
        own = self._credentials.headers()
        certificate = self._credentials.certificate()
        self._warn(request.url, bearer="Authorization" in own)
        session = self._session
        attempt = _Attempt(lambda attempt: self._try(attempt, session, request, own, certificate, timeouts))
        try:
            if not self._await(attempt, request, notice, timeouts):
                self._session = _make_session()
                return _describe_silence(attempt, timeouts)
        except BaseException:
            attempt.abandon()
            self._session = _make_session()
            raise
        finally:
            notice.clear()
        if attempt.outcome is None:
            assert attempt.problem is not None
            raise attempt.problem
        return attempt.outcome

    def _await(self, attempt: _Attempt, request: _Request, notice: _Notice, timeouts: Timeouts) -> bool:
        """Wait for the end of an attempt; return whether it came in time."""
        start = self._clock()
        patience = Patience(timeouts.silence, start)
        attempt.start()
        while not attempt.done.wait(min(_TICK, timeouts.silence / 4)):
            now = self._clock()
            if patience.left(now, attempt.moved) <= 0 or now - start > timeouts.total:
                attempt.abandon()
                return False
            notice.tell(now, attempt)
            if request.watch is not None:
                request.watch(now - start)
        return True

    def _try(
        self,
        attempt: _Attempt,
        session: requests.Session,
        request: _Request,
        own: Mapping[str, str],
        certificate: Any,
        timeouts: Timeouts,
    ) -> Reply | FailedAttempt:
        """Send once, and read the reply."""
        secrets = [part for name, value in own.items() if name == "Authorization" for part in value.split()]

        def add_headers(prepared: requests.PreparedRequest) -> requests.PreparedRequest:
            prepared.headers.update(own)
            return prepared

        try:
            # Given as "auth", the headers also keep requests from replacing
            # the token by what ~/.netrc has for the host.
            with session.request(
                request.method,
                request.url,
                params=request.params,
                data=request.body,
                headers=dict(request.headers),
                auth=add_headers,
                cert=certificate,
                timeout=(min(timeouts.connect, timeouts.silence), timeouts.silence),
                verify=self._verify,
                allow_redirects=False,
                stream=True,
            ) as response:
                body = _read(response, attempt, request.longest or self._longest)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            failed = describe_exception(error, secrets)
            if failed.fault is Fault.READ_TIMEOUT and attempt.sent is False:
                # The library's word for a handshake that does not end.
                return replace(failed, fault=Fault.CONNECT_TIMEOUT)
            return failed
        if body is None:
            return FailedAttempt(Fault.TOO_LONG, f"it was left after {attempt.moved} bytes")
        fault = classify_status(response.status_code)
        if fault is None or response.status_code in request.accept:
            return Reply(response.status_code, response.headers, body, request.url)
        return describe_reply(response, fault, body, secrets)

    def _warn(self, url: str, *, bearer: bool) -> None:
        """Warn once about what makes a connection unsafe."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        if host in self._warned:
            return
        if parts.scheme == "https" and self._verify is False:
            self._warned.add(host)
            warnings.filterwarnings(
                "ignore", f".*'{host}'", category=urllib3.exceptions.InsecureRequestWarning
            )
            _LOG.warning("The certificate of %s is not checked (PANDA_VERIFY_HOST=off).", host)
        if parts.scheme == "http" and bearer and not is_loopback(host):
            self._warned.add(host)
            _LOG.warning("The token travels to %s without encryption: the URL is http, not https.", host)


def _read(response: requests.Response, attempt: _Attempt, longest: int) -> bytes | None:
    """Read a reply; `None` if it is too long."""
    pieces: list[bytes] = []
    length = 0
    # read1 gives what is there; a fixed size would wait for a full piece.
    while piece := response.raw.read1(_CHUNK, decode_content=True):
        pieces.append(piece)
        length += len(piece)
        attempt.moved += len(piece)
        if length > longest:
            return None
    return b"".join(pieces)


def _describe_silence(attempt: _Attempt, timeouts: Timeouts) -> FailedAttempt:
    """Describe an attempt that was left because it took too long."""
    if attempt.sent is False:
        return FailedAttempt(Fault.CONNECT_TIMEOUT, f"no connection within {timeouts.silence:.0f} s")
    words = f"the reply was not complete, and too little came for {timeouts.silence:.0f} s"
    return FailedAttempt(Fault.READ_TIMEOUT, words)
