"""The message broker that a run's own configuration names, which is remembered
with the run: whoever watches it has no configuration.
"""

from __future__ import annotations

__all__ = ["own_messages", "with_messages"]

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .run import ServiceSettings, read_service_settings


def own_messages(settings: ServiceSettings, site: str) -> dict[str, str]:
    """Find the settings of the message broker that a run brings itself.

    Parameters
    ----------
    settings : `ServiceSettings`
        As the run's configuration has them.
    site : `str`
        The run's site, whose profile may have others.

    Returns
    -------
    messages : `dict` [`str`, `str`]
        What differs from the profile, to be remembered with the run.  An
        address with a password in it is left out.
    """
    profile = read_service_settings(None, settings.environment, site=site).messages
    own = {name: value for name, value in settings.messages.items() if value != profile[name]}
    return own if "@" not in own.get("pandaMessagesUrl", "") else {}


def with_messages(settings: ServiceSettings, remembered: Mapping[str, Any]) -> ServiceSettings:
    """Add the message broker that a run brought itself.

    Parameters
    ----------
    settings : `ServiceSettings`
        Where PanDA is.
    remembered : `~collections.abc.Mapping`
        From the run's record; names that are not known do not count.
    """
    own = {name: str(remembered[name]) for name in settings.messages if remembered.get(name)}
    return replace(settings, messages={**settings.messages, **own})
