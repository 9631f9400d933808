"""The demo through ``bps submit`` on the embedded PanDA, as a user would run it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from lsst.ctrl.bps.wms_service import WmsRunReport, WmsStates
from lsst.daf.butler import Butler
from panda_servers.commands import Commands

from lsst.ctrl.bps.panda import LocalPanDAService
from lsst.ctrl.bps.panda.demo.repository import INPUTS, SKYMAP, count_outputs, create_repo, missing_outputs
from lsst.ctrl.bps.panda.demo.summary import read_summary
from lsst.ctrl.bps.panda.demo.workplace import Workplace
from lsst.ctrl.bps.panda.local import instance

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).resolve().parents[2]
_LIMIT = 1200.0
_ENDED = (WmsStates.SUCCEEDED, WmsStates.FAILED, WmsStates.DELETED)
# Jobs of a repository with two visits in two bands and one patch.
_JOBS = {
    "pipetaskInit": 1, "isr": 4, "characterize": 4, "visitSummary": 4, "makeWarp": 4,
    "assembleCoadd": 2, "measureObjects": 1, "objectTable": 1, "finalJob": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run that has ended."""

    run_id: str
    submit_directory: Path
    collection: str
    report: WmsRunReport


class Site:
    """A workplace whose path has a blank and a quote, with a small repository."""

    def __init__(self, directory: Path, commands: Commands) -> None:
        self.commands = commands
        self.place = Workplace(directory)
        directory.mkdir()
        create_repo(self.place.repo, visits_per_band=2, detectors=4, patches=1)
        shutil.copytree(self.place.repo, self.untouched)
        self.place.write_files()

    @property
    def untouched(self) -> Path:
        """Copy of the repository in which nothing has run yet."""
        return self.place.directory / "untouched"

    def call(self, *command: str, more: dict[str, str] | None = None) -> str:
        done = self.run(*command, more=more)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        return done.stdout

    def run(self, *command: str, more: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        environment = self.place.environment()
        # Commands that start at once have a PYTHONPATH of their own.
        folder = Path(sys.executable).parent if more else self.commands.folder
        return subprocess.run(
            [str(folder / command[0]), *command[1:]],
            cwd=self.place.directory,
            env=environment | more if more else self.commands.first_on_path(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LIMIT,
        )

    def submit(
        self,
        config: Path,
        *,
        meanwhile: Callable[[], None] = lambda: None,
        more: dict[str, str] | None = None,
    ) -> Run:
        said = dict(
            line.split(": ", 1)
            for line in self.call("bps", "submit", str(config), more=more).splitlines()
            if ": " in line
        )
        directory = Path(said["Submit dir"])
        meanwhile()
        report = self._wait(said["Run Id"])
        return Run(said["Run Id"], directory, self.place.output_run(directory), report)

    def errors(self) -> str:
        """What jobs wrote that ended badly, for a failed test to show."""
        found = []
        for log in sorted((self.place.panda / "logs").glob("*/payload.stderr")):
            text = log.read_text(errors="replace")
            if "Traceback" in text or " 0 failed" not in text:
                pilot = "".join(path.read_text() for path in log.parent.glob("pilotlog.txt"))
                found.append(f"--- {log.parent.name}\n{text[:300]}\n...\n{text[-1500:]}\n{pilot[-500:]}")
        return "\n".join(found)

    def _wait(self, run_id: str) -> WmsRunReport:
        end = time.monotonic() + _LIMIT
        message = ""
        while time.monotonic() < end:
            reports, message = LocalPanDAService({}).report(wms_workflow_id=run_id)
            if reports and reports[0].state in _ENDED:
                return reports[0]
            time.sleep(1.0)
        raise AssertionError(f"run {run_id} has not ended: {reports} {message}")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, commands: Commands) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("demo") / "it's a place", commands)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in site.place.environment().items():
            patch.setenv(name, value)
        # Starts of Python are not what is looked at here; the quickstart's jobs start cold.
        instance.start(site.place.panda, warm_workers=True)
        try:
            yield site
        finally:
            instance.stop(site.place.panda)


@pytest.fixture(scope="module")
def good(site: Site) -> Run:
    return site.submit(site.place.config)


def _counts(report: WmsRunReport) -> dict[str, dict[str, int]]:
    return {
        label: {state.name: number for state, number in states.items() if number}
        for label, states in report.job_summary.items()
    }


@pytest.mark.newest
@pytest.mark.once
def test_every_job_succeeds(site: Site, good: Run) -> None:
    expected = {label: {"SUCCEEDED": number} for label, number in _JOBS.items()}
    assert _counts(good.report) == expected, site.errors()
    assert good.report.state == WmsStates.SUCCEEDED
    assert good.report.total_number_jobs == sum(_JOBS.values())


@pytest.mark.newest
@pytest.mark.once
def test_all_outputs_are_in_the_butler(site: Site, good: Run) -> None:
    assert missing_outputs(site.place.repo, good.collection) == ()
    counts = count_outputs(site.place.repo, good.collection)
    expected = {
        "starcam_raw": 16, "post_isr_image": 16, "calibrated_image": 16, "source_table": 16,
        "visit_summary": 4, "warp": 4, "coadd": 2, "patch_object_table": 1, "object_table": 1,
        "packages": 1, "isr_config": 1, "isr_log": 16, "isr_metadata": 16,
    }  # fmt: skip
    assert {name: counts[name] for name in expected} == expected
    with Butler.from_config(str(site.place.repo), collections=site.place.output) as butler:
        assert butler.find_dataset("object_table", skymap=SKYMAP, tract=0).run == good.collection


@pytest.mark.newest
@pytest.mark.once
def test_the_objects_are_the_simulated_stars(site: Site, good: Run) -> None:
    summary = read_summary(site.place.repo, [good.collection, INPUTS])
    assert summary.objects > 100
    assert summary.matched > 0.97 * summary.objects
    assert summary.position_scatter < 60.0
    for band in summary.bands:
        assert band["detected"] > 80
        assert band["completeness"] > 0.85
        assert abs(band["magnitude_offset"]) < 0.02
        assert 23.0 < band["depth"] < 25.5


@pytest.mark.newest
@pytest.mark.once
def test_the_object_table_equals_that_of_pipetask_row_by_row(site: Site, good: Run) -> None:
    (graph,) = good.submit_directory.glob("*.qg")
    repo = site.untouched.as_uri()
    site.call("pipetask", "pre-exec-init-qbb", repo, str(graph))
    site.call("pipetask", "run-qbb", repo, str(graph))
    site.call("butler", "aggregate-graph", str(graph), repo, "-j", "1", "--register-dataset-types")
    tables = []
    for place in (site.place.repo, site.untouched):
        with Butler.from_config(str(place), collections=good.collection) as butler:
            tables.append(butler.get("object_table", skymap=SKYMAP, tract=0))
    ours, theirs = tables
    assert ours.colnames == theirs.colnames
    assert len(ours) == len(theirs) > 100
    for name in ours.colnames:
        assert ours[name].dtype == theirs[name].dtype
        np.testing.assert_array_equal(np.asarray(ours[name]), np.asarray(theirs[name]), err_msg=name)


def test_a_configuration_as_people_write_it(site: Site) -> None:
    """Set-up text without a semicolon and over several lines, variables that are not set, a staging area
    that is relative and without a final slash, and a name that is submitted twice.
    """
    script = site.place.directory / "my_setup.sh"
    script.write_text("export MY_SETUP=done\n")
    config = yaml.safe_load(site.place.config.read_text())
    config |= {
        "pipelineYaml": "resource://lsst.ctrl.bps.panda.demo/pipeline.yaml#simulate,isr",
        "payload": {**config.get("payload", {}), "outputRun": "u/demo/as_people"},
        "fileDistributionEndPoint": "my area/{uniqProcName}",
        "setupLSSTEnv": "true # nothing to set up",
        "custom_lsst_setup": f'source {shlex.quote(str(script))}\ntest "$MY_SETUP" = done\n',
        "environment": {
            "STARCAM_ATTEMPT": "<WMS:attemptNum>",
            "MY_PATH": "/x:${NOT_SET_ANYWHERE}",
            "MY_FOLDER": "${NOT_SET_ANYWHERE:-/tmp}/$LOGNAME",
        },
    }
    path = site.place.directory / "unusual.yaml"
    path.write_text(yaml.safe_dump(config))
    again = site.place.directory / "again.yaml"
    where = {
        "submitPath": str(site.place.directory / "elsewhere"),
        "extraQgraphOptions": '-d "exposure = 260315001"',
    }
    again.write_text(yaml.safe_dump(config | where))
    area = site.place.directory / "my area" / "u_demo_as_people"

    def submit_again() -> None:
        staged = {path: path.read_bytes() for path in area.rglob("*") if path.is_file()}
        assert staged
        done = site.run("bps", "submit", str(again))
        assert done.returncode != 0
        assert "A run named 'u_demo_as_people' exists already" in done.stderr
        assert "set uniqProcName" in done.stderr
        assert {path: path.read_bytes() for path in staged} == staged

    run = site.submit(path, meanwhile=submit_again)
    assert _counts(run.report) == {
        "pipetaskInit": {"SUCCEEDED": 1}, "isr": {"SUCCEEDED": 4}, "finalJob": {"SUCCEEDED": 1}
    }, site.errors()  # fmt: skip
    assert count_outputs(site.place.repo, run.collection)["post_isr_image"] == 16


def test_a_task_of_ones_own_as_the_page_says(site: Site) -> None:
    """Whatever the page on the demo has as a file is written and run, in another folder."""
    folder = site.place.directory
    page = (CHECKOUT / "doc" / "lsst.ctrl.bps.panda" / "demo.rst").read_text()
    for name, text in re.findall(r"   :caption: (\w+\.\w+)\n\n((?:   .*\n|\n)+)", page):
        text = textwrap.dedent(text).replace("/home/you/sky", str(folder))
        if name == "counted_run.yaml":
            # Its repository and settings are those of this place.
            mine = {"includeConfigs": [str(site.place.config)]}
            text = yaml.safe_dump(yaml.safe_load(text) | mine)
        (folder / name).write_text(text)
    path = {"PYTHONPATH": str(folder)}
    said = site.call("pipetask", "build", "-p", "counted.yaml", "--show", "task-graph", more=path)
    assert "starCounts" in said
    run = site.submit(folder / "counted_run.yaml", more=path)
    assert _counts(run.report) == {
        label: {"SUCCEEDED": number} for label, number in (_JOBS | {"starCounts": 4}).items()
    }, site.errors()
    read = site.call("python", "read_counts.py", run.collection, more=path)
    assert "magnitude stars" in re.sub(" +", " ", read)
    with Butler.from_config(str(site.place.repo), collections=run.collection) as butler:
        counts = butler.get("star_counts", instrument="StarCam", visit=260315001)
        sources = sum(
            len(butler.get(ref)) for ref in butler.query_datasets("source_table", where="visit=260315001")
        )
    assert counts["stars"].sum() == sources > 100


@pytest.fixture(scope="module")
def failing(site: Site, good: Run) -> Run:
    """A run in which a quantum fails for good, and another only at first."""
    config = yaml.safe_load(site.place.failing_config.read_text())
    config["extraQgraphOptions"] += (
        ' -c "isr:failIf=exposure IN (260315003) AND detector IN (0)"'
        " -c isr:exitCode=42 -c isr:failAttempts=1"
    )
    path = site.place.directory / "twice.yaml"
    path.write_text(yaml.safe_dump(config))
    return site.submit(path)


_FAILING = {
    "pipetaskInit": {"SUCCEEDED": 1},
    "isr": {"SUCCEEDED": 4},
    "characterize": {"SUCCEEDED": 3, "FAILED": 1},
    "visitSummary": {"SUCCEEDED": 3, "PRUNED": 1},
    "makeWarp": {"SUCCEEDED": 3, "PRUNED": 1},
    "assembleCoadd": {"SUCCEEDED": 1, "PRUNED": 1},
    "measureObjects": {"PRUNED": 1},
    "objectTable": {"PRUNED": 1},
    "finalJob": {"SUCCEEDED": 1},
}


@pytest.mark.long
def test_what_failed_and_what_was_pruned_is_told_by_label(failing: Run) -> None:
    assert _counts(failing.report) == _FAILING
    assert failing.report.state == WmsStates.FAILED
    totals = {state.name: number for state, number in failing.report.job_state_counts.items() if number}
    assert totals == {"SUCCEEDED": 16, "FAILED": 1, "PRUNED": 5}


@pytest.mark.long
def test_each_job_has_its_name_and_state(failing: Run) -> None:
    states = {job.name: job.state.name for job in failing.report.jobs}
    assert len(states) == len(failing.report.jobs) == 22
    assert (states["pipetaskInit"], states["finalJob"]) == ("SUCCEEDED", "SUCCEEDED")
    failed = [name for name, state in states.items() if state == "FAILED"]
    assert failed == ["characterize_260315002"]
    assert (states["makeWarp_260315001"], states["makeWarp_260315002"]) == ("SUCCEEDED", "PRUNED")


@pytest.mark.long
def test_jobs_are_named_by_their_data(site: Site, failing: Run) -> None:
    title = "characterize_260315002 (characterize:1; detector=0|1|2|3, visit=260315002, band=g)"
    assert f"for instance {title}, PanDA job" in site.call("bps", "report", "--id", failing.run_id)

    def ask(*words: str) -> dict[str, Any]:
        return json.loads(site.call("panda_bps", words[0], failing.run_id, *words[1:], "--json"))

    (group,) = ask("errors", "--data", "visit=260315002, detector=1")["groups"]
    assert group["example"]["bps_name"] == "characterize_260315002"
    detectors = [data["detector"] for data in group["example"]["data"]]
    assert sorted(detectors) == [0, 1, 2, 3]
    assert ask("errors", "--data", "visit=260315001")["groups"] == []
    jobs = ask("show", "--data", "visit=260315001|260315003")["jobs"]
    assert {job["label"] for job in jobs} == {"characterize", "visitSummary", "makeWarp"}
    assert {data["visit"] for job in jobs for data in job["data"]} == {260315001, 260315003}
    assert len(ask("show", "--data", "exposure=260315003")["jobs"]) == 2, "its first attempt failed"
    found = ask("logs", "--job", "characterize_260315002", "--level", "ERROR")
    assert found["lines"]
    assert {job["bps_name"] for job in found["jobs"]} == {"characterize_260315002"}
    told = site.run("panda_bps", "logs", failing.run_id, "--job", "characterize_260315002").stderr
    assert f"== characterize {title}, attempt 1, failed:" in told
    page = site.place.directory / "run.html"
    site.call("panda_bps", "html", failing.run_id, "-o", str(page))
    assert f"for instance {title}, PanDA job" in page.read_text()
    for words, text in (
        (("logs", "--job", "characterise_260315002"), "did you mean characterize_260315002?"),
        (("show", "--data", "visit=1"), "There is visit=260315001|260315002|260315003|260315004."),
        (("errors", "--data", "visti=1"), "has a visti; did you mean visit?"),
    ):
        done = site.run("panda_bps", words[0], failing.run_id, *words[1:])
        assert (done.returncode, text in done.stderr) == (1, True), done.stderr


@pytest.mark.long
def test_what_succeeded_is_in_the_butler(site: Site, failing: Run) -> None:
    counts = count_outputs(site.place.repo, failing.collection)
    # The quanta of the failed job that were not chosen to fail did their work.
    assert counts["calibrated_image"] == 15
    assert (counts["warp"], counts["coadd"], counts["object_table"]) == (3, 1, 0)


@pytest.mark.long
def test_bps_report_prints_the_same_numbers(site: Site, failing: Run) -> None:
    lines = [line.split() for line in site.call("bps", "report", "--id", failing.run_id).splitlines()]
    (header,) = (words for words in lines if {"UNKNOWN", "PRUNED", "EXPECTED"} <= set(words))
    printed = {}
    for words in lines:
        if words and (words[0] in _FAILING or words[0] == "TOTAL"):
            numbers = dict(zip(header[-len(words) + 1 :], words[1:], strict=True))
            printed[words[0]] = {name: int(numbers[name]) for name in ("SUCCEEDED", "FAILED", "PRUNED")}
    expected = {
        label: {"SUCCEEDED": 0, "FAILED": 0, "PRUNED": 0, **states} for label, states in _FAILING.items()
    }
    assert printed == expected | {"TOTAL": {"SUCCEEDED": 16, "FAILED": 1, "PRUNED": 5}}
