"""The counter at which the executor takes jobs and reports them: PanDA's job
dispatcher.
"""

from __future__ import annotations

__all__ = ["JobDesk"]

import json
from collections.abc import Callable, Collection
from typing import Any

import sqlalchemy as sa

from .database import Database, events, files, jobs, tasks
from .jedi import Jedi
from .pilot import JobOrder, Outcome, lost_detail
from .settings import Queues

_NEXT = (
    sa.select(
        *(jobs.c[name] for name in ("panda_id", "task_id", "file_id", "attempt", "queue", "cores", "ram")),
        files.c.lfn,
        files.c.events,
    )
    .join(files, files.c.file_id == jobs.c.file_id)
    .where(jobs.c.status == "activated")
    .order_by(jobs.c.priority.desc(), jobs.c.panda_id)
    .limit(sa.bindparam("_most"))
)
_CORES = (
    sa.select(jobs.c.queue, sa.func.sum(jobs.c.cores))
    .where(jobs.c.status == "running")
    .group_by(jobs.c.queue)
)
_STARTS = (
    jobs.update()
    .where(jobs.c.panda_id == sa.bindparam("_job"))
    .values(status="running", started=sa.bindparam("_now"), changed=sa.bindparam("_now"))
)


class JobDesk:
    """Jobs that are ready, taken and reported.

    Parameters
    ----------
    database : `Database`
        Where they are kept.
    jedi : `Jedi`
        Who draws the consequences.
    queues : `Queues`
        Limits of the queues.
    clock : callable
        Time, seconds since the epoch.
    """

    def __init__(self, database: Database, jedi: Jedi, *, queues: Queues, clock: Callable[[], float]) -> None:
        self._database = database
        self._jedi = jedi
        self._queues = queues
        self._clock = clock

    def take(self, free: int, slots: int) -> list[JobOrder]:
        """Take the jobs that may run now, in order of priority and age.

        Parameters
        ----------
        free : `int`
            Cores that are free.
        slots : `int`
            All cores; a job that wants more runs alone.

        Notes
        -----
        A job that does not fit stops those behind it in its queue, so that
        jobs with many cores are not overtaken for ever.
        """
        orders: list[JobOrder] = []
        if free <= 0:
            return orders
        with self._database.change() as connection:
            busy = self._cores_by_queue(connection)
            blocked: set[str] = set()
            for job in connection.execute(_NEXT, {"_most": max(free * 4, 32)}).mappings().all():
                queue = self._queues.get(job["queue"])
                cores = min(job["cores"], slots, queue.cores or slots)
                room = (queue.cores or slots) - busy.get(job["queue"], 0)
                if job["queue"] in blocked:
                    continue
                if cores > min(free, room):
                    blocked.add(job["queue"])
                    if cores > free:
                        break
                    continue
                orders.append(self._start(connection, job, cores))
                busy[job["queue"]] = busy.get(job["queue"], 0) + cores
                free -= cores
                if free <= 0:
                    break
        return orders

    def _cores_by_queue(self, connection: sa.Connection) -> dict[str, int]:
        return {queue: int(cores) for queue, cores in connection.execute(_CORES).all()}

    def _start(self, connection: sa.Connection, job: Any, cores: int) -> JobOrder:
        now = self._clock()
        connection.execute(_STARTS, {"_job": job["panda_id"], "_now": now})
        task = self._jedi.task(connection, job["task_id"])
        assert task is not None
        params = task["params"]
        done = sa.select(events.c.number).where(
            events.c.file_id == job["file_id"], events.c.status == "finished"
        )
        queue = self._queues.get(job["queue"])
        return JobOrder(
            panda_id=job["panda_id"],
            task_id=job["task_id"],
            task_name=task["name"],
            request_id=task["req_id"],
            attempt=job["attempt"],
            template="".join(str(part.get("value", "")) for part in params.get("jobParameters") or []),
            pseudo_input=job["lfn"].partition(":")[2],
            event_count=job["events"],
            done_events=frozenset(connection.execute(done).scalars()) if job["events"] else frozenset(),
            queue=job["queue"],
            cores=cores,
            # The unit of the task is MBPerCoreFixed.
            memory=_lower(job["ram"] * task["cores"], queue.memory),
            walltime=_lower(int(params.get("maxWalltime") or 0), queue.walltime),
        )

    def report(self, panda_id: int, outcome: Outcome) -> bool:
        """Report the end of a job; see `Jedi.job_ended`."""
        return self._jedi.job_ended(panda_id, outcome)

    def report_lost(self, panda_id: int, last_seen: str) -> bool:
        """Report a job whose worker is not heard of any more."""
        return self._jedi.job_ended(panda_id, Outcome("failed", detail=lost_detail(last_seen)))

    def due_kills(self, panda_ids: Collection[int]) -> list[int]:
        """Tell which of the running jobs hear now that they are killed."""
        query = sa.select(jobs.c.panda_id).where(jobs.c.status == "running", jobs.c.kill_at <= self._clock())
        with self._database.look() as connection:
            return [panda_id for panda_id in connection.execute(query).scalars() if panda_id in panda_ids]

    def killer(self, panda_id: int) -> str:
        """Tell who asked for a job to be killed."""
        query = sa.select(jobs.c.kill_by).where(jobs.c.panda_id == panda_id)
        with self._database.look() as connection:
            return str(connection.execute(query).scalar() or "")

    def counts(self) -> dict[str, int]:
        """Count all jobs by status."""
        query = sa.select(jobs.c.status, sa.func.count()).group_by(jobs.c.status)
        with self._database.look() as connection:
            return {row[0]: int(row[1]) for row in connection.execute(query)}

    def detail(self, panda_id: int) -> dict[str, Any]:
        """Read the further fields of a job."""
        query = sa.select(jobs.c.detail).where(jobs.c.panda_id == panda_id)
        with self._database.look() as connection:
            return dict(json.loads(connection.execute(query).scalar() or "{}"))

    def open_tasks(self) -> int:
        """Count the tasks that have not ended."""
        query = sa.select(sa.func.count()).where(tasks.c.ended.is_(None))
        with self._database.look() as connection:
            return int(connection.execute(query).scalar() or 0)


def _lower(first: int, second: int) -> int:
    """Take the lower of two limits, of which 0 means none."""
    return min(first, second) if first and second else first or second
