"""Who we are to a server: a bearer token, an X.509 proxy, or nobody; and where that comes from.

Credentials give request headers or a client certificate when asked.  They
never show their secret in a representation and refuse to be pickled.
"""

from __future__ import annotations

__all__ = [
    "Anonymous",
    "BearerToken",
    "Credentials",
    "ProxyInfo",
    "TokenSource",
    "X509Proxy",
    "find_credentials",
    "find_proxy",
    "find_token_source",
    "read_proxy",
    "redact",
    "verify_host",
]

import contextlib
import os.path
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import NoReturn, Protocol

from ..errors import (
    AuthenticationError,
    SettingsError,
    TokenBrokenError,
    TokenExpiredError,
    TokenMissingError,
)
from .redaction import redact
from .tokens import TokenStore, ensure_lifetime, parse_claims, render_span, token_directory


@dataclass(frozen=True, slots=True)
class TokenSource:
    """One place that has a token.

    Parameters
    ----------
    description : `str`
        The place, for people.
    read : `~collections.abc.Callable`
        Gives the ID token as it is there now.
    store : `TokenStore` or `None`
        The token file, if it is that: only there it can be renewed.
    """

    description: str
    read: Callable[[], str]
    store: TokenStore | None = None


def find_token_source(env: Mapping[str, str]) -> TokenSource:
    """Choose the place.

    The first of ``PANDA_AUTH_ID_TOKEN`` (the token itself),
    ``OIDC_AUTH_TOKEN_FILE`` (a file that holds nothing else),
    ``OIDC_AUTH_ID_TOKEN`` (the token itself), and the file ``.token`` in
    ``PANDA_CONFIG_ROOT``.  A variable set to nothing counts as not set.

    Parameters
    ----------
    env : `~collections.abc.Mapping` [`str`, `str`]
        Environment.

    Returns
    -------
    source : `TokenSource`
        Nothing was read yet.
    """
    path = env.get("OIDC_AUTH_TOKEN_FILE", "")
    given: tuple[tuple[str, Callable[[], str], str], ...] = (
        ("PANDA_AUTH_ID_TOKEN", lambda: env["PANDA_AUTH_ID_TOKEN"].strip(), "PANDA_AUTH_ID_TOKEN"),
        ("OIDC_AUTH_TOKEN_FILE", partial(_read_file, path), f"{path} (OIDC_AUTH_TOKEN_FILE)"),
        ("OIDC_AUTH_ID_TOKEN", lambda: env["OIDC_AUTH_ID_TOKEN"].strip(), "OIDC_AUTH_ID_TOKEN"),
    )
    for name, read, description in given:
        if env.get(name):
            return TokenSource(description, read)
    store = TokenStore(token_directory(env))
    return TokenSource(str(store.path), lambda: store.load().id_token, store)


def _read_file(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="ascii").strip()
    except FileNotFoundError:
        raise TokenMissingError(f"The token file {path} (OIDC_AUTH_TOKEN_FILE) does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it holds other than ASCII characters"
        raise TokenBrokenError(
            f"The token file {path} (OIDC_AUTH_TOKEN_FILE) cannot be read: {reason}."
        ) from None


@dataclass(frozen=True, slots=True)
class ProxyInfo:
    """One proxy.

    Parameters
    ----------
    path : `str`
        The file.
    subject : `str`
        Distinguished name.
    issued, expires : `~datetime.datetime`
        From when to when it is valid, in UTC.
    """

    path: str
    subject: str
    issued: datetime
    expires: datetime

    def remaining(self, now: datetime) -> timedelta:
        """Give how long it is still valid.

        Parameters
        ----------
        now : `~datetime.datetime`
            The time, with a time zone.

        Returns
        -------
        remaining : `~datetime.timedelta`
            Negative if it has expired.
        """
        return self.expires - now

    def ensure_lifetime(self, needed: timedelta, now: datetime) -> None:
        """Make sure that the proxy lasts for what is to be done.

        Parameters
        ----------
        needed : `~datetime.timedelta`
            How long it must still be valid.
        now : `~datetime.datetime`
            The time, with a time zone.

        Raises
        ------
        TokenExpiredError
            Raised if it does not; the text gives the command to type.
        """
        left = self.remaining(now)
        if left < max(needed, timedelta(0)):
            span = render_span(abs(left))
            when = f"expires in {span}" if left > timedelta(0) else f"expired {span} ago"
            raise TokenExpiredError(
                f"The X.509 proxy {self.path} {when}, and {render_span(needed)} are needed. "
                "Make another with 'voms-proxy-init'."
            )


def find_proxy(env: Mapping[str, str], *, uid: int | None = None) -> str | None:
    """Find the proxy as panda-client does.

    Parameters
    ----------
    env : `~collections.abc.Mapping` [`str`, `str`]
        Environment.
    uid : `int`, optional
        Number of the user, to look for a proxy at its usual place.

    Returns
    -------
    path : `str` or `None`
        ``X509_USER_PROXY``, else the file at its usual place in ``/tmp`` if
        there is one.
    """
    if path := env.get("X509_USER_PROXY"):
        return path
    usual = f"/tmp/x509up_u{uid}"
    return usual if uid is not None and Path(usual).is_file() else None


def read_proxy(path: str) -> ProxyInfo:
    """Read the certificate of a proxy; its key is not looked at.

    Parameters
    ----------
    path : `str`
        PEM file.

    Returns
    -------
    info : `ProxyInfo`
        What the first certificate in it says.

    Raises
    ------
    TokenMissingError
        Raised if there is no file.
    TokenBrokenError
        Raised if there is no certificate in it.
    """
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


_LOG_IN = "Log in with 'panda_auth reset'."

# A token is renewed, as panda-client does it, when less than this is left.
_RENEW_BEFORE = timedelta(minutes=5)

# Clocks may differ: a token is held for expired only after this.
_GRACE = timedelta(minutes=-1)


class Credentials(Protocol):
    """What the transport asks of credentials."""

    def headers(self) -> dict[str, str]:
        """Give the headers that identify us."""

    def certificate(self) -> str | None:
        """Give the path of a client certificate with its key, if any."""

    def renew(self) -> bool:
        """React to a server that does not accept us; `True` if another
        attempt is worth while.
        """

    def ensure_lifetime(self, needed: timedelta) -> None:
        """Raise `TokenExpiredError`, which gives the command to type, if
        they do not last that long.
        """


class _Unpicklable:
    """Refuses to leave the process."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds credentials and cannot be pickled or copied.")


class Anonymous(_Unpicklable):
    """Nobody in particular.

    Parameters
    ----------
    user : `str`, optional
        Name by which a server without authentication (the embedded PanDA)
        tells users apart; a real PanDA ignores it.
    """

    __slots__ = ("_user",)

    def __init__(self, user: str | None = None) -> None:
        self._user = user

    def __repr__(self) -> str:
        return f"Anonymous(user={self._user!r})"

    def headers(self) -> dict[str, str]:
        """Give the user's name in a header of our own, if there is one."""
        if not self._user:
            return {}
        # A header is one line of ASCII; other characters are spelled.
        plain = (
            character if character.isascii() and character.isprintable() else ascii(character)[1:-1]
            for character in self._user
        )
        return {"X-PanDA-User": "".join(plain)}

    def certificate(self) -> str | None:
        """Give no certificate."""
        return None

    def renew(self) -> bool:
        """Say that nothing can be done."""
        return False

    def ensure_lifetime(self, needed: timedelta) -> None:
        """Do nothing: nobody lives for ever."""


class BearerToken(_Unpicklable):
    """An OpenID Connect ID token.

    PanDA needs the virtual organisation in the ``Origin`` header beside the
    token; without it the server fails to decode the token.

    Parameters
    ----------
    vo : `str`
        Virtual organisation, ``Rubin`` or with a role ``Rubin:production``.
    source : `~collections.abc.Callable`
        Gives the token.  It is called for each request, so that a token
        renewed by somebody else (a cron job) is seen.
    renew : `~collections.abc.Callable`, optional
        Tries to get another token; `True` if there is one.
    description : `str`, optional
        Where the token comes from, for messages.
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
        """Give the token and the virtual organisation.

        Raises
        ------
        AuthenticationError
            Raised if there is no token, or something that cannot be one.
        """
        token = self._source()
        if not token or any(ch.isspace() or not ch.isascii() for ch in token):
            problem = "is empty" if not token else "holds blanks, line ends or other than ASCII characters"
            raise AuthenticationError(f"The token from {self._description} {problem}. {_LOG_IN}")
        return {"Authorization": f"Bearer {token}", "Origin": self.vo}

    def certificate(self) -> str | None:
        """Give no certificate."""
        return None

    def renew(self) -> bool:
        """Try to get another token."""
        return self._renew() if self._renew is not None else False

    def ensure_lifetime(self, needed: timedelta) -> None:
        """Check that the token lasts.

        Parameters
        ----------
        needed : `~datetime.timedelta`
            How long it must still be valid.

        Raises
        ------
        TokenExpiredError
            Raised if it does not.
        TokenBrokenError
            Raised if the token cannot be read.
        """
        ensure_lifetime(self._source(), needed)


class X509Proxy(_Unpicklable):
    """A grid proxy: one PEM file with certificate and key.

    Parameters
    ----------
    path : `str`
        The file.
    """

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"X509Proxy({self.path!r})"

    def headers(self) -> dict[str, str]:
        """Give no headers."""
        return {}

    def certificate(self) -> str | None:
        """Give the proxy.

        Raises
        ------
        AuthenticationError
            Raised if the file does not exist.
        """
        if not os.path.isfile(self.path):
            raise AuthenticationError(
                f"The X.509 proxy {self.path} (X509_USER_PROXY) does not exist. "
                "Make one with 'voms-proxy-init', or log in with PANDA_AUTH=oidc and 'panda_auth reset'."
            )
        return self.path

    def renew(self) -> bool:
        """Say that nothing can be done."""
        return False

    def ensure_lifetime(self, needed: timedelta) -> None:
        """Check that the proxy lasts.

        Parameters
        ----------
        needed : `~datetime.timedelta`
            How long it must still be valid.

        Raises
        ------
        TokenExpiredError
            Raised if it does not.
        TokenBrokenError
            Raised if there is no certificate in it.
        """
        read_proxy(self.path).ensure_lifetime(needed, datetime.now(UTC))


def find_credentials(
    env: Mapping[str, str],
    *,
    user: str | None = None,
    uid: int | None = None,
    renew: Callable[[TokenStore], bool] | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Credentials:
    """Choose credentials as panda-client does, from the same variables.

    ``PANDA_AUTH=oidc`` takes a token, see `.auth.sources.find_token_source`;
    the virtual organisation is ``PANDA_AUTH_VO``, else ``OIDC_AUTH_VO``.
    Otherwise ``X509_USER_PROXY`` or the proxy at its usual
    place in ``/tmp``, else nobody.  A variable set to nothing counts as not
    set.

    Parameters
    ----------
    env : `~collections.abc.Mapping` [`str`, `str`]
        Environment.
    user : `str`, optional
        Name of the user, for servers without authentication.
    uid : `int`, optional
        Number of the user, to look for a proxy at its usual place.
    renew : `~collections.abc.Callable`, optional
        Called with the token store when its token is about to expire or is
        not accepted; `True` if it put another one there.
    now : `~collections.abc.Callable`, optional
        Gives the time, with a time zone.

    Returns
    -------
    credentials : `Credentials`
        Nothing was read yet, except that the usual proxy exists.

    Raises
    ------
    SettingsError
        Raised if ``PANDA_AUTH`` has an unknown value or the virtual
        organisation is missing.
    """
    mode = env.get("PANDA_AUTH", "").strip().lower()
    if mode == "oidc":
        return _find_token(env, renew, now)
    if mode not in {"", "voms", "x509", "x509_no_grid", "none", "off"}:
        raise SettingsError(f"PANDA_AUTH={mode!r} is unknown. Use 'oidc', 'voms' or 'none'.")
    proxy = find_proxy(env, uid=uid) if mode not in {"none", "off"} else None
    return Anonymous(user) if proxy is None else X509Proxy(proxy)


def verify_host(env: Mapping[str, str]) -> bool:
    """Tell whether certificates of servers are to be checked.

    Parameters
    ----------
    env : `~collections.abc.Mapping` [`str`, `str`]
        Environment.

    Returns
    -------
    verify : `bool`
        `False` only for ``PANDA_VERIFY_HOST=off``, as panda-client has it.
    """
    return env.get("PANDA_VERIFY_HOST", "").strip().lower() != "off"


def _find_token(
    env: Mapping[str, str], renew: Callable[[TokenStore], bool] | None, now: Callable[[], datetime]
) -> BearerToken:
    vo = env.get("PANDA_AUTH_VO") or env.get("OIDC_AUTH_VO")
    if not vo:
        raise SettingsError(
            "PANDA_AUTH=oidc needs the virtual organisation in PANDA_AUTH_VO (for instance 'Rubin')."
        )
    source = find_token_source(env)
    store = source.store
    if store is None or renew is None:
        return BearerToken(vo, lambda: _unexpired(source.read(), now()), description=source.description)
    return BearerToken(
        vo,
        lambda: _current(store, renew, now()),
        renew=lambda: renew(store),
        description=source.description,
    )


def _current(store: TokenStore, renew: Callable[[TokenStore], bool], now: datetime) -> str:
    """Give the stored token, renewed if it is about to expire."""
    token = store.load().id_token
    claims = parse_claims(token)
    life = _RENEW_BEFORE
    if claims.issued is not None and claims.expires is not None:
        # Some providers give tokens that live shorter than that.
        life = min(life, (claims.expires - claims.issued) / 2)
    if claims.remaining(now) < life and renew(store):
        token = store.load().id_token
    return _unexpired(token, now)


def _unexpired(token: str, now: datetime) -> str:
    """Give the token, or the clear word that it has expired."""
    # What is no token at all is not for us to judge: the server will say.
    with contextlib.suppress(TokenBrokenError):
        ensure_lifetime(token, _GRACE, now=now)
    return token
