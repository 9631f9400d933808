"""Pieces of shell text in the configuration: whatever they are, the payload runs, or the job fails."""

import subprocess
import sys
from pathlib import Path

import pytest

from lsst.ctrl.bps import (
    BPS_SEARCH_ORDER,
    BpsConfig,
    GenericWorkflow,
    GenericWorkflowExec,
    GenericWorkflowJob,
)
from lsst.ctrl.bps.panda.edgenode import cmd_line_decoder as runner
from lsst.ctrl.bps.panda.plan.model import LabelSettings, PlanSettings, RunIdentity, StagedFile
from lsst.ctrl.bps.panda.plan.planner import make_plan
from lsst.ctrl.bps.panda.settings.keys import LabelKeys
from lsst.ctrl.bps.panda.settings.search import KeyLookup

CONTAINER = 'bash -c "{payloadCommand}"'


class Worker:
    """A directory in which the command of a run's only task is executed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "work").mkdir()
        (folder / "area").mkdir()
        self.script = folder / "area" / "cmd_line_decoder.py"
        self.script.write_bytes(Path(runner.__file__).read_bytes())

    def command(self, configuration: dict[str, object], **job: object) -> str:
        configuration.setdefault("payloadName", "p")
        config = BpsConfig(configuration, search_order=BPS_SEARCH_ORDER)
        keys = KeyLookup(config, {}).read(LabelKeys, "isr")
        label = LabelSettings(
            site="S", cloud="", queue="", priority=1, processing_type="", task_type="test",
            prod_source_label="managed", vo="wlcg", runner_command=keys.runner_command,
        )  # fmt: skip
        run = RunIdentity(
            "u_run", "me", "dev", "quick", "pipe", "u/run", "S", "/s", f"{self.script.parent}/", "1", "1"
        )
        settings = PlanSettings(
            run=run, labels={"": label}, runner=StagedFile("runner", str(self.script), self.script.name)
        )
        workflow = GenericWorkflow("u_run")
        made = GenericWorkflowJob("a", "isr")
        made.executable = GenericWorkflowExec("sh", "/bin/sh", False)
        made.arguments = "-c 'echo payload >> ran; exit ${CODE:-0}'"
        for name, value in job.items():
            setattr(made, name, value)
        workflow.add_job(made)
        plan = make_plan(workflow, settings)
        for shard in plan.shards:
            target = self.script.parent / shard.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(shard.text)
        (task,) = plan.tasks
        return task.command.replace("${IN/L}", task.jobs[0].pseudo_input)

    def run(
        self, configuration: dict[str, object], *, variables: dict[str, str] | None = None, **job: object
    ):
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        return subprocess.run(
            ["bash", "-c", self.command(configuration, **job)],
            cwd=self.folder / "work",
            env={"PATH": path, **(variables or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def ran(self, name: str = "ran") -> int:
        """How often something was written to a file."""
        path = self.folder / "work" / name
        return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture
def worker(tmp_path):
    return Worker(tmp_path)


ENDS = ["{}", "{};", "{} ; ", "{} # a comment", "\n\n{}\n", "{}\n# the end", "{} &", "{} && true"]


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("container", ["", CONTAINER])
@pytest.mark.parametrize("key", ["setupLSSTEnv", "custom_lsst_setup", "jobCleanup"])
@pytest.mark.parametrize("form", ENDS)
def test_a_piece_takes_nothing_of_what_follows(worker, key, form, container):
    configuration = {key: form.format("echo piece >> pieces")}
    if container:
        configuration["jobContainer"] = container
    done = worker.run(configuration)
    assert (done.returncode, worker.ran()) == (0, 1), done.stderr
    assert worker.ran("pieces") == 1


def test_a_script_is_sourced_and_its_variables_reach_the_payload(worker):
    (worker.folder / "my_setup.sh").write_text("export CODE=5\n")
    done = worker.run({"custom_lsst_setup": f"source {worker.folder}/my_setup.sh"})
    assert (done.returncode, worker.ran()) == (5, 1), done.stderr


def test_lines_are_commands(worker):
    text = "if true; then\n  export CODE=6  # a comment\nfi\ncat > here <<END\nx\n\n y\nEND\n"
    done = worker.run({"custom_lsst_setup": text})
    assert (done.returncode, worker.ran()) == (6, 1), done.stderr
    assert (worker.folder / "work" / "here").read_text() == "x\n\n y\n"


@pytest.mark.parametrize("key", ["setupLSSTEnv", "custom_lsst_setup"])
@pytest.mark.parametrize("text", ["false", "source /is/not/there", "true; false;", "true\nfalse\n"])
@pytest.mark.parametrize("container", ["", CONTAINER])
def test_a_set_up_that_fails_ends_the_job(worker, key, text, container):
    configuration = {key: text} | ({"jobContainer": container} if container else {})
    done = worker.run(configuration)
    assert (done.returncode, worker.ran()) == (runner.EXIT_SET_UP, 0)
    assert f"{key} failed" in done.stderr


def test_a_directory_that_is_not_there_ends_the_job(worker):
    done = worker.run({"jobInitDir": "/is/not/there"})
    assert (done.returncode, worker.ran()) == (runner.EXIT_SET_UP, 0)


def test_a_clean_up_does_not_hide_how_the_payload_ended(worker):
    done = worker.run({"jobCleanup": "rm -f x"}, variables={"CODE": "3"})
    assert (done.returncode, worker.ran()) == (3, 1)


@pytest.mark.parametrize(
    "command",
    [
        "echo python3 _runner_ _cmd_line_",
        ": python3 _runner_ _cmd_line_;",
        "true || python3 _runner_ _cmd_line_",
        "source /dev/null python3 _runner_ _cmd_line_",
        "python3 _runner_ _cmd_line_ | true",
        "true # python3 _runner_ _cmd_line_",
    ],
)
def test_a_command_that_does_not_run_the_payload_never_succeeds(worker, command):
    done = worker.run({"runnerCommand": command})
    assert done.returncode == runner.EXIT_NOT_RUN
    assert "runner did not run" in done.stderr


def test_the_payload_s_codes_come_through(worker):
    command = "python3 _runner_ _cmd_line_"
    for code, seen in ((0, 0), (1, 1), (78, 78), (runner.SUCCESS, 1), (255, 255)):
        assert worker.run({"runnerCommand": command}, variables={"CODE": str(code)}).returncode == seen


@pytest.mark.parametrize("form", ENDS)
def test_commands_before_and_after_are_units(worker, form):
    text = form.format("echo piece >> pieces")
    done = worker.run({}, pre_cmdline=text, post_cmdline=text, variables={"CODE": "4"})
    assert (done.returncode, worker.ran(), worker.ran("pieces")) == (4, 1, 2), done.stderr


def test_a_failing_command_before_ends_the_job(worker):
    done = worker.run({}, pre_cmdline="true; (exit 9)")
    assert (done.returncode, worker.ran()) == (9, 0)


SHOW = {"executable": GenericWorkflowExec("printf", "printf", False)}


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        # As BPS hands them on: ${X} as <ENV:X>, and $ with what follows up to a blank.
        ("/x:<ENV:UNSET>", "/x:"),
        ("/x:<ENV:SET>", "/x:a b"),
        ("<ENV:UNSET:-/tmp>", "/tmp"),
        ("<ENV:SET:-/tmp>", "a b"),
        ("<ENV:UNSET:-<ENV:{SET>}>", "a b"),
        ("<ENV:SET:+yes>", "yes"),
        ("<ENV:SET/x>", "a b/x"),
        ("<ENV:SET/<ENV:OTHER>/y> z", "a b/$o/y z"),
        ("<ENV:SET/$OTHER>", "a b/$o"),
        ("<ENV:OTHER%o>", "$"),
        ("it's 5 <ENV:SET>", "it's 5 a b"),
        ("<ENV:(echo> no)", "$(echo no)"),
    ],
)
def test_values_of_the_environment_mean_what_they_mean_in_a_shell(worker, value, printed):
    variables = {"SET": "a b", "OTHER": "$o"}
    done = worker.run({}, **SHOW, arguments='%s "$VALUE"', environment={"VALUE": value}, variables=variables)
    assert (done.returncode, done.stdout) == (0, printed), done.stderr


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("<ENV:UNSET>x <ENV:UNSET> y", "x|y|"),
        ("<ENV:SET/x>", "a|b/x|"),
        ('"<ENV:SET/x>"', "a b/x|"),
        ("<ENV:UNSET:-/tmp>/y", "/tmp/y|"),
        ("<ENV:(echo> no)", "no|"),
    ],
)
def test_variables_of_commands_mean_what_they_mean_in_a_shell(worker, text, printed):
    done = worker.run({}, **SHOW, arguments=f"'%s|' {text}", variables={"SET": "a b"})
    assert (done.returncode, done.stdout) == (0, printed), done.stderr
