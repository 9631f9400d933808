"""The shape of the package, held by reading its source.

Who may import whom, where a foreign library may be used, what a pure module
may not touch, and that importing anything has no effect.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import networkx as nx
import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
ROOT = CHECKOUT / "python" / "lsst" / "ctrl" / "bps" / "panda"
PACKAGE = "lsst.ctrl.bps.panda"

LAYERS = (
    "panda_service", "utils", "cli", "web", "prompt", "service", "campaign", "remote", "workflow", "checks",
    "rucio", "insight", "runs", "report", "status", "idds", "staging", "auth", "rest", "settings", "plan",
    "findings", "files", "errors", "version",
)  # fmt: skip
"""Top to bottom: a layer (a folder, or a module at the top) imports from those below it, never from above."""

APART = {
    "edgenode": set(),
    "local": {"errors", "version", "warm"},
    "warm": set(),
    "demo": {"errors", "files", "version"},
}
"""Folders beside the order, and what they may import; the order may import from them."""

# Foreign library -> parts that may use it.
FOREIGN = {
    "idds": {"idds", "local"},
    # local.idds_host answers iDDS's own client, which uses requests, without a socket.
    "requests": {"rest", "local.idds_host"},
    "urllib3": {"rest"},
    "pandaclient": set(),
    "sqlalchemy": {"local"},
    "waitress": {"local", "web.server"},
    "flask": {"local", "web"},
    "astropy": {"demo"},
    "galsim": {"demo.simulate"},
    "matplotlib": {"demo", "insight.resources", "prompt.report"},
    "numpy": {"demo"},
    "google": {"insight.cloud_log"},
    "rucio": {"rucio", "edgenode.rucio_program"},
    "lsst.rucio": {"edgenode.rucio_program"},
    "stomp": {"insight.messages"},
    # settings.bps_command asks click which command of BPS is running.
    "click": {"cli", "demo", "errors", "settings.bps_command"},
    "oauthlib": {"auth"},
    "jwt": {"auth", "rest.tokens", "local.identity"},
    "networkx": {"plan"},
    "pydantic": {"settings", "runs", "campaign", "prompt", "insight", "local", "demo.choices"},
    "rich": {"cli", "staging"},
    "jinja2": {"web"},
    "psutil": {"local"},
}

# Loading one of these at `import lsst.ctrl.bps.panda` would make every `bps` command pay for it.
HEAVY = (
    "pandaclient", "idds.core", "idds.orm", "idds.rest", "waitress", "flask", "astropy", "galsim",
    "matplotlib",
)  # fmt: skip

PURE = ("plan", "report", "status")
IMPURE = {
    "idds.workflow": "iDDS's own classes, which can only be imported with a variable set",
}
IMPURE_MODULES = {
    "datetime.now", "http", "io", "os", "pathlib.Path", "random", "requests", "secrets", "shutil", "socket",
    "subprocess", "tempfile", "threading", "time", "urllib.request", "uuid",
}  # fmt: skip
IMPURE_CALLS = {"open", "input", "now", "utcnow", "today", "uuid4", "urlopen", "read_text", "write_text"}

ENVIRONMENT_READERS = ("settings", "cli", "edgenode", "local", "demo", "warm")
PRINTERS = ("cli", "demo.__main__")
OLD_PATHS = {"panda_service", "utils"}
"""Modules that keep what others import from the previous plugin."""
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "managers", "misc"}

MAX_LINES = 700
# Module -> why it may be longer.
LONG_MODULES = {
    "edgenode.cmd_line_decoder": "one file that has to run alone on a worker",
    "warm.template": "one file that the interpreter of a job's scripts runs alone",
}
MAX_FUNCTION_LINES = 70

BOUNDARIES = {
    "campaign.parts": "makes the configurations of all sites out of one",
    "insight.cloud_log": "Google's client, an extra",
    "local.connections": "the only part that speaks with the web server's library",
    "local.executor": "jobs on this machine, apart from the server that hands them out",
    "local.idds_repairs.commands": "repairs of what iDDS loses, apart from those that make it start",
    "local.idds_repairs.tuning": "repairs that make iDDS faster, apart from those that make it right",
    "local.idds_repairs.volume": "repairs of what iDDS reads without need, apart from those of its delays",
    "prompt.arrivals": "the only part that knows where images come from",
    "remote.request": "the half of a remote build on the submit host",
    "rucio.checks": "asks Rucio and the Butler before a submission",
    "runs.reproduction": "a command of panda_bps, and the only part that writes configurations of a Butler",
    "settings.schema": "for editors; nothing of a run needs it",
    "staging.area": "what `staging` offers to others",
    "staging.stores": "the places where an area lies: file system, lsst.resources",
    "web.run_sets": "pages of what is not one run, apart from those of runs",
    "web.images": "the only part of the pages that opens Butler repositories",
    "warm.template": "a program, of which the pool shares what both have to agree on",
}
"""Modules that one other module imports, and why they are not part of it."""


@dataclass(frozen=True)
class Module:
    """One source file of the package."""

    name: str
    """Dotted, below the package; empty for the package itself."""

    path: Path
    is_package: bool

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"), str(self.path))

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """All nodes of the tree."""
        return list(ast.walk(self.tree))

    @property
    def parent(self) -> str:
        """What a relative import with one dot starts from."""
        full = f"{PACKAGE}.{self.name}".rstrip(".")
        return full if self.is_package else full.rpartition(".")[0]

    @cached_property
    def imports(self) -> list[tuple[str, int]]:
        """The full dotted name and line of each import, in functions too; of
        ``from a import b`` it is ``a.b``.
        """
        found: list[tuple[str, int]] = []
        for node in self.nodes:
            if isinstance(node, ast.Import):
                found += ((alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    start = self.parent.split(".")
                    base = ".".join(start[: len(start) - node.level + 1] + ([base] if base else []))
                found += ((f"{base}.{alias.name}", node.lineno) for alias in node.names)
        return found


def find_modules() -> list[Module]:
    """Read the tree of the package."""
    modules = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        modules.append(Module(".".join(parts[:-1] if is_package else parts), path, is_package))
    return modules


MODULES = find_modules()


def each(modules: Sequence[Module] = MODULES) -> Callable[[Callable[[Module], None]], Callable[[], None]]:
    """Check all modules in one test, which names those that are wrong: thousands of tests of a millisecond
    cost more to collect than to run.
    """

    def decorate(check: Callable[[Module], None]) -> Callable[[], None]:
        def test() -> None:
            wrong = {}
            for module in modules:
                try:
                    check(module)
                except AssertionError as error:
                    wrong[module.name or "package"] = str(error)
            assert modules
            assert wrong == {}

        return test

    return decorate


def within(name: str, part: str) -> bool:
    """Whether a dotted name is a part or lies in it."""
    return name == part or name.startswith(part + ".")


def within_any(name: str, parts: Iterable[str]) -> bool:
    """Whether a dotted name lies in one of some parts."""
    return any(within(name, part) for part in parts)


def dotted(module: Module) -> str:
    """Return the full name of a module."""
    return f"{PACKAGE}.{module.name}".rstrip(".")


def layer_of(name: str) -> str:
    """Return the folder, or the module at the top, that a module is in."""
    return name.partition(".")[0]


def may_import(importer: str, target: str) -> bool:
    """Whether the order of the layers allows an import."""
    layer, wanted = layer_of(importer), layer_of(target)
    if not layer or layer == wanted:
        return True
    if layer in APART:
        return wanted in APART[layer]
    return wanted in APART or LAYERS.index(layer) < LAYERS.index(wanted)


def calls(module: Module) -> Iterator[tuple[str, int]]:
    """Yield the last name and the line of each call."""
    for node in module.nodes:
        if isinstance(node, ast.Call):
            target = node.func
            if isinstance(target, ast.Name):
                yield target.id, node.lineno
            elif isinstance(target, ast.Attribute):
                yield target.attr, node.lineno


def test_the_package_was_found():
    assert {"errors", "plan.model", "edgenode"} <= {module.name for module in MODULES}


@each()
def test_module_is_in_a_known_layer(module):
    assert not module.name or layer_of(module.name) in {*LAYERS, *APART}, (
        f"{module.name} is in no layer of LAYERS: say where it stands in the order"
    )


@each()
def test_imports_go_down(module):
    wrong = []
    for target in own_imports(module):
        if not may_import(module.name, target):
            wrong.append(f"{module.name} may not import {target}")
    assert not wrong


def own_imports(module: Module) -> set[str]:
    """Return the modules of the package that a module imports, below the
    package; in functions, too.
    """
    found = set()
    for target, _ in module.imports:
        # `from a import b`: b is a module, or a name in module a.
        for name in (target, target.rpartition(".")[0]):
            if name in NAMES:
                found.add(NAMES[name])
                break
    return found - {module.name, ""}


NAMES = {f"{PACKAGE}.{module.name}".rstrip("."): module.name for module in MODULES}


def test_modules_do_not_import_each_other_in_a_circle():
    """Not even in functions."""
    graph = nx.DiGraph(
        (module.name, target) for module in MODULES for target in own_imports(module) if module.name
    )
    assert [sorted(circle) for circle in nx.strongly_connected_components(graph) if len(circle) > 1] == []


def test_a_module_with_one_importer_is_a_boundary():
    """What only one module needs belongs to that module.  Commands, files that
    run alone and the demo are apart.
    """
    importers: dict[str, set[str]] = {}
    for module in MODULES:
        for target in own_imports(module):
            importers.setdefault(target, set()).add(module.name)
    apart = ("cli", "edgenode", "demo")
    single = {name for name, users in importers.items() if len(users) == 1 and not within_any(name, apart)}
    assert single == set(BOUNDARIES)


def test_public_classes_have_names_of_their_own():
    """Two classes with one name are two meanings of one word."""
    homes: dict[str, list[str]] = {}
    for module in MODULES:
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(module.name)
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


@each()
def test_foreign_libraries_stay_where_they_belong(module):
    wrong = [
        f"line {line}: {library} belongs in {sorted(homes) or 'no module'}"
        for target, line in module.imports
        for library, homes in FOREIGN.items()
        if within(target, library) and not any(within(module.name, home) for home in homes)
    ]
    assert not wrong


@each([module for module in MODULES if within(module.name, "edgenode")])
def test_edgenode_needs_the_standard_library_only(module):
    """`lsst.resources` may be imported by the function that needs it."""
    lazy = ["lsst.resources"]
    if module.name == "edgenode.rucio_program":
        lazy += ["lsst", "yaml", "backoff", "rucio"]
    top_lines = {node.lineno for node in module.tree.body if isinstance(node, ast.Import | ast.ImportFrom)}
    wrong = [
        f"line {line}: {target}"
        for target, line in module.imports
        if target.split(".")[0] not in sys.stdlib_module_names
        and not (any(within(target, name) for name in lazy) and line not in top_lines)
    ]
    assert not wrong


@each([module for module in MODULES if module.name not in IMPURE and within_any(module.name, PURE)])
def test_pure_modules_touch_nothing(module):
    imported = [
        f"line {line}: imports {target}"
        for target, line in module.imports
        if any(within(target, impure) for impure in IMPURE_MODULES)
    ]
    called = [f"line {line}: calls {name}" for name, line in calls(module) if name in IMPURE_CALLS]
    assert imported + called == []


@each()
def test_only_settings_reads_the_environment(module):
    if module.name in IMPURE or any(within(module.name, reader) for reader in ENVIRONMENT_READERS):
        return
    wrong = [
        f"line {node.lineno}"
        for node in module.nodes
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv", "environb"}
    ]
    assert not wrong, "reads the environment; take the value as a parameter"


CONFIGURATIONS = {"config", "_config", "bps_config"}
"""What a BPS configuration is called."""


def searches(module: Module) -> Iterator[tuple[str, int]]:
    """Yield what looks into a BPS configuration, and its line."""
    for function in module.nodes:
        if not isinstance(function, ast.FunctionDef):
            continue
        # A path, for instance.
        others = {
            argument.arg
            for argument in (*function.args.args, *function.args.kwonlyargs)
            if argument.annotation and "Config" not in ast.unparse(argument.annotation)
        }
        for node in ast.walk(function):
            held = looked_into(node)
            name = ast.unparse(held) if isinstance(held, ast.Name | ast.Attribute) else ""
            if name.rpartition(".")[2] in CONFIGURATIONS - others:
                yield ast.unparse(node), node.lineno


def looked_into(node: ast.AST) -> ast.AST | None:
    """Return what an expression takes a value from, if it does."""
    match node:
        case ast.Subscript(value=held) | ast.Compare(ops=[ast.In() | ast.NotIn()], comparators=[held]):
            return held
        case ast.Call(func=ast.Attribute(value=held, attr="get" | "search" | "items" | "keys")):
            return held
        case ast.Call(func=ast.Name(id="dict" | "Config" | "BpsConfig"), args=[held, *_]):
            return held
    return None


@each()
def test_only_settings_searches_the_configuration(module):
    imports_bps = any(re.match(r"lsst\.ctrl\.bps\.(?!panda)", target) for target, _ in module.imports)
    if not imports_bps or any(within(module.name, room) for room in ("settings", *APART)):
        return
    wrong = [f"line {line}: {what}" for what, line in searches(module)]
    wrong += [f"line {line}: makes a BpsConfig" for name, line in calls(module) if name == "BpsConfig"]
    assert not wrong, "takes a value of the configuration by its key; settings.configuration has it by a name"


@pytest.mark.parametrize(
    "text",
    [
        "def f(config: BpsConfig): return config.get('a')",
        "def f(config): return 'a' in config",
        "class A:\n    def f(self): return self.config['a']",
        "def f(bps_config): return bps_config.search('a', opt={})",
    ],
)
def test_the_check_of_searches_is_not_blind(tmp_path, text):
    path = tmp_path / "m.py"
    path.write_text(text)
    assert list(searches(Module("m", path, False)))


@each()
def test_only_the_command_line_prints(module):
    if any(within(module.name, printer) for printer in PRINTERS):
        return
    wrong = [f"line {line}" for name, line in calls(module) if name in {"print", "pprint", "echo", "secho"}]
    assert not wrong


@each()
def test_module_has_a_noun_of_its_own(module):
    assert module.name in OLD_PATHS or not VAGUE_NAMES & set(module.name.split("."))


@each()
def test_module_is_not_too_long(module):
    lines = len(module.path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES or module.name in LONG_MODULES


def test_the_list_of_long_modules_is_not_outdated():
    lengths = {module.name: len(module.path.read_text(encoding="utf-8").splitlines()) for module in MODULES}
    assert [name for name in LONG_MODULES if name in lengths and lengths[name] <= MAX_LINES] == []


@each()
def test_functions_fit_a_screen(module):
    wrong = []
    for node in module.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            if ast.get_docstring(node) is not None and len(node.body) > 1:
                first = node.body[1]
            length = (node.end_lineno or node.lineno) - first.lineno + 1
            if length > MAX_FUNCTION_LINES:
                wrong.append(f"line {node.lineno}: {node.name} has {length} lines")
    assert not wrong


@each()
def test_module_says_what_it_is_and_what_it_offers(module):
    tree = module.tree
    assert ast.get_docstring(tree) or module.is_package
    if module.is_package or module.path.name == "__main__.py":
        return
    assigned = [
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    assert "__all__" in assigned


# Records what imports do: the audit hook sees sockets, files and processes even where a library
# catches its own exceptions.  Each effect is booked to the module that was the first to cause it.
PROBE = """
import json, logging, os, signal, sys, threading, time

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
# Not socket.bind: urllib3 binds to ::1 for a moment to learn whether there is IPv6.
EFFECTS = {
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.system",
    "os.fork", "os.exec", "os.posix_spawn", "os.chdir", "subprocess.Popen", "sqlite3.connect",
    "shutil.rmtree", "tempfile.mkstemp", "tempfile.mkdtemp", "socket.connect", "socket.getaddrinfo",
    "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo", "socket.sendto",
}
effects = []

def hook(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if isinstance(flags, int) and flags & WRITES and path != os.devnull:
            effects.append(f"opens {path!r} for writing")
    elif event in EFFECTS:
        effects.append(f"{event} {arguments!r:.200}")

def state():
    root = logging.getLogger()
    return {
        "environment": dict(os.environ), "folder": os.getcwd(), "log level": root.level,
        "log handlers": len(root.handlers), "threads": threading.active_count(),
        "SIGTERM": str(signal.getsignal(signal.SIGTERM)), "SIGINT": str(signal.getsignal(signal.SIGINT)),
    }

base, *names = sys.argv[1:]
sys.addaudithook(hook)
if base:
    __import__(base)
told = {}
for name in names:
    effects.clear()
    known, before, begin = set(sys.modules), state(), time.perf_counter()
    try:
        __import__(name)
        failure = ""
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    seconds, after = time.perf_counter() - begin, state()
    told[name] = {
        "failure": failure, "effects": list(effects), "seconds": seconds,
        "changed": sorted(key for key in before if before[key] != after[key]),
        "modules": sorted(set(sys.modules) - known),
    }
json.dump(told, sys.stdout)
"""


def probe(names: list[str], home: Path, *, base: str = "") -> dict[str, dict]:
    """Import modules in a process of its own, and tell what each did."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    # Module paths of the previous plugin warn.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROBE, base, *names]
    done = subprocess.run(
        command, env=environment, cwd=home, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


IMPORTABLE = [module for module in MODULES if module.path.name != "__main__.py"]


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """What importing did, by module; the files left in the home are at ''."""
    home = tmp_path_factory.mktemp("home")
    told = probe([dotted(module) for module in IMPORTABLE], home)
    return told | {"": sorted(str(path.relative_to(home)) for path in home.rglob("*"))}


@pytest.mark.slow
def test_importing_has_no_effect(imported):
    told = {name: imported[name] for name in map(dotted, IMPORTABLE)}
    assert {
        name: did for name, did in told.items() if did["failure"] or did["effects"] or did["changed"]
    } == {}


@pytest.mark.slow
def test_importing_leaves_no_file(imported):
    assert imported[""] == []


def test_the_probe_sees_effects(tmp_path):
    """The test above would be worthless with a blind probe."""
    (tmp_path / "guilty.py").write_text(
        "import os, socket, logging\n"
        "open('made', 'w').close()\n"
        "os.environ['X'] = '1'\n"
        "logging.basicConfig()\n"
        "try:\n    socket.getaddrinfo('localhost', 1)\nexcept OSError:\n    pass\n"
    )
    (tmp_path / "broken.py").write_text("import surely_not_there\n")
    told = probe(["guilty", "broken"], tmp_path)
    assert any("made" in effect for effect in told["guilty"]["effects"])
    assert any("getaddrinfo" in effect for effect in told["guilty"]["effects"])
    assert told["guilty"]["changed"] == ["environment", "log handlers"]
    assert "surely_not_there" in told["broken"]["failure"]


@pytest.mark.slow
@pytest.mark.newest
def test_importing_the_package_is_cheap(tmp_path, record_property):
    """What is loaded is asserted; the seconds are only reported."""
    told = probe([PACKAGE], tmp_path, base="lsst.ctrl.bps")[PACKAGE]
    record_property("import seconds above lsst.ctrl.bps", told["seconds"])
    assert [name for name in told["modules"] if any(within(name, heavy) for heavy in HEAVY)] == []


def text_files() -> list[Path]:
    """Return the files under version control, or all but the made ones."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        names = listed.stdout.decode().split("\0")
        files = [CHECKOUT / name for name in names if name]
    else:
        files = [
            path for path in CHECKOUT.rglob("*") if not re.search(r"/(\.|build|_build|.*egg-info)", str(path))
        ]
    return [path for path in files if path.is_file() and not path.is_symlink()]


# Folders of one machine, and hosts that only a machine's set-up may name.
MACHINE = re.compile(
    rb"(?<![\w.\-/])/(?:root|work)/|/opt/(?:pypi|wheels)|pypi\.org|pythonhosted\.org|registry\.npmjs\.org"
)


def test_no_file_names_a_place_of_one_machine():
    own = (os.fsencode(CHECKOUT) + b"/", os.fsencode(Path.home()) + b"/")
    wrong = []
    for path in text_files():
        content = path.read_bytes()
        for number, line in enumerate(content.splitlines(), 1) if b"\0" not in content else ():
            if (MACHINE.search(line) or any(place in line for place in own)) and path != Path(
                __file__
            ).resolve():
                wrong.append(f"{path.relative_to(CHECKOUT)}:{number}")
    assert not wrong


TESTS = sorted((CHECKOUT / "tests").rglob("test_*.py"))


def test_tests_replace_nothing():
    """Time, environment and HTTP sessions are parameters, so no test needs
    to patch a function.
    """
    wrong = []
    for path in TESTS:
        text = path.read_text(encoding="utf-8")
        # Reading the syntax of all files takes seconds.
        if not re.search(r"\bmock\b|monkeypatch\.setattr", text):
            continue
        for node in ast.walk(ast.parse(text)):
            match node:
                case ast.ImportFrom(module="unittest.mock" | "mock"):
                    wrong.append(f"{path.name}:{node.lineno}")
                case ast.ImportFrom(module="unittest") | ast.Import():
                    if {alias.name for alias in node.names} & {"unittest.mock", "mock"}:
                        wrong.append(f"{path.name}:{node.lineno}")
                case ast.Attribute(value=ast.Name(id="monkeypatch"), attr="setattr"):
                    wrong.append(f"{path.name}:{node.lineno}")
    assert wrong == []


def test_test_files_have_unique_names():
    names = [path.name for path in TESTS]
    assert sorted(set(names)) == sorted(names)
