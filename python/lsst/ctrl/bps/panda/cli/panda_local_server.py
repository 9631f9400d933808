"""The commands of ``panda_local``, for an embedded PanDA to try runs on this machine."""

from __future__ import annotations

__all__ = [
    "check",
    "clean",
    "end_process",
    "env",
    "handled_signals",
    "logs",
    "noted_signals",
    "open_pages",
    "restore",
    "run",
    "start",
    "status",
    "stop",
]

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import click

from ..errors import LocalPandaError
from ..local import instance
from ..local.endpoint import LOGS_FOLDER, EndpointClient, diamond, job_folder
from ..local.settings import KEEP_WORK
from .output import shows_errors, table

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _SignalReceived(BaseException):
    """A signal that ends a process was received."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


def _raise(number: int, frame: FrameType | None) -> None:
    raise _SignalReceived(number)


@contextmanager
def handled_signals(handler: Any) -> Iterator[None]:
    """Have a function called meanwhile when a signal comes that ends a process."""
    # What is ignored from the start on (by nohup, say) stays so.
    changed = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in changed}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Collect the signals that come meanwhile and would end the process."""
    noted: list[int] = []
    with handled_signals(lambda number, frame: noted.append(number)):
        yield noted


def _has_terminal() -> bool:
    """Whether a terminal sends its signals to this process and its children."""
    try:
        return os.tcgetpgrp(sys.__stdin__.fileno()) == os.getpgrp()  # type: ignore[union-attr]
    except (OSError, AttributeError, ValueError):
        return False


def _run_command(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command to its end and return its exit code, 128 + n after signal n.

    After a signal to this process the command is ended with it, and
    `_SignalReceived` is raised.
    """
    # A terminal sends signals to its whole foreground group, and lets only that read.
    own_group = None if _has_terminal() else 0
    # One that comes while the command is being started must not leave it running.
    with noted_signals() as noted:
        process = subprocess.Popen(command, env=dict(environment), process_group=own_group)
        try:
            with handled_signals(_raise):
                if noted:
                    raise _SignalReceived(noted[0])
                code = process.wait()
        except _SignalReceived as came:
            with handled_signals(signal.SIG_IGN):
                end_process(process, came.number, grace=(10.0, 3.0), group=own_group is not None)
            raise
    return 128 - code if code < 0 else code


def end_process(
    process: subprocess.Popen[Any], number: int, *, grace: tuple[float, float], group: bool = True
) -> None:
    """End a process, or all of its group, with a signal: after so many seconds
    of grace with SIGTERM, and after some more with SIGKILL.
    """

    def send(wanted: int) -> None:
        with suppress(ProcessLookupError):
            if group:
                os.killpg(process.pid, wanted)
            else:
                process.send_signal(wanted)

    if group or number != signal.SIGINT:
        send(number)
    for seconds, then in zip(grace, (signal.SIGTERM, signal.SIGKILL), strict=True):
        try:
            process.wait(timeout=seconds)
            break
        except subprocess.TimeoutExpired:
            send(then)
    process.wait()
    if group:
        # Processes that the command has left running in its group.
        send(signal.SIGKILL)


_shows_errors = shows_errors(OSError)

_FILE = click.Path(exists=True, dir_okay=False, resolve_path=True)
_directory = click.option(
    "-d",
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=lambda: instance.state_directory(os.environ),
    help="State directory [default: $PANDA_LOCAL_DIR, else ~/.local/state/panda_local].",
)


def _settings_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for the settings of a server."""
    options = (
        click.option("--slots", type=click.IntRange(min=1), help="Cores that jobs may use [default: all]."),
        click.option(
            "--pace",
            help="'quick' or 'production' (a real PanDA's delays), with changes: 'quick,heartbeat=30'.",
        ),
        click.option("--database", help="postgresql://USER:PASSWORD@HOST/NAME instead of SQLite files."),
        click.option(
            "--queues",
            type=_FILE,
            help="YAML file with queues: a mapping of names to 'cores', 'memory' (MB a job), 'walltime' (s).",
        ),
        click.option(
            "--faults",
            type=_FILE,
            help="YAML file with faults, for tests: [{action: fail, match: isr, exit_code: 3, attempts: 1}].",
        ),
        click.option(
            "--keep-work", type=click.Choice(KEEP_WORK), help="Work directories kept [default: failed]."
        ),
        click.option(
            "--issuer", help="URL of an OpenID issuer: its users are let in, too, to try logging in."
        ),
        click.option(
            "--warm-workers/--no-warm-workers",
            default=None,
            help="Answer pipetask in jobs by processes that are ready [default: yes].",
        ),
        click.option("--warm-scripts", help="Scripts that they answer [default: pipetask,butler]."),
        click.option("--loglevel", help="Level of iDDS's own logs [default: WARNING]."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _running(directory: Path) -> instance.Endpoint:
    endpoint = instance.find(directory)
    if endpoint is None:
        raise LocalPandaError(f"no embedded PanDA runs with {directory}; start one with: panda_local start")
    return endpoint


def _client_environment(endpoint: instance.Endpoint) -> dict[str, str]:
    """Return the variables of clients, with BPS's own, without which commands
    such as "bps report" look for HTCondor.
    """
    service = "lsst.ctrl.bps.panda.LocalPanDAService"
    return {**instance.environment(endpoint), "BPS_WMS_SERVICE_CLASS": service}


@click.command()
@_directory
@_settings_options
@click.option("--foreground", is_flag=True, help="Stay in the foreground; end with Ctrl-C.")
@_shows_errors
def start(directory: Path, foreground: bool, **options: Any) -> None:
    """Start the embedded PanDA, or find the one that runs.

    Options that are not given keep their values of the last start with the
    same state directory.  After a crash, start it again: runs go on, and
    finished jobs are not run again.
    """
    before = instance.find(directory)
    if before is not None:
        click.echo(f"an embedded PanDA runs already: {before.url}")
        click.echo(f"its runs in a browser: {instance.make_link(before)}")
        if foreground or any(value is not None for value in options.values()):
            raise LocalPandaError("options have no effect on it; stop it first: panda_local stop")
        return
    if foreground:
        click.echo(f"state directory {directory}; end with Ctrl-C")
    endpoint = instance.start(directory, foreground=foreground, **options)
    click.echo(f"started: {endpoint.url}")
    click.echo(f"its runs in a browser: {instance.make_link(endpoint)}")
    click.echo('use it in this shell with: eval "$(panda_local env)"')


@click.command()
@_directory
@_shows_errors
def stop(directory: Path) -> None:
    """Stop the embedded PanDA and all jobs it runs.

    Runs that have not ended go on at the next start; jobs that were running
    are tried again.
    """
    stopped = instance.stop(directory)
    click.echo("stopped" if stopped else "none was running")


@click.command()
@_directory
@_shows_errors
def status(directory: Path) -> None:
    """Show the server, its slots, its runs, tasks and jobs."""
    endpoint = _running(directory)
    value = instance.status(endpoint)
    click.echo(f"embedded PanDA {value['version']} at {value['url']}, process {value['pid']}")
    click.echo(f"state in {endpoint.directory}, {value['database']}, pace {value['pace']}")
    click.echo(f"slots: {value['slots_used']} of {value['slots']} in use")
    jobs = ", ".join(f"{count} {name}" for name, count in sorted(value["jobs"].items()))
    click.echo(f"jobs: {jobs or 'none'}")
    _show_warm(value["warm"])
    if trouble := value["trouble"]:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(trouble["since"]))
        click.echo(f"in trouble since {since} UTC: {trouble['text']}")
    if value["reports_waiting"]:
        click.echo(f"jobs that have ended and are not stored yet: {value['reports_waiting']}")
    if value["dead_agents"]:
        click.echo(f"agents of iDDS that have ended: {', '.join(value['dead_agents'])}; restart it")
    runs = value.get("runs", [])
    if not runs:
        return
    columns = ("run", "user", "tasks", "ended", "jobs", "done", "failed", "cancelled", "pruned", "running")
    lines = table(columns, ([run.get(column) for column in columns] for run in runs), left=0)
    click.echo("")
    for line, name in zip(lines, ["name", *(str(run["name"]) for run in runs)], strict=True):
        click.echo(f"{line}  {name}")


def _show_warm(warm: dict[str, Any] | None) -> None:
    """Show the warm workers of a server."""
    if warm is None:
        click.echo("warm workers: off")
        return
    cold = sum(warm["cold"].values())
    click.echo(f"warm workers: {warm['hits']} calls answered, {cold} cold starts")
    for reason, count in warm["cold"].items():
        click.echo(f"  {count} cold: {reason}")
    for template in warm["templates"]:
        click.echo(
            f"  template {template['pid']} for {template['folder']}: {template['state']}, "
            f"{template['jobs']} jobs, {template['memory']} MB"
        )


@click.command()
@_directory
@_shows_errors
def env(directory: Path) -> None:
    """Print shell commands that make clients use the embedded PanDA.

    \b
      eval "$(panda_local env)"
    """  # noqa: D301
    for name, value in _client_environment(_running(directory)).items():
        click.echo(f"export {name}={shlex.quote(value)}" if value else f"unset {name}")


@click.command(context_settings={"ignore_unknown_options": True})
@_directory
@_settings_options
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@_shows_errors
def run(directory: Path, command: tuple[str, ...], **options: Any) -> int:
    """Run COMMAND with an embedded PanDA, which is stopped afterwards.

    One that runs already is used and left running.  The exit code is that of
    COMMAND.

    \b
      panda_local run -- bash -c 'bps submit my.yaml && bps report --id 1'
    """  # noqa: D301
    found = instance.find(directory)
    if found is not None and any(value is not None for value in options.values()):
        raise LocalPandaError(f"options have no effect on the one that runs already: {found.url}")
    try:
        with handled_signals(_raise):
            endpoint = found or instance.start(directory, parent=os.getpid(), **options)
        return _run_command(command, _variables(endpoint))
    except _SignalReceived as came:
        return 128 + came.number
    finally:
        if found is None:
            with handled_signals(signal.SIG_IGN):
                instance.stop(directory)


def _variables(endpoint: instance.Endpoint) -> dict[str, str]:
    """Make the environment of a command that uses the embedded PanDA."""
    ours = _client_environment(endpoint)
    return {name: value for name, value in {**os.environ, **ours}.items() if value or name not in ours}


@click.command()
@_directory
@click.option("--timeout", type=float, default=120.0, show_default=True, help="Seconds to wait for its end.")
@_shows_errors
def check(directory: Path, timeout: float) -> None:
    """Run six empty jobs in a diamond, to see that all parts work."""
    client = EndpointClient(_running(directory))
    sample = client.submit(f"panda_local_check_{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}", diamond(2))
    click.echo(f"run {sample.request_id} is submitted")
    status, counts = client.wait(sample, timeout=timeout, show=click.echo)
    done = sum(item.finished for item in counts.values())
    if status != "Finished" or done != 6:
        raise LocalPandaError(f"the run ended as {status} with {done} of 6 jobs; see: panda_local status")
    click.echo("all parts work")


@click.command()
@_directory
@click.argument("job", type=int)
@click.option("--stderr", "which", flag_value="payload.stderr", help="Show the standard error only.")
@click.option("--stdout", "which", flag_value="payload.stdout", help="Show the standard output only.")
@_shows_errors
def logs(directory: Path, job: int, which: str | None) -> None:
    """Show what a job printed; JOB is its PanDA id.

    The report of a run names the ids of its failed jobs; "panda_local status"
    tells where all logs are.
    """
    place = directory / LOGS_FOLDER / job_folder(job)
    if not place.is_dir():
        raise LocalPandaError(f"no logs of a job {job} in {place.parent}")
    for name in (which,) if which else ("pilotlog.txt", "payload.stdout", "payload.stderr"):
        path = place / name
        if not path.exists():
            continue
        if not which:
            click.echo(f"==> {path}")
        click.echo(path.read_text(errors="replace"), nl=False)


@click.command("open")
@_directory
@click.argument("job", type=int, required=False)
@_shows_errors
def open_pages(directory: Path, job: int | None) -> None:
    """Print a link that opens the pages of all runs, live, or the log files of JOB, in a browser.

    It is good once and for ten minutes; the pages stay open for twelve hours in that browser, or until the
    embedded PanDA is stopped.
    """
    click.echo(instance.make_link(_running(directory), job))


@click.command()
@_directory
@click.argument("backup", required=False, default="")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_shows_errors
def restore(directory: Path, backup: str, yes: bool) -> None:
    """Go back to a backup of the databases, after they were lost or damaged.

    BACKUP is one of those that the refused start lists, by default the
    newest.  What was submitted since is lost; jobs that have ended since run
    again.
    """
    if not yes:
        click.confirm(f"forget what has happened in {directory} since the backup?", abort=True)
    made, replaced = instance.restore(directory, backup)
    click.echo(f"the databases are those of {made}; what was there is in {replaced}")
    click.echo("start it again: panda_local start")


@click.command()
@_directory
@click.option("--yes", is_flag=True, help="Do not ask.")
@_shows_errors
def clean(directory: Path, yes: bool) -> None:
    """Remove the state directory: all runs and logs of the embedded PanDA."""
    if directory.exists() and not yes:
        click.confirm(f"remove {directory}?", abort=True)
    click.echo(f"removed {directory}" if instance.clean(directory) else f"there is no {directory}")
