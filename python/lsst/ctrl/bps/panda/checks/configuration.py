"""Checks of a configuration and of the server, before there is a quantum
graph and before anything is staged or sent.
"""

from __future__ import annotations

__all__ = ["check_configuration", "check_service"]

import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial

from lsst.resources import ResourcePath

from lsst.ctrl.bps import BpsConfig

from ..errors import PandaBpsError, SettingsError
from ..findings import Finding, Severity
from ..rest.faults import diagnose
from ..rucio.checks import check_registration
from ..runs.client import connect
from ..settings.bps_command import configuration_file, is_dry_run
from ..settings.campaign import SECTION, is_divided
from ..settings.configuration import GraphCommand, RunConfiguration, find_broken_sections
from ..settings.remote import is_remote_build, read_build_settings
from ..settings.run import ServiceSettings, check_area_form, find_area
from ..settings.search import KeyLookup, find_origin
from ..settings.sites import variables_in
from ..staging import StagingSettings
from .plan import check_area, check_run_name

_error = partial(Finding, Severity.ERROR)

# Variables in the commands for quantum graphs that BPS sets later, or leaves out if they are not set.
_OPTIONAL = re.compile(r"qgraphFile|inputQgraphFile|dataQuery|\w+(?:Options|Opts)")


def check_service(settings: ServiceSettings) -> list[Finding]:
    """Check that PanDA can be reached with a log-in that lives long enough."""
    try:
        connection = connect(settings, prompt=True)
        connection.relay.ping()
        # Longer than any log-in lives, and short enough to be added to a date.
        hours = min(settings.token_lifetime, 1e6)
        connection.credentials.ensure_lifetime(timedelta(hours=hours))
    except SettingsError as error:
        return [Finding.from_error(error, Severity.NEEDS_SERVER)]
    except PandaBpsError as error:
        return [Finding(Severity.NEEDS_SERVER, diagnose(error))]
    return []


def check_configuration(config: BpsConfig, environment: Mapping[str, str]) -> list[Finding]:
    """Check what can be checked before there is a quantum graph, except the server of PanDA."""
    if broken := find_broken_sections(config):
        # Nothing can be looked up, neither here nor by BPS.
        return [_error(text) for text in broken]
    lookup = KeyLookup(config, environment)
    run = RunConfiguration(config)
    findings = [
        *map(Finding.from_error, lookup.wrong_values(run.labels)),
        *check_run_name(run.name),
        *_check_division(run),
        *_catch(lambda: run.queues),
    ]
    if is_remote_build(config) and not is_dry_run():
        # Quantum graph, plan and staging are made and checked at the site.
        findings += _catch(lambda: read_build_settings(config, environment))
        findings += _catch(lambda: check_area_form(lookup))
    else:
        graph = None if run.is_command else run.graph_command()
        findings += _check_variables(run, lookup, graph)
        if graph is not None:
            findings += _check_graph_command(graph, environment)
            findings += _check_graph_path(graph, run.submit_path)
            findings += _check_inputs(graph, environment)
        findings += _check_staging_area(lookup, environment)
    findings += check_registration(config, environment)
    return [_locate(finding, run, environment) for finding in findings]


def _locate(finding: Finding, run: RunConfiguration, environment: Mapping[str, str]) -> Finding:
    """Add file and line of the key that a finding is about, unless it has
    them; several places may have the key of a label.
    """
    if finding.file or finding.label or not finding.key:
        return finding
    origin = find_origin(configuration_file(), finding.key, run.written(finding.key), environment)
    return replace(finding, file=origin.file, line=origin.line)


def _catch(check: Callable[[], object]) -> list[Finding]:
    """Return the error that a function raises, if it does."""
    try:
        check()
    except SettingsError as error:
        return [Finding.from_error(error)]
    return []


def _check_division(run: RunConfiguration) -> Iterator[Finding]:
    """Refuse a configuration that is to be divided among several sites."""
    section = run.campaign_sites
    if is_divided(section):
        yield _error(
            f"{SECTION} divides this run among {len(section.get('sites') or ())} sites, and BPS would run "
            f"all of it at computeSite. Use panda_bps campaign submit, or set {SECTION}: {{enabled: no}}.",
            SECTION,
        )


def _check_variables(
    run: RunConfiguration, lookup: KeyLookup, graph: GraphCommand | None
) -> Iterator[Finding]:
    """Find variables without a value, and a runner command without a place for the job's command."""
    checked: list[tuple[str, tuple[str, ...], re.Pattern[str] | None]] = [
        ("runnerCommand", run.labels, None),
        ("fileDistributionEndPoint", (), None),
    ]
    if graph is not None:
        checked.append((graph.key, (), _OPTIONAL))
    for key, labels, optional in checked:
        if not run.is_evaluated(key):
            findings = _catch(partial(lookup.check_variables, key, labels, optional=optional))
            yield from findings
            if key == "runnerCommand" and not findings:
                yield from _check_runner(lookup, labels)


def _check_runner(lookup: KeyLookup, labels: Iterable[str]) -> Iterator[Finding]:
    """Find runner commands without the placeholder for the job's command, or
    with a runner that is not staged.
    """
    try:
        commands = {str(lookup.get("runnerCommand", label)): label for label in ["", *labels]}
        staged = lookup.get("stageRunner")
    except SettingsError:
        return  # found among the values already
    complete = True
    for command, label in commands.items():
        if command and "_cmd_line_" not in command:
            complete = False
            yield _error(
                f"runnerCommand holds no _cmd_line_, the place for the job's command; it is {command!r}"
                f"{f' for label {label}' if label else ''}.",
                "runnerCommand",
                label,
            )
    if complete and not staged and any("_runner_" in command for command in commands):
        yield _error(
            "runnerCommand asks for the staged runner (_runner_), and stageRunner is no. Change one of them.",
            "stageRunner",
        )


def _check_graph_command(graph: GraphCommand, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check that the program that makes the quantum graph exists."""
    key = graph.key
    try:
        word = shlex.split(graph.written)[0]
    except (IndexError, ValueError):
        return
    for name, value in environment.items():
        word = word.replace(f"${{{name}}}", value)
    if "$" in word or "{" in word:
        yield _error(
            f"{key} begins with {word}, which has a variable without value. Set it, or set {key} to a "
            "command that is on PATH.",
            key,
        )
    elif not shutil.which(word, path=environment.get("PATH", os.defpath)):
        yield _error(f"{key} runs {word}, which is not there (PATH is {environment.get('PATH', '')!r}).", key)


def _check_graph_path(graph: GraphCommand, directory: str) -> Iterator[Finding]:
    """Check that the path of the quantum graph remains one word when BPS puts
    it into the command and splits that as a shell does.
    """
    if unset := sorted(variables_in(directory)):
        yield _error(
            f"submitPath is {directory!r}, but the environment variable {unset[0]} is not set. Set it, or "
            "set submitPath to another directory.",
            "submitPath",
        )
        return
    path = graph.path
    try:
        words = shlex.split(graph.line)
        whole = "$" not in path and any(path in word for word in words)
    except ValueError:
        whole = not set(path) & set("'\"\\")
    if whole or "{qgraphFile}" not in graph.written:
        return
    bad = {character for character in path if character in "'\"\\$" or character.isspace()}
    listed = " ".join(map(repr, sorted(bad)))
    yield _error(
        f"submitPath is {directory!r}; BPS cannot make a quantum graph in a directory whose name holds "
        f"{listed}. Set submitPath to another one.",
        "submitPath",
    )


def _check_inputs(graph: GraphCommand, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check that the pipeline, the Butler and a given quantum graph exist.

    Only paths are checked.  A name without a slash may be a Butler's alias in the index of repositories, and
    a command other than ``pipetask`` may see other files, in a container for instance.
    """
    if not re.match(r"(\S*/)?pipetask\s", graph.written):
        return
    for given in graph.inputs:
        key, raw = given.key, given.written
        if given.is_evaluated or not raw:
            continue
        if unset := sorted(name for name in variables_in(raw) if not environment.get(name)):
            if not _is_in_package(raw.partition("#")[0]):
                yield _error(
                    f"{key} is {raw!r}, but the environment variable {unset[0]} is not set. Set it "
                    f"(if it ends in _DIR: setup that product of an LSST stack), or set {key} to a path.",
                    key,
                )
            continue
        path = os.path.expanduser(given.value.partition("#")[0])
        if "/" in path and "{" not in path and "://" not in path and not os.path.exists(path):
            yield _error(
                f"{key} is {given.value!r}, which is not there. Is this the machine that has it?", key
            )


def _is_in_package(path: str) -> bool:
    """Tell whether a Python package has the file: where ``PRODUCT_DIR`` is not set, `lsst.resources` looks
    for ``${PRODUCT_DIR}/...`` in the package of that product.
    """
    try:
        return bool(ResourcePath(path).exists())
    except (OSError, ValueError):
        return False


def _check_staging_area(lookup: KeyLookup, environment: Mapping[str, str]) -> list[Finding]:
    """Find the staging area, and check that it can be written."""
    try:
        area, _ = find_area(lookup, environment)
        permissions = lookup.get("groupPermissions")
    except SettingsError as error:
        return [Finding.from_error(error, Severity.NEEDS_SERVER)]
    return check_area(StagingSettings(area=area, group_permissions=permissions))
