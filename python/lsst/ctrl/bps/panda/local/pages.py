"""The live pages of runs: a process of their own, started when somebody looks, to which the web server
forwards the requests of browsers that were let in.

It ends by itself when nobody has looked for a while, and with the server: it carries the mark of its jobs.
"""

from __future__ import annotations

__all__ = ["PageReply", "Pages", "PagesError"]

import http.client
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

_COMMAND = (sys.executable, "-P", "-m", "lsst.ctrl.bps.panda.web")
_AT_ONCE = 6
"""Requests: the process asks this server in turn, which has to have threads left."""

_PATIENCE = 150.0
"""Seconds for a reply; a cancel is watched for a minute."""

_SENT = ("Host", "Origin", "Content-Type", "If-None-Match")
_KEPT = (
    "Content-Type", "Content-Disposition", "Content-Security-Policy", "Location", "Looked-At",
    "Referrer-Policy",
)  # fmt: skip


class PagesError(Exception):
    """A request that could not be forwarded."""


class PageReply(NamedTuple):
    """What the process has replied."""

    status: int
    headers: dict[str, str]
    body: bytes


class _Connection(http.client.HTTPConnection):
    """A connection to the process."""

    def __init__(self, address: str) -> None:
        super().__init__("localhost", timeout=_PATIENCE)
        self._address = address

    def connect(self) -> None:
        """Connect to its socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_PATIENCE)
        self.sock.connect(self._address)


class Pages:
    """The process of the live pages.

    Parameters
    ----------
    folder : `~pathlib.Path`
        Folder of this user's own, for its socket and its log.
    environment : mapping
        Variables with which it asks this server.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = dict(environment)
        self._listener: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._free = threading.Semaphore(_AT_ONCE)

    def forward(
        self, place: str, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> PageReply:
        """Forward a request; ``place`` is the path below which the browser sees the pages.

        `PagesError` says why there is no reply.
        """
        if not self._free.acquire(blocking=False):
            raise PagesError("too many pages are asked for at once; wait a moment")
        try:
            connection = _Connection(self._ready())
            sent = {name: headers[name] for name in _SENT if name in headers}
            connection.request(method, target, body or None, {**sent, "X-Script-Name": place})
            with connection.getresponse() as reply:
                kept = {name: value for name in _KEPT if (value := reply.headers.get(name))}
                return PageReply(reply.status, kept, reply.read())
        except (OSError, http.client.HTTPException) as error:
            raise PagesError(
                f"the live pages do not answer ({error!r}); see {self._folder / 'pages.log'}"
            ) from error
        finally:
            self._free.release()

    def _ready(self) -> str:
        """Have the process run, and return the address of its socket.

        Connections wait until it listens.  The address is by the number of the folder, since it may have 107
        bytes only.
        """
        with self._lock:
            if self._listener is None:
                self._directory = os.open(self._folder, os.O_DIRECTORY)
                self._address = f"/proc/self/fd/{self._directory}/pages.socket"
                (self._folder / "pages.socket").unlink(missing_ok=True)
                self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._listener.bind(self._address)
                self._listener.listen()
            if self._process is None or self._process.poll() is not None:
                with open(self._folder / "pages.log", "wb") as log:
                    self._process = subprocess.Popen(
                        _COMMAND,
                        cwd=self._folder,
                        env=self._environment,
                        stdin=self._listener.fileno(),
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
        return self._address
