"""Watching a run by the messages of a real broker (ActiveMQ)."""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from click.testing import CliRunner
from lsst.ctrl.bps.wms_service import WmsStates
from panda_servers.activemq import PASSWORD, TOPIC, USER, ActiveMQServer, job_message, task_message
from panda_servers.recorded_panda import REQUEST_ID, RecordedPanda, RecordedRun

from lsst.ctrl.bps.panda.cli.panda_bps import main
from lsst.ctrl.bps.panda.errors import AuthenticationError, ConnectionFailedError
from lsst.ctrl.bps.panda.insight.messages import BrokerSettings, Subscription

pytestmark = pytest.mark.slow

LIMIT = 120.0


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with ActiveMQServer(tmp_path_factory.mktemp("broker"), tls=True) as server:
        yield server


def settings_of(broker, **values):
    found = BrokerSettings((("127.0.0.1", broker.port),), TOPIC, user=USER, password=PASSWORD)
    return replace(found, **values)


def received(subscription, number):
    found, end = [], time.monotonic() + LIMIT
    while len(found) < number:
        assert time.monotonic() < end, found
        found += subscription.read(1)
    return found


def test_messages_come_to_every_listener_in_their_order(broker):
    listeners = [Subscription(settings_of(broker)) for _ in range(2)]
    encrypted = {"hosts": (("localhost", broker.tls_port),), "tls": True, "verify": str(broker.authorities)}
    listeners.append(Subscription(settings_of(broker, **encrypted)))
    try:
        for listener in listeners:
            listener.open()
        broker.send(*(job_message(1, number, "finished") for number in range(500)))
        for listener in listeners:
            assert [json.loads(body)["jobid"] for body in received(listener, 500)] == list(range(500))
            assert listener.read(0) == []
    finally:
        for listener in listeners:
            listener.close()


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"password": "wrong"}, AuthenticationError, "refuses: .*password is invalid"),
        ({"destination": "/topic/secret"}, AuthenticationError, "not authorized to read from"),
        ({"hosts": (("127.0.0.1", 1),)}, ConnectionFailedError, "cannot be reached: .*Connection refused"),
        ({"hosts": (("no.such.host.invalid", 1),)}, ConnectionFailedError, "cannot be reached"),
    ],
)
def test_what_the_broker_refuses_is_said(broker, values, error, words):
    with pytest.raises(error, match=words) as caught:
        Subscription(settings_of(broker, **values)).open()
    assert PASSWORD not in str(caught.value)


def test_an_unknown_certificate_is_refused(broker):
    values = {"hosts": (("localhost", broker.tls_port),), "tls": True}
    with pytest.raises(ConnectionFailedError, match="CERTIFICATE_VERIFY_FAILED"):
        Subscription(settings_of(broker, **values)).open()


class GoingRun(RecordedRun):
    """A run that is half done until it is told that it is over."""

    over = False

    def detail(self):
        going = {"output_processed_files": self.jobs // 2, "output_failed_files": 0, "transform_status": 2}
        for row in super().detail():
            yield row | ({} if self.over else going)

    def job_rows(self, task, unsuccessful):
        """PanDA does not know more than iDDS."""
        return super().job_rows(task, unsuccessful) if self.over else ()


class ForgetfulPanda(RecordedPanda):
    """Makes each reply anew."""

    def reply(self, path, body):
        self._texts.clear()
        return super().reply(path, body)


class Watch:
    """``panda_bps watch --json`` in a process of its own."""

    def __init__(self, env, *words):
        command = [sys.executable, "-m", "lsst.ctrl.bps.panda.cli.panda_bps", "watch", str(REQUEST_ID)]
        self.process = subprocess.Popen(
            [*command, "--json", *words], env=env, stdout=subprocess.PIPE, text=True
        )
        self.lines = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(json.loads(line))

    def until(self, condition):
        end = time.monotonic() + LIMIT
        while True:
            line = self.lines.get(timeout=max(0.1, end - time.monotonic()))
            if condition(line):
                return line

    def close(self):
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stdout.close()


def test_a_run_is_followed_by_messages_whatever_becomes_of_the_broker(tmp_path):
    run = GoingRun(tasks=2, jobs=40)
    with ForgetfulPanda(run) as server, ActiveMQServer(tmp_path) as broker:
        secret = tmp_path / "secret"
        secret.write_text(PASSWORD)
        env = {"PANDA_URL_SSL": server.url, "HOME": str(tmp_path), "USER": "ann", "PATH": os.environ["PATH"]}
        env |= {"PANDA_MESSAGES_URL": broker.url, "PANDA_MESSAGES_USER": USER}
        watch = Watch(env | {"PANDA_MESSAGES_PASSWORD_FILE": str(secret)}, "--interval", "5")
        try:
            first = watch.until(lambda line: True)
            assert first["messages"] == f"following PanDA's messages from 127.0.0.1:{broker.port}"
            assert first["total"]["SUCCEEDED"] == 40
            ours = [job_message(101, number, "finished") for number in range(1, 6)]
            foreign = [job_message(7, number, "finished") for number in range(1, 60)]
            broker.send(*foreign, *ours, "{not json", *ours, job_message(102, 9, "running"), *foreign)
            line = watch.until(lambda line: line["total"]["RUNNING"] == 1)
            assert line["labels"]["label_1"]["SUCCEEDED"] == 25
            assert line["labels"]["label_2"]["SUCCEEDED"] == 20
            # Nobody asked the servers for that.
            assert server.asked.count("get_requests") == 2  # whether it is there, and a look
            broker.stop()
            line = watch.until(lambda line: not line["messages"].startswith("following"))
            assert "closed the connection; asking the servers every 5 s instead" in line["messages"]
            with broker:
                watch.until(lambda line: line["messages"].startswith("following"))
                run.over = True
                broker.send(task_message(101, "finished"))
                last = watch.until(lambda line: line["ended"])
            assert (last["state"], last["total"]["SUCCEEDED"], last["total"]["FAILED"]) == ("FAILED", 72, 8)
            assert watch.process.wait(LIMIT) == WmsStates.FAILED.value
        finally:
            watch.close()


def test_the_command_says_that_the_broker_refuses_and_asks(broker, tmp_path):
    env = {"XDG_STATE_HOME": str(tmp_path), "USER": "ann", "PANDA_AUTH": None}
    env |= {"PANDA_MESSAGES_URL": broker.url, "PANDA_MESSAGES_USER": USER, "PANDA_MESSAGES_PASSWORD": "no"}
    with RecordedPanda(RecordedRun(tasks=2, jobs=40)) as server:
        env["PANDA_URL_SSL"] = server.url
        result = CliRunner().invoke(main, ["watch", str(REQUEST_ID)], env=env)
        assert result.exit_code == WmsStates.FAILED.value
        assert "refuses: User name [listener] or password is invalid" in result.stderr
        assert "asking the servers every 1 s instead" in result.stderr
        assert "72 done, 8 failed" in result.stdout
        result = CliRunner().invoke(main, ["watch", str(REQUEST_ID), "--poll"], env=env)
        assert result.exit_code == WmsStates.FAILED.value
        assert result.stderr == f"Why it failed: panda_bps errors {REQUEST_ID}\n"
