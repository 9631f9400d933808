"""What becomes of the attributes and files of single jobs, and what is said of
those that cannot be used.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lsst.ctrl.bps import (
    GenericWorkflow,
    GenericWorkflowExec,
    GenericWorkflowFile,
    GenericWorkflowGroup,
    GenericWorkflowJob,
    GenericWorkflowNoopJob,
)
from lsst.ctrl.bps.panda.edgenode import cmd_line_decoder as runner
from lsst.ctrl.bps.panda.errors import PlanError
from lsst.ctrl.bps.panda.plan.commands import MAX_ARGUMENT, StagedFileNames
from lsst.ctrl.bps.panda.plan.model import (
    LabelSettings,
    NamingKind,
    Placement,
    PlanSettings,
    RunIdentity,
    StagedFile,
)
from lsst.ctrl.bps.panda.plan.planner import make_plan, require_success

LABEL = LabelSettings("SITE", "US", "", 900, "", "test", "managed", "wlcg", "python3 runner.py _cmd_line_")
RUN = RunIdentity("u_run", "someone", "dev", "", "pipe", "u/run", "SITE", "/submit", "/area/", "1", "30")
SETTINGS = PlanSettings(run=RUN, labels={"": LABEL})


def make_job(name: str = "a", label: str = "isr", **needs: object) -> GenericWorkflowJob:
    job = GenericWorkflowJob(name, label, executable=GenericWorkflowExec("sh", "/bin/sh"))
    job.arguments = "run {value}"
    job.cmdvals = {"value": name}
    for key, value in needs.items():
        setattr(job, key, value)
    return job


def plan_of(*jobs: GenericWorkflowJob, files: dict[str, list[GenericWorkflowFile]] | None = None):
    workflow = GenericWorkflow("u_run")
    for job in jobs:
        workflow.add_job(job)
        workflow.add_job_inputs(job.name, (files or {}).get(job.name, []))
    return make_plan(workflow, SETTINGS)


def command_of(task) -> str:
    return runner.decode_command(task.command.split()[2])


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        ({"number_of_retries": -1}, "numberOfRetries of job 'a'.*-1.*at least 0"),
        ({"request_memory": "much"}, "requestMemory of job 'a'.*'much'.*a number"),
        ({"request_memory": float("nan")}, "requestMemory.*nan"),
        ({"request_memory": float("inf")}, "requestMemory.*inf"),
        ({"request_memory": True}, "requestMemory.*True"),
        ({"request_memory": [1, 2]}, r"request_memory of job 'a'.*\[1, 2\].*a single value"),
        ({"queue": {"a": 1}}, "queue of job 'a'.*'a': 1.*a single value"),
        ({"request_memory_max": float("inf")}, "requestMemoryMax.*inf"),
        ({"memory_multiplier": float("inf")}, "memoryMultiplier.*inf"),
        ({"number_of_retries": float("inf")}, "numberOfRetries.*inf"),
        ({"request_disk": 10**400}, "requestDisk"),
        ({"priority": float("inf")}, "priority of label 'isr'.*inf"),
        ({"environment": "A=1"}, "environment of job 'a'.*'A=1'.*mapping"),
        ({"label": ""}, "label of job 'a' is ''"),
        ({"label": 5}, "label of job 'a' is 5"),
        ({"request_cpus": 0}, "requestCpus.*0.*at least 1"),
        ({"request_walltime": "1 h"}, "requestWalltime.*'1 h'"),
        ({"priority": "high"}, "priority of label 'isr'.*'high'"),
        ({"retry_unless_exit": [1, "two"]}, "retryUnlessExit.*'two'"),
        ({"environment": {"a b": "1"}}, "'a b'.*not a name"),
        ({"executable": None}, "'a'.*no executable"),
    ],
)
def test_what_cannot_be_used_is_named(needs: dict[str, object], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        plan_of(make_job(**needs))


@pytest.mark.parametrize(("retries", "attempts"), [(0, 1), (1, 2), (5, 6), (None, 3)])
def test_attempts_are_retries_and_one(retries: int | None, attempts: int) -> None:
    assert plan_of(make_job(number_of_retries=retries)).tasks[0].resources.attempts == attempts


@pytest.mark.parametrize(("memory", "cores", "planned"), [(1000, 3, 1002), (1000, 1, 1000), (7.2, 2, 8)])
def test_memory_is_a_multiple_of_the_cores_and_never_less(memory: float, cores: int, planned: int) -> None:
    needs = plan_of(make_job(request_memory=memory, request_cpus=cores)).tasks[0].resources
    assert (needs.memory, needs.cores) == (planned, cores)
    assert needs.memory_max >= planned


def test_values_that_are_no_texts_become_texts() -> None:
    plan = plan_of(make_job("a", cmdvals={"value": 1}), make_job("b", cmdvals={"value": None}))
    (shard,) = plan.shards
    assert json.loads(shard.text)["rows"] == [["1"], [""]]


def test_a_part_of_a_core_a_megabyte_or_a_second_counts_as_a_whole_one() -> None:
    needs = plan_of(make_job(request_cpus=1.5, request_disk=0.5, request_walltime="90.2")).tasks[0].resources
    assert (needs.cores, needs.disk, needs.walltime) == (2, 1, 91)


def test_what_yaml_takes_for_a_number_is_a_name_all_the_same() -> None:
    task = plan_of(make_job(queue=17, compute_site=5, compute_cloud=1.5, accounting_group=3)).tasks[0]
    assert task.placement == Placement(cloud="1.5", site="5", queue="17")
    assert task.accounting.working_group == "3"


def test_words_of_the_runner_command_may_be_in_a_path() -> None:
    label = replace(LABEL, runner_command="python3 _runner_ _cmd_line_")
    run = replace(RUN, staging_area="/a_cmd_line_b/_runner_/")
    settings = PlanSettings(run=run, labels={"": label}, runner=StagedFile("runner", "/r.py", "r.py"))
    workflow = GenericWorkflow("u_run")
    workflow.add_job(make_job())
    words = make_plan(workflow, settings).tasks[0].command.removeprefix("( ").split()
    assert words[1] == "/a_cmd_line_b/_runner_/r.py"
    assert runner.decode_command(words[2]) == "/bin/sh run a"


def test_a_map_of_names_refuses_jobs_of_one_name() -> None:
    """Names differ within a workflow, and BPS compares them with none of the
    final workflow.
    """
    workflow = GenericWorkflow("u_run")
    workflow.add_job(make_job())
    final = GenericWorkflow("final")
    final.add_job(make_job(cmdvals={"value": "other"}))
    final.add_job(make_job("b", "more"))
    workflow.add_final(final)
    assert len(make_plan(workflow, SETTINGS).final) == 2
    with pytest.raises(PlanError, match="name of another job"):
        make_plan(workflow, replace(SETTINGS, naming=NamingKind.QNODE_MAP))


@pytest.mark.parametrize("blocking", [False, True])
def test_order_holds_through_a_group_without_jobs(blocking: bool) -> None:
    workflow = GenericWorkflow("u_run")
    workflow.add_job(make_job("before"))
    for name in ("one", "two", "three"):
        group = GenericWorkflowGroup(name, "order", blocking=blocking)
        if name != "two":
            group.add_job(make_job(f"in_{name}"))
        workflow.add_job(group)
    workflow.add_job_relationships("before", "two")
    workflow.add_job_relationships("one", "two")
    workflow.add_job_relationships("two", "three")
    plan = make_plan(workflow, SETTINGS)
    jobs = [job for task in plan.tasks for job in task.jobs]
    (last,) = [job for job in jobs if job.name == "in_three"]
    parents = {jobs[parent].name for parent in last.parents}
    waited = {(c.waits_for, c.starts) for c in plan.conditions}
    task_of = {job.name: task.name for task in plan.tasks for job in task.jobs}
    if blocking:
        assert parents == {"before", "in_one"}
        assert not waited
    else:
        assert parents == {"before"}
        assert waited == {((task_of["in_one"],), (task_of["in_three"],))}


@pytest.mark.parametrize(("label", "barrier"), [("gather", "gatherBarrier"), ("", "noopBarrier")])
def test_a_barrier_behind_a_noop_has_the_label_of_the_noop(label: str, barrier: str) -> None:
    workflow = GenericWorkflow("u_run")
    parents, children = ["a", "b", "c"], ["d", "e", "f"]
    for name in parents + children:
        workflow.add_job(make_job(name, "isr" if name in parents else "coadd"))
    workflow.add_job(GenericWorkflowNoopJob("meet", label))
    workflow.add_job_relationships(parents, "meet")
    workflow.add_job_relationships("meet", children)
    plan = make_plan(workflow, replace(SETTINGS, max_direct_edges=8))
    assert [task.label for task in plan.tasks] == ["isr", barrier, "coadd"]
    assert plan.tasks[1].resources.attempts == 6
    assert plan.labels == (("isr", 3), (barrier, 1), ("coadd", 3))
    # As many edges as are allowed: no barrier.
    plan = make_plan(workflow, replace(SETTINGS, max_direct_edges=9))
    assert [task.label for task in plan.tasks] == ["isr", "coadd"]


@pytest.mark.parametrize(("most", "barriers"), [(8, ["visitBarrier"]), (9, [])])
@pytest.mark.parametrize("entering", [True, False])
def test_a_barrier_stands_before_and_behind_a_large_group(
    most: int, barriers: list[str], entering: bool
) -> None:
    workflow = GenericWorkflow("u_run")
    group = GenericWorkflowGroup("g", "visit", blocking=True)
    for name in "abc":
        workflow.add_job(make_job(f"out_{name}", "isr"))
        group.add_job(make_job(f"in_{name}", "coadd"))
    workflow.add_job(group)
    for name in "abc":
        pair = (f"out_{name}", "g")
        workflow.add_job_relationships(*(pair if entering else reversed(pair)))
    plan = make_plan(workflow, replace(SETTINGS, max_direct_edges=most))
    ends = ["isr", "coadd"] if entering else ["coadd", "isr"]
    assert [task.label for task in plan.tasks] == [ends[0], *barriers, ends[1]]
    assert [len(job.parents) for job in plan.tasks[-1].jobs] == [1 if barriers else 3] * 3


@pytest.mark.parametrize("codes", [0, [], None])
def test_jobs_without_exit_codes_share_a_task(codes: object) -> None:
    plan = plan_of(make_job("a"), make_job("b", retry_unless_exit=codes), make_job("c", environment={}))
    assert [[job.name for job in task.jobs] for task in plan.tasks] == [["a", "b", "c"]]


@pytest.mark.parametrize("codes", [[3, 4], (3, 4)])
def test_exit_codes_are_the_same_in_a_list_and_in_a_tuple(codes: object) -> None:
    plan = plan_of(make_job("a", retry_unless_exit=codes), make_job("b", retry_unless_exit=[3, 4]))
    assert len(plan.tasks) == 1
    assert "--retry-unless-exit=3,4" in plan.tasks[0].command


def test_what_is_not_honoured_is_said_once_with_its_labels() -> None:
    jobs = [make_job(f"j{n}", f"label{n % 2}", mail_to="me", preemptible=False) for n in range(6)]
    mail, preemptible = plan_of(*jobs, make_job("plain", "other")).warnings
    assert mail.startswith("mailTo (labels label0, label1) has no effect: ")
    assert preemptible.startswith("preemptible (labels label0, label1) has no effect: ")


@pytest.mark.parametrize(
    "needs",
    [
        {"arguments": "run {value} --more"},
        {"request_memory": 9000},
        {"environment": {"A": "1"}},
        {"retry_unless_exit": 3},
        {"executable": GenericWorkflowExec("other", "/bin/other")},
        {"executable": GenericWorkflowExec("sh", "/bin/other")},
        {"queue": "OTHER"},
        {"pre_cmdline": "module load x"},
    ],
    ids=lambda needs: next(iter(needs)),
)
def test_jobs_that_differ_in_more_than_values_get_tasks_of_their_own(needs: dict[str, object]) -> None:
    plan = plan_of(make_job("a"), make_job("b", **needs), make_job("c"))
    assert [[job.name for job in task.jobs] for task in plan.tasks] == [["a", "c"], ["b"]]
    first, second = ((task.command, task.resources, task.placement) for task in plan.tasks)
    assert first != second


@pytest.mark.parametrize("way", ["add_job_inputs", "add_job_outputs"])
def test_jobs_with_other_files_get_tasks_of_their_own(way: str) -> None:
    files = {key: GenericWorkflowFile(key, f"/s/{key}", wms_transfer=True) for key in "fgh"}
    wanted = {"a": "fg", "b": "fh", "c": "fg", "d": "f", "e": ""}
    workflow = GenericWorkflow("u_run")
    for name, keys in wanted.items():
        workflow.add_job(make_job(name))
        getattr(workflow, way)(name, [files[key] for key in keys])
    plan = make_plan(workflow, SETTINGS)
    assert sorted([job.name for job in task.jobs] for task in plan.tasks) == [["a", "c"], ["b"], ["d"], ["e"]]
    for task in plan.tasks if way == "add_job_inputs" else ():
        listed = runner.decode_files(task.command.split()[5])
        assert "".join(key for key, _ in listed) == wanted[task.jobs[0].name]


def test_a_job_without_a_value_that_others_have_is_an_error() -> None:
    with pytest.raises(PlanError, match="'b' has no value"):
        plan_of(make_job("a"), make_job("b", cmdvals={}))


def test_long_lists_of_single_jobs_are_given_in_several_options() -> None:
    """A cluster of jobs may have more quanta than one argument can name."""
    lists = {name: ",".join(f"{name}{number:07d}" for number in range(20_000)) for name in ("a", "b")}
    jobs = [make_job(n, arguments="run --id {ids}", cmdvals={"ids": ids}) for n, ids in lists.items()]
    (task,) = plan_of(*jobs, make_job("c", arguments="run --id {ids}", cmdvals={"ids": "c"})).tasks
    for job in task.jobs:
        values = dict(zip(task.parameter_names, job.values, strict=True))
        words = runner.insert_values(command_of(task), values).split()
        parts = [word for word in words if word not in ("/bin/sh", "run", "--id")]
        assert max(map(len, words)) <= MAX_ARGUMENT
        assert ",".join(parts) == lists.get(job.name, "c")
        assert words.count("--id") == len(parts) == (1 if job.name == "c" else 2)


def test_each_job_gets_the_quantum_graph_that_is_its_own() -> None:
    """BPS makes one a job where ``whenSaveJobQgraph`` is not ``NEVER``."""
    jobs = [make_job(n, arguments=f"run <FILE:qgraphFile_{n}> {{value}}") for n in ("a", "b")]
    files = {
        n: [GenericWorkflowFile(f"qgraphFile_{n}", f"/s/{n}/q x.qg", wms_transfer=True)] for n in ("a", "b")
    }
    plan = plan_of(*jobs, files=files)
    (task,) = plan.tasks
    sources = {staged.name: staged.source for staged in plan.files}
    commands = []
    for job in task.jobs:
        values = runner.find_in_shard(plan.shards[0].text, job.order_id)
        commands.append(runner.insert_values(command_of(task), values))
    assert commands == ["/bin/sh run 'q x.qg' a", "/bin/sh run '2/q x.qg' b"]
    assert sources == {"q x.qg": "/s/a/q x.qg", "2/q x.qg": "/s/b/q x.qg"}


def test_environment_before_and_after_surround_the_payload() -> None:
    needs = {
        "environment": {"B": "it's {value} <ENV:HOME>", "A": "<WMS:attemptNum>"},
        "pre_cmdline": "setup x",
        "post_cmdline": "tidy up",
    }
    job = make_job("a", **needs)
    other = make_job("b", **needs)
    (task,) = plan_of(job, other).tasks
    assert command_of(task) == (
        """export A="<WMS:attemptNum>"; export B='it'"'"'s '"{value}"' '"<ENV:HOME>"; """
        "if setup x; then :; else exit $?; fi; "
        "/bin/sh run {value}; payloadCode=$?; tidy up; exit $payloadCode"
    )


def test_many_files_of_one_name_are_told_apart() -> None:
    staged_names = StagedFileNames(frozenset())
    files = [GenericWorkflowFile(f"k{n}", f"/{n}/same", wms_transfer=True) for n in range(5000)]
    names = {staged_names.assign(gwfile).name for gwfile in files}
    assert len(names) == 5000
    assert staged_names.assign(files[7]).name in names


def test_a_long_value_travels_with_the_job_even_if_it_is_the_only_one() -> None:
    (task,) = plan_of(make_job(cmdvals={"value": "x" * 300_000})).tasks
    assert len(task.command) < 1000
    assert task.jobs[0].values == ("x" * 300_000,)


def test_many_groups_one_after_another_are_said_to_take_long() -> None:
    def warnings(groups: int) -> tuple[str, ...]:
        workflow = GenericWorkflow("u_run")
        for number in range(groups):
            job = make_job(f"j{number}")
            job.tags = {"visit": number}
            workflow.add_job(job)
        section = {"labels": "isr", "dimensions": "visit", "blocking": False}
        workflow.add_special_job_ordering({"visits": section})
        return make_plan(workflow, SETTINGS).warnings

    assert warnings(101) == ()
    (text,) = warnings(122)
    assert "121 non-blocking groups" in text
    assert "3.0 h" in text


@pytest.mark.parametrize(
    ("payloads", "asked", "largest", "packed", "walltime"),
    [
        (1, None, 0, 1, 90_000),
        (1, 600, 7200, 1, 600),
        (4, None, 0, 4, 90_000),
        (4, None, 7200, 4, 7200),
        (4, 600, 0, 4, 2400),
        (4, 600, 7200, 12, 7200),
        (4, 5000, 7200, 1, 5000),
        (4, 9000, 7200, 1, 9000),
    ],
)
def test_payloads_share_a_job_as_its_wall_time_allows(
    payloads: int, asked: int | None, largest: int, packed: int, walltime: int
) -> None:
    settings = replace(
        SETTINGS, labels={"": replace(LABEL, payloads_per_job=payloads)}, max_wms_job_walltime=largest
    )
    workflow = GenericWorkflow("u_run")
    workflow.add_job(make_job(request_walltime=asked))
    (task,) = make_plan(workflow, settings).tasks
    assert task.payloads_per_job == packed
    assert task.event_service == (packed > 1)
    assert task.resources.walltime == walltime


@pytest.mark.parametrize(
    ("needs", "memory", "largest", "growth"),
    [
        ({}, 1024, 491_520, 1.0),
        ({"request_memory": 2000, "memory_multiplier": 2.5}, 2000, 491_520, 2.5),
        ({"request_memory": 2000, "memory_multiplier": 0.5}, 2000, 491_520, 1.0),
        ({"request_memory": 2000, "request_memory_max": 9000}, 2000, 9000, 1.0),
        ({"request_memory": 2000, "request_memory_max": 1000}, 2000, 2000, 1.0),
    ],
)
def test_memory_grows_up_to_its_limit(
    needs: dict[str, object], memory: int, largest: int, growth: float
) -> None:
    planned = plan_of(make_job(**needs)).tasks[0].resources
    assert (planned.memory, planned.memory_max, planned.memory_growth) == (memory, largest, growth)
    assert planned.cores == 1
    assert planned.disk == 0


def test_what_a_job_says_of_its_place_and_priority_goes_before_the_settings() -> None:
    label = replace(LABEL, site="S", cloud="C", queue="Q", priority=7)
    settings = replace(SETTINGS, labels={"": label})
    workflow = GenericWorkflow("u_run")
    workflow.add_job(make_job("a"))
    workflow.add_job(
        make_job(
            "b",
            label="own",
            compute_site="T",
            compute_cloud="D",
            queue="R",
            priority="9",
            accounting_group="g",
        )
    )
    by_label = {task.label: task for task in make_plan(workflow, settings).tasks}
    assert by_label["isr"].placement == Placement("C", "S", "Q")
    assert (by_label["isr"].accounting.priority, by_label["isr"].accounting.working_group) == (7, "")
    assert by_label["own"].placement == Placement("D", "T", "R")
    assert (by_label["own"].accounting.priority, by_label["own"].accounting.working_group) == (9, "g")


def test_a_final_task_may_want_the_success_of_the_run() -> None:
    workflow = GenericWorkflow("u_run")
    for name, label in (("a", "isr"), ("b", "coadd"), ("c", "alone")):
        workflow.add_job(make_job(name, label))
    workflow.add_job_relationships("a", "b")
    final = GenericWorkflow("final")
    final.add_job(make_job("d", "register"))
    final.add_job(make_job("e", "finalJob"))
    workflow.add_final(final)
    plan = make_plan(workflow, SETTINGS)
    wanting = require_success(plan, "register")
    names = {task.first: task.jobs[0].name for task in plan.tasks}
    parents = {task.label: {names[p] for p in task.jobs[0].parents} for task in wanting.final}
    assert parents == {"register": {"b", "c"}, "finalJob": set()}
    assert wanting.tasks == plan.tasks
    assert require_success(wanting, "register") == wanting


def test_a_workflow_without_jobs_is_an_error() -> None:
    with pytest.raises(PlanError, match="'u_run' has no jobs"):
        make_plan(GenericWorkflow("u_run"), SETTINGS)


def test_two_jobs_of_one_name_are_an_error() -> None:
    workflow = GenericWorkflow("u_run")
    for name in ("one", "two"):
        group = GenericWorkflowGroup(name, "order")
        group.add_job(make_job("same"))
        workflow.add_job(group)
    workflow.add_job(make_job("other"))
    with pytest.raises(PlanError, match=r"several jobs of the workflow: same\."):
        make_plan(workflow, SETTINGS)


def test_a_circle_of_groups_is_an_error_that_names_them() -> None:
    workflow = GenericWorkflow("u_run")
    for name in ("one", "two"):
        group = GenericWorkflowGroup(name, "order")
        group.add_job(make_job(f"in_{name}"))
        workflow.add_job(group)
    workflow.add_job(make_job("after"))
    workflow.add_job_relationships("one", "two")
    workflow.add_job_relationships("two", "after")
    workflow.add_edge("two", "one")
    with pytest.raises(PlanError, match=r"wait for each other in a circle: one, two\."):
        make_plan(workflow, SETTINGS)
