"""Starting, finding and stopping the embedded PanDA, as a user does."""

import importlib.metadata
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner
from panda_servers.local import servers

from lsst.ctrl.bps.panda.cli.panda_local import main
from lsst.ctrl.bps.panda.errors import LocalPandaError
from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.local.endpoint import EndpointClient, SampleTask, is_alive
from lsst.ctrl.bps.panda.local.guard import marked_processes
from lsst.ctrl.bps.panda.local.settings import read_settings

pytestmark = pytest.mark.slow

_TOOL = [sys.executable, "-m", "lsst.ctrl.bps.panda.cli.panda_local"]


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "state"
    yield path
    if path.exists():
        instance.stop(path)
    assert servers(path) == []
    assert marked_processes(f"PANDA_LOCAL_INSTANCE={path}") == []


def _tool(directory, *arguments, **options):
    environment = {**os.environ, "PANDA_LOCAL_DIR": str(directory)}
    command = [*_TOOL, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, **options)


def _invoke(directory, *arguments):
    """Call the command in this process, which is quicker."""
    return CliRunner().invoke(main, list(arguments), env={"PANDA_LOCAL_DIR": str(directory)})


def test_life_of_an_instance_by_the_command(directory):
    assert "start one with: panda_local start" in _invoke(directory, "status").stderr
    started = _invoke(directory, "start", "--slots", "3", "--keep-work", "always")
    assert started.exit_code == 0, started.stderr
    endpoint = instance.find(directory)
    assert endpoint.url in started.stdout
    assert directory.stat().st_mode & 0o777 == 0o700
    assert [path for path in directory.rglob("*") if path.is_file() and path.stat().st_mode & 0o077] == []
    assert "runs already" in _invoke(directory, "start").stdout
    assert _invoke(directory, "start", "--slots", "9").exit_code != 0
    checked = _invoke(directory, "check")
    assert checked.stdout.endswith("all parts work\n"), checked
    status = _invoke(directory, "status").stdout
    assert "slots: 0 of 3 in use" in status
    assert "6 finished" in status
    assert "panda_local_check_" in status
    variables = _invoke(directory, "env").stdout
    assert f"export PANDA_URL={endpoint.url}\n" in variables
    assert f"export PANDA_CONFIG_ROOT={directory}/client\n" in variables
    assert "unset PANDA_AUTH_ID_TOKEN\n" in variables
    assert endpoint.token not in variables
    assert "export BPS_WMS_SERVICE_CLASS=lsst.ctrl.bps.panda.LocalPanDAService\n" in variables
    assert "status finished" in _invoke(directory, "logs", "1000001").stdout
    assert (directory / "work" / "PandaJob_1000001").is_dir()
    assert "no logs of a job 7" in _invoke(directory, "logs", "7").stderr
    assert "stop it first" in _invoke(directory, "clean", "--yes").stderr
    assert _invoke(directory, "stop").stdout == "stopped\n"
    assert not is_alive(endpoint.pid, endpoint.started)
    assert _invoke(directory, "stop").stdout == "none was running\n"
    assert _invoke(directory, "clean", "--yes").exit_code == 0
    assert not directory.exists()


def test_run_passes_the_exit_code_and_leaves_nothing(directory):
    done = _tool(directory, "run", "--", "bash", "-c", "echo $PANDA_URL; exit 7")
    assert done.returncode == 7, done.stderr
    assert done.stdout.startswith("http://127.0.0.1:")
    assert instance.find(directory) is None


def test_server_ends_with_its_parent(directory):
    code = (
        "import os, sys; from lsst.ctrl.bps.panda.local import instance; "
        "instance.start(sys.argv[1], parent=os.getpid()); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(directory)], timeout=200).returncode == -9
    end = time.monotonic() + 60
    while instance.find(directory):
        assert time.monotonic() < end, "the server has not ended"
        time.sleep(0.1)


def test_second_start_finds_the_first_and_concurrent_starts_make_one(directory):
    code = (
        "import sys; from lsst.ctrl.bps.panda.local import instance; print(instance.start(sys.argv[1]).pid)"
    )
    command = [sys.executable, "-c", code, str(directory)]
    starts = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    pids = {start.communicate(timeout=200)[0].strip() for start in starts}
    assert [start.returncode for start in starts] == [0, 0, 0]
    assert len(pids) == 1
    assert instance.start(directory).pid == int(pids.pop())


def test_start_that_finds_another_leaves_no_process_that_would_take_its_place(directory):
    endpoint = instance.start(directory)
    file = directory / "endpoint.json"
    hidden = file.rename(directory / "hidden.json")
    code = "import sys; from lsst.ctrl.bps.panda.local import instance; instance.start(sys.argv[1])"
    late = subprocess.Popen([sys.executable, "-c", code, str(directory)])
    end = time.monotonic() + 100
    while len(servers(directory)) < 2:
        assert time.monotonic() < end, "no second process"
        time.sleep(0.01)
    # The second process waits for the lock; its parent now finds the first one.
    hidden.rename(file)
    assert late.wait(timeout=100) == 0
    assert servers(directory) == [endpoint.pid]


def test_stale_state_is_recognised_and_the_port_is_kept(directory):
    first = instance.start(directory)
    os.kill(first.pid, signal.SIGKILL)
    while is_alive(first.pid, first.started):
        time.sleep(0.01)
    assert (directory / "endpoint.json").exists()
    assert instance.find(directory) is None
    second = instance.start(directory)
    assert (second.pid != first.pid, second.url) == (True, first.url)


def test_busy_port_is_replaced(directory):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        endpoint = instance.start(directory, port=port)
        assert f":{port}/" not in endpoint.url


def test_it_listens_on_loopback_only(directory):
    with pytest.raises(LocalPandaError, match=r"127\.0\.0\.1 only"):
        instance.start(directory, host="0.0.0.0")
    endpoint = instance.start(directory)
    table = Path("/proc/net/tcp").read_text()
    port = int(endpoint.base.rpartition(":")[2])
    assert f"0100007F:{port:04X} 00000000:0000 0A" in table
    assert f"00000000:{port:04X} 00000000:0000 0A" not in table


def test_wrong_option_is_said_in_a_sentence(directory):
    with pytest.raises(LocalPandaError, match="pace 'slow' is not known"):
        instance.start(directory, pace="slow")


def test_failed_start_says_why_and_is_not_remembered(directory):
    with pytest.raises(LocalPandaError, match="port 1 failed: Connection refused") as refused:
        instance.start(directory, database="postgresql://nobody@127.0.0.1:1/none", slots=7)
    assert "sqlalche.me" not in str(refused.value)
    assert instance.find(directory) is None
    settings = read_settings(directory)
    assert (settings.database, settings.slots) == ("", 0)


def test_unknown_idds_is_refused_with_what_to_install(directory, tmp_path, monkeypatch):
    other = tmp_path / "packages" / "idds_server-9.9.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: idds-server\nVersion: 9.9.9\n")
    monkeypatch.setenv("PYTHONPATH", str(other.parent))
    with pytest.raises(LocalPandaError, match=r"but here idds-server is 9\.9\.9; install .*: pip install"):
        instance.start(directory)


def test_newcomer_finds_everything_in_one_directory_and_quiet_logs(tmp_path):
    """In an empty home directory, without any variable."""
    home = tmp_path / "home"
    home.mkdir()
    place = home / ".local" / "state" / "panda_local"

    def tool(*arguments):
        return subprocess.run(
            [*_TOOL, *arguments],
            env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=200,
        )

    try:
        assert tool("start", "--slots", "2").returncode == 0
        endpoint = instance.find(place)
        assert tool("check").returncode == 0
        client = EndpointClient(endpoint)
        sample = client.submit("u_me_fails", [SampleTask("bad", {"bad:0": (), "bad:1": ()}, "exit 3")])
        assert client.wait(sample, timeout=200)[0] == "Failed"
    finally:
        instance.stop(place)
    assert sorted(path.name for path in home.iterdir()) == [".local"]
    assert [path for path in home.rglob("*") if path.is_dir() and not path.is_relative_to(place)] == [
        home / ".local", home / ".local" / "state",
    ]  # fmt: skip
    # iDDS's tracebacks that mean nothing, and what panda-client prints, do not fill the logs.
    assert (place / "server.out").read_text() == ""
    log = (place / "server.log").read_text()
    assert "Traceback" not in log
    assert len(log) < 5000, log
    assert sum(path.stat().st_size for path in (place / "idds" / "log").iterdir()) < 5000


def test_many_requests_do_not_use_up_file_descriptors(directory):
    endpoint = instance.start(directory)
    client = EndpointClient(endpoint)
    for _ in range(20):
        client.relay("ping")
    before = len(os.listdir(f"/proc/{endpoint.pid}/fd"))
    for _ in range(150):
        client.relay("get_requests", request_id=1)
    assert len(os.listdir(f"/proc/{endpoint.pid}/fd")) < before + 30


def test_file_cache_over_http(directory):
    endpoint = instance.start(directory)
    base = endpoint.url.removesuffix("/server/panda")
    border = "----7d1"
    body = (
        f'--{border}\r\nContent-Disposition: form-data; name="file"; filename="jobO.x.tar.gz"\r\n\r\nDATA'
        f"\r\n--{border}--\r\n"
    ).encode()
    secret = {"Authorization": f"Bearer {endpoint.token}"}
    headers = {"Content-Type": f"multipart/form-data; boundary={border}", **secret}
    url = f"{base}/api/v1/file_server/upload_cache_file"
    with urllib.request.urlopen(urllib.request.Request(url, data=body, headers=headers), timeout=30) as reply:
        assert b'"success": true' in reply.read()
    wanted = urllib.request.Request(f"{base}/cache/jobO.x.tar.gz", headers=secret)
    with urllib.request.urlopen(wanted, timeout=30) as reply:
        assert reply.read() == b"DATA"


def test_private_parts_of_idds_are_where_the_repairs_expect_them(tmp_path):
    # In a process of its own: it imports the server's side of iDDS.
    code = (
        "import os, sys; from pathlib import Path\n"
        "from lsst.ctrl.bps.panda.local import idds_host, idds_repairs\n"
        "from lsst.ctrl.bps.panda.local.idds_host import IddsHost\n"
        "from lsst.ctrl.bps.panda.local.settings import TIMINGS\n"
        "host = IddsHost(Path(sys.argv[1]), database=f'sqlite:///{sys.argv[1]}/x.db',\n"
        "                timing=TIMINGS['quick'])\n"
        "os.environ.update(host.environment()); os.environ.pop('IDDS_CLIENT_MODE', None)\n"
        "idds_repairs.before_import()\n"
        "assert idds_host.self_test() == '', idds_host.self_test()\n"
        "assert all(item.reason and item.symptom and item.grips for item in idds_host.REPAIRS)\n"
        "from idds.agents.clerk import clerk; del clerk.Clerk.get_request\n"
        "said = idds_host.self_test()\n"
        "assert 'Clerk.get_request' in said and 'pip install' in said, said\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr


def test_known_version_is_the_one_that_is_installed():
    from lsst.ctrl.bps.panda.local import idds_host

    assert importlib.metadata.version("idds-server") == idds_host.IDDS_VERSION
    assert idds_host.wrong_versions() == []
