"""Provenance of a run: one graph of what all its requests have done, put into its Butler as the last step.

A run whose graph is in the Butler is closed: metadata, logs and configurations are in the graph then, and
what ran afterwards would not be.
"""

from __future__ import annotations

__all__ = ["LABEL", "Provenance", "add_step", "find_ingested", "make_provenance", "read_butler"]

import logging
import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from lsst.ctrl.bps.wms_service import WmsStates
from lsst.daf.butler import Butler, MissingCollectionError
from lsst.pipe.base.automatic_connection_constants import PROVENANCE_DATASET_TYPE_NAME
from lsst.pipe.base.quantum_graph import ProvenanceQuantumGraph

from lsst.ctrl.bps import GenericWorkflow, GenericWorkflowExec, GenericWorkflowFile, GenericWorkflowJob

from ..errors import PandaBpsError, RunNotFoundError, SettingsError
from ..plan.commands import make_shell_safe
from ..plan.document import find_file
from ..plan.graph import GRAPH_KEY, append_final, find_quantum_graph
from ..settings.configuration import RunConfiguration
from ..staging.transfers import describe_cause
from .client import FoundRun, RunClient
from .files import PLAN_NAME, PROVENANCE_GRAPH_NAME, PROVENANCE_REPORT_NAME, find_resource
from .record import RunRecord, read_record

_LOG = logging.getLogger(__name__)

LABEL = "provenance"
"""Label of the job of a run that wants its provenance at its end."""

_STEP_GRAPH = "provenanceQuantumGraph"
_STEP_MEMORY = 4096
_STEP = (
    "butler --long-log --log-level=INFO aggregate-graph <FILE:{graph}> {butler} -o provenance.qg "
    "--register-dataset-types && "
    "butler --long-log --log-level=INFO ingest-graph {butler} provenance.qg"
)


@dataclass(frozen=True, slots=True)
class Provenance:
    """What was made for a run."""

    request_id: int
    """The last request of the run, the only one unless it was restarted."""

    graph: Path
    report: Path
    """JSON: the quanta that failed, with all their attempts."""

    ingested: bool
    """Whether the graph is in the Butler, so that the run is closed."""


def add_step(workflow: GenericWorkflow, butler: str) -> None:
    """Add a job after all others of a workflow that puts the provenance of its run into its Butler.

    It is tried once, because a second attempt would not see what the first has moved into the graph;
    `make_provenance` completes what it has left.
    """
    final = workflow.get_final()
    if final is not None and LABEL in ([final.name] if isinstance(final, GenericWorkflowJob) else final):
        return
    source = find_quantum_graph(workflow)
    if not source:
        raise SettingsError(
            "ingestProvenance is yes, but this run has no quantum graph.", key="ingestProvenance"
        )
    command = _STEP.format(graph=_STEP_GRAPH, butler=make_shell_safe(butler))
    job = GenericWorkflowJob(
        name=LABEL,
        label=LABEL,
        executable=GenericWorkflowExec("bash", "/bin/bash", transfer_executable=False),
        arguments=f"-c {shlex.quote(command)}",
        environment=dict(getattr(final, "environment", None) or {}),
        request_memory=getattr(final, "request_memory", None) or _STEP_MEMORY,
        request_cpus=1,
        number_of_retries=0,
    )
    # BPS's own entry is for jobs that read it in the staging area; this job gets a copy.
    graph = GenericWorkflowFile(_STEP_GRAPH, src_uri=source, wms_transfer=True, job_shared=True)
    append_final(workflow, job, [graph])


def make_provenance(
    client: RunClient, run: str, *, ingest: bool = True, close: bool = False, processes: int = 1
) -> Provenance:
    """Make the provenance graph of a run that has ended, with its report, and put it into the run's Butler.

    Of a restarted run it is that of all its requests.  Without ``ingest`` the run stays open; ``close``
    closes one, too, in which jobs have failed.  What was interrupted is completed.
    """
    # Imported here, since a restart, which asks whether a run is closed, does not need them.
    from lsst.pipe.base.quantum_graph.aggregator import AggregatorConfig, aggregate_graph
    from lsst.pipe.base.quantum_graph.ingest_graph import ingest_graph

    found, record = client.find_last(run)
    butler = read_butler(record)
    output_run = record.run.output_run
    directory = Path(record.submit_path)
    made = Provenance(
        found.request_id,
        directory / PROVENANCE_GRAPH_NAME,
        directory / PROVENANCE_REPORT_NAME,
        ingested=ingest,
    )
    if find_ingested(record):
        _LOG.info("Provenance of %s is in the Butler already; what is missing is completed.", output_run)
        try:
            ingest_graph(butler, None, output_run=output_run)
            _write_report(butler, output_run, made.report)
        except Exception as error:  # each store has errors of its own
            raise _failed(output_run, error) from error
        return replace(made, ingested=True)
    _check_state(client, found, ingest=ingest, close=close)
    settings = AggregatorConfig(output_path=os.fspath(made.graph), n_processes=processes)
    try:
        aggregate_graph(_find_graph(record), butler, settings)
        _write_report(os.fspath(made.graph), None, made.report)
        if ingest:
            # A copy stays in the submit directory.
            ingest_graph(butler, os.fspath(made.graph), transfer="copy", output_run=output_run)
    except Exception as error:  # each store has errors of its own
        raise _failed(output_run, error) from error
    return made


def _failed(output_run: str, error: Exception) -> PandaBpsError:
    return PandaBpsError(
        f"The provenance of {output_run} could not be completed: {describe_cause(error)}. Give the "
        "command once more when the cause is gone; it goes on from there."
    )


def _check_state(client: RunClient, found: FoundRun, *, ingest: bool, close: bool) -> None:
    """Refuse a run that goes on, and one that is not complete unless it is to be closed like that."""
    evidence = client.status(found)
    run = found.request_id
    if not evidence.ended:
        raise PandaBpsError(f"Run {run} is still going; its provenance is complete when it has ended.")
    if ingest and not close and evidence.tally.state is not WmsStates.SUCCEEDED:
        raise PandaBpsError(
            f"Run {run} has not succeeded (it is {evidence.tally.state.name}), and a run whose provenance is "
            "in the Butler cannot be restarted any more. Complete it with bps restart first, or give --close "
            "to close it as it is, or --no-ingest for graph and report only."
        )


def find_ingested(record: RunRecord) -> bool:
    """Tell whether the provenance graph of a run is in its Butler, as far as that can be read here."""
    try:
        with Butler.from_config(read_butler(record)) as butler:
            run = record.run.output_run
            return butler.find_dataset(PROVENANCE_DATASET_TYPE_NAME, collections=[run]) is not None
    except MissingCollectionError:
        return False
    except Exception as error:  # each store has errors of its own
        _LOG.debug("It is not known whether the provenance of %s is in its Butler: %s", record.name, error)
        return False


def read_butler(record: RunRecord) -> str:
    """Return the Butler of a run from the configuration that BPS has left in the submit directory."""
    directory = record.origin_directory
    path = directory / f"{read_record(directory).name}_config.yaml"
    if not path.is_file():
        raise RunNotFoundError(f"{path} does not exist, so the run's Butler is not known.")
    return RunConfiguration.read(path).butler


def _find_graph(record: RunRecord) -> str:
    """Return where the run's predicted quantum graph can be read."""
    path = Path(record.submit_path, PLAN_NAME)
    with path.open("rb") as lines:
        graph = find_file(lines, GRAPH_KEY)
    if graph is None:
        raise RunNotFoundError(f"The plan {path} names no quantum graph, so there is no provenance.")
    local = record.origin_directory / graph.name
    if local.is_file():
        return os.fspath(local)
    return str(find_resource(record.staging_area, directory=True).join(graph.name))


def _write_report(graph_or_butler: str, collection: str | None, path: Path) -> None:
    with ProvenanceQuantumGraph.from_args(graph_or_butler, collection=collection, datasets=()) as (graph, _):
        graph.make_many_reports(status_report_file=os.fspath(path))
