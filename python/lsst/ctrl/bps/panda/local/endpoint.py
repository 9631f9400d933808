"""Where an embedded PanDA keeps its state and how to reach it: the state
directory, and the file ``endpoint.json`` in it that a running server leaves
for clients.
"""

from __future__ import annotations

__all__ = ["ENDPOINT_FILE", "Endpoint", "environment", "read_endpoint", "state_directory", "write_endpoint"]

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

ENDPOINT_FILE = "endpoint.json"
"""Name of the file in the state directory."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running embedded PanDA."""

    url: str
    """``http://127.0.0.1:PORT/server/panda``, the value of PANDA_URL."""

    pid: int
    """Process of the server."""

    started: int
    """Start of that process in clock ticks since boot, which tells a process
    from another one that got the same number later."""

    token: str
    """Secret of this instance; allows the calls of `/api/v1/local`."""

    version: str
    """Version of this package that the server runs."""

    directory: str
    """State directory, absolute."""

    mark: str = ""
    """Value of an environment variable of this server only."""


def state_directory(variables: Mapping[str, str]) -> Path:
    """Tell the default state directory.

    Parameters
    ----------
    variables : `~collections.abc.Mapping`
        Environment variables: ``PANDA_LOCAL_DIR``, ``XDG_STATE_HOME``,
        ``HOME``.

    Returns
    -------
    path : `~pathlib.Path`
        ``$PANDA_LOCAL_DIR``, else ``panda_local`` in ``$XDG_STATE_HOME``,
        else ``~/.local/state/panda_local``.
    """
    if chosen := variables.get("PANDA_LOCAL_DIR"):
        return Path(chosen).absolute()
    base = variables.get("XDG_STATE_HOME")
    if not base or not os.path.isabs(base):
        base = os.path.join(variables.get("HOME") or os.path.expanduser("~"), ".local", "state")
    return Path(base) / "panda_local"


def read_endpoint(directory: str | Path) -> Endpoint | None:
    """Read ``endpoint.json``; `None` if it is absent or not usable."""
    try:
        value = json.loads((Path(directory) / ENDPOINT_FILE).read_text())
        return Endpoint(
            url=str(value["url"]),
            pid=int(value["pid"]),
            started=int(value["started"]),
            token=str(value["token"]),
            version=str(value["version"]),
            directory=str(value["directory"]),
            mark=str(value.get("mark", "")),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_endpoint(endpoint: Endpoint) -> None:
    """Write ``endpoint.json`` so that a reader sees all of it or nothing."""
    target = Path(endpoint.directory) / ENDPOINT_FILE
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        json.dump(asdict(endpoint), stream, indent=1)
    os.replace(temporary, target)


def environment(endpoint: Endpoint) -> dict[str, str]:
    """Tell the variables that make clients use this embedded PanDA.

    Returns
    -------
    variables : `dict` [`str`, `str`]
        An empty value means that the variable has to be unset: credentials
        for a facility must not be sent to a local server.
    """
    return {
        "PANDA_URL": endpoint.url,
        "PANDA_URL_SSL": endpoint.url,
        "PANDACACHE_URL": endpoint.url,
        # panda-client resolves the cache server's host name on import else.
        "PANDA_BEHIND_REAL_LB": "1",
        "PANDA_LOCAL_DIR": endpoint.directory,
        # idds.common takes itself for a server where idds-server is
        # installed, and then wants a server's configuration file.
        "IDDS_CLIENT_MODE": "1",
        # idds.workflowv2 makes ~/.idds when it is imported.
        "IDDS_LOCAL_CONFIG_ROOT": str(Path(endpoint.directory) / "idds" / "client"),
        "PANDA_AUTH": "",
        "PANDA_AUTH_VO": "",
        "PANDA_AUTH_ID_TOKEN": "",
        "OIDC_AUTH_ID_TOKEN": "",
        "OIDC_AUTH_TOKEN_FILE": "",
    }
