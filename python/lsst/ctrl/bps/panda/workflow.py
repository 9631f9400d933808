"""The workflow that BPS hands from prepare to submit, and its files."""

from __future__ import annotations

__all__ = ["PandaBpsWmsWorkflow"]

import logging
import os
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lsst.ctrl.bps import BaseWmsWorkflow, BpsConfig, GenericWorkflow

from .checks.misspellings import check_names
from .checks.plan import check_plan, find_advice
from .edgenode.rucio_program import Registration
from .errors import PandaBpsError, SettingsError
from .files import write_text
from .findings import Finding
from .idds.workflow import Submission, make_submission, make_workflow
from .plan.document import render_plan, render_table
from .plan.graph import GRAPH_KEY, find_quantum_graph
from .plan.lazy import Stages, join
from .plan.model import StagedFile, WorkflowPlan
from .plan.planner import make_plan, require_success
from .rucio.step import add_step, find_graph
from .runs.client import connect
from .runs.files import PARAMETERS_DIRECTORY, PLAN_NAME, REGISTRATION_NAME, find_outputs
from .runs.provenance import LABEL as PROVENANCE
from .runs.provenance import add_step as add_provenance
from .runs.record import RunRecord, read_record
from .runs.submit import add_to_request
from .settings.configuration import RunConfiguration
from .settings.remote import REQUEST_VARIABLE, REST_VARIABLE, SIGNATURE_VARIABLE
from .settings.rucio import LABEL, read_registration_settings
from .settings.run import (
    RunSettings,
    find_run_broker,
    read_run_settings,
    read_service_settings,
    wants_provenance,
)
from .staging import stage

_LOG = logging.getLogger(__name__)


class PandaBpsWmsWorkflow(BaseWmsWorkflow):
    """A run that is ready to be submitted to PanDA.

    Parameters
    ----------
    name : `str`
        Name of the run.
    config : `~lsst.ctrl.bps.BpsConfig`
        Its configuration.
    """

    def __init__(self, name: str, config: BpsConfig) -> None:
        super().__init__(name, config)
        self.submit_path: str | None = None
        self._plan: WorkflowPlan | None = None
        self._settings: RunSettings | None = None
        self._registration: Registration | None = None
        self._outputs: tuple[tuple[str, str], ...] = ()
        self.run_attrs: dict[str, str] = {}
        self.stages: Stages | None = None

    @classmethod
    def without_plan(cls, config: BpsConfig, stages: Stages) -> PandaBpsWmsWorkflow:
        """Make the workflow of a run whose plan a task will make, after these stages."""
        workflow = cls(RunConfiguration(config).name, config)
        workflow.stages = stages
        return workflow

    @classmethod
    def from_generic_workflow(
        cls, config: BpsConfig, generic_workflow: GenericWorkflow, out_prefix: str, service_class: str
    ) -> PandaBpsWmsWorkflow:
        # Docstring inherited.
        environment = read_service_settings(config).environment
        if REST_VARIABLE in environment:
            generic_workflow = _complete(generic_workflow, environment[REST_VARIABLE])
        workflow = cls(generic_workflow.name, config)
        workflow.service_class = service_class
        submit_path = out_prefix or RunConfiguration(config).submit_path
        workflow.submit_path = submit_path
        workflow.run_attrs = dict(generic_workflow.run_attrs)
        workflow._outputs = find_outputs(generic_workflow)
        # A command leaves nothing in a Butler.
        registration = None if workflow.is_command else read_registration_settings(config, environment)
        closes = not workflow.is_command and wants_provenance(config, environment)
        if closes:
            if registration is not None and registration.always:
                raise SettingsError(
                    "ingestProvenance is yes and rucio.when is ALWAYS: after a failure there is no "
                    "provenance, after which the outputs are registered. Set one of them otherwise.",
                    key="ingestProvenance",
                )
            add_provenance(generic_workflow, RunConfiguration(config).butler)
        if registration is not None:
            graph = find_graph(generic_workflow) if registration.quantum_graph else ""
            workflow._registration = replace(registration.registration, quantum_graph=graph)
            add_step(generic_workflow, registration, submit_path=submit_path)
        workflow._settings = read_run_settings(config, generic_workflow, submit_path=submit_path)
        workflow._plan = make_plan(generic_workflow, workflow._settings.plan)
        if closes:
            workflow._plan = require_success(workflow._plan, PROVENANCE)
        if registration is not None and not registration.always:
            workflow._plan = require_success(workflow._plan, LABEL)
        return workflow

    @property
    def plan(self) -> WorkflowPlan:
        """The plan of the run."""
        if self._plan is None:
            raise PandaBpsError(f"Workflow {self.name!r} has no plan; use from_generic_workflow.")
        return self._plan

    @property
    def settings(self) -> RunSettings:
        """The settings of the run."""
        if self._settings is None:
            raise PandaBpsError(f"Workflow {self.name!r} has no settings; use from_generic_workflow.")
        return self._settings

    @property
    def is_command(self) -> bool:
        """Whether this is a run of ``bps submitcmd``."""
        return bool(self.run_attrs.get("bps_iscustom"))

    @property
    def table(self) -> str:
        """The plan as a table for people."""
        return render_table(self.plan, request_size=self.submission.length)

    def check(self) -> list[Finding]:
        """Return the problems of the plan."""
        return check_plan(self.plan, self.settings, self.config)

    def advise(self) -> list[Finding]:
        """Return possible mistakes in the configuration and possible improvements of the plan."""
        environment = read_service_settings(self.config).environment
        names = check_names(self.config, environment, labels=self.settings.plan.labels)
        most = self.settings.max_request_length
        return [*names, *find_advice(self.plan, length=len(self.submission.request), most=most)]

    @cached_property
    def submission(self) -> Submission:
        """What is sent for the run, made on first use."""
        return make_submission(self.plan, max_length=self.settings.max_request_length)

    @cached_property
    def idds_client_workflow(self) -> Any:
        """The iDDS ``Workflow``, made on first use."""
        return make_workflow(self.plan)

    def staged_files(self) -> tuple[StagedFile, ...]:
        """Return all files that go to the staging area, including the jobs' parameters."""
        base = Path(self.submit_path or ".").absolute() / PARAMETERS_DIRECTORY
        shards = tuple(
            StagedFile(shard.name, os.fspath(base / shard.name), shard.name) for shard in self.plan.shards
        )
        return self.plan.files + shards

    def add_to_parent_workflow(self, config: BpsConfig) -> None:
        """Stage the files, and give the run to the request of the build task that runs this."""
        service = read_service_settings(None)
        names = (REQUEST_VARIABLE, SIGNATURE_VARIABLE)
        if missing := [name for name in names if not service.environment.get(name)]:
            raise SettingsError(
                f"{missing[0]} is not set, so this is not a build task of iDDS, which sets it. Tasks can be "
                "added to a run by its build task only: use bpsBatchSubmission with bps submit."
            )
        assert self.submit_path is not None
        # This directory goes with the task; a restart needs the plan.
        plan = StagedFile("plan", os.path.join(self.submit_path, PLAN_NAME), PLAN_NAME)
        stage([*self.staged_files(), plan], self.settings.staging)
        request_id, signature = (service.environment[name] for name in names)
        add_to_request(
            connect(service).relay, self.submission, request_id=int(request_id), signature=signature
        )
        _LOG.info("Request %s has its workflow: %d jobs", request_id, self.plan.job_count)

    def write(self, out_prefix: str) -> None:
        """Write plan, parameters and run record into the submit directory."""
        directory = Path(out_prefix or self.submit_path or ".").absolute()
        self.submit_path = os.fspath(directory)
        for shard in self.plan.shards:
            write_text(directory / PARAMETERS_DIRECTORY / shard.name, [shard.text])
        write_text(directory / PLAN_NAME, render_plan(self.plan))
        if self._registration is not None:
            write_text(directory / REGISTRATION_NAME, [self._registration.to_json()])
        run = RunConfiguration(self.config)
        record = RunRecord.from_plan(
            self.plan,
            staging=self.settings.staging,
            clusters=self.settings.clusters,
            outputs=self._outputs,
            inputs=tuple(os.path.abspath(path) for _, path in run.command_files) if self.is_command else (),
            sources=() if self.is_command else tuple(map(os.path.abspath, run.graph_sources)),
            messages=find_run_broker(read_service_settings(self.config), self.plan.run.site),
        )
        record.prepared_again(directory).write(directory)

    def read_record(self) -> RunRecord:
        """Read the record that `write` has written."""
        return read_record(self.submit_path or "")


def _complete(payload: GenericWorkflow, rest: str) -> GenericWorkflow:
    """Return the workflow of a stage of a build task with what comes after the stages, if there is a file."""
    graph = find_quantum_graph(payload)
    if os.path.exists(graph):
        # BPS takes it for granted that the submit directory is where the jobs run.
        payload.get_file(GRAPH_KEY).wms_transfer = True
    return join(payload, Path(rest).read_bytes(), os.path.dirname(rest)) if os.path.exists(rest) else payload
