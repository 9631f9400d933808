"""``kill -9`` of a submission at any moment: one request or none, and a record that tells which.

Some kills are at random moments of a real ``bps submit`` to the embedded PanDA, most of them between the
first word of what is about to be sent and the end; others are at the moments that matter, which a server
that holds back its reply makes last.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from panda_servers.commands import Commands
from panda_servers.hostile import HostileServer

from lsst.ctrl.bps.panda.demo.repository import create_repo
from lsst.ctrl.bps.panda.errors import PandaBpsError, RefusedError, RunNotFoundError, SubmissionUncertainError
from lsst.ctrl.bps.panda.idds.workflow import make_submission
from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.local.endpoint import environment
from lsst.ctrl.bps.panda.runs.client import RunClient, connect
from lsst.ctrl.bps.panda.runs.files import read_plan
from lsst.ctrl.bps.panda.runs.record import RunRecord, read_record
from lsst.ctrl.bps.panda.runs.submit import submit_run
from lsst.ctrl.bps.panda.settings.run import read_service_settings

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
SERVICE = "lsst.ctrl.bps.panda.PanDAService"
NAME = "u_ann_run"
LIMIT = 240.0

SUBMIT = """
import json, sys
from pathlib import Path
from lsst.ctrl.bps.panda.idds.workflow import Submission
from lsst.ctrl.bps.panda.runs.client import connect
from lsst.ctrl.bps.panda.runs.record import read_record
from lsst.ctrl.bps.panda.runs.submit import submit_run
from lsst.ctrl.bps.panda.settings.run import read_service_settings
env, directory, steps = json.loads(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
record = read_record(directory)
request = json.dumps([{"name": record.name}])
submit_run(connect(read_service_settings({}, env)), record, Submission(tuple(steps), request, "{}"))
"""


def wait_for(condition, what):
    end = time.monotonic() + LIMIT
    while not (found := condition()):
        assert time.monotonic() < end, f"no {what} within {LIMIT} s"
        time.sleep(0.005)
    return found


def let_time_pass(directory):
    """Date what was intended back, as if somebody looked half an hour later."""
    path = Path(directory, "panda_run.json")
    content = json.loads(path.read_text())
    begun = datetime.fromisoformat(content["intention"]["begun_at"]) - timedelta(minutes=30)
    content["intention"]["begun_at"] = begun.isoformat()
    path.write_text(json.dumps(content))


# --- the moments that matter -----------------------------------------------------


@pytest.fixture
def server():
    with HostileServer(patience=LIMIT) as running:
        yield running


@pytest.fixture
def run(server, tmp_path):
    """A prepared run, and how to submit it in a process of its own."""
    directory = tmp_path / "sub"
    RunRecord(run={"name": NAME, "submit_path": str(directory)}, request_id=None).write(directory)
    env = {"PANDA_URL": server.url, "USER": "ann", "XDG_STATE_HOME": str(tmp_path / "state")}
    return Run(server, env, directory)


class Run:
    def __init__(self, server, env, directory):
        self.server, self.env, self.directory = server, env, str(directory)
        self.client = RunClient(connect(read_service_settings({}, env)))

    def end(self, number, *faults, steps=(), seen=1):
        """Submit, and send a signal when the server has got so many requests to submit; exit code, words."""
        self.server.inject("ok", *faults)
        process = subprocess.Popen(
            [sys.executable, "-c", SUBMIT, json.dumps(self.env), self.directory, json.dumps(steps)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            restore_signals=True,
        )
        try:
            wait_for(lambda: self.submissions() >= seen, "submission")
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        self.server.forget_faults()
        return process.returncode, said

    def submissions(self):
        return [seen.command for seen in list(self.server.seen)].count("submit")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ended_between_the_reply_and_the_record(run, number):
    """The reply is held back: what the server has done, nobody here has heard of."""
    code, said = run.end(number, "silent after")
    assert code != 0
    assert read_record(run.directory).request_id is None
    if number == signal.SIGINT:
        assert f"see what became of it: bps report --id {run.directory}" in said
    assert run.client.find(run.directory).request_id == 1
    assert read_record(run.directory).request_id == 1
    assert len(run.server.named(NAME)) == 1


def test_ended_before_the_server_has_done_anything(run):
    run.end(signal.SIGKILL, "silent before")
    with pytest.raises(SubmissionUncertainError, match="may still be at work on the request until"):
        run.client.find(run.directory)
    let_time_pass(run.directory)
    with pytest.raises(RunNotFoundError, match="does not know its name, so it was not submitted"):
        run.client.find(run.directory)
    # Again, and for good.
    code, _ = run.end(0, seen=2)
    assert code == 0
    assert run.client.find(run.directory).request_id == 1
    assert len(run.server.named(NAME)) == 1


def test_ended_while_steps_are_sent(run):
    run.end(signal.SIGKILL, "silent before", steps=["[]", "[]"])
    with pytest.raises(RunNotFoundError, match="before its request itself was sent, so it was not submitted"):
        run.client.find(run.directory)


def test_a_process_that_lives_is_not_disturbed(run):
    """While one submits, others neither submit nor say that nothing is there."""
    run.server.inject("ok", "silent after")
    process = subprocess.Popen([sys.executable, "-c", SUBMIT, json.dumps(run.env), run.directory, "[]"])
    try:
        wait_for(lambda: run.submissions() == 1, "submission")
        with pytest.raises(PandaBpsError, match="Another process is submitting the run"):
            run.client.find(run.directory)
        code, said = run.end(0, seen=1)
        assert code == 1
        assert "Another process is submitting the run" in said
    finally:
        process.kill()
        process.wait()
    assert run.client.find(run.directory).request_id == 1
    assert run.submissions() == 1


# --- random moments ----------------------------------------------------------------


class Place:
    """A submit host with a quantum graph that is ready, and an embedded PanDA."""

    def __init__(self, directory: Path, commands: Commands) -> None:
        self.directory = directory
        self.commands = commands
        self.panda = directory / "panda"
        self.repo = directory / "repo"
        create_repo(self.repo, visits_per_band=1, detectors=2, patches=1)
        endpoint = instance.start(self.panda, slots=1)
        self.env = {
            "PATH": f"{BIN}:/usr/bin:/bin",
            "HOME": str(directory),
            "USER": "ann",
            "LC_ALL": "C.UTF-8",
            **{name: value for name, value in environment(endpoint).items() if value},
        }
        self.connection = connect(read_service_settings({}, self.env))
        self.graph = ""
        # The whole way once: the graph for the others, and how long it takes.
        begin = time.monotonic()
        assert self.submit("first").wait(LIMIT) == 0, (directory / "first.log").read_text()[-3000:]
        self.seconds = time.monotonic() - begin
        (self.graph,) = map(str, (directory / "submit" / "first").glob("*.qg"))

    def submit(self, name: str) -> subprocess.Popen[bytes]:
        """Begin ``bps submit``."""
        config = {
            "includeConfigs": ["resource://lsst.ctrl.bps.panda.demo/bps_demo.yaml"],
            "wmsServiceClass": SERVICE,
            "computeSite": "local",
            "operator": "ann",
            "outputRun": f"u/ann/{name}",
            "uniqProcName": f"u_ann_{name}",
            "submitPath": f"{self.directory}/submit/{name}",
            "butlerConfig": self.repo.as_uri(),
            # What the jobs do is of no interest.
            "runQuantumCommand": "true of nothing",
            **({"qgraphFile": self.graph} if self.graph else {}),
        }
        path = self.directory / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        with (self.directory / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [BIN / "bps", "submit", str(path)],
                cwd=self.directory,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def requests(self, run: str) -> list[int]:
        """All requests of a name, from iDDS's own table: its API names one of them."""
        with sqlite3.connect(f"file:{self.panda}/idds.db?mode=ro", uri=True, timeout=30) as database:
            return [
                row[0] for row in database.execute("select request_id from requests where name = ?", (run,))
            ]

    def command(self, *words: str) -> tuple[int, str]:
        done = subprocess.run(
            [self.commands.folder / "bps", *words],
            cwd=self.directory,
            env={**self.env, "BPS_WMS_SERVICE_CLASS": SERVICE},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory, commands):
    directory = tmp_path_factory.mktemp("kills")
    try:
        yield Place(directory, commands)
    finally:
        instance.stop(directory / "panda")


def kill_at_random(place: Place, name: str, luck: random.Random) -> None:
    """Submit, and kill at a moment of the whole way, or of its last part."""
    process = place.submit(name)
    record = place.directory / "submit" / name / "panda_run.json"
    end = time.monotonic() + (luck.uniform(0, place.seconds) if luck.random() < 0.25 else LIMIT)
    try:
        while process.poll() is None and time.monotonic() < end:
            if record.exists() and '"intention"' in record.read_text():
                time.sleep(luck.choice([0.0, luck.uniform(0, 0.03), luck.uniform(0, 0.3)]))
                break
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()


def check_truth(place: Place, name: str) -> str:
    """Compare what the directory says with what the server has; the case that it was."""
    run, directory = f"u_ann_{name}", place.directory / "submit" / name
    client = RunClient(place.connection)
    if not (directory / "panda_run.json").exists():
        assert place.requests(run) == []
        return "nothing"
    left = read_record(directory)
    if left.intention is None and left.request_id is None:
        assert place.requests(run) == []
        with pytest.raises(RunNotFoundError, match="prepared but not submitted"):
            client.find(str(directory))
        return "prepared"
    if left.request_id is not None:
        assert place.requests(run) == [left.request_id]
        assert client.find(str(directory)).request_id == left.request_id
        return "recorded"
    # What has been sent may still be at work for a moment.
    end = time.monotonic() + 3.0
    while not place.requests(run) and time.monotonic() < end:
        time.sleep(0.05)
    if found := place.requests(run):
        assert client.find(str(directory)).request_id == found[0]
        assert read_record(directory).request_id == found[0]
        return "found"
    with pytest.raises(SubmissionUncertainError, match="does not know the name so far"):
        client.find(str(directory))
    let_time_pass(directory)
    with pytest.raises(RunNotFoundError, match="so it was not submitted"):
        client.find(str(directory))
    return "unsent"


def submit_again(place: Place, name: str) -> None:
    """Submit what a directory holds once more, as a program would that goes on after a crash."""
    directory = place.directory / "submit" / name
    submission = make_submission(read_plan(directory), max_length=10**8)
    known = bool(place.requests(f"u_ann_{name}"))
    with pytest.raises(RefusedError, match="exists already") if known else contextlib.nullcontext():
        submit_run(place.connection, read_record(directory), submission)
    (number,) = place.requests(f"u_ann_{name}")
    assert RunClient(place.connection).find(str(directory)).request_id == number
    place.connection.relay.abort(number)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "kills"), [(0, 3), *(pytest.param(seed, 10, marks=pytest.mark.long) for seed in range(1, 11))]
)
def test_random_kills(place, seed, kills, record_property):
    luck = random.Random(seed)
    cases = {}
    for number in range(kills):
        name = f"kill_{seed}_{number}"
        kill_at_random(place, name, luck)
        cases[name] = check_truth(place, name)
        if cases[name] != "nothing":
            submit_again(place, name)
            assert check_truth(place, name) == "recorded"
    record_property("what the kills have left", sorted(cases.values()))
    # Kills that all come before anything is sent would prove nothing.
    assert {"found", "recorded", "unsent"} & set(cases.values())


@pytest.mark.slow
def test_what_commands_say_of_a_run_that_was_killed(place):
    """A record as a killed ``bps submit`` leaves it, and the commands that name its directory."""
    assert place.submit("whole").wait(LIMIT) == 0
    directory = place.directory / "submit" / "whole"
    whole = read_record(directory)

    def forget():
        content = json.loads((directory / "panda_run.json").read_text())
        begun = datetime.now(UTC).replace(microsecond=0).isoformat()
        intention = {"server": whole.server, "begun_at": begun, "part": "request"}
        kept = {key: value for key, value in content.items() if key not in ("submitted_at", "server")}
        (directory / "panda_run.json").write_text(
            json.dumps({**kept, "request_id": None, "intention": intention})
        )

    for words in (("report",), ("status",), ("cancel",), ("restart",)):
        forget()
        _, said = place.command(*words, "--id", str(directory))
        assert "prepared but not submitted" not in said, words
        assert "it was found by its name" in said, (words, said)
        assert read_record(directory).request_id == whole.request_id
        assert place.requests("u_ann_whole") == [whole.request_id]
    # BPS makes no second run in the directory of the first, and another directory gets no second of the name.
    process = place.submit("whole")
    assert process.wait(LIMIT) != 0
    assert "is there already" in (place.directory / "whole.log").read_text()
    assert os.listdir(directory)
