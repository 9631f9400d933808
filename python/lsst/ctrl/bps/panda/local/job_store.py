"""Inputs and PanDA jobs: from an input that is ready over its attempts to its
end.  Works inside the transactions of `~.jedi.Jedi`.
"""

from __future__ import annotations

__all__ = ["OPEN_FILES", "OPEN_JOBS", "JobStore"]

import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from .database import Database, events, files, jobs
from .memory_growth import memory_of_retry
from .outbox import Outbox
from .outcomes import MEMORY_CODES, Outcome, cancelled_detail

OPEN_FILES = ("staging", "ready", "waiting", "running")
"""States of an input whose fate is open."""

OPEN_JOBS = ("activated", "running")

_FIRST_JOB = 1_000_000
"""iDDS 2.6.21 compares PanDA ids as texts to find the newest; they need to
have the same number of digits."""


class JobStore:
    """Inputs and jobs of all tasks.

    Parameters
    ----------
    database : `Database`
        Where they are kept.
    outbox : `Outbox`
        For the messages about jobs.
    clock : callable
        Time, seconds since the epoch.
    wake : callable
        Called after a job became ready to run.
    """

    def __init__(
        self, database: Database, outbox: Outbox, *, clock: Callable[[], float], wake: Callable[[], None]
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._clock = clock
        self._wake = wake
        self._job_ids = itertools.count(max(database.highest(jobs.c.panda_id), _FIRST_JOB) + 1)
        self._file_ids = itertools.count(database.highest(files.c.file_id) + 1)

    def add_files(self, connection: sa.Connection, task: Mapping[str, Any], names: list[str]) -> None:
        """Add the inputs of a new task.

        Notes
        -----
        The name of an input is made as JEDI's ContentsFeeder does: a running
        number, a colon, what stands behind the last ``/``, and up to ``^``,
        which separates the number of events.
        """
        params = task["params"]
        staged = not params.get("inputPreStaging")
        rows = []
        for number, name in enumerate(names):
            stem, _, count = name.split("/")[-1].partition("^")
            rows.append(
                {
                    "file_id": next(self._file_ids),
                    "task_id": task["task_id"],
                    "lfn": f"{number:06d}:{stem}",
                    "events": int(count or 1) if task["event_service"] else 0,
                    "status": "ready" if staged else "staging",
                    "attempt": 0,
                    "max_attempt": task["max_attempt"],
                    "ram": int(params.get("ramCount") or 0),
                    "due": None,
                    "panda_id": None,
                }
            )
        if rows:
            connection.execute(files.insert(), rows)

    def activate_ready(self, connection: sa.Connection, task: Mapping[str, Any], delay: float) -> int:
        """Make jobs of the inputs of a task that are ready, now or later.

        Returns
        -------
        count : `int`
            Number of inputs that were ready.
        """
        query = sa.select(files).where(files.c.task_id == task["task_id"], files.c.status == "ready")
        rows = connection.execute(query.order_by(files.c.file_id)).mappings().all()
        if delay > 0:
            update = files.update().where(files.c.task_id == task["task_id"], files.c.status == "ready")
            connection.execute(update.values(status="waiting", due=self._clock() + delay))
            return len(rows)
        for row in rows:
            self.create(connection, task, dict(row))
        return len(rows)

    def create(self, connection: sa.Connection, task: Mapping[str, Any], file: Mapping[str, Any]) -> int:
        """Make a job of an input: the next attempt."""
        now = self._clock()
        panda_id = next(self._job_ids)
        first = panda_id
        if file["panda_id"]:
            previous = sa.select(jobs.c.name).where(jobs.c.panda_id == file["panda_id"])
            # A job keeps the name of its first attempt.
            first = int(str(connection.execute(previous).scalar()).rpartition(".")[2])
        job = {
            "panda_id": panda_id,
            "task_id": task["task_id"],
            "file_id": file["file_id"],
            "name": f"{task['name']}.{first}",
            "attempt": file["attempt"] + 1,
            "status": "activated",
            "queue": task["queue"],
            "cores": task["cores"],
            "ram": file["ram"],
            "priority": task["priority"],
            "created": now,
            "changed": now,
            "detail": "{}",
        }
        connection.execute(jobs.insert().values(**job))
        update = files.update().where(files.c.file_id == file["file_id"])
        connection.execute(
            update.values(status="running", attempt=job["attempt"], panda_id=panda_id, due=None)
        )
        self.tell(connection, {**job, "lfn": file["lfn"]})
        self._database.after_commit(self._wake)
        return panda_id

    def tell(self, connection: sa.Connection, job: Mapping[str, Any]) -> None:
        """Send iDDS the state of a job."""
        self._outbox.put(
            connection,
            {
                "msg_type": "job_status",
                "jobid": job["panda_id"],
                "taskid": job["task_id"],
                "status": job["status"],
                "inputs": [job["lfn"]],
                "computingsite": job["queue"],
            },
        )

    def get(self, connection: sa.Connection, panda_id: int) -> dict[str, Any] | None:
        """Read a job together with its input."""
        columns = [files.c.lfn, files.c.events, files.c.max_attempt, files.c.panda_id.label("current")]
        query = sa.select(jobs, *columns).join(files, files.c.file_id == jobs.c.file_id)
        row = connection.execute(query.where(jobs.c.panda_id == panda_id)).mappings().first()
        return None if row is None else dict(row)

    def close(
        self,
        connection: sa.Connection,
        job: Mapping[str, Any],
        *,
        status: str,
        detail: Mapping[str, Any],
        sub_status: str | None = None,
    ) -> None:
        """Give a job its final state and tell iDDS."""
        now = self._clock()
        fields = {**json.loads(job["detail"]), **detail}
        update = jobs.update().where(jobs.c.panda_id == job["panda_id"])
        connection.execute(
            update.values(
                status=status,
                sub_status=sub_status,
                changed=now,
                ended=now,
                session=None,
                kill_at=None,
                detail=json.dumps(fields),
            )
        )
        if sub_status != "fg_partial":
            # iDDS takes a message about a finished job for all its payloads,
            # also for those that failed; it learns of these by polling.
            self.tell(connection, {**job, "status": status})

    def note_events(self, connection: sa.Connection, job: Mapping[str, Any], outcome: Outcome) -> None:
        """Store how the payloads of an event service job ended."""
        for event in outcome.events:
            good = event.exit_code == 0
            connection.execute(
                events.insert().values(
                    panda_id=job["panda_id"],
                    number=event.number,
                    file_id=job["file_id"],
                    status="finished" if good else "fatal",
                    error=None if good else event.exit_code,
                    dialog=None if good else f"payload exit code {event.exit_code}",
                )
            )

    def settle_file(
        self, connection: sa.Connection, task: Mapping[str, Any], job: Mapping[str, Any], outcome: Outcome
    ) -> None:
        """Draw the consequence of a job's end for its input: finished, tried
        again, or failed.
        """
        query = sa.select(files).where(files.c.file_id == job["file_id"])
        file = dict(connection.execute(query).mappings().one())
        complete = outcome.status == "finished" and outcome.sub_status != "fg_partial"
        if complete:
            self._set_file(connection, file, "finished")
            return
        closing = task["status"] in ("aborting", "finishing")
        if closing:
            self._set_file(connection, file, "cancelled")
            return
        if file["attempt"] >= file["max_attempt"]:
            self._set_file(connection, file, "failed")
            return
        if outcome.pilot_error_code in MEMORY_CODES:
            file["ram"] = memory_of_retry(file["ram"], task["params"], task["cores"])
            update = files.update().where(files.c.file_id == file["file_id"])
            connection.execute(update.values(ram=file["ram"]))
        self.create(connection, task, file)

    def _set_file(self, connection: sa.Connection, file: Mapping[str, Any], status: str) -> None:
        update = files.update().where(files.c.file_id == file["file_id"])
        connection.execute(update.values(status=status, due=None))

    def cancel_queued(self, connection: sa.Connection, task_id: int, user: str) -> None:
        """Cancel the jobs of a task that do not run yet, and drop its inputs
        that have no job.
        """
        query = sa.select(jobs, files.c.lfn).join(files, files.c.file_id == jobs.c.file_id)
        queued = query.where(jobs.c.task_id == task_id, jobs.c.status == "activated")
        for job in map(dict, connection.execute(queued).mappings().all()):
            self.close(connection, job, status="cancelled", detail=cancelled_detail(user))
            self._set_file(connection, job, "cancelled")
        update = files.update().where(files.c.task_id == task_id)
        idle = update.where(files.c.status.in_(("staging", "ready", "waiting")))
        connection.execute(idle.values(status="cancelled", due=None))

    def order_kill(self, connection: sa.Connection, task_id: int, user: str, when: float) -> int:
        """Have the running jobs of a task killed when their pilots hear of it.

        Returns
        -------
        count : `int`
            Number of running jobs.
        """
        update = jobs.update().where(jobs.c.task_id == task_id, jobs.c.status == "running")
        result = connection.execute(update.values(kill_at=when, kill_by=user))
        return int(result.rowcount)

    def counts(self, connection: sa.Connection, task_id: int) -> dict[str, int]:
        """Count the inputs of a task by their state."""
        query = sa.select(files.c.status, sa.func.count()).where(files.c.task_id == task_id)
        return {row[0]: int(row[1]) for row in connection.execute(query.group_by(files.c.status))}

    def has_open(self, connection: sa.Connection, task_id: int) -> bool:
        """Tell whether the fate of some input of a task is open."""
        query = sa.select(files.c.file_id).where(files.c.task_id == task_id, files.c.status.in_(OPEN_FILES))
        return connection.execute(query.limit(1)).first() is not None
