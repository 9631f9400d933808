"""What would keep a run from working, all in one list."""

import stat

import click
import pytest

from lsst.ctrl.bps import BPS_DEFAULTS, BPS_SEARCH_ORDER, BpsConfig
from lsst.ctrl.bps.panda.errors import PandaBpsError
from lsst.ctrl.bps.panda.preflight import check_configuration, check_service, is_dry_run, report_problems
from lsst.ctrl.bps.panda.settings import read_service_settings


@pytest.fixture
def env(tmp_path):
    tool = tmp_path / "bin" / "pipetask"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    return {"PATH": str(tool.parent), "HOME": str(tmp_path), "USER": "ann"}


@pytest.fixture
def make_config(tmp_path):
    def make(**values):
        content = {
            "submitPath": "/submit",
            "outputRun": "u/ann/x/1",
            "uniqProcName": "u_ann_x_1",
            "operator": "ann",
            "createQuantumGraph": "pipetask qgraph",
            "fileDistributionEndPoint": f"{tmp_path}/area/{{uniqProcName}}/",
            **values,
        }
        return BpsConfig(
            content,
            search_order=BPS_SEARCH_ORDER,
            defaults=BPS_DEFAULTS,
            wms_service_class_fqn="lsst.ctrl.bps.panda.PanDAService",
        )

    return make


def test_nothing_is_wrong_and_nothing_is_left(make_config, env, tmp_path):
    assert check_configuration(make_config(), env) == ([], [])
    assert not (tmp_path / "area").exists()


def test_all_problems_at_once(make_config, env, tmp_path):
    (tmp_path / "file").touch()
    config = make_config(
        maxJobsPerTask="many",
        priority="high",
        computeSite="SLAC",
        pipetask={"isr": {"requestMemory": 1}},
        createQuantumGraph="pipework qgraph",
        fileDistributionEndPoint=f"{tmp_path}/file/area/",
    )
    problems, outside = check_configuration(config, env)
    text = "\n".join(problems)
    for words in (
        "maxJobsPerTask is 'many' (BPS configuration); it must be a whole number.",
        "priority is 'high'",
        "variables that the configuration does not set: LSST_VERSION (in setupLSSTEnv)",
        f"createQuantumGraph runs pipework, which is not there (PATH is '{env['PATH']}')",
    ):
        assert words in text
    assert len(problems) == 4
    (problem,) = outside
    assert f"the staging area {tmp_path}/file/area/ cannot be used" in problem


def test_a_command_with_a_variable_without_value(make_config, env):
    problems, _ = check_configuration(make_config(createQuantumGraph="${NO_DIR}/bin/pipetask qgraph"), env)
    assert problems == [
        "createQuantumGraph begins with ${NO_DIR}/bin/pipetask, which has a variable without value. Set it, "
        "or set createQuantumGraph to a command that is on PATH."
    ]
    env["NO_DIR"] = env["PATH"].removesuffix("/bin")
    assert check_configuration(make_config(createQuantumGraph="${NO_DIR}/bin/pipetask qgraph"), env)[0] == []


def test_a_given_graph_needs_another_command(make_config, env):
    config = make_config(qgraphFile="/x.qg", createQuantumGraph="nope", updateQuantumGraph="neither")
    assert check_configuration(config, env)[0][0].startswith("updateQuantumGraph runs neither")


def test_a_variable_of_the_staging_area(make_config, env):
    config = make_config(fileDistributionEndPoint="${NO_SPACE}/x/")
    ((problem,),) = [check_configuration(config, env)[1]]
    assert "environment variable NO_SPACE is not set" in problem


def test_a_placeholder_left_in_the_staging_area(make_config, env):
    config = make_config(fileDistributionEndPoint="/x/{payloadFoldr}/")
    (problem,) = check_configuration(config, env)[0]
    assert "does not set: payloadFoldr (in fileDistributionEndPoint)" in problem


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "PANDA_URL_SSL and PANDA_URL are not set"),
        ({"PANDA_URL_SSL": "ftp://host"}, "'ftp://host' is not a URL of PanDA"),
        ({"PANDA_URL_SSL": "http://h/server/panda", "PANDA_AUTH": "oidc"}, "PANDA_AUTH_VO"),
        ({"PANDA_URL_SSL": "http://h/server/panda", "PANDA_AUTH": "magic"}, "magic"),
    ],
)
def test_a_server_that_cannot_be_used(variables, words, tmp_path):
    env = {"HOME": str(tmp_path), "PANDA_CONFIG_ROOT": str(tmp_path), **variables}
    (problem,) = check_service(read_service_settings(None, env))
    assert words in problem


def test_one_error_lists_all():
    with pytest.raises(PandaBpsError) as caught:
        report_problems(["one", "two"], ["three"])
    assert str(caught.value) == "This run cannot be submitted:\n- one\n- two\n- three"
    report_problems([], [])


@pytest.mark.parametrize("name", ["prepare", "submitcmd"])
def test_a_dry_run_warns_of_what_it_does_not_need(name, caplog):
    with click.Context(click.Command(name), info_name=name) as context:
        context.params["dry_run"] = name == "submitcmd"
        assert is_dry_run()
        report_problems([], ["no server"])
        assert "- no server" in caplog.text
        with pytest.raises(PandaBpsError) as caught:
            report_problems(["one"], ["no server"])
    assert str(caught.value) == "This run cannot be submitted:\n- one"


def test_a_submission_is_no_dry_run():
    assert not is_dry_run()
    with click.Context(click.Command("submit"), info_name="submit"):
        assert not is_dry_run()
