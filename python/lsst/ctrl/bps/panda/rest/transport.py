"""HTTP to PanDA: one object that adds credentials, bounds time, sends again what
is safe to send again, and turns every failure into one of this plugin's errors.

Clock, sleep and random numbers are parameters; nothing is read from the
environment here, except what ``requests`` itself does about proxies and
certificate bundles.
"""

__all__ = ["PING_TIMEOUTS", "Reply", "Timeouts", "Transport", "is_loopback", "parse_json"]

import copy
import json
import logging
import random
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3.exceptions

from ..errors import ReplyError, TransportError
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
from .retries import RetryPolicy, plan_retry

_LOG = logging.getLogger(__name__)

_CHUNK = 1 << 18


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Time limits of one attempt, in seconds."""

    connect: float = 20.0
    """To open the connection."""

    read: float = 620.0
    """Between two pieces of the reply.  PanDA's relay waits up to 600 s for iDDS, so less would give up on
    requests that succeed."""

    total: float = 1200.0
    """From the first to the last byte; it ends a reply that trickles."""


PING_TIMEOUTS = Timeouts(connect=10.0, read=20.0, total=20.0)
"""For a ping, which is answered at once: with `PING_RETRY` it never takes more
than 40 seconds to find out that a server hangs."""


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
    accept: Collection[int]


class Transport:
    """Sends requests and returns replies.

    ``verify`` may be a path that names the authorities to trust; that certificates of servers are not checked
    is warned about once.  ``luck`` returns a random number in [0, 1).
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        verify: bool | str = True,
        timeouts: Timeouts | None = None,
        retry: RetryPolicy | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        luck: Callable[[], float] = random.random,
    ) -> None:
        self._credentials = credentials
        self._session = requests.Session()
        self._verify = verify
        self._timeouts = timeouts or Timeouts()
        self._retry = retry or RetryPolicy()
        self._sleep = sleep
        self._clock = clock
        self._luck = luck
        self._warned: set[str] = set()

    def __repr__(self) -> str:
        return f"Transport({self._credentials!r})"

    def clone(self) -> "Transport":
        """Make a copy with connections of its own, for another thread."""
        clone = copy.copy(self)
        clone._session = requests.Session()
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
        return self._exchange(_Request("GET", url, what or url, params, None, headers or {}, True, ()))

    def post(
        self,
        url: str,
        *,
        body: bytes,
        content_type: str,
        headers: Mapping[str, str] | None = None,
        safe: bool,
        what: str = "",
        accept: Collection[int] = (),
    ) -> Reply:
        """Send a POST request, otherwise like `get`.

        It is safe if doing it twice is the same as doing it once.  Replies with the statuses in ``accept``
        are returned, too.  The attribute ``maybe_sent`` of an error tells whether the request may have had
        its effect all the same.
        """
        every = {"Content-Type": content_type, **(headers or {})}
        return self._exchange(_Request("POST", url, what or url, None, body, every, safe, accept))

    def _exchange(self, request: _Request) -> Reply:
        """Send until there is a reply or no reason to send again."""
        start = self._clock()
        renewed = False
        maybe_sent = False
        number = 0
        while True:
            number += 1
            outcome = self._send(request)
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
            if delay is None:
                break
            _LOG.debug("%s failed (%s); once more in %.1f s", request.what, outcome.text, delay)
            self._sleep(delay)
        # Raised outside of any except clause: the library's exception, which
        # holds the headers, is not chained.
        raise make_error(
            outcome, endpoint=request.url, what=request.what, attempts=number, maybe_sent=maybe_sent
        )

    def _send(self, request: _Request) -> Reply | FailedAttempt:
        """Send once."""
        own = self._credentials.headers()
        certificate = self._credentials.certificate()
        secrets = [part for name, value in own.items() if name == "Authorization" for part in value.split()]
        self._warn(request.url, bearer="Authorization" in own)

        def add_headers(prepared: requests.PreparedRequest) -> requests.PreparedRequest:
            prepared.headers.update(own)
            return prepared

        start = self._clock()
        try:
            # Given as "auth", the headers also keep requests from replacing
            # the token by what ~/.netrc has for the host.
            with self._session.request(
                request.method,
                request.url,
                params=request.params,
                data=request.body,
                headers=dict(request.headers),
                auth=add_headers,
                cert=certificate,
                timeout=(self._timeouts.connect, self._timeouts.read),
                verify=self._verify,
                allow_redirects=False,
                stream=True,
            ) as response:
                body = self._read(response, start)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            return describe_exception(error, secrets)
        if body is None:
            words = f"the reply was not complete after {self._timeouts.total:.0f} s"
            return FailedAttempt(Fault.READ_TIMEOUT, words)
        fault = classify_status(response.status_code)
        if fault is None or response.status_code in request.accept:
            return Reply(response.status_code, response.headers, body, request.url)
        return describe_reply(response, fault, body, secrets)

    def _read(self, response: requests.Response, start: float) -> bytes | None:
        """Read a reply; `None` if it takes too long as a whole."""
        pieces: list[bytes] = []
        # read1 gives what is there; a fixed size would wait for a full piece
        # and so hide the clock from a reply that trickles.
        while piece := response.raw.read1(_CHUNK, decode_content=True):
            pieces.append(piece)
            if self._clock() - start > self._timeouts.total:
                return None
        return b"".join(pieces)

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


def is_loopback(host: str) -> bool:
    """Tell whether a host's name is one of the machine itself."""
    return host in {"localhost", "::1"} or host.startswith("127.")
