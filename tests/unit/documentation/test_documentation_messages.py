"""Each message that a user can meet is on the page of messages.

A message is known by its first sentence, with ``...`` for what is put in.
Who adds one or changes its words does the same in ``messages.rst``.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from panda_documentation.pages import CHECKOUT, read

from lsst.ctrl.bps.panda import errors
from lsst.ctrl.bps.panda.rest.faults import FailedAttempt, Fault
from lsst.ctrl.bps.panda.rest.retries import RetryPolicy, plan_retry

PACKAGE = CHECKOUT / "python" / "lsst" / "ctrl" / "bps" / "panda"
MODULES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in {"edgenode", "demo"}
)
GAP = "\0"


def template(node: ast.expr) -> str:
    """Return a text in the source, with gaps for what is put into it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return GAP


def beginning(text: str) -> str:
    """Return the longest piece without gaps of the first sentence."""
    first = re.split(r"(?<=[^.])[.;:](?:\s|$)|\n", text)[0]
    pieces = [piece.strip(" '\"().:,") for piece in first.split(GAP)]
    return max(pieces, key=len)


def messages(path: Path) -> Iterator[str]:
    """Yield how each error and each finding of a module begins."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for text in (*error_texts(tree), *finding_texts(tree)):
        if len(words := beginning(template(text))) > 8:
            yield words


def calls(node: ast.AST, names: set[str]) -> Iterator[ast.Call]:
    """Yield the calls of functions and classes of these names."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in names:
            yield call


def error_texts(tree: ast.Module) -> Iterator[ast.expr]:
    """Yield the texts of errors."""
    yield from (call.args[0] for call in calls(tree, set(errors.__all__)) if call.args)


def finding_texts(tree: ast.Module) -> Iterator[ast.expr]:
    """Yield the texts of findings, which may have a name before they get
    their severity by ``_error = partial(Finding, Severity.ERROR)`` or so.
    """
    makers = {"Finding", "_hint"}
    for assignment in ast.walk(tree):
        if isinstance(assignment, ast.Assign) and any(calls(assignment.value, {"partial"})):
            makers |= {target.id for target in assignment.targets if isinstance(target, ast.Name)}
    if "Finding" not in {name.id for name in ast.walk(tree) if isinstance(name, ast.Name)}:
        return
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        named = {
            target.id: assignment.value
            for assignment in ast.walk(function)
            if isinstance(assignment, ast.Assign)
            for target in assignment.targets
            if isinstance(target, ast.Name)
        }
        for call in calls(function, makers):
            (text,) = call.args[1:2] if call.func.id == "Finding" else call.args[:1]
            yield named.get(text.id, text) if isinstance(text, ast.Name) else text


@functools.cache
def documented() -> str:
    """Return all messages of the page, in one line."""
    return " ".join(
        " ".join(found.split()) for found in re.findall(r"``((?:[^`]|`(?!`))+)``", read("messages"))
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_message_is_on_its_page(path):
    page = documented()
    assert [words for words in messages(path) if " ".join(words.split()) not in page] == []


def test_what_a_failed_connection_says_is_there():
    page = documented()
    texts = [text for fault in Fault for text in (fault.row.message, fault.row.broken) if text]
    missing = [text for text in texts if beginning(re.sub(r"\{\w+\}", GAP, text)) not in page]
    assert len(texts) > 20
    assert missing == []


def once_more(fault):
    return plan_retry(FailedAttempt(fault, ""), RetryPolicy(), attempts=1, safe=True, elapsed=0.0, luck=0.0)


def test_the_page_of_the_protocol_has_each_fault():
    rows = re.findall(r"^``([\w-]+)`` +(\w+Error) +(maybe|no) +(yes|no) ", read("protocol"), re.M)
    assert rows == [
        (
            fault.value,
            fault.row.error.__name__,
            "no" if fault.not_executed else "maybe",
            "no" if once_more(fault) is None else "yes",
        )
        for fault in Fault
    ]


def test_no_message_is_there_that_does_not_exist():
    """What was reworded must go from the page, too."""
    source = " ".join(path.read_text(encoding="utf-8") for path in MODULES)
    plain = re.sub(r"""["']\s*\n\s*[frb]*["']""", "", source)
    terms = re.findall(r"^(``.+``)$", read("messages"), re.M)
    unknown = []
    for term in re.findall(r"``((?:[^`]|`(?!`))+)``", " ".join(terms)):
        words = max((piece.strip(" '\"().:,;") for piece in term.split("...")), key=len)
        if words not in plain:
            unknown.append(words)
    assert unknown == []


def test_the_search_for_messages_is_not_blind():
    found = [words for path in MODULES for words in messages(path)]
    assert len(found) > 100
    assert "and the profile of computeSite" not in found
    assert "fileDistributionEndPoint is not set and the profile of computeSite" in found
