"""The demo with a quantum that fails, for each kind of failure and with and without retries: what a person
reads first, on an embedded PanDA that makes attempts in vain as a real one does.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from lsst.ctrl.bps.wms_service import WmsStates
from lsst.daf.butler import Butler
from panda_servers.commands import Commands
from panda_servers.runs import await_end, fingerprint

from lsst.ctrl.bps.panda.demo.repository import INPUTS, create_repo
from lsst.ctrl.bps.panda.demo.workplace import Workplace
from lsst.ctrl.bps.panda.local import instance

pytestmark = pytest.mark.slow

LIMIT = 600.0
RETRIES = (0, 2)
SUBMISSIONS = 3
"""At a time; each takes seconds of a core."""
GOOD, LOST = 260315001, 260315002
"""Exposures; the file of the second one is removed."""


@dataclass(frozen=True)
class Kind:
    """A kind of failure of the only quantum of a run, and what is to be said of it."""

    exception: str
    """Regular expression of the first line of ``panda_bps errors``."""

    verdict: str
    traceback: bool = True
    """Whether the log is sure to have one."""

    attempts: int = 1
    """Attempts in which something ran, if two retries are allowed."""

    options: str = ""
    """Options of the task, as ``pipetask --config`` takes them."""

    exposure: int = GOOD
    keys: dict[str, Any] = field(default_factory=dict)
    """Keys of BPS."""


ALWAYS = "detector IN (0)"
KINDS = {
    "exception": Kind(
        r"lsst\.ctrl\.bps\.panda\.demo\.star_task\.TroubleError: deliberate failure of .*'detector': 0.*",
        "payload",
        options=f'-c "simulate:failIf={ALWAYS}"',
    ),
    "dataset": Kind(r"FileNotFoundError: .*pointing.*", "missing input", exposure=LOST),
    "configuration": Kind(
        # Nobody checks the value while the quantum graph is made.
        "ValueError: 999 is not a valid Signals",
        "payload",
        options=f'-c "simulate:failIf={ALWAYS}" -c simulate:killSignal=999',
    ),
    "signal": Kind(
        r"crash, without an exception: payload 139, ended by SIGSEGV; .*",
        "crash",
        traceback=False,
        attempts=3,
        options=f'-c "simulate:failIf={ALWAYS}" -c simulate:killSignal=11',
    ),
    "exit": Kind(
        r".*deliberate failure.*",
        "payload",
        traceback=False,
        attempts=3,
        options=f'-c "simulate:failIf={ALWAYS}" -c simulate:exitCode=7',
    ),
    "memory": Kind(
        # The interpreter alone takes more.
        r"out of memory, without an exception: .*, with \d+ of 64 MB in use",
        "out of memory",
        traceback=False,
        attempts=3,
        options="-c simulate:sleepSeconds=60",
        keys={"cluster": {"isr": {"requestMemory": 64, "memoryMultiplier": 1}}},
    ),
}


class Site:
    """A workplace with a small repository."""

    def __init__(self, directory: Path, commands: Commands) -> None:
        self.place = Workplace(directory)
        self.commands = commands
        create_repo(self.place.repo, visits_per_band=2, detectors=1, bands=("r",), patches=1)
        with Butler.from_config(str(self.place.repo), collections=INPUTS) as butler:
            lost = butler.getURI("starcam_pointing", instrument="StarCam", exposure=LOST)
        Path(lost.ospath).unlink()
        self.place.write_files()
        self.environment = self.place.environment()

    def submit(self, name: str, retries: int) -> str:
        """Submit a run of one quantum; its id."""
        kind = KINDS[name]
        config = yaml.safe_load(self.place.config.read_text())
        data_query = f"instrument='StarCam' AND exposure={kind.exposure} AND detector=0"
        config |= {
            "pipelineYaml": "resource://lsst.ctrl.bps.panda.demo/pipeline.yaml#simulate",
            "payload": {"payloadName": f"{name}{retries}", "dataQuery": data_query},
            "extraQgraphOptions": kind.options,
            "numberOfRetries": retries,
            **kind.keys,
        }
        path = self.place.directory / f"{name}{retries}.yaml"
        path.write_text(yaml.safe_dump(config))
        (run_id,) = re.findall(r"^Run Id: (\d+)$", self.call("bps", "submit", str(path)).stdout, re.MULTILINE)
        return run_id

    def call(self, *command: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        return self.commands.run(
            *command, directory=self.place.directory, environment=self.environment, limit=LIMIT, code=code
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, commands: Commands) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("failed"), commands)
    instance.start(site.place.panda, warm_workers=True, pace="quick,refused_attempts=true")
    try:
        yield site
    finally:
        instance.stop(site.place.panda)


@pytest.fixture(scope="module")
def started(site: Site, request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, int], Future[str]]]:
    """Runs of the selected tests, which go on while others are submitted."""
    functions = [item for item in request.session.items if item.path == request.path]
    names = dict.fromkeys(
        item.callspec.params["name"] if hasattr(item, "callspec") else "memory" for item in functions
    )
    with ThreadPoolExecutor(SUBMISSIONS) as pool:
        yield {(name, n): pool.submit(site.submit, name, n) for name in names for n in RETRIES}


@pytest.mark.parametrize("name", KINDS)
def test_the_cause_comes_first(site: Site, started: dict[tuple[str, int], Future[str]], name: str) -> None:
    kind = KINDS[name]
    for retries in RETRIES:
        run_id = started[name, retries].result()
        assert await_end(site.place.panda, run_id, site.environment, limit=LIMIT) is WmsStates.FAILED
        groups = json.loads(site.call("panda_bps", "errors", run_id, "--json").stdout)["groups"]
        assert len(groups) == 1, groups
        (group,) = groups
        assert re.fullmatch(kind.exception, group["exception"])
        assert group["verdict"]["name"] == kind.verdict
        assert (group["attempts"], group["jobs"]) == (kind.attempts if retries else 1, 1)
        _, blank, first, *_ = site.call("panda_bps", "errors", run_id).stdout.splitlines()
        assert (blank, first) == ("", f"1. {group['exception']}")
        report = re.split(
            r"^Why 1 job failed.*\n", site.call("bps", "report", "--id", run_id).stdout, flags=re.M
        )
        cause, example, *_ = report[1].splitlines()
        assert cause.strip() == first.removeprefix("1. ")
        assert example.endswith(f"PanDA job {group['example']['panda_id']}")
        log = site.call("panda_bps", "logs", run_id).stdout
        assert not kind.traceback or "Traceback (most recent call last)" in log


SAME = [name for name in KINDS if name != "memory"]


@pytest.mark.parametrize("name", SAME)
def test_the_job_fails_in_the_same_way_here(
    site: Site, started: dict[tuple[str, int], Future[str]], name: str, tmp_path: Path
) -> None:
    """What is reproduced ends with the same exit code, and writes nothing into the run's repository."""
    for runs in started.values():
        await_end(site.place.panda, runs.result(), site.environment, limit=LIMIT)
    run_id = started[name, 0].result()
    (group,) = json.loads(site.call("panda_bps", "errors", run_id, "--json").stdout)["groups"]
    code = next(error["code"] for error in group["errors"] if error["source"] == "payload")
    job, made = group["example"]["bps_name"], tmp_path / "made"
    before = fingerprint(site.place.repo)
    done = site.call("panda_bps", "reproduce", run_id, job, "-d", str(made), code=code)
    assert f"Exit code {code} here, {code} on the worker." in done.stderr
    assert fingerprint(site.place.repo) == before
    assert not KINDS[name].traceback or re.search(KINDS[name].exception, done.stderr)


def test_no_memory_limit_here_is_told(site: Site, started: dict[tuple[str, int], Future[str]]) -> None:
    run_id = started["memory", 0].result()
    await_end(site.place.panda, run_id, site.environment, limit=LIMIT)
    (group,) = json.loads(site.call("panda_bps", "errors", run_id, "--json").stdout)["groups"]
    job = group["example"]["bps_name"]
    done = site.call("panda_bps", "reproduce", run_id, job, "--print", "line", "-d", f"memory{run_id}")
    assert "It ended for lack of memory; here nothing limits it" in done.stderr
    assert " run-qbb " in done.stdout
