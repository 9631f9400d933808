"""The Pythons of this machine, of which a worker may have any."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

MINORS = range(6, 20)


def candidates() -> Iterator[str]:
    """Paths of interpreters: this one, those on PATH, and those that pyenv has."""
    yield sys.executable
    for name in (*(f"python3.{minor}" for minor in MINORS), "python3"):
        for folder in ("/usr/bin", None):
            found = Path(shutil.which(name, path=folder) or "/none")
            if found.parent.name == "shims":
                # A script, which starts what lies there.
                yield from sorted(map(str, found.parents[1].glob(f"versions/3.*/bin/{name}")))
            elif found.exists():
                yield str(found)


@cache
def discover() -> dict[int, str]:
    """One interpreter of each minor version from 3.6 on.

    Only those are started whose file does not tell the version: each worker
    asks while it collects the tests.
    """
    found: dict[int, str] = {}
    code = "import sys; print('python%d.%d' % sys.version_info[:2])"
    for path in candidates():
        name = Path(path).resolve().name
        if not re.fullmatch(r"python3\.\d+", name):
            name = subprocess.run([path, "-c", code], capture_output=True, text=True).stdout.strip()
        minor = int(name.rpartition(".")[2] or 0)
        if minor in MINORS:
            found.setdefault(minor, path)
    return dict(sorted(found.items()))
