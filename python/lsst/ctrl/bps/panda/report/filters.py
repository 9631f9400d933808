"""Filters of the run list, as ``bps report --pass-thru`` takes them."""

from __future__ import annotations

__all__ = ["FILTER_KEYS", "RunFilters", "parse_filters"]

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from lsst.ctrl.bps.wms_service import WmsStates

from ..errors import SettingsError

FILTER_KEYS = {
    "name": "name of the run",
    "operator": "who submitted it",
    "project": "project (25 characters are kept)",
    "campaign": "campaign (50 characters are kept)",
    "payload": "name of the payload",
    "state": "state of the run, for instance RUNNING or FAILED",
    "site": "computing site",
}
"""Documented filters and what they look at."""

_ALIASES = {"run": "name", "user": "operator"}


@dataclass(frozen=True, slots=True)
class RunFilters:
    """Conditions on runs; all keys must match, one pattern of each."""

    patterns: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Key and its patterns, shell-style."""

    def matches(self, fields: Mapping[str, str]) -> bool:
        """Tell whether a run is wanted.

        Parameters
        ----------
        fields : `~collections.abc.Mapping` [`str`, `str`]
            The run's values by filter key; an absent one is empty.

        Returns
        -------
        wanted : `bool`
            Whether each condition is met.
        """
        return all(
            any(fnmatchcase(fields.get(key, ""), pattern) for pattern in patterns)
            for key, patterns in self.patterns
        )

    def __bool__(self) -> bool:
        return bool(self.patterns)


def parse_filters(text: str | None) -> RunFilters:
    """Read filters.

    Parameters
    ----------
    text : `str` or `None`
        ``key=value`` pairs with blanks between them; a value may be quoted
        and may hold ``*``, ``?`` and ``[...]``.  Values of the same key are
        alternatives.

    Returns
    -------
    filters : `RunFilters`
        The filters; none for an empty text.

    Raises
    ------
    SettingsError
        Raised if a pair or a key is not understood; the text lists the keys.
    """
    patterns: dict[str, list[str]] = {}
    try:
        words = shlex.split(text or "")
    except ValueError as error:
        raise SettingsError(f"The filters {text!r} are not understood: {error}. {_usage()}") from None
    for word in words:
        key, equals, value = word.partition("=")
        key = _ALIASES.get(key.lower(), key.lower())
        if not equals:
            raise SettingsError(f"The filter {word!r} is not of the form key=value. {_usage()}")
        if key not in FILTER_KEYS:
            raise SettingsError(f"There is no filter {key!r}. {_usage()}")
        patterns.setdefault(key, []).append(_state_pattern(value) if key == "state" else value)
    return RunFilters(tuple((key, tuple(values)) for key, values in patterns.items()))


def _state_pattern(value: str) -> str:
    """Check that a pattern for states can match one."""
    pattern = value.upper()
    states = [state.name for state in WmsStates]
    if not any(fnmatchcase(state, pattern) for state in states):
        raise SettingsError(f"No state matches {value!r}. States: {', '.join(states)}.")
    return pattern


def _usage() -> str:
    keys = "; ".join(f"{key} ({meaning})" for key, meaning in FILTER_KEYS.items())
    return f"Filters are key=value pairs, values may hold * and ?: {keys}."
