"""Find or make the environment of the previous plugin, to be compared with.

Its package has the same name as ours, so it needs an environment of its own,
made from the package index.  That takes minutes and half a gigabyte, so it
is kept in the user's cache directory.  The version is the newest that the
index has for this Python.  Prints the paths of its Python and decoder::

    python tests/benchmarks/previous_plugin.py
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import venv
from pathlib import Path

__all__ = ["ENVIRONMENT", "find_or_make"]

ENVIRONMENT = {"PANDA_BEHIND_REAL_LB": "1"}
"""What it needs so that its import does not ask for the address of a host."""

DECODER = "lsst/ctrl/bps/panda/edgenode/cmd_line_decoder.py"


def find_or_make(cache: Path | None = None) -> tuple[Path, Path]:
    """Find the environment, or make it.

    Parameters
    ----------
    cache : `pathlib.Path`, optional
        Directory of environments; the user's cache directory by default.

    Returns
    -------
    python, decoder : `pathlib.Path`
        Interpreter of the environment, and the decoder's file in it.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    cache = cache or (Path(base) if base else Path.home() / ".cache") / "lsst-ctrl-bps-panda-tests"
    folder = cache / f"previous-python{sys.version_info.major}.{sys.version_info.minor}"
    folder.mkdir(parents=True, exist_ok=True)
    python = folder / "bin" / "python"
    complete = folder / "complete"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            venv.create(folder, with_pip=True)
            command = [python, "-m", "pip", "install", "--quiet", "lsst-ctrl-bps-panda"]
            subprocess.run(command, check=True, stdout=sys.stderr)
            complete.touch()
    (decoder,) = folder.glob(f"lib/python3*/site-packages/{DECODER}")
    return python, decoder


if __name__ == "__main__":
    for path in find_or_make():
        sys.stdout.write(f"{path}\n")
