"""Help and errors of panda_local, without a server."""

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from lsst.ctrl.bps.panda.cli.panda_local import main
from lsst.ctrl.bps.panda.local.endpoint import (
    Endpoint,
    environment,
    start_ticks,
    token_folder,
    write_endpoint,
    write_token,
)


def _call(*arguments):
    return CliRunner().invoke(main, list(arguments))


def test_help_teaches_with_lines_that_can_be_copied():
    lines = [line.strip() for line in _call("--help").output.splitlines()]
    assert "panda_local start" in lines
    assert 'eval "$(panda_local env)"' in lines
    assert "panda_local stop" in lines


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_has_help(command):
    found = _call(command, "--help")
    assert found.exit_code == 0
    assert "\\b" not in found.output
    assert len(found.output.splitlines()) > 4


@pytest.mark.parametrize("arguments", [("status",), ("env",), ("check",)])
def test_nothing_runs(tmp_path, arguments):
    found = _call(*arguments, "-d", str(tmp_path))
    assert found.exit_code == 1
    assert "panda_local start" in found.output


def test_wrong_pace(tmp_path):
    found = _call("start", "-d", str(tmp_path), "--pace", "slow")
    assert found.exit_code == 1
    assert "'slow' is not known; known: quick, production" in found.output
    assert not (tmp_path / "settings.json").exists()


def test_clean_of_nothing(tmp_path):
    assert "there is no" in _call("clean", "-d", str(tmp_path / "none")).output


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make directories of others")
@pytest.mark.parametrize(
    "command", [("status",), ("env",), ("stop",), ("start",), ("restore", "--yes"), ("clean", "--yes")]
)
def test_the_directory_of_another_user_leads_nowhere(tmp_path, command):
    """What another user has put there names a process of ours, and as its lock a file of ours."""
    directory, precious = tmp_path / "state", tmp_path / "precious"
    directory.mkdir()
    precious.write_text("content")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        endpoint = Endpoint(
            "http://127.0.0.1:9/server/panda", process.pid, start_ticks(process.pid), "1", str(directory)
        )
        write_endpoint(endpoint)
        (directory / "settings.json").write_text("{}")
        (directory / "lock").symlink_to(precious)
        for path in (directory, *directory.iterdir()):
            os.chown(path, 12345, 12345, follow_symlinks=False)
        found = _call(*command, "-d", str(directory))
        assert found.exit_code == 1
        assert "belongs to another user" in found.output
        assert process.poll() is None
        process.communicate(b"\n")
        assert process.returncode == 0
    assert precious.read_text() == "content"
    assert (directory / "lock").is_symlink()


@pytest.mark.slow
@pytest.mark.newest
def test_the_token_of_an_embedded_panda_is_not_that_of_a_login(tmp_path):
    """In a process of its own, as the command sets up the log."""
    variables = environment(Endpoint("http://127.0.0.1:9/server/panda", 1, 1, "1", str(tmp_path)))
    write_token(token_folder(tmp_path), "a.b.c")
    program = (
        "from click.testing import CliRunner\n"
        "from lsst.ctrl.bps.panda.cli.panda_auth import main\n"
        "for command in ('clean', 'reset', 'refresh'):\n"
        "    done = CliRunner().invoke(main, [command])\n"
        "    print(command, done.exit_code, done.output)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **variables}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    for command in ("clean", "reset", "refresh"):
        assert f"{command} 1 " in done.stdout, done.stderr
    assert done.stdout.count(f"the token of the embedded PanDA in {tmp_path}") == 3
    assert (token_folder(tmp_path) / ".token").exists()
