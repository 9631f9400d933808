"""Find the value of a key as BPS does: in the configuration of a run, in the profile of its site, in the
packaged base, or in the models of keys.
"""

from __future__ import annotations

__all__ = ["KeyLookup", "find_first"]

import re
from collections.abc import Iterable, Mapping
from functools import cached_property, partial
from typing import Any, TypeVar

from lsst.daf.butler import Config

from lsst.ctrl.bps import BpsConfig

from ..errors import SettingsError
from ..plan.commands import render_shell_unit
from . import sites
from .bps_command import configuration_file
from .files import find_origin
from .keys import CHECKED_MODELS, CORE_KEYS, KEYS, Key, Origin, Section, keys_of

# --- a configuration over a profile ------------------------------------------

Layer = Mapping[str, Any]

_REPLACED = re.compile(r"[{}$<]|bpsEval")
"""What BPS may replace in a text; all other texts mean what they say."""

_SHELL_PIECES = ("setupLSSTEnv", "custom_lsst_setup", "jobCleanup", "jobContainer")
"""Keys with shell commands that stand in the commands of tasks; the last one holds the others."""

_MUST_SUCCEED = ("setupLSSTEnv", "custom_lsst_setup")
"""Those whose failure ends a job."""

_PLAIN_KINDS = (bool, int, float, list, type(None))


class LayeredConfig:
    """The configuration of a run over a profile, searched as BPS searches.

    The profile counts where the configuration has no value.  Where BPS looks for keys is worked out once for
    each label and site; only values in which something is to be replaced are left to BPS.
    """

    def __init__(self, profile: Layer, config: BpsConfig | None) -> None:
        self._profile = profile
        self._config = config
        self._known: dict[tuple[tuple[str, str], ...], tuple[Layer, ...]] = {}

    @cached_property
    def content(self) -> dict[str, Any]:
        """All of it as plain mappings."""
        merged = Config(dict(self._profile))
        if self._config is not None:
            # A BpsConfig would replace variables while it is copied.
            merged.update(Config(self._config))
        content: dict[str, Any] = merged.toDict()
        return content

    @cached_property
    def _order(self) -> list[str]:
        """Sections in the order in which they are searched."""
        return self._config.search_order if self._config is not None else []

    @cached_property
    def _searchable(self) -> BpsConfig:
        """All of it for BPS."""
        return BpsConfig(self.content, search_order=self._order or None)

    def layers(self, current: Mapping[str, str], section: Layer | None = None) -> tuple[Layer, ...]:
        """Return the mappings in which BPS looks for a key, in this order.

        ``current`` is the label, site and cloud (``curr_pipetask`` and so on),
        ``section`` one to look into before all others (BPS: ``searchobj``).
        """
        key = tuple(current.items())
        layers = self._known.get(key)
        if layers is None:
            layers = self._known[key] = tuple(self._find_layers(current))
        return (layers[0], section, *layers[1:]) if section else layers

    def _find_layers(self, current: Mapping[str, str]) -> Iterable[Layer]:
        """Yield the mappings: see `~lsst.ctrl.bps.BpsConfig.search`."""
        yield {**(self.content.get("current") or {}), **current}
        for name in self._order:
            entries = self.content.get(name)
            if isinstance(entries, dict):
                own = entries.get(current.get(f"curr_{name}", ""))
                yield own if isinstance(own, dict) else entries
        yield self.content

    def search(
        self, name: str, current: Mapping[str, str], *, section: Layer | None = None, as_written: bool = False
    ) -> Any:
        """Return the value of a key as BPS would, `None` without one; with
        ``as_written``, environment variables stay as they are.
        """
        value = find_first(name, self.layers(current, section))
        if isinstance(value, _PLAIN_KINDS) or (isinstance(value, str) and not _REPLACED.search(value)):
            return value
        options: dict[str, Any] = {"curvals": dict(current), "default": None}
        if as_written:
            options |= {"expandEnvVars": False, "replaceEnvVars": False}
            options["curvals"] |= self._shell_units(current, section)
        if section:
            options["searchobj"] = section
        return self._searchable.search(name, opt=options)[1]

    def _shell_units(self, current: Mapping[str, str], section: Layer | None) -> dict[str, str]:
        """Return the pieces of shell text in the commands of tasks, each as a unit of its own."""
        values = dict(current)
        for name in _SHELL_PIECES:
            options: dict[str, Any] = {"curvals": values, "default": "", "expandEnvVars": False}
            if section:
                options["searchobj"] = section
            text = str(self._searchable.search(name, opt=options)[1] or "")
            # A container's command may stand on several lines.
            text = text.replace("\n", " ") if name == "jobContainer" else text
            values[name] = render_shell_unit(text, key=name if name in _MUST_SUCCEED else "")
        return {name: values[name] for name in _SHELL_PIECES}


def find_first(name: str, layers: Iterable[Layer]) -> Any:
    """Return the value in the first mapping that has a key, or `None`."""
    return next((layer[name] for layer in layers if name in layer), None)


# --- keys --------------------------------------------------------------------

# Labels whose settings are in a section of their own, and that section.
_SECTIONS = {
    "finalJob": "finalJob",
    "customJob": "customJob",
    "remoteBuild": "remoteBuild",
    "rucioRegister": "rucio",
}

_FORMAT_VARIABLE = re.compile(r"(?<!\$)\{([A-Za-z_]\w*)\}")

_Keys = TypeVar("_Keys", bound=Section)


class KeyLookup:
    """Looks keys up: in the configuration of the run, then in the profile of
    the site, then in the packaged base, then in the models of keys.
    """

    def __init__(self, config: BpsConfig | None, env: Mapping[str, str]) -> None:
        self._config = config
        self._env = env
        self._elsewhere: dict[str, LayeredConfig] = {}
        self._currents: dict[str, dict[str, str]] = {}

    @cached_property
    def _profile(self) -> dict[str, Any]:
        """Profile of the run's site over the packaged base."""
        return {**sites.base_profile(), **sites.profile_of(self._run_site)}

    @cached_property
    def _merged(self) -> LayeredConfig:
        """The configuration over the profile."""
        return LayeredConfig(self._profile, self._config)

    def _merged_for(self, current: Mapping[str, str]) -> LayeredConfig:
        """The configuration over the profile of a label's site."""
        site = current.get("curr_site", "")
        if site not in self._elsewhere:
            profile = sites.profile_of(site)
            same = not profile or profile == sites.profile_of(self._run_site)
            over = self._merged if same else LayeredConfig({**sites.base_profile(), **profile}, self._config)
            self._elsewhere[site] = over
        return self._elsewhere[site]

    @cached_property
    def _run_site(self) -> str:
        """Site of the run."""
        return str(self._config.get("computeSite") or "") if self._config is not None else ""

    def read(self, model: type[_Keys], label: str = "") -> _Keys:
        """Return the values of the keys of a model, for a label or for the run."""
        return model.parse(self._values(keys_of(model), label), source=partial(self.source, label=label))

    def get(self, name: str, label: str = "") -> Any:
        """Return the value of one key, of this plugin or of BPS; see `read`."""
        key = KEYS.get(name) or CORE_KEYS[name]
        values = self._values({name: key}, label)
        return getattr(key.model.parse(values, source=partial(self.source, label=label)), key.field)

    def wrong_values(self, labels: Iterable[str]) -> list[SettingsError]:
        """Return an error for each value that cannot be used; labels are those to
        search keys for that may be set for a label.
        """
        everywhere = ["", *labels]
        errors: dict[str, SettingsError] = {}
        for model in CHECKED_MODELS:
            found = [
                error
                for label in (everywhere if model.per_label else [""])
                for error in model.wrong_values(
                    self._values(keys_of(model), label), source=partial(self.source, label=label)
                )
            ]
            order = list(keys_of(model))
            found.sort(key=lambda error: order.index(error.key))
            errors |= {str(error): error for error in found}
        return list(errors.values())

    def source(self, name: str, value: Any, *, label: str = "") -> Origin:
        """Find out where a value is from, as well as it can be told."""
        if self._config is not None:
            cmdline = self._config.get("bps_cmdline")
            if isinstance(cmdline, Config) and Config.__contains__(cmdline, name):
                return Origin(words="command line")
        # A value that all labels share is not the label's own.
        current = self._current("")
        shared = self._merged_for(current).search(name, current, as_written=True)
        origin = find_origin(configuration_file(), name, value, self._env)
        if not origin.file and name in self._profile and str(self._profile[name]) == str(value):
            origin = Origin(words="profile of the site or packaged base")
        return origin._replace(label="" if shared == value else label)

    def check_variables(
        self, name: str, labels: Iterable[str] = (), *, optional: re.Pattern[str] | None = None
    ) -> None:
        """Check that `missing_variables` finds none but those whose name matches ``optional``: they get a
        value later, or may have none.
        """
        missing = {
            variable: key
            for variable, key in self.missing_variables(name, labels).items()
            if optional is None or not optional.fullmatch(variable)
        }
        if missing:
            listed = ", ".join(f"{variable} (in {key})" for variable, key in sorted(missing.items()))
            hint = (
                "; LSST_VERSION is the release to use, such as w_2026_45" if "LSST_VERSION" in missing else ""
            )
            raise SettingsError(
                f"{name} uses variables that the configuration does not set: {listed}. Set them{hint}.",
                key=name,
            )

    def missing_variables(self, name: str, labels: Iterable[str] = ()) -> dict[str, str]:
        """Return the ``{variables}`` without a value themselves in the values that a key, of this plugin or
        of BPS, has for the run and for labels, with the keys in which they stand.
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
                    else:
                        missing.setdefault(variable, key)
        return missing

    def _values(self, keys: Mapping[str, Key], label: str) -> dict[str, Any]:
        """Return what the configuration has for keys; `None` for nothing."""
        if self._config is None:
            return {}
        current = self._current(label)
        merged = self._merged_for(current)
        return {
            name: merged.search(
                name, current, section=self._section(label, name), as_written=key.kind.as_written
            )
            for name, key in keys.items()
        }

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
