"""The directory to try things in, and the pieces of the quickstart."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from lsst.daf.butler import Butler

from lsst.ctrl.bps.panda.cli.quickstart import QuickstartError, read_submission
from lsst.ctrl.bps.panda.demo.repository import INPUTS, create_repo
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


def test_a_repository_of_an_older_demo_is_refused_with_the_remedy(place: Workplace) -> None:
    create_repo(place.repo, visits_per_band=0, detectors=1, patches=1)
    assert not place.ensure_repo()
    with Butler.from_config(str(place.repo), writeable=True) as butler:
        butler.registry.setCollectionDocumentation(INPUTS, None)
    program = "lsst.ctrl.bps.panda.cli.quickstart"
    command = [sys.executable, "-m", program, "--directory", str(place.directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{place.repo} was made by another version of the demo" in done.stderr
    assert not place.panda.exists()
    # What the message says to do is what helps.
    (remedy,) = (line for line in done.stderr.splitlines() if line.startswith("    mv "))
    subprocess.run(["sh", "-euc", remedy], check=True)
    assert (place.directory / "repo-old" / "butler.yaml").is_file()
    assert place.ensure_repo()
    assert not place.ensure_repo()


def test_the_run_is_found_in_what_bps_submit_says() -> None:
    said = "log line: x\nSubmit dir: /a b/submit/u/q/T\nRun Id: 12\nRun Name: u_q_T\n"
    submission = read_submission(said)
    assert (submission.run_id, submission.directory) == ("12", Path("/a b/submit/u/q/T"))


@pytest.mark.parametrize("said", ["", "Run Id: 3\n", "Submit dir: /x\nRun Id: None\nRun Name: n\n"])
def test_a_submission_without_a_run_is_an_error(said: str) -> None:
    with pytest.raises(QuickstartError, match="did not say"):
        read_submission(said)
