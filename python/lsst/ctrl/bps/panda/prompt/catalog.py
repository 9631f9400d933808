"""The record of all groups of a prompt processing: what is written here before anything is done survives
any crash, and is all that a restart goes by.
"""

from __future__ import annotations

__all__ = ["Catalog", "Group", "GroupState", "ProcessingEntry", "ProcessingIndex", "StageTime"]

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel

from ..errors import PandaBpsError, RunNotFoundError
from ..runs.record import IndexFile

_SCHEMA = """
CREATE TABLE IF NOT EXISTS groups (
    name TEXT PRIMARY KEY, inputs TEXT NOT NULL, arrived REAL NOT NULL, state TEXT NOT NULL,
    attempt INTEGER NOT NULL, run TEXT NOT NULL, chain TEXT NOT NULL, run_id INTEGER, error TEXT NOT NULL,
    ended REAL
);
CREATE INDEX IF NOT EXISTS groups_state ON groups (state);
CREATE TABLE IF NOT EXISTS times (
    name TEXT NOT NULL, attempt INTEGER NOT NULL, stage TEXT NOT NULL, begun REAL NOT NULL,
    ended REAL NOT NULL, PRIMARY KEY (name, attempt, stage)
);
"""


class GroupState(StrEnum):
    """Where a group is."""

    WAITING = "waiting"
    """It has arrived; an attempt of it may have failed."""

    PLANNING = "planning"
    """An attempt has begun, and may or may not have been submitted."""

    SUBMITTED = "submitted"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Group:
    """A group of images."""

    name: str
    inputs: tuple[str, ...]
    """Paths of files, or data IDs as JSON."""

    arrived: float
    """When the last image was complete, s since 1970."""

    state: GroupState = GroupState.WAITING
    attempt: int = 0
    """Number of the current attempt, or of those that failed; from 1."""

    run: str = ""
    """Collection of the outputs of this attempt."""

    chain: str = ""
    """Collection of the outputs of the night."""

    run_id: int | None = None
    error: str = ""
    """Why the last attempt that failed did so."""

    ended: float | None = None


@dataclass(frozen=True, slots=True)
class StageTime:
    """When a stage of an attempt began and ended, s since 1970."""

    name: str
    attempt: int
    stage: str
    begun: float
    ended: float


class Catalog:
    """The groups and the times of their stages, in one SQLite file; each call is one transaction."""

    def __init__(self, path: Path, *, must_exist: bool = False) -> None:
        if must_exist and not path.is_file():
            raise RunNotFoundError(
                f"Nothing was processed yet: there is no {path}. Start it: panda_bps prompt start"
            )
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=30.0)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise PandaBpsError(f"The catalogue {path} cannot be used: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def add(self, name: str, inputs: Iterable[str], arrived: float) -> bool:
        """Add a group that has arrived; tell whether it is new."""
        done = self._connection.execute(
            "INSERT OR IGNORE INTO groups VALUES (?, ?, ?, ?, 0, '', '', NULL, '', NULL)",
            (name, json.dumps([*inputs]), arrived, GroupState.WAITING),
        )
        return done.rowcount == 1

    def update(self, name: str, **values: object) -> Group:
        """Change a group, and return it."""
        columns = ", ".join(f"{column} = ?" for column in values)
        self._connection.execute(f"UPDATE groups SET {columns} WHERE name = ?", (*values.values(), name))
        (group,) = self._select("WHERE name = ?", name)
        return group

    def groups(self, *states: GroupState) -> list[Group]:
        """Return the groups in some states, or all, in the order of their arrival."""
        marks = ",".join("?" * len(states))
        return self._select(f"WHERE state IN ({marks})" if states else "", *states)

    def _select(self, where: str, *values: object) -> list[Group]:
        rows = self._connection.execute(
            "SELECT name, inputs, arrived, state, attempt, run, chain, run_id, error, ended FROM groups "
            f"{where} ORDER BY arrived, name",
            values,
        )
        return [
            Group(row[0], tuple(json.loads(row[1])), row[2], GroupState(row[3]), *row[4:]) for row in rows
        ]

    def note(self, times: Sequence[StageTime]) -> None:
        """Keep the times of stages; those of the same stage are replaced."""
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(
            "INSERT OR REPLACE INTO times VALUES (?, ?, ?, ?, ?)",
            [(each.name, each.attempt, each.stage, each.begun, each.ended) for each in times],
        )
        self._connection.execute("COMMIT")

    def times(self, name: str = "") -> list[StageTime]:
        """Return the times of the stages of a group, or of all."""
        rows = self._connection.execute(
            "SELECT name, attempt, stage, begun, ended FROM times WHERE ? IN ('', name) "
            "ORDER BY name, attempt, begun",
            (name,),
        )
        return [StageTime(*row) for row in rows]


class ProcessingEntry(BaseModel):
    """A prompt processing in the list of the user's."""

    config: str
    """Absolute path of its configuration."""

    @property
    def key(self) -> str:
        """How an address names it."""
        return hashlib.sha256(self.config.encode()).hexdigest()[:12]


class ProcessingIndex:
    """The list of the user's prompt processings, kept in the user's state directory."""

    def __init__(self, directory: str) -> None:
        self._list = IndexFile(directory, "processing", ProcessingEntry)

    def add(self, config: Path) -> None:
        """Enter a processing that is started; failing to do so is warned about, not an error."""
        entry = ProcessingEntry(config=str(config.absolute()))
        if entry not in self.entries():
            self._list.append(entry)

    def entries(self) -> Iterator[ProcessingEntry]:
        """Yield the processings, the newest first."""
        return reversed([*self._list.entries()])
