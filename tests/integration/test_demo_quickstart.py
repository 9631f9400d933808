"""The quickstart from its first line to its last, and Ctrl-C in the middle.

In the ordinary pass, it finds a repository of one visit in each band.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lsst.ctrl.bps.panda.demo.repository import create_repo
from lsst.ctrl.bps.panda.demo.workplace import Workplace
from lsst.ctrl.bps.panda.local import instance

pytestmark = pytest.mark.slow

_LIMIT = 1800.0
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin"}


@pytest.fixture(scope="module", params=[14, pytest.param(39, marks=pytest.mark.long)])
def jobs(request: pytest.FixtureRequest) -> int:
    """Jobs of the run; 39 are those of the repository that the quickstart makes."""
    return request.param


@pytest.fixture(scope="module")
def place(jobs: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    place = Workplace(tmp_path_factory.mktemp("quick") / "it's a start")
    if jobs == 14:
        create_repo(place.repo, visits_per_band=1, detectors=2, patches=1)
    yield place
    instance.stop(place.panda)


def _command(place: Workplace, *options: str) -> list[str]:
    module = "lsst.ctrl.bps.panda.cli.quickstart"
    return [sys.executable, "-m", module, "--directory", str(place.directory), *options]


@pytest.fixture(scope="module")
def finished(place: Workplace) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(place), env=_ENVIRONMENT, cwd="/", capture_output=True, text=True, timeout=_LIMIT
    )


def test_it_ends_well_and_tells_what_came_out(
    place: Workplace, finished: subprocess.CompletedProcess[str], jobs: int
) -> None:
    assert finished.returncode == 0, finished.stdout + finished.stderr
    lines = finished.stdout.splitlines()
    assert any(f"SUCCEEDED: {jobs} done" in line for line in lines)
    assert any(line.startswith("TOTAL") for line in lines)
    assert any(line.startswith("All jobs succeeded") for line in lines)
    assert [line.split()[0] for line in lines if line[:2] in ("g ", "r ")] == ["g", "r"]
    assert place.picture.read_bytes().startswith(b"\x89PNG")
    assert str(place.picture) in finished.stdout


def test_the_panda_stays_and_the_commands_told_work(
    place: Workplace, finished: subprocess.CompletedProcess[str]
) -> None:
    endpoint = instance.find(place.panda)
    assert endpoint is not None
    told = [line.strip() for line in finished.stdout.splitlines() if line.startswith("    ")][-7:]
    script, report, pages, submit, watch, errors, stop = told
    assert submit.startswith("bps submit ")
    # The failing run takes long: here is the one that succeeded.
    done = subprocess.run(
        ["sh", "-euc", "\n".join((script, report, pages, watch, errors, stop))],
        env=_ENVIRONMENT | {"HOME": str(place.directory)},
        cwd=place.directory,
        capture_output=True,
        text=True,
        timeout=_LIMIT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TOTAL" in done.stdout
    assert "No failed job is known" in done.stdout
    assert any(line.startswith(f"{endpoint.base}/") for line in done.stdout.splitlines())
    assert instance.find(place.panda) is None


def _processes_of(directory: Path) -> list[str]:
    """Processes that the directory's name gives away, by command line or
    environment.
    """
    mark = os.fsencode(directory)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
                if mark in command or mark in (entry / "environ").read_bytes():
                    found.append(command.replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
    return found


def test_an_interruption_leaves_nothing_running(
    place: Workplace, finished: subprocess.CompletedProcess[str]
) -> None:
    log = place.directory / "interrupted.log"
    with log.open("w") as stream:
        process = subprocess.Popen(_command(place), env=_ENVIRONMENT, stdout=stream, stderr=stream)
    try:
        end = time.monotonic() + _LIMIT
        while " running" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=_LIMIT) == 130, log.read_text()
    finally:
        process.kill()
        process.wait()
    assert "The Butler repository is there" in log.read_text()
    assert "; bps restart --id 2" in log.read_text()
    assert instance.find(place.panda) is None
    assert _processes_of(place.directory) == []


def test_a_second_one_in_the_directory_is_told_to_wait(place: Workplace) -> None:
    place.directory.mkdir(exist_ok=True)
    import fcntl

    with place.lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        done = subprocess.run(
            _command(place, "--stop"), env=_ENVIRONMENT, capture_output=True, text=True, timeout=_LIMIT
        )
    assert done.returncode == 75
    assert "another quickstart works in" in done.stderr
