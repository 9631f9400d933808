"""What people and cron jobs do with a login: log in, refresh, renew on the
way.  Each keeps the token file whole, whatever happens in between.
"""

__all__ = [
    "LoginSettings",
    "RefreshOutcome",
    "find_login_settings",
    "keep_fresh",
    "log_in",
    "make_renewer",
    "refresh",
]

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ..errors import AuthenticationError, SettingsError, TransportError
from ..rest.credentials import Anonymous, verify_host
from ..rest.retries import RetryPolicy
from ..rest.tokens import Claims, TokenStore, parse_claims
from ..rest.transport import Timeouts, Transport
from .oidc import DeviceGrant, await_approval, find_provider, refresh_tokens, start_device_login

_LOG = logging.getLogger(__name__)

# A provider answers at once or not at all, in seconds.
_TIMEOUTS = Timeouts(connect=15.0, read=60.0, total=120.0)
# Of a process that keeps a token fresh, in seconds.
_PAUSE = 300.0
_SHORTEST_WAIT = 60.0
_LONGEST_WAIT = 3600.0

# As long before the end credentials ask for another token.
_RENEW_BEFORE = timedelta(minutes=5)

_RETRY = RetryPolicy(attempts=3, base=1.0, cap=5.0, budget=60.0)


@dataclass(frozen=True, slots=True)
class LoginSettings:
    """Which server, for which virtual organisation.

    Parameters
    ----------
    panda_url : `str`
        ``PANDA_URL_SSL``.
    vo : `str`
        ``PANDA_AUTH_VO``.
    verify : `bool`
        Check certificates of servers.
    """

    panda_url: str
    vo: str
    verify: bool = True

    def make_transport(self) -> Transport:
        """Make what talks to the PanDA server and the provider."""
        return Transport(Anonymous(), verify=self.verify, timeouts=_TIMEOUTS, retry=_RETRY)


def find_login_settings(env: Mapping[str, str]) -> LoginSettings:
    """Read the settings of a login.

    Parameters
    ----------
    env : `~collections.abc.Mapping` [`str`, `str`]
        Environment.

    Returns
    -------
    settings : `LoginSettings`
        Which server and virtual organisation.

    Raises
    ------
    SettingsError
        Raised if variables are missing; the text names all of them.
    """
    url = env.get("PANDA_URL_SSL") or env.get("PANDA_URL") or ""
    vo = env.get("PANDA_AUTH_VO") or env.get("OIDC_AUTH_VO") or ""
    missing = [name for name, value in (("PANDA_URL_SSL", url), ("PANDA_AUTH_VO", vo)) if not value]
    if missing:
        raise SettingsError(f"To log in, set the environment variables {' and '.join(missing)}.")
    return LoginSettings(url, vo, verify_host(env))


def log_in(
    store: TokenStore,
    settings: LoginSettings,
    show: Callable[[DeviceGrant], None],
    *,
    transport: Transport | None = None,
) -> Claims:
    """Log in with the help of a person and a browser.

    Parameters
    ----------
    store : `TokenStore`
        Gets the tokens; what it has stays until there are new ones.
    settings : `LoginSettings`
        Where.
    show : `~collections.abc.Callable`
        Shows link and code to the person.
    transport : `Transport`, optional
        How to ask.

    Returns
    -------
    claims : `Claims`
        Who logged in, until when.

    Raises
    ------
    LoginError
        Raised if the login was refused or not approved in time.
    TransportError
        Raised as one of its other children if a server cannot be asked.
    """
    transport = transport or settings.make_transport()
    provider = find_provider(transport, settings.panda_url, settings.vo)
    grant = start_device_login(transport, provider)
    show(grant)
    tokens = await_approval(transport, provider, grant)
    with store.lock():
        store.save(tokens)
    return parse_claims(tokens.id_token)


@dataclass(frozen=True, slots=True)
class RefreshOutcome:
    """What a refresh did.

    Parameters
    ----------
    refreshed : `bool`
        Whether there is a new token.
    claims : `Claims`
        What the token in the store says now.
    """

    refreshed: bool
    claims: Claims


def refresh(
    store: TokenStore,
    settings: LoginSettings,
    *,
    threshold: timedelta,
    transport: Transport | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> RefreshOutcome:
    """Get new tokens if the present ones do not last.

    Safe when two processes do it at once: the second waits, then finds that
    there is nothing left to do.

    Parameters
    ----------
    store : `TokenStore`
        Has the tokens.
    settings : `LoginSettings`
        Where.
    threshold : `~datetime.timedelta`
        Refresh if less than that is left.
    transport : `Transport`, optional
        How to ask.
    now : `~collections.abc.Callable`, optional
        Gives the time, with a time zone.

    Returns
    -------
    outcome : `RefreshOutcome`
        What was done.

    Raises
    ------
    TokenMissingError, TokenBrokenError
        Raised if there is nothing to refresh.
    RefreshRefusedError
        Raised if the provider refuses; the tokens stay as they are.
    TransportError
        Raised as one of its other children if a server cannot be asked.
    """
    # First without the lock: nothing is made where there is no token.
    claims = parse_claims(store.load().id_token)
    if claims.remaining(now()) >= threshold:
        return RefreshOutcome(False, claims)
    with store.lock():
        tokens = store.load()
        claims = parse_claims(tokens.id_token)
        if claims.remaining(now()) >= threshold:
            return RefreshOutcome(False, claims)
        transport = transport or settings.make_transport()
        provider = find_provider(transport, settings.panda_url, settings.vo)
        renewed = refresh_tokens(transport, provider, tokens)
        store.save(renewed)
    return RefreshOutcome(True, parse_claims(renewed.id_token))


def keep_fresh(
    store: TokenStore,
    settings: LoginSettings,
    *,
    threshold: timedelta,
    transport: Transport | None = None,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Iterator[RefreshOutcome]:
    """Refresh again and again, for ever.

    Parameters
    ----------
    store, settings, threshold, transport, now
        As for `refresh`.
    sleep : `~collections.abc.Callable`, optional
        Waits for a number of seconds.

    Yields
    ------
    outcome : `RefreshOutcome`
        What was done each time.

    Raises
    ------
    AuthenticationError
        Raised if a person has to log in.  Servers that cannot be asked are
        asked again later.
    """
    while True:
        try:
            outcome = refresh(store, settings, threshold=threshold, transport=transport, now=now)
        except AuthenticationError:
            raise
        except TransportError as error:
            _LOG.warning("The token could not be refreshed, trying again in %.0f s: %s", _PAUSE, error)
            sleep(_PAUSE)
            continue
        yield outcome
        left = outcome.claims.remaining(now())
        # Half of what is left, for a provider whose tokens are always too
        # short; an hour at most, because a person may log in meanwhile.
        wait = left - threshold if left > threshold else left / 2
        sleep(min(max(wait.total_seconds(), _SHORTEST_WAIT), _LONGEST_WAIT))


def make_renewer(env: Mapping[str, str]) -> Callable[[TokenStore], bool]:
    """Make what credentials call when their token is about to expire.

    Parameters
    ----------
    env : `~collections.abc.Mapping` [`str`, `str`]
        Environment.

    Returns
    -------
    renew : `~collections.abc.Callable`
        Refreshes the tokens of a store without asking a person; `True` if
        there are new ones.  A failure is logged, not raised: the present
        token may still do.
    """

    def renew(store: TokenStore) -> bool:
        try:
            return refresh(store, find_login_settings(env), threshold=_RENEW_BEFORE).refreshed
        except (TransportError, SettingsError) as error:
            _LOG.warning("The token could not be renewed: %s", error)
            return False

    return renew
