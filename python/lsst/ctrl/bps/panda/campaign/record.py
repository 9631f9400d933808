"""The record of a campaign in its submit directory, and the list of the user's campaigns.

The record is written before the first submission and after each, so that an interrupted submission can be
continued.
"""

from __future__ import annotations

__all__ = [
    "RECORD_NAME",
    "CampaignIndex",
    "CampaignLine",
    "CampaignRecord",
    "PartRecord",
    "PartState",
    "find_campaign",
    "lock_campaign",
    "read_campaign",
]

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ..errors import PandaBpsError, RunNotFoundError
from ..files import write_text
from ..runs.files import hold_lock, read_model
from ..runs.record import IndexFile
from ..settings.campaign import Value

RECORD_NAME = "panda_campaign.json"
RECORD_FORMAT = 1


class PartState(StrEnum):
    """Progress of the submission of a part."""

    PREPARED = "prepared"
    SUBMITTING = "submitting"
    """Begun; the server has to be asked whether it has the run."""
    SUBMITTED = "submitted"
    FAILED = "failed"
    """Not submitted; ``error`` says why."""


class PartRecord(BaseModel):
    """The part of one site in the record."""

    model_config = ConfigDict(extra="forbid")

    site: str
    compute_site: str
    share: float
    values: list[Value]
    file: str
    """Absolute path of its configuration."""

    submit_path: str
    run: str
    output_run: str
    butler: str
    state: PartState = PartState.PREPARED
    request_id: int | None = None
    submitted_at: str = ""
    error: str = ""


class CampaignRecord(BaseModel):
    """The record of a campaign."""

    model_config = ConfigDict(extra="forbid", title="campaign record")

    name: str
    directory: str
    """Absolute path of the submit directory."""

    config: str
    """Absolute path of the user's file."""

    digest: str
    """Digest of the content of that file when the campaign was prepared."""

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
        write_text(path, [self.model_dump_json(indent=1), "\n"], durable=True)
        return path


def read_campaign(directory: str | os.PathLike[str]) -> CampaignRecord:
    """Read the record of a campaign in its submit directory, or from a file there."""
    return read_model(directory, RECORD_NAME, CampaignRecord, holder="a campaign")


@contextlib.contextmanager
def lock_campaign(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes from submitting the campaign at the same time; an error if one does already."""
    with hold_lock(
        directory, RECORD_NAME, busy=f"Another process is working on the campaign in {directory}."
    ):
        yield


class CampaignEntry(BaseModel):
    """A campaign in the list of own campaigns."""

    config: str
    directory: str
    prepared_at: str


@dataclass(frozen=True, slots=True)
class CampaignLine:
    """A campaign in a list, as its own record has it now."""

    prepared: str
    runs: tuple[int | None, ...] | None
    """Run of each site, `None` where it is not submitted; `None` if the campaign is gone."""

    path: str
    config: str
    key: str
    """How an address names it."""

    record: CampaignRecord | None

    @property
    def submitted(self) -> str:
        """How many sites have their runs, for people."""
        return f"{sum(run is not None for run in self.runs)} of {len(self.runs)}" if self.runs else "gone"


class CampaignIndex:
    """The list of the user's campaigns in all submit directories, kept in the user's state directory."""

    def __init__(self, directory: str) -> None:
        self._list = IndexFile(directory, "campaign", CampaignEntry)

    def add(self, record: CampaignRecord) -> None:
        """Enter a campaign; failing to do so is warned about, not an error."""
        self._list.append(
            CampaignEntry(config=record.config, directory=record.directory, prepared_at=record.prepared_at)
        )

    def entries(self) -> list[CampaignEntry]:
        """Return the campaigns, oldest first."""
        return list(self._list.entries())

    def lines(self) -> Iterator[CampaignLine]:
        """Yield the campaigns, the newest first, with what their records say."""
        for entry in reversed(self.entries()):
            record = None
            with contextlib.suppress(PandaBpsError, OSError):
                record = read_campaign(entry.directory)
            yield CampaignLine(
                prepared=entry.prepared_at,
                runs=tuple(part.request_id for part in record.parts) if record is not None else None,
                path=entry.directory,
                config=entry.config,
                key=hashlib.sha256(entry.directory.encode()).hexdigest()[:12],
                record=record,
            )

    def latest(self, config: str) -> CampaignRecord | None:
        """Return the latest campaign that was made from a file (absolute path) and still exists."""
        for entry in reversed(self.entries()):
            if entry.config != config:
                continue
            try:
                return read_campaign(entry.directory)
            except (PandaBpsError, OSError):
                continue
        return None


def find_campaign(name: str, index: CampaignIndex) -> CampaignRecord:
    """Find a campaign by its submit directory, or by the YAML file that it was made from."""
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
