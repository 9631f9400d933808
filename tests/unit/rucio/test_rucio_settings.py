"""The section ``rucio`` of a BPS configuration, and Rubin's rules for names."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from lsst.ctrl.bps import BPS_SEARCH_ORDER, BpsConfig
from lsst.ctrl.bps.panda.edgenode.rucio_program import Registration, RegistrationError, RuleWanted, name_of
from lsst.ctrl.bps.panda.errors import SettingsError
from lsst.ctrl.bps.panda.findings import Severity
from lsst.ctrl.bps.panda.rucio.checks import check_names, check_prefix
from lsst.ctrl.bps.panda.settings.rucio import read_registration_settings

PLACE = {
    "scope": "dp2",
    "rse": "SLAC_BUTLER_DISK",
    "rseRoot": "/sdf/rucio",
    "dtnUrl": "davs://dtn:1094/rucio",
}


def read(section, **keys):
    config = {"outputRun": "u/me/run", "butlerConfig": "/repo", "computeSite": "SLAC", **keys}
    if section is not None:
        config["rucio"] = section
    return read_registration_settings(BpsConfig(config, search_order=BPS_SEARCH_ORDER, defaults={}), {})


def registration(**changes):
    values = {
        "butler": "/repo", "collection": "u/me/run", "dataset_types": ("image",), "scope": "dp2",
        "dataset": "u/me/run", "rse": "SLAC_BUTLER_DISK", "rse_root": "/sdf/rucio", "dtn_url": "davs://dtn/rucio",
    }  # fmt: skip
    return Registration(**(values | changes))


@pytest.mark.parametrize("section", [None, {}, {"enabled": False, "scope": "x"}, {"enabled": "no"}])
def test_nothing_is_registered_unless_asked_for(section):
    assert read(section) is None


def test_defaults():
    settings = read({"enabled": True, "datasetTypes": "image, table", **PLACE})
    assert settings.registration == registration(
        dataset_types=("image", "table"), dtn_url="davs://dtn:1094/rucio", dataset="u/me/run"
    )
    assert (settings.always, settings.quantum_graph, settings.python) == (False, False, "python3")
    assert (settings.memory, settings.cores, settings.walltime, settings.retries) == (4096, 1, 0, 2)
    assert settings.environment == {}


def test_every_key_has_its_effect():
    settings = read(
        {
            "enabled": "yes", "datasetTypes": ["a*", "b"], **PLACE, "where": "tract = 1", "when": "always",
            "datasetName": "Dataset/{outputRun}/{round}", "collection": "{outputRun}/x", "close": True,
            "rule": {"rseExpression": "tier=1", "copies": 2, "lifetime": 60},
            "butlerConfig": "<ENV:SITE_REPO>/main",
            "quantumGraph": True, "chunkSize": 5, "account": "campaign", "python": "/opt/rucio/bin/python",
            "requestMemory": 1, "requestCpus": 2, "requestWalltime": 3, "numberOfRetries": 0,
            "environment": {"RUCIO_CONFIG": "/etc/{round}.cfg", "B": "own"},
        },
        round="r7",
        environment={"A": "common", "B": "common"},
    )  # fmt: skip
    # As BPS writes it, which differs between its versions.
    assert settings.registration.butler in ("$SITE_REPO/main", "${SITE_REPO}/main")
    assert replace(settings.registration, butler="/repo") == registration(
        dataset_types=("a*", "b"), dtn_url="davs://dtn:1094/rucio", dataset="Dataset/u/me/run/r7",
        collection="u/me/run/x", where="tract = 1", close=True, chunk=5,
        rule=RuleWanted("tier=1", 2, 60),
    )  # fmt: skip
    assert (settings.always, settings.quantum_graph) == (True, True)
    assert (settings.memory, settings.cores, settings.walltime, settings.retries) == (1, 2, 3, 0)
    assert settings.python == "/opt/rucio/bin/python"
    assert settings.environment == {
        "A": "common", "B": "own", "RUCIO_CONFIG": "/etc/r7.cfg", "RUCIO_ACCOUNT": "campaign"
    }  # fmt: skip
    assert Registration.from_json(settings.registration.to_json()) == settings.registration


def test_a_site_may_have_a_place_of_its_own():
    own = {"SLAC": {"rucio": {"rse": "OTHER_DISK", "rule": {"copies": 3}}}, "RAL": {"rucio": {"rse": "NO"}}}
    section = {"enabled": True, **PLACE, "rule": {"rseExpression": "tier=1"}}
    settings = read(section, site=own)
    assert settings.registration.rse == "OTHER_DISK"
    assert settings.registration.scope == "dp2"
    assert settings.registration.rule == RuleWanted("tier=1", 3)


def test_register_config_fills_what_is_not_said(tmp_path):
    path = tmp_path / "register.yaml"
    path.write_text(
        yaml.safe_dump({"rucio_rse": "X_DISK", "scope": "dc2", "rse_root": "/r", "dtn_url": "root://h/r"})
    )
    found = read({"enabled": True, "scope": "dp2", "registerConfig": str(path)}).registration
    assert (found.scope, found.rse, found.rse_root, found.dtn_url) == ("dp2", "X_DISK", "/r", "root://h/r")


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"enabled": "perhaps"}, "enabled is 'perhaps'"),
        ({"enabled": True, "when": "NEVER"}, "rucio.when is 'NEVER'"),
        ({"enabled": True, "datasetType": "x"}, "did you mean datasetTypes?"),
        ({"enabled": True, "rule": {"expression": "x"}}, "did you mean rseExpression?"),
        ({"enabled": True, "rule": {"copies": 0}}, "rucio.rule.copies is 0"),
        ({"enabled": True, "rule": {"lifetime": "2 days"}}, "rule.lifetime is '2 days'"),
        ({"enabled": True, "chunkSize": 0}, "rucio.chunkSize is 0"),
        ({"enabled": True, "rule": "FAR_DISK"}, "rucio.rule is 'FAR_DISK'.*must be a section"),
        ({"enabled": True, "rule": {"copies": 2}}, "rucio.rule sets copies.*no rseExpression"),
        ({"enabled": True, "environment": "RUCIO_CONFIG=x"}, "rucio.environment is .*must be a section"),
        ({"enabled": True, "datasetTypes": {"image": 1}}, "rucio.datasetTypes is a section"),
        ("yes", "rucio is 'yes'.*must be a section"),
        ({"enabled": True, "registerConfig": "/not/there.yaml"}, "cannot be read here"),
    ],
)
def test_what_cannot_be_used_is_named(section, words):
    with pytest.raises(SettingsError, match=words.replace("?", r"\?")):
        read(section)


def test_what_is_no_section_at_a_site_is_named_with_the_site():
    with pytest.raises(SettingsError, match="site.SLAC.rucio is 'no'"):
        read({"enabled": True, **PLACE}, site={"SLAC": {"rucio": "no"}})


def test_a_site_may_go_without_the_rule_of_the_others():
    section = {"enabled": True, "datasetTypes": "image", **PLACE, "rule": {"copies": 2, "rseExpression": ""}}
    assert read(section).registration.rule is None
    own = {"SLAC": {"rucio": {"rule": {"rseExpression": "FAR_DISK"}}}}
    assert read(section, site=own).registration.rule == RuleWanted("FAR_DISK", 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset_types": ("post isr",)}, "rucio.datasetTypes holds 'post isr'"),
        ({"dataset_types": ("image", "1")}, "rucio.datasetTypes holds '1'"),
        ({"collection": ""}, "rucio.collection is ''"),
        ({"collection": "u/{nobody}"}, "rucio.collection is 'u/{nobody}'"),
        ({"scope": "a b"}, "rucio.scope is 'a b'"),
        ({"scope": "x" * 26}, "1 to 25"),
        ({"scope": ""}, "rucio.scope is not set"),
        ({"dataset": "a:b"}, "rucio.datasetName is 'a:b'"),
        ({"dataset": "x" * 501}, "1 to 500"),
        ({"dataset": "Größe"}, "rucio.datasetName"),
        ({"rse": "slac_disk"}, "capital letters"),
        ({"rse": "SLAC__DISK"}, "rucio.rse"),
        ({"dataset_types": ()}, "rucio.datasetTypes is empty"),
        ({"rse_root": "file:///sdf"}, "must begin with '/'"),
        ({"dtn_url": "/sdf/rucio"}, "must be a URL"),
    ],
)
def test_names_that_rubins_rucio_refuses(changes, words):
    (finding,) = check_names(registration(**changes))
    assert words in finding.text
    assert finding.severity is Severity.ERROR


def test_good_names_are_no_problem():
    good = registration(scope="a_-.9" * 5, dataset="A+b/c-d.e_1", rse="A1-B2_C3")
    assert [*check_names(good)] == []


def test_name_is_the_path_below_the_scope():
    assert name_of("/sdf/rucio/dp2/u/me/run/x.fits", registration()) == "u/me/run/x.fits"
    assert name_of("/sdf/rucio/dp2/x", registration(rse_root="/sdf/rucio/")) == "x"


@pytest.mark.parametrize("path", ["/sdf/rucio/dp22/x", "/sdf/rucio/x", "/other/dp2/x", "/sdf/rucio/dp2"])
def test_a_path_elsewhere_is_refused(path):
    with pytest.raises(RegistrationError, match="would get a wrong name"):
        name_of(path, registration())


@pytest.mark.parametrize(
    ("roots", "count"),
    [
        (["/sdf/rucio/dp2"], 0),
        (["/sdf/rucio/dp2/repo/"], 0),
        (["/elsewhere", "/sdf/rucio/dp2"], 0),
        (["/sdf/rucio"], 1),
        (["/sdf", "/elsewhere"], 2),
    ],
)
def test_the_butler_must_write_below_the_folder_of_the_scope(roots, count):
    assert len(check_prefix(registration(), roots)) == count


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "rule": null}'])
def test_a_file_that_is_not_understood_is_refused(text):
    with pytest.raises(RegistrationError, match="cannot be read"):
        Registration.from_json(text)
