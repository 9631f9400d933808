"""A configuration over a profile, searched as BPS searches it but without
going through `~lsst.ctrl.bps.BpsConfig.search` each time, which is slow.
"""

from __future__ import annotations

__all__ = ["LayeredConfig", "find_first"]

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from lsst.daf.butler import Config

from lsst.ctrl.bps import BpsConfig

Layer = Mapping[str, Any]

_NOT_PLAIN = re.compile(r"[{}$<]|bpsEval")
"""What BPS may replace in a text; all other texts mean what they say."""

_PLAIN_KINDS = (bool, int, float, list, type(None))


class LayeredConfig:
    """The configuration of a run over a profile.

    Where BPS looks for keys is worked out once for each label and site; only
    values with something to replace in them are left to BPS.

    Parameters
    ----------
    beneath : mapping of `str`
        The profile.
    config : `~lsst.ctrl.bps.BpsConfig` or `None`
        What goes before it.
    """

    def __init__(self, beneath: Layer, config: BpsConfig | None) -> None:
        self._beneath = beneath
        self._config = config
        self._known: dict[tuple[tuple[str, str], ...], tuple[Layer, ...]] = {}

    @cached_property
    def content(self) -> dict[str, Any]:
        """All of it as plain mappings."""
        merged = Config(dict(self._beneath))
        if self._config is not None:
            # A BpsConfig would put variables in while it is copied.
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

        Parameters
        ----------
        current : mapping of `str` to `str`
            Current label, site and cloud (``curr_pipetask`` and so on).
        section : mapping, optional
            Section to look into before all others (BPS: ``searchobj``).
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
        self, name: str, current: Mapping[str, str], *, section: Layer | None = None, raw: bool = False
    ) -> Any:
        """Return the value of a key as BPS would, `None` without one.

        Parameters
        ----------
        name : `str`
            Key.
        current, section
            See `layers`.
        raw : `bool`, optional
            Whether environment variables stay as they are.
        """
        value = find_first(name, self.layers(current, section))
        if isinstance(value, _PLAIN_KINDS) or (isinstance(value, str) and not _NOT_PLAIN.search(value)):
            return value
        options: dict[str, Any] = {"curvals": dict(current), "default": None}
        if raw:
            options |= {"expandEnvVars": False, "replaceEnvVars": False}
        if section:
            options["searchobj"] = section
        return self._searchable.search(name, opt=options)[1]


def find_first(name: str, layers: Iterable[Layer]) -> Any:
    """Return the value in the first mapping that has a key, or `None`.

    Parameters
    ----------
    name : `str`
        Key.
    layers : iterable of mappings
        The mappings.
    """
    for layer in layers:
        if name in layer:
            return layer[name]
    return None
