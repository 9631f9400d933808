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
import os
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ..errors import PandaBpsError, RunNotFoundError
from ..runs.files import read_model, write_text
from ..runs.record import OwnList
from ..settings.campaign import Value

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


class PartRecord(BaseModel):
    """A part, as it is written down."""

    model_config = ConfigDict(extra="forbid")

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


class CampaignRecord(BaseModel):
    """A campaign, as it is written down."""

    model_config = ConfigDict(extra="forbid", title="campaign record")

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
    parts: list[PartRecord]
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
        write_text(path, [self.model_dump_json(indent=1), "\n"])
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
    return read_model(directory, RECORD_NAME, CampaignRecord, holder="a campaign")


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


class CampaignEntry(BaseModel):
    """A campaign in the list of own campaigns."""

    config: str
    directory: str
    prepared_at: str


class CampaignIndex:
    """The list of one's own campaigns, across submit directories.

    Parameters
    ----------
    directory : `str`
        Directory for what is remembered between commands.
    """

    def __init__(self, directory: str) -> None:
        self._list = OwnList(directory, "campaign", CampaignEntry)

    def add(self, record: CampaignRecord) -> None:
        """Enter a campaign; failing to do so is warned about, not an error."""
        self._list.append(
            CampaignEntry(config=record.config, directory=record.directory, prepared_at=record.prepared_at)
        )

    def latest(self, config: str) -> CampaignRecord | None:
        """Return the latest campaign of a configuration that is still there.

        Parameters
        ----------
        config : `str`
            The user's file, absolute.
        """
        for entry in reversed(list(self._list.entries())):
            if entry.config != config:
                continue
            try:
                return read_campaign(entry.directory)
            except (PandaBpsError, OSError):
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
