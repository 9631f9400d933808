"""Cancel a run, and check that the server did it."""

from __future__ import annotations

__all__ = ["SETTLED_AFTER", "cancel_run"]

import contextlib
import logging
import time
from collections.abc import Callable

from lsst.ctrl.bps.wms_service import WmsStates

from ..errors import RefusedError, TransportError
from ..staging import CANCELLED, remove_marker, write_marker
from ..status.evidence import RunEvidence
from ..status.records import render_count
from .client import FoundRun, RunClient
from .record import RunRecord

_LOG = logging.getLogger(__name__)

CONFIRMATION_SECONDS = 60.0
"""How long the server is looked at after the command, seconds."""

RESEND_AFTER = 10.0
"""A command that shows no effect for so long is sent again, seconds: iDDS can
lose one that comes while it works on the request."""

SETTLED_AFTER = 3.0
"""Seconds for which nothing may go on before that is believed: iDDS cancels a task that it is just starting,
and then goes on starting it (seen with 2.6.21)."""

NOTICE_AFTER = 5.0
"""Seconds after which it is said what is waited for."""


def cancel_run(
    client: RunClient,
    run: str,
    *,
    patience: float = CONFIRMATION_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[bool, str]:
    """Cancel a run; return whether the server shows that it accepted the
    command, and a message with the outcome and what still runs.

    The effect is waited for up to ``patience`` seconds.
    """
    found = client.find(run, unique=True)
    request_id, record = found
    evidence = client.summary(found)
    if evidence.ended:
        state = evidence.tally.state
        return False, f"Run {request_id} has ended already ({state.name}); there is nothing to cancel."
    marked = _mark(record)
    try:
        client.connection.relay.abort(request_id)
    except TransportError as error:
        refused = isinstance(error, RefusedError)
        # The run goes on for certain, and must publish its outputs.
        if marked and record is not None and (refused or not error.maybe_sent):
            remove_marker(record.staging_area, CANCELLED)
        if not refused:
            raise
        return False, f"The server refused to cancel run {request_id}: {error.message}"
    try:
        evidence, sent = _watch(client, found, patience=patience, sleep=sleep, clock=clock)
    except TransportError as error:
        return False, (
            f"The command to cancel run {request_id} was sent, but what came of it is not known: "
            f"{error.message} Look with bps status --id {request_id}, and cancel again if the run goes on."
        )
    if not evidence.aborted:
        return False, (
            f"The command to cancel run {request_id} was sent {sent} times, but the server does not "
            f"show it after {patience:.0f} s. It may still take effect: look with bps status --id "
            f"{request_id}, and cancel again if the run goes on."
        )
    return True, _describe(request_id, client.distinguish_killed(evidence), marked=marked)


def _mark(record: RunRecord | None) -> bool:
    """Write the marker that the final job looks for; return whether that worked."""
    if record is None or not record.staging_area:
        return False
    return write_marker(record.staging_area, CANCELLED, record.name + "\n")


def _watch(
    client: RunClient,
    run: FoundRun,
    *,
    patience: float,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> tuple[RunEvidence, int]:
    """Watch a run after the command until nothing more is to be done or
    patience ends; return its last state, and how often the command was sent.
    """
    last_sent = begin = clock()
    end = begin + patience
    told = False
    sent = 1
    quiet_since = None
    look_at, pause = begin, 1.0
    while True:
        evidence = client.summary(run)
        quiet = evidence.aborted and _is_quiet(evidence)
        now = clock()
        quiet_since = (now if quiet_since is None else quiet_since) if quiet else None
        settled = quiet_since is not None and now - quiet_since >= SETTLED_AFTER
        if not evidence.aborted and (evidence.ended or now >= end):
            return evidence, sent
        over = now >= end or evidence.ended or (settled and not _may_wait_in_vain(evidence))
        if over and (now >= look_at or now >= end):
            # iDDS calls all jobs deleted at once; only PanDA knows which payloads run on.
            evidence = client.with_panda(evidence)
            if now >= end or not evidence.outliving_jobs:
                return evidence, sent
            look_at, pause = now + pause, min(2 * pause, 15.0)
        if not told and now - begin >= NOTICE_AFTER:
            told = True
            _LOG.info("Waiting up to %.0f s for the jobs of run %d to end", end - now, run.request_id)
        # The first command was lost, or the final tasks, which iDDS starts after it, hang.
        if now - last_sent >= RESEND_AFTER and (not quiet or evidence.is_stuck):
            last_sent = now
            sent += 1
            # A refusal now means that the command had worked.
            with contextlib.suppress(RefusedError):
                client.connection.relay.abort(run.request_id)
        sleep(1.0)


def _is_quiet(evidence: RunEvidence) -> bool:
    """Tell whether no task but the final ones is going on."""
    going = (WmsStates.READY, WmsStates.PENDING, WmsStates.RUNNING, WmsStates.UNREADY)
    transforms = evidence.transforms or ()
    return bool(transforms) and all(
        not sum(counts[state] for state in going)
        for label, counts in evidence.tally.by_label.items()
        if label not in evidence.final_labels
    )


def _may_wait_in_vain(evidence: RunEvidence) -> bool:
    """Tell whether the run has final tasks that wait for other final tasks."""
    return evidence.plan is not None and len(evidence.plan.final_labels) > 1


def _describe(request_id: int, evidence: RunEvidence, *, marked: bool) -> str:
    """Describe how far the cancellation has come."""
    total = evidence.tally.total
    counts = ", ".join(f"{number} {state.name}" for state, number in total.items() if number)
    parts = [f"Run {request_id} is cancelled: {counts}."]
    if outliving := evidence.outliving_jobs:
        parts.append(
            f"{render_count(sum(outliving.values()), 'PanDA job')} of it still run on (task "
            f"{', '.join(map(str, outliving))}): pilots hear of it at their next heartbeat, up to 30 minutes "
            f"later. See bps report --id {request_id}."
        )
    elif evidence.jobs is None:
        parts.append("Whether jobs of it still run is not known.")
    else:
        parts.append("No other job of it runs." if not evidence.ended else "No job of it runs any more.")
    if not evidence.ended and _may_wait_in_vain(evidence):
        parts.append(
            "The tasks after its final job may wait for jobs that were killed, for ever; if bps report shows "
            f"so, end them: bps cancel --id {request_id}."
        )
    if not evidence.ended:
        started = [
            f"The final job ({label}, PanDA task {task}) has started all the same"
            for task, label in evidence.task_labels.items()
            if label in evidence.final_labels
        ]
        starts = "; ".join(started) or "The final job still starts"
        parts.append(
            f"{starts}; it finds out and publishes nothing."
            if marked
            else f"{starts}, and publishes what is there: its staging area could not be reached from here to "
            "tell it."
        )
    parts += evidence.problems
    return " ".join(parts)
