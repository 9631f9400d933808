"""Exit codes and the digest of errors."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import pytest

from lsst.ctrl.bps.panda.report import make_run_report
from lsst.ctrl.bps.panda.status.evidence import RunEvidence, failures_of
from lsst.ctrl.bps.panda.status.failures import (
    ErrorGroup,
    add_verdicts,
    exit_codes,
    group_errors,
    is_memory_error,
)
from lsst.ctrl.bps.panda.status.job_errors import JobError, choose_error, signal_name
from lsst.ctrl.bps.panda.status.records import (
    ContentRecord,
    FileCounts,
    JobRecord,
    RequestRecord,
    TransformRecord,
    log_url,
)
from lsst.ctrl.bps.panda.status.verdicts import PACKAGED_RULES
from lsst.ctrl.bps.panda.status.vocabulary import SOURCES, UNKNOWN_EXIT_CODE


def transform(status: str = "SubFinished") -> TransformRecord:
    return TransformRecord(4, 1, "run_01_isr_01", status)


def content(status: str = "FinalFailed", *errors: JobError, job_status: str = "failed", name: str = "isr:1"):
    return ContentRecord(1, name, status, panda_id=9, job_status=job_status, errors=errors)


@pytest.mark.parametrize("first", range(len(SOURCES)))
def test_the_earlier_source_is_told(first):
    errors = [JobError(source, number + 10) for number, source in enumerate(SOURCES)][first:]
    assert choose_error(errors[::-1]).source == tuple(SOURCES)[first]


def test_a_payloads_code_borrows_the_pilots_text():
    error = choose_error([JobError("pilot", 1305, "Failed to execute payload"), JobError("payload", 17)])
    assert error == JobError("payload", 17, "Failed to execute payload")


def test_signals_are_named():
    assert signal_name(137) == "SIGKILL"
    assert signal_name(139) == "SIGSEGV"
    assert [signal_name(code) for code in (0, 1, 128, 255, -9)] == [""] * 5
    assert choose_error([JobError("payload", 139)]).text == "ended by SIGSEGV"
    # Only a payload's code follows the shell's rule.
    assert choose_error([JobError("pilot", 137, "x")]).text == "x"


def test_no_error_at_all_is_said():
    assert choose_error([]) == JobError("unknown", UNKNOWN_EXIT_CODE, "no server knows an error of this job")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (JobError("payload", 137), True),
        (JobError("pilot", 1212), True),
        (JobError("task buffer", 300), True),
        (JobError("pilot", 137), False),
        (JobError("payload", 1), False),
    ],
)
def test_memory_errors(error, expected):
    assert is_memory_error([error]) is expected


@pytest.mark.parametrize(
    ("pilot_id", "expected"),
    [
        ("http://h/PandaJob_35/pilotlog.txt|PR|3.11", "http://h/PandaJob_35/payload.stderr"),
        ("file:///a/b/pilotlog.txt", "file:///a/b/payload.stderr"),
        ("/a/b/pilotlog.txt|PR", "/a/b/payload.stderr"),
        ("http://h/condor/1.out|PR", "http://h/condor/1.err"),
        ("http://h/other.log|PR", "http://h/other.log"),
        ("unknown|PR|3.11", ""),
        ("", ""),
    ],
)
def test_the_log_of_a_job(pilot_id, expected):
    assert log_url(pilot_id) == expected


def test_failures_of_an_ended_task():
    rows = [
        content("Available"),
        content("FinalFailed", JobError("payload", 17)),
        content("Missing"),
        content("Activated", job_status=""),
        content("Failed", JobError("pilot", 1150, "looping job")),
    ]
    failures = failures_of(transform(), "isr", rows, aborted=False)
    assert [(failure.error.source, failure.error.code) for failure in failures] == [
        ("payload", 17),
        ("pilot", 1150),
        ("task", UNKNOWN_EXIT_CODE),
    ]
    assert failures[0].panda_id == 9


def test_failures_of_a_task_that_goes_on():
    rows = [content("Failed", JobError("pilot", 1150)), content("Activated"), content("FinalFailed")]
    failures = failures_of(transform("Transforming"), "isr", rows, aborted=False)
    assert [failure.error.source for failure in failures] == ["unknown"]


def test_killed_jobs_have_not_failed():
    rows = [content("FinalFailed", JobError("task buffer", 100), job_status="cancelled")]
    assert failures_of(transform(), "isr", rows, aborted=True) == []
    assert len(failures_of(transform(), "isr", rows, aborted=False)) == 1


def failure(
    label: str, source: str, code: int, text: str = "", *, name: str = "j", log: str = ""
) -> JobRecord:
    return JobRecord(0, 0, "failed", label, name, errors=(JobError(source, code, text),), log_url=log)


def digest(failures: list[JobRecord]) -> list[ErrorGroup]:
    evidence = RunEvidence(RequestRecord(4, "run", "SubFinished"), attempts=tuple(failures))
    return group_errors(evidence, by_label=False)


def test_few_logs_are_read_for_other_exceptions():
    said = [
        "KeyError: 'g'",
        "KeyError: 'r'",
        "ValueError: 3 of 7",
        *["ValueError: 4 of 7"] * 995,
        "",
        "Late: x",
    ]
    failures = [failure("isr", "payload", 1, name=f"j{n}", log=f"http://h/{n}") for n in range(len(said))]
    read = []

    def read_end(job):
        read.append(job.name)
        return said[int(job.name[1:])], ()

    (group,) = add_verdicts(digest(failures), PACKAGED_RULES, read_tail=read_end)
    assert group.jobs == len(said)
    assert len(read) <= 6
    assert len(set(read)) == len(read)
    assert len({other.exception.partition(":")[0] for other in group.others} | {group.exception}) == 1 + len(
        group.others
    )


def test_as_many_codes_as_failures():
    failures = [failure("isr", "payload", 137), failure("isr", "payload", 1), failure("coadd", "pilot", 1305)]
    assert exit_codes({"isr": 3, "coadd": 1, "final": 0}, failures) == {
        "isr": [-1, 1, 137],
        "coadd": [1305],
        "final": [],
    }


def test_codes_beyond_the_count_are_left_out():
    """Contents are read after the counters and may know more."""
    failures = [failure("isr", "payload", code) for code in (3, 4, 5)] + [failure("other", "payload", 9)]
    assert exit_codes({"isr": 2}, failures) == {"isr": [3, 4]}


def test_an_absurd_counter_does_not_fill_the_memory():
    assert len(exit_codes({"isr": 2**60}, [])["isr"]) == 10_000_000


def test_equal_errors_are_put_together():
    failures = [
        failure("isr", "pilot", 1099, "file 12 not staged in", name="a"),
        failure("coadd", "pilot", 1099, "file 7 not staged in", name="b", log="http://log"),
        failure("isr", "payload", 1, "", name="c"),
    ]
    groups = digest(failures)
    assert [(group.attempts, group.error.source, group.label) for group in groups] == [
        (2, "pilot", "isr, coadd"),
        (1, "payload", "isr"),
    ]
    assert groups[0].example.name == "b"
    assert groups[0].error.text == "file 7 not staged in"


def test_only_the_most_frequent_are_kept():
    failures = [failure("isr", "payload", code) for code in range(1, 30) for _ in range(code)]
    run = RequestRecord(4, "run", "SubFinished")
    outputs = FileCounts(total=435, failed=435)
    evidence = RunEvidence(
        run, (TransformRecord(4, 1, "run_01_isr_01", "SubFinished", outputs=outputs),), attempts=failures
    )
    text = str(make_run_report(evidence).specific_info)
    assert [code for code in range(1, 30) if f"\n    payload {code} (" in text] == list(range(20, 30))


@pytest.mark.parametrize(
    ("nodes", "others", "expected"),
    [
        (("n1", "n1", "n1"), ("n2",), True),
        (("n1", "n1", "n1"), (), False),
        (("n1", "n1", "n1"), ("n1", ""), False),
        (("n1", "n1"), ("n2",), False),
        (("n1", "n1", "n2"), ("n2",), False),
    ],
)
def test_an_error_of_one_node_is_one_of_several_nodes(nodes, others, expected):
    failed = [
        dataclasses.replace(failure("isr", "payload", 1, name=str(n)), node=node)
        for n, node in enumerate(nodes)
    ]
    finished = [
        JobRecord(90 + n, 0, "finished", "isr", f"done {n}", node=node) for n, node in enumerate(others)
    ]
    evidence = RunEvidence(RequestRecord(4, "run", "SubFinished"), attempts=(*failed, *finished))
    (group,) = group_errors(evidence)
    assert group.one_node is expected


@pytest.mark.parametrize(
    ("jobs", "words"),
    [((), "bps restart --id 4 runs again"), (("running",), "wait until the last job has ended")],
)
def test_a_cancelled_run_is_restarted_when_no_job_runs_any_more(jobs, words):
    run = RequestRecord(
        4, "run", "SubFinished", substatus="ToCancel", updated_at=datetime(2026, 1, 1, tzinfo=UTC)
    )
    task = TransformRecord(4, 1, "run_01_isr_01", "SubFinished", outputs=FileCounts(total=2, processed=1))
    evidence = RunEvidence(
        run,
        (task,),
        jobs=tuple(JobRecord(n, 0, status) for n, status in enumerate(jobs)),
        asked_at=datetime(2026, 1, 2, tzinfo=UTC),
    )
    text = str(make_run_report(evidence).specific_info)
    assert evidence.ended
    assert words in text
    assert ("wait until" in text) == bool(jobs)


def test_a_job_that_finished_later_is_not_unfinished_whoever_knows_it():
    """PanDA lists attempts, iDDS contents; a finished attempt may be in only one of them."""
    one = dataclasses.replace(failure("isr", "payload", 1), task_id=10)
    failed = [dataclasses.replace(one, name=name) for name in ("by PanDA", "by iDDS", "by none")]
    finished = JobRecord(90, 10, "finished", "isr", "by PanDA")
    task = TransformRecord(4, 1, "run_01_isr_01", "Transforming", workload_id=10)
    evidence = RunEvidence(
        RequestRecord(4, "run", "Transforming"),
        (task,),
        contents={1: (ContentRecord(1, "by iDDS", "Available"), ContentRecord(1, "by none", "New"))},
        attempts=(*failed, finished),
    )
    (group,) = group_errors(evidence)
    assert (group.attempts, group.jobs, group.unfinished) == (3, 3, 1)
    both = (ContentRecord(1, "by iDDS", "Available"), ContentRecord(1, "by none", "Available"))
    (group,) = group_errors(dataclasses.replace(evidence, contents={1: both}))
    assert group.unfinished == 0
    whole = dataclasses.replace(task, status="Finished", outputs=FileCounts(total=3, processed=3))
    (group,) = group_errors(dataclasses.replace(evidence, transforms=(whole,)))
    assert group.unfinished == 0


@pytest.mark.parametrize(
    ("status", "outputs", "expected"),
    [
        ("Finished", None, True),
        ("Finished", FileCounts(total=2, processed=2), True),
        ("Finished", FileCounts(total=2, processed=1, failed=1), False),
        ("SubFinished", FileCounts(total=2, processed=2), False),
    ],
)
def test_a_complete_task_has_finished_without_a_failure(status, outputs, expected):
    assert TransformRecord(4, 1, "run_01_isr_01", status, outputs=outputs).complete is expected


@pytest.mark.parametrize(
    ("status", "outputs", "asked"),
    [
        ("Transforming", FileCounts(total=3, processed=1, activated=2), False),
        ("Transforming", FileCounts(total=3, processed=1, activated=1, failed=1), True),
        ("SubFinished", FileCounts(total=3, processed=1, activated=2), True),
        ("SubFinished", FileCounts(total=3, processed=1, missing=2), False),
        ("Finished", FileCounts(total=3, processed=3), False),
        ("SubFinished", None, False),
    ],
)
def test_contents_are_wanted_of_tasks_with_failures_and_of_ended_ones_with_jobs_left(status, outputs, asked):
    task = TransformRecord(4, 1, "run_01_isr_01", status, workload_id=9, outputs=outputs)
    evidence = RunEvidence(RequestRecord(4, "run", "Transforming"), (task,))
    assert evidence.unexplained_transforms == ((1,) if asked else ())


def test_contents_of_tasks_with_most_failures_are_wanted_first():
    tasks = tuple(
        TransformRecord(4, n, f"run_{n:02d}_isr_01", "SubFinished", outputs=FileCounts(9, 9 - failed, failed))
        for n, failed in ((1, 2), (2, 9), (3, 5))
    )
    assert RunEvidence(RequestRecord(4, "run", "SubFinished"), tasks).unexplained_transforms == (2, 3, 1)
