"""Ctrl-C and its like at any moment: the right exit code, and nothing that
still runs afterwards.
"""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from panda_servers.local import guards

from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.local.endpoint import EndpointClient, SampleTask, is_alive
from lsst.ctrl.bps.panda.local.guard import marked_processes

pytestmark = pytest.mark.slow

_TOOL = [sys.executable, "-m", "lsst.ctrl.bps.panda.cli.panda_local"]


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "state"
    yield path
    instance.stop(path)


def _wait_for(condition, what, timeout=120):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"no {what} within {timeout} s"
        time.sleep(0.02)


def _processes_of(directory):
    """List what was started with the directory in its command line or
    environment.
    """
    found = marked_processes(f"PANDA_LOCAL_INSTANCE={directory}")
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(directory).encode() in words:
            found.append(int(path.parent.name))
    return found


def _begin(directory, *arguments, **options):
    # With the default actions, whatever the tests' parent ignores.
    environment = {**os.environ, "PANDA_LOCAL_DIR": str(directory)}
    return subprocess.Popen([*_TOOL, *arguments], env=environment, restore_signals=True, **options)


def _open_terminal():
    master, slave = pty.openpty()
    return master, slave


@pytest.fixture(autouse=True)
def default_signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_ctrl_c_at_a_terminal_ends_the_command_and_the_server(directory, tmp_path):
    script = (
        f"trap 'echo heard > {tmp_path}/heard; exit 3' INT; echo $$ > {tmp_path}/ready; "
        "while true; do sleep 0.1; done"
    )
    master, slave = _open_terminal()
    try:
        tool = _begin(
            directory, "run", "--", "bash", "-c", script,
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
        )  # fmt: skip
        _wait_for(lambda: (tmp_path / "ready").exists() and (tmp_path / "ready").read_text(), "command")
        os.write(master, b"\x03")
        assert tool.wait(timeout=60) == 130
    finally:
        os.close(master)
        os.close(slave)
    # The command could tidy up.
    assert (tmp_path / "heard").exists()
    assert not Path(f"/proc/{(tmp_path / 'ready').read_text().strip()}").exists()
    assert instance.find(directory) is None
    assert _processes_of(directory) == []


def test_signal_to_run_ends_the_whole_group_of_the_command(directory, tmp_path):
    script = f"sleep 1000 & echo $! > {tmp_path}/deep.tmp; mv {tmp_path}/deep.tmp {tmp_path}/deep; wait"
    tool = _begin(directory, "run", "--", "bash", "-c", script, stdin=subprocess.DEVNULL)
    _wait_for((tmp_path / "deep").exists, "command")
    tool.send_signal(signal.SIGTERM)
    assert tool.wait(timeout=60) == 143
    deep = int((tmp_path / "deep").read_text())
    _wait_for(lambda: not Path(f"/proc/{deep}").exists(), "end of the command's child", timeout=10)
    assert _processes_of(directory) == []


def test_ctrl_c_to_a_server_in_the_foreground(directory, tmp_path):
    with (tmp_path / "said").open("w") as said:
        tool = _begin(directory, "start", "--foreground", stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    _wait_for(lambda: instance.find(directory), "server")
    assert instance.find(directory).pid == tool.pid
    client = EndpointClient(instance.find(directory))
    command = f"echo $$ > {tmp_path}/job; sleep 600"
    client.submit("u_me_foreground", [SampleTask("long", {"long:0": ()}, command)])
    _wait_for((tmp_path / "job").exists, "job")
    tool.send_signal(signal.SIGINT)
    assert tool.wait(timeout=60) == 130
    assert _processes_of(directory) == []
    assert not (directory / "endpoint.json").exists()
    assert "Traceback" not in (tmp_path / "said").read_text()


@pytest.mark.parametrize("moment", [0.1, 0.7])
def test_interrupted_start_leaves_no_server(directory, moment):
    """Interrupted some time after the server process is there."""
    tool = _begin(directory, "start", stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _wait_for(lambda: (directory / "server.out").exists() or tool.poll() is not None, "server process")
    time.sleep(moment)
    tool.send_signal(signal.SIGINT)
    _, said = tool.communicate(timeout=60)
    if tool.returncode == 0:
        # It was ready before: then it runs, and is found.
        assert instance.find(directory)
        return
    assert tool.returncode == 130
    assert said == b"interrupted\n"
    assert instance.find(directory) is None
    assert _processes_of(directory) == []


def test_stop_after_kill_9_of_server_and_guard_ends_the_jobs_that_were_left(directory, tmp_path):
    endpoint = instance.start(directory, slots=2)
    client = EndpointClient(endpoint)
    # One leaves its session, one is a loop that forks.
    command = (
        f'case "${{IN/L}}" in *:0) setsid sleep 600 & ;; esac; echo $$ >> {tmp_path}/jobs; '
        "while true; do sleep 0.02; done"
    )
    client.submit("u_me_left", [SampleTask("long", {"long:0": (), "long:1": ()}, command)])
    _wait_for(
        lambda: (tmp_path / "jobs").exists() and len((tmp_path / "jobs").read_text().split()) == 2, "jobs"
    )
    # Stopped first, so that it does not see that its guard has ended.
    os.kill(endpoint.pid, signal.SIGSTOP)
    (guard,) = guards(endpoint.pid)
    os.kill(guard, signal.SIGKILL)
    os.kill(endpoint.pid, signal.SIGKILL)
    _wait_for(lambda: not is_alive(endpoint.pid, endpoint.started), "end of the server")
    assert len(marked_processes(f"PANDA_LOCAL_INSTANCE={directory}")) >= 3
    assert instance.stop(directory) is False
    assert _processes_of(directory) == []
