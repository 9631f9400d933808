"""Attributes of a run that travel in its iDDS request, so that a report needs no submit directory.

iDDS has four free text fields: ``campaign`` (50 characters), ``campaign_scope`` (25), ``campaign_group``
(255) and ``campaign_tag`` (100).  PostgreSQL refuses a longer value, SQLite takes it, so values are cut here.
The tag stays empty: a request with all four set is linked to a group of requests by the server.
"""

from __future__ import annotations

__all__ = ["RunAttributes", "attributes_of", "parse_attributes", "render_attributes"]

from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote, unquote

_VERSION = "v1"
_CAMPAIGN_LIMIT = 50
_SCOPE_LIMIT = 25
_GROUP_LIMIT = 255
_NAME_LIMIT = 255
_FOREIGN_SCOPE = "Default"


@dataclass(frozen=True, slots=True)
class RunAttributes:
    """Attributes of a run that travel with its request."""

    name: str
    """Name of the run and of the request."""

    operator: str = ""
    project: str = ""
    """Cut by iDDS to 25 characters."""

    campaign: str = ""
    """Cut by iDDS to 50 characters."""

    payload: str = ""
    jobs: int = 0
    """Planned number of jobs, final ones included; 0 if not known."""

    tasks: int = 0
    """Planned number of tasks, final ones included; 0 if not known."""

    origin: int = 0
    """Request id of the run that this one restarts, or 0."""


class RunFields(Protocol):
    """The fields of a planned or recorded run that become its attributes."""

    @property
    def name(self) -> str: ...

    @property
    def operator(self) -> str: ...

    @property
    def project(self) -> str: ...

    @property
    def campaign(self) -> str: ...

    @property
    def payload(self) -> str: ...

    @property
    def origin(self) -> int: ...


def attributes_of(run: RunFields, *, jobs: int, tasks: int) -> RunAttributes:
    """Return the attributes of a run with so many jobs and tasks."""
    return RunAttributes(
        run.name, run.operator, run.project, run.campaign, run.payload, jobs, tasks, run.origin
    )


def render_attributes(attributes: RunAttributes) -> dict[str, str]:
    """Render the attributes as fields of an iDDS workflow, none longer than iDDS's columns."""
    return {
        "name": attributes.name[:_NAME_LIMIT],
        "campaign": attributes.campaign[:_CAMPAIGN_LIMIT],
        "campaign_scope": attributes.project[:_SCOPE_LIMIT],
        "campaign_group": _render_group(attributes),
        "campaign_tag": "",
    }


def _render_group(attributes: RunAttributes) -> str:
    """Render the group, with payload and operator cut to fit."""
    numbers = f"jobs={attributes.jobs};tasks={attributes.tasks};origin={attributes.origin}"
    room = _GROUP_LIMIT - len(f"{_VERSION};op=;payload=;{numbers}")
    operator = _quote_within(attributes.operator, min(room, 60))
    payload = _quote_within(attributes.payload, room - len(operator))
    return f"{_VERSION};op={operator};payload={payload};{numbers}"


def _quote_within(text: str, room: int) -> str:
    """Percent-encode as much of a text as fits, by whole characters."""
    quoted = ""
    for character in text:
        piece = quote(character, safe="")
        if len(quoted) + len(piece) > room:
            break
        quoted += piece
    return quoted


class AttributeFields(Protocol):
    """The fields of a request in which a run's attributes travel."""

    @property
    def name(self) -> str: ...

    @property
    def username(self) -> str: ...

    @property
    def campaign(self) -> str: ...

    @property
    def campaign_scope(self) -> str: ...

    @property
    def campaign_group(self) -> str: ...


def parse_attributes(record: AttributeFields) -> RunAttributes:
    """Read a run's attributes from its request.

    For a request of another program the operator is the user as PanDA knows it, and the numbers are 0.
    """
    version, _, rest = record.campaign_group.partition(";")
    if version != _VERSION:
        scope = "" if record.campaign_scope == _FOREIGN_SCOPE else record.campaign_scope
        return RunAttributes(record.name, record.username, scope, record.campaign)
    values = {key: unquote(value) for key, _, value in (part.partition("=") for part in rest.split(";"))}
    return RunAttributes(
        name=record.name,
        operator=values.get("op") or record.username,
        project=record.campaign_scope,
        campaign=record.campaign,
        payload=values.get("payload", ""),
        jobs=_number(values.get("jobs")),
        tasks=_number(values.get("tasks")),
        origin=_number(values.get("origin")),
    )


def _number(text: str | None) -> int:
    """Read a number; 0 if it is none."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 19 else 0
