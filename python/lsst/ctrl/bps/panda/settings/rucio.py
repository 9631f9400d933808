"""The section ``rucio`` of a BPS configuration: its keys, and what they say as typed settings."""

from __future__ import annotations

__all__ = [
    "JOB_KEYS",
    "LABEL",
    "RegistrationSettings",
    "RucioSection",
    "SECTION",
    "read_registration_settings",
]

import os
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import yaml
from lsst.daf.butler import Config
from pydantic import ConfigDict, Field

from lsst.ctrl.bps import BpsConfig

from ..edgenode.rucio_program import Registration, RuleWanted
from ..errors import SettingsError
from ..findings import did_you_mean
from .files import locate_in
from .keys import (
    LabelKeys,
    Section,
    Text,
    TextList,
    WholeMegabytes,
    WholeNumber,
    WholeSeconds,
    YesOrNo,
    choice,
    key,
    keys_of,
)

SECTION = "rucio"

LABEL = "rucioRegister"
"""Label of the step."""

JOB_KEYS = frozenset(keys_of(LabelKeys)) | {"environment"}
"""Keys of any label that may stand in the section too."""

# Key of ours -> key of the file of lsst-rucio-register.
_REGISTER_CONFIG = {"scope": "scope", "rse": "rucio_rse", "rseRoot": "rse_root", "dtnUrl": "dtn_url"}

_WHEN = ("SUCCESS", "ALWAYS")


def _when(text: Any) -> str:
    return _WHEN[_WHEN.index(str(text).upper())]


class RuleSection(Section):
    """A rule of Rucio."""

    model_config = ConfigDict(extra="forbid")

    rse_expression: Text = key("", "Where Rucio is to replicate the dataset; empty: no rule.")
    copies: WholeNumber = key(1, "Replicas that the rule asks for.", least=1)
    lifetime: WholeSeconds = key(0, "Time after which the rule ends; 0: never.", least=0)


class RucioSwitch(Section):
    """Whether anything is registered."""

    enabled: YesOrNo = key(False, "Whether the run gets a registration step.")


class RucioSection(RucioSwitch):
    """What a run registers in Rucio."""

    model_config = ConfigDict(extra="forbid")

    dataset_types: TextList = key([], "Dataset types to register; `*` stands for anything.")
    scope: Text = key("", "Scope in Rucio; at most 25 letters, digits, `_`, `-`, `.`.")
    rse: Text = key("", "Storage element (RSE) that the site's Butler writes to.")
    rse_root: Text = key(
        "", "Path at the site below which lies a folder named like the scope, with the Butler's files in it."
    )
    dtn_url: Text = key("", "URL that transfers put in the place of `rseRoot`, by the RSE's protocol.")
    register_config: Text = key(
        "",
        "Configuration of `lsst-rucio-register` that holds `scope`, `rucio_rse`, `rse_root` and `dtn_url`, "
        "for keys that are not here; read where `bps submit` runs.",
    )
    dataset_name: Text = key("{outputRun}", "Name of the dataset in Rucio.")
    collection: Text = key("{outputRun}", "Butler collection whose datasets are registered.")
    where: Text = key("", "Butler expression that selects among them.")
    butler_config: Text = key(
        "",
        "The Butler as the worker of the step reaches it, with the worker's variables written as "
        "`<ENV:NAME>`; empty: that of the run.",
    )
    when: Annotated[str, choice(_WHEN, _when, any_case=True)] = key(
        "SUCCESS",
        "`SUCCESS`: only if all jobs succeeded; `ALWAYS`: also if some failed (the final job must not).",
    )
    rule: RuleSection = Field(RuleSection(), description="Rule of Rucio that replicates the dataset.")
    close: YesOrNo = key(False, "Whether the dataset is closed, so that nothing can be added.")
    quantum_graph: YesOrNo = key(
        False, "Whether the quantum graph goes along: it is copied to the RSE and attached to the dataset."
    )
    chunk_size: WholeNumber = key(200, "Files that are registered at once.", least=1)
    ask_rucio: YesOrNo = key(
        True,
        "Whether Rucio is asked before the submission; no if the submit host has another account than the "
        "worker, or the server other rules than Rucio's generic policy.",
    )
    account: Text = key("", "Rucio account of the step; empty: that of the worker's set-up.")
    python: Text = key(
        "python3", "Python of the worker that has the Butler, Rucio's clients and `lsst-rucio-register`."
    )
    memory: WholeMegabytes = key(4096, "Memory of the step.", least=1, alias="requestMemory")
    cores: WholeNumber = key(1, "Cores of the step.", least=1, alias="requestCpus")
    walltime: WholeSeconds = key(
        0, "Longest time of the step; 0: not said.", least=0, alias="requestWalltime"
    )
    retries: WholeNumber = key(
        2, "Attempts of the step after the first one.", least=0, alias="numberOfRetries"
    )


class RegistrationSettings(RucioSection):
    """The section, with what follows from it."""

    registration: Registration
    """What the registration step registers."""

    environment: Mapping[str, str]
    """Variables of the step."""

    @property
    def always(self) -> bool:
        """Whether the step also runs if jobs failed."""
        return self.when == "ALWAYS"


def read_registration_settings(
    config: BpsConfig, environment: Mapping[str, str]
) -> RegistrationSettings | None:
    """Read the section ``rucio``; `None` if no registration is asked for."""
    reader = _SectionReader(config, environment)
    if not reader.parse(RucioSwitch).enabled:
        return None
    reader.refuse_unknown()
    section = reader.parse(RucioSection)
    variables = reader.environment()
    if section.account:
        variables["RUCIO_ACCOUNT"] = section.account
    return RegistrationSettings.model_construct(
        **dict(section), registration=_registration(section, reader), environment=variables
    )


def _registration(section: RucioSection, reader: _SectionReader) -> Registration:
    """Return what is to be registered."""
    place, rule = _find_place(section), section.rule
    return Registration(
        butler=section.butler_config or str(reader.search("butlerConfig", Config()) or ""),
        collection=section.collection,
        dataset_types=tuple(section.dataset_types),
        scope=place["scope"],
        dataset=section.dataset_name,
        rse=place["rse"],
        rse_root=place["rseRoot"],
        dtn_url=place["dtnUrl"],
        where=section.where,
        rule=RuleWanted(rule.rse_expression, rule.copies, rule.lifetime) if rule.rse_expression else None,
        close=section.close,
        chunk=section.chunk_size,
    )


def _find_place(section: RucioSection) -> dict[str, str]:
    """Return scope and RSE, of the section or of the file that it names."""
    values = {name: getattr(section, keys_of(RucioSection)[name].field) for name in _REGISTER_CONFIG}
    path = os.path.expanduser(section.register_config)
    if path and not all(values.values()):
        content = _read_yaml(path)
        for name, other in _REGISTER_CONFIG.items():
            values[name] = values[name] or str(content.get(other) or "")
    return values


_Keys = TypeVar("_Keys", bound=Section)


class _SectionReader:
    """Reads the section, with that of the site over it."""

    def __init__(self, config: BpsConfig, environment: Mapping[str, str]) -> None:
        self._config = config
        self._locate = locate_in(SECTION, environment)
        whole = Config(config)
        self._site = str(config.get("computeSite") or "")
        self._section = _section_of(whole, SECTION)
        if self._site and ("site", self._site) in whole:
            own = _section_of(Config(whole["site", self._site]), SECTION, f"site.{self._site}.{SECTION}")
            self._section.update(own)

    def parse(self, model: type[_Keys]) -> _Keys:
        """Return the section with variables replaced, also in defaults."""
        values = self._values(model, self._section, SECTION)
        if "rule" in model.model_fields:
            rule = _section_of(self._section, "rule", f"{SECTION}.rule")
            values["rule"] = self._values(RuleSection, rule, f"{SECTION}.rule")
        section = model.parse(values, source=self._locate, title=f"{SECTION}.{{}}")
        if values.get("rule") and rule and "rseExpression" not in rule:
            raise SettingsError(
                f"{SECTION}.rule sets {', '.join(sorted(map(str, rule)))} (BPS configuration) and no "
                "rseExpression, so there would be no rule. Set it; to '' if there is to be none."
            )
        return section

    def _values(self, model: type[Section], section: Config, title: str) -> dict[str, Any]:
        values = {}
        for name, each in keys_of(model).items():
            value = self.search(name, section if name in section else Config({name: each.default}))
            if isinstance(value, Config):
                raise SettingsError(
                    f"{title}.{name} is a section (BPS configuration); it must be a {each.kind.name}."
                )
            values[name] = value
        return values

    def search(self, leaf: str, section: Config) -> Any:
        """Let BPS replace variables."""
        options: dict[str, Any] = {"searchobj": section, "default": None}
        if self._site:
            options["curvals"] = {"curr_site": self._site}
        value = self._config.search(leaf, opt=options)[1]
        return list(value) if isinstance(value, tuple) else value

    def environment(self) -> dict[str, str]:
        """Return the variables for the step: the run's, and its own."""
        variables: dict[str, str] = {}
        common = self._config.search("environment", opt={"default": None})[1]
        section = _section_of(self._section, "environment", f"{SECTION}.environment")
        for own in (Config(common) if isinstance(common, Config) else Config(), section):
            variables |= {str(name): str(self.search(str(name), own)) for name in own}
        return variables

    def refuse_unknown(self) -> None:
        """Refuse keys that nobody reads, and name what is probably meant."""
        known = {*keys_of(RucioSection), "rule", *JOB_KEYS}
        names = [(str(name), known) for name in self._section]
        rule = _section_of(self._section, "rule", f"{SECTION}.rule")
        names += [(str(name), set(keys_of(RuleSection))) for name in rule]
        for name, choices in names:
            if name not in choices:
                meant = did_you_mean(name, choices, likeness=0.6)
                meant = meant or f"; there are {', '.join(sorted(choices))}."
                raise SettingsError(f"Section {SECTION} of the BPS configuration has a key {name}{meant}")


def _section_of(config: Config, name: str, title: str = "") -> Config:
    """Return a section, an empty one where there is none; refuse anything else
    that stands there, which would be ignored.
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
