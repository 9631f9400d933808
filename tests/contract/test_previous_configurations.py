"""Example configurations of the previous plugin give the same tasks with ours,
field by field, but for the differences explained here.

The previous plugin runs in an environment of its own, which is made from the
package index and kept.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lsst.ctrl.bps import BPS_DEFAULTS, BPS_SEARCH_ORDER, BpsConfig
from lsst.ctrl.bps.panda.checks.configuration import check_configuration
from lsst.ctrl.bps.panda.findings import Severity

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("previous_tasks.py")

# What differs, why, and how: (previous, ours) -> whether that is the difference explained.
EXPLAINED = {
    "maxAttempt": (
        "numberOfRetries are attempts after the first one; the previous plugin had one attempt less",
        lambda before, now: now == before + 1,
    ),
    "command": (
        "what all jobs of a task share stands in its command; the previous plugin gave each job its own copy",
        lambda before, now: before == "/bin/true --node {qgraphNodeId}" and "--node 0190" in now,
    ),
    "dependency_tasks": (
        "tasks that a task's jobs wait for, which iDDS works out when it is asked: none",
        lambda before, now: (before, now) == (None, []),
    ),
    "num_inputs": (
        "jobs of the final task as its own record counts them; the previous plugin's did not count it",
        lambda before, now: (before, now) == (0, 1),
    ),
    "task_rss_max": (
        "memoryLimit of BPS, as HTCondor's plugin takes it; the previous plugin's own limit was above the "
        "largest queue of SLAC",
        lambda before, now: (before, now) == (512000, 491520),
    ),
    "es_label": (
        "the label for the monitor's pages on event service, which only tasks with event service get",
        lambda before, now: before and now is None,
    ),
    "max_events_per_job": (
        "number of payloads in a PanDA job, of which iDDS takes no notice without event service",
        lambda before, now: (before, now) == (10, 1),
    ),
    "task_priority": (
        "the base configuration, with priority 500, counts whether it is included or not",
        lambda before, now: (before, now) == (900, 500),
    ),
    "task_queue": (
        "the merge queue is in the profile of the site, which only ours reads; the packages of the previous "
        "plugin hold no configuration of a site",
        lambda before, now: before is None and now in ("SLAC_Rubin_Merge", "DOMA_LSST_GOOGLE_MERGE"),
    ),
    "task_cloud": (
        "the cloud of a site is in its profile too",
        lambda before, now: (before, now) == ("US", "LSST"),
    ),
}

ALWAYS = {
    "maxAttempt", "max_events_per_job", "es_label", "command", "dependency_tasks", "num_inputs",
    "task_rss_max",
}  # fmt: skip

EXAMPLES = {
    "example_panda_SLAC": {*ALWAYS, "task_priority"},
    "test_usdf": {*ALWAYS, "task_queue"},
    "test_sdf": ALWAYS,
    "pipelines_check_idf": {*ALWAYS, "task_queue", "task_cloud"},
}


def load_finder():
    """The module that finds or makes the previous plugin's environment."""
    path = CHECKOUT / "tests" / "benchmarks" / "previous_plugin.py"
    spec = importlib.util.spec_from_file_location("previous_plugin_environment", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def previous():
    """Python and example configurations of the previous plugin."""
    finder = load_finder()
    python, decoder = finder.find_or_make()
    return python, decoder.parents[1] / "conf_example", finder.ENVIRONMENT


def make_tasks(python: Path, config: Path, env: dict[str, str]) -> dict:
    """Have a plugin make its tasks of a configuration."""
    result = config.with_suffix(f".{python.parents[1].name}.json")
    submit = config.parent / "submit"
    submit.mkdir(exist_ok=True)
    variables = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(config.parent),
        "USER": "ann",
        "LC_ALL": "C.UTF-8",
        "LSST_RUN_TEMP_SPACE": "/tmp",
        "CTRL_BPS_PANDA_DIR": str(CHECKOUT / "python" / "lsst" / "ctrl" / "bps" / "panda"),
        **env,
    }
    command = [python, SCRIPT, config, submit, result]
    done = subprocess.run(
        command, env=variables, cwd=config.parent, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(result.read_text())


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_same_tasks(example, previous, tmp_path):
    python, examples, env = previous
    config = tmp_path / "run.yaml"
    # The previous plugin has neither a runner command nor a staging area without the site's file.
    values = {
        "includeConfigs": [str(examples / f"{example}.yaml")],
        "LSST_VERSION": "w_2022_32",
        "uniqProcName": "u_ann_run_20260101T000000Z",
        "fileDistributionEndPoint": f"{tmp_path}/area/",
        "runnerCommand": "python3 decoder.py _cmd_line_",
    }
    config.write_text(yaml.safe_dump(values))
    before = make_tasks(python, config, env)
    now = make_tasks(Path(sys.executable), config, {})
    assert now["name"] == before["name"]
    assert now["conditions"] == before["conditions"]
    assert [task["task_name"] for task in now["tasks"]] == [task["task_name"] for task in before["tasks"]]
    assert [task["jobs"] for task in now["tasks"]] == [1, 4, 1, 1]
    seen = set()
    for old, new in zip(before["tasks"], now["tasks"], strict=True):
        for field, value in old.items():
            if new[field] == value:
                continue
            seen.add(field)
            assert field in EXPLAINED, (old["task_name"], field, value, new[field])
            assert EXPLAINED[field][1](value, new[field]), (old["task_name"], field, value, new[field])
    # A difference that is gone is to be taken off the list.
    assert seen == EXAMPLES[example]


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_checks_let_them_pass(example, previous, tmp_path, monkeypatch):
    """What worked is not refused for being unusual."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pipetask").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "pipetask").chmod(0o755)
    # BPS looks variables up by itself.
    monkeypatch.setenv("CTRL_MPEXEC_DIR", str(tmp_path))
    monkeypatch.setenv("CTRL_BPS_PANDA_DIR", str(CHECKOUT / "python" / "lsst" / "ctrl" / "bps" / "panda"))
    monkeypatch.setenv("PWD", str(tmp_path))
    monkeypatch.setenv("LSST_RUN_TEMP_SPACE", str(tmp_path))
    config = BpsConfig(
        str(previous[1] / f"{example}.yaml"),
        search_order=BPS_SEARCH_ORDER,
        defaults=BPS_DEFAULTS,
        wms_service_class_fqn="lsst.ctrl.bps.panda.PanDAService",
    )
    config[".bps_defined.timestamp"] = "20260101T000000Z"
    config[".bps_defined.operator"] = "ann"
    config[".bps_defined.uniqProcName"] = str(config["outputRun"]).replace("/", "_")
    # Their pipelines and repositories are not here.
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "butler.yaml").touch()
    config[".bps_cmdline.pipelineYaml"] = "resource://lsst.ctrl.bps.panda.demo/pipeline.yaml"
    config[".bps_cmdline.butlerConfig"] = str(tmp_path / "repo")
    findings = check_configuration(config, {**os.environ, "PATH": "/nowhere"})
    assert [finding.text for finding in findings if finding.severity is Severity.ERROR] == []


def test_an_include_that_is_nowhere_is_named(previous, tmp_path):
    """test_idf.yaml includes a file that no release of the plugin has."""
    script = CHECKOUT / "bin" / "panda_bps"
    env = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "CTRL_BPS_PANDA_DIR": str(CHECKOUT / "python" / "lsst" / "ctrl" / "bps" / "panda"),
    }
    command = [sys.executable, script, "check", previous[1] / "test_idf.yaml"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "bps_idf_new.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_example_is_left_out(previous):
    assert {path.stem for path in previous[1].glob("*.yaml")} == {*EXAMPLES, "test_idf"}
