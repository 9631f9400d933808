"""The state of a registration: files, the places of their replicas, rules, and
outputs of the Butler that are missing.
"""

from __future__ import annotations

__all__ = [
    "ReplicaCount",
    "RegistrationStatus",
    "Rule",
    "compare_registration",
    "fetch_registration_status",
    "make_plain_status",
]

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..edgenode.rucio_program import ButlerOutputs, Registration, find_rule
from ..errors import RucioError
from ..insight.documents import make_plain
from .client import find_outputs_of_run, open_butler, rucio_errors


@dataclass(frozen=True, slots=True)
class ReplicaCount:
    """Number of replicas of the dataset at one RSE."""

    rse: str
    available: int
    others: int
    """Replicas in another state: being copied, or bad."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A replication rule of the dataset."""

    rule_id: str
    rse_expression: str
    copies: int
    account: str
    state: str
    """``OK``, ``REPLICATING``, ``STUCK``, ``SUSPENDED`` and so on."""

    ok: int
    replicating: int
    stuck: int
    """Locks, one a file and copy."""

    error: str
    expires_at: str
    """UTC; empty if it does not end."""

    waiting: int
    """Locks that do not exist yet, of files that were added to the dataset after the rule."""

    @property
    def is_satisfied(self) -> bool:
        """Whether it is OK, for all files of the dataset."""
        return self.state == "OK" and not self.waiting


@dataclass(frozen=True, slots=True)
class RegistrationStatus:
    """What is registered of a run, and what is missing."""

    scope: str
    dataset: str
    exists: bool
    is_open: bool
    files: int
    """Files of the dataset, with the quantum graph if that is registered."""

    size: int
    """Their bytes."""

    places: tuple[ReplicaCount, ...]
    rules: tuple[Rule, ...]
    outputs: int | None
    """Datasets of the run in the Butler that have a file; `None` if the Butler was not asked."""

    missing: tuple[str, ...]
    """Names of outputs without a replica at the site's RSE in this dataset."""

    foreign: int
    """Files of the dataset that the Butler does not have."""

    by_type: Mapping[str, tuple[int, int]]
    """By dataset type: number of outputs, and how many are registered."""

    absent: tuple[str, ...]
    """Dataset types of which the Butler has nothing."""

    rule_missing: str
    """RSE expression of the rule that should exist and does not; empty if it exists or none was asked for."""

    quantum_graph: bool | None
    """Whether the quantum graph is registered; `None` if it should not be."""

    @property
    def is_complete(self) -> bool:
        """Whether everything is registered and all rules are satisfied."""
        registered = self.exists and self.outputs is not None and not self.missing
        return (
            registered
            and self.quantum_graph is not False
            and not self.rule_missing
            and all(rule.is_satisfied for rule in self.rules)
        )


def compare_registration(
    client: Any, registration: Registration, found: ButlerOutputs | None
) -> RegistrationStatus:
    """Compare what Rucio has with what the Butler has, if that is known; else report what Rucio has."""
    from rucio.common.exception import DataIdentifierNotFound

    scope, dataset = registration.scope, registration.dataset
    outputs = found.outputs if found is not None else ()
    try:
        with rucio_errors(f"tell about {scope}:{dataset}"):
            did = client.get_did(scope, dataset)
            replicas = list(client.list_replicas([{"scope": scope, "name": dataset}], all_states=True))
            records = list(client.list_did_rules(scope, dataset))
    except RucioError as error:
        if not isinstance(error.__cause__, DataIdentifierNotFound):
            raise
        did, replicas, records = None, [], []
    wanted = registration.rule
    registered = {replica["name"] for replica in replicas if registration.rse in replica["states"]}
    names = {output.name for output in outputs}
    graph = registration.graph_name
    totals = Counter(output.dataset_type for output in outputs)
    done = Counter(output.dataset_type for output in outputs if output.name in registered)
    return RegistrationStatus(
        scope=scope,
        dataset=dataset,
        exists=did is not None,
        is_open=did is not None and bool(did["open"]),
        files=len(replicas),
        size=sum(replica["bytes"] or 0 for replica in replicas),
        places=_places(replicas),
        rules=tuple(_rule(record, files=len(replicas)) for record in records),
        outputs=len(outputs) if found is not None else None,
        missing=tuple(sorted(names - registered)),
        foreign=len({replica["name"] for replica in replicas} - names - {graph}) if found is not None else 0,
        by_type={name: (totals[name], done[name]) for name in sorted(totals)},
        absent=found.absent if found is not None else (),
        rule_missing=wanted.rse_expression if wanted and find_rule(records, wanted) is None else "",
        quantum_graph=graph in registered if graph else None,
    )


def fetch_registration_status(
    client: Any, registration: Registration
) -> tuple[RegistrationStatus, tuple[str, ...]]:
    """Compare what Rucio has with what the Butler has, if the Butler can be
    opened here; return also what could not be found out.
    """
    found: ButlerOutputs | None = None
    problems: tuple[str, ...] = ()
    try:
        with open_butler(registration.butler) as butler:
            found = find_outputs_of_run(butler, registration)
    except RucioError as error:
        problems = (f"what is missing. {error}",)
    return compare_registration(client, registration, found), problems


def _places(replicas: Sequence[Mapping[str, Any]]) -> tuple[ReplicaCount, ...]:
    """Count the replicas by RSE."""
    counts: dict[str, Counter[bool]] = {}
    for replica in replicas:
        for rse, state in replica["states"].items():
            counts.setdefault(rse, Counter())[state == "AVAILABLE"] += 1
    return tuple(ReplicaCount(rse, counts[rse][True], counts[rse][False]) for rse in sorted(counts))


def _rule(record: Mapping[str, Any], *, files: int) -> Rule:
    """Parse Rucio's record of a rule for a dataset of so many files."""
    ok, replicating, stuck = (
        int(record.get(f"locks_{state}_cnt") or 0) for state in ("ok", "replicating", "stuck")
    )
    copies = int(record["copies"] or 0)
    return Rule(
        rule_id=str(record["id"]),
        rse_expression=str(record["rse_expression"]),
        copies=copies,
        account=str(record["account"]),
        state=str(record["state"]),
        ok=ok,
        replicating=replicating,
        stuck=stuck,
        error=str(record.get("error") or ""),
        expires_at=str(record.get("expires_at") or ""),
        waiting=max(0, files * copies - ok - replicating - stuck),
    )


def make_plain_status(status: RegistrationStatus) -> dict[str, Any]:
    """Return a registration as plain data, for documents."""
    by_type = {
        dataset_type: {"outputs": outputs, "registered": registered}
        for dataset_type, (outputs, registered) in status.by_type.items()
    }
    plain: dict[str, Any] = make_plain(status)
    return {**plain, "by_type": by_type, "complete": status.is_complete}
