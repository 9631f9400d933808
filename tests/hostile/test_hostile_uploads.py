"""Uploads that meet others of the same name, are killed, or come to an area that is not what it was."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

from lsst.ctrl.bps.panda.errors import StagingError
from lsst.ctrl.bps.panda.files import OLD_SECONDS, make_temporary_name, replacing
from lsst.ctrl.bps.panda.plan.model import StagedFile
from lsst.ctrl.bps.panda.runs.files import collect_outputs
from lsst.ctrl.bps.panda.staging import StagingSettings, check_area, read_manifest, stage

UPLOADERS = 6
SIZE = 5_000_000

PROGRAM = """
import os, sys
from lsst.ctrl.bps.panda.plan.model import StagedFile
from lsst.ctrl.bps.panda.staging import StagingSettings, stage
source, name, area = sys.argv[1:]
sys.stdout.write("ready\\n"); sys.stdout.flush()
sys.stdin.readline()
stage([StagedFile("k", source, name)], StagingSettings(area, retries=2))
"""


def start(source: Path, name: str, area: str) -> subprocess.Popen:
    """Start a process that stages a file when it is told so."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(source), name, area],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def write_sources(folder: Path) -> list[Path]:
    """Write files of the same size, each of one letter."""
    folder.mkdir()
    sources = [folder / letter for letter in "abcdefgh"[:UPLOADERS]]
    for source in sources:
        source.write_bytes(source.name.encode() * SIZE)
    return sources


def upload_at_once(sources: list[Path], name: str, area: str) -> list[str]:
    """Let a process for each source stage it under one name; the errors."""
    processes = [start(source, name, area) for source in sources]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    errors = [process.communicate(timeout=120)[1] for process in processes]
    return [error for process, error in zip(processes, errors, strict=True) if process.returncode]


def assert_whole(data: bytes) -> None:
    assert len(data) == SIZE
    assert len(set(data)) == 1, f"mixed from {bytes(sorted(set(data)))!r}"


@pytest.mark.slow
def test_one_name_in_a_local_area(tmp_path):
    area = tmp_path / "area"
    assert upload_at_once(write_sources(tmp_path / "in"), "big.bin", str(area)) == []
    assert_whole((area / "big.bin").read_bytes())
    assert sorted(path.name for path in area.iterdir()) == [".staged.json", "big.bin"]


@pytest.mark.slow
def test_one_name_on_a_web_server(webdav_server, resources_environment, tmp_path):
    area = webdav_server.folder / "uploads"
    for _ in range(2):
        sources = write_sources(tmp_path / uuid.uuid4().hex)[:3]
        errors = upload_at_once(sources, "big.bin", f"{webdav_server.url}uploads/")
        assert len(errors) < len(sources)
        assert_whole((area / "big.bin").read_bytes())
    assert not [path.name for path in area.iterdir() if path.name.startswith(".staging-")]


def test_another_writes_where_a_web_server_takes_files_in_place(dav_double, resources_environment, tmp_path):
    """A name with a blank is written in place; here another of the same size comes in between."""
    source = tmp_path / "file"
    source.write_bytes(b"a" * 1000)
    target = "/run/two words"
    mixed = [b"a" * 500 + b"b" * 500]

    def meddle(method, path):
        # The first PUT is empty: it only asks where to send the content.
        if dav_double.files.get(target) == b"a" * 1000 and mixed:
            dav_double.files[target] = mixed.pop()

    dav_double.faults = meddle
    settings = StagingSettings(dav_double.url + "run/", retries=1)
    stage([StagedFile("k", str(source), "two words")], settings, sleep=lambda seconds: None)
    assert dav_double.files[target] == b"a" * 1000
    assert mixed == []


def test_outputs_of_two_runs_with_one_destination(tmp_path):
    """A page and a command in one process fetch outputs at the same time."""
    destination = tmp_path / "out" / "result"
    destination.parent.mkdir()

    def fetch(area: Path, barrier: threading.Barrier, problems: list[str]) -> None:
        barrier.wait()
        problems.extend(collect_outputs([("k", str(destination))], f"{area}/", run="r"))

    for number in range(10):
        problems: list[str] = []
        threads = []
        barrier = threading.Barrier(4)
        for letter in "abcd":
            area = tmp_path / f"{letter}{number}"
            left = area / "outputs" / "k" / "result"
            left.parent.mkdir(parents=True)
            left.write_bytes(letter.encode() * SIZE)

            threads.append(threading.Thread(target=fetch, args=(area, barrier, problems)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        assert_whole(destination.read_bytes())
    assert [path.name for path in destination.parent.iterdir()] == ["result"]


def test_replacing_by_threads(tmp_path):
    """Each file is of one thread, nothing is left behind, and the umask of the process stays."""
    target = tmp_path / "file"
    failures: list[BaseException] = []
    before = os.umask(0o027)
    try:

        def write(letter: str) -> None:
            try:
                for _ in range(50):
                    with replacing(target) as temporary:
                        temporary.write_bytes(letter.encode() * 100_000)
                    other = tmp_path / f"new {letter}"
                    other.touch()
                    assert other.stat().st_mode & 0o777 == 0o640
                    other.unlink()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        os.umask(before)
    assert failures == []
    assert len(set(target.read_bytes())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert target.stat().st_mode & 0o777 == 0o640


def test_temporary_names_tell_whose_they_are():
    names = {make_temporary_name("panda_run.json") for _ in range(1000)}
    assert len(names) == 1000
    pattern = rf"\.panda_run\.json\.\w*-{os.getpid()}-{threading.get_native_id()}-[0-9a-f]{{16}}\.part"
    assert all(re.fullmatch(pattern, name) for name in names)
    assert len(make_temporary_name("é" * 255).encode()) <= 255


@pytest.mark.slow
def test_upload_that_is_killed(tmp_path):
    """Nothing has its name, what is left is recognised, and the next staging is not disturbed by it."""
    source, area = tmp_path / "big", tmp_path / "area"
    with open(source, "wb") as stream:
        stream.truncate(4 << 30)
    process = start(source, "big.bin", str(area))
    with process:
        process.stdin.write("\n")
        process.stdin.flush()
        until = time.monotonic() + 60
        while not list(area.glob(".staging/*")):
            assert time.monotonic() < until
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    (left,) = area.glob(".staging/*")
    assert f"-{process.pid}-" in left.name
    assert not (area / "big.bin").exists()
    source.write_bytes(b"small")
    stage([StagedFile("k", str(source), "big.bin")], StagingSettings(str(area)))
    assert (area / "big.bin").read_bytes() == b"small"
    # It might be one of somebody who is at work; a day later it is not.
    assert left.exists()
    old = time.time() - OLD_SECONDS - 60
    os.utime(left, (old, old))
    source.write_bytes(b"other")
    stage([StagedFile("k", str(source), "big.bin")], StagingSettings(str(area)))
    assert sorted(path.name for path in area.iterdir()) == [".staged.json", "big.bin"]


# --- areas that are not what they were ---------------------------------------------


@pytest.mark.parametrize("linked", ["sub", "sub/below", ".staging"])
def test_link_that_leads_out_of_the_area(tmp_path, linked):
    area, outside = tmp_path / "area", tmp_path / "outside"
    outside.mkdir()
    (area / linked).parent.mkdir(parents=True)
    (area / linked).symlink_to(outside)
    source = tmp_path / "file"
    source.write_text("content")
    with pytest.raises(StagingError, match="symbolic link leads out of the staging area") as caught:
        stage([StagedFile("k", str(source), "sub/below/file")], StagingSettings(str(area), retries=0))
    assert "sub/below/file" in str(caught.value) or ".staging" in str(caught.value)
    assert list(outside.iterdir()) == []


def test_area_that_is_a_link(tmp_path):
    """A link to the area, or above it, is the user's own."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    source = tmp_path / "file"
    source.write_text("content")
    stage([StagedFile("k", str(source), "sub/file")], StagingSettings(f"{tmp_path}/link"))
    assert (tmp_path / "real" / "sub" / "file").read_text() == "content"


@pytest.mark.parametrize("name", [".staged.json", ".staging.json", "file"])
def test_fifo_in_the_area(tmp_path, name):
    """Nobody waits for its writer."""
    area = tmp_path / "area"
    area.mkdir()
    os.mkfifo(area / name)
    source = tmp_path / "file"
    source.write_text("content")
    settings = StagingSettings(str(area), retries=0)
    if name == "file":
        stage([StagedFile("k", str(source), "file")], settings)
        assert (area / "file").read_text() == "content"
        return
    with pytest.raises(StagingError, match="is not a file"):
        stage([StagedFile("k", str(source), "file")], settings)
    if name == ".staged.json":
        with pytest.raises(StagingError, match="is not a file"):
            read_manifest(str(area))
    assert check_area(settings) == ()


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"format": 1, "files": {"../x": {"size": 1, "adler32": "0"}}}',
        '{"format": 1, "files": {"/etc/x": {"size": 1, "adler32": "0"}}}',
        '{"format": 1, "files": {"x": {"size": -1, "adler32": "0"}}}',
    ],
)
def test_manifest_that_is_none(tmp_path, text):
    (tmp_path / "area").mkdir()
    (tmp_path / "area" / ".staged.json").write_text(text)
    with pytest.raises(StagingError, match="cannot read"):
        read_manifest(str(tmp_path / "area"))
    source = tmp_path / "file"
    source.write_text("content")
    stage([StagedFile("k", str(source), "file")], StagingSettings(str(tmp_path / "area")))
    assert set(read_manifest(str(tmp_path / "area")).files) == {"file"}


@pytest.mark.slow
def test_name_that_a_store_lists(s3_server, resources_environment, tmp_path):
    """An object store takes any name for that of an object."""
    import boto3

    resources_environment(**s3_server.client_environment)
    bucket = f"bucket-{uuid.uuid4().hex}"
    s3_server.make_bucket(bucket)
    client = boto3.client("s3", endpoint_url=s3_server.endpoint)
    client.put_object(Bucket=bucket, Key="in/../../evil", Body=b"evil")
    client.put_object(Bucket=bucket, Key="in/good", Body=b"good")
    area = tmp_path / "a" / "b" / "area"
    with pytest.raises(StagingError, match="could not be staged"):
        stage([StagedFile("k", f"s3://{bucket}/in/", "in/", is_directory=True)], StagingSettings(str(area)))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
