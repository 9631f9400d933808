"""The command ``panda_bps web``: live pages of runs in a browser of this machine."""

from __future__ import annotations

__all__ = ["web"]

from urllib.parse import urlsplit

import click

from ..errors import PandaBpsError
from ..insight.progress import LEAST_INTERVAL
from ..runs.client import connect
from ..settings.run import is_loopback
from .output import shows_errors
from .panda_bps_show import find_server, local_option

_LOCAL_INTERVAL = 0.9
"""Seconds between two looks at a server on this machine."""


@click.command()
@local_option
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Port  [default: any that is free].")
@shows_errors(OSError)
def web(local: bool, port: int) -> None:
    """Show runs in a browser of this machine, live, until Ctrl-C.

    The link that is printed opens the pages once; when it has been used, another one is printed.  Who has it
    acts in PanDA as you: it cancels and restarts your runs.  From another machine, tunnel the port.

    \b
    panda_bps web
    ssh -L 8642:127.0.0.1:8642 login.example.org panda_bps web --port 8642
    """  # noqa: D301 (click's mark)
    try:
        from ..web.application import make_application
        from ..web.looks import Looks
        from ..web.server import PagesServer
    except ImportError as error:
        raise PandaBpsError(
            f"The pages need what is not installed here: {error}. Install it with: "
            "pip install 'lsst-ctrl-bps-panda[web]'."
        ) from error
    settings, _ = find_server(local)
    host = urlsplit(settings.require_url()).hostname or ""
    least = _LOCAL_INTERVAL if is_loopback(host) else LEAST_INTERVAL
    looks = Looks(lambda: connect(settings), least)
    PagesServer(make_application(looks), port, lambda link: click.echo(f"Open in a browser: {link}")).run()
