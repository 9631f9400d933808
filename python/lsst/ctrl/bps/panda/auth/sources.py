"""Where it comes from who we are: the variables that panda-client reads, in
its order, the token file, or a grid proxy and what that says about itself.
"""

__all__ = ["ProxyInfo", "TokenSource", "find_proxy", "find_token_source", "read_proxy"]

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from ..errors import TokenBrokenError, TokenExpiredError, TokenMissingError
from .store import TokenStore, token_directory
from .tokens import render_span


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
