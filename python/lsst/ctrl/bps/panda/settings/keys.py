"""The keys of the BPS configuration that this plugin reads: one table.

The table is what `~lsst.ctrl.bps.panda.settings.run` reads by, what a wrong or
misspelt key is checked against, and what the page of settings in the
documentation is made from.
"""

from __future__ import annotations

__all__ = ["CORE_KEYS", "KEYS", "Key", "convert"]

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import SettingsError


@dataclass(frozen=True, slots=True)
class Key:
    """A key of the BPS configuration."""

    name: str
    kind: str
    """``text``, ``whole number``, ``number``, ``MB``, ``seconds``, ``yes or
    no``, ``list``, ``list of labels``, ``mapping``, ``exit codes``."""

    default: Any
    meaning: str
    per_label: bool = False
    """Whether it may be set for a label (``pipetask:``, ``cluster:``,
    ``finalJob:``, ``customJob:``), a site or a cloud."""

    least: int | None = None
    """Smallest number."""

    choices: tuple[str, ...] = ()
    """The only values, if there are few."""


def _key(
    name: str,
    kind: str,
    default: Any,
    meaning: str,
    *,
    per_label: bool = False,
    least: int | None = None,
    choices: tuple[str, ...] = (),
) -> Key:
    return Key(name, kind, default, meaning, per_label, least, choices)


KEYS: dict[str, Key] = {
    key.name: key
    for key in (
        _key("computeSite", "text", "", "Computing site; also selects the site profile.", per_label=True),
        _key("computeCloud", "text", "US", "PanDA cloud.", per_label=True),
        _key("queue", "text", "", "PanDA queue; empty lets PanDA choose.", per_label=True),
        _key("priority", "whole number", 500, "Priority of the tasks.", per_label=True),
        _key(
            "processingType",
            "text",
            "",
            "PanDA processing type; the final job's default is `Rubin_Merge`.",
            per_label=True,
        ),
        _key("taskType", "text", "test", "PanDA task type.", per_label=True),
        _key("prodSourceLabel", "text", "managed", "PanDA production source label.", per_label=True),
        _key("vo", "text", "wlcg", "Virtual organisation of the tasks.", per_label=True),
        _key(
            "runnerCommand",
            "text",
            "",
            "What a job runs on the worker; `_cmd_line_` stands for the "
            "runner's arguments, `_runner_` for the staged runner.",
            per_label=True,
        ),
        _key(
            "buildCommand",
            "text",
            "",
            "What the task of a remote build runs, if `remoteBuild` has no `runnerCommand`.",
        ),
        _key(
            "prmon",
            "yes or no",
            True,
            "Whether the runner starts `prmon`, where there is one.",
            per_label=True,
        ),
        _key(
            "keepTokens",
            "yes or no",
            False,
            "Whether the payload sees tokens (`PANDA_AUTH_ID_TOKEN` and "
            "the like) that the pilot has in its environment.",
            per_label=True,
        ),
        _key(
            "fileDistributionEndPoint",
            "text",
            "",
            "Staging area of the run: a URI or path that submit host and workers see; ends in `/`.",
        ),
        _key(
            "fileDistributionEndPointDefault",
            "text",
            "",
            "Staging area to use when an environment variable in `fileDistributionEndPoint` is not set.",
        ),
        _key("payloadFolder", "text", "payload", "Part of the path of the staging area in the profiles."),
        _key(
            "sitesShareFiles",
            "yes or no",
            False,
            "Whether all sites that labels name see the staging area and the Butler under the same paths.",
        ),
        _key(
            "stageRunner",
            "yes or no",
            True,
            "Whether the runner is staged with the run, so that workers need nothing of this plugin.",
        ),
        _key(
            "groupPermissions",
            "yes or no",
            False,
            "Whether the staging area gets group-write and set-group-id permissions.",
        ),
        _key(
            "maxCopyWorkers", "whole number", 10, "Number of files that are staged at the same time.", least=1
        ),
        _key(
            "jobNaming",
            "text",
            "short",
            "How jobs are named in PanDA: `short`, `plain`, `orderIdMap` or `qnodeMap`.",
            choices=("short", "plain", "orderIdMap", "qnodeMap"),
        ),
        _key("enableJobNameMap", "yes or no", False, "Same as `jobNaming: orderIdMap`."),
        _key("orderIdMapFilename", "text", "panda_order_id_map.json", "File name of the order-id map."),
        _key("enableQnodeMap", "yes or no", False, "Same as `jobNaming: qnodeMap`."),
        _key(
            "placeholderParams",
            "list",
            ["qgraphNodeId", "qgraphId"],
            "Values that always travel with the job.",
        ),
        _key(
            "submitSideResolvedParams",
            "list",
            ["USER"],
            "Environment variables in commands that are resolved on the submit side.",
        ),
        _key("maxJobsPerTask", "whole number", 10000, "Most jobs in a PanDA task.", least=1),
        _key(
            "enableEventService",
            "list of labels",
            "",
            "Labels of which several payloads share a PanDA job, "
            "separated by commas, each perhaps with a number: `isr:20, calibrate`.",
        ),
        _key(
            "maxPayloadsPerPandaJob",
            "whole number",
            10,
            "Payloads in a PanDA job of a label that gives no number.",
            least=1,
        ),
        _key(
            "maxWmsJobWalltime",
            "whole number",
            0,
            "Wall time of a PanDA job of several payloads, "
            "seconds; with `requestWalltime` it gives the number of payloads.",
            least=0,
        ),
        _key(
            "maxRequestLength",
            "whole number",
            400_000_000,
            "Largest request, bytes; a larger one is sent in steps.",
            least=10_000,
        ),
        _key("iddsServer", "text", "", "iDDS server that the relay is to use instead of its own."),
        _key(
            "pandaMonitorUrl",
            "text",
            "https://usdf-panda-bigmon.slac.stanford.edu:8443",
            "Base URL of the PanDA monitor, for links; it does not show a server on this machine.",
        ),
        _key(
            "pandaMessagesUrl",
            "text",
            "",
            "Message broker (ActiveMQ) of PanDA, for `panda_bps watch`: `stomp://HOST:61613` or "
            "`stomp+ssl://HOST:61614`.",
        ),
        _key(
            "pandaMessagesDestination",
            "text",
            "/topic/panda_idds",
            "Topic on which PanDA tells of changes of jobs and tasks; the default is that of PanDA's Helm "
            "charts.",
        ),
        _key("pandaMessagesVhost", "text", "", "Virtual host of the message broker; its name if empty."),
        _key(
            "tokenLifetime",
            "number",
            1.0,
            "Hours that the log-in must still be valid at submission.",
            least=0,
        ),
        _key(
            "rememberExitCodes",
            "yes or no",
            True,
            "Whether the runner keeps `retryUnlessExit` between attempts, in the staging area.",
        ),
    )
}
"""All keys, by name."""

CORE_KEYS: dict[str, Key] = {
    key.name: key
    for key in (
        _key("requestMemory", "MB", None, "Memory of a job.", per_label=True, least=1),
        _key("requestMemoryMax", "MB", None, "Most memory of an attempt.", per_label=True, least=0),
        _key("memoryMultiplier", "number", None, "Growth of the memory.", per_label=True, least=0),
        _key("requestCpus", "whole number", None, "Cores of a job.", per_label=True, least=1),
        _key("requestDisk", "MB", None, "Scratch space of a job.", per_label=True, least=0),
        _key("requestWalltime", "seconds", None, "Longest time of a job.", per_label=True, least=0),
        _key("numberOfRetries", "whole number", None, "Attempts after the first.", per_label=True, least=0),
        _key("retryUnlessExit", "exit codes", None, "Codes after which there is none.", per_label=True),
        _key("environment", "mapping", None, "Variables of a job.", per_label=True),
        _key("accountingGroup", "text", None, "PanDA working group.", per_label=True),
        _key("preCmdline", "text", None, "Command before the payload.", per_label=True),
        _key("postCmdline", "text", None, "Command after the payload.", per_label=True),
    )
}
"""Keys of BPS itself whose values it takes as they are: a wrong one would be
found only when the quantum graph is there, after hours perhaps.
"""


def _text(value: Any) -> str:
    """Convert to a text: YAML takes a bare ``no`` for a truth value."""
    if isinstance(value, list | tuple | Mapping | bool) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise TypeError(value)
    return str(value)


def _number(value: Any) -> float:
    """Convert to a number that is one."""
    if isinstance(value, bool) or not math.isfinite(number := float(value)):
        raise ValueError(value)
    return number


def _whole(value: Any) -> int:
    """Convert to a whole number, refusing a fraction."""
    number = _number(value)
    if number != int(number):
        raise ValueError(value)
    # A large one is no float.
    return value if isinstance(value, int) else int(number)


def _mapping(value: Any) -> Mapping[str, Any]:
    """Take a mapping only."""
    if not isinstance(value, Mapping):
        raise TypeError(value)
    return value


def _codes(value: Any) -> list[int]:
    """Convert to exit codes."""
    return [_whole(code) for code in (value if isinstance(value, list | tuple) else [value])]


def _yes_or_no(value: Any) -> bool:
    """Convert to a truth value."""
    if isinstance(value, bool):
        return value
    words = {"true": True, "yes": True, "on": True, "1": True}
    words |= {"false": False, "no": False, "off": False, "0": False, "none": False, "": False}
    return words[str(value).strip().lower()]


def _list(value: Any) -> list[str]:
    """Convert to a list of texts."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    if isinstance(value, Mapping):
        raise TypeError(value)
    return [str(item) for item in value]


def _labels(value: Any) -> dict[str, int | None]:
    """Convert to labels, each perhaps with a number: ``isr:20, calibrate``."""
    numbers: dict[str, int | None] = {}
    if isinstance(value, Mapping):
        value = [f"{label}:{value[label]}" for label in value]
    for item in _list(value):
        label, colon, number = (part.strip() for part in item.partition(":"))
        numbers[label] = int(number) if colon else None
        if not label or (colon and int(number) < 1):
            raise ValueError(value)
    return numbers


_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "text": _text,
    "whole number": _whole,
    "number": _number,
    "MB": _number,
    "seconds": _number,
    "yes or no": _yes_or_no,
    "list": _list,
    "list of labels": _labels,
    "mapping": _mapping,
    "exit codes": _codes,
}

_WORDS = {
    "list of labels": "a list of labels, each perhaps with a number of at least 1, such as isr:20, calibrate",
    "yes or no": "yes or no",
    "MB": "a number of MB, without a unit",
    "seconds": "a number of seconds, without a unit",
    "text": "a text, in quotes where YAML takes it for something else",
    "mapping": "a section of names with values",
    "exit codes": "a whole number or a list of whole numbers",
}


def convert(key: Key, value: Any, *, source: str | Callable[[], str]) -> Any:
    """Convert a value to the kind of its key.

    Parameters
    ----------
    key : `Key`
        The key.
    value : `~typing.Any`
        What the configuration holds; `None` and nothing mean the default.
    source : `str` or callable
        Where the value is from, for the error; a function is called if there
        is one.

    Raises
    ------
    SettingsError
        Raised if the value is of another kind, too small or not one of few;
        names key, value and source.
    """
    if value is None or (isinstance(value, str) and not value.strip() and key.kind != "text"):
        return key.default
    try:
        converted = _CONVERTERS[key.kind](value)
        needed = _unmet(key, converted)
    except (KeyError, TypeError, ValueError, OverflowError):
        needed = f"it must be {_WORDS.get(key.kind, 'a ' + key.kind)}"
    if needed:
        where = source if isinstance(source, str) else source()
        shown = dict(value) if isinstance(value, Mapping) else value
        raise SettingsError(f"{key.name} is {shown!r} ({where}); {needed}.")
    return converted


def _unmet(key: Key, value: Any) -> str:
    """Say what a value of the right kind lacks; empty if nothing."""
    if key.least is not None and not value >= key.least:  # not a number is not less
        return f"it must be at least {key.least}"
    if key.choices and value not in key.choices:
        return f"choose one of {', '.join(key.choices)}"
    return ""
