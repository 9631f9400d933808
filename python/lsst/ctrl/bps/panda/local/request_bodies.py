"""The bodies of requests, unpacked and decoded within limits: what is strange is refused before it costs
anything.
"""

from __future__ import annotations

__all__ = ["LARGEST_CATALOG", "LARGEST_FORM", "LARGEST_UPLOAD", "BodyError", "parse_json", "unpack"]

import json
import math
import zlib
from typing import Any

LARGEST_FORM = 4096
"""Bytes of what a page sends, unless it is a file."""

LARGEST_CATALOG = 2**20
"""Bytes of a catalogue that is uploaded."""

LARGEST_UPLOAD = LARGEST_CATALOG + LARGEST_FORM
"""Bytes of the request with it."""

_GZIP = b"\x1f\x8b"
_SMALL = 16 * 1024 * 1024
_RATIO = 100
"""Largest ratio of unpacked and packed size, above `_SMALL`; requests of runs have 2 to 20."""

_DEPTH = 64
_DIGITS = 19


class BodyError(ValueError):
    """A body that is not accepted."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status of the reply."""


def unpack(body: bytes, largest: int) -> bytes:
    """Unpack a body that may be packed with gzip, whatever its headers say; `BodyError` if it is damaged, or
    has more than ``largest`` bytes then.
    """
    if not body.startswith(_GZIP):
        return body
    limit = min(largest, max(_SMALL, _RATIO * len(body)))
    stream = zlib.decompressobj(wbits=31)
    try:
        data = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise BodyError(f"the body cannot be unpacked: {error}") from None
    if len(data) > limit:
        raise BodyError(f"the body has more than {limit} bytes when it is unpacked", 413)
    if not stream.eof or stream.unused_data:
        raise BodyError("the body cannot be unpacked: it is cut, or there is something behind its end")
    return data


def _integer(text: str) -> int:
    value = int(text) if len(text) <= _DIGITS + 1 else 2**63
    if abs(value) >= 2**63:
        raise BodyError(f"the number {text[:_DIGITS]}... is out of range")
    return value


def _real(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise BodyError(f"the number {text[:_DIGITS]} is out of range")
    return value


def _constant(text: str) -> float:
    raise BodyError(f"{text} is not a number of JSON")


def parse_json(text: bytes | str, *, depth: int = _DEPTH) -> Any:
    """Parse JSON; `BodyError` for what is no JSON, for numbers that others could not store, and for
    values that are nested deeper than ``depth``.
    """
    try:
        value = json.loads(text, parse_int=_integer, parse_float=_real, parse_constant=_constant)
    except BodyError:
        raise
    except ValueError as error:
        raise BodyError(f"it is not JSON ({str(error)[:200]})") from None
    except RecursionError:
        raise BodyError("it is nested too deeply") from None
    level = [value]
    for _ in range(depth):
        level = [
            item
            for node in level
            if isinstance(node, dict | list)
            for item in (node.values() if isinstance(node, dict) else node)
            if isinstance(item, dict | list)
        ]
        if not level:
            return value
    raise BodyError(f"it is nested deeper than {depth} levels")
