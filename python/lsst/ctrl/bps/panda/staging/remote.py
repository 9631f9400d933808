"""Staging areas that are not in a file system: object stores (S3, Google Cloud Storage) and WebDAV
servers, through ``lsst.resources``.

The libraries below ``lsst.resources`` repeat a request to a host that is
down, or whose certificate is not trusted, for one to three minutes.
"""

from __future__ import annotations

__all__ = ["RemoteStore", "check_connection", "compare_checksums"]

import base64
import hashlib
import logging
import os
import posixpath
import re
import socket
import ssl
import threading
import uuid
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, urlsplit
from urllib.request import getproxies

from lsst.resources import ResourcePath

from ..errors import StagingError
from .sources import TEMPORARY_FOLDER, Digest, digest_file
from .transfers import VerificationError

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


_LOG = logging.getLogger(__name__)

_BLOCK = 1 << 20

_SINGLE_PART = 8 << 20
"""Size in bytes from which boto3 uploads in parts (its default
``multipart_threshold``).  The checksum that S3 gives then is one of the
parts' checksums, and some servers do not mark it as such."""

_WEBDAV = frozenset({"http", "https", "dav", "davs"})
"""Schemes whose writes can be cut and need a temporary name.  Object stores
show an object when it is complete, and cannot rename."""

_HEAD_SECONDS = (60.0, 300.0)
"""Time-outs for connecting and for an answer; a server may have to read the
file to give its checksum."""

_STATUS = re.compile(r"status:\s*(\d{3})")
_MISSING_STATUS = frozenset({"404", "410"})

_Value = TypeVar("_Value")


class RemoteStore:
    """A staging area that ``lsst.resources`` writes.

    Parameters
    ----------
    area : `str`
        URI of the area.

    Raises
    ------
    StagingError
        Raised if the URI cannot be that of a staging area.
    """

    def __init__(self, area: str) -> None:
        parts = urlsplit(area)
        if parts.password:
            raise StagingError(
                f"the staging area at {parts.hostname} has a password in its URI, which would end in logs and"
                " command lines; give credentials by the environment"
            )
        if parts.query or parts.fragment or not parts.netloc:
            raise StagingError(
                f"the staging area {area} must be a URI with a host or bucket and a path, no more"
            )
        self.area = area.rstrip("/") + "/"
        self._root = ResourcePath(self.area, forceDirectory=True)
        self._is_webdav = parts.scheme in _WEBDAV
        # Not shared with another staging, so that it can be removed whole.
        self._temporary = f"{TEMPORARY_FOLDER}-{uuid.uuid4().hex[:12]}"
        self._folders: set[str] = set()
        self._lock = threading.Lock()
        self._gives_digest = parts.scheme in ("http", "https")
        self._renames: bool | None = None

    def _greet(self) -> bool:
        """Ask once what the server can do.

        Each request to a server that is down, or not trusted, is repeated
        for up to a minute below this; so the first must show it.

        Returns
        -------
        renames : `bool`
            Whether files can be given another name.
        """
        with self._lock:
            if self._renames is None:
                check_connection(self._root)
                # An HTTP server without WebDAV may take files, no more.
                root: Any = self._root
                self._renames = self._is_webdav and bool(getattr(root, "is_webdav_endpoint", True))
            return self._renames

    def _uri(self, name: str) -> ResourcePath:
        # Not ResourcePath.join: it takes "#" for the begin of a fragment.
        return ResourcePath(self.area + quote(name), forceDirectory=False)

    def _folder(self, name: str) -> ResourcePath:
        return ResourcePath(self.area + quote(name) + "/", forceDirectory=True) if name else self._root

    def size(self, name: str) -> int | None:
        """Size of a file in bytes, `None` if there is no such file."""
        self._greet()
        return _unless_missing(self._uri(name).size)

    def holds(self, name: str, digest: Digest, path: str) -> bool | None:
        """Whether the content of a file of the right size is that of a local
        file, `None` if the store gives no checksum to tell by.
        """
        return self._same(self._uri(name), digest, path)

    def _same(self, uri: ResourcePath, digest: Digest, path: str) -> bool | None:
        checksums = dict(uri.get_info().checksums)
        if self._gives_digest and "adler32" not in checksums:
            checksums.update(self._ask_digest(uri))
        single_part = uri.scheme != "s3" or digest.size < _SINGLE_PART
        return compare_checksums(checksums, digest, path, single_part=single_part)

    def _ask_digest(self, uri: Any) -> dict[str, str]:
        """Ask an HTTP server for the Adler-32 checksum (RFC 3230), which
        XRootD and dCache give but ``lsst.resources`` does not ask for.
        """
        headers = {"Want-Digest": "adler32"}
        try:
            with uri.metadata_session as session:
                reply = session.head(
                    uri.geturl(), timeout=_HEAD_SECONDS, allow_redirects=True, stream=False, headers=headers
                )
            found = reply.headers.get("Digest", "")
        except Exception as error:
            _LOG.debug("%s gives no checksum of %s: %s", self.area, uri, error)
            found = ""
        pairs = (part.strip().partition("=") for part in found.split(","))
        digests = {algorithm.lower(): value for algorithm, _, value in pairs if value}
        # A server that gave none will not do so for the next file either.
        self._gives_digest = bool(digests)
        return digests

    def put(self, path: str, name: str, *, executable: bool = False) -> Digest:
        """Copy a local file into the area, whole or not at all, and verify.

        Parameters
        ----------
        path : `str`
            File to copy.
        name : `str`
            Name in the area.
        executable : `bool`, optional
            Not used: such stores keep no permissions.

        Returns
        -------
        digest : `Digest`
            What was copied.

        Raises
        ------
        OSError
            Raised if it cannot be read or written; also other exceptions of
            the libraries below ``lsst.resources``.
        VerificationError
            Raised if something else lies there afterwards.
        """
        source = ResourcePath("file://" + quote(os.path.abspath(path)), forceDirectory=False)
        digest = digest_file(path)

        def send(target: ResourcePath) -> None:
            if digest.size:
                target.transfer_from(source, transfer="copy", overwrite=True)
            else:
                # Without a length the HTTP backend would send it in chunks,
                # which XRootD refuses.
                target.write(b"", overwrite=True)

        def verify(target: ResourcePath) -> None:
            _expect_size(target, digest.size)
            if self._same(target, digest, path) is False:
                raise VerificationError(f"the store's checksum of it differs from that of {path}")

        self._publish(name, send, verify)
        return digest

    def _publish(
        self, name: str, send: Callable[[ResourcePath], None], verify: Callable[[ResourcePath], None]
    ) -> None:
        """Send something, and give it its name when it is known to be whole."""
        target = self._uri(name)
        # Servers disagree on how the new name in a MOVE request is escaped:
        # XRootD 5.5 takes it literally, wsgidav 4.4 cuts it at an escaped "?".
        if not self._greet() or "%" in target.path:
            self._make_folders(posixpath.dirname(name))
            self._send_verified(target, send, verify)
            return
        temporary = self._uri(f"{self._temporary}/{uuid.uuid4().hex}")
        self._make_folders(self._temporary)
        self._send_verified(temporary, send, verify)
        self._make_folders(posixpath.dirname(name))
        target.transfer_from(temporary, transfer="move", overwrite=True)
        verify(target)

    @staticmethod
    def _send_verified(
        target: ResourcePath, send: Callable[[ResourcePath], None], verify: Callable[[ResourcePath], None]
    ) -> None:
        try:
            send(target)
            verify(target)
        except BaseException:
            # What is cut must not keep the name of what is whole.
            with suppress(Exception):
                target.remove()
            raise

    def _make_folders(self, name: str) -> None:
        if not self._greet():
            return
        with self._lock:
            if name not in self._folders:
                self._folder(name).mkdir()
                self._folders.add(name)

    def make_folder(self, name: str) -> None:
        """Make an empty directory, where the store has such a thing."""
        self._make_folders(name)

    def read(self, name: str) -> bytes | None:
        """Content of a small file, `None` if there is no such file."""
        self._greet()
        return _unless_missing(self._uri(name).read)

    def read_back(self, name: str) -> Digest:
        """Read a file of the area again and measure it."""
        size, checksum = 0, 1
        with self._uri(name).open("rb") as stream:
            while block := stream.read(_BLOCK):
                size += len(block)
                checksum = zlib.adler32(block, checksum)
        return Digest(size, f"{checksum:08x}")

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, whole or not at all."""
        self._publish(
            name,
            lambda target: target.write(data, overwrite=True),
            lambda target: _expect_size(target, len(data)),
        )

    def remove(self, name: str) -> None:
        """Remove a file; it may be missing."""
        with suppress(FileNotFoundError):
            self._uri(name).remove()

    def tidy(self) -> None:
        """Remove the folder of incomplete files."""
        with self._lock:
            if self._temporary not in self._folders:
                return
            self._folders.discard(self._temporary)
        with suppress(Exception):
            self._folder(self._temporary).remove()

    def withdraw(self) -> None:
        """Nothing: removing a directory of a WebDAV server removes all that
        others have put there meanwhile.
        """

    def problems(self) -> tuple[str, ...]:
        """Nothing: such stores have no group permissions."""
        return ()


def _expect_size(target: ResourcePath, size: int) -> None:
    try:
        found = target.size()
    except FileNotFoundError as error:
        raise VerificationError(f"the store said yes, but has no such file afterwards ({error})") from error
    if found != size:
        raise VerificationError(f"the store holds {found} of {size} bytes after copying")


def compare_checksums(
    checksums: Mapping[str, Any], digest: Digest, path: str, *, single_part: bool = True
) -> bool | None:
    """Compare what a store says with a local file.

    Parameters
    ----------
    checksums : `~collections.abc.Mapping` [`str`, `str`]
        Algorithm -> checksum, as `lsst.resources.ResourceInfo` has them:
        ``adler32`` in hexadecimal digits, others in base64.
    digest : `Digest`
        What the local file holds.
    path : `str`
        The local file, read again if another algorithm than Adler-32 is
        needed.
    single_part : `bool`, optional
        Whether the file was sent in one piece.  If not, what S3 gives is a
        checksum of checksums and tells nothing.

    Returns
    -------
    same : `bool` or `None`
        `None` if there is no checksum to compare.
    """
    given = {algorithm.lower(): str(value) for algorithm, value in checksums.items() if value}
    if value := given.get("adler32"):
        return value.lower().rjust(8, "0") == digest.adler32
    for algorithm, begin in _ALGORITHMS.items():
        value = given.get(algorithm)
        # "-N" marks a checksum of N parts' checksums.
        if value and single_part and "-" not in value:
            return _checksum(path, begin()) == value
    return None


class _Crc32:
    """CRC-32 with the methods of those of `hashlib`."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...


_ALGORITHMS: Mapping[str, Callable[[], _Hash]] = {
    "crc32": _Crc32,
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "sha256": hashlib.sha256,
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
}


def _checksum(path: str, algorithm: _Hash) -> str:
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            algorithm.update(block)
    return base64.b64encode(algorithm.digest()).decode()


def _unless_missing(action: Callable[[], _Value]) -> _Value | None:
    try:
        return action()
    except FileNotFoundError as error:
        # The HTTP backend says this of every refusal, 401 for instance.
        status = _STATUS.search(str(error))
        if status and status[1] not in _MISSING_STATUS:
            raise OSError(str(error)) from error
        return None
