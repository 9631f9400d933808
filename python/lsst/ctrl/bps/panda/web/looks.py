"""What the live pages look at: runs and their jobs, asked for when somebody looks, once for all who do, and
not more often than the servers can bear.
"""

from __future__ import annotations

__all__ = ["OUTSIDE", "Cause", "JobsSight", "LogPlaces", "Look", "Looks", "RunSight", "Sight"]

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from lsst.ctrl.bps.wms_service import WmsStates

from ..campaign.record import CampaignIndex, CampaignLine, read_campaign
from ..campaign.runs import CampaignOverview, fetch_campaign
from ..errors import PandaBpsError, RunNotFoundError
from ..insight.logs import LogEnd, LogTransport, TailReader, find_log_urls
from ..insight.overview import JobScope, Overview, explain_failures, fetch_evidence, fetch_overview
from ..insight.progress import Estimate, make_progress
from ..prompt.catalog import ProcessingEntry, ProcessingIndex
from ..prompt.process import state_directory
from ..prompt.report import ProcessingState, read_processing
from ..report import describe_successor
from ..runs.client import Connection, RunClient
from ..runs.jobs import JobQuery
from ..runs.record import RunEntry, RunIndex
from ..status.bps_states import Counts
from ..status.evidence import RunEvidence
from ..status.failures import ErrorGroup
from ..status.records import JobRecord
from ..status.verdicts import PACKAGED_RULES
from .page import MOST_ERRORS

_LOG = logging.getLogger(__name__)

_REST = 4.0
"""Between two looks is at least this multiple of what the last one took: whoever looks must not slow down
what is looked at."""

_LONG = 15.0
"""Seconds after which the jobs of a run are looked at though nothing seems to have changed."""

_PATIENCE = 0.4
"""Seconds for which a page waits for what takes longer."""

_MOST_LOOKS = 50
"""Things that are remembered."""

MOST_JOBS = 20_000
"""Jobs of a run whose attempts are asked for all; of a larger one, those that failed."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sight(Generic[T]):
    """What was seen, and when."""

    value: T
    at: datetime
    revision: int
    """Grows when something changes."""


@dataclass(frozen=True, slots=True)
class Cause:
    """What else has changed, so that something has to be looked at again, and when that was seen."""

    value: object
    at: datetime = field(compare=False)


class Look(Generic[T]):
    """Something that changes, fetched when somebody wants to see it and what was seen last is too old.

    Parameters
    ----------
    fetch : callable
        Asks the servers.
    least : `float`
        Seconds for which what was seen is new enough.
    clock : callable, optional
        Time, for tests.
    """

    def __init__(
        self, fetch: Callable[[], T], least: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fetch = fetch
        self._least = least
        self._clock = clock
        self._sight: Sight[T] | None = None
        self._due = 0.0
        self._cause: Cause | None = None
        self._error: PandaBpsError | None = None
        self._lock = threading.Lock()

    def see(self, cause: Cause | None = None) -> Sight[T]:
        """Return what is to be seen, which the servers are asked for if need be; their errors are raised."""
        with self._lock:
            if self._sight is None or (self._is_due() and (cause is None or cause != self._cause)):
                self._refresh()
                self._cause = cause
            if self._error is not None:
                raise self._error
            return self._judge(cause)

    def glance(self, cause: Cause) -> Sight[T] | None:
        """Return what was seen last; if there is a new cause to look, somebody does so meanwhile."""
        if cause != self._cause and self._is_due() and self._lock.acquire(blocking=False):
            thread = threading.Thread(target=self._refresh_aside, args=(cause,), daemon=True)
            thread.start()
            thread.join(_PATIENCE)
        return self._judge(cause) if self._sight is not None else None

    def _is_due(self) -> bool:
        return self._clock() >= self._due

    def _judge(self, cause: Cause | None) -> Sight[T]:
        """Return what was seen last; as long as there is no new cause, it is as new as what was the cause."""
        assert self._sight is not None
        return replace(self._sight, at=cause.at) if cause and cause == self._cause else self._sight

    def _refresh_aside(self, cause: Cause) -> None:
        try:
            self._refresh()
            self._cause = cause
        except PandaBpsError as error:
            _LOG.warning("What the pages show could not be fetched: %s", error)
        finally:
            self._lock.release()

    def _refresh(self) -> None:
        begin, at, last = self._clock(), datetime.now(UTC), self._sight
        try:
            value = self._fetch()
            self._error = None
        except PandaBpsError as error:
            self._error = error
            raise
        finally:
            self._due = self._clock() + max(self._least, _REST * (self._clock() - begin))
        if last is not None and value == last.value:
            self._sight = replace(last, at=at)
        else:
            self._sight = Sight(value, at, last.revision + 1 if last is not None else 1)


@dataclass(frozen=True, slots=True)
class RunLine:
    """A run in the list."""

    request_id: int
    name: str
    state: str
    user: str
    jobs: int
    failed: int
    ended: bool
    created: datetime | None
    total: Counts


@dataclass(frozen=True, slots=True)
class ListSight:
    """The list of runs, the newest first."""

    runs: tuple[RunLine, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RunSight:
    """A run, without its attempts."""

    overview: Overview
    rate: float | None = field(compare=False)
    """Jobs a minute that come to an end."""

    end: datetime | None
    """When it will be over at that rate, to the minute."""

    successor: int
    """The run that completes this one, 0 if there is none."""

    completed: str
    """Which that is, and its state."""

    evidence: RunEvidence = field(compare=False)

    def cause(self, at: datetime) -> Cause:
        """Return the cause to look at the jobs again: that something has changed, or, while the run goes on,
        that some time has passed.
        """
        return Cause((self.overview, 0 if self.overview.ended else time.monotonic() // _LONG), at)


@dataclass(frozen=True, slots=True)
class JobsSight:
    """The attempts of a run or of a label, and why some failed."""

    attempts: tuple[JobRecord, ...]
    groups: tuple[ErrorGroup, ...]
    left_out: int
    problems: tuple[str, ...]
    evidence: RunEvidence = field(compare=False)


@dataclass(frozen=True, slots=True)
class ProcessingSight:
    """A prompt processing, or one of its nights."""

    name: str
    config: str
    state: ProcessingState
    runs: frozenset[int]
    """Those of its runs that are on this server."""


OUTSIDE = "The log is not shown here, since it lies outside the run's areas."


@dataclass(frozen=True, slots=True)
class LogPlaces:
    """Where logs lie that may be shown: if ``hosts`` are named, on web servers of these; else on any, and in
    the area of the run, be it on this machine or in a store.
    """

    hosts: frozenset[str] | None = None

    def holds(self, job: JobRecord, connection: Connection, area: str) -> bool:
        """Tell whether a job's log may be shown."""
        root = area.rstrip("/") + "/"

        def may(place: str) -> bool:
            if place.startswith(("http://", "https://")):
                return self.hosts is None or urlsplit(place).hostname in self.hosts
            inside = (
                bool(area) and place.startswith(root) and not {"..", "%2e%2e"} & {*place.lower().split("/")}
            )
            return self.hosts is None and inside

        return all(map(may, find_log_urls(job, connection.settings.url).values()))


_ANYWHERE = LogPlaces()


class _Tails:
    """Reads the ends of logs; that of an attempt does not change any more once it could be read."""

    def __init__(self, places: LogPlaces) -> None:
        self._places = places
        self._known: OrderedDict[int, LogEnd] = OrderedDict()

    def reader(self, connection: Connection, area: str) -> Callable[[JobRecord], LogEnd]:
        """Make a reader for a run with this staging area, which asks a host that cannot be reached only
        once.
        """
        read = TailReader(LogTransport(connection))

        def call(job: JobRecord) -> LogEnd:
            if not self._places.holds(job, connection, area):
                return LogEnd(None, (f"({OUTSIDE})",))
            if (known := self._known.get(job.panda_id)) is not None:
                return known
            found = read(job)
            if found.exception:
                self._known[job.panda_id] = found
                while len(self._known) > 10 * _MOST_LOOKS:
                    self._known.popitem(last=False)
            return found

        return call


class Looks:
    """All looks at one server.

    Parameters
    ----------
    make_connection : callable
        Connects to the server; each look has a connection of its own, with the token that counts then.
    least : `float`
        Seconds between two questions about the same thing, at least.
    logs : `LogPlaces`, optional
        Where logs may be read.
    """

    def __init__(
        self, make_connection: Callable[[], Connection], least: float, *, logs: LogPlaces = _ANYWHERE
    ) -> None:
        self.connect = make_connection
        self.least = least
        self.logs = logs
        self._tails = _Tails(logs)
        self._known: OrderedDict[tuple[object, ...], Look[object]] = OrderedDict()
        self._lock = threading.Lock()

    def _find(self, key: tuple[object, ...], fetch: Callable[[], T]) -> Look[T]:
        with self._lock:
            look = self._known.pop(key, None) or Look(fetch, self.least)
            self._known[key] = look
            while len(self._known) > _MOST_LOOKS:
                self._known.popitem(last=False)
        return look  # type: ignore[return-value]

    def runs(self, *, days: int, everybody: bool) -> Look[ListSight]:
        """Return the look at the list of runs."""

        def fetch() -> ListSight:
            found = RunClient(self.connect()).recent(days=days, everybody=everybody)
            return ListSight(tuple(map(_line, reversed(found.runs))), (*found.problems, *found.notes))

        return self._find(("runs", days, everybody), fetch)

    def run(self, run: int) -> Look[RunSight]:
        """Return the look at a run."""
        estimate = Estimate()

        def fetch() -> RunSight:
            evidence, overview = fetch_overview(
                self.connect(), run, scope=JobScope.NONE, tasks=True, errors=False
            )
            progress = estimate.add(make_progress(evidence, datetime.now(UTC)))
            end = progress.end and progress.end.replace(second=0, microsecond=0)
            return RunSight(
                overview=overview,
                rate=None if evidence.ended else progress.rate,
                end=end,
                successor=evidence.successor.request_id if evidence.successor is not None else 0,
                completed=describe_successor(evidence),
                evidence=evidence,
            )

        return self._find(("run", run), fetch)

    def jobs(self, run: int, label: str = "") -> Look[JobsSight]:
        """Return the look at the attempts of a run, or of one of its labels."""

        def fetch() -> JobsSight:
            overview = self.run(run).see().value.overview
            many = sum(overview.total.values()) > MOST_JOBS
            scope = JobScope.FAILED if many and not label else JobScope.ALL
            connection = self.connect()
            evidence = fetch_evidence(connection, run, scope=scope, which=JobQuery(label), errors=not label)
            reader = self._tails.reader(connection, overview.staging_area)
            groups, left_out = explain_failures(
                evidence, PACKAGED_RULES, reader, limit=MOST_ERRORS, label=label
            )
            return JobsSight(evidence.attempts, tuple(groups), left_out, evidence.problems, evidence)

        return self._find(("jobs", run, label), fetch)

    # --- campaigns and nights, which this machine knows ---------------------

    def _own_runs(self) -> dict[int, RunEntry]:
        settings = self.connect().settings
        entries = RunIndex(settings.state_directory, settings.require_url()).entries()
        return {entry.request_id: entry for entry in entries}

    def campaigns(self) -> Look[tuple[CampaignLine, ...]]:
        """Return the look at the user's campaigns whose runs are on this server, or on none yet."""

        def fetch() -> tuple[CampaignLine, ...]:
            runs = self._own_runs()

            def is_here(line: CampaignLine) -> bool:
                parts = [part for part in line.record.parts if part.request_id] if line.record else []
                return not parts or any(
                    (entry := runs.get(part.request_id or 0)) and entry.name == part.run for part in parts
                )

            index = CampaignIndex(self.connect().settings.state_directory)
            return tuple(filter(is_here, index.lines()))

        return self._find(("campaigns",), fetch)

    def campaign(self, key: str) -> Look[CampaignOverview]:
        """Return the look at the runs of a campaign."""

        def fetch() -> CampaignOverview:
            found = [line for line in self.campaigns().see().value if line.key == key]
            if not found or found[0].record is None:
                raise RunNotFoundError(f"There is no campaign {key} of this user on this machine.")
            return fetch_campaign(read_campaign(found[0].path), self.connect())

        return self._find(("campaign", key), fetch)

    def processings(self) -> Look[tuple[ProcessingEntry, ...]]:
        """Return the look at the user's prompt processings."""

        def fetch() -> tuple[ProcessingEntry, ...]:
            return tuple(ProcessingIndex(self.connect().settings.state_directory).entries())

        return self._find(("processings",), fetch)

    def processing(self, key: str, night: str = "") -> Look[ProcessingSight]:
        """Return the look at a prompt processing, or at one of its nights."""

        def fetch() -> ProcessingSight:
            found = [entry for entry in self.processings().see().value if entry.key == key]
            if not found:
                raise RunNotFoundError(f"There is no prompt processing {key} of this user on this machine.")
            config = Path(found[0].config)
            state = read_processing(config, night=night)
            if night and night not in state.nights:
                raise RunNotFoundError(f"The prompt processing {config} has no night {night!r}.")
            runs = self._own_runs()
            wanted = {group.run_id: state_directory(config) for group in state.report.groups if group.run_id}
            here = {run for run, place in wanted.items() if run in runs and _lies_in(runs[run], place)}
            return ProcessingSight(config.stem, str(config), state, frozenset(here))

        return self._find(("processing", key, night), fetch)

    def read_end(self, connection: Connection, job: JobRecord, area: str) -> LogEnd:
        """Read why a job ended, from its log."""
        return self._tails.reader(connection, area)(job)


def _lies_in(entry: RunEntry, place: Path) -> bool:
    return Path(entry.submit_path).is_relative_to(place.absolute())


def _line(run: RunEvidence) -> RunLine:
    total = run.tally.total
    return RunLine(
        request_id=run.request_id,
        name=run.name,
        state=run.tally.state.name,
        user=run.attributes.operator or run.request.username,
        jobs=sum(total.values()),
        failed=total[WmsStates.FAILED],
        ended=run.ended,
        created=run.request.created_at,
        total=total,
    )
