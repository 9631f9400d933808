"""Packages of npm that tests use, installed once into the cache of the checkout."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

CACHE = Path(__file__).parents[2] / ".cache"


@contextlib.contextmanager
def made_once(name: str) -> Iterator[Path]:
    """Give a folder of the cache, which one process at a time may fill."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield CACHE / name


def install(package: str, version: str) -> Path:
    """Install a package, unless it is there, and return the folder that has its ``node_modules``; a registry
    that hangs is asked again.
    """
    with made_once(f"{package}-{version}") as folder:
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefer-offline", "--prefix", str(folder)]
        attempts_left = 3
        while not (folder / "installed").exists():
            attempts_left -= 1
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            try:
                subprocess.run(
                    [*command, f"{package}@{version}"], check=True, timeout=240, capture_output=True
                )
                (folder / "installed").touch()
            except subprocess.SubprocessError:
                if not attempts_left:
                    raise
    return folder
