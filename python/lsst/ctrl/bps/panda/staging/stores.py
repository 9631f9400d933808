"""Where a staging area lies: what staging needs of a place, the local file
system as one, and the choice between it and a remote store.
"""

from __future__ import annotations

__all__ = ["LocalStore", "Store", "open_store"]

import errno
import os
import re
import stat
import uuid
import zlib
from contextlib import suppress
from typing import BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from ..errors import StagingError
from .sources import TEMPORARY_FOLDER, Digest, digest_file
from .transfers import VerificationError

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
        """Copy a local file into the area, whole or not at all, and verify."""

    def make_folder(self, name: str) -> None:
        """Make an empty directory, where the store has such a thing."""

    def read(self, name: str) -> bytes | None:
        """Content of a small file, `None` if there is no such file."""

    def read_back(self, name: str) -> Digest:
        """Read a file of the area again and measure it."""

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, whole or not at all."""

    def remove(self, name: str) -> None:
        """Remove a file; it may be missing."""

    def tidy(self) -> None:
        """Remove what is only needed while files are copied."""

    def withdraw(self) -> None:
        """Remove the directories that were made, as far as they are empty."""

    def problems(self) -> tuple[str, ...]:
        """What is wrong with the area's permissions, a sentence each."""


def open_store(area: str, *, group_permissions: bool = False) -> Store:
    """Choose how a staging area is reached.

    Parameters
    ----------
    area : `str`
        URI of the staging area, or an absolute path.
    group_permissions : `bool`, optional
        Whether the group may change what is staged (local areas only).

    Returns
    -------
    store : `Store`
        The place.  Nothing has been read or written yet.

    Raises
    ------
    StagingError
        Raised if nothing can be staged to such an area.
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
        # boto3 and the HTTP stack are heavy: only who needs them pays.
        from .remote import RemoteStore

        return RemoteStore(area)
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


class LocalStore:
    """A staging area in a file system of this host.

    Parameters
    ----------
    root : `str`
        Absolute path of the area; made when the first file is written.
    area : `str`, optional
        The same as the user has written it.
    group_permissions : `bool`, optional
        Whether to give the group ``rws`` on directories and ``rw`` on files.
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
        """Copy a local file into the area, whole or not at all, and verify.

        Parameters
        ----------
        path : `str`
            File to copy.
        name : `str`
            Name in the area.
        executable : `bool`, optional
            Whether it is to be executable there.

        Returns
        -------
        digest : `Digest`
            What was copied.

        Raises
        ------
        OSError
            Raised if it cannot be read or written.
        VerificationError
            Raised if something else lies there afterwards.
        """
        temporary, target = self._open_temporary(0o777 if executable else 0o666)
        try:
            digest = self._copy(path, target)
            self._publish(temporary, name)
        except BaseException:
            self._discard(temporary)
            raise
        if (size := self.size(name)) != digest.size:
            raise VerificationError(f"{size} of {digest.size} bytes are in the staging area after copying")
        return digest

    def _open_temporary(self, mode: int = 0o666) -> tuple[str, BinaryIO]:
        """Open a new file that becomes one of the area when it is whole."""
        folder = self._path(TEMPORARY_FOLDER)
        temporary = os.path.join(folder, uuid.uuid4().hex)
        for _ in range(_OPEN_ATTEMPTS):
            self._make_folders(folder)
            with suppress(FileNotFoundError):
                # Not tempfile: it leaves files that only their owner reads.
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
                return temporary, open(descriptor, "wb", buffering=0)
        raise OSError(errno.ENOENT, "another staging keeps removing the folder of incomplete files", folder)

    def _copy(self, path: str, target: BinaryIO) -> Digest:
        size, checksum = 0, 1
        with target, open(path, "rb") as source:
            while block := source.read(_BLOCK):
                _write_all(target, block)
                size += len(block)
                checksum = zlib.adler32(block, checksum)
            self._complete(target)
        return Digest(size, f"{checksum:08x}")

    def _complete(self, target: BinaryIO) -> None:
        """Set the permissions of a file, and see it on the disk."""
        if self._group:
            mode = stat.S_IMODE(os.fstat(target.fileno()).st_mode) | _GROUP_FILE
            os.fchmod(target.fileno(), mode | stat.S_IXGRP if mode & stat.S_IXUSR else mode)
        # Network file systems tell of a full disk here at the latest.
        os.fsync(target.fileno())

    def _publish(self, temporary: str, name: str) -> None:
        target = self._path(name)
        self._make_folders(os.path.dirname(target))
        os.replace(temporary, target)

    @staticmethod
    def _discard(temporary: str) -> None:
        with suppress(OSError):
            os.remove(temporary)

    def _make_folders(self, folder: str) -> None:
        """Make a directory and those above it, with the group's permissions
        on each one that did not exist.
        """
        if os.path.isdir(folder):
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
            with open(self._path(name), "rb") as stream:
                return stream.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read_back(self, name: str) -> Digest:
        """Read a file of the area again and measure it."""
        return digest_file(self._path(name))

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, whole or not at all."""
        temporary, target = self._open_temporary()
        try:
            with target:
                _write_all(target, data)
                self._complete(target)
            self._publish(temporary, name)
        except BaseException:
            self._discard(temporary)
            raise

    def remove(self, name: str) -> None:
        """Remove a file; it may be missing."""
        with suppress(FileNotFoundError, NotADirectoryError):
            os.remove(self._path(name))

    def tidy(self) -> None:
        """Remove the folder of incomplete files, unless another staging
        uses it.
        """
        with suppress(OSError):
            os.rmdir(self._path(TEMPORARY_FOLDER))

    def withdraw(self) -> None:
        """Remove the directories that were made, as far as they are empty."""
        while self._made:
            with suppress(OSError):
                os.rmdir(self._made.pop())

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
