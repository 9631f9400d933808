"""The pictures of the documentation, made from a run of the demo: terminals
as SVG, the page of the run as PNG.

The build of the documentation makes them (``_ext/panda_pictures.py``).  By hand:
``python doc/pictures.py DIRECTORY``, with ``--readme`` for the picture of the README, too.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text

DOC = Path(__file__).resolve().parent
NAMES = (
    "watch.svg",
    "report.svg",
    "errors.svg",
    "resources.svg",
    "timeline.svg",
    "page.png",
    "portal.png",
    "image.png",
)
README = DOC / "lsst.ctrl.bps.panda" / "_static" / "run_page.png"

# A run of some ten seconds on two cores, in which a quantum fails.
SKY = {"bands": ("g", "r"), "visits_per_band": 2, "detectors": 2, "patches": 1}
LIMIT = 300.0
COLUMNS = 110
PAGE = (1180, 860)

# The display of watch is renewed by erasing its lines from the last one up.
RENEW = re.compile(r"\r\x1b\[2K(?:\x1b\[1A\x1b\[2K)*")
CURSOR = re.compile(r"\x1b\[\?25[hl]")
# The pictures load no font from another host: what the reader has does as well.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
    "Fira Code, monospace", "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
)


class PictureError(Exception):
    """A picture cannot be made here; the text says why, and what to do."""


def read_terminal(command: list[str], env: dict[str, str], folder: Path) -> str:
    """Run a command on a terminal and return all that it wrote, with its colours."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, cwd=folder, env=env, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    written, end = b"", time.monotonic() + LIMIT
    try:
        while time.monotonic() < end:
            if not select.select([ours], [], [], 1.0)[0]:
                continue
            try:
                piece = os.read(ours, 65536)
            except OSError:  # Linux says so when the other side is closed.
                break
            if not piece:
                break
            written += piece
        process.wait(timeout=10)
        return written.decode()
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def write_terminal(path: Path, command: str, written: str) -> None:
    """Draw what a command wrote on a terminal."""
    text = Text.from_ansi(CURSOR.sub("", written).replace("\r\n", "\n").strip("\n"))
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True, color_system="256")
        console.print(text, soft_wrap=False)
        drawn = console.export_svg(title=command, code_format=FORMAT, unique_id=path.stem)
    path.write_text("\n".join(line.rstrip() for line in drawn.splitlines()) + "\n", encoding="utf-8")


def middle_display(written: str) -> str:
    """Return what ``watch`` showed in the middle of the run, with a failure if there was one."""
    shown = [text for text in RENEW.split(written) if text.count("\n") > 3]
    good = [text for text in shown if "First failure" in text and "(over)" not in text]
    chosen = good or shown[len(shown) // 2 :]
    return chosen[len(chosen) // 3]


def browser_programs() -> tuple[str | None, str | None]:
    """Find Chromium and its driver."""
    return shutil.which("chromium"), shutil.which("chromedriver")


@contextmanager
def browser(profile: Path) -> Iterator[object]:
    """Start Chromium without a window.

    Raises
    ------
    PictureError
        If it is not installed.
    """
    programs = browser_programs()
    if not all(programs):
        raise PictureError("Chromium and its driver are needed: apt-get install chromium chromium-driver")
    try:
        from selenium import webdriver
    except ImportError:
        raise PictureError("selenium is not installed: pip install selenium") from None
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    words = ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars")
    for word in (*words, f"user-data-dir={profile}", "window-size={},{}".format(*PAGE)):
        options.add_argument(f"--{word}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    try:
        yield driver
    finally:
        driver.quit()


class Demo:
    """A run of the demo, and the commands that are shown about it."""

    def __init__(self, folder: Path, target: Path) -> None:
        from lsst.ctrl.bps.panda.demo.repository import create_repo
        from lsst.ctrl.bps.panda.demo.workplace import Workplace

        self.target = target
        self.place = Workplace(folder)
        create_repo(self.place.repo, **SKY)
        self.place.write_files()
        plain = {"HOME": str(folder), "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "USER": "you"}
        self.env = self.place.environment(plain) | {
            "COLUMNS": str(COLUMNS),
            "LINES": "40",
            "TERM": "xterm-256color",
            "XDG_STATE_HOME": str(folder / "state"),
        }

    def draw(self, name: str, command: str, choose=lambda written: written) -> None:
        """Run a command on a terminal, and draw what it shows."""
        written = read_terminal(command.split(), self.env, self.place.directory)
        if not written.strip():
            raise RuntimeError(f"'{command}' wrote nothing")
        for folder, shown in (
            (str(self.place.directory), "/home/you"),
            (sys.prefix, "/home/you/bps"),
            (str(DOC.parent), "/home/you/ctrl_bps_panda"),
        ):
            written = written.replace(folder, shown)
        write_terminal(self.target / f"{name}.svg", command, choose(written))

    def call(self, *command: str) -> str:
        """Run a command that has to succeed."""
        done = subprocess.run(
            command,
            cwd=self.place.directory, env=self.env, capture_output=True, text=True, timeout=LIMIT,
            check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def draw_commands(self) -> None:
        """Submit the run, watch it until it has ended, and ask about it."""
        said = self.call("bps", "submit", str(self.place.failing_config))
        run = next(line.split()[-1] for line in said.splitlines() if line.startswith("Run Id:"))
        self.draw("watch", f"panda_bps watch {run}", middle_display)
        self.draw("report", f"bps report --id {run}")
        self.draw("errors", f"panda_bps errors {run}")
        self.draw("resources", f"panda_bps resources {run} --plots plots --format svg")
        shutil.copy(self.place.directory / "plots" / "timeline.svg", self.target)

    def draw_pages(self, link: str) -> None:
        """Take pictures of the run's page, of the portal's form, and of an image of the run."""
        from selenium.webdriver.common.by import By
        from selenium.webdriver.support.wait import WebDriverWait

        with browser(self.place.directory / "profile") as driver:

            def wait(selector):
                find = (By.CSS_SELECTOR, selector)
                WebDriverWait(driver, LIMIT).until(lambda driver: driver.find_elements(*find))
                return driver.find_element(*find)

            driver.get(link)
            run, home = wait("a[href*='runs/']").get_attribute("href"), driver.current_url
            driver.get(run)
            WebDriverWait(driver, LIMIT).until(lambda driver: "First failure" in driver.page_source)
            driver.save_screenshot(str(self.target / "page.png"))
            driver.get(f"{home}portal?place=62,-37&place=63.5,-36&detectors=8&only=0,1,2,3")
            wait("#preview tbody tr")
            driver.save_screenshot(str(self.target / "portal.png"))
            driver.get(f"{run}images")
            wait("#viewer[data-shown]")
            driver.save_screenshot(str(self.target / "image.png"))


def make_pictures(target: Path) -> list[str]:
    """Make all pictures in a directory; return why some could not be made.

    Raises
    ------
    PictureError
        If none can be made, since what runs the demo is not installed.
    """
    try:
        from lsst.ctrl.bps.panda.demo import repository  # noqa: F401
        from lsst.ctrl.bps.panda.local import instance
    except ImportError as error:
        raise PictureError(f"{error}: pip install 'lsst-ctrl-bps-panda[local,demo]'") from None
    target.mkdir(parents=True, exist_ok=True)
    missing = []
    with tempfile.TemporaryDirectory(prefix="pictures-") as name:
        demo = Demo(Path(name), target)
        with patched_environment(demo.env):
            endpoint = instance.start(demo.place.panda)
            try:
                demo.draw_commands()
                try:
                    demo.draw_pages(instance.make_link(endpoint))
                except PictureError as error:
                    missing.append(f"the pictures of pages: {error}")
            finally:
                instance.stop(demo.place.panda)
    return missing


@contextmanager
def patched_environment(env: dict[str, str]) -> Iterator[None]:
    """Let the embedded PanDA start in the environment of the demo."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(env)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def main() -> None:
    """Make the pictures by hand."""
    parser = argparse.ArgumentParser(description="Make the pictures of the documentation.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--readme", action="store_true", help="also replace the picture of the README")
    options = parser.parse_args()
    try:
        missing = make_pictures(options.directory)
    except PictureError as error:
        sys.exit(f"pictures: {error}")
    if missing:
        sys.exit("\n".join(f"pictures: {text}" for text in missing))
    if options.readme:
        shutil.copy(options.directory / "page.png", README)


if __name__ == "__main__":
    main()
