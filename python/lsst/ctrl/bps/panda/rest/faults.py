"""What can go wrong between here and a server: one table of faults, with how each is recognised in an
exception or a reply, the error that is raised, what the user reads, and which part does not work.
"""

from __future__ import annotations

__all__ = [
    "FailedAttempt",
    "Fault",
    "classify_exception",
    "classify_status",
    "shorten",
    "describe_exception",
    "describe_reply",
    "diagnose",
    "looks_like_web_page",
    "make_error",
    "make_idds_down",
    "make_refusal",
    "make_reply_error",
]

import enum
import http.client
import json
import socket
import ssl
from collections.abc import Container, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import requests
import urllib3.exceptions as pool_errors

from ..errors import (
    AuthenticationError,
    ConnectionFailedError,
    RefusedError,
    ReplyError,
    ServerError,
    TransportError,
)
from .credentials import redact


@dataclass(frozen=True, slots=True)
class _Row:
    """What is known about a fault."""

    value: str
    """Its stable name."""

    _: KW_ONLY
    error: type[TransportError] = ConnectionFailedError
    """Exception that is raised for it."""

    message: str = ""
    """What the exception says.  Empty where the words depend on the reply."""

    broken: str = ""
    """Which part between here and iDDS does not work, as a sentence of `diagnose`."""

    advice: str = ""
    """What to check, or what is likely behind it: the end of that sentence."""

    exceptions: tuple[type[BaseException], ...] = ()
    """Exceptions by which it is recognised."""

    statuses: Container[int] = ()
    """HTTP statuses by which it is recognised."""

    not_executed: bool = False
    """Whether the server certainly did not do what was asked."""


_OTHER_PROTOCOL = "The URL is probably wrong: what answers at {endpoint} does not speak PanDA's protocol"
_IDDS_IS_DOWN = "PanDA at {host} answers, but iDDS behind it is down"


class Fault(enum.StrEnum):
    """The table of faults.

    The order matters: the first fault that fits an exception or a status is taken, so precise ones stand
    before vague ones.  The values are stable; errors carry them in their attribute ``fault``.
    """

    row: _Row

    def __new__(cls, row: _Row) -> Self:
        """Make a member that is a text and has a row of the table."""
        fault = str.__new__(cls, row.value)
        fault._value_ = row.value
        fault.row = row
        return fault

    TLS = _Row(
        "tls",
        message="No encrypted connection: the server's certificate is not accepted, or it does not speak "
        "TLS.",
        broken="No encrypted connection (TLS) to {host}: its certificate is not accepted or the port "
        "does not speak TLS",
        advice="check scheme and port in PANDA_URL_SSL and the trusted authorities (REQUESTS_CA_BUNDLE)",
        exceptions=(ssl.SSLCertVerificationError, ssl.CertificateError),
        not_executed=True,
    )
    NAME_NOT_FOUND = _Row(
        "name-not-found",
        message="The host's name has no address. Check the URL and the network.",
        broken="The name of the host {host} cannot be resolved",
        advice="check PANDA_URL_SSL and the network",
        exceptions=(socket.gaierror, pool_errors.NameResolutionError),
        not_executed=True,
    )
    BAD_URL = _Row(
        "bad-url",
        message="The URL cannot be used.",
        broken="PANDA_URL_SSL is not a URL that can be used: {endpoint}",
        exceptions=(
            pool_errors.LocationParseError,
            requests.exceptions.InvalidURL,
            requests.exceptions.InvalidSchema,
            requests.exceptions.MissingSchema,
            requests.exceptions.InvalidHeader,
            requests.exceptions.UnrewindableBodyError,
        ),
        not_executed=True,
    )
    CONNECTION_REFUSED = _Row(
        "connection-refused",
        message="Nothing listens there: the connection was refused.",
        broken="The connection to {host} was refused: no PanDA server listens there",
        advice="check the port in PANDA_URL_SSL, or whether the server is down",
        exceptions=(ConnectionRefusedError,),
        not_executed=True,
    )
    UNREACHABLE = _Row(
        "unreachable",
        message="The host cannot be reached.",
        broken="There is no way to {host}",
        advice="check network, VPN and proxy settings",
        exceptions=(pool_errors.NewConnectionError, pool_errors.ProxyError),
        not_executed=True,
    )
    CONNECT_TIMEOUT = _Row(
        "connect-timeout",
        message="The host does not answer.",
        broken="{host} does not answer the attempt to connect",
        advice="it is down or behind a firewall",
        exceptions=(pool_errors.ConnectTimeoutError, requests.exceptions.ConnectTimeout),
        not_executed=True,
    )
    READ_TIMEOUT = _Row(
        "read-timeout",
        message="The request was sent, but no complete reply came in time.",
        broken="{host} took the request, but its reply did not come in time",
        advice="the server is overloaded or hangs",
        exceptions=(requests.exceptions.ReadTimeout, pool_errors.ReadTimeoutError),
    )
    NOT_ASKED = _Row(
        "not-asked",
        message="The server was not asked any more: it has kept this command waiting long enough.",
        broken="{host} does not answer",
        advice="the server is overloaded or hangs",
        not_executed=True,
    )
    TOO_LONG = _Row(
        "too-long",
        error=ReplyError,
        message="The reply is longer than any of PanDA.",
        broken="{host} sends a reply that does not end",
        advice="the URL is probably wrong",
    )
    REPLY_CUT = _Row(
        "reply-cut",
        error=ReplyError,
        message="The reply was cut short.",
        broken="The reply of {host} was cut short",
        advice="the server may be restarting",
        exceptions=(
            pool_errors.IncompleteRead,
            http.client.IncompleteRead,
            pool_errors.DecodeError,
            requests.exceptions.ContentDecodingError,
        ),
    )
    CONNECTION_LOST = _Row(
        "connection-lost",
        message="The connection was lost.",
        broken="The connection to {host} broke off before the reply",
        advice="the server may be restarting",
        exceptions=(OSError,),
    )
    PERMISSION = _Row(
        "permission",
        error=AuthenticationError,
        message="The server does not accept who we are. See 'panda_auth status'; log in with "
        "'panda_auth reset'.",
        broken="{host} answers, but gives no permission",
        advice="check the login with 'panda_auth status', log in with 'panda_auth reset'",
        statuses=(401, 403),
        not_executed=True,
    )
    NOT_FOUND = _Row(
        "not-found",
        error=ReplyError,
        message="The server has nothing there. Check the path of the URL.",
        broken="The URL is wrong: {host} has no PanDA relay at {endpoint}",
        advice="check the path in PANDA_URL_SSL",
        statuses=(404, 405, 410),
        not_executed=True,
    )
    TOO_LARGE = _Row(
        "too-large",
        error=RefusedError,
        message="The request is too large for the server.",
        statuses=(413,),
        not_executed=True,
    )
    BUSY = _Row(
        "busy",
        error=ServerError,
        message="The server has too much to do. Try again later.",
        broken="{host} has too much to do",
        advice="try again later",
        statuses=(429,),
        not_executed=True,
    )
    IDDS_DOWN = _Row(
        "idds-down",
        error=ServerError,
        message="PanDA answers, but iDDS behind it does not.",
        broken=_IDDS_IS_DOWN,
    )
    GATEWAY = _Row(
        "gateway",
        error=ServerError,
        message="A front end answers, the server behind it does not.",
        broken="The front end at {host} answers, but PanDA's relay behind it is down",
        statuses=(502, 503, 504),
    )
    REDIRECT = _Row(
        "redirect",
        error=ReplyError,
        message="The server points elsewhere. Check the URL.",
        broken="The URL is wrong: {endpoint} points elsewhere",
        advice="check PANDA_URL_SSL",
        statuses=range(300, 400),
        not_executed=True,
    )
    CLIENT_ERROR = _Row(
        "client-error",
        error=RefusedError,
        message="The server did not take the request.",
        statuses=range(400, 500),
        not_executed=True,
    )
    SERVER = _Row(
        "server",
        error=ServerError,
        message="The server failed.",
        broken="PanDA's relay at {host} is down: it answers with an internal error",
        statuses=range(500, 600),
    )
    WEB_PAGE = _Row(
        "web-page",
        error=ReplyError,
        message="A web page came back instead of data: the URL is probably wrong (PANDA_URL_SSL ends in "
        "/server/panda).",
        broken="The URL is wrong: {endpoint} gives a web page, not PanDA",
        advice="check PANDA_URL_SSL",
    )
    NOT_JSON = _Row("not-json", error=ReplyError, broken=_OTHER_PROTOCOL)
    SHAPE = _Row("shape", error=ReplyError, broken=_OTHER_PROTOCOL)
    RELAY = _Row(
        "relay",
        error=RefusedError,
        message="PanDA's relay refused or failed",
        broken="PanDA's relay at {host} works, but could not forward the command",
    )
    IDDS = _Row("idds", error=RefusedError, message="iDDS refused or failed", broken=_IDDS_IS_DOWN)
    API = _Row("api", error=RefusedError, message="PanDA refused or failed")
    NO_MATCH = _Row("no-match", error=RefusedError, not_executed=True)
    """The server knows no request or task of this id."""

    @property
    def not_executed(self) -> bool:
        """Whether the server certainly did not do what was asked."""
        return self.row.not_executed


# OpenSSL reasons that can only occur in the handshake, before any byte of
# the request is written.  Others (an alert, an end of file) may come later.
_HANDSHAKE_REASONS = frozenset(
    {
        "CERTIFICATE_VERIFY_FAILED",
        "WRONG_VERSION_NUMBER",
        "UNSUPPORTED_PROTOCOL",
        "SSLV3_ALERT_HANDSHAKE_FAILURE",
        "TLSV1_ALERT_PROTOCOL_VERSION",
        "NO_PROTOCOLS_AVAILABLE",
        "HTTP_REQUEST",
        "UNKNOWN_PROTOCOL",
        "DH_KEY_TOO_SMALL",
        "RECORD_LAYER_FAILURE",
        "PACKET_LENGTH_TOO_LONG",
    }
)

# Words of iDDS's client, which runs inside the relay, when it gets no answer
# from iDDS, the precise ones first, and what is said of them.
_NO_ANSWER_OF_IDDS = {
    "connection refused": "connection refused",
    "timed out": "timed out",
    "failed to connect": "no connection",
    "cannot connect": "no connection",
    "max retries exceeded": "no connection",
    "connection exception": "no connection",
}

# Refusals that come before anything is stored: by the relay's client of iDDS
# while it prepares the request, or by the database.  What else a relay says
# may come after it lost its own connection to iDDS, which has the request.
_DEFINITE_WORDS = (
    "is not a command of",
    "unexpected keyword argument",
    "missing 1 required positional",
    "cannot get local proxy",
    "datarighttruncation",
    "value too long",
)
_PERMISSION_WORDS = ("permission", "not authorized", "unauthorized", "not allowed", "denied")


def classify_exception(error: BaseException) -> Fault:
    """Find the fault behind an exception of the HTTP library or of the network, its causes included.

    An unknown exception counts as a connection lost after sending, because that is the careful answer.
    """
    links = tuple(_chain(error))
    if any(isinstance(link, ssl.SSLError) and link.reason in _HANDSHAKE_REASONS for link in links):
        return Fault.TLS
    for fault in Fault:
        if any(isinstance(link, fault.row.exceptions) for link in links):
            return fault
    return Fault.CONNECTION_LOST


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and everything that it wraps."""
    seen: set[int] = set()
    todo: list[object] = [error]
    while todo:
        link = todo.pop()
        if not isinstance(link, BaseException) or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        todo.extend((link.__cause__, link.__context__, getattr(link, "reason", None), *link.args))


def classify_status(status: int) -> Fault | None:
    """Find the fault that an HTTP status reports; `None` for 2xx."""
    if 200 <= status < 300:
        return None
    return next((fault for fault in Fault if status in fault.row.statuses), Fault.SERVER)


def shorten(text: str, limit: int = 300) -> str:
    """Put a text on one line and cut it after ``limit`` characters, saying how many more there are.

    Redact it first, so that no half of a secret stays.
    """
    text = " ".join(text.split())
    if len(text) <= limit:
        return text
    return f"{text[:limit]}... ({len(text) - limit} more characters)"


def looks_like_web_page(content_type: str, body: bytes) -> bool:
    """Tell whether a reply is HTML.

    PanDA itself sends JSON as ``text/html`` from its old entry points, so the content type is only a hint.
    """
    start = body[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<body")):
        return True
    return "html" in content_type and start.startswith(b"<")


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """One failed attempt to send a request.

    It holds text, not the library's exception: that one carries the request with its headers, and so the
    token.
    """

    fault: Fault
    text: str
    """Redacted words of the cause."""

    status: int | None = None
    """HTTP status, if there was a reply."""

    retry_after: float | None = None
    """Seconds that the server asked to wait."""

    reply: str = ""
    """Redacted beginning of the reply."""


def describe_exception(error: BaseException, secrets: Sequence[str]) -> FailedAttempt:
    """Describe an attempt that ended with an exception, with the secrets hidden."""
    return FailedAttempt(classify_exception(error), redact(_find_words(error), secrets))


def _find_words(error: BaseException) -> str:
    """Return the words of the most precise cause."""
    link: BaseException | None = error
    text = ""
    while link is not None:
        text = str(link) or text or type(link).__name__
        inside = (getattr(link, "reason", None), *link.args)
        link = next((item for item in inside if isinstance(item, BaseException)), None)
    # "HTTPConnection(host=..., port=...): what happened": the host is named
    # by the error's endpoint.
    return shorten(text.rpartition("): ")[2])


def describe_reply(
    response: requests.Response, fault: Fault, body: bytes, secrets: Sequence[str]
) -> FailedAttempt:
    """Describe an attempt whose reply has a status that means failure, with the secrets hidden."""
    text = f"HTTP status {response.status_code} {response.reason or ''}".rstrip()
    if fault is Fault.REDIRECT:
        text += f", to {redact(response.headers.get('Location', 'nowhere'), secrets)}"
    if looks_like_web_page(response.headers.get("Content-Type", ""), body):
        text += ", with a web page"
    reply = shorten(redact(body[:4000].decode("utf-8", "replace"), secrets))
    if fault is Fault.GATEWAY and "idds" in reply.lower():
        fault = Fault.IDDS_DOWN
    wait = response.headers.get("Retry-After", "")
    # Only its form in seconds is of use to us.
    seconds = float(wait) if wait.isascii() and wait.isdigit() else None
    return FailedAttempt(fault, text, response.status_code, seconds, reply)


def make_error(
    failure: FailedAttempt, *, endpoint: str, what: str, attempts: int, maybe_sent: bool
) -> TransportError:
    """Make the error for a request whose last attempt failed."""
    row = failure.fault.row
    cause = failure.text + (f", after {attempts} attempts" if attempts > 1 else "")
    return row.error(
        f"{row.message} ({cause})",
        endpoint=redact(endpoint),
        request=redact(what),
        reply=failure.reply,
        fault=failure.fault,
        cause=cause,
        status=failure.status,
        maybe_sent=maybe_sent,
    )


def make_idds_down(cause: str, *, endpoint: str, what: str) -> TransportError:
    """Make the error for PanDA that answers while iDDS behind it does not."""
    failure = FailedAttempt(Fault.IDDS_DOWN, cause)
    return make_error(failure, endpoint=endpoint, what=what, attempts=1, maybe_sent=True)


def make_refusal(fault: Fault, said: Any, *, endpoint: str, what: str, who: str = "") -> TransportError:
    """Make the error for a refusal inside a reply, in the server's words.

    Words about permission or about an unknown request make the fault more precise; those of a library that
    could not reach iDDS are a fault of their own, and are not shown.  ``maybe_sent`` is set unless the words
    are known for a refusal before anything is stored, since a relay that lost its own connection to iDDS
    answers in the same way.
    """
    message = said.get("message") if isinstance(said, dict) else None
    words = shorten(redact(str(message or said)), 1000)
    lowered = words.lower()
    if "no match" in lowered:
        fault = Fault.NO_MATCH
    elif any(word in lowered for word in _PERMISSION_WORDS):
        fault = Fault.PERMISSION
    elif fault is not Fault.API and not who:
        for word, brief in _NO_ANSWER_OF_IDDS.items():
            if word in lowered:
                return make_idds_down(brief, endpoint=endpoint, what=what)
    definite = fault.not_executed or any(word in lowered for word in _DEFINITE_WORDS)
    return RefusedError(
        f"{who or fault.row.message}: {words}",
        endpoint=redact(endpoint),
        request=redact(what),
        fault=fault,
        cause=words,
        maybe_sent=not definite,
    )


def make_reply_error(
    message: str, value: Any, *, endpoint: str, what: str, fault: Fault = Fault.SHAPE
) -> ReplyError:
    """Make the error for a JSON value of another shape than the protocol has; it shows the value."""
    return ReplyError(
        message,
        endpoint=redact(endpoint),
        request=redact(what),
        reply=shorten(redact(json.dumps(value))),
        fault=fault,
        maybe_sent=True,
    )


def diagnose(error: BaseException) -> str:
    """Say in a sentence which part between here and iDDS does not work, and what to check.

    The text of errors that are not in the table of faults is returned as it is.
    """
    if not isinstance(error, TransportError):
        return str(error) or type(error).__name__
    row = next((fault.row for fault in Fault if fault == error.fault), None)
    if row is None or not row.broken:
        return str(error)
    host = urlsplit(error.endpoint).netloc or error.endpoint or "the server"
    broken = row.broken.format(host=host, endpoint=error.endpoint or host)
    # A URL at the end of the sentence gets no full stop: somebody may copy it.
    end = f"; {row.advice}." if row.advice else "" if row.broken.endswith("}") else "."
    return f"{broken}{end} [{error.reply or error.cause or error.message}]"
