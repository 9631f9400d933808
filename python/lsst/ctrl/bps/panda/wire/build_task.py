"""The task of a remote build counts as one job, though it has no inputs and
outputs that iDDS would count.
"""

from __future__ import annotations

__all__ = ["count_build_job"]

from dataclasses import replace

from .pipeline import BUILD_TASK
from .record_types import FileCounts, TransformRecord
from .run_states import TERMINAL

_COUNTS = {
    "Finished": FileCounts(total=1, processed=1),
    "SubFinished": FileCounts(total=1, failed=1),
    "Failed": FileCounts(total=1, failed=1),
    "Expired": FileCounts(total=1, failed=1),
}


def count_build_job(transform: TransformRecord) -> TransformRecord:
    """Give the transform of a build task counters that follow its status.

    Parameters
    ----------
    transform : `TransformRecord`
        Any transform; others are returned as they are.
    """
    if transform.name != BUILD_TASK or (transform.outputs is not None and transform.outputs.total):
        return transform
    going = FileCounts(total=1) if transform.status in TERMINAL else FileCounts(total=1, activated=1)
    return replace(transform, outputs=_COUNTS.get(transform.status, going))
