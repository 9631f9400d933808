"""The client for iDDS that scripts written for the previous plugin import from its ``utils``."""

from __future__ import annotations

__all__ = ["IddsClient", "get_idds_client", "get_idds_result"]

import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from .errors import SettingsError
from .rest.relay import Relay
from .runs.client import connect
from .settings.run import read_service_settings

_GONE = {
    "add_final_idds_work": "lsst.ctrl.bps.panda.PandaBpsWmsWorkflow.from_generic_workflow makes the workflow",
    "add_idds_work": "lsst.ctrl.bps.panda.PandaBpsWmsWorkflow.from_generic_workflow makes the workflow",
    "copy_files_for_distribution": "lsst.ctrl.bps.panda.PanDAService.submit stages the files of a run",
}
"""Functions that scripts import, and what does their work now."""


class IddsClient:
    """A stand-in for iDDS's ``ClientManager``: any method is one of its
    commands, with plain values as arguments.

    A reply has the shape that scripts index, ``(0, (True, value))``.  Failures
    are raised, as `~lsst.ctrl.bps.panda.errors.TransportError`.
    """

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def __getattr__(self, command: str) -> Callable[..., tuple[int, tuple[bool, Any]]]:
        if command.startswith("_"):
            raise AttributeError(command)

        def call(*arguments: Any, **keywords: Any) -> tuple[int, tuple[bool, Any]]:
            try:
                texts = [json.dumps(given) if given else None for given in (list(arguments), keywords)]
            except TypeError as error:
                raise SettingsError(
                    f"{command} got what is no plain value ({error}). To submit a run, use "
                    "lsst.ctrl.bps.drivers.submit_driver or lsst.ctrl.bps.panda.PanDAService."
                ) from error
            safe = command.startswith(("get_", "ping"))
            return 0, (True, self._relay.call(command, *texts, safe=safe))

        return call


def get_idds_client(config: Mapping[str, Any]) -> IddsClient:
    """Return a client for the iDDS behind a PanDA.

    Parameters
    ----------
    config : `~lsst.ctrl.bps.BpsConfig`
        Configuration; where PanDA is may also be said by the environment.
    """
    _warn(
        "get_idds_client",
        "lsst.ctrl.bps.panda.PanDAService.report and get_status, or panda_bps show --json, tell about runs",
    )
    return IddsClient(connect(read_service_settings(config)).relay)


def get_idds_result(reply: tuple[int, tuple[bool, Any]]) -> tuple[bool, Any, None]:
    """Take the value out of a reply of `IddsClient`.

    Parameters
    ----------
    reply : `tuple`
        The reply.

    Returns
    -------
    status, result, error : `tuple`
        `True`, the value, and no error: failures are raised.
    """
    _warn("get_idds_result", "the value is reply[1][1]")
    return True, reply[1][1], None


def __getattr__(name: str) -> Callable[..., None]:
    """Let scripts import functions that are gone, and raise an error when they call them."""
    if name not in _GONE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _warn(name, _GONE[name])

    def call(*arguments: Any, **keywords: Any) -> None:
        raise NotImplementedError(f"{name} of the previous plugin is gone: {_GONE[name]}.")

    return call


def _warn(name: str, instead: str) -> None:
    warnings.warn(
        f"{__name__}.{name} is the path of the previous plugin: {instead}.", DeprecationWarning, stacklevel=3
    )
