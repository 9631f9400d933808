"""What commands print on terminals of several sizes."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from lsst.ctrl.bps.wms_service import WmsStates

from lsst.ctrl.bps.panda.cli import panda_bps_show, panda_bps_watch
from lsst.ctrl.bps.panda.cli.output import highlight, table
from lsst.ctrl.bps.panda.cli.panda_bps import main
from lsst.ctrl.bps.panda.insight.progress import Progress
from lsst.ctrl.bps.panda.status.bps_states import sum_counts
from lsst.ctrl.bps.panda.status.failures import ErrorGroup
from lsst.ctrl.bps.panda.status.job_errors import JobError
from lsst.ctrl.bps.panda.status.records import JobRecord
from lsst.ctrl.bps.panda.status.verdicts import Verdict

NOW = datetime(2026, 11, 21, tzinfo=UTC)
SCREENS = Path(__file__).resolve().parents[2] / "data" / "screens"


def screen_lines(run, columns, height):
    return panda_bps_watch.screen_lines([run], columns, height, NOW)


def counts(**numbers):
    return {state: numbers.get(state.name, 0) for state in WmsStates}


def a_run(labels, **values):
    total = sum_counts(labels.values())
    facts = {"moment": NOW, "request_id": 41, "name": "u_ann_drp", "state": WmsStates.RUNNING, "ended": False}
    return Progress(**facts | {"labels": labels, "total": total} | values)


def many():
    """A hundred labels: some done, one that runs, two with failures."""
    return {
        f"label_{n:03d}_{'x' * (n % 30)}": counts(
            SUCCEEDED=900 if n < 40 else 0,
            RUNNING=100 if n == 40 else 0,
            FAILED=1 if n in (5, 70) else 0,
            UNREADY=1000 if n > 40 else 0,
        )
        for n in range(100)
    }


@pytest.mark.parametrize("size", [(80, 24), (200, 50), (40, 12), (132, 200)])
def test_the_display_fits_and_shows_what_matters(size):
    columns, height = size
    run = a_run(many(), rate=12.3, end=NOW + timedelta(hours=3), errors=("2 x payload 17 in label_005",))
    lines = screen_lines(run, columns - 1, height - 1)
    assert len(lines) <= height - 1
    text = "\n".join(line[: columns - 1] for line in lines)
    for label in ("label_005", "label_040", "label_070") if columns > 40 else ("label_005",):
        assert label in text
    assert "2 x payload 17" in text
    assert [line for line in lines if line.startswith("total")]
    # The figures are not cut off, whatever the labels are.
    (total,) = [line for line in lines if line.startswith("total")]
    assert total.split()[-1] == "2"
    assert len(total) < columns
    assert " ".join(text.split()).endswith("Ctrl-C stops watching, not the run")
    shown = sum(line.startswith("label_") for line in lines)
    assert shown == 100 or f"({100 - shown} more)" in text


def test_what_went_wrong_is_seen_on_the_narrowest_display():
    labels = {"a_label_of_some_length": counts(SUCCEEDED=12345, FAILED=678, DELETED=90, RUNNING=4)}
    head, row, total = screen_lines(a_run(labels), 39, 12)[2:5]
    assert head.split()[-2:] == ["failed", "deleted"]
    assert row.split()[-2:] == total.split()[-2:] == ["678", "90"]
    assert len(head) <= 39


def test_there_is_nothing_to_stop_when_the_run_has_ended():
    run = replace(a_run({"isr": counts(SUCCEEDED=1)}), ended=True)
    assert screen_lines(run, 80, 24)[-1].startswith("looked at ")
    assert "Ctrl-C" not in screen_lines(run, 80, 24)[-1]


def test_one_failed_job_of_many_is_seen_in_the_bar():
    lines = screen_lines(a_run({"isr": counts(SUCCEEDED=9999, FAILED=1)}), 120, 24)
    assert "####x  10000" in lines[3]


def test_columns_of_what_does_not_happen_are_left_out():
    plain = screen_lines(a_run({"isr": counts(SUCCEEDED=1)}), 120, 24)
    assert plain[2].split() == ["label", "jobs", "done", "running", "waiting", "failed"]
    pruned = screen_lines(a_run({"isr": counts(SUCCEEDED=1, PRUNED=2)}), 120, 24)
    assert pruned[2].split() == ["label", "jobs", "done", "running", "waiting", "failed", "pruned"]


def test_tables_drop_columns_only_where_they_must():
    head, rows = ("label", "a", "b", "c"), [("isr", 1, 22, None), ("long_label", 333, 4, 5)]
    full = table(head, rows)
    assert full == ["label         a   b  c", "isr           1  22  -", "long_label  333   4  5"]
    assert table(head, rows, drop=("b", "a")) == full, "no terminal"
    assert table(head, rows, drop=("b", "a"), width=len(full[0])) == full
    assert table(head, rows, drop=("b", "a"), width=20) == [
        "label         a  c",
        "isr           1  -",
        "long_label  333  5",
    ]
    assert table(head, rows, drop=("b", "a"), width=5)[2] == "long_label  5"
    assert table(head, [], drop=("b",), width=5) == ["label  a  c"]


def coloured(line):
    """Words of a line and their colours."""
    text = highlight(line)
    return [(text.plain[span.start : span.end], span.style) for span in text.spans if span]


def test_states_and_bars_are_in_colour():
    labels = {"isr": counts(SUCCEEDED=50, FAILED=25, RUNNING=25), "not_failed": counts(UNREADY=1)}
    lines = screen_lines(a_run(labels), 120, 24)
    assert coloured(lines[1]) == [("RUNNING", "blue")]
    assert coloured(lines[3]) == [("#" * 20, "green"), ("x" * 10, "red"), (">" * 10, "blue")]
    assert coloured(lines[4]) == []
    assert coloured("label_1  job:0  failed  failed job") == [("failed", "red")]
    first, second = "First failure: isr isr:3: ValueError: no", "    stars"
    assert coloured(f"{first}\n{second}\n  2 x other") == [(f"{first}\n{second}", "red")]


LABELS = {
    "isr": counts(SUCCEEDED=120),
    "characterizeImageOfTheWholeFocalPlane": counts(SUCCEEDED=60, RUNNING=24, FAILED=4, READY=32),
    "makeWarp": counts(UNREADY=16, PRUNED=2),
}
FAILURE = (
    "characterizeImageOfTheWholeFocalPlane characterize:17, PanDA job 4711: "
    "lsst.meas.algorithms.NoStarsError: only 3 of the 12 stars that the PSF model needs were found"
)
GOING = a_run(
    LABELS,
    begun=NOW - timedelta(hours=2, minutes=3, seconds=4),
    rate=12.3,
    end=NOW + timedelta(minutes=40),
    first_failure=FAILURE,
    errors=("4 x payload 1 in characterizeImageOfTheWholeFocalPlane",),
    next_query=NOW + timedelta(seconds=24),
)
OVER = a_run(
    {"isr": counts(SUCCEEDED=9)},
    request_id=7,
    name="u_ann_test",
    state=WmsStates.SUCCEEDED,
    ended=True,
    begun=NOW - timedelta(hours=3),
    over=NOW - timedelta(hours=2),
)


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_the_display_is_the_stored_one(columns):
    """One run that goes on, one that is over, and both."""
    shown = []
    for runs in ([GOING], [OVER], [GOING, OVER]):
        lines = panda_bps_watch.screen_lines(runs, columns - 1, 23, NOW, {7: "SLAC"})
        assert max(map(len, lines)) < columns
        shown += [*lines, "-" * (columns - 1)]
    assert "".join(f"{line}\n" for line in shown) == (SCREENS / f"watch_{columns}.txt").read_text()


@pytest.mark.parametrize("columns", range(60, 161, 7))
def test_there_are_bars_from_60_columns_on(columns):
    rows = screen_lines(a_run({"label": counts(SUCCEEDED=123456, FAILED=1234, DELETED=5)}), columns - 1, 24)
    assert "######x" in rows[3] or "#####x" in rows[3]
    assert len(rows[3]) < columns


def test_the_time_goes_on_between_two_queries():
    later = panda_bps_watch.screen_lines([GOING], 100, 24, NOW + timedelta(seconds=10))
    assert "2:03:14 since submission" in later[1]
    assert later[-1].startswith("00:00:10 UTC, next query in 14 s; Ctrl-C")
    late = panda_bps_watch.screen_lines([GOING], 100, 24, NOW + timedelta(seconds=70))
    assert "looked at 70 s ago" in late[-1]


def test_ctrl_c_ends_any_command_with_its_exit_code():
    @click.command()
    def slow():
        raise KeyboardInterrupt

    group = type(main)("panda_bps", commands={"slow": slow})
    result = CliRunner().invoke(group, ["slow"])
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("name", sorted(main.commands))
def test_help_teaches(name):
    result = CliRunner().invoke(main, [name, "--help"], prog_name="panda_bps")
    assert result.exit_code == 0
    assert all(len(line) <= 80 for line in result.output.splitlines())
    assert "\\b" not in result.output
    if name in ("show", "watch", "errors", "logs", "resources", "html"):
        assert f"panda_bps {name} 41" in result.output
        assert "--json" in result.output


def test_help_begins_with_questions():
    text = CliRunner().invoke(main, ["--help"]).output
    assert "\\b" not in text
    assert "Why did jobs of it fail?     panda_bps errors 41" in text


def a_group():
    error = JobError("payload", 1, "Failed to execute payload: exit code 1 of the payload")
    example = JobRecord(
        4711, 101, "failed", "characterize", "characterize:17", 1, started=NOW, ended=NOW,
        log_url="http://127.0.0.1:43211/server/panda/logs/PandaJob_4711/payload.stdout",
    )  # fmt: skip
    log = (
        "INFO 2026-11-21T00:00:00 lsst.characterize (characterize.py:41)(characterize:17) - begins",
        "ERROR 2026-11-21T00:00:01 lsst.ctrl.mpexec (executor.py:12)(characterize:17) - Execution of task "
        "'characterize' on quantum {instrument: 'StarCam', detector: 17, visit: 260315001} failed",
        "lsst.meas.algorithms.NoStarsError: only 3 of the 12 stars that the PSF model needs were found",
    )
    return ErrorGroup(
        "characterize", error, error.text, 12, 4, 3, sites=(("SLAC", 10), ("LANCS", 2)),
        nodes=(("sdfrome012", 12),), first=NOW, last=NOW + timedelta(minutes=3), example=example,
        errors=(error,), log_tail=log, exception=log[-1],
        verdict=Verdict(
            "an error of the payload", "Look at the log of the task; the cause is in the code, its "
            "configuration or the data. Mend it, and submit the run once more, since a restart uses the "
            "pipeline as it was."
        ),
    )  # fmt: skip


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_errors_are_shown_as_stored_and_the_exception_first(columns):
    lines = [*panda_bps_show.error_lines(1, a_group(), columns)]
    plain = [str(line) for line in lines]
    assert plain[1].startswith("1. lsst.meas.algorithms.NoStarsError")
    assert lines[1].style == "bold red"
    # A URL is not broken, so that it can be copied.
    assert all(len(line) <= columns or "http://" in line for line in plain)
    assert "".join(f"{line}\n" for line in plain) == (SCREENS / f"errors_{columns}.txt").read_text()


def test_errors_are_whole_lines_where_there_is_no_terminal():
    plain = [str(line) for line in panda_bps_show.error_lines(1, a_group(), 0)]
    assert plain[1].endswith("needs were found")
    assert max(len(line) for line in plain if "=>" in line) <= 100
    assert any(len(line) > 160 for line in plain)
