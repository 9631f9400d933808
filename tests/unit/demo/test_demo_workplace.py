"""The directory to try things in, and the pieces of the quickstart."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from lsst.ctrl.bps.wms_service import WmsStates

from lsst.ctrl.bps.panda.cli.quickstart import ProgressLine, QuickstartError, read_submission, render_progress
from lsst.ctrl.bps.panda.demo.workplace import LOCAL_SERVICE, Workplace


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    directory = tmp_path / 'a "place", it\'s'
    directory.mkdir()
    return Workplace(directory)


def test_environment_leads_to_the_embedded_panda_alone(place: Workplace) -> None:
    outside = {
        "PATH": "/bin",
        "KEEP": "this",
        "PANDA_URL": "https://facility/server/panda",
        "PANDA_AUTH_ID_TOKEN": "secret",
        "OIDC_AUTH_ID_TOKEN": "secret",
        "X509_USER_PROXY": "/tmp/x",
        "BPS_WMS_SERVICE_CLASS": "other",
    }
    assert place.environment(outside) == {
        "PATH": f"{Path(sys.executable).parent}:/bin",
        "KEEP": "this",
        "HOME": str(place.directory),
        "PANDA_LOCAL_DIR": str(place.panda),
        "BPS_WMS_SERVICE_CLASS": LOCAL_SERVICE,
    }


def test_no_variable_is_needed(place: Workplace) -> None:
    environment = place.environment({})
    assert environment["PATH"] == f"{Path(sys.executable).parent}:{os.defpath}"
    assert environment["HOME"] == str(place.directory)


def test_the_script_gives_a_shell_the_same(place: Workplace) -> None:
    place.write_files()
    command = (
        '. "$1" && printf "%s\\n" "$PANDA_LOCAL_DIR" "$BPS_WMS_SERVICE_CLASS" "$PATH" "${PANDA_URL-none}"'
    )
    done = subprocess.run(
        ["sh", "-euc", command, "sh", str(place.script)],
        env={"PATH": "/usr/bin:/bin", "PANDA_URL": "https://facility"},
        capture_output=True,
        text=True,
        check=True,
    )
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    assert done.stdout.splitlines() == [str(place.panda), LOCAL_SERVICE, path, "none"]


def test_configurations_are_those_of_the_directory(place: Workplace) -> None:
    place.write_files()
    config, failing = (yaml.safe_load(path.read_text()) for path in (place.config, place.failing_config))
    assert config["wmsServiceClass"] == LOCAL_SERVICE
    assert config["submitPath"] == f"{place.directory}/submit/{{outputRun}}"
    assert "failIf" in failing["extraQgraphOptions"]
    assert place.output_run(place.directory / "submit/u/quickstart/starcam/T") == "u/quickstart/starcam/T"


def test_the_run_is_found_in_what_bps_submit_says() -> None:
    said = "log line: x\nSubmit dir: /a b/submit/u/q/T\nRun Id: 12\nRun Name: u_q_T\n"
    submission = read_submission(said)
    assert (submission.run_id, submission.directory) == ("12", Path("/a b/submit/u/q/T"))


@pytest.mark.parametrize("said", ["", "Run Id: 3\n", "Submit dir: /x\nRun Id: None\nRun Name: n\n"])
def test_a_submission_without_a_run_is_an_error(said: str) -> None:
    with pytest.raises(QuickstartError, match="did not say"):
        read_submission(said)


def _report(**labels: dict[WmsStates, int]) -> SimpleNamespace:
    totals = {state: sum(states.get(state, 0) for states in labels.values()) for state in WmsStates}
    return SimpleNamespace(
        job_state_counts=totals,
        job_summary=labels,
        total_number_jobs=sum(map(sum, map(dict.values, labels.values()))),
    )


def test_progress_counts_what_has_ended_and_names_what_goes_on() -> None:
    report = _report(
        isr={WmsStates.SUCCEEDED: 6},
        characterize={WmsStates.SUCCEEDED: 2, WmsStates.RUNNING: 2, WmsStates.FAILED: 1, WmsStates.READY: 1},
        makeWarp={WmsStates.UNREADY: 5, WmsStates.PRUNED: 1},
        finalJob={WmsStates.UNREADY: 1},
    )
    assert render_progress(report, 75.4) == (
        "1:15  10/19 jobs, 2 running, 1 failed  (characterize 3/6, makeWarp 1/6)"
    )


def test_lines_are_shown_once_where_they_stay() -> None:
    stream = io.StringIO()
    progress = ProgressLine(stream, live=False)
    for line in ("0:01  0/3 jobs", "0:02  0/3 jobs", "0:03  1/3 jobs"):
        progress.show(line)
    progress.close()
    assert stream.getvalue() == "0:01  0/3 jobs\n0:03  1/3 jobs\n"


def test_on_a_terminal_lines_replace_each_other() -> None:
    stream = io.StringIO()
    progress = ProgressLine(stream, live=True)
    progress.show("0:01  0/3 jobs")
    progress.show("0:02  0/3 jobs")
    progress.close()
    frames = re.sub(r"\x1b\[\?25[hl]|\x1b\[[\d;]*m", "", stream.getvalue()).split("\r\x1b[2K")
    # The last one stays.
    assert frames == ["0:01  0/3 jobs", "0:02  0/3 jobs", "0:02  0/3 jobs\n"]
