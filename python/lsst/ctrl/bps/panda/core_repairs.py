"""Repairs of ``lsst.ctrl.bps`` that a plugin needs to be used as documented.

Kept apart, each with its symptom, so that it can go when the core is mended.
"""

from __future__ import annotations

__all__ = ["accept_service_names"]

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any


def accept_service_names() -> None:
    """Let ``bps submit --wms-service-class NAME`` work.

    ``lsst.ctrl.bps.drivers.submit_driver`` (seen in 30.2026.300 and
    30.2026.4300) hands the option's text to ``submit()`` as ``wms_service``,
    which wants an object: ``AttributeError: 'str' object has no attribute
    'submit'``, after everything was prepared.  The configuration names the
    class too, so the text can be left out.
    """
    drivers = sys.modules.get("lsst.ctrl.bps.drivers")
    submit = getattr(drivers, "submit", None)
    if drivers is None or submit is None or getattr(submit, "accepts_service_names", False):
        return
    setattr(drivers, "submit", _without_names(submit))  # noqa: B010


def _without_names(submit: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the function so that it takes the class from the configuration if
    it is given by name.
    """

    @wraps(submit)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if isinstance(kwargs.get("wms_service"), str):
            kwargs["wms_service"] = None
        return submit(*args, **kwargs)

    wrapper.accepts_service_names = True  # type: ignore[attr-defined]
    return wrapper
