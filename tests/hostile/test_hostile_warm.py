"""Warm workers whose processes are killed at any moment: nothing is lost or doubled, and nothing is left."""

from __future__ import annotations

import collections
import os
import random
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from panda_servers.local import servers, wait_for

from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.local.endpoint import EndpointClient, diamond
from lsst.ctrl.bps.panda.local.guard import marked_processes

pytestmark = pytest.mark.slow


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "state"
    yield path
    instance.stop(path)
    assert marked_processes(f"PANDA_LOCAL_INSTANCE={path}") == []


class _Victim:
    """An instance of which processes are killed, and what its jobs have done."""

    def __init__(self, directory: Path, ran: Path, chance: random.Random) -> None:
        self._directory = directory
        self._ran = ran
        self._chance = chance
        self._settled: dict[str, int] = {}
        self.killed: collections.Counter[str] = collections.Counter()
        self.runs: list[object] = []
        ran.touch()

    def start(self) -> EndpointClient:
        self.endpoint = instance.start(self._directory, slots=3, parent=os.getpid(), warm_workers=True)
        return EndpointClient(self.endpoint)

    def submit(self) -> None:
        job = '"$PanDA_TaskID/${IN/L}"'
        command = (
            f"echo start {job} >> {self._ran}; pipetask run-qbb --help | grep -q Usage && "
            f"echo end {job} >> {self._ran}"
        )
        name = f"u_me_warm_{len(self.runs):03d}"
        self.runs.append(self.start().submit(name, diamond(3, command=command, attempts=20)))

    def _candidates(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {"server": servers(self._directory)}
        for pid in marked_processes(f"PANDA_LOCAL_INSTANCE={self._directory}"):
            try:
                process = psutil.Process(pid)
                words = process.cmdline()
                leads = os.getsid(pid) == pid
                job = b"PANDA_LOCAL_JOB" in Path(f"/proc/{pid}/environ").read_bytes()
            except (OSError, psutil.Error):
                continue
            warm = any(word.endswith("/template.py") for word in words)
            kind = ("root" if leads else "process") if job and warm else "template" if warm else "other"
            if any(word.endswith("/client.pyc") for word in words):
                kind = "client"
            found.setdefault(kind, []).append(pid)
        return found

    def kill_once(self) -> None:
        """Kill a process of the kind that was killed least; runs are submitted until there is one."""
        kind = min(_KINDS, key=lambda name: (self.killed[name] * _KINDS[name], self._chance.random()))
        pids: list[int] = []

        def find() -> bool:
            pids[:] = self._candidates().get(kind, [])
            if not pids and instance.status(self.endpoint)["open_tasks"] == 0:
                self.submit()
            return bool(pids)

        wait_for(find, f"process to kill: {kind}")
        self.killed[kind] += 1
        try:
            os.kill(self._chance.choice(pids), signal.SIGKILL)
        except ProcessLookupError:
            return
        if kind == "server":
            wait_for(lambda: not servers(self._directory), "end of the server")
            pattern = f"PANDA_LOCAL_INSTANCE={self._directory}"
            wait_for(lambda: not marked_processes(pattern), "end of its processes", timeout=30)
            self.start()
        self.check()

    def check(self) -> None:
        """What is stored as finished never runs again."""
        settled = [f"{task}/{lfn.partition(':')[2]}" for task, lfn in self._rows(_FINISHED)]
        starts = self._executions("start")
        for job in settled:
            assert self._settled.setdefault(job, starts[job]) == starts[job], job

    def _executions(self, word: str) -> collections.Counter[str]:
        lines = [line.split() for line in self._ran.read_text().splitlines()]
        return collections.Counter(line[1] for line in lines if line[0] == word)

    def _rows(self, query: str) -> list[tuple[object, ...]]:
        connection = sqlite3.connect(self._directory / "panda.db", timeout=30)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    def finish(self) -> None:
        client = self.start()
        for run in self.runs:
            status, counts = client.wait(run, timeout=600)  # type: ignore[arg-type]
            assert status == "Finished", counts
        self.check()
        assert len(self._executions("end")) == 8 * len(self.runs)


_KINDS = {"root": 1, "process": 1, "client": 1, "other": 1, "template": 2, "server": 5}
"""Kinds of processes, and how much less often than others they are killed."""

_FINISHED = "SELECT task_id, lfn FROM files WHERE status = 'finished'"


@pytest.mark.parametrize("kills", [len(_KINDS), pytest.param(200, marks=pytest.mark.long)])
def test_kills_lose_and_double_nothing(
    directory: Path, tmp_path: Path, kills: int, record_property: pytest.RecordProperty
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    record_property("seed", seed)
    victim = _Victim(directory, tmp_path / "ran", random.Random(seed))
    victim.submit()
    while sum(victim.killed.values()) < kills:
        victim.kill_once()
    victim.finish()
    assert set(victim.killed) == set(_KINDS)
