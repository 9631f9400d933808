"""What PanDA's API tells of tasks, inputs, jobs and events: reading only."""

from __future__ import annotations

__all__ = ["Views"]

import datetime
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from .database import Database, events, files, jobs, tasks
from .records import job_record, task_record

# What an input's state is called in PanDA's tables: one that used up its
# attempts is "ready" there, with as many attempts as allowed.
_FILE_STATES = {"waiting": "ready", "failed": "ready", "cancelled": "ready"}
_MAX_JOBS = 5500
"""PanDA cuts the list of a task's jobs at this number."""


class Views:
    """Reads the database.

    Parameters
    ----------
    database : `Database`
        What to read.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @staticmethod
    def _task(row: Mapping[str, Any]) -> dict[str, Any]:
        return {**row, "params": json.loads(row["params"])}

    def task(self, task_id: int) -> dict[str, Any] | None:
        """Read a task, `None` if there is none."""
        with self._database.look() as connection:
            row = connection.execute(sa.select(tasks).where(tasks.c.task_id == task_id)).mappings().first()
        return None if row is None else self._task(dict(row))

    def details(self, task_id: int) -> dict[str, Any] | None:
        """Tell a task's status and the current job of each input."""
        task = self.task(task_id)
        if task is None:
            return None
        query = sa.select(files.c.status, files.c.panda_id).where(files.c.task_id == task_id)
        with self._database.look() as connection:
            rows = connection.execute(query.order_by(files.c.file_id)).all()
        states = [_FILE_STATES.get(row.status, row.status) for row in rows]
        statistics = ",".join(f"{state}*{states.count(state)}" for state in sorted(set(states)))
        return {
            "inDS": "",
            "outDS": "",
            "statistics": statistics,
            "mergeStatus": None,
            "PandaID": [row.panda_id for row in rows if row.panda_id],
            "mergePandaID": [],
            "status": task["status"],
            "cliParams": "",
            "taskParams": json.dumps(task["params"]),
        }

    def datasets(self, task_id: int) -> list[dict[str, Any]] | None:
        """List a task's inputs with their states."""
        task = self.task(task_id)
        if task is None:
            return None
        query = sa.select(files).where(files.c.task_id == task_id).order_by(files.c.file_id)
        with self._database.look() as connection:
            rows = connection.execute(query).all()
        inputs = [
            {
                "lfn": row.lfn,
                "scope": None,
                "id": row.file_id,
                "status": _FILE_STATES.get(row.status, row.status),
            }
            for row in rows
        ]
        return [{"dataset": {"name": "pseudo_dataset", "id": task["dataset_id"]}, "files": inputs}]

    def jobs(self, panda_ids: Iterable[int]) -> list[dict[str, Any] | None]:
        """Make the records of jobs, in the given order."""
        wanted = [int(value) for value in panda_ids]
        found: dict[int, dict[str, Any]] = {}
        for start in range(0, len(wanted), 500):
            found.update(self._records(jobs.c.panda_id.in_(wanted[start : start + 500])))
        return [found.get(panda_id) for panda_id in wanted]

    def job_descriptions(self, task_id: int, *, unsuccessful_only: bool) -> list[dict[str, Any]]:
        """Make the records of all attempts of all jobs of a task."""
        condition = jobs.c.task_id == task_id
        if unsuccessful_only:
            condition = condition & (jobs.c.status != "finished")
        return list(self._records(condition, limit=_MAX_JOBS).values())

    def _records(
        self, condition: sa.ColumnElement[bool], limit: int | None = None
    ) -> dict[int, dict[str, Any]]:
        columns = [files.c.lfn, files.c.events]
        query = sa.select(jobs, *columns).join(files, files.c.file_id == jobs.c.file_id).where(condition)
        cache: dict[int, dict[str, Any]] = {}
        records = {}
        with self._database.look() as connection:
            for row in connection.execute(query.order_by(jobs.c.panda_id).limit(limit)).mappings():
                task_id = row["task_id"]
                if task_id not in cache:
                    found = connection.execute(sa.select(tasks).where(tasks.c.task_id == task_id))
                    cache[task_id] = self._task(dict(found.mappings().one()))
                file = {"file_id": row["file_id"], "lfn": row["lfn"]}
                records[int(row["panda_id"])] = job_record(dict(row), cache[task_id], file)
        return records

    def job_ids(self, task_id: int) -> list[int]:
        """List all jobs of a task, attempts included."""
        query = sa.select(jobs.c.panda_id).where(jobs.c.task_id == task_id).order_by(jobs.c.panda_id)
        with self._database.look() as connection:
            return list(connection.execute(query).scalars())

    def job_states(self, panda_ids: Iterable[int]) -> list[dict[str, Any]]:
        """Tell status and pending command of jobs."""
        return [
            {"status": record["jobStatus"], "command": record["commandToPilot"]}
            if record
            else {"status": "notfound", "command": None}
            for record in self.jobs(panda_ids)
        ]

    def event_states(self, pairs: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Tell how the payloads of event service jobs ended.

        Parameters
        ----------
        pairs : `~collections.abc.Iterable`
            ``task_id`` and ``panda_id`` of each job.
        """
        answer: dict[str, dict[str, Any]] = {}
        with self._database.look() as connection:
            for pair in pairs:
                task_id, panda_id = int(pair["task_id"]), int(pair["panda_id"])
                # Payloads that an earlier attempt finished are not run again.
                input_id = sa.select(jobs.c.file_id).where(jobs.c.panda_id == panda_id).scalar_subquery()
                query = sa.select(events).where(
                    (events.c.panda_id == panda_id)
                    | ((events.c.file_id == input_id) & (events.c.status == "finished"))
                )
                for row in connection.execute(query):
                    name = f"{task_id}-1-{panda_id}-{row.number}-1"
                    state = {"status": row.status, "error": row.error, "dialog": row.dialog}
                    answer.setdefault(str(panda_id), {})[name] = state
        return answer

    def tasks_since(
        self, since: str | None, filters: Mapping[str, str], *, user: str, limit: int
    ) -> list[dict[str, Any]]:
        """Make the detailed records of tasks changed since a time.

        Parameters
        ----------
        since : `str` or `None`
            UTC, ``%Y-%m-%d %H:%M:%S``.
        filters : `~collections.abc.Mapping` [`str`, `str`]
            Fields and values; a value with ``|`` is a regular expression.
        user : `str`
            Whose tasks, unless the filters name ``userName``; empty for all.
        limit : `int`
            Highest number of tasks.
        """
        wanted = {"userName": user, **filters} if user else dict(filters)
        query = sa.select(tasks)
        if since:
            start = datetime.datetime.fromisoformat(since).replace(tzinfo=datetime.UTC)
            query = query.where(tasks.c.modified >= start.timestamp())
        columns = {"reqID": tasks.c.req_id, "jediTaskID": tasks.c.task_id}
        for name, column in columns.items():
            if name in wanted and wanted[name].isdigit():
                query = query.where(column == int(wanted[name]))
        answer: list[dict[str, Any]] = []
        with self._database.look() as connection:
            for row in connection.execute(query.order_by(tasks.c.task_id)).mappings():
                task = self._task(dict(row))
                count = sa.select(files.c.status, sa.func.count()).where(files.c.task_id == task["task_id"])
                counts = {
                    item[0]: int(item[1]) for item in connection.execute(count.group_by(files.c.status))
                }
                record = task_record(task, counts)
                if all(_matches(record.get(name), value) for name, value in wanted.items()):
                    answer.append(record)
                if len(answer) >= limit:
                    break
        return answer

    def detailed_task(self, task_id: int) -> dict[str, Any] | None:
        """Make the detailed record of one task."""
        found = self.tasks_since(None, {"jediTaskID": str(task_id)}, user="", limit=1)
        return found[0] if found else None


def _matches(value: object, pattern: str) -> bool:
    text = "" if value is None else str(value)
    return text == pattern or ("|" in pattern and re.fullmatch(pattern, text) is not None)
