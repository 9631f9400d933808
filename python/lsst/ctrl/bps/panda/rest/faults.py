"""What can go wrong between us and a server: how it is found in an exception or a reply, the error that a
user sees, and which part does not work.
"""

from __future__ import annotations

__all__ = [
    "Failure",
    "Fault",
    "classify_exception",
    "classify_status",
    "describe_exception",
    "describe_reply",
    "diagnose",
    "looks_like_web_page",
    "make_error",
]

import enum
import http.client
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from .redaction import cut, redact


class Fault(enum.StrEnum):
    """Kinds of failure; the value is stable and travels on errors."""

    NAME_NOT_FOUND = "name-not-found"
    """The host's name has no address."""
    CONNECTION_REFUSED = "connection-refused"
    """The host answers that nothing listens on that port."""
    UNREACHABLE = "unreachable"
    """No way to the host, or a proxy on the way refused."""
    CONNECT_TIMEOUT = "connect-timeout"
    """Nobody answered the attempt to connect."""
    TLS = "tls"
    """The encrypted connection could not be set up."""
    BAD_URL = "bad-url"
    """The URL cannot be used at all."""
    READ_TIMEOUT = "read-timeout"
    """The request was sent and no (complete) reply came in time."""
    CONNECTION_LOST = "connection-lost"
    """The connection broke after the request or a part of it was sent."""
    REPLY_CUT = "reply-cut"
    """The reply ended before its announced length."""
    PERMISSION = "permission"
    """HTTP 401 or 403, or the server's own words for it."""
    NOT_FOUND = "not-found"
    """HTTP 404, 405 or 410: nothing of that name at this server."""
    REDIRECT = "redirect"
    """The server points elsewhere; redirects are not followed."""
    TOO_LARGE = "too-large"
    """HTTP 413: the request exceeds what the server takes."""
    BUSY = "busy"
    """HTTP 429: too many requests; not executed."""
    CLIENT_ERROR = "client-error"
    """Any other HTTP 4xx."""
    GATEWAY = "gateway"
    """HTTP 502, 503, 504: a front end answers, the server behind it not."""
    SERVER = "server"
    """Any other HTTP 5xx."""
    WEB_PAGE = "web-page"
    """A page for people came back instead of data."""
    NOT_JSON = "not-json"
    """The reply is not JSON, or ends in the middle of it."""
    SHAPE = "shape"
    """JSON of another shape than the protocol has."""
    RELAY = "relay"
    """PanDA's relay understood and refused, or failed to forward."""
    IDDS = "idds"
    """iDDS, behind the relay, refused or failed."""
    API = "api"
    """PanDA's own API understood and refused."""
    NO_MATCH = "no-match"
    """The server knows no request or task of this id."""

    @property
    def before_sending(self) -> bool:
        """Nothing of the request can have reached the server."""
        return self in _BEFORE_SENDING

    @property
    def not_executed(self) -> bool:
        """The server certainly did not do what was asked."""
        return self in _BEFORE_SENDING or self in _NOT_EXECUTED


_BEFORE_SENDING = frozenset(
    {
        Fault.NAME_NOT_FOUND,
        Fault.CONNECTION_REFUSED,
        Fault.UNREACHABLE,
        Fault.CONNECT_TIMEOUT,
        Fault.TLS,
        Fault.BAD_URL,
    }
)
_NOT_EXECUTED = frozenset(
    {
        Fault.PERMISSION,
        Fault.NOT_FOUND,
        Fault.REDIRECT,
        Fault.TOO_LARGE,
        Fault.BUSY,
        Fault.CLIENT_ERROR,
    }
)


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


def classify_exception(error: BaseException) -> Fault:
    """Find the kind of failure of an exception of the HTTP library.

    Parameters
    ----------
    error : `BaseException`
        What ``requests`` raised; its causes are looked at, too.

    Returns
    -------
    fault : `Fault`
        Kind of failure.  What cannot be recognised counts as a connection
        lost after sending, because that is the careful answer.
    """
    links = tuple(_chain(error))
    if any(isinstance(link, ssl.SSLError) and link.reason in _HANDSHAKE_REASONS for link in links):
        return Fault.TLS
    for types, fault in _EXCEPTIONS:
        if any(isinstance(link, types) for link in links):
            return fault
    return Fault.CONNECTION_LOST


# The first line that fits any link of the chain wins: precise causes first,
# vague wrappers last.
_EXCEPTIONS: tuple[tuple[tuple[type[BaseException], ...], Fault], ...] = (
    ((ssl.SSLCertVerificationError, ssl.CertificateError), Fault.TLS),
    ((socket.gaierror, pool_errors.NameResolutionError), Fault.NAME_NOT_FOUND),
    ((pool_errors.LocationParseError, requests.exceptions.InvalidURL), Fault.BAD_URL),
    ((requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema), Fault.BAD_URL),
    ((requests.exceptions.InvalidHeader, requests.exceptions.UnrewindableBodyError), Fault.BAD_URL),
    ((ConnectionRefusedError,), Fault.CONNECTION_REFUSED),
    ((pool_errors.NewConnectionError, pool_errors.ProxyError), Fault.UNREACHABLE),
    ((pool_errors.ConnectTimeoutError, requests.exceptions.ConnectTimeout), Fault.CONNECT_TIMEOUT),
    ((requests.exceptions.ReadTimeout, pool_errors.ReadTimeoutError), Fault.READ_TIMEOUT),
    ((pool_errors.IncompleteRead, http.client.IncompleteRead), Fault.REPLY_CUT),
    ((pool_errors.DecodeError, requests.exceptions.ContentDecodingError), Fault.REPLY_CUT),
    ((OSError,), Fault.CONNECTION_LOST),
)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Give an exception and everything that it wraps."""
    seen: set[int] = set()
    todo: list[object] = [error]
    while todo:
        link = todo.pop()
        if not isinstance(link, BaseException) or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        todo.extend((link.__cause__, link.__context__, getattr(link, "reason", None), *link.args))


_STATUSES: Mapping[int, Fault] = {
    401: Fault.PERMISSION,
    403: Fault.PERMISSION,
    404: Fault.NOT_FOUND,
    405: Fault.NOT_FOUND,
    410: Fault.NOT_FOUND,
    413: Fault.TOO_LARGE,
    429: Fault.BUSY,
    502: Fault.GATEWAY,
    503: Fault.GATEWAY,
    504: Fault.GATEWAY,
}
_CLASSES: Mapping[int, Fault] = {
    3: Fault.REDIRECT,
    4: Fault.CLIENT_ERROR,
    5: Fault.SERVER,
}


def classify_status(status: int) -> Fault | None:
    """Find the kind of failure of an HTTP status.

    Parameters
    ----------
    status : `int`
        HTTP status.

    Returns
    -------
    fault : `Fault` or `None`
        Kind of failure; `None` for 2xx.
    """
    if 200 <= status < 300:
        return None
    return _STATUSES.get(status) or _CLASSES.get(status // 100, Fault.SERVER)


def looks_like_web_page(content_type: str, body: bytes) -> bool:
    """Tell whether a reply is a page for people.

    Parameters
    ----------
    content_type : `str`
        Value of the header of that name; PanDA itself sends JSON as
        ``text/html`` from its old entry points, so it is only a hint.
    body : `bytes`
        The reply.

    Returns
    -------
    is_page : `bool`
        `True` if it is HTML.
    """
    start = body[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<body")):
        return True
    return "html" in content_type and start.startswith(b"<")


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed attempt.

    It holds text, not the library's exception: that one carries the request
    with its headers, and so the token.

    Parameters
    ----------
    fault : `Fault`
        Kind of failure.
    text : `str`
        Redacted words of the cause.
    status : `int` or `None`
        HTTP status, if there was a reply.
    retry_after : `float` or `None`
        Seconds the server asked to wait.
    reply : `str`
        Redacted beginning of the reply.
    """

    fault: Fault
    text: str
    status: int | None = None
    retry_after: float | None = None
    reply: str = ""


def describe_exception(error: BaseException, secrets: Sequence[str]) -> Failure:
    """Describe an exception of the HTTP library.

    Parameters
    ----------
    error : `BaseException`
        What was raised.
    secrets : `~collections.abc.Sequence` [`str`]
        Values to hide.

    Returns
    -------
    failure : `Failure`
        Redacted text only.
    """
    return Failure(classify_exception(error), redact(_find_words(error), secrets))


def _find_words(error: BaseException) -> str:
    """Give the words of the most precise cause."""
    link: BaseException | None = error
    text = ""
    while link is not None:
        text = str(link) or text or type(link).__name__
        inside = (getattr(link, "reason", None), *link.args)
        link = next((item for item in inside if isinstance(item, BaseException)), None)
    # "HTTPConnection(host=..., port=...): what happened": the host is named
    # by the error's endpoint.
    return cut(text.rpartition("): ")[2])


def describe_reply(response: requests.Response, fault: Fault, body: bytes, secrets: Sequence[str]) -> Failure:
    """Describe a reply whose status says failure.

    Parameters
    ----------
    response : `requests.Response`
        Status and headers.
    fault : `Fault`
        What the status means.
    body : `bytes`
        The reply.
    secrets : `~collections.abc.Sequence` [`str`]
        Values to hide.

    Returns
    -------
    failure : `Failure`
        Redacted text only.
    """
    text = f"HTTP status {response.status_code} {response.reason or ''}".rstrip()
    if fault is Fault.REDIRECT:
        text += f", to {redact(response.headers.get('Location', 'nowhere'), secrets)}"
    if looks_like_web_page(response.headers.get("Content-Type", ""), body):
        text += ", with a web page"
    return Failure(
        fault,
        text,
        response.status_code,
        _parse_seconds(response.headers.get("Retry-After", "")),
        cut(redact(body[:4000].decode("utf-8", "replace"), secrets)),
    )


def _parse_seconds(text: str) -> float | None:
    """Read ``Retry-After``; only its form in seconds is of use to us."""
    return float(text) if text.isascii() and text.isdigit() else None


_ERRORS: Mapping[Fault, tuple[type[TransportError], str]] = {
    Fault.NAME_NOT_FOUND: (
        ConnectionFailedError,
        "The host's name has no address. Check the URL and the network.",
    ),
    Fault.CONNECTION_REFUSED: (ConnectionFailedError, "Nothing listens there: the connection was refused."),
    Fault.UNREACHABLE: (ConnectionFailedError, "The host cannot be reached."),
    Fault.CONNECT_TIMEOUT: (ConnectionFailedError, "The host does not answer."),
    Fault.TLS: (
        ConnectionFailedError,
        "No encrypted connection: the server's certificate is not accepted, or it does not speak TLS.",
    ),
    Fault.BAD_URL: (ConnectionFailedError, "The URL cannot be used."),
    Fault.READ_TIMEOUT: (ConnectionFailedError, "The request was sent, but no complete reply came in time."),
    Fault.CONNECTION_LOST: (ConnectionFailedError, "The connection was lost."),
    Fault.REPLY_CUT: (ReplyError, "The reply was cut short."),
    Fault.PERMISSION: (
        AuthenticationError,
        "The server does not accept who we are. See 'panda_auth status'; log in with 'panda_auth reset'.",
    ),
    Fault.NOT_FOUND: (ReplyError, "The server has nothing there. Check the path of the URL."),
    Fault.REDIRECT: (ReplyError, "The server points elsewhere. Check the URL."),
    Fault.TOO_LARGE: (RefusedError, "The request is too large for the server."),
    Fault.BUSY: (ServerError, "The server has too much to do. Try again later."),
    Fault.GATEWAY: (ServerError, "A front end answers, the server behind it does not."),
    Fault.SERVER: (ServerError, "The server failed."),
    Fault.CLIENT_ERROR: (RefusedError, "The server did not take the request."),
}


def make_error(
    failure: Failure, *, endpoint: str, what: str, attempts: int, maybe_sent: bool
) -> TransportError:
    """Make the error that a user sees.

    Parameters
    ----------
    failure : `Failure`
        How the last attempt failed.
    endpoint : `str`
        What was asked where.
    what : `str`
        What was asked.
    attempts : `int`
        How often.
    maybe_sent : `bool`
        Whether one of the attempts may have had its effect.

    Returns
    -------
    error : `TransportError`
        The child that fits.
    """
    kind, words = _ERRORS[failure.fault]
    tried = f", after {attempts} attempts" if attempts > 1 else ""
    return kind(
        f"{words} ({failure.text}{tried})",
        endpoint=redact(endpoint),
        request=redact(what),
        reply=failure.reply,
        fault=failure.fault,
        status=failure.status,
        maybe_sent=maybe_sent,
    )


_OTHER_PROTOCOL = "The URL is probably wrong: what answers at {endpoint} does not speak PanDA's protocol."

_SENTENCES: Mapping[str, str] = {
    Fault.NAME_NOT_FOUND: (
        "The name of the host {host} cannot be resolved; check PANDA_URL_SSL and the network."
    ),
    Fault.CONNECTION_REFUSED: (
        "The connection to {host} was refused: no PanDA server listens there; check the port in "
        "PANDA_URL_SSL, or whether the server is down."
    ),
    Fault.UNREACHABLE: "There is no way to {host}; check network, VPN and proxy settings.",
    Fault.CONNECT_TIMEOUT: "{host} does not answer the attempt to connect; it is down or behind a firewall.",
    Fault.TLS: (
        "No encrypted connection (TLS) to {host}: its certificate is not accepted or the port does not "
        "speak TLS; check scheme and port in PANDA_URL_SSL and the trusted authorities (REQUESTS_CA_BUNDLE)."
    ),
    Fault.BAD_URL: "PANDA_URL_SSL is not a URL that can be used: {endpoint}",
    Fault.READ_TIMEOUT: (
        "{host} took the request, but its reply did not come in time; the server is overloaded or hangs."
    ),
    Fault.CONNECTION_LOST: (
        "The connection to {host} broke off before the reply; the server may be restarting."
    ),
    Fault.REPLY_CUT: "The reply of {host} was cut short; the server may be restarting.",
    Fault.PERMISSION: (
        "{host} answers, but gives no permission; check the login with 'panda_auth status', "
        "log in with 'panda_auth reset'."
    ),
    Fault.GATEWAY: "The front end at {host} answers, but PanDA's relay behind it is down.",
    Fault.SERVER: "PanDA's relay at {host} is down: it answers with an internal error.",
    Fault.BUSY: "{host} has too much to do; try again later.",
    Fault.RELAY: "PanDA's relay at {host} works, but could not forward the command.",
    Fault.IDDS: "PanDA's relay at {host} works, but iDDS behind it is down.",
    Fault.WEB_PAGE: "The URL is wrong: {endpoint} gives a web page, not PanDA; check PANDA_URL_SSL.",
    Fault.NOT_JSON: _OTHER_PROTOCOL,
    Fault.SHAPE: _OTHER_PROTOCOL,
    Fault.NOT_FOUND: (
        "The URL is wrong: {host} has no PanDA relay at {endpoint}; check the path in PANDA_URL_SSL."
    ),
    Fault.REDIRECT: "The URL is wrong: {endpoint} points elsewhere; check PANDA_URL_SSL.",
}

# Words of iDDS's client, which runs inside the relay, when it gets no answer
# from iDDS: then the relay's own failure is that of iDDS.
_IDDS_IS_DOWN = (
    "connection refused",
    "max retries exceeded",
    "timed out",
    "cannot connect",
    "failed to connect",
)


def diagnose(error: BaseException) -> str:
    """Say in a sentence which part does not work.

    Parameters
    ----------
    error : `BaseException`
        What a call raised.

    Returns
    -------
    sentence : `str`
        It names the host and what to check, and ends with the server's
        words.  Errors that are not of the transport are given as they are.
    """
    if not isinstance(error, TransportError):
        return str(error) or type(error).__name__
    sentence = _SENTENCES.get(_locate(error))
    if sentence is None:
        return str(error)
    host = urlsplit(error.endpoint).netloc or error.endpoint or "the server"
    # The transport's own messages end in the cause, in parentheses.
    said = error.reply or error.message.partition(". (")[2].removesuffix(")") or error.message
    return f"{sentence.format(host=host, endpoint=error.endpoint or host)} [{said}]"


def _locate(error: TransportError) -> str:
    lowered = error.message.lower()
    if error.fault == Fault.GATEWAY and "idds" in error.reply.lower():
        return Fault.IDDS
    if error.fault == Fault.RELAY and any(words in lowered for words in _IDDS_IS_DOWN):
        return Fault.IDDS
    return error.fault
