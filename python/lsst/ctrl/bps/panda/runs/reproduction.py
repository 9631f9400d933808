"""A job of a run, set up on this machine: its staged files, its quanta, and scripts that run it as its worker
did, with its outputs in a directory of their own.

The quantum graph is a copy that holds the job's quanta only, whose outputs are in a RUN collection of the
copy's own; the Butler configuration reads the run's datastore and writes to the directory.  So nothing of the
run can be changed, whatever the payload does with its Butler.
"""

from __future__ import annotations

__all__ = ["Reproduction", "explain_difference", "set_up"]

import json
import os
import re
import shlex
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from string import Template
from typing import Any
from uuid import UUID

from lsst.daf.butler import ButlerConfig, Config
from lsst.pipe.base.quantum_graph import PredictedQuantumGraphComponents
from lsst.resources import ResourcePath

from ..edgenode import cmd_line_decoder as runner
from ..errors import PandaBpsError, StagingError
from ..files import write_text
from ..plan.commands import locate_runner, make_shell_safe
from ..plan.graph import GRAPH_KEY
from ..plan.model import JobPlan, TaskPlan
from ..settings.run import RUNNER_NAME
from ..staging.sources import MANIFEST_NAME, Digest, Manifest, digest_file, parse_manifest, render_manifest
from ..staging.transfers import describe_cause
from ..status.records import JobRecord
from ..status.verdicts import PACKAGED_RULES
from ..status.vocabulary import OUT_OF_MEMORY, OUT_OF_TIME
from .files import PARAMETERS_DIRECTORY, find_resource, read_plan
from .jobs import CALL, RunJobs, shard_of
from .record import RunRecord

_PIPETASK = re.compile(
    r"(?<![\w/-])(?:\S*/)?pipetask\s.*?\s(run-qbb|pre-exec-init-qbb)\s+(\S+)\s+(\S+)", re.DOTALL
)
"""The calls of pipetask that use no registry: which one, the Butler and the quantum graph."""

_USES_REGISTRY = re.compile(r"(?<![\w.-])(?:butler|pipetask)\s")

_DIFFERENCES = {
    OUT_OF_MEMORY: "It ended for lack of memory; here nothing limits it, unless you do (ulimit -v, in kB).",
    OUT_OF_TIME: "It ended because its time was over; here nothing limits that.",
    "cancelled": "It was cancelled, so what it would have ended with is not known.",
    "preempted": "The batch system took its slot back, so what it would have ended with is not known.",
    "lost heartbeat": "PanDA lost it with its node or its batch job: that does not come back here.",
    "node": "The error came from one node only, which this machine is not.",
    "site": "The site could not run it, whatever the payload is: that does not come back here.",
    "log-in": "The credentials of the worker or its site were refused; here yours are used.",
    "environment": "A command or module was not found: this machine's software need not be the worker's.",
    "storage": "The files of this machine are not those of the worker: what it lacks is not lacking here.",
    "scheduling": "PanDA gave it up before it ran, so there is nothing to compare with.",
}
"""Why a job may end otherwise here, by the verdict on how it ended."""

_RUN_SCRIPT = """\
#!/bin/bash
# {title}
# Its outputs are put below {directory}/outputs, which is emptied first.
rm -rf {work} {outputs} && mkdir {work} {outputs} && cd {work} || exit 73
exec env -i {variables} /bin/bash {command}
"""

_DEBUGGER = '''\
"""Runs the payload on this terminal: pipetask with a post-mortem debugger, and any other command in a shell,
from which the user starts it.
"""

import os
import re
import signal
import subprocess
import sys

sys.path.insert(0, {area!r})
import {module} as runner


def run_payload(command, environment, signals, *, monitor=False):
    """Take the place of the runner's own function."""
    debugged = re.sub(r"(\\s)(run-qbb)(\\s)", r"\\1\\2 --pdb=pdb\\3", command, count=1)
    words = ["/bin/bash", "-c", debugged]
    if debugged == command:
        print("This is the job's work directory and environment. The command is:", command, sep="\\n")
        words = ["/bin/bash", "--norc", "-i"]
    for number in signals.handled:
        signal.signal(number, signal.SIG_IGN)

    def restore():
        for number in signals.handled:
            signal.signal(number, signal.SIG_DFL)

    code = subprocess.call(words, env=environment, preexec_fn=restore)
    return 128 - code if code < 0 else code


runner.run_payload = run_payload
sys.exit(runner.main(sys.argv[1:], os.environb))
'''

_CELL = """\
# {title}
from lsst.daf.butler import QuantumBackedButler
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.single_quantum_executor import SingleQuantumExecutor

graph = PredictedQuantumGraph.read_execution_quanta({graph!r})
types = {{node.name: node.dataset_type for node in graph.pipeline_graph.dataset_types.values()}}


def make_butler(quantum):
    return QuantumBackedButler.initialize(
        {butler!r}, quantum, graph.pipeline_graph.universe, dataset_types=types
    )


executor = SingleQuantumExecutor(limited_butler_factory=make_butler, clobber_outputs=True)
for label, quanta in graph.quanta_by_task.items():
    for quantum_id in quanta.values():
        quantum = graph.build_execution_quanta([quantum_id])[quantum_id]
        executor.execute(graph.pipeline_graph.tasks[label], quantum, quantum_id)
"""


@dataclass(frozen=True, slots=True)
class Reproduction:
    """A job that is set up in a directory of this machine."""

    directory: Path
    run: Path
    """Script that runs the job; it ends with the job's exit code."""

    debug: Path
    """Script that runs it under a debugger, on a terminal."""

    cell: str
    """Program for a cell of a notebook; empty unless the command is ``pipetask run-qbb``."""

    line: str
    """The payload's command line, all placeholders replaced; empty if that cannot be done."""

    notes: tuple[str, ...] = ()
    """What is not as it was on the worker, a sentence each."""


def set_up(
    jobs: RunJobs,
    record: RunRecord,
    place: tuple[TaskPlan, JobPlan],
    directory: Path,
    *,
    attempt: JobRecord,
    environment: Mapping[str, str],
    shell: Mapping[str, str],
) -> Reproduction:
    """Set up a job in a directory, which must not exist or be empty.

    ``attempt`` is the one to repeat, ``environment`` that of its worker before the job's command, and
    ``shell`` that of the user, with which variables in the Butler's location are replaced.

    `PandaBpsError` is raised for a job that may write to a Butler's registry, such as the final job, and for
    one whose files can be had neither from the staging area nor from the submit directory.
    """
    task, job = place
    call = jobs.call(task)
    if call is None:
        raise PandaBpsError(
            f"Job {job.name} cannot be set up here: the command of task {task.name} does not call the "
            "runner in a form that is known here."
        )
    found = _PIPETASK.search(call.command)
    rest = call.command.replace(found[0], "") if found else call.command
    if call["final"] != "no" or _USES_REGISTRY.search(rest):
        raise PandaBpsError(
            f"Job {job.name} cannot be set up here: it may write to the registry of the run's Butler, so "
            "that repeating it would change the run's collections. bps restart runs it again."
        )
    _make_empty(directory)
    setup = _SetUp(directory, record, call, job)
    if found is None:
        setup.copy_files(None)
    else:
        setup.copy_files(jobs.quanta(task, job) if found[1] == "run-qbb" else [])
        setup.write_butler(Template(_as_variables(found[2])).safe_substitute(shell))
    return setup.write_scripts(task, found, attempt=attempt, environment=environment)


def explain_difference(attempt: JobRecord) -> str:
    """Explain why a job need not end here as it did; empty if it should."""
    if not attempt.errors:
        return ""
    return _DIFFERENCES.get(PACKAGED_RULES.find_verdict(attempt.errors).name, "")


def _as_variables(word: str) -> str:
    """Return a word of a command with its placeholders for variables as a shell writes variables."""
    return re.sub(r"<ENV:(\w+)>", r"${\1}", word).strip("\"'")


def _make_empty(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise PandaBpsError(
                f"{directory} is not empty; name another directory with --directory, or remove it."
            )
    except OSError as error:
        raise PandaBpsError(f"{directory} cannot be made: {error.strerror}.") from error


class _SetUp:
    """The directory of a job while it is filled."""

    def __init__(self, directory: Path, record: RunRecord, call: runner.Arguments, job: JobPlan) -> None:
        self._record = record
        self._call = call
        self._job = job
        self._directory = directory
        self._area = directory / "area"
        self._graph = dict(call.files).get(GRAPH_KEY, "")
        self._butler = directory / "butler.yaml"
        self._notes: list[str] = []
        self._area.mkdir()

    # --- files ----------------------------------------------------------------

    def copy_files(self, quanta: Collection[UUID] | None) -> None:
        """Copy what the job has in the staging area, of its quantum graph some quanta; `None` copies all.

        A file that is missing there will be missing here, and one that is damaged there will be found out by
        its manifest here, too.
        """
        names = [name for _, name in self._call.files if name != self._graph]
        names += filter(None, [RUNNER_NAME, shard_of(self._call, self._job)])
        area = runner.open_area(self._call.area)
        try:
            if isinstance(area, runner.LocalArea):
                os.stat(area.root)
            manifest = _read_manifest(area)
        except (OSError, runner.FailureError) as error:
            self._copy_from_submit_directory(names, quanta, describe_cause(error))
            return
        for name in names:
            self._copy(area, name)
        copied = {path.relative_to(self._area).as_posix() for path in self._area.rglob("*")}
        digests = {name: digest for name, digest in manifest.files.items() if name in copied}
        if self._graph:
            digests |= self._copy_graph(area, manifest, quanta)
        if digests:
            write_text(self._area / MANIFEST_NAME, [render_manifest(Manifest(digests))])

    def _copy(self, area: Any, name: str) -> None:
        target = self._area / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if name.endswith("/"):
                target.mkdir(exist_ok=True)
                for each in area.tree(name):
                    if not each.endswith("/"):
                        self._copy(area, each)
                return
            with target.open("wb") as stream:
                for chunk in area.chunks(name):
                    stream.write(chunk)
            target.chmod(0o600 | area.mode(name) & 0o111)
        except FileNotFoundError:
            target.unlink() if target.is_file() else target.rmdir()
            self._notes.append(f"{name} is missing here, as it is in the staging area {self._call.area}.")
        except (OSError, runner.FailureError) as error:
            if not isinstance(area, runner.LocalArea):
                raise StagingError(
                    f"{name} cannot be read in the staging area {self._call.area}: {describe_cause(error)}."
                ) from error
            # What may not be read, or is no file, is the same through a link.
            target.unlink()
            target.symlink_to(os.fsdecode(area.path(name)))

    def _copy_graph(
        self, area: Any, manifest: Manifest, quanta: Collection[UUID] | None
    ) -> dict[str, Digest]:
        """Copy the quantum graph, and return what the manifest is to say of it."""
        name = self._graph
        digest = manifest.files.get(name)
        place = find_resource(self._call.area, directory=True).join(name)
        # A damaged graph is copied as it is, so that the runner finds that out.
        sound = not place.isLocal or (
            os.path.isfile(place.ospath) and digest in (None, digest_file(place.ospath))
        )
        if sound and quanta is not None and self._reduce_graph(place, quanta):
            return {name: digest_file(str(self._area / name))} if digest is not None else {}
        self._copy(area, name)
        return {name: digest} if digest is not None else {}

    def _reduce_graph(self, place: ResourcePath, quanta: Collection[UUID]) -> bool:
        """Write a quantum graph with some quanta of another one, or with what is before the first, and with
        the outputs in another RUN collection; return whether the other one could be read.
        """
        try:
            graph = PredictedQuantumGraphComponents.read_execution_quanta(place, quanta)
        except Exception as error:  # each store, and each version of the format, has errors of its own
            self._notes.append(f"The quantum graph cannot be read here: {describe_cause(error)}.")
            return False
        _move_outputs(graph, f"reproduced/{graph.header.output_run}", init=not quanta)
        graph.write(str(self._area / self._graph))
        return True

    def _copy_from_submit_directory(
        self, names: list[str], quanta: Collection[UUID] | None, reason: str
    ) -> None:
        """Take the files from where they were staged from."""
        sources = {file.name: file.source for file in read_plan(self._record.submit_path).files}
        parameters = self._record.origin_directory / PARAMETERS_DIRECTORY
        for name in filter(None, [*names, self._graph]):
            plain = name.rstrip("/")
            source = Path(sources.get(plain, parameters / plain))
            if not source.exists():
                raise StagingError(
                    f"The staging area {self._call.area} cannot be read here ({reason}), and there is no "
                    f"{source} for {plain}. Set the job up on a machine that sees the staging area."
                )
            target = self._area / plain
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target)
            elif (
                name != self._graph
                or quanta is None
                or not self._reduce_graph(find_resource(str(source), directory=False), quanta)
            ):
                shutil.copy(source, target)
        self._notes.append(
            f"The staging area {self._call.area} cannot be read here ({reason}): the files are those of the "
            "submit directory, so a failure because of a file that is missing or damaged in the area does "
            "not come back."
        )

    # --- the Butler -------------------------------------------------------------

    def write_butler(self, location: str) -> None:
        """Write the configuration of a Butler without a registry that reads the datastore of another one, and
        writes to the directory.
        """
        try:
            read = ButlerConfig(location)
        except Exception as error:  # each store has errors of its own
            raise PandaBpsError(
                f"The run's Butler {location} cannot be read here: {describe_cause(error)}. Set the job up "
                "on a machine that sees it."
            ) from error
        config, root = Config(read), read.configDir
        where = str(config.get("root") or (root.geturl() if root is not None else location))
        found = config["datastore"].toDict()
        children = [each["datastore"] for each in found["datastores"]] if "datastores" in found else [found]
        own = json.loads(json.dumps(next((each for each in children if "root" in each), children[0])))
        own |= {"root": f"{self._directory}/outputs", "name": "reproduced", "create": True}
        own["records"] = {"table": "reproduced_records"}
        for each in children:
            if "root" in each:
                # What the quantum graph knows of files is listed by the names of datastores.
                each.setdefault("name", f"{each['cls'].rpartition('.')[2]}@{each['root']}")
                each["root"] = str(each["root"]).replace("<butlerRoot>", where)
                each["create"] = False
        del config["registry"]
        config["root"] = str(self._directory)
        config["datastore"] = {
            "cls": "lsst.daf.butler.datastores.chainedDatastore.ChainedDatastore",
            "datastores": [{"datastore": each} for each in (own, *children)],
            "datastore_constraints": [
                {"constraints": {"accept": ["all"]}},
                *({"constraints": {"reject": ["all"]}} for _ in children),
            ],
        }
        config.dumpToUri(str(self._butler))

    # --- scripts ----------------------------------------------------------------

    def write_scripts(
        self,
        task: TaskPlan,
        found: re.Match[str] | None,
        *,
        attempt: JobRecord,
        environment: Mapping[str, str],
    ) -> Reproduction:
        """Write the scripts that run the job, and tell what they are."""
        title = f"Job {self._job.name} of {self._record.name}"
        match = CALL.search(task.command)
        assert match is not None
        words = self._words(match[5], attempt, found)
        debugger = self._directory / "debugger.py"
        module = RUNNER_NAME.removesuffix(".py")
        write_text(debugger, [_DEBUGGER.format(area=str(self._area), module=module)])
        scripts = {}
        for name, program in (("run", self._area / RUNNER_NAME), ("debug", debugger)):
            command = self._directory / f"{name}_command.sh"
            write_text(command, [self._command(task.command, match, words, program), "\n"], mode=0o700)
            script = self._directory / f"{name}.sh"
            write_text(script, [self._script(title, command, environment)], mode=0o700)
            scripts[name] = script
        is_quanta = found is not None and found[1] == "run-qbb"
        cell = _CELL.format(title=title, graph=str(self._area / self._graph), butler=str(self._butler))
        return Reproduction(
            self._directory,
            run=scripts["run"],
            debug=scripts["debug"],
            cell=cell if is_quanta else "",
            line=self._line(words, environment),
            notes=tuple(self._notes),
        )

    def _script(self, title: str, command: Path, environment: Mapping[str, str]) -> str:
        paths = {"work": self._directory / "work", "outputs": self._directory / "outputs", "command": command}
        return _RUN_SCRIPT.format(
            title=title.replace("\n", " "),
            directory=self._directory,
            variables=" ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items()),
            **{name: shlex.quote(str(path)) for name, path in paths.items()},
        )

    def _words(self, more: str, attempt: JobRecord, found: re.Match[str] | None) -> list[str]:
        """Return the arguments of the runner; ``more`` are its options in the run."""
        call = self._call
        text = call.command
        if found is not None:
            text = text[: found.start(2)] + make_shell_safe(str(self._butler)) + text[found.end(2) :]
        here = make_shell_safe(f"{self._area}/")
        for area in dict.fromkeys((call.area, make_shell_safe(call.area))):
            text = text.replace(area, here)
        options = dict(word[2:].split("=", 1) for word in more.split())
        options |= {"attempt": str(max(0, attempt.attempt - 1)), "prmon": "no"}
        # An earlier attempt's code is no reason not to run it here.
        options.pop("retry-unless-exit", None)
        if call["outputs"]:
            outputs = [
                (key, f"{self._directory}/outputs/{runner.output_name(place)}")
                for key, place in call["outputs"]
            ]
            options["outputs"] = runner.quote(runner.encode_outputs(outputs))
        return [
            runner.encode_command(text),
            self._job.pseudo_input,
            runner.encode_area(f"{self._area}/"),
            runner.encode_files(call.files),
            runner.encode_direct(call.direct),
            *(f"--{name}={value}" for name, value in sorted(options.items())),
        ]

    def _command(self, command: str, call: re.Match[str], words: list[str], program: Path) -> str:
        """Return what PanDA runs, with other arguments of another runner."""
        text = command[: call.start()] + " ".join(words) + command[call.end() :]
        area = self._record.staging_area
        before = locate_runner(area, RUNNER_NAME)
        if before not in text:
            note = (
                "The command calls the site's own runner, which has to be here, too; --debug has no effect."
            )
            self._notes = list(dict.fromkeys((*self._notes, note)))
        return text.replace(before, shlex.quote(str(program)))

    def _line(self, words: list[str], environment: Mapping[str, str]) -> str:
        """Return the payload's command line; empty if the runner would fail before it."""
        arguments = runner.Arguments(words)
        names = {key: name.rstrip("/") for key, name in arguments.files}
        variables = {os.fsencode(name): os.fsencode(value) for name, value in environment.items()}
        try:
            values = runner.find_values(arguments, runner.Fetcher(arguments))
            return runner.make_command(arguments, values, names, lambda: arguments["attempt"], variables)
        except (OSError, runner.FailureError) as error:
            self._notes.append(f"The payload's command line cannot be made: {error}.")
            return ""


def _read_manifest(area: Any) -> Manifest:
    """Read the manifest of a staging area; an empty one if there is none, or it is damaged."""
    try:
        return parse_manifest(b"".join(area.chunks(MANIFEST_NAME)))
    except (FileNotFoundError, ValueError):
        return Manifest({})


def _move_outputs(graph: PredictedQuantumGraphComponents, run: str, *, init: bool) -> None:
    """Put the outputs of the quanta, or those before the first, into another RUN collection.

    Names of files hold that of their collection, so that none is that of a file of the run.
    """
    moved = graph.init_quanta.root if init else [*graph.quantum_datasets.values()]
    outputs = {dataset_id for each in moved for dataset_id in each.iter_output_dataset_ids()}
    for each in moved:
        for dataset in chain(*each.inputs.values(), *each.outputs.values()):
            if dataset.dataset_id in outputs:
                dataset.run = run
    graph.header.output_run = run
    graph.set_thin_graph()
    graph.set_header_counts()
