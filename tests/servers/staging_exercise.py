"""What every kind of staging area has to stand, whatever serves it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lsst.ctrl.bps.panda.edgenode import cmd_line_decoder as runner
from lsst.ctrl.bps.panda.errors import StagingError
from lsst.ctrl.bps.panda.plan.model import StagedFile
from lsst.ctrl.bps.panda.staging import (
    StagingSettings,
    check_area,
    list_area,
    read_manifest,
    remove_area,
    remove_marker,
    stage,
    write_marker,
)
from lsst.ctrl.bps.panda.staging.sources import digest_file
from lsst.ctrl.bps.panda.staging.stores import open_store

OWNER = "/submit/this"

HOSTILE_NAMES = (
    "a b.txt",
    "plus+sign",
    "percent%41",
    "hash#tag",
    "question?mark",
    "colon:semi;comma,",
    "quote'\"s",
    "équipe-日本",
    "dollar$HOME",
    "(paren)[bracket]{brace}",
    "amper&sand=1",
    "~tilde@at",
)


def make_inputs(folder: Path, *, names=HOSTILE_NAMES) -> list[StagedFile]:
    """Write a tree with equal base names, hostile names and a file that S3
    takes in parts.
    """
    tree = folder / "tree"
    for index, name in enumerate(names):
        (tree / f"sub {index % 3}").mkdir(parents=True, exist_ok=True)
        (tree / f"sub {index % 3}" / name).write_text(f"content of {name}\n" * (index + 1))
    for index in range(3):
        (tree / f"sub {index}" / "deep").mkdir(parents=True, exist_ok=True)
        (tree / f"sub {index}" / "deep" / "same.yaml").write_text(f"number {index}\n")
    (tree / "empty.txt").touch()
    (folder / "run.qg").write_bytes(os.urandom(9_000_000))
    (folder / "butler.yaml").write_text("datastore: {}\n")
    return [
        StagedFile("tree", str(tree), "input tree/", is_directory=True),
        StagedFile("graph", str(folder / "run.qg"), "graph/run.qg"),
        StagedFile("butler", str(folder / "butler.yaml"), "butler.yaml"),
    ]


def exercise(area: str, folder: Path, *, names=HOSTILE_NAMES, keeps_notes=True, **options) -> None:
    """Stage, stage again, change, damage, mark; look at each result.

    Attempts leave notes unless the server cannot list a folder.

    Options are those of `StagingSettings`.
    """
    settings = StagingSettings(area, **{"retries": 1, "max_workers": 4, **options})
    files = make_inputs(folder, names=names)
    count = len(names) + 3 + 1 + 2
    assert check_area(settings) == ()
    assert read_manifest(area) is None

    seen: list[tuple[int, int]] = []
    report = stage(files, settings, owner=OWNER, progress=lambda done, total: seen.append((done, total)))
    assert (report.copied, report.present) == (count, 0)
    assert seen[-1] == (count, count)
    assert_area_holds(area, folder, files)
    manifest = read_manifest(area)
    assert set(manifest.files) == set(report.files)
    assert manifest.files["graph/run.qg"] == digest_file(str(folder / "run.qg"))

    again = stage(files, settings)
    assert (again.copied, again.present) == (0, count)

    # Same size, other content: only a checksum tells.
    (folder / "butler.yaml").write_text("datastore: []\n")
    changed = stage(files, settings)
    assert (changed.copied, changed.present) == (1, count - 1)
    assert_area_holds(area, folder, files)

    store = open_store(area)
    store.remove("input tree/sub 1/deep/same.yaml")
    mended = stage(files, settings)
    assert mended.copied == 1
    assert_area_holds(area, folder, files)
    assert read_manifest(area) == read_manifest(area.rstrip("/"))

    assert write_marker(area, ".cancelled", "run\n")
    assert store.read(".cancelled") == b"run\n"
    assert remove_marker(area, ".cancelled")
    assert remove_marker(area, ".cancelled")
    assert store.read(".cancelled") is None
    if keeps_notes:
        exercise_attempts(area.rstrip("/") + "/attempts/")


def exercise_removal(area: str) -> None:
    """Remove what `exercise` has left, and nothing of another run."""
    staged = read_manifest(area).files
    with pytest.raises(StagingError, match="is not that of the run of /submit/other"):
        list_area(area, "/submit/other")
    found = list_area(area, OWNER)
    assert set(found) >= {*staged, ".staged.json", ".run.json"}
    remove_area(area, found)
    assert list_area(area, OWNER) == []
    remove_area(area, found)


def exercise_attempts(area: str) -> None:
    """Let attempts of jobs leave notes for later ones, as the runner does on a worker."""

    def attempt(panda_id: int, job: str) -> runner.Attempts:
        words = ["", job, runner.encode_area(area), "-", "-", "--retry-unless-exit=2", "--run=u_me_1"]
        environment = {b"PANDAID": b"%d" % panda_id, b"PanDA_TaskID": b"7"}
        return runner.Attempts(runner.Arguments(words), environment)

    open_store(area).write(".run.json", b"{}")
    assert [attempt(panda_id, "isr:1").number() for panda_id in (11, 15, 15, 19)] == [0, 1, 1, 2]
    assert attempt(11, "isr:2").number() == 0
    assert [attempt(20, job).find_code() for job in ("isr:1", "isr:3")] == [None, None]
    attempt(20, "isr:1").note(2)
    attempt(20, "isr:3").note(2)
    attempt(20, "isr:2").note(3)
    found = [attempt(21, job).find_code() for job in ("isr:1", "isr:2", "isr:3")]
    assert found == [2, None, 2]
    assert attempt(20, "isr:1").find_code() is None
    assert attempt(21, "isr:1").number() == 4


def assert_area_holds(area: str, folder: Path, files: list[StagedFile]) -> None:
    """Compare the area with the sources, byte by byte, through a fresh store."""
    store = open_store(area)
    for file in files:
        source = Path(file.source)
        inside = [path for path in source.rglob("*") if path.is_file()] if file.is_directory else [source]
        for path in inside:
            name = file.name.rstrip("/") + ("" if path == source else f"/{path.relative_to(source)}")
            assert store.read(name) == path.read_bytes(), name
