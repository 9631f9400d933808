"""The graph of tasks, drawings, and the page."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import pytest
from jinja2 import UndefinedError
from jsonschema import Draft202012Validator
from lsst.ctrl.bps.wms_service import WmsStates

from lsst.ctrl.bps.panda.insight.documents import make_document, read_schema
from lsst.ctrl.bps.panda.insight.overview import make_overview
from lsst.ctrl.bps.panda.insight.resources import count_over_time, measure_resources, write_plots
from lsst.ctrl.bps.panda.insight.task_graph import MAX_NODES, TaskGraph, TaskNode, make_task_graph
from lsst.ctrl.bps.panda.plan.model import ConditionPlan, JobPlan, TaskPlan, WorkflowPlan
from lsst.ctrl.bps.panda.status.evidence import RunEvidence
from lsst.ctrl.bps.panda.status.failures import ErrorGroup
from lsst.ctrl.bps.panda.status.job_errors import JobError
from lsst.ctrl.bps.panda.status.records import (
    FileCounts,
    JobRecord,
    RequestRecord,
    TaskRecord,
    TransformRecord,
)
from lsst.ctrl.bps.panda.status.verdicts import Verdict
from lsst.ctrl.bps.panda.web.page import (
    RunPage,
    draw_graph,
    draw_histogram,
    draw_timeline,
    render,
    render_page,
)

START = datetime(2026, 11, 20, tzinfo=UTC)
NASTY = "<script>alert('x')</script>&\""


def transform(number, label, status, **counts):
    total = sum(counts.values())
    return TransformRecord(
        9, number, f"run_{number:02d}_{label}_01", status, "Finished", 100 + number,
        FileCounts(total, **counts),
        FileCounts(total, processed=total),
    )  # fmt: skip


def observation(*transforms, jobs=()):
    request = RequestRecord(9, "run", "SubFinished", created_at=START, updated_at=START)
    tasks = tuple(TaskRecord(item.workload_id, item.name, "finished", dialog=NASTY) for item in transforms)
    evidence = RunEvidence(request, transforms, tasks=tasks, asked_at=START + timedelta(days=1))
    return replace(evidence, attempts=tuple(jobs))


def a_job(number, start, end, status="finished"):
    return JobRecord(
        number, 101, status, "isr", f"isr:{number}", 1, started=START + timedelta(seconds=start),
        ended=None if end is None else START + timedelta(seconds=end), max_rss=1024 * (100 + number),
        memory=200,
        log_url="javascript:alert(1)",
    )  # fmt: skip


@pytest.fixture
def page():
    jobs = [a_job(n, n, 10 + n, "failed" if n == 3 else "finished") for n in range(9)]
    seen = observation(
        transform(1, "isr", "Finished", processed=9), transform(2, "co<add", "Failed", failed=1), jobs=jobs
    )
    seen = replace(seen, problems=(NASTY,))
    error = JobError("payload", 1, NASTY)
    group = ErrorGroup(
        "isr", error, NASTY, 1, 1, 1, sites=(("Q", 1),), nodes=((NASTY, 1),), first=START, last=START,
        example=jobs[3], errors=(error,), log_tail=(NASTY,), verdict=Verdict(NASTY, NASTY),
    )  # fmt: skip
    return RunPage(
        overview=make_overview(seen, server="http://x/server/panda", monitor_url="https://monitor:8443"),
        graph=make_task_graph(seen, None),
        groups=[group],
        labels=measure_resources(seen),
        jobs=jobs,
        made_at=START,
    ), seen


class Checker(HTMLParser):
    """Notes tags, and that each is closed in turn."""

    VOID = {"meta", "br", "input", "path", "rect", "line", "polyline"}

    def __init__(self):
        super().__init__()
        self.open = []
        self.tags = []
        self.text = ""
        self.links = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_whole_and_nothing_in_it_runs(page):
    checker = Checker()
    checker.feed(render_page(page[0]))
    assert checker.open == []
    assert "script" not in checker.tags
    assert checker.text.count(NASTY) >= 5
    assert all(link.startswith("https://monitor:8443/") for link in checker.links)
    assert {"svg", "table", "pre"} <= set(checker.tags)


def test_a_name_that_a_template_does_not_know_is_an_error():
    with pytest.raises(UndefinedError, match="'frame' is undefined"):
        render("plot.svg", kind="timeline", title="")


def test_an_empty_run_has_a_page():
    seen = observation()
    page = RunPage(make_overview(seen, server=""), make_task_graph(seen, None), [], [], [], START)
    assert "No failed job is known" in render_page(page)


def test_drawings_are_xml(page):
    for text in (draw_graph(page[0].graph), draw_timeline(page[0].jobs), draw_histogram([1, 2, 3], limit=2)):
        assert ElementTree.fromstring(text).tag.endswith("svg")
    assert draw_timeline([]) == draw_histogram([]) == draw_graph(TaskGraph((), ())) == ""
    assert ElementTree.fromstring(draw_histogram([5.0])).tag.endswith("svg")


def test_jobs_over_time():
    jobs = [a_job(1, 0, 50), a_job(2, 0, 100, "failed"), a_job(3, 50, None, "running")]
    series = count_over_time(jobs, steps=11)
    # A job counts up to the step in which it ends; at the end nothing that ended runs.
    assert series.bins["running"] == [2, 2, 2, 2, 2, 3, 2, 2, 2, 2, 1]
    assert series.bins["finished"] == [0] * 5 + [1] * 6
    assert series.bins["failed"] == [0] * 10 + [1]


def test_without_a_plan_labels_stand_in_their_order(page):
    graph = page[0].graph
    assert [(node.label, node.column) for node in graph.nodes] == [("isr", 0), ("co<add", 1)]
    assert not graph.has_edges
    assert graph.nodes[1].counts[WmsStates.FAILED] == 1


def planned(name, label, first, parents, **values):
    jobs = tuple(JobPlan(f"{name}_{n}", n, f"{name}:{n}", tuple(wanted)) for n, wanted in enumerate(parents))
    return TaskPlan(name, label, 1, first, "", None, None, None, None, jobs, **values)


def test_edges_come_from_the_plan():
    tasks = (
        # Tasks are not in the order of their jobs' ordinals.
        planned("gather", "gather", 4, [[2, 3]]),
        planned("isr", "isr", 0, [[], []]),
        planned("coadd", "coadd", 2, [[0], [1, 2]]),
        planned("late", "late", 5, [[]], is_sink=True),
    )
    final = (planned("final", "finalJob", 6, [[]]),)
    plan = WorkflowPlan(None, tasks, (ConditionPlan(("gather",), ("late",)),), final, (), (), (), ())
    graph = make_task_graph(observation(), plan)
    names = [node.name for node in graph.nodes]
    edges = {(names[before], names[after]) for before, after in graph.edges}
    assert edges == {("isr", "coadd"), ("coadd", "gather"), ("gather", "late"), ("late", "final")}
    columns = {node.name: node.column for node in graph.nodes}
    assert columns == {"isr": 0, "coadd": 1, "gather": 2, "late": 3, "final": 4}
    assert graph.has_edges
    assert sum(node.jobs for node in graph.nodes) == 7


def test_many_tasks_are_drawn_by_label():
    transforms = [transform(n, f"l{n % 3}", "Finished", processed=2) for n in range(1, MAX_NODES + 2)]
    graph = make_task_graph(observation(*transforms), None)
    assert [node.label for node in graph.nodes] == ["l1", "l2", "l0"]
    assert sum(node.jobs for node in graph.nodes) == 2 * len(transforms)
    assert isinstance(graph.nodes[0], TaskNode)
    assert re.search(r"in \d+ tasks", draw_graph(graph))


def test_overview_document_follows_the_schema(page):
    document = make_document(page[0].overview, request_id=9, name="run")
    Draft202012Validator.check_schema(read_schema())
    Draft202012Validator(read_schema()).validate(document)
    assert document["links"]["tasks"] == "https://monitor:8443/tasks/?idds_request_id=9"
    assert document["problems"] == [NASTY]
    wrong = {**document, "total": {}}
    assert not Draft202012Validator(read_schema()).is_valid(wrong)


@pytest.mark.parametrize(("form", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_plots(page, tmp_path, form, start):
    paths = write_plots(page[1], page[0].labels, tmp_path / "new", form=form)
    assert [path.name for path in paths] == [f"resources_isr.{form}", f"timeline.{form}"]
    assert all(path.read_bytes().startswith(start) for path in paths)
    assert sorted(tmp_path.glob("new/*")) == sorted(paths)


def test_a_hundred_labels_on_the_page(page):
    one, seen = page
    labels = {f"label_{n}": dict.fromkeys(WmsStates, 0) | {WmsStates.FAILED: n} for n in range(100)}
    overview = replace(
        one.overview, labels=labels, total=dict.fromkeys(WmsStates, 0) | {WmsStates.FAILED: 4950}
    )
    groups = [replace(one.groups[0], label=f"label_{n}", unfinished=n % 2) for n in range(30)]
    text = render_page(replace(one, overview=overview, groups=groups, left_out=70))
    states = text[text.index('id="states"') : text.index('id="errors"')]
    # Nobody would scroll below a hundred labels for the sum.
    assert states.index("<b>total</b>") < states.index("label_0")
    assert states.count("<tr>") == 102
    assert "70 more kinds of errors" in text
    # The same advice is given once; errors of jobs that finished in a retry look less urgent.
    assert text.count('class="advice"') == 1
    assert (text.count('class="error"'), text.count('class="error recovered"')) == (15, 15)
    assert "1 of which finished in another attempt" in text


def test_without_a_plan_many_labels_stand_in_lines():
    seen = observation(*(transform(n, f"l{n}", "Finished", processed=2) for n in range(1, 11)))
    places = [(node.column, node.row) for node in make_task_graph(seen, None).nodes]
    assert places == [(n % 4, n // 4) for n in range(10)]


def test_a_run_that_goes_on_is_drawn_until_now():
    jobs = [a_job(1, 0, 50), a_job(2, 0, None, "running")]
    series = count_over_time(jobs, steps=11, until=START + timedelta(seconds=100))
    assert series.end == START + timedelta(seconds=100)
    assert series.bins["running"][-1] == 1
    assert "00:01:40" in draw_timeline(jobs, until=START + timedelta(seconds=100))
