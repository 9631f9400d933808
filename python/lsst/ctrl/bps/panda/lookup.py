"""Find the value of a key: in the configuration of a run, in the profile of
its site, in the packaged base, or in the table of keys.
"""

from __future__ import annotations

__all__ = ["KeyLookup"]

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from lsst.daf.butler import Config

from lsst.ctrl.bps import BpsConfig

from . import sites
from .command_line import configuration_file
from .errors import SettingsError
from .keys import CORE_KEYS, KEYS, convert
from .layers import LayeredConfig, find_first
from .origins import find_origin

# Labels whose settings are in a section of their own, and that section.
_SECTIONS = {
    "finalJob": "finalJob",
    "customJob": "customJob",
    "remoteBuild": "remoteBuild",
    "rucioRegister": "rucio",
}

_FORMAT_VARIABLE = re.compile(r"(?<!\$)\{([A-Za-z_]\w*)\}")


class KeyLookup:
    """Looks keys up: in the configuration of the run, then in the profile of
    the site, then in the packaged base, then in the table of keys.
    """

    def __init__(self, config: BpsConfig | None, env: Mapping[str, str]) -> None:
        self._config = config
        self._env = env
        self._elsewhere: dict[str, LayeredConfig] = {}
        self._currents: dict[str, dict[str, str]] = {}

    @cached_property
    def _beneath(self) -> dict[str, Any]:
        """Profile of the run's site over the packaged base."""
        beneath = sites.base()
        beneath.update(sites.profile_of(self._run_site))
        return beneath

    @cached_property
    def _merged(self) -> LayeredConfig:
        """The configuration over the profile."""
        return LayeredConfig(self._beneath, self._config)

    def _merged_for(self, current: Mapping[str, str]) -> LayeredConfig:
        """The configuration over the profile of a label's site."""
        site = current.get("curr_site", "")
        if site not in self._elsewhere:
            profile = sites.profile_of(site)
            same = not profile or profile == sites.profile_of(self._run_site)
            over = self._merged if same else LayeredConfig({**sites.base(), **profile}, self._config)
            self._elsewhere[site] = over
        return self._elsewhere[site]

    @cached_property
    def _run_site(self) -> str:
        """Site of the run."""
        return str(self._config.get("computeSite") or "") if self._config is not None else ""

    def get(self, name: str, label: str = "", *, raw: bool = False) -> Any:
        """Return the value of a key, of its kind.

        Parameters
        ----------
        name : `str`
            Key, of this plugin or a number of BPS.
        label : `str`, optional
            Label to search it for.
        raw : `bool`, optional
            Whether environment variables stay as they are.

        Raises
        ------
        SettingsError
            Raised if the value cannot be used; names key, value and where it
            stands.
        """
        key = KEYS.get(name) or CORE_KEYS[name]
        value = self._find(name, label, raw=raw)
        return convert(
            key, key.default if value is None else value, source=lambda: self.source(key.name, value, label)
        )

    def source(self, name: str, value: Any, label: str = "") -> str:
        """Say where a value is from, as well as it can be told.

        Parameters
        ----------
        name : `str`
            Key.
        value : `~typing.Any`
            Its value.
        label : `str`, optional
            Label that it was searched for.
        """
        if self._config is not None:
            cmdline = self._config.get("bps_cmdline")
            if isinstance(cmdline, Config) and Config.__contains__(cmdline, name):
                return "command line"
        if label and self._find(name, "", raw=True) == value:
            label = ""
        place = find_origin(configuration_file(), name, value, self._env)
        if not place and name in self._beneath and str(self._beneath[name]) == str(value):
            place = "profile of the site or packaged base"
        return ", ".join(filter(None, (f"label {label}" if label else "", place))) or "BPS configuration"

    def check_variables(
        self, name: str, labels: Iterable[str] = (), *, optional: re.Pattern[str] | None = None
    ) -> None:
        """Check that all ``{variables}`` in a value have a value themselves.

        Parameters
        ----------
        name : `str`
            Key, of this plugin or of BPS.
        labels : iterable of `str`, optional
            Labels to search it for, too.
        optional : `re.Pattern`, optional
            What variables are called that get a value later, or may have
            none.

        Raises
        ------
        SettingsError
            Raised if one has none; names it and where it stands.
        """
        missing: dict[str, str] = {}
        for label in ["", *labels]:
            layers = self._merged.layers(self._current(label), self._section(label, name))
            pending, seen = [name], {name}
            while pending:
                key = pending.pop()
                text = find_first(key, layers)
                for variable in _FORMAT_VARIABLE.findall(text) if isinstance(text, str) else ():
                    if variable in seen:
                        continue
                    seen.add(variable)
                    if any(variable in layer for layer in layers):
                        pending.append(variable)
                    elif optional is None or not optional.fullmatch(variable):
                        missing.setdefault(variable, key)
        if missing:
            listed = ", ".join(f"{variable} (in {key})" for variable, key in sorted(missing.items()))
            hint = (
                "; LSST_VERSION is the release to use, such as w_2026_45" if "LSST_VERSION" in missing else ""
            )
            raise SettingsError(
                f"{name} uses variables that the configuration does not set: {listed}. Set them{hint}."
            )

    def _find(self, name: str, label: str, *, raw: bool) -> Any:
        """Return a value, or `None`."""
        if self._config is None:
            return None
        current = self._current(label)
        section = self._section(label, name)
        return self._merged_for(current).search(name, current, section=section, raw=raw)

    def _section(self, label: str, name: str) -> Mapping[str, Any] | None:
        """Section of a label in which BPS looks first, if the key is there."""
        section = self._merged.content.get(_SECTIONS[label]) if label in _SECTIONS else None
        return section if isinstance(section, dict) and name in section else None

    def _current(self, label: str) -> dict[str, str]:
        """Values that tell BPS in which sections to look."""
        if label in self._currents:
            return self._currents[label]
        current = {"curr_cluster": label, "curr_pipetask": label} if label else {}
        for key, section in (("computeSite", "curr_site"), ("computeCloud", "curr_cloud")):
            value = self._merged.search(key, current)
            if value:
                current[section] = str(value)
        self._currents[label] = current
        return current
