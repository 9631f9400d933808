"""The page of a run in a real browser, which takes a picture of it."""

import re
import shutil
import subprocess

import matplotlib.image
import numpy as np
import pytest
from click.testing import CliRunner
from panda_servers.recorded_panda import REQUEST_ID, RUN, RecordedPanda, RecordedRun

from lsst.ctrl.bps.panda.cli.panda_bps import main
from lsst.ctrl.bps.panda.insight.resources import WmsStates
from lsst.ctrl.bps.panda.insight.task_graph import STATE_COLOURS

pytestmark = pytest.mark.slow

SIZE = (1250, 2400)


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "run.html"
    with RecordedPanda(RecordedRun(tasks=3, jobs=40)) as server:
        env = {
            "PANDA_URL_SSL": server.url,
            "XDG_STATE_HOME": str(tmp_path),
            "USER": "ann",
            "PANDA_AUTH": None,
        }
        result = CliRunner().invoke(main, ["html", str(REQUEST_ID), "-o", str(path)], env=env)
    assert result.exit_code == 0, result.output
    return path


def browse(page, *options):
    """Open the page in Chromium without a window; give its output."""
    browser = shutil.which("chromium")
    assert browser, "apt-get install chromium"
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--hide-scrollbars", f"--user-data-dir={page.parent / 'profile'}", "--enable-logging=stderr"]
    command += [f"--window-size={SIZE[0]},{SIZE[1]}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    # What the browser says of the page itself: a style or a drawing that is refused, a broken script.
    assert not re.findall(r"CONSOLE.*", done.stderr)
    return done.stdout


def colours_of(page, *options):
    """Take a picture; give a function that counts the pixels of a colour."""
    picture = page.with_suffix(".png")
    browse(page, f"--screenshot={picture}", *options)
    pixels = (matplotlib.image.imread(picture)[:, :, :3] * 255).round().astype(int)
    assert pixels.shape == (SIZE[1], SIZE[0], 3)

    def count(colour):
        wanted = np.array([int(colour[n : n + 2], 16) for n in (1, 3, 5)])
        return int((np.abs(pixels - wanted).max(axis=2) <= 2).sum())

    return count


def test_the_picture_shows_the_states(page):
    count = colours_of(page)
    # Boxes of tasks have a bar of each state; four in ten jobs failed at least once.
    assert count(STATE_COLOURS[WmsStates.FAILED]) > 300
    assert count(STATE_COLOURS[WmsStates.SUCCEEDED]) > 1000
    assert count("#fff8e1") > 5000, "advice"
    assert count("#ffffff") > SIZE[0] * SIZE[1] / 2, "tables on white"


def test_the_page_is_dark_where_the_screen_is(page):
    count = colours_of(page, "--blink-settings=preferredColorScheme=0")
    assert count("#1e2327") > SIZE[0] * SIZE[1] / 2, "tables on dark grey"
    assert count("#ffffff") < 5000
    assert count("#3a3420") > 5000, "advice"
    assert count(STATE_COLOURS[WmsStates.SUCCEEDED]) > 1000


def test_the_browser_understands_all_of_it(page):
    tree = browse(page, "--dump-dom")
    assert f"Run {REQUEST_ID}: {RUN}" in tree
    assert tree.count('<g class="task"') == 3
    assert tree.count('class="error"') == 3
    assert tree.count("<tr>") == page.read_text().count("<tr>")
