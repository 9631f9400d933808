"""A line on a terminal that shows how far staging has come."""

from __future__ import annotations

__all__ = ["ProgressLine"]

from typing import TextIO

_WIDTH = 30


class ProgressLine:
    """Draws a bar; give it to `~.staging.stage` as ``progress``.

    Nothing is written if the stream is not a terminal.

    Parameters
    ----------
    stream : `~typing.TextIO`
        Where to draw, usually the standard error stream.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream if stream.isatty() else None

    def __call__(self, done: int, total: int) -> None:
        """Draw.

        Parameters
        ----------
        done : `int`
            Number of files that are in the staging area.
        total : `int`
            Number of all files.
        """
        if self._stream is None:
            return
        filled = _WIDTH * done // total if total else _WIDTH
        bar = "#" * filled + "." * (_WIDTH - filled)
        self._stream.write(f"\rStaging [{bar}] {done} of {total} files" + ("\n" if done >= total else ""))
        self._stream.flush()
