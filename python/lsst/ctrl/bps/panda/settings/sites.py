"""Site profiles (``config/sites``): what only a site has, such as the limits of its queues and the place of
its staging area.

Keys that a run or a label may have, too, are in `~lsst.ctrl.bps.panda.settings.keys`.
"""

from __future__ import annotations

__all__ = [
    "QueueLimits",
    "base_profile",
    "defaults",
    "defaults_uri",
    "fill_area",
    "local_defaults",
    "notice_of",
    "profile_of",
    "read_queues",
    "site_names",
    "staging_areas_of",
    "variables_in",
]

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files as package_files
from typing import Any

import yaml
from lsst.resources import ResourcePath
from pydantic import ConfigDict
from pydantic.json_schema import SkipJsonSchema

from ..errors import SettingsError
from .files import LOADER
from .keys import Section, WholeMegabytes, WholeNumber, WholeSeconds, YesOrNo, key, keys_of

_PACKAGE = "lsst.ctrl.bps.panda"


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
    content = yaml.load(text, Loader=LOADER) or {}
    if not isinstance(content, dict):
        raise SettingsError(f"Packaged configuration {relative} is not a mapping.")
    return content


def base_profile() -> dict[str, Any]:
    """Return the packaged base configuration."""
    return dict(_load("config/bps_panda.yaml"))


def defaults() -> dict[str, Any]:
    """Return what BPS is to merge beneath a user's configuration."""
    return dict(_load("config/defaults.yaml"))


def local_defaults() -> dict[str, Any]:
    """Return what the embedded PanDA's service adds to the defaults."""
    return dict(_load("config/defaults_local.yaml"))


def profile_of(site: str) -> dict[str, Any]:
    """Return the profile of a site (``computeSite``, in any case of letters), empty if it has none."""
    names = {name.lower(): name for name in site_names()}
    name = names.get(site.lower())
    return dict(_load(f"config/sites/{name}.yaml")) if name else {}


def notice_of(site: str) -> str:
    """Return what users of a site should know, by the key ``notice`` of its profile."""
    return str(profile_of(site).get("notice") or "").strip()


def staging_areas_of(site: str) -> tuple[str, str]:
    """Return the keys ``stagingArea`` and ``stagingAreaDefault`` of a site's
    profile; the second is used where variables of the first are not set.
    """
    profile = profile_of(site)
    return str(profile.get("stagingArea") or ""), str(profile.get("stagingAreaDefault") or "")


class QueueLimits(Section):
    """What a queue takes; 0 means that no limit is known."""

    model_config = ConfigDict(extra="forbid")

    name: SkipJsonSchema[str] = ""
    memory: WholeMegabytes = key(0, "Memory of a job.", least=0, alias="maxMemory")
    cores: WholeNumber = key(0, "Cores of a job.", least=0)
    min_cores: WholeNumber = key(0, "Cores that a job has at least.", least=0)
    walltime: WholeSeconds = key(0, "Longest run of a job.", least=0, alias="maxWalltime")
    brokered: YesOrNo = key(True, "Whether PanDA sends it jobs that do not name it.")


def read_queues(section: Any, *, source: str) -> tuple[QueueLimits, ...]:
    """Read a section ``queues``, limits by the queue's name; ``source`` says in errors where it is from."""
    if section is None or section == "":
        return ()
    if not isinstance(section, Mapping):
        raise SettingsError(f"queues is {section!r} ({source}); it must map names of queues to their limits.")
    return tuple(_read_queue(str(name), section[name], source) for name in section)


def _read_queue(name: str, limits: Any, source: str) -> QueueLimits:
    known = sorted(keys_of(QueueLimits))
    if limits is not None and not isinstance(limits, Mapping):
        raise SettingsError(
            f"queues.{name} is {limits!r} ({source}); it must hold limits: {', '.join(known)}."
        )
    given = dict(limits or {})
    if unknown := [key for key in given if key not in known]:
        raise SettingsError(f"queues.{name} holds {unknown[0]!r} ({source}); known are {', '.join(known)}.")
    parsed = QueueLimits.parse(given, source=source, title=f"queues.{name}.{{}}")
    return parsed.model_copy(update={"name": name})


_VARIABLE = re.compile(r"<ENV:([^>]+)>|\$\{(\w+)\}|\$(\w+)")


def variables_in(text: str) -> set[str]:
    """Return the names of the environment variables in a text."""
    return {next(filter(None, match.groups())) for match in _VARIABLE.finditer(text)}


def fill_area(text: str, env: Mapping[str, str]) -> str:
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
