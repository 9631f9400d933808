"""How fast the embedded PanDA does what a real one does late: delays of
PanDA, JEDI, the pilot and iDDS, as one record with two presets.

The delays of ``production`` are those seen on a whole PanDA with pilots and
JEDI 1.0.4; iDDS's polling periods are its defaults.
"""

from __future__ import annotations

__all__ = ["PACES", "Pace", "parse_pace"]

from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Pace:
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


PACES = {
    "quick": Pace(
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
    "production": Pace(
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


def parse_pace(text: str) -> Pace:
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
    if name not in PACES:
        raise ValueError(f"pace {name!r} is not known; known: {', '.join(PACES)}")
    pace = PACES[name]
    kinds = {field.name: field.type for field in fields(Pace) if field.name != "name"}
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
