"""HTTP to PanDA: one object that adds credentials, bounds time, repeats what is
safe to repeat, and turns every failure into one of this plugin's errors.

Session, clock, sleep and random numbers are parameters; nothing is read from
the environment here, except what ``requests`` itself does about proxies and
certificate bundles.
"""

__all__ = ["PROMPT", "PROMPT_RETRY", "Reply", "Timeouts", "Transport"]

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

from .credentials import Credentials
from .faults import Failure, Fault, classify_status, describe_exception, describe_reply, make_error
from .retries import Attempt, RetryPolicy, plan_retry

_LOG = logging.getLogger(__name__)

_CHUNK = 1 << 18


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Bounds of one attempt, in seconds.

    Parameters
    ----------
    connect : `float`, optional
        To open the connection.
    read : `float`, optional
        Between two pieces of the reply.  PanDA's relay waits up to 600 s for
        iDDS, so less would give up on requests that succeed.
    total : `float`, optional
        From the first to the last byte; it ends a reply that trickles.
    """

    connect: float = 20.0
    read: float = 620.0
    total: float = 1200.0


PROMPT = Timeouts(connect=10.0, read=20.0, total=20.0)
PROMPT_RETRY = RetryPolicy(attempts=3, budget=15.0)
"""For a ping, which is answered at once: it never takes more than 40 seconds to
find out that a server hangs."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered.

    Parameters
    ----------
    status : `int`
        HTTP status, 2xx or one that the caller accepts.
    headers : `~collections.abc.Mapping` [`str`, `str`]
        Headers, found without regard to case.
    body : `bytes`
        The reply, with transfer and content encoding undone.
    url : `str`
        What was asked.
    maybe_sent : `bool`, optional
        Whether an earlier attempt, whose reply was lost, may have had its
        effect.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str
    maybe_sent: bool = False


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
    """Sends requests and gives replies.

    Parameters
    ----------
    credentials : `Credentials`
        Who we are.
    session : `requests.Session`, optional
        Keeps connections open between requests.
    verify : `bool` or `str`, optional
        Check certificates of servers; a path names the authorities to trust.
        `False` is warned about once.
    timeouts : `Timeouts`, optional
        Bounds of an attempt.
    retry : `RetryPolicy`, optional
        Bounds of repeating.
    sleep : `~collections.abc.Callable`, optional
        Waits for a number of seconds.
    clock : `~collections.abc.Callable`, optional
        Gives seconds from any origin, never going back.
    luck : `~collections.abc.Callable`, optional
        Gives random numbers in [0, 1).
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        session: requests.Session | None = None,
        verify: bool | str = True,
        timeouts: Timeouts | None = None,
        retry: RetryPolicy | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        luck: Callable[[], float] = random.random,
    ) -> None:
        self._credentials = credentials
        self._session = session if session is not None else requests.Session()
        self._verify = verify
        self._timeouts = timeouts if timeouts is not None else Timeouts()
        self._retry = retry if retry is not None else RetryPolicy()
        self._sleep = sleep
        self._clock = clock
        self._luck = luck
        self._warned: set[str] = set()

    def __repr__(self) -> str:
        return f"Transport({self._credentials!r})"

    def again(self) -> "Transport":
        """Give another one with connections of its own, for another thread."""
        return Transport(
            self._credentials,
            verify=self._verify,
            timeouts=self._timeouts,
            retry=self._retry,
            sleep=self._sleep,
            clock=self._clock,
            luck=self._luck,
        )

    def get(
        self,
        url: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        safe: bool = True,
        what: str = "",
    ) -> Reply:
        """Ask with GET.

        Parameters
        ----------
        url : `str`
            Where.
        params : `~collections.abc.Mapping`, optional
            Query; a sequence becomes repeated keys.
        headers : `~collections.abc.Mapping`, optional
            Further headers.
        safe : `bool`, optional
            Whether twice is the same as once.
        what : `str`, optional
            What is asked, in a few words for messages.

        Returns
        -------
        reply : `Reply`
            A reply with status 2xx.

        Raises
        ------
        TransportError
            Raised as one of its children that says what went wrong.
        """
        return self._exchange(_Request("GET", url, what or url, params, None, headers or {}, safe, ()))

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
        """Send with POST.

        Parameters
        ----------
        url : `str`
            Where.
        body : `bytes`
            The body as it travels.
        content_type : `str`
            Value of that header.
        headers : `~collections.abc.Mapping`, optional
            Further headers.
        safe : `bool`
            Whether twice is the same as once.
        what : `str`, optional
            What is asked, in a few words for messages.
        accept : `~collections.abc.Collection` [`int`], optional
            Other HTTP statuses than 2xx whose replies are wanted.

        Returns
        -------
        reply : `Reply`
            A reply with status 2xx, or an accepted one.

        Raises
        ------
        TransportError
            Raised as one of its children that says what went wrong; its
            attribute ``maybe_sent`` tells whether the request may have had
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
            attempt = Attempt(number, request.safe, self._clock() - start, outcome)
            delay = plan_retry(attempt, self._retry, self._luck())
            if delay is None:
                break
            _LOG.debug("%s failed (%s); once more in %.1f s", request.what, outcome.text, delay)
            self._sleep(delay)
        # Raised outside of any except clause: the library's exception, which
        # holds the headers, is not chained.
        raise make_error(
            outcome, endpoint=request.url, what=request.what, attempts=number, maybe_sent=maybe_sent
        )

    def _send(self, request: _Request) -> Reply | Failure:
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
            return Failure(
                Fault.READ_TIMEOUT, f"the reply was not complete after {self._timeouts.total:.0f} s"
            )
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
        if parts.scheme == "http" and bearer and not _is_loopback(host):
            self._warned.add(host)
            _LOG.warning("The token travels to %s without encryption: the URL is http, not https.", host)


def _is_loopback(host: str) -> bool:
    return host in {"localhost", "::1"} or host.startswith("127.")
