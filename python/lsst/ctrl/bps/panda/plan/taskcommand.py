"""Bring files, values and options together into the command of a task."""

from __future__ import annotations

__all__ = ["TaskCommands"]

import re
from collections.abc import Mapping, Sequence

from lsst.ctrl.bps import GenericWorkflowFile, GenericWorkflowJob

from ..edgenode import cmd_line_decoder as runner
from ..errors import PlanError
from .commands import (
    CommandTemplate,
    make_template,
    quote,
    render_task_command,
    resolve_files,
)
from .files import FileLedger
from .grouping import own_file_key
from .jobgraph import JobGraph
from .labels import LabelSettings, PlanSettings
from .model import StagedFile
from .naming import NamedJobs, Naming

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
