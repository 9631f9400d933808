"""Measure the page of a run of ten thousand jobs in a real browser: its size, when it is painted first, and
how old what it shows is.

The rows are those that a real PanDA replied, with other numbers and names; a server in another process gives
them::

    python tests/benchmarks/page_paint.py [--tasks 4] [--jobs 2500] [--seconds 30] [--json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from statistics import median

from insight_cost import serve

HERE = Path(__file__).resolve().parent
BUDGETS = {"MB": 2.0, "first paint, s": 1.0, "age, s": 1.0}

_PAINT = "return performance.getEntriesByName('first-contentful-paint').map((entry) => entry.startTime)"
_SIZE = """
const entries = [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')];
return entries.filter((entry) => entry.initiatorType !== 'fetch')
  .reduce((sum, entry) => sum + entry.decodedBodySize, 0)"""
_AGE = "return (Date.now() - Date.parse(document.getElementById('age').dataset.lookedAt)) / 1000"


def _import_browser():
    package = module_from_spec(ModuleSpec("panda_servers", None, is_package=True))
    package.__path__ = [str(HERE.parent / "servers")]
    sys.modules["panda_servers"] = package
    from panda_servers.browser import Browser

    return Browser


def look(browser, address: str) -> dict[str, float]:
    """Open a page, and measure it."""
    browser.driver.get(address)
    browser.wait(lambda: browser.driver.execute_script(_PAINT))
    return {
        "first paint, s": round(browser.driver.execute_script(_PAINT)[0] / 1000, 2),
        "MB": round(browser.driver.execute_script(_SIZE) / 1e6, 2),
    }


def watch(browser, seconds: float) -> dict[str, float]:
    """Look at the age of what a page shows, every tenth of a second."""
    end, ages = time.monotonic() + seconds, []
    while time.monotonic() < end:
        ages.append(browser.driver.execute_script(_AGE))
        time.sleep(0.1)
    return {"age, s": round(median(ages), 2), "oldest, s": round(max(ages), 2)}


def main() -> int:
    """Measure and print; 1 if a figure is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=2500, help="jobs of a task; PanDA lists 5500 at most")
    parser.add_argument("--seconds", type=float, default=30.0, help="for which the page is watched")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(options.tasks, options.jobs, theirs), daemon=True)
    server.start()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        env = {"PANDA_URL_SSL": ours.recv(), "USER": "ann", "HOME": folder, "PATH": "/usr/bin:/bin"}
        command = [sys.executable, "-m", "lsst.ctrl.bps.panda.cli.panda_bps", "web"]
        pages = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        stack.callback(lambda: (pages.kill(), pages.wait(), pages.stdout.close()))
        browser = stack.enter_context(closing(_import_browser()(f"{folder}/profile")))
        browser.driver.get(pages.stdout.readline().split()[-1])
        address = f"{browser.driver.current_url}runs/4711/"
        found = {"nothing is known yet": look(browser, address)}
        browser.wait(lambda: "are being looked at" not in browser.text)
        found["all jobs are known"] = look(browser, address) | watch(browser, options.seconds)
        found["a label"] = look(browser, f"{address}label?name=label_1")
    ours.send("end")
    server.join()
    report = {"jobs": options.tasks * options.jobs, "budgets": BUDGETS, "pages": found}
    if options.json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        sys.stdout.write(f"{report['jobs']} jobs; at most {BUDGETS}\n")
        for name, figures in found.items():
            sys.stdout.write(f"{name}: {figures}\n")
    return any(figures.get(name, 0.0) > most for figures in found.values() for name, most in BUDGETS.items())


if __name__ == "__main__":
    sys.exit(main())
