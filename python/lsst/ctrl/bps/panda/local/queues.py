"""Queues of the embedded PanDA, from a small YAML file."""

from __future__ import annotations

__all__ = ["Queue", "Queues", "read_queues"]

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml


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
