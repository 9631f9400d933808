"""The keys of the BPS configuration that this plugin reads: one table.

The table is what `~lsst.ctrl.bps.panda.settings` reads by, what a wrong or
misspelt key is checked against, and what the page of settings in the
documentation is made from.
"""

from __future__ import annotations

__all__ = ["KEYS", "Key", "closest_key", "convert"]

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import SettingsError


@dataclass(frozen=True, slots=True)
class Key:
    """A key of the BPS configuration."""

    name: str
    kind: str
    """``text``, ``whole number``, ``number``, ``yes or no``, ``list``."""

    default: Any
    meaning: str
    per_label: bool = False
    """Whether it may be set for a label (``pipetask:``, ``cluster:``,
    ``finalJob:``, ``customJob:``), a site or a cloud."""


def _key(name: str, kind: str, default: Any, meaning: str, *, per_label: bool = False) -> Key:
    return Key(name, kind, default, meaning, per_label)


KEYS: dict[str, Key] = {
    key.name: key
    for key in (
        _key("computeSite", "text", "", "Computing site; also selects the site profile.", per_label=True),
        _key("computeCloud", "text", "US", "PanDA cloud.", per_label=True),
        _key("queue", "text", "", "PanDA queue; empty lets PanDA choose.", per_label=True),
        _key("priority", "whole number", 900, "Priority of the tasks.", per_label=True),
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
        _key("maxCopyWorkers", "whole number", 10, "Number of files that are staged at the same time."),
        _key(
            "jobNaming",
            "text",
            "short",
            "How jobs are named in PanDA: `short`, `plain`, `orderIdMap` or `qnodeMap`.",
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
        _key("maxJobsPerTask", "whole number", 10000, "Most jobs in a PanDA task."),
        _key(
            "enableEventService",
            "text",
            "",
            "Labels of which several payloads share a PanDA job, "
            "separated by commas, each perhaps with a number: `isr:20, calibrate`.",
        ),
        _key(
            "maxPayloadsPerPandaJob",
            "whole number",
            10,
            "Payloads in a PanDA job of a label that gives no number.",
        ),
        _key(
            "maxWmsJobWalltime",
            "whole number",
            0,
            "Wall time of a PanDA job of several payloads, "
            "seconds; with `requestWalltime` it gives the number of payloads.",
        ),
        _key(
            "maxRequestLength",
            "whole number",
            400_000_000,
            "Largest request, bytes; a larger one is sent in steps.",
        ),
        _key("iddsServer", "text", "", "iDDS server that the relay is to use instead of its own."),
        _key(
            "pandaMonitorUrl",
            "text",
            "https://usdf-panda-bigmon.slac.stanford.edu:8443",
            "Base URL of the PanDA monitor, for links.",
        ),
        _key("tokenLifetime", "number", 1.0, "Hours that the log-in must still be valid at submission."),
        _key(
            "rememberExitCodes",
            "yes or no",
            True,
            "Whether the runner keeps `retryUnlessExit` between attempts, in the staging area.",
        ),
    )
}
"""All keys, by name."""


def _whole(value: Any) -> int:
    """Convert to a whole number, refusing a fraction."""
    number = float(value)
    if number != int(number):
        raise ValueError(value)
    return int(number)


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
    return [str(item) for item in value]


_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "text": str,
    "whole number": _whole,
    "number": float,
    "yes or no": _yes_or_no,
    "list": _list,
}


def convert(key: Key, value: Any, *, source: str) -> Any:
    """Convert a value to the kind of its key.

    Parameters
    ----------
    key : `Key`
        The key.
    value : `~typing.Any`
        What the configuration holds; `None` and nothing mean the default.
    source : `str`
        Where the value is from, for the error.

    Raises
    ------
    SettingsError
        Raised if the value is of another kind; names key, value and source.
    """
    if value is None or (isinstance(value, str) and not value.strip() and key.kind != "text"):
        return key.default
    try:
        return _CONVERTERS[key.kind](value)
    except (KeyError, TypeError, ValueError):
        raise SettingsError(f"{key.name} is {value!r} ({source}); it must be a {key.kind}.") from None


def closest_key(name: str) -> str | None:
    """Return the key that a name is probably meant to be.

    Parameters
    ----------
    name : `str`
        A key of the configuration that nobody reads.

    Returns
    -------
    key : `str` or `None`
        A key of ours that differs a little, or `None`.
    """
    if name in KEYS:
        return None
    folded = {key.lower(): key for key in KEYS}
    if name.lower() in folded:
        return folded[name.lower()]
    near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.88)
    return folded[near[0]] if near else None
