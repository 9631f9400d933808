"""The report of a run, the run list, and what stands below a report."""

from __future__ import annotations

import dataclasses
import io
from datetime import UTC, datetime, timedelta

import pytest
from lsst.ctrl.bps.report import display_report
from lsst.ctrl.bps.wms_service import WmsRunReport, WmsStates

from lsst.ctrl.bps.panda.errors import SettingsError
from lsst.ctrl.bps.panda.plan.document import RunAttributes, render_attributes
from lsst.ctrl.bps.panda.plan.model import Accounting, JobPlan, Placement, Resources, TaskPlan
from lsst.ctrl.bps.panda.plan.naming import (
    BUILD_LABEL,
    BUILD_TASK,
    label_of_task,
    ordinal_of_task,
    split_server_name,
)
from lsst.ctrl.bps.panda.report import (
    FILTER_KEYS,
    LISTED_JOBS,
    MonitorLinks,
    describe_counts,
    fits_filters,
    get_status_of,
    list_notes,
    make_run_list,
    make_run_report,
    parse_filters,
)
from lsst.ctrl.bps.panda.status.evidence import (
    PlanSummary,
    RunEvidence,
    request_from_tasks,
    tasks_by_request,
    transforms_from_tasks,
)
from lsst.ctrl.bps.panda.status.job_errors import JobError
from lsst.ctrl.bps.panda.status.records import (
    ContentRecord,
    FileCounts,
    JobRecord,
    RequestRecord,
    TaskRecord,
    TransformRecord,
)

RUN = "u_ann_pay_20261120T120000Z"
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
LONG_CAMPAIGN = "a campaign whose name is longer than fifty characters"
ATTRIBUTES = RunAttributes(RUN, "ann", "DP2", "week 47", "pay;load=1", jobs=5, tasks=3, origin=0)


def request(number: int = 41, status: str = "SubFinished", **changes: object) -> RequestRecord:
    fields = render_attributes(dataclasses.replace(ATTRIBUTES, **changes))
    del fields["name"], fields["campaign_tag"]  # the tag is always empty
    return RequestRecord(number, RUN, status, site="SLAC", updated_at=NOW, **fields)


def transform(number: int, label: str, counts: FileCounts, status: str) -> TransformRecord:
    return TransformRecord(
        41, number, f"{RUN}_{number:02d}_{label}_01", status, "Finished", 100 + number, counts, None, NOW
    )


PLAN = PlanSummary(
    labels=(("isr", 3), ("coadd", 1), ("finalJob", 1)),
    tasks=(
        (f"{RUN}_01_isr_01", "isr", 3),
        (f"{RUN}_02_coadd_01", "coadd", 1),
        (f"{RUN}_03_finalJob_01", "finalJob", 1),
    ),
    final_labels=("finalJob",),
    attributes=dataclasses.replace(
        ATTRIBUTES, campaign="a campaign whose name is longer than fifty characters"
    ),
    site="SLAC",
    path="/submit/pay",
)
TRANSFORMS = (
    transform(1, "isr", FileCounts(total=3, processed=1, failed=2), "SubFinished"),
    transform(2, "coadd", FileCounts(total=1, missing=1), "Failed"),
    transform(3, "finalJob", FileCounts(total=1, processed=1), "Finished"),
)
FAILED_ROWS = (
    ContentRecord(
        1, "isr:1", "FinalFailed", 900, "failed", (JobError("payload", 137),), "http://l/pilotlog.txt|x"
    ),
    ContentRecord(1, "isr:2", "FinalFailed", 901, "failed", (JobError("pilot", 1099, "no {file}"),)),
)
EVIDENCE = RunEvidence(request(), TRANSFORMS, PLAN, {1: FAILED_ROWS}, asked_at=NOW)


def shown(report: WmsRunReport) -> str:
    out = io.StringIO()
    display_report([report], [], is_detailed=True, return_exit_codes=True, file=out)
    return out.getvalue()


def test_a_report_has_everything_bps_prints():
    report = make_run_report(EVIDENCE, monitor_url="https://mon/")
    assert (report.wms_id, report.global_wms_id, report.run) == ("41", "41", RUN)
    assert (report.operator, report.project, report.payload) == ("ann", "DP2", "pay;load=1")
    assert report.campaign == LONG_CAMPAIGN
    assert report.path == "/submit/pay"
    assert report.run_summary == "isr:3;coadd:1;finalJob:1"
    assert report.state is WmsStates.FAILED
    assert report.total_number_jobs == 5
    assert report.exit_code_summary == {"isr": [137, 1099], "coadd": [], "finalJob": []}
    text = shown(report)
    for part in (
        "Why 2 jobs failed, most frequent first:\n"
        "  out of memory: payload 137, ended by SIGKILL\n"
        "    1 x isr (out of memory); for instance isr:1, PanDA job 900\n"
        "    payload 137 (ended by SIGKILL), http://l/payload.stderr\n"
        "  storage: pilot 1099, no {file}\n"
        "    1 x isr (storage); for instance isr:2, PanDA job 901\n"
        "    pilot 1099 (no {file}), https://mon/job/901/\n",
        "Monitor: https://mon/tasks/?idds_request_id=41",
        "Failed jobs: https://mon/jobs/?jeditaskid=101&jobstatus=failed",
        "requestMemory",
        "bps restart --id 41",
    ):
        assert part in text


ROWS = {1: (ContentRecord(1, "isr:0", "Available", 899, "finished"), *FAILED_ROWS)}


class Files:
    """The files of the run, as `EVIDENCE` has it."""

    def tasks(self, names):
        found = {}
        for name, label, number in PLAN.tasks:
            jobs = tuple(JobPlan(f"{label}_{n}", n, f"{label}:{n}") for n in range(number))
            accounting, resources = Accounting("", 0, "", "", "", ""), Resources(1, 1, 1.0, 1, 0, 1, 1)
            place = Placement("", "", "")
            found[name] = TaskPlan(name, label, 1, 0, "", place, resources, accounting, 1, jobs)
        return {name: found[name] for name in names if name in found}

    def identify(self, jobs):
        return [dataclasses.replace(job, bps_name=f"job of {job.name}", data=({"visit": 8},)) for job in jobs]


def listed(evidence: RunEvidence, **known: Files) -> list[tuple[str, str, str, str]]:
    report = make_run_report(evidence, **known)
    return [(job.wms_id, job.label, job.name, job.state.name) for job in report.jobs]


def test_jobs_are_listed_with_names_of_the_plan_and_states_of_the_contents():
    evidence = dataclasses.replace(EVIDENCE, contents=ROWS)
    assert listed(evidence, known=Files()) == [
        ("899", "isr", "isr_0", "SUCCEEDED"),
        ("900", "isr", "isr_1", "FAILED"),
        ("901", "isr", "isr_2", "FAILED"),
        ("", "coadd", "coadd_0", "PRUNED"),
        ("", "finalJob", "finalJob_0", "SUCCEEDED"),
    ]


def test_without_the_plan_jobs_are_called_as_in_panda():
    rows = {1: ROWS[1][:2]}
    evidence = RunEvidence(request(), TRANSFORMS, None, rows, asked_at=NOW)
    assert listed(evidence) == [
        ("899", "isr", "isr:0", "SUCCEEDED"),
        ("900", "isr", "isr:1", "FAILED"),
        ("", "isr", "isr (3)", "FAILED"),
        ("", "coadd", "coadd", "PRUNED"),
        ("", "finalJob", "finalJob", "SUCCEEDED"),
    ]


def test_a_job_that_panda_runs_is_the_one_that_runs():
    going = transform(1, "isr", FileCounts(total=3, processed=1, activated=2), "Transforming")
    rows = {1: (ContentRecord(1, "isr:1", "Available", 5), ContentRecord(1, "isr:0", "Activated", 4))}
    jobs = (JobRecord(6, 101, "running", name="isr:2"), JobRecord(4, 101, "activated", name="isr:0"))
    evidence = RunEvidence(request(status="Transforming"), (going,), PLAN, rows, jobs=jobs, asked_at=NOW)
    assert [(job[0], job[3]) for job in listed(evidence, known=Files())[:3]] == [
        ("4", "PENDING"), ("5", "SUCCEEDED"), ("6", "RUNNING"),
    ]  # fmt: skip


@pytest.mark.parametrize("told", [True, False])
def test_of_a_large_run_the_special_the_failed_and_the_held_jobs_are_listed(told):
    size = LISTED_JOBS + 1
    tasks = (
        transform(1, "pipetaskInit", FileCounts(total=1, processed=1), "Finished"),
        transform(2, "isr", FileCounts(total=size, processed=size - 1, failed=1), "SubFinished"),
        transform(3, "held", FileCounts(total=2, new=2), "Suspended"),
        transform(4, "finalJob", FileCounts(total=1, failed=1), "Failed"),
    )
    rows = (ContentRecord(2, "isr:9", "FinalFailed", 77), ContentRecord(2, "isr:8", "Available", 76))
    evidence = RunEvidence(request(), tasks, None, {2: rows} if told else {}, asked_at=NOW)
    failed = [("77", "isr", "isr:9", "FAILED")] if told else []
    assert listed(evidence) == [
        ("", "pipetaskInit", "pipetaskInit", "SUCCEEDED"),
        ("", "finalJob", "finalJob", "FAILED"),
        *failed,
        ("", "held", "held (1)", "HELD"),
        ("", "held", "held (2)", "HELD"),
    ]


def test_the_errors_say_which_job_and_which_data():
    info = make_run_report(EVIDENCE, known=Files()).specific_info
    assert "for instance job of isr:1 (isr:1; visit=8), PanDA job 900" in str(info)
    told = {key: info.context[f"error_1_{key}"] for key in ("name", "bps_name", "data")}
    assert told == {"name": "isr:1", "bps_name": "job of isr:1", "data": "visit=8"}


def test_the_exception_comes_first_and_is_that_of_the_attempt_that_ran():
    """iDDS has the last attempt, which the runner may have refused."""
    found = []

    def find_attempts(jobs):
        return [dataclasses.replace(job, panda_id=job.panda_id - 100, log_url="l") for job in jobs]

    def read_end(job):
        found.append(job.panda_id)
        return "ValueError: {0} is no number" if job.panda_id == 800 else None, ()

    report = make_run_report(EVIDENCE, find_attempts=find_attempts, read_end=read_end)
    first, where, code, second, *_ = str(report.specific_info).splitlines()[1:]
    assert (first, second) == ("  ValueError: {0} is no number", "  storage: pilot 1099, no {file}")
    assert where == "    1 x isr (out of memory); for instance isr:1, PanDA job 800"
    assert code == "    payload 137 (ended by SIGKILL), l"
    assert found == [800, 801]
    assert report.specific_info.context["error_1_exception"] == first.strip()


def test_the_site_is_told_where_bps_has_a_column_for_it():
    report = make_run_report(EVIDENCE)
    has_site = "site" in {field.name for field in dataclasses.fields(WmsRunReport)}
    assert getattr(report, "site", None) == ("SLAC" if has_site else None)


def test_without_a_monitor_there_are_no_links():
    text = str(make_run_report(EVIDENCE).specific_info)
    assert "Monitor" not in text
    assert "no log known" in text


def test_exit_codes_only_on_demand():
    assert make_run_report(EVIDENCE, return_exit_codes=False).exit_code_summary is None


def test_a_restart_names_its_origin():
    evidence = RunEvidence(request(origin=40), TRANSFORMS, asked_at=NOW)
    assert "completes run 40" in str(make_run_report(evidence).specific_info)
    assert evidence.attributes.origin == 40


@pytest.mark.parametrize("built", [False, True])
def test_a_build_that_failed_leaves_nothing_to_restart(built):
    counts = FileCounts(total=1, processed=int(built), failed=int(not built))
    build = TransformRecord(41, 1, BUILD_TASK, "SubFinished", "Finished", 101, counts, None, NOW)
    others = [dataclasses.replace(item, transform_id=item.transform_id + 1) for item in TRANSFORMS]
    plan = dataclasses.replace(
        PLAN,
        labels=((BUILD_LABEL, 1), *(PLAN.labels if built else ())),
        tasks=((BUILD_TASK, BUILD_LABEL, 1), *(PLAN.tasks if built else ())),
    )
    evidence = RunEvidence(request(), (build, *(others if built else ())), plan, asked_at=NOW)
    text = str(make_run_report(evidence).specific_info)
    assert ("Next: bps restart --id 41 runs again what failed" in text) == built
    assert ("Next: the task that makes the plan of the run did not succeed" in text) != built


def test_a_successful_run_has_nothing_to_say():
    done = transform(1, "isr", FileCounts(total=1, processed=1), "Finished")
    plan = PlanSummary((("isr", 1),), ((done.name, "isr", 1),))
    evidence = RunEvidence(request(status="Finished"), (done,), plan, asked_at=NOW)
    report = make_run_report(evidence)
    assert report.state is WmsStates.SUCCEEDED
    assert not report.specific_info


def test_an_early_terminal_status_is_told_as_such():
    evidence = dataclasses.replace(EVIDENCE, transforms=TRANSFORMS[:2])
    report = make_run_report(evidence)
    assert report.state is WmsStates.RUNNING
    text = str(report.specific_info)
    assert "calls the run SubFinished, but 2 of 3 tasks" in text
    assert "let the run end" in text
    assert "bps restart --id 41 runs again what failed, was" not in text


def test_the_way_to_look_closer_is_told():
    text = str(make_run_report(EVIDENCE).specific_info)
    assert "panda_bps errors 41" in text
    assert "panda_bps watch" not in text, "it is over"
    going = (transform(1, "isr", FileCounts(total=4, processed=1, activated=3), "Transforming"),)
    evidence = RunEvidence(request(status="Transforming"), going, asked_at=NOW)
    text = str(make_run_report(evidence).specific_info)
    assert "Next: panda_bps watch 41 shows the run live" in text


@pytest.mark.parametrize(
    ("errors", "advice"),
    [
        ((JobError("payload", 137),), "ran out of memory"),
        ((JobError("payload", 139),), "ended by a signal"),
        ((JobError("payload", 139), JobError("pilot", 1212)), "ran out of memory"),
        ((JobError("payload", 1),), None),
        ((JobError("pilot", 1099),), "not the payload's"),
        ((JobError("pilot", 139),), "not the payload's"),
        ((), None),
    ],
)
def test_what_to_do_depends_on_the_errors(errors, advice):
    row = ContentRecord(1, "isr:1", "FinalFailed", 900, "failed", errors)
    text = str(make_run_report(dataclasses.replace(EVIDENCE, contents={1: (row,)})).specific_info)
    for words in ("ran out of memory", "ended by a signal", "not the payload's"):
        assert (words in text.partition("Next: ")[2]) == (words == advice)


def test_a_cancelled_run_that_waits_in_vain_is_told_to_be_cancelled_again():
    counts = FileCounts(total=1)
    tasks = [transform(1, "isr", counts, "Failed"), transform(2, "finalJob", counts, "Failed")]
    tasks.append(transform(3, "rucioRegister", counts, "Transforming"))
    labels = ("isr", "finalJob", "rucioRegister")
    pairs = list(zip(tasks, labels, strict=True))
    plan = PlanSummary(
        tuple((label, 1) for label in labels),
        tuple((task.name, label, 1) for task, label in pairs),
        final_labels=labels[1:],
    )
    aborted = dataclasses.replace(request(status="Transforming"), substatus="ToCancel")
    text = str(make_run_report(RunEvidence(aborted, tuple(tasks), plan, asked_at=NOW)).specific_info)
    assert "Next: bps cancel --id 41 once more: the last task waits for jobs that were killed." in text
    starting = RunEvidence(aborted, tuple(tasks[:1]), plan, asked_at=NOW)
    assert "once more" not in str(make_run_report(starting).specific_info)


def test_what_could_not_be_fetched_is_said():
    problems = ("contents of isr: {timed out}", "PanDA: 403")
    report = make_run_report(dataclasses.replace(EVIDENCE, contents={}, problems=problems))
    text = str(report.specific_info)
    assert "Not known: contents of isr: {timed out}" in text
    assert "Not known: PanDA: 403" in text
    assert report.exit_code_summary["isr"] == [-1, -1]
    assert "exit codes of 2 failed jobs are not known; they are given as -1" in text
    assert "PanDA: 403" in get_status_of(dataclasses.replace(EVIDENCE, problems=problems))[1]


def test_exit_codes_that_no_server_knows_are_counted():
    assert "exit codes of" not in str(make_run_report(EVIDENCE).specific_info), "all are known"
    rows = (*FAILED_ROWS, ContentRecord(1, "isr:3", "FinalFailed", 902, "failed"))
    isr = transform(1, "isr", FileCounts(total=3, failed=3), "SubFinished")
    evidence = dataclasses.replace(EVIDENCE, transforms=(isr, *TRANSFORMS[1:]), contents={1: rows})
    text = str(make_run_report(evidence).specific_info)
    assert "exit codes of 1 failed jobs are not known; they are given as -1" in text


def test_a_cancelled_run_with_living_jobs():
    cancelled = dataclasses.replace(
        EVIDENCE,
        request=dataclasses.replace(request(), substatus="ToCancel"),
        transforms=(transform(1, "isr", FileCounts(total=3, activated=3), "Failed"), *TRANSFORMS[1:]),
        jobs=(JobRecord(1, 101, "running"), JobRecord(2, 101, "finished")),
    )
    text = str(make_run_report(cancelled).specific_info)
    assert "The run was cancelled." in text
    assert "1 PanDA jobs still run" in text
    assert "wait until the last job has ended" in text
    assert get_status_of(cancelled)[0] is WmsStates.DELETED


def test_a_cancel_on_its_way():
    going = dataclasses.replace(EVIDENCE, request=dataclasses.replace(request(status="Cancelling")))
    state, message = get_status_of(going)
    assert state is WmsStates.RUNNING
    assert "cancelled and is not over yet" in message


def test_idds_own_words_and_paused_tasks():
    evidence = dataclasses.replace(
        EVIDENCE,
        request=dataclasses.replace(request(), errors="Request is already terminated"),
        tasks=tuple(TaskRecord(number, "t", "paused") for number in range(1, 8)),
    )
    text = str(make_run_report(evidence).specific_info)
    assert "iDDS says: Request is already terminated" in text
    assert "Paused in PanDA: task 1, 2, 3, 4, 5 and 2 more (t)." in text


def test_labels_that_bps_cannot_print_are_changed():
    plan = PlanSummary((("a:b;c", 1),), (("t", "a:b;c", 1),))
    evidence = RunEvidence(request(jobs=0), (), plan)
    report = make_run_report(evidence)
    assert report.run_summary == "a_b_c:1"
    assert "a_b_c" in shown(report)


def test_labels_that_become_the_same_are_added_up():
    plan = PlanSummary((("a:b", 1), ("a_b", 2)), (("t", "a:b", 1), ("u", "a_b", 2)))
    report = make_run_report(RunEvidence(request(jobs=0), (), plan))
    assert report.run_summary == "a_b:3"
    assert sum(report.job_summary["a_b"].values()) == 3


def test_the_list_says_which_run_completes_which():
    runs = [RunEvidence(request(42, origin=41), ()), RunEvidence(request(41), (), problems=("PanDA: 403",))]
    assert list_notes(runs, days=2.0) == ["Run 41: PanDA: 403", "Run 42 completes run 41."]


def test_an_empty_list_says_where_else_to_look():
    (note,) = list_notes([], days=0.5, user="ada")
    assert note.startswith("No runs of ada in the last 0.5 days. ")
    assert "--hist" in note


def test_status_does_not_believe_an_early_end():
    state, message = get_status_of(dataclasses.replace(EVIDENCE, transforms=TRANSFORMS[:2]))
    assert state is WmsStates.RUNNING
    assert "calls it SubFinished already, but it is not over yet" in message


def test_status_says_only_what_is_out_of_the_ordinary():
    # BPS logs the message as a warning.
    assert get_status_of(EVIDENCE) == (WmsStates.FAILED, "")
    assert describe_counts(EVIDENCE) == "Run 41: 2 SUCCEEDED, 2 FAILED, 1 PRUNED."
    assert describe_counts(RunEvidence(RequestRecord(3, "r", "New"), ())) == "Run 3: no jobs known yet."


def test_the_run_list_is_printed_by_bps():
    evidences = [dataclasses.replace(EVIDENCE, request=request(number)) for number in (43, 41, 42)]
    reports = make_run_list(evidences)
    assert [report.wms_id for report in reports] == ["41", "42", "43"]
    out = io.StringIO()
    display_report(reports, [], file=out)
    lines = out.getvalue().splitlines()
    assert len(lines) == 5
    assert all(word in lines[2] for word in ("FAILED", "40", "41", "ann", "DP2", "pay;load=1", RUN))


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("", ["41", "42"]),
        (f"name={RUN}", ["41"]),
        ("name=other", ["42"]),
        ("state=FAILED", ["41"]),
        ("state=running", ["42"]),
        ("operator=ann project=DP2", ["41"]),
        ("operator=bob", ["42"]),
        ("project=DP3", ["42"]),
        ("campaign=week*", ["42"]),
        ("campaign='a campaign*'", ["41"]),
        ("payload=deep", ["42"]),
        ("payload=pay*", ["41"]),
        ("site=SLAC", ["41"]),
        ("site=LANCS", ["42"]),
    ],
)
def test_the_run_list_is_filtered_by_what_the_runs_are(text, numbers):
    going = dataclasses.replace(
        request(42, "Transforming", operator="bob", project="DP3", payload="deep"), name="other", site="LANCS"
    )
    evidences = [EVIDENCE, RunEvidence(going, ())]
    assert [run.wms_id for run in make_run_list(evidences, filters=parse_filters(text))] == numbers


FIELDS = {
    "name": RUN,
    "operator": "ann",
    "project": "DP2",
    "campaign": "week 47",
    "state": "FAILED",
    "site": "X",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, True),
        ("", True),
        ("project=DP2", True),
        ("project=DP1", False),
        ("project=DP1 project=DP2", True),
        ("project=DP2 state=running", False),
        ("state=fail*", True),
        ("name=u_ann_* campaign='week 47'", True),
        ("run=*pay*", True),
        ("user=ann", True),
        ("payload=x", False),
        ("PROJECT=DP?", True),
        ("site=[XY]", True),
    ],
)
def test_filters(text, expected):
    filters = parse_filters(text)
    assert fits_filters(FIELDS, filters) is expected
    assert bool(filters) is bool(text)


@pytest.mark.parametrize("text", ["colour=red", "project", "name='unclosed", "state=asleep"])
def test_a_filter_that_is_not_understood_lists_what_there_is(text):
    with pytest.raises(SettingsError) as caught:
        parse_filters(text)
    wanted = [state.name for state in WmsStates] if "state" in text else FILTER_KEYS
    assert all(word in str(caught.value) for word in wanted)


def test_the_run_list_is_filtered():
    evidences = [EVIDENCE, RunEvidence(RequestRecord(50, "other", "New", username="bob"), ())]
    assert [report.wms_id for report in make_run_list(evidences, filters=parse_filters("operator=bob"))] == [
        "50"
    ]
    assert [report.wms_id for report in make_run_list(evidences, filters=parse_filters("site=SLAC"))] == [
        "41"
    ]


def test_links():
    links = MonitorLinks("https://mon:8443/")
    assert links.task(7) == "https://mon:8443/task/7/"
    assert links.progress_of_run(5) == "https://mon:8443/idds/wfprogress/?requestid=5"
    assert MonitorLinks("").tasks_of_run(5) == ""


@pytest.mark.parametrize(
    ("name", "label"),
    [
        (f"{RUN}_01_isr_01", "isr"),
        (f"{RUN}_02_measure_2_stars_01", "measure_2_stars"),
        (f"{RUN}_03_coadd_3_12", "coadd_3"),
        (f"{RUN}_104_coadd_04_100", "coadd_04"),
        (f"{RUN}_05_3_01", "3"),
        (f"{RUN}_build_task", "buildTask"),
        ("build_task", "buildTask"),
        ("u_a_n_20261120T120000Z_ab12cd34_02_isr_01", "isr"),
        ("u_other_20261120T120000Z_r1_02_isr_2_01", "isr_2"),
        (f"{RUN}_strange", "strange"),
        ("a:b", "a_b"),
        ("", "unknown"),
    ],
)
def test_labels_in_task_names(name, label):
    assert label_of_task(name, RUN) == label
    assert split_server_name(f"{name}_41_7") == (name, 7)


def test_tasks_are_ordered_by_their_ordinal():
    names = [f"{RUN}_{number}_isr_01" for number in ("100", "09", "02")] + [f"{RUN}_build_task", "odd"]
    ordered = sorted(names, key=lambda name: ordinal_of_task(name, RUN))
    assert ordered == [names[3], names[2], names[1], names[0], names[4]]


def test_attributes_of_another_programs_request():
    record = RequestRecord(1, "r", "New", username="bob", campaign_scope="Default", campaign="c")
    assert RunEvidence(record).attributes == RunAttributes("r", "bob", "", "c")


def test_pandas_tasks_stand_in_for_transforms():
    tasks = (
        TaskRecord(11, f"{RUN}_02_coadd_01_41_8", "pending", 41, "ann", "S", files=2, finished=1),
        TaskRecord(10, f"{RUN}_01_isr_01_41_7", "running", 41, "ann", "S", files=5, finished=2, failed=1),
        TaskRecord(12, f"{RUN}_01_isr_01_41_7", "aborted", 41, "ann", "S", files=5),
        TaskRecord(13, "something else", "running", 41),
        TaskRecord(14, "not of idds_1_2", "running", 0),
    )
    groups = tasks_by_request(tasks)
    assert list(groups) == [41]
    evidence = RunEvidence(request_from_tasks(groups[41]), transforms_from_tasks(groups[41]), asked_at=NOW)
    report = make_run_report(evidence)
    assert report.run_summary == "isr:5;coadd:2"
    assert {state.name: number for state, number in report.job_state_counts.items() if number} == {
        "SUCCEEDED": 3, "FAILED": 1, "RUNNING": 2, "UNREADY": 1
    }  # fmt: skip
    assert report.state is WmsStates.RUNNING


def test_an_ended_run_known_from_panda_alone():
    tasks = [TaskRecord(10, f"{RUN}_01_isr_01_41_7", "exhausted", 41, files=5, finished=4, failed=1)]
    evidence = RunEvidence(
        request(jobs=5, tasks=1), transforms_from_tasks(tasks), asked_at=NOW + timedelta(1)
    )
    assert get_status_of(evidence)[0] is WmsStates.FAILED
