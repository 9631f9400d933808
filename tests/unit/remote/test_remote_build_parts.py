"""Settings, archive and messages of a remote build."""

import json
import os
import subprocess
import sys
import tarfile

import pytest

from lsst.ctrl import bps
from lsst.ctrl.bps import BPS_DEFAULTS, BPS_SEARCH_ORDER, BpsConfig, GenericWorkflowJob
from lsst.ctrl.bps.panda.edgenode import build_cmd_line_decoder
from lsst.ctrl.bps.panda.errors import SettingsError
from lsst.ctrl.bps.panda.idds.workflow import Submission, make_build_submission, render_update
from lsst.ctrl.bps.panda.plan.document import RunAttributes
from lsst.ctrl.bps.panda.plan.model import Resources
from lsst.ctrl.bps.panda.remote.request import make_archive
from lsst.ctrl.bps.panda.settings.remote import (
    BuildSettings,
    is_remote_build,
    read_build_settings,
)
from lsst.ctrl.bps.panda.status.evidence import count_build_job
from lsst.ctrl.bps.panda.status.records import FileCounts, TransformRecord


def make_config(section, **values):
    content = {"outputRun": "u/x", "uniqProcName": "u_x", "operator": "ann", "remoteBuild": section, **values}
    return BpsConfig(
        content,
        search_order=BPS_SEARCH_ORDER,
        defaults=BPS_DEFAULTS,
        wms_service_class_fqn="lsst.ctrl.bps.panda.PanDAService",
    )


def read(section, **values):
    return read_build_settings(make_config(section, **values), {})


def test_the_section_comes_before_the_rest():
    section = {"enabled": True, "queue": "Q_build", "requestMemory": 8000, "numberOfRetries": 0}
    settings = read(section, queue="Q", computeSite="SLAC", LSST_VERSION="w_1", priority=7)
    assert (settings.queue, settings.resources.memory, settings.resources.attempts) == ("Q_build", 8000, 1)
    assert (settings.site, settings.cloud, settings.priority) == ("SLAC", "US", 7)


def test_the_memory_of_a_build_grows_as_that_of_a_job():
    settings = read({"enabled": True, "requestMemory": 4000}, LSST_VERSION="w_1")
    # BPS's own defaults: memoryMultiplier 2, numberOfRetries 5, memoryLimit 491520.
    assert [settings.resources.memory_of(n) for n in (1, 2, 3, 6, 7)] == [4000, 8000, 16000, 128000, 256000]
    assert settings.resources.memory_max == 491520
    section = {"enabled": True, "requestMemory": 4000, "memoryMultiplier": 3, "requestMemoryMax": 20000}
    grown = read(section, LSST_VERSION="w_1").resources
    assert [grown.memory_of(n) for n in (1, 2, 3, 4)] == [4000, 12000, 20000, 20000]
    assert read({"enabled": True}, memoryLimit=9000, LSST_VERSION="w_1").resources.memory_max == 9000


def test_the_command_of_the_site_unless_the_section_has_one():
    command = read({"enabled": True}, computeSite="SLAC", LSST_VERSION="w_1").command
    assert "lsst_distrib/w_1/loadLSST.bash" in command
    assert "edgenode.build_cmd_line_decoder _download_cmd_line_ _build_cmd_line_ _compute_site_" in command
    own = (
        "export A=${B} N={IDDS_MAX_NAME_LENGTH} V={LSST_VERSION}; build _download_cmd_line_ _build_cmd_line_"
    )
    command = read({"enabled": True, "runnerCommand": own}, LSST_VERSION="w_1").command
    assert command == "export A=${B} N=4000 V=w_1; build _download_cmd_line_ _build_cmd_line_"


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"requestMemory": "much"}, "requestMemory of remoteBuild is 'much'"),
        ({"numberOfRetries": -1}, "numberOfRetries of remoteBuild is -1"),
        ({"files": ["/no/such/file"]}, "remoteBuild.files names what is not there: /no/such/file"),
        ({"runnerCommand": "go {NOWHERE}"}, "does not set: NOWHERE (in runnerCommand)"),
    ],
)
def test_what_cannot_be_used(section, words):
    with pytest.raises(SettingsError) as caught:
        read({"enabled": True, **section})
    assert words in str(caught.value)


def names_in(archive):
    with tarfile.open(archive) as tar:
        return {member.name: member for member in tar.getmembers() if member.isfile()}


@pytest.fixture
def place(tmp_path):
    user = tmp_path / "user"
    (user / "parts" / "deep").mkdir(parents=True)
    (user / "run.yaml").write_text(
        "includeConfigs: [parts/more.yaml, '${X_DIR}/x.yaml', /etc/hostname, ../outside.yaml]\n"
    )
    (user / "parts" / "more.yaml").write_text("includeConfigs: deep/last.yaml\n")
    (user / "parts" / "deep" / "last.yaml").write_text("a: 1\n")
    (tmp_path / "outside.yaml").write_text("b: 1\n")
    (tmp_path / "over.yaml").write_text("c: 1\n")
    return tmp_path


def test_an_archive_holds_the_configuration_and_what_it_includes(place):
    (place / "data").mkdir()
    (place / "data" / "table.csv").write_text("1")
    archive = place / "jobO.1.tar.gz"
    make_archive(archive, [str(place / "user" / "run.yaml"), str(place / "data")], [place / "over.yaml"])
    assert set(names_in(archive)) == {
        "run.yaml", "parts/more.yaml", "parts/deep/last.yaml", "data/table.csv", "over.yaml",
    }  # fmt: skip


def test_two_files_of_one_name(place):
    twin = place / "user" / "over.yaml"
    twin.write_text("d: 1\n")
    with pytest.raises(SettingsError, match=r"Two files .* called over.yaml"):
        make_archive(place / "a.tar.gz", [str(twin)], [place / "over.yaml"])
    assert not (place / "a.tar.gz").exists()


def test_too_large(place):
    (place / "noise").write_bytes(os.urandom(11 * 1024**2))
    with pytest.raises(SettingsError, match="Largest: noise"):
        make_archive(place / "a.tar.gz", [str(place / "noise")], [place / "over.yaml"])
    assert sorted(path.name for path in place.iterdir() if "tar" in path.name) == []


def test_the_request_of_a_build():
    settings = BuildSettings(
        command="",
        files=(),
        site="S",
        cloud="",
        queue="Q",
        processing_type="",
        priority=0,
        resources=Resources(2000, 9000, 2.0, 1, 0, 0, 3),
    )
    attributes = RunAttributes("u_x", operator="ann", campaign="camp")
    submission = make_build_submission(settings, "build it", attributes)
    (workflow,) = json.loads(submission.request)
    text = json.dumps(workflow)
    for words in ("build it", "lsst_build", "build_task", "u_x", "camp"):
        assert words in text
    (work,) = (each for each in find_values(workflow, "task_rss_max") if each)
    assert work == 9000
    assert find_values(workflow, "task_rss") == [2000]
    assert find_values(workflow, "task_rss_retry_step") == [4000]


def find_values(value, name):
    """All values of a name in a JSON document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, each in items for found in ([each] if key == name else find_values(each, name))]


def test_the_arguments_of_an_update():
    submission = Submission((), '[{"class": "Workflow"}]', "{}")
    arguments = json.loads(render_update(submission, request_id=5, signature='a"b'))
    assert arguments == [5, 'a"b', {"class": "Workflow"}]


@pytest.mark.parametrize(
    ("status", "counted"),
    [
        ("New", FileCounts(total=1, activated=1)),
        ("Transforming", FileCounts(total=1, activated=1)),
        ("Finished", FileCounts(total=1, processed=1)),
        ("Failed", FileCounts(total=1, failed=1)),
        ("Cancelled", FileCounts(total=1)),
    ],
)
def test_a_build_task_counts_as_a_job(status, counted):
    empty = FileCounts()
    assert count_build_job(TransformRecord(1, 2, "build_task", status, outputs=empty)).outputs == counted
    killed = count_build_job(TransformRecord(1, 2, "build_task", status, outputs=empty), aborted=True)
    assert killed.outputs == (FileCounts(total=1) if counted.failed else counted)
    other = TransformRecord(1, 3, "u_x_01_isr_01", status, outputs=empty)
    assert count_build_job(other) is other
    known = TransformRecord(1, 2, "build_task", status, outputs=FileCounts(total=1, missing=1))
    assert count_build_job(known) is known, "iDDS has counted"


def run_launcher(*arguments, **env):
    command = [sys.executable, build_cmd_line_decoder.__file__, *arguments]
    return subprocess.run(
        command,
        env={"PATH": "/usr/bin:/bin", **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_the_launcher_says_what_it_needs(tmp_path):
    done = run_launcher("https://host/cache/jobO.1.tar.gz", "run.yaml")
    assert done.returncode == 1
    assert "IDDS_BUILD_REQUEST_ID is not set, so this is not a build task of iDDS" in done.stdout
    done = run_launcher("only one")
    assert done.returncode == 1
    assert "Two or three arguments are needed" in done.stdout
    bare = [sys.executable, "-I", "-S", build_cmd_line_decoder.__file__, "a", "b"]
    done = subprocess.run(bare, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "needs lsst.ctrl.bps.panda at the site" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_batch_submission_is_a_build_where_bps_has_them():
    assert is_remote_build(make_config({}, bpsBatchSubmission=True)) == hasattr(
        bps, "GenericWorkflowLazyGroup"
    )
    assert not is_remote_build(make_config({}, bpsBatchSubmission=False))


def test_the_task_has_the_most_that_a_stage_asks_for_unless_the_section_says_more():
    def resources(section, *stages):
        jobs = [GenericWorkflowJob(f"j{number}", "label", **stage) for number, stage in enumerate(stages)]
        return read_build_settings(make_config(section, LSST_VERSION="w_1"), {}, jobs).resources

    one = {"request_memory": 1000, "memory_multiplier": 3, "number_of_retries": 1, "request_memory_max": 5000}
    two = {"request_memory": 1500, "number_of_retries": 0}
    both = resources({}, one, two)
    assert (both.memory, both.memory_growth, both.attempts, both.memory_max) == (1500, 3, 2, 491520)
    assert [both.memory_of(attempt) for attempt in (1, 2)] == [1500, 4500]
    assert resources({}, one, {**two, "request_memory_max": 3000}).memory_max == 5000
    assert resources({}, two).memory_growth == 1
    own = {"requestMemory": 900, "memoryMultiplier": 2, "numberOfRetries": 4, "requestMemoryMax": 2000}
    own = resources(own, one, two)
    assert (own.memory, own.memory_growth, own.attempts, own.memory_max) == (900, 2, 5, 2000)
    with pytest.raises(SettingsError, match=r"requestMemory of job 'j0' is 'much' \(as the job has it\)"):
        resources({}, {"request_memory": "much"})


@pytest.mark.parametrize("word", ["no", "false", "Off", "0", "none", " no "])
def test_a_switch_in_quotes_that_says_no_is_off(word):
    """BPS takes any text for yes, so it is refused where BPS calls for the build all the same."""
    assert not is_remote_build(make_config({"enabled": word}))
    with pytest.raises(SettingsError, match=r"remoteBuild.enabled is .*Write enabled: no, without quotes"):
        read({"enabled": word}, LSST_VERSION="w_1")


@pytest.mark.parametrize("yes", [True, "yes", "true", "on", 1])
def test_a_switch_that_says_yes_is_on(yes):
    assert is_remote_build(make_config({"enabled": yes}))
    assert read({"enabled": yes, "requestMemory": 5}, LSST_VERSION="w_1").resources.memory == 5
