"""What all tests share: the servers in ``tests/servers`` can be imported as
``panda_servers.<module>``, and each has a fixture; what reads the pages of the
documentation is ``panda_documentation.pages``, and settings of plans are in
``panda_plans.settings``.

No server is loaded here before a test asks for it.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import hypothesis
import pytest

PACKAGE = "panda_servers"


def _offer_package(name: str, folder: Path) -> None:
    """Make a folder importable as a package, without touching the path."""
    if name not in sys.modules:
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        sys.modules[name] = importlib.util.module_from_spec(spec)


_offer_package(PACKAGE, Path(__file__).parent / "servers")

# Chosen with --hypothesis-profile: bin/run-tests takes the first, with --quick the second and with --all the
# third.  A test that names a number of examples itself has that number in all of them.
hypothesis.settings.register_profile("whole", max_examples=50, deadline=None)
hypothesis.settings.register_profile("quick", max_examples=5, deadline=None)
hypothesis.settings.register_profile("all", max_examples=200, deadline=None)
hypothesis.settings.load_profile("whole")
_offer_package("panda_documentation", Path(__file__).parent / "documentation")
_offer_package("panda_plans", Path(__file__).parent / "plans")


def pytest_addoption(parser):
    """Add the option that writes the snapshots of plans anew."""
    parser.addoption("--update-plans", action="store_true", help="write tests/data/plans anew")


def pytest_collection_modifyitems(items):
    """Begin with the files that hold slow tests, so that several workers end
    at about the same time.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def resources_environment(monkeypatch):
    """Let ``lsst.resources`` see a clean environment, and give up soon.

    Call it with variables to set; it reads some of them only once in a
    process, so it is told to read them again.
    """
    from panda_servers.resources import change_environment, forget_environment

    def change(**variables: str) -> None:
        change_environment(monkeypatch, variables)

    change()
    yield change
    monkeypatch.undo()
    forget_environment()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """An S3 server (moto); see `panda_servers.s3.S3Server`."""
    from panda_servers.s3 import S3Server

    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def webdav_server(tmp_path_factory):
    """A WebDAV server (wsgidav); see `panda_servers.webdav.WebdavServer`."""
    from panda_servers.webdav import WebdavServer

    with WebdavServer(tmp_path_factory.mktemp("webdav")) as server:
        yield server


@pytest.fixture(scope="session")
def nginx_server(tmp_path_factory):
    """A WebDAV server (nginx); see `panda_servers.nginx.NginxServer`."""
    from panda_servers.nginx import NginxServer

    with NginxServer(tmp_path_factory.mktemp("nginx")) as server:
        yield server


@pytest.fixture(scope="session")
def xrootd_server(tmp_path_factory):
    """An XRootD server with its HTTP door; see
    `panda_servers.xrootd.XrootdServer`.
    """
    from panda_servers.xrootd import XrootdServer

    with XrootdServer(tmp_path_factory.mktemp("xrootd")) as server:
        yield server


@pytest.fixture(scope="session")
def commands(tmp_path_factory):
    """Commands that start at once; see `panda_servers.commands.Commands`."""
    from panda_servers.commands import Commands

    with Commands(tmp_path_factory.mktemp("commands")) as started:
        yield started


@pytest.fixture
def dav_double():
    """A WebDAV server in memory that fails as told; see
    `panda_servers.dav_double.DavDouble`.
    """
    from panda_servers.dav_double import DavDouble

    with DavDouble() as server:
        yield server


@pytest.fixture(scope="session")
def postgresql_url():
    """The URL of a database in a private PostgreSQL cluster."""
    from panda_servers.postgresql import run_cluster

    with run_cluster() as url:
        yield url


@pytest.fixture(scope="session")
def rucio_server(tmp_path_factory):
    """A Rucio server; see `panda_servers.rucio.RucioServer`.

    Other tests of the session use it too: take scopes, RSEs and accounts with
    names of your own.
    """
    from panda_servers.rucio import RucioServer

    with RucioServer(tmp_path_factory.mktemp("rucio")) as server:
        yield server
