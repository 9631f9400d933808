"""The log of the server process: one file of bounded size, which also gets
what libraries print.
"""

from __future__ import annotations

__all__ = ["PrintedLines", "catch_prints", "set_up_log"]

import io
import logging
import logging.handlers
import sys
from pathlib import Path

_SIZE = 5_000_000
_FILES = 3


def set_up_log(directory: Path, level: str, *, size: int = _SIZE) -> logging.Handler:
    """Log to ``server.log``, and to ``server.log.1`` and so on what is older.

    Parameters
    ----------
    directory : `~pathlib.Path`
        State directory.
    level : `str`
        Level of iDDS's messages.
    size : `int`, optional
        Largest size of a file, bytes.

    Returns
    -------
    handler : `logging.Handler`
        The root logger's new handler.
    """
    handler = logging.handlers.RotatingFileHandler(
        directory / "server.log", maxBytes=size, backupCount=_FILES - 1
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(threadName)s %(name)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level)
    logging.getLogger("lsst.ctrl.bps.panda").setLevel(logging.INFO)
    # Tells at every call where its token comes from, and sets its level anew.
    logging.getLogger("panda-client").disabled = True
    logging.captureWarnings(True)
    return handler


class PrintedLines(io.TextIOBase):
    """A stream whose lines go to a logger.

    Parameters
    ----------
    logger : `logging.Logger`
        Where to.
    level : `int`
        With which level.
    """

    _LONGEST = 2000

    def __init__(self, logger: logging.Logger, level: int) -> None:
        super().__init__()
        self._logger = logger
        self._level = level

    def writable(self) -> bool:
        """Tell that it can be written."""
        return True

    def write(self, text: str) -> int:
        """Log the text, unless it is empty."""
        if text.strip():
            self._logger.log(self._level, "%s", text.rstrip()[: self._LONGEST])
        return len(text)


def catch_prints() -> None:
    """Have the log get what libraries print from now on.

    panda-client prints whole replies of the server, as iDDS asks it to.
    """
    logger = logging.getLogger("printed")
    sys.stdout = PrintedLines(logger, logging.DEBUG)
    sys.stderr = PrintedLines(logger, logging.WARNING)
