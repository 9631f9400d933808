"""The groups of commands: help, completion and suggestions, which import nothing of BPS."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from lsst.ctrl.bps.panda.cli import panda_auth, panda_bps, panda_local
from lsst.ctrl.bps.panda.runs.record import RunIndex, RunRecord

CHECKOUT = Path(__file__).resolve().parents[3]
OUTLINES = CHECKOUT / "python/lsst/ctrl/bps/panda/cli/commands.json"
SERVER = "https://127.0.0.1:9/server/panda"
GROUPS = [panda_auth.main, panda_bps.main, panda_local.main]


def outline(command: click.Command) -> dict[str, object]:
    """Return what completion and help need of a command."""
    found: dict[str, object] = {"help": command.get_short_help_str(200)}
    if isinstance(command, click.Group):
        return found | {"commands": {name: outline(each) for name, each in sorted(command.commands.items())}}
    return found | {"parameters": [*map(words, command.params)]}


def words(parameter: click.Parameter) -> str:
    """Write a parameter as `CommandGroup` reads it."""
    if isinstance(parameter, click.Argument):
        return parameter.human_readable_name.upper()
    assert isinstance(parameter, click.Option)
    flags = ",".join(parameter.opts)
    if parameter.is_flag:
        return flags
    if isinstance(parameter.type, click.Choice):
        return f"{flags}={'|'.join(parameter.type.choices)}"
    path = "FILE" if isinstance(parameter.type, click.Path) else "VALUE"
    return f"{flags}={'LABEL' if parameter.name == 'label' else path}"


def make_outlines() -> str:
    """Return the content of the file of outlines."""
    found = {}
    for group in GROUPS:
        context = click.Context(group)
        names = group.list_commands(context)
        found[group.name] = {name: outline(group.get_command(context, name)) for name in names}
    return json.dumps(found, indent=1) + "\n"


def test_the_outlines_are_those_of_the_commands():
    assert json.loads(OUTLINES.read_text()) == json.loads(make_outlines()), (
        f"the commands have changed: run {sys.executable} {Path(__file__).relative_to(CHECKOUT)}"
    )


def test_the_list_of_commands_is_that_of_the_modules():
    """No command of a module was forgotten."""
    for group in GROUPS:
        for module in set(group._homes.values()):
            source = (OUTLINES.parent / f"{module}.py").read_text()
            made = re.findall(r"^@click\.(?:command|group)\(.*\n(?:[@ )].*\n)*def (\w+)", source, re.M)
            assert {name.removesuffix("_pages") for name in made} == {
                name for name, home in group._homes.items() if home == module
            }


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("errros 41", "There is no command 'errros'; did you mean errors?"),
        ("log", "There is no command 'log'; did you mean logs?"),
        ("campaign sumbit x", "There is no command 'sumbit'; did you mean submit?"),
        (
            "campaign x",
            "there are cancel, errors, html, list, prepare, report, restart, status, submit, watch.",
        ),
    ],
)
def test_a_misspelt_command_gets_a_suggestion(words, told):
    result = CliRunner().invoke(panda_bps.main, words.split())
    assert result.exit_code == 2
    assert result.output.splitlines()[-1].endswith(told)


@pytest.mark.parametrize(
    ("words", "place", "told"),
    [
        ([], "", "Run 107 u_ann_coadd: your last one."),
        ([], "submit/u_ann_isr", "Run 41 u_ann_isr: the last one submitted from this directory."),
        ([], "submit", "Run 107 u_ann_coadd: the last one submitted from this directory."),
        (["ISR"], "", "Run 41 u_ann_isr: named so."),
        (["u_ann"], "", "'u_ann' is a part of the names of 2 runs"),
    ],
)
def test_the_run_that_is_meant(home, server, monkeypatch, words, place, told):
    """The server has nothing, so that the commands end after they have said which run they take."""
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / (place or "elsewhere"))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PANDA_URL", server)
    for name in ("PANDA_URL_SSL", "XDG_STATE_HOME", "BPS_WMS_SERVICE_CLASS"):
        monkeypatch.delenv(name, raising=False)
    for command in ("show", "errors", "logs", "html", "resources", "watch"):
        result = CliRunner().invoke(panda_bps.main, [command, *words])
        assert result.exit_code == 1
        assert told in result.output.splitlines()[0]
    if len(words) == 1 and words[0] == "u_ann":
        assert [line.split()[:2] for line in result.output.splitlines()[1:]] == [
            ["107", "u_ann_coadd"],
            ["41", "u_ann_isr"],
        ]


def test_a_page_goes_into_a_directory_that_is_there(home, server, monkeypatch):
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PANDA_URL", server)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    result = CliRunner().invoke(panda_bps.main, ["html", "41", "-o", str(home / "no/run.html")])
    assert result.exit_code == 1
    assert f"there is no directory {home / 'no'}. Make it first." in result.output
    assert not (home / "no").exists()


def test_what_is_for_a_group_is_not_ignored_without_one():
    for option in ("--idle", "--longest"):
        result = CliRunner().invoke(panda_bps.main, ["web", option, "5"])
        assert result.exit_code == 1
        assert "--idle and --longest are for --login" in result.output


def test_without_any_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PANDA_URL", SERVER)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    result = CliRunner().invoke(panda_bps.main, ["errors"])
    assert result.exit_code == 1
    assert f"has submitted none to {SERVER} from this machine" in result.output


def run_command(
    arguments: list[str], home: Path, *, program: str = "panda_bps", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a program of the checkout, and note what it imports."""
    start = (
        f"import sys; sys.path.insert(0, {str(CHECKOUT / 'python')!r})\n"
        f"sys.argv[0] = '{program}'\n"
        f"from panda_commands.cli.{program} import main\n"
        "try:\n    main()\nfinally:\n    print('lsst.ctrl.bps' in sys.modules, file=sys.stderr)"
    )
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), **variables}
    return subprocess.run(
        [sys.executable, "-c", start, *arguments],
        env=environment, cwd=home, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("program", "line"),
    [
        ("panda_bps", "errors +Show why jobs of a run failed"),
        ("panda_auth", "status +Show the token"),
        ("panda_local", "status +Show"),
    ],
)
def test_help_imports_nothing_of_bps(tmp_path, program, line):
    done = run_command(["--help"], tmp_path, program=program)
    assert (done.returncode, done.stderr) == (0, "False\n")
    assert re.search(f"^  {line}", done.stdout, re.M)


def test_the_help_of_a_command_is_whole():
    # sphinx, and whoever asks for one command, get the real ones.
    assert "--recovered" in CliRunner().invoke(panda_bps.main, ["errors", "--help"]).output


@pytest.fixture(scope="module")
def server():
    """The URL of a server that finds nothing."""
    # Not there when this file is run to write the outlines.
    from panda_servers.bad_web import BadWeb

    with BadWeb() as web:
        yield f"{web.url}server/panda"


@pytest.fixture
def home(tmp_path, server):
    """A home with two runs, the last of which has labels."""
    for number, name in ((41, "u_ann_isr"), (107, "u_ann_coadd")):
        directory = tmp_path / "submit" / name
        record = RunRecord(
            run={"name": name, "submit_path": str(directory)}, request_id=number,
            labels=(("isr", 4), ("makeWarp", 2), (f"only{number}", 1)),
        )  # fmt: skip
        directory.mkdir(parents=True)
        record.write(directory)
        RunIndex(str(tmp_path / ".local/state/panda_bps"), server).add(record)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("panda_bps err", ["errors"]),
        ("panda_bps errors --rec", ["--recovered"]),
        ("panda_bps errors 4", ["41"]),
        ("panda_bps watch 41 1", ["107"]),
        ("panda_bps show u_ann_c", ["u_ann_coadd"]),
        ("panda_bps logs --label m", ["makeWarp"]),
        ("panda_bps logs --label only", ["only107"]),
        ("panda_bps logs 41 --label only", ["only41"]),
        ("panda_bps logs isr -l only", ["only41"]),
        ("panda_bps resources --format s", ["svg"]),
        ("panda_bps campaign su", ["submit"]),
        ("panda_bps campaign submit --n", ["--new"]),
        ("panda_bps nonsense x", []),
    ],
)
def test_completion(home, line, offered):
    done = run_command(
        [], home, _PANDA_BPS_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=str(line.count(" "))
    )
    assert done.stderr == "False\n"
    values = [text.partition(",")[2] for text in done.stdout.splitlines()]
    assert [value for value in values if value] == offered


def test_completion_of_runs_offers_the_newest_first_and_names_them(home):
    words = {"COMP_WORDS": "panda_bps errors ", "COMP_CWORD": ""}
    done = run_command([], home, _PANDA_BPS_COMPLETE="fish_complete", **words)
    assert re.findall(r"\w+", done.stdout) == ["plain", "107", "u_ann_coadd", "plain", "41", "u_ann_isr"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_documented_line_makes_completion(tmp_path, shell):
    done = run_command([], tmp_path, _PANDA_BPS_COMPLETE=f"{shell}_source")
    assert "_PANDA_BPS_COMPLETE" in done.stdout
    assert done.stderr == "False\n"


if __name__ == "__main__":
    OUTLINES.write_text(make_outlines())
