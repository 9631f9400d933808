"""Python's garbage collector, stopped while a plan is made.

Millions of small objects without circles are made at once; the collector
would look at all of them, and at the whole generic workflow, again and again.
"""

from __future__ import annotations

__all__ = ["without_collection"]

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Stop the garbage collector, and start it again if it ran before."""
    ran = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if ran:
            gc.enable()
