"""Where the staging area of a run is: from its configuration, or from the
profile of its site.
"""

from __future__ import annotations

__all__ = ["expand_area", "profile_area", "variables_in"]

import os
import re
from collections.abc import Mapping

from . import sites
from .errors import SettingsError
from .local.endpoint import state_directory
from .plan.commands import inert

_VARIABLE = re.compile(r"<ENV:([^>]+)>|\$\{(\w+)\}|\$(\w+)")


def variables_in(text: str) -> set[str]:
    """Return the names of the environment variables in a text."""
    return {next(filter(None, match.groups())) for match in _VARIABLE.finditer(text)}


def expand_area(text: str, default: str, site: str, env: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return the staging area that the configuration means.

    Parameters
    ----------
    text : `str`
        Value of ``fileDistributionEndPoint``.
    default : `str`
        Value of ``fileDistributionEndPointDefault``, taken if a variable in
        the text is not set.
    site : `str`
        Value of ``computeSite``, for the error.
    env : mapping of `str` to `str`
        The environment.

    Returns
    -------
    area : `str`
        URI or absolute path, ending in ``/``.
    variables : `dict` [`str`, `str`]
        Environment variables in the text, with their values.

    Raises
    ------
    SettingsError
        Raised if there is no area or a variable is not set.
    """
    if not text:
        raise SettingsError(
            f"fileDistributionEndPoint is not set and the profile of computeSite {site or '(none)'!r} has "
            "none. Set it to a directory or URI that the workers see, ending in '/'. Sites with a profile: "
            f"{', '.join(sites.site_names())}."
        )
    missing = sorted(name for name in variables_in(text) if not env.get(name))
    if missing and not default:
        raise SettingsError(
            f"fileDistributionEndPoint is {text!r} but the environment variable {missing[0]} is not set. "
            "Set it, or set fileDistributionEndPointDefault."
        )
    chosen = default if missing else text
    return _expand(chosen, env), {name: env.get(name, "") for name in sorted(variables_in(chosen))}


def _expand(text: str, env: Mapping[str, str]) -> str:
    """Put in environment variables and make the area a directory."""

    def value(match: re.Match[str]) -> str:
        name = next(filter(None, match.groups()))
        if not env.get(name):
            raise SettingsError(
                f"The staging area is {text!r} but the environment variable {name} is not set."
            )
        return env[name]

    area = _VARIABLE.sub(value, text)
    if "://" not in area:
        area = os.path.abspath(os.path.expanduser(area))
    return area if area.endswith("/") else area + "/"


def profile_area(site: str, folder: str, run: str, env: Mapping[str, str]) -> str:
    """Return the staging area in the profile of a site.

    Parameters
    ----------
    site : `str`
        Value of ``computeSite``.
    folder : `str`
        Value of ``payloadFolder``.
    run : `str`
        Name of the run.
    env : mapping of `str` to `str`
        The environment.

    Returns
    -------
    area : `str`
        With environment variables put in; empty for a site without one.
    """
    profile = sites.profile_of(site)
    text = str(profile.get("stagingArea", "") or "")
    known = {"PANDA_LOCAL_STAGING": str(state_directory(env) / "staging"), **env}
    if any(not known.get(name) for name in variables_in(text)):
        text = str(profile.get("stagingAreaDefault", "") or "")
    if not text:
        return ""
    filled = text.replace("{payloadFolder}", folder or "payload").replace("{uniqProcName}", run)
    # BPS writes it into the script of the final job as it is.
    return inert(_expand(filled, known))
