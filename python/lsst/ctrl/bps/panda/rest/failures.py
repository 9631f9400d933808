"""One failed attempt: what is kept of it, and the error that a user sees."""

__all__ = ["Failure", "describe_exception", "describe_reply", "make_error"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import requests

from ..errors import (
    AuthenticationError,
    ConnectionFailedError,
    RefusedError,
    ReplyError,
    ServerError,
    TransportError,
)
from .faults import Fault, classify_exception, looks_like_web_page
from .redaction import cut, redact


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
