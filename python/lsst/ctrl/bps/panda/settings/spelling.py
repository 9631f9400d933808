"""Keys of a configuration that look like misspelt ones, wherever they stand."""

from __future__ import annotations

__all__ = ["closest_key", "find_misplaced_keys", "find_misspelt_keys", "find_unknown_labels"]

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from lsst.daf.butler import Config

from lsst.ctrl.bps import BPS_DEFAULTS, BPS_SEARCH_ORDER, BpsConfig, GenericWorkflowJob

from .keys import KEYS
from .search import PLAIN_SECTIONS, SECTIONS_BY_NAME

_LIKENESS = 0.88
"""How much alike two names must be, by `difflib`."""

# Sections with settings of labels, and the number of dots in the path of one.
_OF_LABELS = {"pipetask": 2, "cluster": 2, "finalJob": 1, "customJob": 1}

# Sections in which all names are the user's or the program's.
_FREE = frozenset(
    "bps_cmdline bps_defined environment inputs outputs ordering queues campaignSites".split()  # noqa: SIM905
)

# What BPS reads and neither its defaults nor the attributes of a job name.
_MORE = frozenset(
    """
    includeConfigs pipelineYaml qgraphFile operator project campaign payloadName butlerConfig inCollection
    dataQuery extraQgraphOptions extraInitOptions extraRunQuantumOptions extraUpdateQgraphOptions executable
    pipetasks dimensions equalDimensions partitionDimensions partitionMaxClusters partitionMaxSize
    findDependencyMethod uniqProcName timestamp bpsGenerateConfig bpsBatchSubmission enabled files whenSetup
    implementation custom_lsst_setup setupLSSTEnv jobInitDir jobLogDir jobContainer jobCleanup payloadCommand
    dockerImageLocation sw_image s3EndpointUrl LSST_VERSION LSST_RUN_TEMP_SPACE IDDS_MAX_NAME_LENGTH
    """.split()  # noqa: SIM905
)

_VARIABLE = re.compile(r"\{(\w+)\}")


@cache
def _known_names() -> frozenset[str]:
    """All keys that somebody reads."""
    names = {str(part) for path in Config(BPS_DEFAULTS).nameTuples() for part in path}
    for field in fields(GenericWorkflowJob):
        first, *others = field.name.split("_")
        names.add(first + "".join(word.capitalize() for word in others))
    sections = {*BPS_SEARCH_ORDER, *SECTIONS_BY_NAME, *PLAIN_SECTIONS}
    return frozenset(names | set(KEYS) | sections | _FREE | _MORE)


def closest_key(name: str) -> str | None:
    """Return the key that a name is probably meant to be.

    Parameters
    ----------
    name : `str`
        A key of a configuration.

    Returns
    -------
    key : `str` or `None`
        A key of this plugin or of BPS that differs a little, or `None`.
    """
    known = _known_names()
    if name in known:
        return None
    folded = {key.lower(): key for key in sorted(known)}
    # One that is numbered, as `queue1`, has a meaning of its own.
    near = difflib.get_close_matches(name.lower().rstrip("0123456789_"), folded, n=1, cutoff=_LIKENESS)
    if not near or (near[0] == name.lower().rstrip("0123456789_") and near[0] != name.lower()):
        return None
    return folded[near[0]]


def find_misspelt_keys(config: BpsConfig) -> list[str]:
    """Say which keys look like misspelt ones.

    A key whose value is used elsewhere, as ``{name}``, is taken for a
    variable of the user's.

    Parameters
    ----------
    config : `~lsst.ctrl.bps.BpsConfig`
        Configuration of a run.

    Returns
    -------
    hints : `list` [`str`]
        A text each, in the order of the configuration.
    """
    content = Config(config).toDict()
    used = {name for text in _texts(content) for name in _VARIABLE.findall(text)}
    hints = []
    for path, name in _keys(content):
        meant = closest_key(name) if name not in used else None
        if meant is not None:
            hints.append(f"Key {path} of the configuration is not known; did you mean {meant}?")
    return hints


def find_misplaced_keys(config: BpsConfig) -> list[str]:
    """Say which keys of this plugin stand at a label, where they mean nothing.

    Parameters
    ----------
    config : `~lsst.ctrl.bps.BpsConfig`
        Configuration of a run.

    Returns
    -------
    hints : `list` [`str`]
        A text each, in the order of the configuration.
    """
    content = Config(config).toDict()
    return [
        f"Key {path} of the configuration has no effect: {name} is for the whole run. Set it at the top."
        for path, name in _keys({section: content[section] for section in _OF_LABELS if section in content})
        if path.count(".") == _OF_LABELS[path.partition(".")[0]] and name in KEYS and not KEYS[name].per_label
    ]


def find_unknown_labels(named: Iterable[str], labels: Iterable[str]) -> list[str]:
    """Say which labels of ``enableEventService`` a run does not have.

    Parameters
    ----------
    named : iterable of `str`
        Labels in the configuration.
    labels : iterable of `str`
        Labels of the run.

    Returns
    -------
    hints : `list` [`str`]
        One text, or none.
    """
    if not (unknown := sorted(set(named) - set(labels))):
        return []
    return [
        f"enableEventService names {', '.join(unknown)}, which this run does not have; its labels are "
        f"{', '.join(labels)}."
    ]


def _keys(section: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted path and the name of each key that is no name of the
    user's.
    """
    for key, value in section.items():
        name = str(key)
        yield above + name, name
        if not isinstance(value, Mapping):
            continue
        if name in PLAIN_SECTIONS:
            yield from _keys(value, f"{above}{name}.")
        elif name in SECTIONS_BY_NAME:
            for label, settings in value.items():
                if isinstance(settings, Mapping):
                    yield from _keys(settings, f"{above}{name}.{label}.")


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in a configuration."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _texts(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _texts(entry)
