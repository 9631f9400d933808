"""An overview of runs, for ``panda_local status``."""

from __future__ import annotations

__all__ = ["RunOverview", "run_name", "runs"]

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from .database import Database, files, tasks
from .task_book import FINAL_STATES

_TASK_TAIL = re.compile(r"_\d{2,}_.*")


@dataclass(frozen=True, slots=True)
class RunOverview:
    """One run: an iDDS request, as far as PanDA knows it."""

    run: int
    """Id of the iDDS request."""

    name: str
    user: str
    tasks: int
    ended: int
    """Tasks that have ended."""

    jobs: int
    """Inputs of its tasks, that is, jobs without their attempts."""

    done: int
    failed: int
    pruned: int
    running: int
    """Inputs with a job that is ready or runs."""


def run_name(task_names: Sequence[str]) -> str:
    """Find the name of a run from those of its tasks.

    A task is named ``<run>_<nn>_<label>_<chunk>_<request>_<transform>``.
    """
    if len(task_names) == 1:
        return _TASK_TAIL.sub("", task_names[0])
    common = os.path.commonprefix(list(task_names))
    return common.rpartition("_")[0] or common


def runs(database: Database, *, limit: int = 20) -> list[RunOverview]:
    """List the newest runs, newest first."""
    newest = sa.select(tasks.c.req_id).where(tasks.c.req_id.isnot(None)).distinct()
    newest = newest.order_by(tasks.c.req_id.desc()).limit(limit)
    answer = []
    with database.look() as connection:
        for run in connection.execute(newest).scalars().all():
            rows = connection.execute(
                sa.select(tasks.c.task_id, tasks.c.name, tasks.c.user_name, tasks.c.status).where(
                    tasks.c.req_id == run
                )
            ).all()
            ids = [row.task_id for row in rows]
            query = sa.select(files.c.status, sa.func.count()).where(files.c.task_id.in_(ids))
            counts = {item[0]: int(item[1]) for item in connection.execute(query.group_by(files.c.status))}
            answer.append(
                RunOverview(
                    run=int(run),
                    name=run_name([row.name for row in rows]),
                    user=rows[0].user_name,
                    tasks=len(rows),
                    ended=sum(row.status in FINAL_STATES for row in rows),
                    jobs=sum(counts.values()),
                    done=counts.get("finished", 0),
                    failed=counts.get("failed", 0) + counts.get("cancelled", 0),
                    pruned=counts.get("missing", 0),
                    running=counts.get("running", 0),
                )
            )
    return answer
