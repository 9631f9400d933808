"""The shell part of the quickstart: which Python, and when to install.

Run in a made-up checkout with a made-up Python that notes what it is asked
for, so that nothing is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
_TOOLS = (
    "sh",
    "dirname",
    "readlink",
    "id",
    "getent",
    "cut",
    "cksum",
    "cat",
    "mkdir",
    "rm",
    "mv",
    "tail",
    "cp",
)

_PYTHON = """#!/bin/sh
case "$*" in
    *"print(sys.executable)")
        echo "$0" ;;
    "-m venv "*)
        for last; do :; done
        mkdir -p "$last/bin"
        cp "$0" "$last/bin/python"
        echo "venv" >>"$NOTES" ;;
    "-m pip "*)
        echo "pip in $PWD: $*" >>"$NOTES"
        exit "${PIP_CODE:-0}" ;;
    "-m lsst.ctrl.bps.panda.cli.quickstart "*)
        echo "run: $*" >>"$NOTES" ;;
    *)
        exec "$REAL" "$@" ;;
esac
"""


class Fake:
    """A checkout with the launcher, and a Python for it."""

    def __init__(self, directory: Path) -> None:
        self.checkout = directory / "it's a clone"
        self.notes = directory / "notes"
        self.path = directory / "bin"
        (self.checkout / "bin").mkdir(parents=True)
        self.path.mkdir()
        shutil.copy(CHECKOUT / "bin" / "quickstart", self.checkout / "bin")
        for name in ("setup.cfg", "pyproject.toml"):
            shutil.copy(CHECKOUT / name, self.checkout)
        for tool in _TOOLS:
            os.symlink(shutil.which(tool) or pytest.fail(f"no {tool} here"), self.path / tool)

    def add_python(self) -> None:
        (self.path / "python3.11").write_text(_PYTHON)
        (self.path / "python3.11").chmod(0o755)

    def run(self, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        self.notes.write_text("")
        environment = {"PATH": str(self.path), "HOME": str(self.checkout), "NOTES": str(self.notes)}
        return subprocess.run(
            [str(self.checkout / "bin" / "quickstart"), *options],
            env=environment | {"REAL": sys.executable} | variables,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
        )

    def noted(self) -> list[str]:
        return [line.partition(" ")[0] for line in self.notes.read_text().splitlines()]


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


def test_without_a_python_it_says_what_it_needs(fake: Fake) -> None:
    done = fake.run()
    assert done.returncode == 69
    assert "no Python 3.11 or newer" in done.stderr
    assert "apt-get install python3" in done.stderr


def test_it_installs_once_and_passes_its_options_on(fake: Fake) -> None:
    fake.add_python()
    first = fake.run("--slots", "3")
    assert first.returncode == 0, first.stderr
    notes = fake.notes.read_text()
    assert fake.noted() == ["venv", "pip", "run:"]
    assert f"pip in {fake.checkout}: " in notes
    assert ".[local,demo]" in notes
    assert f"--directory {fake.checkout}/quickstart-run --slots 3" in notes
    assert fake.run().returncode == 0
    assert fake.noted() == ["run:"]


def test_a_failed_installation_is_told_and_begun_anew(fake: Fake) -> None:
    fake.add_python()
    failed = fake.run(PIP_CODE="1")
    assert failed.returncode == 69
    assert "the installation failed" in failed.stderr
    assert fake.noted() == ["venv", "pip"]
    assert fake.run().returncode == 0
    assert fake.noted() == ["venv", "pip", "run:"]


def test_changed_requirements_are_installed(fake: Fake) -> None:
    fake.add_python()
    fake.run()
    with (fake.checkout / "setup.cfg").open("a") as stream:
        stream.write("\n# more\n")
    assert fake.run().returncode == 0
    assert fake.noted() == ["venv", "pip", "run:"]


def test_a_clone_that_was_moved_is_installed_anew(fake: Fake) -> None:
    fake.add_python()
    fake.run()
    fake.checkout = fake.checkout.rename(fake.checkout.with_name("elsewhere"))
    assert fake.run().returncode == 0
    assert fake.noted() == ["venv", "pip", "run:"]


def test_variables_of_another_installation_do_not_get_in(fake: Fake) -> None:
    fake.add_python()
    assert fake.run(PYTHONPATH="/nonsense", PYTHONHOME="/nonsense", PIP_TARGET="/nonsense").returncode == 0
    assert fake.noted() == ["venv", "pip", "run:"]
