"""The JSON schema of a BPS configuration for editors, made from the models of its sections.

It refuses what the models refuse, apart from texts that BPS replaces something in.  Keys that it does not
know are BPS's or the user's and are allowed, except in the plugin's own sections.
"""

from __future__ import annotations

__all__ = ["make_schema"]

from typing import Any

from .campaign import CampaignSection
from .keys import (
    BPS_KEYS,
    OWN_MODELS,
    PLAIN_SECTIONS,
    SECTIONS_BY_NAME,
    BuildKeys,
    CoreKeys,
    LabelKeys,
    Section,
    keys_of,
)
from .prompt import PromptSection
from .remote import RemoteBuildSection
from .rucio import JOB_KEYS, RucioSection
from .sites import QueueLimits


def make_schema() -> dict[str, Any]:
    """Return the schema of a configuration (JSON Schema, draft 7)."""
    definitions: dict[str, Any] = {}
    label = _describe(definitions, LabelKeys, CoreKeys)
    rucio = _describe(definitions, RucioSection)
    rucio["properties"] |= {name: label["properties"][name] for name in JOB_KEYS}
    queue = _describe(definitions, QueueLimits)
    site = {**label, "properties": {**label["properties"], "rucio": _refer("rucio")}}
    whole = _describe(definitions, *OWN_MODELS, CoreKeys)
    sections = {name: _by_name("label") for name in SECTIONS_BY_NAME}
    sections |= {name: _refer("label") for name in PLAIN_SECTIONS}
    sections |= {
        "site": _by_name("site"),
        "queues": _by_name("queue"),
        "remoteBuild": _describe(definitions, RemoteBuildSection, BuildKeys, LabelKeys),
        "rucio": _refer("rucio"),
        "campaignSites": _describe(definitions, CampaignSection),
        "prompt": _describe(definitions, PromptSection),
    }
    described = {name: {"description": meaning} for name, meaning in BPS_KEYS.items() if meaning}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "BPS configuration for PanDA",
        "type": "object",
        "properties": {**described, **whole["properties"], **sections},
        "definitions": {**definitions, "label": label, "site": site, "rucio": rucio, "queue": queue},
    }


def _refer(name: str) -> dict[str, Any]:
    return {"$ref": f"#/definitions/{name}"}


def _by_name(entry: str) -> dict[str, Any]:
    """Return the schema of a section whose entries have names of the user's."""
    return {"type": ["object", "null"], "additionalProperties": _refer(entry)}


def _describe(definitions: dict[str, Any], *models: type[Section]) -> dict[str, Any]:
    """Return the schema of a section with the keys of all models; what it
    refers to is added to the definitions.
    """
    whole: dict[str, Any] = {"properties": {}}
    for model in models:
        schema = model.model_json_schema(ref_template="#/definitions/{model}")
        definitions |= {name: _clean(each) for name, each in schema.pop("$defs", {}).items()}
        schema = _clean(schema)
        for name, key in keys_of(model).items():
            if key.kind.unit:
                schema["properties"][name]["description"] += f" In {key.kind.unit}."
        whole = {**whole, **schema, "properties": whole["properties"] | schema["properties"]}
    if len(models) > 1:
        del whole["description"]
    return whole


def _clean(schema: Any) -> Any:
    """Leave out titles and empty defaults, which say nothing, and let a section be empty."""
    if isinstance(schema, list):
        return [_clean(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    clean = {
        name: {key: _clean(each) for key, each in value.items()} if name == "properties" else _clean(value)
        for name, value in schema.items()
        if name != "title" and not (name == "default" and value in (None, ""))
    }
    if clean.get("type") == "object":
        clean["type"] = ["object", "null"]
    return clean
