"""The running ``bps`` command, whose options BPS does not pass on: they are read from click, and one of them
is repaired.
"""

from __future__ import annotations

__all__ = ["accept_service_names", "configuration_file", "fail_command", "is_check", "is_dry_run"]

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

_BPS = "lsst.ctrl.bps.cli.bps"
"""Where the command ``bps`` is; those of this plugin show errors themselves."""


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


def fail_command(error: Exception) -> None:
    """End the running ``bps`` command with the text of an error and exit code 1; do nothing in a program.

    BPS prints the messages of a service and ends with exit code 0, whatever they say.
    """
    context = click.get_current_context(silent=True)
    if context is not None and type(context.find_root().command).__module__ == _BPS:
        raise click.ClickException(str(error)) from error


def accept_service_names() -> None:
    """Let ``bps submit --wms-service-class NAME`` work.

    ``lsst.ctrl.bps.drivers.submit_driver`` (seen in 30.2026.300 and 30.2026.4300) hands the option's text to
    ``submit()`` as ``wms_service``, which wants an object: ``AttributeError: 'str' object has no attribute
    'submit'``, after everything was prepared.  The configuration names the class too, so the text can be left
    out.
    """
    drivers = sys.modules.get("lsst.ctrl.bps.drivers")
    submit = getattr(drivers, "submit", None)
    if drivers is None or submit is None or getattr(submit, "accepts_service_names", False):
        return
    setattr(drivers, "submit", _without_names(submit))  # noqa: B010


def _without_names(submit: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the function so that it takes the class from the configuration if it is given by name."""

    @wraps(submit)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if isinstance(kwargs.get("wms_service"), str):
            kwargs["wms_service"] = None
        return submit(*args, **kwargs)

    wrapper.accepts_service_names = True  # type: ignore[attr-defined]
    return wrapper
