"""Staging to nginx, a WebDAV server of another make."""

from __future__ import annotations

import pytest

from lsst.ctrl.bps.panda.errors import StagingError
from lsst.ctrl.bps.panda.plan.model import StagedFile
from lsst.ctrl.bps.panda.staging import StagingSettings, read_manifest, stage

pytestmark = pytest.mark.slow


def test_nginx_serves_as_staging_area(nginx_server, resources_environment, tmp_path):
    from panda_servers.staging_exercise import exercise, exercise_removal

    exercise(nginx_server.url + "u/someone/run/", tmp_path)
    left = [path.name for path in (nginx_server.folder / "u/someone/run").iterdir()]
    assert sorted(left) == [".run.json", ".staged.json", "attempts", "butler.yaml", "graph", "input tree"]
    exercise_removal(nginx_server.url + "u/someone/run/")
    assert list((nginx_server.folder / "u/someone").iterdir()) == []


def test_file_that_is_too_large_is_named(resources_environment, tmp_path):
    from panda_servers.nginx import NginxServer

    home = tmp_path / "nginx"
    home.mkdir()
    (tmp_path / "small").write_bytes(b"x" * 500)
    (tmp_path / "large").write_bytes(b"x" * 5000)
    files = [StagedFile(name, str(tmp_path / name), name) for name in ("small", "large")]
    with NginxServer(home, largest=1000) as server:
        area = server.url + "run/"
        with pytest.raises(StagingError) as caught:
            stage(files, StagingSettings(area, retries=0))
        assert read_manifest(area) is None
        assert (server.folder / "run/small").read_bytes() == b"x" * 500
        assert not (server.folder / "run/large").exists()
    assert "1 of 2 files" in str(caught.value)
    assert "large: larger than the store accepts" in str(caught.value)
    assert "small:" not in str(caught.value)
