"""The running ``bps`` command: its options, which BPS does not pass on, and what it prints."""

from __future__ import annotations

__all__ = [
    "DETAIL",
    "LOG_NAME",
    "configuration_file",
    "end_log",
    "fail_command",
    "is_check",
    "is_dry_run",
    "log_into",
    "shape_output",
]

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Callable
from functools import partial, wraps
from logging.handlers import MemoryHandler
from pathlib import Path
from types import TracebackType
from typing import Any

import click
from click.core import ParameterSource

from ..errors import PandaBpsError

LOG_NAME = "bps.log"
"""What a ``bps`` command has logged, in the submit directory."""

DETAIL = {"is_detail": True}
"""Extra attribute of messages that are only for the log in the submit directory."""

_MOST_KEPT = 10_000
"""Messages that are kept before there is a submit directory."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

_BPS = "lsst.ctrl.bps.cli.bps"
"""Where the command ``bps`` is; those of this plugin show errors themselves."""

_ABOUT_RUNS = ("cancel", "ping", "report", "restart", "status")
"""Commands of BPS about submitted runs, which log what they have found."""

_CAMPAIGN = " campaign submit"
"""A command of this plugin that submits as ``bps submit`` does."""


def is_dry_run() -> bool:
    """Tell whether ``bps prepare`` or ``bps submitcmd --dry-run`` is running, which send nothing.

    BPS calls the checks of a submission in the same way for ``prepare`` and ``submit``; what tells them apart
    is the command that runs.
    """
    context = click.get_current_context(silent=True)
    return context is not None and (context.info_name == "prepare" or bool(context.params.get("dry_run")))


def configuration_file() -> str:
    """Return the YAML file that the command was given; empty if it was given none, or a program runs."""
    context = click.get_current_context(silent=True)
    if context is None:
        return ""
    given = (context.params.get(name) for name in ("config_file", "config"))
    return next((str(file) for file in given if file), "")


def is_check() -> bool:
    """Tell whether ``panda_bps check`` is running, which lists all findings itself."""
    context = click.get_current_context(silent=True)
    return context is not None and context.info_name == "check"


def fail_command(error: PandaBpsError) -> None:
    """End the running ``bps`` command with the text of an error and exit code 1; do nothing in a program.

    BPS prints the messages of a service and ends with exit code 0, whatever they say.
    """
    if _is_bps():
        raise error


def shape_output(explain: Callable[[Any, str], str]) -> None:
    """Let the running ``bps`` command print what its user needs, and nothing else; do nothing in a program.

    Of a submission, the terminal gets the plugin's own messages and warnings, unless a level is given on the
    command line.
    What it does not get is in ``bps.log`` of the submit directory.  A quantum graph that could not be made is
    one error, with what ``explain`` makes of BPS's configuration and message; a full disk is another.
    """
    if not _is_bps() or any(isinstance(handler, _SubmitLog) for handler in logging.getLogger().handlers):
        return
    root = logging.getLogger()
    command = click.get_current_context()
    source = command.find_root().get_parameter_source("log_level")
    if source in (None, ParameterSource.DEFAULT) and command.info_name not in _ABOUT_RUNS:
        for handler in root.handlers:
            if type(handler) is logging.StreamHandler:
                handler.addFilter(_is_for_terminal)
    root.addHandler(_SubmitLog())
    command.call_on_close(end_log)
    logging.getLogger("lsst.daf.butler.cli.utils").addFilter(_shorten_full_disk)
    _wrap("submit", _without_names)
    _wrap("acquire_quantum_graph", partial(_explained, explain=explain))


def _is_bps() -> bool:
    context = click.get_current_context(silent=True)
    if context is None:
        return False
    return type(context.find_root().command).__module__ == _BPS or context.command_path.endswith(_CAMPAIGN)


def _is_for_terminal(record: logging.LogRecord) -> bool:
    if record.levelno >= logging.WARNING:
        # It warns that there is no EUPS, which only the stack has.
        return record.name != "lsst.utils.packages"
    ours = record.name.startswith("lsst.ctrl.bps.panda") and not hasattr(record, "is_detail")
    return ours or record.msg == "Creating quantum graph"


class _SubmitLog(MemoryHandler):
    """Keeps log messages until there is a submit directory, then writes them there."""

    def __init__(self) -> None:
        super().__init__(_MOST_KEPT, flushLevel=sys.maxsize, flushOnClose=False)

    def shouldFlush(self, record: logging.LogRecord) -> bool:
        """Keep all that fits, until it can be written."""
        return self.target is not None or len(self.buffer) >= self.capacity

    def close(self) -> None:
        """Close the file, too."""
        target = self.target
        super().close()
        if target is not None:
            target.close()


def log_into(directory: str) -> None:
    """Write what the ``bps`` command logs into a submit directory."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _SubmitLog) and handler.target is None:
            with contextlib.suppress(OSError):  # whoever writes the files of the run meets the same
                target = logging.FileHandler(Path(directory, LOG_NAME), encoding="utf-8")
                target.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
                handler.setTarget(target)
                handler.flush()


def end_log() -> None:
    """End the log of a submission, so that the next one of the same command, or of the same process, has its
    own.
    """
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, _SubmitLog)]:
        root.removeHandler(handler)
        handler.close()


def _shorten_full_disk(record: logging.LogRecord) -> bool:
    """Turn the traceback of a disk that cannot be written into a sentence with file and file system."""
    error = record.exc_info[1] if record.exc_info else None
    while error is not None and not (isinstance(error, OSError) and error.errno in _FULL):
        error = error.__cause__ or error.__context__
    if error is not None:
        file = os.path.abspath(error.filename or _find_file(error.__traceback__) or os.curdir)
        system = file
        while not os.path.ismount(system):
            system = os.path.dirname(system)
        free = os.statvfs(system).f_bavail * os.statvfs(system).f_frsize
        record.msg = "%s cannot be written: %s. Its file system %s has %d MB free. Make room, then try again."
        record.args = (file, error.strerror, system, free // 1_000_000)
        record.exc_info = None
    return True


def _find_file(traceback: TracebackType | None) -> str:
    """Return the file that the innermost function was writing: a failed write does not name it."""
    found = ""
    while traceback is not None:
        for value in traceback.tb_frame.f_locals.values():
            name = getattr(value, "name", None) if hasattr(value, "write") else None
            if isinstance(name, str) or isinstance(value, Path):
                found = str(name or value)
        traceback = traceback.tb_next
    return found


def _wrap(name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace a function of BPS that a command is about to call."""
    drivers = sys.modules.get("lsst.ctrl.bps.drivers")
    if drivers is not None and hasattr(drivers, name):
        setattr(drivers, name, wrap(getattr(drivers, name)))


def _explained(acquire: Callable[..., Any], *, explain: Callable[[Any, str], str]) -> Callable[..., Any]:
    """Wrap the function that makes the quantum graph; BPS tells only that it failed, and where the log is."""

    @wraps(acquire)
    def wrapper(config: Any, out_prefix: str = "") -> Any:
        log_into(out_prefix)
        try:
            return acquire(config, out_prefix=out_prefix)
        except Exception as error:
            if type(error).__name__ != "BpsSubprocessError":
                raise
            failure = click.ClickException(explain(config, str(error)))
            failure.exit_code = getattr(error, "errno", 1)  # type: ignore[misc]
            raise failure from error

    return wrapper


def _without_names(submit: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the function so that ``bps submit --wms-service-class NAME`` works.

    ``lsst.ctrl.bps.drivers.submit_driver`` (seen in 30.2026.300 and 30.2026.4300) hands the option's text to
    ``submit()`` as ``wms_service``, which wants an object: ``AttributeError: 'str' object has no attribute
    'submit'``, after everything was prepared.  The configuration names the class too, so the text can be left
    out.
    """

    @wraps(submit)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if isinstance(kwargs.get("wms_service"), str):
            kwargs["wms_service"] = None
        return submit(*args, **kwargs)

    return wrapper
