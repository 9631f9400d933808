"""The command ``panda_bps show``: a run at a glance."""

from __future__ import annotations

__all__ = ["show"]

from collections.abc import Iterator

import click

from lsst.ctrl.bps.panda.insight.documents import make_document
from lsst.ctrl.bps.panda.insight.overview import JobScope, Overview, make_overview, observe
from lsst.ctrl.bps.panda.runs.inquiry import Inquiry
from lsst.ctrl.bps.panda.status.jobs import JobDetail

from .run_argument import Asked, json_option, print_problems, run_command, table, terminal_width, write_json

_JOB_HEAD = ("label", "job", "state", "queue", "PanDA job", "attempt", "started", "wall s", "RSS MB", "error")
# Left out one after the other on a narrow terminal.
_LESS = ("started", "queue", "RSS MB", "wall s", "attempt")


@click.command()
@run_command
@click.option("--jobs", "with_jobs", is_flag=True, help="List the PanDA jobs instead, all attempts.")
@click.option("-l", "--label", default="", help="List the PanDA jobs of this label only.")
@json_option
def show(asked: Asked, with_jobs: bool, label: str, as_json: bool) -> None:
    """Show a run: its tasks, files, links.  RUN is its id, name or submit
    directory.

    \b
    panda_bps show 41
    panda_bps show 41 --jobs               each attempt of each job
    panda_bps show u_ann_isr --label isr   those of one label
    """  # noqa: D301 (click's mark)
    if with_jobs or label:
        _show_jobs(asked, label, as_json)
        return
    request_id, record = Inquiry(asked.connection).identify(asked.run)
    observation = observe(asked.connection, request_id, scope=JobScope.NONE, tasks=True, errors=False)
    area = record.staging_area if record is not None else ""
    overview = make_overview(observation, server=asked.settings.url, staging_area=area)
    if as_json:
        write_json(make_document(overview, request_id=request_id, name=overview.name))
        return
    for line in _lines(overview):
        click.echo(line)
    print_problems(overview.problems)


def _show_jobs(asked: Asked, label: str, as_json: bool) -> None:
    observation = observe(asked.connection, asked.run, label=label, errors=False)
    if as_json:
        write_json(
            make_document(
                observation.jobs,
                request_id=observation.request_id,
                name=observation.name,
                kind="jobs",
                problems=observation.problems,
            )
        )
        return
    rows = map(_job_row, observation.jobs)
    for line in table(_JOB_HEAD, rows, left=4, drop=_LESS, width=terminal_width()):
        click.echo(line)
    print_problems(observation.problems)


def _job_row(job: JobDetail) -> tuple[object, ...]:
    return (
        job.label,
        job.name,
        job.status,
        job.site,
        job.panda_id,
        job.attempt,
        job.started and f"{job.started:%m-%d %H:%M:%S}",
        None if job.wall_seconds is None else f"{job.wall_seconds:.0f}",
        round(job.max_rss / 1024) or None,
        job.error and f"{job.error.source} {job.error.code}",
    )


def _lines(found: Overview) -> Iterator[str]:
    over = "" if found.ended else ", not over yet"
    yield f"Run {found.request_id}  {found.name}"
    facts = {
        "state": f"{found.state.name}{over} (iDDS: {found.idds_status})",
        "operator": found.operator,
        "project": found.project,
        "campaign": found.campaign,
        "payload": found.payload,
        "site": found.site,
        "completes": f"run {found.origin}" if found.origin else "",
        "submitted": f"{found.created:%Y-%m-%d %H:%M:%S} UTC" if found.created else "",
        "last change": f"{found.updated:%Y-%m-%d %H:%M:%S} UTC" if found.updated else "",
        "server": found.server,
        "submit directory": found.submit_path,
        "staging area": found.staging_area,
    }
    yield from (f"  {name + ':':<18}{value}" for name, value in facts.items() if value)
    yield ""
    head = ("label", "iDDS", "PanDA", "transform", "task", "jobs", "finished", "failed", "deleted")
    deleted = any(task.deleted for task in found.tasks)
    rows: list[tuple[object, ...]] = [
        (t.label, t.idds_status, t.panda_status or None, t.transform_id, t.task_id or None,
         t.jobs, t.finished, t.failed, *([t.deleted] if deleted else ()))
        for t in found.tasks
    ]  # fmt: skip
    yield from table(head if deleted else head[:-1], rows, left=3) if rows else ["No task is there yet."]
    for task in found.tasks:
        if task.remark:
            yield f"  task {task.task_id}: {task.remark}"
    yield from _places(found)


def _places(found: Overview) -> Iterator[str]:
    if found.files:
        yield ""
        yield "Files:"
        yield from (f"  {file.path}  ({file.what}, {file.size} bytes)" for file in found.files)
    if found.links:
        yield ""
        yield "Monitor:"
        yield from (f"  {what}: {link}" for what, link in found.links)
        yield from (f"  failed jobs of {t.label}: {t.failed_link}" for t in found.tasks if t.failed_link)
