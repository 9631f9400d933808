"""How JEDI raises the memory of a job that is tried again because it ran out
of it.
"""

from __future__ import annotations

__all__ = ["memory_of_retry"]

import math
from collections.abc import Mapping
from typing import Any


def memory_of_retry(current: int, params: Mapping[str, Any], cores: int) -> int:
    """Tell the memory of the next attempt after one that ran out of memory.

    Parameters
    ----------
    current : `int`
        Memory of the attempt that failed, MB per core.
    params : `~collections.abc.Mapping`
        Task parameters, MB: ``ramCount``, ``retryRamStep`` and
        ``retryRamOffset`` per core, ``retryRamMax`` of the whole job.
    cores : `int`
        Cores of the job.

    Returns
    -------
    memory : `int`
        MB per core, never less than ``current``.

    Notes
    -----
    The rule is that of panda-server's ``task_event_module``: the memory is
    multiplied by ``retryRamStep / ramCount``.  Without a step the offset is a
    lower limit.  ``retryRamMax`` caps the result.
    """
    step = float(params.get("retryRamStep") or 0)
    offset = float(params.get("retryRamOffset") or 0)
    first = float(params.get("ramCount") or 0)
    raised = float(current)
    if step and first:
        raised = current * step / first
    elif offset and current < offset:
        raised = offset
    if highest := float(params.get("retryRamMax") or 0):
        raised = min(raised, highest / max(cores, 1))
    return max(current, math.ceil(raised))
