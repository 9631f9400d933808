"""The service class that BPS calls: each command as its hops, in order.

prepare is settings, plan, files; submit is staging, iDDS workflow, request;
report and status are reply, records, report.
"""

from __future__ import annotations

__all__ = ["LocalPanDAService", "PanDAService"]

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TextIO

from lsst.ctrl.bps.wms_service import WmsRunReport, WmsStates
from lsst.daf.butler import Config
from lsst.resources import ResourcePath

from lsst.ctrl.bps import BaseWmsService, BaseWmsWorkflow, BpsConfig, GenericWorkflow

from .checks.configuration import check_configuration, check_service
from .checks.misspellings import check_names
from .checks.plan import check_plan, find_advice
from .errors import PandaBpsError, RunNotFoundError, SettingsError
from .findings import Finding, report_findings
from .plan.document import render_table
from .remote.request import submit_build
from .report.report import (
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
from .runs.files import protect_dumps
from .runs.outputs import collect_outputs
from .runs.record import read_record
from .runs.restart import restart_run
from .runs.submit import record_submission, send
from .settings import sites
from .settings.bps_command import accept_service_names, configuration_file, is_dry_run
from .settings.configuration import RunConfiguration
from .settings.remote import is_batch_submission
from .settings.run import ServiceSettings, default_configuration, own_messages, read_service_settings
from .staging import stage
from .workflow import PandaBpsWmsWorkflow

_LOG = logging.getLogger(__name__)

CONTROL_SUFFIX = "_ctrl"
"""End of the name of the workflow that BPS makes of a submission's stages."""

DEFAULT_DAYS = 2.0
"""How far the list of runs looks back if nobody says, days."""


@contextmanager
def show_staging(stream: TextIO) -> Iterator[Callable[[int, int], None] | None]:
    """Draw on a terminal how many files are staged; on any other stream draw nothing."""
    if not stream.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    files = TextColumn("{task.completed} of {task.total} files")
    bar = Progress(TextColumn("Staging"), BarColumn(), files, console=Console(file=stream))
    task = bar.add_task("")

    def draw(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        bar.start()
        if done >= total:
            bar.stop()

    try:
        yield draw
    finally:
        if bar.live.is_started:
            bar.stop()


class PanDAService(BaseWmsService):
    """Runs BPS workflows on PanDA and iDDS.

    Parameters
    ----------
    config : `~lsst.ctrl.bps.BpsConfig` or mapping
        Configuration of a run; empty for commands about submitted runs.
    """

    @property
    def defaults(self) -> Config:
        """What BPS merges beneath a user's configuration."""
        return default_configuration()

    @property
    def defaults_uri(self) -> ResourcePath:
        """Where the packaged defaults lie."""
        return sites.defaults_uri()

    def settings(self) -> ServiceSettings:
        """Return where PanDA is and who we are."""
        return read_service_settings(self.config)

    def _connect(self) -> Connection:
        """Make the clients; nothing is sent yet."""
        return connect(self.settings())

    # --- submission side -----------------------------------------------

    def run_submission_checks(self) -> None:
        """Look for everything that would keep a submission from working.

        A dry run (``bps prepare``) needs neither a server nor the staging
        area; what is wrong with them is a warning then.

        Raises
        ------
        PandaBpsError
            Raised if there is a problem; the text lists all of them.
        """
        report_findings(self.check_submission(), is_dry_run=is_dry_run())

    def check_submission(self) -> list[Finding]:
        """Return what would keep a submission from working, as far as it can
        be told before there is a quantum graph.
        """
        settings = self.settings()
        return [*check_configuration(self.config, settings.environment), *check_service(settings)]

    def prepare(
        self, config: BpsConfig, generic_workflow: GenericWorkflow, out_prefix: str | None = None
    ) -> PandaBpsWmsWorkflow:
        # Docstring inherited.
        accept_service_names()
        run = RunConfiguration(config)
        protect_dumps(out_prefix or run.submit_path)
        if is_batch_submission(config) and generic_workflow.name.endswith(CONTROL_SUFFIX):
            control = PandaBpsWmsWorkflow(run.name, config)
            control.planned_by_task = True
            return control
        service_class = f"{type(self).__module__}.{type(self).__name__}"
        workflow = PandaBpsWmsWorkflow.from_generic_workflow(
            config, generic_workflow, out_prefix or "", service_class
        )
        self._check_plan(workflow)
        workflow.write(out_prefix or "")
        table = render_table(workflow.plan, request_size=workflow.submission.length)
        _LOG.info("Plan of run %s:\n%s", workflow.name, table)
        self._advise(workflow)
        return workflow

    def _check_plan(self, workflow: PandaBpsWmsWorkflow) -> None:
        """Check a plan; for a command also the server, which BPS has not
        asked to be checked.
        """
        findings = check_plan(workflow.plan, workflow.settings, self.config)
        if workflow.run_attrs.get("bps_iscustom"):
            findings += check_service(self.settings())
        report_findings(findings, is_dry_run=is_dry_run())

    def _advise(self, workflow: PandaBpsWmsWorkflow) -> None:
        """Log what may be a mistake or could be better."""
        advice = find_advice(
            workflow.plan, length=len(workflow.submission.request), most=workflow.settings.max_request_length
        )
        environment = read_service_settings(workflow.config).environment
        names = check_names(workflow.config, environment, labels=workflow.settings.plan.labels)
        report_findings([*names, *advice], is_dry_run=is_dry_run())

    def submit(self, workflow: BaseWmsWorkflow, **kwargs: Any) -> BaseWmsWorkflow | None:
        # Docstring inherited.
        if kwargs.get("remote_build"):
            built = submit_build(self._connect(), **kwargs)
            self._tell_how_to_ask(built)
            return built
        if not isinstance(workflow, PandaBpsWmsWorkflow):
            raise SettingsError(
                "BPS prepared no workflow of this plugin. For a remote build it knows the service class "
                "lsst.ctrl.bps.panda.PanDAService only; 'panda_bps build CONFIG' works with any."
            )
        if workflow.planned_by_task:
            file = configuration_file() or RunConfiguration(workflow.config).file
            built = submit_build(self._connect(), config=workflow.config, config_file=file)
            workflow.run_id, workflow.submit_path = built.run_id, built.submit_path
            self._tell_how_to_ask(workflow)
            return None
        connection = self._connect()
        with show_staging(sys.stderr) as progress:
            stage(workflow.staged_files(), workflow.settings.staging, progress=progress)
        request_id = send(connection.relay, workflow.submission, workflow.name)
        workflow.run_id = str(request_id)
        record = read_record(workflow.submit_path or "")
        record_submission(
            connection,
            record,
            request_id,
            request_bytes=workflow.submission.length,
            messages=own_messages(connection.settings, record.run.site),
        )
        _LOG.info("Submitted run %s as request %d to %s", workflow.name, request_id, connection.settings.url)
        self._tell_how_to_ask(workflow)
        return None

    def _tell_how_to_ask(self, workflow: BaseWmsWorkflow) -> None:
        """Say what ``bps report`` needs: it reads no configuration, and takes
        another plugin's class by default.
        """
        name = f"{type(self).__module__}.{type(self).__name__}".replace(".service.", ".")
        known = self.settings().environment.get("BPS_WMS_SERVICE_CLASS", "").replace(".service.", ".")
        if known != name:
            command = f"export BPS_WMS_SERVICE_CLASS={name}; bps report --id {workflow.run_id}"
            _LOG.info("To follow the run: %s", command)

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
                report = make_run_report(
                    client.detail(found),
                    monitor_url=client.connection.settings.monitor_url,
                    return_exit_codes=return_exit_codes,
                )
                return [report], "\n".join(collect_outputs(found.record, report.state))
            days = hist or DEFAULT_DAYS
            runs, problems = client.recent(days=days, user=user, everybody=is_global)
            notes = [*problems]
            if runs or not problems:
                notes += list_notes(runs, days=days, user=user)
            return make_run_list(runs, filters=filters), "\n".join(dict.fromkeys(notes))
        except PandaBpsError as error:
            return [], str(error)

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
        return state, "\n".join(filter(None, (message, *collect_outputs(found.record, state))))

    def list_submitted_jobs(
        self,
        wms_id: str | None = None,
        user: str | None = None,
        require_bps: bool = True,
        pass_thru: str | None = None,
        is_global: bool = False,
    ) -> list[str]:
        """List the runs that a command such as cancel is meant for.

        Parameters
        ----------
        wms_id : `str`, optional
            Id, name or submit directory of a run.
        user : `str`, optional
            Whose runs; one's own by default, and never everybody's.
        require_bps : `bool`, optional
            Whether to leave out requests that BPS did not make.
        pass_thru : `str`, optional
            Filters, as in a report.
        is_global : `bool`, optional
            Ignored: a request belongs to one user.

        Returns
        -------
        ids : `list` [`str`]
            Request ids, sorted as numbers; only runs that have not ended
            unless a run was named.
        """
        filters = parse_filters(pass_thru)
        client = RunClient(self._connect())
        if wms_id:
            try:
                request_id, _ = client.find(wms_id)
                return [str(client.request(request_id).request_id)]
            except RunNotFoundError as error:
                # BPS says that no job matches; this says why.
                _LOG.error("%s", error)
                return []
        runs, problems = client.recent(days=DEFAULT_DAYS, user=user)
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
            return False, str(error)
        if accepted:
            # BPS prints the message of a failure only.
            _LOG.info("%s", message)
        return accepted, message

    def restart(self, wms_workflow_id: str) -> tuple[str | None, str | None, str]:
        # Docstring inherited.
        try:
            run_id, name, message = restart_run(RunClient(self._connect()), wms_workflow_id)
        except PandaBpsError as error:
            return None, None, str(error)
        if run_id is not None:
            # BPS prints the message of a failure only.
            _LOG.info("%s", message)
        return run_id, name, message

    def ping(self, pass_thru: str | None = None) -> tuple[int, str]:
        """Find out whether PanDA and iDDS answer.

        Parameters
        ----------
        pass_thru : `str`, optional
            Not used.

        Returns
        -------
        code : `int`
            0 if all is well, 1 otherwise.
        message : `str`
            What is wrong, and where.
        """
        try:
            connection = connect(self.settings(), prompt=True)
            connection.relay.ping()
        except PandaBpsError as error:
            return 1, diagnose(error)
        return 0, f"PanDA and iDDS at {connection.settings.url} answer."


class LocalPanDAService(PanDAService):
    """The same service on the embedded PanDA of this machine, which is found
    or started.
    """

    @property
    def defaults(self) -> Config:
        """What BPS merges beneath a user's configuration."""
        defaults = super().defaults
        defaults.update(Config(sites.local_defaults()))
        return defaults

    def settings(self) -> ServiceSettings:
        """Return the settings, with the address of the embedded PanDA."""
        from .local.endpoint import environment, state_directory
        from .local.instance import start

        settings = super().settings()
        endpoint = start(state_directory(settings.environment))
        merged: Mapping[str, str] = {**settings.environment, **environment(endpoint)}
        return replace(
            read_service_settings(self.config, merged),
            monitor_url=settings.environment.get("PANDA_MONITOR_URL", ""),
        )
