"""The table that ``bps prepare`` shows of a plan."""

from __future__ import annotations

__all__ = ["render_table"]

from .plan.model import TaskPlan, WorkflowPlan

_HEAD = ("label", "jobs", "tasks", "cores", "memory MB", "attempts", "wall time s", "queue or site")


def render_table(plan: WorkflowPlan, *, request_size: int | None = None) -> str:
    """Render what will run: a line a label, and totals.

    Parameters
    ----------
    plan : `WorkflowPlan`
        The plan.
    request_size : `int`, optional
        Size of what is sent for it, bytes.

    Returns
    -------
    text : `str`
        Lines, the columns aligned.
    """
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


def _row(label: str, tasks: list[TaskPlan]) -> tuple[str, ...]:
    """Return the cells of a label."""

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
