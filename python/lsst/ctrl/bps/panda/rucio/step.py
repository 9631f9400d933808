"""The registration step: its job in the generic workflow, and what it would register if it ran now."""

from __future__ import annotations

__all__ = ["Forecast", "add_step", "find_graph", "make_forecast", "read_registration"]

import os
from dataclasses import dataclass
from importlib.resources import files as package_files
from typing import Any

from lsst.ctrl.bps import GenericWorkflow, GenericWorkflowExec, GenericWorkflowFile, GenericWorkflowJob

from ..edgenode.rucio_program import (
    EXIT_INCOMPLETE_ENVIRONMENT,
    EXIT_REFUSED,
    ButlerOutputs,
    RegisteredFiles,
    Registration,
    RegistrationError,
    find_registered_files,
    find_rule,
)
from ..errors import RucioError, RunNotFoundError, SettingsError
from ..plan.graph import append_final, find_quantum_graph
from ..runs.files import REGISTRATION_NAME
from ..runs.record import RunRecord
from ..settings.rucio import LABEL, RegistrationSettings
from .client import rucio_errors

_PROGRAM_KEY = "rucioProgram"
_REGISTRATION_KEY = "rucioRegistration"
_GRAPH_KEY = "rucioQuantumGraph"


def add_step(
    workflow: GenericWorkflow, settings: RegistrationSettings, *, submit_path: str | os.PathLike[str]
) -> None:
    """Add the step after the final job, which brings the outputs into the Butler and has to succeed, or as
    the final job if there is none.

    In a final workflow it comes after all other jobs.  The step gets the file in ``submit_path`` that
    describes the registration.  A second call changes nothing.
    """
    final = workflow.get_final()
    if final is not None and LABEL in ([final.name] if isinstance(final, GenericWorkflowJob) else final):
        return
    job = _make_job(settings)
    files = _make_files(workflow, settings, os.path.join(os.path.abspath(submit_path), REGISTRATION_NAME))
    append_final(workflow, job, files)


def _make_job(settings: RegistrationSettings) -> GenericWorkflowJob:
    """Make the job of the step."""
    arguments = f"<FILE:{_PROGRAM_KEY}> <FILE:{_REGISTRATION_KEY}>"
    if settings.quantum_graph:
        arguments += f" --quantum-graph <FILE:{_GRAPH_KEY}>"
    return GenericWorkflowJob(
        name=LABEL,
        label=LABEL,
        executable=GenericWorkflowExec(settings.python, settings.python, transfer_executable=False),
        arguments=arguments,
        environment=dict(settings.environment),
        request_memory=settings.memory,
        request_cpus=settings.cores,
        request_walltime=str(settings.walltime) if settings.walltime else None,
        number_of_retries=settings.retries,
        # Another attempt would fail in the same way.
        retry_unless_exit=[EXIT_REFUSED, EXIT_INCOMPLETE_ENVIRONMENT],
    )


def _make_files(
    workflow: GenericWorkflow, settings: RegistrationSettings, registration: str
) -> list[GenericWorkflowFile]:
    """Return the files that the step needs on its worker."""
    program = str(package_files("lsst.ctrl.bps.panda.edgenode").joinpath("rucio_program.py"))
    files = [
        GenericWorkflowFile(_PROGRAM_KEY, src_uri=program, wms_transfer=True, job_shared=True),
        GenericWorkflowFile(_REGISTRATION_KEY, src_uri=registration, wms_transfer=True, job_shared=True),
    ]
    if settings.quantum_graph:
        source = find_graph(workflow)
        # BPS's own entry is for jobs that read it in the staging area; this job gets a copy.
        files.append(GenericWorkflowFile(_GRAPH_KEY, src_uri=source, wms_transfer=True, job_shared=True))
    return files


def find_graph(workflow: GenericWorkflow) -> str:
    """Return the path of the run's quantum graph; an error if it has none."""
    path = find_quantum_graph(workflow)
    if not path:
        raise SettingsError("rucio.quantumGraph is yes, but this run has no quantum graph.")
    return path


def read_registration(record: RunRecord) -> Registration:
    """Read what is to be registered of a run; `RunNotFoundError` if it has no registration step."""
    directory = record.origin_directory
    path = directory / REGISTRATION_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        reason = "the run has no registration step. It gets one by a section rucio with enabled: yes."
        if record.waits_for_site:
            reason = (
                "the plan of the run is made at its site (remote build), and the site has not sent it yet. "
                "bps report with the run's id shows how far it is."
            )
        raise RunNotFoundError(f"{directory} holds no {REGISTRATION_NAME}: {reason}") from None
    try:
        return Registration.from_json(text).expanded()
    except RegistrationError as error:
        raise SettingsError(f"{path}: {error}") from error


@dataclass(frozen=True, slots=True)
class ForecastFile:
    """A file that would be registered, or is registered already."""

    name: str
    """Name in Rucio, without the scope."""

    dataset_type: str
    size: int
    """Bytes."""

    pfn: str
    """URL from which transfers would copy it."""

    is_registered: bool


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the step would register if it ran now."""

    registration: Registration
    files: tuple[ForecastFile, ...]
    absent: tuple[str, ...]
    """Dataset types of which the run has nothing."""

    without_file: int
    registered: RegisteredFiles | None
    """What Rucio has; `None` if it was not asked."""

    rule_exists: bool

    @property
    def new(self) -> tuple[ForecastFile, ...]:
        """Files that would be added."""
        return tuple(file for file in self.files if not file.is_registered)


def make_forecast(client: Any | None, registration: Registration, found: ButlerOutputs) -> Forecast:
    """Find out what the step would register; without a client of Rucio, nothing counts as registered.

    It is a `RucioError` if Rucio does not answer, or if a file does not exist.
    """
    registered, rule_exists = None, False
    if client is not None:
        with rucio_errors(f"tell about {registration.scope}:{registration.dataset}"):
            registered = find_registered_files(client, registration)
            if registered.dataset is not None and registration.rule is not None:
                rules = client.list_did_rules(registration.scope, registration.dataset)
                rule_exists = find_rule(rules, registration.rule, client.account) is not None
    base = f"{registration.dtn_url.rstrip('/')}/{registration.scope}"
    try:
        files = tuple(
            ForecastFile(
                name=output.name,
                dataset_type=output.dataset_type,
                size=int(output.uri.size()),
                pfn=f"{base}/{output.name}",
                is_registered=registered is not None and output.name in registered.at_rse,
            )
            for output in found.outputs
        )
    except OSError as error:
        raise RucioError(f"A file that the Butler names is not there: {error}") from error
    return Forecast(registration, files, found.absent, found.without_file, registered, rule_exists)
