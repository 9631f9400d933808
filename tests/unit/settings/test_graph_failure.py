"""Failures that the ``bps`` command tells in a sentence: no quantum graph, and why; a full disk."""

from __future__ import annotations

import logging
import re
import sys

import pytest

from lsst.ctrl.bps import BpsConfig
from lsst.ctrl.bps.panda.settings.bps_command import _shorten_full_disk
from lsst.ctrl.bps.panda.settings.configuration import RunConfiguration, explain_graph_failure

CONFIG = {
    "inCollection": "HSC/raw",
    "dataQuery": "tract = 9813",
    "pipelineYaml": "eups://drp_pipe/DRP.yaml#isrr",
    "butlerConfig": "/repo/main",
    "extraQgraphOptions": "-c isr:doBias=maybe",
}
CHAINED = """\
INFO 2026-11-30 x ()(a.py:1) - Starting.
Traceback (most recent call last):
  File "a.py", line 1, in a
lsst.daf.butler.queries.ParseError: Syntax error at 'x'

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "a.py", line 2, in b
    raise
lsst.daf.butler._exceptions.InvalidQueryError: Failed to parse expression 'tract = 9813'
and more
"""


@pytest.mark.parametrize(
    ("log", "cause", "key"),
    [
        (CHAINED, "InvalidQueryError: Failed to parse expression 'tract = 9813'", "dataQuery"),
        (
            "ERROR 2026-11-30 x ()(a.py:1) - No rows were found.\nError: was empty",
            "No rows were found",
            "dataQuery",
        ),
        ("x.y ERROR: No label 'isrr' in it.\n", "No label 'isrr' in it", "pipelineYaml"),
        ("Error: Invalid value 'isr:doBias=maybe'", "Invalid value 'isr:doBias=maybe'", "extraQgraphOptions"),
        ("Error: Field 'doBias' is 'no', at 'isr'", "Field 'doBias' is 'no', at 'isr'", "extraQgraphOptions"),
        (
            "Error: the Butler repository was made by another version of the demo: make a new one",
            "the Butler repository was made by another version of the demo: make a new one",
            "butlerConfig",
        ),
        (
            "Traceback (most recent call last):\nx.WrongError: A task has X, but the definition from data "
            "repository is Y.",
            "WrongError: A task has X, but the definition from data repository is Y",
            "butlerConfig",
        ),
        ("bash: pipetask: not found\n\n", "bash: pipetask: not found", ""),
        ("", "no reason is given", ""),
    ],
)
def test_the_cause_and_its_key(tmp_path, log, cause, key):
    path = tmp_path / "quantumGraphGeneration.out"
    path.write_text(log)
    message = f"Generating quantum graph failed with non-zero exit code (1)\nCheck {path} for more details."
    first, last = explain_graph_failure(BpsConfig(CONFIG), message, {}).splitlines()
    where = f" It comes from {key}: {CONFIG[key]} (BPS configuration)." if key else ""
    assert first == f"The quantum graph could not be made: {cause}.{where}"
    assert last == f"What was printed: {path}"


def test_a_log_that_is_not_there(tmp_path):
    message = f"It failed\nCheck {tmp_path}/no.out for more details."
    assert explain_graph_failure(BpsConfig({}), message, {}).startswith(message)


def test_the_files_that_a_quantum_graph_is_made_from(tmp_path):
    for name in ("pipe.yaml", "a.py", "b.py", "c.py"):
        (tmp_path / name).touch()
    options = (
        f"-c isr:x={tmp_path}/c.py -C isr:{tmp_path}/a.py --config-file='isr:{tmp_path}/b.py' -C isr:/no"
    )
    config = BpsConfig({"pipelineYaml": f"{tmp_path}/pipe.yaml#isr", "extraQgraphOptions": options})
    names = ("pipe.yaml", "a.py", "b.py")
    assert RunConfiguration(config).graph_sources == tuple(str(tmp_path / name) for name in names)
    assert RunConfiguration(BpsConfig({"pipelineYaml": "resource://x/y.yaml"})).graph_sources == ()


def log_failure(write):
    """Return what BPS's handler of exceptions logs of a function, and whether with a traceback."""
    try:
        write()
    except Exception:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "Caught it", None, sys.exc_info())
    assert _shorten_full_disk(record)
    return record.getMessage(), record.exc_info is not None


def fill():
    with open("/dev/full", "w") as stream:
        stream.write("x")
        stream.flush()


def fill_later():
    try:
        fill()
    except OSError as error:
        raise RuntimeError("it failed") from error


@pytest.mark.parametrize("write", [fill, fill_later])
def test_a_full_disk_is_a_sentence(write):
    text, has_traceback = log_failure(write)
    told = r"/dev/full cannot be written: No space left on device. Its file system /\S* has \d+ MB free. "
    assert re.match(told, text)
    assert not has_traceback


def test_other_failures_keep_their_traceback():
    assert log_failure(lambda: 1 / 0) == ("Caught it", True)
