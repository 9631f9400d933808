"""PanDA's file cache: small archives that clients put and workers get."""

from __future__ import annotations

__all__ = ["CacheError", "FileCache"]

import os
import re
from pathlib import Path
from typing import BinaryIO

_LARGE = 768 * 1024 * 1024
_LOGS = 100 * 1024 * 1024
_SMALL = 10 * 1024 * 1024
_CHUNK = 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


class CacheError(Exception):
    """A file that cannot be put into or got from the cache."""


class FileCache:
    """The cache.

    Parameters
    ----------
    directory : `~pathlib.Path`
        Where the files are.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def limit(name: str) -> int:
        """Tell the highest size of a file, bytes, as panda-server has it."""
        if name.startswith("sources."):
            return _LARGE
        return _LOGS if name.endswith(".log.tgz") else _SMALL

    def path(self, name: str) -> Path:
        """Tell where a file is.

        Raises
        ------
        CacheError
            Raised for a name that is not a plain file name.
        """
        if not _NAME.fullmatch(name):
            raise CacheError(f"{name!r} is not a name of a file in the cache")
        return self._directory / name

    def put(self, name: str, stream: BinaryIO) -> int:
        """Store a file.

        Returns
        -------
        size : `int`
            Bytes.

        Raises
        ------
        CacheError
            Raised if it is too large.
        """
        target = self.path(name)
        limit = self.limit(name)
        temporary = target.with_name(f".{name}.{os.getpid()}")
        size = 0
        try:
            with temporary.open("wb") as output:
                while chunk := stream.read(_CHUNK):
                    size += len(chunk)
                    if size > limit:
                        raise CacheError(f"cannot upload {name}: more than the limit of {limit} bytes")
                    output.write(chunk)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return size

    def touch(self, name: str) -> bool:
        """Renew a file's time; tell whether it is there."""
        path = self.path(name)
        if path.exists():
            os.utime(path)
        return path.exists()

    def delete(self, name: str) -> bool:
        """Remove a file; it does not matter whether it was there."""
        self.path(name).unlink(missing_ok=True)
        return True
