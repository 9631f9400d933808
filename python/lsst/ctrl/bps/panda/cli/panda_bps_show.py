"""The commands that show a run, ``panda_bps show``, ``errors``, ``resources`` and ``html``, and the argument
RUN that others share with them: which run, and the server that has it.
"""

from __future__ import annotations

__all__ = [
    "RunArgument",
    "errors",
    "fetch_errors",
    "error_lines",
    "find_run",
    "find_server",
    "html",
    "job_options",
    "local_option",
    "print_errors",
    "read_rules",
    "resources",
    "run_command",
    "show",
    "write_page",
]

import contextlib
import functools
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from ..errors import PandaBpsError, RunNotFoundError, SettingsError
from ..files import write_text
from ..insight.documents import make_document
from ..insight.logs import LogTransport, TailReader, fold_lines
from ..insight.overview import JobScope, Overview, explain_failures, fetch_evidence, fetch_overview
from ..insight.resources import LabelResources, measure_resources, render_suggestions, write_plots
from ..local import endpoint as local_endpoint
from ..local import instance
from ..report import describe_successor
from ..runs.client import Connection, connect
from ..runs.files import names_directory
from ..runs.jobs import JobQuery, RunJobs
from ..runs.record import RunEntry, RunIndex
from ..settings.run import ServiceSettings, read_service_settings, use_run_broker
from ..status.evidence import RunEvidence
from ..status.failures import ErrorGroup, find_remarks
from ..status.records import JobRecord, describe_data, render_count
from ..status.verdicts import PACKAGED_RULES, Rulebook, parse_rulebook
from ..version import __version__
from .output import (
    json_option,
    print_lines,
    print_problems,
    shows_errors,
    table,
    terminal_width,
    write_document,
    write_json,
)

_MOST_RUNS = 10
"""Runs that an error lists at most."""

local_option = click.option("--local", is_flag=True, help="Ask the embedded PanDA of this machine.")


@dataclass(frozen=True)
class RunArgument:
    """The run a command is about, and the server that has it."""

    run: str
    connection: Connection


def find_run(run: str | None, *, local: bool) -> RunArgument:
    """Find the run that a user means, and connect to the server that has it, or to the embedded PanDA if that
    is asked for.

    A run is given by its id, its name or a part of it, or its submit directory; `None` means the last one,
    an empty text (a variable of a script that is not set) none.  Which one was chosen is said on the standard
    error.
    """
    settings, profile = find_server(local)
    index = RunIndex(settings.state_directory, settings.url)
    run = _choose_run(run, {entry.request_id: entry for entry in index.entries()}, settings)
    record = None
    # Whoever looks the run up will say what is wrong.
    with contextlib.suppress(PandaBpsError, OSError):
        record = index.find(run)
    if record is not None:
        if record.run.site and profile:
            settings = read_service_settings(None, settings.environment, site=record.run.site)
        settings = use_run_broker(settings, record.messages or {})
    return RunArgument(run, connect(settings))


def find_server(local: bool) -> tuple[ServiceSettings, bool]:
    """Find out where PanDA is: the embedded one if it is asked for, by option
    or as BPS's service class, or if it runs and no other is known.

    The second result tells whether the profile of the run's site counts.
    """
    environment: dict[str, str] = dict(os.environ)
    named = environment.get("BPS_WMS_SERVICE_CLASS", "").endswith("LocalPanDAService")
    settings = read_service_settings(None, environment)
    if settings.url and not (local or named):
        return settings, True
    directory = local_endpoint.state_directory(environment)
    found = instance.find(directory)
    if found is None:
        if local or named:
            raise PandaBpsError(f"No embedded PanDA runs with {directory}. Start it: panda_local start.")
        return settings, True
    merged: Mapping[str, str] = {**environment, **local_endpoint.environment(found)}
    return read_service_settings(None, merged), False


def _choose_run(run: str | None, own: Mapping[int, RunEntry], settings: ServiceSettings) -> str:
    """Return the id of the last run if none is named, or of the only one whose name holds what is given;
    otherwise what is given, of which the server may know more.
    """
    if run is not None:
        exact = not run or run.isdecimal() or names_directory(run)
        if exact or any(entry.name == run for entry in own.values()):
            return run
        fitting, why = [entry for entry in own.values() if run.lower() in entry.name.lower()], "named so"
        if len(fitting) > 1:
            names = "".join(f"\n  {_render_entry(entry)}" for entry in reversed(fitting[-_MOST_RUNS:]))
            raise RunNotFoundError(
                f"{run!r} is a part of the names of {len(fitting)} runs; give an id or a longer part:{names}"
            )
    else:
        here = Path.cwd()
        places = {entry.request_id: Path(entry.submit_path) for entry in own.values()}
        fitting = [
            entry
            for entry in own.values()
            if places[entry.request_id].is_relative_to(here) or here.is_relative_to(places[entry.request_id])
        ]
        why = "the last one submitted from this directory" if fitting else "your last one"
        fitting = fitting or [*own.values()]
        if not fitting:
            raise RunNotFoundError(
                f"No run is named, and {settings.user} has submitted none to {settings.url or 'PanDA'} from "
                "this machine. Give the id or the name of a run; bps report lists the runs."
            )
    if run is not None and not fitting:
        return run
    click.echo(f"Run {_render_entry(fitting[-1])}: {why}.", err=True)
    return str(fitting[-1].request_id)


def _render_entry(entry: RunEntry) -> str:
    moment = f", {entry.submitted_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if entry.submitted_at else ""
    return f"{entry.request_id} {entry.name}{moment}"


def run_command(function: Callable[..., int | None]) -> Callable[..., None]:
    """Give a command the argument RUN and the option ``--local``, and show our errors as one message.

    The function gets an `RunArgument` first.
    """

    @click.argument("run", required=False)
    @local_option
    @functools.wraps(function)
    @shows_errors()
    def call(run: str | None, local: bool, **options: Any) -> int | None:
        return function(find_run(run, local=local), **options)

    return call


label_option = click.option("-l", "--label", default="", help="Jobs of this label only.")


def job_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options ``--label``, ``--job`` and ``--data``, which say which jobs are meant."""
    for option in (
        click.option(
            "--data", default="", metavar="ID", help='Jobs of this data ID, as "visit=260315001, detector=1".'
        ),
        click.option(
            "-j",
            "--job",
            default="",
            help="One job: its name in BPS, its pseudo-input, or PanDA's number or name.",
        ),
        label_option,
    ):
        function = option(function)
    return function


_rules_option = click.option(
    "--rules",
    envvar="PANDA_BPS_VERDICTS",
    type=click.Path(exists=True, dir_okay=False),
    help="YAML file with your own rules for the verdicts  [env: PANDA_BPS_VERDICTS].",
)


def read_rules(path: str | Path) -> Rulebook:
    """Read a user's own rules for failures, which come before the packaged ones."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"The rules {path} cannot be read: {error}.") from error
    return parse_rulebook(text, str(path))


def _title(run: RunEvidence) -> str:
    return f"Run {run.request_id}  {run.name}: {run.tally.state.name}"


# --- show -------------------------------------------------------------------

_JOB_HEAD = (
    "label", "job", "name in BPS", "data", "state", "queue", "PanDA job", "attempt", "started", "wall s",
    "RSS MB", "error",
)  # fmt: skip
# Left out one after the other on a narrow terminal.
_JOB_LESS = ("started", "queue", "RSS MB", "wall s", "attempt", "name in BPS", "data")


@click.command()
@run_command
@click.option("--jobs", "with_jobs", is_flag=True, help="List the PanDA jobs instead, all attempts.")
@job_options
@json_option
def show(argument: RunArgument, with_jobs: bool, as_json: bool, **which: str) -> None:
    """Show a run: its tasks, files, links.  RUN is its id, name or submit
    directory.

    With --label, --job or --data the PanDA jobs are listed as with --jobs.

    \b
    panda_bps show 41
    panda_bps show 41 --jobs               each attempt of each job
    panda_bps show u_ann_isr --label isr   those of one label
    panda_bps show 41 --data "visit=260315001, detector=1"
    """  # noqa: D301 (click's mark)
    if with_jobs or any(which.values()):
        _show_jobs(argument, JobQuery(**which), as_json)
        return
    run, overview = fetch_overview(
        argument.connection, argument.run, scope=JobScope.NONE, tasks=True, errors=False
    )
    if as_json:
        write_json(make_document(overview, request_id=run.request_id, name=run.name))
        return
    print_lines([*_overview_lines(overview), *filter(None, [describe_successor(run)])])
    print_problems(overview.problems)


def _show_jobs(argument: RunArgument, which: JobQuery, as_json: bool) -> None:
    run = fetch_evidence(argument.connection, argument.run, which=which, errors=False)
    jobs = RunJobs(run).identify(run.attempts)
    if as_json:
        write_document(jobs, run, "jobs")
        return
    print_lines(table(_JOB_HEAD, map(_job_row, jobs), left=6, drop=_JOB_LESS, width=terminal_width()))
    print_problems(run.problems)


def _job_row(job: JobRecord) -> tuple[object, ...]:
    return (
        job.label,
        job.name,
        job.bps_name or None,
        describe_data(job.data) or None,
        job.status,
        job.site,
        job.panda_id,
        job.attempt,
        job.started and f"{job.started:%m-%d %H:%M:%S}",
        None if job.wall_seconds is None else f"{job.wall_seconds:.0f}",
        round(job.max_rss / 1024) or None,
        job.error and job.error.title,
    )


def _overview_lines(found: Overview) -> Iterator[str]:
    yield f"Run {found.request_id}  {found.name}"
    over = "" if found.ended else ", not over yet"
    facts = {"state": f"{found.state.name}{over} (iDDS: {found.idds_status})", **found.facts}
    yield from (f"  {name + ':':<18}{value}" for name, value in facts.items())
    yield ""
    head = ("label", "iDDS", "PanDA", "transform", "task", "jobs", "finished", "failed", "deleted")
    deleted = any(task.deleted for task in found.tasks)
    rows: list[tuple[object, ...]] = [
        (t.label, t.idds_status, t.panda_status or None, t.transform_id, t.task_id or None,
         t.jobs, t.finished, t.failed, *([t.deleted] if deleted else ()))
        for t in found.tasks
    ]  # fmt: skip
    yield from table(head if deleted else head[:-1], rows, left=3) if rows else ["There is no task yet."]
    for task in found.tasks:
        if task.remark and task.task_id:
            yield f"  task {task.task_id}: {task.remark}"
    yield from (f"  {remark}" for remark in found.remarks)
    if found.files:
        yield ""
        yield "Files:"
        yield from (f"  {file.path}  ({file.what}, {file.size} bytes)" for file in found.files)
    if found.links:
        yield ""
        yield "Monitor:"
        yield from (f"  {what}: {link}" for what, link in found.links)
        yield from (f"  failed jobs of {t.label}: {t.failed_link}" for t in found.tasks if t.failed_link)


# --- errors -----------------------------------------------------------------

_ADVICE_WIDTH = 100


@click.command()
@run_command
@job_options
@click.option(
    "--limit", default=20, show_default=True, type=click.IntRange(1), help="Kinds of errors at most."
)
@click.option(
    "--tail", default=12, show_default=True, type=click.IntRange(0), help="Lines of each example's log."
)
@_rules_option
@click.option("--recovered", is_flag=True, help="Include failed attempts of jobs that finished later.")
@json_option
def errors(argument: RunArgument, as_json: bool, **options: Any) -> None:
    """Show why jobs of a run failed, and what to do.  RUN is its id,
    a part of its name, or its submit directory; by default your last run.

    Attempts with the same error are one group; the group that cost most jobs
    comes first.  Each gets a verdict, the end of an example's log and advice.

    \b
    panda_bps errors 41
    panda_bps errors 41 --label isr --tail 40   one label, more of the log
    panda_bps errors 41 --recovered             also where a retry worked
    panda_bps errors 41 --data visit=260315001  one visit
    """  # noqa: D301 (click's mark)
    run, groups, left_out = fetch_errors(argument, **options)
    if as_json:
        write_document(groups, run, "errors")
    else:
        print_errors(run, groups, left_out)


def fetch_errors(
    argument: RunArgument, *, limit: int, tail: int, rules: str | None, recovered: bool, **which: str
) -> tuple[RunEvidence, list[ErrorGroup], int]:
    """Return a run, why jobs of it failed as the options of ``errors`` want it, and how many kinds of errors
    there are besides.
    """
    rulebook = read_rules(rules) if rules else PACKAGED_RULES
    scope = JobScope.UNSUCCESSFUL if recovered else JobScope.FAILED
    run = fetch_evidence(argument.connection, argument.run, scope=scope, which=JobQuery(**which))
    reader = _tail_reader(argument, tail)
    return run, *explain_failures(run, rulebook, reader, limit=limit, label=which["label"])


def print_errors(run: RunEvidence, groups: Sequence[ErrorGroup], left_out: int) -> None:
    """Print why jobs of a run failed."""
    remarks = [*filter(None, [describe_successor(run)]), *find_remarks(run)]
    print_lines([_title(run), *remarks, *([] if groups or remarks else ["No failed job is known."])])
    for number, group in enumerate(groups, 1):
        print_lines(error_lines(number, group, terminal_width()))
    if left_out:
        print_lines(["", f"{left_out} more kinds of errors: see --limit."])
    print_problems(run.problems)


def _tail_reader(argument: RunArgument, lines: int = 12) -> TailReader:
    return TailReader(LogTransport(argument.connection), count=lines)


_MARK = re.compile(r" *(?:\d+\. |=> |\| )?")


def error_lines(number: int, group: ErrorGroup, width: int) -> Iterator[str | Text]:
    """Show a kind of errors, the exception first, in lines that a terminal of this width does not break; 0 is
    no terminal, for which only the advice is broken.
    """
    for line in _whole_error_lines(number, group):
        advice = isinstance(line, str) and line.startswith("   => ")
        columns = min(width or _ADVICE_WIDTH, _ADVICE_WIDTH) if advice else width
        if not columns or len(line) <= columns:
            yield line
            continue
        text = line if isinstance(line, str) else line.plain
        # URLs and paths stay whole, to be copied.
        for part in textwrap.wrap(
            text,
            columns,
            subsequent_indent=" " * _MARK.match(text).end(),  # type: ignore[union-attr]
            break_long_words=False,
            break_on_hyphens=False,
        ):
            yield part if isinstance(line, str) else Text(part, line.style)


def _whole_error_lines(number: int, group: ErrorGroup) -> Iterator[str | Text]:
    error = group.error
    yield ""
    yield Text(f"{number}. {group.exception}", "bold red")
    recovered = group.jobs - group.unfinished
    rest = f"; {recovered} of them finished in another attempt" if recovered else ""
    counts = f"{render_count(group.attempts, 'attempt')} of {render_count(group.jobs, 'job')}"
    yield f"   {group.label}: {counts}{rest}"
    if group.example is not None:
        yield f"   for instance: {group.example.title}, PanDA job {group.example.panda_id or 'none'}"
    for also in group.others:
        yield Text(f"   also: {also.exception}", "red")
        yield f"   for instance: {also.job.title}, PanDA job {also.job.panda_id or 'none'}"
    yield f"   => {group.verdict.name}: {group.verdict.advice}"
    yield f"   {error.title}: {error.text or 'no text'}"
    for other in group.errors[1:]:
        text = "" if other.text in error.text else f": {other.text}"
        yield f"   {other.title}{text}"
    if group.sites or group.nodes:
        yield f"   where: {_places(group.sites)}; nodes {_places(group.nodes) or 'not known'}"
    if group.first and group.last:
        first, last = (f"{moment:%Y-%m-%d %H:%M:%S}" for moment in (group.first, group.last))
        yield f"   when: {first}{f' to {last}' if last != first else ''} UTC"
    if group.example is not None:
        yield f"   log: {group.example.log_url or 'none known'}"
    for level, line in fold_lines(group.log_tail):
        yield Text(f"     | {line}", "red" if level in ("ERROR", "CRITICAL") else "")


def _places(places: tuple[tuple[str, int], ...]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in places)


# --- resources --------------------------------------------------------------

_RESOURCE_HEAD = (
    "label", "finished", "attempts", "wall 50% s", "95% s", "max s", "CPU 50%", "RSS 50% MB", "95% MB",
    "max MB", "asked MB", "near limit", "no memory",
)  # fmt: skip
# Left out one after the other on a narrow terminal.
_RESOURCE_LESS = ("95% s", "95% MB", "attempts", "CPU 50%", "RSS 50% MB", "wall 50% s")


@click.command()
@run_command
@label_option
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
    help="Format of the plots.",
)
@json_option
def resources(argument: RunArgument, label: str, plots: Path | None, form: str, as_json: bool) -> None:
    """Show what jobs used, and suggest what to request.  RUN is the
    id of their run, a part of its name, or its submit directory; by default your last run.

    "50%" is the median, "95%" what 95 of 100 jobs do not exceed, RSS the
    largest memory in use.  The last lines can be pasted into the
    configuration of the next run.

    \b
    panda_bps resources 41
    panda_bps resources 41 --plots plots --format svg
    """  # noqa: D301 (click's mark)
    run = fetch_evidence(argument.connection, argument.run, which=JobQuery(label), errors=False)
    jobs = RunJobs(run)
    labels = [replace(found, near_limit=jobs.identify(found.near_limit)) for found in measure_resources(run)]
    written: list[Path] = []
    if plots is not None:
        written = write_plots(run, labels, plots, form=form)
    if as_json:
        write_document(labels, run, "resources")
        return
    print_lines([_title(run), *_resource_lines(labels, planned=run.plan is not None)])
    print_lines(f"Wrote {path}" for path in written)
    print_problems(run.problems)


def _resource_lines(labels: list[LabelResources], *, planned: bool) -> Iterator[str]:
    if not labels:
        yield "PanDA has no job of this run yet."
        return
    rows = map(_resource_row, labels)
    yield from table(_RESOURCE_HEAD, rows, drop=_RESOURCE_LESS, width=terminal_width())
    for found in labels:
        for job in found.near_limit[:1]:
            yield (
                f"  {found.label}: {render_count(found.near_count, 'attempt')} near the limit or over it; "
                f"most: {job.title}, PanDA job {job.panda_id}, {job.max_rss / 1024:.0f} of {job.memory} MB"
            )
        if found.retried_with_more:
            yield (
                f"  {found.label}: {render_count(found.retried_with_more, 'attempt')} got more memory, up to "
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


def _resource_row(found: LabelResources) -> tuple[object, ...]:
    wall, cpu, memory = (
        (figures.half, figures.most_of_all, figures.largest) if figures else (None, None, None)
        for figures in (found.wall, found.cpu, found.memory)
    )
    return (
        found.label,
        found.finished,
        found.attempts,
        *map(_whole, wall),
        None if cpu[0] is None else f"{cpu[0]:.0%}",
        *map(_whole, memory),
        found.requested_memory or None,
        found.near_count,
        found.out_of_memory,
    )


def _whole(value: float | None) -> str | None:
    return None if value is None else f"{value:.0f}"


# --- html -------------------------------------------------------------------


@click.command()
@run_command
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write  [default: run_<id>.html].",
)
@_rules_option
@json_option
def html(argument: RunArgument, output: Path | None, rules: str | None, as_json: bool) -> None:
    """Write a run as one web page.  RUN is its id,
    a part of its name, or its submit directory; by default your last run.

    The page holds everything and loads nothing, so it can be mailed or kept.

    \b
    panda_bps html 41 -o run41.html
    """  # noqa: D301 (click's mark)
    run, path = write_page(argument, output=output, rules=rules)
    if as_json:
        write_document({"path": str(path.absolute())}, run, "page")
    else:
        click.echo(f"Wrote {path}")


def write_page(argument: RunArgument, *, output: Path | None, rules: str | None) -> tuple[RunEvidence, Path]:
    """Write the page of a run; return the run, and where its page is."""
    from ..web.page import MOST_ERRORS, RunPage, read_task_graph, render_page

    rulebook = read_rules(rules) if rules else PACKAGED_RULES
    if output is not None and not output.absolute().parent.is_dir():
        raise PandaBpsError(
            f"{output} cannot be written: there is no directory {output.parent}. Make it first."
        )
    run, overview = fetch_overview(argument.connection, argument.run)
    groups, left_out = explain_failures(run, rulebook, _tail_reader(argument), limit=MOST_ERRORS)
    graph, problems = read_task_graph(run)
    print_problems(problems)
    page = RunPage(
        overview=overview,
        graph=graph,
        groups=groups,
        labels=measure_resources(run, rulebook=rulebook),
        jobs=run.attempts,
        made_at=datetime.now(UTC),
        version=__version__,
        left_out=left_out,
    )
    path = output or Path(f"run_{run.request_id}.html")
    try:
        write_text(path.absolute(), [render_page(page)])
    except OSError as error:
        raise PandaBpsError(f"{path} cannot be written: {error}.") from error
    return run, path
