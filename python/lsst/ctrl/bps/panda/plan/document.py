"""A plan as a readable, versioned document and back, and as the table that ``bps prepare`` shows; and what of
it travels in the fields of the request.

The document has one line a task, so that it can be paged and searched.  It does not repeat the values of
single jobs, which are in the parameter files that are staged with the run.
"""

from __future__ import annotations

__all__ = [
    "RunAttributes",
    "describe_plan",
    "find_file",
    "find_tasks",
    "parse_attributes",
    "parse_plan",
    "render_attributes",
    "render_plan",
    "render_table",
]

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any
from urllib.parse import quote, unquote

from ..errors import PlanError
from .model import (
    Accounting,
    ConditionPlan,
    JobPlan,
    Placement,
    Resources,
    RunIdentity,
    StagedFile,
    TaskPlan,
    WorkflowPlan,
)

DOCUMENT_FORMAT = 1
"""Version of the document; a reader refuses a newer one."""


def render_plan(plan: WorkflowPlan) -> Iterator[str]:
    """Render a plan as lines of one JSON object, with their line ends."""
    head = {
        "format": DOCUMENT_FORMAT,
        "run": asdict(plan.run),
        "labels": plan.labels,
        "files": [asdict(staged) for staged in plan.files],
        "conditions": [asdict(condition) for condition in plan.conditions],
        "warnings": plan.warnings,
    }
    yield "{\n"
    for key, value in head.items():
        yield f"{json.dumps(key)}: {json.dumps(value)},\n"
    yield from _render_tasks("tasks", plan.tasks, ",\n")
    yield from _render_tasks("final", plan.final, "\n")
    yield "}\n"


def _render_tasks(key: str, tasks: tuple[TaskPlan, ...], end: str) -> Iterator[str]:
    """Render a list of tasks, a line each."""
    yield f"{json.dumps(key)}: [\n"
    for number, task in enumerate(tasks, 1):
        comma = "," if number < len(tasks) else ""
        yield json.dumps(_task_document(task)) + comma + "\n"
    yield "]" + end


def _task_document(task: TaskPlan) -> dict[str, Any]:
    """Return a task as plain data, with its jobs in columns."""
    plain = {
        field.name: getattr(task, field.name)
        for field in fields(task)
        if field.name not in ("jobs", "placement", "resources", "accounting", "payloads_per_job")
    }
    for name in ("placement", "resources", "accounting"):
        plain[name] = asdict(getattr(task, name))
    plain["packing"] = {"payloads_per_job": task.payloads_per_job}
    plain["jobs"] = {
        "name": [job.name for job in task.jobs],
        "order_id": [job.order_id for job in task.jobs],
        "pseudo_input": [job.pseudo_input for job in task.jobs],
        "parents": [job.parents for job in task.jobs],
    }
    return plain


def parse_plan(text: str, *, source: str) -> WorkflowPlan:
    """Read a plan, without parameter shards and jobs' values, from its document; ``source`` is its path, for
    the error.
    """
    try:
        content = json.loads(text)
        version = content["format"]
        if version > DOCUMENT_FORMAT:
            raise PlanError(
                f"The plan {source} has format {version}; this version of the plugin reads up to "
                f"{DOCUMENT_FORMAT}. Use the version that made it."
            )
        return WorkflowPlan(
            run=RunIdentity(**content["run"]),
            tasks=tuple(_parse_task(entry) for entry in content["tasks"]),
            conditions=tuple(
                ConditionPlan(tuple(entry["waits_for"]), tuple(entry["starts"]))
                for entry in content["conditions"]
            ),
            final=tuple(_parse_task(entry) for entry in content["final"]),
            files=tuple(StagedFile(**entry) for entry in content["files"]),
            shards=(),
            labels=tuple((label, count) for label, count in content["labels"]),
            warnings=tuple(content["warnings"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, PlanError):
            raise
        raise PlanError(f"The plan {source} is damaged or of another kind: {error!r}.") from error


_FILES_LINE = b'"files": '


def find_file(lines: Iterable[bytes], key: str) -> StagedFile | None:
    """Read a file of a run from the lines of the document of its plan, without reading the rest."""
    for line in lines:
        if line.startswith(_FILES_LINE):
            entries = json.loads(line[len(_FILES_LINE) :].rstrip().rstrip(b","))
            return next((StagedFile(**entry) for entry in entries if entry["key"] == key), None)
    return None


_TASK_LINE = b'{"name": "'


def find_tasks(
    lines: Iterable[bytes], names: Collection[str] | None = None, *, holding: str = ""
) -> Iterator[TaskPlan]:
    """Read some tasks from the lines of the document of a plan, which may be long, without reading the rest.

    ``names`` are those of the tasks, all by default; ``holding`` is the name or pseudo-input of a job that
    they have.  A damaged line is a `ValueError`, `KeyError` or `TypeError`.
    """
    left = None if names is None else {name.encode() for name in names}
    text = json.dumps(holding).encode() if holding else b""
    for line in lines:
        if left is not None and not left:
            return
        if not line.startswith(_TASK_LINE):
            continue
        name = line[len(_TASK_LINE) : line.index(b'"', len(_TASK_LINE))]
        if (left is None or name in left) and text in line:
            yield _parse_task(json.loads(line.rstrip().rstrip(b",")))
        if left is not None:
            left.discard(name)


def _parse_task(entry: Mapping[str, Any]) -> TaskPlan:
    """Read one task."""
    jobs = entry["jobs"]
    # Earlier versions of the plugin wrote a user, which nothing reads.
    accounting = {key: value for key, value in entry["accounting"].items() if key != "user"}
    columns = zip(jobs["name"], jobs["order_id"], jobs["pseudo_input"], jobs["parents"], strict=True)
    typed = {
        "placement": Placement(**entry["placement"]),
        "resources": Resources(**entry["resources"]),
        "accounting": Accounting(**accounting),
        "payloads_per_job": entry["packing"]["payloads_per_job"],
        "jobs": tuple(JobPlan(name, order, job, tuple(parents)) for name, order, job, parents in columns),
        "parameter_names": tuple(entry["parameter_names"]),
    }
    plain = {field.name: entry[field.name] for field in fields(TaskPlan) if field.name not in typed}
    return TaskPlan(**plain, **typed)


_HEAD = ("label", "jobs", "tasks", "cores", "memory MB", "attempts", "wall time s", "queue or site")


def render_table(plan: WorkflowPlan, *, request_size: int | None = None) -> str:
    """Render what will run as a table with one line a label, and totals; ``request_size`` is in bytes."""
    tasks = (*plan.tasks, *plan.final)
    by_label: dict[str, list[TaskPlan]] = {}
    for task in tasks:
        by_label.setdefault(task.label, []).append(task)
    rows = [_HEAD, *(_row(label, by_label[label]) for label, _ in plan.labels)]
    rows.append(("total", str(plan.job_count), str(len(tasks)), "", "", "", "", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    lines = [
        "  ".join(
            cell.ljust(width) if i in (0, 7) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    names = [staged.name for staged in plan.files]
    size = sum(len(shard.text) for shard in plan.shards)
    lines.append(f"files to stage: {', '.join(names) or 'none'}")
    lines.append(f"job parameters to stage: {len(plan.shards)} files, {size} bytes")
    if request_size is not None:
        lines.append(f"request: {request_size} bytes, {request_size / max(1, plan.job_count):.1f} a job")
    lines.append(f"staging area: {plan.run.staging_area}")
    return "\n".join(lines)


def describe_plan(plan: WorkflowPlan) -> str:
    """Say in a line or two what will run."""
    labels = ", ".join(f"{label} {jobs}" for label, jobs in plan.labels)
    tasks = len(plan.tasks) + len(plan.final)
    return f"Planned {plan.job_count} jobs in {tasks} tasks for {plan.run.site or 'no site'}: {labels}"


def _row(label: str, tasks: list[TaskPlan]) -> tuple[str, ...]:
    """Return the cells of a label's line."""

    def span(values: set[int]) -> str:
        low, high = min(values), max(values)
        return str(low) if low == high else f"{low}-{high}"

    places = sorted({task.placement.queue or task.placement.site or "(brokered)" for task in tasks})
    return (
        label,
        str(sum(len(task.jobs) for task in tasks)),
        str(len(tasks)),
        span({task.resources.cores for task in tasks}),
        span({task.resources.memory for task in tasks}),
        span({task.resources.attempts for task in tasks}),
        span({task.resources.walltime for task in tasks}),
        ", ".join(places),
    )


# --- the attributes of a run in its request --------------------------------

# iDDS has four free text fields, with columns of these sizes.  PostgreSQL refuses a longer value, SQLite
# takes it, so values are cut here.  The tag (100) stays empty: a request with all four set is linked to a
# group of requests by the server.
_GROUP_VERSION = "v1"
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
    room = _GROUP_LIMIT - len(f"{_GROUP_VERSION};op=;payload=;{numbers}")
    operator = _quote_within(attributes.operator, min(room, 60))
    payload = _quote_within(attributes.payload, room - len(operator))
    return f"{_GROUP_VERSION};op={operator};payload={payload};{numbers}"


def _quote_within(text: str, room: int) -> str:
    """Percent-encode as much of a text as fits, by whole characters."""
    quoted = ""
    for character in text:
        piece = quote(character, safe="")
        if len(quoted) + len(piece) > room:
            break
        quoted += piece
    return quoted


def parse_attributes(
    *, name: str, username: str, campaign: str, campaign_scope: str, campaign_group: str
) -> RunAttributes:
    """Read a run's attributes from the fields of its request.

    For a request of another program the operator is the user as PanDA knows it, and the numbers are 0.
    """
    version, _, rest = campaign_group.partition(";")
    if version != _GROUP_VERSION:
        scope = "" if campaign_scope == _FOREIGN_SCOPE else campaign_scope
        return RunAttributes(name, username, scope, campaign)
    values = {key: unquote(value) for key, _, value in (part.partition("=") for part in rest.split(";"))}
    return RunAttributes(
        name=name,
        operator=values.get("op") or username,
        project=campaign_scope,
        campaign=campaign,
        payload=values.get("payload", ""),
        jobs=_number(values.get("jobs")),
        tasks=_number(values.get("tasks")),
        origin=_number(values.get("origin")),
    )


def _number(text: str | None) -> int:
    """Read a number; 0 if it is none."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 19 else 0
