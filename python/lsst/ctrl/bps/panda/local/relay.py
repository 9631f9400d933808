"""PanDA's relay to iDDS: takes a command with its arguments, has a client of
iDDS send it in the name of the user, and gives the reply back.
"""

from __future__ import annotations

__all__ = ["Relay"]

import gzip
import importlib
import json
import logging
from typing import Any
from urllib.parse import parse_qs

from .faults import Faults
from .idds_host import IddsHost
from .identity import Identity

_LOG = logging.getLogger(__name__)

_COMMANDS = ("abort", "retry", "close", "abort_task")


def decode_body(body: bytes) -> dict[str, Any]:
    """Decode the body of a request to the relay.

    Parameters
    ----------
    body : `bytes`
        JSON, or JSON packed with gzip (which the client does not say in a
        header), or a URL-encoded form.

    Raises
    ------
    ValueError
        Raised for anything else.
    """
    if body[:2] == b"\x1f\x8b":
        body = gzip.decompress(body)
    try:
        value = json.loads(body)
    except ValueError:
        value = {key: values[-1] for key, values in parse_qs(body.decode()).items()}
    if not isinstance(value, dict) or "command_name" not in value:
        raise ValueError("the body holds no command_name")
    return value


class Relay:
    """The relay.

    Parameters
    ----------
    host : `IddsHost`
        Where commands go.
    faults : `Faults`
        Faults to inject.
    """

    def __init__(self, host: IddsHost, faults: Faults) -> None:
        self._host = host
        self._faults = faults

    def call(self, body: dict[str, Any], identity: Identity) -> tuple[bool, Any]:
        """Send a command.

        Parameters
        ----------
        body : `dict`
            ``command_name``, ``args`` and ``kwargs`` (JSON texts of iDDS's
            own kind), ``manager``, ``json_outputs``.
        identity : `Identity`
            In whose name.

        Returns
        -------
        success : `bool`
            Whether a client could be called; its reply may still be an
            error.
        reply : object
            Reply, or what went wrong.
        """
        # "command+http://host" asks for another iDDS server: there is one.
        command = str(body["command_name"]).partition("+")[0]
        manager = str(body.get("manager", "")).lower() == "true"
        codec = importlib.import_module("idds.common.utils")
        try:
            client = self._host.client(identity.user, manager=manager)
            if command.startswith("_") or not callable(getattr(client, command, None)):
                return False, f"{command} is not a command of iDDS {type(client).__name__}"
            args = codec.json_loads(body["args"]) if body.get("args") else []
            kwargs = codec.json_loads(body["kwargs"]) if body.get("kwargs") else {}
            if str(body.get("json_outputs", "")).lower() == "true" and manager:
                client.setup_json_outputs()
                self._host.forget_clients()
            function = getattr(client, command)
            if command not in _COMMANDS:
                return True, function(*args, **kwargs)
            # A dropped command is registered, as far as the client can see.
            reply: Any = [[0, {"status": 0, "message": "Command registered successfully"}]]
            for _ in self._faults.flow("command", command, None):
                reply = function(*args, **kwargs)
            return True, reply
        except Exception as error:
            _LOG.exception("the relay could not execute %s", command)
            return False, f"failed to execute command with {error}"

    def render(self, value: Any) -> str:
        """Render a reply as JSON; objects of iDDS in iDDS's own way."""
        try:
            return json.dumps(value)
        except (TypeError, ValueError):
            return str(importlib.import_module("idds.common.utils").json_dumps(value))
