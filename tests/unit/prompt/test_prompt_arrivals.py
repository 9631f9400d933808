"""Which files are complete, and which groups of them."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from panda_servers.local import wait_for

from lsst.ctrl.bps.panda.prompt.arrivals import DirectoryArrivals, ImageGroups, LineArrivals
from lsst.ctrl.bps.panda.settings.prompt import PromptSection

PATTERN = r"(?P<group>\d+)_\d+\.fits"


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def section(directory: Path, **values: object) -> PromptSection:
    return PromptSection(directory=str(directory), pattern=PATTERN, images=2, **values)  # type: ignore[arg-type]


def names(arrivals: DirectoryArrivals) -> list[str]:
    return [each.name for each in arrivals.poll()]


def test_a_group_is_there_with_its_last_image(tmp_path: Path) -> None:
    arrivals = DirectoryArrivals(section(tmp_path, settle=0.0), ImageGroups(2, 10.0), [])
    (tmp_path / "7_0.fits").touch()
    (tmp_path / "8_0.fits").touch()
    (tmp_path / "notes.txt").touch()
    assert arrivals.poll() == []
    (tmp_path / "7_1.fits").touch()
    (found,) = arrivals.poll()
    assert found.name == "7"
    assert found.inputs == (str(tmp_path / "7_0.fits"), str(tmp_path / "7_1.fits"))
    assert found.arrived == os.stat(tmp_path / "7_1.fits").st_ctime
    assert arrivals.poll() == []


def test_a_file_that_still_grows_is_not_read(tmp_path: Path) -> None:
    clock = Clock()
    opened: list[str] = []
    arrivals = DirectoryArrivals(
        section(tmp_path, settle=0.2), ImageGroups(1, 10.0), [], opens=opened.append, clock=clock
    )
    path = tmp_path / "7_0.fits"
    for size in range(1, 5):
        path.write_bytes(b"x" * size)
        assert names(arrivals) == []
        clock.now += 0.15
    assert opened == []
    clock.now += 0.1
    assert names(arrivals) == ["7"]
    assert opened == [str(path)]


def test_a_file_that_cannot_be_opened_whole_waits_until_it_can(tmp_path: Path) -> None:
    clock = Clock()

    def opens(path: str) -> None:
        if Path(path).stat().st_size < 100:
            raise OSError("cut")

    arrivals = DirectoryArrivals(
        section(tmp_path, settle=0.2), ImageGroups(1, 10.0), [], opens=opens, clock=clock
    )
    path = tmp_path / "7_0.fits"
    path.write_bytes(b"x" * 50)
    for _ in range(30):
        assert names(arrivals) == []
        clock.now += 1.0
    path.write_bytes(b"x" * 100)
    assert names(arrivals) == []
    clock.now += 0.3
    assert names(arrivals) == ["7"]


def test_a_directory_may_come_and_go(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = tmp_path / "in"
    arrivals = DirectoryArrivals(section(place, settle=0.0), ImageGroups(1, 10.0), [])
    assert names(arrivals) == names(arrivals) == []
    assert len(caplog.records) == 1
    place.mkdir()
    (place / "7_0.fits").touch()
    assert names(arrivals) == ["7"]


def test_what_is_in_the_catalogue_does_not_arrive_again(tmp_path: Path) -> None:
    (tmp_path / "7_0.fits").touch()
    arrivals = DirectoryArrivals(
        section(tmp_path, settle=0.0), ImageGroups(1, 10.0), [str(tmp_path / "7_0.fits")]
    )
    assert arrivals.poll() == []


def test_a_group_without_all_images_is_taken_when_patience_ends_and_a_late_one_is_not_lost() -> None:
    groups = ImageGroups(2, 10.0)
    groups.add("7", "a", 100.0)
    assert groups.take(109.0) == []
    assert [each.inputs for each in groups.take(110.0)] == [("a",)]
    groups.add("7", "b", 111.0)
    assert [(each.name, each.inputs) for each in groups.take(121.0)] == [("7-2", ("b",))]


def test_names_of_groups_are_safe_in_paths_and_collections() -> None:
    groups = ImageGroups(1, 10.0)
    groups.add("../a b", "x", 1.0)
    assert [each.name for each in groups.take(1.0)] == [".._a_b"]


def test_lines_name_files_and_the_end_takes_what_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream = io.StringIO(f"{tmp_path}/7_0.fits\nwhat is this\n{tmp_path}/7_1.fits\n{tmp_path}/8_0.fits\n")
    arrivals = LineArrivals(section(tmp_path), ImageGroups(2, 1000.0), stream)
    found: list[str] = []

    def over() -> bool:
        found.extend(each.name for each in arrivals.poll())
        return arrivals.is_over

    wait_for(over, "end of the lines", timeout=10)
    assert found == ["7", "8"]
    assert "'what is this' is no path of a file" in caplog.text
