"""The keys of the section ``rucio`` of the BPS configuration: one table, by
which the section is read and from which its documentation is made.
"""

from __future__ import annotations

__all__ = ["JOB_KEYS", "RUCIO_KEYS"]

from ..keys import Key

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
