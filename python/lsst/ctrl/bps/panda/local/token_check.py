"""Checks bearer tokens with the keys of an OpenID issuer, for trying to log
in: RS256 signature, issuer and expiry, as panda-server does.
"""

from __future__ import annotations

__all__ = ["TokenCheck"]

import base64
import importlib
import json
import time
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from .identity import NotAllowedError, read_claims

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
    """Checks tokens.

    Parameters
    ----------
    issuer : `str`
        URL of the issuer; its keys are found by OpenID discovery.
    read : callable, optional
        Reads the JSON document at a URL.
    clock : callable, optional
        Time, seconds since the epoch.
    """

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
        """Check a token.

        Returns
        -------
        claims : `~collections.abc.Mapping`
            Its claims.

        Raises
        ------
        NotAllowedError
            Raised if it is not accepted; the text says why.
        """
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
