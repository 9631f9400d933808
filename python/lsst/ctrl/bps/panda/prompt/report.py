"""What a prompt processing has done: figures by stage, and the groups that missed their deadline with the
cause.
"""

from __future__ import annotations

__all__ = [
    "ProcessingState",
    "PromptReport",
    "StageFigures",
    "make_prompt_report",
    "read_processing",
    "write_plot",
]

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from ..errors import PandaBpsError
from ..files import replacing
from ..settings.prompt import read_prompt_file
from .catalog import Catalog, Group, GroupState, StageTime
from .process import CATALOG_NAME, find_process, state_directory

TO_FIRST = "to first instruction"
TO_END = "to outputs registered"
PIPELINE = "pipeline"
_SUMS = (TO_FIRST, PIPELINE, TO_END)
_FIRST = ("wait", "ingest", "graph", "plan", "submit", "start")
_LAST = ("end", "register")


@dataclass(frozen=True, slots=True)
class StageFigures:
    """How long a stage took, s."""

    stage: str
    count: int
    median: float
    p95: float
    """95 of 100 groups took no longer."""

    p99: float
    longest: float


@dataclass(frozen=True, slots=True)
class MissedGroup:
    """A group that failed, or was not done by its deadline."""

    name: str
    state: str
    seconds: float
    """From its arrival to its end, or until now."""

    cause: str


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """All that is known of a group; times are seconds since its arrival."""

    name: str
    arrived: datetime
    state: str
    attempts: int
    run_id: int | None
    collection: str
    first_instruction: float | None
    ended: float | None
    stages: Mapping[str, float]
    """Seconds that each stage of the last attempt took."""

    error: str
    """Why the last attempt that failed did so, also if a later one succeeded."""


@dataclass(frozen=True, slots=True)
class PromptReport:
    """The state of a processing."""

    counts: Mapping[str, int]
    """Groups by their state."""

    stages: tuple[StageFigures, ...]
    missed: tuple[MissedGroup, ...]
    groups: tuple[GroupRecord, ...]


@dataclass(frozen=True, slots=True)
class ProcessingState:
    """What a processing does and has done."""

    process: int | None
    """Number of its process; `None` if it does not run."""

    deadline: float
    """Seconds after its arrival in which a group is to be done."""

    nights: tuple[str, ...]
    """Collections of the outputs of its nights, the newest first."""

    report: PromptReport


def read_processing(config: Path, *, night: str = "") -> ProcessingState:
    """Read what a processing has kept: of all groups, or of those of a night, to the newest of which groups
    belong that nothing was done with yet.
    """
    directory = state_directory(config)
    catalog = Catalog(directory / CATALOG_NAME, must_exist=True)
    try:
        groups, times = catalog.groups(), catalog.times()
    finally:
        catalog.close()
    nights = tuple(dict.fromkeys(group.chain for group in reversed(groups) if group.chain))
    if night:
        chosen = (night, "") if night in nights[:1] else (night,)
        groups = [group for group in groups if group.chain in chosen]
    deadline = read_prompt_file(str(config)).deadline
    report = make_prompt_report(groups, times, deadline=deadline, now=time.time())
    return ProcessingState(find_process(directory), deadline, nights, report)


def make_prompt_report(
    groups: Sequence[Group], times: Iterable[StageTime], *, deadline: float, now: float
) -> PromptReport:
    """Make the report of what the catalogue holds."""
    by_group: dict[str, list[StageTime]] = defaultdict(list)
    attempts = {group.name: group.attempt for group in groups}
    for each in times:
        if each.attempt == attempts.get(each.name):
            by_group[each.name].append(each)
    records = tuple(_record(group, by_group[group.name]) for group in groups)
    figures = _figures(records)
    typical = {each.stage: each.median for each in figures}
    missed = []
    for group, record in zip(groups, records, strict=True):
        seconds = (group.ended or now) - group.arrived
        if group.state is GroupState.FAILED or seconds > deadline:
            missed.append(MissedGroup(group.name, group.state.value, seconds, _cause(group, record, typical)))
    counts = {state.value: sum(group.state is state for group in groups) for state in GroupState}
    return PromptReport(counts, figures, tuple(missed), records)


def _record(group: Group, times: Sequence[StageTime]) -> GroupRecord:
    stages = {each.stage: each.ended - each.begun for each in times}
    begun = min((each.begun for each in times), default=None)
    first = next((each.ended - group.arrived for each in times if each.stage == "start"), None)
    last = next((each.begun - group.arrived for each in times if each.stage == "end"), None)
    if begun is not None:
        stages["wait"] = begun - group.arrived
    if first is not None and last is not None:
        stages[PIPELINE] = last - first
        stages[TO_FIRST] = first
    ended = None if group.ended is None else group.ended - group.arrived
    if group.state is GroupState.DONE and ended is not None:
        stages[TO_END] = ended
    return GroupRecord(
        name=group.name,
        arrived=datetime.fromtimestamp(group.arrived, UTC),
        state=group.state.value,
        attempts=group.attempt,
        run_id=group.run_id,
        collection=group.run,
        first_instruction=first,
        ended=ended,
        stages=stages,
        error=group.error,
    )


def _figures(records: Sequence[GroupRecord]) -> tuple[StageFigures, ...]:
    values: dict[str, list[float]] = defaultdict(list)
    for record in records:
        if record.state == GroupState.DONE:
            for stage, seconds in record.stages.items():
                values[stage].append(seconds)
    known = {*_FIRST, *_LAST, *_SUMS}
    labels = [stage for stage in values if stage not in known]
    order = [*_FIRST, *labels, *_LAST, *_SUMS]
    return tuple(_spread(stage, sorted(values[stage])) for stage in order if stage in values)


def _spread(stage: str, ranked: list[float]) -> StageFigures:
    def at(share: float) -> float:
        return ranked[min(len(ranked) - 1, int(share * len(ranked)))]

    return StageFigures(stage, len(ranked), median(ranked), at(0.95), at(0.99), ranked[-1])


def _cause(group: Group, record: GroupRecord, typical: Mapping[str, float]) -> str:
    """Say why a group is late: attempts that failed, or the stage that took so much longer than usual."""
    if group.error:
        return group.error
    stages = {name: seconds for name, seconds in record.stages.items() if name not in _SUMS}
    if group.state is GroupState.WAITING or not stages:
        return "it waits for its turn: more groups arrive than can be processed, see groupsAtOnce"
    worst = max(stages, key=lambda name: stages[name] - typical.get(name, 0.0))
    usual = f", usually {typical[worst]:.1f} s" if worst in typical else ""
    return f"{worst} took {stages[worst]:.1f} s{usual}"


def write_plot(report: PromptReport, path: Path) -> None:
    """Draw how long each group took, by its arrival, into a PNG, SVG or PDF file."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PandaBpsError("The plot needs matplotlib: pip install 'lsst-ctrl-bps-panda[plots]'.") from error
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for name in (TO_END, TO_FIRST):
        _draw(axes, ".", name, [each for each in report.groups if name in each.stages], name)
    if failed := [each for each in report.groups if each.state == GroupState.FAILED]:
        _draw(axes, "x", "failed", failed)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("arrival of the group, UTC")
    axes.set_ylabel("seconds since then")
    axes.legend()
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix.removeprefix(".") or "png", dpi=110)
    except (OSError, ValueError) as error:
        raise PandaBpsError(f"The plot {path} cannot be written: {error}.") from error


def _draw(axes: Any, mark: str, label: str, groups: Sequence[GroupRecord], stage: str = "") -> None:
    seconds = [each.stages[stage] if stage else each.ended for each in groups]
    axes.plot([each.arrived for each in groups], seconds, mark, label=label)
