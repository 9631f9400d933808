"""The OpenID provider behind a PanDA server, found in two steps: the server's
auth configuration, then the provider's discovery document.
"""

__all__ = ["Provider", "auth_config_url", "find_provider"]

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from ..errors import ReplyError, SettingsError
from ..rest.faults import Fault
from ..rest.redaction import redact
from ..rest.replies import parse_json, shape_error
from ..rest.transport import Transport

_WELL_KNOWN = "/.well-known/openid-configuration"

_SCOPES = ("openid", "profile", "email", "offline_access")
# What panda-client adds for providers of this profile.
_PROFILE_SCOPES: Mapping[str, tuple[str, ...]] = {"wlcg": ("wlcg", "wlcg.groups")}

# Signatures that a client can check with public keys.  "none" and those with
# a shared secret are not among them.
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")


@dataclass(frozen=True, slots=True)
class Provider:
    """Where and as what to log in.

    Parameters
    ----------
    issuer : `str`
        Name of the provider, which ID tokens carry.
    client_id : `str`
        Name of PanDA at the provider.
    client_secret : `str`
        Its secret, which every user of the server can read; empty for a
        public client.
    audience : `str`
        For whom access tokens are meant; may be empty.
    device_endpoint, token_endpoint, jwks_uri : `str`
        URLs of device authorization, tokens and public keys.
    scopes : `tuple` [`str`, ...]
        What to ask for.
    algorithms : `tuple` [`str`, ...]
        Signatures to accept.
    """

    issuer: str
    client_id: str
    client_secret: str = field(repr=False)
    audience: str
    device_endpoint: str
    token_endpoint: str
    jwks_uri: str
    scopes: tuple[str, ...] = _SCOPES
    algorithms: tuple[str, ...] = ("RS256",)


def auth_config_url(panda_url: str, vo: str) -> str:
    """Give the URL of a PanDA server's auth configuration.

    Parameters
    ----------
    panda_url : `str`
        ``PANDA_URL_SSL``.
    vo : `str`
        Virtual organisation.

    Returns
    -------
    url : `str`
        ``/auth/<vo>_auth_config.json`` on that host, as panda-client has it.

    Raises
    ------
    SettingsError
        Raised if the URL is not one.
    """
    parts = urlsplit(panda_url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise SettingsError(
            f"{redact(panda_url)!r} (PANDA_URL_SSL) is not a URL, such as https://host:8443/server/panda."
        )
    return f"{parts.scheme}://{parts.netloc}/auth/{quote(vo, safe=':')}_auth_config.json"


def find_provider(transport: Transport, panda_url: str, vo: str) -> Provider:
    """Ask a PanDA server for its provider, and the provider for its URLs.

    Parameters
    ----------
    transport : `Transport`
        How to ask; credentials are not needed.
    panda_url : `str`
        ``PANDA_URL_SSL``.
    vo : `str`
        Virtual organisation.

    Returns
    -------
    provider : `Provider`
        Where to log in.

    Raises
    ------
    TransportError
        Raised if one of the two cannot be asked.
    ReplyError
        Raised if a document lacks something, names another issuer than its
        own URL (OpenID Connect Discovery 1.0, section 4.3), or leads to
        somewhere without encryption.
    """
    config_url = auth_config_url(panda_url, vo)
    config = _fetch(transport, config_url, f"auth configuration of {vo}")
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
        scopes=_SCOPES + _PROFILE_SCOPES.get(str(profile), ()),
        algorithms=tuple(name for name in _ALGORITHMS if name in offered),
    )


def _fetch(transport: Transport, url: str, what: str) -> dict[str, Any]:
    document = parse_json(transport.get(url, headers={"Accept": "application/json"}, what=what), what)
    if not isinstance(document, dict):
        # The value may hold the client's secret: it is not shown.
        raise shape_error("A JSON object was expected.", None, endpoint=url, what=what)
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
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
        raise _broken(f"Its {key!r} is {value!r}: tokens are not sent without encryption", url)
    return value


def _is_loopback(host: str) -> bool:
    return host in {"localhost", "::1"} or host.startswith("127.")


def _broken(words: str, url: str) -> ReplyError:
    return ReplyError(
        f"{words}. Tell the operators of the PanDA server.",
        endpoint=redact(url),
        request="set-up of the login",
        fault=Fault.SHAPE,
    )
