"""The values of a run's web page; its look is in ``templates/run.html`` and
``static/run.css``.

The page is one file that needs nothing else: tables, the graph of tasks, jobs
over time, memory, errors with verdicts, links.
"""

from __future__ import annotations

__all__ = ["RunPage", "render_page"]

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from lsst.ctrl.bps.wms_service import WmsStates
from markupsafe import Markup

from ..insight.overview import Overview
from ..insight.resources import SERIES_COLOURS, LabelResources, render_suggestions
from ..insight.task_graph import STATE_COLOURS, TaskGraph, colour_of
from ..status.bps_states import Counts
from ..status.failures import ErrorGroup
from ..status.records import JobRecord
from . import render
from .drawing import draw_graph, draw_histogram, draw_timeline

_COLUMNS = (
    WmsStates.SUCCEEDED, WmsStates.RUNNING, WmsStates.PENDING, WmsStates.READY, WmsStates.UNREADY,
    WmsStates.FAILED, WmsStates.PRUNED, WmsStates.DELETED,
)  # fmt: skip
"""States that have a column of their own in the table of jobs."""


@dataclass(frozen=True, slots=True)
class RunPage:
    """What the page shows."""

    overview: Overview
    graph: TaskGraph
    groups: Sequence[ErrorGroup]
    labels: Sequence[LabelResources]
    jobs: Sequence[JobRecord]
    made_at: datetime
    version: str = ""
    left_out: int = 0
    """Kinds of errors that are not in ``groups``."""


def render_page(page: RunPage) -> str:
    """Write the page: one document that loads nothing and runs no script."""
    run = page.overview
    text = render(
        "run.html",
        page=page,
        run=run,
        colour=colour_of(run.state),
        columns=_COLUMNS,
        # The total first: below a hundred labels nobody would see it.
        total=_numbers(run.total),
        labels={label: _numbers(counts) for label, counts in run.labels.items()},
        graph=draw_graph(page.graph),
        state_colours={state.name: colour for state, colour in STATE_COLOURS.items()},
        timeline=draw_timeline(page.jobs, until=None if run.ended else page.made_at),
        series_colours=SERIES_COLOURS,
        suggestions=render_suggestions(page.labels),
        histograms=list(_histograms(page)),
    )
    return str(text)


def _numbers(counts: Counts) -> list[int]:
    """Return the number of all jobs, of those in each state with a column, and of the others."""
    total, numbers = sum(counts.values()), [counts[state] for state in _COLUMNS]
    return [total, *numbers, total - sum(numbers)]


def _histograms(page: RunPage) -> Iterator[tuple[str, Markup]]:
    """Yield the label and the drawing of the memory of its jobs."""
    for found in page.labels:
        values = [job.max_rss / 1024 for job in page.jobs if job.label == found.label and job.max_rss]
        if values:
            yield found.label, draw_histogram(values, limit=found.requested_memory, unit="MB")
