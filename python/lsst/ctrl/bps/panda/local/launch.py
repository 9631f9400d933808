"""Starts the server process; run as a file: ``python launch.py DIRECTORY``.

The package above imports the whole of BPS, which the server does not need and
which would take longer than all the rest of its start.  So empty packages are
put in the place of the parents before the server is imported.
"""

from __future__ import annotations

__all__ = ["run"]

import gc
import importlib
import sys
import types
from pathlib import Path

_PARENTS = ("lsst", "lsst.ctrl", "lsst.ctrl.bps", "lsst.ctrl.bps.panda")


def run(arguments: list[str]) -> int:
    """Run a server; see `~lsst.ctrl.bps.panda.local.server.main`."""
    # What is imported stays: looking for garbage in it takes a tenth of the
    # start.  The server turns it on again when it is ready.
    gc.disable()
    for name in _PARENTS:
        package = types.ModuleType(name)
        package.__path__ = []
        sys.modules[name] = package
    sys.modules[_PARENTS[-1]].__path__ = [str(Path(__file__).resolve().parents[1])]
    server = importlib.import_module("lsst.ctrl.bps.panda.local.server")
    return int(server.main(arguments))


if __name__ == "__main__":
    try:
        sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:
        # While it was being imported.
        sys.exit(130)
