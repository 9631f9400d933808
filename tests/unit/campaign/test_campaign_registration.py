"""What the runs of a campaign have registered, for each site and in sum."""

from __future__ import annotations

from dataclasses import replace

import pytest
from jsonschema import Draft202012Validator

from lsst.ctrl.bps.panda.campaign.record import CampaignRecord, PartRecord, PartState
from lsst.ctrl.bps.panda.campaign.runs import make_registration_document, make_registration_overview
from lsst.ctrl.bps.panda.cli.panda_bps_rucio import campaign_lines, is_campaign
from lsst.ctrl.bps.panda.errors import RucioError
from lsst.ctrl.bps.panda.insight.documents import read_schema
from lsst.ctrl.bps.panda.rucio.status import RegistrationStatus, ReplicaCount, Rule

RULE = Rule(
    "r1", "FAR", 1, "root", "REPLICATING", ok=3, replicating=1, stuck=0, error="", expires_at="", waiting=0
)
STATUS = RegistrationStatus(
    scope="dp2",
    dataset="run/A",
    exists=True,
    is_open=True,
    files=4,
    size=40,
    places=(ReplicaCount("A_DISK", 4, 0), ReplicaCount("FAR", 3, 1)),
    rules=(RULE,),
    outputs=5,
    missing=("x.fits", "y.fits"),
    foreign=1,
    by_type={"image": (5, 3)},
    absent=(),
    rule_missing="",
    quantum_graph=None,
)
DONE = replace(
    STATUS, dataset="run/B", missing=(), outputs=4, rules=(replace(RULE, rule_id="r2", state="OK"),)
)


def make_record(*sites):
    parts = [
        PartRecord(
            site=site, compute_site=site, share=1, values=[1], file="", submit_path=f"/submit/{site}",
            run=f"run_{site}", output_run=f"run/{site}", butler="/repo", state=PartState.SUBMITTED,
            request_id=40 + number,
        )
        for number, site in enumerate(sites)
    ]  # fmt: skip
    return CampaignRecord(
        name="camp", directory="/submit", config="/run.yaml", digest="", service_class="x", partition="tract",
        prepared_at="2026-11-20T12:00:00+00:00", parts=parts,
    )  # fmt: skip


def look(record, **answers):
    def ask(path):
        answer = answers[path.rsplit("/", 1)[1]]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, tuple) else (answer, ())

    return make_registration_overview(record, ask)


def document_of(found):
    document = make_registration_document(found)
    Draft202012Validator(read_schema()).validate(document)
    return document


def test_sites_are_added_up():
    found = look(make_record("A", "B"), A=STATUS, B=DONE)
    document = document_of(found)
    assert document["total"] == {
        "outputs": 9, "registered": 7, "missing": 2, "files": 8, "size": 80,
        "rules": {"OK": 1, "REPLICATING": 1}, "ok": 6, "replicating": 2, "stuck": 0, "waiting": 0,
    }  # fmt: skip
    assert [(place["rse"], place["available"], place["others"]) for place in document["places"]] == [
        ("A_DISK", 8, 0), ("FAR", 6, 2),
    ]  # fmt: skip
    assert [(site["site"], site["request_id"], site["complete"]) for site in document["sites"]] == [
        ("A", 40, False), ("B", 41, True),
    ]  # fmt: skip
    assert (document["complete"], document["not_asked"], document["problems"]) == (False, [], [])
    assert look(make_record("B"), B=DONE).is_complete
    lines = [line.split() for line in campaign_lines(found, list_missing=True)]
    assert "registration complete at 1 of 2 sites" in " ".join(lines[0])
    assert lines[2] == ["A", "40", "5", "3", "2", "4", "3", "1", "0", "0", "1", "REPLICATING"]
    assert lines[4][:6] == ["total", "-", "9", "7", "2", "8"]
    assert lines[4][6:10] == ["6", "2", "0", "0"]
    assert " ".join(lines[4][10:]) == "1 OK, 1 REPLICATING"
    assert ["A:", "missing", "y.fits"] in lines


def test_a_dataset_that_sites_share_counts_once():
    shared = replace(DONE, dataset="run/A", rules=STATUS.rules, outputs=2)
    document = document_of(look(make_record("A", "B"), A=STATUS, B=shared))
    total = document["total"]
    assert (total["files"], total["size"], total["rules"], total["ok"]) == (4, 40, {"REPLICATING": 1}, 3)
    assert (total["outputs"], total["missing"]) == (7, 2)
    assert document["places"][0]["available"] == 4


def test_a_site_that_cannot_be_asked_does_not_hide_the_others():
    record = make_record("A", "B", "C", "D")
    record.parts[3].state = PartState.FAILED
    elsewhere = replace(DONE, dataset="run/B", outputs=None, by_type={}, foreign=0)
    found = look(
        record,
        A=STATUS,
        B=(elsewhere, ("what is missing. It is far away.",)),
        C=RucioError("Rucio did not tell."),
    )
    document = document_of(found)
    assert document["not_asked"] == ["B", "C", "D"]
    assert document["total"]["outputs"] == 5
    assert document["total"]["files"] == 8
    assert [site["rucio"] is None for site in document["sites"]] == [False, False, True, True]
    assert document["problems"] == [
        "B: what is missing. It is far away.",
        "C: all of it. Rucio did not tell.",
        "D: all of it: its run is not submitted.",
    ]
    text = "\n".join(campaign_lines(found, list_missing=False))
    assert "without B, C, D" in text
    assert "x.fits" not in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rule_missing": "FAR", "rules": ()}, "A: no rule for FAR, which there should be"),
        ({"quantum_graph": False}, "A: the quantum graph is missing"),
        ({"absent": ("table",)}, "A: the run has no dataset of type table"),
        ({"rules": (replace(RULE, state="STUCK", error="no space"),)}, "rule r1: STUCK, 1 of FAR"),
    ],
)
def test_what_lacks_is_named(changes, words):
    found = look(make_record("A"), A=replace(STATUS, **changes))
    assert not found.is_complete
    assert any(line.startswith(words) for line in campaign_lines(found, list_missing=False))


@pytest.mark.parametrize(
    ("changes", "complete"),
    [
        ({}, True),
        ({"rule_missing": "FAR"}, False),
        ({"quantum_graph": True}, True),
        ({"quantum_graph": False}, False),
        ({"rules": (replace(RULE, state="OK", waiting=1),)}, False),
        ({"outputs": None}, False),
        ({"missing": ("x",)}, False),
    ],
)
def test_when_a_registration_is_complete(changes, complete):
    assert replace(DONE, **changes).is_complete is complete


def test_a_campaign_is_told_from_a_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "panda_run.json").write_text("{}")
    (tmp_path / "panda_campaign.json").write_text("{}")
    (tmp_path / "run.yaml").write_text("")
    assert [is_campaign(str(tmp_path / name)) for name in ("", "run.yaml", "run", "41")] == [
        True, True, False, False,
    ]  # fmt: skip
    assert not is_campaign("41")
