"""Taking secrets out of text before a person or a log sees it: bearer tokens,
JSON web tokens, the named values of OAuth replies, private keys, and any
value that the caller knows to be secret.
"""

__all__ = ["cut", "redact"]

import re
from collections.abc import Iterable

_HIDDEN = "[hidden]"

# Order matters: whole structures before what may lie inside them.
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"-----BEGIN [A-Z ]+-----.*?(?:-----END [A-Z ]+-----|\Z)", re.DOTALL), _HIDDEN),
    # RFC 7519: two base64url JSON objects, which both begin with '{"', then
    # the signature, which a cut text may lack.
    (re.compile(r"eyJ[\w-]+\.[\w-]+(?:\.[\w-]*)*"), _HIDDEN),
    (re.compile(r"(?i)\b(bearer|basic)\s+(?!\[hidden\])[\w.~+/=-]{6,}"), rf"\1 {_HIDDEN}"),
    (
        re.compile(
            r"(?i)\b((?:access|refresh|id)_token|client_secret|device_code|password|assertion)"
            r"(\\?[\"']?\s*[:=]\s*\\?[\"']?)(?!\[hidden\])[^\s\"'&,;}\\]+"
        ),
        rf"\1\2{_HIDDEN}",
    ),
    # userinfo of a URL
    (re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://)[^/\s:@]+:[^/\s@]+@"), rf"\1{_HIDDEN}@"),
)

# Shorter values are words that may occur by chance.
_SHORTEST_SECRET = 6


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Replace everything that looks like a secret by ``[hidden]``.

    Parameters
    ----------
    text : `str`
        Any text.
    secrets : `~collections.abc.Iterable` [`str`], optional
        Values known to be secret, hidden wherever they occur.
    """
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, _HIDDEN)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def cut(text: str, limit: int = 300) -> str:
    """Put a text on one line and cut it after ``limit`` characters, saying how many more there are.

    Redact it first, so that no half of a secret stays.
    """
    text = " ".join(text.split())
    if len(text) <= limit:
        return text
    return f"{text[:limit]}... ({len(text) - limit} more characters)"
