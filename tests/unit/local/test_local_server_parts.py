"""Parts of the server process that need no server: its log, its lock, what
replaces a library, the waker of its loops, and the end of its processes.
"""

import logging
import logging.handlers
import os
import socket
import subprocess
import threading
import time

import pytest

from lsst.ctrl.bps.panda.local.endpoint import SERVER_MARKER
from lsst.ctrl.bps.panda.local.guard import marked_processes
from lsst.ctrl.bps.panda.local.idds_repairs import DeepDiff
from lsst.ctrl.bps.panda.local.idds_repairs.tuning import LoopWaker, StopEvent
from lsst.ctrl.bps.panda.local.processes import MARKER, end_leftovers
from lsst.ctrl.bps.panda.local.server import PrintedLines, listen, set_up_log
from lsst.ctrl.bps.panda.local.settings import take_lock


@pytest.fixture
def root_logger():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    disabled = logging.getLogger("panda-client").disabled
    yield root
    for handler in root.handlers[:]:
        if handler not in handlers and isinstance(handler, logging.handlers.RotatingFileHandler):
            root.removeHandler(handler)
            handler.close()
    root.setLevel(level)
    logging.getLogger("panda-client").disabled = disabled
    logging.captureWarnings(False)


def test_log_has_a_bounded_size(tmp_path, root_logger):
    set_up_log(tmp_path, "INFO", size=10_000)
    for number in range(2000):
        logging.getLogger("x").warning("line %d of many", number)
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == ["server.log", "server.log.1", "server.log.2"]
    assert sum(path.stat().st_size for path in files) < 3 * 10_000
    assert "line 1999 of many" in (tmp_path / "server.log").read_text()


def test_what_is_printed_is_logged_and_cut(tmp_path, root_logger):
    set_up_log(tmp_path, "WARNING")
    stream = PrintedLines(logging.getLogger("printed"), logging.WARNING)
    print("something odd", file=stream)
    print("x" * 100_000, file=stream)
    print("unseen", file=PrintedLines(logging.getLogger("printed"), logging.DEBUG))
    text = (tmp_path / "server.log").read_text()
    assert "printed WARNING something odd" in text
    assert len(text) < 5000
    assert "unseen" not in text


def test_lock_is_held_and_waited_for(tmp_path):
    first = take_lock(tmp_path)
    assert take_lock(tmp_path) is None
    pauses = []

    def release_at_second_pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 2:
            first.close()

    second = take_lock(tmp_path, patience=1.0, sleep=release_at_second_pause)
    assert second is not None
    assert len(pauses) == 2
    second.close()


@pytest.mark.parametrize(
    ("first", "second", "differ"),
    [
        ({}, {}, False),
        ({"a": 1}, {"a": 1}, False),
        ({"a": 1}, {"a": 2}, True),
        ({"a": 1}, {"a": 1, "b": 2}, True),
        ({"a": [1, 2]}, {"a": [2, 1]}, False),
        ({"a": [{"x": 1}, 2]}, {"a": [2, {"x": 1}]}, False),
        ({"a": [1, 1, 2]}, {"a": [1, 2, 2]}, True),
        ({"a": None}, {}, True),
    ],
)
def test_small_deepdiff_agrees_with_what_is_meant(first, second, differ):
    assert bool(DeepDiff(first, second, ignore_order=True)) is differ


def test_waker_wakes_who_waits_and_who_comes_late():
    waker = LoopWaker()
    waker.wait(0.0)
    waker.wake_all()
    # Woken before the wait: noticed at once, however long the wait.
    done = threading.Event()
    waiter = threading.Thread(target=lambda: (waker.wait(600), done.set()), daemon=True)
    waiter.start()
    assert done.wait(30)
    event = StopEvent(waker)
    event.set()
    assert event.wait(0.001) is True
    assert StopEvent(waker).wait(0.001) is False


def test_marked_processes_are_ended_also_those_that_are_just_becoming_a_job(tmp_path):
    def begin(**variables):
        return subprocess.Popen(["sleep", "600"], env={"PATH": os.environ["PATH"], **variables})

    job = begin(**{MARKER: str(tmp_path)})
    becoming = begin(**{SERVER_MARKER: "0123"})
    other = begin(**{MARKER: f"{tmp_path}-other", SERVER_MARKER: "4567"})
    try:
        end = time.monotonic() + 30
        while len(marked_processes(f"{MARKER}={tmp_path}", f"{SERVER_MARKER}=0123")) < 2:
            assert time.monotonic() < end
        assert end_leftovers(tmp_path, dead_server="0123") == 2
        assert (job.wait(timeout=30), becoming.wait(timeout=30)) == (-9, -9)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
        for process in (job, becoming):
            process.kill()
            process.wait()


def test_nobody_else_can_have_the_port_while_the_server_is_made():
    with listen("127.0.0.1", (0,)) as listener, socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(listener.getsockname())
        # Another start takes another port.
        with listen("127.0.0.1", (listener.getsockname()[1], 0)) as second:
            assert second.getsockname() != listener.getsockname()
