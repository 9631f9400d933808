"""The command ``panda_bps logs``: the payload's log from wherever it is."""

from __future__ import annotations

__all__ = ["logs"]

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from urllib.parse import urlsplit

import click

from ..errors import ConnectionFailedError, RunNotFoundError, TransportError
from ..insight.cloud_log import (
    CloudLog,
    CloudLogSettings,
    CloudQuery,
    choose_log_start,
    console_url,
    find_cloud_settings,
    render_filter,
)
from ..insight.logs import (
    JobChoice,
    LineFilter,
    LogLine,
    LogReader,
    LogTransport,
    choose_jobs,
    find_log_urls,
)
from ..insight.overview import JobScope, fetch_evidence
from ..runs.jobs import JobQuery, RunJobs
from ..status.evidence import RunEvidence
from ..status.failures import find_remarks
from ..status.records import JobRecord, render_count
from .output import json_option, print_problems, write_document
from .panda_bps_show import RunArgument, job_options, run_command

_INTERVAL = 5.0


@dataclass(frozen=True)
class _Selection:
    """What the options select."""

    choice: JobChoice
    filter: LineFilter
    files: tuple[str, ...]
    cloud: CloudLogSettings
    follow: bool


@click.command()
@run_command
@job_options
@click.option("--failed", is_flag=True, help="Failed attempts only (the default if some failed).")
@click.option("--level", default="", help="Lines of this level or above, such as ERROR.")
@click.option("--grep", default="", metavar="RE", help="Lines that match this regular expression.")
@click.option("--follow", is_flag=True, help="Keep reading until the run has ended.")
@click.option("--query", is_flag=True, help="Print the query for Google's log console, and its address.")
@click.option(
    "--source",
    type=click.Choice(["auto", "area", "cloud"]),
    default="auto",
    show_default=True,
    help="The log areas of the jobs, or Google Cloud Logging; auto prefers the log areas.",
)
@click.option(
    "--file", "files", multiple=True, help="File of the log area, such as pilotlog.txt; repeatable."
)
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="Jobs at most.")
@click.option("--project", default="", help="Google project of the log  [env: PANDA_LOG_PROJECT].")
@click.option("--log-name", "log", default="", help="Name of the log  [env: PANDA_LOG_NAME].")
@click.option("--credentials", default="", help="Google key file  [env: PANDA_LOG_CREDENTIALS].")
@json_option
def logs(
    argument: RunArgument,
    failed: bool,
    level: str,
    grep: str,
    follow: bool,
    query: bool,
    source: str,
    files: tuple[str, ...],
    limit: int,
    as_json: bool,
    **others: str,
) -> None:
    """Show the logs of a run's jobs.  RUN is its id,
    a part of its name, or its submit directory; by default your last run.

    Without --label, --job, --data or --failed the logs of failed attempts are
    shown, or all logs if none failed.  Each line starts with PanDA's number of the
    job; the standard error names the source.

    \b
    panda_bps logs 41 --failed --level ERROR
    panda_bps logs 41 --job isr:12 --file pilotlog.txt
    panda_bps logs 41 --data "visit=260315001, detector=1"
    panda_bps logs 41 --label isr --grep "detector 12" --follow
    panda_bps logs 41 --query --level ERROR     for Google's console
    """  # noqa: D301 (click's mark)
    which = JobQuery(**{key: others.pop(key) for key in JobQuery._fields})
    cloud = {key: value for key, value in others.items() if value}
    selection = _Selection(
        choice=JobChoice(which, failed, everything=follow, limit=limit),
        filter=LineFilter.from_options(level=level, grep=grep),
        files=files,
        cloud=replace(find_cloud_settings(argument.connection.settings.environment), **cloud),
        follow=follow,
    )
    evidence = _look(argument, selection)
    if query:
        _print_query(evidence, selection, grep, as_json)
        return
    lines = _read_source(source, argument, evidence, selection)
    if as_json:
        # All lines as one document, or each as a document when it comes.
        for some in ([line] for line in lines) if follow else [list(lines)]:
            numbers = {line.panda_id for line in some}
            jobs = RunJobs(evidence).identify([job for job in evidence.attempts if job.panda_id in numbers])
            write_document({"lines": some, "jobs": jobs}, evidence, "logs", line=follow)
        return
    found = False
    for line in lines:
        found = True
        click.echo(_render(line))
    if evidence.attempts and not found:
        click.echo("No line was found that matches --level, --grep and --file.", err=True)
    for remark in find_remarks(evidence):
        click.echo(remark, err=True)
    print_problems(evidence.problems)


def _print_query(evidence: RunEvidence, selection: _Selection, grep: str, as_json: bool) -> None:
    """Print the query for Google's console, which applies the regular expression as well."""
    text = render_filter(replace(_cloud_query(evidence, selection), pattern=grep), selection.cloud)
    found = {"filter": text, "address": console_url(text, selection.cloud)}
    if as_json:
        write_document(found, evidence, "query")
    else:
        for words in found.values():
            click.echo(words)
    if not selection.cloud.project:
        click.echo(
            "PROJECT stands for the Google project: give --project or set PANDA_LOG_PROJECT.", err=True
        )


def _look(argument: RunArgument, selection: _Selection) -> RunEvidence:
    choice = selection.choice
    scope = JobScope.UNSUCCESSFUL if choice.failed and not selection.follow else JobScope.ALL
    return fetch_evidence(argument.connection, argument.run, scope=scope, which=choice.which, errors=False)


def _read_source(
    source: str, argument: RunArgument, evidence: RunEvidence, selection: _Selection
) -> Iterator[LogLine]:
    """Read lines from a source, or from the one that is likely to have them."""
    if source == "auto":
        chosen, _ = choose_jobs(evidence, selection.choice)
        in_area = any(find_log_urls(job, argument.connection.settings.url) for job in chosen)
        source = "cloud" if selection.cloud.project and (not in_area or selection.follow) else "area"
    read = {"area": _from_areas, "cloud": _from_cloud}[source]
    return read(argument, evidence, selection)


def _render(line: LogLine) -> str:
    front = " ".join(part for part in (line.time, line.level if line.time else "", line.logger) if part)
    return f"[{line.panda_id}] {front + ': ' if front else ''}{line.message}"


# --- log areas --------------------------------------------------------------


def _from_areas(argument: RunArgument, evidence: RunEvidence, selection: _Selection) -> Iterator[LogLine]:
    reader = LogReader(LogTransport(argument.connection), files=selection.files)
    told: set[int] = set()
    while True:
        jobs, left_out = choose_jobs(evidence, selection.choice)
        yield from _read_jobs(reader, RunJobs(evidence).identify(jobs), selection.filter, told)
        if not selection.follow or evidence.ended:
            break
        time.sleep(_INTERVAL)
        evidence = _look(argument, selection)
    if not told:
        why = "No job has a log yet."
        if not jobs and selection.choice.failed:
            why = "No attempt has failed."
        elif not evidence.attempts:
            which = "of these jobs" if evidence.chosen is not None else "of any job"
            why = f"PanDA has no attempt {which} yet."
        click.echo(why, err=True)
    _tell_left_out(left_out)


def _tell_left_out(number: int) -> None:
    if number:
        more = render_count(number, "more job")
        click.echo(f"{more}: choose with --label or --job, or raise --limit.", err=True)


def _read_jobs(
    reader: LogReader, jobs: Iterable[JobRecord], wanted: LineFilter, told: set[int]
) -> Iterator[LogLine]:
    lost: set[str] = set()
    for job in jobs:
        place = reader.place(job)
        if not place or urlsplit(place).netloc in lost:
            continue
        if job.panda_id not in told:
            told.add(job.panda_id)
            directory = place.rpartition("/")[0]
            click.echo(
                f"== {job.label} {job.title}, attempt {job.attempt}, {job.status}: {directory}/", err=True
            )
        try:
            yield from reader.lines(job, wanted)
        except TransportError as error:
            click.echo(f"The log of job {job.panda_id} could not be read: {error}", err=True)
            if isinstance(error, ConnectionFailedError):
                # The other jobs' logs there would only take as long to fail.
                lost.add(urlsplit(place).netloc)


# --- Google Cloud Logging ---------------------------------------------------


def _cloud_query(evidence: RunEvidence, selection: _Selection) -> CloudQuery:
    choice = selection.choice
    jobs: list[JobRecord] = []
    if choice.which.job or choice.which.data or choice.failed:
        jobs, left_out = choose_jobs(evidence, choice)
        _tell_left_out(left_out)
        if not jobs:
            what = "failed" if choice.failed else "begun"
            raise RunNotFoundError(f"No attempt has {what}, so there is nothing to ask for.")
    tasks = [task for task, name in evidence.task_labels.items() if choice.which.label == name]
    return CloudQuery(
        since=choose_log_start(evidence.request.created_at, datetime.now(UTC)),
        request_id=evidence.request_id,
        task_ids=tuple(tasks),
        panda_ids=tuple(job.panda_id for job in jobs),
        level=selection.filter.level,
    )


def _from_cloud(argument: RunArgument, evidence: RunEvidence, selection: _Selection) -> Iterator[LogLine]:
    log = CloudLog(selection.cloud)
    query = _cloud_query(evidence, selection)
    click.echo(f"== Google Cloud Logging: {render_filter(query, selection.cloud)}", err=True)

    def has_ended() -> bool:
        return fetch_evidence(argument.connection, argument.run, scope=JobScope.NONE).ended

    lines = log.follow(query, has_ended, interval=_INTERVAL) if selection.follow else log.lines(query)
    yield from filter(selection.filter.wants, lines)
