"""What would keep a run from working, all in one list."""

import stat
from datetime import UTC, datetime, timedelta

import click
import jwt
import pytest
from click.testing import CliRunner

from lsst.ctrl.bps import BPS_DEFAULTS, BPS_SEARCH_ORDER, BpsConfig
from lsst.ctrl.bps.panda import PanDAService
from lsst.ctrl.bps.panda.checks import configuration
from lsst.ctrl.bps.panda.checks.misspellings import check_names
from lsst.ctrl.bps.panda.cli.panda_bps import main
from lsst.ctrl.bps.panda.cli.panda_bps_check import check
from lsst.ctrl.bps.panda.errors import PandaBpsError
from lsst.ctrl.bps.panda.findings import Finding, Severity, report_findings
from lsst.ctrl.bps.panda.runs.client import connect
from lsst.ctrl.bps.panda.settings.bps_command import configuration_file, is_dry_run
from lsst.ctrl.bps.panda.settings.configuration import find_broken_sections
from lsst.ctrl.bps.panda.settings.keys import KEYS
from lsst.ctrl.bps.panda.settings.run import read_service_settings


def check_configuration(config, env):
    """Return the texts of what is wrong, and of what needs a server."""
    found = configuration.check_configuration(config, env)
    assert {finding.severity for finding in found} <= {Severity.ERROR, Severity.NEEDS_SERVER}
    return tuple(
        list(dict.fromkeys(finding.text for finding in found if finding.severity is severity))
        for severity in (Severity.ERROR, Severity.NEEDS_SERVER)
    )


def check_service(settings):
    found = configuration.check_service(settings)
    assert {finding.severity for finding in found} <= {Severity.NEEDS_SERVER}
    return [finding.text for finding in found]


def report_problems(problems, outside):
    findings = [Finding(Severity.ERROR, text) for text in problems]
    findings += [Finding(Severity.NEEDS_SERVER, text) for text in outside]
    report_findings(findings, is_dry_run=is_dry_run())


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
            "submitPath": f"{tmp_path}/submit",
            "uniqProcName": "u_ann_x_1",
            "operator": "ann",
            "createQuantumGraph": "pipetask qgraph",
            "fileDistributionEndPoint": f"{tmp_path}/area/{{uniqProcName}}/",
            **values,
            "payload": {"outputRun": "u/ann/x/1", **values.get("payload", {})},
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


@pytest.mark.parametrize("build", [False, True])
def test_a_run_that_is_to_be_divided_is_not_run_at_one_site(build, make_config, env):
    sites = {"partition": "tract", "sites": {"SLAC": {"share": 60}, "LANCS": {"share": 40}}}
    remote = {"remoteBuild": {"enabled": True}, "computeSite": "local"} if build else {}
    problems, _ = check_configuration(make_config(campaignSites=sites, **remote), env)
    (told,) = [text for text in problems if "campaignSites" in text]
    assert told.startswith("campaignSites divides this run among 2 sites")
    assert "panda_bps campaign submit" in told
    whole = check_configuration(make_config(campaignSites={**sites, "enabled": False}, **remote), env)[0]
    assert "campaignSites" not in "\n".join(whole)


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


def test_a_server_that_hangs_is_found_out_in_seconds(tmp_path):
    """A submission may take ten minutes, a question less than one; nobody waits that long for a ping."""
    settings = read_service_settings(None, {"HOME": str(tmp_path), "PANDA_URL": "http://h/server/panda"})
    patient, prompt = (connect(settings, prompt=prompt).relay._transport for prompt in (False, True))
    assert patient._patient_timeouts.silence > 600
    assert patient._timeouts.silence < 60
    assert max(prompt._timeouts.connect, prompt._timeouts.silence, prompt._timeouts.total) <= 20
    # No attempt begins after that, so that all of them together are 40 s at most.
    assert prompt._retry.budget <= 20


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


def test_values_for_a_label(make_config, env):
    config = make_config(
        priority="top",
        pipetask={"isr": {"priority": "high"}, "warp": {"queue": "Q"}},
        cluster={"all": {"prmon": "perhaps"}},
        finalJob={"keepTokens": "sometimes"},
    )
    assert check_configuration(config, env)[0] == [
        "priority is 'top' (BPS configuration); it must be a whole number.",
        "priority is 'high' (label isr); it must be a whole number.",
        "prmon is 'perhaps' (label all); it must be yes or no.",
        "keepTokens is 'sometimes' (label finalJob); it must be yes or no.",
    ]


def test_numbers_of_bps_are_looked_at_before_the_graph_is_made(make_config, env):
    config = make_config(
        requestMemory="4GB",
        requestWalltime="1h",
        numberOfRetries=-1,
        memoryMultiplier=1.5,
        pipetask={"isr": {"requestCpus": 0, "requestMemory": 2048.5}},
        finalJob={"requestDisk": "lots"},
    )
    assert check_configuration(config, env)[0] == [
        "requestMemory is '4GB' (BPS configuration); it must be a number of MB, without a unit.",
        "requestCpus is 0 (label isr); it must be at least 1.",
        "requestDisk is 'lots' (label finalJob); it must be a number of MB, without a unit.",
        "requestWalltime is '1h' (BPS configuration); it must be a number of seconds, without a unit.",
        "numberOfRetries is -1 (BPS configuration); it must be at least 0.",
    ]


def test_a_command_of_the_worker_has_a_place_for_the_job(make_config, env):
    good = {"runnerCommand": "setup; {inner}", "inner": "python3 _runner_ _cmd_line_"}
    assert check_configuration(make_config(**good), env)[0] == []
    bad = make_config(**good, pipetask={"isr": {"runnerCommand": "python3 nothing"}})
    assert check_configuration(bad, env)[0] == [
        "runnerCommand holds no _cmd_line_, the place for the job's command; it is 'python3 nothing' for "
        "label isr."
    ]


def test_a_graph_needs_its_variables(make_config, env):
    config = make_config(createQuantumGraph="pipetask qgraph {pipetaskInput} -p {pipelineYaml} {dataQuery}")
    (problem,) = check_configuration(config, env)[0]
    assert problem == (
        "createQuantumGraph uses variables that the configuration does not set: inCollection (in "
        "pipetaskInput), pipelineYaml (in createQuantumGraph). Set them."
    )


@pytest.mark.parametrize(
    ("directory", "words"),
    [
        ("/a b/x", "holds ' '."),
        ("/it's/x", 'holds "\'".'),
        ('/a"b/x', "holds '\"'."),
        ("/a\\b/x", "holds '\\\\'."),
        ("/a$/x", "holds '$'."),
    ],
)
def test_a_submit_directory_that_breaks_the_command_of_bps(make_config, env, directory, words):
    values = {"submitPath": directory, "createQuantumGraph": "pipetask qgraph -q {qgraphFile}"}
    (problem,) = check_configuration(make_config(**values), env)[0]
    assert problem.startswith(f"submitPath is {directory!r}; BPS cannot make a quantum graph in a directory")
    assert words in problem
    # Whoever quotes it in the command may have blanks.
    quoted = make_config(submitPath="/a b/x", createQuantumGraph="pipetask qgraph -q '{qgraphFile}'")
    assert check_configuration(quoted, env)[0] == []


def test_a_submit_directory_with_a_variable_that_is_not_set(make_config, env):
    (problem,) = check_configuration(make_config(submitPath="${NO_SUCH_DIR}/x"), env)[0]
    assert problem.startswith("submitPath is '${NO_SUCH_DIR}/x', but the environment variable NO_SUCH_DIR is")


@pytest.mark.parametrize("path", ["/plain/x", "/a+b:c/é&*;~!()[]<>|/x"])
def test_a_submit_directory_that_does_not(make_config, env, path):
    config = make_config(submitPath=path, createQuantumGraph="pipetask qgraph -q {qgraphFile}")
    assert check_configuration(config, env)[0] == []


def test_a_name_that_idds_cannot_hold(make_config, env):
    problems, _ = check_configuration(make_config(uniqProcName="x" * 300), env)
    assert "has 300 characters and iDDS takes 255" in problems[0]
    problems, _ = check_configuration(make_config(uniqProcName="a%b"), env)
    assert "holds %" in problems[0]


def test_a_remote_build_needs_no_graph_and_no_staging_area_here(make_config, env):
    section = {"enabled": True, "files": ["/no/such/file"]}
    config = make_config(
        createQuantumGraph="not_here", fileDistributionEndPoint="/proc/no/{nothing}/", remoteBuild=section
    )
    problems, outside = check_configuration(config, {**env, "PATH": "/nowhere"})
    assert problems == ["remoteBuild.files names what is not there: /no/such/file."]
    assert outside == []
    section["enabled"] = False
    config = make_config(createQuantumGraph="not_here", remoteBuild=section)
    problems, _ = check_configuration(config, env)
    assert problems[0].startswith("createQuantumGraph runs not_here")


def test_where_a_wrong_value_stands(make_config, env, tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "more.yaml").write_text("project: x\npipetask:\n  isr:\n    priority: high\n")
    run = tmp_path / "run.yaml"
    run.write_text(
        "includeConfigs: ['${PARTS}/more.yaml', 'resource://lsst.ctrl.bps.panda/config/bps_panda.yaml', "
        "gone.yaml]\nmaxJobsPerTask: lots\n"
    )
    config = make_config(maxJobsPerTask="lots", pipetask={"isr": {"priority": "high"}}, maxCopyWorkers=0)
    with click.Context(click.Command("submit"), info_name="submit") as context:
        context.params["config_file"] = str(run)
        assert configuration_file() == str(run)
        problems, _ = check_configuration(config, {**env, "PARTS": str(tmp_path / "parts")})
    assert problems == [
        f"priority is 'high' (label isr, {tmp_path}/parts/more.yaml, line 4); it must be a whole number.",
        "maxCopyWorkers is 0 (BPS configuration); it must be at least 1.",
        f"maxJobsPerTask is 'lots' ({run}, line 2); it must be a whole number.",
    ]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("requestMemory", [1], "it must be a number of MB, without a unit."),
        ("requestMemory", True, "it must be a number of MB, without a unit."),
        ("requestMemory", float("inf"), "it must be a number of MB, without a unit."),
        ("requestCpus", 0, "it must be at least 1."),
        ("memoryMultiplier", "lots", "it must be a number."),
        ("numberOfRetries", 1.5, "it must be a whole number."),
        ("useLazyCommands", False, "it must be yes: with no, BPS writes a command for each single job"),
        ("useLazyCommands", "no", "it must be yes: with no, BPS writes a command for each single job"),
        ("retryUnlessExit", "1,2", "it must be a whole number or a list of whole numbers."),
        ("environment", "A=1", "it must be a section of names with values."),
        ("preCmdline", ["a"], "it must be a text, in quotes where YAML takes it for something else."),
        ("queue", {"a": 1}, "it must be a text"),
        ("computeSite", False, "it must be a text"),
        ("priority", True, "it must be a whole number."),
        ("tokenLifetime", float("inf"), "it must be a number."),
        ("enableEventService", {"isr": 0}, "it must be a list of labels"),
    ],
)
def test_values_of_another_kind_are_found_before_there_is_a_graph(make_config, env, key, value, words):
    per_label = key not in ("tokenLifetime", "enableEventService")
    values = {"pipetask": {"isr": {key: value}}} if per_label else {key: value}
    (problem,) = check_configuration(make_config(**values), env)[0]
    place = "label isr" if per_label else "BPS configuration"
    assert problem.startswith(f"{key} is {value!r} ({place}); {words}")


@pytest.mark.parametrize("value", [2048, "2048", 1.5, None])
def test_values_of_the_right_kind(make_config, env, value):
    config = make_config(pipetask={"isr": {"requestMemory": value}}, environment={"A": "{tract}", "B": None})
    assert check_configuration(config, env)[0] == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"pipetask": None}, "pipetask is None"),
        ({"pipetask": {"isr": None}}, "pipetask.isr is None"),
        ({"site": {"SLAC": 5}}, "site.SLAC is 5"),
        ({"cluster": "x"}, "cluster is 'x'"),
        ({"finalJob": None}, "finalJob is None"),
        ({"remoteBuild": True}, "remoteBuild is True"),
        ({"computeSite": ""}, "computeSite is ''"),
    ],
)
def test_a_section_that_is_none_is_named(values, words):
    """BPS's own search fails at these, so that nothing can be looked up."""
    config = BpsConfig(values, search_order=BPS_SEARCH_ORDER)
    (problem,) = find_broken_sections(config)
    assert problem.startswith(words)
    assert check_configuration(config, {}) == ([problem], [])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"runnerCommand": "echo hello"}, "runnerCommand holds no _cmd_line_"),
        ({"runnerCommand": ["a"]}, "runnerCommand is ['a'] (BPS configuration); it must be a text"),
        ({"stageRunner": False}, "runnerCommand asks for the staged runner"),
        ({"queues": {"Q": 5}}, "queues.Q is 5 (BPS configuration); it must hold limits"),
        ({"queues": [1]}, "queues is [1]"),
    ],
)
def test_what_would_fail_after_the_graph_is_found_before(make_config, env, values, words):
    (problem,) = check_configuration(make_config(**values), env)[0]
    assert problem.startswith(words)


def test_a_log_in_that_is_to_last_for_ever(tmp_path):
    """An absurd number of hours is no reason to fail in date arithmetic."""
    from panda_servers import hostile

    now = datetime.now(UTC)
    claims = {"sub": "1", "exp": int((now + timedelta(days=10)).timestamp())}
    token = jwt.encode(claims, "k" * 64, algorithm="HS256")
    config = BpsConfig({"tokenLifetime": 1e30}, search_order=BPS_SEARCH_ORDER)
    with hostile.HostileServer() as server:
        env = {"HOME": str(tmp_path), "PANDA_URL_SSL": server.url, "PANDA_URL": server.url}
        env |= {"PANDA_AUTH": "oidc", "PANDA_AUTH_VO": "Rubin", "PANDA_AUTH_ID_TOKEN": token}
        (problem,) = check_service(read_service_settings(config, env))
    assert "tokenLifetime" in problem or "expires" in problem


TYPED = [key for key in KEYS.values() if key.kind.name not in ("text", "list") or key.kind.choices]


@pytest.mark.parametrize("key", TYPED, ids=lambda key: key.name)
def test_each_typed_key_says_what_is_wrong_and_where(make_config, env, tmp_path, key):
    run = tmp_path / "run.yaml"
    run.write_text(f"a: 1\n{key.name}: ':wrong'\n")
    with click.Context(click.Command("check"), info_name="check") as context:
        context.params["config"] = str(run)
        problems, _ = check_configuration(make_config(**{key.name: ":wrong"}), env)
    assert len(problems) == 1
    assert problems[0].startswith(f"{key.name} is ':wrong' ({run}, line 2); ")


def test_a_command_needs_no_graph(make_config, env):
    job = {"executable": "/bin/true", "priority": "high"}
    values = {"submitPath": "/it's/x", "createQuantumGraph": "nope {nothing} {qgraphFile}", "customJob": job}
    assert check_configuration(make_config(**values), env)[0] == [
        "priority is 'high' (label customJob); it must be a whole number."
    ]
    assert len(check_configuration(make_config(**values, pipelineYaml="p.yaml"), env)[0]) == 4


def test_what_a_graph_is_made_from_is_there(make_config, env, tmp_path):
    (tmp_path / "isr.yaml").write_text("description: x\ntasks: {isr: a.Task}\n")
    (tmp_path / "butler.yaml").touch()
    env["DAF_BUTLER_REPOSITORY_INDEX"] = "/index.yaml"
    good = {"pipelineYaml": f"{tmp_path}/isr.yaml#isr", "butlerConfig": str(tmp_path)}
    assert check_configuration(make_config(**good), env)[0] == []
    # A name in the index of repositories, and what only others can look up.
    for butler in ("dp1", "s3://bucket/repo", "resource://package/butler.yaml"):
        assert check_configuration(make_config(**{**good, "butlerConfig": butler}), env)[0] == []
    bad = {"pipelineYaml": "${NO_PIPE_DIR}/isr.yaml#isr", "payload": {"butlerConfig": "/no/such/repo"}}
    assert check_configuration(make_config(**bad), env)[0] == [
        "pipelineYaml is '${NO_PIPE_DIR}/isr.yaml#isr', but the environment variable NO_PIPE_DIR is not set. "
        "Set it (if it ends in _DIR: setup that product of an LSST stack), or set pipelineYaml to a path.",
        "butlerConfig is '/no/such/repo', which is not there. Is this the machine that has it?",
    ]
    assert check_configuration(make_config(**bad, createQuantumGraph="/bin/sh in.sh"), env)[0] == []


def test_a_site_that_is_almost_one_with_a_profile(make_config, env):
    def notices_of(site):
        found = check_names(make_config(computeSite=site, setupLSSTEnv="true"), env)
        return tuple(finding.text for finding in found if finding.key == "computeSite")

    assert notices_of("SALC") == ("computeSite SALC has no profile; did you mean SLAC?",)
    assert notices_of("cc-in2p4") == ("computeSite cc-in2p4 has no profile; did you mean CC-IN2P3?",)
    assert [notices_of(site) for site in ("slac", "BNL", "SITE", "TEST_QUEUE")] == [()] * 4


def test_a_service_class_that_does_not_exist_is_no_traceback(tmp_path):
    run = tmp_path / "run.yaml"
    run.write_text("wmsServiceClass: lsst.ctrl.bps.panda.PandaService\n")
    done = CliRunner().invoke(check, [str(run)])
    assert done.exit_code == 1
    assert "there is no such service class (Could not get attribute 'PandaService'" in done.output
    assert "Set wmsServiceClass to lsst.ctrl.bps.panda.PanDAService or" in done.output


def test_every_command_names_a_service_class_that_does_not_exist(tmp_path):
    """The check said so, and a campaign showed BPS's traceback."""
    run = tmp_path / "run.yaml"
    sites = "campaignSites: {partition: tract, values: [1, 2], sites: {SLAC: 1, LANCS: 1}}\n"
    run.write_text(f"wmsServiceClass: lsst.ctrl.bps.panda.PandaService\n{sites}")
    words = []
    for command in (["check"], ["campaign", "prepare"], ["campaign", "submit"]):
        done = CliRunner().invoke(main, [*command, str(run)])
        assert done.exit_code == 1
        assert isinstance(done.exception, SystemExit)
        words.append(done.output.partition("wmsServiceClass is wrong: ")[2])
    assert words[0].startswith("there is no such service class (Could not get attribute 'PandaService'")
    assert words == [words[0]] * 3


def test_a_service_class_of_another_plugin_is_named(tmp_path):
    run = tmp_path / "run.yaml"
    run.write_text("wmsServiceClass: lsst.ctrl.bps.BaseWmsService\nsubmitPath: /x\noutputRun: y\n")
    done = CliRunner().invoke(main, ["check", str(run)])
    assert done.exit_code == 1
    assert "BaseWmsService, which is not a service class of this plugin" in done.output


def test_broken_sections_hide_neither_each_other_nor_the_server():
    """Nothing else is looked up then, and the server is asked all the same."""
    config = BpsConfig({"pipetask": {"isr": None}}, search_order=BPS_SEARCH_ORDER)
    service = PanDAService(config)
    found = service.check_submission()
    assert [finding.text for finding in found if finding.severity is Severity.ERROR] == [
        "pipetask.isr is None; it must be a section of keys with values. Remove it if it is empty."
    ]
    assert {finding.severity for finding in found} <= {Severity.ERROR, Severity.NEEDS_SERVER}


def test_file_and_line_of_what_is_wrong(make_config, env, tmp_path):
    run = tmp_path / "run.yaml"
    run.write_text(
        "pipelineYaml: '${NO_PIPE_DIR}/isr.yaml'\n"
        "butlerConfig: other\n"
        "payload:\n  butlerConfig: /no/such/repo\n"
        "stageRunner: no\nrunnerCommand: python3 _runner_ _cmd_line_\n"
    )
    values = {"pipelineYaml": "${NO_PIPE_DIR}/isr.yaml", "payload": {"butlerConfig": "/no/such/repo"}}
    values |= {"stageRunner": False, "runnerCommand": "python3 _runner_ _cmd_line_"}
    with click.Context(click.Command("check"), info_name="check") as context:
        context.params["config"] = str(run)
        found = configuration.check_configuration(make_config(**values), env)
    assert {finding.key: (finding.file, finding.line) for finding in found} == {
        "pipelineYaml": (str(run), 1),
        "butlerConfig": (str(run), 4),
        "stageRunner": (str(run), 5),
    }
    assert str(found[-1]).endswith(f"Is this the machine that has it? ({run}, line 4)")


TEXTS = [
    ("a {b", "BPS cannot replace variables in it: expected '}' before end of string. Double braces"),
    ("a} b", "BPS cannot replace variables in it: Single '}' encountered in format string. Double braces"),
    ("{}", "BPS replaces {} by nothing, since that is no name of a key. Double braces"),
    ("{0}", "BPS replaces {0} by nothing"),
    ("awk '{print $1}'", "BPS replaces {print $1} by nothing"),
    ('{"a": 1}', 'BPS replaces {"a"} by nothing'),
    ("{project!x}", "BPS cannot replace variables in it: Unknown conversion specifier x"),
    ("{project:>y}", "BPS cannot replace variables in it: Unknown format code 'y' for object of type 'str'"),
    ("{extraQgraphOptions}", "it names itself, directly or by way of others, and BPS never ends."),
    ("bpsEval(x", "its bpsEval fails: Unparsable bpsEval in 'bpsEval(x'. Correct it"),
    ("bpsEval(no.such.function, 1)", "its bpsEval fails: Unable to import 'no.such.function'"),
    ("bpsEval(len, 1)", "its bpsEval fails: object of type 'int' has no len()"),
]


@pytest.mark.parametrize(("text", "words"), TEXTS)
def test_a_text_that_bps_cannot_replace_variables_in(make_config, env, tmp_path, text, words):
    """It has key, file and line, and hides nothing else."""
    run = tmp_path / "run.yaml"
    run.write_text(f"project: dev\nextraQgraphOptions: {text!r}\nmaxJobsPerTask: lots\n")
    config = make_config(
        project="dev", extraQgraphOptions=text, maxJobsPerTask="lots", clusterAlgorithm="no.such"
    )
    with click.Context(click.Command("check"), info_name="check") as context:
        context.params["config"] = str(run)
        broken, *others = configuration.check_configuration(config, env)
    assert broken.text.startswith(f"extraQgraphOptions is {text!r} ({run}, line 2); {words}")
    assert (broken.severity, broken.key, broken.line) == (Severity.ERROR, "extraQgraphOptions", 2)
    assert [finding.key for finding in others] == ["maxJobsPerTask", "clusterAlgorithm"]


def test_only_the_text_with_the_mistake_is_named(make_config, env):
    config = make_config(
        payload={"payloadName": "a}", "output": "u/{payloadName}", "outputRun": "{output}/1"},
        one="{two}", two="{one}", extraQgraphOptions="{one}",
        environment={"A": "{x"}, pipetask={"isr": {"runQuantumCommand": "find {} {x"}},
        unused="{", finalJob={"command1": "butler {y"},
    )  # fmt: skip
    found = configuration.check_configuration(config, env)
    assert sorted(finding.key for finding in found) == [
        "environment.A", "finalJob.command1", "one", "payload.payloadName", "two",
    ]  # fmt: skip


def test_no_text_of_the_defaults_is_taken_for_broken(make_config, env):
    assert configuration.check_configuration(make_config(computeSite="SLAC", LSST_VERSION="w"), env) == []


GENERATED = {"chosenTracts": "9813", "myPipe": "/no/x.yaml", "maxJobsPerTask": "lots", "mySubmit": "x"}


def test_values_that_bps_generates_later_are_not_missed_before_and_checked_then(make_config, env, tmp_path):
    config = make_config(
        payload={"dataQuery": "tract IN ({chosenTracts})", "butlerConfig": "s3://x/y", "inCollection": "z"},
        createQuantumGraph="pipetask qgraph -p {pipelineYaml} -d '{dataQuery}'",
        pipelineYaml="{myPipe}",
        submitPath=f"{tmp_path}/{{mySubmit}}",
        fileDistributionEndPoint="/proc/{myArea}/",
        bpsGenerateConfig=f"dict({GENERATED})".replace("{", "{{").replace("}", "}}"),
    )
    assert configuration.check_configuration(config, env) == []
    config.generate_config()
    assert config["dataQuery"] == "tract IN (9813)"
    assert [finding.text for finding in configuration.check_values(config, env)] == [
        "maxJobsPerTask is 'lots' (BPS configuration); it must be a whole number."
    ]
    found = {finding.key for finding in configuration.check_configuration(config, env)}
    assert found == {"maxJobsPerTask", "fileDistributionEndPoint", "pipelineYaml"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("json.loads", "BPS takes it for no call, which has an argument, if only a blank. Write MODULE."),
        ("json.loads()", "BPS takes it for no call, which has an argument, if only a blank."),
        ("no.such.function(1)", "no.such.function cannot be imported (Unable to import 'no.such.function'"),
        ("json.__name__('x')", "json.__name__ is no function"),
    ],
)
def test_a_generator_that_bps_cannot_call(make_config, env, text, words):
    (problem,) = check_configuration(make_config(pipetask={"isr": {"bpsGenerateConfig": text}}), env)[0]
    assert problem.startswith(f"pipetask.isr.bpsGenerateConfig is {text!r}: {words}")


@pytest.mark.parametrize("value", ["TRANSFORM", "PREPARE", "SUBMIT", "QGRAPH", "bogus", False])
def test_a_quantum_graph_for_each_job_is_refused(make_config, env, value):
    config = make_config(pipetask={"isr": {"whenSaveJobQgraph": value}})
    assert check_configuration(config, env)[0] == [
        f"pipetask.isr.whenSaveJobQgraph is {value!r}, and BPS 30 has lost what writes a quantum graph for "
        "each job. Take it out; each job reads its part of the run's quantum graph."
    ]
    assert check_configuration(make_config(whenSaveJobQgraph="never"), env)[0] == []


def test_a_submit_directory_that_cannot_be_made(make_config, env, tmp_path):
    (tmp_path / "file").touch()
    for path, words in (
        (tmp_path, "which is there already; BPS makes a new directory for each run"),
        ("/proc/no/x", "and nothing can be written in /proc: "),
        (tmp_path / "file" / "x", f"and nothing can be written in {tmp_path}/file: Not a directory"),
    ):
        (problem,) = check_configuration(make_config(submitPath=str(path)), env)[0]
        assert problem.startswith(f"submitPath is {str(path)!r}, {words}")
    assert check_configuration(make_config(), env)[0] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "file"]


def test_a_clustering_that_cannot_be_imported(make_config, env):
    (problem,) = check_configuration(make_config(clusterAlgorithm="no.such"), env)[0]
    assert problem.startswith("clusterAlgorithm is 'no.such': no.such cannot be imported (Unable to import")
    (problem,) = check_configuration(make_config(clusterAlgorithm="os.name"), env)[0]
    assert problem.startswith("clusterAlgorithm is 'os.name': os.name is no function. BPS has single_quantum")


def test_files_of_a_command(make_config, env, tmp_path):
    script = tmp_path / "run.sh"
    script.touch()
    config = make_config(customJob={"executable": str(script), "inputs": {"one": "/no/such/in.txt"}})
    assert check_configuration(config, env)[0] == [
        "customJob.inputs.one is '/no/such/in.txt', which is not there. Is this the machine that has it?"
    ]
    script.unlink()
    found = configuration.check_configuration(config, env)
    assert [finding.key for finding in found] == ["customJob.executable", "customJob.inputs.one"]


@pytest.mark.parametrize(
    ("butler", "words"),
    [
        ("file:///no/such/repo", "'file:///no/such/repo', which is not there. Is this the machine"),
        (
            "nowhere",
            "'nowhere', which is no directory here, and there is no index of names: DAF_BUTLER_REPOSIT",
        ),
        ("/usr", "'/usr', which holds no butler.yaml. Give a Butler's directory."),
        ("s3://bucket/repo", ""),
    ],
)
def test_a_butler_that_is_not_there(make_config, env, butler, words):
    problems = check_configuration(make_config(payload={"butlerConfig": butler}), env)[0]
    assert problems == [] if not words else problems[0].startswith(f"butlerConfig is {words}")


DEMO = "resource://lsst.ctrl.bps.panda.demo"


@pytest.mark.parametrize(
    ("pipeline", "words"),
    [
        (f"{DEMO}/nope.yaml", "which is not there. Is this the machine"),
        (
            f"{DEMO}/pipeline.yaml#isrr",
            "and the pipeline has no isrr; did you mean isr? It has assembleCoadd",
        ),
        (f"{DEMO}/pipeline.yaml#isr,zzz", "and the pipeline has no zzz. It has assembleCoadd"),
        (
            f"{DEMO}/pipeline.yaml#isr..charcterize",
            "and the pipeline has no charcterize; did you mean character",
        ),
        (f"{DEMO}/tasks.py", "which is no pipeline: "),
        (f"{DEMO}/pipeline.yaml#isr..characterize", ""),
        (f"{DEMO}/pipeline.yaml#visits,isr", ""),
        ("s3://bucket/pipeline.yaml", ""),
    ],
)
def test_a_pipeline_and_labels_that_are_not_there(make_config, env, pipeline, words):
    problems = check_configuration(make_config(pipelineYaml=pipeline), env)[0]
    assert problems == [] if not words else problems[0].startswith(f"pipelineYaml is {pipeline!r}, {words}")


def test_programs_of_jobs_on_the_machine_that_runs_them(make_config, env):
    """A set-up may bring those without a directory."""
    commands = {"isr": {"runQuantumCommand": "/no/pipetask x"}, "warp": {"runQuantumCommand": "nobody x"}}
    config = make_config(pipetask=commands, runQuantumCommand="pipetask run")
    keys = ["pipetask.isr.runQuantumCommand", "pipetask.warp.runQuantumCommand"]
    texts = [finding.text for finding in configuration.check_payloads(config, env)]
    where = f"which is not there (PATH is {env['PATH']!r})."
    assert f"pipetask.isr.runQuantumCommand runs /no/pipetask, {where}" in texts
    assert f"pipetask.warp.runQuantumCommand runs nobody, {where}" in texts
    assert not any(text.startswith("runQuantumCommand") for text in texts)
    found = configuration.check_payloads(make_config(pipetask=commands, setupLSSTEnv="source x;"), env)
    assert [finding.key for finding in found] == keys[:1]


def test_names_in_the_arguments_of_a_command_that_are_passed_on(make_config):
    job = {
        "inputs": {"table": "t.txt"},
        "outputs": {"plot": "p.png"},
        "arguments": "{tabel} {table} {plot} ${HOME} {{table}} '{print $1}' {outputRun} {tabel}",
    }
    found = [*configuration.check_arguments(make_config(customJob=job))]
    assert {finding.severity for finding in found} == {Severity.WARNING}
    why = "which is no key of customJob.inputs or outputs, so the command gets it as it stands"
    assert [finding.text for finding in found] == [
        f"customJob.arguments holds {{tabel}}, {why}; did you mean table?",
        f"customJob.arguments holds {{outputRun}}, {why}.",
    ]
