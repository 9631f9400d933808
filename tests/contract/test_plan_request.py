"""What we send, read by the real server's own code, is the plan."""

from __future__ import annotations

import logging
import os
import pickle
import re
import subprocess
import sys
from configparser import ConfigParser
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from panda_plans.settings import LABEL, RUN, SETTINGS

from lsst.ctrl.bps import GenericWorkflow, GenericWorkflowExec, GenericWorkflowJob
from lsst.ctrl.bps.panda.errors import SettingsError
from lsst.ctrl.bps.panda.idds import workflow
from lsst.ctrl.bps.panda.idds.workflow import client_mode, make_submission, make_workflow
from lsst.ctrl.bps.panda.plan.planner import make_plan
from lsst.ctrl.bps.panda.status.evidence import RunEvidence
from lsst.ctrl.bps.panda.status.records import RequestRecord

with client_mode():
    from idds.common.utils import json_loads
    from idds.rest.v1 import utils as server

LOG = logging.getLogger(__name__)
LABEL = replace(LABEL, queue="QUEUE", priority=700, processing_type="Rubin")
SETTINGS = replace(SETTINGS, run=replace(RUN, origin=7), labels={"": LABEL}, max_jobs_per_task=40)


def make(count: int = 90, *, packed: bool = False, **ordering: object):
    """A plan of three labels, perhaps with groups by visit."""
    workflow = GenericWorkflow("u_run")
    for number in range(count):
        for label, parents in (
            ("isr", []),
            ("warp", [f"isr_{number}"]),
            ("coadd", [f"warp_{n}" for n in range(number + 1)] if number % 30 == 29 else None),
        ):
            if parents is not None:
                add(workflow, f"{label}_{number}", label, number % 3, parents)
    if ordering:
        workflow.add_special_job_ordering(
            {"visits": {"labels": "isr, warp", "dimensions": "visit", **ordering}}
        )
    final = GenericWorkflowJob("last", "finalJob", executable=GenericWorkflowExec("sh", "/bin/sh"))
    workflow.add_final(final)
    settings = SETTINGS
    if packed:
        settings = replace(SETTINGS, labels={"": LABEL, "isr": replace(LABEL, payloads_per_job=4)})
    return make_plan(workflow, settings)


def add(workflow: GenericWorkflow, name: str, label: str, visit: int, parents: list[str]) -> None:
    job = GenericWorkflowJob(name, label, executable=GenericWorkflowExec("sh", "/bin/sh"))
    job.arguments = "-c {what}"
    job.cmdvals = {"what": name}
    job.tags = {"visit": visit}
    job.request_memory, job.request_memory_max, job.memory_multiplier = 4000, 9000, 2.0
    job.request_cpus, job.request_disk, job.number_of_retries = 3, 5000, 0
    workflow.add_job(job)
    workflow.add_job_relationships(parents, name)


PLANS = {
    "plain": lambda: make(),
    "groups": lambda: make(blocking=False),
    "blocking": lambda: make(blocking=True),
    "noop": lambda: make(implementation="noop"),
    "packed": lambda: make(packed=True),
}


def expected_dependencies(plan) -> dict[str, dict[str, list[tuple[str, str]]]]:
    tasks = [*plan.tasks, *plan.final]
    places = [(task.name, job.pseudo_input) for task in tasks for job in task.jobs]
    return {
        task.name: {job.pseudo_input: sorted(places[p] for p in job.parents) for job in task.jobs}
        for task in tasks
    }


def decoded_dependencies(workflow) -> dict[str, dict[str, list[tuple[str, str]]]]:
    found = {}
    for work in workflow.template.works.values():
        entries = work.dependency_map
        found[work.task_name] = {
            entry["name"]: sorted((d["task"], d["inputname"]) for d in entry["dependencies"])
            for entry in entries
        }
        assert len(found[work.task_name]) == len(entries) == work.num_inputs
        assert work.num_dependencies == sum(len(entry["dependencies"]) for entry in entries)
        parents = {task for ends in found[work.task_name].values() for task, _ in ends}
        assert set(work.dependency_tasks) == parents
        assert set(work.get_ancestry_works()) == parents
    return found


@pytest.mark.parametrize("shape", PLANS)
def test_tasks_dependencies_and_conditions_arrive(shape: str) -> None:
    plan = PLANS[shape]()
    submission = make_submission(plan, max_length=10**9)
    assert submission.steps == ()
    (workflow,) = json_loads(submission.request)
    assert decoded_dependencies(workflow) == expected_dependencies(plan)
    conditions = {
        (
            frozenset(function.__self__.task_name for function in condition.conditions),
            frozenset(work.task_name for work in condition.true_works),
        )
        for condition in workflow.template.conditions.values()
    }
    assert all(
        function.__name__ == "is_terminated"
        for condition in workflow.template.conditions.values()
        for function in condition.conditions
    )
    wanted = {(frozenset(c.waits_for), frozenset(c.starts)) for c in plan.conditions}
    sinks = frozenset(task.name for task in plan.tasks if task.is_sink)
    wanted.add((sinks, frozenset(task.name for task in plan.final)))
    assert conditions == wanted
    # Three visits have two borders; the coadds wait for all that their parents wait for.
    assert len(plan.conditions) == (3 if shape == "groups" else 0)
    labels = [task.label for task in plan.tasks]
    assert labels == sorted(labels, key=["isr", "warp", "coadd", "visitsBarrier"].index)


REQUESTS_OF_ANOTHER_CLIENT = """
import json, os, pickle, sys
import idds
if os.path.isdir(sys.argv[1]):
    idds.__path__ = [sys.argv[1]]
from lsst.ctrl.bps.panda.idds.workflow import make_submission
for plan in pickle.load(sys.stdin.buffer):
    for length in (10**9, 20000):
        made = make_submission(plan, max_length=length)
        print(json.dumps([made.steps, made.request, made.keywords]))
"""


def requests_of(folder: Path, plans: list) -> subprocess.CompletedProcess[bytes]:
    """Make requests with the client of iDDS in a folder."""
    return subprocess.run(
        [sys.executable, "-c", REQUESTS_OF_ANOTHER_CLIENT, str(folder / "idds")],
        input=pickle.dumps(plans),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"},
        timeout=300,
    )


def without_chance(request: str) -> str:
    """Replace times, and ids in the order in which they appear."""
    ids: dict[str, str] = {}
    text = re.sub(r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} UTC", "TIME", request)
    return re.sub(r"\b[0-9a-f]{8}\b", lambda match: ids.setdefault(match[0], f"id {len(ids)}"), text)


@pytest.mark.slow
def test_the_oldest_client_makes_the_same_requests(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Both ends of the range of ``setup.cfg`` are kept: the tests' own client is the newest."""
    oldest = ".".join(map(str, workflow._OLDEST))
    folder = request.config.cache.mkdir(f"idds-{oldest}")
    if not (folder / "complete").exists():
        packages = [f"idds-{part}=={oldest}" for part in ("common", "workflow", "doma")]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--no-deps"]
        subprocess.run([*pip, "--target", str(folder), *packages], check=True, timeout=300)
        (folder / "complete").touch()
    plans = [make_it() for make_it in PLANS.values()]
    requests = []
    # Each in a process of its own: reading a request changes what iDDS writes of an enum afterwards.
    for place in (folder, tmp_path):
        made = requests_of(place, plans)
        assert made.returncode == 0, made.stderr.decode()
        requests.append([*map(without_chance, made.stdout.decode().splitlines())])
    assert len(requests[0]) == 2 * len(plans)
    assert requests[0] == requests[1]


@pytest.mark.parametrize("version", ["2.3.10", "2.5.5", "2.7.0"])
def test_a_client_of_another_version_is_refused(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / f"idds_workflow-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: idds-workflow\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    # What was found before is kept in a process; a refusal is not.
    workflow._idds.cache_clear()
    with pytest.raises(SettingsError) as refused:
        make_submission(make(1), max_length=10**9)
    assert f"idds-workflow is {version}, and requests to iDDS can be made with" in str(refused.value)
    assert "pip install 'idds-common>=2.4.0" in str(refused.value)


@pytest.mark.parametrize("content", [None, "no section"])
def test_a_wrong_configuration_of_idds_is_named(content: str | None, tmp_path: Path) -> None:
    place = tmp_path / "idds.cfg"
    if content is not None:
        place.write_text(content)
    program = "from lsst.ctrl.bps.panda.idds import workflow; workflow._idds()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "IDDS_CONFIG": str(place)},
        capture_output=True,
        text=True,
    )
    last = done.stderr[done.stderr.rindex("SettingsError") :]
    assert str(place) in last
    assert "or unset it" in last


def test_the_range_is_that_of_the_distribution() -> None:
    parser = ConfigParser()
    parser.read(Path(__file__).parents[2] / "setup.cfg")
    required = parser["options"]["install_requires"].split()
    range_ = ">={},!={},<{}".format(
        *(".".join(map(str, some)) for some in (workflow._OLDEST, workflow._BROKEN, workflow._TOO_NEW))
    )
    idds = sorted(f"idds-{part}{range_}" for part in ("client", "common", "doma", "workflow"))
    assert sorted(name for name in required if name.startswith("idds")) == idds


def test_needs_of_a_task_arrive() -> None:
    plan = make()
    (workflow,) = json_loads(make_submission(plan, max_length=10**9).request)
    work = next(iter(workflow.template.works.values()))
    task = plan.tasks[0]
    got = {
        "executable": work.executable,
        "cores": work.core_count,
        "rss": work.task_rss,
        "offset": work.task_rss_retry_offset,
        "step": work.task_rss_retry_step,
        "most": work.task_rss_max,
        "attempts": work.maxAttempt,
        "walltime": work.maxWalltime,
        "priority": work.task_priority,
        "site": work.task_site,
        "queue": work.task_queue,
        "cloud": work.task_cloud,
        "disk": work.additional_task_parameters,
        "type": work.processingType,
    }
    assert got == {
        "executable": task.command,
        "cores": 3,
        "rss": 4002,  # a multiple of the cores, never less than asked for
        "offset": 0,
        "step": 8004,
        "most": 9000,
        "attempts": 1,
        "walltime": 90000,
        "priority": 700,
        "site": "SITE",
        "queue": "QUEUE",
        "cloud": "US",
        "disk": {"workDiskCount": 5000, "workDiskUnit": "MB"},
        "type": "Rubin",
    }


@given(
    memory=st.integers(1, 200_000),
    growth=st.floats(1.001, 4),
    most=st.integers(1, 500_000),
    cores=st.integers(1, 64),
)
def test_memory_grows_as_bps_defines_it(memory: int, growth: float, most: int, cores: int) -> None:
    """In PanDA's units, by JEDI's rule: iDDS divides the memory and its step
    by the cores for ``ramCount`` and ``retryRamStep``; the memory of an attempt
    is multiplied by their ratio and cut at ``retryRamMax`` by the cores
    (panda-server 1.0.4, ``task_event_module``).
    """
    workflow = GenericWorkflow("u_run")
    job = GenericWorkflowJob("a", "isr", executable=GenericWorkflowExec("sh", "/bin/sh"))
    job.request_memory, job.request_memory_max = memory, most
    job.memory_multiplier, job.request_cpus = growth, cores
    workflow.add_job(job)
    (work,) = make_workflow(make_plan(workflow, SETTINGS)).template.works.values()
    ram_count, step = work.task_rss / work.core_count, work.task_rss_retry_step / work.core_count
    per_core = ram_count
    for attempt in range(5):
        total = per_core * work.core_count
        wanted = min(memory * growth**attempt, max(memory, most))
        # The first is rounded up to a multiple of the cores, the second to a MB.
        rounded = wanted * (1 + (cores - 1) / memory) * (1 + 1 / memory) ** attempt + cores
        assert wanted * 0.999999 <= total <= rounded * 1.000001
        per_core = max(per_core, min(per_core * step / ram_count, work.task_rss_max / work.core_count))


def test_attributes_of_a_run_arrive() -> None:
    plan = make()
    (workflow,) = json_loads(make_submission(plan, max_length=10**9).request)
    record = RequestRecord(
        1,
        workflow.name,
        "New",
        campaign=workflow.campaign,
        campaign_scope=workflow.campaign_scope,
        campaign_group=workflow.campaign_group,
    )
    attributes = RunEvidence(record).attributes
    assert (attributes.name, attributes.operator, attributes.campaign) == ("u_run", "someone", "quick")
    assert (attributes.jobs, attributes.origin) == (plan.job_count, 7)
    assert attributes.tasks == len(plan.tasks) + len(plan.final)


def test_event_service_groups_consecutive_jobs() -> None:
    plan = make(packed=True)
    (workflow,) = json_loads(make_submission(plan, max_length=10**9).request)
    works = [work for work in workflow.template.works.values() if work.es]
    assert {work.max_events_per_job for work in works} == {4}
    for work in works:
        files: dict[str, list[int]] = {}
        for entry in work.dependency_map:
            files.setdefault(entry["es_name"], []).append(entry["order_id"])
        for name, order_ids in files.items():
            assert name.startswith("isr:eventservice_")
            assert order_ids == list(range(order_ids[0], order_ids[0] + len(order_ids)))


@pytest.mark.parametrize("max_length", [18_000, 20_000])
def test_steps_put_together_are_the_whole(max_length: int, tmp_path) -> None:
    plan = make(600)
    whole = make_submission(plan, max_length=10**9)
    submission = make_submission(plan, max_length=max_length)
    assert len(submission.steps) > 1
    assert max(map(len, submission.steps)) <= max_length
    assert len(submission.request) < len(whole.request)
    (main,) = json_loads(submission.request)
    stored: list[str] = []
    for text in submission.steps:
        (step,) = json_loads(text)
        assert step.is_workflow_step
        assert step.get_internal_id() == main.get_internal_id()
        data = step.unzip_data(step.workflow_data)
        stored += data
        server.store_data_to_use_additional_storage(step.get_internal_id(), data, str(tmp_path), LOG)
    assert sorted(stored) == sorted(task.name for task in (*plan.tasks, *plan.final))
    server.convert_data_to_use_additional_storage(
        {"request_metadata": {"workflow": main}}, str(tmp_path), False, LOG
    )
    assert decoded_dependencies(main) == expected_dependencies(plan)


def test_the_workflow_itself_is_that_of_the_request() -> None:
    plan = make()
    assert decoded_dependencies(make_workflow(plan)) == expected_dependencies(plan)
