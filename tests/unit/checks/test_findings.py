"""What becomes of findings: sorted, counted, shown, logged or raised."""

import pytest

from lsst.ctrl.bps.panda.errors import PandaBpsError, SettingsError
from lsst.ctrl.bps.panda.findings import Finding, Severity, describe_findings, report_findings, select

ERROR = Finding(Severity.ERROR, "priority is 'high' (run.yaml, line 3).", "priority", "isr", "run.yaml", 3)
SERVER = Finding(Severity.NEEDS_SERVER, "no server")
WARNING = Finding(Severity.WARNING, "not as asked")
HINT = Finding(Severity.HINT, "did you mean queue?", key="queu", file="run.yaml", line=4)
ALL = [HINT, WARNING, SERVER, ERROR, HINT]


def test_a_place_is_shown_once():
    assert str(ERROR) == "priority is 'high' (run.yaml, line 3)."
    assert str(HINT) == "did you mean queue? (run.yaml, line 4)"
    assert str(SERVER) == "no server"


def test_an_error_keeps_what_it_knows():
    error = SettingsError("wrong", key="queue", label="isr", file="run.yaml", line=2)
    assert Finding.from_error(error) == Finding(Severity.ERROR, "wrong", "queue", "isr", "run.yaml", 2)
    other = Finding.from_error(PandaBpsError("away"), Severity.NEEDS_SERVER)
    assert other == Finding(Severity.NEEDS_SERVER, "away")


def test_selection_is_ordered_and_has_no_doubles():
    assert select(ALL, *Severity) == [ERROR, SERVER, WARNING, HINT]
    inherited = Finding(Severity.ERROR, ERROR.text, label="warp")
    assert select([ERROR, inherited], Severity.ERROR) == [ERROR]


@pytest.mark.parametrize(
    ("findings", "is_dry_run", "raised"),
    [
        (ALL, False, ["- priority is 'high' (run.yaml, line 3).", "- no server"]),
        (ALL, True, ["- priority is 'high' (run.yaml, line 3)."]),
        ([SERVER], True, []),
        ([WARNING, HINT], False, []),
        ([], False, []),
    ],
)
def test_what_stops_a_run(findings, is_dry_run, raised, caplog):
    if raised:
        with pytest.raises(PandaBpsError) as caught:
            report_findings(findings, is_dry_run=is_dry_run)
        assert str(caught.value).splitlines() == ["This run cannot be submitted:", *raised]
    else:
        report_findings(findings, is_dry_run=is_dry_run)
    milder = [str(finding) for finding in (WARNING, HINT) if finding in findings]
    waiting = SERVER in findings and is_dry_run
    assert [record.getMessage() for record in caplog.records][: len(milder)] == milder
    assert len(caplog.records) == len(milder) + waiting
    assert ("- no server" in caplog.text) == waiting


def test_everything_is_shown_and_counted():
    text, can_submit = describe_findings(ALL, "run.yaml")
    assert text.splitlines() == [
        "Hint: did you mean queue? (run.yaml, line 4)",
        "Warning: not as asked",
        "2 problems in run.yaml:",
        "- priority is 'high' (run.yaml, line 3).",
        "- no server",
        "1 error, 1 problem of the server, the log-in or the staging area, 1 warning, 1 hint in run.yaml.",
    ]
    assert not can_submit


@pytest.mark.parametrize(
    ("findings", "last"),
    [
        ([], "No problem found in run.yaml."),
        ([Finding(Severity.HINT, str(number)) for number in range(10)], "10 hints in run.yaml."),
        ([WARNING, Finding(Severity.WARNING, "another")], "2 warnings in run.yaml."),
    ],
)
def test_hints_are_not_nothing(findings, last):
    text, can_submit = describe_findings(findings, "run.yaml")
    assert text.splitlines()[-1] == last
    assert len(text.splitlines()) == len(findings) + 1
    assert can_submit
