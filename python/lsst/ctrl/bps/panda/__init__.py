"""PanDA plugin of the LSST Batch Production Service (BPS).

``PanDAService`` is the service class for a PanDA server,
``LocalPanDAService`` the one for the embedded PanDA of this machine.
"""

from .service import LocalPanDAService, PanDAService
from .version import __version__
from .workflow import PandaBpsWmsWorkflow

__all__ = ["LocalPanDAService", "PanDAService", "PandaBpsWmsWorkflow", "__version__"]
