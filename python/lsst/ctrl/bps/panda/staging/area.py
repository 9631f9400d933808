"""What is done with a staging area: it is filled, checked, read and marked."""

from __future__ import annotations

__all__ = ["check_area", "read_manifest", "remove_marker", "stage", "write_marker"]

import logging
import os
import posixpath
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TypeVar

from ..errors import StagingError
from ..plan.model import StagedFile
from .causes import VerificationError, describe_cause
from .manifest import MANIFEST_NAME, TEMPORARY_FOLDER, Manifest, parse_manifest
from .session import StagingReport, StagingSession, StagingSettings
from .sources import expand_files, find_name_problems
from .stores import LocalStore, Store, open_store
from .workers import Retries, run_all

_LOG = logging.getLogger(__name__)

_MARKER_SECONDS = 30.0
"""How long leaving a marker may hold its caller up."""

_Result = TypeVar("_Result")


def stage(
    files: Sequence[StagedFile],
    settings: StagingSettings,
    *,
    progress: Callable[[int, int], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> StagingReport:
    """Copy files into the staging area, verify them and write the manifest.

    Files that are there already with the same content are left alone, so
    that staging again is cheap and completes what an earlier one began.

    Parameters
    ----------
    files : `~collections.abc.Sequence` [`StagedFile`]
        What to stage; sources are local paths or URIs.
    settings : `StagingSettings`
        Where and how.
    progress : `~collections.abc.Callable`, optional
        Called with the number of files done and the number of all files.
    sleep : `~collections.abc.Callable`, optional
        Waits for a number of seconds, between attempts.
    clock : `~collections.abc.Callable`, optional
        Gives the time in seconds, for time-outs.

    Returns
    -------
    report : `StagingReport`
        What was done.

    Raises
    ------
    StagingError
        Raised if any file could not be staged; the text lists every one of
        them with its cause.  There is no manifest in the area then.
    """
    store = open_store(settings.area, group_permissions=settings.group_permissions)
    if problems := (*find_name_problems(files), *_find_overlaps(files, store)):
        raise StagingError(f"cannot stage to {settings.area}:\n  " + "\n  ".join(problems))
    session = StagingSession(
        store, settings, progress=progress, retries=Retries(settings.retries, sleep), clock=clock
    )
    sources, failures = expand_files(files)
    session.refuse(failures, total=len(sources) + len(failures))
    return session.run(sources)


def _find_overlaps(files: Sequence[StagedFile], store: Store) -> list[str]:
    """Find directories that would have to be copied into themselves."""
    if not isinstance(store, LocalStore):
        return []
    area = os.path.realpath(store.root) + "/"
    return [
        f"{file.source} is to be staged, but the staging area lies in it"
        for file in files
        if file.is_directory and area.startswith(os.path.realpath(file.source.removeprefix("file://")) + "/")
    ]


def check_area(
    settings: StagingSettings,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[str, ...]:
    """Find out whether the staging area can be written, by writing.

    A small file is written, read and removed again, and so are directories
    of a local area that did not exist.

    Parameters
    ----------
    settings : `StagingSettings`
        Where and how.
    sleep, clock : `~collections.abc.Callable`, optional
        As in `stage`.

    Returns
    -------
    problems : `tuple` [`str`]
        A sentence each; empty if files can be staged there.
    """
    try:
        store = open_store(settings.area, group_permissions=settings.group_permissions)
    except StagingError as error:
        return (str(error),)
    retries = Retries(settings.retries, sleep)
    try:
        _bounded(
            lambda: retries.run(lambda: _try_area(store), what=f"writing to {store.area}"),
            settings.timeout,
            clock=clock,
        )
    except Exception as error:
        return (f"the staging area {store.area} cannot be used: {describe_cause(error)}",)
    return store.problems()


def _try_area(store: Store) -> None:
    name = f"{TEMPORARY_FOLDER}-probe-{uuid.uuid4().hex}"
    data = name.encode()
    try:
        store.write(name, data)
        found = store.read(name)
        store.remove(name)
    finally:
        store.tidy()
        store.withdraw()
    if found != data:
        raise VerificationError(f"{len(data)} bytes written there became something else: {found!r:.100}")


def _bounded(action: Callable[[], _Result], seconds: float, *, clock: Callable[[], float]) -> _Result:
    """Call something that may hang, and wait for it for so many seconds."""
    (outcome,) = run_all([None], lambda _: action(), workers=1, allowance=lambda _: seconds, clock=clock)
    if outcome.error is not None:
        raise outcome.error
    # The result is of the type of the action, `None` being one it may have.
    return outcome.result  # type: ignore[return-value]


def read_manifest(area: str) -> Manifest | None:
    """Read the manifest of a staging area.

    Parameters
    ----------
    area : `str`
        URI of the staging area, or an absolute path.

    Returns
    -------
    manifest : `Manifest` or `None`
        `None` if there is none: nothing is staged there, or only a part.

    Raises
    ------
    StagingError
        Raised if the area cannot be read, or the manifest is damaged.
    """
    store = open_store(area)
    try:
        data = store.read(MANIFEST_NAME)
        return None if data is None else parse_manifest(data)
    except Exception as error:
        raise StagingError(f"cannot read {store.area}{MANIFEST_NAME}: {describe_cause(error)}") from error


def write_marker(area: str, name: str, text: str) -> bool:
    """Leave a small file in a staging area, if that is possible.

    Parameters
    ----------
    area : `str`
        URI of the staging area, or an absolute path; a local one that does
        not exist is not made.
    name : `str`
        Name of the file, without a directory, for instance ``.cancelled``.
    text : `str`
        What it is to hold.

    Returns
    -------
    written : `bool`
        Whether it is there.  If not, the cause is logged as a warning.

    Raises
    ------
    ValueError
        Raised if the name is not a plain one.
    """
    return _attempt(area, name, lambda store: store.write(name, text.encode()), "leave the marker")


def remove_marker(area: str, name: str) -> bool:
    """Remove what `write_marker` has left, if that is possible.

    Parameters
    ----------
    area : `str`
        URI of the staging area, or an absolute path.
    name : `str`
        Name of the file, without a directory.

    Returns
    -------
    removed : `bool`
        Whether it is not there (any more).  If it may be, the cause is
        logged as a warning.

    Raises
    ------
    ValueError
        Raised if the name is not a plain one.
    """
    return _attempt(area, name, lambda store: store.remove(name), "remove the marker")


def _attempt(area: str, name: str, action: Callable[[Store], None], what: str) -> bool:
    if not name or name in (".", "..") or posixpath.basename(name) != name:
        raise ValueError(f"the name of a marker must be a plain file name, not {name!r}")

    def act() -> None:
        store = open_store(area)
        if isinstance(store, LocalStore) and not os.path.isdir(store.root):
            raise FileNotFoundError(f"no such directory: {store.root}")
        try:
            action(store)
        finally:
            store.tidy()

    try:
        _bounded(act, _MARKER_SECONDS, clock=time.monotonic)
    except Exception as error:
        _LOG.warning("Cannot %s %s in %s: %s", what, name, area, describe_cause(error))
        return False
    return True
