"""Which job is this?  The jobs of a run as the files of the run know them: names in BPS, and the data IDs of
their quanta, for the jobs of PanDA and back.

Names are in the plan, one line a task; the quanta of a job are in its parameters or its command; data IDs are
in the quantum graph.  Nothing is read before somebody asks, and of long files only what is about the jobs in
question.
"""

from __future__ import annotations

__all__ = ["CALL", "JobQuery", "RunJobs", "shard_of"]

import contextlib
import json
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from lsst.pipe.base import QuantumGraph
from lsst.pipe.base.pipeline_graph import TaskImportMode
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.resources import ResourcePath

from ..edgenode import cmd_line_decoder as runner
from ..errors import PandaBpsError, PlanError, RunNotFoundError, SettingsError
from ..findings import did_you_mean
from ..plan.document import find_tasks
from ..plan.graph import GRAPH_KEY
from ..plan.model import JobPlan, TaskPlan
from ..staging.transfers import describe_cause
from ..status.evidence import RunEvidence
from ..status.records import DataId, JobRecord, describe_data
from .files import PARAMETERS_DIRECTORY, PLAN_NAME, find_resource
from .record import RunRecord, read_record

_LOG = logging.getLogger(__name__)

_MANY_QUANTA = 2000
"""From so many quanta on it is faster to read the data IDs of all."""

_MOST_COMPARED = 20_000
"""Most names among which one that is alike is looked for."""

_QUANTUM = re.compile("[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
CALL = re.compile(r"(\S+) \$\{IN/L\} (\S+) (\S+) (\S+)((?: --[\w-]+=\S+)*)")
"""The runner's arguments in the command of a task."""

_MORE = re.compile(r" and \d+ more$")


class JobQuery(NamedTuple):
    """Which jobs of a run are asked for; what is empty does not matter."""

    label: str = ""
    job: str = ""
    """Name in BPS, pseudo-input, PanDA's number or name."""

    data: str = ""
    """Values of dimensions, such as ``visit=260315001, detector=0|1``."""


class RunJobs:
    """The jobs of one run.

    Parameters
    ----------
    evidence : `~lsst.ctrl.bps.panda.status.evidence.RunEvidence`
        What the servers say of the run; its path is the submit directory.
    far : `bool`, optional
        Whether files that the submit directory does not have (of a run that was planned at its site) are
        read from a staging area that is not a directory.
    """

    def __init__(self, evidence: RunEvidence, *, far: bool = True) -> None:
        self._evidence = evidence
        self._far = far
        self._tasks: dict[str, TaskPlan] = {}
        self._calls: dict[str, runner.Arguments] = {}
        self._last: tuple[str, Any] = ("", None)

    # --- the question and its reverse ----------------------------------------

    def identify(self, jobs: Sequence[JobRecord]) -> tuple[JobRecord, ...]:
        """Add names in BPS and data IDs to jobs, as far as they are known here."""
        if not self._evidence.path or not jobs:
            return tuple(jobs)
        names = {item.workload_id: item.name for item in self._evidence.transforms or () if item.workload_id}
        found: list[tuple[TaskPlan, JobPlan] | None] = [None] * len(jobs)
        quanta: list[list[UUID]] = [[]] * len(jobs)
        data: Mapping[UUID, DataId] = {}
        try:
            tasks = self.tasks({names[job.task_id] for job in jobs if job.task_id in names}).values()
            planned = {(task.name, job.pseudo_input): (task, job) for task in tasks for job in task.jobs}
            # A PanDA job with several payloads is called by the first.
            found = [planned.get((names.get(job.task_id, ""), _MORE.sub("", job.name))) for job in jobs]
            quanta = [self.quanta(*place) if place else [] for place in found]
            if wanted := {quantum for some in quanta for quantum in some}:
                data = self._read_graph(tasks, wanted)
        except PandaBpsError as error:
            _LOG.info("Not all of run %d is known here: %s", self._evidence.request_id, error)
        return tuple(
            replace(job, bps_name=place[1].name, data=tuple(data[n] for n in some if n in data))
            if place
            else job
            for job, place, some in zip(jobs, found, quanta, strict=True)
        )

    def find(self, which: JobQuery) -> dict[str, frozenset[str]]:
        """Find planned jobs; return their pseudo-inputs by the names of their tasks.

        The result is empty if the plan has no such job, or is not at hand.  If no job has the data ID, a
        `RunNotFoundError` says what there is; a data ID that is not understood is a `SettingsError`.
        """
        label, job, data = which
        if data and not self._evidence.path:
            raise RunNotFoundError(
                f"Data IDs of run {self._evidence.request_id} are in its submit directory, which is not known"
                " on this machine to this user. Give the submit directory instead of the id."
            )
        wanted = self._quanta_with(_parse_data(data)) if data else None
        found: dict[str, set[str]] = {}
        for task in self._read_tasks(holding=job):
            for planned in task.jobs if label in ("", task.label) else ():
                if job in ("", planned.name, planned.pseudo_input) and (
                    wanted is None or not wanted.isdisjoint(self.quanta(task, planned))
                ):
                    found.setdefault(task.name, set()).add(planned.pseudo_input)
        if data and not found and not job:
            of_label = f" of label {label!r}" if label else ""
            raise RunNotFoundError(f"No job{of_label} has a quantum with {data}.")
        return {name: frozenset(inputs) for name, inputs in found.items()}

    def set_refused_aside(self, evidence: RunEvidence, wanted: str = "") -> RunEvidence:
        """Return evidence of the run whose attempts are those in which something ran, or which are asked for
        by PanDA's number or name of the job in BPS.
        """
        refused = self._find_refused(evidence.attempts)
        ran = tuple(
            job
            for job in evidence.attempts
            if job.panda_id not in refused or (wanted and wanted in (str(job.panda_id), job.job_name))
        )
        return replace(evidence, attempts=ran, refused=refused)

    def _find_refused(self, attempts: Iterable[JobRecord]) -> frozenset[int]:
        """Find the PanDA jobs in which nothing ran: an earlier attempt had ended with a code of
        ``retryUnlessExit``, and the runner gave it back.
        """
        ends: dict[tuple[int, str], list[tuple[int, int]]] = {}
        for job in sorted(attempts, key=lambda job: job.panda_id):
            for error in job.errors:
                if error.source == "payload":
                    ends.setdefault((job.task_id, job.name), []).append((error.code, job.panda_id))
        again = {key: found for key, found in ends.items() if len(found) > 1}
        names = {item.workload_id: item.name for item in self._evidence.transforms or ()}
        tasks = self.tasks({names[task_id] for task_id, _ in again if task_id in names}) if again else {}
        refused: set[int] = set()
        for (task_id, _), found in again.items():
            task = tasks.get(names.get(task_id, ""))
            call = self.call(task) if task is not None else None
            codes = call["retry-unless-exit"] if call is not None else ()
            ran = next((end for end in found if end[0] in codes), None)
            refused.update(number for code, number in found if ran and code == ran[0] and number > ran[1])
        return frozenset(refused)

    def suggest(self, job: str) -> str:
        """Return the end of a sentence that says that there is no such job: it asks for the one that is
        probably meant, if any.
        """
        names = [planned.name for task in self._read_tasks() for planned in task.jobs]
        return (did_you_mean(job, names) if len(names) <= _MOST_COMPARED else "") or "."

    def tasks(self, names: Collection[str]) -> dict[str, TaskPlan]:
        """Return tasks of the plan by their names, as far as it has them and can be read."""
        missing = [name for name in names if name not in self._tasks]
        try:
            self._tasks |= {task.name: task for task in self._read_tasks(missing)} if missing else {}
        except PlanError as error:
            _LOG.warning("%s", error)
        return {name: self._tasks[name] for name in names if name in self._tasks}

    # --- the plan and the parameters -----------------------------------------

    def planned(self, name: str) -> tuple[TaskPlan, JobPlan]:
        """Return a job of the plan by its name or pseudo-input, and its task."""
        for task in self._read_tasks(holding=name):
            for job in task.jobs:
                if name in (job.name, job.pseudo_input):
                    return task, job
        run = self._evidence.request_id
        if not self._evidence.path:
            raise RunNotFoundError(
                f"The plan of run {run} is in its submit directory, which is not known on this machine to "
                "this user. Give the submit directory instead of the id."
            )
        raise RunNotFoundError(f"The plan of run {run} has no job {name!r}{self.suggest(name)}")

    def parents(self, task: TaskPlan, job: JobPlan) -> list[tuple[TaskPlan, JobPlan]]:
        """Return the jobs of the plan on which one depends, with their tasks."""
        return [
            (each, each.jobs[ordinal - each.first])
            for each in (self._read_tasks() if job.parents else ())
            for ordinal in job.parents
            if ordinal in each.ordinals
        ]

    def _read_tasks(self, names: Collection[str] | None = None, *, holding: str = "") -> Iterator[TaskPlan]:
        """Read tasks of the plan; none if it is not at hand."""
        if not self._evidence.path:
            return
        path = Path(self._evidence.path, PLAN_NAME)
        try:
            with path.open("rb") as lines:
                yield from find_tasks(lines, names, holding=holding)
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PlanError(f"The plan {path} cannot be read: {error!r}.") from error

    @cached_property
    def _record(self) -> RunRecord:
        return read_record(self._evidence.path)

    def call(self, task: TaskPlan) -> runner.Arguments | None:
        """Read the arguments of the runner in the command of a task; `None` if another program runs there."""
        if task.name not in self._calls:
            call = CALL.search(task.command)
            words = [call[1], "", *call.group(2, 3, 4), *call[5].split()] if call else []
            try:
                self._calls[task.name] = runner.Arguments(words)
            except ValueError as error:
                _LOG.debug("The command of task %s is not understood: %s", task.name, error)
                return None
        return self._calls[task.name]

    def quanta(self, task: TaskPlan, job: JobPlan) -> list[UUID]:
        """List the quanta of a job: their ids are among its own values, or in the command if it is alone."""
        if (call := self.call(task)) is None:
            return []
        try:
            text = f"{job.pseudo_input} {self._values(call, job)} {call.command}"
        except (LookupError, TypeError, ValueError) as error:
            raise PlanError(
                f"The parameters of job {job.name} of {task.name} are damaged: {error!r}."
            ) from error
        return [UUID(found) for found in dict.fromkeys(_QUANTUM.findall(text))]

    def _values(self, arguments: runner.Arguments, job: JobPlan) -> object:
        """Return the values of a job that are in a shard or a map."""
        shards, maps = arguments["parameters"], dict(arguments.files)
        if shards is not None and shards[0]:
            shard = self._parsed(shard_of(arguments, job))
            return shard["rows"][job.order_id - shard["first"]]
        if shards is None and (name := maps.get(runner.ORDER_ID_MAP)):
            return self._parsed(name)[job.pseudo_input.partition(":")[0]][str(job.order_id)]
        if shards is None and (name := maps.get(runner.NAME_MAP)):
            return self._parsed(name)[job.pseudo_input]
        return ""

    def _parsed(self, name: str) -> Any:
        """Read a file of parameters; the last one is kept, since a job's neighbours are in it."""
        if self._last[0] != name:
            local = self._record.origin_directory / PARAMETERS_DIRECTORY / name
            place = self._place(name, local)
            try:
                self._last = (name, json.loads(place.read()))
            except Exception as error:  # each store has errors of its own
                raise PlanError(f"The parameters {place} cannot be read: {describe_cause(error)}.") from error
        return self._last[1]

    def _place(self, name: str, local: Path) -> ResourcePath:
        """Return where a file of the run can be read: in the submit directory, or in the staging area."""
        if local.is_file():
            return find_resource(str(local), directory=False)
        area = find_resource(self._record.staging_area, directory=True)
        if not (self._far or area.isLocal):
            raise RunNotFoundError(f"{local} does not exist, and {area} is not a directory of this machine.")
        return area.join(name)

    # --- the quantum graph ----------------------------------------------------

    def _read_graph(
        self, tasks: Iterable[TaskPlan], quanta: Collection[UUID] | None = None
    ) -> dict[UUID, DataId]:
        """Read the data IDs of some quanta, or of all, from the quantum graph that tasks name."""
        calls = filter(None, map(self.call, tasks))
        name = next((files[GRAPH_KEY] for call in calls if GRAPH_KEY in (files := dict(call.files))), "")
        if not name:
            raise RunNotFoundError(
                f"The plan in {self._evidence.path} names no quantum graph, so there are no data IDs."
            )
        place = self._place(name, self._record.origin_directory / name)
        try:
            read = _read_quanta if place.getExtension() == ".qg" else _read_old_quanta
            return dict(read(place, quanta))
        except Exception as error:  # each store, and each version of the format, has errors of its own
            raise PandaBpsError(
                f"The quantum graph {place} cannot be read: {describe_cause(error)}."
            ) from error

    def _quanta_with(self, wanted: Mapping[str, frozenset[str]]) -> set[UUID]:
        """Find the quanta with a data ID; if there are none, an error says what there is."""
        data = self._read_graph(self._read_tasks())
        found = {
            quantum
            for quantum, data_id in data.items()
            if all(str(data_id.get(name, "")) in values for name, values in wanted.items())
        }
        if found:
            return found
        run = f"run {self._evidence.request_id}"
        for name, values in wanted.items():
            known = {
                str(data_id[name]): {name: data_id[name]} for data_id in data.values() if name in data_id
            }
            if not known:
                names = dict.fromkeys(dimension for data_id in data.values() for dimension in data_id)
                raise RunNotFoundError(
                    f"No quantum of {run} has a {name}{did_you_mean(name, names) or '.'} Its data IDs have "
                    f"{', '.join(names) or 'no dimensions'}."
                )
            if values.isdisjoint(known):
                value = "|".join(sorted(values))
                raise RunNotFoundError(
                    f"No quantum of {run} has {name}={value}{did_you_mean(value, known) or '.'} There is "
                    f"{describe_data([*known.values()])}."
                )
        each = ", ".join(f"{name}={'|'.join(sorted(values))}" for name, values in wanted.items())
        raise RunNotFoundError(f"There are such values, but no quantum of {run} has all of {each}.")


def shard_of(arguments: runner.Arguments, job: JobPlan) -> str:
    """Return the name in the staging area of the file with the parameters of a job; empty if it has none."""
    label, count = arguments["parameters"] or ("", 0)
    return f"{runner.SHARD_FOLDER}/{label}/{job.order_id // count:06d}.json" if label else ""


def _parse_data(text: str) -> dict[str, frozenset[str]]:
    """Read the values of dimensions that are wanted."""
    wanted = {}
    for part in text.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        values = frozenset(word.strip().strip("'\"") for word in value.split("|"))
        if not (name and equals and all(values)):
            raise SettingsError(
                f"The data ID {text!r} is not understood at {part.strip()!r}. Write values of dimensions with"
                ' commas between them, such as "visit=260315001, detector=1"; | stands between alternatives.'
            )
        wanted[name] = values
    return wanted


def _read_quanta(place: ResourcePath, quanta: Collection[UUID] | None) -> Iterator[tuple[UUID, DataId]]:
    """Read data IDs of a quantum graph: a few quanta by their addresses, many as a whole."""
    with PredictedQuantumGraph.open(place, import_mode=TaskImportMode.DO_NOT_IMPORT) as graph:
        tasks = graph.pipeline_graph.tasks
        keys = {label: tuple(tasks[label].dimensions.data_coordinate_keys) for label in tasks}
        if quanta is None or len(quanta) > _MANY_QUANTA:
            graph.read_thin_graph()
            for label, some in graph.components.thin_graph.quanta.items():
                for each in some:
                    yield each.quantum_id, dict(zip(keys[label], each.data_coordinate, strict=True))
            return
        for quantum in quanta:
            # What looks like a quantum in a command need not be one.
            with contextlib.suppress(LookupError):
                graph.read_quantum_datasets([quantum])
        for one in graph.components.quantum_datasets.values():
            yield one.quantum_id, dict(zip(keys[one.task_label], one.data_coordinate, strict=True))


def _read_old_quanta(place: ResourcePath, quanta: Collection[UUID] | None) -> Iterator[tuple[UUID, DataId]]:
    """Read data IDs of a quantum graph in the format before."""
    for node in QuantumGraph.loadUri(place, nodes=quanta):
        assert node.quantum.dataId is not None
        yield node.nodeId, dict(node.quantum.dataId.mapping)
