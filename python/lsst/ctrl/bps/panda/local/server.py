"""The server process: iDDS, PanDA's side, the executor and the web server, put together; and its log.

Started by `~.instance.start` through `~.launch`, ended by a signal.
"""

from __future__ import annotations

__all__ = ["PrintedLines", "Server", "listen", "main", "redirect_prints", "set_up_log"]

import faulthandler
import gc
import getpass
import io
import logging
import logging.handlers
import os
import select
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from ..version import __version__
from ..warm.pool import Pool
from . import idds_repairs
from .api import Api, FileCache
from .backups import DATABASE_FILES, IDDS_FILE, PANDA_FILE, back_up, check_files, find_backups
from .connections import make_web_server
from .database import Database, MessageQueue
from .endpoint import (
    ENDPOINT_FILE,
    EXIT_BUSY,
    LOGS_FOLDER,
    SERVER_MARKER,
    Endpoint,
    environment,
    make_private_folder,
    read_endpoint,
    start_ticks,
    token_folder,
    write_endpoint,
    write_token,
)
from .executor import Dispatcher, Executor, ExecutorSettings
from .faults import Faults
from .guard import Guard
from .idds_host import IddsHost, IddsRelay, connect
from .identity import IssuerKeys, Role, Tokens
from .jedi import Jedi
from .job_store import JobStore
from .pages import Pages
from .pilot import JobDirectories
from .processes import JOB_MARKER, MARKER, end_leftovers, is_running
from .settings import (
    Queues,
    ServerSettings,
    parse_timing,
    read_faults,
    read_queues,
    read_settings,
    take_lock,
)
from .storage import Storage
from .views import Views, list_runs
from .web import WebParts, make_application

_SIZE = 5_000_000
_FILES = 3


def set_up_log(directory: Path, level: str, *, size: int = _SIZE) -> logging.Handler:
    """Log to ``server.log``, with older messages in ``server.log.1`` and so on.

    ``level`` is that of iDDS's messages, ``size`` the largest size of a file,
    bytes.
    """
    # A message that cannot be written, because the disk is full, is left out: without this, the reason
    # is printed, what is printed is logged, and so on.
    logging.raiseExceptions = False
    handler = logging.handlers.RotatingFileHandler(
        directory / "server.log", maxBytes=size, backupCount=_FILES - 1
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(threadName)s %(name)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level)
    logging.getLogger("lsst.ctrl.bps.panda").setLevel(logging.INFO)
    # It logs at every call where its token comes from, and sets its level anew.
    logging.getLogger("panda-client").disabled = True
    logging.captureWarnings(True)
    return handler


class PrintedLines(io.TextIOBase):
    """A stream whose lines go to a logger."""

    _LONGEST = 2000

    def __init__(self, logger: logging.Logger, level: int) -> None:
        super().__init__()
        self._logger = logger
        self._level = level

    def writable(self) -> bool:
        """Whether it can be written: yes."""
        return True

    def write(self, text: str) -> int:
        """Log a text, cut to a length, unless it is blank."""
        if text.strip():
            self._logger.log(self._level, "%s", text.rstrip()[: self._LONGEST])
        return len(text)


def redirect_prints() -> None:
    """Redirect to the log what libraries print from now on.

    panda-client prints whole replies of the server, because iDDS asks it to.
    """
    logger = logging.getLogger("printed")
    sys.stdout = PrintedLines(logger, logging.DEBUG)
    sys.stderr = PrintedLines(logger, logging.WARNING)


_LOG = logging.getLogger(__name__)

_EXIT_INTERRUPTED = 130

_WATCH_PERIOD = 1.0

EXIT_REFUSED = 78
"""Exit code if something that the server needs is missing; the log says what."""


def listen(host: str, ports: tuple[int, ...]) -> socket.socket:
    """Listen on the first port that is free; 0 means any."""
    for port in ports:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            # At once: until somebody listens, another user may bind the same port, and listen first.
            listener.listen()
        except OSError:
            listener.close()
            continue
        return listener
    raise OSError(f"no free port on {host}")


class Server:
    """A running embedded PanDA.

    ``umask`` is the user's: it applies to files that jobs write, while the
    server's own files are private.
    """

    def __init__(
        self, directory: Path, settings: ServerSettings, listener: socket.socket, *, umask: int
    ) -> None:
        self._directory = directory
        self._umask = umask
        self._settings = settings
        self._listener = listener
        self._storage = Storage(directory)
        self._stop = threading.Event()
        self._due_changed = threading.Event()
        self._parts: list[Executor | IddsHost] = []
        port = listener.getsockname()[1]
        base = f"http://127.0.0.1:{port}"
        self.endpoint = Endpoint(
            url=f"{base}/server/panda",
            pid=os.getpid(),
            started=start_ticks(os.getpid()),
            version=__version__,
            directory=str(directory),
            mark=os.environ.get(SERVER_MARKER, ""),
        )
        self._base = base
        issuer = IssuerKeys(settings.issuer) if settings.issuer else None
        if issuer is not None:
            issuer.refresh()
        self._tokens = Tokens(getpass.getuser(), issuer)
        self._outside = dict(os.environ)

    def _databases(self) -> tuple[str, str]:
        chosen = self._settings.database
        if chosen:
            # iDDS takes psycopg2 for a URL without a driver; so do we.
            scheme, _, rest = chosen.partition("://")
            return chosen, f"{scheme if '+' in scheme else 'postgresql+psycopg2'}://{rest}"
        return f"sqlite:///{self._directory / IDDS_FILE}", f"sqlite:///{self._directory / PANDA_FILE}"

    def build(self) -> None:
        """Put all parts together and take up what an earlier server left; `RuntimeError` says what to
        install.
        """
        settings, directory = self._settings, self._directory
        self._storage.require()
        files = [] if settings.database else [directory / name for name in DATABASE_FILES]
        if files:
            check_files(directory)
            back_up(directory)
        mark = f"{SERVER_MARKER}={self.endpoint.mark}" if self.endpoint.mark else f"{MARKER}={directory}"
        self._guard = Guard(mark)
        self._guard.keep()
        self._timing = parse_timing(settings.pace)
        self._queues = read_queues(settings.queues) if settings.queues else Queues()
        self._faults = Faults(read_faults(settings.faults) if settings.faults else ())
        for name in ("cache", "idds", LOGS_FOLDER, "work"):
            make_private_folder(directory / name)
        idds_url, panda_url = self._databases()
        self._host = IddsHost(
            directory / "idds",
            database=idds_url,
            timing=self._timing,
            loglevel=settings.loglevel,
            storage=self._storage,
        )
        self._set_environment()
        self._host.prepare()
        self._database = Database(panda_url, self._storage)
        message_queue = MessageQueue(self._database, time.time)
        store = JobStore(self._database, message_queue, clock=time.time, wake=self._wake_executor)
        self._jedi = Jedi(
            self._database,
            message_queue,
            store,
            timing=self._timing,
            clock=time.time,
            wake=self._due_changed.set,
        )
        self._dispatcher = Dispatcher(
            self._database,
            self._jedi,
            queues=self._queues,
            clock=time.time,
            task_walltime=self._timing.task_walltime,
        )
        self._job_directories = JobDirectories(
            directory / LOGS_FOLDER, directory / "work", f"{self._base}/logs"
        )
        self._executor = self._make_executor()
        if files and not find_backups(directory):
            # From now on it is known that there were databases.
            back_up(directory)
        self._storage.watch(files)
        connect(self._jedi, message_queue, self._faults)
        idds_repairs.offer_task_lookup(self._jedi.submitted)
        self._make_web()
        before = read_endpoint(directory)
        killed = end_leftovers(directory, dead_server=before.mark if before else "")
        lost = self._jedi.recover(time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()))
        replayed = message_queue.replay()
        _LOG.info("ended %d processes, %d lost jobs, %d messages again", killed, lost, replayed)

    def _set_environment(self) -> None:
        """Set the variables that iDDS and panda-client read in this process."""
        for variable, value in {**environment(self.endpoint), **self._host.environment()}.items():
            if value:
                os.environ[variable] = value
            else:
                os.environ.pop(variable, None)
        # The agents in this process call PanDA with a token of their own.
        write_token(Path(os.environ["PANDA_CONFIG_ROOT"]), self._tokens.issue(Role.AGENT))
        # Here iDDS is the server.
        os.environ.pop("IDDS_CLIENT_MODE", None)

    def _variables(self) -> dict[str, str]:
        """Return the variables of the processes that are started: where this server is, and our marks."""
        variables = {name: value for name, value in environment(self.endpoint).items() if value}
        return {**variables, MARKER: str(self._directory), SERVER_MARKER: self.endpoint.mark}

    def _make_executor(self) -> Executor:
        settings = ExecutorSettings(
            slots=self._settings.slots or len(os.sched_getaffinity(0)),
            directories=self._job_directories,
            environment=self._outside,
            path=str(Path(sys.executable).parent),
            extra=self._variables(),
            keep_work=self._settings.keep_work,
            umask=self._umask,
            version=__version__,
            pool=self._make_pool() if self._settings.warm_workers else None,
        )
        return Executor(
            self._dispatcher, settings, timing=self._timing, faults=self._faults, storage=self._storage
        )

    def _make_pool(self) -> Pool:
        marks = {MARKER: str(self._directory), SERVER_MARKER: self.endpoint.mark}
        return Pool(
            self._directory / "warm",
            [name.strip() for name in self._settings.warm_scripts.split(",") if name.strip()],
            folder=str(Path(sys.executable).parent),
            marks=marks,
            mark_names=[*marks, JOB_MARKER],
        )

    def _make_web(self) -> None:
        views = Views(self._database, self._storage)
        # The pages start bps, which looks for its programs there.
        path = os.pathsep.join([str(Path(sys.executable).parent), self._outside.get("PATH") or os.defpath])
        parts = WebParts(
            api=Api(self._jedi, views, queues=self._queues, timing=self._timing, faults=self._faults),
            relay=IddsRelay(self._host, self._faults, self._storage),
            cache=FileCache(self._directory / "cache"),
            logs=self._job_directories.logs,
            tokens=self._tokens,
            faults=self._faults,
            status=self.status,
            port=self._listener.getsockname()[1],
            pages=Pages(self._directory, {**self._outside, **self._variables(), "PATH": path}),
        )
        self._web = make_web_server(make_application(parts), parts, self._listener)

    def _wake_executor(self) -> None:
        self._executor.wake()

    def status(self) -> dict[str, Any]:
        """Return what ``panda_local status`` shows."""
        value = {
            "pid": os.getpid(),
            "version": __version__,
            "url": self.endpoint.url,
            "slots": self._executor.slots,
            "slots_used": self._executor.slots_used,
            "reports_waiting": self._executor.reports_waiting,
            "warm": self._executor.warm,
            "dead_agents": self._host.dead_agents(),
            "pace": self._settings.pace,
            "database": "PostgreSQL" if self._settings.database else "SQLite",
            "jobs": {},
            "open_tasks": None,
            "runs": [],
        }
        try:
            value.update(jobs=self._dispatcher.counts(), open_tasks=self._dispatcher.open_tasks())
            value["runs"] = [asdict(run) for run in list_runs(self._database, self._host.run_names)]
        except Exception as error:
            if not self._storage.note(error):
                raise
        trouble = self._storage.look()
        return {**value, "trouble": None if trouble is None else asdict(trouble)}

    def start(self) -> None:
        """Start all threads, then write the file with the server's address."""
        threads = (("web", self._web.run), ("tick", self._tick_for_ever), ("watch", self._watch_for_ever))
        for name, target in threads:
            threading.Thread(target=target, name=name, daemon=True).start()
        self._host.start()
        # What exists now stays: the garbage collector need not search it.  iDDS makes many objects of each
        # text that it reads, which end without the collector: Python's 700 means hundreds of searches a run.
        gc.freeze()
        gc.set_threshold(10_000)
        gc.enable()
        write_token(token_folder(self._directory), self._tokens.issue(Role.OWNER))
        # Before any job starts, so that processes left by a kill can be found.
        write_endpoint(self.endpoint)
        self._parts = [self._executor, self._host]
        self._executor.start()

    def _tick_for_ever(self) -> None:
        while not self._stop.is_set():
            # Cleared first, so that what becomes due from now on sets it again.
            self._due_changed.clear()
            try:
                due = self._jedi.tick()
            except Exception as error:
                if not self._storage.note(error):
                    _LOG.exception("could not execute what is due")
                due = time.time() + 1
            self._due_changed.wait(None if due is None else max(due - time.time(), 0.01))

    def _watch_for_ever(self) -> None:
        """Watch storage and guard, and have all go on when a trouble has ended."""
        while not self._stop.wait(_WATCH_PERIOD):
            try:
                if self._guard.keep():
                    _LOG.warning("the guard had ended; another one is started")
                if self._storage.check():
                    self._due_changed.set()
                    self._executor.wake()
            except Exception:
                _LOG.exception("could not watch storage and guard")

    def catch_signals(self) -> None:
        """Let signals end `wait`, and SIGUSR1 print the stacks of all threads.

        A signal may be delivered to any thread, which does not wake the main
        thread, and a handler may run where the main thread holds a lock: so
        the interpreter itself writes to a pipe at once.
        """
        self._signalled, heard = os.pipe()
        os.set_blocking(heard, False)
        signal.set_wakeup_fd(heard)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        # Into server.out, as the last words of an interpreter that crashes.
        faulthandler.enable(2)
        faulthandler.register(signal.SIGUSR1, 2)

    def wait(self) -> int:
        """Wait for a signal or the end of the parent process; returns 130 after Ctrl-C, else 0."""
        parent = self._find_parent()
        while not select.select([self._signalled], [], [], 1.0 if self._settings.parent else None)[0]:
            if parent is None or not is_running(parent):
                _LOG.info("process %d has ended: so do we", self._settings.parent)
                return 0
        number = os.read(self._signalled, 1)[0]
        _LOG.info("signal %d", number)
        return _EXIT_INTERRUPTED if number == signal.SIGINT else 0

    def _find_parent(self) -> psutil.Process | None:
        try:
            return psutil.Process(self._settings.parent) if self._settings.parent else None
        except psutil.Error:
            return None

    def stop(self) -> None:
        """End payloads and threads; the rest ends with the process."""
        self._stop.set()
        self._due_changed.set()
        for part in self._parts:
            part.stop()
        end_leftovers(self._directory)
        (self._directory / ENDPOINT_FILE).unlink(missing_ok=True)
        write_token(token_folder(self._directory), None)


def main(arguments: list[str]) -> int:
    """Run the server of a state directory, the only argument, until it is told to stop."""
    directory = Path(arguments[0])
    umask_of_user = os.umask(0o077)
    lock = take_lock(directory, patience=1.0)
    if lock is None:
        return EXIT_BUSY
    settings = read_settings(directory).checked()
    set_up_log(directory, settings.loglevel)
    listener = listen(settings.host, (settings.port, 0))
    server = Server(directory, settings, listener, umask=umask_of_user)
    server.catch_signals()
    terminal, errors = sys.stdout, sys.stderr
    redirect_prints()
    try:
        server.build()
        server.start()
    except Exception as error:
        _LOG.exception("could not start")
        errors.write(f"{error}\n")
        code = EXIT_REFUSED
    else:
        _LOG.info("ready at %s", server.endpoint.url)
        if terminal.isatty():
            terminal.write(f"ready at {server.endpoint.url}\n")
            terminal.flush()
        code = server.wait()
    server.stop()
    _LOG.info("stopped")
    errors.flush()
    logging.shutdown()
    # Agents of iDDS may hang in a sleep of minutes; nothing is lost by not
    # waiting for them.
    os._exit(code)
