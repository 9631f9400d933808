"""Staging to an S3 server (moto)."""

from __future__ import annotations

import uuid

import pytest

from lsst.ctrl.bps.panda.errors import StagingError
from lsst.ctrl.bps.panda.plan.model import StagedFile
from lsst.ctrl.bps.panda.staging import StagingSettings, check_area, read_manifest, stage

pytestmark = pytest.mark.slow


@pytest.fixture
def bucket(s3_server, resources_environment):
    resources_environment(**s3_server.client_environment)
    name = f"bucket-{uuid.uuid4().hex}"
    s3_server.make_bucket(name)
    return f"s3://{name}/"


def test_s3_serves_as_staging_area(bucket, tmp_path):
    from panda_servers.staging_exercise import exercise, exercise_removal

    exercise(bucket + "u/someone/run_1/", tmp_path)
    exercise_removal(bucket + "u/someone/run_1/")


def test_s3_reads_back(bucket, tmp_path):
    from panda_servers.staging_exercise import exercise

    exercise(bucket, tmp_path, names=("one", "two"))


def test_s3_finds_damage_of_the_same_size_by_checksum(bucket, tmp_path):
    import boto3

    source = tmp_path / "a.txt"
    source.write_text("right")
    settings = StagingSettings(bucket + "run/", retries=0)
    stage([StagedFile("a", str(source), "a.txt")], settings)
    from lsst.resources import ResourcePath

    assert boto3
    ResourcePath(bucket + "run/a.txt").write(b"wrong")
    assert stage([StagedFile("a", str(source), "a.txt")], settings).copied == 1
    assert ResourcePath(bucket + "run/a.txt").read() == b"right"


def test_missing_bucket_is_named(bucket, tmp_path):
    settings = StagingSettings("s3://no-such-bucket-here/run/", retries=0)
    (problem,) = check_area(settings)
    assert "s3://no-such-bucket-here/run/" in problem
    assert "no such bucket" in problem
    (tmp_path / "a").write_text("a")
    with pytest.raises(StagingError, match="no such bucket"):
        stage([StagedFile("a", str(tmp_path / "a"), "a")], settings)


def test_profile_without_credentials_is_named(bucket):
    (problem,) = check_area(StagingSettings("s3://nobody@bucket/run/", retries=0))
    assert "profile" in problem


def test_s3_to_s3_fetches_remote_sources(bucket, tmp_path):
    from lsst.resources import ResourcePath

    ResourcePath(bucket + "input/tree/a/x.txt").write(b"one")
    ResourcePath(bucket + "input/tree/b/x.txt").write(b"two!")
    ResourcePath(bucket + "input/run.qg").write(b"graph")
    area = bucket + "run/"
    files = [
        StagedFile("tree", bucket + "input/tree/", "tree/", is_directory=True),
        StagedFile("graph", bucket + "input/run.qg", "run.qg"),
    ]
    report = stage(files, StagingSettings(area, retries=0))
    assert report.files == ("run.qg", "tree/a/x.txt", "tree/b/x.txt")
    assert ResourcePath(area + "tree/b/x.txt").read() == b"two!"
    assert stage(files, StagingSettings(area, retries=0)).present == 3


def test_missing_remote_sources_are_listed(bucket):
    files = [
        StagedFile("one", bucket + "nowhere/one", "one"),
        StagedFile("two", bucket + "nowhere/tree/", "two", is_directory=True),
    ]
    with pytest.raises(StagingError, match=r"nowhere/tree"):
        stage(files, StagingSettings(bucket + "run/", retries=0))
    with pytest.raises(StagingError, match=r"one: .*No such|one: .*not exist"):
        stage(files[:1], StagingSettings(bucket + "run/", retries=0))
    assert read_manifest(bucket + "run/") is None
