"""Logs of jobs from wherever they are: Google Cloud Logging, the job's log area, or the files of the
embedded PanDA; lines of a log, and which of them are wanted.

The Science Pipelines write ``payload-log.json``, one JSON object a line; other
files hold plain lines, whose level is read from the word at its usual place.

Credentials are sent to the PanDA that is configured only (the embedded one wants
them): log areas are read by anybody or not at all, and they may lie on any host.
"""

from __future__ import annotations

__all__ = [
    "LEVELS",
    "JobChoice",
    "LineFilter",
    "LogArea",
    "LogEnd",
    "LogLine",
    "LogReader",
    "LogTransport",
    "TailReader",
    "choose_jobs",
    "find_exception",
    "find_first_attempts",
    "find_log_urls",
    "fold_lines",
    "from_record",
    "group_lines",
    "parse_json_line",
    "parse_line",
    "read_last_lines",
]

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from ..errors import ConnectionFailedError, ReplyError, SettingsError, TransportError
from ..rest.credentials import Anonymous, Credentials, checks_certificates
from ..rest.faults import Fault
from ..rest.panda_api import server_root
from ..rest.retries import LOG_RETRY, Timeouts, WaitingBudget
from ..rest.transport import Reply, Transport
from ..runs.client import Connection
from ..runs.jobs import JobQuery
from ..staging.transfers import describe_cause
from ..status.evidence import RunEvidence
from ..status.job_errors import is_killed
from ..status.records import JobRecord, render_count
from ..status.replies import parse_jobs, render_short, text_of

LEVELS = {"TRACE": 5, "DEBUG": 10, "VERBOSE": 15, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
"""Names of levels and their numbers."""

_ALIASES = {"WARN": "WARNING", "FATAL": "CRITICAL"}
_WORD = re.compile(r"\b(TRACE|DEBUG|VERBOSE|INFO|WARN(?:ING)?|ERROR|CRITICAL|FATAL)\b")
_TRACEBACK = re.compile(r"Traceback \(most recent call last\)|^\w+(\.\w+)*(Error|Exception)\b")
_LEVEL_WITHIN = 120


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a log."""

    message: str
    level: str = ""
    """A name of `LEVELS`; empty if the line has none."""

    time: str = ""
    """As the log has it."""

    logger: str = ""
    panda_id: int = 0
    """PanDA job that wrote it, 0 if not known."""

    file: str = ""
    """File it is from, or ``cloud``."""


@dataclass(frozen=True, slots=True)
class LineFilter:
    """Which lines are wanted."""

    level: str = ""
    """Least level, a name of `LEVELS`; lines without a level are then left
    out, unless they belong to a traceback."""

    pattern: re.Pattern[str] | None = None

    @classmethod
    def from_options(cls, *, level: str = "", grep: str = "") -> LineFilter:
        """Make a filter from a user's options; what is not valid is a `SettingsError`."""
        name = _ALIASES.get(level.upper(), level.upper())
        if name and name not in LEVELS:
            raise SettingsError(f"There is no level {level!r}. Levels: {', '.join(LEVELS)}.")
        try:
            return cls(name, re.compile(grep) if grep else None)
        except re.error as error:
            raise SettingsError(f"{grep!r} is not a regular expression: {error}.") from None

    def wants(self, line: LogLine) -> bool:
        """Whether a line is wanted."""
        if self.level and LEVELS.get(line.level, 0) < LEVELS[self.level]:
            return False
        return self.pattern is None or self.pattern.search(line.message) is not None


def parse_line(text: str, *, panda_id: int = 0, file: str = "") -> LogLine:
    """Read a line of a text file, given without its end."""
    found = _WORD.search(text, 0, _LEVEL_WITHIN)
    level = found.group() if found else "ERROR" if _TRACEBACK.search(text) else ""
    return LogLine(text, _ALIASES.get(level, level), panda_id=panda_id, file=file)


def parse_json_line(text: str, *, panda_id: int = 0, file: str = "") -> LogLine:
    """Read a line of ``payload-log.json``; one that is not a JSON object is taken as plain text."""
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, Mapping):
        return parse_line(text, panda_id=panda_id, file=file)
    return from_record(content, panda_id=panda_id, file=file)


def from_record(content: Mapping[str, Any], *, panda_id: int = 0, file: str = "") -> LogLine:
    """Make a line of a log record of the Science Pipelines: ``message``, ``levelname``, ``asctime``,
    ``name``, ``exc_info``, and in the cloud ``PandaJobID``.
    """
    message = text_of(content.get("message"))
    trace = content.get("exc_info")
    if isinstance(trace, str) and trace.strip():
        message = f"{message}\n{trace}".strip()
    level = text_of(content.get("levelname")).upper()
    own = text_of(content.get("PandaJobID"))
    return LogLine(
        message=message or render_short(content),
        level=_ALIASES.get(level, level),
        time=text_of(content.get("asctime")),
        logger=text_of(content.get("name")),
        panda_id=int(own) if own.isdecimal() else panda_id,
        file=file,
    )


LOG_FILES = ("payload-log.json", "payload.stderr", "payload.stdout")
"""Files of the payload; the first is the best where it is there."""

_BLOCK = 4 * 1024**2
_PAYLOAD = "payload.stderr"
# A compressed reply could not be cut at an offset.
_HEADERS = {"Accept-Encoding": "identity"}


class LogTransport:
    """Reads log areas through HTTP: with the credentials of a connection at its own server, without them
    everywhere else.

    With ``patience``, all reading together waits in vain for so many seconds at most.
    """

    def __init__(self, connection: Connection | None = None, *, patience: float | None = None) -> None:
        env = connection.settings.environment if connection is not None else {}
        budget = None if patience is None else WaitingBudget(patience)
        self._anonymous = _make_transport(Anonymous(), env, budget)
        self._own = _make_transport(connection.credentials, env, budget) if connection is not None else None
        self.server = connection.settings.require_url() if connection is not None else ""

    def get(self, url: str, *, headers: Mapping[str, str], what: str) -> Reply:
        """Send a GET request, as `Transport.get` does."""
        parts = urlsplit(url)
        transport = self._anonymous
        if self._own is not None and f"{parts.scheme}://{parts.netloc}" == server_root(self.server):
            transport = self._own
        return transport.get(url, headers=headers, what=what)


def _make_transport(
    credentials: Credentials, env: Mapping[str, str], budget: WaitingBudget | None
) -> Transport:
    return Transport(
        credentials,
        verify=checks_certificates(env),
        timeouts=Timeouts(connect=10.0, silence=30.0, total=600.0),
        retry=LOG_RETRY,
        budget=budget,
    )


def find_log_urls(job: JobRecord, server: str) -> dict[str, str]:
    """Find the addresses of a job's files by their names; empty if there is nothing yet.

    The name "" stands for an area that holds any name; of a batch system's log there are only two files.  The
    embedded PanDA, whose URL ``server`` then is, shows the files of a running job.
    """
    if job.log_url.endswith(_PAYLOAD):
        return {"": job.log_url[: -len(_PAYLOAD)]}
    if job.log_url:
        stem, dot, _ = job.log_url.rpartition(".")
        found = {_PAYLOAD: job.log_url}
        return found | ({"payload.stdout": f"{stem}.out"} if dot and job.log_url.endswith(".err") else {})
    if job.pilot_id.startswith("unknown|local|"):
        parts = urlsplit(server)
        return {"": f"{parts.scheme}://{parts.netloc}/logs/PandaJob_{job.panda_id}/"}
    return {}


class LogArea:
    """The files of one job."""

    def __init__(self, job: JobRecord, transport: LogTransport) -> None:
        self._addresses = find_log_urls(job, transport.server)
        self._transport = transport

    def __bool__(self) -> bool:
        return bool(self._addresses)

    def address(self, name: str) -> str:
        """Return where a file is; empty if it has no known place."""
        if base := self._addresses.get(""):
            return base + name
        return self._addresses.get(name, "")

    def tail(self, name: str, size: int) -> bytes:
        """Read the end of a file, at most ``size`` bytes; empty if there is no such file."""
        return self._read(self.address(name), -size, size)[0]

    def blocks(self, name: str, *, start: int = 0) -> Iterator[bytes]:
        """Read a file from an offset on, piece by piece: at most 4 MB each, where
        the server can give parts of a file.
        """
        address = self.address(name)
        while True:
            block, more = self._read(address, start, _BLOCK)
            if block:
                yield block
            start += len(block)
            if not more:
                return

    def _read(self, address: str, start: int, size: int) -> tuple[bytes, bool]:
        """Read a part, and tell whether there may be more behind it."""
        if not address:
            return b"", False
        scheme = urlsplit(address).scheme
        if scheme in ("http", "https"):
            return self._fetch(address, start, size)
        if scheme in ("", "file"):
            return _read_file(Path(unquote(urlsplit(address).path) if scheme else address), start, size)
        return _read_resource(address, start), False

    def _fetch(self, url: str, start: int, size: int) -> tuple[bytes, bool]:
        span = f"bytes={start}" if start < 0 else f"bytes={start}-{start + size - 1}"
        headers = {**_HEADERS, "Range": span}
        try:
            reply = self._transport.get(url, headers=headers, what=f"log {url}")
        except TransportError as error:
            if error.fault == Fault.NOT_FOUND:
                return b"", False
            if error.status != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            if start >= 0:
                return b"", False
            # Some servers refuse the end of a file that is shorter than it.
            reply = self._transport.get(url, headers=_HEADERS, what=f"log {url}")
        if reply.status == HTTPStatus.PARTIAL_CONTENT:
            return reply.body, len(reply.body) == size and start >= 0
        return reply.body[start:], False


def _read_file(path: Path, start: int, size: int) -> tuple[bytes, bool]:
    try:
        with path.open("rb") as stream:
            if start < 0:
                start = max(0, path.stat().st_size + start)
            stream.seek(start)
            block = stream.read(size)
    except FileNotFoundError:
        return b"", False
    except OSError as error:
        raise ReplyError(f"The log cannot be read: {error.strerror}.", endpoint=str(path)) from error
    return block, len(block) == size


def _read_resource(address: str, start: int) -> bytes:
    """Read with the libraries that the stack has for object stores and the like."""
    from lsst.resources import ResourcePath

    try:
        return ResourcePath(address).read()[start:]
    except FileNotFoundError:
        return b""
    except Exception as error:  # The libraries below have no common parent.
        raise ReplyError(f"The log cannot be read: {describe_cause(error)}.", endpoint=address) from error


TAIL_BYTES = 32768
"""How much of a log is read for its last lines."""

_LONG_TAIL_BYTES = 32 * TAIL_BYTES
"""How much is read if the exception is not in that."""

_LONGEST_CAUSE = 500

# What pipetask ends with when a quantum has failed: not why it did.
_EPILOGUE = re.compile(r"(\w+\.)*MPGraphExecutorError: ")
_EXCEPTION = re.compile(r"(?!(\w+\.)*MPGraphExecutorError\b)[A-Za-z_][\w.]*(:|$)")
_THROWN = re.compile("terminate called after throwing an instance of '(.+)'")
_CRASH = re.compile(
    f"^{_THROWN.pattern}|^terminate called|^Fatal Python error: |: Assertion .* failed\\.$"
    r"|[Ss]egmentation fault|\bBus error\b"
)
_SAID = re.compile(
    # The shell, or the program that was to find another; click; the runner.
    r"(\S*(sh|env): .*(not found|No such file or directory|Permission denied|[Ss]yntax error.*)"
    r"|Error: .+|runner: .*\(exit code \d+\))$"
)


@dataclass(frozen=True, slots=True)
class JobChoice:
    """Which jobs' logs are wanted."""

    which: JobQuery = JobQuery()
    """Those that the attempts were asked for with."""

    failed: bool = False
    """Failed attempts only."""

    everything: bool = False
    """Whether jobs that have not failed are wanted though others have."""

    limit: int = 20
    """Most jobs; the latest are taken."""


def choose_jobs(evidence: RunEvidence, choice: JobChoice) -> tuple[list[JobRecord], int]:
    """Choose the attempts whose logs are read, in PanDA's order, and count those that are left out.

    If the choice says nothing, that is the failed attempts, or all if none failed.
    """
    jobs = list(evidence.attempts)
    failed = [job for job in jobs if job.failed]
    if choice.failed or (failed and not (choice.everything or any(choice.which))):
        jobs = failed
    jobs.sort(key=lambda job: job.panda_id)
    return jobs[-choice.limit :], max(0, len(jobs) - choice.limit)


def find_first_attempts(connection: Connection, failures: Sequence[JobRecord]) -> list[JobRecord]:
    """Replace failed jobs by the first attempt of each that ended in the same way, as PanDA has it.

    iDDS knows the last one, which the runner may have refused: it tells nothing then.  What PanDA does not
    tell of stays as it is.
    """
    first: dict[tuple[int, str, tuple[str, int]], JobRecord] = {}
    for task_id in dict.fromkeys(job.task_id for job in failures if job.task_id):
        with suppress(TransportError):
            rows = connection.api.job_descriptions(task_id, unsuccessful_only=True)
            for job in sorted(parse_jobs(rows), key=lambda job: job.panda_id):
                first.setdefault((task_id, job.name, _end_of(job)), job)
    found = (first.get((job.task_id, job.name, _end_of(job))) for job in failures)
    return [
        replace(attempt, label=job.label) if attempt else job
        for job, attempt in zip(failures, found, strict=True)
    ]


def _end_of(job: JobRecord) -> tuple[str, int]:
    return (job.error.source, job.error.code) if job.error else ("", 0)


class LogReader:
    """Reads the log areas of jobs: by default the payload's log in JSON, else its output."""

    def __init__(self, transport: LogTransport, *, files: Sequence[str] = ()) -> None:
        self._transport = transport
        self._files = tuple(files)
        self._offsets: dict[tuple[int, str], int] = {}
        self._levels: dict[tuple[int, str], str] = {}

    def place(self, job: JobRecord) -> str:
        """Return where a job's log is read; empty if there is none."""
        area = LogArea(job, self._transport)
        return area.address(self._files[0] if self._files else "") or area.address("payload.stderr")

    def lines(self, job: JobRecord, wanted: LineFilter) -> Iterator[LogLine]:
        """Read the lines of a job's files that are new since the last time and wanted, file by file."""
        area = LogArea(job, self._transport)
        if not area:
            return
        for name in self._names(area, job):
            for line in self._new_lines(area, job, name):
                if wanted.wants(line):
                    yield line

    def _names(self, area: LogArea, job: JobRecord) -> Sequence[str]:
        if self._files:
            return self._files
        best, *others = LOG_FILES
        # Once the output was read, the same lines are not read again in JSON.
        begun = any((job.panda_id, name) in self._offsets for name in others)
        if not begun and ((job.panda_id, best) in self._offsets or area.tail(best, 1)):
            return (best,)
        return others

    def _new_lines(self, area: LogArea, job: JobRecord, name: str) -> Iterator[LogLine]:
        key = (job.panda_id, name)
        rest = b""
        ended = job.finished or job.failed or job.killed
        offset = self._offsets.get(key, 0)
        for block in area.blocks(name, start=offset):
            *whole, rest = (rest + block).split(b"\n")
            for piece in whole:
                offset += len(piece) + 1
                yield self._parse(piece, job, name)
            self._offsets[key] = offset
        if rest and ended:
            self._offsets[key] = offset + len(rest)
            yield self._parse(rest, job, name)

    def _parse(self, piece: bytes, job: JobRecord, name: str) -> LogLine:
        text = piece.decode("utf-8", "replace").rstrip("\r")
        if name.endswith(".json"):
            return parse_json_line(text, panda_id=job.panda_id, file=name)
        line = parse_line(text, panda_id=job.panda_id, file=name)
        # What follows a line without a level of its own belongs to it.
        key = (job.panda_id, name)
        if line.level:
            self._levels[key] = line.level
            return line
        return replace(line, level=self._levels.get(key, ""))


def read_last_lines(
    job: JobRecord, transport: LogTransport, *, size: int = 262_144
) -> tuple[list[LogLine], bool]:
    """Read the last lines of a job's log, of its standard error or else of its output, and tell whether there
    are more before them.
    """
    area = LogArea(job, transport)
    for name in LOG_FILES[1:]:
        data = area.tail(name, size)
        cut = len(data) >= size
        lines = data.decode("utf-8", "replace").splitlines()[1 if cut else 0 :]
        if lines:
            return [parse_line(line, panda_id=job.panda_id, file=name) for line in lines], cut
    return [], False


def group_lines(lines: Iterable[LogLine]) -> Iterator[tuple[str, list[str]]]:
    """Put lines together that follow each other and have the same level, of which those up to INFO are one; a
    line without a level belongs to the one before it.
    """
    level = ""
    texts: list[str] = []
    for line in lines:
        number = LEVELS.get(line.level, 0)
        new = "INFO" if 0 < number <= LEVELS["INFO"] else line.level or level
        if new != level and texts:
            yield level, texts
            texts = []
        level = new
        texts.append(line.message)
    if texts:
        yield level, texts


class LogEnd(NamedTuple):
    """Why a job ended, as its log has it."""

    exception: str | None
    """Type and message of the exception in one line, or what else stands for one; empty if there is none,
    `None` if the log could not be read."""

    lines: tuple[str, ...] = ()
    """Last lines, up to the exception where what follows only repeats that there was one."""


class TailReader:
    """Reads the ends of logs, so many lines at most.

    A host that cannot be reached is asked only once, so that many logs there do
    not wait for it one after the other.
    """

    def __init__(self, transport: LogTransport, *, count: int = 12) -> None:
        self._transport = transport
        self._count = count
        self._unreachable: dict[str, str] = {}

    def __call__(self, job: JobRecord) -> LogEnd:
        """Find the exception and the last lines in a job's standard error, or in its standard output if there
        is none; if they cannot be read, the only line is the reason in brackets.
        """
        host = urlsplit(job.log_url).netloc
        if host in self._unreachable:
            return LogEnd(None, (self._unreachable[host],))
        try:
            return self._read(LogArea(job, self._transport), killed=is_killed(job.errors))
        except TransportError as error:
            words = f"(the log could not be read: {error.message})"
            if isinstance(error, ConnectionFailedError):
                self._unreachable[host] = words
            return LogEnd(None, (words,))

    def _read(self, area: LogArea, *, killed: bool) -> LogEnd:
        best: list[str] = []
        for name in LOG_FILES[1:]:
            for size in (TAIL_BYTES, _LONG_TAIL_BYTES):
                data = area.tail(name, size)
                lines = [line.rstrip() for line in data.decode("utf-8", "replace").splitlines()]
                lines = [line for line in lines if line]
                if (found := _find_cause(lines, killed=killed)) >= 0:
                    return self._cut(_up_to_cause(lines, found), _render_cause(lines, found))
                if len(data) < size:
                    break
            best = best or lines
        errors = [] if killed else [line for line in best if parse_line(line).level in ("ERROR", "CRITICAL")]
        return self._cut(best, errors[-1] if errors else "")

    def _cut(self, lines: list[str], exception: str) -> LogEnd:
        return LogEnd(exception[:_LONGEST_CAUSE], tuple(lines[-self._count :] if self._count else ()))


def find_exception(lines: Sequence[str]) -> str:
    """Find the last exception in what a command has printed, or what stands for one; empty if there is
    none.
    """
    found = _find_cause(lines, killed=False)
    return _render_cause(lines, found)[:_LONGEST_CAUSE] if found >= 0 else ""


def _find_cause(lines: Sequence[str], *, killed: bool) -> int:
    """Find the line with the last exception, or with what stands for one; -1 if there is none.

    What a payload logged before a signal ended it is not why, unless it tells of a crash.
    """
    for number in range(len(lines) - 1, -1, -1):
        line = lines[number]
        if _CRASH.search(line) or (not killed and _SAID.match(line)):
            return number
        # The last line of a traceback follows an indented one.
        if not killed and number and _EXCEPTION.match(line) and lines[number - 1].startswith("  "):
            return number
    return -1


def _render_cause(lines: Sequence[str], number: int) -> str:
    line = lines[number].removeprefix("runner: ")
    more = lines[number + 1].strip() if number + 1 < len(lines) else ""
    if thrown := _THROWN.match(line):
        said = more.removeprefix("what():").strip() if more.startswith("what():") else ""
        return f"{thrown[1]}: {said}" if said else thrown[1]
    return f"{line} {more}" if line.endswith(":") and more else line


def _up_to_cause(lines: list[str], number: int) -> list[str]:
    """Leave out what follows the last exception of a quantum: pipetask may have
    run several, and says in the end only that some failed.
    """
    if not any(_EPILOGUE.match(line) for line in lines[-5:]):
        return lines
    end = number + 1
    while end < len(lines) and not parse_line(lines[end]).level:
        end += 1
    return lines[:end]


def fold_lines(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the level and the text of lines, and how many of level INFO and below are left out where."""
    folded = 0
    for line in (*lines, ""):
        level = parse_line(line).level
        if 0 < LEVELS.get(level, 0) <= LEVELS["INFO"]:
            folded += 1
            continue
        if folded:
            yield "", f"({render_count(folded, 'line')} of level INFO or below)"
            folded = 0
        if line:
            yield level, line
