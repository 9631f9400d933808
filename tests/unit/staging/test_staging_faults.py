"""Stores that refuse, cut, hang, are full or lose what they were given."""

from __future__ import annotations

import socket
import threading

import pytest

from lsst.ctrl.bps.panda.errors import StagingError
from lsst.ctrl.bps.panda.plan.model import StagedFile
from lsst.ctrl.bps.panda.staging import (
    StagingSettings,
    check_area,
    read_manifest,
    remove_marker,
    stage,
    write_marker,
)


@pytest.fixture
def inputs(tmp_path):
    files = []
    for number in range(6):
        path = tmp_path / f"{number}.txt"
        path.write_text(f"{number}\n" * 100)
        files.append(StagedFile(f"k{number}", str(path), f"part/{number}.txt"))
    return files


@pytest.fixture
def server(dav_double, resources_environment):
    # The fixture of the environment must be last: it knows of no port.
    return dav_double


def run(files, server, *, retries=2, **options):
    """Stage without waiting between attempts."""
    settings = StagingSettings(server.url + "run/", retries=retries, max_workers=2, **options)
    return stage(files, settings, sleep=lambda _: None)


def refuse_when(server, words, status, *, times=10**6, methods=("PUT",), keep=None):
    """Let requests fail whose path holds some words; count them."""
    from panda_servers.dav_double import Fault

    seen = []

    def faults(method, path):
        if method in methods and words in path and len(seen) < times:
            seen.append((method, path))
            return Fault(status=status, keep=keep)
        return None

    server.faults = faults
    return seen


def staged(server):
    return {path for path in server.files if path.startswith("/run/")}


def test_the_double_itself_serves_as_staging_area(server, tmp_path):
    from panda_servers.staging_exercise import exercise

    exercise(server.url + "u/run/", tmp_path, keeps_notes=False)
    server.gives_adler32 = True
    assert not any("/.staging-" in path for path in server.files)


def test_plain_http_server_that_takes_files_serves_as_staging_area(server, tmp_path):
    from panda_servers.staging_exercise import exercise

    server.is_webdav = False
    exercise(server.url + "run/", tmp_path, keeps_notes=False)
    assert not {method for method, _ in server.requests} & {"MOVE", "MKCOL"}


def test_server_that_recovers_is_used(server, inputs):
    seen = refuse_when(server, "/run/", "418 I'm a teapot", times=2)
    assert run(inputs, server).copied == 6
    assert len(seen) == 2


def test_full_store_is_one_error_that_lists_every_file(server, inputs):
    run(inputs[:2], server)
    refuse_when(server, "/run/.staging-", "507 Insufficient Storage")
    with pytest.raises(StagingError) as caught:
        run(inputs, server)
    head, *lines = str(caught.value).splitlines()
    assert head.startswith("4 of 6 files")
    assert [line.split(":")[0].strip() for line in lines] == [file.name for file in inputs[2:]]
    assert sum("no space left in the staging area" in line for line in lines) >= 3
    assert read_manifest(server.url + "run/") is None
    server.faults = lambda method, path: None
    assert run(inputs, server).copied >= 4


def test_every_file_that_fails_is_listed_with_its_cause(server, inputs):
    from panda_servers.dav_double import Fault

    # Names that need escapes are written in place, so the path tells which file it is.
    files = [StagedFile(file.key, file.source, file.name.replace("part/", "part ")) for file in inputs]
    causes = {"part 1": "507 Insufficient Storage", "part 4": "413 Payload Too Large"}
    server.faults = lambda method, path: next(
        (Fault(status=status) for words, status in causes.items() if method == "PUT" and words in path), None
    )
    with pytest.raises(StagingError) as caught:
        run(files, server)
    head, *lines = str(caught.value).splitlines()
    assert head.startswith("2 of 6 files could not be staged to " + server.url)
    assert [line.split(":")[0].strip() for line in lines] == ["part 1.txt", "part 4.txt"]
    assert "no space left" in lines[0]
    assert "larger than the store accepts" in lines[1]
    assert read_manifest(server.url + "run/") is None
    server.faults = lambda method, path: None
    report = run(files, server)
    assert (report.present, report.copied) == (4, 2)


@pytest.mark.parametrize("name", ["part/3.txt", "part 3.txt"], ids=["moved", "in place"])
def test_store_that_cuts_files_is_found_out(server, inputs, name):
    files = [StagedFile("k", inputs[3].source, name)]
    words = "/run/.staging-" if "/3" in name else name
    from panda_servers.dav_double import Fault

    def faults(method, path):
        # The small files of our own are shorter than what it keeps.
        return Fault(keep=90) if method == "PUT" and words in path else None

    server.faults = faults
    with pytest.raises(StagingError, match=r"holds 90 of 200 bytes"):
        run(files, server)
    assert "/run/" + name not in server.files
    assert not any(len(content) == 90 for content in server.files.values())


def test_store_that_cuts_once_is_tried_again(server, inputs):
    refuse_when(server, "part 3", "", times=1, keep=10)
    # The request that asks for a redirection has no body and is not the one that counts.
    files = [StagedFile("k", inputs[3].source, "part 3.txt")]
    assert run(files, server).copied == 1
    assert len(server.files["/run/part 3.txt"]) == 200


def test_store_that_loses_a_file_is_found_out(server, inputs):
    answer = server._move

    def lose(path, body, environment):
        result = answer(path, body, environment)
        server.files.pop("/run/part/2.txt", None)
        return result

    server._move = lose
    with pytest.raises(StagingError, match=r"part/2.txt: the store said yes, but has no such file"):
        run(inputs, server)


def test_wrong_content_of_the_right_size_is_found_by_checksum(server, inputs):
    server.gives_adler32 = True
    answer = server._put

    def garble(path, body, environment):
        return answer(path, body.replace(b"5", b"6"), environment)

    server._put = garble
    with pytest.raises(StagingError, match=r"part/5.txt: the store's checksum of it differs"):
        run(inputs, server)


def test_store_that_hangs_is_given_up(server, inputs):
    from panda_servers.dav_double import Fault

    release = threading.Event()
    server.faults = lambda method, path: Fault(wait=release) if method == "PUT" and "part 2" in path else None
    files = [StagedFile(file.key, file.source, file.name.replace("part/", "part ")) for file in inputs]
    try:
        with pytest.raises(StagingError, match=r"part 2.txt: TimeoutError: not done within") as caught:
            run(files, server, timeout=2)
        assert "1 of 6 files" in str(caught.value)
    finally:
        release.set()


def test_store_that_is_down_for_all_is_not_asked_for_each_file(server, tmp_path):
    files = []
    for number in range(60):
        (tmp_path / f"{number}").write_text("x")
        files.append(StagedFile(f"k{number}", str(tmp_path / f"{number}"), f"part {number}"))
    seen = refuse_when(server, "part", "403 Forbidden")
    with pytest.raises(StagingError) as caught:
        run(files, server)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 60
    assert sum("the store refuses" in line for line in lines) == 3
    assert sum("not tried" in line for line in lines) == 57
    assert len({path for _, path in seen}) < 10


def test_refused_log_in_is_not_taken_for_a_missing_file(server, inputs):
    server.token = "sesame"
    settings = StagingSettings(server.url + "run/", retries=0)
    (problem,) = check_area(settings)
    assert "sent over https only" in problem
    assert "401" in problem
    with pytest.raises(StagingError, match="sent over https only"):
        run(inputs, server)
    with pytest.raises(StagingError, match="sent over https only"):
        read_manifest(settings.area)
    assert server.files == {}


def test_token_is_not_sent_without_tls(dav_double, resources_environment, inputs):
    resources_environment(LSST_HTTP_AUTH_BEARER_TOKEN="sesame")
    dav_double.token = "sesame"
    (problem,) = check_area(StagingSettings(dav_double.url + "run/", retries=0))
    assert "sent over https only" in problem
    assert "sesame" not in problem


def test_read_only_server_is_a_problem_before_anything_is_staged(server):
    refuse_when(server, "", "405 Method Not Allowed", methods=("PUT", "MKCOL"))
    (problem,) = check_area(StagingSettings(server.url + "run/", retries=0))
    assert "405" in problem
    assert server.url in problem


def test_server_that_forgets_is_a_problem(server):
    answer = server._get
    server._get = lambda path, body, environment: (
        ("200 OK", {}, b"else") if "probe" in path else answer(path, body, environment)
    )
    (problem,) = check_area(StagingSettings(server.url + "run/", retries=0))
    assert "became something else" in problem


def test_host_that_is_down_is_reported_soon(resources_environment, inputs):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        area = f"http://127.0.0.1:{listener.getsockname()[1]}/run/"
        settings = StagingSettings(area, retries=1)
        (problem,) = check_area(settings, sleep=lambda _: None)
        assert "nothing listens" in problem
        with pytest.raises(StagingError, match="nothing listens"):
            stage(inputs, settings, sleep=lambda _: None)
        assert not write_marker(area, ".cancelled", "x")
        assert not remove_marker(area, ".cancelled")


def test_unknown_host_is_named(resources_environment):
    (problem,) = check_area(StagingSettings("https://no-such-host.invalid/run/", retries=0))
    assert "host is not known" in problem
    assert "no-such-host.invalid" in problem


def test_manifest_that_cannot_be_written_is_an_error(server, inputs):
    answer = server._move

    def refuse(path, body, environment):
        if environment["HTTP_DESTINATION"].endswith(".staged.json"):
            return "403 Forbidden", {}, b""
        return answer(path, body, environment)

    server._move = refuse
    with pytest.raises(StagingError, match=r"writing .staged.json .*refuses"):
        run(inputs, server)
    assert read_manifest(server.url + "run/") is None
    server._move = answer
    assert run(inputs, server).present == 6


def test_marker_does_not_need_a_manifest(server):
    assert write_marker(server.url + "run/", ".cancelled", "text")
    assert server.files == {"/run/.cancelled": b"text"}
    assert remove_marker(server.url + "run/", ".cancelled")
    assert server.files == {}
