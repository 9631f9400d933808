"""The lock of a state directory: held by the server as long as it lives."""

from __future__ import annotations

__all__ = ["take_lock"]

import fcntl
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO


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
