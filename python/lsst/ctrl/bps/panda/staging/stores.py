"""The places where a staging area may lie: the local file system, and what ``lsst.resources`` reaches, object
stores (S3, Google Cloud Storage) and WebDAV servers.  The runner reads through ``lsst.resources`` what it
does not read itself, so it knows a new scheme as soon as that library does.

The libraries below ``lsst.resources`` repeat a request to a host that is
down, or whose certificate is not trusted, for one to three minutes.
"""

from __future__ import annotations

__all__ = ["LocalStore", "Store", "check_connection", "open_store"]

import errno
import logging
import os
import posixpath
import re
import shutil
import socket
import ssl
import stat
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Protocol, TypeVar
from urllib.parse import quote, unquote, urlsplit
from urllib.request import getproxies

from lsst.resources import ResourcePath

from ..edgenode.cmd_line_decoder import LARGEST_MANIFEST
from ..errors import StagingError
from ..files import OLD_SECONDS, make_temporary_name
from .sources import TEMPORARY_FOLDER, Digest, compare_checksums, digest_file, open_regular
from .transfers import VerificationError, find_http_status

_LOG = logging.getLogger(__name__)

_BLOCK = 1 << 20

_OPEN_ATTEMPTS = 5

_GROUP_FOLDER = stat.S_ISGID | stat.S_IRGRP | stat.S_IWGRP | stat.S_IXGRP
_GROUP_FILE = stat.S_IRGRP | stat.S_IWGRP

_REMOTE_SCHEMES = frozenset({"s3", "http", "https", "dav", "davs", "gs"})

# What a configuration leaves behind when a variable has no value.
_UNRESOLVED = re.compile(r"\$\{?[A-Za-z_]\w*\}?|\{[A-Za-z_]\w*\}|<ENV:[^>]*>")


class Store(Protocol):
    """What staging needs of the place where a staging area lies.

    Names are relative to the area, with ``/`` between their parts.
    """

    area: str
    """URI of the area, ending in ``/``."""

    def size(self, name: str) -> int | None:
        """Size of a file in bytes, `None` if there is no such file."""

    def holds(self, name: str, digest: Digest, path: str) -> bool | None:
        """Whether the content of a file of the right size is that of a local
        file, `None` if the store gives no checksum to tell by.
        """

    def put(self, path: str, name: str, *, executable: bool = False) -> Digest:
        """Copy a local file into the area, whole or not at all, and verify.

        `VerificationError` is raised if something else lies there afterwards, `OSError` or an exception of
        the libraries below ``lsst.resources`` if it cannot be read or written.
        """

    def make_folder(self, name: str) -> None:
        """Make an empty directory, where the store has such a thing."""

    def read(self, name: str) -> bytes | None:
        """Content of a small file, `None` if there is no such file."""

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, whole or not at all."""

    def create(self, name: str, data: bytes) -> None:
        """Write a small file unless there is one, as far as the store can tell."""
        if self.read(name) is None:
            self.write(name, data)

    def remove(self, name: str) -> None:
        """Remove a file; it may be missing."""

    def remove_temporary_files(self) -> None:
        """Remove what is only needed while files are copied."""

    def remove_empty_directories(self) -> None:
        """Remove the directories that were made, as far as they are empty.

        Not on a WebDAV server: there, removing a directory removes all that
        others have put into it meanwhile.
        """
        return

    def list_files(self) -> list[str]:
        """Names of all files in the area; of none if the store cannot list them."""

    def clear(self, names: Iterable[str]) -> None:
        """Remove the area with the files of these names, which `list_files` has found or the manifest has."""

    def problems(self) -> tuple[str, ...]:
        """What is wrong with the permissions of the area, where it has any, a sentence each."""
        return ()


def open_store(area: str, *, group_permissions: bool = False) -> Store:
    """Choose how a staging area, a URI or an absolute path, is reached.

    Nothing is read or written yet.  With ``group_permissions``, the group may change what is staged (local
    areas only).  `StagingError` is raised if nothing can be staged to such an area.
    """
    if not area:
        raise StagingError("no staging area given; set fileDistributionEndPoint to a URI or an absolute path")
    if found := _UNRESOLVED.search(area):
        raise StagingError(
            f"the staging area {area} holds {found[0]}, which has no value; set that variable or change"
            " fileDistributionEndPoint"
        )
    parts = urlsplit(area)
    if parts.scheme in _REMOTE_SCHEMES and "://" in area:
        return _RemoteStore(area)
    if "://" in area and parts.scheme != "file":
        raise StagingError(
            f"the staging area {area} has the scheme {parts.scheme!r}, to which nothing can be written; use a"
            f" path or one of file, {', '.join(sorted(_REMOTE_SCHEMES))}"
        )
    return LocalStore(_local_root(area), area=area, group_permissions=group_permissions)


def _local_root(area: str) -> str:
    if not area.startswith("file:"):
        path = area
    else:
        parts = urlsplit(area)
        if parts.netloc not in ("", "localhost"):
            raise StagingError(
                f"the staging area {area} names the host {parts.netloc!r}, but file: is for this one"
            )
        path = unquote(parts.path)
    if not os.path.isabs(path):
        raise StagingError(f"the staging area {area} is relative; workers need an absolute path or a URI")
    return os.path.normpath(path)


class LocalStore(Store):
    """A staging area in a file system of this host; made when the first file is written.

    ``area`` is its path as the user has written it.  ``group_permissions``
    gives the group ``rws`` on directories and ``rw`` on files.
    """

    def __init__(self, root: str, *, area: str = "", group_permissions: bool = False) -> None:
        self.root = root
        self.area = (area or root).rstrip("/") + "/"
        self._group = group_permissions
        self._made: list[str] = []

    def _path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def size(self, name: str) -> int | None:
        """Size of a file in bytes, `None` if there is no such file."""
        try:
            found = os.stat(self._path(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def holds(self, name: str, digest: Digest, path: str) -> bool | None:
        """Whether the file has this content; it is read."""
        target = self._path(name)
        return os.path.samefile(path, target) or digest_file(target) == digest

    def put(self, path: str, name: str, *, executable: bool = False) -> Digest:
        """Copy a local file into the area, whole or not at all, and verify."""
        with self._new_file(name, 0o777 if executable else 0o666) as target:
            digest = self._copy(path, target)
        if (size := self.size(name)) != digest.size:
            raise VerificationError(f"{size} of {digest.size} bytes are in the staging area after copying")
        return digest

    @contextmanager
    def _new_file(self, name: str, mode: int = 0o666, *, replace: bool = True) -> Iterator[BinaryIO]:
        """Open a new file that gets its name in the area when it is whole."""
        temporary, target = self._open_temporary(mode)
        try:
            with target:
                yield target
                self._complete(target)
            self._make_folders(os.path.dirname(self._path(name)))
            if replace:
                os.replace(temporary, self._path(name))
            else:
                os.link(temporary, self._path(name))
                os.remove(temporary)
        except BaseException:
            with suppress(OSError):
                os.remove(temporary)
            raise

    def _check_inside(self, folder: str) -> None:
        """Refuse a directory of the area that is a link to another place."""
        top = os.path.realpath(self.root)
        if os.path.commonpath([top, os.path.realpath(folder)]) != top:
            raise NotADirectoryError(
                errno.ENOTDIR, "a symbolic link leads out of the staging area; remove it", folder
            )

    def _open_temporary(self, mode: int) -> tuple[str, BinaryIO]:
        folder = self._path(TEMPORARY_FOLDER)
        temporary = os.path.join(folder, make_temporary_name())
        for _ in range(_OPEN_ATTEMPTS):
            self._make_folders(folder)
            with suppress(FileNotFoundError):
                # Not tempfile: it leaves files that only their owner reads.
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
                return temporary, open(descriptor, "wb", buffering=0)
        raise OSError(errno.ENOENT, "another staging keeps removing the folder of incomplete files", folder)

    @staticmethod
    def _copy(path: str, target: BinaryIO) -> Digest:
        size, checksum = 0, 1
        with open_regular(path) as source:
            while block := source.read(_BLOCK):
                _write_all(target, block)
                size += len(block)
                checksum = zlib.adler32(block, checksum)
        return Digest(size, f"{checksum:08x}")

    def _complete(self, target: BinaryIO) -> None:
        """Set the permissions of a file, and see it on the disk."""
        if self._group:
            mode = stat.S_IMODE(os.fstat(target.fileno()).st_mode) | _GROUP_FILE
            os.fchmod(target.fileno(), mode | stat.S_IXGRP if mode & stat.S_IXUSR else mode)
        # Network file systems tell of a full disk here at the latest.
        os.fsync(target.fileno())

    def _make_folders(self, folder: str) -> None:
        """Make a directory and those above it, with the group's permissions on each that did not exist."""
        if os.path.isdir(folder):
            if len(folder) > len(self.root):
                self._check_inside(folder)
            return
        above = os.path.dirname(folder)
        if above != folder:
            self._make_folders(above)
        try:
            os.mkdir(folder)
        except FileExistsError:
            if not os.path.isdir(folder):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder) from None
            return
        self._made.append(folder)
        if self._group:
            os.chmod(folder, stat.S_IMODE(os.stat(folder).st_mode) | _GROUP_FOLDER)

    def make_folder(self, name: str) -> None:
        """Make an empty directory."""
        self._make_folders(self._path(name))

    def read(self, name: str) -> bytes | None:
        """Content of a small file, `None` if there is no such file."""
        try:
            with open_regular(self._path(name)) as stream:
                return stream.read(LARGEST_MANIFEST + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, whole or not at all."""
        with self._new_file(name) as target:
            _write_all(target, data)

    def create(self, name: str, data: bytes) -> None:
        """Write a small file unless there is one."""
        with suppress(FileExistsError), self._new_file(name, replace=False) as target:
            _write_all(target, data)

    def remove(self, name: str) -> None:
        """Remove a file; it may be missing."""
        with suppress(FileNotFoundError, NotADirectoryError):
            os.remove(self._path(name))

    def remove_temporary_files(self) -> None:
        """Remove the folder of incomplete files, unless another staging
        uses it; what is a day old there is of one that was killed.
        """
        with suppress(OSError):
            for entry in os.scandir(self._path(TEMPORARY_FOLDER)):
                if time.time() - entry.stat(follow_symlinks=False).st_mtime > OLD_SECONDS:
                    os.remove(entry.path)
            os.rmdir(self._path(TEMPORARY_FOLDER))

    def remove_empty_directories(self) -> None:
        """Remove the directories that were made, as far as they are empty."""
        while self._made:
            with suppress(OSError):
                os.rmdir(self._made.pop())

    def list_files(self) -> list[str]:
        """Names of all files in the area."""
        return [
            os.path.relpath(os.path.join(folder, name), self.root)
            for folder, _, names in os.walk(self.root)
            for name in names
        ]

    def clear(self, names: Iterable[str]) -> None:
        """Remove the area with all that it holds; nothing that a symbolic link in it leads to."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.root)

    def problems(self) -> tuple[str, ...]:
        """What is wrong with the area's permissions, a sentence each."""
        if not self._group or not os.path.isdir(self.root):
            return ()
        found = os.stat(self.root)
        if found.st_mode & _GROUP_FOLDER == _GROUP_FOLDER:
            return ()
        try:
            os.chmod(self.root, stat.S_IMODE(found.st_mode) | _GROUP_FOLDER)
        except OSError:
            return (
                f"{self.root} lacks group permissions (mode {stat.S_IMODE(found.st_mode):04o}) and is another"
                f" user's; let its owner run: chmod g+rwxs {self.root}",
            )
        return ()


def _write_all(target: BinaryIO, data: bytes) -> None:
    # An unbuffered write may be short, for instance when space runs out.
    view = memoryview(data)
    while view:
        view = view[target.write(view) :]


# --- remote stores ---------------------------------------------------------

_CONNECT_SECONDS = 10.0

_PORTS = {"http": 80, "dav": 80, "https": 443, "davs": 443}
"""Schemes of WebDAV with their ports.  Writes can be cut there and need a
temporary name; object stores show an object when it is complete, and cannot
rename."""


def check_connection(uri: Any) -> None:
    """Connect to the host of a store, and disconnect.

    Nothing is checked where that would need more than is known here: behind a proxy, or for a store whose end
    point is not known.  `OSError` is raised if the host is not known, refuses, does not answer, or has a
    certificate that is not trusted.
    """
    if uri.scheme == "s3":
        end_point = str(uri.client.meta.endpoint_url)
    else:
        end_point = str(uri.geturl()) if uri.scheme in _PORTS else ""
    parts = urlsplit(end_point)
    port = parts.port or _PORTS.get(parts.scheme, 0)
    if not parts.hostname or not port or getproxies():
        return
    with socket.create_connection((parts.hostname, port), timeout=_CONNECT_SECONDS) as plain:
        if parts.scheme == "https" and uri.scheme == "https" and (context := _trust(uri)):
            try:
                context.wrap_socket(plain, server_hostname=parts.hostname).close()
            except ssl.SSLCertVerificationError:
                raise
            except OSError:
                # It may want a certificate of ours, or something else that
                # only the library below knows how to give.
                return


def _trust(uri: Any) -> ssl.SSLContext | None:
    """Return the authorities that the HTTP backend trusts, `None` if not known."""
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


_SINGLE_PART = 8 << 20
"""Size in bytes from which boto3 uploads in parts (its default
``multipart_threshold``).  The checksum that S3 gives then is one of the
parts' checksums, and some servers do not mark it as such."""

_HEAD_SECONDS = (60.0, 300.0)
"""Time-outs for connecting and for an answer; a server may have to read the file to give its checksum."""

_Value = TypeVar("_Value")


class _RemoteStore(Store):
    """A staging area, given as URI, that ``lsst.resources`` writes; its methods are described at `Store`.

    `StagingError` is raised if the URI cannot be that of a staging area.
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
        self._is_webdav = parts.scheme in _PORTS
        # Not shared with another staging, so that it can be removed whole.
        self._temporary = f"{TEMPORARY_FOLDER}-{make_temporary_name()}"
        self._folders: set[str] = set()
        self._lock = threading.Lock()
        self._gives_digest = parts.scheme in ("http", "https")
        self._renames: bool | None = None

    def _probe_server(self) -> bool:
        """Ask once what the server can do; return whether files can be renamed.

        Each request to a server that is down, or not trusted, is repeated
        for up to a minute below this; so the first must show it.
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
        self._probe_server()
        return _unless_missing(self._uri(name).size)

    def holds(self, name: str, digest: Digest, path: str) -> bool | None:
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
        # Such stores keep no permissions, so `executable` has no effect.
        source = ResourcePath("file://" + quote(os.path.abspath(path)), forceDirectory=False)
        digest = digest_file(path)

        def send(target: ResourcePath) -> None:
            if digest.size:
                target.transfer_from(source, transfer="copy", overwrite=True)
            else:
                # Without a length the HTTP backend would send it in chunks,
                # which XRootD refuses.
                target.write(b"", overwrite=True)

        def verify(target: ResourcePath, in_place: bool) -> None:
            _expect_size(target, digest.size)
            same = self._same(target, digest, path)
            if same is None and in_place:
                with target.as_local() as local:
                    same = digest_file(local.ospath) == digest
            if same is False:
                raise VerificationError(f"the store's checksum of it differs from that of {path}")

        self._publish(name, send, verify)
        return digest

    def _publish(
        self, name: str, send: Callable[[ResourcePath], None], verify: Callable[[ResourcePath, bool], None]
    ) -> None:
        """Send something, and give it its name when it is known to be whole.

        What a web server gets in place may be mixed with what another sends
        there, so that only its content tells; an object is of one or the other.
        """
        target = self._uri(name)
        # Servers disagree on how the new name in a MOVE request is escaped:
        # XRootD 5.5 takes it literally, wsgidav 4.4 cuts it at an escaped "?".
        if not self._probe_server() or "%" in target.path:
            self.make_folder(posixpath.dirname(name))
            self._send_verified(target, send, lambda uri: verify(uri, self._is_webdav))
            return
        temporary = self._uri(f"{self._temporary}/{make_temporary_name()}")
        self.make_folder(self._temporary)
        self._send_verified(temporary, send, lambda uri: verify(uri, False))
        self.make_folder(posixpath.dirname(name))
        target.transfer_from(temporary, transfer="move", overwrite=True)
        verify(target, False)

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

    def make_folder(self, name: str) -> None:
        if not self._probe_server():
            return
        with self._lock:
            if name not in self._folders:
                self._folder(name).mkdir()
                self._folders.add(name)

    def read(self, name: str) -> bytes | None:
        self._probe_server()
        return _unless_missing(self._uri(name).read)

    def write(self, name: str, data: bytes) -> None:
        def verify(target: ResourcePath, in_place: bool) -> None:
            _expect_size(target, len(data))
            if in_place and target.read() != data:
                raise VerificationError("the store holds something else than was sent")

        self._publish(name, lambda target: target.write(data, overwrite=True), verify)

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._uri(name).remove()

    def list_files(self) -> list[str]:
        return [folder + name for folder, names in self._walk() for name in names]

    def _walk(self) -> Iterator[tuple[str, list[str]]]:
        """Yield each folder of the area, with the names of its files."""
        self._probe_server()
        top = len(self._root.unquoted_path)
        # Servers without WebDAV cannot list, and an area may be gone.
        with suppress(NotImplementedError, FileNotFoundError, ValueError):
            for step in self._root.walk():
                assert isinstance(step, tuple)
                folder = step[0].unquoted_path[top:]
                yield folder, step[2]
                # It does not go into those that are empty.
                for name in step[1]:
                    yield f"{folder}{name.rstrip('/')}/", []

    def clear(self, names: Iterable[str]) -> None:
        for name in names:
            self.remove(name)
        # Object stores have no folders.  What is in one belongs to the run.
        if self._probe_server():
            for folder in sorted({folder.rstrip("/") for folder, _ in self._walk()}, reverse=True):
                with suppress(FileNotFoundError):
                    self._folder(folder).remove()

    def remove_temporary_files(self) -> None:
        with self._lock:
            if self._temporary not in self._folders:
                return
            self._folders.discard(self._temporary)
        with suppress(Exception):
            self._folder(self._temporary).remove()


def _expect_size(target: ResourcePath, size: int) -> None:
    try:
        found = target.size()
    except FileNotFoundError as error:
        raise VerificationError(f"the store said yes, but has no such file afterwards ({error})") from error
    if found != size:
        raise VerificationError(f"the store holds {found} of {size} bytes after copying")


def _unless_missing(action: Callable[[], _Value]) -> _Value | None:
    try:
        return action()
    except FileNotFoundError as error:
        # The HTTP backend says this of every refusal, 401 for instance.
        status = find_http_status(str(error))
        if status and status not in (404, 410):
            raise OSError(str(error)) from error
        return None
