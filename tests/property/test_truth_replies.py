"""A reply of any shape is either understood or shown, and never crashes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsst.ctrl.bps.panda.errors import ReplyError
from lsst.ctrl.bps.panda.plan.document import RunAttributes, render_attributes
from lsst.ctrl.bps.panda.report import get_status_of, make_run_report
from lsst.ctrl.bps.panda.status.evidence import RunEvidence
from lsst.ctrl.bps.panda.status.records import RequestRecord
from lsst.ctrl.bps.panda.status.replies import (
    parse_contents,
    parse_jobs,
    parse_requests,
    parse_tasks,
    parse_transforms,
)

CAPTURES = Path(__file__).resolve().parents[1] / "data" / "captures" / "real"
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
PARSERS = (parse_requests, parse_transforms, parse_contents, parse_tasks, parse_jobs)


def load(name: str) -> Any:
    value = json.loads((CAPTURES / f"{name}.json").read_text(encoding="utf-8"))
    return value["reply"]["data"] if isinstance(value, dict) else value[1][1]


SAMPLES = (
    (parse_requests, load("run2_failed_before_end_get_requests_detail")),
    (parse_transforms, load("run2_failed_before_end_get_requests_detail")),
    (parse_contents, load("run2_failed_before_end_get_contents_output_ext_all")["6"]),
    (parse_tasks, load("run2_failed_before_end_v1_get_tasks_detailed_info_since")),
    (parse_jobs, load("run2_failed_before_end_v1_task6_get_job_descriptions")),
)


def attempt(parse: Any, value: Any) -> tuple[Any, ReplyError | None]:
    try:
        return parse(value), None
    except ReplyError as error:
        return (), error


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
@given(value=json_values)
def test_any_json_is_understood_or_refused(parse, value):
    records, error = attempt(parse, value)
    if error is None:
        assert len(records) == 0
    else:
        assert error.reply
        assert len(str(error)) < 500


@pytest.mark.parametrize(("parse", "sample"), SAMPLES, ids=[parse.__name__ for parse, _ in SAMPLES])
@given(data=st.data())
def test_a_row_with_foreign_values_is_understood_or_refused(parse, sample, data):
    """One field of a real reply is replaced by something else, or is gone."""
    rows = [dict(row) for row in sample[:2]]
    key = data.draw(st.sampled_from(sorted(rows[0])))
    if data.draw(st.booleans()):
        rows[0][key] = data.draw(json_values)
    else:
        del rows[0][key]
    records, error = attempt(parse, rows)
    if error is None:
        count = sum(map(len, records.values())) if isinstance(records, dict) else len(records)
        assert count <= 2
    else:
        assert error.reply
        assert len(str(error)) < 700


@given(data=st.data())
def test_a_report_survives_whatever_was_understood(data):
    rows = [dict(row) for row in SAMPLES[0][1]]
    for _ in range(3):
        row = data.draw(st.sampled_from(rows))
        row[data.draw(st.sampled_from(sorted(row)))] = data.draw(json_values)
    try:
        requests, transforms = parse_requests(rows), parse_transforms(rows)
    except ReplyError:
        return
    for request in requests:
        evidence = RunEvidence(request, transforms)
        assert make_run_report(evidence).state is get_status_of(evidence)[0]


short = st.text(max_size=20)


@given(
    st.builds(
        RunAttributes,
        name=short,
        operator=short,
        project=st.text(max_size=25),
        campaign=st.text(max_size=50),
        payload=st.text(alphabet=st.characters(max_codepoint=127), max_size=40),
        jobs=st.integers(0, 10**9),
        tasks=st.integers(0, 10**6),
        origin=st.integers(0, 10**9),
    )
)
def test_attributes_come_back_as_they_went(attributes):
    fields = render_attributes(attributes)
    record = RequestRecord(1, fields["name"], "New", username="", **campaign_of(fields))
    back = RunEvidence(record).attributes
    assert (back.name, back.project, back.campaign) == (
        attributes.name,
        attributes.project,
        attributes.campaign,
    )
    assert (back.jobs, back.tasks, back.origin) == (attributes.jobs, attributes.tasks, attributes.origin)
    assert attributes.payload.startswith(back.payload)
    assert attributes.operator.startswith(back.operator)


@given(
    st.builds(
        RunAttributes,
        name=st.text(max_size=400),
        operator=st.text(max_size=300),
        project=st.text(max_size=80),
        campaign=st.text(max_size=80),
        payload=st.text(max_size=300),
        jobs=st.integers(0, 10**12),
        tasks=st.integers(0, 10**12),
        origin=st.integers(0, 10**12),
    )
)
def test_attributes_always_fit_the_columns(attributes):
    fields = render_attributes(attributes)
    limits = {"name": 255, "campaign": 50, "campaign_scope": 25, "campaign_group": 255, "campaign_tag": 100}
    assert set(fields) == set(limits)
    for key, limit in limits.items():
        assert len(fields[key]) <= limit
    back = RunEvidence(RequestRecord(1, fields["name"], "New", **campaign_of(fields))).attributes
    assert (back.jobs, back.tasks, back.origin) == (attributes.jobs, attributes.tasks, attributes.origin)
    assert attributes.payload.startswith(back.payload)


def campaign_of(fields: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in fields.items() if key not in ("name", "campaign_tag")}


@given(st.text(max_size=60))
def test_foreign_group_texts_do_no_harm(text):
    for group in (text, f"v1;{text}"):
        attributes = RunEvidence(
            RequestRecord(1, "r", "New", username="ann", campaign_group=group)
        ).attributes
        assert attributes.jobs >= 0
        assert attributes.name == "r"
