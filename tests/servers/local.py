"""What tests look at in an embedded PanDA from outside."""

from __future__ import annotations

__all__ = ["guards", "servers", "small_disk", "wait_for"]

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def wait_for(condition: Callable[[], object], what: str, timeout: float = 120) -> None:
    """Wait for a condition."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"no {what} within {timeout} s"
        time.sleep(0.02)


def guards(server: int) -> list[int]:
    """List the processes that guard a server, which are its children."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
            parent = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent == server and any(word.endswith(b"/guard.py") for word in words):
            found.append(int(path.parent.name))
    return found


def servers(directory: Path) -> list[int]:
    """List the processes that are servers of a directory, or are about to become one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.endswith(b"/launch.py") for word in words) and str(directory).encode() in words:
            found.append(int(path.parent.name))
    return found


@contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator[Path]:
    """Mount a small file system; the test is skipped where that cannot be done."""
    if os.geteuid():
        pytest.skip("only root can mount a small file system")
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "panda_test", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)
