"""The mapping of the statuses of iDDS and PanDA to BPS states, for jobs and for runs, and whether a run is
over.

`bps report`, `bps status`, the end of a watch, cancel and restart all use these functions, by way of
`~.evidence.RunEvidence`, so that they cannot disagree.  Counters give the states; contents and PanDA's jobs,
where they were fetched, only move jobs between states, they never add or lose one.
"""

from __future__ import annotations

__all__ = [
    "BEFORE_RUNNING",
    "Counts",
    "ENDED_STATES",
    "add_counts",
    "catch_up",
    "count_task",
    "has_kill_code",
    "is_aborted",
    "is_ended",
    "move_jobs",
    "zero_counts",
    "phase_of",
    "quiet_seconds",
    "refine_by_contents",
    "run_state",
    "sum_counts",
    "was_killed",
]

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import Enum

from lsst.ctrl.bps.wms_service import WmsStates

from .job_errors import JobError
from .records import ContentRecord, FileCounts, RequestRecord, TransformRecord
from .vocabulary import (
    CONTENT_STATUSES,
    JOB_STATUSES,
    KILL_CODES,
    REQUEST_STATUSES,
    RUNNING_PROCESSINGS,
    TERMINAL_STATUSES,
    TRANSFORM_STATUSES,
    ContentPhase,
    JobPhase,
    RequestPhase,
    TransformPhase,
)

SETTLE_SECONDS = 120.0
"""A run whose plan is not known, or whose transforms are fewer than planned,
has ended only if nothing changed for so long: the server looks for tasks to
start every few seconds, in production every minute."""

ENDED_STATES = (WmsStates.SUCCEEDED, WmsStates.FAILED, WmsStates.DELETED, WmsStates.PRUNED)
"""States of jobs, and of runs, that change no more."""


def is_aborted(request: RequestRecord) -> bool:
    """Whether a run was cancelled (or expired, which goes the same way).

    iDDS keeps substatus ToCancel for good; an aborted request ends as SubFinished or Failed.
    """
    killed = (RequestPhase.KILLING, RequestPhase.KILLED)
    return request.substatus == "ToCancel" or REQUEST_STATUSES.get(request.status) in killed


def quiet_seconds(
    request: RequestRecord, transforms: Sequence[TransformRecord], asked_at: datetime | None
) -> float:
    """Return how long the server has not changed a run, s; 0 if not known."""
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
    """Whether a run is over: the request and each transform are terminal, and there are as many transforms as
    planned (if that is known) or nothing has changed for `SETTLE_SECONDS`.

    The server can store a terminal status while it is making the next transforms, so the request's status
    alone is not believed.
    """
    if request.status not in TERMINAL_STATUSES:
        return False
    settled = quiet >= SETTLE_SECONDS
    if transforms is None:
        return settled
    if any(transform.status not in TERMINAL_STATUSES for transform in transforms):
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
    """Return the state of a run, by the counts of its jobs from counters alone.

    It is SUCCEEDED, FAILED or DELETED only of an ended run.
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
    phase = REQUEST_STATUSES.get(request.status)
    if phase is RequestPhase.HELD:
        return WmsStates.HELD
    going = phase not in (None, RequestPhase.WAITING)
    if going or counts[WmsStates.PENDING] or counts[WmsStates.RUNNING]:
        # A request that the server calls over, and that has not ended, goes on.
        return WmsStates.RUNNING
    if phase is RequestPhase.WAITING:
        waiting = counts[WmsStates.UNREADY] + counts[WmsStates.READY] + counts[WmsStates.UNKNOWN]
        return WmsStates.RUNNING if sum(counts.values()) > waiting else WmsStates.PENDING
    return WmsStates.UNKNOWN


Counts = dict[WmsStates, int]
"""Number of jobs in each of the 11 states."""

BEFORE_RUNNING = (WmsStates.PENDING, WmsStates.READY, WmsStates.UNREADY)
"""Where a job that runs is taken from, most likely first."""


class OpenPhase(Enum):
    """Jobs of a transform that have not ended, by what the counters say."""

    UNMAPPED = "planned, but iDDS has not mapped it"
    UNREADY = "its input is not there"
    IN_VAIN = "its input is missing, since a parent failed; iDDS gives the output up some seconds later"
    READY = "its input is there"
    QUEUED = "in PanDA's hands"
    STARTED = "iDDS saw it run"


# A task that ended with jobs open: those whose parents never finished are
# pruned, the others were its own to run and it failed to.
_LEFTOVERS: dict[TransformPhase, dict[OpenPhase, WmsStates]] = {
    TransformPhase.OPEN: {
        OpenPhase.UNMAPPED: WmsStates.UNREADY,
        OpenPhase.UNREADY: WmsStates.UNREADY,
        OpenPhase.IN_VAIN: WmsStates.PRUNED,
        OpenPhase.READY: WmsStates.READY,
        OpenPhase.QUEUED: WmsStates.PENDING,
        OpenPhase.STARTED: WmsStates.RUNNING,
    },
    TransformPhase.OVER: {
        OpenPhase.UNMAPPED: WmsStates.FAILED,
        OpenPhase.UNREADY: WmsStates.PRUNED,
        OpenPhase.IN_VAIN: WmsStates.PRUNED,
        OpenPhase.READY: WmsStates.FAILED,
        OpenPhase.QUEUED: WmsStates.FAILED,
        OpenPhase.STARTED: WmsStates.FAILED,
    },
    TransformPhase.DELETING: dict.fromkeys(OpenPhase, WmsStates.DELETED),
    TransformPhase.HELD: dict.fromkeys(OpenPhase, WmsStates.HELD),
    TransformPhase.COMPLETE: dict.fromkeys(OpenPhase, WmsStates.UNKNOWN),
    TransformPhase.STRANGE: dict.fromkeys(OpenPhase, WmsStates.UNKNOWN),
}


_NONE: Counts = dict.fromkeys(WmsStates, 0)


def zero_counts() -> Counts:
    """Return a count of 0 for each of the 11 states."""
    return _NONE.copy()


def sum_counts(several: Iterable[Counts]) -> Counts:
    """Add up counts."""
    total = zero_counts()
    for counts in several:
        add_counts(total, counts)
    return total


def add_counts(total: Counts, counts: Counts) -> None:
    """Add counts to others, in place."""
    for state, number in counts.items():
        if number:
            total[state] += number


def phase_of(status: str, aborted: bool) -> TransformPhase:
    """Return what a transform's status means for jobs that are not done; killed
    transforms of an aborted run end as Failed or SubFinished.
    """
    phase = TRANSFORM_STATUSES.get(status, TransformPhase.STRANGE)
    return TransformPhase.DELETING if aborted and phase is TransformPhase.OVER else phase


def count_task(
    transform: TransformRecord | None, planned: int, *, aborted: bool, ended: bool, running: int | None = None
) -> Counts:
    """Count the jobs of one task by state; the sum is the planned number, or the
    server's number where that is larger.

    ``transform`` is `None` as long as iDDS has not made one, ``planned`` is 0 if
    not known, ``aborted`` and ``ended`` are of the run, and ``running`` is how
    many of the task's PanDA jobs run now, if PanDA was asked.
    """
    counts = zero_counts()
    if transform is None:
        over = WmsStates.DELETED if aborted else WmsStates.PRUNED
        counts[over if ended else WmsStates.UNREADY] = max(0, planned)
        return counts
    outputs = transform.outputs or FileCounts()
    counts[WmsStates.SUCCEEDED] = max(0, outputs.processed)
    counts[WmsStates.FAILED] = max(0, outputs.failed)
    counts[WmsStates.PRUNED] = max(0, outputs.missing)
    if aborted and transform.inputs is not None:
        # A job is pruned together with its input; an abort gives up outputs alone.
        given_up = max(0, counts[WmsStates.PRUNED] - max(0, transform.inputs.missing))
        move_jobs(counts, given_up, WmsStates.DELETED, WmsStates.PRUNED)
    phase = phase_of(transform.status, aborted)
    states = _LEFTOVERS[phase]
    for kind, number in _open_jobs(transform, planned).items():
        counts[states[kind]] += number
    if phase is TransformPhase.OPEN:
        _start(counts, transform, running)
    return counts


def _open_jobs(transform: TransformRecord, planned: int) -> dict[OpenPhase, int]:
    """Split the jobs that have not ended."""
    outputs = transform.outputs or FileCounts()
    new = max(0, outputs.new)
    # Where inputs are not known nothing says that a job is ready.
    inputs = transform.inputs or FileCounts(new=new)
    unready = min(new, max(0, inputs.new))
    in_vain = min(new - unready, max(0, inputs.missing - max(0, outputs.missing)))
    queued = max(0, outputs.activated) + max(0, outputs.preprocessing)
    started = max(0, outputs.processing)
    done = max(0, outputs.processed) + max(0, outputs.failed) + max(0, outputs.missing)
    unmapped = max(planned, outputs.total, 0) - (new + queued + started + done)
    return {
        OpenPhase.UNMAPPED: max(0, unmapped),
        OpenPhase.UNREADY: unready,
        OpenPhase.IN_VAIN: in_vain,
        OpenPhase.READY: new - unready - in_vain,
        OpenPhase.QUEUED: queued,
        OpenPhase.STARTED: started,
    }


def _start(counts: Counts, transform: TransformRecord, running: int | None) -> None:
    """Move jobs to running as far as is known.

    PanDA's word counts more than iDDS's counters, which call a job new until
    a message or a poll says otherwise.
    """
    if running is None:
        if transform.processing_status in RUNNING_PROCESSINGS:
            move_jobs(counts, counts[WmsStates.PENDING], WmsStates.RUNNING, WmsStates.PENDING)
        return
    more = running - counts[WmsStates.RUNNING]
    move_jobs(counts, more, WmsStates.RUNNING, *BEFORE_RUNNING)


def refine_by_contents(
    counts: Counts, transform: TransformRecord, contents: Iterable[ContentRecord], *, aborted: bool
) -> None:
    """Tell apart, in place, what a task's counters call failed: jobs that are
    tried again are PENDING, and jobs that the cancel of the run ended DELETED.

    Some contents may be missing.
    """
    phase = phase_of(transform.status, aborted)
    known = killed = retried = failed = 0
    for content in contents:
        known += 1
        meaning = CONTENT_STATUSES.get(content.status)
        if aborted and was_killed(content):
            killed += 1
        elif meaning is ContentPhase.RETRIED and phase is TransformPhase.OPEN:
            retried += 1
        else:
            failed += meaning in (ContentPhase.RETRIED, ContentPhase.FAILED)
    # The counters may be older than the contents: what has failed stays.
    killed = min(killed, counts[WmsStates.FAILED] - failed)
    move_jobs(counts, killed, WmsStates.DELETED, WmsStates.FAILED)
    if phase is TransformPhase.OPEN and known and transform.outputs and known >= transform.outputs.total:
        # A job whose next attempt has begun is no longer among the contents that have failed.
        retried = counts[WmsStates.FAILED] - failed
    move_jobs(counts, retried, WmsStates.PENDING, WmsStates.FAILED)


def catch_up(
    counts: Counts, finished: int, failed: int, waiting: int = 0, running: int = 0, *, aborted: bool = False
) -> None:
    """Move jobs of a task that goes on, in place, that PanDA knows to have finished, to have failed for good
    or to wait for a slot: iDDS learns of it some seconds later.  Those that it knows to run are others.

    PanDA counts what a cancel has ended as failed, too: in an aborted run only iDDS's word makes a failure.
    """
    before = (WmsStates.RUNNING, *BEFORE_RUNNING)
    running = min(running, counts[WmsStates.RUNNING])
    counts[WmsStates.RUNNING] -= running
    move_jobs(counts, finished - counts[WmsStates.SUCCEEDED], WmsStates.SUCCEEDED, *before, WmsStates.UNKNOWN)
    booked = counts[WmsStates.FAILED] + counts[WmsStates.DELETED]
    move_jobs(counts, failed - booked, WmsStates.DELETED if aborted else WmsStates.FAILED, *before)
    move_jobs(
        counts, waiting - counts[WmsStates.PENDING], WmsStates.PENDING, WmsStates.READY, WmsStates.UNREADY
    )
    counts[WmsStates.RUNNING] += running


def was_killed(content: ContentRecord) -> bool:
    """Whether a job of a cancelled run that iDDS calls failed did not fail by itself.

    PanDA or the pilot ended its job because it was told to, the runner did not start it because the run was
    cancelled, the cancel took an attempt from it that was left, or nothing is known of a job that failed:
    iDDS stores how a job ended together with its failure.
    """
    if content.status not in ("FinalFailed", "Failed"):
        return False
    if content.status == "Failed" or JOB_STATUSES.get(content.job_status) is JobPhase.KILLED:
        return True
    return has_kill_code(content.errors) or not (content.job_status or content.errors)


def has_kill_code(errors: Iterable[JobError]) -> bool:
    """Whether one of a job's errors says that it was told to end."""
    return any((error.source, error.code) in KILL_CODES for error in errors)


def move_jobs(counts: Counts, number: int, target: WmsStates, *sources: WmsStates) -> None:
    """Move at most so many jobs to a state, from the first of others that has any."""
    for source in sources:
        some = max(0, min(number, counts[source]))
        counts[source] -= some
        counts[target] += some
        number -= some
