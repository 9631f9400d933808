"""Whatever the servers say, counts add up, no finished job is lost, and
report and status agree.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
from collections import Counter
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st
from lsst.ctrl.bps.bps_reports import compile_code_summary, compile_job_summary
from lsst.ctrl.bps.report import display_report
from lsst.ctrl.bps.wms_service import WmsStates

from lsst.ctrl.bps.panda.plan.document import RunAttributes, render_attributes
from lsst.ctrl.bps.panda.plan.model import Accounting, JobPlan, Placement, Resources, TaskPlan
from lsst.ctrl.bps.panda.report import LISTED_JOBS, get_status_of, make_run_list, make_run_report
from lsst.ctrl.bps.panda.status.bps_states import count_task
from lsst.ctrl.bps.panda.status.evidence import UNRELEASED_LABEL, PlanSummary, RunEvidence
from lsst.ctrl.bps.panda.status.job_errors import JobError
from lsst.ctrl.bps.panda.status.records import (
    ContentRecord,
    FileCounts,
    JobRecord,
    RequestRecord,
    TaskRecord,
    TransformRecord,
)
from lsst.ctrl.bps.panda.status.vocabulary import (
    ACTIVE_TASKS,
    CONTENT_STATUSES,
    PROCESSING_STATUSES,
    REQUEST_STATUSES,
    TERMINAL_STATUSES,
    TRANSFORM_STATUSES,
)

RUN = "u_tester_run_20261120T000000Z"
START = datetime(2026, 11, 20, tzinfo=UTC)
LABELS = ("isr", "measure_2_stars", "coadd_3", "coadd_4", "finalJob")
FINAL = {WmsStates.SUCCEEDED, WmsStates.FAILED, WmsStates.DELETED}

number = st.integers(0, 7)
any_number = st.integers(-3, 2**14)
strange = st.sampled_from(["", "Nonsense", "99"])


def counts_strategy(values: st.SearchStrategy[int]) -> st.SearchStrategy[FileCounts]:
    return st.builds(FileCounts, *[values] * 8)


@st.composite
def consistent_counts(draw: st.DrawFn) -> FileCounts:
    """Counters as iDDS makes them: the parts add up to the total."""
    parts = [draw(number) for _ in range(7)]
    return FileCounts(sum(parts), *parts)


def transforms_of(
    counts: st.SearchStrategy[FileCounts], names: st.SearchStrategy[str]
) -> st.SearchStrategy[TransformRecord]:
    return st.builds(
        TransformRecord,
        request_id=st.just(7),
        transform_id=st.integers(1, 9),
        name=names,
        status=st.sampled_from(list(TRANSFORM_STATUSES)) | strange,
        processing_status=st.sampled_from(list(PROCESSING_STATUSES)) | strange,
        workload_id=st.integers(0, 4),
        outputs=st.none() | counts,
        inputs=st.none() | counts,
        updated_at=st.none() | st.just(START),
    )


task_names = st.builds(
    lambda nn, label, chunk: f"{RUN}_{nn:02d}_{label}_{chunk:02d}",
    st.integers(1, 6),
    st.sampled_from(LABELS),
    st.integers(1, 3),
)
requests = st.builds(
    RequestRecord,
    request_id=st.just(7),
    name=st.just(RUN),
    status=st.sampled_from(list(REQUEST_STATUSES)) | strange,
    substatus=st.sampled_from(["New", "ToCancel", ""]),
    campaign_group=st.sampled_from(
        ["", render_attributes(RunAttributes(RUN, "ann", "P", "C", "pay", 40, 5, 3))["campaign_group"]]
    ),
    updated_at=st.none() | st.just(START),
)
errors = st.builds(
    JobError,
    st.sampled_from(["payload", "pilot", "task buffer", "odd {0}"]),
    st.integers(-5, 1400),
    st.text(),
)
contents = st.builds(
    ContentRecord,
    transform_id=st.just(0),
    name=st.text(max_size=9),
    status=st.sampled_from(list(CONTENT_STATUSES)) | strange,
    panda_id=st.integers(0, 9),
    job_status=st.sampled_from(["", "failed", "cancelled", "closed", "finished"]),
    errors=st.lists(errors, max_size=2).map(tuple),
    pilot_id=st.sampled_from(["", "unknown|PR|1", "http://log/{x}/pilotlog.txt|PR|1"]),
)
jobs = st.builds(
    JobRecord,
    st.integers(1, 9),
    st.integers(0, 4),
    st.sampled_from(["running", "sent", "holding", "finished"]),
)


@st.composite
def plans(draw: st.DrawFn) -> PlanSummary | None:
    if draw(st.booleans()):
        return None
    names = draw(st.lists(task_names, unique=True, max_size=6))
    tasks = tuple((name, name.split(f"{RUN}_")[1][3:-3], draw(number)) for name in names)
    totals: dict[str, int] = {}
    for _, label, count in tasks:
        totals[label] = totals.get(label, 0) + count
    return PlanSummary(tuple(totals.items()), tasks)


CONSISTENT = consistent_counts()


@st.composite
def evidences(draw: st.DrawFn, counts: st.SearchStrategy[FileCounts] = CONSISTENT) -> RunEvidence:
    found = draw(
        st.none()
        | st.lists(transforms_of(counts, task_names), max_size=6, unique_by=lambda item: item.transform_id)
    )
    rows = {
        item.transform_id: tuple(
            dataclasses.replace(content, transform_id=item.transform_id)
            for content in draw(st.lists(contents, max_size=4))
        )
        for item in found or ()
        if draw(st.booleans())
    }
    return RunEvidence(
        request=draw(requests),
        transforms=None if found is None else tuple(found),
        plan=draw(plans()),
        contents=rows,
        jobs=draw(st.none() | st.lists(jobs, max_size=5).map(tuple)),
        asked_at=draw(st.sampled_from([None, START, START + timedelta(hours=1)])),
        problems=tuple(draw(st.lists(st.text(), max_size=2))),
    )


@given(evidences())
def test_counts_are_whole_and_add_up(evidence):
    report = make_run_report(evidence)
    summary = report.job_summary
    for counts in [report.job_state_counts, *summary.values()]:
        assert set(counts) == set(WmsStates)
        assert min(counts.values()) >= 0
    for state in WmsStates:
        assert report.job_state_counts[state] == sum(counts[state] for counts in summary.values())
    assert report.total_number_jobs == sum(report.job_state_counts.values())
    assert report.run_summary == ";".join(f"{label}:{sum(c.values())}" for label, c in summary.items())


@given(evidences())
def test_planned_jobs_are_all_there(evidence):
    total = make_run_report(evidence).total_number_jobs
    seen = sum(item.outputs.total for item in evidence.transforms or () if item.outputs)
    if evidence.plan is None:
        assert total == max(seen, evidence.attributes.jobs)
        return
    by_label = evidence.tally.by_label
    for label, count in evidence.plan.labels:
        assert sum(by_label[label].values()) >= count
    assert total >= max(seen, sum(count for _, count in evidence.plan.labels))
    assert UNRELEASED_LABEL not in by_label


@given(evidences())
def test_no_finished_job_is_lost_and_none_invented(evidence):
    tally = evidence.tally
    finished = sum(item.outputs.processed for item in evidence.transforms or () if item.outputs)
    ahead = sum(job.finished for job in evidence.jobs or ())
    if evidence.transforms is not None:
        assert finished <= tally.total[WmsStates.SUCCEEDED] <= finished + ahead


class Planned:
    """The files of a run, which have every planned job."""

    def __init__(self, evidence: RunEvidence) -> None:
        planned = evidence.plan.tasks if evidence.plan else ()
        self.names = {name: [f"job {name} {n}" for n in range(jobs)] for name, _, jobs in planned}

    def tasks(self, names):
        return {name: make_task(name, self.names[name]) for name in names if name in self.names}

    def identify(self, jobs):
        return jobs


def make_task(name: str, names: list[str]) -> TaskPlan:
    jobs = tuple(JobPlan(job, n, f"{name}:{n}") for n, job in enumerate(names))
    accounting, resources = Accounting("", 0, "", "", "", ""), Resources(1, 1, 1.0, 1, 0, 1, 1)
    return TaskPlan(name, "", 1, 0, "", Placement("", "", ""), resources, accounting, 1, jobs)


@given(evidences())
def test_as_many_jobs_are_listed_in_each_state_as_are_counted(evidence):
    planned = Planned(evidence)
    for report in (make_run_report(evidence), make_run_report(evidence, known=planned)):
        by_label: dict[str, Counter[WmsStates]] = {label: Counter() for label in report.job_summary}
        for job in report.jobs:
            by_label[job.label][job.state] += 1
        assert by_label == {label: +Counter(counts) for label, counts in report.job_summary.items()}
        assert Counter(job.state for job in report.jobs) == +Counter(report.job_state_counts)
    assert {name for names in planned.names.values() for name in names} <= {job.name for job in report.jobs}


@given(evidences(counts_strategy(any_number)))
@settings(max_examples=min(40, settings().max_examples))
def test_of_a_large_run_some_jobs_are_listed(evidence):
    report = make_run_report(evidence)
    listed = Counter(job.state for job in report.jobs)
    if report.total_number_jobs <= LISTED_JOBS:
        assert listed == +Counter(report.job_state_counts)
        return
    assert len(report.jobs) <= LISTED_JOBS
    assert listed <= Counter(report.job_state_counts)
    others = {job.state for job in report.jobs if job.label != "finalJob"}
    assert others <= {WmsStates.FAILED, WmsStates.HELD}


@given(evidences(), evidences())
def test_status_and_report_agree_whatever_was_fetched_besides(evidence, other):
    state = make_run_report(evidence).state
    assert get_status_of(evidence)[0] is state
    (listed,) = make_run_list([evidence])
    assert listed.state is state
    bare = dataclasses.replace(evidence, contents={}, jobs=None, problems=())
    assert get_status_of(bare)[0] is state
    richer = dataclasses.replace(evidence, jobs=other.jobs, tasks=other.tasks)
    assert get_status_of(richer)[0] is state


@given(evidences())
def test_a_run_is_not_called_over_before_it_is(evidence):
    tally = evidence.tally
    assert (tally.state in FINAL) <= evidence.ended
    if evidence.ended:
        assert evidence.request.status in TERMINAL_STATUSES
        assert all(item.status in TERMINAL_STATUSES for item in evidence.transforms or ())
        assert tally.state not in (WmsStates.RUNNING, WmsStates.PENDING, WmsStates.HELD)
    if tally.state is WmsStates.SUCCEEDED and evidence.transforms and evidence.plan:
        states = set(tally.total) - {WmsStates.SUCCEEDED, WmsStates.UNKNOWN}
        assert not any(tally.total[state] for state in states)


@given(evidences())
def test_an_exit_code_for_each_failure(evidence):
    report = make_run_report(evidence)
    assert set(report.exit_code_summary) == set(report.job_summary)
    for label, codes in report.exit_code_summary.items():
        assert len(codes) == report.job_summary[label][WmsStates.FAILED]
        assert all(type(code) is int for code in codes)


@given(evidences(counts_strategy(any_number)))
@settings(max_examples=min(40, settings().max_examples))
def test_bps_prints_anything(evidence):
    """Counters that contradict each other, texts with braces."""
    report = make_run_report(evidence, monitor_url="https://monitor")
    assert min(report.job_state_counts.values()) >= 0
    warnings = compile_job_summary(report) + compile_code_summary(report)
    assert not [line for line in warnings if "differs" in line]
    out = io.StringIO()
    display_report([report], warnings, is_detailed=True, return_exit_codes=True, file=out)
    assert RUN in out.getvalue()


@given(evidences())
def test_contents_are_asked_for_where_jobs_failed(evidence):
    """Without their contents the codes of failed jobs could not be told."""
    asked = set(evidence.unexplained_transforms)
    tally = dataclasses.replace(evidence, contents={}).tally
    for item in evidence.transforms or ():
        if item.outputs and item.outputs.failed:
            assert item.transform_id in asked
    assert asked <= set(tally.labels)


def test_every_status_with_every_status():
    """All request statuses, transform statuses and some counters, exhaustively."""
    shapes = (
        None,
        FileCounts(),
        FileCounts(total=4, new=4),
        FileCounts(total=4, processed=1, new=1, activated=2),
        FileCounts(total=4, processed=1, failed=1, missing=1, activated=1),
        FileCounts(total=4, processed=4),
        FileCounts(total=4, processed=6, failed=4),
    )
    substatuses = ("New", "ToCancel")
    cases = itertools.product(REQUEST_STATUSES, TRANSFORM_STATUSES, substatuses, shapes, (0, 4))
    for request_status, status, substatus, outputs, planned in cases:
        tally = one_task(request_status, status, substatus, outputs, planned).tally
        seen = outputs or FileCounts()
        sure = seen.processed + seen.failed + seen.missing
        assert tally.job_count == max(planned, seen.total, sure)
        assert tally.total[WmsStates.SUCCEEDED] == seen.processed
        assert min(tally.total.values()) >= 0
        assert (tally.state in FINAL) <= (request_status in TERMINAL_STATUSES and status in TERMINAL_STATUSES)
        if tally.state is WmsStates.SUCCEEDED:
            assert tally.total[WmsStates.SUCCEEDED] == tally.job_count


def test_report_and_status_agree_for_every_status():
    outputs = FileCounts(total=9, processed=2, failed=1, missing=1, new=2, activated=3)
    cases = itertools.product(REQUEST_STATUSES, TRANSFORM_STATUSES, ("New", "ToCancel"))
    for request_status, status, substatus in cases:
        evidence = one_task(request_status, status, substatus, outputs, 9)
        assert get_status_of(evidence)[0] is make_run_report(evidence).state


def one_task(
    request_status: str, status: str, substatus: str, outputs: FileCounts | None, planned: int
) -> RunEvidence:
    """Make a run of one task that has not changed for a day."""
    name = f"{RUN}_01_isr_01"
    return RunEvidence(
        RequestRecord(7, RUN, request_status, substatus, updated_at=START),
        (TransformRecord(7, 1, name, status, "Running", 5, outputs, FileCounts(total=4, new=1)),),
        PlanSummary((("isr", planned),), ((name, "isr", planned),)) if planned else None,
        asked_at=START + timedelta(days=1),
    )


TRANSFORMS = transforms_of(counts_strategy(number), task_names)


@given(TRANSFORMS, number, st.booleans(), st.booleans(), st.none() | number)
def test_panda_only_tells_which_waiting_jobs_run(transform, planned, aborted, ended, running):
    without = count_task(transform, planned, aborted=aborted, ended=ended)
    with_panda = count_task(transform, planned, aborted=aborted, ended=ended, running=running)
    open_states = (WmsStates.UNREADY, WmsStates.READY, WmsStates.PENDING, WmsStates.RUNNING)
    assert sum(without[state] for state in open_states) == sum(with_panda[state] for state in open_states)
    for state in (WmsStates.UNREADY, WmsStates.READY):
        assert with_panda[state] <= without[state]
        # Jobs that iDDS says are in PanDA's hands run first.
        assert with_panda[state] == without[state] or not with_panda[WmsStates.PENDING]
    for state in set(WmsStates) - set(open_states):
        assert without[state] == with_panda[state]


# What PanDA knows of a task with one job, step by step: status, finished and failed jobs, status of the job.
GOOD = (
    ("pending", 0, 0, ""),
    ("running", 0, 0, "activated"),
    ("running", 0, 0, "running"),
    ("running", 0, 0, "transferring"),
    ("running", 0, 0, "finished"),
    ("running", 1, 0, "finished"),
    ("done", 1, 0, "finished"),
)
BAD = (*GOOD[:3], ("running", 0, 0, "failed"), ("running", 0, 1, "failed"), ("failed", 0, 1, "failed"))
ONE = FileCounts(total=1)
# What iDDS knows of it and of a job that needs it, and the first step of PanDA at which it can: status of the
# transform, status of its processing, outputs; status, outputs and inputs of the second one.
IDDS_BEGINS = (
    (0, "Transforming", "Submitted", {"new": 1}, "Transforming", {"new": 1}, {"new": 1}),
    (1, "Transforming", "Submitted", {"activated": 1}, "Transforming", {"new": 1}, {"new": 1}),
    (2, "Transforming", "Running", {"activated": 1}, "Transforming", {"new": 1}, {"new": 1}),
)
IDDS_GOOD = (
    (4, "Transforming", "Running", {"processed": 1}, "Transforming", {"new": 1}, {"new": 1}),
    (6, "Finished", "Finished", {"processed": 1}, "Transforming", {"new": 1}, {"processed": 1}),
)
IDDS_LAGS = (
    (6, "Finished", "Finished", {"activated": 1}, "Transforming", {"new": 1}, {"new": 1}),
    IDDS_GOOD[1],
)
IDDS_BAD = (
    (3, "Transforming", "Running", {"failed": 1}, "Transforming", {"new": 1}, {"new": 1}),
    (5, "Failed", "Failed", {"failed": 1}, "Transforming", {"new": 1}, {"new": 1}),
    (5, "Failed", "Failed", {"failed": 1}, "Transforming", {"new": 1}, {"missing": 1}),
    (5, "Failed", "Failed", {"failed": 1}, "Transforming", {"missing": 1}, {"missing": 1}),
    (5, "Failed", "Failed", {"failed": 1}, "Failed", {"missing": 1}, {"missing": 1}),
)
RANKS = ("UNREADY", "READY", "PENDING", "RUNNING", "SUCCEEDED FAILED PRUNED")


def rank_of(counts: dict[WmsStates, int]) -> int:
    """Give the rank of the state of the only job."""
    (state,) = [state.name for state, number in counts.items() if number]
    return next(rank for rank, names in enumerate(RANKS) if state in names.split())


def seen(idds: tuple[object, ...], tasks: tuple[object, ...], job: str) -> RunEvidence:
    """Give what was found out when iDDS, PanDA's tasks and PanDA's jobs were asked one after the other."""
    _, status, processing, outputs, child, child_outputs, child_inputs = idds
    transforms = (
        TransformRecord(7, 1, f"{RUN}_01_isr_01", status, processing, 11, FileCounts(1, **outputs), ONE),
        TransformRecord(
            7, 2, f"{RUN}_02_coadd_3_01", child, "Submitted", 12, FileCounts(1, **child_outputs),
            FileCounts(1, **child_inputs),
        ),
    )  # fmt: skip
    task, finished, failed, _ = tasks
    found = (JobRecord(5, 11, job, name="isr:0"),) if job and task in ACTIVE_TASKS else ()
    over = child in TERMINAL_STATUSES
    return RunEvidence(
        RequestRecord(7, RUN, "SubFinished" if over else "Transforming", "New"),
        transforms,
        PlanSummary(
            (("isr", 1), ("coadd_3", 1)),
            ((f"{RUN}_01_isr_01", "isr", 1), (f"{RUN}_02_coadd_3_01", "coadd_3", 1)),
        ),
        tasks=(TaskRecord(11, f"{RUN}_01_isr_01_7_1", task, 7, files=1, finished=finished, failed=failed),),
        jobs=found,
        asked_at=START,
    )


step = st.integers(0, 3)


@given(
    st.lists(st.tuples(step, step, step), max_size=15),
    st.sampled_from([(GOOD, IDDS_GOOD), (GOOD, IDDS_LAGS), (BAD, IDDS_BAD)]),
)
def test_no_job_goes_backwards_whoever_of_the_servers_is_behind(steps, history):
    """Each server's knowledge only grows, iDDS is asked first, and it learns of jobs from PanDA."""
    panda, ends = history
    idds = (*IDDS_BEGINS, *ends)
    at_idds = at_tasks = at_jobs = 0
    before = {"isr": 0, "coadd_3": 0}
    last = len(panda) - 1
    # In the end everybody knows everything.
    for to_idds, to_tasks, to_jobs in [*steps, (0, 9, 9), (9, 9, 9)]:
        known = max(number for number, row in enumerate(idds) if row[0] <= at_jobs)
        at_idds = min(at_idds + to_idds, known)
        at_tasks = min(max(at_tasks + to_tasks, idds[at_idds][0]), last)
        at_jobs = min(max(at_jobs + to_jobs, at_tasks), last)
        evidence = seen(idds[at_idds], panda[at_tasks], panda[at_jobs][3])
        tally = evidence.tally
        assert tally.job_count == 2
        assert evidence.ended == (idds[at_idds][4] in TERMINAL_STATUSES)
        now = {label: rank_of(counts) for label, counts in tally.by_label.items()}
        assert all(now[label] >= before[label] for label in before), (before, now, evidence)
        before = now
    assert tally.by_label["isr"][WmsStates.SUCCEEDED if panda is GOOD else WmsStates.FAILED] == 1
