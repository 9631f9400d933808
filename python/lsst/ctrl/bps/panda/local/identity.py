"""Who makes a request: only what a signed token says counts.

Tokens are made with a key that lives in the memory of the server, a new one for
each start; with ``--issuer`` those of an OpenID issuer are accepted, too.
"""

from __future__ import annotations

__all__ = [
    "Identity",
    "IssuerKeys",
    "Links",
    "NotAllowedError",
    "Role",
    "Tokens",
    "VISIT_SECONDS",
    "keep_printable",
]

import enum
import json
import logging
import secrets
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jwt

_LOG = logging.getLogger(__name__)

_LONGEST = 20
"""iDDS keeps this many characters of a user's name."""

_FOR_EVER = 10 * 365 * 86400.0
"""Nobody needs to renew a token, seconds: it ends with the server that made it."""

VISIT_SECONDS = 12 * 3600
"""For how long a browser that was let in may come back, seconds."""

_LEEWAY = 60
_TIMEOUT = 10.0


def keep_printable(text: str) -> str:
    """Return a text of somebody else without what could control a terminal, or begin a line in a log."""
    return "".join(filter(str.isprintable, text))


class NotAllowedError(Exception):
    """A request by somebody who may not make it."""


class Role(enum.StrEnum):
    """What a token of this instance is for."""

    OWNER = "owner"
    """Everything."""

    AGENT = "agent"
    """The calls of iDDS's agents in this process."""

    USER = "user"
    """What an ordinary user of PanDA may do."""

    READER = "reader"
    """Pages that a browser shows, in one view; it is sent as a cookie."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who makes a request."""

    user: str
    production: bool
    """Whether everybody's tasks may be changed: so for the owner and for iDDS's agents."""

    inside: bool = False
    """Whether it comes from iDDS's agents in this process."""

    owner: bool = False
    """Whether it is who started the server, and may control it."""


def _read_json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as reply:
        return json.load(reply)


class IssuerKeys:
    """The keys of an OpenID issuer, found by discovery.

    They are fetched by `refresh`, and by a thread when a token names another
    key, at most once in half a minute: whoever sends tokens must not be able to
    keep the web server waiting.
    """

    _PERIOD = 30.0

    def __init__(
        self,
        issuer: str,
        *,
        read: Callable[[str], Any] = _read_json,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.issuer = issuer.rstrip("/")
        self._read = read
        self._clock = clock
        self._keys: dict[str, Any] = {}
        self._problem = "they were not read yet"
        self._next = 0.0
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Read the keys; what goes wrong is said by `verify`."""
        try:
            url = f"{self.issuer}/.well-known/openid-configuration"
            found = jwt.PyJWKSet.from_dict(self._read(self._read(url)["jwks_uri"])).keys
        except (OSError, ValueError, KeyError, TypeError, jwt.PyJWTError) as error:
            self._problem = str(error) or type(error).__name__
            _LOG.warning("the keys of %s cannot be read: %s", self.issuer, error)
        else:
            self._keys = {str(key.key_id or ""): key.key for key in found}
            self._problem = ""

    def _refresh_soon(self) -> None:
        with self._lock:
            now = self._clock()
            if now < self._next:
                return
            self._next = now + self._PERIOD
        threading.Thread(target=self.refresh, name="issuer", daemon=True).start()

    def verify(self, token: str) -> Mapping[str, Any]:
        """Return the claims of a token; `NotAllowedError` says why it is not accepted."""
        name = str(jwt.get_unverified_header(token).get("kid", ""))
        key = self._keys.get(name)
        if key is None:
            self._refresh_soon()
            why = f"they cannot be read: {self._problem}" if self._problem else "they are read again now"
            raise NotAllowedError(
                f"the bearer token is signed with a key {name[:40]!r} that is not among those of "
                f"{self.issuer} ({why})"
            )
        options = {"verify_aud": False, "require": ["exp", "iss"]}
        claims: dict[str, Any] = jwt.decode(token, key, ["RS256"], options=options, leeway=_LEEWAY)  # type: ignore[arg-type]
        if str(claims["iss"]).rstrip("/") != self.issuer:
            raise NotAllowedError(f"the bearer token comes from {claims['iss']!r}, not from {self.issuer}")
        return claims


class Tokens:
    """Makes the tokens of this instance, and identifies who sends a token."""

    def __init__(self, owner: str, issuer: IssuerKeys | None = None) -> None:
        self.owner = owner[:_LONGEST]
        self._issuer = issuer
        self._key = secrets.token_bytes(32)

    def issue(self, role: Role, user: str = "", *, seconds: float = _FOR_EVER, view: str = "") -> str:
        """Make a token, by default for the owner's own name."""
        now = int(time.time())
        name = (user or self.owner)[:_LONGEST]
        claims = {
            "iss": "panda_local", "sub": name, "name": name, "preferred_username": name,
            "iat": now, "exp": now + int(seconds), "role": role.value, "view": view,
        }  # fmt: skip
        return jwt.encode(claims, self._key, algorithm="HS256")

    def admit(self) -> tuple[str, dict[str, Any]]:
        """Let a browser in: choose a view, a place whose name nobody else knows, and return its path with the
        value and the attributes of the cookie that opens it.
        """
        view = secrets.token_urlsafe(18)
        path = f"/view/{view}/"
        return path, {
            "value": self.issue(Role.READER, seconds=VISIT_SECONDS, view=view),
            "max_age": VISIT_SECONDS,
            # A cookie goes to all ports of a host, but only to the paths below its own.
            "path": path,
            "httponly": True,
            "samesite": "Strict",
        }

    def _claims(self, token: str) -> Mapping[str, Any]:
        try:
            return dict(jwt.decode(token, self._key, ["HS256"], options={"require": ["exp"]}))
        except jwt.ExpiredSignatureError:
            raise NotAllowedError("the token has expired") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise NotAllowedError("the token is not one of this start of the embedded PanDA") from None

    def identify(self, token: str) -> Identity:
        """Find who sends a token; `NotAllowedError` says why it is not accepted."""
        try:
            header = jwt.get_unverified_header(token)
            if self._issuer is not None and header.get("alg") != "HS256":
                return self._of_issuer(self._issuer.verify(token))
        except jwt.ExpiredSignatureError:
            raise NotAllowedError("the bearer token has expired; log in again") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            raise NotAllowedError(f"the bearer token is not accepted: {error}") from None
        claims = self._claims(token)
        role = claims["role"]
        if role == Role.READER:
            raise NotAllowedError("the token is that of a page")
        inside, owner = role == Role.AGENT, role == Role.OWNER
        return Identity(str(claims["name"]), production=inside or owner, inside=inside, owner=owner)

    @staticmethod
    def _of_issuer(claims: Mapping[str, Any]) -> Identity:
        for name in ("name", "preferred_username", "sub"):
            if user := keep_printable(str(claims.get(name) or "")):
                return Identity(user[:_LONGEST], production=False)
        raise NotAllowedError("the bearer token names no user")

    def check_reader(self, token: str, view: str) -> None:
        """Check that a cookie opens the pages of a view; `NotAllowedError` says why not."""
        claims = self._claims(token)
        if claims["role"] != Role.READER or not view or claims["view"] != view:
            raise NotAllowedError("the cookie is not that of this page")


class Links:
    """One-time links for browsers: each is good once, and for so many ``seconds``."""

    LIFE = 600.0
    """Seconds: somebody has to read it, and to open it."""

    _MOST = 50

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, seconds: float = LIFE) -> None:
        self._clock = clock
        self._seconds = seconds
        self._made: dict[str, tuple[float, str]] = {}
        self._lock = threading.Lock()

    def make(self, target: str) -> str:
        """Make a code that leads to a page once."""
        code = secrets.token_urlsafe(24)
        with self._lock:
            while len(self._made) >= self._MOST:
                del self._made[next(iter(self._made))]
            self._made[code] = (self._clock() + self._seconds, target)
        return code

    def is_open(self, code: str) -> bool:
        """Whether a code has not been used and not expired."""
        return self._made.get(code, (0.0, ""))[0] > self._clock()

    def use(self, code: str) -> str:
        """Use a code up and return where it leads; `NotAllowedError` if it was used before or has expired."""
        with self._lock:
            end, target = self._made.pop(code, (0.0, ""))
        if end <= self._clock():
            raise NotAllowedError("this link was used before, or is too old")
        return target
