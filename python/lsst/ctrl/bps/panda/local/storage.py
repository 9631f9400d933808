"""Watches the storage of an instance: room on the disk, and the files of its databases while it runs."""

from __future__ import annotations

__all__ = ["LEAST_ROOM", "Storage", "StorageError", "StorageTrouble", "is_storage_error"]

import contextlib
import errno
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

_LOG = logging.getLogger(__name__)

LEAST_ROOM = 20 * 1024**2
"""Bytes that have to be free for jobs to be started and runs to be accepted."""

_LEAST_INODES = 200
_NUMBERS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE))
_PROBE = ".probe"
_PROBE_SIZE = 256 * 1024

# Primary result codes of SQLite (sqlite.org/rescode.html).  The first are those of a place that cannot be
# written or read now, the others those of a file that is damaged.
_PASSING = frozenset((sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY,
                      sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED))  # fmt: skip
_PG_AGAIN = "40"
"""Class of PostgreSQL's codes for transactions that were rolled back for others."""

_DAMAGED = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))


class StorageError(Exception):
    """Something that cannot be done while the storage is in trouble; the text says what is wrong."""


def _sqlite_code(error: BaseException) -> int:
    return int(getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def is_storage_error(error: BaseException) -> bool:
    """Whether the same may succeed later: there is no room, or the place or the database server cannot be
    used now; false for an error of what was to be done.
    """
    if isinstance(error, StorageError):
        return True
    if isinstance(error, OSError):
        return error.errno in _NUMBERS
    if isinstance(error, sa.exc.DBAPIError):
        original = error.orig
        if isinstance(original, sqlite3.Error):
            return _sqlite_code(original) in _PASSING | _DAMAGED
        return isinstance(error, (sa.exc.OperationalError, sa.exc.InterfaceError))
    return isinstance(error, sqlite3.Error) and _sqlite_code(error) in _PASSING | _DAMAGED


@dataclass(frozen=True, slots=True)
class StorageTrouble:
    """What is wrong with the storage."""

    text: str
    since: float
    """When it was first seen, seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class _File:
    """A file of a database as it was when it was opened."""

    path: Path
    inode: int


class Storage:
    """The storage of an instance; `check` is called again and again by the server.

    While there is `trouble`, no job is started and no run is accepted.
    """

    def __init__(
        self,
        directory: Path,
        *,
        clock: Callable[[], float] = time.time,
        least_room: int = LEAST_ROOM,
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._least_room = least_room
        self._lock = threading.RLock()
        self._files: list[_File] = []
        self._sizes: dict[Path, int] = {}
        self._damage = ""
        self._failure = ""
        self._failed_place = directory
        self._trouble: StorageTrouble | None = None
        self._recovered = False

    @property
    def trouble(self) -> StorageTrouble | None:
        """What is wrong, `None` if nothing is."""
        return self._trouble

    def watch(self, paths: Iterable[Path]) -> None:
        """Watch the files of databases, which have to stay the same."""
        self._files = [_File(path, path.stat().st_ino) for path in paths]

    def note(self, error: BaseException) -> bool:
        """Record an error if it comes from the storage; returns whether it does."""
        if not is_storage_error(error):
            return False
        original = getattr(error, "orig", None) or error
        code = _sqlite_code(original)
        if str(getattr(original, "pgcode", None) or "").startswith(_PG_AGAIN):
            # PostgreSQL asks to try again: that is no trouble.
            return True
        if code in _DAMAGED:
            self._damage = f"a database in {self._directory} is damaged: {original}"
        elif isinstance(error, sa.exc.DBAPIError) and not isinstance(original, sqlite3.Error):
            self._failure = f"the database server fails: {original}"
        elif code not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) and not isinstance(error, StorageError):
            self._failed_place = self._place(original)
            self._failure = f"writing to {self._failed_place} fails: {original}"
        self._update()
        return True

    def look(self) -> StorageTrouble | None:
        """Look for room now, and return what is wrong; the files are looked at by `check` only."""
        self._update()
        return self._trouble

    def _place(self, error: BaseException) -> Path:
        """Find the directory in which something could not be written."""
        name = getattr(error, "filename", None)
        if not isinstance(name, (str, os.PathLike)):
            return self._directory
        return next((place for place in Path(name).parents if place.is_dir()), self._directory)

    def require(self) -> None:
        """Raise a `StorageError` if there is trouble."""
        if trouble := self.look():
            raise StorageError(trouble.text)

    def check(self) -> bool:
        """Look at everything, and try to write if that has failed; returns whether a trouble has ended since
        the last check.
        """
        if self._failure and not self._lack() and self._can_write():
            self._failure = ""
        with self._lock:
            self._damage = self._damage or self._changed_file()
            self._update()
            recovered, self._recovered = self._recovered, False
        return recovered

    def _update(self) -> None:
        with self._lock:
            text = self._damage or self._lack() or self._failure
            before = self._trouble
            if text:
                self._trouble = StorageTrouble(text, before.since if before else self._clock())
            else:
                self._recovered = self._recovered or before is not None
                self._trouble = None
        if text and before is None:
            _LOG.error("%s", text)
        elif before is not None and not text:
            _LOG.warning("no trouble with the storage any more: %s", before.text)

    def _changed_file(self) -> str:
        for file in self._files:
            try:
                found = file.path.stat()
            except FileNotFoundError:
                return self._lost(file.path, "was deleted while the server runs")
            except OSError as error:
                self._failure = f"{file.path} cannot be read: {error}"
                return ""
            if found.st_ino != file.inode:
                return self._lost(file.path, "was replaced while the server runs")
            if found.st_size < self._sizes.get(file.path, 0):
                return self._lost(file.path, "was cut while the server runs")
            self._sizes[file.path] = found.st_size
        return ""

    @staticmethod
    def _lost(path: Path, what: str) -> str:
        return (
            f"{path} {what}: what is written to it is lost; stop the server and start it again, "
            "which says what can be done: panda_local stop, panda_local start"
        )

    def _lack(self) -> str:
        try:
            found = os.statvfs(self._directory)
        except OSError as error:
            return f"{self._directory} cannot be used: {error}"
        if found.f_flag & os.ST_RDONLY:
            return f"{self._directory} is on a file system that is mounted read-only"
        free = found.f_bavail * found.f_frsize
        if free < self._least_room:
            return (
                f"no room in {self._directory}: {free / 1024**2:.1f} MB are free, at least "
                f"{self._least_room / 1024**2:.0f} MB are needed; no job is started and no run is accepted "
                "until there is room"
            )
        if found.f_files and found.f_favail < _LEAST_INODES:
            return f"no room in {self._directory}: {found.f_favail} inodes are free, too few for more files"
        return ""

    def _can_write(self) -> bool:
        path = self._failed_place / _PROBE
        try:
            with path.open("wb") as stream:
                stream.write(b"\0" * _PROBE_SIZE)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError:
            return False
        finally:
            # If it is read-only, the next check says so.
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        return True
