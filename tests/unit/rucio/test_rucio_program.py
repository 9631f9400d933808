"""The program of the registration step where it cannot begin, and its
decision whether a rule exists.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from lsst.ctrl.bps.panda.edgenode import rucio_program as program


def run(path, *options):
    command = [sys.executable, *options, program.__file__, str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def registration(tmp_path):
    path = tmp_path / "registration.json"
    wanted = program.Registration(
        butler="/repo", collection="u/me/run", dataset_types=("image",), scope="s", dataset="d", rse="R",
        rse_root="/r", dtn_url="file://localhost:0/r",
    )  # fmt: skip
    path.write_text(wanted.to_json())
    return path


def test_a_python_without_what_is_needed_is_told_what_to_install(registration):
    # Without site-packages, as a worker's bare python3.
    done = run(registration, "-I", "-S")
    assert done.returncode == program.EXIT_INCOMPLETE_ENVIRONMENT
    assert "has no module lsst" in done.stderr
    assert "pip install rucio-clients lsst-rucio-register backoff" in done.stderr


def test_a_damaged_file_is_refused(registration):
    registration.write_text("{")
    done = run(registration, "-I", "-S")
    assert done.returncode == program.EXIT_REFUSED
    assert "cannot be read" in done.stderr


def test_no_file_is_a_failure(tmp_path):
    done = run(tmp_path / "none.json", "-I", "-S")
    assert done.returncode == program.EXIT_FAILED
    assert "FileNotFoundError" in done.stderr


RULES = [
    {"id": "1", "rse_expression": "NEAR", "account": "service", "copies": 2},
    {"id": "2", "rse_expression": "FAR", "account": "other", "copies": 1},
    {"id": "3", "rse_expression": "FAR", "account": "service", "copies": 1},
]


@pytest.mark.parametrize(
    ("expression", "account", "found"),
    [
        ("FAR", "service", "3"),
        ("FAR", "", "2"),
        ("NEAR", "other", None),
        ("NEAR", "", "1"),
        ("NOWHERE", "", None),
    ],
)
def test_the_step_needs_a_rule_of_its_own_account_and_onlookers_one_of_any(expression, account, found):
    rule = program.find_rule(RULES, program.RuleWanted(expression), account)
    assert (rule["id"] if rule else None) == found


@pytest.mark.parametrize(("copies", "found"), [(1, "1"), (2, "1"), (3, None)])
def test_a_rule_for_fewer_copies_is_not_the_wanted_one(copies, found):
    rule = program.find_rule(RULES, program.RuleWanted("NEAR", copies=copies), "service")
    assert (rule["id"] if rule else None) == found
