"""The iDDS that runs in this process: its agents, its plugins for PanDA, and PanDA's relay to it."""

from __future__ import annotations

__all__ = ["IddsHost", "Notifier", "Receiver", "IddsRelay", "connect"]

import gzip
import importlib
import io
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import Empty, Queue
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests
from requests.adapters import BaseAdapter

from . import idds_repairs
from .database import MessageQueue
from .faults import Faults
from .idds_repairs import LOOP_WAKER
from .identity import Identity
from .jedi import Jedi
from .settings import Timing

_LOG = logging.getLogger(__name__)

_LONGEST_BATCH = 1.5
_BATCH_PER_INPUT = 0.001


class _Connections:
    """What the plug-ins connect; iDDS makes them without arguments."""

    jedi: Jedi
    message_queue: MessageQueue
    faults: Faults


def connect(jedi: Jedi, message_queue: MessageQueue, faults: Faults) -> None:
    """Set what the plug-ins connect, before iDDS's agents are started."""
    _Connections.jedi, _Connections.message_queue, _Connections.faults = jedi, message_queue, faults


class _Plugin(threading.Thread):
    """A thread with the methods that iDDS calls on its messaging plug-ins."""

    def __init__(self, logger: Any = None, **attributes: Any) -> None:
        super().__init__(daemon=True)
        self._stopped = threading.Event()
        self._suspended = threading.Event()
        self._requests: Queue[Any] = Queue()
        self._responses: Queue[Any] = Queue()
        self._output: Queue[Any] = Queue()

    def set_logger(self, logger: Any) -> None:
        """Accept a logger; ours is used."""

    def set_request_queue(self, queue: Queue[Any]) -> None:
        """Set where messages to send come from."""
        self._requests = queue

    def set_response_queue(self, queue: Queue[Any]) -> None:
        """Set where sent messages go."""
        self._responses = queue

    def set_output_queue(self, queue: Queue[Any]) -> None:
        """Set where received messages go."""
        self._output = queue

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()

    def suspend(self) -> None:
        """Pause."""
        self._suspended.set()

    def resume(self) -> None:
        """Go on."""
        self._suspended.clear()

    def is_processing(self) -> bool:
        """Tell whether messages are handled."""
        return not self._stopped.is_set() and not self._suspended.is_set()

    def _repeat(self, action: Callable[[], None]) -> None:
        while not self._stopped.is_set():
            try:
                action()
            except Exception:
                _LOG.exception("%s: a message could not be passed on", type(self).__name__)
                time.sleep(1)


class Notifier(_Plugin):
    """Takes messages from iDDS to PanDA: releases of inputs."""

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
        except Exception:
            self._requests.put(message)
            raise
        # iDDS marks it as delivered now, after PanDA has stored its effect.
        self._responses.put(message)

    @staticmethod
    def deliver(content: Any) -> None:
        """Pass one message on; all but releases of inputs are ignored, as
        JEDI does.
        """
        if not isinstance(content, dict) or content.get("msg_type") != "file_processing":
            return
        if content.get("relation_type") != "input" or not content.get("workload_id"):
            return
        for copy in _Connections.faults.flow("to_panda", "file_processing", content):
            _Connections.jedi.release(int(copy["workload_id"]), copy.get("files") or [])


class Receiver(_Plugin):
    """Takes messages from PanDA to iDDS: states of jobs and tasks."""

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
            LOOP_WAKER.ring()
        # iDDS goes through all inputs of a task for each batch of messages:
        # the larger the task, the larger the batches, up to a second's worth.
        size = _Connections.message_queue.largest_task({int(body["taskid"]) for body in bodies})
        self._stopped.wait(min(_LONGEST_BATCH, size * _BATCH_PER_INPUT))


_HOST = "http://idds.invalid"
"""Name under which the relay reaches the REST application; never resolved."""

_SUPER_USER = "local-panda"
_CLIENTS = 20
"""Clients that a thread keeps: one a user and kind."""

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
        # With few workers, requests that run starve the commands of others.
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
        """Have a request answered."""
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
    """iDDS in this process."""

    def __init__(self, directory: Path, *, database: str, timing: Timing, loglevel: str = "WARNING") -> None:
        self._directory = directory
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
        """Tell the environment variables that iDDS reads in this process."""
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
        """Import iDDS, repair it, make its tables and its REST application."""
        wrong = idds_repairs.wrong_versions()
        if wrong:
            raise RuntimeError(idds_repairs.self_test())
        idds_repairs.before_import()
        session = importlib.import_module("idds.orm.base.session")
        models = importlib.import_module("idds.orm.base.models")
        if problem := idds_repairs.self_test():
            raise RuntimeError(problem)
        engine = session.get_engine(echo=False)
        if engine.dialect.name == "postgresql":
            schema = importlib.import_module("sqlalchemy.schema")
            with engine.begin() as connection:
                connection.execute(schema.CreateSchema("doma_idds", if_not_exists=True))
        models.register_models(engine)
        idds_repairs.repair(self._timing)
        idds_repairs.unlock_everything()
        application = importlib.import_module("idds.rest.v1.app").create_app()
        self._adapter = _InProcessAdapter(application)

    def start(self) -> None:
        """Start the agents."""
        main = importlib.import_module("idds.agents.main")
        for name in _AGENTS:
            agent = main.load_agent(name)
            agent.daemon = True
            idds_repairs.tune(agent, self._timing)
            agent.start()
            self._agents.append(agent)

    def stop(self) -> None:
        """Ask the agents to stop; what they leave is taken up by the next
        start.
        """
        for agent in self._agents:
            agent.stop()

    def dead_agents(self) -> list[str]:
        """List agents whose thread has ended."""
        return [agent.get_name() for agent in self._agents if not agent.is_alive()]

    def client(self, user: str, *, manager: bool) -> Any:
        """Make a client of iDDS that acts for a user, as PanDA's relay does,
        or take the one that this thread has made before: to make one, files
        are read.
        """
        clients: dict[tuple[str, bool], Any] = self._clients.__dict__.setdefault("made", {})
        if (user, manager) not in clients:
            if len(clients) >= _CLIENTS:
                clients.clear()
            clients[user, manager] = self._make_client(user, manager=manager)
        return clients[user, manager]

    def forget_clients(self) -> None:
        """Have this thread make its clients anew: one was changed."""
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
        idds_repairs.settle_client(client)
        return client


_COMMANDS = ("abort", "retry", "close", "abort_task")


def decode_body(body: bytes) -> dict[str, Any]:
    """Decode the body of a request to the relay."""
    if body[:2] == b"\x1f\x8b":
        body = gzip.decompress(body)
    try:
        value = json.loads(body)
    except ValueError:
        value = {key: values[-1] for key, values in parse_qs(body.decode()).items()}
    if not isinstance(value, dict) or "command_name" not in value:
        raise ValueError("the body holds no command_name")
    return value


class IddsRelay:
    """The relay."""

    def __init__(self, host: IddsHost, faults: Faults) -> None:
        self._host = host
        self._faults = faults

    def call(self, body: dict[str, Any], identity: Identity) -> tuple[bool, Any]:
        """Send a command."""
        # "command+http://host" asks for another iDDS server: there is one.
        command = str(body["command_name"]).partition("+")[0]
        manager = str(body.get("manager", "")).lower() == "true"
        codec = importlib.import_module("idds.common.utils")
        try:
            client = self._host.client(identity.user, manager=manager)
            if command.startswith("_") or not callable(getattr(client, command, None)):
                return False, f"{command} is not a command of iDDS {type(client).__name__}"
            args = codec.json_loads(body["args"]) if body.get("args") else []
            kwargs = codec.json_loads(body["kwargs"]) if body.get("kwargs") else {}
            if str(body.get("json_outputs", "")).lower() == "true" and manager:
                client.setup_json_outputs()
                self._host.forget_clients()
            function = getattr(client, command)
            if command not in _COMMANDS:
                return True, function(*args, **kwargs)
            # A dropped command is registered, as far as the client can see.
            reply: Any = [[0, {"status": 0, "message": "Command registered successfully"}]]
            for _ in self._faults.flow("command", command, None):
                reply = function(*args, **kwargs)
            return True, reply
        except Exception as error:
            _LOG.exception("the relay could not execute %s", command)
            return False, f"failed to execute command with {error}"

    def render(self, value: Any) -> str:
        """Render a reply as JSON; objects of iDDS in iDDS's own way."""
        try:
            return json.dumps(value)
        except (TypeError, ValueError):
            return str(importlib.import_module("idds.common.utils").json_dumps(value))
