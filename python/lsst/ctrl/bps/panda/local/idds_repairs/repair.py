"""What a repair is, and the tools to make one."""

from __future__ import annotations

__all__ = ["Repair", "Overlay", "module"]

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..settings import Timing


class Overlay:
    """A module or object with some attributes replaced."""

    def __init__(self, real: Any, **replaced: Any) -> None:
        self.__dict__.update(replaced)
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def module(name: str) -> Any:
    """Import a module of iDDS, none of which can be imported at the top: iDDS
    reads its configuration when it is imported.
    """
    return importlib.import_module(name)


@dataclass(frozen=True, slots=True)
class Repair:
    """One repair."""

    name: str
    reason: str
    symptom: str
    """What happens without it."""

    grips: tuple[str, ...]
    """Private parts it needs, ``module:attribute.attribute``."""

    apply: Callable[[Timing], None] | None
    """`None` if it is done by `before_import`, `unlock_everything` or
    `offer_task_lookup`."""
