"""The first contact with a remote store: whether its host is known, answers
and is trusted, found out in seconds.

The libraries below ``lsst.resources`` repeat a request to a host that is
down, or whose certificate is not trusted, for one to three minutes.
"""

from __future__ import annotations

__all__ = ["check_connection"]

import os
import socket
import ssl
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

_SECONDS = 10.0

_PORTS = {"http": 80, "dav": 80, "https": 443, "davs": 443}


def check_connection(uri: Any, *, seconds: float = _SECONDS) -> None:
    """Connect to the host of a store, and disconnect.

    Nothing is checked where that would need more than is known here: behind
    a proxy, or for a store whose end point is not known.

    Parameters
    ----------
    uri : `lsst.resources.ResourcePath`
        Any URI of the store.
    seconds : `float`, optional
        How long to wait for the connection.

    Raises
    ------
    OSError
        Raised if the host is not known, refuses, does not answer, or has a
        certificate that is not trusted.
    """
    parts = urlsplit(_end_point(uri))
    port = parts.port or _PORTS.get(parts.scheme, 0)
    if not parts.hostname or not port or getproxies():
        return
    with socket.create_connection((parts.hostname, port), timeout=seconds) as plain:
        if parts.scheme == "https" and uri.scheme == "https" and (context := _trust(uri)):
            try:
                context.wrap_socket(plain, server_hostname=parts.hostname).close()
            except ssl.SSLCertVerificationError:
                raise
            except OSError:
                # It may want a certificate of ours, or something else that
                # only the library below knows how to give.
                return


def _end_point(uri: Any) -> str:
    if uri.scheme == "s3":
        return str(uri.client.meta.endpoint_url)
    return str(uri.geturl()) if uri.scheme in _PORTS else ""


def _trust(uri: Any) -> ssl.SSLContext | None:
    """The authorities that the HTTP backend trusts, `None` if not known."""
    with suppress(Exception):
        # The one thing that knows for sure is the session that will be used.
        session = uri.metadata_session._session
        verify = session.merge_environment_settings(uri.geturl(), {}, None, None, None)["verify"]
        if verify is True:
            import certifi

            verify = certifi.where()
        if isinstance(verify, str):
            folder = os.path.isdir(verify)
            return ssl.create_default_context(
                cafile=None if folder else verify, capath=verify if folder else None
            )
    return None
