"""A campaign divided into configurations that BPS reads."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from click.testing import CliRunner
from lsst.daf.butler import Butler, DatasetType

from lsst.ctrl.bps import BPS_DEFAULTS, BPS_SEARCH_ORDER, BpsConfig
from lsst.ctrl.bps.panda.campaign.parts import (
    convert_values,
    count_in_butler,
    divide_campaign,
    find_fixed_condition,
    find_shared_places,
    make_configuration,
    make_parts,
    prepare_campaign,
    read_configuration,
)
from lsst.ctrl.bps.panda.campaign.record import (
    RECORD_NAME,
    CampaignIndex,
    PartState,
    find_campaign,
    read_campaign,
)
from lsst.ctrl.bps.panda.checks.configuration import check_configuration
from lsst.ctrl.bps.panda.cli.panda_bps import main
from lsst.ctrl.bps.panda.errors import PandaBpsError, RunNotFoundError, SettingsError
from lsst.ctrl.bps.panda.findings import Severity
from lsst.ctrl.bps.panda.remote.request import make_archive
from lsst.ctrl.bps.panda.settings.campaign import read_section

SERVICE = "lsst.ctrl.bps.panda.PanDAService"
STAMP = "20261120T120000Z"
SITES = {
    "SLAC": {"share": 35},
    "CC-IN2P3": {"share": 40, "butlerConfig": "/sps/repo", "payload": {"inCollection": "mirror"}},
    "LANCS": {"share": 25, "queue": "LANCS_Rubin", "pipetask": {"isr": {"requestMemory": 9000}}},
}


def content(directory="/nowhere", **changes):
    section = {"partition": "tract", "values": ["1..20"], "sites": SITES, **changes.pop("section", {})}
    return {
        "wmsServiceClass": SERVICE,
        "operator": "ann",
        "computeSite": "SLAC",
        "LSST_VERSION": "w_2026_40",
        "fileDistributionEndPoint": f"{directory}/area/",
        "submitPath": f"{directory}/submit/{{outputRun}}",
        "createQuantumGraph": "true {qgraphFile}",
        "pipetask": {"isr": {"requestMemory": 4000, "requestCpus": 2}},
        "payload": {
            "payloadName": "drp",
            "butlerConfig": "/repo/main",
            "inCollection": "HSC/defaults",
            "dataQuery": "skymap = 'hsc' OR skymap = 'other'",
        },
        "campaignSites": section,
        **changes,
    }


def configuration(**changes):
    return make_configuration(content(**changes), path="run.yaml", timestamp=STAMP, user="bob")


def parts_of(config):
    """Return what the record and the configuration of each part say."""
    made = make_parts(config, divide_campaign(config, {}), directory="/sub")
    return {
        part.record.site: SimpleNamespace(
            **{name: getattr(part.record, name) for name in ("compute_site", "output_run", "run")},
            values=tuple(part.record.values),
            content=part.content,
        )
        for part in made
    }


def write(directory, **changes):
    path = directory / "run.yaml"
    path.write_text(yaml.safe_dump(content(directory, **changes)))
    return path


def texts(findings, severity):
    return [finding.text for finding in findings if finding.severity is severity]


def prepared(directory, **changes):
    """Return the record, what is wrong, what needs a server, and warnings."""
    config = read_configuration(str(write(directory, **changes)), timestamp=STAMP, user="bob")
    done = prepare_campaign(config, {"PATH": "/bin:/usr/bin"})
    problems, *others = (
        texts(done.findings, severity)
        for severity in (Severity.ERROR, Severity.NEEDS_SERVER, Severity.WARNING)
    )
    return done.record if problems else done.write(), problems, *others


# --- the files ---------------------------------------------------------------


def test_the_parts_are_configurations_of_bps(tmp_path):
    record, problems, outside, _ = prepared(tmp_path)
    assert (problems, outside) == ([], [])
    found = {}
    for part in record.parts:
        config = BpsConfig(part.file, search_order=BPS_SEARCH_ORDER, defaults=BPS_DEFAULTS)
        found[part.site] = config
        assert config["computeSite"] == part.site
        assert config["wmsServiceClass"] == SERVICE
        assert config["outputRun"] == part.output_run == f"u/ann/drp/{STAMP}/{part.site}"
        assert part.run == f"u_ann_drp_{STAMP}_{part.site}"
        assert config["submitPath"] == part.submit_path == f"{record.directory}/{part.site}"
        assert config["createQuantumGraph"].startswith("true")
        assert config["fileDistributionEndPoint"] == f"{tmp_path}/area/"
    base = "(skymap = 'hsc' OR skymap = 'other') AND tract IN "
    assert found["CC-IN2P3"]["dataQuery"] == base + "(1..8)"
    assert found["LANCS"]["dataQuery"] == base + "(9..13)"
    assert found["SLAC"]["dataQuery"] == base + "(14..20)"
    butlers = {site: (config["butlerConfig"], config["inCollection"]) for site, config in found.items()}
    assert butlers == {
        "SLAC": ("/repo/main", "HSC/defaults"),
        "LANCS": ("/repo/main", "HSC/defaults"),
        "CC-IN2P3": ("/sps/repo", "mirror"),
    }
    isr = {"curvals": {"curr_pipetask": "isr"}}
    assert found["LANCS"].search("requestMemory", opt=isr)[1] == 9000
    assert found["LANCS"].search("requestCpus", opt=isr)[1] == 2
    assert found["SLAC"].search("requestMemory", opt=isr)[1] == 4000
    assert "queue" not in found["SLAC"]
    assert found["LANCS"]["queue"] == "LANCS_Rubin"


def test_what_was_prepared_stays_as_it_was(tmp_path, monkeypatch):
    """The user's file may change, and the current directory hold others."""
    (tmp_path / "common.yaml").write_text("project: first")
    record, *_ = prepared(tmp_path, includeConfigs=["common.yaml"])
    (tmp_path / "common.yaml").write_text("project: second")
    (tmp_path / "run.yaml").unlink()
    monkeypatch.chdir(tmp_path)
    config = BpsConfig(record.parts[0].file, search_order=BPS_SEARCH_ORDER, defaults=BPS_DEFAULTS)
    assert config["project"] == "first"


def test_the_record_can_be_read_again(tmp_path):
    record, *_ = prepared(tmp_path)
    again = read_campaign(record.directory)
    assert again == record
    assert read_campaign(Path(record.directory) / RECORD_NAME) == record
    assert [part.state for part in again.parts] == [PartState.PREPARED] * 3
    assert (again.complete, again.begun) == (False, False)
    assert again.parts[0].values == [1, 2, 3, 4, 5, 6, 7, 8]
    index = CampaignIndex(str(tmp_path / "state"))
    with pytest.raises(RunNotFoundError, match="No campaign was prepared from"):
        find_campaign(str(tmp_path / "run.yaml"), index)
    index.add(record)
    assert find_campaign(str(tmp_path / "run.yaml"), index) == record
    assert find_campaign(record.directory, index) == record


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "has format 2 and this version of the plugin reads 1"),
        ({"parts": [{"site": "A"}]}, "is damaged"),
        ({"surprise": 1}, "is damaged"),
    ],
)
def test_a_record_that_is_not_understood_is_refused(tmp_path, change, words):
    record, *_ = prepared(tmp_path)
    path = Path(record.directory) / RECORD_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PandaBpsError, match=words):
        read_campaign(record.directory)


def test_a_directory_without_a_campaign_is_none(tmp_path):
    with pytest.raises(RunNotFoundError, match="holds no panda_campaign.json"):
        read_campaign(tmp_path)


# --- what a site may set -----------------------------------------------------


def test_a_site_may_have_another_name_than_its_part():
    sites = {"day": {"share": 1, "computeSite": "SLAC"}, "night": {"share": 1, "computeSite": "SLAC"}}
    parts = parts_of(configuration(section={"sites": sites}))
    assert [part.compute_site for part in parts.values()] == ["SLAC", "SLAC"]
    assert parts["day"].run != parts["night"].run


def test_a_site_may_name_query_run_and_values():
    sites = {
        "A": {"share": 1, "outputRun": "u/{operator}/own/{timestamp}", "dataQuery": "skymap = 'mine'"},
        "B": {"share": 1, "values": [1, 2], "payloadName": "other"},
    }
    parts = parts_of(configuration(section={"sites": sites}))
    assert parts["A"].output_run == f"u/ann/own/{STAMP}"
    assert parts["A"].content["payload"]["dataQuery"] == "(skymap = 'mine') AND tract IN (3..12)"
    assert parts["B"].output_run == f"u/ann/other/{STAMP}/B"
    assert set(parts["B"].values) == {1, 2, *range(13, 21)}


def test_a_name_for_the_run_gets_the_site_too():
    parts = parts_of(configuration(uniqProcName="mine"))
    assert sorted(part.run for part in parts.values()) == ["mine_CC-IN2P3", "mine_LANCS", "mine_SLAC"]
    assert parts["SLAC"].content["uniqProcName"] == "mine_SLAC"


def test_no_query_and_texts():
    payload = {"payloadName": "drp", "butlerConfig": "/repo/main", "inCollection": "c"}
    section = {"partition": "band", "values": ["g", "r", "i"], "sites": {"A": 2, "B": 1}}
    parts = parts_of(configuration(payload=payload, section=section))
    queries = {site: part.content["payload"]["dataQuery"] for site, part in parts.items()}
    assert queries == {"A": "band IN ('g', 'i')", "B": "band IN ('r')"}


def test_weights_count():
    section = {"weights": {1: 19}, "sites": {"A": 1, "B": 1}}
    parts = parts_of(configuration(section=section))
    assert (parts["A"].values, len(parts["B"].values)) == ((1,), 19)


def test_what_holds_for_all_sites_alike_is_noted():
    config = configuration(queue="SLAC_Rubin", fileDistributionEndPoint="")
    assert texts(find_shared_places(config), Severity.WARNING) == [
        "queue is 'SLAC_Rubin' for CC-IN2P3, SLAC alike; what differs belongs below campaignSites.sites.",
    ]


# --- what is refused ---------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (None, "run.yaml has no section campaignSites"),
        ({}, "run.yaml has no section campaignSites"),
        ({"enabled": False}, "submit it with bps submit"),
        ({"partition": "tract", "sites": {}}, "sites is {}"),
        ({"sites": {"A": 1}}, "partition is ''"),
        ({"partition": ["tract", "patch"], "sites": {"A": 1}}, "must name one dimension"),
        ({"partition": "tract", "site": {"A": 1}, "share": 2}, "holds 'share'"),
        ({"partition": "tract", "sites": {"A": {"share": 0}}}, "sites.A.share is 0"),
        ({"partition": "tract", "sites": {"A": {"share": -2}}}, "sites.A.share is -2"),
        ({"partition": "tract", "sites": {"A": {"share": "much"}}}, "sites.A.share is 'much'"),
        ({"partition": "tract", "sites": {"A": {"queue": "q"}}}, "needs a share"),
        ({"partition": "tract", "sites": {"A b": 1}}, "the name 'A b'"),
        ({"partition": "tract", "sites": {"A/b": 1}}, "the name 'A/b'"),
        ({"partition": "tract", "sites": {"A": 1}, "values": [1, 1]}, "holds 1 more than once"),
        ({"partition": "tract", "sites": {"A": 1}, "values": [1.5]}, "holds 1.5"),
        ({"partition": "tract", "sites": {"A": 1}, "values": ["5..1"]}, "must go upwards"),
        ({"partition": "tract", "sites": {"A": 1}, "weights": 3}, "weights is 3"),
        ({"partition": "tract", "sites": {"A": 1}, "weights": "datasets"}, "weights: datasets needs it"),
        ({"partition": "tract", "sites": {"A": 1}, "values": [1], "datasetType": "raw"}, "without values"),
    ],
)
def test_a_section_that_cannot_be_used(section, words):
    with pytest.raises(SettingsError) as caught:
        read_section(section, source="run.yaml")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"section": {"partition": "tracts"}}, "campaignSites.partition is 'tracts'; dimensions are"),
        ({"section": {"values": ["one"]}}, "tract has whole numbers"),
        ({"section": {"values": [7]}}, "Site LANCS gets none of the 1 values of tract"),
        ({"section": {"sites": {"A": {"share": 1, "values": [99]}}}}, "none of the campaign's 20 values"),
        (
            {"section": {"sites": {"A": {"share": 1, "values": [3]}, "B": {"share": 1, "values": [3]}}}},
            "Sites A and B both name the value 3",
        ),
        ({"section": {"weights": {1: 0}}}, "The weight of 1 is 0"),
        ({"payload": {**content()["payload"], "dataQuery": "tract = 5"}}, "leaves one value of tract"),
        ({"section": {"sites": {"A": {"share": 1, "outputRun": "x"}, "B": {"share": 1, "outputRun": "x"}}}},
         "Two sites of the campaign have the same run: x"),
        ({"section": {"partition": "band", "values": ["g'", "r"], "sites": {"A": 1}}}, "cannot be written"),
        ({"section": {"values": list(range(0, 60_000, 2)), "sites": {"A": 1}}}, "and a command takes 100000"),
    ],
)  # fmt: skip
def test_a_campaign_that_cannot_be_divided(changes, words):
    with pytest.raises(SettingsError) as caught:
        parts_of(configuration(**changes))
    assert words in str(caught.value)


def test_a_graph_that_is_made_already_cannot_be_divided():
    with pytest.raises(SettingsError, match="qgraphFile is '/a.qg'"):
        configuration(qgraphFile="/a.qg")


def test_all_sites_are_checked_before_anything_is_written(tmp_path):
    changes = {
        "fileDistributionEndPoint": "",
        "section": {"sites": {"SLACK": 1, "local": {"share": 1, "priority": "high"}}},
    }
    record, problems, outside, _ = prepared(tmp_path, **changes)
    assert any(text.startswith("Site local: priority is 'high'") for text in problems)
    assert any("Site SLACK: fileDistributionEndPoint is not set" in text for text in [*problems, *outside])
    assert not Path(record.directory).exists()


RUCIO = {
    "enabled": True, "datasetTypes": "image", "scope": "dp2", "rse": "DISK", "rseRoot": "/rse",
    "dtnUrl": "davs://host/rse", "askRucio": False,
}  # fmt: skip


def test_the_registration_of_every_site_is_checked(tmp_path):
    sites = {"SLAC": 1, "LANCS": {"share": 1, "rucio": {"rse": "lancs_disk"}}}
    record, problems, _, warnings = prepared(tmp_path, rucio=RUCIO, section={"sites": sites})
    (problem,) = (text for text in problems if "rucio" in text)
    assert problem.startswith("Site LANCS: rucio.rse is 'lancs_disk'")
    assert any(text.startswith("Site SLAC: Rucio was not asked") for text in warnings)
    assert not Path(record.directory).exists()


def test_a_dataset_of_several_sites_must_not_be_closed_by_one(tmp_path):
    shared = {**RUCIO, "datasetName": "campaign"}
    sites = {"SLAC": {"share": 1, "rucio": {"close": True}}, "LANCS": 1}
    _, problems, *_ = prepared(tmp_path, rucio=shared, section={"sites": sites})
    (problem,) = (text for text in problems if "closes" in text)
    assert problem.startswith("Site SLAC closes Rucio's dataset dp2:campaign, into which LANCS and SLAC")
    for number, rucio in enumerate((shared, {**RUCIO, "close": True})):
        (tmp_path / str(number)).mkdir()
        _, problems, *_ = prepared(
            tmp_path / str(number), rucio=rucio, section={"sites": {"SLAC": 1, "LANCS": 1}}
        )
        assert not [text for text in problems if "closes" in text]


def test_a_directory_that_is_there_is_not_used_again(tmp_path):
    record, *_ = prepared(tmp_path)
    with pytest.raises(SettingsError, match="continue it: panda_bps campaign submit"):
        prepared(tmp_path)
    assert read_campaign(record.directory) == record


def test_bps_submit_does_not_run_a_campaign_at_one_site(tmp_path):
    def problems(**changes):
        config = BpsConfig(content(tmp_path, **changes), search_order=BPS_SEARCH_ORDER, defaults=BPS_DEFAULTS)
        config[".bps_defined.timestamp"] = STAMP
        return texts(check_configuration(config, {"PATH": "/bin:/usr/bin"}), Severity.ERROR)

    (problem,) = problems()
    assert "campaignSites divides this run among 3 sites" in problem
    assert problems(section={"enabled": False}) == []


# --- values ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("skymap='x' AND tract = 9813", "tract = 9813"),
        ("tract.id=3", "tract.id=3"),
        ("band = 'g'", ""),
        ("skymap = 'tract = 4'", ""),
        ("tract >= 3 AND tract != 7", ""),
        ("tract IN (3)", ""),
        ("subtract = 4", ""),
    ],
)
def test_a_query_that_fixes_the_dimension(query, found):
    assert find_fixed_condition("tract", query) == found


def test_numbers_of_yaml_are_names_where_names_are_wanted():
    assert convert_values("physical_filter", [2024, "r"]) == ("2024", "r")
    assert convert_values("tract", ["12", 3]) == (12, 3)


@pytest.fixture(scope="module")
def butler(tmp_path_factory):
    """Two sky maps with tracts, and inputs for some of them."""
    folder = tmp_path_factory.mktemp("repo")
    Butler.makeRepo(str(folder))
    with Butler.from_config(str(folder), writeable=True) as butler:
        for number, name in enumerate(("hsc", "dc2")):
            record = {"hash": bytes([number]), "tract_max": 9, "patch_nx_max": 1, "patch_ny_max": 1}
            butler.registry.insertDimensionData("skymap", {"name": name, **record})
            butler.registry.insertDimensionData("tract", *({"skymap": name, "id": n} for n in range(5)))
            patches = [{"tract": n, "id": p, "cell_x": p, "cell_y": 0} for n in range(5) for p in range(2)]
            butler.registry.insertDimensionData("patch", *({"skymap": name, **patch} for patch in patches))
        kind = DatasetType(
            "tile", ("skymap", "tract", "patch"), "StructuredDataDict", universe=butler.dimensions
        )
        butler.registry.registerDatasetType(kind)
        butler.collections.register("run")
        for tract, patch in ((1, 0), (3, 0), (3, 1)):
            butler.put({}, "tile", skymap="hsc", tract=tract, patch=patch, run="run")
        yield butler


def test_the_butler_tells_values(butler):
    assert count_in_butler(butler, "tract", data_query="skymap='hsc' AND tract > 1") == {2: 1, 3: 1, 4: 1}
    assert count_in_butler(butler, "skymap", data_query="") == {"dc2": 1, "hsc": 1}


def test_the_butler_counts_inputs(butler):
    found = count_in_butler(
        butler, "tract", data_query="skymap='hsc'", collections=["run"], dataset_type="tile"
    )
    assert found == {1: 1, 3: 2}


def test_values_of_two_sky_maps_are_refused(butler):
    with pytest.raises(SettingsError, match="belong to 2 different values of skymap"):
        count_in_butler(butler, "tract", data_query="")


def test_no_value_is_an_error(butler):
    with pytest.raises(SettingsError, match="has no value of tract"):
        count_in_butler(butler, "tract", data_query="skymap='hsc' AND tract > 7")


def test_the_configuration_may_leave_values_to_the_butler(butler, tmp_path):
    payload = {
        "payloadName": "drp",
        "butlerConfig": butler._config.configDir.ospath,
        "inCollection": "run",
        "dataQuery": "skymap='hsc'",
    }
    section = {"values": None, "datasetType": "tile", "weights": "datasets", "sites": {"A": 1, "B": 2}}
    sites = {name: {"share": share, "computeSite": "SLAC"} for name, share in section["sites"].items()}
    record, problems, *_ = prepared(tmp_path, payload=payload, section={**section, "sites": sites})
    assert problems == []
    assert {part.site: part.values for part in record.parts} == {"A": [1], "B": [3]}


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ({"butlerConfig": ""}, "Neither campaignSites.values nor butlerConfig is set"),
        (
            {"butlerConfig": "/no/such/repo"},
            "The Butler /no/such/repo could not be asked for values of tract",
        ),
    ],
)
def test_a_butler_that_cannot_be_asked(tmp_path, payload, words):
    with pytest.raises(SettingsError, match=words):
        prepared(tmp_path, payload={**content()["payload"], **payload}, section={"values": None})


# --- the command, and builds at the site -------------------------------------


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Call ``panda_bps campaign``; PanDA is nowhere."""

    def run(*words):
        env = {"XDG_STATE_HOME": str(tmp_path / "state"), "PANDA_URL_SSL": None, "PANDA_URL": None}
        return CliRunner().invoke(main, ["campaign", *map(str, words)], env={**env, "PANDA_LOCAL_DIR": None})

    return run


def test_prepare_says_what_goes_where(call, tmp_path):
    done = call("prepare", write(tmp_path))
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.output.splitlines()]
    assert lines[1] == ["site", "computeSite", "configuration", "share", "tract"]
    assert [(line[0], line[1], line[3], line[4]) for line in lines[2:5]] == [
        ("CC-IN2P3", "CC-IN2P3", "40", "8"), ("LANCS", "LANCS", "25", "5"), ("SLAC", "SLAC", "35", "7"),
    ]  # fmt: skip
    assert "panda_bps campaign submit" in done.output


def test_all_sites_without_runs_are_a_campaign_too(call, tmp_path):
    assert call("prepare", write(tmp_path)).exit_code == 0
    done = call("status", tmp_path / "run.yaml")
    assert done.exit_code == 1
    assert "PANDA_URL_SSL and PANDA_URL are not set" in done.output


def test_problems_are_said_and_nothing_is_sent(call, tmp_path):
    for sites, words in (({"A": {"share": 0}}, "sites.A.share is 0"), ({"A": 1}, "fileDistributionEndPoint")):
        config = write(tmp_path, section={"sites": sites}, fileDistributionEndPoint="")
        done = call("submit", config)
        assert done.exit_code == 1
        assert words in done.output
    assert not (tmp_path / "submit").exists()


def test_a_campaign_that_nobody_knows(call, tmp_path):
    for command in ("report", "status", "cancel", "restart"):
        done = call(command, tmp_path / "none.yaml")
        assert done.exit_code == 1
        assert "No campaign was prepared from" in done.output


def test_a_part_that_is_built_at_its_site_takes_all_it_needs_along(tmp_path):
    record, *_ = prepared(tmp_path)
    part = record.parts[0]
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("")
    make_archive(tmp_path / "jobO.tar.gz", [part.file], [overlay])
    place = tmp_path / "site"
    place.mkdir()
    with tarfile.open(tmp_path / "jobO.tar.gz") as archive:
        for name in archive.getnames():
            (place / name).write_bytes(archive.extractfile(name).read())
    shutil.rmtree(record.directory)
    config = BpsConfig(
        str(place / Path(part.file).name), search_order=BPS_SEARCH_ORDER, defaults=BPS_DEFAULTS
    )
    assert config["payloadName"] == "drp"
    assert config["dataQuery"].endswith("tract IN (1..8)")
