"""Help and errors of panda_local, without a server."""

import pytest
from click.testing import CliRunner

from lsst.ctrl.bps.panda.cli.panda_local import main


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
