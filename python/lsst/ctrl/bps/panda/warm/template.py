"""The template: a Python that has imported what console scripts need, and forks for each job.

Run as a file by the interpreter of the scripts, with a socket to its owner as standard input; standard
library only, of Python 3.9 and later.  It forks a *job root* for each job, which starts the job's shell in a
session of its own and is the template of that one job: at the request of ``client.py`` it forks a process
that runs a script's file as its interpreter would.  What is doubtful is refused, and the client starts the
script itself.
"""

from __future__ import annotations

__all__ = ["BASIC", "FORCED", "READ_BY_C", "Template", "find_interpreter", "receive_bytes", "send"]

import os
import sys

# Before anything else is imported: modules may keep these functions.
_urandom, _getpid = os.urandom, os.getpid
_watch: dict[str, object] = {"on": False}

# A key that is made anew in each process (`_freshen`), and names of options within a process.
_MAY_DRAW = frozenset(("multiprocessing.process", "lsst.daf.butler.cli.utils"))


def urandom(size: int) -> bytes:
    """Return random bytes; noted, as a number drawn at import would be the same in all processes."""
    if _watch["on"]:
        caller = sys._getframe(1)
        names = (caller.f_globals.get("__name__"), caller.f_back and caller.f_back.f_globals.get("__name__"))
        if _MAY_DRAW.isdisjoint(names):
            note("it draws random numbers")
    return _urandom(size)


def getpid() -> int:
    """Return the process id; noted, as one that is kept at import would be wrong."""
    if _watch["on"]:
        note("it asks for its process id")
    return _getpid()


if __name__ == "__main__":
    os.urandom, os.getpid = urandom, getpid

import array
import ast
import atexit
import ctypes
import fcntl
import gc
import importlib
import io
import json
import logging
import random
import re
import resource
import select
import signal
import socket
import threading
import time
import types
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from typing import Any

READ_BY_C = re.compile(
    r"PYTHON|LD_|LC_|LANG|TZ|MALLOC|GLIBC_TUNABLES|OMP_|KMP_|OPENBLAS|GOTO|BLIS|MKL|VECLIB|NUMEXPR|JE_|HDF5_"
    r"|ARROW_|CUDA_|NETWORKX_|\w+_MALLOC_CONF$"
)
"""Variables that are read by other means than `os.environ`, and so always matter to imports."""

BASIC = re.compile("HOME|PATH|USER|LOGNAME")
"""Further variables that a template gets."""

FORCED = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""Variables without which libraries start threads when they are imported."""

WHOLE_ENVIRONMENT = "it reads all variables"

_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|PRIVATE|COOKIE", re.IGNORECASE)
_SHEBANG = re.compile(rb"#! *(/\S+)(?: (\S+))?\n")
_LONG_SHEBANG = re.compile(rb"""#! */bin/sh\n'''exec' "?([^"\n]+?)"? "\$0" "\$@"\n""")
_PASSED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
_REFUSED_ARGUMENTS = ("--enable-implicit-threading", "-@", "--config-file")
_SAME = (
    "Uid",
    "Gid",
    "Groups",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "NStgid",
)
_NAMESPACES = ("root", "ns/mnt", "ns/net", "ns/user", "ns/pid", "ns/ipc", "ns/uts")


# -- What imports do ----------------------------------------------------------------------------------------


class Impure(BaseException):
    """A module that is not imported here is needed.

    No `Exception`, so that nothing goes on without it.
    """


_read_names: set[str] = set()
_read_files: set[str] = set()
_notes: list[str] = []
_CHANGES = (
    "os.", "subprocess.", "socket.connect", "socket.bind", "shutil.", "tempfile.", "sqlite3.connect",
)  # fmt: skip
_HARMLESS = frozenset(
    ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.listxattr", "os.getxattr", "os.add_dll_directory")
)


def note(what: str) -> None:
    """Note what a module does at its import that has to be done in each process."""
    _notes.append(what)


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watch["on"]:
        return
    if event == "open":
        path, mode, flags = arguments
        if isinstance(path, (str, bytes, os.PathLike)):
            name = os.fsdecode(path)
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                # Compiled modules are written by importlib; what matters is in their sources.
                if "__pycache__" not in name and name != os.devnull:
                    note(f"it writes {name}")
            else:
                _read_files.add(os.path.abspath(name))
    elif event.startswith(_CHANGES) and event not in _HARMLESS:
        if event in ("os.mkdir", "os.rename", "os.remove") and "__pycache__" in str(arguments[0]):
            return
        note(f"it calls {event}")


class _Watched(type(os.environ)):  # type: ignore[misc]
    """The environment, which notes what is read."""

    def __getitem__(self, key: str) -> str:
        # Not what `items` reads, see below.
        if sys._getframe(1).f_code.co_name != "__iter__":
            _read_names.add(key)
        return str(super().__getitem__(key))

    def __iter__(self) -> Iterator[str]:
        frame = sys._getframe(1)
        while frame.f_back and frame.f_globals.get("__name__") in (
            "os",
            "_collections_abc",
            "collections.abc",
        ):
            frame = frame.f_back
        # It looks for its own variables, which are in READ_BY_C.
        if not str(frame.f_globals.get("__name__")).startswith("networkx."):
            note(WHOLE_ENVIRONMENT)
        return iter(super().__iter__())


def _state() -> dict[str, object]:
    """Return what a module may change in the whole process."""
    numpy = sys.modules.get("numpy.random")
    root = logging.getLogger()
    mask = os.umask(0)
    os.umask(mask)
    return {
        "threads": sorted(os.listdir("/proc/self/task")),
        "open files": _open_files(),
        "child processes": _children(),
        "the working directory": os.getcwd(),
        "the umask": mask,
        "signal handlers": [signal.getsignal(number) for number in range(1, 32)],
        "standard streams": (sys.stdin, sys.stdout, sys.stderr),
        "hooks": (sys.excepthook, sys.displayhook, sys.unraisablehook),
        "the recursion limit": sys.getrecursionlimit(),
        "loggers": (root.level, tuple(root.handlers), logging.root.manager.disable, logging.getLoggerClass()),
        "random numbers": random.getstate(),
        "numpy's random numbers": str(numpy.get_state()[1:3]) if numpy else "",
        "limits": [resource.getrlimit(number) for number in range(16)],
    }


def _open_files() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if not target.startswith("/proc/"):
            found.append(f"{name} {target}")
    return sorted(found)


def _children() -> str:
    with open(f"/proc/self/task/{_getpid()}/children") as stream:
        return stream.read()


class _Blocker:
    """Finds the modules that are not imported here, and says so."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Refuse a module."""
        if name in self._names:
            note(f"it imports {name}")
            raise Impure(name)


_SINGLETONS = ("lsst.daf.butler.StorageClassFactory",)
"""Classes with one object in each process, which they make of files that come with their module."""


def _make(name: str) -> object:
    """Import a module, or make a singleton if its module is imported."""
    if name not in _SINGLETONS:
        return importlib.import_module(name)
    module, _, kind = name.rpartition(".")
    return getattr(sys.modules[module], kind)() if module in sys.modules else None


def try_import(name: str) -> str:
    """Import a module, or make a singleton; returns what it does that has to be done in each process, if
    anything.
    """
    before = _state()
    _notes.clear()
    _watch["on"] = True
    try:
        _make(name)
    except (Exception, Impure, SystemExit) as error:
        _watch["on"] = False
        return _notes[0] if _notes else f"{type(error).__name__}: {error}"[:200]
    finally:
        _watch["on"] = False
    if _notes:
        return _notes[0]
    after = _state()
    # numpy's and Python's own generators are new with the module that holds them.
    return next(
        (f"it changes {key}" for key, value in after.items() if before[key] != value and before[key] != ""),
        "",
    )


# -- Messages -----------------------------------------------------------------------------------------------


def send(connection: socket.socket, message: object, descriptors: tuple[int, ...] = ()) -> None:
    """Send a message, with descriptors."""
    text = json.dumps(message).encode()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    connection.sendmsg([b"M"], rights)
    connection.sendall(len(text).to_bytes(4, "big") + text)


def receive_bytes(connection: socket.socket) -> tuple[bytes, list[int]]:
    """Receive a message and its descriptors; `EOFError` at the end."""
    first, rights, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(64))
    descriptors = array.array("i")
    for _, _, data in rights:
        descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    try:
        if not first:
            raise EOFError
        text = _exactly(connection, int.from_bytes(_exactly(connection, 4), "big"))
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return text, list(descriptors)


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = connection.recv(min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


# -- Scripts ------------------------------------------------------------------------------------------------


def find_interpreter(script: str) -> list[str]:
    """Return the command that runs a script's interpreter; empty if that cannot be told."""
    try:
        with open(script, "rb") as stream:
            start = stream.read(1024)
    except OSError:
        return []
    if match := _LONG_SHEBANG.match(start):
        return [os.fsdecode(match.group(1))]
    match = _SHEBANG.match(start)
    if not match or not os.path.basename(match.group(1)).startswith(b"python"):
        return []
    return [os.fsdecode(word) for word in match.groups() if word]


def _imports_of(tree: ast.Module) -> list[str]:
    names = []
    for node in tree.body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
    return names


class Template:
    """What has been imported, and how a later call is found to fit."""

    def __init__(self, owner: socket.socket) -> None:
        self._owner = owner
        self.scripts: dict[str, types.CodeType] = {}
        self.names: set[str] = set()
        self.environment: dict[str, str] = {}
        self.marks: list[str] = []
        self.folder = ""
        self._begun = time.time_ns()
        self.changes: dict[str, str | None] = {}
        self._files: dict[str, tuple[int, int, int]] = {}
        self._folders: dict[str, tuple[int, frozenset[str]]] = {}

    def load(self) -> dict[str, Any]:
        """Import what the owner asks for; returns what is told to it."""
        order = json.loads(receive_bytes(self._owner)[0])
        self.marks, self.folder = order["marks"], order["folder"]
        self.environment = dict(os.environ)
        folder = os.path.dirname(os.path.realpath(order["scripts"][0]))
        if not getattr(sys.flags, "safe_path", False):
            sys.path[0] = folder
        # Editable installations put the name of a hook there.
        if any(not os.path.isabs(path) and not path.startswith("__editable__") for path in sys.path):
            return {"broken": f"a folder of sys.path is relative: {sys.path}"}
        blocker = _Blocker(frozenset(order["excluded"]))
        sys.meta_path.insert(0, blocker)
        os.environ.__class__ = _Watched
        sys.addaudithook(_hear)
        for path in order["scripts"]:
            if problem := self._load_script(path):
                return {"broken": problem}
        impure = {}
        for name in (*order["modules"], *_SINGLETONS):
            known = name in sys.modules or name in order["excluded"]
            if not known and (problem := try_import(name)):
                impure[name] = problem
        if impure:
            return {"impure": impure}
        sys.meta_path.remove(blocker)
        os.environ.__class__ = _Watched.__bases__[0]
        self._note_files()
        after = dict(os.environ)
        for name in {**self.environment, **after}:
            if self.environment.get(name) != after.get(name):
                self.changes[name] = after.get(name)
        self.names = _read_names | set(self.changes) | {name for name in after if READ_BY_C.match(name)}
        return {"ready": sorted(self.names)}

    def _load_script(self, path: str) -> str:
        """Compile a script and import what it needs; returns what is wrong with it, if anything."""
        with open(path, "rb") as stream:
            tree = ast.parse(stream.read(), path)
        self.scripts[path] = compile(tree, path, "exec", dont_inherit=True)
        _read_files.add(path)
        for name in _imports_of(tree):
            files = _open_files()
            problem = try_import(name)
            if name not in sys.modules or len(os.listdir("/proc/self/task")) > 1:
                return f"{path} imports {name}: {problem}"
            if _open_files() != files:
                return f"{path} imports {name}, which leaves files open"
            if WHOLE_ENVIRONMENT in _notes:
                return f"{path} imports {name}, which reads all variables"
        return ""

    def _note_files(self) -> None:
        files = set(_read_files)
        for module in list(sys.modules.values()):
            path = getattr(module, "__file__", None)
            if isinstance(path, str):
                files.add(path)
        with open("/proc/self/maps") as stream:
            files |= {line.split(None, 5)[5].rstrip("\n") for line in stream if "/" in line}
        for path in files:
            if (
                not path.endswith(".pyc")
                and not path.startswith(("/proc/", "/sys/", "/dev/"))
                and os.path.isfile(path)
            ):
                self._files[path] = _stamp(path)
        self._recent = next(
            (path for path, stamp in self._files.items() if stamp[0] >= self._begun - _GRAIN), ""
        )
        folders = {path for path in sys.path if os.path.isdir(path)}
        for module in list(sys.modules.values()):
            try:
                folders |= {path for path in getattr(module, "__path__", ()) if os.path.isdir(path)}
            except Exception:
                continue
        for path in folders:
            self._folders[path] = (os.stat(path).st_mtime_ns, _importable(path))

    def changed_file(self) -> str:
        """Return a file that has changed since this process was started, if one has."""
        if self._recent:
            return self._recent
        for path, stamp in self._files.items():
            try:
                if _stamp(path) != stamp:
                    return path
            except OSError:
                return path
        for path, (when, names) in self._folders.items():
            try:
                if os.stat(path).st_mtime_ns != when and _importable(path) != names:
                    return path
            except OSError:
                return path
        return ""

    def differing_name(self, environment: dict[str, str]) -> str:
        """Return a variable that matters to imports and has another value here, if one has."""
        environment = self._without_client(environment)
        for name in sorted(self.names | {name for name in environment if READ_BY_C.match(name)}):
            if environment.get(name, FORCED.get(name)) != self.environment.get(name):
                return name
        return ""

    def wish(self, script: str, environment: dict[str, str]) -> dict[str, Any] | None:
        """Describe the template that a call would have needed."""
        interpreter = find_interpreter(script)
        if not interpreter:
            return None
        environment = self._without_client(environment)
        names = self.names | {name for name in environment if BASIC.fullmatch(name) or READ_BY_C.match(name)}
        kept = {name: environment[name] for name in names if name in environment and not _SECRET.search(name)}
        return {"interpreter": interpreter, "folder": os.path.dirname(script), "environment": kept}

    def _without_client(self, environment: dict[str, str]) -> dict[str, str]:
        path = [folder for folder in environment.get("PATH", "").split(":") if folder != self.folder]
        return {**environment, "PATH": ":".join(path)} if "PATH" in environment else environment

    def serve(self) -> JobRoot | None:
        """Fork for each job; returns in a forked process, or at the owner's end."""
        signal.signal(signal.SIGCHLD, _collect)
        while True:
            try:
                _, descriptors = receive_bytes(self._owner)
            except (EOFError, OSError):
                return None
            if len(os.listdir("/proc/self/task")) > 1 or (pid := os.fork()):
                for descriptor in descriptors:
                    os.close(descriptor)
                continue
            assert not pid
            self._owner.close()
            return JobRoot(self, descriptors)


_GRAIN = 50_000_000
"""Nanoseconds by which a file's time may be behind the clock."""


def _stamp(path: str) -> tuple[int, int, int]:
    status = os.stat(path)
    return status.st_ctime_ns, status.st_ino, status.st_size


def _collect(*_: object) -> None:
    """Collect the roots that have ended, and so their CPU."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _importable(folder: str) -> frozenset[str]:
    """List what may be imported from a folder."""
    ends = (".py", ".so", ".pth", ".zip", ".egg", ".egg-link")
    with os.scandir(folder) as entries:
        return frozenset(
            entry.name
            for entry in entries
            if entry.name.endswith(ends)
            or ("." not in entry.name and entry.name != "__pycache__" and entry.is_dir())
        )


# -- A job --------------------------------------------------------------------------------------------------


class Call:
    """A call of a script in a job."""

    def __init__(self, connection: socket.socket, pid: int, pipe: int) -> None:
        self.connection = connection
        self.pid = pid
        self.pipe = pipe
        self.modules = b""


class Script:
    """What a forked process has to run."""

    def __init__(
        self, code: types.CodeType, path: str, arguments: list[str], pipe: int, known: frozenset[str]
    ) -> None:
        self.code = code
        self.path = path
        self.arguments = arguments
        self.pipe = pipe
        self.known = known


class ColdStartError(Exception):
    """A reason for which a call has to start cold."""


class JobRoot:
    """The leader of a job's session: starts its shell, and processes for the scripts called in it."""

    def __init__(self, template: Template, descriptors: list[int]) -> None:
        self._template = template
        self._order: dict[str, Any] = {}
        self._report = socket.socket(fileno=descriptors[0])
        self._streams = descriptors[1:]
        self._calls: dict[int, Call] = {}
        self._shell = 0
        self._hits = 0
        self._cold: list[str] = []
        self._modules: list[str] = []
        self._wish: dict[str, Any] | None = None

    def run(self) -> Script | None:
        """Run the job; returns in a process that has to run a script."""
        try:
            self._begin()
            send(self._report, {"pid": _getpid()})
            # Whoever waits no longer has closed the connection, and starts the job in another way.
            if not self._report.recv(1):
                os._exit(1)
            self._start_shell()
        except Exception as error:
            send(self._report, {"refused": f"{type(error).__name__}: {error}"[:200]})
            os._exit(1)
        while True:
            script = self._once()
            if script is not None:
                return script

    def _begin(self) -> None:
        # Not read by the template, which would pass what is left of it in its memory on to other jobs.
        self._order = order = json.loads(receive_bytes(self._report)[0])
        os.setsid()
        heard, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._heard = heard
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (*_PASSED, signal.SIGALRM, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        os.umask(order["umask"])
        os.chdir(order["directory"])
        environment = order["environment"]
        os.environ.clear()
        os.environ.update(environment)
        mark_process([f"{name}={environment[name]}" for name in self._template.marks if name in environment])
        folder, _, name = environment["PANDA_LOCAL_WARM"].rpartition("/")
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        self._listener.bind(f"/proc/self/fd/{directory}/{name}")
        os.umask(before)
        os.close(directory)
        self._listener.listen()
        self._poll = select.poll()
        for descriptor in (heard, self._listener.fileno(), self._report.fileno()):
            self._poll.register(descriptor, select.POLLIN)

    def _start_shell(self) -> None:
        null = os.open(os.devnull, os.O_RDWR)
        numbers = [number for number in range(1, 65) if number not in (9, 19, 32, 33)]
        actions = [
            (os.POSIX_SPAWN_DUP2, source, target) for target, source in enumerate((null, *self._streams))
        ]
        self._shell = os.posix_spawn(
            self._order["program"],
            self._order["arguments"],
            self._order["environment"],
            file_actions=actions,
            setpgroup=0,
            setsigmask=[],
            setsigdef=numbers,
        )
        for descriptor in (null, *self._streams):
            os.close(descriptor)

    def _once(self) -> Script | None:
        for descriptor, _ in self._poll.poll():
            if descriptor == self._heard:
                try:
                    os.read(self._heard, 4096)
                except BlockingIOError:
                    pass
                self._reap()
            elif descriptor == self._listener.fileno():
                script = self._accept()
                if script is not None:
                    return script
            elif descriptor == self._report.fileno():
                # Whoever started this job has ended: so does the job.
                self._kill_all()
                os._exit(1)
            elif descriptor in self._calls:
                self._hear(self._calls[descriptor])
        return None

    def _hear(self, call: Call) -> None:
        """Pass signals on to a called process; the end of the client ends it."""
        try:
            numbers = call.connection.recv(64)
        except OSError:
            numbers = b""
        for number in numbers or bytes([signal.SIGKILL]):
            _kill_group(call.pid, number)
        if not numbers:
            self._poll.unregister(call.connection.fileno())

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid == self._shell:
                self._end(status)
            for call in [call for call in self._calls.values() if call.pid == pid]:
                self._end_call(call, status)

    def _end_call(self, call: Call, status: int) -> None:
        code, number = (0, os.WTERMSIG(status)) if os.WIFSIGNALED(status) else (os.WEXITSTATUS(status), 0)
        self._calls = {key: other for key, other in self._calls.items() if other is not call}
        with os.fdopen(call.pipe, "rb") as stream:
            os.set_blocking(call.pipe, False)
            text = stream.read() or b""
        if text and not status:
            self._modules += [name for name in text.decode().split() if name not in self._modules]
        try:
            self._poll.unregister(call.connection.fileno())
        except KeyError:
            pass
        try:
            call.connection.send(bytes([code, number]))
        except OSError:
            pass
        call.connection.close()

    def _kill_all(self) -> None:
        _kill_group(self._shell, signal.SIGKILL)
        for call in self._calls.values():
            _kill_group(call.pid, signal.SIGKILL)

    def _end(self, status: int) -> None:
        """Report the end of the shell, and end with it."""
        for call in self._calls.values():
            _kill_group(call.pid, signal.SIGKILL)
            os.waitpid(call.pid, 0)
        uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        report = {
            "status": status,
            "cpu": sum(use.ru_utime + use.ru_stime for use in uses),
            "hits": self._hits,
            "cold": self._cold,
            "modules": self._modules,
            "wish": self._wish,
        }
        try:
            send(self._report, report)
            os.unlink(self._order["environment"]["PANDA_LOCAL_WARM"])
        except OSError:
            pass
        os._exit(0)

    # -- Calls of scripts ---------------------------------------------------

    def _accept(self) -> Script | None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return None
        descriptors: list[int] = []
        try:
            connection.settimeout(5)
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            client, user, _ = array.array("i", credentials)
            if user != os.geteuid():
                raise ColdStartError("another user asked")
            text, descriptors = receive_bytes(connection)
            connection.settimeout(None)
            script = self._fork(connection, client, text, descriptors)
            if script is not None:
                return script
        except (Exception, ColdStartError) as error:
            self._cold.append(
                str(error) if isinstance(error, ColdStartError) else f"{type(error).__name__}: {error}"[:200]
            )
            try:
                connection.send(b"C")
            except OSError:
                pass
            connection.close()
        for descriptor in descriptors:
            os.close(descriptor)
        return None

    def _fork(
        self, connection: socket.socket, client: int, text: bytes, descriptors: list[int]
    ) -> Script | None:
        words = [os.fsdecode(word) for word in text.split(b"\0")]
        if not words[0]:
            raise ColdStartError(words[1])
        path, count = words[0], int(words[1])
        arguments = words[2 : 2 + count]
        environment = dict(word.split("=", 1) for word in words[2 + count :])
        self._check(client, path, arguments, environment)
        heard, told = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                connection.close()
                os.close(heard)
                self._become(client, environment, descriptors)
                os.write(told, b"\n")
                code = self._template.scripts[path]
                return Script(code, path, arguments, told, frozenset(sys.modules))
            except BaseException:
                os._exit(1)
        os.close(told)
        if not os.read(heard, 1):
            os.close(heard)
            os.waitpid(pid, 0)
            raise ColdStartError("the process could not be set up")
        self._hits += 1
        connection.send(b"W")
        self._calls[connection.fileno()] = Call(connection, pid, heard)
        self._poll.register(connection.fileno(), select.POLLIN)
        return None

    def _check(self, client: int, path: str, arguments: list[str], environment: dict[str, str]) -> None:
        """Raise `ColdStartError` if there is a reason for which a call has to start cold."""
        template = self._template
        if os.getsid(client) != os.getsid(0):
            raise ColdStartError("it has a session of its own")
        if path not in template.scripts:
            self._wish = template.wish(path, environment)
            raise ColdStartError(f"no template for {path}")
        if name := template.differing_name(environment):
            self._wish = template.wish(path, environment)
            raise ColdStartError(f"{name} has another value than in the template")
        if any(argument.startswith(_REFUSED_ARGUMENTS) for argument in arguments):
            raise ColdStartError("an option that may need threads")
        if any(os.access(f"{folder}/prmon", os.X_OK) for folder in environment.get("PATH", "").split(":")):
            raise ColdStartError("prmon would not see it")
        if reason := _differing_process(client):
            raise ColdStartError(f"{reason} of the process is another one")
        if changed := template.changed_file():
            raise ColdStartError(f"{changed} has changed")
        if len(os.listdir("/proc/self/task")) > 1:
            raise ColdStartError("there are threads")

    def _become(self, client: int, environment: dict[str, str], descriptors: list[int]) -> None:
        """Take over what the client got from its caller."""
        signal.set_wakeup_fd(-1)
        status = _read_status("self", client)
        for call in self._calls.values():
            call.connection.close()
            os.close(call.pipe)
        self._listener.close()
        self._report.close()
        os.close(self._heard)
        os.setpgid(0, 0)
        _die_with_parent()
        for target, source in enumerate(descriptors[:3]):
            os.dup2(source, target)
        os.fchdir(descriptors[3])
        for descriptor in descriptors:
            os.close(descriptor)
        os.umask(int(status["Umask"], 8))
        for number in range(16):
            limit = resource.prlimit(client, number)
            if limit != resource.getrlimit(number):
                resource.setrlimit(number, limit)
        nice = os.getpriority(os.PRIO_PROCESS, client)
        if nice != os.getpriority(os.PRIO_PROCESS, 0):
            os.setpriority(os.PRIO_PROCESS, 0, nice)
        os.sched_setaffinity(0, os.sched_getaffinity(client))
        ignored, blocked = int(status["SigIgn"], 16), int(status["SigBlk"], 16)
        for number in (*_PASSED, signal.SIGALRM, signal.SIGCHLD):
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, signal.SIG_IGN if ignored >> (number - 1) & 1 else default)
        signal.pthread_sigmask(signal.SIG_SETMASK, [n for n in range(1, 65) if blocked >> (n - 1) & 1])
        os.environ.clear()
        os.environ.update(environment)
        for name, value in self._template.changes.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _kill_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except OSError:
        pass


def _read_status(*pids: int | str) -> dict[str, str]:
    """Read the status of the last of some processes."""
    with open(f"/proc/{pids[-1]}/status") as stream:
        return {key: value.strip() for key, _, value in (line.partition(":") for line in stream)}


def _differing_process(client: int) -> str:
    """Return what a client has that is not inherited from its job's root, if anything."""
    ours, theirs = _read_status("self"), _read_status(client)
    for name in _SAME:
        if name == "NStgid":
            if len(ours.get(name, "").split()) != len(theirs.get(name, "").split()):
                return name
        elif ours.get(name) != theirs.get(name):
            return name
    for name in _NAMESPACES:
        if os.readlink(f"/proc/self/{name}") != os.readlink(f"/proc/{client}/{name}"):
            return name
    with open("/proc/self/cgroup") as own, open(f"/proc/{client}/cgroup") as other:
        if own.read() != other.read():
            return "cgroup"
    if os.sched_getscheduler(0) != os.sched_getscheduler(client):
        return "scheduler"
    return ""


def _die_with_parent() -> None:
    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def mark_process(marks: list[str]) -> None:
    """Let /proc show some variables, by which the processes of a job are found, as our environment.

    It shows what lies where the first environment was put; nothing else uses that any more.
    """
    with open("/proc/self/stat") as stream:
        start, end = (int(word) for word in stream.read().rpartition(")")[2].split()[47:49])
    text = b"".join(os.fsencode(mark) + b"\0" for mark in marks)
    if len(text) > end - start:
        raise ValueError("no room for the marks of the job")
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, text, len(text))


# -- A called script ----------------------------------------------------------------------------------------


def _freshen(script: Script) -> None:
    """Make new what each process has of its own."""
    os.urandom, os.getpid = _urandom, _getpid
    gc.enable()
    sys.argv = [script.path, *script.arguments]
    if hasattr(sys, "orig_argv"):
        sys.orig_argv[:] = [sys.executable, *sys.argv]
    streams: tuple[Any, ...] = (sys.stdout, sys.stderr)
    for stream in streams:
        stream.reconfigure(line_buffering=stream is sys.stderr or stream.isatty())
    time.tzset()
    now = time.time_ns() if sys.version_info >= (3, 13) else time.time()
    logging._startTime = now  # type: ignore[attr-defined]
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    if "tempfile" in sys.modules:
        sys.modules["tempfile"].__dict__["tempdir"] = None
    if "multiprocessing.process" in sys.modules:
        process = sys.modules["multiprocessing.process"]
        process.current_process().authkey = _urandom(32)
    try:
        with open("/proc/self/comm", "w") as stream:
            stream.write(os.path.basename(script.path)[:15])
    except OSError:
        pass


def run(script: Script) -> None:
    """Run a script as its interpreter would, and end."""
    _freshen(script)
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=script.path, __builtins__=sys.modules["builtins"], __cached__=None)
    main.__loader__ = SourceFileLoader("__main__", script.path)
    sys.modules["__main__"] = main
    code: object = 0
    try:
        exec(script.code, main.__dict__)
    except SystemExit as error:
        code = error.code
    except BaseException as error:
        # Without our own frame, as nobody looks for it there.
        error.__traceback__ = error.__traceback__.tb_next if error.__traceback__ else None
        sys.excepthook(type(error), error, error.__traceback__)
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            _leave(script, 130)
            os.kill(_getpid(), signal.SIGINT)
        code = 1
    if code is not None and not isinstance(code, int):
        sys.stderr.write(f"{code}\n")
        code = 1
    number = (code or 0) & 0xFF
    if _leave(script, number):
        os._exit(number)
    sys.exit(number)


def _leave(script: Script, code: int) -> bool:
    """Do what an interpreter does at its end; returns whether that was all."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return False
    for value in gc.get_objects():
        # Those of the template are frozen, and not among them.
        if isinstance(value, _WRITERS):
            try:
                value.flush()
            except (OSError, ValueError):
                continue
    new = [
        name
        for name, module in list(sys.modules.items())
        if name not in script.known and _is_plain(name, module)
    ]
    if code == 0 and new:
        os.set_blocking(script.pipe, False)
        try:
            os.write(script.pipe, " ".join(new).encode()[:60000].rpartition(b" ")[0])
        except OSError:
            pass
    ctypes.CDLL(None).fflush(None)
    return len(os.listdir("/proc/self/task")) == 1 and not _has_open_output(script.pipe)


def _is_plain(name: str, module: object) -> bool:
    spec = getattr(module, "__spec__", None)
    return spec is not None and spec.name == name and spec.origin not in (None, "built-in", "frozen")


def _has_open_output(pipe: int) -> bool:
    """Whether a library may still have something to write at the interpreter's end."""
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        if number <= 2 or number == pipe:
            continue
        try:
            if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                continue
            # A database has written what was committed.
            if os.pread(number, 16, 0) != b"SQLite format 3\0":
                return True
        except OSError:
            continue
    return False


_WRITERS = (io.BufferedWriter, io.BufferedRandom, io.TextIOWrapper)


def main() -> Script | None:
    """Be a template until its owner ends, then a process that runs a script."""
    owner = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    for target in (0, 1, 2):
        os.dup2(null, target)
    os.close(null)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    template = Template(owner)
    gc.disable()
    try:
        told = template.load()
    except Exception as error:
        told = {"broken": f"{type(error).__name__}: {error}"[:500]}
    send(owner, told)
    if "ready" not in told:
        return None
    gc.collect()
    gc.freeze()
    root = template.serve()
    return None if root is None else root.run()


if __name__ == "__main__":
    found = main()
    if found is not None:
        run(found)
    else:
        os._exit(0)
