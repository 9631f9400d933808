"""The program of the registration step against a real Rucio server, with a
Python that has what a worker has.
"""

from __future__ import annotations

import zlib

import pytest

from lsst.ctrl.bps.panda.edgenode.rucio_program import EXIT_FAILED, EXIT_REFUSED, RuleWanted

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(rucio_server, tmp_path_factory):
    from panda_servers.rucio_site import RucioSite

    return RucioSite(rucio_server, tmp_path_factory.mktemp("rse"), scope="step", rse="STEP_DISK")


@pytest.fixture(scope="module")
def far(rucio_server, tmp_path_factory):
    """Another site, to which files are to be replicated."""
    folder = tmp_path_factory.mktemp("far")
    rucio_server.add_rse("STEP_FAR", folder)
    return folder


def test_outputs_are_registered_with_rule_and_dataset_closed(site, far, rucio_server):
    paths = site.fill("u/me/good", "image", range(5)) + site.fill("u/me/good", "table", range(2))
    site.fill("u/me/good", "scratch", range(3))
    graph = site.folder / "run.qg"
    graph.write_bytes(b"a graph")
    registration = site.registration("u/me/good", rule=RuleWanted("STEP_FAR", lifetime=86400), close=True)
    done = site.register(registration, "--quantum-graph", str(graph))
    assert done.returncode == 0, done.stderr
    assert "7 files registered in step:u/me/good at STEP_DISK" in done.stderr
    client = rucio_server.client()
    names = {str(path.relative_to(site.repo)) for path in paths}
    assert site.names("u/me/good") == names | {"u/me/good/run.qg"}
    for replica in client.list_replicas([{"scope": "step", "name": "u/me/good"}]):
        path = site.repo / replica["name"]
        content = path.read_bytes()
        assert (replica["bytes"], replica["adler32"]) == (len(content), f"{zlib.adler32(content):08x}")
        assert list(replica["pfns"]) == [f"file://localhost{path}"]
    metadata = client.get_metadata("step", sorted(names)[0], plugin="ALL")
    assert metadata["rubin_butler"] == "data_product"
    assert '"Cam"' in metadata["rubin_sidecar"]
    assert "rubin_butler" not in client.get_metadata("step", "u/me/good/run.qg", plugin="ALL")
    assert client.get_did("step", "u/me/good")["open"] is False
    (rule,) = client.list_did_rules("step", "u/me/good")
    assert (rule["state"], rule["locks_replicating_cnt"], rule["copies"]) == ("REPLICATING", 8, 1)
    assert rule["expires_at"] is not None
    rucio_server.transfer("step", "u/me/good", "STEP_FAR", far)
    assert client.get_replication_rule(rule["id"])["state"] == "OK"

    again = site.register(registration, "--quantum-graph", str(graph))
    assert again.returncode == 0, again.stderr
    for words in ("0 files registered", "7 were there already", "was there already (OK)", "closed already"):
        assert words in again.stderr
    assert len(list(client.list_did_rules("step", "u/me/good"))) == 1

    site.fill("u/me/good", "table", [9])
    refused = site.register(registration)
    assert refused.returncode == EXIT_REFUSED
    assert "is closed, and 1 of 8 files are not in it" in refused.stderr


def test_after_a_failure_half_way_only_the_rest_is_added(site, rucio_server):
    paths = sorted(site.fill("u/me/half", "image", range(8)))
    lost = paths[4]
    content = lost.read_bytes()
    lost.unlink()
    registration = site.registration("u/me/half", rule=RuleWanted("STEP_DISK"))
    broken = site.register(registration)
    assert broken.returncode == EXIT_FAILED
    assert "FileNotFoundError" in broken.stderr
    # Chunks of three: the first is in, the second is not.
    assert len(site.names("u/me/half")) == 3
    client = rucio_server.client()
    assert list(client.list_did_rules("step", "u/me/half")) == []
    # A chunk may also end between its two calls: known, but not in the dataset.
    stray = paths[7]
    client.add_replicas(
        "STEP_DISK",
        [
            {
                "scope": "step",
                "name": str(stray.relative_to(site.repo)),
                "bytes": stray.stat().st_size,
                "adler32": f"{zlib.adler32(stray.read_bytes()):08x}",
                "pfn": f"{rucio_server.transfer_url(site.repo)}/{stray.relative_to(site.repo)}",
            }
        ],
    )
    before = {entry["name"]: entry for entry in client.list_files("step", "u/me/half")}
    lost.write_bytes(content)
    done = site.register(registration)
    assert done.returncode == 0, done.stderr
    assert "5 files registered in step:u/me/half at STEP_DISK; 3 were there already" in done.stderr
    assert site.names("u/me/half") == {str(path.relative_to(site.repo)) for path in paths}
    after = {entry["name"]: entry for entry in client.list_files("step", "u/me/half")}
    assert {name: after[name] for name in before} == before
    (rule,) = client.list_did_rules("step", "u/me/half")
    assert rule["state"] == "OK"


@pytest.fixture(scope="module")
def filled(site):
    site.fill("u/me/refused", "image", range(2))
    return "u/me/refused"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rse_root": "/somewhere/else"}, "is not below /somewhere/else/step/"),
        ({"collection": "u/me/none"}, "has no collection u/me/none"),
        ({"dataset_types": ("nothing*", "nosuchtype")}, "holds nothing to register"),
    ],
    ids=["wrong prefix", "no collection", "no outputs"],
)
def test_what_cannot_be_right_is_refused(site, filled, changes, words):
    done = site.register(site.registration(**{"collection": filled, **changes}))
    assert done.returncode == EXIT_REFUSED
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_account_without_rights_is_told_so(site, rucio_server):
    rucio_server.add_account("stepvisitor")
    site.fill("u/me/visitor", "image", range(1))
    done = site.register(site.registration("u/me/visitor"), account="stepvisitor")
    assert done.returncode == EXIT_FAILED
    assert "Account stepvisitor can not add file replicas on STEP_DISK" in done.stderr
    # What is shown of a log is its end.
    assert "panda_bps rucio register, adds the rest." in done.stderr.splitlines()[-1]


def test_a_quantum_graph_is_whole_or_refused(site, rucio_server):
    site.fill("u/me/graph", "image", range(1))
    registration = site.registration("u/me/graph")
    graph = site.folder / "whole.qg"
    graph.write_bytes(b"a whole graph")
    # An attempt was killed while it copied.
    piece = site.repo / "u/me/graph/whole.qg"
    piece.write_bytes(b"a wh")
    done = site.register(registration, "--quantum-graph", str(graph))
    assert done.returncode == 0, done.stderr
    assert piece.read_bytes() == graph.read_bytes()
    (entry,) = (
        entry
        for entry in rucio_server.client().list_files("step", "u/me/graph")
        if entry["name"] == "u/me/graph/whole.qg"
    )
    assert entry["adler32"] == f"{zlib.adler32(graph.read_bytes()):08x}"
    rucio_server.client().close("step", "u/me/graph")
    other = site.folder / "other.qg"
    other.write_bytes(b"another graph")
    refused = site.register(registration, "--quantum-graph", str(other))
    assert refused.returncode == EXIT_REFUSED
    assert "is closed, and the quantum graph is not in it" in refused.stderr
