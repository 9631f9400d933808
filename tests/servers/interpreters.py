"""The Pythons of this machine, of which a worker may have any."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MINORS = range(6, 20)


def candidates() -> Iterator[str]:
    """Paths of interpreters: this one, those on PATH, and those that pyenv has."""
    yield sys.executable
    for minor in MINORS:
        yield shutil.which(f"python3.{minor}") or ""
    yield from ("/usr/bin/python3", shutil.which("python3") or "")
    root = os.environ.get("PYENV_ROOT", "")
    if not root and shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], capture_output=True, text=True).stdout.strip()
    if root:
        yield from sorted(map(str, Path(root).glob("versions/3.*/bin/python3")))


def discover() -> dict[int, str]:
    """One interpreter of each minor version from 3.6 on."""
    found = {}
    code = "import sys; print(*sys.version_info[:2])"
    for path in filter(None, candidates()):
        if not os.access(path, os.X_OK):
            continue
        answer = subprocess.run([path, "-c", code], capture_output=True, text=True).stdout.split()
        if len(answer) == 2 and answer[0] == "3" and int(answer[1]) in MINORS:
            found.setdefault(int(answer[1]), path)
    return dict(sorted(found.items()))
