"""The command lines of payloads and of tasks, and the files that they name.

What travels to the runner is encoded by the runner's own grammar, so that any file name works.
"""

from __future__ import annotations

__all__ = [
    "LINE_END",
    "StagedFileNames",
    "TaskCommands",
    "locate_runner",
    "make_shell_safe",
    "make_template",
    "render_shell_unit",
    "resolve_files",
    "restore_variables",
    "split_long_option",
]

import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from shlex import quote
from urllib.parse import quote as percent_encode

from lsst.ctrl.bps import GenericWorkflowExec, GenericWorkflowFile, GenericWorkflowJob

from ..edgenode import cmd_line_decoder as runner
from ..errors import PlanError
from .graph import JobGraph
from .grouping import Family, own_file_key
from .model import LabelSettings, PlanSettings, StagedFile
from .naming import NamedJobs, Naming

FILE_PLACEHOLDER = re.compile(r"<FILE:([^>]+)>")
VALUE_PLACEHOLDER = re.compile(r"(?<!\$)\{([^{}\s]+)\}")
_OPEN_IN_VALUE = re.compile(
    r"(<(?:ENV|WMS|FILE):[^>]+>|(?<!\$)\{[^{}\s]+\}"
    r"|\$\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}|\$[A-Za-z_]\w*)",
    re.ASCII,
)
"""What is replaced in the value of an environment variable: placeholders, and variables of the shell."""

_ENV_PLACEHOLDER = re.compile(r"<ENV:((?:[^<>]|<ENV:[^<>]*>)+)>")

LINE_END = "\x1f"
"""Stands in a setting for a line end that must stay one: other line ends become blanks."""

MAX_ARGUMENT = runner.LONGEST_ARGUMENT
"""Longest single argument of a command, bytes."""

PATH_VALUES = frozenset({"butlerConfig", "fileDistributionEndPoint"})
"""Values that are one path or URI, made safe for a shell where they stand."""


class StagedFileNames:
    """Gives each source one name in the staging area, and no two sources the same name.

    Some sources are known to be directories; so is one that ends in ``/``.
    """

    def __init__(self, directories: Set[str]) -> None:
        self._directories = directories
        self._by_source: dict[str, StagedFile] = {}
        self._names: set[str] = set()
        # By base name, the number of the directory that it was last put below.
        self._numbers: dict[str, int] = {}

    def assign(self, gwfile: GenericWorkflowFile) -> StagedFile:
        """Give a name to an input that is transferred, unless it has one, and return both."""
        if not gwfile.src_uri:
            raise PlanError(f"File {gwfile.name!r} is to be transferred but has no src_uri.")
        return self._assign(gwfile.name, str(gwfile.src_uri), executable=False)

    def assign_executable(self, executable: GenericWorkflowExec) -> StagedFile:
        """Give a name to an executable that is transferred."""
        if not executable.src_uri:
            raise PlanError(f"Executable {executable.name!r} is to be transferred but has no src_uri.")
        return self._assign(runner.EXECUTABLE, str(executable.src_uri), executable=True)

    def add(self, staged: StagedFile) -> None:
        """Add a file that has its name already."""
        self._by_source[staged.source] = staged
        self._names.add(staged.name)

    def _assign(self, key: str, source: str, *, executable: bool) -> StagedFile:
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
        """Return an unused name, below a numbered directory if the base name is taken."""
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


def make_shell_safe(path: str) -> str:
    """Return a path or URI in a form that no shell changes.

    That is the path itself where it is harmless, else a ``file:`` URI with the rest percent-encoded.
    Placeholders (``<ENV:X>``) stay.
    """
    if not path or re.fullmatch(r"[\w@%+=:,./~<>${}-]*", path, re.ASCII):
        return path
    if "://" in path:
        return percent_encode(path, safe="/:@%+=,~<>{}$#?&-._")
    if not path.startswith("/"):
        return quote(path)
    return "file://" + percent_encode(path, safe="/:@+=,~<>{}$-._")


def render_shell_unit(text: str, *, key: str = "") -> str:
    """Make a text of a user's shell commands a unit of its own: what stands behind it is no part of it.

    With ``key``, the name of the setting, the commands must succeed: if they do not, the job ends there, with
    an exit code that says so.  No quote, dollar or brace is added, since the unit may come to stand between
    double quotes or be searched for variables.
    """
    text = text.strip()
    if not text:
        return ""
    plain = not {"\n", "#"} & set(text) and not text.endswith(("&", "\\", "|"))
    body = f"{text.rstrip('; ')}; " if plain else f"{text}\n".replace("\n", LINE_END)
    if not key:
        return body
    failed = f"echo {key} failed, so the payload was not started >&2"
    return f"if {body}then :; else {failed}; exit {runner.EXIT_SET_UP}; fi; "


def restore_variables(text: str) -> str:
    """Give variables of the shell that BPS took for plain names their meaning back.

    BPS writes ``<ENV:...>`` for ``${...}``, but also for ``$`` and all that follows up to a blank:
    ``${V:-/tmp}`` is ``<ENV:V:-/tmp>`` then, and ``$HOME/x`` is ``<ENV:HOME/x>``.
    """
    return _ENV_PLACEHOLDER.sub(_restored, text) if "<ENV:" in text else text


def _restored(match: re.Match[str]) -> str:
    content = restore_variables(match[1])
    if re.fullmatch(r"\w+", content, re.ASCII):
        return f"<ENV:{content}>"
    if re.match(r"\w+(:[-+=?]|[#%])", content, re.ASCII):
        return f"${{{content}}}"
    name = re.match(r"[A-Za-z_]\w*", content, re.ASCII)
    return f"<ENV:{name[0]}>{content[name.end() :]}" if name else f"${content}"


@dataclass(frozen=True, slots=True)
class CommandTemplate:
    """The command of a kind of job, with placeholders."""

    text: str
    """Command line; ``{name}`` stands for a value, ``<FILE:key>`` for a file."""

    names: tuple[str, ...]
    """Names in the text that the job has values for, in order."""


def make_template(
    job: GenericWorkflowJob, arguments: str, *, executable: str | None = None
) -> CommandTemplate:
    """Make the command template of the jobs like a job.

    The command sets the environment, runs the command to be run before, the payload, and the command to be
    run after.  Its exit code is that of the payload, or that of the command before if this fails.  Where the
    executable is transferred, ``executable`` is how the worker calls it.
    """
    if job.executable is None or not (job.executable.src_uri or job.executable.name):
        raise PlanError(f"Job {job.name!r} (label {job.label!r}) has no executable.")
    payload = executable or str(job.executable.src_uri or job.executable.name)
    before, after = (render_shell_unit(text or "") for text in (job.pre_cmdline, job.post_cmdline))
    payload = f"{payload} {arguments}".rstrip()
    if before:
        before = f"if {before}then :; else exit $?; fi; "
    if after:
        payload, after = f"{render_shell_unit(payload)}payloadCode=$?; ", f"{after}exit $payloadCode"
    text = restore_variables(before + payload + after).replace(LINE_END, "\n")
    text = _environment(job) + text
    names = dict.fromkeys(name for name in VALUE_PLACEHOLDER.findall(text) if name in job.cmdvals)
    return CommandTemplate(text, tuple(names))


def _environment(job: GenericWorkflowJob) -> str:
    """Render the commands that set the job's environment variables."""
    variables = job.environment or {}
    if not isinstance(variables, Mapping):
        raise PlanError(
            f"environment of job {job.name!r} (label {job.label!r}) is {variables!r}; it must be a "
            "mapping of names to values."
        )
    lines = []
    for name, value in sorted(variables.items()):
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise PlanError(
                f"environment variable {name!r} of job {job.name!r} (label {job.label!r}) is not a name "
                "that a shell accepts; use letters, digits and underscores."
            )
        lines.append(f"export {name}={_environment_value(str(value), job)}; ")
    return "".join(lines)


def _environment_value(value: str, job: GenericWorkflowJob) -> str:
    """Quote a variable's value, leaving placeholders in it open.

    What BPS has already replaced is literal text; a placeholder stands between double quotes, where the
    runner escapes what it puts in, and so does a variable of the shell.
    """
    rendered = []
    for piece in filter(None, _OPEN_IN_VALUE.split(restore_variables(value))):
        is_value = piece.startswith("{") and piece[1:-1] in job.cmdvals
        is_open = is_value or (_OPEN_IN_VALUE.fullmatch(piece) and piece.startswith(("<", "$")))
        rendered.append(f'"{piece}"' if is_open else quote(piece))
    return "".join(rendered) or "''"


def resolve_files(text: str, files: Iterable[GenericWorkflowFile], *, where: str) -> str:
    """Replace ``<FILE:key>`` of files that are not transferred by their URI.

    ``files`` are the inputs and outputs of the job, ``where`` says in an error whose command it is.
    """
    by_key = {gwfile.name: gwfile for gwfile in files}

    def replace(match: re.Match[str]) -> str:
        gwfile = by_key.get(match.group(1))
        if gwfile is None:
            raise PlanError(
                f"The command of {where} uses <FILE:{match.group(1)}>, but the job has no such file; "
                f"it has {', '.join(sorted(by_key)) or 'none'}."
            )
        return match.group(0) if gwfile.wms_transfer else make_shell_safe(str(gwfile.src_uri))

    return FILE_PLACEHOLDER.sub(replace, text)


def split_long_option(template: str, name: str) -> Callable[[str], str]:
    """Return a function that makes a long, comma-separated value fit into a command.

    A value of more than `MAX_ARGUMENT` bytes cannot be one argument.  Where it follows an option
    (``--qgraph-node-id {qgraphNodeId}``), the option is repeated, each time with a part of the list.
    """
    match = re.search(r"(--[\w-]+)([ =])\{" + re.escape(name) + r"\}", template)
    if not match:
        return lambda value: value
    joint = f" {match.group(1)}{match.group(2)}"

    def split(value: str) -> str:
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


class TaskCommands:
    """Renders the commands of tasks, and collects the files that they need."""

    def __init__(self, settings: PlanSettings, naming: Naming) -> None:
        self._settings = settings
        self._naming = naming
        self.staged_names = StagedFileNames(settings.directories)
        if settings.runner is not None:
            self.staged_names.add(settings.runner)

    def render(
        self, graph: JobGraph, family: Family, *, statics: Mapping[str, str], named: NamedJobs, final: bool
    ) -> str:
        """Render the command of the tasks of a family.

        ``statics`` are the values that all its jobs share, ``named`` all jobs
        of the label; ``final`` says whether this is the final job.
        """
        index = family.members[0]
        job, inputs, outputs = graph.jobs[index], graph.inputs[index], graph.outputs[index]
        settings = self._settings.for_label(job.label)
        shared = [gwfile for gwfile in inputs if gwfile.name != own_file_key(job)]
        executable, files = self._transferred_executable(job)
        text = make_template(job, family.arguments, executable=executable).text
        text = VALUE_PLACEHOLDER.sub(lambda match: statics.get(match[1], match[0]), text)
        for name, value in self._settings.submit_environment.items():
            text = text.replace(f"<ENV:{name}>", value)
        text = resolve_files(text, [*shared, *outputs], where=f"job {job.name!r} (label {job.label!r})")
        text = self._area_exports(job) + text
        direct: list[str] = []
        for gwfile in shared:
            if gwfile.wms_transfer:
                staged = self.staged_names.assign(gwfile)
                files.append((gwfile.name, f"{staged.name}/" if staged.is_directory else staged.name))
                if gwfile.job_access_remote:
                    direct.append(gwfile.name)
        files += self._naming.task_files()
        options = self._options(job, settings, named, outputs, final=final)
        return self._runner_call(settings, text, sorted(files), sorted(direct), options)

    def _runner_call(
        self,
        settings: LabelSettings,
        command: str,
        files: Sequence[tuple[str, str]],
        direct: Sequence[str],
        options: Mapping[str, str],
    ) -> str:
        """Render what PanDA runs for each job: one line, with ``${IN/L}`` for the pseudo-input.

        ``files`` are key and name of each staged file that the command uses,
        ``direct`` the keys of those that are used where they are.
        """
        outer = " ".join(settings.runner_command.split("\n"))
        if "_cmd_line_" not in outer:
            raise PlanError(
                "runnerCommand holds no _cmd_line_, the place for the job's command; "
                f"it is {settings.runner_command!r}."
            )
        if "_runner_" in outer and self._settings.runner is None:
            raise PlanError("runnerCommand asks for the staged runner (_runner_), but none is staged.")
        words = [
            runner.encode_command(command),
            "${IN/L}",
            runner.encode_area(self._settings.run.staging_area),
            runner.encode_files(files),
            runner.encode_direct(direct),
        ]
        # A runner that the site brings may be another version, which has no such option.
        proven = "_runner_" in outer
        every = {**options, "success": str(runner.SUCCESS)} if proven else options
        words += [f"--{name}={runner.quote(value)}" for name, value in sorted(every.items())]
        places = {"_runner_": self._runner_path(), "_cmd_line_": " ".join(words)}
        # At once: what is put in, a path perhaps, may hold such a word itself.
        call = re.sub("_runner_|_cmd_line_", lambda match: places[match[0]], outer).strip()
        return (_prove_success(call) if proven else call).replace(LINE_END, "\n")

    def own_file(self, graph: JobGraph, index: int) -> str:
        """Stage the file that only one job has, and return its name as a shell takes it."""
        job = graph.jobs[index]
        key = own_file_key(job)
        for gwfile in graph.inputs[index]:
            if gwfile.name == key:
                return quote(self.staged_names.assign(gwfile).name)
        raise PlanError(f"The command of job {job.name!r} uses <FILE:{key}>, but the job has no such file.")

    def _transferred_executable(self, job: GenericWorkflowJob) -> tuple[str | None, list[tuple[str, str]]]:
        """Stage the executable of a job if it is transferred; return how to call it, and its entry."""
        if job.executable is None or not job.executable.transfer_executable:
            return None, []
        staged = self.staged_names.assign_executable(job.executable)
        return quote(f"./{staged.name}"), [(runner.EXECUTABLE, staged.name)]

    def _area_exports(self, job: GenericWorkflowJob) -> str:
        """Render the export of the variables that the staging area's setting uses.

        BPS writes the staging area as it stands in the YAML into the script of the final job.
        """
        if job.executable is None or not job.executable.transfer_executable:
            return ""
        variables = sorted(self._settings.area_variables.items())
        return "".join(f"export {name}={quote(value)}; " for name, value in variables)

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
        """Return the staged runner as a shell on the worker takes it."""
        staged = self._settings.runner
        return locate_runner(self._settings.run.staging_area, staged.name) if staged is not None else ""


def locate_runner(area: str, name: str) -> str:
    """Return a runner in a staging area as the shell of a worker takes it, behind ``python3``."""
    if "://" in area and not area.startswith("file://"):
        return _fetch_expression(area + name)
    path = runner.decode_area(area) if area.startswith("file://") else area
    return quote(path.removeprefix("file://") + name)


def _prove_success(call: str) -> str:
    """Let a task succeed only if its runner says that its payload did.

    The runner ends with a code of its own instead of 0, which gets through containers and all that a site
    puts around it.  With 0, something else was executed: the text of a setting that took the runner for
    arguments, for instance.
    """
    missing = "echo The runner did not run, although runnerCommand ended with 0. >&2"
    return (
        f"( {render_shell_unit(call)}); code=$?; case $code in {runner.SUCCESS}) exit 0;; "
        f"0) {missing}; exit {runner.EXIT_NOT_RUN};; *) exit $code;; esac"
    )


def _exit_code(value: object, job: GenericWorkflowJob) -> int:
    """Read an exit code of ``retryUnlessExit``."""
    try:
        return int(str(value))
    except ValueError:
        raise PlanError(
            f"retryUnlessExit of label {job.label!r} holds {value!r}; it must be a whole number or a list of "
            "whole numbers."
        ) from None


def _fetch_expression(uri: str) -> str:
    """Return the arguments with which ``python3`` fetches the runner and becomes it.

    ``http(s)`` needs the standard library only; any other store is read with ``lsst.resources``, which such a
    site has.  The arguments hold no quote but the outer ones, so that they may stand between double quotes.
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
