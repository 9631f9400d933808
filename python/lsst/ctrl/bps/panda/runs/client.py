"""The client for the runs of a server: connects, finds a run, and asks iDDS and PanDA about it."""

from __future__ import annotations

__all__ = [
    "PLAN_SUFFIX",
    "RECORD_SUFFIX",
    "Connection",
    "FoundRun",
    "RunClient",
    "connect",
    "describe_request",
]

import contextlib
import gzip
import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from lsst.ctrl.bps.wms_service import WmsStates
from pydantic import AwareDatetime, BaseModel

from ..errors import ConnectionFailedError, PandaBpsError, RunNotFoundError, TransportError
from ..files import write_text
from ..plan.naming import printable
from ..rest.credentials import Credentials, checks_certificates, find_credentials
from ..rest.faults import Fault
from ..rest.panda_api import PandaApi, api_base
from ..rest.relay import Relay
from ..rest.retries import PING_RETRY, PING_TIMEOUTS, WaitingBudget
from ..rest.transport import Transport
from ..settings.run import ServiceSettings
from ..status.bps_states import is_aborted
from ..status.evidence import (
    PlanSummary,
    RunEvidence,
    count_build_job,
    request_from_tasks,
    tasks_by_request,
    transforms_from_tasks,
)
from ..status.records import ContentRecord, JobRecord, RequestRecord, TaskRecord
from ..status.replies import parse_contents, parse_jobs, parse_requests, parse_tasks, parse_transforms
from ..status.vocabulary import ACTIVE_TASKS, TERMINAL_STATUSES
from .files import (
    PLAN_NAME,
    PROVENANCE_REPORT_NAME,
    REGISTRATION_NAME,
    collect_outputs,
    find_resource,
    names_directory,
)
from .intention import describe_unsent, settle
from .record import BuildReply, RunIndex, RunRecord, read_record

_LOG = logging.getLogger(__name__)

RECORD_SUFFIX = ".record.json"
"""What the task of a remote build sends back, behind its archive's name in
PanDA's file cache: a `BuildReply` ..."""

PLAN_SUFFIX = ".plan.json.gz"
"""... and the plan."""

_GZIP = b"\x1f\x8b"

MAX_TRANSFORMS_WITH_CONTENTS = 25
"""Most transforms whose contents a report fetches; a row costs 3 kB."""

MAX_TASKS_WITH_JOBS = 10
"""Most tasks whose jobs a report asks PanDA for; of each it lists `~..rest.panda_api.JOBS_A_TASK` at most."""

MAX_TASKS = 5000
"""Most tasks that a list of runs asks PanDA for."""

MAX_LISTED = 200
"""Most runs that a list asks iDDS for; each is a question."""

MAX_CONTENTS = 20_000
"""Most rows of contents a report fetches."""

_NOT_FETCHED = {
    False: "Errors of {} more tasks were not fetched.",
    True: "Of {} more tasks it was not asked which jobs failed and which were deleted; all count as failed.",
}
"""What is said then, by whether the run was cancelled."""


@dataclass(frozen=True, slots=True)
class Connection:
    """The clients of one server."""

    relay: Relay
    api: PandaApi
    settings: ServiceSettings
    credentials: Credentials


def connect(
    settings: ServiceSettings, *, prompt: bool = False, credentials: Credentials | None = None
) -> Connection:
    """Make the clients for the servers in the settings; nothing is sent.

    The credentials are those of the environment, unless they are given.  With ``prompt``, timeouts are short,
    for requests that are answered promptly.  `SettingsError` is raised if it is not known where PanDA is, or
    how to log in.
    """
    # Imported here: a log-in that is about to expire renews itself, and the
    # libraries for that are slow to import.
    from ..auth.login import make_renewer

    url = settings.require_url()
    env = settings.environment
    if credentials is None:
        credentials = find_credentials(env, uid=os.getuid(), renew=make_renewer(env))
    transport = Transport(
        credentials,
        verify=checks_certificates(env),
        timeouts=PING_TIMEOUTS if prompt else None,
        retry=PING_RETRY if prompt else None,
        budget=WaitingBudget(),
    )
    return Connection(
        relay=Relay(transport, url, idds_server=settings.idds_server),
        api=PandaApi(transport, api_base(url), cache_base=api_base(settings.cache_url or url)),
        settings=settings,
        credentials=credentials,
    )


class FoundRun(NamedTuple):
    """A run that was found."""

    request_id: int
    record: RunRecord | None
    """`None` if it is not on this machine."""

    def collect_outputs(self, state: WmsStates) -> tuple[str, ...]:
        """Fetch the outputs of ``bps submitcmd`` once the run has ended; return
        a sentence for each that exists and cannot be fetched.
        """
        record = self.record
        if record is None or state not in (WmsStates.SUCCEEDED, WmsStates.FAILED):
            return ()
        return collect_outputs(record.outputs, record.staging_area, run=record.name)

    def describe_provenance(self) -> tuple[str, ...]:
        """Say where the report on the run's provenance is, if it has been made."""
        path = Path(self.record.submit_path, PROVENANCE_REPORT_NAME) if self.record is not None else None
        return (f"Provenance, with all attempts of what failed: {path}",) if path and path.exists() else ()


class RecentRuns(NamedTuple):
    """A list of runs, oldest first."""

    runs: list[RunEvidence]
    problems: list[str]
    """What could not be fetched."""

    notes: list[str]
    """What else is to be known of the list."""


class RequestList(BaseModel):
    """Everybody's requests, as they are kept between commands."""

    asked_at: AwareDatetime
    seconds: float
    """How long the server took."""

    requests: tuple[RequestRecord, ...]


def _find_last(record: RunRecord) -> RunRecord:
    """Return the record of the last restart of a run, which is below the submit directory of the first."""
    last = record
    with contextlib.suppress(RunNotFoundError):
        while last.restarted_as:
            last = read_record(last.origin_directory / f"restart_{last.restarts}")
    if last is not record:
        _LOG.info(
            "Run %s was restarted as run %s; this is about that one", record.request_id, last.request_id
        )
    return last


class RunClient:
    """Finds the runs of a server and fetches what is known of them.

    A run is named by its request id, its name or its submit directory, or by
    what `find` returned, so that it is not searched for again.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._relay = connection.relay
        self._api = connection.api
        self._server = connection.settings.url
        self._user = connection.settings.user
        self._index = RunIndex(connection.settings.state_directory, connection.settings.url)

    def find(self, run: str | int | FoundRun, *, unique: bool = False) -> FoundRun:
        """Find a run, and its record if it is on this machine.

        Of several runs of one name it is the own one; a warning lists all.  A name that must be ``unique``
        is refused then.  The directory of a run that was restarted stands for the last restart, as with other
        workflow systems, where a restart has no id of its own.

        The record of a remote build is completed with what the site has sent, and that of an
        interrupted submission with what the server knows.  `RunNotFoundError` lists where the run was
        searched for; `SubmissionUncertainError` says that nobody knows now whether there is one.
        """
        if isinstance(run, FoundRun):
            return run
        text = str(run).strip()
        if not text:
            raise RunNotFoundError("No run was named; give its id, its name or its submit directory.")
        if not (text.isdecimal() or names_directory(text)):
            text = str(self._find_name(text, unique=unique))
        record = self._find_record(text)
        if record is None:
            return FoundRun(int(text), None)
        if names_directory(text):
            record = _find_last(record)
        record = settle(self._relay, self.connection.settings, record)
        if record.request_id is None:
            raise RunNotFoundError(describe_unsent(record))
        return FoundRun(record.request_id, record)

    def _find_name(self, name: str, *, unique: bool) -> int:
        """Find the request of a name: one with a record here, else an own one, else that of somebody else.

        iDDS gives one number for a name, however many requests have it.
        """
        own = self._index.find(name)
        numbers = set(self._relay.get_request_ids_by_name(name).values())
        numbers |= {own.request_id} if own is not None and own.request_id is not None else set()
        if not numbers:
            raise RunNotFoundError(
                f"No run is named {name!r}, and there is no such directory. Give the run's id, its name or "
                "its submit directory; bps report lists the runs."
            )
        if unique or own is None or len(numbers) > 1:
            with contextlib.suppress(TransportError):
                numbers |= {item.request_id for item in self._fetch_everybody([]) if item.name == name}
        if len(numbers) == 1:
            return numbers.pop()
        requests = [self.request(number) for number in sorted(numbers)]
        several = f"{len(requests)} runs are named {name!r}: {'; '.join(map(describe_request, requests))}."
        if unique:
            raise PandaBpsError(f"{several} Say which one is meant: give its id instead of the name.")
        mine = _of_user(requests, self._user) or requests
        chosen = own.request_id if own is not None and own.request_id else mine[-1].request_id
        _LOG.warning("%s This is about run %d; give the id to ask about another one.", several, chosen)
        return chosen

    def _find_record(self, run: str | int) -> RunRecord | None:
        """Find the record of a run by its id or its directory.

        The reply of a remote build is put into the submit directory as soon as the
        site has sent it: record, plan, and what is registered in Rucio.
        """
        record = self._index.find(run)
        if record is None or record.remote is None or record.remote.complete:
            return record
        archive = record.remote.archive
        try:
            reply = BuildReply.model_validate_json(self._download(archive + RECORD_SUFFIX))
        except (PandaBpsError, OSError, ValueError) as error:
            _LOG.debug("The site has not sent the plan of run %s yet: %s", record.name, error)
            return record
        record = record.complete(reply)
        try:
            if plan := self._fetch_plan(record, archive):
                write_text(Path(record.submit_path, PLAN_NAME), [plan])
            if reply.registration is not None:
                write_text(Path(record.submit_path, REGISTRATION_NAME), [reply.registration])
            record.write()
        except OSError as error:
            _LOG.warning("What the site has sent of run %s cannot be kept: %s", record.name, error)
        return record

    def _fetch_plan(self, record: RunRecord, archive: str) -> str:
        """Fetch the plan of a remote build from the cache, or, if it was too
        large for that, from the staging area; empty if it is out of reach.
        """
        try:
            data = self._download(archive + PLAN_SUFFIX)
            # Web servers may call the compression a matter of transport, so that it is undone already.
            return (gzip.decompress(data) if data.startswith(_GZIP) else data).decode()
        except (PandaBpsError, OSError, ValueError, EOFError) as error:
            _LOG.debug("The plan of run %s is not in the cache: %s", record.name, error)
        area = record.staging_area
        try:
            return str(find_resource(area, directory=True).join(PLAN_NAME).read().decode())
        except Exception as problem:  # each store has errors of its own
            _LOG.warning("Run %s cannot be restarted: its plan is out of reach: %s", record.name, problem)
            return ""

    def _download(self, name: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            self._api.download_cache_file(name, path)
            return path.read_bytes()

    def request(self, request_id: int) -> RequestRecord:
        """Fetch a request; raise `RunNotFoundError` if the server does not have it."""
        records = parse_requests(self._relay.get_requests(request_id))
        if not records:
            raise RunNotFoundError(f"There is no run {request_id} on {self._server}.")
        return records[0]

    def find_last(self, run: str | int) -> tuple[FoundRun, RunRecord]:
        """Find the last request of a run, which knows what the ones before have left, with its record.

        `RunNotFoundError` is raised if the record is not on this machine.
        """
        found = self.find(run, unique=True)
        while found.record is not None and found.record.restarted_as:
            found = self.find(found.record.restarted_as)
        if found.record is None:
            raise RunNotFoundError(
                f"The submit directory of run {found.request_id} is not known on this machine to this user. "
                "Give the submit directory instead of the id."
            )
        return found, found.record

    def summary(self, run: str | int | FoundRun) -> RunEvidence:
        """Fetch what the state of a run is made from: its request and its
        transforms, with one question, so that they cannot disagree.
        """
        request_id, record = self.find(run)
        # Before there are transforms, iDDS's outer join leaves null where the
        # request's own number was.
        rows = [
            row if row.get("request_id") else {**row, "request_id": request_id}
            for row in self._relay.get_requests(request_id, with_detail=True)
        ]
        records = parse_requests(rows)
        if not records:
            raise RunNotFoundError(f"There is no run {request_id} on {self._server}.")
        aborted = is_aborted(records[0])
        transforms = tuple(count_build_job(each, aborted=aborted) for each in parse_transforms(rows))
        return RunEvidence(records[0], transforms, plan=_summary(record), asked_at=datetime.now(UTC))

    def contents(self, request_id: int, transform_id: int) -> tuple[ContentRecord, ...]:
        """Fetch the contents of a transform."""
        found = parse_contents(self._relay.get_contents(request_id, transform_id))
        return found.get(transform_id, ())

    def status(self, run: str | int | FoundRun) -> RunEvidence:
        """Fetch what the states of a run and of its jobs are made from: one request to iDDS, one more for the
        run that completes it, for a cancelled run one for each task with failed jobs, and until the run has
        ended PanDA's tasks and jobs.
        """
        evidence = self._with_successor(self.distinguish_killed(self.summary(run)))
        return evidence if evidence.ended else self.with_panda(evidence)

    def distinguish_killed(self, evidence: RunEvidence) -> RunEvidence:
        """Fetch the contents of a cancelled run, which show whether a job was killed or failed by itself.

        iDDS may or may not see how a killed job ends before it closes the task; if it does, it counts the job
        as failed.
        """
        return self._with_contents(evidence) if evidence.aborted else evidence

    def _with_contents(self, evidence: RunEvidence, others: Sequence[int] = ()) -> RunEvidence:
        """Fetch the contents of tasks with jobs that failed, and then of others."""
        contents: dict[int, tuple[ContentRecord, ...]] = {}
        problems: list[str] = []
        wanted = evidence.unexplained_transforms
        rows = 0
        for number, transform_id in enumerate(dict.fromkeys((*wanted, *others))):
            if number >= MAX_TRANSFORMS_WITH_CONTENTS or rows > MAX_CONTENTS:
                if number < len(wanted):
                    problems.append(_NOT_FETCHED[evidence.aborted].format(len(wanted) - number))
                break
            try:
                contents[transform_id] = self.contents(evidence.request.request_id, transform_id)
                rows += len(contents[transform_id])
            except TransportError as error:
                what = "Errors" if number < len(wanted) else "States of jobs"
                problems.append(f"{what} of transform {transform_id} could not be fetched: {error}")
        return replace(evidence, contents=contents, problems=(*evidence.problems, *problems))

    def detail(self, run: str | int | FoundRun, *, errors: bool = True, jobs_listed: int = 0) -> RunEvidence:
        """Fetch everything that a report of a run shows.

        With ``errors``, iDDS is asked about failed jobs; for a cancelled run it
        always is.  With ``jobs_listed`` it is also asked which job is in which state: of a run with that many
        jobs at most, else of tasks with held jobs.  What cannot be fetched is listed in the evidence's
        problems.
        """
        evidence = self.summary(run)
        if errors:
            mixed = evidence.mixed_transforms(all_states=evidence.tally.job_count <= jobs_listed)
            evidence = self._with_contents(evidence, mixed if jobs_listed else ())
        else:
            evidence = self.distinguish_killed(evidence)
        return self.with_panda(self._with_successor(evidence))

    def _with_successor(self, evidence: RunEvidence) -> RunEvidence:
        """Add the last run that completes this one, as far as the records on this machine tell."""
        number = evidence.request_id
        while (record := self._index.find(number)) is not None and (record.restarted_as or 0) > number:
            number = record.restarted_as or 0
        if number == evidence.request_id:
            return evidence
        try:
            return replace(evidence, successor=self.summary(FoundRun(number, record)))
        except PandaBpsError as error:
            problem = f"Run {number}, which completes this one, could not be looked up: {error}"
            return replace(evidence, problems=(*evidence.problems, problem))

    def with_panda(self, evidence: RunEvidence) -> RunEvidence:
        """Add the tasks of a run in PanDA and, while it goes on or its jobs are killed, the jobs: iDDS does
        not know which of them run.
        """
        filters = {"reqID": str(evidence.request.request_id)}
        try:
            tasks = parse_tasks(self._api.tasks_since(None, filters=filters, limit=MAX_TASKS))
            active = [task.task_id for task in tasks if task.status in ACTIVE_TASKS]
            # PanDA lists own tasks only; jobs of others can be asked for.
            known = {task.task_id for task in tasks}
            active += [
                item.workload_id
                for item in evidence.transforms or ()
                if item.workload_id and item.workload_id not in known and item.status not in TERMINAL_STATUSES
            ]
            jobs: list[JobRecord] = []
            for task_id in active[:MAX_TASKS_WITH_JOBS]:
                jobs += parse_jobs(self._api.job_descriptions(task_id, unsuccessful_only=False))
        except TransportError as error:
            problem = f"PanDA could not be asked for its tasks and jobs: {error.message}"
            return replace(evidence, tasks=(), jobs=None, problems=(*evidence.problems, problem))
        if more := len(active[MAX_TASKS_WITH_JOBS:]):
            problem = (
                f"PanDA was not asked for the jobs of {more} more tasks; all that it has count as RUNNING."
            )
            return replace(evidence, tasks=tasks, jobs=None, problems=(*evidence.problems, problem))
        return replace(evidence, tasks=tasks, jobs=tuple(jobs))

    def recent(self, *, days: float, user: str | None = None, everybody: bool = False) -> RecentRuns:
        """Fetch the states of the runs of the last ``days`` days: the user's own, those of ``user`` (an
        account, or a name or words of it), or everybody's.
        """
        since = datetime.now(UTC) - timedelta(days=days)
        problems: list[str] = []
        notes: list[str] = []
        tasks: dict[int, tuple[TaskRecord, ...]] = {}
        known: set[int] = set()
        if everybody or user in (None, self._user):
            try:
                # PanDA lists the user's own tasks only, whatever a filter says.
                tasks = tasks_by_request(parse_tasks(self._api.tasks_since(since, limit=MAX_TASKS)))
            except TransportError as error:
                problems.append(f"PanDA could not be asked for recent tasks: {error.message}")
            known = set(tasks) | {
                entry.request_id
                for entry in self._index.entries()
                if entry.submitted_at is not None and entry.submitted_at >= since
            }
        if everybody or user is not None:
            try:
                requests = self._fetch_everybody(notes)
            except TransportError as error:
                problems.append(
                    "Runs of others cannot be listed, since the list of everybody's runs cannot be had: "
                    f"{error.message} One of them can be looked at: bps report --id ID."
                )
                requests = ()
            dated = [item for item in requests if (item.updated_at or item.created_at or since) >= since]
            known |= {item.request_id for item in (dated if everybody else _of_user(dated, user or ""))}
        return self._look_up(sorted(known, reverse=True), tasks, problems, notes)

    def _look_up(
        self,
        request_ids: Sequence[int],
        tasks: Mapping[int, tuple[TaskRecord, ...]],
        problems: list[str],
        notes: list[str],
    ) -> RecentRuns:
        """Ask iDDS about runs, the newest first, until it is found not to answer."""
        if len(request_ids) > MAX_LISTED:
            notes.append(
                f"These are the newest {MAX_LISTED} of {len(request_ids)} runs; --hist DAYS gives fewer."
            )
        runs: list[RunEvidence] = []
        left = list(request_ids[:MAX_LISTED])
        while left:
            request_id = left[0]
            try:
                runs.append(self._listed(request_id, tasks.get(request_id, ())))
            except RunNotFoundError:
                pass
            except TransportError as error:
                if isinstance(error, ConnectionFailedError) or error.fault == Fault.IDDS_DOWN:
                    shown = [number for number in left if number in tasks]
                    runs += [self._from_tasks(number, tasks[number]) for number in shown]
                    problems.append(
                        f"{len(left)} runs were not looked up: {error.message} {len(shown)} of these are "
                        "shown as PanDA's tasks tell, with state UNKNOWN."
                    )
                    break
                problems.append(f"Run {request_id} could not be looked up: {error}")
            del left[0]
        return RecentRuns(runs[::-1], problems, notes)

    def _fetch_everybody(self, notes: list[str]) -> tuple[RequestRecord, ...]:
        """Fetch everybody's requests.

        iDDS has no way to ask for what is new, so the list is kept: it is asked for so rarely that it takes
        no more than a hundredth of the server's time, or every ten minutes.
        """
        settings = self.connection.settings
        digest = hashlib.sha256(settings.url.encode()).hexdigest()[:12]
        path = Path(settings.state_directory, f"requests-{digest}.json")
        try:
            kept = RequestList.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            kept = None
        begin = datetime.now(UTC)
        if kept is not None and timedelta() <= begin - kept.asked_at < timedelta(
            seconds=min(600.0, max(10.0, 100 * kept.seconds))
        ):
            notes.append(f"The runs of others are those that there were at {kept.asked_at:%H:%M:%S} UTC.")
            return kept.requests
        requests = parse_requests(self._relay.get_all_requests())
        seconds = (datetime.now(UTC) - begin).total_seconds()
        kept = RequestList(asked_at=begin, seconds=seconds, requests=requests)
        try:
            write_text(path, [kept.model_dump_json()], mode=0o600)
        except OSError as error:
            _LOG.debug("The list of requests cannot be kept in %s: %s", path, error)
        return requests

    def _listed(self, request_id: int, tasks: tuple[TaskRecord, ...]) -> RunEvidence:
        """Fetch what the list of runs shows of a run."""
        record = self._find_record(request_id)
        try:
            return self.distinguish_killed(self.summary(FoundRun(request_id, record)))
        except RunNotFoundError:
            if not tasks:
                raise
            return self._from_tasks(request_id, tasks)

    def _from_tasks(self, request_id: int, tasks: tuple[TaskRecord, ...]) -> RunEvidence:
        """Make what the list shows of a run of PanDA's tasks alone."""
        record = self._index.find(request_id)
        request, transforms = request_from_tasks(tasks), transforms_from_tasks(tasks)
        return RunEvidence(request, transforms, plan=_summary(record), asked_at=datetime.now(UTC))


def describe_request(request: RequestRecord) -> str:
    """Say which request it is, whose, and of when."""
    when = f", {request.created_at:%Y-%m-%d %H:%M:%S} UTC" if request.created_at else ""
    return f"{request.request_id} ({RunEvidence(request).attributes.operator or request.username}{when})"


def _of_user(requests: Sequence[RequestRecord], user: str) -> list[RequestRecord]:
    """Choose the requests of a user, whose account or name it is; if it is nobody's, a part of either counts.

    The account is what the run's own attributes say, the name is the user whom PanDA knows; iDDS keeps 20
    characters of that.
    """
    names = [(item, (RunEvidence(item).attributes.operator, item.username)) for item in requests]
    wanted = printable(user).casefold()
    exact = [
        item for item, texts in names if {wanted, wanted[:20]} & {printable(t).casefold() for t in texts}
    ]
    words = {*re.findall(r"\w+", wanted)}
    return exact or [
        item
        for item, texts in names
        if words and any(words <= {*re.findall(r"\w+", printable(t).casefold())} for t in texts)
    ]


def _summary(record: RunRecord | None) -> PlanSummary | None:
    return None if record is None else record.plan_summary()
