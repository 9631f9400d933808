"""The command ``panda_bps reproduce``: a job of a run, set up and run on this machine."""

from __future__ import annotations

__all__ = ["reproduce"]

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from ..edgenode.cmd_line_decoder import safe_label
from ..insight.overview import fetch_evidence
from ..local import endpoint as local_endpoint
from ..local import instance
from ..local.pilot import job_environment
from ..runs.client import Connection, RunClient
from ..runs.jobs import JobQuery, RunJobs
from ..runs.reproduction import explain_difference, set_up
from ..status.records import JobRecord
from .output import shows_errors
from .panda_bps_show import find_run, local_option


@click.command()
@click.argument("run")
@click.argument("job")
@local_option
@click.option(
    "-d",
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory to make  [default: reproduce_<run>_<job> here].",
)
@click.option("--debug", is_flag=True, help="Run it on this terminal, under a debugger.")
@click.option(
    "--print",
    "shown",
    type=click.Choice(["line", "cell"]),
    help="Only set it up, and print the payload's command line, or a cell for a notebook.",
)
@click.option("--no-run", is_flag=True, help="Only set it up.")
@click.option(
    "--this-environment", is_flag=True, help="Add the variables of this shell to the job's environment."
)
@shows_errors()
def reproduce(
    run: str,
    job: str,
    local: bool,
    directory: Path | None,
    debug: bool,
    shown: str | None,
    no_run: bool,
    this_environment: bool,
) -> int:
    """Run JOB of RUN again on this machine, and end with its exit code.  RUN is the run's id, a part
    of its name, or its submit directory; JOB is the job's name in BPS, its pseudo-input, or PanDA's number or
    name.

    A directory is made with the job's files, and scripts to run it as often as you like.  Its outputs
    go there, and never into the run's collections.

    \b
    panda_bps reproduce 41 isr_260315001_3
    panda_bps reproduce 41 isr:12 --debug         pdb where the exception was raised
    panda_bps reproduce 41 isr:12 --print line    the command, to run it by hand
    panda_bps reproduce 41 isr:12 --print cell    the same for a notebook
    """  # noqa: D301 (click's mark)
    argument = find_run(run, local=local)
    found = RunClient(argument.connection).find(argument.run)
    evidence = fetch_evidence(argument.connection, found, which=JobQuery(job=job), errors=False)
    jobs = RunJobs(evidence)
    attempt = _choose_attempt(jobs.identify(evidence.attempts), job)
    place = jobs.planned(attempt.bps_name or attempt.name)
    assert found.record is not None  # else there is no plan, either
    made = set_up(
        jobs,
        found.record,
        place,
        (directory or Path(f"reproduce_{found.request_id}_{safe_label(place[1].name)}")).absolute(),
        attempt=attempt,
        environment=_environment(argument.connection, attempt, outer=this_environment),
        shell=os.environ,
    )
    told = [*made.notes, *filter(None, [explain_difference(attempt)])]
    for line in (f"Set up in {made.directory}: run.sh runs it, debug.sh runs it under a debugger.", *told):
        click.echo(line, err=True)
    if shown:
        click.echo(made.line if shown == "line" else made.cell, nl=shown == "line")
    if shown or no_run:
        return 0
    sys.stdout.flush()
    code = subprocess.run([made.debug if debug else made.run], check=False).returncode
    code = 128 - code if code < 0 else code
    click.echo(f"Exit code {code} here{_describe_code(attempt)}.", err=True)
    return code


def _choose_attempt(attempts: Sequence[JobRecord], job: str) -> JobRecord:
    """Return the attempt with PanDA's number, else the last one that failed, else the last one; a job that
    has not run yet is treated as a first attempt.
    """
    numbered = [attempt for attempt in attempts if str(attempt.panda_id) == job]
    failed = [attempt for attempt in attempts if attempt.failed]
    chosen = numbered or failed or [*attempts] or [JobRecord(0, 0, "defined", name=job, attempt=1)]
    return max(chosen, key=lambda attempt: attempt.panda_id)


def _environment(connection: Connection, attempt: JobRecord, *, outer: bool) -> dict[str, str]:
    """Return what a job's command finds in its environment: what the pilot sets, and on the embedded PanDA
    what that one sets.  What else a site has in it is not known.
    """
    embedded = instance.find(local_endpoint.state_directory(os.environ))
    is_embedded = embedded is not None and embedded.url == connection.settings.url
    variables = dict(os.environ) if outer else {}
    extra: dict[str, str] = {}
    if embedded is not None and is_embedded:
        extra = {name: value for name, value in local_endpoint.environment(embedded).items() if value}
    made = job_environment(
        Path.cwd(),
        panda_id=attempt.panda_id,
        task_id=attempt.task_id,
        base=os.environ,
        path=str(Path(sys.executable).parent) if is_embedded else os.defpath,
        extra=extra,
    )
    for name in ("TMPDIR", "PWD"):
        del made[name]
    if outer:
        made["PATH"] = os.environ["PATH"]
    return {**variables, **made}


def _describe_code(attempt: JobRecord) -> str:
    code = next((error.code for error in attempt.errors if error.source == "payload"), None)
    if code is None:
        return f"; PanDA knows none of its attempt {attempt.attempt}" if attempt.failed else ""
    return f", {code} on the worker"
