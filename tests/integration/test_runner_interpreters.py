"""The runner works wherever a worker's Python is started, from 3.6 on."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from panda_servers.interpreters import candidates, discover

from lsst.ctrl.bps.panda.edgenode import cmd_line_decoder as runner

NOBODY = 65534

INTERPRETERS = discover()

pytestmark = [pytest.mark.slow, pytest.mark.newest]

COMMAND = (
    'printf \'%s|\' <FILE:odd> "$(cat <FILE:odd>)" {q} "$VAR" "<ENV:VAR>" <WMS:attemptNum>;'
    " cat <FILE:tree>s/x; exit 5"
)
ODD = "é ☃ 'x' %41.txt"


@pytest.fixture
def area(tmp_path):
    folder = tmp_path / "ar ea é"
    (folder / "t" / "s").mkdir(parents=True)
    (folder / "t" / "s" / "x").write_text("tree")
    (folder / os.fsdecode(ODD.encode())).write_text("content é")
    shard = folder / runner.shard_name("isr", 1)
    shard.parent.mkdir(parents=True)
    shard.write_text(runner.render_shard(["q"], 10, [("'é ☃'",)] * 10))
    staged = folder / "cmd_line_decoder.py"
    shutil.copy(runner.__file__, staged)
    for path in folder.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    folder.chmod(0o555)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)


@pytest.fixture
def work(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def argv(python, area, *flags, command=COMMAND):
    return [
        python,
        *flags,
        str(area / "cmd_line_decoder.py"),
        runner.encode_command(command),
        "isr:12",
        runner.encode_area(str(area)),
        runner.encode_files([("odd", ODD), ("tree", "t/")]),
        runner.NO_DIRECT,
        runner.encode_option("parameters", "isr@10"),
    ]


EXPECTED = f"{ODD}|content é|é ☃|v é w|v é w|0|tree".encode()


def test_several_were_found():
    assert sys.version_info.minor in INTERPRETERS


WAYS = [((), locale) for locale in ("", "C", "POSIX", "C.UTF-8", "en_US.ISO-8859-1")]
WAYS += [(("-I",), ""), (("-I", "-S"), "C"), (("-E", "-s", "-B"), "C")]


@pytest.mark.parametrize(("flags", "locale"), WAYS)
@pytest.mark.parametrize("minor", INTERPRETERS)
def test_any_python_in_any_locale(minor, flags, locale, area, work):
    """From a read-only directory, without a home directory, with two variables in the environment."""
    environment = {"VAR": "v é w".encode(), **({"LC_ALL": locale} if locale else {})}
    result = subprocess.run(
        argv(INTERPRETERS[minor], area, *flags), cwd=work, env=environment, capture_output=True, timeout=60
    )
    assert result.stdout == EXPECTED, result.stderr
    assert result.returncode == 5
    assert not list(area.rglob("*.pyc"))


def test_empty_environment(area, work):
    line = argv(sys.executable, area, "-I", command="echo {q} $0")
    result = subprocess.run(["/usr/bin/env", "-i", *line], cwd=work, capture_output=True, timeout=60)
    assert result.stdout == "é ☃ /bin/bash\n".encode(), result.stderr


def usable_by_nobody():
    """An interpreter that another user may start."""
    for path in filter(None, candidates()):
        try:
            subprocess.run([path, "-c", ""], user=NOBODY, group=NOBODY, extra_groups=[], check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        return path
    pytest.skip("no Python here can be started by another user")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
class TestAnotherUser:
    """Pilots run as a user to whom nothing of the run belongs."""

    @pytest.fixture
    def tmp_path(self):
        """A directory that everybody may enter.

        Not below pytest's: whenever another session of this user begins, pytest closes the directory of them
        all to others again.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            path.chmod(0o755)
            yield path

    def run(self, line, work):
        return subprocess.run(
            line,
            cwd=work,
            env={"VAR": "v é w".encode()},
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            capture_output=True,
            timeout=60,
        )

    def test_in_a_directory_of_theirs(self, area, work):
        os.chown(work, NOBODY, NOBODY)
        result = self.run(argv(usable_by_nobody(), area, "-I"), work)
        assert (result.returncode, result.stdout) == (5, EXPECTED), result.stderr

    def test_work_directory_that_cannot_be_written(self, area, work):
        result = self.run(argv(usable_by_nobody(), area, "-I"), work)
        assert result.returncode == runner.EXIT_WORK_DIRECTORY
        assert b"Permission denied" in result.stderr

    def test_area_that_keeps_no_note(self, area, work):
        line = argv(usable_by_nobody(), area, "-I")
        os.chown(work, NOBODY, NOBODY)
        result = self.run([*line, "--retry-unless-exit=5"], work)
        assert result.returncode == 5
        assert result.stderr.count(b"may be tried again") == 1

    def test_file_that_may_not_be_read(self, area, work):
        os.chown(work, NOBODY, NOBODY)
        (area / ODD).chmod(0o400)
        result = self.run(argv(usable_by_nobody(), area, "-I"), work)
        assert result.returncode == runner.EXIT_MISSING
        assert b"Permission denied" in result.stderr
