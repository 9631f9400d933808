"""Which job is this?  Names and data IDs of a run's jobs from the files of its submit directory."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from lsst.pipe.base.tests.mocks import InMemoryRepo

from lsst.ctrl.bps import GenericWorkflow, GenericWorkflowExec, GenericWorkflowFile, GenericWorkflowJob
from lsst.ctrl.bps.panda.errors import RunNotFoundError, SettingsError
from lsst.ctrl.bps.panda.plan.document import find_tasks, render_plan
from lsst.ctrl.bps.panda.plan.model import LabelSettings, NamingKind, PlanSettings, RunIdentity, WorkflowPlan
from lsst.ctrl.bps.panda.plan.planner import make_plan, make_restart_plan
from lsst.ctrl.bps.panda.runs.files import PARAMETERS_DIRECTORY, PLAN_NAME
from lsst.ctrl.bps.panda.runs.jobs import JobQuery, RunJobs
from lsst.ctrl.bps.panda.runs.record import RunRecord
from lsst.ctrl.bps.panda.staging import StagingSettings
from lsst.ctrl.bps.panda.status.evidence import RunEvidence
from lsst.ctrl.bps.panda.status.job_errors import JobError
from lsst.ctrl.bps.panda.status.records import JobRecord, RequestRecord, TransformRecord, describe_data

NAME = "u_ann_pay_20261120T120000Z"
LABEL = LabelSettings("S", "", "", 1, "", "", "", "", "python3 runner.py _cmd_line_")
EXECUTABLE = GenericWorkflowExec("pipetask", "/bin/pipetask")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """A quantum graph of two tasks and four detectors in both formats, and its quanta."""
    directory = tmp_path_factory.mktemp("graphs")
    repo = InMemoryRepo("base.yaml")
    repo.add_task("one", dimensions=["detector"])
    repo.add_task("two", dimensions=["detector"])
    components = repo.make_quantum_graph_builder().finish(attach_datastore_records=False)
    components.write(directory / "run.qg")
    graph = components.assemble()
    graph.to_old_quantum_graph().saveUri(str(directory / "run.qgraph"))
    quanta = {
        (label, data_id["detector"]): str(quantum)
        for label, some in graph.quanta_by_task.items()
        for data_id, quantum in some.items()
    }
    return directory, quanta


class Run:
    """A run with clusters of two quanta, jobs of one, and one that is alone with its label."""

    def __init__(self, directory: Path, graphs, *, naming=NamingKind.SHORT, suffix=".qg", chunk=10, **more):
        graph_directory, quanta = graphs
        self.submit, self.area = directory / "submit", directory / "area #1"
        self.submit.mkdir()
        self.area.mkdir()
        graph = self.submit / f"run{suffix}"
        shutil.copy(graph_directory / graph.name, graph)
        workflow = GenericWorkflow(NAME)
        file = GenericWorkflowFile("runQgraphFile", str(graph), wms_transfer=True, job_shared=True)

        def add(name: str, label: str, *keys: tuple[str, int]) -> None:
            job = GenericWorkflowJob(name, label, executable=EXECUTABLE, **more)
            job.arguments = "run-qbb <FILE:runQgraphFile> --qgraph-node-id {qgraphNodeId}"
            job.cmdvals = {"qgraphNodeId": ",".join(quanta[key] for key in keys)}
            workflow.add_job(job)
            workflow.add_job_inputs(name, [file])

        for detector in (1, 2, 3):
            add(f"one_{detector}", "one", ("one", detector))
        for detectors in ((1, 2), (3, 4)):
            add(f"pair_{detectors[0]}", "pair", *(("two", detector) for detector in detectors))
        add("one_4", "alone", ("one", 4))
        init = GenericWorkflowJob("pipetaskInit", "pipetaskInit", executable=EXECUTABLE, arguments="init")
        workflow.add_job(init)
        identity = RunIdentity(
            NAME, "ann", "", "", "pay", "", "S", str(self.submit), f"{self.area}/", "P", "B"
        )
        settings = PlanSettings(identity, {"": LABEL}, naming=naming, max_jobs_per_task=chunk)
        self.plan = make_plan(workflow, settings)
        self.record = RunRecord.from_plan(self.plan, staging=StagingSettings(area=f"{self.area}/"))
        self.write(self.submit, self.plan, self.record)
        self.parameters = self.submit / PARAMETERS_DIRECTORY
        for shard in self.plan.shards:
            path = self.parameters / shard.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(shard.text)

    def write(self, directory: Path, plan: WorkflowPlan, record: RunRecord) -> None:
        directory.mkdir(exist_ok=True)
        (directory / PLAN_NAME).write_text("".join(render_plan(plan)))
        record.write(directory)

    def evidence(self, record: RunRecord | None = None) -> RunEvidence:
        record = record or self.record
        transforms = tuple(
            TransformRecord(7, number, task.name, "Transforming", workload_id=100 + number)
            for number, task in enumerate(record.tasks)
        )
        return RunEvidence(RequestRecord(7, record.name, "Transforming"), transforms, record.plan_summary())

    def attempts(self, evidence: RunEvidence, plan: WorkflowPlan | None = None) -> list[JobRecord]:
        """An attempt of each job, as PanDA names it."""
        tasks = {task.name: task for task in (plan or self.plan).tasks}
        return [
            JobRecord(1000 + number, item.workload_id, "failed", tasks[item.name].label, job.pseudo_input)
            for item in evidence.transforms or ()
            for number, job in enumerate(tasks[item.name].jobs)
        ]


def named(jobs) -> dict[str, list[int]]:
    return {job.bps_name: [data["detector"] for data in job.data] for job in jobs}


EXPECTED = {
    "pipetaskInit": [], "one_1": [1], "one_2": [2], "one_3": [3], "pair_1": [1, 2], "pair_3": [3, 4],
    "one_4": [4],
}  # fmt: skip


@pytest.mark.parametrize("naming", list(NamingKind))
def test_names_and_data_ids_with_each_way_of_naming(tmp_path, graphs, naming):
    run = Run(tmp_path, graphs, naming=naming, chunk=2)
    evidence = run.evidence()
    jobs = RunJobs(evidence).identify(run.attempts(evidence))
    assert named(jobs) == EXPECTED
    (pair,) = (job for job in jobs if job.bps_name == "pair_3")
    assert pair.title == f"pair_3 ({pair.name}; detector=3|4)"
    assert pair.data[0] == {"instrument": "Cam1", "detector": 3}


def test_attempts_that_the_runner_refused_are_known_from_the_plan(tmp_path, graphs):
    run = Run(tmp_path, graphs, retry_unless_exit=[1, 2])
    evidence = run.evidence()
    task_id = next(item.workload_id for item in evidence.transforms if "_one_" in item.name)

    def refused(job: str, *codes: int) -> list[int]:
        attempts = tuple(
            JobRecord(number, task_id, "failed", "one", job, errors=(JobError("payload", code),))
            for number, code in enumerate(codes)
        )
        found = RunJobs(evidence).set_refused_aside(evidence.with_attempts(attempts, ()))
        assert {job.panda_id for job in found.attempts} == set(range(len(codes))) - found.refused
        return sorted(found.refused)

    assert refused("one:0", 1, 1, 1) == [1, 2]
    assert refused("one:0", 9, 2, 2) == [2]
    assert refused("one:0", 9, 9, 1) == []
    assert refused("one:0", 137, 137) == []


def test_a_graph_in_the_format_before(tmp_path, graphs):
    run = Run(tmp_path, graphs, suffix=".qgraph")
    evidence = run.evidence()
    assert named(RunJobs(evidence).identify(run.attempts(evidence))) == EXPECTED
    found = RunJobs(evidence).find(JobQuery(data="detector=4"))
    assert sorted(map(sorted, found.values())) == [["alone:0"], ["pair:1"]]


def test_jobs_of_a_restart_are_found_in_the_files_of_the_first_run(tmp_path, graphs):
    run = Run(tmp_path, graphs)
    plan = make_restart_plan(run.plan, {0, 1, 2}, name=f"{NAME}_r1", origin=7)
    directory = run.submit / "restart_1"
    plan = replace(plan, run=replace(plan.run, submit_path=str(directory)))
    record = run.record.for_restart(plan)
    run.write(directory, plan, record)
    evidence = run.evidence(record)
    jobs = RunJobs(evidence).identify(run.attempts(evidence, plan))
    assert len(jobs) == 4
    assert named(jobs).items() <= EXPECTED.items()


@pytest.mark.parametrize("far", [True, False])
def test_what_only_the_staging_area_has_is_read_there(tmp_path, graphs, far):
    """As after a remote build, of which the submit directory has the plan only."""
    run = Run(tmp_path, graphs)
    evidence = run.evidence()
    for shard in run.plan.shards:
        (run.area / shard.name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(run.parameters / shard.name, run.area / shard.name)
    shutil.move(run.submit / "run.qg", run.area / "run.qg")
    assert named(RunJobs(evidence, far=far).identify(run.attempts(evidence))) == EXPECTED


def test_an_area_elsewhere_is_not_read_where_nobody_waits_for_it(tmp_path, graphs, caplog):
    run = Run(tmp_path, graphs)
    shutil.rmtree(run.parameters)
    section = run.record.run.model_copy(update={"staging_area": "https://nowhere.example/area/"})
    run.record.model_copy(update={"run": section}).write(run.submit)
    evidence = run.evidence()
    jobs = RunJobs(evidence, far=False).identify(run.attempts(evidence))
    assert {job.bps_name for job in jobs} == set(EXPECTED)
    assert not any(job.data for job in jobs)


def test_without_the_files_everything_is_as_it_was(tmp_path, graphs):
    run = Run(tmp_path, graphs)
    evidence = replace(run.evidence(), plan=None)
    attempts = run.attempts(evidence)
    jobs = RunJobs(evidence)
    assert jobs.identify(attempts) == tuple(attempts)
    assert attempts[0].title == attempts[0].name
    assert jobs.find(JobQuery(job="one_1")) == {}
    with pytest.raises(RunNotFoundError, match="Give the submit directory instead of the id"):
        jobs.find(JobQuery(data="detector=1"))


@pytest.mark.parametrize("broken", [PLAN_NAME, "run.qg", "parameters", "panda_run.json"])
def test_damaged_files_leave_jobs_as_they_are(tmp_path, graphs, broken):
    run = Run(tmp_path, graphs)
    evidence = run.evidence()
    paths = run.parameters.rglob("*.json") if broken == "parameters" else [run.submit / broken]
    for path in paths:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    attempts = run.attempts(evidence)
    jobs = RunJobs(evidence).identify(attempts)
    assert [job.name for job in jobs] == [attempt.name for attempt in attempts]
    assert not any(job.data for job in jobs)


def test_jobs_are_found_by_name_pseudo_input_and_data_id(tmp_path, graphs):
    run = Run(tmp_path, graphs)
    jobs = RunJobs(run.evidence())

    def inputs(**which: str) -> list[str]:
        return sorted(name for names in jobs.find(JobQuery(**which)).values() for name in names)

    assert inputs(job="pair_3") == inputs(job="pair:1") == ["pair:1"]
    assert inputs(data="detector=3") == ["one:2", "pair:1"]
    assert inputs(data=" instrument = 'Cam1' , detector=1|4") == ["alone:0", "one:0", "pair:0", "pair:1"]
    assert inputs(data="detector=3", label="one") == ["one:2"]
    assert inputs(data="detector=3", job="pair_3") == ["pair:1"]
    assert inputs(job="pair_4") == inputs(job="pair_3", label="one") == []
    assert jobs.suggest("par_3") == "; did you mean pair_3?"
    assert jobs.suggest("nothing like it") == "."


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (
            "detektor=1",
            RunNotFoundError,
            "has a detektor; did you mean detector. Its data IDs have instrument",
        ),
        ("detector=9", RunNotFoundError, r"has detector=9\. There is detector=1\|2\|3\|4\."),
        ("instrument=Cam2", RunNotFoundError, r"did you mean Cam1\? There is instrument=Cam1\."),
        ("detector", SettingsError, "'detector' is not understood at 'detector'"),
        ("detector=1,", SettingsError, "not understood at ''"),
        ("detector=", SettingsError, "not understood"),
    ],
)
def test_what_there_is_instead_is_said(tmp_path, graphs, data, kind, message):
    run = Run(tmp_path, graphs)
    with pytest.raises(kind, match=message.replace("detector. Its", r"detector\? Its")):
        RunJobs(run.evidence()).find(JobQuery(data=data))


def test_a_quantum_of_another_label_is_no_job(tmp_path, graphs):
    run = Run(tmp_path, graphs)
    with pytest.raises(RunNotFoundError, match="No job of label 'alone' has a quantum with detector=1"):
        RunJobs(run.evidence()).find(JobQuery("alone", data="detector=1"))


def test_only_the_tasks_in_question_are_read(tmp_path, graphs):
    run = Run(tmp_path, graphs)
    wanted = run.plan.tasks[1].name
    lines = "".join(render_plan(run.plan)).encode().splitlines(keepends=True)
    (task,) = find_tasks(
        [line if wanted.encode() in line else b'{"name": "x", broken' for line in lines], [wanted]
    )
    assert task == replace(run.plan.tasks[1], jobs=task.jobs)


def test_data_ids_in_one_line():
    visits = [{"instrument": "C", "visit": 1, "detector": n, "band": "r", "day_obs": 5} for n in (2, 0, 1)]
    assert describe_data(visits) == "visit=1, detector=0|1|2, band=r"
    many = [{"tract": 1, "patch": number} for number in range(12)]
    assert describe_data(many) == "tract=1, patch=0 to 11 (12 values)"
    assert describe_data([{"skymap": "s", "tract": 4}, {"instrument": "C", "visit": 8}]) == "tract=4, visit=8"
    assert describe_data([{"instrument": "C"}]) == "instrument=C"
    assert describe_data([]) == describe_data([{}]) == ""
