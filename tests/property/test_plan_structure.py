"""Whatever workflow BPS makes, its plan has each job and each dependency once,
and runs to its end in the right order.

Workflows are random: labels in any order, dependencies within a label, nested
groups, no-op jobs, mixed needs; what is expected of them is worked out from
the generic workflow in another way than the planner does it.
"""

from __future__ import annotations

import enum
import itertools
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import networkx as nx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from panda_plans.settings import RUN, SETTINGS

from lsst.ctrl.bps import (
    GenericWorkflow,
    GenericWorkflowExec,
    GenericWorkflowFile,
    GenericWorkflowGroup,
    GenericWorkflowJob,
    GenericWorkflowNoopJob,
    generic_workflow,
)
from lsst.ctrl.bps.panda.edgenode import cmd_line_decoder as runner
from lsst.ctrl.bps.panda.errors import PlanError
from lsst.ctrl.bps.panda.plan.document import parse_plan, render_plan
from lsst.ctrl.bps.panda.plan.model import (
    JobPlan,
    NamingKind,
    TaskPlan,
    WorkflowPlan,
)
from lsst.ctrl.bps.panda.plan.planner import make_plan

LABELS = ("isr", "measure_2_stars", "coadd:3/x", "l" * 90, "étoile", ".hidden")
EXECUTABLE = GenericWorkflowExec("pipetask", "/bin/pipetask", False)
GRAPH = GenericWorkflowFile("runQgraphFile", "/submit/run.qg", wms_transfer=True, job_access_remote=True)

# --- random workflows ------------------------------------------------------


@dataclass(frozen=True)
class Spec:
    """A workflow before it is built: nodes in one of the orders in which they
    can run, and edges between their places.
    """

    nodes: tuple[object, ...]
    edges: frozenset[tuple[int, int]]


@dataclass(frozen=True)
class JobSpec:
    """A job: all that makes a difference to its plan."""

    name: str
    label: str
    memory: int | None = None
    variant: int = 0
    shared: str = "one"


@dataclass(frozen=True)
class NoopSpec:
    name: str


@dataclass(frozen=True)
class GroupSpec:
    name: str
    label: str
    blocking: bool
    content: Spec


@st.composite
def specs(draw, depth: int = 2, prefix: str = "") -> Spec:
    """A workflow of jobs, no-op jobs and (nested) groups."""
    size = draw(st.integers(1, 9 if depth == 2 else 4))
    nodes: list[object] = []
    for number in range(size):
        kind = draw(st.sampled_from(["job"] * 6 + ["noop"] + ["group"] * (4 if depth else 0)))
        name = f"{prefix}{number}"
        if kind == "job" or (number == 0 and depth == 2):
            nodes.append(
                JobSpec(
                    f"{draw(st.integers(0, 9))}_{name}",
                    draw(st.sampled_from(LABELS)),
                    draw(st.sampled_from([None, 4096])),
                    draw(st.integers(0, 1)),
                    draw(st.sampled_from(["one", "two"])),
                )
            )
        elif kind == "noop":
            nodes.append(NoopSpec(f"noop{name}"))
        else:
            label = draw(st.sampled_from(["day", "day", "night"]))
            content = draw(specs(depth=depth - 1, prefix=f"{name}."))
            nodes.append(GroupSpec(f"group{name}", label, draw(st.booleans()), content))
    pairs = list(itertools.combinations(range(size), 2))
    edges = draw(st.sets(st.sampled_from(pairs), max_size=12)) if pairs else set()
    return Spec(tuple(nodes), frozenset(edges))


def build(spec: Spec, *, seed: int = 0, into: GenericWorkflow | None = None) -> GenericWorkflow:
    """Build a generic workflow, its nodes and edges in some order."""
    order = random.Random(seed)
    workflow = GenericWorkflow(RUN.name) if into is None else into
    nodes, edges = list(spec.nodes), sorted(spec.edges)
    order.shuffle(nodes)
    order.shuffle(edges)
    for node in nodes:
        if isinstance(node, JobSpec):
            workflow.add_job(make_job(node))
            workflow.add_job_inputs(node.name, [GRAPH])
        elif isinstance(node, NoopSpec):
            workflow.add_job(GenericWorkflowNoopJob(node.name, "order"))
        else:
            group = GenericWorkflowGroup(node.name, node.label, blocking=node.blocking)
            workflow.add_node(build(node.content, seed=seed, into=group))
    for parent, child in edges:
        workflow.add_edge(spec.nodes[parent].name, spec.nodes[child].name)
    return workflow


def make_job(spec: JobSpec) -> GenericWorkflowJob:
    job = GenericWorkflowJob(spec.name, spec.label, executable=EXECUTABLE)
    extra = " --extra {extra}" if spec.variant else ""
    job.arguments = "run <FILE:runQgraphFile> -i {nodes} --to {shared} --all {everyone}" + extra
    job.cmdvals = {"nodes": f"node-{spec.name}", "shared": spec.shared, "everyone": "a b", "extra": "é'+:/"}
    job.request_memory = spec.memory
    return job


def jobs_of(spec: Spec) -> Iterator[JobSpec]:
    """All jobs, those in groups too."""
    for node in spec.nodes:
        if isinstance(node, JobSpec):
            yield node
        elif isinstance(node, GroupSpec):
            yield from jobs_of(node.content)


# --- what is expected ------------------------------------------------------


class Expected:
    """Dependencies and order of a workflow, by definition."""

    def __init__(self, spec: Spec) -> None:
        self.parents: dict[str, set[str]] = {job.name: set() for job in jobs_of(spec)}
        self.after: list[tuple[frozenset[str], frozenset[str]]] = []
        """Jobs that are over, failed or not, before others start."""
        self._enter(spec)

    def _enter(self, spec: Spec) -> None:
        for node in spec.nodes:
            if isinstance(node, GroupSpec):
                self._enter(node.content)
        graph = nx.DiGraph(spec.edges)
        graph.add_nodes_from(range(len(spec.nodes)))
        # What has no jobs only passes on what it waits for.
        empty = {n for n in graph if not isinstance(spec.nodes[n], JobSpec) and not self._jobs(spec.nodes[n])}
        for first, second in itertools.permutations(set(graph) - empty, 2):
            through = graph.subgraph([second, *empty])
            for begin in graph.successors(first):
                if begin in through and nx.has_path(through, begin, second):
                    gate = self._is_gate(spec.nodes[first], spec.nodes[begin])
                    self._edge(spec.nodes[first], spec.nodes[second], gate=gate)

    @staticmethod
    def _jobs(node: object) -> frozenset[str]:
        if isinstance(node, JobSpec):
            return frozenset({node.name})
        if isinstance(node, GroupSpec):
            return frozenset(job.name for job in jobs_of(node.content))
        return frozenset()

    @staticmethod
    def _is_gate(first: object, second: object) -> bool:
        groups = isinstance(first, GroupSpec) and isinstance(second, GroupSpec)
        return groups and first.label == second.label and not first.blocking

    def _edge(self, first: object, second: object, *, gate: bool) -> None:
        if gate:
            self.after.append((self._jobs(first), self._jobs(second)))
            return
        for parent in self._ends(first):
            for child in self._starts(second):
                self.parents[child].add(parent)

    def _starts(self, node: object) -> set[str]:
        if isinstance(node, JobSpec):
            return {node.name}
        inside = {job.name for job in jobs_of(node.content)}
        return {name for name in inside if not self.inner[node.name][name] & inside}

    def _ends(self, node: object) -> set[str]:
        if isinstance(node, JobSpec):
            return {node.name}
        inside = {job.name for job in jobs_of(node.content)}
        return inside - set().union(*(self.inner[node.name][name] for name in inside), set())

    @property
    def inner(self) -> dict[str, dict[str, set[str]]]:
        """Parents within each group; edges into a group come from outside of
        it, so that those known by now are enough.
        """
        return _Everywhere(self.parents)


class _Everywhere(dict):
    def __init__(self, parents: dict[str, set[str]]) -> None:
        self._parents = parents

    def __getitem__(self, _: str) -> dict[str, set[str]]:
        return self._parents


# --- a plan, read ----------------------------------------------------------


def all_jobs(plan: WorkflowPlan) -> list[tuple[TaskPlan, JobPlan]]:
    """Jobs by ordinal."""
    return [(task, job) for task in (*plan.tasks, *plan.final) for job in task.jobs]


def parents_of(plan: WorkflowPlan) -> dict[str, set[str]]:
    """Names of each job's parents, those behind a barrier in its place."""
    jobs = [job for _, job in all_jobs(plan)]

    def resolved(job: JobPlan) -> set[str]:
        assert len(set(job.parents)) == len(job.parents)
        found: set[str] = set()
        for parent in job.parents:
            name = jobs[parent].name
            found |= resolved(jobs[parent]) if name.startswith("barrier_") else {name}
        return found

    return {job.name: resolved(job) for job in jobs if not job.name.startswith("barrier_")}


PLANS = settings(suppress_health_check=[HealthCheck.too_slow])


@PLANS
@given(specs(), st.sampled_from([1, 4, 1000]), st.integers(1, 5))
def test_each_job_and_each_edge_is_there_once(spec: Spec, most_edges: int, most_jobs: int) -> None:
    plan = make_plan(build(spec), replace(SETTINGS, max_direct_edges=most_edges, max_jobs_per_task=most_jobs))
    expected = Expected(spec)
    assert parents_of(plan) == expected.parents
    for ordinal, (task, job) in enumerate(all_jobs(plan)):
        assert task.first <= ordinal < task.first + len(task.jobs)
        assert task.jobs[ordinal - task.first] is job
    counts = Counter(job.label for job in jobs_of(spec))
    planned = {label: count for label, count in plan.labels if not label.endswith("Barrier")}
    assert planned == counts


@PLANS
@given(specs(), st.integers(1, 5))
def test_chunks_divide_each_label(spec: Spec, most: int) -> None:
    plan = make_plan(build(spec), replace(SETTINGS, max_jobs_per_task=most))
    by_label: dict[str, list[TaskPlan]] = {}
    for task in plan.tasks:
        by_label.setdefault(task.label, []).append(task)
    for label, tasks in by_label.items():
        order_ids = [job.order_id for task in tasks for job in task.jobs]
        assert order_ids == list(range(dict(plan.labels)[label]))
        assert [task.chunk for task in tasks] == list(range(1, len(tasks) + 1))
        # Chunks of one family: same command, needs and group.
        families = itertools.groupby(tasks, key=lambda t: (t.command, t.resources, t.group))
        for _, chunks in families:
            sizes = [len(task.jobs) for task in chunks]
            assert max(sizes) <= most
    one_family = make_plan(
        build(Spec(tuple(JobSpec(f"j{n}", "isr") for n in range(17)), frozenset())),
        replace(SETTINGS, max_jobs_per_task=most),
    )
    sizes = [len(task.jobs) for task in one_family.tasks]
    assert sum(sizes) == 17
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-17 // most)


@PLANS
@given(specs())
def test_a_task_is_a_sink_if_it_holds_a_job_that_nobody_depends_on(spec: Spec) -> None:
    plan = make_plan(build(spec), SETTINGS)
    parents = {parent for _, job in all_jobs(plan) for parent in job.parents}
    for task in plan.tasks:
        ordinals = range(task.first, task.first + len(task.jobs))
        assert task.is_sink == any(ordinal not in parents for ordinal in ordinals)


class Play:
    """iDDS's rules, played: a task is released by its condition, a job by the
    end of its parents, the final job by the end of the sinks; any job may
    fail, and what depends on it is pruned.
    """

    def __init__(self, plan: WorkflowPlan, chance: random.Random) -> None:
        self.plan = plan
        self.jobs = [job for task in plan.tasks for job in task.jobs]
        self.tasks = {task.name: task for task in plan.tasks}
        self.waits = {name: c.waits_for for c in plan.conditions for name in c.starts}
        self.chance = chance
        self.results: dict[int, str] = {}
        self.history: list[tuple[str, frozenset[str]]] = []
        """Each job with those that were over when it started."""

    def is_over(self, name: str) -> bool:
        task = self.tasks[name]
        return all(ordinal in self.results for ordinal in range(task.first, task.first + len(task.jobs)))

    def ready(self) -> list[int]:
        released = (t for t in self.plan.tasks if all(map(self.is_over, self.waits.get(t.name, ()))))
        return [
            ordinal
            for task in released
            for ordinal, job in enumerate(task.jobs, task.first)
            if ordinal not in self.results and all(parent in self.results for parent in job.parents)
        ]

    def play(self) -> None:
        """Until the final job would start, or nothing can."""
        ready = self.ready()
        while ready and not all(self.is_over(task.name) for task in self.plan.tasks if task.is_sink):
            ordinal = self.chance.choice(ready)
            job = self.jobs[ordinal]
            self.history.append((job.name, self.named(*self.results.values())))
            failed = any(self.results[parent] != "done" for parent in job.parents)
            self.results[ordinal] = "pruned" if failed else self.chance.choice(["done", "done", "failed"])
            ready = self.ready()

    def named(self, *results: str) -> frozenset[str]:
        """Jobs with one of some results."""
        return frozenset(self.jobs[ordinal].name for ordinal, r in self.results.items() if r in results)


@PLANS
@given(specs(), st.sampled_from([1, 1000]), st.integers(1, 4), st.randoms(use_true_random=False))
def test_a_run_ends_in_the_right_order(spec: Spec, most_edges: int, most_jobs: int, chance) -> None:
    workflow = build(spec)
    workflow.add_final(make_job(JobSpec("last", "finalJob")))
    workflow.add_job_inputs("last", [GRAPH])
    plan = make_plan(workflow, replace(SETTINGS, max_direct_edges=most_edges, max_jobs_per_task=most_jobs))
    expected = Expected(spec)
    play = Play(plan, chance)
    play.play()
    # Nothing hangs, and the final job starts when everything is over.
    assert len(play.results) == len(play.jobs)
    for name, over in play.history:
        assert all(before <= over for before, after in expected.after if name in after)
    bad, pruned = play.named("failed", "pruned"), play.named("pruned")
    for name, parents in expected.parents.items():
        if name not in pruned:
            assert not parents & bad
        elif not any(other.startswith("barrier_") for other in bad):
            assert parents & bad


def check_tasks_have_no_circle(plan: WorkflowPlan) -> None:
    """iDDS starts nothing of tasks that wait for each other."""
    for tasks in (plan.tasks, plan.final):
        owner = {task.first + number: task.name for task in tasks for number in range(len(task.jobs))}
        graph = nx.DiGraph()
        for task in tasks:
            graph.add_edges_from((owner[parent], task.name) for job in task.jobs for parent in job.parents)
        graph.remove_edges_from(list(nx.selfloop_edges(graph)))
        for condition in plan.conditions:
            graph.add_edges_from(itertools.product(condition.waits_for, condition.starts))
        assert nx.is_directed_acyclic_graph(graph)


@PLANS
@given(specs(), st.sampled_from([1, 4, 1000]), st.integers(1, 5))
def test_tasks_do_not_wait_for_each_other(spec: Spec, most_edges: int, most_jobs: int) -> None:
    chosen = replace(SETTINGS, max_direct_edges=most_edges, max_jobs_per_task=most_jobs)
    check_tasks_have_no_circle(make_plan(build(spec), chosen))


@PLANS
@given(specs(), st.integers(1, 2**16), st.sampled_from(NamingKind))
def test_nothing_depends_on_the_order_of_building(spec: Spec, seed: int, naming: NamingKind) -> None:
    chosen = replace(SETTINGS, naming=naming)
    assert make_plan(build(spec), chosen) == make_plan(build(spec, seed=seed), chosen)


@PLANS
@given(specs(), st.sampled_from(NamingKind), st.integers(1, 5))
def test_names_are_unique_and_harmless(spec: Spec, naming: NamingKind, most: int) -> None:
    plan = make_plan(build(spec), replace(SETTINGS, naming=naming, max_jobs_per_task=most))
    names = [job.pseudo_input for _, job in all_jobs(plan)]
    tasks = [task.name for task in (*plan.tasks, *plan.final)]
    assert len(set(names)) == len(names)
    assert len(set(tasks)) == len(tasks)
    assert not any(re.search(r"[/^]", name) for name in (*names, *tasks))
    assert all(len(name) <= 255 for name in tasks)
    if naming is not NamingKind.PLAIN:
        assert all(re.fullmatch(r"[A-Za-z0-9_.:-]+", name, re.ASCII) for name in names)
    if naming in (NamingKind.SHORT, NamingKind.ORDER_ID_MAP):
        assert max(map(len, names)) < 64


def values_of(plan: WorkflowPlan, task: TaskPlan, job: JobPlan) -> dict[str, str]:
    """Find a job's values as the runner does: by its pseudo-input only."""
    call = task.command.split("cmd_line_decoder.py ")[1].partition("; );")[0]
    arguments = runner.Arguments(call.split())
    texts = {shard.name: shard.text for shard in plan.shards}
    pseudo = runner.parse_input(job.pseudo_input, short=arguments["parameters"] is not None)
    if pseudo.kind == "short":
        label, count = arguments["parameters"]
        name = f"{runner.SHARD_FOLDER}/{label}/{pseudo.order_id // count:06d}.json"
        return runner.find_in_shard(texts[name], pseudo.order_id)
    if pseudo.kind == "order":
        mapping = json.loads(texts[dict(arguments.files)[runner.ORDER_ID_MAP]])
        pseudo = runner.parse_input(mapping[pseudo.label][str(pseudo.order_id)])
    elif pseudo.kind == "named":
        pseudo = runner.parse_input(json.loads(texts[dict(arguments.files)[runner.NAME_MAP]])[pseudo.text])
    return dict(pseudo.values)


@PLANS
@given(specs(), st.sampled_from(NamingKind))
def test_a_name_leads_to_the_job_s_own_command(spec: Spec, naming: NamingKind) -> None:
    plan = make_plan(build(spec), replace(SETTINGS, naming=naming, placeholder_params=("nodes", "other")))
    known = {job.name: make_job(job) for job in jobs_of(spec)}
    for task, job in all_jobs(plan):
        if job.name.startswith("barrier_"):
            continue
        command = runner.decode_command(task.command.split("cmd_line_decoder.py ")[1].split()[0])
        origin = known[job.name]
        expected = origin.arguments
        for name, value in origin.cmdvals.items():
            expected = expected.replace(f"{{{name}}}", value)
        assert runner.insert_values(command, values_of(plan, task, job)) == f"/bin/pipetask {expected}"


@PLANS
@given(specs())
def test_a_plan_survives_its_document(spec: Spec) -> None:
    plan = make_plan(build(spec), SETTINGS)
    read = parse_plan("".join(render_plan(plan)), source="test")
    bare = [replace(t, jobs=tuple(job._replace(values=()) for job in t.jobs)) for t in plan.tasks]
    assert read == replace(plan, tasks=tuple(bare), shards=())


# --- core's own ordering ---------------------------------------------------


@st.composite
def layered(draw) -> tuple[GenericWorkflow, dict[str, dict[str, object]]]:
    """A workflow of three labels in layers, with an ``ordering`` section."""
    workflow = GenericWorkflow(RUN.name)
    layers: list[list[str]] = []
    for number, label in enumerate(("isr", "calibrate", "coadd")):
        layers.append([])
        for item in range(draw(st.integers(1, 6))):
            job = make_job(JobSpec(f"{label}_{item}", label))
            job.tags = {"visit": draw(st.integers(0, 3))}
            workflow.add_job(job)
            workflow.add_job_inputs(job.name, [GRAPH])
            layers[number].append(job.name)
            if number:
                above = layers[number - 1]
                for parent in draw(st.sets(st.sampled_from(above), max_size=3)):
                    workflow.add_job_relationships(parent, job.name)
    section = {
        "labels": draw(st.sampled_from(["isr", "isr, calibrate", "calibrate"])),
        "dimensions": "visit",
        "implementation": draw(st.sampled_from(["noop", "group"])),
        "blocking": draw(st.booleans()),
    }
    if section["labels"] == "isr, calibrate" and draw(st.booleans()):
        section["findDependencyMethod"] = draw(st.sampled_from(["source", "sink"]))
    return workflow, {"order": section}


@PLANS
@given(layered(), st.sampled_from([1, 1000]))
def test_ordering_by_core_holds(made, most_edges: int) -> None:
    """Jobs of a later visit come after those of earlier ones."""
    workflow, ordering = made
    visits = {name: workflow.get_job(name).tags["visit"] for name in workflow.nodes}
    labels = {name: workflow.get_job(name).label for name in workflow.nodes}
    before = nx.DiGraph(workflow.edges)
    section = ordering["order"]
    try:
        workflow.add_special_job_ordering(ordering)
    except Exception:  # core cannot order these jobs
        assume(False)
    if not nx.is_directed_acyclic_graph(nx.DiGraph(workflow.edges)):
        with pytest.raises(PlanError, match="circle"):
            make_plan(workflow, SETTINGS)
        return
    plan = make_plan(workflow, replace(SETTINGS, max_direct_edges=most_edges))
    check_tasks_have_no_circle(plan)
    parents = parents_of(plan)
    after = nx.DiGraph([(parent, name) for name in parents for parent in parents[name]])
    after.add_nodes_from(visits)
    waits = {name: c.waits_for for c in plan.conditions for name in c.starts}
    home = {job.name: task for task, job in all_jobs(plan)}
    for parent, child in before.edges:
        grouped = section["implementation"] == "group"
        same = visits[parent] == visits[child] or "findDependencyMethod" in section
        if not grouped or same:
            assert nx.has_path(after, parent, child) or home[parent].name in waits.get(home[child].name, ())
    ordered = [name for name in visits if labels[name] in section["labels"].split(", ")]
    if "findDependencyMethod" in section:
        return
    blocked = section["implementation"] == "noop" or section["blocking"]
    steps = sorted({visits[name] for name in ordered})
    follows = dict(itertools.pairwise(steps))
    for first, second in itertools.permutations(ordered, 2):
        if follows.get(visits[first]) == visits[second]:
            if blocked:
                assert nx.has_path(after, first, second)
            else:
                assert home[first].name in waits[home[second].name]


# --- single cases ----------------------------------------------------------


def test_a_circle_is_an_error_that_names_the_jobs() -> None:
    jobs = (JobSpec("a", "isr"), JobSpec("b", "isr"), JobSpec("c", "coadd"))
    spec = Spec(jobs, frozenset({(0, 1), (1, 0)}))
    with pytest.raises(PlanError, match=r"circle: a, b\."):
        make_plan(build(spec), SETTINGS)


def test_a_parent_that_does_not_exist_is_an_error() -> None:
    workflow = build(Spec((JobSpec("a", "isr"),), frozenset()))
    nx.DiGraph.add_edge(workflow, "ghost", "a")
    with pytest.raises(PlanError, match="'ghost'.*does not exist"):
        make_plan(workflow, SETTINGS)


def lazy_group(name: str) -> GenericWorkflowJob:
    """A lazy group of core, or what stands for one where core has none."""

    class Kind(enum.IntEnum):
        LAZY_GROUP = 4

    class LazyGroup(GenericWorkflowJob):
        node_type = Kind.LAZY_GROUP

    made: GenericWorkflowJob = getattr(generic_workflow, "GenericWorkflowLazyGroup", LazyGroup)(name, "isr")
    return made


def test_a_lazy_group_is_an_error() -> None:
    workflow = build(Spec((JobSpec("a", "isr"),), frozenset()))
    workflow.add_job(lazy_group("lazy"))
    with pytest.raises(PlanError, match="'lazy'.*LAZY_GROUP"):
        make_plan(workflow, SETTINGS)


def test_a_final_workflow_keeps_its_order_and_its_groups() -> None:
    final = build(
        Spec(
            (
                JobSpec("first", "gather"),
                GroupSpec("g1", "day", False, Spec((JobSpec("x", "pack"),), frozenset())),
                GroupSpec("g2", "day", False, Spec((JobSpec("y", "pack"),), frozenset())),
            ),
            frozenset({(0, 1), (1, 2)}),
        )
    )
    workflow = build(Spec((JobSpec("a", "isr"), JobSpec("b", "isr")), frozenset({(0, 1)})))
    workflow.add_final(final)
    plan = make_plan(workflow, SETTINGS)
    names = {job.name: task.name for task, job in all_jobs(plan)}
    assert [task.first for task in plan.final] == [2, 3, 4]
    assert parents_of(plan)["x"] == {"first"}
    assert parents_of(plan)["y"] == set()
    (condition,) = plan.conditions
    assert condition.waits_for == (names["x"],)
    assert condition.starts == (names["y"],)


PROGRAM = """
import runpy, sys
runpy.run_path(sys.argv[2])  # for what tests share
module = runpy.run_path(sys.argv[1])
nodes = tuple(module["JobSpec"](f"{n % 7}_{n}", module["LABELS"][n % 6], None, n % 2) for n in range(60))
edges = frozenset((a, b) for a in range(60) for b in range(a + 1, 60) if a * b % 11 == 3)
spec = module["Spec"](nodes, edges)
plan = module["make_plan"](module["build"](spec), module["SETTINGS"])
sys.stdout.write("".join(module["render_plan"](plan)))
"""


@pytest.mark.slow
def test_nothing_depends_on_the_hash_seed() -> None:
    texts = set()
    for seed in ("0", "1", "77"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", PROGRAM, __file__, Path(__file__).parents[1] / "conftest.py"]
        done = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=600)
        texts.add(done.stdout)
    assert len(texts) == 1
