"""What is written down about a campaign: a record in its submit directory,
and the list of one's own campaigns.

The record is written before the first submission and after each, so that
what was interrupted can be continued.
"""

from __future__ import annotations

__all__ = [
    "RECORD_NAME",
    "CampaignIndex",
    "CampaignRecord",
    "PartRecord",
    "PartState",
    "find_campaign",
    "lock_campaign",
    "read_campaign",
]

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from ..errors import PandaBpsError, RunNotFoundError
from ..runrecord import write_text
from .shares import Value

_LOG = logging.getLogger(__name__)

RECORD_NAME = "panda_campaign.json"
RECORD_FORMAT = 1


class PartState(StrEnum):
    """How far the submission of a part is."""

    PREPARED = "prepared"
    SUBMITTING = "submitting"
    """Begun; whether the server has it is to be looked up."""
    SUBMITTED = "submitted"
    FAILED = "failed"
    """Not submitted; ``error`` says why."""


@dataclass(slots=True)
class PartRecord:
    """A part, as it is written down."""

    site: str
    compute_site: str
    share: float
    values: list[Value]
    file: str
    """Its configuration, absolute."""

    submit_path: str
    run: str
    output_run: str
    butler: str
    state: PartState = PartState.PREPARED
    request_id: int | None = None
    submitted_at: str = ""
    error: str = ""

    def __post_init__(self) -> None:
        self.state = PartState(self.state)


@dataclass(slots=True)
class CampaignRecord:
    """A campaign, as it is written down."""

    name: str
    directory: str
    """Submit directory, absolute."""

    config: str
    """The user's file, absolute."""

    digest: str
    """Of the content of that file when the campaign was prepared."""

    service_class: str
    partition: str
    prepared_at: str
    parts: list[PartRecord] = field(default_factory=list)
    format: int = RECORD_FORMAT

    @property
    def begun(self) -> bool:
        """Whether a submission was tried."""
        return any(part.state is not PartState.PREPARED for part in self.parts)

    @property
    def complete(self) -> bool:
        """Whether all sites have their runs."""
        return all(part.state is PartState.SUBMITTED for part in self.parts)

    def write(self) -> Path:
        """Write the record into the campaign's directory."""
        path = Path(self.directory) / RECORD_NAME
        write_text(path, [json.dumps(asdict(self), indent=1), "\n"])
        return path


def read_campaign(directory: str | os.PathLike[str]) -> CampaignRecord:
    """Read the record of a campaign.

    Parameters
    ----------
    directory : path
        Its submit directory, or a file in it.

    Raises
    ------
    RunNotFoundError
        Raised if there is none.
    PandaBpsError
        Raised if it is damaged, or of a newer version.
    """
    path = Path(directory)
    path = path / RECORD_NAME if path.is_dir() else path.parent / RECORD_NAME
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        number = content["format"]
        if number != RECORD_FORMAT:
            raise PandaBpsError(
                f"{path} has format {number!r} and this version of the plugin reads {RECORD_FORMAT}; use the "
                "version that wrote it."
            )
        parts = [PartRecord(**part) for part in content.pop("parts")]
        record = CampaignRecord(**content, parts=parts)
    except FileNotFoundError:
        raise RunNotFoundError(
            f"{directory} holds no {RECORD_NAME}, so it is not the submit directory of a campaign."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PandaBpsError(f"{path} is damaged: {error}.") from error
    return record


@contextlib.contextmanager
def lock_campaign(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Keep others from submitting the same campaign at the same time.

    Parameters
    ----------
    directory : path
        Its submit directory.

    Raises
    ------
    PandaBpsError
        Raised if somebody does.
    """
    with open(Path(directory) / f".{RECORD_NAME}.lock", "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PandaBpsError(f"Another process works on the campaign in {directory} just now.") from None
        yield


class CampaignIndex:
    """The list of one's own campaigns, across submit directories.

    Parameters
    ----------
    directory : `str`
        Directory for what is remembered between commands.
    """

    def __init__(self, directory: str) -> None:
        self._path = Path(directory) / "campaigns.jsonl"

    def add(self, record: CampaignRecord) -> None:
        """Enter a campaign; failing to do so is warned about, not an error.

        Parameters
        ----------
        record : `CampaignRecord`
            Its record.
        """
        entry = {"config": record.config, "directory": record.directory, "prepared_at": record.prepared_at}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(self._path, "a", encoding="utf-8") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                stream.write(json.dumps(entry) + "\n")
        except OSError as error:
            _LOG.warning("The campaign is not in the list of own campaigns (%s): %s", self._path, error)

    def latest(self, config: str) -> CampaignRecord | None:
        """Return the latest campaign of a configuration that is still there.

        Parameters
        ----------
        config : `str`
            The user's file, absolute.
        """
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except OSError:
            return None
        for line in reversed(lines):
            try:
                entry = json.loads(line)
                if entry["config"] == config:
                    return read_campaign(str(entry["directory"]))
            except (ValueError, KeyError, TypeError, PandaBpsError):
                continue
        return None


def find_campaign(name: str, index: CampaignIndex) -> CampaignRecord:
    """Find a campaign by its directory or by its configuration.

    Parameters
    ----------
    name : `str`
        Submit directory of the campaign, or the YAML it was made from.
    index : `CampaignIndex`
        Own campaigns.

    Raises
    ------
    RunNotFoundError
        Raised if there is none.
    """
    path = Path(name)
    if path.is_dir() or path.name == RECORD_NAME:
        return read_campaign(path)
    found = index.latest(str(path.absolute()))
    if found is None:
        raise RunNotFoundError(
            f"No campaign was prepared from {name} by this user on this machine. Give the campaign's submit "
            "directory, or begin one with panda_bps campaign submit."
        )
    return found
