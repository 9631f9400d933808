"""Register the outputs of a run in Rucio: the program of the registration
step, which is staged with the run.

It runs by itself, with a ``python3`` that has the Butler, ``rucio-clients``
and ``lsst-rucio-register`` (which needs ``backoff`` without declaring it), and
without this plugin, so that a site has nothing of it to install on its
workers.  ``lsst-rucio-register`` computes the size, the checksum, the names
and the metadata of the files; this program finds what is missing, refuses
what that package would silently get wrong, adds the rule and closes the
dataset.  It may be run again at any time::

    python3 program.py REGISTRATION.json [--quantum-graph FILE]
"""

from __future__ import annotations

__all__ = [
    "Dataset",
    "ButlerOutputs",
    "RegisteredFiles",
    "Output",
    "RegistrationError",
    "Registration",
    "RuleWanted",
    "add_rule",
    "find_outputs",
    "find_rule",
    "graph_name",
    "find_registered_files",
    "main",
    "name_of",
    "register",
]

import argparse
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_LOG = logging.getLogger("rucioRegister")

FORMAT = 1
"""Version of the file that describes a registration."""

EXIT_REFUSED = 3
"""Exit code: the request itself is wrong, so that another attempt fails, too."""

EXIT_FAILED = 4
"""Exit code: the Butler or Rucio refused or did not answer."""

_DATASETS_AT_ONCE = 1000
"""Datasets whose files are looked up in one question to the Butler."""

EXIT_INCOMPLETE_ENVIRONMENT = 5
"""Exit code: this Python lacks what the program needs."""


class RegistrationError(Exception):
    """A registration that must not be made as it is asked for."""


@dataclass(frozen=True)
class RuleWanted:
    """A replication rule for the dataset."""

    rse_expression: str
    copies: int = 1
    lifetime: int = 0
    """Seconds; 0 means no end."""


@dataclass(frozen=True)
class Registration:
    """What is to be registered, and under which names and paths."""

    butler: str
    """Butler repository as the worker reaches it; may hold ``$VARIABLES``."""

    collection: str
    """Collection of the run's outputs."""

    dataset_types: tuple[str, ...]
    """Names; ``*`` stands for anything."""

    scope: str
    dataset: str
    """Name of the Rucio dataset."""

    rse: str
    rse_root: str
    """Path or URI below which the folder of the scope lies."""

    dtn_url: str
    """URL that a transfer service uses in place of ``rse_root``."""

    where: str = ""
    """Expression of the Butler that selects among the outputs."""

    rule: RuleWanted | None = None
    close: bool = False
    chunk: int = 200
    """Number of files that are registered in one call."""

    quantum_graph: str = ""
    """Path of the quantum graph on the submit host, if it is registered, too;
    empty otherwise."""

    @property
    def graph_name(self) -> str:
        """Name of the quantum graph in Rucio; empty if it is not registered."""
        return graph_name(self, self.quantum_graph) if self.quantum_graph else ""

    @classmethod
    def from_json(cls, text: str) -> Registration:
        """Parse what `to_json` wrote; `RegistrationError` if it is anything else or of
        another version.
        """
        try:
            content = json.loads(text)
            if content.pop("format") != FORMAT:
                raise ValueError("it is of another version")
            rule = content.pop("rule")
            types = tuple(content.pop("dataset_types"))
            return cls(dataset_types=types, rule=RuleWanted(**rule) if rule else None, **content)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RegistrationError(f"What is to be registered cannot be read: {error!r}.") from error

    def to_json(self) -> str:
        """Render the registration as JSON."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"

    def expanded(self) -> Registration:
        """Return a copy with environment variables replaced in the places
        that may differ from worker to worker.
        """
        names = ("butler", "rse_root", "dtn_url")
        values: dict[str, Any] = {name: os.path.expandvars(getattr(self, name)) for name in names}
        return dataclasses.replace(self, **values)


@dataclass(frozen=True)
class Output:
    """A dataset of the Butler that has a file."""

    dataset_type: str
    name: str
    """Name in Rucio, without the scope."""

    uri: Any
    """URI of the file, a `~lsst.resources.ResourcePath`."""

    ref: Any
    """The `~lsst.daf.butler.DatasetRef`."""


@dataclass(frozen=True)
class ButlerOutputs:
    """What the Butler has of a run."""

    outputs: tuple[Output, ...]
    absent: tuple[str, ...]
    """Dataset types without any dataset."""

    without_file: int
    """Number of datasets that the Butler knows without having a file."""


@dataclass(frozen=True)
class Dataset:
    """A dataset of Rucio."""

    is_open: bool


@dataclass(frozen=True)
class RegisteredFiles:
    """What Rucio has of a dataset."""

    dataset: Dataset | None
    """`None` if it does not exist."""

    attached: frozenset[str]
    """Names of the files in it."""

    at_rse: frozenset[str]
    """Those of them that have a replica at the site's RSE."""

    def lacks(self, outputs: Sequence[Output]) -> list[Output]:
        """Return the outputs that are still to be registered."""
        return [output for output in outputs if output.name not in self.at_rse]


def graph_name(registration: Registration, path: str) -> str:
    """Return the name in Rucio of a quantum graph.

    Parameters
    ----------
    registration : `Registration`
        What is to be registered.
    path : `str`
        Path of the graph; only its last part counts.
    """
    return f"{registration.dataset}/{os.path.basename(path)}"


# --- the Butler -------------------------------------------------------------


def name_of(path: str, registration: Registration) -> str:
    """Return the name that ``lsst-rucio-register`` gives a file.

    That package takes the rest of the path after ``rse_root`` and
    ``/scope/``; a file elsewhere would get a name by which it cannot be found.

    Parameters
    ----------
    path : `str`
        Path of the file.
    registration : `Registration`
        What is to be registered.

    Raises
    ------
    RegistrationError
        Raised if the file is not below the folder of the scope.
    """
    prefix = f"{registration.rse_root.rstrip('/')}/{registration.scope}/"
    if not path.startswith(prefix):
        raise RegistrationError(
            f"{path} is not below {prefix} (rseRoot and scope), so it would get a wrong name in Rucio. Set "
            "rseRoot to the part of the path before the folder that is named like the scope."
        )
    return path[len(prefix) :]


def find_outputs(butler: Any, registration: Registration) -> ButlerOutputs:
    """Find the run's outputs in the Butler.

    Parameters
    ----------
    butler : `~lsst.daf.butler.Butler`
        The site's Butler.
    registration : `Registration`
        What is to be registered.

    Raises
    ------
    RegistrationError
        Raised if there is no such collection, or a file would get a wrong
        name.
    """
    from lsst.daf.butler import MissingCollectionError

    try:
        butler.collections.query(registration.collection)
    except MissingCollectionError:
        raise RegistrationError(
            f"The Butler {registration.butler} has no collection {registration.collection}: no job has put "
            "its outputs there, or the final job did not run."
        ) from None
    outputs: dict[str, Output] = {}
    absent = []
    without_file = 0
    for wanted in registration.dataset_types:
        refs = list(_query(butler, wanted, registration))
        if not refs:
            absent.append(wanted)
        located = _locate(butler, refs)
        without_file += len(refs) - len(located)
        for ref, uri in located:
            name = name_of(uri.unquoted_path, registration)
            outputs[name] = Output(ref.datasetType.name, name, uri, ref)
    return ButlerOutputs(tuple(outputs[name] for name in sorted(outputs)), tuple(absent), without_file)


def _query(butler: Any, wanted: str, registration: Registration) -> Iterator[Any]:
    """Yield the datasets of all types that match a pattern."""
    for dataset_type in butler.registry.queryDatasetTypes(wanted):
        yield from butler.query_datasets(
            dataset_type,
            collections=registration.collection,
            find_first=False,
            where=registration.where,
            with_dimension_records=True,
            explain=False,
            limit=None,
        )


def _locate(butler: Any, refs: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Return the datasets that have a file, each with its URI."""
    located = []
    for start in range(0, len(refs), _DATASETS_AT_ONCE):
        part = refs[start : start + _DATASETS_AT_ONCE]
        uris = butler.get_many_uris(part, allow_missing=True)
        for ref in part:
            if ref not in uris:
                continue
            if uris[ref].primaryURI is None:
                raise RegistrationError(
                    f"{ref} is in several files (a disassembled composite); lsst-rucio-register cannot "
                    "register such datasets. Take its dataset type out of datasetTypes."
                )
            located.append((ref, uris[ref].primaryURI))
    return located


# --- Rucio ------------------------------------------------------------------


def find_registered_files(client: Any, registration: Registration) -> RegisteredFiles:
    """Find out what Rucio has already.

    Parameters
    ----------
    client : `rucio.client.Client`
        Rucio.
    registration : `Registration`
        What is to be registered.
    """
    from rucio.common.exception import DataIdentifierNotFound

    scope, dataset = registration.scope, registration.dataset
    try:
        did = client.get_did(scope, dataset)
    except DataIdentifierNotFound:
        return RegisteredFiles(None, frozenset(), frozenset())
    if did["type"] != "DATASET":
        raise RegistrationError(
            f"{scope}:{dataset} is a {did['type'].lower()} in Rucio, not a dataset; use another datasetName."
        )
    attached = frozenset(entry["name"] for entry in client.list_files(scope, dataset))
    replicas = client.list_replicas(
        [{"scope": scope, "name": dataset}], rse_expression=registration.rse, all_states=True
    )
    there = {replica["name"] for replica in replicas if registration.rse in replica["states"]}
    return RegisteredFiles(Dataset(bool(did["open"])), attached, attached & there)


def _interface(butler: Any, registration: Registration) -> Any:
    """Make the object of ``lsst-rucio-register`` that does the work."""
    from lsst.rucio.register.data_type import DataType
    from lsst.rucio.register.rucio_interface import RucioInterface

    return RucioInterface(
        butler,
        registration.rse,
        registration.scope,
        registration.rse_root.rstrip("/"),
        registration.dtn_url.rstrip("/"),
        DataType.DATA_PRODUCT,
    )


def _register_missing(butler: Any, registration: Registration, missing: Sequence[Output]) -> None:
    """Register datasets, a chunk at a time."""
    interface = _interface(butler, registration)
    for start in range(0, len(missing), registration.chunk):
        part = missing[start : start + registration.chunk]
        interface.register_as_replicas(registration.dataset, [output.ref for output in part])
        _LOG.info("registered %d of %d", start + len(part), len(missing))


def register(butler: Any, client: Any, registration: Registration, *, quantum_graph: str = "") -> str:
    """Register what is missing, add the rule, close the dataset.

    Parameters
    ----------
    butler : `~lsst.daf.butler.Butler`
        The site's Butler.
    client : `rucio.client.Client`
        Rucio.
    registration : `Registration`
        What is to be registered.
    quantum_graph : `str`, optional
        Path of the quantum graph, if it is to be registered.

    Returns
    -------
    summary : `str`
        What was done, with numbers.

    Raises
    ------
    RegistrationError
        Raised if the registration must not be made.
    """
    found = find_outputs(butler, registration)
    for wanted in found.absent:
        _LOG.warning("the run has no dataset of type %s", wanted)
    if found.without_file:
        _LOG.warning("%d datasets have no file and are left out", found.without_file)
    if not found.outputs:
        raise RegistrationError(
            f"Collection {registration.collection} holds nothing to register: no file of "
            f"{', '.join(registration.dataset_types)}."
        )
    registered = find_registered_files(client, registration)
    missing = registered.lacks(found.outputs)
    place = f"{registration.scope}:{registration.dataset}"
    if registered.dataset is not None and not registered.dataset.is_open and missing:
        raise RegistrationError(
            f"Rucio's dataset {place} is closed, and {len(missing)} of {len(found.outputs)} files are not in "
            "it. Set another datasetName."
        )
    _LOG.info("%d files, of which %d are in %s", len(found.outputs), len(found.outputs) - len(missing), place)
    if missing:
        _register_missing(butler, registration, missing)
        left = find_registered_files(client, registration).lacks(found.outputs)
        if left:
            raise RuntimeError(f"{len(left)} files are still not in {place}, for instance {left[0].name}.")
    words = [f"{len(missing)} files registered in {place} at {registration.rse}"]
    words.append(f"{len(found.outputs) - len(missing)} were there already")
    if quantum_graph:
        words.append(_register_quantum_graph(butler, client, registration, quantum_graph))
    if registration.rule is not None:
        words.append(add_rule(client, registration, registration.rule))
    if registration.close:
        words.append(_close(client, registration))
    return "; ".join(words)


def _register_quantum_graph(butler: Any, client: Any, registration: Registration, source: str) -> str:
    """Copy the quantum graph to the outputs and register it.

    It gets no ``rubin_butler`` metadata, so that no Butler at the other end
    tries to ingest it.
    """
    from lsst.resources import ResourcePath

    name = graph_name(registration, source)
    path = f"/{registration.scope}/{name}"
    registered = find_registered_files(client, registration)
    if name in registered.at_rse:
        return "the quantum graph was there already"
    if registered.dataset is not None and not registered.dataset.is_open:
        raise RegistrationError(
            f"Rucio's dataset {registration.scope}:{registration.dataset} is closed, and the quantum graph "
            "is not in it. Set another datasetName."
        )
    target = ResourcePath(registration.rse_root.rstrip("/") + path, forceDirectory=False)
    original = ResourcePath(source, forceDirectory=False)
    # An attempt that was killed may have left a partial copy.
    if not target.exists() or target.size() != original.size():
        target.transfer_from(original, "copy", overwrite=True)
    size, adler32 = _interface(butler, registration).compute_hashes(target)
    did = {"scope": registration.scope, "name": name, "bytes": size, "adler32": adler32}
    client.add_replicas(registration.rse, [{**did, "pfn": registration.dtn_url.rstrip("/") + path}])
    attachment = {"scope": registration.scope, "name": registration.dataset, "dids": [did]}
    client.add_files_to_datasets([attachment], ignore_duplicate=True)
    return f"quantum graph registered as {name}"


def find_rule(rules: Iterable[Any], wanted: RuleWanted, account: str = "") -> Any | None:
    """Return the one of a dataset's rules in Rucio that is for the same places
    as the wanted rule and for as many copies or more, or `None`.

    The step needs a rule of its own account, because other accounts may delete
    theirs.  Without an account the rule of any counts, for those who look at
    what the account of a step has registered.
    """
    for rule in rules:
        is_enough = rule["rse_expression"] == wanted.rse_expression and rule["copies"] >= wanted.copies
        if is_enough and account in ("", rule["account"]):
            return rule
    return None


def add_rule(client: Any, registration: Registration, wanted: RuleWanted) -> str:
    """Add the rule unless it exists, and describe what was done."""
    rules = client.list_did_rules(registration.scope, registration.dataset)
    if (rule := find_rule(rules, wanted, client.account)) is not None:
        return f"rule {rule['id']} for {wanted.rse_expression} was there already ({rule['state']})"
    (number,) = client.add_replication_rule(
        [{"scope": registration.scope, "name": registration.dataset}],
        wanted.copies,
        wanted.rse_expression,
        lifetime=wanted.lifetime or None,
        grouping="DATASET",
    )
    return f"rule {number} added: {wanted.copies} of {wanted.rse_expression}"


def _close(client: Any, registration: Registration) -> str:
    """Close the dataset, if it is open."""
    if not client.get_did(registration.scope, registration.dataset)["open"]:
        return "the dataset was closed already"
    client.close(registration.scope, registration.dataset)
    return "dataset closed"


# --- the program ------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    """Register the outputs, and return the exit code."""
    with open(arguments.registration, encoding="utf-8") as stream:
        registration = Registration.from_json(stream.read()).expanded()
    try:
        import lsst.rucio.register.rucio_interface  # noqa: F401
        from lsst.daf.butler import Butler
        from rucio.client import Client
        from rucio.common.config import config_get
    except ImportError as error:
        _LOG.error(
            "%s has no module %s. The step needs the Butler, and: pip install rucio-clients "
            "lsst-rucio-register backoff. Set rucio.python to the Python that has them.",
            sys.executable,
            error.name,
        )
        return EXIT_INCOMPLETE_ENVIRONMENT
    # Logged before the log-in, whose errors do not name the server.
    _LOG.info("Rucio %s", config_get("client", "rucio_host", raise_exception=False, default="not set up"))
    client = Client()
    _LOG.info("account %s", client.account)
    with Butler.from_config(registration.butler) as butler:
        summary = register(butler, client, registration, quantum_graph=arguments.quantum_graph)
    _LOG.info("%s", summary)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program, and return its exit code.

    Parameters
    ----------
    argv : sequence of `str`, optional
        Arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(description="Register the outputs of a run in Rucio.")
    parser.add_argument("registration", help="JSON file that describes the registration")
    parser.add_argument("--quantum-graph", default="", help="file to register with the outputs")
    arguments = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    _LOG.setLevel(logging.INFO)
    try:
        return _run(arguments)
    except RegistrationError as error:
        _LOG.error("%s", error)
        return EXIT_REFUSED
    except Exception as error:  # each library has errors of its own
        _LOG.info("where it happened", exc_info=True)
        # Last, as the end of a log is what is shown.
        _LOG.error(
            "%s: %s. What was registered stays; bps restart, or panda_bps rucio register, adds the rest.",
            type(error).__name__,
            str(error).rstrip("."),
        )
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
