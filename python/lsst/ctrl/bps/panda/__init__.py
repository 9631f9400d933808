"""PanDA plugin of the LSST Batch Production Service (BPS).

``PanDAService`` is the service class for a PanDA server,
``LocalPanDAService`` the one for the embedded PanDA of this machine.

The classes are imported when they are first asked for: a payload on a worker
that imports a task from this package pays nothing for them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .service import LocalPanDAService, PanDAService
    from .workflow import PandaBpsWmsWorkflow

__all__ = ["LocalPanDAService", "PanDAService", "PandaBpsWmsWorkflow", "__version__"]

_HOMES = {
    "LocalPanDAService": ".service",
    "PanDAService": ".service",
    "PandaBpsWmsWorkflow": ".workflow",
}


def __getattr__(name: str) -> Any:
    """Import a public class (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home, __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
