"""Our runner and the previous plugin's decoder understand each other's arguments."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lsst.ctrl.bps.panda.edgenode import cmd_line_decoder as runner

PREVIOUS = Path(__file__).parent.parent / "benchmarks" / "previous_plugin.py"
COMMAND = (
    "printf '%s|' <FILE:butlerConfig> {qgraphNodeId} <ENV:SITE> '{print}' ${SITE} <FILE:runQgraphFile>;"
    " cat <FILE:butlerConfig> <FILE:script>; exit 3"
)
EXPECTED = "butler.yaml|u-1,u-2|usdf|{print}|usdf|run.qg|config\nscript\n"


@pytest.fixture(scope="module")
def previous():
    """Interpreter and decoder of the previous plugin."""
    made = subprocess.run([sys.executable, PREVIOUS], stdout=subprocess.PIPE, text=True, check=True)
    return made.stdout.split("\n")[:2]


@pytest.fixture
def area(tmp_path):
    folder = tmp_path / "area"
    folder.mkdir()
    (folder / "butler.yaml").write_text("config\n")
    (folder / "final.bash").write_text("script\n")
    (folder / "run.qg").write_text("graph")
    plain = "isr_7+qgraphNodeId:u-1,u-2+qgraphId:1.5"
    (folder / "panda_order_id_map.json").write_text(json.dumps({"isr": {"41": plain}}))
    (folder / "qnode_map.json").write_text(json.dumps({"PH:isr_7": plain}))
    return folder


INPUTS = {
    "plain": runner.render_plain_input("isr_7", [("qgraphNodeId", "u-1,u-2"), ("qgraphId", "1.5")]),
    "order id map": runner.render_order_id_input("isr", 41),
    "event service": "isr:eventservice_40^2",
    "map of names": runner.render_named_input("isr_7"),
}
MAPS = {
    "order id map": [("orderIdMapFilename", "panda_order_id_map.json")],
    "event service": [("orderIdMapFilename", "panda_order_id_map.json")],
    "map of names": [("qnodemap", "qnode_map.json")],
}
FILES = [("butlerConfig", "butler.yaml"), ("script", "final.bash"), ("runQgraphFile", "run.qg")]


def arguments(area, kind):
    """As our planner writes them."""
    return [
        runner.encode_command(COMMAND),
        INPUTS[kind],
        runner.encode_area(f"{area}/"),
        runner.encode_files(FILES + MAPS.get(kind, [])),
        runner.encode_direct(["runQgraphFile"]),
    ]


def previous_arguments(area, kind):
    """As the previous plugin writes them, from its source: nothing quoted, hexadecimal of the command."""
    return [
        COMMAND.encode().hex(),
        INPUTS[kind],
        f"{area}/",
        "+".join(f"{key}:{name}" for key, name in FILES + MAPS.get(kind, [])),
        "runQgraphFile",
    ]


def start(python, decoder, line, work):
    work.mkdir()
    environment = {"PATH": os.environ["PATH"], "SITE": "usdf", "PANDA_BEHIND_REAL_LB": "1"}
    return subprocess.run(
        [python, decoder, *line], cwd=work, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("kind", INPUTS)
def test_sane_arguments_are_the_same(area, kind):
    assert arguments(area, kind) == previous_arguments(area, kind)


@pytest.mark.parametrize("kind", INPUTS)
def test_its_arguments_in_our_runner(area, tmp_path, kind):
    result = start(sys.executable, runner.__file__, previous_arguments(area, kind), tmp_path / "work")
    assert (result.returncode, result.stdout) == (3, EXPECTED), result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", INPUTS)
def test_our_arguments_in_its_decoder(previous, area, tmp_path, kind):
    options = [] if kind != "plain" else [runner.encode_option("retry-unless-exit", "1"), "--prmon=no"]
    result = start(*previous, arguments(area, kind) + options, tmp_path / "work")
    assert result.returncode == 3, result.stderr
    # It shares standard output with its payload.
    assert EXPECTED in result.stdout


@pytest.mark.slow
def test_our_staged_runner_in_its_environment(previous, area, tmp_path):
    """Its Python has the LSST stack; the runner does not mind."""
    result = start(previous[0], runner.__file__, arguments(area, "plain"), tmp_path / "work")
    assert (result.returncode, result.stdout) == (3, EXPECTED), result.stderr
