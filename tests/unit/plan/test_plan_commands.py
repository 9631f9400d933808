"""Command lines: what a shell and the runner make of them."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from lsst.ctrl.bps import GenericWorkflow, GenericWorkflowExec, GenericWorkflowFile, GenericWorkflowJob
from lsst.ctrl.bps.panda.edgenode import cmd_line_decoder as runner
from lsst.ctrl.bps.panda.errors import PlanError
from lsst.ctrl.bps.panda.plan.commands import (
    MAX_ARGUMENT,
    StagedFileNames,
    make_shell_safe,
    resolve_files,
    split_long_option,
)
from lsst.ctrl.bps.panda.plan.model import LabelSettings, PlanSettings, RunIdentity, StagedFile, WorkflowPlan
from lsst.ctrl.bps.panda.plan.planner import make_plan

RUN = RunIdentity("u_run", "", "", "", "", "", "S", "/submit", "/area/", "P", "B")
LABEL = LabelSettings("S", "", "", 1, "", "", "", "", "python3 _runner_ _cmd_line_")
SETTINGS = PlanSettings(run=RUN, labels={"": LABEL}, runner=StagedFile("runner", "/x/r.py", "r.py"))


def make_job(**attributes: object) -> GenericWorkflowJob:
    job = GenericWorkflowJob("a", "isr", executable=GenericWorkflowExec("sh", "/bin/sh"), arguments="run")
    for name, value in attributes.items():
        setattr(job, name, value)
    return job


def plan_of(
    job: GenericWorkflowJob, settings: PlanSettings = SETTINGS, *, final: bool = False, outputs=(), inputs=()
) -> WorkflowPlan:
    workflow = GenericWorkflow("u_run")
    workflow.add_job(GenericWorkflowJob("first", "x", executable=job.executable) if final else job)
    if final:
        workflow.add_final(job)
    workflow.add_job_inputs(job.name, list(inputs))
    workflow.add_job_outputs(job.name, list(outputs))
    return make_plan(workflow, settings)


def words_of(job: GenericWorkflowJob, settings: PlanSettings = SETTINGS, **more) -> list[str]:
    plan = plan_of(job, settings, **more)
    command = (plan.final or plan.tasks)[0].command
    return shlex.split(command.removeprefix("( ").partition("; ); code=")[0])


def options_of(words: list[str]) -> set[str]:
    return {word for word in words if word.startswith("--") and not word.startswith(("--run=", "--success="))}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("", ""),
        ("/a/b.c", "/a/b.c"),
        ("/a b/c", "file:///a%20b/c"),
        ("/a'b", "file:///a%27b"),
        ("/a/<ENV:X>/${Y}", "/a/<ENV:X>/${Y}"),
        ("/a <ENV:X>", "file:///a%20<ENV:X>"),
        ("a b", "'a b'"),
        ("s3://h/a b?x=1&y#z", "s3://h/a%20b?x=1&y#z"),
        ("https://h/ä", "https://h/%C3%A4"),
    ],
)
def test_a_path_is_made_safe_for_a_shell(path, text):
    assert make_shell_safe(path) == text


@pytest.mark.parametrize("joint", [" ", "="])
def test_a_long_list_is_given_in_several_options(joint):
    template = f"run --id{joint}{{ids}} --other {{more}}"
    split = split_long_option(template, "ids")
    ids = [f"{number:08d}" for number in range(25_000)]
    whole = ",".join(ids)
    parts = split(whole).split(f" --id{joint}")
    assert ",".join(parts) == whole
    assert all(len(part) <= MAX_ARGUMENT for part in parts)
    assert len(parts) == 3
    short = "x," * (MAX_ARGUMENT // 2)
    assert split(short) == short
    assert split(short + "x") != short + "x"
    full = "x" * (MAX_ARGUMENT - 2) + ",y"
    assert split(f"{full},z") == f"{full} --id{joint}z"
    assert split("x" * 200_000) == "x" * 200_000, "not a list"
    assert split_long_option("run {ids}", "ids")(whole) == whole, "not of an option"


def test_files_that_are_not_transferred_are_named_where_they_are():
    files = [
        GenericWorkflowFile("here", "/a b/here", wms_transfer=False),
        GenericWorkflowFile("sent", "/sent", wms_transfer=True),
    ]
    text = resolve_files("x <FILE:here> <FILE:sent>", files, where="job 'a'")
    assert text == "x file:///a%20b/here <FILE:sent>"
    with pytest.raises(PlanError, match="job 'a' uses <FILE:other>.*it has here, sent"):
        resolve_files("<FILE:other>", files, where="job 'a'")


@pytest.mark.parametrize("name", ["assign", "assign_executable"])
def test_a_file_without_a_source_cannot_be_staged(name):
    lacking = {
        "assign": GenericWorkflowFile("f", None, wms_transfer=True),
        "assign_executable": GenericWorkflowExec("f", None, True),
    }
    with pytest.raises(PlanError, match="'f' is to be transferred but has no src_uri"):
        getattr(StagedFileNames(frozenset()), name)(lacking[name])


def test_directories_are_marked_for_the_runner():
    staged_names = StagedFileNames(frozenset({"/a/known"}))
    entered = [
        staged_names.assign(GenericWorkflowFile("k", source, wms_transfer=True))
        for source in ("/a/known", "/a/slash/", "/a/file")
    ]
    assert [staged.is_directory for staged in entered] == [True, True, False]
    assert [staged.name for staged in staged_names.files()] == ["file", "known", "slash"]
    files = [GenericWorkflowFile("k", "/a/slash/", wms_transfer=True, job_access_remote=True)]
    words = words_of(make_job(arguments="<FILE:k>"), inputs=files)
    assert runner.decode_files(words[5]) == [("k", "slash/")]
    assert runner.decode_direct(words[6]) == ["k"]


@pytest.mark.parametrize(
    ("area", "path"),
    [("/area/", "/area/r.py"), ("file:///a%20b/", "/a b/r.py"), ("/a b/", "/a b/r.py")],
)
def test_the_staged_runner_is_called_where_it_is(area, path):
    words = words_of(make_job(), replace(SETTINGS, run=replace(RUN, staging_area=area)))
    assert words[1] == path


@pytest.mark.parametrize(
    ("area", "part"), [("https://h/d/", "urllib.request"), ("s3://h/d/", "lsst.resources")]
)
def test_the_staged_runner_is_fetched_from_a_store(area, part):
    words = words_of(make_job(), replace(SETTINGS, run=replace(RUN, staging_area=area)))
    assert words[1] == "-c"
    program = runner.decode_command(words[3])
    assert part in program
    assert f"{area}r.py" in program
    compile(program, "x", "exec")


@pytest.mark.parametrize(
    ("command", "words"),
    [("python3 x", "no _cmd_line_.*'python3 x'"), ("python3 _runner_ _cmd_line_", "none is staged")],
)
def test_a_runner_command_without_a_place_is_refused(command, words):
    settings = PlanSettings(run=RUN, labels={"": replace(LABEL, runner_command=command)})
    with pytest.raises(PlanError, match=words):
        plan_of(make_job(), settings)


def test_a_runner_command_may_have_several_lines():
    settings = replace(SETTINGS, labels={"": replace(LABEL, runner_command="a;\npython3 _cmd_line_\n")})
    command = plan_of(make_job(), settings).tasks[0].command
    assert command.startswith("a; python3 ")
    assert "\n" not in command


def test_the_runner_gets_the_options_that_are_asked_for_and_no_others():
    plain = words_of(make_job())
    assert options_of(plain) == set()
    assert "--run=u_run" in plain
    label = replace(LABEL, prmon=False, keep_tokens=True)
    asked = words_of(make_job(retry_unless_exit=[3, "4"]), replace(SETTINGS, labels={"": label}))
    assert options_of(asked) == {"--prmon=no", "--keep-tokens=yes", "--retry-unless-exit=3,4"}
    single = words_of(make_job(retry_unless_exit=5))
    assert options_of(single) == {"--retry-unless-exit=5"}
    assert (
        options_of(words_of(make_job(retry_unless_exit=5), replace(SETTINGS, attempt_codes=False))) == set()
    )
    assert options_of(words_of(make_job(), final=True)) == {"--final=yes"}


def test_outputs_are_returned_where_there_is_a_place_for_them():
    outputs = [
        GenericWorkflowFile("sent", "/out/sent", wms_transfer=True),
        GenericWorkflowFile("kept", "/out/kept", wms_transfer=False),
        GenericWorkflowFile("nowhere", None, wms_transfer=True),
    ]
    words = words_of(make_job(), outputs=outputs)
    (option,) = options_of(words)
    assert runner.Arguments([*words[2:7], option])["outputs"] == [("sent", "/out/sent")]


@pytest.mark.parametrize("transferred", [True, False])
def test_a_transferred_script_finds_the_staging_area_by_its_variables(transferred):
    job = make_job(executable=GenericWorkflowExec("final job", "/submit/final job", transferred))
    settings = replace(SETTINGS, area_variables={"B": "b c", "A": "/a"}, submit_environment={"HOME": "/h"})
    job.arguments = "<ENV:HOME> <ENV:OTHER>"
    words = words_of(job, settings)
    command = runner.decode_command(words[2])
    if transferred:
        assert command == "export A=/a; export B='b c'; './final job' /h <ENV:OTHER>"
        assert runner.decode_files(words[5]) == [(runner.EXECUTABLE, "final job")]
    else:
        assert command == "/submit/final job /h <ENV:OTHER>"
        assert runner.decode_files(words[5]) == []


def test_an_executable_may_be_a_name_only():
    words = words_of(make_job(executable=GenericWorkflowExec("pipetask", None, False)))
    assert runner.decode_command(words[2]) == "pipetask run"


def test_a_value_of_the_environment_keeps_what_is_no_placeholder():
    job = make_job(environment={"A": "", "B": "{x} {y} ${z} <FOO:1> <ENV:H>"}, cmdvals={"x": "1"})
    command = runner.decode_command(words_of(job)[2])
    assert command == """export A=''; export B="1"' ''{y}'' '"${z}"' <FOO:1> '"<ENV:H>"; /bin/sh run"""
