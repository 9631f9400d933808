"""The command ``panda_bps act``: what the owner of a run can do about jobs that are held or have bad luck."""

from __future__ import annotations

__all__ = ["act"]

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import click

from ..errors import PandaBpsError, RefusedError, SettingsError
from ..insight.overview import fetch_evidence
from ..rest.panda_api import PandaApi
from ..runs.client import MAX_TASKS, RunClient
from ..runs.jobs import JobQuery, RunJobs
from ..status.evidence import RunEvidence
from ..status.records import JobRecord, TaskRecord, render_count
from ..status.replies import parse_jobs, parse_tasks
from ..status.vocabulary import ENDED_TASKS, PAUSED_TASKS
from .output import json_option, print_lines, print_problems, shows_errors, write_document
from .panda_bps_show import find_run, job_options, local_option

_WAIT = 60.0
_PAUSE = 1.0
_VALUES = {
    "move": "the name of a queue",
    "memory": "MB per core, a whole number from 1 on",
    "time": "seconds, a whole number from 1 on",
}
"""Actions that need a value, and which."""

_ACTIONS = ("kill", "retry", *_VALUES, "release")
_NOT_ALLOWED = "production"
"""What PanDA's refusal says if a call takes the production role."""

_ASK_FOR_ROLE = (
    "PanDA lets only people with its production role do this: ask one of them, or cancel the run, change the "
    "configuration and submit it once more"
)
_HEARTBEAT = (
    "its pilot hears of it at its next heartbeat, up to 30 minutes later; --now does not wait for that"
)
_NOT_TAKEN = "PanDA did not take the command: the job is being killed already, or PanDA knows it as another's"
_LAST = "it is the last attempt that the job may have, and giving it up would fail the job"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was asked for a job or a task, and what PanDA said when it was asked again afterwards."""

    label: str
    task_id: int
    panda_id: int = 0
    """The attempt that was meant; 0 where the whole task is."""

    job: str = ""
    """Which job it is; empty where the whole task is meant."""

    before: str = ""
    after: str = ""
    done: bool = False
    """Whether PanDA shows the effect."""

    note: str = ""
    """Why not, and what else is to be known."""

    def render(self) -> str:
        """Describe it in one line."""
        what = (
            f"{self.job}, PanDA job {self.panda_id}" if self.job else f"all jobs, PanDA task {self.task_id}"
        )
        change = f"{self.before} -> {self.after}" if self.after else self.before
        return f"{self.label}: {what}: {change}{self.note and f' ({self.note})'}"


@dataclass(frozen=True, slots=True)
class Aim:
    """The part of a run that is meant."""

    api: PandaApi
    evidence: RunEvidence
    tasks: dict[int, TaskRecord]
    """Tasks that go on, by id."""

    jobs: tuple[JobRecord, ...]
    """Last attempts of the jobs meant, of those that have one."""

    now: bool
    deadline: float

    def fetch_tasks(self) -> dict[int, TaskRecord]:
        """Ask PanDA for the tasks again."""
        filters = {"reqID": str(self.evidence.request_id)}
        found = parse_tasks(self.api.tasks_since(None, filters=filters, limit=MAX_TASKS))
        return {task.task_id: task for task in found if task.task_id in self.tasks}

    def fetch_jobs(self) -> dict[tuple[int, str], JobRecord]:
        """Ask PanDA for the last attempts of the jobs again."""
        found: list[JobRecord] = []
        for task_id in {job.task_id for job in self.jobs}:
            found += parse_jobs(self.api.job_descriptions(task_id))
        return _last_attempts(found)

    def kill(self, jobs: list[JobRecord]) -> set[int]:
        """Kill attempts; return the numbers of those of which PanDA took the command."""
        ids = [job.panda_id for job in jobs]
        taken = self.api.kill_jobs(ids, now=self.now) if ids else []
        return {number for number, good in zip(ids, taken, strict=True) if good}

    def state(self, thing: JobRecord | TaskRecord) -> str:
        """Describe the state of an attempt or a task, with PanDA's words."""
        if isinstance(thing, TaskRecord):
            words = " ".join(thing.dialog.split())
            return f"{thing.status} at {thing.site}{words and f', {words}'}"
        most = self.tasks[thing.task_id].max_attempts
        return f"{thing.status} at {thing.site}, attempt {thing.attempt}{f' of {most}' if most else ''}"

    def outcome(self, thing: JobRecord | TaskRecord, note: str = "") -> Outcome:
        """Describe an attempt or a task before anything is done."""
        label, before = self.evidence.task_labels[thing.task_id], self.state(thing)
        if isinstance(thing, TaskRecord):
            return Outcome(label, thing.task_id, before=before, note=note)
        return Outcome(label, thing.task_id, thing.panda_id, thing.title, before=before, note=note)

    def wait(self) -> bool:
        """Wait a little; false if it has been long enough."""
        left = self.deadline - time.monotonic()
        time.sleep(max(0.0, min(_PAUSE, left)))
        return left > 0


def _last_attempts(jobs: Iterable[JobRecord]) -> dict[tuple[int, str], JobRecord]:
    return {(job.task_id, job.name): job for job in sorted(jobs, key=lambda job: job.panda_id)}


@click.command()
@click.argument("run")
@click.argument("action", type=click.Choice(_ACTIONS))
@click.argument("value", required=False)
@job_options
@click.option("--now", is_flag=True, help="Do not wait for the pilots of jobs that run.")
@click.option(
    "--wait",
    default=_WAIT,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds to look for what becomes of it.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@json_option
@local_option
@shows_errors()
def act(
    run: str,
    action: str,
    value: str | None,
    label: str,
    job: str,
    data: str,
    now: bool,
    wait: float,
    dry_run: bool,
    as_json: bool,
    local: bool,
) -> int:
    """Do something about jobs of RUN that are held or have bad luck.  RUN is the run's id, its name or its
    submit directory.

    \b
    kill          kill jobs; no further attempt is made
    retry         give the present attempt of jobs up, so that PanDA makes the next
    move QUEUE    have jobs made for another queue, those that wait, too
    memory MB     have jobs ask for other memory, MB per core (production role)
    time SECONDS  have jobs ask for other run time (production role)
    release       let paused tasks go on (production role)

    kill and retry are for one job (--job, --data) or a label (--label); the others are for a label or the
    whole run.  PanDA only registers most commands: it is asked again until it shows the effect, and
    the exit code is 1 if it does not.

    \b
    panda_bps act 41 kill --job isr_260315001_3
    panda_bps act 41 move USDF_Rubin_Extra_Himem --label coadd
    panda_bps act 41 retry --label isr --now    workers that are lost
    """  # noqa: D301 (click's mark)
    which = JobQuery(label, job, data)
    _check_words(action, value, which)
    argument = find_run(run, local=local)
    client = RunClient(argument.connection)
    evidence = fetch_evidence(
        argument.connection, client.find(argument.run, unique=True), which=which, errors=False
    )
    aim = _aim(argument.connection.api, evidence, which, now=now, wait=0 if dry_run else wait)
    things, perform = _plan(action, value or "", aim, by_job=bool(job or data))
    would = f"would be: {' '.join(filter(None, [action, value]))}"
    outcomes = [aim.outcome(thing, would) for thing in things] if dry_run else perform()
    if as_json:
        write_document({"action": action, "dry_run": dry_run, "outcomes": outcomes}, evidence, kind="act")
    else:
        print_lines(outcome.render() for outcome in outcomes)
        print_problems(evidence.problems)
    return 0 if dry_run or all(outcome.done for outcome in outcomes) else 1


def _check_words(action: str, value: str | None, which: JobQuery) -> None:
    """Raise a `SettingsError` if the words of the command do not go together."""
    wanted = _VALUES.get(action)
    if (value is None) == (wanted is not None):
        raise SettingsError(
            f"{action} needs a value: {wanted}." if wanted else f"{action} takes no value; {value!r} is one."
        )
    if action in ("memory", "time") and not (
        str(value).isascii() and str(value).isdecimal() and int(value or 0)
    ):
        raise SettingsError(f"{value!r} is no value for {action}: give {wanted}.")
    if action in ("kill", "retry"):
        if not any(which):
            raise SettingsError(
                f"Say which jobs to {action}: --label LABEL, --job JOB or --data ID. bps cancel ends a whole "
                "run."
            )
    elif which.job or which.data:
        raise SettingsError(
            f"PanDA can {action} only whole tasks, so a label is named, not a job: use --label instead of "
            "--job or --data."
        )


def _aim(api: PandaApi, evidence: RunEvidence, which: JobQuery, *, now: bool, wait: float) -> Aim:
    """Choose what is meant; a `PandaBpsError` says why it cannot be acted on."""
    run = f"run {evidence.request_id}"
    if evidence.ended or evidence.aborted:
        what = "has ended" if evidence.ended else "was cancelled"
        raise PandaBpsError(
            f"Nothing can be done about jobs of {run} any more: it {what} ({evidence.tally.state.name}). "
            f"bps restart --id {evidence.request_id} runs again what was not done."
        )
    labels = evidence.task_labels
    started = {number for number, label in labels.items() if which.label in ("", label)}
    listed = {task.task_id: task for task in evidence.tasks}
    if foreign := started - listed.keys():
        whose = evidence.attributes.operator or evidence.request.username or "somebody else"
        raise PandaBpsError(
            f"Only its owner can act on {run}, which is that of {whose}: PanDA does not list its task "
            f"{min(foreign)} among yours. {' '.join(evidence.problems)}".rstrip()
        )
    going = {number: listed[number] for number in started if listed[number].status not in ENDED_TASKS}
    if not going:
        waits = not started
        of = f"label {which.label} of {run}" if which.label else run
        raise PandaBpsError(
            f"PanDA has no task for {of} yet; iDDS submits it later. Look again with panda_bps show "
            f"{evidence.request_id}."
            if waits
            else f"All PanDA tasks of {of} have ended, so there is nothing to act on. When the run has "
            f"ended, bps restart --id {evidence.request_id} runs again what failed."
        )
    last = _last_attempts(job for job in evidence.attempts if job.task_id in going)
    jobs = RunJobs(evidence).identify([job for job in last.values() if job.open])
    return Aim(api, evidence, going, jobs, now, time.monotonic() + wait)


def _plan(
    action: str, value: str, aim: Aim, *, by_job: bool
) -> tuple[Iterable[JobRecord | TaskRecord], Callable[[], list[Outcome]]]:
    """Return the jobs or tasks that are meant, and what does it; a `PandaBpsError` if there are none."""
    number = aim.evidence.request_id
    if action == "release":
        paused = {key: task for key, task in aim.tasks.items() if task.status in PAUSED_TASKS}
        if not paused:
            raise PandaBpsError(
                f"No task of run {number} is paused. bps report --id {number} says what its jobs wait for, "
                "as far as PanDA does."
            )
        return paused.values(), lambda: _release(replace(aim, tasks=paused))
    if action == "move":
        return aim.tasks.values(), lambda: _move(aim, value)
    if action in ("memory", "time"):
        return aim.tasks.values(), lambda: _change(aim, action, int(value))
    if action == "kill" and not by_job:
        return aim.tasks.values(), lambda: _kill_tasks(aim)
    if not aim.jobs:
        raise PandaBpsError(
            "PanDA has no job of those that are meant now: they wait for others, or have ended. panda_bps "
            f"show {number} --jobs lists all."
        )
    return aim.jobs, lambda: _end_attempts(aim, again=action == "retry")


# -- Jobs -----------------------------------------------------------------------


def _end_attempts(aim: Aim, *, again: bool) -> list[Outcome]:
    """End the attempts of jobs: the present one (``again``), or each until none is left."""
    meant = {(job.task_id, job.name): job for job in aim.jobs}
    limits = {key: aim.tasks[job.task_id].max_attempts for key, job in meant.items()}
    notes = {key: _LAST for key, job in meant.items() if again and job.attempt >= limits[key] > 0}
    last, sent = dict(meant), set[int]()
    while True:
        todo = {
            key: job
            for key, job in last.items()
            if job.open
            and key not in notes
            and job.panda_id not in sent
            and (job.panda_id == meant[key].panda_id or not again)
        }
        taken = aim.kill(list(todo.values()))
        sent |= {job.panda_id for job in todo.values()}
        last |= {key: job for key, job in aim.fetch_jobs().items() if key in last}
        notes |= {
            key: _NOT_TAKEN
            for key, job in todo.items()
            if job.panda_id not in taken and last[key].open and last[key].panda_id == job.panda_id
        }
        left = {
            key
            for key, job in last.items()
            if key not in notes
            and not job.finished
            and (job.panda_id == meant[key].panda_id if again else job.open or job.attempt < limits[key])
        }
        if not left or not aim.wait():
            break
    return [
        replace(
            aim.outcome(job),
            after=aim.state(last[key]),
            done=key not in notes and key not in left and not (last[key].finished and not again),
            note=notes.get(key) or _explain(last[key], job, again=again, left=key in left, now=aim.now),
        )
        for key, job in meant.items()
    ]


def _explain(last: JobRecord, meant: JobRecord, *, again: bool, left: bool, now: bool) -> str:
    """Say what is to be known of a job besides its state."""
    if last.finished:
        return "" if again and last.panda_id != meant.panda_id else "it finished before PanDA could end it"
    if left and last.open:
        return "it is told to end" if now else f"it is told to end: {_HEARTBEAT}"
    if left:
        more = "" if again else "; give the command again to kill that, too"
        return f"PanDA has not made the next attempt yet{more}"
    return "" if again or last.error is None else last.error.text


# -- Tasks ----------------------------------------------------------------------


def _on_tasks(
    aim: Aim, send: Callable[[TaskRecord], None], shows: Callable[[TaskRecord], bool], note: str = ""
) -> list[Outcome]:
    """Send a command about each task, and look until PanDA shows its effect."""
    refused: dict[int, str] = {}
    for number, task in aim.tasks.items():
        try:
            send(task)
        except RefusedError as error:
            words = error.cause or error.message
            refused[number] = (
                f"refused: {words}. {_ASK_FOR_ROLE}" if _NOT_ALLOWED in words else f"refused: {words}"
            )
    tasks = aim.tasks
    while True:
        if refused.keys() != aim.tasks.keys():
            tasks = {**tasks, **aim.fetch_tasks()}
        open_ = [number for number, task in tasks.items() if number not in refused and not shows(task)]
        if not open_ or not aim.wait():
            break
    return [
        replace(
            aim.outcome(task),
            after="" if number in refused else aim.state(tasks[number]),
            done=number not in refused and number not in open_,
            note=refused.get(number) or ("registered, and not done yet" if number in open_ else note),
        )
        for number, task in aim.tasks.items()
    ]


def _kill_tasks(aim: Aim) -> list[Outcome]:
    return _on_tasks(
        aim, lambda task: aim.api.kill_task(task.task_id), lambda task: task.status in ENDED_TASKS
    )


def _move(aim: Aim, queue: str) -> list[Outcome]:
    """Move tasks; what waits in its last attempt would be lost, so then only new jobs go to the queue."""
    stay = {
        job.task_id for job in aim.jobs if job.waiting and job.attempt >= aim.tasks[job.task_id].max_attempts
    }
    outcomes = _on_tasks(
        aim,
        lambda task: aim.api.move_task(task.task_id, queue, waiting_too=task.task_id not in stay),
        lambda task: task.site == queue and task.status != "toreassign",
    )
    return [
        replace(
            outcome,
            note="jobs that wait stay where they are, since some are in their last attempt and a move would "
            "fail them; jobs that are made from now on go there",
        )
        if outcome.done and outcome.task_id in stay
        else outcome
        for outcome in outcomes
    ]


def _change(aim: Aim, action: str, value: int) -> list[Outcome]:
    """Change what the jobs of tasks ask for."""
    attribute = "ramCount" if action == "memory" else "wallTime"
    waiting = sum(job.waiting for job in aim.jobs)
    note = (
        f"asks for {value} {'MB per core' if action == 'memory' else 's'} in jobs that are made from now on"
    )
    if waiting:
        keep = "that waits keeps what it has" if waiting == 1 else "that wait keep what they have"
        note += (
            f"; {render_count(waiting, 'job')} {keep}, and panda_bps act {aim.evidence.request_id} retry has "
            "PanDA make it anew, which takes one attempt"
        )
    if action == "time":
        note += "; PanDA chooses a queue by it, and what ends a job is the limit of its queue"
    return _on_tasks(
        aim,
        lambda task: aim.api.change_task(task.task_id, attribute, value),
        lambda task: value == (task.memory if action == "memory" else task.walltime),
        note,
    )


def _release(aim: Aim) -> list[Outcome]:
    return _on_tasks(
        aim, lambda task: aim.api.resume_task(task.task_id), lambda task: task.status not in PAUSED_TASKS
    )
