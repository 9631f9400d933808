"""Start of the server process, run as a file: ``python launch.py DIRECTORY``.

The packages above import all of BPS, which the server does not need and which
takes longer than the rest of its start. So empty packages take their places
before the server is imported.
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
    # Imported modules stay: searching them for garbage takes a tenth of the
    # start.  The server turns the collector on again when it is ready.
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
        # Ctrl-C while the server was being imported.
        sys.exit(130)
