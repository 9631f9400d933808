"""What a configuration says by names, and where its values stand."""

from __future__ import annotations

import click
import pytest

from lsst.ctrl.bps import BPS_SEARCH_ORDER, BpsConfig
from lsst.ctrl.bps.panda.errors import SettingsError
from lsst.ctrl.bps.panda.settings.configuration import RunConfiguration, complete_configuration
from lsst.ctrl.bps.panda.settings.keys import LabelKeys, RunKeys
from lsst.ctrl.bps.panda.settings.remote import read_build_settings
from lsst.ctrl.bps.panda.settings.rucio import read_registration_settings
from lsst.ctrl.bps.panda.settings.search import KeyLookup

SERVICE = "lsst.ctrl.bps.panda.PanDAService"
TEXT = """\
wmsServiceClass: lsst.ctrl.bps.panda.PanDAService
project: pr
submitPath: /submit/{outputRun}
pipetask:
  isr: {queue: Q}
cluster:
  visit: {pipetasks: isr}
finalJob: {queue: M}
payload:
  payloadName: pay
  butlerConfig: /repo
  inCollection: a, b
  dataQuery: "tract = {tract}"
tract: 7
site:
  far: {butlerConfig: /far}
rucio:
  enabled: yes
  chunkSize: 0
remoteBuild:
  enabled: yes
  requestMemory: much
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(TEXT)
    return path


@pytest.fixture
def config(file):
    return complete_configuration(
        str(file), timestamp="T", user="ann", command_line={"computeSite": "far", "project": "other"}
    )


def test_what_a_configuration_says(config):
    run = RunConfiguration(config)
    assert (run.name, run.output_run, run.submit_path) == (
        "u_ann_pay_T",
        "u/ann/pay/T",
        "/submit/u/ann/pay/T",
    )
    assert (run.operator, run.project, run.payload, run.campaign) == ("ann", "other", "pay", "")
    assert (run.site, run.service_class, run.timestamp) == ("far", SERVICE, "T")
    # The first is of BPS's defaults.
    assert run.labels == ("pipetaskInit", "isr", "visit", "finalJob")
    assert run.clusters == {"visit"}
    assert run.input_collections == ["a", "b"]
    assert (run.data_query, run.written_data_query) == ("tract = 7", "tract = {tract}")
    assert run.command_line == {"computeSite": "far", "project": "other"}
    assert run.remote_build["enabled"] is True
    assert (run.queues, run.is_command, run.graph_file) == ((), False, "")
    assert [run.has(key) for key in ("payloadName", "nothing")] == [True, False]


def test_the_butler_of_a_label(config):
    run = RunConfiguration(config)
    assert run.butler == "/repo"
    assert run.butler_of("isr", site="far", cloud="US") == "/repo"
    bare = RunConfiguration(
        BpsConfig({"site": {"far": {"butlerConfig": "/far"}}}, search_order=BPS_SEARCH_ORDER)
    )
    assert bare.butler_of("isr", site="far", cloud="US") == "/far"
    assert bare.butler_of("isr", site="near", cloud="US") == ""


def test_how_the_graph_is_made(config):
    graph = RunConfiguration(config).graph_command()
    assert graph.key == "createQuantumGraph"
    assert graph.path.startswith("/submit/u/ann/pay/T/")
    assert graph.path in graph.line
    assert "{qgraphFile}" in graph.written
    assert [given.key for given in graph.inputs] == ["pipelineYaml", "butlerConfig"]
    assert (graph.inputs[1].written, graph.inputs[1].value) == ("/repo", "/repo")


def test_a_section_without_keys_is_refused(file):
    file.write_text(TEXT + "customJob:\n")
    with pytest.raises(SettingsError, match="customJob is None; it must be a section of keys"):
        complete_configuration(str(file), timestamp="T", user="ann")


@pytest.mark.parametrize(
    ("read", "words", "line"),
    [
        (read_registration_settings, "rucio.chunkSize is 0 ({file}, line 19); it must be at least 1.", 19),
        (read_build_settings, "requestMemory of remoteBuild is 'much' ({file}, line 22); it must be a", 22),
    ],
)
def test_errors_of_sections_name_file_and_line(config, file, read, words, line):
    with click.Context(click.Command("check"), info_name="check") as context:
        context.params["config"] = str(file)
        with pytest.raises(SettingsError) as caught:
            read(config, {})
    assert str(caught.value).startswith(words.format(file=file))
    assert (caught.value.file, caught.value.line) == (str(file), line)


def test_a_registration_that_is_off_is_not_looked_at():
    content = {"rucio": {"enabled": "no", "rule": "FAR", "chunkSize": "x", "typo": 1}}
    config = BpsConfig(content, search_order=BPS_SEARCH_ORDER)
    assert read_registration_settings(config, {}) is None


def test_wrong_values_are_found_all_at_once_in_the_order_of_the_keys():
    content = {
        "maxJobsPerTask": 0,
        "requestMemory": "4GB",
        "priority": "high",
        "pipetask": {"isr": {"priority": 1.5, "requestMemory": 0}},
    }
    lookup = KeyLookup(BpsConfig(content, search_order=BPS_SEARCH_ORDER), {})
    errors = lookup.wrong_values(["isr", "warp"])
    assert [(error.key, error.label) for error in errors] == [
        ("priority", ""), ("priority", "isr"), ("maxJobsPerTask", ""), ("requestMemory", ""),
        ("requestMemory", "isr"),
    ]  # fmt: skip
    with pytest.raises(SettingsError, match="maxJobsPerTask is 0"):
        lookup.read(RunKeys)
    assert lookup.get("maxCopyWorkers") == 10


def test_variables_of_the_environment_are_expanded_where_they_are_of_this_side(monkeypatch):
    monkeypatch.setenv("JOBS", "7")
    content = {"maxJobsPerTask": "${JOBS}", "runnerCommand": "${JOBS} _cmd_line_"}
    lookup = KeyLookup(BpsConfig(content, search_order=BPS_SEARCH_ORDER), {"JOBS": "7"})
    assert lookup.wrong_values([]) == []
    assert lookup.read(RunKeys).max_jobs_per_task == 7
    assert lookup.read(LabelKeys, "isr").runner_command == "${JOBS} _cmd_line_"
