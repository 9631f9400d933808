"""Mutation test: change one operator of the package at a time and see whether the quick tests notice.

    python tests/mutants.py plan rest/retries -n 60 --seed 15

Mutants are drawn at random from comparisons, boolean and arithmetic operators and exchanged branches of the
modules named, which are folders or modules below the package.  Each is tested in a copy of the work tree by
the quick tests that can see it.  The work tree is left alone.  The exit code is 1 if a mutant survived.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGE = "python/lsst/ctrl/bps/panda"

# Folder or module of the package -> tests that see it, the most telling first.
TESTS = {
    "plan/document": ["unit/plan/test_run_attributes.py", "property/test_truth_replies.py"],
    "plan": [
        "unit/plan",
        "property/test_plan_structure.py",
        "unit/runs",
        "contract/test_plan_request.py",
        "unit/insight/test_insight_resources.py",
    ],
    "status": [
        "unit/status",
        "property/test_truth_states.py",
        "property/test_truth_replies.py",
        "unit/report",
        "unit/remote/test_remote_build_parts.py",
    ],
    "report": ["unit/report", "unit/status", "property/test_truth_states.py"],
    "rest": ["unit/rest", "property/test_truth_replies.py"],
    "runs": ["unit/runs", "unit/campaign", "unit/remote", "unit/report"],
}

OPPOSITE: dict[type[ast.AST], list[type[ast.AST]]] = {
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.Lt: [ast.LtE, ast.GtE],
    ast.LtE: [ast.Lt, ast.Gt],
    ast.Gt: [ast.GtE, ast.LtE],
    ast.GtE: [ast.Gt, ast.Lt],
    ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
    ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
    ast.And: [ast.Or],
    ast.Or: [ast.And],
    ast.Add: [ast.Sub],
    ast.Sub: [ast.Add],
    ast.Mult: [ast.FloorDiv],
    ast.Div: [ast.Mult],
    ast.FloorDiv: [ast.Mult],
    ast.Mod: [ast.Mult],
    ast.BitAnd: [ast.BitOr],
    ast.BitOr: [ast.BitAnd],
}

CHANGEABLE = (ast.Compare, ast.BoolOp, ast.BinOp, ast.AugAssign, ast.If, ast.IfExp)


@dataclass(frozen=True)
class Mutant:
    """One change of one module."""

    path: Path
    """Relative to the checkout."""

    line: int
    before: str
    after: str
    source: str
    """The whole module with the change."""


def find_sites(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that can be changed; not those in annotations, which nothing evaluates."""
    for name, value in ast.iter_fields(tree):
        if name not in ("annotation", "returns"):
            for node in value if isinstance(value, list) else [value]:
                if isinstance(node, CHANGEABLE):
                    yield node
                if isinstance(node, ast.AST):
                    yield from find_sites(node)


def change(node: ast.AST, draw: random.Random) -> bool:
    """Change a node in place; say whether there is a change for it."""
    if isinstance(node, ast.If | ast.IfExp):
        node.test = ast.UnaryOp(ast.Not(), node.test)  # exchanges the branches
    elif isinstance(node, ast.Compare):
        place = draw.randrange(len(node.ops))
        node.ops[place] = draw.choice(OPPOSITE[type(node.ops[place])])()  # type: ignore[call-overload]
    elif isinstance(node, ast.BoolOp | ast.BinOp | ast.AugAssign):
        if type(node.op) not in OPPOSITE:
            return False
        node.op = draw.choice(OPPOSITE[type(node.op)])()  # type: ignore[assignment]
    return True


def shown(node: ast.AST) -> str:
    """Return the first line of a node's source."""
    return ast.unparse(node).splitlines()[0]


def all_mutants(path: Path, draw: random.Random) -> list[Mutant]:
    """Make one mutant for each place of a module that can be changed."""
    source = (CHECKOUT / path).read_text(encoding="utf-8")
    tree = ast.parse(source)
    mutants = []
    for place, original in enumerate(list(find_sites(tree))):
        mutated = copy.deepcopy(tree)
        node = list(find_sites(mutated))[place]
        if change(node, draw):
            text = ast.unparse(ast.fix_missing_locations(mutated))
            line = getattr(original, "lineno", 0)
            mutants.append(Mutant(path, line, shown(original), shown(node), text))
    return mutants


def tests_of(path: Path) -> list[str]:
    """Return the tests that see a module."""
    module = path.relative_to(PACKAGE).with_suffix("")
    tests = TESTS.get(str(module)) or TESTS[module.parts[0]]
    return [f"tests/{name}" for name in tests]


def run_tests(tree: Path, tests: list[str], limit: float) -> bool:
    """Run tests in a copy of the checkout; whether they passed in time."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
    command += ["--hypothesis-profile", "quick", "--hypothesis-seed", "0", *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree / "python"), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            timeout=limit, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def make_copy(tree: Path) -> None:
    """Copy what git knows of the checkout, as it is now."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (CHECKOUT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, tree / name, follow_symlinks=False)


def chosen(arguments: argparse.Namespace) -> list[Mutant]:
    """Return the mutants to test."""
    draw = random.Random(arguments.seed)
    mutants: list[Mutant] = []
    for name in arguments.modules:
        where = CHECKOUT / PACKAGE / name
        paths = sorted(where.rglob("*.py")) if where.is_dir() else [where.with_suffix(".py")]
        for path in paths:
            mutants += all_mutants(path.relative_to(CHECKOUT), draw)
    if arguments.line:
        return [mutant for mutant in mutants if mutant.line in arguments.line]
    return draw.sample(mutants, min(arguments.count, len(mutants)))


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Test mutants and print what became of each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="+", help="folder or module of the package: plan, rest/retries")
    parser.add_argument("-n", "--count", type=int, default=60, help="how many mutants to draw (60)")
    parser.add_argument("--seed", type=int, default=1, help="of the random choice (1)")
    parser.add_argument("--line", type=int, action="append", help="instead: all mutants of this line")
    arguments = parser.parse_args()
    mutants = chosen(arguments)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        make_copy(tree)
        limits: dict[str, float] = {}
        for mutant in mutants:
            tests = tests_of(mutant.path)
            if tests[0] not in limits:
                start = time.monotonic()
                if not run_tests(tree, tests, 600):
                    sys.exit(f"The tests fail before anything is changed: {' '.join(tests)}")
                limits[tests[0]] = 20 + 3 * (time.monotonic() - start)
            original = (tree / mutant.path).read_text(encoding="utf-8")
            (tree / mutant.path).write_text(mutant.source, encoding="utf-8")
            word = "SURVIVED" if run_tests(tree, tests, limits[tests[0]]) else "killed"
            (tree / mutant.path).write_text(original, encoding="utf-8")
            counts[word] += 1
            place = f"{mutant.path.relative_to(PACKAGE)}:{mutant.line}"
            say(f"{word:8} {place}: {mutant.before}  ->  {mutant.after}")
    say(f"{counts['killed']} of {len(mutants)} killed, {counts['SURVIVED']} survived")
    return 1 if counts["SURVIVED"] else 0


if __name__ == "__main__":
    sys.exit(main())
