"""Staging to an XRootD server's HTTP door, which gives checksums."""

from __future__ import annotations

import pytest

from lsst.ctrl.bps.panda.plan.model import StagedFile
from lsst.ctrl.bps.panda.staging import StagingSettings, stage
from lsst.ctrl.bps.panda.staging.sources import digest_file
from lsst.ctrl.bps.panda.staging.stores import open_store

pytestmark = pytest.mark.slow


def test_xrootd_serves_as_staging_area(xrootd_server, resources_environment, tmp_path):
    from panda_servers.staging_exercise import exercise, exercise_removal

    exercise(xrootd_server.url + "u/someone/run/", tmp_path)
    exercise_removal(xrootd_server.url + "u/someone/run/")


def test_xrootd_finds_damage_of_the_same_size_by_checksum(xrootd_server, resources_environment, tmp_path):
    area = xrootd_server.url + "damaged/"
    source = tmp_path / "a.txt"
    source.write_text("right")
    files = [StagedFile("a", str(source), "a.txt")]
    stage(files, StagingSettings(area, retries=0))
    store = open_store(area)
    digest = digest_file(str(source))
    assert store.holds("a.txt", digest, str(source)) is True
    store.write("a.txt", b"wrong")
    assert store.holds("a.txt", digest, str(source)) is False
    assert stage(files, StagingSettings(area, retries=0)).copied == 1
    assert store.read("a.txt") == b"right"
