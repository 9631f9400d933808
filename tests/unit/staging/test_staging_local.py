"""Staging to a file system."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import stat
import threading
import traceback
import zlib
from concurrent.futures import ThreadPoolExecutor

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
from lsst.ctrl.bps.panda.staging.area import show_staging

NOBODY = 65534


def run_apart(function, *, as_nobody=False) -> str:
    """Run a function in a process of its own; its result, or its error."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reader)
            if as_nobody and os.getuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            os.write(writer, str(function()).encode())
        except BaseException:
            os.write(writer, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        text = stream.read().decode()
    os.waitpid(child, 0)
    return text


@pytest.fixture
def inputs(tmp_path):
    """Twenty files, and their entries."""
    folder = tmp_path / "in"
    folder.mkdir()
    files = []
    for number in range(20):
        path = folder / f"{number}.txt"
        path.write_text(f"{number}\n" * 100)
        files.append(StagedFile(f"k{number}", str(path), f"part/{number}.txt"))
    return files


@pytest.fixture
def settings(tmp_path):
    return StagingSettings(f"file://{tmp_path}/area/run/", max_workers=3, retries=0)


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("form", ["file://{}/area/", "file:{}/area/", "file://localhost{}/area", "{}/area"])
def test_every_form_of_a_local_area_works(tmp_path, form):
    from panda_servers.staging_exercise import exercise, exercise_removal

    exercise(form.format(tmp_path), tmp_path)
    assert sorted(path.name for path in (tmp_path / "area").iterdir()) == [
        ".run.json", ".staged.json", "attempts", "butler.yaml", "graph", "input tree",
    ]  # fmt: skip
    (tmp_path / "area" / "link").symlink_to(tmp_path / "tree")
    exercise_removal(form.format(tmp_path))
    assert not (tmp_path / "area").exists()
    assert (tmp_path / "tree" / "empty.txt").is_file()


def test_bare_path_is_not_unquoted_and_uri_is(tmp_path, inputs):
    stage(inputs, StagingSettings(f"{tmp_path}/a%20b/"))
    stage(inputs, StagingSettings(f"file://{tmp_path}/c%20d/"))
    assert {path.name for path in tmp_path.iterdir()} == {"in", "a%20b", "c d"}


def test_manifest_is_what_the_worker_expects(settings, inputs, tmp_path):
    stage(inputs, settings)
    value = json.loads((tmp_path / "area/run/.staged.json").read_text())
    content = ("7\n" * 100).encode()
    assert value["format"] == 1
    assert value["files"]["part/7.txt"] == {"size": 200, "adler32": f"{zlib.adler32(content):08x}"}
    assert len(value["files"]) == 20


def test_nothing_staged_is_a_manifest_without_files(settings):
    assert stage([], settings).files == ()
    assert read_manifest(settings.area).files == {}


def test_tree_is_kept_with_links_empty_folders_and_permissions(tmp_path, settings):
    tree = tmp_path / "tree"
    (tree / "a/b").mkdir(parents=True)
    (tree / "hollow/inner").mkdir(parents=True)
    (tree / "a/run.sh").write_text("#!/bin/sh\n")
    (tree / "a/run.sh").chmod(0o755)
    (tree / "a/b/run.sh").write_text("other\n")
    (tree / "link").symlink_to(tree / "a/b")
    (tree / "file-link").symlink_to("a/run.sh")
    stage([StagedFile("t", str(tree), "t/", is_directory=True)], settings)
    area = tmp_path / "area/run/t"
    assert contents(area) == {
        "a/run.sh": b"#!/bin/sh\n",
        "a/b/run.sh": b"other\n",
        "link/run.sh": b"other\n",
        "file-link": b"#!/bin/sh\n",
    }
    assert (area / "hollow/inner").is_dir()
    assert os.access(area / "a/run.sh", os.X_OK)
    assert not (area / "a/b/run.sh").stat().st_mode & stat.S_IXUSR


def test_executable_is_made_so(tmp_path, settings):
    (tmp_path / "runner.py").write_text("pass\n")
    stage([StagedFile("r", str(tmp_path / "runner.py"), "runner.py", executable=True)], settings)
    assert os.access(tmp_path / "area/run/runner.py", os.X_OK)


def test_group_gets_its_permissions(tmp_path, inputs):
    (tmp_path / "x").write_text("x")
    (tmp_path / "x").chmod(0o700)
    files = [*inputs, StagedFile("x", str(tmp_path / "x"), "deep/er/x")]
    settings = StagingSettings(f"{tmp_path}/u/someone/run/", group_permissions=True)
    old = os.umask(0o077)
    try:
        stage(files, settings)
    finally:
        os.umask(old)
    top = tmp_path / "u"
    for path in (top, *top.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.is_dir():
            assert mode & 0o2070 == 0o2070, (path, oct(mode))
        else:
            assert mode & 0o060 == 0o060, (path, oct(mode))
    assert (top / "someone/run/deep/er/x").stat().st_mode & stat.S_IXGRP


def test_without_group_permissions_the_umask_rules(tmp_path, inputs):
    old = os.umask(0o027)
    try:
        stage(inputs, StagingSettings(f"{tmp_path}/area/"))
    finally:
        os.umask(old)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "area").rglob("*") if path.is_file()}
    assert modes == {0o640}


def test_sources_that_cannot_be_read_are_all_listed_and_nothing_is_copied(tmp_path, settings, inputs):
    (tmp_path / "folder").mkdir()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/broken").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop/self").symlink_to(tmp_path / "loop")
    files = [
        *inputs,
        StagedFile("a", str(tmp_path / "missing"), "missing"),
        StagedFile("b", str(tmp_path / "folder"), "folder"),
        StagedFile("c", inputs[0].source, "file", is_directory=True),
        StagedFile("d", str(tmp_path / "tree"), "tree", is_directory=True),
        StagedFile("e", str(tmp_path / "pipe"), "pipe"),
        StagedFile("f", str(tmp_path / "loop"), "loop", is_directory=True),
    ]
    with pytest.raises(StagingError) as caught:
        stage(files, settings)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "missing",
        "folder",
        "file",
        "tree",
        "pipe",
        "loop",
    ]
    assert "No such file" in lines[1]
    assert "is a directory" in lines[2]
    assert "is not a directory" in lines[3]
    assert "without end" in lines[6]
    assert not (tmp_path / "area").exists()


def test_area_inside_a_source_is_refused(tmp_path):
    (tmp_path / "tree").mkdir()
    file = StagedFile("t", str(tmp_path / "tree"), "t", is_directory=True)
    with pytest.raises(StagingError, match="lies in it"):
        stage([file], StagingSettings(f"{tmp_path}/tree/area/"))


def test_half_staged_area_has_no_manifest_and_is_completed(tmp_path, settings, inputs):
    def die_early():
        stage(inputs, settings, progress=lambda done, total: os._exit(0) if done == 5 else None)

    assert run_apart(die_early) == ""
    assert read_manifest(settings.area) is None
    report = stage(inputs, settings)
    assert report.present >= 5
    assert report.present + report.copied == 20
    assert len(read_manifest(settings.area).files) == 20


def test_change_of_a_complete_area_takes_its_manifest_away_first(tmp_path, settings, inputs):
    stage(inputs, settings)
    (tmp_path / "in/3.txt").write_text("new")

    seen = []

    def look(done, total):
        if done > 19:
            seen.append(read_manifest(settings.area))

    stage(inputs, settings, progress=look)
    assert seen == [None]
    assert read_manifest(settings.area).files["part/3.txt"].size == 3


def test_damaged_manifest_is_an_error_to_read_and_no_obstacle_to_stage(tmp_path, settings, inputs, caplog):
    stage(inputs, settings)
    manifest = tmp_path / "area/run/.staged.json"
    for text in ("{", "[]", '{"format": 2}', '{"format": 1}', '{"format": 1, "files": {"a": 1}}'):
        manifest.write_text(text)
        with pytest.raises(StagingError, match="staged.json"):
            read_manifest(settings.area)
    with caplog.at_level(logging.WARNING):
        assert stage(inputs, settings).present == 20
    assert "damaged" in caplog.text
    assert len(read_manifest(settings.area).files) == 20


def test_file_that_is_the_source_itself_is_left_alone(tmp_path, inputs):
    own = tmp_path / "area/part/own.txt"
    own.parent.mkdir(parents=True)
    own.write_text("here already")
    report = stage([StagedFile("o", str(own), "part/own.txt")], StagingSettings(f"{tmp_path}/area/"))
    assert (report.present, report.copied) == (1, 0)
    assert own.read_text() == "here already"


def test_two_stagings_at_a_time_both_succeed(tmp_path, settings, inputs):
    reports, barrier = [], threading.Barrier(2)

    def work():
        barrier.wait()
        reports.append(stage(inputs, settings))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [report.copied + report.present for report in reports] == [20, 20]
    stage(inputs, settings)
    assert len(contents(tmp_path / "area/run")) == 21


def test_large_file_that_does_not_fit_leaves_nothing_half_named(tmp_path, settings, inputs):
    """The limit on the size of files stands for a full disk."""
    (tmp_path / "large").write_bytes(b"x" * 3_000_000)
    files = [*inputs, StagedFile("l", str(tmp_path / "large"), "large")]

    def with_little_space():
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
        stage(files, settings)

    text = run_apart(with_little_space)
    assert "1 of 21 files could not be staged" in text
    assert "large: larger than a file may be there" in text
    area = contents(tmp_path / "area/run")
    assert set(area) == {file.name for file in inputs} | {".staging.json"}
    assert stage(files, settings).copied == 1


def test_full_disk_is_named(tmp_path):
    """Where something is that is always full, it says so."""
    from lsst.ctrl.bps.panda.staging.transfers import describe_cause, is_permanent

    with open("/dev/full", "wb", buffering=0) as stream, pytest.raises(OSError) as caught:
        stream.write(b"x")
    assert describe_cause(caught.value).startswith("no space left in the staging area")
    assert is_permanent(caught.value)


def test_area_that_is_not_writable_is_a_problem(tmp_path, inputs):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o755)
    if os.getuid():
        closed.chmod(0o555)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and len(folder.parts) > 2:
            folder.chmod(folder.stat().st_mode | 0o011)
    settings = StagingSettings(f"{closed}/u/run/", retries=0)
    text = run_apart(lambda: check_area(settings), as_nobody=True)
    assert "permission denied" in text
    assert f"{closed}/u/run/" in text
    text = run_apart(lambda: stage(inputs, settings), as_nobody=True)
    assert "StagingError" in text
    assert "permission denied" in text


def test_area_of_another_user_without_group_permissions_is_a_problem(tmp_path):
    area = tmp_path / "area"
    area.mkdir()
    area.chmod(0o777)
    if os.getuid() == 0:
        for folder in (tmp_path, *tmp_path.parents):
            if folder.stat().st_uid == 0 and len(folder.parts) > 2:
                folder.chmod(folder.stat().st_mode | 0o011)
        settings = StagingSettings(f"{area}/", group_permissions=True)
        text = run_apart(lambda: check_area(settings), as_nobody=True)
        assert f"chmod g+rwxs {area}" in text
    assert check_area(StagingSettings(f"{area}/", group_permissions=True)) == ()
    assert area.stat().st_mode & 0o2070 == 0o2070


def test_check_leaves_nothing_behind(tmp_path):
    assert check_area(StagingSettings(f"{tmp_path}/u/someone/run/")) == ()
    assert list(tmp_path.iterdir()) == []


def test_file_in_the_way_is_named(tmp_path, inputs):
    (tmp_path / "u").write_text("a file")
    settings = StagingSettings(f"{tmp_path}/u/run/", retries=0)
    (problem,) = check_area(settings)
    assert "a file lies where a directory is needed" in problem
    with pytest.raises(StagingError, match="a file lies where a directory is needed"):
        stage(inputs, settings)


def test_directory_in_the_way_of_a_file_is_named(tmp_path, settings, inputs):
    (tmp_path / "area/run/part/4.txt").mkdir(parents=True)
    with pytest.raises(StagingError, match=r"part/4.txt: a directory lies where the file should go"):
        stage(inputs, settings)
    assert read_manifest(settings.area) is None


@pytest.mark.parametrize(
    ("area", "words"),
    [
        ("", "no staging area"),
        ("relative/area/", "relative"),
        ("file:relative/", "relative"),
        ("file://elsewhere/area/", "elsewhere"),
        ("ftp://host/area/", "'ftp'"),
        ("mem://area/", "'mem'"),
        ("$LSST_RUN_TEMP_SPACE/u/", "LSST_RUN_TEMP_SPACE"),
        ("file://${LSST_RUN_TEMP_SPACE}/u/", "LSST_RUN_TEMP_SPACE"),
        ("file:///data/{operator}/", "operator"),
        ("/data/<ENV:SPACE>/", "ENV:SPACE"),
        ("https://me:secret@host/area/", "password"),
        ("https://host/area?x=1", "no more"),
        ("s3:///area/", "host or bucket"),
    ],
)
def test_unusable_areas_are_explained_without_their_secrets(area, words, inputs):
    settings = StagingSettings(area)
    (problem,) = check_area(settings)
    assert words in problem
    assert "secret" not in problem
    with pytest.raises(StagingError) as caught:
        stage(inputs, settings)
    assert str(caught.value) == problem


@pytest.mark.parametrize(
    "options", [{"max_workers": 0}, {"retries": -1}, {"timeout": 0}, {"timeout": float("nan")}], ids=str
)
def test_settings_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        StagingSettings("/area/", **options)


def test_marker_is_left_and_removed(tmp_path):
    assert write_marker(f"{tmp_path}/", ".cancelled", "by someone\n")
    assert contents(tmp_path) == {".cancelled": b"by someone\n"}
    assert remove_marker(f"{tmp_path}/", ".cancelled")
    assert remove_marker(f"{tmp_path}/", ".cancelled")
    assert list(tmp_path.iterdir()) == []


def test_marker_that_cannot_be_left_is_logged(tmp_path, caplog):
    assert not write_marker(f"{tmp_path}/nowhere/", ".cancelled", "x")
    assert not remove_marker("relative/", ".cancelled")
    assert "nowhere" in caplog.text
    assert "relative" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a"])
def test_marker_needs_a_plain_name(tmp_path, name):
    with pytest.raises(ValueError, match="plain"):
        write_marker(f"{tmp_path}/", name, "x")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_drawn_on_a_terminal_only(settings, inputs):
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        with show_staging(stream) as progress:
            stage(inputs, settings, progress=progress)
    assert file.getvalue() == ""
    lines = [line for line in re.split("[\r\n]", terminal.getvalue()) if "files" in line]
    assert "Staging" in lines[-1]
    assert "20 of 20 files" in lines[-1]


def interrupt(stream):
    with show_staging(stream) as progress:
        progress(1, 20)
        raise KeyboardInterrupt


def test_progress_leaves_a_terminal_as_it_was():
    terminal = Terminal()
    with show_staging(terminal):
        pass
    assert terminal.getvalue() == ""
    with pytest.raises(KeyboardInterrupt):
        interrupt(terminal)
    assert "1 of 20 files" in terminal.getvalue()
    # The cursor is hidden while a bar is drawn.
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h")


def test_an_area_belongs_to_the_run_that_came_first(inputs, settings, tmp_path):
    stage(inputs, settings, owner="/submit/one")
    before = contents(tmp_path / "area" / "run")
    with open(inputs[0].source, "w") as stream:
        stream.write("of another run")
    with pytest.raises(StagingError, match="holds the files of another run, that of /submit/one") as caught:
        stage(inputs, settings, owner="/submit/two")
    assert f"remove {settings.area}.run.json" in str(caught.value)
    assert "set uniqProcName" in str(caught.value)
    assert contents(tmp_path / "area" / "run") == before
    # Its own run may stage again: a second attempt, a restart.
    assert stage(inputs, settings, owner="/submit/one").copied == 1


def test_of_many_runs_at_once_one_gets_the_area(inputs, settings):
    def attempt(number):
        try:
            stage(inputs, settings, owner=f"/submit/{number}")
        except StagingError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(attempt, range(8)))
    (winner,) = (number for number, text in enumerate(told) if not text)
    assert all(f"that of /submit/{winner}," in text for number, text in enumerate(told) if number != winner)


def test_an_owner_that_cannot_be_read_is_another_one(inputs, settings, tmp_path):
    area = tmp_path / "area" / "run"
    area.mkdir(parents=True)
    (area / ".run.json").write_text("{")
    with pytest.raises(StagingError, match="that of a file that cannot be read"):
        stage(inputs, settings, owner="/submit/one")
