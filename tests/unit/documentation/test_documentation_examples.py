"""The examples in the pages: Python that compiles, imports and calls what
there is; YAML whose keys are known and whose values are of their kind; JSON;
and shell that a shell can read, made of programs that exist.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from panda_documentation.pages import CHECKOUT, MARKDOWN, PROGRAMS, RST, blocks

import lsst.ctrl.bps
from lsst.ctrl.bps import GenericWorkflowJob
from lsst.ctrl.bps.panda import PanDAService
from lsst.ctrl.bps.panda.settings.keys import KEYS
from lsst.ctrl.bps.panda.settings.schema import make_schema

EACH_PAGE = pytest.mark.parametrize("page", [*RST, *MARKDOWN], ids=lambda page: page.name)

# --- Python -----------------------------------------------------------------


@EACH_PAGE
def test_python_examples_are_python(page):
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")


@EACH_PAGE
def test_imports_in_examples_exist(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lsst.ctrl.bps"):
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")


@EACH_PAGE
def test_calls_of_the_service_in_examples_are_possible(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("service."):
                method = getattr(PanDAService, ast.unparse(node.func).removeprefix("service."))
                arguments = [None] * (1 + len(node.args))
                keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg}
                inspect.signature(method).bind(*arguments, **keywords)


# --- YAML -------------------------------------------------------------------

ALL_BLOCKS = [
    (page, number, block) for page in RST + MARKDOWN for number, block in enumerate(blocks(page, "yaml"))
]
EACH_YAML = pytest.mark.parametrize(
    "block",
    [block for *_, block in ALL_BLOCKS],
    ids=[f"{page.name}-{number}" for page, number, _ in ALL_BLOCKS],
)

# What BPS reads and neither its defaults nor the schema for editors names.
BPS_KEYS = frozenset(
    [
        "uniqProcName",
        "extraQgraphOptions",
        "extraInitOptions",
        "extraRunQuantumOptions",
        "bpsBatchSubmission",
        "buildQuantumGraph",
        "preparePayloadWorkflow",
        "ordering",
    ]
)
CLUSTER_KEYS = frozenset(
    [
        "pipetasks",
        "dimensions",
        "equalDimensions",
        "partitionDimensions",
        "partitionMaxClusters",
        "partitionMaxSize",
        "findDependencyMethod",
    ]
)
SECTIONS_OF_LABELS = ("pipetask", "cluster")
SECTIONS_OF_ONE = ("finalJob", "customJob", "remoteBuild")


def camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


@functools.cache
def known_keys() -> set[str]:
    """Return all keys that mean something at the top of a configuration."""
    defaults = yaml.safe_load(
        (Path(lsst.ctrl.bps.bps_config.__file__).parent / "etc" / "bps_defaults.yaml").read_text()
    )
    found = {*make_schema()["properties"], *BPS_KEYS, *job_keys(), *defaults}
    for path in (CHECKOUT / "python/lsst/ctrl/bps/panda/config").rglob("*.yaml"):
        text = path.read_text()
        found |= set(yaml.safe_load(text)) | set(re.findall(r"\{(\w+)\}", text))
    return found


def job_keys() -> set[str]:
    """Return the keys of a label: attributes of a job, and commands."""
    return {camel(field.name) for field in dataclasses.fields(GenericWorkflowJob)} | {
        "runQuantumCommand",
        "command1",
    }


def configurations(block: str) -> Iterator[Mapping[str, Any]]:
    """Yield the block if it is a configuration of BPS, not a file of another
    kind: those start with a list, a name of a queue, or ``format``, or are
    a pipeline, with ``tasks``.
    """
    content = yaml.safe_load(block)
    others = {"SMALL", "LARGE", "format", "tasks"}
    if isinstance(content, Mapping) and not set(content) & others:
        yield content


@EACH_YAML
def test_yaml_examples_are_yaml(block):
    assert yaml.safe_load(block)


@EACH_YAML
def test_keys_in_yaml_examples_are_known(block):
    """A key that is misspelt in an example has no effect."""
    for content in configurations(block):
        assert set(content) - known_keys() == set()
        labels = [content.get(section) or {} for section in SECTIONS_OF_LABELS]
        inner = [values for section in labels for values in section.values()]
        inner += [content.get(section) or {} for section in SECTIONS_OF_ONE]
        allowed = job_keys() | CLUSTER_KEYS | known_keys() | {"enabled", "files", "inputs", "outputs"}
        for values in inner:
            assert set(values) - allowed == set()


@EACH_YAML
def test_values_in_yaml_examples_are_of_their_kind(block):
    for content in configurations(block):
        for name, value in content.items():
            if name in KEYS:
                KEYS[name].model.parse({name: value}, source="example")
        for section in SECTIONS_OF_LABELS:
            for label, values in (content.get(section) or {}).items():
                for name in set(values) & set(KEYS):
                    assert KEYS[name].per_label, f"{name} may not be set for {label}"


@EACH_YAML
def test_yaml_examples_suit_the_schema_for_editors(block):
    validator = jsonschema.Draft7Validator(make_schema())
    for content in configurations(block):
        assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(content)] == []


def test_the_check_of_keys_is_not_blind():
    (content,) = configurations("requestMemroy: 3\nwmsServiceClass: x\n")
    assert set(content) - known_keys() == {"requestMemroy"}
    assert len(ALL_BLOCKS) > 10


# --- JSON and shell ---------------------------------------------------------


@EACH_PAGE
def test_json_examples_are_json(page):
    for block in blocks(page, "json"):
        json.loads(block)


# What a page may use beside our own commands; some are of a facility or an LSST stack.
PROGRAMS_OF_OTHERS = frozenset(
    "butler cat cd chmod env eval export mkdir pip pipetask python python3 setup source ssh".split()  # noqa: SIM905
)


def shell_lines(page: Path) -> Iterator[str]:
    for block in blocks(page, "bash"):
        yield from block.replace("\\\n", " ").splitlines()
    for block in blocks(page, "console"):
        yield from (line[2:] for line in block.splitlines() if line.startswith("$ "))


@EACH_PAGE
def test_shell_examples_can_be_read_by_a_shell(page):
    text = "\n".join(shell_lines(page))
    bash = shutil.which("bash")
    assert bash
    done = subprocess.run([bash, "-n"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@EACH_PAGE
def test_shell_examples_use_programs_that_exist(page):
    ours = {program.partition(" ")[0] for program in PROGRAMS}
    unknown = []
    for line in shell_lines(page):
        words = shlex.split(line, comments=True)
        if (
            words
            and Path(words[0]).name not in ours | PROGRAMS_OF_OTHERS
            and not (CHECKOUT / words[0]).is_file()
        ):
            unknown.append(line)
    assert unknown == []
