"""PanDA's messages about jobs and tasks, from its message broker (ActiveMQ) through STOMP.

Only a topic is listened to: each listener of a topic gets all messages.  Of a queue each message goes to one
reader only, so that a person who listens would take from iDDS what it waits for.

A message is a JSON object with ``msg_type`` (``job_status`` or ``task_status``), ``taskid``, ``jobid``,
``status``, ``timestamp`` and, of jobs, ``inputs`` (pandaserver/taskbuffer/db_proxy_mods/base_module.py and
pandajedi's forwarding processor, panda-server 9cc3603).
"""

from __future__ import annotations

__all__ = [
    "BrokerSettings",
    "StatusMessage",
    "Subscription",
    "find_broker_settings",
    "parse_message",
]

import json
import logging
import queue
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from ..errors import AuthenticationError, ConnectionFailedError, PandaBpsError, ReplyError, SettingsError
from ..rest.credentials import checks_certificates
from ..settings.run import ServiceSettings
from ..status.replies import optional_integer, text_of

_TLS_SCHEMES = ("stomp+ssl", "stomps", "ssl")
_SCHEMES = ("stomp", "tcp", *_TLS_SCHEMES)
_PORTS = {False: 61613, True: 61614}
_HEARTBEAT = 10_000
_OWN_QUEUE = "/queue/Consumer."
# More than this waits for us only if we are asleep; a later look at the servers makes up for what is dropped.
_LONGEST_QUEUE = 100_000
_MOST_AT_ONCE = 10_000
_LIBRARY_LOG = "stomp.py"
_RECEIPT = "subscribed"
_JOB = "job_status"
_TASK = "task_status"


@dataclass(frozen=True, slots=True)
class StatusMessage:
    """A change of the status of a job or a task."""

    task_id: int
    status: str
    job_id: int = 0
    """0 in a message about a task."""

    inputs: int = 0
    """Pseudo-inputs of the job, 0 if the message does not say."""


def parse_message(text: str) -> StatusMessage | None:
    """Read the body of a message; `None` if it is about something else, or not
    understood: whoever may write to the broker writes what they like.
    """
    try:
        content = json.loads(text)
        if not isinstance(content, Mapping) or content.get("msg_type") not in (_JOB, _TASK):
            return None
        task_id = optional_integer(content.get("taskid"), "taskid") or 0
        job_id = optional_integer(content.get("jobid"), "jobid") or 0
    except (ValueError, ReplyError):
        return None
    status = text_of(content.get("status"))
    if not task_id or not status or (content["msg_type"] == _JOB) != bool(job_id):
        return None
    inputs = content.get("inputs")
    return StatusMessage(task_id, status, job_id, len(inputs) if isinstance(inputs, list) else 0)


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """Where the messages are."""

    hosts: tuple[tuple[str, int], ...]
    """Names and ports, tried in turn."""

    destination: str
    """Topic, such as ``/topic/panda_idds``."""

    tls: bool = False
    user: str = ""
    password: str = field(default="", repr=False)
    vhost: str = ""
    """Virtual host; the name of the host if empty."""

    verify: bool | str = True
    """Whether certificates are checked, or the file with authorities."""

    @property
    def name(self) -> str:
        """The broker, as it is told to users."""
        return ", ".join(f"{host}:{port}" for host, port in self.hosts)


def find_broker_settings(settings: ServiceSettings) -> BrokerSettings | None:
    """Find out where the messages are; `None` if no broker is known.

    Address, topic and virtual host are from the environment, else from the configuration or the profile of
    the site.  User and password are from the environment alone: ``PANDA_MESSAGES_USER``, and
    ``PANDA_MESSAGES_PASSWORD`` or the file that ``PANDA_MESSAGES_PASSWORD_FILE`` names.
    """
    environment, keys = settings.environment, settings.messages
    url = environment.get("PANDA_MESSAGES_URL") or keys.get("pandaMessagesUrl")
    if not url:
        return None
    scheme, hosts = _parse_url(url)
    destination = environment.get("PANDA_MESSAGES_DESTINATION") or keys.get("pandaMessagesDestination", "")
    if not destination.startswith(("/topic/", _OWN_QUEUE)):
        raise SettingsError(
            f"pandaMessagesDestination is {destination!r}, but only topics (/topic/...) are listened to: "
            "reading a queue would take messages away from iDDS. A queue of one's own behind a virtual "
            f"topic, {_OWN_QUEUE}NAME.VirtualTopic..., is fine as well."
        )
    return BrokerSettings(
        hosts=hosts,
        destination=destination,
        tls=scheme in _TLS_SCHEMES,
        user=environment.get("PANDA_MESSAGES_USER", ""),
        password=_password(environment),
        vhost=environment.get("PANDA_MESSAGES_VHOST") or keys.get("pandaMessagesVhost", ""),
        verify=checks_certificates(environment) and (environment.get("REQUESTS_CA_BUNDLE") or True),
    )


def _parse_url(url: str) -> tuple[str, tuple[tuple[str, int], ...]]:
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "stomp", url
    hosts = []
    for part in rest.rstrip("/").split(","):
        try:
            parts = urlsplit(f"//{part.strip()}")
            port = parts.port or _PORTS[scheme in _TLS_SCHEMES]
        except ValueError:
            parts, port = urlsplit(""), 0
        if scheme not in _SCHEMES or not parts.hostname or parts.path or parts.username is not None:
            # The address is not shown: it may hold a password.
            raise SettingsError(
                "pandaMessagesUrl is not the address of a broker such as stomp://HOST:61613 or "
                "stomp+ssl://HOST:61614 (several hosts separated by commas). User and password do not belong "
                "there, but into PANDA_MESSAGES_USER and PANDA_MESSAGES_PASSWORD_FILE."
            )
        hosts.append((parts.hostname, port))
    return scheme, tuple(hosts)


def _password(environment: Mapping[str, str]) -> str:
    if path := environment.get("PANDA_MESSAGES_PASSWORD_FILE"):
        try:
            return Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"PANDA_MESSAGES_PASSWORD_FILE is {path!r}, which cannot be read: {error}."
            ) from None
    return environment.get("PANDA_MESSAGES_PASSWORD", "")


class _Reasons(logging.Handler):
    """Keeps what the library says, which raises errors without a reason."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        # Docstring inherited.
        self.last = record.getMessage()


@contextmanager
def _library_log() -> Iterator[_Reasons]:
    """Hear what the library says; what it says later is of no use to anybody, since we say it ourselves."""
    log = logging.getLogger(_LIBRARY_LOG)
    reasons, level = _Reasons(), log.level
    log.addHandler(reasons)
    log.setLevel(logging.WARNING)
    log.propagate = False
    try:
        yield reasons
    finally:
        log.removeHandler(reasons)
        log.setLevel(level)
        if not log.handlers:
            log.addHandler(logging.NullHandler())


class Subscription:
    """What the broker sends, from now on; it may take ``patience`` seconds to answer."""

    def __init__(self, settings: BrokerSettings, *, patience: float = 10.0) -> None:
        self._settings = settings
        self._patience = patience
        self._messages: queue.Queue[str | None] = queue.Queue(_LONGEST_QUEUE)
        self._answered = threading.Event()
        self._connected = False
        self._subscribed = False
        self._refusal = ""
        self._connection: Any = None

    def open(self) -> None:
        """Connect and subscribe."""
        stomp = _import_stomp()
        with _library_log() as reasons:
            try:
                self._connect(stomp)
            except (stomp.exception.StompException, OSError) as error:
                self.close()
                raise self._failure(reasons.last or str(error)) from error
        if not self._subscribed:
            self.close()
            raise self._failure(reasons.last)

    def _failure(self, reason: str) -> PandaBpsError:
        where = self._settings.name
        if self._refusal:
            return AuthenticationError(
                f"The message broker {where} refuses: {self._refusal} (see PANDA_MESSAGES_USER and "
                "PANDA_MESSAGES_PASSWORD_FILE)"
            )
        return ConnectionFailedError(
            f"The message broker {where} cannot be reached: {reason or 'it does not answer'}"
        )

    def _connect(self, stomp: Any) -> None:
        found = self._settings
        self._connection = stomp.StompConnection12(
            list(found.hosts),
            prefer_localhost=False,
            try_loopback_connect=False,
            reconnect_attempts_max=1,
            timeout=self._patience,
            heartbeats=(_HEARTBEAT, _HEARTBEAT),
            vhost=found.vhost or found.hosts[0][0],
        )
        if found.tls:
            self._connection.set_ssl(
                list(found.hosts),
                ca_certs=found.verify if isinstance(found.verify, str) else None,
                ssl_version=ssl.PROTOCOL_TLS_CLIENT,
                verify=bool(found.verify),
            )
        self._connection.set_listener("", self)
        self._connection.connect(found.user or None, found.password or None, wait=False)
        self._answered.wait(self._patience)
        if self._connected:
            # With a receipt: what is sent after it is not missed.
            self._answered.clear()
            self._connection.subscribe(found.destination, id="1", ack="auto", receipt=_RECEIPT)
            self._answered.wait(self._patience)

    def read(self, seconds: float) -> list[str]:
        """Wait so long for the first message, and return the bodies of all
        that are there, ten thousand at most.

        When the broker is gone, messages that came before are returned first.
        """
        end = monotonic() + seconds
        found: list[str] = []
        while True:
            try:
                body = self._messages.get(timeout=0 if found else max(0.0, end - monotonic()))
            except queue.Empty:
                return found
            if body is None:
                if found:
                    self._lose()
                    return found
                raise ConnectionFailedError(
                    f"The message broker {self._settings.name} closed the connection"
                    + (f": {self._refusal}" if self._refusal else "")
                )
            found.append(body)
            if len(found) >= _MOST_AT_ONCE:
                return found

    def close(self) -> None:
        """Leave; the broker forgets us."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):  # The library raises whatever its socket does.
                connection.remove_listener("")  # It is no news that the connection ends.
                connection.disconnect()
            with suppress(Exception):
                connection.transport.disconnect_socket()

    def _lose(self) -> None:
        with suppress(queue.Full):
            self._messages.put_nowait(None)

    # What the library calls, in a thread of its own.

    def on_connected(self, frame: Any) -> None:
        """Note that the broker let us in."""
        self._connected = True
        self._answered.set()

    def on_receipt(self, frame: Any) -> None:
        """Note that messages come from now on."""
        if frame.headers.get("receipt-id") == _RECEIPT:
            self._subscribed = True
            self._answered.set()

    def on_message(self, frame: Any) -> None:
        """Keep a message."""
        with suppress(queue.Full):
            self._messages.put_nowait(str(frame.body))

    def on_error(self, frame: Any) -> None:
        """Note why the broker refuses something."""
        lines = f"{frame.headers.get('message') or frame.body}".strip().splitlines()
        self._refusal = lines[0] if lines else "no reason given"
        self._answered.set()
        if self._subscribed:
            self._lose()

    def on_disconnected(self) -> None:
        """Note that the connection is gone."""
        self._answered.set()
        self._lose()

    on_heartbeat_timeout = on_disconnected

    def on_send(self, frame: Any) -> None:
        """Do nothing: the library wants it to be there."""


def _import_stomp() -> Any:
    try:
        import stomp
        import stomp.exception
    except ImportError as error:
        raise PandaBpsError(
            "stomp.py is not installed: pip install 'lsst-ctrl-bps-panda[messages]'."
        ) from error
    return stomp
