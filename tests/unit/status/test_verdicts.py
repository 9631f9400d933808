"""Verdicts by rules, and the errors of a run put together."""

import pytest

from lsst.ctrl.bps.panda.cli.panda_bps_show import read_rules
from lsst.ctrl.bps.panda.errors import SettingsError
from lsst.ctrl.bps.panda.status.failures import signature_of
from lsst.ctrl.bps.panda.status.job_errors import JobError
from lsst.ctrl.bps.panda.status.verdicts import PACKAGED_RULES, Verdict, parse_rulebook
from lsst.ctrl.bps.panda.status.vocabulary import NEVER_RAN

CASES = [
    ([("payload", 1)], "", "payload"),
    ([("payload", 137), ("pilot", 1305)], "", "out of memory"),
    ([("payload", 143), ("pilot", 1212)], "", "out of memory"),
    ([("payload", 1), ("pilot", 1305)], "numpy: MemoryError", "out of memory"),
    ([("task buffer", 300)], "", "out of memory"),
    ([("payload", 143), ("pilot", 1213)], "", "out of time"),
    ([("pilot", 1150)], "", "out of time"),
    ([("dispatcher", 100)], "", "lost heartbeat"),
    ([("payload", 143), ("pilot", 1144)], "", "cancelled"),
    ([("task buffer", 100)], "", "cancelled"),
    ([("pilot", 1379)], "", "preempted"),
    ([("data management", 200)], "", "storage"),
    ([("pilot", 1137)], "", "storage"),
    ([("payload", 66)], "runner: no such file", "storage"),
    ([("payload", 67)], "", "runner"),
    ([("payload", 1)], "OSError: [Errno 28] No space left on device", "storage"),
    ([("pilot", 1163)], "", "log-in"),
    ([("pilot", 1110)], "", "site"),
    ([("payload", 127)], "", "environment"),
    ([("payload", 1)], "ModuleNotFoundError: No module named 'lsst'", "environment"),
    ([("payload", 1)], "ConflictingDefinitionError: there", "output exists"),
    ([("payload", 1)], "FileNotFoundError: flat", "missing input"),
    ([("payload", 1)], "ERROR: The remote build failed: no\nFileNotFoundError: p.yaml", "build"),
    ([("payload", 4)], "2026 ERROR rucioRegister: PermissionError: Permission denied. What", "registration"),
    ([("payload", 4)], "Permission denied", "storage"),
    ([("payload", 139)], "", "crash"),
    ([("pilot", 1328)], "", "crash"),
    ([("pilot", 1305)], "", "site"),
    ([("brokerage", 102)], "", "scheduling"),
    ([("task", -1)], "", "pruned"),
    ([("task", -1, NEVER_RAN.format("run_01_isr_01"))], "", "not submitted"),
    ([("payload", 2)], "", "payload"),
    ([("unknown", -1)], "", "unknown"),
]


@pytest.mark.parametrize(("errors", "log", "verdict"), CASES)
def test_packaged_rules(errors, log, verdict):
    found = PACKAGED_RULES.find_verdict([JobError(*error) for error in errors], log=log)
    assert found.name == verdict
    assert found.advice.endswith(".")


def test_an_error_on_one_node_only_is_the_node():
    error = JobError("payload", 1)
    assert PACKAGED_RULES.find_verdict([error], one_node=True).name == "node"
    assert PACKAGED_RULES.find_verdict([JobError("payload", 137)], one_node=True).name == "out of memory"


def test_every_packaged_rule_has_advice_and_every_advice_a_rule():
    book = PACKAGED_RULES
    assert {rule.verdict for rule in book.rules} | {"unknown"} == set(book.verdicts)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rules: [", "not YAML"),
        ("[1]", "not a mapping"),
        ("format: 2", "format: 1"),
        ("rules: 3", "not a list"),
        ("rules: [{source: payload}]", "'verdict'"),
        ("rules: [{verdict: x, sauce: payload}]", "'sauce' is not known"),
        ("rules: [{verdict: x, source: pylot}]", "no source 'pylot'"),
        ("rules: [{verdict: x, codes: [1-x]}]", "not a code"),
        ("rules: [{verdict: x, text: '('}]", "not a regular expression"),
    ],
)
def test_rules_that_are_not_understood_name_file_and_cause(tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=words) as raised:
        read_rules(path)
    assert "mine.yaml" in str(raised.value)


def test_a_rules_file_that_is_not_there(tmp_path):
    with pytest.raises(SettingsError, match=r"none\.yaml cannot be read"):
        read_rules(tmp_path / "none.yaml")


def test_texts_that_differ_in_numbers_are_the_same_error():
    one = "detector 12 at 0x7f3a of 8f14e45f-ceea-467f-a0e6-1234567890ab"
    other = "detector  7 at 0x11 of 00000000-ceea-467f-a0e6-1234567890ab"
    assert signature_of(JobError("payload", 1, one)) == signature_of(JobError("payload", 1, other))
    assert signature_of(JobError("payload", 1, one)) != signature_of(JobError("payload", 1, "another"))


@pytest.mark.parametrize("code", range(1, 12))
def test_spans_of_codes_hold_their_ends(code):
    book = parse_rulebook("rules: [{verdict: mine, source: payload, codes: [3-5, '8', 10]}]", "mine")
    assert (book.find_verdict([JobError("payload", code)]).name == "mine") == (code in (3, 4, 5, 8, 10))


def test_own_rules_come_before_the_packaged_ones_and_replace_verdicts():
    text = "verdicts: {crash: 'Call   Ann.'}\nrules: [{verdict: crash, text: 'flat \\d'}]"
    book = parse_rulebook(text, "mine")
    assert book.find_verdict([JobError("payload", 1, "no FLAT 7")]) == Verdict("crash", "Call Ann.")
    assert book.find_verdict([JobError("payload", 1, "no dark 7")]).name == "payload"
    assert book.find_verdict([JobError("payload", 139)]).advice == "Call Ann."
    assert PACKAGED_RULES.find_verdict([JobError("payload", 139)]).advice != "Call Ann."
