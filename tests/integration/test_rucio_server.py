"""What the tests' Rucio server does, as other tests rely on it: rules and
transfers, metadata, and an account without rights.
"""

from __future__ import annotations

import zlib

import pytest

pytestmark = pytest.mark.slow

CONTENT = b"content of a file"


@pytest.fixture(scope="module")
def place(rucio_server, tmp_path_factory):
    """Two RSEs and a scope."""
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    rucio_server.add_scope("served")
    rucio_server.add_rse("SERVED_HERE", here)
    rucio_server.add_rse("SERVED_THERE", there)
    return here, there


def make_files(server, folder, names):
    files = []
    for name in names:
        path = folder / "served" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CONTENT)
        files.append(
            {
                "scope": "served",
                "name": name,
                "bytes": len(CONTENT),
                "adler32": f"{zlib.adler32(CONTENT):08x}",
                "pfn": f"{server.transfer_url(folder)}/served/{name}",
                "meta": {"rubin_butler": "data_product", "rubin_sidecar": "{}"},
            }
        )
    return files


def test_rule_is_replicating_until_its_files_are_transferred(rucio_server, place):
    here, there = place
    client = rucio_server.client()
    files = make_files(rucio_server, here, ["run/a.fits", "run/b.fits"])
    client.add_replicas("SERVED_HERE", files)
    client.add_dataset("served", "run", rse="SERVED_HERE")
    client.attach_dids("served", "run", files)
    near, far = (
        client.add_replication_rule([{"scope": "served", "name": "run"}], 1, rse)[0]
        for rse in ("SERVED_HERE", "SERVED_THERE")
    )
    assert client.get_replication_rule(near)["state"] == "OK"
    assert client.get_replication_rule(far)["state"] == "REPLICATING"
    copies = rucio_server.transfer("served", "run", "SERVED_THERE", there)
    assert [path.read_bytes() for path in copies] == [CONTENT] * 2
    assert client.get_replication_rule(far)["state"] == "OK"
    metadata = client.get_metadata("served", "run/a.fits", plugin="ALL")
    assert metadata["rubin_butler"] == "data_product"


def test_account_without_rights_is_refused(rucio_server, place):
    from rucio.common.exception import AccessDenied

    rucio_server.add_account("visitor")
    visitor = rucio_server.client("visitor")
    assert visitor.whoami()["account"] == "visitor"
    with pytest.raises(AccessDenied):
        visitor.add_replicas("SERVED_HERE", make_files(rucio_server, place[0], ["run/c.fits"]))
