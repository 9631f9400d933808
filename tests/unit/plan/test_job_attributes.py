"""Each attribute of a BPS job is used, or somebody decided that it is not."""

from __future__ import annotations

from dataclasses import fields

import pytest

from lsst.ctrl.bps import GenericWorkflow, GenericWorkflowExec, GenericWorkflowJob
from lsst.ctrl.bps.panda.plan.grouping import (
    ATTRIBUTE_USES,
    AttributeUse,
    attributes_with,
    list_ignored,
)
from lsst.ctrl.bps.panda.plan.model import LabelSettings, PlanSettings, RunIdentity, WorkflowPlan
from lsst.ctrl.bps.panda.plan.planner import make_plan

RUN = RunIdentity("u_run", "", "", "", "", "", "S", "/submit", "/area/", "P", "B")
LABEL = LabelSettings("S", "", "", 1, "", "", "", "", "python3 runner.py _cmd_line_")

# Attribute -> two values that make a difference.
VALUES: dict[str, tuple[object, object]] = {
    "label": ("isr", "coadd"),
    "executable": (GenericWorkflowExec("a", "/bin/a"), GenericWorkflowExec("b", "/bin/b")),
    "environment": ({"A": "1"}, {"A": "2"}),
    "retry_unless_exit": ([1], [1, 2]),
    "cmdvals": ({"x": "1"}, {"x": "2"}),
    "tags": ({"visit": 1}, {"visit": 2}),
    "quanta_counts": ({"isr": 1}, {"isr": 2}),
    "profile": ({"a": 1}, {"a": 2}),
    "attrs": ({"a": 1}, {"a": 2}),
    "preemptible": (True, False),
    "name": ("a", "b"),
    **dict.fromkeys(("arguments", "pre_cmdline", "post_cmdline"), ("one", "two")),
    **dict.fromkeys(("compute_site", "compute_cloud", "queue", "accounting_group"), ("one", "two")),
}


def test_each_attribute_of_a_job_has_a_use() -> None:
    """A new attribute of BPS gets a row in the table: do jobs of a task share it, or is it ignored?"""
    assert {field.name for field in fields(GenericWorkflowJob)} - set(ATTRIBUTE_USES) == set()


def plan_of_two(attribute: str) -> WorkflowPlan:
    """Plan two jobs that differ in one attribute, and in their names."""
    workflow = GenericWorkflow("u_run")
    for name, value in zip("ab", VALUES.get(attribute, (1000, 2000)), strict=True):
        job = GenericWorkflowJob(name, "isr", executable=GenericWorkflowExec("sh", "/bin/sh"), arguments="x")
        setattr(job, attribute, value)
        workflow.add_job(job)
    return make_plan(workflow, PlanSettings(run=RUN, labels={"": LABEL}))


@pytest.mark.parametrize("attribute", attributes_with(AttributeUse.TASK, AttributeUse.TASK_LIST))
def test_jobs_that_differ_in_what_a_task_shares_get_two_tasks(attribute: str) -> None:
    assert [len(task.jobs) for task in plan_of_two(attribute).tasks] == [1, 1]


@pytest.mark.parametrize("attribute", attributes_with(AttributeUse.JOB, AttributeUse.IGNORED))
def test_jobs_that_differ_in_their_own_or_in_what_is_ignored_share_a_task(attribute: str) -> None:
    assert [len(task.jobs) for task in plan_of_two(attribute).tasks] == [2]


@pytest.mark.parametrize("attribute", attributes_with(AttributeUse.IGNORED))
def test_what_is_ignored_is_said_with_the_reason(attribute: str) -> None:
    (warning,) = plan_of_two(attribute).warnings
    assert "(labels isr) has no effect: " in warning
    assert warning.endswith(f"{ATTRIBUTE_USES[attribute][1]}.")


@pytest.mark.parametrize("value", [None, "", {}, []])
def test_an_attribute_without_a_value_is_not_said_to_be_ignored(value: object) -> None:
    job = GenericWorkflowJob("a", "isr")
    for attribute in attributes_with(AttributeUse.IGNORED):
        setattr(job, attribute, value)
    assert list(list_ignored([job])) == []
