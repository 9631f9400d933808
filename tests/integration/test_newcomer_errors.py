"""What newcomers met with the previous plugin, in the order they met it, and
what they are told now.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from panda_servers.commands import Commands
from panda_servers.local import small_disk

import lsst.ctrl.bps
from lsst.ctrl.bps.panda.demo.repository import create_repo
from lsst.ctrl.bps.panda.local import instance

pytestmark = pytest.mark.slow

CHECK = ("panda_bps", "check")
SERVICE = "lsst.ctrl.bps.panda.PanDAService"
NOBODY = "http://127.0.0.1:9/server/panda"


class Newcomer:
    """Somebody with a Butler and a YAML of a few lines, and nothing else:
    no LSST stack, no variables, no server.
    """

    def __init__(self, directory: Path, repo: Path, commands: Commands) -> None:
        self.directory = directory
        self.repo = repo
        self.commands = commands

    def write(self, **values: object) -> str:
        config = {
            "wmsServiceClass": SERVICE,
            "computeSite": "SLAC",
            "LSST_VERSION": "w_2026_45",
            "pipelineYaml": "resource://lsst.ctrl.bps.panda.demo/pipeline.yaml",
            "submitPath": f"{self.directory}/submit/{{outputRun}}",
            "fileDistributionEndPoint": f"{self.directory}/area/{{uniqProcName}}/",
            "payload": {
                "payloadName": "first",
                "butlerConfig": str(self.repo),
                "inCollection": "StarCam/defaults",
                "dataQuery": "skymap='starcam_sky' AND tract=0",
            },
            **values,
        }
        path = self.directory / "first.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
        return str(path)

    def run(self, *command: str, code: int, **env: str) -> str:
        """Run a command in an environment that holds next to nothing."""
        variables = {"PATH": self.commands.path, "HOME": str(self.directory), "LC_ALL": "C.UTF-8", **env}
        done = subprocess.run(
            [str(self.commands.folder / command[0]), *command[1:]],
            cwd=self.directory,
            env={name: value for name, value in variables.items() if value},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def submit_path(self) -> Path:
        (path,) = (path.parent for path in (self.directory / "submit").rglob("panda_run.json"))
        return path


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    path = tmp_path_factory.mktemp("newcomer") / "repo"
    create_repo(path, visits_per_band=2, detectors=4, patches=1)
    return path


@pytest.fixture
def newcomer(repo, tmp_path, commands):
    return Newcomer(tmp_path, repo, commands)


def test_1_an_include_by_a_variable_of_the_stack(newcomer):
    config = newcomer.write(includeConfigs="${CTRL_BPS_PANDA_DIR}/config/bps_usdf.yaml")
    said = newcomer.run(*CHECK, config, code=1)
    assert "CTRL_BPS_PANDA_DIR is not set; only an LSST stack sets it" in said
    assert "Include resource://lsst.ctrl.bps.panda/config/bps_usdf.yaml instead" in said
    config = newcomer.write(includeConfigs="resource://lsst.ctrl.bps.panda/config/bps_usdf.yaml")
    assert "PANDA_URL" in newcomer.run(*CHECK, config, code=1)


@pytest.mark.newest
@pytest.mark.once
def test_2_3_4_6_10_prepare_works_offline_without_any_variable(newcomer):
    """No checkout, no look-up of a host, no server, no *_DIR, no USER."""
    config = newcomer.write()
    said = newcomer.run("bps", "prepare", config, code=0)
    record = yaml.safe_load((newcomer.submit_path() / "panda_run.json").read_text())
    assert record["sources"] == [config]
    assert "A submission from here would fail; it goes on because nothing is sent now" in said
    assert "- PANDA_URL_SSL and PANDA_URL are not set" in said
    assert re.search(r"^isr +16 ", said, re.MULTILINE)
    assert re.search(r"^finalJob .* SLAC_Rubin_Merge$", said, re.MULTILINE)
    # One line a job about USER was 96 lines.
    assert said.count("USER") == 0
    assert not (newcomer.directory / "area").exists()


def test_4_submit_stops_at_once_without_a_server(newcomer):
    said = newcomer.run("bps", "submit", newcomer.write(), code=1, PANDA_URL_SSL=NOBODY)
    assert "This run cannot be submitted:\n- The connection to 127.0.0.1:9 was refused" in said
    assert not (newcomer.directory / "submit").exists()
    assert not (newcomer.directory / "area").exists()


def test_5_a_log_in_that_is_not_there(newcomer):
    login = {"PANDA_URL_SSL": NOBODY, "PANDA_AUTH": "oidc", "PANDA_AUTH_VO": "Rubin"}
    said = newcomer.run("bps", "submit", newcomer.write(), code=1, **login)
    assert "This run cannot be submitted:\n- " in said
    assert "panda_auth" in said


def test_7_the_default_staging_area_is_that_of_the_payload_too(newcomer):
    config = newcomer.write(
        fileDistributionEndPoint="${LSST_RUN_TEMP_SPACE}/box/{uniqProcName}/",
        fileDistributionEndPointDefault=f"{newcomer.directory}/default/{{uniqProcName}}/",
    )
    said = newcomer.run("bps", "prepare", config, code=0)
    assert f"staging area: {newcomer.directory}/default/" in said
    plan = (newcomer.submit_path() / "panda_plan.json").read_text()
    assert "LSST_RUN_TEMP_SPACE" not in plan
    without = newcomer.write(fileDistributionEndPoint="${LSST_RUN_TEMP_SPACE}/box/{uniqProcName}/")
    assert "environment variable LSST_RUN_TEMP_SPACE is not set" in newcomer.run(*CHECK, without, code=1)


def test_8_large_clusters_have_short_names(newcomer):
    config = newcomer.write(
        clusterAlgorithm="lsst.ctrl.bps.quantum_clustering_funcs.dimension_clustering",
        cluster={"all": {"pipetasks": "isr, characterize", "dimensions": "band"}},
    )
    newcomer.run("bps", "prepare", config, code=0)
    plan = yaml.safe_load((newcomer.submit_path() / "panda_plan.json").read_text())
    inputs = re.findall(r"\ball:\d+", str(plan))
    assert inputs
    assert max(map(len, inputs)) < 64


@pytest.mark.newest
@pytest.mark.once
def test_all_problems_of_a_yaml_at_once(newcomer):
    config = newcomer.write(LSST_VERSION=None, maxJobsPerTask="lots", fileDistributionEndPoint="/proc/no/")
    said = newcomer.run(*CHECK, config, code=1, PATH="/nowhere")
    assert said.startswith(f"5 problems in {config}:\n- ")
    for words in (
        "maxJobsPerTask is 'lots'",
        "LSST_VERSION (in setupLSSTEnv)",
        "createQuantumGraph runs pipetask, which is not there (PATH is '/nowhere')",
        "the staging area /proc/no/ cannot be used",
        "PANDA_URL_SSL and PANDA_URL are not set",
    ):
        assert words in said


def test_jobs_that_fit_no_queue(newcomer):
    config = newcomer.write(pipetask={"isr": {"requestMemory": 600000}})
    said = newcomer.run("bps", "prepare", config, code=1)
    assert "Label isr: no queue of SLAC takes its jobs; for the largest, SLAC_Rubin_Extra_Himem" in said
    assert "requestMemory 600000 is more than 500000 MB" in said


def test_a_misspelt_key(newcomer):
    said = newcomer.run("bps", "prepare", newcomer.write(maxJobPerTask=5), code=0)
    assert "did you mean maxJobsPerTask?" in said


def test_misspelt_keys_below_the_top(newcomer):
    config = newcomer.write(
        pipetask={"isr": {"requestMemroy": 5000}}, site={"SLAC": {"queu": "Q"}}, computesite="SLAC"
    )
    said = newcomer.run(*CHECK, config, code=1)
    for path, meant in (
        ("pipetask.isr.requestMemroy", "requestMemory"),
        ("site.SLAC.queu", "queue"),
        ("computesite", "computeSite"),
    ):
        assert f"Hint: Key {path} of the configuration is not known; did you mean {meant}?" in said


def test_a_wrong_value_is_shown_where_it_stands(newcomer):
    (newcomer.directory / "parts.yaml").write_text("# mine\npipetask:\n  isr:\n    priority: high\n")
    config = newcomer.write(includeConfigs="parts.yaml", maxCopyWorkers="0")
    said = newcomer.run(*CHECK, config, code=1)
    line = Path(config).read_text().splitlines().index("maxCopyWorkers: '0'") + 1
    assert f"- maxCopyWorkers is '0' ({config}, line {line}); it must be at least 1." in said
    place = f"{newcomer.directory}/parts.yaml, line 4"
    assert f"- priority is 'high' (label isr, {place}); it must be a whole number." in said


def test_variables_of_the_graph_that_are_not_set(newcomer):
    config = newcomer.write(payload={"butlerConfig": str(newcomer.repo)}, pipelineYaml=None)
    said = newcomer.run("bps", "prepare", config, code=1)
    assert "inCollection (in pipetaskInput)" in said
    assert "payloadName (in output)" in said
    assert "pipelineYaml (in createQuantumGraph)" in said
    assert not (newcomer.directory / "submit").exists()


GENERATORS = """
def tracts(): return {"chosenTracts": "0", "myArea": "AREA"}
def wrong(): return {"chosenTracts": "0", "myArea": "AREA", "maxJobsPerTask": "lots"}
"""


@pytest.mark.newest
@pytest.mark.once
def test_values_that_bps_generates(newcomer):
    """They are not missed before, and checked when they are there."""
    (newcomer.directory / "mine.py").write_text(GENERATORS.replace("AREA", f"{newcomer.directory}/area"))
    payload = {"payloadName": "first", "butlerConfig": str(newcomer.repo), "inCollection": "StarCam/defaults"}
    payload["dataQuery"] = "skymap='starcam_sky' AND tract IN ({chosenTracts})"
    values = {"payload": payload, "fileDistributionEndPoint": "{myArea}/{uniqProcName}/"}
    config = newcomer.write(**values, bpsGenerateConfig="mine.tracts( )")
    path = {"PYTHONPATH": str(newcomer.directory)}
    said = newcomer.run("bps", "prepare", config, code=0, **path)
    assert f"staging area: {newcomer.directory}/area/" in said
    config = newcomer.write(**values, bpsGenerateConfig="mine.wrong( )")
    for command in (("bps", "prepare"), CHECK):
        said = newcomer.run(*command, config, code=1, **path)
        assert "- maxJobsPerTask is 'lots' (BPS configuration); it must be a whole number." in said
        assert "chosenTracts" not in said.rpartition("cannot be submitted")[2]


@pytest.mark.newest
@pytest.mark.once
def test_a_brace_in_the_name_of_a_run(newcomer):
    """BPS looks it up before it has anything checked."""
    payload = {"payloadName": "a}b", "butlerConfig": str(newcomer.repo), "inCollection": "StarCam/defaults"}
    config = newcomer.write(payload=payload, maxCopyWorkers=0)
    line = Path(config).read_text().splitlines().index("  payloadName: a}b") + 1
    words = f"- payload.payloadName is 'a}}b' ({config}, line {line}); BPS cannot replace variables in it: "
    for command in (("bps", "prepare"), ("bps", "submit"), CHECK):
        said = newcomer.run(*command, config, code=1)
        assert words in said
    assert "- maxCopyWorkers is 0" in said


def test_hints_are_no_silence(newcomer):
    names = ["maxJobPerTask", "requestMemroy", "computesite", "requestWaltime"]
    config = newcomer.write(**dict.fromkeys(names, 1))
    said = newcomer.run(*CHECK, config, code=1)
    assert said.count("did you mean") == len(names)
    assert f"{len(names)} hints in {config}." in said
    assert "Not checked, as that needs the Butler" in said


@pytest.mark.newest
@pytest.mark.once
@pytest.mark.parametrize(
    ("key", "value", "cause"),
    [
        (
            "inCollection",
            "StarCam/nosuch",
            "MissingCollectionError: No collection with name 'StarCam/no",
        ),
        (
            "dataQuery",
            "skymap='starcam_sky' AND tract=99",
            "Initial data ID query returned no rows",
        ),
        ("dataQuery", "skymap='starcam_sky' ANDD tract=0", "InvalidQueryError: Failed to parse expression"),
    ],
)
def test_a_quantum_graph_that_cannot_be_made(newcomer, key, value, cause):
    """The cause, the key and the log come last, and nothing about timed code."""
    payload = {
        "payloadName": "first",
        "butlerConfig": str(newcomer.repo),
        "inCollection": "StarCam/defaults",
        "dataQuery": "skymap='starcam_sky' AND tract=0",
    }
    config = newcomer.write(payload={**payload, key: value})
    line = next(n for n, text in enumerate(Path(config).read_text().splitlines(), 1) if f"  {key}: " in text)
    said = newcomer.run("bps", "prepare", config, code=1)
    *before, sentence, last = said.splitlines()
    assert sentence.startswith(f"Error: The quantum graph could not be made: {cause}")
    assert sentence.endswith(f" It comes from {key}: {value} ({config}, line {line}).")
    log = Path(last.removeprefix("What was printed: "))
    assert cause.partition(": ")[2][:20] in log.read_text()
    assert "timed code" not in said
    assert len(before) < 10
    assert "timed code triggered" in (log.parent / "bps.log").read_text()


def test_all_is_printed_if_a_level_is_asked_for(newcomer):
    said = newcomer.run("bps", "--log-level", "lsst.ctrl.bps=INFO", "prepare", newcomer.write(), code=0)
    assert "Acquire stage completed: Took" in said
    assert "Acquire stage completed" not in newcomer.run("bps", "prepare", newcomer.write(), code=0)


@pytest.mark.parametrize("fault", ["No space left on device", "Read-only file system"])
def test_a_disk_that_takes_no_more(newcomer, tmp_path, fault):
    with small_disk(tmp_path / "disk", 1) as disk:
        config = newcomer.write(submitPath=f"{disk}/{{outputRun}}")
        if fault.startswith("Read"):
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        else:
            (disk / "filler").write_bytes(bytes(1_040_000))
        said = newcomer.run("bps", "prepare", config, code=1)
    assert f"nothing can be written in {disk}: {fault}. Use another submitPath, or make room." in said
    assert "Traceback" not in said


@pytest.mark.parametrize("name", ["it's", "a b"])
def test_a_submit_directory_that_breaks_bps(newcomer, name):
    config = newcomer.write(submitPath=f"{newcomer.directory}/{name}/{{outputRun}}")
    said = newcomer.run("bps", "submit", config, code=1)
    assert "BPS cannot make a quantum graph in a directory whose name holds" in said
    assert sorted(path.name for path in newcomer.directory.iterdir()) == ["first.yaml"]


def decode(command: str) -> str:
    """Return what the runner is to run, which stands in the command in
    hexadecimal.
    """
    return bytes.fromhex(max(re.findall("[0-9a-f]{40,}", command), key=len)).decode()


@pytest.mark.newest
@pytest.mark.once
def test_the_environment_of_a_job_is_what_bps_makes_of_all_sections(newcomer):
    """BPS 30.2026.4300 merges the sections, and BPS_NONE removes; before, one
    section counts.
    """
    config = newcomer.write(
        environment={"TOP": "top it's", "BOTH": "top"},
        pipetask={"isr": {"environment": {"BOTH": "isr", "TOP": "BPS_NONE", "OWN": "${HOME}/x"}}},
        site={"SLAC": {"environment": {"SITE": "slac"}}},
    )
    newcomer.run("bps", "prepare", config, code=0)
    plan = yaml.safe_load((newcomer.submit_path() / "panda_plan.json").read_text())
    commands = {task["label"]: task["command"] for task in plan["tasks"]}
    isr = decode(commands["isr"])
    assert "BOTH=isr" in isr
    assert "OWN=" in isr
    if hasattr(lsst.ctrl.bps, "GenericWorkflowLazyGroup"):
        assert "TOP=" not in isr
        assert "SITE=slac" in isr
        assert "SITE=slac" in decode(commands["characterize"])
        assert "TOP=" in decode(commands["characterize"])
    else:
        assert "SITE=slac" not in isr


@pytest.mark.long
def test_six_lines_run_on_the_embedded_panda(tmp_path, commands):
    """Nobody says where, with which software, how much, or under which name."""
    create_repo(tmp_path / "repo", visits_per_band=1, detectors=4, bands=("r",), patches=1)
    stranger = Newcomer(tmp_path, tmp_path / "repo", commands)
    six = [
        "wmsServiceClass: lsst.ctrl.bps.panda.LocalPanDAService",
        "pipelineYaml: resource://lsst.ctrl.bps.panda.demo/pipeline.yaml",
        "payload:",
        "  payloadName: first",
        f"  butlerConfig: {tmp_path}/repo",
        "  inCollection: StarCam/defaults",
    ]
    (tmp_path / "six.yaml").write_text("\n".join(six) + "\n")
    panda = tmp_path / ".local" / "state" / "panda_local"
    try:
        # Any shell sets it, that of the tests' clients of commands, too.
        said = stranger.run(f"{Path(sys.executable).parent}/bps", "submit", "six.yaml", code=1)
        assert "but the environment variable PWD is not set" in said
        said = stranger.run("bps", "submit", "six.yaml", code=0, PWD=str(tmp_path))
        # What is told is enough to go on.
        told = re.search(r"export BPS_WMS_SERVICE_CLASS=(\S+); bps report --id (\d+)", said)
        service, run_id = told.groups()
        end = time.monotonic() + 600
        while True:
            report = stranger.run("bps", "report", "--id", run_id, code=0, BPS_WMS_SERVICE_CLASS=service)
            if re.search(r"^ +(F +)?(SUCCEEDED|FAILED) +\d", report, re.MULTILINE):
                break
            assert time.monotonic() < end, report
            time.sleep(1)
        assert re.search(r"^finalJob( +0){8} +1 +0 +0 +1$", report, re.MULTILINE), report
        collections = stranger.run("butler", "query-collections", f"{tmp_path}/repo", code=0)
        assert re.search(r"u/\S+/first/\d{8}T\d{6}Z", collections)
    finally:
        instance.stop(panda)
