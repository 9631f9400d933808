"""Servers that hang: what a command says meanwhile, and that it ends.

Patience is a parameter, so that nobody waits for a minute; one test waits as a user would.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from panda_servers.hanging import MANNERS, FullBacklog, HangingServer

from lsst.ctrl.bps.panda.errors import ConnectionFailedError, ReplyError, TransportError
from lsst.ctrl.bps.panda.rest.credentials import Anonymous
from lsst.ctrl.bps.panda.rest.panda_api import PandaApi
from lsst.ctrl.bps.panda.rest.relay import Relay
from lsst.ctrl.bps.panda.rest.retries import (
    BYTES_A_SECOND,
    LOGIN_RETRY,
    PING_RETRY,
    PING_TIMEOUTS,
    QUESTION_SILENCE,
    SUBMISSION_TIMEOUTS,
    Patience,
    RetryPolicy,
    Timeouts,
    WaitingBudget,
)
from lsst.ctrl.bps.panda.rest.transport import FIRST_NOTICE, Transport

pytestmark = pytest.mark.slow

SILENCE = 0.6


def make_transport(**more):
    more.setdefault("timeouts", Timeouts(connect=SILENCE, silence=SILENCE, total=60.0))
    more.setdefault("retry", RetryPolicy(attempts=1))
    more.setdefault("notices", io.StringIO())
    return Transport(Anonymous(), **more)


def ask(url, **more):
    """Ask a question that fails; its error."""
    with pytest.raises(TransportError) as caught:
        Relay(make_transport(**more), url).ping()
    return caught.value


@pytest.mark.parametrize("manner", MANNERS)
def test_a_question_ends(manner):
    with HangingServer(manner) as server:
        error = ask(server.url)
    assert type(error) is ConnectionFailedError
    assert error.fault == "read-timeout"
    assert server.connections == 1


@pytest.mark.parametrize("manner", MANNERS)
def test_a_submission_ends_and_may_have_been_sent(manner):
    with HangingServer(manner) as server, pytest.raises(ConnectionFailedError) as caught:
        Relay(make_transport(), server.url).submit("[]")
    assert caught.value.maybe_sent


def test_nobody_lets_us_in():
    with FullBacklog() as server:
        error = ask(server.url)
        assert error.fault == "connect-timeout"
        with pytest.raises(ConnectionFailedError) as caught:
            Relay(make_transport(), server.url).submit("[]")
    # Nothing of it was sent, so nobody has to look it up.
    assert not caught.value.maybe_sent


def test_a_handshake_that_hangs_has_sent_nothing():
    with HangingServer("silent from the start") as server, pytest.raises(ConnectionFailedError) as caught:
        Relay(make_transport(), server.url.replace("http:", "https:")).submit("[]")
    assert (caught.value.fault, caught.value.maybe_sent) == ("connect-timeout", False)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_hangs(monkeypatch, scheme):
    with HangingServer("silent") as proxy:
        monkeypatch.setenv(f"{scheme}_proxy", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        error = ask(f"{scheme}://panda.example.org/server/panda")
    assert proxy.connections == 1
    # The words CONNECT are not the request.
    assert error.fault == ("read-timeout" if scheme == "http" else "connect-timeout")


DNS = """
import socket, subprocess, sys
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
subprocess.run(["mount", "--bind", sys.argv[1], "/etc/resolv.conf"], check=True)
silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
silent.bind(("127.0.0.1", 53))
from lsst.ctrl.bps.panda.errors import TransportError
from lsst.ctrl.bps.panda.rest.credentials import Anonymous
from lsst.ctrl.bps.panda.rest.relay import Relay
from lsst.ctrl.bps.panda.rest.retries import RetryPolicy, Timeouts
from lsst.ctrl.bps.panda.rest.transport import Transport
transport = Transport(
    Anonymous(), timeouts=Timeouts(silence=1.0), retry=RetryPolicy(attempts=1), first_notice=0.2
)
try:
    Relay(transport, "http://panda.example.org/server/panda").submit("[]")
except TransportError as error:
    print(error.fault, error.maybe_sent)
"""


@pytest.mark.skipif(
    subprocess.run(["unshare", "-mn", "true"], capture_output=True, check=False).returncode != 0
    if Path("/usr/bin/unshare").exists()
    else True,
    reason="a name server of one's own needs a network of one's own (root)",
)
def test_names_that_are_not_looked_up(tmp_path):
    """The system's resolver waits 30 s for a name server that says nothing; nobody waits for it."""
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:30 attempts:5\n")
    done = subprocess.run(
        ["unshare", "-mn", sys.executable, "-c", DNS, tmp_path / "resolv.conf"],
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )
    assert done.stdout == "connect-timeout False\n", done.stderr
    assert "Connecting to panda.example.org: submit, " in done.stderr


def test_an_endless_reply_is_left():
    with HangingServer("endless") as server:
        error = ask(server.url, longest=3_000_000)
    assert (type(error), error.fault, error.maybe_sent) == (ReplyError, "too-long", True)


def test_a_long_reply_that_keeps_coming_is_read():
    """It takes longer than the patience, as a report of millions of jobs does."""
    with HangingServer("steady", pause=0.06) as server:
        Relay(make_transport(), server.url).ping()


def test_a_long_request_may_take_its_time_to_be_sent():
    """What is sent counts as what is received; the limit of a socket alone would end it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        port = listener.getsockname()[1]
        program = (
            "import socket, sys, time\n"
            "s = socket.socket(fileno=int(sys.argv[1])); c, _ = s.accept(); n = 0\n"
            "while n < 20_000_000: n += len(c.recv(65536)); time.sleep(0.01)\n"
            "c.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 4\\r\\nConnection: close\\r\\n\\r\\nnull')\n"
        )
        reader = subprocess.Popen(
            [sys.executable, "-c", program, str(listener.fileno())], pass_fds=[listener.fileno()]
        )
        try:
            reply = make_transport(timeouts=Timeouts(connect=1.5, silence=1.5)).post(
                f"http://127.0.0.1:{port}/", body=b"x" * 20_000_000, content_type="text/plain", safe=False
            )
        finally:
            reader.kill()
            reader.wait()
    assert reply.body == b"null"


# --- all calls of a command together -------------------------------------------


def test_the_patience_of_a_command_is_shared():
    """By its clients, and by their clones in threads: what hung once is not asked at length again."""
    budget = WaitingBudget(SILENCE, clock=lambda: 0.0)
    with HangingServer("silent") as server:
        transport = make_transport(budget=budget)
        api = PandaApi(transport, server.url).clone()
        errors = []
        for question in (Relay(transport, server.url).ping, api.tasks_since, lambda: api.job_descriptions(1)):
            with pytest.raises(ConnectionFailedError) as caught:
                question()
            errors.append(caught.value)
        assert [error.fault for error in errors] == ["read-timeout", "not-asked", "not-asked"]
        assert server.connections == 1
        # What is sent for a submission has a patience of its own.
        server.manner = "well"
        transport.post(server.url, body=b"", content_type="text/plain", safe=True, patient=True)


def test_retries_are_part_of_it():
    now = [0.0]
    budget = WaitingBudget(10.0, clock=lambda: now[0])

    def sleep(seconds):
        now[0] += seconds

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/server/panda"
        transport = make_transport(
            budget=budget,
            retry=RetryPolicy(attempts=9, base=8.0),
            sleep=sleep,
            clock=lambda: now[0],
            luck=lambda: 0.99,
        )
        relay = Relay(transport, url)
        with pytest.raises(ConnectionFailedError, match="after 2 attempts"):
            relay.ping()
        with pytest.raises(ConnectionFailedError) as caught:
            relay.ping()
    assert caught.value.fault == "not-asked"
    assert now[0] < 30


def test_patience_comes_back_with_time():
    now = [0.0]
    budget = WaitingBudget(50.0, clock=lambda: now[0])
    now[0] = 49.5
    budget.spend(49.5)
    assert budget.left() == 0
    now[0] = 60.0
    assert budget.left() == pytest.approx(11.0)
    now[0] = 65.0
    budget.spend(5.0)
    assert budget.left() == pytest.approx(6.0)
    now[0] = 1000.0
    assert budget.left() == 50.0


def test_patience_is_for_silence():
    patience = Patience(50.0, 0.0)
    moved = 0
    for second in range(1, 10_000):
        moved += int(BYTES_A_SECOND)
        assert patience.left(float(second), moved) == 50.0
    # However much has come, silence is silence.
    assert patience.left(10_049.0, moved) <= 0
    patience = Patience(50.0, 0.0)
    assert patience.left(51.0, 51) <= 0


def test_the_limits_keep_what_they_promise():
    """A minute for questions, with the start of the program; the relay's own 600 s for a submission."""
    assert QUESTION_SILENCE <= 45
    assert Timeouts().silence == QUESTION_SILENCE
    assert PING_TIMEOUTS.silence + PING_RETRY.budget + PING_RETRY.cap <= 60
    assert LOGIN_RETRY.budget <= 20
    assert SUBMISSION_TIMEOUTS.silence > 600
    # Half a gigabyte at a rate that a working line has.
    assert Timeouts().total * 200_000 > 512 * 1024**2


# --- what is said meanwhile ------------------------------------------------------


def test_it_is_said_what_is_waited_for():
    said = io.StringIO()
    with HangingServer("silent") as server:
        ask(server.url, notices=said, first_notice=0.1)
        host = f"127.0.0.1:{server.port}"
    first, *others = said.getvalue().splitlines()
    assert first.startswith(f"Waiting for {host}: ping, ")
    assert first.endswith(" s so far")
    assert len(others) < 4
    assert FIRST_NOTICE == 5.0


def test_nothing_is_said_of_a_server_that_answers():
    said = io.StringIO()
    with HangingServer("well") as server:
        Relay(make_transport(notices=said), server.url).ping()
    assert said.getvalue() == ""


def test_a_terminal_shows_one_line_that_goes():
    master, slave = pty.openpty()
    try:
        with HangingServer("silent") as server, open(slave, "w", closefd=False) as terminal:
            ask(server.url, notices=terminal, first_notice=0.1)
        said = os.read(master, 10_000).decode()
    finally:
        os.close(master)
        os.close(slave)
    assert said.startswith("\rWaiting for 127.0.0.1:")
    assert "\n" not in said
    assert said.endswith("\r\x1b[K")


def test_where_nobody_listens_nothing_breaks():
    closed = io.StringIO()
    closed.close()
    with HangingServer("silent") as server:
        # A closed stream cannot be asked whether it is a terminal either.
        assert ask(server.url, notices=closed, first_notice=0.1).fault == "read-timeout"


# --- commands ----------------------------------------------------------------------

ASK = """
import sys
from lsst.ctrl.bps.panda.rest.credentials import Anonymous
from lsst.ctrl.bps.panda.rest.relay import Relay
from lsst.ctrl.bps.panda.rest.retries import RetryPolicy, Timeouts
from lsst.ctrl.bps.panda.rest.transport import Transport
transport = Transport(
    Anonymous(), timeouts=Timeouts(connect=600.0, silence=600.0), first_notice=0.1,
    retry=RetryPolicy(attempts=9, base=2000.0, cap=2000.0, budget=9000.0), luck=lambda: 0.5,
)
if sys.argv[2:] == ["refused"]:
    print("asking", file=sys.stderr, flush=True)
try:
    Relay(transport, sys.argv[1]).ping()
except KeyboardInterrupt:
    sys.exit(130)
"""


def interrupt(url, *more):
    """Press Ctrl-C once a process waits for a server; its exit code."""
    process = subprocess.Popen(
        [sys.executable, "-c", ASK, url, *more], stderr=subprocess.PIPE, restore_signals=True
    )
    try:
        assert process.stderr.readline()
        if more:
            time.sleep(0.5)  # the pause between two attempts has nothing to show
        process.send_signal(signal.SIGINT)
        # Its own limits are far above.
        return process.wait(timeout=20)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("manner", ["silent from the start", "half an answer", "a head that trickles"])
def test_ctrl_c_ends_a_command_that_reads(manner):
    with HangingServer(manner) as server:
        assert interrupt(server.url) == 130


def test_ctrl_c_ends_a_command_that_connects():
    with FullBacklog() as server:
        assert interrupt(server.url) == 130


def test_ctrl_c_ends_a_handshake():
    with HangingServer("silent from the start") as server:
        assert interrupt(server.url.replace("http:", "https:")) == 130


def test_ctrl_c_ends_a_pause_between_attempts():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert interrupt(f"http://127.0.0.1:{closed.getsockname()[1]}/server/panda", "refused") == 130


def bps(commands, tmp_path, url, *arguments):
    """Begin a command of somebody whose PanDA is at a URL."""
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "USER": "ann",
        "LC_ALL": "C.UTF-8",
        "PANDA_URL": url,
        "PANDA_URL_SSL": url,
        "BPS_WMS_SERVICE_CLASS": "lsst.ctrl.bps.panda.PanDAService",
    }
    return subprocess.Popen(
        [commands.folder / arguments[0], *arguments[1:]],
        env=env,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


COMMANDS = (
    "bps report --id 7",
    "bps report",
    "bps status --id 7",
    "bps cancel --id 7",
    "bps restart --id u_ann_run",
    "bps ping",
    "panda_bps show 7 --json",
)


@pytest.mark.slow
def test_a_command_ends_within_a_minute_with_an_error(commands, tmp_path):
    """The only one that waits as a user does: 20 min 44 s and exit code 0, once.

    How long each has waited is in its own words; to start takes as long as the machine needs.
    """
    with HangingServer("half an answer") as server, contextlib.ExitStack() as stack:
        begun = {words: bps(commands, tmp_path, server.url, *words.split()) for words in COMMANDS}
        for process in begun.values():
            stack.enter_context(process)
            stack.callback(process.kill)
        said = {words: process.communicate(timeout=600) for words, process in begun.items()}
        codes = {words: process.returncode for words, process in begun.items()}
    for words, (out, err) in said.items():
        assert codes[words] not in (0, -signal.SIGKILL), (words, out, err)
        if words == "bps ping":
            # It is over before it would be said.
            continue
        assert f"Waiting for 127.0.0.1:{server.port}: " in err, words
        waits = re.findall(r", (\d+) s so far", err)
        assert int(waits[0]) >= 5
        assert int(waits[-1]) <= 45
        assert "Traceback" not in err, words
        assert "Waiting" not in out, words
    assert "no complete reply came in time" in said["bps report --id 7"][1]


@pytest.mark.slow
def test_a_server_that_is_not_there_is_an_exit_code(commands, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        process = bps(
            commands, tmp_path, f"http://127.0.0.1:{closed.getsockname()[1]}/server/panda", "bps", "report"
        )
        out, err = process.communicate(timeout=300)
    assert process.returncode == 1, (out, err)
    assert "Error: " in err
    assert "the connection was refused" in err
    assert json.dumps(out) == '""'
