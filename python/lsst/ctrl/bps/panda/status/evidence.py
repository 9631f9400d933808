"""Everything the servers replied about a run at one moment, and what follows from it: the count of its jobs
by label and state, its failures, and what else to ask for.

Everything that shows a run reads `RunEvidence`; each thing that follows is
worked out once, when it is first wanted.
"""

from __future__ import annotations

__all__ = [
    "UNRELEASED_LABEL",
    "PlanSummary",
    "RunEvidence",
    "RunTally",
    "count_build_job",
    "failures_of",
    "request_from_tasks",
    "tasks_by_request",
    "transforms_from_tasks",
]

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property

from lsst.ctrl.bps.wms_service import WmsStates

from ..plan.document import RunAttributes, parse_attributes
from ..plan.model import Resources
from ..plan.naming import BUILD_TASK, label_of_task, ordinal_of_task, run_of_task, split_server_name
from .bps_states import (
    Counts,
    add_counts,
    catch_up,
    count_task,
    is_aborted,
    is_ended,
    phase_of,
    quiet_seconds,
    refine_by_contents,
    run_state,
    sum_counts,
    was_killed,
    zero_counts,
)
from .job_errors import JobError, sort_errors
from .records import (
    ContentRecord,
    FileCounts,
    JobRecord,
    RequestRecord,
    TaskRecord,
    TransformRecord,
    log_url,
)
from .vocabulary import (
    CONTENT_STATUSES,
    ENDED_TASKS,
    JOB_STATUSES,
    NEVER_RAN,
    RUNNING_TASKS,
    TASK_STATUSES,
    TERMINAL_STATUSES,
    UNKNOWN_EXIT_CODE,
    ContentPhase,
    JobPhase,
    TransformPhase,
    is_running,
)

UNRELEASED_LABEL = "(unreleased)"
"""Stands for jobs that the request promises and whose tasks, hence labels, are not known yet."""


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """What was planned for a run, as far as a report needs it; from the record in the submit directory."""

    labels: tuple[tuple[str, int], ...]
    """Labels in pipeline order with their number of jobs, final ones last."""

    tasks: tuple[tuple[str, str, int], ...]
    """Name, label and number of jobs of each task that is to appear as a transform, final ones included."""

    final_labels: tuple[str, ...] = ()
    attributes: RunAttributes | None = None
    """The run's attributes in full length, if the source has them."""

    site: str = ""
    path: str = ""
    """Submit directory, if known."""

    clusters: tuple[str, ...] = ()
    """Labels that BPS's configuration has in its section ``cluster``."""

    asked: Mapping[str, Resources] = field(default_factory=dict)
    """What the jobs of each label ask for; PanDA stores other figures."""


@dataclass(frozen=True)
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

    attempts: tuple[JobRecord, ...] = ()
    """PanDA's jobs by task and number, all or those that did not succeed, if they were asked for; without
    ``refused``."""

    refused: frozenset[int] = frozenset()
    """PanDA jobs in which nothing ran, because an earlier attempt had ended with a code of
    ``retryUnlessExit``."""

    asked_at: datetime | None = None
    """When the servers were asked, with time zone."""

    problems: tuple[str, ...] = ()
    """What could not be fetched or was not understood, one text each."""

    successor: RunEvidence | None = None
    """The run that was submitted to complete this one, the last such."""

    chosen: frozenset[str] | None = None
    """Pseudo-inputs of the jobs that were asked for; `None` for all."""

    @property
    def request_id(self) -> int:
        """Number of the run."""
        return self.request.request_id

    @cached_property
    def attributes(self) -> RunAttributes:
        """The run's attributes, from the plan or else from the request."""
        if self.plan is not None and self.plan.attributes is not None:
            return self.plan.attributes
        request = self.request
        return parse_attributes(
            name=request.name,
            username=request.username,
            campaign=request.campaign,
            campaign_scope=request.campaign_scope,
            campaign_group=request.campaign_group,
        )

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.attributes.name or self.request.name

    @property
    def site(self) -> str:
        """Computing site, or the queue where no site is known."""
        planned = self.plan.site if self.plan is not None else ""
        return planned or self.request.site or self.request.queue

    @property
    def path(self) -> str:
        """Submit directory; empty if it is not known."""
        return self.plan.path if self.plan is not None else ""

    @cached_property
    def aborted(self) -> bool:
        """Whether the run was cancelled, see `~.bps_states.is_aborted`."""
        return is_aborted(self.request)

    @property
    def planned_tasks(self) -> int:
        """Number of transforms there will be, 0 if not known."""
        return len(self.plan.tasks) if self.plan is not None else self.attributes.tasks

    @cached_property
    def ended(self) -> bool:
        """Whether the run is over, see `~.bps_states.is_ended`."""
        quiet = quiet_seconds(self.request, self.transforms or (), self.asked_at)
        return is_ended(self.request, self.transforms, planned_tasks=self.planned_tasks, quiet=quiet)

    @cached_property
    def tally(self) -> RunTally:
        """State of the run and counts of its jobs."""
        return _tally_run(self)

    @cached_property
    def failures(self) -> tuple[JobRecord, ...]:
        """Failed jobs of those asked for, as far as contents tell, in the order of transforms."""
        return tuple(
            failure
            for transform in self.transforms or ()
            for failure in failures_of(
                transform,
                self.tally.labels.get(transform.transform_id, ""),
                self.contents.get(transform.transform_id, ()),
                aborted=self.aborted,
            )
            if self.chosen is None or failure.name in self.chosen
        )

    @cached_property
    def jobs_by_phase(self) -> dict[int, Counter[JobPhase]]:
        """Number of jobs by task and by what PanDA calls the latest attempt, as far as is known; a job that
        has finished once has finished.
        """
        latest: dict[tuple[int, str], JobRecord] = {}
        for job in self.jobs or ():
            key = (job.task_id, job.name or str(job.panda_id))
            other = latest.setdefault(key, job)
            if (job.finished, job.panda_id) > (other.finished, other.panda_id):
                latest[key] = job
        counts: dict[int, Counter[JobPhase]] = {}
        for job in latest.values():
            # A transform that has no task yet has number 0.
            if job.task_id:
                phase = JOB_STATUSES.get(job.status, JobPhase.WAITING)
                counts.setdefault(job.task_id, Counter())[phase] += 1
        return counts

    @cached_property
    def never_submitted(self) -> tuple[TransformRecord, ...]:
        """Transforms that ended without a task: iDDS could not hand them to PanDA."""
        return tuple(item for item in self.transforms or () if _never_ran(item, self.aborted))

    @property
    def running_jobs(self) -> int:
        """Number of PanDA jobs that run now, 0 if it is not known."""
        return sum(is_running(job.status) for job in self.jobs or ())

    @cached_property
    def tasks_by_id(self) -> dict[int, TaskRecord]:
        """PanDA's tasks by their number."""
        return {task.task_id: task for task in self.tasks}

    @property
    def final_labels(self) -> frozenset[str]:
        """Labels of the final job and of what comes after it, which a cancelled run still starts."""
        return frozenset(self.plan.final_labels if self.plan is not None else ("finalJob",))

    @property
    def outliving_jobs(self) -> dict[int, int]:
        """Number of PanDA jobs that run now by task, without those of final labels."""
        finals = {task for task, label in self.task_labels.items() if label in self.final_labels}
        running = (job.task_id for job in self.jobs or () if is_running(job.status))
        return dict(Counter(task for task in running if task not in finals))

    @property
    def task_labels(self) -> dict[int, str]:
        """Label of each PanDA task."""
        return {
            transform.workload_id: self.tally.labels.get(transform.transform_id, transform.name)
            for transform in self.transforms or ()
            if transform.workload_id
        }

    def mixed_transforms(self, *, all_states: bool) -> list[int]:
        """List the transforms whose jobs are in several states, with ``all_states`` whichever they are, else
        with held ones: only their contents tell which job is in which.

        Contents do not tell a job that waits for its parents from one that need not.
        """
        found = []
        for transform_id, counts in self.tally.by_transform.items():
            states = {
                WmsStates.READY if state is WmsStates.UNREADY else state
                for state, number in counts.items()
                if number
            }
            if len(states) > 1 and (all_states or WmsStates.HELD in states):
                found.append(transform_id)
        return found

    def with_attempts(self, attempts: tuple[JobRecord, ...], problems: Iterable[str]) -> RunEvidence:
        """Add attempts, and what could not be found out about them; what has been
        worked out stays, since nothing of it depends on them.
        """
        evidence = replace(self, attempts=attempts, problems=(*self.problems, *problems))
        vars(evidence).update({**vars(self), **vars(evidence)})
        return evidence

    @property
    def unexplained_transforms(self) -> tuple[int, ...]:
        """Transforms whose contents explain failures: those with failed jobs,
        and those that ended and left jobs undone; most failures first.

        A row of contents costs 3 kB, so a caller may fetch the first few only.
        """
        found = []
        for transform in self.transforms or ():
            if _never_ran(transform, self.aborted):
                found.append((-1, transform.transform_id))
                continue
            outputs = transform.outputs
            if outputs is None:
                continue
            failed = outputs.failed
            if phase_of(transform.status, self.aborted) is TransformPhase.OVER:
                failed += max(0, outputs.total - outputs.processed - outputs.missing - outputs.failed)
            if failed > 0:
                found.append((-failed, transform.transform_id))
        return tuple(transform_id for _, transform_id in sorted(found))

    @property
    def is_stuck(self) -> bool:
        """Whether a cancelled run waits for jobs that nobody will do.

        iDDS starts the final tasks of a run that was aborted.  One that needs
        jobs of the run to have succeeded then waits forever: the server leaves
        the outputs of killed jobs as they were, neither there nor failed.
        """
        if self.ended or not self.aborted:
            return False
        going = (WmsStates.READY, WmsStates.PENDING, WmsStates.RUNNING, WmsStates.HELD)
        by_label = self.tally.by_label
        waiting = {label for label, counts in by_label.items() if counts[WmsStates.UNREADY]}
        under_way = any(counts[state] for counts in by_label.values() for state in going)
        return not under_way and bool(waiting) and waiting < self.final_labels


@dataclass(frozen=True, slots=True)
class RunTally:
    """Counts of a run."""

    state: WmsStates
    total: Counts
    by_label: dict[str, Counts]
    """Counts by label in pipeline order."""

    labels: dict[int, str]
    """Label of each transform, by transform id."""

    by_transform: dict[int, Counts]

    @property
    def job_count(self) -> int:
        """Number of jobs of the run."""
        return sum(self.total.values())


def _tally_run(evidence: RunEvidence) -> RunTally:
    """Count a run's jobs.

    The state is derived from counters alone, so that it does not depend on
    whether contents or PanDA's jobs were fetched too.
    """
    ended, aborted = evidence.ended, evidence.aborted
    labels, expected = _expected_tasks(evidence)
    plain = evidence.jobs is None and not evidence.contents and not evidence.tasks
    coarse: dict[str, Counts] = {label: zero_counts() for label in labels}
    fine = coarse if plain else {label: zero_counts() for label in labels}
    by_transform: dict[int, Counts] = {}
    for label, transform, planned in expected:
        counts = count_task(transform, planned, aborted=aborted, ended=ended)
        add_counts(coarse[label], counts)
        if not plain:
            counts = _refine(evidence, transform, planned, counts)
            add_counts(fine[label], counts)
        if transform is not None:
            by_transform[transform.transform_id] = counts
    _add_missing(evidence, coarse)
    if not plain:
        _add_missing(evidence, fine)
    if aborted:
        _unprune((*fine.values(), *by_transform.values()))
    counted = sum_counts(coarse.values())
    return RunTally(
        state=run_state(evidence.request, counted, ended=ended),
        total=counted if plain else sum_counts(fine.values()),
        by_label=fine,
        labels={item.transform_id: label for label, item, _ in expected if item is not None},
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


def _expected_tasks(evidence: RunEvidence) -> tuple[list[str], list[tuple[str, TransformRecord | None, int]]]:
    """List labels in order, and each task with its transform and planned number of jobs (0 if not known)."""
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
    expected += [(item.label or label_of_task(item.name, run_name), item, 0) for item in others]
    labels += [label for label, _, _ in expected]
    return list(dict.fromkeys(labels)), expected


def _refine(evidence: RunEvidence, transform: TransformRecord | None, planned: int, counts: Counts) -> Counts:
    """Count a task again with contents and PanDA's jobs, where known."""
    if transform is None:
        return counts
    aborted, ended = evidence.aborted, evidence.ended
    contents = evidence.contents.get(transform.transform_id, ())
    task = evidence.tasks_by_id.get(transform.workload_id)
    phases = evidence.jobs_by_phase.get(transform.workload_id, Counter())
    if task is not None and not contents and not aborted and task.status not in ENDED_TASKS:
        transform = _without_retried(transform, task.failed)
    running = None
    if evidence.jobs is not None:
        counted = max(task.failed if task else 0, transform.outputs.failed if transform.outputs else 0)
        # PanDA books the end of a job that failed until it has counted it or made another attempt.
        running = phases[JobPhase.RUNNING] + max(0, phases[JobPhase.FAILED] - counted)
    if _never_ran(transform, aborted):
        # iDDS has mapped the jobs without counting them.
        planned = max(planned, len(contents))
    counts = count_task(transform, planned, aborted=aborted, ended=ended, running=running)
    refine_by_contents(counts, transform, contents, aborted=aborted)
    going = phase_of(transform.status, aborted) in (TransformPhase.OPEN, TransformPhase.COMPLETE)
    if going and not ended:
        finished = max(task.finished if task else 0, phases[JobPhase.FINISHED])
        failed = task.failed if task else 0
        catch_up(counts, finished, failed, phases[JobPhase.WAITING], running or 0, aborted=aborted)
    return counts


def _without_retried(transform: TransformRecord, failed: int) -> TransformRecord:
    """Count what iDDS calls failed beyond what PanDA has given up as released: it may be tried again."""
    outputs = transform.outputs
    if outputs is None or outputs.failed <= failed or transform.status in TERMINAL_STATUSES:
        return transform
    released = outputs.activated + outputs.failed - failed
    return replace(transform, outputs=replace(outputs, failed=failed, activated=released))


def _never_ran(transform: TransformRecord, aborted: bool) -> bool:
    if transform.workload_id or phase_of(transform.status, aborted) is not TransformPhase.OVER:
        return False
    outputs = transform.outputs or FileCounts()
    seen = (outputs.processed, outputs.failed, outputs.activated, outputs.preprocessing, outputs.processing)
    return not any(seen) and (not outputs.total or outputs.total > outputs.missing)


def _add_missing(evidence: RunEvidence, by_label: dict[str, Counts]) -> None:
    """Add jobs that are planned but not in any known task."""
    if evidence.plan is not None:
        planned = dict(evidence.plan.labels)
    else:
        known = sum(sum(counts.values()) for counts in by_label.values())
        missing = evidence.attributes.jobs - known
        planned = {UNRELEASED_LABEL: missing} if missing > 0 else {}
    finished = evidence.ended and evidence.request.status == "Finished"
    for label, number in planned.items():
        counts = by_label.setdefault(label, zero_counts())
        short = number - sum(counts.values())
        if evidence.transforms is None and short > 0:
            # Only the request was asked for.
            counts[WmsStates.SUCCEEDED if finished else WmsStates.UNKNOWN] += short
        elif short > 0:
            add_counts(counts, count_task(None, short, aborted=evidence.aborted, ended=evidence.ended))


def failures_of(
    transform: TransformRecord, label: str, contents: Iterable[ContentRecord], *, aborted: bool
) -> list[JobRecord]:
    """Find the failed jobs of a task: those that failed for good, then those
    that their ended task left undone.

    Jobs of an aborted run that were killed have not failed.
    """
    over = phase_of(transform.status, aborted) is TransformPhase.OVER
    failed, left = [], []
    for content in contents:
        if aborted and was_killed(content):
            continue
        phase = CONTENT_STATUSES.get(content.status)
        if phase is ContentPhase.FAILED or (over and phase is ContentPhase.RETRIED):
            failed.append(_failure_from(content, transform, label, sort_errors(content.errors)))
        elif over and phase is ContentPhase.UNFINISHED:
            text = f"its task ended as {transform.status} before the job did"
            if _never_ran(transform, aborted):
                text = NEVER_RAN.format(transform.name)
            error = JobError("task", UNKNOWN_EXIT_CODE, text)
            left.append(_failure_from(content, transform, label, (error,)))
    return failed + left


def _failure_from(
    content: ContentRecord, transform: TransformRecord, label: str, errors: tuple[JobError, ...]
) -> JobRecord:
    return JobRecord(
        panda_id=content.panda_id,
        task_id=transform.workload_id,
        status="failed",
        label=label,
        name=content.name,
        errors=errors,
        log_url=log_url(content.pilot_id),
    )


_COUNTS = {
    "Finished": FileCounts(total=1, processed=1),
    "SubFinished": FileCounts(total=1, failed=1),
    "Failed": FileCounts(total=1, failed=1),
    "Expired": FileCounts(total=1, failed=1),
}


def count_build_job(transform: TransformRecord, *, aborted: bool = False) -> TransformRecord:
    """Give the transform of a build task counters that follow its status; others are returned as they are.

    A run is over when its build fails by itself, so the one of an aborted run was killed.
    """
    if transform.name != BUILD_TASK or (transform.outputs is not None and transform.outputs.total):
        return transform
    going = FileCounts(total=1) if transform.status in TERMINAL_STATUSES else FileCounts(total=1, activated=1)
    counts = _COUNTS.get(transform.status, going)
    return replace(transform, outputs=FileCounts(total=1) if aborted and counts.failed else counts)


def tasks_by_request(tasks: Iterable[TaskRecord]) -> dict[int, tuple[TaskRecord, ...]]:
    """Group PanDA's tasks by the request id of their runs; those that belong to none are left out."""
    groups: dict[int, list[TaskRecord]] = {}
    for task in tasks:
        if task.request_id:
            groups.setdefault(task.request_id, []).append(task)
    return {request_id: tuple(group) for request_id, group in groups.items()}


def transforms_from_tasks(tasks: Iterable[TaskRecord]) -> tuple[TransformRecord, ...]:
    """Make transforms of the tasks of one run, by id: one call to PanDA gives the tasks of many runs with
    their counts, where iDDS would be asked for each run with 4 kB a task.

    Tasks whose names do not end in ``_<request>_<transform>`` are left out.  iDDS may submit one work twice;
    of several tasks of a transform the one with most jobs done counts, then the first.
    """
    found: dict[int, TransformRecord] = {}
    for task in sorted(tasks, key=lambda task: (-task.finished, task.task_id)):
        name, transform_id = split_server_name(task.name, task.request_id)
        if transform_id and transform_id not in found:
            found[transform_id] = _transform_from(task, transform_id, name)
    return tuple(found[transform_id] for transform_id in sorted(found))


def _transform_from(task: TaskRecord, transform_id: int, name: str) -> TransformRecord:
    running = task.status in RUNNING_TASKS
    rest = max(0, task.total - task.finished - task.failed - task.missing)
    return TransformRecord(
        request_id=task.request_id,
        transform_id=transform_id,
        name=name,
        status=TASK_STATUSES.get(task.status, "Transforming"),
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
    """Make a request of the tasks of one run, at least one, where iDDS does not have it.

    Its name is what the names of tasks tell, and its status is empty, that is, not known.
    """
    first = tasks[0]
    return RequestRecord(
        request_id=first.request_id,
        name=run_of_task(split_server_name(first.name, first.request_id)[0]),
        status="",
        username=first.username,
        site=first.site,
        created_at=min((task.created_at for task in tasks if task.created_at), default=None),
        updated_at=max((task.modified_at for task in tasks if task.modified_at), default=None),
    )
