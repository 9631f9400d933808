"""The credentials of requests (a bearer token, an X.509 proxy, or none), and the redaction of secrets.

Credentials give request headers or a client certificate when asked.  They
never show their secret in a representation and refuse to be pickled.
"""

from __future__ import annotations

__all__ = [
    "Anonymous",
    "BearerToken",
    "Credentials",
    "RENEW_BEFORE",
    "X509Proxy",
    "find_credentials",
    "find_proxy",
    "make_bearer",
    "read_proxy",
    "redact",
    "checks_certificates",
]

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import NoReturn

from ..errors import (
    AuthenticationError,
    SettingsError,
    TokenBrokenError,
    TokenExpiredError,
    TokenMissingError,
)
from ..local.endpoint import check_own_panda, find_own_panda
from .tokens import (
    TokenSet,
    TokenSource,
    TokenStore,
    ensure_lifetime,
    find_token_source,
    find_vo,
    parse_claims,
    render_span,
)

RENEW_BEFORE = timedelta(minutes=5)
"""A token is renewed, as panda-client does it, when less than this is left."""

# Clocks may differ: a token counts as expired only after this.
_GRACE = timedelta(minutes=-1)

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
    """Replace everything that looks like a secret, and the values known to be secret, by ``[hidden]``."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, _HIDDEN)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


class Credentials:
    """What the transport asks of credentials; they never leave the process."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds credentials and cannot be pickled or copied.")

    def headers(self) -> dict[str, str]:
        """Return the headers that identify us."""
        return {}

    def certificate(self) -> str | None:
        """Return the path of a client certificate with its key, if any."""
        return None

    def renew(self) -> bool:
        """React to a server that does not accept us; `True` if another attempt is worth while."""
        return False

    def ensure_lifetime(self, needed: timedelta) -> None:
        """Raise `TokenExpiredError`, which names the command to type, if they do not last that long, or
        another `AuthenticationError` if they are missing or broken.
        """


class Anonymous(Credentials):
    """No credentials."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Anonymous()"


class BearerToken(Credentials):
    """An OpenID Connect ID token.

    PanDA needs the virtual organisation (``Rubin``, or with a role ``Rubin:production``) in the ``Origin``
    header beside the token; without it the server fails to decode the token.  ``source`` is called for each
    request, so that a token renewed by somebody else (a cron job) is seen.  ``renew`` tries to get another
    token, and returns `True` if there is one.
    """

    __slots__ = ("_description", "_renew", "_source", "vo")

    def __init__(
        self,
        vo: str,
        source: Callable[[], str],
        *,
        renew: Callable[[], bool] | None = None,
        description: str = "a token",
    ) -> None:
        self.vo = vo
        self._source = source
        self._renew = renew
        self._description = description

    def __repr__(self) -> str:
        return f"BearerToken(vo={self.vo!r}, from {self._description})"

    def headers(self) -> dict[str, str]:
        """Return the token and the virtual organisation.

        `AuthenticationError` is raised if there is no token, or something that cannot be one.
        """
        token = self._source()
        if not token or any(ch.isspace() or not ch.isascii() for ch in token):
            problem = "is empty" if not token else "holds blanks, line ends or other than ASCII characters"
            raise AuthenticationError(
                f"The token from {self._description} {problem}. Log in with 'panda_auth reset'."
            )
        return {"Authorization": f"Bearer {token}", "Origin": self.vo}

    def renew(self) -> bool:
        """Try to get another token."""
        return self._renew() if self._renew is not None else False

    def ensure_lifetime(self, needed: timedelta) -> None:
        """Check that the token lasts."""
        ensure_lifetime(self._source(), needed)


class X509Proxy(Credentials):
    """A grid proxy: the path of one PEM file with certificate and key."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"X509Proxy({self.path!r})"

    def certificate(self) -> str | None:
        """Return the proxy; `AuthenticationError` is raised if the file does not exist."""
        if not os.path.isfile(self.path):
            raise AuthenticationError(
                f"The X.509 proxy {self.path} (X509_USER_PROXY) does not exist. "
                "Make one with 'voms-proxy-init', or log in with PANDA_AUTH=oidc and 'panda_auth reset'."
            )
        return self.path

    def ensure_lifetime(self, needed: timedelta) -> None:
        """Check that the proxy lasts."""
        read_proxy(self.path).ensure_lifetime(needed, datetime.now(UTC))


@dataclass(frozen=True, slots=True)
class ProxyInfo:
    """What the certificate of an X.509 proxy says."""

    path: str
    subject: str
    """Distinguished name."""

    issued: datetime
    expires: datetime
    """From when to when it is valid, in UTC."""

    def remaining(self, now: datetime) -> timedelta:
        """Return how long it is still valid; negative if it has expired."""
        return self.expires - now

    def ensure_lifetime(self, needed: timedelta, now: datetime) -> None:
        """Check that the proxy lasts long enough; `TokenExpiredError`, if not, names the command to type."""
        left = self.remaining(now)
        if left < max(needed, timedelta(0)):
            span = render_span(abs(left))
            when = f"expires in {span}" if left > timedelta(0) else f"expired {span} ago"
            raise TokenExpiredError(
                f"The X.509 proxy {self.path} {when}, and {render_span(needed)} are needed. "
                "Make another with 'voms-proxy-init'."
            )


def find_proxy(env: Mapping[str, str], *, uid: int | None = None) -> str | None:
    """Find the X.509 proxy as panda-client does.

    It is ``X509_USER_PROXY``, else the file at its usual place in ``/tmp``
    if the user's number is given and there is one.
    """
    if path := env.get("X509_USER_PROXY"):
        return path
    usual = f"/tmp/x509up_u{uid}"
    return usual if uid is not None and Path(usual).is_file() else None


def read_proxy(path: str) -> ProxyInfo:
    """Read the certificate of a proxy, which is the first one in its PEM file; its key is not looked at."""
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificates(Path(path).read_bytes())[0]
    except FileNotFoundError:
        raise TokenMissingError(
            f"The X.509 proxy {path} (X509_USER_PROXY) does not exist. Make one with 'voms-proxy-init'."
        ) from None
    except (OSError, ValueError, IndexError):
        raise TokenBrokenError(f"The X.509 proxy {path} holds no certificate that can be read.") from None
    return ProxyInfo(
        path,
        certificate.subject.rfc4514_string(),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
    )


def find_credentials(
    env: Mapping[str, str],
    *,
    uid: int | None = None,
    renew: Callable[[TokenStore], bool] | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Credentials:
    """Choose credentials as panda-client does, from the same variables.

    ``PANDA_AUTH=oidc`` takes a token (`find_token_source`) for the virtual organisation (`find_vo`), anything
    else the proxy that `find_proxy` finds, else nobody.  A variable set to nothing counts as not set.
    Nothing is read yet.  ``renew`` is called with the token store when its token is about to expire or is not
    accepted; it returns `True` if it put another one there.
    """
    mode = env.get("PANDA_AUTH", "").strip().lower()
    if mode == "oidc":
        return _find_token(env, renew, now)
    if mode not in {"", "voms", "x509", "x509_no_grid", "none", "off"}:
        raise SettingsError(f"PANDA_AUTH={mode!r} is unknown. Use 'oidc', 'voms' or 'none'.")
    proxy = find_proxy(env, uid=uid) if mode not in {"none", "off"} else None
    return Anonymous() if proxy is None else X509Proxy(proxy)


def checks_certificates(env: Mapping[str, str]) -> bool:
    """Tell whether certificates of servers are to be checked.

    They are, unless ``PANDA_VERIFY_HOST=off``, as panda-client has it.
    """
    return env.get("PANDA_VERIFY_HOST", "").strip().lower() != "off"


def _find_token(
    env: Mapping[str, str], renew: Callable[[TokenStore], bool] | None, now: Callable[[], datetime]
) -> BearerToken:
    vo = find_vo(env)
    if not vo:
        raise SettingsError(
            "PANDA_AUTH=oidc needs the virtual organisation in PANDA_AUTH_VO (for instance 'Rubin')."
        )
    source = find_token_source(env)
    store = source.store
    if find_own_panda(env) is not None:
        return BearerToken(vo, lambda: _own_token(env, source), description=source.description)
    if store is None or renew is None:
        return BearerToken(vo, lambda: _check_expiry(source.read(), now()), description=source.description)
    return make_bearer(vo, store.load, partial(renew, store), description=source.description, now=now)


def make_bearer(
    vo: str,
    load: Callable[[], TokenSet],
    renew: Callable[[], bool],
    *,
    description: str = "a token",
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> BearerToken:
    """Make credentials of tokens that are kept somewhere, which are renewed there before they expire."""
    return BearerToken(vo, lambda: _current_token(load, renew, now()), renew=renew, description=description)


def _own_token(env: Mapping[str, str], source: TokenSource) -> str:
    """Return the token of the embedded PanDA, after a check that it will go there and nowhere else."""
    check_own_panda(env)
    return source.read()


def _current_token(load: Callable[[], TokenSet], renew: Callable[[], bool], now: datetime) -> str:
    """Return the stored token, renewed if it is about to expire."""
    token = load().id_token
    claims = parse_claims(token)
    life = RENEW_BEFORE
    if claims.issued is not None and claims.expires is not None:
        # Some providers give tokens that live shorter than that.
        life = min(life, (claims.expires - claims.issued) / 2)
    if claims.remaining(now) < life and renew():
        token = load().id_token
    return _check_expiry(token, now)


def _check_expiry(token: str, now: datetime) -> str:
    """Return the token, or raise `TokenExpiredError` if it has expired."""
    # What is no token at all is not for us to judge: the server will say.
    with contextlib.suppress(TokenBrokenError):
        ensure_lifetime(token, _GRACE, now=now)
    return token
