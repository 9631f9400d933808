"""The command lines: of a job, as a template for all jobs of a task, and of the task on the worker, with
the files that they name.

One quoting function, `quote`; everything that travels to the runner is
encoded by the runner's own grammar, so that any file name works.
"""

from __future__ import annotations

__all__ = [
    "CommandTemplate",
    "FileLedger",
    "TaskCommands",
    "inert",
    "make_template",
    "quote",
    "render_task_command",
    "resolve_files",
    "split_long_option",
]

import posixpath
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from urllib.parse import quote as percent_encode

from lsst.ctrl.bps import GenericWorkflowExec, GenericWorkflowFile, GenericWorkflowJob

from ..edgenode import cmd_line_decoder as runner
from ..errors import PlanError
from .graph import JobGraph
from .grouping import own_file_key
from .labels import LabelSettings, PlanSettings
from .model import StagedFile
from .naming import NamedJobs, Naming


class FileLedger:
    """Gives each source one name in the staging area, and no two the same.

    Parameters
    ----------
    directories : set of `str`
        Sources that are directories.
    """

    def __init__(self, directories: Set[str]) -> None:
        self._directories = directories
        self._by_source: dict[str, StagedFile] = {}
        self._names: set[str] = set()
        self._numbers: dict[str, int] = {}
        """Number of the directory that a base name was last put below."""

    def enter(self, gwfile: GenericWorkflowFile) -> StagedFile:
        """Enter an input of a job.

        Parameters
        ----------
        gwfile : `~lsst.ctrl.bps.GenericWorkflowFile`
            The file, which is to be transferred.

        Raises
        ------
        PlanError
            Raised if the file has no source.
        """
        if not gwfile.src_uri:
            raise PlanError(f"File {gwfile.name!r} is to be transferred but has no src_uri.")
        return self._enter(gwfile.name, str(gwfile.src_uri), executable=False)

    def enter_executable(self, executable: GenericWorkflowExec) -> StagedFile:
        """Enter an executable that is to be transferred."""
        if not executable.src_uri:
            raise PlanError(f"Executable {executable.name!r} is to be transferred but has no src_uri.")
        return self._enter("job_executable", str(executable.src_uri), executable=True)

    def add(self, staged: StagedFile) -> None:
        """Enter a file under the name that it has."""
        self._by_source[staged.source] = staged
        self._names.add(staged.name)

    def _enter(self, key: str, source: str, *, executable: bool) -> StagedFile:
        """Return the entry of a source, new or known."""
        known = self._by_source.get(source)
        if known is not None:
            return known
        is_directory = source in self._directories or source.endswith("/")
        name = self._free_name(posixpath.basename(source.rstrip("/")) or "file")
        staged = StagedFile(key, source, name, is_directory=is_directory, executable=executable)
        self.add(staged)
        return staged

    def _free_name(self, base: str) -> str:
        """Return a name that nothing has, below a numbered directory if the
        base name is taken.
        """
        name = base
        number = self._numbers.get(base, 1)
        while name in self._names:
            number += 1
            name = f"{number}/{base}"
        self._numbers[base] = number
        return name

    def files(self) -> tuple[StagedFile, ...]:
        """Return all files, sorted by name."""
        return tuple(sorted(self._by_source.values(), key=lambda staged: staged.name))


FILE_PLACEHOLDER = re.compile(r"<FILE:([^>]+)>")
VALUE_PLACEHOLDER = re.compile(r"(?<!\$)\{([^{}\s]+)\}")
ENVIRONMENT_PARAMETER = "environment"
MAX_ARGUMENT = 100_000
"""Longest single argument of a command, bytes; Linux refuses 131072
(``MAX_ARG_STRLEN``, execve(2))."""

PATH_VALUES = frozenset({"butlerConfig", "fileDistributionEndPoint"})
"""Values that are one path or URI, made inert where they stand."""


def quote(text: str) -> str:
    """Quote a text as one word of a shell command."""
    return shlex.quote(text)


def inert(path: str) -> str:
    """Return a path or URI in a form that no shell changes.

    Parameters
    ----------
    path : `str`
        A path, which may hold anything, or a URI.

    Returns
    -------
    text : `str`
        The path itself where it is harmless, else a ``file:`` URI with the
        rest percent-encoded.  Placeholders (``<ENV:X>``) stay.
    """
    if not path or re.fullmatch(r"[\w@%+=:,./~<>${}-]*", path, re.ASCII):
        return path
    if "://" in path:
        return percent_encode(path, safe="/:@%+=,~<>{}$#?&-._")
    if not path.startswith("/"):
        return quote(path)
    return "file://" + percent_encode(path, safe="/@+=,~<>{}$-._")


@dataclass(frozen=True, slots=True)
class CommandTemplate:
    """The command of a kind of job, with placeholders."""

    text: str
    """Command line; ``{name}`` stands for a value, ``<FILE:key>`` for a
    file."""

    names: tuple[str, ...]
    """Names in the text that the job has values for, in order."""


def make_template(job: GenericWorkflowJob, *, executable: str, arguments: str) -> CommandTemplate:
    """Make the command template of a job.

    Parameters
    ----------
    job : `~lsst.ctrl.bps.GenericWorkflowJob`
        A job of the kind.
    executable : `str`
        What to run, as it is to be typed on the worker.
    arguments : `str`
        Its arguments, with placeholders.

    Returns
    -------
    template : `CommandTemplate`
        The whole command: environment, command to be run before, the
        payload, command to be run after.  The exit code is that of the
        payload; if the command before fails, it is that one's.
    """
    parts = [_environment(job)]
    if job.pre_cmdline:
        parts.append(f"{job.pre_cmdline} || exit $?; ")
    parts.append(f"{executable} {arguments}".rstrip())
    if job.post_cmdline:
        parts.append(f"; payloadCode=$?; {job.post_cmdline}; exit $payloadCode")
    text = "".join(parts)
    known = job.cmdvals
    names = dict.fromkeys(name for name in VALUE_PLACEHOLDER.findall(text) if name in known)
    return CommandTemplate(text, tuple(names))


def _environment(job: GenericWorkflowJob) -> str:
    """Render the variables that a job wants to be set."""
    lines = []
    if not isinstance(job.environment or {}, Mapping):
        raise PlanError(
            f"environment of job {job.name!r} (label {job.label!r}) is {job.environment!r}; it must be a "
            "mapping of names to values."
        )
    for name, value in sorted((job.environment or {}).items()):
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise PlanError(
                f"environment variable {name!r} of job {job.name!r} (label {job.label!r}) is not a name "
                "that a shell accepts; use letters, digits and underscores."
            )
        lines.append(f"export {name}={_environment_value(str(value), job)}; ")
    return "".join(lines)


def _environment_value(value: str, job: GenericWorkflowJob) -> str:
    """Quote a variable's value, leaving placeholders in it open.

    What BPS has already replaced is literal text; a placeholder stands
    between double quotes, where the runner escapes what it puts in.
    """
    pieces = re.split(r"(<(?:ENV|WMS|FILE):[^>]+>|(?<!\$)\{[^{}\s]+\})", value)
    rendered = []
    for piece in pieces:
        if not piece:
            continue
        is_value = piece.startswith("{") and piece[1:-1] in job.cmdvals
        if is_value or (piece.startswith("<") and piece.endswith(">") and ":" in piece):
            rendered.append(f'"{piece}"')
        else:
            rendered.append(quote(piece))
    return "".join(rendered) or "''"


def resolve_files(text: str, files: Iterable[GenericWorkflowFile], *, where: str) -> str:
    """Replace ``<FILE:key>`` of files that nobody transfers by their URI.

    Parameters
    ----------
    text : `str`
        Command line.
    files : `~collections.abc.Iterable` \
            [`~lsst.ctrl.bps.GenericWorkflowFile`]
        Inputs and outputs of the job.
    where : `str`
        Whose command it is, for the error.

    Raises
    ------
    PlanError
        Raised if the command names a file that the job does not have.
    """
    by_key = {gwfile.name: gwfile for gwfile in files}

    def replace(match: re.Match[str]) -> str:
        gwfile = by_key.get(match.group(1))
        if gwfile is None:
            raise PlanError(
                f"The command of {where} uses <FILE:{match.group(1)}>, but the job has no such file; "
                f"it has {', '.join(sorted(by_key)) or 'none'}."
            )
        return match.group(0) if gwfile.wms_transfer else inert(str(gwfile.src_uri))

    return FILE_PLACEHOLDER.sub(replace, text)


def split_long_option(template: str, name: str) -> Callable[[str], str]:
    """Return how a long, comma-separated value is put into a command.

    A value of more than `MAX_ARGUMENT` bytes cannot be one argument.  Where
    it follows an option (``--qgraph-node-id {qgraphNodeId}``), the option is
    repeated, each time with a part of the list.

    Parameters
    ----------
    template : `str`
        The command, with the value's placeholder.
    name : `str`
        Name of the value.
    """
    match = re.search(r"(--[\w-]+)([ =])\{" + re.escape(name) + r"\}", template)
    if not match:
        return lambda value: value
    joint = f" {match.group(1)}{match.group(2)}"

    def split(value: str) -> str:
        if len(value) <= MAX_ARGUMENT or "," not in value:
            return value
        parts: list[str] = []
        size = MAX_ARGUMENT
        for item in value.split(","):
            if size + len(item) + 1 > MAX_ARGUMENT:
                parts.append(item)
                size = len(item)
            else:
                parts[-1] += "," + item
                size += len(item) + 1
        return joint.join(parts)

    return split


def render_task_command(
    command: str,
    settings: LabelSettings,
    *,
    area: str,
    files: Sequence[tuple[str, str]],
    direct: Sequence[str],
    options: Mapping[str, str],
    runner_path: str,
) -> str:
    """Render what PanDA runs for each job of a task.

    Parameters
    ----------
    command : `str`
        The payload's command, for the runner.
    settings : `LabelSettings`
        Settings of the label; the runner command is the one of its site.
    area : `str`
        URI of the staging area.
    files : sequence of (`str`, `str`)
        Key and name of each staged file the command uses.
    direct : sequence of `str`
        Keys of the files that are used where they are.
    options : mapping of `str` to `str`
        Options of the runner.
    runner_path : `str`
        The staged runner as it is to be typed; empty for none.

    Returns
    -------
    text : `str`
        One line, with ``${IN/L}`` where PanDA puts the pseudo-input.

    Raises
    ------
    PlanError
        Raised if the runner command leaves no place for ours.
    """
    outer = " ".join(settings.runner_command.split("\n"))
    if "_cmd_line_" not in outer:
        raise PlanError(
            "runnerCommand holds no _cmd_line_, the place for the job's command; "
            f"it is {settings.runner_command!r}."
        )
    words = [
        runner.encode_command(command),
        "${IN/L}",
        runner.encode_area(area),
        runner.encode_files(files),
        runner.encode_direct(direct),
    ]
    words += [f"--{name}={runner.quote(value)}" for name, value in sorted(options.items())]
    if "_runner_" in outer and not runner_path:
        raise PlanError("runnerCommand asks for the staged runner (_runner_), but none is staged.")
    places = {"_runner_": runner_path, "_cmd_line_": " ".join(words)}
    # At once: what is put in, a path perhaps, may hold such a word itself.
    return re.sub("_runner_|_cmd_line_", lambda match: places[match[0]], outer).strip()


EXECUTABLE_KEY = "job_executable"


class TaskCommands:
    """Renders commands, and remembers which files they need.

    Parameters
    ----------
    settings : `PlanSettings`
        Settings of the plan.
    naming : `Naming`
        How jobs are named.
    ledger : `FileLedger`
        Where files get their names.
    """

    def __init__(self, settings: PlanSettings, naming: Naming, ledger: FileLedger) -> None:
        self._settings = settings
        self._naming = naming
        self._ledger = ledger
        if settings.runner is not None:
            ledger.add(settings.runner)

    @staticmethod
    def template(job: GenericWorkflowJob, arguments: str) -> CommandTemplate:
        """Return the command of a job before files have names."""
        executable = job.executable
        if executable is None or not (executable.src_uri or executable.name):
            raise PlanError(f"Job {job.name!r} (label {job.label!r}) has no executable.")
        return make_template(job, executable=str(executable.src_uri or executable.name), arguments=arguments)

    def files(self) -> tuple[StagedFile, ...]:
        """Return all files that the commands rendered so far need."""
        return self._ledger.files()

    def render(
        self,
        graph: JobGraph,
        members: Sequence[int],
        *,
        arguments: str,
        statics: Mapping[str, str],
        named: NamedJobs,
        final: bool,
        payloads_per_job: int,
    ) -> str:
        """Render the command of the tasks of a family.

        Parameters
        ----------
        graph : `JobGraph`
            All jobs.
        members : sequence of `int`
            The family's jobs.
        arguments : `str`
            Their arguments.
        statics : mapping of `str` to `str`
            Values that all of them share.
        named : `NamedJobs`
            All jobs of the label.
        final : `bool`
            Whether this is the final job.
        payloads_per_job : `int`
            Payloads a PanDA job carries.
        """
        job = graph.jobs[members[0]]
        settings = self._settings.of(job.label)
        inputs, outputs = graph.inputs[members[0]], graph.outputs[members[0]]
        shared = [gwfile for gwfile in inputs if gwfile.name != own_file_key(job)]
        executable, files = self._executable(job)
        template = make_template(job, executable=executable, arguments=arguments)
        text = _put_statics(template.text, statics)
        text = self._resolve_environment(text)
        text = resolve_files(text, [*shared, *outputs], where=f"job {job.name!r} (label {job.label!r})")
        text = self._area_exports(job) + text
        direct: list[str] = []
        for gwfile in shared:
            if gwfile.wms_transfer:
                staged = self._ledger.enter(gwfile)
                files.append((gwfile.name, _listed(staged)))
                if gwfile.job_access_remote:
                    direct.append(gwfile.name)
        files += self._naming.task_files()
        return render_task_command(
            text,
            settings,
            area=self._settings.run.staging_area,
            files=sorted(files),
            direct=sorted(direct),
            options=self._options(job, settings, named, outputs, final=final),
            runner_path=self._runner_path(),
        )

    def own_file(self, graph: JobGraph, index: int) -> str:
        """Stage the file that a job has for itself, and return its name as it
        is put into a command.
        """
        job = graph.jobs[index]
        key = own_file_key(job)
        for gwfile in graph.inputs[index]:
            if gwfile.name == key:
                return quote(self._ledger.enter(gwfile).name)
        raise PlanError(f"The command of job {job.name!r} uses <FILE:{key}>, but the job has no such file.")

    def _executable(self, job: GenericWorkflowJob) -> tuple[str, list[tuple[str, str]]]:
        """Return how to call the executable, and its file if it has one."""
        executable = job.executable
        assert executable is not None
        if not executable.transfer_executable:
            return str(executable.src_uri or executable.name), []
        staged = self._ledger.enter_executable(executable)
        return quote(f"./{staged.name}"), [(EXECUTABLE_KEY, staged.name)]

    def _resolve_environment(self, text: str) -> str:
        """Replace the variables that are resolved on the submit side."""
        for name, value in self._settings.submit_environment.items():
            text = text.replace(f"<ENV:{name}>", value)
        return text

    def _area_exports(self, job: GenericWorkflowJob) -> str:
        """Set the variables that a staged script finds the staging area by.

        BPS writes the staging area as it stands in the YAML into the script
        of the final job.
        """
        executable = job.executable
        if executable is None or not executable.transfer_executable:
            return ""
        return "".join(
            f"export {name}={quote(value)}; " for name, value in sorted(self._settings.area_variables.items())
        )

    def _options(
        self,
        job: GenericWorkflowJob,
        settings: LabelSettings,
        named: NamedJobs,
        outputs: Sequence[GenericWorkflowFile],
        *,
        final: bool,
    ) -> dict[str, str]:
        """Return the options of the runner."""
        options = self._naming.options(named)
        options["run"] = self._settings.run.name
        codes = job.retry_unless_exit
        if codes and self._settings.attempt_codes:
            listed = codes if isinstance(codes, list | tuple) else [codes]
            options["retry-unless-exit"] = ",".join(str(_exit_code(code, job)) for code in listed)
        if final:
            options["final"] = "yes"
        if not settings.prmon:
            options["prmon"] = "no"
        if settings.keep_tokens:
            options["keep-tokens"] = "yes"
        returned = [(f.name, str(f.src_uri)) for f in outputs if f.wms_transfer and f.src_uri]
        if returned:
            options["outputs"] = runner.encode_outputs(returned)
        return options

    def _runner_path(self) -> str:
        """Return the staged runner as it is typed on the worker."""
        staged = self._settings.runner
        if staged is None:
            return ""
        area = self._settings.run.staging_area
        if "://" in area and not area.startswith("file://"):
            return _fetch_expression(area + staged.name)
        path = runner.decode_area(area) if area.startswith("file://") else area
        return quote(path.removeprefix("file://") + staged.name)


def _exit_code(value: object, job: GenericWorkflowJob) -> int:
    """Read an exit code of ``retryUnlessExit``."""
    try:
        return int(str(value))
    except ValueError:
        raise PlanError(
            f"retryUnlessExit of label {job.label!r} holds {value!r}; it must be a whole number or a list of "
            "whole numbers."
        ) from None


def _listed(staged: StagedFile) -> str:
    """Name of a staged file as the runner gets it."""
    return staged.name + "/" if staged.is_directory else staged.name


def _put_statics(text: str, statics: Mapping[str, str]) -> str:
    """Put the values that all jobs share into a command."""
    if not statics:
        return text
    pattern = re.compile(r"(?<!\$)\{(" + "|".join(map(re.escape, statics)) + r")\}")
    return pattern.sub(lambda match: statics[match.group(1)], text)


def _fetch_expression(uri: str) -> str:
    """Return ``python3`` arguments that fetch the runner and become it.

    ``http(s)`` needs the standard library only; any other store is read
    with ``lsst.resources``, which such a site has.  What is typed holds no
    quote but the outer ones, so that it may stand between double quotes.
    """
    if uri.startswith(("http://", "https://")):
        read = f"import urllib.request as u; data = u.urlopen({uri!r}, timeout=120).read()"
    else:
        read = f"from lsst.resources import ResourcePath as R; data = R({uri!r}).read()"
    program = (
        f"import os, sys; {read}; open('cmd_line_decoder.py', 'wb').write(data); "
        "os.execv(sys.executable, [sys.executable, 'cmd_line_decoder.py', *sys.argv[1:]])"
    )
    start = "import sys; exec(bytes.fromhex(sys.argv.pop(1)))"
    return f"-c {quote(start)} {runner.encode_command(program)}"
