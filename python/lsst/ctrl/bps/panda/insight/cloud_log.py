"""Read jobs' logs from Google Cloud Logging, where pilots send them line by line while the job runs.

The pilot's entries have no labels; task, job and run are fields of the entry (``jsonPayload.TaskID`` and
``PandaJobID`` are texts, ``RequestID`` is a number), and the real level is ``jsonPayload.levelname``.
"""

from __future__ import annotations

__all__ = [
    "CloudLog",
    "CloudLogSettings",
    "CloudQuery",
    "console_url",
    "find_cloud_settings",
    "render_filter",
    "choose_log_start",
]

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from ..errors import PandaBpsError, SettingsError, TransportError
from .logs import LEVELS, LogLine, from_record

_LOG = logging.getLogger(__name__)

DEFAULT_LOG = "Panda-RubinLog"
_ATTEMPTS = 6
_PAGE_SIZE = 1000
_LONGEST_WAIT = 60.0
_CONSOLE = "https://console.cloud.google.com/logs/query;query="


@dataclass(frozen=True, slots=True)
class CloudLogSettings:
    """Where the log is."""

    project: str
    """Google project; empty if none is known: then this source is not used."""

    log: str = DEFAULT_LOG
    credentials: str = ""
    """File with a service account's key; the environment's default credentials if empty."""

    endpoint: str = ""
    """Address of another server than Google's; asked without credentials if it is on this machine."""


@dataclass(frozen=True, slots=True)
class CloudQuery:
    """Which entries are wanted."""

    since: datetime
    """Always part of the filter: without a time Google's client silently looks back 24 hours only."""

    request_id: int = 0
    task_ids: tuple[int, ...] = ()
    panda_ids: tuple[int, ...] = ()
    level: str = ""
    """Least level."""

    pattern: str = ""
    """Regular expression that the message must fit, by Google's rules."""


def find_cloud_settings(environment: Mapping[str, str]) -> CloudLogSettings:
    """Read the settings from ``PANDA_LOG_PROJECT``, ``PANDA_LOG_NAME``,
    ``PANDA_LOG_CREDENTIALS`` and ``PANDA_LOG_ENDPOINT``.
    """
    return CloudLogSettings(
        project=environment.get("PANDA_LOG_PROJECT", ""),
        log=environment.get("PANDA_LOG_NAME") or DEFAULT_LOG,
        credentials=environment.get("PANDA_LOG_CREDENTIALS", ""),
        endpoint=environment.get("PANDA_LOG_ENDPOINT", ""),
    )


def render_filter(query: CloudQuery, settings: CloudLogSettings) -> str:
    """Write a query in Google's filter language: conditions joined by ``AND``,
    one of them always on the time.
    """
    project = settings.project or "PROJECT"
    parts = [f'logName="projects/{project}/logs/{quote(settings.log, safe="")}"']
    if query.request_id and not (query.task_ids or query.panda_ids):
        parts.append(f"jsonPayload.RequestID={query.request_id}")
    parts += _one_of("jsonPayload.TaskID", query.task_ids)
    parts += _one_of("jsonPayload.PandaJobID", query.panda_ids)
    if query.level:
        least = LEVELS[query.level]
        parts += _one_of(
            "jsonPayload.levelname", [name for name, number in LEVELS.items() if number >= least]
        )
    if query.pattern:
        parts.append(f"jsonPayload.message=~{_quoted(query.pattern)}")
    parts.append(f'timestamp>="{_moment(query.since)}"')
    return " AND ".join(parts)


def _one_of(field: str, values: Sequence[object]) -> list[str]:
    if not values:
        return []
    texts = [_quoted(str(value)) for value in values]
    return [f"{field}={texts[0]}" if len(texts) == 1 else f"{field}=({' OR '.join(texts)})"]


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _moment(date: datetime) -> str:
    return date.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def console_url(filter_text: str, settings: CloudLogSettings) -> str:
    """Return the address of Google's web console with a filter."""
    return f"{_CONSOLE}{quote(filter_text, safe='')}?project={quote(settings.project or 'PROJECT')}"


class CloudLog:
    """Google Cloud Logging, through Google's client (extra ``logs``), which gives
    1000 entries a request at most.
    """

    def __init__(self, settings: CloudLogSettings, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._settings = settings
        self._sleep = sleep
        self._client = _make_client(settings)

    def lines(self, query: CloudQuery) -> Iterator[LogLine]:
        """Read the entries of a query, oldest first.

        When Google says that the quota is used up, or that it has trouble, the reading waits and goes on
        after the last entry that came; a refusal is a `TransportError`.
        """
        yield from self._entries(query, _Position(query.since))

    def follow(
        self, query: CloudQuery, ended: Callable[[], bool], *, interval: float = 5.0
    ) -> Iterator[LogLine]:
        """Read the entries of a query, and go on with those that come, with so many seconds between two
        looks; when ``ended`` says that nothing more is to come, one more look follows.
        """
        position = _Position(query.since)
        last = False
        while True:
            yield from self._entries(query, position)
            if last:
                return
            last = ended()
            self._sleep(interval)

    def _entries(self, query: CloudQuery, position: _Position) -> Iterator[LogLine]:
        """Read the entries after a position, which moves along."""
        failures = 0
        while True:
            text = render_filter(replace(query, since=position.moment), self._settings)
            try:
                for entry in self._client.list_entries(
                    filter_=text, order_by="timestamp asc", page_size=_PAGE_SIZE
                ):
                    failures = 0
                    if position.advance(entry.timestamp, str(entry.insert_id)):
                        yield _line_from(entry)
                return
            except Exception as error:  # Google's and requests' errors have no common parent.
                failures += 1
                delay = _delay_of(error, failures)
                if delay is None:
                    raise TransportError(
                        f"Google Cloud Logging could not be read: {error}",
                        endpoint=self._settings.endpoint or "logging.googleapis.com",
                        request=text,
                    ) from error
                _LOG.info("Google Cloud Logging: %s; going on in %.0f s", error, delay)
                self._sleep(delay)


class _Position:
    """How far a log has been read: a time, and the entries of that time."""

    def __init__(self, moment: datetime) -> None:
        self.moment = moment
        self._seen: set[str] = set()

    def advance(self, moment: datetime | None, entry_id: str) -> bool:
        """Take an entry, and tell whether it is a new one."""
        if moment is not None and moment > self.moment:
            self.moment = moment
            self._seen.clear()
        if entry_id in self._seen:
            return False
        self._seen.add(entry_id)
        return True


def _delay_of(error: Exception, failures: int) -> float | None:
    """Return the seconds to wait before asking again; `None` to give up."""
    code = getattr(error, "code", None)
    status = int(code) if isinstance(code, int) else 0
    lost = isinstance(error, OSError)  # requests' errors are among them
    if failures >= _ATTEMPTS or not (lost or status == 429 or status >= 500):
        return None
    return min(_LONGEST_WAIT, 2.0**failures)


def _line_from(entry: Any) -> LogLine:
    payload = entry.payload
    content = payload if isinstance(payload, Mapping) else {"message": str(payload)}
    time_text = "" if "asctime" in content or entry.timestamp is None else _moment(entry.timestamp)
    return from_record({"asctime": time_text, **content}, file="cloud")


def _make_client(settings: CloudLogSettings) -> Any:
    """Make Google's client; nothing is sent."""
    if not settings.project:
        raise SettingsError(
            "It is not known in which Google project the log is: give --project or set PANDA_LOG_PROJECT."
        )
    try:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import logging as cloud_logging
        from google.oauth2 import service_account
    except ImportError as error:
        raise PandaBpsError(
            "Google's client is not installed: pip install 'lsst-ctrl-bps-panda[logs]'."
        ) from error
    options: dict[str, Any] = {"project": settings.project}
    if settings.endpoint:
        options["client_options"] = {"api_endpoint": settings.endpoint}
        options["_use_grpc"] = False
    try:
        if settings.credentials:
            make: Callable[[str], Any] = service_account.Credentials.from_service_account_file
            options["credentials"] = make(settings.credentials)
        elif settings.endpoint.startswith(("http://127.0.0.1", "http://localhost")):
            anonymous: Callable[[], Any] = AnonymousCredentials
            options["credentials"] = anonymous()
        client: Callable[..., Any] = cloud_logging.Client
        return client(**options)
    except Exception as error:  # DefaultCredentialsError, ValueError, OSError: no common parent.
        raise SettingsError(
            f"Google Cloud Logging cannot be used: {error} Give a service account's key file with "
            "--credentials or GOOGLE_APPLICATION_CREDENTIALS."
        ) from error


def choose_log_start(created: datetime | None, now: datetime) -> datetime:
    """Return the time to begin at: a while before a run was made, but at most 30
    days ago, which is as long as Google keeps entries.
    """
    oldest = now - timedelta(days=30)
    return oldest if created is None else max(oldest, created - timedelta(minutes=10))
