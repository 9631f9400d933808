"""The runner started as a file: payloads, exit codes, signals, environment, attempts."""

import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest

from lsst.ctrl.bps.panda.edgenode import cmd_line_decoder as runner

pytestmark = [pytest.mark.slow, pytest.mark.newest]

ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin"}


class Worker:
    """A work directory and a staging area, and the way to run a job in them."""

    def __init__(self, folder):
        self.area = folder / "area"
        self.work = folder / "work"
        self.area.mkdir()
        self.work.mkdir()

    def argv(self, command, *options, text="job", files=(), direct=runner.NO_DIRECT):
        return [
            sys.executable,
            runner.__file__,
            runner.encode_command(command),
            text,
            runner.encode_area(str(self.area)),
            runner.encode_files(files),
            direct,
            *options,
        ]

    def run(self, command, *options, environment=None, **arguments):
        return subprocess.run(
            self.argv(command, *options, **arguments),
            cwd=self.work,
            env=dict(ENVIRONMENT, **(environment or {})),
            capture_output=True,
            timeout=60,
        )

    def start(self, command, *options, environment=None, **arguments):
        return subprocess.Popen(
            self.argv(command, *options, **arguments),
            cwd=self.work,
            env=dict(ENVIRONMENT, **(environment or {})),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            # The tests may have been started by nohup, which the runner obeys.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )

    def wait_for(self, name):
        wait(lambda: (self.work / name).exists())
        return self.work / name


def wait(condition, seconds=30):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "the condition did not come true"
        time.sleep(0.01)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def worker(tmp_path):
    return Worker(tmp_path)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 64, 66, 126, 127, 137, 255])
def test_exit_code_is_the_payloads(worker, code):
    assert worker.run(f"exit {code}").returncode == code


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGTERM", "SIGABRT"])
def test_signal_is_128_and_its_number(worker, name):
    number = getattr(signal, name)
    assert worker.run(f"kill -{int(number)} $$").returncode == 128 + number


def test_standard_output_is_the_payloads_alone(worker):
    result = worker.run("echo out; echo err >&2")
    assert result.stdout == b"out\n"
    lines = result.stderr.decode().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("runner: ")
    assert lines[1] == "err"


def test_first_line_shows_the_command_without_variables(worker):
    result = worker.run("true <ENV:SECRET> {q}\ntrue", text="j+q:1", environment={"SECRET": "s3cr3t"})
    line = result.stderr.decode().splitlines()[0]
    assert r"true <ENV:SECRET> 1\ntrue" in line
    assert "s3cr3t" not in result.stderr.decode()


def test_output_is_not_held_back(worker):
    process = subprocess.Popen(
        worker.argv("echo first; read -r line < go; echo second"),
        cwd=worker.work,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    os.mkfifo(worker.work / "go")
    with process:
        # Comes while the payload still waits, so nobody buffers it.
        assert process.stdout.readline() == b"first\n"
        (worker.work / "go").write_text("\n")
        assert process.stdout.read() == b"second\n"
    assert process.returncode == 0


def test_standard_input_is_empty(worker):
    assert worker.run("cat; read -r x; echo $?").stdout == b"1\n"


def test_descriptors_are_not_leaked(worker):
    assert worker.run("ls /proc/self/fd | tr '\\n' ' '").stdout.split() == [b"0", b"1", b"2", b"3"]


def test_broken_pipe_ends_a_payload_as_in_a_shell(worker):
    assert worker.run("yes | head -1; echo ${PIPESTATUS[0]}").stdout == b"y\n141\n"


def test_process_group_is_the_payloads(worker):
    result = worker.run("ps -o pgid= -p $$; echo $$")
    group, pid = result.stdout.split()
    assert group == pid


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGXCPU"])
def test_signal_reaches_the_whole_group(worker, name):
    # A background process of a shell ignores SIGINT and SIGQUIT, and bash itself always ignores SIGQUIT.
    process = worker.start("sleep 100 & echo $! > child; touch ready; wait", "--grace=1")
    with process:
        worker.wait_for("ready")
        child = int((worker.work / "child").read_text())
        process.send_signal(getattr(signal, name))
        process.wait(30)
    assert process.returncode >= 128
    wait(lambda: not is_running(child))


def test_payload_may_tidy_up_when_asked_to_end(worker):
    process = worker.start("trap 'touch tidied; exit 5' TERM; touch ready; sleep 100 & wait")
    with process:
        worker.wait_for("ready")
        process.terminate()
        assert process.wait(30) == 5
    assert (worker.work / "tidied").exists()


def test_other_signals_only_pass_through(worker):
    process = worker.start(
        "trap 'touch told' USR1; touch ready; while [ ! -e told ]; do sleep 0.02; done; exit 4", "--grace=0"
    )
    with process:
        worker.wait_for("ready")
        process.send_signal(signal.SIGUSR1)
        assert process.wait(30) == 4


def test_payload_that_does_not_listen_is_killed(worker):
    process = worker.start(
        "trap '' TERM; sleep 100 & echo $! > child; touch ready; wait; wait", "--grace=0.2"
    )
    with process:
        worker.wait_for("ready")
        child = int((worker.work / "child").read_text())
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    wait(lambda: not is_running(child))


def test_what_a_stopped_payload_leaves_is_killed(worker):
    process = worker.start(
        "(trap '' TERM; sleep 100 & echo $! > child; touch ready; wait; wait) & wait", "--grace=0.2"
    )
    with process:
        worker.wait_for("ready")
        child = int((worker.work / "child").read_text())
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    wait(lambda: not is_running(child))


def test_payload_does_not_outlive_a_killed_runner(worker):
    process = worker.start("sleep 100 & echo $! > child; echo $$ > shell; touch ready; wait")
    with process:
        worker.wait_for("ready")
        pids = [int((worker.work / name).read_text()) for name in ("child", "shell")]
        process.kill()
    wait(lambda: not any(map(is_running, pids)))


def test_signals_while_started_in_the_background_of_a_script(worker):
    """A script's ``&`` makes SIGINT and SIGQUIT ignored; the payload must listen all the same."""
    argv = worker.argv("trap 'exit 9' INT; touch ready; sleep 100 & wait")
    script = ["/bin/sh", "-c", '"$@" & echo $! > runner; wait $!', "sh", *argv]
    process = subprocess.Popen(script, cwd=worker.work, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    with process:
        worker.wait_for("ready")
        os.kill(int((worker.work / "runner").read_text()), signal.SIGINT)
        assert process.wait(30) == 9


def test_stopped_while_fetching(worker):
    with SilentServer() as server:
        worker.area = server.url
        stop_while_fetching(worker)


class SilentServer:
    """A web server that begins each answer, and never ends it."""

    def __enter__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        self._open = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def _serve(self):
        while True:
            connection, _ = self._listener.accept()
            self._open.append(connection)
            request = connection.recv(65536)
            if not request:
                return
            missing = b".staged.json" in request
            connection.sendall(b"HTTP/1.1 404 no\r\n\r\n" if missing else b"HTTP/1.1 200 OK\r\n\r\nsome")
            if missing:
                connection.close()

    def __exit__(self, *_):
        socket.create_connection(self._listener.getsockname()).close()
        self._thread.join()
        for connection in [*self._open, self._listener]:
            connection.close()


def stop_while_fetching(worker):
    process = subprocess.Popen(
        worker.argv("touch started", files=[("k", "file")]),
        cwd=worker.work,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
    )
    with process:
        wait(lambda: any(".part-" in path.name for path in worker.work.iterdir()))
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
        assert b"before the payload was started" in process.stderr.read()
    assert list(worker.work.iterdir()) == []


def test_tokens_stay_here(worker):
    environment = dict.fromkeys(runner.TOKENS, "secret") | {"OTHER": "x y"}
    result = worker.run("env", environment=environment)
    assert b"secret" not in result.stdout
    assert b"OTHER=x y\n" in result.stdout
    kept = worker.run("env", "--keep-tokens=yes", environment=environment)
    assert kept.stdout.count(b"secret") == len(runner.TOKENS)


def test_environment_values_of_the_command(worker):
    result = worker.run(
        "export A='a b'\\''c $HOME' N='<WMS:attemptNum>'; printf '%s|' \"$A\" \"$N\"", "--attempt=2"
    )
    assert result.stdout == b"a b'c $HOME|2|"


def test_files_beside_the_runner_are_not_its_modules(worker, tmp_path):
    for name in ("re", "json", "signal", "zlib", "time", "enum", "os", "binascii"):
        (worker.area / f"{name}.py").write_text("raise SystemExit('imported')\n")
    staged = worker.area / "cmd_line_decoder.py"
    staged.write_bytes(Path(runner.__file__).read_bytes())
    argv = worker.argv("echo {q}", text="j+q:1")
    argv[1] = str(staged)
    result = subprocess.run(
        argv, cwd=worker.work, env=ENVIRONMENT, stdout=subprocess.PIPE, check=True, timeout=60
    )
    assert result.stdout == b"1\n"


def test_hostile_names_from_end_to_end(worker):
    names = [
        "a b",
        "a+b:c%41",
        "it's",
        'q"q',
        "$HOME",
        "x;y&z",
        "new\nline",
        "é☃",
        "-rf",
        "*",
        "~",
        "back\\slash",
        "d/e f/",
    ]
    for name in names:
        path = worker.area / name
        path.parent.mkdir(exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
            (path / "g h").write_text(name)
        else:
            path.write_text(name)
    files = [(f"k{number}: +", name) for number, name in enumerate(names)]
    # Once outside of quotes and once inside; a directory is read by a pattern behind it.
    parts = [(key, "g*" if name.endswith("/") else "") for key, name in files]
    command = "; ".join(f'cat -- <FILE:{key}>{g}; echo; cat "<FILE:{key}>"{g}; echo' for key, g in parts)
    result = worker.run(command, files=files)
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode() == "".join(f"{name}\n{name}\n" for name in names)


def test_area_put_in_front_stays_one_word(worker):
    (worker.area / "r un.qg").write_text("graph")
    command = f"cat '{worker.area}/'<FILE:runQgraphFile>"
    result = worker.run(command, files=[("runQgraphFile", "r un.qg")], direct="runQgraphFile")
    assert result.stdout == b"graph"
    assert list(worker.work.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "code", "part"),
    [
        ("<FILE:x>", runner.EXIT_PLACEHOLDER, "<FILE:x>"),
        ("<WMS:NOT_THERE>", runner.EXIT_PLACEHOLDER, "<WMS:NOT_THERE>"),
    ],
)
def test_own_failure_is_one_line(worker, command, code, part):
    result = worker.run(command)
    assert (result.returncode, result.stdout) == (code, b"")
    (line,) = result.stderr.decode().splitlines()
    assert line.startswith("runner: ")
    assert part in line
    assert f"exit code {code}" in line


def test_bad_arguments(worker):
    result = subprocess.run([sys.executable, runner.__file__, "zz"], capture_output=True, timeout=60)
    assert result.returncode == runner.EXIT_USAGE
    assert result.stderr.count(b"\n") == 1


def test_command_that_is_too_long_for_one_argument(worker):
    result = worker.run("true {q}", "--run=" + "x" * 10, text="j+q:" + "v" * 120_000)
    assert result.returncode == 0
    (worker.area / "job_parameters" / "a").mkdir(parents=True)
    text = runner.render_shard(["q"], 0, [("v" * 200_000,)])
    (worker.area / runner.shard_name("a", 0)).write_text(text)
    # A command may be longer than an argument may be, as long as each of its words is not.
    result = worker.run("echo {q} | wc -c; exit 5", "--parameters=a@1", text="a:0")
    assert (result.returncode, result.stdout.strip()) == (5, b"200001")


@pytest.mark.parametrize("form", ["path", "file", "http"])
def test_archive(worker, form, httpd):
    scripts = worker.area / "scripts"
    scripts.mkdir()
    (scripts / "run.sh").write_text("#!/bin/sh\necho ran $1\n")
    archive = worker.area / "cache" / "jobO.12-34.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(scripts / "run.sh", arcname="run.sh")
    direct = {"path": str(archive), "file": archive.as_uri(), "http": ""}[form]
    if form == "http":
        direct = httpd(worker.area) + "/server/panda/cache/jobO.12-34.tar.gz"
    result = worker.run("./run.sh <FILE:script>", files=[("script", "run.sh")], direct=direct)
    assert (result.returncode, result.stdout) == (0, b"ran run.sh\n"), result.stderr
    assert [path.name for path in worker.work.iterdir()] == ["run.sh"]


def test_damaged_archive(worker):
    archive = worker.area / "jobO.1.tar.gz"
    archive.write_bytes(b"\x1f\x8b\x08\x00 not really")
    result = worker.run("true", "--pause=0", direct=str(archive))
    assert result.returncode == runner.EXIT_DAMAGED
    assert b"jobO.1.tar.gz" in result.stderr


def test_archive_without_a_script(worker):
    archive = worker.area / "jobO.1.tar.gz"
    with tarfile.open(archive, "w:gz"):
        pass
    result = worker.run("true", files=[("script", "run.sh")], direct=str(archive))
    assert result.returncode == runner.EXIT_MISSING
    assert b"does not hold 'run.sh'" in result.stderr


def test_value_that_no_command_can_hold(worker):
    path = worker.area / runner.shard_name("a", 0)
    path.parent.mkdir(parents=True)
    path.write_text(runner.render_shard(["q"], 0, [("a\0b",)]))
    result = worker.run("echo {q}", "--parameters=a@1", text="a:0")
    assert result.returncode == runner.EXIT_SHARD
    assert b"order id 0" in result.stderr


def test_long_command_is_shown_in_part(worker):
    result = worker.run("true {q}", text="j+q:" + "v" * 10_000)
    assert len(result.stderr) < 5000
    assert b"(10005 characters)" in result.stderr


def test_area_for_which_lsst_resources_is_missing(worker):
    worker.area = "s3://bucket/run"
    line = worker.argv("true", files=[("k", "file")])
    line[1:1] = ["-I", "-S"]
    result = subprocess.run(line, cwd=worker.work, env=ENVIRONMENT, capture_output=True, timeout=60)
    assert result.returncode == runner.EXIT_UNREACHABLE
    assert b"s3://bucket/run/ needs lsst.resources" in result.stderr


def test_nothing_is_imported_for_files_in_place(worker):
    worker.area = "s3://bucket/run"
    line = worker.argv("echo s3://bucket/<FILE:k>", files=[("k", "file")], direct="k")
    line[1:1] = ["-I", "-S"]
    result = subprocess.run(line, cwd=worker.work, env=ENVIRONMENT, capture_output=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, b"s3://bucket/file\n"), result.stderr


def test_archive_that_leaves_the_directory(worker):
    archive = worker.area / "jobO.1.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(runner.__file__, arcname="../evil")
    result = worker.run("true", direct=str(archive))
    assert result.returncode == runner.EXIT_UNSAFE
    assert b"'../evil'" in result.stderr


@pytest.fixture
def httpd():
    """Serve a directory; the paths of real servers, as far as they matter here."""
    started = []

    def serve(folder):
        code = (
            "import http.server as h, functools, sys; s = h.ThreadingHTTPServer(('127.0.0.1', 0),"
            " functools.partial(h.SimpleHTTPRequestHandler, directory=sys.argv[1]));"
            " print(s.server_address[1], flush=True); s.serve_forever()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        started.append(process)
        return f"http://127.0.0.1:{int(process.stdout.readline())}"

    yield serve
    for process in started:
        with process:
            process.kill()


class TestOutputs:
    """Outputs go to where the submit side expects them."""

    def run(self, worker, command, *outputs):
        return worker.run(command, runner.encode_option("outputs", runner.encode_outputs(outputs)))

    def test_put(self, worker, tmp_path):
        home = tmp_path / "submit %41"
        home.mkdir()
        outputs = [("a", str(home / "x y.txt")), ("b", (home / "é.txt").as_uri())]
        result = self.run(worker, "echo 1 > <FILE:a>; echo 2 > <FILE:b>", *outputs)
        assert (result.returncode, result.stderr.count(b"\n")) == (0, 1), result.stderr
        assert {path.name: path.read_text() for path in home.iterdir()} == {"x y.txt": "1\n", "é.txt": "2\n"}

    def test_missing(self, worker, tmp_path):
        result = self.run(worker, "true", ("a", f"{tmp_path}/out"))
        assert result.returncode == runner.EXIT_OUTPUT
        assert b"'out' (<FILE:a>)" in result.stderr

    def test_directory_that_is_not_here(self, worker, tmp_path):
        destination = f"{tmp_path}/nowhere/o ut"
        result = self.run(worker, "echo 1 > <FILE:a:b>", ("a:b", destination))
        assert result.returncode == 0, result.stderr
        assert b"left in the staging area" in result.stderr
        assert not (tmp_path / "nowhere").exists()
        assert (worker.area / runner.left_output("a:b", destination)).read_text() == "1\n"

    def test_neither_directory_is_here(self, worker, tmp_path):
        worker.area.rename(tmp_path / "away")
        result = self.run(worker, "touch <FILE:a>", ("a", f"{tmp_path}/nowhere/out"))
        assert result.returncode == runner.EXIT_OUTPUT
        assert not worker.area.exists()

    def test_of_a_failed_payload(self, worker, tmp_path):
        result = self.run(
            worker, "touch <FILE:a>; exit 3", ("a", f"{tmp_path}/log"), ("b", f"{tmp_path}/out")
        )
        assert result.returncode == 3
        assert (tmp_path / "log").exists()
        assert not (tmp_path / "out").exists()

    def test_already_there(self, worker):
        result = self.run(worker, "touch <FILE:a>", ("a", f"{worker.work}/out"))
        assert result.returncode == 0

    def test_other_stores(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "o ut").write_text("x")
        (tmp_path / "store").mkdir()
        runner.ResourceArea((tmp_path / "store").as_uri()).put("o ut")
        assert (tmp_path / "store" / "o ut").read_text() == "x"


class TestAttempts:
    OPTIONS = ("--retry-unless-exit=7,8", "--run=r1")
    NUMBER = "echo <WMS:attemptNum>; exit 9"

    def attempt(self, worker, panda_id, code, *options, task="11", text="isr:3"):
        result = worker.run(
            f"echo ran; exit {code}",
            *(options or self.OPTIONS),
            text=text,
            environment=self.environment(panda_id, task),
        )
        return result.returncode, result.stdout == b"ran\n", result.stderr.decode()

    def environment(self, panda_id, task="11"):
        """Make what the pilot gives with its plugin for Rubin."""
        return {"PANDAID": str(panda_id), "PanDA_TaskID": task}

    def number(self, worker, panda_id, *, task="11", text="isr:3", command=NUMBER):
        result = worker.run(command, "--run=r1", text=text, environment=self.environment(panda_id, task))
        assert result.returncode == 9, result.stderr
        return int(result.stdout)

    def test_later_attempt_ends_at_once(self, worker):
        assert self.attempt(worker, 101, 7)[:2] == (7, True)
        code, ran, message = self.attempt(worker, 105, 0)
        assert (code, ran) == (7, False)
        assert "exit code 7" in message

    def test_other_codes_are_retried(self, worker):
        assert self.attempt(worker, 101, 9)[:2] == (9, True)
        assert self.attempt(worker, 105, 0)[:2] == (0, True)

    def test_an_attempt_that_was_told_to_end_is_retried(self, worker):
        """As after too much memory; many programs then end with a code of their own."""
        process = worker.start(
            "trap 'exit 7' TERM; touch ready; sleep 100 & wait",
            *self.OPTIONS,
            text="isr:3",
            environment=self.environment(101),
        )
        with process:
            worker.wait_for("ready")
            process.terminate()
            assert process.wait(30) == 7
        assert self.attempt(worker, 105, 0)[:2] == (0, True)

    def test_another_job_runs(self, worker):
        self.attempt(worker, 101, 7)
        assert self.attempt(worker, 105, 0, text="isr:4")[:2] == (0, True)

    def test_another_task_of_a_restart_runs(self, worker):
        self.attempt(worker, 101, 7)
        assert self.attempt(worker, 105, 0, task="12")[:2] == (0, True)

    def test_another_run_runs(self, worker):
        self.attempt(worker, 101, 7)
        assert self.attempt(worker, 105, 0, "--retry-unless-exit=7", "--run=r2")[:2] == (0, True)

    def test_same_attempt_started_again_runs(self, worker):
        self.attempt(worker, 101, 7)
        assert self.attempt(worker, 101, 0)[:2] == (0, True)

    def test_an_attempt_that_comes_late_does_not_end_for_a_newer_one(self, worker):
        self.attempt(worker, 105, 7)
        assert self.attempt(worker, 101, 0)[:2] == (0, True)

    def test_without_the_option_nothing_is_kept(self, worker):
        self.attempt(worker, 101, 7, "--run=r1")
        assert list(worker.area.iterdir()) == []

    def test_an_ordinary_first_attempt_writes_nothing(self, worker):
        self.attempt(worker, 101, 0)
        assert list(worker.area.iterdir()) == []

    def test_long_pseudo_input(self, worker):
        text = "isr+qgraphNodeId:" + ",".join(["0190a6b4-7d3e-7c4f-9a1b-000000000000"] * 50)
        assert self.attempt(worker, 101, 8, text=text)[:2] == (8, True)
        assert self.attempt(worker, 105, 0, text=text)[:2] == (8, False)

    def test_numbers(self, worker):
        assert [self.number(worker, panda_id) for panda_id in (101, 105, 105, 230)] == [0, 1, 1, 2]
        assert self.number(worker, 231, text="isr:4") == 0
        assert self.number(worker, 232, task="12") == 0

    def test_an_attempt_that_was_killed_counts(self, worker):
        result = worker.run("echo <WMS:attemptNum>; kill -9 $PPID", environment=self.environment(101))
        assert result.returncode == -signal.SIGKILL
        result = worker.run(self.NUMBER, environment=self.environment(105))
        assert result.stdout == b"1\n"

    def test_an_attempt_that_failed_before_its_payload_counts(self, worker):
        options = {"files": [("a", "missing")], "text": "isr:3", "environment": self.environment(101)}
        result = worker.run(self.NUMBER, "--run=r1", "--tries=1", **options)
        assert result.returncode == runner.EXIT_MISSING
        assert self.number(worker, 105) == 1

    def test_many_at_once(self, worker):
        """Each of 24 workers, two for each attempt, gets a number that fits what was there before."""
        assert self.number(worker, 100) == 0
        processes = [
            subprocess.Popen(
                worker.argv(self.NUMBER, "--run=r1", text="isr:3"),
                cwd=worker.work,
                env={**ENVIRONMENT, **self.environment(panda_id)},
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            for panda_id in [*range(101, 113)] * 2
        ]
        numbers = [int(process.communicate(timeout=60)[0]) for process in processes]
        assert all(1 <= number <= 1 + index % 12 for index, number in enumerate(numbers))
        assert [self.number(worker, panda_id) for panda_id in range(100, 113)] == list(range(13))

    def test_code_and_number_together(self, worker):
        command = "echo <WMS:attemptNum>; exit $((7 + <WMS:attemptNum>))"
        options = ("--retry-unless-exit=8", "--run=r1")
        results = [
            worker.run(command, *options, text="isr:3", environment=self.environment(panda_id))
            for panda_id in (101, 102, 103)
        ]
        assert [(result.returncode, result.stdout) for result in results] == [
            (7, b"0\n"),
            (8, b"1\n"),
            (8, b""),
        ]

    def test_without_a_pilot_the_number_is_0_and_said_to_be(self, worker):
        result = worker.run(self.NUMBER)
        assert result.stdout == b"0\n"
        assert result.stderr.count(b"cannot be counted: the environment has no PANDAID") == 1
        assert list(worker.area.iterdir()) == []

    def test_web_server_that_takes_nothing_is_said_once(self, worker, httpd):
        url = httpd(worker.area)
        worker.area = url
        code, ran, message = self.attempt(worker, 101, 7)
        assert (code, ran) == (7, True)
        assert message.count("may be tried again") == 1
        result = worker.run(self.NUMBER, environment=self.environment(105))
        assert result.stdout == b"0\n"
        assert result.stderr.count(b"cannot be counted: the server answered 501") == 1

    @pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("/tmp")])
    def test_area_that_has_something_in_the_way(self, worker, make):
        make(worker.area / ".attempts")
        code, ran, message = self.attempt(worker, 101, 7)
        assert (code, ran) == (7, True)
        assert message.count("may be tried again") == 1

    def test_notes_that_are_none(self, worker):
        self.number(worker, 101)
        (folder,) = (worker.area / ".attempts").glob("*/*")
        for name in ("x", "1=x", "2=", "=3", "-5", "\u00b2", "1 2", "9" * 40):
            (folder / name).touch()
        os.mkfifo(folder / "105=7")
        assert self.attempt(worker, 107, 0)[:2] == (7, False)
        assert self.number(worker, 107) == 2


class TestFinalJob:
    @pytest.mark.parametrize("text", ["", "r1\n", "r0\nr1\n"])
    def test_does_not_run_in_a_cancelled_run(self, worker, text):
        (worker.area / runner.CANCELLED).write_text(text)
        result = worker.run("echo ran", "--final=yes", "--run=r1")
        assert (result.returncode, result.stdout) == (runner.EXIT_CANCELLED, b"")

    def test_runs_if_another_run_was_cancelled(self, worker):
        (worker.area / runner.CANCELLED).write_text("r0\n")
        assert worker.run("echo ran", "--final=yes", "--run=r1").stdout == b"ran\n"

    @pytest.mark.parametrize("final", ["always", "no"])
    def test_runs_if_it_shall(self, worker, final):
        (worker.area / runner.CANCELLED).write_text("")
        assert worker.run("echo ran", f"--final={final}").stdout == b"ran\n"

    def test_runs_in_a_run_that_was_not_cancelled(self, worker):
        assert worker.run("echo ran", "--final=yes").stdout == b"ran\n"

    def test_over_http(self, worker, httpd):
        (worker.area / runner.CANCELLED).write_text("")
        worker.area = httpd(worker.area)
        assert worker.run("echo ran", "--final=yes").returncode == runner.EXIT_CANCELLED


class TestMonitor:
    """A stand-in for prmon with its options, its end when the watched process ends, and its two files."""

    SCRIPT = """#!/bin/sh
while getopts i:f:j:p: o; do case $o in i) i=$OPTARG;; f) f=$OPTARG;; j) j=$OPTARG;; p) p=$OPTARG;; esac; done
echo "Time pss" > "$f"
while kill -0 "$p" 2>/dev/null; do sleep 0.02; done
echo "{\\"watched\\": $p, \\"interval\\": $i}" > "$j"
"""

    @pytest.fixture
    def path(self, tmp_path):
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "prmon").write_text(self.SCRIPT)
        (folder / "prmon").chmod(0o755)
        return {"PATH": f"{folder}:{ENVIRONMENT['PATH']}"}

    def test_watches_the_payload(self, worker, path):
        result = worker.run(
            "echo $$; while [ ! -s memory_monitor_output.txt ]; do sleep 0.02; done; exit 3",
            "--prmon=yes",
            environment=path,
        )
        assert result.returncode == 3
        summary = json.loads((worker.work / "memory_monitor_summary.json").read_text())
        assert summary == {"watched": int(result.stdout), "interval": 5}

    def test_absence_is_no_error(self, worker):
        result = worker.run("exit 0")
        assert (result.returncode, result.stderr.count(b"\n")) == (0, 1)

    def test_not_if_asked_not_to(self, worker, path):
        worker.run("true", "--prmon=no", environment=path)
        assert list(worker.work.iterdir()) == []

    def test_not_if_the_site_watches_the_runner(self, worker, path, tmp_path):
        """As sites' command lines do it: the runner in the background, prmon for its process.

        The runner waits here until prmon is there; on a busy machine it could be the faster one.
        """
        script = (
            '{ while [ ! -s ../o ]; do sleep 0.02; done; exec "$@"; } & p=$!; '
            "prmon -i 5 -f ../o -j ../j -p $p & wait $p; r=$?; wait; exit $r"
        )
        argv = worker.argv("sleep 0.3; exit 6")
        result = subprocess.run(
            ["/bin/bash", "-c", script, "bash", *argv], cwd=worker.work, env=path, timeout=60
        )
        assert result.returncode == 6
        assert "watched" in (tmp_path / "j").read_text()
        assert list(worker.work.iterdir()) == []

    def test_never_two(self, worker, path):
        (worker.work / "memory_monitor_output.txt").write_text("Time of another\n")
        worker.run("true", environment=path)
        assert not (worker.work / "memory_monitor_summary.json").exists()

    def test_prepared_empty_files_are_used(self, worker, path, tmp_path):
        for name in ("memory_monitor_output.txt", "memory_monitor_summary.json"):
            (tmp_path / name).write_text("")
            (worker.work / name).symlink_to(tmp_path / name)
        worker.run("while [ ! -s memory_monitor_output.txt ]; do sleep 0.02; done", environment=path)
        assert "watched" in (tmp_path / "memory_monitor_summary.json").read_text()
