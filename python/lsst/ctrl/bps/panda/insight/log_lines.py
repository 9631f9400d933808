"""Lines of a job's log, and which of them are wanted.

The Science Pipelines write ``payload-log.json``, one JSON object a line; other
files hold plain lines, whose level is read from the word at its usual place.
"""

from __future__ import annotations

__all__ = ["LEVELS", "LineFilter", "LogLine", "from_record", "parse_json_line", "parse_line"]

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import SettingsError
from ..status.fields import cut, text_of

LEVELS = {"TRACE": 5, "DEBUG": 10, "VERBOSE": 15, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
"""Names of levels and their numbers."""

_ALIASES = {"WARN": "WARNING", "FATAL": "CRITICAL"}
_WORD = re.compile(r"\b(TRACE|DEBUG|VERBOSE|INFO|WARN(?:ING)?|ERROR|CRITICAL|FATAL)\b")
_TRACEBACK = re.compile(r"Traceback \(most recent call last\)|^\w+(\.\w+)*(Error|Exception)\b")
_LEVEL_WITHIN = 120


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line."""

    message: str
    level: str = ""
    """A name of `LEVELS`; empty if the line has none."""

    time: str = ""
    """As the log has it."""

    logger: str = ""
    panda_id: int = 0
    """PanDA job that wrote it, 0 if not known."""

    file: str = ""
    """File it is from, or ``cloud``."""


@dataclass(frozen=True, slots=True)
class LineFilter:
    """Which lines are wanted."""

    level: str = ""
    """Least level, a name of `LEVELS`; lines without a level are then left
    out, unless they belong to a traceback."""

    pattern: re.Pattern[str] | None = None

    @classmethod
    def from_options(cls, *, level: str = "", grep: str = "") -> LineFilter:
        """Make a filter of what a user gives.

        Raises
        ------
        SettingsError
            Raised if the level or the expression is not understood.
        """
        name = _ALIASES.get(level.upper(), level.upper())
        if name and name not in LEVELS:
            raise SettingsError(f"There is no level {level!r}. Levels: {', '.join(LEVELS)}.")
        try:
            return cls(name, re.compile(grep) if grep else None)
        except re.error as error:
            raise SettingsError(f"{grep!r} is not a regular expression: {error}.") from None

    def wants(self, line: LogLine) -> bool:
        """Tell whether a line is wanted."""
        if self.level and LEVELS.get(line.level, 0) < LEVELS[self.level]:
            return False
        return self.pattern is None or self.pattern.search(line.message) is not None


def parse_line(text: str, *, panda_id: int = 0, file: str = "") -> LogLine:
    """Read a line of a text file.

    Parameters
    ----------
    text : `str`
        The line, without its end.
    panda_id : `int`, optional
        PanDA job it is from.
    file : `str`, optional
        File it is from.
    """
    found = _WORD.search(text, 0, _LEVEL_WITHIN)
    level = found.group() if found else "ERROR" if _TRACEBACK.search(text) else ""
    return LogLine(text, _ALIASES.get(level, level), panda_id=panda_id, file=file)


def parse_json_line(text: str, *, panda_id: int = 0, file: str = "") -> LogLine:
    """Read a line of ``payload-log.json``.

    Parameters
    ----------
    text : `str`
        The line; one that is not a JSON object is taken as plain text.
    panda_id : `int`, optional
        PanDA job it is from.
    file : `str`, optional
        File it is from.
    """
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, Mapping):
        return parse_line(text, panda_id=panda_id, file=file)
    return from_record(content, panda_id=panda_id, file=file)


def from_record(content: Mapping[str, Any], *, panda_id: int = 0, file: str = "") -> LogLine:
    """Make a line of a log record of the Science Pipelines.

    Parameters
    ----------
    content : `~collections.abc.Mapping`
        ``message``, ``levelname``, ``asctime``, ``name``, ``exc_info``, and
        in the cloud ``PandaJobID``.
    panda_id : `int`, optional
        PanDA job, if the record does not say.
    file : `str`, optional
        File it is from.
    """
    message = text_of(content.get("message"))
    trace = content.get("exc_info")
    if isinstance(trace, str) and trace.strip():
        message = f"{message}\n{trace}".strip()
    level = text_of(content.get("levelname")).upper()
    own = text_of(content.get("PandaJobID"))
    return LogLine(
        message=message or cut(content),
        level=_ALIASES.get(level, level),
        time=text_of(content.get("asctime")),
        logger=text_of(content.get("name")),
        panda_id=int(own) if own.isdecimal() else panda_id,
        file=file,
    )
