"""What iDDS and PanDA call things, and what that means for a run: every status,
every source of an error, every error code and its remedy.

Everybody who asks what a status or a code means imports it from here.
"""

from __future__ import annotations

__all__ = [
    "CANCELLED",
    "CONTENT_STATUSES",
    "CANCELLING_TASKS",
    "ENDED_TASKS",
    "ACTIVE_TASKS",
    "BROKERAGE_WORDS",
    "JOB_STATUSES",
    "KILL_CODES",
    "MEMORY_ADVICE",
    "NEVER_RAN",
    "OUT_OF_MEMORY",
    "OUT_OF_TIME",
    "PAUSED_TASKS",
    "PROCESSING_STATUSES",
    "REQUESTED",
    "REQUEST_STATUSES",
    "RULES",
    "RUNNING_PROCESSINGS",
    "RUNNING_TASKS",
    "SOURCES",
    "TASK_STATUSES",
    "TERMINAL_STATUSES",
    "TRANSFORM_STATUSES",
    "TRANSLATED_CODES",
    "UNKNOWN_EXIT_CODE",
    "VERDICTS",
    "WAITS_FOR_PARENTS",
    "ContentPhase",
    "JobPhase",
    "TransformPhase",
    "RequestPhase",
    "VerdictRule",
    "is_running",
    "panda_field",
]

from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from ..edgenode import cmd_line_decoder as runner

_Phase = TypeVar("_Phase", bound=Enum)


def _by_phase(*rows: tuple[_Phase, str]) -> dict[str, _Phase]:
    """Make a table of statuses, in the order of the rows, and what each means."""
    return {status: phase for phase, statuses in rows for status in statuses.split()}


class RequestPhase(Enum):
    """What the status of a request says about the run."""

    WAITING = "iDDS has not started it"
    GOING = "tasks are made and run"
    HELD = "somebody suspended it"
    KILLING = "it is being cancelled, or has expired"
    KILLED = "it was cancelled, or has expired"
    ENDED = "the server calls it over"


REQUEST_STATUSES = _by_phase(
    (RequestPhase.WAITING, "New Ready"),
    (RequestPhase.GOING, "Transforming"),
    (RequestPhase.ENDED, "Finished SubFinished Failed"),
    (RequestPhase.WAITING, "Extend"),
    (RequestPhase.KILLING, "ToCancel Cancelling"),
    (RequestPhase.KILLED, "Cancelled"),
    (RequestPhase.HELD, "ToSuspend Suspending Suspended"),
    (RequestPhase.GOING, "ToResume Resuming"),
    (RequestPhase.KILLING, "ToExpire Expiring"),
    (RequestPhase.KILLED, "Expired"),
    (RequestPhase.GOING, "ToFinish ToForceFinish Terminating"),
    (RequestPhase.WAITING, "Building Built Throttling"),
    (RequestPhase.GOING, "ToClose"),
)
"""iDDS's ``RequestStatus`` (idds.common.constants, 2.6.21); the position of a name is its number there."""

TERMINAL_STATUSES = frozenset(
    status for status, phase in REQUEST_STATUSES.items() if phase in (RequestPhase.ENDED, RequestPhase.KILLED)
)
"""Statuses, of requests and of transforms, after which nothing starts by
itself.  Suspended is not among them: the run can be resumed."""


class TransformPhase(Enum):
    """What the status of a transform says about jobs not yet done."""

    OPEN = "the jobs are waiting or running"
    DELETING = "the jobs are or will be killed"
    HELD = "somebody suspended the task"
    COMPLETE = "all jobs succeeded, says the server"
    OVER = "the task has ended, not all jobs succeeded"
    STRANGE = "a status that this table does not have"


TRANSFORM_STATUSES = _by_phase(
    (TransformPhase.OPEN, "New Ready Transforming"),
    (TransformPhase.COMPLETE, "Finished"),
    (TransformPhase.OVER, "SubFinished Failed"),
    (TransformPhase.OPEN, "Extend"),
    (TransformPhase.DELETING, "ToCancel Cancelling Cancelled"),
    (TransformPhase.HELD, "ToSuspend Suspending Suspended"),
    (TransformPhase.OPEN, "ToResume Resuming"),
    (TransformPhase.DELETING, "ToExpire Expiring Expired"),
    (TransformPhase.OPEN, "ToFinish ToForceFinish Terminating"),
    (TransformPhase.OPEN, "Building Built Queue Throttling WaitForTrigger"),
)
"""iDDS's ``TransformStatus``, by number."""

PROCESSING_STATUSES = (
    "New", "Submitting", "Submitted", "Running", "Finished", "Failed", "Lost", "Cancel", "FinishedOnStep",
    "FinishedOnExec", "FinishedTerm", "SubFinished", "ToCancel", "Cancelling", "Cancelled", "ToSuspend",
    "Suspending", "Suspended", "ToResume", "Resuming", "ToExpire", "Expiring", "Expired", "TimeOut",
    "ToFinish", "ToForceFinish", "Broken", "Terminating", "ToTrigger", "Triggering", "Synchronizing",
    "Prepared",
)  # fmt: skip
"""iDDS's ``ProcessingStatus``, by number."""

RUNNING_PROCESSINGS = frozenset(
    {"Running", "ToTrigger", "Triggering", "Synchronizing", "Terminating", "Prepared"}
)
"""Those that follow Submitted.  iDDS stores a running job as Activated, so
the processing is what tells whether a task's released jobs run."""


class ContentPhase(Enum):
    """What the status of a content says about its job."""

    DONE = "the job succeeded"
    UNFINISHED = "the job waits or runs, or was left when its task ended"
    RETRIED = "the job failed and is tried again as long as its task goes on"
    FAILED = "the job failed for good"
    OTHER = "the job was pruned, or the content is not a job's"


CONTENT_STATUSES = _by_phase(
    (ContentPhase.UNFINISHED, "New Processing"),
    (ContentPhase.DONE, "Available"),
    (ContentPhase.RETRIED, "Failed"),
    (ContentPhase.FAILED, "FinalFailed"),
    (ContentPhase.OTHER, "Lost Deleted Mapped"),
    (ContentPhase.DONE, "FakeAvailable"),
    (ContentPhase.OTHER, "Missing"),
    (ContentPhase.UNFINISHED, "Cancelled Activated"),
    (ContentPhase.FAILED, "SubAvailable FinalSubAvailable"),
    (ContentPhase.UNFINISHED, "PreProcessing"),
)
"""iDDS's ``ContentStatus``, by number."""

TASK_STATUSES = {
    "done": "Finished",
    "finished": "SubFinished",
    "failed": "Failed",
    "exhausted": "Failed",
    "broken": "Failed",
    "aborted": "Cancelled",
    "toabort": "Cancelling",
    "aborting": "Cancelling",
    "paused": "Suspended",
}
"""PanDA's task statuses and the status of a transform that iDDS makes of each
(``DomaPanDAWork``); with any other status the task goes on."""

RUNNING_TASKS = frozenset({"running", "scouting", "prepared", "merging"})
"""Statuses of PanDA tasks whose jobs have been released."""

CANCELLING_TASKS = frozenset(task for task, status in TASK_STATUSES.items() if status == "Cancelling")
"""Statuses of PanDA tasks whose jobs are being killed."""

ACTIVE_TASKS = RUNNING_TASKS | CANCELLING_TASKS
"""Statuses of PanDA tasks that may have running jobs."""

WAITS_FOR_PARENTS = "inputs are staging from a tape"
"""What JEDI says of a task whose inputs other tasks are to make: to it they look like files on tape."""

REQUESTED = {
    "requestMemory": r"memory|\bram\b",
    "requestCpus": r"\bcore|\bcpu",
    "requestWalltime": "walltime|time limit",
    "requestDisk": r"\bdisk|\bspace",
}
"""What a label can ask for, and a regular expression that finds it in brokerage's words."""

BROKERAGE_WORDS = r"brokerage|\bcandidates|\bskip site"
"""What JEDI's remark about a task holds while no queue takes its jobs."""

ENDED_TASKS = frozenset(task for task, status in TASK_STATUSES.items() if status in TERMINAL_STATUSES)
PAUSED_TASKS = frozenset(task for task, status in TASK_STATUSES.items() if status == "Suspended")


class JobPhase(Enum):
    """What the status of a PanDA job says about the attempt."""

    WAITING = "no payload runs yet"
    RUNNING = "the payload runs, or its end is being booked"
    FINISHED = "the attempt succeeded"
    FAILED = "the attempt failed"
    KILLED = "the attempt was cancelled"


JOB_STATUSES = _by_phase(
    (JobPhase.WAITING, "pending defined waiting assigned throttled activated sent starting"),
    (JobPhase.RUNNING, "running holding transferring merging"),
    (JobPhase.FINISHED, "finished"),
    (JobPhase.FAILED, "failed"),
    (JobPhase.KILLED, "cancelled closed"),
)
"""Statuses of PanDA jobs (pandaserver.taskbuffer.JobSpec)."""


def is_running(job_status: str) -> bool:
    """Whether a PanDA job with this status runs; one with an unknown status does not."""
    return JOB_STATUSES.get(job_status) is JobPhase.RUNNING


def panda_field(field: str) -> str:
    """Return what a PanDA job calls a field of iDDS: ``pilotErrorCode`` is ``pilot_error_code``."""
    first, *others = field.split("_")
    return first + "".join(map(str.capitalize, others))


SOURCES = {
    "payload": ("trans_exit_code", "exe_error_diag"),
    "pilot": ("pilot_error_code", "pilot_error_diag"),
    "brokerage": ("brokerage_error_code", "brokerage_error_diag"),
    "data management": ("ddm_error_code", "ddm_error_diag"),
    "executor": ("exe_error_code", "exe_error_diag"),
    "dispatcher": ("job_dispatcher_error_code", "job_dispatcher_error_diag"),
    "supervisor": ("sup_error_code", "sup_error_diag"),
    "task buffer": ("task_buffer_error_code", "task_buffer_error_diag"),
}
"""Sources of errors by their precedence, and the fields of code and text in
iDDS's ``contents_ext``: a payload's error is told before the pilot's, whose
1305 says no more than that the payload failed, and so on.
Besides them ``task`` stands for a job that its ended task left undone, and
``unknown`` for one of which no server knows an error."""

TRANSLATED_CODES = {2: 1378, 3: 1368, 251: 1315}
"""Exit codes of payloads of which pilot 3 makes codes of its own (``ErrorCodes.resolve_transform_error``);
what its texts say then did not happen."""

NEVER_RAN = "iDDS could not hand task {} to PanDA: it never ran"
"""The error of jobs whose transform ended without a task."""

UNKNOWN_EXIT_CODE = -1
"""Stands for a failed job whose code no server could tell."""

OUT_OF_MEMORY = "out of memory"
CANCELLED = "cancelled"
OUT_OF_TIME = "out of time"
NOT_SUBMITTED = "not submitted"

MEMORY_ADVICE = (
    "ask for more memory (requestMemory); whether retries get more (memoryMultiplier) depends on the "
    "server's retry rules, of which none covers exit code 137"
)

VERDICTS = {
    OUT_OF_MEMORY: (
        "The job needed more memory than it had. Raise requestMemory for the label (panda_bps resources "
        "suggests a value) and submit the run once more: bps restart keeps the old value. Retries "
        "(numberOfRetries) get more only if the server has a rule for the error: "
        "with increase_memory_xtimes memoryMultiplier counts, with increase_memory a fixed ladder of sizes; "
        "for exit code 137 alone (pilot 1305) PanDA has no rule, and the next attempt gets no more."
    ),
    OUT_OF_TIME: (
        "The job ran longer than it may. Raise requestWalltime for the label (panda_bps resources shows how "
        "long the others take), or split its work, and submit the run once more: bps restart keeps the old "
        "value."
    ),
    "lost heartbeat": (
        "PanDA heard nothing of the job for too long: its node or its batch job died. bps restart runs it "
        "again; if it comes back for the same jobs, suspect their memory, else tell those who run the "
        "site."
    ),
    CANCELLED: (
        "It was stopped by a person (bps cancel, panda_bps act, the monitor) or by the batch system. bps "
        "restart runs again what was not done."
    ),
    "preempted": (
        "The batch system took the slot back. bps restart runs it again; ask for retries with "
        "numberOfRetries."
    ),
    "storage": (
        "Files could not be read or written. Check that the staging area and the Butler repository can be "
        "reached from the workers, with room left and permission to write (group-writable), then bps "
        "restart."
    ),
    "log-in": (
        "The worker's or the site's credentials were not accepted. Log in again (panda_auth status) and "
        "restart; if it is the pilot's proxy, tell those who run the site."
    ),
    "site": (
        "The site could not run the job, whatever the payload is. Restart; if it comes back, name another "
        "queue (queue, computeSite) and tell those who run the site."
    ),
    "node": (
        "The error comes from one node only, so the node is the likely cause. bps restart runs the jobs "
        "elsewhere, most likely; tell those who run the site the node's name."
    ),
    "environment": (
        "The payload's command or a module was not found. Check setup and PATH in the payload's command "
        "(payloadCommand, runnerCommand, LSST_VERSION) and that the release is installed at the site. "
        "What is installed there later serves bps restart; a changed configuration needs a new submission."
    ),
    "crash": (
        "The payload was ended by a signal such as a segmentation fault. Look at its log; try the command "
        "by hand with the same release. If it does not come back there, suspect memory or the node."
    ),
    "missing input": (
        "A dataset or a file that the job reads is not there. If jobs before it failed, they are the "
        "cause: look at those labels first."
    ),
    "output exists": (
        "The output is there already, from an earlier attempt or another run. Use a new outputRun, or "
        "--clobber-outputs."
    ),
    "runner": (
        'The runner could not start the payload; the last line of its log says why, and the page "What '
        'happens on the worker" what each code means.'
    ),
    "build": (
        "The task that makes the plan of the run (remote build) failed: the last lines of its log say "
        "why. Fix it, and submit the run once more; there is nothing to restart."
    ),
    "registration": (
        "The outputs are there, but were not registered in Rucio: the last line of its log says why. What "
        "was registered stays; when the cause is gone, bps restart or panda_bps rucio register adds the "
        "rest."
    ),
    "payload": (
        "The payload itself failed: its log says why. bps restart runs the same quantum graph again, with "
        "the pipeline and the task configuration in it: it helps after a change of the software or the data "
        "that the workers see, of a file in the submit directory, or of a custom job's script. After any "
        "other change submit the run once more."
    ),
    "scheduling": (
        "PanDA gave the job up before it ran. Look at the task in the monitor; check that a queue fits "
        "the memory, cores and walltime that are asked for."
    ),
    NOT_SUBMITTED: (
        "iDDS could not hand the task to PanDA, for instance because the PanDA server was down: none of its "
        "jobs ran. bps restart runs them."
    ),
    "pruned": "It ended with its task and has no error of its own: the other errors are the cause.",
    "unknown": "No server knows why. Look at the log (panda_bps logs), and at the job in the monitor.",
}
"""What a failure is put down to, and what to do then."""


@dataclass(frozen=True, slots=True)
class VerdictRule:
    """Conditions that must all hold for a verdict; an empty one always does.

    Sources, codes and text are those of one and the same error; a job may have several.
    """

    verdict: str
    sources: tuple[str, ...] = ()
    codes: tuple[range, ...] = ()
    text: str = ""
    """Regular expression that the error's text must hold."""

    log: str = ""
    """Regular expression that the end of the job's log must hold."""

    one_node: bool = False
    """Whether the error must come from one node, in a run that uses several."""

    def fits_code(self, source: str, code: int) -> bool:
        """Whether an error is from the rule's sources and has one of its codes."""
        return (not self.sources or source in self.sources) and (
            not self.codes or any(code in codes for codes in self.codes)
        )


def _rule(verdict: str, source: str = "", *codes: int | range, text: str = "", log: str = "") -> VerdictRule:
    """Make a rule; several sources are separated by a bar."""
    return VerdictRule(
        verdict,
        tuple(source.split("|")) if source else (),
        tuple(code if isinstance(code, range) else range(code, code + 1) for code in codes),
        text,
        log,
    )


# Codes of the pilot are those of pilot 3 (pilot/common/errorcodes.py), the payload's are the shell's or
# the runner's, the others those of panda-server.
RULES = (
    # Killed on purpose: before signals, since a killed payload dies of one.
    _rule(CANCELLED, "pilot", 1144, 1205, 1236),
    _rule(CANCELLED, "task buffer", 100),
    _rule(CANCELLED, "task buffer", text="kill(ed)? by"),
    # Memory: PanDA's own memory retry looks for these.
    _rule(OUT_OF_MEMORY, "pilot", 1212, 1223, 1235),
    _rule(OUT_OF_MEMORY, "payload|executor", 137),
    _rule(OUT_OF_MEMORY, "task buffer", 300),
    _rule(OUT_OF_MEMORY, log="MemoryError|std::bad_alloc|Cannot allocate memory|oom-kill|Out of memory"),
    _rule(OUT_OF_TIME, "pilot", 1213, 1150, 1204, 1317),
    _rule(OUT_OF_TIME, "payload", 152),
    _rule("preempted", "pilot", 1379),
    _rule("lost heartbeat", "dispatcher"),
    _rule("lost heartbeat", text="lost heartbeat"),
    # The runner's own codes (page "What happens on the worker").
    _rule("storage", "payload", runner.EXIT_PARAMETERS, runner.EXIT_MISSING, runner.EXIT_UNREACHABLE,
          runner.EXIT_WORK_DIRECTORY, runner.EXIT_DAMAGED, runner.EXIT_OUTPUT),
    _rule("runner", "payload", runner.EXIT_USAGE, runner.EXIT_INTERNAL, runner.EXIT_START,
          runner.EXIT_SHARD, runner.EXIT_UNSAFE, runner.EXIT_PLACEHOLDER),
    _rule(CANCELLED, "payload", runner.EXIT_CANCELLED),
    # The site's own troubles.
    _rule("storage", "data management"),
    _rule("storage", "pilot", range(1098, 1101), 1103, 1115, 1124, 1133, 1137, 1141, 1145, 1151, 1152, 1171,
          1172, 1180, 1181, 1326, 1331, 1333, 1361, 1362, 1366, 1368),
    _rule("log-in", "pilot", 1163, 1177, 1338, 1364, 1370, 1373, range(1380, 1384)),
    _rule(
        "log-in", log="ExpiredToken|InvalidAccessKeyId|token (has|is) expired|401 Unauthorized|403 Forbidden"
    ),
    _rule("site", "pilot", 1106, 1110, 1116, 1117, 1186, 1199, 1211, range(1306, 1310), 1325, 1327, 1332,
          1334, range(1340, 1343), 1344, 1345, 1348, range(1358, 1361), 1372, 1377, 1378, 1384, 1386),
    VerdictRule("node", ("payload",), one_node=True),
    # What the payload's log tells.
    _rule("build", "payload", log="The remote build failed: "),
    _rule("registration", "payload", 3, 4, 5, log=" rucioRegister: "),
    _rule(
        "storage",
        log="No space left on device|Permission denied|PermissionError|Read-only file system|"
        "Stale file handle|Input/output error",
    ),
    _rule("environment", "payload", 126, 127, runner.EXIT_SET_UP, runner.EXIT_NOT_RUN),
    _rule("environment", log="ModuleNotFoundError|command not found|ImportError"),
    _rule("output exists", log="ConflictingDefinitionError|already exists|FileExistsError"),
    _rule(
        "missing input",
        log="FileNotFoundError|DatasetNotFoundError|MissingDatasetTypeError|No such file or directory",
    ),
    _rule("crash", "payload", range(129, 160)),
    _rule("crash", "pilot", range(1200, 1204), range(1206, 1209), 1328, 1355),
    _rule("payload", "payload"),
    _rule("site", "pilot|supervisor"),
    _rule("scheduling", "brokerage|task buffer|executor"),
    _rule(NOT_SUBMITTED, "task", text="^iDDS could not hand task "),
    _rule("pruned", "task"),
)  # fmt: skip
"""How a failure is judged: the first rule that holds decides."""

KILL_CODES = frozenset(
    {
        # The runner found that the final job's run was cancelled.
        ("payload", runner.EXIT_CANCELLED),
        # The pilot was told to end the job (pilot3's PANDAKILL).
        ("pilot", 1144),
        # PanDA killed a job that was queued.
        ("task buffer", 100),
    }
)
"""Errors, by source and code, of jobs that the cancel of their run ended."""
