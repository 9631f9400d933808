"""What a user gets from ``pip install``: the wheel, in an environment of its own.

The environment first holds the previous plugin of the same name, because
that is what most users upgrade from.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).resolve().parents[2]
SOURCE = CHECKOUT / "python" / "lsst" / "ctrl" / "bps" / "panda"
PREFIX = "lsst/ctrl/bps/panda/"


def console_scripts() -> list[str]:
    """Return the names of our commands, from the metadata."""
    parser = configparser.ConfigParser()
    parser.read(CHECKOUT / "setup.cfg")
    lines = parser["options.entry_points"]["console_scripts"].strip().splitlines()
    return [line.partition("=")[0].strip() for line in lines]


CONSOLE_SCRIPTS = console_scripts()


@dataclass(frozen=True)
class Installation:
    """A virtual environment and what was found in it at each stage."""

    folder: Path
    previous: dict[str, object]
    ours: dict[str, object]

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, with nothing else around."""
        return in_environment(self.folder, *command, check=check)


def in_environment(
    folder: Path, *command: str, check: bool = True, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run a program of an environment, in an empty home."""
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    # The program itself is looked up by our own PATH, its children by this one.
    command = (shutil.which(command[0], path=f"{folder}/bin:/usr/bin:/bin") or command[0], *command[1:])
    environment = {"PATH": f"{folder}/bin:/usr/bin:/bin", "HOME": str(home), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        command,
        cwd=home, env=environment, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def pip(folder: Path, *arguments: str) -> None:
    """Run pip for an environment, with the settings of whoever runs the tests."""
    command = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def configuration_files() -> list[str]:
    """Return the YAML files below ``config``, as a user names them."""
    folder = (CHECKOUT / "config").resolve()
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.yaml"))


LOOK = """
import importlib.metadata, json, lsst.ctrl.bps
told = {"bps": lsst.ctrl.bps.__file__, "version": "", "files": [], "scripts": []}
try:
    distribution = importlib.metadata.distribution("lsst-ctrl-bps-panda")
except importlib.metadata.PackageNotFoundError:
    pass
else:
    told["version"] = distribution.version
    told["files"] = sorted(str(path) for path in distribution.files)
    told["scripts"] = sorted(point.name for point in distribution.entry_points)
told["owners"] = sorted(
    other.metadata["Name"] for other in importlib.metadata.distributions()
    if any(str(path) == "lsst/ctrl/bps/__init__.py" for path in other.files or ())
)
print(json.dumps(told))
"""


def look(folder: Path) -> dict[str, object]:
    """Tell what is installed."""
    return json.loads(in_environment(folder, "python", "-c", LOOK).stdout)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy whose path holds a blank."""
    copy = tmp_path_factory.mktemp("copy") / "a check out"
    leave = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "_build", "tests")
    shutil.copytree(CHECKOUT, copy, ignore=leave, symlinks=True)
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(target), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installation(wheel, tmp_path_factory) -> Iterator[Installation]:
    """An environment with the wheel in it, installed over the previous plugin."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, with_pip=False)
    pip(folder, "install", "-q", "--no-compile", "lsst-ctrl-bps-panda<31")
    previous = look(folder)
    pip(folder, "install", "-q", "--no-compile", f"lsst-ctrl-bps-panda[local,demo] @ {wheel.as_uri()}")
    yield Installation(folder, previous, look(folder))
    shutil.rmtree(folder)


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {
        PREFIX + str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*")
        if path.is_file() and path.suffix != ".pyc" and not path.name.startswith(".")
    }
    assert names == wanted | {"panda_commands.py"}


def test_wheel_has_the_configuration(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {name for name in names if name.startswith(PREFIX + "config/") and name.endswith(".yaml")}
    assert shipped == {f"{PREFIX}config/{name}" for name in configuration_files()}
    assert shipped


def test_wheel_has_the_licences(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for licence in ("LICENSE", "COPYRIGHT", "bsd_license.txt", "gpl-v3.0.txt"):
        assert any(name.endswith("/" + licence) for name in names)


def test_the_previous_plugin_is_replaced(installation):
    """Same distribution name: none of the other's modules stay behind."""
    assert str(installation.previous["version"]) < "31"
    assert str(installation.ours["version"]) >= "31"
    left = installation.folder.glob("lib/python*/site-packages/" + PREFIX + "**/*.py")
    ours = {path for path in installation.ours["files"] if path.startswith(PREFIX) and path.endswith(".py")}
    site = next(installation.folder.glob("lib/python*/site-packages"))
    assert {str(path.relative_to(site)) for path in left} == ours


def test_bps_stays_the_owner_of_its_package(installation):
    assert installation.previous["owners"] == installation.ours["owners"] == ["lsst-ctrl-bps"]
    assert installation.previous["bps"] == installation.ours["bps"]


def test_package_is_imported_from_the_wheel(installation):
    code = "import lsst.ctrl.bps.panda as p; print(p.__file__, p.__version__)"
    file, version = installation.run("python", "-c", code).stdout.split()
    assert file.startswith(str(installation.folder))
    assert version == installation.ours["version"]


def test_configuration_is_found_as_a_resource(installation):
    """The way an ``includeConfigs`` of a user names it."""
    code = (
        "import sys; from lsst.resources import ResourcePath\n"
        "for name in sys.argv[1:]:\n"
        "    path = ResourcePath(f'resource://lsst.ctrl.bps.panda/config/{name}')\n"
        "    print(name, path.exists(), len(path.read()))\n"
    )
    names = configuration_files()
    assert names
    lines = installation.run("python", "-c", code, *names).stdout.splitlines()
    for line, path in zip(lines, names, strict=True):
        assert line == f"{path} True {(CHECKOUT / 'config' / path).stat().st_size}"


@pytest.mark.parametrize("script", CONSOLE_SCRIPTS)
def test_console_scripts_start(installation, script):
    assert script in installation.ours["scripts"]
    assert "Usage" in installation.run(script, "--help").stdout


@pytest.mark.parametrize("script", CONSOLE_SCRIPTS)
def test_commands_are_in_bin_for_a_stack(script):
    """An LSST stack puts `bin` on the path and the package on PYTHONPATH."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(CHECKOUT / "python")}
    command = [sys.executable, str(CHECKOUT / "bin" / script), "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    assert (CHECKOUT / "bin" / script).stat().st_mode & 0o111


def test_runner_is_where_site_configurations_name_it(installation):
    site = next(installation.folder.glob("lib/python*/site-packages"))
    assert (site / PREFIX / "edgenode" / "cmd_line_decoder.py").is_file()


CREATE = "python -m lsst.ctrl.bps.panda.demo create repo"

# In one process, as a `bps status` a second would take a core from the run.
WAIT = "panda_bps watch 1 --interval 5"


def tutorial_commands() -> list[str]:
    """Return the blocks of commands of the tutorial, in order, without the
    installation, which is done.
    """
    text = (CHECKOUT / "doc" / "lsst.ctrl.bps.panda" / "tutorial.rst").read_text(encoding="utf-8")
    found = re.findall(r"^\.\. code-block:: bash\n\n((?:   .*\n|\n)+)", text, re.M)
    blocks = [re.sub(r"^   ", "", block, flags=re.M) for block in found]
    assert "pip install './ctrl_bps_panda[local,demo]'" in blocks[0]
    return blocks[1:]


def shown_programs(*pages: str) -> list[str]:
    """Return the first Python program of each page, for the tutorial's run."""
    programs = []
    for page in pages:
        text = (CHECKOUT / "doc" / "lsst.ctrl.bps.panda" / f"{page}.rst").read_text(encoding="utf-8")
        found = re.search(r"^\.\. code-block:: python\n\n((?:   .*\n|\n)+)", text, re.M)
        assert found
        code = re.sub(r"^   ", "", found[1], flags=re.M).replace('"41"', '"1"')
        programs.append(f"python - <<'PROGRAM'\n{code}\nPROGRAM")
    return ['eval "$(panda_local env)"', *programs]


def shown_about_runs(*pages: str) -> list[str]:
    """Return the commands that pages show on runs, for the tutorial's run; it has ended, so nothing can
    be done about it with ``act`` any more.
    """
    found: dict[str, None] = {}
    for page in pages:
        text = (CHECKOUT / "doc" / "lsst.ctrl.bps.panda" / f"{page}.rst").read_text(encoding="utf-8")
        for line in re.findall(r"^   \$ (panda_bps (?!act )\w+ \d+.*)$", text, re.M):
            found[re.sub(r"^(panda_bps \w+) \d+", r"\1 1", line)] = None
    # Labels and jobs of those pages are of other runs.
    text = "\n".join(found)
    for theirs, ours in (
        (r"--label \w+", "--label isr"),
        (r"--job \d+", "--job 1000005"),
        (r"\bmissing_\d+", "isr_260315001"),
    ):
        text = re.sub(theirs, ours, text)
    return text.splitlines()


def test_the_tutorial_works_as_it_is_written(installation, tmp_path):
    """From the wheel, in an empty home, command by command; all that is added
    is to wait for the end of the run before it is looked at, and what other
    pages show on runs.  The repository is smaller than the tutorial's.
    """
    blocks = tutorial_commands()
    assert blocks[0] == f"{CREATE}\n\n"
    blocks[0] = f"{CREATE} --visits-per-band 1 --detectors 2 --patches 1"
    (look,) = (number for number, block in enumerate(blocks) if block.startswith("bps report\n"))
    blocks.insert(look, WAIT)
    assert blocks[-1] == "panda_local stop\n\n"
    blocks[-1:-1] = [*shown_about_runs("failures", "memory"), *shown_programs("program", "insight")]
    lines = ["set -ex", f"cd '{tmp_path}'", "trap 'panda_local stop' EXIT", *blocks]
    script = tmp_path / "tutorial.sh"
    script.write_text("\n".join([*lines, "bps status --id 1"]))
    done = in_environment(installation.folder, "bash", str(script), timeout=1500)
    assert re.search(r"^ +SUCCEEDED 100 +1 ", done.stdout, re.M), done.stdout
    assert re.search(r"^isr +2 +2 ", done.stdout, re.M), "panda_bps resources"
    assert re.search(r"^isr 2 of 2$", done.stdout, re.M), "the program of the page on programs"
    assert (tmp_path / "run41.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "objects" in done.stdout
    assert (tmp_path / "sky.png").read_bytes().startswith(b"\x89PNG")


def test_uninstalling_leaves_bps_intact(installation):
    """The last test of this file, as it takes the
    package away.
    """
    pip(installation.folder, "uninstall", "-q", "-y", "lsst-ctrl-bps-panda")
    told = look(installation.folder)
    assert told["version"] == ""
    assert told["owners"] == ["lsst-ctrl-bps"]
    assert "Usage" in installation.run("bps", "--help").stdout
    site = next(installation.folder.glob("lib/python*/site-packages"))
    assert list((site / PREFIX).rglob("*.py")) == []
