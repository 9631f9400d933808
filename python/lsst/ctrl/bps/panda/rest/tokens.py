"""Tokens as values, the token file that panda-client shares, and the places that may have a token."""

from __future__ import annotations

__all__ = [
    "Claims",
    "TokenPlace",
    "TokenSet",
    "TokenSource",
    "TokenStore",
    "claims_from",
    "ensure_lifetime",
    "find_token_source",
    "find_vo",
    "parse_claims",
    "parse_token_set",
    "render_span",
    "token_directory",
]

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol

from ..errors import SettingsError, TokenBrokenError, TokenExpiredError, TokenMissingError
from ..files import write_text

_LOG = logging.getLogger(__name__)

_LOG_IN = "Log in with 'panda_auth reset'."


class TokenSet:
    """What the provider's token endpoint answered, with an ID token at least.

    All fields are kept, so that a file written again holds what panda-client or the provider put there.
    """

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, object]) -> None:
        id_token = fields.get("id_token")
        if not (isinstance(id_token, str) and id_token.count(".") == 2):
            raise TokenBrokenError(f"There is no ID token in it. {_LOG_IN}")
        self._fields = dict(fields)

    def __repr__(self) -> str:
        return f"TokenSet({', '.join(sorted(self._fields))})"

    def __eq__(self, other: object) -> bool:
        return self._fields == other._fields if isinstance(other, TokenSet) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("Tokens cannot be pickled or copied.")

    @property
    def id_token(self) -> str:
        """The token that PanDA accepts."""
        return str(self._fields["id_token"])

    @property
    def refresh_token(self) -> str | None:
        """The token for getting new ones, if there is one."""
        token = self._fields.get("refresh_token")
        return token if isinstance(token, str) and token else None

    @property
    def fields(self) -> Mapping[str, object]:
        """Everything that the provider sent."""
        return self._fields

    def render(self) -> str:
        """Render the text of the token file."""
        return json.dumps(self._fields)

    def renewed(self, fields: Mapping[str, object]) -> TokenSet:
        """Return the tokens after a refresh.

        Where the reply has no new refresh token the old one stays valid (RFC 6749, section 6).
        """
        kept = {"refresh_token": self.refresh_token} if self.refresh_token else {}
        return TokenSet({**kept, **fields})


def parse_token_set(text: str) -> TokenSet:
    """Parse the text of a token file as panda-client writes it, or raise `TokenBrokenError`."""
    try:
        fields = json.loads(text)
    except json.JSONDecodeError:
        fields = None
    if not isinstance(fields, dict):
        raise TokenBrokenError(f"It is cut or is not JSON. {_LOG_IN}")
    return TokenSet(fields)


@dataclass(frozen=True, slots=True)
class Claims:
    """What an ID token says; texts are empty if it does not."""

    issuer: str
    subject: str
    issued: datetime | None
    expires: datetime | None
    """From when to when it is valid, in UTC."""

    name: str = ""
    username: str = ""
    email: str = ""
    organisation: str = ""
    groups: tuple[str, ...] = ()
    """Groups of the virtual organisation."""

    def remaining(self, now: datetime) -> timedelta:
        """Return how long it is still valid.

        Negative if it has expired; the largest possible value if it never does.  ``now`` has a time zone.
        """
        return self.expires - now if self.expires is not None else timedelta.max


def parse_claims(id_token: str) -> Claims:
    """Read the claims of an ID token **without checking its signature**.

    That is for showing them and for looking at the expiry; the server checks the signature of each token that
    it gets.  `TokenBrokenError` is raised if it is not a JSON web token.
    """
    # Imported here: it costs 0.1 s, and most commands do not need it.
    import jwt

    try:
        raw = jwt.decode(id_token, options={"verify_signature": False})
        return claims_from(raw)
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError, OSError):
        # Not chained: the library's error may quote the token.
        pass
    raise TokenBrokenError(f"The ID token cannot be read. {_LOG_IN}")


def claims_from(raw: Mapping[str, Any]) -> Claims:
    """Pick the claims that are used out of all of a token."""
    return Claims(
        issuer=str(raw.get("iss", "")),
        subject=str(raw.get("sub", "")),
        issued=_moment(raw.get("iat")),
        expires=_moment(raw.get("exp")),
        name=str(raw.get("name", "")),
        username=str(raw.get("preferred_username", "")),
        email=str(raw.get("email", "")),
        organisation=str(raw.get("organisation_name", "")),
        groups=tuple(map(str, raw.get("groups", ()) or ())),
    )


def _moment(seconds: object) -> datetime | None:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    return datetime.fromtimestamp(seconds, UTC)


def ensure_lifetime(id_token: str, needed: timedelta, *, now: datetime | None = None) -> Claims:
    """Check that a token lasts long enough, and return its claims.

    A negative span lets a token pass that expired only so long ago, for clocks that differ.
    `TokenExpiredError` names the command to type.
    """
    claims = parse_claims(id_token)
    left = claims.remaining(now or datetime.now(UTC))
    if left <= min(needed, timedelta(0)):
        raise TokenExpiredError(
            f"The token expired {render_span(-left)} ago. Renew it with 'panda_auth refresh', "
            "or log in with 'panda_auth reset'."
        )
    if left < needed:
        raise TokenExpiredError(
            f"The token expires in {render_span(left)}, and {render_span(needed)} are needed. "
            "Renew it with 'panda_auth refresh --force', or log in with 'panda_auth reset'."
        )
    return claims


def render_span(span: timedelta) -> str:
    """Render a span of time, not negative, in its two largest units: ``3 d 4 h`` or ``4 min 10 s``."""
    seconds = int(span.total_seconds())
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        if count or (parts and len(parts) < 2):
            parts.append(f"{count} {unit}")
    return " ".join(part for part in parts[:2] if not part.startswith("0 ")) or "0 s"


# Names that panda-client 2.2.0 uses in its directory; its own clean-up removes
# everything that begins with them, hence the other name for the lock.
_TOKEN_NAME = ".token"
_CACHE_PREFIX = ".page_cache_"
_LOCK_NAME = ".panda_auth.lock"


def token_directory(env: Mapping[str, str]) -> Path:
    """Find the directory of the token file as panda-client does.

    It is ``PANDA_CONFIG_ROOT``, with ``~`` expanded, else the current directory.
    """
    return Path(env.get("PANDA_CONFIG_ROOT") or ".").expanduser().absolute()


class TokenPlace(Protocol):
    """What keeps the tokens of one user."""

    def load(self) -> TokenSet:
        """Return the tokens."""

    def save(self, tokens: TokenSet) -> None:
        """Replace the tokens."""

    def lock(self) -> contextlib.AbstractContextManager[object]:
        """Let one at a time get new tokens."""


class TokenStore:
    """One token file, in a directory that is made when something is saved."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __repr__(self) -> str:
        return f"TokenStore({str(self.path)!r})"

    @property
    def path(self) -> Path:
        """The file."""
        return self.directory / _TOKEN_NAME

    def load(self) -> TokenSet:
        """Read the tokens, written by us or by panda-client."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise TokenMissingError(f"There is no token file {self.path}. {_LOG_IN}") from None
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise TokenBrokenError(f"The token file {self.path} cannot be read: {reason}.") from None
        try:
            return parse_token_set(text)
        except TokenBrokenError as error:
            problem = error.message
        raise TokenBrokenError(f"The token file {self.path} is broken. {problem}")

    def save(self, tokens: TokenSet) -> None:
        """Replace the file; `SettingsError` is raised if the directory cannot be written.

        Another process sees the old file or the new one.  The mode is 0600
        from the first byte, whatever the umask.
        """
        # A link stays a link, and the new file lies beside what it points at.
        target = Path(os.path.realpath(self.path))
        try:
            self._make_directory()
            write_text(target, [tokens.render()], mode=0o600, durable=True)
        except OSError as error:
            raise SettingsError(
                f"The token cannot be written to {target.parent} (PANDA_CONFIG_ROOT): {error.strerror}."
            ) from None

    def is_private(self) -> bool:
        """Tell whether only the owner can read the file; panda-client leaves that to the umask."""
        return not self.path.stat().st_mode & 0o077

    def clean(self) -> tuple[Path, ...]:
        """Remove the token and what panda-client keeps beside it; return what was there."""
        removed = []
        for pattern in (f"{_TOKEN_NAME}*", f"{_CACHE_PREFIX}*"):
            for path in sorted(self.directory.glob(pattern)):
                path.unlink(missing_ok=True)
                removed.append(path)
        return tuple(removed)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Let one process at a time get new tokens.

        A refresh token is often good for one use only, so two refreshes at once would spoil the second.
        """
        self._make_directory()
        descriptor = os.open(self.directory / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                # Some network file systems have no locks.
                _LOG.warning("%s cannot be locked (%s); going on without.", self.directory, error.strerror)
            yield
        finally:
            os.close(descriptor)

    def _make_directory(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)


@dataclass(frozen=True, slots=True)
class TokenSource:
    """A place that has a token."""

    description: str
    """The place, for people."""

    read: Callable[[], str]
    """Returns the ID token as it is there now."""

    store: TokenStore | None = None
    """The token file, if it is that: only there it can be renewed."""


def find_token_source(env: Mapping[str, str]) -> TokenSource:
    """Find the place that has the token; nothing is read yet.

    It is the first of ``PANDA_AUTH_ID_TOKEN`` (the token itself), ``OIDC_AUTH_TOKEN_FILE`` (a file that holds
    nothing else), ``OIDC_AUTH_ID_TOKEN`` (the token itself), and the file ``.token`` in
    ``PANDA_CONFIG_ROOT``.  A variable set to nothing counts as not set.
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


def find_vo(env: Mapping[str, str]) -> str:
    """Find the virtual organisation: ``PANDA_AUTH_VO``, else ``OIDC_AUTH_VO``, else nothing."""
    return env.get("PANDA_AUTH_VO") or env.get("OIDC_AUTH_VO") or ""
