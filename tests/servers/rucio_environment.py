"""Find or make the environment of the Rucio server.

Its requirements are many (half a gigabyte, a minute or two), and one of them
is a SQLAlchemy of its own, so they stay apart from those of the tests.  The
environment is kept in the user's cache directory, by version of Python and
requirements; ``bin/run-tests`` makes it before the tests, and the fixture
makes it if it is not there.  Prints the folder of its programs::

    python tests/servers/rucio_environment.py

Apart from the server it holds what a worker at a data facility has, and not
this plugin: the Butler, Rucio's clients and ``lsst-rucio-register``.  That
one does not name ``backoff``, which it imports, as its requirement.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

__all__ = ["REQUIREMENTS", "find_or_make"]

REQUIREMENTS = (
    "rucio==41.5.1",
    "rucio-clients==41.5.1",
    "waitress>=3.0",
    "lsst-rucio-register",
    "backoff",
)


def find_or_make(cache: Path | None = None) -> Path:
    """Find the environment, or make it.

    Parameters
    ----------
    cache : `pathlib.Path`, optional
        Directory of environments; the user's cache directory by default.

    Returns
    -------
    programs : `pathlib.Path`
        Folder of its programs, ``python`` and ``rucio-register`` among them.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    cache = cache or (Path(base) if base else Path.home() / ".cache") / "lsst-ctrl-bps-panda-tests"
    key = hashlib.sha256("\0".join((sys.base_prefix, sys.version, *REQUIREMENTS)).encode()).hexdigest()
    folder = cache / f"rucio-python{sys.version_info.major}.{sys.version_info.minor}-{key[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    programs = folder / "venv" / "bin"
    complete = folder / "complete"
    with open(folder / "lock", "w") as lock:
        # Tests may run in several processes.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            sys.stderr.write(f"Making the environment of the Rucio server in {folder}; this takes minutes.\n")
            for command in (
                [sys.executable, "-m", "venv", "--clear", folder / "venv"],
                [programs / "python", "-m", "pip", "install", "--quiet", "--no-compile"]
                + ["--disable-pip-version-check", *REQUIREMENTS],
            ):
                subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr, timeout=1200)
            complete.touch()
    return programs


if __name__ == "__main__":
    sys.stdout.write(f"{find_or_make()}\n")
