"""The pages on commands, held to the commands: all are there with all
options, those that are shown exist, and the exit codes are the real ones.
"""

from __future__ import annotations

import ast
import inspect
import re

import click
import pytest
from lsst.ctrl.bps.wms_service import WmsStates
from panda_documentation.pages import (
    CHECKOUT,
    MARKDOWN,
    PAGES,
    PROGRAMS,
    RST,
    all_commands,
    commands,
    problem,
    read,
    table,
)

from lsst.ctrl.bps.panda.cli import panda_auth_token, quickstart
from lsst.ctrl.bps.panda.status import bps_states

EACH_PAGE = pytest.mark.parametrize("page", [*RST, *MARKDOWN], ids=lambda page: page.name)
OURS = [program for program in PROGRAMS if program != "bps"]


@EACH_PAGE
def test_commands_that_are_shown_exist(page):
    assert [text for text in map(problem, commands(page)) if text] == []


def test_the_check_of_commands_is_not_blind(tmp_path):
    page = tmp_path / "page.rst"
    page.write_text(
        "``bps submit --no-such x.yaml`` and ``bps no-such`` and ``bps report --id 1``\n\n"
        ".. code-block:: console\n\n   $ panda_bps no-such 41\n   $ bps ping && bps neither\n"
    )
    assert sorted(problem(shown) for shown in commands(page)) == [
        "",
        "",
        "bps has no command neither",
        "bps has no command no-such",
        "bps submit has no option --no-such",
        "panda_bps has no command no-such",
    ]
    assert any(shown.program == "bps" for shown in commands(PAGES / "tutorial.rst"))


@pytest.mark.parametrize("program", OURS)
def test_each_command_is_on_the_page_of_commands(program):
    """Sphinx puts all options there: of each group that is named, nested."""
    assert re.search(rf"^   :prog: {re.escape(program)}\n   :nested: full$", read("commands"), re.M)


@pytest.mark.parametrize("program", OURS)
def test_each_command_and_option_says_what_it_does(program):
    silent = []
    for name, command in all_commands(program):
        if not (command.help or "").strip():
            silent.append(name)
        for option in command.params:
            if isinstance(option, click.Option) and not (option.help or "").strip():
                silent.append(f"{name} {option.opts[0]}")
    assert silent == []


def exit_codes() -> dict[str, dict[str, str]]:
    """Return code and meaning by command, from the table."""
    found: dict[str, dict[str, str]] = {}
    last = ""
    for command, code, meaning in table("commands", "command                                 code"):
        last = command or last
        found.setdefault(last, {})[code] = meaning
    return found


def test_exit_codes_of_bps_status():
    """They are the values of the states that a run can have."""
    meant = {
        int(code): words
        for codes, meaning in exit_codes()["``bps status``"].items()
        for code, words in zip(codes.split(", "), meaning.partition(":")[0].split(", "), strict=True)
    }
    assert {code: WmsStates(code).name for code in meant} == meant
    parts = (bps_states._ended_state, bps_states._going_state)
    source = ast.parse("".join(map(inspect.getsource, parts)))
    returned = [node.value for node in ast.walk(source) if isinstance(node, ast.Return) and node.value]
    possible = {name for value in returned for name in re.findall(r"WmsStates\.(\w+)", ast.unparse(value))}
    assert set(meant.values()) == {name for name in possible if name in WmsStates.__members__}


def test_exit_codes_of_panda_auth():
    documented = {int(code) for code in exit_codes()["``panda_auth``"]}
    assert documented == {0, *(code for _, code, _ in panda_auth_token._EXIT_CODES)}
    on_its_page = {int(row[0]): row[1] for row in table("login", "exit   meaning")}
    assert documented | {2, 130} == set(on_its_page)
    for code, meaning in exit_codes()["``panda_auth``"].items():
        assert on_its_page[int(code)] == meaning


def test_exit_codes_of_the_quickstart():
    codes = {quickstart._EXIT_FAILED, quickstart._EXIT_BUSY, 0}
    script = (CHECKOUT / "bin" / "quickstart").read_text(encoding="utf-8")
    codes |= set(map(int, re.findall(r'exit "\$\{2:-(\d+)\}"', script)))
    assert {int(code) for code in exit_codes()["``bin/quickstart``"]} == codes


def test_each_exit_of_our_commands_is_in_the_table():
    """A new number that a command exits with wants a line; 130 has a sentence."""
    known = {code for codes in exit_codes().values() for code in codes}
    for path in (CHECKOUT / "python/lsst/ctrl/bps/panda/cli").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "sys.exit" and node.args:
                value = node.args[0]
                if isinstance(value, ast.Constant) and value.value != 130:
                    assert any(str(value.value) in text.split(", ") for text in known), path.name
