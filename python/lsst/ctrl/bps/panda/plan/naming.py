"""The names of tasks, restarts and jobs: composed and parsed; and the files that hold the parameters of jobs.

iDDS and JEDI accept ``[A-Za-z0-9_.:-]`` for sure; ``/`` and ``^`` hang a run without an error, and 4000
characters are the most.  The grammar of pseudo-inputs, which stand for jobs, is the runner's.
"""

from __future__ import annotations

__all__ = [
    "BUILD_LABEL",
    "BUILD_TASK",
    "MAX_NAME",
    "NamedJobs",
    "Naming",
    "collection_name",
    "label_of_collection",
    "label_of_input",
    "label_of_task",
    "make_naming",
    "name_of_inputs",
    "ordinal_of_task",
    "printable",
    "printable_label",
    "restart_name",
    "run_of_task",
    "split_server_name",
    "task_name",
]

import hashlib
import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from urllib.parse import quote, unquote

from ..edgenode import cmd_line_decoder as runner
from ..errors import PlanError
from .model import NamingKind, ParameterShard, PlanSettings

MAX_NAME = 4000
"""Longest pseudo-input that iDDS takes (``DomaPanDAWork``)."""

MAX_SHORT_LABEL = 48
"""Longest form of a label within a short name."""

MAX_LABEL = 100
"""Longest form of a label within the name of a task."""

MAX_CARRIED = 200
"""Longest encoded label that travels in the name of a collection, for which iDDS has 255 characters."""

MAX_TASK_NAME = 225
"""Longest task name: PanDA has 256 and iDDS appends two numbers."""

SHARD_SIZE = 100_000
"""Size that a shard of parameters aims at, bytes."""

MAX_JOBS_PER_SHARD = 5000

BUILD_TASK = "build_task"
"""Name of the task of a remote build."""

BUILD_LABEL = "buildTask"
"""Label of its job."""


# --- names of runs and tasks -----------------------------------------------

_TASK = "{ordinal:02d}_{label}_{chunk:02d}"
"""Name of a task after the name of its run and ``_``."""

_RESTART = "_r{number:d}"
"""End of the name of a restart."""

_COLLECTION = "pseudo_input_collection#"


def _pattern(form: str) -> str:
    """Return the regular expression that reads what a format string writes."""
    kinds = {":02d": r"\d{2,}", ":d": r"\d+", "": ".+"}
    return re.sub(r"\{(\w+)(:02d|:d|)\}", lambda field: f"(?P<{field[1]}>{kinds[field[2]]})", form)


_TASK_PATTERN = re.compile(_pattern(_TASK))
_TASK_END = re.compile(f"_(?:{_pattern(_TASK)}|{BUILD_TASK})$")
_RESTART_END = re.compile(f"{_pattern(_RESTART)}$")
# A run's name that a task's name holds in another form (with characters
# replaced, and then a hash) is recognised by BPS's time stamp at its end.
_STAMPED_RUN = re.compile(rf".*?\d{{8}}T\d{{6}}Z(?:{_pattern(_RESTART)})?(?:_[0-9a-f]{{8}})?_")
_SERVER_IDS = re.compile(r"_(?P<request>\d+)_(?P<transform>\d+)$")
# Letters that Unicode does not take apart.
_LETTERS = str.maketrans({"ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O",
                          "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ı": "i"})  # fmt: skip
_SEPARATORS_OF_BPS = str.maketrans({":": "_", ";": "_"})


def restart_name(name: str, number: int) -> str:
    """Return the name of a restart of a run, which may be a restart itself; restarts are counted from 1."""
    return _RESTART_END.sub("", name) + _RESTART.format(number=number)


def task_name(run: str, ordinal: int, label: str, chunk: int) -> str:
    """Return the name of a task: ``<run>_<ordinal>_<label>_<chunk>``, both numbers from 1."""
    tail = "_" + _TASK.format(ordinal=ordinal, label=_safe(label, MAX_LABEL), chunk=chunk)
    return _safe(run, MAX_TASK_NAME - len(tail)) + tail


def collection_name(number: int, label: str) -> str:
    """Return the name of the input collection of a run's work of this number.

    iDDS shows it to everybody, so a label that the name of the task cannot hold travels there, encoded.
    """
    carried = "" if _safe(label, MAX_LABEL) == label else "#" + quote(label, safe="")
    return f"{_COLLECTION}{number}{carried if len(carried) < MAX_CARRIED else ''}"


def label_of_collection(name: str) -> str:
    """Find the label that the name of a work's input collection carries; empty if it carries none."""
    numbers = name.removeprefix(_COLLECTION)
    return "" if numbers == name else unquote(numbers.partition("#")[2])


def split_server_name(name: str, request_id: int = 0) -> tuple[str, int]:
    """Split the name of a task in PanDA, to which iDDS appends ``_<request>_<transform>``, into its name in
    iDDS and the transform id, which is 0 for a task that is not of iDDS.

    iDDS appends another number when it submits a task again, which is seen where the request is known.
    """
    match = _SERVER_IDS.search(name)
    if request_id and (match is None or int(match["request"]) != request_id):
        match = re.search(rf"_(?P<request>{request_id})_(?P<transform>\d+)_\d+$", name) or match
    return (name[: match.start()], int(match["transform"])) if match else (name, 0)


def run_of_task(name: str) -> str:
    """Find the name of the run in the name of a task in iDDS, as far as it tells."""
    return _TASK_END.sub("", name)


def label_of_task(name: str, run_name: str) -> str:
    """Find the label, which may hold digits and underscores, in the name of a task in iDDS.

    It is the name itself if that is built in another way, and printable: see `printable_label`.
    """
    body = _without_run(name, run_name)
    if BUILD_TASK in (body, name):
        return BUILD_LABEL
    match = _TASK_PATTERN.fullmatch(body)
    return printable_label(match["label"] if match else body or "unknown")


def printable_label(label: str) -> str:
    """Return a label as BPS can print it: ``:`` and ``;``, by which BPS separates labels, become ``_``."""
    return printable(label).translate(_SEPARATORS_OF_BPS)


def printable(text: str) -> str:
    r"""Return a text as BPS can print it, whose tables are of ASCII: letters lose their accents, and what
    has no other form is escaped (``\u2603``), control characters as well.
    """
    if text.isascii() and text.isprintable():
        return text
    plain = unicodedata.normalize("NFKD", text.translate(_LETTERS))
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return "".join(
        letter if letter.isascii() and letter.isprintable() else ascii(letter)[1:-1] for letter in plain
    )


def ordinal_of_task(name: str, run_name: str) -> int:
    """Find a task's ordinal in its name in iDDS.

    It is -1 for the build task, which comes first, and a number beyond all others for a name built in another
    way.
    """
    body = _without_run(name, run_name)
    if BUILD_TASK in (body, name):
        return -1
    match = _TASK_PATTERN.fullmatch(body)
    return int(match["ordinal"]) if match else 10**9


def _without_run(name: str, run_name: str) -> str:
    """Return a task's name without the run's."""
    if run_name and name.startswith(f"{run_name}_"):
        return name[len(run_name) + 1 :]
    if rest := name.partition(f"_{_digest(run_name)}_")[2]:
        return rest
    stamped = _STAMPED_RUN.match(name)
    return name[stamped.end() :] if stamped else name


def _safe(text: str, most: int) -> str:
    """Return a text with harmless characters only, marked by a hash if it was changed or cut."""
    clean = re.sub(r"[^A-Za-z0-9_.-]", "_", text, flags=re.ASCII)
    if clean == text and len(clean) <= most:
        return clean
    return f"{clean[: most - 9]}_{_digest(text)}"


def _digest(text: str) -> str:
    """Return the hash that marks a name that was changed."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


# --- names of jobs ---------------------------------------------------------


def name_of_inputs(inputs: Sequence[str]) -> str:
    """Name a job by its pseudo-inputs as JEDI writes them, ``000012:<pseudo-input>``.

    Several are named by the first one, and how many more there are; none by an empty text.
    """
    if not inputs:
        return ""
    ordinal, colon, rest = inputs[0].partition(":")
    name = rest if colon and ordinal.isdecimal() else inputs[0]
    return f"{name} and {len(inputs) - 1} more" if len(inputs) > 1 else name


def label_of_input(pseudo_input: str) -> str:
    """Return the label, as it stands there, in a pseudo-input that names a job by label and order id."""
    return runner.parse_input(pseudo_input, short=True).label


Row = tuple[str, ...]
"""Values of one job."""


@dataclass(slots=True)
class NamedJobs:
    """Jobs of one label in the order of their order ids."""

    label: str
    names: list[str] = field(default_factory=list)
    keys: tuple[str, ...] = ()
    """Names of all values that jobs of the label have, sorted."""

    _blocks: list[tuple[tuple[str, ...], Sequence[Row]]] = field(default_factory=list)
    _per_shard: int = 0

    def extend(self, names: Iterable[str], keys: tuple[str, ...], rows: Sequence[Row]) -> None:
        """Add jobs with their values, one row each in the order of ``keys``."""
        self.names.extend(names)
        self._blocks.append((keys, rows))
        self.keys = tuple(sorted({*self.keys, *keys}))
        self._per_shard = 0

    def rows(self, keys: tuple[str, ...]) -> Iterator[Row]:
        """Yield each job's values of some keys; a job without such a value has an empty one."""
        for own, rows in self._blocks:
            if own == keys:
                yield from rows
                continue
            places = [own.index(key) if key in own else -1 for key in keys]
            for row in rows:
                yield tuple([row[place] if place >= 0 else "" for place in places])

    @property
    def per_shard(self) -> int:
        """Number of jobs in a shard of about `SHARD_SIZE`."""
        if not self._per_shard:
            overhead = 6 + 4 * len(self.keys)
            largest = max((_longest(rows) for _, rows in self._blocks), default=0)
            self._per_shard = max(1, min(MAX_JOBS_PER_SHARD, SHARD_SIZE // (largest + overhead)))
        return self._per_shard


def _longest(rows: Sequence[Row]) -> int:
    """Return a length that no row exceeds, in characters of its values."""
    return sum([len(max(column, key=len)) for column in zip(*rows, strict=True)])


class Naming(ABC):
    """A way of naming jobs."""

    @abstractmethod
    def pseudo_inputs(self, jobs: NamedJobs) -> list[str]:
        """Return the pseudo-input of each job, in order."""

    def files(self, labels: Sequence[NamedJobs]) -> list[ParameterShard]:
        """Return the files with the parameters of all jobs; none by default."""
        return []

    def task_files(self) -> list[tuple[str, str]]:
        """Return key and name of the files with parameters that each task needs; none by default."""
        return []

    def options(self, jobs: NamedJobs) -> dict[str, str]:
        """Return the runner's options for tasks of a label; none by default."""
        return {}


def make_naming(settings: PlanSettings, *, event_service: bool) -> Naming:
    """Return the naming that the settings ask for; event service tasks need names by order id."""
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


def _short_label(label: str) -> str:
    """Return a label for use within a name: harmless, short, one to one."""
    return _safe(label, MAX_SHORT_LABEL)


class _ShortNaming(Naming):
    """``label:12``; parameters in shards of about 100 kB."""

    def pseudo_inputs(self, jobs: NamedJobs) -> list[str]:
        # The label is escaped once, not for each of many jobs.
        prefix = runner.render_short_input(_short_label(jobs.label), 0).removesuffix("0")
        return [f"{prefix}{order_id}" for order_id in range(len(jobs.names))]

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

    def options(self, jobs: NamedJobs) -> dict[str, str]:
        if not jobs.keys:
            return {}
        return {"parameters": f"{runner.safe_label(_short_label(jobs.label))}@{jobs.per_shard}"}


class _PlainNaming(Naming):
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


class _OrderIdNaming(_PlainNaming):
    """``label:orderIdMap_12``, with one map of all plain names."""

    def __init__(self, placeholders: tuple[str, ...], map_name: str) -> None:
        super().__init__(placeholders)
        self._map_name = map_name

    def pseudo_inputs(self, jobs: NamedJobs) -> list[str]:
        label = _short_label(jobs.label)
        return [runner.render_order_id_input(label, order_id) for order_id in range(len(jobs.names))]

    def files(self, labels: Sequence[NamedJobs]) -> list[ParameterShard]:
        mapping = {
            _short_label(jobs.label): {str(i): name for i, name in enumerate(self._plain(jobs))}
            for jobs in labels
        }
        return [ParameterShard(self._map_name, json.dumps(mapping))]

    def task_files(self) -> list[tuple[str, str]]:
        return [(runner.ORDER_ID_MAP, self._map_name)]


class _QnodeNaming(_PlainNaming):
    """``PH:jobname``, with one map of all plain names."""

    map_name = "qnode_map.json"

    def pseudo_inputs(self, jobs: NamedJobs) -> list[str]:
        return [runner.render_named_input(_safe(name, 200)) for name in jobs.names]

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
        return [(runner.NAME_MAP, self.map_name)]
