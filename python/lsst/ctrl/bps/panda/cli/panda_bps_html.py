"""The command ``panda_bps html``: a run as one web page."""

from __future__ import annotations

__all__ = ["html"]

from datetime import UTC, datetime
from pathlib import Path

import click

from lsst.ctrl.bps.panda.errors import PandaBpsError
from lsst.ctrl.bps.panda.insight.digest import digest_errors, judge_groups
from lsst.ctrl.bps.panda.insight.documents import make_document
from lsst.ctrl.bps.panda.insight.logs import TailReader, make_log_transport
from lsst.ctrl.bps.panda.insight.overview import Observation, make_overview, observe
from lsst.ctrl.bps.panda.insight.resources import measure_resources
from lsst.ctrl.bps.panda.insight.task_graph import TaskGraph, make_task_graph
from lsst.ctrl.bps.panda.rest.credentials import verify_host
from lsst.ctrl.bps.panda.runs.inquiry import Inquiry
from lsst.ctrl.bps.panda.runs.record import read_plan, write_text
from lsst.ctrl.bps.panda.status.verdicts import read_rulebook
from lsst.ctrl.bps.panda.version import __version__
from lsst.ctrl.bps.panda.web.page import RunPage, render_page

from .run_argument import Asked, json_option, run_command, write_json

_MOST_ERRORS = 30


@click.command()
@run_command
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write  [default: run_<id>.html].",
)
@click.option("--rules", envvar="PANDA_BPS_VERDICTS", type=click.Path(exists=True, dir_okay=False),
              help="Rules of your own for the verdicts  [env: PANDA_BPS_VERDICTS].")  # fmt: skip
@json_option
def html(asked: Asked, output: Path | None, rules: str | None, as_json: bool) -> None:
    """Write a run as one web page.  RUN is its id, name or submit directory.

    The page holds everything and loads nothing, so it can be mailed or kept.

    \b
    panda_bps html 41 -o run41.html
    """  # noqa: D301 (click's mark)
    request_id, record = Inquiry(asked.connection).identify(asked.run)
    rulebook = read_rulebook(rules)
    observation = observe(asked.connection, request_id)
    transport = make_log_transport(verify=verify_host(asked.settings.environment))
    reader = TailReader(asked.settings.url, transport)
    groups = digest_errors(observation)
    page = RunPage(
        overview=make_overview(
            observation,
            server=asked.settings.url,
            staging_area=record.staging_area if record is not None else "",
        ),
        graph=_graph(observation),
        groups=judge_groups(groups[:_MOST_ERRORS], rulebook, read_tail=reader),
        labels=measure_resources(
            observation.jobs,
            observation.tally.by_label,
            rulebook,
            clusters=observation.clusters,
        ),
        jobs=observation.jobs,
        made_at=datetime.now(UTC),
        version=__version__,
        left_out=max(0, len(groups) - _MOST_ERRORS),
    )
    path = output or Path(f"run_{request_id}.html")
    try:
        write_text(path.absolute(), [render_page(page)])
    except OSError as error:
        raise PandaBpsError(f"{path} cannot be written: {error}.") from error
    if as_json:
        found = {"path": str(path.absolute())}
        name, problems = observation.name, observation.problems
        write_json(make_document(found, request_id=request_id, name=name, kind="page", problems=problems))
    else:
        click.echo(f"Wrote {path}")


def _graph(observation: Observation) -> TaskGraph:
    plan = observation.evidence.plan
    try:
        return make_task_graph(observation, read_plan(plan.path) if plan is not None and plan.path else None)
    except PandaBpsError as error:
        click.echo(f"Not known: {error}", err=True)
        return make_task_graph(observation, None)
