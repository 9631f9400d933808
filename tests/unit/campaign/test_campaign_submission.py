"""A campaign submitted once, whatever happens in between, and looked at."""

from __future__ import annotations

import io
import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from jsonschema import Draft202012Validator
from lsst.ctrl.bps.wms_service import WmsStates

from lsst.ctrl.bps.panda.campaign.record import CampaignRecord, PartRecord, lock_campaign, read_campaign
from lsst.ctrl.bps.panda.campaign.runs import (
    CampaignOverview,
    SiteOverview,
    cancel_campaign,
    combine_state,
    make_campaign_document,
    make_overview,
    merge_restarts,
    restart_campaign,
    submit_campaign,
)
from lsst.ctrl.bps.panda.errors import PandaBpsError, SubmissionUncertainError, TransportError
from lsst.ctrl.bps.panda.insight.documents import read_schema
from lsst.ctrl.bps.panda.runs.record import RunIndex, RunRecord
from lsst.ctrl.bps.panda.settings.bps_command import LOG_NAME, end_log, log_into, shape_output
from lsst.ctrl.bps.panda.status.bps_states import zero_counts

SERVER = "http://127.0.0.1:1/server/panda"


class Panda:
    """Stands for BPS and the server together: what is submitted exists."""

    def __init__(self, directory):
        self.directory = directory
        self.requests = {}
        self.calls = []
        self.trouble = {}
        self.answers = True
        self.relay = self
        self.settings = SimpleNamespace(url=SERVER, state_directory=str(directory / "state"))

    def get_request_ids_by_name(self, name):
        if not self.answers:
            raise TransportError("no answer")
        return {name: self.requests[name]} if name in self.requests else {}

    def submit(self, file):
        """Do what BPS does with a configuration, until trouble comes."""
        site = Path(file).stem
        self.calls.append(site)
        trouble = self.trouble.pop(site, {})
        path = self.directory / "campaign" / site
        path.mkdir(parents=True)
        record = RunRecord(run={"name": f"run_{site}", "submit_path": str(path)}, request_id=None)
        record.write(path)
        if "before" in trouble:
            raise trouble["before"]
        assert f"run_{site}" not in self.requests, "submitted twice"
        self.requests[f"run_{site}"] = 40 + len(self.requests)
        if "between" in trouble:
            raise trouble["between"]
        record.submitted(self.requests[f"run_{site}"], server=SERVER).write()
        if "after" in trouble:
            raise trouble["after"]


@pytest.fixture
def panda(tmp_path):
    return Panda(tmp_path)


@pytest.fixture
def record(tmp_path):
    directory = tmp_path / "campaign"
    directory.mkdir()
    parts = [
        PartRecord(
            site=site,
            compute_site=site,
            share=share,
            values=[share],
            file=f"{directory}/{site}.yaml",
            submit_path=f"{directory}/{site}",
            run=f"run_{site}",
            output_run=f"run/{site}",
            butler="/repo",
        )
        for site, share in (("A", 35), ("B", 40), ("C", 25))
    ]
    record = CampaignRecord(
        name="camp",
        directory=str(directory),
        config="/run.yaml",
        digest="",
        service_class="x",
        partition="tract",
        prepared_at="2026-11-20T12:00:00+00:00",
        parts=parts,
    )
    record.write()
    return record


def submit(record, panda):
    """Submit what a record on disk says, as a new process would."""
    said = []
    found = read_campaign(record.directory)
    try:
        complete = submit_campaign(found, panda, submit=panda.submit, tell=said.append)
    finally:
        after = read_campaign(record.directory)
    assert complete == after.complete
    assert found == after
    return said


def states(record):
    return {part.site: part.state.value for part in read_campaign(record.directory).parts}


def numbers(record):
    return {part.site: part.request_id for part in read_campaign(record.directory).parts}


def test_each_site_gets_its_run(record, panda):
    assert submit(record, panda) == ["A: run 40 (run_A)", "B: run 41 (run_B)", "C: run 42 (run_C)"]
    assert numbers(record) == {"A": 40, "B": 41, "C": 42}
    assert all(part.submitted_at for part in read_campaign(record.directory).parts)


def test_a_second_call_submits_nothing(record, panda):
    submit(record, panda)
    assert submit(record, panda)[0] == "A: submitted before as run 40"
    assert panda.calls == ["A", "B", "C"]


@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_an_interruption_is_continued(record, panda, when):
    panda.trouble["B"] = {when: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        submit(record, panda)
    assert states(record) == {"A": "submitted", "B": "submitting", "C": "prepared"}
    submit(record, panda)
    assert numbers(record) == {"A": 40, "B": 41, "C": 42}
    assert panda.calls == (["A", "B", "B", "C"] if when == "before" else ["A", "B", "C"])


def test_a_run_that_is_found_on_the_server_gets_its_record(record, panda):
    panda.trouble["B"] = {"between": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        submit(record, panda)
    submit(record, panda)
    run = RunIndex(panda.settings.state_directory, SERVER).find(41)
    assert run is not None
    assert (run.name, run.request_id) == ("run_B", 41)


def test_a_site_that_fails_does_not_hold_up_the_others(record, panda):
    panda.trouble["A"] = {"before": RuntimeError("no quantum graph")}
    assert submit(record, panda)[0] == "A: not submitted: no quantum graph"
    assert states(record) == {"A": "failed", "B": "submitted", "C": "submitted"}
    submit(record, panda)
    assert numbers(record) == {"A": 42, "B": 40, "C": 41}
    # What BPS had left of the first try is kept aside.
    assert (Path(record.directory) / "A.try_1" / "panda_run.json").exists()
    assert read_campaign(record.directory).parts[0].error == ""


def test_a_program_that_ends_the_process_is_a_failure(record, panda):
    panda.trouble["A"] = {"before": SystemExit(255)}
    assert submit(record, panda)[0] == "A: not submitted: 255"
    assert states(record)["C"] == "submitted"


@pytest.mark.parametrize("exists", [True, False])
def test_an_uncertain_submission_is_looked_up_first(record, panda, exists):
    when = "between" if exists else "before"
    panda.trouble["A"] = {when: SubmissionUncertainError("nobody knows")}
    submit(record, panda)
    assert states(record)["A"] == "submitting"
    panda.answers = False
    assert submit(record, panda)[0] == "A: not submitted: no answer"
    panda.answers = True
    submit(record, panda)
    assert panda.calls == (["A", "B", "C"] if exists else ["A", "B", "C", "A"])
    assert numbers(record)["A"] == (40 if exists else 42)


def test_what_another_process_has_submitted_meanwhile_is_not_submitted_again(record, panda):
    early = read_campaign(record.directory)
    submit(record, panda)
    said = []
    # It waited between reading the record and taking the lock.
    assert submit_campaign(early, panda, submit=panda.submit, tell=said.append)
    assert said[0] == "A: submitted before as run 40"
    assert panda.calls == ["A", "B", "C"]


def test_two_processes_do_not_submit_at_once(record, panda):
    with lock_campaign(record.directory), pytest.raises(PandaBpsError, match="Another process is working"):
        submit(record, panda)
    assert panda.calls == []
    submit(record, panda)


def test_bps_that_submits_nothing_without_an_error_is_an_error(record, panda):
    def nothing(file):
        path = Path(record.directory) / Path(file).stem
        path.mkdir()
        RunRecord(run={"name": "x"}, request_id=None).write(path)

    found = read_campaign(record.directory)
    assert not submit_campaign(found, panda, submit=nothing)
    assert "names no request" in found.parts[0].error


@pytest.fixture
def terminal():
    """What the terminal gets of what is logged."""
    shown = io.StringIO()
    handler = logging.StreamHandler(shown)
    logging.getLogger().addHandler(handler)
    yield shown
    logging.getLogger().removeHandler(handler)


def submit_context():
    """The context of ``panda_bps campaign submit``."""
    context = None
    for name in ("panda_bps", "campaign", "submit"):
        context = click.Context(click.Command(name), info_name=name, parent=context)
    return context


def test_what_is_logged_for_a_site_is_in_its_directory_and_the_terminal_gets_our_own(
    tmp_path, caplog, terminal
):
    with submit_context(), caplog.at_level("INFO", "lsst.ctrl.bps"):
        for site in ("A", "B"):
            shape_output(lambda config, message: message)
            logging.getLogger("lsst.ctrl.bps").info("how much memory %s takes", site)
            logging.getLogger("lsst.ctrl.bps.panda").info("what is planned for %s", site)
            (tmp_path / site).mkdir()
            log_into(str(tmp_path / site))
            end_log()
    assert terminal.getvalue() == "what is planned for A\nwhat is planned for B\n"
    for site in ("A", "B"):
        first, second = (tmp_path / site / LOG_NAME).read_text().splitlines()
        assert first.endswith(f"how much memory {site} takes")
        assert second.endswith(f"what is planned for {site}")


def test_the_log_of_a_command_ends_with_it():
    """Even if it failed before there was a submit directory: the next one of the process has its own."""
    before = list(logging.getLogger().handlers)
    with submit_context():
        shape_output(lambda config, message: message)
        assert len(logging.getLogger().handlers) == len(before) + 1
    assert logging.getLogger().handlers == before


# --- looking ------------------------------------------------------------------


def counts(**numbers):
    return {**zero_counts(), **{WmsStates[name]: number for name, number in numbers.items()}}


@pytest.mark.parametrize(
    ("states", "combined"),
    [
        ("SUCCEEDED SUCCEEDED", "SUCCEEDED"),
        ("SUCCEEDED FAILED", "FAILED"),
        ("DELETED SUCCEEDED", "DELETED"),
        ("DELETED FAILED", "FAILED"),
        ("RUNNING SUCCEEDED", "RUNNING"),
        ("RUNNING FAILED", "RUNNING"),
        ("UNREADY SUCCEEDED", "RUNNING"),
        ("UNREADY UNREADY", "UNREADY"),
        ("UNREADY PENDING", "PENDING"),
        ("UNKNOWN RUNNING", "UNKNOWN"),
        ("", "UNKNOWN"),
    ],
)
def test_one_state_for_all(states, combined):
    assert combine_state(WmsStates[name] for name in states.split()) is WmsStates[combined]


def tally(**labels):
    return SimpleNamespace(by_label={label: counts(**numbers) for label, numbers in labels.items()})


def test_a_restarted_run_is_counted_once():
    first = tally(
        init={"SUCCEEDED": 1}, isr={"SUCCEEDED": 6, "FAILED": 2}, coadd={"PRUNED": 3}, final={"SUCCEEDED": 1}
    )
    second = tally(
        isr={"SUCCEEDED": 1, "FAILED": 1}, coadd={"SUCCEEDED": 1, "PRUNED": 2}, final={"SUCCEEDED": 1}
    )
    third = tally(isr={"SUCCEEDED": 1}, coadd={"RUNNING": 2}, final={"UNREADY": 1})
    assert merge_restarts([first]) == first.by_label
    assert merge_restarts([first, second]) == {
        "init": counts(SUCCEEDED=1),
        "isr": counts(SUCCEEDED=7, FAILED=1),
        "coadd": counts(SUCCEEDED=1, PRUNED=2),
        "final": counts(SUCCEEDED=1),
    }
    assert merge_restarts([first, second, third]) == {
        "init": counts(SUCCEEDED=1),
        "isr": counts(SUCCEEDED=8),
        "coadd": counts(SUCCEEDED=1, RUNNING=2),
        "final": counts(UNREADY=1),
    }


def site(name, state, request_id, *, ended=False, **labels):
    return SiteOverview(
        site=name,
        share=1.5,
        values=3,
        run=f"run_{name}",
        request_ids=(request_id,) if request_id else (),
        state=WmsStates[state],
        ended=ended,
        labels={label: counts(**numbers) for label, numbers in labels.items()},
        path=f"/sub/{name}",
    )


@pytest.fixture
def overview():
    return CampaignOverview(
        name="camp",
        path="/sub",
        partition="tract",
        moment=datetime(2026, 11, 20, 12, tzinfo=UTC),
        sites=(
            site("A", "SUCCEEDED", 1, ended=True, isr={"SUCCEEDED": 2}, final={"SUCCEEDED": 1}),
            site("B", "RUNNING", 2, isr={"RUNNING": 1, "SUCCEEDED": 1}, coadd={"UNREADY": 1}),
            site("C", "FAILED", 3, ended=True, isr={"FAILED": 1}),
            site("D", "UNREADY", None),
        ),
        problems=("D: not submitted yet",),
    )


def test_labels_and_totals_are_added_up(overview):
    assert overview.labels == {
        "isr": counts(SUCCEEDED=3, RUNNING=1, FAILED=1),
        "final": counts(SUCCEEDED=1),
        "coadd": counts(UNREADY=1),
    }
    assert overview.total == counts(SUCCEEDED=4, RUNNING=1, FAILED=1, UNREADY=1)
    assert (overview.state, overview.ended) == (WmsStates.RUNNING, False)


def test_the_document_follows_the_schema(overview):
    document = json.loads(json.dumps(make_campaign_document(overview)))
    Draft202012Validator(read_schema()).validate(document)
    assert document["jobs"] == 7
    assert [(one["site"], one["state"], one["request_id"], one["jobs"]) for one in document["sites"]] == [
        ("A", "SUCCEEDED", 1, 3), ("B", "RUNNING", 2, 3), ("C", "FAILED", 3, 1), ("D", "UNREADY", None, 0),
    ]  # fmt: skip
    assert document["total"]["SUCCEEDED"] == 4
    del document["sites"][0]["labels"]
    assert list(Draft202012Validator(read_schema()).iter_errors(document))


def test_only_runs_that_go_on_are_cancelled(overview):
    cancelled = []
    actions = list(cancel_campaign(overview, lambda run: (cancelled.append(run), (run == "2", ""))[1]))
    assert cancelled == ["2"]
    assert [(action.site, action.done) for action in actions] == [
        ("A", True), ("B", True), ("C", True), ("D", True),
    ]  # fmt: skip


def test_only_runs_that_are_over_and_did_not_succeed_are_restarted(overview):
    restarted = []

    def restart(run):
        restarted.append(run)
        return None, None, "the server refuses"

    actions = {action.site: action for action in restart_campaign(overview, restart)}
    assert restarted == ["3"]
    assert (actions["C"].done, actions["C"].text) == (False, "the server refuses")
    assert actions["B"].text == "run 2 still goes on"
    assert not actions["D"].done
    assert "panda_bps campaign submit" in actions["D"].text


def test_a_site_that_cannot_be_asked_does_not_hide_the_others(record, panda):
    panda.trouble["C"] = {"before": RuntimeError("no graph")}
    submit(record, panda)

    def ask(number):
        raise TransportError(f"no answer about {number}")

    found = make_overview(
        read_campaign(record.directory), ask=ask, successor=lambda number: None, moment=datetime.now(UTC)
    )
    assert [one.state.name for one in found.sites] == ["UNKNOWN", "UNKNOWN", "UNREADY"]
    assert found.problems == ("A: no answer about 40", "B: no answer about 41", "C: no graph")
    assert found.state is WmsStates.UNKNOWN
