"""Settings of an embedded PanDA, its timing, and the files of queues and faults; also the lock of the
state directory.
"""

from __future__ import annotations

__all__ = [
    "FaultRule",
    "KEEP_WORK",
    "Queue",
    "Queues",
    "SETTINGS_FILE",
    "ServerSettings",
    "TIMINGS",
    "Timing",
    "parse_faults",
    "parse_timing",
    "read_faults",
    "read_queues",
    "read_settings",
    "take_lock",
    "write_settings",
]

import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TextIO, TypeVar

import yaml

from ..errors import LocalPandaError
from .endpoint import LOCK_FILE

_T = TypeVar("_T")
_NO_OTHER_KEYS = {"extra": "forbid"}
"""Configuration of models that pydantic reads: other keys are errors."""

_JOB_ACTIONS = ("fail", "lose", "delay")
_FLOW_ACTIONS = ("drop", "duplicate")
_TASK_ACTIONS = ("refuse", "duplicate", "hold")


@dataclass(frozen=True, slots=True)
class Timing:
    """Delays of PanDA and iDDS in seconds, chosen with ``--pace``."""

    name: str

    activation: float
    """From the release of an input to its job being ready to run."""

    command: float
    """From the registration of a kill, retry or finish to its execution."""

    heartbeat: float
    """From a kill command to its delivery: PanDA sends it in reply to a pilot's
    heartbeat, and a running payload goes on until then."""

    finalise: float
    """From the end of the last job of a task to the task's final status."""

    failed_attempt: float
    """From the end of a payload that failed to the pilot's report."""

    grace: float
    """From SIGTERM to SIGKILL, for a payload that has to end."""

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

    refused_attempts: bool
    """Whether attempts are made that the runner refuses because of ``retryUnlessExit``, of which PanDA knows
    nothing."""

    task_walltime: bool = False
    """Whether a job that runs longer than its task's wall time is ended.  JEDI
    1.0.4 does not read that; the limit of a queue always holds."""


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
        refused_attempts=False,
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
        refused_attempts=True,
    ),
}
"""The presets by name.

The delays of ``production`` are those seen on a whole PanDA with pilots and
JEDI 1.0.4; iDDS's polling periods are its defaults.
"""


def parse_timing(text: str) -> Timing:
    """Parse a timing: the name of a preset, with changes if wanted.

    For instance ``quick`` or ``production,heartbeat=30,finalise=5``;
    `ValueError` names what is not known.
    """
    name, *changes = [part.strip() for part in text.split(",")]
    if name not in TIMINGS:
        raise ValueError(f"pace {name!r} is not known; known: {', '.join(TIMINGS)}")
    timing = TIMINGS[name]
    kinds = {field.name: field.type for field in fields(Timing) if field.name != "name"}
    for change in changes:
        key, _, value = change.partition("=")
        if key not in kinds:
            raise ValueError(f"pace {text!r}: {key!r} is not known; known: {', '.join(kinds)}")
        try:
            changed: dict[str, Any] = {key: _convert(kinds[key], value)}
            timing = replace(timing, **changed)
        except ValueError:
            raise ValueError(f"pace {text!r}: {value!r} is no value for {key}") from None
    return timing


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

    __pydantic_config__: ClassVar = _NO_OTHER_KEYS

    def __post_init__(self) -> None:
        for name in ("cores", "memory", "walltime"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, not a number of at least 0")


@dataclass(frozen=True, slots=True)
class Queues:
    """All queues."""

    known: Mapping[str, Queue] = field(default_factory=dict)
    """By name; if empty, every name is a queue without limits."""

    def accepts(self, name: str) -> bool:
        """Whether there is such a queue."""
        return not self.known or name in self.known

    def get(self, name: str) -> Queue:
        """Return the limits of a queue."""
        return self.known.get(name, Queue())


def read_queues(path: str | Path) -> Queues:
    """Read queues from YAML, a mapping of names to limits; `ValueError` names what is wrong."""
    content = _read_yaml(path)
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: expected a mapping of queue names to limits")
    return Queues(
        {
            str(name): _validated(Queue, values or {}, f"{path}: queue {name}")
            for name, values in content.items()
        }
    )


@dataclass(frozen=True, slots=True)
class FaultRule:
    """A rule by which faults are injected, see `~.faults.Faults`."""

    action: Literal["fail", "lose", "delay", "drop", "duplicate", "refuse", "hold"]
    """``fail``, ``lose`` or ``delay`` of a job; ``drop`` or ``duplicate`` of
    a message or command; ``refuse`` or ``duplicate`` of a task that iDDS
    submits, or ``hold``, as if no queue could take its jobs."""

    target: Literal["job", "task", "to_idds", "to_panda", "command"] = "job"
    """``job``; ``task``; ``to_idds`` or ``to_panda`` (messages); ``command``
    (abort, retry and the like through the relay)."""

    match: str = ".*"
    """Regular expression, found anywhere in ``<task name> <pseudo-input>`` of
    a job, the name of a task, the type of a message, the name of a command."""

    exit_code: int = 1
    """Exit code of a job that is to fail."""

    seconds: float = 1.0
    """Delay of a job's start."""

    attempts: int = 0
    """Number of first attempts to which the rule applies; 0 means all."""

    times: int = 0
    """Largest number of times that the rule applies; 0 means no limit."""

    probability: float = 1.0

    __pydantic_config__: ClassVar = _NO_OTHER_KEYS

    def __post_init__(self) -> None:
        possible = {"job": _JOB_ACTIONS, "task": _TASK_ACTIONS}.get(self.target, _FLOW_ACTIONS)
        if self.action not in possible:
            raise ValueError(
                f"action {self.action!r} does not go with target {self.target}; "
                f"possible: {', '.join(possible)}"
            )
        try:
            re.compile(self.match)
        except re.error as error:
            raise ValueError(f"match {self.match!r} is no regular expression: {error}") from None


def parse_faults(content: object, *, origin: str = "faults") -> list[FaultRule]:
    """Make rules of a list of mappings; `ValueError` names what is wrong."""
    if not isinstance(content, list):
        raise ValueError(f"{origin}: expected a list of rules")
    rules = []
    for item in content:
        if not isinstance(item, Mapping) or "action" not in item:
            raise ValueError(f"{origin}: {item!r} is no rule; each needs at least an 'action'")
        rules.append(_validated(FaultRule, item, origin))
    return rules


def read_faults(path: str | Path) -> list[FaultRule]:
    """Read rules from YAML: a list of mappings with the keys of `FaultRule`."""
    return parse_faults(_read_yaml(path), origin=str(path))


def _read_yaml(path: str | Path) -> object:
    with open(path) as stream:
        try:
            return yaml.safe_load(stream)
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: not YAML: {error}") from None


def _validated(kind: type[_T], content: object, origin: str) -> _T:
    """Make a model of what was read; `ValueError` names place, key, value and what is allowed."""
    # Imported here, since most servers have no such files and start faster without it.
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        raise ValueError(f"{origin}: {_reason(kind, error.errors()[0])}") from None


def _reason(kind: type[Any], error: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{key!r} is not known; known: {', '.join(item.name for item in fields(kind))}"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "literal_error":
        return f"{key} {error['input']!r} is not known; known: {error['ctx']['expected']}"
    if not key:
        return f"{error['input']!r} is not a mapping of {', '.join(item.name for item in fields(kind))}"
    return f"{key} is {error['input']!r}: {error['msg'][:1].lower()}{error['msg'][1:]}"


SETTINGS_FILE = "settings.json"
KEEP_WORK = ("never", "failed", "always")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What a server is started with; a later start keeps the values that it does not change."""

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
    """Timing, see `parse_timing`."""

    queues: str = ""
    """Path of a YAML file, see `read_queues`."""

    faults: str = ""
    """Path of a YAML file, see `read_faults`."""

    keep_work: str = "failed"
    """Work directories to keep: ``never``, ``failed`` or ``always``."""

    issuer: str = ""
    """URL of an OpenID issuer whose tokens are accepted, too: its users can
    run commands as you."""

    loglevel: str = "WARNING"
    """Level of iDDS's logs."""

    warm_workers: bool = True
    """Whether scripts that jobs call are answered by processes that are ready."""

    warm_scripts: str = "pipetask,butler"
    """Names of these scripts, separated by commas."""

    parent: int = 0
    """Process to end with; 0 means none."""

    __pydantic_config__: ClassVar = _NO_OTHER_KEYS

    def checked(self) -> ServerSettings:
        """Check all values and the files that they name; `LocalPandaError` for one that cannot be used."""
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
    """Read the settings of a state directory; defaults if there are none.

    They were checked when they were written.
    """
    path = Path(directory) / SETTINGS_FILE
    try:
        value = json.loads(path.read_text())
        known = {item.name for item in fields(ServerSettings)}
        return ServerSettings(**{key: item for key, item in value.items() if key in known})
    except FileNotFoundError:
        return ServerSettings()
    except (ValueError, AttributeError) as error:
        raise LocalPandaError(f"{path} cannot be read ({error}); remove it") from None


def write_settings(directory: str | Path, changes: dict[str, Any]) -> ServerSettings:
    """Change settings and keep them for later starts; `None` keeps the old value."""
    given = {key: value for key, value in changes.items() if value is not None}
    target = Path(directory) / SETTINGS_FILE
    values = {**asdict(read_settings(directory)), **given}
    try:
        settings = _validated(ServerSettings, values, f"{target}").checked()
    except ValueError as error:
        raise LocalPandaError(str(error)) from None
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        json.dump(asdict(settings), stream, indent=1)
    os.replace(temporary, target)
    return settings


def take_lock(
    directory: Path, *, patience: float = 0.0, sleep: Callable[[float], None] = time.sleep
) -> TextIO | None:
    """Take the lock of a state directory, which is held until the returned file is closed.

    It is `None` if another process has the lock for longer than ``patience``
    seconds; it is also taken for a moment to tidy up.
    """
    stream = (directory / LOCK_FILE).open("w")
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
