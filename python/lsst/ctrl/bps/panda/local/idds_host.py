"""iDDS in this process: its agents, the plug-ins that connect it with PanDA, PanDA's relay to it, and the
check of its version.
"""

from __future__ import annotations

__all__ = ["IddsHost", "Notifier", "Receiver", "IddsRelay", "connect"]

import functools
import importlib
import importlib.metadata
import io
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import Empty, Queue
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests
import sqlalchemy as sa
from requests.adapters import BaseAdapter

from . import idds_repairs
from .database import MessageQueue, note_errors
from .faults import Faults
from .idds_repairs import Repair, commands, idds_module, tuning, volume
from .idds_repairs.tuning import LOOP_WAKER, NEWS
from .identity import Identity
from .jedi import Jedi
from .request_bodies import parse_json
from .settings import Timing
from .storage import Storage, StorageError, is_storage_error

_LOG = logging.getLogger(__name__)


IDDS_VERSION = "2.6.21"
"""The version whose private parts are known."""

REPAIRS: tuple[Repair, ...] = (
    *idds_repairs.REPAIRS,
    *commands.REPAIRS,
    *tuning.REPAIRS,
    *volume.REPAIRS,
)
"""All repairs of iDDS's private parts."""

_DISTRIBUTIONS = ("idds-server", "idds-common", "idds-workflow", "idds-doma", "idds-client", "idds-prompt")


def wrong_versions() -> list[str]:
    """List distributions of iDDS that are absent or of another version."""
    wrong = []
    for name in _DISTRIBUTIONS:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{name} is not installed")
            continue
        if version != IDDS_VERSION:
            wrong.append(f"{name} is {version}")
    return wrong


def missing_grips() -> list[str]:
    """List private parts of iDDS that are not where the repairs expect them."""
    missing = []
    for item in REPAIRS:
        for grip in item.grips:
            name, _, path = grip.partition(":")
            try:
                functools.reduce(getattr, path.split("."), idds_module(name))
            except (ImportError, AttributeError):
                missing.append(f"{grip} ({item.name})")
    return missing


def self_test() -> str:
    """Check that this is the iDDS for which the repairs are made.

    The text says what to install; it is empty if all is well.
    """
    problems = wrong_versions() or missing_grips()
    if not problems:
        return ""
    return (
        f"the embedded PanDA knows iDDS {IDDS_VERSION} only, but here {', '.join(problems)}; "
        f"install what it needs with: pip install 'lsst-ctrl-bps-panda[local]' 'idds-server=={IDDS_VERSION}'"
    )


class _Connections:
    """The parts that the plug-ins connect, set once, because iDDS makes plug-ins without arguments."""

    jedi: Jedi
    message_queue: MessageQueue
    faults: Faults


def connect(jedi: Jedi, message_queue: MessageQueue, faults: Faults) -> None:
    """Set the parts that the plug-ins connect, before iDDS's agents are started."""
    _Connections.jedi, _Connections.message_queue, _Connections.faults = jedi, message_queue, faults


class _MessagingPlugin(threading.Thread):
    """A thread with the methods that iDDS calls on its messaging plug-ins."""

    def __init__(self, logger: Any = None, **attributes: Any) -> None:
        super().__init__(daemon=True)
        self._stopped = threading.Event()
        self._suspended = threading.Event()
        self._requests: Queue[Any] = Queue()
        self._responses: Queue[Any] = Queue()
        self._output: Queue[Any] = Queue()

    def set_logger(self, logger: Any) -> None:
        """Ignore iDDS's logger; ours is used."""

    def set_request_queue(self, queue: Queue[Any]) -> None:
        """Set the queue of messages to send."""
        self._requests = queue

    def set_response_queue(self, queue: Queue[Any]) -> None:
        """Set the queue of messages that were sent."""
        self._responses = queue

    def set_output_queue(self, queue: Queue[Any]) -> None:
        """Set the queue of received messages."""
        self._output = queue

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()

    def suspend(self) -> None:
        """Pause the thread."""
        self._suspended.set()

    def resume(self) -> None:
        """End a pause."""
        self._suspended.clear()

    def is_processing(self) -> bool:
        """Whether messages are handled now."""
        return not self._stopped.is_set() and not self._suspended.is_set()

    def _repeat(self, action: Callable[[], None]) -> None:
        while not self._stopped.is_set():
            try:
                action()
            except Exception as error:
                if not is_storage_error(error):
                    _LOG.exception("%s: a message could not be passed on", type(self).__name__)
                time.sleep(1)


class Notifier(_MessagingPlugin):
    """Passes releases of inputs from iDDS to PanDA."""

    def run(self) -> None:
        """Pass messages on until stopped."""
        self._repeat(self._pass_one)

    def _pass_one(self) -> None:
        try:
            message = self._requests.get(timeout=1)
        except Empty:
            return
        try:
            self.deliver(message["msg_content"])
        except (ValueError, TypeError, LookupError, AttributeError):
            # It would fail again and again, and hold up nothing but the log.
            _LOG.exception("a message of iDDS is left out: %.500r", message)
        except Exception:
            self._requests.put(message)
            raise
        # iDDS marks it as delivered now, after PanDA has stored its effect.
        self._responses.put(message)

    @staticmethod
    def deliver(content: Any) -> None:
        """Pass one message on; all but releases of inputs are ignored, as JEDI does."""
        if not isinstance(content, dict) or content.get("msg_type") != "file_processing":
            return
        if content.get("relation_type") != "input" or not content.get("workload_id"):
            return
        for copy in _Connections.faults.flow("to_panda", "file_processing", content):
            _Connections.jedi.release(int(copy["workload_id"]), copy.get("files") or [])


class Receiver(_MessagingPlugin):
    """Passes states of jobs and tasks from PanDA to iDDS."""

    def run(self) -> None:
        """Pass messages on until stopped."""
        self._repeat(self._pass_some)

    def _pass_some(self) -> None:
        if self._suspended.is_set():
            time.sleep(0.1)
            return
        bodies = _Connections.message_queue.take(timeout=1)
        for body in bodies:
            for copy in _Connections.faults.flow("to_idds", str(body.get("msg_type")), body):
                headers = {"persistent": "true", "from_idds": "false"}
                self._output.put(
                    {"name": "default", "from_idds": "false", "msg": {"headers": headers, "body": copy}}
                )
        if bodies:
            LOOP_WAKER.wake_all()
        NEWS.note(bodies)
        self._stopped.wait(_Connections.message_queue.pause({int(body["taskid"]) for body in bodies}))


_HOST = "http://idds.invalid"
"""Host name of iDDS's REST application for the relay; never resolved."""

_SUPER_USER = "local-panda"
_CLIENTS = 20
"""Largest number of clients that a thread keeps: one for each user and kind."""

_AGENTS = ("clerk", "transformer", "submitter", "poller", "receiver", "trigger", "finisher", "conductor")
_PLUGINS = "lsst.ctrl.bps.panda.local.idds_host"

_AUTH = f"""[common]
allow_vos = local

[Users]
allow_users = CN=
ban_users = nobody_at_all
super_users = {_SUPER_USER}
"""


def _sections(directory: Path, database: str, timing: Timing, loglevel: str) -> dict[str, dict[str, object]]:
    poll = timing.poll
    periods: dict[str, object] = {
        "poll_period": poll,
        "new_poll_period": poll,
        "update_poll_period": poll,
        "max_new_poll_period": max(10, poll),
        "max_update_poll_period": max(10, poll),
        "poll_operation_time_period": 2 * poll,
    }
    schema: dict[str, object] = {} if database.startswith("sqlite") else {"schema": "doma_idds"}
    return {
        "common": {"loglevel": loglevel, "logdir": directory / "log"},
        "database": {
            "default": database,
            "pool_size": 20,
            "max_overflow": 60,
            "pool_recycle": 3600,
            "echo": 0,
            "pool_reset_on_return": "rollback",
            **schema,
        },
        "rest": {
            "host": _HOST,
            "cacher_dir": directory / "cache",
            "additional_storage": directory / "storage",
        },
        "main": {"agents": ", ".join(_AGENTS)},
        "eventbus": {"backend": "default"},
        # With few workers, running requests would delay the commands of other requests.
        "clerk": {
            **periods,
            "max_number_workers": 16,
            "new_command_poll_period": 1,
            "update_command_poll_period": 1,
            "retrieve_bulk_size": 32,
            "pending_time": 30,
        },
        "transformer": {
            **periods,
            "max_number_workers": 4,
            "retrieve_bulk_size": 64,
            "message_bulk_size": 1000,
            "domapandawork.num_retries": 0,
        },
        "carrier": {
            **periods,
            "num_threads": 4,
            "max_number_workers": 4,
            "trigger_max_number_workers": 4,
            "finisher_max_number_workers": 4,
            "receiver_num_threads": 2,
            # Compared with time.time(): parts of a second are possible.
            "bulk_message_delay": 1,
            "update_poll_period_for_new_task": poll,
            "retrieve_bulk_size": 16,
            "message_bulk_size": 1000,
            "domapandawork.num_retries": 0,
            "domapandawork.poll_panda_jobs_chunk_size": 2000,
            "plugin.receiver": f"{_PLUGINS}.Receiver",
        },
        "conductor": {
            "delay": 5,
            "replay_times": 2,
            "threshold_to_release_messages": 1000,
            "random_delay": 5,
            "interval_delay": 1,
            "plugin.notifier": f"{_PLUGINS}.Notifier",
        },
    }


class _InProcessAdapter(BaseAdapter):
    """Carries HTTP requests to a WSGI application in this process.

    The REST application of iDDS trusts whoever reaches it; without a port
    nobody else does.
    """

    def __init__(self, application: Any) -> None:
        super().__init__()
        self._client = importlib.import_module("werkzeug.test").Client(application)

    def send(  # type: ignore[override]
        self, request: requests.PreparedRequest, **options: Any
    ) -> requests.Response:
        """Send a request to the application."""
        parts = urlsplit(str(request.url))
        body = request.body
        answer = self._client.open(
            path=parts.path,
            query_string=parts.query,
            method=request.method,
            headers=[(name, value) for name, value in request.headers.items()],
            data=body.encode() if isinstance(body, str) else body,
            environ_overrides={"SSL_CLIENT_S_DN": f"/CN={_SUPER_USER}", "SSL_CLIENT_CERT": "local"},
        )
        response = requests.Response()
        response.status_code = answer.status_code
        response.headers.update(dict(answer.headers))
        response.raw = io.BytesIO(answer.get_data())
        response.url = str(request.url)
        response.request = request
        response.encoding = "utf-8"
        return response

    def close(self) -> None:
        """Do nothing: there is no connection."""


class IddsHost:
    """iDDS in this process: its configuration, agents, REST application and clients."""

    def __init__(
        self,
        directory: Path,
        *,
        database: str,
        timing: Timing,
        loglevel: str = "WARNING",
        storage: Storage | None = None,
    ) -> None:
        self._directory = directory
        self._storage = storage
        self._looked = 0.0
        self._timing = timing
        self._agents: list[Any] = []
        self._clients = threading.local()
        for name in ("log", "cache", "storage", "home"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        # The relay's client puts the text of a proxy into each workflow and
        # fails without one.
        (directory / "home" / "proxy").write_text("none")
        (directory / "auth.cfg").write_text(_AUTH)
        lines = []
        for section, values in _sections(directory, database, timing, loglevel).items():
            lines.append(f"[{section}]")
            lines += [f"{key} = {str(value).replace('%', '%%')}" for key, value in values.items()]
        configuration = directory / "idds.cfg"
        configuration.touch(mode=0o600)
        configuration.write_text("\n".join(lines) + "\n")

    def environment(self) -> Mapping[str, str]:
        """Return the variables that iDDS reads in this process."""
        home = self._directory / "home"
        return {
            "IDDS_CONFIG": str(self._directory / "idds.cfg"),
            "IDDS_AUTH_CONFIG": str(self._directory / "auth.cfg"),
            "IDDS_HOST": _HOST,
            "IDDS_LOCAL_CONFIG_ROOT": str(home / ".idds"),
            "IDDS_REQUEST_CACHE": str(self._directory / "storage" / "requests"),
            "X509_USER_PROXY": str(home / "proxy"),
            "PANDA_CONFIG_ROOT": str(home / ".panda"),
            "PANDA_BEHIND_REAL_LB": "1",
            # Nothing is verified over plain HTTP, and reading the CA
            # certificates would cost 20 ms a call.
            "PANDA_VERIFY_HOST": "off",
        }

    def prepare(self) -> None:
        """Import iDDS, repair it, make its tables and its REST application.

        `RuntimeError` says what to install if this is another iDDS.
        """
        wrong = wrong_versions()
        if wrong:
            raise RuntimeError(self_test())
        idds_repairs.before_import()
        session = importlib.import_module("idds.orm.base.session")
        models = importlib.import_module("idds.orm.base.models")
        if problem := self_test():
            raise RuntimeError(problem)
        engine = session.get_engine(echo=False)
        if engine.dialect.name == "postgresql":
            schema = importlib.import_module("sqlalchemy.schema")
            with engine.begin() as connection:
                connection.execute(schema.CreateSchema("doma_idds", if_not_exists=True))
        models.register_models(engine)
        if self._storage is not None:
            note_errors(engine, self._storage)
            sa.event.listen(engine, "begin", self._wait_for_room)
        for item in REPAIRS:
            if item.apply is not None:
                item.apply(self._timing)
        idds_repairs.unlock_everything()
        application = importlib.import_module("idds.rest.v1.app").create_app()
        self._adapter = _InProcessAdapter(application)

    def _wait_for_room(self, connection: object) -> None:
        """Hold up iDDS's agents before a transaction while it could not be stored.

        They take an error for one of the run, and fail it.  Calls of users go
        on: they are answered with the error.
        """
        if self._storage is None or threading.current_thread().name.startswith(_WEB_THREADS):
            return
        if self._storage.trouble is None and time.monotonic() - self._looked < _WAIT:
            return
        while self._agents and self._storage.look() is not None:
            time.sleep(_WAIT)
        self._looked = time.monotonic()

    def start(self) -> None:
        """Start the agents."""
        main = importlib.import_module("idds.agents.main")
        for name in _AGENTS:
            agent = main.load_agent(name)
            agent.daemon = True
            tuning.tune(agent, self._timing)
            agent.start()
            self._agents.append(agent)

    def stop(self) -> None:
        """Ask the agents to stop; the next start continues their work."""
        for agent in self._agents:
            agent.stop()

    def dead_agents(self) -> list[str]:
        """List agents whose thread has ended."""
        return [agent.get_name() for agent in self._agents if not agent.is_alive()]

    def run_names(self, request_ids: Sequence[int]) -> Mapping[int, str]:
        """Find the names of requests; those that iDDS does not have are left out."""
        requests = importlib.import_module("idds.orm.base.models").Request
        query = sa.select(requests.request_id, requests.name).where(requests.request_id.in_(request_ids))
        with importlib.import_module("idds.orm.base.session").get_engine(echo=False).connect() as connection:
            return {int(row.request_id): str(row.name) for row in connection.execute(query)}

    def client(self, user: str, *, manager: bool) -> Any:
        """Return a client of iDDS that acts for a user, as PanDA's relay does.

        Each thread keeps its clients, because making one reads files.
        """
        clients: dict[tuple[str, bool], Any] = self._clients.__dict__.setdefault("made", {})
        if (user, manager) not in clients:
            if len(clients) >= _CLIENTS:
                clients.clear()
            clients[user, manager] = self._make_client(user, manager=manager)
        return clients[user, manager]

    def forget_clients(self) -> None:
        """Drop this thread's clients, after one was changed."""
        self._clients.__dict__.clear()

    def _make_client(self, user: str, *, manager: bool) -> Any:
        if manager:
            client = importlib.import_module("idds.client.clientmanager").ClientManager(host=_HOST)
            client.setup_client()
            inner = client.client
        else:
            auth = {"auth_type": "x509_proxy", "client_proxy": os.environ["X509_USER_PROXY"]}
            client = importlib.import_module("idds.client.client").Client(host=_HOST, auth=auth)
            inner = client
        inner.session.mount(_HOST, self._adapter)
        client.set_original_user(user_name=user)
        tuning.settle_client(client)
        return client


_WAIT = 0.2
_WEB_THREADS = "waitress"
"""How the names of threads begin that carry out calls of users, which must not wait."""

_SUBMISSIONS = ("submit", "submit_build", "submit_work")
_COMMANDS = ("abort", "retry", "close", "abort_task")

_KNOWN_COMMANDS = frozenset(
    (
        *_COMMANDS, "ping", "submit", "submit_work", "submit_build", "update_build_request", "get_requests",
        "get_request_id_by_name", "get_status", "get_transforms", "get_transform", "get_collections",
        "get_contents", "get_match_contents", "get_contents_output_ext", "get_messages", "get_metainfo",
        "get_hyperparameters", "update_hyperparameter", "abort_request", "abort_request_task",
        "close_request", "retry_request",
    )
)  # fmt: skip
"""What iDDS's clients ask a server; their other methods change the client itself (such as the user in whose
name it asks) and read and write files here."""


def decode_body(body: bytes) -> dict[str, Any]:
    """Decode the body of a request to the relay, already unpacked: JSON, or a URL-encoded form; `ValueError`
    for anything else.
    """
    if body.lstrip().startswith(b"{"):
        value = parse_json(body)
    else:
        value = {key: values[-1] for key, values in parse_qs(body.decode(), max_num_fields=20).items()}
    if not isinstance(value, dict) or not isinstance(value.get("command_name"), str):
        raise ValueError("the body holds no command_name")
    return value


class IddsRelay:
    """PanDA's relay, which forwards commands to iDDS."""

    def __init__(self, host: IddsHost, faults: Faults, storage: Storage | None = None) -> None:
        self._host = host
        self._faults = faults
        self._storage = storage

    def call(self, body: dict[str, Any], identity: Identity) -> tuple[bool, Any]:
        """Forward a command to iDDS in the name of a user.

        The body holds ``command_name``, ``args`` and ``kwargs`` (JSON texts in
        iDDS's own format), ``manager`` and ``json_outputs``. Returns whether a
        client could be called, and the reply, which may still be an error, or
        what went wrong.
        """
        # "command+http://host" asks for another iDDS server: there is only one.
        command = str(body["command_name"]).partition("+")[0][:80]
        manager = str(body.get("manager", "")).lower() == "true"
        codec = importlib.import_module("idds.common.utils")
        try:
            client = self._host.client(identity.user, manager=manager)
            if command not in _KNOWN_COMMANDS or not callable(getattr(client, command, None)):
                return False, f"{command} is not a command of iDDS {type(client).__name__}"
            if self._storage is not None and command in _SUBMISSIONS:
                self._storage.require()
            args = codec.json_loads(body["args"]) if body.get("args") else []
            kwargs = codec.json_loads(body["kwargs"]) if body.get("kwargs") else {}
            if str(body.get("json_outputs", "")).lower() == "true" and manager:
                client.setup_json_outputs()
                self._host.forget_clients()
            function = getattr(client, command)
            if command not in _COMMANDS:
                return True, function(*args, **kwargs)
            # To the client, a dropped command looks registered.
            reply: Any = [[0, {"status": 0, "message": "Command registered successfully"}]]
            for _ in self._faults.flow("command", command, None):
                reply = function(*args, **kwargs)
            return True, reply
        except StorageError as error:
            return False, f"the embedded PanDA takes no runs now: {error}"
        except Exception as error:
            _LOG.exception("the relay could not execute %s", command)
            return False, f"failed to execute command with {error}"

    def render(self, value: Any) -> str:
        """Render a reply as JSON; objects of iDDS in iDDS's own format."""
        try:
            return json.dumps(value)
        except (TypeError, ValueError):
            return str(importlib.import_module("idds.common.utils").json_dumps(value))
