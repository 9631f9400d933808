#!/usr/bin/env python3
"""Runner: turns the arguments of a PanDA job into its payload, on the worker.

Started as a file by any Python from 3.6 on, with the standard library only
(``lsst.resources`` is imported if, and only if, the staging area needs it)::

    python3 [-I] cmd_line_decoder.py HEX INPUT AREA FILES DIRECT [--option=value ...]

``HEX``     command line of the task, its UTF-8 bytes in hexadecimal, holding the placeholders ``<FILE:key>``,
            ``<ENV:NAME>``, ``<WMS:attemptNum>`` and ``{name}``
``INPUT``   pseudo-input of the job, what PanDA puts in the place of ``${IN/L}``
``AREA``    staging area, a path or URI
``FILES``   ``key:name+key:name``, files of the job, relative to ``AREA``; a directory's name ends in ``/``;
            ``-`` if there are none
``DIRECT``  ``key+key``, files that are used where they are; ``cmdlineplaceholder`` if there are none; or the
            location of an archive ``jobO.*.tar.gz`` to unpack instead of fetching files

A character with a meaning in this grammar, or to a shell, travels as ``%XX``, one for each byte of its UTF-8.
The functions of section "Grammar" are that grammar; what plans a run imports them, so there is one
definition.  Options: ``_OPTIONS``.

Files: what the job needs is copied from the area to the work directory, verified by the area's
``.staged.json`` if it has one; parameters are read from ``job_parameters/``; ``.attempts/`` and
``.cancelled`` are notes of other jobs and of the submit side.

Environment: the pilot's ``PANDAID`` and ``PanDA_TaskID`` (and ``PanDA_AttemptNr``, which few pilots set) are
read, and for areas on web servers the variables of ``lsst.resources`` and ``BEARER_TOKEN``; the payload gets
all but `TOKENS`.

Standard output belongs to the payload; the runner writes one line at the start and one for each problem to
standard error.

Exit code: the payload's; 128 and the number of the signal that ended it; or one of `EXIT_CODES`.  With the
option ``--success=N`` it is N instead of 0, and 1 for a payload that ends with N itself.
"""

__all__ = [
    "ATTEMPTS_FOLDER",
    "Arguments",
    "Attempts",
    "CANCELLED",
    "DamagedError",
    "EXECUTABLE",
    "EXIT_CANCELLED",
    "EXIT_CODES",
    "EXIT_DAMAGED",
    "EXIT_INTERNAL",
    "EXIT_MISSING",
    "EXIT_NOT_RUN",
    "EXIT_OUTPUT",
    "EXIT_PARAMETERS",
    "EXIT_PLACEHOLDER",
    "EXIT_SHARD",
    "EXIT_SET_UP",
    "EXIT_START",
    "EXIT_UNREACHABLE",
    "EXIT_UNSAFE",
    "EXIT_USAGE",
    "EXIT_WORK_DIRECTORY",
    "FailureError",
    "Fetcher",
    "HttpArea",
    "LARGEST_MANIFEST",
    "LARGEST_UNLISTED",
    "LARGEST_UNPACKED",
    "LocalArea",
    "MANIFEST",
    "MONITOR_OUTPUT",
    "MONITOR_SUMMARY",
    "NAME_MAP",
    "NO_DIRECT",
    "NO_FILES",
    "ORDER_ID_MAP",
    "OUTPUT_FOLDER",
    "PseudoInput",
    "ResourceArea",
    "SHARD_FOLDER",
    "SUCCESS",
    "Signals",
    "StoppedError",
    "TOKENS",
    "VERSION",
    "check_name",
    "decode_area",
    "decode_command",
    "decode_direct",
    "decode_files",
    "decode_outputs",
    "deliver",
    "encode_area",
    "encode_command",
    "encode_direct",
    "encode_files",
    "encode_option",
    "encode_outputs",
    "find_monitor",
    "find_values",
    "insert_quoted",
    "insert_values",
    "is_archive",
    "is_cancelled",
    "left_output",
    "find_in_shard",
    "main",
    "make_command",
    "open_area",
    "output_name",
    "parse_input",
    "quote",
    "render_named_input",
    "render_order_id_input",
    "render_plain_input",
    "render_shard",
    "render_short_input",
    "return_outputs",
    "run",
    "run_payload",
    "safe_label",
    "say",
    "shard_name",
    "unpack",
    "unquote",
]

import sys

if __name__ == "__main__" and not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
    # Python looks for modules beside this file first, but beside it in the staging area are a user's files.
    del sys.path[0]

import binascii
import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would cost each job several milliseconds
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any

# -----------------------------------------------------------------------------------------------------------
# Grammar: pure functions, also imported by what plans a run
# -----------------------------------------------------------------------------------------------------------

NO_FILES = "-"
"""FILES of a job without files."""

NO_DIRECT = "cmdlineplaceholder"
"""DIRECT (and, from older plugins, FILES) of a job without such files."""

SHARD_FOLDER = "job_parameters"
"""Folder of the parameter shards in the staging area."""

OUTPUT_FOLDER = "outputs"
"""Folder of the staging area for outputs that a worker cannot put where they
belong.
"""

_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-,")
_PLAIN_IN_PATH = _PLAIN | frozenset("/@=")
_PLAIN_IN_AREA = _PLAIN_IN_PATH | frozenset(":+")
_PLAIN_IN_LABEL = _PLAIN - frozenset(",")


def _escape(text: str, plain: "frozenset[str]", mark: str) -> str:
    """Write each character outside ``plain`` as ``mark`` and two digits for
    each of its bytes.
    """
    if plain.issuperset(text):
        return text
    return "".join(
        char
        if char in plain
        else "".join(f"{mark}{byte:02X}" for byte in char.encode("utf-8", "surrogateescape"))
        for char in text
    )


def _bytes(text: str) -> bytes:
    """Text as the bytes of a path or command, whatever the locale is."""
    return text.encode("utf-8", "surrogateescape")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def quote(text: str) -> str:
    """Write text such that it has no meaning to a shell or this grammar.

    Parameters
    ----------
    text : `str`
        Any text.  Bytes of a file name that are not UTF-8 are surrogates, as
        `os.fsdecode` makes them.

    Returns
    -------
    quoted : `str`
        The text in ``[A-Za-z0-9_.,%-]``.

    Raises
    ------
    ValueError
        If the text holds surrogates that no byte stands for.
    """
    return _escape(text, _PLAIN, "%")


def unquote(text: str) -> str:
    """Read what `quote` wrote; a ``%`` without two hexadecimal digits behind
    it is itself.
    """
    if "%" not in text:
        return text
    first, *others = text.encode("utf-8", "surrogateescape").split(b"%")
    return (first + b"".join(map(_unquote_one, others))).decode("utf-8", "surrogateescape")


def _unquote_one(text: bytes) -> bytes:
    """Read what follows a ``%``."""
    try:
        return binascii.unhexlify(text[:2]) + text[2:] if len(text) > 1 else b"%" + text
    except ValueError:
        return b"%" + text


def encode_command(command: str) -> str:
    """Write a command line in hexadecimal, the runner's argument HEX.

    Raises
    ------
    ValueError
        If the command holds a NUL, which no command line can.
    """
    if "\0" in command:
        raise ValueError(f"a command line cannot hold a NUL character: {command!r}")
    return binascii.hexlify(command.encode("utf-8", "surrogateescape")).decode("ascii")


def decode_command(text: str) -> str:
    """Read what `encode_command` wrote.

    Raises
    ------
    ValueError
        If it is not hexadecimal.
    """
    try:
        return binascii.unhexlify(text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")
    except ValueError as error:
        raise ValueError(f"the command is not in hexadecimal ({error}): {text[:80]!r}") from None


def encode_area(area: str) -> str:
    """Write the path or URI of a staging area, the runner's argument AREA.

    A URI travels as it is written, so the ``%`` of one that is already
    quoted is quoted again.

    Raises
    ------
    ValueError
        If the area is empty.
    """
    if not area:
        raise ValueError("the staging area is empty; set fileDistributionEndPoint")
    return _escape(area, _PLAIN_IN_AREA, "%")


def decode_area(text: str) -> str:
    """Read what `encode_area` wrote."""
    return unquote(text)


def encode_files(files: "Iterable[tuple[str, str]]") -> str:
    """Write keys and names of files, the runner's argument FILES.

    Parameters
    ----------
    files : `~collections.abc.Iterable` [`tuple` [`str`, `str`]]
        Key and name of each; a name is relative to the staging area, with
        ``/`` between its parts, and ends in ``/`` for a directory.

    Raises
    ------
    ValueError
        If a key is empty or given twice, or a name is not one of a file
        below the staging area.
    """
    pairs = list(files)
    _check_files(pairs)
    return "+".join(f"{quote(key)}:{_escape(name, _PLAIN_IN_PATH, '%')}" for key, name in pairs) or NO_FILES


def decode_files(text: str) -> "list[tuple[str, str]]":
    """Read what `encode_files` (or an older plugin) wrote.

    Raises
    ------
    ValueError
        If a part is not ``key:name``, or as for `encode_files`.
    """
    if text in ("", NO_FILES, NO_DIRECT):
        return []
    pairs = []
    for part in text.split("+"):
        key, colon, name = part.partition(":")
        if not colon:
            raise ValueError(f"not of the form key:name in the list of files: {part!r} (of {text!r})")
        pairs.append((unquote(key), unquote(name)))
    _check_files(pairs)
    return pairs


def _check_files(pairs: "Sequence[tuple[str, str]]") -> None:
    """Raise ValueError for keys and names that cannot be staged."""
    seen = set()
    for key, name in pairs:
        if not key or key in seen:
            raise ValueError(f"key {key!r} of file {name!r} is {'given twice' if key else 'empty'}")
        seen.add(key)
        try:
            check_name(name)
        except ValueError as error:
            raise ValueError(f"file {key!r}: {error}") from None


def check_name(name: str) -> str:
    """Check a name that is to be joined to a directory: it must stay below it.

    Every name that comes from outside goes through here: of arguments,
    manifests, members of archives, and listings of stores.

    Parameters
    ----------
    name : `str`
        The name; that of a directory may end in ``/``.

    Returns
    -------
    name : `str`
        The same.

    Raises
    ------
    ValueError
        If it is none.
    """
    parts = (name[:-1] if name.endswith("/") else name).split("/")
    if "\0" in name or not all(parts) or "." in parts or ".." in parts:
        raise ValueError(f"name {name!r} is not a relative path without '.', '..', NUL and empty parts")
    try:
        _bytes(name)
    except UnicodeEncodeError:
        raise ValueError(f"name {name!r} has characters that no file name can have") from None
    return name


def encode_outputs(outputs: "Iterable[tuple[str, str]]") -> str:
    """Write keys and destinations of a job's outputs, for the option
    ``outputs``.

    Parameters
    ----------
    outputs : `~collections.abc.Iterable` [`tuple` [`str`, `str`]]
        Key, and path or URI where the file is to be; in the work directory
        it has the last part of that as its name.

    Raises
    ------
    ValueError
        If a key is empty or given twice, or a destination has no name of a
        file at its end.
    """
    pairs = list(outputs)
    _check_files([(key, output_name(destination)) for key, destination in pairs])
    return "+".join(f"{quote(key)}:{_escape(where, _PLAIN_IN_PATH, '%')}" for key, where in pairs)


def decode_outputs(text: str) -> "list[tuple[str, str]]":
    """Read what `encode_outputs` wrote.

    Raises
    ------
    ValueError
        If a part is not ``key:destination``, or as for `encode_outputs`.
    """
    pairs = []
    for part in text.split("+"):
        key, colon, destination = part.partition(":")
        if not colon:
            raise ValueError(f"not of the form key:destination in the list of outputs: {part!r}")
        pairs.append((unquote(key), unquote(destination)))
    _check_files([(key, output_name(destination)) for key, destination in pairs])
    return pairs


def output_name(destination: str) -> str:
    """Name in the work directory of an output, from its path or URI."""
    name = destination.rpartition("/")[2]
    return unquote(name) if "://" in destination else name


def left_output(key: str, destination: str) -> str:
    """Name in the staging area of an output that the submit side has to
    fetch, since its destination cannot be written from the worker.
    """
    return "/".join((OUTPUT_FOLDER, safe_label(key), output_name(destination)))


def encode_direct(keys: "Iterable[str]") -> str:
    """Write the keys of files used in place, the runner's argument DIRECT.

    Raises
    ------
    ValueError
        If a key is empty.
    """
    keys = list(keys)
    if not all(keys):
        raise ValueError(f"empty key among the files used in place: {keys!r}")
    text = "+".join(map(quote, keys))
    if text in (NO_DIRECT, NO_FILES) or text.startswith("jobO."):
        text = f"%{ord(text[0]):02X}{text[1:]}"
    return text or NO_DIRECT


def decode_direct(text: str) -> "list[str]":
    """Read what `encode_direct` (or an older plugin) wrote; an archive gives
    no keys, see `is_archive`.
    """
    if text in ("", NO_FILES, NO_DIRECT) or is_archive(text):
        return []
    return [unquote(key) for key in text.split("+")]


def is_archive(direct: str) -> bool:
    """Whether DIRECT is the location of an archive of PanDA's file cache."""
    return "/" in direct or direct.startswith("jobO.")


def safe_label(label: str) -> str:
    """Write a label such that it can be part of a file name, a URI and an
    option: each character outside ``[A-Za-z0-9_.-]`` as ``=XX``.

    Different labels give different texts.
    """
    text = _escape(label, _PLAIN_IN_LABEL, "=")
    if text.startswith("."):  # hidden files, '.' and '..'
        text = "=2E" + text[1:]
    return text or "="


def shard_name(label: str, index: int) -> str:
    """Name in the staging area of a shard of the parameters of a label.

    Parameters
    ----------
    label : `str`
        Label of the jobs.
    index : `int`
        Ordinal of the shard: a job's order id divided by the number of jobs
        a shard, without remainder.
    """
    return f"{SHARD_FOLDER}/{safe_label(label)}/{index:06d}.json"


def render_shard(names: "Sequence[str]", first_order_id: int, rows: "Iterable[Sequence[str]]") -> str:
    """Write the parameters of consecutive jobs of a label.

    Parameters
    ----------
    names : `~collections.abc.Sequence` [`str`]
        Names of the parameters, ``{name}`` in the command line.
    first_order_id : `int`
        Order id of the job of the first row; the others follow.
    rows : `~collections.abc.Iterable` [`~collections.abc.Sequence` [`str`]]
        Values of each job, in the order of ``names``.

    Returns
    -------
    text : `str`
        JSON, with one line a job.

    Raises
    ------
    ValueError
        If a row has not one value for each name.
    """
    import json

    encode = json.encoder.encode_basestring_ascii  # a tenth of the time of json.dumps, with a million jobs
    lines = []
    for number, row in enumerate(rows):
        if len(row) != len(names):
            raise ValueError(
                f"order id {first_order_id + number}: {len(row)} values for {len(names)} names {list(names)}"
            )
        lines.append("[" + ",".join(map(encode, row)) + "]")
    head = json.dumps({"format": 1, "first": first_order_id, "names": list(names)})
    return head[:-1] + ', "rows": [\n' + ",\n".join(lines) + "\n]}\n"


def find_in_shard(text: str, order_id: int) -> "dict[str, str]":
    """Find the parameters of a job in what `render_shard` wrote.

    Raises
    ------
    LookupError
        If the shard has no such job.
    ValueError
        If the text is not a shard.
    """
    shard = _parse_json(text)
    if not isinstance(shard, dict) or shard.get("format") != 1:
        raise ValueError(f"not parameters of jobs in a format known here: {text[:80]!r}")
    first: "Any" = shard.get("first")
    rows: "Any" = shard.get("rows")
    names: "Any" = shard.get("names")
    if type(first) is not int or first < 0 or not isinstance(rows, list) or not _are_texts(names):
        raise ValueError(
            f"'first', 'names' or 'rows' is not a number, a list of texts or a list: {text[:80]!r}"
        )
    if not first <= order_id < first + len(rows):
        raise LookupError(f"order id {order_id} is not among {first} to {first + len(rows) - 1}")
    row = rows[order_id - first]
    if not _are_texts(row) or len(row) != len(names):
        raise ValueError(f"the row of order id {order_id} is not {len(names)} texts: {str(row)[:80]}")
    return dict(zip(names, row))  # noqa: B905, not before 3.10


def _parse_json(text: "str | bytes", hook: "Any" = None) -> "Any":
    """Read JSON, with one kind of error for all that can be wrong with it."""
    import json

    try:
        return json.loads(text.decode("utf-8") if isinstance(text, bytes) else text, object_pairs_hook=hook)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _are_texts(value: "Any") -> bool:
    """Whether it is a list of texts that a command line can hold."""
    return isinstance(value, list) and all(map(_is_text, value))


def _is_text(value: "Any") -> bool:
    try:
        return isinstance(value, str) and b"\0" not in _bytes(value)
    except UnicodeEncodeError:
        return False


class PseudoInput:
    """What a pseudo-input says.

    Parameters
    ----------
    text : `str`
        The pseudo-input.
    kind : `str`
        ``short`` (parameters are in a shard), ``order`` (order id map),
        ``event`` (event service: in a shard or the order id map), ``named``
        (map of job names) or ``plain``.
    label : `str`, optional
        Label of the job, as written, for kinds with an order id.
    order_id : `int`, optional
        Order id of the job, -1 for kinds without.
    values : `~collections.abc.Mapping` [`str`, `str`], optional
        Parameters that the pseudo-input itself holds.
    """

    def __init__(
        self,
        text: str,
        kind: str,
        *,
        label: str = "",
        order_id: int = -1,
        values: "Mapping[str, str] | None" = None,
    ) -> None:
        self.text = text
        self.kind = kind
        self.label = label
        self.order_id = order_id
        self.values = dict(values or {})


def render_short_input(label: str, order_id: int) -> str:
    """Write the pseudo-input of a job whose parameters are in a shard."""
    return f"{quote(label)}:{order_id}"


def render_order_id_input(label: str, order_id: int) -> str:
    """Write the pseudo-input of a job that is found in the order id map."""
    return f"{quote(label)}:orderIdMap_{order_id}"


def render_named_input(job_name: str) -> str:
    """Write the pseudo-input of a job that is found in the map of names."""
    return f"PH:{quote(job_name)}"


def render_plain_input(job_name: str, values: "Iterable[tuple[str, str]]") -> str:
    """Write the pseudo-input that holds the parameters of the job itself."""
    return "".join([quote(job_name)] + [f"+{quote(name)}:{quote(value)}" for name, value in values])


def parse_input(text: str, *, short: bool = False) -> PseudoInput:
    """Read a pseudo-input.

    Parameters
    ----------
    text : `str`
        ``label:12`` (only if ``short``), ``label:orderIdMap_12``,
        ``label:eventservice_40^3`` (third event of those from order id 40
        on, that is order id 42), ``PH:name`` or ``name+key:value+...``; any
        may be followed by ``+key:value``.
    short : `bool`, optional
        Whether the parameters of the task's jobs are in shards.

    Raises
    ------
    ValueError
        If it is none of these.
    """
    head, *others = text.split("+")
    values: "dict[str, str]" = {}
    for other in others:
        name, colon, value = other.partition(":")
        if not colon:
            raise ValueError(f"not of the form key:value in pseudo-input {text!r}: {other!r}")
        values.setdefault(unquote(name), unquote(value))
    label, _, tail = head.partition(":")
    if tail.startswith("eventservice_"):
        base, *event = tail[len("eventservice_") :].split("^")
        order_id = _ordinal(base, text) + _ordinal(event[0] if event else "", text) - 1
        return PseudoInput(text, "event", label=label, order_id=order_id, values=values)
    if tail.startswith("orderIdMap_"):
        order_id = _ordinal(tail[len("orderIdMap_") :], text)
        return PseudoInput(text, "order", label=label, order_id=order_id, values=values)
    if short:
        return PseudoInput(text, "short", label=label, order_id=_ordinal(tail, text), values=values)
    if label == "PH" and tail and ":" not in tail:
        return PseudoInput(text, "named", values=values)
    return PseudoInput(text, "plain", values=values)


def _ordinal(text: str, whole: str) -> int:
    """Read a number without sign, part of a pseudo-input."""
    if not text or text.strip("0123456789"):
        raise ValueError(f"no order id in pseudo-input {whole!r}: {text!r} is not a number")
    return int(text)


# -----------------------------------------------------------------------------------------------------------
# Options and failures
# -----------------------------------------------------------------------------------------------------------

VERSION = "1.0"

EXIT_PARAMETERS = 65
EXIT_MISSING = 66
EXIT_USAGE = 67
EXIT_UNREACHABLE = 69
EXIT_INTERNAL = 70
EXIT_START = 71
EXIT_SHARD = 72
EXIT_WORK_DIRECTORY = 73
EXIT_DAMAGED = 74
EXIT_OUTPUT = 75
EXIT_CANCELLED = 76
EXIT_UNSAFE = 77
EXIT_PLACEHOLDER = 78
EXIT_NOT_RUN = 79
EXIT_SET_UP = 80

EXIT_CODES = {
    EXIT_PARAMETERS: "the pseudo-input, a map or a shard does not give the job's parameters",
    EXIT_MISSING: "a file of the run is not in the staging area, or may not be read",
    EXIT_USAGE: "the arguments or options are not understood",
    EXIT_UNREACHABLE: "the staging area does not answer, or lsst.resources is needed and not there",
    EXIT_INTERNAL: "a mistake in the runner itself",
    EXIT_START: "no shell could be started",
    EXIT_SHARD: "a shard or a map of jobs' parameters is damaged: it is as it was staged, and makes no sense",
    EXIT_WORK_DIRECTORY: "the work directory (or the cache) cannot be written, or is full",
    EXIT_DAMAGED: "a file is not what was staged, every time it was fetched",
    EXIT_OUTPUT: "the payload ended well, but an output is missing or cannot be put where it belongs",
    EXIT_CANCELLED: "the run was cancelled, so its final job did not run",
    EXIT_UNSAFE: "the area has what is refused: a name, a kind of file, a redirection, an archive's member",
    EXIT_PLACEHOLDER: "a placeholder of the command line has no value",
    EXIT_NOT_RUN: "the commands around the runner ended with 0, but the runner did not run",
    EXIT_SET_UP: "setupLSSTEnv, custom_lsst_setup or jobInitDir failed, so the runner was not started",
}
"""Exit codes of the runner's own.  PanDA's pilot has meanings for 2, 3, 64
and from 126 on, and 1 and 2 are a payload's most frequent ones.
"""


SUCCESS = 119
"""Exit code that the commands around the runner take for a success: 0 is what they end with, too,
if the runner did not run (option ``--success``)."""


class FailureError(Exception):
    """What ends the runner: its exit code, and a line that says why."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class DamagedError(OSError):
    """What was read is not what was staged."""


class ShardError(Exception):
    """What gives the parameters of jobs makes no sense."""


def _unsafe(text: str) -> FailureError:
    return FailureError(EXIT_UNSAFE, text)


class StoppedError(Exception):
    """A signal came before the payload had been started."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number} before the payload was started")
        self.code = 128 + number


def _choice(*choices: str) -> "Callable[[str], str]":
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)} is expected")
        return text

    return read


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e6:
        raise ValueError("a number of seconds from 0 to 999999 is expected")
    return value


def _codes(text: str) -> "list[int]":
    return [int(code) for code in text.split(",") if code]


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError("a number that is not negative is expected")
    return value


def _shards(text: str) -> "tuple[str, int]":
    if text == "none":
        return "", 0
    label, _, count = text.rpartition("@")
    if not label or _count(count) < 1:
        raise ValueError("<safe label>@<jobs per shard>, or none, is expected")
    return label, int(count)


_OPTIONS: "dict[str, tuple[Any, Callable[[str], Any]]]" = {
    "parameters": (None, _shards),
    "retry-unless-exit": ((), _codes),
    "attempt": (None, _count),
    "run": ("", str),
    "final": ("no", _choice("no", "yes", "always")),
    "manifest": ("optional", _choice("optional", "required", "ignored")),
    "executables": ((), decode_direct),
    "outputs": ((), decode_outputs),
    "keep-tokens": ("no", _choice("no", "yes")),
    "prmon": ("yes", _choice("no", "yes")),
    "grace": (30.0, _seconds),
    "cache": ("", str),
    "tries": (3, _count),
    "pause": (1.0, _seconds),
    "timeout": (60.0, _seconds),
    "patience": (300.0, _seconds),
    "success": (0, _count),
}
"""Name of each option, its value when it is not given, and its reader."""


def encode_option(name: str, value: str) -> str:
    """Write an option of the runner, to stand behind the five arguments.

    Parameters
    ----------
    name : `str`
        Name without the dashes.
    value : `str`
        Its value.

    Raises
    ------
    ValueError
        If there is no such option, or it cannot have such a value.
    """
    return f"--{name}={_escape(_check_option(name, value), _PLAIN_IN_AREA, '%')}"


def _check_option(name: str, value: str) -> str:
    if name not in _OPTIONS:
        raise ValueError(f"no option --{name}; there are {', '.join('--' + known for known in _OPTIONS)}")
    try:
        _OPTIONS[name][1](value)
    except ValueError as error:
        raise ValueError(f"option --{name} cannot be {value!r}: {error}") from None
    return value


class Arguments:
    """The runner's arguments, read.

    Parameters
    ----------
    arguments : `~collections.abc.Sequence` [`str`]
        The arguments, without the name of the program.  Older plugins leave
        FILES away if there are none.

    Raises
    ------
    ValueError
        If they are not understood.
    """

    def __init__(self, arguments: "Sequence[str]") -> None:
        positional = [argument for argument in arguments if not argument.startswith("--")]
        if len(positional) == 4:
            positional.insert(3, NO_FILES)
        if len(positional) != 5:
            raise ValueError(
                f"{len(positional)} arguments instead of 5 (HEX INPUT AREA FILES DIRECT): {positional[1:]}"
            )
        self.command = decode_command(positional[0])
        self.input = positional[1]
        self.area = decode_area(positional[2])
        self.files = decode_files(positional[3])
        self.direct = decode_direct(positional[4])
        self.archive = unquote(positional[4]) if is_archive(positional[4]) else ""
        self._options = {name: default for name, (default, _) in _OPTIONS.items()}
        for argument in arguments:
            if argument.startswith("--"):
                self._read_option(argument)

    def _read_option(self, argument: str) -> None:
        name, equals, value = argument[2:].partition("=")
        if not equals:
            raise ValueError(f"option {argument} has no value; write --name=value")
        value = _check_option(name, unquote(value))
        self._options[name] = _OPTIONS[name][1](value)

    def __getitem__(self, name: str) -> "Any":
        return self._options[name]


# -----------------------------------------------------------------------------------------------------------
# Substitution
# -----------------------------------------------------------------------------------------------------------

_TOKEN = r"<(ENV|FILE|WMS):([^<>]*)>|\\.?|\$['({]|['\"`(){}#\n]"
_CLOSED_BY = {
    "single": "'",
    "ansi": "'",
    "double": '"',
    "backtick": "`",
    "paren": ")",
    "brace": "}",
    "quoted brace": "}",
    "comment": "\n",
}
_OPENED_IN_WORD = {
    "'": "single",
    "$'": "ansi",
    '"': "double",
    "`": "backtick",
    "(": "paren",
    "$(": "paren",
    "${": "brace",
}
_OPENED_IN_QUOTES = {"`": "backtick", "$(": "paren", "${": "quoted brace"}
_OPENED: "dict[str, dict[str, str]]" = {
    "single": {},
    "ansi": {},
    "comment": {},
    "double": _OPENED_IN_QUOTES,
    "quoted brace": _OPENED_IN_QUOTES,
}
_NO_ESCAPES = ("single", "comment")


def insert_values(command: str, values: "Mapping[str, str]") -> str:
    """Put the job's parameters in the place of ``{name}``, as text.

    A value may hold several words or options, as in BPS.  What has no value
    is left alone, and so is ``${name}``, which is the shell's.
    """
    import re

    return re.sub(r"(?<!\$)\{([^{}]*)\}", lambda match: values.get(match.group(1), match.group()), command)


def insert_quoted(command: str, find: "Callable[[str, str], str]") -> str:
    """Put values in the place of ``<FILE:key>``, ``<ENV:NAME>`` and
    ``<WMS:name>``, so that each stays what it is in the shell's eyes.

    A variable of the environment is left to the shell, as ``${NAME}``, where
    the shell replaces it: it splits the value into words, as users expect.

    The command is followed as a shell reads it, hence a value is quoted as
    the quotes around its placeholder want it, and the text that it touches
    stays one word with it.  A placeholder behind a backslash is left alone.
    Here-documents are not followed: text in them counts as outside of quotes.

    Parameters
    ----------
    command : `str`
        The command line.
    find : `~collections.abc.Callable`
        Gives the value for a kind (``FILE``, ...) and a name.
    """
    import re

    token = re.compile(_TOKEN, re.DOTALL)
    states = ["word"]
    done = []
    position = 0
    match = token.search(command)
    while match:
        done.append(command[position : match.start()])
        position = match.end()
        text = match.group()
        if match.group(1) == "ENV" and states[-1] not in ("single", "ansi") and match.group(2).isidentifier():
            text = "${%s}" % match.group(2)
        elif match.group(1):
            text = _quote_for_shell(find(match.group(1), match.group(2)), states)
        elif text.startswith("\\"):
            if states[-1] in _NO_ESCAPES:
                text, position = text[:1], match.start() + 1
        else:
            _follow(states, text, command[: match.start()][-1:])
        done.append(text)
        match = token.search(command, position)
    return "".join(done) + command[position:]


def _follow(states: "list[str]", text: str, before: str) -> None:
    """Note what a quote, bracket or comment sign does to the nested states
    of the shell (the innermost is the last).
    """
    state = states[-1]
    end = _CLOSED_BY.get(state)
    if text == end or (end == "'" and text == "$'"):
        states.pop()
    elif text == "#":
        if state in ("word", "paren", "backtick") and before in ("", " ", "\t", "\n", ";", "&", "|", "("):
            states.append("comment")
    else:
        opened = _OPENED.get(state, _OPENED_IN_WORD).get(text)
        if opened:
            states.append(opened)


_PLAIN_IN_SHELL = _PLAIN | frozenset("/:@%+=")


def _quote_for_shell(value: str, states: "Sequence[str]") -> str:
    """Quote a value for the place where it is put."""
    state = states[-1]
    if state == "single":
        text = value.replace("'", "'\\''")
    elif state == "ansi":
        text = value.replace("\\", "\\\\").replace("'", "\\'")
    elif state in ("double", "quoted brace"):
        text = "".join("\\" + char if char in '\\$`"' else char for char in value)
    elif value and _PLAIN_IN_SHELL.issuperset(value):
        text = value
    else:
        text = "'" + value.replace("'", "'\\''") + "'"
    if "backtick" in states:  # these take one layer of backslashes away
        text = "".join("\\" + char if char in "\\$`" else char for char in text)
    return text


# -----------------------------------------------------------------------------------------------------------
# Staging areas: where files are read from
# -----------------------------------------------------------------------------------------------------------


_CHUNK = 1 << 20

LARGEST_MANIFEST = 64 << 20
"""Bytes of a manifest, that of about 600,000 files."""

LARGEST_UNLISTED = 10 << 30
"""Bytes of a file on a server that no manifest lists."""

LARGEST_UNPACKED = 1 << 30
"""Bytes of an archive without its compression; PanDA's file cache takes 10 MB of it with that."""

_LARGEST_NOTE = 1 << 20
"""Bytes of the notes in an area: what was cancelled, how an attempt ended."""

_LONGEST_REDIRECTION = 10
_BYTES_OF_PATIENCE = 30000000


def _read_chunks(path: "bytes | str") -> "Iterator[bytes]":
    """Read a file that is one: opening a FIFO would wait for a writer, and a
    device has no end.
    """
    import stat

    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(f"{_shown_path(path)!r} is a directory")
        if not stat.S_ISREG(mode):
            raise _unsafe(f"{_shown_path(path)!r} is a FIFO, a device or a socket and not a file")
        chunk = os.read(descriptor, _CHUNK)
        while chunk:
            yield chunk
            chunk = os.read(descriptor, _CHUNK)
    finally:
        os.close(descriptor)


def _shown_path(path: "bytes | str") -> str:
    return _text(os.fsencode(path))


def _bounded(chunks: "Iterable[bytes]", limit: int) -> "Iterator[bytes]":
    """Stop reading what is longer than it may be."""
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise DamagedError(f"more than {limit} bytes, which is all that there may be")
        yield chunk


class LocalArea:
    """Staging area that is a directory here."""

    def __init__(self, path: str) -> None:
        self.root = _bytes(path)

    def path(self, name: str) -> bytes:
        """Path of a file in the area."""
        return os.path.join(self.root, _bytes(name))

    def chunks(self, name: str, limit: "int | None" = None) -> "Iterator[bytes]":
        """Read a file."""
        chunks = _read_chunks(self.path(name))
        return chunks if limit is None else _bounded(chunks, limit)

    def mode(self, name: str) -> int:
        """Permissions of a file, 0 if they cannot be told."""
        return os.stat(self.path(name)).st_mode & 0o777

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return os.path.lexists(self.path(name))

    def notes(self, folder: str) -> "list[str]":
        """Names of the notes in a folder; none if it is not there."""
        try:
            return [_text(name) for name in os.listdir(self.path(folder))]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def add_note(self, folder: str, name: str) -> None:
        """Add a note, which its name alone says; adding it twice is adding it
        once.
        """
        os.stat(self.root)  # an area that is not here must not be made
        path = self.root
        for part in folder.split("/"):
            path = os.path.join(path, _bytes(part))
            if os.path.islink(path):
                raise _unsafe(f"{_text(path)!r} is a symbolic link")
        os.makedirs(path, exist_ok=True)
        os.close(os.open(os.path.join(path, _bytes(name)), os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o666))

    def tree(self, name: str) -> "list[str]":
        """Names of the files and (with ``/`` at the end) directories below a
        directory.
        """
        names: "list[str]" = []
        waiting: "list[tuple[str, tuple[tuple[int, int], ...]]]" = [(name, ())]
        while waiting:
            base, above = waiting.pop()
            status = os.stat(self.path(base))
            here = status.st_dev, status.st_ino
            if here in above:
                raise _unsafe(f"directory {base!r} is a symbolic link to one above it, so it has no end")
            for entry in os.listdir(self.path(base)):
                inside = base + _text(entry)
                if os.path.isdir(self.path(inside)):
                    inside += "/"
                    waiting.append((inside, above + (here,)))
                names.append(inside)
        return names


class HttpArea:
    """Staging area that a web server shows."""

    def __init__(self, uri: str, timeout: float) -> None:
        self.root = uri if uri.endswith("/") else uri + "/"
        self.timeout = timeout

    def chunks(self, name: str, limit: "int | None" = None) -> "Iterator[bytes]":
        """Read a file; what is shorter than the server said is an error."""
        url = self.root + _escape(name, _PLAIN_IN_PATH, "%")
        return _read_url(url, self.timeout, LARGEST_UNLISTED if limit is None else limit)

    def mode(self, name: str) -> int:
        """Web servers do not tell permissions."""
        return 0

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        try:
            for _ in self.chunks(name):
                break
        except FileNotFoundError:
            return False
        return True

    def notes(self, folder: str) -> "list[str]":
        """Names of the notes in a folder, asked for as WebDAV does."""
        import re

        url = f"{self.root}{_escape(folder, _PLAIN_IN_PATH, '%')}/"
        try:
            reply = b"".join(_read_url(url, self.timeout, _LARGEST_NOTE, method="PROPFIND"))
        except FileNotFoundError:
            return []
        paths = re.findall(r"<(?:\w+:)?href[^>]*>\s*([^<]*?)\s*<", _text(reply))
        return [unquote(path.rpartition("/")[2]) for path in paths]

    def add_note(self, folder: str, name: str) -> None:
        """Add a note, and the folders above it if the server wants them."""
        url = self.root + _escape(f"{folder}/{name}", _PLAIN_IN_PATH, "%")
        try:
            self._send(url, "PUT")
        except (FileNotFoundError, ConnectionError):
            parts = folder.split("/")
            for count in range(1, len(parts) + 1):
                above = self.root + _escape("/".join(parts[:count]), _PLAIN_IN_PATH, "%") + "/"
                try:
                    self._send(above, "MKCOL")
                except ConnectionError:  # it is there, or the next request tells
                    pass
            self._send(url, "PUT")

    def _send(self, url: str, method: str) -> None:
        for _ in _read_url(url, self.timeout, _LARGEST_NOTE, method=method):
            pass

    def tree(self, name: str) -> "list[str]":
        """Web servers do not list directories."""
        raise FileNotFoundError(
            f"directory {name!r} cannot be listed over http(s), and the area has no manifest that lists it"
        )


class ResourceArea:
    """Staging area that ``lsst.resources`` reads."""

    def __init__(self, uri: str) -> None:
        self.root = uri if uri.endswith("/") else uri + "/"

    def _uri(self, name: str) -> "Any":
        try:
            from lsst.resources import ResourcePath
        except ImportError as error:
            raise FailureError(
                EXIT_UNREACHABLE,
                f"{_without_password(self.root)} needs lsst.resources, which {sys.executable} does not have"
                f" ({error}); set the LSST stack up before the runner, and do not use python3 -I",
            ) from None
        uri = self.root + _escape(name, _PLAIN_IN_PATH, "%")
        return ResourcePath(uri, forceDirectory=name.endswith("/"))

    def chunks(self, name: str, limit: "int | None" = None) -> "Iterator[bytes]":
        """Read a file."""
        uri = self._uri(name)
        limit = LARGEST_UNLISTED if limit is None else limit
        try:
            size = uri.size()  # before it is fetched whole
            if size > limit:
                raise DamagedError(f"{size} bytes, and there may be {limit}")
            with uri.as_local() as local:
                for chunk in _bounded(_read_chunks(local.ospath), limit):
                    yield chunk
        except (OSError, FailureError):
            raise
        except Exception as error:  # each store has errors of its own
            raise ConnectionError(f"{type(error).__name__}: {error}") from None

    def mode(self, name: str) -> int:
        """Object stores have no permissions."""
        return 0

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return bool(self._uri(name).exists())

    def put(self, name: str) -> None:
        """Write a file of the work directory to the area."""
        with open(_bytes(name), "rb") as stream:
            self._write(name, stream.read())

    def _write(self, name: str, data: bytes) -> None:
        uri = self._uri(name)
        try:
            uri.write(data, overwrite=True)
        except OSError:
            raise
        except Exception as error:  # each store has errors of its own
            raise ConnectionError(f"{type(error).__name__}: {error}") from None

    def notes(self, folder: str) -> "list[str]":
        """Names of the notes in a folder; none if it is not there."""
        try:
            return [name.rpartition("/")[2] for name in self.tree(folder + "/")]
        except FileNotFoundError:
            return []
        except (OSError, FailureError):
            raise
        except Exception as error:  # each store has errors of its own
            raise ConnectionError(f"{type(error).__name__}: {error}") from None

    def add_note(self, folder: str, name: str) -> None:
        """Add a note, which its name alone says."""
        self._write(f"{folder}/{name}", b"\n")

    def tree(self, name: str) -> "list[str]":
        """Names of the files below a directory."""
        top = self._uri(name)
        names = []
        for folder, _, files in top.walk():
            below = (folder.relative_to(top) or ".").strip("/")
            base = name if below == "." else name + below + "/"
            names += [base + file for file in files]
        return names


def open_area(uri: str, *, timeout: float = 60.0) -> "LocalArea | HttpArea | ResourceArea":
    """Find out how a staging area is read.

    Parameters
    ----------
    uri : `str`
        Path or URI.
    timeout : `float`, optional
        Seconds that a web server may be silent.
    """
    scheme, colon, rest = uri.partition(":")
    if not colon or not rest.startswith("/") or "/" in scheme:
        return LocalArea(uri)
    if scheme == "file":
        if rest.startswith("//"):
            rest = rest[2:][rest[2:].find("/") :]
        return LocalArea(unquote(rest))
    if scheme in ("http", "https"):
        return HttpArea(uri, timeout)
    return ResourceArea(uri)


def _without_password(uri: str) -> str:
    """A URI that may be shown."""
    scheme, slashes, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    return scheme + slashes + host.rpartition("@")[2] + slash + path if slashes else uri


def _read_url(url: str, timeout: float, limit: int, *, method: str = "GET") -> "Iterator[bytes]":
    """Read what a web server answers, with failures as the operating system
    has them for files.
    """
    import http.client
    import urllib.error

    try:
        with _open_url(url, timeout, method) as reply:
            expected = reply.headers.get("Content-Length")
            if expected is not None and int(expected) > limit:
                raise DamagedError(f"the server announces {int(expected)} bytes, and there may be {limit}")
            size = 0
            for chunk in _bounded(iter(lambda: reply.read(_CHUNK), b""), limit):
                size += len(chunk)
                yield chunk
        if expected is not None and size != int(expected):
            raise DamagedError(f"{size} bytes came instead of {expected}")
    except urllib.error.HTTPError as error:
        error.close()
        kind = {401: PermissionError, 403: PermissionError, 404: FileNotFoundError, 410: FileNotFoundError}
        raise kind.get(error.code, ConnectionError)(
            f"the server answered {error.code} {error.reason}"
        ) from None
    except (http.client.HTTPException, ValueError) as error:
        raise ConnectionError(f"{type(error).__name__}: {error}") from None


def _open_url(url: str, timeout: float, method: str = "GET") -> "Any":
    """Send a request, and follow where the server redirects to: by http and
    https only, never from https to http, and without our credentials.
    """
    import urllib.error
    import urllib.request

    token = _bearer_token() if url.startswith("https:") else ""
    here, seen = url, 0
    while True:
        opener = urllib.request.OpenerDirector()  # the usual one also speaks ftp, and reads files
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(context=_tls(here, show=_origin(here) == _origin(url))),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
        ):
            opener.add_handler(handler)
        data = b"\n" if method == "PUT" else None
        request = urllib.request.Request(here, data, method=method)
        if method == "PROPFIND":
            request.add_header("Depth", "1")
        if token and here == url:
            request.add_unredirected_header("Authorization", "Bearer " + token)
        try:
            return opener.open(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            if error.code not in (301, 302, 303, 307, 308):
                raise
            error.close()
            seen += 1
            if seen > _LONGEST_REDIRECTION:
                raise _unsafe(f"{_without_password(url)} is redirected more than {seen - 1} times") from None
            here = _redirected(here, error.headers.get("Location") or "")


def _origin(url: str) -> "list[str]":
    """Scheme, host and port."""
    return url.lower().split("/")[:3]


def _redirected(url: str, location: str) -> str:
    """Where a redirection leads."""
    from urllib.parse import urljoin

    target = urljoin(url, location.replace(" ", "%20"))
    scheme = target.partition(":")[0].lower()
    if not location or scheme not in ("http", "https") or (scheme == "http" and _origin(url)[0] == "https:"):
        raise _unsafe(
            f"{_without_password(url)} is redirected to {_without_password(target)!r}, which is not followed:"
            " only http and https are, and not from https to http"
        )
    return target


def _bearer_token() -> str:
    """Token for web servers, from where lsst.resources and grid tools have
    it.
    """
    value = os.environ.get("LSST_HTTP_AUTH_BEARER_TOKEN") or os.environ.get("BEARER_TOKEN", "")
    path = value if os.path.isfile(value) else os.environ.get("BEARER_TOKEN_FILE", "") if not value else ""
    if path:
        with open(path) as stream:
            value = stream.read()
    return value.strip()


def _tls(url: str, *, show: bool) -> "Any":
    """Certificates to trust and (to the area's host only) to show, from the
    variables of lsst.resources.
    """
    bundle = os.environ.get("LSST_HTTP_CACERT_BUNDLE")
    certificate = os.environ.get("LSST_HTTP_AUTH_CLIENT_CERT") if show else ""
    if not url.startswith("https:") or not (bundle or certificate):
        return None
    import ssl

    context = ssl.create_default_context()
    if bundle:
        where = {"capath": bundle} if os.path.isdir(bundle) else {"cafile": bundle}
        context.load_verify_locations(**where)
    if certificate:
        context.load_cert_chain(certificate, os.environ.get("LSST_HTTP_AUTH_CLIENT_KEY"))
    return context


# -----------------------------------------------------------------------------------------------------------
# Fetching
# -----------------------------------------------------------------------------------------------------------

MANIFEST = ".staged.json"
"""File of the staging area that lists what was staged, with sizes and
checksums; written last."""


class Fetcher:
    """Brings files of a staging area here, whole or not at all.

    Parameters
    ----------
    arguments : `Arguments`
        Says where from, and how often and how patiently to try.
    sleep : `~collections.abc.Callable`, optional
        Waits for some seconds.
    """

    def __init__(self, arguments: Arguments, *, sleep: "Callable[[float], None] | None" = None) -> None:
        self.area = open_area(arguments.area, timeout=arguments["timeout"])
        self.shown = _without_password(arguments.area)
        self.timeout: float = arguments["timeout"]
        self.tries: int = max(1, arguments["tries"])
        self.pause: float = arguments["pause"]
        self.cache: str = arguments["cache"]
        self.patience: float = arguments["patience"]
        self._wanted: str = arguments["manifest"]
        self._entries: "dict[str, Any] | None" = None
        self._sleep = sleep

    @property
    def entries(self) -> "dict[str, Any]":
        """What the manifest says of each file, empty without a manifest."""
        if self._entries is None:
            self._entries = {} if self._wanted == "ignored" else self._read_manifest()
        return self._entries

    def _read_manifest(self) -> "dict[str, Any]":
        def parse() -> "dict[str, Any]":
            try:
                text = b"".join(self.area.chunks(MANIFEST, LARGEST_MANIFEST))
                return dict(_parse_json(text, _refuse_twins)["files"])
            except FileNotFoundError:
                return {}
            except PermissionError:  # some stores do not tell what is missing from what is forbidden
                if self._wanted == "required":
                    raise
                return {}
            except (ValueError, LookupError, TypeError) as error:
                raise DamagedError(f"not a manifest ({error})") from None

        entries: "dict[str, Any]" = self.attempt(MANIFEST, parse)
        if not entries and self._wanted == "required":
            raise FailureError(
                EXIT_MISSING,
                f"staging area {self.shown} has no {MANIFEST}: the run's files were not staged to the end",
            )
        return entries

    def entry(self, name: str) -> "dict[str, Any] | None":
        """What the manifest says of a file, if it does."""
        entry = self.entries.get(name)
        if entry is None:
            return None
        try:
            size, checksum = entry.get("size"), entry.get("adler32")
            sane = (size is None or (type(size) is int and 0 <= size < 1 << 63)) and (
                not checksum or 0 <= int(checksum, 16) < 1 << 32
            )
        except (AttributeError, TypeError, ValueError):
            sane = False
        if not sane:
            raise FailureError(
                EXIT_DAMAGED, f"{MANIFEST} of {self.shown}: not size and adler32 of {name!r}: {entry}"
            )
        return {"size": size, "adler32": checksum}

    def attempt(self, name: str, action: "Callable[[], Any]", *, size: "int | None" = None) -> "Any":
        """Do something with a file of the area, several times if need be.

        Each time may take as long as the size, in bytes, needs; if that is
        not known, twelve times that of a small file.
        """
        seconds = self.patience * (12 if size is None else 1 + size / _BYTES_OF_PATIENCE)
        pause = self.pause
        code = EXIT_UNREACHABLE
        for left in range(self.tries - 1, -1, -1):
            try:
                with _Limit(seconds):
                    return action()
            except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
                raise FailureError(EXIT_MISSING, self._why(name, error)) from None
            except OSError as error:
                code = EXIT_DAMAGED if isinstance(error, DamagedError) else EXIT_UNREACHABLE
                reason = self._why(name, error)
            if left:
                say(f"{reason}; trying again in {pause:g} s ({left} left)")
                self._wait(pause)
                pause *= 2
        raise FailureError(code, f"{reason}, in each of {self.tries} tries")

    def _wait(self, seconds: float) -> None:
        if self._sleep is None:
            import time

            time.sleep(seconds)
        else:
            self._sleep(seconds)

    def _why(self, name: str, error: OSError) -> str:
        return f"cannot get {name!r} from {self.shown}: {error.strerror or error}"

    def read(self, name: str) -> bytes:
        """Read a small file.

        Raises
        ------
        FailureError
            If it cannot be had as it was staged.
        """
        entry = self.entry(name)
        size = entry["size"] if entry else None

        def action() -> bytes:
            data = b"".join(self.area.chunks(name, size))
            _verify(entry, len(data), _adler32(data) if entry else 1)
            return data

        data: bytes = self.attempt(name, action, size=size)
        return data

    def fetch(self, name: str, target: bytes, *, executable: bool = False) -> None:
        """Bring a file or (name ends in ``/``) a directory to a path."""
        if not name.endswith("/"):
            self._fetch_file(name, target, executable=executable)
            return
        names = {other for other in self.entries if other.startswith(name)}
        if not names or isinstance(self.area, LocalArea):  # the manifest has no empty directories
            names.update(self.attempt(name, lambda: self.area.tree(name)))
        self._check_tree(name, names)
        _make_folder(target)
        for other in sorted(names):
            path = os.path.join(target, _bytes(other[len(name) :]))
            if other.endswith("/"):
                _make_folder(path)
            else:
                self._fetch_file(other, path, executable=executable)

    def _check_tree(self, name: str, names: "Iterable[str]") -> None:
        """Refuse names, of a manifest or a listing, that lead out of the
        directory or cannot be there together.
        """
        files = {other for other in names if not other.endswith("/")}
        for other in names:
            try:
                parts = check_name(other[len(name) :]).rstrip("/").split("/")[:-1]
            except ValueError as error:
                raise _unsafe(
                    f"{self.shown} lists {other!r} below {name!r}, which is not fetched: {error}"
                ) from None
            above = name
            for part in parts:
                above += part
                if above in files:
                    raise _unsafe(f"{self.shown} lists {above!r} as a file and as the directory of {other!r}")
                above += "/"

    def _fetch_file(self, name: str, target: bytes, *, executable: bool) -> None:
        entry = self.entry(name)
        _make_folder(os.path.dirname(target))
        if self._is_here(name, target, entry):
            pass
        elif self.cache and entry:
            self._fetch_through_cache(name, target, entry)
        else:
            self._get(name, target, entry)
        if executable:
            _make_executable(target)

    def _get(self, name: str, target: bytes, entry: "Any") -> None:
        size = entry["size"] if entry else None
        self.attempt(name, lambda: _copy(self.area, name, target, entry), size=size)

    def _is_here(self, name: str, target: bytes, entry: "Any") -> bool:
        """Whether the target is already what would be fetched."""
        if not os.path.isfile(target):
            return False
        if isinstance(self.area, LocalArea):
            source = self.area.path(name)
            if os.path.exists(source) and os.path.samefile(source, target):
                return True
        try:
            return bool(entry) and _verify_file(target, entry)
        except DamagedError:
            return False

    def _fetch_through_cache(self, name: str, target: bytes, entry: "Any") -> None:
        """Fetch a file by way of the node's cache.

        The name in the cache is made from what was staged, a file appears
        there by a rename, and each user has a folder: so no locks are needed
        and nothing of another run or user is taken for it.
        """
        import hashlib

        folder = _own_folder(os.path.join(_bytes(self.cache), b"%d" % os.getuid()))
        identity = "\n".join((self.shown, name, str(entry.get("size")), str(entry.get("adler32"))))
        cached = hashlib.sha256(_bytes(identity)).hexdigest()
        store = LocalArea(_text(folder))
        if not store.exists(cached):
            self._get(name, store.path(cached), entry)
        try:
            _copy(store, cached, target, entry)
        except OSError as error:  # damaged there, or tidied away in between
            say(f"{self._why(name, error)} (in the cache); fetching it again")
            self._get(name, store.path(cached), entry)
            self.attempt(name, lambda: _copy(store, cached, target, entry))

    def settle(self, name: str) -> str:
        """Name without the ``/`` at its end if it is a file after all: older
        plugins write one behind each Butler configuration.
        """
        if isinstance(self.area, LocalArea) and os.path.isfile(self.area.path(name[:-1])):
            return name.rstrip("/")
        return name

    def check_in_place(self, name: str) -> None:
        """Raise a failure if a file that is used where it is, is not there
        or shorter than it was.  Only looked at if the area is a directory.
        """
        if not isinstance(self.area, LocalArea):
            return
        path = self.area.path(name)
        entry = self.entry(name) or {}

        def action() -> None:
            if os.stat(path).st_size < int(entry.get("size") or 0):
                raise DamagedError(f"{os.stat(path).st_size} bytes instead of {entry['size']}")

        self.attempt(name, action)


class _Limit:
    """Ends what is inside when its time is over, wherever it waits: for one
    byte after the other, for a header, in a library, in the file system.

    Parameters
    ----------
    seconds : `float`
        The time.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._is_over = False

    def __enter__(self) -> None:
        import signal

        self._before: "Any" = None
        try:
            self._before = signal.signal(signal.SIGALRM, self._end)
        except ValueError:  # only the main thread can do this, and it is what the runner has
            return
        # And again, should somebody take the first for a failure of theirs.
        signal.setitimer(signal.ITIMER_REAL, max(self._seconds, 0.001), 5.0)

    def _end(self, number: int, frame: object) -> None:
        self._is_over = True
        raise self._error()

    def _error(self) -> TimeoutError:
        return TimeoutError(
            f"not done within {self._seconds:g} s; option --patience, or the profile of the site, allows more"
        )

    def __exit__(self, kind: object, error: "BaseException | None", traceback: object) -> None:
        import signal

        if self._before is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._before)
        if self._is_over and isinstance(error, (ImportError, LookupError)):
            # The first one came during an import, which takes it for a file that is not there.
            raise self._error() from error


def _refuse_twins(pairs: "list[tuple[str, Any]]") -> "dict[str, Any]":
    """Make a JSON object, in which nothing is there twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"{twin!r} is there twice")
    return found


def _adler32(data: bytes, start: int = 1) -> int:
    import zlib

    return zlib.adler32(data, start) & 0xFFFFFFFF


def _verify(entry: "Any", size: int, checksum: int) -> None:
    """Compare with what the manifest says; an entry may lack either."""
    if not entry:
        return
    if entry.get("size") is not None and size != entry["size"]:
        raise DamagedError(f"{size} bytes instead of {entry['size']}")
    if entry.get("adler32") and checksum != int(entry["adler32"], 16):
        raise DamagedError(f"checksum (adler32) {checksum:08x} instead of {entry['adler32']}")


def _verify_file(path: bytes, entry: "Any") -> bool:
    size, checksum = 0, 1
    for chunk in _read_chunks(path):
        size += len(chunk)
        checksum = _adler32(chunk, checksum)
    _verify(entry, size, checksum)
    return True


def _make_folder(path: bytes) -> None:
    try:
        os.makedirs(path or b".", exist_ok=True)
    except OSError as error:
        raise FailureError(
            EXIT_WORK_DIRECTORY, f"cannot make directory {_text(path)!r}: {error.strerror}"
        ) from None


def _own_folder(path: bytes) -> bytes:
    """Make a directory that nobody else may write to, if it is not there."""
    import stat

    _make_folder(os.path.dirname(path))
    try:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        status = os.lstat(path)  # a link may lead to any directory of ours
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise FailureError(
                EXIT_WORK_DIRECTORY, f"cache {_text(path)!r} belongs to another user, or is a link"
            )
        if status.st_mode & 0o022:
            os.chmod(path, 0o700)
    except OSError as error:
        raise FailureError(EXIT_WORK_DIRECTORY, f"cache {_text(path)!r}: {error.strerror}") from None
    return path


def _make_executable(path: bytes) -> None:
    try:
        if not os.access(path, os.X_OK):
            os.chmod(path, 0o755)
    except OSError as error:
        text = f"cannot make {_text(path)!r} executable: {error.strerror}"
        raise FailureError(EXIT_WORK_DIRECTORY, text) from None


class _Part:
    """A file being written under a name of its own, until it is complete."""

    def __init__(self, target: bytes) -> None:
        self.target = target
        self.path = target + b".part-" + binascii.hexlify(os.urandom(6))
        self._descriptor = -1

    def open(self) -> None:
        def action() -> None:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

        self._do(action)

    def _do(self, action: "Callable[[], None]") -> None:
        try:
            action()
        except OSError as error:
            where = _text(self.target)
            raise FailureError(EXIT_WORK_DIRECTORY, f"cannot write {where!r}: {error.strerror}") from None

    def write(self, data: bytes) -> None:
        def action() -> None:
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]

        self._do(action)

    def complete(self, mode: int) -> None:
        def action() -> None:
            if mode:
                os.fchmod(self._descriptor, mode | 0o600)
            os.close(self._descriptor)
            self._descriptor = -1
            os.rename(self.path, self.target)

        self._do(action)

    def abandon(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        try:
            os.unlink(self.path)
        except OSError:
            pass


def _copy(area: "LocalArea | HttpArea | ResourceArea", name: str, target: bytes, entry: "Any") -> None:
    """Copy a file of an area to a path that it gets when it is complete."""
    part = _Part(target)
    try:  # a signal may come at any moment
        part.open()
        size, checksum = 0, 1
        for chunk in area.chunks(name, entry["size"] if entry else None):
            part.write(chunk)
            size += len(chunk)
            checksum = _adler32(chunk, checksum) if entry else 1
        _verify(entry, size, checksum)
        part.complete(area.mode(name))
    except BaseException:
        part.abandon()
        raise


# -----------------------------------------------------------------------------------------------------------
# One job: its files, parameters and command line
# -----------------------------------------------------------------------------------------------------------

ORDER_ID_MAP = "orderIdMapFilename"
"""Key of the map ``{label: {order id: pseudo-input}}``."""

NAME_MAP = "qnodemap"
"""Key of the map ``{pseudo-input with PH: pseudo-input}``."""

EXECUTABLE = "job_executable"
"""Key of an executable that the plugin sends with the job."""


def deliver(arguments: Arguments, fetcher: Fetcher) -> "dict[str, str]":
    """Bring the job's files to the work directory.

    Returns
    -------
    names : `dict` [`str`, `str`]
        What stands for each ``<FILE:key>``: the name, relative to the work
        directory or, if used in place, to the staging area.
    """
    names = {key: output_name(destination) for key, destination in arguments["outputs"]}
    names.update(arguments.files)
    if arguments.archive:
        _unpack_archive(arguments.archive, fetcher)
        for _, name in arguments.files:
            if not os.path.exists(_bytes(name)):
                raise FailureError(EXIT_MISSING, f"archive {arguments.archive} does not hold {name!r}")
            _make_executable(_bytes(name))
        return names
    for key, name in arguments.files:
        name = fetcher.settle(name)
        names[key] = name if not name.startswith("-") else "./" + name
        if key in arguments.direct:
            names[key] = name
            fetcher.check_in_place(name)
        elif key == ORDER_ID_MAP and os.path.exists(_bytes(name)) and name not in fetcher.entries:
            pass  # 100 MB and more, and the payloads of an event service job share it
        else:
            executable = key == EXECUTABLE or key in arguments["executables"]
            fetcher.fetch(name, _bytes(name), executable=executable)
    return names


def return_outputs(arguments: Arguments, code: int) -> int:
    """Put the job's outputs where they belong, or leave them in the staging
    area for the submit side to fetch.

    If the payload failed, what there is of them may help to see why, and
    its exit code is what matters.

    Parameters
    ----------
    arguments : `Arguments`
        Says which outputs there are.
    code : `int`
        Exit code of the payload.

    Returns
    -------
    code : `int`
        The same, or `EXIT_OUTPUT`.
    """
    for key, destination in arguments["outputs"]:
        name = output_name(destination)
        if code and not os.path.exists(_bytes(name)):
            continue
        try:
            with _Limit(arguments["patience"] * 12):
                _put(name, destination)
        except (OSError, FailureError) as error:
            reason = _reason(error)
            shown = _without_password(destination)
            text = f"output {name!r} (<FILE:{key}>) cannot be put to {shown}: {reason}"
            if _leave(arguments, left_output(key, destination), name):
                say(text + "; it is left in the staging area, from where the submit side fetches it")
                continue
            say(text)
            code = code or EXIT_OUTPUT
    return code


def _leave(arguments: Arguments, left: str, name: str) -> bool:
    """Copy a file of the work directory to the staging area; whether that
    was possible.
    """
    try:
        os.stat(_bytes(name))
        area = open_area(arguments.area)
        folder = left.rpartition("/")[0] + "/"
        with _Limit(arguments["patience"] * 12):
            if isinstance(area, LocalArea):
                os.stat(area.root)
                _make_folder(area.path(folder))
                _copy(LocalArea("."), name, area.path(left), None)
            else:
                ResourceArea(area.root + folder).put(name)
    except (OSError, FailureError):
        return False
    return True


def _put(name: str, destination: str) -> None:
    """Copy a file of the work directory to a path or URI."""
    folder = open_area(destination[: len(destination) - len(destination.rpartition("/")[2])] or "./")
    if isinstance(folder, LocalArea):
        if os.path.abspath(_bytes(name)) != os.path.abspath(folder.path(name)):
            # A directory that is not here is one of the submit side only: making it would hide that.
            os.stat(folder.root)
            _copy(LocalArea("."), name, folder.path(name), None)
        return
    area = folder if isinstance(folder, ResourceArea) else ResourceArea(folder.root)
    area.put(name)


def _unpack_archive(location: str, fetcher: Fetcher) -> None:
    """Fetch an archive of PanDA's file cache and unpack it here."""
    folder, _, name = _cache_location(location).rpartition("/")
    area = open_area(folder + "/", timeout=fetcher.timeout)
    target = _bytes(name)

    def action() -> None:
        _copy(area, name, target, None)
        try:
            unpack(_text(target))
        finally:
            os.unlink(target)

    fetcher.attempt(location, action)


def _cache_location(location: str) -> str:
    """Where PanDA's server shows a file of its cache: in ``/cache`` of the
    host, as PanDA's own client has it.
    """
    if "/" not in location:
        base = os.environ.get("PANDACACHE_URL") or os.environ.get("PANDA_URL_SSL", "")
        if not base:
            raise FailureError(
                EXIT_MISSING, f"archive {location}: neither PANDACACHE_URL nor PANDA_URL_SSL says where it is"
            )
        location = base + "/" + location
    scheme, _, rest = location.partition("://")
    if scheme not in ("http", "https"):
        return location
    return "/".join((scheme + ":/", rest.partition("/")[0], "cache", location.rpartition("/")[2]))


class _Unpacked:
    """A stream without its compression that a bomb does not get out of."""

    def __init__(self, stream: "Any") -> None:
        self._stream = stream
        self.tell = stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _CHUNK:  # a header of a member
            raise DamagedError(f"a part of {size} bytes where there is none as long")
        data: bytes = self._stream.read(size)
        self._check(self._stream.tell())
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self._check(offset)
        return int(self._stream.seek(offset, whence))

    def _check(self, position: int) -> None:
        if position > LARGEST_UNPACKED:
            raise DamagedError(f"more than {LARGEST_UNPACKED} bytes without its compression")


def unpack(path: str) -> None:
    """Unpack an archive (tar, perhaps with gzip) in the current directory:
    files and directories below it, and nothing else.

    Raises
    ------
    DamagedError
        If it is no complete archive, or too large without its compression.
    FailureError
        If it holds something else, or if it cannot be written here.
    """
    import gzip
    import tarfile

    try:
        with open(_bytes(path), "rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            stream: "Any" = _Unpacked(gzip.GzipFile(fileobj=plain) if packed else plain)
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                members = [_check_member(member) for member in archive]
                safely: "dict[str, Any]" = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
                archive.extractall(members=members, **safely)
    except (FailureError, StoppedError, DamagedError, TimeoutError):
        raise
    except Exception as error:  # tarfile lets many kinds out
        import errno

        if getattr(error, "errno", None) in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
        ):
            raise FailureError(EXIT_WORK_DIRECTORY, f"cannot unpack {path!r}: {error}") from None
        raise DamagedError(f"not a complete archive ({type(error).__name__}: {error})") from None


def _check_member(member: "Any") -> "Any":
    """Refuse what is not a file or directory below the current one, and let
    it be an ordinary one of ours.
    """
    name = member.name
    while name.startswith("./"):
        name = name[2:]
    try:
        if name not in ("", "."):
            check_name(name)
        if not (member.isfile() or member.isdir()):
            raise ValueError("it is neither a file nor a directory")
    except ValueError as error:
        raise _unsafe(f"archive has a member that is not unpacked, {member.name!r}: {error}") from None
    member.mode = (member.mode & 0o755) | 0o600
    member.uid, member.gid, member.uname, member.gname = os.getuid(), os.getgid(), "", ""
    return member


def find_values(arguments: Arguments, fetcher: Fetcher) -> "dict[str, str]":
    """Find the job's parameters: in its pseudo-input, a shard or a map."""
    shards = arguments["parameters"]
    text = arguments.input
    try:
        job = parse_input(text, short=shards is not None)
        if job.kind == "short" or (job.kind == "event" and shards):
            found = _from_shard(job, shards, fetcher)
        elif job.kind in ("order", "event"):
            labels = _read_map(ORDER_ID_MAP, "", arguments, fetcher)
            jobs = labels[job.label]
            _check_map(ORDER_ID_MAP, jobs, dict)
            found = _from_map(_check_map(ORDER_ID_MAP, jobs[str(job.order_id)], str), arguments, fetcher)
        else:
            found = _from_map(text, arguments, fetcher)
    except (ValueError, LookupError, TypeError, ShardError) as error:
        reason = f"{error} is not in the map" if isinstance(error, KeyError) else error
        code = EXIT_SHARD if isinstance(error, ShardError) else EXIT_PARAMETERS
        raise FailureError(code, f"no parameters for {text!r}: {reason}") from None
    return dict(found, **job.values)


def _from_shard(job: PseudoInput, shards: "tuple[str, int]", fetcher: Fetcher) -> "dict[str, str]":
    label, count = shards
    if not label:  # jobs without parameters of their own
        return {}
    if safe_label(unquote(job.label)) != label:
        raise ValueError(f"the task's parameters are those of label {label!r}")
    name = f"{SHARD_FOLDER}/{label}/{job.order_id // count:06d}.json"
    data = fetcher.read(name)
    try:
        return find_in_shard(data.decode("utf-8"), job.order_id)
    except ValueError as error:
        raise ShardError(f"shard {name!r}: {error}") from None


def _from_map(text: str, arguments: Arguments, fetcher: Fetcher) -> "dict[str, str]":
    """Read the pseudo-input that a map gives, which another map may give."""
    job = parse_input(text)
    if job.kind == "named":
        name = text.partition("+")[0]
        if NAME_MAP not in dict(arguments.files) and name.partition(":")[2].isdigit():
            return job.values  # the label of a job without parameters happens to be PH
        plain = _read_map(NAME_MAP, "qnode_map.json", arguments, fetcher)[name]
        job = parse_input(_check_map(NAME_MAP, plain, str))
    if not _are_texts(list(job.values.values())):
        raise ValueError("a value holds what no command line can")
    return job.values


def _check_map(key: str, value: "Any", kind: type) -> "Any":
    if not isinstance(value, kind):
        raise ShardError(f"map {key!r}: {str(value)[:80]!r} where a {kind.__name__} is expected")
    return value


def _read_map(key: str, usual: str, arguments: Arguments, fetcher: Fetcher) -> "Any":
    name = fetcher.settle(dict(arguments.files).get(key, usual))
    if not name:
        raise ValueError(f"the job has no file {key!r}")
    try:
        data = fetcher.read(name) if key in arguments.direct else b"".join(_read_chunks(_bytes(name)))
    except OSError as error:
        raise ValueError(f"map {name!r}: {error.strerror or error}") from None
    try:
        return _check_map(key, _parse_json(data), dict)
    except ValueError as error:
        raise ShardError(f"map {name!r}: {error}") from None


def make_command(
    arguments: Arguments,
    values: "Mapping[str, str]",
    names: "Mapping[str, str]",
    attempt: "Callable[[], int]",
    environment: "Mapping[bytes, bytes]",
) -> str:
    """Fill the placeholders of the task's command line."""

    def find(kind: str, name: str) -> str:
        if kind == "FILE" and name in names:
            return names[name]
        if kind == "ENV":
            return _text(environment.get(_bytes(name), b""))
        if kind == "WMS" and name == ATTEMPT_NUMBER:
            return str(attempt())
        raise FailureError(
            EXIT_PLACEHOLDER, f"no value for <{kind}:{name}> of the command line: {reasons[kind]}"
        )

    reasons = {
        "FILE": f"the job's files are {', '.join(sorted(names)) or 'none'}",
        "WMS": f"only {ATTEMPT_NUMBER} is known",
    }
    return insert_quoted(insert_values(arguments.command, values), find)


# -----------------------------------------------------------------------------------------------------------
# What attempts of a job know of each other, and of a cancelled run: small files in the staging area
# -----------------------------------------------------------------------------------------------------------

ATTEMPTS_FOLDER = ".attempts"
"""Folder of the staging area with a folder for each job whose attempts left notes."""

CANCELLED = ".cancelled"
"""File of the staging area that says that the run was cancelled: empty, or
with a line for the name of each run that was."""

ATTEMPT_NUMBER = "attemptNum"
"""Name of the attempt's number in a command line, ``<WMS:attemptNum>``."""


class Attempts:
    """What earlier attempts of a job left for later ones.

    PanDA's pilot tells a job the id of its PanDA job, ``PANDAID``, which is
    another, and a larger one, in each attempt; it does not tell which attempt
    it is.  So an attempt that wants to know leaves a note that says its id,
    and counts those with smaller ids.  One that ends with a code of
    ``retryUnlessExit`` leaves a note that says its id and that code.

    A note is an empty file whose name is all that it says: it is there or
    not, however many workers write at once.

    Parameters
    ----------
    arguments : `Arguments`
        The runner's arguments.
    environment : `~collections.abc.Mapping` [`bytes`, `bytes`]
        What the pilot gives.
    """

    def __init__(self, arguments: Arguments, environment: "Mapping[bytes, bytes]") -> None:
        self._area = open_area(arguments.area, timeout=arguments["timeout"])
        self._patience: float = arguments["patience"]
        self._codes: "Sequence[int]" = arguments["retry-unless-exit"]
        panda_id = environment.get(b"PANDAID", b"")
        self._id = int(panda_id) if panda_id.isdigit() else 0
        # What another task, hence another run, left does not count.
        owner = _text(environment.get(b"PanDA_TaskID", b"")) + ":" + arguments["run"]
        self._folder = "/".join((ATTEMPTS_FOLDER, _short_name(owner), _short_name(arguments.input)))
        self._number: "int | None" = arguments["attempt"]
        told = environment.get(b"PanDA_AttemptNr", b"")  # from 1; pilots of some experiments set it
        if self._number is None and told.isdigit():
            self._number = max(0, int(told) - 1)

    def number(self) -> int:
        """Number of this attempt, from 0 as BPS counts."""
        if self._number is None:
            self._number = 0
            try:
                if not self._id:
                    raise FailureError(0, "the environment has no PANDAID")
                with _Limit(self._patience):
                    self._area.add_note(self._folder, str(self._id))
                    self._number = len({panda_id for panda_id, _ in self._earlier()})
            except (OSError, FailureError) as error:
                reason = f"attempts of this job cannot be counted: {_reason(error)}"
                say(f"<WMS:{ATTEMPT_NUMBER}> is 0, as {reason}")
        return self._number

    @property
    def shown(self) -> str:
        """Which attempt this is, as far as it is known."""
        number = "" if self._number is None else f" attempt {self._number},"
        return number + (f" PanDA job {self._id}," if self._id else "")

    def _earlier(self) -> "list[tuple[int, int | None]]":
        """Ids of attempts before this one, with the exit codes that they
        left.
        """
        earlier: "list[tuple[int, int | None]]" = []
        for name in self._area.notes(self._folder):
            panda_id, _, code = name.partition("=")
            if panda_id.isdecimal() and (code.isdecimal() or panda_id == name) and int(panda_id) < self._id:
                earlier.append((int(panda_id), int(code) if code else None))
        return earlier

    def find_code(self) -> "int | None":
        """Exit code for which this attempt need not run, if there is one."""
        if not self._codes or not self._id:
            return None
        try:
            with _Limit(self._patience):
                return next((code for _, code in self._earlier() if code in self._codes), None)
        except (OSError, FailureError):  # a server that keeps no notes, or fails: note() tells
            return None

    def note(self, code: int) -> None:
        """Remember how this attempt ended, if that ends the job."""
        if code not in self._codes:
            return
        try:
            if not self._id:
                raise FailureError(0, "the environment has no PANDAID")
            with _Limit(self._patience):
                self._area.add_note(self._folder, f"{self._id}={code}")
        except (OSError, FailureError) as error:
            say(
                f"this job may be tried again after exit code {code}, as the area keeps no note:"
                f" {_reason(error)}"
            )


def _short_name(text: str) -> str:
    """Write a text such that it is a name for a file, however long it is."""
    name = safe_label(text)
    if len(name) > 150:
        import hashlib

        name = hashlib.sha256(_bytes(text)).hexdigest()
    return name


def _reason(error: "OSError | FailureError") -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def is_cancelled(arguments: Arguments) -> bool:
    """Whether a final job must not run, as its run was cancelled."""
    if arguments["final"] != "yes":
        return False
    area = open_area(arguments.area, timeout=arguments["timeout"])
    try:
        with _Limit(arguments["patience"]):
            text = b"".join(area.chunks(CANCELLED, _LARGEST_NOTE))
    except OSError:
        return False
    runs = _text(text).split()
    return not runs or not arguments["run"] or arguments["run"] in runs


# -----------------------------------------------------------------------------------------------------------
# The payload's processes
# -----------------------------------------------------------------------------------------------------------

TOKENS = (
    "BEARER_TOKEN",
    "IDDS_OIDC_TOKEN",
    "OIDC_AUTH_ID_TOKEN",
    "OIDC_AUTH_TOKEN",
    "OIDC_REFRESH_TOKEN",
    "PANDA_AUTH_ID_TOKEN",
    "PANDA_AUTH_TOKEN",
)
"""Variables that are not passed on to the payload (option keep-tokens)."""

_ENDING = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGXCPU")
_NOTIFYING = ("SIGUSR1", "SIGUSR2")
_PYTHON_IGNORES = ("SIGPIPE", "SIGXFSZ")


class Signals:
    """What signals do to the runner: nothing is lost, and nobody waits for
    ever.

    Before the payload there is, they end the runner.  Then they are passed
    on to the payload's process group; after one that asks it to end, what is
    left of the group is killed when the time of grace is over.

    Parameters
    ----------
    grace : `float`
        Seconds between asking and killing.
    """

    def __init__(self, grace: float) -> None:
        import signal

        self._signal = signal
        self._grace = grace
        self.group = 0
        self.asked = 0
        self.killed = False
        self.handled = [getattr(signal, name) for name in _ENDING + _NOTIFYING]
        self._ending = self.handled[: len(_ENDING)]
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup
            self.handled.remove(signal.SIGHUP)
        for number in self.handled:
            signal.signal(number, self._handle)
        signal.signal(signal.SIGALRM, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        signal = self._signal
        if number == signal.SIGALRM:
            self.killed = True
            self._send(signal.SIGKILL)
        elif self.group:
            self._send(number)
            if number in self._ending and not self.asked:
                self.asked = number
                signal.setitimer(signal.ITIMER_REAL, max(self._grace, 0.001))
        elif number in self._ending:
            raise StoppedError(number)

    def _send(self, number: int) -> bool:
        """Signal the payload's group; whether there still is one."""
        try:
            os.killpg(self.group, number)
        except OSError:
            return False
        return True

    def start(self, argv: "list[bytes]", environment: "Mapping[bytes, bytes]", *, group: bool) -> int:
        """Start a program, in a process group of its own or in ours.

        Its standard input is empty; in batch nobody types, and a payload
        that asks must fail and not wait.  A signal that arrives now is kept
        until it can be passed on.
        """
        signal = self._signal
        before = signal.pthread_sigmask(signal.SIG_BLOCK, self.handled)
        try:
            pid = os.fork()
            if not pid:
                self._become(argv, environment, before, group)
            if group:
                _join_group(pid, pid)
                self.group = pid
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pid

    def _become(
        self, argv: "list[bytes]", environment: "Mapping[bytes, bytes]", mask: "Any", group: bool
    ) -> None:
        """Turn the process that was just forked into a program."""
        signal = self._signal
        try:
            if group:
                _join_group(0, 0)
            for name in _PYTHON_IGNORES:
                signal.signal(getattr(signal, name), signal.SIG_DFL)
            for number in self.handled:
                signal.signal(number, signal.SIG_DFL)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.execve(argv[0], argv, environment)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            say(f"cannot start {_text(argv[0])}: {reason} ({len(argv[-1])} bytes of command)")
        finally:
            os._exit(EXIT_START)

    def guard(self) -> int:
        """Start a process that kills the payload if the runner disappears.

        It reads a pipe whose other end only the runner has, so it notices
        even a SIGKILL.  It is a member of the payload's group, so that it
        cannot hit anybody else, and ignores what can be ignored.  (Linux'
        PR_SET_PDEATHSIG would reach the shell only, and cost an import.)
        """
        reading, self._writing = os.pipe()
        pid = os.fork()
        if pid:
            os.close(reading)
            return pid
        try:
            os.close(self._writing)
            for number in self.handled:
                self._signal.signal(number, self._signal.SIG_IGN)
            os.setpgid(0, self.group)
            for descriptor in range(3):
                os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
            os.read(reading, 1)
            os.killpg(0, self._signal.SIGKILL)
        finally:
            os._exit(0)

    def finish(self, guard: int) -> None:
        """Let nothing outlive a payload that was asked to end.

        A shell's background processes ignore SIGINT and SIGQUIT, so what is
        left gets a SIGTERM.
        """
        self._signal.setitimer(self._signal.ITIMER_REAL, 0)
        self._kill(guard)
        if not self.asked or not self._send(self._signal.SIGTERM):
            return
        import time

        until = time.monotonic() + self._grace
        while self._send(0) and time.monotonic() < until:
            time.sleep(0.02)
        self._send(self._signal.SIGKILL)

    def _kill(self, pid: int) -> None:
        try:
            os.kill(pid, self._signal.SIGKILL)
        except OSError:
            pass
        os.waitpid(pid, 0)

    def end(self, pid: int, seconds: float) -> None:
        """Wait for a process of ours, but not for ever: it is asked by
        SIGUSR1 half-way, and killed at the end.
        """
        import time

        for _ in range(2):
            until = time.monotonic() + seconds / 2
            while time.monotonic() < until:
                if os.waitpid(pid, os.WNOHANG)[0]:
                    return
                time.sleep(0.02)
            os.kill(pid, self._signal.SIGUSR1)
        self._kill(pid)


def _join_group(pid: int, group: int) -> None:
    """Parent and child both do this, so it is done whoever runs first."""
    try:
        os.setpgid(pid, group)
    except OSError:  # the other one was first, and it has called exec since
        pass


MONITOR_OUTPUT = "memory_monitor_output.txt"
MONITOR_SUMMARY = "memory_monitor_summary.json"
"""What PanDA's pilot reads in the work directory."""


def find_monitor(environment: "Mapping[bytes, bytes]") -> bytes:
    """Find prmon; empty if there is none, or one is already at work.

    A site's own command line may start one for the runner, or for what
    started the runner.
    """
    try:
        if os.stat(MONITOR_OUTPUT).st_size:
            return b""
    except OSError:
        pass
    for folder in environment.get(b"PATH", b"").split(b":"):
        path = os.path.join(folder, b"prmon")
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return b"" if _is_monitored() else path
    return b""


def _is_monitored() -> bool:
    """Whether a prmon watches this process or the one that started it."""
    watched = {b"%d" % os.getpid(), b"%d" % os.getppid()}
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if not entry.isdigit():
            continue
        try:
            argv = b"".join(_read_chunks(f"/proc/{entry}/cmdline")).split(b"\0")
        except OSError:
            continue
        if any(os.path.basename(word) == b"prmon" for word in argv[:2]) and watched.intersection(argv):
            return True
    return False


LONGEST_ARGUMENT = 100000
"""Bytes of a command that a shell gets as an argument; Linux takes 131071 (execve(2), MAX_ARG_STRLEN)."""

COMMAND_FILE = "payload_command.sh"
"""File in the work directory that holds a longer one."""


def _shell_arguments(command: bytes) -> "list[bytes]":
    """Arguments that make a shell run a command, however long it is."""
    if len(command) <= LONGEST_ARGUMENT:
        return [b"-c", command]
    try:
        with open(COMMAND_FILE, "wb") as stream:
            stream.write(command + b"\n")
    except OSError as error:
        raise FailureError(
            EXIT_WORK_DIRECTORY, f"cannot write the command to {COMMAND_FILE}: {error.strerror}"
        ) from None
    return [COMMAND_FILE.encode()]


def run_payload(
    command: str, environment: "Mapping[bytes, bytes]", signals: Signals, *, monitor: bool = False
) -> int:
    """Run a command line and wait for it.

    Parameters
    ----------
    command : `str`
        The command line.
    environment : `~collections.abc.Mapping` [`bytes`, `bytes`]
        Its whole environment.
    signals : `Signals`
        What passes signals on to it.
    monitor : `bool`, optional
        Whether prmon is to watch the payload, if it is there.

    Returns
    -------
    code : `int`
        Exit code of the command, or 128 and the number of the signal that
        ended it.
    """
    shell = b"/bin/bash" if os.access("/bin/bash", os.X_OK) else b"/bin/sh"
    payload = signals.start([shell, *_shell_arguments(_bytes(command))], environment, group=True)
    guard = signals.guard()
    watcher = 0
    prmon = find_monitor(environment) if monitor else b""
    if prmon:
        argv = [prmon, b"-i", b"5", b"-f", MONITOR_OUTPUT.encode(), b"-j", MONITOR_SUMMARY.encode()]
        watcher = signals.start(argv + [b"-p", b"%d" % payload], environment, group=False)
    status = os.waitpid(payload, 0)[1]
    killed = signals.killed
    signals.finish(guard)
    if watcher:
        signals.end(watcher, 10.0)
    if killed:  # by us: what matters is who asked, and PanDA takes 137 for a lack of memory
        return 128 + signals.asked
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


# -----------------------------------------------------------------------------------------------------------
# The program
# -----------------------------------------------------------------------------------------------------------


LONGEST_SHOWN = 4000
"""Characters of a command that are shown."""


def say(text: str) -> None:
    """Write one line to standard error, which the payload shares."""
    line = "runner: " + text.replace("\n", "\\n") + "\n"
    try:
        os.write(2, line.encode("utf-8", "replace"))
    except OSError:
        pass


def run(arguments: Arguments, environment: "Mapping[bytes, bytes]", signals: Signals) -> int:
    """Do what the arguments say: fetch, substitute, run.

    Returns
    -------
    code : `int`
        Exit code of the payload, or one of `EXIT_CODES`.
    """
    attempts = Attempts(arguments, environment)
    if f"<WMS:{ATTEMPT_NUMBER}>" in arguments.command:  # also counts an attempt that fails before its payload
        attempts.number()
    code = attempts.find_code()
    if code is not None:
        say(f"an earlier attempt of {arguments.input} ended with exit code {code}, which is not retried")
        return code
    if is_cancelled(arguments):
        say("the run was cancelled, so its final job does not run (option --final=always would)")
        return EXIT_CANCELLED
    fetcher = Fetcher(arguments)
    names = deliver(arguments, fetcher)
    values = find_values(arguments, fetcher)
    command = make_command(arguments, values, names, attempts.number, environment)
    shown = insert_values(arguments.command, values)
    if len(shown) > LONGEST_SHOWN:
        shown = f"{shown[:LONGEST_SHOWN]}... ({len(shown)} characters)"
    say(
        f"{VERSION}, Python {sys.version.split()[0]}, {arguments.input[:200]},{attempts.shown}"
        f" {fetcher.shown}, command (variables not shown): {shown}"
    )
    passed_on = dict(environment)
    if arguments["keep-tokens"] == "no":
        for token in TOKENS:
            passed_on.pop(token.encode(), None)
    code = run_payload(command, passed_on, signals, monitor=arguments["prmon"] == "yes")
    if not signals.asked:  # else the code is not the payload's own: it was to end, for using much memory say
        attempts.note(code)
    return return_outputs(arguments, code)


def main(argv: "Sequence[str]", environment: "Mapping[bytes, bytes]") -> int:
    """Run the payload of a job and give its exit code back.

    Parameters
    ----------
    argv : `~collections.abc.Sequence` [`str`]
        Arguments without the name of the program.
    environment : `~collections.abc.Mapping` [`bytes`, `bytes`]
        The environment.
    """
    try:
        try:
            arguments = Arguments([_text(os.fsencode(argument)) for argument in argv])
        except ValueError as error:
            raise FailureError(EXIT_USAGE, str(error)) from None
        code = run(arguments, environment, Signals(arguments["grace"]))
        success: int = arguments["success"]
        return {0: success, success: min(1, success)}.get(code, code)
    except (FailureError, StoppedError) as error:
        say(f"{error} (exit code {error.code})")
        return error.code
    except Exception as error:
        frames = error.__traceback__
        while frames and frames.tb_next:
            frames = frames.tb_next
        say(
            f"mistake in the runner, line {frames.tb_lineno if frames else 0}:"
            f" {type(error).__name__}: {error} (exit code {EXIT_INTERNAL})"
        )
        return EXIT_INTERNAL


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environb))
