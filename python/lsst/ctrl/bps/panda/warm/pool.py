"""Templates of whoever runs jobs: started when a job can use one, watched, and ended when idle.

Nothing here fails a job.  What cannot be had, or not soon enough, is `None`, and the job starts as without
it.
"""

from __future__ import annotations

__all__ = ["ADDRESS", "JobEnd", "Pool", "Root"]

import collections
import contextlib
import json
import logging
import os
import py_compile
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from .template import BASIC, FORCED, READ_BY_C, find_interpreter, receive_bytes, send

_LOG = logging.getLogger(__name__)

ADDRESS = "PANDA_LOCAL_WARM"
"""Variable that tells a job's scripts where the root of the job listens."""

_PROGRAM = Path(__file__).with_name("template.py")
_PATIENCE = 4.0
"""Seconds that one job waits for a template: about what it would need to start without."""

_ANSWER = 2.0
_IDLE = 300.0
_MOST = 3
_RETRY = 60.0
_MOST_STARTS = 6
"""Starts of templates within a minute."""

_ENOUGH = 8
"""Further modules for which another template is worth its start."""

_WRAPPER = """\
#!/bin/sh
# Hands {name} over to a process that is ready, or starts it as usual.
if [ -S "${address}" ] && [ -x {python} ] && [ -r {client} ]; then
    if [ -n "${{LD_LIBRARY_PATH+set}}" ]; then
        export {address}_LD_LIBRARY_PATH="$LD_LIBRARY_PATH"; unset LD_LIBRARY_PATH
    fi
    if [ -n "${{LD_PRELOAD+set}}" ]; then
        export {address}_LD_PRELOAD="$LD_PRELOAD"; unset LD_PRELOAD
    fi
    exec {python} -I -S {client} "$0" "$@"
fi
set -f
here=${{0%/*}}
split=$IFS
IFS=:
for folder in $PATH; do
    if [ "$folder" != "$here" ] && [ -f "$folder/{name}" ] && [ -x "$folder/{name}" ]; then
        IFS=$split
        exec "$folder/{name}" "$@"
    fi
done
echo "{name}: command not found" >&2
exit 127
"""


@dataclass(frozen=True)
class Wish:
    """What a template has to be like."""

    interpreter: tuple[str, ...]
    folder: str
    """Where the scripts are."""

    environment: tuple[tuple[str, str], ...]

    @property
    def family(self) -> str:
        """What templates have in common that may import the same."""
        return "\0".join((*self.interpreter, self.folder))


@dataclass(frozen=True)
class JobEnd:
    """How a job's shell ended."""

    status: int
    """As of `os.wait`."""

    cpu: float
    """Seconds of all its processes."""


@dataclass(eq=False)
class _Template:
    wish: Wish
    process: subprocess.Popen[bytes]
    connection: socket.socket
    begun: float
    state: str = "loading"
    reason: str = ""
    names: frozenset[str] = frozenset()
    jobs: int = 0
    used: float = 0.0
    waited: bool = False
    modules: frozenset[str] = frozenset()
    """What it was told to import, beside the scripts."""

    loaded: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Root:
    """The root of a job that runs."""

    def __init__(
        self, pool: Pool, template: _Template, task: str, pid: int, connection: socket.socket
    ) -> None:
        self.pid = pid
        self._pool = pool
        self._template = template
        self._task = task
        self._connection = connection

    def wait(self) -> JobEnd | None:
        """Wait for the end of the job; `None` if its shell was not started."""
        with self._connection:
            try:
                report = json.loads(receive_bytes(self._connection)[0])
            except (EOFError, OSError, ValueError):
                # It was killed, and its shell is, too: by whoever did that, or soon by us.
                return JobEnd(9, 0.0)
        if "refused" in report:
            self._pool.count(str(report["refused"]))
            return None
        self._pool.learn(self._template, self._task, report)
        return JobEnd(int(report["status"]), float(report["cpu"]))


class Pool:
    """The templates of one server.

    Parameters
    ----------
    directory : `~pathlib.Path`
        Folder for sockets, the client's scripts, and what was learnt.
    scripts : `~collections.abc.Sequence` [`str`]
        Names of the console scripts that are answered.
    folder : `str`
        Where jobs find them, unless they set up another environment.
    marks : `~collections.abc.Mapping` [`str`, `str`]
        Variables by which processes of this server are found.
    mark_names : `~collections.abc.Sequence` [`str`]
        Names of those of a job.
    """

    def __init__(
        self,
        directory: Path,
        scripts: Sequence[str],
        *,
        folder: str,
        marks: Mapping[str, str],
        mark_names: Sequence[str],
    ) -> None:
        self._directory = directory
        self._scripts = tuple(scripts)
        self._folder = folder
        self._marks = dict(marks)
        self._mark_names = list(mark_names)
        self._lock = threading.Lock()
        self._templates: dict[Wish, _Template] = {}
        self._next: dict[Wish, _Template] = {}
        self._ended: list[_Template] = []
        self._broken: dict[Wish, tuple[float, str]] = {}
        self._wishes: dict[str, Wish] = {}
        self._tries: collections.Counter[str] = collections.Counter()
        self._starts: collections.deque[float] = collections.deque(maxlen=_MOST_STARTS)
        self._known: dict[str, set[str]] = {}
        self._modules: dict[str, list[str]] = {}
        self._excluded: dict[str, dict[str, str]] = {}
        self._runs: set[object] = set()
        self._hits = 0
        self._cold: collections.Counter[str] = collections.Counter()
        self._stopped = False
        self._sockets = ""
        self.bin = directory / "bin"

    # -- Jobs ---------------------------------------------------------------

    def choose(
        self, task: str, command: str, environment: Mapping[str, str], *, run: object = None
    ) -> _Template | None:
        """Choose a template for a job of a task, if its command, or that of another job of its run, names a
        script of ours, plainly or in hexadecimal.
        """
        try:
            text = command.lower()
            named = any(name in command or name.encode().hex() in text for name in self._scripts)
            with self._lock:
                if named and run is not None:
                    self._runs.add(run)
                if not named and run not in self._runs:
                    return None
                template = None if self._stopped else self._find(task, environment)
            if template is None:
                return None
            patience = 0.0 if template.waited else _PATIENCE
            if not template.loaded.wait(patience):
                template.waited = True
                self.count("the template was not ready yet")
                return None
            if template.state != "ready":
                self.count(template.reason)
                return None
            return template
        except Exception:
            _LOG.exception("no template could be had")
            return None

    def start(
        self,
        template: _Template,
        task: str,
        command: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        umask: int,
        stdout: BinaryIO,
        stderr: BinaryIO,
    ) -> Root | None:
        """Start a job's shell below a root that is forked from a template."""
        ours, theirs = socket.socketpair()
        variables = dict(environment)
        variables["PATH"] = f"{self.bin}:{variables['PATH']}"
        variables[ADDRESS] = f"{self._sockets}/{os.path.basename(directory)}"
        with contextlib.suppress(OSError):
            os.unlink(variables[ADDRESS])
        order = {
            "program": shutil.which(command[0], path=environment["PATH"]),
            "arguments": list(command),
            "directory": str(directory),
            "environment": variables,
            "umask": umask,
        }
        try:
            with theirs, template.lock:
                descriptors = (theirs.fileno(), stdout.fileno(), stderr.fileno())
                send(template.connection, {}, descriptors)
            ours.settimeout(_ANSWER)
            send(ours, order)
            answer = json.loads(receive_bytes(ours)[0])
            if "refused" in answer:
                ours.close()
                self.count(str(answer["refused"]))
                return None
            pid = int(answer["pid"])
            ours.settimeout(None)
            ours.send(b"G")
        except (OSError, EOFError, ValueError, KeyError) as error:
            # A root that comes later finds the connection closed, and ends.
            ours.close()
            self.count(f"the template did not answer: {type(error).__name__}")
            with self._lock:
                self._end(template, "it did not answer")
            return None
        with self._lock:
            template.jobs += 1
            template.used = time.monotonic()
        return Root(self, template, task, pid, ours)

    def count(self, reason: str) -> None:
        """Count a cold start."""
        with self._lock:
            self._cold[reason[:200]] += 1
            while len(self._cold) > 30:
                del self._cold[min(self._cold, key=lambda name: self._cold[name])]

    def learn(self, template: _Template, task: str, report: Mapping[str, Any]) -> None:
        """Take up what the root of a job tells at its end."""
        for reason in report["cold"]:
            self.count(str(reason))
        with self._lock:
            self._hits += int(report["hits"])
            if any(str(reason).endswith(" has changed") for reason in report["cold"]):
                self._end(template, "a source file has changed")
                self._templates.pop(template.wish, None)
            elif report["wish"]:
                self._remember_wish(task, report["wish"])
            self._learn_modules(template, [str(name) for name in report["modules"]])

    def _remember_wish(self, task: str, wish: Mapping[str, Any]) -> None:
        self._tries[task] += 1
        self._wishes[task] = Wish(
            tuple(wish["interpreter"]), str(wish["folder"]), tuple(sorted(wish["environment"].items()))
        )

    def _learn_modules(self, template: _Template, names: Sequence[str]) -> None:
        family = template.wish.family
        modules = self._modules.setdefault(family, [])
        excluded = self._excluded.setdefault(family, {})
        new = [name for name in names if name not in modules and name not in excluded]
        if new:
            modules += new
            self._write_knowledge()
        missing = {name for name in names if name not in excluded} - template.modules
        wish = template.wish
        enough = len(missing) >= _ENOUGH and template.state == "ready" and wish not in self._next
        if enough and (successor := self._launch(wish)):
            self._next[wish] = successor

    # -- Templates ----------------------------------------------------------

    def _find(self, task: str, environment: Mapping[str, str]) -> _Template | None:
        """Find or start the template for a task."""
        if not self._sockets:
            self._prepare()
        if self._tries[task] > 3:
            self._cold["the environment differs from job to job"] += 1
            return None
        wish = self._wishes.get(task) or self._default(environment)
        if wish is None:
            return None
        template = self._templates.get(wish)
        if template is not None and template.state != "ended":
            return template
        when, reason = self._broken.get(wish, (0.0, ""))
        if reason and time.monotonic() < when + _RETRY:
            self._cold[reason] += 1
            return None
        template = self._launch(wish)
        if template is None:
            self._cold["templates were started too often"] += 1
            return None
        self._templates[wish] = template
        self._make_room(template)
        return template

    def _default(self, environment: Mapping[str, str]) -> Wish | None:
        paths = [path for name in self._scripts if os.path.isfile(path := f"{self._folder}/{name}")]
        interpreter = find_interpreter(paths[0]) if paths else []
        if not interpreter:
            return None
        wish = Wish(tuple(interpreter), self._folder, ())
        known = self._known.get(wish.family, set())
        kept = {
            name: value
            for name, value in environment.items()
            if BASIC.fullmatch(name) or READ_BY_C.match(name) or name in known
        }
        return Wish(wish.interpreter, wish.folder, tuple(sorted(kept.items())))

    def _prepare(self) -> None:
        """Write the client, and make the folder of sockets."""
        self.bin.mkdir(parents=True, exist_ok=True, mode=0o700)
        client = py_compile.compile(
            str(Path(__file__).with_name("client.py")),
            cfile=str(self._directory / "client.pyc"),
            doraise=True,
        )
        for name in self._scripts:
            text = _WRAPPER.format(
                name=name,
                address=ADDRESS,
                python=shlex.quote(sys.executable),
                client=shlex.quote(str(client)),
            )
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o700)
        self._read_knowledge()
        sockets = self._directory / "sockets"
        shutil.rmtree(sockets, ignore_errors=True)
        sockets.mkdir(mode=0o700)
        self._sockets = str(sockets)

    def _launch(self, wish: Wish) -> _Template | None:
        now = time.monotonic()
        if self._stopped or (len(self._starts) == _MOST_STARTS and now < self._starts[0] + _RETRY):
            return None
        self._starts.append(now)
        ours, theirs = socket.socketpair()
        # The room is used to show the marks of a job.
        variables = {**dict(wish.environment), **FORCED, **self._marks, "_WARM_ROOM": "-" * 8192}
        with theirs:
            process = subprocess.Popen(
                [*wish.interpreter, str(_PROGRAM)],
                cwd="/",
                env=variables,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        template = _Template(wish, process, ours, time.monotonic(), used=time.monotonic())
        threading.Thread(target=self._load, args=(template,), name="warm-load", daemon=True).start()
        return template

    def _load(self, template: _Template) -> None:
        """Tell a template what to import, and wait until it has."""
        wish, family = template.wish, template.wish.family
        with self._lock:
            modules = list(reversed(self._modules.get(family, [])))
            excluded = sorted(self._excluded.get(family, {}))
            template.modules = frozenset(modules)
        scripts = [path for name in self._scripts if os.path.isfile(path := f"{wish.folder}/{name}")]
        order = {
            "scripts": scripts,
            "modules": [name for name in modules if name not in excluded],
            "excluded": excluded,
            "marks": self._mark_names,
            "folder": str(self.bin),
        }
        try:
            send(template.connection, order)
            told = json.loads(receive_bytes(template.connection)[0])
        except (OSError, EOFError, ValueError) as error:
            told = {"broken": f"the template has ended ({type(error).__name__})"}
        with self._lock:
            self._take(template, told)
        template.loaded.set()

    def _take(self, template: _Template, told: Mapping[str, Any]) -> None:
        """Take up what a template says when it has loaded."""
        wish, family = template.wish, template.wish.family
        if "ready" in told and template.state == "loading" and not self._stopped:
            template.state = "ready"
            template.names = frozenset(told["ready"])
            self._known.setdefault(family, set()).update(template.names)
            if self._next.get(wish) is template:
                del self._next[wish]
                if before := self._templates.get(wish):
                    self._end(before, "it was replaced")
                self._templates[wish] = template
            return
        self._end(template, str(told.get("broken") or template.reason or "it has modules to leave out"))
        place = self._next if self._next.get(wish) is template else self._templates
        if place.get(wish) is template:
            del place[wish]
        impure = told.get("impure")
        if impure:
            self._excluded.setdefault(family, {}).update(impure)
            self._modules[family] = [name for name in self._modules.get(family, []) if name not in impure]
            self._write_knowledge()
        if impure and (successor := self._launch(wish)):
            place[wish] = successor
        elif "broken" in told:
            self._broken[wish] = (time.monotonic(), template.reason)

    def _make_room(self, newest: _Template) -> None:
        living = [item for item in self._templates.values() if item.state != "ended" and item is not newest]
        for template in sorted(living, key=lambda item: item.used)[: max(0, len(living) + 1 - _MOST)]:
            self._end(template, "others are used more")

    def _end(self, template: _Template, reason: str) -> None:
        """End a template; what it has forked goes on."""
        if template.state == "ended":
            return
        template.state, template.reason = "ended", reason
        template.process.kill()
        template.connection.close()
        self._ended.append(template)

    def keep(self) -> None:
        """End templates that are idle or too large, and notice those that have ended; now and then."""
        now = time.monotonic()
        with self._lock:
            for template in list(self._templates.values()):
                if template.state == "ready":
                    if template.process.poll() is not None:
                        self._end(template, "it was killed")
                    elif now - template.used > _IDLE:
                        self._end(template, "it was idle")
                    elif _memory(template.process.pid) > _largest():
                        self._end(template, "it used too much memory")
                        self._broken[template.wish] = (now, template.reason)
            self._ended = [template for template in self._ended if template.process.poll() is None]

    def stop(self) -> None:
        """End all templates."""
        with self._lock:
            self._stopped = True
            for template in (*self._templates.values(), *self._next.values()):
                self._end(template, "the server stops")
            ended, self._ended = self._ended, []
        for template in ended:
            template.process.wait()

    def status(self) -> dict[str, Any]:
        """Return what there is, how often it was used, and why it was not."""
        with self._lock:
            return {
                "templates": [
                    {
                        "pid": template.process.pid,
                        "folder": template.wish.folder,
                        "state": template.state,
                        "jobs": template.jobs,
                        "memory": _memory(template.process.pid) >> 20,
                    }
                    for template in (*self._templates.values(), *self._next.values())
                    if template.state != "ended"
                ],
                "hits": self._hits,
                "cold": dict(self._cold.most_common()),
            }

    # -- What was learnt ----------------------------------------------------

    def _write_knowledge(self) -> None:
        content = {"modules": self._modules, "excluded": self._excluded}
        try:
            with tempfile.NamedTemporaryFile("w", dir=self._directory, delete=False) as stream:
                json.dump(content, stream, indent=1)
            os.replace(stream.name, self._directory / "modules.json")
        except OSError as error:
            _LOG.warning("what templates import could not be kept: %s", error)

    def _read_knowledge(self) -> None:
        try:
            content = json.loads((self._directory / "modules.json").read_text())
            modules = {str(key): [str(name) for name in names] for key, names in content["modules"].items()}
            excluded = {str(key): dict(reasons) for key, reasons in content["excluded"].items()}
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return
        self._modules, self._excluded = modules, excluded


def _memory(pid: int) -> int:
    """Return the resident memory of a process, bytes."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _largest() -> int:
    """Return the memory that one template may use, bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8
