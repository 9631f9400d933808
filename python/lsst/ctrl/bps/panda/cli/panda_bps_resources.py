"""The command ``panda_bps resources``: what jobs used, and what to ask for."""

from __future__ import annotations

__all__ = ["resources"]

from collections.abc import Iterator
from pathlib import Path

import click

from lsst.ctrl.bps.panda.insight.documents import make_document
from lsst.ctrl.bps.panda.insight.overview import observe
from lsst.ctrl.bps.panda.insight.resources import LabelResources, measure_resources, render_suggestions
from lsst.ctrl.bps.panda.status.jobs import number_of
from lsst.ctrl.bps.panda.status.verdicts import read_rulebook

from .run_argument import Asked, json_option, print_problems, run_command, table, terminal_width, write_json

_HEAD = (
    "label", "finished", "attempts", "wall 50% s", "95% s", "max s", "CPU 50%", "RSS 50% MB", "95% MB",
    "max MB", "asked MB", "near limit", "no memory",
)  # fmt: skip
# Left out one after the other on a narrow terminal.
_LESS = ("95% s", "95% MB", "attempts", "CPU 50%", "RSS 50% MB", "wall 50% s")


@click.command()
@run_command
@click.option("-l", "--label", default="", help="Jobs of this label only.")
@click.option(
    "--plots",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory to write plots to (needs matplotlib: the extra 'plots').",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["png", "svg"]),
    default="png",
    show_default=True,
    help="Kind of file of the plots.",
)
@json_option
def resources(asked: Asked, label: str, plots: Path | None, form: str, as_json: bool) -> None:
    """Show what the jobs of a run used against what was asked for, and
    suggest values.  RUN is its id, name or submit directory.

    "50%" is the median, "95%" what 95 of 100 jobs do not exceed, RSS the
    largest memory in use.  The last lines are to be pasted into the
    configuration of the next run.

    \b
    panda_bps resources 41
    panda_bps resources 41 --plots plots --format svg
    """  # noqa: D301 (click's mark)
    observation = observe(asked.connection, asked.run, label=label, errors=False)
    labels = measure_resources(
        observation.jobs,
        observation.tally.by_label,
        read_rulebook(),
        clusters=observation.clusters,
    )
    written: list[Path] = []
    if plots is not None:
        from lsst.ctrl.bps.panda.insight.plots import write_plots

        written = write_plots(observation, labels, plots, form=form)
    if as_json:
        name, problems = observation.name, observation.problems
        write_json(
            make_document(
                labels, request_id=observation.request_id, name=name, kind="resources", problems=problems
            )
        )
        return
    click.echo(f"Run {observation.request_id}  {observation.name}: {observation.tally.state.name}")
    for line in _lines(labels, planned=observation.evidence.plan is not None):
        click.echo(line)
    for path in written:
        click.echo(f"Wrote {path}")
    print_problems(observation.problems)


def _lines(labels: list[LabelResources], *, planned: bool) -> Iterator[str]:
    if not labels:
        yield "PanDA has no job of this run yet."
        return
    rows = (_row(found) for found in labels)
    yield from table(_HEAD, rows, drop=_LESS, width=terminal_width())
    for found in labels:
        for job in found.near_limit[:1]:
            yield (
                f"  {found.label}: {number_of(found.near_count, 'attempt')} near the limit or over it; "
                f"most: {job.name}, PanDA job {job.panda_id}, {job.max_rss / 1024:.0f} of {job.memory} MB"
            )
        if found.retried_with_more:
            yield (
                f"  {found.label}: {number_of(found.retried_with_more, 'attempt')} got more memory, up to "
                f"{found.largest_request} MB"
            )
    yield ""
    suggestions = render_suggestions(labels)
    if suggestions:
        yield "Suggested for the next run (BPS configuration; memory in MB, times in s):"
        yield from suggestions
        if not planned:
            yield "# The run's record is not at hand: a label that is a cluster belongs below 'cluster:'."
    else:
        yield "What was asked for fits, or fewer than five jobs have finished: nothing to suggest."


def _row(found: LabelResources) -> tuple[object, ...]:
    wall, cpu, memory = found.wall, found.cpu, found.memory
    return (
        found.label,
        found.finished,
        found.attempts,
        *((f"{wall.half:.0f}", f"{wall.most_of_all:.0f}", f"{wall.largest:.0f}") if wall else (None,) * 3),
        f"{cpu.half:.0%}" if cpu else None,
        *(
            (f"{memory.half:.0f}", f"{memory.most_of_all:.0f}", f"{memory.largest:.0f}")
            if memory
            else (None,) * 3
        ),
        found.requested_memory or None,
        found.near_count,
        found.out_of_memory,
    )
