"""The service class that BPS calls: each command step by step.

prepare: settings, plan, files.  submit: checks, staging, iDDS workflow, request,
record.  report and status: find the run, ask iDDS and PanDA, evidence, report.
"""

from __future__ import annotations

__all__ = ["LocalPanDAService", "PanDAService"]

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from lsst.ctrl.bps.wms_service import WmsRunReport, WmsStates
from lsst.daf.butler import Config
from lsst.resources import ResourcePath

from lsst.ctrl.bps import BaseWmsService, BaseWmsWorkflow, BpsConfig, GenericWorkflow

from .checks.configuration import (
    check_arguments,
    check_configuration,
    check_payloads,
    check_service,
    check_values,
    find_new_name,
)
from .errors import PandaBpsError, RunNotFoundError, SettingsError, TransportError
from .findings import Finding, report_findings
from .insight.logs import LogTransport, TailReader, find_first_attempts
from .plan.document import describe_plan
from .remote.request import split_for_task, submit_build, submit_stages
from .report import (
    LISTED_JOBS,
    describe_counts,
    get_status_of,
    list_notes,
    make_run_list,
    make_run_report,
    parse_filters,
)
from .rest.faults import diagnose
from .runs.cancel import cancel_run
from .runs.client import Connection, RunClient, connect
from .runs.files import protect_environment_dumps
from .runs.jobs import RunJobs
from .runs.restart import restart_run
from .runs.submit import submit_run, tell_how_to_follow
from .settings import sites
from .settings.bps_command import (
    DETAIL,
    configuration_file,
    fail_command,
    is_check,
    is_dry_run,
    log_into,
    shape_output,
)
from .settings.configuration import RunConfiguration, explain_graph_failure, find_broken_names
from .settings.remote import is_remote_build
from .settings.run import ServiceSettings, complete_area, default_configuration, read_service_settings
from .settings.variables import find_broken_texts
from .staging import stage_with_progress
from .workflow import PandaBpsWmsWorkflow

_LOG = logging.getLogger(__name__)

LOG_PATIENCE = 5.0
"""How long a report waits in vain for logs, s."""

DEFAULT_DAYS = 2.0
"""How far the list of runs looks back if nobody says, days."""


class PanDAService(BaseWmsService):
    """Runs BPS workflows on PanDA and iDDS.

    Parameters
    ----------
    config : `~lsst.ctrl.bps.BpsConfig` or mapping
        Configuration of a run; empty for commands about submitted runs.
    """

    def __init__(self, config: BpsConfig | Mapping[str, Any]) -> None:
        super().__init__(config)
        shape_output(
            lambda config, message: explain_graph_failure(
                config, message, read_service_settings(None).environment
            )
        )

    @property
    def defaults(self) -> Config:
        """Defaults that BPS merges beneath a user's configuration.

        It asks for them first of all, so that here is the only place to say
        which texts it is going to fail at before it has anything checked.
        """
        if (file := configuration_file()) and not is_check():
            errors = find_broken_names(file, read_service_settings(None).environment)
            report_findings([*map(Finding.from_error, errors)], is_dry_run=False)
        return default_configuration()

    @property
    def defaults_uri(self) -> ResourcePath:
        """Location of the packaged defaults."""
        return sites.defaults_uri()

    def settings(self) -> ServiceSettings:
        """Return where PanDA is, and the user."""
        return read_service_settings(self.config)

    @property
    def _class_name(self) -> str:
        return f"{type(self).__module__}.{type(self).__name__}"

    def _connect(self) -> Connection:
        """Make the clients; nothing is sent yet."""
        return connect(self.settings())

    # --- submission side -----------------------------------------------

    def run_submission_checks(self) -> None:
        """Check for everything that would make a submission fail.

        A dry run (``bps prepare``) needs neither a server nor the staging
        area; problems with them are warnings then.

        Raises
        ------
        PandaBpsError
            Raised if there is a problem; the text lists all of them.
        """
        report_findings(self.check_submission(), is_dry_run=is_dry_run())

    def check_submission(self) -> list[Finding]:
        """Return what would make a submission fail, as far as it is known
        before there is a quantum graph.
        """
        # Without the texts that would make the look-ups of the settings fail; they are found again below.
        broken, config = find_broken_texts(self.config, {})
        settings = type(self)(config).settings()
        if not broken and not is_remote_build(self.config):
            complete_area(self.config)
        new_name = "" if broken else find_new_name(self.config, settings.environment)
        return [*check_configuration(self.config, settings.environment), *check_service(settings, new_name)]

    def prepare(
        self, config: BpsConfig, generic_workflow: GenericWorkflow, out_prefix: str | None = None
    ) -> PandaBpsWmsWorkflow:
        # Docstring inherited.
        submit_path = out_prefix or RunConfiguration(config).submit_path
        log_into(submit_path)
        protect_environment_dumps(submit_path)
        if stages := split_for_task(generic_workflow, self.settings().environment):
            return PandaBpsWmsWorkflow.without_plan(config, stages)
        # BPS has generated values (bpsGenerateConfig) since the configuration was checked.
        report_findings(check_values(config, self.settings().environment), is_dry_run=is_dry_run())
        workflow = PandaBpsWmsWorkflow.from_generic_workflow(
            config, generic_workflow, out_prefix or "", self._class_name
        )
        findings = workflow.check()
        if workflow.is_command:
            # BPS has the server checked for other runs only.
            findings += [*check_service(self.settings()), *check_arguments(config)]
        report_findings(findings, is_dry_run=is_dry_run())
        workflow.write(out_prefix or "")
        detail = {} if is_dry_run() else DETAIL
        _LOG.info("Plan of run %s:\n%s", workflow.name, workflow.table, extra=detail)
        if detail:
            _LOG.info("%s", describe_plan(workflow.plan))
        report_findings(workflow.advise(), is_dry_run=is_dry_run())
        return workflow

    def submit(self, workflow: BaseWmsWorkflow, **kwargs: Any) -> BaseWmsWorkflow | None:
        # Docstring inherited.
        if kwargs.get("remote_build"):
            connection = self._connect()
            built = submit_build(connection, **kwargs)
            tell_how_to_follow(connection, built.run_id, self._class_name)
            return built
        if not isinstance(workflow, PandaBpsWmsWorkflow):
            raise SettingsError(
                "BPS prepared no workflow of this plugin. For a remote build it knows the service class "
                "lsst.ctrl.bps.panda.PanDAService only; 'panda_bps build CONFIG' works with any."
            )
        connection = self._connect()
        if workflow.stages is not None:
            submit_stages(connection, workflow)
        else:
            record, submission = workflow.read_record(), workflow.submission
            stage = partial(
                stage_with_progress,
                workflow.staged_files(),
                workflow.settings.staging,
                owner=str(record.origin_directory),
            )
            length = submission.length
            workflow.run_id = str(
                submit_run(
                    connection,
                    record,
                    submission,
                    stage=stage,
                    request_bytes=length,
                    alone=kwargs.get("alone", False),
                )
            )
        tell_how_to_follow(connection, workflow.run_id, self._class_name)
        return None

    # --- submitted runs ------------------------------------------------

    def report(
        self,
        wms_workflow_id: str | None = None,
        user: str | None = None,
        hist: float = 0,
        pass_thru: str | None = None,
        is_global: bool = False,
        return_exit_codes: bool = False,
    ) -> tuple[list[WmsRunReport], str]:
        # Docstring inherited.
        try:
            filters = parse_filters(pass_thru)
            client = RunClient(self._connect())
            if wms_workflow_id:
                found = client.find(wms_workflow_id)
                evidence = client.detail(found, jobs_listed=LISTED_JOBS)
                report = make_run_report(
                    evidence,
                    monitor_url=client.connection.settings.monitor_url,
                    return_exit_codes=return_exit_codes,
                    known=RunJobs(evidence, far=False),
                    find_attempts=partial(find_first_attempts, client.connection),
                    read_end=TailReader(LogTransport(client.connection, patience=LOG_PATIENCE)),
                )
                told = (*found.describe_provenance(), *found.collect_outputs(report.state))
                return [report], "\n".join(told)
            days = hist or DEFAULT_DAYS
            runs, problems, notes = client.recent(days=days, user=user, everybody=is_global)
            if problems and not runs:
                fail_command(TransportError("\n".join(problems)))
            else:
                notes += list_notes(runs, days=days, user=user)
            notes = [*problems, *notes]
            return make_run_list(runs, filters=filters), "\n".join(dict.fromkeys(notes))
        except PandaBpsError as error:
            return [], _tell(error)

    def get_status(
        self, wms_workflow_id: str, hist: float = 1, is_global: bool = False
    ) -> tuple[WmsStates, str]:
        # Docstring inherited.
        try:
            client = RunClient(self._connect())
            found = client.find(wms_workflow_id)
            evidence = client.status(found)
        except PandaBpsError as error:
            return WmsStates.UNKNOWN, str(error)
        _LOG.info("%s", describe_counts(evidence))
        state, message = get_status_of(evidence)
        return state, "\n".join(filter(None, (message, *found.collect_outputs(state))))

    def list_submitted_jobs(
        self,
        wms_id: str | None = None,
        user: str | None = None,
        require_bps: bool = True,
        pass_thru: str | None = None,
        is_global: bool = False,
    ) -> list[str]:
        # Docstring inherited.  Without an id: one's own runs that have not ended, never everybody's.
        try:
            filters = parse_filters(pass_thru)
            client = RunClient(self._connect())
            if wms_id:
                request_id, _ = client.find(wms_id, unique=True)
                return [str(client.request(request_id).request_id)]
        except RunNotFoundError as error:
            # BPS says that no job matches; this says why.
            _LOG.error("%s", error)
            return []
        except PandaBpsError as error:
            fail_command(error)
            raise
        runs, problems, _ = client.recent(days=DEFAULT_DAYS, user=user)
        if problems and not runs:
            fail_command(TransportError("\n".join(problems)))
        for problem in problems:
            _LOG.warning("%s", problem)
        going = [run for run in runs if not run.ended and (run.attributes.jobs or not require_bps)]
        reports = make_run_list(going, filters=filters)
        return sorted((report.wms_id for report in reports), key=int)

    def cancel(self, wms_id: str, pass_thru: str | None = None) -> tuple[bool, str]:
        # Docstring inherited.
        try:
            accepted, message = cancel_run(RunClient(self._connect()), wms_id)
        except PandaBpsError as error:
            return False, _tell(error)
        if accepted:
            # BPS prints the message of a failure only.
            _LOG.info("%s", message)
        return accepted, message

    def restart(self, wms_workflow_id: str) -> tuple[str | None, str | None, str]:
        # Docstring inherited.
        try:
            run_id, name, message = restart_run(RunClient(self._connect()), wms_workflow_id)
        except PandaBpsError as error:
            return None, None, _tell(error)
        if run_id is not None:
            # BPS prints the message of a failure only.
            _LOG.info("%s", message)
        return run_id, name, message

    def ping(self, pass_thru: str | None = None) -> tuple[int, str]:
        # Docstring inherited.
        try:
            connection = connect(self.settings(), prompt=True)
            connection.relay.ping()
        except PandaBpsError as error:
            return 1, diagnose(error)
        return 0, f"PanDA and iDDS at {connection.settings.url} answer."


def _tell(error: PandaBpsError) -> str:
    """Return the text of an error; the ``bps`` command fails if a server is the reason."""
    if isinstance(error, TransportError):
        fail_command(error)
    return str(error)


class LocalPanDAService(PanDAService):
    """The same service on the embedded PanDA of this machine, which is started if
    necessary.
    """

    @property
    def defaults(self) -> Config:
        """Defaults that BPS merges beneath a user's configuration."""
        # Commands by their names, also with EUPS: jobs of the embedded PanDA do not get its variables, and
        # warm workers answer what is found on PATH.
        defaults = default_configuration({})
        defaults.update(Config(sites.local_defaults()))
        return defaults

    def settings(self) -> ServiceSettings:
        """Return the settings, with the address of the embedded PanDA."""
        from .local.endpoint import environment, state_directory
        from .local.instance import start
        from .local.settings import read_settings

        settings = super().settings()
        directory, warm = state_directory(settings.environment), settings.warm_workers
        endpoint = start(directory, warm_workers=warm)
        if warm is not None and read_settings(directory).warm_workers != warm:
            _LOG.warning(
                "warmWorkers is %s, but the embedded PanDA that runs with %s was started otherwise; stop it "
                "for the key to have an effect: panda_local stop",
                warm,
                directory,
            )
        merged: Mapping[str, str] = {**settings.environment, **environment(endpoint)}
        return replace(
            read_service_settings(self.config, merged),
            monitor_url=settings.environment.get("PANDA_MONITOR_URL", ""),
        )

    def check_submission(self) -> list[Finding]:
        """Return what would make a submission fail, also on this machine, where
        the jobs run.
        """
        found = super().check_submission()
        return [*found, *check_payloads(self.config, read_service_settings(None).environment)]
