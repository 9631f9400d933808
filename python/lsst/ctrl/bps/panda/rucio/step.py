"""The registration step as a job of the generic workflow."""

from __future__ import annotations

__all__ = ["REGISTRATION_NAME", "add_step", "find_graph"]

import os
from importlib.resources import files as package_files

from lsst.ctrl.bps import (
    GenericWorkflow,
    GenericWorkflowExec,
    GenericWorkflowFile,
    GenericWorkflowJob,
)

from ..errors import SettingsError
from .program import INCOMPLETE_ENVIRONMENT, REFUSED
from .settings import LABEL, RegistrationSettings

REGISTRATION_NAME = "panda_rucio.json"
"""File of the submit directory that says what is to be registered."""

_PROGRAM_KEY = "rucioProgram"
_REGISTRATION_KEY = "rucioRegistration"
_GRAPH_KEY = "rucioQuantumGraph"
_GRAPH_OF_BPS = "runQgraphFile"


def add_step(
    workflow: GenericWorkflow, settings: RegistrationSettings, *, submit_path: str | os.PathLike[str]
) -> None:
    """Add the step after the final job, or as the final job if there is none.

    A final workflow gets it behind all of its jobs.  The step needs the final
    job to succeed, as that one brings the outputs into the Butler.  Twice is
    the same as once.

    Parameters
    ----------
    workflow : `~lsst.ctrl.bps.GenericWorkflow`
        Workflow of the run; changed.
    settings : `RegistrationSettings`
        What the step does.
    submit_path : path
        Submit directory, where the file that says what is to be registered
        will be.

    Raises
    ------
    SettingsError
        Raised if the quantum graph is to go along and there is none.
    """
    final = workflow.get_final()
    if LABEL in _job_names(final):
        return
    job = _make_job(settings)
    files = _make_files(workflow, settings, os.path.join(os.path.abspath(submit_path), REGISTRATION_NAME))
    if final is None:
        workflow.add_final(job)
        workflow.add_job_inputs(job.name, files)
        return
    if isinstance(final, GenericWorkflowJob):
        final = _as_workflow(workflow, final)
        workflow.add_final(final)
    ends = [name for name in final if final.out_degree(name) == 0]
    final.add_job(job, parent_names=ends)
    final.add_job_inputs(job.name, files)


def _job_names(final: GenericWorkflow | GenericWorkflowJob | None) -> list[str]:
    if isinstance(final, GenericWorkflow):
        return list(final)
    return [] if final is None else [final.name]


def _as_workflow(workflow: GenericWorkflow, job: GenericWorkflowJob) -> GenericWorkflow:
    """Make a final workflow of a final job, with its files."""
    final = GenericWorkflow(f"{workflow.name}_final")
    final.add_job(job)
    final.add_job_inputs(job.name, workflow.get_job_inputs(job.name, data=True, transfer_only=False))
    final.add_job_outputs(job.name, workflow.get_job_outputs(job.name, data=True, transfer_only=False))
    return final


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
        # Another attempt finds the same.
        retry_unless_exit=[REFUSED, INCOMPLETE_ENVIRONMENT],
    )


def _make_files(
    workflow: GenericWorkflow, settings: RegistrationSettings, registration: str
) -> list[GenericWorkflowFile]:
    """Return the files that the step needs on its worker."""
    program = str(package_files(__package__).joinpath("program.py"))
    files = [
        GenericWorkflowFile(_PROGRAM_KEY, src_uri=program, wms_transfer=True, job_shared=True),
        GenericWorkflowFile(_REGISTRATION_KEY, src_uri=registration, wms_transfer=True, job_shared=True),
    ]
    if settings.quantum_graph:
        source = find_graph(workflow)
        # BPS's own entry is for jobs that read it in the staging area; it is to be copied here.
        files.append(GenericWorkflowFile(_GRAPH_KEY, src_uri=source, wms_transfer=True, job_shared=True))
    return files


def find_graph(workflow: GenericWorkflow) -> str:
    """Return the path of the run's quantum graph.

    Parameters
    ----------
    workflow : `~lsst.ctrl.bps.GenericWorkflow`
        Workflow of the run.

    Raises
    ------
    SettingsError
        Raised if there is none.
    """
    try:
        return str(workflow.get_file(_GRAPH_OF_BPS).src_uri)
    except KeyError:
        raise SettingsError("rucio.quantumGraph is yes, but this run has no quantum graph.") from None
