"""What can go wrong between us and a server, as one enumeration, and the pure
functions that find it in an exception of the HTTP library or in a reply.
"""

__all__ = ["Fault", "classify_exception", "classify_status", "looks_like_web_page"]

import enum
import http.client
import socket
import ssl
from collections.abc import Iterator, Mapping

import requests
import urllib3.exceptions as pool_errors


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
