"""``bps submitcmd`` as a user types it, on the embedded PanDA."""

from __future__ import annotations

import re
import stat
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from panda_servers.commands import Commands
from panda_servers.runs import await_end

from lsst.ctrl.bps.panda.local import instance

pytestmark = pytest.mark.slow

LIMIT = 240.0
TOP = {"fileDistributionEndPoint", "submitPath", "custom_lsst_setup"}

# Blanks, quotes, separators of the runner's grammar, of URIs, and of shells.
HOSTILE = "it's a+b:c%20$HOME #1?&*;é"

COUNT = """\
#!/bin/sh
set -e
cat "$1" "$2" | wc -w | tr -d ' ' > "$3"
echo "$4" >> "$3"
"""


class Place:
    """A user's directory, with a name that takes care, and a PanDA."""

    def __init__(self, directory: Path, commands: Commands) -> None:
        self.commands = commands
        self.home = directory
        # BPS itself takes $, %, # and ? in the path of a YAML file for something else.
        self.work = directory / "it's a+b:c &*;é"
        self.work.mkdir(parents=True)
        self.panda = directory / "panda"
        self.env = {
            "PATH": commands.path,
            "HOME": str(directory),
            "USER": "ann",
            "LC_ALL": "C.UTF-8",
            "PANDA_LOCAL_DIR": str(self.panda),
            "BPS_WMS_SERVICE_CLASS": "lsst.ctrl.bps.panda.LocalPanDAService",
        }

    def bps(self, *arguments: str, cwd: Path | None = None, code: int | None = 0, **env: str) -> str:
        """Run ``bps`` and return all it wrote."""
        done = subprocess.run(
            [self.commands.folder / "bps", *arguments],
            cwd=cwd or self.work,
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            umask=0o022,
            check=False,
        )
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def wait(self, run_id: str, **env: str) -> str:
        """Wait until the run has ended; its state, as ``bps status`` has it."""
        await_end(self.panda, run_id, self.env, limit=LIMIT)
        said = self.bps("status", "--id", run_id, code=None, **env)
        return re.findall(r"status: (\w+)", said)[-1]


@pytest.fixture(scope="module")
def place(tmp_path_factory, commands):
    place = Place(tmp_path_factory.mktemp("cmd"), commands)
    yield place
    instance.stop(place.panda)


def write_job(directory: Path, script: str, *, name: str = "go.sh", **job: object) -> Path:
    """Write an executable and a configuration that runs it."""
    top = {key: job.pop(key) for key in list(job) if key in TOP}
    directory.mkdir(parents=True, exist_ok=True)
    tool = directory / name
    tool.write_text(script)
    tool.chmod(0o755)
    config = {
        "wmsServiceClass": "lsst.ctrl.bps.panda.LocalPanDAService",
        "payloadName": "cmd",
        "uniqProcName": "cmd_{timestamp}",
        "submitPath": f"{directory}/submit/{{uniqProcName}}",
        "customJob": {"executable": str(tool), "arguments": "", **job},
        **top,
    }
    path = directory / "job.yaml"
    path.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    return path


def submitted(said: str) -> str:
    """Find the run's id in the last words of a submission."""
    return re.search(r"^Run Id: (\d+)$", said, re.MULTILINE)[1]


def test_a_command_with_files_of_any_name(place):
    directory = place.work / "count"
    job = write_job(
        directory,
        COUNT,
        name="count it's.sh",
        arguments="{words} {more} {result} 'two  words'",
        inputs={"words": f"in/{HOSTILE}.txt", "more": "in/-more"},
        outputs={"result": f"out dir/{HOSTILE}.out"},
    )
    (directory / "in").mkdir()
    (directory / "in" / f"{HOSTILE}.txt").write_text("one two three")
    (directory / "in" / "-more").write_text("\nfour\n")
    # BPS expands variables in a YAML, so $ is not written there.
    text = job.read_text().replace("$HOME", "${DOLLAR}HOME")
    job.write_text(text)
    said = place.bps("submitcmd", str(job), cwd=directory, DOLLAR="$")
    run_id = submitted(said)
    assert "Run Name: cmd_" in said
    # From any other directory.
    assert place.wait(run_id) == "SUCCEEDED", said
    (result,) = (directory / "submit").glob("*/out dir/*")
    assert result.name == f"{HOSTILE}.out"
    assert result.read_text() == "4\ntwo  words\n"
    report = place.bps("report", "--id", run_id, cwd=place.home)
    assert re.search(r"^customJob( +0){8} +1 +0 +0 +1$", report, re.MULTILINE), report


def test_a_command_that_fails(place):
    job = write_job(place.work / "fails", "#!/bin/sh\nexit 7\n", numberOfRetries=0)
    run_id = submitted(place.bps("submitcmd", str(job)))
    assert place.wait(run_id) == "FAILED"
    report = place.bps("report", "--id", run_id, "--return-exit-codes")
    assert re.search(r"^customJob .*\b7\b", report, re.MULTILINE), report


def test_a_script_that_was_mended_is_taken_by_a_restart(place):
    job = write_job(place.work / "mend", "#!/bin/sh\nexit 7\n", numberOfRetries=0)
    run_id = submitted(place.bps("submitcmd", str(job)))
    assert place.wait(run_id) == "FAILED"
    tool = job.parent / "go.sh"
    tool.write_text("#!/bin/sh\nexit 0\n")
    said = place.bps("restart", "--id", run_id)
    assert f"used in their new form: go.sh. Copied anew into the submit directory: {tool}" in said
    assert place.wait(submitted(said)) == "SUCCEEDED"


def test_outputs_come_back_over_the_staging_area(place):
    """The worker does not have the directory of the output: it is taken away
    while the job waits, as if it were on another machine.
    """
    directory = place.work / "far"
    job = write_job(
        directory,
        f'#!/bin/sh\nwhile [ ! -e "{place.home}/go" ]; do sleep 0.1; done\necho far > "$1"\n',
        arguments="{result}",
        outputs={"result": "res ult/o+ut%41.txt"},
    )
    run_id = submitted(place.bps("submitcmd", str(job)))
    (folder,) = (directory / "submit").glob("*/res ult")
    folder.rmdir()
    (place.home / "go").touch()
    assert place.wait(run_id) == "SUCCEEDED"
    # It was `bps status` that brought it.
    assert (folder / "o+ut%41.txt").read_text() == "far\n"
    assert list((place.panda / "staging").glob("*/*/outputs/*/*")) == []


@pytest.fixture(params=["s3", "webdav"])
def store(request):
    """A staging area on a real server, and the variables to reach it."""
    if request.param == "webdav":
        return request.getfixturevalue("webdav_server").url + "cmd/", {}
    server = request.getfixturevalue("s3_server")
    server.make_bucket("cmd")
    return "s3://cmd/runs/", server.client_environment


def test_files_go_and_come_over_a_store(place, store):
    """Executable, input and output with any name; the worker does not see
    the submit host's directories.
    """
    area, variables = store
    directory = place.work / "store" / area.partition(":")[0]
    opening = place.home / f"open {area.partition(':')[0]}"
    wait = f'while [ ! -e "{opening}" ]; do sleep 0.1; done'
    export = "".join(f"export {name}={value}; " for name, value in variables.items())
    job = write_job(
        directory,
        f'#!/bin/sh\n{wait}\ncat "$1" "$1" > "$2"\necho more > "$3"\n',
        name="go it's.sh",
        arguments="{data} {result} {more}",
        inputs={"data": f"in/{HOSTILE}"},
        outputs={"result": f"res ult/{HOSTILE}.out", "more": "res ult/-more"},
        fileDistributionEndPoint=f"{area}{{uniqProcName}}/",
        custom_lsst_setup=export,
    )
    (directory / "in").mkdir()
    (directory / "in" / HOSTILE).write_text("two words\n")
    job.write_text(job.read_text().replace("$HOME", "${DOLLAR}HOME"))
    run_id = submitted(place.bps("submitcmd", str(job), cwd=directory, DOLLAR="$", **variables))
    (folder,) = (directory / "submit").glob("*/res ult")
    folder.rmdir()
    opening.touch()
    assert place.wait(run_id, **variables) == "SUCCEEDED"
    assert (folder / f"{HOSTILE}.out").read_text() == "two words\ntwo words\n"
    assert (folder / "-more").read_text() == "more\n"
    assert sorted(path.name for path in folder.iterdir()) == sorted(["-more", f"{HOSTILE}.out"])
    # Fetched is removed; asking again does not miss it.
    assert "cannot be fetched" not in place.bps("report", "--id", run_id, **variables)


def test_a_store_that_is_gone_when_the_output_is_to_be_fetched(place, tmp_path_factory):
    from panda_servers.webdav import WebdavServer

    directory = place.work / "gone"
    with WebdavServer(tmp_path_factory.mktemp("gone")) as server:
        job = write_job(
            directory,
            f'#!/bin/sh\nwhile [ ! -e "{place.home}/close" ]; do sleep 0.1; done\necho far > "$1"\n',
            arguments="{result}",
            outputs={"result": "far/o.txt"},
            fileDistributionEndPoint=f"{server.url}{{uniqProcName}}/",
        )
        run_id = submitted(place.bps("submitcmd", str(job)))
        (folder,) = (directory / "submit").glob("*/far")
        folder.rmdir()
        (place.home / "close").touch()
        end = time.monotonic() + LIMIT
        while not [path for path in server.folder.rglob("o.txt") if path.read_text()]:
            assert time.monotonic() < end
            time.sleep(0.2)
    await_end(place.panda, run_id, place.env, limit=LIMIT)
    said = place.bps("status", "--id", run_id, code=None)
    assert re.search(r"Output result of run cmd_\w+ cannot be fetched from http://127.0.0.1:\d+/", said)
    assert "status: SUCCEEDED" in said
    assert "Ping successful." in place.bps("ping")


def test_files_of_one_name_are_refused(place):
    directory = place.work / "twins"
    inputs = {}
    for key in ("a", "b"):
        (directory / key).mkdir(parents=True)
        (directory / key / "data").write_text(key)
        inputs[key] = str(directory / key / "data")
    job = write_job(directory, "#!/bin/sh\n", arguments="{a} {b}", inputs=inputs)
    said = place.bps("submitcmd", str(job), code=1)
    assert "customJob: a and b are both called 'data'" in said


def test_a_dry_run_needs_no_server(place):
    job = write_job(place.work / "dry", "#!/bin/sh\n")
    variables = {"PANDA_URL_SSL": "http://127.0.0.1:9/server/panda"}
    service = ("--wms-service-class", "lsst.ctrl.bps.panda.PanDAService", "--compute-site", "local")
    said = place.bps("submitcmd", "--dry-run", *service, str(job), **variables)
    assert "it goes on because nothing is sent now" in said
    assert "Run Id" not in said
    said = place.bps("submitcmd", *service, str(job), code=1, **variables)
    assert "This run cannot be submitted:\n- The connection to 127.0.0.1:9 was refused" in said


JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJnZWhlaW0ifQ.Z2VoZWltLXNpZ25hdHVyZQ"


def test_no_file_holds_a_secret(place):
    """Of a submission, its report and its restart: in the submit directory,
    the staging area, the list of own runs, the logs of jobs and PanDA's own
    files.
    """
    directory = place.work / "secret"
    job = write_job(directory, "#!/bin/sh\nenv\nexit 4\n", numberOfRetries=0)
    secrets = {
        "PANDA_AUTH_ID_TOKEN": JWT,
        "AWS_SECRET_ACCESS_KEY": "geheim-2",
        "DATABASE_URL": "postgresql://ann:geheim-3@host/db",
        "ANYTHING": f"Bearer {JWT}",
    }
    run_id = submitted(place.bps("submitcmd", str(job), **secrets))
    assert place.wait(run_id, **secrets) == "FAILED"
    place.bps("report", "--id", run_id, **secrets)
    (submit,) = (directory / "submit").iterdir()
    # By directory, BPS writes the environment once more when the plugin has done its part.
    assert "Run Id: " in place.bps("restart", "--id", str(submit), **secrets)
    dumps = list(submit.glob("*.env.info.yaml"))
    assert len(dumps) == 2
    for dump in dumps:
        content = yaml.safe_load(dump.read_text())
        assert content["PANDA_AUTH_ID_TOKEN"] == content["AWS_SECRET_ACCESS_KEY"] == "[hidden]"
        assert content["USER"] == "ann"
        assert stat.S_IMODE(dump.stat().st_mode) == 0o600
    searched = 0
    for top in (submit, place.panda, place.home / ".local"):
        for path in (found for found in top.rglob("*") if found.is_file() and not found.is_symlink()):
            data = path.read_bytes()
            searched += 1
            assert b"geheim" not in data, path
            assert JWT.encode() not in data, path
            if top == submit:
                assert not stat.S_IMODE(path.stat().st_mode) & 0o022, path
    assert searched > 20
