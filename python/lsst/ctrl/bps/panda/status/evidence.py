"""All replies about a run at one moment, and the count of its jobs by label and state.

It puts together the request, its transforms and what was planned, with the
tables of `~.states`.

One call to PanDA gives the tasks of many runs with their counts, where iDDS
would be asked for each run with 4 kB a task.
"""

from __future__ import annotations

__all__ = [
    "RunEvidence",
    "RunTally",
    "UNRELEASED_LABEL",
    "count_build_job",
    "request_from_tasks",
    "tally_run",
    "tasks_by_request",
    "transforms_from_tasks",
    "waits_in_vain",
]

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from lsst.ctrl.bps.wms_service import WmsStates

from ..plan.naming import BUILD_TASK, label_of_task, ordinal_of_task, run_of_task, split_server_name
from ..plan.run_attributes import RunAttributes, parse_attributes
from .planned import PlanSummary
from .records import ContentRecord, FileCounts, JobRecord, RequestRecord, TaskRecord, TransformRecord
from .states import (
    TERMINAL,
    Counts,
    count_task,
    is_aborted,
    is_ended,
    no_jobs,
    quiet_seconds,
    refine_by_contents,
    run_state,
    running_by_task,
)

UNRELEASED_LABEL = "(unreleased)"
"""Stands for jobs that the request promises and whose tasks, hence labels,
are not known yet."""


@dataclass(frozen=True, slots=True)
class RunEvidence:
    """All that was found out about a run; only the request is a must."""

    request: RequestRecord
    transforms: tuple[TransformRecord, ...] | None = None
    """`None` if they were not asked for."""

    plan: PlanSummary | None = None
    """From the run record, where it could be read."""

    contents: Mapping[int, tuple[ContentRecord, ...]] = field(default_factory=dict)
    """Contents by transform id, of as many transforms as were asked for."""

    tasks: tuple[TaskRecord, ...] = ()
    """PanDA's tasks of the run, if it was asked."""

    jobs: tuple[JobRecord, ...] | None = None
    """PanDA's jobs that may be running; `None` if it was not asked."""

    asked_at: datetime | None = None
    """When the servers were asked, with time zone."""

    problems: tuple[str, ...] = ()
    """What could not be fetched or was not understood, one text each."""

    @property
    def attributes(self) -> RunAttributes:
        """The run's attributes, from the plan or else from the request."""
        if self.plan is not None and self.plan.attributes is not None:
            return self.plan.attributes
        return parse_attributes(self.request)

    @property
    def planned_tasks(self) -> int:
        """Number of transforms there will be, 0 if not known."""
        return _planned_tasks(self, self.attributes)

    @property
    def ended(self) -> bool:
        """Whether the run is over, see `~.states.is_ended`."""
        return _has_ended(self, self.attributes)


@dataclass(frozen=True, slots=True)
class RunTally:
    """Counts of a run."""

    state: WmsStates
    ended: bool
    by_label: dict[str, Counts]
    """Counts by label in pipeline order."""

    labels: dict[int, str]
    """Label of each transform, by transform id."""

    attributes: RunAttributes
    by_transform: dict[int, Counts] = field(default_factory=dict)
    """Counts of each transform, by its id."""

    @property
    def total(self) -> Counts:
        """Counts of the whole run."""
        return _sum_of(self.by_label)

    @property
    def job_count(self) -> int:
        """Number of jobs of the run."""
        return sum(sum(counts.values()) for counts in self.by_label.values())


def tally_run(evidence: RunEvidence) -> RunTally:
    """Count a run's jobs.

    Parameters
    ----------
    evidence : `RunEvidence`
        What is known of the run.

    Returns
    -------
    tally : `RunTally`
        Its state, and the counts of each label.  The state is derived from
        counters alone, so that it does not depend on whether contents or
        PanDA's jobs were fetched too.
    """
    attributes = evidence.attributes
    ended = _has_ended(evidence, attributes)
    labels, expected = _expected_tasks(evidence)
    plain = evidence.jobs is None and not evidence.contents
    coarse: dict[str, Counts] = {label: no_jobs() for label in labels}
    fine = coarse if plain else {label: no_jobs() for label in labels}
    by_transform: dict[int, Counts] = {}
    for label, transform, planned in expected:
        counts = _count(evidence, transform, planned, ended)
        _add(coarse, label, counts)
        if not plain:
            counts = _refine(evidence, transform, planned, ended, counts)
            _add(fine, label, counts)
        if transform is not None:
            by_transform[transform.transform_id] = counts
    _add_missing(evidence, attributes, ended, coarse)
    if not plain:
        _add_missing(evidence, attributes, ended, fine)
    if is_aborted(evidence.request):
        _unprune((*fine.values(), *by_transform.values()))
    return RunTally(
        state=run_state(evidence.request, _sum_of(coarse), ended=ended),
        ended=ended,
        by_label=fine,
        labels={item.transform_id: label for label, item, _ in expected if item is not None},
        attributes=attributes,
        by_transform=by_transform,
    )


def _unprune(every: Iterable[Counts]) -> None:
    """Call pruned jobs of a cancelled run deleted where no job has failed:
    then it was killed jobs that they waited for.
    """
    every = tuple(every)
    if any(counts[WmsStates.FAILED] for counts in every):
        return
    for counts in every:
        counts[WmsStates.DELETED] += counts[WmsStates.PRUNED]
        counts[WmsStates.PRUNED] = 0


def waits_in_vain(evidence: RunEvidence, tally: RunTally) -> bool:
    """Tell whether a cancelled run waits for jobs that nobody will do.

    iDDS starts the final tasks of a run that was aborted.  One that wants
    jobs of the run to have succeeded then waits for good: the server leaves
    the outputs of killed jobs as they were, neither there nor failed.

    Parameters
    ----------
    evidence : `RunEvidence`
        What is known of the run.
    tally : `RunTally`
        Its counts.
    """
    finals = set(evidence.plan.final_labels) if evidence.plan is not None else set()
    if tally.ended or not is_aborted(evidence.request):
        return False
    going = (WmsStates.READY, WmsStates.PENDING, WmsStates.RUNNING, WmsStates.HELD)
    waiting = {label for label, counts in tally.by_label.items() if counts[WmsStates.UNREADY]}
    under_way = any(counts[state] for counts in tally.by_label.values() for state in going)
    return not under_way and bool(waiting) and waiting < finals


def _planned_tasks(evidence: RunEvidence, attributes: RunAttributes) -> int:
    return len(evidence.plan.tasks) if evidence.plan is not None else attributes.tasks


def _has_ended(evidence: RunEvidence, attributes: RunAttributes) -> bool:
    quiet = quiet_seconds(evidence.request, evidence.transforms or (), evidence.asked_at)
    planned = _planned_tasks(evidence, attributes)
    return is_ended(evidence.request, evidence.transforms, planned_tasks=planned, quiet=quiet)


def _sum_of(by_label: Mapping[str, Counts]) -> Counts:
    total = no_jobs()
    for counts in by_label.values():
        _increase(total, counts)
    return total


def _increase(total: Counts, counts: Counts) -> None:
    for state, number in counts.items():
        if number:
            total[state] += number


def _expected_tasks(
    evidence: RunEvidence,
) -> tuple[list[str], list[tuple[str, TransformRecord | None, int]]]:
    """List labels in order, and each task with its transform and its planned
    number of jobs (0 if not known).
    """
    run_name = evidence.request.name
    left = {item.transform_id: item for item in evidence.transforms or ()}
    labels: list[str] = []
    expected: list[tuple[str, TransformRecord | None, int]] = []
    if evidence.plan is not None:
        labels += [label for label, _ in evidence.plan.labels]
    if evidence.plan is not None and evidence.transforms is not None:
        ids = {item.name: item.transform_id for item in evidence.transforms}
        for name, label, jobs in evidence.plan.tasks:
            expected.append((label, left.pop(ids.get(name, -1), None), jobs))
    # A transform that no plan names is still work that runs.
    others = sorted(left.values(), key=lambda item: (ordinal_of_task(item.name, run_name), item.transform_id))
    expected += [(label_of_task(item.name, run_name), item, 0) for item in others]
    labels += [label for label, _, _ in expected]
    return list(dict.fromkeys(labels)), expected


def _count(evidence: RunEvidence, transform: TransformRecord | None, planned: int, ended: bool) -> Counts:
    return count_task(transform, planned, aborted=is_aborted(evidence.request), ended=ended)


def _refine(
    evidence: RunEvidence, transform: TransformRecord | None, planned: int, ended: bool, counts: Counts
) -> Counts:
    """Count a task again with contents and PanDA's jobs, where known."""
    if transform is None:
        return counts
    aborted = is_aborted(evidence.request)
    if evidence.jobs is not None:
        running = running_by_task(evidence.jobs).get(transform.workload_id, 0)
        counts = count_task(transform, planned, aborted=aborted, ended=ended, running=running)
    if contents := evidence.contents.get(transform.transform_id):
        counts = dict(counts)
        refine_by_contents(counts, transform, contents, aborted=aborted)
    return counts


def _add(by_label: dict[str, Counts], label: str, counts: Counts) -> None:
    total = by_label.get(label)
    if total is None:
        total = by_label[label] = no_jobs()
    _increase(total, counts)


def _add_missing(
    evidence: RunEvidence, attributes: RunAttributes, ended: bool, by_label: dict[str, Counts]
) -> None:
    """Add jobs that are planned but not in any known task."""
    aborted = is_aborted(evidence.request)
    if evidence.plan is not None:
        planned = dict(evidence.plan.labels)
    else:
        known = sum(sum(counts.values()) for counts in by_label.values())
        missing = attributes.jobs - known
        planned = {UNRELEASED_LABEL: missing} if missing > 0 else {}
    for label, number in planned.items():
        counts = by_label.setdefault(label, no_jobs())
        short = number - sum(counts.values())
        if evidence.transforms is None and short > 0:
            counts[_unasked_state(evidence, ended)] += short
        elif short > 0:
            _add(by_label, label, count_task(None, short, aborted=aborted, ended=ended))


def _unasked_state(evidence: RunEvidence, ended: bool) -> WmsStates:
    """Give the state of jobs when only the request was asked for."""
    if ended and evidence.request.status == "Finished":
        return WmsStates.SUCCEEDED
    return WmsStates.UNKNOWN


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


# PanDA's task status as iDDS translates it (DomaPanDAWork); others go on.
_STATUSES = {
    "done": "Finished",
    "finished": "SubFinished",
    "failed": "Failed",
    "exhausted": "Failed",
    "broken": "Failed",
    "aborted": "Cancelled",
    "toabort": "Cancelling",
    "aborting": "Cancelling",
    "paused": "Suspended",
}
_RUNNING = frozenset({"running", "scouting", "prepared", "merging"})


def tasks_by_request(tasks: Iterable[TaskRecord]) -> dict[int, tuple[TaskRecord, ...]]:
    """Sort tasks by run.

    Parameters
    ----------
    tasks : `~collections.abc.Iterable` [`TaskRecord`]
        PanDA's tasks, of any runs.

    Returns
    -------
    groups : `dict` [`int`, `tuple` [`TaskRecord`, ...]]
        Tasks by request id; those that belong to none are left out.
    """
    groups: dict[int, list[TaskRecord]] = {}
    for task in tasks:
        if task.request_id:
            groups.setdefault(task.request_id, []).append(task)
    return {request_id: tuple(group) for request_id, group in groups.items()}


def transforms_from_tasks(tasks: Iterable[TaskRecord]) -> tuple[TransformRecord, ...]:
    """Make transforms of the tasks of one run.

    Parameters
    ----------
    tasks : `~collections.abc.Iterable` [`TaskRecord`]
        Tasks whose names end in ``_<request>_<transform>``; others are left
        out.  Of several tasks with one name the first counts, which is the
        one iDDS knows.

    Returns
    -------
    transforms : `tuple` [`TransformRecord`, ...]
        One for each name.
    """
    found: dict[int, TransformRecord] = {}
    for task in sorted(tasks, key=lambda task: task.task_id):
        name, transform_id = split_server_name(task.name)
        if transform_id and transform_id not in found:
            found[transform_id] = _transform_from(task, transform_id, name)
    return tuple(found[transform_id] for transform_id in sorted(found))


def _transform_from(task: TaskRecord, transform_id: int, name: str) -> TransformRecord:
    running = task.status in _RUNNING
    rest = max(0, task.total - task.finished - task.failed - task.missing)
    return TransformRecord(
        request_id=task.request_id,
        transform_id=transform_id,
        name=name,
        status=_STATUSES.get(task.status, "Transforming"),
        processing_status="Running" if running else "Submitted",
        workload_id=task.task_id,
        outputs=FileCounts(
            total=task.total,
            processed=task.finished,
            failed=task.failed,
            missing=task.missing,
            new=0 if running else rest,
            activated=rest if running else 0,
        ),
        updated_at=task.modified_at,
    )


def request_from_tasks(tasks: Sequence[TaskRecord]) -> RequestRecord:
    """Make a request of the tasks of one run, where iDDS does not answer.

    Parameters
    ----------
    tasks : `~collections.abc.Sequence` [`TaskRecord`]
        The run's tasks, at least one.

    Returns
    -------
    request : `RequestRecord`
        Its name as far as task names tell; its status is empty, that is, not
        known.
    """
    first = tasks[0]
    name = run_of_task(split_server_name(first.name)[0])
    return RequestRecord(
        request_id=first.request_id,
        name=name,
        status="",
        username=first.username,
        site=first.site,
        created_at=min((task.created_at for task in tasks if task.created_at), default=None),
        updated_at=max((task.modified_at for task in tasks if task.modified_at), default=None),
    )
