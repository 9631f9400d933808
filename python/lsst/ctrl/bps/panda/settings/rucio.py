"""The section ``rucio`` of a BPS configuration: its keys, and what they say as typed settings."""

from __future__ import annotations

__all__ = ["JOB_KEYS", "LABEL", "RUCIO_KEYS", "RegistrationSettings", "SECTION", "read_registration_settings"]

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from lsst.daf.butler import Config

from lsst.ctrl.bps import BpsConfig

from ..edgenode.rucio_program import Registration, RuleWanted
from ..errors import SettingsError
from .keys import Key, convert

RUCIO_KEYS: dict[str, Key] = {
    key.name: key
    for key in (
        Key("enabled", "yes or no", False, "Whether the run gets a registration step."),
        Key("datasetTypes", "list", [], "Dataset types to register; `*` stands for anything."),
        Key("scope", "text", "", "Scope in Rucio; at most 25 letters, digits, `_`, `-`, `.`."),
        Key("rse", "text", "", "Storage element (RSE) that the site's Butler writes to."),
        Key(
            "rseRoot",
            "text",
            "",
            "Path at the site below which lies a folder named like the scope, with the Butler's files in it.",
        ),
        Key("dtnUrl", "text", "", "URL that transfers put in the place of `rseRoot`, by the RSE's protocol."),
        Key(
            "registerConfig",
            "text",
            "",
            "Configuration of `lsst-rucio-register` that holds `scope`, `rucio_rse`, `rse_root` and "
            "`dtn_url`, for keys that are not here; read where `bps submit` runs.",
        ),
        Key("datasetName", "text", "{outputRun}", "Name of the dataset in Rucio."),
        Key("collection", "text", "{outputRun}", "Butler collection whose datasets are registered."),
        Key("where", "text", "", "Butler expression that selects among them."),
        Key(
            "butlerConfig",
            "text",
            "",
            "The Butler as the worker of the step reaches it, with the worker's variables written as "
            "`<ENV:NAME>`; empty: that of the run.",
        ),
        Key(
            "when",
            "text",
            "SUCCESS",
            "`SUCCESS`: only if all jobs succeeded; `ALWAYS`: also if some failed (the final job must not).",
        ),
        Key("rule.rseExpression", "text", "", "Where Rucio is to replicate the dataset; empty: no rule."),
        Key("rule.copies", "whole number", 1, "Replicas that the rule asks for."),
        Key("rule.lifetime", "whole number", 0, "Seconds after which the rule ends; 0: never."),
        Key("close", "yes or no", False, "Whether the dataset is closed, so that nothing can be added."),
        Key(
            "quantumGraph",
            "yes or no",
            False,
            "Whether the quantum graph goes along: it is copied to the RSE and attached to the dataset.",
        ),
        Key("chunkSize", "whole number", 200, "Files that are registered at once."),
        Key(
            "askRucio",
            "yes or no",
            True,
            "Whether Rucio is asked before the submission; no if the submit host has another account than "
            "the worker, or the server other rules than Rucio's generic policy.",
        ),
        Key("account", "text", "", "Rucio account of the step; empty: that of the worker's set-up."),
        Key(
            "python",
            "text",
            "python3",
            "Python of the worker that has the Butler, Rucio's clients and `lsst-rucio-register`.",
        ),
        Key("requestMemory", "whole number", 4096, "Memory of the step, MB."),
        Key("requestCpus", "whole number", 1, "Cores of the step."),
        Key("requestWalltime", "whole number", 0, "Longest time of the step, seconds; 0: not said."),
        Key("numberOfRetries", "whole number", 2, "Attempts of the step after the first one."),
    )
}
"""All keys of the section, by name; ``rule.copies`` is ``copies`` in its
section ``rule``."""

JOB_KEYS = (
    "computeCloud", "computeSite", "environment", "keepTokens", "priority", "processingType",
    "prodSourceLabel", "queue", "runnerCommand", "taskType", "vo",
)  # fmt: skip
"""Keys of any label that may stand in the section too."""


SECTION = "rucio"

LABEL = "rucioRegister"
"""Label of the step."""

# Key of ours -> key of the file of lsst-rucio-register.
_REGISTER_CONFIG = {"scope": "scope", "rse": "rucio_rse", "rseRoot": "rse_root", "dtnUrl": "dtn_url"}

_WHEN = ("SUCCESS", "ALWAYS")


@dataclass(frozen=True, slots=True)
class RegistrationSettings:
    """What the registration step registers, and how it runs."""

    registration: Registration
    always: bool
    """Whether it also runs if jobs failed."""

    quantum_graph: bool
    ask_rucio: bool
    account: str
    python: str
    memory: int
    """MB."""

    cores: int
    walltime: int
    """Seconds; 0 if not said."""

    retries: int
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of the step."""


def read_registration_settings(
    config: BpsConfig, environment: Mapping[str, str]
) -> RegistrationSettings | None:
    """Read the section.

    Parameters
    ----------
    config : `~lsst.ctrl.bps.BpsConfig`
        Configuration of a run.
    environment : mapping of `str` to `str`
        The environment.

    Returns
    -------
    settings : `RegistrationSettings` or `None`
        `None` if no registration is asked for.

    Raises
    ------
    SettingsError
        Raised if a key is not known, or a value cannot be used.
    """
    reader = _SectionReader(config, environment)
    if not reader.get("enabled"):
        return None
    reader.refuse_unknown()
    when = reader.get("when").upper()
    if when not in _WHEN:
        raise SettingsError(
            f"{SECTION}.when is {reader.get('when')!r} (BPS configuration); choose one of {', '.join(_WHEN)}."
        )
    account = reader.get("account")
    variables = reader.environment()
    if account:
        variables["RUCIO_ACCOUNT"] = account
    return RegistrationSettings(
        registration=_registration(reader),
        always=when == "ALWAYS",
        quantum_graph=reader.get("quantumGraph"),
        ask_rucio=reader.get("askRucio"),
        account=account,
        python=reader.get("python"),
        memory=reader.at_least("requestMemory", 1),
        cores=reader.at_least("requestCpus", 1),
        walltime=reader.at_least("requestWalltime", 0),
        retries=reader.at_least("numberOfRetries", 0),
        environment=variables,
    )


def _registration(reader: _SectionReader) -> Registration:
    """Read what is to be registered."""
    place = reader.place()
    copies, lifetime = reader.at_least("rule.copies", 1), reader.at_least("rule.lifetime", 0)
    where_to = reader.place_of_rule()
    return Registration(
        butler=reader.get("butlerConfig") or reader.of_run("butlerConfig"),
        collection=reader.get("collection"),
        dataset_types=tuple(reader.get("datasetTypes")),
        scope=place["scope"],
        dataset=reader.get("datasetName"),
        rse=place["rse"],
        rse_root=place["rseRoot"],
        dtn_url=place["dtnUrl"],
        where=reader.get("where"),
        rule=RuleWanted(where_to, copies, lifetime) if where_to else None,
        close=reader.get("close"),
        chunk=reader.at_least("chunkSize", 1),
    )


class _SectionReader:
    """Reads keys of the section, over which that of the site has a say.

    Parameters
    ----------
    config : `~lsst.ctrl.bps.BpsConfig`
        Configuration of a run.
    environment : mapping of `str` to `str`
        The environment.
    """

    def __init__(self, config: BpsConfig, environment: Mapping[str, str]) -> None:
        self._config = config
        self._environment = environment
        whole = Config(config)
        self._site = str(config.get("computeSite") or "")
        self._section = _section_of(whole, SECTION)
        if self._site and ("site", self._site) in whole:
            own = _section_of(Config(whole["site", self._site]), SECTION, f"site.{self._site}.{SECTION}")
            self._section.update(own)

    def get(self, name: str) -> Any:
        """Return the value of a key, of its kind."""
        key = RUCIO_KEYS[name]
        section, leaf = self._section, name
        if "." in name:
            inner, leaf = name.split(".")
            section = _section_of(section, inner, f"{SECTION}.{inner}")
        value = self._search(leaf, section) if leaf in section else key.default
        if isinstance(value, Config):
            raise SettingsError(
                f"{SECTION}.{name} is a section (BPS configuration); it must be a {key.kind}."
            )
        if isinstance(value, str) and "{" in value:
            value = self._search(leaf, Config({leaf: value}))
        return convert(key, value, source=f"section {SECTION} of the BPS configuration")

    def _search(self, leaf: str, section: Config) -> Any:
        """Let BPS put variables in."""
        options: dict[str, Any] = {"searchobj": section, "default": None}
        if self._site:
            options["curvals"] = {"curr_site": self._site}
        value = self._config.search(leaf, opt=options)[1]
        return list(value) if isinstance(value, tuple) else value

    def of_run(self, name: str) -> str:
        """Return the value of a key that is not of the section."""
        options: dict[str, Any] = {"default": ""}
        if self._site:
            options["curvals"] = {"curr_site": self._site}
        return str(self._config.search(name, opt=options)[1])

    def at_least(self, name: str, least: int) -> int:
        """Return a whole number that must not be too small."""
        value = int(self.get(name))
        if value < least:
            raise SettingsError(
                f"{SECTION}.{name} is {value} (BPS configuration); it must be at least {least}."
            )
        return value

    def place(self) -> dict[str, str]:
        """Return scope and RSE, of the section or of the file that it
        names.
        """
        values = {name: self.get(name) for name in _REGISTER_CONFIG}
        path = os.path.expanduser(self.get("registerConfig"))
        if path and not all(values.values()):
            content = _read_yaml(path)
            for name, other in _REGISTER_CONFIG.items():
                values[name] = values[name] or str(content.get(other) or "")
        return values

    def place_of_rule(self) -> str:
        """Return where the rule is to have copies; empty for no rule.

        Raises
        ------
        SettingsError
            Raised if a rule is described that has no place.
        """
        rule = _section_of(self._section, "rule", f"{SECTION}.rule")
        if rule and "rseExpression" not in rule:
            raise SettingsError(
                f"{SECTION}.rule sets {', '.join(sorted(map(str, rule)))} (BPS configuration) and no "
                "rseExpression, so there would be no rule. Set it; to '' if there is to be none."
            )
        return str(self.get("rule.rseExpression"))

    def environment(self) -> dict[str, str]:
        """Return the variables for the step: the run's, and its own."""
        variables: dict[str, str] = {}
        common = self._config.search("environment", opt={"default": None})[1]
        section = _section_of(self._section, "environment", f"{SECTION}.environment")
        for own in (Config(common) if isinstance(common, Config) else Config(), section):
            variables |= {str(name): str(self._search(str(name), own)) for name in own}
        return variables

    def refuse_unknown(self) -> None:
        """Refuse keys that nobody reads.

        Raises
        ------
        SettingsError
            Raised if there is one; names what is probably meant.
        """
        known = {name.partition(".")[0] for name in RUCIO_KEYS} | set(JOB_KEYS)
        names = [(str(name), known) for name in self._section]
        rule_keys = {name.removeprefix("rule.") for name in RUCIO_KEYS if name.startswith("rule.")}
        rule = _section_of(self._section, "rule", f"{SECTION}.rule")
        names += [(str(name), rule_keys) for name in rule]
        for name, choices in names:
            if name not in choices:
                near = difflib.get_close_matches(name, choices, n=1)
                meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(choices))}."
                raise SettingsError(f"Section {SECTION} of the BPS configuration has a key {name}; {meant}")


def _section_of(config: Config, name: str, title: str = "") -> Config:
    """Return a section; an empty one where there is none.

    Raises
    ------
    SettingsError
        Raised if something else stands there, which would be ignored.
    """
    value = config.get(name)
    if value is None or value == "":
        return Config()
    if not isinstance(value, Config):
        raise SettingsError(
            f"{title or name} is {value!r} (BPS configuration); it must be a section of keys."
        )
    return Config(value)


def _read_yaml(path: str) -> Mapping[str, Any]:
    """Read a configuration of ``lsst-rucio-register``."""
    try:
        with open(path, encoding="utf-8") as stream:
            content = yaml.safe_load(stream)
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(
            f"{SECTION}.registerConfig is {path!r}, which cannot be read here ({error}). Write scope, rse, "
            "rseRoot and dtnUrl into the section instead."
        ) from error
    if not isinstance(content, dict):
        raise SettingsError(f"{SECTION}.registerConfig is {path!r}, which holds no keys.")
    return content
