"""Start, find and stop an embedded PanDA: what the rest of the package uses.

Nothing that the extra ``local`` installs is imported at the top: the server is
a process of its own, and without the extra the functions here say what to
install.
"""

from __future__ import annotations

__all__ = [
    "Endpoint",
    "clean",
    "environment",
    "find",
    "restore",
    "make_link",
    "make_token",
    "set_faults",
    "start",
    "state_directory",
    "status",
    "stop",
]

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lsst.ctrl.bps.panda.errors import LocalPandaError

from .endpoint import (
    ENDPOINT_FILE,
    EXIT_BUSY,
    LOCK_FILE,
    SERVER_MARKER,
    Endpoint,
    EndpointClient,
    check_owner,
    environment,
    is_alive,
    read_endpoint,
    state_directory,
)
from .settings import SETTINGS_FILE, read_settings, take_lock, write_settings

_LAUNCHER = Path(__file__).resolve().with_name("launch.py")
_NEEDED = {
    "idds.agents": "idds-server",
    "idds.prompt": "idds-prompt",
    "waitress": "waitress",
    "flask": "flask",
    "sqlalchemy": "sqlalchemy",
    "psutil": "psutil",
}
_children: dict[int, subprocess.Popen[bytes]] = {}
"""Servers that this process has started, and has to wait for."""

# Credentials for a facility are not passed on to the server.
_DROPPED = ("PANDA_", "OIDC_", "IDDS_", "X509_")


def missing_parts() -> list[str]:
    """List distributions of the extra ``local`` that are not installed."""
    missing = []
    for module, distribution in _NEEDED.items():
        try:
            found = importlib.util.find_spec(module) is not None
        except ImportError:
            found = False
        if not found:
            missing.append(distribution)
    return missing


def _check_installed() -> None:
    if not sys.platform.startswith("linux"):
        raise LocalPandaError("the embedded PanDA needs Linux: it watches its jobs through /proc")
    if missing := missing_parts():
        raise LocalPandaError(
            f"the embedded PanDA needs what is not installed here: {', '.join(missing)}; "
            "install it with: pip install 'lsst-ctrl-bps-panda[local]'"
        )


def _canonical(directory: str | Path) -> Path:
    """Resolve a directory's name, by which its processes are found; it has to be one of this user."""
    path = Path(directory).resolve()
    check_owner(path)
    return path


# One of these is in each state directory that is not empty.
_OURS = frozenset(
    (ENDPOINT_FILE, LOCK_FILE, "panda.db", "server.log", "server.out", SETTINGS_FILE, "staging")
)


def _prepare_directory(directory: Path) -> Path:
    directory = _canonical(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        check_owner(directory)
        # Checked first: "clean" removes all of it, and the mode is changed below.
        found = set(os.listdir(directory))
        if found and not found & _OURS:
            raise LocalPandaError(
                f"{directory} holds other files and is no state directory of an embedded PanDA; choose an "
                "empty or a new one"
            )
        directory.chmod(0o700)
    except OSError as error:
        raise LocalPandaError(f"the state directory {directory} cannot be used: {error}") from error
    return directory


def _ask(endpoint: Endpoint, path: str, parameters: object = None) -> Any:
    client = EndpointClient(endpoint, timeout=10)
    try:
        value = client.api(path, parameters)
    except (OSError, ValueError) as error:
        raise LocalPandaError(f"the embedded PanDA at {endpoint.url} does not answer: {error}") from error
    if not value.get("success"):
        raise LocalPandaError(f"the embedded PanDA refused {path}: {value.get('message')}")
    return value.get("data")


def find(directory: str | Path) -> Endpoint | None:
    """Find the embedded PanDA that runs with a state directory, if one does."""
    endpoint = read_endpoint(directory)
    if endpoint is None:
        return None
    if not is_alive(endpoint.pid, endpoint.started):
        _reap(endpoint.pid)
        return None
    return endpoint


def start(
    directory: str | Path,
    *,
    slots: int | None = None,
    database: str | None = None,
    pace: str | None = None,
    foreground: bool = False,
    timeout: float = 60,
    sleep: Callable[[float], None] = time.sleep,
    **options: Any,
) -> Endpoint:
    """Start an embedded PanDA, or find the one that runs.

    Parameters
    ----------
    directory : `str` or `~pathlib.Path`
        State directory; made if it is not there, for this user only.
    slots : `int`, optional
        Cores that jobs may use together; all of the machine by default.
    database : `str`, optional
        ``postgresql://...``; SQLite files in the state directory by default.
    pace : `str`, optional
        ``quick`` or ``production``, see `~.settings.parse_timing`.
    foreground : `bool`, optional
        Become the server; never returns.
    timeout : `float`, optional
        Seconds to wait for the server to answer.
    sleep : callable, optional
        Time, for tests.
    **options
        Further settings, see `~.settings.ServerSettings`.  What is not given
        stays as it was at the last start with this directory.

    Returns
    -------
    endpoint : `Endpoint`
        The running server.

    Raises
    ------
    LocalPandaError
        Raised if something is missing, wrong, or the server does not start.
    """
    _check_installed()
    directory = _prepare_directory(Path(directory))
    if running := find(directory):
        return running
    # A parent to end with is never kept for a later start.
    options.setdefault("parent", 0)
    before = read_settings(directory)
    try:
        write_settings(directory, {"slots": slots, "database": database, "pace": pace, **options})
    except OSError as error:
        raise LocalPandaError(f"the state directory {directory} cannot be used: {error}") from error
    command = [sys.executable, "-P", str(_LAUNCHER), str(directory)]
    variables = {key: value for key, value in os.environ.items() if not key.startswith(_DROPPED)}
    variables[SERVER_MARKER] = secrets.token_hex(8)
    if foreground:
        os.execve(sys.executable, command, variables)
    end = time.monotonic() + timeout
    while True:
        process = _spawn(command, directory, variables)
        try:
            endpoint = _wait_for_answer(process, directory, end=end, sleep=sleep)
        except BaseException:
            # Also after Ctrl-C, since nobody would know of it.  Settings with
            # which it did not start must not stay for the next start.
            _abandon(process)
            write_settings(directory, asdict(before))
            raise
        if endpoint is not None:
            return endpoint


def _wait_for_answer(
    process: subprocess.Popen[bytes], directory: Path, *, end: float, sleep: Callable[[float], None]
) -> Endpoint | None:
    """Wait for a server that was just started, or for another one that took
    the directory first; `None` if that one has ended.
    """
    while time.monotonic() < end:
        code = process.poll()
        if endpoint := find(directory):
            if endpoint.pid == process.pid:
                _children[process.pid] = process
                _remember_port(directory, endpoint)
            else:
                # Ours waits for the lock: it would take the place of the other one when that is stopped.
                _abandon(process)
            return endpoint
        if code == EXIT_BUSY:
            lock = take_lock(directory)
            if lock is not None:
                lock.close()
                return None
        elif code is not None:
            raise LocalPandaError(f"the embedded PanDA did not start:\n{_last_lines(directory)}")
        sleep(0.02)
    raise LocalPandaError(
        f"the embedded PanDA did not answer in time; see {directory / 'server.log'}, "
        f"and whether process {process.pid} or another one holds {directory / LOCK_FILE}"
    )


def _abandon(process: subprocess.Popen[bytes]) -> None:
    """End a server that has not started yet."""
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _spawn(command: Sequence[str], directory: Path, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    descriptor = os.open(directory / "server.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as output:
        return subprocess.Popen(
            command,
            cwd=directory,
            env=dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _remember_port(directory: Path, endpoint: Endpoint) -> None:
    """Keep the port for the next start: clients and log URLs stay valid."""
    port = int(endpoint.url.split(":")[2].partition("/")[0])
    if read_settings(directory).port != port:
        write_settings(directory, {"port": port})


def _last_lines(directory: Path, count: int = 5) -> str:
    try:
        lines = (directory / "server.out").read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    # SQLAlchemy's errors end with a link.
    lines = [line for line in lines if not line.startswith("(Background on this error")]
    return "\n".join(lines[-count:]).strip() or f"(see {directory / 'server.log'})"


def stop(directory: str | Path, *, timeout: float = 30, sleep: Callable[[float], None] = time.sleep) -> bool:
    """Stop the embedded PanDA of a state directory, with all its jobs.

    Jobs that run are ended, and tried again by the next start.

    Returns
    -------
    stopped : `bool`
        `False` if none was running.

    Raises
    ------
    LocalPandaError
        Raised if it does not end, not even when it is killed.
    """
    endpoint = find(directory)
    if endpoint is None:
        _end_remains(directory)
        return False
    for number, seconds in ((signal.SIGTERM, timeout), (signal.SIGKILL, 5.0)):
        try:
            os.kill(endpoint.pid, number)
        except ProcessLookupError:
            break
        end = time.monotonic() + seconds
        while is_alive(endpoint.pid, endpoint.started) and time.monotonic() < end:
            sleep(0.02)
        if not is_alive(endpoint.pid, endpoint.started):
            break
    else:
        raise LocalPandaError(f"process {endpoint.pid} of the embedded PanDA does not end")
    _reap(endpoint.pid)
    _end_remains(directory)
    return True


def _end_remains(directory: str | Path) -> None:
    """Kill what the jobs of a server that was killed have left running."""
    directory = _canonical(directory)
    if not directory.is_dir():
        return
    _check_installed()
    from .processes import end_leftovers

    lock = take_lock(directory, patience=1.0)
    if lock is None:
        # A server that is starting tidies up itself.
        return
    with lock:
        dead = read_endpoint(directory)
        end_leftovers(directory, dead_server=dead.mark if dead else "")
        (directory / ENDPOINT_FILE).unlink(missing_ok=True)


def _reap(pid: int) -> None:
    """Wait for a server that has ended, if it is a child of this process."""
    child = _children.pop(pid, None)
    if child is not None:
        child.wait(timeout=10)


def status(endpoint: Endpoint) -> dict[str, Any]:
    """Read slots, runs, tasks and jobs of a running embedded PanDA."""
    return dict(_ask(endpoint, "local/status"))


def set_faults(endpoint: Endpoint, rules: Sequence[Mapping[str, Any]]) -> None:
    """Replace the rules of the faults that are injected, for tests; see `~.faults`."""
    _ask(endpoint, "local/faults", list(rules))


def make_token(endpoint: Endpoint, user: str) -> str:
    """Make a token of another user, as whom the owner wants to try something; it ends with the server."""
    return str(_ask(endpoint, "local/token", {"user": user}))


def make_link(endpoint: Endpoint, job: int | None = None) -> str:
    """Make a link that opens the live pages, or the log files of a job, in a browser: once, and within ten
    minutes.
    """
    path = _ask(endpoint, "local/link", {"job": job} if job is not None else {})
    return f"{endpoint.base}{path}"


def restore(directory: str | Path, backup: str = "") -> tuple[str, Path]:
    """Go back to a backup of the databases, the newest by default, after they were lost or damaged.

    Returns
    -------
    made : `str`
        When the backup was made.
    replaced : `~pathlib.Path`
        Folder to which the files were moved that were there.

    Raises
    ------
    LocalPandaError
        Raised if a server runs, or there is no such backup.
    """
    from .backups import restore as restore_files

    path = _canonical(directory)
    lock = take_lock(path, patience=1.0) if path.is_dir() else None
    if lock is None:
        if path.is_dir():
            raise LocalPandaError(f"an embedded PanDA runs with {path}; stop it first: panda_local stop")
        raise LocalPandaError(f"there is no state directory {path}")
    with lock:
        return restore_files(path, backup)


def clean(directory: str | Path) -> bool:
    """Remove the state directory, with all runs and logs.

    Returns
    -------
    removed : `bool`
        `False` if there was none.

    Raises
    ------
    LocalPandaError
        Raised if a server runs, or the directory is not one of ours.
    """
    path = Path(directory)
    if not path.exists():
        return False
    if find(path):
        raise LocalPandaError(f"an embedded PanDA runs with {path}; stop it first: panda_local stop")
    if not (path / SETTINGS_FILE).exists() and any(path.iterdir()):
        raise LocalPandaError(f"{path} is no state directory of an embedded PanDA; not removed")
    _end_remains(path)
    shutil.rmtree(path)
    return True
