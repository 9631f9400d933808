"""PanDA's tasks (JEDI): from submission through the release of inputs to a final status, and the commands
kill, finish, retry, reassign, pause and resume.
"""

from __future__ import annotations

__all__ = ["CommandReply", "FINAL_STATES", "Jedi", "TaskStore"]

import itertools
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from .database import Database, MessageQueue, files, jobs, tasks
from .job_store import OPEN_JOBS, JobStore
from .pilot import JobResult, broken_detail, broken_text, cancelled_detail, lost_detail
from .settings import Timing
from .storage import is_storage_error
from .task_parameters import TaskParameters, parse_task

_LOG = logging.getLogger(__name__)

FINAL_STATES = ("done", "finished", "failed", "aborted", "broken", "exhausted")
"""States that a task leaves only by a command."""

_CACHED_TASKS = 200
_NO_QUEUE = "no candidates. brokerage failed for 1 input datasets when trying 1 datasets."
_TOUCH = (
    tasks.update().where(tasks.c.task_id == sa.bindparam("_task_id")).values(modified=sa.bindparam("_now"))
)


class TaskStore:
    """The table of tasks."""

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
        self._params: dict[int, TaskParameters] = {}
        columns = (column for column in tasks.c if column.name != "params")
        self._query = sa.select(*columns).where(tasks.c.task_id == sa.bindparam("_task_id"))
        self._ids = itertools.count(database.highest(tasks.c.task_id) + 1)

    def get(self, connection: sa.Connection, task_id: int) -> dict[str, Any] | None:
        """Read a task; for its parameters see `parameters`."""
        row = connection.execute(self._query, {"_task_id": task_id}).mappings().first()
        return None if row is None else dict(row)

    def parameters(self, connection: sa.Connection, task_id: int) -> TaskParameters:
        """Read a task's parameters, which may be large; `ValueError` if they are damaged."""
        found = self._params.get(task_id)
        if found is None:
            query = sa.select(tasks.c.params).where(tasks.c.task_id == task_id)
            found = parse_task(json.loads(connection.execute(query).scalar_one()))
            if len(self._params) >= _CACHED_TASKS:
                self._params.pop(next(iter(self._params)))
            self._params[task_id] = found
        return found

    def add(
        self, connection: sa.Connection, params: TaskParameters, raw: Mapping[str, Any], user: str
    ) -> dict[str, Any]:
        """Add a new task; ``user`` owns it if the parameters name nobody."""
        now = self._clock()
        task_id = next(self._ids)
        task: dict[str, Any] = {
            "task_id": task_id,
            "name": params.name,
            "user_name": params.user or user,
            "req_id": params.request_id,
            "status": "registered",
            "dataset_id": task_id * 2 + 1,
            "event_service": params.event_service,
            "cores": params.cores,
            "priority": params.priority,
            "queue": params.queue,
            "max_attempt": params.max_attempt,
            "created": now,
            "modified": now,
            "started": now,
        }
        connection.execute(tasks.insert().values(**task, params=json.dumps(raw)))
        return {**task, "command": None, "command_by": None}

    def submitted(self, req_id: int, name: str) -> int | None:
        """Find a task of an iDDS request by its name, unless it has failed or was aborted."""
        query = sa.select(tasks.c.task_id).where(tasks.c.name == name, tasks.c.req_id == req_id)
        useless = ("aborted", "failed", "broken")
        with self._database.change() as connection:
            found = connection.execute(query.where(tasks.c.status.not_in(useless))).scalars().first()
        return None if found is None else int(found)

    def touch(self, connection: sa.Connection, task: Mapping[str, Any]) -> None:
        """Record that something of a task has changed."""
        connection.execute(_TOUCH, {"_task_id": task["task_id"], "_now": self._clock()})

    def set(self, connection: sa.Connection, task: dict[str, Any], status: str, **values: Any) -> None:
        """Change a task's status and further values, and send the status to iDDS."""
        if status not in ("pending", *FINAL_STATES) and "error_dialog" not in values:
            values["error_dialog"] = None
        task.update(values, status=status)
        update = tasks.update().where(tasks.c.task_id == task["task_id"])
        connection.execute(update.values(status=status, modified=self._clock(), **values))
        self._message_queue.put(
            connection, {"msg_type": "task_status", "taskid": task["task_id"], "status": status}
        )

    def plan(
        self,
        connection: sa.Connection,
        task: dict[str, Any],
        status: str,
        *,
        command: str,
        delay: float,
        by: str = "",
    ) -> None:
        """Change a task's status and have a command executed after a delay."""
        self.set(connection, task, status)
        update = tasks.update().where(tasks.c.task_id == task["task_id"])
        connection.execute(update.values(command=command, command_by=by, due=self._clock() + delay))
        self._database.after_commit(self._wake)

    def change(self, connection: sa.Connection, task: Mapping[str, Any], **values: Any) -> None:
        """Change parameters of a task."""
        task_id = task["task_id"]
        query = sa.select(tasks.c.params).where(tasks.c.task_id == task_id)
        changed = {**json.loads(connection.execute(query).scalar_one()), **values}
        update = tasks.update().where(tasks.c.task_id == task_id)
        connection.execute(update.values(params=json.dumps(changed), modified=self._clock()))
        self._params.pop(task_id, None)

    def unplan(self, connection: sa.Connection, task: Mapping[str, Any]) -> None:
        """Clear the command of a task, which is executed now."""
        update = tasks.update().where(tasks.c.task_id == task["task_id"])
        connection.execute(update.values(command=None, command_by=None, due=None))


_REGISTERED = "command is registered. will be executed in a few minutes"
_ACTIVE_COMMANDS = {"kill": "toabort", "finish": "finishing", "retry": "toretry", "incexec": "toincexec"}
# The final states in which JEDI accepts a command; it accepts or refuses at
# registration.
_ACCEPTED_WHEN_FINAL = {
    "kill": (),
    "finish": (),
    "retry": ("finished", "failed", "exhausted"),
    "incexec": ("done", "finished", "failed", "exhausted"),
}


@dataclass(frozen=True, slots=True)
class CommandReply:
    """PanDA's reply to a command: code and text."""

    code: int
    """0 registered, 2 no such task, 3 not allowed, 4 wrong task status."""

    message: str


class Jedi:
    """Tasks, from submission to a final status, with the consequences for their inputs and jobs."""

    def __init__(
        self,
        database: Database,
        message_queue: MessageQueue,
        store: JobStore,
        *,
        timing: Timing,
        clock: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        self._database = database
        self._store = store
        self._timing = timing
        self._clock = clock
        self._wake = wake
        self._tasks = TaskStore(database, message_queue, clock=clock, wake=wake)

    def task(self, connection: sa.Connection, task_id: int) -> dict[str, Any] | None:
        """Read a task."""
        return self._tasks.get(connection, task_id)

    def parameters(self, connection: sa.Connection, task_id: int) -> TaskParameters:
        """Read a task's parameters; see `TaskStore.parameters`."""
        return self._tasks.parameters(connection, task_id)

    def submitted(self, req_id: int, name: str) -> int | None:
        """Find a task by its name; see `TaskStore.submitted`."""
        return self._tasks.submitted(req_id, name)

    # -- Submission and release ---------------------------------------------

    def submit(
        self, params: Mapping[str, Any], user: str, *, again: bool = False, unbrokered: bool = False
    ) -> int:
        """Take a new task of a user, unless its parameters name another, and return its id.

        A task that was submitted before (same name, same iDDS request) is not
        made a second time: iDDS submits again when it was killed between the
        submission and storing the id.  `ValueError` names a parameter that
        cannot be used, `StorageError` says why nothing can be stored now.
        With ``again`` it is made a second time all the same, and an ``unbrokered`` one waits for a queue for
        ever.
        """
        parsed = parse_task(params)
        self._database.require_room()
        with self._database.change() as connection:
            request = parsed.request_id
            if request is not None and not again and (known := self.submitted(request, parsed.name)):
                return known
            task = self._tasks.add(connection, parsed, params, user)
            self._store.add_files(connection, task["task_id"], parsed)
            if unbrokered:
                self._tasks.set(connection, task, "pending", error_dialog=_NO_QUEUE)
            self._activate(connection, task)
            return int(task["task_id"])

    def _activate(self, connection: sa.Connection, task: dict[str, Any]) -> None:
        """Make jobs of inputs that are ready, and update the task's status."""
        if task.get("error_dialog") == _NO_QUEUE:
            return
        count = self._store.activate_ready(connection, task, self._timing.activation)
        if count and self._timing.activation > 0:
            self._database.after_commit(self._wake)
        if count and task["status"] in ("registered", "pending", "ready"):
            self._tasks.set(connection, task, "running" if self._timing.activation <= 0 else "ready")
        elif task["status"] == "registered":
            self._tasks.set(
                connection,
                task,
                "pending",
                error_dialog="insufficient inputs are ready. inputs are staging from a tape.",
            )

    def release(self, task_id: int, inputs: Iterable[Mapping[str, Any]]) -> int:
        """Release inputs or give them up, as iDDS says, and return how many changed.

        Each has ``name``, ``status`` (``Available`` or ``Missing``) and, if
        iDDS knows it, ``external_content_id``, the id of the input.
        """
        wanted = {"Available": "ready", "Missing": "missing"}
        with self._database.change() as connection:
            task = self.task(connection, task_id)
            if task is None or task["status"] in FINAL_STATES:
                return 0
            query = sa.select(files.c.file_id, files.c.lfn).where(
                files.c.task_id == task_id, files.c.status == "staging"
            )
            waiting = {row.file_id: row.lfn.partition(":")[2] for row in connection.execute(query).all()}
            by_name = {name: file_id for file_id, name in waiting.items()}
            changes: dict[str, list[int]] = {"ready": [], "missing": []}
            for item in inputs:
                given = item.get("external_content_id")
                # Right after the submission iDDS does not know the ids yet;
                # JEDI then looks for the name.
                name = str(item.get("name", "")).split("/")[-1].partition("^")[0]
                file_id = given if given in waiting else by_name.get(name)
                status = wanted.get(str(item.get("status")))
                if file_id is not None and status:
                    changes[status].append(int(file_id))
            for status, ids in changes.items():
                if ids:
                    connection.execute(files.update().where(files.c.file_id.in_(ids)).values(status=status))
            if changes["ready"]:
                self._activate(connection, task)
            if changes["missing"]:
                self._check_end(connection, task)
            return sum(len(ids) for ids in changes.values())

    # -- Ends ---------------------------------------------------------------

    def job_ended(self, panda_id: int, result: JobResult) -> bool:
        """Process the report of a job's end; false, and nothing is changed, if the job had ended before."""
        with self._database.change() as connection:
            job = self._store.get(connection, panda_id)
            if job is None or job["status"] != "running":
                return False
            self._end_job(connection, job, result)
            return True

    def _end_job(self, connection: sa.Connection, job: Mapping[str, Any], result: JobResult) -> None:
        task = self.task(connection, job["task_id"])
        assert task is not None
        self._store.note_events(connection, job, result)
        self._store.close(
            connection, job, status=result.status, detail=result.detail, sub_status=result.sub_status
        )
        self._store.settle_file(
            connection,
            task,
            job,
            result,
            lambda: self._tasks.parameters(connection, task["task_id"]),
            refused_too=self._timing.refused_attempts,
        )
        self._tasks.touch(connection, task)
        self._check_end(connection, task)

    def _check_end(self, connection: sa.Connection, task: dict[str, Any]) -> None:
        if task["status"] in FINAL_STATES or self._store.has_open(connection, task["task_id"]):
            return
        if task["status"] == "toabort":
            # The registered command will end the task.
            return
        if task["status"] == "aborting":
            self._tasks.set(connection, task, "aborted", ended=self._clock())
        elif self._timing.finalise > 0:
            self._tasks.plan(connection, task, "prepared", command="finalise", delay=self._timing.finalise)
        else:
            self._finalise(connection, task)

    def _finalise(self, connection: sa.Connection, task: dict[str, Any]) -> None:
        """Give a task its final status; pruned inputs do not count."""
        counts = self._store.counts(connection, task["task_id"])
        good = counts.get("finished", 0)
        bad = counts.get("failed", 0) + counts.get("cancelled", 0)
        dialog = None
        if good and not bad:
            status = "done"
        elif good:
            status = "finished"
        else:
            status = "failed"
            dialog = None if bad else "failed due to no input"
        self._tasks.set(connection, task, status, ended=self._clock(), error_dialog=dialog)

    # -- Commands -----------------------------------------------------------

    def command(self, task_id: int, command: str, user: str) -> CommandReply:
        """Register a command: ``kill``, ``finish``, ``retry`` or ``incexec`` (reload of the input)."""
        with self._database.change() as connection:
            task = self.task(connection, task_id)
            if task is None:
                return CommandReply(2, f"jediTaskID={task_id} not found")
            status = task["status"]
            allowed = _ACCEPTED_WHEN_FINAL[command]
            refusal = f"the {command} command is not accepted if the task is in {status} status"
            if status in FINAL_STATES and status not in allowed:
                return CommandReply(4, refusal)
            if status not in FINAL_STATES and command in ("retry", "incexec"):
                same = task["command"] == command
                return CommandReply(0, _REGISTERED) if same else CommandReply(4, refusal)
            if task["command"] in ("kill", "finish") or status in ("aborting", "finishing"):
                return CommandReply(0, _REGISTERED)
            self._tasks.plan(
                connection,
                task,
                _ACTIVE_COMMANDS[command],
                command=command,
                delay=self._timing.command,
                by=user,
            )
        return CommandReply(0, _REGISTERED)

    def reassign(self, task_id: int, queue: str, mode: str) -> CommandReply:
        """Register that a task goes on at another queue.

        By ``mode``, jobs that wait are made anew there (``soft``), those that run are killed as well (empty),
        or only jobs that are made from now on go there (``nokill``).
        """
        with self._database.change() as connection:
            task = self.task(connection, task_id)
            if task is None:
                return CommandReply(2, f"jediTaskID={task_id} not found")
            if task["status"] in (*FINAL_STATES, "toabort", "aborting", "finishing", "paused"):
                return CommandReply(
                    4, f"the reassign command is not accepted if the task is in {task['status']} status"
                )
            # panda-server's own comment of the command.
            comment = f"site:{queue}:y:{mode and f'{mode} reassign'}"
            delay = self._timing.command
            self._tasks.plan(connection, task, "toreassign", command="reassign", delay=delay, by=comment)
        return CommandReply(0, _REGISTERED)

    def _reassign(self, connection: sa.Connection, task: dict[str, Any], comment: str) -> None:
        _, queue, _, mode = comment.split(":")
        update = tasks.update().where(tasks.c.task_id == task["task_id"])
        connection.execute(update.values(queue=queue))
        task["queue"] = queue
        moved = {**cancelled_detail("reassigned by JEDI")}
        for job in self._store.queued(connection, task["task_id"]) if "nokill" not in mode else ():
            self._end_job(connection, job, JobResult("closed", sub_status="toreassign", detail=moved))
        if not mode:
            when = self._clock() + self._timing.heartbeat
            self._store.order_kill(connection, task["task_id"], "reassigned by JEDI", when)
        ended = self.task(connection, task["task_id"])
        if ended is not None and ended["status"] == "toreassign":
            self._resume(connection, task)

    def _resume(self, connection: sa.Connection, task: dict[str, Any]) -> None:
        """Let a task go on."""
        busy = self._store.counts(connection, task["task_id"]).get("running")
        self._tasks.set(connection, task, "running" if busy else "pending", error_dialog=None)
        self._activate(connection, task)

    def pause(self, task_id: int, *, resume: bool) -> CommandReply:
        """Have none of a task's waiting jobs start, or let it go on."""
        with self._database.change() as connection:
            task = self.task(connection, task_id)
            if task is None:
                return CommandReply(2, f"jediTaskID={task_id} not found")
            status, command = task["status"], "resume" if resume else "pause"
            if (status != "paused") if resume else status in (*FINAL_STATES, "paused", "toabort", "aborting"):
                return CommandReply(
                    4, f"the {command} command is not accepted if the task is in {status} status"
                )
            if resume:
                self._resume(connection, task)
            else:
                self._tasks.set(connection, task, "paused")
            self._database.after_commit(self._wake)
        return CommandReply(0, _REGISTERED)

    def change_attribute(self, task_id: int, name: str, value: int) -> bool:
        """Change the memory or the run time that a task asks for; false if there is no such task.  Jobs that
        there are keep what they have.
        """
        with self._database.change() as connection:
            task = self.task(connection, task_id)
            if task is None:
                return False
            if name == "ramCount":
                old = int(self.parameters(connection, task_id).ram)
                self._store.raise_memory(connection, task_id, old, value)
            self._tasks.change(connection, task, **{name: value})
        return True

    def kill_jobs(self, panda_ids: Iterable[int], user: str, *, now: bool = False) -> list[bool]:
        """Kill single jobs, while their tasks go on; returns which of them had not ended.  ``now`` does not
        wait for the next heartbeat of one that runs.
        """
        results = []
        words = f"killed by {user}"
        with self._database.change() as connection:
            for panda_id in panda_ids:
                job = self._store.get(connection, panda_id)
                results.append(job is not None and job["status"] in OPEN_JOBS)
                if job is None or job["status"] not in OPEN_JOBS:
                    continue
                update = jobs.update().where(jobs.c.panda_id == panda_id)
                when = self._clock() + (0 if now else self._timing.heartbeat)
                connection.execute(update.values(kill_at=when, kill_by=words[:128]))
                if job["status"] == "activated":
                    self._end_job(connection, job, JobResult("cancelled", detail=cancelled_detail(words)))
            self._database.after_commit(self._wake)
        return results

    def _execute(self, connection: sa.Connection, task: dict[str, Any]) -> None:
        command, user = task["command"], task["command_by"] or ""
        self._tasks.unplan(connection, task)
        if command == "finalise":
            self._finalise(connection, task)
        elif command == "reassign":
            self._reassign(connection, task, user)
        elif command in ("kill", "finish"):
            words = f"{command} by {user}"
            status = "aborting" if command == "kill" else "finishing"
            self._tasks.set(connection, task, status, error_dialog=words)
            self._store.cancel_queued(connection, task["task_id"], words)
            self._store.order_kill(connection, task["task_id"], words, self._clock() + self._timing.heartbeat)
            self._database.after_commit(self._wake)
            self._check_end(connection, task)
        else:
            self._retry(connection, task, with_missing=command == "incexec")

    def _retry(self, connection: sa.Connection, task: dict[str, Any], *, with_missing: bool) -> None:
        """Try failed inputs again; their numbers of attempts go on."""
        states = ("failed", "missing", "cancelled") if with_missing else ("failed", "cancelled")
        update = files.update().where(files.c.task_id == task["task_id"], files.c.status.in_(states))
        more = files.c.attempt + task["max_attempt"]
        connection.execute(update.values(status="ready", max_attempt=more))
        if not with_missing and not self._tasks.parameters(connection, task["task_id"]).staged:
            # Inputs that were never released wait for their release again.
            fresh = files.update().where(files.c.task_id == task["task_id"], files.c.status == "ready")
            connection.execute(fresh.where(files.c.attempt == 0).values(status="staging"))
        self._tasks.set(connection, task, "ready", ended=None, error_dialog=None)
        if not self._store.has_open(connection, task["task_id"]):
            counts = self._store.counts(connection, task["task_id"])
            if counts.get("finished"):
                self._finalise(connection, task)
                return
            dialog = "no retry since no new/unprocessed files available"
            self._tasks.set(connection, task, "failed", ended=self._clock(), error_dialog=dialog)
            return
        self._activate(connection, task)

    # -- Time ---------------------------------------------------------------

    def tick(self) -> float | None:
        """Do what is due; returns when something is due next, seconds since the epoch."""
        now = self._clock()
        with self._database.reading() as connection:
            due = connection.execute(sa.select(tasks.c.task_id).where(tasks.c.due <= now)).scalars().all()
        for task_id in due:
            self._alone(self._execute_due, task_id, broken=self.break_task)
        query = sa.select(files.c.file_id, files.c.task_id)
        with self._database.reading() as connection:
            inputs = connection.execute(query.where(files.c.status == "waiting", files.c.due <= now)).all()
        for task_id, ids in _by_task(inputs).items():
            self._alone(lambda number: self._create_due(number, ids), task_id, broken=self.break_task)  # noqa: B023
        with self._database.reading() as connection:
            dues = [
                connection.execute(sa.select(sa.func.min(column))).scalar()
                for column in (tasks.c.due, files.c.due)
            ]
        return min((due for due in dues if due is not None), default=None)

    def _execute_due(self, task_id: int) -> None:
        with self._database.change() as connection:
            task = self.task(connection, task_id)
            if task is not None:
                self._execute(connection, task)

    def _create_due(self, task_id: int, file_ids: Sequence[int]) -> None:
        with self._database.change() as connection:
            task = self.task(connection, task_id)
            if task is None:
                raise ValueError(f"there is no task {task_id}")
            for start in range(0, len(file_ids), 500):
                chosen = files.c.file_id.in_(file_ids[start : start + 500])
                # Still waiting: a command may have come between.
                query = sa.select(files).where(chosen, files.c.status == "waiting").order_by(files.c.file_id)
                rows = connection.execute(query).mappings().all()
                self._store.create(connection, task, [dict(row) for row in rows])
            if task["status"] == "ready":
                self._tasks.set(connection, task, "running")

    # -- Rows that cannot be used -------------------------------------------

    @staticmethod
    def _alone(
        act: Callable[[int], object], number: int, *, broken: Callable[[int, BaseException], None]
    ) -> None:
        """Do something with one task or job, which is ended if it fails: it must not stop the others."""
        try:
            act(number)
        except Exception as error:
            if is_storage_error(error):
                raise
            _LOG.exception("%s of %d failed", getattr(act, "__name__", "work"), number)
            broken(number, error)

    def break_job(self, panda_id: int, error: BaseException) -> None:
        """Fail a job whose rows in the database cannot be used, without another attempt."""
        with self._database.change() as connection:
            job = self._store.break_job(connection, panda_id, broken_detail(error))
            task = self.task(connection, job["task_id"]) if job else None
            if task is not None:
                self._tasks.touch(connection, task)
                self._check_end(connection, task)

    def break_task(self, task_id: int, error: BaseException) -> None:
        """End a task whose rows in the database cannot be used, with all its jobs."""
        with self._database.change() as connection:
            self._store.break_inputs(connection, task_id, broken_detail(error))
            task = {"task_id": task_id}
            self._tasks.unplan(connection, task)
            dialog = broken_text(error)
            self._tasks.set(connection, task, "broken", ended=self._clock(), error_dialog=dialog)

    # -- Restart ------------------------------------------------------------

    def recover(self, last_seen: str) -> int:
        """Take up jobs that were running when the server died, and return their number.

        With an attempt left, a job is failed as a lost heartbeat and tried
        again. The last attempt is run again under its own id: the death of the
        embedded PanDA must not use up the attempts of a run, and a failed last
        attempt would prune the job's children.
        """
        query = sa.select(jobs.c.panda_id).where(jobs.c.status == "running")
        with self._database.reading() as connection:
            lost = connection.execute(query).scalars().all()
        for panda_id in lost:
            self._alone(lambda number: self._recover(number, last_seen), panda_id, broken=self.break_job)
        self._wake()
        return len(lost)

    def _recover(self, panda_id: int, last_seen: str) -> None:
        with self._database.change() as connection:
            job = self._store.get(connection, panda_id)
            task = None if job is None else self.task(connection, job["task_id"])
            if job is None or task is None:
                raise ValueError(f"job {panda_id} has no input or no task")
            closing = task["status"] in ("aborting", "finishing")
            if closing or job["attempt"] < job["max_attempt"]:
                self.job_ended(panda_id, JobResult("failed", detail=lost_detail(last_seen)))
            else:
                update = jobs.update().where(jobs.c.panda_id == panda_id)
                again = update.values(status="activated", started=None, session=None, changed=self._clock())
                connection.execute(again)


def _by_task(inputs: Iterable[Any]) -> dict[int, list[int]]:
    """Sort the ids of inputs by their tasks."""
    found: dict[int, list[int]] = {}
    for row in inputs:
        found.setdefault(row.task_id, []).append(row.file_id)
    return found
