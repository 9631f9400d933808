"""Read the files that a job left: through HTTP, from a file system, or from
whatever else `lsst.resources` can read.

No credentials of ours are sent: log areas are read by anybody or not at all,
and they may lie on any host.
"""

from __future__ import annotations

__all__ = ["LOG_FILES", "LogArea", "area_of", "make_log_transport"]

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..errors import ReplyError, TransportError
from ..rest.credentials import Anonymous
from ..rest.faults import Fault
from ..rest.retries import RetryPolicy
from ..rest.transport import Timeouts, Transport
from .jobs import JobDetail

LOG_FILES = ("payload-log.json", "payload.stderr", "payload.stdout")
"""Files of the payload; the first is the best where it is there."""

_BLOCK = 4 * 1024**2
_PAYLOAD = "payload.stderr"
# A compressed reply could not be cut at an offset.
_HEADERS = {"Accept-Encoding": "identity"}
_SIZE_WRONG = 416
_PARTIAL = 206


def make_log_transport(*, verify: bool | str = True) -> Transport:
    """Make what reads log areas through HTTP.

    Parameters
    ----------
    verify : `bool` or `str`, optional
        As for `~..rest.transport.Transport`.
    """
    return Transport(
        Anonymous(),
        verify=verify,
        timeouts=Timeouts(connect=10.0, read=60.0, total=600.0),
        retry=RetryPolicy(attempts=2, base=0.5, cap=5.0, budget=30.0),
    )


def area_of(job: JobDetail, server: str) -> dict[str, str]:
    """Find the addresses of a job's files.

    Parameters
    ----------
    job : `JobDetail`
        The job.
    server : `str`
        URL of PanDA; the embedded one shows the files of a job that runs.

    Returns
    -------
    addresses : `dict` [`str`, `str`]
        By the name of the file; an area holds any name, a batch system's
        log only two.  Empty if there is nothing yet.
    """
    if job.log_url.endswith(_PAYLOAD):
        return {"": job.log_url[: -len(_PAYLOAD)]}
    if job.log_url:
        stem, dot, _ = job.log_url.rpartition(".")
        found = {_PAYLOAD: job.log_url}
        return found | ({"payload.stdout": f"{stem}.out"} if dot and job.log_url.endswith(".err") else {})
    if job.pilot_id.startswith("unknown|local|"):
        parts = urlsplit(server)
        return {"": f"{parts.scheme}://{parts.netloc}/logs/PandaJob_{job.panda_id}/"}
    return {}


class LogArea:
    """The files of one job.

    Parameters
    ----------
    job : `JobDetail`
        The job.
    server : `str`
        URL of PanDA.
    transport : `Transport`
        Reads through HTTP, see `make_log_transport`.
    """

    def __init__(self, job: JobDetail, server: str, transport: Transport) -> None:
        self.job = job
        self._addresses = area_of(job, server)
        self._transport = transport

    def __bool__(self) -> bool:
        return bool(self._addresses)

    def address(self, name: str) -> str:
        """Tell where a file is; empty if it has no known place."""
        if base := self._addresses.get(""):
            return base + name
        return self._addresses.get(name, "")

    def tail(self, name: str, size: int) -> bytes:
        """Read the end of a file.

        Parameters
        ----------
        name : `str`
            Its name.
        size : `int`
            Most bytes to read.

        Returns
        -------
        content : `bytes`
            Empty if there is no such file.

        Raises
        ------
        TransportError
            Raised if the place cannot be asked.
        """
        return self._read(self.address(name), -size, size)[0]

    def blocks(self, name: str, *, start: int = 0) -> Iterator[bytes]:
        """Read a file piece by piece.

        Parameters
        ----------
        name : `str`
            Its name.
        start : `int`, optional
            Offset to begin at, bytes.

        Yields
        ------
        block : `bytes`
            At most 4 MB, where the server can give parts of a file.
        """
        address = self.address(name)
        while True:
            block, more = self._read(address, start, _BLOCK)
            if block:
                yield block
            start += len(block)
            if not more:
                return

    def _read(self, address: str, start: int, size: int) -> tuple[bytes, bool]:
        """Read a part; tell whether there may be more behind it."""
        if not address:
            return b"", False
        scheme = urlsplit(address).scheme
        if scheme in ("http", "https"):
            return self._fetch(address, start, size)
        if scheme in ("", "file"):
            return _read_file(Path(unquote(urlsplit(address).path) if scheme else address), start, size)
        return _read_resource(address, start), False

    def _fetch(self, url: str, start: int, size: int) -> tuple[bytes, bool]:
        span = f"bytes={start}" if start < 0 else f"bytes={start}-{start + size - 1}"
        headers = {**_HEADERS, "Range": span}
        try:
            reply = self._transport.get(url, headers=headers, what=f"log {url}")
        except TransportError as error:
            if error.fault == Fault.NOT_FOUND:
                return b"", False
            if error.status != _SIZE_WRONG:
                raise
            if start >= 0:
                return b"", False
            # Some servers refuse the end of a file that is shorter than it.
            reply = self._transport.get(url, headers=_HEADERS, what=f"log {url}")
        if reply.status == _PARTIAL:
            return reply.body, len(reply.body) == size and start >= 0
        return reply.body[start:], False


def _read_file(path: Path, start: int, size: int) -> tuple[bytes, bool]:
    try:
        with path.open("rb") as stream:
            if start < 0:
                start = max(0, path.stat().st_size + start)
            stream.seek(start)
            block = stream.read(size)
    except FileNotFoundError:
        return b"", False
    except OSError as error:
        raise ReplyError(f"The log cannot be read: {error.strerror}.", endpoint=str(path)) from error
    return block, len(block) == size


def _read_resource(address: str, start: int) -> bytes:
    """Read with what the stack has for object stores and the like."""
    from lsst.resources import ResourcePath

    try:
        return ResourcePath(address).read()[start:]
    except FileNotFoundError:
        return b""
    except Exception as error:  # The libraries below have no common parent.
        raise ReplyError(f"The log cannot be read: {error}.", endpoint=address) from error
