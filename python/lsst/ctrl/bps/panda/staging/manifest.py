"""The manifest of a staging area: which files it holds, how large they are
and what their checksums are.  It is written last, so an area without one is
half staged; the runner on the worker verifies what it fetches with it.
"""

from __future__ import annotations

__all__ = [
    "CANCELLED_NAME",
    "MANIFEST_NAME",
    "PARTIAL_NAME",
    "TEMPORARY_FOLDER",
    "Digest",
    "Manifest",
    "digest_file",
    "parse_manifest",
    "render_manifest",
]

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MANIFEST_NAME = ".staged.json"
"""Name of the manifest in a staging area; written when all else is there."""

PARTIAL_NAME = ".staging.json"
"""Name of the record of what is verified so far in an area whose staging is
under way or has failed; same content as a manifest."""

TEMPORARY_FOLDER = ".staging"
"""Folder of a staging area in which files lie until they are complete."""

CANCELLED_NAME = ".cancelled"
"""Name of the marker that a cancelled run leaves in its staging area."""

_FORMAT = 1
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Digest:
    """What identifies the content of a file."""

    size: int
    """Size, bytes."""

    adler32: str
    """Adler-32 checksum (RFC 1950), eight lower-case hexadecimal digits, the
    form in which PanDA and Rucio write it."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of a staging area."""

    files: Mapping[str, Digest] = field(default_factory=dict)
    """Name relative to the area -> what the file holds.  Directories are
    listed file by file."""


def digest_file(path: str) -> Digest:
    """Measure a local file.

    Parameters
    ----------
    path : `str`
        Path of the file.

    Returns
    -------
    digest : `Digest`
        Size in bytes and checksum.

    Raises
    ------
    OSError
        Raised if the file cannot be read.
    """
    size, checksum = 0, 1
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            size += len(block)
            checksum = zlib.adler32(block, checksum)
    return Digest(size, f"{checksum:08x}")


def render_manifest(manifest: Manifest) -> str:
    """Write a manifest as JSON, the same text for the same content.

    Parameters
    ----------
    manifest : `Manifest`
        What to write.

    Returns
    -------
    text : `str`
        One line a file, sorted by name.
    """
    # A line a file by hand: json's own indentation makes four of them.
    lines = [
        f"  {json.dumps(name)}: {{" + f'"size": {digest.size}, "adler32": "{digest.adler32}"}}'
        for name, digest in sorted(manifest.files.items())
    ]
    body = ",\n".join(lines)
    return f'{{"format": {_FORMAT}, "files": {{\n{body}\n}}}}\n'


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest.

    Parameters
    ----------
    data : `bytes`
        Content of the file.

    Returns
    -------
    manifest : `Manifest`
        What it says.

    Raises
    ------
    ValueError
        Raised if it is not a manifest, or one of a later format.
    """
    try:
        value: Any = json.loads(data)
    except ValueError as error:
        raise ValueError(f"not JSON ({error}): {data[:100]!r}") from error
    if not isinstance(value, dict) or value.get("format") != _FORMAT:
        raise ValueError(f"not a manifest of format {_FORMAT}: {data[:100]!r}")
    files = value.get("files")
    if not isinstance(files, dict):
        raise ValueError(f"a manifest without files: {data[:100]!r}")
    return Manifest({name: _parse_digest(name, entry) for name, entry in files.items()})


def _parse_digest(name: str, entry: Any) -> Digest:
    if isinstance(entry, dict):
        size, checksum = entry.get("size"), entry.get("adler32")
        if isinstance(size, int) and isinstance(checksum, str):
            return Digest(size, checksum)
    raise ValueError(f"the manifest's entry of {name!r} has no size and adler32: {entry!r}")
