"""The command ``panda_bps errors``: why jobs failed, and what to do."""

from __future__ import annotations

__all__ = ["errors"]

import textwrap
from collections.abc import Iterator

import click

from lsst.ctrl.bps.panda.insight.digest import ErrorGroup, digest_errors, judge_groups
from lsst.ctrl.bps.panda.insight.documents import make_document
from lsst.ctrl.bps.panda.insight.logs import TailReader, make_log_transport
from lsst.ctrl.bps.panda.insight.overview import JobScope, observe
from lsst.ctrl.bps.panda.rest.credentials import verify_host
from lsst.ctrl.bps.panda.status.jobs import number_of
from lsst.ctrl.bps.panda.status.verdicts import read_rulebook

from .run_argument import Asked, json_option, print_problems, run_command, write_json

_WIDTH = 100


@click.command()
@run_command
@click.option("-l", "--label", default="", help="Jobs of this label only.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="Most kinds of errors.")
@click.option(
    "--tail", default=12, show_default=True, type=click.IntRange(0), help="Lines of the example's log."
)
@click.option(
    "--rules",
    envvar="PANDA_BPS_VERDICTS",
    type=click.Path(exists=True, dir_okay=False),
    help="YAML file with rules of your own for the verdicts  [env: PANDA_BPS_VERDICTS].",
)
@click.option("--recovered", is_flag=True, help="Also attempts whose job finished in a later one.")
@json_option
def errors(
    asked: Asked, label: str, limit: int, tail: int, rules: str | None, recovered: bool, as_json: bool
) -> None:
    """Show why jobs of a run failed, and what to do.  RUN is its id, name or
    submit directory.

    Attempts with the same error are put together; those that cost most jobs
    come first.  Each gets a verdict, the end of an example's log and advice.

    \b
    panda_bps errors 41
    panda_bps errors 41 --label isr --tail 40   one label, more of the log
    panda_bps errors 41 --recovered             also what retries mended
    """  # noqa: D301 (click's mark)
    rulebook = read_rulebook(rules)
    scope = JobScope.UNSUCCESSFUL if recovered else JobScope.FAILED
    observation = observe(asked.connection, asked.run, scope=scope, label=label)
    groups = digest_errors(observation, label=label)
    left_out = len(groups) - limit
    transport = make_log_transport(verify=verify_host(asked.settings.environment))
    reader = TailReader(asked.settings.url, transport, count=tail) if tail else None
    judged = judge_groups(groups[:limit], rulebook, read_tail=reader)
    if as_json:
        name, problems = observation.name, observation.problems
        write_json(
            make_document(
                judged, request_id=observation.request_id, name=name, kind="errors", problems=problems
            )
        )
        return
    click.echo(f"Run {observation.request_id}  {observation.name}: {observation.tally.state.name}")
    if not judged:
        click.echo("No failed job is known.")
    for number, group in enumerate(judged, 1):
        for line in _lines(number, group):
            click.echo(line)
    if left_out > 0:
        click.echo(f"\n{left_out} more kinds of errors: see --limit.")
    print_problems(observation.problems)


def _lines(number: int, group: ErrorGroup) -> Iterator[str]:
    error = group.error
    yield ""
    yield f"{number}. {group.label}: {group.verdict.name}"
    yield f"   {error.source} {error.code}: {error.text or 'no text'}"
    for other in group.errors[1:]:
        text = "" if other.text in error.text else f": {other.text}"
        yield f"   {other.source} {other.code}{text}"
    yield f"   {_count(group)}"
    if group.sites or group.nodes:
        yield f"   where: {_places(group.sites)}; nodes {_places(group.nodes) or 'not known'}"
    if group.first and group.last:
        first, last = (f"{moment:%Y-%m-%d %H:%M:%S}" for moment in (group.first, group.last))
        yield f"   when: {first}{f' to {last}' if last != first else ''} UTC"
    if group.example is not None:
        example = group.example
        yield f"   for instance: {example.name}, PanDA job {example.panda_id or 'none'}"
        yield f"   log: {example.log_url or 'none known'}"
    yield from (f"     | {line}" for line in group.log_tail)
    if group.verdict.advice:
        yield from textwrap.wrap(
            group.verdict.advice, _WIDTH, initial_indent="   => ", subsequent_indent="      "
        )


def _count(group: ErrorGroup) -> str:
    jobs = f"{number_of(group.attempts, 'attempt')} of {number_of(group.jobs, 'job')}"
    recovered = group.jobs - group.unfinished
    return f"{jobs}; {recovered} of them finished in another attempt" if recovered else jobs


def _places(places: tuple[tuple[str, int], ...]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in places)
