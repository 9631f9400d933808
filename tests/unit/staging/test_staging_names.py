"""Which names files may have in a staging area."""

from __future__ import annotations

import pytest

from lsst.ctrl.bps.panda.errors import StagingError
from lsst.ctrl.bps.panda.plan.model import StagedFile
from lsst.ctrl.bps.panda.staging import StagingSettings, stage
from lsst.ctrl.bps.panda.staging.sources import find_name_problems


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "is empty"),
        ("/etc/passwd", "is absolute"),
        ("s3://bucket/x", "is absolute"),
        ("../x", "'..'"),
        ("a/../../x", "'..'"),
        ("./x", "'.'"),
        ("a//x", "empty part"),
        ("a/", "not a directory"),
        ("a\0b", "NUL"),
        ("x" * 256, "255 bytes"),
        ("a/" + "é" * 128, "255 bytes"),
        (".staged.json", "reserved"),
        (".staging.json", "reserved"),
        (".cancelled", "reserved"),
        (".staging/x", "reserved"),
        (".staging-12/x", "reserved"),
    ],
)
def test_bad_name_is_refused_before_anything_is_done(tmp_path, name, words):
    (tmp_path / "a").write_text("a")
    file = StagedFile("a", str(tmp_path / "a"), name)
    with pytest.raises(StagingError, match=words) as caught:
        stage([file], StagingSettings(f"{tmp_path}/area/"))
    assert str(tmp_path / "a") in str(caught.value)
    assert not (tmp_path / "area").exists()


@pytest.mark.parametrize("name", ["a", "a/b", "..a", "a..b/...", ".hidden", "a b", "-x", "x" * 255, "~"])
def test_good_name_is_accepted(name):
    assert find_name_problems([StagedFile("a", "/a", name)]) == ()


def test_directory_may_end_in_a_slash():
    assert find_name_problems([StagedFile("a", "/a", "a/b/", is_directory=True)]) == ()


def test_all_problems_are_listed_with_their_sources():
    files = [
        StagedFile("a", "/in/one/butler.yaml", "butler.yaml"),
        StagedFile("b", "/in/two/butler.yaml", "butler.yaml"),
        StagedFile("c", "/in/c", "../c"),
    ]
    problems = "\n".join(find_name_problems(files))
    assert "/in/one/butler.yaml, /in/two/butler.yaml" in problems
    assert "used 2 times" in problems
    assert "/in/c" in problems


def test_file_and_directory_of_the_same_name_collide():
    files = [StagedFile("a", "/a", "x"), StagedFile("b", "/b", "x/", is_directory=True)]
    assert "used 2 times" in find_name_problems(files)[0]


def test_file_inside_a_staged_directory_is_refused():
    files = [StagedFile("a", "/a", "x", is_directory=True), StagedFile("b", "/b", "x/deep/y")]
    assert find_name_problems(files) == ("staged name 'x/deep/y' lies inside another staged name, 'x'",)


def test_equal_base_names_in_different_folders_are_fine(tmp_path):
    files = []
    for index in range(3):
        source = tmp_path / f"in{index}" / "butler.yaml"
        source.parent.mkdir()
        source.write_text(f"{index}")
        files.append(StagedFile(f"k{index}", str(source), f"in{index}/butler.yaml"))
    stage(files, StagingSettings(f"{tmp_path}/area/"))
    assert [(tmp_path / "area" / file.name).read_text() for file in files] == ["0", "1", "2"]
