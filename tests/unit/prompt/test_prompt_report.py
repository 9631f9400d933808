"""Figures by stage, groups that missed their deadline, and their document."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from lsst.ctrl.bps.panda.errors import PandaBpsError
from lsst.ctrl.bps.panda.insight.documents import make_document, make_plain, read_schema
from lsst.ctrl.bps.panda.prompt.catalog import Group, GroupState, StageTime
from lsst.ctrl.bps.panda.prompt.report import make_prompt_report, write_plot

STAGES = {"ingest": 0.1, "graph": 0.2, "plan": 0.1, "submit": 0.1, "start": 0.3, "isr": 1.0, "end": 0.5}


def group(name: str, state: GroupState = GroupState.DONE, **values: object) -> Group:
    known = {"attempt": 1, "run": "r", "run_id": 3, "ended": 1003.0, **values}
    return Group(name, ("a",), 1000.0, state, **known)  # type: ignore[arg-type]


def times(name: str, attempt: int = 1, **longer: float) -> list[StageTime]:
    now, found = 1000.1, []
    for stage, seconds in (STAGES | longer).items():
        found.append(StageTime(name, attempt, stage, now, now + seconds))
        now += seconds
    return found


def test_figures_are_those_of_the_last_attempt_of_groups_that_are_done() -> None:
    groups = [group(str(number)) for number in range(100)] + [group("x", GroupState.FAILED, error="no")]
    all_times = [each for one in groups for each in times(one.name, ingest=9.0 if one.name == "99" else 0.1)]
    all_times += times("5", attempt=0, ingest=50.0)
    report = make_prompt_report(groups, all_times, deadline=60.0, now=1100.0)
    by_name = {each.stage: each for each in report.stages}
    ingest = by_name["ingest"]
    assert (ingest.count, ingest.p99) == (100, pytest.approx(9.0))
    assert (ingest.median, ingest.p95) == (pytest.approx(0.1), pytest.approx(0.1))
    assert by_name["wait"].median == pytest.approx(0.1)
    assert by_name["to first instruction"].median == pytest.approx(0.9)
    assert by_name["to outputs registered"].median == pytest.approx(3.0)
    assert by_name["pipeline"].median == pytest.approx(1.0)
    assert report.counts == {"waiting": 0, "planning": 0, "submitted": 0, "done": 100, "failed": 1}


def test_groups_that_missed_their_deadline_have_a_cause() -> None:
    groups = [
        *(group(str(number)) for number in range(3)),
        group("slow", ended=1080.0),
        group("bad", GroupState.FAILED, error="isr: ValueError: no"),
        group("waits", GroupState.WAITING, attempt=0, ended=None),
        group("last", ended=1060.0),
    ]
    all_times = [each for number in range(3) for each in times(str(number))] + times("slow", isr=70.0)
    report = make_prompt_report(groups, all_times, deadline=60.0, now=1100.0)
    causes = {each.name: each.cause for each in report.missed}
    assert causes == {
        "slow": "isr took 70.0 s, usually 1.0 s",
        "bad": "isr: ValueError: no",
        "waits": "it waits for its turn: more groups arrive than can be processed, see groupsAtOnce",
    }


def test_document_and_plot(tmp_path: Path) -> None:
    groups = [
        group("1"),
        group("x", GroupState.FAILED, error="no"),
        group("y", GroupState.PLANNING, ended=None),
    ]
    report = make_prompt_report(groups, times("1"), deadline=60.0, now=1100.0)
    document = make_document(make_plain(report), request_id=0, name="my", kind="prompt")
    Draft202012Validator(read_schema()).validate(document)
    write_plot(report, tmp_path / "plot.svg")
    assert "seconds since then" in (tmp_path / "plot.svg").read_text()
    with pytest.raises(PandaBpsError, match="cannot be written"):
        write_plot(report, tmp_path / "plot.nonsense")
