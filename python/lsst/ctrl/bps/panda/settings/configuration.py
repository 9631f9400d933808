"""Typed access to the BPS configuration of a run, for the rest of the package."""

from __future__ import annotations

__all__ = [
    "GraphCommand",
    "RunConfiguration",
    "complete_configuration",
    "explain_graph_failure",
    "find_broken_names",
    "find_broken_sections",
    "missing_service_class",
]

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsst.daf.butler import Config

from lsst.ctrl.bps import BPS_DEFAULTS, BPS_SEARCH_ORDER, BpsConfig

from ..errors import SettingsError
from .bps_command import configuration_file
from .files import check_files, find_origin
from .keys import PLAIN_SECTIONS, SECTIONS_BY_NAME
from .sites import QueueLimits, read_queues
from .variables import find_broken_texts

_READ_FIRST = ("submitPath", "outputRun", "outCollection", "operator", "uniqProcName", "remoteBuild")

_BLAMED = {
    "repository was made|definition from data repository": "butlerConfig",
    "collection": "inCollection",
    "quer|rows|quanta|expression|data ID|where": "dataQuery",
    "pipeline|label|task": "pipelineYaml",
    "config|field|option": "extraQgraphOptions",
    "butler|repo": "butlerConfig",
}
"""What the command for the quantum graph speaks of, and the key that it is then about."""

_ERROR_LINE = re.compile(r"(?:\w+\.)*([A-Z]\w+): (.+)")
_CONFIG_FILES = re.compile(r"(?:^|\s)(?:-C|--config-file)[\s=]+[\"']?\w+:([^\s\"']+)")
_LOGGED = re.compile(r"ERROR .*? - (.+)|\S+ ERROR: (.+)|Error: (.+)")

_AS_WRITTEN = {"replaceVars": False, "expandEnvVars": False, "replaceEnvVars": False, "default": ""}


@dataclass(frozen=True, slots=True)
class GraphInput:
    """A file or repository that the quantum graph is made from."""

    key: str
    written: str
    """As it stands in the configuration."""

    value: str
    """With variables replaced."""

    is_evaluated: bool
    """Whether BPS computes it (``bpsEval``)."""


@dataclass(frozen=True, slots=True)
class GraphCommand:
    """The command by which BPS makes or adapts the quantum graph."""

    key: str
    written: str
    """As it stands in the configuration."""

    line: str
    """As BPS runs it."""

    path: str
    """The quantum graph."""

    inputs: tuple[GraphInput, ...]


class _Text:
    """A text of the configuration by its key; empty without one."""

    def __init__(self, key: str, *, as_written: bool = False) -> None:
        self.key = key
        self.as_written = as_written

    def __get__(self, run: RunConfiguration | None, owner: object = None) -> str:
        if run is None:
            return self.key
        return run.written(self.key) if self.as_written else run.text(self.key)


class RunConfiguration:
    """What the configuration of a run says, apart from the keys in `~lsst.ctrl.bps.panda.settings.keys`."""

    name = _Text("uniqProcName")
    """Name of the run."""

    operator = _Text("operator")
    project = _Text("project")
    campaign = _Text("campaign")
    payload = _Text("payloadName")
    output_run = _Text("outputRun")
    """Butler collection of its outputs."""

    butler = _Text("butlerConfig")
    site = _Text("computeSite")
    timestamp = _Text("timestamp")
    """Time that BPS puts into names."""

    submit_path = _Text("submitPath")
    service_class = _Text("wmsServiceClass")
    file = _Text("configFile")
    """YAML file that BPS was given."""

    cluster_algorithm = _Text("clusterAlgorithm")
    """Function that makes jobs of quanta."""

    pipeline = _Text("pipelineYaml")
    data_query = _Text("dataQuery")
    written_data_query = _Text("dataQuery", as_written=True)
    graph_file = _Text("qgraphFile", as_written=True)
    """Quantum graph that exists already."""

    def __init__(self, config: BpsConfig) -> None:
        self._config = config

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> RunConfiguration:
        """Read the configuration of a run as BPS has left it in the submit directory."""
        return cls(BpsConfig(os.fspath(path)))

    def text(self, key: str) -> str:
        """Return a value with variables replaced; empty without one."""
        return str(self._config.get(key) or "")

    def written(self, key: str) -> str:
        """Return a value as it stands in the configuration."""
        return str(self._config.search(key, opt=dict(_AS_WRITTEN))[1] or "")

    @property
    def input_collections(self) -> list[str]:
        """Butler collections of its inputs."""
        return [name.strip() for name in self.text("inCollection").split(",") if name.strip()]

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels that have settings of their own."""
        found = [str(label) for name in ("pipetask", "cluster") for label in self._config.get(name) or ()]
        return (*found, *(name for name in ("finalJob", "customJob") if name in self._config))

    @property
    def clusters(self) -> frozenset[str]:
        """Labels that are clusters."""
        return frozenset(map(str, self._config.get("cluster") or ()))

    @property
    def is_command(self) -> bool:
        """Whether it is for ``bps submitcmd``, which makes no quantum graph."""
        config = self._config
        return "customJob" in config and "pipelineYaml" not in config and not config.get("qgraphFile")

    @property
    def payload_keys(self) -> frozenset[str]:
        """Keys of the section ``payload``, in which BPS looks first."""
        return frozenset(map(str, Config.__getitem__(self._config, "payload")))

    @property
    def command_line(self) -> dict[str, Any]:
        """Values that were given to the ``bps`` command, by their keys."""
        section = self._config.get("bps_cmdline")
        return dict(section.toDict()) if section else {}

    @property
    def campaign_sites(self) -> Any:
        """The section ``campaignSites`` as it was written; empty without one."""
        return self._config.get("campaignSites")

    @property
    def content(self) -> dict[str, Any]:
        """All of it as plain mappings, with nothing put in."""
        content: dict[str, Any] = Config(self._config).toDict()
        return content

    def find_all(self, key: str) -> Iterator[tuple[str, Any]]:
        """Yield the dotted paths at which a key stands, and its values."""
        for path in Config(self._config).nameTuples():
            if path[-1] == key:
                yield ".".join(map(str, path)), Config.__getitem__(self._config, path)

    def section(self, name: str) -> Mapping[str, Any]:
        """Return a section as plain mappings, with nothing put in; empty without one."""
        section = self.content.get(name)
        return section if isinstance(section, Mapping) else {}

    @property
    def command_files(self) -> tuple[tuple[str, str], ...]:
        """Keys and paths of the files that ``bps submitcmd`` copies into the submit directory."""
        inputs = self._config["customJob"].get("inputs") or {}
        named = {"customJob.executable": self.text(".customJob.executable")}
        named |= {f"customJob.inputs.{name}": str(file) for name, file in inputs.items()}
        return tuple(named.items())

    @property
    def graph_sources(self) -> tuple[str, ...]:
        """Paths of the files on this machine that the quantum graph is made from: this configuration, the
        pipeline, and configurations of its tasks in ``extraQgraphOptions``.
        """
        named = _CONFIG_FILES.findall(self.text("extraQgraphOptions"))
        file = configuration_file() or self.file
        return tuple(filter(os.path.isfile, (file, self.pipeline.partition("#")[0], *named)))

    @property
    def queues(self) -> tuple[QueueLimits, ...]:
        """Limits of queues that it adds to those of the site's profile, or corrects."""
        own = dict(self._config).get("queues") if "queues" in self._config else None
        return read_queues(own, source="BPS configuration")

    @property
    def remote_build(self) -> Mapping[str, Any]:
        """The section ``remoteBuild`` as BPS hands it to a service class."""
        return self._config.get("remoteBuild") or {"enabled": True}

    def has(self, key: str) -> bool:
        """Tell whether a key is set, in whatever section BPS looks for it."""
        return key in self._config

    def butler_of(self, label: str, *, site: str, cloud: str) -> str:
        """Return the Butler that jobs of a label are told to use."""
        current = {"curr_cluster": label, "curr_pipetask": label, "curr_site": site, "curr_cloud": cloud}
        return str(self._config.search("butlerConfig", opt={"curvals": current, "default": ""})[1] or "")

    def is_evaluated(self, key: str) -> bool:
        """Tell whether BPS computes a value (``bpsEval``); such a function
        knows what to do without a variable.
        """
        return self.written(key).lstrip().startswith("bpsEval")

    def graph_command(self) -> GraphCommand:
        """Return how the quantum graph is made, and from what."""
        has_graph = bool(self.text("qgraphFile"))
        key = "updateQuantumGraph" if has_graph else "createQuantumGraph"
        path = os.path.join(self.submit_path, self.text("qgraphFileTemplate") or "x.qg")
        current = {"qgraphFile": path, "inputQgraphFile": path}
        _, line = self._config.search(key, opt={"curvals": current, "default": ""})
        return GraphCommand(
            key=key,
            written=self.written(key),
            line=str(line),
            path=path,
            inputs=tuple(
                self._graph_input(name)
                for name in ("qgraphFile" if has_graph else "pipelineYaml", "butlerConfig")
            ),
        )

    def _graph_input(self, key: str) -> GraphInput:
        is_evaluated = self.is_evaluated(key)
        return GraphInput(key, self.written(key), "" if is_evaluated else self.text(key), is_evaluated)


def complete_configuration(
    content: str | Config,
    *,
    timestamp: str,
    user: str,
    service_class: str | None = None,
    command_line: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> BpsConfig:
    """Do what BPS does when it starts to submit, as far as names depend on it.

    ``content`` is a YAML file or what it holds; the environment is for the names of files that it includes.
    ``timestamp`` stands for ``{timestamp}``, ``user`` is the operator if the configuration names none, the
    service class by default that of the configuration; what the command line gives goes over all of it.
    Raises `SettingsError` if a file cannot be read, a section has no keys, or there is no such service class;
    texts in which nothing can be replaced stay as they are.
    """
    if isinstance(content, str):
        check_files(content, environment or {})
    try:
        config = BpsConfig(
            content,
            search_order=BPS_SEARCH_ORDER,
            defaults=BPS_DEFAULTS,
            wms_service_class_fqn=service_class or None,
        )
    except ImportError as error:
        raise missing_service_class(error) from error
    if broken := find_broken_sections(config):
        raise SettingsError("; ".join(broken))
    for key, value in (command_line or {}).items():
        config[f".bps_cmdline.{key}"] = value
    config[".bps_defined.timestamp"] = timestamp
    _, clean = find_broken_texts(config, environment or {})
    if "operator" not in clean:
        clean[".bps_defined.operator"] = config[".bps_defined.operator"] = user
    if "uniqProcName" not in clean:
        config[".bps_defined.uniqProcName"] = str(clean["outputRun"]).replace("/", "_")
    return config


def find_broken_names(file: str, environment: Mapping[str, str]) -> list[SettingsError]:
    """Find texts in a file that BPS fails at before it has the configuration checked: it looks up the names
    of the run first.
    """
    config = BpsConfig(BPS_DEFAULTS, search_order=BPS_SEARCH_ORDER)
    config.update(Config(file))
    try:
        for key in _READ_FIRST:
            config.search(key)
    except Exception:
        return find_broken_texts(config, environment)[0]
    return []


def missing_service_class(error: ImportError) -> SettingsError:
    """Make the error for a service class that cannot be imported."""
    return SettingsError(
        f"wmsServiceClass is wrong: there is no such service class ({error}). Set wmsServiceClass to "
        "lsst.ctrl.bps.panda.PanDAService or lsst.ctrl.bps.panda.LocalPanDAService.",
        key="wmsServiceClass",
    )


def find_broken_sections(config: Mapping[str, Any]) -> list[str]:
    """Find sections without keys, such as a label with all its settings
    commented out: BPS's own search fails at these.
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


def explain_graph_failure(config: BpsConfig, message: str, env: Mapping[str, str]) -> str:
    """Say why there is no quantum graph: the last exception, the key that it comes from, and the log.

    BPS's message names the file with what the command printed.
    """
    path = message.rpartition("Check ")[2].removesuffix(" for more details.")
    try:
        said = _find_cause(Path(path).read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        return f"{message} (which cannot be read: {error})"
    run = RunConfiguration(config)
    keys = [key for key in dict.fromkeys(_BLAMED.values()) if run.text(key)]
    named = [text for pair in re.findall(r"'([^']+)'|\"([^\"]+)\"", said) for text in pair if len(text) > 1]
    # What is longest is no chance.
    share = {key: max((len(text) for text in named if text in run.text(key)), default=0) for key in keys}
    about = sorted(filter(share.get, keys), key=share.__getitem__, reverse=True)
    about += [
        key
        for words, key in _BLAMED.items()
        if key in keys and re.search(rf"\b({words})", said, re.IGNORECASE)
    ]
    where = ""
    if about:
        origin = find_origin(configuration_file(), about[0], run.written(about[0]), env)
        where = f" It comes from {about[0]}: {run.text(about[0])} ({origin})."
    return f"The quantum graph could not be made: {said.rstrip('.')}.{where}\nWhat was printed: {path}"


def _find_cause(text: str) -> str:
    """Find the last exception in what a command has printed, or the last error."""
    lines = text.splitlines()
    traces = [number for number, line in enumerate(lines) if line.startswith("Traceback (most recent")]
    for line in lines[traces[-1] + 1 :] if traces else ():
        if match := _ERROR_LINE.match(line):
            return f"{match[1]}: {match[2]}"
    errors = [next(filter(None, match.groups())) for match in map(_LOGGED.match, lines) if match]
    # What click says in the end is about the errors that were logged before.
    return next(iter([*errors, *filter(str.strip, reversed(lines))]), "no reason is given")
