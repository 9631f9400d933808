"""``panda_bps reproduce``: jobs that failed in many ways on an embedded PanDA end with the same exit code
when they are run again in a directory of the user's, and change nothing of the run.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from lsst.ctrl.bps.wms_service import WmsStates
from panda_servers.commands import Commands
from panda_servers.runs import await_end, fingerprint, make_config, make_service_class, make_workflow

from lsst.ctrl.bps import (
    GenericWorkflowExec,
    GenericWorkflowFile,
    GenericWorkflowJob,
)
from lsst.ctrl.bps.panda.edgenode import cmd_line_decoder as runner
from lsst.ctrl.bps.panda.local import instance

pytestmark = pytest.mark.slow

NAME = "u_ann_reproduced"
SPOILED = "spoil"
"""Job before all others, which damages files of the staging area."""


@dataclass(frozen=True)
class Kind:
    """A way to fail."""

    code: int
    """Exit code on the worker, and when it is run again."""

    command: str = ":"
    before: str = ""
    """Command that runs before the payload's."""

    spoil: str = ""
    """What is done to the staging area first; ``input`` is the job's own input there."""

    retries: int = 0


KINDS = {
    "one": Kind(1, "exit 1"),
    "two": Kind(2, "exit 2"),
    "three": Kind(3, "exit 3"),
    "own": Kind(42, "exit 42"),
    "usage": Kind(64, "exit 64"),
    "python": Kind(1, "python3 -c 'raise ValueError(1)'"),
    "python_exit": Kind(17, "python3 -c 'import sys; sys.exit(17)'"),
    "as_success": Kind(1, f"exit {runner.SUCCESS}"),
    "not_executable": Kind(126, "/etc/passwd"),
    "not_found": Kind(127, "no_such_command"),
    "abort": Kind(134, "kill -ABRT $$"),
    "killed": Kind(137, "kill -KILL $$"),
    "crash": Kind(139, "kill -SEGV $$"),
    "ended": Kind(143, "kill -TERM $$"),
    "before": Kind(9, before="exit 9"),
    "attempt": Kind(31, "exit 3<WMS:attemptNum>", retries=1),
    "variable": Kind(5, 'test "$PANDAID" -gt 0 && test "$SETTING" = given && exit 5'),
    "input": Kind(6, "grep -q content <FILE:input> && exit 6"),
    "missing": Kind(runner.EXIT_MISSING, "cat <FILE:input>", spoil="rm input"),
    "damaged": Kind(runner.EXIT_DAMAGED, "cat <FILE:input>", spoil="echo other > input"),
    "unsafe": Kind(runner.EXIT_UNSAFE, "cat <FILE:input>", spoil="rm input; mkfifo input"),
    "folder": Kind(8, "test -x <FILE:input>/in/go.sh && exit 8"),
    "placeholder": Kind(runner.EXIT_PLACEHOLDER, "echo <WMS:unknown>"),
    "output": Kind(runner.EXIT_OUTPUT, "true <FILE:output>"),
}


REGISTRY = Kind(127, "/no/such/folder/butler --version")
"""A job that may write to the registry of a Butler."""


class Site:
    """A user's place, with a run that has failed in all ways."""

    def __init__(self, directory: Path, commands: Commands) -> None:
        self.directory = directory
        self.commands = commands
        self.panda = directory / "panda"
        self.submit = directory / "submit"
        self.area = directory / "the area" / NAME
        self.environment = {
            "HOME": str(directory),
            "USER": "ann",
            "PATH": os.environ["PATH"],
            "PANDA_LOCAL_DIR": str(self.panda),
            "XDG_STATE_HOME": str(directory / "state"),
        }

    def run(self, endpoint: object) -> None:
        """Run everything to its end."""
        config = make_config(NAME, self.submit, self.area)
        workflow = make_workflow(NAME)
        shell = GenericWorkflowExec("bash", "/bin/bash", False)
        spoils = [f"cd '{self.area}'"]
        for label, kind in {**KINDS, "registry": REGISTRY}.items():
            job = GenericWorkflowJob(label, label, executable=shell)
            text = kind.command.replace("'", "'\\''")
            job.arguments = f"-c '{text}'"
            job.pre_cmdline = kind.before
            job.environment = {"SETTING": "given"}
            job.number_of_retries = kind.retries
            workflow.add_job(job)
            if "<FILE:input>" in kind.command:
                source = self.directory / f"{label}.txt"
                if label == "folder":
                    source /= "in"
                    source.mkdir(parents=True)
                    (source / "go.sh").touch(mode=0o755)
                    source = source.parent
                else:
                    source.write_text("content\n")
                uri = f"{source}/" if source.is_dir() else str(source)
                workflow.add_job_inputs(label, [GenericWorkflowFile("input", uri, wms_transfer=True)])
                spoils.append(kind.spoil.replace("input", source.name) or ":")
            if "<FILE:output>" in kind.command:
                place = self.directory / "returned.txt"
                workflow.add_job_outputs(
                    label, [GenericWorkflowFile("output", str(place), wms_transfer=True)]
                )
        first = GenericWorkflowJob(SPOILED, SPOILED, executable=shell)
        first.arguments = "-c '" + "; ".join(spoils).replace("'", "'\\''") + "'"
        workflow.add_job(first, child_names=[*KINDS, "registry"])
        service = make_service_class(self.environment, endpoint, user="ann")(config)
        prepared = service.prepare(config, workflow, str(self.submit))
        service.submit(prepared)
        self.run_id = prepared.run_id

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run ``panda_bps`` as its user would."""
        return self.commands.run(
            "panda_bps", *words, directory=self.directory, environment=self.environment, limit=300, code=None
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, commands: Commands) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("reproduced"), commands)
    endpoint = instance.start(site.panda, slots=8)
    try:
        site.run(endpoint)
        state = await_end(site.panda, site.run_id, site.environment, limit=600)
        assert state is WmsStates.FAILED
        yield site
    finally:
        instance.stop(site.panda)


@pytest.fixture(scope="module")
def codes(site: Site) -> dict[str, int]:
    """Exit codes that PanDA has of the jobs, by label."""
    jobs = json.loads(site.call("show", str(site.submit), "--jobs", "--json").stdout)["jobs"]
    return {
        job["label"]: error["code"] for job in jobs for error in job["errors"] if error["source"] == "payload"
    }


@pytest.mark.parametrize("label", KINDS)
def test_the_exit_code_is_the_same(site: Site, codes: dict[str, int], label: str, tmp_path: Path) -> None:
    kind = KINDS[label]
    assert codes[label] == kind.code
    before = fingerprint(site.area), fingerprint(site.submit)
    done = site.call("reproduce", str(site.submit), label, "-d", str(tmp_path / "a place"))
    assert done.returncode == kind.code, done.stderr
    assert f"Exit code {kind.code} here, {kind.code} on the worker." in done.stderr
    assert (fingerprint(site.area), fingerprint(site.submit)) == before
    assert not (site.directory / "returned.txt").exists()


def test_the_payload_starts_soon(site: Site, tmp_path: Path) -> None:
    begun = time.time()
    done = site.call("reproduce", str(site.submit), "one", "-d", str(tmp_path / "made"))
    assert done.returncode == 1
    # The directory is made by the script that then starts the job.
    assert (tmp_path / "made" / "work").stat().st_mtime - begun < 30


def test_without_the_staging_area_the_submit_directory_serves(site: Site, tmp_path: Path) -> None:
    away = site.area.with_name("away")
    site.area.rename(away)
    try:
        done = site.call("reproduce", str(site.submit), "input", "-d", str(tmp_path / "made"))
    finally:
        away.rename(site.area)
    assert done.returncode == KINDS["input"].code, done.stderr
    assert "the files are those of the submit directory" in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["on"], "has no job 'on'"),
        (["registry"], "it may write to the registry of the run's Butler"),
        (["one", "-d", "."], "is not empty; name another directory with --directory"),
    ],
)
def test_what_cannot_be_done_is_told(site: Site, words: list[str], told: str) -> None:
    done = site.call("reproduce", str(site.submit), *words)
    assert done.returncode == 1
    assert told in done.stderr


def test_a_shell_is_offered_where_there_is_no_debugger(site: Site, tmp_path: Path) -> None:
    made = tmp_path / "made"
    assert site.call("reproduce", str(site.submit), "own", "-d", str(made), "--no-run").returncode == 0
    assert not (made / "work").exists()
    done = subprocess.run(
        [made / "debug.sh"], input="pwd; exit 5\n", capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 5
    assert "exit 42" in done.stdout
    assert str(made / "work") in done.stdout
