"""Reading replies: JSON or a clear error, and the three envelopes that PanDA
and iDDS put around values, where failures hide inside success.
"""

__all__ = ["parse_json", "read_api", "read_relay", "shape_error", "unwrap_api", "unwrap_relay"]

import contextlib
import json
from collections.abc import Iterator
from typing import Any, NoReturn

from ..errors import RefusedError, ReplyError, TransportError
from .faults import Fault, looks_like_web_page
from .redaction import cut, redact
from .transport import Reply

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


def parse_json(reply: Reply, what: str) -> Any:
    """Decode a reply.

    Parameters
    ----------
    reply : `Reply`
        What came back.
    what : `str`
        What was asked, for messages.

    Returns
    -------
    value : JSON value
        Anything; dates in PanDA's notation are left as they are.

    Raises
    ------
    ReplyError
        Raised if it is a web page, empty, not JSON, or cut.
    """
    if looks_like_web_page(reply.headers.get("Content-Type", ""), reply.body):
        _misunderstood(
            "A web page came back instead of data: the URL is probably wrong "
            "(PANDA_URL_SSL ends in /server/panda).",
            Fault.WEB_PAGE,
            reply,
            what,
        )
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
    _misunderstood(words, Fault.NOT_JSON, reply, what)


def read_relay(reply: Reply, what: str) -> Any:
    """Decode a reply of the relay and take iDDS's value out of it.

    Parameters
    ----------
    reply : `Reply`
        What came back at last.
    what : `str`
        What was asked, for messages.

    Returns
    -------
    inner : JSON value
        As of `unwrap_relay`.

    Raises
    ------
    TransportError
        Raised as by `parse_json` and `unwrap_relay`; ``maybe_sent`` is set
        also if an attempt before this reply may have had an effect.
    """
    with _recall_attempts(reply):
        return unwrap_relay(parse_json(reply, what), endpoint=reply.url, what=what)


def read_api(reply: Reply, what: str) -> Any:
    """Decode a reply of PanDA's own API and take the value out of it.

    Parameters
    ----------
    reply : `Reply`
        What came back at last.
    what : `str`
        What was asked, for messages.

    Returns
    -------
    data : JSON value
        As of `unwrap_api`.

    Raises
    ------
    TransportError
        Raised as by `parse_json` and `unwrap_api`; ``maybe_sent`` is set also
        if an attempt before this reply may have had an effect.
    """
    with _recall_attempts(reply):
        return unwrap_api(parse_json(reply, what), endpoint=reply.url, what=what)


def unwrap_relay(value: Any, *, endpoint: str, what: str) -> Any:
    """Take iDDS's value out of the relay's reply.

    The relay answers ``[true, value]`` or ``[false, text]``; iDDS's client,
    which the relay runs, gives ``[false, text]`` as value when it failed; and
    commands give ``[[status, {"status":..., "message":...}]]`` as value, with
    a negative status for a refusal.

    Parameters
    ----------
    value : JSON value
        The decoded reply.
    endpoint : `str`
        What was asked where, for messages.
    what : `str`
        What was asked, for messages.

    Returns
    -------
    inner : JSON value
        The value, if it was a success in all three.

    Raises
    ------
    RefusedError
        Raised for a refusal at any depth; ``fault`` is ``relay`` for the
        outermost, ``idds``, ``permission`` or ``no-match`` for the others.
        ``maybe_sent`` is set unless the words are known for a refusal
        before anything is stored, since a relay that lost its own connection
        to iDDS answers in the same way.
    ReplyError
        Raised if the reply has another shape.
    """
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], bool)):
        raise shape_error("The relay's reply has an unknown shape.", value, endpoint=endpoint, what=what)
    done, inner = value
    if not done:
        raise _refusal("PanDA's relay refused or failed", inner, Fault.RELAY, endpoint, what)
    if _is_pair(inner, bool) and inner[0] is False:
        raise _refusal("iDDS refused or failed", inner[1], Fault.IDDS, endpoint, what)
    for item in inner if isinstance(inner, list) else ():
        if _is_pair(item, int) and item[0] < 0:
            raise _refusal("iDDS refused", item[1], Fault.IDDS, endpoint, what)
    if _is_pair(inner, int) and not isinstance(inner[0], bool) and inner[0] < 0:
        raise _refusal("iDDS refused", inner[1], Fault.IDDS, endpoint, what)
    return inner


def unwrap_api(value: Any, *, endpoint: str, what: str) -> Any:
    """Take the value out of the envelope of PanDA's own API.

    The envelope is ``{"success": bool, "message": str, "data": value}``; a
    refusal comes with HTTP status 200.

    Parameters
    ----------
    value : JSON value
        The decoded reply.
    endpoint : `str`
        What was asked where, for messages.
    what : `str`
        What was asked, for messages.

    Returns
    -------
    data : JSON value
        The value.

    Raises
    ------
    RefusedError
        Raised if the server says that it did not succeed.
    ReplyError
        Raised if the reply has another shape.
    """
    if not (isinstance(value, dict) and isinstance(value.get("success"), bool)):
        raise shape_error(
            "The reply of PanDA's API has an unknown shape.", value, endpoint=endpoint, what=what
        )
    if not value["success"]:
        raise _refusal("PanDA refused or failed", value.get("message"), Fault.API, endpoint, what)
    return value.get("data")


def shape_error(
    words: str, value: Any, *, endpoint: str, what: str, fault: Fault = Fault.SHAPE
) -> ReplyError:
    """Make the error for a value of another shape than the protocol has.

    Parameters
    ----------
    words : `str`
        What was expected.
    value : JSON value
        What came.
    endpoint : `str`
        What was asked where.
    what : `str`
        What was asked.
    fault : `Fault`, optional
        Kind of failure.

    Returns
    -------
    error : `ReplyError`
        It shows the value.
    """
    return ReplyError(
        words,
        endpoint=redact(endpoint),
        request=redact(what),
        reply=cut(redact(json.dumps(value))),
        fault=fault,
        maybe_sent=True,
    )


@contextlib.contextmanager
def _recall_attempts(reply: Reply) -> Iterator[None]:
    """Let what is raised inside know of attempts before this reply: a refusal
    says that this attempt had no effect; one before it, whose reply was lost,
    may have had it.
    """
    try:
        yield
    except TransportError as error:
        error.maybe_sent = error.maybe_sent or reply.maybe_sent
        raise


def _is_pair(value: Any, first: type) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], first)


def _refusal(who: str, cause: Any, fault: Fault, endpoint: str, what: str) -> TransportError:
    """Make the error of a refusal, in the server's words."""
    message = cause.get("message") if isinstance(cause, dict) else None
    words = cut(redact(str(message or cause)), 1000)
    lowered = words.lower()
    definite = any(word in lowered for word in ("no match", *_DEFINITE_WORDS, *_PERMISSION_WORDS))
    if "no match" in lowered:
        fault = Fault.NO_MATCH
    elif any(word in lowered for word in _PERMISSION_WORDS):
        fault = Fault.PERMISSION
    return RefusedError(
        f"{who}: {words}",
        endpoint=redact(endpoint),
        request=redact(what),
        fault=fault,
        maybe_sent=not definite,
    )


def _misunderstood(words: str, fault: Fault, reply: Reply, what: str) -> NoReturn:
    raise ReplyError(
        words,
        endpoint=redact(reply.url),
        request=redact(what),
        reply=cut(redact(reply.body[:4000].decode("utf-8", "replace"))),
        fault=fault,
        status=reply.status,
        maybe_sent=True,
    )
