"""What a run wants staged, file by file, and the manifest of a staging area, which is written last."""

from __future__ import annotations

__all__ = [
    "CANCELLED",
    "Digest",
    "MANIFEST_NAME",
    "OWNER_NAME",
    "Manifest",
    "PARTIAL_NAME",
    "SourceFile",
    "TEMPORARY_FOLDER",
    "compare_checksums",
    "digest_file",
    "expand_files",
    "fetch_source",
    "find_name_problems",
    "open_regular",
    "parse_manifest",
    "render_manifest",
]

import base64
import hashlib
import json
import os
import posixpath
import shutil
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from ..edgenode.cmd_line_decoder import CANCELLED, LARGEST_MANIFEST, MANIFEST, check_name
from ..files import make_temporary_name
from ..plan.model import StagedFile
from .transfers import VerificationError, describe_cause

MANIFEST_NAME = MANIFEST
"""Name of the manifest in a staging area; written when all else is there."""

OWNER_NAME = ".run.json"
"""Name of the file that says whose files are in a staging area: the submit directory of a run.  It is
written before the first of them."""

PARTIAL_NAME = ".staging.json"
"""Name of the record of what is verified so far in an area whose staging is
under way or has failed; same content as a manifest."""

TEMPORARY_FOLDER = ".staging"
"""Folder of a staging area in which files lie until they are complete."""

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
    """Name relative to the area -> what the file holds.  Directories are listed file by file."""


def open_regular(path: str) -> BinaryIO:
    """Open a local file for reading; nothing waits for the writer of a FIFO, or for the end of a device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is not a file")
    return open(descriptor, "rb")


def digest_file(path: str) -> Digest:
    """Compute the size and the checksum of a local file."""
    size, checksum = 0, 1
    with open_regular(path) as stream:
        while block := stream.read(_BLOCK):
            size += len(block)
            checksum = zlib.adler32(block, checksum)
    return Digest(size, f"{checksum:08x}")


def compare_checksums(
    checksums: Mapping[str, Any], digest: Digest, path: str, *, single_part: bool = True
) -> bool | None:
    """Compare what a store says with a local file; `None` if there is no checksum to compare.

    ``checksums`` are as `lsst.resources.ResourceInfo` has them: ``adler32`` in hexadecimal digits, others in
    base64.  The file is read again if another algorithm than Adler-32 is needed.  If it was not sent in a
    single part, what S3 gives is a checksum of checksums and tells nothing.
    """
    given = {algorithm.lower(): str(value) for algorithm, value in checksums.items() if value}
    if value := given.get("adler32"):
        return value.lower().rjust(8, "0") == digest.adler32
    for algorithm, begin in _ALGORITHMS.items():
        value = given.get(algorithm)
        # "-N" marks a checksum of N parts' checksums.
        if value and single_part and "-" not in value:
            with open(path, "rb") as stream:
                found = hashlib.file_digest(stream, begin).digest()
            return base64.b64encode(found).decode() == value
    return None


class _Crc32:
    """CRC-32 with the methods of those of `hashlib`."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


_ALGORITHMS: Mapping[str, Callable[[], Any]] = {
    "crc32": _Crc32,
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "sha256": hashlib.sha256,
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
}


def render_manifest(manifest: Manifest) -> str:
    """Render a manifest as JSON, a line a file sorted by name: the same text for the same content."""
    # A line a file by hand: json's own indentation makes four of them.
    lines = [
        f"  {json.dumps(name)}: {{" + f'"size": {digest.size}, "adler32": "{digest.adler32}"}}'
        for name, digest in sorted(manifest.files.items())
    ]
    body = ",\n".join(lines)
    return f'{{"format": {_FORMAT}, "files": {{\n{body}\n}}}}\n'


def parse_manifest(data: bytes) -> Manifest:
    """Parse a manifest; `ValueError` is raised if it is none, or one of a later format."""
    if len(data) > LARGEST_MANIFEST:
        raise ValueError(f"a manifest of {len(data)} bytes, and there may be {LARGEST_MANIFEST}")
    try:
        value: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}): {data[:100]!r}") from error
    if not isinstance(value, dict) or value.get("format") != _FORMAT:
        raise ValueError(f"not a manifest of format {_FORMAT}: {data[:100]!r}")
    files = value.get("files")
    if not isinstance(files, dict):
        raise ValueError(f"a manifest without files: {data[:100]!r}")
    return Manifest({check_name(name): _parse_digest(name, entry) for name, entry in files.items()})


def _parse_digest(name: str, entry: Any) -> Digest:
    if isinstance(entry, dict):
        size, checksum = entry.get("size"), entry.get("adler32")
        if isinstance(size, int) and size >= 0 and isinstance(checksum, str):
            return Digest(size, checksum)
    raise ValueError(f"the manifest's entry of {name!r} has no size and adler32: {entry!r}")


_RESERVED = frozenset({MANIFEST_NAME, OWNER_NAME, PARTIAL_NAME, TEMPORARY_FOLDER, CANCELLED})


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file to stage."""

    path: str
    """Local path, or a URI if it has to be fetched first."""

    name: str
    """Relative path in the staging area."""

    size: int = 0
    """Size, bytes, when it was looked at."""

    executable: bool = False

    is_remote: bool = False

    is_folder: bool = False
    """Whether it is an empty directory, of which only the name is kept."""


def find_name_problems(files: Sequence[StagedFile]) -> tuple[str, ...]:
    """Check the names that files are to have in the staging area; return a sentence for each problem."""
    problems = [
        f"{file.source}: staged name {file.name!r} {problem}"
        for file in files
        if (problem := _name_problem(file.name, is_directory=file.is_directory))
    ]
    names = [file.name.rstrip("/") for file in files]
    for name, count in Counter(names).items():
        if count > 1:
            sources = ", ".join(file.source for file in files if file.name.rstrip("/") == name)
            problems.append(f"staged name {name!r} is used {count} times, for {sources}; it must be unique")
    return tuple(problems + _nested_problems(names))


def _nested_problems(names: Sequence[str]) -> list[str]:
    """Find names that lie below other names, which would mix two inputs."""
    known = frozenset(names)
    problems = []
    for name in names:
        above = posixpath.dirname(name)
        while above and above != "/":
            if above in known:
                problems.append(f"staged name {name!r} lies inside another staged name, {above!r}")
                break
            above = posixpath.dirname(above)
    return problems


def _name_problem(name: str, *, is_directory: bool = False) -> str:
    if not name:
        return "is empty"
    if name.startswith("/") or "://" in name:
        return "is absolute; it must be relative to the staging area"
    if name.endswith("/") and not is_directory:
        return "ends in '/' but is not a directory"
    try:
        parts = check_name(name).removesuffix("/").split("/")
    except ValueError as error:
        return f"cannot be used: {error}"
    if parts[0] in _RESERVED or parts[0].startswith(f"{TEMPORARY_FOLDER}-"):
        return f"is reserved ({parts[0]} belongs to the staging area itself)"
    if long := next((part for part in parts if len(os.fsencode(part)) > 255), ""):
        return f"holds a part of more than 255 bytes ({long[:40]!r}...)"
    return ""


def expand_files(files: Iterable[StagedFile]) -> tuple[list[SourceFile], list[tuple[str, str]]]:
    """Expand what a run wants staged, with checked names, into single files.

    They come in the order given, trees sorted; then what cannot be staged, and why.
    """
    sources: list[SourceFile] = []
    failures: list[tuple[str, str]] = []
    for file in files:
        try:
            sources.extend(_expand(file))
        except Exception as error:
            # The libraries of remote stores have exceptions of their own.
            failures.append((file.name, f"source {file.source}: {_plain(error)}"))
    return sources, failures


def _plain(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) if isinstance(error, OSError | ValueError) else describe_cause(error)


def _local_path(source: str) -> str | None:
    """Return the path of a local source, `None` if it is elsewhere."""
    parts = urlsplit(source)
    if source.startswith("file:"):
        return unquote(parts.path)
    return None if "://" in source else source


def _expand(file: StagedFile) -> Iterator[SourceFile]:
    path = _local_path(file.source)
    if path is None:
        yield from _expand_remote(file)
        return
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode) != file.is_directory:
        raise ValueError("is a directory" if stat.S_ISDIR(mode) else "is not a directory")
    if file.is_directory:
        yield from _expand_tree(path, file.name.rstrip("/"))
    else:
        yield _local_file(path, file.name, executable=file.executable)


def _local_file(path: str, name: str, *, executable: bool = False) -> SourceFile:
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} is neither a file nor a directory")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path} cannot be read (permission denied)")
    if problem := _name_problem(name):
        raise ValueError(f"{path}: staged name {name!r} {problem}")
    return SourceFile(path, name, found.st_size, executable=executable or bool(found.st_mode & stat.S_IXUSR))


def _expand_tree(top: str, name: str) -> Iterator[SourceFile]:
    for folder, folders, files in os.walk(top, followlinks=True, onerror=_raise):
        folders.sort()
        _refuse_loops(folder, folders)
        relative = os.path.relpath(folder, top)
        prefix = name if relative == "." else f"{name}/{relative}"
        if not folders and not files:
            yield SourceFile(folder, prefix, is_folder=True)
        for base in sorted(files):
            yield _local_file(os.path.join(folder, base), f"{prefix}/{base}")


def _raise(error: OSError) -> None:
    raise error


def _refuse_loops(folder: str, folders: Sequence[str]) -> None:
    """Refuse symbolic links that lead to a directory above themselves."""
    here = os.path.realpath(folder)
    for base in folders:
        path = os.path.join(folder, base)
        target = os.path.realpath(path)
        if os.path.islink(path) and (here + "/").startswith(target.rstrip("/") + "/"):
            raise ValueError(f"symbolic link {path} leads back to {target}, a directory without end")


def _expand_remote(file: StagedFile) -> Iterator[SourceFile]:
    from lsst.resources import ResourcePath

    if not file.is_directory:
        size = ResourcePath(file.source, forceDirectory=False).size()
        yield SourceFile(file.source, file.name, size, executable=file.executable, is_remote=True)
        return
    top = ResourcePath(file.source, forceDirectory=True)
    # S3 has objects that stand for directories, with a name that ends in "/".
    found = [uri for uri in ResourcePath.findFileResources([top]) if not uri.geturl().endswith("/")]
    if not found:
        raise FileNotFoundError("no files found below it")
    for uri in sorted(found):
        name = f"{file.name.rstrip('/')}/{uri.relative_to(top) or '..'}"
        if problem := _name_problem(name):
            raise ValueError(f"{uri}: staged name {name!r} {problem}")
        yield SourceFile(uri.geturl(), name, uri.size(), is_remote=True)


def fetch_source(source: SourceFile, folder: str) -> SourceFile:
    """Fetch a remote source into a local folder, and return it with its local path.

    `OSError` is raised if it cannot be fetched, or not whole.
    """
    from lsst.resources import ResourcePath

    uri = ResourcePath(source.path, forceDirectory=False)
    path = os.path.join(folder, make_temporary_name())
    with uri.as_local() as local:
        shutil.copyfile(local.ospath, path)
    if (found := os.stat(path).st_size) != source.size:
        raise VerificationError(f"got {found} of the {source.size} bytes of {source.path}")
    return replace(source, path=path, is_remote=False)
