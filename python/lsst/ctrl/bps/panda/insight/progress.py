"""How far a run is: a snapshot, the rate, an estimate of the end, and a watch
that asks the servers again and again until the run has ended.

`~.following` listens to PanDA's messages instead, where there is a broker.
"""

from __future__ import annotations

__all__ = ["LEAST_INTERVAL", "Looker", "Progress", "error_lines", "make_progress", "watch"]

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from lsst.ctrl.bps.wms_service import WmsStates

from ..errors import PandaBpsError, RunNotFoundError
from ..report.report import get_status_of
from ..status.evidence import RunEvidence
from ..status.failures import digest_errors
from ..status.states import Counts

_LOG = logging.getLogger(__name__)

LEAST_INTERVAL = 5.0
"""Seconds between two looks at a run, at least; a real PanDA's figures change
every minute."""

_DONE = (WmsStates.SUCCEEDED, WmsStates.FAILED, WmsStates.DELETED, WmsStates.PRUNED)
_HISTORY = 60
_ERRORS = 5
_TEXT_LIMIT = 160
_SLOWEST = 8.0
_PATIENCE = 10


@dataclass(frozen=True, slots=True)
class Progress:
    """A run at one moment."""

    moment: datetime
    request_id: int
    name: str
    state: WmsStates
    ended: bool
    """Whether the run is over; then nothing of it changes any more."""

    labels: dict[str, Counts]
    """Jobs by state, for each label in pipeline order."""

    total: Counts
    rate: float | None = None
    """Jobs a minute that came to an end, over the last looks; `None` before
    the second look."""

    end: datetime | None = None
    """When it will be over if it goes on like this."""

    errors: tuple[str, ...] = ()
    """Most frequent errors, a line each."""

    note: str = ""
    """What is out of the ordinary."""

    messages: str = ""
    """How PanDA's messages are followed; empty if no broker is known."""

    @property
    def jobs(self) -> int:
        """Number of jobs."""
        return sum(self.total.values())

    @property
    def done(self) -> int:
        """Jobs that came to an end, whatever it was."""
        return _done(self.total)


def _done(counts: Counts) -> int:
    return sum(counts[state] for state in _DONE)


def make_progress(evidence: RunEvidence, moment: datetime, errors: Sequence[str] = ()) -> Progress:
    """Make a snapshot.

    Parameters
    ----------
    evidence : `RunEvidence`
        What is known of the run.
    moment : `~datetime.datetime`
        When the servers were asked.
    errors : `~collections.abc.Sequence` [`str`], optional
        Most frequent errors.
    """
    state, note = get_status_of(evidence)
    return Progress(
        moment=moment,
        request_id=evidence.request_id,
        name=evidence.name,
        state=state,
        ended=evidence.ended,
        labels=evidence.tally.by_label,
        total=evidence.tally.total,
        errors=tuple(errors),
        note=note,
    )


def error_lines(evidence: RunEvidence) -> list[str]:
    """Write the most frequent errors of a run, a line each.

    Parameters
    ----------
    evidence : `RunEvidence`
        What is known of the run, with contents of its failed tasks.
    """
    lines = []
    for group in digest_errors(evidence, by_label=False)[:_ERRORS]:
        error = group.error
        text = f": {error.text[:_TEXT_LIMIT]}" if error.text else ""
        lines.append(f"{group.attempts} x {error.source} {error.code} in {group.label}{text}")
    return lines


class Looker:
    """Looks at a run, bears with failures, and knows rate and errors.

    Parameters
    ----------
    look : `~collections.abc.Callable`
        Asks the servers for the run's state.
    look_closer : `~collections.abc.Callable`, optional
        Asks for errors, too; only called when the number of failed jobs has
        changed.
    now : `~collections.abc.Callable`
        Gives the time, with time zone.
    """

    def __init__(
        self,
        look: Callable[[], RunEvidence],
        look_closer: Callable[[], RunEvidence] | None,
        now: Callable[[], datetime],
    ) -> None:
        self._look = look
        self._look_closer = look_closer
        self._now = now
        self._history: deque[tuple[datetime, int]] = deque(maxlen=_HISTORY)
        self._errors: tuple[str, ...] = ()
        self._failed = 0
        self.failures = 0
        """Looks in a row that failed."""

        self.evidence: RunEvidence | None = None
        """What the last look gave."""

    def look(self, *, closer: bool = False) -> Progress | None:
        """Look at the run.

        Parameters
        ----------
        closer : `bool`, optional
            Whether to ask for all that is known at once: a look that is
            followed by messages.

        Returns
        -------
        progress : `Progress` or `None`
            `None` if the servers did not answer, and may another time.

        Raises
        ------
        PandaBpsError
            Raised if ten looks in a row failed, or the run is not there.
        """
        try:
            asks = self._look_closer if closer and self._look_closer is not None else self._look
            self.evidence = asks()
            progress = make_progress(self.evidence, self._now())
            failed = progress.total[WmsStates.FAILED]
            if self._look_closer is not None and failed != self._failed:
                self._errors = tuple(error_lines(self.evidence if closer else self._look_closer()))
                self._failed = failed
        except RunNotFoundError:
            raise
        except PandaBpsError as error:
            self.failures += 1
            if self.failures >= _PATIENCE:
                raise
            _LOG.warning("The run could not be looked at; looking again: %s", error)
            return None
        self.failures = 0
        return self.with_estimate(replace(progress, errors=self._errors))

    def delay(self, interval: float) -> float:
        """Give the seconds to the next look: more after failed ones."""
        return min(interval * 2.0**self.failures, interval * _SLOWEST)

    def with_estimate(self, progress: Progress) -> Progress:
        """Add rate and end, from the oldest state that is remembered."""
        history = self._history
        near = bool(history) and (progress.moment - history[-1][0]).total_seconds() < LEAST_INTERVAL
        if not near or progress.ended:
            history.append((progress.moment, progress.done))
        return _with_estimate(progress, history)


def watch(
    look: Callable[[], RunEvidence],
    look_closer: Callable[[], RunEvidence] | None = None,
    *,
    interval: float = 30.0,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Iterator[Progress]:
    """Look at a run until it has ended.

    Parameters
    ----------
    look : `~collections.abc.Callable`
        Asks the servers for the run's state.
    look_closer : `~collections.abc.Callable`, optional
        Asks for errors, too; only called when the number of failed jobs has
        changed.
    interval : `float`, optional
        Seconds between two looks, at least 5; more after a failed look.
    sleep : `~collections.abc.Callable`, optional
        Waits for a number of seconds.
    now : `~collections.abc.Callable`, optional
        Gives the time, with time zone.

    Yields
    ------
    progress : `Progress`
        One after each look; the last one has ``ended`` set.

    Raises
    ------
    PandaBpsError
        Raised if ten looks in a row failed, or the run is not there.
    """
    interval = max(LEAST_INTERVAL, interval)
    looker = Looker(look, look_closer, now)
    while True:
        progress = looker.look()
        if progress is not None:
            yield progress
            if progress.ended:
                return
        sleep(looker.delay(interval))


def _with_estimate(progress: Progress, history: deque[tuple[datetime, int]]) -> Progress:
    """Add rate and end, from the oldest look that is remembered."""
    (first, before), last, after = history[0], progress.moment, progress.done
    minutes = (last - first).total_seconds() / 60
    if minutes <= 0:
        return progress
    rate = max(0.0, (after - before) / minutes)
    left = progress.jobs - progress.done
    end = last + timedelta(minutes=left / rate) if rate > 0 and left > 0 and not progress.ended else None
    return replace(progress, rate=rate, end=end)
