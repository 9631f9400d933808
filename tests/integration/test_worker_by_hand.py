"""Each job of the demo, run by hand from its task's command line: an emptied
environment, an empty directory, and nothing but what was staged.
"""

import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
from lsst.resources import ResourcePath

from lsst.ctrl.bps.panda.demo.repository import create_repo, missing_outputs, render_run_config
from lsst.ctrl.bps.panda.plan.model import StagedFile
from lsst.ctrl.bps.panda.runs.files import PARAMETERS_DIRECTORY, read_plan
from lsst.ctrl.bps.panda.settings.run import site_staging_area
from lsst.ctrl.bps.panda.staging import StagingSettings, stage

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
PLAIN = {"PATH": f"{BIN}:/usr/bin:/bin"}


def call(command, directory, env=PLAIN):
    """Run a command to its end."""
    return subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared and staged run, and its repository."""
    place = tmp_path_factory.mktemp("hand") / "a place"
    place.mkdir()
    create_repo(place / "repo", visits_per_band=1, detectors=4, bands=("r",), patches=1)
    settings = {
        "wmsServiceClass": "lsst.ctrl.bps.panda.PanDAService",
        "computeSite": "local",
        "submitPath": str(place / "submit"),
        "operator": "ann",
    }
    (place / "run.yaml").write_text(render_run_config(place / "repo", settings=settings))
    env = {**PLAIN, "HOME": str(place), "PANDA_LOCAL_DIR": str(place / "panda")}
    done = call([str(BIN / "bps"), "prepare", "run.yaml"], place, env)
    assert done.returncode == 0, done.stderr[-4000:]
    plan = read_plan(place / "submit")
    base = place / "submit" / PARAMETERS_DIRECTORY
    shards = [
        StagedFile(path.name, str(path), path.relative_to(base).as_posix())
        for path in base.rglob("*")
        if path.is_file()
    ]
    stage([*plan.files, *shards], StagingSettings(area=plan.run.staging_area))
    return place, plan


def run_job(task, job, work):
    """Run one job as PanDA would, with ``env -i``."""
    work.mkdir(parents=True)
    command = task.command.replace("${IN/L}", job.pseudo_input)
    return call(["bash", "-c", command], work)


def test_the_staging_area_is_the_profiles(prepared, monkeypatch):
    place, plan = prepared
    monkeypatch.setenv("PANDA_LOCAL_DIR", str(place / "panda"))
    assert plan.run.staging_area == site_staging_area("local", "payload", plan.run.name)


@pytest.mark.long
def test_all_jobs_by_hand_make_all_outputs(prepared):
    place, plan = prepared
    labels = set()
    for task in chain(plan.tasks, plan.final):
        for job in task.jobs:
            done = run_job(task, job, place / "work" / job.pseudo_input)
            assert done.returncode == 0, f"{job.name}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
            labels.add(task.label)
    assert labels == {label for label, _ in plan.labels}
    assert missing_outputs(place / "repo", plan.run.output_run) == ()


def test_a_job_whose_file_is_gone_says_so(prepared):
    place, plan = prepared
    task = plan.final[0]
    script = Path(ResourcePath(plan.run.staging_area).ospath) / "final_job.bash"
    script.rename(script.with_suffix(".away"))
    try:
        done = run_job(task, task.jobs[0], place / "work" / "gone")
    finally:
        script.with_suffix(".away").rename(script)
    assert done.returncode == 66
    assert done.stderr.strip().splitlines()[-1].startswith("runner: ")
    assert "final_job.bash" in done.stderr
