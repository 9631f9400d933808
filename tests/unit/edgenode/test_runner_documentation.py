"""The page about the worker says what the runner does."""

import re
from pathlib import Path

from lsst.ctrl.bps.panda.edgenode import cmd_line_decoder as runner

PAGE = (Path(__file__).parents[3] / "doc" / "lsst.ctrl.bps.panda" / "worker.rst").read_text(encoding="utf-8")


def table(head):
    """First column and text of each row of a simple table, joined over its lines."""
    lines = PAGE[re.search(rf"^{head}\s", PAGE, re.M).start() :].split("\n")
    rows = {}
    for line in lines[2:]:
        if line.startswith("=="):
            return rows
        first = line[: len(lines[1].split()[0])].strip()
        if first:
            key = first
        rows[key] = f"{rows.get(key, '')} {line[len(lines[1].split()[0]) :].strip()}".strip()
    raise AssertionError("the table has no end")


def test_exit_codes():
    assert {int(code): text for code, text in table("code").items()} == runner.EXIT_CODES


def test_options():
    rows = {name.strip("`-"): text for name, text in table("option").items()}
    assert set(rows) == set(runner._OPTIONS)
    for name, (default, _) in runner._OPTIONS.items():
        shown = re.match(r"``([\w.]+)``  ", rows[name])
        if shown:
            assert runner._OPTIONS[name][1](shown[1]) == default
        else:
            assert not default


def test_tokens_and_files():
    for name in (
        *runner.TOKENS,
        runner.MANIFEST,
        runner.CANCELLED,
        runner.MONITOR_OUTPUT,
        runner.MONITOR_SUMMARY,
    ):
        assert f"``{name}``" in PAGE
    assert f"``{runner.ATTEMPTS_FOLDER}/``" in PAGE


def test_the_command_line_that_is_taken_apart(tmp_path):
    block = re.search(r"\.\. code-block:: text\n\n((?:   .+\n)+)", PAGE)[1]
    words = block.split()
    arguments = runner.Arguments(words[2:])
    assert words[:2] == ["python3", "/box/me_run1/cmd_line_decoder.py"]
    assert f"      {arguments.command}\n" in PAGE
    assert arguments["parameters"] == ("isr", 1000)
    job = runner.parse_input(arguments.input, short=True)
    assert runner.shard_name("isr", job.order_id // 1000) in PAGE
    values = {"qgraphNodeId": "0190a6b4-7d3e-7c4f-9a1b-3c5f3b1e9d02"}
    command = runner.make_command(arguments, values, dict(arguments.files), lambda: 0, {})
    assert f"      {command}\n" in PAGE


def test_the_command_to_try():
    hexadecimal = re.search(r"cmd_line_decoder.py (\w+) job", PAGE)[1]
    assert runner.decode_command(hexadecimal) == "echo Hello"
