"""Settings: where each value comes from, and what a wrong one is told."""

import os

import pytest
from lsst.daf.butler import Config

from lsst.ctrl.bps import (
    BPS_DEFAULTS,
    BPS_SEARCH_ORDER,
    BpsConfig,
    GenericWorkflow,
    GenericWorkflowExec,
    GenericWorkflowFile,
    GenericWorkflowJob,
)
from lsst.ctrl.bps.panda.errors import SettingsError
from lsst.ctrl.bps.panda.plan.model import NamingKind
from lsst.ctrl.bps.panda.settings.keys import KEYS
from lsst.ctrl.bps.panda.settings.run import (
    check_area_form,
    complete_area,
    default_configuration,
    find_area,
    find_run_broker,
    is_loopback,
    read_run_settings,
    read_service_settings,
    site_staging_area,
)
from lsst.ctrl.bps.panda.settings.search import KeyLookup


def make_config(**values):
    """A configuration as BPS makes it, with a staging area."""
    content = {
        "submitPath": "/submit",
        "outputRun": "u/me/x/1",
        "uniqProcName": "u_me_x_1",
        "operator": "me",
        "project": "pr",
        "campaign": "ca",
        "fileDistributionEndPoint": "/area/{uniqProcName}",
        "payload": {"payloadName": "pay", "butlerConfig": "/repo"},
    }
    content.update(values)
    return BpsConfig(
        content,
        search_order=BPS_SEARCH_ORDER,
        defaults=BPS_DEFAULTS,
        wms_service_class_fqn="lsst.ctrl.bps.panda.PanDAService",
    )


def make_workflow(labels=("isr",), final=True):
    workflow = GenericWorkflow("u_me_x_1")
    executable = GenericWorkflowExec("true", "true", False)
    for label in labels:
        workflow.add_job(GenericWorkflowJob(f"{label}_1", label, executable=executable, arguments=""))
    if final:
        workflow.add_final(GenericWorkflowJob("finalJob", "finalJob", executable=executable, arguments=""))
    return workflow


def read(config, env=None, **kwargs):
    return read_run_settings(
        config, make_workflow(**kwargs), submit_path="/submit", environment={} if env is None else env
    )


def test_values_come_from_the_run_then_the_site_then_the_base():
    settings = read(make_config(computeSite="SLAC", LSST_VERSION="w_1", priority=7))
    label = settings.plan.for_label("isr")
    assert label.priority == 7
    assert label.site == "SLAC"
    assert label.prod_source_label == "managed"
    assert settings.plan.max_jobs_per_task == 10000


def test_labels_that_are_clusters_are_known():
    config = make_config(cluster={"visit": {"pipetasks": "isr,calibrate"}, "other": {"pipetasks": "x"}})
    assert read(config, labels=("visit", "coadd")).clusters == ("visit",)
    assert read(make_config(), labels=("visit",)).clusters == ()


@pytest.mark.parametrize(
    ("values", "own"),
    [
        ({}, {}),
        ({"pandaMessagesUrl": "stomp://mine"}, {"pandaMessagesUrl": "stomp://mine"}),
        ({"pandaMessagesVhost": "v"}, {"pandaMessagesVhost": "v"}),
        # What holds a password is not written down.
        ({"pandaMessagesUrl": "stomp://ann:secret@mine", "pandaMessagesVhost": "v"}, {}),
    ],
)
def test_the_broker_that_a_run_brings_itself(values, own):
    settings = read_service_settings(make_config(**values), {"USER": "ann", "HOME": "/"})
    assert find_run_broker(settings, "SLAC") == own


def test_a_label_has_its_own_settings():
    config = make_config(
        computeSite="SLAC",
        LSST_VERSION="w_1",
        pipetask={"isr": {"queue": "Q_isr", "processingType": "special", "priority": 900}},
        finalJob={"queue": "Q_merge"},
    )
    plan = read(config, labels=("isr", "warp")).plan
    assert (
        plan.for_label("isr").queue,
        plan.for_label("isr").processing_type,
        plan.for_label("isr").priority,
    ) == (
        "Q_isr",
        "special",
        900,
    )
    assert plan.for_label("warp").priority == 500
    assert plan.for_label("warp").processing_type == ""
    assert plan.for_label("finalJob").queue == "Q_merge"
    assert plan.for_label("finalJob").processing_type == "Rubin_Merge"


def test_the_runner_command_keeps_the_workers_variables():
    config = make_config(runnerCommand="x=${HOME}; python3 ${CTRL_BPS_PANDA_DIR}/d.py _cmd_line_")
    command = read(config, {"HOME": "/submit/home"}).plan.for_label("isr").runner_command
    assert "${HOME}" in command
    assert "${CTRL_BPS_PANDA_DIR}" in command


@pytest.mark.parametrize(
    ("text", "env", "expected"),
    [
        ("/a b/{uniqProcName}", {}, "/a b/u_me_x_1/"),
        ("file:///x/", {}, "file:///x/"),
        ("s3://bucket/{payloadFolder}/", {}, "s3://bucket/payload/"),
        ("${LSST_RUN_TEMP_SPACE}/box/", {"LSST_RUN_TEMP_SPACE": "/t"}, "/t/box/"),
    ],
)
def test_staging_area(text, env, expected):
    assert read(make_config(fileDistributionEndPoint=text), env).staging.area == expected


def test_a_staging_area_whose_variable_is_not_set_is_an_error_that_names_it():
    config = make_config(fileDistributionEndPoint="${LSST_RUN_TEMP_SPACE}/box/")
    with pytest.raises(SettingsError, match="LSST_RUN_TEMP_SPACE is not set"):
        read(config, {})


def test_the_default_staging_area_serves_command_and_staging_alike():
    config = make_config(
        fileDistributionEndPoint="${LSST_RUN_TEMP_SPACE}/box/", fileDistributionEndPointDefault="/other/box/"
    )
    settings = read(config, {})
    assert settings.staging.area == settings.plan.run.staging_area == "/other/box/"


def test_no_staging_area_at_all_says_what_to_do():
    with pytest.raises(SettingsError, match="fileDistributionEndPoint is not set.*Sites with a profile"):
        read(make_config(fileDistributionEndPoint="", computeSite="NOWHERE"))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({}, NamingKind.SHORT),
        ({"jobNaming": "plain"}, NamingKind.PLAIN),
        ({"enableJobNameMap": True}, NamingKind.ORDER_ID_MAP),
        ({"enableQnodeMap": "true"}, NamingKind.QNODE_MAP),
    ],
)
def test_naming(values, kind):
    assert read(make_config(**values)).plan.naming is kind


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"jobNaming": "tiny"}, "jobNaming is 'tiny'.*short, plain"),
        ({"maxJobsPerTask": "many"}, "maxJobsPerTask is 'many'.*whole number"),
        ({"maxJobsPerTask": 0}, "maxJobsPerTask is 0.*at least 1"),
        ({"maxCopyWorkers": 1.5}, "maxCopyWorkers is 1.5.*whole number"),
        ({"enableEventService": "isr:none"}, "enableEventService is 'isr:none'"),
        ({"groupPermissions": "perhaps"}, "groupPermissions is 'perhaps'.*yes or no"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_key_and_value(values, words):
    with pytest.raises(SettingsError, match=words):
        read(make_config(**values))


def test_event_service_by_label():
    config = make_config(enableEventService="isr:20, warp", maxPayloadsPerPandaJob=7)
    plan = read(config, labels=("isr", "warp", "coadd")).plan
    labels = ("isr", "warp", "coadd", "finalJob")
    assert [plan.for_label(label).payloads_per_job for label in labels] == [20, 7, 1, 1]
    mapping = make_config(enableEventService={"isr": 20, "warp": 3})
    plan = read(mapping, labels=("isr", "warp", "coadd")).plan
    assert [plan.for_label(label).payloads_per_job for label in labels] == [20, 3, 1, 1]


def test_directories_among_the_inputs_are_found(tmp_path):
    workflow = make_workflow()
    (tmp_path / "d").mkdir()
    workflow.add_job_inputs(
        "isr_1", [GenericWorkflowFile("a", str(tmp_path / "d"), wms_transfer=True, job_access_remote=True)]
    )
    settings = read_run_settings(make_config(), workflow, submit_path="/s", environment={})
    assert settings.plan.directories == {str(tmp_path / "d")}


@pytest.mark.parametrize("name", ["", "a/b.json", ".."])
def test_the_map_of_order_ids_is_a_file(name):
    with pytest.raises(SettingsError, match="orderIdMapFilename is"):
        read(make_config(orderIdMapFilename=name))


def test_the_user_is_known_without_the_variable():
    assert read_service_settings({}, {}).user
    assert read_service_settings({}, {"USER": "ann"}).user == "ann"
    assert read(make_config(), {"USER": "ann"}).plan.submit_environment == {"USER": "ann"}
    assert read(make_config(), {}).plan.submit_environment["USER"]


def test_where_panda_is():
    settings = read_service_settings(
        {}, {"PANDA_URL": "http://a/server/panda", "PANDA_URL_SSL": "https://b/x/"}
    )
    assert settings.url == "https://b/x"
    assert settings.require_url() == "https://b/x"
    with pytest.raises(SettingsError, match="PANDA_URL_SSL.*LocalPanDAService"):
        read_service_settings({}, {}).require_url()


@pytest.mark.parametrize(
    ("variables", "monitor"),
    [
        ({"PANDA_URL_SSL": "https://pandaserver:8443/server/panda"}, True),
        ({"PANDA_URL": "http://127.0.0.1:8080/server/panda"}, False),
        ({"PANDA_URL": "http://[::1]:8080/server/panda"}, False),
        ({"PANDA_URL": "http://localhost:8080/server/panda", "PANDA_MONITOR_URL": "https://mine"}, True),
    ],
)
def test_a_facility_s_monitor_does_not_show_a_server_on_this_machine(variables, monitor):
    settings = read_service_settings(None, {"HOME": "/", "USER": "ann", **variables})
    assert bool(settings.monitor_url) is monitor


def test_defaults_need_no_lsst_stack():
    plain = BpsConfig({}, defaults=BPS_DEFAULTS, wms_service_class_fqn="lsst.ctrl.bps.panda.PanDAService")
    command = plain.search("runQuantumCommand", opt={"replaceVars": False, "expandEnvVars": False})[1]
    if "CTRL_MPEXEC_DIR" not in os.environ:
        assert command.startswith("pipetask ")
    stack = default_configuration({"CTRL_MPEXEC_DIR": "/stack/m", "DAF_BUTLER_DIR": "/stack/b"})
    assert "runQuantumCommand" not in stack


@pytest.mark.parametrize(
    ("host", "same"),
    [("localhost", True), ("127.0.0.1", True), ("127.0.0.2", True), ("::1", True), ("::ffff:10.0.0.1", False),
     ("127.example.org", False), ("127.0.0.1.example.org", False), ("10.0.0.1", False), ("", False)],
)  # fmt: skip
def test_a_host_is_this_machine_by_its_address_not_by_how_its_name_begins(host, same):
    assert is_loopback(host) is same


def test_jobs_of_the_embedded_panda_find_scripts_on_their_path_also_with_eups(monkeypatch):
    monkeypatch.setenv("CTRL_MPEXEC_DIR", "/stack/m")
    monkeypatch.setenv("DAF_BUTLER_DIR", "/stack/b")
    name = "lsst.ctrl.bps.panda.LocalPanDAService"
    config = BpsConfig({}, defaults=BPS_DEFAULTS, wms_service_class_fqn=name)
    assert config[".runQuantumCommand"].startswith("pipetask ")
    assert config[".finalJob.command1"].startswith("butler ")


def test_defaults_have_no_remote_build_section():
    # BPS would skip prepare and fail for any other class than PanDAService.
    assert "remoteBuild" not in default_configuration({})


def test_the_profile_of_a_site_gives_the_staging_area(monkeypatch):
    monkeypatch.setenv("PANDA_LOCAL_DIR", "/home/a b/panda")
    monkeypatch.delenv("PANDA_LOCAL_STAGING", raising=False)
    assert site_staging_area("local", "payload", "run_1") == "file:///home/a%20b/panda/staging/payload/run_1/"
    assert site_staging_area("NOWHERE", "payload", "run_1") == ""


@pytest.mark.parametrize("key", KEYS.values(), ids=lambda key: key.name)
def test_each_key_has_a_default_of_its_kind(key):
    assert getattr(key.model.parse({key.name: key.default}, source="default"), key.field) == key.default
    assert key.meaning.endswith(".")


def test_a_variable_without_a_value_is_named_with_its_place():
    config = make_config(computeSite="SLAC")
    with pytest.raises(SettingsError, match=r"LSST_VERSION \(in setupLSSTEnv\)"):
        read(config)
    command = (
        read(make_config(computeSite="SLAC", LSST_VERSION="w_2026_45")).plan.for_label("isr").runner_command
    )
    assert "lsst_distrib/w_2026_45/loadLSST.bash" in command


@pytest.mark.parametrize("site", ["SLAC", "CC-IN2P3", "LANCS", "RAL"])
def test_profiles_of_the_facilities(site):
    config = make_config(computeSite=site, LSST_VERSION="w_1", fileDistributionEndPoint="")
    env = {"LSST_RUN_TEMP_SPACE": "/space"}
    with pytest.raises(SettingsError, match="fileDistributionEndPoint is not set"):
        read(config, env)
    plan = read(make_config(computeSite=site, LSST_VERSION="w_1"), env).plan
    assert plan.for_label("finalJob").queue == f"{site}_Rubin_Merge"
    assert plan.for_label("isr").queue == ""
    assert plan.for_label("isr").site == site
    assert plan.for_label("isr").cloud == ("US" if site == "SLAC" else "EU")


def test_the_staging_area_of_a_facility_comes_by_its_name(monkeypatch):
    monkeypatch.setenv("LSST_RUN_TEMP_SPACE", "/space")
    assert site_staging_area("SLAC", "payload", "r") == "/space/panda_cache_box/payload/r/"
    monkeypatch.delenv("LSST_RUN_TEMP_SPACE")
    assert site_staging_area("slac", "payload", "r").startswith("/sdf/data/rubin/")
    assert site_staging_area("RAL", "payload", "r") == ""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("/area/run", "/area/run/"),
        ("/area/{payloadName}", "/area/{payloadName}/"),
        ("/area/{folder}", "/area/{folder}"),
        ("area/run", "{cwd}/area/run/"),
        ("./area/", "{cwd}/./area/"),
        ("{folder}", "{cwd}/{folder}"),
        ("s3://bucket/run", "s3://bucket/run/"),
        ("https://host/dav/run/", "https://host/dav/run/"),
        ("${SPACE}/run", "${SPACE}/run/"),
        ("~/run", "/home/me/run/"),
        ("/a b/run", "file:///a%20b/run/"),
        ("", ""),
    ],
)
def test_the_staging_area_is_completed_before_bps_makes_its_scripts(monkeypatch, tmp_path, given, expected):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    config = BpsConfig(
        {
            "payloadName": "p",
            "folder": "f/",
            "fileDistributionEndPoint": given,
            "site": {"S": {"fileDistributionEndPoint": given}},
        },
        search_order=BPS_SEARCH_ORDER,
    )
    complete_area(config)
    for key in (".fileDistributionEndPoint", ".site.S.fileDistributionEndPoint"):
        assert Config.__getitem__(config, key) == expected.replace("{cwd}", str(tmp_path))
    once = config.toDict()
    complete_area(config)
    assert config.toDict() == once
    if given:
        # The plan means the same place as BPS's scripts.
        area, _ = find_area(KeyLookup(config, {"SPACE": "/space"}), {"SPACE": "/space"})
        _, written = config.search("fileDistributionEndPoint", opt={"expandEnvVars": False})
        written = os.path.expandvars(written).replace("${SPACE}", "/space")
        assert area.rstrip("/") == os.path.normpath(written) or "://" in written
        assert area.endswith("/")
        assert written.endswith("/")


def test_an_area_that_bps_has_already_used_as_it_was_is_refused():
    config = BpsConfig({"fileDistributionEndPoint": "/area/run"}, search_order=BPS_SEARCH_ORDER)
    with pytest.raises(SettingsError, match="'/area/run'; BPS puts names of files behind it"):
        check_area_form(KeyLookup(config, {}))
