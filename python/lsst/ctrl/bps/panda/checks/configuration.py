"""Checks of a configuration and of the server, before there is a quantum
graph and before anything is staged or sent.
"""

from __future__ import annotations

__all__ = [
    "check_arguments",
    "check_configuration",
    "check_payloads",
    "check_service",
    "check_values",
    "find_new_name",
    "read_labels",
]

import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

from lsst.pipe.base import Pipeline
from lsst.resources import ResourcePath
from lsst.utils import doImport

from lsst.ctrl.bps import BpsConfig

from ..errors import PandaBpsError, SettingsError
from ..findings import Finding, Severity, did_you_mean
from ..rest.faults import diagnose
from ..rucio.checks import check_registration
from ..runs.client import connect
from ..runs.files import RECORD_NAME
from ..runs.submit import refuse_known
from ..settings.bps_command import configuration_file, is_dry_run
from ..settings.campaign import SECTION, is_divided
from ..settings.configuration import GraphCommand, GraphInput, RunConfiguration, find_broken_sections
from ..settings.files import find_origin
from ..settings.keys import SET_UP_KEYS
from ..settings.remote import REQUEST_VARIABLE, is_remote_build, read_build_settings
from ..settings.run import ServiceSettings, check_area_form, find_area
from ..settings.search import KeyLookup
from ..settings.sites import variables_in
from ..settings.variables import find_broken_texts, find_generators
from ..staging import StagingSettings
from .plan import check_area, check_run_name

_error = partial(Finding, Severity.ERROR)

_REPOSITORY_VARIABLES = frozenset({"DAF_BUTLER_REPOSITORIES", "DAF_BUTLER_REPOSITORY_INDEX"})

_PROBE = 65536
"""How many bytes there must be room for in a submit directory."""

_CLUSTERING = "lsst.ctrl.bps.quantum_clustering_funcs"

# Variables in the commands for quantum graphs that BPS sets later, or leaves out if they are not set.
_OPTIONAL = re.compile(r"qgraphFile|inputQgraphFile|dataQuery|\w+(?:Options|Opts)")


def find_new_name(config: BpsConfig, environment: Mapping[str, str]) -> str:
    """Return the name of a run that no server can know yet.

    It is empty at the site of a remote build, whose request has the name, and if the submission may be one
    that was interrupted, since its submit directory has a record.
    """
    run = RunConfiguration(config)
    if environment.get(REQUEST_VARIABLE):
        return ""
    return "" if os.path.exists(os.path.join(run.submit_path, RECORD_NAME)) else run.name


def check_service(settings: ServiceSettings, run_name: str = "") -> list[Finding]:
    """Check that PanDA can be reached with a log-in that lives long enough, and has no run of a name."""
    try:
        connection = connect(settings, prompt=True)
        connection.relay.ping()
        # Longer than any log-in lives, and short enough to be added to a date.
        hours = min(settings.token_lifetime, 1e6)
        connection.credentials.ensure_lifetime(timedelta(hours=hours))
        if run_name and not check_run_name(run_name):
            refuse_known(connection.relay, run_name)
    except SettingsError as error:
        return [Finding.from_error(error, Severity.NEEDS_SERVER)]
    except PandaBpsError as error:
        return [Finding(Severity.NEEDS_SERVER, diagnose(error))]
    return []


def check_values(config: BpsConfig, environment: Mapping[str, str]) -> list[Finding]:
    """Check all values that mean the same before and after the quantum graph is made."""
    if sections := find_broken_sections(config):
        # Nothing can be looked up, neither here nor by BPS.
        return [_error(text) for text in sections]
    return _check_values(*find_broken_texts(config, environment), environment)


def _check_values(
    errors: list[SettingsError], config: BpsConfig, environment: Mapping[str, str]
) -> list[Finding]:
    """Check values in the configuration without its broken texts, about which there are errors."""
    broken_keys = {key for error in errors for key in (error.key, error.key.rpartition(".")[2])}
    lookup = KeyLookup(config, environment)
    run = RunConfiguration(config)
    findings = [
        *map(Finding.from_error, lookup.wrong_values(run.labels)),
        *check_run_name(run.name),
        *_check_graphs_of_jobs(run),
        *_catch(lambda: run.queues),
    ]
    generated = bool(find_generators(config))
    return [
        *map(Finding.from_error, errors),
        *(
            _locate(finding, run, environment)
            for finding in findings
            if finding.key not in broken_keys and not (generated and lookup.missing_variables(finding.key))
        ),
    ]


def check_configuration(config: BpsConfig, environment: Mapping[str, str]) -> list[Finding]:
    """Check what can be checked before there is a quantum graph, except the
    server of PanDA.

    Values that depend on what BPS generates later (``bpsGenerateConfig``) are
    left to `check_values` after that.
    """
    if sections := find_broken_sections(config):
        return [_error(text) for text in sections]
    errors, config = find_broken_texts(config, environment)
    findings = _check_values(errors, config, environment)
    known = {finding.key.rpartition(".")[2] for finding in findings}
    lookup = KeyLookup(config, environment)
    run = RunConfiguration(config)
    generators = find_generators(config)
    found = [*_check_division(run), *_check_generators(config, generators), *_check_submit_path(run)]
    if is_remote_build(config) and not is_dry_run():
        # Quantum graph, plan and staging are made and checked at the site.
        found += _catch(lambda: read_build_settings(config, environment))
        found += _catch(lambda: check_area_form(lookup))
    elif run.is_command:
        found += [*_check_variables(run, lookup, None), *_check_command(run), *check_arguments(config)]
        found += _check_staging_area(lookup, environment)
    else:
        graph = run.graph_command()
        found += _check_variables(run, lookup, graph)
        found += _check_program(graph.key, graph.written, environment)
        found += _check_graph_path(graph, run.submit_path)
        found += _check_inputs(graph, environment)
        found += _check_clustering(run)
        if not (generators and lookup.missing_variables("fileDistributionEndPoint")):
            found += _check_staging_area(lookup, environment)
    found += check_registration(config, environment)
    waiting = {finding.key for finding in found if generators and lookup.missing_variables(finding.key)}
    found = [finding for finding in found if finding.key not in waiting | known]
    return [*findings, *(_locate(finding, run, environment) for finding in found)]


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


def _check_graphs_of_jobs(run: RunConfiguration) -> Iterator[Finding]:
    """Refuse a quantum graph for each job, which no known BPS can write."""
    for path, value in run.find_all("whenSaveJobQgraph"):
        if str(value).upper() != "NEVER":
            yield _error(
                f"{path} is {value!r}, and BPS 30 has lost what writes a quantum graph for each job. Take it "
                "out; each job reads its part of the run's quantum graph.",
                path,
            )


def _check_generators(config: BpsConfig, generators: Mapping[str, str]) -> Iterator[Finding]:
    """Check that BPS can call what is to generate values."""
    for path, text in generators.items():
        # As BPS takes it apart.
        call = re.match(r"(\S+)\((.+)\)", text)
        reason = "" if call else "BPS takes it for no call, which has an argument, if only a blank"
        if call and "." in call[1] and not set("{}()") & set(call[1]):
            reason = _why_not_importable(call[1])
        if reason:
            yield _error(f"{path} is {text!r}: {reason}. Write MODULE.FUNCTION(ARGUMENTS).", path)


def _why_not_importable(name: str) -> str:
    """Return why a function cannot be imported; empty if it can."""
    try:
        return "" if callable(doImport(name)) else f"{name} is no function"
    except Exception as error:
        return f"{name} cannot be imported ({error})"


def _check_submit_path(run: RunConfiguration) -> Iterator[Finding]:
    """Check that BPS can make the submit directory, by making another one."""
    directory = run.submit_path
    if not directory or variables_in(directory):
        return
    path = Path(directory).absolute()
    if os.path.lexists(path):
        yield _error(
            f"submitPath is {directory!r}, which is there already; BPS makes a new directory for each run. "
            "Use another outputRun or submitPath, with {timestamp} in it for instance.",
            "submitPath",
        )
        return
    above = next(each for each in path.parents if os.path.lexists(each))
    try:
        with TemporaryDirectory(dir=above, prefix=".bps-check-") as probe:
            Path(probe, "file").write_bytes(bytes(_PROBE))
    except OSError as error:
        yield _error(
            f"submitPath is {directory!r}, and nothing can be written in {above}: {error.strerror}. Use "
            "another submitPath, or make room.",
            "submitPath",
        )


def _check_command(run: RunConfiguration) -> Iterator[Finding]:
    """Check that the files of a run of ``bps submitcmd`` exist."""
    for key, file in run.command_files:
        if not Path(file).is_file():
            yield _missing(key, file)


def check_arguments(config: BpsConfig) -> Iterator[Finding]:
    """Tell of ``{names}`` in the arguments of a run of ``bps submitcmd`` that BPS passes on as they stand."""
    section = RunConfiguration(config).section("customJob")
    files = [*(section.get("inputs") or ()), *(section.get("outputs") or ())]
    for name in dict.fromkeys(
        re.findall(r"(?<![{$])\{([A-Za-z_]\w*)\}", str(section.get("arguments") or ""))
    ):
        if name not in files:
            yield Finding(
                Severity.WARNING,
                f"customJob.arguments holds {{{name}}}, which is no key of customJob.inputs or outputs, so "
                f"the command gets it as it stands{did_you_mean(name, files, likeness=0.6) or '.'}",
                "customJob.arguments",
            )


def _check_clustering(run: RunConfiguration) -> Iterator[Finding]:
    """Check that BPS can call what makes jobs of quanta."""
    if reason := _why_not_importable(run.cluster_algorithm):
        yield _error(
            f"clusterAlgorithm is {run.cluster_algorithm!r}: {reason}. BPS has single_quantum_clustering and "
            f"dimension_clustering in {_CLUSTERING}.",
            "clusterAlgorithm",
        )


def _check_variables(
    run: RunConfiguration, lookup: KeyLookup, graph: GraphCommand | None
) -> Iterator[Finding]:
    """Find variables without a value, and a runner command without a place for the job's command."""
    checked: list[tuple[str, tuple[str, ...], re.Pattern[str] | None]] = [
        ("runnerCommand", run.labels, None),
        ("fileDistributionEndPoint", (), None),
        ("submitPath", (), None),
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


def _check_program(key: str, written: str, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check that the program with which a command begins exists here."""
    try:
        word = shlex.split(written)[0]
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


def check_payloads(config: BpsConfig, environment: Mapping[str, str]) -> list[Finding]:
    """Check that the programs of the jobs exist on this machine, on which the
    embedded PanDA runs them; a set-up may bring those that are named without
    their directory.
    """
    if find_broken_sections(config):
        return []
    run = RunConfiguration(config)
    commands = [*run.find_all("runQuantumCommand")]
    commands += [
        (f"finalJob.{key}", value) for key, value in run.section("finalJob").items() if key == "command1"
    ]
    has_set_up = any(value for key in SET_UP_KEYS for _, value in run.find_all(key))
    return [
        _locate(finding, run, environment)
        for key, value in commands
        if isinstance(value, str) and (value.startswith("/") or not has_set_up)
        for finding in _check_program(key, value, environment)
    ]


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


def _check_staging_area(lookup: KeyLookup, environment: Mapping[str, str]) -> list[Finding]:
    """Find the staging area, and check that it can be written."""
    try:
        area, _ = find_area(lookup, environment)
        permissions = lookup.get("groupPermissions")
    except SettingsError as error:
        return [Finding.from_error(error, Severity.NEEDS_SERVER)]
    return check_area(StagingSettings(area=area, group_permissions=permissions))


# --- what a quantum graph is made from ---------------------------------------


def _check_inputs(graph: GraphCommand, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check that what a quantum graph is made from exists: the pipeline, with its labels, the Butler, and a
    given graph.

    Only what is on this machine is checked.  A command other than ``pipetask`` may see
    other files, in a container for instance.
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
        yield from _check_butler(given, environment) if key == "butlerConfig" else _check_file(given)


def _missing(key: str, file: str) -> Finding:
    return _error(f"{key} is {file!r}, which is not there. Is this the machine that has it?", key)


def _check_butler(given: GraphInput, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check that a Butler is there: a directory or a file here, or a name in the
    index of repositories.
    """
    uri = ResourcePath(given.value, forceAbsolute=False)
    if uri.isLocal and not ("/" in given.value or uri.exists() or _REPOSITORY_VARIABLES & environment.keys()):
        yield _error(
            f"butlerConfig is {given.value!r}, which is no directory here, and there is no index of names: "
            f"{' and '.join(sorted(_REPOSITORY_VARIABLES))} are not set. Give a path, or set one of them.",
            given.key,
        )
    elif uri.isLocal and "/" in given.value:
        place = Path(uri.ospath)
        if not place.exists():
            yield _missing(given.key, given.value)
        elif place.is_dir() and not Path(place, "butler.yaml").exists():
            yield _error(
                f"butlerConfig is {given.value!r}, which holds no butler.yaml. Give a Butler's directory.",
                given.key,
            )


def _check_file(given: GraphInput) -> Iterator[Finding]:
    """Check a pipeline, with the labels after ``#``, or a quantum graph."""
    name, _, chosen = given.value.partition("#")
    uri = ResourcePath(os.path.expanduser(name), forceAbsolute=False)
    if not (uri.isLocal or uri.scheme == "resource") or "{" in name:
        return
    if not uri.exists():
        yield _missing(given.key, given.value)
    elif given.key == "pipelineYaml":
        try:
            labels, subsets = read_labels(name)
        except SettingsError as error:
            yield Finding.from_error(error)
            return
        names = sorted(labels | subsets)
        for label in filter(None, re.split(r",|\.\.", chosen)):
            if label.strip() not in names:
                meant = did_you_mean(label.strip(), names) or "."
                yield _error(
                    f"pipelineYaml is {given.value!r}, and the pipeline has no {label.strip()}{meant} It has "
                    f"{', '.join(names)}.",
                    given.key,
                )


def _is_in_package(path: str) -> bool:
    """Tell whether a Python package has the file: where ``PRODUCT_DIR`` is
    not set, `lsst.resources` looks for ``${PRODUCT_DIR}/...`` in the package
    of that product.
    """
    try:
        return bool(ResourcePath(path).exists())
    except (OSError, ValueError):
        return False


@cache
def read_labels(pipeline: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the labels of all tasks of a pipeline, and its subsets."""
    try:
        whole = Pipeline.from_uri(pipeline.partition("#")[0])
        return frozenset(whole.task_labels), frozenset(whole.subsets)
    except Exception as error:
        text = f"pipelineYaml is {pipeline!r}, which is no pipeline: {error}. Correct the file or the key."
        raise SettingsError(text, key="pipelineYaml") from error
