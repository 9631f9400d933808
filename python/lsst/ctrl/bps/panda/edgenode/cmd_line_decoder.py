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
definition.
"""

__all__ = [
    "NO_DIRECT",
    "NO_FILES",
    "PseudoInput",
    "decode_area",
    "decode_command",
    "decode_direct",
    "decode_files",
    "encode_area",
    "encode_command",
    "encode_direct",
    "encode_files",
    "is_archive",
    "lookup",
    "parse_input",
    "quote",
    "render_named_input",
    "render_order_id_input",
    "render_plain_input",
    "render_shard",
    "render_short_input",
    "safe_label",
    "shard_name",
    "unquote",
]

import binascii

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would cost each job several milliseconds
    from collections.abc import Iterable, Mapping, Sequence

# -----------------------------------------------------------------------------------------------------------
# Grammar: pure functions, also imported by what plans a run
# -----------------------------------------------------------------------------------------------------------

NO_FILES = "-"
"""FILES of a job without files."""

NO_DIRECT = "cmdlineplaceholder"
"""DIRECT (and, from older plugins, FILES) of a job without such files."""

SHARD_FOLDER = "job_parameters"
"""Folder of the parameter shards in the staging area."""

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
        parts = (name[:-1] if name.endswith("/") else name).split("/")
        if "\0" in name or not all(parts) or "." in parts or ".." in parts:
            raise ValueError(
                f"name {name!r} of file {key!r} is not a relative path without '.', '..' and empty parts"
            )


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

    lines = []
    for number, row in enumerate(rows):
        if len(row) != len(names):
            raise ValueError(
                f"order id {first_order_id + number}: {len(row)} values for {len(names)} names {list(names)}"
            )
        lines.append(json.dumps(list(row), separators=(",", ":")))
    head = json.dumps({"format": 1, "first": first_order_id, "names": list(names)})
    return head[:-1] + ', "rows": [\n' + ",\n".join(lines) + "\n]}\n"


def lookup(text: str, order_id: int) -> "dict[str, str]":
    """Find the parameters of a job in what `render_shard` wrote.

    Raises
    ------
    LookupError
        If the shard has no such job.
    ValueError
        If the text is not a shard.
    """
    import json

    shard = json.loads(text)
    if not isinstance(shard, dict) or shard.get("format") != 1:
        raise ValueError(f"not parameters of jobs in a format known here: {text[:80]!r}")
    first, rows = shard["first"], shard["rows"]
    if not 0 <= order_id - first < len(rows):
        raise LookupError(f"order id {order_id} is not among {first} to {first + len(rows) - 1}")
    return dict(zip(shard["names"], rows[order_id - first]))  # noqa: B905, not before 3.10


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
