"""What jobs used against what was asked for, by label, and what to ask for next time; how many jobs ran at
each moment; plots of both in files, which need matplotlib (extra ``plots``).

Memory is the largest resident set, as prmon or the pilot measured it and PanDA stores it (kB); rates of input
and output are not used, since prmon gives them a hundredfold in some versions.
"""

from __future__ import annotations

__all__ = [
    "LabelResources",
    "Quantiles",
    "SERIES_COLOURS",
    "TimeSeries",
    "count_over_time",
    "measure_resources",
    "render_suggestions",
    "write_plots",
]

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import accumulate
from pathlib import Path
from statistics import quantiles
from typing import Any

from lsst.ctrl.bps.wms_service import WmsStates

from ..errors import PandaBpsError
from ..files import replacing
from ..plan.model import Resources
from ..status.evidence import PlanSummary, RunEvidence
from ..status.records import JobRecord, render_count
from ..status.verdicts import PACKAGED_RULES, Rulebook
from ..status.vocabulary import OUT_OF_MEMORY, OUT_OF_TIME
from .task_graph import STATE_COLOURS

NEAR_LIMIT = 0.9
"""Part of the request from which on a job is near its limit."""

_MEMORY_MARGIN = 1.2
_MEMORY_STEP = 256
_MEMORY_LEAST = 512
_GROWTH = 1.5
_WALL_MARGIN = 2.0
_WALL_STEP = 600
_WALL_LEAST = 1800
_ENOUGH_JOBS = 5
_NEAR_SHOWN = 5
_KB = 1024
_TOLERANCE = 0.15
_STEPS = 200
_BINS = 30
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")
_ALONE = ("finalJob", "customJob")

SERIES_COLOURS = {
    "running": STATE_COLOURS[WmsStates.RUNNING],
    "finished": STATE_COLOURS[WmsStates.SUCCEEDED],
    "failed": STATE_COLOURS[WmsStates.FAILED],
}
"""Name and colour of what `count_over_time` counts."""


@dataclass(frozen=True, slots=True)
class Quantiles:
    """The spread of a figure."""

    count: int
    least: float
    quarter: float
    half: float
    three_quarters: float
    most_of_all: float
    """95 of 100 are not larger."""

    largest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Quantiles | None:
        """Summarize values; `None` if there are none."""
        ranked = sorted(values)
        if not ranked:
            return None
        # At each twentieth; they need two values at least.
        cuts = quantiles(ranked, n=20, method="inclusive") if len(ranked) > 1 else ranked * 19
        return cls(len(ranked), ranked[0], cuts[4], cuts[9], cuts[14], cuts[18], ranked[-1])


@dataclass(frozen=True, slots=True)
class LabelResources:
    """What the jobs of a label used."""

    label: str
    section: str
    """Section of the BPS configuration that holds the label's: ``pipetask``
    or ``cluster``; the label itself where its section stands alone."""

    attempts: int
    finished: int
    wall: Quantiles | None
    """Run time of finished attempts, s."""

    cpu: Quantiles | None
    """Processor time by cores and run time, of finished attempts."""

    memory: Quantiles | None
    """Largest resident memory of all attempts that ended, MB."""

    requested_memory: int
    """Of first attempts, whole job, MB; 0 if not known.  From the plan, if it is known: PanDA stores 0.9."""

    largest_request: int
    """Of any attempt, MB: more than ``requested_memory`` after retries with more memory."""

    requested_walltime: int
    """Seconds; 0 if not known.  From the plan, if there is one: PanDA stores the queue's limit."""

    cores: int
    near_limit: tuple[JobRecord, ...] = ()
    """Attempts that used 90 % or more of the memory of their request, largest first, at most five."""

    near_count: int = 0
    out_of_memory: int = 0
    out_of_time: int = 0
    retried_with_more: int = 0
    """Attempts that got more memory than the first one."""

    suggestions: tuple[tuple[str, int], ...] = ()
    """Keys and values of the label's section, where they differ from what was asked for."""

    reasons: tuple[str, ...] = ()
    """Why, one text for each suggestion."""


def measure_resources(evidence: RunEvidence, *, rulebook: Rulebook = PACKAGED_RULES) -> list[LabelResources]:
    """Summarize what the jobs of each label used, in pipeline order.

    The run has all its attempts; the rules tell which ran out of memory or time.
    """
    groups: dict[str, list[JobRecord]] = {label: [] for label in evidence.tally.by_label}
    for job in evidence.attempts:
        groups.setdefault(job.label, []).append(job)
    plan = evidence.plan or PlanSummary((), ())
    return [
        _measure(label, group, rulebook, _section_of(label, plan.clusters), plan.asked.get(label))
        for label, group in groups.items()
        if group
    ]


def _section_of(label: str, clusters: Collection[str]) -> str:
    if label in clusters:
        return "cluster"
    return label if label in _ALONE else "pipetask"


def _measure(
    label: str, jobs: Sequence[JobRecord], rulebook: Rulebook, section: str, asked: Resources | None
) -> LabelResources:
    finished = [job for job in jobs if job.finished]
    # Many attempts fail in the same way; each way is judged once.
    ways = Counter(job.errors for job in jobs if job.failed)
    verdicts: Counter[str] = Counter()
    for errors, number in ways.items():
        verdicts[rulebook.find_verdict(errors).name] += number
    near = sorted(
        (job for job in jobs if job.memory and job.max_rss >= NEAR_LIMIT * job.memory * _KB),
        key=lambda job: -job.max_rss,
    )
    known = [job.memory for job in jobs if job.memory]
    lowest = min((job.attempt for job in jobs), default=0)
    first = min((job.memory for job in jobs if job.memory and job.attempt == lowest), default=0)
    stored = {"memory": first, "walltime": max((job.walltime_limit for job in jobs), default=0)}
    requested = stored if asked is None else {"memory": asked.memory, "walltime": asked.walltime}
    measured = LabelResources(
        label=label,
        section=section,
        attempts=len(jobs),
        finished=len(finished),
        wall=Quantiles.of(job.wall_seconds for job in finished if job.wall_seconds is not None),
        cpu=Quantiles.of(job.cpu_efficiency for job in finished if job.cpu_efficiency is not None),
        memory=Quantiles.of(job.max_rss / _KB for job in jobs if job.max_rss),
        requested_memory=requested["memory"],
        largest_request=round(max(known) * requested["memory"] / first) if known else 0,
        requested_walltime=requested["walltime"],
        cores=max((job.cores for job in jobs), default=1) if asked is None else asked.cores,
        near_limit=tuple(near[:_NEAR_SHOWN]),
        near_count=len(near),
        out_of_memory=verdicts[OUT_OF_MEMORY],
        out_of_time=verdicts[OUT_OF_TIME],
        retried_with_more=sum(memory > first for memory in known),
    )
    return _suggest(measured, max((job.max_rss / _KB for job in finished), default=0.0))


def _suggest(found: LabelResources, sufficed: float) -> LabelResources:
    """Add suggestions; so much memory sufficed for every attempt that finished, MB."""
    advice = [
        item
        for item in (_suggest_memory(found, sufficed), _suggest_cores(found), _suggest_walltime(found))
        if item is not None
    ]
    return replace(
        found,
        suggestions=tuple((key, value) for key, value, _ in advice),
        reasons=tuple(reason for _, _, reason in advice),
    )


def _suggest_memory(found: LabelResources, sufficed: float) -> tuple[str, int, str] | None:
    """Suggest memory of the whole job, MB."""
    requested = found.requested_memory
    if found.out_of_memory:
        largest = found.memory.largest if found.memory else 0.0
        wanted = max(requested * _GROWTH, largest * _GROWTH, sufficed * _MEMORY_MARGIN)
        return (
            "requestMemory",
            _up(wanted, _MEMORY_STEP),
            f"{render_count(found.out_of_memory, 'attempt')} ran out of memory with {requested} MB",
        )
    if found.memory is None or found.finished < _ENOUGH_JOBS:
        return None
    wanted = max(_MEMORY_LEAST, _up(sufficed * _MEMORY_MARGIN, _MEMORY_STEP))
    if sufficed * _MEMORY_MARGIN <= requested <= _MEMORY_LEAST:
        return None
    if requested and abs(wanted - requested) <= _TOLERANCE * requested:
        return None
    word = "more than" if wanted > requested else "at most"
    return "requestMemory", wanted, f"{word} {found.memory.largest:.0f} MB was used of {requested} MB"


def _suggest_cores(found: LabelResources) -> tuple[str, int, str] | None:
    """Suggest fewer cores where most of them idle."""
    if found.cpu is None or found.cores < 2 or found.finished < _ENOUGH_JOBS:
        return None
    busy = found.cpu.most_of_all * found.cores
    wanted = max(1, math.ceil(busy - _TOLERANCE))
    if wanted >= found.cores:
        return None
    return "requestCpus", wanted, f"95 % of the jobs kept at most {busy:.1f} of {found.cores} cores busy"


def _suggest_walltime(found: LabelResources) -> tuple[str, int, str] | None:
    """Suggest a run time, s."""
    if found.out_of_time:
        wanted = _up(max(found.requested_walltime, _WALL_LEAST) * _WALL_MARGIN, _WALL_STEP)
        return "requestWalltime", wanted, f"{render_count(found.out_of_time, 'attempt')} ran out of time"
    if found.wall is None or found.finished < _ENOUGH_JOBS:
        return None
    wanted = max(_WALL_LEAST, _up(found.wall.largest * _WALL_MARGIN, _WALL_STEP))
    limit = found.requested_walltime
    if limit and wanted <= limit:
        return None
    asked = f"{limit} s were asked for" if limit else "no limit is known"
    return "requestWalltime", wanted, f"the longest took {found.wall.largest:.0f} s, {asked}"


def _up(value: float, step: int) -> int:
    return math.ceil(value / step) * step


def render_suggestions(labels: Iterable[LabelResources]) -> list[str]:
    """Write the suggestions as lines of YAML for a BPS configuration; none if there is nothing to suggest.

    A label's section is in ``pipetask``, a cluster's in ``cluster``; those of the final job and of a command
    (bps submitcmd) stand alone.
    """
    sections: dict[str, list[str]] = {}
    for found in labels:
        if not found.suggestions:
            continue
        alone = found.section == found.label
        lines = sections.setdefault(found.section, [])
        indent = "  " if alone else "    "
        lines += [] if alone else [f"  {found.label}:"]
        for (key, value), reason in zip(found.suggestions, found.reasons, strict=True):
            lines.append(f"{indent}{key}: {value}  # {reason}")
    return [line for section, lines in sections.items() for line in (f"{section}:", *lines)]


@dataclass(frozen=True, slots=True)
class TimeSeries:
    """Numbers of jobs at equal steps of time."""

    start: datetime
    end: datetime
    bins: dict[str, list[int]]
    """The numbers by the names of `SERIES_COLOURS`."""


def count_over_time(
    jobs: Sequence[JobRecord], steps: int = _STEPS, *, until: datetime | None = None
) -> TimeSeries:
    """Count the jobs that were running, and those that had finished or failed, at
    each of many moments: up to that of the last change, or ``until`` if it is later.

    All these attempts have started.
    """
    starts = [job.started for job in jobs if job.started is not None]
    ends = [job.ended for job in jobs if job.ended is not None]
    start, end = min(starts), max([*starts, *ends, *([until] if until is not None else [])])
    length = max(1.0, (end - start).total_seconds())
    changes = {name: [0] * (steps + 1) for name in SERIES_COLOURS}

    def position(moment: datetime) -> int:
        return max(0, min(steps - 1, int((moment - start).total_seconds() / length * (steps - 1))))

    for job in jobs:
        assert job.started is not None
        changes["running"][position(job.started)] += 1
        if job.ended is not None:
            changes["running"][position(job.ended) + (job.ended < end)] -= 1
            kind = "finished" if job.finished else "failed" if job.failed else ""
            if kind:
                changes[kind][position(job.ended)] += 1
    return TimeSeries(
        start,
        end,
        {name: [max(0, total) for total in accumulate(numbers[:steps])] for name, numbers in changes.items()},
    )


def write_plots(
    evidence: RunEvidence, labels: Sequence[LabelResources], directory: Path, *, form: str = "png"
) -> list[Path]:
    """Write plots of what jobs used, one for each label with a figure, and of
    jobs over time, as ``png`` or ``svg`` into a directory that is made if needed.

    It is a `PandaBpsError` if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PandaBpsError(
            "Plots need matplotlib: pip install 'lsst-ctrl-bps-panda[plots]'. Without it, panda_bps html"
            " draws the same figures into a page."
        ) from error
    made: dict[Path, Any] = {}
    for found in labels:
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        if _draw_label(figure, evidence, found):
            made[directory / f"resources_{_UNSAFE.sub('_', found.label)}.{form}"] = figure
    timeline = Figure(figsize=(9, 3.2), layout="constrained")
    if _draw_timeline(timeline, evidence):
        made[directory / f"timeline.{form}"] = timeline
    try:
        for path, figure in made.items():
            with replacing(path) as temporary:
                figure.savefig(temporary, format=form, dpi=110)
    except OSError as error:
        raise PandaBpsError(f"The plots cannot be written to {directory}: {error}.") from error
    return list(made)


def _draw_label(figure: Any, evidence: RunEvidence, found: LabelResources) -> bool:
    """Draw histograms of memory and run time; tell whether there is any."""
    jobs = [job for job in evidence.attempts if job.label == found.label]
    memory = [job.max_rss / _KB for job in jobs if job.max_rss]
    walls = [job.wall_seconds for job in jobs if job.finished and job.wall_seconds is not None]
    if not memory and not walls:
        return False
    left, right = figure.subplots(1, 2)
    for axes, values, limit, text in (
        (left, memory, found.requested_memory, "largest resident memory, MB"),
        (right, walls, 0, "run time of finished attempts, s"),
    ):
        axes.hist(values, bins=_BINS, color=SERIES_COLOURS["running"])
        if limit:
            axes.axvline(
                limit, color=SERIES_COLOURS["failed"], linestyle="--", label=f"asked for: {limit} MB"
            )
            axes.legend()
        axes.set_xlim(left=0)
        axes.set_xlabel(text)
        axes.set_ylabel("attempts")
    figure.suptitle(f"run {evidence.request_id}, {found.label}")
    return True


def _draw_timeline(figure: Any, evidence: RunEvidence) -> bool:
    """Draw jobs over time; tell whether one has started."""
    begun = [job for job in evidence.attempts if job.started is not None]
    if not begun:
        return False
    series = count_over_time(begun)
    axes = figure.subplots()
    for name, numbers in series.bins.items():
        step = (series.end - series.start).total_seconds() / max(1, len(numbers) - 1)
        moments = [series.start + timedelta(seconds=step * n) for n in range(len(numbers))]
        axes.plot(moments, numbers, color=SERIES_COLOURS[name], label=name)
    axes.legend()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("time, UTC")
    axes.set_ylabel("jobs")
    axes.set_title(f"run {evidence.request_id}")
    return True
