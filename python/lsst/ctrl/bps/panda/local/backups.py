"""The files of an instance's SQLite databases: checked and backed up at each start, restored on request."""

from __future__ import annotations

__all__ = ["DATABASE_FILES", "IDDS_FILE", "PANDA_FILE", "back_up", "check_files", "find_backups", "restore"]

import contextlib
import logging
import os
import shutil
import sqlite3
import time
from pathlib import Path

from ..errors import LocalPandaError

_LOG = logging.getLogger(__name__)

PANDA_FILE = "panda.db"
IDDS_FILE = "idds.db"
DATABASE_FILES = (PANDA_FILE, IDDS_FILE)
"""Names in the state directory: PanDA's side, and iDDS."""

_TABLES = {
    PANDA_FILE: ("tasks", "files", "jobs", "events", "messages"),
    IDDS_FILE: ("requests", "transforms", "processings", "collections", "contents", "messages"),
}
"""The tables of each; the first one has a row if there was any run."""

_LOST = {
    PANDA_FILE: "the tasks and jobs of all runs",
    IDDS_FILE: "the workflows of all runs, with what depends on what",
}
_FOLDER = "backups"
_UNFINISHED = ".new-"
_KEPT = 3
_SPARE = 32 * 1024**2
"""Bytes that have to stay free when a backup is made."""

_HELPERS = ("-wal", "-shm", "-journal")
_TIME = "%Y%m%dT%H%M%SZ"


def find_backups(directory: Path) -> list[Path]:
    """List the backups of an instance, the newest first; each is a folder with both databases."""
    with contextlib.suppress(OSError):
        found = (directory / _FOLDER).iterdir()
        return sorted((path for path in found if not path.name.startswith(_UNFINISHED)), reverse=True)
    return []


def _open(path: Path) -> contextlib.closing[sqlite3.Connection]:
    """Open a database that is there; nothing is made."""
    return contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=30))


def _problem(path: Path, *, known: bool) -> str:
    """Say what is wrong with the file of a database; one that is not ``known`` to have been there may be
    missing or unfinished.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return "is missing" if known else ""
    except OSError as error:
        return f"cannot be read ({error})"
    if not size:
        return "is empty" if known else ""
    try:
        with _open(path) as connection:
            (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if said != "ok":
                return f"is damaged ({' '.join(str(said).split())[:200]})"
            found = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    except sqlite3.Error as error:
        return f"is damaged ({error})"
    missing = [name for name in _TABLES[path.name] if name not in found]
    return f"has no table {missing[0]}" if known and missing else ""


def _number(path: Path, query: str) -> int:
    """Ask for one number; 0 if there is no such file or table."""
    try:
        with _open(path) as connection:
            return int(connection.execute(query).fetchone()[0] or 0)
    except (sqlite3.Error, TypeError, ValueError):
        return 0


def _has_runs(path: Path) -> bool:
    return _number(path, f"SELECT count(*) FROM (SELECT 1 FROM {_TABLES[path.name][0]} LIMIT 1)") > 0


def _misfit(directory: Path) -> str:
    """Say if iDDS knows tasks that PanDA does not have: their ids would be given a second time."""
    last = _number(directory / IDDS_FILE, "SELECT max(workload_id) FROM processings")
    own = _number(directory / PANDA_FILE, "SELECT max(task_id) FROM tasks")
    if last <= own:
        return ""
    return f"is older than {IDDS_FILE}: its last task is {own}, and iDDS has submitted task {last}"


def check_files(directory: Path) -> None:
    """Check both databases before they are opened; `LocalPandaError` says which file is lost or damaged,
    what that means, and what to do.
    """
    before = bool(find_backups(directory))
    problems = {}
    for name in DATABASE_FILES:
        others = (directory / other for other in DATABASE_FILES if other != name)
        if problem := _problem(directory / name, known=before or any(map(_has_runs, others))):
            problems[name] = problem
    if not problems and (misfit := _misfit(directory)):
        problems[PANDA_FILE] = misfit
    if problems:
        what = "; ".join(f"{directory / name} {problem}" for name, problem in problems.items())
        lost = " and ".join(_LOST[name] for name in problems)
        raise LocalPandaError(f"{what}. Without it are lost: {lost}.\n{_advice(directory)}")


def _advice(directory: Path) -> str:
    anew = f"To start anew, without runs and logs: panda_local clean -d {directory}"
    backups = find_backups(directory)
    if not backups:
        return f"There is no backup. {anew}"
    runs = _number(backups[0] / IDDS_FILE, "SELECT count(*) FROM requests")
    return (
        f"To go on from the backup of {_shown(backups[0])} with {runs} runs: "
        f"panda_local restore -d {directory}; "
        "what was submitted since is lost, and jobs that have ended since run again.\n"
        f"Backups: {', '.join(path.name for path in backups)}. {anew}"
    )


def _shown(backup: Path) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.strptime(backup.name[:15] + "Z", _TIME))
    except ValueError:
        return backup.name


def _new_name() -> str:
    """Make a name from the time; names sort as their times do."""
    now = time.time()
    return time.strftime(_TIME.removesuffix("Z"), time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"


def back_up(directory: Path) -> Path | None:
    """Copy both databases, which nobody writes to now, and return where to; older copies than the last few
    are removed.  `None` if there is no room for it.
    """
    sources = [directory / name for name in DATABASE_FILES]
    if not all(path.exists() for path in sources):
        return None
    folder = directory / _FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    for unfinished in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    size = sum(
        path.with_name(path.name + end).stat().st_size
        for path in sources
        for end in ("", "-wal")
        if path.with_name(path.name + end).exists()
    )
    if shutil.disk_usage(directory).free < size + _SPARE:
        _LOG.warning("no backup of the databases is made: %d MB are too much for the disk", size // 1024**2)
        return None
    target = folder / _new_name()
    unfinished = folder / f"{_UNFINISHED}{target.name}"
    unfinished.mkdir(mode=0o700)
    for path in sources:
        with _open(path) as source, contextlib.closing(sqlite3.connect(unfinished / path.name)) as copy:
            source.backup(copy)
            # One file, without those of the write-ahead log.
            copy.execute("PRAGMA journal_mode=DELETE")
        (unfinished / path.name).chmod(0o600)
    os.replace(unfinished, target)
    for old in find_backups(directory)[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def restore(directory: Path, name: str = "") -> tuple[str, Path]:
    """Go back to a backup, the newest by default; only while no server runs.

    Returns when it was made, and the folder to which the files were moved
    that were there. `LocalPandaError` if there is no such backup, or it is
    damaged, too.
    """
    backups = find_backups(directory)
    chosen = next((path for path in backups if path.name == name or not name), None)
    if chosen is None:
        known = ", ".join(path.name for path in backups) or "none"
        raise LocalPandaError(
            f"there is no backup {name or 'of the databases'} in {directory}; there are: {known}"
        )
    for file in DATABASE_FILES:
        if problem := _problem(chosen / file, known=True):
            raise LocalPandaError(f"the backup {chosen / file} {problem}; choose another one")
    # First all that may fail for want of room.
    for file in DATABASE_FILES:
        shutil.copyfile(chosen / file, directory / f".{file}.restored")
        (directory / f".{file}.restored").chmod(0o600)
    aside = directory / f"replaced-{time.strftime(_TIME, time.gmtime())}"
    aside.mkdir(mode=0o700, exist_ok=True)
    for file in DATABASE_FILES:
        for end in ("", *_HELPERS):
            with contextlib.suppress(FileNotFoundError):
                os.replace(directory / f"{file}{end}", aside / f"{file}{end}")
    for file in DATABASE_FILES:
        os.replace(directory / f".{file}.restored", directory / file)
    return _shown(chosen), aside
