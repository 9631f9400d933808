"""One staging from begin to end: compare, copy, verify, and the manifest
last.
"""

from __future__ import annotations

__all__ = ["StagingReport", "StagingSession", "StagingSettings"]

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory
from typing import TypeVar

from ..errors import StagingError
from .causes import VerificationError, describe_cause
from .manifest import (
    MANIFEST_NAME,
    PARTIAL_NAME,
    Digest,
    Manifest,
    digest_file,
    parse_manifest,
    render_manifest,
)
from .sources import SourceFile, fetch_source
from .stores import Store
from .workers import Retries, run_all

_LOG = logging.getLogger(__name__)

_BYTES_A_SECOND = 1_000_000
"""Slowest transfer that is waited for, beyond the time-out."""

_FEWEST_FAILURES = 3
"""Failures in a row after which a store counts as down, at least."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class StagingSettings:
    """Where and how to stage."""

    area: str
    """URI of the staging area of the run, or an absolute path; ends in
    ``/``."""

    max_workers: int = 10
    """Most transfers at a time (YAML: ``maxCopyWorkers``)."""

    group_permissions: bool = False
    """Whether the group gets ``rws`` on directories and ``rw`` on files
    (areas in a file system only)."""

    retries: int = 3
    """Further attempts after one that failed."""

    timeout: float = 300
    """Seconds for all attempts at one file, and one more a megabyte."""

    read_back: bool = False
    """Whether each copied file is read again from the area and its checksum
    compared, whatever checksums the store gives."""

    def __post_init__(self) -> None:
        if self.max_workers < 1:
            raise ValueError(f"max_workers must be at least 1, not {self.max_workers}")
        if self.retries < 0:
            raise ValueError(f"retries must not be negative: {self.retries}")
        if not self.timeout > 0:
            raise ValueError(f"timeout must be a positive number of seconds, not {self.timeout}")


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


class StagingSession:
    """One staging.

    Parameters
    ----------
    store : `Store`
        Where to.
    settings : `StagingSettings`
        How.
    progress : `~collections.abc.Callable`, optional
        Called with the number of files done and the number of all files.
    retries : `Retries`
        How often something is tried again.
    clock : `~collections.abc.Callable`
        Gives the time in seconds.
    """

    def __init__(
        self,
        store: Store,
        settings: StagingSettings,
        *,
        progress: Callable[[int, int], None] | None,
        retries: Retries,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._settings = settings
        self._progress = progress
        self._retries = retries
        self._clock = clock
        self._done = 0
        self._total = 0

    def run(self, sources: Sequence[SourceFile]) -> StagingReport:
        """Stage files.

        Parameters
        ----------
        sources : `~collections.abc.Sequence` [`SourceFile`]
            What to stage, with distinct names.

        Returns
        -------
        report : `StagingReport`
            What was done.

        Raises
        ------
        StagingError
            Raised if any of them could not be staged.
        """
        files = [source for source in sources if not source.is_folder]
        self._total = len(files)
        begun = time.monotonic()
        with self._fetched(files) as local:
            known, complete = self._known()
            manifest, missing = self._compare_all(local, known, complete=complete)
            copied = self._copy_all(missing, manifest.files)
        folders = [source for source in sources if source.is_folder]
        self._each(folders, lambda source: self._store.make_folder(source.name))
        whole = Manifest({**manifest.files, **copied})
        if missing or not complete or whole.files != known:
            self._finish(whole)
        size = sum(digest.size for digest in copied.values())
        report = StagingReport(
            self._store.area, len(copied), len(manifest.files), size, tuple(sorted(whole.files))
        )
        _LOG.info(
            "Staged to %s in %.1f s: %d files (%d bytes) copied, %d were there already",
            report.area,
            time.monotonic() - begun,
            report.copied,
            report.bytes_copied,
            report.present,
        )
        return report

    def refuse(self, failures: Sequence[tuple[str, str]], *, total: int) -> None:
        """Raise one error about all files that failed, if any did.

        Parameters
        ----------
        failures : `~collections.abc.Sequence` [`tuple` [`str`, `str`]]
            Names and causes.
        total : `int`
            Number of all files.

        Raises
        ------
        StagingError
            Raised if there are failures.
        """
        if failures:
            lines = "".join(f"\n  {name}: {cause}" for name, cause in failures)
            raise StagingError(
                f"{len(failures)} of {total} files could not be staged to {self._store.area} (nothing was"
                f" submitted; what is there already is not copied again):{lines}"
            )

    @contextmanager
    def _fetched(self, sources: Sequence[SourceFile]) -> Iterator[list[SourceFile]]:
        """Give all sources a local path for a while."""
        remote = [source for source in sources if source.is_remote]
        if not remote:
            yield list(sources)
            return
        with TemporaryDirectory(prefix="staging-", ignore_cleanup_errors=True) as folder:
            local = self._each(remote, lambda source: fetch_source(source, folder))
            yield [local.get(source.name, source) for source in sources]

    def _compare_all(
        self, sources: Sequence[SourceFile], known: Mapping[str, Digest], *, complete: bool
    ) -> tuple[Manifest, list[SourceFile]]:
        """Find what is in the area already, and what is not."""
        compared = self._each(sources, lambda source: self._compare(source, known))
        present = Manifest({name: digest for name, digest in compared.items() if digest is not None})
        missing = [source for source in sources if compared[source.name] is None]
        if missing:
            # From here on the area is half staged, and must look like it,
            # but what is good in it must be found again.
            self._begin_partial(present)
            if complete:
                self._do(lambda: self._store.remove(MANIFEST_NAME), f"removing {MANIFEST_NAME}")
        self._advance(len(present.files))
        return present, missing

    def _known(self) -> tuple[Mapping[str, Digest], bool]:
        """What an earlier staging has recorded, and whether it was ended."""
        for name in (MANIFEST_NAME, PARTIAL_NAME):
            data = self._do(partial(self._store.read, name), f"reading {name}")
            if data is None:
                continue
            try:
                return parse_manifest(data).files, name == MANIFEST_NAME
            except ValueError as error:
                _LOG.warning("%s%s is damaged, so it is not used: %s", self._store.area, name, error)
                return {}, name == MANIFEST_NAME
        return {}, False

    def _compare(self, source: SourceFile, known: Mapping[str, Digest]) -> Digest | None:
        size = self._store.size(source.name)
        if size is None or size != os.stat(source.path).st_size:
            return None
        digest = digest_file(source.path)
        same = self._store.holds(source.name, digest, source.path)
        if same is None:
            same = known.get(source.name) == digest
        return digest if same and digest.size == size else None

    def _copy_all(self, missing: Sequence[SourceFile], present: Mapping[str, Digest]) -> dict[str, Digest]:
        copied: dict[str, Digest] = {}
        try:
            self._each(missing, self._copy, results=copied, advance=True)
        except StagingError:
            self._leave_partial(Manifest({**present, **copied}))
            raise
        finally:
            self._store.tidy()
        return copied

    def _copy(self, source: SourceFile) -> Digest:
        digest = self._store.put(source.path, source.name, executable=source.executable)
        if self._settings.read_back and (found := self._store.read_back(source.name)) != digest:
            raise VerificationError(f"read back {found} from the staging area, but {digest} was sent")
        return digest

    def _begin_partial(self, present: Manifest) -> None:
        if not self._leave_partial(present):
            # An old one would vouch for what is about to be overwritten.
            self._do(lambda: self._store.remove(PARTIAL_NAME), f"removing {PARTIAL_NAME}")

    def _leave_partial(self, manifest: Manifest) -> bool:
        try:
            self._store.write(PARTIAL_NAME, render_manifest(manifest).encode())
        except Exception as error:
            # Only costs copying again what is there already.
            _LOG.debug("Cannot write %s%s: %s", self._store.area, PARTIAL_NAME, error)
            return False
        return True

    def _finish(self, manifest: Manifest) -> None:
        data = render_manifest(manifest).encode()
        try:
            self._do(lambda: self._store.write(MANIFEST_NAME, data), f"writing {MANIFEST_NAME}")
        except StagingError:
            self._leave_partial(manifest)
            raise
        self._do(lambda: self._store.remove(PARTIAL_NAME), f"removing {PARTIAL_NAME}")
        self._store.tidy()

    def _do(self, action: Callable[[], _Result], what: str) -> _Result:
        """Do one thing with retries and a time-out."""
        outcomes = run_all(
            [what],
            lambda _: self._retries.run(action, what=what),
            workers=1,
            allowance=lambda _: self._settings.timeout,
            clock=self._clock,
        )
        (outcome,) = outcomes
        if outcome.error is not None:
            raise StagingError(
                f"{what} in the staging area {self._store.area} failed: {describe_cause(outcome.error)}"
            ) from outcome.error
        return outcome.result  # type: ignore[return-value]

    def _each(
        self,
        sources: Sequence[SourceFile],
        function: Callable[[SourceFile], _Result],
        *,
        results: dict[str, _Result] | None = None,
        advance: bool = False,
    ) -> dict[str, _Result]:
        """Call for each source, in parallel, with retries; fail as one."""
        results = {} if results is None else results
        failures: dict[str, str] = {}
        in_a_row = 0
        limit = max(_FEWEST_FAILURES, self._settings.max_workers)
        outcomes = run_all(
            sources,
            lambda source: self._retries.run(lambda: function(source), what=source.name),
            workers=self._settings.max_workers,
            allowance=self._allowance,
            clock=self._clock,
        )
        with closing(outcomes):
            for outcome in outcomes:
                name = outcome.item.name
                if outcome.error is None:
                    in_a_row = 0
                    results[name] = outcome.result  # type: ignore[assignment]
                    self._advance(int(advance))
                    continue
                failures[name] = describe_cause(outcome.error)
                in_a_row += 1
                if in_a_row >= limit:
                    break
        if failures:
            self._refuse_rest(sources, results, failures)
        return results

    def _refuse_rest(
        self, sources: Sequence[SourceFile], results: Mapping[str, object], failures: Mapping[str, str]
    ) -> None:
        """Fail, naming those too that were not tried as the store is down."""
        rest = f"not tried, or not waited for, after {len(failures)} files had failed one after the other"
        names = [source.name for source in sources if source.name not in results]
        self.refuse([(name, failures.get(name, rest)) for name in names], total=self._total)

    def _allowance(self, source: SourceFile) -> float:
        return self._settings.timeout + source.size / _BYTES_A_SECOND

    def _advance(self, count: int) -> None:
        self._done += count
        if count and self._progress:
            self._progress(self._done, self._total)
