"""Plots of a run: the colours of states, jobs counted over time, and files with plots of memory, run time
and jobs over time.

Only the files need matplotlib (extra ``plots``).
"""

from __future__ import annotations

__all__ = [
    "SERIES_COLOURS",
    "STATE_COLOURS",
    "TimeSeries",
    "colour_of",
    "count_over_time",
    "write_plots",
]

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any

from lsst.ctrl.bps.wms_service import WmsStates

from ..errors import PandaBpsError
from ..status.evidence import RunEvidence
from ..status.records import JobRecord
from .resources import LabelResources

STATE_COLOURS = {
    WmsStates.SUCCEEDED: "#2a9d5c",
    WmsStates.FAILED: "#d1433f",
    WmsStates.DELETED: "#8a5aa8",
    WmsStates.PRUNED: "#c9a227",
    WmsStates.RUNNING: "#2f7fd1",
    WmsStates.PENDING: "#7fb2e5",
    WmsStates.READY: "#a9cbea",
    WmsStates.UNREADY: "#c3c7cc",
}
"""Colour of each state; others are grey."""

_GREY = "#9aa0a6"

SERIES_COLOURS = {
    "running": STATE_COLOURS[WmsStates.RUNNING],
    "finished": STATE_COLOURS[WmsStates.SUCCEEDED],
    "failed": STATE_COLOURS[WmsStates.FAILED],
}
"""Name and colour of what `count_over_time` counts."""

_STEPS = 200
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")
_BINS = 30


def colour_of(state: WmsStates) -> str:
    """Return the colour of a state."""
    return STATE_COLOURS.get(state, _GREY)


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
    """Count the jobs that were running, and those that had finished or failed, at each of many moments.

    Parameters
    ----------
    jobs : `~collections.abc.Sequence` [`JobRecord`]
        Attempts that have started.
    steps : `int`, optional
        Number of moments.
    until : `~datetime.datetime`, optional
        The last moment; that of the last change by default.
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
    """Write plots of what jobs used, and of jobs over time.

    Parameters
    ----------
    evidence : `RunEvidence`
        The run with all its jobs.
    labels : `~collections.abc.Sequence` [`LabelResources`]
        What each label used.
    directory : `~pathlib.Path`
        Where to write; it is made if it is not there.
    form : `str`, optional
        ``png`` or ``svg``.

    Returns
    -------
    paths : `list` [`~pathlib.Path`]
        Files written: one for each label with a figure, and ``timeline``.

    Raises
    ------
    PandaBpsError
        Raised if matplotlib is not installed, or nothing can be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PandaBpsError(
            "Plots need matplotlib: pip install 'lsst-ctrl-bps-panda[plots]'. Without it, panda_bps html"
            " draws the same figures into a page."
        ) from error
    made: list[tuple[str, Any]] = []
    for found in labels:
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        if _draw_label(figure, evidence, found):
            made.append((f"resources_{_UNSAFE.sub('_', found.label)}", figure))
    timeline = Figure(figsize=(9, 3.2), layout="constrained")
    if _draw_timeline(timeline, evidence):
        made.append(("timeline", timeline))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return [_write(FigureCanvasAgg(figure), directory / f"{name}.{form}", form) for name, figure in made]
    except OSError as error:
        raise PandaBpsError(f"The plots cannot be written to {directory}: {error}.") from error


def _write(canvas: Any, path: Path, form: str) -> Path:
    """Write a figure under a temporary name and move it."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            canvas.figure.savefig(stream, format=form, dpi=110)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _draw_label(figure: Any, evidence: RunEvidence, found: LabelResources) -> bool:
    """Draw histograms of memory and run time; tell whether there is any."""
    jobs = [job for job in evidence.attempts if job.label == found.label]
    memory = [job.max_rss / 1024 for job in jobs if job.max_rss]
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
