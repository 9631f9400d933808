"""The record of a run in its submit directory, and the list of the user's own runs.

A record is not changed in place: its methods return a changed copy, and `write` saves it.
"""

from __future__ import annotations

__all__ = ["BuildReply", "IndexFile", "RequestPart", "RunEntry", "RunIndex", "RunRecord", "read_record"]

import fcntl
import logging
import os
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, PlainSerializer, ValidationError

from ..errors import PandaBpsError
from ..files import write_text
from ..plan.document import RunAttributes
from ..plan.model import Resources, WorkflowPlan
from ..plan.naming import BUILD_LABEL, BUILD_TASK
from ..settings.run import StagingSettings
from ..status.evidence import PlanSummary
from ..version import __version__
from .files import RECORD_NAME, names_directory, read_model

_LOG = logging.getLogger(__name__)

RECORD_FORMAT = 1

Moment = Annotated[
    AwareDatetime, PlainSerializer(lambda moment: moment.isoformat(timespec="seconds"), return_type=str)
]
"""A time in JSON, such as ``2026-11-20T12:00:05+00:00``."""


class PlannedTask(NamedTuple):
    """A task of the plan."""

    name: str
    label: str
    jobs: int


class _Section(BaseModel):
    # Keys that are not known are kept: a newer version may have written them.
    model_config = ConfigDict(frozen=True, extra="allow", from_attributes=True)


class RunSection(_Section):
    """Name and owner of a run, and where its files are."""

    name: str
    operator: str = ""
    project: str = ""
    campaign: str = ""
    payload: str = ""
    output_run: str = ""
    site: str = ""
    submit_path: str = ""
    staging_area: str = ""
    origin: int = 0
    """Id of the run that this one completes, 0 if none."""


class Versions(_Section):
    """Versions of the software that made the plan."""

    plugin: str = ""
    bps: str = ""


class Staging(_Section):
    """How the files were staged, for a restart."""

    max_workers: int = 10
    group_permissions: bool = False


class RemoteBuild(_Section):
    """A plan that is made at the site."""

    archive: str
    """Name of what was sent to the site, in PanDA's file cache."""

    complete: bool = False
    """Whether the site's plan has come back."""


class RequestPart(StrEnum):
    """What was about to be sent."""

    STEPS = "steps"
    """Parts of a long request, of which nothing runs."""

    REQUEST = "request"
    """The request itself."""


class Intention(_Section):
    """A submission that was begun and of which no outcome is recorded."""

    server: str
    begun_at: Moment
    part: RequestPart


class RunRecord(_Section):
    """The record of a run, as it is saved."""

    model_config = ConfigDict(title="run record")

    format: int = RECORD_FORMAT
    run: RunSection
    versions: Versions = Versions()
    labels: tuple[tuple[str, int], ...] = ()
    """Labels and how many jobs each has, in pipeline order, final ones last."""

    tasks: tuple[PlannedTask, ...] = ()
    final_labels: tuple[str, ...] = ()
    clusters: tuple[str, ...] = ()
    """Labels with settings in the section ``cluster`` of the configuration."""

    asked: dict[str, Resources] = {}
    """What the jobs of each label ask for; servers store other figures."""

    staging: Staging = Staging()
    outputs: tuple[tuple[str, str], ...] = ()
    """Key and destination of each output of ``bps submitcmd``."""

    inputs: tuple[str, ...] = ()
    """Files that ``bps submitcmd`` has copied into the submit directory."""

    sources: tuple[str, ...] = ()
    """Files that the quantum graph was made from."""

    messages: dict[str, Any] | None = None
    """The message broker of the run's own configuration."""

    remote: RemoteBuild | None = None
    prepared_at: Moment | None = None
    intention: Intention | None = None
    """Written before the request is sent, and removed when the outcome is known."""

    request_id: int | None = None
    server: str = ""
    submitted_at: Moment | None = None
    request_bytes: int | None = None
    restarts: int = 0
    """Number of the last restart."""

    restarted_as: int | None = None
    """Id of the run that completes this one."""

    origin_path: str = ""
    """Of a restart: the submit directory of the first run."""

    @classmethod
    def from_plan(
        cls,
        plan: WorkflowPlan,
        *,
        staging: StagingSettings,
        clusters: tuple[str, ...] = (),
        outputs: tuple[tuple[str, str], ...] = (),
        inputs: tuple[str, ...] = (),
        sources: tuple[str, ...] = (),
        messages: dict[str, str] | None = None,
    ) -> RunRecord:
        """Make the record of a run that has just been planned."""
        how = Staging(max_workers=staging.max_workers, group_permissions=staging.group_permissions)
        record = cls(
            **_plan_fields(plan),
            staging=how,
            clusters=clusters,
            outputs=outputs,
            inputs=inputs,
            sources=sources,
        )
        return record._with(messages=messages) if messages else record

    @classmethod
    def planned_at_site(cls, run: RunSection, *, archive: str) -> RunRecord:
        """Make the record of a run whose plan a task makes at its site from what was sent there."""
        return cls(
            format=RECORD_FORMAT,
            run=run,
            versions=Versions(plugin=__version__),
            remote=RemoteBuild(archive=archive, complete=False),
            labels=((BUILD_LABEL, 1),),
            tasks=(PlannedTask(BUILD_TASK, BUILD_LABEL, 1),),
            final_labels=(),
        )

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.run.name

    @property
    def submit_path(self) -> str:
        """Submit directory."""
        return self.run.submit_path

    @property
    def staging_area(self) -> str:
        """Staging area of the run."""
        return self.run.staging_area

    @property
    def origin_directory(self) -> Path:
        """Submit directory of the first run; those of its restarts are below it."""
        return Path(self.origin_path or self.submit_path)

    @property
    def waits_for_site(self) -> bool:
        """Whether the plan is made at the site and has not come back."""
        return self.remote is not None and not self.remote.complete

    @property
    def staging_settings(self) -> StagingSettings:
        """How the files were staged."""
        return StagingSettings(
            area=self.staging_area,
            max_workers=self.staging.max_workers,
            group_permissions=self.staging.group_permissions,
        )

    def plan_summary(self) -> PlanSummary:
        """Return what a report needs to know about the plan."""
        counts: Counter[str] = Counter()
        for task in self.tasks:
            counts[task.label] += task.jobs
        labels = self.labels or tuple(counts.items())
        run = self.run
        jobs, tasks = sum(jobs for _, jobs in labels), len(self.tasks)
        attributes = RunAttributes(
            run.name, run.operator, run.project, run.campaign, run.payload, jobs, tasks, run.origin
        )
        return PlanSummary(
            labels=labels,
            tasks=self.tasks,
            final_labels=self.final_labels,
            attributes=attributes if run.name else None,
            site=run.site,
            path=run.submit_path,
            clusters=self.clusters,
            asked=self.asked,
        )

    def submitted(self, request_id: int, *, server: str, request_bytes: int | None = None) -> RunRecord:
        """Return the record of the same run, now submitted."""
        size = {} if request_bytes is None else {"request_bytes": request_bytes}
        return self.unsent()._with(request_id=request_id, server=server, submitted_at=_now(), **size)

    def intended(self, part: RequestPart, *, server: str) -> RunRecord:
        """Return the record of the same run, of which something is about to be sent."""
        return self._with(intention=Intention(server=server, begun_at=_now(), part=part))

    def unsent(self) -> RunRecord:
        """Return the record of the same run without an intention."""
        record = self._with(intention=None)
        record.model_fields_set.discard("intention")
        return record

    def prepared_again(self, directory: str | os.PathLike[str]) -> RunRecord:
        """Return the record with what an earlier one of the run in the directory knows of its submission."""
        try:
            before = read_record(Path(directory) / RECORD_NAME)
        except PandaBpsError:
            return self
        kept = ("intention", "request_id", "server", "submitted_at", "request_bytes")
        known = {key: getattr(before, key) for key in kept if key in before.model_fields_set}
        return self._with(**known) if before.name == self.name else self

    def complete(self, reply: BuildReply) -> RunRecord:
        """Return the record of a run planned at its site, with that plan."""
        assert self.remote is not None
        return self._with(
            run=self.run.model_copy(update={"staging_area": reply.staging_area}),
            remote=self.remote.model_copy(update={"complete": True}),
            # The task that made the plan is one of the request's transforms too.
            labels=((BUILD_LABEL, 1), *reply.labels),
            tasks=(PlannedTask(BUILD_TASK, BUILD_LABEL, 1), *reply.tasks),
            final_labels=reply.final_labels,
            clusters=reply.clusters,
            outputs=reply.outputs,
            staging=reply.staging,
        )

    def for_restart(self, plan: WorkflowPlan) -> RunRecord:
        """Return the record of the run that completes this one with a new plan."""
        kept = ("staging", "clusters", "messages", "outputs", "inputs", "sources", "remote")
        return RunRecord(
            **_plan_fields(plan),
            origin_path=os.fspath(self.origin_directory),
            restarts=self.restarts + 1,
            **{key: getattr(self, key) for key in kept if key in self.model_fields_set},
        )

    def restarted(self, request_id: int) -> RunRecord:
        """Return the record of the same run after its restart as another request."""
        return self._with(restarts=self.restarts + 1, restarted_as=request_id)

    def write(self, directory: str | os.PathLike[str] | None = None) -> Path:
        """Write the record into the submit directory, or another one; it is on disk then."""
        path = Path(self.submit_path if directory is None else directory) / RECORD_NAME
        write_text(path, [self.model_dump_json(indent=1, exclude_unset=True), "\n"], durable=True)
        return path

    def _with(self, **changes: Any) -> RunRecord:
        return self.model_copy(update=changes)


class BuildReply(RunRecord):
    """What the task of a remote build sends back: the record that it has made."""

    registration: str | None = None
    """What the run registers in Rucio, as it is written in a file of its own."""


def _plan_fields(plan: WorkflowPlan) -> dict[str, Any]:
    """Return the fields of a record that a plan determines."""
    return {
        "format": RECORD_FORMAT,
        "run": RunSection.model_validate(plan.run),
        "versions": Versions(plugin=plan.run.plugin_version, bps=plan.run.bps_version),
        "labels": plan.labels,
        "tasks": tuple(PlannedTask(t.name, t.label, len(t.jobs)) for t in (*plan.tasks, *plan.final)),
        "final_labels": tuple(sorted({task.label for task in plan.final})),
        "asked": {task.label: task.resources for task in (*plan.tasks, *plan.final)},
        "prepared_at": _now(),
        "request_id": None,
    }


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def read_record(directory: str | os.PathLike[str]) -> RunRecord:
    """Read the record in a submit directory, or in that of a file in it; raise
    `RunNotFoundError` if there is none.
    """
    return read_model(directory, RECORD_NAME, RunRecord, holder="a run on PanDA")


_Entry = TypeVar("_Entry", bound=BaseModel)


class IndexFile(Generic[_Entry]):
    """A list of the user's own runs or campaigns, one entry a line, that several processes write to.

    ``thing`` names what is listed, such as ``run``; the file is called by its plural.
    """

    def __init__(self, directory: str, thing: str, model: type[_Entry]) -> None:
        self._path = Path(directory) / f"{thing}s.jsonl"
        self._thing = thing
        self._model = model

    def append(self, entry: _Entry) -> None:
        """Add an entry; a failure to do so is a warning, not an error."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(self._path, "a", encoding="utf-8") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                stream.write(entry.model_dump_json() + "\n")
        except OSError as error:
            thing = self._thing
            _LOG.warning("The %s is not in the list of own %ss (%s): %s", thing, thing, self._path, error)

    def entries(self) -> Iterator[_Entry]:
        """Yield the entries, oldest first, without what cannot be read."""
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except OSError:
            return
        for line in lines:
            try:
                yield self._model.model_validate_json(line)
            except ValidationError:
                continue


class RunEntry(BaseModel):
    """A run in the list of own runs."""

    request_id: int
    server: str
    submit_path: str
    name: str = ""
    submitted_at: Moment | None = None


class RunIndex:
    """The list of the user's own runs on one server, across submit directories."""

    def __init__(self, directory: str, server: str) -> None:
        self._list = IndexFile(directory, "run", RunEntry)
        self._server = server

    def add(self, record: RunRecord) -> None:
        """Add a submitted run; a failure to do so is a warning, not an error."""
        assert record.request_id is not None
        entry = RunEntry(
            request_id=record.request_id,
            server=self._server,
            submit_path=record.submit_path,
            name=record.name,
            submitted_at=record.submitted_at,
        )
        self._list.append(entry)

    def entries(self) -> Iterator[RunEntry]:
        """Yield the runs, oldest first."""
        return (entry for entry in self._list.entries() if entry.server == self._server)

    def find(self, run: str | int) -> RunRecord | None:
        """Find the record of a run on this machine, without asking a server.

        A submit directory need not be in the list; one without a record, or
        with a damaged one, is a `PandaBpsError`.
        """
        text = str(run).strip()
        if names_directory(text):
            return read_record(text)
        request_id = int(text) if text.isdecimal() else 0
        for entry in reversed(list(self.entries())):
            if entry.request_id != request_id and (request_id or entry.name != text):
                continue
            try:
                record = read_record(entry.submit_path)
            except (PandaBpsError, OSError):
                continue
            if record.request_id == entry.request_id:
                return record
        return None
