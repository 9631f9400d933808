"""Small parts of the embedded PanDA: settings, faults, queues, identity, ..."""

import io
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from panda_servers.local import wait_for

from lsst.ctrl.bps.panda.errors import LocalPandaError
from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.local.api import CacheError, FileCache
from lsst.ctrl.bps.panda.local.endpoint import (
    Endpoint,
    check_own_panda,
    environment,
    find_own_panda,
    is_alive,
    make_private_folder,
    read_endpoint,
    start_ticks,
    state_directory,
    token_folder,
    write_endpoint,
    write_token,
)
from lsst.ctrl.bps.panda.local.faults import Faults
from lsst.ctrl.bps.panda.local.guard import end_marked, marked_processes
from lsst.ctrl.bps.panda.local.job_store import memory_of_retry
from lsst.ctrl.bps.panda.local.pilot import (
    OUT_OF_TIME,
    EventResult,
    JobDirectories,
    PayloadRun,
    PilotJob,
    job_environment,
    make_result,
    payload_commands,
    read_memory_summary,
)
from lsst.ctrl.bps.panda.local.processes import end_session, measure_sessions
from lsst.ctrl.bps.panda.local.settings import (
    TIMINGS,
    Queue,
    ServerSettings,
    parse_faults,
    parse_timing,
    read_faults,
    read_queues,
    read_settings,
    write_settings,
)
from lsst.ctrl.bps.panda.local.task_parameters import parse_task


def _order(**values):
    given = {
        "panda_id": 1000001,
        "task_id": 5,
        "task_name": "run_00_isr_01_1_1",
        "request_id": 1,
        "attempt": 1,
        "template": "run ${IN/L}",
        "pseudo_input": "isr:12",
        "event_count": 0,
        "done_events": frozenset(),
        "queue": "Q",
        "cores": 1,
        "memory": 0,
        "walltime": 0,
        **values,
    }
    return PilotJob(**given)


# -- Commands, environment, payload ------------------------------------------


def test_pseudo_input_is_put_in_place():
    assert payload_commands(_order()) == [(0, "run isr:12")]


def test_event_service_command_per_payload():
    order = _order(pseudo_input="isr:eventservice_40", event_count=3, done_events=frozenset({2}))
    assert payload_commands(order) == [(1, "run isr:eventservice_40^1"), (3, "run isr:eventservice_40^3")]


def test_environment_of_a_job_is_clean():
    base = {"HOME": "/home/me", "USER": "me", "LANG": "C", "PYTHONPATH": "/x", "SECRET": "s", "PATH": "/mine"}
    variables = job_environment(
        Path("/w"), panda_id=1000001, task_id=5, base=base, path="/env/bin", extra={"PANDA_URL": "u"}
    )
    assert variables["PATH"] == "/env/bin:/usr/local/bin:/usr/bin:/bin"
    assert (variables["PANDAID"], variables["PanDA_TaskID"]) == ("1000001", "5")
    assert (variables["HOME"], variables["PANDA_URL"]) == ("/home/me", "u")
    # What a pilot of Rubin's does not give, the attempt's number above all, is not there.
    given = {"PANDAID", "PanDA_TaskID"}
    assert variables.keys() == given | {"HOME", "USER", "LANG", "PATH", "PWD", "TMPDIR", "PANDA_URL"}


@pytest.fixture
def places(tmp_path):
    return JobDirectories(tmp_path / "logs", tmp_path / "work", "http://127.0.0.1:1/logs")


def _payload(places, **values):
    payload = PayloadRun(_order(**values), places, {"PATH": os.environ["PATH"], "TMPDIR": "/tmp"})
    payload.prepare()
    return payload


def test_payload_has_fresh_directories_and_its_output_is_kept(places):
    payload = _payload(places)
    assert payload.run("echo out; echo err >&2; pwd > here; echo {} > payload-log.json; exit 7") == 7
    payload.keep_files()
    payload.write_log("the pilot's\n")
    logs = places.log_directory(1000001)
    assert (logs / "payload.stdout").read_text() == "out\n"
    assert (logs / "payload.stderr").read_text() == "err\n"
    assert (logs / "payload-log.json").read_text() == "{}\n"
    assert (logs / "pilotlog.txt").read_text() == "the pilot's\n"
    work = places.work_directory(1000001)
    assert (work / "here").read_text().strip() == str(work)
    assert (work / "payload.stdout").read_text() == "out\n"
    again = _payload(places)
    assert not (work / "here").exists()
    again.remove_work()
    assert not work.exists()
    assert logs.exists()


def test_files_of_a_job_have_the_permissions_that_the_user_wants(places):
    environment = {"PATH": os.environ["PATH"]}
    payload = PayloadRun(_order(), places, environment, umask=0o027)
    payload.prepare()
    assert payload.run("touch made; mkdir below") == 0
    work = places.work_directory(1000001)
    assert (work / "made").stat().st_mode & 0o777 == 0o640
    assert (work / "below").stat().st_mode & 0o777 == 0o750


def test_payload_killed_by_a_signal(places):
    assert _payload(places).run("kill -SEGV $$") == 139


def test_payload_that_leaves_a_process_behind(places, tmp_path):
    payload = _payload(places)
    assert payload.run(f"sleep 600 & echo $! > {tmp_path}/pid") == 0
    assert start_ticks(int((tmp_path / "pid").read_text())) == 0


def test_payload_that_leaves_a_process_in_a_session_of_its_own(places, tmp_path):
    other = PayloadRun(_order(panda_id=1000002), places, {"PATH": os.environ["PATH"]})
    other.prepare()
    run = threading.Thread(target=other.run, args=(f"echo $$ > {tmp_path}/other; sleep 600",))
    run.start()
    payload = _payload(places)
    assert payload.run(f"setsid sleep 600 & echo $! > {tmp_path}/pid") == 0
    assert start_ticks(int((tmp_path / "pid").read_text())) == 0
    # Another job's are left alone.
    while not (tmp_path / "other").exists() or not (tmp_path / "other").read_text():
        time.sleep(0.01)
    assert start_ticks(int((tmp_path / "other").read_text())) > 0
    other.end(OUT_OF_TIME, grace=0)
    run.join(60)
    assert not run.is_alive()


@pytest.mark.parametrize("start", ["setsid", "env -i setsid"])
def test_payload_that_is_ended_with_a_process_in_a_session_of_its_own(places, tmp_path, start):
    """Also one that has cleared its environment, as a container does."""
    payload = _payload(places)
    # The process that left is all that runs when the job's own is gone.
    command = f"{start} bash -c 'echo $$ > {tmp_path}/pid; sleep 600' & wait"
    run = threading.Thread(target=payload.run, args=(command,))
    run.start()
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.01)
    payload.end(OUT_OF_TIME, grace=5)
    until = time.monotonic() + 60
    while start_ticks(int((tmp_path / "pid").read_text())):
        assert time.monotonic() < until
        time.sleep(0.01)
    run.join(60)
    assert not run.is_alive()


def test_payload_ended_before_it_started_does_not_run(places, tmp_path):
    payload = _payload(places)
    payload.end(OUT_OF_TIME, grace=0)
    assert payload.run(f"touch {tmp_path}/ran") == 143
    assert not (tmp_path / "ran").exists()
    assert payload.error is OUT_OF_TIME


def test_memory_summary_of_prmon_is_read(tmp_path):
    summary = {"Max": {"rss": 218372, "pss": 211998, "rchar": 2048000}, "Avg": {"rss": 145646.0}}
    (tmp_path / "memory_monitor_summary.json").write_text(json.dumps(summary))
    assert read_memory_summary(tmp_path) == {
        "maxRSS": 218372,
        "avgRSS": 145646,
        "maxPSS": 211998,
        "totRCHAR": 2000,
    }


@pytest.mark.parametrize("text", ["", "{", "[]", '{"Max": 1, "Avg": 2}'])
def test_bad_memory_summary_is_ignored(tmp_path, text):
    (tmp_path / "memory_monitor_summary.json").write_text(text)
    assert read_memory_summary(tmp_path) == {}


def test_outcomes():
    assert (make_result(0).status, make_result(0).detail["transExitCode"]) == ("finished", "0")
    failed = make_result(17)
    assert (failed.status, failed.pilot_error_code, failed.detail["transExitCode"]) == ("failed", 1305, "17")
    late = make_result(143, error=OUT_OF_TIME)
    assert (late.pilot_error_code, late.detail["pilotErrorDiag"]) == (1213, "Reached batch system time limit")
    events = (EventResult(1, 0), EventResult(2, 3))
    assert (make_result(3, events=events).status, make_result(3, events=events).sub_status) == (
        "finished",
        "fg_partial",
    )
    assert make_result(3, events=events[1:]).status == "failed"
    assert make_result(0, events=events[:1]).sub_status == "fg_done"


@pytest.mark.parametrize(
    ("current", "params", "cores", "expected"),
    [
        (1000, {"ramCount": 1000, "retryRamStep": 2000}, 1, 2000),
        (2000, {"ramCount": 1000, "retryRamStep": 2000}, 1, 4000),
        (2000, {"ramCount": 1000, "retryRamStep": 2000, "retryRamMax": 3000}, 1, 3000),
        (2000, {"ramCount": 1000, "retryRamStep": 2000, "retryRamMax": 6000}, 2, 3000),
        (2000, {"ramCount": 1000, "retryRamStep": 2000, "retryRamMax": 1000}, 1, 2000),
        (1000, {"ramCount": 1000}, 1, 1000),
        (1000, {"ramCount": 1000, "retryRamOffset": 1500}, 1, 1500),
        (2048, {"ramCount": 2048, "retryRamOffset": 2048, "retryRamMax": 512000}, 1, 2048),
    ],
)
def test_memory_of_retry(current, params, cores, expected):
    parsed = parse_task({"taskName": "one", **params})
    assert memory_of_retry(current, parsed, cores) == expected


# -- Processes ----------------------------------------------------------------


def _python(code, **options):
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True, **options
    )


def test_sessions_are_measured_marked_and_ended():
    code = "import subprocess, sys, time; x = b'x' * 30_000_000; print('up', flush=True); time.sleep(600)"
    with _python(code, env={**os.environ, "MARK_OF_TEST": "7f3"}) as process:
        assert process.stdout.readline() == "up\n"
        started = start_ticks(process.pid)
        assert is_alive(process.pid, started)
        assert not is_alive(process.pid, started + 1)
        use = measure_sessions([process.pid])[process.pid]
        assert use.rss > 30_000
        assert use.processes == 1
        assert marked_processes("MARK_OF_TEST=7f3") == [process.pid]
        assert marked_processes("MARK_OF_TEST=7f") == []
        end_session(process.pid, grace=5)
        assert process.wait(timeout=10) == -15
    assert start_ticks(process.pid) == 0


def test_a_copy_of_a_process_apart_counts_once_it_is_something_else():
    code = """
import os, signal, sys
x = b"x" * 100_000_000
def start(act):
    if not (pid := os.fork()):
        act()
        signal.pause()
    return pid
def take_a_name():
    open("/proc/self/comm", "w").write("pipetask")
def execute():
    os.execvp("sleep", ["sleep", "600"])
print(start(lambda: None), start(take_a_name), start(execute), flush=True)
signal.pause()
"""
    with _python(code) as process:
        _, named, other = (int(word) for word in process.stdout.readline().split())
        wait_for(
            lambda: [psutil.Process(pid).name() for pid in (named, other)] == ["pipetask", "sleep"], "names"
        )
        assert measure_sessions([process.pid])[process.pid].processes == 4
        use = measure_sessions([process.pid], apart={process.pid})[process.pid]
        assert use.processes == 2
        assert use.rss < 2 * 200_000
        psutil.Process(named).kill()
        wait_for(lambda: psutil.Process(named).status() == psutil.STATUS_ZOMBIE, "end")
        assert measure_sessions([process.pid], apart={process.pid})[process.pid].rss < 20_000
        end_session(process.pid, grace=0)


def test_processes_that_clear_their_environment_end_with_those_that_started_them():
    inner = (
        "import subprocess, time\nprint(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
    )
    code = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, '-c', {inner!r}], env={{}}, start_new_session=True)\n"
        "print(p.pid, flush=True); time.sleep(600)"
    )
    with _python(code, env={**os.environ, "MARK_OF_TEST": "8a1"}) as process:
        pids = sorted((process.pid, *(int(process.stdout.readline()) for _ in range(2))))
        assert marked_processes("MARK_OF_TEST=8a1") == pids
        end_marked("MARK_OF_TEST=8a1")
        assert process.wait(timeout=10) == -9
    assert [start_ticks(pid) for pid in pids] == [0, 0, 0]


def test_session_that_ignores_sigterm_is_killed():
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    with _python(code) as process:
        assert process.stdout.readline() == "up\n"
        end_session(process.pid, grace=0.1)
        assert process.wait(timeout=10) == -9


# -- Timing, queues, faults -------------------------------------------------------


def test_paces():
    assert parse_timing("quick") is TIMINGS["quick"]
    changed = parse_timing("production, heartbeat=30 ,poll=2,event_states=true")
    assert (changed.heartbeat, changed.poll, changed.event_states, changed.finalise) == (30.0, 2, True, 60.0)


@pytest.mark.parametrize(
    "text",
    ["slow", "quick,speed=1", "quick,poll=0", "quick,poll=1.5", "quick,heartbeat=-1", "quick,heartbeat"],
)
def test_bad_pace_is_refused_by_name(text):
    with pytest.raises(ValueError, match="pace"):
        parse_timing(text)


def test_queues_are_read(tmp_path):
    path = tmp_path / "queues.yaml"
    path.write_text("SMALL: {cores: 1, memory: 2000, walltime: 60, cloud: US}\nANY:\n")
    queues = read_queues(path)
    assert queues.get("SMALL") == Queue(1, 2000, 60, "US")
    assert queues.accepts("ANY")
    assert not queues.accepts("OTHER")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[]", "mapping"),
        ("A: {ram: 1}", "queue A: 'ram' is not known; known: cores, memory, walltime, cloud, site"),
        ("A: {cores: -1}", "queue A: cores is -1, not a number of at least 0"),
        ("A: {cores: x}", "queue A: cores is 'x': input should be a valid integer"),
        ("A: 7", "queue A: 7 is not a mapping of cores, memory"),
        ("A: {cores: 1", "not YAML"),
    ],
)
def test_bad_queues_are_refused_by_name(tmp_path, text, named):
    path = tmp_path / "queues.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=named):
        read_queues(path)


def test_faults_of_jobs():
    rules = [
        {"action": "fail", "match": "isr:12", "exit_code": 3, "attempts": 1},
        {"action": "delay", "match": "_isr_", "seconds": 2, "times": 1},
        {"action": "lose", "match": "coadd"},
    ]
    faults = Faults(parse_faults(rules))
    first = faults.for_job(_order())
    assert (first.exit_code, first.delay, first.lose) == (3, 2.0, False)
    second = faults.for_job(_order(attempt=2))
    assert (second.exit_code, second.delay) == (None, 0.0)
    assert faults.for_job(_order(pseudo_input="coadd:1")).lose
    faults.set([])
    assert faults.for_job(_order()).exit_code is None


def test_faults_of_messages_and_commands():
    rules = [
        {"action": "drop", "target": "command", "match": "abort", "times": 1},
        {"action": "duplicate", "target": "to_idds", "match": "job_status"},
    ]
    faults = Faults(parse_faults(rules))
    assert faults.flow("command", "abort", "x") == []
    assert faults.flow("command", "abort", "x") == ["x"]
    assert faults.flow("to_idds", "job_status", "x") == ["x", "x"]
    assert faults.flow("to_panda", "job_status", "x") == ["x"]


def test_fault_with_a_probability():
    rules = parse_faults([{"action": "drop", "target": "to_idds", "probability": 0.5}])
    faults = Faults(rules, chance=random.Random(1))
    passed = sum(len(faults.flow("to_idds", "m", 1)) for _ in range(1000))
    assert 400 < passed < 600


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ({}, "list"),
        ([1], "1 is no rule"),
        ([{"match": "x"}], "action"),
        ([{"action": "burn"}], "burn"),
        ([{"action": "drop"}], "target job"),
        ([{"action": "fail", "target": "moon"}], "moon"),
        ([{"action": "fail", "match": "("}], "regular expression"),
        ([{"action": "fail", "when": 1}], "'when' is not known; known: action, target"),
        ([{"action": "delay", "seconds": "long"}], "seconds is 'long': input should be a valid number"),
    ],
)
def test_bad_faults_are_refused_by_name(rules, named):
    with pytest.raises(ValueError, match=named):
        parse_faults(rules)


def test_faults_are_read_from_yaml(tmp_path):
    path = tmp_path / "faults.yaml"
    path.write_text("- {action: lose, match: 'isr:[0-3]'}\n")
    assert [rule.match for rule in read_faults(path)] == ["isr:[0-3]"]


# -- State directory, settings ------------------------------------------------------


def test_state_directory_by_variables():
    assert state_directory({"HOME": "/h"}) == Path("/h/.local/state/panda_local")
    assert state_directory({"HOME": "/h", "XDG_STATE_HOME": "/s"}) == Path("/s/panda_local")
    assert state_directory({"HOME": "/h", "XDG_STATE_HOME": "relative"}) == Path(
        "/h/.local/state/panda_local"
    )
    assert state_directory({"HOME": "/h", "PANDA_LOCAL_DIR": "/d"}) == Path("/d")


def _endpoint(directory, **values):
    given = {
        "url": "http://127.0.0.1:9/server/panda",
        "pid": os.getpid(),
        "started": start_ticks(os.getpid()),
    }
    return Endpoint(**{**given, "version": "1", "directory": str(directory), **values})


def test_endpoint_is_kept_privately(tmp_path):
    endpoint = _endpoint(tmp_path)
    write_endpoint(endpoint)
    assert read_endpoint(tmp_path) == endpoint
    assert (tmp_path / "endpoint.json").stat().st_mode & 0o077 == 0
    variables = environment(endpoint)
    assert variables["PANDA_URL"] == variables["PANDA_URL_SSL"] == variables["PANDACACHE_URL"] == endpoint.url
    assert (variables["PANDA_AUTH"], variables["PANDA_AUTH_VO"]) == ("oidc", "local")
    write_token(token_folder(tmp_path), "a.b.c")
    assert endpoint.token == "a.b.c"
    token = Path(variables["PANDA_CONFIG_ROOT"], ".token")
    assert (token.stat().st_mode & 0o777, token.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert "a.b.c" not in str(variables) + (tmp_path / "endpoint.json").read_text()
    write_token(token_folder(tmp_path), None)
    with pytest.raises(LocalPandaError, match="cannot be read"):
        endpoint.token  # noqa: B018


def test_a_token_goes_to_the_own_server_only(tmp_path):
    variables = environment(_endpoint(tmp_path))
    assert find_own_panda(variables) == tmp_path
    elsewhere = {**variables, "PANDA_CONFIG_ROOT": str(tmp_path)}
    assert find_own_panda(elsewhere) is None
    check_own_panda(elsewhere)
    with pytest.raises(LocalPandaError, match="no embedded PanDA runs"):
        check_own_panda(variables)
    write_endpoint(_endpoint(tmp_path))
    check_own_panda(variables)
    for name in ("PANDA_URL", "PANDA_URL_SSL", "PANDACACHE_URL"):
        for url in ("http://127.0.0.1:10/server/panda", "https://127.0.0.1:9", "http://panda.example:9/x"):
            with pytest.raises(LocalPandaError, match=f"{name} is {url}"):
                check_own_panda({**variables, name: url})
    write_endpoint(_endpoint(tmp_path, started=1))
    with pytest.raises(LocalPandaError, match="does not run any more"):
        check_own_panda(variables)


@pytest.mark.parametrize("directory", [None, "", "elsewhere"])
def test_a_token_stays_that_of_its_server_in_a_shell_that_was_changed(tmp_path, directory):
    variables = environment(_endpoint(tmp_path))
    del variables["PANDA_LOCAL_DIR"]
    if directory is not None:
        variables["PANDA_LOCAL_DIR"] = directory
    # No more than a folder's name: this may be that of any user of panda-client.
    assert find_own_panda(variables) is None
    (tmp_path / "lock").touch()
    assert find_own_panda(variables) == tmp_path
    with pytest.raises(LocalPandaError, match=f"no embedded PanDA runs with {tmp_path}"):
        check_own_panda(variables)


def test_uploads_of_one_name_do_not_mix(tmp_path):
    cache = FileCache(tmp_path / "cache")

    class Slow(io.BytesIO):
        def read(self, size=-1):
            time.sleep(0.001)
            return super().read(1000)

    contents = [bytes([number]) * 50_000 for number in range(8)]
    threads = [threading.Thread(target=cache.put, args=("sources.x", Slow(content))) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.path("sources.x").read_bytes() in contents
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["sources.x"]


def test_folders_of_others_and_links_are_refused(tmp_path):
    made = make_private_folder(tmp_path / "a" / "b")
    made.chmod(0o777)
    assert make_private_folder(made).stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(made)
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(LocalPandaError, match=name):
            make_private_folder(tmp_path / name)
    with pytest.raises(LocalPandaError, match="link"):
        FileCache(tmp_path / "link")
    if os.getuid() == 0:
        os.chown(made, 12345, 12345)
        with pytest.raises(LocalPandaError, match="another user"):
            FileCache(made)


def test_stale_endpoints_are_recognised(tmp_path):
    assert instance.find(tmp_path) is None
    (tmp_path / "endpoint.json").write_text("{")
    assert instance.find(tmp_path) is None
    write_endpoint(_endpoint(tmp_path, started=1))
    assert instance.find(tmp_path) is None, "another process of the same number"
    assert instance.stop(tmp_path) is False
    assert not (tmp_path / "endpoint.json").exists()
    write_endpoint(_endpoint(tmp_path))
    assert instance.find(tmp_path) == _endpoint(tmp_path)


@pytest.mark.slow
@pytest.mark.newest
def test_without_the_extra_it_is_said_what_to_install(tmp_path):
    """The plain plugin has no psutil, and imports these modules all the same."""
    code = (
        "import sys\n"
        "from lsst.ctrl.bps.panda.errors import LocalPandaError\n"
        "sys.modules['psutil'] = None\n"
        "from lsst.ctrl.bps.panda.local import instance\n"
        "assert instance.find(sys.argv[1]) is None\n"
        "for action in (instance.start, instance.stop):\n"
        "    try:\n"
        "        action(sys.argv[1])\n"
        "    except LocalPandaError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.stderr == ""
    said = done.stdout.splitlines()
    assert len(said) == 2
    assert all("psutil; install it with: pip install 'lsst-ctrl-bps-panda[local]'" in line for line in said)


def test_settings_are_remembered(tmp_path):
    assert read_settings(tmp_path) == ServerSettings()
    write_settings(tmp_path, {"slots": 3, "pace": None})
    write_settings(tmp_path, {"pace": "production"})
    settings = read_settings(tmp_path)
    assert (settings.slots, settings.pace) == (3, "production")
    assert (tmp_path / "settings.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"host": "0.0.0.0"}, "127.0.0.1 only"),
        ({"slots": -1}, "-1"),
        ({"keep_work": "perhaps"}, "perhaps"),
        ({"database": "mysql://x"}, "mysql"),
        ({"pace": "slow"}, "slow"),
        ({"queues": "/nowhere.yaml"}, "/nowhere.yaml"),
        ({"faults": "/nowhere.yaml"}, "/nowhere.yaml"),
        ({"slots": "two"}, "settings.json: slots is 'two': input should be a valid integer"),
    ],
)
def test_bad_settings_are_refused(tmp_path, changes, named):
    with pytest.raises(LocalPandaError, match=named):
        write_settings(tmp_path, changes)
    assert read_settings(tmp_path) == ServerSettings()


@pytest.mark.parametrize("text", ["{", "[]", "7"])
def test_settings_that_cannot_be_read_are_named(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(LocalPandaError, match=r"settings\.json cannot be read .*; remove it"):
        read_settings(tmp_path)


def test_a_directory_with_files_of_others_is_not_taken(tmp_path):
    """It would be made private, and removed by "clean"."""
    (tmp_path / "precious").touch()
    tmp_path.chmod(0o755)
    with pytest.raises(LocalPandaError, match="holds other files"):
        instance.start(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_clean_removes_only_what_is_ours(tmp_path):
    assert instance.clean(tmp_path / "none") is False
    (tmp_path / "precious").touch()
    with pytest.raises(LocalPandaError, match="no state directory"):
        instance.clean(tmp_path)
    write_settings(tmp_path, {})
    write_endpoint(_endpoint(tmp_path))
    with pytest.raises(LocalPandaError, match="stop it first"):
        instance.clean(tmp_path)
    (tmp_path / "endpoint.json").unlink()
    assert instance.clean(tmp_path)
    assert not tmp_path.exists()


# -- File cache, names ------------------------------------------------------------


def test_file_cache(tmp_path):
    cache = FileCache(tmp_path / "cache")
    assert cache.put("jobO.1.tar.gz", io.BytesIO(b"data")) == 4
    assert cache.path("jobO.1.tar.gz").read_bytes() == b"data"
    os.utime(cache.path("jobO.1.tar.gz"), (0, 0))
    assert cache.touch("jobO.1.tar.gz")
    assert cache.path("jobO.1.tar.gz").stat().st_mtime > time.time() - 1000
    assert not cache.touch("absent")
    cache.delete("jobO.1.tar.gz")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "/etc/passwd"])
def test_bad_names_are_refused(tmp_path, name):
    with pytest.raises(CacheError, match="not a name"):
        FileCache(tmp_path).put(name, io.BytesIO(b""))


def test_file_that_is_too_large_is_refused_and_leaves_nothing(tmp_path):
    cache = FileCache(tmp_path)
    assert cache.limit("sources.x") > cache.limit("x.log.tgz") > cache.limit("jobO.x") == 10 * 1024 * 1024
    with pytest.raises(CacheError, match="limit"):
        cache.put("jobO.big", io.BytesIO(b"x" * (10 * 1024 * 1024 + 1)))
    assert list(tmp_path.iterdir()) == []
