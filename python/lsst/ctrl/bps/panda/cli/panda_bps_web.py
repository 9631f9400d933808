"""The command ``panda_bps web``: live pages of runs in a browser of this machine."""

from __future__ import annotations

__all__ = ["web"]

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from ..auth.login import find_login_settings
from ..errors import PandaBpsError, SettingsError
from ..insight.progress import LEAST_INTERVAL
from ..runs.client import connect
from ..settings.run import ServiceSettings, is_loopback
from .output import shows_errors
from .panda_bps_show import find_server, local_option

_LOCAL_INTERVAL = 0.9
"""Seconds between two looks at a server on this machine."""


_MINUTES = click.FloatRange(0, min_open=True)


@click.command()
@local_option
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Port  [default: any that is free].")
@click.option("--login", is_flag=True, help="Serve a group, whose members log in at PanDA's OpenID provider.")
@click.option(
    "--address", default="", metavar="URL", help="With --login: where browsers find the pages, https."
)
@click.option(
    "--client",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="With --login: file with the client at the provider  [default: PanDA's own].",
)
@click.option(
    "--log-host",
    "log_hosts",
    multiple=True,
    metavar="HOST",
    help="With --login: another host from which logs may be read.",
)
@click.option(
    "--idle",
    type=_MINUTES,
    metavar="MINUTES",
    help="With --login: end sessions that were not used for so long.",
)
@click.option(
    "--longest",
    type=_MINUTES,
    metavar="MINUTES",
    help="With --login: end sessions after so long, even if they are used.",
)
@shows_errors(OSError)
def web(local: bool, port: int, login: bool, **options: Any) -> None:
    """Show runs in a browser of this machine, live, until Ctrl-C.

    The link that is printed opens the pages once; when it has been used, another one is printed.  Who has it
    acts in PanDA as you: it cancels and restarts your runs.  From another machine, tunnel the port.

    With --login, everybody logs in and acts in PanDA as themselves.  The pages are still on this machine's
    own address; a proxy that speaks TLS has to stand before them.

    \b
    panda_bps web
    ssh -L 8642:127.0.0.1:8642 login.example.org panda_bps web --port 8642
    panda_bps web --login --address https://runs.example.org --port 8642
    """  # noqa: D301 (click's mark)
    if not login and any(options.values()):
        raise SettingsError("--address, --client, --log-host, --idle and --longest are for --login; add it.")
    settings, _ = find_server(local)
    host = urlsplit(settings.require_url()).hostname or ""
    least = _LOCAL_INTERVAL if is_loopback(host) else LEAST_INTERVAL
    try:
        from ..web.application import make_application
        from ..web.looks import Looks
        from ..web.server import PagesServer
    except ImportError as error:
        raise PandaBpsError(
            f"The pages need what is not installed here: {error}. Install it with: "
            "pip install 'lsst-ctrl-bps-panda[web]'."
        ) from error
    if login:
        _serve_group(settings, port, least, **options)
        return
    looks = Looks(lambda: connect(settings), least)
    PagesServer(make_application(looks), port, lambda link: click.echo(f"Open in a browser: {link}")).run()


def _serve_group(
    settings: ServiceSettings,
    port: int,
    least: float,
    *,
    address: str,
    client: Path | None,
    log_hosts: tuple[str, ...],
    idle: float | None,
    longest: float | None,
) -> None:
    """Serve a group until the process is interrupted."""
    from ..web.server import GroupServer, GroupSettings

    address = address.rstrip("/")
    parts = urlsplit(address)
    if (
        parts.scheme != "https"
        or not parts.hostname
        or address != f"https://{parts.netloc}"
        or "@" in address
    ):
        raise SettingsError(
            f"--address is {address!r}. Give where browsers find the pages: https, the host, and its port if "
            "it is not 443, for instance https://runs.example.org. A proxy that speaks TLS has to serve it."
        )
    login = find_login_settings(settings.environment)
    if client is not None:
        login = replace(login, client=_read_client(client))
    group = GroupSettings(address, settings, login, least, frozenset(log_hosts))
    group = replace(
        group,
        idle=60 * idle if idle is not None else group.idle,
        longest=60 * longest if longest is not None else group.longest,
    )
    server = GroupServer(group, port)
    click.echo(f"Serving {address} at http://127.0.0.1:{server.port}; the provider has to know")
    click.echo(f"the redirect URI {group.redirect_uri} of its client.")
    server.run()


def _read_client(path: Path) -> dict[str, Any]:
    """Read a client, in the form of PanDA's auth configuration."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"--client {path} cannot be read: {error}.") from error
    wanted = ("client_id", "oidc_config_url")
    if not isinstance(found, dict) or not all(isinstance(found.get(name), str) for name in wanted):
        raise SettingsError(f"--client {path} is not a JSON object with client_id and oidc_config_url.")
    return found
