"""Local files: what appears whole, written under a name of its own and renamed, and where they are."""

from __future__ import annotations

__all__ = ["OLD_SECONDS", "RECORD_NAME", "make_temporary_name", "replacing", "user_directory", "write_text"]

import contextlib
import errno
import os
import re
import socket
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

RECORD_NAME = "panda_run.json"
"""The record of a run in its submit directory."""

OLD_SECONDS = 86_400.0
"""Time since its last change after which a temporary file is one of a process that was killed."""


def make_temporary_name(name: str = "") -> str:
    """Return a name that nobody else uses, for what will be called ``name``.

    It is random, and tells host, process and thread in case it is left behind.
    """
    host = re.sub(r"[^A-Za-z0-9]+", "_", socket.gethostname())[:30]
    unique = f"{host}-{os.getpid()}-{threading.get_native_id()}-{uuid.uuid4().hex[:16]}"
    # A long name would be too long with what is added.
    return f".{name.removeprefix('.')[:40]}.{unique}.part" if name else unique


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = 0o666, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary file that replaces another at the end, or is removed on an exception, so that a
    reader never sees half a file.

    The directory is created; the umask is applied to ``mode``, which the file has from its first byte.  What
    is durable is on disk before this returns, and survives a crash of the machine.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(make_temporary_name(path.name))
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode))
    try:
        yield temporary
        if durable:
            _sync(temporary)
        os.replace(temporary, path)
        if durable:
            _sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _sync(path: Path) -> None:
    """Have a file or a directory written to disk, where its file system can do so."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path, pieces: Iterable[str], *, mode: int = 0o666, durable: bool = False) -> None:
    """Write a text file completely or not at all, as `replacing` does."""
    with (
        replacing(path, mode=mode, durable=durable) as temporary,
        open(temporary, "w", encoding="utf-8") as stream,
    ):
        stream.writelines(pieces)


def user_directory(env: Mapping[str, str]) -> str:
    """Return the directory for what is remembered between commands (XDG base directories)."""
    base = env.get("XDG_STATE_HOME") or os.path.join(
        env.get("HOME") or os.path.expanduser("~"), ".local", "state"
    )
    return os.path.join(base, "panda_bps")
