"""Everything that touches private parts of iDDS, in one place: each repair
with its reason and the symptom without it, and the self-test that refuses an
iDDS whose private parts are not known.

`before_import` has to be called before anything of ``idds.agents`` or
``idds.orm`` is imported.
"""

from __future__ import annotations

__all__ = [
    "LOOP_WAKER",
    "IDDS_VERSION",
    "REPAIRS",
    "Repair",
    "before_import",
    "missing_grips",
    "offer_task_lookup",
    "repair",
    "self_test",
    "settle_client",
    "tune",
    "unlock_everything",
    "wrong_versions",
]

import functools
import importlib.metadata

from ..settings import Timing
from . import correctness, embedding, speed
from .correctness import offer_task_lookup
from .embedding import import_lightly, prepare_sqlalchemy, unlock_everything
from .repair import Repair, module
from .speed import LOOP_WAKER, settle_client, tune

IDDS_VERSION = "2.6.21"
"""The version whose private parts are known."""

REPAIRS: tuple[Repair, ...] = (
    *embedding.REPAIRS,
    *correctness.REPAIRS,
    *speed.REPAIRS,
)
"""All repairs."""

_DISTRIBUTIONS = ("idds-server", "idds-common", "idds-workflow", "idds-doma", "idds-client", "idds-prompt")


def before_import() -> None:
    """Prepare the process for iDDS, and import what would import too much."""
    prepare_sqlalchemy()
    import_lightly()


def wrong_versions() -> list[str]:
    """List distributions of iDDS that are absent or of another version."""
    wrong = []
    for name in _DISTRIBUTIONS:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{name} is not installed")
            continue
        if version != IDDS_VERSION:
            wrong.append(f"{name} is {version}")
    return wrong


def missing_grips() -> list[str]:
    """List private parts that are not where the repairs expect them."""
    missing = []
    for item in REPAIRS:
        for grip in item.grips:
            name, _, path = grip.partition(":")
            try:
                functools.reduce(getattr, path.split("."), module(name))
            except (ImportError, AttributeError):
                missing.append(f"{grip} ({item.name})")
    return missing


def self_test() -> str:
    """Check that this iDDS is the one that the repairs know."""
    problems = wrong_versions() or missing_grips()
    if not problems:
        return ""
    return (
        f"the embedded PanDA knows iDDS {IDDS_VERSION} only, but here {', '.join(problems)}; "
        f"install what it needs with: pip install 'lsst-ctrl-bps-panda[local]' 'idds-server=={IDDS_VERSION}'"
    )


def repair(timing: Timing) -> None:
    """Apply all repairs."""
    for item in REPAIRS:
        if item.apply is not None:
            item.apply(timing)
