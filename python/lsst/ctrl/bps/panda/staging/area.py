"""One staging from beginning to end (compare, copy, verify, and the manifest last), and what else is done
with a staging area: it is checked, read and marked.
"""

from __future__ import annotations

__all__ = [
    "StagingReport",
    "check_area",
    "list_area",
    "read_manifest",
    "remove_area",
    "remove_marker",
    "show_staging",
    "stage",
    "stage_with_progress",
    "write_marker",
]

import json
import logging
import os
import posixpath
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory
from typing import TextIO, TypeVar

from ..edgenode.cmd_line_decoder import LARGEST_MANIFEST
from ..errors import StagingError
from ..files import make_temporary_name
from ..plan.model import StagedFile
from ..settings.run import StagingSettings
from .sources import (
    MANIFEST_NAME,
    OWNER_NAME,
    PARTIAL_NAME,
    TEMPORARY_FOLDER,
    Digest,
    Manifest,
    SourceFile,
    digest_file,
    expand_files,
    fetch_source,
    find_name_problems,
    parse_manifest,
    render_manifest,
)
from .stores import LocalStore, Store, open_store
from .transfers import Retries, VerificationError, describe_cause, run_all

_LOG = logging.getLogger(__name__)

_BYTES_A_SECOND = 1_000_000
"""Slowest transfer that is waited for, beyond the time-out."""

_FEWEST_FAILURES = 3
"""Failures in a row after which a store counts as down, at least."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class StagingReport:
    """What staging did."""

    area: str
    """URI or path of the staging area, ending in ``/``."""

    copied: int
    """Number of files copied."""

    present: int
    """Number of files that were there already with the same content."""

    bytes_copied: int
    files: tuple[str, ...]
    """Names of all files of the run in the area, sorted."""

    changed: tuple[str, ...] = ()
    """Names of those that took the place of a file with another content."""


def _read_owner(data: bytes) -> str:
    """Return the submit directory of the run whose area it is, as the file in it says."""
    try:
        return str(json.loads(data)["submit_path"])
    except (ValueError, KeyError, TypeError):
        return "a file that cannot be read"


@dataclass(slots=True)
class _Staging:
    """One staging, with its progress and its failures.

    ``progress`` is called with the number of files done and of all files.
    """

    store: Store
    settings: StagingSettings
    progress: Callable[[int, int], None] | None
    retries: Retries
    clock: Callable[[], float]
    done: int = 0
    total: int = 0

    def claim(self, owner: str) -> None:
        """Write down whose area this is; `StagingError` if it is that of another run."""
        data = json.dumps({"format": 1, "submit_path": owner}).encode()
        self._retry(lambda: self.store.create(OWNER_NAME, data), f"writing {OWNER_NAME}")
        # Also after writing: of two at the same time, one finds the other's.
        found = self._retry(lambda: self.store.read(OWNER_NAME), f"reading {OWNER_NAME}")
        if (other := _read_owner(found or data)) != owner:
            raise StagingError(
                f"The staging area {self.store.area} holds the files of another run, that of {other}, whose "
                "jobs would get the files of this one; nothing was changed or submitted. Use another "
                "outputRun (with {timestamp} in it each submission has one), or, to extend the run of that "
                "name (--extend-run), set uniqProcName to a name of its own; if fileDistributionEndPoint is "
                "your own, let it end in {uniqProcName}/. If that run was given up before it was submitted, "
                f"remove {self.store.area}{OWNER_NAME}."
            )

    def run(self, sources: Sequence[SourceFile]) -> StagingReport:
        """Stage files with distinct names; `StagingError` is raised if any of them could not be staged."""
        files = [source for source in sources if not source.is_folder]
        self.total = len(files)
        begun = time.monotonic()
        with self._fetched(files) as local:
            known, complete = self._read_earlier()
            manifest, missing = self._compare_all(local, known, complete=complete)
            copied = self._copy_all(missing, manifest.files)
        folders = [source for source in sources if source.is_folder]
        self._for_each(folders, lambda source: self.store.make_folder(source.name))
        whole = Manifest({**manifest.files, **copied})
        if missing or not complete or whole.files != known:
            self._finish(whole)
        size = sum(digest.size for digest in copied.values())
        report = StagingReport(
            self.store.area,
            len(copied),
            len(manifest.files),
            size,
            tuple(sorted(whole.files)),
            tuple(sorted(name for name in copied if known.get(name, copied[name]) != copied[name])),
        )
        _LOG.info(
            "Staged to %s in %.1f s: %d files (%d bytes) copied, %d were there already",
            report.area, time.monotonic() - begun, report.copied, report.bytes_copied, report.present,
        )  # fmt: skip
        return report

    def refuse(self, failures: Sequence[tuple[str, str]], *, total: int) -> None:
        """Raise one error about all files that failed (names and causes), if any did."""
        if failures:
            lines = "".join(f"\n  {name}: {cause}" for name, cause in failures)
            raise StagingError(
                f"{len(failures)} of {total} files could not be staged to {self.store.area} (nothing was"
                f" submitted; what is there already is not copied again):{lines}"
            )

    @contextmanager
    def _fetched(self, sources: Sequence[SourceFile]) -> Iterator[list[SourceFile]]:
        """Fetch remote sources, so that all have a local path for a while."""
        remote = [source for source in sources if source.is_remote]
        if not remote:
            yield list(sources)
            return
        with TemporaryDirectory(prefix="staging-", ignore_cleanup_errors=True) as folder:
            local = self._for_each(remote, lambda source: fetch_source(source, folder))
            yield [local.get(source.name, source) for source in sources]

    def _compare_all(
        self, sources: Sequence[SourceFile], known: Mapping[str, Digest], *, complete: bool
    ) -> tuple[Manifest, list[SourceFile]]:
        """Find what is in the area already, and what is not."""
        compared = self._for_each(sources, lambda source: self._compare(source, known))
        present = Manifest({name: digest for name, digest in compared.items() if digest is not None})
        missing = [source for source in sources if compared[source.name] is None]
        if missing:
            # From here on the area is half staged, and must look like it,
            # but what is good in it must be found again.
            if not self._leave_partial(present):
                # An old one would vouch for what is about to be overwritten.
                self._retry(lambda: self.store.remove(PARTIAL_NAME), f"removing {PARTIAL_NAME}")
            if complete:
                self._retry(lambda: self.store.remove(MANIFEST_NAME), f"removing {MANIFEST_NAME}")
        self._advance(len(present.files))
        return present, missing

    def _read_earlier(self) -> tuple[Mapping[str, Digest], bool]:
        """Read what an earlier staging has recorded, and whether it was completed."""
        for name in (MANIFEST_NAME, PARTIAL_NAME):
            data = self._retry(partial(self.store.read, name), f"reading {name}")
            if data is None:
                continue
            try:
                return parse_manifest(data).files, name == MANIFEST_NAME
            except ValueError as error:
                _LOG.warning("%s%s is damaged, so it is not used: %s", self.store.area, name, error)
                return {}, name == MANIFEST_NAME
        return {}, False

    def _compare(self, source: SourceFile, known: Mapping[str, Digest]) -> Digest | None:
        size = self.store.size(source.name)
        if size is None or size != os.stat(source.path).st_size:
            return None
        digest = digest_file(source.path)
        same = self.store.holds(source.name, digest, source.path)
        if same is None:
            same = known.get(source.name) == digest
        return digest if same and digest.size == size else None

    def _copy_all(self, missing: Sequence[SourceFile], present: Mapping[str, Digest]) -> dict[str, Digest]:
        def copy(source: SourceFile) -> Digest:
            return self.store.put(source.path, source.name, executable=source.executable)

        copied: dict[str, Digest] = {}
        try:
            self._for_each(missing, copy, results=copied, advance=True)
        except StagingError:
            self._leave_partial(Manifest({**present, **copied}))
            raise
        finally:
            self.store.remove_temporary_files()
        return copied

    def _leave_partial(self, manifest: Manifest) -> bool:
        try:
            self.store.write(PARTIAL_NAME, render_manifest(manifest).encode())
        except Exception as error:
            # Only costs copying again what is there already.
            _LOG.debug("Cannot write %s%s: %s", self.store.area, PARTIAL_NAME, error)
            return False
        return True

    def _finish(self, manifest: Manifest) -> None:
        data = render_manifest(manifest).encode()
        if len(data) > LARGEST_MANIFEST:
            raise StagingError(
                f"the manifest of {len(manifest.files)} files has {len(data)} bytes, and workers read"
                f" {LARGEST_MANIFEST}; stage fewer files"
            )
        try:
            self._retry(lambda: self.store.write(MANIFEST_NAME, data), f"writing {MANIFEST_NAME}")
        except StagingError:
            self._leave_partial(manifest)
            raise
        self._retry(lambda: self.store.remove(PARTIAL_NAME), f"removing {PARTIAL_NAME}")
        self.store.remove_temporary_files()

    def _retry(self, action: Callable[[], _Result], what: str) -> _Result:
        """Do one thing with retries and a time-out."""
        try:
            action = partial(self.retries.run, action, what=what)
            return _bounded(action, self.settings.timeout, clock=self.clock)
        except Exception as error:
            raise StagingError(
                f"{what} in the staging area {self.store.area} failed: {describe_cause(error)}"
            ) from error

    def _for_each(
        self,
        sources: Sequence[SourceFile],
        function: Callable[[SourceFile], _Result],
        *,
        results: dict[str, _Result] | None = None,
        advance: bool = False,
    ) -> dict[str, _Result]:
        """Call a function for each source, in parallel, with retries; fail with one error about all."""
        results = {} if results is None else results
        failures: dict[str, str] = {}
        in_a_row = 0
        limit = max(_FEWEST_FAILURES, self.settings.max_workers)
        ended = run_all(
            sources,
            lambda source: self.retries.run(lambda: function(source), what=source.name),
            workers=self.settings.max_workers,
            allowance=lambda source: self.settings.timeout + source.size / _BYTES_A_SECOND,
            clock=self.clock,
        )
        with closing(ended):
            for result in ended:
                name = result.item.name
                if result.error is None:
                    in_a_row = 0
                    results[name] = result.result  # type: ignore[assignment]
                    self._advance(int(advance))
                    continue
                failures[name] = describe_cause(result.error)
                in_a_row += 1
                if in_a_row >= limit:
                    break
        if failures:
            rest = f"not tried, or not waited for, after {len(failures)} files had failed one after the other"
            names = [source.name for source in sources if source.name not in results]
            self.refuse([(name, failures.get(name, rest)) for name in names], total=self.total)
        return results

    def _advance(self, count: int) -> None:
        self.done += count
        if count and self.progress:
            self.progress(self.done, self.total)


_MARKER_SECONDS = 30.0
"""Longest time that leaving a marker may take."""


def stage(
    files: Sequence[StagedFile],
    settings: StagingSettings,
    *,
    owner: str = "",
    progress: Callable[[int, int], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> StagingReport:
    """Copy files, whose sources are local paths or URIs, into the staging area, verify them and write the
    manifest.

    Files that are there already with the same content are left alone, so that staging again is cheap and
    completes what an earlier one began.  An area with the files of another owner, the submit directory of a
    run, is left as it is.  ``progress`` is called with the number of files done and the number of all files.
    If any file could not be staged, `StagingError` lists every one of them with its cause, and there is no
    manifest in the area.
    """
    store = open_store(settings.area, group_permissions=settings.group_permissions)
    if problems := (*find_name_problems(files), *_find_overlaps(files, store)):
        raise StagingError(f"cannot stage to {settings.area}:\n  " + "\n  ".join(problems))
    session = _Staging(
        store, settings, progress=progress, retries=Retries(settings.retries, sleep), clock=clock
    )
    sources, failures = expand_files(files)
    session.refuse(failures, total=len(sources) + len(failures))
    if owner:
        session.claim(owner)
    return session.run(sources)


@contextmanager
def show_staging(stream: TextIO) -> Iterator[Callable[[int, int], None] | None]:
    """Draw on a terminal how many files are staged; on any other stream draw nothing."""
    if not stream.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    files = TextColumn("{task.completed} of {task.total} files")
    bar = Progress(TextColumn("Staging"), BarColumn(), files, console=Console(file=stream))
    task = bar.add_task("")

    def draw(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        bar.start()
        if done >= total:
            bar.stop()

    try:
        yield draw
    finally:
        if bar.live.is_started:
            bar.stop()


def stage_with_progress(files: Sequence[StagedFile], settings: StagingSettings, *, owner: str) -> None:
    """Stage the files of a run; a terminal shows how far it is."""
    with show_staging(sys.stderr) as progress:
        stage(files, settings, owner=owner, progress=progress)


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
    """Check whether the staging area can be written, by writing.

    A small file is written, read and removed again, and so are directories of a local area that did not
    exist.  The problems that are returned are a sentence each; there is none if files can be staged there.
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
    name = f"{TEMPORARY_FOLDER}-probe-{make_temporary_name()}"
    data = name.encode()
    try:
        store.write(name, data)
        found = store.read(name)
        store.remove(name)
    finally:
        store.remove_temporary_files()
        store.remove_empty_directories()
    if found != data:
        raise VerificationError(f"{len(data)} bytes written there became something else: {found!r:.100}")


def list_area(area: str, owner: str) -> list[str]:
    """List the names of all files in the staging area of a run, a URI or an absolute path.

    Of a web server without WebDAV these are the staged files only.  There are none if the area is gone.
    `StagingError` is raised if it belongs to another run than that of the submit directory ``owner``, or
    cannot be read.
    """
    store = open_store(area)
    try:
        found = store.read(OWNER_NAME)
        data = store.read(MANIFEST_NAME)
        if found is not None and _read_owner(found) != owner:
            raise StagingError(f"the staging area {store.area} is not that of the run of {owner}")
        known = {} if data is None else parse_manifest(data).files
        listed = store.list_files()
    except StagingError:
        raise
    except Exception as error:
        raise StagingError(f"cannot list {store.area}: {describe_cause(error)}") from error
    if listed and found is None and data is None:
        raise StagingError(
            f"{store.area} holds neither {OWNER_NAME} nor {MANIFEST_NAME}, so it may be another thing than a "
            "staging area"
        )
    ours = [name for name, there in ((OWNER_NAME, found), (MANIFEST_NAME, data)) if there is not None]
    return sorted({*known, *listed, *ours})


def remove_area(area: str, names: Sequence[str]) -> None:
    """Remove a staging area with the files that `list_area` has found.

    `StagingError` is raised if that cannot be done; it can be tried again.
    """
    store = open_store(area)
    # Last what says whose the area is.
    names = sorted(names, key=lambda name: (name == OWNER_NAME, name == MANIFEST_NAME))
    try:
        store.clear(names)
    except Exception as error:
        raise StagingError(f"cannot remove {store.area}: {describe_cause(error)}") from error


def _bounded(action: Callable[[], _Result], seconds: float, *, clock: Callable[[], float]) -> _Result:
    """Call something that may hang, and wait so many seconds for it."""
    (ended,) = run_all([None], lambda _: action(), workers=1, allowance=lambda _: seconds, clock=clock)
    if ended.error is not None:
        raise ended.error
    # The result is of the type of the action, `None` being one it may have.
    return ended.result  # type: ignore[return-value]


def read_manifest(area: str) -> Manifest | None:
    """Read the manifest of a staging area, a URI or an absolute path.

    There is none if nothing is staged there, or only a part.  `StagingError` is raised if the area cannot be
    read, or the manifest is damaged.
    """
    store = open_store(area)
    try:
        data = store.read(MANIFEST_NAME)
        return None if data is None else parse_manifest(data)
    except Exception as error:
        raise StagingError(f"cannot read {store.area}{MANIFEST_NAME}: {describe_cause(error)}") from error


def write_marker(area: str, name: str, text: str) -> bool:
    """Leave a small file with a plain name, such as ``.cancelled``, in a staging area, if that is possible.

    A local area that does not exist is not made.  Return whether the file is there; if not, the cause is
    logged as a warning.
    """
    return _attempt(area, name, lambda store: store.write(name, text.encode()), "leave the marker")


def remove_marker(area: str, name: str) -> bool:
    """Remove what `write_marker` has left, if that is possible.

    Return whether it is not there (any more); if it may be, the cause is logged as a warning.
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
            store.remove_temporary_files()

    try:
        _bounded(act, _MARKER_SECONDS, clock=time.monotonic)
    except Exception as error:
        _LOG.warning("Cannot %s %s in %s: %s", what, name, area, describe_cause(error))
        return False
    return True
