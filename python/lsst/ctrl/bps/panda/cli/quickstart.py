"""From nothing to a finished run: what ``bin/quickstart`` runs once it has made its environment.

It makes the demo's repository, starts the embedded PanDA, submits the demo's pipeline as a user would, shows
the progress of the run and then its results. After success the embedded PanDA keeps running, to try commands
by hand; after Ctrl-C or a failure nothing keeps running.
"""

from __future__ import annotations

__all__ = ["main", "read_submission"]

import contextlib
import fcntl
import logging
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click
from lsst.ctrl.bps.wms_service import WmsRunReport, WmsStates

from ..errors import PandaBpsError
from ..local import instance
from . import INTERRUPTED
from .panda_bps_watch import follow_run, show_progress
from .panda_local_server import end_process, handled_signals, noted_signals

if TYPE_CHECKING:
    from ..demo.workplace import Workplace

_EXIT_FAILED, _EXIT_BUSY = 1, 75


class QuickstartError(PandaBpsError):
    """The quickstart cannot go on."""


@dataclass(frozen=True, slots=True)
class _Submission:
    """The run that ``bps submit`` submitted."""

    run_id: str
    directory: Path


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("quickstart-run"),
    help="Where to work.",
)
@click.option("--slots", type=click.IntRange(min=1), help="Jobs at a time (default: one per core).")
@click.option("--timeout", default=1800.0, show_default=True, help="Seconds until a run counts as stuck.")
@click.option("--stop", "stop_only", is_flag=True, help="Only stop the embedded PanDA of the directory.")
def main(directory: Path, slots: int | None, timeout: float, stop_only: bool) -> None:
    """Run the demo's pipeline on an embedded PanDA, and print the results."""
    from ..demo.workplace import Workplace

    place = Workplace(directory.absolute())
    place.directory.mkdir(parents=True, exist_ok=True)
    place.enter()
    try:
        with handled_signals(signal.default_int_handler), _locked(place.lock):
            code = _stop(place) if stop_only else _run(place, slots=slots, timeout=timeout)
    except PandaBpsError as error:
        click.echo(f"quickstart: {error}", err=True)
        code = _EXIT_BUSY if isinstance(error, _BusyError) else _EXIT_FAILED
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.exit(code)


class _BusyError(QuickstartError):
    """Another quickstart works in the directory."""


@contextlib.contextmanager
def _interrupts_kept() -> Iterator[None]:
    """Postpone an interruption: a server that has half started could not be found and stopped."""
    with noted_signals() as noted:
        yield
    if noted:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise _BusyError(f"another quickstart works in {path.parent}; wait for it, or stop it") from error
        yield


def _stop(place: Workplace) -> int:
    stopped = instance.stop(place.panda)
    click.echo("The embedded PanDA is stopped." if stopped else "No embedded PanDA runs here.")
    return 0


def _run(place: Workplace, *, slots: int | None, timeout: float) -> int:
    """Do all steps; stop the embedded PanDA unless all of them succeed."""
    # Log messages of the libraries would disturb the display.
    logging.basicConfig(level=logging.ERROR, format="%(name)s %(levelname)s: %(message)s")
    if place.ensure_repo():
        click.echo(f"Made a Butler repository to simulate and process exposures in: {place.repo}")
    else:
        click.echo(f"The Butler repository is there: {place.repo}")
    place.write_files()
    run_id = ""
    well = False
    try:
        with _interrupts_kept():
            endpoint = instance.start(place.panda, slots=slots)
        click.echo(f"The embedded PanDA runs: {endpoint.url}, process {endpoint.pid}, state in {place.panda}")
        click.echo(f"Watch it in a browser: {instance.make_link(endpoint)}")
        submission = _submit(place)
        run_id = submission.run_id
        report = _watch(run_id, timeout=timeout)
        run_id = ""
        well = _tell(place, submission, report)
    except KeyboardInterrupt:
        click.echo("\nInterrupted: stopping the run and the embedded PanDA", err=True)
        if run_id:
            click.echo(
                f"To go on with it: . {shlex.quote(str(place.script))}; bps restart --id {run_id}", err=True
            )
        raise
    finally:
        if not well:
            _end(place, run_id)
    return 0 if well else _EXIT_FAILED


def _end(place: Workplace, run_id: str) -> None:
    """Cancel the run and stop the embedded PanDA, so that the next start has nothing to go on with."""
    from ..service import LocalPanDAService

    try:
        if run_id and instance.find(place.panda):
            LocalPanDAService({}).cancel(run_id)
    finally:
        instance.stop(place.panda)


# --- submission ---------------------------------------------------------


def _submit(place: Workplace) -> _Submission:
    click.echo(f"Submitting: bps submit {shlex.quote(str(place.config))}")
    with place.submit_log.open("w", encoding="utf-8") as log:
        code = _call_bps(["submit", str(place.config)], place, output=log)
    text = place.submit_log.read_text(encoding="utf-8", errors="replace")
    if code != 0:
        tail = "\n".join(text.strip().splitlines()[-15:])
        raise QuickstartError(f"bps submit ended with code {code}:\n{tail}\n(all of it: {place.submit_log})")
    return read_submission(text)


def read_submission(text: str) -> _Submission:
    """Read from the output of ``bps submit`` which run it submitted, and where."""
    from ..demo.workplace import find_run

    run, directory = find_run(text), re.search(r"^Submit dir: (.+)$", text, re.MULTILINE)
    if not run or directory is None:
        raise QuickstartError(f"bps submit did not say which run it submitted; it wrote:\n{text[-2000:]}")
    return _Submission(run, Path(directory[1].strip()))


def _call_bps(arguments: list[str], place: Workplace, *, output: TextIO | None = None) -> int:
    """Run ``bps`` in the workplace; if we are interrupted, end it and all it started."""
    # An interruption that comes while it is being started must not leave it running.
    with noted_signals() as noted:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "bps", *arguments],
            cwd=place.directory,
            env=place.environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            with handled_signals(signal.default_int_handler):
                if noted:
                    raise KeyboardInterrupt
                return process.wait()
        finally:
            if process.poll() is None:
                end_process(process, signal.SIGTERM, grace=(5.0, 0.0))


# --- progress -----------------------------------------------------------


def _watch(run_id: str, *, timeout: float) -> WmsRunReport:
    """Follow a run until it has ended, as ``panda_bps watch`` does."""
    from ..runs.client import connect
    from ..service import LocalPanDAService

    service = LocalPanDAService({})
    end = time.monotonic() + timeout

    def sleep(seconds: float) -> None:
        if time.monotonic() > end:
            raise QuickstartError(f"run {run_id} has not ended within {timeout:g} s")
        time.sleep(seconds)

    number = int(run_id)
    show_progress({number: follow_run(connect(service.settings()), number, sleep=sleep)})
    reports, message = service.report(wms_workflow_id=run_id)
    if not reports:
        raise QuickstartError(f"run {run_id} cannot be found: {message}")
    return reports[0]


# --- results ------------------------------------------------------------


def _tell(place: Workplace, submission: _Submission, report: WmsRunReport) -> bool:
    """Print the results; return whether every job succeeded and all outputs are in the Butler."""
    from ..demo.repository import missing_outputs

    click.echo(f"\n$ bps report --id {submission.run_id}")
    reported = _call_bps(["report", "--id", submission.run_id], place)
    succeeded = (report.job_state_counts or {}).get(WmsStates.SUCCEEDED, 0)
    problems = list(missing_outputs(place.repo, place.output_run(submission.directory)))
    if succeeded != report.total_number_jobs:
        problems.insert(0, f"{succeeded} of {report.total_number_jobs} jobs succeeded")
    if reported != 0:
        problems.append(f"bps report ended with code {reported}")
    if problems:
        click.echo(f"quickstart: the run did not go well: {'; '.join(problems)}", err=True)
        click.echo(f"Look into {place.panda} for what its jobs wrote.", err=True)
        return False
    _tell_results(place, submission)
    return True


def _tell_results(place: Workplace, submission: _Submission) -> None:
    from ..demo.repository import INPUTS
    from ..demo.summary import draw_run, read_summary, render_summary

    collections = [place.output_run(submission.directory), INPUTS]
    click.echo(f"All jobs succeeded, and their outputs are in the Butler: {collections[0]}")
    click.echo(render_summary(read_summary(place.repo, collections)))
    click.echo(
        f"A picture of the sky with its objects marked: {draw_run(place.repo, collections, place.picture)}"
    )
    script, failing = shlex.quote(str(place.script)), shlex.quote(str(place.failing_config))
    click.echo(
        f"""
The embedded PanDA goes on running. To use it by hand, in this or another shell, first

    . {script}

and then try: the report again; a link to all runs in a browser; a run in which a quantum fails, live, and
why it fails; the end of the embedded PanDA (any bps command starts it again)

    bps report --id {submission.run_id}
    panda_local open
    bps submit {failing}
    panda_bps watch
    panda_bps errors
    panda_local stop"""
    )


if __name__ == "__main__":
    main()
