"""The machine-readable form of everything `panda_bps` shows: one envelope, one schema with a version.

The schema is ``schema.yaml`` in this package (JSON Schema).  Within a version keys may be added; none is
removed or changes its meaning.
"""

from __future__ import annotations

__all__ = ["make_document", "make_plain", "read_schema"]

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from importlib.resources import files as package_files
from typing import Any

import yaml

from .overview import Overview
from .progress import Progress

SCHEMA_VERSION = 1
"""Version of the documents."""

_LISTS = {"errors": "groups", "resources": "labels", "jobs": "jobs"}
"""Key that holds the records of a document, by its kind."""

# Tuples of pairs that read better as an object.
_PAIRS = frozenset({"suggestions", "links", "sites", "nodes"})


def make_document(
    value: Overview | Progress | Mapping[str, Any] | list[Any] | tuple[Any, ...],
    *,
    request_id: int,
    name: str = "",
    kind: str = "",
    problems: tuple[str, ...] = (),
    remarks: Sequence[str] = (),
) -> dict[str, Any]:
    """Put a record, or records, into the envelope; a mapping holds the document's own keys.

    ``kind`` is needed where the value does not say: ``errors``, ``resources``, ``logs``, ``jobs``, ``query``,
    ``page``, ``portal``, ``launch``, ``images``, ``image``.
    """
    head = {
        "schema": "panda_bps",
        "version": SCHEMA_VERSION,
        "kind": kind,
        "request_id": request_id,
        "run": name,
        "problems": list(problems),
        "remarks": list(remarks),
    }
    if isinstance(value, Overview | Progress):
        head["kind"] = "show" if isinstance(value, Overview) else "watch"
        return {**head, **make_plain(value), "kind": head["kind"]}
    if isinstance(value, Mapping):
        return {**head, **make_plain(value)}
    return {**head, _LISTS[kind]: [make_plain(item) for item in value]}


def make_plain(value: Any) -> Any:
    """Turn records into JSON-ready objects: times in ISO 8601 and UTC, states by their name."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds")
    if isinstance(value, Enum):
        return value.name
    if dataclasses.is_dataclass(value):
        return {
            field.name: _plain_field(field.name, getattr(value, field.name))
            for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {make_plain(key): make_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [make_plain(item) for item in value]
    return value


def _plain_field(name: str, value: Any) -> Any:
    if name in _PAIRS:
        return dict(value)
    return round(value, 3) if isinstance(value, float) else make_plain(value)


def read_schema() -> dict[str, Any]:
    """Read the JSON Schema of the documents."""
    text = package_files(__package__).joinpath("schema.yaml").read_text(encoding="utf-8")
    schema = yaml.safe_load(text)
    assert isinstance(schema, dict)
    return schema
