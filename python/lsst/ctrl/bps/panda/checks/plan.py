"""Checks of a plan: the name of the run, its staging area, jobs that fit no
queue, files that not all of its sites see; and advice on how to run faster.
"""

from __future__ import annotations

__all__ = [
    "LARGE_TASK",
    "MANY_JOBS",
    "check_area",
    "check_plan",
    "check_run_name",
    "find_advice",
    "find_attempts_on_server",
    "find_labels_without_queue",
    "find_later_attempts_without_queue",
    "find_labels_elsewhere",
    "find_unhonoured",
    "find_unknown_queues",
]

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

from lsst.ctrl.bps import BpsConfig

from .. import staging
from ..edgenode import cmd_line_decoder as runner
from ..errors import SettingsError
from ..findings import Finding, Severity, did_you_mean
from ..plan.model import TaskPlan, WorkflowPlan
from ..plan.tasks import DEFAULT_WALLTIME
from ..settings import sites
from ..settings.configuration import RunConfiguration
from ..settings.run import RunSettings
from ..settings.sites import QueueLimits, read_queues
from ..staging import StagingSettings

MAX_NAME = 255
"""Longest name of a request in iDDS (PostgreSQL column)."""

_hint = partial(Finding, Severity.HINT)

_UNSAFE_IN_NAME = frozenset("?#%*^/")


def check_plan(plan: WorkflowPlan, settings: RunSettings, config: BpsConfig) -> list[Finding]:
    """Check a plan and its staging area; the configuration is for the limits of queues."""
    tasks = (*plan.tasks, *plan.final)
    findings = check_run_name(plan.run.name)
    try:
        queues_of = partial(_queues_of, RunConfiguration(config).queues)
        findings += find_labels_without_queue(tasks, queues_of)
        findings += find_later_attempts_without_queue(tasks, queues_of)
        findings += find_unknown_queues(tasks, queues_of)
    except SettingsError as error:
        findings.append(Finding.from_error(error))
    findings += find_labels_elsewhere(plan, config, share_files=settings.sites_share_files)
    findings += find_attempts_on_server(tasks, plan.run.staging_area)
    findings += find_unhonoured(tasks)
    return findings + check_area(settings.staging)


def check_run_name(name: str) -> list[Finding]:
    """Check that iDDS can store and find a run of this name."""
    problems = []
    if len(name) > MAX_NAME:
        problems.append(
            f"The run's name has {len(name)} characters and iDDS takes {MAX_NAME}: {name!r}. "
            "Use a shorter outputRun."
        )
    if bad := sorted(set(name) & _UNSAFE_IN_NAME):
        problems.append(
            f"The run's name {name!r} holds {' '.join(bad)}, with which iDDS cannot look it up. "
            "Use another outputRun."
        )
    return [Finding(Severity.ERROR, text, key="outputRun") for text in problems]


def check_area(settings: StagingSettings) -> list[Finding]:
    """Check that a staging area can be written."""
    return [
        Finding(Severity.NEEDS_SERVER, text, key="fileDistributionEndPoint")
        for text in staging.check_area(settings)
    ]


def _queues_of(own: tuple[QueueLimits, ...], site: str) -> tuple[QueueLimits, ...]:
    """Return the queues of a site, as far as they are known: those in its
    profile, overridden by the configuration's ``own``.
    """
    known = read_queues(sites.profile_of(site).get("queues"), source=f"profile of {site}")
    by_name = {queue.name: queue for queue in (*known, *own)}
    return tuple(by_name.values())


def find_labels_without_queue(
    tasks: Iterable[TaskPlan], queues_of: Callable[[str], tuple[QueueLimits, ...]]
) -> list[Finding]:
    """Find labels whose jobs fit no queue; labels with the same problem share an error."""
    problems: dict[str, str] = {}
    for task in tasks:
        queues = queues_of(task.placement.site)
        if task.label not in problems and queues and (problem := _misfit(task, queues)):
            problems[task.label] = problem
    labels: dict[str, list[str]] = {}
    for label, problem in problems.items():
        labels.setdefault(problem, []).append(label)
    return [
        Finding(
            Severity.ERROR,
            f"Label{'s' if len(some) > 1 else ''} {', '.join(some)}: {problem}",
            label=", ".join(some),
        )
        for problem, some in labels.items()
    ]


def find_later_attempts_without_queue(
    tasks: Iterable[TaskPlan], queues_of: Callable[[str], tuple[QueueLimits, ...]]
) -> list[Finding]:
    """Find labels whose memory grows, from one attempt to the next, beyond what the queues of their site
    take; only a warning, since not every job runs out of memory.
    """
    found: dict[str, Finding] = {}
    for task in tasks:
        queues, needs = queues_of(task.placement.site), task.resources
        if task.label in found or not queues or _misfit(task, queues):
            continue
        for attempt in range(2, needs.attempts + 1):
            memory = needs.memory_of(attempt)
            problem = _misfit(replace(task, resources=replace(needs, memory=memory)), queues)
            if problem:
                text = (
                    f"Label {task.label}: attempt {attempt} would ask for {memory} MB if the ones before it "
                    f"run out of memory, and is never started: {problem} Otherwise set requestMemoryMax to "
                    "what a queue takes."
                )
                found[task.label] = Finding(Severity.WARNING, text, key="requestMemoryMax", label=task.label)
            if problem or memory == needs.memory_max:
                break
    return list(found.values())


def find_unknown_queues(
    tasks: Iterable[TaskPlan], queues_of: Callable[[str], tuple[QueueLimits, ...]]
) -> list[Finding]:
    """Find queues that labels name and that their site is not known to have;
    only a warning, since the queue may be new.
    """
    labels: dict[tuple[str, str], list[str]] = {}
    for task in tasks:
        where = task.placement
        known = [queue.name for queue in queues_of(where.site)]
        if where.queue and known and where.queue not in known:
            labels.setdefault((where.site, where.queue), []).append(task.label)
    findings = []
    for (site, name), named_by in labels.items():
        meant = did_you_mean(name, [queue.name for queue in queues_of(site)], likeness=0.6)
        meant = meant or "; jobs for a queue that does not exist never start."
        listed = ", ".join(dict.fromkeys(named_by))
        text = f"Queue {name} (labels {listed}) is not among those known of {site}{meant}"
        findings.append(Finding(Severity.WARNING, text, key="queue", label=listed))
    return findings


_CHANGED = "If that has changed, say so in the YAML: queues: {{{name}: {{maxMemory: {memory}}}}}."


def _misfit(task: TaskPlan, queues: tuple[QueueLimits, ...]) -> str:
    """Return why jobs of a task fit no queue; empty if they fit one."""
    where = task.placement
    if where.queue:
        named = [queue for queue in queues if queue.name == where.queue]
        misfit = _excess(named[0], task) if named else ""
        if not misfit:
            return ""
        hint = _CHANGED.format(name=where.queue, memory=task.resources.memory)
        return f"queue {where.queue} does not take its jobs: {misfit}. {hint}"
    brokered = [queue for queue in queues if queue.brokered]
    misfits = [_excess(queue, task) for queue in brokered]
    if not brokered or not all(misfits):
        return ""
    largest = max(brokered, key=lambda queue: (_takes_cores(queue, task), queue.memory, queue.cores))
    hint = _CHANGED.format(name=largest.name, memory=task.resources.memory)
    return (
        f"no queue of {where.site} takes its jobs; for the largest, {largest.name}, "
        f"{_excess(largest, task)}. {hint}"
    )


def _excess(queue: QueueLimits, task: TaskPlan) -> str:
    """Return what of a task is too much for a queue; empty if nothing is."""
    needs = task.resources
    checks = (
        ("requestMemory", needs.memory, queue.memory, "MB"),
        ("requestCpus", needs.cores, queue.cores, "cores"),
        ("requestWalltime", needs.walltime, queue.walltime, "seconds"),
    )
    reasons = [
        f"{key} {wanted} is more than {limit} {unit}"
        for key, wanted, limit, unit in checks
        if 0 < limit < wanted
    ]
    if needs.cores < queue.min_cores:
        reasons.append(f"requestCpus {needs.cores} is less than {queue.min_cores} cores")
    return " and ".join(reasons)


def _takes_cores(queue: QueueLimits, task: TaskPlan) -> bool:
    """Tell whether a queue accepts jobs with as many cores."""
    return queue.min_cores <= task.resources.cores <= (queue.cores or task.resources.cores)


def find_labels_elsewhere(plan: WorkflowPlan, config: BpsConfig, *, share_files: bool) -> list[Finding]:
    """Find labels at another site than the run's, which may not see its files.

    A run has one staging area and one Butler: its quantum graph is made from that Butler, a job reads there
    what jobs of other labels have written, and the final job registers all of it.  PanDA and iDDS start a job
    at one site when a job at another has ended, but move no data.

    It is an error if both sites have profiles with different staging areas, otherwise a warning, and nothing
    if the configuration says that all sites see the same files (``share_files``).
    """
    tasks = (*plan.tasks, *plan.final)
    elsewhere = _elsewhere(tasks, plan.run.site)
    butler_of = RunConfiguration(config).butler_of
    butlers = {
        task.label: butler_of(task.label, site=task.placement.site, cloud=task.placement.cloud)
        for task in tasks
    }
    findings = []
    if different := _different_butlers(butlers, plan):
        findings.append(Finding(Severity.ERROR, different, key="butlerConfig"))
    needed = [f"the staging area {plan.run.staging_area}"] if _is_path(plan.run.staging_area) else []
    needed += [f"the Butler {butler}" for butler in sorted(set(butlers.values())) if _is_path(butler)]
    for site, labels in elsewhere.items() if needed and not share_files else ():
        listed = ", ".join(labels)
        text = (
            f"Labels {listed} go to {site}, the run to {plan.run.site}, and all its jobs need "
            f"{' and '.join(needed)}: a path, which another site may not see. Give URIs that both sites "
            "reach, or, if they see the same files, set sitesShareFiles: yes. For data at separate "
            "facilities use a run for each site: panda_bps campaign."
        )
        have_profiles = sites.profile_of(site) and sites.profile_of(plan.run.site)
        apart = have_profiles and sites.staging_areas_of(site) != sites.staging_areas_of(plan.run.site)
        severity = Severity.ERROR if apart else Severity.WARNING
        findings.append(Finding(severity, text, key="computeSite", label=listed))
    return findings


def find_attempts_on_server(tasks: Iterable[TaskPlan], area: str) -> list[Finding]:
    """Find what the runner does by notes in the staging area, if that is a server that workers might only
    read; what BPS asks for by default is no reason to say so.
    """
    if _is_path(area):
        return []
    words = {word for task in tasks for word in task.command.split()}
    number = runner.encode_command(f"<WMS:{runner.ATTEMPT_NUMBER}>")
    used = ["<WMS:attemptNum>"] if any(number in word for word in words) else []
    codes = {word.partition("=")[2] for word in words if word.startswith("--retry-unless-exit=")}
    if codes - {"1,2", "2"}:
        used.append("retryUnlessExit")
    if not used:
        return []
    text = (
        f"{' and '.join(used)} need workers that may write to the staging area {area}: PanDA's pilot "
        "does not tell which attempt it is, so the runner leaves notes there. Where it may only read, the "
        "number is 0 and every exit code is retried; the job's standard error says so."
    )
    return [_hint(text, "fileDistributionEndPoint")]


def find_unhonoured(tasks: Iterable[TaskPlan]) -> list[Finding]:
    """Find what a run asks for and PanDA (JEDI 1.0.4) does not honour, in one hint for all labels."""
    tasks = tuple(tasks)
    walltime = any(task.resources.walltime != DEFAULT_WALLTIME for task in tasks)
    parts = ["requestWalltime does not limit a job, its queue's limit does"] if walltime else []
    if any(task.resources.cores > 1 for task in tasks):
        parts.append("requestCpus counts only in queues that take any number of cores")
    return [_hint(f"PanDA may not honour what is asked for: {'; '.join(parts)}.")] if parts else []


def _elsewhere(tasks: tuple[TaskPlan, ...], run_site: str) -> dict[str, list[str]]:
    """Return the labels at each site other than the run's."""
    found: dict[str, list[str]] = {}
    for task in tasks:
        site = task.placement.site
        if site and site.lower() != run_site.lower() and task.label not in found.setdefault(site, []):
            found[site].append(task.label)
    return found


def _different_butlers(butlers: dict[str, str], plan: WorkflowPlan) -> str:
    """Return a text about labels with different Butlers; empty if all use the same one."""
    by_butler: dict[str, list[str]] = {}
    for label, butler in butlers.items():
        by_butler.setdefault(butler, []).append(label)
    if len(by_butler) < 2:
        return ""
    listed = "; ".join(f"{butler or '(none)'}: {', '.join(labels)}" for butler, labels in by_butler.items())
    return (
        f"Labels of run {plan.run.name} use different Butlers ({listed}), so that jobs do not find what "
        "others have written. A run has one butlerConfig; use a run for each site: panda_bps campaign."
    )


def _is_path(place: str) -> bool:
    """Tell whether a place is a path or a ``file:`` URI; a name without
    slashes is an alias, which may point anywhere.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", place)
    return scheme[1].lower() == "file" if scheme else "/" in place


MANY_JOBS = 10_000
"""Number of jobs of a label above which the start-up of each PanDA job matters."""

SHORT_JOB = 1800
"""Longest wall time of a short job, seconds."""

LARGE_TASK = 100_000
"""Number of jobs of a task above which PanDA is slow to start it (technote
RTN-041, on the processing for DP0.2)."""


def find_advice(plan: WorkflowPlan, *, length: int = 0, most: int = 0) -> list[Finding]:
    """Return the planner's warnings, and hints on how to run faster.

    ``length`` is that of the request, bytes, without the parts that are sent
    in steps of their own, and ``most`` what the configuration allows.
    """
    return [
        *(Finding(Severity.WARNING, text) for text in plan.warnings),
        *_short_jobs(plan.tasks),
        *_large_tasks(plan.tasks),
        *_final_job(plan),
        *_long_request(plan, length, most),
    ]


def _short_jobs(tasks: Iterable[TaskPlan]) -> Iterator[Finding]:
    jobs: dict[str, int] = {}
    for task in tasks:
        walltime = task.resources.walltime
        if not task.event_service and (walltime <= SHORT_JOB or walltime == DEFAULT_WALLTIME):
            jobs[task.label] = jobs.get(task.label, 0) + len(task.jobs)
    for label, count in jobs.items():
        if count > MANY_JOBS:
            yield _hint(
                f"Label {label} has {count} jobs, each a PanDA job of its own. If they take minutes, "
                f"'enableEventService: {label}:20' or clustering (clusterAlgorithm) saves most of their "
                "start-up.",
                "enableEventService",
                label,
            )


def _large_tasks(tasks: Iterable[TaskPlan]) -> Iterator[Finding]:
    large = {task.label: len(task.jobs) for task in tasks if len(task.jobs) > LARGE_TASK}
    for label, count in large.items():
        yield _hint(
            f"Label {label} has tasks of {count} jobs; PanDA is slow to start tasks of more than "
            f"{LARGE_TASK}. Set maxJobsPerTask lower, 10000 for instance.",
            "maxJobsPerTask",
            label,
        )


def _long_request(plan: WorkflowPlan, length: int, most: int) -> Iterator[Finding]:
    if length > most:
        yield _hint(
            f"The request has {length} bytes even without the dependencies, which go before it; "
            f"maxRequestLength is {most}. Its {len(plan.tasks)} tasks are the rest: a larger maxJobsPerTask "
            "makes fewer.",
            "maxRequestLength",
        )


def _final_job(plan: WorkflowPlan) -> Iterator[Finding]:
    lost = [task for task in plan.final if not task.placement.queue]
    if lost:
        site = lost[0].placement.site or "SITE"
        yield _hint(
            "The final job names no queue. Queues for merging take only jobs that name them: set queue in "
            f"finalJob, {site}_Rubin_Merge for instance, if the site has one.",
            "queue",
            "finalJob",
        )
