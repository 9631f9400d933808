"""The configuration of a campaign, read as BPS reads that of a run."""

from __future__ import annotations

__all__ = ["CampaignConfiguration", "make_configuration", "read_configuration"]

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsst.daf.butler import Config

from lsst.ctrl.bps import BPS_DEFAULTS, BPS_SEARCH_ORDER, BpsConfig

from ..errors import SettingsError
from .section import SECTION, CampaignSection, read_section


@dataclass(frozen=True, slots=True)
class CampaignConfiguration:
    """What a user wrote, with what BPS makes of it."""

    path: str
    """The user's file, absolute."""

    content: Mapping[str, Any]
    """Its content with all that it includes, nothing put in."""

    bps: BpsConfig
    """The same over BPS's defaults."""

    section: CampaignSection

    @property
    def digest(self) -> str:
        """Digest of the content, by which a change is noticed."""
        text = json.dumps(self.content, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def text(self, key: str) -> str:
        """Return the value of a key, with variables put in."""
        return str(self.bps.get(key) or "")

    def raw(self, key: str) -> str:
        """Return the value of a key as it is written."""
        options = {"replaceVars": False, "expandEnvVars": False, "default": ""}
        return str(self.bps.search(key, opt=options)[1] or "")

    def with_settings(self, settings: Mapping[str, Any]) -> BpsConfig:
        """Return the configuration with more settings over it.

        Parameters
        ----------
        settings : mapping
            Keys and sections.
        """
        merged = Config(dict(self.content))
        merged.update(Config(dict(settings)))
        return _over_defaults(merged, timestamp=str(self.bps["timestamp"]), user=str(self.bps["operator"]))

    @property
    def payload_keys(self) -> frozenset[str]:
        """Keys of the section ``payload``, which BPS looks into first."""
        return frozenset(map(str, Config.__getitem__(self.bps, "payload")))


def read_configuration(
    path: str, *, timestamp: str, user: str, service_class: str | None = None
) -> CampaignConfiguration:
    """Read a file.

    Parameters
    ----------
    path : `str`
        YAML file.
    timestamp : `str`
        What stands for ``{timestamp}``, the same for all sites.
    user : `str`
        Operator if the file names none.
    service_class : `str`, optional
        Service class to use instead of the file's.

    Raises
    ------
    SettingsError
        Raised if it cannot be read, or its section ``campaignSites`` cannot
        be used.
    """
    try:
        content = Config(path)
    except Exception as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error
    if service_class:
        content["wmsServiceClass"] = service_class
    return make_configuration(_plain(content), path=path, timestamp=timestamp, user=user)


def make_configuration(
    content: Mapping[str, Any], *, path: str, timestamp: str, user: str
) -> CampaignConfiguration:
    """Make a configuration of what a file holds.

    Parameters
    ----------
    content : mapping
        Content of the file, includes resolved.
    path : `str`
        The file.
    timestamp, user : `str`
        As in `read_configuration`.

    Raises
    ------
    SettingsError
        Raised if it cannot be used.
    """
    section = read_section(content.get(SECTION), source=path)
    try:
        bps = _over_defaults(Config(dict(content)), timestamp=timestamp, user=user)
    except ValueError as error:
        raise SettingsError(f"{path} cannot be used: {error.__cause__ or error}") from error
    configuration = CampaignConfiguration(str(Path(path).absolute()), content, bps, section)
    if graph := configuration.raw("qgraphFile"):
        raise SettingsError(
            f"qgraphFile is {graph!r}: a quantum graph that is made already cannot be divided among sites. "
            "Take it out; each site gets a graph of its own."
        )
    return configuration


def _over_defaults(content: Config, *, timestamp: str, user: str) -> BpsConfig:
    """Do what BPS does when it starts to submit, as far as names depend on
    it.
    """
    bps = BpsConfig(content, search_order=BPS_SEARCH_ORDER, defaults=BPS_DEFAULTS)
    bps[".bps_defined.timestamp"] = timestamp
    if "operator" not in bps:
        bps[".bps_defined.operator"] = user
    if "uniqProcName" not in bps:
        bps[".bps_defined.uniqProcName"] = str(bps["outputRun"]).replace("/", "_")
    return bps


def _plain(content: Config) -> dict[str, Any]:
    plain: dict[str, Any] = content.toDict()
    return plain
