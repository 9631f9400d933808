"""Logging in: the OpenID provider behind a PanDA server, the OAuth exchanges of a login, device authorization
(RFC 8628), authorization code (RFC 6749, section 4.1, with RFC 7636) and refresh (RFC 6749, section 6), with
the checks that a client must make, and what people and cron jobs do with them.  Each keeps the token file
whole, whatever happens in between.

`oauthlib` makes the requests' bodies and reads the replies, `jwt` checks
signatures and claims; the transport carries them.
"""

from __future__ import annotations

__all__ = [
    "BrowserLogin",
    "DeviceGrant",
    "LoginSettings",
    "Provider",
    "RefreshOutcome",
    "auth_config_url",
    "await_approval",
    "find_login_settings",
    "find_provider",
    "finish_browser_login",
    "keep_fresh",
    "log_in",
    "make_renewer",
    "refresh",
    "refresh_tokens",
    "start_browser_login",
    "start_device_login",
    "verify_id_token",
]

import json
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from ..errors import (
    AuthenticationError,
    ConnectionFailedError,
    LoginError,
    RefreshRefusedError,
    ReplyError,
    ServerError,
    SettingsError,
    TokenBrokenError,
    TransportError,
)
from ..rest.credentials import RENEW_BEFORE, Anonymous, checks_certificates, redact
from ..rest.faults import Fault, make_reply_error, shorten
from ..rest.panda_api import server_root
from ..rest.retries import LOGIN_RETRY, Timeouts
from ..rest.tokens import Claims, TokenPlace, TokenSet, TokenStore, claims_from, find_vo, parse_claims
from ..rest.transport import Reply, Transport, parse_json
from ..settings.run import is_loopback

_LOG = logging.getLogger(__name__)

# A provider answers at once or not at all, in seconds.
_TIMEOUTS = Timeouts(connect=10.0, silence=20.0, total=60.0)

# Of a process that keeps a token fresh, in seconds.
_PAUSE = 300.0
_SHORTEST_WAIT = 60.0
_LONGEST_WAIT = 3600.0

_FORM = "application/x-www-form-urlencoded"
_ACCEPT = {"Accept": "application/json"}

# OAuth's own errors come with these (RFC 6749, section 5.2).
_OAUTH_STATUSES = (400, 401, 403)

# RFC 8628, section 3.5: the interval if none is given, and by how much it
# grows at each "slow_down".
_INTERVAL = 5.0

# Clocks that differ by less are let pass, in seconds.
_LEEWAY = 60


# --- the provider ----------------------------------------------------------

_WELL_KNOWN = "/.well-known/openid-configuration"

_SCOPES = ("openid", "profile", "email", "offline_access")
# What panda-client adds for providers of this profile.
_PROFILE_SCOPES: Mapping[str, tuple[str, ...]] = {"wlcg": ("wlcg", "wlcg.groups")}

# Signatures that a client can check with public keys.  "none" and those with
# a shared secret are not among them.
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")


@dataclass(frozen=True, slots=True)
class Provider:
    """The OpenID provider behind a PanDA server: its URLs, and as what PanDA is known there."""

    issuer: str
    """Name of the provider, which ID tokens carry."""

    client_id: str
    """Name of PanDA at the provider."""

    client_secret: str = field(repr=False)
    """Its secret, which every user of the server can read; empty for a public client."""

    audience: str
    """For whom access tokens are meant; may be empty."""

    device_endpoint: str
    token_endpoint: str
    jwks_uri: str
    """URLs of device authorization, tokens and public keys."""

    authorization_endpoint: str = ""
    """URL where browsers log in; may be empty."""

    scopes: tuple[str, ...] = _SCOPES
    """What to ask for."""

    algorithms: tuple[str, ...] = ("RS256",)
    """Signatures to accept."""


def auth_config_url(panda_url: str, vo: str) -> str:
    """Return the URL of a PanDA server's auth configuration, as panda-client has it."""
    return f"{server_root(panda_url)}/auth/{quote(vo, safe=':')}_auth_config.json"


def find_provider(
    transport: Transport, panda_url: str, vo: str, client: Mapping[str, Any] | None = None
) -> Provider:
    """Ask a PanDA server for its provider, unless the ``client`` at the provider is known, which has the form
    of that answer; and ask the provider for its URLs.

    Credentials are not needed.  `ReplyError` is raised if a document lacks something, names another issuer
    than its own URL (OpenID Connect Discovery 1.0, section 4.3), or leads to somewhere without encryption.
    """
    config_url = auth_config_url(panda_url, vo)
    config = client if client is not None else _fetch(transport, config_url, f"auth configuration of {vo}")
    discovery_url = _text(config, "oidc_config_url", config_url)
    discovery = _fetch(transport, discovery_url, "discovery document of the OpenID provider")
    issuer = _text(discovery, "issuer", discovery_url)
    if issuer.rstrip("/") + _WELL_KNOWN != discovery_url:
        raise _broken(f"The provider calls itself {issuer!r}, which is not where it was found", discovery_url)
    profile = config.get("jwt_profile")
    offered = discovery.get("id_token_signing_alg_values_supported") or ["RS256"]
    return Provider(
        issuer=issuer,
        client_id=_text(config, "client_id", config_url),
        client_secret=str(config.get("client_secret") or ""),
        audience=str(config.get("audience") or ""),
        device_endpoint=_endpoint(discovery, "device_authorization_endpoint", discovery_url),
        token_endpoint=_endpoint(discovery, "token_endpoint", discovery_url),
        jwks_uri=_endpoint(discovery, "jwks_uri", discovery_url),
        authorization_endpoint=(
            _endpoint(discovery, "authorization_endpoint", discovery_url)
            if "authorization_endpoint" in discovery
            else ""
        ),
        scopes=_SCOPES + _PROFILE_SCOPES.get(str(profile), ()),
        algorithms=tuple(name for name in _ALGORITHMS if name in offered),
    )


def _fetch(transport: Transport, url: str, what: str) -> dict[str, Any]:
    document = parse_json(transport.get(url, headers=_ACCEPT, what=what), what)
    if not isinstance(document, dict):
        # The value may hold the client's secret: it is not shown.
        raise make_reply_error("A JSON object was expected.", None, endpoint=url, what=what)
    return document


def _text(document: Mapping[str, Any], key: str, url: str) -> str:
    value = document.get(key)
    if not isinstance(value, str) or not value:
        raise _broken(f"It has no {key!r}", url)
    return value


def _endpoint(document: Mapping[str, Any], key: str, url: str) -> str:
    value = _text(document, key, url)
    parts = urlsplit(value)
    host = parts.hostname or ""
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        raise _broken(f"Its {key!r} is {value!r}: tokens are not sent without encryption", url)
    return value


def _broken(words: str, url: str) -> ReplyError:
    return ReplyError(
        f"{words}. Tell the operators of the PanDA server.",
        endpoint=redact(url),
        request="set-up of the login",
        fault=Fault.SHAPE,
    )


# --- the exchanges ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeviceGrant:
    """A login that waits for its approval."""

    device_code: str = field(repr=False)
    """Our half; secret."""

    user_code: str
    """What the person types or compares."""

    verification_uri: str
    """Where the person goes."""

    verification_uri_complete: str
    """The same with the code in it; may be empty."""

    expires_in: float
    """Seconds until it is too late."""

    interval: float
    """Seconds to wait before each question."""


def start_device_login(transport: Transport, provider: Provider) -> DeviceGrant:
    """Begin a login; `LoginError` is raised if the provider refuses, for instance PanDA's client id."""
    what = "start of the login"
    form = {"client_id": provider.client_id, "scope": " ".join(provider.scopes)}
    if provider.audience:
        form["audience"] = provider.audience
    form |= _secret(provider)
    reply = _post(transport, provider.device_endpoint, urlencode(form), what, safe=True)
    fields = _parse_fields(reply, what)
    if reply.status != 200:
        raise LoginError(_explain(str(fields.get("error")), fields, provider), endpoint=reply.url)
    try:
        return DeviceGrant(
            device_code=str(fields["device_code"]),
            user_code=str(fields["user_code"]),
            verification_uri=str(fields["verification_uri"]),
            verification_uri_complete=str(fields.get("verification_uri_complete") or ""),
            expires_in=float(fields["expires_in"]),
            interval=float(fields.get("interval") or _INTERVAL),
        )
    except (KeyError, TypeError, ValueError):
        pass
    raise make_reply_error(
        "The provider's reply lacks a code, a link or a time.", None, endpoint=reply.url, what=what
    )


def await_approval(
    transport: Transport,
    provider: Provider,
    grant: DeviceGrant,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> TokenSet:
    """Ask again and again until the person has approved, and check the ID token.

    `LoginError` is raised if the person or the provider refused, or nobody approved in time;
    `TokenBrokenError` if the ID token does not pass the checks.
    """
    from oauthlib.oauth2 import DeviceClient

    client = DeviceClient(provider.client_id)
    body = client.prepare_request_body(grant.device_code, include_client_id=True, **_secret(provider))
    deadline = clock() + grant.expires_in
    interval = grant.interval
    while clock() + interval < deadline:
        sleep(interval)
        try:
            fields, error = _ask_for_tokens(transport, provider, body, "login")
        except (ConnectionFailedError, ServerError) as problem:
            # RFC 8628, section 3.5: slow down when connections fail.
            _LOG.warning("Still waiting for the login, although: %s", problem)
            interval = min(2 * interval, 60.0)
            continue
        if fields is not None:
            return _verify_tokens(transport, provider, fields)
        if error == "slow_down":
            interval += _INTERVAL
        elif error != "authorization_pending":
            raise LoginError(_explain(error, {}, provider), endpoint=provider.token_endpoint)
    raise LoginError(_explain("expired_token", {}, provider), endpoint=provider.token_endpoint)


@dataclass(frozen=True, slots=True)
class BrowserLogin:
    """A login in a browser that has been sent to the provider."""

    url: str
    """Where it is sent."""

    redirect_uri: str
    """Where it comes back to."""

    state: str = field(repr=False)
    nonce: str = field(repr=False)
    verifier: str = field(repr=False)
    """What the way back, the ID token and the exchange of the code must fit; secret until then."""


def start_browser_login(provider: Provider, redirect_uri: str) -> BrowserLogin:
    """Begin a login in a browser; `LoginError` is raised if the provider does not offer that."""
    from oauthlib.common import add_params_to_uri
    from oauthlib.oauth2 import WebApplicationClient

    if not provider.authorization_endpoint:
        raise LoginError("The provider has no page to log in with a browser.", endpoint=provider.issuer)
    client = WebApplicationClient(provider.client_id)
    state, nonce = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    verifier = client.create_code_verifier(96)
    parameters = {
        "response_type": "code",
        "client_id": provider.client_id,
        "redirect_uri": redirect_uri,
        "scope": " ".join(provider.scopes),
        "state": state,
        "nonce": nonce,
        "code_challenge": client.create_code_challenge(verifier, "S256"),
        "code_challenge_method": "S256",
    }
    if provider.audience:
        parameters["audience"] = provider.audience
    url = add_params_to_uri(provider.authorization_endpoint, list(parameters.items()))
    return BrowserLogin(url, redirect_uri, state, nonce, verifier)


def finish_browser_login(
    transport: Transport, provider: Provider, login: BrowserLogin, query: str
) -> TokenSet:
    """Exchange the code that a browser has brought back in the ``query`` of its address, and check the ID
    token.

    `LoginError` is raised if it does not belong to this login, or the person or the provider refused;
    `TokenBrokenError` if the ID token does not pass the checks.
    """
    from oauthlib.oauth2 import OAuth2Error, WebApplicationClient

    client = WebApplicationClient(provider.client_id)
    try:
        fields = client.parse_request_uri_response(f"{login.redirect_uri}?{query}", state=login.state)
    except OAuth2Error as problem:
        raise _refused(str(problem.error), provider) from None
    # RFC 9207: the reply may say which provider it is from.
    if fields.get("iss", provider.issuer) != provider.issuer:
        raise _refused("answer of another provider", provider)
    body = client.prepare_request_body(
        fields["code"],
        redirect_uri=login.redirect_uri,
        code_verifier=login.verifier,
        include_client_id=True,
        **_secret(provider),
    )
    found, error = _ask_for_tokens(transport, provider, body, "login")
    if found is None:
        raise _refused(error, provider)
    return _verify_tokens(transport, provider, found, nonce=login.nonce)


def _refused(code: str, provider: Provider) -> LoginError:
    text = f"The login was refused ({shorten(redact(code))})."
    if code in _CLIENT_WORDS:
        words = _CLIENT_WORDS[code].format(client=repr(provider.client_id))
        text += f" {words}: trying again does not help; tell the operators of these pages."
    else:
        text += " Try again; if that does not help, tell the operators of these pages."
    return LoginError(text, endpoint=provider.issuer)


def refresh_tokens(transport: Transport, provider: Provider, tokens: TokenSet) -> TokenSet:
    """Get new tokens for a refresh token, and check the new ID token.

    It is sent once: a refresh token is often good for one use only, and the provider may take a second one
    for theft.  `RefreshRefusedError` is raised if there is no refresh token, or the provider refuses it or
    gives tokens of somebody else.
    """
    from oauthlib.oauth2 import DeviceClient

    if tokens.refresh_token is None:
        raise RefreshRefusedError("There is no refresh token. Log in with 'panda_auth reset'.")
    body = DeviceClient(provider.client_id).prepare_refresh_body(
        refresh_token=tokens.refresh_token, client_id=provider.client_id, **_secret(provider)
    )
    fields, error = _ask_for_tokens(transport, provider, body, "refresh of the token")
    if fields is None:
        raise RefreshRefusedError(_explain(error, {}, provider), endpoint=provider.token_endpoint)
    if "id_token" not in fields:
        raise RefreshRefusedError(
            "The provider gave no ID token. Log in with 'panda_auth reset'.", endpoint=provider.token_endpoint
        )
    renewed = _verify_tokens(transport, provider, tokens.renewed(fields).fields)
    if parse_claims(renewed.id_token).subject != parse_claims(tokens.id_token).subject:
        raise RefreshRefusedError("The provider gave a token of somebody else; it is not used.")
    return renewed


def verify_id_token(
    id_token: str,
    keys: Mapping[str, Any],
    provider: Provider,
    *,
    nonce: str = "",
    now: datetime | None = None,
) -> Claims:
    """Check signature, issuer, audience and times of an ID token, and return its claims.

    ``keys`` is the provider's key set (RFC 7517); a ``nonce`` has to be in the token; ``now`` is for the
    words about clocks that differ.  `TokenBrokenError` says which check failed.
    """
    import jwt

    try:
        key = _select_key(jwt.PyJWKSet.from_dict(dict(keys)), jwt.get_unverified_header(id_token))
        raw = jwt.decode(
            id_token,
            key,
            algorithms=list(provider.algorithms),
            audience=provider.client_id,
            issuer=provider.issuer,
            leeway=_LEEWAY,
            options={"require": ["iss", "sub", "aud", "exp", "iat"]},
        )
        # Section 3.1.3.7, number 5: with several audiences the token says
        # for whom it was made.
        if isinstance(raw["aud"], list) and len(raw["aud"]) > 1 and raw.get("azp") != provider.client_id:
            raise jwt.InvalidAudienceError("made for another client (azp)")
        if nonce and raw.get("nonce") != nonce:
            raise jwt.InvalidTokenError("made for another login (nonce)")
        return claims_from(raw)
    except (jwt.ImmatureSignatureError, jwt.ExpiredSignatureError) as error:
        problem = f"{error}; {_compare_clocks(id_token, now or datetime.now(UTC))}"
    except jwt.PyJWTError as error:
        problem = redact(str(error))
    # Not chained: the library's error may quote the token.
    raise TokenBrokenError(
        f"The provider's ID token is not accepted: {shorten(problem)}.", endpoint=provider.issuer
    )


def _select_key(keys: Any, header: Mapping[str, Any]) -> Any:
    """Choose the key that the token names; a single key needs no name."""
    import jwt

    name = header.get("kid")
    for key in keys.keys:
        if key.key_id == name or (name is None and len(keys.keys) == 1):
            return key
    raise jwt.InvalidKeyError("signed with a key that the provider does not show")


def _compare_clocks(id_token: str, now: datetime) -> str:
    issued = parse_claims(id_token).issued
    if issued is None:
        return "check the clock of this machine"
    ahead = (issued - now).total_seconds()
    side = "behind" if ahead > 0 else "ahead of"
    return f"the clock of this machine seems to be {abs(ahead):.0f} s {side} the provider's"


def _verify_tokens(
    transport: Transport, provider: Provider, fields: Mapping[str, object], *, nonce: str = ""
) -> TokenSet:
    """Make tokens of a reply, whose ID token is checked before anything else is done with it."""
    tokens = TokenSet(fields)
    what = "keys of the OpenID provider"
    keys = parse_json(transport.get(provider.jwks_uri, headers=_ACCEPT, what=what), what)
    if not isinstance(keys, dict):
        raise make_reply_error("A set of keys was expected.", keys, endpoint=provider.jwks_uri, what=what)
    verify_id_token(tokens.id_token, keys, provider, nonce=nonce)
    return tokens


def _secret(provider: Provider) -> dict[str, str]:
    """Return the client's secret as a parameter; a public client sends none."""
    return {"client_secret": provider.client_secret} if provider.client_secret else {}


def _ask_for_tokens(
    transport: Transport, provider: Provider, body: str, what: str
) -> tuple[dict[str, Any] | None, str]:
    """Ask the token endpoint; return its fields, or the code of its error."""
    from oauthlib.oauth2 import DeviceClient, OAuth2Error

    reply = _post(transport, provider.token_endpoint, body, what, safe=False)
    fields = _parse_fields(reply, what)
    try:
        DeviceClient(provider.client_id).parse_request_body_response(json.dumps(fields))
    except OAuth2Error as error:
        code = str(error.error)
        _LOG.debug("%s: %s %s", what, code, shorten(redact(str(fields.get("error_description", "")))))
        return None, code
    return fields, ""


def _post(transport: Transport, url: str, body: str, what: str, *, safe: bool) -> Reply:
    return transport.post(
        url,
        body=body.encode("ascii"),
        content_type=_FORM,
        headers=_ACCEPT,
        safe=safe,
        what=what,
        accept=_OAUTH_STATUSES,
    )


def _parse_fields(reply: Reply, what: str) -> dict[str, Any]:
    """Parse a reply without ever showing it, because it holds tokens."""
    try:
        fields = parse_json(reply, what)
    except ReplyError as error:
        problem = error
    else:
        if isinstance(fields, dict) and (reply.status == 200 or isinstance(fields.get("error"), str)):
            return fields
        problem = make_reply_error(
            "The provider's reply is not of OAuth.", None, endpoint=reply.url, what=what
        )
    if reply.status in {401, 403}:
        raise AuthenticationError(problem.message, endpoint=reply.url, request=what, status=reply.status)
    raise ReplyError(
        problem.message, endpoint=reply.url, request=what, status=reply.status, fault=problem.fault
    )


# What only somebody can mend who looks after the client.
_CLIENT_WORDS: Mapping[str, str] = {
    "invalid_client": "The provider does not know the client {client}",
    "unauthorized_client": "The client {client} may not log in",
    "invalid_scope": "The client {client} may not ask for this",
}
_WORDS: Mapping[str, str] = {
    "access_denied": "The login was refused in the browser",
    "expired_token": "Nobody approved the login in time",
    "invalid_grant": "The provider does not accept the refresh token any more (expired, used or revoked)",
    **{code: f"{words}; tell the operators of PanDA" for code, words in _CLIENT_WORDS.items()},
}


def _explain(code: str, fields: Mapping[str, Any], provider: Provider) -> str:
    """Explain the code of an OAuth error in words."""
    words = _WORDS.get(code, "The provider refused").format(client=repr(provider.client_id))
    said = shorten(redact(f"{code} {fields.get('error_description') or ''}".strip()))
    return f"{words} ({said}). Log in with 'panda_auth reset'."


# --- what is done with a login ---------------------------------------------


@dataclass(frozen=True, slots=True)
class LoginSettings:
    """Which server to log in to, and for which virtual organisation."""

    panda_url: str
    vo: str
    verify: bool = True
    """Whether to check certificates of servers."""

    client: Mapping[str, Any] | None = field(default=None, repr=False)
    """The client at the provider, in the form of the server's auth configuration, the default."""

    def find_provider(self, transport: Transport) -> Provider:
        """Find the provider and its URLs."""
        return find_provider(transport, self.panda_url, self.vo, self.client)

    def make_transport(self) -> Transport:
        """Make the transport to the PanDA server and the provider."""
        return Transport(Anonymous(), verify=self.verify, timeouts=_TIMEOUTS, retry=LOGIN_RETRY)


def find_login_settings(env: Mapping[str, str]) -> LoginSettings:
    """Find the settings of a login in the environment.

    `SettingsError` names all variables that are missing.
    """
    url = env.get("PANDA_URL_SSL") or env.get("PANDA_URL") or ""
    vo = find_vo(env)
    missing = [name for name, value in (("PANDA_URL_SSL", url), ("PANDA_AUTH_VO", vo)) if not value]
    if missing:
        raise SettingsError(f"To log in, set the environment variables {' and '.join(missing)}.")
    return LoginSettings(url, vo, checks_certificates(env))


def log_in(store: TokenStore, settings: LoginSettings, show: Callable[[DeviceGrant], None]) -> Claims:
    """Log in with the help of a person and a browser, and return the claims of the new token.

    ``show`` shows link and code to the person.  What the store has stays until there are new tokens.
    """
    transport = settings.make_transport()
    provider = settings.find_provider(transport)
    grant = start_device_login(transport, provider)
    show(grant)
    tokens = await_approval(transport, provider, grant)
    with store.lock():
        store.save(tokens)
    return parse_claims(tokens.id_token)


@dataclass(frozen=True, slots=True)
class RefreshOutcome:
    """What a refresh did."""

    refreshed: bool
    """Whether there is a new token."""

    claims: Claims
    """What the token in the store says now."""


def refresh(
    store: TokenPlace,
    settings: LoginSettings,
    *,
    threshold: timedelta,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> RefreshOutcome:
    """Get new tokens if the present ones do not last.

    They are too old if less than the threshold is left.  Safe when two processes do it at once: the second
    waits, then finds that there is nothing left to do.  The tokens stay as they are after any error.
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
        transport = settings.make_transport()
        provider = settings.find_provider(transport)
        renewed = refresh_tokens(transport, provider, tokens)
        store.save(renewed)
    return RefreshOutcome(True, parse_claims(renewed.id_token))


def keep_fresh(
    store: TokenStore,
    settings: LoginSettings,
    *,
    threshold: timedelta,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Iterator[RefreshOutcome]:
    """Refresh again and again, for ever, and yield what was done each time.

    Parameters are those of `refresh`.  `AuthenticationError` is raised if a
    person has to log in; servers that cannot be asked are asked again later.
    """
    while True:
        try:
            outcome = refresh(store, settings, threshold=threshold, now=now)
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


def make_renewer(
    env: Mapping[str, str], settings: LoginSettings | None = None
) -> Callable[[TokenPlace], bool]:
    """Make the function that credentials call when their token is about to expire.

    The settings are those of the environment, unless they are given.  The function refreshes the tokens of a
    store without asking a person, and returns `True` if there are new ones.  A failure is logged, not raised:
    the present token may still do.
    """

    def renew(store: TokenPlace) -> bool:
        try:
            found = settings or find_login_settings(env)
            return refresh(store, found, threshold=RENEW_BEFORE).refreshed
        except (TransportError, SettingsError) as error:
            _LOG.warning("The token could not be renewed: %s", error)
            return False

    return renew
