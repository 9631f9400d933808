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
from .errors import SettingsError
from .keys import KEYS, convert

# Labels whose settings are in a section of their own.
_SECTIONS = ("finalJob", "customJob", "remoteBuild")

_FORMAT_VARIABLE = re.compile(r"(?<!\$)\{([A-Za-z_]\w*)\}")


class KeyLookup:
    """Looks keys up: in the configuration of the run, then in the profile of
    the site, then in the packaged base, then in the table of keys.
    """

    def __init__(self, config: BpsConfig | None, env: Mapping[str, str]) -> None:
        self._config = config
        self._env = env

    @cached_property
    def _beneath(self) -> dict[str, Any]:
        """Profile of the run's site over the packaged base."""
        site = str(self._config.get("computeSite") or "") if self._config is not None else ""
        beneath = sites.base()
        beneath.update(sites.profile_of(site))
        return beneath

    @cached_property
    def _merged(self) -> BpsConfig:
        """The configuration over the profile, for values with variables."""
        merged = Config(self._beneath)
        if self._config is not None:
            # A BpsConfig would put variables in while it is copied.
            merged.update(Config(self._config))
        order = self._config.search_order if self._config is not None else None
        return BpsConfig(merged, search_order=order)

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
        """
        key = KEYS[name]
        value, source = self._find(name, label, raw=raw)
        return convert(key, key.default if value is None else value, source=source)

    def check_variables(self, name: str, labels: Iterable[str]) -> None:
        """Check that all ``{variables}`` in a value have a value themselves.

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
            pending, seen = [name], {name}
            while pending:
                key = pending.pop()
                _, text = self._merged.search(key, opt={**where, "curvals": dict(current), "default": None})
                for variable in _FORMAT_VARIABLE.findall(text) if isinstance(text, str) else ():
                    found, _ = self._merged.search(variable, opt={**where, "curvals": dict(current)})
                    if not found:
                        missing.setdefault(variable, key)
                    elif variable not in seen:
                        seen.add(variable)
                        pending.append(variable)
        if missing:
            listed = ", ".join(f"{variable} (in {key})" for variable, key in sorted(missing.items()))
            raise SettingsError(
                f"{name} uses variables that the configuration does not set: {listed}. Set them; "
                "LSST_VERSION, for instance, is the release to use, such as w_2026_45."
            )

    def _find(self, name: str, label: str, *, raw: bool) -> tuple[Any, str]:
        """Return a value and where it is from, or `None`."""
        if self._config is None:
            return None, "default"
        options: dict[str, Any] = {"curvals": self._current(label), "default": None}
        if raw:
            options |= {"expandEnvVars": False, "replaceEnvVars": False}
        options |= self._section(label, name)
        _, value = self._merged.search(name, opt=options)
        return value, f"label {label}" if label else "BPS configuration"

    def _section(self, label: str, name: str) -> dict[str, Any]:
        """Option that has BPS look into the section of a label first, if the
        key is there.
        """
        section = self._merged[label] if label in _SECTIONS and label in self._merged else None
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
