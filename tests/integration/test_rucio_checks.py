"""What is checked before a registration, what would be done and what became
of it, against a real Rucio server.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import zlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
from lsst.daf.butler import Butler

from lsst.ctrl.bps import BPS_SEARCH_ORDER, BpsConfig
from lsst.ctrl.bps.panda.edgenode.rucio_program import RuleWanted, find_outputs
from lsst.ctrl.bps.panda.errors import RucioError
from lsst.ctrl.bps.panda.findings import Severity
from lsst.ctrl.bps.panda.rucio.checks import check_registration, check_server
from lsst.ctrl.bps.panda.rucio.status import ReplicaCount, compare_registration
from lsst.ctrl.bps.panda.rucio.step import make_forecast

pytestmark = pytest.mark.slow

RUN = "u/me/checked"


@pytest.fixture(scope="module")
def site(rucio_server, tmp_path_factory):
    from panda_servers.rucio_site import RucioSite

    site = RucioSite(rucio_server, tmp_path_factory.mktemp("rse"), scope="checked", rse="CHECKED_DISK")
    rucio_server.add_rse("CHECKED_FAR", tmp_path_factory.mktemp("far"))
    rucio_server.add_account("checkvisitor")
    rucio_server.client().add_dataset("checked", "closed")
    rucio_server.client().close("checked", "closed")
    rucio_server.client().add_container("checked", "container")
    site.fill(RUN, "image", range(4))
    return site


@pytest.fixture(scope="module")
def found(site):
    with Butler.from_config(str(site.repo)) as butler:
        return find_outputs(butler, site.registration(RUN))


@pytest.mark.parametrize(
    ("changes", "account", "words"),
    [
        ({}, "root", ""),
        ({"rule": RuleWanted("CHECKED_DISK|CHECKED_FAR", copies=2)}, "root", ""),
        ({"rse": "NOT_THERE"}, "root", "no RSE NOT_THERE"),
        ({"scope": "nothere"}, "root", "no scope nothere"),
        ({}, "nobodyknows", "no account nobodyknows"),
        ({}, "checkvisitor", "account checkvisitor does not own scope checked"),
        ({"dataset": "closed"}, "root", "checked:closed is closed"),
        ({"dataset": "container"}, "root", "is a container, not a dataset"),
        ({"rule": RuleWanted("tier=nowhere")}, "root", "names no RSE"),
        ({"rule": RuleWanted("CHECKED_FAR", copies=2)}, "root", "names 1 RSEs; 2 copies"),
        ({"scope": "checkvisitor", "rule": RuleWanted("CHECKED_FAR")}, "checkvisitor", "no limit"),
    ],
)
def test_what_the_server_would_refuse_is_told(site, rucio_server, changes, account, words):
    client = rucio_server.client()
    if changes.get("scope") == "checkvisitor":
        client.add_scope("checkvisitor", "checkvisitor")
    findings = check_server(client, site.registration(RUN, **changes), account)
    assert len(findings) == bool(words)
    assert all(words in finding.text for finding in findings)
    assert {finding.severity for finding in findings} <= {Severity.NEEDS_SERVER}


def configuration(site, **section):
    own = {
        "enabled": True, "datasetTypes": ["image"], "scope": site.scope, "rse": site.rse,
        "rseRoot": str(site.folder), "dtnUrl": site.server.transfer_url(site.folder), **section,
    }  # fmt: skip
    content = {"outputRun": RUN, "butlerConfig": str(site.repo), "rucio": own}
    return BpsConfig(content, search_order=BPS_SEARCH_ORDER, defaults={})


def check(*arguments, **options):
    """Return the texts of errors, of what needs a server, and of warnings."""
    found = check_registration(*arguments, **options)
    return SimpleNamespace(
        problems=[finding.text for finding in found if finding.severity is Severity.ERROR],
        outside=[finding.text for finding in found if finding.severity is Severity.NEEDS_SERVER],
        notes=[finding.text for finding in found if finding.severity is Severity.WARNING],
    )


def test_a_good_configuration_has_no_problem(site):
    verdict = check(configuration(site), {}, open_rucio=site.server.client)
    assert (verdict.problems, verdict.outside, verdict.notes) == ([], [], [])


def test_problems_are_of_the_configuration_or_of_the_server(site):
    verdict = check(
        configuration(site, rseRoot="/elsewhere", rse="NOT_THERE"), {}, open_rucio=site.server.client
    )
    (problem,) = verdict.problems
    assert f"The Butler writes to {site.repo}" in problem
    assert "is not below /elsewhere/checked/" in problem
    assert ["no RSE" in text for text in verdict.outside] == [True]


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("detector = ", "rucio.where is 'detector = ', which the Butler does not understand"),
        ("nosuchthing = 3", "rucio.where is"),
        ("instrument = 'Cam' AND detector IN (1..3)", ""),
        ("image.run = 'x'", ""),
    ],
)
def test_the_butler_reads_the_expression(site, where, words):
    verdict = check(configuration(site, where=where, askRucio=False), {})
    assert len(verdict.problems) == bool(words)
    assert all(words in text for text in verdict.problems)


def test_a_prefix_of_the_workers_own_is_left_to_the_worker(site):
    verdict = check(configuration(site, rseRoot="<ENV:SITE_ROOT>", askRucio=False), {})
    assert verdict.problems == []
    assert "with variables of the worker" in verdict.notes[0]


def test_what_could_not_be_asked_is_said(site):
    def refuse():
        raise RucioError("Rucio did not take the log-in: the server is away")

    verdict = check(configuration(site, butlerConfig="/not/here"), {}, open_rucio=refuse)
    assert (verdict.problems, verdict.outside) == ([], [])
    assert "rseRoot could not be compared" in verdict.notes[0]
    assert "Rucio was not asked" in verdict.notes[1]
    assert "the server is away" in verdict.notes[1]
    quiet = check(configuration(site, askRucio=False), {}, open_rucio=refuse)
    assert quiet.notes == ["Rucio was not asked about the registration (rucio.askRucio is no)."]


def test_a_wrong_section_is_a_problem_and_none_is_none(site):
    (problem,) = check(configuration(site, when="perhaps"), {}).problems
    assert "rucio.when is" in problem
    assert check(configuration(site, enabled=False), {}).problems == []


def test_status_and_forecast_from_nothing_to_complete(site, found, rucio_server, tmp_path_factory):
    client = rucio_server.client()
    far = tmp_path_factory.mktemp("status_far")
    rucio_server.add_rse("STATUS_FAR", far)
    registration = replace(site.registration(RUN), dataset_types=("image",), rule=RuleWanted("STATUS_FAR"))
    nothing = compare_registration(client, registration, found)
    assert (nothing.exists, nothing.outputs, len(nothing.missing), nothing.rules) == (False, 4, 4, ())
    assert nothing.rule_missing == "STATUS_FAR"
    forecast = make_forecast(client, registration, found)
    assert [file.is_registered for file in forecast.files] == [False] * 4
    assert forecast.registered.dataset is None

    # Two are registered by somebody's hand, and one that is none of the run's.
    for output in found.outputs[:2]:
        path = site.folder / site.scope / output.name
        add_file(client, registration, output.name, path.read_bytes())
    (site.repo / "note.txt").write_bytes(b"note")
    add_file(client, registration, "note.txt", b"note")
    (number,) = client.add_replication_rule([{"scope": "checked", "name": RUN}], 1, "STATUS_FAR")
    half = compare_registration(client, registration, found)
    assert (half.files, half.foreign, half.by_type) == (3, 1, {"image": (4, 2)})
    assert half.missing == tuple(output.name for output in found.outputs[2:])
    assert half.places == (ReplicaCount("CHECKED_DISK", 3, 0), ReplicaCount("STATUS_FAR", 0, 3))
    forecast = make_forecast(client, registration, found)
    assert [file.is_registered for file in forecast.files] == [True, True, False, False]
    assert forecast.rule_exists
    sizes = [(site.folder / site.scope / output.name).stat().st_size for output in found.outputs]
    assert [file.size for file in forecast.files] == sizes
    assert forecast.files[0].pfn == f"file://localhost:0{site.repo}/{found.outputs[0].name}"

    done = site.register(registration)
    assert done.returncode == 0, done.stderr
    rucio_server.transfer("checked", RUN, "STATUS_FAR", far)
    early = compare_registration(client, registration, found)
    rules = {rule.state for rule in early.rules}
    assert [rule.waiting for rule in early.rules] == [2]
    assert (early.missing, early.is_complete) == ((), False)
    # The files that came later have no locks until the server's daemon was there.
    rucio_server.evaluate_rules()
    (rule,) = compare_registration(client, registration, found).rules
    assert (rules, rule.state, rule.ok, rule.replicating) == ({"OK"}, "REPLICATING", 3, 2)
    assert rule.rule_id == number
    rucio_server.transfer("checked", RUN, "STATUS_FAR", far)
    complete = compare_registration(client, registration, found)
    assert complete.is_complete
    graph = compare_registration(client, replace(registration, quantum_graph="/submit/run.qg"), found)
    assert (graph.quantum_graph, graph.is_complete) == (False, False)
    assert complete.places == (ReplicaCount("CHECKED_DISK", 5, 0), ReplicaCount("STATUS_FAR", 5, 0))
    assert not compare_registration(client, registration, None).is_complete


def test_a_stuck_rule_is_shown_as_such(site, rucio_server):
    client = rucio_server.client()
    registration = site.registration(RUN, dataset="stuck")
    (site.repo / "stuck.txt").write_bytes(b"stuck")
    add_file(client, registration, "stuck.txt", b"stuck")
    (number,) = client.add_replication_rule([{"scope": "checked", "name": "stuck"}], 1, "CHECKED_FAR")
    client.update_replication_rule(number, {"state": "STUCK"})
    status = compare_registration(client, registration, None)
    assert [(rule.rule_id, rule.state) for rule in status.rules] == [(number, "STUCK")]
    assert not status.is_complete


def add_file(client, registration, name, content):
    did = {"scope": registration.scope, "name": name}
    facts = {"bytes": len(content), "adler32": f"{zlib.adler32(content):08x}"}
    pfn = f"{registration.dtn_url}/{registration.scope}/{name}"
    client.add_replicas(registration.rse, [did | facts | {"pfn": pfn}])
    if registration.dataset not in client.list_dids(registration.scope, {}, did_type="dataset"):
        client.add_dataset(registration.scope, registration.dataset, rse=registration.rse)
    client.attach_dids(registration.scope, registration.dataset, [did])


def test_without_rucios_set_up_the_error_says_what_to_do(rucio_server, tmp_path):
    code = "from lsst.ctrl.bps.panda.rucio.client import open_client; open_client(timeout=1)"
    base = {name: value for name, value in os.environ.items() if not name.startswith("RUCIO_")}
    silent = socket.create_server(("127.0.0.1", 0))
    text = rucio_server.client_configuration("silent").read_text()
    path = tmp_path / "silent.cfg"
    path.write_text(text.replace(rucio_server.url, f"http://127.0.0.1:{silent.getsockname()[1]}"))
    for variables, words in (
        # It takes connections, and never answers.
        ({"RUCIO_CONFIG": str(path)}, "RucioError: Rucio did not take the log-in at http://127.0.0.1"),
        ({"RUCIO_CONFIG": "/not/there.cfg"}, "SettingsError: Rucio's clients are not set up"),
        (rucio_server.client_environment("stranger"), "RucioError: Rucio did not take the log-in"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code], env=base | variables, capture_output=True, text=True, timeout=120
        )
        assert words in done.stderr
    silent.close()
