"""Settings of an embedded PanDA, as they are kept in its state directory: queues, pace, and the lock of
that directory.

The delays of ``production`` are those seen on a whole PanDA with pilots and
JEDI 1.0.4; iDDS's polling periods are its defaults.
"""

from __future__ import annotations

__all__ = [
    "TIMINGS",
    "Timing",
    "Queue",
    "Queues",
    "SETTINGS_FILE",
    "ServerSettings",
    "parse_timing",
    "read_queues",
    "read_settings",
    "take_lock",
    "write_settings",
]

import fcntl
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TextIO

import yaml

from ..errors import LocalPandaError
from .faults import read_faults


@dataclass(frozen=True, slots=True)
class Timing:
    """Delays in seconds."""

    name: str

    activation: float
    """From the release of an input to its job being ready to run."""

    command: float
    """From the registration of a kill, retry or finish to its execution."""

    heartbeat: float
    """From a kill command to the pilot hearing of it: PanDA sends it in reply
    to a heartbeat, so a running payload goes on until then."""

    finalise: float
    """From the end of the last job of a task to the task's final status."""

    failed_attempt: float
    """What a pilot adds to a job that failed, before it reports."""

    grace: float
    """Between SIGTERM and SIGKILL to a payload that has to end."""

    poll: int
    """Polling period of iDDS, whole seconds."""

    timer: float
    """Period of the timers that look for new work in iDDS (10 s there)."""

    message_age: float
    """Age at which iDDS sends a message on (60 s there)."""

    event_states: bool
    """Whether the states of single events can be read.  On a real PanDA with
    panda-client 2.2.0 they cannot: the client sends a form that the server
    does not read, and iDDS takes all payloads of a failed job as failed."""


TIMINGS = {
    "quick": Timing(
        name="quick",
        activation=0.0,
        command=0.2,
        heartbeat=2.0,
        finalise=0.0,
        failed_attempt=0.0,
        grace=2.0,
        poll=1,
        timer=1.0,
        message_age=0.0,
        event_states=True,
    ),
    "production": Timing(
        name="production",
        activation=7.0,
        command=10.0,
        heartbeat=1800.0,
        finalise=60.0,
        failed_attempt=115.0,
        grace=10.0,
        poll=10,
        timer=10.0,
        message_age=60.0,
        event_states=False,
    ),
}
"""The presets by name."""


def parse_timing(text: str) -> Timing:
    """Read a pace: a preset's name, with changes if wanted.

    Parameters
    ----------
    text : `str`
        For instance ``quick`` or ``production,heartbeat=30,finalise=5``.

    Raises
    ------
    ValueError
        Raised for a name, a key or a value that is not known.
    """
    name, *changes = [part.strip() for part in text.split(",")]
    if name not in TIMINGS:
        raise ValueError(f"pace {name!r} is not known; known: {', '.join(TIMINGS)}")
    pace = TIMINGS[name]
    kinds = {field.name: field.type for field in fields(Timing) if field.name != "name"}
    for change in changes:
        key, _, value = change.partition("=")
        if key not in kinds:
            raise ValueError(f"pace {text!r}: {key!r} is not known; known: {', '.join(kinds)}")
        try:
            changed: dict[str, Any] = {key: _convert(kinds[key], value)}
            pace = replace(pace, **changed)
        except ValueError:
            raise ValueError(f"pace {text!r}: {value!r} is no value for {key}") from None
    return pace


def _convert(kind: object, value: str) -> float | int | bool:
    if kind == "bool":
        if value.lower() not in ("true", "false"):
            raise ValueError(value)
        return value.lower() == "true"
    number = int(value) if kind == "int" else float(value)
    if number < 0 or (kind == "int" and number < 1):
        raise ValueError(value)
    return number


@dataclass(frozen=True, slots=True)
class Queue:
    """Limits of a queue; 0 means none."""

    cores: int = 0
    """Cores that its jobs may use together."""

    memory: int = 0
    """Resident memory of a job, MB."""

    walltime: int = 0
    """Run time of a job, seconds."""

    cloud: str = ""
    site: str = ""


@dataclass(frozen=True, slots=True)
class Queues:
    """All queues."""

    known: Mapping[str, Queue] = field(default_factory=dict)
    """Empty: every name is a queue without limits."""

    def accepts(self, name: str) -> bool:
        """Tell whether there is such a queue."""
        return not self.known or name in self.known

    def get(self, name: str) -> Queue:
        """Tell the limits of a queue."""
        return self.known.get(name, Queue())


def read_queues(path: str | Path) -> Queues:
    """Read queues from YAML: a mapping of names to limits.

    Raises
    ------
    ValueError
        Raised for anything that is not understood, naming it.
    """
    with open(path) as stream:
        content = yaml.safe_load(stream)
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: expected a mapping of queue names to limits")
    known_keys = {item.name: item.type for item in fields(Queue)}
    queues = {}
    for name, values in content.items():
        for key, value in (values or {}).items():
            if key not in known_keys:
                known = ", ".join(known_keys)
                raise ValueError(f"{path}: queue {name}: {key!r} is not known; known: {known}")
            if known_keys[key] == "int" and (not isinstance(value, int) or value < 0):
                raise ValueError(f"{path}: queue {name}: {key} is {value!r}, not a number of at least 0")
        queues[str(name)] = Queue(**(values or {}))
    return Queues(queues)


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
    """See `~.pace.parse_timing`."""

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
            parse_timing(self.pace)
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


def take_lock(
    directory: Path, *, patience: float = 0.0, sleep: Callable[[float], None] = time.sleep
) -> TextIO | None:
    """Take the lock.

    Parameters
    ----------
    directory : `~pathlib.Path`
        State directory.
    patience : `float`, optional
        Seconds to wait for it: it is also taken for a moment to tidy up.
    sleep : callable, optional
        Time, for tests.

    Returns
    -------
    stream : file or `None`
        Holds the lock until it is closed; `None` if another process has it.
    """
    stream = (directory / "lock").open("w")
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if patience <= 0:
                stream.close()
                return None
            patience -= 0.05
            sleep(0.05)
        else:
            return stream
