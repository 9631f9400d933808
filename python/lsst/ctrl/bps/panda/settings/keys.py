"""The keys of the BPS configuration that this plugin reads, as typed models; those that only a site profile
has, such as limits of queues, are in `~.sites`.

A field says everything about its key: kind, default, unit, smallest value and
meaning, and its model says where it may stand.  Values are checked by the
models, the page of settings and the JSON schema for editors are made from them.
"""

from __future__ import annotations

__all__ = [
    "BPS_KEYS",
    "SET_UP_KEYS",
    "CORE_KEYS",
    "KEYS",
    "BuildKeys",
    "CHECKED_MODELS",
    "CoreKeys",
    "Key",
    "Kind",
    "LabelKeys",
    "Labels",
    "Origin",
    "PLAIN_SECTIONS",
    "RunKeys",
    "SECTIONS_BY_NAME",
    "Section",
    "ServiceKeys",
    "Text",
    "TextList",
    "WholeMegabytes",
    "WholeNumber",
    "WholeSeconds",
    "YesOrNo",
    "choice",
    "is_no",
    "key",
    "keys_of",
]

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, ClassVar, NamedTuple, Self, cast

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from ..errors import SettingsError
from ..plan.model import MEMORY_LIMIT, NamingKind

# --- kinds of values ---------------------------------------------------------


def _text(value: Any) -> str:
    """Convert to a text: YAML takes a bare ``no`` for a truth value."""
    if isinstance(value, list | tuple | Mapping | bool) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise TypeError(value)
    return str(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(number := float(value)):
        raise ValueError(value)
    return number


def _whole(value: Any) -> int:
    number = _number(value)
    if number != int(number):
        raise ValueError(value)
    # A large one is no float.
    return value if isinstance(value, int) else int(number)


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(value)
    return value


def _codes(value: Any) -> list[int]:
    return [_whole(code) for code in (value if isinstance(value, list | tuple) else [value])]


_WORDS = {"true": True, "yes": True, "on": True, "1": True}
_WORDS |= {"false": False, "no": False, "off": False, "0": False, "none": False, "": False}


def _yes_or_no(value: Any) -> bool:
    return value if isinstance(value, bool) else _WORDS[str(value).strip().lower()]


def _list(value: Any) -> list[str]:
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    if isinstance(value, Mapping):
        raise TypeError(value)
    return [str(item) for item in value]


def _labels(value: Any) -> dict[str, int | None]:
    """Convert to labels with their numbers, if they have one."""
    numbers: dict[str, int | None] = {}
    if isinstance(value, Mapping):
        value = [f"{label}:{value[label]}" for label in value]
    for item in _list(value):
        label, colon, number = (part.strip() for part in item.partition(":"))
        numbers[label] = int(number) if colon else None
        if not label or (colon and int(number) < 1):
            raise ValueError(value)
    return numbers


def is_no(value: Any) -> bool:
    """Tell whether a value says no."""
    return _WORDS.get(str(value).strip().lower()) is False


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of value: how it is written and what it is converted to."""

    name: str
    convert: Callable[[Any], Any]
    written: tuple[Mapping[str, Any], ...]
    """JSON schemas of what may be written."""

    needed: str = ""
    """What a user is told whose value is of another kind."""

    unit: str = ""
    choices: tuple[str, ...] = ()
    """The only values, if there are few."""

    as_written: bool = False
    """Whether environment variables in it are the worker's, or are replaced later."""

    def validate(self, value: Any) -> Any:
        """Convert a value, for pydantic."""
        try:
            return self.convert(value)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise PydanticCustomError(
                "kind", "{needed}", {"needed": self.needed or f"it must be a {self.name}"}
            ) from None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.validate, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [*map(dict, self.written), {"type": "null"}]}


_VARIABLES = {"type": "string", "pattern": r"^\s*$|\{\w+\}|\$|<ENV:|bpsEval"}
"""A text that stands for the default, or in which BPS replaces something: what it will be is not known."""

_INTEGER = ({"type": "integer"}, {"type": "string", "pattern": r"^\s*[+-]?\d+(\.0*)?([eE]\+?\d+)?\s*$"})
_FLOAT = ({"type": "number"}, {"type": "string", "pattern": r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"})
_SCALAR = {"type": ["string", "number"]}
_TEXTS = {"type": "array", "items": {"type": ["string", "number", "boolean"]}}


def _any_case(words: Iterable[str]) -> str:
    """Return a regular expression that needs no flag, which JavaScript has none for."""
    return "|".join("".join(f"[{letter.lower()}{letter.upper()}]" for letter in word) for word in words)


_TEXT = Kind("text", _text, (_SCALAR,), "it must be a text, in quotes where YAML takes it for something else")
_WHOLE = Kind("whole number", _whole, (*_INTEGER, _VARIABLES))
_NUMBER = Kind("number", _number, (*_FLOAT, _VARIABLES))
_YES_OR_NO = Kind(
    "yes or no",
    _yes_or_no,
    (
        {"type": "boolean"},
        {"enum": [0, 1]},
        {"type": "string", "pattern": rf"^\s*({_any_case(sorted(_WORDS))})\s*$"},
        _VARIABLES,
    ),
    "it must be yes or no",
)


def _yes(value: Any) -> bool:
    if not _yes_or_no(value):
        raise ValueError(value)
    return True


_LABELS = Kind(
    "list of labels",
    _labels,
    (
        {"type": "string"},
        _TEXTS,
        {"type": "object", "additionalProperties": {"type": ["integer", "string"], "minimum": 1}},
    ),
    "it must be a list of labels, each perhaps with a number of at least 1, such as isr:20, calibrate",
)
_MAPPING = Kind(
    "mapping", _mapping, ({"type": "object"}, _VARIABLES), "it must be a section of names with values"
)
_CODES = Kind(
    "exit codes",
    _codes,
    (*_INTEGER, _VARIABLES, {"type": "array", "items": {"anyOf": list(_INTEGER)}}),
    "it must be a whole number or a list of whole numbers",
)

Text = Annotated[str, _TEXT]
WorkerText = Annotated[str, replace(_TEXT, as_written=True)]
WholeNumber = Annotated[int, _WHOLE]
WholeBytes = Annotated[int, replace(_WHOLE, unit="bytes")]
WholeMegabytes = Annotated[int, replace(_WHOLE, unit="MB")]
WholeSeconds = Annotated[int, replace(_WHOLE, unit="seconds")]
Number = Annotated[float, _NUMBER]
Megabytes = Annotated[float, replace(_NUMBER, unit="MB", needed="it must be a number of MB, without a unit")]
Seconds = Annotated[
    float, replace(_NUMBER, unit="seconds", needed="it must be a number of seconds, without a unit")
]
Hours = Annotated[float, replace(_NUMBER, unit="hours")]
YesOrNo = Annotated[bool, _YES_OR_NO]
LazyCommands = Annotated[
    bool,
    replace(
        _YES_OR_NO,
        convert=_yes,
        written=(
            {"enum": [True, 1]},
            {"type": "string", "pattern": rf"^\s*({_any_case(word for word in _WORDS if _WORDS[word])})\s*$"},
            _VARIABLES,
        ),
        needed="it must be yes: with no, BPS writes a command for each single job, and each job would become "
        "a PanDA task of its own; take it out of the configuration",
    ),
]
TextList = Annotated[list[str], Kind("list", _list, ({"type": "string"}, _TEXTS))]
Labels = Annotated[dict[str, int | None], _LABELS]
TextMapping = Annotated[Mapping[str, Any], _MAPPING]
ExitCodes = Annotated[list[int], _CODES]


def choice(choices: Iterable[str], convert: Callable[[Any], Any], *, any_case: bool = False) -> Kind:
    """Describe a text that is one of few; ``convert`` makes its value and raises `ValueError` for others."""
    texts = tuple(choices)
    written: list[Mapping[str, Any]] = [{"enum": list(texts)}, _VARIABLES]
    if any_case:
        written.append({"type": "string", "pattern": f"^({_any_case(texts)})$"})
    return Kind("text", convert, tuple(written), f"choose one of {', '.join(texts)}", choices=texts)


# --- sections ----------------------------------------------------------------


def key(default: Any, meaning: str, *, least: int | None = None, alias: str | None = None) -> Any:
    """Describe a key of a section: its default, its meaning in sentences for the page of settings and for
    editors, the smallest number, and its name in YAML unless it is that of the field.
    """

    def complete(schema: dict[str, Any]) -> None:
        if least is not None:
            schema["anyOf"][0]["minimum"] = least

    return Field(default, alias=alias, description=meaning, ge=least, json_schema_extra=complete)


class Origin(NamedTuple):
    """Where a value is from; empty as far as that is not known."""

    file: str = ""
    line: int = 0
    label: str = ""
    words: str = ""
    """Where it is from if it is from no file."""

    def __str__(self) -> str:
        label = f"label {self.label}" if self.label else ""
        place = f"{self.file}, line {self.line}" if self.file else self.words
        return ", ".join(filter(None, (label, place))) or "BPS configuration"


Source = str | Callable[[str, Any], Origin]


class Section(BaseModel):
    """Keys of a section of the configuration.

    Values come from YAML or, where BPS has replaced something, as texts; an
    empty value stands for the default.
    """

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True, defer_build=True)

    per_label: ClassVar[bool] = False
    """Whether its keys may be set for a label (``pipetask:``, ``cluster:``,
    ``finalJob:``, ``customJob:``), a site or a cloud."""

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, source: Source, title: str = "{}") -> Self:
        """Check and convert values, given by key; others are not looked at.

        ``source`` says where the values are from, for the error, or is called with key and value to find out;
        ``title`` how a key is named, with ``{}`` in its place.
        """
        try:
            return cls.model_validate(cls._without_empty(values))
        except ValidationError as error:
            raise _explain(error, values, source, title)[0] from None

    @classmethod
    def wrong_values(cls, values: Mapping[str, Any], *, source: Source) -> list[SettingsError]:
        """Return an error for each value that cannot be used; see `parse`."""
        try:
            cls.model_validate(cls._without_empty(values))
        except ValidationError as error:
            return _explain(error, values, source, "{}")
        return []

    @classmethod
    def _without_empty(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Leave out what stands for the default."""
        given = {
            name: values[name]
            for name, each in keys_of(cls).items()
            if (value := values.get(name)) is not None
            and not (isinstance(value, str) and not value.strip() and each.kind.name != "text")
        }
        for field in cls.model_fields.values():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                given[str(field.alias)] = field.annotation._without_empty(values.get(str(field.alias)) or {})
        return given


def _explain(
    error: ValidationError, values: Mapping[str, Any], source: Source, title: str
) -> list[SettingsError]:
    """Say which values are wrong, where they stand and what is needed."""
    found = []
    for each in error.errors(include_url=False):
        name, value = ".".join(map(str, each["loc"])), cast(Any, values)
        for step in each["loc"]:
            value = value[step]
        origin = Origin(words=source) if isinstance(source, str) else source(name, value)
        least = each.get("ctx", {}).get("ge")
        needed = each["msg"] if least is None else f"it must be at least {least}"
        shown = dict(value) if isinstance(value, Mapping) else value
        found.append(
            SettingsError(
                f"{title.format(name)} is {shown!r} ({origin}); {needed}.",
                key=title.format(name),
                label=origin.label,
                file=origin.file,
                line=origin.line,
            )
        )
    return found


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key."""

    name: str
    kind: Kind
    default: Any
    meaning: str
    model: type[Section]
    field: str
    """Its name in the model."""

    @property
    def per_label(self) -> bool:
        """Whether it may be set for a label, a site or a cloud."""
        return self.model.per_label


@cache
def keys_of(model: type[Section]) -> dict[str, Key]:
    """Return the keys of a section by name."""
    return {
        str(field.alias): Key(str(field.alias), kind, field.default, field.description or "", model, name)
        for name, field in model.model_fields.items()
        for kind in field.metadata
        if isinstance(kind, Kind)
    }


class LabelKeys(Section):
    """Keys that may be set for a label, a site or a cloud."""

    per_label = True

    compute_site: Text = key("", "Computing site; also selects the site profile.")
    compute_cloud: Text = key("US", "PanDA cloud.")
    queue: Text = key("", "PanDA queue; empty lets PanDA choose.")
    priority: WholeNumber = key(500, "Priority of the tasks.")
    processing_type: Text = key("", "PanDA processing type; the final job's default is `Rubin_Merge`.")
    task_type: Text = key("test", "PanDA task type.")
    prod_source_label: Text = key("managed", "PanDA production source label.")
    vo: Text = key("wlcg", "Virtual organisation of the tasks.")
    runner_command: WorkerText = key(
        "",
        "Command line of a job on the worker; `_cmd_line_` stands for the runner's arguments, `_runner_` for "
        "the staged runner.",
    )
    prmon: YesOrNo = key(True, "Whether the runner starts `prmon`, where there is one.")
    memory_limit: WholeMegabytes = key(
        MEMORY_LIMIT, "Memory that no attempt of a job without `requestMemoryMax` exceeds.", least=1
    )
    keep_tokens: YesOrNo = key(
        False,
        "Whether the payload sees tokens (`PANDA_AUTH_ID_TOKEN` and the like) that the pilot has in its "
        "environment.",
    )


class BuildKeys(Section):
    """The command of a remote build."""

    build_command: WorkerText = key(
        "", "Command line of the task of a remote build, if `remoteBuild` has no `runnerCommand`."
    )


class RunKeys(Section):
    """Keys for a whole run."""

    file_distribution_end_point: WorkerText = key(
        "", "Staging area of the run: a URI or path that submit host and workers see."
    )
    file_distribution_end_point_default: WorkerText = key(
        "", "Staging area to use when an environment variable in `fileDistributionEndPoint` is not set."
    )
    payload_folder: Text = key("payload", "Part of the path of the staging area in the profiles.")
    sites_share_files: YesOrNo = key(
        False, "Whether all sites that labels name see the staging area and the Butler under the same paths."
    )
    stage_runner: YesOrNo = key(
        True, "Whether the runner is staged with the run, so that workers need nothing of this plugin."
    )
    group_permissions: YesOrNo = key(
        False, "Whether the staging area gets group-write and set-group-id permissions."
    )
    max_copy_workers: WholeNumber = key(10, "Number of files that are staged at the same time.", least=1)
    job_naming: Annotated[NamingKind, choice((kind.value for kind in NamingKind), NamingKind)] = key(
        NamingKind.SHORT, "How jobs are named in PanDA: `short`, `plain`, `orderIdMap` or `qnodeMap`."
    )
    enable_job_name_map: YesOrNo = key(False, "Same as `jobNaming: orderIdMap`.")
    order_id_map_filename: Text = key("panda_order_id_map.json", "File name of the order-id map.")
    enable_qnode_map: YesOrNo = key(False, "Same as `jobNaming: qnodeMap`.")
    placeholder_params: TextList = key(
        ["qgraphNodeId", "qgraphId"], "Values that are sent with every job, even if all jobs share them."
    )
    submit_side_resolved_params: TextList = key(
        ["USER"], "Environment variables in commands that are resolved on the submit side."
    )
    max_jobs_per_task: WholeNumber = key(10000, "Largest number of jobs in a PanDA task.", least=1)
    enable_event_service: Labels = key(
        {},
        "Labels of which several payloads share a PanDA job, separated by commas, each perhaps with a "
        "number: `isr:20, calibrate`.",
    )
    max_payloads_per_panda_job: WholeNumber = key(
        10, "Payloads in a PanDA job of a label that gives no number.", least=1
    )
    max_wms_job_walltime: WholeSeconds = key(
        0,
        "Wall time of a PanDA job of several payloads; with `requestWalltime` it gives their number.",
        least=0,
    )
    max_request_length: WholeBytes = key(
        400_000_000, "Largest request; a larger one is sent in steps.", least=10_000
    )
    ingest_provenance: YesOrNo = key(
        False,
        "Whether a last job puts the provenance of the run into its Butler if all jobs have succeeded, which "
        "closes the run.",
    )
    remember_exit_codes: YesOrNo = key(
        True, "Whether the runner keeps `retryUnlessExit` between attempts, in the staging area."
    )


class ServiceKeys(Section):
    """Keys about the servers."""

    idds_server: Text = key("", "iDDS server that the relay is to use instead of its own.")
    panda_monitor_url: Text = key(
        "https://usdf-panda-bigmon.slac.stanford.edu:8443",
        "Base URL of the PanDA monitor, for links; it does not show a server on this machine.",
    )
    panda_messages_url: Text = key(
        "",
        "Message broker (ActiveMQ) of PanDA, for `panda_bps watch`: `stomp://HOST:61613` or "
        "`stomp+ssl://HOST:61614`.",
    )
    panda_messages_destination: Text = key(
        "/topic/panda_idds",
        "Topic on which PanDA tells of changes of jobs and tasks; the default is that of its Helm charts.",
    )
    panda_messages_vhost: Text = key("", "Virtual host of the message broker; its name if empty.")
    token_lifetime: Hours = key(1.0, "How long the log-in must still be valid at submission.", least=0)
    warm_workers: YesOrNo = key(
        None,
        "Whether the embedded PanDA, when `LocalPanDAService` starts it, answers `pipetask` in jobs by "
        "processes that are ready; as at its last start if not set, and yes at the first.",
    )


class CoreKeys(Section):
    """Keys of BPS itself whose values it takes as they are: a wrong one would be found only when the quantum
    graph is there, after hours perhaps.  They are checked only, so what is not set is `None`.
    """

    per_label = True

    request_memory: Megabytes = key(None, "Memory of a job in its first attempt.", least=1)
    request_memory_max: Megabytes = key(None, "Memory that no attempt of a job exceeds.", least=0)
    memory_multiplier: Number = key(None, "Growth of the memory from one attempt to the next.", least=0)
    request_cpus: WholeNumber = key(None, "Cores of a job.", least=1)
    request_disk: Megabytes = key(None, "Scratch space of a job.", least=0)
    request_walltime: Seconds = key(None, "Longest time that a job may take.", least=0)
    number_of_retries: WholeNumber = key(
        None, "Attempts after the first one; 0 means a single attempt.", least=0
    )
    retry_unless_exit: ExitCodes = key(None, "Exit codes after which another attempt is of no use.")
    use_lazy_commands: LazyCommands = key(
        None, "Whether jobs of a label share a command, as they must on PanDA; `no` is refused."
    )
    environment: TextMapping = key(
        None, "Variables for the payload. `${NAME}` and `${NAME:-default}` mean what they mean in a shell."
    )
    accounting_group: Text = key(None, "PanDA working group.")
    pre_cmdline: Text = key(None, "Command that runs before the payload.")
    post_cmdline: Text = key(None, "Command that runs after the payload.")


# --- where keys may stand ----------------------------------------------------

SECTIONS_BY_NAME = ("pipetask", "cluster", "site", "cloud")
"""Sections whose entries have names of the user's (labels, sites), and settings below them."""

PLAIN_SECTIONS = ("payload", "finalJob", "customJob", "remoteBuild")
"""Sections with settings of their own."""

OWN_MODELS = (LabelKeys, BuildKeys, RunKeys, ServiceKeys)
"""Models of the keys of this plugin that are in no section of their own."""

CHECKED_MODELS = (*OWN_MODELS, CoreKeys)
"""Models whose keys are checked before there is a quantum graph."""

KEYS: dict[str, Key] = {name: each for model in OWN_MODELS for name, each in keys_of(model).items()}
"""All keys of `OWN_MODELS` by name."""

CORE_KEYS: dict[str, Key] = dict(keys_of(CoreKeys))
"""Keys of BPS that are checked by this plugin, by name."""

BPS_KEYS: dict[str, str] = {
    "includeConfigs": "Files that are read before this one; what stands here counts.",
    "wmsServiceClass": "lsst.ctrl.bps.panda.PanDAService, or lsst.ctrl.bps.panda.LocalPanDAService for runs "
    "on this machine.",
    "pipelineYaml": "Pipeline, with #LABELS for a part of it.",
    "qgraphFile": "Quantum graph that exists already.",
    "butlerConfig": "The Butler of the run.",
    "inCollection": "Input collections, separated by commas.",
    "output": "Output collection.",
    "outputRun": "Collection of this run's outputs.",
    "dataQuery": "Expression that selects the data.",
    "payloadName": "Name of the payload.",
    "operator": "Who runs it.",
    "project": "Project that the run belongs to.",
    "campaign": "Campaign that the run belongs to.",
    "submitPath": "Submit directory.",
    "clusterAlgorithm": "How quanta are put together into jobs.",
    "LSST_VERSION": "Release that jobs set up, such as w_2026_45.",
    "sw_image": "Container image of the jobs.",
    "setupLSSTEnv": "Shell commands that make the LSST software available to a job.",
    "custom_lsst_setup": "Shell commands after setupLSSTEnv.",
    **dict.fromkeys(
        """
        extraQgraphOptions extraInitOptions extraRunQuantumOptions extraUpdateQgraphOptions executable
        pipetasks dimensions equalDimensions partitionDimensions partitionMaxClusters partitionMaxSize
        findDependencyMethod uniqProcName timestamp bpsGenerateConfig bpsBatchSubmission enabled files
        whenSetup implementation jobInitDir jobLogDir jobContainer jobCleanup payloadCommand
        dockerImageLocation s3EndpointUrl LSST_RUN_TEMP_SPACE IDDS_MAX_NAME_LENGTH
        """.split(),  # noqa: SIM905
        "",
    ),
}
"""Further keys that BPS or site profiles read, with what editors say of them; any value is allowed."""

SET_UP_KEYS = ("runnerCommand", "payloadCommand", "setupLSSTEnv", "custom_lsst_setup", "jobContainer")
"""Keys by which a profile, or a user, makes software available to jobs."""
