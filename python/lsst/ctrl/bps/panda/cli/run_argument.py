"""The argument RUN of the commands that look into a run: which run, and the server that has it."""

from __future__ import annotations

__all__ = ["RunArgument", "connect_for", "local_option", "run_command"]

import contextlib
import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click

from ..errors import PandaBpsError
from ..local import endpoint as local_endpoint
from ..local import instance
from ..runs.client import Connection, connect
from ..runs.record import RunIndex
from ..settings.run import ServiceSettings, read_service_settings, use_run_broker
from .output import shows_errors

_LOCAL_CLASS = "LocalPanDAService"

local_option = click.option("--local", is_flag=True, help="Ask the embedded PanDA of this machine.")


@dataclass(frozen=True)
class RunArgument:
    """The run a command is about, and the server that has it."""

    run: str
    connection: Connection


def _settings(local: bool, run: str) -> ServiceSettings:
    """Find out where PanDA is: the embedded one if it is asked for, by option
    or as BPS's service class, or if it runs and no other is known.

    Monitor and message broker are those of the run's configuration or of
    the site that it was submitted for, where that is known.
    """
    environment: dict[str, str] = dict(os.environ)
    named = environment.get("BPS_WMS_SERVICE_CLASS", "").endswith(_LOCAL_CLASS)
    settings = read_service_settings(None, environment)
    if settings.url and not (local or named):
        return _as_submitted(run, settings)
    directory = local_endpoint.state_directory(environment)
    found = instance.find(directory)
    if found is None:
        if local or named:
            raise PandaBpsError(f"No embedded PanDA runs with {directory}. Start it: panda_local start.")
        return settings
    merged: Mapping[str, str] = {**environment, **local_endpoint.environment(found)}
    return _as_submitted(run, read_service_settings(None, merged), profile=False)


def _as_submitted(run: str, settings: ServiceSettings, *, profile: bool = True) -> ServiceSettings:
    """Add what the run's record says, if that is on this machine: its site, whose profile is used unless the
    server is another, and the message broker of its configuration.
    """
    record = None
    # Whoever looks the run up will say what is wrong.
    with contextlib.suppress(PandaBpsError, OSError):
        record = RunIndex(settings.state_directory, settings.url).find(run)
    if record is None:
        return settings
    if record.run.site and profile:
        settings = read_service_settings(None, settings.environment, site=record.run.site)
    return use_run_broker(settings, record.messages or {})


def connect_for(run: str, *, local: bool) -> Connection:
    """Connect to the server that has a run, or to the embedded PanDA if that is asked for.

    A run is given by its id, name or submit directory.
    """
    return connect(_settings(local, run))


def run_command(function: Callable[..., int | None]) -> Callable[..., None]:
    """Give a command the argument RUN and the option ``--local``, and show our errors as one message.

    The function gets an `RunArgument` first.
    """

    @click.argument("run")
    @local_option
    @functools.wraps(function)
    @shows_errors()
    def call(run: str, local: bool, **options: Any) -> int | None:
        return function(RunArgument(run, connect_for(run, local=local)), **options)

    return call
