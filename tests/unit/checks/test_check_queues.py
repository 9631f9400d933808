"""Jobs that fit no queue, and hints on what pays."""

from dataclasses import replace

import pytest

from lsst.ctrl.bps.panda.checks.plan import (
    LARGE_TASK,
    MANY_JOBS,
    find_advice,
    find_labels_without_queue,
    find_later_attempts_without_queue,
    find_unhonoured,
    find_unknown_queues,
)
from lsst.ctrl.bps.panda.errors import SettingsError
from lsst.ctrl.bps.panda.findings import Severity
from lsst.ctrl.bps.panda.plan.model import (
    Accounting,
    JobPlan,
    Placement,
    Resources,
    RunIdentity,
    TaskPlan,
    WorkflowPlan,
)
from lsst.ctrl.bps.panda.plan.tasks import DEFAULT_WALLTIME
from lsst.ctrl.bps.panda.settings import sites
from lsst.ctrl.bps.panda.settings.sites import QueueLimits, read_queues

SMALL = QueueLimits(name="Q_small", memory=4000, cores=1)
LARGE = QueueLimits(name="Q_large", memory=500000, walltime=86400)
MERGE = QueueLimits(name="Q_merge", memory=900000, brokered=False)


def make_task(label="isr", *, memory=1000, cores=1, walltime=3600, queue="", jobs=1, site="S", packed=1):
    return TaskPlan(
        name=f"run_01_{label}_01",
        label=label,
        chunk=1,
        first=0,
        command="",
        placement=Placement("US", site, queue),
        resources=Resources(memory, memory, 1.0, cores, 0, walltime, 1),
        accounting=Accounting("", 1, "", "", "", ""),
        payloads_per_job=packed,
        jobs=(JobPlan("j", 0, "j"),) * jobs,
    )


def told(findings, severity):
    assert {finding.severity for finding in findings} <= {severity}
    return [finding.text for finding in findings]


def hints(*arguments, **options):
    return told(find_advice(*arguments, **options), Severity.HINT)


def misfits(*tasks, queues=(SMALL, LARGE, MERGE)):
    found = find_labels_without_queue(tasks, lambda site: queues if site == "S" else ())
    return told(found, Severity.ERROR)


@pytest.mark.parametrize(
    ("growth", "attempts", "limit", "told_of"),
    [
        (2.0, 5, 491520, ""),
        (2.0, 9, 600000, "attempt 9 would ask for 512000 MB"),
        (2.0, 8, 600000, ""),
        (1.0, 99, 600000, ""),
        (1000.0, 9, 10**7, "attempt 2 would ask for 2000000 MB"),
        (1e300, 999, 10**7, "attempt 2 would ask for 10000000 MB"),
    ],
)
def test_attempts_that_no_queue_takes_are_told(growth, attempts, limit, told_of):
    task = make_task(memory=2000)
    needs = replace(task.resources, memory_max=limit, memory_growth=growth, attempts=attempts)
    found = find_later_attempts_without_queue(
        [replace(task, resources=needs)] * 2, lambda site: (SMALL, LARGE, MERGE)
    )
    texts = told(found, Severity.WARNING)
    assert len(texts) == bool(told_of)
    assert all(told_of in text and "Q_large" in text for text in texts)
    assert find_later_attempts_without_queue([make_task(memory=10**7)], lambda site: (LARGE,)) == []


@pytest.mark.parametrize(
    "needs",
    [
        {},
        {"memory": 500000},
        {"cores": 8},
        {"memory": 800000, "queue": "Q_merge"},
        {"memory": 10**7, "queue": "Q_unknown"},
        {"memory": 10**7, "site": "elsewhere"},
    ],
)
def test_fits(needs):
    assert misfits(make_task(**needs)) == []


def test_a_queue_that_a_site_is_not_known_to_have():
    def doubts(*tasks):
        found = find_unknown_queues(tasks, lambda site: (SMALL, LARGE) if site == "S" else ())
        return told(found, Severity.WARNING)

    assert doubts(make_task(), make_task(queue="Q_small"), make_task(queue="X", site="elsewhere")) == []
    assert doubts(make_task(queue="Q_smal"), make_task("b", queue="Q_smal"), make_task(queue="Q_smal")) == [
        "Queue Q_smal (labels isr, b) is not among those known of S; did you mean Q_small?"
    ]
    assert doubts(make_task(queue="XYZ")) == [
        "Queue XYZ (labels isr) is not among those known of S; jobs for a queue that does not exist never "
        "start."
    ]


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        (
            {"memory": 500001},
            "no queue of S takes its jobs; for the largest, Q_large, requestMemory 500001 is more",
        ),
        ({"walltime": 90000, "memory": 5000}, "requestWalltime 90000 is more than 86400 seconds"),
        (
            {"queue": "Q_small", "cores": 2},
            "queue Q_small does not take its jobs: requestCpus 2 is more than 1 cores",
        ),
        (
            {"queue": "Q_merge", "memory": 10**6},
            "say so in the YAML: queues: {Q_merge: {maxMemory: 1000000}}",
        ),
    ],
)
def test_does_not_fit(needs, words):
    (problem,) = misfits(make_task(**needs), make_task(**needs))
    assert words in problem
    assert problem.startswith("Label isr: ")


def test_labels_with_the_same_problem_share_a_line():
    needs = {"memory": 500001}
    tasks = [make_task(label, **needs) for label in ("isr", "warp")]
    first, second = misfits(*tasks, make_task("isr", **needs), make_task("coadd", memory=600000))
    assert first.startswith("Labels isr, warp: no queue of S")
    assert second.startswith("Label coadd: ")


def test_the_packaged_profiles_are_understood():
    known = {
        name: read_queues(sites.profile_of(name).get("queues"), source=name) for name in sites.site_names()
    }
    slac = {queue.name: queue for queue in known["SLAC"]}
    assert slac["SLAC_Rubin_4G"].memory == 4000
    assert not slac["SLAC_Rubin_Merge"].brokered
    assert known["local"] == ()
    # What is not known limits nothing.
    assert (
        find_labels_without_queue([make_task(memory=10**6, site="CC-IN2P3")], lambda site: known[site]) == []
    )
    assert known["LSST"] == ()


@pytest.mark.parametrize(
    ("site", "needs", "words"),
    [
        ("SLAC", {"memory": 500000}, ""),
        ("SLAC", {"memory": 500001}, "for the largest, SLAC_Rubin_Extra_Himem, requestMemory 500001"),
        ("SLAC", {"memory": 400000, "cores": 8}, ""),
        ("SLAC", {"memory": 600000, "cores": 8}, "for the largest, SLAC_Rubin_Multi, requestMemory 600000"),
        ("LANCS", {"memory": 300000}, "for the largest, LANCS_Rubin_Extra_Himem, requestMemory 300000"),
        ("RAL", {"memory": 300000}, ""),
        ("SLAC", {"queue": "SLAC_Rubin_Multi"}, "requestCpus 1 is less than 2 cores"),
        ("SLAC", {"queue": "SLAC_Rubin_Merge", "cores": 16, "memory": 32768}, ""),
    ],
)
def test_queues_of_the_facilities(site, needs, words):
    known = read_queues(sites.profile_of(site)["queues"], source=site)
    problems = told(
        find_labels_without_queue([make_task(site=site, **needs)], lambda _: known), Severity.ERROR
    )
    assert [words in problem for problem in problems] == ([True] if words else [])


@pytest.mark.parametrize(
    "section",
    [
        "Q",
        ["Q"],
        {"Q": {"memory": 5}},
        {"Q": {"maxMemory": "5 GB"}},
        {"Q": {"cores": -1}},
        {"Q": {"brokered": "nein"}},
    ],
)
def test_a_section_that_is_not_understood(section):
    with pytest.raises(SettingsError, match=r"queues.*profile of X"):
        read_queues(section, source="profile of X")


def test_limits_may_be_written_as_texts():
    (queue,) = read_queues({"Q": {"maxMemory": "4000", "brokered": "No"}}, source="profile of X")
    assert queue == QueueLimits(name="Q", memory=4000, brokered=False)


def plan(*tasks, final=()):
    run = RunIdentity("run", "", "", "", "", "", "", "", "", "", "")
    return WorkflowPlan(run, tuple(tasks), (), tuple(final), (), (), ())


def test_no_hint_without_need():
    final = make_task("finalJob", queue="Q_merge")
    assert hints(plan(make_task(jobs=MANY_JOBS), final=[final])) == []
    assert hints(plan(make_task(jobs=MANY_JOBS + 1))) == []  # an hour each


def test_many_short_jobs():
    task = make_task(jobs=MANY_JOBS, walltime=600)
    (hint,) = hints(plan(task, task))
    assert "Label isr has 20000 jobs" in hint
    assert "enableEventService: isr:20" in hint
    packed = replace(task, payloads_per_job=10)
    assert hints(plan(packed, packed)) == []


def test_a_request_that_steps_do_not_make_short_enough():
    (hint,) = hints(plan(make_task()), length=501, most=500)
    assert hint.startswith("The request has 501 bytes even without the dependencies")
    assert hints(plan(make_task()), length=500, most=500) == []


def test_a_large_task():
    (hint,) = hints(plan(make_task(jobs=LARGE_TASK + 1)))
    assert "tasks of 100001 jobs" in hint
    assert "maxJobsPerTask" in hint


def test_a_final_job_without_a_queue():
    (hint,) = hints(plan(final=[make_task("finalJob")]))
    assert "S_Rubin_Merge" in hint


def test_what_panda_does_not_honour_is_told_once():
    tasks = [make_task(label, walltime=600, cores=4) for label in ("isr", "coadd")]
    (found,) = find_unhonoured(tasks)
    assert (found.severity, found.label) == (Severity.HINT, "")
    assert "requestWalltime does not limit a job" in found.text
    assert "requestCpus counts only" in found.text
    assert find_unhonoured([make_task(walltime=DEFAULT_WALLTIME)]) == []
