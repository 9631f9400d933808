"""Names that are probably mistakes, and where they stand."""

import click
import pytest

from lsst.ctrl.bps import BPS_DEFAULTS, BPS_SEARCH_ORDER, BpsConfig
from lsst.ctrl.bps.panda.checks.misspellings import check_names, closest_key, find_misspelt_keys
from lsst.ctrl.bps.panda.findings import Severity
from lsst.ctrl.bps.panda.settings import sites


def make_config(**values):
    content = {
        "uniqProcName": "u_me_x_1",
        "payload": {"payloadName": "pay", "outputRun": "u/me/x/1"},
        **values,
    }
    return BpsConfig(
        content,
        search_order=BPS_SEARCH_ORDER,
        defaults=BPS_DEFAULTS,
        wms_service_class_fqn="lsst.ctrl.bps.panda.PanDAService",
    )


def hints_of(config, labels=()):
    found = check_names(config, {}, labels=labels)
    assert {finding.severity for finding in found} <= {Severity.HINT}
    return tuple(finding.text for finding in found)


def test_labels_of_the_event_service_that_the_run_does_not_have():
    config = make_config(computeSite="local", enableEventService="isr;20, isr, wrap:3")
    assert hints_of(config, labels=("", "finalJob", "isr", "warp")) == (
        "enableEventService names isr;20, wrap, which this run does not have; its labels are finalJob, isr, "
        "warp.",
    )


def test_a_misspelt_key_is_pointed_out():
    hints = hints_of(make_config(computeSite="local", maxJobPerTask=5))
    assert hints == ("Key maxJobPerTask of the configuration is not known; did you mean maxJobsPerTask?",)
    assert hints_of(make_config(computeSite="local")) == ()


def test_a_key_of_the_whole_run_means_nothing_at_a_label():
    config = make_config(
        computeSite="local",
        pipetask={"isr": {"maxJobsPerTask": 5, "queue": "Q", "environment": {"jobNaming": "x"}}},
        finalJob={"jobNaming": "plain", "priority": 7},
        site={"SLAC": {"maxJobsPerTask": 6}},
        payload={"maxRequestLength": 20000},
    )
    assert hints_of(config) == tuple(
        f"Key {path} of the configuration has no effect: {name} is for the whole run. Set it at the top."
        for path, name in (
            ("pipetask.isr.maxJobsPerTask", "maxJobsPerTask"),
            ("finalJob.jobNaming", "jobNaming"),
        )
    )


def test_a_site_without_a_profile_has_no_set_up():
    (hint,) = hints_of(make_config(computeSite="NEVERLAND"))
    assert hint.startswith("computeSite NEVERLAND has no profile")
    assert "SLAC, local. For another site, set setupLSSTEnv." in hint
    assert hints_of(make_config(computeSite="NEVERLAND", setupLSSTEnv="")) == ()
    (hint,) = hints_of(make_config(computeSite=None))
    assert hint.startswith("computeSite is not set")


def test_misspelt_keys_are_found_in_all_sections():
    config = make_config(
        site={"SLAC": {"queu": "Q"}},
        cloud={"US": {"prodSourceLable": "x"}},
        payload={"payloadName": "p", "inColection": "HSC"},
        pipetask={"isr": {"requestMemroy": 5, "requestmemory": 6}},
        cluster={"all": {"pipetask": "isr", "dimension": "visit"}},
        finalJob={"quee": "Q"},
        remoteBuild={"enable": True},
        # Names of the user's: used, numbered, a label or a variable.
        queue1="Q",
        priority1=5,
        taskTypes="x",
        used="{taskTypes}",
        environment={"QUEUES_": "x", "queu": "x"},
        bps_defined={"timestamps": "x"},
    )
    assert sorted(finding.text for finding in find_misspelt_keys(config, {})) == sorted(
        f"Key {path} of the configuration is not known; did you mean {meant}?"
        for path, meant in (
            ("site.SLAC.queu", "queue"),
            ("cloud.US.prodSourceLable", "prodSourceLabel"),
            ("payload.inColection", "inCollection"),
            ("pipetask.isr.requestMemroy", "requestMemory"),
            ("pipetask.isr.requestmemory", "requestMemory"),
            ("cluster.all.dimension", "dimensions"),
            ("finalJob.quee", "queue"),
            ("remoteBuild.enable", "enabled"),
        )
    )


@pytest.mark.parametrize("name", [*sites.site_names(), ""])
def test_packaged_configurations_have_no_misspelt_key(name):
    content = sites.profile_of(name) if name else {**sites.base_profile(), **sites.defaults()}
    assert find_misspelt_keys(BpsConfig(content), {}) == []


def test_a_site_with_a_notice():
    (hint,) = hints_of(make_config(computeSite="LSST", sw_image="i"))
    assert hint.startswith("Site LSST: By the page")
    assert hints_of(make_config(computeSite="SLAC", LSST_VERSION="w_1")) == ()


@pytest.mark.parametrize("name", ["requestMemory", "payload", "pipelineYaml", "site", "cluster", "finalJob"])
def test_keys_of_bps_are_not_taken_for_misspelt_ones(name):
    assert closest_key(name) is None


def test_file_and_line_of_each_hint(tmp_path):
    """The same key with the same value stands at two labels."""
    (tmp_path / "labels.yaml").write_text(
        "pipetask:\n  isr:\n    requestMemroy: 5\n  warp:\n    requestMemroy: 5\n    jobNaming: plain\n"
    )
    run = tmp_path / "run.yaml"
    run.write_text(
        "wmsServiceClass: lsst.ctrl.bps.panda.PanDAService\nincludeConfigs: ['${PARTS}/labels.yaml']\n"
        "computeSite: SALC\n"
    )
    content = {"computeSite": "SALC", "pipetask": {"isr": {"requestMemroy": 5}}}
    content["pipetask"]["warp"] = {"requestMemroy": 5, "jobNaming": "plain"}
    with click.Context(click.Command("check"), info_name="check") as context:
        context.params["config"] = str(run)
        found = check_names(make_config(**content), {"PARTS": str(tmp_path)})
    places = {finding.key: (finding.file, finding.line) for finding in found}
    assert places == {
        "pipetask.isr.requestMemroy": (f"{tmp_path}/labels.yaml", 3),
        "pipetask.warp.requestMemroy": (f"{tmp_path}/labels.yaml", 5),
        "pipetask.warp.jobNaming": (f"{tmp_path}/labels.yaml", 6),
        "computeSite": (str(run), 3),
    }
    assert str(found[0]).endswith(f"did you mean requestMemory? ({tmp_path}/labels.yaml, line 3)")


def test_a_key_at_the_top_that_the_section_payload_overrides():
    config = make_config(computeSite="local", outputRun="u/me/mine", dataQuery="tract = 1")
    assert hints_of(config) == (
        "outputRun at the top has no effect: BPS takes payload.outputRun, 'u/me/x/1', even if that is its "
        "default. Set it in the section payload.",
    )
    assert config["outputRun"] == "u/me/x/1"


def pipeline_of(tmp_path, *labels):
    path = tmp_path / "pipeline.yaml"
    tasks = "".join(f"  {label}: a.Task\n" for label in labels)
    path.write_text(f"description: x\ntasks:\n{tasks}subsets:\n  step1: [{labels[0]}]\n")
    return str(path)


def test_settings_for_labels_that_the_pipeline_does_not_have(tmp_path):
    """A part of the pipeline may run alone, and a configuration may be for several pipelines."""
    config = make_config(
        computeSite="local",
        pipelineYaml=pipeline_of(tmp_path, "isr", "characterize", "makeWarp") + "#isr",
        pipetask={"isrr": {}, "makeWarp": {}, "zzz": {}, "yyy": {}, "all": {}, "pipetaskInit": {}},
        cluster={"all": {"pipetasks": "isr, charcterize"}},
    )
    assert hints_of(config) == (
        "pipetask.isrr is for label isrr, which the pipeline does not have; did you mean isr?",
        "cluster.all.pipetasks is for label charcterize, which the pipeline does not have; did you mean "
        "characterize?",
        "Settings for zzz, yyy have no effect: the pipeline has no such labels.",
    )


def test_settings_for_labels_that_a_given_graph_does_not_have():
    """What is not like a label may be another part of the same pipeline."""
    config = make_config(computeSite="local", qgraphFile="x.qg", pipetask={"charcterize": {}, "makeWarp": {}})
    assert hints_of(config) == ()
    assert hints_of(config, labels=("isr", "characterize")) == (
        "pipetask.charcterize is for label charcterize, which the pipeline does not have; did you mean "
        "characterize?",
    )


def test_a_section_for_a_site_that_is_almost_one_with_a_profile():
    sites_ = {
        "SLCA": {"queue": "Q"},
        "SLAC": {"queue": "Q"},
        "MINE": {"queue": "Q"},
        "LANCSX": {"queue": "Q"},
    }
    config = make_config(computeSite="LANCSX", setupLSSTEnv="true;", site=sites_)
    assert "site.SLCA is for a site without profile; did you mean SLAC?" in hints_of(config)
    assert not any("site.LANCSX" in text or "site.MINE" in text for text in hints_of(config))


def test_a_key_that_stands_twice(tmp_path):
    run = tmp_path / "run.yaml"
    parts = "  warp: {queue: A}\n  warp: {queue: B}\n"
    run.write_text(f"project: a\npipetask:\n  isr: {{queue: A}}\npipetask:\n{parts}")
    with click.Context(click.Command("check"), info_name="check") as context:
        context.params["config"] = str(run)
        found = check_names(make_config(computeSite="local"), {})
    assert {finding.severity for finding in found} == {Severity.WARNING}
    assert [str(finding) for finding in found] == [
        f"{key} stands twice, in line {first} also, and the last counts. Put both together. ({run}, line "
        f"{last})"
        for key, first, last in (("pipetask", 2, 4), ("pipetask.warp", 5, 6))
    ]
