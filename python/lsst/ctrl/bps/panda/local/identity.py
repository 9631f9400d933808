"""Who makes a request: the user named by a bearer token, by a header, or by default; and whether an OpenID
issuer has signed the token.
"""

from __future__ import annotations

__all__ = ["Headers", "Identity", "IdentityRules", "NotAllowedError", "TokenCheck", "USER_HEADER", "identify"]

import base64
import importlib
import json
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

USER_HEADER = "X-PanDA-User"
"""Header by which a client without a token names its user."""

_LONGEST = 20
"""iDDS keeps this many characters of a user's name."""


class Headers(Protocol):
    """The method of HTTP headers that is used here."""

    def get(self, name: str, default: str, /) -> str:
        """Return the value of a header; the case of its name does not matter."""


class NotAllowedError(Exception):
    """A request by somebody who may not make it."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who makes a request."""

    user: str
    production: bool
    """Whether everything is allowed: so for whoever names no user, since only the
    server's own user reaches it, and for iDDS's agents."""

    inside: bool = False
    """Whether it comes from iDDS's agents in this process."""


@dataclass(frozen=True, slots=True)
class IdentityRules:
    """How users are identified."""

    default_user: str
    verify: Callable[[str], Mapping[str, Any]] | None = None
    """Checks a token and returns its claims, or raises `NotAllowedError`.  If
    set, every request from outside needs a token."""


def read_claims(token: str) -> dict[str, Any]:
    """Read the claims of a JSON web token without checking it; `NotAllowedError` if it is no such token."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError):
        raise NotAllowedError("the bearer token is not a JSON web token") from None
    if not isinstance(claims, dict):
        raise NotAllowedError("the bearer token holds no claims")
    return claims


def identify(headers: Headers, rules: IdentityRules, *, inside: bool = False) -> Identity:
    """Identify who makes a request; `NotAllowedError` for a token that is not accepted, or is missing and
    needed.
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


_LEEWAY = 60.0
_TIMEOUT = 10.0


def _read_json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as reply:
        return json.load(reply)


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _number(text: str) -> int:
    return int.from_bytes(_decode(text), "big")


class TokenCheck:
    """Checks that tokens were signed by an OpenID issuer, whose keys are found by discovery."""

    def __init__(
        self,
        issuer: str,
        *,
        read: Callable[[str], Any] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._issuer = issuer.rstrip("/")
        self._read = read or _read_json
        self._clock = clock
        self._keys: dict[str, Mapping[str, Any]] = {}

    def _key(self, name: str) -> Mapping[str, Any]:
        if name not in self._keys:
            try:
                url = f"{self._issuer}/.well-known/openid-configuration"
                keys = self._read(self._read(url)["jwks_uri"])["keys"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise NotAllowedError(f"the keys of {self._issuer} cannot be read: {error}") from error
            self._keys = {str(key.get("kid", "")): key for key in keys}
        if name not in self._keys:
            raise NotAllowedError(
                f"the bearer token is signed with a key {name!r} that {self._issuer} has not"
            )
        return self._keys[name]

    def verify(self, token: str) -> Mapping[str, Any]:
        """Return the claims of a token; `NotAllowedError` says why it is not accepted."""
        claims = read_claims(token)
        signed, _, signature = token.rpartition(".")
        try:
            header = json.loads(_decode(signed.split(".")[0]))
            algorithm, name = header["alg"], str(header.get("kid", ""))
        except (ValueError, KeyError, TypeError):
            raise NotAllowedError("the header of the bearer token cannot be read") from None
        if algorithm != "RS256":
            raise NotAllowedError(f"the bearer token is signed with {algorithm}, not with RS256")
        self._check_signature(self._key(name), signed.encode(), _decode(signature))
        if str(claims.get("iss", "")).rstrip("/") != self._issuer:
            raise NotAllowedError(
                f"the bearer token comes from {claims.get('iss')!r}, not from {self._issuer}"
            )
        if float(claims.get("exp", 0)) < self._clock() - _LEEWAY:
            raise NotAllowedError("the bearer token has expired; log in again")
        return claims

    @staticmethod
    def _check_signature(key: Mapping[str, Any], signed: bytes, signature: bytes) -> None:
        rsa = importlib.import_module("cryptography.hazmat.primitives.asymmetric.rsa")
        padding = importlib.import_module("cryptography.hazmat.primitives.asymmetric.padding")
        hashes = importlib.import_module("cryptography.hazmat.primitives.hashes")
        exceptions = importlib.import_module("cryptography.exceptions")
        public = rsa.RSAPublicNumbers(_number(key["e"]), _number(key["n"])).public_key()
        try:
            public.verify(signature, signed, padding.PKCS1v15(), hashes.SHA256())
        except exceptions.InvalidSignature:
            raise NotAllowedError("the signature of the bearer token is wrong") from None
