"""The files of a run and their names in the staging area."""

from __future__ import annotations

__all__ = ["FileLedger"]

import posixpath
from collections.abc import Set

from lsst.ctrl.bps import GenericWorkflowExec, GenericWorkflowFile

from ..errors import PlanError
from .model import StagedFile


class FileLedger:
    """Gives each source one name in the staging area, and no two the same.

    Parameters
    ----------
    directories : set of `str`
        Sources that are directories.
    """

    def __init__(self, directories: Set[str]) -> None:
        self._directories = directories
        self._by_source: dict[str, StagedFile] = {}
        self._names: set[str] = set()
        self._numbers: dict[str, int] = {}
        """Number of the directory that a base name was last put below."""

    def enter(self, gwfile: GenericWorkflowFile) -> StagedFile:
        """Enter an input of a job.

        Parameters
        ----------
        gwfile : `~lsst.ctrl.bps.GenericWorkflowFile`
            The file, which is to be transferred.

        Raises
        ------
        PlanError
            Raised if the file has no source.
        """
        if not gwfile.src_uri:
            raise PlanError(f"File {gwfile.name!r} is to be transferred but has no src_uri.")
        return self._enter(gwfile.name, str(gwfile.src_uri), executable=False)

    def enter_executable(self, executable: GenericWorkflowExec) -> StagedFile:
        """Enter an executable that is to be transferred."""
        if not executable.src_uri:
            raise PlanError(f"Executable {executable.name!r} is to be transferred but has no src_uri.")
        return self._enter("job_executable", str(executable.src_uri), executable=True)

    def add(self, staged: StagedFile) -> None:
        """Enter a file under the name that it has."""
        self._by_source[staged.source] = staged
        self._names.add(staged.name)

    def _enter(self, key: str, source: str, *, executable: bool) -> StagedFile:
        """Return the entry of a source, new or known."""
        known = self._by_source.get(source)
        if known is not None:
            return known
        is_directory = source in self._directories or source.endswith("/")
        name = self._free_name(posixpath.basename(source.rstrip("/")) or "file")
        staged = StagedFile(key, source, name, is_directory=is_directory, executable=executable)
        self.add(staged)
        return staged

    def _free_name(self, base: str) -> str:
        """Return a name that nothing has, below a numbered directory if the
        base name is taken.
        """
        name = base
        number = self._numbers.get(base, 1)
        while name in self._names:
            number += 1
            name = f"{number}/{base}"
        self._numbers[base] = number
        return name

    def files(self) -> tuple[StagedFile, ...]:
        """Return all files, sorted by name."""
        return tuple(sorted(self._by_source.values(), key=lambda staged: staged.name))
