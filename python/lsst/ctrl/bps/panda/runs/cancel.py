"""Cancel a run, and look whether the server did it."""

from __future__ import annotations

__all__ = ["cancel_run"]

import time
from collections.abc import Callable

from lsst.ctrl.bps.wms_service import WmsStates

from ..errors import RefusedError
from ..staging import CANCELLED, remove_marker, write_marker
from ..status.evidence import RunEvidence
from .client import FoundRun, RunClient
from .record import RunRecord

PATIENCE = 60.0
"""How long the server is looked at after the command, seconds."""

RESEND_AFTER = 10.0
"""A command that shows no effect for so long is sent again, seconds: iDDS can
lose one that comes while it works on the request."""


def cancel_run(
    client: RunClient,
    run: str,
    *,
    patience: float = PATIENCE,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[bool, str]:
    """Cancel a run.

    Parameters
    ----------
    client : `RunClient`
        The server.
    run : `str`
        Request id, name or submit directory.
    patience : `float`, optional
        How long to look for the effect, seconds.
    sleep, clock : callable, optional
        For tests.

    Returns
    -------
    accepted, message : `tuple`
        Whether the server shows that it accepted the command, and what it has
        come to: cancelled, accepted or not, and what still runs.
    """
    found = client.find(run)
    request_id, record = found
    evidence = client.glance(found)
    if evidence.ended:
        state = evidence.tally.state
        return False, f"Run {request_id} has ended already ({state.name}); there is nothing to cancel."
    marked = _mark(record)
    try:
        client.connection.relay.abort(request_id)
    except RefusedError as error:
        if marked and record is not None:
            remove_marker(record.staging_area, CANCELLED)
        return False, f"The server refused to cancel run {request_id}: {error.message}"
    watch = _Watch(client, found, patience=patience, sleep=sleep, clock=clock)
    evidence = watch.look()
    accepted = evidence.aborted
    if not accepted:
        return False, (
            f"The command to cancel run {request_id} was sent {watch.sent} times, but the server does not "
            f"show it after {patience:.0f} s. It may still take effect: look with bps status --id "
            f"{request_id}, and cancel again if the run goes on."
        )
    return True, _describe(request_id, client.distinguish_killed(evidence), marked=marked)


def _mark(record: RunRecord | None) -> bool:
    """Put the marker that the final job looks for; return whether it worked."""
    if record is None or not record.staging_area:
        return False
    return write_marker(record.staging_area, CANCELLED, record.name + "\n")


class _Watch:
    """Watches a run after the command, which it sends again if it was lost."""

    def __init__(
        self,
        client: RunClient,
        run: FoundRun,
        *,
        patience: float,
        sleep: Callable[[float], None],
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._run = run
        self._sleep = sleep
        self._clock = clock
        self._end = clock() + patience
        self._last_sent = clock()
        self.sent = 1

    def look(self) -> RunEvidence:
        """Ask about the run until nothing more is to be done or patience
        ends; return the last answer.
        """
        while True:
            evidence = self._client.glance(self._run)
            quiet = evidence.aborted and _is_quiet(evidence)
            if evidence.ended or (quiet and not _may_wait_in_vain(evidence)):
                return evidence
            now = self._clock()
            if now >= self._end:
                return evidence
            if now - self._last_sent >= RESEND_AFTER and _wants_command(evidence):
                self._send_again(now)
            self._sleep(1.0)

    def _send_again(self, now: float) -> None:
        """Send the command once more; a refusal now means that it had worked."""
        self._last_sent = now
        self.sent += 1
        try:
            self._client.connection.relay.abort(self._run.request_id)
        except RefusedError:
            return


def _is_quiet(evidence: RunEvidence) -> bool:
    """Whether no task but the final one is going on."""
    finals = set(evidence.plan.final_labels) if evidence.plan is not None else {"finalJob"}
    going = (WmsStates.READY, WmsStates.PENDING, WmsStates.RUNNING, WmsStates.UNREADY)
    transforms = evidence.transforms or ()
    return bool(transforms) and all(
        not sum(counts[state] for state in going)
        for label, counts in evidence.tally.by_label.items()
        if label not in finals
    )


def _may_wait_in_vain(evidence: RunEvidence) -> bool:
    """Whether the run has final tasks that wait for more than their start."""
    return evidence.plan is not None and len(evidence.plan.final_labels) > 1


def _wants_command(evidence: RunEvidence) -> bool:
    """Whether another command helps: the first was lost, or the final tasks,
    which iDDS starts after it, hang.
    """
    quiet = evidence.aborted and _is_quiet(evidence)
    return not quiet or evidence.waits_in_vain


def _describe(request_id: int, evidence: RunEvidence, *, marked: bool) -> str:
    """Say how far the cancellation has come."""
    total = evidence.tally.total
    running = total[WmsStates.RUNNING] + total[WmsStates.PENDING]
    counts = ", ".join(f"{number} {state.name}" for state, number in total.items() if number)
    parts = [f"Run {request_id} is cancelled: {counts}."]
    if running:
        parts.append(
            f"Up to {running} jobs may still run: pilots hear of it at their next heartbeat (up to 30 "
            "minutes)."
        )
    if not evidence.ended and _may_wait_in_vain(evidence):
        parts.append(
            "The tasks after its final job may wait for jobs that were killed, for ever; if bps report shows "
            f"so, end them: bps cancel --id {request_id}."
        )
    if not evidence.ended:
        parts.append(
            "The final job still starts; it finds out and publishes nothing."
            if marked
            else "The final job still starts and publishes what is there: its staging area could not be "
            "reached from here to tell it."
        )
    parts += evidence.problems
    return " ".join(parts)
