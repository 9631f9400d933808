"""The JSON schema for editors: it accepts what is shipped and shown, refuses what the models refuse, and
raises no false alarm.
"""

from __future__ import annotations

import json
import re

import jsonschema
import pytest
import yaml
from click.testing import CliRunner
from panda_documentation.pages import CHECKOUT

from lsst.ctrl.bps.panda.cli.panda_bps import main
from lsst.ctrl.bps.panda.demo.repository import render_run_config
from lsst.ctrl.bps.panda.settings.keys import CORE_KEYS, KEYS, keys_of
from lsst.ctrl.bps.panda.settings.remote import RemoteBuildSection
from lsst.ctrl.bps.panda.settings.rucio import RucioSection, RuleSection
from lsst.ctrl.bps.panda.settings.schema import make_schema
from lsst.ctrl.bps.panda.settings.sites import QueueLimits

PACKAGE = CHECKOUT / "python" / "lsst" / "ctrl" / "bps" / "panda"
SHIPPED = sorted([*(PACKAGE / "config").rglob("*.yaml"), PACKAGE / "demo" / "bps_demo.yaml"])
SCHEMA = make_schema()
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)


def faults(content: object) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(content)]


def test_it_is_a_schema():
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_what_is_shipped_is_accepted(path):
    assert faults(yaml.safe_load(path.read_text(encoding="utf-8"))) == []


def test_the_configuration_of_the_demo_is_accepted(tmp_path):
    text = render_run_config(tmp_path, settings={"requestMemory": 2048, "finalJob": {"requestCpus": 1}})
    assert faults(yaml.safe_load(text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "maxJobsPerTask: '{jobs}'\nprmon: '{answer}'\njobNaming: '{naming}'\nrequestMemory: '{mem}'",
        "maxJobsPerTask: ${JOBS}",
        "pipetask: {isr: {requestMemory: '{mem}', priority: '600'}}",
        "pipetask:\ncluster:\nsite: {SLAC: }\nfinalJob:\nremoteBuild:\nrucio:\nqueues:\ncampaignSites:",
        "rucio: {enabled: yes, datasetTypes: 'a, b', rule: , when: ALWAYS, queue: Q}",
        "rucio: {when: always}",
        "site: {SLAC: {queue: Q, rucio: {rse: DISK}, profile: {anything: [1]}}}",
        "customJob: {executable: /bin/true, arguments: x, inputs: {a: b}}",
        "cluster: {visit: {pipetasks: 'isr,calibrate', dimensions: 'visit'}}",
        "enableEventService: {isr: 20, warp: '3'}",
        "enableEventService: [isr, 'warp:3']",
        "queues: {Q: {maxMemory: 4000, brokered: no}, R: }",
        "campaignSites: {partition: tract, values: [1..20, 30], sites: {A: 1, B: {share: 2, queue: Q}}}",
        "campaignSites: {partition: visit, weights: datasets, datasetType: raw, sites: {A: 1}}",
        "campaignSites: {enabled: no, site: SLAC}",
        "retryUnlessExit: [2, '3']\nenvironment: {A: 1, B: x}\nmyOwnKey: {deep: [1, {x: y}]}",
        "stageRunner: on\nprmon: 'off'\nkeepTokens: 1\ngroupPermissions: 'No'",
    ],
)  # fmt: skip
def test_what_is_allowed(text):
    assert faults(yaml.safe_load(text)) == []


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("maxJobsPerTask: many", "$.maxJobsPerTask"),
        ("maxJobsPerTask: 0", "$.maxJobsPerTask"),
        ("requestMemory: 4GB", "$.requestMemory"),
        # YAML takes braces without quotes for a mapping.
        ("requestMemory: {mem}", "$.requestMemory"),
        ("queue: {q}", "$.queue"),
        ("jobNaming: shrot", "$.jobNaming"),
        ("prmon: perhaps", "$.prmon"),
        ("vo: [a]", "$.vo"),
        ("vo: no", "$.vo"),
        ("pipetask: {isr: {priority: high}}", "$.pipetask.isr.priority"),
        ("pipetask: {isr: 5}", "$.pipetask.isr"),
        ("cluster: x", "$.cluster"),
        ("cloud: {US: {requestCpus: 1.5}}", "$.cloud.US.requestCpus"),
        ("finalJob: {requestWalltime: 1h}", "$.finalJob.requestWalltime"),
        ("customJob: 1", "$.customJob"),
        ("remoteBuild: {requestMemory: much}", "$.remoteBuild.requestMemory"),
        ("rucio: {datasetType: x}", "$.rucio"),
        ("rucio: {rule: {expression: x}}", "$.rucio.rule"),
        ("rucio: {when: SUCESS}", "$.rucio.when"),
        ("site: {SLAC: {rucio: {chunkSize: 0}}}", "$.site.SLAC.rucio.chunkSize"),
        ("queues: {Q: {memory: 5}}", "$.queues.Q"),
        ("queues: {Q: {maxMemory: 5 GB}}", "$.queues.Q.maxMemory"),
        ("campaignSites: {partition: [tract, patch]}", "$.campaignSites.partition"),
        ("campaignSites: {sites: {A: {queue: q}}}", "$.campaignSites.sites.A"),
        ("campaignSites: {site: {A: 1}, share: 2}", "$.campaignSites"),
    ],
)
def test_what_is_refused(text, path):
    found = faults(yaml.safe_load(text))
    assert [fault for fault in found if fault.startswith(f"{path}: ")], found


VALUES = [
    True, False, "yes", "No", "perhaps", 0, 1, 4, -1, 20000, 1.5, 2.0, "4", " 4 ", "1.5", "4.0", "1e3", "4GB",
    "-1", "", " ", None, [], ["a"], [1, 2], ["x", 1], {}, {"a": None}, {"isr": 20}, "isr:20, warp", "short",
    "SHORT", "SUCCESS", "success",
]  # fmt: skip
SECTIONS = {
    "": {**KEYS, **CORE_KEYS},
    "rucio": keys_of(RucioSection),
    "rucio.rule": keys_of(RuleSection),
    "remoteBuild": keys_of(RemoteBuildSection),
    "queues.Q": keys_of(QueueLimits),
}


@pytest.mark.parametrize(
    ("section", "key"),
    [(section, key) for section, keys in SECTIONS.items() for key in keys.values()],
    ids=[f"{section}.{name}".lstrip(".") for section, keys in SECTIONS.items() for name in keys],
)
def test_it_says_what_the_models_say(section, key):
    """Only of texts may it accept more: it does not know how large the number
    in one is.
    """
    wrong = []
    for value in VALUES:
        content: object = {key.name: value}
        for name in reversed(section.split(".") if section else []):
            content = {name: content}
        is_shown, is_text = not faults(content), isinstance(value, str | list | dict)
        if is_shown != (not key.model.wrong_values({key.name: value}, source="")) and not (
            is_shown and is_text
        ):
            wrong.append(value)
    assert wrong == []


def described(schema: object) -> list[str]:
    """Return all patterns in a schema."""
    if isinstance(schema, dict):
        own = [schema["pattern"]] if isinstance(schema.get("pattern"), str) else []
        return own + [pattern for each in schema.values() for pattern in described(each)]
    return [pattern for each in schema for pattern in described(each)] if isinstance(schema, list) else []


def test_patterns_are_understood_by_javascript():
    """Python's own marks, as for flags, are not."""
    assert [pattern for pattern in described(SCHEMA) if re.search(r"\(\?|\\Z|\\A|\\h", pattern)] == []


def test_each_key_says_what_it_means():
    for name, key in {**KEYS, **CORE_KEYS}.items():
        text = SCHEMA["properties"][name]["description"]
        assert text.startswith(key.meaning)
        assert (key.kind.unit or "") in text
    assert SCHEMA["properties"]["jobNaming"]["default"] == "short"


def test_the_command_prints_it(tmp_path):
    printed = CliRunner().invoke(main, ["schema"])
    assert printed.exit_code == 0
    assert json.loads(printed.output) == SCHEMA
    path = tmp_path / "bps.schema.json"
    written = CliRunner().invoke(main, ["schema", "-o", str(path)])
    assert (written.exit_code, written.output) == (0, "")
    assert json.loads(path.read_text(encoding="utf-8")) == SCHEMA
    refused = CliRunner().invoke(main, ["schema", "-o", str(tmp_path / "no" / "x.json")])
    assert refused.exit_code == 1
    assert "cannot be written" in refused.output
