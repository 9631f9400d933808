"""The service class under its path of the previous plugin.

Configurations name the class in ``wmsServiceClass``, and programs import it.
"""

from __future__ import annotations

__all__ = ["PanDAService", "PandaBpsWmsWorkflow"]

import warnings

from .service import PanDAService
from .workflow import PandaBpsWmsWorkflow

warnings.warn(
    f"{__name__} is the path of the previous plugin; use lsst.ctrl.bps.panda.PanDAService and "
    "lsst.ctrl.bps.panda.PandaBpsWmsWorkflow.",
    DeprecationWarning,
    stacklevel=2,
)
