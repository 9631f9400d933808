"""The order in which groups are processed, what becomes of those that fail, and that a restart goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lsst.ctrl.bps.panda.errors import ConnectionFailedError, LocalPandaError, PandaBpsError, RefusedError
from lsst.ctrl.bps.panda.prompt.arrivals import Arrival
from lsst.ctrl.bps.panda.prompt.catalog import Catalog, Group, GroupState
from lsst.ctrl.bps.panda.prompt.process import Processing, find_process, only_process
from lsst.ctrl.bps.panda.settings.prompt import PromptSection


class KilledError(BaseException):
    """The process ends here, whatever it was doing."""


class Line:
    """Steps that take no time and fail where they are told to."""

    def __init__(self, catalog: Catalog, **section: object) -> None:
        self.section = PromptSection(output="u/me", **section)  # type: ignore[arg-type]
        self.catalog = catalog
        self.now = 1000.0
        self.faults: dict[tuple[str, str, int], list[BaseException]] = {}
        self.outcomes: dict[tuple[str, int], str] = {}
        self.done: list[tuple[str, str, int]] = []
        self.arrived: list[Arrival] = []
        self.is_over = False

    def _step(self, step: str, group: Group) -> None:
        key = (step, group.name, group.attempt)
        self.done.append(key)
        if self.faults.get(key):
            raise self.faults[key].pop(0)

    def ingest(self, group: Group) -> list[dict[str, Any]]:
        self._step("ingest", group)
        return [{"exposure": 1}]

    def night_of(self, group: Group, data_ids: object) -> str:
        return "20260315"

    def make_graph(self, group: Group, data_ids: object) -> Path:
        self._step("graph", group)
        return Path("graph")

    def submit(self, group: Group, graph: Path) -> int:
        self._step("submit", group)
        return 7

    def outcome(self, group: Group) -> str | None:
        return self.outcomes.get((group.name, group.attempt), "")

    def register(self, group: Group, *, ended: float) -> float:
        self._step("register", group)
        return self.now

    def forget_client(self) -> None:
        self.done.append(("forget", "", 0))

    def poll(self) -> list[Arrival]:
        found, self.arrived = self.arrived, []
        return found

    def arrive(self, *names: str, at: float | None = None) -> None:
        self.arrived += [Arrival(name, (f"{name}.fits",), self.now if at is None else at) for name in names]

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def process(self) -> None:
        """Process until all groups have ended."""
        self.is_over = True
        self.processing().run(lambda: False)

    def processing(self) -> Processing:
        line: Any = self
        return Processing(line, self.catalog, line, clock=lambda: self.now, sleep=self.sleep)

    def order(self, step: str) -> list[str]:
        return [f"{name}/{attempt}" for done, name, attempt in self.done if done == step]

    def states(self) -> dict[str, str]:
        return {group.name: group.state for group in self.catalog.groups()}


class SlowLine(Line):
    """Runs take five seconds."""

    def __init__(self, catalog: Catalog, **section: object) -> None:
        super().__init__(catalog, **section)
        self.begun: dict[str, float] = {}
        self.asked: list[tuple[str, float]] = []

    def submit(self, group: Group, graph: Path) -> int:
        self.begun[group.name] = self.now
        return super().submit(group, graph)

    def outcome(self, group: Group) -> str | None:
        age = self.now - self.begun[group.name]
        self.asked.append((group.name, age))
        return "" if age > 5.0 else None

    def register(self, group: Group, *, ended: float) -> float:
        super().register(group, ended=ended)
        return self.begun[group.name] + 4.5


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    made = Catalog(tmp_path / "catalog.db")
    yield made
    made.close()


def test_failed_groups_are_tried_again_behind_new_ones(catalog: Catalog) -> None:
    line = Line(catalog, attempts=2, groupsAtOnce=1)
    line.faults["graph", "1", 1] = [ValueError("no flat")]
    line.arrive("1", "2", "3")
    line.process()
    assert line.order("submit") == ["2/1", "3/1", "1/2"]
    assert set(line.states().values()) == {"done"}
    (first, *_) = catalog.groups()
    assert (first.attempt, first.error) == (2, "ValueError: no flat")
    assert first.run == "u/me/20260315/1/2"


def test_a_group_that_fails_in_all_attempts_is_reported_and_what_it_made_is_kept(catalog: Catalog) -> None:
    line = Line(catalog, attempts=2)
    line.outcomes = {("1", 1): "isr: exit 1", ("1", 2): "isr: exit 1"}
    line.arrive("1")
    line.process()
    (group,) = catalog.groups()
    assert (group.state, group.error, group.attempt) == (GroupState.FAILED, "isr: exit 1", 2)
    assert line.order("register") == ["1/2"]


@pytest.mark.parametrize(("late", "order"), [("behind", ["2/1", "1/1"]), ("drop", ["2/1"])])
def test_late_groups(catalog: Catalog, late: str, order: list[str]) -> None:
    line = Line(catalog, late=late, deadline=60, groupsAtOnce=1)
    line.arrive("1", at=line.now - 100.0)
    line.arrive("2")
    line.process()
    assert line.order("submit") == order
    assert line.states() == {"1": "done" if late == "behind" else "failed", "2": "done"}


def test_no_more_groups_at_once_than_wanted(catalog: Catalog) -> None:
    line = Line(catalog, groupsAtOnce=2)
    line.outcomes = {(name, 1): None for name in "123"}  # type: ignore[misc]
    line.arrive("1", "2", "3")
    line.processing().run(lambda: line.now > 1010.0)
    assert line.states() == {"1": "submitted", "2": "submitted", "3": "waiting"}


def test_runs_are_asked_about_when_they_may_have_ended(catalog: Catalog) -> None:
    line = SlowLine(catalog, groupsAtOnce=1)
    line.arrive("1", "2", "3", "4")
    line.process()
    assert set(line.states().values()) == {"done"}
    ages = {name: [age for asked, age in line.asked if asked == name] for name in "1234"}
    assert all(ages[name][0] < 1.0 for name in "123")
    assert 4.5 <= ages["4"][0] < 5.0
    assert max(ages["4"]) < 6.0


@pytest.mark.parametrize("error", [ConnectionFailedError("refused"), LocalPandaError("did not start")])
def test_a_server_that_does_not_answer_costs_no_attempt(catalog: Catalog, error: PandaBpsError) -> None:
    line = Line(catalog, attempts=1)
    line.faults["submit", "1", 1] = [error] * 3
    line.arrive("1")
    line.process()
    assert line.states() == {"1": "done"}
    assert line.order("submit") == ["1/1"] * 4
    assert line.order("forget")


def test_a_refusal_does(catalog: Catalog) -> None:
    line = Line(catalog, attempts=1)
    line.faults["submit", "1", 1] = [RefusedError("not allowed")]
    line.arrive("1")
    line.process()
    assert line.states() == {"1": "failed"}


@pytest.mark.parametrize("step", ["ingest", "graph", "submit", "register"])
def test_a_restart_goes_on_with_the_same_attempt(catalog: Catalog, step: str) -> None:
    line = Line(catalog)
    line.faults[step, "1", 1] = [KilledError()]
    line.arrive("1", "2")
    with pytest.raises(KilledError):
        line.process()
    line.process()
    assert line.states() == {"1": "done", "2": "done"}
    assert {group.attempt for group in catalog.groups()} == {1}


def test_a_group_arrives_once(catalog: Catalog) -> None:
    assert catalog.add("1", ["a"], 1.0)
    assert not catalog.add("1", ["b"], 2.0)
    assert [group.inputs for group in catalog.groups()] == [("a",)]


def test_one_process_for_a_directory(tmp_path: Path) -> None:
    assert find_process(tmp_path) is None
    with only_process(tmp_path):
        assert find_process(tmp_path) == os.getpid()
        with pytest.raises(PandaBpsError, match="panda_bps prompt stop"), only_process(tmp_path):
            pass
    assert find_process(tmp_path) is None
