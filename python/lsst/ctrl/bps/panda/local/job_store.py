"""The life of inputs and their PanDA jobs, attempt by attempt.  Works inside the
transactions of `~.jedi.Jedi`.
"""

from __future__ import annotations

__all__ = ["JobStore", "OPEN_FILES", "OPEN_JOBS", "memory_of_retry"]

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from .database import Database, MessageQueue, events, files, jobs
from .pilot import MEMORY_CODES, JobResult, cancelled_detail
from .task_parameters import TaskParameters


def memory_of_retry(current: int, params: TaskParameters, cores: int) -> int:
    """Compute the memory of the next attempt after one that ran out of memory, MB per core.

    The rule is that of panda-server's ``task_event_module``: the memory is
    multiplied by ``retryRamStep / ramCount``. Without a step the offset is a
    lower limit. ``retryRamMax``, which is for the whole job, caps the result,
    which is never less than the current memory.
    """
    raised = float(current)
    if params.retry_ram_step and params.ram:
        raised = current * params.retry_ram_step / params.ram
    elif params.retry_ram_offset and current < params.retry_ram_offset:
        raised = params.retry_ram_offset
    if params.retry_ram_max:
        raised = min(raised, params.retry_ram_max / max(cores, 1))
    return max(current, math.ceil(raised))


OPEN_FILES = ("staging", "ready", "waiting", "running")
"""States of an input that has not come to its end."""

OPEN_JOBS = ("activated", "running")

_FIRST_JOB = 1_000_000
"""iDDS 2.6.21 compares PanDA ids as texts to find the newest; they need to
have the same number of digits."""


_FILE_HAS_JOB = (
    files.update()
    .where(files.c.file_id == sa.bindparam("_file_id"))
    .values(status="running", attempt=sa.bindparam("_attempt"), panda_id=sa.bindparam("_job"), due=None)
)

_FILE_STATUS = (
    files.update()
    .where(files.c.file_id == sa.bindparam("_file_id"))
    .values(status=sa.bindparam("_status"), due=None)
)
_JOB_ENDS = (
    jobs.update()
    .where(jobs.c.panda_id == sa.bindparam("_job"))
    .values(
        status=sa.bindparam("_status"),
        sub_status=sa.bindparam("_sub"),
        changed=sa.bindparam("_now"),
        ended=sa.bindparam("_now"),
        session=None,
        kill_at=None,
        detail=sa.bindparam("_detail"),
    )
)
_OPEN_FILE = (
    sa.select(files.c.file_id)
    .where(files.c.task_id == sa.bindparam("_task_id"), files.c.status.in_(OPEN_FILES))
    .limit(1)
)
_OF_INPUT = {
    "attempt": "file_attempt",
    "max_attempt": "max_attempt",
    "ram": "file_ram",
    "panda_id": "current",
}
"""Columns of an input, and their labels where its job is read, too."""

_JOBS_WITH_INPUTS = sa.select(
    jobs, files.c.lfn, files.c.events, *(files.c[name].label(label) for name, label in _OF_INPUT.items())
).join(files, files.c.file_id == jobs.c.file_id)
_JOB_WITH_INPUT = _JOBS_WITH_INPUTS.where(jobs.c.panda_id == sa.bindparam("_job"))


def _input_of(job: Mapping[str, Any]) -> dict[str, Any]:
    """Extract the input from a job that was read with it."""
    file = {name: job[label] for name, label in _OF_INPUT.items()}
    return {**file, "file_id": job["file_id"], "lfn": job["lfn"]}


class JobStore:
    """The tables of inputs and jobs."""

    def __init__(
        self,
        database: Database,
        message_queue: MessageQueue,
        *,
        clock: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        self._database = database
        self._message_queue = message_queue
        self._clock = clock
        self._wake = wake
        self._job_ids = itertools.count(max(database.highest(jobs.c.panda_id), _FIRST_JOB) + 1)
        self._file_ids = itertools.count(database.highest(files.c.file_id) + 1)

    def add_files(self, connection: sa.Connection, task_id: int, params: TaskParameters) -> None:
        """Add the inputs of a new task.

        As JEDI's ContentsFeeder does, the name of an input is made of a
        running number, a colon, and its name.
        """
        rows = [
            {
                "file_id": next(self._file_ids),
                "task_id": task_id,
                "lfn": f"{number:06d}:{item.name}",
                "events": item.events,
                "status": "ready" if params.staged else "staging",
                "attempt": 0,
                "max_attempt": params.max_attempt,
                "ram": int(params.ram),
                "due": None,
                "panda_id": None,
            }
            for number, item in enumerate(params.inputs)
        ]
        connection.execute(files.insert(), rows)

    def activate_ready(self, connection: sa.Connection, task: Mapping[str, Any], delay: float) -> int:
        """Make jobs of the inputs of a task that are ready, now or after a delay, and return their number."""
        query = sa.select(files).where(files.c.task_id == task["task_id"], files.c.status == "ready")
        rows = connection.execute(query.order_by(files.c.file_id)).mappings().all()
        if delay > 0:
            update = files.update().where(files.c.task_id == task["task_id"], files.c.status == "ready")
            connection.execute(update.values(status="waiting", due=self._clock() + delay))
            return len(rows)
        self.create(connection, task, [dict(row) for row in rows])
        return len(rows)

    def create(
        self, connection: sa.Connection, task: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Make the next job of each of some inputs of a task."""
        if not inputs:
            return
        names = self._first_names(connection, inputs)
        made = []
        for file in inputs:
            panda_id = next(self._job_ids)
            name = names.get(file["panda_id"] or 0, f"{task['name']}.{panda_id}")
            made.append(self._new_job(task, file, panda_id, name))
        connection.execute(jobs.insert(), made)
        changes = [
            {"_file_id": job["file_id"], "_attempt": job["attempt"], "_job": job["panda_id"]} for job in made
        ]
        connection.execute(_FILE_HAS_JOB, changes)
        lfns = {file["file_id"]: file["lfn"] for file in inputs}
        self._send_states(connection, *({**job, "lfn": lfns[job["file_id"]]} for job in made))
        self._database.after_commit(self._wake)

    def _first_names(self, connection: sa.Connection, inputs: Sequence[Mapping[str, Any]]) -> dict[int, str]:
        """Find the names of earlier jobs of some inputs: a job keeps the name of its first attempt."""
        earlier = [file["panda_id"] for file in inputs if file["panda_id"]]
        found: dict[int, str] = {}
        for start in range(0, len(earlier), 500):
            chosen = jobs.c.panda_id.in_(earlier[start : start + 500])
            rows = connection.execute(sa.select(jobs.c.panda_id, jobs.c.name).where(chosen))
            found.update({row.panda_id: row.name for row in rows})
        return found

    def _new_job(
        self, task: Mapping[str, Any], file: Mapping[str, Any], panda_id: int, name: str
    ) -> dict[str, Any]:
        now = self._clock()
        return {
            "panda_id": panda_id,
            "task_id": task["task_id"],
            "file_id": file["file_id"],
            "name": name,
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

    def _send_states(self, connection: sa.Connection, *sent: Mapping[str, Any]) -> None:
        """Send the states of jobs to iDDS."""
        self._message_queue.put(
            connection,
            *(
                {
                    "msg_type": "job_status",
                    "jobid": job["panda_id"],
                    "taskid": job["task_id"],
                    "status": job["status"],
                    "inputs": [job["lfn"]],
                    "computingsite": job["queue"],
                }
                for job in sent
            ),
        )

    def get(self, connection: sa.Connection, panda_id: int) -> dict[str, Any] | None:
        """Read a job together with its input."""
        row = connection.execute(_JOB_WITH_INPUT, {"_job": panda_id}).mappings().first()
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
        """Give a job its final state and send it to iDDS."""
        now = self._clock()
        fields = {**json.loads(job["detail"]), **detail}
        values = {"_job": job["panda_id"], "_status": status, "_sub": sub_status, "_now": now}
        connection.execute(_JOB_ENDS, {**values, "_detail": json.dumps(fields)})
        if sub_status != "fg_partial":
            # iDDS applies a message about a finished job to all its payloads,
            # also to those that failed; it learns of these by polling.
            self._send_states(connection, {**job, "status": status})

    def note_events(self, connection: sa.Connection, job: Mapping[str, Any], result: JobResult) -> None:
        """Store the results of the payloads of an event service job."""
        for event in result.events:
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
        self,
        connection: sa.Connection,
        task: Mapping[str, Any],
        job: Mapping[str, Any],
        result: JobResult,
        params: Callable[[], TaskParameters],
        *,
        refused_too: bool,
    ) -> None:
        """Update the input of a job that has ended: finished, tried again, cancelled or failed.

        With ``refused_too`` it is tried again even if the runner will refuse that.
        """
        file = _input_of(job)
        complete = result.status == "finished" and result.sub_status != "fg_partial"
        if complete:
            self._set_file(connection, file, "finished")
            return
        closing = task["status"] in ("aborting", "finishing")
        if closing:
            self._set_file(connection, file, "cancelled")
            return
        codes = result.exit_codes
        refused = not refused_too and codes and codes <= params().final_codes
        if refused or file["attempt"] >= file["max_attempt"]:
            self._set_file(connection, file, "failed")
            return
        if result.pilot_error_code in MEMORY_CODES:
            file["ram"] = memory_of_retry(file["ram"], params(), task["cores"])
            update = files.update().where(files.c.file_id == file["file_id"])
            connection.execute(update.values(ram=file["ram"]))
        self.create(connection, task, [file])

    def break_job(
        self, connection: sa.Connection, panda_id: int, detail: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """Fail a job and its input for ever, whatever their rows hold; returns the job's ids, if there is
        such a job.
        """
        query = sa.select(jobs.c.panda_id, jobs.c.task_id, jobs.c.file_id)
        job = connection.execute(query.where(jobs.c.panda_id == panda_id)).mappings().first()
        if job is None:
            return None
        values = {"_job": panda_id, "_status": "failed", "_sub": None, "_now": self._clock()}
        connection.execute(_JOB_ENDS, {**values, "_detail": json.dumps(detail)})
        self._set_file(connection, dict(job), "failed")
        query = sa.select(files.c.lfn).where(files.c.file_id == job["file_id"])
        lfn = connection.execute(query).scalar()
        self._send_states(connection, {**job, "status": "failed", "queue": None, "lfn": str(lfn or "")})
        return dict(job)

    def break_inputs(self, connection: sa.Connection, task_id: int, detail: Mapping[str, Any]) -> None:
        """Fail all open inputs of a task that cannot go on, and its jobs that do not run yet."""
        now = self._clock()
        update = jobs.update().where(jobs.c.task_id == task_id, jobs.c.status == "activated")
        connection.execute(update.values(status="failed", changed=now, ended=now, detail=json.dumps(detail)))
        opened = files.update().where(files.c.task_id == task_id, files.c.status.in_(OPEN_FILES))
        connection.execute(opened.values(status="failed", due=None))
        self.order_kill(connection, task_id, "the embedded PanDA", now)

    def _set_file(self, connection: sa.Connection, file: Mapping[str, Any], status: str) -> None:
        connection.execute(_FILE_STATUS, {"_file_id": file["file_id"], "_status": status})

    def queued(self, connection: sa.Connection, task_id: int) -> list[dict[str, Any]]:
        """Read the jobs of a task that are not running yet, each with its input."""
        queued = _JOBS_WITH_INPUTS.where(jobs.c.task_id == task_id, jobs.c.status == "activated")
        return [dict(job) for job in connection.execute(queued).mappings().all()]

    def raise_memory(self, connection: sa.Connection, task_id: int, old: int, new: int) -> None:
        """Have the jobs of a task that are made from now on ask for other memory, MB per core; inputs that
        have run out of memory keep what they got then if it is more.
        """
        update = files.update().where(files.c.task_id == task_id, files.c.status.in_(OPEN_FILES))
        connection.execute(update.where((files.c.ram == old) | (files.c.ram < new)).values(ram=new))

    def cancel_queued(self, connection: sa.Connection, task_id: int, user: str) -> None:
        """Cancel the jobs of a task that are not running yet, and its inputs without a job."""
        for job in self.queued(connection, task_id):
            self.close(connection, job, status="cancelled", detail=cancelled_detail(user))
            self._set_file(connection, job, "cancelled")
        update = files.update().where(files.c.task_id == task_id)
        idle = update.where(files.c.status.in_(("staging", "ready", "waiting")))
        connection.execute(idle.values(status="cancelled", due=None))

    def order_kill(self, connection: sa.Connection, task_id: int, user: str, when: float) -> int:
        """Schedule the kill of a task's running jobs for when their pilots hear of it; returns their
        number.
        """
        update = jobs.update().where(jobs.c.task_id == task_id, jobs.c.status == "running")
        result = connection.execute(update.values(kill_at=when, kill_by=user))
        return int(result.rowcount)

    def counts(self, connection: sa.Connection, task_id: int) -> dict[str, int]:
        """Count the inputs of a task by their state."""
        query = sa.select(files.c.status, sa.func.count()).where(files.c.task_id == task_id)
        return {row[0]: int(row[1]) for row in connection.execute(query.group_by(files.c.status))}

    def has_open(self, connection: sa.Connection, task_id: int) -> bool:
        """Whether some input of a task has not come to its end."""
        return connection.execute(_OPEN_FILE, {"_task_id": task_id}).first() is not None
