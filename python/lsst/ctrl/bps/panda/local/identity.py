"""Who asks: the user named by a bearer token, by a header, or the default."""

from __future__ import annotations

__all__ = ["USER_HEADER", "Headers", "Identity", "IdentityRules", "NotAllowedError", "identify"]

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

USER_HEADER = "X-PanDA-User"
"""Header by which a client without a token names its user."""

_LONGEST = 20
"""iDDS keeps this many characters of a user's name."""


class Headers(Protocol):
    """What is needed of HTTP headers."""

    def get(self, name: str, default: str, /) -> str:
        """Tell the value of a header, whatever the case of its name."""


class NotAllowedError(Exception):
    """The request carries no identity that is accepted."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks."""

    user: str
    production: bool
    """Whether everything is allowed: true for whoever brings no identity,
    since only this user reaches the server, and iDDS's agents are so too."""

    inside: bool = False
    """Whether it is this very process: iDDS's agents."""


@dataclass(frozen=True, slots=True)
class IdentityRules:
    """How users are told apart."""

    default_user: str
    verify: Callable[[str], Mapping[str, Any]] | None = None
    """Checks a token and tells its claims; raises `NotAllowedError`.  With
    it, every request from outside needs a token."""


def read_claims(token: str) -> dict[str, Any]:
    """Read the claims of a JSON web token without checking it.

    Raises
    ------
    NotAllowedError
        Raised for what is no such token.
    """
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError):
        raise NotAllowedError("the bearer token is not a JSON web token") from None
    if not isinstance(claims, dict):
        raise NotAllowedError("the bearer token holds no claims")
    return claims


def identify(headers: Headers, rules: IdentityRules, *, inside: bool = False) -> Identity:
    """Tell who asks.

    Parameters
    ----------
    headers : `Headers`
        HTTP headers; ``get`` ignores case.
    rules : `IdentityRules`
        How users are told apart.
    inside : `bool`, optional
        Whether the request comes from this very process.

    Raises
    ------
    NotAllowedError
        Raised for a token that is no token or not accepted, or none where
        one is needed.
    """
    if inside:
        return Identity(rules.default_user, production=True, inside=True)
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        claims = (rules.verify or read_claims)(token.strip())
        for name in ("name", "preferred_username", "sub"):
            if claims.get(name):
                return Identity(str(claims[name])[:_LONGEST], production=False)
        raise NotAllowedError("the bearer token names no user")
    if rules.verify is not None:
        raise NotAllowedError("a bearer token is needed: this embedded PanDA was started with a token check")
    if user := headers.get(USER_HEADER, "").strip():
        return Identity(user[:_LONGEST], production=False)
    return Identity(rules.default_user[:_LONGEST], production=True)
