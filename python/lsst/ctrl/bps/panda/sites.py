"""Site profiles: what differs from site to site, from the packaged YAML."""

from __future__ import annotations

__all__ = [
    "base",
    "base_uri",
    "defaults",
    "defaults_uri",
    "local_defaults",
    "notices_of",
    "profile_of",
    "site_names",
]

import difflib
from functools import lru_cache
from importlib.resources import files as package_files
from typing import Any

import yaml
from lsst.resources import ResourcePath

from .errors import SettingsError

_PACKAGE = "lsst.ctrl.bps.panda"

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The safe loader, the fast one if there is one."""


def base_uri() -> ResourcePath:
    """Return the URI of the packaged base configuration."""
    return ResourcePath(f"resource://{_PACKAGE}/config/bps_panda.yaml")


def defaults_uri() -> ResourcePath:
    """Return the URI of what BPS merges beneath a user's configuration."""
    return ResourcePath(f"resource://{_PACKAGE}/config/defaults.yaml")


def site_names() -> list[str]:
    """Return the names of the sites that have a profile."""
    folder = package_files(_PACKAGE) / "config" / "sites"
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


@lru_cache(maxsize=32)
def _load(relative: str) -> dict[str, Any]:
    """Read a packaged YAML file."""
    text = package_files(_PACKAGE).joinpath(relative).read_text(encoding="utf-8")
    content = yaml.load(text, Loader=_LOADER) or {}
    if not isinstance(content, dict):
        raise SettingsError(f"Packaged configuration {relative} is not a mapping.")
    return content


def base() -> dict[str, Any]:
    """Return the packaged base configuration."""
    return dict(_load("config/bps_panda.yaml"))


def defaults() -> dict[str, Any]:
    """Return what BPS is to merge beneath a user's configuration."""
    return dict(_load("config/defaults.yaml"))


def local_defaults() -> dict[str, Any]:
    """Return what the embedded PanDA's service adds to the defaults."""
    return dict(_load("config/defaults_local.yaml"))


def profile_of(site: str) -> dict[str, Any]:
    """Return the profile of a site.

    Parameters
    ----------
    site : `str`
        Value of ``computeSite``; case does not matter.

    Returns
    -------
    profile : `dict` [`str`, `~typing.Any`]
        Empty for a site without a profile.
    """
    names = {name.lower(): name for name in site_names()}
    name = names.get(site.lower())
    return dict(_load(f"config/sites/{name}.yaml")) if name else {}


def notices_of(site: str) -> tuple[str, ...]:
    """Return what users of a site should know: from its profile, or that its
    name looks like a misspelt one.

    Parameters
    ----------
    site : `str`
        Value of ``computeSite``.
    """
    if site and not profile_of(site):
        folded = {name.upper(): name for name in site_names()}
        near = difflib.get_close_matches(site.upper(), folded, n=1, cutoff=0.7)
        return tuple(f"computeSite {site} has no profile; did you mean {folded[name]}?" for name in near)
    notice = str(profile_of(site).get("notice") or "").strip()
    return (f"Site {site}: {notice}",) if notice else ()
