"""Warm processes with a small script: what they do equals what the script does by itself."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from panda_servers.local import wait_for
from panda_servers.warm import JOB, MARK, WarmJobs

from lsst.ctrl.bps.panda.local.guard import end_marked, marked_processes
from lsst.ctrl.bps.panda.warm.pool import JobEnd, Pool

pytestmark = [pytest.mark.slow, pytest.mark.newest]

SCRIPT = """\
#!{python}
import sys
from greeting import main
if __name__ == '__main__':
    sys.exit(main())
"""

GREETING = '''\
"""What the script does, by its first argument."""
import atexit, os, resource, signal, sys, time, importlib

COUNT = 0

def main():
    word, *rest = sys.argv[1:] or ["nothing"]
    return globals()["do_" + word](*rest)

def do_nothing():
    pass

def do_exit(code):
    return int(code)

def do_text():
    return "a text as exit code"

def do_raise():
    raise ValueError("it was wanted")

def do_interrupt():
    raise KeyboardInterrupt

def do_state():
    mask = os.umask(0)
    os.umask(mask)
    print(sys.argv, sys.executable, __name__, sys.modules["__main__"].__file__, sys.path[:2])
    print(os.getcwd(), oct(mask), resource.getrlimit(resource.RLIMIT_NOFILE), os.nice(0))
    print(sorted(name for name in os.environ if not name.startswith(("PANDA_LOCAL_WARM", "_"))))
    print([signal.getsignal(number) for number in range(1, 32)], signal.pthread_sigmask(0, ()))
    print(sys.stdout.line_buffering, sys.stdout.encoding, sys.stdin.isatty(), os.isatty(1))

def do_copy():
    sys.stdout.write(sys.stdin.read().upper())

def do_variable(name):
    print(os.environ.get(name), os.popen(f"echo ${name}").read().strip())

def do_kill():
    os.kill(os.getpid(), signal.SIGKILL)

def do_unclosed(path):
    global KEPT
    KEPT = open(path, "w")
    KEPT.write("written at the end\\n")
    atexit.register(print, "at exit")

def do_import(name):
    module = importlib.import_module(name)
    print(getattr(module, "TEXT", ""))

def do_wait(path):
    open(path, "w").write(str(os.getpid()))
    time.sleep(600)

def do_handle(path):
    def handle(number, frame):
        print("got", number, flush=True)
        sys.exit(7)
    signal.signal(signal.SIGTERM, handle)
    do_wait(path)

def do_pool():
    import multiprocessing
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(abs, [-1, -2]))

def do_random():
    import random, tempfile, uuid
    print(random.random(), uuid.uuid4(), tempfile.gettempdir())
'''


class Site(WarmJobs):
    """A folder with a script and the modules it needs."""

    def __init__(self, place: Path) -> None:
        super().__init__(place, ["hello"], place / "scripts", {"PYTHONPATH": str(place / "modules")})
        for name in ("scripts", "modules"):
            (place / name).mkdir()
        self.script = place / "scripts" / "hello"
        self.script.write_text(SCRIPT.format(python=sys.executable))
        self.script.chmod(0o755)
        self.module("greeting", GREETING)

    def module(self, name: str, text: str) -> None:
        """Write a module, and wait until it is old enough to be trusted."""
        self.modules({name: text})

    def modules(self, texts: Mapping[str, str]) -> None:
        """Write several modules."""
        for name, text in texts.items():
            path = self.place / "modules" / f"{name}.py"
            path.write_text(text)
        wait_for(lambda: time.time_ns() > path.stat().st_ctime_ns + 60_000_000, "an older file")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path / "a place's folder")
    yield site
    site.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("warm") / "folder")
    yield site
    site.stop()


COMMANDS = {
    "success": "hello",
    "exit code": "hello exit 3; echo $?",
    "last exit code": "hello exit 42",
    "large exit code": "hello exit 300; echo $?",
    "text": "hello text; echo $?",
    "exception": "hello raise; echo $?",
    "interrupt": "hello interrupt; echo $?",
    "no such word": "hello unknown; echo $?",
    "state": "hello state",
    "arguments": "hello state 'a b' '' \"$(printf 'x\\ny')\" ü $'\\xff' 2>&1 | tail -1",
    "limits": "ulimit -S -n 77; ulimit -H -n 99; umask 027; nice -n 5 hello state",
    "ignored signal": "trap '' INT TERM; hello state",
    "background": "hello state & wait",
    "directory": "mkdir sub; cd sub; hello state",
    "variables": "export LATER='a b'; unset HOME; hello variable LATER; A=1 hello variable A",
    "pipe": "echo some words | hello copy | tr O 0",
    "here-document": "hello copy <<X\nline\nX",
    "closed input": "hello copy <&-; echo $?",
    "unclosed file": "hello unclosed it; cat it",
    "output to a full disk": "hello state > /dev/full; echo $?",
    "closed output": "hello state | true; echo ${PIPESTATUS[0]}",
    "processes": "hello pool",
    "two at once": "hello exit 4 & hello exit 5 & wait -n; wait; echo done",
    "and": "hello && hello exit 2 || echo $?",
    "open descriptor": "exec 5>five; hello exit 0; echo $?",
    "killed": "hello kill; echo $?",
    "timeout": "timeout -s KILL 0.5 hello wait pid; echo $?",
    "timeout by TERM": "timeout 0.5 hello wait pid; echo $?",
    "own session": "setsid -w hello exit 3; echo $?",
    "other script": "echo hello; python3 --version >/dev/null; echo $?",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_warm_job_is_like_a_cold_one(shared: Site, name: str) -> None:
    def normal(result: tuple[int, str, str]) -> tuple[int, str, str]:
        job = str(shared.place / "jobs" / str(shared.number))
        errors = re.sub(r"line 1: +\d+ ", "line 1: PID ", result[2])
        return result[0], result[1].replace(job, "JOB"), errors.replace(job, "JOB")

    warm = normal(shared.warm(COMMANDS[name]))
    cold = normal(shared.cold(COMMANDS[name]))
    assert warm == cold


def test_calls_are_answered(shared: Site) -> None:
    before = shared.hits
    assert shared.warm("hello && hello exit 0 && hello")[0] == 0
    assert shared.hits == before + 3


def test_reasons_of_cold_starts_are_told(shared: Site) -> None:
    shared.warm("hello 5>five; setsid -w hello; hello --enable-implicit-threading; hello <&-")
    for reason in ("a further file is open", "a session of its own", "may need threads", "stream is closed"):
        assert reason in shared.reasons


def test_random_numbers_and_temporary_folders_are_fresh(shared: Site) -> None:
    code, out, _ = shared.warm("hello random; hello random; export TMPDIR=$PWD; hello random")
    rows = [line.split() for line in out.splitlines()]
    assert code == 0
    assert len({row[0] for row in rows}) == len({row[1] for row in rows}) == 3
    assert rows[2][2].endswith(f"/jobs/{shared.number}")
    assert rows[0][2] == "/tmp"


def test_what_is_no_call_of_a_script_gets_no_root(shared: Site) -> None:
    assert shared.begin("echo nothing")[0] is None
    root, _ = shared.begin(f"echo {b'hello'.hex()}")
    assert root is not None
    root.wait()


# -- Signals and kills ----------------------------------------------------------------------------------


def _wait_for_pid(path: Path) -> int:
    wait_for(lambda: path.is_file() and path.read_text(), f"process in {path}")
    return int(path.read_text())


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_a_signal_to_the_client_arrives_once(shared: Site) -> None:
    root, job = shared.begin("hello handle pid & echo $! > client; wait $!; echo $?")
    assert root is not None
    _wait_for_pid(job / "pid")
    os.kill(_wait_for_pid(job / "client"), signal.SIGTERM)
    assert root.wait() is not None
    assert (job / "out").read_text() == "got 15\n7\n"


def test_a_killed_client_takes_its_process_along(shared: Site) -> None:
    root, job = shared.begin("hello wait pid & echo $! > client; wait $!; echo $?")
    assert root is not None
    pid = _wait_for_pid(job / "pid")
    os.kill(_wait_for_pid(job / "client"), signal.SIGKILL)
    assert root.wait() == JobEnd(0, pytest.approx(0.5, abs=0.5))
    assert (job / "out").read_text() == "137\n"
    assert _gone(pid)


def test_a_killed_process_is_told_as_such(shared: Site) -> None:
    root, job = shared.begin("hello wait pid; echo $?")
    assert root is not None
    os.kill(_wait_for_pid(job / "pid"), signal.SIGKILL)
    root.wait()
    assert (job / "out").read_text() == "137\n"


def test_a_killed_root_leaves_nothing(shared: Site) -> None:
    root, job = shared.begin("hello wait pid; echo $? > late")
    assert root is not None
    pid = _wait_for_pid(job / "pid")
    os.kill(root.pid, signal.SIGKILL)
    assert root.wait() == JobEnd(9, 0.0)
    wait_for(lambda: _gone(pid), "end of the process")
    end_marked(f"{JOB}={job}")
    assert not marked_processes(f"{JOB}={job}")


def test_processes_of_a_job_are_found_by_its_mark(shared: Site) -> None:
    root, job = shared.begin("hello wait pid")
    assert root is not None
    pid = _wait_for_pid(job / "pid")
    assert {root.pid, pid} <= set(marked_processes(f"{JOB}={job}"))
    assert pid not in marked_processes(f"{JOB}={job}x")
    assert os.getsid(pid) == root.pid
    end_marked(f"{JOB}={job}")
    assert root.wait() == JobEnd(9, 0.0)


def test_background_processes_end_with_the_job(shared: Site) -> None:
    root, job = shared.begin("hello wait pid & while ! test -s pid; do sleep 0.02; done; exit 3")
    assert root is not None
    end = root.wait()
    assert end is not None
    assert os.waitstatus_to_exitcode(end.status) == 3
    assert _gone(int((job / "pid").read_text()))


def test_cpu_of_all_processes_is_counted(shared: Site) -> None:
    shared.module("busy", "import time\nwhile time.process_time() < 0.5: pass\n")
    root, _ = shared.begin("hello import busy")
    assert root is not None
    end = root.wait()
    assert end is not None
    assert 0.3 < end.cpu < 2


# -- Templates ------------------------------------------------------------------------------------------


def test_a_killed_template_is_replaced_and_its_jobs_go_on(site: Site) -> None:
    root, job = site.begin(
        "hello wait pid & hello handle pid2 & while ! test -s pid2; do sleep 0.02; done; hello"
    )
    assert root is not None
    before = site.template()
    os.kill(before, signal.SIGKILL)
    end = root.wait()
    assert end is not None
    assert end.status == 0
    # One that is not there costs at most a cold start.
    second, _ = site.begin("hello")
    if second is not None:
        second.wait()
    assert site.warm("hello exit 0")[0] == 0
    assert site.template() != before


def test_a_template_that_hangs_costs_seconds(site: Site) -> None:
    assert site.warm("hello")[0] == 0
    pid = site.template()
    os.kill(pid, signal.SIGSTOP)
    before = time.monotonic()
    root, job = site.begin("hello; echo again >> ran")
    assert root is None
    assert time.monotonic() - before < 10
    assert "did not answer" in site.reasons
    assert site.warm("hello")[0] == 0
    assert not (job / "ran").exists()


def test_a_script_that_cannot_be_imported_starts_cold(site: Site) -> None:
    site.module("greeting", "import not_there\n")
    assert site.begin("hello")[0] is None
    assert "No module named 'not_there'" in site.reasons
    # Not tried again at once.
    assert site.begin("hello")[0] is None


def test_an_edited_source_is_noticed(site: Site) -> None:
    assert site.warm("hello import textual")[0] == 1
    site.module("textual", "TEXT = 'first'\n")
    assert site.warm("hello import textual")[1] == "first\n"
    assert "modules has changed" in site.reasons
    assert site.warm("hello text")[2] == "a text as exit code\n"
    site.module("greeting", GREETING.replace("a text as exit code", "another text"))
    assert site.warm("hello text")[2] == "another text\n"
    assert "greeting.py has changed" in site.reasons
    assert site.warm("hello text")[2] == "another text\n"


def test_a_new_module_in_front_of_another_is_noticed(site: Site) -> None:
    first = site.place / "first"
    first.mkdir()
    site.variables["PYTHONPATH"] = f"{first}:{site.place}/modules"
    assert site.warm("hello text")[2] == "a text as exit code\n"
    (first / "greeting.py").write_text(GREETING.replace("a text as exit code", "another text"))
    assert site.warm("hello text")[2] == "another text\n"


def test_another_environment_gets_another_template(site: Site) -> None:
    other = site.place / "other"
    other.mkdir()
    site.module("../other/greeting", GREETING.replace("a text as exit code", "another text"))
    command = f"export PYTHONPATH={shlex.quote(str(other))}; hello text"
    assert site.warm(command)[2] == "another text\n"
    assert "PYTHONPATH has another value" in site.reasons
    assert site.hits == 0
    assert site.warm(command)[2] == "another text\n"
    assert site.hits == 1
    assert site.warm("hello text", task="2")[2] == "a text as exit code\n"
    assert len(site.pool.status()["templates"]) == 2


def test_variables_that_are_read_at_import_matter(site: Site) -> None:
    site.module("greeting", GREETING + "VALUE = os.environ.get('MY_VALUE')\ndef do_value(): print(VALUE)\n")
    assert site.warm("MY_VALUE=1 hello value")[1] == "1\n"
    assert "MY_VALUE has another value" in site.reasons
    assert site.warm("MY_VALUE=1 hello value")[1] == "1\n"
    assert site.warm("MY_VALUE=2 hello value; hello value")[1] == "2\nNone\n"


def test_a_secret_is_in_no_template_and_in_no_other_job(site: Site) -> None:
    site.module("greeting", GREETING + "VALUE = os.environ.get('MY_TOKEN')\n")
    site.variables["FIRST_TOKEN"] = "hidden-0"
    root, job = site.begin("export MY_TOKEN=hidden-1 OTHER=hidden-2; hello; hello wait pid")
    assert root is not None
    _wait_for_pid(job / "pid")
    del site.variables["FIRST_TOKEN"]
    second, other = site.begin("hello wait pid", task="2")
    assert second is not None
    pid = _wait_for_pid(other / "pid")
    for process in (site.template(), second.pid, pid):
        assert b"hidden" not in Path(f"/proc/{process}/environ").read_bytes()
        with open(f"/proc/{process}/maps") as maps, open(f"/proc/{process}/mem", "rb", 0) as memory:
            for line in maps:
                area, rights = line.split()[:2]
                if rights.startswith("rw") and "[v" not in line:
                    start, end = (int(word, 16) for word in area.split("-"))
                    memory.seek(start)
                    assert b"hidden-" not in memory.read(end - start)
    end_marked(f"{MARK}={site.place}")
    root.wait()
    second.wait()


def test_templates_are_bounded(site: Site) -> None:
    for number in range(8):
        command = f"export PYTHONHASHSEED={number}; hello"
        site.begin(command, task=f"task {number}")[0].wait()  # type: ignore[union-attr]
        root, _ = site.begin(command, task=f"task {number}")
        if root is not None:
            root.wait()
        assert len(site.pool.status()["templates"]) <= 3
    assert "started too often" in site.reasons


def test_another_user_cannot_use_the_socket(site: Site) -> None:
    if os.geteuid():
        pytest.skip("only root can become another user")
    root, job = site.begin("hello wait pid")
    assert root is not None
    _wait_for_pid(job / "pid")
    path = site.place / "warm" / "sockets" / job.name
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    code = (
        "import os, socket, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(f'/proc/self/fd/{sys.argv[1]}/{sys.argv[2]}')\n"
        "s.settimeout(10); print(s.recv(1))\n"
    )

    def attack() -> subprocess.CompletedProcess[str]:
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            return subprocess.run(
                [sys.executable, "-I", "-c", code, str(directory), path.name],
                pass_fds=[directory], capture_output=True, text=True, cwd="/",
            )  # fmt: skip
        finally:
            os.close(directory)

    assert "PermissionError" in attack().stderr
    # Even if someone opened all of it.
    path.chmod(0o777)
    path.parent.chmod(0o777)
    assert attack().stdout == "b'C'\n"
    end_marked(f"{JOB}={job}")
    root.wait()


IMPURE = {
    "thread": "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    "TEXT = threading.active_count()",
    "file": "FILE = open('made', 'a')\nFILE.write('x')\nFILE.flush()\nTEXT = open('made').read()",
    "read file": "FILE = open('/etc/passwd')\nTEXT = FILE.fileno() > 2",
    "variable": "import os\nos.environ['SET_BY_MODULE'] = '1'\nTEXT = os.environ['SET_BY_MODULE']",
    "all variables": "import os\nCOPY = dict(os.environ)\nTEXT = COPY.get('LATER')",
    "directory": "import os\nos.chdir('/')\nTEXT = os.getcwd()",
    "umask": "import os\nos.umask(0o77)\nTEXT = oct(os.umask(0o77))",
    "signal": "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nTEXT = signal.getsignal(15)",
    "process": "import os\nTEXT = os.getpid() == int(open('/proc/self/stat').read().split()[0])",
    "child": "import subprocess\nTEXT = subprocess.run(['pwd'], capture_output=True).returncode",
    "logging": "import logging\nlogging.basicConfig(level=5)\nTEXT = logging.getLogger().level",
    "random": "import random\nrandom.seed(3)\nTEXT = random.random()",
    "stream": "import sys, io\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, 'ascii')\nTEXT = 'ascii'",
    "recursion": "import sys\nsys.setrecursionlimit(5000)\nTEXT = sys.getrecursionlimit()",
    "failing": "raise RuntimeError('at import')",
    "exiting": "import sys\nsys.exit(5)",
}


@pytest.mark.parametrize("name", IMPURE)
def test_modules_that_do_things_at_import_have_the_same_result(site: Site, name: str) -> None:
    pure = {f"pure_{number}": "import user\n" for number in range(10)}
    site.modules({"impure": IMPURE[name], "user": "import impure\nTEXT = impure.TEXT\n", **pure})
    every = "for n in 0 1 2 3 4 5 6 7 8 9; do hello import pure_$n; done >/dev/null 2>&1; rm -f made; "
    command = "LATER=1 hello import user; echo $?; test -e made; echo $?"
    cold = site.cold(command)
    for _ in range(3):
        warm = site.warm(every + command)
        assert warm[:2] == cold[:2]
        site.settle()


def test_what_processes_import_is_learnt(site: Site) -> None:
    chain = {f"large_{number}": f"import large_{number + 1}" for number in range(9)}
    site.modules({**chain, "large_9": "TEXT = 1"})
    assert site.warm("hello import large_0")[0] == 0
    before = site.template()
    wait_for(
        lambda: len(site.pool.status()["templates"]) == 1 and site.template() != before, "another template"
    )
    assert site.warm("hello import large_0")[0] == 0
    known = json.loads((site.place / "warm" / "modules.json").read_text())
    assert "large_9" in str(known["modules"])
    assert not any(known["excluded"].values())
    # A later server begins with it, and with nothing if it cannot be read.
    again = Pool(site.place / "warm", ["hello"], folder=str(site.script.parent), marks={}, mark_names=[])
    again._prepare()
    assert again._modules == known["modules"]
    (site.place / "warm" / "modules.json").write_text("[1")
    again._read_knowledge()
