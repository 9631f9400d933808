"""What is written down about a run: a record in its submit directory, and the
list of one's own runs.

Both are small JSON files; each write is to a temporary name and moved.
"""

from __future__ import annotations

__all__ = [
    "RECORD_NAME",
    "OwnList",
    "RunIndex",
    "RunRecord",
    "read_json",
    "read_record",
    "write_text",
    "PLAN_NAME",
    "PARAMETERS_DIRECTORY",
    "REGISTRATION_NAME",
    "read_plan",
]

import contextlib
import fcntl
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import PandaBpsError, RunNotFoundError
from ..plan.document import parse_plan
from ..plan.model import WorkflowPlan

_LOG = logging.getLogger(__name__)

RECORD_NAME = "panda_run.json"
PLAN_NAME = "panda_plan.json"
REGISTRATION_NAME = "panda_rucio.json"
PARAMETERS_DIRECTORY = "panda_files"
RECORD_FORMAT = 1


@dataclass(slots=True)
class RunRecord:
    """The record of a run."""

    content: dict[str, Any] = field(default_factory=dict)
    """As written: ``run``, ``labels``, ``tasks``, and from submission on
    ``request_id``, ``server``, ``prepared_at``, ``submitted_at`` (UTC)."""

    @classmethod
    def from_plan(cls, plan: WorkflowPlan, *, prepared_at: str) -> RunRecord:
        """Make the record of a run that has just been planned.

        Parameters
        ----------
        plan : `WorkflowPlan`
            Its plan.
        prepared_at : `str`
            Time, ISO 8601.
        """
        run = plan.run
        return cls(
            {
                "format": RECORD_FORMAT,
                "run": {
                    "name": run.name,
                    "operator": run.operator,
                    "project": run.project,
                    "campaign": run.campaign,
                    "payload": run.payload,
                    "output_run": run.output_run,
                    "site": run.site,
                    "submit_path": run.submit_path,
                    "staging_area": run.staging_area,
                    "origin": run.origin,
                },
                "versions": {"plugin": run.plugin_version, "bps": run.bps_version},
                "labels": [list(pair) for pair in plan.labels],
                "tasks": [[t.name, t.label, len(t.jobs)] for t in (*plan.tasks, *plan.final)],
                "final_labels": sorted({task.label for task in plan.final}),
                "prepared_at": prepared_at,
                "request_id": None,
            }
        )

    @property
    def request_id(self) -> int | None:
        """Number of the request, once the run is submitted."""
        value = self.content.get("request_id")
        return value if isinstance(value, int) else None

    @property
    def name(self) -> str:
        """Name of the run."""
        return str(self.content["run"]["name"])

    @property
    def submit_path(self) -> str:
        """Submit directory."""
        return str(self.content["run"]["submit_path"])

    @property
    def staging_area(self) -> str:
        """Staging area of the run."""
        return str(self.content["run"].get("staging_area", ""))

    def write(self, directory: str | os.PathLike[str]) -> Path:
        """Write the record into a submit directory.

        Parameters
        ----------
        directory : path
            The directory.
        """
        path = Path(directory) / RECORD_NAME
        write_text(path, [json.dumps(self.content, indent=1), "\n"])
        return path


def read_record(directory: str | os.PathLike[str]) -> RunRecord:
    """Read the record of a submit directory.

    Parameters
    ----------
    directory : path
        The directory, or a file in it.

    Raises
    ------
    RunNotFoundError
        Raised if there is no record.
    PandaBpsError
        Raised if the record is damaged.
    """
    path, content = read_json(directory, RECORD_NAME, holder="a run on PanDA")
    if not isinstance(content, dict) or not isinstance(content.get("run"), dict):
        raise PandaBpsError(f"{path} is damaged: it describes no run.")
    return RunRecord(content)


def read_json(directory: str | os.PathLike[str], name: str, *, holder: str) -> tuple[Path, Any]:
    """Read a record of a submit directory.

    Parameters
    ----------
    directory : path
        The directory, or a file in it.
    name : `str`
        Name of the record.
    holder : `str`
        What has such a record, for the text of an error.

    Returns
    -------
    path : `~pathlib.Path`
        The record.
    content : `~typing.Any`
        What it holds.

    Raises
    ------
    RunNotFoundError
        Raised if there is none.
    PandaBpsError
        Raised if it is no JSON.
    """
    given = Path(directory)
    path = (given if given.is_dir() else given.parent) / name
    try:
        return path, json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunNotFoundError(
            f"{directory} holds no {name}, so it is not the submit directory of {holder}."
        ) from None
    except ValueError as error:
        raise PandaBpsError(f"{path} is damaged: {error}.") from error


def write_text(path: Path, pieces: Iterable[str], *, mode: int = 0o666) -> None:
    """Write a file under a temporary name and move it.

    Parameters
    ----------
    path : `~pathlib.Path`
        The file.
    pieces : iterable of `str`
        Its content.
    mode : `int`, optional
        Permissions, of which the umask takes some away.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.writelines(pieces)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, mode & ~mask)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


class OwnList:
    """A list of one's own things that several processes write to, an entry a
    line.

    Parameters
    ----------
    directory : `str`
        Directory for what is remembered between commands.
    name : `str`
        Name of the file.
    """

    def __init__(self, directory: str, name: str) -> None:
        self._path = Path(directory) / name

    def append(self, entry: Mapping[str, Any], *, what: str) -> None:
        """Add an entry; failing to do so is warned about, not an error.

        Parameters
        ----------
        entry : mapping
            JSON-ready.
        what : `str`
            What is entered, for the warning.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(self._path, "a", encoding="utf-8") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                stream.write(json.dumps(entry) + "\n")
        except OSError as error:
            _LOG.warning("The %s is not in the list of own %ss (%s): %s", what, what, self._path, error)

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield the entries, oldest first, without what cannot be read."""
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except OSError:
            return
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry


class RunIndex:
    """The list of one's own runs, across submit directories.

    Parameters
    ----------
    directory : `str`
        Directory for what is remembered between commands.
    """

    def __init__(self, directory: str) -> None:
        self._list = OwnList(directory, "runs.jsonl")

    def add(self, record: RunRecord, *, server: str) -> None:
        """Enter a run; failing to do so is warned about, not an error.

        Parameters
        ----------
        record : `RunRecord`
            Record of the run, with its request id.
        server : `str`
            URL of PanDA.
        """
        entry = {
            "request_id": record.request_id,
            "server": server,
            "submit_path": record.submit_path,
            "name": record.name,
            "submitted_at": record.content.get("submitted_at"),
        }
        self._list.append(entry, what="run")

    def entries(self, server: str) -> Iterator[Mapping[str, Any]]:
        """Yield what is known of the runs on a server, oldest first.

        Parameters
        ----------
        server : `str`
            URL of PanDA.
        """
        for entry in self._list.entries():
            if entry.get("server") == server and entry.get("request_id"):
                yield entry

    def find(self, server: str, *, request_id: int | None = None, name: str = "") -> RunRecord | None:
        """Return the record of a run, if it is in the list and still there.

        Parameters
        ----------
        server : `str`
            URL of PanDA.
        request_id : `int`, optional
            Number of its request.
        name : `str`, optional
            Its name.
        """
        for entry in reversed(list(self.entries(server))):
            if entry["request_id"] != request_id and (not name or entry.get("name") != name):
                continue
            try:
                record = read_record(str(entry["submit_path"]))
            except (PandaBpsError, OSError):
                continue
            if record.request_id == entry["request_id"]:
                return record
        return None


def read_plan(directory: str | os.PathLike[str]) -> WorkflowPlan:
    """Read the plan of a submit directory.

    Parameters
    ----------
    directory : path
        The directory.

    Raises
    ------
    RunNotFoundError
        Raised if it holds none.
    PlanError
        Raised if the plan is not understood.
    """
    path = Path(directory) / PLAN_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunNotFoundError(
            f"{directory} holds no {PLAN_NAME}, which is needed to restart a run."
        ) from None
    return parse_plan(text, source=os.fspath(path))
