"""Staging to a WebDAV server (wsgidav), with and without TLS and a token."""

from __future__ import annotations

import subprocess

import pytest

from lsst.ctrl.bps.panda.errors import StagingError
from lsst.ctrl.bps.panda.plan.model import StagedFile
from lsst.ctrl.bps.panda.staging import StagingSettings, check_area, read_manifest, stage

pytestmark = pytest.mark.slow


def test_webdav_serves_as_staging_area(webdav_server, resources_environment, tmp_path):
    from panda_servers.staging_exercise import exercise, exercise_removal

    exercise(webdav_server.url + "u/someone/run1/", tmp_path)
    left = [path.name for path in (webdav_server.folder / "u/someone/run1").iterdir()]
    assert sorted(left) == [".run.json", ".staged.json", "attempts", "butler.yaml", "graph", "input tree"]
    exercise_removal(webdav_server.url + "u/someone/run1/")
    assert list((webdav_server.folder / "u/someone").iterdir()) == []


def test_dav_scheme_serves_as_staging_area(webdav_server, resources_environment, tmp_path):
    from panda_servers.staging_exercise import exercise, exercise_removal

    area = webdav_server.url.replace("http:", "dav:") + "run2/"
    exercise(area, tmp_path, names=("one", "two words"))
    exercise_removal(area)
    assert not (webdav_server.folder / "run2").exists()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A certificate authority and a certificate of it for the loopback."""
    folder = tmp_path_factory.mktemp("tls")
    (folder / "server.ext").write_text(
        "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n"
    )
    curve = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    authority = (
        "-addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign -subj /CN=test"
    )
    for arguments in (
        f"req -x509 {curve} -days 30 -keyout ca.key -out ca.pem {authority}",
        f"req {curve} -keyout server.key -out server.csr -subj /CN=localhost",
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile server.ext"
        " -out server.pem",
    ):
        subprocess.run(
            ["openssl", *arguments.split()], cwd=folder, check=True, capture_output=True, timeout=60
        )
    return folder


@pytest.fixture
def guarded_server(certificates, tmp_path):
    from panda_servers.webdav import WebdavServer

    served = tmp_path / "served"
    served.mkdir()
    with WebdavServer(
        served, token="sesame", certificate=certificates / "server.pem", key=certificates / "server.key"
    ) as server:
        yield server


def test_https_with_token_serves_as_staging_area(
    guarded_server, certificates, resources_environment, tmp_path
):
    from panda_servers.staging_exercise import exercise

    resources_environment(
        LSST_HTTP_CACERT_BUNDLE=str(certificates / "ca.pem"), LSST_HTTP_AUTH_BEARER_TOKEN="sesame"
    )
    exercise(guarded_server.url + "run/", tmp_path, names=("one",))


def test_https_with_wrong_token_is_a_refusal(guarded_server, certificates, resources_environment, tmp_path):
    resources_environment(
        LSST_HTTP_CACERT_BUNDLE=str(certificates / "ca.pem"), LSST_HTTP_AUTH_BEARER_TOKEN="mellon"
    )
    settings = StagingSettings(guarded_server.url + "run/", retries=0)
    (problem,) = check_area(settings)
    assert "not logged in" in problem
    assert "mellon" not in problem
    (tmp_path / "a").write_text("a")
    with pytest.raises(StagingError, match="not logged in"):
        stage([StagedFile("a", str(tmp_path / "a"), "a")], settings)
    with pytest.raises(StagingError, match="not logged in"):
        read_manifest(settings.area)


def test_unknown_certificate_is_a_clear_problem(guarded_server, resources_environment):
    (problem,) = check_area(StagingSettings(guarded_server.url + "run/", retries=0))
    assert "LSST_HTTP_CACERT_BUNDLE" in problem
