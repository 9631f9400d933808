"""What short name a job gets in PanDA, and where the long one is.

One strategy object answers both: a name for each job, and the files that hold
the parameters of the jobs.  iDDS and JEDI accept ``[A-Za-z0-9_.:-]`` for sure;
``/`` and ``^`` hang a run without an error, and 4000 characters are the most.
"""

from __future__ import annotations

__all__ = [
    "BUILD_LABEL",
    "BUILD_TASK",
    "MAX_NAME",
    "NamedJobs",
    "Naming",
    "label_of_task",
    "make_naming",
    "ordinal_of_task",
    "task_name",
]

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from ..edgenode import cmd_line_decoder as runner
from ..errors import PlanError
from .labels import NamingKind, PlanSettings
from .model import ParameterShard

MAX_NAME = 4000
"""Longest pseudo-input that iDDS takes (``DomaPanDAWork``)."""

MAX_SHORT_LABEL = 48
"""Longest form of a label within a short name."""

MAX_TASK_NAME = 225
"""Longest task name: PanDA has 256 and iDDS appends two numbers."""

SHARD_SIZE = 100_000
"""Size that a shard of parameters aims at, bytes."""

MAX_JOBS_PER_SHARD = 5000

BUILD_TASK = "build_task"
"""Name of the task of a remote build."""

BUILD_LABEL = "buildTask"
"""Label of its job."""

_TASK = re.compile(r"(?P<ordinal>\d{2,})_(?P<label>.+)_(?P<chunk>\d{2,})")
# A run's name that a task's name holds in another form (with characters
# replaced, and then a hash) is recognised by BPS's time stamp at its end.
_STAMPED_RUN = re.compile(r".*?\d{8}T\d{6}Z(?:_r\d+)?(?:_[0-9a-f]{8})?_")
_FORBIDDEN = str.maketrans({":": "_", ";": "_"})


Row = tuple[str, ...]
"""Values of one job."""


@dataclass(slots=True)
class NamedJobs:
    """Jobs of one label in the order of their order ids."""

    label: str
    names: list[str] = field(default_factory=list)
    """Names of the jobs."""

    keys: tuple[str, ...] = ()
    """Names of all values that jobs of the label have, sorted."""

    _blocks: list[tuple[tuple[str, ...], Sequence[Row]]] = field(default_factory=list)
    _per_shard: int = 0

    def extend(self, names: Iterable[str], keys: tuple[str, ...], rows: Sequence[Row]) -> None:
        """Add jobs that have the same kinds of values.

        Parameters
        ----------
        names : iterable of `str`
            Names of the jobs.
        keys : `tuple` [`str`, ...]
            Names of their values.
        rows : sequence of `tuple` [`str`, ...]
            Values of each, in the order of ``keys``.
        """
        self.names.extend(names)
        self._blocks.append((keys, rows))
        self.keys = tuple(sorted({*self.keys, *keys}))
        self._per_shard = 0

    def rows(self, keys: tuple[str, ...]) -> Iterator[Row]:
        """Yield the values of each job by some keys; a job without such a
        value has an empty one.
        """
        for own, rows in self._blocks:
            if own == keys:
                yield from rows
                continue
            places = [own.index(key) if key in own else -1 for key in keys]
            for row in rows:
                yield tuple([row[place] if place >= 0 else "" for place in places])

    @property
    def per_shard(self) -> int:
        """Number of jobs in a shard, such that each is about `SHARD_SIZE`."""
        if not self._per_shard:
            overhead = 6 + 4 * len(self.keys)
            largest = max((_longest(rows) for _, rows in self._blocks), default=0)
            self._per_shard = max(1, min(MAX_JOBS_PER_SHARD, SHARD_SIZE // (largest + overhead)))
        return self._per_shard


def _longest(rows: Sequence[Row]) -> int:
    """Length that no row exceeds, in characters of its values."""
    return sum([len(max(column, key=len)) for column in zip(*rows, strict=True)])


class Naming(Protocol):
    """A way of naming jobs."""

    def pseudo_inputs(self, jobs: NamedJobs) -> list[str]:
        """Return the pseudo-input of each job, in order."""

    def es_label(self, label: str) -> str:
        """Return the form of a label in names of event service files."""

    def files(self, labels: Sequence[NamedJobs]) -> list[ParameterShard]:
        """Return the files with the parameters of all jobs."""

    def task_files(self) -> list[tuple[str, str]]:
        """Return key and name of the files that each task needs."""

    def options(self, jobs: NamedJobs) -> dict[str, str]:
        """Return the runner's options for tasks of a label."""


def make_naming(settings: PlanSettings, *, event_service: bool) -> Naming:
    """Return the naming that the settings ask for.

    Parameters
    ----------
    settings : `PlanSettings`
        Settings of the plan.
    event_service : `bool`
        Whether a task of the run is an event service task; these need names
        by order id.
    """
    kind = settings.naming
    if event_service and kind in (NamingKind.PLAIN, NamingKind.QNODE_MAP):
        kind = NamingKind.ORDER_ID_MAP
    placeholders = settings.placeholder_params
    if kind is NamingKind.SHORT:
        return _ShortNaming()
    if kind is NamingKind.ORDER_ID_MAP:
        return _OrderIdNaming(placeholders, settings.order_id_map_name)
    if kind is NamingKind.QNODE_MAP:
        return _QnodeNaming(placeholders)
    return _PlainNaming(placeholders)


def task_name(run: str, number: int, label: str, chunk: int) -> str:
    """Return the name of a task: ``<run>_<nn>_<label>_<chunk>``.

    Parameters
    ----------
    run : `str`
        Name of the run.
    number : `int`
        Ordinal of the task in the run, from 1.
    label : `str`
        Label of its jobs.
    chunk : `int`
        Ordinal of the chunk in the label, from 1.
    """
    tail = f"_{number:02d}_{_safe(label, 100)}_{chunk:02d}"
    return _safe(run, MAX_TASK_NAME - len(tail)) + tail


def _body_of(name: str, run_name: str, suffix: str) -> str:
    """Strip a task's name of the run's in front and PanDA's ids behind."""
    if suffix and name.endswith(suffix):
        name = name[: -len(suffix)]
    if run_name and name.startswith(f"{run_name}_"):
        return name[len(run_name) + 1 :]
    stamped = _STAMPED_RUN.match(name)
    return name[stamped.end() :] if stamped else name


def label_of_task(name: str, run_name: str, *, suffix: str = "") -> str:
    """Find the label in the name of a task.

    Parameters
    ----------
    name : `str`
        ``<run>_<nn>_<label>_<chunk>``, as iDDS has it.
    run_name : `str`
        Name of the run.
    suffix : `str`, optional
        What PanDA's name has in addition, ``_<request>_<transform>``.

    Returns
    -------
    label : `str`
        The label, which may hold digits and underscores; the name itself if
        it is built in another way.  A ``:`` or ``;`` becomes ``_``, since BPS
        separates labels by them.
    """
    body = _body_of(name, run_name, suffix)
    if body == BUILD_TASK or name == BUILD_TASK:
        return BUILD_LABEL
    match = _TASK.fullmatch(body)
    return (match["label"] if match else body or "unknown").translate(_FORBIDDEN)


def ordinal_of_task(name: str, run_name: str) -> int:
    """Find a task's ordinal in its name.

    Parameters
    ----------
    name : `str`
        ``<run>_<nn>_<label>_<chunk>``, as iDDS has it.
    run_name : `str`
        Name of the run.

    Returns
    -------
    ordinal : `int`
        ``nn``, or -1 for the build task, which comes first, and a number
        beyond all others for a name built in another way.
    """
    body = _body_of(name, run_name, "")
    if BUILD_TASK in (body, name):
        return -1
    match = _TASK.fullmatch(body)
    return int(match["ordinal"]) if match else 10**9


def _safe(text: str, most: int) -> str:
    """Return a text with harmless characters only, cut and marked by a hash
    if it is too long.
    """
    clean = re.sub(r"[^A-Za-z0-9_.-]", "_", text, flags=re.ASCII)
    if clean == text and len(clean) <= most:
        return clean
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{clean[: most - 9]}_{digest}"


def _short_label(label: str) -> str:
    """Return a label for use within a name: harmless, short, one to one."""
    return _safe(label, MAX_SHORT_LABEL)


class _ShortNaming:
    """``label:12``; parameters in shards of about 100 kB."""

    def pseudo_inputs(self, jobs: NamedJobs) -> list[str]:
        prefix = _short_label(jobs.label)
        return [f"{prefix}:{order_id}" for order_id in range(len(jobs.names))]

    def es_label(self, label: str) -> str:
        return _short_label(label)

    def files(self, labels: Sequence[NamedJobs]) -> list[ParameterShard]:
        shards = []
        for jobs in labels:
            if not jobs.keys:
                continue
            rows = jobs.rows(jobs.keys)
            label = _short_label(jobs.label)
            for number, first in enumerate(range(0, len(jobs.names), jobs.per_shard)):
                text = runner.render_shard(jobs.keys, first, islice(rows, jobs.per_shard))
                shards.append(ParameterShard(runner.shard_name(label, number), text))
        return shards

    def task_files(self) -> list[tuple[str, str]]:
        return []

    def options(self, jobs: NamedJobs) -> dict[str, str]:
        if not jobs.keys:
            return {}
        return {"parameters": f"{runner.safe_label(_short_label(jobs.label))}@{jobs.per_shard}"}


class _PlainNaming:
    """Job name and parameters in the name itself."""

    def __init__(self, placeholders: tuple[str, ...]) -> None:
        self._placeholders = placeholders

    def pseudo_inputs(self, jobs: NamedJobs) -> list[str]:
        names = self._plain(jobs)
        for name, pseudo_input in zip(jobs.names, names, strict=True):
            if len(pseudo_input) > MAX_NAME:
                raise PlanError(
                    f"The pseudo-input of job {name!r} (label {jobs.label!r}) has {len(pseudo_input)} "
                    f"characters; iDDS takes {MAX_NAME}. Use short names (jobNaming: short, the default)."
                )
        return names

    def _plain(self, jobs: NamedJobs) -> list[str]:
        others = tuple(key for key in jobs.keys if key not in self._placeholders)
        keys = self._placeholders + others
        return [
            runner.render_plain_input(name, zip(keys, row, strict=True))
            for name, row in zip(jobs.names, jobs.rows(keys), strict=True)
        ]

    def es_label(self, label: str) -> str:
        return _short_label(label)

    def files(self, labels: Sequence[NamedJobs]) -> list[ParameterShard]:
        return []

    def task_files(self) -> list[tuple[str, str]]:
        return []

    def options(self, jobs: NamedJobs) -> dict[str, str]:
        return {}


class _OrderIdNaming(_PlainNaming):
    """``label:orderIdMap_12``, with one map of all plain names."""

    def __init__(self, placeholders: tuple[str, ...], map_name: str) -> None:
        super().__init__(placeholders)
        self._map_name = map_name

    def pseudo_inputs(self, jobs: NamedJobs) -> list[str]:
        prefix = _short_label(jobs.label)
        return [f"{prefix}:orderIdMap_{order_id}" for order_id in range(len(jobs.names))]

    def files(self, labels: Sequence[NamedJobs]) -> list[ParameterShard]:
        mapping = {
            _short_label(jobs.label): {str(i): name for i, name in enumerate(self._plain(jobs))}
            for jobs in labels
        }
        return [ParameterShard(self._map_name, json.dumps(mapping))]

    def task_files(self) -> list[tuple[str, str]]:
        return [("orderIdMapFilename", self._map_name)]


class _QnodeNaming(_PlainNaming):
    """``PH:jobname``, with one map of all plain names."""

    map_name = "qnode_map.json"

    def pseudo_inputs(self, jobs: NamedJobs) -> list[str]:
        return [f"PH:{_safe(name, 200)}" for name in jobs.names]

    def files(self, labels: Sequence[NamedJobs]) -> list[ParameterShard]:
        mapping: dict[str, str] = {}
        count = 0
        for jobs in labels:
            mapping.update(zip(self.pseudo_inputs(jobs), self._plain(jobs), strict=True))
            count += len(jobs.names)
        if len(mapping) < count:
            raise PlanError(
                "A job of the final workflow has the name of another job, so that the map of names "
                "(enableQnodeMap, jobNaming: qnodeMap) cannot tell them apart. Use short names, the default."
            )
        return [ParameterShard(self.map_name, json.dumps(mapping))]

    def task_files(self) -> list[tuple[str, str]]:
        return [("qnodemap", self.map_name)]
