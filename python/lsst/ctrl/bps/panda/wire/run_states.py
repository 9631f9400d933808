"""Whether a run is over, and its state as a whole.

`bps report`, `bps status`, the end of a watch, cancel and restart all use the
functions of this module and of `~.states`, so that they cannot disagree.
"""

from __future__ import annotations

__all__ = ["SETTLE_SECONDS", "TERMINAL", "is_aborted", "is_ended", "quiet_seconds", "run_state"]

from collections.abc import Mapping, Sequence
from datetime import datetime

from lsst.ctrl.bps.wms_service import WmsStates

from .records import RequestRecord, TransformRecord

SETTLE_SECONDS = 120.0
"""A run whose plan is not known, or whose transforms are fewer than planned,
has ended only if nothing changed for so long: the server looks for tasks to
start every few seconds, in production every minute."""

TERMINAL = frozenset({"Finished", "SubFinished", "Failed", "Cancelled", "Expired"})
"""Statuses, of requests and of transforms, after which nothing starts by
itself.  Suspended is not among them: the run can be resumed."""

_WAITING_REQUESTS = frozenset({"New", "Ready", "Throttling", "Extend", "Building", "Built"})
_KILLED_REQUESTS = frozenset({"ToCancel", "Cancelling", "Cancelled", "ToExpire", "Expiring", "Expired"})
_HELD_REQUESTS = frozenset({"ToSuspend", "Suspending", "Suspended"})
# A terminal request that has not ended goes on, see is_ended.
_GOING_REQUESTS = (
    TERMINAL
    | {"Transforming", "ToCancel", "Cancelling", "ToResume", "Resuming", "ToExpire", "Expiring"}
    | {"ToFinish", "ToForceFinish", "Terminating", "ToClose"}
)


def is_aborted(request: RequestRecord) -> bool:
    """Tell whether a run was cancelled (or expired, which goes the same way).

    Parameters
    ----------
    request : `RequestRecord`
        The request.

    Returns
    -------
    aborted : `bool`
        Whether the server accepted an abort.  iDDS keeps substatus ToCancel
        for good; an aborted request ends as SubFinished or Failed.
    """
    return request.substatus == "ToCancel" or request.status in _KILLED_REQUESTS


def quiet_seconds(
    request: RequestRecord, transforms: Sequence[TransformRecord], asked_at: datetime | None
) -> float:
    """Tell for how long the server has not changed a run.

    Parameters
    ----------
    request : `RequestRecord`
        The request.
    transforms : `~collections.abc.Sequence` [`TransformRecord`]
        Its transforms.
    asked_at : `datetime.datetime` or `None`
        When the server was asked, with time zone.

    Returns
    -------
    seconds : `float`
        Time since the last change, 0 if not known.
    """
    dates = [request.updated_at, *(transform.updated_at for transform in transforms)]
    changes = [date for date in dates if date is not None]
    if asked_at is None or not changes:
        return 0.0
    return max(0.0, (asked_at - max(changes)).total_seconds())


def is_ended(
    request: RequestRecord,
    transforms: Sequence[TransformRecord] | None,
    *,
    planned_tasks: int = 0,
    quiet: float = 0.0,
) -> bool:
    """Tell whether a run is over.

    The server can store a terminal status while it is making the next
    transforms, so the request's status alone is not believed.

    Parameters
    ----------
    request : `RequestRecord`
        The request.
    transforms : `~collections.abc.Sequence` [`TransformRecord`] or `None`
        Its transforms; `None` if they were not asked for.
    planned_tasks : `int`, optional
        How many transforms there will be; 0 if not known.
    quiet : `float`, optional
        For how long nothing has changed, seconds.

    Returns
    -------
    ended : `bool`
        Whether the request and each transform are terminal, and there are as
        many transforms as planned or nothing has changed for
        `SETTLE_SECONDS`.
    """
    if request.status not in TERMINAL:
        return False
    settled = quiet >= SETTLE_SECONDS
    if transforms is None:
        return settled
    if any(transform.status not in TERMINAL for transform in transforms):
        return False
    if settled:
        return True
    made = len({transform.transform_id for transform in transforms})
    lagging = any(_is_lagging(transform) for transform in transforms)
    return 0 < planned_tasks <= made and not lagging


def _is_lagging(transform: TransformRecord) -> bool:
    """Tell whether a finished transform's counters are behind its status."""
    if transform.status != "Finished":
        return False
    outputs = transform.outputs
    return outputs is None or outputs.processed + outputs.failed + outputs.missing < outputs.total


def run_state(request: RequestRecord, counts: Mapping[WmsStates, int], *, ended: bool) -> WmsStates:
    """Give the state of a run.

    Parameters
    ----------
    request : `RequestRecord`
        The request.
    counts : `~collections.abc.Mapping` [`~lsst.ctrl.bps.WmsStates`, `int`]
        Jobs of the whole run by state, from counters alone.
    ended : `bool`
        Whether the run is over, see `is_ended`.

    Returns
    -------
    state : `~lsst.ctrl.bps.WmsStates`
        The state; SUCCEEDED, FAILED and DELETED only of an ended run.
    """
    return _ended_state(request, counts) if ended else _going_state(request, counts)


def _ended_state(request: RequestRecord, counts: Mapping[WmsStates, int]) -> WmsStates:
    total = sum(counts.values())
    if total and counts[WmsStates.SUCCEEDED] == total:
        return WmsStates.SUCCEEDED
    if is_aborted(request):
        return WmsStates.DELETED
    if counts[WmsStates.FAILED] or counts[WmsStates.PRUNED]:
        return WmsStates.FAILED
    if counts[WmsStates.DELETED]:
        return WmsStates.DELETED
    if counts[WmsStates.UNKNOWN] < total or (total and request.status == "Finished"):
        return WmsStates.UNKNOWN
    # Nothing is known but the request's own word.
    return WmsStates.SUCCEEDED if request.status == "Finished" else WmsStates.FAILED


def _going_state(request: RequestRecord, counts: Mapping[WmsStates, int]) -> WmsStates:
    if request.status in _HELD_REQUESTS:
        return WmsStates.HELD
    if request.status in _GOING_REQUESTS or counts[WmsStates.PENDING] or counts[WmsStates.RUNNING]:
        return WmsStates.RUNNING
    if request.status in _WAITING_REQUESTS:
        waiting = counts[WmsStates.UNREADY] + counts[WmsStates.READY] + counts[WmsStates.UNKNOWN]
        return WmsStates.RUNNING if sum(counts.values()) > waiting else WmsStates.PENDING
    return WmsStates.UNKNOWN
