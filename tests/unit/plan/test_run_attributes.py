"""Attributes of a run fit into the columns that iDDS has for them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lsst.ctrl.bps.panda.plan.document import RunAttributes, render_attributes
from lsst.ctrl.bps.panda.status.evidence import RunEvidence
from lsst.ctrl.bps.panda.status.records import RequestRecord

PLAIN = RunAttributes("run", "ann", "DP2", "week", "pay;load=1", jobs=5, tasks=3, origin=7)


def through_idds(attributes: RunAttributes) -> RunAttributes:
    fields = render_attributes(attributes)
    name = fields.pop("name")
    assert fields.pop("campaign_tag") == ""
    return RunEvidence(RequestRecord(4, name, "New", username="pandauser", **fields)).attributes


def test_attributes_come_back_as_they_were():
    assert through_idds(PLAIN) == PLAIN


@pytest.mark.parametrize(
    ("attributes", "operator", "payload"),
    [
        (replace(PLAIN, payload="p" * 300), "ann", 213),
        (replace(PLAIN, operator="o" * 61, payload="p" * 300), "o" * 60, 156),
        (replace(PLAIN, operator="ä" * 61, payload="p" * 300), "ä" * 10, 156),
    ],
)
def test_what_is_too_long_is_cut_to_fill_the_column(attributes, operator, payload):
    group = render_attributes(attributes)["campaign_group"]
    assert len(group) == 255
    found = through_idds(attributes)
    assert found.operator == operator
    assert found.payload == "p" * payload
    assert (found.jobs, found.tasks, found.origin) == (5, 3, 7)


def test_columns_are_not_exceeded():
    long = "x" * 400
    fields = render_attributes(RunAttributes(long, long, long, long, long))
    assert {key: len(value) for key, value in fields.items()} == {
        "name": 255,
        "campaign": 50,
        "campaign_scope": 25,
        "campaign_group": 255,
        "campaign_tag": 0,
    }


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "²", "9" * 19])
def test_a_number_of_another_kind_is_not_known(text):
    group = f"v1;op=ann;payload=p;jobs={text};tasks=2;origin=0"
    found = RunEvidence(RequestRecord(4, "r", "New", campaign_group=group)).attributes
    assert (found.jobs, found.tasks) == (0, 2)


def test_a_large_number_is_read():
    group = f"v1;op=;payload=p;jobs={'9' * 18};tasks=2"
    found = RunEvidence(RequestRecord(4, "r", "New", username="ben", campaign_group=group)).attributes
    assert (found.jobs, found.origin, found.operator) == (10**18 - 1, 0, "ben")


@pytest.mark.parametrize(("scope", "project"), [("Default", ""), ("DP2", "DP2")])
def test_a_request_of_another_program_has_its_user_as_operator(scope, project):
    request = RequestRecord(
        4, "r", "New", username="ben", campaign="c", campaign_scope=scope, campaign_group="x"
    )
    assert RunEvidence(request).attributes == RunAttributes("r", "ben", project, "c")
