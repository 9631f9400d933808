"""Settings of an embedded PanDA, as they are kept in its state directory."""

from __future__ import annotations

__all__ = ["SETTINGS_FILE", "ServerSettings", "read_settings", "write_settings"]

import json
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from lsst.ctrl.bps.panda.errors import LocalPandaError

from .faults import read_faults
from .pace import parse_pace
from .queues import read_queues

SETTINGS_FILE = "settings.json"
KEEP_WORK = ("never", "failed", "always")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What a server is started with; a later start keeps what it does not
    change.
    """

    host: str = "127.0.0.1"
    """Address to listen on; only loopback addresses are accepted."""

    port: int = 0
    """Port to listen on if it is free; 0 means any."""

    slots: int = 0
    """Cores that jobs may use together; 0 means those of the machine."""

    database: str = ""
    """SQLAlchemy URL of a PostgreSQL database; empty means SQLite files in
    the state directory."""

    pace: str = "quick"
    """See `~.pace.parse_pace`."""

    queues: str = ""
    """Path of a YAML file, see `~.queues.read_queues`."""

    faults: str = ""
    """Path of a YAML file, see `~.faults.read_faults`."""

    keep_work: str = "failed"
    """Work directories to keep: ``never``, ``failed`` or ``always``."""

    issuer: str = ""
    """URL of an OpenID issuer: tokens are needed, and checked with its
    keys."""

    all_users: bool = False
    """Let other users of the machine in; they can run commands as you."""

    loglevel: str = "WARNING"
    """Level of iDDS's logs."""

    parent: int = 0
    """Process to end with; 0 means none."""

    def checked(self) -> ServerSettings:
        """Check all values, also the files that they name.

        Raises
        ------
        LocalPandaError
            Raised for a value that cannot be used.
        """
        if self.host not in ("127.0.0.1", "localhost"):
            raise LocalPandaError(
                f"the embedded PanDA listens on 127.0.0.1 only, not on {self.host!r}: "
                "whoever reaches it can run commands as you"
            )
        if self.slots < 0:
            raise LocalPandaError(f"the number of slots is {self.slots}; it needs to be at least 1")
        if self.keep_work not in KEEP_WORK:
            raise LocalPandaError(f"keep_work is {self.keep_work!r}; possible: {', '.join(KEEP_WORK)}")
        if self.database and not self.database.startswith("postgresql"):
            raise LocalPandaError(
                f"the database is {self.database.partition(':')[0]!r}; "
                "possible: postgresql://USER:PASSWORD@HOST/NAME, or none for SQLite"
            )
        self._check_texts()
        return self

    def _check_texts(self) -> None:
        try:
            parse_pace(self.pace)
            if self.queues:
                read_queues(self.queues)
            if self.faults:
                read_faults(self.faults)
        except (ValueError, OSError) as error:
            raise LocalPandaError(str(error)) from error


def read_settings(directory: str | Path) -> ServerSettings:
    """Read the settings of a state directory; defaults if there are none."""
    try:
        value = json.loads((Path(directory) / SETTINGS_FILE).read_text())
    except FileNotFoundError:
        return ServerSettings()
    except ValueError as error:
        path = Path(directory) / SETTINGS_FILE
        raise LocalPandaError(f"{path} cannot be read ({error}); remove it") from None
    known = {item.name for item in fields(ServerSettings)}
    return ServerSettings(**{key: item for key, item in value.items() if key in known})


def write_settings(directory: str | Path, changes: dict[str, Any]) -> ServerSettings:
    """Change settings and keep them.

    Parameters
    ----------
    directory : `str` or `~pathlib.Path`
        State directory.
    changes : `dict`
        New values; `None` keeps the old one.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    settings = replace(read_settings(directory), **given).checked()
    target = Path(directory) / SETTINGS_FILE
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        json.dump(asdict(settings), stream, indent=1)
    os.replace(temporary, target)
    return settings
