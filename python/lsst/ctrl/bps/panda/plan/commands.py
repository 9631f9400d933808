"""The command lines: of a job, as a template for all jobs of a task, and of
the task on the worker.

One quoting function, `quote`; everything that travels to the runner is
encoded by the runner's own grammar, so that any file name works.
"""

from __future__ import annotations

__all__ = [
    "CommandTemplate",
    "inert",
    "make_template",
    "quote",
    "render_task_command",
    "resolve_files",
    "split_long_option",
]

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote as percent_encode

from lsst.ctrl.bps import GenericWorkflowFile, GenericWorkflowJob

from ..edgenode import cmd_line_decoder as runner
from ..errors import PlanError
from .labels import LabelSettings

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
