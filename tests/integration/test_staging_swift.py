"""Staging to an object store that checks credentials (OpenStack Swift)."""

from __future__ import annotations

import pytest

from lsst.ctrl.bps.panda.errors import StagingError
from lsst.ctrl.bps.panda.plan.model import StagedFile
from lsst.ctrl.bps.panda.staging import StagingSettings, check_area, read_manifest, stage

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def swift_server(tmp_path_factory, request):
    from panda_servers.swift import SwiftServer, make_environment

    programs = make_environment(request.config.cache.mkdir("swift"))
    with SwiftServer(tmp_path_factory.mktemp("swift"), programs) as server:
        server.make_bucket("runs")
        yield server


def test_swift_serves_as_staging_area(swift_server, resources_environment, tmp_path):
    from panda_servers.staging_exercise import exercise, exercise_removal

    resources_environment(**swift_server.client_environment())
    # It gives no checksums, so the manifest has to tell what is there already.
    exercise("s3://runs/u/someone/run/", tmp_path)
    exercise_removal("s3://runs/u/someone/run/")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"secret": "guessed"}, "secret"), ({"key": "test:nobody"}, "refuses")],
    ids=["secret", "key"],
)
def test_refused_credentials_are_clear(swift_server, resources_environment, tmp_path, wrong, words):
    resources_environment(**swift_server.client_environment(**wrong))
    settings = StagingSettings("s3://runs/refused/", retries=0)
    (problem,) = check_area(settings)
    assert "the store refuses" in problem
    assert words in problem
    assert "guessed" not in problem
    (tmp_path / "a").write_text("a")
    with pytest.raises(StagingError, match="the store refuses"):
        stage([StagedFile("a", str(tmp_path / "a"), "a")], settings)
    with pytest.raises(StagingError, match="the store refuses"):
        read_manifest(settings.area)
