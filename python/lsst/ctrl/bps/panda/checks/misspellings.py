"""Names in a configuration that are probably mistakes: misspelt keys, sites
and labels, and keys where they have no effect.
"""

from __future__ import annotations

__all__ = ["check_names", "closest_key", "find_misspelt_keys"]

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from lsst.daf.butler import Config

from lsst.ctrl.bps import BPS_DEFAULTS, BPS_SEARCH_ORDER, BpsConfig, GenericWorkflowJob

from ..errors import SettingsError
from ..findings import Finding, Severity, did_you_mean
from ..plan.grouping import yaml_key
from ..settings.bps_command import configuration_file
from ..settings.configuration import RunConfiguration
from ..settings.files import find_origin, find_repeated_keys
from ..settings.keys import BPS_KEYS, KEYS, PLAIN_SECTIONS, SECTIONS_BY_NAME, SET_UP_KEYS
from ..settings.search import KeyLookup
from ..settings.sites import notice_of, profile_of, site_names
from .configuration import read_labels

_LIKENESS = 0.88
"""Least similarity of two names, by `difflib`."""

# Sections with settings of labels, and the number of dots in the path of one.
_OF_LABELS = {"pipetask": 2, "cluster": 2, "finalJob": 1, "customJob": 1}

# Sections in which all names are the user's or the program's.
_FREE = frozenset(
    "bps_cmdline bps_defined environment inputs outputs ordering queues campaignSites prompt".split()  # noqa: SIM905
)

_VARIABLE = re.compile(r"\{(\w+)\}")


def check_names(
    config: BpsConfig, environment: Mapping[str, str], *, labels: Iterable[str] = ()
) -> list[Finding]:
    """Find misspelt and misplaced keys, labels that the run does not have,
    and what users of its site should know; all are hints.

    The environment is for variables in the names of included files; the
    labels of the run are checked if they are known already.
    """
    run = RunConfiguration(config)
    hints = [*find_misspelt_keys(config, environment), *find_misplaced_keys(config, environment)]
    hints += find_unknown_labels(run, environment, frozenset(labels := [*filter(None, labels)]))
    hints += find_overridden_keys(run, environment)
    for path, before, origin in find_repeated_keys(configuration_file(), environment):
        text = f"{path} stands twice, in line {before} also, and the last counts. Put both together."
        hints.append(Finding(Severity.WARNING, text, path, file=origin.file, line=origin.line))
    if text := _about_site(run.site, has_set_up=any(map(run.has, SET_UP_KEYS))):
        hints.append(_hint(text, "computeSite", run.site, environment))
    if labels:
        named = KeyLookup(config, environment).get("enableEventService") or {}
        if unknown := sorted(set(named) - set(labels)):
            text = (
                f"enableEventService names {', '.join(unknown)}, which this run does not have; its labels "
                f"are {', '.join(labels)}."
            )
            hints.append(Finding(Severity.HINT, text, key="enableEventService"))
    return hints


def _hint(text: str, key: str, value: Any, environment: Mapping[str, str]) -> Finding:
    """Make a hint about a key, with the place where the key stands."""
    origin = find_origin(configuration_file(), key, value, environment)
    return Finding(Severity.HINT, text, key=key, file=origin.file, line=origin.line)


@cache
def _known_names() -> frozenset[str]:
    """Return all keys that this plugin or BPS reads."""
    names = {str(part) for path in Config(BPS_DEFAULTS).nameTuples() for part in path}
    names.update(yaml_key(field.name) for field in fields(GenericWorkflowJob))
    sections = {*BPS_SEARCH_ORDER, *SECTIONS_BY_NAME, *PLAIN_SECTIONS}
    return frozenset(names | set(KEYS) | set(BPS_KEYS) | sections | _FREE)


def closest_key(name: str) -> str | None:
    """Return the key of this plugin or of BPS that a name is probably meant
    to be; `None` if it is one, or resembles none.
    """
    known = _known_names()
    if name in known:
        return None
    folded = {key.lower(): key for key in sorted(known)}
    # A numbered name such as `queue1` is the user's own.
    bare = name.lower().rstrip("0123456789_")
    near = difflib.get_close_matches(bare, folded, n=1, cutoff=_LIKENESS)
    if not near or (near[0] == bare and near[0] != name.lower()):
        return None
    return folded[near[0]]


def find_misspelt_keys(config: BpsConfig, environment: Mapping[str, str]) -> list[Finding]:
    """Find keys that look like misspelt ones, in the order of the configuration.

    A key that is used elsewhere, as ``{name}``, counts as a variable of the user's own.
    """
    content = RunConfiguration(config).content
    used = {name for text in _texts(content) for name in _VARIABLE.findall(text)}
    return [
        _hint(
            f"Key {path} of the configuration is not known; did you mean {meant}?", path, value, environment
        )
        for path, name, value in _keys(content)
        if name not in used and (meant := closest_key(name)) is not None
    ]


def find_misplaced_keys(config: BpsConfig, environment: Mapping[str, str]) -> list[Finding]:
    """Find keys of this plugin that are set for a label, where they have no
    effect, in the order of the configuration.
    """
    content = RunConfiguration(config).content
    hints = []
    sections = {section: content[section] for section in _OF_LABELS if section in content}
    for path, name, value in _keys(sections):
        depth = _OF_LABELS[path.partition(".")[0]]
        if path.count(".") == depth and name in KEYS and not KEYS[name].per_label:
            text = (
                f"Key {path} of the configuration has no effect: {name} is for the whole run. Set it at the "
                "top."
            )
            hints.append(_hint(text, path, value, environment))
    return hints


def find_unknown_labels(
    run: RunConfiguration, environment: Mapping[str, str], labels: frozenset[str]
) -> Iterator[Finding]:
    """Find settings for labels, and members of clusters, that the pipeline does not have; if that cannot be
    read, those that resemble labels of the run.
    """
    try:
        tasks, likeness = read_labels(run.pipeline)[0] if run.pipeline else frozenset[str](), 0.7
    except SettingsError:  # found by the checks
        tasks = frozenset()
    likeness = likeness if tasks else _LIKENESS
    known = tasks | labels | {"pipetaskInit"}
    clusters = run.section("cluster")
    named = {f"pipetask.{label}": label for label in run.section("pipetask")}
    for name, settings in clusters.items():
        members = str(settings.get("pipetasks") or "") if isinstance(settings, Mapping) else ""
        named |= {f"cluster.{name}.pipetasks": label for label in map(str.strip, members.split(",")) if label}
    used = {str(site) for _, site in run.find_all("computeSite")}
    for site in run.section("site"):
        if not profile_of(site) and site not in used and (meant := did_you_mean(site.upper(), site_names())):
            yield _hint(
                f"site.{site} is for a site without profile{meant}", f"site.{site}", None, environment
            )
    unlike = []
    for path, label in named.items():
        if label in known or label in clusters or "{" in label:
            continue
        if meant := did_you_mean(label, known, likeness=likeness):
            yield _hint(
                f"{path} is for label {label}, which the pipeline does not have{meant}",
                path,
                None,
                environment,
            )
        elif tasks:
            unlike.append(label)
    if unlike:
        listed = ", ".join(unlike)
        text = f"Settings for {listed} have no effect: the pipeline has no such labels."
        yield Finding(Severity.HINT, text, key="pipetask")


def find_overridden_keys(run: RunConfiguration, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Find keys at the top that BPS looks for in the section payload first, and finds there."""
    payload = run.section("payload")
    for key, value in run.content.items():
        if key in payload and value != payload[key]:
            text = (
                f"{key} at the top has no effect: BPS takes payload.{key}, {payload[key]!r}, even if that "
                "is its default. Set it in the section payload."
            )
            yield _hint(text, key, value, environment)


def _about_site(site: str, *, has_set_up: bool) -> str:
    """Return what users of a site should know: the notice of its profile,
    that its name looks misspelt, or that it has no profile.
    """
    if not site:
        return "computeSite is not set, so that PanDA may send jobs to any site. Set it to keep them at one."
    if profile_of(site):
        notice = notice_of(site)
        return f"Site {site}: {notice}" if notice else ""
    folded = {name.upper(): name for name in site_names()}
    if near := difflib.get_close_matches(site.upper(), folded, n=1, cutoff=0.7):
        return f"computeSite {site} has no profile; did you mean {folded[near[0]]}?"
    if has_set_up:
        return ""
    return (
        f"computeSite {site} has no profile, so that jobs run without any set-up of software. Sites with "
        f"a profile: {', '.join(site_names())}. For another site, set setupLSSTEnv."
    )


def _keys(section: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield the dotted path, the name and the value of each key whose name is not the user's to choose."""
    for key, value in section.items():
        name = str(key)
        yield above + name, name, value
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
