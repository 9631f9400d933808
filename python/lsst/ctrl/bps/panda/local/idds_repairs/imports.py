"""Imports of iDDS that cost much and serve nothing here: what takes their
place while iDDS is imported, so that the server starts quickly and is small.
"""

from __future__ import annotations

__all__ = ["REPAIRS", "Absent", "DeepDiff", "import_lightly", "put_in_place", "taken_away"]

import importlib.util
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .record import Repair, module

_NOT_NEEDED = (
    # The agents talk over an event bus inside the process; this is the one between processes.
    "zmq",
    "zmq.auth",
    "zmq.auth.thread",
    # For tokens at iDDS's REST service, which has no port here.
    "jwt",
    "cryptography",
    "cryptography.hazmat",
    "cryptography.hazmat.backends",
    "cryptography.hazmat.primitives",
    "cryptography.hazmat.primitives.asymmetric",
    "cryptography.hazmat.primitives.asymmetric.rsa",
    # Types of columns in databases that are not used.
    "sqlalchemy.dialects.mysql",
    "sqlalchemy.dialects.oracle",
)

_OPTIONAL = ("wcwidth",)
"""Can be absent: what imports them does without them."""


class Absent:
    """Something of a module that was not imported; says so when it is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self._name}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Fail: what is called is not there."""
        raise RuntimeError(f"the embedded PanDA's iDDS works without {self._name}, which something called")


class _AbsentModule(types.ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self.__name__}.{name}")


def _canonical(value: Any) -> Any:
    """Make a value comparable whatever the order in its lists."""
    if isinstance(value, Mapping):
        return ("mapping", sorted(((repr(key), repr(_canonical(item))) for key, item in value.items())))
    if isinstance(value, list | tuple | set | frozenset):
        return (type(value).__name__, sorted(repr(_canonical(item)) for item in value))
    return value


class DeepDiff:
    """The part of ``deepdiff.DeepDiff`` that iDDS uses: whether the contents
    of two events differ.
    """

    def __init__(self, first: Any, second: Any, *, ignore_order: bool = False) -> None:
        same = first == second
        if not same and ignore_order:
            same = bool(_canonical(first) == _canonical(second))
        self._differ = not same

    def __bool__(self) -> bool:
        return self._differ


def put_in_place(name: str, **content: Any) -> None:
    """Put a small module in the place of a large one, for good."""
    small = types.ModuleType(name)
    # Who looks whether there is such a module finds a specification.
    small.__spec__ = importlib.util.spec_from_loader(name, loader=None)
    vars(small).update(content)
    sys.modules[name] = small


@contextmanager
def taken_away(names: tuple[str, ...] = _NOT_NEEDED, optional: tuple[str, ...] = _OPTIONAL) -> Iterator[None]:
    """Do without some modules while others are imported.

    Those that are loaded already stay.  Afterwards they can be imported as
    ever: only what was imported meanwhile holds an `Absent` for them.
    """
    placed: list[tuple[str, types.ModuleType | None]] = []
    for name in (*names, *optional):
        if name not in sys.modules:
            # None has an import fail.
            absent = _AbsentModule(name) if name in names else None
            sys.modules[name] = absent  # type: ignore[assignment]
            placed.append((name, absent))
    try:
        yield
    finally:
        for name, placeholder in placed:
            if sys.modules.get(name) is placeholder:
                sys.modules.pop(name, None)


def import_lightly() -> None:
    """Import the parts of iDDS that want what is not needed."""
    if "deepdiff" not in sys.modules:
        put_in_place("deepdiff", DeepDiff=DeepDiff)
    with taken_away():
        for grip in REPAIRS[0].grips:
            module(grip.partition(":")[0])


REPAIRS = (
    Repair(
        "heavy imports",
        "to compare two small dictionaries iDDS imports numpy and pydantic (by deepdiff); for an event bus "
        "between processes, for tokens at its REST service and for other databases, none of which is used "
        "here, zmq, cryptography and SQLAlchemy's dialects",
        "the start takes half as long again, and the server 60 MB more",
        (
            "idds.common.event:DeepDiff",
            "idds.core.authentication:jwt",
            "idds.agents.common.eventbus.msgeventbusbackend:zmq",
            "idds.orm.base.types:BINARY",
            "idds.client.clientmanager:tabulate",
        ),
        None,
    ),
)
