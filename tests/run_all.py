"""Make the environments of the tests and run everything in them.

Started by ``bin/run-tests``, with any Python 3.11 or newer and nothing but
the standard library.  An environment lies in the checkout as
``.venv-tests-<version>``; it is kept, and made again when what it was made
from changes.  Each thing that is run is a phase; a failed phase does not
stop the next ones, and the last line is pytest's own count over all passes.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
EXTRAS = "local,demo,rucio,test,dev"
NEWEST = "3.13"

# How many of the longest files are named after a pass, and from which length on.
_FILES_SHOWN = 40
_SECONDS_SHOWN = 5.0

SYSTEM_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")

# Debian package -> (file it brings, test files that want it).  Installed only when such tests exist.
DEBIAN_PACKAGES: dict[str, tuple[tuple[str, ...], str]] = {
    "nginx-light": (("/usr/sbin/nginx",), "*nginx*"),
    "libnginx-mod-http-dav-ext": (("/usr/lib/nginx/modules/ngx_http_dav_ext_module.so",), "*nginx*"),
    "xrootd-server": (("/usr/bin/xrootd",), "*xrootd*"),
    "postgresql": (("/usr/lib/postgresql", "/usr/local/bin/initdb"), "*postgres*"),
    "activemq": (("/usr/share/activemq/lib",), "*broker*"),
    "openssl": (("/usr/bin/openssl",), "*broker*"),
    "chromium": (("/usr/bin/chromium", "/usr/local/bin/chromium"), "*chromium*"),
    "chromium-driver": (("/usr/bin/chromedriver", "/usr/local/bin/chromedriver"), "*chromium*"),
    "nodejs": (("/usr/bin/node", "/usr/local/bin/node"), "*oidc*"),
    "npm": (("/usr/bin/npm", "/usr/local/bin/npm"), "*oidc*"),
}

# What a user's own set-up must not bring into a test.  Pip's, npm's and the locale's variables stay.
FOREIGN_PREFIXES = (
    "AWS_", "BPS_", "CTRL_", "DAF_", "IDDS_", "LSST_", "OIDC_", "PANDA", "PYTHON", "RUCIO_", "S3_", "X509_",
)  # fmt: skip
FOREIGN_NAMES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "VIRTUAL_ENV", "BEARER_TOKEN", "BEARER_TOKEN_FILE")


@dataclass
class Run:
    """What was run, how long it took and what pytest counted."""

    environment: dict[str, str]
    phases: list[tuple[str, float, bool]] = field(default_factory=list)
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("failed", "passed", "skipped", "error"), 0)
    )
    started: float = field(default_factory=time.monotonic)

    @contextmanager
    def phase(self, name: str) -> Iterator[list[bool]]:
        """Time what is inside; it appends whether it went well."""
        say(f"--- {name}")
        results: list[bool] = []
        begin = time.monotonic()
        try:
            yield results
        finally:
            self.phases.append((name, time.monotonic() - begin, bool(results) and all(results)))

    def command(self, name: str, command: Sequence[str | Path]) -> bool:
        """Run a command in the checkout, as a phase of its own."""
        with self.phase(name) as results:
            results.append(call(command, self.environment) == 0)
        if not results[0]:
            self.counts["error"] += 1
        return results[0]

    def pytest(self, name: str, python: Path, arguments: Sequence[str]) -> None:
        """Run pytest and add up what it counted."""
        with tempfile.TemporaryDirectory(prefix="run-tests-") as scratch, self.phase(name) as results:
            report = Path(scratch, "junit.xml")
            environment = self.environment | {
                "XDG_STATE_HOME": f"{scratch}/state",
                "PANDA_CONFIG_ROOT": f"{scratch}/pathena",
                "PATH": f"{python.parent}{os.pathsep}{self.environment['PATH']}",
            }
            status = call([python, "-m", "pytest", f"--junitxml={report}", *arguments], environment)
            results.append(status == 0)
            if not self.add_counts(report) and status != 0:
                self.counts["error"] += 1
            self.add_times(report)

    def add_counts(self, report: Path) -> bool:
        """Add the counts of one JUnit file; whether it names a failure."""
        if not report.exists():
            return False
        wrong = 0
        for suite in ElementTree.parse(report).getroot().iter("testsuite"):
            tests, failed, errors, skipped = (
                int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")
            )
            self.counts["failed"] += failed
            self.counts["error"] += errors
            self.counts["skipped"] += skipped
            self.counts["passed"] += tests - failed - errors - skipped
            wrong += failed + errors
        return wrong > 0

    def add_times(self, report: Path) -> None:
        """Print which files took longest, from a JUnit file."""
        if not report.exists():
            return
        seconds: dict[str, float] = defaultdict(float)
        for case in ElementTree.parse(report).getroot().iter("testcase"):
            seconds[case.get("classname", "?")] += float(case.get("time", "0"))
        longest = sorted(seconds.items(), key=lambda item: -item[1])[:_FILES_SHOWN]
        for name, time_of_file in longest:
            if time_of_file >= _SECONDS_SHOWN:
                say(f"{time_of_file:15.1f} s  {name}")

    def close(self) -> int:
        """Print the phases and the counts; the exit code."""
        total = time.monotonic() - self.started
        say("--- phases")
        for name, seconds, good in self.phases:
            say(f"{'ok' if good else 'FAILED':7}{seconds:8.1f} s  {name}")
        counts = self.counts
        words = [f"{counts['failed']} failed", f"{counts['passed']} passed"]
        if counts["skipped"]:
            words.append(f"{counts['skipped']} skipped")
        if counts["error"]:
            words.append(f"{counts['error']} error{'s' if counts['error'] > 1 else ''}")
        say(f"{' ' + ', '.join(words) + f' in {total:.2f}s ':=^80}")
        return 0 if all(good for _, _, good in self.phases) else 1


def say(text: str) -> None:
    """Print a line now, so that it stands before what a command prints."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def call(command: Sequence[str | Path], environment: dict[str, str]) -> int:
    """Run a command in the checkout and return its exit code."""
    return subprocess.run(
        [str(part) for part in command], cwd=CHECKOUT, env=environment, check=False
    ).returncode


def clean_environment() -> dict[str, str]:
    """Return the environment without what would change a test's result."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(FOREIGN_PREFIXES) and key not in FOREIGN_NAMES
    }
    # Node brings its own authorities and ignores the system's; where a network has its own, npm hangs.
    if SYSTEM_AUTHORITIES.exists():
        kept.setdefault("NODE_EXTRA_CA_CERTS", str(SYSTEM_AUTHORITIES))
    return kept | {"LC_ALL": "C.UTF-8", "PYTHONNOUSERSITE": "1", "MPLBACKEND": "Agg"}


def find_python(wanted: str) -> Path | None:
    """Find an interpreter by version (``3.13``) or path.

    A pyenv shim exists even where its version does not, so each candidate
    is started.
    """
    candidates = [wanted] if os.sep in wanted else [f"python{wanted}"]
    candidates += [str(path) for path in sorted(Path.home().glob(f".pyenv/versions/{wanted}*/bin/python3"))]
    for candidate in candidates:
        path = shutil.which(candidate)
        if path is None:
            continue
        probe = subprocess.run(
            [path, "-c", "import sys; sys.stdout.write(sys.executable)"],
            capture_output=True,
            text=True,
            check=False,
        )
        if probe.returncode == 0:
            return Path(probe.stdout)
    return None


def version_of(python: Path) -> str:
    """Return the full version of an interpreter, ``3.11.7``."""
    code = "import platform; print(platform.python_version())"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def fingerprint(python: Path, version: str) -> tuple[str, str]:
    """Return digests of what an environment is: of its place and Python, and
    of what is installed in it.
    """
    with open(CHECKOUT / "pyproject.toml", "rb") as stream:
        build_system = tomllib.load(stream)["build-system"]
    place = (str(CHECKOUT), str(python.resolve()), version)
    content = (EXTRAS, repr(build_system), (CHECKOUT / "setup.cfg").read_text(encoding="utf-8"))
    first, second = (hashlib.sha256("\0".join(parts).encode()).hexdigest() for parts in (place, content))
    return first, second


def make_environment(base: Path, environment: dict[str, str]) -> Path:
    """Make the environment for an interpreter, bring one up to date, or
    reuse it as it is.

    A marker that holds the fingerprint is written last and removed first:
    without it, the environment was interrupted and is made afresh.

    Raises
    ------
    SystemExit
        If the environment cannot be made.
    """
    version = version_of(base)
    minor = ".".join(version.split(".")[:2])
    folder = CHECKOUT / f".venv-tests-{minor}"
    marker = folder / "complete"
    python = folder / "bin" / "python"
    place, content = fingerprint(base, version)
    locks = CHECKOUT / ".cache"
    locks.mkdir(exist_ok=True)
    with open(locks / f"venv-tests-{minor}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = marker.read_text().split() if marker.exists() else []
        if found == [place, content]:
            return python
        if found[:1] != [place]:
            shutil.rmtree(folder, ignore_errors=True)
            make_venv(base, folder, environment)
        marker.unlink(missing_ok=True)
        pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-compile"]
        if call([*pip, "--editable", f"{CHECKOUT}[{EXTRAS}]"], environment) != 0:
            raise SystemExit(f"run-tests: {folder} could not be made (see pip's message above)")
        marker.write_text(f"{place}\n{content}\n")
    return python


def find_newest(base: Path) -> Path | None:
    """Find the Python of the second pass, unless the first has it already."""
    newest = find_python(NEWEST)
    if newest is None or version_of(base).startswith(NEWEST + "."):
        say(f"run-tests: no second pass, as Python {NEWEST} is not here or is the one used")
        return None
    return newest


def make_environments(run: Run, bases: Sequence[Path]) -> list[Path]:
    """Make the environment of each interpreter, all at the same time: much of
    it is waiting.
    """
    versions = ", ".join(version_of(base) for base in bases)
    with run.phase(f"environment, Python {versions}") as results, ThreadPoolExecutor() as pool:
        pythons = list(pool.map(lambda base: make_environment(base, run.environment), bases))
        results.append(True)
    return pythons


def make_venv(base: Path, folder: Path, environment: dict[str, str]) -> None:
    """Make an empty virtual environment.

    Debian keeps the module for it in a package of its own, ``python3-venv``.

    Raises
    ------
    SystemExit
        If that is not possible.
    """
    if call([base, "-m", "venv", folder], environment) == 0:
        return
    shutil.rmtree(folder, ignore_errors=True)
    if os.geteuid() == 0 and shutil.which("apt-get"):
        install_debian(["python3-venv"], environment)
        if call([base, "-m", "venv", folder], environment) == 0:
            return
    raise SystemExit(f"run-tests: '{base} -m venv' failed; on Debian: apt-get install python3-venv")


def install_debian(packages: Sequence[str], environment: dict[str, str]) -> bool:
    """Install Debian packages; whether that worked."""
    quiet = environment | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    if call(install, quiet) == 0:
        return True
    return call(["apt-get", "update", "-qq"], quiet) == 0 and call(install, quiet) == 0


def provide_servers(run: Run) -> None:
    """Install the servers that the tests there are talk to."""
    missing = [
        package
        for package, (files, pattern) in DEBIAN_PACKAGES.items()
        if any(CHECKOUT.glob(f"tests/*/{pattern}")) and not any(Path(file).exists() for file in files)
    ]
    if not missing:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        say(f"run-tests: tests will fail for want of: {' '.join(missing)} (apt-get install them as root)")
        return
    with run.phase(f"Debian packages: {' '.join(missing)}") as results:
        results.append(install_debian(missing, run.environment))


@dataclass
class Beside:
    """A command that runs beside the phases, as most of its time is waiting or
    a core would be idle.
    """

    run: Run
    name: str
    process: subprocess.Popen[bytes]

    @classmethod
    def begin(cls, run: Run, name: str, command: Sequence[str | Path]) -> Beside:
        """Start the command in the checkout."""
        process = subprocess.Popen([str(part) for part in command], cwd=CHECKOUT, env=run.environment)
        return cls(run, name, process)

    def finish(self) -> None:
        """Wait for its end, as a phase."""
        with self.run.phase(f"{self.name} (what was left of it)") as results:
            results.append(self.process.wait() == 0)
        if not results[0]:
            self.run.counts["error"] += 1


def make_rucio_environment(run: Run, python: Path) -> Beside:
    """Begin to make the environment of the Rucio server, if it is not there."""
    program = CHECKOUT / "tests" / "servers" / "rucio_environment.py"
    return Beside.begin(run, "environment of the Rucio server", [python, program])


def make_documentation(run: Run, python: Path, *, pictures: bool) -> Beside:
    """Begin to build the documentation, warnings being errors; its pictures
    need a run of the demo.
    """
    build = [python, "-m", "sphinx", "-q", "-W", "-n", "--keep-going", "-b", "html", "doc", "doc/_build/html"]
    build += [] if pictures else ["-D", "panda_pictures=0"]
    return Beside.begin(run, "documentation", build)


def check_source(run: Run, python: Path) -> None:
    """Lint and types."""
    run.command("ruff", [python, "-m", "ruff", "check", "--quiet", "."])
    run.command("ruff format", [python, "-m", "ruff", "format", "--quiet", "--check", "."])
    run.command("mypy --strict", [python, "-m", "mypy", "-p", "lsst.ctrl.bps.panda"])


def arguments_of(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the arguments into ours and pytest's."""
    parser = argparse.ArgumentParser(
        prog="run-tests",
        description="Run the tests.",
        epilog="Further arguments go to pytest.",
        allow_abbrev=False,
    )
    parser.add_argument("--quick", action="store_true", help="lint, types and the tests not marked slow")
    parser.add_argument(
        "--all", action="store_true", help="also the tests marked long, and those marked once on both Pythons"
    )
    parser.add_argument(
        "--python", default="", metavar="VERSION", help="version (3.13) or path of the Python to use"
    )
    return parser.parse_known_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run all; the exit code is 0 only if every phase went well."""
    # Whoever starts us in the background lets us ignore these, and tests send them: what a process
    # handles becomes the default again in those that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, lambda number, frame: sys.exit(129))
    signal.signal(signal.SIGQUIT, lambda number, frame: sys.exit(131))
    options, rest = arguments_of(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    base = find_python(options.python) if options.python else Path(sys.executable)
    if base is None:
        raise SystemExit(f"run-tests: no Python {options.python} found in PATH or ~/.pyenv/versions")
    run = Run(clean_environment())
    newest = None if options.quick or rest else find_newest(base)
    python, *others = make_environments(run, [base, *([newest] if newest else [])])
    # A file is run as a whole, those with slow tests first (see conftest.py).
    parallel = ["-q", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "--timeout", "900"]
    parallel += ["--durations=20", "--durations-min=10"]
    few = ["--hypothesis-profile", "quick"]
    if options.quick:
        check_source(run, python)
        run.pytest("tests not marked slow", python, [*parallel, *few, "-m", "not slow", *rest])
        return run.close()
    if rest:
        run.pytest("tests " + " ".join(rest), python, ["--timeout", "900", *rest])
        return run.close()
    provide_servers(run)
    rucio = make_rucio_environment(run, python)
    documentation = make_documentation(run, python, pictures=options.all)
    check_source(run, python)
    for other in others:
        newest = "not slow or newest" if options.all else "(not slow or newest) and not long"
        run.pytest(f"tests on Python {NEWEST}", other, [*parallel, *few, "-m", newest])
    rucio.finish()
    documentation.finish()
    unwanted = [] if options.all else ["not long", *(["not once"] if others else [])]
    chosen = ["-m", " and ".join(unwanted)] if unwanted else []
    many = ["--hypothesis-profile", "all"] if options.all else []
    run.pytest("all tests" if options.all else "tests", python, [*parallel, *many, *chosen])
    return run.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
