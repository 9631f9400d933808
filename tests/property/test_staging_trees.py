"""Any tree that a file system holds reaches the staging area as it is."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsst.ctrl.bps.panda.edgenode.cmd_line_decoder import check_name
from lsst.ctrl.bps.panda.errors import StagingError
from lsst.ctrl.bps.panda.plan.model import StagedFile
from lsst.ctrl.bps.panda.staging import StagingSettings, read_manifest, stage
from lsst.ctrl.bps.panda.staging.sources import (
    Digest,
    Manifest,
    compare_checksums,
    digest_file,
    find_name_problems,
    parse_manifest,
    render_manifest,
)

parts = st.text(
    st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=20
).filter(lambda part: part not in (".", ".."))
names = st.lists(parts, min_size=1, max_size=3).map("/".join)
trees = st.dictionaries(names, st.binary(max_size=300), max_size=6)


def write_tree(folder: Path, tree: dict[str, bytes]) -> dict[str, bytes]:
    """Write what fits beside each other; a name may be taken as a folder."""
    written = {}
    for name, content in tree.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as stream:
                stream.write(content)
        except OSError:
            continue
        written[name] = content
    return written


@pytest.mark.slow
@settings(max_examples=min(40, settings().max_examples))
@given(tree=trees, more=trees)
def test_tree_is_staged_as_it_is_and_only_changes_are_copied_again(tree, more):
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "in")
        source.mkdir()
        written = write_tree(source, tree)
        files = [StagedFile("t", str(source), "t/", is_directory=True)]
        where = StagingSettings(f"{scratch}/area/", max_workers=2)
        assert stage(files, where).copied == len(written)

        added = write_tree(source, more)
        report = stage(files, where)
        assert (report.copied, report.present) == (len(added), len(written))

        expected = {f"t/{name}": content for name, content in {**written, **added}.items()}
        manifest = read_manifest(where.area)
        assert set(manifest.files) == set(report.files) == set(expected)
        for name, content in expected.items():
            assert Path(scratch, "area", name).read_bytes() == content
            assert manifest.files[name].size == len(content)


def is_name(text):
    try:
        return bool(check_name(text))
    except ValueError:
        return False


@given(
    st.dictionaries(
        st.text(max_size=30).filter(is_name), st.tuples(st.integers(0, 2**50), st.integers(0, 2**32 - 1))
    )
)
def test_manifest_comes_back_as_it_was_written(entries):
    files = {name: Digest(size, f"{checksum:08x}") for name, (size, checksum) in entries.items()}
    text = render_manifest(Manifest(files))
    assert parse_manifest(text.encode()) == Manifest(files)
    assert text == render_manifest(Manifest(dict(reversed(files.items()))))


@given(st.binary(max_size=100))
def test_manifest_that_is_not_one_is_an_error_and_nothing_else(data):
    with pytest.raises(ValueError, match="manifest|JSON"):
        parse_manifest(data)


@given(st.text(max_size=30))
def test_no_accepted_name_leads_out_of_the_area(name):
    if find_name_problems([StagedFile("a", "/a", name)]):
        return
    assert os.path.normpath("/area/" + name) == "/area/" + name


@settings(max_examples=min(25, settings().max_examples))
@given(names=st.lists(names, min_size=2, max_size=4))
def test_colliding_names_are_always_refused(names):
    files = [StagedFile(str(index), f"/in/{index}", name) for index, name in enumerate([*names, names[0]])]
    with pytest.raises(StagingError):
        stage(files, StagingSettings("/nowhere/at/all/"))


@given(
    content=st.binary(max_size=2000),
    other=st.binary(max_size=2000),
    algorithm=st.sampled_from(["crc32", "md5", "sha1", "sha256"]),
)
def test_checksums_of_stores_tell_contents_apart(content, other, algorithm):
    import base64
    import hashlib
    import zlib

    def checksum(data):
        raw = (
            zlib.crc32(data).to_bytes(4, "big")
            if algorithm == "crc32"
            else hashlib.new(algorithm, data).digest()
        )
        return base64.b64encode(raw).decode()

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "x")
        path.write_bytes(content)
        digest = digest_file(str(path))
        assert compare_checksums({algorithm: checksum(content)}, digest, str(path)) is True
        assert compare_checksums({algorithm: checksum(other)}, digest, str(path)) is (content == other)
        # A checksum of parts' checksums tells nothing, whether it says so or not.
        assert compare_checksums({algorithm: checksum(other) + "-2"}, digest, str(path)) is None
        assert compare_checksums({algorithm: checksum(other)}, digest, str(path), single_part=False) is None
        assert compare_checksums({"crc64nvme": "x"}, digest, str(path)) is None
        assert compare_checksums({"ADLER32": digest.adler32.lstrip("0").upper()}, digest, str(path)) is True
