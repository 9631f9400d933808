"""Look for everything that would keep a run from working, before anything is
staged or sent, and say all of it at once.
"""

from __future__ import annotations

__all__ = ["check_configuration", "check_run", "check_service", "report_problems"]

import logging
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial

from lsst.resources import ResourcePath

from lsst.ctrl.bps import BpsConfig

from ..errors import PandaBpsError, SettingsError
from ..plan.model import WorkflowPlan
from ..rest.faults import diagnose
from ..runs.inquiry import connect
from ..settings import sites
from ..settings.bps_command import is_dry_run
from ..settings.campaign import SECTION, is_divided
from ..settings.configuration import GraphCommand, RunConfiguration
from ..settings.keys import CORE_KEYS, KEYS
from ..settings.remote import is_remote_build, read_build_settings
from ..settings.run import RunSettings, ServiceSettings
from ..settings.search import KeyLookup, find_broken_sections
from ..settings.sites import expand_area, variables_in
from ..staging import StagingSettings, check_area
from .plan import QueueLimits, find_misfits, find_separated, find_unknown_queues, read_queues

_LOG = logging.getLogger(__name__)

MAX_NAME = 255
"""Longest name of a request in iDDS (PostgreSQL column)."""

_UNSAFE_IN_NAME = frozenset("?#%*^/")

# Variables of the commands for quantum graphs that BPS sets later, or leaves out if they are not set.
_OPTIONAL = re.compile(r"qgraphFile|inputQgraphFile|dataQuery|\w+(?:Options|Opts)")


def report_problems(problems: Sequence[str], outside: Sequence[str]) -> None:
    """Raise one error that lists all problems.

    Parameters
    ----------
    problems : sequence of `str`
        What is wrong with the configuration, the plan or the environment.
    outside : sequence of `str`
        What is wrong with the staging area, the server or the log-in, which
        a dry run does not need: warned about then.

    Raises
    ------
    PandaBpsError
        Raised if there is a problem.
    """
    if outside and is_dry_run():
        _LOG.warning(
            "A submission from here would fail; it goes on because nothing is sent now:\n%s", _listed(outside)
        )
        outside = ()
    if problems or outside:
        raise PandaBpsError(f"This run cannot be submitted:\n{_listed([*problems, *outside])}")


def _listed(problems: Sequence[str]) -> str:
    return "\n".join(f"- {problem}" for problem in problems)


def check_service(settings: ServiceSettings) -> list[str]:
    """Check that PanDA can be reached with a log-in that lives long enough.

    Parameters
    ----------
    settings : `ServiceSettings`
        Where PanDA is and who we are.

    Returns
    -------
    problems : `list` [`str`]
        A text each.
    """
    try:
        connection = connect(settings, prompt=True)
        connection.relay.ping()
        # Longer than any log-in lives, and short enough to be added to a date.
        hours = min(settings.token_lifetime, 1e6)
        connection.credentials.ensure_lifetime(timedelta(hours=hours))
    except SettingsError as error:
        return [str(error)]
    except PandaBpsError as error:
        return [diagnose(error)]
    return []


def check_configuration(config: BpsConfig, environment: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Check what can be checked before there is a quantum graph.

    Parameters
    ----------
    config : `~lsst.ctrl.bps.BpsConfig`
        Configuration of the run.
    environment : mapping of `str` to `str`
        The environment.

    Returns
    -------
    problems : `list` [`str`]
        What is wrong with the configuration, a text each.
    area_problems : `list` [`str`]
        What is wrong with the staging area.
    """
    if broken := find_broken_sections(config):
        return broken, []  # nothing can be looked up, neither here nor by BPS
    lookup = KeyLookup(config, environment)
    run = RunConfiguration(config)
    labels = run.labels
    problems = [
        *_wrong_values(lookup, labels),
        *_name_problems(run.name),
        *_divided(run),
        *_complaints(partial(_QueueSource, run)),
    ]
    if is_remote_build(config) and not is_dry_run():
        # Graph, plan and staging are the site's business.
        return [*problems, *_complaints(lambda: read_build_settings(config, environment))], []
    checked: list[tuple[str, Sequence[str], re.Pattern[str] | None]] = [
        ("runnerCommand", labels, None),
        ("fileDistributionEndPoint", (), None),
    ]
    graph = None if run.is_command else run.graph_command()
    if graph is not None:
        checked.append((graph.key, (), _OPTIONAL))
    for key, names, optional in checked:
        if not run.is_evaluated(key):
            found = _complaints(partial(lookup.check_variables, key, names, optional=optional))
            problems += found or (_runner_problems(lookup, labels) if key == "runnerCommand" else [])
    if graph is not None:
        problems += [
            *_missing_commands(graph, environment),
            *_graph_problems(graph, run.submit_path),
            *_missing_inputs(graph, environment),
        ]
    return problems, _area_problems(lookup, environment)


def _runner_problems(lookup: KeyLookup, labels: Iterable[str]) -> list[str]:
    """Find labels whose jobs would run nothing, or what nobody stages."""
    try:
        commands = {str(lookup.get("runnerCommand", label, raw=True)): label for label in ["", *labels]}
        staged = lookup.get("stageRunner")
    except SettingsError:
        return []  # of another kind, which is in the list already
    without_place = [
        f"runnerCommand holds no _cmd_line_, the place for the job's command; it is {command!r}"
        f"{f' for label {label}' if label else ''}."
        for command, label in commands.items()
        if command and "_cmd_line_" not in command
    ]
    if without_place or staged or not any("_runner_" in command for command in commands):
        return without_place
    return ["runnerCommand asks for the staged runner (_runner_), and stageRunner is no. Change one of them."]


def _divided(run: RunConfiguration) -> list[str]:
    """Refuse to run at one site what is to be divided among several."""
    section = run.campaign_sites
    if not is_divided(section):
        return []
    return [
        f"{SECTION} divides this run among {len(section.get('sites') or ())} sites, and BPS would run all of "
        f"it at computeSite. Use panda_bps campaign submit, or set {SECTION}: {{enabled: no}}."
    ]


def _complaints(check: Callable[[], object]) -> list[str]:
    """Return the text of the error that a check raises, if it does."""
    try:
        check()
    except SettingsError as error:
        return [str(error)]
    return []


def _graph_problems(command: GraphCommand, directory: str) -> list[str]:
    """Find out whether the path of the quantum graph survives the command
    that makes it: BPS puts it in and splits the line like a shell.
    """
    if unset := sorted(variables_in(directory)):
        return [
            f"submitPath is {directory!r}, but the environment variable {unset[0]} is not set. Set it, or "
            "set submitPath to another directory."
        ]
    graph = command.path
    try:
        words = shlex.split(command.line)
        whole = "$" not in graph and any(graph in word for word in words)
    except ValueError:
        whole = not set(graph) & set("'\"\\")
    if whole or "{qgraphFile}" not in command.written:
        return []
    bad = {character for character in graph if character in "'\"\\$" or character.isspace()}
    listed = " ".join(map(repr, sorted(bad)))
    return [
        f"submitPath is {directory!r}; BPS cannot make a quantum graph in a directory whose name holds "
        f"{listed}. Set submitPath to another one."
    ]


def _wrong_values(lookup: KeyLookup, labels: Iterable[str]) -> list[str]:
    """Find values that cannot be used, also those for a label."""
    problems: list[str] = []
    for name, key in {**KEYS, **CORE_KEYS}.items():
        for label in ["", *labels] if key.per_label else [""]:
            problems += _complaints(partial(lookup.get, name, label, raw=True))
    return list(dict.fromkeys(problems))


def _area_problems(lookup: KeyLookup, environment: Mapping[str, str]) -> list[str]:
    """Find out where the staging area is, and whether it can be written."""
    try:
        area, _ = expand_area(
            lookup.get("fileDistributionEndPoint", raw=True).strip(),
            lookup.get("fileDistributionEndPointDefault", raw=True).strip(),
            lookup.get("computeSite"),
            environment,
        )
        permissions = lookup.get("groupPermissions")
    except SettingsError as error:
        return [str(error)]
    return list(check_area(StagingSettings(area=area, group_permissions=permissions)))


def _missing_commands(command: GraphCommand, environment: Mapping[str, str]) -> list[str]:
    """Find commands that BPS is to run here and that are not there."""
    key = command.key
    try:
        word = shlex.split(command.written)[0]
    except (IndexError, ValueError):
        return []
    for name, value in environment.items():
        word = word.replace(f"${{{name}}}", value)
    if "$" in word or "{" in word:
        return [
            f"{key} begins with {word}, which has a variable without value. Set it, or set {key} to a "
            "command that is on PATH."
        ]
    if shutil.which(word, path=environment.get("PATH", os.defpath)):
        return []
    return [f"{key} runs {word}, which is not there (PATH is {environment.get('PATH', '')!r})."]


def _missing_inputs(command: GraphCommand, environment: Mapping[str, str]) -> list[str]:
    """Find what the quantum graph is made from and that is not there.

    URIs are left to those who read them, and so are names without a slash:
    they may be a Butler's in the index of repositories.  What a command of
    the user's own can see, in a container perhaps, is not known.
    """
    problems: list[str] = []
    if not re.match(r"(\S*/)?pipetask\s", command.written):
        return problems
    for given in command.inputs:
        key, raw = given.key, given.written
        if given.is_evaluated or not raw:
            continue
        if unset := sorted(name for name in variables_in(raw) if not environment.get(name)):
            if _is_in_package(raw.partition("#")[0]):
                continue
            problems.append(
                f"{key} is {raw!r}, but the environment variable {unset[0]} is not set. Set it "
                f"(if it ends in _DIR: setup that product of an LSST stack), or set {key} to a path."
            )
            continue
        path = os.path.expanduser(given.value.partition("#")[0])
        if "/" in path and "{" not in path and "://" not in path and not os.path.exists(path):
            problems.append(f"{key} is {given.value!r}, which is not there. Is this the machine that has it?")
    return problems


def _is_in_package(path: str) -> bool:
    """Find out whether a Python package has what an LSST stack keeps in the
    directory of a product: `lsst.resources` looks there for
    ``${PRODUCT_DIR}/...`` where no such variable is set.
    """
    try:
        return bool(ResourcePath(path).exists())
    except (OSError, ValueError):
        return False


def check_run(plan: WorkflowPlan, settings: RunSettings, config: BpsConfig) -> tuple[list[str], list[str]]:
    """Check a plan and its staging area.

    Parameters
    ----------
    plan : `WorkflowPlan`
        The plan.
    settings : `RunSettings`
        Settings of the run.
    config : `~lsst.ctrl.bps.BpsConfig`
        Its configuration, for the limits of queues.

    Returns
    -------
    problems : `list` [`str`]
        What is wrong with the run, a text each.
    area_problems : `list` [`str`]
        What is wrong with its staging area.
    """
    problems = _name_problems(plan.run.name)
    tasks, unknown = (*plan.tasks, *plan.final), []
    try:
        queues_of = _QueueSource(RunConfiguration(config))
        problems += find_misfits(tasks, queues_of)
        unknown = find_unknown_queues(tasks, queues_of)
    except SettingsError as error:
        problems.append(str(error))
    separated, doubts = find_separated(plan, config, share_files=settings.sites_share_files)
    for doubt in (*unknown, *doubts):
        _LOG.warning("%s", doubt)
    return [*problems, *separated], list(check_area(settings.staging))


class _QueueSource:
    """Gives the queues of sites: those of the configuration win."""

    def __init__(self, run: RunConfiguration) -> None:
        self._own = read_queues(run.queues, source="BPS configuration")

    def __call__(self, site: str) -> tuple[QueueLimits, ...]:
        known = read_queues(sites.profile_of(site).get("queues"), source=f"profile of {site}")
        by_name = {queue.name: queue for queue in (*known, *self._own)}
        return tuple(by_name.values())


def _name_problems(name: str) -> list[str]:
    """Check the name of a run."""
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
    return problems
