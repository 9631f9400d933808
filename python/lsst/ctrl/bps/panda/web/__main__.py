"""The process of the live pages that an embedded PanDA starts when somebody looks: the standard input is the
socket on which it listens, and the variables say which PanDA it is.
"""

from __future__ import annotations

import socket
from pathlib import Path

from ..runs.client import connect
from ..settings.run import read_service_settings
from .application import make_application
from .looks import Looks
from .portal import Portal
from .server import serve_behind

_INTERVAL = 0.9
_IDLE = 300.0

if __name__ == "__main__":
    looks = Looks(lambda: connect(read_service_settings(None)), _INTERVAL)
    portal = Portal(Path.cwd() / "portal")
    serve_behind(make_application(looks, portal=portal), socket.socket(fileno=0), idle=_IDLE)
