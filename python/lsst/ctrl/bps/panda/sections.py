"""Sections of a configuration that are none, at which BPS's own search fails."""

from __future__ import annotations

__all__ = ["PLAIN_SECTIONS", "SECTIONS_BY_NAME", "find_broken_sections"]

from collections.abc import Mapping
from typing import Any

from lsst.daf.butler import Config

SECTIONS_BY_NAME = ("pipetask", "cluster", "site", "cloud")
"""Sections whose entries have names of the user's (labels, sites), and settings
below them."""

PLAIN_SECTIONS = ("payload", "finalJob", "customJob", "remoteBuild")
"""Sections with settings of their own."""


def find_broken_sections(config: Mapping[str, Any]) -> list[str]:
    """Find sections that are none, such as a label with all its settings
    commented out: BPS's own search fails at these.

    Parameters
    ----------
    config : mapping
        Configuration of the run.

    Returns
    -------
    problems : `list` [`str`]
        A text each.
    """
    content = Config(config).toDict()
    problems = []
    for name in (*SECTIONS_BY_NAME, *PLAIN_SECTIONS):
        section = content.get(name, {})
        entries = {name: section}
        if isinstance(section, Mapping) and name in SECTIONS_BY_NAME:
            entries = {f"{name}.{key}": value for key, value in section.items()}
        problems += [
            f"{key} is {value!r}; it must be a section of keys with values. Remove it if it is empty."
            for key, value in entries.items()
            if not isinstance(value, Mapping)
        ]
    if content.get("computeSite") == "":
        problems.append("computeSite is ''. Give the name of a site, or remove the key.")
    return problems
