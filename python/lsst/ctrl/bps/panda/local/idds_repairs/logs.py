"""Repairs of what iDDS writes to its logs."""

from __future__ import annotations

__all__ = ["REPAIRS"]

import functools
import logging
import logging.handlers
from typing import Any

from ..pace import Pace
from .record import Repair, module

_LARGEST_FILE = 5_000_000
_HARMLESS = ("Cannot find processing for event",)
"""An event about something that another thread has in hand, or that has
ended; a timer finds what remains to be done."""


def _harmless(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_HARMLESS)


def _small_log_files(pace: Pace) -> None:
    codec = module("idds.common.utils")
    codec.RotatingFileHandler = _SmallFile


class _SmallFile(logging.handlers.RotatingFileHandler):
    """A log file of bounded size, whatever it was made with."""

    def __init__(self, filename: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(filename, maxBytes=_LARGEST_FILE, backupCount=1)


def _one_log_handler(pace: Pace) -> None:
    controller = module("idds.rest.v1.controller")
    controller.get_logger = functools.lru_cache(maxsize=None)(controller.get_logger)


def _no_harmless_warnings(pace: Pace) -> None:
    for handler in logging.getLogger().handlers:
        handler.addFilter(_harmless)


REPAIRS = (
    Repair(
        "one log handler",
        "the REST service opens a log file per request",
        "no file descriptors left after about a thousand requests",
        ("idds.rest.v1.controller:get_logger",),
        _one_log_handler,
    ),
    Repair(
        "size of log files",
        "log files are rotated when they have two gigabytes",
        "eight gigabytes of logs",
        ("idds.common.utils:RotatingFileHandler",),
        _small_log_files,
    ),
    Repair(
        "harmless warnings",
        "each event about something that another thread has in hand is a warning or an error in the log",
        "the log is full of errors that are none",
        ("idds.agents.carrier.trigger:Trigger.process_trigger_processing_real",),
        _no_harmless_warnings,
    ),
)
