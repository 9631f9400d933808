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
from .keys import KEYS, convert
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
        self._elsewhere: dict[str, BpsConfig] = {}

    @cached_property
    def _beneath(self) -> dict[str, Any]:
        """Profile of the run's site over the packaged base."""
        beneath = sites.base()
        beneath.update(sites.profile_of(self._run_site))
        return beneath

    @cached_property
    def _merged(self) -> BpsConfig:
        """The configuration over the profile, for values with variables."""
        return self._over(self._beneath)

    def _over(self, beneath: Mapping[str, Any]) -> BpsConfig:
        """Put the configuration over a profile."""
        merged = Config(dict(beneath))
        if self._config is not None:
            # A BpsConfig would put variables in while it is copied.
            merged.update(Config(self._config))
        order = self._config.search_order if self._config is not None else None
        return BpsConfig(merged, search_order=order)

    def _merged_for(self, current: Mapping[str, str]) -> BpsConfig:
        """The configuration over the profile of a label's site."""
        site = current.get("curr_site", "")
        if not sites.profile_of(site) or sites.profile_of(site) == sites.profile_of(self._run_site):
            return self._merged
        if site not in self._elsewhere:
            self._elsewhere[site] = self._over({**sites.base(), **sites.profile_of(site)})
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
            Key.
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
        key = KEYS[name]
        value = self._find(name, label, raw=raw)
        return convert(
            key, key.default if value is None else value, source=lambda: self.source(name, value, label)
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

    def check_variables(self, name: str, labels: Iterable[str] = (), *, known: Iterable[str] = ()) -> None:
        """Check that all ``{variables}`` in a value have a value themselves.

        Parameters
        ----------
        name : `str`
            Key, of this plugin or of BPS.
        labels : iterable of `str`, optional
            Labels to search it for, too.
        known : iterable of `str`, optional
            Variables that get a value later, or that may have none.

        Raises
        ------
        SettingsError
            Raised if one has none; names it and where it stands.
        """
        options: dict[str, Any] = {"replaceVars": False, "expandEnvVars": False, "replaceEnvVars": False}
        missing: dict[str, str] = {}
        for label in ["", *labels]:
            where = {**options, **self._section(label, name)}
            current = self._current(label)
            pending, seen = [name], {name, *known}
            while pending:
                key = pending.pop()
                _, text = self._merged.search(key, opt={**where, "curvals": dict(current), "default": None})
                for variable in _FORMAT_VARIABLE.findall(text) if isinstance(text, str) else ():
                    if variable in seen:
                        continue
                    seen.add(variable)
                    found, _ = self._merged.search(variable, opt={**where, "curvals": dict(current)})
                    if found:
                        pending.append(variable)
                    else:
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
        options: dict[str, Any] = {"curvals": current, "default": None}
        if raw:
            options |= {"expandEnvVars": False, "replaceEnvVars": False}
        options |= self._section(label, name)
        _, value = self._merged_for(current).search(name, opt=options)
        return value

    def _section(self, label: str, name: str) -> dict[str, Any]:
        """Option that has BPS look into the section of a label first, if the
        key is there.
        """
        own = _SECTIONS.get(label, "")
        section = self._merged[own] if own and own in self._merged else None
        if isinstance(section, Config) and Config.__contains__(section, name):
            return {"searchobj": section}
        return {}

    def _current(self, label: str) -> dict[str, str]:
        """Values that tell BPS in which sections to look."""
        current = {"curr_cluster": label, "curr_pipetask": label} if label else {}
        for key, section in (("computeSite", "curr_site"), ("computeCloud", "curr_cloud")):
            _, value = self._merged.search(key, opt={"curvals": dict(current), "default": None})
            if value:
                current[section] = str(value)
        return current
