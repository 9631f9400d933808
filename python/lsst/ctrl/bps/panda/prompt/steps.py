"""The steps of a group in a process that keeps the Butler and the pipeline open: ingestion, quantum graph,
plan, submission, and, after its run, registration of the outputs.

Each step may be repeated after a crash: what it has made already stays as it is.
"""

from __future__ import annotations

__all__ = ["GroupError", "GroupSteps"]

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import time
from typing import Any

from lsst.ctrl.bps.pre_transform import cluster_quanta
from lsst.ctrl.bps.transform import transform
from lsst.ctrl.bps.wms_service import WmsStates
from lsst.daf.butler import (  # type: ignore[attr-defined]
    Butler,
    ButlerConfig,
    CollectionType,
    DatasetRef,
    DatasetType,
    QuantumBackedButler,
)
from lsst.pipe.base import Instrument, Pipeline
from lsst.pipe.base.all_dimensions_quantum_graph_builder import AllDimensionsQuantumGraphBuilder
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.utils import doImportType
from lsst.utils.doImport import doImport
from lsst.utils.packages import Packages

from ..errors import PandaBpsError, RunNotFoundError, SettingsError
from ..findings import report_findings
from ..insight.logs import LogTransport, TailReader
from ..insight.overview import JobScope, fetch_evidence
from ..runs.client import FoundRun, RunClient, connect
from ..service import PanDAService
from ..settings.configuration import RunConfiguration, complete_configuration
from ..settings.files import check_files
from ..settings.prompt import configure_group, read_prompt_section
from ..settings.run import read_service_settings
from ..status.failures import add_verdicts, group_errors
from ..status.verdicts import PACKAGED_RULES
from .catalog import Catalog, Group, StageTime

GRAPH_NAME = "group.qg"


class GroupError(PandaBpsError):
    """A group that cannot be processed."""


class GroupSteps:
    """The steps, with all that is kept open between groups.

    Parameters
    ----------
    file : `~pathlib.Path`
        BPS configuration with a section ``prompt``.
    directory : `~pathlib.Path`
        Directory of the processing; submit directories are made below it.
    catalog : `~.catalog.Catalog`
        Gets the times of stages.
    """

    def __init__(self, file: Path, directory: Path, catalog: Catalog) -> None:
        settings = read_service_settings(None)
        environment = settings.environment
        check_files(str(file), environment)
        self._config = complete_configuration(
            str(file),
            timestamp=Instrument.makeCollectionTimestamp(),
            user=settings.user,
            environment=environment,
        )
        self.section = read_prompt_section(self._config, environment)
        self._run = RunConfiguration(self._config)
        self._directory = directory
        self._catalog = catalog
        service_class = doImportType(self._run.service_class)
        if not issubclass(service_class, PanDAService):
            raise SettingsError(
                f"wmsServiceClass is {self._run.service_class}; prompt processing needs a class of this "
                "plugin: lsst.ctrl.bps.panda.LocalPanDAService or lsst.ctrl.bps.panda.PanDAService."
            )
        self._service_class: type[PanDAService] = service_class
        is_ingested = self.section.source == "collection"
        self._ingest = None if is_ingested else _import("ingest", self.section.ingest)
        self.opens = _import("opens", self.section.opens) if self.section.opens else None
        self._client: RunClient | None = None
        self._graphs: dict[str, PredictedQuantumGraph] = {}
        report_findings(service_class(self._config).check_submission(), is_dry_run=False)
        # Each part that needs it would read its files anew.
        self._butler_config = ButlerConfig(self._run.butler)
        self.butler = Butler.from_config(self._butler_config, writeable=True)
        self._pipeline = Pipeline.from_uri(self._run.pipeline).to_graph()
        self._types: dict[str, DatasetType] = {}
        # Takes as long as making a quantum graph.
        self._packages = Packages.fromSystem()

    def close(self) -> None:
        """Close the Butler."""
        self.butler.close()

    @contextmanager
    def _timed(self, group: Group, stage: str) -> Iterator[None]:
        begun = time()
        yield
        self._catalog.note([StageTime(group.name, group.attempt, stage, begun, time())])

    def submit_path(self, group: Group) -> Path:
        """Return the submit directory of the current attempt of a group."""
        return self._directory / "groups" / group.name / str(group.attempt)

    # --- until its run is submitted ---

    def ingest(self, group: Group) -> list[Mapping[str, Any]]:
        """Ingest the images of a group, and return their data IDs."""
        if self._ingest is None:
            return [json.loads(text) for text in group.inputs]
        with self._timed(group, "ingest"):
            return list(self._ingest(self.butler, list(group.inputs), run=self.section.collection))

    def night_of(self, group: Group, data_ids: Sequence[Mapping[str, Any]]) -> str:
        """Return the night of a group: its day of observation, else the day of its arrival."""
        if "exposure" in data_ids[0] or "visit" in data_ids[0]:
            return str(self.butler.registry.expandDataId(data_ids[0])["day_obs"])
        return datetime.fromtimestamp(group.arrived, UTC).strftime("%Y%m%d")

    def make_graph(self, group: Group, data_ids: Sequence[Mapping[str, Any]]) -> Path:
        """Make the quantum graph of an attempt and initialize its collection; return the file.

        After a crash it is the same graph, as its run may have been submitted.
        """
        path = self.submit_path(group) / GRAPH_NAME
        with self._timed(group, "graph"):
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                self._write_graph(group, data_ids, path)
            self._initialize(self._graph_of(group))
        return path

    def _initialize(self, graph: PredictedQuantumGraph) -> None:
        """Write what the first job of a run writes, as ``init_output_run`` does it."""
        (packages,) = graph.get_init_outputs("").values()
        with graph.make_init_qbb(self._butler_config) as backed:
            graph.write_configs(backed)
            if not backed.stored(packages):
                backed.put(self._packages, packages)
            graph.write_init_outputs(backed)

    def _write_graph(self, group: Group, data_ids: Sequence[Mapping[str, Any]], path: Path) -> None:
        queries = [text for text in (self._run.data_query, _where(data_ids)) if text]
        builder = AllDimensionsQuantumGraphBuilder(
            self._pipeline,
            self.butler,
            input_collections=[self.section.collection, *self._run.input_collections],
            output_run=group.run,
            where=" AND ".join(f"({text})" for text in queries),
        )
        made = builder.finish(output=group.chain, metadata={}, attach_datastore_records=True)
        if not made.header.n_quanta:
            raise GroupError(
                f"No quantum of the pipeline fits the images of group {group.name}: look at dataQuery "
                f"{self._run.data_query!r}, inCollection, and the pipeline."
            )
        partial = path.with_name(f"partial_{path.name}")
        made.write(str(partial))
        os.replace(partial, path)
        self._graphs[group.run] = made.assemble()

    def _graph_of(self, group: Group) -> PredictedQuantumGraph:
        if group.run not in self._graphs:
            with PredictedQuantumGraph.open(self.submit_path(group) / GRAPH_NAME) as reader:
                reader.read_all()
            self._graphs[group.run] = reader.finish()
        return self._graphs[group.run]

    def submit(self, group: Group, graph_file: Path) -> int:
        """Plan and submit the run of an attempt, unless that was done before a crash; return its request."""
        path = self.submit_path(group)
        with self._timed(group, "plan"):
            config = configure_group(self._config, run=group.run, submit_path=path, graph=graph_file)
            name = RunConfiguration(config).name
            clustered = cluster_quanta(config, self._graph_of(group), name)
            generic, generic_config = transform(config, clustered, str(path))
            service = self._service_class(generic_config)
            workflow = service.prepare(generic_config, generic, str(path))
        with self._timed(group, "submit"):
            # The catalogue has one group of a name, and one process.
            service.submit(workflow, alone=True)
        return int(workflow.run_id)

    # --- after that ---

    @property
    def client(self) -> RunClient:
        """The client for runs; it starts the embedded PanDA if that is not running."""
        if self._client is None:
            self._client = RunClient(connect(self._service_class(self._config).settings()))
        return self._client

    def forget_client(self) -> None:
        """Connect anew at the next question: the server may have another address now."""
        self._client = None

    def outcome(self, group: Group) -> str | None:
        """Return why the run of a group failed, empty if it succeeded, `None` if it has not ended."""
        assert group.run_id is not None
        try:
            evidence = self.client.summary(FoundRun(group.run_id, None))
        except RunNotFoundError as error:
            return str(error)
        # One question is cheap; the planned number of tasks takes a file more.
        if not evidence.ended or not (evidence := self.client.summary(group.run_id)).ended:
            return None
        return "" if evidence.tally.state == WmsStates.SUCCEEDED else self._why(group.run_id)

    def _why(self, run_id: int) -> str:
        evidence = fetch_evidence(self.client.connection, run_id, scope=JobScope.FAILED)
        reader = TailReader(LogTransport(self.client.connection, patience=2.0))
        found = add_verdicts(group_errors(evidence)[:1], PACKAGED_RULES, read_tail=reader)
        if not found:
            return f"run {run_id} ended as {evidence.tally.state.name}"
        return f"{found[0].label}: {found[0].exception or found[0].text} (panda_bps errors {run_id})"

    def register(self, group: Group, *, ended: float) -> float | None:
        """Register the outputs of an attempt in the Butler, put its collection first into that of the night,
        and note when its quanta ran; return when the last one ended.
        """
        with self._timed(group, "register"):
            refs = self._outputs_of(self._graph_of(group))
            backed = QuantumBackedButler.from_predicted(
                config=self._butler_config,
                predicted_inputs=[ref.id for ref in refs],
                predicted_outputs=[],
                dimensions=self.butler.dimensions,
                datastore_records={},
                dataset_types=self._types,
            )
            with backed:
                known = self.butler._exists_many(refs, full_check=False)
                new = [ref for ref in refs if not known[ref]]
                self.butler.transfer_from(backed, new, transfer="auto")
            self._chain(group)
        times = [*self._quantum_times(group, refs, ended)]
        self._catalog.note(times)
        self._graphs.pop(group.run, None)
        return next((each.begun for each in times if each.stage == "end"), None)

    def _outputs_of(self, graph: PredictedQuantumGraph) -> list[DatasetRef]:
        """Return all outputs of a graph, of the dataset types that the Butler has."""
        if not self._types:
            # That of the graph is resolved also in a process that has made no graph yet.
            graph.pipeline_graph.register_dataset_types(self.butler)
            self._types = {each.name: each for each in self.butler.registry.queryDatasetTypes()}
        quanta = graph.build_execution_quanta().values()
        refs = [ref for quantum in quanta for refs in quantum.outputs.values() for ref in refs]
        for label in ("", *self._pipeline.tasks):
            refs += graph.get_init_outputs(label).values()
        return [ref.overrideStorageClass(self._types[ref.datasetType.name].storageClass_name) for ref in refs]

    def _chain(self, group: Group) -> None:
        collections = self.butler.collections
        if collections.register(group.chain, CollectionType.CHAINED):
            inputs = [self.section.collection, *self._run.input_collections]
            collections.extend_chain(group.chain, collections.query(inputs, flatten_chains=True))
        collections.prepend_chain(group.chain, group.run)

    def _quantum_times(self, group: Group, refs: Sequence[DatasetRef], ended: float) -> Iterator[StageTime]:
        """Tell when the quanta of each label ran, when the first one began, and how long it took to know that
        all have ended; `ended` is when that was known.
        """
        spans: dict[str, tuple[float, float]] = {}
        suffix = "_metadata"
        for ref in refs:
            if ref.datasetType.name.endswith(suffix) and self.butler.stored(ref):
                label = ref.datasetType.name.removesuffix(suffix)
                told = self.butler.get(ref)["quantum"]
                begun, over = (_seconds(told.getScalar(name)) for name in ("startUtc", "endUtc"))
                first, last = spans.get(label, (begun, over))
                spans[label] = min(first, begun), max(last, over)
        if spans:
            for label, (begun, over) in spans.items():
                yield StageTime(group.name, group.attempt, label, begun, over)
            first, last = min(begun for begun, _ in spans.values()), max(over for _, over in spans.values())
            submitted = next(
                (
                    each.ended
                    for each in self._catalog.times(group.name)
                    if (each.attempt, each.stage) == (group.attempt, "submit")
                ),
                first,
            )
            yield StageTime(group.name, group.attempt, "start", submitted, first)
            yield StageTime(group.name, group.attempt, "end", last, ended)


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _where(data_ids: Sequence[Mapping[str, Any]]) -> str:
    """Return the expression that selects the images of a group, which are all detectors of an exposure, or
    some of them.
    """
    texts = []
    for name in data_ids[0]:
        values = sorted({data_id[name] for data_id in data_ids})
        shown = ", ".join(f"'{value}'" if isinstance(value, str) else str(value) for value in values)
        texts.append(f"{name} IN ({shown})")
    return " AND ".join(texts)


def _import(name: str, path: str) -> Any:
    try:
        return doImport(path)
    except ImportError as error:
        raise SettingsError(f"prompt.{name} is {path!r}, which cannot be imported: {error}.") from error
