"""Values inside replies: enums, numbers, texts and dates as iDDS and PanDA
write them.  Each function takes one decoded JSON value and gives a plain
Python one, or raises `ReplyError` that shows what came.
"""

from __future__ import annotations

__all__ = [
    "CONTENT_STATUSES",
    "PROCESSING_STATUSES",
    "REQUEST_STATUSES",
    "TRANSFORM_STATUSES",
    "cut",
    "date_of",
    "integer_of",
    "name_of",
    "optional_integer",
    "rows_of",
    "text_of",
]

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ..errors import ReplyError


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# The position of a name is its number in iDDS (idds.common.constants, 2.6.21).
REQUEST_STATUSES = _names(
    "New Ready Transforming Finished SubFinished Failed Extend ToCancel Cancelling Cancelled ToSuspend"
    " Suspending Suspended ToResume Resuming ToExpire Expiring Expired ToFinish ToForceFinish Terminating"
    " Building Built Throttling ToClose"
)
TRANSFORM_STATUSES = _names(
    "New Ready Transforming Finished SubFinished Failed Extend ToCancel Cancelling Cancelled ToSuspend"
    " Suspending Suspended ToResume Resuming ToExpire Expiring Expired ToFinish ToForceFinish Terminating"
    " Building Built Queue Throttling WaitForTrigger"
)
PROCESSING_STATUSES = _names(
    "New Submitting Submitted Running Finished Failed Lost Cancel FinishedOnStep FinishedOnExec FinishedTerm"
    " SubFinished ToCancel Cancelling Cancelled ToSuspend Suspending Suspended ToResume Resuming ToExpire"
    " Expiring Expired TimeOut ToFinish ToForceFinish Broken Terminating ToTrigger Triggering Synchronizing"
    " Prepared"
)
CONTENT_STATUSES = _names(
    "New Processing Available Failed FinalFailed Lost Deleted Mapped FakeAvailable Missing Cancelled"
    " Activated SubAvailable FinalSubAvailable PreProcessing"
)

_MONTHS = {
    month: number
    for number, month in enumerate(_names("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec"), start=1)
}
_CUT = 300


def cut(value: Any, limit: int = _CUT) -> str:
    """Render a value as one short line, for a message.

    Parameters
    ----------
    value : any
        What came.
    limit : `int`, optional
        Greatest length, characters.

    Returns
    -------
    text : `str`
        At most ``limit`` characters, and three dots if something was cut.
    """
    if isinstance(value, str) and value.strip():
        text = value
    else:
        try:
            text = json.dumps(value, default=str)
        except (TypeError, ValueError, RecursionError):
            text = repr(value)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit] + "..."


def rows_of(value: Any, what: str) -> Iterator[Mapping[str, Any]]:
    """Go through a reply that must be a list of objects.

    Parameters
    ----------
    value : any
        Decoded reply.
    what : `str`
        What was asked for, for messages (``requests``).

    Yields
    ------
    row : `~collections.abc.Mapping`
        One object.

    Raises
    ------
    ReplyError
        Raised if the reply is anything else.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ReplyError(f"The reply is not a list of {what}", reply=cut(value))
    for row in value:
        if not isinstance(row, Mapping):
            raise ReplyError(f"The list of {what} holds something that is not an object", reply=cut(row))
        yield row


def name_of(value: Any, names: Sequence[str] = ()) -> str:
    """Read an enum.

    Parameters
    ----------
    value : any
        An object as iDDS writes it (``{"attributes": {"_name_": ...}}``), a
        name (with or without its class), a number, or `None`.
    names : `~collections.abc.Sequence` [`str`], optional
        Names by number.

    Returns
    -------
    name : `str`
        The name; empty for `None`.  A number without a name is given as its
        digits, so that it matches nothing and is still shown.

    Raises
    ------
    ReplyError
        Raised for any other shape.
    """
    if isinstance(value, Mapping):
        attributes = value.get("attributes")
        name = attributes.get("_name_") if isinstance(attributes, Mapping) else None
        if isinstance(name, str):
            return name
    elif isinstance(value, str):
        return value.rpartition(".")[2]
    elif value is None:
        return ""
    elif isinstance(value, int) and not isinstance(value, bool):
        return names[value] if 0 <= value < len(names) else str(value)
    raise ReplyError("A status is not understood", reply=cut(value))


def optional_integer(value: Any, what: str) -> int | None:
    """Read a number that may be absent.

    Parameters
    ----------
    value : any
        A number, a text of digits (PanDA writes exit codes so), `None` or an
        empty text.
    what : `str`
        Name of the field, for the message.

    Returns
    -------
    number : `int` or `None`
        The number.

    Raises
    ------
    ReplyError
        Raised for anything else.
    """
    if type(value) is int:
        return value
    if value is None or value == "":
        return None
    if isinstance(value, float | str):
        try:
            return int(float(value))
        except (ValueError, OverflowError):
            pass
    raise ReplyError(f"The field {what} is not a number", reply=cut(value))


def integer_of(row: Mapping[str, Any], key: str) -> int:
    """Read a number that must be there.

    Parameters
    ----------
    row : `~collections.abc.Mapping`
        Object of a reply.
    key : `str`
        Name of the field.

    Returns
    -------
    number : `int`
        The number.

    Raises
    ------
    ReplyError
        Raised if it is absent or not a number; the text shows the row.
    """
    number = optional_integer(row.get(key), key)
    if number is None:
        raise ReplyError(f"The field {key} is missing", reply=cut(row))
    return number


def text_of(value: Any) -> str:
    """Read a text.

    Parameters
    ----------
    value : any
        A text, `None`, or something else, which is rendered.

    Returns
    -------
    text : `str`
        The text; empty for `None`.
    """
    if isinstance(value, str):
        return value
    return "" if value is None else cut(value)


def date_of(value: Any) -> datetime | None:
    """Read a date.

    Parameters
    ----------
    value : any
        ``Fri, 20 Nov 2026 08:49:34 UTC`` (iDDS), ``{"__datetime__": "..."}``
        with an ISO date (PanDA), or an ISO date.

    Returns
    -------
    date : `datetime.datetime` or `None`
        With time zone (UTC where none is given); `None` if there is no date
        or it is not understood, since nothing is decided by a date alone.
    """
    if isinstance(value, Mapping):
        value = value.get("__datetime__")
    if not isinstance(value, str):
        return None
    parts = value.split()
    try:
        if len(parts) == 6 and parts[2] in _MONTHS:
            hour, minute, second = parts[4].split(":")
            day, year = int(parts[1]), int(parts[3])
            return datetime(year, _MONTHS[parts[2]], day, int(hour), int(minute), int(second), tzinfo=UTC)
        date = datetime.fromisoformat(value)
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
